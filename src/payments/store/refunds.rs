//! The SQL of refunds: one statement a function.

use sqlx::{query, query_as, query_scalar};

use crate::auth::UserId;
use crate::orders::{OrderId, OrderRefundId, Status};
use crate::payments::model::{Payment, PaymentId, Refund, RefundId};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::money::Money;
use crate::platform::text::Text;
use crate::wallet::PointsBack;

/// Reads whole refunds. A macro, because a statement must be known when it is compiled.
macro_rules! select_refunds {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.payment_id, p.gateway, r.amount_fen, p.amount_fen AS payment_fen, p.currency, \
             p.gateway_trade_no, p.gateway_ref, r.status, r.replaced_by, r.attempts, r.refusals, \
             r.created_at, r.asked_at \
             FROM refunds r JOIN payments p ON p.id = r.payment_id ",
            $rest
        )
    };
}

/// How much of what was paid is set aside for refunds. The caller holds the payment's row.
pub(in crate::payments) async fn set_aside_so_far(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Money> {
    query_scalar("SELECT refunded_fen FROM payments WHERE id = ?").bind(id).fetch_one(conn).await
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
    /// [`RefundReason`](crate::payments::model::RefundReason), as the database has it.
    pub reason: &'a str,
    /// What it is for: once per payment.
    pub cause: &'a str,
    /// A person's words.
    pub note: &'a str,
}

/// Owes money back; a second refund of the payment for the same cause violates `uq_refunds_cause`.
pub(in crate::payments) async fn insert(conn: &mut Conn, new: &NewRefund<'_>, now: At) -> sqlx::Result<()> {
    query(
        "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, cause, note, status, next_attempt_at, \
         created_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?)",
    )
    .bind(new.id)
    .bind(new.payment.id)
    .bind(new.payment.order_id)
    .bind(new.amount)
    .bind(new.reason)
    .bind(new.cause)
    .bind(new.note)
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

/// Refunds of the payment that paid this order whose money is not back.
pub(in crate::payments) async fn count_unfinished(conn: &mut Conn, order: OrderId) -> sqlx::Result<i64> {
    query_scalar(
        "SELECT COUNT(*) FROM refunds r JOIN payments p ON p.id = r.payment_id \
         WHERE r.order_id = ? AND p.resolution = 'order' AND r.status IN ('pending', 'failed')",
    )
    .bind(order)
    .fetch_one(conn)
    .await
}

/// Orders that are being refunded although all their money is back. The index is named because statistics alone do not
/// always choose it: the cost is that of the orders being refunded.
pub(in crate::payments) async fn orders_to_finish(conn: &mut Conn, limit: u32) -> sqlx::Result<Vec<PaymentId>> {
    query_scalar(
        "SELECT p.id FROM orders o FORCE INDEX (ix_orders_due) \
         JOIN payments p ON p.order_id = o.id AND p.resolution = 'order' \
         WHERE o.status = ? AND NOT EXISTS (SELECT 1 FROM refunds r WHERE r.payment_id = p.id \
         AND r.status IN ('pending', 'failed')) LIMIT ?",
    )
    .bind(Status::Refunding)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// In place of who asked for a refund of an order, when the service itself did.
pub(in crate::payments) const NOBODY: UserId = UserId::min();

/// A refund of an order that a person asked for, or the service itself.
pub(in crate::payments) struct NewOrderRefund<'a> {
    pub id: OrderRefundId,
    pub order: OrderId,
    pub kind: &'static str,
    pub amount: Money,
    /// Earned points that were to be taken back.
    pub points: PointsBack,
    /// Spent points that came back.
    pub points_returned: i64,
    pub reason: &'a str,
    /// Who asked; nobody when the service itself did.
    pub by: Option<UserId>,
}

/// Writes down a refund that a person asked for, or the service itself.
pub(in crate::payments) async fn insert_order_refund(
    conn: &mut Conn,
    new: &NewOrderRefund<'_>,
    now: At,
) -> sqlx::Result<()> {
    // What has come back is missing at the end of the order's refund, also where a version before ends it.
    query(
        "INSERT INTO order_refunds (id, order_id, kind, amount_fen, points_back, points_returned, points_missing, \
         points_owed, reason, asked_by, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(new.id)
    .bind(new.order)
    .bind(new.kind)
    .bind(new.amount)
    .bind(new.points.taken)
    .bind(new.points_returned)
    .bind(new.points_returned)
    .bind(new.points.owed)
    .bind(new.reason)
    .bind(new.by.unwrap_or(NOBODY))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Points that an order had spent and that its end does not give back: they came back before, or a refund of a version
/// before keeps them for earned points that were not there to be taken back. Since then those are owed.
pub(in crate::payments) async fn points_kept(conn: &mut Conn, order: OrderId) -> sqlx::Result<i64> {
    query_scalar("SELECT CAST(COALESCE(SUM(points_missing), 0) AS SIGNED) FROM order_refunds WHERE order_id = ?")
        .bind(order)
        .fetch_one(conn)
        .await
}

/// A refund, held until the transaction ends. The caller holds the rows of the order and the payment.
pub(in crate::payments) async fn lock(conn: &mut Conn, id: RefundId) -> sqlx::Result<Option<Refund>> {
    query_as(select_refunds!("WHERE r.id = ? FOR UPDATE")).bind(id).fetch_optional(conn).await
}

/// Why a refund was owed, as the database has it, and a person's words.
pub(in crate::payments) async fn reason_of(conn: &mut Conn, id: RefundId) -> sqlx::Result<(String, String)> {
    let (reason, note): (Text, Text) =
        query_as("SELECT reason, note FROM refunds WHERE id = ?").bind(id).fetch_one(conn).await?;
    Ok((reason.into(), note.into()))
}

/// The next try of a pending refund is due now; false when it was already.
pub(in crate::payments) async fn make_due(conn: &mut Conn, id: RefundId, now: At) -> sqlx::Result<bool> {
    let statement =
        "UPDATE refunds SET next_attempt_at = ? WHERE id = ? AND status = 'pending' AND next_attempt_at > ?";
    Ok(query(statement).bind(now).bind(id).bind(now).execute(conn).await?.rows_affected() == 1)
}

/// failed → pending, to be sent again under its own number. It was sent before: a gateway that must know looks it up. One
/// attempt more, so that an answer which is still on its way is known to be of before.
pub(in crate::payments) async fn revive(conn: &mut Conn, id: RefundId, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE refunds SET status = 'pending', attempts = attempts + 1, next_attempt_at = ?, asked_at = NULL, failed_at = NULL \
         WHERE id = ? AND status = 'failed'",
    )
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// failed → replaced.
pub(in crate::payments) async fn mark_replaced(conn: &mut Conn, id: RefundId, by: RefundId) -> sqlx::Result<bool> {
    let done = query("UPDATE refunds SET status = 'replaced', replaced_by = ? WHERE id = ? AND status = 'failed'")
        .bind(by)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
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
         WHERE id = ? AND status IN ('pending', 'failed')",
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

/// The gateway said no to making a refund that had been refused so often before; a second word of the same no changes
/// nothing.
pub(in crate::payments) async fn count_refusal(conn: &mut Conn, id: RefundId, before: i32) -> sqlx::Result<()> {
    query("UPDATE refunds SET refusals = refusals + 1 WHERE id = ? AND refusals = ?")
        .bind(id)
        .bind(before)
        .execute(conn)
        .await?;
    Ok(())
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
