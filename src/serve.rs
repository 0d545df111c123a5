//! Runs an [`App`]: its HTTP server, its workers and its periodic jobs, by role, and stops them in order. `onrush
//! serve`, `onrush dev` and the tests all come through here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper_util::server::graceful::GracefulShutdown;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::engine::QueueName;
use crate::engine::inspect::QueueState;
use crate::http::{self, server};
use crate::platform::address::warn_if_nobody_is_trusted;
use crate::platform::loops::{Partly, Pulse};
use crate::platform::telemetry;
use crate::{auth, engine, jobs};

/// The subscription to finished tasks looks at itself every second; without a sign for this long it is stuck.
const LISTEN_STALL: Duration = Duration::from_secs(15);
/// Open files that the process asks the system for.
const FILES_WANTED: u64 = 100_000;
/// Depth and age of the queues are measured this often: each time costs a dozen commands a queue, in every process.
const QUEUE_GAUGE_PERIOD: Duration = Duration::from_secs(10);
/// Queues at rest that a process remembers; more of them are measured anew.
const AT_REST_KNOWN: usize = 4096;
/// A partition that is at rest is asked this often.
const AT_REST_ASKED: Duration = Duration::from_secs(60);
/// Rates of queues are of this long.
const RATES_OF: Duration = Duration::from_secs(60);
/// The process asks itself this often whether it is ready, so that its metrics say so without a balancer that asks.
const READY_PERIOD: Duration = Duration::from_secs(5);
/// Whether Redis may drop keys is looked at this often.
const EVICTION_PERIOD: Duration = Duration::from_secs(60);
/// Of the time to stop, this much is for answering requests; the rest is for tasks under way.
const HTTP_SHARE: f64 = 0.5;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProcessRole {
    /// Answers the API.
    Api,
    /// Runs background tasks.
    Worker,
    /// Starts periodic jobs.
    Scheduler,
}

impl ProcessRole {
    /// The names of those among `roles`, each once: `api,worker`.
    pub fn names(roles: &[Self]) -> String {
        let named = [(Self::Api, "api"), (Self::Worker, "worker"), (Self::Scheduler, "scheduler")];
        let names = named.into_iter().filter(|(role, _)| roles.contains(role)).map(|(_, name)| name);
        names.collect::<Vec<_>>().join(",")
    }
}

/// A process that serves.
pub struct Serving {
    app: App,
    address: SocketAddr,
    accepting: JoinHandle<GracefulShutdown>,
    operations: Option<(SocketAddr, JoinHandle<GracefulShutdown>)>,
}

impl Serving {
    /// Starts what `roles` name, and the HTTP server: with the API where that is among them, else with health,
    /// readiness and metrics alone; and the operators' own listener, where the settings name one.
    pub async fn start(app: &App, listener: TcpListener, roles: &[ProcessRole]) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("reading the address that is listened on")?;
        http::health::clocks::start(app).await;
        let router = if roles.contains(&ProcessRole::Api) {
            start_listening(app);
            warn_if_nobody_is_trusted(&app.config.http.public_url, &app.config.http.trusted_proxies);
            http::router(app)
        } else {
            http::operations_router(app)
        };
        if roles.contains(&ProcessRole::Worker) {
            engine::Worker::start(app.engine.clone(), jobs::registry(&app.config), app.clone(), &app.loops);
        }
        if roles.contains(&ProcessRole::Scheduler) {
            jobs::start_periodic(app);
        }
        if roles.contains(&ProcessRole::Worker) || roles.contains(&ProcessRole::Scheduler) {
            jobs::start_watching(app);
        }
        let watched = app.clone();
        app.loops.every("redis.eviction", EVICTION_PERIOD, move |_: Pulse| {
            let app = watched.clone();
            async move { http::health::watch_eviction(&app).await }
        });
        start_measuring(app);
        let operations = match &app.config.http.operations_listen {
            Some(wanted) => {
                let listener = listen(wanted).with_context(|| format!("listening on {wanted}, for operators"))?;
                let address = listener.local_addr().context("reading the operators' address")?;
                Some((address, tokio::spawn(server::accept(app.clone(), listener, http::own_operations_router(app)))))
            }
            None => None,
        };
        let accepting = tokio::spawn(server::accept(app.clone(), listener, router));
        Ok(Self { app: app.clone(), address, accepting, operations })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators are answered, when they have a listener of their own.
    pub fn operations_address(&self) -> Option<SocketAddr> {
        self.operations.as_ref().map(|(address, _)| *address)
    }

    /// Stops in order. First it is not ready, and goes on for `http.leave_s`, so that whoever sends requests here sends them
    /// elsewhere by the time nobody listens. Then, within `http.drain_s`: no new connections, requests under way are answered, loops end, tasks
    /// under way end and are acknowledged. False when something was still under way at the deadline; it is left to the
    /// next process, as after a crash.
    pub async fn stop(self) -> bool {
        self.app.loops.leave();
        tokio::time::sleep(Duration::from_secs(self.app.config.http.leave_s)).await;
        let deadline = Duration::from_secs(self.app.config.http.drain_s);
        let started = tokio::time::Instant::now();
        // Told first, so that readiness, long polls and readers know.
        self.app.loops.stop_signal().cancel();
        let until = started + deadline.mul_f64(HTTP_SHARE);
        let mut answered = true;
        for accepting in std::iter::once(self.accepting).chain(self.operations.map(|(_, accepting)| accepting)) {
            answered &= match accepting.await {
                Ok(connections) => tokio::time::timeout_at(until, connections.shutdown()).await.is_ok(),
                Err(_) => false,
            };
        }
        let ended = self.app.loops.stop(deadline.saturating_sub(started.elapsed())).await;
        answered && ended
    }
}

/// Listens on an address of the settings.
fn listen(address: &SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Lets the process open as many files as it may need: each connection is one, and the usual limit at the start is 1024.
pub fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(FILES_WANTED).min(FILES_WANTED);
    limit.current = limit.current.map(|current| current.max(wanted));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Ends at the first SIGTERM or Ctrl-C. The next one ends the process at once.
pub async fn until_told_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut told = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    told().await;
    tokio::spawn(async move {
        told().await;
        tracing::warn!("told to stop twice: exiting at once");
        std::process::exit(130);
    });
    Ok(())
}

/// Hears which tasks ended, for those who wait for them at this process.
fn start_listening(app: &App) {
    let engine = app.engine.clone();
    app.loops.spawn("listen", LISTEN_STALL, move |pulse| {
        let engine = engine.clone();
        async move { engine.listen(pulse).await }
    });
}

/// Keeps the metrics current.
fn start_measuring(app: &App) {
    // Tests run many services in one process, which has one recorder at most.
    if http::metrics::METRICS.get().is_none() {
        return;
    }
    http::metrics::prepare_counters();
    auth::prepare_counters();
    jobs::prepare_counters();
    app.loops.every("metrics", telemetry::UPKEEP_PERIOD, |_: Pulse| async {
        if let Some(metrics) = http::metrics::METRICS.get() {
            metrics.run_upkeep();
        }
        Ok(())
    });
    let asked = app.clone();
    app.loops.every("ready", READY_PERIOD, move |_: Pulse| {
        let app = asked.clone();
        async move {
            http::health::readiness(&app).await;
            Ok(())
        }
    });
    let measured = app.clone();
    app.loops.every("queues", QUEUE_GAUGE_PERIOD, move |_: Pulse| measure_queues(measured.clone()));
}

/// What is known of queues at rest.
#[derive(Default)]
struct AtRest(Mutex<HashMap<QueueName, Rest>>);

/// Of one of them.
struct Rest {
    /// How many tasks had entered it, and since when that is so.
    entered: i64,
    since: Instant,
    asked: Instant,
}

/// Whether anything is in a queue, or went through it in the time that its rates are of. There may be thousands of partitions:
/// one that is at rest is asked seldom, unless a worker here met something in it.
async fn is_in_use(app: &App, queue: &QueueName) -> anyhow::Result<bool> {
    let rests = |known: &Rest| known.since.elapsed() >= RATES_OF && known.asked.elapsed() < AT_REST_ASKED;
    let known = app.local::<AtRest>();
    let was_woken = app.engine.was_woken(queue);
    if !was_woken && queue.partition_name().is_some() {
        let known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(queue).is_some_and(rests) {
            return Ok(false);
        }
    }
    let (entered, asked) = (app.engine.at_rest(queue).await?, Instant::now());
    let mut known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(entered) = entered else {
        known.remove(queue);
        return Ok(true);
    };
    match known.get_mut(queue) {
        Some(rest) if rest.entered == entered => {
            rest.asked = asked;
            Ok(rest.since.elapsed() < RATES_OF)
        }
        _ => {
            if known.len() >= AT_REST_KNOWN {
                known.clear();
            }
            known.insert(queue.clone(), Rest { entered, since: asked, asked });
            Ok(true)
        }
    }
}

/// How a queue stands; `None` of one that is at rest, of which there is nothing to say.
async fn state_in_use(app: &App, queue: &QueueName) -> anyhow::Result<Option<QueueState>> {
    if is_in_use(app, queue).await? { app.engine.queue_state(queue).await.map(Some) } else { Ok(None) }
}

/// How every queue stands, a partitioned one as a whole.
async fn measure_queues(app: App) -> anyhow::Result<()> {
    let mut failed = None;
    for (name, queues) in jobs::catalog(&app).partitions(&app).await? {
        let (mut depth, mut running, mut delayed, mut dead, mut oldest_ms) = (0, 0, 0, 0, 0);
        let (mut paused, mut into, mut out) = (0, 0.0, 0.0);
        for queue in queues {
            // One that cannot be read hides no other; its worker tells what is wrong.
            let part = match state_in_use(&app, &queue).await {
                Ok(Some(part)) => part,
                Ok(None) => continue,
                Err(error) => {
                    failed.get_or_insert(error.context(Partly(format!("measuring the queue {queue}"))));
                    continue;
                }
            };
            depth += part.depth.depth;
            running += part.depth.running;
            delayed += part.depth.delayed;
            dead += part.depth.dead;
            oldest_ms = oldest_ms.max(part.depth.oldest_ms);
            paused += u32::from(part.paused);
            into += part.in_per_s.unwrap_or(0.0);
            out += part.out_per_s.unwrap_or(0.0);
        }
        let gauges = [
            ("onrush_queue_depth", depth as f64),
            ("onrush_queue_running", running as f64),
            ("onrush_queue_delayed", delayed as f64),
            ("onrush_queue_dead", dead as f64),
            ("onrush_queue_oldest_seconds", oldest_ms as f64 / 1000.0),
            ("onrush_queue_paused", f64::from(paused)),
            ("onrush_queue_in_per_second", into),
            ("onrush_queue_out_per_second", out),
        ];
        for (gauge, value) in gauges {
            metrics::gauge!(gauge, "queue" => name).set(value);
        }
    }
    failed.map_or(Ok(()), Err)
}
