//! The task engine by itself, against a floor in the same run. `script/bench engine` runs it.
//!
//! The floor is what the same work costs with raw commands on the same kind of connection: `XREADGROUP`, then `SET EX`
//! for each result and one `XACK`, pipelined per batch, with as many batches under way. Each round measures the engine
//! and then the floor, and the ratio is taken pair by pair: on a noisy machine only ratios mean much. Medians are
//! reported.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on has nothing to report")]

mod floor;
mod peers;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use onrush::engine::{
    Engine, EngineSettings, Item, Job, Keys, Outcome, QueueName, QueueSpec, Registry, Task, Worker, envelope_of,
};
use onrush::platform::clock::Clock;
use onrush::platform::loops::Loops;
use onrush::platform::redis::Redis;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use support::{Dir, ROUNDS, median, percentile};

/// The product's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Jobs of a full queue, due tasks of a promotion, tasks of a backlog. A number on the command line says another.
const JOBS: usize = 200_000;
/// Tasks enqueued one at a time, to an idle worker.
const STARTS: usize = 3000;
/// Who enqueues one at a time, at once.
const ASKERS: usize = 256;
/// Tasks enqueued by one call where they come in batches.
const ENQUEUED_TOGETHER: usize = 200;
/// Batches under way at once, as most queues of the product have it.
const IN_FLIGHT: usize = 2;
/// How long a result is kept.
const RESULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// No script may keep Redis from others for longer.
const SCRIPT_AIM_MS: f64 = 5.0;

/// A job that does nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Noop {
    n: usize,
}

impl Task for Noop {
    const NAME: &'static str = "bench.noop";
    const QUEUE: &'static str = "bench";
    // As long as the peers keep theirs.
    const KEEP_RESULT: Option<Duration> = None;
}

/// What the handlers tell the benchmark.
#[derive(Clone)]
struct Seen {
    left: Arc<AtomicUsize>,
    all: Arc<Notify>,
    starts: mpsc::UnboundedSender<Instant>,
}

impl Seen {
    /// Expects so many jobs.
    fn new(jobs: usize) -> (Self, mpsc::UnboundedReceiver<Instant>) {
        let (starts, started) = mpsc::unbounded_channel();
        (Self { left: Arc::new(AtomicUsize::new(jobs)), all: Arc::default(), starts }, started)
    }

    fn count(&self, jobs: usize) {
        if self.left.fetch_sub(jobs, Ordering::Relaxed) == jobs {
            self.all.notify_one();
        }
    }
}

async fn single(seen: Seen, _: Job<Noop>) -> Outcome {
    seen.count(1);
    Outcome::done()
}

async fn batch(seen: Seen, jobs: Vec<Job<Noop>>) -> Vec<Outcome> {
    seen.count(jobs.len());
    jobs.iter().map(|_| Outcome::done()).collect()
}

async fn stamped(seen: Seen, _: Job<Noop>) -> Outcome {
    let _ = seen.starts.send(Instant::now());
    Outcome::done()
}

/// A registry with the one queue.
fn queue_of(batch: usize, concurrency: usize) -> Registry<Seen> {
    Registry::default().queue(QueueSpec { name: Noop::QUEUE, batch, concurrency })
}

/// How quickly jobs went, and what of the processors each of them took.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    /// Of the process that runs them (this one).
    own_us: f64,
    /// Of Redis.
    redis_us: f64,
}

/// A stop-watch.
struct Watch {
    began: Instant,
    cpu: (f64, f64),
}

impl Watch {
    async fn start(bench: &Bench) -> Self {
        Self { cpu: cpu_s(bench).await, began: Instant::now() }
    }

    async fn stop(self, bench: &Bench, jobs: usize) -> Rate {
        let (took, cpu, jobs) = (self.began.elapsed().as_secs_f64(), cpu_s(bench).await, jobs as f64);
        let us = |before, after| (after - before) * 1e6 / jobs;
        Rate { per_second: jobs / took, own_us: us(self.cpu.0, cpu.0), redis_us: us(self.cpu.1, cpu.1) }
    }
}

/// Seconds that this process and Redis have kept processors busy.
async fn cpu_s(bench: &Bench) -> (f64, f64) {
    (support::process_cpu_s(std::process::id()), support::redis_cpu_s(&bench.redis).await)
}

struct Bench {
    redis: Redis,
    engine: Engine,
    keys: Keys,
    jobs: usize,
    server: onrush::dev::servers::Server,
    /// After the server, which has its data there.
    dir: Dir,
}

#[tokio::main]
async fn main() {
    let words = support::words();
    if words.first().map(String::as_str) == Some("worker") {
        return peers::work(&words[1]).await;
    }
    let jobs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(JOBS);
    let parts: Vec<&str> = words.iter().map(String::as_str).filter(|word| word.parse::<usize>().is_err()).collect();
    // The peers take minutes and have to be installed: only when asked for.
    let wanted = |name: &str| parts.contains(&name) || (parts.is_empty() && name != "peers");
    let bench = Bench::start(jobs).await;
    if wanted("jobs") {
        bench.jobs().await;
    }
    if wanted("start") {
        bench.starts().await;
    }
    if wanted("promotion") {
        bench.promotion().await;
    }
    if wanted("enqueue") {
        bench.enqueue().await;
    }
    if wanted("memory") {
        bench.memory().await;
    }
    if wanted("peers") {
        peers::compare(&bench).await;
    }
}

/// An engine as the product sets it up.
async fn engine(url: &str) -> (Redis, Engine) {
    let redis = Redis::connect(url, "bench").await.unwrap();
    let settings = EngineSettings { result_ttl: RESULT_TTL, lease: Duration::from_secs(5), max_deliveries: 5 };
    (redis.clone(), Engine::new(redis, Clock::System, settings))
}

fn queue() -> QueueName {
    Noop::QUEUE.parse().unwrap()
}

/// The envelope of job `n`, as the engine writes it.
fn envelope(n: usize) -> String {
    envelope_of(Uuid::now_v7(), &Noop { n }, Clock::System.now().ms(), None).text()
}

impl Bench {
    async fn start(jobs: usize) -> Self {
        let dir = Dir::new();
        let path = dir.path().to_owned();
        let server = support::servers(move || support::redis(&path)).await;
        let (redis, engine) = engine(server.url()).await;
        let keys = engine.keys(&queue());
        Self { redis, engine, keys, jobs, server, dir }
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &str, args: &[&str]) -> T {
        redis::cmd(command).arg(args).query_async(&mut self.redis.commands()).await.unwrap()
    }

    /// Forgets everything, the append-only file too: its rewriting must not fall into a measurement.
    async fn empty(&self) {
        let _: () = self.ask("FLUSHALL", &["SYNC"]).await;
        let _: redis::Value =
            redis::cmd("BGREWRITEAOF").query_async(&mut self.redis.commands()).await.unwrap_or(redis::Value::Nil);
        while self.info("persistence", "aof_rewrite_in_progress").await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn info(&self, section: &str, field: &str) -> u64 {
        let info: redis::InfoDict = self.ask("INFO", &[section]).await;
        info.get(field).unwrap_or(0)
    }

    /// Bytes that Redis holds, each of `count` things alike.
    async fn bytes_per(&self, count: usize, empty: u64) -> f64 {
        self.info("memory", "used_memory").await.saturating_sub(empty) as f64 / count as f64
    }

    /// Enqueues so many jobs, to run at once or (`due`) as delayed tasks whose time has come.
    async fn fill(&self, jobs: usize, due: bool) {
        let at = due.then(|| Clock::System.now());
        for from in (0..jobs).step_by(1000) {
            let item = |n| Item { key: Uuid::now_v7(), args: Noop { n }, due: at };
            let items: Vec<_> = (from..jobs.min(from + 1000)).map(item).collect();
            assert_eq!(self.engine.enqueue(&items).await.unwrap(), items.len() as u64);
        }
    }

    async fn length(&self, command: &str, key: &str) -> usize {
        self.ask(command, &[key]).await
    }

    /// Waits until a stream or set is empty.
    async fn until_empty(&self, command: &str, key: &str) {
        while self.length(command, key).await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Runs a worker until `jobs` have run and are acknowledged.
    async fn run(&self, registry: Registry<Seen>, jobs: usize) -> Rate {
        let (seen, _) = Seen::new(jobs);
        let loops = Loops::default();
        let watch = Watch::start(self).await;
        Worker::start(self.engine.clone(), registry, seen.clone(), &loops);
        seen.all.notified().await;
        self.until_empty("XLEN", &self.keys.stream()).await;
        let rate = watch.stop(self, jobs).await;
        assert!(loops.stop(Duration::from_secs(10)).await, "the worker does not stop");
        rate
    }

    /// No-op jobs from a full queue, each with a result that is kept.
    async fn jobs(&self) {
        println!(
            "\n| {} no-op jobs from a full queue | jobs per second | raw commands | ratio | aim | processor µs per job: worker, Redis | raw: worker, Redis |",
            self.jobs
        );
        println!("|---|---|---|---|---|---|---|");
        for size in [100, 500] {
            let (mut one, mut many, mut floors) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                one.push(self.full_queue(queue_of(size, IN_FLIGHT).single(single)).await);
                many.push(self.full_queue(queue_of(size, IN_FLIGHT).batch(batch)).await);
                self.empty().await;
                floors.push(floor::jobs(self, size).await);
            }
            let pick = |rates: &[Rate], of: fn(&Rate) -> f64| median(rates.iter().map(of));
            let cpu = |rates: &[Rate]| format!("{:.1}, {:.1}", pick(rates, |r| r.own_us), pick(rates, |r| r.redis_us));
            for (handler, rates) in [("one job", one), ("a batch", many)] {
                let ratio = median(rates.iter().zip(&floors).map(|(rate, floor)| rate.per_second / floor.per_second));
                println!(
                    "| read {size} at once, a handler of {handler} | {:.0} | {:.0} | **{ratio:.2}** | ≥ 0.6 | {} | {} |",
                    pick(&rates, |r| r.per_second),
                    pick(&floors, |r| r.per_second),
                    cpu(&rates),
                    cpu(&floors)
                );
            }
        }
    }

    async fn full_queue(&self, registry: Registry<Seen>) -> Rate {
        self.empty().await;
        self.fill(self.jobs, false).await;
        let rate = self.run(registry, self.jobs).await;
        self.results_are_kept(self.jobs).await;
        rate
    }

    /// A benchmark that loses jobs is fast.
    async fn results_are_kept(&self, jobs: usize) {
        assert!(self.ask::<usize>("DBSIZE", &[]).await >= jobs, "results are missing");
    }

    /// From enqueueing to the first line of the handler, one at a time.
    async fn starts(&self) {
        println!("\n| {STARTS} tasks, one at a time, on an idle system | p50 ms | p99 ms | aim of p99 |");
        println!("|---|---|---|---|");
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            self.empty().await;
            ours.push(self.start_times().await);
            self.empty().await;
            floors.push(floor::starts(self, STARTS / ROUNDS).await);
        }
        for (name, rounds, aim) in [
            ("from `enqueue` to the handler", ours, "< 5"),
            ("raw `XADD` to the end of a waiting `XREADGROUP`", floors, ""),
        ] {
            let all = || rounds.iter().flatten().copied();
            println!("| {name} | {:.2} | {:.2} | {aim} |", percentile(all(), 0.5), percentile(all(), 0.99));
        }
    }

    async fn start_times(&self) -> Vec<f64> {
        let (seen, mut started) = Seen::new(STARTS);
        let loops = Loops::default();
        Worker::start(self.engine.clone(), queue_of(100, IN_FLIGHT).single(stamped), seen, &loops);
        let mut times = Vec::new();
        for n in 0..STARTS / ROUNDS {
            let asked = Instant::now();
            self.engine.enqueue(&[Item::now(Uuid::now_v7(), Noop { n })]).await.unwrap();
            times.push(started.recv().await.unwrap().duration_since(asked).as_secs_f64() * 1e3);
            // The acknowledgement goes out, and the reader waits again.
            self.until_empty("XLEN", &self.keys.stream()).await;
        }
        loops.stop(Duration::from_secs(10)).await;
        times
    }

    /// Tasks that are all due are moved to the stream: by a worker that does nothing else, and by one that runs them.
    async fn promotion(&self) {
        println!(
            "\n| {} due tasks | per second | longest script ms, of {ROUNDS} rounds | longer than {SCRIPT_AIM_MS} ms | aim |",
            self.jobs
        );
        println!("|---|---|---|---|---|");
        let (mut moved, mut ran) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            self.empty().await;
            self.fill(self.jobs, true).await;
            self.watch_scripts().await;
            // Without a place for a batch the reader never reads.
            let (loops, (seen, _)) = (Loops::default(), Seen::new(self.jobs));
            let began = Instant::now();
            Worker::start(self.engine.clone(), queue_of(100, 0).single(single), seen, &loops);
            self.until_empty("ZCARD", &self.keys.delayed()).await;
            moved.push((self.jobs as f64 / began.elapsed().as_secs_f64(), self.slow_scripts().await));
            assert_eq!(self.length("XLEN", &self.keys.stream()).await, self.jobs, "tasks were lost on their way");
            loops.stop(Duration::from_secs(10)).await;

            self.empty().await;
            self.fill(self.jobs, true).await;
            self.watch_scripts().await;
            let rate = self.run(queue_of(500, IN_FLIGHT).batch(batch), self.jobs).await;
            ran.push((rate.per_second, self.slow_scripts().await));
        }
        let aims = ["≥ 200000/s", ""];
        for ((name, rounds), aim) in
            [("moved to the stream", moved), ("moved, run and acknowledged", ran)].into_iter().zip(aims)
        {
            let rate = median(rounds.iter().map(|round| round.0));
            let longest = rounds.iter().map(|round| round.1.0).fold(0.0, f64::max);
            let slow: usize = rounds.iter().map(|round| round.1.1).sum();
            println!("| {name} | **{rate:.0}** | {longest:.2} | {slow} | {aim}; ≤ {SCRIPT_AIM_MS} ms |");
        }
    }

    /// From now on Redis notes every command that takes long.
    async fn watch_scripts(&self) {
        let _: () = self.ask("CONFIG", &["SET", "slowlog-log-slower-than", "500"]).await;
        let _: () = self.ask("CONFIG", &["SET", "slowlog-max-len", "100000"]).await;
        let _: () = self.ask("SLOWLOG", &["RESET"]).await;
    }

    /// What Redis itself took for the longest command since then, in milliseconds, and how many took longer than aimed.
    async fn slow_scripts(&self) -> (f64, usize) {
        let slow: Vec<redis::Value> = self.ask("SLOWLOG", &["GET", "-1"]).await;
        let ms = |entry| match entry {
            redis::Value::Array(fields) => {
                fields.get(2).cloned().and_then(|us| redis::from_redis_value::<f64>(us).ok())
            }
            _ => None,
        };
        let all: Vec<f64> = slow.into_iter().filter_map(ms).map(|us| us / 1e3).collect();
        (all.iter().copied().fold(0.0, f64::max), all.iter().filter(|ms| **ms > SCRIPT_AIM_MS).count())
    }

    /// Tasks enqueued, by many at once and in batches.
    async fn enqueue(&self) {
        println!("\n| enqueueing | tasks per second | raw `XADD` | ratio |");
        println!("|---|---|---|---|");
        for (name, askers, together) in [
            (format!("one at a time, by {ASKERS} at once"), ASKERS, 1),
            (format!("{ENQUEUED_TOGETHER} at a time, by {IN_FLIGHT} at once"), IN_FLIGHT, ENQUEUED_TOGETHER),
        ] {
            let (mut ours, mut floors) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                self.empty().await;
                ours.push(self.enqueue_rate(askers, together).await);
                self.empty().await;
                floors.push(floor::enqueue_rate(self, askers, together).await);
            }
            let ratio = median(ours.iter().zip(&floors).map(|(rate, floor)| rate / floor));
            println!("| {name} | {:.0} | {:.0} | **{ratio:.2}** |", median(ours), median(floors));
        }
    }

    async fn enqueue_rate(&self, askers: usize, together: usize) -> f64 {
        let calls = self.jobs / askers / together;
        let asker = async || {
            for n in 0..calls {
                let items: Vec<_> = (0..together).map(|_| Item::now(Uuid::now_v7(), Noop { n })).collect();
                self.engine.enqueue(&items).await.unwrap();
            }
        };
        let began = Instant::now();
        join_all((0..askers).map(|_| asker())).await;
        (askers * calls * together) as f64 / began.elapsed().as_secs_f64()
    }

    /// What Redis holds for a backlog, and for results.
    async fn memory(&self) {
        println!("\n| memory of Redis, {} tasks | bytes per task | raw |", self.jobs);
        println!("|---|---|---|");
        self.empty().await;
        let empty = self.info("memory", "used_memory").await;
        self.fill(self.jobs, false).await;
        let waiting = self.bytes_per(self.jobs, empty).await;
        self.run(queue_of(500, IN_FLIGHT).batch(batch), self.jobs).await;
        let ended = self.bytes_per(self.jobs, empty).await;
        self.empty().await;
        self.fill(self.jobs, true).await;
        let delayed = self.bytes_per(self.jobs, empty).await;
        self.empty().await;
        floor::fill(self).await;
        let raw_waiting = self.bytes_per(self.jobs, empty).await;
        self.empty().await;
        floor::jobs(self, 500).await;
        let _: i64 = self.ask("DEL", &[&self.keys.stream()]).await;
        let raw_ended = self.bytes_per(self.jobs, empty).await;
        println!("| waiting | {waiting:.0} | {raw_waiting:.0} |");
        println!("| waiting for its time | {delayed:.0} | |");
        println!("| ended, its result kept | {ended:.0} | {raw_ended:.0} |");
    }
}
