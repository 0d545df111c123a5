//! Which processes run tasks, as they said last.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::super::client::{Engine, millis};
use super::super::keys::WorkerKeys;
use onrush_platform::clock::At;

/// A worker that gave no sign for this long is not shown any more.
pub(crate) const WORKER_LIFE: Duration = Duration::from_secs(10);
/// Tasks under way that a worker names.
pub(crate) const RUNNING_SHOWN: usize = 100;
/// Workers that a look considers.
const WORKERS_CONSIDERED: isize = 10_000;

/// What a worker says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerReport {
    /// Its name, another one at every start: the consumer in Redis.
    pub instance: String,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started_at: At,
    /// The queues and partitions that it consumes, 200 at most.
    #[cfg_attr(feature = "openapi", schema(max_items = 200))]
    pub queues: Vec<ConsumedQueue>,
    /// What it runs, 100 at most.
    #[cfg_attr(feature = "openapi", schema(max_items = 100))]
    pub running: Vec<RunningTask>,
    /// How many tasks it runs.
    pub running_count: u64,
}

/// A queue as a worker consumes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsumedQueue {
    /// The queue.
    pub queue: String,
    /// Batches that it runs at once.
    pub concurrency: u64,
    /// Whether it has stopped reading because the queue is paused.
    pub paused: bool,
    /// Tasks of the queue that it runs.
    pub running: u64,
}

/// A task that a worker runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunningTask {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Since when.
    pub since: At,
}

/// A worker as it is seen.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SeenWorker {
    /// What it said last.
    #[serde(flatten)]
    pub report: WorkerReport,
    /// How long ago that was.
    pub heartbeat_age_ms: u64,
}

impl Engine {
    /// Workers whose instance is above `after`, by instance.
    pub async fn workers(&self, after: &str, limit: usize) -> anyhow::Result<Vec<SeenWorker>> {
        let keys = WorkerKeys::new(self.redis.prefix());
        let mut commands = self.redis.commands();
        let mut instances: Vec<String> = redis::cmd("ZREVRANGE")
            .arg(keys.index())
            .arg(0)
            .arg(WORKERS_CONSIDERED - 1)
            .query_async(&mut commands)
            .await
            .context("listing workers")?;
        instances.retain(|instance| instance.as_str() > after);
        instances.sort_unstable();
        let mut seen = Vec::new();
        for instance in instances {
            if seen.len() == limit {
                break;
            }
            let key = keys.worker(&instance);
            let (said, left_ms): (Option<String>, i64) =
                redis::pipe().get(&key).pttl(&key).query_async(&mut commands).await.context("reading a worker")?;
            // Gone in the meantime, or of a version whose words we do not know.
            let Some(report) = said.and_then(|said| serde_json::from_str(&said).ok()) else { continue };
            let heartbeat_age_ms = millis(WORKER_LIFE).saturating_sub(u64::try_from(left_ms).unwrap_or(0));
            seen.push(SeenWorker { report, heartbeat_age_ms });
        }
        Ok(seen)
    }
}
