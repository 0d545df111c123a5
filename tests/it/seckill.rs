//! Seckill from outside: admission, placement, polling, returns, and what a newcomer might do wrong.

mod gates;
mod many;
mod owners;
mod pages;
mod streams;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use onrush::auth::UserId;
use onrush::engine::{Revoked, TaskId};
use onrush::platform::clock::At;
use onrush::platform::text::Text;
use onrush::{check, orders, seckill};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Harness, Options, Person, PrivateServers, client};

/// An activity of one course, on sale for an hour.
pub struct Sale {
    pub id: String,
    pub admin: Person,
}

impl Sale {
    pub async fn open(h: &Harness, stock: i64) -> Self {
        Self::with(h, json!({ "stock": stock })).await
    }

    /// With more, or other, fields.
    pub async fn with(h: &Harness, more: Value) -> Self {
        let (admin, course) = (h.admin().await, h.course(9900).await);
        let mut body = json!({
            "course_id": course.no(), "title": "双十一秒杀", "price_fen": 100, "stock": 10, "pay_deadline_s": 60,
            "starts_at": h.now(), "ends_at": h.now().plus(Duration::from_secs(3600)),
        });
        let fields = body.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        let id = h.post("/admin/seckill/activities", &admin, body).await.expect(201).text_of("id");
        Self { id, admin }
    }

    pub fn activity(&self) -> seckill::ActivityId {
        self.id.parse().unwrap()
    }

    pub fn submissions(&self) -> String {
        format!("/seckill/activities/{}/submissions", self.id)
    }

    pub async fn submit(&self, h: &client::Client, who: &Person) -> client::Answer {
        h.post(&self.submissions(), who, Value::Null).await
    }

    /// Submits and waits for the end: what the poll answers.
    pub async fn take_part(&self, h: &client::Client, who: &Person) -> Value {
        let task = self.submit(h, who).await.expect(202).text_of("id");
        h.get(&format!("/tasks/{task}?wait=20"), who).await.expect(200).body
    }
}

pub async fn people(h: &Harness, n: usize) -> Vec<Person> {
    join_all((0..n).map(|_| h.register())).await
}

/// Every invariant holds.
pub async fn assert_clean(h: &Harness) {
    let findings = check::findings(&h.app, false).await.unwrap();
    let violated: Vec<_> = findings.iter().filter(|finding| !finding.violations.is_empty()).collect();
    assert!(violated.is_empty(), "{violated:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_wins_an_unpaid_order_at_the_activitys_price() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    h.start_workers();
    let answer = sale.submit(&h, &buyer).await.expect(202);
    assert_eq!((answer.body["code"].as_i64(), answer.text_of("msg").as_str()), (Some(100), "正在排队"));
    let won = sale.take_part(&h, &buyer).await;
    assert_eq!((won["code"].as_i64(), won["status"].as_str()), (Some(100), Some("SUCCESS")));
    let order =
        h.get(&format!("/orders/{}", won["result"]["order_no"].as_str().unwrap()), &buyer).await.expect(200).body;
    assert_eq!(
        (order["status"].as_str(), order["payable_fen"].as_i64(), order["kind"].as_str()),
        (Some("unpaid"), Some(100), Some("seckill"))
    );
    let expires: At = serde_json::from_value(order["expires_at"].clone()).unwrap();
    assert_eq!(expires, h.now().plus(Duration::from_secs(60)));
    // A buyer asks again hours later.
    let task: TaskId = answer.text_of("id").parse().unwrap();
    let record = h.app.engine.keys(&task.queue).task(task.key.as_simple());
    let life: i64 = redis::cmd("TTL").arg(record).query_async(&mut h.app.redis.commands()).await.unwrap();
    assert!(life > 3600 * 20, "{life} s");
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_user_again_gets_the_same_id_and_takes_one_unit() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 5).await, h.register().await);
    let answers = join_all((0..20).map(|_| sale.submit(&h, &buyer))).await;
    let ids: HashSet<String> = answers.into_iter().map(|answer| answer.expect(202).text_of("id")).collect();
    assert_eq!(ids.len(), 1);
    h.start_workers();
    assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
    let view = h.get(&format!("/seckill/activities/{}", sale.id), ()).await.expect(200).body;
    assert_eq!(view["stock_left"], 4);
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_own_name() {
    let h = Harness::new().await;
    let buyer = h.register().await;
    let soon = json!({ "starts_at": h.now().plus(Duration::from_secs(90)) });
    let early = Sale::with(&h, soon).await.submit(&h, &buyer).await.problem(409, "not_started");
    assert_eq!(early.header("retry-after"), Some("90"));
    assert_eq!(early.text_of("starts_at"), h.now().plus(Duration::from_secs(90)).to_string());

    let sale = Sale::open(&h, 1).await;
    sale.submit(&h, &h.register().await).await.expect(202);
    sale.submit(&h, &buyer).await.problem(409, "sold_out");

    let over = Sale::with(&h, json!({ "ends_at": h.now().plus(Duration::from_secs(600)) })).await;
    h.advance(Duration::from_secs(600));
    over.submit(&h, &buyer).await.problem(410, "ended");

    let early = json!({ "starts_at": h.now().plus(Duration::from_secs(90)) });
    let called_off = Sale::with(&h, early).await;
    h.post(&format!("/admin/seckill/activities/{}/close", called_off.id), &called_off.admin, Value::Null)
        .await
        .expect(200);
    called_off.submit(&h, &buyer).await.problem(410, "ended");

    let closed = Sale::open(&h, 1).await;
    let first = h.register().await;
    let id = closed.submit(&h, &first).await.expect(202).text_of("id");
    for _ in 0..2 {
        h.post(&format!("/admin/seckill/activities/{}/close", closed.id), &closed.admin, Value::Null).await.expect(200);
    }
    closed.submit(&h, &buyer).await.problem(410, "ended");
    // Who was admitted before keeps his place, and a repeat still says so.
    assert_eq!(closed.submit(&h, &first).await.expect(202).text_of("id"), id);

    let nowhere = Uuid::now_v7().as_simple().to_string();
    h.post(&format!("/seckill/activities/{nowhere}/submissions"), &buyer, Value::Null).await.problem(404, "not_found");
    h.post("/seckill/activities/1/submissions", &buyer, Value::Null).await.problem(422, "validation_failed");
    h.post(&sale.submissions(), (), Value::Null).await.problem(401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpaid_unit_is_on_sale_again_and_its_buyer_may_try_again_up_to_the_limit() {
    let h = Harness::new().await;
    let sale = Sale::with(&h, json!({ "stock": 1, "per_user_limit": 2 })).await;
    let (buyer, other) = (h.register().await, h.register().await);
    h.start_workers();
    for _ in 0..2 {
        let won = sale.take_part(&h, &buyer).await;
        assert_eq!(won["code"], 100, "{won}");
        h.advance(Duration::from_secs(61));
        let returned =
            async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE gate_returned_at IS NULL").await == 0;
        h.eventually(returned).await;
    }
    sale.submit(&h, &buyer).await.problem(409, "limit_reached");
    let other_won = async || sale.submit(&h, &other).await.status == 202;
    h.eventually(other_won).await;
    assert_eq!(sale.take_part(&h, &other).await["code"], 100);
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_its_submitters_and_the_admins_to_read() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 2).await, h.register().await);
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    let waiting = h.get(&format!("/tasks/{task}"), &buyer).await.expect(200).body;
    assert_eq!((waiting["code"].as_i64(), waiting["ahead"].as_u64()), (Some(102), Some(0)));
    let behind = h.register().await;
    let second = sale.submit(&h, &behind).await.expect(202).text_of("id");
    let poll = h.get(&format!("/tasks/{second}"), &behind).await.expect(200).body;
    assert_eq!((poll["ahead"].as_u64(), poll["msg"].as_str()), (Some(1), Some("还在排队，前面还有 1 人")));

    h.get(&format!("/tasks/{task}"), &behind).await.problem(404, "not_found");
    h.get(&format!("/tasks/{task}"), &sale.admin).await.expect(200);
    h.get(&format!("/tasks/{task}"), ()).await.problem(401, "unauthenticated");
    let unknown = format!("{}.seckill.{}", Uuid::now_v7().as_simple(), sale.id);
    h.get(&format!("/tasks/{unknown}"), &buyer).await.problem(404, "not_found");
    for none in ["x", "a%7Db.seckill.x"] {
        h.get(&format!("/tasks/{none}"), &buyer).await.problem(422, "validation_failed");
    }
    h.get(&format!("/tasks/{task}?wait=31"), &buyer).await.problem(422, "validation_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_with_its_task_and_an_event_stream_tells_it() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    let (poll, events) = (format!("/tasks/{task}?wait=30"), format!("/tasks/{task}/events"));
    let waiting = async { h.get(&poll, &buyer).await.expect(200).body };
    let streaming = async { h.get(&events, &buyer).await.expect(200) };
    let (won, stream, ()) = tokio::join!(waiting, streaming, async { h.start_workers() });
    assert_eq!(won["code"], 100);
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    let text = stream.text();
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
    assert_eq!(serde_json::from_str::<Value>(last).unwrap(), won);
    assert!(text.contains("event: task"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_answers_for_a_task_that_redis_forgot() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    h.start_workers();
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    let before = h.get(&format!("/tasks/{task}?wait=20"), &buyer).await.expect(200).body;
    forget(&h).await;
    assert_eq!(h.get(&format!("/tasks/{task}"), &buyer).await.expect(200).body, before);
    h.get(&format!("/tasks/{task}"), &h.register().await).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_is_known_by_its_own_id_alone() {
    let h = Harness::new().await;
    let (sale, other, buyer) = (Sale::open(&h, 1).await, Sale::open(&h, 1).await, h.register().await);
    h.start_workers();
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    h.get(&format!("/tasks/{task}?wait=20"), &buyer).await.expect(200);
    let key = task.split_once('.').unwrap().0;
    for wrong in
        [format!("{key}.seckill.{}", other.id), format!("{task}.x"), format!("{key}.seckill"), format!("{key}.system")]
    {
        for path in [format!("/tasks/{wrong}"), format!("/tasks/{wrong}/events")] {
            h.get(&path, &buyer).await.problem(404, "not_found");
        }
    }
    forget(&h).await;
    h.get(&format!("/tasks/{task}"), &buyer).await.expect(200);
    h.get(&format!("/tasks/{key}.seckill.{}", other.id), &buyer).await.problem(404, "not_found");
}

/// Deletes everything this test has in Redis, each queue's part at one instant.
pub async fn forget(h: &Harness) {
    let mut commands = h.app.redis.commands();
    let script = redis::Script::new(
        "for _, k in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do redis.call('DEL', k) end return 0",
    );
    let pattern = format!("{}:*", h.app.redis.prefix());
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut commands).await.unwrap();
    let parts: HashSet<&str> = keys.iter().map(|key| key.split_inclusive('}').next().unwrap()).collect();
    for part in parts {
        let _: i64 = script.key(part).invoke_async(&mut commands).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_admitted_and_lost_with_redis_does_not_sell_a_unit_twice() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let sale = Sale::open(&h, 5).await;
    h.start_workers();
    let buyers = people(&h, 20).await;
    for buyer in &buyers[..3] {
        assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
    }
    forget(&h).await;
    // The gate is built again from MySQL: the winners are known, two units are left.
    for buyer in &buyers[..3] {
        sale.submit(&h, buyer).await.expect(202);
    }
    let answers = join_all(buyers[3..].iter().map(|buyer| sale.submit(&h, buyer))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 2);
    h.eventually(async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await == 5).await;
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_can_be_raised_and_lowered_but_not_below_what_is_taken() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let sale = Sale::open(&h, 3).await;
    h.start_workers();
    let buyers = people(&h, 4).await;
    for buyer in &buyers[..2] {
        assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
    }
    let path = format!("/admin/seckill/activities/{}", sale.id);
    let change = async |stock: i64| h.patch(&path, &sale.admin, json!({ "stock": stock })).await;
    change(1).await.problem(409, "activity_state");
    assert_eq!(change(2).await.expect(200).body["stock_left"], 0);
    sale.submit(&h, &buyers[2]).await.problem(409, "sold_out");
    assert_eq!(change(3).await.expect(200).body["stock_left"], 1);
    h.eventually(async || sale.submit(&h, &buyers[2]).await.status == 202).await;
    assert_eq!(sale.take_part(&h, &buyers[2]).await["code"], 100);
    change(-1).await.problem(422, "validation_failed");
    h.patch(&path, &buyers[0], json!({ "stock": 9 })).await.problem(403, "forbidden");
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_of_the_course_wins_nothing_and_the_unit_goes_back() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let sale = Sale::open(&h, 1).await;
    let (owner, buyer) = (h.register().await, h.register().await);
    sqlx::query("INSERT INTO user_courses (user_id, course_id, order_id, granted_at) SELECT ?, course_id, ?, NOW(3) FROM seckill_activities")
        .bind(owner.id)
        .bind(Uuid::now_v7())
        .execute(&h.app.db)
        .await
        .unwrap();
    h.start_workers();
    let lost = sale.take_part(&h, &owner).await;
    assert_eq!((lost["code"].as_i64(), lost["result"]["error"].as_str()), (Some(101), Some("already_owned")));
    assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
    assert_clean(&h).await;
}

/// Sets a field of an activity's gate, as a Redis that came back as it was a moment ago would have it.
async fn set_gate(h: &Harness, sale: &Sale, field: &str, value: &str) {
    let gate = h.app.engine.keys(&seckill::queue(sale.activity())).meta();
    let set = redis::cmd("HSET").arg(gate).arg(field).arg(value).to_owned();
    let _: i64 = set.query_async(&mut h.app.redis.commands()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fail_over_of_redis_forgot_is_made_again() {
    let h = Harness::new().await;
    let sale = Sale::with(&h, json!({ "stock": 1, "per_user_limit": 2 })).await;
    let (buyer, other) = (h.register().await, h.register().await);
    h.start_workers();
    let won = sale.take_part(&h, &buyer).await;
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    h.advance(Duration::from_secs(61));
    let returned = async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE gate_returned_at IS NULL").await == 0;
    h.eventually(returned).await;
    // The unit is not back, and the buyer has his old place.
    set_gate(&h, &sale, "stock", "0").await;
    set_gate(&h, &sale, &format!("u{}", buyer.id.as_simple()), &format!("1:{}", &task[..32])).await;
    assert_eq!(sale.submit(&h, &buyer).await.expect(202).text_of("id"), task, "{won}");
    seckill::look_after_gates(&h.app).await.unwrap();
    assert_ne!(sale.submit(&h, &buyer).await.expect(202).text_of("id"), task);

    h.post(&format!("/admin/seckill/activities/{}/close", sale.id), &sale.admin, Value::Null).await.expect(200);
    set_gate(&h, &sale, "closed", "0").await;
    set_gate(&h, &sale, "stock", "1").await;
    seckill::look_after_gates(&h.app).await.unwrap();
    sale.submit(&h, &other).await.problem(410, "ended");
}

/// Reads an activity's submissions as a worker that then dies.
async fn read_and_die(h: &Harness, sale: &Sale) {
    let stream = h.app.engine.keys(&seckill::queue(sale.activity())).stream();
    let mut commands = h.app.redis.commands();
    let group = redis::cmd("XGROUP").arg(&["CREATE", &stream, "workers", "0", "MKSTREAM"]).to_owned();
    let _: String = group.query_async(&mut commands).await.unwrap();
    let read = redis::cmd("XREADGROUP").arg(&["GROUP", "workers", "dead", "STREAMS", &stream, ">"]).to_owned();
    let _: redis::Value = read.query_async(&mut commands).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_submission_frees_its_user_and_unit_also_when_its_record_is_gone() {
    let settings = vec![("engine.lease_ms", "500".to_owned()), ("engine.max_deliveries", "1".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    let forget_record = async |task: &str| {
        let record = h.app.engine.keys(&seckill::queue(sale.activity())).task(&task[..32]);
        let deleted: i64 = redis::cmd("DEL").arg(record).query_async(&mut h.app.redis.commands()).await.unwrap();
        assert_eq!(deleted, 1);
    };
    let dead = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    read_and_die(&h, &sale).await;
    h.start_workers();
    assert_eq!(h.get(&format!("/tasks/{dead}?wait=20"), &buyer).await.expect(200).body["code"], 101);
    forget_record(&dead).await;
    h.get(&format!("/tasks/{dead}"), &buyer).await.problem(404, "not_found");
    h.eventually(async || sale.submit(&h, &buyer).await.status == 202).await;
    let won = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    assert_ne!(won, dead);
    assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
    // A winner whose record is gone keeps his place.
    forget_record(&won).await;
    assert_eq!(sale.submit(&h, &buyer).await.expect(202).text_of("id"), won);
    assert_eq!(h.get(&format!("/tasks/{won}"), &buyer).await.expect(200).body["code"], 100);
    assert_clean(&h).await;
}

/// On one thread, so that the first question is under way when the others come: they go in one call.
#[tokio::test]
async fn a_buyer_who_comes_twice_in_one_call_has_one_place() {
    let h = Harness::new().await;
    let (sale, first, buyer) = (Sale::open(&h, 5).await, h.register().await, h.register().await);
    let submit = async |who: &Person| {
        seckill::submit(&h.app, sale.activity(), UserId::from_uuid(who.id)).await.unwrap().to_string()
    };
    let (_, answers) = tokio::join!(submit(&first), join_all((0..20).map(|_| submit(&buyer))));
    assert_eq!(answers.iter().collect::<HashSet<_>>().len(), 1, "{answers:?}");
    assert_eq!(h.app.engine.depth(&seckill::queue(sale.activity())).await.unwrap().depth, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_of_ids_that_nobody_had_ask_mysql_together() {
    const POLLS: i64 = 100;
    let servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let buyer = h.register().await;
    let asked_redis = async || {
        let stats: redis::InfoDict =
            redis::cmd("INFO").arg("commandstats").query_async(&mut h.app.redis.commands()).await.unwrap();
        let stat: String = stats.get("cmdstat_mget").unwrap_or_default();
        stat.split(&['=', ','][..]).nth(1).map_or(0, |calls| calls.parse::<i64>().unwrap())
    };
    let selects = async || {
        let status = "SHOW GLOBAL STATUS LIKE 'Com_select'";
        let (_, Text(value)): (Text, Text) = sqlx::query_as(status).fetch_one(&h.app.db).await.unwrap();
        value.parse::<i64>().unwrap()
    };
    let before = selects().await;
    // The first one's question is held up until all the others have asked.
    let mut lock = h.app.db.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES seckill_entries WRITE").execute(&mut *lock).await.unwrap();
    let polls = (0..POLLS).map(async |_| {
        let id = format!("{}.seckill.{}", Uuid::now_v7().as_simple(), Uuid::now_v7().as_simple());
        h.get(&format!("/tasks/{id}"), &buyer).await.problem(404, "not_found");
    });
    let release = async {
        h.eventually(async || asked_redis().await == POLLS).await;
        sqlx::raw_sql("UNLOCK TABLES").execute(&mut *lock).await.unwrap();
    };
    tokio::join!(join_all(polls), release);
    let asked = selects().await - before;
    assert!((1..=POLLS / 5).contains(&asked), "{asked} questions for {POLLS} polls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_came_to_nothing_was_no_try() {
    let h = Harness::new().await;
    let sale = Sale::with(&h, json!({ "stock": 1, "per_user_limit": 1 })).await;
    let buyer = h.register().await;
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    assert_eq!(h.app.engine.revoke(&task.parse().unwrap()).await.unwrap(), Revoked::Now);
    // The unit is back when reconciliation has seen it missing twice.
    set_gate(&h, &sale, "stock", "1").await;
    h.start_workers();
    assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_would_sell_too_many_or_too_few_is_corrected() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let sale = Sale::open(&h, 10).await;
    let queue = seckill::queue(sale.activity());
    let gate = h.app.engine.keys(&queue).meta();
    for (wrong, what) in [(13, "too many"), (4, "too few")] {
        let set = redis::cmd("HSET").arg(&gate).arg("stock").arg(wrong).to_owned();
        let _: i64 = set.query_async(&mut h.app.redis.commands()).await.unwrap();
        let found = check::findings(&h.app, false).await.unwrap();
        let i8 = found.iter().find(|finding| finding.name == "I8").unwrap();
        assert_eq!(i8.violations.len(), 1, "{what}: {i8:?}");
        check::findings(&h.app, true).await.unwrap();
        let stock: i64 =
            redis::cmd("HGET").arg(&gate).arg("stock").query_async(&mut h.app.redis.commands()).await.unwrap();
        assert_eq!(stock, 10, "{what}");
    }
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_new_activity_is_told_at_once() {
    let h = Harness::new().await;
    let admin = h.admin().await;
    let body = json!({ "course_id": "x", "title": "", "price_fen": -1, "stock": 0, "starts_at": 5, "extra": true });
    let refused = h.post("/admin/seckill/activities", &admin, body).await.problem(422, "validation_failed");
    let fields: HashSet<&str> =
        refused.body["errors"].as_array().unwrap().iter().filter_map(|e| e["field"].as_str()).collect();
    assert_eq!(fields, HashSet::from(["course_id", "title", "price_fen", "stock", "starts_at", "ends_at", "extra"]));
    h.post("/admin/seckill/activities", &h.register().await, json!({})).await.problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_an_activity_twice_under_one_id_creates_one() {
    let h = Harness::new().await;
    let id = Uuid::now_v7().as_simple().to_string();
    let course = h.course(9900).await.no();
    let first = Sale::with(&h, json!({ "id": id, "stock": 7, "course_id": course })).await;
    let again = Sale::with(&h, json!({ "id": id, "stock": 7, "course_id": course })).await;
    assert_eq!((first.id.as_str(), again.id.as_str()), (id.as_str(), id.as_str()));
    assert_eq!(h.count("SELECT stock FROM seckill_activities").await, 7);
    let other = json!({
        "id": id, "course_id": course, "title": "另一场", "price_fen": 1, "stock": 7, "pay_deadline_s": 60,
        "starts_at": h.now(), "ends_at": h.now().plus(Duration::from_secs(3600)),
    });
    h.post("/admin/seckill/activities", &first.admin, other).await.problem(409, "activity_exists");
}

/// What Redis never does by itself, but a Redis that lost its memory, and a worker that came back from the dead, do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn batches_side_by_side_place_nobody_twice_and_sell_what_there_is() {
    let h = Harness::new().await;
    let sale = Sale::open(&h, 40).await;
    let buyers: Vec<UserId> = people(&h, 60).await.iter().map(|person| UserId::from_uuid(person.id)).collect();
    // Everybody is in two batches with two submissions, and every batch is delivered twice.
    let submissions: Vec<(seckill::EntryId, UserId)> =
        buyers.iter().chain(buyers.iter().rev()).map(|&user| (seckill::EntryId::new(), user)).collect();
    let batches: Vec<_> = submissions.chunks(15).flat_map(|batch| [batch, batch]).collect();
    let placed = join_all(batches.iter().map(|batch| seckill::place(&h.app, sale.activity(), batch))).await;
    let placed: Vec<_> = placed.into_iter().flat_map(|placed| placed.unwrap()).collect();
    let won = |placement: &seckill::Placement| match placement {
        seckill::Placement::Won { order, .. } => Some(*order),
        _ => None,
    };
    let orders: HashSet<_> = placed.iter().filter_map(won).collect();
    assert_eq!(orders.len(), 40);
    // The same submission was told the same, whoever placed it first, and so was the same user.
    let mut told: HashMap<UserId, HashSet<Option<orders::OrderId>>> = HashMap::new();
    for (&(_, user), placement) in batches.iter().flat_map(|batch| batch.iter()).zip(&placed) {
        told.entry(user).or_default().insert(won(placement));
    }
    assert_eq!(told.values().filter(|orders| orders.len() == 1 && !orders.contains(&None)).count(), 40);
    assert_eq!(h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await, 40);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 40);
    assert_eq!(h.count("SELECT COUNT(*) FROM order_items").await, 40);
    assert_eq!(h.count("SELECT stock_left FROM seckill_activities").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_thousand_buyers_for_a_hundred_seats() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let sale = Sale::open(&h, 100).await;
    h.start_workers();
    let buyers = people(&h, 2000).await;
    // 200 at a time, as from 200 connections; everybody clicks twice.
    let mut won = 0;
    let queue = tokio::sync::Mutex::new(buyers.iter());
    let outcomes = join_all((0..200).map(|_| async {
        let mut mine = Vec::new();
        loop {
            let Some(buyer) = queue.lock().await.next() else { return mine };
            let first = sale.submit(&h, buyer).await;
            let second = sale.submit(&h, buyer).await;
            if first.status == 202 {
                if second.status == 202 {
                    assert_eq!(first.text_of("id"), second.text_of("id"));
                }
                mine.push((buyer, first.text_of("id")));
            } else {
                first.problem(409, "sold_out");
            }
        }
    }))
    .await;
    for (buyer, task) in outcomes.into_iter().flatten() {
        let end = h.request(Method::GET, &format!("/tasks/{task}?wait=20"), buyer);
        let end = client::send(end).await.expect(200).body;
        assert_eq!(end["code"], 100, "{end}");
        won += 1;
    }
    assert_eq!(won, 100);
    assert_eq!(h.count("SELECT COUNT(DISTINCT user_id) FROM seckill_entries WHERE live = 1").await, 100);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 100);
    assert_clean(&h).await;
}
