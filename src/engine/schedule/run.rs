//! The scheduler: the leader of all processes enqueues the tasks of due schedules.
//!
//! For each due schedule, in this order: the tasks of its occurrences are enqueued, each under a key that its
//! occurrence names; then the row moves on, if it is still as it was read. A leader that dies in between leaves the
//! row due: the next one enqueues the same keys again, which the queue has heard of. So do two leaders at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::super::client::Engine;
use super::super::keys::QueueName;
use super::super::task::TaskId;
use super::lease::{ATTEMPT_PERIOD, Lease};
use super::model::{Definition, Schedule, ScheduleId};
use super::store::Ran;
use super::tasks::{Schedulable, Tasks};
use super::{store, timing};
use crate::platform::clock::At;
use crate::platform::db::{Db, retrying};
use crate::platform::loops::{Loops, Pulse};

/// The lease of the leader.
const LEASE: &str = "scheduler";
/// The leader looks for due schedules this often.
const TICK: Duration = Duration::from_millis(250);
/// Due schedules of one pass.
const PAGE: u32 = 200;
/// A scheduler without a step for this long makes the process not ready.
const STALL_AFTER: Duration = Duration::from_secs(60);
/// Of an error, this much is kept, in characters.
const ERROR_KEPT: usize = 500;

/// Runs schedules; cheap to clone.
#[derive(Clone)]
pub struct Scheduler {
    db: Db,
    engine: Engine,
    tasks: Tasks,
    loops: Loops,
    run_here: RunHere,
    /// Tasks that this process runs itself at the moment.
    running_here: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// Does in this process what a task does on a worker, by the task's name.
pub type RunHere = Arc<dyn Fn(&'static str) -> BoxFuture<'static, Result<()>> + Send + Sync>;

impl Scheduler {
    /// A scheduler for these tasks. It does nothing until it is started, or a pass is run by hand. `run_here` is for
    /// those that must run without Redis.
    pub fn new(db: Db, engine: Engine, tasks: Tasks, loops: Loops, run_here: RunHere) -> Self {
        Self { db, engine, tasks, loops, run_here, running_here: Arc::default() }
    }

    /// Starts the loop. Those of `own` whose names are not there are made first; what is there stays as it is.
    pub fn start(self, own: Vec<Definition>) {
        let holder = format!("{}-{}", std::process::id(), Uuid::now_v7().as_simple());
        let (own, loops) = (Arc::new(own), self.loops.clone());
        loops.spawn("scheduler", STALL_AFTER, move |pulse| {
            let (scheduler, own, holder) = (self.clone(), own.clone(), holder.clone());
            async move { scheduler.run(pulse, &own, holder).await }
        });
    }

    async fn run(&self, pulse: Pulse, own: &[Definition], holder: String) -> Result<()> {
        self.make_absent(own).await?;
        let mut lease = Lease::new(self.db.clone(), LEASE, holder);
        while !pulse.stopping() {
            if self.engine.is_held() {
                lease.end().await?;
            }
            let leads = !self.engine.is_held() && lease.hold().await?;
            if leads {
                self.pass().await?;
            }
            pulse.beat();
            pulse.sleep(if leads { TICK } else { ATTEMPT_PERIOD }).await;
        }
        lease.end().await
    }

    /// Makes the schedules whose names are not there.
    pub async fn make_absent(&self, own: &[Definition]) -> Result<()> {
        let now = self.engine.clock.now();
        for definition in own {
            let made = retrying(|| async {
                let mut conn = self.db.acquire().await?;
                store::insert(&mut conn, ScheduleId::new(), definition, definition.next_run(now), now).await
            });
            made.await?;
        }
        Ok(())
    }

    /// Enqueues what is due now: one bounded pass, as the leader makes it. Returns how many schedules were due. What
    /// fails stays due and holds up no other.
    pub async fn pass(&self) -> Result<usize> {
        let now = self.engine.clock.now();
        let mut conn = self.db.acquire().await?;
        let due = store::due(&mut conn, &self.tasks.names(), now, PAGE).await?;
        drop(conn);
        let mut redis = Redis::Untried;
        let mut failed = None;
        for schedule in &due {
            if self.loops.stop_signal().is_cancelled() {
                break;
            }
            if let Err(error) = self.run_due(schedule, now, &mut redis).await {
                failed.get_or_insert(error.context(format!("schedule {}", schedule.definition.name)));
            }
        }
        failed.map_or(Ok(due.len()), Err)
    }

    async fn run_due(&self, schedule: &Schedule, now: At, redis: &mut Redis) -> Result<()> {
        let (Some(first), Some(task)) = (schedule.next_run_at, self.tasks.get(&schedule.definition.task)) else {
            return Ok(());
        };
        let definition = &schedule.definition;
        let timing = match definition.timing() {
            Ok(timing) => timing,
            // Nobody but a person at the database can have written it.
            Err(faults) => return self.set_aside(schedule, &format!("{faults:?}")).await,
        };
        let most = usize::try_from(definition.catch_up_max).unwrap_or(1);
        let runs = timing::to_run(&timing, first, now, definition.catch_up, most);
        let ran = self.send(schedule, task, &runs, redis).await?;
        let moved = retrying(|| async {
            let mut conn = self.db.acquire().await?;
            store::advance(&mut conn, schedule, timing.next_after(now), &ran, now).await
        });
        if !moved.await? {
            tracing::debug!(schedule.name = %definition.name, "schedule was moved on, or edited, by another");
        }
        Ok(())
    }

    /// Enqueues the tasks of `runs`, or does what stands in for them.
    async fn send(&self, schedule: &Schedule, task: &Schedulable, runs: &[At], redis: &mut Redis) -> Result<Ran> {
        // Of several at once only one could run without an overlap.
        let runs = if schedule.definition.overlap { runs } else { &runs[..runs.len().min(1)] };
        if runs.is_empty() {
            count(task, "missed");
            return Ok(Ran::default());
        }
        // A Redis that does not answer costs time: it is asked once a pass.
        let sent = match redis {
            Redis::Away => Err(anyhow::anyhow!("Redis is away")),
            Redis::Untried => self.enqueue(schedule, task, runs).await,
        };
        let Err(error) = sent else { return sent };
        *redis = Redis::Away;
        if !task.without_redis {
            return Err(error);
        }
        tracing::debug!(task.name = task.name, %error, "task cannot be enqueued and runs here");
        self.run_here(task.name);
        count(task, "here");
        Ok(Ran { runs: 1, last_task: None })
    }

    async fn enqueue(&self, schedule: &Schedule, task: &Schedulable, runs: &[At]) -> Result<Ran> {
        if !schedule.definition.overlap && self.runs_still(schedule).await? {
            count(task, "overlap");
            return Ok(Ran::default());
        }
        let queue: QueueName = task.queue.parse().with_context(|| format!("queue of {}", task.name))?;
        let keys: Vec<Uuid> = runs.iter().map(|occurrence| schedule.task_key(*occurrence)).collect();
        (task.enqueue)(self.engine.clone(), schedule.definition.args.clone(), keys.clone()).await?;
        count(task, "enqueued");
        let last_task = keys.last().map(|key| TaskId { key: *key, queue }.to_string());
        Ok(Ran { runs: i64::try_from(runs.len())?, last_task })
    }

    /// Whether the last task of a schedule has not ended. One that Redis has forgotten has.
    async fn runs_still(&self, schedule: &Schedule) -> Result<bool> {
        let Some(last) = schedule.last_task.as_deref().and_then(|id| id.parse::<TaskId>().ok()) else {
            return Ok(false);
        };
        Ok(self.engine.status(&last).await?.is_some_and(|status| !status.state.is_final()))
    }

    /// Does here what a task does on a worker, once at a time.
    fn run_here(&self, name: &'static str) {
        let (run, all) = ((self.run_here)(name), self.running_here.clone());
        if !all.lock().unwrap_or_else(PoisonError::into_inner).insert(name) {
            return;
        }
        self.loops.tracker().spawn(async move {
            // A task of its own: after a panic, too, the name must leave the set.
            match tokio::spawn(run).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(task.name = name, error = format!("{error:#}"), "task failed"),
                Err(panic) => tracing::error!(task.name = name, %panic, "task panicked"),
            }
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        });
    }

    async fn set_aside(&self, schedule: &Schedule, why: &str) -> Result<()> {
        tracing::error!(schedule.name = %schedule.definition.name, why, "schedule cannot be read and is set aside");
        let why: String = why.chars().take(ERROR_KEPT).collect();
        retrying(|| async { store::set_aside(&mut *self.db.acquire().await?, schedule, &why).await }).await
    }
}

/// What a pass knows of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Redis {
    Untried,
    Away,
}

fn count(task: &Schedulable, outcome: &'static str) {
    metrics::counter!("onrush_scheduled_total", "task" => task.name, "outcome" => outcome).increment(1);
}
