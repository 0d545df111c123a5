//! A worker's sign of life for what it has read: without it the deliveries are taken over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::keys::GROUP;
use super::super::scripts;
use super::Lane;

/// Renews the lease on deliveries until dropped.
pub(super) struct Lease {
    held: Arc<AtomicBool>,
    renewal: tokio::task::JoinHandle<()>,
}

impl Lease {
    pub(super) fn hold<C: Clone + Send + Sync + 'static>(lane: Lane<C>, entries: Vec<String>) -> Self {
        let held = Arc::new(AtomicBool::new(true));
        let holding = held.clone();
        let renewal = tokio::spawn(async move {
            let period = lane.worker.engine.settings.lease / 3;
            loop {
                tokio::time::sleep(period).await;
                if !holding.load(Ordering::SeqCst) {
                    return;
                }
                let mut call = scripts::RENEW.prepare_invoke();
                call.key(lane.keys.stream()).arg(GROUP).arg(&lane.worker.consumer).arg(&entries);
                if let Err(error) = call.invoke_async::<i64>(&mut lane.worker.engine.redis.commands()).await {
                    tracing::warn!(queue = %lane.queue, %error, "lease could not be renewed");
                }
            }
        });
        Self { held, renewal }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.store(false, Ordering::SeqCst);
        self.renewal.abort();
    }
}
