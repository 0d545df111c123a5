//! Dead letters: tasks that did not end, with their envelopes as they were.

use std::time::Duration;

use anyhow::Context;
use redis::streams::{StreamId, StreamRangeReply};
use serde_json::Value;

use super::super::client::{Engine, META_LIFE, UNIQUE_FOR, millis};
use super::super::envelope::{Envelope, Failed};
use super::super::keys::{GROUP, QueueName, WorkerKeys};
use super::super::scripts;
use super::super::task::TaskId;

/// Letters that one script call enqueues.
const RETRY_CHUNK: usize = 100;
/// That a partition was retried is known for so long, of so many.
const RETRIED_FOR: Duration = Duration::from_secs(300);
const MAX_RETRIED: i64 = 500;
/// Letters that are looked through for one task.
const SEARCH_CHUNK: usize = 500;

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its entry in the stream of dead letters.
    pub entry: String,
    /// Its envelope; none when this program cannot read it.
    pub envelope: Option<Envelope>,
    /// The envelope to the letter.
    pub text: String,
    /// Why the task did not end.
    pub reason: String,
    /// When it was given up, in ms since 1970.
    pub died_at: i64,
}

impl Letter {
    fn read(entry: StreamId) -> Self {
        let text = |name: &str| entry.get::<String>(name).unwrap_or_default();
        let (envelope, died_at) = (Envelope::parse(&text("e")).ok(), text("at").parse().unwrap_or(0));
        Self { envelope, text: text("e"), reason: text("reason"), died_at, entry: entry.id.clone() }
    }

    /// Attempts that failed before the one that `reason` is about.
    pub fn errors(&self) -> &[Failed] {
        self.envelope.as_ref().map_or(&[], |envelope| &envelope.errors)
    }

    /// What goes into the stream again: the task at its first attempt. What this program cannot read goes as it is: a
    /// newer program may run it.
    fn anew(&self, now: i64) -> String {
        let Some(envelope) = &self.envelope else { return self.text.clone() };
        Envelope { attempt: 1, at: now, errors: Vec::new(), ..envelope.clone() }.text()
    }
}

impl Engine {
    /// Dead letters of a queue below `before` (an entry; none: from the newest), newest first.
    pub async fn letters(&self, queue: &QueueName, before: Option<&str>, limit: usize) -> anyhow::Result<Vec<Letter>> {
        // Nothing is below the lowest entry, and Redis takes no such range.
        if before.is_some_and(|entry| entry.bytes().all(|b| b == b'0' || b == b'-')) {
            return Ok(Vec::new());
        }
        let highest = before.map_or_else(|| "+".to_owned(), |entry| format!("({entry}"));
        let found: StreamRangeReply = redis::cmd("XREVRANGE")
            .arg(self.keys(queue).dead())
            .arg(highest)
            .arg("-")
            .arg("COUNT")
            .arg(limit)
            .query_async(&mut self.redis.commands())
            .await
            .context("reading dead letters")?;
        Ok(found.ids.into_iter().map(Letter::read).collect())
    }

    /// These dead letters of a queue, those that are there.
    pub async fn letters_at(&self, queue: &QueueName, entries: &[String]) -> anyhow::Result<Vec<Letter>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let dead = self.keys(queue).dead();
        let mut asked = redis::pipe();
        for entry in entries {
            asked.cmd("XRANGE").arg(&dead).arg(entry).arg(entry);
        }
        let found: Vec<StreamRangeReply> =
            asked.query_async(&mut self.redis.commands()).await.context("reading dead letters")?;
        Ok(found.into_iter().flat_map(|reply| reply.ids).map(Letter::read).collect())
    }

    /// The dead letter of a task, the latest.
    pub(super) async fn letter_of(&self, id: &TaskId) -> anyhow::Result<Option<Letter>> {
        let mut before: Option<String> = None;
        loop {
            let page = self.letters(&id.queue, before.as_deref(), SEARCH_CHUNK).await?;
            let Some(last) = page.last().map(|letter| letter.entry.clone()) else { return Ok(None) };
            let ours = |letter: &Letter| letter.envelope.as_ref().is_some_and(|envelope| envelope.key == id.key);
            if let Some(found) = page.into_iter().find(ours) {
                return Ok(Some(found));
            }
            before = Some(last);
        }
    }

    /// Enqueues dead letters anew, at their first attempt, and removes them; each by one step, so that twice at once is
    /// once. Returns how many were enqueued.
    pub async fn retry_letters(&self, queue: &QueueName, letters: &[Letter]) -> anyhow::Result<u64> {
        let (keys, now) = (self.keys(queue), self.clock.now().ms());
        let mut enqueued = 0;
        for chunk in letters.chunks(RETRY_CHUNK) {
            let mut call = scripts::REQUEUE.prepare_invoke();
            call.key(keys.stream()).key(keys.meta()).key(keys.dead()).key(keys.delayed());
            call.arg(self.clock.shift_ms()).arg(millis(META_LIFE)).arg(millis(UNIQUE_FOR)).arg(GROUP);
            for letter in chunk {
                let envelope = letter.envelope.as_ref();
                let key = envelope.map(|envelope| envelope.key.as_simple().to_string()).unwrap_or_default();
                let owner = envelope.and_then(|envelope| envelope.owner.clone()).unwrap_or_default();
                call.key(keys.task(&key)).arg(&letter.entry).arg(key).arg(letter.anew(now)).arg(owner);
            }
            call.key(keys.absent());
            let taken: u64 =
                call.invoke_async(&mut self.redis.commands()).await.context("enqueueing dead letters anew")?;
            metrics::counter!("onrush_tasks_enqueued_total", "queue" => queue.base().to_owned()).increment(taken);
            enqueued += taken;
        }
        if enqueued > 0 {
            self.note_retried(queue).await;
        }
        Ok(enqueued)
    }

    /// Says that a partition, which may be over and looked at seldom, has a task again. Without it that is found in its time.
    pub(super) async fn note_retried(&self, queue: &QueueName) {
        if queue.partition_name().is_some()
            && let Err(error) = self.try_note_retried(queue).await
        {
            tracing::debug!(%queue, error = format!("{error:#}"), "nobody was told of a retry");
        }
    }

    async fn try_note_retried(&self, queue: &QueueName) -> anyhow::Result<()> {
        let (key, now) = (WorkerKeys::new(self.redis.prefix()).retried(), self.clock.now());
        let mut note = redis::pipe();
        note.cmd("ZADD").arg(&key).arg(now.ms()).arg(queue.to_string()).ignore();
        note.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(now.minus(RETRIED_FOR).ms()).ignore();
        note.cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(-1 - MAX_RETRIED).ignore();
        note.cmd("PEXPIRE").arg(&key).arg(millis(RETRIED_FOR)).ignore();
        Ok(note.query_async(&mut self.redis.commands()).await?)
    }

    /// Partitions of which a task was retried within the last minutes, those of the latest retries.
    pub async fn retried_lately(&self) -> anyhow::Result<Vec<QueueName>> {
        let key = WorkerKeys::new(self.redis.prefix()).retried();
        let names: Vec<String> = redis::cmd("ZRANGE")
            .arg(key)
            .arg(0)
            .arg(-1)
            .query_async(&mut self.redis.commands())
            .await
            .context("reading which partitions were retried")?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Enqueues the newest `most` dead letters anew. Returns how many were, and whether more are left.
    pub async fn retry_all_letters(&self, queue: &QueueName, most: usize) -> anyhow::Result<(u64, bool)> {
        // Read before any is enqueued: one that dies again at once is not retried again by this call.
        let letters = self.letters(queue, None, most + 1).await?;
        let enqueued = self.retry_letters(queue, &letters[..letters.len().min(most)]).await?;
        Ok((enqueued, letters.len() > most))
    }

    /// Removes a dead letter; false when it is not there.
    pub async fn delete_letter(&self, queue: &QueueName, entry: &str) -> anyhow::Result<bool> {
        let gone: u64 = redis::cmd("XDEL")
            .arg(self.keys(queue).dead())
            .arg(entry)
            .query_async(&mut self.redis.commands())
            .await
            .context("removing a dead letter")?;
        Ok(gone == 1)
    }

    /// Removes every dead letter of a queue. Returns how many there were.
    pub async fn delete_letters(&self, queue: &QueueName) -> anyhow::Result<u64> {
        let dead = self.keys(queue).dead();
        let (count, _): (u64, u64) = redis::pipe()
            .atomic()
            .xlen(&dead)
            .cmd("UNLINK")
            .arg(&dead)
            .query_async(&mut self.redis.commands())
            .await
            .context("removing dead letters")?;
        Ok(count)
    }

    /// The dead letters of a queue as JSON, newest first, at most `limit`.
    pub async fn dead_letters(&self, queue: &QueueName, limit: usize) -> anyhow::Result<Vec<Value>> {
        let shown = |letter: Letter| {
            let mut shown = match &letter.envelope {
                Some(envelope) => serde_json::to_value(envelope).unwrap_or_default(),
                None => serde_json::json!({ "envelope": letter.text }),
            };
            shown["reason"] = letter.reason.into();
            shown["died_at"] = letter.died_at.into();
            shown
        };
        Ok(self.letters(queue, None, limit).await?.into_iter().map(shown).collect())
    }
}
