//! Puts the tasks of occurrences into their queue: the one place where schedules meet Redis.

use anyhow::Context;
use uuid::Uuid;

use super::super::call::{Call, Unique};
use super::super::client::Engine;
use super::super::task::Task;

/// Enqueues one task for each of `keys`, each once: two leaders may do it at the same time, or one after the other.
pub(super) async fn enqueue<T: Task>(engine: Engine, args: String, keys: Vec<Uuid>) -> anyhow::Result<()> {
    let args: T = serde_json::from_str(&args).with_context(|| format!("arguments of {}", T::NAME))?;
    for key in keys {
        let call = Call::keyed(key, &args).with_context(|| format!("queue of {}", T::NAME))?;
        engine.call(&call, None, Unique::For(engine.settings().result_ttl)).await?;
    }
    Ok(())
}
