//! A task from its enqueueing to its result, on a private Redis: `cargo run -p onrush-engine --example hello`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use onrush_engine::{
    Clock, Engine, EngineSettings, Item, Job, Loops, Outcome, QueueSpec, Redis, Registry, Retry, Task, TaskId, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

/// A task is the type of its arguments.
#[derive(Serialize, Deserialize)]
struct Welcome {
    name: String,
}

impl Task for Welcome {
    // Never changed once tasks exist: what waits in Redis carries it.
    const NAME: &'static str = "mails.welcome";
    const QUEUE: &'static str = "mails";
    // Three attempts, with a pause of half a second to a second between them.
    const RETRY: Retry = Retry { attempts: 3, base: Duration::from_secs(1), cap: Duration::from_secs(10) };
}

/// What is given to every handler beside its task: here a word, else pools and clients.
#[derive(Clone)]
struct Greeter {
    greeting: &'static str,
}

/// A handler may run more than once for one task, so what it does must be safe to do twice.
async fn welcome(context: Greeter, job: Job<Welcome>) -> Outcome {
    println!("attempt {} of {}", job.attempt, job.id);
    if job.attempt == 1 {
        return Outcome::Retry(anyhow::anyhow!("the mail server is busy"));
    }
    Outcome::Success(json!({ "sent": format!("{}, {}!", context.greeting, job.args.name) }))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir().context("making a directory for Redis")?;
    let _redis = PrivateRedis::start(dir.path())?;
    let url = format!("redis+unix://{}", dir.path().join("redis.sock").display());
    let redis = Redis::connect(&url, "hello:").await?;

    let settings =
        EngineSettings { result_ttl: Duration::from_secs(3600), lease: Duration::from_secs(5), max_deliveries: 5 };
    let engine = Engine::new(redis, Clock::System, settings);

    // The worker: its loops run until they are told to stop.
    let loops = Loops::default();
    let registry = Registry::default().queue(QueueSpec { name: "mails", batch: 100, concurrency: 2 }).single(welcome);
    Worker::start(engine.clone(), registry, Greeter { greeting: "Hello" }, &loops);

    // Whoever enqueues needs the engine alone, and may be another process. The key makes it one task, however often it comes.
    let item = Item::now(Uuid::now_v7(), Welcome { name: "Ada".to_owned() });
    let id = TaskId { key: item.key, queue: Welcome::QUEUE.parse()? };
    println!("enqueued {} as {id}", engine.enqueue(&[item]).await?);

    let mut seen = None;
    loop {
        let Some(status) = engine.wait(&id, Duration::from_millis(200)).await? else { bail!("the task is gone") };
        if seen != Some(status.state) {
            println!("{:?}", status.state);
            seen = Some(status.state);
        }
        if status.state.is_final() {
            println!("result: {}", status.result);
            break;
        }
    }
    ensure!(loops.stop(Duration::from_secs(10)).await, "a loop did not stop in time");
    Ok(())
}

/// A Redis of this example's own, behind a socket in its directory.
struct PrivateRedis(Child);

impl PrivateRedis {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let socket = dir.join("redis.sock");
        let is_there = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        let name =
            ["redis-server", "valkey-server"].into_iter().find(is_there).context("redis-server is not installed")?;
        let mut redis = Command::new(name);
        redis.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).arg("--dir").arg(dir);
        let running = Self(redis.stdout(Stdio::null()).spawn().context("starting Redis")?);
        for _ in 0..100 {
            if socket.exists() {
                return Ok(running);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("redis-server did not start within five seconds")
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
