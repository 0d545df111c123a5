//! Reports: what each business day came to, written once it is over.
//!
//! A report is a row that is made once and stays: what happens later to an order of that day (late money opens it again, it
//! is given back) is in the report of the day on which it happens.

pub mod http;
mod model;
mod store;

use std::time::Duration;

use anyhow::Context;

use crate::app::App;
use crate::engine::schedule;
use crate::error::{Kind, Result, refuse, retrying};
use crate::platform::clock::At;
use crate::platform::day::{self, Day};
use crate::platform::db::Conn;

pub use model::{DailyReport, Span};

/// The task that makes reports (`jobs/passes.rs`).
pub const PASS: &str = "reports.daily";
/// What follows an event is looked for this much earlier than the event: its time is another machine's.
const SKEW: Duration = Duration::from_secs(3600);
/// A number of a large shop's day may take long, and nobody waits for it at a page.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// Makes the report of yesterday, and those of the days before it that are missing after an outage. The days that it
/// found missing, oldest first. A day that has a report keeps it, so two at once are harmless.
pub async fn make_missing(app: &App) -> anyhow::Result<Vec<Day>> {
    let now = app.clock.now();
    let zone = day::zone(&app.config.time_zone).context("reading the business time zone")?;
    let mut missing = model::due(now, &zone);
    if let Some((first, _)) = missing.first() {
        let made = store::days_since(&mut *app.db.acquire().await?, *first).await?;
        missing.retain(|(day, _)| !made.contains(day));
    }
    for (day, span) in &missing {
        let report = read(&mut *app.db.acquire_for(STATEMENT_TIMEOUT).await?, *day, *span, now).await?;
        let kept = retrying(|| async { keep(&mut *app.db.acquire().await?, &report).await });
        kept.await?;
        tracing::info!(report.day = %day, "report made");
    }
    Ok(missing.into_iter().map(|(day, _)| day).collect())
}

/// What a day came to, so far as the database says at `now`.
pub async fn read(conn: &mut Conn, day: Day, span: Span, now: At) -> Result<DailyReport> {
    let (course_orders_created, seckill_orders_created) = store::created(conn, span).await?;
    let paid = store::paid(conn, span, span.from.minus(SKEW)).await?;
    let (orders_cancelled, orders_timed_out) = store::closed(conn, span, span.from.minus(SKEW)).await?;
    let courses_granted = store::granted(conn, span).await?;
    let seckill_units_returned = store::units_returned(conn, span).await?;
    let (payments_late, notifications_flagged) = store::late_and_flagged(conn, span).await?;
    let (refunds_confirmed, refunded_fen) = store::refunded(conn, span).await?;
    let users_registered = store::registered(conn, span).await?;
    Ok(DailyReport {
        day,
        starts_at: span.from,
        ends_at: span.until,
        course_orders_created,
        seckill_orders_created,
        course_orders_paid: paid.course_orders,
        seckill_orders_paid: paid.seckill_orders,
        paid_fen: paid.paid_fen,
        coupon_discount_fen: paid.coupon_discount_fen,
        points_discount_fen: paid.points_discount_fen,
        points_used: paid.points_used,
        points_earned: paid.points_earned,
        orders_cancelled,
        orders_timed_out,
        courses_granted,
        seckill_units_returned,
        payments_late,
        notifications_flagged,
        refunds_confirmed,
        refunded_fen,
        users_registered,
        made_at: now,
    })
}

/// Keeps a report; a day that has one keeps that.
pub async fn keep(conn: &mut Conn, report: &DailyReport) -> Result<()> {
    store::keep(conn, report).await
}

/// The report of a day, or 404, with the instant at which it will be there.
pub async fn find(app: &App, day: Day) -> Result<DailyReport> {
    let mut conn = app.db.acquire().await?;
    if let Some(report) = store::find(&mut conn, day).await? {
        return Ok(report);
    }
    Err(match ready_at(app, &mut conn, day).await? {
        Some(at) => refuse(Kind::NotFound, format!("the report of {day} is made at {at}")).with("ready_at", at).into(),
        None => refuse(Kind::NotFound, format!("{day} has no report")).into(),
    })
}

/// When the report of a day that has none will be made, by the schedules as they are; none when no run will make it.
async fn ready_at(app: &App, conn: &mut Conn, day: Day) -> Result<Option<At>> {
    let now = app.clock.now();
    let zone = day::zone(&app.config.time_zone).context("reading the business time zone")?;
    let Some(closed_at) = model::closed_at(day, now, &zone) else { return Ok(None) };
    // A run at that very instant makes it.
    let from = closed_at.max(now).minus(Duration::from_millis(1));
    let schedules = schedule::enabled_of(conn, PASS).await?;
    Ok(schedules.iter().filter_map(|schedule| schedule.definition.next_run(from)).min())
}

/// Reports of days before `before`, newest first.
pub async fn list(app: &App, before: Day, limit: u32) -> Result<Vec<DailyReport>> {
    store::list(&mut *app.db.acquire().await?, before, limit).await
}
