//! One task: where it is, what is known of it, and running it again.

use anyhow::Context;
use redis::Value as Reply;
use redis::streams::StreamRangeReply;

use super::super::call::{Call, Unique};
use super::super::client::Engine;
use super::super::envelope::{Envelope, Record};
use super::super::keys::GROUP;
use super::super::priority::StreamEntry;
use super::super::task::{State, TaskId};
use onrush_platform::clock::At;
use onrush_platform::traces::TraceParent;

/// What Redis knows of a task.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Its record: written when it has run for a while, was put off, taken back, or has ended.
    pub record: Option<Record>,
    /// Its envelope, while it is on its way.
    pub envelope: Option<Envelope>,
    /// When it is due, while it waits for its time.
    pub due: Option<At>,
    /// Who has it, while somebody does.
    pub held: Option<HeldTask>,
}

/// Who has a task.
#[derive(Debug, Clone)]
pub struct HeldTask {
    /// The worker's instance.
    pub worker: String,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// What became of a task that was to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It is on its way, at its first attempt.
    Enqueued,
    /// It has not ended: it is on its way already.
    OnItsWay,
    /// Its arguments are not known any more, so nobody can run it.
    Forgotten,
    /// There is no such task.
    Unknown,
}

impl Found {
    /// Its state. What is on its way has not ended, whatever an older record of the same key says.
    pub fn state(&self) -> State {
        let recorded = self.record.as_ref().map(|record| record.state);
        match (&self.held, &self.envelope) {
            (Some(_), _) => State::Started,
            (None, Some(envelope)) => waiting_state(envelope),
            (None, None) => recorded.unwrap_or(State::Pending),
        }
    }
}

/// The state of a task that waits.
pub(super) fn waiting_state(envelope: &Envelope) -> State {
    if envelope.attempt > 1 { State::Retry } else { State::Pending }
}

impl Engine {
    /// What Redis knows of a task; `None` when it knows nothing.
    pub async fn find(&self, id: &TaskId) -> anyhow::Result<Option<Found>> {
        // It is looked for in two places, one after the other: one that moves from the second to the first meanwhile is
        // in neither, and found by the next look.
        match self.look_for(id).await? {
            None => self.look_for(id).await,
            found => Ok(found),
        }
    }

    async fn look_for(&self, id: &TaskId) -> anyhow::Result<Option<Found>> {
        let (keys, key) = (self.keys(&id.queue), id.key.as_simple().to_string());
        let mut commands = self.redis.commands();
        type Texts = (Option<String>, Option<String>, Option<String>, Option<f64>);
        let (record, waiting, delayed, due): Texts = redis::pipe()
            .get(keys.task(&key))
            .hget(keys.meta(), &key)
            .hget(keys.envelopes(), &key)
            .zscore(keys.delayed(), &key)
            .query_async(&mut commands)
            .await
            .context("looking for a task")?;
        let record = record.and_then(|text| serde_json::from_str::<Record>(&text).ok());
        let mut found = Found { record, ..Found::default() };
        if let Some(due) = due {
            // Whole milliseconds, far below 2^53.
            found.due = Some(At::from_ms(due as i64));
            found.envelope = delayed.and_then(|text| Envelope::parse(&text).ok()).or(Some(Envelope::nameless(id.key)));
        } else if let Some(entry) =
            waiting.as_deref().and_then(|waiting| waiting.split(' ').nth(2)).and_then(StreamEntry::named)
        {
            let stored: StreamRangeReply = redis::cmd("XRANGE")
                .arg(keys.stream_of(entry.level))
                .arg(&entry.id)
                .arg(&entry.id)
                .query_async(&mut commands)
                .await
                .context("reading a task's envelope")?;
            let text = stored.ids.first().and_then(|entry| entry.get::<String>("e"));
            found.envelope = text.and_then(|text| Envelope::parse(&text).ok());
            found.held = self.holder(id, &entry).await?;
        }
        let known = found.record.is_some() || found.envelope.is_some();
        Ok(known.then_some(found))
    }

    async fn holder(&self, id: &TaskId, entry: &StreamEntry) -> anyhow::Result<Option<HeldTask>> {
        let pending: Result<Reply, redis::RedisError> = redis::cmd("XPENDING")
            .arg(self.keys(&id.queue).stream_of(entry.level))
            .arg(GROUP)
            .arg(&entry.id)
            .arg(&entry.id)
            .arg(1)
            .query_async(&mut self.redis.commands())
            .await;
        let rows: Vec<(String, String, u64, u64)> = match pending {
            Ok(reply) => redis::from_redis_value(reply).unwrap_or_default(),
            // No group: nobody has read yet. An entry that is no id: it waits for its time.
            Err(_) => Vec::new(),
        };
        Ok(rows.into_iter().next().map(|(_, worker, _, deliveries)| HeldTask { worker, deliveries }))
    }

    /// Runs a task again that has ended, or died, from its first attempt. It runs alone: what came before and after it
    /// in a chain or a group is not repeated, but for a dead letter, which goes on where it stopped.
    pub async fn retry(&self, id: &TaskId) -> anyhow::Result<Retried> {
        let found = self.find(id).await?.unwrap_or_default();
        if found.envelope.is_some() || found.record.as_ref().is_some_and(|record| !record.state.is_final()) {
            return Ok(Retried::OnItsWay);
        }
        let dead = found.record.as_ref().is_none_or(|record| record.state == State::Failure);
        if dead && let Some(letter) = self.letter_of(id).await? {
            self.retry_letters(&id.queue, &[letter]).await?;
            return Ok(Retried::Enqueued);
        }
        let Some(record) = found.record else { return Ok(Retried::Unknown) };
        let Some(args) = record.args else { return Ok(Retried::Forgotten) };
        let (queue, name, priority) = (id.queue.clone(), record.name, record.priority);
        let call = Call { queue, key: id.key, name, args, priority, trace: TraceParent::current() };
        let envelope = Envelope { owner: record.owner, ..Envelope::of(&call, self.clock.now().ms()) };
        let taken = self.send(&id.queue, &[(envelope, None)], Unique::UntilDone).await?;
        self.note_retried(&id.queue).await;
        // Somebody else was faster: then it is on its way as well.
        Ok(if taken == [true] { Retried::Enqueued } else { Retried::OnItsWay })
    }
}
