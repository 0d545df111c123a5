//! The engine beside Celery and BullMQ: the same no-op from a full queue, on the same Redis with the same settings, one
//! after the other in the same run. Each side has a directory with its programs: a worker, one that fills the queue,
//! and one that measures the time until a task starts. How each is set up is said in those programs.
//!
//! Everything is measured from here, by what Redis says, alike for all: the workers are started on a full queue, and
//! the rate counts from the first job that has ended, so no side pays for its start.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onrush::engine::{Item, Job, Outcome, QueueSpec, Registry, Task, Worker};
use onrush::platform::loops::Loops;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::support::{Running, percentile};
use super::{Bench, IN_FLIGHT, Noop, engine};

/// Jobs of a full queue of Celery, and of BullMQ: each some ten to twenty seconds. Ours is as full as in its other
/// measurements.
const CELERY_JOBS: usize = 30_000;
const BULLMQ_JOBS: usize = 200_000;
/// Tasks enqueued one at a time.
const STARTS: usize = 1000;
/// A worker that was asked to end is killed after this long.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Nobody gets longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tells when it started.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stamp {}

impl Task for Stamp {
    const NAME: &'static str = "bench.stamp";
    const QUEUE: &'static str = "bench";
    // As long as the peers keep theirs.
    const KEEP_RESULT: Option<Duration> = None;
}

/// Milliseconds of a clock that all processes of the machine share.
#[expect(clippy::disallowed_methods, reason = "a time that other processes know; nothing of the product depends on it")]
fn now_ms() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64() * 1e3
}

/// Our worker, in a process of its own as the others' are.
pub async fn work(url: &str) {
    let (_, engine) = engine(url).await;
    let registry = Registry::default()
        .queue(QueueSpec { name: Noop::QUEUE, batch: 100, concurrency: IN_FLIGHT })
        .single(|(), _: Job<Noop>| async { Outcome::done() })
        .single(|(), _: Job<Stamp>| async { Outcome::Success(json!(now_ms())) });
    Worker::start(engine, registry, (), &Loops::default());
    std::future::pending().await
}

/// One of those compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Celery,
    BullMq,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "onrush",
            Self::Celery => "Celery",
            Self::BullMq => "BullMQ",
        }
    }

    /// As many processes run jobs as there are cores: Celery forks them itself; ours has threads.
    fn workers(self) -> usize {
        if self == Self::BullMq { 2 } else { 1 }
    }

    /// A program of this side.
    fn command(self, bench: &Bench, what: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.join("target/bench-peers");
        let mut command = match self {
            Self::Ours => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg(what).arg(bench.server.url());
                command
            }
            Self::Celery if what == "worker" => {
                let mut command = Command::new(installed.join("celery/bin/celery"));
                command.args(["-A", "tasks", "worker", "--pool=prefork", "--concurrency=2", "--loglevel=WARNING"]);
                command.current_dir(root.join("bench/peers/celery"));
                command
            }
            Self::Celery => {
                let mut command = Command::new(installed.join("celery/bin/python"));
                command.arg(root.join(format!("bench/peers/celery/{what}.py")));
                command
            }
            Self::BullMq => {
                let mut command = Command::new("node");
                command.arg(installed.join(format!("bullmq/{what}.mjs")));
                command
            }
        };
        command.env("BENCH_REDIS_SOCKET", socket(bench)).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
        command
    }

    fn start_workers(self, bench: &Bench) -> Vec<Running> {
        let start = |_| {
            let mut command = self.command(bench, "worker");
            Running(command.stdout(Stdio::null()).spawn().expect("a worker; script/bench installs the peers"))
        };
        (0..self.workers()).map(start).collect()
    }

    fn jobs(self, bench: &Bench) -> usize {
        match self {
            Self::Ours => bench.jobs,
            Self::Celery => bench.jobs.min(CELERY_JOBS),
            Self::BullMq => bench.jobs.min(BULLMQ_JOBS),
        }
    }

    async fn fill(self, bench: &Bench, jobs: usize) {
        if self == Self::Ours {
            return bench.fill(jobs, false).await;
        }
        let mut command = self.command(bench, "fill");
        command.arg(jobs.to_string());
        let filled = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
        assert!(filled.success(), "the queue of {} could not be filled", self.name());
    }

    /// Jobs of `all` that have ended.
    async fn ended(self, bench: &Bench, all: usize) -> usize {
        match self {
            Self::Ours => all - bench.length("XLEN", &bench.keys.stream()).await,
            Self::Celery => {
                let (waiting, running) = (bench.length("LLEN", "celery").await, bench.length("HLEN", "unacked").await);
                all.saturating_sub(waiting + running)
            }
            Self::BullMq => bench.length("ZCARD", "bull:bench:completed").await,
        }
    }

    /// Jobs per second from a full queue, and the bytes of Redis for a job that waits and for one that has ended.
    async fn throughput(self, bench: &Bench) -> (f64, f64, f64) {
        let jobs = self.jobs(bench);
        bench.empty().await;
        let empty = bench.info("memory", "used_memory").await;
        self.fill(bench, jobs).await;
        let waiting = bench.bytes_per(jobs, empty).await;
        let workers = self.start_workers(bench);
        let begun = Instant::now();
        let (mut first, mut last) = (None, (begun, 0));
        while last.1 < jobs {
            assert!(begun.elapsed() < PATIENCE, "{} ended {} of {jobs} jobs", self.name(), last.1);
            last = (Instant::now(), self.ended(bench, jobs).await);
            if last.1 > 0 && first.is_none() {
                first = Some(last);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (since, before) = first.unwrap();
        let ended = bench.bytes_per(jobs, empty).await;
        workers.into_iter().for_each(stop);
        ((jobs - before) as f64 / last.0.duration_since(since).as_secs_f64(), waiting, ended)
    }

    /// Milliseconds from enqueueing to the start, one at a time, while nothing else happens.
    async fn starts(self, bench: &Bench) -> Vec<f64> {
        bench.empty().await;
        let workers = self.start_workers(bench);
        // The first ones find workers that are just starting.
        self.start_times(bench, STARTS / 10).await;
        let times = self.start_times(bench, STARTS).await;
        workers.into_iter().for_each(stop);
        times
    }

    async fn start_times(self, bench: &Bench, count: usize) -> Vec<f64> {
        if self == Self::Ours {
            return our_start_times(bench, count).await;
        }
        let mut command = self.command(bench, "latency");
        command.arg(count.to_string()).stderr(Stdio::inherit());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let times: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        assert_eq!(times.len(), count, "{} said: {text}", self.name());
        times
    }
}

async fn our_start_times(bench: &Bench, count: usize) -> Vec<f64> {
    let mut times = Vec::new();
    for _ in 0..count {
        let key = Uuid::now_v7();
        let asked = now_ms();
        bench.engine.enqueue(&[Item::now(key, Stamp {})]).await.unwrap();
        let id = onrush::engine::TaskId { key, queue: super::queue() };
        let started = loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let status = bench.engine.status(&id).await.unwrap();
            if let Some(started) = status.and_then(|status| status.result.as_f64()) {
                break started;
            }
        };
        times.push(started - asked);
    }
    times
}

/// Asks a worker to end, since it may have children of its own to end, and waits a while.
fn stop(mut worker: Running) {
    let asked = Instant::now();
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&worker.0), rustix::process::Signal::TERM);
    while worker.0.try_wait().is_ok_and(|ended| ended.is_none()) && asked.elapsed() < STOP_PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The path of Redis' socket.
fn socket(bench: &Bench) -> PathBuf {
    bench.dir.path().canonicalize().unwrap().join("redis/redis.sock")
}

/// Measures all of them and prints one table.
pub async fn compare(bench: &Bench) {
    println!(
        "\n| no-op jobs, each with a result kept for 24 h | jobs per second | start p50 ms | start p99 ms | bytes per waiting job | bytes per ended job |"
    );
    println!("|---|---|---|---|---|---|");
    for side in [Side::Ours, Side::Celery, Side::BullMq] {
        let (rate, waiting, ended) = side.throughput(bench).await;
        let times = side.starts(bench).await;
        let (p50, p99) = (percentile(times.iter().copied(), 0.5), percentile(times, 0.99));
        println!("| {} | {rate:.0} | {p50:.2} | {p99:.2} | {waiting:.0} | {ended:.0} |", side.name());
    }
}
