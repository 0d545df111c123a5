//! What operators see and do while tasks run: queues, workers, tasks, dead letters.
//!
//! * **A setting of a queue** (paused, concurrency) lies in Redis in the queue's [`control`](super::Keys::control) hash,
//!   without an expiry; every worker's keeper reads it with its look for due tasks, at least twice a second.
//! * **Rates** come from the counters in the queue's [`meta`](super::Keys::meta): the keepers note every five seconds, or
//!   less often while nothing moves, how they stand, for a minute, and a look compares the oldest note with the present.
//! * **Lists are bounded pages.** Nothing reads keys by a pattern: what waits is in the streams and the delayed set, what
//!   runs is among the streams' pending entries, what ended is in the [`ended`](super::Keys::ended) stream, of which each
//!   acknowledgement writes one entry for its whole batch.
//! * **An action on a task is one script**: twice at once is harmless.

mod dead_letters;
mod list;
mod queues;
mod tasks;
mod workers;

pub use dead_letters::Letter;
pub use list::{ListPosition, ListedTask, TaskFilter};
pub use queues::{QueueDepth, QueueState};
pub use tasks::{Found, HeldTask, Retried};
pub use workers::{ConsumedQueue, RunningTask, SeenWorker, WorkerReport};
pub(super) use workers::{RUNNING_SHOWN, WORKER_LIFE};
