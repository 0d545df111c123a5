//! Queues in which nothing happens: they cost next to nothing, and are woken and kept going all the same.

use std::collections::HashMap;

use onrush::engine::inspect::SeenWorker;
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
    fn start_many(&self, count: usize) -> Loops {
        let queues: Vec<QueueName> = (0..count).map(part).collect();
        let registry = Registry::default()
            .partitioned_queue(SPEC, move |_| Box::pin(std::future::ready(Ok(queues.clone()))))
            .single(stoppable);
        let loops = Loops::default();
        Worker::start(self.bench.engine.clone(), registry, self.bench.clone(), &loops);
        loops
    }

    async fn send_to(&self, queue: QueueName, due: Option<At>) -> Call {
        self.send_work("a", queue, due).await
    }

    async fn send_work(&self, what: &str, queue: QueueName, due: Option<At>) -> Call {
        let call = Call { queue, ..Call::of(&Work { what: what.to_owned() }).unwrap() };
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

    /// Until when a queue is kept, and by whom.
    async fn right(&self, queue: QueueName) -> Option<(i64, String)> {
        let right = self.keepers().await.remove(&queue.to_string())?;
        right.split_once(' ').map(|(until, by)| (until.parse().unwrap(), by.to_owned()))
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
    let loops = s.start_many(QUEUES);
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
    let first = s.start_many(QUEUES);
    s.h.eventually(async || s.all_are_kept().await).await;
    let keepers = s.kept_by().await;
    assert_eq!(keepers.len(), 1);
    let second = s.start_many(QUEUES);
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
    let loops = s.start_many(QUEUES);
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
async fn a_right_that_a_server_with_a_clock_far_ahead_has_written_holds_nobody_up() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let rights = format!("{}:{{.workers}}:keepers", s.h.app.redis.prefix());
    let right = format!("{} dead", s.h.now().plus(Duration::from_secs(3600)).ms());
    let _: i64 = s.redis(redis::cmd("HSET").arg(&rights).arg(part(3).to_string()).arg(right)).await;
    let loops = s.start_many(QUEUES);
    s.h.eventually(async || s.right(part(3)).await.is_some_and(|(_, by)| by != "dead")).await;
    assert!(loops.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_whose_stream_is_new_and_below_the_one_before_is_read_all_the_same() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let stream = s.bench.engine.keys(&part(5)).stream();
    // As a server whose clock was ahead left it.
    let ahead = format!("{}-0", s.h.now().plus(Duration::from_secs(3600)).ms());
    let _: String = s.redis(redis::cmd("XADD").arg(&stream).arg(&ahead).arg("x").arg(1)).await;
    let _: i64 = s.redis(redis::cmd("XDEL").arg(&stream).arg(&ahead)).await;
    let loops = s.start_many(QUEUES);
    s.h.eventually(async || s.all_are_kept().await).await;
    let _: i64 = s.redis(redis::cmd("DEL").arg(&stream)).await;
    let call = s.send_to(part(5), None).await;
    assert_eq!(s.end_of(&call).await.state, State::Success);
    assert!(loops.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_queue_that_another_process_keeps_is_paused_and_resumed_in_every_process() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let (first, second) = (s.start_many(QUEUES), s.start_many(QUEUES));
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
    let loops = s.start_many(QUEUES);
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
    let loops = s.start_many(QUEUES);
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
async fn a_queue_in_which_a_long_task_runs_is_kept_by_another_process_and_the_task_is_told_that_it_was_taken_back() {
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let first = s.start_many(QUEUES);
    s.h.eventually(async || s.all_are_kept().await).await;
    let running = s.send_work("stoppable", part(1), None).await;
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == 1).await;
    let short = s.send_to(part(2), None).await;
    assert_eq!(s.end_of(&short).await.state, State::Success);
    // The second one is idle again, so the first one has found nothing for as long.
    let ended = s.h.now();
    s.h.eventually(async || s.right(part(2)).await.is_some_and(|(until, _)| until > ended.ms() + 6500)).await;
    let second = s.start_many(QUEUES);
    s.h.eventually(async || match (s.right(part(1)).await, s.right(part(2)).await) {
        (Some((until, by)), Some((_, first))) => until > s.h.now().ms() && by != first,
        _ => false,
    })
    .await;
    let running = TaskId { key: running.key, queue: running.queue };
    assert_eq!(s.bench.engine.revoke(&running).await.unwrap(), Revoked::Told);
    assert_eq!(s.ended(&running).await.state, State::Revoked);
    assert!(first.stop(Duration::from_secs(20)).await && second.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_queues_than_readers_have_connections_are_all_idle_again_after_each_had_a_task() {
    const MANY: usize = 230;
    let redis = PrivateRedis::start().await;
    let s = Setup::alone(&redis).await;
    let before = s.clients().await;
    let loops = s.start_many(MANY);
    // One for each hundred.
    s.h.eventually(async || s.keepers().await.len() == MANY && s.clients().await <= before + 3).await;
    let mut calls = Vec::new();
    for n in 0..MANY {
        calls.push(s.send_to(part(n), None).await);
    }
    for call in &calls {
        assert_eq!(s.end_of(call).await.state, State::Success);
    }
    let ended = s.h.now().ms();
    s.h.eventually(async || {
        let rights = s.keepers().await;
        let until = rights.values().filter_map(|right| right.split_once(' ')?.0.parse::<i64>().ok());
        until.filter(|until| *until > ended + 3500).count() == MANY && s.clients().await <= before + 3
    })
    .await;
    assert!(loops.stop(Duration::from_secs(20)).await);
    assert!(s.keepers().await.is_empty(), "one that stops gives back all that it has");
}
