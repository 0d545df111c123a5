//! A worker's sign of life: once a second it says who it is, what it consumes and what it runs. What it said is gone
//! soon after its last word, so a process that was killed leaves nothing behind.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::super::client::millis;
use super::super::inspect::{ConsumedQueue, RUNNING_SHOWN, RunningTask, WORKER_LIFE, WorkerReport};
use super::super::keys::{QueueName, WorkerKeys};
use super::super::scripts;
use super::super::task::TaskId;
use super::throttle::Throttle;
use super::{Running, STALL_AFTER, Worker};
use onrush_platform::loops::{Loops, Pulse};

/// Signs of life come this often.
const BEAT_PERIOD: Duration = Duration::from_secs(1);
/// Queues and partitions that a worker names.
const QUEUES_SHOWN: usize = 200;

/// A queue that the worker consumes.
pub(super) struct WorkerSeat {
    throttle: Arc<Throttle>,
    running: Running,
    stop: CancellationToken,
}

impl WorkerSeat {
    pub(super) fn new(throttle: &Arc<Throttle>, running: &Running, stop: &CancellationToken) -> Self {
        Self { throttle: throttle.clone(), running: running.clone(), stop: stop.clone() }
    }

    fn runs(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// The machine's name.
pub(super) fn host() -> String {
    let named = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let named = named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "onrush".to_owned())
}

/// Starts the signs of life. They go on until the last task has ended, so that a worker that stops can be watched.
pub(super) fn start<C: Clone + Send + Sync + 'static>(worker: &Arc<Worker<C>>, loops: &Loops) {
    let worker = worker.clone();
    loops.spawn("heartbeat", STALL_AFTER, move |pulse| {
        let worker = worker.clone();
        async move { worker.live(&pulse).await }
    });
}

impl<C: Clone + Send + Sync + 'static> Worker<C> {
    pub(super) fn take_seat(&self, queue: QueueName, seat: WorkerSeat) {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).insert(queue, seat);
    }

    async fn live(&self, pulse: &Pulse) -> anyhow::Result<()> {
        loop {
            let report = self.report();
            if pulse.stopping() && report.running_count == 0 {
                return self.take_leave().await;
            }
            self.beat(&report).await?;
            pulse.beat();
            if pulse.stopping() {
                tokio::time::sleep(BEAT_PERIOD / 10).await;
            } else {
                pulse.sleep(BEAT_PERIOD).await;
            }
        }
    }

    async fn beat(&self, report: &WorkerReport) -> anyhow::Result<()> {
        let keys = WorkerKeys::new(self.engine.redis.prefix());
        let said = serde_json::to_string(report).context("writing what a worker does")?;
        scripts::HEARTBEAT
            .key(keys.index())
            .key(keys.worker(&self.consumer))
            .arg(&self.consumer)
            .arg(said)
            .arg(millis(WORKER_LIFE))
            .invoke_async::<i64>(&mut self.engine.redis.commands())
            .await
            .context("giving a sign of life")?;
        Ok(())
    }

    async fn take_leave(&self) -> anyhow::Result<()> {
        let keys = WorkerKeys::new(self.engine.redis.prefix());
        redis::pipe()
            .del(keys.worker(&self.consumer))
            .zrem(keys.index(), &self.consumer)
            .query_async::<()>(&mut self.engine.redis.commands())
            .await
            .context("taking leave")
    }

    fn report(&self) -> WorkerReport {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|_, seat| !seat.stop.is_cancelled() || seat.runs() > 0);
        let mut report = WorkerReport {
            instance: self.consumer.clone(),
            host: self.host.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            queues: Vec::new(),
            running: Vec::new(),
            running_count: 0,
        };
        for (queue, seat) in seats.iter() {
            let running = seat.running.lock().unwrap_or_else(PoisonError::into_inner);
            if report.queues.len() < QUEUES_SHOWN {
                let (concurrency, paused) = seat.throttle.followed();
                let (queue, running) = (queue.to_string(), running.len() as u64);
                report.queues.push(ConsumedQueue { queue, concurrency: concurrency as u64, paused, running });
            }
            report.running_count += running.len() as u64;
            let shown = running.iter().take(RUNNING_SHOWN.saturating_sub(report.running.len()));
            report.running.extend(shown.map(|(key, task)| RunningTask {
                id: TaskId { key: *key, queue: queue.clone() }.to_string(),
                name: task.envelope.name.clone(),
                since: task.since,
            }));
        }
        report
    }
}
