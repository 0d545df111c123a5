//! What a partition does about a key of its queue that is of a wrong type: it says so, seldom, and does the rest of its work. A
//! loop that failed for it would make the process unready, and with it stop every other queue.

use std::time::Duration;

use super::super::shapes::is_wrong_type;
use super::Partition;
use onrush_platform::seldom::Seldom;

/// While it lasts it is told this often.
const TOLD: Duration = Duration::from_secs(60);
/// And tried again this often, by who can do nothing else.
pub(super) const TRIED: Duration = Duration::from_secs(1);

/// What a partition tells once in a while.
#[derive(Default)]
pub(super) struct FaultNotices {
    misshapen: Seldom,
    /// That an outbox waits.
    pub(super) outbox: Seldom,
}

impl<C> Partition<C> {
    /// What a step comes to; none when a key of the queue is of a wrong type.
    pub(super) async fn spare<T>(&self, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
        match step.await {
            Ok(done) => Ok(Some(done)),
            Err(error) if is_wrong_type(&error) => {
                self.tell_misshapen(&error).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn tell_misshapen(&self, error: &anyhow::Error) {
        let engine = &self.worker.engine;
        metrics::counter!("onrush_queue_faults_total", "queue" => self.queue.base().to_owned()).increment(1);
        if self.told.misshapen.may(engine.clock.now(), TOLD) {
            let keys = engine.misshapen(&self.queue).await.unwrap_or_default().join("; ");
            let error = format!("{error:#}");
            tracing::error!(queue = %self.queue, keys, error, "a key of this queue is of a type that is not its own, and has to be deleted");
        }
    }
}
