//! The side of the engine that everybody uses: enqueue, take back, ask.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use redis::{AsyncCommands, RedisError};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::envelope::{Envelope, Record, VERSION};
use super::keys::{GROUP, Keys, QueueName};
use super::task::{State, Task, TaskId};
use super::waiters::Waiters;
use super::{Settings, scripts};
use crate::platform::clock::{At, Clock};
use crate::platform::redis::Redis;
use crate::platform::together::Together;

/// Tasks that one script call takes on, so that none holds up Redis for long.
const ENQUEUE_CHUNK: usize = 200;
/// A task that has not ended keeps another of the same key out for this long; after it the first may have been lost.
const UNIQUE_FOR: Duration = Duration::from_secs(60);
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

/// What Redis knows of a task.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// Who enqueued it, where that matters: the only one who may ask.
    pub owner: Option<String>,
    /// What it ended with; null before its end.
    pub result: Value,
    /// Tasks before it in its queue, while it waits.
    pub ahead: u64,
}

impl Status {
    fn pending(owner: Option<String>, ahead: u64) -> Self {
        Self { state: State::Pending, owner, result: Value::Null, ahead }
    }

    /// From the task's record and from what the queue's meta says of it, where `done` tasks have left the stream.
    fn read(record: Option<String>, waiting: Option<String>, done: u64) -> Option<Self> {
        let mut waiting = waiting.as_deref().unwrap_or("").split(' ');
        let place = waiting.next().and_then(|seq| seq.parse::<u64>().ok());
        let ahead = place.map_or(0, |seq| seq.saturating_sub(done).saturating_sub(1));
        if let Some(record) = record.and_then(|text| serde_json::from_str::<Record>(&text).ok()) {
            return Some(Self { state: record.state, owner: record.owner, result: record.result, ahead });
        }
        place.map(|_| Self::pending(waiting.nth(1).map(str::to_owned), ahead))
    }
}

/// How much a queue holds.
#[derive(Debug, Clone, serde::Serialize)]
pub struct QueueDepth {
    /// The queue.
    pub queue: String,
    /// Tasks in the stream, running ones too.
    pub depth: u64,
    /// Of these, with a worker.
    pub running: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Age of the oldest task in the stream.
    pub oldest_ms: u64,
}

/// A handle on the engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) redis: Redis,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
    waiters: Arc<Waiters>,
    statuses: Arc<Together<QueueName, Uuid, Option<Status>, RedisError>>,
}

impl Engine {
    /// An engine on `redis`.
    pub fn new(redis: Redis, clock: Clock, settings: Settings) -> Self {
        Self { redis, clock, settings, waiters: Arc::default(), statuses: Arc::default() }
    }

    /// The keys of a queue.
    pub fn keys(&self, queue: &QueueName) -> Keys {
        Keys::new(self.redis.prefix(), queue)
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Enqueues tasks of one kind; those already on their way are left as they are. Returns how many were taken on.
    pub async fn enqueue<T: Task>(&self, items: &[Item<T>]) -> anyhow::Result<u64> {
        let keys = self.keys(&queue_of::<T>()?);
        let now = self.clock.now().ms();
        let mut taken = 0;
        for chunk in items.chunks(ENQUEUE_CHUNK) {
            let mut call = scripts::ENQUEUE.prepare_invoke();
            call.key(keys.stream()).key(keys.delayed()).key(keys.envelopes()).key(keys.meta());
            call.arg(now).arg(millis(UNIQUE_FOR)).arg(millis(META_LIFE));
            for item in chunk {
                let key = item.key.as_simple().to_string();
                let envelope = envelope_of(item.key, &item.args, now, None);
                call.key(keys.task(&key)).arg(key).arg(envelope.text()).arg(item.due.map_or(0, At::ms));
            }
            let n: u64 = call
                .invoke_async(&mut self.redis.commands())
                .await
                .with_context(|| format!("enqueueing {}", T::NAME))?;
            taken += n;
        }
        Ok(taken)
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
                call.key(keys.task(&key)).arg(key).arg(Record::revoked(T::NAME, now).text());
            }
            let n: u64 = call
                .invoke_async(&mut self.redis.commands())
                .await
                .with_context(|| format!("taking back {}", T::NAME))?;
            taken += n;
        }
        Ok(taken)
    }

    /// What Redis knows of a task, in one round trip (two for one that waits for its time); `None` when it knows
    /// nothing. Who asks at the same time is answered together.
    pub async fn status(&self, id: &TaskId) -> anyhow::Result<Option<Status>> {
        let (engine, queue) = (self.clone(), id.queue.clone());
        let look = move |keys| {
            let (engine, queue) = (engine.clone(), queue.clone());
            async move { engine.look(&queue, keys).await }
        };
        self.statuses.ask(&id.queue, id.key, look).await?.context("reading a task's record")
    }

    /// What Redis knows of tasks of one queue, in the order of their keys.
    async fn look(&self, queue: &QueueName, task_keys: Vec<Uuid>) -> Result<Vec<Option<Status>>, RedisError> {
        let keys = self.keys(queue);
        let mut asked = redis::pipe();
        asked.cmd("MGET");
        for key in &task_keys {
            asked.arg(keys.task(key.as_simple()));
        }
        asked.cmd("HMGET").arg(keys.meta()).arg("done");
        for key in &task_keys {
            asked.arg(key.as_simple().to_string());
        }
        type Texts = Vec<Option<String>>;
        let (records, meta): (Texts, Texts) = asked.query_async(&mut self.redis.commands()).await?;
        let done = meta.first().cloned().flatten().and_then(|done| done.parse().ok()).unwrap_or(0);
        let waiting = meta.into_iter().skip(1);
        let mut found: Vec<_> =
            records.into_iter().zip(waiting).map(|(record, waiting)| Status::read(record, waiting, done)).collect();
        let missing: Vec<usize> = (0..found.len()).filter(|&at| found[at].is_none()).collect();
        if !missing.is_empty() {
            let mut asked = redis::cmd("ZMSCORE");
            asked.arg(keys.delayed());
            for &at in &missing {
                asked.arg(task_keys[at].as_simple().to_string());
            }
            let due: Vec<Option<f64>> = asked.query_async(&mut self.redis.commands()).await?;
            for (at, _) in missing.into_iter().zip(due).filter(|(_, due)| due.is_some()) {
                found[at] = Some(Status::pending(None, 0));
            }
        }
        Ok(found)
    }

    /// As [`Engine::status`], but waits up to `patience` for the task to end.
    pub async fn wait(&self, id: &TaskId, patience: Duration) -> anyhow::Result<Option<Status>> {
        self.waiters.wait(self, id, patience).await
    }

    /// The loop that hears which tasks ended and wakes who waits for them.
    pub async fn listen(&self, pulse: crate::platform::loops::Pulse) -> anyhow::Result<()> {
        self.waiters.listen(&self.redis, pulse).await
    }

    /// How much `queue` holds.
    pub async fn depth(&self, queue: &QueueName) -> anyhow::Result<QueueDepth> {
        let keys = self.keys(queue);
        let mut commands = self.redis.commands();
        type First = Vec<(String, Vec<String>)>;
        let (depth, delayed, dead, first): (u64, u64, u64, First) = redis::pipe()
            .xlen(keys.stream())
            .zcard(keys.delayed())
            .xlen(keys.dead())
            .xrange_count(keys.stream(), "-", "+", 1)
            .query_async(&mut commands)
            .await
            .context("reading a queue's depth")?;
        // No group yet means nobody reads yet.
        let running: (u64,) =
            match redis::cmd("XPENDING").arg(keys.stream()).arg(GROUP).query_async::<redis::Value>(&mut commands).await
            {
                Ok(redis::Value::Array(parts)) => match parts.first() {
                    Some(redis::Value::Int(n)) => (u64::try_from(*n).unwrap_or(0),),
                    _ => (0,),
                },
                Ok(_) => (0,),
                Err(error) if error.code() == Some("NOGROUP") => (0,),
                Err(error) => return Err(error).context("reading a queue's pending entries"),
            };
        let born = first.first().and_then(|(id, _)| id.split('-').next()).and_then(|ms| ms.parse::<i64>().ok());
        let oldest_ms = born.map_or(0, |ms| u64::try_from(self.clock.now().ms() - ms).unwrap_or(0));
        Ok(QueueDepth { queue: queue.to_string(), depth, running: running.0, delayed, dead, oldest_ms })
    }

    /// The dead letters of a queue, newest first, at most `limit`.
    pub async fn dead_letters(&self, queue: &QueueName, limit: usize) -> anyhow::Result<Vec<Value>> {
        let mut commands = self.redis.commands();
        let reply: redis::streams::StreamRangeReply =
            commands.xrevrange_count(self.keys(queue).dead(), "+", "-", limit).await.context("reading dead letters")?;
        let letter = |id: &redis::streams::StreamId| {
            let text = |name: &str| id.get::<String>(name).unwrap_or_default();
            let mut letter = match Envelope::parse(&text("e")) {
                Ok(envelope) => serde_json::to_value(&envelope).unwrap_or_default(),
                Err(_) => serde_json::json!({ "envelope": text("e") }),
            };
            letter["reason"] = text("reason").into();
            letter["died_at"] = text("at").parse().unwrap_or(0).into();
            letter
        };
        Ok(reply.ids.iter().map(letter).collect())
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
    // A type whose values cannot be written is no argument: the handler's side then says so, in the dead letters.
    let args = serde_json::value::to_raw_value(args).unwrap_or_else(|_| RawValue::NULL.to_owned());
    Envelope { v: VERSION, key, name: T::NAME.to_owned(), args, attempt: 1, at: now, owner }
}
