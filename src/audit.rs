//! The audit: what administrators did, one row each.
//!
//! A change of MySQL writes its row in its own transaction ([`done`]): there is a row if and only if there is a change.
//! A change of Redis cannot: its row is written first, without an outcome, then it happens, then its outcome is written
//! ([`around`]). So nothing happens without a row, and a row without an outcome says what it can: it was asked for, and
//! nobody knows whether it happened. Rows are kept for good, and never have arguments of tasks in them.
//!
//! Beside them stands what was seen at the door: lock-outs and refusals ([`noted`]). Anybody can make those, so their
//! number is bounded by the table's own key.

pub mod http;

use std::future::Future;

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{MySql, QueryBuilder};
use uuid::Builder;

use crate::app::App;
use crate::auth::UserId;
use crate::error::{Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::id::Id;
use crate::platform::text::{OptionalText, Text};

/// Names the ids of [`AuditRow`]s.
#[derive(Debug, Clone, Copy)]
pub struct AuditKind;
/// The id of a row.
pub type AuditId = Id<AuditKind>;

/// What somebody did, or what was seen of them.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    /// Who.
    pub by: UserId,
    /// What, such as `queue.pause`.
    pub action: &'static str,
    /// To what: an id or a name.
    pub target: &'a str,
}

/// A row of the audit.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct AuditRow {
    /// Its id.
    pub id: AuditId,
    /// Who.
    pub user_id: UserId,
    /// What.
    #[sqlx(try_from = "Text")]
    pub action: String,
    /// To what.
    #[sqlx(try_from = "Text")]
    pub target: String,
    /// How, as JSON.
    #[sqlx(try_from = "Text")]
    pub details: String,
    /// What came of it, as JSON.
    #[sqlx(try_from = "OptionalText")]
    pub outcome: Option<String>,
    /// When it was asked for.
    pub at: At,
}

/// Writes what was done, in the transaction that does it.
pub async fn done(conn: &mut Conn, act: Act<'_>, details: &Value, now: At) -> Result<()> {
    insert(conn, AuditId::new(), act, details, Some(&json!({ "done": true })), now).await
}

/// Rows that [`noted`] writes of one action in an hour, at most.
pub const NOTED_PER_HOUR: usize = 256;

/// Writes what was seen of somebody, once in an hour: what comes again is in the log and in the metrics. Others may share
/// that row's place, so that whoever makes it happen, and to however many, there are [`NOTED_PER_HOUR`] rows at most.
pub async fn noted(conn: &mut Conn, act: Act<'_>, details: &Value, now: At) -> Result<()> {
    sqlx::query(
        "INSERT INTO audit (id, user_id, action, target, details, outcome, at) VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON DUPLICATE KEY UPDATE id = VALUES(id)",
    )
    .bind(noted_id(act, now))
    .bind(act.by)
    .bind(act.action)
    .bind(act.target)
    .bind(details.to_string())
    .bind(json!({ "refused": true }).to_string())
    .bind(now)
    .execute(conn)
    .await
    .context("noting in the audit")?;
    Ok(())
}

/// The hour, the action and one of so many places: the same of all processes. As a UUIDv7 it stands among the ids of its
/// hour's beginning.
fn noted_id(act: Act<'_>, now: At) -> AuditId {
    let hour_ms = now.ms() - now.ms().rem_euclid(HOUR_MS);
    let place = digest(&SHA256, act.by.uuid().as_bytes()).as_ref().first().copied().unwrap_or_default();
    let named = digest(&SHA256, format!("{}:{place}", act.action).as_bytes());
    let mut random = [0; 10];
    random.iter_mut().zip(named.as_ref()).for_each(|(to, from)| *to = *from);
    AuditId::from_uuid(Builder::from_unix_timestamp_millis(u64::try_from(hour_ms).unwrap_or(0), &random).into_uuid())
}

const HOUR_MS: i64 = 3_600_000;

/// Writes what is asked for, does it, and writes what came of it.
pub async fn around<T, Fut>(app: &App, act: Act<'_>, details: &Value, action: Fut) -> Result<T>
where
    T: Serialize,
    Fut: Future<Output = Result<T>>,
{
    let id = AuditId::new();
    let asked = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        insert(&mut conn, id, act, details, None, app.clock.now()).await
    });
    asked.await?;
    let answer = action.await;
    let outcome = match &answer {
        Ok(value) => serde_json::to_value(value).unwrap_or_default(),
        Err(error) => json!({ "error": error.kind().name() }),
    };
    // It has happened: what is said of it may not make it look as if it had not.
    let written = retrying(|| async { conclude(&mut *app.db.acquire().await?, id, &outcome).await });
    if let Err(error) = written.await {
        tracing::warn!(audit.id = %id, audit.action = act.action, %error, "the outcome of an action could not be written");
    }
    answer
}

async fn insert(
    conn: &mut Conn,
    id: AuditId,
    act: Act<'_>,
    details: &Value,
    outcome: Option<&Value>,
    now: At,
) -> Result<()> {
    sqlx::query("INSERT INTO audit (id, user_id, action, target, details, outcome, at) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(id)
        .bind(act.by)
        .bind(act.action)
        .bind(act.target)
        .bind(details.to_string())
        .bind(outcome.map(Value::to_string))
        .bind(now)
        .execute(conn)
        .await
        .context("writing the audit")?;
    Ok(())
}

async fn conclude(conn: &mut Conn, id: AuditId, outcome: &Value) -> Result<()> {
    sqlx::query("UPDATE audit SET outcome = ? WHERE id = ? AND outcome IS NULL")
        .bind(outcome.to_string())
        .bind(id)
        .execute(conn)
        .await
        .context("writing an outcome")?;
    Ok(())
}

/// Rows below `before`, newest first; of this action and this person alone, where given.
pub async fn list(
    app: &App,
    before: AuditId,
    action: Option<&str>,
    by: Option<UserId>,
    limit: u32,
) -> Result<Vec<AuditRow>> {
    let mut query =
        QueryBuilder::<MySql>::new("SELECT id, user_id, action, target, details, outcome, at FROM audit WHERE id < ");
    query.push_bind(before);
    if let Some(action) = action {
        query.push(" AND action = ").push_bind(action);
    }
    if let Some(by) = by {
        query.push(" AND user_id = ").push_bind(by);
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    Ok(query.build_query_as().fetch_all(&mut *app.db.acquire().await?).await.context("listing the audit")?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_noted_has_so_many_places_in_an_hour_and_no_more() {
        let now = At::from_ms(1_764_000_000_000);
        let id = |by: UserId, action, now| noted_id(Act { by, action, target: "" }, now);
        let places: BTreeSet<AuditId> = (0..10_000).map(|_| id(UserId::new(), "login.locked", now)).collect();
        assert!(places.len() <= NOTED_PER_HOUR && places.len() > NOTED_PER_HOUR / 2, "{}", places.len());
        let by = UserId::new();
        let hour = std::time::Duration::from_secs(3600);
        let same = id(by, "login.locked", now);
        assert_eq!(same, id(by, "login.locked", At::from_ms(now.ms() - now.ms() % HOUR_MS + HOUR_MS - 1)));
        assert_ne!(same, id(by, "login.locked", now.plus(hour)));
        assert_ne!(same, id(by, "access.forbidden", now));
        assert_eq!(same.uuid().get_version_num(), 7);
    }
}
