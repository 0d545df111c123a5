//! Many activities at once: all of them are served, those that rest cost next to nothing, and what cannot be served is told.

use std::sync::atomic::{AtomicUsize, Ordering};

use onrush::engine::inspect::Retried;
use onrush::engine::{QueueName, TaskId};
use sqlx::QueryBuilder;

use super::*;
use crate::support::PrivateRedis;

/// Activities straight into the table, from and to so many minutes from now.
pub async fn others(h: &Harness, count: usize, from: i64, to: i64, closed: bool) {
    let at = |minutes: i64| At::from_ms(h.now().ms() + minutes * 60_000);
    for part in (0..count).collect::<Vec<_>>().chunks(1000) {
        let mut insert = QueryBuilder::new(
            "INSERT INTO seckill_activities (id, course_id, title, price_fen, stock, stock_left, per_user_limit, \
             pay_deadline_s, starts_at, ends_at, closed_at, created_at) ",
        );
        insert.push_values(part, |mut row, _| {
            row.push_bind(Uuid::now_v7()).push_bind(Uuid::now_v7()).push("'另一场', 1, 1, 1, 1, 60");
            row.push_bind(at(from)).push_bind(at(to)).push_bind(closed.then(|| h.now())).push_bind(h.now());
        });
        insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    }
}

fn meta(h: &Harness, sale: &Sale) -> String {
    h.app.engine.keys(&seckill::queue(sale.activity())).meta()
}

async fn ask<T: redis::FromRedisValue>(h: &Harness, command: &[&str]) -> T {
    let mut asked = redis::cmd(command[0]);
    asked.arg(&command[1..]).query_async(&mut h.app.redis.commands()).await.unwrap()
}

async fn stock(h: &Harness, sale: &Sale) -> Option<i64> {
    ask(h, &["HGET", &meta(h, sale), "stock"]).await
}

/// Commands that Redis was asked since it was told to count anew.
async fn commands(h: &Harness) -> u64 {
    let stats: redis::InfoDict = ask(h, &["INFO", "commandstats"]).await;
    let calls = |(_, value): (&String, &redis::Value)| {
        let text: String = redis::from_redis_value(value.clone()).ok()?;
        text.strip_prefix("calls=")?.split(',').next()?.parse::<u64>().ok()
    };
    stats.iter().filter_map(calls).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_that_rest_are_asked_seldom_and_what_moves_is_seen_by_the_next_pass() {
    const OTHERS: usize = 200;
    const PASSES: usize = 10;
    let servers = PrivateServers::start().await;
    let options = Options { servers: Some(servers.addresses()), system_clock: true, ..Options::default() };
    let h = Harness::with(options).await;
    let sale = Sale::open(&h, 10).await;
    others(&h, OTHERS, -10, 60, false).await;
    let pass = async || seckill::watch_gates(&h.app, &|| ()).await.unwrap();
    // The pass tells of each gate that it builds: it may take long.
    let told = AtomicUsize::new(0);
    seckill::watch_gates(&h.app, &|| _ = told.fetch_add(1, Ordering::Relaxed)).await.unwrap();
    assert!(told.into_inner() > OTHERS);
    // Built, compared, and at rest.
    for _ in 0..5 {
        pass().await;
    }
    let _: () = ask(&h, &["CONFIG", "RESETSTAT"]).await;
    for _ in 0..PASSES {
        pass().await;
    }
    let asked = commands(&h).await as usize;
    // Each gate twice, and a few for each pass.
    assert!(asked < 2 * (OTHERS + 1) + 15 * PASSES, "{asked} commands");

    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    pass().await;
    assert_eq!(stock(&h, &sale).await, Some(10));
    let _: i64 = ask(&h, &["HSET", &meta(&h, &sale), "stock", "13"]).await;
    h.eventually(async || {
        pass().await;
        stock(&h, &sale).await == Some(10)
    })
    .await;
    let path = format!("/admin/seckill/activities/{}", sale.id);
    h.patch(&path, &sale.admin, json!({ "stock": 7 })).await.expect(200);
    let _: i64 = ask(&h, &["HSET", &meta(&h, &sale), "stock", "9"]).await;
    h.eventually(async || {
        pass().await;
        stock(&h, &sale).await == Some(7)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_of_all_looks_after_the_gates_and_another_one_when_it_is_gone() {
    let h = Harness::new().await;
    let (other, sale) = (h.another().await, Sale::open(&h, 10).await);
    seckill::watch_gates(&h.app, &|| ()).await.unwrap();
    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    seckill::watch_gates(&other.app, &|| ()).await.unwrap();
    assert_eq!(stock(&h, &sale).await, None, "it is the first one's turn");
    // The first one does not come again.
    h.eventually(async || {
        seckill::watch_gates(&other.app, &|| ()).await.unwrap();
        stock(&h, &sale).await == Some(10)
    })
    .await;
    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    seckill::watch_gates(&h.app, &|| ()).await.unwrap();
    assert_eq!(stock(&h, &sale).await, None, "it is the other one's turn");
    // By a server whose clock was ahead.
    let turn = format!("{}:{{.gates}}:turn", h.app.redis.prefix());
    let _: () = ask(&h, &["SET", &turn, "dead", "PX", "3600000"]).await;
    // On a cluster a gate that rests is asked in one of five passes, also when its key is gone.
    h.eventually(async || {
        seckill::watch_gates(&h.app, &|| ()).await.unwrap();
        stock(&h, &sale).await == Some(10)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_several_hundred_sales_is_served() {
    let servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    // Those that begin later come first in every list, and there are more than connections for readers.
    let first = Sale::open(&h, 10).await;
    others(&h, 600, 0, 60, false).await;
    let last = Sale::open(&h, 10).await;
    h.start_workers();
    for sale in [&first, &last] {
        let buyer = h.register().await;
        assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
    }
    h.advance(Duration::from_secs(61));
    let returned = "SELECT COUNT(*) FROM seckill_entries WHERE gate_returned_at IS NOT NULL";
    h.eventually(async || h.count(returned).await == 2).await;
    let ready = h.get("/readyz", ()).await.expect(200).body;
    let gates = ready["loops"].as_array().unwrap().iter().find(|found| found["name"] == "seckill.gates").cloned();
    assert_eq!(gates.unwrap()["last_error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_activities_than_are_served_those_on_sale_come_first_and_the_rest_is_told() {
    let h = Harness::new().await;
    let minute = Duration::from_secs(60);
    others(&h, 100, -20, 60, false).await;
    let sale = Sale::with(&h, json!({ "ends_at": h.now().plus(minute) })).await;
    let next = Sale::with(&h, json!({ "starts_at": h.now().plus(minute) })).await;
    // They are over, and there are too many of them.
    others(&h, 3000, -10, 80, true).await;
    for one in [&sale, &next] {
        let _: i64 = ask(&h, &["DEL", &meta(&h, one)]).await;
    }
    seckill::look_after_gates(&h.app).await.unwrap();
    assert_eq!([stock(&h, &sale).await, stock(&h, &next).await], [Some(10), Some(10)]);
    let consumed = seckill::jobs::partitions(h.app.clone()).await.unwrap();
    assert!(consumed.len() == 3000 && consumed.contains(&seckill::queue(sale.activity())));
    // Now too many are on sale.
    sqlx::query("UPDATE seckill_activities SET closed_at = NULL").execute(&h.app.db).await.unwrap();
    let told = format!("{:#}", anyhow::Error::from(seckill::look_after_gates(&h.app).await.unwrap_err()));
    assert!(told.contains("102 activities more than 3000 are on sale"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_sales_that_are_over_is_found_soon_when_it_was_retried_or_another_run_of_redis_serves() {
    let mut server = PrivateRedis::start().await;
    let servers = Some(server.addresses(server.url().to_owned()).await);
    let h = Harness::with(Options { servers, ..Options::default() }).await;
    let mut sales = Vec::new();
    for _ in 0..10 {
        sales.push(Sale::open(&h, 10).await);
    }
    let over = "UPDATE seckill_activities SET ends_at = ? WHERE id IS NOT NULL";
    sqlx::query(over).bind(h.now().plus(Duration::from_secs(60))).execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(1200));
    // There are too many to be looked at again all at once.
    others(&h, 780, -600, -30, false).await;
    let queues: Vec<_> = sales.iter().map(|sale| seckill::queue(sale.activity())).collect();
    let consumed = async |queues: &[QueueName]| {
        let found = seckill::jobs::partitions(h.app.clone()).await.unwrap();
        queues.iter().all(|queue| found.contains(queue))
    };
    assert!(!consumed(&queues[..1]).await);
    // One by its record, as a task that ended well is retried; the others as dead letters.
    let (id, keys) = (TaskId { key: Uuid::now_v7(), queue: queues[0].clone() }, h.app.engine.keys(&queues[0]));
    let record = json!({ "state": "SUCCESS", "name": "seckill.place", "attempt": 1, "at": 0, "args": {} }).to_string();
    let _: String = ask(&h, &["SET", &keys.task(id.key.as_simple()), &record, "EX", "600"]).await;
    assert_eq!(h.app.engine.retry(&id).await.unwrap(), Retried::Enqueued);
    for queue in &queues[1..5] {
        let dead = h.app.engine.keys(queue).dead();
        let _: String = ask(&h, &["XADD", &dead, "*", "e", "x", "reason", "y", "at", "0"]).await;
        let letters = h.app.engine.letters(queue, None, 10).await.unwrap();
        assert_eq!(h.app.engine.retry_letters(queue, &letters).await.unwrap(), 1);
    }
    h.eventually(async || consumed(&queues[..5]).await).await;
    server.restart().await;
    let answers = async || {
        let asked: Result<String, _> = redis::cmd("PING").query_async(&mut h.app.redis.commands()).await;
        asked.is_ok()
    };
    h.eventually(answers).await;
    for queue in &queues[5..] {
        let keys = h.app.engine.keys(queue);
        let _: String = ask(&h, &["XADD", &keys.stream(), "*", "e", "x"]).await;
        let _: i64 = ask(&h, &["HINCRBY", &keys.meta(), "seq", "1"]).await;
    }
    h.eventually(async || consumed(&queues[5..]).await).await;
}
