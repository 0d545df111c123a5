//! How much of a queue this process does now: so many reads under way as an operator set, and none while the queue is
//! paused. Redis holds the settings; the keeper brings them here, the reader asks here before it reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use onrush_platform::loops::Pulse;

/// What bounds the reads of one partition.
pub(super) struct Throttle {
    permits: Arc<Semaphore>,
    size: Mutex<Size>,
    /// `None` until Redis was asked: nothing is read before, for the queue may be paused.
    paused: watch::Sender<Option<bool>>,
    /// The reader has seen that it may not read, and is in no read.
    resting: AtomicBool,
}

/// Places of a partition.
struct Size {
    /// By the process's own settings.
    own: usize,
    /// There are so many now.
    now: usize,
    /// There should be so many.
    wanted: usize,
}

impl Throttle {
    /// With the places that the process's own settings give.
    pub(super) fn new(own: usize) -> Self {
        let permits = Arc::new(Semaphore::new(own));
        let (paused, _) = watch::channel(None);
        Self { permits, size: Mutex::new(Size { own, now: own, wanted: own }), paused, resting: AtomicBool::new(false) }
    }

    /// Does what Redis says; a `concurrency` of 0 is the process's own.
    pub(super) fn follow(&self, paused: bool, concurrency: usize) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        size.wanted = if concurrency == 0 { size.own } else { concurrency };
        if size.wanted > size.now {
            self.permits.add_permits(size.wanted - size.now);
            size.now = size.wanted;
        } else if size.wanted < size.now {
            // Those in use are taken away when they come back: see `place`.
            size.now -= self.permits.forget_permits(size.now - size.wanted);
        }
        drop(size);
        self.paused.send_if_modified(|known| known.replace(paused) != Some(paused));
    }

    /// A place to run in, when one is free.
    pub(super) async fn place(&self) -> anyhow::Result<OwnedSemaphorePermit> {
        loop {
            let permit = self.permits.clone().acquire_owned().await.context("taking a permit")?;
            // Who waits gets a place before `follow` can see it free, so what is too many is found here.
            let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
            if size.now <= size.wanted {
                return Ok(permit);
            }
            size.now -= 1;
            permit.forget();
        }
    }

    /// Whether the reader may read; it says so before every read.
    pub(super) fn may_read(&self) -> bool {
        let open = *self.paused.borrow() == Some(false);
        self.resting.store(!open, Ordering::SeqCst);
        open
    }

    /// Whether the queue is paused, as far as this process knows.
    pub(super) fn is_paused(&self) -> bool {
        *self.paused.borrow() != Some(false)
    }

    /// Waits until the reader may read, at most `patience`, or until it must stop.
    pub(super) async fn opened(&self, pulse: &Pulse, patience: Duration) {
        let mut told = self.paused.subscribe();
        tokio::select! {
            _ = told.wait_for(|paused| *paused == Some(false)) => {}
            () = pulse.sleep(patience) => {}
        }
    }

    /// The places that there should be, and whether nothing is read any more because the queue is paused. A process that
    /// has not asked yet reads nothing either, and does not say so.
    pub(super) fn followed(&self) -> (usize, bool) {
        let wanted = self.size.lock().unwrap_or_else(PoisonError::into_inner).wanted;
        (wanted, *self.paused.borrow() == Some(true) && self.resting.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_rests_before_redis_was_asked_is_not_paused() {
        let throttle = Throttle::new(1);
        assert!(!throttle.may_read());
        assert_eq!(throttle.followed(), (1, false));
        throttle.follow(true, 0);
        assert!(!throttle.may_read());
        assert_eq!(throttle.followed(), (1, true));
        throttle.follow(false, 0);
        assert!(throttle.may_read());
        assert_eq!(throttle.followed(), (1, false));
    }

    #[tokio::test]
    async fn fewer_places_are_reached_as_those_in_use_come_back() {
        let throttle = Arc::new(Throttle::new(3));
        let held = [throttle.place().await.unwrap(), throttle.place().await.unwrap(), throttle.place().await.unwrap()];
        let waiting = tokio::spawn({
            let throttle = throttle.clone();
            async move { throttle.place().await.unwrap() }
        });
        tokio::task::yield_now().await;
        throttle.follow(false, 1);
        let [first, second, third] = held;
        drop(first);
        drop(second);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "one is in use, and one is all");
        drop(third);
        let place = waiting.await.unwrap();
        throttle.follow(false, 2);
        let more = throttle.place().await.unwrap();
        drop((place, more));
        throttle.follow(false, 0);
        assert_eq!((throttle.permits.available_permits(), throttle.followed()), (3, (3, false)));
    }
}
