//! Of all processes one keeps an idle queue going: a right in Redis says which. Who has it renews it every second; when its
//! process dies, or its clock is so wrong that it may begin nothing, another one has it after [`RIGHT_LIFE`] and a second.
//! Two that keep a queue at once are harmless, so whoever does not know keeps.
//!
//! What concerns each process itself, and what lies in wait in the queues that this one keeps, is looked for in all idle
//! partitions together: an `EXISTS` of some of their keys, and of each partition alone only when it finds something.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, stream};

use super::super::client::millis;
use super::super::keys::{QueueName, WorkerKeys};
use super::super::scripts;
use super::idle::{Idle, OpenPartitions};
use super::keeper::IDLE_PERIOD;
use super::{STALL_AFTER, Worker};
use onrush_platform::loops::{Loops, Pulse};

/// A right holds for so long.
const RIGHT_LIFE: Duration = Duration::from_secs(3);
/// And is renewed, or asked for, this often.
const RIGHT_PERIOD: Duration = Duration::from_secs(1);
/// Queues of one script.
const RIGHTS_AT_ONCE: usize = 500;
/// Partitions that one command looks at.
const LOOKED_AT: usize = 100;
/// Looks at single partitions under way at once.
const LOOKS_AT_ONCE: usize = 16;

/// Starts the loop.
pub(super) fn start<C: Clone + Send + Sync + 'static>(worker: &Arc<Worker<C>>, loops: &Loops) {
    let worker = worker.clone();
    loops.spawn("keeping", STALL_AFTER, move |pulse| {
        let worker = worker.clone();
        async move { worker.look_after_idle(&pulse).await }
    });
}

/// When the loop ends, for whatever reason, every partition keeps its queue itself.
struct KeepAll<'a>(&'a OpenPartitions);

impl Drop for KeepAll<'_> {
    fn drop(&mut self) {
        self.0.keep_all();
    }
}

impl<C: Clone + Send + Sync + 'static> Worker<C> {
    async fn look_after_idle(&self, pulse: &Pulse) -> anyhow::Result<()> {
        let _keeping = KeepAll(&self.partitions);
        let (mut asked, mut names) = (None::<Instant>, Vec::new());
        while !pulse.stopping() {
            pulse.beat();
            let idle = self.partitions.that(Idle::is_idle);
            if asked.is_none_or(|at| at.elapsed() >= RIGHT_PERIOD) {
                asked = Some(Instant::now());
                // One that may begin nothing leaves the queues to others.
                let life = if self.engine.is_held() { Duration::ZERO } else { RIGHT_LIFE };
                self.ask_for_rights(&idle, life).await?;
                names = idle.iter().map(|partition| partition.queue.clone()).collect();
            }
            self.look_at(&idle).await?;
            self.partitions.note_look();
            pulse.sleep(IDLE_PERIOD).await;
        }
        // By their names: the partitions end now too.
        for some in names.chunks(RIGHTS_AT_ONCE) {
            self.ask_for(some.iter(), Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn ask_for_rights(&self, idle: &[Arc<Idle>], life: Duration) -> anyhow::Result<()> {
        for some in idle.chunks(RIGHTS_AT_ONCE) {
            // Before the answer, so that a slow one does not make it last longer.
            let until = Instant::now() + RIGHT_LIFE;
            let ours = self.ask_for(some.iter().map(|partition| &partition.queue), life).await?;
            for (partition, is_ours) in some.iter().zip(ours) {
                partition.keep_elsewhere((!is_ours).then_some(until));
            }
        }
        Ok(())
    }

    /// Of each queue whether its right is this process's now.
    async fn ask_for(&self, queues: impl Iterator<Item = &QueueName>, life: Duration) -> anyhow::Result<Vec<bool>> {
        let mut call = scripts::KEEPERS.prepare_invoke();
        call.key(WorkerKeys::new(self.engine.redis.prefix()).keepers()).arg(&self.consumer).arg(millis(life));
        for queue in queues {
            call.arg(queue.to_string());
        }
        let asked = call.invoke_async(&mut self.engine.redis.commands()).await;
        asked.context("asking for the right to keep idle queues")
    }

    async fn look_at(&self, idle: &[Arc<Idle>]) -> anyhow::Result<()> {
        let asked: Vec<(&Arc<Idle>, Vec<String>)> = idle
            .iter()
            .map(|partition| (partition, looked_for(partition)))
            .filter(|(_, keys)| !keys.is_empty())
            .collect();
        for some in asked.chunks(LOOKED_AT) {
            let is_one = !self.engine.redis.is_cluster();
            if is_one && self.found(some.iter().flat_map(|(_, keys)| keys)).await? == 0 {
                continue;
            }
            let looks: Vec<_> =
                some.iter().map(|(partition, keys)| async move { (partition, self.found(keys).await) }).collect();
            let mut looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
            while let Some((partition, found)) = looks.next().await {
                if found? > 0 {
                    partition.stir();
                }
            }
        }
        Ok(())
    }

    async fn found(&self, keys: impl IntoIterator<Item = &String>) -> anyhow::Result<u32> {
        let mut asked = redis::cmd("EXISTS");
        for key in keys {
            asked.arg(key);
        }
        asked.query_async(&mut self.engine.redis.commands()).await.context("looking at idle queues")
    }
}

/// The keys that say that there is something to follow. A keeper that follows something already sees all of them itself.
fn looked_for(partition: &Idle) -> Vec<String> {
    let keys = &partition.keys;
    if partition.is_kept_elsewhere() {
        return vec![keys.control(), keys.levels()];
    }
    if partition.is_quiet() { keys.stirring() } else { Vec::new() }
}
