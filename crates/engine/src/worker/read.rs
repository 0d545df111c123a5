//! The loop of a partition that reads: a batch at a time, of the priority whose turn it is, while there are places to run
//! it in.
//!
//! A queue whose tasks all have the default priority has one stream, and its read waits at the server for work. Of
//! several streams that read would take from all at once, more than there is a place for; so a script takes from the
//! first that has something (`take.lua`), and when none has, a read that takes nothing waits for the next task.
//!
//! Where nothing has come for a while the reader gives its connection back and rests ([`idle`](super::idle)): it takes by the
//! script too, and waits for the watch of all partitions that rest. So does one that begins.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use redis::{RedisError, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use super::super::client::millis;
use super::super::keys::GROUP;
use super::super::priority::{Levels, Priority};
use super::super::scripts;
use super::idle::AWAKE_FOR;
use super::priority_order::PriorityOrder;
use super::{BLOCK, Partition, READ_GRACE, fault, keeper};
use onrush_platform::loops::Pulse;
use onrush_platform::redis::Blocking;

/// Of the connections that readers may have of their own, those that one whose queue is idle leaves to others.
const LEFT_TO_THE_BUSY: usize = 20;

/// Entries as (id, envelope's text).
type Entries = Vec<(String, String)>;

/// What a look by the script found.
enum Looked {
    Some(Priority, Entries),
    /// Nothing; what comes to the stream of a priority after that is above its id here.
    Nothing(Vec<(Priority, String)>),
}

/// A connection of the reader's own, taken when it needs one, and the right to have it.
#[derive(Default)]
struct Own(Option<(Blocking, OwnedSemaphorePermit)>);

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    pub(super) async fn read(self, pulse: Pulse, tracker: TaskTracker) -> anyhow::Result<()> {
        let mut own = Own::default();
        let read = self.read_on(&mut own, pulse, tracker).await;
        if let Some((connection, _)) = own.0.filter(|_| read.is_err()) {
            connection.discard();
        }
        read
    }

    async fn read_on(&self, own: &mut Own, pulse: Pulse, tracker: TaskTracker) -> anyhow::Result<()> {
        let (mut turns, mut found) = (PriorityOrder::default(), None::<Instant>);
        self.spare(self.ensure_groups(self.levels())).await?;
        while !pulse.stopping() {
            pulse.beat();
            let found_nothing = found.is_none_or(|at| at.elapsed() >= AWAKE_FOR);
            let is_idle = self.idle.set_idle(found_nothing && !self.runs());
            if !self.throttle.may_read() {
                self.throttle.opened(&pulse, BLOCK).await;
                continue;
            }
            let permit = tokio::select! {
                permit = self.throttle.place() => permit?,
                () = pulse.sleep(BLOCK) => continue,
            };
            if self.throttle.is_paused() {
                continue;
            }
            if self.worker.engine.is_held() {
                pulse.sleep(BLOCK).await;
                continue;
            }
            let levels = self.levels();
            let looked = if self.has_own(own, is_idle).await? {
                self.take(own, levels, &mut turns).await.map(|(level, entries)| Looked::Some(level, entries))
            } else {
                self.look(levels, &mut turns).await
            };
            let (level, entries) = match looked {
                Ok(Looked::Nothing(last)) => {
                    drop(permit);
                    match last.into_iter().next().filter(|_| levels.is_one() && self.may_rest()) {
                        Some((_, last)) => self.rest_after(last, &pulse).await?,
                        None => pulse.sleep(BLOCK).await,
                    }
                    continue;
                }
                Ok(Looked::Some(_, entries)) if entries.is_empty() => continue,
                Ok(Looked::Some(level, entries)) => (level, entries),
                // The stream is gone (Redis was emptied): the group is made again and reading goes on.
                Err(error) if keeper::is_no_group(&error) => {
                    drop(permit);
                    self.spare(self.ensure_groups(levels)).await?;
                    continue;
                }
                Err(error) => {
                    drop(permit);
                    self.spare(async { Err::<(), _>(error).context("reading tasks") }).await?;
                    pulse.sleep(fault::TRIED).await;
                    continue;
                }
            };
            found = Some(Instant::now());
            if is_idle {
                self.idle.set_idle(false);
                self.worker.engine.note_woken(&self.queue);
            }
            self.moved.store(true, Ordering::SeqCst);
            let partition = self.at(level);
            let batch = partition.batch(entries, 1);
            if pulse.stopping() {
                partition.give_back(&batch.into_deliveries()).await?;
                break;
            }
            tracker.spawn(async move { partition.process(batch, permit).await });
        }
        Ok(())
    }

    /// Whether the next read waits on a connection of the reader's own, which it then has.
    async fn has_own(&self, own: &mut Own, is_idle: bool) -> anyhow::Result<bool> {
        let places = &self.worker.partitions.own;
        if is_idle && (self.may_rest() || places.available_permits() == 0) {
            // Not back to the pool, which keeps what it has open for ever.
            if let Some((connection, _)) = own.0.take() {
                connection.discard();
            }
        } else if own.0.is_none()
            && (!is_idle || places.available_permits() > LEFT_TO_THE_BUSY)
            && let Ok(place) = places.clone().try_acquire_owned()
        {
            own.0 = Some((self.worker.engine.redis.blocking().await?, place));
        }
        Ok(own.0.is_some())
    }

    /// Entries of the stream whose turn it is; waits for some for a while.
    async fn take(
        &self,
        own: &mut Own,
        levels: Levels,
        turns: &mut PriorityOrder,
    ) -> Result<(Priority, Entries), RedisError> {
        let Some((connection, _)) = &mut own.0 else { return Ok((Priority::DEFAULT, Entries::new())) };
        if levels.is_one() {
            self.take_or_wait(connection).await.map(|entries| (Priority::DEFAULT, entries))
        } else {
            self.take_in_turn(connection, levels, turns).await
        }
    }

    /// Entries of the only stream; waits for some for a while.
    async fn take_or_wait(&self, connection: &mut Blocking) -> Result<Entries, RedisError> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(&self.worker.consumer).arg("COUNT").arg(self.spec.batch);
        read.arg("BLOCK").arg(millis(BLOCK)).arg("STREAMS").arg(self.keys.stream()).arg(">");
        wait_for(&read, BLOCK, connection).await.map(first_stream)
    }

    /// Entries of the stream whose turn it is; waits for a while for one to have some, and then gives none.
    async fn take_in_turn(
        &self,
        connection: &mut Blocking,
        levels: Levels,
        turns: &mut PriorityOrder,
    ) -> Result<(Priority, Entries), RedisError> {
        let last = match self.look(levels, turns).await? {
            Looked::Some(level, entries) => return Ok((level, entries)),
            Looked::Nothing(last) => last,
        };
        let mut wait = redis::cmd("XREAD");
        wait.arg("COUNT").arg(1).arg("BLOCK").arg(millis(BLOCK)).arg("STREAMS");
        for (level, _) in &last {
            wait.arg(self.keys.stream_of(*level));
        }
        for (_, last) in last {
            wait.arg(last);
        }
        wait_for(&wait, BLOCK, connection).await.map(|_| (Priority::DEFAULT, Entries::new()))
    }

    /// Entries of the stream whose turn it is, without a wait.
    async fn look(&self, levels: Levels, turns: &mut PriorityOrder) -> Result<Looked, RedisError> {
        let order = turns.order(levels);
        let mut take = scripts::TAKE.prepare_invoke();
        for level in &order {
            take.key(self.keys.stream_of(*level));
        }
        take.arg(GROUP).arg(&self.worker.consumer).arg(self.spec.batch);
        let (number, entries, last): (usize, Value, Vec<String>) =
            take.invoke_async(&mut self.worker.engine.redis.commands()).await?;
        Ok(match number.checked_sub(1).and_then(|at| order.get(at)) {
            Some(level) => {
                turns.took(*level);
                Looked::Some(*level, stream_entries(entries))
            }
            None => {
                turns.rest();
                Looked::Nothing(order.into_iter().zip(last).collect())
            }
        })
    }

    /// Makes the consumer group in every stream of these, and the streams where there are none.
    pub(super) async fn ensure_groups(&self, levels: Levels) -> anyhow::Result<()> {
        for level in levels.iter() {
            let made: Result<(), RedisError> = redis::cmd("XGROUP")
                .arg("CREATE")
                .arg(self.keys.stream_of(level))
                .arg(GROUP)
                .arg("0")
                .arg("MKSTREAM")
                .query_async(&mut self.worker.engine.redis.commands())
                .await;
            match made {
                Err(error) if error.code() != Some("BUSYGROUP") => {
                    return Err(error).context("making the consumer group");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a command that waits at the server answers. A server that is gone without a word would never answer; what it gave
/// out is taken over.
pub(super) async fn wait_for(
    command: &redis::Cmd,
    block: Duration,
    connection: &mut Blocking,
) -> Result<Value, RedisError> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server did not answer a read in time");
    tokio::time::timeout(block + READ_GRACE, command.query_async(connection)).await.map_err(late)?
}

/// The entries of the only stream of an `XREADGROUP` reply.
fn first_stream(reply: Value) -> Entries {
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

/// Entries of a stream's reply. One that was deleted (nil fields) is left out; one without an envelope has "".
pub(super) fn stream_entries(reply: Value) -> Entries {
    let Value::Array(entries) = reply else { return Vec::new() };
    let read = |entry| {
        let (id, fields): (String, Vec<String>) = redis::from_redis_value(entry).ok()?;
        let mut fields = fields.into_iter();
        while let (Some(name), Some(text)) = (fields.next(), fields.next()) {
            if name == "e" {
                return Some((id, text));
            }
        }
        Some((id, String::new()))
    };
    entries.into_iter().filter_map(read).collect()
}
