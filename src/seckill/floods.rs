//! How often each user has submitted to an activity lately, as far as this process has seen: in so much memory, whoever
//! submits how often.
//!
//! A user has two counters of a block that fits one line of the processor's cache, chosen by a hash that nobody outside
//! can foresee; the lower one counts. Another user may share one of them, seldom both: a few in ten thousand while ten
//! thousand others flood. Redis is not asked: what a flood must not cost is a round trip each.

use std::sync::atomic::{AtomicU32, Ordering};

/// Blocks: 8 MiB in all.
const BLOCKS: usize = 1 << 17;
/// Counters of a block.
const COUNTERS: usize = 16;

/// A line of the processor's cache.
#[repr(align(64))]
struct Block([AtomicU32; COUNTERS]);

/// The counters. Each holds its window in the upper half and the count in the lower one.
pub struct Floods(Box<[Block]>);

impl Default for Floods {
    fn default() -> Self {
        Self((0..BLOCKS).map(|_| Block(std::array::from_fn(|_| AtomicU32::new(0)))).collect())
    }
}

impl Floods {
    /// Counts one in `window` for the user of this hash: how many they are there with it, at least. It counts up to
    /// [`MAX_COUNT`].
    pub fn count(&self, hash: u64, window: u64) -> u32 {
        let part = |shift: u32, of: usize| usize::try_from(hash >> shift).unwrap_or(0) % of;
        let block = &self.0[part(0, BLOCKS)].0;
        let first = part(32, COUNTERS);
        // Another one than the first.
        let second = (first + 1 + part(40, COUNTERS - 1)) % COUNTERS;
        add(&block[first], window).min(add(&block[second], window))
    }
}

/// The largest count.
pub const MAX_COUNT: u32 = 0xffff;

fn add(counter: &AtomicU32, window: u64) -> u32 {
    let window = u32::try_from(window & 0xffff).unwrap_or(0) << 16;
    let next = |was: u32| {
        let of_now = was & !MAX_COUNT == window;
        if of_now { was + u32::from(was & MAX_COUNT < MAX_COUNT) } else { window + 1 }
    };
    let was = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |was| Some(next(was))).unwrap_or(0);
    next(was) & MAX_COUNT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_is_counted_alone_and_anew_in_the_next_window() {
        let floods = Floods::default();
        // In other blocks.
        for hash in 0..3 {
            for n in 1..=40 {
                assert_eq!(floods.count(hash, 7), n);
            }
        }
        assert_eq!(floods.count(0, 8), 1);
        assert_eq!((0..70_000).map(|_| floods.count(9, 1)).max(), Some(MAX_COUNT));
        assert_eq!(floods.count(9, 1), MAX_COUNT);
    }

    proptest! {
        #[test]
        fn nobody_is_counted_less_than_they_submitted(hashes in prop::collection::vec(any::<u64>(), 1..200), windows in 0u64..70_000) {
            let floods = Floods::default();
            for n in 1..=3 {
                for hash in &hashes {
                    prop_assert!(floods.count(*hash, windows) >= n);
                }
            }
        }
    }
}
