//! The side of the engine that everybody uses: enqueue, take back, ask.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use redis::RedisError;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::call::{self, Call, Member, Unique};
use super::envelope::{Envelope, Record};
use super::follow::Follow;
use super::keys::{GROUP, Keys, QueueName};
use super::task::{State, Task, TaskId};
use super::waiters::Waiters;
use super::{EngineSettings, scripts};
use onrush_platform::clock::{At, Clock};
use onrush_platform::coalesce::Coalescer;
use onrush_platform::redis::Redis;
use onrush_platform::traces::TraceParent;

/// Tasks that one script call takes on, so that none holds up Redis for long.
const ENQUEUE_CHUNK: usize = 200;
/// A task that waits keeps another of the same key out. One that was read does so until this long after it entered its
/// stream; then it may have been lost.
pub(super) const UNIQUE_FOR: Duration = Duration::from_secs(60);
/// Queues that are noted as idle no more; past it all are forgotten.
const WOKEN_KNOWN: usize = 4096;
/// Members of a group: the script that joins them reads all their results at once.
const MAX_MEMBERS: usize = 1000;
/// A task that is to be stopped is remembered for this long.
const REVOKED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Entries in the stream of what ended that are written for one task each are kept so many, about.
pub(super) const ENDED_ENTRIES: usize = 20_000;
/// What is known of a queue as a whole is forgotten when nothing has moved in it for this long.
pub(super) const META_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A task to enqueue.
#[derive(Debug, Clone)]
pub struct Item<T> {
    /// Its key, unique in the queue: the same key again is the same task.
    pub key: Uuid,
    /// Its arguments.
    pub args: T,
    /// Not before this time.
    pub due: Option<At>,
}

impl<T> Item<T> {
    /// To run as soon as possible.
    pub fn now(key: Uuid, args: T) -> Self {
        Self { key, args, due: None }
    }
    /// To run at `due`.
    pub fn at(key: Uuid, args: T, due: At) -> Self {
        Self { key, args, due: Some(due) }
    }
}

/// What became of a task that was to be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    /// It does not run.
    Now,
    /// It runs; its handler was told.
    Told,
    /// It has ended before.
    Ended,
    /// There is no such task.
    Unknown,
}

/// What Redis knows of a task.
#[derive(Debug, Clone)]
pub struct TaskStatus {
    /// Its state.
    pub state: State,
    /// Who enqueued it, where that matters: the only one who may ask.
    pub owner: Option<String>,
    /// What it ended with; null before its end.
    pub result: Value,
    /// How far it is, as its handler says: (done, of).
    pub progress: Option<(u64, u64)>,
    /// Tasks before it in its queue, while it waits.
    pub ahead: u64,
}

impl TaskStatus {
    fn pending(owner: Option<String>, ahead: u64) -> Self {
        Self { state: State::Pending, owner, result: Value::Null, progress: None, ahead }
    }

    /// From the task's record and from what the queue's meta says of it, where `done` tasks have left the stream.
    fn read(record: Option<String>, waiting: Option<String>, done: u64) -> Option<Self> {
        let mut waiting = waiting.as_deref().unwrap_or("").split(' ');
        let place = waiting.next().and_then(|seq| seq.parse::<u64>().ok());
        let ahead = place.map_or(0, |seq| seq.saturating_sub(done).saturating_sub(1));
        if let Some(record) = record.and_then(|text| serde_json::from_str::<Record>(&text).ok()) {
            let Record { state, owner, result, progress, .. } = record;
            return Some(Self { state, owner, result, progress, ahead });
        }
        place.map(|_| Self::pending(waiting.nth(2).map(str::to_owned), ahead))
    }
}

/// A handle on the engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) redis: Redis,
    pub(super) clock: Clock,
    pub(super) settings: EngineSettings,
    waiters: Arc<Waiters>,
    statuses: Arc<Coalescer<QueueName, Uuid, Option<TaskStatus>, RedisError>>,
    is_held: Arc<AtomicBool>,
    /// Queues that a worker of this process found idle no more. It consumes them, which bounds their number.
    woken: Arc<Mutex<HashSet<QueueName>>>,
}

impl Engine {
    /// An engine on `redis`.
    pub fn new(redis: Redis, clock: Clock, settings: EngineSettings) -> Self {
        let (waiters, statuses, is_held, woken) = Default::default();
        Self { redis, clock, settings, waiters, statuses, is_held, woken }
    }

    /// Notes that a queue is idle no more.
    pub(super) fn note_woken(&self, queue: &QueueName) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        if woken.len() >= WOKEN_KNOWN {
            woken.clear();
        }
        woken.insert(queue.clone());
    }

    /// Whether a worker of this process found a queue idle no more since somebody asked this last.
    pub fn was_woken(&self, queue: &QueueName) -> bool {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).remove(queue)
    }

    /// Holds this process' work, or lets it go on: while it is held no task and no schedule begins here. Whether it was held.
    pub fn hold(&self, is_held: bool) -> bool {
        self.is_held.swap(is_held, Ordering::Relaxed)
    }

    /// Whether no task and no schedule is to begin here.
    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// The keys of a queue.
    pub fn keys(&self, queue: &QueueName) -> Keys {
        Keys::new(self.redis.prefix(), queue)
    }

    /// The settings.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Enqueues tasks of one kind; those already on their way are left as they are. Returns how many were taken on.
    pub async fn enqueue<T: Task>(&self, items: &[Item<T>]) -> anyhow::Result<u64> {
        let queue = queue_of::<T>()?;
        let now = self.clock.now().ms();
        let entry = |item: &Item<T>| (envelope_of(item.key, &item.args, now, None), item.due);
        let entries: Vec<_> = items.iter().map(entry).collect();
        let taken = self.send(&queue, &entries, Unique::UntilDone).await?;
        Ok(taken.into_iter().filter(|taken| *taken).count() as u64)
    }

    /// Enqueues a task of any kind, at its time if it has one; false when, by `unique`, another one stays in its place.
    pub async fn call(&self, call: &Call, due: Option<At>, unique: Unique) -> anyhow::Result<bool> {
        let envelope = Envelope::of(call, self.clock.now().ms());
        Ok(self.send(&call.queue, &[(envelope, due)], unique).await? == [true])
    }

    /// Enqueues the first of `calls`; each other one when the one before it has ended well, with what that ended with.
    /// When one fails the rest do not run. A task of the chain is known once the one before it has ended.
    pub async fn chain(&self, calls: &[Call]) -> anyhow::Result<()> {
        let Some((first, then)) = calls.split_first() else { return Ok(()) };
        let envelope = Envelope { then: then.to_vec(), ..Envelope::of(first, self.clock.now().ms()) };
        self.send(&first.queue, &[(envelope, None)], Unique::UntilDone).await?;
        Ok(())
    }

    /// Enqueues `members` side by side, and `callback` when all of them have ended well, with their results in order.
    /// When one fails for good the callback fails with that reason and does not run. At most
    /// 1000 members.
    pub async fn group(&self, members: &[Call], callback: &Call) -> anyhow::Result<()> {
        anyhow::ensure!(members.len() <= MAX_MEMBERS, "a group has at most {MAX_MEMBERS} members");
        let (group, now) = (Uuid::now_v7(), self.clock.now().ms());
        if members.is_empty() {
            let envelope = Envelope { previous: Some(call::raw(&[(); 0])), ..Envelope::of(callback, now) };
            self.send(&callback.queue, &[(envelope, None)], Unique::UntilDone).await?;
        }
        let mut by_queue: BTreeMap<&QueueName, Vec<(Envelope, Option<At>)>> = BTreeMap::new();
        for (number, call) in members.iter().enumerate() {
            let member = Member { group, number, of: members.len(), callback: Box::new(callback.clone()) };
            let envelope = Envelope { member: Some(member), ..Envelope::of(call, now) };
            by_queue.entry(&call.queue).or_default().push((envelope, None));
        }
        for (queue, entries) in by_queue {
            self.send(queue, &entries, Unique::UntilDone).await?;
        }
        Ok(())
    }

    /// Sends envelopes to one queue; says of each whether it was taken on.
    pub(super) async fn send(
        &self,
        queue: &QueueName,
        entries: &[(Envelope, Option<At>)],
        unique: Unique,
    ) -> anyhow::Result<Vec<bool>> {
        let keys = self.keys(queue);
        let (mode, once_for) = match unique {
            Unique::UntilDone => ("keep", Duration::ZERO),
            Unique::For(length) => ("once", length),
            Unique::Replace => ("replace", Duration::ZERO),
        };
        let mut all = Vec::with_capacity(entries.len());
        for chunk in entries.chunks(ENQUEUE_CHUNK) {
            let mut call = scripts::ENQUEUE.prepare_invoke();
            call.key(keys.stream()).key(keys.delayed()).key(keys.envelopes()).key(keys.meta());
            call.arg(self.clock.shift_ms()).arg(millis(UNIQUE_FOR)).arg(millis(META_LIFE));
            call.arg(GROUP).arg(mode).arg(millis(once_for).max(1));
            for (envelope, due) in chunk {
                call.key(keys.task(envelope.key.as_simple()));
                call.arg(envelope.key.as_simple().to_string()).arg(envelope.text()).arg(due.map_or(0, At::ms));
            }
            if mode == "once" {
                for (envelope, _) in chunk {
                    call.key(keys.once(envelope.key.as_simple()));
                }
            }
            call.key(keys.absent());
            let taken: Vec<bool> = call
                .invoke_async(&mut self.redis.commands())
                .await
                .with_context(|| format!("enqueueing in {queue}"))?;
            let count = taken.iter().filter(|taken| **taken).count() as u64;
            metrics::counter!("onrush_tasks_enqueued_total", "queue" => queue.base().to_owned()).increment(count);
            all.extend(taken);
        }
        Ok(all)
    }

    /// Takes a task back: one that has not begun does not run; one that runs is told to stop, and its handler decides.
    pub async fn revoke(&self, id: &TaskId) -> anyhow::Result<Revoked> {
        let keys = self.keys(&id.queue);
        let key = id.key.as_simple().to_string();
        let (now, life) = (self.clock.now().ms(), millis(self.settings.result_ttl));
        let envelope = self.find(id).await?.and_then(|found| found.envelope).unwrap_or(Envelope::nameless(id.key));
        let word: String = scripts::REVOKE
            .key(keys.stream())
            .key(keys.delayed())
            .key(keys.envelopes())
            .key(keys.meta())
            .key(keys.task(&key))
            .key(keys.revoked())
            .key(keys.ended())
            .key(keys.outbox())
            .key(keys.absent())
            .arg(GROUP)
            .arg(key)
            .arg(Record::taken_back(&envelope, now).text())
            .arg(life)
            .arg(now)
            .arg(millis(REVOKED_FOR))
            .arg(keys.done())
            .arg(&envelope.name)
            .arg(ENDED_ENTRIES)
            .arg(Follow::text(&Follow::revocation(&envelope)))
            .invoke_async(&mut self.redis.commands())
            .await
            .context("taking a task back")?;
        Ok(match word.as_str() {
            "revoked" => Revoked::Now,
            "running" => Revoked::Told,
            "ended" => Revoked::Ended,
            _ => Revoked::Unknown,
        })
    }

    /// Takes delayed tasks of one kind back. Returns how many were still waiting.
    pub async fn unschedule<T: Task>(&self, task_keys: &[Uuid]) -> anyhow::Result<u64> {
        let keys = self.keys(&queue_of::<T>()?);
        let now = self.clock.now().ms();
        let mut taken = 0;
        for chunk in task_keys.chunks(ENQUEUE_CHUNK) {
            let mut call = scripts::UNSCHEDULE.prepare_invoke();
            call.key(keys.delayed()).key(keys.envelopes()).key(keys.meta());
            call.arg(millis(self.settings.result_ttl));
            for key in chunk {
                let key = key.as_simple().to_string();
                call.key(keys.task(&key)).arg(key).arg(Record::revoked(now).text());
            }
            call.key(keys.absent());
            let n: u64 = call
                .invoke_async(&mut self.redis.commands())
                .await
                .with_context(|| format!("taking back {}", T::NAME))?;
            taken += n;
        }
        Ok(taken)
    }

    /// Adds `member: true` to the results of those tasks of a queue that have ended well, where their records are kept:
    /// what they ended with holds no longer, and whoever reads it has to ask elsewhere. Again is the same.
    pub async fn mark_results(&self, queue: &QueueName, tasks: &[Uuid], member: &str) -> anyhow::Result<()> {
        let keys = self.keys(queue);
        for chunk in tasks.chunks(ENQUEUE_CHUNK) {
            let names: Vec<String> = chunk.iter().map(|key| keys.task(key.as_simple())).collect();
            let records: Vec<Option<String>> = redis::cmd("MGET")
                .arg(&names)
                .query_async(&mut self.redis.commands())
                .await
                .context("reading records")?;
            let mut writing = redis::pipe();
            for (name, record) in names.iter().zip(records) {
                let record = record.and_then(|text| serde_json::from_str::<Record>(&text).ok());
                let Some(mut record) = record.filter(|record| record.state == State::Success) else { continue };
                let Some(result) = record.result.as_object_mut() else { continue };
                if result.insert(member.to_owned(), Value::Bool(true)).is_none() {
                    // One that has expired meanwhile stays away, and this one lives no longer than it would have.
                    writing.cmd("SET").arg(name).arg(record.text()).arg("XX").arg("KEEPTTL").ignore();
                }
            }
            if !writing.is_empty() {
                writing.query_async::<()>(&mut self.redis.commands()).await.context("marking records")?;
            }
        }
        Ok(())
    }

    /// What Redis knows of a task, in one round trip (two for one that waits for its time); `None` when it knows
    /// nothing. Who asks at the same time is answered together.
    pub async fn status(&self, id: &TaskId) -> anyhow::Result<Option<TaskStatus>> {
        let (engine, queue) = (self.clone(), id.queue.clone());
        let look = move |keys| {
            let (engine, queue) = (engine.clone(), queue.clone());
            async move { engine.look(&queue, keys).await }
        };
        self.statuses.ask(&id.queue, id.key, look).await?.context("reading a task's record")
    }

    /// What Redis knows of tasks of one queue, in the order of their keys.
    async fn look(&self, queue: &QueueName, task_keys: Vec<Uuid>) -> Result<Vec<Option<TaskStatus>>, RedisError> {
        let keys = self.keys(queue);
        let mut asked = redis::pipe();
        // Who waits first: a task that ends between the two answers is then found twice, and not missed.
        asked.cmd("HMGET").arg(keys.meta()).arg("done");
        for key in &task_keys {
            asked.arg(key.as_simple().to_string());
        }
        asked.cmd("MGET");
        for key in &task_keys {
            asked.arg(keys.task(key.as_simple()));
        }
        type Texts = Vec<Option<String>>;
        let (meta, records): (Texts, Texts) = asked.query_async(&mut self.redis.commands()).await?;
        let done = meta.first().cloned().flatten().and_then(|done| done.parse().ok()).unwrap_or(0);
        let waiting = meta.into_iter().skip(1);
        let mut found: Vec<_> =
            records.into_iter().zip(waiting).map(|(record, waiting)| TaskStatus::read(record, waiting, done)).collect();
        let missing: Vec<usize> = (0..found.len()).filter(|&at| found[at].is_none()).collect();
        if !missing.is_empty() {
            let mut asked = redis::cmd("ZMSCORE");
            asked.arg(keys.delayed());
            for &at in &missing {
                asked.arg(task_keys[at].as_simple().to_string());
            }
            let due: Vec<Option<f64>> = asked.query_async(&mut self.redis.commands()).await?;
            for (at, _) in missing.into_iter().zip(due).filter(|(_, due)| due.is_some()) {
                found[at] = Some(TaskStatus::pending(None, 0));
            }
        }
        Ok(found)
    }

    /// As [`Engine::status`], but waits up to `patience` for the task to end.
    pub async fn wait(&self, id: &TaskId, patience: Duration) -> anyhow::Result<Option<TaskStatus>> {
        let has_ended = |status: &Option<TaskStatus>| status.as_ref().is_none_or(|status| status.state.is_final());
        self.waiters.wait(id.key, patience, || self.status(id), has_ended).await
    }

    /// The loop that hears which tasks ended and wakes who waits for them.
    pub async fn listen(&self, pulse: onrush_platform::loops::Pulse) -> anyhow::Result<()> {
        self.waiters.listen(&self.redis, pulse).await
    }
}

/// Whole milliseconds.
pub(super) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn queue_of<T: Task>() -> anyhow::Result<QueueName> {
    T::QUEUE.parse().with_context(|| format!("queue of {}", T::NAME))
}

/// The envelope of a task that is enqueued `now` (ms since 1970), by `owner` where that matters.
pub fn envelope_of<T: Task>(key: Uuid, args: &T, now: i64, owner: Option<String>) -> Envelope {
    let (priority, trace) = (T::PRIORITY, TraceParent::current());
    Envelope { owner, priority, trace, ..Envelope::new(key, T::NAME, call::raw(args), now) }
}
