//! The task engine by itself, with tasks of the tests' own.

mod following;
mod idle;
mod lost;
mod priorities;
mod traced;
mod unique;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onrush::engine::{
    Call, Effect, Engine, Envelope, Item, Job, Outcome, QueueName, QueueSpec, Registry, Retry, Revoked, State, Task,
    TaskId, TaskStatus, TimeLimit, Unique, Worker,
};
use onrush::platform::loops::Loops;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::support::{Harness, Options};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Work {
    what: String,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    const QUEUE: &'static str = "test";
    const RETRY: Retry = Retry { attempts: 3, base: Duration::from_millis(10), cap: Duration::from_millis(20) };
}

/// What the handlers of one test share.
#[derive(Clone)]
struct Bench {
    engine: Engine,
    runs: Arc<AtomicU32>,
    /// What ran, in the order in which it began.
    seen: Arc<Mutex<Vec<String>>>,
    /// Handlers that wait do so until a permit is added.
    gate: Arc<Semaphore>,
}

impl Bench {
    /// How often this began.
    fn times(&self, what: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| *seen == what).count()
    }
}

async fn one(bench: Bench, job: Job<Work>) -> Outcome {
    bench.runs.fetch_add(1, Ordering::SeqCst);
    bench.seen.lock().unwrap().push(job.args.what.clone());
    match job.args.what.as_str() {
        "fail once" if job.attempt == 1 => Outcome::Retry(anyhow::anyhow!("not yet")),
        "fail" => Outcome::Retry(anyhow::anyhow!("never")),
        "panic" => panic!("as asked"),
        "wait" => {
            bench.gate.acquire().await.unwrap().forget();
            Outcome::Success(json!({ "delivery": job.delivery }))
        }
        // Waits, and has something done beside its end.
        "win" => {
            bench.gate.acquire().await.unwrap().forget();
            let key = bench.engine.keys(&job.id.queue).own("effect");
            Outcome::SuccessWith { result: json!("won"), effects: vec![Effect { key, command: "INCR", args: vec![] }] }
        }
        "fail once, wait" => {
            bench.gate.acquire().await.unwrap().forget();
            if job.attempt == 1 { Outcome::Retry(anyhow::anyhow!("not yet")) } else { Outcome::done() }
        }
        "die once" if bench.times("die once") == 1 => Outcome::Fatal(anyhow::anyhow!("as asked")),
        "die once" => {
            bench.gate.acquire().await.unwrap().forget();
            Outcome::done()
        }
        "lose" => {
            let key = bench.engine.keys(&job.id.queue).own("effect");
            let effects = vec![Effect { key, command: "INCRBY", args: vec!["5".to_owned()] }];
            Outcome::Failure { result: json!({ "error": "lost" }), effects }
        }
        other => Outcome::Success(json!({ "did": other, "attempt": job.attempt })),
    }
}

async fn many(bench: Bench, jobs: Vec<Job<Work>>) -> Vec<Outcome> {
    if jobs.iter().any(|job| job.args.what == "panic") {
        panic!("a batch with a bad task");
    }
    futures_util::future::join_all(jobs.into_iter().map(|job| one(bench.clone(), job))).await
}

struct Setup {
    h: Harness,
    bench: Bench,
    loops: Loops,
}

const SPEC: QueueSpec = QueueSpec { name: "test", batch: 10, concurrency: 2 };

impl Setup {
    async fn new() -> Self {
        Self::with_clock(true).await
    }

    /// On the system's clock, or on one that moves by hand.
    async fn with_clock(system_clock: bool) -> Self {
        Self::with(system_clock, "500").await
    }

    async fn with(system_clock: bool, lease_ms: &str) -> Self {
        let settings = vec![("engine.lease_ms", lease_ms.to_owned()), ("engine.max_deliveries", "3".to_owned())];
        let h = Harness::with(Options { system_clock, settings, ..Options::default() }).await;
        let (runs, seen, gate) = (Arc::default(), Arc::default(), Arc::new(Semaphore::new(0)));
        let bench = Bench { engine: h.app.engine.clone(), runs, seen, gate };
        Self { h, bench, loops: Loops::default() }
    }

    fn start(&self) {
        let registry = Registry::default().queue(SPEC).single(one);
        Worker::start(self.bench.engine.clone(), registry, self.bench.clone(), &self.loops);
    }

    fn start_batches(&self) {
        let registry = Registry::default().queue(SPEC).batch(many);
        Worker::start(self.bench.engine.clone(), registry, self.bench.clone(), &self.loops);
    }

    async fn enqueue(&self, what: &str) -> TaskId {
        let key = Uuid::now_v7();
        let taken = self.bench.engine.enqueue(&[Item::now(key, Work { what: what.to_owned() })]).await.unwrap();
        assert_eq!(taken, 1);
        TaskId { key, queue: queue() }
    }

    async fn ended(&self, id: &TaskId) -> TaskStatus {
        let status = self.bench.engine.wait(id, Duration::from_secs(20)).await.unwrap().expect("a record");
        assert!(status.state.is_final(), "{status:?}");
        status
    }

    async fn redis<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query_async(&mut self.h.app.redis.commands()).await.unwrap()
    }

    /// What is in the stream: ids and fields.
    async fn entries(&self) -> Vec<(String, Vec<String>)> {
        self.redis(redis::cmd("XRANGE").arg(self.stream()).arg("-").arg("+")).await
    }

    fn stream(&self) -> String {
        self.bench.engine.keys(&queue()).stream()
    }

    async fn make_group(&self) {
        self.make_group_of(&self.stream()).await;
    }

    async fn make_group_of(&self, stream: &str) {
        let made: Result<(), _> = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(stream)
            .arg("workers")
            .arg("0")
            .arg("MKSTREAM")
            .query_async(&mut self.h.app.redis.commands())
            .await;
        made.unwrap();
    }

    /// Reads everything as another worker, which then does nothing with it.
    async fn read_as(&self, consumer: &str) -> usize {
        self.read_of(&self.stream(), consumer).await
    }

    async fn read_of(&self, stream: &str, consumer: &str) -> usize {
        let reply: redis::streams::StreamReadReply = self
            .redis(
                redis::cmd("XREADGROUP")
                    .arg("GROUP")
                    .arg("workers")
                    .arg(consumer)
                    .arg("COUNT")
                    .arg(100)
                    .arg("STREAMS")
                    .arg(stream)
                    .arg(">"),
            )
            .await;
        reply.keys.iter().map(|key| key.ids.len()).sum()
    }

    async fn dead(&self) -> Vec<serde_json::Value> {
        self.bench.engine.dead_letters(&queue(), 100).await.unwrap()
    }
}

fn queue() -> QueueName {
    "test".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_and_its_result_can_be_read() {
    let s = Setup::new().await;
    s.start();
    let id = s.enqueue("this").await;
    let status = s.ended(&id).await;
    assert_eq!((status.state, status.result), (State::Success, json!({ "did": "this", "attempt": 1 })));
    let depth = s.bench.engine.depth(&queue()).await.unwrap();
    assert_eq!((depth.depth, depth.running, depth.delayed, depth.dead), (0, 0, 0, 0));
    let record = s.bench.engine.keys(&queue()).task(id.key.as_simple());
    let ttl: i64 = s.redis(redis::cmd("PTTL").arg(record)).await;
    assert!((1..=600_000).contains(&ttl), "nobody asks about it: {ttl} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_task_has_no_status() {
    let s = Setup::new().await;
    let id = TaskId { key: Uuid::now_v7(), queue: queue() };
    assert!(s.bench.engine.status(&id).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_is_repeated_and_one_that_always_fails_becomes_a_dead_letter() {
    let s = Setup::new().await;
    s.start();
    let (once, always) = (s.enqueue("fail once").await, s.enqueue("fail").await);
    assert_eq!(s.ended(&once).await.result, json!({ "did": "fail once", "attempt": 2 }));
    assert_eq!(s.ended(&always).await.state, State::Failure);
    let dead = s.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0]["name"].as_str().unwrap(), dead[0]["reason"].as_str().unwrap()), ("test.work", "never"));
    assert_eq!((&dead[0]["args"], &dead[0]["attempt"]), (&json!({ "what": "fail" }), &json!(3)));
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 2 + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_task_waits_for_its_time_and_can_be_taken_back() {
    let s = Setup::new().await;
    let due = s.h.now().plus(Duration::from_millis(700));
    let (kept, taken) = (Uuid::now_v7(), Uuid::now_v7());
    let item = |key| Item::at(key, Work { what: "later".to_owned() }, due);
    s.bench.engine.enqueue(&[item(kept), item(taken), item(kept)]).await.unwrap();
    assert_eq!(s.bench.engine.depth(&queue()).await.unwrap().delayed, 2);
    assert_eq!(s.bench.engine.unschedule::<Work>(&[taken]).await.unwrap(), 1);
    s.start();
    let status = s.ended(&TaskId { key: kept, queue: queue() }).await;
    assert!(s.h.now() >= due, "it ran before its time");
    assert_eq!(status.state, State::Success);
    let revoked = s.bench.engine.status(&TaskId { key: taken, queue: queue() }).await.unwrap().unwrap();
    assert_eq!(revoked.state, State::Revoked);
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopping_worker_gives_back_is_then_delivered_for_the_first_time() {
    let mut s = Setup::new().await;
    let pending = redis::cmd("XPENDING").arg(s.stream()).arg("workers").arg("-").arg("+").arg(10).to_owned();
    let given_back = loop {
        s.start();
        // When this has ended the worker waits in its next read, where it is told to stop and then finds a task.
        let before = s.enqueue("before").await;
        s.ended(&before).await;
        let (stopped, id) = tokio::join!(s.loops.stop(Duration::from_secs(60)), s.enqueue("wait"));
        assert!(stopped);
        s.loops = Loops::default();
        s.bench.gate.add_permits(1);
        match s.redis::<Vec<(String, String, u64, u32)>>(&pending).await[..] {
            [(_, _, _, deliveries)] => {
                assert_eq!(deliveries, 0);
                break id;
            }
            // The read had just ended: nobody has the task, and the worker of the next round runs it.
            _ => continue,
        }
    };
    s.start();
    assert_eq!(s.ended(&given_back).await.result["delivery"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_had_read_is_taken_over() {
    let s = Setup::new().await;
    let ids = [s.enqueue("a").await, s.enqueue("b").await, s.enqueue("c").await];
    s.make_group().await;
    assert_eq!(s.read_as("dead").await, 3);
    s.start();
    for id in &ids {
        assert_eq!(s.ended(id).await.state, State::Success);
    }
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 3);
}

/// Deliveries that a dead worker leaves behind: with a rest between two pages of them the next one would take longer than
/// this test waits.
const LEFT_BEHIND: usize = 4000;

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_dead_worker_had_read_is_taken_over_without_a_rest() {
    let s = Setup::with(true, "60000").await;
    let work = |_| Item::now(Uuid::now_v7(), Work { what: "left".to_owned() });
    s.bench.engine.enqueue(&(0..LEFT_BEHIND).map(work).collect::<Vec<_>>()).await.unwrap();
    s.make_group().await;
    let mut read = 0;
    while read < LEFT_BEHIND {
        read += s.read_as("dead").await;
    }
    // It died more than a lease ago.
    for chunk in s.entries().await.chunks(500) {
        let mut idle = redis::cmd("XCLAIM");
        idle.arg(s.stream()).arg("workers").arg("dead").arg(0);
        idle.arg(chunk.iter().map(|(id, _)| id).collect::<Vec<_>>());
        let claimed: Vec<String> = s.redis(idle.arg("IDLE").arg(61_000).arg("RETRYCOUNT").arg(1).arg("JUSTID")).await;
        assert_eq!(claimed.len(), chunk.len());
    }
    s.start_batches();
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) as usize == LEFT_BEHIND).await;
    s.h.eventually(async || s.entries().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_changes_nothing() {
    let s = Setup::new().await;
    s.start();
    let id = s.enqueue("wait").await;
    s.h.eventually(|| async { s.bench.runs.load(Ordering::SeqCst) == 1 }).await;
    // Another worker takes the delivery while the first still runs (as after a long stall), and keeps it.
    let entries = s.entries().await;
    let claim = |consumer: &str| {
        redis::cmd("XCLAIM")
            .arg(s.stream())
            .arg("workers")
            .arg(consumer)
            .arg(0)
            .arg(&entries[0].0)
            .arg("JUSTID")
            .to_owned()
    };
    let _: Vec<String> = s.redis(&claim("other")).await;
    s.bench.gate.add_permits(1);
    // The first worker's handler has returned; its acknowledgement must not count. The other one's lease then runs out
    // and the task runs again, as delivered before.
    s.h.eventually(|| async { s.bench.runs.load(Ordering::SeqCst) == 2 }).await;
    assert_ne!(s.bench.engine.status(&id).await.unwrap().unwrap().state, State::Success);
    s.bench.gate.add_permits(1);
    let status = s.ended(&id).await;
    assert!(status.result["delivery"].as_u64().unwrap() > 1);
}

/// What became of deliveries, beside a worker's back.
#[derive(Debug, Clone, Copy)]
enum Lost {
    /// The second was taken over by another worker, and runs there.
    Taken,
    /// And has ended there.
    Ended,
    /// A fail-over to a server that has not seen the third one read.
    Unread,
    /// Nor any of the three.
    Forgotten,
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_is_not_all_its_own_any_more_a_worker_ends_what_is() {
    let losses = [Lost::Taken, Lost::Ended, Lost::Unread, Lost::Forgotten];
    // With nothing to do beside the end, and with something.
    let cases = losses.into_iter().flat_map(|lost| ["wait", "win"].map(|what| (lost, what)));
    futures_util::future::join_all(cases.map(|(lost, what)| a_batch_ends_after(lost, what))).await;
}

async fn a_batch_ends_after(lost: Lost, what: &str) {
    let s = Setup::new().await;
    let ids = [s.enqueue(what).await, s.enqueue(what).await, s.enqueue(what).await];
    s.start_batches();
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == 3).await;
    // Nothing is read or taken over from now on.
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    let rests = async || {
        let workers = s.bench.engine.workers("", 1).await.unwrap();
        workers.first().and_then(|seen| seen.report.queues.first()).is_some_and(|queue| queue.paused)
    };
    s.h.eventually(async || rests().await).await;
    let (stream, entries) = (s.stream(), s.entries().await);
    let [first, second, third] = [0, 1, 2].map(|at: usize| entries[at].0.as_str());
    let (commands, not_its_own, left): (Vec<String>, &[usize], &[usize]) = match lost {
        Lost::Taken => (vec![format!("XCLAIM {stream} workers other 0 {second} JUSTID")], &[1], &[1]),
        Lost::Ended => (vec![format!("XACK {stream} workers {second}"), format!("XDEL {stream} {second}")], &[1], &[]),
        Lost::Unread => {
            let unread = format!("XGROUP SETID {stream} workers {second}");
            (vec![format!("XACK {stream} workers {third}"), unread], &[2], &[2])
        }
        Lost::Forgotten => {
            let unread = format!("XGROUP SETID {stream} workers 0");
            (vec![format!("XACK {stream} workers {first} {second} {third}"), unread], &[0, 1, 2], &[0, 1, 2])
        }
    };
    for command in commands {
        let mut words = command.split(' ');
        let _: redis::Value = s.redis(redis::cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>())).await;
    }
    s.bench.gate.add_permits(3);
    assert!(s.loops.stop(Duration::from_secs(60)).await);
    let ended = async |at: usize| s.bench.engine.status(&ids[at]).await.unwrap().is_some_and(|s| s.state.is_final());
    for at in 0..3 {
        assert_eq!(ended(at).await, !not_its_own.contains(&at), "{lost:?}, {what}, the task at {at}");
    }
    let there: Vec<String> = s.entries().await.into_iter().map(|(id, _)| id).collect();
    let expected: Vec<String> = left.iter().map(|at| entries[*at].0.clone()).collect();
    assert_eq!(there, expected, "{lost:?}, {what}");
    let effects: Option<usize> = s.redis(redis::cmd("GET").arg(s.bench.engine.keys(&queue()).own("effect"))).await;
    assert_eq!(effects.unwrap_or(0), if what == "win" { 3 - not_its_own.len() } else { 0 }, "{lost:?}, {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_leaves_the_stream_and_nothing_else_does() {
    let s = Setup::new().await;
    let mut ids = Vec::new();
    // Two run on between others that end.
    for what in ["a", "wait", "b", "wait", "c"] {
        ids.push(s.enqueue(what).await);
    }
    let held = || async {
        let entries = s.entries().await;
        let key = |fields: &[String]| Envelope::parse(&fields[1]).unwrap().key;
        entries.iter().map(|(_, fields)| key(fields)).collect::<Vec<_>>()
    };
    s.start();
    for at in [0, 2, 4] {
        assert_eq!(s.ended(&ids[at]).await.state, State::Success);
    }
    assert_eq!(held().await, [ids[1].key, ids[3].key]);
    s.bench.gate.add_permits(2);
    for at in [1, 3] {
        assert_eq!(s.ended(&ids[at]).await.state, State::Success);
    }
    assert!(held().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_keeps_its_lease() {
    let s = Setup::new().await;
    s.start();
    let id = s.enqueue("wait").await;
    s.h.eventually(|| async { s.bench.runs.load(Ordering::SeqCst) == 1 }).await;
    // Several leases pass by the server's own clock: wait until its idle time has been reset a few times.
    let began = s.h.now();
    s.h.eventually(|| async { s.h.now().since(began) > Duration::from_millis(1700) }).await;
    s.bench.gate.add_permits(1);
    assert_eq!(s.ended(&id).await.result, json!({ "delivery": 1 }));
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_workers_ends_in_the_dead_letters_and_holds_up_nobody() {
    let s = Setup::new().await;
    let poison = s.enqueue("poison").await;
    let other = s.enqueue("fine").await;
    s.make_group().await;
    // Three workers died of it, one after the other (each took both, since the poison came in their batch).
    assert_eq!(s.read_as("dead 1").await, 2);
    let entries: Vec<(String, Vec<String>)> = s.redis(redis::cmd("XRANGE").arg(s.stream()).arg("-").arg("+")).await;
    for consumer in ["dead 2", "dead 3"] {
        let claim =
            redis::cmd("XCLAIM").arg(s.stream()).arg("workers").arg(consumer).arg(0).arg(&entries[0].0).to_owned();
        let _: redis::Value = s.redis(&claim).await;
    }
    s.start();
    assert_eq!(s.ended(&poison).await.state, State::Failure);
    assert_eq!(s.ended(&other).await.state, State::Success);
    let dead = s.dead().await;
    assert!(dead[0]["reason"].as_str().unwrap().contains("delivered 3 times"), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_batch_fails_the_task_at_fault_alone() {
    let s = Setup::new().await;
    let bad = s.enqueue("panic").await;
    let good = [s.enqueue("a").await, s.enqueue("b").await];
    s.start_batches();
    for id in &good {
        assert_eq!(s.ended(id).await.state, State::Success);
    }
    assert_eq!(s.ended(&bad).await.state, State::Failure);
    assert_eq!(s.dead().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_goes_to_the_dead_letters_with_the_reason() {
    let s = Setup::new().await;
    let add = |field: &str, value: &str| redis::cmd("XADD").arg(s.stream()).arg("*").arg(field).arg(value).to_owned();
    let envelope = |name: &str, args: serde_json::Value| {
        let key = Uuid::now_v7().as_simple().to_string();
        json!({ "v": 1, "key": key, "name": name, "args": args, "attempt": 1, "at": 0 }).to_string()
    };
    let _: String = s.redis(&add("e", &envelope("test.unheard_of", json!({})))).await;
    let _: String = s.redis(&add("e", &envelope("test.work", json!({ "what": 7 })))).await;
    let _: String = s.redis(&add("e", r#"{"v":2,"of":"a later program"}"#)).await;
    let _: String = s.redis(&add("nonsense", "x")).await;
    s.start();
    s.h.eventually(|| async { s.dead().await.len() == 4 }).await;
    let reasons: Vec<String> = s.dead().await.iter().map(|d| d["reason"].as_str().unwrap().to_owned()).collect();
    for why in ["no handler", "arguments do not fit", "newer", "not an envelope"] {
        assert_eq!(reasons.iter().filter(|r| r.contains(why)).count(), 1, "{why}: {reasons:?}");
    }
    // A later program may still run it: its text is kept to the letter.
    assert!(s.dead().await.iter().any(|d| d["envelope"] == r#"{"v":2,"of":"a later program"}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_happen_with_the_acknowledgement() {
    let s = Setup::new().await;
    s.start();
    let id = s.enqueue("lose").await;
    let status = s.ended(&id).await;
    assert_eq!((status.state, status.result), (State::Failure, json!({ "error": "lost" })));
    let effect: i64 = s.redis(redis::cmd("GET").arg(s.bench.engine.keys(&queue()).own("effect"))).await;
    assert_eq!(effect, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn consumption_goes_on_after_the_streams_are_gone_and_scripts_forgotten() {
    let s = Setup::new().await;
    s.start();
    s.ended(&s.enqueue("before").await).await;
    let _: i64 = s.redis(redis::cmd("DEL").arg(s.stream())).await;
    let _: String = s.redis(redis::cmd("SCRIPT").arg("FLUSH")).await;
    assert_eq!(s.ended(&s.enqueue("after").await).await.state, State::Success);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_runs_and_leaves_the_rest() {
    let s = Setup::new().await;
    s.start();
    let running = s.enqueue("wait").await;
    s.h.eventually(|| async { s.bench.runs.load(Ordering::SeqCst) == 1 }).await;
    let loops = s.loops.clone();
    let stopped = tokio::spawn(async move { loops.stop(Duration::from_secs(60)).await });
    s.h.eventually(|| async { s.loops.stop_signal().is_cancelled() }).await;
    s.bench.gate.add_permits(1);
    assert!(stopped.await.unwrap(), "the stop took longer than its deadline");
    assert_eq!(s.bench.engine.status(&running).await.unwrap().unwrap().state, State::Success);
    let left = s.enqueue("left").await;
    assert_eq!(s.bench.engine.status(&left).await.unwrap().unwrap().state, State::Pending);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_tells_how_many_are_ahead() {
    let s = Setup::new().await;
    let ids = [s.enqueue("a").await, s.enqueue("b").await, s.enqueue("c").await];
    for (ahead, id) in ids.iter().enumerate() {
        assert_eq!(s.bench.engine.status(id).await.unwrap().unwrap().ahead, ahead as u64);
    }
}

/// A step of a chain, or a member of a group: gives back what it was given and what came before.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Step {
    n: u32,
    fails: bool,
}

impl Task for Step {
    const NAME: &'static str = "test.step";
    const QUEUE: &'static str = "steps";
    const RETRY: Retry = Retry { attempts: 1, base: Duration::from_millis(10), cap: Duration::from_millis(20) };
}

/// The same, on another queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sum {}

impl Task for Sum {
    const NAME: &'static str = "test.sum";
    const QUEUE: &'static str = "test";
}

async fn step(_: Bench, job: Job<Step>) -> Outcome {
    if job.args.fails {
        return Outcome::Fatal(anyhow::anyhow!("as asked"));
    }
    Outcome::Success(json!({ "n": job.args.n, "before": job.previous }))
}

async fn sum(bench: Bench, job: Job<Sum>) -> Outcome {
    bench.runs.fetch_add(1, Ordering::SeqCst);
    Outcome::Success(json!({ "previous": job.previous }))
}

/// Tells how far it is, then waits until it is told to stop.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Long {
    soft: bool,
}

impl Task for Long {
    const NAME: &'static str = "test.long";
    const QUEUE: &'static str = "test";
    const RETRY: Retry = Retry { attempts: 2, base: Duration::from_millis(10), cap: Duration::from_millis(20) };
    const LIMIT: TimeLimit =
        TimeLimit { soft: Some(Duration::from_millis(200)), hard: Some(Duration::from_millis(400)) };
}

async fn long(bench: Bench, job: Job<Long>) -> Outcome {
    bench.runs.fetch_add(1, Ordering::SeqCst);
    assert!(job.control.deadline().is_some());
    job.control.stop().cancelled().await;
    if job.args.soft {
        return Outcome::Success(json!("stopped"));
    }
    std::future::pending().await
}

async fn stoppable(bench: Bench, job: Job<Work>) -> Outcome {
    if job.args.what != "stoppable" {
        return one(bench, job).await;
    }
    bench.runs.fetch_add(1, Ordering::SeqCst);
    job.control.set_progress(3, 10);
    job.control.stop().cancelled().await;
    Outcome::Retry(anyhow::anyhow!("stopped"))
}

impl Setup {
    fn start_all(&self) {
        let registry = Registry::default()
            .queue(SPEC)
            .single(stoppable)
            .single(sum)
            .single(long)
            .queue(QueueSpec { name: "steps", batch: 10, concurrency: 2 })
            .single(step);
        Worker::start(self.bench.engine.clone(), registry, self.bench.clone(), &self.loops);
    }

    /// Waits also for a task that is not known yet.
    async fn end_of(&self, call: &Call) -> TaskStatus {
        let id = call.id();
        self.h
            .eventually(async || self.bench.engine.status(&id).await.unwrap().is_some_and(|s| s.state.is_final()))
            .await;
        self.bench.engine.status(&id).await.unwrap().unwrap()
    }

    async fn call(&self, key: Uuid, what: &str, unique: Unique) -> bool {
        let call = Call::keyed(key, &Work { what: what.to_owned() }).unwrap();
        self.bench.engine.call(&call, None, unique).await.unwrap()
    }
}

fn steps<const N: usize>(fails: [bool; N]) -> Vec<Call> {
    let step = |(n, fails)| Call::of(&Step { n, fails }).unwrap();
    (0..).zip(fails).map(step).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_any_name_works() {
    let s = Setup::new().await;
    let longest = format!("long/{}", "0".repeat(91));
    let names = ["-", "_", "0", "--", "test-/_", "a/b/c/d", "test/0", "workers", "absent", &longest];
    let queues: Vec<QueueName> = names.iter().map(|name| name.parse().unwrap()).collect();
    let consumed = queues.clone();
    let registry = Registry::default()
        .partitioned_queue(SPEC, move |_| Box::pin(std::future::ready(Ok(consumed.clone()))))
        .single(one);
    Worker::start(s.bench.engine.clone(), registry, s.bench.clone(), &s.loops);
    let call = |queue: &QueueName| {
        let work = Work { what: queue.to_string() };
        Call { queue: queue.clone(), ..Call::of(&work).unwrap() }
    };
    // One chain through all of them, and a task in each that waits for its time.
    let chain: Vec<Call> = queues.iter().map(call).collect();
    s.bench.engine.chain(&chain).await.unwrap();
    let delayed: Vec<Call> = queues.iter().map(call).collect();
    for call in &delayed {
        let due = s.h.now().plus(Duration::from_millis(50));
        assert!(s.bench.engine.call(call, Some(due), Unique::UntilDone).await.unwrap());
    }
    for call in chain.iter().chain(&delayed) {
        assert_eq!(s.end_of(call).await.result["did"], call.queue.as_str());
    }
    for queue in &queues {
        let depth = s.bench.engine.depth(queue).await.unwrap();
        assert_eq!((depth.depth, depth.running, depth.delayed, depth.dead), (0, 0, 0, 0), "{queue}");
        assert!(s.bench.engine.queue_exists(queue).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_taken_back_before_it_runs_and_told_while_it_does() {
    let s = Setup::new().await;
    let (waiting, later) = (s.enqueue("never").await, Uuid::now_v7());
    let due = s.h.now().plus(Duration::from_secs(3600));
    s.bench.engine.enqueue(&[Item::at(later, Work { what: "never".to_owned() }, due)]).await.unwrap();
    let later = TaskId { key: later, queue: queue() };
    for id in [&waiting, &later] {
        assert_eq!(s.bench.engine.revoke(id).await.unwrap(), Revoked::Now);
        assert_eq!(s.bench.engine.status(id).await.unwrap().unwrap().state, State::Revoked);
    }
    assert_eq!(s.bench.engine.revoke(&waiting).await.unwrap(), Revoked::Ended);
    let nobody = TaskId { key: Uuid::now_v7(), queue: queue() };
    assert_eq!(s.bench.engine.revoke(&nobody).await.unwrap(), Revoked::Unknown);
    s.start_all();
    let running = s.enqueue("stoppable").await;
    // Its progress can be seen while it runs.
    let progress = async || s.bench.engine.status(&running).await.unwrap().unwrap().progress == Some((3, 10));
    s.h.eventually(progress).await;
    assert_eq!(s.bench.engine.revoke(&running).await.unwrap(), Revoked::Told);
    assert_eq!(s.ended(&running).await.state, State::Revoked);
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
    assert!(s.dead().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_past_its_limit_is_told_to_stop_and_then_aborted() {
    let s = Setup::new().await;
    s.start_all();
    let (soft, hard) = (Call::of(&Long { soft: true }).unwrap(), Call::of(&Long { soft: false }).unwrap());
    for call in [&soft, &hard] {
        assert!(s.bench.engine.call(call, None, Unique::UntilDone).await.unwrap());
    }
    let ended = s.end_of(&soft).await;
    assert_eq!((ended.state, ended.result), (State::Success, json!("stopped")));
    let ended = s.end_of(&hard).await;
    assert_eq!((ended.state, ended.result), (State::Failure, json!({ "error": "ran longer than its limit" })));
}
