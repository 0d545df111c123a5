//! The SQL of reports: one statement a function, each over what one stretch of time has in an index, however much the
//! tables have before it. They read the tables of every room and write their own alone.
//!
//! The indexes are named: statistics alone do not always choose them while a table grows.

use anyhow::Context;
use sqlx::{query, query_as};

use super::model::{DailyReport, Span};
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::db::Conn;
use crate::platform::money::Money;

/// Counts of course and of seckill orders.
type ByKind = (i64, i64);

/// What orders were paid.
#[derive(Debug, sqlx::FromRow)]
pub struct Paid {
    pub course_orders: i64,
    pub seckill_orders: i64,
    pub paid_fen: Money,
    pub coupon_discount_fen: Money,
    pub points_discount_fen: Money,
    pub points_used: i64,
    pub points_earned: i64,
}

/// Orders made.
pub async fn created(conn: &mut Conn, span: Span) -> Result<ByKind> {
    Ok(query_as(
        "SELECT CAST(COALESCE(SUM(kind = 'course'), 0) AS SIGNED), CAST(COALESCE(SUM(kind = 'seckill'), 0) AS SIGNED)
         FROM orders FORCE INDEX (ix_orders_created) WHERE created_at >= ? AND created_at < ?",
    )
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting new orders")?)
}

/// Orders paid (1), those given back since (4, 5) too. What was granted before `granted_since` is not looked at: an order is
/// granted after it is paid, so the index of grants leads to those paid since then, and none needs to be kept for this alone.
pub async fn paid(conn: &mut Conn, span: Span, granted_since: At) -> Result<Paid> {
    Ok(query_as(
        "SELECT CAST(COALESCE(SUM(kind = 'course'), 0) AS SIGNED) AS course_orders,
            CAST(COALESCE(SUM(kind = 'seckill'), 0) AS SIGNED) AS seckill_orders,
            CAST(COALESCE(SUM(payable_fen), 0) AS SIGNED) AS paid_fen,
            CAST(COALESCE(SUM(coupon_discount_fen), 0) AS SIGNED) AS coupon_discount_fen,
            CAST(COALESCE(SUM(points_discount_fen), 0) AS SIGNED) AS points_discount_fen,
            CAST(COALESCE(SUM(points_used), 0) AS SIGNED) AS points_used,
            CAST(COALESCE(SUM(points_earned), 0) AS SIGNED) AS points_earned
         FROM orders FORCE INDEX (ix_orders_grant_owed)
         WHERE status IN (1, 4, 5) AND (granted_at IS NULL OR granted_at >= ?) AND paid_at >= ? AND paid_at < ?",
    )
    .bind(granted_since)
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting paid orders")?)
}

/// Orders cancelled (2) and timed out (3). As with [`paid`], an order gives back what it held after it is closed.
pub async fn closed(conn: &mut Conn, span: Span, released_since: At) -> Result<(i64, i64)> {
    Ok(query_as(
        "SELECT CAST(COALESCE(SUM(status = 2), 0) AS SIGNED), CAST(COALESCE(SUM(status = 3), 0) AS SIGNED)
         FROM orders FORCE INDEX (ix_orders_release_owed)
         WHERE status IN (2, 3) AND (released_at IS NULL OR released_at >= ?) AND closed_at >= ? AND closed_at < ?",
    )
    .bind(released_since)
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting closed orders")?)
}

/// Courses granted.
pub async fn granted(conn: &mut Conn, span: Span) -> Result<i64> {
    let (courses,) = query_as(
        "SELECT COUNT(*) FROM orders o FORCE INDEX (ix_orders_grant_owed) JOIN order_items i ON i.order_id = o.id
         WHERE o.status IN (1, 4, 5) AND o.granted_at >= ? AND o.granted_at < ?",
    )
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting granted courses")?;
    Ok(courses)
}

/// Seckill units that came back on sale.
pub async fn units_returned(conn: &mut Conn, span: Span) -> Result<i64> {
    let (units,) = query_as(
        "SELECT COUNT(*) FROM seckill_entries FORCE INDEX (ix_seckill_entries_return_owed)
         WHERE gate_returned_at >= ? AND gate_returned_at < ?",
    )
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting returned units")?;
    Ok(units)
}

/// Late payments and flagged messages.
pub async fn late_and_flagged(conn: &mut Conn, span: Span) -> Result<(i64, i64)> {
    Ok(query_as(
        "SELECT CAST(COALESCE(SUM(outcome = 'late'), 0) AS SIGNED),
            CAST(COALESCE(SUM(outcome = 'flagged'), 0) AS SIGNED)
         FROM payment_notifications FORCE INDEX (ix_payment_notifications_outcome)
         WHERE outcome IN ('late', 'flagged') AND received_at >= ? AND received_at < ?",
    )
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting late and flagged messages")?)
}

/// Refunds confirmed, and their sum.
pub async fn refunded(conn: &mut Conn, span: Span) -> Result<(i64, Money)> {
    Ok(query_as(
        "SELECT COUNT(*), CAST(COALESCE(SUM(amount_fen), 0) AS SIGNED) FROM refunds FORCE INDEX (ix_refunds_confirmed)
         WHERE confirmed_at >= ? AND confirmed_at < ?",
    )
    .bind(span.from)
    .bind(span.until)
    .fetch_one(conn)
    .await
    .context("counting refunds")?)
}

/// New accounts.
pub async fn registered(conn: &mut Conn, span: Span) -> Result<i64> {
    let (users,) =
        query_as("SELECT COUNT(*) FROM users FORCE INDEX (ix_users_created) WHERE created_at >= ? AND created_at < ?")
            .bind(span.from)
            .bind(span.until)
            .fetch_one(conn)
            .await
            .context("counting new accounts")?;
    Ok(users)
}

/// Keeps a day's report; one that is there already stays as it is.
pub async fn keep(conn: &mut Conn, report: &DailyReport) -> Result<()> {
    query(
        "INSERT INTO daily_reports (day, starts_at, ends_at, course_orders_created, seckill_orders_created,
            course_orders_paid, seckill_orders_paid, paid_fen, coupon_discount_fen, points_discount_fen, points_used,
            points_earned, orders_cancelled, orders_timed_out, courses_granted, seckill_units_returned, payments_late,
            notifications_flagged, refunds_confirmed, refunded_fen, users_registered, made_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON DUPLICATE KEY UPDATE made_at = made_at",
    )
    .bind(report.day)
    .bind(report.starts_at)
    .bind(report.ends_at)
    .bind(report.course_orders_created)
    .bind(report.seckill_orders_created)
    .bind(report.course_orders_paid)
    .bind(report.seckill_orders_paid)
    .bind(report.paid_fen)
    .bind(report.coupon_discount_fen)
    .bind(report.points_discount_fen)
    .bind(report.points_used)
    .bind(report.points_earned)
    .bind(report.orders_cancelled)
    .bind(report.orders_timed_out)
    .bind(report.courses_granted)
    .bind(report.seckill_units_returned)
    .bind(report.payments_late)
    .bind(report.notifications_flagged)
    .bind(report.refunds_confirmed)
    .bind(report.refunded_fen)
    .bind(report.users_registered)
    .bind(report.made_at)
    .execute(conn)
    .await
    .context("keeping a report")?;
    Ok(())
}

/// Reads whole reports. A macro, because a statement must be known when it is compiled.
macro_rules! select_reports {
    ($rest:literal) => {
        concat!(
            "SELECT day, starts_at, ends_at, course_orders_created, seckill_orders_created, course_orders_paid,
                seckill_orders_paid, paid_fen, coupon_discount_fen, points_discount_fen, points_used, points_earned,
                orders_cancelled, orders_timed_out, courses_granted, seckill_units_returned, payments_late,
                notifications_flagged, refunds_confirmed, refunded_fen, users_registered, made_at FROM daily_reports ",
            $rest
        )
    };
}

/// The report of a day.
pub async fn find(conn: &mut Conn, day: Day) -> Result<Option<DailyReport>> {
    Ok(query_as(select_reports!("WHERE day = ?")).bind(day).fetch_optional(conn).await.context("reading a report")?)
}

/// Reports of days before `before`, newest first.
pub async fn list(conn: &mut Conn, before: Day, limit: u32) -> Result<Vec<DailyReport>> {
    let list = query_as(select_reports!("WHERE day < ? ORDER BY day DESC LIMIT ?"))
        .bind(before)
        .bind(limit)
        .fetch_all(conn)
        .await
        .context("listing reports")?;
    Ok(list)
}

/// Days from `from` on that have a report.
pub async fn days_since(conn: &mut Conn, from: Day) -> Result<Vec<Day>> {
    let days = query_as("SELECT day FROM daily_reports WHERE day >= ?").bind(from).fetch_all(conn).await;
    Ok(days.context("reading the days of reports")?.into_iter().map(|(day,)| day).collect())
}
