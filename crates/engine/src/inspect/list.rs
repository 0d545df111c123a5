//! Tasks of a queue, page by page: what runs, what waits, what waits for its time, what ended (newest first).
//!
//! A list is in motion while it is read: a task that moves on between two pages may come twice or not at all.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use redis::streams::{StreamId, StreamRangeReply};
use uuid::Uuid;

use super::super::client::Engine;
use super::super::envelope::{Envelope, Record};
use super::super::keys::{GROUP, QueueName};
use super::super::priority::{Priority, StreamEntry};
use super::super::task::{State, TaskId};
use super::tasks::waiting_state;
use onrush_platform::clock::At;

/// Entries that one step looks at.
const STEP: usize = 100;

/// Which tasks are wanted.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// In this state.
    pub state: Option<State>,
    /// Of this name.
    pub name: Option<String>,
    /// Not before this instant: of its end, for a task that has ended; else of its enqueueing.
    pub since: Option<At>,
    /// Not after this instant, likewise.
    pub until: Option<At>,
}

/// A task in a list.
#[derive(Debug, Clone)]
pub struct ListedTask {
    /// Its id.
    pub id: TaskId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// How urgent it is; none when its record is gone.
    pub priority: Option<Priority>,
    /// Its attempt; none when its record is gone.
    pub attempt: Option<u32>,
    /// When it was enqueued.
    pub enqueued_at: Option<At>,
    /// When it is due, where it waits for its time.
    pub due_at: Option<At>,
    /// When its last attempt began.
    pub started_at: Option<At>,
    /// When it ended.
    pub ended_at: Option<At>,
    /// Who has it, or had it last.
    pub worker: Option<String>,
}

/// Where tasks of a queue are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Running,
    Waiting,
    Delayed,
    Ended,
}

impl Source {
    const ALL: [Self; 4] = [Self::Running, Self::Waiting, Self::Delayed, Self::Ended];

    fn letter(self) -> char {
        match self {
            Self::Running => 'r',
            Self::Waiting => 'w',
            Self::Delayed => 'd',
            Self::Ended => 'e',
        }
    }

    fn next(self) -> Option<Self> {
        let at = Self::ALL.iter().position(|source| *source == self)?;
        Self::ALL.get(at + 1).copied()
    }

    fn may_have(self, state: State) -> bool {
        match self {
            Self::Running => state == State::Started,
            Self::Waiting | Self::Delayed => matches!(state, State::Pending | State::Retry),
            Self::Ended => state.is_final(),
        }
    }
}

/// How far a list of a queue's tasks was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPosition {
    source: Source,
    /// What was seen last there; empty at its beginning. The name of an entry, `:<priority>` at the beginning of that one's
    /// stream; `<due, ms>.<key>`; for what ended
    /// `<entry>.<tasks of it already seen>`.
    seen: String,
}

impl Default for ListPosition {
    fn default() -> Self {
        Self::start_of(Source::Running)
    }
}

impl ListPosition {
    fn start_of(source: Source) -> Self {
        Self { source, seen: String::new() }
    }
}

impl fmt::Display for ListPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.source.letter(), self.seen)
    }
}

impl FromStr for ListPosition {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let source = Source::ALL.into_iter().find(|source| text.starts_with(source.letter())).ok_or(())?;
        let seen = &text[1..];
        // At most 19 digits: there is an entry above each such, without which Redis takes no range.
        let number = |part: &str| (1..=19).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        let is_entry = |part: &str| part.split_once('-').is_some_and(|(ms, seq)| number(ms) && number(seq));
        let good = seen.is_empty()
            || match (source, seen.split_once('.')) {
                (Source::Running | Source::Waiting, None) => {
                    StreamEntry::named(seen).is_some_and(|entry| entry.id.is_empty() || is_entry(&entry.id))
                }
                (Source::Delayed, Some((due, key))) => number(due) && Uuid::try_parse(key).is_ok(),
                (Source::Ended, Some((entry, count))) => is_entry(entry) && number(count),
                _ => false,
            };
        if good { Ok(Self { source, seen: seen.to_owned() }) } else { Err(()) }
    }
}

/// What one step found, and what it saw last; `None` when its source is at its end.
type Step = (Vec<ListedTask>, Option<String>);

impl Engine {
    /// One bounded step through the tasks of a queue, at most `limit` of them, from `place` on. Gives where the next
    /// step begins; `None` at the end of the queue. A step may find nothing and still not be at the end.
    pub async fn list_tasks(
        &self,
        queue: &QueueName,
        filter: &TaskFilter,
        place: &ListPosition,
        limit: usize,
    ) -> anyhow::Result<(Vec<ListedTask>, Option<ListPosition>)> {
        let (source, seen) = (place.source, place.seen.as_str());
        let following = source.next().map(ListPosition::start_of);
        if filter.state.is_some_and(|state| !source.may_have(state)) {
            return Ok((Vec::new(), following));
        }
        let count = limit.min(STEP);
        let (mut tasks, seen) = match source {
            Source::Running | Source::Waiting => self.in_streams(queue, source, seen, count).await?,
            Source::Delayed => self.delayed(queue, seen, count).await?,
            Source::Ended => self.ended(queue, seen, count, filter).await?,
        };
        tasks.retain(|task| wanted(task, filter));
        Ok((tasks, seen.map(|seen| ListPosition { source, seen }).or(following)))
    }

    /// What runs or waits, stream by stream, the most urgent priority first.
    async fn in_streams(&self, queue: &QueueName, source: Source, seen: &str, count: usize) -> anyhow::Result<Step> {
        let levels = self.levels(queue).await?;
        let first = levels.iter().next().unwrap_or_default();
        let seen = StreamEntry::named(seen).filter(|_| !seen.is_empty());
        let StreamEntry { level, id } = seen.unwrap_or(StreamEntry { level: first, id: String::new() });
        let (tasks, last) = match source {
            Source::Running => self.running(queue, level, &id, count).await?,
            _ => self.waiting_in(queue, level, &id, count).await?,
        };
        let next = levels.iter().find(|next| *next > level);
        let seen = last.map(|id| StreamEntry { level, id }.to_string()).or(next.map(|next| format!(":{next}")));
        Ok((tasks, seen))
    }

    async fn running(&self, queue: &QueueName, level: Priority, seen: &str, count: usize) -> anyhow::Result<Step> {
        let stream = self.keys(queue).stream_of(level);
        let mut commands = self.redis.commands();
        let pending: Result<Vec<(String, String, u64, u64)>, redis::RedisError> = redis::cmd("XPENDING")
            .arg(&stream)
            .arg(GROUP)
            .arg(above(seen))
            .arg("+")
            .arg(count)
            .query_async(&mut commands)
            .await;
        let pending = match pending {
            Ok(pending) => pending,
            // Nobody has read yet.
            Err(error) if error.code() == Some("NOGROUP") => return Ok((Vec::new(), None)),
            Err(error) => return Err(error).context("listing what runs"),
        };
        let Some(last) = pending.last().map(|row| row.0.clone()) else { return Ok((Vec::new(), None)) };
        let mut asked = redis::pipe();
        for (entry, ..) in &pending {
            asked.cmd("XRANGE").arg(&stream).arg(entry).arg(entry);
        }
        let entries: Vec<StreamRangeReply> = asked.query_async(&mut commands).await.context("reading what runs")?;
        let mut tasks = Vec::new();
        for ((_, worker, ..), reply) in pending.iter().zip(entries) {
            let envelope = reply.ids.first().and_then(envelope_of);
            tasks.extend(envelope.map(|envelope| ListedTask {
                state: State::Started,
                worker: Some(worker.clone()),
                ..listed(queue, &envelope)
            }));
        }
        self.with_records(queue, &mut tasks).await?;
        Ok((tasks, (pending.len() == count).then_some(last)))
    }

    async fn waiting_in(&self, queue: &QueueName, level: Priority, seen: &str, count: usize) -> anyhow::Result<Step> {
        let after = if seen.is_empty() { self.last_delivered(queue, level).await? } else { seen.to_owned() };
        let found: StreamRangeReply = redis::cmd("XRANGE")
            .arg(self.keys(queue).stream_of(level))
            .arg(above(&after))
            .arg("+")
            .arg("COUNT")
            .arg(count)
            .query_async(&mut self.redis.commands())
            .await
            .context("listing what waits")?;
        let last = found.ids.last().map(|entry| entry.id.clone()).filter(|_| found.ids.len() == count);
        let tasks = found.ids.iter().filter_map(envelope_of).map(|envelope| listed(queue, &envelope)).collect();
        Ok((tasks, last))
    }

    async fn delayed(&self, queue: &QueueName, seen: &str, count: usize) -> anyhow::Result<Step> {
        let keys = self.keys(queue);
        let mut commands = self.redis.commands();
        let first: u64 = match seen.split_once('.') {
            None => 0,
            Some((due, key)) => {
                let (rank, before): (Option<u64>, u64) = redis::pipe()
                    .zrank(keys.delayed(), key)
                    .zcount(keys.delayed(), "-inf", format!("({due}"))
                    .query_async(&mut commands)
                    .await
                    .context("finding a place among what waits for its time")?;
                rank.map_or(before, |rank| rank + 1)
            }
        };
        let due: Vec<(String, f64)> = redis::cmd("ZRANGE")
            .arg(keys.delayed())
            .arg(first)
            .arg(first + count as u64 - 1)
            .arg("WITHSCORES")
            .query_async(&mut commands)
            .await
            .context("listing what waits for its time")?;
        let Some((key, at)) = due.last() else { return Ok((Vec::new(), None)) };
        let last = (due.len() == count).then(|| format!("{}.{key}", *at as i64));
        let names: Vec<&str> = due.iter().map(|(key, _)| key.as_str()).collect();
        let texts: Vec<Option<String>> = redis::cmd("HMGET")
            .arg(keys.envelopes())
            .arg(names)
            .query_async(&mut commands)
            .await
            .context("reading envelopes")?;
        let whole = due.iter().zip(texts).filter_map(|((_, at), text)| {
            let envelope = Envelope::parse(&text?).ok()?;
            Some(ListedTask { due_at: Some(At::from_ms(*at as i64)), ..listed(queue, &envelope) })
        });
        Ok((whole.collect(), last))
    }

    async fn ended(&self, queue: &QueueName, seen: &str, count: usize, filter: &TaskFilter) -> anyhow::Result<Step> {
        let (from, mut skip) = match seen.split_once('.') {
            Some((entry, skip)) => (entry.to_owned(), skip.parse::<usize>().unwrap_or(0)),
            None => (filter.until.map_or_else(|| "+".to_owned(), |until| until.ms().max(0).to_string()), 0),
        };
        let since = filter.since.map_or_else(|| "-".to_owned(), |since| since.ms().max(0).to_string());
        let found: StreamRangeReply = redis::cmd("XREVRANGE")
            .arg(self.keys(queue).ended())
            .arg(from)
            .arg(since)
            .arg("COUNT")
            .arg(STEP)
            .query_async(&mut self.redis.commands())
            .await
            .context("listing what ended")?;
        let (mut tasks, mut last) = (Vec::new(), None);
        for entry in &found.ids {
            let batch = batch_of(queue, entry);
            let taken: Vec<_> = batch.iter().skip(skip).take(count - tasks.len()).cloned().collect();
            let seen = skip + taken.len();
            (skip, last) = (0, Some(format!("{}.{seen}", entry.id)));
            tasks.extend(taken);
            if tasks.len() == count {
                break;
            }
        }
        // At the end: the last look was short of entries and took all of them.
        if tasks.len() < count && found.ids.len() < STEP {
            last = None;
        }
        tasks.retain(|task| wanted(task, filter));
        self.with_records(queue, &mut tasks).await?;
        Ok((tasks, last))
    }

    /// Adds what the tasks' records say.
    async fn with_records(&self, queue: &QueueName, tasks: &mut [ListedTask]) -> anyhow::Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let keys = self.keys(queue);
        let names: Vec<String> = tasks.iter().map(|task| keys.task(task.id.key.as_simple())).collect();
        let texts: Vec<Option<String>> =
            redis::cmd("MGET").arg(names).query_async(&mut self.redis.commands()).await.context("reading records")?;
        for (task, text) in tasks.iter_mut().zip(texts) {
            let record = text.and_then(|text| serde_json::from_str::<Record>(&text).ok());
            let Some(record) = record.filter(|record| record.state == task.state) else { continue };
            task.priority = Some(record.priority);
            task.attempt = Some(record.attempt);
            task.enqueued_at = Some(At::from_ms(record.at));
            task.started_at = record.started_at.map(At::from_ms);
            task.worker = record.worker.or(task.worker.take());
        }
        Ok(())
    }
}

/// The lower end of a range that begins above `entry`; from the beginning when that is empty.
fn above(entry: &str) -> String {
    if entry.is_empty() { "-".to_owned() } else { format!("({entry}") }
}

fn envelope_of(entry: &StreamId) -> Option<Envelope> {
    Envelope::parse(&entry.get::<String>("e")?).ok()
}

fn listed(queue: &QueueName, envelope: &Envelope) -> ListedTask {
    ListedTask {
        id: TaskId { key: envelope.key, queue: queue.clone() },
        name: envelope.name.clone(),
        state: waiting_state(envelope),
        priority: Some(envelope.priority),
        attempt: Some(envelope.attempt),
        enqueued_at: Some(At::from_ms(envelope.at)),
        due_at: None,
        started_at: None,
        ended_at: None,
        worker: None,
    }
}

/// The tasks of one acknowledged batch that ended alike, as their entry names them.
fn batch_of(queue: &QueueName, entry: &StreamId) -> Vec<ListedTask> {
    let text = |field: &str| entry.get::<String>(field).unwrap_or_default();
    let (name, keys) = (text("n"), text("t"));
    let Ok(state) = serde_json::from_value::<State>(text("s").into()) else { return Vec::new() };
    let ended_at = entry.id.split('-').next().and_then(|ms| ms.parse().ok()).map(At::from_ms);
    let task = |key: &str| {
        let id = TaskId { key: Uuid::try_parse(key).ok()?, queue: queue.clone() };
        let nothing = Envelope::nameless(id.key);
        let blank = ListedTask { priority: None, attempt: None, enqueued_at: None, ..listed(queue, &nothing) };
        Some(ListedTask { id, name: name.clone(), state, ended_at, ..blank })
    };
    keys.split(' ').filter_map(task).collect()
}

fn wanted(task: &ListedTask, filter: &TaskFilter) -> bool {
    let at = task.ended_at.or(task.enqueued_at);
    filter.state.is_none_or(|state| task.state == state)
        && filter.name.as_ref().is_none_or(|name| task.name == *name)
        && filter.since.is_none_or(|since| at.is_some_and(|at| at >= since))
        && filter.until.is_none_or(|until| at.is_some_and(|at| at <= until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text_and_nothing_else_is_one() {
        for good in ["r", "w17-0", "w17-0:3", "r:5", "d17.01936f3c7a3b70008000000000000001", "e17-3.400"] {
            assert_eq!(good.parse::<ListPosition>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "x",
            "w17",
            "w(17-0",
            "d17",
            "d17.no",
            "e17-3",
            "e17-3.x",
            "r+",
            "r:",
            "w17-0:10",
            "w17:3",
            "d:3",
            "e99999999999999999999-1.0",
            "w18446744073709551615-0",
        ] {
            assert!(bad.parse::<ListPosition>().is_err(), "{bad}");
        }
    }
}
