//! What a process says of itself by its metrics, so that somebody is called when it matters.

use std::collections::BTreeSet;
use std::time::Duration;

use onrush::{check, jobs};
use serde_json::json;
use uuid::Uuid;

use crate::seckill::{Sale, assert_clean};
use crate::support::harness::eventually;
use crate::support::{Harness, Options, PrivateRedis, PrivateServers, Process, Proxy};

/// A series as the page of metrics has it, with its labels; `None` when it is not there.
async fn metric(process: &Process, series: &str) -> Option<f64> {
    let page = process.client.get("/metrics", ()).await.expect(200).text();
    value_of(&page, series)
}

/// The value of a series on a page of metrics.
pub fn value_of(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_nobody_asks_says_by_its_metrics_why_it_is_not_ready() {
    let mut servers = PrivateServers::start().await;
    let h =
        Harness::with(Options { system_clock: true, servers: Some(servers.addresses()), ..Options::default() }).await;
    let process = h.process("api,worker", &[("ONRUSH_DATABASE__ACQUIRE_TIMEOUT_MS", "500")]).await;
    let is = async |series: &str, value: f64| metric(&process, series).await == Some(value);
    let is_well = async || {
        let reasons = ["mysql", "redis", "eviction", "clock", "loops", "leaving"];
        let page = process.client.get("/metrics", ()).await.expect(200).text();
        let reason = |reason| value_of(&page, &format!("onrush_not_ready{{reason=\"{reason}\"}}")) == Some(0.0);
        let up = |server| value_of(&page, &format!("onrush_server_up{{server=\"{server}\"}}")) == Some(1.0);
        value_of(&page, "onrush_ready") == Some(1.0) && reasons.into_iter().all(reason) && up("mysql") && up("redis")
    };
    eventually(is_well).await;
    servers.change(|s| s.redis.kill()).await;
    eventually(async || is(r#"onrush_server_up{server="redis"}"#, 0.0).await).await;
    assert!(is("onrush_ready", 0.0).await && is(r#"onrush_not_ready{reason="redis"}"#, 1.0).await);
    assert!(
        is(r#"onrush_server_up{server="mysql"}"#, 1.0).await && is(r#"onrush_not_ready{reason="mysql"}"#, 0.0).await
    );
    servers.change(|s| s.redis.start()).await;
    eventually(is_well).await;
    servers.change(|s| s.mysql.kill()).await;
    eventually(async || is(r#"onrush_server_up{server="mysql"}"#, 0.0).await).await;
    // Whoever looks for activities in MySQL makes no step, and is named without any of them.
    eventually(async || is(r#"onrush_loops_stalled{loop="partitions:seckill"}"#, 1.0).await).await;
    eventually(async || is(r#"onrush_not_ready{reason="loops"}"#, 1.0).await).await;
    servers.change(|s| s.mysql.start()).await;
    eventually(is_well).await;
    eventually(async || is(r#"onrush_loops_stalled{loop="partitions:seckill"}"#, 0.0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_alerts_look_at_is_there_before_it_happens_first() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let process = h.process("api,worker,scheduler", &[]).await;
    let page = process.client.get("/metrics", ()).await.expect(200).text();
    let there = [
        r#"onrush_payment_notifications_total{gateway="alipay",outcome="invalid"}"#,
        r#"onrush_payment_notifications_total{gateway="wechat",outcome="late"}"#,
        r#"onrush_tasks_taken_over_total{queue="grant"}"#,
        r#"onrush_results_unwritten_total{queue="seckill"}"#,
        r#"onrush_tasks_lost_total{queue="system"}"#,
        r#"onrush_scheduled_total{task="check.invariants",outcome="enqueued"}"#,
        r#"onrush_scheduled_total{task="orders.sweep",outcome="missed"}"#,
        r#"onrush_seckill_placed_total{outcome="sold_out"}"#,
        r#"onrush_limited_total{limit="poll"}"#,
        r#"onrush_limited_total{limit="in_flight"}"#,
        r#"onrush_pool_timeouts_total{server="mysql"}"#,
        r#"onrush_pool_timeouts_total{server="redis"}"#,
        "onrush_http_accept_failures_total",
        r#"onrush_http_waiting{kind="stream"}"#,
    ];
    for series in there {
        assert_eq!(value_of(&page, series), Some(0.0), "{series}\n{page}");
    }
    let version = concat!(r#"onrush_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#);
    assert_eq!(value_of(&page, version), Some(1.0));
    let limits = ["onrush_mysql_pool_limit", "onrush_redis_pool_limit", "onrush_http_waiting_limit"];
    assert_eq!(limits.map(|limit| value_of(&page, limit)), [Some(6.0), Some(256.0), Some(20_000.0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_the_oldest_of_what_is_owed_has_waited_is_known() {
    let h = Harness::new().await;
    let (alice, bob) = (h.register().await, h.register().await);
    let order = async |who, price| {
        let body = json!({ "course_ids": [h.course(price).await.no()] });
        h.post_once("/orders", who, &Uuid::now_v7().to_string(), body).await.expect(201).text_of("order_no")
    };
    let ages = async || {
        let ages = check::owed::ages(&h.app).await.unwrap();
        ages.into_iter().map(|(work, age)| (work, age.as_secs())).filter(|(_, age)| *age > 0).collect::<Vec<_>>()
    };
    assert_eq!(ages().await, []);
    // Nobody grants, releases, or asks the gateway here.
    order(&alice, 0).await;
    let cancelled = order(&alice, 100).await;
    h.post(&format!("/orders/{cancelled}/cancel"), &alice, json!(null)).await.expect(200);
    h.advance(Duration::from_secs(20));
    assert_eq!(ages().await, [("grant", 20), ("release", 20)]);
    let unpaid = order(&bob, 100).await;
    let pay = json!({ "gateway": "sandbox" });
    h.post(&format!("/orders/{unpaid}/pay"), &bob, pay).await.expect(200);
    // A younger one of each kind hides no older one.
    order(&bob, 0).await;
    let (deadline, query) = (h.app.config.orders.pay_deadline_s, h.app.config.payments.query_after_s);
    h.advance(Duration::from_secs(deadline + 7));
    let (all, asked) = (deadline + 27, deadline + 7 - query);
    assert_eq!(ages().await, [("grant", all), ("release", all), ("expiry", 7), ("query", asked)]);
    // As they are when the task after a commit is lost, and when a gateway does not answer.
    let now = h.now();
    let late = "UPDATE payments SET status = 'paid', resolution = 'owed', paid_at = ?, next_query_at = NULL, \
                gateway_trade_no = 'x'";
    sqlx::query(late).bind(now.minus(Duration::from_secs(3))).execute(&h.app.db).await.unwrap();
    let refund = "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, cause, note, status, next_attempt_at, \
                  created_at) SELECT id, id, order_id, 1, 'late', 'late', '', 'pending', ?, ? FROM payments";
    sqlx::query(refund).bind(now.minus(Duration::from_secs(5))).bind(now).execute(&h.app.db).await.unwrap();
    let entry = "INSERT INTO seckill_entries (id, activity_id, user_id, order_id, created_at, released_at) \
                 SELECT id, id, user_id, id, created_at, ? FROM orders LIMIT 1";
    sqlx::query(entry).bind(now.minus(Duration::from_secs(9))).execute(&h.app.db).await.unwrap();
    let owed = [("grant", all), ("release", all), ("expiry", 7), ("refund", 5), ("late", 3), ("return", 9)];
    assert_eq!(ages().await, owed);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_alone_measures_what_is_owed_and_what_is_set_aside() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let alice = h.register().await;
    let body = json!({ "course_ids": [h.course(0).await.no()] });
    h.post_once("/orders", &alice, "free", body).await.expect(201);
    // Nobody works: what is owed stays so.
    let (one, other) = (h.process("scheduler", &[]).await, h.process("scheduler", &[]).await);
    let broken = "UPDATE schedules SET kind = 'crontab', every_s = NULL, crontab = '* * 31 2 *', next_run_at = NULL, \
                  last_error = 'unreadable' WHERE name = 'auth.prune'";
    sqlx::query(broken).execute(&h.app.db).await.unwrap();
    let measured = async |series: &str| {
        let values = [metric(&one, series).await.unwrap_or(0.0), metric(&other, series).await.unwrap_or(0.0)];
        (values.iter().filter(|value| **value > 0.0).count(), values.iter().sum::<f64>())
    };
    let (granted, aside) = (r#"onrush_owed_oldest_seconds{work="grant"}"#, "onrush_schedules_set_aside");
    eventually(async || measured(granted).await.0 == 1 && measured(aside).await == (1, 1.0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_for_a_connection_is_counted() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let few = [("ONRUSH_DATABASE__POOL_SIZE", "2"), ("ONRUSH_DATABASE__ACQUIRE_TIMEOUT_MS", "300")];
    let process = h.process("api", &few).await;
    let (alice, course) = (h.register().await, h.course(100).await);
    let mut lock = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM users WHERE id = ? FOR UPDATE").bind(alice.id).fetch_one(&mut *lock).await.unwrap();
    let body = json!({ "course_ids": [course.no()] });
    let (client, person, order) = (process.client.clone(), alice.clone(), body.clone());
    let waits = tokio::spawn(async move { client.post_once("/orders", &person, "a", order).await.status });
    h.eventually(async || h.held_up(1).await).await;
    process.client.post_once("/orders", &h.register().await, "b", body).await.problem(503, "unavailable");
    assert_eq!(metric(&process, r#"onrush_pool_timeouts_total{server="mysql"}"#).await, Some(1.0));
    lock.rollback().await.unwrap();
    assert_eq!(waits.await.unwrap(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_submission_is_counted_by_how_they_wait() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (sale, alice) = (Sale::open(&h, 1).await, h.register().await);
    let process = h.process("api", &[]).await;
    let task = sale.submit(&h, &alice).await.expect(202).text_of("id");
    let counted = async |polls: f64, streams: f64| {
        let of = async |kind| metric(&process, &format!("onrush_http_waiting{{kind=\"{kind}\"}}")).await.unwrap();
        (of("poll").await, of("stream").await) == (polls, streams)
    };
    let (client, person, path) = (process.client.clone(), alice.clone(), format!("/tasks/{task}"));
    let poll = tokio::spawn(async move { client.get(&format!("{path}?wait=30"), &person).await.status });
    let stream = process.client.request(reqwest::Method::GET, &format!("/tasks/{task}/events"), &alice).send().await;
    let stream = stream.unwrap();
    eventually(async || counted(1.0, 1.0).await).await;
    drop(stream);
    h.start_workers();
    assert_eq!(poll.await.unwrap(), 200);
    eventually(async || counted(0.0, 0.0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_redis_does_not_take_are_counted_and_their_tasks_run_again() {
    let redis = PrivateRedis::start().await;
    let proxy = Proxy::to(redis.url()).await;
    let servers = Some(redis.addresses(proxy.url()).await);
    let settings = vec![("engine.lease_ms", "600".to_owned()), ("orders.owed_grace_s", "1".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, servers }).await;
    let (grants, body) = ("grant".parse().unwrap(), json!({ "course_ids": [h.course(0).await.no()] }));
    h.post_once("/orders", &h.register().await, "free", body).await.expect(201);
    // The grant waits for the order's row until Redis hangs.
    let mut lock = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM orders FOR UPDATE").fetch_all(&mut *lock).await.unwrap();
    let process = h.process("worker,scheduler", &[]).await;
    h.eventually(async || h.app.engine.depth(&grants).await.unwrap().running == 1).await;
    h.eventually(async || h.held_up(1).await).await;
    proxy.slow_down(Duration::from_secs(600));
    lock.rollback().await.unwrap();
    let series = r#"onrush_results_unwritten_total{queue="grant"}"#;
    eventually(async || metric(&process, series).await.is_some_and(|count| count > 0.0)).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE granted_at IS NOT NULL").await, 1, "MySQL has it");
    proxy.slow_down(Duration::ZERO);
    h.eventually(async || h.app.engine.depth(&grants).await.is_ok_and(|depth| depth.depth == 0)).await;
    assert_clean(&h).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_system_refuses_are_counted() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let process = h.process("api", &[]).await;
    let limit = async |files: u64| {
        let set = format!("--nofile={files}:{}", 4096);
        let set = tokio::process::Command::new("prlimit").args(["--pid", &process.pid().to_string(), &set]).status();
        assert!(set.await.unwrap().success());
    };
    let failures = async || metric(&process, "onrush_http_accept_failures_total").await;
    assert_eq!(failures().await, Some(0.0));
    limit(1).await;
    // The client's own connection is there already; another one is not taken.
    let stranger = tokio::net::TcpStream::connect(process.client.base.trim_start_matches("http://")).await.unwrap();
    eventually(async || failures().await.is_some_and(|count| count > 0.0)).await;
    drop(stranger);
    limit(4096).await;
    eventually(async || reqwest::get(format!("{}/healthz", process.client.base)).await.is_ok()).await;
}

/// The keys of what a queue holds, by what its meta says.
async fn fields(h: &Harness, meta: &str) -> Vec<(String, String)> {
    let all: Vec<(String, String)> =
        redis::cmd("HGETALL").arg(meta).query_async(&mut h.app.redis.commands()).await.unwrap();
    all.into_iter().filter(|(name, _)| name.len() == 32).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_names_the_queues_whose_tasks_are_nowhere_until_a_worker_has_cleared_them() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (alice, sale) = (h.register().await, Sale::open(&h, 2).await);
    let body = json!({ "course_ids": [h.course(100).await.no()] });
    let order = h.post_once("/orders", &alice, "k", body).await.expect(201).text_of("order_no");
    h.post(&format!("/orders/{order}/cancel"), &alice, json!(null)).await.expect(200);
    let task = sale.submit(&h, &alice).await.expect(202).text_of("id");
    let queues: Vec<String> = vec!["release".to_owned(), format!("seckill/{}", sale.id)];
    let released = h.app.engine.keys(&"release".parse().unwrap());
    h.eventually(async || !fields(&h, &released.meta()).await.is_empty()).await;
    let lost = async || {
        let findings = check::findings(&h.app, false).await.unwrap();
        let i3 = findings.into_iter().find(|finding| finding.name == "I3").unwrap();
        i3.violations.into_iter().filter(|found| found.contains("tasks lost: 1 ")).collect::<Vec<_>>()
    };
    assert_eq!(lost().await, [""; 0], "what waits is not lost");
    for queue in &queues {
        let keys = h.app.engine.keys(&queue.parse().unwrap());
        let _: i64 = redis::cmd("DEL").arg(keys.stream()).query_async(&mut h.app.redis.commands()).await.unwrap();
        // As if they had entered it a minute before: those that are younger are not looked for.
        for (key, field) in fields(&h, &keys.meta()).await {
            let mut parts: Vec<String> = field.split(' ').map(str::to_owned).collect();
            let (ms, rest) = parts[2].split_once('-').unwrap();
            parts[2] = format!("{}-{rest}", ms.parse::<u64>().unwrap() - 60_000);
            let mut set = redis::cmd("HSET");
            set.arg(keys.meta()).arg(key).arg(parts.join(" "));
            let _: i64 = set.query_async(&mut h.app.redis.commands()).await.unwrap();
        }
    }
    let mut found = lost().await;
    found.sort_unstable_by_key(|said| !said.contains("release"));
    let names: Vec<bool> = found.iter().zip(&queues).map(|(said, queue)| said.contains(queue.as_str())).collect();
    assert_eq!((found.len(), names), (2, vec![true, true]), "{found:?}");
    // It has only looked.
    assert_eq!(lost().await.len(), 2);
    h.start_workers();
    h.eventually(async || lost().await.is_empty()).await;
    // Nobody was told anything else than to come again.
    h.eventually(async || h.get(&format!("/tasks/{task}"), &alice).await.status == 404).await;
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE released_at IS NULL").await == 0).await;
    assert_eq!(sale.take_part(&h, &alice).await["code"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_looks_into_every_queue() {
    let h = Harness::new().await;
    let queues = jobs::registry(&h.app.config).partitions(&h.app).await.unwrap();
    let all: BTreeSet<&str> = queues.into_iter().map(|(name, _)| name).filter(|name| *name != "seckill").collect();
    assert_eq!(all, check::lost::QUEUES.into());
}
