//! Queues in which nothing happens: they cost next to nothing, and are woken and kept going all the same.

use std::collections::HashMap;

use onrush::engine::operate::SeenWorker;
use onrush::orders::{Grant, OrderId};
use onrush::platform::clock::At;

use super::*;
use crate::support::PrivateRedis;

const QUEUES: usize = 40;

impl Setup {
    /// With a Redis of its own, where nobody else is counted.
    async fn alone(redis: &PrivateRedis) -> Self {
        let servers = Some(redis.addresses(redis.url().to_owned()).await);
        let h = Harness::with(Options { system_clock: true, servers, ..Options::default() }).await;
        let (runs, seen, gate) = (Arc::default(), Arc::default(), Arc::new(Semaphore::new(0)));
        let bench = Bench { engine: h.app.engine.clone(), runs, seen, gate };
        Self { h, bench, loops: Loops::default() }
    }

    /// A worker of many queues; its loops.
    fn start_many(&self) -> Loops {
        let queues: Vec<QueueName> = (0..QUEUES).map(part).collect();
        let registry = Registry::default()
            .partitioned_queue(SPEC, move |_| Box::pin(std::future::ready(Ok(queues.clone()))))
            .single(one);
        let loops = Loops::default();
        Worker::start(self.bench.engine.clone(), registry, self.bench.clone(), &loops);
        loops
    }

    async fn send_to(&self, queue: QueueName, due: Option<At>) -> Call {
        let call = Call { queue, ..Call::of(&Work { what: "a".to_owned() }).unwrap() };
        assert!(self.bench.engine.call(&call, due, Unique::UntilDone).await.unwrap());
        call
    }

    async fn clients(&self) -> usize {
        let info: redis::InfoDict = self.redis(redis::cmd("INFO").arg("clients")).await;
        info.get("connected_clients").unwrap()
    }

    /// Who keeps the idle queues, and since when: by their names, `<ms> <instance>`.
    async fn keepers(&self) -> HashMap<String, String> {
        let rights = format!("{}:{{.workers}}:keepers", self.h.app.redis.prefix());
        self.redis(redis::cmd("HGETALL").arg(rights)).await
    }

    /// Who keeps them now, each once.
    async fn kept_by(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.keepers().await.into_values().filter_map(|right| Some(right.split_once(' ')?.1.to_owned())).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    async fn workers(&self) -> Vec<SeenWorker> {
        self.bench.engine.workers("", 10).await.unwrap()
    }

    async fn all_are_kept(&self) -> bool {
        self.keepers().await.len() == QUEUES
    }
}

fn part(n: usize) -> QueueName {
    QueueName::partition("test", n.to_string()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_share_a_connection_and_each_is_woken_by_its_own_task() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let before = s.clients().await;
    let loops = s.start_many();
    // One for all of them.
    s.h.eventually(async || s.all_are_kept().await && s.clients().await <= before + 1).await;
    // The same again and again: who was woken rests again.
    for _ in 0..3 {
        let mut calls = Vec::new();
        for n in [0, 7, QUEUES - 1] {
            calls.push(s.send_to(part(n), None).await);
        }
        for call in &calls {
            assert_eq!(s.end_of(call).await.state, State::Success);
        }
    }
    s.h.eventually(async || s.clients().await <= before + 1).await;
    let late = s.send_to(part(3), Some(s.h.now().plus(Duration::from_millis(20)))).await;
    assert_eq!(s.end_of(&late).await.state, State::Success);
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 10);
    assert!(loops.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_one_keeps_the_idle_queues_and_the_other_when_that_one_leaves() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let first = s.start_many();
    s.h.eventually(async || s.all_are_kept().await).await;
    let keepers = s.kept_by().await;
    assert_eq!(keepers.len(), 1);
    let second = s.start_many();
    // The other one asks, and is told that they are kept.
    s.h.eventually(async || s.workers().await.len() == 2).await;
    let delayed = s.send_to(part(5), Some(s.h.now().plus(Duration::from_millis(20)))).await;
    assert_eq!(s.end_of(&delayed).await.state, State::Success);
    assert!(first.stop(Duration::from_secs(20)).await);
    s.h.eventually(async || {
        let now = s.kept_by().await;
        now.len() == 1 && now != keepers
    })
    .await;
    let delayed = s.send_to(part(6), Some(s.h.now().plus(Duration::from_millis(20)))).await;
    assert_eq!(s.end_of(&delayed).await.state, State::Success);
    assert!(second.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_that_a_dead_process_kept_are_kept_by_another_and_what_waits_in_them_runs() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let rights = format!("{}:{{.workers}}:keepers", s.h.app.redis.prefix());
    // As one that renewed its right and was killed.
    let until = s.h.now().plus(Duration::from_secs(3)).ms();
    for n in 0..QUEUES {
        let right = format!("{until} dead");
        let _: i64 = s.redis(redis::cmd("HSET").arg(&rights).arg(part(n).to_string()).arg(right)).await;
    }
    let loops = s.start_many();
    let queue = part(9);
    let stream = s.bench.engine.keys(&queue).stream();
    s.h.eventually(async || s.redis::<i64>(redis::cmd("EXISTS").arg(&stream)).await == 1).await;
    let late = s.send_to(part(8), Some(s.h.now().plus(Duration::from_millis(20)))).await;
    // Read by the one that died: nobody else sees it come.
    let left = s.send_to(queue, None).await;
    s.read_of(&stream, "dead").await;
    assert_eq!(s.end_of(&late).await.state, State::Success);
    assert_eq!(s.end_of(&left).await.state, State::Success);
    s.h.eventually(async || s.all_are_kept().await && s.kept_by().await != ["dead"]).await;
    assert!(loops.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_queue_that_another_process_keeps_is_paused_and_resumed_in_every_process() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let (first, second) = (s.start_many(), s.start_many());
    let queue = part(11);
    let paused_in = async || {
        let workers = s.workers().await;
        let paused = |worker: &&SeenWorker| worker.report.queues.iter().any(|q| q.queue == queue.as_str() && q.paused);
        workers.iter().filter(paused).count()
    };
    s.h.eventually(async || s.all_are_kept().await && s.workers().await.len() == 2).await;
    s.bench.engine.set_paused(&queue, true).await.unwrap();
    s.h.eventually(async || paused_in().await == 2).await;
    let call = s.send_to(queue.clone(), None).await;
    s.bench.engine.set_paused(&queue, false).await.unwrap();
    assert_eq!(s.end_of(&call).await.state, State::Success);
    s.h.eventually(async || paused_in().await == 0).await;
    assert!(first.stop(Duration::from_secs(20)).await && second.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_queue_whose_key_is_of_a_wrong_type_wakes_no_other_in_vain() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let loops = s.start_many();
    s.h.eventually(async || s.all_are_kept().await).await;
    let broken = s.bench.engine.keys(&part(1)).stream();
    let _: i64 = s.redis(redis::cmd("DEL").arg(&broken)).await;
    let _: () = s.redis(redis::cmd("SET").arg(&broken).arg("x")).await;
    let call = s.send_to(part(2), None).await;
    assert_eq!(s.end_of(&call).await.state, State::Success);
    let _: i64 = s.redis(redis::cmd("DEL").arg(&broken)).await;
    let call = s.send_to(part(1), None).await;
    assert_eq!(s.end_of(&call).await.state, State::Success);
    assert!(loops.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_go_on_after_redis_was_emptied_and_after_it_was_restarted() {
    let mut redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let loops = s.start_many();
    s.h.eventually(async || s.all_are_kept().await).await;
    let _: () = s.redis(&redis::cmd("FLUSHALL")).await;
    let call = s.send_to(part(4), None).await;
    assert_eq!(s.end_of(&call).await.state, State::Success);
    redis.restart().await;
    s.h.eventually(async || s.h.app.redis.usable().await.is_ok()).await;
    let call = s.send_to(part(5), None).await;
    assert_eq!(s.end_of(&call).await.state, State::Success);
    assert!(loops.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_of_a_process_that_was_killed_are_kept_by_another() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let rights = format!("{}:{{.workers}}:keepers", h.app.redis.prefix());
    let keeper = async || {
        let asked = redis::cmd("HGET").arg(&rights).arg("grant").to_owned();
        let right: Option<String> = asked.query_async(&mut h.app.redis.commands()).await.unwrap();
        right.and_then(|right| Some(right.split_once(' ')?.1.to_owned()))
    };
    let mut first = h.process("worker", &[]).await;
    h.eventually(async || keeper().await.is_some()).await;
    let killed = keeper().await;
    let _second = h.process("worker", &[]).await;
    h.eventually(async || h.app.engine.workers("", 10).await.unwrap().len() == 2).await;
    assert_eq!(keeper().await, killed);
    first.kill().await;
    let (key, due) = (Uuid::now_v7(), h.now().plus(Duration::from_millis(20)));
    h.app.engine.enqueue(&[Item::at(key, Grant { order_id: OrderId::new() }, due)]).await.unwrap();
    let task = TaskId { key, queue: "grant".parse().unwrap() };
    let ended = h.app.engine.wait(&task, Duration::from_secs(20)).await.unwrap().expect("a record");
    assert!(ended.state.is_final(), "{ended:?}");
    h.eventually(async || keeper().await != killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_is_told_that_it_was_taken_back_though_its_queue_is_idle_and_another_process_keeps_it() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let rights = format!("{}:{{.workers}}:keepers", s.h.app.redis.prefix());
    let right = format!("{} another", s.h.now().plus(Duration::from_secs(3600)).ms());
    let _: i64 = s.redis(redis::cmd("HSET").arg(&rights).arg(queue().to_string()).arg(right)).await;
    let before = s.clients().await;
    s.start_all();
    let running = s.enqueue("stoppable").await;
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == 1 && s.clients().await > before + 1).await;
    // Its reader rests: it has given its connection back.
    s.h.eventually(async || s.clients().await <= before + 1).await;
    // And its keeper has asked since whether another one keeps the queue; nothing tells of that.
    let rested = s.h.now();
    s.h.eventually(async || s.h.now() > rested.plus(Duration::from_millis(2500))).await;
    assert_eq!(s.bench.engine.revoke(&running).await.unwrap(), Revoked::Told);
    assert_eq!(s.ended(&running).await.state, State::Revoked);
    assert!(s.loops.stop(Duration::from_secs(20)).await);
}
