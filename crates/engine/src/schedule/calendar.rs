//! When a crontab comes due next, by the wall clock of a time zone.
//!
//! Where the wall clock jumps (daylight saving time begins or ends)
//!
//! * an expression for **every hour** (`*` as the hour, or a list of all 24) keeps ticking: `*/15 * * * *` runs every
//!   quarter of an hour of real time, in a repeated hour too;
//! * any other runs **once** for each wall time: one inside a gap runs at the first instant after the gap, one inside
//!   a repeated stretch runs in its first pass.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};

use super::crontab::Crontab;

/// Days looked through. The rarest date, a 29 February on a given weekday, comes within 40 years.
const MAX_DAYS: usize = 41 * 366;
/// Changes of the zone's offset looked through: more than 41 years have.
const MAX_TRANSITIONS: usize = 1000;

impl Crontab {
    /// The first run later than `after`; `None` when there is none before the end of the calendar.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.is_hourly() { self.next_tick(after, zone) } else { self.next_wall_run(after, zone) }
    }

    /// By real time: stretch by stretch of the same offset.
    fn next_tick(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut transitions = zone.following(after);
        let mut offset = zone.to_offset(after);
        let mut from = minute_of(offset.to_datetime(after)).checked_add(1.minute()).ok()?;
        for _ in 0..MAX_TRANSITIONS {
            let run = offset.to_timestamp(self.next_wall_time(from)?).ok()?;
            match transitions.next() {
                Some(change) if change.timestamp() <= run => {
                    offset = change.offset();
                    from = whole_minute_from(offset.to_datetime(change.timestamp()))?;
                }
                _ => return Some(run),
            }
        }
        None
    }

    /// By the wall clock: the instants of ascending wall times never descend.
    fn next_wall_run(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut wall = self.next_wall_time(minute_of(zone.to_datetime(after)))?;
        loop {
            let run = instant_of(wall, zone)?;
            if run > after {
                return Some(run);
            }
            wall = self.next_wall_time(wall.checked_add(1.minute()).ok()?)?;
        }
    }

    /// The first wall time that matches, `from` (a whole minute) included.
    fn next_wall_time(&self, from: DateTime) -> Option<DateTime> {
        let (mut date, mut earliest) = (from.date(), from.time());
        for _ in 0..MAX_DAYS {
            if self.matches_day(date)
                && let Some(time) = self.first_time_from(earliest)
            {
                return Some(date.to_datetime(time));
            }
            earliest = Time::midnight();
            date = self.next_date(date)?;
        }
        None
    }

    /// The next day that is worth looking at.
    fn next_date(&self, date: Date) -> Option<Date> {
        if self.months.has(date.month().unsigned_abs()) {
            date.tomorrow().ok()
        } else {
            date.last_of_month().tomorrow().ok()
        }
    }

    fn matches_day(&self, date: Date) -> bool {
        self.months.has(date.month().unsigned_abs())
            && self.days.has(date.day().unsigned_abs())
            && self.weekdays.has(date.weekday().to_sunday_zero_offset().unsigned_abs())
    }

    fn first_time_from(&self, earliest: Time) -> Option<Time> {
        let (hour, minute) = (earliest.hour().unsigned_abs(), earliest.minute().unsigned_abs());
        let this_hour = if self.hours.has(hour) { self.minutes.first_from(minute) } else { None };
        let (hour, minute) = match this_hour {
            Some(minute) => (hour, minute),
            None => (self.hours.first_from(hour + 1)?, self.minutes.first_from(0)?),
        };
        Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok()
    }
}

/// The wall time without its seconds.
fn minute_of(wall: DateTime) -> DateTime {
    wall.date().at(wall.hour(), wall.minute(), 0, 0)
}

/// The first whole minute that is not before `wall`. Offsets of old had odd seconds.
fn whole_minute_from(wall: DateTime) -> Option<DateTime> {
    let minute = minute_of(wall);
    if minute == wall { Some(minute) } else { minute.checked_add(1.minute()).ok() }
}

/// The instant of a wall time: the first of two, or the end of the gap that it is in.
fn instant_of(wall: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
            offset.to_timestamp(wall).ok()
        }
        // By the offset after the gap, the wall time is an instant before it.
        AmbiguousOffset::Gap { after, .. } => {
            zone.following(after.to_timestamp(wall).ok()?).next().map(|change| change.timestamp())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a zone")
    }

    /// The next runs after an instant, in the zone's words.
    fn runs(expression: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
        let (crontab, zone) = (expression.parse::<Crontab>().expect("a crontab"), zone(zone_name));
        let mut at: Timestamp = after.parse().expect("an instant");
        let next = |_| {
            at = crontab.next_after(at, &zone).expect("a next run");
            at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M%:z").to_string()
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn a_run_is_later_than_the_instant_and_on_a_whole_minute() {
        let expected = ["2026-11-21T10:00+00:00", "2026-11-22T10:00+00:00"];
        assert_eq!(runs("0 10 * * *", "UTC", "2026-11-21T09:59:59.999Z", 2), expected);
        assert_eq!(runs("0 10 * * *", "UTC", "2026-11-21T10:00:00Z", 1), ["2026-11-22T10:00+00:00"]);
        assert_eq!(runs("0 10 * * *", "UTC", "2026-11-21T10:00:30Z", 1), ["2026-11-22T10:00+00:00"]);
        assert_eq!(runs("30 7 * * *", "Asia/Shanghai", "2026-11-20T23:30:00Z", 1), ["2026-11-22T07:30+08:00"]);
    }

    #[test]
    fn both_kinds_of_days_must_match() {
        // The next Friday the thirteenth.
        assert_eq!(runs("0 0 13 * fri", "UTC", "2026-11-21T00:00:00Z", 1), ["2027-08-13T00:00+00:00"]);
        assert_eq!(runs("0 0 29 2 mon", "UTC", "2026-11-21T00:00:00Z", 2)[1], "2072-02-29T00:00+00:00");
    }

    #[test]
    fn a_time_in_a_gap_runs_once_right_after_it() {
        // Berlin, 29 March 2026: 02:00 is followed by 03:00.
        let runs = runs("*/20 2 * * *", "Europe/Berlin", "2026-03-28T20:00:00Z", 4);
        let expected =
            ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00", "2026-03-30T02:20+02:00", "2026-03-30T02:40+02:00"];
        assert_eq!(runs, expected);
    }

    #[test]
    fn a_repeated_time_runs_in_its_first_pass_alone() {
        // New York, 1 November 2026: 01:00 to 02:00 comes twice.
        let runs = runs("*/30 1 * * *", "America/New_York", "2026-11-01T04:00:00Z", 3);
        assert_eq!(runs, ["2026-11-01T01:00-04:00", "2026-11-01T01:30-04:00", "2026-11-02T01:00-05:00"]);
    }

    #[test]
    fn what_runs_every_hour_keeps_ticking() {
        let autumn = runs("*/30 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 4);
        let expected =
            ["2026-11-01T01:30-04:00", "2026-11-01T01:00-05:00", "2026-11-01T01:30-05:00", "2026-11-01T02:00-05:00"];
        assert_eq!(autumn, expected);
        let spring = runs("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
        assert_eq!(spring, ["2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00"]);
    }

    /// What the wall clock shows, in whole minutes.
    fn matches(crontab: &Crontab, wall: DateTime) -> bool {
        crontab.matches_day(wall.date())
            && crontab.hours.has(wall.hour().unsigned_abs())
            && crontab.minutes.has(wall.minute().unsigned_abs())
    }

    proptest! {
        /// Every minute of two days around a change of the clock, looked at one by one.
        #[test]
        fn nothing_is_left_out_and_nothing_runs_twice(
            minute in prop_oneof![Just("*/20"), Just("0"), Just("7,59"), Just("*")],
            hour in prop_oneof![Just("*"), Just("1-3"), Just("2"), Just("*/6"), Just("0,23")],
            (name, start) in prop_oneof![
                Just(("Europe/Berlin", "2026-03-28T12:00:00Z")), Just(("Europe/Berlin", "2026-10-24T12:00:00Z")),
                Just(("America/New_York", "2026-10-31T12:00:00Z")), Just(("Australia/Lord_Howe", "2026-04-04T00:00:00Z")),
                Just(("Australia/Lord_Howe", "2026-10-03T00:00:00Z")), Just(("Asia/Shanghai", "2026-10-03T00:00:00Z")),
            ],
        ) {
            let crontab: Crontab = format!("{minute} {hour} * * *").parse().expect("a crontab");
            let (zone, start) = (zone(name), start.parse::<Timestamp>().expect("an instant"));
            let mut expected = Vec::new();
            let mut latest_wall = zone.to_datetime(start);
            for n in 1..=2 * 24 * 60 {
                let at = start + jiff::SignedDuration::from_mins(n);
                let wall = zone.to_datetime(at);
                let first_pass = wall > latest_wall;
                let mut skipped = latest_wall + 1.minute();
                let mut made_up = false;
                while skipped < wall {
                    made_up |= matches(&crontab, skipped);
                    skipped += 1.minute();
                }
                let runs = if crontab.is_hourly() { matches(&crontab, wall) } else { first_pass && (made_up || matches(&crontab, wall)) };
                if runs {
                    expected.push(at);
                }
                latest_wall = latest_wall.max(wall);
            }
            let (mut found, mut at) = (Vec::new(), start);
            while let Some(next) = crontab.next_after(at, &zone).filter(|next| *next <= start + jiff::SignedDuration::from_hours(48)) {
                found.push(next);
                at = next;
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_next_run_matches_and_none_is_before_it(
            minute in 0u8..60, hour in 0u8..24, day in 1u8..29, weekday in 0u8..7, ms in 0i64..4_000_000_000_000,
        ) {
            let crontab: Crontab = format!("{minute} {hour} {day}-28 * {weekday}").parse().expect("a crontab");
            let after = Timestamp::from_millisecond(ms).expect("an instant");
            let next = crontab.next_after(after, &TimeZone::UTC).expect("a next run");
            prop_assert!(next > after);
            prop_assert!(matches(&crontab, TimeZone::UTC.to_datetime(next)));
            prop_assert_eq!(crontab.next_after(next - jiff::SignedDuration::from_nanos(1), &TimeZone::UTC), Some(next));
        }
    }
}
