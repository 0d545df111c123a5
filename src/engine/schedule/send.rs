//! Puts the tasks of occurrences into their queue: the one place where schedules meet Redis.

use anyhow::Context;
use uuid::Uuid;

use super::super::client::{Engine, Item};
use super::super::task::{Task, TaskId};

/// Enqueues one task for each of `keys`, those that the queue has heard of left out: also when they have ended.
pub(super) async fn enqueue<T: Task>(engine: Engine, args: String, keys: Vec<Uuid>) -> anyhow::Result<()> {
    let queue = T::QUEUE.parse().with_context(|| format!("queue of {}", T::NAME))?;
    let mut id = TaskId { key: Uuid::nil(), queue };
    let mut items = Vec::with_capacity(keys.len());
    for key in keys {
        id.key = key;
        // Two leaders that look here at once both enqueue; while the task waits the queue takes it on once.
        if engine.status(&id).await?.is_none() {
            let args: T = serde_json::from_str(&args).with_context(|| format!("arguments of {}", T::NAME))?;
            items.push(Item::now(key, args));
        }
    }
    engine.enqueue(&items).await.map(drop)
}
