//! Crashes: workers killed at the worst moments, Redis emptied and restarted, MySQL restarted, clients that leave.
//!
//! No moment here is hit by luck: a lock held by the test stops the worker exactly where it is to die.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use onrush::{check, seckill};

use crate::seckill::{Sale, assert_clean, people};
use crate::support::{Harness, Options, Person, PrivateServers};

/// A short lease, so that the next worker takes over soon.
const LEASE: &[(&str, &str)] = &[("ONRUSH_ENGINE__LEASE_MS", "600")];

async fn harness(servers: Option<&PrivateServers>) -> Harness {
    let settings = vec![("engine.lease_ms", "600".to_owned()), ("orders.owed_grace_s", "1".to_owned())];
    Harness::with(Options { system_clock: true, settings, servers: servers.map(PrivateServers::addresses) }).await
}

/// Submissions of people; their task ids.
async fn submit_all(h: &Harness, sale: &Sale, buyers: &[Person]) -> Vec<String> {
    let answers = join_all(buyers.iter().map(|buyer| sale.submit(h, buyer))).await;
    answers.into_iter().map(|answer| answer.expect(202).text_of("id")).collect()
}

/// Every buyer has won, once, and every invariant holds.
async fn assert_all_won(h: &Harness, buyers: &[Person], tasks: &[String]) {
    for (buyer, task) in buyers.iter().zip(tasks) {
        let end = h.get(&format!("/tasks/{task}?wait=30"), buyer).await.expect(200).body;
        assert_eq!(end["code"], 100, "{end}");
    }
    let n = i64::try_from(buyers.len()).unwrap();
    assert_eq!(h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await, n);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, n);
    assert_clean(h).await;
}

/// Waits until some statement of this test's database waits for a row lock.
async fn somebody_waits_for_a_lock(h: &Harness) {
    h.eventually(async || h.held_up(1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_after_reading_loses_nothing() {
    let h = harness(None).await;
    let sale = Sale::open(&h, 50).await;
    let buyers = people(&h, 20).await;
    for round in 0..3 {
        let mut lock = h.app.db.begin().await.unwrap();
        sqlx::query("SELECT id FROM seckill_activities FOR UPDATE").execute(&mut *lock).await.unwrap();
        let mut worker = h.process("worker", LEASE).await;
        let buyers = &buyers[round * 6..(round + 1) * 6];
        let tasks = submit_all(&h, &sale, buyers).await;
        // It has read its tasks and waits for its first lock; nothing is written yet.
        somebody_waits_for_a_lock(&h).await;
        worker.kill().await;
        lock.rollback().await.unwrap();
        let next = h.process("worker,scheduler", LEASE).await;
        for (buyer, task) in buyers.iter().zip(&tasks) {
            assert_eq!(h.get(&format!("/tasks/{task}?wait=30"), buyer).await.expect(200).body["code"], 100);
        }
        drop(next);
    }
    let all: Vec<Person> = buyers[..18].to_vec();
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 18);
    let again = submit_all(&h, &sale, &all).await;
    assert_all_won(&h, &all, &again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_its_transaction_places_nothing_twice() {
    let h = harness(None).await;
    let sale = Sale::open(&h, 10).await;
    let buyers = people(&h, 5).await;
    // Another session is about to give the last buyer an entry: the worker has taken the stock and inserted the
    // orders, and waits at the entries for what becomes of that.
    let mut blocker = h.app.db.begin().await.unwrap();
    sqlx::query("INSERT INTO seckill_entries (id, activity_id, user_id, order_id, live, created_at) SELECT ?, id, ?, ?, 1, NOW(3) FROM seckill_activities")
        .bind(uuid::Uuid::now_v7())
        .bind(buyers[4].id)
        .bind(uuid::Uuid::now_v7())
        .execute(&mut *blocker)
        .await
        .unwrap();
    let tasks = submit_all(&h, &sale, &buyers).await;
    let mut worker = h.process("worker", LEASE).await;
    somebody_waits_for_a_lock(&h).await;
    worker.kill().await;
    blocker.rollback().await.unwrap();
    let _next = h.process("worker,scheduler", LEASE).await;
    assert_all_won(&h, &buyers, &tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_after_its_commit_and_before_its_ack_places_nothing_twice() {
    let servers = PrivateServers::start().await;
    let h = harness(Some(&servers)).await;
    let sale = Sale::open(&h, 10).await;
    let buyers = people(&h, 5).await;
    let tasks = submit_all(&h, &sale, &buyers).await;
    let mut lock = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM seckill_activities FOR UPDATE").execute(&mut *lock).await.unwrap();
    let mut worker = h.process("worker", LEASE).await;
    somebody_waits_for_a_lock(&h).await;
    // Redis takes no writes from here on, so the worker commits and cannot acknowledge.
    let pause = redis::cmd("CLIENT").arg("PAUSE").arg(60_000).arg("WRITE").to_owned();
    let _: String = pause.query_async(&mut h.app.redis.commands()).await.unwrap();
    lock.rollback().await.unwrap();
    h.eventually(async || h.count("SELECT COUNT(*) FROM seckill_entries").await == 5).await;
    worker.kill().await;
    // On a connection of its own: behind a write that waits on the shared one it would never be heard.
    let client = redis::Client::open(servers.addresses().redis).unwrap();
    let mut own = client.get_multiplexed_async_connection().await.unwrap();
    let _: String = redis::cmd("CLIENT").arg("UNPAUSE").query_async(&mut own).await.unwrap();
    let _next = h.process("worker,scheduler", LEASE).await;
    assert_all_won(&h, &buyers, &tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_emptied_in_the_middle_of_a_sale_sells_no_unit_twice_and_strands_nobody() {
    let servers = PrivateServers::start().await;
    let h = harness(Some(&servers)).await;
    let sale = Sale::open(&h, 60).await;
    h.start_workers();
    let buyers = people(&h, 200).await;
    let submissions = join_all(buyers.chunks(25).enumerate().map(|(n, chunk)| {
        let (h, sale) = (&h, &sale);
        async move {
            for (m, buyer) in chunk.iter().enumerate() {
                if n == 3 && (m == 3 || m == 9) {
                    let _: String = redis::cmd("FLUSHALL").query_async(&mut h.app.redis.commands()).await.unwrap();
                }
                let answer = sale.submit(h, buyer).await;
                assert!([202, 409, 503].contains(&answer.status), "{answer:?}");
            }
        }
    }));
    submissions.await;
    // Whoever was admitted and forgotten may simply try again; in the end every unit is sold, and none twice.
    let sold = async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await;
    h.eventually(async || {
        join_all(buyers.iter().map(|buyer| sale.submit(&h, buyer))).await;
        sold().await == 60
    })
    .await;
    assert_eq!(h.count("SELECT stock_left FROM seckill_activities").await, 0);
    // A gate that was built while a batch was being placed offers too much until it is compared, which a check in the
    // same second sees: `a_gate_built_while_a_batch_is_placed_…` makes that happen each time.
    h.eventually(async || {
        seckill::look_after_gates(&h.app).await.unwrap();
        check::findings(&h.app, false).await.unwrap().iter().all(|finding| finding.violations.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_built_while_a_batch_is_placed_offers_too_much_until_it_is_compared() {
    let servers = PrivateServers::start().await;
    let h = harness(Some(&servers)).await;
    let sale = Sale::open(&h, 10).await;
    let buyers = people(&h, 6).await;
    submit_all(&h, &sale, &buyers[..5]).await;
    // The worker has read the five and waits to take their units; Redis then forgets that they were ever admitted.
    let mut lock = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM seckill_activities FOR UPDATE").execute(&mut *lock).await.unwrap();
    let _worker = h.process("worker", LEASE).await;
    somebody_waits_for_a_lock(&h).await;
    let _: String = redis::cmd("FLUSHALL").query_async(&mut h.app.redis.commands()).await.unwrap();
    // So the gate that this submission has built offers their units again.
    sale.submit(&h, &buyers[5]).await.expect(202);
    lock.rollback().await.unwrap();
    h.eventually(async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await == 6).await;
    let offered = async || -> i64 {
        let gate = h.app.engine.keys(&seckill::queue(sale.activity())).meta();
        redis::cmd("HGET").arg(gate).arg("stock").query_async(&mut h.app.redis.commands()).await.unwrap()
    };
    assert_eq!((offered().await, h.count("SELECT stock_left FROM seckill_activities").await), (9, 4));
    h.eventually(async || {
        seckill::look_after_gates(&h.app).await.unwrap();
        offered().await == 4
    })
    .await;
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_loses_no_submission_that_it_had_kept() {
    let mut servers = PrivateServers::start().await;
    let h = harness(Some(&servers)).await;
    let sale = Sale::open(&h, 10).await;
    let buyers = people(&h, 4).await;
    let tasks = submit_all(&h, &sale, &buyers[..2]).await;
    h.start_workers();
    servers
        .change(|servers| {
            servers.redis.kill()?;
            servers.redis.start()
        })
        .await;
    // Readiness tells when every loop runs again; nothing was started by hand.
    h.eventually(async || h.get("/readyz", ()).await.status == 200).await;
    for (buyer, task) in buyers.iter().zip(&tasks) {
        assert_eq!(h.get(&format!("/tasks/{task}?wait=30"), buyer).await.expect(200).body["code"], 100);
    }
    for buyer in &buyers[2..] {
        assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
    }
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_submissions_are_told_to_come_back() {
    let mut servers = PrivateServers::start().await;
    let h = harness(Some(&servers)).await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    servers.change(|servers| servers.redis.kill()).await;
    let refused = sale.submit(&h, &buyer).await.problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(h.get("/readyz", ()).await.status, 503);
    h.get("/courses", ()).await.expect(200);
    servers.change(|servers| servers.redis.start()).await;
    h.eventually(async || sale.submit(&h, &buyer).await.status == 202).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_mysql_delays_placement_and_loses_nothing() {
    let mut servers = PrivateServers::start().await;
    let h = harness(Some(&servers)).await;
    let sale = Sale::open(&h, 10).await;
    let buyers = people(&h, 6).await;
    h.start_workers();
    assert_eq!(sale.take_part(&h, &buyers[0]).await["code"], 100);
    servers.change(|servers| servers.mysql.kill()).await;
    // The gate needs no MySQL: submissions are taken on, and wait.
    let tasks = submit_all(&h, &sale, &buyers).await;
    assert_eq!(h.get("/readyz", ()).await.status, 503);
    servers.change(|servers| servers.mysql.start()).await;
    assert_all_won(&h, &buyers, &tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_leave_early_break_nothing() {
    // Those who leave early leave their orders behind.
    let unpaid = vec![("orders.max_unpaid", "10000".to_owned()), ("orders.max_unpaid_per_course", "1000".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings: unpaid, ..Options::default() }).await;
    let (sale, buyer, course) = (Sale::open(&h, 1).await, h.register().await, h.course(9900).await);
    let (course_path, body) = (format!("/courses/{}", course.no()), serde_json::json!({ "course_ids": [course.no()] }));
    let paths = ["/courses", course_path.as_str(), "/orders", "/me/courses", "/me/points", "/seckill/activities"];
    // 3,000 requests, each dropped after a time between nothing and a few milliseconds.
    let leave = async |n: u64| {
        let key = format!("leave-{n}");
        let request = match n % 8 {
            6 => h.post("/orders/quote", &buyer, body.clone()).boxed(),
            7 => h.post_once("/orders", &buyer, &key, body.clone()).boxed(),
            at => h.get(paths[usize::try_from(at).unwrap()], &buyer).boxed(),
        };
        let _ = tokio::time::timeout(Duration::from_micros(n * 37 % 6000), request).await;
    };
    for wave in 0..30 {
        join_all((0..100).map(|n| leave(wave * 100 + n))).await;
    }
    for path in paths {
        h.get(path, &buyer).await.expect(200);
    }
    h.post("/orders/quote", &buyer, body.clone()).await.expect(200);
    sale.submit(&h, &buyer).await.expect(202);
    h.no_connection_is_in_a_transaction().await;
}
