//! Log lines about what may happen with every request.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::clock::At;

/// Something that is told once in a while, however often it happens.
#[derive(Debug, Default)]
pub struct Seldom {
    /// Nothing is told before this, in milliseconds since 1970.
    next_ms: AtomicI64,
}

impl Seldom {
    /// Whether it may be told now; then it may not for `pause`.
    pub fn may(&self, now: At, pause: Duration) -> bool {
        let next = self.next_ms.load(Ordering::Relaxed);
        let later = now.plus(pause).ms();
        now.ms() >= next && self.next_ms.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_told_once_in_a_while() {
        let (seldom, pause) = (Seldom::default(), Duration::from_secs(60));
        let start = At::from_ms(1_700_000_000_000);
        assert!(seldom.may(start, pause));
        assert!(!seldom.may(start, pause) && !seldom.may(start.plus(pause / 2), pause));
        assert!(seldom.may(start.plus(pause), pause));
    }
}
