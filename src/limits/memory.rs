//! Buckets in this process's memory, for routes that are to cost nothing: each process counts for itself.
//!
//! The table is bounded. An empty bucket is the same as none, so a part of the table that is full forgets those, and
//! while none of its buckets is empty it takes no new ones: whoever has none there passes. That takes more than
//! 262,144 accounts and addresses within a minute, which limits by account and address cannot stop anyway.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rate::Rate;
use super::{Action, Who};

/// Parts of the table, so that requests seldom wait for each other.
const PARTS: usize = 64;
/// Buckets of one part.
const PART_BUCKETS: usize = 4096;
/// Buckets in all: some 16 MB.
#[cfg(test)]
const BUCKETS: usize = PARTS * PART_BUCKETS;
/// A full part looks for empty buckets at most this often.
const SWEEP_PAUSE_US: i64 = 1_000_000;

/// The whole table.
pub(super) struct Table {
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
}

#[derive(Default)]
struct Part {
    /// When each will be empty, in microseconds since 1970.
    empty_us: HashMap<(Action, Who), i64>,
    next_sweep_us: i64,
}

impl Default for Table {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

/// What adding a request came to: for how long, in microseconds, the bucket now is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddedInMemory {
    Yes(i64),
    Full(i64),
}

impl Table {
    fn part(&self, key: &(Action, Who)) -> MutexGuard<'_, Part> {
        let at = usize::try_from(self.hasher.hash_one(key) % PARTS as u64).unwrap_or(0);
        self.parts[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request to a bucket, if it takes one.
    pub(super) fn add(&self, action: Action, who: Who, rate: Rate, now_us: i64) -> AddedInMemory {
        let key = (action, who);
        let mut part = self.part(&key);
        let before = part.empty_us.get(&key).copied();
        let Some(empty) = rate.add(before.unwrap_or(now_us), now_us) else {
            return AddedInMemory::Full(before.unwrap_or(now_us) - now_us);
        };
        if before.is_some() || part.has_room(now_us) {
            part.empty_us.insert(key, empty);
        }
        AddedInMemory::Yes(empty - now_us)
    }

    /// Takes a request back that another bucket refused.
    pub(super) fn take_back(&self, action: Action, who: Who, rate: Rate) {
        let key = (action, who);
        if let Some(empty) = self.part(&key).empty_us.get_mut(&key) {
            *empty -= rate.interval_us();
        }
    }
}

impl Part {
    fn has_room(&mut self, now_us: i64) -> bool {
        if self.empty_us.len() >= PART_BUCKETS && now_us >= self.next_sweep_us {
            self.empty_us.retain(|_, empty| *empty > now_us);
            self.next_sweep_us = now_us + SWEEP_PAUSE_US;
        }
        self.empty_us.len() < PART_BUCKETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000;

    #[test]
    fn each_account_and_each_action_has_a_bucket_of_its_own() {
        let (buckets, rate) = (Table::default(), Rate::of(2).unwrap());
        let add = |action, who| matches!(buckets.add(action, who, rate, NOW), AddedInMemory::Yes(_));
        assert!(add(Action::Poll, Who::Account(1)) && add(Action::Poll, Who::Account(1)));
        assert!(!add(Action::Poll, Who::Account(1)));
        assert!(add(Action::Poll, Who::Account(2)) && add(Action::Poll, Who::Address(1)));
        assert!(add(Action::Submit, Who::Account(1)));
        buckets.take_back(Action::Poll, Who::Account(1), rate);
        assert!(add(Action::Poll, Who::Account(1)) && !add(Action::Poll, Who::Account(1)));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_empty_buckets_first() {
        let (buckets, rate) = (Table::default(), Rate::of(1).unwrap());
        let crowd = 2 * BUCKETS as u128;
        let kept = || buckets.parts.iter().map(|part| part.lock().unwrap().empty_us.len()).sum::<usize>();
        for who in 0..crowd {
            assert!(matches!(buckets.add(Action::Poll, Who::Address(who), rate, NOW), AddedInMemory::Yes(_)));
        }
        assert!(kept() <= BUCKETS);
        // Who is known is limited however full it is.
        let refused = (0..crowd)
            .filter(|who| matches!(buckets.add(Action::Poll, Who::Address(*who), rate, NOW), AddedInMemory::Full(_)));
        assert_eq!(refused.count(), kept());
        // A minute later all of them are empty, and others have room.
        let later = NOW + 60_000_000;
        assert!(matches!(buckets.add(Action::Poll, Who::Account(1), rate, later), AddedInMemory::Yes(_)));
        assert!(matches!(buckets.add(Action::Poll, Who::Account(1), rate, later), AddedInMemory::Full(_)));
    }
}
