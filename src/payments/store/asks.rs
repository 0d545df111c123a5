//! When people's requests have a gateway asked about a payment.

use sqlx::{FromRow, query, query_as};

use crate::payments::model::PaymentId;
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::text::Text;

/// Takes the next question of a person about a started payment; false: one was asked after `before`, or it is final.
pub(in crate::payments) async fn claim_ask(conn: &mut Conn, id: PaymentId, before: At, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payments SET asked_at = ? WHERE id = ? AND status = 'started' AND (asked_at IS NULL OR asked_at <= ?)",
    )
    .bind(now)
    .bind(id)
    .bind(before)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes the opening of a started payment's trade; false: it was opened, or somebody began to, after `before`.
pub(in crate::payments) async fn claim_opening(
    conn: &mut Conn,
    id: PaymentId,
    before: At,
    now: At,
) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payments SET opening_at = ? \
         WHERE id = ? AND status = 'started' AND (opening_at IS NULL OR opening_at <= ?)",
    )
    .bind(now)
    .bind(id)
    .bind(before)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Keeps what the gateway answered when it opened a trade, as JSON; false: nobody is to pay it any more.
pub(in crate::payments) async fn keep_opened(
    conn: &mut Conn,
    id: PaymentId,
    opened_with: &str,
    now: At,
) -> sqlx::Result<bool> {
    let done = query("UPDATE payments SET opened_at = ?, opened_with = ? WHERE id = ? AND status = 'started'")
        .bind(now)
        .bind(opened_with)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// What the gateway answered.
#[derive(FromRow)]
pub(in crate::payments) struct Opened {
    /// When.
    pub opened_at: At,
    /// As JSON.
    #[sqlx(try_from = "Text")]
    pub opened_with: String,
}

/// What the gateway answered when it last opened a trade.
pub(in crate::payments) async fn opened(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Option<Opened>> {
    query_as(
        "SELECT opened_at, opened_with FROM payments \
         WHERE id = ? AND opened_at IS NOT NULL AND opened_with IS NOT NULL",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}
