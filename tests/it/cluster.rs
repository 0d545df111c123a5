//! Redis Cluster: slots that move while they are used, masters that die. Each test has a cluster of its own, whatever
//! the others run on.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use onrush::engine::{
    Call, Effect, Engine, Job, Outcome, QueueName, QueueSpec, Registry, Retry, State, Task, TaskId, Unique, Worker,
};
use onrush::platform::loops::Loops;
use onrush::platform::redis::{Redis, is_unavailable};
use redis::cmd;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use crate::seckill::{Sale, assert_clean, people};
use crate::support::servers::{Addresses, blocking, servers};
use crate::support::{Cluster, Harness, Options, Person};

/// Leaves a mark in the script that ends it, so that each end can be counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mark {}

impl Task for Mark {
    const NAME: &'static str = "cluster.mark";
    const QUEUE: &'static str = "moving";
    const RETRY: Retry = Retry { attempts: 1000, base: Duration::from_millis(10), cap: Duration::from_millis(50) };
}

async fn mark(engine: Engine, job: Job<Mark>) -> Outcome {
    let args = vec![job.id.key.as_simple().to_string(), "1".to_owned()];
    let ended = Effect { key: engine.keys(&job.id.queue).own("marks"), command: "HINCRBY", args };
    Outcome::SuccessWith { result: json!("done"), effects: vec![ended] }
}

/// Fails, and is tried again in an hour.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Later {}

impl Task for Later {
    const NAME: &'static str = "cluster.later";
    const QUEUE: &'static str = "later";
    const RETRY: Retry = Retry { attempts: 2, base: HOUR, cap: HOUR };
}

const HOUR: Duration = Duration::from_secs(3600);

/// Whether it is ready, and no loop of it has failed since its last step.
async fn is_well(h: &Harness) -> bool {
    let answer = h.get("/readyz", ()).await;
    let no_error = |found: &serde_json::Value| found["last_error"].is_null();
    answer.status == 200 && answer["loops"].as_array().unwrap().iter().all(no_error)
}

async fn on(cluster: &Cluster, settings: Vec<(&'static str, String)>) -> Harness {
    let addresses = Addresses { redis: cluster.url(), ..blocking(servers).await };
    Harness::with(Options { system_clock: true, settings, servers: Some(addresses) }).await
}

fn lease(ms: u32) -> Vec<(&'static str, String)> {
    vec![("engine.lease_ms", ms.to_string()), ("orders.owed_grace_s", "1".to_owned())]
}

/// Four queues of marks on `h`, with a worker.
struct Moving {
    engine: Engine,
    queues: Vec<QueueName>,
    loops: Loops,
}

impl Moving {
    fn new(h: &Harness) -> Self {
        let engine = h.app.engine.clone();
        let queues = (0..4).map(|n| QueueName::partition("moving", n).unwrap()).collect();
        Self { engine, queues, loops: Loops::default() }
    }

    fn start(&self) {
        let queues = self.queues.clone();
        let registry = Registry::default()
            .partitioned_queue(QueueSpec { name: "moving", batch: 10, concurrency: 2 }, move |_| {
                std::future::ready(Ok(queues.clone())).boxed()
            })
            .single(mark);
        Worker::start(self.engine.clone(), registry, self.engine.clone(), &self.loops);
    }

    fn call(&self, queue: usize) -> Call {
        Call { queue: self.queues[queue].clone(), ..Call::of(&Mark {}).unwrap() }
    }

    /// Enqueues, and goes on trying for as long as the engine says that it cannot now.
    async fn enqueue(&self, calls: &[Call]) {
        loop {
            let sent = match calls {
                [call] => self.engine.call(call, None, Unique::UntilDone).await.map(drop),
                chain => self.engine.chain(chain).await,
            };
            let Err(error) = sent else { return };
            assert!(error.downcast_ref().is_some_and(is_unavailable), "{error:#}");
        }
    }

    /// Waits until each has ended, and has done so once.
    async fn assert_ended_once(&self, redis: &Redis, calls: &[Call]) {
        for call in calls {
            let id = TaskId { key: call.key, queue: call.queue.clone() };
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            loop {
                let status = self.engine.wait(&id, Duration::from_secs(20)).await;
                if matches!(&status, Ok(Some(status)) if status.state == State::Success) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "{id}: {status:?}");
            }
        }
        for queue in &self.queues {
            let key = self.engine.keys(queue).own("marks");
            let marks: HashMap<String, u32> = cmd("HGETALL").arg(key).query_async(&mut redis.commands()).await.unwrap();
            let ours = calls.iter().filter(|call| call.queue == *queue);
            let expected: HashMap<String, u32> = ours.map(|call| (call.key.as_simple().to_string(), 1)).collect();
            assert_eq!(marks, expected);
        }
    }
}

/// Moves each slot to the next node and on, three times round, and tells of every step.
async fn move_round(cluster: &Cluster, slots: &[u16], step: watch::Sender<usize>) {
    for &slot in slots.iter().cycle().take(9 * slots.len()) {
        let from = cluster.owner(slot).await;
        let to = (from + 1) % 3;
        cluster.begin_move(slot, from, to).await;
        step.send_modify(|step| *step += 1);
        while cluster.move_keys(slot, from, to, 20).await > 0 {
            step.send_modify(|step| *step += 1);
        }
        cluster.end_move(slot, from, to).await;
        step.send_modify(|step| *step += 1);
    }
}

/// Submits until the answer is no "come back", which must say when, and waits for the end: whether a unit was won.
async fn insist(h: &Harness, sale: &Sale, buyer: &Person) -> bool {
    let task = loop {
        let answer = sale.submit(h, buyer).await;
        match answer.status {
            202 => break answer.text_of("id"),
            409 => return false,
            _ => assert!(answer.problem(503, "unavailable").header("retry-after").is_some()),
        }
    };
    loop {
        let answer = h.get(&format!("/tasks/{task}?wait=20"), buyer).await;
        match (answer.status, answer["code"].as_i64()) {
            (200, Some(102)) => {}
            (200, Some(code)) => return code == 100,
            _ => assert!(answer.problem(503, "unavailable").header("retry-after").is_some()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_done_twice_while_slots_move() {
    let cluster = Cluster::start(0).await;
    let h = on(&cluster, lease(3000)).await;
    let (sale, buyers) = (Sale::open(&h, 30).await, people(&h, 60).await);
    let moving = Moving::new(&h);
    let mut slots = vec![cluster.slot(&h.app.engine.keys(&onrush::seckill::queue(sale.activity())).meta()).await];
    for queue in &moving.queues {
        slots.push(cluster.slot(&h.app.engine.keys(queue).stream()).await);
    }
    slots.push(cluster.slot(&format!("{}:{{.workers}}", h.app.redis.prefix())).await);
    h.start_workers();
    moving.start();
    let (step, mut steps) = watch::channel(0);
    // At every step some buyers come, and in every queue work is added: tasks alone, and chains through three queues.
    let load = async {
        let (mut coming, mut calls) = (buyers.iter(), Vec::new());
        let mut buying = Vec::new();
        while steps.changed().await.is_ok() {
            let some = coming.by_ref().take(2).map(|buyer| insist(&h, &sale, buyer));
            buying.push(join_all(some).boxed());
            let new: Vec<Vec<Call>> =
                (0..4).flat_map(|n| [vec![moving.call(n)], (n..n + 3).map(|n| moving.call(n % 4)).collect()]).collect();
            join_all(new.iter().map(|calls| moving.enqueue(calls))).await;
            calls.extend(new.into_iter().flatten());
        }
        buying.push(join_all(coming.map(|buyer| insist(&h, &sale, buyer))).boxed());
        let won = join_all(buying).await.into_iter().flatten().filter(|won| *won).count();
        (won, calls)
    };
    let ((won, calls), ()) = tokio::join!(load, move_round(&cluster, &slots, step));
    moving.assert_ended_once(&h.app.redis, &calls).await;
    assert_eq!(won, 30);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 30);
    assert_eq!(h.count("SELECT stock_left FROM seckill_activities").await, 0);
    assert_clean(&h).await;
    h.eventually(async || is_well(&h).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admission_is_whole_or_refused_while_its_slot_moves() {
    let cluster = Cluster::start(0).await;
    let h = on(&cluster, Vec::new()).await;
    let (sale, first, second) = (Sale::open(&h, 2).await, h.register().await, h.register().await);
    let task = sale.submit(&h, &first).await.expect(202).text_of("id");
    let slot = cluster.slot(&h.app.engine.keys(&onrush::seckill::queue(sale.activity())).meta()).await;
    let from = cluster.owner(slot).await;
    let to = (from + 1) % 3;
    // All that the script can name is still here; the record of the first one's task, which is not written yet, is not.
    cluster.begin_move(slot, from, to).await;
    let poll = async || h.get(&format!("/tasks/{task}"), &first).await.expect(200)["code"].clone();
    assert_eq!(poll().await, 102);
    let answers = tokio::join!(sale.submit(&h, &second), sale.submit(&h, &first));
    for refused in [answers.0, answers.1] {
        assert!(refused.problem(503, "unavailable").header("retry-after").is_some());
    }
    while cluster.move_keys(slot, from, to, 100).await > 0 {}
    assert_eq!(poll().await, 102);
    cluster.end_move(slot, from, to).await;
    assert_eq!(sale.submit(&h, &first).await.expect(202).text_of("id"), task);
    sale.submit(&h, &second).await.expect(202);
    h.start_workers();
    for buyer in [&first, &second] {
        assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
    }
    sale.submit(&h, &h.register().await).await.problem(409, "sold_out");
    assert_clean(&h).await;
}

/// Enqueues them and waits until each is to be tried again in an hour.
async fn fail_once(h: &Harness, calls: &[Call], loops: &Loops) {
    let engine = h.app.engine.clone();
    let registry = Registry::default()
        .queue(QueueSpec { name: "later", batch: 1, concurrency: 1 })
        .single(async |(), _: Job<Later>| Outcome::Retry(anyhow::anyhow!("not yet")));
    Worker::start(engine.clone(), registry, (), loops);
    for call in calls {
        engine.call(call, None, Unique::UntilDone).await.unwrap();
        let state = async || engine.status(&call.id()).await.unwrap().map(|status| status.state);
        h.eventually(async || state().await == Some(State::Retry)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_to_be_replaced_while_its_slot_moves_stays() {
    let cluster = Cluster::start(0).await;
    let h = on(&cluster, Vec::new()).await;
    let (engine, call, loops) = (&h.app.engine, Call::of(&Later {}).unwrap(), Loops::default());
    let state = async || engine.status(&call.id()).await.unwrap().map(|status| status.state);
    fail_once(&h, std::slice::from_ref(&call), &loops).await;
    // It alone waits for its time, so taking it out removes what it is to be put into.
    let slot = cluster.slot(&engine.keys(&call.queue).stream()).await;
    let from = cluster.owner(slot).await;
    let to = (from + 1) % 3;
    cluster.begin_move(slot, from, to).await;
    let replace = async || engine.call(&call, Some(h.now().plus(HOUR)), Unique::Replace).await;
    let refused = replace().await.unwrap_err();
    assert!(refused.downcast_ref().is_some_and(is_unavailable), "{refused:#}");
    while cluster.move_keys(slot, from, to, 100).await > 0 {}
    cluster.end_move(slot, from, to).await;
    assert_eq!((state().await, engine.depth(&call.queue).await.unwrap().delayed), (Some(State::Retry), 1));
    assert!(replace().await.unwrap());
    assert_eq!((state().await, engine.depth(&call.queue).await.unwrap().delayed), (Some(State::Pending), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tasks_or_none_are_taken_back_while_their_slot_moves() {
    let cluster = Cluster::start(0).await;
    let h = on(&cluster, Vec::new()).await;
    let (engine, calls, loops) = (&h.app.engine, [0, 1].map(|_| Call::of(&Later {}).unwrap()), Loops::default());
    fail_once(&h, &calls, &loops).await;
    let keys = [calls[0].key, calls[1].key];
    assert_eq!(engine.unschedule::<Later>(&keys[1..]).await.unwrap(), 1);
    // Taking out the only one that still waits removes what the other one is then looked for in.
    let slot = cluster.slot(&engine.keys(&calls[0].queue).stream()).await;
    let from = cluster.owner(slot).await;
    let to = (from + 1) % 3;
    cluster.begin_move(slot, from, to).await;
    let refused = engine.unschedule::<Later>(&keys).await.unwrap_err();
    assert!(refused.downcast_ref().is_some_and(is_unavailable), "{refused:#}");
    while cluster.move_keys(slot, from, to, 100).await > 0 {}
    cluster.end_move(slot, from, to).await;
    let status = engine.status(&calls[0].id()).await.unwrap();
    assert_eq!(status.map(|status| status.state), Some(State::Retry));
    assert_eq!(engine.unschedule::<Later>(&keys).await.unwrap(), 1);
    assert_eq!(engine.depth(&calls[0].queue).await.unwrap().delayed, 0);
}

/// Moves the sale to the first node, and waits until the replicas of all masters have what these have: what one had not
/// handed on yet goes with it.
async fn to_first_node(cluster: &Cluster, h: &Harness, sale: &Sale) {
    let slot = cluster.slot(&h.app.engine.keys(&onrush::seckill::queue(sale.activity())).meta()).await;
    let from = cluster.owner(slot).await;
    if from != 0 {
        cluster.begin_move(slot, from, 0).await;
        while cluster.move_keys(slot, from, 0, 100).await > 0 {}
        cluster.end_move(slot, from, 0).await;
    }
    for at in 0..3 {
        cluster.handed_on(at).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_takes_over_from_a_master_that_died() {
    let mut cluster = Cluster::start(1).await;
    let h = on(&cluster, lease(1000)).await;
    let sale = Sale::open(&h, 5).await;
    let buyers = people(&h, 8).await;
    let moving = Moving::new(&h);
    let calls: Vec<Call> = (0..40).map(|n| moving.call(n % 4)).collect();
    join_all(calls.iter().map(|call| moving.enqueue(std::slice::from_ref(call)))).await;
    h.eventually(async || is_well(&h).await).await;
    // The subscription that was just made is the first node's too.
    to_first_node(&cluster, &h, &sale).await;
    cluster.kill(0).await;
    assert_eq!(h.get("/readyz", ()).await.status, 503);
    h.start_workers();
    moving.start();
    let won = join_all(buyers.iter().map(|buyer| insist(&h, &sale, buyer))).await;
    assert_eq!(won.into_iter().filter(|won| *won).count(), 5);
    moving.assert_ended_once(&h.app.redis, &calls).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 5);
    h.eventually(async || is_well(&h).await).await;
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_takes_over_from_a_master_that_fell_silent() {
    let mut cluster = Cluster::start(1).await;
    let h = on(&cluster, lease(1000)).await;
    let sale = Sale::open(&h, 5).await;
    let buyers = people(&h, 8).await;
    h.eventually(async || is_well(&h).await).await;
    to_first_node(&cluster, &h, &sale).await;
    // Nobody has to be told any more where the sale is, and so nothing of where the rest is.
    sale.submit(&h, &buyers[0]).await.expect(202);
    cluster.handed_on(0).await;
    cluster.signal(0, "STOP");
    h.eventually(async || h.get("/readyz", ()).await.status == 503).await;
    h.start_workers();
    // It stays silent all the while.
    let healed = h.eventually(async || is_well(&h).await);
    let (won, ()) = tokio::join!(join_all(buyers.iter().map(|buyer| insist(&h, &sale, buyer))), healed);
    assert_eq!(won.into_iter().filter(|won| *won).count(), 5);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 5);
    assert_clean(&h).await;
    cluster.signal(0, "CONT");
    h.eventually(async || is_well(&h).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_away_is_found_again() {
    let mut cluster = Cluster::start(0).await;
    let h = on(&cluster, lease(1000)).await;
    let (sale, buyer) = (Sale::open(&h, 2).await, h.register().await);
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    h.start_workers();
    for at in 0..3 {
        cluster.kill(at).await;
    }
    assert_eq!(h.get("/readyz", ()).await.status, 503);
    assert!(sale.submit(&h, &h.register().await).await.problem(503, "unavailable").header("retry-after").is_some());
    for at in 0..3 {
        cluster.revive(at).await;
    }
    h.eventually(async || is_well(&h).await).await;
    assert_eq!(h.get(&format!("/tasks/{task}?wait=20"), &buyer).await.expect(200)["code"], 100);
    assert!(insist(&h, &sale, &h.register().await).await);
    assert_clean(&h).await;
}
