//! What operators see and do while tasks run, through the admin API. Tasks of the tests' own go to queues of the
//! product; a worker of the test runs them.

mod audit;
mod letters;
mod meddling;
mod tasks;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onrush::engine::{
    Call, Item, Job, Outcome, Priority, QueueName, QueueSpec, Registry, Retry, State, Task, TaskId, TaskStatus, Unique,
    Worker,
};
use onrush::platform::loops::Loops;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::support::client::send;
use crate::support::{Answer, Harness, Options, Person};

/// A task with the name and the queue of one of the product's, so that the API knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Work {
    what: String,
}

impl Task for Work {
    const NAME: &'static str = "payments.resolve_late";
    const QUEUE: &'static str = "late";
    const RETRY: Retry = Retry { attempts: 3, base: Duration::from_millis(10), cap: Duration::from_millis(20) };
}

/// Runs beside [`Work`], on another queue: that it has run tells that time has passed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Marker {}

impl Task for Marker {
    const NAME: &'static str = "orders.release";
    const QUEUE: &'static str = "release";
}

/// A task whose arguments are nobody's to see.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Secret {
    pin: u32,
}

impl Task for Secret {
    const NAME: &'static str = "test.secret";
    const QUEUE: &'static str = "late";
    const RETRY: Retry = Retry { attempts: 1, base: Duration::from_millis(10), cap: Duration::from_millis(20) };
    const SECRET: bool = true;
}

/// What the handlers of one test share.
#[derive(Clone, Default)]
struct Bench {
    runs: Arc<AtomicU32>,
    gate: Arc<Gate>,
}

/// Handlers that wait do so until a permit is added.
struct Gate(Semaphore);
impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

async fn work(bench: Bench, job: Job<Work>) -> Outcome {
    bench.runs.fetch_add(1, Ordering::SeqCst);
    match job.args.what.as_str() {
        "wait" => {
            job.control.set_progress(1, 4);
            tokio::select! {
                permit = bench.gate.0.acquire() => permit.unwrap().forget(),
                () = job.control.stop().cancelled() => return Outcome::Retry(anyhow::anyhow!("stopped")),
            }
            Outcome::Success(json!("waited"))
        }
        "fail once" if job.attempt == 1 => Outcome::Retry(anyhow::anyhow!("not yet")),
        "fail" => Outcome::Retry(anyhow::anyhow!("never")),
        _ => Outcome::Success(json!({ "attempt": job.attempt })),
    }
}

async fn secret(_: Bench, job: Job<Secret>) -> Outcome {
    if job.args.pin == 0 { Outcome::done() } else { Outcome::Fatal(anyhow::anyhow!("as asked")) }
}

/// A service, somebody who operates it, and workers that the test starts.
struct Desk {
    h: Harness,
    admin: Person,
    bench: Bench,
    loops: Loops,
}

impl Desk {
    async fn new() -> Self {
        let settings = vec![("engine.lease_ms", "500".to_owned()), ("engine.max_deliveries", "3".to_owned())];
        let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
        Self { admin: h.admin().await, bench: Bench::default(), loops: Loops::default(), h }
    }

    fn start(&self) {
        let spec = |name, concurrency| QueueSpec { name, batch: 1, concurrency };
        let registry = Registry::default()
            .queue(spec("late", 1))
            .single(work)
            .single(secret)
            .queue(spec("release", 1))
            .single(|_: Bench, _: Job<Marker>| async { Outcome::done() });
        Worker::start(self.h.app.engine.clone(), registry, self.bench.clone(), &self.loops);
    }

    async fn enqueue(&self, what: &str) -> TaskId {
        self.enqueue_after(what, None).await
    }

    async fn enqueue_after(&self, what: &str, pause: Option<Duration>) -> TaskId {
        let (key, args) = (Uuid::now_v7(), Work { what: what.to_owned() });
        let due = pause.map(|pause| self.h.now().plus(pause));
        self.h.app.engine.enqueue(&[Item { key, args, due }]).await.unwrap();
        TaskId { key, queue: late() }
    }

    async fn status(&self, id: &TaskId) -> TaskStatus {
        self.h.app.engine.status(id).await.unwrap().expect("a task")
    }

    async fn ended(&self, id: &TaskId) -> TaskStatus {
        let status = self.h.app.engine.wait(id, Duration::from_secs(20)).await.unwrap().expect("a task");
        assert!(status.state.is_final(), "{status:?}");
        status
    }

    /// Waits until a task of another queue, due a while from now, has run.
    async fn time_passes(&self) {
        let (key, due) = (Uuid::now_v7(), self.h.now().plus(Duration::from_millis(700)));
        self.h.app.engine.enqueue(&[Item::at(key, Marker {}, due)]).await.unwrap();
        self.ended(&TaskId { key, queue: "release".parse().unwrap() }).await;
    }

    fn runs(&self) -> u32 {
        self.bench.runs.load(Ordering::SeqCst)
    }

    async fn runs_are(&self, count: u32) {
        self.h.eventually(async || self.runs() == count).await;
    }

    fn let_go(&self, count: usize) {
        self.bench.gate.0.add_permits(count);
    }

    async fn get(&self, path: &str) -> Answer {
        self.h.get(path, &self.admin).await.expect(200)
    }

    async fn act(&self, path: &str) -> Answer {
        send(self.h.request(Method::POST, path, &self.admin)).await.expect(200)
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.h.post(path, &self.admin, body).await.expect(200)
    }

    async fn delete(&self, path: &str) -> Answer {
        send(self.h.request(Method::DELETE, path, &self.admin)).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        send(self.h.request(Method::PUT, path, &self.admin).json(&body)).await
    }

    /// Pauses the queue of [`Work`] and waits until the only worker has followed.
    async fn pause(&self) {
        self.act("/admin/queues/late/pause").await;
        self.h.eventually(async || self.consumed().await["paused"] == true).await;
    }

    /// Lets it go on, likewise.
    async fn resume(&self) {
        self.act("/admin/queues/late/resume").await;
        self.h.eventually(async || self.consumed().await["paused"] == false).await;
    }

    /// The queue of [`Work`] as the only worker says that it consumes it; null before it has said so.
    async fn consumed(&self) -> Value {
        let workers = self.get("/admin/workers").await;
        let queues = workers["items"][0]["queues"].as_array().cloned().unwrap_or_default();
        queues.into_iter().find(|queue| queue["queue"] == "late").unwrap_or_default()
    }
}

fn late() -> QueueName {
    "late".parse().unwrap()
}

/// The faults of a refused request: their fields, sorted.
fn fields(answer: &Answer) -> Vec<String> {
    let errors = answer["errors"].as_array().unwrap();
    let mut fields: Vec<String> = errors.iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_for_administrators() {
    let desk = Desk::new().await;
    let (user, id) = (desk.h.register().await, desk.enqueue("kept").await);
    let task = format!("/admin/tasks/{id}");
    let routes = [
        (Method::GET, "/admin/queues"),
        (Method::GET, "/admin/queues/late"),
        (Method::POST, "/admin/queues/late/pause"),
        (Method::POST, "/admin/queues/late/resume"),
        (Method::POST, "/admin/queues/late/purge"),
        (Method::PUT, "/admin/queues/late/concurrency"),
        (Method::GET, "/admin/queues/late/dead"),
        (Method::DELETE, "/admin/queues/late/dead"),
        (Method::POST, "/admin/queues/late/dead/retry"),
        (Method::POST, "/admin/queues/late/dead/1-0/retry"),
        (Method::DELETE, "/admin/queues/late/dead/1-0"),
        (Method::GET, "/admin/workers"),
        (Method::GET, "/admin/tasks"),
        (Method::GET, &task),
        (Method::POST, &format!("{task}/revoke")),
        (Method::POST, &format!("{task}/retry")),
        (Method::GET, "/admin/audit"),
    ];
    for (method, path) in routes {
        send(desk.h.request(method.clone(), path, &user).json(&json!({}))).await.problem(403, "forbidden");
        send(desk.h.request(method, path, ()).json(&json!({}))).await.problem(401, "unauthenticated");
    }
    // Nothing of it was done.
    let queue = desk.get("/admin/queues/late").await;
    assert_eq!((&queue["paused"], &queue["depth"]), (&json!(false), &json!(1)));
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM audit WHERE action <> 'access.forbidden'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_queue_is_listed_in_pages_with_what_it_holds() {
    let desk = Desk::new().await;
    desk.enqueue("now").await;
    desk.enqueue_after("later", Some(Duration::from_secs(3600))).await;
    let (mut names, mut path) = (Vec::new(), "/admin/queues?limit=2".to_owned());
    loop {
        let page = desk.get(&path).await;
        names.extend(page["items"].as_array().unwrap().iter().map(|q| q["queue"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/admin/queues?limit=2&cursor={cursor}");
    }
    assert_eq!(names, ["bills", "expiry", "grant", "late", "release", "system"]);
    let queue = desk.get("/admin/queues/late").await;
    let counts = ["depth", "running", "delayed", "dead"].map(|member| queue[member].as_u64().unwrap());
    assert_eq!(counts, [1, 0, 1, 0]);
    assert_eq!((&queue["concurrency"], &queue["concurrency_set"]), (&json!(2), &json!(false)));
    for absent in ["nothing", "late.x", "seckill", "seckill.0193"] {
        desk.h.get(&format!("/admin/queues/{absent}"), &desk.admin).await.problem(404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rates_of_a_queue_come_from_what_went_through_it_in_the_last_minute() {
    let desk = Desk::new().await;
    assert_eq!(desk.get("/admin/queues/late").await["in_per_s"], Value::Null);
    let ids = [desk.enqueue("a").await, desk.enqueue("b").await];
    let into = async || desk.get("/admin/queues/late").await["in_per_s"].as_f64().unwrap() > 0.0;
    desk.h.eventually(into).await;
    assert_eq!(desk.get("/admin/queues/late").await["out_per_s"], 0.0);
    desk.start();
    for id in &ids {
        desk.ended(id).await;
    }
    assert!(desk.get("/admin/queues/late").await["out_per_s"].as_f64().unwrap() > 0.0);
    let samples = desk.h.app.engine.keys(&late()).samples();
    let ttl: i64 = redis::cmd("PTTL").arg(samples).query_async(&mut desk.h.app.redis.commands()).await.unwrap();
    assert!((1..=60_000).contains(&ttl), "{ttl}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_reads_and_promotes_nothing_until_it_is_resumed() {
    let desk = Desk::new().await;
    desk.start();
    let running = desk.enqueue("wait").await;
    desk.runs_are(1).await;
    let paused = desk.act("/admin/queues/late/pause").await;
    assert_eq!(paused["paused"], true);
    // What runs ends.
    desk.let_go(1);
    assert_eq!(desk.ended(&running).await.state, State::Success);
    desk.h.eventually(async || desk.consumed().await["paused"] == true).await;
    let ids = [desk.enqueue("now").await, desk.enqueue_after("soon", Some(Duration::from_millis(1))).await];
    desk.time_passes().await;
    assert_eq!(desk.runs(), 1);
    let queue = desk.get("/admin/queues/late").await;
    let counts = ["depth", "running", "delayed"].map(|member| queue[member].as_u64().unwrap());
    assert_eq!(counts, [1, 0, 1]);
    // A worker that starts now does not read either.
    desk.loops.stop(Duration::from_secs(60)).await;
    let desk = Desk { loops: Loops::default(), ..desk };
    desk.start();
    desk.h.eventually(async || desk.consumed().await["paused"] == true).await;
    desk.time_passes().await;
    assert_eq!(desk.runs(), 1);
    assert_eq!(desk.act("/admin/queues/late/resume").await["paused"], false);
    for id in &ids {
        assert_eq!(desk.ended(id).await.state, State::Success);
    }
    desk.h.eventually(async || desk.consumed().await["paused"] == false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_out_what_waits_and_leaves_what_runs() {
    let desk = Desk::new().await;
    desk.start();
    let running = desk.enqueue("wait").await;
    desk.runs_are(1).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(desk.enqueue("never").await);
        waiting.push(desk.enqueue_after("never", Some(Duration::from_secs(3600))).await);
    }
    let purged = desk.act("/admin/queues/late/purge").await;
    assert_eq!((&purged["purged"], &purged["more"]), (&json!(6), &json!(false)));
    for id in &waiting {
        let task = desk.get(&format!("/admin/tasks/{id}")).await;
        assert_eq!((&task["state"], &task["args"]["what"]), (&json!("REVOKED"), &json!("never")));
    }
    assert_eq!(desk.act("/admin/queues/late/purge").await["purged"], 0);
    desk.let_go(1);
    assert_eq!(desk.ended(&running).await.state, State::Success);
    let after = desk.enqueue("after").await;
    assert_eq!(desk.ended(&after).await.state, State::Success);
    assert_eq!(desk.runs(), 2);
    // Nothing is left of them where the queue keeps what is on its way, and nobody is ahead of the next.
    let meta: Vec<String> = redis::cmd("HKEYS")
        .arg(desk.h.app.engine.keys(&late()).meta())
        .query_async(&mut desk.h.app.redis.commands())
        .await
        .unwrap();
    assert_eq!(meta.len(), 2, "{meta:?}");
    desk.act("/admin/queues/late/pause").await;
    let next = desk.enqueue("next").await;
    assert_eq!(desk.status(&next).await.ahead, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_beside_a_worker_leaves_each_task_to_one_of_them() {
    let desk = Desk::new().await;
    let items: Vec<_> = (0..2000).map(|_| Item::now(Uuid::now_v7(), Work { what: "quick".to_owned() })).collect();
    desk.h.app.engine.enqueue(&items).await.unwrap();
    desk.put("/admin/queues/late/concurrency", json!({ "concurrency": 8 })).await.expect(200);
    desk.start();
    desk.h.eventually(async || desk.runs() > 50).await;
    let mut purged = 0;
    while desk.get("/admin/queues/late").await["depth"] != 0 {
        purged += desk.act("/admin/queues/late/purge").await["purged"].as_u64().unwrap();
    }
    assert!(purged > 0);
    assert_eq!(u64::from(desk.runs()) + purged, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_purged_from_a_seckill_is_told_and_may_try_again() {
    let desk = Desk::new().await;
    let (course, buyer) = (desk.h.course(100).await, desk.h.register().await);
    let activity = json!({
        "course_id": course.no(), "title": "sale", "price_fen": 100, "stock": 3,
        "starts_at": desk.h.now(), "ends_at": desk.h.now().plus(Duration::from_secs(3600)),
    });
    let activity = desk.h.post("/admin/seckill/activities", &desk.admin, activity).await.expect(201).text_of("id");
    let submit = format!("/seckill/activities/{activity}/submissions");
    let task = desk.h.post(&submit, &buyer, json!({})).await.expect(202).text_of("id");
    let queue = format!("/admin/queues/seckill.{activity}");
    assert_eq!(desk.get(&queue).await["depth"], 1);
    assert_eq!(desk.act(&format!("{queue}/purge")).await["purged"], 1);
    let told = desk.h.get(&format!("/tasks/{task}"), &buyer).await.expect(200);
    assert_eq!((&told["code"], &told["status"]), (&json!(101), &json!("REVOKED")));
    let again = desk.h.post(&submit, &buyer, json!({})).await.expect(202).text_of("id");
    assert_ne!(task, again);
    // The partition can be paused like any queue.
    assert_eq!(desk.act(&format!("{queue}/pause")).await["paused"], true);
    let page = desk.get("/admin/queues?limit=100").await;
    let listed = page["items"].as_array().unwrap().iter().find(|q| q["queue"] == format!("seckill.{activity}"));
    assert_eq!(listed.expect("the partition")["paused"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_concurrency_of_a_queue_is_followed_while_it_runs() {
    let desk = Desk::new().await;
    desk.start();
    let ids = [
        desk.enqueue("wait").await,
        desk.enqueue("wait").await,
        desk.enqueue("wait").await,
        desk.enqueue("wait").await,
        desk.enqueue("wait").await,
    ];
    desk.time_passes().await;
    assert_eq!(desk.runs(), 1);
    let path = "/admin/queues/late/concurrency";
    let set = desk.put(path, json!({ "concurrency": 3 })).await.expect(200);
    assert_eq!((&set["concurrency"], &set["concurrency_set"]), (&json!(3), &json!(true)));
    desk.runs_are(3).await;
    desk.h.eventually(async || desk.consumed().await["concurrency"] == 3).await;
    // Fewer again: what runs ends, and nothing comes in its place until there is room.
    desk.put(path, json!({ "concurrency": 1 })).await.expect(200);
    desk.h.eventually(async || desk.consumed().await["concurrency"] == 1).await;
    desk.let_go(2);
    desk.h.eventually(async || desk.consumed().await["running"] == 1).await;
    desk.time_passes().await;
    assert_eq!(desk.runs(), 3);
    desk.let_go(1);
    desk.runs_are(4).await;
    // Nothing said is no wish to reset it.
    desk.put(path, json!({})).await.problem(422, "validation_failed");
    let own = desk.put(path, json!({ "concurrency": null })).await.expect(200);
    assert_eq!((&own["concurrency"], &own["concurrency_set"]), (&json!(2), &json!(false)));
    desk.let_go(2);
    for id in &ids {
        assert_eq!(desk.ended(id).await.state, State::Success);
    }
    let refused = desk.put(path, json!({ "concurrency": 0, "surprise": 1 })).await.problem(422, "validation_failed");
    assert_eq!(fields(&refused), ["concurrency", "surprise"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_who_it_is_and_what_it_runs_until_it_is_gone() {
    let desk = Desk::new().await;
    assert_eq!(desk.get("/admin/workers").await["items"], json!([]));
    desk.start();
    let id = desk.enqueue("wait").await;
    let runs = async || desk.get("/admin/workers").await["items"][0]["running_count"] == 1;
    desk.h.eventually(runs).await;
    let page = desk.get("/admin/workers").await;
    let worker = &page["items"][0];
    assert_eq!(worker["pid"], std::process::id());
    assert_eq!(worker["version"], env!("CARGO_PKG_VERSION"));
    assert!(worker["started_at"].is_string() && !worker["host"].as_str().unwrap().is_empty());
    assert!(worker["heartbeat_age_ms"].as_u64().unwrap() < 10_000);
    let running = &worker["running"][0];
    assert_eq!((&running["id"], &running["name"]), (&json!(id.to_string()), &json!("payments.resolve_late")));
    let queues: Vec<&str> =
        worker["queues"].as_array().unwrap().iter().map(|queue| queue["queue"].as_str().unwrap()).collect();
    assert_eq!(queues, ["late", "release"]);
    // The task names its worker.
    let task = desk.get(&format!("/admin/tasks/{id}")).await;
    assert_eq!(task["worker"], worker["instance"]);
    // One more, in pages; and while it stops it is still there, as long as something runs.
    let other = Loops::default();
    let registry = Registry::default().queue(QueueSpec { name: "release", batch: 1, concurrency: 1 });
    Worker::start(desk.h.app.engine.clone(), registry, (), &other);
    desk.h.eventually(async || desk.get("/admin/workers").await["items"].as_array().unwrap().len() == 2).await;
    let first = desk.get("/admin/workers?limit=1").await;
    let rest = desk.get(&format!("/admin/workers?limit=1&cursor={}", first.text_of("next_cursor"))).await;
    assert_ne!(first["items"][0]["instance"], rest["items"][0]["instance"]);
    assert_eq!(rest["next_cursor"], Value::Null);
    assert!(other.stop(Duration::from_secs(60)).await);
    assert_eq!(desk.get("/admin/workers").await["items"].as_array().unwrap().len(), 1);
    desk.loops.stop_signal().cancel();
    assert_eq!(desk.get("/admin/workers").await["items"][0]["running_count"], 1);
    desk.let_go(1);
    assert!(desk.loops.stop(Duration::from_secs(60)).await);
    assert_eq!(desk.get("/admin/workers").await["items"], json!([]));
}
