//! How often something may be done: so many at once, and so many again over each minute (the generic cell rate
//! algorithm, which is a leaking bucket that needs one number).
//!
//! A bucket is kept as the instant at which it will be empty. Each request adds [`Rate::interval_us`]; one that would make
//! it later than a window from now is refused, and adds nothing.

/// Over which a quota comes back.
pub(super) const WINDOW_S: u32 = 60;
const WINDOW_US: i64 = WINDOW_S as i64 * 1_000_000;

/// So many requests a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub quota: u32,
}

impl Rate {
    /// Of a setting: 0 is no limit.
    pub(super) fn of(quota: u32) -> Option<Self> {
        (quota > 0).then_some(Self { quota })
    }

    /// What one request adds to a bucket, in microseconds.
    pub(super) fn interval_us(self) -> i64 {
        WINDOW_US / i64::from(self.quota.max(1))
    }

    /// What a bucket holds, in microseconds: the whole quota.
    pub(super) fn capacity_us(self) -> i64 {
        self.interval_us() * i64::from(self.quota)
    }

    /// Adds a request to a bucket that will be empty at `empty_us`: when it will be then, or `None` when it is full.
    pub(super) fn add(self, empty_us: i64, now_us: i64) -> Option<i64> {
        let empty = empty_us.max(now_us) + self.interval_us();
        (empty - now_us <= self.capacity_us()).then_some(empty)
    }

    /// Requests that a bucket still takes which will be empty in `used_us`.
    pub(super) fn remaining(self, used_us: i64) -> i64 {
        ((self.capacity_us() - used_us) / self.interval_us()).max(0)
    }

    /// Seconds until a full bucket takes another one.
    pub(super) fn retry_after_s(self, used_us: i64) -> u64 {
        let wait = (used_us + self.interval_us() - self.capacity_us()).max(1);
        u64::try_from(wait).unwrap_or(1).div_ceil(1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quota_is_taken_at_once_and_comes_back_one_by_one() {
        let rate = Rate::of(4).unwrap();
        let (mut empty, now) = (0, 1_000_000_000);
        for left in (0..4).rev() {
            empty = rate.add(empty, now).unwrap();
            assert_eq!(rate.remaining(empty - now), left);
        }
        assert_eq!(rate.add(empty, now), None);
        assert_eq!(rate.retry_after_s(empty - now), 15);
        let later = now + 15_000_000;
        empty = rate.add(empty, later).unwrap();
        assert_eq!(rate.add(empty, later), None);
        assert_eq!(Rate::of(0), None);
    }

    proptest! {
        /// However the requests are spread: in any minute no more than twice the quota, and as many as it over long.
        #[test]
        fn a_window_never_takes_more_than_a_full_and_a_refilled_bucket(
            quota in 1u32..200,
            steps in proptest::collection::vec(0i64..20_000_000, 1..400),
        ) {
            let rate = Rate::of(quota).unwrap();
            let (mut empty, mut now, mut taken) = (0, 1_000_000_000_000i64, Vec::new());
            for step in steps {
                now += step / i64::from(quota);
                if let Some(later) = rate.add(empty, now) {
                    empty = later;
                    taken.push(now);
                }
            }
            for (at, first) in taken.iter().enumerate() {
                let within = taken[at..].iter().take_while(|time| **time < first + rate.capacity_us()).count();
                prop_assert!(within <= 2 * quota as usize, "{within} of {quota}");
            }
            let over = (now - taken[0]) / rate.interval_us() + 1 + i64::from(quota);
            prop_assert!(taken.len() as i64 <= over);
        }
    }
}
