//! onrush: an HTTP order and seckill (flash-sale) backend for an online-course platform.
//!
//! One binary holds the API, the task workers and the scheduler; MySQL is the truth, Redis is the bell and the gate.
//! A tour, from the ground up:
//!
//! * [`platform`] (a crate): clock, ids, money, database, Redis, extractors, supervised loops. No business words.
//! * [`config`], [`error`], [`app`]: every setting, every refusal, and what every handler is given.
//! * [`texts`]: what people read, in Chinese and English.
//! * [`idempotency`]: the first answer to a request, kept with its effect.
//! * [`engine`] (a crate): the task engine on Redis Streams. No business words either.
//! * the features: [`auth`] with [`access`] (roles, permissions), [`catalogue`], [`wallet`]; [`orders`] on top of them;
//!   [`payments`] and [`seckill`] on top of orders; [`reconciliation`] of payments; [`reports`] on top of all. Inside each:
//!   `mod` (what it does), `model` (rules), `store` (SQL), `redis`, `http`, `jobs`.
//! * [`http`]: connections, what every request passes, every route. [`jobs`]: every background task.
//! * [`operations`]: what administrators see and set of the engine: queues, workers, tasks, dead letters, schedules. What they
//!   did, there and in the features, is in the [`audit`].
//! * [`limits`]: how many requests of each kind an account and an address may make in a minute.
//! * [`serve`]: runs all that, by role, and stops it in order.
//! * [`sandbox`]: a payment company that lives here, for those who have none yet.
//! * [`dev`]: what `onrush dev` needs: private servers, demo data.
//! * [`check`]: the invariants that must always hold, proved on a live system.

/// Tasks in the background, a crate of its own.
pub use onrush_engine as engine;
/// What everything stands on, a crate of its own.
pub use onrush_platform as platform;

pub mod app;
pub mod audit;
pub mod config;
pub mod error;
pub mod idempotency;
pub mod schema;
pub mod texts;

pub mod access;
pub mod auth;
pub mod catalogue;
pub mod orders;
pub mod payments;
pub mod reconciliation;
pub mod reports;
pub mod seckill;
pub mod wallet;

pub mod check;
pub mod dev;
pub mod http;
pub mod jobs;
pub mod limits;
pub mod operations;
pub mod sandbox;
pub mod serve;

/// The code of docs/TASKS.md, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/TASKS.md")]
pub struct TasksPage;
