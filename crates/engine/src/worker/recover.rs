//! Deliveries that a dead worker left: whoever keeps the partition takes them over, page by page until none is left, as far
//! as there are places to run them in.

use anyhow::Context;
use redis::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use super::super::client::millis;
use super::super::keys::GROUP;
use super::Partition;
use super::finish::Ending;
use super::keeper::is_no_group;
use super::read::stream_entries;
use onrush_platform::loops::Pulse;

/// Deliveries of dead workers that are looked at together.
const RECOVER_PAGE: usize = 100;

/// A delivery as `XPENDING` lists it: entry, consumer, idle (ms), deliveries.
type Pending = (String, String, u64, u32);

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    /// Takes over deliveries whose worker gave no sign for a lease, or gave them back, until none is left or there is no
    /// place to run them in.
    pub(super) async fn recover(&self, pulse: &Pulse, tracker: &TaskTracker) -> anyhow::Result<()> {
        let mut from = "-".to_owned();
        loop {
            let pending = match self.abandoned(&from).await {
                Ok(pending) => pending,
                Err(error) if is_no_group(&error) => return self.ensure_groups(self.levels()).await,
                Err(error) => return Err(error).context("looking for abandoned tasks"),
            };
            let last = pending.last().map(|(entry, ..)| format!("({entry}")).filter(|_| pending.len() == RECOVER_PAGE);
            for (entries, count) in together(pending, self.spec.batch.max(1)) {
                let Some(permit) = self.place(pulse).await? else { return Ok(()) };
                pulse.beat();
                self.take_over(&entries, count, permit, tracker).await?;
            }
            // Above these: one that cannot be taken over is met once a look.
            let Some(last) = last else { return Ok(()) };
            from = last;
        }
    }

    /// Of a partition that rests: notes when no worker has anything, here or elsewhere. Then there is nothing to take over until
    /// something comes, which the watch tells.
    pub(super) async fn note_nothing_pending(&self) -> anyhow::Result<()> {
        let Some(wakes) = self.idle.before_look() else { return Ok(()) };
        let pending: Result<Value, redis::RedisError> = redis::cmd("XPENDING")
            .arg(self.stream())
            .arg(GROUP)
            .query_async(&mut self.worker.engine.redis.commands())
            .await;
        match pending {
            Ok(Value::Array(parts)) if parts.first() == Some(&Value::Int(0)) => self.idle.note_nothing_pending(wakes),
            Ok(_) => {}
            Err(error) if is_no_group(&error) => {}
            Err(error) => return Err(error).context("looking for what workers have"),
        }
        Ok(())
    }

    /// A page of deliveries that were idle for a lease.
    async fn abandoned(&self, from: &str) -> Result<Vec<Pending>, redis::RedisError> {
        redis::cmd("XPENDING")
            .arg(self.stream())
            .arg(GROUP)
            .arg("IDLE")
            .arg(millis(self.worker.engine.settings.lease))
            .arg(from)
            .arg("+")
            .arg(RECOVER_PAGE)
            .query_async(&mut self.worker.engine.redis.commands())
            .await
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
        let partition = self.clone();
        tracker.spawn(async move { partition.process(batch, permit).await });
        Ok(())
    }
}

/// Which deliveries are taken over together, each with how often it was delivered: those given back at their first delivery
/// (a count of 0), and those delivered once. One that was delivered more often may be what killed its workers, so it goes
/// alone, and after enough deliveries to the dead letters.
fn together(pending: Vec<Pending>, batch: usize) -> Vec<(Vec<String>, u32)> {
    let (first, repeated): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(.., count)| *count <= 1);
    let mut groups: Vec<(Vec<String>, u32)> = Vec::new();
    for count in [0, 1] {
        let alike: Vec<&String> =
            first.iter().filter(|delivery| delivery.3 == count).map(|delivery| &delivery.0).collect();
        let chunks = alike.chunks(batch);
        groups.extend(chunks.map(|chunk| (chunk.iter().map(|&entry| entry.clone()).collect(), count)));
    }
    groups.extend(repeated.into_iter().map(|(entry, _, _, count)| (vec![entry], count)));
    groups
}
