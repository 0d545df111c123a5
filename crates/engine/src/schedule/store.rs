//! The SQL of schedules and leases: one statement a function.
//!
//! Leases are compared with the database's clock (`UTC_TIMESTAMP`), not with ours: processes whose clocks differ, or
//! whose clock jumps, agree about who holds one.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{MySql, QueryBuilder};

use super::model::{Definition, Schedule, ScheduleId};
use onrush_platform::clock::At;
use onrush_platform::db::{self, Conn};

const COLUMNS: &str = "id, name, task, args, kind, every_s, crontab, run_at, time_zone, starts_at, enabled, catch_up, \
    catch_up_max, overlap, next_run_at, last_run_at, total_runs, last_task, last_error, version, times_version, created_at, \
    updated_at";

/// What a constraint said of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Written.
    Yes,
    /// The id is another row's, or the row is not what it was.
    No,
    /// The name is another schedule's.
    NameTaken,
}

fn written(done: Result<sqlx::mysql::MySqlQueryResult, sqlx::Error>, what: &'static str) -> Result<Written> {
    match done {
        Ok(done) if done.rows_affected() == 1 => Ok(Written::Yes),
        Ok(_) => Ok(Written::No),
        Err(error) => match db::violated(&error).as_deref() {
            Some("uq_schedules_name") => Ok(Written::NameTaken),
            Some("PRIMARY") => Ok(Written::No),
            _ => Err(error).context(what),
        },
    }
}

/// Adds a schedule.
pub async fn insert(conn: &mut Conn, id: ScheduleId, new: &Definition, next: Option<At>, now: At) -> Result<Written> {
    let done = sqlx::query(
        "INSERT INTO schedules (id, name, task, args, kind, every_s, crontab, run_at, time_zone, starts_at, enabled,
            catch_up, catch_up_max, overlap, next_run_at, created_at, updated_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(id)
    .bind(&new.name)
    .bind(&new.task)
    .bind(&new.args)
    .bind(new.kind.as_str())
    .bind(new.every_s)
    .bind(&new.crontab)
    .bind(new.run_at)
    .bind(&new.time_zone)
    .bind(new.starts_at)
    .bind(new.enabled)
    .bind(new.catch_up.as_str())
    .bind(new.catch_up_max)
    .bind(new.overlap)
    .bind(next)
    .bind(now)
    .bind(now)
    .execute(conn)
    .await;
    written(done, "adding a schedule")
}

/// Writes an edit over what `before` was; the next run too, where the edit moved it.
pub async fn update(
    conn: &mut Conn,
    before: &Schedule,
    new: &Definition,
    moved: Option<Option<At>>,
    now: At,
) -> Result<Written> {
    let done = sqlx::query(
        "UPDATE schedules SET name = ?, task = ?, args = ?, kind = ?, every_s = ?, crontab = ?, run_at = ?, time_zone = ?,
            starts_at = ?, enabled = ?, catch_up = ?, catch_up_max = ?, overlap = ?,
            next_run_at = CASE WHEN ? THEN ? ELSE next_run_at END,
            times_version = CASE WHEN ? THEN version + 1 ELSE times_version END,
            last_error = NULL, updated_at = ?, version = version + 1
         WHERE id = ? AND version = ?",
    )
    .bind(&new.name)
    .bind(&new.task)
    .bind(&new.args)
    .bind(new.kind.as_str())
    .bind(new.every_s)
    .bind(&new.crontab)
    .bind(new.run_at)
    .bind(&new.time_zone)
    .bind(new.starts_at)
    .bind(new.enabled)
    .bind(new.catch_up.as_str())
    .bind(new.catch_up_max)
    .bind(new.overlap)
    .bind(moved.is_some())
    .bind(moved.flatten())
    .bind(moved.is_some())
    .bind(now)
    .bind(before.id)
    .bind(before.version)
    .execute(conn)
    .await;
    written(done, "editing a schedule")
}

/// Removes a schedule; false when there is none.
pub async fn delete(conn: &mut Conn, id: ScheduleId) -> Result<bool> {
    let gone = sqlx::query("DELETE FROM schedules WHERE id = ?").bind(id).execute(conn).await;
    Ok(gone.context("removing a schedule")?.rows_affected() == 1)
}

/// One schedule.
pub async fn find(conn: &mut Conn, id: ScheduleId) -> Result<Option<Schedule>> {
    let sql = format!("SELECT {COLUMNS} FROM schedules WHERE id = ?");
    sqlx::query_as(&sql).bind(id).fetch_optional(conn).await.context("reading a schedule")
}

/// Schedules below `before`, newest first.
pub async fn list(conn: &mut Conn, before: ScheduleId, limit: u32) -> Result<Vec<Schedule>> {
    let sql = format!("SELECT {COLUMNS} FROM schedules WHERE id < ? ORDER BY id DESC LIMIT ?");
    let page = sqlx::query_as(&sql).bind(before).bind(limit).fetch_all(conn).await;
    page.context("listing schedules")
}

/// Schedules of one task that are looked at, at most.
const OF_ONE_TASK: u32 = 100;

/// Enabled schedules of a task.
pub async fn enabled_of(conn: &mut Conn, task: &str) -> Result<Vec<Schedule>> {
    let sql = format!("SELECT {COLUMNS} FROM schedules WHERE task = ? AND enabled = TRUE ORDER BY id LIMIT ?");
    let found = sqlx::query_as(&sql).bind(task).bind(OF_ONE_TASK).fetch_all(conn).await;
    found.context("reading a task's schedules")
}

/// Enabled schedules of these tasks that are due, the longest due first; those behind `after`, where a page before ended.
pub async fn due(
    conn: &mut Conn,
    tasks: &[&'static str],
    now: At,
    after: Option<(At, ScheduleId)>,
    limit: u32,
) -> Result<Vec<Schedule>> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM schedules WHERE next_run_at <= "));
    query.push_bind(now).push(" AND enabled = TRUE");
    if let Some((at, id)) = after {
        query.push(" AND (next_run_at > ").push_bind(at).push(" OR (next_run_at = ").push_bind(at);
        query.push(" AND id > ").push_bind(id).push("))");
    }
    push_tasks(&mut query, tasks);
    query.push(" ORDER BY next_run_at, id LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await.context("looking for due schedules")
}

/// Enabled schedules of these tasks that were set aside.
pub async fn set_aside_ones(conn: &mut Conn, tasks: &[&'static str], limit: u32) -> Result<Vec<Schedule>> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM schedules WHERE next_run_at IS NULL"));
    query.push(" AND enabled = TRUE AND last_error IS NOT NULL");
    push_tasks(&mut query, tasks);
    query.push(" ORDER BY id LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await.context("looking for schedules that were set aside")
}

fn push_tasks(query: &mut QueryBuilder<'_, MySql>, tasks: &[&'static str]) {
    query.push(" AND task IN (");
    let mut names = query.separated(", ");
    for task in tasks {
        names.push_bind(*task);
    }
    query.push(")");
}

/// What a pass did with a due schedule.
#[derive(Debug, Default)]
pub struct Ran {
    /// Tasks enqueued.
    pub runs: i64,
    /// The id of the last one.
    pub last_task: Option<String>,
}

/// Moves a schedule on to its next occurrence; false when another leader was first, or an edit moved it. Another edit leaves
/// its times as they are, and so its next occurrence.
pub async fn advance(conn: &mut Conn, was: &Schedule, next: Option<At>, ran: &Ran, now: At) -> Result<bool> {
    let moved = sqlx::query(
        "UPDATE schedules SET next_run_at = ?, last_run_at = COALESCE(?, last_run_at), total_runs = total_runs + ?,
            last_task = COALESCE(?, last_task)
         WHERE id = ? AND next_run_at = ? AND times_version = ?",
    )
    .bind(next)
    .bind(Some(now).filter(|_| ran.runs > 0))
    .bind(ran.runs)
    .bind(&ran.last_task)
    .bind(was.id)
    .bind(was.next_run_at)
    .bind(was.times_version)
    .execute(conn)
    .await
    .context("moving a schedule on")?;
    Ok(moved.rows_affected() == 1)
}

/// Notes tasks that were enqueued while an edit moved the schedule; nothing when no edit did, or when they are noted.
pub async fn note_run(conn: &mut Conn, was: &Schedule, ran: &Ran, now: At) -> Result<()> {
    sqlx::query(
        "UPDATE schedules SET last_run_at = ?, total_runs = total_runs + ?, last_task = ?
         WHERE id = ? AND times_version <> ? AND COALESCE(last_task, '') <> ?",
    )
    .bind(now)
    .bind(ran.runs)
    .bind(&ran.last_task)
    .bind(was.id)
    .bind(was.times_version)
    .bind(&ran.last_task)
    .execute(conn)
    .await
    .context("noting a run")?;
    Ok(())
}

/// Lets a schedule that was set aside go on; nothing when it was edited meanwhile.
pub async fn resume(conn: &mut Conn, was: &Schedule, next: Option<At>) -> Result<()> {
    sqlx::query(
        "UPDATE schedules SET next_run_at = ?, last_error = NULL
         WHERE id = ? AND version = ? AND next_run_at IS NULL AND last_error IS NOT NULL",
    )
    .bind(next)
    .bind(was.id)
    .bind(was.version)
    .execute(conn)
    .await
    .context("letting a schedule go on")?;
    Ok(())
}

/// Lets a schedule that cannot be read rest until it can, or is edited.
pub async fn set_aside(conn: &mut Conn, was: &Schedule, why: &str) -> Result<()> {
    sqlx::query("UPDATE schedules SET next_run_at = NULL, last_error = ? WHERE id = ? AND version = ?")
        .bind(why)
        .bind(was.id)
        .bind(was.version)
        .execute(conn)
        .await
        .context("setting a schedule aside")?;
    Ok(())
}

/// Makes a lease that nobody holds, unless there is one.
pub async fn make_lease(conn: &mut Conn, name: &str) -> Result<()> {
    let made = sqlx::query("INSERT INTO leases (name, holder, term, expires_at) VALUES (?, '', 0, '2000-01-01')")
        .bind(name)
        .execute(conn)
        .await;
    match made {
        Err(error) if db::violated(&error).is_none() => Err(error).context("making a lease"),
        _ => Ok(()),
    }
}

/// Takes a lease that has run out, or that is the taker's own from before; false when another holds it.
///
/// One that ends further away than any holder sets it was written before the database's clock was put back: it counts
/// as run out.
pub async fn take_lease(conn: &mut Conn, name: &str, holder: &str, length: Duration) -> Result<bool> {
    let us = micros(length);
    let taken = sqlx::query(
        "UPDATE leases SET holder = ?, term = term + 1, expires_at = UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND
         WHERE name = ? AND (holder = ? OR expires_at < UTC_TIMESTAMP(3)
            OR expires_at > UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND)",
    )
    .bind(holder)
    .bind(us)
    .bind(name)
    .bind(holder)
    .bind(us.saturating_mul(2))
    .execute(conn)
    .await
    .context("taking a lease")?;
    Ok(taken.rows_affected() == 1)
}

/// The term of a lease, if `holder` holds it.
pub async fn lease_term(conn: &mut Conn, name: &str, holder: &str) -> Result<Option<i64>> {
    let term = sqlx::query_scalar("SELECT term FROM leases WHERE name = ? AND holder = ?");
    term.bind(name).bind(holder).fetch_optional(conn).await.context("reading a lease")
}

/// Makes a lease last from now; false when it is another's by now.
pub async fn renew_lease(conn: &mut Conn, name: &str, holder: &str, term: i64, length: Duration) -> Result<bool> {
    let renewed = sqlx::query(
        "UPDATE leases SET expires_at = UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND WHERE name = ? AND holder = ? AND term = ?",
    )
    .bind(micros(length))
    .bind(name)
    .bind(holder)
    .bind(term)
    .execute(conn)
    .await
    .context("renewing a lease")?;
    Ok(renewed.rows_affected() == 1)
}

/// Ends a lease before its time, so that another need not wait.
pub async fn end_lease(conn: &mut Conn, name: &str, holder: &str, term: i64) -> Result<()> {
    sqlx::query("UPDATE leases SET holder = '', expires_at = '2000-01-01' WHERE name = ? AND holder = ? AND term = ?")
        .bind(name)
        .bind(holder)
        .bind(term)
        .execute(conn)
        .await
        .context("ending a lease")?;
    Ok(())
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}
