//! Somebody writes over keys of Redis, deletes them, or sets the server otherwise, beside the service.

use onrush::auth::UserId;
use onrush::check;
use onrush::http::health;
use onrush::seckill::{self, EntryId};

use super::*;
use crate::seckill::Sale;
use crate::support::PrivateRedis;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_wrong_type_stands_in_the_way_of_its_own_queue_alone() {
    let desk = Desk::new().await;
    let keys = desk.h.app.engine.keys(&late());
    let named = [
        (keys.stream(), "stream"),
        (keys.delayed(), "zset"),
        (keys.envelopes(), "hash"),
        (keys.meta(), "hash"),
        (keys.control(), "hash"),
        (keys.levels(), "set"),
        (keys.revoked(), "hash"),
        (keys.samples(), "list"),
        (keys.outbox(), "stream"),
    ];
    desk.start();
    for (key, wanted) in &named {
        let mut redis = desk.h.app.redis.commands();
        redis::cmd("SET").arg(key).arg("x").query_async::<()>(&mut redis).await.unwrap();
        // The lists are shown, and say what is wrong.
        let queues = desk.get("/admin/queues").await;
        let fault = |name: &str| {
            let items = queues["items"].as_array().unwrap();
            items.iter().find(|queue| queue["queue"] == name).unwrap()["fault"].clone()
        };
        assert_eq!(fault("release"), Value::Null, "{key}");
        if desk.h.app.engine.queue_state(&late()).await.is_err() {
            assert_eq!(fault("late"), json!(format!("{key} is a string, not a {wanted}")));
        }
        desk.get("/admin/tasks").await;
        desk.get("/admin/queues/late").await;
        // Another queue works.
        desk.time_passes().await;
        // No loop has failed for it, which would make the process unready.
        let failed: Vec<_> = desk.loops.health().into_iter().filter(|of| of.last_error.is_some()).collect();
        assert!(failed.is_empty(), "{key}: {failed:?}");
        redis::cmd("DEL").arg(key).query_async::<()>(&mut redis).await.unwrap();
        let id = desk.enqueue("after").await;
        assert_eq!(desk.ended(&id).await.state, State::Success, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_whose_submissions_were_deleted_hear_what_mysql_says_and_may_submit_again() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (sale, placed, lost) = (Sale::open(&h, 3).await, h.register().await, h.register().await);
    let tasks = [sale.submit(&h, &placed).await, sale.submit(&h, &lost).await].map(|it| it.expect(202).text_of("id"));
    let ids = tasks.each_ref().map(|task| task.parse::<TaskId>().unwrap());
    // A worker died between the commit of the first one and its acknowledgement, and then somebody cleared the queue.
    let submission = (EntryId::from_uuid(ids[0].key), UserId::from_uuid(placed.id));
    seckill::place(&h.app, sale.activity(), &[submission]).await.unwrap();
    let keys = h.app.engine.keys(&ids[0].queue);
    let mut redis = h.app.redis.commands();
    redis::cmd("DEL").arg(keys.stream()).query_async::<i64>(&mut redis).await.unwrap();
    for id in &ids {
        // As if it were a minute ago.
        let key = id.key.as_simple().to_string();
        let field: String = redis::cmd("HGET").arg(keys.meta()).arg(&key).query_async(&mut redis).await.unwrap();
        let entry = field.split(' ').nth(2).unwrap();
        let (ms, seq) = entry.split_once('-').unwrap();
        let aged = field.replace(entry, &format!("{}-{seq}", ms.parse::<u64>().unwrap() - 60_000));
        redis::cmd("HSET").arg(keys.meta()).arg(&key).arg(aged).query_async::<i64>(&mut redis).await.unwrap();
    }
    h.start_workers();
    let path = |task: &str| format!("/tasks/{task}");
    h.eventually(async || h.get(&path(&tasks[0]), &placed).await["code"] == 100).await;
    h.eventually(async || h.get(&path(&tasks[1]), &lost).await.status == 404).await;
    assert_eq!(sale.submit(&h, &placed).await.expect(202).text_of("id"), tasks[0]);
    let again = sale.submit(&h, &lost).await.expect(202).text_of("id");
    assert_ne!(again, tasks[1]);
    assert_eq!(h.get(&format!("/tasks/{again}?wait=20"), &lost).await.expect(200)["code"], 100);
    let view = h.get(&format!("/seckill/activities/{}", sale.id), ()).await.expect(200).body;
    assert_eq!(view["stock_left"], 1);
    // The unit of the lost one comes back by reconciliation.
    let violated = async || -> usize {
        let findings = check::findings(&h.app, false).await.unwrap();
        findings.iter().map(|finding| finding.violations.len()).sum()
    };
    h.eventually(async || violated().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_set_to_drop_keys_is_not_ready_until_it_is_set_back() {
    let redis = PrivateRedis::start().await;
    let servers = Some(redis.addresses(redis.url().to_owned()).await);
    let h = Harness::with(Options { servers, ..Options::default() }).await;
    health::watch_eviction(&h.app).await.unwrap();
    h.get("/readyz", ()).await.expect(200);
    redis.tell(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
    redis.tell(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    health::watch_eviction(&h.app).await.unwrap();
    let unready = h.get("/readyz", ()).await.expect(503);
    assert!(unready.text_of("redis").contains("allkeys-lru"), "{}", unready.text());
    redis.tell(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    health::watch_eviction(&h.app).await.unwrap();
    h.get("/readyz", ()).await.expect(200);
}
