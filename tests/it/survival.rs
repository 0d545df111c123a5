//! What the engine survives: workers killed again and again, stalled past their leases, stopped under load, restarted
//! hundreds of times. Each worker is a real process ([`worker`]); effects are counted in MySQL.

mod worker;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use onrush::engine::{Item, State};
use serde_json::Value;
use uuid::Uuid;

use self::worker::{Death, LEASE_MS, Mark, NOOPS, Noop, Setup, queue};
use crate::support::{Options, PrivateServers};

/// Workers that die by their own hand in the first test, besides as many killed from outside as it takes.
const SUICIDES: usize = 34;
/// A worker that neither dies nor ends the work within this is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// Deaths in all.
const DEATHS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_workers_killed_under_load_lose_nothing_and_do_nothing_twice() {
    let s = Setup::new().await;
    // Half of the suicides before the commit, half between commit and acknowledgement, spread over the load.
    let mark = |n: usize| Mark {
        death: (n % 60 == 30 && n / 60 < SUICIDES).then(|| [Death::BeforeCommit, Death::BeforeAck][n / 60 % 2]),
        waits: false,
    };
    let tasks = s.enqueue((0..2400).map(mark)).await;
    let done = async || s.h.app.engine.depth(&queue()).await.unwrap();
    let (mut deaths, mut more) = (0, Vec::new());
    let (mut worker, mut last_death) = (s.worker().await, Instant::now());
    while done().await.depth > 0 || deaths < DEATHS {
        assert!(last_death.elapsed() < STUCK_AFTER, "after {deaths} deaths nothing goes on: {:?}", done().await);
        if worker.lives() {
            let running = done().await.running;
            // Killed from outside as soon as it has read: before, in or after its handlers, as it comes.
            let from_outside = deaths % 3 == 2 || s.effects().await >= tasks.len() as i64;
            if running > 0 && from_outside && deaths < DEATHS {
                worker.end("KILL").await;
            }
        }
        if worker.lives() {
            if done().await.depth == 0 && deaths < DEATHS {
                more.extend(s.enqueue((0..20).map(|_| Mark::default())).await);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        } else {
            deaths += 1;
            last_death = Instant::now();
            // The load goes on.
            more.extend(s.enqueue((0..20).map(|_| Mark::default())).await);
            worker = s.worker().await;
        }
    }
    for id in tasks.iter().chain(&more) {
        let status = s.h.app.engine.status(id).await.unwrap().expect("a record");
        assert_eq!(status.state, State::Success, "{status:?}");
        assert_eq!(status.result["attempt"], 1, "a dead worker begins no new attempt");
    }
    // The table's primary key allows one effect of each; none is missing.
    assert_eq!(s.effects().await, (tasks.len() + more.len()) as i64);
    let again = s.h.count("SELECT COUNT(*) FROM begun WHERE delivery > 1").await;
    assert!(again >= SUICIDES as i64, "{again} were taken over: nothing was interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stalled_past_its_lease_changes_nothing_when_it_goes_on() {
    let s = Setup::new().await;
    let mut first = s.worker().await;
    let tasks = s.enqueue((0..10).map(|_| Mark { waits: true, ..Mark::default() })).await;
    s.h.eventually(async || s.begun().await == 10).await;
    first.signal("STOP");
    let stalled = s.h.count("SELECT MAX(process) FROM begun").await;
    let mut second = s.worker().await;
    s.h.eventually(async || s.begun().await == 20).await;
    s.open().await;
    let other = "SELECT MAX(process) FROM begun WHERE delivery > 1";
    let other = s.h.count(other).await;
    assert_ne!(stalled, other);
    let results = async || -> Vec<Value> {
        let waited = tasks.iter().map(|id| s.h.app.engine.wait(id, Duration::from_secs(20)));
        join_all(waited).await.into_iter().map(|status| status.unwrap().expect("a record").result).collect()
    };
    let before = results().await;
    assert!(before.iter().all(|result| result["process"] == other), "{before:?}");
    // It wakes, finishes what it had begun, and is refused.
    first.signal("CONT");
    s.h.eventually(async || first.log().contains("belonged to another worker")).await;
    assert_eq!(results().await, before);
    assert_eq!(s.effects().await, 10);
    first.end("KILL").await;
    second.end("KILL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_longer_than_a_lease_for_its_time_runs_once() {
    let s = Setup::new().await;
    let mut workers = [s.worker().await, s.worker().await];
    let due = s.h.now().plus(Duration::from_millis(5 * LEASE_MS));
    let items: Vec<_> = (0..50).map(|_| Item::at(Uuid::now_v7(), Mark::default(), due)).collect();
    s.h.app.engine.enqueue(&items).await.unwrap();
    s.h.eventually(async || s.effects().await == 50).await;
    assert!(s.h.now() >= due, "it ran before its time");
    s.h.eventually(async || s.h.app.engine.depth(&queue()).await.unwrap().depth == 0).await;
    assert_eq!(s.begun().await, 50);
    for worker in &mut workers {
        worker.end("TERM").await;
    }
    assert_eq!(s.begun().await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_tasks_longer_than_its_deadline_loses_none_and_counts_no_attempt() {
    let s = Setup::new().await;
    let mut first = s.worker().await;
    // More than it may have under way: some run, some are read, some wait.
    let tasks = s.enqueue((0..100).map(|_| Mark { waits: true, ..Mark::default() })).await;
    s.h.eventually(async || s.begun().await >= 20).await;
    first.end("TERM").await;
    assert_eq!(s.effects().await, 0);
    s.open().await;
    let mut second = s.worker().await;
    s.h.eventually(async || s.effects().await == 100).await;
    for id in &tasks {
        let status = s.h.app.engine.wait(id, Duration::from_secs(20)).await.unwrap().expect("a record");
        assert_eq!((status.state, &status.result["attempt"]), (State::Success, &Value::from(1)), "{status:?}");
    }
    second.end("TERM").await;
}

/// Restarts, half of them in order and half by force, so many at a time.
const RESTARTS: usize = 300;
const AT_ONCE: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_restarts_leave_nothing_behind_in_redis() {
    let s = Setup::new().await;
    let keys = async || -> Vec<String> {
        // Of a cluster, those of every node.
        let all = redis::cmd("KEYS").arg(format!("{}:*", s.h.app.redis.prefix())).to_owned();
        all.query_async(&mut s.h.app.redis.commands()).await.unwrap()
    };
    for wave in 0..RESTARTS / AT_ONCE {
        let before = s.effects().await;
        let mut workers = join_all((0..AT_ONCE).map(|_| s.worker())).await;
        s.enqueue((0..AT_ONCE * 4).map(|_| Mark::default())).await;
        s.h.eventually(async || s.effects().await >= before + AT_ONCE as i64).await;
        let signal = if wave % 2 == 0 { "KILL" } else { "TERM" };
        join_all(workers.iter_mut().map(|worker| worker.end(signal))).await;
    }
    let mut last = s.worker().await;
    let all = (RESTARTS * 4) as i64;
    s.h.eventually(async || s.effects().await == all).await;
    // Consumers of the dead go when they are idle and hold nothing.
    let group =
        redis::cmd("XINFO").arg("CONSUMERS").arg(s.h.app.engine.keys(&queue()).stream()).arg("workers").to_owned();
    s.h.eventually(async || {
        let consumers: Vec<redis::Value> = group.query_async(&mut s.h.app.redis.commands()).await.unwrap();
        consumers.len() <= 2
    })
    .await;
    let mut without_end = Vec::new();
    for key in keys().await {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut s.h.app.redis.commands()).await.unwrap();
        if left == -1 {
            without_end.push(key);
        }
    }
    let may_stay =
        |key: &String| [":stream", ":delayed", ":envelopes", ":dead", ":outbox"].iter().any(|end| key.ends_with(end));
    without_end.retain(|key| !may_stay(key));
    assert!(without_end.is_empty(), "keys that never expire: {without_end:?}");
    // One record for each task, and a handful of keys for the queue and the worker that lives.
    let count = keys().await.len() as i64;
    assert!(count <= all + 20, "{count} keys for {all} tasks");
    last.end("TERM").await;
}

/// Tasks that wait before the first worker starts, and tasks that come due in the same millisecond.
const BACKLOG: usize = 200_000;
const DUE: usize = 100_000;
/// What a worker's memory may grow by between a small queue and these, in kB: a hundredth of what they weigh would be
/// noise, all of it 80 MB.
const GROWTH_KB: u64 = 24 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_and_a_crowd_of_due_tasks_need_no_memory_of_their_own() {
    let servers = PrivateServers::start().await;
    let s = Setup::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let (engine, queue) = (&s.h.app.engine, NOOPS.name.parse().unwrap());
    let ended = async || {
        let done = redis::cmd("HGET").arg(engine.keys(&queue).meta()).arg("done").to_owned();
        done.query_async::<Option<usize>>(&mut s.h.app.redis.commands()).await.unwrap().unwrap_or(0)
    };
    let fill = async |count: usize, due| {
        for _ in 0..count / 1000 {
            let items: Vec<_> = (0..1000).map(|_| Item { key: Uuid::now_v7(), args: Noop {}, due }).collect();
            assert_eq!(engine.enqueue(&items).await.unwrap(), 1000);
        }
    };
    // However long that takes on this machine, as long as it goes on.
    let until_ended = async |count: usize| {
        let mut before = ended().await;
        while before < count {
            s.h.eventually(async || ended().await > before).await;
            before = ended().await;
        }
    };
    fill(5_000, None).await;
    let mut small = s.worker().await;
    until_ended(5_000).await;
    let usual = small.peak_kb();
    small.end("TERM").await;
    fill(BACKLOG, None).await;
    fill(DUE, Some(s.h.now())).await;
    let mut worker = s.worker().await;
    until_ended(5_000 + BACKLOG + DUE).await;
    let peak = worker.peak_kb();
    worker.end("TERM").await;
    if let (Some(usual), Some(peak)) = (usual, peak) {
        assert!(peak < usual + GROWTH_KB, "{peak} kB, where a small queue needs {usual}");
    }
    let depth = engine.depth(&queue).await.unwrap();
    assert_eq!((depth.depth, depth.delayed, depth.dead, ended().await), (0, 0, 0, 5_000 + BACKLOG + DUE));
}
