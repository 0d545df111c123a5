//! The loop of a partition that reads: a batch at a time, of the priority whose turn it is, while there are places to run
//! it in.
//!
//! A queue whose tasks all have the default priority has one stream, and its read waits at the server for work. Of
//! several streams that read would take from all at once, more than there is a place for; so a script takes from the
//! first that has something (`take.lua`), and when none has, a read that takes nothing waits for the next task.

use std::io;
use std::sync::atomic::Ordering;

use anyhow::Context;
use redis::{RedisError, Value};
use tokio_util::task::TaskTracker;

use super::super::client::millis;
use super::super::keys::GROUP;
use super::super::priority::{Levels, Priority};
use super::super::scripts;
use super::turns::Turns;
use super::{BLOCK, Lane, READ_GRACE, fault, keeper};
use crate::platform::loops::Pulse;
use crate::platform::redis::Blocking;

/// Entries as (id, envelope's text).
type Entries = Vec<(String, String)>;

impl<C: Clone + Send + Sync + 'static> Lane<C> {
    pub(super) async fn read(self, pulse: Pulse, tracker: TaskTracker) -> anyhow::Result<()> {
        let mut connection = self.worker.engine.redis.blocking().await?;
        let read = self.read_on(&mut connection, pulse, tracker).await;
        if read.is_err() {
            connection.discard();
        }
        read
    }

    async fn read_on(&self, connection: &mut Blocking, pulse: Pulse, tracker: TaskTracker) -> anyhow::Result<()> {
        let mut turns = Turns::default();
        self.spare(self.ensure_groups(self.levels())).await?;
        while !pulse.stopping() {
            pulse.beat();
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
            let taken = if levels.is_one() {
                self.take_or_wait(connection).await.map(|entries| (Priority::DEFAULT, entries))
            } else {
                self.take_in_turn(connection, levels, &mut turns).await
            };
            let (level, entries) = match taken {
                Ok((_, entries)) if entries.is_empty() => continue,
                Ok(taken) => taken,
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
            self.moved.store(true, Ordering::SeqCst);
            let lane = self.at(level);
            let batch = lane.batch(entries, 1);
            if pulse.stopping() {
                lane.give_back(&batch.into_deliveries()).await?;
                break;
            }
            tracker.spawn(async move { lane.process(batch, permit).await });
        }
        Ok(())
    }

    /// Entries of the only stream; waits for some for a while.
    async fn take_or_wait(&self, connection: &mut Blocking) -> Result<Entries, RedisError> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(&self.worker.consumer).arg("COUNT").arg(self.spec.batch);
        read.arg("BLOCK").arg(millis(BLOCK)).arg("STREAMS").arg(self.keys.stream()).arg(">");
        wait_for(&read, connection).await.map(first_stream)
    }

    /// Entries of the stream whose turn it is; waits for a while for one to have some, and then gives none.
    async fn take_in_turn(
        &self,
        connection: &mut Blocking,
        levels: Levels,
        turns: &mut Turns,
    ) -> Result<(Priority, Entries), RedisError> {
        let order = turns.order(levels);
        let mut take = scripts::TAKE.prepare_invoke();
        for level in &order {
            take.key(self.keys.stream_of(*level));
        }
        take.arg(GROUP).arg(&self.worker.consumer).arg(self.spec.batch);
        let (number, entries, last): (usize, Value, Vec<String>) =
            take.invoke_async(&mut self.worker.engine.redis.commands()).await?;
        if let Some(level) = number.checked_sub(1).and_then(|at| order.get(at)) {
            turns.took(*level);
            return Ok((*level, stream_entries(entries)));
        }
        turns.rest();
        let mut wait = redis::cmd("XREAD");
        wait.arg("COUNT").arg(1).arg("BLOCK").arg(millis(BLOCK)).arg("STREAMS");
        for level in &order {
            wait.arg(self.keys.stream_of(*level));
        }
        wait.arg(last);
        wait_for(&wait, connection).await.map(|_| (Priority::DEFAULT, Entries::new()))
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
async fn wait_for(command: &redis::Cmd, connection: &mut Blocking) -> Result<Value, RedisError> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server did not answer a read in time");
    tokio::time::timeout(BLOCK + READ_GRACE, command.query_async(connection)).await.map_err(late)?
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
