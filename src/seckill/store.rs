//! The SQL of seckill, one statement a function.

use anyhow::Context;
use sqlx::{MySql, QueryBuilder};

use super::model::{Activity, ActivityId, EntryId};
use crate::auth::UserId;
use crate::error::Result;
use crate::orders::OrderId;
use crate::platform::clock::At;
use crate::platform::db::{Conn, insert_parts, push_in};

const COLUMNS: &str = "SELECT id, course_id, title, price_fen, stock, stock_left, returns, per_user_limit, \
     pay_deadline_s, starts_at, ends_at, closed_at, created_at FROM seckill_activities ";

/// A unit taken by a submission.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Entry {
    /// The submission's task key.
    pub id: EntryId,
    /// Of which activity.
    pub activity_id: ActivityId,
    /// Whose.
    pub user_id: UserId,
    /// Its order.
    pub order_id: OrderId,
    /// 1 while the unit is held or bought.
    pub live: Option<i8>,
}

pub async fn insert_activity(conn: &mut Conn, a: &Activity) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO seckill_activities (id, course_id, title, price_fen, stock, stock_left, per_user_limit, pay_deadline_s, \
         starts_at, ends_at, closed_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(a.id)
    .bind(a.course_id)
    .bind(&a.title)
    .bind(a.price_fen)
    .bind(a.stock)
    .bind(a.stock_left)
    .bind(a.per_user_limit)
    .bind(a.pay_deadline_s)
    .bind(a.starts_at)
    .bind(a.ends_at)
    .bind(a.closed_at)
    .bind(a.created_at)
    .execute(conn)
    .await
    .map(|_| ())
}

pub async fn find_activity(conn: &mut Conn, id: ActivityId) -> Result<Option<Activity>> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE id = ").push_bind(id);
    Ok(query.build_query_as().fetch_optional(conn).await.context("reading an activity")?)
}

pub async fn lock_activity(conn: &mut Conn, id: ActivityId) -> Result<Option<Activity>> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE id = ").push_bind(id).push(" FOR UPDATE");
    Ok(query.build_query_as().fetch_optional(conn).await.context("locking an activity")?)
}

/// Activities that have not ended by `now`, newest first, below `before`.
pub async fn list_activities(conn: &mut Conn, now: At, before: ActivityId, limit: u32) -> Result<Vec<Activity>> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE id < ").push_bind(before);
    query
        .push(" AND ends_at > ")
        .push_bind(now)
        .push(" AND closed_at IS NULL ORDER BY id DESC LIMIT ")
        .push_bind(limit);
    Ok(query.build_query_as().fetch_all(conn).await?)
}

/// Activities that end after `since` and have started by `started`: at `now` those on sale come first, the last to begin
/// before others, then those to come, the next one before others, then those that are over, the last to end before others.
pub async fn activities_between(conn: &mut Conn, now: At, since: At, started: At, limit: u32) -> Result<Vec<Activity>> {
    let mut query = between(COLUMNS, now, since, started, limit);
    Ok(query.build_query_as().fetch_all(conn).await.context("listing activities")?)
}

/// As [`activities_between`], their ids.
pub async fn ids_between(conn: &mut Conn, now: At, since: At, started: At, limit: u32) -> Result<Vec<ActivityId>> {
    let mut query = between("SELECT id FROM seckill_activities ", now, since, started, limit);
    Ok(query.build_query_scalar().fetch_all(conn).await.context("listing ids of activities")?)
}

fn between(select: &'static str, now: At, since: At, started: At, limit: u32) -> QueryBuilder<'static, MySql> {
    let mut query = QueryBuilder::<MySql>::new(select);
    query.push("WHERE ends_at > ").push_bind(since).push(" AND starts_at <= ").push_bind(started);
    query.push(" ORDER BY CASE WHEN closed_at IS NOT NULL OR ends_at <= ").push_bind(now);
    query.push(" THEN 2 WHEN starts_at > ").push_bind(now).push(" THEN 1 ELSE 0 END, ");
    query.push("CASE WHEN closed_at IS NULL AND starts_at > ").push_bind(now).push(" THEN starts_at END, ");
    query.push("CASE WHEN closed_at IS NULL AND ends_at > ").push_bind(now).push(" THEN starts_at END DESC, ");
    query.push("ends_at DESC, id LIMIT ").push_bind(limit);
    query
}

/// How many activities are on sale at `now`, or will be by `started`.
pub async fn count_current(conn: &mut Conn, now: At, started: At) -> Result<u64> {
    let count: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM seckill_activities WHERE closed_at IS NULL AND ends_at > ? AND starts_at <= ?",
    )
    .bind(now)
    .bind(started)
    .fetch_one(conn)
    .await
    .context("counting activities")?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Activities that ended by `until` and of which Redis may still keep something, those that ended first before others,
/// above `after`, which is one of them.
pub async fn activities_over(
    conn: &mut Conn,
    until: At,
    after: (At, ActivityId),
    limit: u32,
) -> Result<Vec<(At, ActivityId)>> {
    Ok(sqlx::query_as(
        "SELECT ends_at, id FROM seckill_activities WHERE gate_removed_at IS NULL AND ends_at <= ? \
         AND (ends_at > ? OR (ends_at = ? AND id > ?)) ORDER BY ends_at, id LIMIT ?",
    )
    .bind(until)
    .bind(after.0)
    .bind(after.0)
    .bind(after.1)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("listing activities that are over")?)
}

/// Activities that are over at `now`, by their end or early, and have not ended before `since`; those that end last come
/// first.
pub async fn ended_since(conn: &mut Conn, since: At, now: At, limit: u32) -> Result<Vec<ActivityId>> {
    Ok(sqlx::query_scalar(
        "SELECT id FROM seckill_activities WHERE ends_at > ? AND (ends_at <= ? OR closed_at IS NOT NULL) \
         ORDER BY ends_at DESC LIMIT ?",
    )
    .bind(since)
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("listing sales that are over")?)
}

/// Notes that Redis keeps nothing of activities any more. The list must not be empty.
pub async fn mark_removed(conn: &mut Conn, ids: &[ActivityId], now: At) -> Result<()> {
    let mut query = QueryBuilder::<MySql>::new("UPDATE seckill_activities SET gate_removed_at = ");
    query.push_bind(now).push(" WHERE gate_removed_at IS NULL AND id IN ");
    push_in(&mut query, ids.iter().copied());
    query.build().execute(conn).await.context("noting that gates were removed")?;
    Ok(())
}

/// Takes `units` from what is left; false when not so many are.
pub async fn take_stock(conn: &mut Conn, id: ActivityId, units: i64) -> Result<bool> {
    let done =
        sqlx::query("UPDATE seckill_activities SET stock_left = stock_left - ? WHERE id = ? AND stock_left >= ?")
            .bind(units)
            .bind(id)
            .bind(units)
            .execute(conn)
            .await
            .context("taking units")?;
    Ok(done.rows_affected() == 1)
}

/// Takes `units` from what is left if none came back since `seen` returns; false when some did or not so many are left.
pub async fn take_stock_since(conn: &mut Conn, id: ActivityId, units: i64, seen: u32) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE seckill_activities SET stock_left = stock_left - ? WHERE id = ? AND stock_left >= ? AND returns = ?",
    )
    .bind(units)
    .bind(id)
    .bind(units)
    .bind(seen)
    .execute(conn)
    .await
    .context("taking units")?;
    Ok(done.rows_affected() == 1)
}

/// Gives `units` back to what is left.
pub async fn give_stock(conn: &mut Conn, id: ActivityId, units: i64) -> Result<bool> {
    let done =
        sqlx::query("UPDATE seckill_activities SET stock_left = stock_left + ?, returns = returns + 1 WHERE id = ?")
            .bind(units)
            .bind(id)
            .execute(conn)
            .await
            .context("giving units back")?;
    Ok(done.rows_affected() == 1)
}

/// Changes the stock in all, and what is left with it, if it still is `from`; false when it is not or too few are left.
pub async fn change_stock(conn: &mut Conn, id: ActivityId, from: i64, to: i64) -> Result<bool> {
    // stock_left first: MySQL evaluates the assignments from left to right.
    let done = sqlx::query(
        "UPDATE seckill_activities SET stock_left = stock_left + (? - stock), stock = ? \
         WHERE id = ? AND stock = ? AND stock_left + (? - stock) >= 0",
    )
    .bind(to)
    .bind(to)
    .bind(id)
    .bind(from)
    .bind(to)
    .execute(conn)
    .await
    .context("changing a stock")?;
    Ok(done.rows_affected() == 1)
}

pub async fn close_activity(conn: &mut Conn, id: ActivityId, now: At) -> Result<bool> {
    let done = sqlx::query("UPDATE seckill_activities SET closed_at = ? WHERE id = ? AND closed_at IS NULL")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await
        .context("ending a sale")?;
    Ok(done.rows_affected() == 1)
}

/// All entries of `users` in an activity, live or not.
pub async fn entries_of(conn: &mut Conn, activity: ActivityId, users: &[UserId]) -> Result<Vec<Entry>> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, activity_id, user_id, order_id, live FROM seckill_entries WHERE activity_id = ",
    );
    query.push_bind(activity).push(" AND user_id IN ");
    push_in(&mut query, users.iter().copied());
    Ok(query.build_query_as().fetch_all(conn).await.context("reading entries")?)
}

/// Those of the entries that are there; `ids` is not empty.
/// (entry, user, order, whether its unit is on sale again in Redis too) of those of `ids` that there are.
pub async fn find_entries(
    conn: &mut Conn,
    ids: &[EntryId],
) -> Result<Vec<(EntryId, ActivityId, UserId, OrderId, bool)>> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, activity_id, user_id, order_id, live IS NULL AND gate_returned_at IS NOT NULL \
         FROM seckill_entries WHERE id IN ",
    );
    push_in(&mut query, ids.iter().copied());
    Ok(query.build_query_as().fetch_all(conn).await?)
}

pub async fn find_entry_by_order(conn: &mut Conn, order: OrderId) -> Result<Option<Entry>> {
    Ok(sqlx::query_as("SELECT id, activity_id, user_id, order_id, live FROM seckill_entries WHERE order_id = ?")
        .bind(order)
        .fetch_optional(conn)
        .await?)
}

/// The entries of orders; there may be none. The list must not be empty.
pub async fn entries_of_orders(conn: &mut Conn, orders: &[OrderId]) -> Result<Vec<Entry>> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, activity_id, user_id, order_id, live FROM seckill_entries WHERE order_id IN ",
    );
    push_in(&mut query, orders.iter().copied());
    Ok(query.build_query_as().fetch_all(conn).await?)
}

/// New live entries.
pub async fn insert_entries(
    conn: &mut Conn,
    activity: ActivityId,
    entries: &[(EntryId, UserId, OrderId)],
    now: At,
) -> Result<()> {
    for part in insert_parts(entries) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO seckill_entries (id, activity_id, user_id, order_id, live, created_at) ",
        );
        query.push_values(part, |mut row, (id, user, order)| {
            row.push_bind(*id).push_bind(activity).push_bind(*user).push_bind(*order).push_bind(1i8).push_bind(now);
        });
        query.build().execute(&mut *conn).await.context("adding entries")?;
    }
    Ok(())
}

/// The live entries of orders.
pub async fn live_entries_of_orders(conn: &mut Conn, orders: &[OrderId]) -> Result<Vec<Entry>> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, activity_id, user_id, order_id, live FROM seckill_entries WHERE live = 1 AND order_id IN ",
    );
    push_in(&mut query, orders.iter().copied());
    Ok(query.build_query_as().fetch_all(conn).await?)
}

/// Makes a live entry one that was given back; false when it was before.
pub async fn release_entry(conn: &mut Conn, id: EntryId, now: At) -> Result<bool> {
    let done = sqlx::query("UPDATE seckill_entries SET live = NULL, released_at = ? WHERE id = ? AND live = 1")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await
        .context("releasing an entry")?;
    Ok(done.rows_affected() == 1)
}

/// Makes an entry that was given back live again; false when it is live.
pub async fn revive_entry(conn: &mut Conn, id: EntryId) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE seckill_entries SET live = 1, released_at = NULL, gate_returned_at = NULL WHERE id = ? AND live IS NULL",
    )
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Entries given back in MySQL and not yet in Redis, the oldest first, but for those of some activities.
pub async fn owed_returns(conn: &mut Conn, but: &[ActivityId], limit: u32) -> Result<Vec<Entry>> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, activity_id, user_id, order_id, live FROM seckill_entries \
         WHERE gate_returned_at IS NULL AND released_at IS NOT NULL",
    );
    if !but.is_empty() {
        query.push(" AND activity_id NOT IN ");
        push_in(&mut query, but.iter().copied());
    }
    query.push(" ORDER BY released_at LIMIT ").push_bind(limit);
    Ok(query.build_query_as().fetch_all(conn).await.context("reading units to put back on sale")?)
}

/// (when, entry) of released entries that came back to Redis after `from`, those of its own instant above `after`; at
/// most `limit`, the earliest first.
pub async fn returned_since(conn: &mut Conn, from: At, after: EntryId, limit: u32) -> Result<Vec<(At, Entry)>> {
    type Row = (At, EntryId, ActivityId, UserId, OrderId, Option<i8>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT gate_returned_at, id, activity_id, user_id, order_id, live FROM seckill_entries \
         WHERE gate_returned_at >= ? AND (gate_returned_at > ? OR id > ?) AND live IS NULL \
         ORDER BY gate_returned_at, id LIMIT ?",
    )
    .bind(from)
    .bind(from)
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    let entry =
        |(at, id, activity_id, user_id, order_id, live)| (at, Entry { id, activity_id, user_id, order_id, live });
    Ok(rows.into_iter().map(entry).collect())
}

/// Notes that entries are back in Redis.
pub async fn mark_returned(conn: &mut Conn, ids: &[EntryId], now: At) -> Result<()> {
    let mut query = QueryBuilder::<MySql>::new("UPDATE seckill_entries FORCE INDEX (PRIMARY) SET gate_returned_at = ");
    query.push_bind(now).push(" WHERE released_at IS NOT NULL AND gate_returned_at IS NULL AND id IN ");
    push_in(&mut query, ids.iter().copied());
    query.build().execute(conn).await.context("noting units that came back")?;
    Ok(())
}

/// (user, tries, live entry) of the users of an activity above `after`, by user.
pub async fn users_of(
    conn: &mut Conn,
    activity: ActivityId,
    after: UserId,
    limit: u32,
) -> Result<Vec<(UserId, i64, Option<EntryId>)>> {
    Ok(sqlx::query_as(
        "SELECT user_id, COUNT(*), MAX(CASE WHEN live = 1 THEN id END) FROM seckill_entries \
         WHERE activity_id = ? AND user_id > ? GROUP BY user_id ORDER BY user_id LIMIT ?",
    )
    .bind(activity)
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await?)
}

/// (left, released and not yet returned to Redis) of an activity, at one instant.
pub async fn left_and_returning(conn: &mut Conn, activity: ActivityId) -> Result<Option<(i64, i64)>> {
    Ok(sqlx::query_as(
        "SELECT a.stock_left, (SELECT COUNT(*) FROM seckill_entries e WHERE e.activity_id = a.id \
         AND e.gate_returned_at IS NULL AND e.released_at IS NOT NULL) FROM seckill_activities a WHERE a.id = ?",
    )
    .bind(activity)
    .fetch_optional(conn)
    .await?)
}
