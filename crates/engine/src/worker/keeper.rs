//! The loop of a partition that keeps it going: moves what is due, has what dead workers left taken over
//! ([`recover`](super::recover)) and what is nowhere cleared ([`lost`](super::lost)), removes consumers that are gone. Every
//! process in which the queue is busy runs it, and of those in which it is idle one ([`keeping`](super::keeping)); scripts and
//! conditions in Redis make one of several win.
//!
//! While something runs here the looks come ten times a second, since it may be taken back; else twice, or when the next
//! task is due. A partition in which nothing happens costs one command a look; an idle one is looked at with all others.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::super::client::{META_LIFE, millis};
use super::super::keys::GROUP;
use super::super::priority::Levels;
use super::super::scripts;
use super::Partition;
use super::lost::Search;
use onrush_platform::loops::Pulse;

/// While something runs here, the keeper looks this often for what is due and for what was told to the queue.
const KEEP_PERIOD: Duration = Duration::from_millis(100);
/// And this often while nothing does: a task that another process puts off for less waits as long.
pub(super) const IDLE_PERIOD: Duration = Duration::from_millis(500);
/// Due tasks that one script call moves.
const PROMOTE_CHUNK: u32 = 250;
/// A consumer that has not read for so many leases and owns nothing is removed. One that lives after all is there again
/// with its next read.
const CONSUMER_GONE: u32 = 20;
/// The queue's counters are noted this often.
const SAMPLE_PERIOD: Duration = Duration::from_secs(5);
/// And this often while nothing moves them: two notes within the minute that they are kept for.
const IDLE_SAMPLE_PERIOD: Duration = Duration::from_secs(25);
/// Consumers are looked through once in so many leases.
const PRUNE_PERIOD: u32 = 10;
/// A keeper of an idle queue that has nothing to do makes a step this often.
const IDLE_BEAT: Duration = Duration::from_secs(2);
/// Deliveries of dead workers are looked for this often where the watch says that there are none.
const SURE_PERIOD: Duration = Duration::from_secs(30);
/// That an outbox waits is told this often.
const OUTBOX_TOLD: Duration = Duration::from_secs(10);

/// What a look found.
struct Seen {
    /// Tasks that were due.
    moved: i64,
    /// When the next one is due (ms, -1 when none is).
    next_ms: i64,
}

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    pub(super) async fn keep(self, pulse: Pulse, tracker: TaskTracker) -> anyhow::Result<()> {
        let lease = self.worker.engine.settings.lease;
        let recover_period = (lease / 4).clamp(Duration::from_millis(100), Duration::from_secs(2));
        let (mut recovered, mut pruned, mut sampled) = (None::<Instant>, None::<Instant>, None::<Instant>);
        let due = |last: Option<Instant>, period: Duration| last.is_none_or(|at| at.elapsed() >= period);
        let mut search = Search::default();
        while !pulse.stopping() {
            pulse.beat();
            // What runs here may be told something by anybody.
            if self.idle.is_kept_elsewhere() && !self.idle.is_stirred() && !self.runs() {
                self.wait_for_bell(&pulse, IDLE_BEAT).await;
                continue;
            }
            let mut next_ms = -1;
            let was_stirred = self.idle.take_stirred();
            let still_quiet = self.idle.is_quiet() && !was_stirred && self.is_quiet().await?;
            if !still_quiet {
                if let Some(seen) = self.spare(self.follow()).await? {
                    if seen.moved >= i64::from(PROMOTE_CHUNK) {
                        continue;
                    }
                    next_ms = seen.next_ms;
                }
                self.try_forward().await;
            }
            let recover_after = if self.idle.has_nothing_pending() { SURE_PERIOD } else { recover_period };
            if due(recovered, recover_after) && !self.throttle.is_paused() && !self.worker.engine.is_held() {
                for at_level in self.each_level() {
                    self.spare(at_level.recover(&pulse, &tracker)).await?;
                }
                self.spare(self.note_nothing_pending()).await?;
                recovered = Some(Instant::now());
            }
            let moves = self.moved.load(Ordering::SeqCst);
            // Nobody wants to know how quickly nothing goes through one of many partitions.
            let is_idle_part = self.idle.is_idle() && self.queue.partition_name().is_some();
            if !is_idle_part && due(sampled, if moves { SAMPLE_PERIOD } else { IDLE_SAMPLE_PERIOD }) {
                self.moved.store(false, Ordering::SeqCst);
                self.spare(self.worker.engine.sample(&self.queue)).await?;
                sampled = Some(Instant::now());
            }
            if due(pruned, lease * PRUNE_PERIOD) {
                for at_level in self.each_level() {
                    self.spare(at_level.prune()).await?;
                }
                pruned = Some(Instant::now());
            }
            self.spare(self.look_for_lost(&mut search, still_quiet, &pulse)).await?;
            self.rest(&pulse, next_ms, recover_period).await;
        }
        Ok(())
    }

    /// Whether there still is nothing to follow, by one command; by none where all idle partitions are looked at.
    async fn is_quiet(&self) -> anyhow::Result<bool> {
        if self.is_looked_at() {
            return Ok(true);
        }
        let mut asked = redis::cmd("EXISTS");
        asked.arg(self.keys.stirring());
        let found: u32 =
            asked.query_async(&mut self.worker.engine.redis.commands()).await.context("looking at a queue")?;
        Ok(found == 0)
    }

    fn is_looked_at(&self) -> bool {
        self.idle.is_idle() && !self.runs() && self.worker.partitions.are_looked_at()
    }

    /// Whether tasks run here. Who has no place free cannot take over what a dead worker had, so it leaves the queue to another
    /// process whose partition is idle.
    pub(super) fn runs(&self) -> bool {
        !self.running.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Rests until the next task is due, `most` at most.
    async fn rest(&self, pulse: &Pulse, next_ms: i64, most: Duration) {
        if self.is_looked_at() && self.idle.is_quiet() && self.idle.has_nothing_pending() {
            return self.wait_for_bell(pulse, IDLE_BEAT).await;
        }
        let runs = self.runs();
        let most = most.min(if runs { KEEP_PERIOD } else { IDLE_PERIOD });
        let next = u64::try_from(next_ms).map_or(most, |ms| Duration::from_millis(ms.max(1)));
        if runs {
            return pulse.sleep(next.min(most)).await;
        }
        // A handler begins that may be told to stop, or a task was put off for less than a rest.
        self.wait_for_bell(pulse, next.min(most)).await;
    }

    async fn wait_for_bell(&self, pulse: &Pulse, most: Duration) {
        tokio::select! {
            () = pulse.sleep(most) => {}
            () = self.idle.bell.notified() => {}
        }
    }

    /// Sends what lies in the outbox; what cannot be sent (to another queue, on another server) holds up nothing here.
    async fn try_forward(&self) {
        if let Err(error) = self.forward().await
            && self.told.outbox.may(self.worker.engine.clock.now(), OUTBOX_TOLD)
        {
            tracing::warn!(queue = %self.queue, error = format!("{error:#}"), "what follows ended tasks could not be sent yet");
        }
    }

    /// Tells running tasks that they were taken back.
    fn tell(&self, revoked: &[String]) {
        if revoked.is_empty() {
            return;
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = revoked.iter().filter_map(|key| Uuid::try_parse(key).ok());
        keys.filter_map(|key| running.get(&key)).for_each(|task| task.control.revoke());
    }

    /// Moves what is due, and does what was told to this queue.
    async fn follow(&self) -> anyhow::Result<Seen> {
        type PromoteReply = (i64, i64, Vec<String>, bool, usize, Vec<u8>, Vec<String>);
        let (moved, next_ms, revoked, paused, concurrency, used, hollow): PromoteReply = scripts::PROMOTE
            .key(self.keys.delayed())
            .key(self.keys.envelopes())
            .key(self.keys.stream())
            .key(self.keys.meta())
            .key(self.keys.revoked())
            .key(self.keys.control())
            .key(self.keys.absent())
            .arg(self.worker.engine.clock.shift_ms())
            .arg(PROMOTE_CHUNK)
            .arg(millis(META_LIFE))
            .invoke_async(&mut self.worker.engine.redis.commands())
            .await
            .context("moving due tasks")?;
        self.tell(&revoked);
        let levels = Levels::of(&used);
        if levels != self.levels() {
            // Before they are read.
            self.ensure_groups(levels).await?;
            self.levels.store(levels.bits(), Ordering::SeqCst);
        }
        let may_rest = !paused && concurrency == 0 && levels.is_one();
        // No task waits for its time, nothing is set, nobody is to be told.
        let quiet = next_ms < 0 && revoked.is_empty() && may_rest;
        // Before the reader may read: it then knows whether it may rest.
        self.idle.saw(may_rest, quiet);
        self.throttle.follow(paused, concurrency);
        if self.idle.rests() && !self.may_rest() {
            self.idle.wake();
        }
        if moved > 0 {
            self.moved.store(true, Ordering::SeqCst);
        }
        self.clear_hollow(&hollow).await?;
        Ok(Seen { moved, next_ms })
    }

    /// A place to run in; `None` when the process stops, or the queue is paused, before one is free. What is told to the
    /// queue is followed meanwhile.
    pub(super) async fn place(&self, pulse: &Pulse) -> anyhow::Result<Option<OwnedSemaphorePermit>> {
        let place = self.throttle.place();
        tokio::pin!(place);
        while !pulse.stopping() && !self.throttle.is_paused() {
            tokio::select! {
                place = &mut place => return place.map(Some),
                () = pulse.sleep(KEEP_PERIOD) => {}
            }
            self.follow().await?;
            self.try_forward().await;
            pulse.beat();
        }
        Ok(None)
    }

    async fn prune(&self) -> anyhow::Result<()> {
        let removed: Result<i64, redis::RedisError> = scripts::PRUNE
            .key(self.stream())
            .arg(GROUP)
            .arg(millis(self.worker.engine.settings.lease * CONSUMER_GONE))
            .invoke_async(&mut self.worker.engine.redis.commands())
            .await;
        match removed {
            Ok(_) => Ok(()),
            Err(error) if is_no_group(&error) => self.ensure_groups(self.levels()).await,
            Err(error) => Err(error).context("removing consumers that are gone"),
        }
    }
}

/// The stream or its group is gone.
pub(super) fn is_no_group(error: &redis::RedisError) -> bool {
    // Who waits for a stream that goes hears UNBLOCKED.
    matches!(error.code(), Some("NOGROUP" | "UNBLOCKED"))
        || error.to_string().contains("no such key")
        || error.to_string().contains("NOGROUP")
}
