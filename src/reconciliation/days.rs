//! Which days have a bill, and which of them must be there before a line can be called missing. Pure.
//!
//! We know when **we** heard of money; the gateway's time of it may lie on the other side of midnight, or days before
//! when a callback was lost. So a line may be in the bill of any day from the one on which the payment was started to the
//! one after that on which we heard.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::platform::clock::At;
use crate::platform::day::Day;

/// So many days back a bill that is missing is fetched: an outage may last so long and cost no day.
const DAYS_BACK: u16 = 7;
/// A day's bill is there so long after the day: Alipay's from nine in the morning on
/// (<https://docs.open.alipay.com/api_15/alipay.data.dataservice.bill.downloadurl.query>), WeChat Pay's from ten
/// (<https://pay.weixin.qq.com/doc/v3/merchant/4012791887>). Before that, one that is given may not be whole.
const READY_AFTER: Duration = Duration::from_secs(10 * 3600);
/// The gateway's clock and ours may differ by this much.
const SKEW: Duration = Duration::from_secs(3600);
/// What may come to fit by itself is waited for so long: by then no schedule fetches what is missing.
const WAIT: Duration = Duration::from_secs(8 * 24 * 3600);

/// When the bill of a day can be fetched.
pub(super) fn ready_at(day: Day, zone: &TimeZone) -> At {
    day.bounds(zone).1.plus(READY_AFTER)
}

/// An instant for a person: by the second, in a zone.
pub(super) fn readable(at: At, zone: &TimeZone) -> String {
    at.timestamp().to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The days whose bills ought to be there, oldest first.
pub(super) fn due(now: At, zone: &TimeZone) -> Vec<Day> {
    let today = Day::of(now, zone);
    let days = (1..=DAYS_BACK).rev().map(|back| today.days_before(back));
    days.filter(|day| ready_at(*day, zone) <= now).collect()
}

/// The first and the last day on whose bill the line of money may be that was asked for at `started` and that we heard of
/// at `heard`.
pub(super) fn span(started: At, heard: At, zone: &TimeZone) -> (Day, Day) {
    let next = Day::of(heard, zone).bounds(zone).1;
    (Day::of(started.minus(SKEW), zone), Day::of(next, zone))
}

/// Whether all of these days are there.
pub(super) fn are_there((first, last): (Day, Day), there: &BTreeSet<Day>) -> bool {
    (0..u16::MAX).map(|back| last.days_before(back)).take_while(|day| *day >= first).all(|day| there.contains(&day))
}

/// Until when what began at `since` is waited for.
pub(super) fn waits_until(since: At) -> At {
    since.plus(WAIT)
}

/// Whether what began at `since` has been waited for long enough.
pub(super) fn has_waited(since: At, now: At) -> bool {
    waits_until(since) <= now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> TimeZone {
        TimeZone::get("Asia/Shanghai").expect("a zone")
    }

    fn at(text: &str) -> At {
        text.parse().expect("an instant")
    }

    fn day(text: &str) -> Day {
        text.parse().expect("a day")
    }

    #[test]
    fn the_last_seven_days_are_due_once_their_bills_are_made() {
        // Ten in the morning of the 21st in Shanghai.
        let before = due(at("2026-11-21T01:59:59.999Z"), &zone());
        assert_eq!((before.len(), before[0], before[5]), (6, day("2026-11-14"), day("2026-11-19")));
        let after = due(at("2026-11-21T02:00:00Z"), &zone());
        assert_eq!((after.len(), after[0], after[6]), (7, day("2026-11-14"), day("2026-11-20")));
    }

    #[test]
    fn a_line_may_be_on_any_day_from_the_start_to_the_day_after_we_heard() {
        let whole = |started: &str, heard: &str| span(at(started), at(heard), &zone());
        let noon = whole("2026-11-20T03:50:00Z", "2026-11-20T04:00:00Z");
        assert_eq!(noon, (day("2026-11-20"), day("2026-11-21")));
        // Started ten minutes after midnight by our clock.
        let midnight = whole("2026-11-19T16:10:00Z", "2026-11-19T16:11:00Z");
        assert_eq!(midnight, (day("2026-11-19"), day("2026-11-21")));
        let late = whole("2026-11-17T04:00:00Z", "2026-11-20T04:00:00Z");
        assert_eq!(late, (day("2026-11-17"), day("2026-11-21")));
        let mut there: BTreeSet<Day> = ["2026-11-18", "2026-11-19", "2026-11-20", "2026-11-21"].map(day).into();
        assert!(are_there(noon, &there) && !are_there(late, &there));
        there.insert(day("2026-11-17"));
        assert!(are_there(late, &there));
        there.remove(&day("2026-11-21"));
        assert!(!are_there(noon, &there) && !are_there(late, &there));
    }
}
