//! How queues stand, and what operators set of them.

use std::time::Duration;

use anyhow::Context;
use redis::streams::{StreamId, StreamInfoGroupsReply, StreamRangeReply};

use super::super::client::{ENDED_ENTRIES, Engine, millis};
use super::super::envelope::{Envelope, Record};
use super::super::follow::Follow;
use super::super::keys::{GROUP, QueueName};
use super::super::priority::{Levels, Priority, StreamEntry};
use super::super::scripts;

/// The counters of a queue are noted this often, at most.
const SAMPLE_GAP: Duration = Duration::from_secs(5);
/// Rates are of this long.
const SAMPLES_KEPT: Duration = Duration::from_secs(60);
/// Tasks that one script call takes out.
const PURGE_CHUNK: usize = 200;
/// Tasks that one request takes out.
const PURGE_MOST: u64 = 20_000;

/// How much a queue holds.
#[derive(Debug, Clone, serde::Serialize)]
pub struct QueueDepth {
    /// The queue.
    pub queue: String,
    /// Tasks in its streams, running ones too.
    pub depth: u64,
    /// Of these, with a worker.
    pub running: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Age of the oldest task in the streams.
    pub oldest_ms: u64,
}

/// How a queue stands.
#[derive(Debug, Clone)]
pub struct QueueState {
    /// What it holds.
    pub depth: QueueDepth,
    /// Whether it is paused.
    pub paused: bool,
    /// Batches at once in each process, where an operator has set that.
    pub concurrency: Option<u32>,
    /// Tasks a second that entered it in the last minute; retries count. `None` before there are two samples.
    pub in_per_s: Option<f64>,
    /// Attempts a second that ended in it in the last minute.
    pub out_per_s: Option<f64>,
}

impl QueueState {
    /// Of a queue of which nothing can be read.
    pub fn unknown(queue: &QueueName) -> Self {
        let depth = QueueDepth { queue: queue.to_string(), depth: 0, running: 0, delayed: 0, dead: 0, oldest_ms: 0 };
        Self { depth, paused: false, concurrency: None, in_per_s: None, out_per_s: None }
    }
}

impl Engine {
    /// How much `queue` holds, in all its priorities.
    pub async fn depth(&self, queue: &QueueName) -> anyhow::Result<QueueDepth> {
        let keys = self.keys(queue);
        let (used, delayed, dead): (Vec<u8>, u64, u64) = redis::pipe()
            .smembers(keys.levels())
            .zcard(keys.delayed())
            .xlen(keys.dead())
            .query_async(&mut self.redis.commands())
            .await
            .context("reading a queue's depth")?;
        let mut all = QueueDepth { queue: queue.to_string(), depth: 0, running: 0, delayed, dead, oldest_ms: 0 };
        for level in Levels::of(&used).iter() {
            let (depth, running, oldest_ms) = self.stream_depth(&keys.stream_of(level)).await?;
            all.depth += depth;
            all.running += running;
            all.oldest_ms = all.oldest_ms.max(oldest_ms);
        }
        Ok(all)
    }

    /// Whether a queue may hold tasks: in its streams, waiting for their time, or lost from there and counted still, so that
    /// somebody has to clear them.
    pub async fn may_hold(&self, queue: &QueueName) -> anyhow::Result<bool> {
        let depth = self.depth(queue).await?;
        let (entered, left): (Option<i64>, Option<i64>) = redis::cmd("HMGET")
            .arg(self.keys(queue).meta())
            .arg("seq")
            .arg("done")
            .query_async(&mut self.redis.commands())
            .await
            .context("reading a queue's counters")?;
        Ok(depth.depth + depth.delayed > 0 || entered.unwrap_or(0) > left.unwrap_or(0))
    }

    /// How many tasks have ever entered a queue of which all of them have left, in which none waits for its time, none is dead
    /// and nothing is set; `None` of any other. It costs two commands, where [`Engine::queue_state`] takes a dozen.
    pub async fn at_rest(&self, queue: &QueueName) -> anyhow::Result<Option<i64>> {
        let keys = self.keys(queue);
        let mut asked = redis::pipe();
        asked.cmd("EXISTS").arg(keys.control()).arg(keys.delayed()).arg(keys.dead()).arg(keys.levels());
        asked.cmd("HMGET").arg(keys.meta()).arg("seq").arg("done");
        let (held, (entered, left)): (u32, (Option<i64>, Option<i64>)) =
            asked.query_async(&mut self.redis.commands()).await.context("looking whether a queue is at rest")?;
        let (entered, left) = (entered.unwrap_or(0), left.unwrap_or(0));
        Ok((held == 0 && entered == left).then_some(entered))
    }

    /// Of one stream: its tasks, those of them that run, the age of the oldest in ms.
    async fn stream_depth(&self, stream: &str) -> anyhow::Result<(u64, u64, u64)> {
        let (mut commands, mut others) = (self.redis.commands(), self.redis.commands());
        let (mut counted, mut pending) = (redis::pipe(), redis::cmd("XPENDING"));
        counted.xlen(stream).xrange_count(stream, "-", "+", 1);
        pending.arg(stream).arg(GROUP);
        let (counted, pending) = tokio::join!(counted.query_async(&mut commands), pending.query_async(&mut others));
        let (depth, first): (u64, Vec<(String, Vec<String>)>) = counted.context("reading a queue's depth")?;
        let running = match pending {
            Ok(redis::Value::Array(parts)) => match parts.first() {
                Some(redis::Value::Int(n)) => u64::try_from(*n).unwrap_or(0),
                _ => 0,
            },
            Ok(_) => 0,
            // No group yet means nobody reads yet.
            Err(error) if error.code() == Some("NOGROUP") => 0,
            Err(error) => return Err(error).context("reading a queue's pending entries"),
        };
        let born = first.first().and_then(|(id, _)| id.split('-').next()).and_then(|ms| ms.parse::<i64>().ok());
        let oldest_ms = born.map_or(0, |ms| u64::try_from(self.clock.now().ms() - ms).unwrap_or(0));
        Ok((depth, running, oldest_ms))
    }

    /// The priorities for which a queue has a stream.
    pub(super) async fn levels(&self, queue: &QueueName) -> anyhow::Result<Levels> {
        let used: Vec<u8> = redis::cmd("SMEMBERS")
            .arg(self.keys(queue).levels())
            .query_async(&mut self.redis.commands())
            .await
            .context("reading a queue's priorities")?;
        Ok(Levels::of(&used))
    }

    /// How `queue` stands.
    pub async fn queue_state(&self, queue: &QueueName) -> anyhow::Result<QueueState> {
        let keys = self.keys(queue);
        let depth = self.depth(queue).await?;
        let set: (Option<String>, Option<u32>) = redis::cmd("HMGET")
            .arg(keys.control())
            .arg("paused")
            .arg("concurrency")
            .query_async(&mut self.redis.commands())
            .await
            .context("reading what is set of a queue")?;
        let rates = self.sample(queue).await?;
        let (in_per_s, out_per_s) = rates.unzip();
        Ok(QueueState { depth, paused: set.0.is_some(), concurrency: set.1, in_per_s, out_per_s })
    }

    /// Notes how the counters of a queue stand, if that is due. Gives its rates a second, in and out.
    pub(crate) async fn sample(&self, queue: &QueueName) -> anyhow::Result<Option<(f64, f64)>> {
        let keys = self.keys(queue);
        let (now, entered, left, oldest): (i64, i64, i64, String) = scripts::SAMPLE
            .key(keys.meta())
            .key(keys.samples())
            .arg(millis(SAMPLE_GAP))
            .arg(millis(SAMPLES_KEPT))
            .invoke_async(&mut self.redis.commands())
            .await
            .context("sampling a queue")?;
        let then: Vec<i64> = oldest.split(' ').filter_map(|number| number.parse().ok()).collect();
        let [at, entered_then, left_then] = then[..] else { return Ok(None) };
        let seconds = (now - at) as f64 / 1000.0;
        // Counters that fell were lost with Redis, or began anew.
        let rate = |now: i64, then: i64| (now - then).max(0) as f64 / seconds;
        Ok((seconds > 0.0).then(|| (rate(entered, entered_then), rate(left, left_then))))
    }

    /// Whether Redis holds anything of `queue`.
    pub async fn queue_exists(&self, queue: &QueueName) -> anyhow::Result<bool> {
        let keys = self.keys(queue);
        let found: u32 = redis::cmd("EXISTS")
            .arg(keys.stream())
            .arg(keys.meta())
            .arg(keys.delayed())
            .arg(keys.dead())
            .arg(keys.control())
            .query_async(&mut self.redis.commands())
            .await
            .context("looking for a queue")?;
        Ok(found > 0)
    }

    /// Stops the reading of a queue, or lets it go on: every worker follows within a second. What runs ends.
    pub async fn set_paused(&self, queue: &QueueName, paused: bool) -> anyhow::Result<()> {
        self.set(queue, "paused", paused.then_some(1)).await.context("pausing or resuming a queue")
    }

    /// Sets how many batches of a queue each process runs at once; `None`: as many as its own settings say. Every worker
    /// follows within a second; what runs ends.
    pub async fn set_concurrency(&self, queue: &QueueName, concurrency: Option<u32>) -> anyhow::Result<()> {
        self.set(queue, "concurrency", concurrency).await.context("setting a queue's concurrency")
    }

    async fn set(&self, queue: &QueueName, field: &str, value: Option<u32>) -> Result<(), redis::RedisError> {
        let control = self.keys(queue).control();
        let mut call = redis::Cmd::new();
        match value {
            Some(value) => call.arg("HSET").arg(control).arg(field).arg(value),
            None => call.arg("HDEL").arg(control).arg(field),
        };
        call.query_async(&mut self.redis.commands()).await
    }

    /// Takes out what waits in a queue, in its streams or for its time; never what a worker has. Returns how many, and
    /// whether more may be left.
    pub async fn purge(&self, queue: &QueueName) -> anyhow::Result<(u64, bool)> {
        let mut purged = 0;
        while purged < PURGE_MOST {
            let waiting = self.waiting(queue).await?;
            let taken = self.take_out(queue, &waiting).await?;
            purged += taken;
            // All of a page may have gone to workers meanwhile.
            if taken == 0 {
                return Ok((purged, !waiting.is_empty()));
            }
        }
        Ok((purged, true))
    }

    /// A page of what waits: (name of its entry or `-`, envelope; none when that cannot be read).
    async fn waiting(&self, queue: &QueueName) -> anyhow::Result<Vec<(String, Option<Envelope>)>> {
        let keys = self.keys(queue);
        let mut commands = self.redis.commands();
        let envelope = |text: String| Envelope::parse(&text).ok();
        for level in self.levels(queue).await?.iter() {
            let after = self.last_delivered(queue, level).await?;
            let entries: StreamRangeReply = redis::cmd("XRANGE")
                .arg(keys.stream_of(level))
                .arg(format!("({after}"))
                .arg("+")
                .arg("COUNT")
                .arg(PURGE_CHUNK)
                .query_async(&mut commands)
                .await
                .context("reading what waits")?;
            if !entries.ids.is_empty() {
                let waits = |entry: StreamId| {
                    let text = entry.get("e").unwrap_or_default();
                    (StreamEntry { level, id: entry.id }.to_string(), envelope(text))
                };
                return Ok(entries.ids.into_iter().map(waits).collect());
            }
        }
        let due: Vec<String> = redis::cmd("ZRANGE")
            .arg(keys.delayed())
            .arg(0)
            .arg(PURGE_CHUNK - 1)
            .query_async(&mut commands)
            .await
            .context("reading what waits for its time")?;
        if !due.is_empty() {
            let texts: Vec<Option<String>> = redis::cmd("HMGET")
                .arg(keys.envelopes())
                .arg(&due)
                .query_async(&mut commands)
                .await
                .context("reading envelopes")?;
            let readable = texts.into_iter().map(|text| text.and_then(envelope));
            // Without its envelope the key still names it.
            let whole = due.iter().zip(readable).map(|(key, found)| {
                let nobody = || Some(Envelope::nameless(key.parse().ok()?));
                ("-".to_owned(), found.or_else(nobody))
            });
            return Ok(whole.collect());
        }
        Ok(Vec::new())
    }

    async fn take_out(&self, queue: &QueueName, waiting: &[(String, Option<Envelope>)]) -> anyhow::Result<u64> {
        if waiting.is_empty() {
            return Ok(0);
        }
        let (keys, now, life) = (self.keys(queue), self.clock.now().ms(), millis(self.settings.result_ttl));
        let mut call = scripts::PURGE.prepare_invoke();
        call.key(keys.stream()).key(keys.delayed()).key(keys.envelopes()).key(keys.meta()).key(keys.ended());
        call.key(keys.outbox());
        call.arg(GROUP).arg(life).arg(keys.done()).arg(ENDED_ENTRIES).arg(life);
        for (entry, envelope) in waiting {
            let key = envelope.as_ref().map(|envelope| envelope.key.as_simple().to_string()).unwrap_or_default();
            call.key(keys.task(&key)).arg(entry).arg(&key);
            let record = envelope.as_ref().map(|envelope| Record::taken_back(envelope, now).text());
            call.arg(envelope.as_ref().map(|envelope| envelope.name.as_str()).unwrap_or_default());
            let follow = envelope.as_ref().map(|envelope| Follow::text(&Follow::revocation(envelope)));
            call.arg(record.unwrap_or_default()).arg(follow.unwrap_or_default());
        }
        call.key(keys.absent());
        call.invoke_async(&mut self.redis.commands()).await.context("taking waiting tasks out")
    }

    /// The last entry of this priority's stream that went to a worker; `0-0` when none did.
    pub(super) async fn last_delivered(&self, queue: &QueueName, level: Priority) -> anyhow::Result<String> {
        let groups: Result<StreamInfoGroupsReply, redis::RedisError> = redis::cmd("XINFO")
            .arg("GROUPS")
            .arg(self.keys(queue).stream_of(level))
            .query_async(&mut self.redis.commands())
            .await;
        let groups = match groups {
            Ok(groups) => groups.groups,
            Err(error) if error.to_string().contains("no such key") => Vec::new(),
            Err(error) => return Err(error).context("reading the group of a queue"),
        };
        let ours = groups.into_iter().find(|group| group.name == GROUP);
        Ok(ours.map_or_else(|| "0-0".to_owned(), |group| group.last_delivered_id))
    }
}
