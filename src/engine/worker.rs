//! The side of the engine that runs tasks: reads, runs, acknowledges.
//!
//! Per partition there are two loops. The **reader** takes a permit, reads a batch and hands it to a task of its own;
//! the permits bound what is under way. The [`keeper`] moves due tasks to the stream, takes over deliveries whose
//! worker gave no sign for a lease, and removes consumers that are long gone.
//!
//! A handler is never cancelled (it may be inside a database transaction). A stop ends the reading, waits for what
//! runs, and gives back what was read and not begun.

mod keeper;
mod lease;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use redis::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::lease::Lease;
use super::client::{Engine, millis};
use super::keys::{GROUP, Keys, QueueName};
use super::registry::{Delivery, QueueSpec, Registry};
use super::scripts;
use super::task::{Job, Outcome, State, TaskId};
use crate::platform::loops::{Loops, Pulse};

/// A read waits this long for work; also how long a stop may wait for a reader.
const BLOCK: Duration = Duration::from_millis(500);
/// Which partitions exist is asked this often.
const PARTITIONS_PERIOD: Duration = Duration::from_millis(500);
/// Dead letters kept per queue; the oldest go first.
const DEAD_LETTERS_KEPT: u64 = 10_000;
/// A loop without a step for this long makes the process not ready.
const STALL_AFTER: Duration = Duration::from_secs(15);

/// Consumes the queues of a [`Registry`].
pub struct Worker<C> {
    engine: Engine,
    registry: Registry<C>,
    context: C,
    consumer: String,
    stopping: CancellationToken,
}

/// What the loops of one partition share.
struct Lane<C> {
    worker: Arc<Worker<C>>,
    spec: QueueSpec,
    queue: QueueName,
    keys: Keys,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl<C> Clone for Lane<C> {
    fn clone(&self) -> Self {
        Self {
            worker: self.worker.clone(),
            spec: self.spec,
            queue: self.queue.clone(),
            keys: self.keys.clone(),
            permits: self.permits.clone(),
            stop: self.stop.clone(),
        }
    }
}

impl<C: Clone + Send + Sync + 'static> Worker<C> {
    /// Starts every loop of a worker. Its consumer name is new at every start: a name shared by two processes would
    /// make one take the other's deliveries for its own.
    pub fn start(engine: Engine, registry: Registry<C>, context: C, loops: &Loops) {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "onrush".to_owned());
        let consumer = format!("{host}-{}-{}", std::process::id(), Uuid::now_v7().as_simple());
        let worker = Arc::new(Self { engine, registry, context, consumer, stopping: loops.stop_signal() });
        for (spec, partitions) in &worker.registry.queues {
            match partitions {
                None => {
                    if let Ok(queue) = spec.name.parse() {
                        worker.clone().open(*spec, queue, worker.stopping.clone(), loops);
                    } else {
                        tracing::error!(queue = spec.name, "queue has a bad name and is not consumed");
                    }
                }
                Some(partitions) => {
                    let (worker, spec, partitions, all) = (worker.clone(), *spec, partitions.clone(), loops.clone());
                    loops.spawn(format!("partitions:{}", spec.name), STALL_AFTER, move |pulse| {
                        follow_partitions(worker.clone(), spec, partitions.clone(), all.clone(), pulse)
                    });
                }
            }
        }
    }

    fn open(self: Arc<Self>, spec: QueueSpec, queue: QueueName, stop: CancellationToken, loops: &Loops) {
        let keys = self.engine.keys(&queue);
        let permits = Arc::new(Semaphore::new(spec.concurrency));
        let lane = Lane { worker: self, spec, queue: queue.clone(), keys, permits, stop: stop.clone() };
        let (reader, tracker) = (lane.clone(), loops.tracker().clone());
        loops.spawn_until(format!("read:{queue}"), STALL_AFTER, stop.clone(), move |pulse| {
            let (lane, tracker) = (reader.clone(), tracker.clone());
            async move { lane.read(pulse, tracker).await }
        });
        let tracker = loops.tracker().clone();
        loops.spawn_until(format!("keep:{queue}"), STALL_AFTER, stop, move |pulse| {
            let (lane, tracker) = (lane.clone(), tracker.clone());
            async move { lane.keep(pulse, tracker).await }
        });
    }
}

/// Opens a lane for each partition that appears and closes it when it is gone.
async fn follow_partitions<C: Clone + Send + Sync + 'static>(
    worker: Arc<Worker<C>>,
    spec: QueueSpec,
    partitions: super::registry::Partitions<C>,
    loops: Loops,
    pulse: Pulse,
) -> anyhow::Result<()> {
    let mut open: HashMap<QueueName, CancellationToken> = HashMap::new();
    // When this loop ends for whatever reason its lanes end too, and are opened again by its next run.
    let lanes = CloseAll(worker.stopping.child_token());
    while !pulse.stopping() {
        match partitions(worker.context.clone()).await {
            Ok(wanted) => {
                for queue in &wanted {
                    if !open.contains_key(queue) {
                        let stop = lanes.0.child_token();
                        worker.clone().open(spec, queue.clone(), stop.clone(), &loops);
                        open.insert(queue.clone(), stop);
                    }
                }
                open.retain(|queue, stop| {
                    let keep = wanted.contains(queue);
                    if !keep {
                        stop.cancel();
                    }
                    keep
                });
                pulse.beat();
            }
            // The lanes that are open stay so; without a beat, readiness tells when this goes on for long.
            Err(error) => {
                tracing::warn!(queue = spec.name, error = format!("{error:#}"), "partitions could not be listed");
            }
        }
        pulse.sleep(PARTITIONS_PERIOD).await;
    }
    Ok(())
}

/// Closes the lanes opened under it when dropped.
struct CloseAll(CancellationToken);
impl Drop for CloseAll {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl<C: Clone + Send + Sync + 'static> Lane<C> {
    async fn read(self, pulse: Pulse, tracker: tokio_util::task::TaskTracker) -> anyhow::Result<()> {
        let mut connection = self.worker.engine.redis.blocking().await?;
        self.ensure_group().await?;
        while !pulse.stopping() {
            pulse.beat();
            let permit = tokio::select! {
                permit = self.permits.clone().acquire_owned() => permit.context("taking a permit")?,
                () = pulse.sleep(BLOCK) => continue,
            };
            let reply: Result<Value, redis::RedisError> = redis::cmd("XREADGROUP")
                .arg("GROUP")
                .arg(GROUP)
                .arg(&self.worker.consumer)
                .arg("COUNT")
                .arg(self.spec.batch)
                .arg("BLOCK")
                .arg(millis(BLOCK))
                .arg("STREAMS")
                .arg(self.keys.stream())
                .arg(">")
                .query_async(&mut connection)
                .await;
            let reply = match reply {
                Ok(reply) => reply,
                // The stream is gone (Redis was emptied): the group is made again and reading goes on.
                Err(error) if error.code() == Some("NOGROUP") => {
                    drop(permit);
                    self.ensure_group().await?;
                    continue;
                }
                Err(error) => return Err(error).context("reading tasks"),
            };
            let entries = first_stream(reply);
            if entries.is_empty() {
                continue;
            }
            let deliveries = self.deliveries(entries, 1);
            if pulse.stopping() {
                self.give_back(&deliveries).await?;
                break;
            }
            let lane = self.clone();
            tracker.spawn(async move { lane.process(deliveries, permit).await });
        }
        Ok(())
    }

    async fn ensure_group(&self) -> anyhow::Result<()> {
        let made: Result<(), redis::RedisError> = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(self.keys.stream())
            .arg(GROUP)
            .arg("0")
            .arg("MKSTREAM")
            .query_async(&mut self.worker.engine.redis.commands())
            .await;
        match made {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error).context("making the consumer group"),
            _ => Ok(()),
        }
    }

    fn deliveries(&self, entries: Vec<(String, HashMap<String, String>)>, delivery: u32) -> Vec<Delivery> {
        let read = |(entry, mut fields): (String, HashMap<String, String>)| {
            let mut field = |name: &str| fields.remove(name).unwrap_or_default();
            // An entry without a key is no envelope of ours; it gets one and ends in the dead letters as unknown.
            let key = Uuid::try_parse(&field("key")).unwrap_or_else(|_| Uuid::now_v7());
            let attempt = field("attempt").parse().unwrap_or(1);
            let id = TaskId { key, queue: self.queue.clone() };
            Delivery { entry, name: field("name"), args: field("args"), job: Job { id, attempt, delivery, args: () } }
        };
        entries.into_iter().map(read).collect()
    }

    /// Runs deliveries to their end: every one is acknowledged, scheduled again, or left to be taken over.
    async fn process(&self, deliveries: Vec<Delivery>, permit: OwnedSemaphorePermit) {
        let lease = Lease::hold(self.clone(), deliveries.iter().map(|d| d.entry.clone()).collect());
        if let Err(error) = self.mark_started(&deliveries).await {
            tracing::debug!(queue = %self.queue, error = format!("{error:#}"), "tasks could not be marked as started");
        }
        let mut groups: HashMap<String, Vec<Delivery>> = HashMap::new();
        for delivery in deliveries {
            groups.entry(delivery.name.clone()).or_default().push(delivery);
        }
        for (name, group) in groups {
            self.run_group(&name, group).await;
        }
        drop(lease);
        drop(permit);
    }

    async fn run_group(&self, name: &str, group: Vec<Delivery>) {
        let Some(task) = self.worker.registry.tasks.get(name) else {
            let dead = group.into_iter().map(|d| (d, Ending::Dead(format!("no handler for task {name:?}")))).collect();
            return self.finish(name, dead).await;
        };
        let mut bad = Vec::new();
        let mut good = Vec::new();
        for delivery in group {
            match (task.parses)(&delivery.args) {
                Ok(()) => good.push(delivery),
                Err(why) => bad.push((delivery, Ending::Dead(format!("arguments do not fit: {why}")))),
            }
        }
        if !bad.is_empty() {
            self.finish(name, bad).await;
        }
        if good.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcomes = self.run(task, good.clone()).await;
        let outcomes = match outcomes {
            Some(outcomes) => outcomes,
            // The handler panicked on the batch: one by one, so that the task at fault fails alone.
            None if good.len() > 1 => {
                let mut each = Vec::with_capacity(good.len());
                for delivery in &good {
                    let outcome = self.run(task, vec![delivery.clone()]).await.and_then(|mut one| one.pop());
                    each.push(outcome.unwrap_or_else(panicked));
                }
                each
            }
            None => vec![panicked()],
        };
        metrics::histogram!("onrush_task_batch_duration_seconds", "task" => name.to_owned())
            .record(started.elapsed().as_secs_f64());
        let mut outcomes = outcomes.into_iter();
        let mut endings = Vec::with_capacity(good.len());
        for delivery in good {
            let outcome =
                outcomes.next().unwrap_or_else(|| Outcome::Retry(anyhow::anyhow!("the handler gave no answer")));
            let ending = self.ending(&delivery, outcome, task.retry);
            endings.push((delivery, ending));
        }
        self.finish(name, endings).await;
    }

    /// `None` when the handler panicked.
    async fn run(&self, task: &super::registry::Registered<C>, batch: Vec<Delivery>) -> Option<Vec<Outcome>> {
        tokio::spawn((task.run)(self.worker.context.clone(), batch)).await.ok()
    }

    fn ending(&self, delivery: &Delivery, outcome: Outcome, retry: super::task::Retry) -> Ending {
        match outcome {
            Outcome::Success(result) => Ending::Success(result.to_string(), Vec::new()),
            Outcome::SuccessWith { result, effects } => Ending::Success(result.to_string(), effects),
            Outcome::Failure { result, effects } => Ending::Failure(result.to_string(), effects),
            Outcome::Again(pause) => Ending::Retry { pause, attempt: delivery.job.attempt, why: String::new() },
            Outcome::Retry(error) => {
                let why = format!("{error:#}");
                if delivery.job.attempt >= retry.attempts {
                    return Ending::Dead(why);
                }
                let pause = retry.pause(delivery.job.attempt, Uuid::now_v7().as_u64_pair().1);
                tracing::warn!(task.id = %delivery.job.id, task.name = delivery.name, attempt = delivery.job.attempt, error = why, "task attempt failed");
                Ending::Retry { pause, attempt: delivery.job.attempt + 1, why }
            }
        }
    }

    async fn mark_started(&self, deliveries: &[Delivery]) -> anyhow::Result<()> {
        let mut call = scripts::START.prepare_invoke();
        call.arg(self.worker.engine.clock.now().ms()).arg(&self.worker.consumer);
        for delivery in deliveries {
            call.key(self.keys.task(delivery.job.id.key.as_simple())).arg(delivery.job.attempt);
        }
        call.invoke_async::<i64>(&mut self.worker.engine.redis.commands()).await.context("marking tasks as started")?;
        Ok(())
    }

    /// Writes endings; tried until Redis takes them or the lease is somebody else's, so that a short outage of Redis
    /// after a commit does not make the task run again.
    async fn finish(&self, name: &str, endings: Vec<(Delivery, Ending)>) {
        for (delivery, ending) in &endings {
            metrics::counter!("onrush_tasks_total", "task" => name.to_owned(), "outcome" => ending.label())
                .increment(1);
            if let Ending::Dead(why) = ending {
                tracing::error!(task.id = %delivery.job.id, task.name = name, reason = why, "task went to the dead letters");
            }
        }
        let mut pause = Duration::from_millis(50);
        for _ in 0..FINISH_ATTEMPTS {
            match self.try_finish(name, &endings).await {
                Ok(owned) => {
                    if owned < endings.len() {
                        tracing::warn!(queue = %self.queue, lost = endings.len() - owned, "some deliveries belonged to another worker by now");
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(queue = %self.queue, error = format!("{error:#}"), "results could not be written yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
        tracing::error!(queue = %self.queue, tasks = endings.len(), "results could not be written; the tasks will run again");
    }

    async fn try_finish(&self, name: &str, endings: &[(Delivery, Ending)]) -> anyhow::Result<usize> {
        let engine = &self.worker.engine;
        let now = engine.clock.now().ms();
        let mut call = scripts::FINISH.prepare_invoke();
        let keys = &self.keys;
        call.key(keys.stream()).key(keys.meta()).key(keys.delayed()).key(keys.envelopes()).key(keys.dead());
        for (delivery, _) in endings {
            call.key(keys.task(delivery.job.id.key.as_simple()));
        }
        call.arg(GROUP).arg(&self.worker.consumer).arg(now).arg(millis(engine.settings.result_ttl));
        call.arg(keys.done()).arg(DEAD_LETTERS_KEPT).arg(endings.len());
        let mut next_key = 5 + endings.len();
        for (delivery, ending) in endings {
            call.arg(&delivery.entry).arg(delivery.job.id.key.as_simple().to_string()).arg(name);
            let no_effects: &[super::task::Effect] = &[];
            let (what, state, result, due, attempt, effects) = match ending {
                Ending::Success(result, effects) => {
                    ("end", State::Success, result.clone(), 0, delivery.job.attempt, effects.as_slice())
                }
                Ending::Failure(result, effects) => {
                    ("end", State::Failure, result.clone(), 0, delivery.job.attempt, effects.as_slice())
                }
                Ending::Retry { pause, attempt, why } => {
                    let due = now.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX));
                    ("retry", State::Retry, serde_json::json!({ "error": why }).to_string(), due, *attempt, no_effects)
                }
                Ending::Dead(why) => (
                    "dead",
                    State::Failure,
                    serde_json::json!({ "error": why }).to_string(),
                    0,
                    delivery.job.attempt,
                    no_effects,
                ),
            };
            call.arg(what).arg(state.as_str()).arg(result).arg(due).arg(&delivery.args).arg(attempt).arg(effects.len());
            for effect in effects {
                next_key += 1;
                call.key(&effect.key);
                call.arg(next_key).arg(effect.command).arg(effect.args.len()).arg(&effect.args);
            }
        }
        call.invoke_async(&mut engine.redis.commands()).await.context("writing results")
    }

    async fn give_back(&self, deliveries: &[Delivery]) -> anyhow::Result<()> {
        let mut call = scripts::GIVE_BACK.prepare_invoke();
        call.key(self.keys.stream())
            .arg(GROUP)
            .arg(&self.worker.consumer)
            .arg(millis(self.worker.engine.settings.lease) * 2);
        for delivery in deliveries {
            call.arg(&delivery.entry).arg(delivery.job.delivery.saturating_sub(1));
        }
        call.invoke_async::<i64>(&mut self.worker.engine.redis.commands()).await.context("giving tasks back")?;
        Ok(())
    }
}

/// Writes of one ending before the task is left to run again: about half a minute.
const FINISH_ATTEMPTS: u32 = 30;

fn panicked() -> Outcome {
    Outcome::Retry(anyhow::anyhow!("the handler panicked"))
}

/// How a delivery ends.
enum Ending {
    Success(String, Vec<super::task::Effect>),
    Failure(String, Vec<super::task::Effect>),
    Retry { pause: Duration, attempt: u32, why: String },
    Dead(String),
}

impl Ending {
    fn label(&self) -> &'static str {
        match self {
            Self::Success(..) => "success",
            Self::Failure(..) => "failure",
            Self::Retry { .. } => "retry",
            Self::Dead(_) => "dead",
        }
    }
}

/// The entries of the only stream of an `XREADGROUP` reply.
fn first_stream(reply: Value) -> Vec<(String, HashMap<String, String>)> {
    let stream = match reply {
        Value::Array(streams) => streams.into_iter().next(),
        Value::Map(streams) => streams.into_iter().next().map(|(name, entries)| Value::Array(vec![name, entries])),
        _ => None,
    };
    match stream {
        Some(Value::Array(mut parts)) if parts.len() == 2 => parts.pop().map(stream_entries).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Entries as (id, fields). One that was deleted (nil fields) is left out.
fn stream_entries(reply: Value) -> Vec<(String, HashMap<String, String>)> {
    let Value::Array(entries) = reply else { return Vec::new() };
    entries.into_iter().filter_map(|entry| redis::from_redis_value(entry).ok()).collect()
}
