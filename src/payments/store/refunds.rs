//! The SQL of refunds: one statement a function.

use sqlx::{query, query_as};

use crate::payments::model::{Payment, PaymentId, Refund, RefundId, RefundReason};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::money::Money;

/// Reads whole refunds. A macro, because a statement must be known when it is compiled.
macro_rules! select_refunds {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.payment_id, p.gateway, r.amount_fen, p.amount_fen AS payment_fen, p.currency, \
             p.gateway_trade_no, p.gateway_ref, r.attempts, r.created_at, r.asked_at \
             FROM refunds r JOIN payments p ON p.id = r.payment_id ",
            $rest
        )
    };
}

/// Sets aside so much of what was paid for a refund; false: so much is not left. The caller holds the payment's row.
pub(in crate::payments) async fn set_aside(conn: &mut Conn, id: PaymentId, amount: Money) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payments SET refunded_fen = refunded_fen + ? WHERE id = ? AND status = 'paid' \
         AND refunded_fen + ? <= amount_fen",
    )
    .bind(amount)
    .bind(id)
    .bind(amount)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A refund to be made.
pub(in crate::payments) struct NewRefund<'a> {
    pub id: RefundId,
    pub payment: &'a Payment,
    pub amount: Money,
    pub reason: RefundReason,
    /// What it is for: once per payment.
    pub cause: &'a str,
}

/// Owes money back; a second refund of the payment for the same cause violates `uq_refunds_cause`.
pub(in crate::payments) async fn insert(conn: &mut Conn, new: &NewRefund<'_>, now: At) -> sqlx::Result<()> {
    query(
        "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, cause, status, next_attempt_at, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?)",
    )
    .bind(new.id)
    .bind(new.payment.id)
    .bind(new.payment.order_id)
    .bind(new.amount)
    .bind(new.reason.as_str())
    .bind(new.cause)
    .bind(now)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// A refund.
pub(in crate::payments) async fn find(conn: &mut Conn, id: RefundId) -> sqlx::Result<Option<Refund>> {
    query_as(select_refunds!("WHERE r.id = ?")).bind(id).fetch_optional(conn).await
}

/// Refunds that are due, the longest due first.
pub(in crate::payments) async fn due(conn: &mut Conn, now: At, limit: u32) -> sqlx::Result<Vec<Refund>> {
    query_as(select_refunds!(
        "WHERE r.status = 'pending' AND r.next_attempt_at <= ? ORDER BY r.next_attempt_at LIMIT ?"
    ))
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// A payment's refunds that are under way are asked about, or sent, now.
pub(in crate::payments) async fn hurry(conn: &mut Conn, payment: PaymentId, now: At) -> sqlx::Result<u64> {
    let done = query("UPDATE refunds SET next_attempt_at = ? WHERE payment_id = ? AND status = 'pending'")
        .bind(now)
        .bind(payment)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Takes one try of a refund; false: another process took it, or it is confirmed.
pub(in crate::payments) async fn claim(conn: &mut Conn, refund: &Refund, next_attempt_at: At) -> sqlx::Result<bool> {
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

/// The gateway gave the money back: final, also when it had refused before and a person there has made it after all.
pub(in crate::payments) async fn confirm(conn: &mut Conn, id: RefundId, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE refunds SET status = 'confirmed', confirmed_at = ?, next_attempt_at = NULL, last_error = '' \
         WHERE id = ? AND status <> 'confirmed'",
    )
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The gateway is at it: from now on it is asked about.
pub(in crate::payments) async fn mark_asked(conn: &mut Conn, id: RefundId, now: At) -> sqlx::Result<()> {
    query("UPDATE refunds SET asked_at = COALESCE(asked_at, ?), last_error = '' WHERE id = ? AND status = 'pending'")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// The gateway will not give the money back. Never overwrites confirmed.
pub(in crate::payments) async fn fail(conn: &mut Conn, id: RefundId, why: &str, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE refunds SET status = 'failed', failed_at = ?, next_attempt_at = NULL, last_error = ? \
         WHERE id = ? AND status = 'pending'",
    )
    .bind(now)
    .bind(why)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Why a try of a refund failed.
pub(in crate::payments) async fn note_error(conn: &mut Conn, id: RefundId, error: &str) -> sqlx::Result<()> {
    query("UPDATE refunds SET last_error = ? WHERE id = ? AND status = 'pending'")
        .bind(error)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}
