//! What a process remembers of activities: never the truth, and never for long.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::RedisError;

use super::floods::Floods;
use super::model::{ActivityId, Admission, EntryId, Placed};
use super::redis::Submission;
use crate::auth::UserId;
use crate::error::Kind;
use crate::platform::coalesce::Coalescer;

/// Unknown ids remembered; past it everything older than its time is dropped, or all of it.
const MEMORY_SIZE: usize = 4096;
/// Sold-out activities remembered at once, each with half a megabyte of [`TOLD_BITS`]; past it all are dropped.
const SOLD_OUT_SIZE: usize = 64;
/// An unknown activity is not asked for again for this long.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// Who was told from memory that all is sold is asked for at the gate when he comes again within this long.
const TOLD_FOR: Duration = Duration::from_secs(3);
/// Bits by which they are known; a user who shares one is asked for at the gate, which is no harm.
const TOLD_BITS: u64 = 1 << 22;

/// The memory.
pub struct Memory {
    sold_out: RwLock<HashMap<ActivityId, Arc<SoldOut>>>,
    unknown: RwLock<HashMap<ActivityId, Instant>>,
    hasher: RandomState,
    floods: Floods,
    /// Submissions on their way to the gates.
    pub admissions: Arc<Coalescer<ActivityId, Submission, Admission, RedisError>>,
    /// Those who wait for a gate to be built.
    pub building: Arc<Coalescer<ActivityId, (), (), Kind>>,
    /// Those who ask MySQL what became of a submission.
    pub lookups: Arc<Coalescer<(), EntryId, Option<Placed>, Kind>>,
    /// Kept: finding a counter by its labels costs more than the rest of a refusal.
    pub admitted: metrics::Counter,
    /// As [`Memory::admitted`].
    pub refused_sold_out: metrics::Counter,
    /// As [`Memory::admitted`].
    pub refused_floods: metrics::Counter,
}

/// The counter of submissions with this outcome.
pub fn submissions(outcome: &'static str) -> metrics::Counter {
    metrics::counter!("onrush_seckill_submissions_total", "outcome" => outcome)
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            sold_out: RwLock::default(),
            unknown: RwLock::default(),
            hasher: RandomState::new(),
            floods: Floods::default(),
            admissions: Arc::default(),
            building: Arc::default(),
            lookups: Arc::default(),
            admitted: submissions("admitted"),
            refused_sold_out: submissions(Kind::SoldOut.name()),
            refused_floods: submissions(Kind::TooManyAttempts.name()),
        }
    }
}

/// An activity that was seen sold out.
struct SoldOut {
    seen: Instant,
    told: Arc<ToldUsers>,
}

/// Whom this process has told so from memory, roughly.
struct ToldUsers {
    since: Instant,
    bits: Box<[AtomicU64]>,
}

impl ToldUsers {
    fn new() -> Self {
        let bits = (0..TOLD_BITS / 64).map(|_| AtomicU64::new(0)).collect();
        Self { since: Instant::now(), bits }
    }

    /// Notes a user; whether he was noted before.
    fn note(&self, hash: u64) -> bool {
        let bit = hash % TOLD_BITS;
        let mask = 1 << (bit % 64);
        usize::try_from(bit / 64).is_ok_and(|at| self.bits[at].fetch_or(mask, Ordering::Relaxed) & mask != 0)
    }
}

impl Memory {
    /// Counts a submission of a user in a window of time: how many it makes, at least.
    pub fn submitted(&self, activity: ActivityId, user: UserId, window: u64) -> u32 {
        self.floods.count(self.hasher.hash_one((activity, user)), window)
    }

    /// Whether this user may be told from memory that all is sold: it was seen less than `length` ago, and he was not
    /// told so a moment ago. Who holds a place and asks once more must hear of it, also while the crowd keeps asking.
    pub fn is_sold_out(&self, activity: ActivityId, user: UserId, length: Duration) -> bool {
        let memory = self.sold_out.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sold_out) = memory.get(&activity).filter(|sold_out| sold_out.seen.elapsed() < length) else {
            return false;
        };
        !sold_out.told.note(self.hasher.hash_one(user))
    }

    /// The gate has said that all is sold.
    pub fn saw_sold_out(&self, activity: ActivityId) {
        let mut memory = self.sold_out.write().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= SOLD_OUT_SIZE {
            memory.clear();
        }
        let kept = memory.get(&activity).filter(|known| known.told.since.elapsed() < TOLD_FOR);
        let told = kept.map_or_else(|| Arc::new(ToldUsers::new()), |known| known.told.clone());
        memory.insert(activity, Arc::new(SoldOut { seen: Instant::now(), told }));
    }

    /// Whether the activity was asked for and not found a moment ago: keeps made-up ids from reaching MySQL each time.
    pub fn is_unknown(&self, activity: ActivityId) -> bool {
        let memory = self.unknown.read().unwrap_or_else(PoisonError::into_inner);
        memory.get(&activity).is_some_and(|seen| seen.elapsed() < UNKNOWN_FOR)
    }

    /// There is no such activity.
    pub fn saw_unknown(&self, activity: ActivityId) {
        let mut memory = self.unknown.write().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= MEMORY_SIZE {
            memory.retain(|_, seen| seen.elapsed() < UNKNOWN_FOR);
            if memory.len() >= MEMORY_SIZE {
                memory.clear();
            }
        }
        memory.insert(activity, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_told_from_memory_is_asked_for_when_he_comes_again() {
        let (memory, activity) = (Memory::default(), ActivityId::new());
        let (alice, bob) = (UserId::new(), UserId::new());
        let hour = Duration::from_secs(3600);
        assert!(!memory.is_sold_out(activity, alice, hour));
        memory.saw_sold_out(activity);
        assert!(memory.is_sold_out(activity, alice, hour));
        // Others keep the memory fresh.
        memory.saw_sold_out(activity);
        assert!(!memory.is_sold_out(activity, alice, hour));
        assert!(memory.is_sold_out(activity, bob, hour));
        assert!(!memory.is_sold_out(activity, UserId::new(), Duration::ZERO));
    }
}
