//! The occurrences of a schedule. Pure.

use onrush_platform::text_enum;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::crontab::Crontab;
use onrush_platform::clock::At;

/// What becomes of occurrences that nobody was there to run.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, strum::EnumString, strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum CatchUp {
    /// They are left out.
    Skip,
    /// One run stands for all of them.
    Once,
    /// Each runs, the latest `catch_up_max` of them.
    Each,
}

text_enum!(CatchUp);

/// When a schedule runs.
#[derive(Debug, Clone)]
pub enum Timing {
    /// At `start` and every `every` after it, in real time.
    Interval {
        /// The pause, at least a second.
        every: Duration,
        /// The first occurrence.
        start: At,
    },
    /// By the wall clock of a zone.
    Crontab {
        /// The expression.
        crontab: Crontab,
        /// The zone.
        zone: TimeZone,
        /// Not before this.
        start: At,
    },
    /// Once.
    Once(At),
}

impl Timing {
    /// The first occurrence later than `after`.
    pub fn next_after(&self, after: At) -> Option<At> {
        match self {
            Self::Interval { every, start } if *start <= after => {
                let every = i64::try_from(every.as_millis()).ok().filter(|ms| *ms > 0)?;
                let periods = after.ms().saturating_sub(start.ms()) / every + 1;
                Some(At::from_ms(start.ms().saturating_add(periods.saturating_mul(every))))
            }
            Self::Interval { start, .. } => Some(*start),
            Self::Crontab { crontab, zone, start } => {
                let after = after.max(just_before(*start));
                crontab.next_after(after.timestamp(), zone).map(At::from)
            }
            Self::Once(at) => Some(*at).filter(|at| *at > after),
        }
    }

    /// The next `count` occurrences from `first` on.
    pub fn from(&self, first: At, count: usize) -> Vec<At> {
        std::iter::successors(Some(first), |at| self.next_after(*at)).take(count).collect()
    }

    /// The latest `max` occurrences of those from `first`, which is one, up to `until`; ascending.
    ///
    /// After a long outage the first may be far away: so it looks back over ever longer stretches, and not over all.
    pub fn latest(&self, first: At, until: At, max: usize) -> Vec<At> {
        let mut stretch = Duration::from_secs(60);
        loop {
            let from = just_before(first).max(until.minus(stretch));
            let mut found = Vec::new();
            let mut at = from;
            while let Some(next) = self.next_after(at).filter(|next| *next <= until) {
                found.push(next);
                at = next;
            }
            if found.len() >= max || from < first {
                found.drain(..found.len().saturating_sub(max));
                return found;
            }
            stretch = stretch.saturating_mul(4);
        }
    }
}

/// The last instant before `at`.
fn just_before(at: At) -> At {
    at.minus(Duration::from_millis(1))
}

/// An occurrence that is at most this late counts as in time: longer than another process takes to become the leader.
pub const GRACE: Duration = Duration::from_secs(15);

/// Which occurrences to run now, oldest first, when `first` is the oldest that has not run and somebody has been at it
/// without a break since `since`, now or before.
///
/// What was not [`GRACE`] late then runs whatever the policy, so that neither a fail-over loses anything, nor a crowd of
/// schedules that come due at one instant.
pub fn to_run(timing: &Timing, first: At, since: At, now: At, policy: CatchUp, max: usize) -> Vec<At> {
    let in_time = since.min(now).minus(GRACE);
    let missed = first < in_time;
    if missed && policy == CatchUp::Once {
        return vec![first];
    }
    let mut runs =
        if missed && policy == CatchUp::Each { timing.latest(first, just_before(in_time), max) } else { Vec::new() };
    let mut next = if missed { timing.next_after(just_before(in_time)) } else { Some(first) };
    // Few: an interval has a second at least.
    while let Some(at) = next.filter(|at| *at <= now) {
        runs.push(at);
        next = timing.next_after(at);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> At {
        At::from_ms(seconds * 1000)
    }

    fn every(seconds: u64) -> Timing {
        Timing::Interval { every: Duration::from_secs(seconds), start: at(100) }
    }

    fn hourly() -> Timing {
        let crontab = "0 * * * *".parse().expect("a crontab");
        Timing::Crontab { crontab, zone: TimeZone::UTC, start: at(7200) }
    }

    #[test]
    fn an_interval_begins_at_its_start() {
        assert_eq!(every(10).next_after(at(5)), Some(at(100)));
        assert_eq!(every(10).next_after(at(100)), Some(at(110)));
        assert_eq!(every(10).next_after(at(119)), Some(at(120)));
        assert_eq!(every(10).from(at(110), 3), [at(110), at(120), at(130)]);
    }

    #[test]
    fn a_crontab_begins_at_its_start_and_a_date_comes_once() {
        assert_eq!(hourly().next_after(at(0)), Some(at(7200)));
        assert_eq!(hourly().next_after(at(7200)), Some(at(10800)));
        assert_eq!(Timing::Once(at(50)).next_after(at(49)), Some(at(50)));
        assert_eq!(Timing::Once(at(50)).next_after(at(50)), None);
    }

    #[test]
    fn what_was_missed_is_left_out_run_once_or_run_each() {
        let run = |policy, max| to_run(&every(60), at(160), at(600), at(600), policy, max);
        assert_eq!(run(CatchUp::Skip, 10), []);
        assert_eq!(run(CatchUp::Once, 10), [at(160)]);
        assert_eq!(run(CatchUp::Each, 3), [at(460), at(520), at(580)]);
        assert_eq!(run(CatchUp::Each, 100).len(), 8);
        // 580 + 15 s: the last one is still in time.
        assert_eq!(to_run(&every(60), at(160), at(595), at(595), CatchUp::Skip, 10), [at(580)]);
    }

    #[test]
    fn what_is_in_time_runs_whatever_the_policy() {
        for policy in [CatchUp::Skip, CatchUp::Once, CatchUp::Each] {
            assert_eq!(
                to_run(&every(5), at(110), at(121), at(121), policy, 1),
                [at(110), at(115), at(120)],
                "{policy:?}"
            );
            assert_eq!(to_run(&every(5), at(110), at(109), at(109), policy, 1), []);
        }
    }

    #[test]
    fn what_was_in_time_when_the_work_began_is_not_missed_because_it_took_long() {
        for policy in [CatchUp::Skip, CatchUp::Once, CatchUp::Each] {
            let late = to_run(&every(60), at(160), at(165), at(230), policy, 1);
            assert_eq!(late, [at(160), at(220)], "{policy:?}");
        }
        // Late already then.
        assert_eq!(to_run(&every(60), at(160), at(200), at(210), CatchUp::Skip, 1), []);
    }

    proptest! {
        #[test]
        fn the_latest_are_the_end_of_all(period in 1u64..5000, first in 0i64..50, length in 0i64..100_000, max in 1usize..50) {
            let timing = every(period);
            let first = at(100 + first * i64::try_from(period).expect("small"));
            let until = first.plus(Duration::from_secs(length.unsigned_abs()));
            let all: Vec<At> = timing.from(first, 110_000).into_iter().take_while(|at| *at <= until).collect();
            prop_assert_eq!(timing.latest(first, until, max), &all[all.len().saturating_sub(max)..]);
        }
    }
}
