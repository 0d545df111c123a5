//! One SQL statement a function. Whoever locks an order and a payment locks the order first, and a refund after both.

pub(super) mod asks;
pub(super) mod books;
pub(super) mod disabled_gateways;
pub(super) mod refunds;
pub(super) mod views;

use sqlx::{FromRow, QueryBuilder, query, query_as, query_scalar};

use super::model::{Gateway, NotificationId, Payment, PaymentId};
use crate::orders::OrderId;
use crate::platform::clock::At;
use crate::platform::db::{Conn, push_in};
use crate::platform::text::Text;

/// Reads whole payments. A macro, because a statement must be known when it is compiled.
macro_rules! select_payments {
    ($rest:literal) => {
        concat!(
            "SELECT id, order_id, gateway, channel, amount_fen, currency, status, gateway_trade_no, gateway_ref, \
             payer_openid, payer_address, expires_at, query_count FROM payments ",
            $rest
        )
    };
}

/// Inserts a started payment.
pub(super) async fn insert_payment(conn: &mut Conn, payment: &Payment, now: At, next_query_at: At) -> sqlx::Result<()> {
    query(
        "INSERT INTO payments (id, order_id, gateway, channel, amount_fen, currency, status, payer_openid, payer_address, \
         created_at, expires_at, next_query_at, opening_at) VALUES (?, ?, ?, ?, ?, ?, 'started', ?, ?, ?, ?, ?, ?)",
    )
    .bind(payment.id)
    .bind(payment.order_id)
    .bind(payment.gateway.as_str())
    .bind(payment.channel.as_str())
    .bind(payment.amount)
    .bind(&payment.currency)
    .bind(&payment.payer_openid)
    .bind(&payment.payer_address)
    .bind(now)
    .bind(payment.expires_at)
    .bind(next_query_at)
    // Whoever starts it opens its trade.
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// A payment.
pub(super) async fn payment(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Option<Payment>> {
    query_as(select_payments!("WHERE id = ?")).bind(id).fetch_optional(conn).await
}

/// As [`payment`], locked.
pub(super) async fn lock_payment(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Option<Payment>> {
    query_as(select_payments!("WHERE id = ? FOR UPDATE")).bind(id).fetch_optional(conn).await
}

/// The payment that paid an order, locked; none when there was nothing to pay.
pub(super) async fn lock_paying(conn: &mut Conn, order: OrderId) -> sqlx::Result<Option<Payment>> {
    query_as(select_payments!("WHERE order_id = ? AND resolution = 'order' FOR UPDATE"))
        .bind(order)
        .fetch_optional(conn)
        .await
}

/// An order's payments that the buyer may still pay: at most one per gateway.
pub(super) async fn started_payments(conn: &mut Conn, order: OrderId) -> sqlx::Result<Vec<Payment>> {
    query_as(select_payments!("WHERE order_id = ? AND status = 'started'")).bind(order).fetch_all(conn).await
}

/// An order, and where a payment of it was started.
#[derive(FromRow)]
pub(super) struct StartedAt {
    pub order_id: OrderId,
    pub gateway: Gateway,
}

/// Where payments of these orders were started that have not ended. The list must not be empty.
pub(super) async fn started_at(conn: &mut Conn, orders: &[OrderId]) -> sqlx::Result<Vec<StartedAt>> {
    let mut query =
        QueryBuilder::new("SELECT order_id, gateway FROM payments WHERE status = 'started' AND order_id IN ");
    push_in(&mut query, orders.iter().copied());
    query.build_query_as().fetch_all(conn).await
}

/// Payments of these orders that the buyer may still pay. The list must not be empty.
pub(super) async fn started_of(conn: &mut Conn, orders: &[OrderId]) -> sqlx::Result<Vec<PaymentId>> {
    let mut query = QueryBuilder::new("SELECT id FROM payments WHERE status = 'started' AND order_id IN ");
    push_in(&mut query, orders.iter().copied());
    query.build_query_scalar().fetch_all(conn).await
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

/// Keeps what the gateway needs to find a payment's trade again; the first word counts.
pub(super) async fn keep_ref(conn: &mut Conn, id: PaymentId, reference: &str) -> sqlx::Result<()> {
    query("UPDATE payments SET gateway_ref = ? WHERE id = ? AND gateway_ref IS NULL")
        .bind(reference)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
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
    query_as(select_payments!("WHERE status = 'started' AND next_query_at <= ? ORDER BY next_query_at LIMIT ?"))
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
    /// The [`Message`](super::model::Message) as JSON.
    pub message: &'a str,
}

/// Keeps a message with what it did; one that was kept before violates `uq_payment_notifications_id`.
pub(super) async fn insert_notification(conn: &mut Conn, new: &NewNotification<'_>, now: At) -> sqlx::Result<()> {
    query(
        "INSERT INTO payment_notifications (id, gateway, notify_id, payment_id, outcome, detail, body, message, \
         received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(NotificationId::new())
    .bind(new.gateway.as_str())
    .bind(new.notify_id)
    .bind(new.payment)
    .bind(new.outcome)
    .bind(new.detail)
    .bind(new.body)
    .bind(new.message)
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
    let outcome: Option<Text> =
        query_scalar("SELECT outcome FROM payment_notifications WHERE gateway = ? AND notify_id = ?")
            .bind(gateway.as_str())
            .bind(notify_id)
            .fetch_optional(conn)
            .await?;
    Ok(outcome.map(String::from))
}

/// A kept message, held until the transaction ends: what it did, and why.
pub(super) async fn lock_notification(conn: &mut Conn, id: NotificationId) -> sqlx::Result<Option<(String, String)>> {
    let kept: Option<(Text, Text)> =
        query_as("SELECT outcome, detail FROM payment_notifications WHERE id = ? FOR UPDATE")
            .bind(id)
            .fetch_optional(conn)
            .await?;
    Ok(kept.map(|(outcome, detail)| (outcome.into(), detail.into())))
}

/// Says what a kept message did when it was judged again.
pub(super) async fn set_outcome(
    conn: &mut Conn,
    id: NotificationId,
    outcome: &'static str,
    detail: &str,
) -> sqlx::Result<()> {
    query("UPDATE payment_notifications SET outcome = ?, detail = ? WHERE id = ?")
        .bind(outcome)
        .bind(detail)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
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
