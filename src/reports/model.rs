//! What a business day came to.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::money::Money;

/// So many days back a report that is missing is made: an outage may last so long and cost no day.
const DAYS_BACK: u16 = 7;
/// A day is reported once it has been over for so long: what read the clock before its end is committed by then. It is far
/// longer than a request and the wait for a lock may take.
const CLOSING: Duration = Duration::from_secs(600);

/// The instants of a day: from the first one on, before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its first.
    pub from: At,
    /// The next day's first.
    pub until: At,
}

/// What a business day came to. Everything is counted on the day on which it happened: an order that was made before
/// midnight and paid after it is in two reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct DailyReport {
    /// The day, in the business time zone.
    pub day: Day,
    /// Its first instant.
    pub starts_at: At,
    /// The first instant of the next day.
    pub ends_at: At,
    /// Orders of courses that were made.
    pub course_orders_created: i64,
    /// Seckill orders that were made: submissions that got a unit.
    pub seckill_orders_created: i64,
    /// Orders of courses that were paid, those that cost nothing too.
    pub course_orders_paid: i64,
    /// Seckill orders that were paid: units sold.
    pub seckill_orders_paid: i64,
    /// What the paid orders brought, in fen.
    pub paid_fen: Money,
    /// What coupons took off the paid orders, in fen.
    pub coupon_discount_fen: Money,
    /// What points took off the paid orders, in fen.
    pub points_discount_fen: Money,
    /// Points spent on the paid orders.
    pub points_used: i64,
    /// Points that the paid orders earn.
    pub points_earned: i64,
    /// Orders that their buyers cancelled. One that late money opened again before the report was made is not among them.
    pub orders_cancelled: i64,
    /// Orders whose time to pay was over; as with those cancelled.
    pub orders_timed_out: i64,
    /// Courses given to buyers.
    pub courses_granted: i64,
    /// Seckill units that came back on sale.
    pub seckill_units_returned: i64,
    /// Payments that came for an order which could not take them: it was opened again, or the money goes back.
    pub payments_late: i64,
    /// Messages of gateways that did not fit our books.
    pub notifications_flagged: i64,
    /// Refunds that a gateway confirmed.
    pub refunds_confirmed: i64,
    /// What they gave back, in fen.
    pub refunded_fen: Money,
    /// New accounts.
    pub users_registered: i64,
    /// When the report was made.
    pub made_at: At,
}

/// The days that ought to have a report, oldest first, each with its instants.
pub fn due(now: At, zone: &TimeZone) -> Vec<(Day, Span)> {
    let today = Day::of(now, zone);
    let with_span = |day: Day| {
        let (from, until) = day.bounds(zone);
        (day, Span { from, until })
    };
    let days = (1..=DAYS_BACK).rev().map(|back| with_span(today.days_before(back)));
    days.filter(|(_, span)| span.until.plus(CLOSING) <= now).collect()
}

/// The first instant at which the report of a day that has begun and has none can be made; none when it was missed for too
/// long, or has not begun.
pub fn closed_at(day: Day, now: At, zone: &TimeZone) -> Option<At> {
    let today = Day::of(now, zone);
    (today.days_before(DAYS_BACK)..=today).contains(&day).then(|| day.bounds(zone).1.plus(CLOSING))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_at(now: &str) -> Vec<String> {
        let zone = TimeZone::get("Asia/Shanghai").expect("a zone");
        due(now.parse().expect("an instant"), &zone).into_iter().map(|(day, _)| day.to_string()).collect()
    }

    #[test]
    fn the_last_seven_days_are_due_once_they_are_closed() {
        // Midnight in Shanghai is 16:00 UTC.
        let before = due_at("2026-11-20T16:09:59.999Z");
        assert_eq!((before.len(), &*before[0], &*before[5]), (6, "2026-11-14", "2026-11-19"));
        let after = due_at("2026-11-20T16:10:00Z");
        assert_eq!((after.len(), &*after[0], &*after[6]), (7, "2026-11-14", "2026-11-20"));
        assert_eq!(due_at("2026-11-21T15:59:59.999Z"), after);
    }
}
