//! One SQL statement a function. Whoever locks an order and a payment locks the order first.

use sqlx::{query, query_as, query_scalar};

use super::model::{Gateway, Payment, PaymentId, Refund, RefundId, RefundReason};
use crate::orders::OrderId;
use crate::platform::clock::At;
use crate::platform::db::Conn;

/// Inserts a started payment.
pub(super) async fn insert_payment(
    conn: &mut Conn,
    payment: &Payment,
    channel: &str,
    now: At,
    next_query_at: At,
) -> sqlx::Result<()> {
    query(
        "INSERT INTO payments (id, order_id, gateway, channel, amount_fen, currency, status, created_at, expires_at, \
         next_query_at) VALUES (?, ?, ?, ?, ?, ?, 'started', ?, ?, ?)",
    )
    .bind(payment.id)
    .bind(payment.order_id)
    .bind(payment.gateway.as_str())
    .bind(channel)
    .bind(payment.amount)
    .bind(&payment.currency)
    .bind(now)
    .bind(payment.expires_at)
    .bind(next_query_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// A payment.
pub(super) async fn payment(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Option<Payment>> {
    query_as(
        "SELECT id, order_id, gateway, amount_fen, currency, status, gateway_trade_no, expires_at, query_count \
         FROM payments WHERE id = ?",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// As [`payment`], locked.
pub(super) async fn lock_payment(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Option<Payment>> {
    query_as(
        "SELECT id, order_id, gateway, amount_fen, currency, status, gateway_trade_no, expires_at, query_count \
         FROM payments WHERE id = ? FOR UPDATE",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// An order's payments that the buyer may still pay: at most one per gateway.
pub(super) async fn started_payments(conn: &mut Conn, order: OrderId) -> sqlx::Result<Vec<Payment>> {
    query_as(
        "SELECT id, order_id, gateway, amount_fen, currency, status, gateway_trade_no, expires_at, query_count \
         FROM payments WHERE order_id = ? AND status = 'started'",
    )
    .bind(order)
    .fetch_all(conn)
    .await
}

/// Money came in: once, whatever the payment's state was before.
pub(super) async fn mark_paid(
    conn: &mut Conn,
    id: PaymentId,
    trade_no: &str,
    resolution: &'static str,
    now: At,
) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payments SET status = 'paid', resolution = ?, gateway_trade_no = ?, paid_at = ?, next_query_at = NULL \
         WHERE id = ? AND status <> 'paid'",
    )
    .bind(resolution)
    .bind(trade_no)
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The gateway takes no more money for a payment. Never overwrites paid.
pub(super) async fn close_payment(conn: &mut Conn, id: PaymentId, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payments SET status = 'closed', closed_at = ?, next_query_at = NULL WHERE id = ? AND status = 'started'",
    )
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A started payment is to be asked about now.
pub(super) async fn ask_now(conn: &mut Conn, id: PaymentId, now: At) -> sqlx::Result<()> {
    query("UPDATE payments SET next_query_at = ? WHERE id = ? AND status = 'started'")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Started payments that are to be asked about, the longest due first.
pub(super) async fn query_due(conn: &mut Conn, now: At, limit: u32) -> sqlx::Result<Vec<Payment>> {
    query_as(
        "SELECT id, order_id, gateway, amount_fen, currency, status, gateway_trade_no, expires_at, query_count \
         FROM payments WHERE status = 'started' AND next_query_at <= ? ORDER BY next_query_at LIMIT ?",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Takes one question about a started payment; false: another process took it, or the payment is final.
pub(super) async fn claim_query(conn: &mut Conn, payment: &Payment, next_query_at: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payments SET query_count = query_count + 1, next_query_at = ? \
         WHERE id = ? AND status = 'started' AND query_count = ?",
    )
    .bind(next_query_at)
    .bind(payment.id)
    .bind(payment.query_count)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A message to keep.
pub(super) struct NewNotification<'a> {
    pub gateway: Gateway,
    pub notify_id: &'a str,
    pub payment: PaymentId,
    pub outcome: &'static str,
    pub detail: &'a str,
    pub body: &'a [u8],
}

/// Keeps a message with what it did; one that was kept before violates `uq_payment_notifications_id`.
pub(super) async fn insert_notification(conn: &mut Conn, new: &NewNotification<'_>, now: At) -> sqlx::Result<()> {
    query(
        "INSERT INTO payment_notifications (id, gateway, notify_id, payment_id, outcome, detail, body, received_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(PaymentId::new())
    .bind(new.gateway.as_str())
    .bind(new.notify_id)
    .bind(new.payment)
    .bind(new.outcome)
    .bind(new.detail)
    .bind(new.body)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// What a kept message did.
pub(super) async fn notification_outcome(
    conn: &mut Conn,
    gateway: Gateway,
    notify_id: &str,
) -> sqlx::Result<Option<String>> {
    query_scalar("SELECT outcome FROM payment_notifications WHERE gateway = ? AND notify_id = ?")
        .bind(gateway.as_str())
        .bind(notify_id)
        .fetch_optional(conn)
        .await
}

/// Says what became of money that was owed a decision; false: it has been decided before.
pub(super) async fn resolve(conn: &mut Conn, id: PaymentId, resolution: &'static str) -> sqlx::Result<bool> {
    let done = query("UPDATE payments SET resolution = ? WHERE id = ? AND resolution = 'owed'")
        .bind(resolution)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Money that came in before `before` and waits for its decision, the longest waiting first.
pub(super) async fn owed(conn: &mut Conn, before: At, limit: u32) -> sqlx::Result<Vec<PaymentId>> {
    query_scalar("SELECT id FROM payments WHERE resolution = 'owed' AND paid_at <= ? ORDER BY paid_at LIMIT ?")
        .bind(before)
        .bind(limit)
        .fetch_all(conn)
        .await
}

/// Owes a payment's money back; a second refund of it violates `uq_refunds_payment`.
pub(super) async fn insert_refund(
    conn: &mut Conn,
    id: RefundId,
    payment: &Payment,
    reason: RefundReason,
    now: At,
) -> sqlx::Result<()> {
    query(
        "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, status, next_attempt_at, created_at) \
         VALUES (?, ?, ?, ?, ?, 'pending', ?, ?)",
    )
    .bind(id)
    .bind(payment.id)
    .bind(payment.order_id)
    .bind(payment.amount)
    .bind(reason.as_str())
    .bind(now)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Refunds that are due, the longest due first.
pub(super) async fn due_refunds(conn: &mut Conn, now: At, limit: u32) -> sqlx::Result<Vec<Refund>> {
    query_as(
        "SELECT r.id, r.payment_id, p.gateway, r.amount_fen, r.attempts FROM refunds r \
         JOIN payments p ON p.id = r.payment_id \
         WHERE r.status = 'pending' AND r.next_attempt_at <= ? ORDER BY r.next_attempt_at LIMIT ?",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Takes one try of a refund; false: another process took it, or it is confirmed.
pub(super) async fn claim_refund(conn: &mut Conn, refund: &Refund, next_attempt_at: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE refunds SET attempts = attempts + 1, next_attempt_at = ? \
         WHERE id = ? AND status = 'pending' AND attempts = ?",
    )
    .bind(next_attempt_at)
    .bind(refund.id)
    .bind(refund.attempts)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The gateway gave the money back.
pub(super) async fn confirm_refund(conn: &mut Conn, id: RefundId, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE refunds SET status = 'confirmed', confirmed_at = ?, next_attempt_at = NULL, last_error = '' \
         WHERE id = ? AND status = 'pending'",
    )
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Why a try of a refund failed.
pub(super) async fn note_refund_error(conn: &mut Conn, id: RefundId, error: &str) -> sqlx::Result<()> {
    query("UPDATE refunds SET last_error = ? WHERE id = ? AND status = 'pending'")
        .bind(error)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}
