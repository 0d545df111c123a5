//! The task engine: background work on Redis Streams with a consumer group per queue. No business words in here.
//!
//! What it promises
//!
//! * **At least once.** A task is acknowledged after its handler has returned; a worker that dies leaves it to be
//!   taken over within [`EngineSettings::lease`]. Handlers are idempotent.
//! * **One owner counts.** Result, acknowledgement and follow-ups are written by one script that first checks that
//!   this worker still owns the delivery (`finish.lua`): a worker that lost its lease changes nothing.
//! * **Nothing blocks a queue.** A task that kills its worker is delivered again on its own, and after
//!   [`EngineSettings::max_deliveries`] goes to the dead letters with the reason.
//! * **Everything is bounded**: batches, concurrency, retries, results (they expire), dead letters (the oldest go).
//!
//! A **queue** may be partitioned (`exports/<customer>`): each partition has its own keys, all with one hash tag, so
//! that every script works on Redis Cluster. A task's id carries its queue, so a poll knows where to look.
//!
//! What runs at an interval, by a crontab or at a date is a row of MySQL: [`schedule`].
//!
//! What operators see and do of all this: [`inspect`].
//!
//! Redis may lose all of this. What must not be lost is owed by a row in MySQL, and driven again by a sweep.

mod call;
mod client;
mod control;
mod envelope;
mod follow;
pub mod inspect;
mod keys;
mod outcome;
mod priority;
mod registry;
pub mod schedule;
mod scripts;
mod shapes;
mod task;
mod waiters;
mod worker;

pub use call::{Call, Member, Unique};
pub use client::{Engine, Item, Revoked, TaskStatus, envelope_of};
pub use control::Control;
pub use envelope::{Envelope, Failed, Record};
pub use inspect::QueueDepth;
pub use keys::{Keys, QueueName};
pub use outcome::Outcome;
pub use priority::{NotAPriority, Priority};
pub use registry::{Partitions, QueueSpec, Registry};
pub use shapes::is_wrong_type;
pub use task::{Effect, Job, Retry, State, Task, TaskId, TimeLimit};
pub use worker::{Missing, Worker};

// What the functions here are given.
pub use onrush_platform::clock::{At, Clock};
pub use onrush_platform::loops::Loops;
pub use onrush_platform::redis::Redis;

use std::time::Duration;

/// The code of the README, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadMe;

/// The tables of the engine: schedules, and the leases of those who look after them.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// The engine's settings.
#[derive(Debug, Clone, Copy)]
pub struct EngineSettings {
    /// How long the record of a task, with its result, is kept after its last change.
    pub result_ttl: Duration,
    /// A delivery whose worker gave no sign for this long is taken over.
    pub lease: Duration,
    /// Deliveries of one task before it goes to the dead letters.
    pub max_deliveries: u32,
}
