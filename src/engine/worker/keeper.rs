//! The loop of a partition that keeps it going: moves what is due, takes over from the dead, removes consumers that are
//! gone. Every process runs it; scripts and conditions in Redis make one of them win.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use redis::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::super::client::{META_LIFE, millis};
use super::super::keys::GROUP;
use super::super::priority::Levels;
use super::super::scripts;
use super::Lane;
use super::finish::Ending;
use super::read::stream_entries;
use crate::platform::loops::Pulse;

/// The keeper looks for due tasks at least this often.
const KEEP_PERIOD: Duration = Duration::from_millis(100);
/// Due tasks that one script call moves.
const PROMOTE_CHUNK: u32 = 250;
/// Deliveries of dead workers that one look takes over.
const RECOVER_CHUNK: usize = 100;
/// A consumer that has not read for so many leases and owns nothing is removed. One that lives after all is there again
/// with its next read.
const CONSUMER_GONE: u32 = 20;
/// The queue's counters are noted this often.
const SAMPLE_PERIOD: Duration = Duration::from_secs(5);
/// Consumers are looked through once in so many leases.
const PRUNE_PERIOD: u32 = 10;

impl<C: Clone + Send + Sync + 'static> Lane<C> {
    pub(super) async fn keep(self, pulse: Pulse, tracker: TaskTracker) -> anyhow::Result<()> {
        let lease = self.worker.engine.settings.lease;
        let recover_period = (lease / 4).clamp(Duration::from_millis(100), Duration::from_secs(2));
        let (mut recovered, mut pruned, mut sampled) = (None::<Instant>, None::<Instant>, None::<Instant>);
        let due = |last: Option<Instant>, period: Duration| last.is_none_or(|at| at.elapsed() >= period);
        while !pulse.stopping() {
            pulse.beat();
            let (moved, next_ms) = self.follow().await?;
            if moved >= i64::from(PROMOTE_CHUNK) {
                continue;
            }
            self.try_forward().await;
            if due(recovered, recover_period) && !self.throttle.is_paused() && !self.worker.engine.is_held() {
                for lane in self.each_level() {
                    lane.recover(&pulse, &tracker).await?;
                }
                recovered = Some(Instant::now());
            }
            if due(sampled, SAMPLE_PERIOD) {
                self.worker.engine.sample(&self.queue).await?;
                sampled = Some(Instant::now());
            }
            if due(pruned, lease * PRUNE_PERIOD) {
                for lane in self.each_level() {
                    lane.prune().await?;
                }
                pruned = Some(Instant::now());
            }
            let next = u64::try_from(next_ms).map_or(KEEP_PERIOD, |ms| Duration::from_millis(ms.max(1)));
            pulse.sleep(next.min(KEEP_PERIOD)).await;
        }
        Ok(())
    }

    /// Sends what lies in the outbox; what cannot be sent (to another queue, on another server) holds up nothing here.
    async fn try_forward(&self) {
        if let Err(error) = self.forward().await {
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

    /// Moves what is due, and does what was told to this queue. Gives how many tasks it moved and when the next one is
    /// due (ms, -1 when none is).
    async fn follow(&self) -> anyhow::Result<(i64, i64)> {
        type Told = (i64, i64, Vec<String>, bool, usize, Vec<u8>);
        let (moved, next_ms, revoked, paused, concurrency, used): Told = scripts::PROMOTE
            .key(self.keys.delayed())
            .key(self.keys.envelopes())
            .key(self.keys.stream())
            .key(self.keys.meta())
            .key(self.keys.revoked())
            .key(self.keys.control())
            .key(self.keys.absent())
            .arg(self.worker.engine.clock.now().ms())
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
        self.throttle.follow(paused, concurrency);
        Ok((moved, next_ms))
    }

    /// A place to run in; `None` when the process stops, or the queue is paused, before one is free. What is told to the
    /// queue is followed meanwhile.
    async fn place(&self, pulse: &Pulse) -> anyhow::Result<Option<OwnedSemaphorePermit>> {
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

    /// Takes over deliveries whose worker gave no sign for a lease, or gave them back. Those given back at their first
    /// delivery (a count of 0) go together, as do those delivered once; one delivered more often may be what killed its
    /// workers, so it goes alone, and after enough deliveries to the dead letters.
    async fn recover(&self, pulse: &Pulse, tracker: &TaskTracker) -> anyhow::Result<()> {
        let lease = millis(self.worker.engine.settings.lease);
        type Pending = Vec<(String, String, u64, u32)>;
        let pending: Result<Pending, redis::RedisError> = redis::cmd("XPENDING")
            .arg(self.stream())
            .arg(GROUP)
            .arg("IDLE")
            .arg(lease)
            .arg("-")
            .arg("+")
            .arg(RECOVER_CHUNK)
            .query_async(&mut self.worker.engine.redis.commands())
            .await;
        let pending = match pending {
            Ok(pending) => pending,
            Err(error) if is_no_group(&error) => return self.ensure_groups(self.levels()).await,
            Err(error) => return Err(error).context("looking for abandoned tasks"),
        };
        let (first, repeated): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(_, _, _, count)| *count <= 1);
        let mut groups: Vec<(Vec<String>, u32)> = Vec::new();
        for count in [0, 1] {
            let alike: Vec<&String> = first.iter().filter(|p| p.3 == count).map(|p| &p.0).collect();
            let chunks = alike.chunks(self.spec.batch.max(1));
            groups.extend(chunks.map(|chunk| (chunk.iter().map(|&entry| entry.clone()).collect(), count)));
        }
        groups.extend(repeated.into_iter().map(|(entry, _, _, count)| (vec![entry], count)));
        for (entries, count) in groups {
            let Some(permit) = self.place(pulse).await? else { break };
            pulse.beat();
            self.take_over(&entries, count, permit, tracker).await?;
        }
        Ok(())
    }

    async fn take_over(
        &self,
        entries: &[String],
        count: u32,
        permit: OwnedSemaphorePermit,
        tracker: &TaskTracker,
    ) -> anyhow::Result<()> {
        let lease = millis(self.worker.engine.settings.lease);
        // The idle condition makes one of several recoverers win each entry.
        let reply: Value = redis::cmd("XCLAIM")
            .arg(self.stream())
            .arg(GROUP)
            .arg(&self.worker.consumer)
            .arg(lease)
            .arg(entries)
            .query_async(&mut self.worker.engine.redis.commands())
            .await
            .context("taking over abandoned tasks")?;
        let batch = self.batch(stream_entries(reply), count + 1);
        let taken = batch.len();
        if taken == 0 {
            return Ok(());
        }
        // What its worker gave back before it began was never lost.
        if count > 0 {
            metrics::counter!("onrush_tasks_taken_over_total", "queue" => self.queue.base().to_owned())
                .increment(taken as u64);
            tracing::warn!(queue = %self.queue, tasks = taken, delivery = count + 1, "took over tasks of a worker that gave no sign");
        }
        if count >= self.worker.engine.settings.max_deliveries {
            let why = format!("delivered {count} times and never ended");
            for delivery in batch.into_deliveries() {
                let name = delivery.envelope.name.clone();
                self.finish(&name, vec![(delivery, Ending::Dead(why.clone()))]).await;
            }
            return Ok(());
        }
        let lane = self.clone();
        tracker.spawn(async move { lane.process(batch, permit).await });
        Ok(())
    }
}

/// The stream or its group is gone.
pub(super) fn is_no_group(error: &redis::RedisError) -> bool {
    // Who waits for a stream that goes hears UNBLOCKED.
    matches!(error.code(), Some("NOGROUP" | "UNBLOCKED"))
        || error.to_string().contains("no such key")
        || error.to_string().contains("NOGROUP")
}
