//! A worker in a process of its own, which may be killed, stopped and continued: this test binary once more, running
//! the one ignored test below with the settings of its test in the environment.

use std::path::PathBuf;
use std::time::Duration;

use onrush::app::App;
use onrush::config::Config;
use onrush::dev::supervised::{Recipe, Supervised};
use onrush::engine::{Job, Outcome, QueueName, QueueSpec, Registry, Retry, Task, TaskId, Worker};
use onrush::platform::clock::Clock;
use onrush::platform::loops::Loops;
use onrush::platform::telemetry::{self, LogFormat};
use onrush::serve;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::support::servers::{blocking, new_dir};
use crate::support::{Harness, Options};

/// Says that this process is to be a worker.
const IS_WORKER: &str = "TEST_IS_A_WORKER";
/// How long a worker of these tests may give no sign, in ms.
pub const LEASE_MS: u64 = 500;
/// Small reads: a worker dies in the middle of its batches, and seldom takes much with it.
pub const SPEC: QueueSpec = QueueSpec { name: "marks", batch: 20, concurrency: 2 };

/// When the worker kills itself, at the first delivery of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Death {
    /// Before the effect is committed.
    BeforeCommit,
    /// After it, before the acknowledgement.
    BeforeAck,
}

/// Leaves a mark in MySQL, once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Mark {
    pub death: Option<Death>,
    /// Whether it goes on only when [`Setup::open`] was called.
    pub waits: bool,
}

impl Task for Mark {
    const NAME: &'static str = "test.mark";
    const QUEUE: &'static str = SPEC.name;
    const RETRY: Retry = Retry { attempts: 3, base: Duration::from_millis(10), cap: Duration::from_millis(20) };
}

/// Does nothing, many at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Noop {}

/// As a queue with much to do has it.
pub const NOOPS: QueueSpec = QueueSpec { name: "noops", batch: 200, concurrency: 2 };

impl Task for Noop {
    const NAME: &'static str = "test.noop";
    const QUEUE: &'static str = NOOPS.name;
    const KEEP_RESULT: Option<Duration> = Some(Duration::from_secs(1));
}

async fn noop(_: App, jobs: Vec<Job<Noop>>) -> Vec<Outcome> {
    jobs.iter().map(|_| Outcome::done()).collect()
}

fn gate(app: &App) -> String {
    app.engine.keys(&queue()).own("gate")
}

pub fn queue() -> QueueName {
    SPEC.name.parse().unwrap()
}

async fn mark(app: App, job: Job<Mark>) -> Outcome {
    let process = i64::from(std::process::id());
    let begun = "INSERT INTO begun (task, process, attempt, delivery) VALUES (?, ?, ?, ?)";
    let begun = sqlx::query(begun).bind(job.id.key).bind(process).bind(job.attempt).bind(job.delivery);
    begun.execute(&app.db).await.unwrap();
    while job.args.waits && !is_open(&app).await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let die = |when| {
        if job.args.death == Some(when) && job.delivery == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    };
    let mut tx = app.db.begin().await.unwrap();
    let effect = sqlx::query("INSERT INTO effects (task, process) VALUES (?, ?)").bind(job.id.key).bind(process);
    let made = effect.execute(&mut *tx).await;
    die(Death::BeforeCommit);
    match made {
        Ok(_) => tx.commit().await.unwrap(),
        // By its constraint, another delivery was first: as every handler of the service has it.
        Err(error) if error.as_database_error().is_some_and(|error| error.is_unique_violation()) => {
            tx.rollback().await.unwrap();
        }
        Err(error) => return Outcome::Retry(error.into()),
    }
    die(Death::BeforeAck);
    Outcome::Success(json!({ "process": process, "attempt": job.attempt, "delivery": job.delivery }))
}

async fn is_open(app: &App) -> bool {
    redis::cmd("EXISTS").arg(gate(app)).query_async(&mut app.redis.commands()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "no test: what the worker processes of this room run"]
async fn work() {
    if std::env::var_os(IS_WORKER).is_none() {
        return;
    }
    let app = App::connect(Config::load(None, &[]).unwrap(), Clock::System).await.unwrap();
    telemetry::init_logs(LogFormat::Json, "warn").unwrap();
    let loops = Loops::default();
    let registry = Registry::default().queue(SPEC).single(mark).queue(NOOPS).batch(noop);
    Worker::start(app.engine.clone(), registry, app.clone(), &loops);
    serve::until_told_to_stop().await.unwrap();
    loops.stop(Duration::from_secs(app.config.http.drain_s)).await;
    // As the service: what has not ended by now is cut off.
    std::process::exit(0);
}

/// One test's service, with the tables that its workers write to.
pub struct Setup {
    pub h: Harness,
}

impl Setup {
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(mut options: Options) -> Self {
        options.system_clock = true;
        options.settings.push(("engine.lease_ms", LEASE_MS.to_string()));
        // Nothing here is poison, whatever it is delivered through.
        options.settings.push(("engine.max_deliveries", "100".to_owned()));
        options.settings.push(("http.drain_s", "1".to_owned()));
        let h = Harness::with(options).await;
        for table in [
            "CREATE TABLE begun (task BINARY(16), process BIGINT, attempt INT UNSIGNED, delivery INT UNSIGNED, KEY (task))",
            "CREATE TABLE effects (task BINARY(16) PRIMARY KEY, process BIGINT)",
        ] {
            sqlx::query(table).execute(&h.app.db).await.unwrap();
        }
        Self { h }
    }

    /// Starts a worker. It is not waited for: work shows whether it lives.
    pub async fn worker(&self) -> WorkerProcess {
        let mut env = self.h.env();
        env.push((IS_WORKER.to_owned(), "1".to_owned()));
        let dir = new_dir().keep().join("worker");
        std::fs::create_dir(&dir).unwrap();
        let recipe = Recipe {
            name: "a worker",
            program: std::env::current_exe().unwrap(),
            args: ["--exact", "survival::worker::work", "--ignored", "--nocapture"].map(str::to_owned).to_vec(),
            env,
            dir,
            throw_away: true,
        };
        let dir = recipe.dir.clone();
        let running = blocking(move || recipe.start(|| true)).await.unwrap();
        WorkerProcess { running: Some(running), dir }
    }

    pub async fn enqueue(&self, marks: impl IntoIterator<Item = Mark>) -> Vec<TaskId> {
        let items: Vec<_> = marks.into_iter().map(|mark| onrush::engine::Item::now(Uuid::now_v7(), mark)).collect();
        assert_eq!(self.h.app.engine.enqueue(&items).await.unwrap(), items.len() as u64);
        items.iter().map(|item| TaskId { key: item.key, queue: queue() }).collect()
    }

    /// Lets those go on that wait.
    pub async fn open(&self) {
        let set = redis::cmd("SET").arg(gate(&self.h.app)).arg(1).arg("EX").arg(3600).to_owned();
        let _: String = set.query_async(&mut self.h.app.redis.commands()).await.unwrap();
    }

    pub async fn begun(&self) -> i64 {
        self.h.count("SELECT COUNT(*) FROM begun").await
    }

    pub async fn effects(&self) -> i64 {
        self.h.count("SELECT COUNT(*) FROM effects").await
    }
}

/// A worker in a process of its own.
pub struct WorkerProcess {
    running: Option<Supervised>,
    dir: PathBuf,
}

impl WorkerProcess {
    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| !running.ended())
    }

    /// Sends a signal, such as `STOP` or `CONT`, and does not wait for what it does.
    pub fn signal(&mut self, name: &str) {
        self.running.as_mut().unwrap().signal(name).unwrap();
    }

    /// Ends it by a signal and waits until it is gone.
    pub async fn end(&mut self, signal: &'static str) {
        let Some(mut running) = self.running.take() else { return };
        blocking(move || {
            // It may have ended by itself a moment ago.
            let _ = running.signal(signal);
            running.wait().unwrap();
        })
        .await;
    }

    /// The most memory that it ever had, in kB; nothing where Linux does not tell.
    pub fn peak_kb(&self) -> Option<u64> {
        let pid = std::fs::read_to_string(self.dir.join("server.pid")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read(self.dir.join("server.log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of a worker\n{}", self.log());
        }
    }
}
