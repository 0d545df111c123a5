//! What the scheduler is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use futures_util::future::BoxFuture;

use super::super::client::Engine;
use super::tasks::Tasks;
use onrush_platform::clock::At;
use onrush_platform::db::Db;
use onrush_platform::loops::Loops;
use onrush_platform::seldom::Seldom;

/// Runs schedules; cheap to clone.
#[derive(Clone)]
pub struct Scheduler {
    pub(super) db: Db,
    pub(super) engine: Engine,
    pub(super) tasks: Tasks,
    pub(super) loops: Loops,
    pub(super) run_here: RunHere,
    /// Tasks that this process runs itself at the moment.
    pub(super) running_here: Arc<Mutex<BTreeSet<&'static str>>>,
    /// Whether this process has made the product's own schedules.
    pub(super) made: Arc<AtomicBool>,
    pub(super) leads: Arc<AtomicBool>,
    pub(super) waits: Arc<Seldom>,
}

/// Does in this process what a task does on a worker, by the task's name.
pub type RunHere = Arc<dyn Fn(&'static str) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// What a look knows of Redis, by queue: whether it answers there.
pub(super) type Answers = BTreeMap<&'static str, bool>;

/// The instants of a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present {
    /// Now.
    pub now: At,
    /// Since when somebody has been at it without a break.
    pub since: At,
}

impl Scheduler {
    /// A scheduler for these tasks. It does nothing until it is started, or a pass is run by hand. `run_here` is for
    /// those that must run without Redis.
    pub fn new(db: Db, engine: Engine, tasks: Tasks, loops: Loops, run_here: RunHere) -> Self {
        let (running_here, made, leads, waits) = Default::default();
        Self { db, engine, tasks, loops, run_here, running_here, made, leads, waits }
    }
}
