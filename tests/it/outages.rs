//! Redis that resets its connections, stalls, goes silent, forgets its scripts, restarts, or becomes a replica, and MySQL
//! that becomes read-only: what runs goes on unaided.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use onrush::engine::{
    Call, Effect, Engine, Job, Outcome, QueueName, QueueSpec, Registry, State, Task, TaskStatus, Unique, Worker,
};
use onrush::platform::loops::Loops;
use onrush::platform::redis::Redis;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::seckill::{Sale, assert_clean, people};
use crate::support::{Harness, Options, PrivateRedis, PrivateServers, Proxy};

/// A service that reaches a Redis of its own through a way that can be broken.
struct Setup {
    h: Harness,
    redis: PrivateRedis,
    proxy: Proxy,
}

impl Setup {
    async fn new() -> Self {
        let redis = PrivateRedis::start().await;
        let proxy = Proxy::to(redis.url()).await;
        let settings = vec![("engine.lease_ms", "600".to_owned()), ("orders.owed_grace_s", "1".to_owned())];
        let servers = Some(redis.addresses(proxy.url()).await);
        let h = Harness::with(Options { system_clock: true, settings, servers }).await;
        Self { h, redis, proxy }
    }
}

/// Counts itself, in the acknowledgement.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Counted {}

impl Task for Counted {
    const NAME: &'static str = "test.counted";
    const QUEUE: &'static str = "counted";
}

fn effect(engine: &Engine) -> String {
    let queue: QueueName = Counted::QUEUE.parse().unwrap();
    engine.keys(&queue).own("effect")
}

async fn counted(engine: Engine, _: Job<Counted>) -> Outcome {
    let effects = vec![Effect { key: effect(&engine), command: "INCRBY", args: vec!["1".to_owned()] }];
    Outcome::SuccessWith { result: json!(null), effects }
}

/// Enqueues each, again for as long as the server does not say that it took it.
async fn enqueue(h: &Harness, calls: &[Call]) {
    for call in calls {
        let once = Unique::For(Duration::from_secs(3600));
        h.eventually(async || h.app.engine.call(call, None, once).await.is_ok()).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Outage {
    Reset,
    ClientsKilled,
    Stall,
    Silence,
    ScriptsForgotten,
    Restart,
}

const OUTAGES: [Outage; 6] =
    [Outage::Reset, Outage::ClientsKilled, Outage::Stall, Outage::Silence, Outage::ScriptsForgotten, Outage::Restart];

async fn strike(outage: Outage, proxy: &Proxy, redis: &mut PrivateRedis) {
    match outage {
        Outage::Reset => proxy.reset(),
        Outage::ClientsKilled => {
            for kind in ["normal", "pubsub"] {
                redis.tell(&["CLIENT", "KILL", "TYPE", kind]).await;
            }
        }
        Outage::Stall => drop(redis.tell(&["CLIENT", "PAUSE", "2000", "ALL"]).await),
        Outage::Silence => proxy.silence(),
        Outage::ScriptsForgotten => drop(redis.tell(&["SCRIPT", "FLUSH"]).await),
        Outage::Restart => {
            // A power cut keeps what was acknowledged only when it was written first (`everysec` may put that off).
            redis.tell(&["CONFIG", "SET", "appendfsync", "always"]).await;
            redis.restart().await;
        }
    }
}

/// Tasks before, during and after an outage, each of which ends well and counts once.
async fn consumption_survives(outage: Outage) {
    let Setup { h, mut redis, proxy } = Setup::new().await;
    let (engine, loops) = (h.app.engine.clone(), Loops::default());
    let registry = Registry::default().queue(QueueSpec { name: "counted", batch: 5, concurrency: 2 }).single(counted);
    Worker::start(engine.clone(), registry, engine.clone(), &loops);
    let calls: Vec<Call> = (0..300).map(|_| Call::of(&Counted {}).unwrap()).collect();
    enqueue(&h, &calls[..100]).await;
    tokio::join!(enqueue(&h, &calls[100..200]), strike(outage, &proxy, &mut redis));
    enqueue(&h, &calls[200..]).await;
    let left = async || {
        let all = join_all(calls.iter().map(async |call| engine.status(&call.id()).await)).await;
        let ended = |status: &_| matches!(status, Ok(Some(TaskStatus { state: State::Success, .. })));
        all.into_iter().enumerate().filter(|(_, status)| !ended(status)).collect::<Vec<_>>()
    };
    let ended = AssertUnwindSafe(h.eventually(async || left().await.is_empty())).catch_unwind().await;
    assert!(ended.is_ok(), "{outage:?} leaves {:?}", left().await);
    let count: i64 = redis::cmd("GET").arg(effect(&engine)).query_async(&mut h.app.redis.commands()).await.unwrap();
    assert_eq!(count, 300, "{outage:?}");
    assert!(loops.stop(Duration::from_secs(60)).await, "{outage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn consumption_goes_on_unaided_after_every_kind_of_outage() {
    let all = join_all(OUTAGES.map(|outage| tokio::spawn(consumption_survives(outage)))).await;
    let failed: Vec<_> = OUTAGES.iter().zip(all).filter(|(_, end)| end.is_err()).map(|(outage, _)| outage).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_went_silent_are_replaced_and_submissions_go_on() {
    let s = Setup::new().await;
    let (sale, buyers) = (Sale::open(&s.h, 10).await, people(&s.h, 3).await);
    s.h.start_workers();
    assert_eq!(sale.take_part(&s.h, &buyers[0]).await["code"], 100);
    s.proxy.silence();
    s.h.eventually(async || sale.submit(&s.h, &buyers[1]).await.status == 202).await;
    assert_eq!(sale.take_part(&s.h, &buyers[1]).await["code"], 100);
    assert_eq!(sale.take_part(&s.h, &buyers[2]).await["code"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_went_silent_is_made_again() {
    let s = Setup::new().await;
    let channel = s.h.app.engine.keys(&Counted::QUEUE.parse().unwrap()).done();
    // Polls would end by looking for themselves: what counts is that what is announced is heard.
    let heard = async || {
        let told = Mutex::new(Vec::new());
        s.h.eventually(async || {
            let key = Uuid::now_v7().as_simple().to_string();
            s.redis.tell(&["PUBLISH", &channel, &key]).await;
            let mut told = told.lock().unwrap();
            told.push(key);
            told.iter().any(|key| s.proxy.announced(key))
        })
        .await;
    };
    heard().await;
    assert_eq!(s.proxy.silence_subscriptions(), 1);
    heard().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_becomes_a_replica_is_not_ready_and_left() {
    let s = Setup::new().await;
    let (other, buyers) = (PrivateRedis::start().await, people(&s.h, 3).await);
    let way = Proxy::to(other.url()).await;
    let sale = Sale::open(&s.h, 10).await;
    s.h.start_workers();
    assert_eq!(sale.take_part(&s.h, &buyers[0]).await["code"], 100);
    let not_ready = async || {
        let readiness = s.h.get("/readyz", ()).await;
        readiness.status == 503 && readiness.body["redis"] == "redis is a read-only replica"
    };
    let ready = async || s.h.get("/readyz", ()).await.status == 200;

    let port = way.port().to_string();
    s.redis.tell(&["REPLICAOF", "127.0.0.1", &port]).await;
    s.h.eventually(not_ready).await;
    sale.submit(&s.h, &buyers[1]).await.problem(503, "unavailable");
    let refused = Redis::connect(s.redis.url(), "x").await.unwrap().require_safe_server().await.unwrap_err();
    assert!(format!("{refused:#}").contains("read-only replica"), "{refused:#}");
    s.redis.tell(&["REPLICAOF", "NO", "ONE"]).await;
    s.h.eventually(ready).await;
    s.h.eventually(async || sale.submit(&s.h, &buyers[1]).await.status == 202).await;
    assert_eq!(sale.take_part(&s.h, &buyers[1]).await["code"], 100);

    // The address leads to the new master; the connections to the old one stay open.
    s.redis.tell(&["REPLICAOF", "127.0.0.1", &port]).await;
    let following = async || {
        let role: Vec<redis::Value> = redis::from_redis_value(s.redis.tell(&["ROLE"]).await).unwrap();
        role.get(3).cloned().and_then(|state| redis::from_redis_value::<String>(state).ok()).as_deref()
            == Some("connected")
    };
    s.h.eventually(following).await;
    // Readers are connected to it again, in vain, and it loads nothing any more: it keeps those connections.
    let reader_failed = async || {
        let loops = s.h.get("/readyz", ()).await.body["loops"].as_array().cloned().unwrap_or_default();
        let failed = |of: &serde_json::Value| of["last_error"].as_str().is_some_and(|why| why.contains("read only"));
        loops.iter().any(|of| of["name"].as_str().is_some_and(|name| name.starts_with("read:seckill")) && failed(of))
    };
    s.h.eventually(reader_failed).await;
    s.proxy.lead_to(other.url());
    s.h.eventually(async || sale.submit(&s.h, &buyers[2]).await.status == 202).await;
    assert_eq!(sale.take_part(&s.h, &buyers[2]).await["code"], 100);
    s.h.eventually(ready).await;
}

/// The connections that the server has of an account, by their ids.
async fn connections_of(h: &Harness, account: &str) -> HashSet<i64> {
    let ids = sqlx::query_scalar("SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE user = ?");
    ids.bind(account).fetch_all(&h.app.db).await.unwrap().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_any_more_is_left_and_what_waits_for_one_goes_on() {
    let servers = PrivateServers::start().await;
    let options = Options { system_clock: true, servers: Some(servers.addresses()), ..Options::default() };
    let root = Harness::with(options).await;
    // The tests' own account may write whatever the server is told.
    let account = format!("CREATE USER shop; GRANT ALL ON `{}`.* TO shop", root.database);
    sqlx::raw_sql(&account).execute(&root.app.db).await.unwrap();
    let url = root.app.config.database_url.expose_secret().replacen("root@", "shop@", 1);
    let h = root.another_with(&[("database_url", &url)]).await;
    h.start_workers();
    let (sale, course) = (Sale::open(&h, 5).await, h.course(100).await);
    let (alice, bob) = (h.register().await, h.register().await);
    let order = async |key: &str| h.post_once("/orders", &alice, key, json!({ "course_ids": [course.no()] })).await;
    order("before").await.expect(201);
    h.get("/readyz", ()).await.expect(200);

    sqlx::query("SET GLOBAL read_only = 1").execute(&root.app.db).await.unwrap();
    let at_the_old_writer = connections_of(&root, "shop").await;
    assert!(!at_the_old_writer.is_empty());
    order("meanwhile").await.problem(503, "unavailable");
    let task = sale.submit(&h, &bob).await.expect(202).text_of("id");
    let ready = h.get("/readyz", ()).await;
    assert_eq!((ready.status, ready["mysql"].as_str().is_some_and(|why| why.contains("read-only"))), (503, true));
    let seen_waiting =
        async || h.app.engine.find(&task.parse().unwrap()).await.unwrap().is_some_and(|found| found.due.is_some());
    h.eventually(seen_waiting).await;
    // Whoever is asked leaves those connections, one after the other.
    h.eventually(async || {
        order("meanwhile").await.problem(503, "unavailable");
        connections_of(&root, "shop").await.is_disjoint(&at_the_old_writer)
    })
    .await;

    sqlx::query("SET GLOBAL read_only = 0").execute(&root.app.db).await.unwrap();
    h.eventually(async || h.get("/readyz", ()).await.status == 200).await;
    order("meanwhile").await.expect(201);
    let won = h.get(&format!("/tasks/{task}?wait=30"), &bob).await.expect(200).body;
    assert_eq!(won["code"], 100, "{won}");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE kind = 'course'").await, 2);
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_no_writes_for_now_is_not_ready_and_nobody_hears_of_a_fault() {
    let s = Setup::new().await;
    let (sale, course) = (Sale::open(&s.h, 10).await, s.h.course(100).await);
    let (alice, bob) = (s.h.register().await, s.h.register().await);
    s.h.start_workers();
    assert_eq!(sale.take_part(&s.h, &alice).await["code"], 100);
    // Its memory is used up; too few replicas follow it.
    for (setting, refusing, taking) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")] {
        s.redis.tell(&["CONFIG", "SET", setting, refusing]).await;
        let refused = sale.submit(&s.h, &bob).await.problem(503, "unavailable");
        assert_eq!(refused.header("retry-after"), Some("1"), "{setting}");
        let ready = s.h.get("/readyz", ()).await;
        assert_eq!((ready.status, ready["redis"] != "ok"), (503, true), "{setting}: {}", ready.text());
        // What MySQL decides goes on.
        let order = json!({ "course_ids": [course.no()] });
        s.h.post_once("/orders", &alice, setting, order).await.expect(201);
        s.redis.tell(&["CONFIG", "SET", setting, taking]).await;
        s.h.eventually(async || s.h.get("/readyz", ()).await.status == 200).await;
    }
    assert_eq!(sale.take_part(&s.h, &bob).await["code"], 100);
    assert_clean(&s.h).await;
}
