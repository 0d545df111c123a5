//! How far the fetching of bills is, by gateway and day.

use crate::payments::Gateway;
use sqlx::{query, query_as};
use uuid::Uuid;

use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::db::Conn;
use crate::platform::text::Text;

/// Who fetches a bill.
#[derive(Debug, Clone, Copy)]
pub(in crate::reconciliation) struct Fetcher {
    pub key: Uuid,
    /// Whether the key is a task's: the schedule's fetches have a key of their own each, and no task.
    pub is_task: bool,
}

/// A bill is to be fetched now, by this fetcher; one that began since `since` and is under way keeps its own, but that a
/// task takes the place of the schedule.
pub(in crate::reconciliation) async fn begin(
    conn: &mut Conn,
    (gateway, day): (Gateway, Day),
    by: Fetcher,
    since: At,
    now: At,
) -> sqlx::Result<()> {
    // What is assigned first sees the others as they were, and what comes after it sees whose the row is by now.
    query(
        "INSERT INTO payment_bill_fetches (gateway, day, status, task_key, is_task, asked_at) \
         VALUES (?, ?, 'fetching', ?, ?, ?) ON DUPLICATE KEY UPDATE \
         task_key = IF(status = 'fetching' AND asked_at > ? AND is_task >= VALUES(is_task), task_key, VALUES(task_key)), \
         is_task = IF(task_key = VALUES(task_key), VALUES(is_task), is_task), \
         asked_at = IF(task_key = VALUES(task_key), VALUES(asked_at), asked_at), \
         status = 'fetching', ended_at = NULL, error = ''",
    )
    .bind(gateway.as_str())
    .bind(day)
    .bind(by.key)
    .bind(by.is_task)
    .bind(now)
    .bind(since)
    .execute(conn)
    .await?;
    Ok(())
}

/// fetching → fetched, or failed where there is an error. Not when another task has it by now. Of two that were at it under
/// one key it is enough that one had it: failed → fetched, and never the other way.
pub(in crate::reconciliation) async fn end(
    conn: &mut Conn,
    (gateway, day): (Gateway, Day),
    task_key: Uuid,
    error: Option<&str>,
    now: At,
) -> sqlx::Result<()> {
    query(match error {
        Some(_) => {
            "UPDATE payment_bill_fetches SET status = ?, error = ?, ended_at = ? \
             WHERE gateway = ? AND day = ? AND task_key = ? AND status = 'fetching'"
        }
        None => {
            "UPDATE payment_bill_fetches SET status = ?, error = ?, ended_at = ? \
             WHERE gateway = ? AND day = ? AND task_key = ? AND status IN ('fetching', 'failed')"
        }
    })
    .bind(if error.is_some() { "failed" } else { "fetched" })
    .bind(error.unwrap_or_default())
    .bind(now)
    .bind(gateway.as_str())
    .bind(day)
    .bind(task_key)
    .execute(conn)
    .await?;
    Ok(())
}

/// How far it is.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::reconciliation) struct FetchRow {
    #[sqlx(try_from = "Text")]
    pub status: String,
    pub task_key: Uuid,
    pub is_task: bool,
    pub asked_at: At,
    pub ended_at: Option<At>,
    #[sqlx(try_from = "Text")]
    pub error: String,
}

/// How far the fetching of a bill is; `None`: nobody has asked for it.
pub(in crate::reconciliation) async fn find(
    conn: &mut Conn,
    gateway: Gateway,
    day: Day,
) -> sqlx::Result<Option<FetchRow>> {
    query_as(
        "SELECT status, task_key, is_task, asked_at, ended_at, error FROM payment_bill_fetches \
         WHERE gateway = ? AND day = ?",
    )
    .bind(gateway.as_str())
    .bind(day)
    .fetch_optional(conn)
    .await
}

/// Bills whose fetching began before `before` and has not ended: their tasks are lost, the longest first.
pub(in crate::reconciliation) async fn lost(
    conn: &mut Conn,
    before: At,
    limit: u32,
) -> sqlx::Result<Vec<(String, Day)>> {
    let lost: Vec<(Text, Day)> = query_as(
        "SELECT gateway, day FROM payment_bill_fetches WHERE status = 'fetching' AND asked_at <= ? \
         ORDER BY asked_at LIMIT ?",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(lost.into_iter().map(|(gateway, day)| (gateway.into(), day)).collect())
}
