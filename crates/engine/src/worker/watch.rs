//! Connections that watch the streams of partitions that rest, by an `XREAD` that takes nothing. One has a hundred partitions or so: it
//! asks for all of them anew whenever something comes to one.
//!
//! A partition that comes to rest while a read is under way must not wait for its end: it writes to a stream of its watch, the
//! bell, which every read names too. What came to a stream between the last look of its partition and the read is above the
//! entry that the partition named, so the read gives it at once.
//!
//! What a new stream holds may be below the entry that the partition named: the stream was deleted, and the server's clock set
//! back. So now and then a watch looks whether the streams are as its partitions left them.
//!
//! A read that takes nothing succeeds at a replica too, or at a server that others have left. So the bell, which goes
//! through the shared connection, must be heard now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use redis::{RedisError, Value};

use super::super::client::millis;
use super::super::keys::WorkerKeys;
use super::super::scripts;
use super::super::shapes::is_wrong_type;
use super::idle::{AWAKE_FOR, Idle, OpenPartitions};
use super::read::wait_for;
use super::{Partition, STALL_AFTER, Worker};
use onrush_platform::loops::{Loops, Pulse};
use onrush_platform::redis::Blocking;

/// A read waits this long for news.
pub(super) const WATCH_BLOCK: Duration = Duration::from_secs(2);
/// A partition that rests makes a step this often.
const REST_BEAT: Duration = Duration::from_secs(3);
/// The bell is rung when it was not heard for so long, to hear whether the watch is where everybody writes.
const ECHO_PERIOD: Duration = Duration::from_secs(5);
/// And when it is not heard for so long, it is not.
const DEAF_AFTER: Duration = Duration::from_secs(12);
/// The streams are looked at once in so long.
const LOOK_PERIOD: Duration = Duration::from_secs(20);
/// Streams of one look.
const LOOKED_AT: usize = 500;
/// The bell is heard at once, or by then a later read has begun, which needs none.
const BELL_LIFE: Duration = Duration::from_secs(5);

/// Starts a watch; on a cluster there is none.
pub(super) fn start<C: Clone + Send + Sync + 'static>(worker: &Arc<Worker<C>>, watch: usize, loops: &Loops) {
    if worker.engine.redis.is_cluster() {
        return;
    }
    let worker = worker.clone();
    loops.spawn(format!("watch:{watch}"), STALL_AFTER, move |pulse| {
        let worker = worker.clone();
        async move { worker.watch(watch, &pulse).await }
    });
}

/// When a watch ends, for whatever reason, every partition of it looks for itself.
struct WakeAll<'a>(&'a OpenPartitions, usize);

impl Drop for WakeAll<'_> {
    fn drop(&mut self) {
        self.0.wake_all(self.1);
    }
}

impl<C: Clone + Send + Sync + 'static> Worker<C> {
    async fn watch(&self, watch: usize, pulse: &Pulse) -> anyhow::Result<()> {
        let _waking = WakeAll(&self.partitions, watch);
        let mut connection = self.engine.redis.blocking().await?;
        let watched = self.watch_on(watch, &mut connection, pulse).await;
        // A read may be under way on it.
        connection.discard();
        watched
    }

    async fn watch_on(&self, watch: usize, connection: &mut Blocking, pulse: &Pulse) -> anyhow::Result<()> {
        let (mut rung, mut heard, mut looked) = ("0-0".to_owned(), Instant::now(), Instant::now());
        while !pulse.stopping() {
            pulse.beat();
            let resting = self.partitions.begin_round(watch);
            if resting.is_empty() {
                tokio::select! {
                    () = self.partitions.came(watch) => {}
                    () = pulse.sleep(WATCH_BLOCK) => {}
                }
                heard = Instant::now();
                continue;
            }
            if heard.elapsed() >= DEAF_AFTER {
                bail!("the watch of idle queues is at a server to which nobody writes");
            }
            if heard.elapsed() >= ECHO_PERIOD {
                self.ring(watch).await.context("ringing the bell of the watch")?;
            }
            if looked.elapsed() >= LOOK_PERIOD {
                self.wake_unheard(&resting).await.context("looking at the streams of idle queues")?;
                looked = Instant::now();
            }
            let read = self.read_of(watch, &resting, &rung);
            let reply = tokio::select! {
                reply = wait_for(&read, WATCH_BLOCK, connection) => reply,
                // It takes nothing, so it may be given up.
                () = pulse.stopped() => return Ok(()),
            };
            self.partitions.end_round(watch);
            match reply {
                Ok(reply) => {
                    if let Some(bell) = self.wake(watch, &resting, reply) {
                        (rung, heard) = (bell, Instant::now());
                    }
                }
                // Of one of them: its partition finds it, and does not rest any more.
                Err(error) if is_wrong_type(&anyhow::Error::from(error.clone())) => {
                    resting.iter().for_each(|(partition, _)| partition.wake());
                }
                Err(error) => return Err(error).context("watching idle queues"),
            }
        }
        Ok(())
    }

    fn read_of(&self, watch: usize, resting: &[(Arc<Idle>, String)], rung: &str) -> redis::Cmd {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(millis(WATCH_BLOCK)).arg("STREAMS").arg(self.bell(watch));
        for (partition, _) in resting {
            read.arg(partition.keys.stream());
        }
        read.arg(rung);
        for (_, after) in resting {
            read.arg(after);
        }
        read
    }

    /// Wakes those to which something came; the bell's entry, when it was rung.
    fn wake(&self, watch: usize, resting: &[(Arc<Idle>, String)], reply: Value) -> Option<String> {
        let by_stream: HashMap<String, &Arc<Idle>> =
            resting.iter().map(|(partition, _)| (partition.keys.stream(), partition)).collect();
        let (bell, mut rung) = (self.bell(watch), None);
        for (stream, last) in streams_of(reply) {
            if stream == bell {
                rung = Some(last);
            } else if let Some(partition) = by_stream.get(&stream) {
                partition.wake();
            }
        }
        rung
    }

    /// Wakes those whose stream is not as it was when they came to rest.
    async fn wake_unheard(&self, resting: &[(Arc<Idle>, String)]) -> Result<(), RedisError> {
        for some in resting.chunks(LOOKED_AT) {
            let mut look = scripts::UNHEARD.prepare_invoke();
            for (partition, after) in some {
                look.key(partition.keys.stream()).arg(after);
            }
            let changed: Vec<usize> = look.invoke_async(&mut self.engine.redis.commands()).await?;
            let of = |number: usize| some.get(number.checked_sub(1)?);
            changed.into_iter().filter_map(of).for_each(|(partition, _)| partition.wake());
        }
        Ok(())
    }

    fn bell(&self, watch: usize) -> String {
        WorkerKeys::new(self.engine.redis.prefix()).bell(&self.consumer, watch)
    }

    async fn ring(&self, watch: usize) -> Result<(), RedisError> {
        let bell = self.bell(watch);
        let mut ringing = redis::pipe();
        ringing.cmd("XADD").arg(&bell).arg("MAXLEN").arg(1).arg("*").arg("r").arg(1).ignore();
        ringing.cmd("PEXPIRE").arg(&bell).arg(millis(BELL_LIFE)).ignore();
        ringing.query_async(&mut self.engine.redis.commands()).await
    }
}

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    /// Rests until something may have come to the stream after its entry `last`, or the partition has to look for itself.
    pub(super) async fn rest_after(&self, last: String, pulse: &Pulse) -> anyhow::Result<()> {
        let partitions = &self.worker.partitions;
        if partitions.rest(&self.idle, last) {
            self.worker.ring(self.idle.watch()).await.context("telling the watch of an idle queue")?;
        }
        let rests_since = Instant::now();
        while !pulse.stopping() && self.idle.rests() && self.may_rest() && self.is_best_at_rest(rests_since) {
            pulse.beat();
            tokio::select! {
                () = self.idle.woken() => {}
                () = pulse.sleep(REST_BEAT) => {}
            }
        }
        if self.idle.rests() {
            self.idle.wake();
        }
        Ok(())
    }

    /// A partition that is not idle keeps its queue itself, and begins to be idle only when its reader looks.
    fn is_best_at_rest(&self, since: Instant) -> bool {
        if self.idle.is_idle() { !self.runs() } else { since.elapsed() < AWAKE_FOR }
    }

    /// Whether there is a watch, which reads of one stream, and does not know of a pause.
    pub(super) fn may_rest(&self) -> bool {
        self.worker.partitions.is_watched(&self.idle) && self.levels().is_one() && !self.throttle.is_paused()
    }
}

/// The streams of an `XREAD` reply, each with the last entry that it gave.
fn streams_of(reply: Value) -> Vec<(String, String)> {
    let pairs: Vec<(Value, Value)> = match reply {
        Value::Map(pairs) => pairs,
        Value::Array(streams) => streams
            .into_iter()
            .filter_map(|stream| match stream {
                Value::Array(parts) => <[Value; 2]>::try_from(parts).ok().map(|[name, entries]| (name, entries)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let read = |(name, entries): (Value, Value)| {
        let entries: Vec<(String, Value)> = redis::from_redis_value(entries).ok()?;
        Some((redis::from_redis_value(name).ok()?, entries.into_iter().next_back()?.0))
    };
    pairs.into_iter().filter_map(read).collect()
}
