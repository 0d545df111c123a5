//! The floor: the same work with raw commands, without leases, ownership, uniqueness, retries or dead letters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use onrush::platform::redis::{Blocking, Redis};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::{Bench, IN_FLIGHT, RESULT_TTL, Rate, Watch, envelope};

const GROUP: &str = "floor";
/// What a job ends with.
const RESULT: &str = r#"{"state":"SUCCESS","result":null}"#;

type Entries = Vec<(String, Vec<String>)>;

/// Puts the jobs into the stream.
pub async fn fill(bench: &Bench) {
    for from in (0..bench.jobs).step_by(500) {
        add(&bench.redis, &bench.keys.stream(), from..bench.jobs.min(from + 500)).await;
    }
}

async fn add(redis: &Redis, stream: &str, numbers: impl Iterator<Item = usize>) {
    let mut pipe = redis::pipe();
    for n in numbers {
        pipe.cmd("XADD").arg(stream).arg("*").arg("e").arg(envelope(n)).ignore();
    }
    pipe.query_async::<()>(&mut redis.commands()).await.unwrap();
}

async fn make_group(bench: &Bench) {
    let _: () = bench.ask("XGROUP", &["CREATE", &bench.keys.stream(), GROUP, "0", "MKSTREAM"]).await;
}

/// Reads as the engine does: on a connection of its own.
async fn read(connection: &mut Blocking, stream: &str, count: usize) -> Entries {
    let reply: Option<Vec<(String, Entries)>> = redis::cmd("XREADGROUP")
        .arg(&["GROUP", GROUP, "reader", "COUNT"])
        .arg(count)
        .arg(&["BLOCK", "500", "STREAMS", stream, ">"])
        .query_async(connection)
        .await
        .unwrap();
    reply.and_then(|streams| streams.into_iter().next()).map(|(_, entries)| entries).unwrap_or_default()
}

/// Keeps the results of a batch and acknowledges it, in one pipeline.
async fn finish(redis: Redis, stream: String, entries: Entries) {
    let mut pipe = redis::pipe();
    for (id, _) in &entries {
        pipe.cmd("SET").arg(format!("{stream}:{id}")).arg(RESULT).arg("EX").arg(RESULT_TTL.as_secs()).ignore();
    }
    let ids: Vec<&String> = entries.iter().map(|(id, _)| id).collect();
    pipe.cmd("XACK").arg(&stream).arg(GROUP).arg(ids).ignore();
    pipe.query_async::<()>(&mut redis.commands()).await.unwrap();
}

/// Jobs from a full stream, with as many batches under way as the engine has.
pub async fn jobs(bench: &Bench, size: usize) -> Rate {
    fill(bench).await;
    make_group(bench).await;
    let stream = bench.keys.stream();
    let mut connection = bench.redis.blocking().await.unwrap();
    let (permits, tracker) = (Arc::new(Semaphore::new(IN_FLIGHT)), TaskTracker::new());
    let watch = Watch::start(bench).await;
    let mut left = bench.jobs;
    while left > 0 {
        let permit = permits.clone().acquire_owned().await.unwrap();
        let entries = read(&mut connection, &stream, size).await;
        left -= entries.len();
        let (redis, stream) = (bench.redis.clone(), stream.clone());
        tracker.spawn(async move {
            finish(redis, stream, entries).await;
            drop(permit);
        });
    }
    tracker.close();
    tracker.wait().await;
    watch.stop(bench, bench.jobs).await
}

/// Milliseconds from an `XADD` to the reader that waits for it.
pub async fn starts(bench: &Bench, count: usize) -> Vec<f64> {
    make_group(bench).await;
    let stream = bench.keys.stream();
    let mut connection = bench.redis.blocking().await.unwrap();
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let (redis, name) = (bench.redis.clone(), stream.clone());
    let reader = tokio::spawn(async move {
        loop {
            let entries = read(&mut connection, &name, 100).await;
            if !entries.is_empty() && arrived.send(Instant::now()).is_err() {
                return;
            }
            if !entries.is_empty() {
                finish(redis.clone(), name.clone(), entries).await;
            }
        }
    });
    let mut times = Vec::new();
    for n in 0..count {
        let asked = Instant::now();
        add(&bench.redis, &stream, n..n + 1).await;
        let arrived: Instant = arrivals.recv().await.unwrap();
        times.push(arrived.duration_since(asked).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    reader.abort();
    times
}

/// Tasks per second that enter the stream.
pub async fn enqueue_rate(bench: &Bench, askers: usize, together: usize) -> f64 {
    let (calls, stream) = (bench.jobs / askers / together, bench.keys.stream());
    let asker = async || {
        for n in 0..calls {
            add(&bench.redis, &stream, n..n + together).await;
        }
    };
    let began = Instant::now();
    join_all((0..askers).map(|_| asker())).await;
    (askers * calls * together) as f64 / began.elapsed().as_secs_f64()
}
