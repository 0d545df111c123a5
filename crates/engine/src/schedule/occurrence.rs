//! One due schedule: the tasks of its occurrences are enqueued, then its row moves on.

use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::RedisError;
use uuid::Uuid;

use super::super::keys::QueueName;
use super::super::task::TaskId;
use super::model::Schedule;
use super::scheduler::{Answers, Present, Scheduler};
use super::store::Ran;
use super::tasks::{Schedulable, Tasks};
use super::timing::Timing;
use super::{store, timing};
use onrush_platform::clock::At;
use onrush_platform::db::retrying;
use onrush_platform::fault::FieldFault;

/// Redis has this long to say that it is there; it is asked once a look for each queue. What can do without it waits for
/// that.
const REDIS_PATIENCE: Duration = Duration::from_millis(500);
/// Of an error, this much is kept, in characters.
const ERROR_KEPT: usize = 500;

impl Scheduler {
    /// Runs the occurrences that are due, from the `first` that has not run, and moves the row on.
    pub(super) async fn run_occurrences(
        &self,
        schedule: &Schedule,
        task: &Schedulable,
        timing: &Timing,
        first: At,
        present: Present,
        answers: &mut Answers,
    ) -> Result<()> {
        let (definition, Present { now, since }) = (&schedule.definition, present);
        let most = usize::try_from(definition.catch_up_max).unwrap_or(1);
        let runs = timing::to_run(timing, first, since, now, definition.catch_up, most);
        let ran = self.send(schedule, task, &runs, answers).await?;
        let moved = retrying(|| async {
            let mut conn = self.db.acquire().await?;
            store::advance(&mut conn, schedule, timing.next_after(now), &ran, now).await
        });
        if !moved.await? {
            tracing::debug!(schedule.name = %definition.name, "schedule was moved on, or edited, by another");
            // What was sent before an edit of the times has run all the same.
            retrying(|| async { store::note_run(&mut *self.db.acquire().await?, schedule, &ran, now).await }).await?;
        }
        Ok(())
    }

    /// Enqueues the tasks of `runs`, or does what stands in for them.
    async fn send(&self, schedule: &Schedule, task: &Schedulable, runs: &[At], answers: &mut Answers) -> Result<Ran> {
        // Of several at once only one could run without an overlap.
        let runs = if schedule.definition.overlap { runs } else { &runs[..runs.len().min(1)] };
        if runs.is_empty() {
            count(task, "missed");
            return Ok(Ran::default());
        }
        let sent = if self.answers(task.queue, answers).await {
            self.enqueue(schedule, task, runs).await
        } else {
            Err(anyhow::anyhow!("Redis is away"))
        };
        let Err(error) = sent else { return sent };
        if error.chain().any(|cause| cause.is::<RedisError>()) {
            answers.insert(task.queue, false);
        }
        if !task.without_redis {
            return Err(error);
        }
        tracing::debug!(task.name = task.name, %error, "task cannot be enqueued and runs here");
        self.run_here(task.name);
        count(task, "here");
        Ok(Ran { runs: 1, last_task: None })
    }

    /// Whether Redis answers where a queue is: one that is silent would cost each schedule its whole patience.
    async fn answers(&self, queue: &'static str, answers: &mut Answers) -> bool {
        if let Some(known) = answers.get(queue) {
            return *known;
        }
        let there = match queue.parse::<QueueName>() {
            Ok(name) => {
                let asked = tokio::time::timeout(REDIS_PATIENCE, self.engine.queue_exists(&name)).await;
                matches!(asked, Ok(Ok(_)))
            }
            // Enqueueing says what is wrong with it.
            Err(_) => true,
        };
        answers.insert(queue, there);
        there
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

    pub(super) async fn set_aside(&self, schedule: &Schedule, faults: &[FieldFault]) -> Result<()> {
        let why: Vec<String> = faults.iter().map(|fault| format!("{} {}", fault.field, fault.message)).collect();
        let why: String = why.join("; ").chars().take(ERROR_KEPT).collect();
        tracing::error!(schedule.name = %schedule.definition.name, why, "schedule cannot be read and is set aside");
        retrying(|| async { store::set_aside(&mut *self.db.acquire().await?, schedule, &why).await }).await
    }
}

/// Makes the counters of what may be scheduled, so that their first event is an increase and not a beginning.
pub(super) fn prepare_counters(tasks: &Tasks) {
    for task in tasks.names() {
        for outcome in ["enqueued", "overlap", "missed", "here"] {
            metrics::counter!("onrush_scheduled_total", "task" => task, "outcome" => outcome).increment(0);
        }
    }
}

fn count(task: &Schedulable, outcome: &'static str) {
    metrics::counter!("onrush_scheduled_total", "task" => task.name, "outcome" => outcome).increment(1);
}
