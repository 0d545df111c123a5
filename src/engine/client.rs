//! The side of the engine that everybody uses: enqueue, take back, ask.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use redis::AsyncCommands;
use serde_json::Value;
use uuid::Uuid;

use super::envelope::{Envelope, Record, VERSION};
use super::keys::{GROUP, Keys, QueueName};
use super::task::{State, Task, TaskId};
use super::waiters::Waiters;
use super::{Settings, scripts};
use crate::platform::clock::{At, Clock};
use crate::platform::redis::Redis;

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
}

impl Engine {
    /// An engine on `redis`.
    pub fn new(redis: Redis, clock: Clock, settings: Settings) -> Self {
        Self { redis, clock, settings, waiters: Arc::default() }
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
                let envelope = envelope_of(item.key, &item.args, now, None)?;
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

    /// What Redis knows of a task, in one round trip (two for one that has not begun and is not in the stream); `None`
    /// when it knows nothing.
    pub async fn status(&self, id: &TaskId) -> anyhow::Result<Option<Status>> {
        let keys = self.keys(&id.queue);
        let key = id.key.as_simple().to_string();
        let (record, (waiting, done)): (Option<String>, (Option<String>, Option<u64>)) = redis::pipe()
            .get(keys.task(&key))
            .cmd("HMGET")
            .arg(keys.meta())
            .arg(&key)
            .arg("done")
            .query_async(&mut self.redis.commands())
            .await
            .context("reading a task's record")?;
        let mut waiting = waiting.as_deref().unwrap_or("").split(' ');
        let place = waiting.next().and_then(|seq| seq.parse::<u64>().ok());
        let ahead = place.map_or(0, |seq| seq.saturating_sub(done.unwrap_or(0)).saturating_sub(1));
        if let Some(record) = record {
            let record: Record = serde_json::from_str(&record).context("reading a task's record")?;
            return Ok(Some(Status { state: record.state, owner: record.owner, result: record.result, ahead }));
        }
        let pending = |owner| Status { state: State::Pending, owner, result: Value::Null, ahead };
        if place.is_some() {
            return Ok(Some(pending(waiting.nth(1).map(str::to_owned))));
        }
        let due: Option<f64> =
            self.redis.commands().zscore(keys.delayed(), key).await.context("looking for a delayed task")?;
        Ok(due.map(|_| pending(None)))
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
pub fn envelope_of<T: Task>(key: Uuid, args: &T, now: i64, owner: Option<String>) -> anyhow::Result<Envelope> {
    let args = serde_json::value::to_raw_value(args).context("writing task arguments")?;
    Ok(Envelope { v: VERSION, key, name: T::NAME.to_owned(), args, attempt: 1, at: now, owner })
}
