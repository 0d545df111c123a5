//! A worker's sign of life for what it has read: without it the deliveries are taken over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::keys::GROUP;
use super::super::registry::Delivery;
use super::super::scripts;
use super::Partition;
use super::batch::Batch;

/// A task is shown as started when it has run for this long: most end sooner, and are spared the writing.
const STARTED_AFTER: Duration = Duration::from_millis(50);

/// Renews the lease on deliveries until dropped.
pub(super) struct TaskLease {
    held: Arc<AtomicBool>,
    renewal: tokio::task::JoinHandle<()>,
}

impl TaskLease {
    pub(super) fn hold<C: Clone + Send + Sync + 'static>(partition: Partition<C>, batch: &Batch) -> Self {
        let held = Arc::new(AtomicBool::new(true));
        let holding = held.clone();
        let deliveries = batch.readable.clone();
        let unreadable: Vec<_> = batch.unreadable.iter().map(|(delivery, _)| delivery.clone()).collect();
        let renewal = tokio::spawn(async move {
            let period = partition.worker.engine.settings.lease / 3;
            let mut next = tokio::time::Instant::now() + period;
            tokio::time::sleep(STARTED_AFTER).await;
            // What runs for long may be taken back: the keeper looks for that.
            partition.idle.bell.notify_one();
            loop {
                // At first all of them, then whoever has news.
                if let Err(error) = partition.mark_started(&deliveries).await {
                    tracing::debug!(queue = %partition.queue, error = format!("{error:#}"), "tasks could not be marked as started");
                }
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = news(&deliveries) => {
                        tokio::time::sleep(STARTED_AFTER).await;
                        continue;
                    }
                }
                next += period;
                if !holding.load(Ordering::SeqCst) {
                    return;
                }
                let mut call = scripts::RENEW.prepare_invoke();
                call.key(partition.stream()).arg(GROUP).arg(&partition.worker.consumer);
                for delivery in deliveries.iter().chain(&unreadable) {
                    call.arg(&delivery.entry);
                }
                if let Err(error) = call.invoke_async::<i64>(&mut partition.worker.engine.redis.commands()).await {
                    tracing::warn!(queue = %partition.queue, %error, "lease could not be renewed");
                }
            }
        });
        Self { held, renewal }
    }
}

/// Ends when one of the tasks has progress to tell.
async fn news(deliveries: &[Arc<Delivery>]) {
    if deliveries.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(deliveries.iter().map(|delivery| Box::pin(delivery.control.changed()))).await;
}

impl Drop for TaskLease {
    fn drop(&mut self) {
        self.held.store(false, Ordering::SeqCst);
        self.renewal.abort();
    }
}
