//! Orders from the quote to the grant or the release.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use onrush::auth::UserId;
use onrush::catalogue::CourseId;
use onrush::engine::{Job, Outcome, Task, TaskId};
use onrush::error::Result;
use onrush::orders::{self, Closing, Expire, Grant, Order, OrderId, OrderKind, Release, SeckillOrder, Status};
use onrush::payments;
use onrush::platform::clock::At;
use onrush::platform::db::Conn;
use onrush::platform::money::Money;
use onrush::platform::text::Text;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Answer, Course, Harness, Options, Person, PrivateServers};
use crate::wallet::{self, with};

/// The body that orders these courses.
fn of(courses: &[&Course]) -> Value {
    json!({"course_ids": courses.iter().map(|course| course.no()).collect::<Vec<_>>()})
}

fn key() -> String {
    Uuid::now_v7().to_string()
}

async fn order(h: &Harness, person: &Person, body: Value) -> Answer {
    h.post_once("/orders", person, &key(), body).await
}

async fn ordered(h: &Harness, person: &Person, body: Value) -> OrderId {
    no(&order(h, person, body).await.expect(201))
}

fn no(answer: &Answer) -> OrderId {
    answer.text_of("order_no").parse().unwrap()
}

async fn seen(h: &Harness, person: &Person, id: OrderId) -> Answer {
    h.get(&format!("/orders/{id}"), person).await.expect(200)
}

async fn row(h: &Harness, id: OrderId) -> Order {
    orders::find(&mut h.app.db.acquire().await.unwrap(), id).await.unwrap().unwrap()
}

/// Pays without a gateway, and tells the queues.
async fn pay(h: &Harness, id: OrderId) {
    let order = row(h, id).await;
    let mut conn = h.app.db.acquire().await.unwrap();
    assert!(orders::mark_paid(&mut conn, &order, h.now()).await.unwrap());
    orders::announce_paid(&h.app, id);
}

/// Closes without asking a gateway, and does not tell the queues.
async fn cancel(h: &Harness, id: OrderId) {
    let mut conn = h.app.db.acquire().await.unwrap();
    assert!(orders::close(&mut conn, id, Closing::Cancelled, &h.app.clock).await.unwrap());
}

fn job<T: Task>(order: OrderId, args: T) -> Job<T> {
    let id = TaskId { key: order.uuid(), queue: T::QUEUE.parse().unwrap() };
    Job::new(id, args)
}

async fn grant(h: &Harness, ids: &[OrderId]) {
    let jobs = ids.iter().map(|&order_id| job(order_id, Grant { order_id })).collect();
    let outcomes = orders::jobs::grant(h.app.clone(), jobs).await;
    assert!(outcomes.iter().all(|o| matches!(o, Outcome::Success(_))), "{outcomes:?}");
}

/// What else is given back: a note in a table that the test has made with [`notes`].
fn noted<'a>(conn: &'a mut Conn, orders: &'a [OrderId], _: At) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        for order in orders {
            let note = sqlx::query("INSERT INTO given_back (order_id) VALUES (?)").bind(order);
            note.execute(&mut *conn).await?;
        }
        Ok(())
    })
}

async fn notes(h: &Harness) {
    let table = "CREATE TABLE given_back (order_id BINARY(16) NOT NULL)";
    sqlx::query(table).execute(&h.app.db).await.unwrap();
}

async fn release(h: &Harness, ids: &[OrderId]) {
    let jobs = ids.iter().map(|&order_id| job(order_id, Release { order_id })).collect();
    let outcomes = orders::jobs::release(h.app.clone(), jobs, noted).await;
    assert!(outcomes.iter().all(|o| matches!(o, Outcome::Success(_))), "{outcomes:?}");
}

async fn courses_of(h: &Harness, person: &Person) -> usize {
    h.get("/me/courses", person).await.expect(200)["items"].as_array().unwrap().len()
}

fn fields(answer: &Answer) -> Vec<&str> {
    let errors = answer["errors"].as_array().unwrap();
    let mut fields: Vec<&str> = errors.iter().map(|e| e["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_priced_on_the_server_and_told_with_every_share() {
    let h = wallet::with_long_tokens().await;
    let (alice, a, b) = (h.register().await, h.course(3000).await, h.course(2000).await);
    let coupon = wallet::claimed(&h, &alice, wallet::coupon(&h)).await;
    wallet::give_points(&h, &alice, 5000).await;
    let body = with(of(&[&a, &b]), json!({"user_coupon_id": coupon, "points": 500}));
    let quote = h.post("/orders/quote", &alice, body.clone()).await.expect(200);
    let order = h.post_once("/orders", &alice, "k", body).await.expect(201);
    for sums in [&quote, &order] {
        assert_eq!((&sums["total_fen"], &sums["coupon_discount_fen"]), (&json!(5000), &json!(1000)));
        assert_eq!((&sums["points_discount_fen"], &sums["payable_fen"]), (&json!(500), &json!(3500)));
        assert_eq!((&sums["points_used"], &sums["points_earned"]), (&json!(500), &json!(35)));
        let shares: Vec<_> = sums["items"].as_array().unwrap().iter().map(|i| i["payable_fen"].clone()).collect();
        assert_eq!(shares, [2100, 1400]);
    }
    assert_eq!(quote["points_usable"], 2000);
    assert_eq!(
        (&order["status"], &order["status_code"], &order["kind"]),
        (&json!("unpaid"), &json!(0), &json!("course"))
    );
    assert_eq!(order["action"], json!({"kind": "pay", "label": "去支付"}));
    assert_eq!(order["expires_at"], h.now().plus(Duration::from_secs(1800)).to_string());
    let id = no(&order);
    assert_eq!(seen(&h, &alice, id).await.body, order.body);
    assert_eq!(h.get("/orders", &alice).await.expect(200)["items"][0], order.body);
    assert_eq!(wallet::balance(&h, &alice).await, 4500);
    assert_eq!(h.get("/me/coupons", &alice).await["items"][0]["order_no"], order["order_no"]);
    // past its time and not swept yet: nothing to press
    h.advance(Duration::from_secs(1800));
    assert_eq!(seen(&h, &alice, id).await["action"], json!({"kind": "none", "label": "超时取消"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_an_order_is_told_at_once() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(100).await.no());
    let many: Vec<String> = (0..51).map(|_| Uuid::now_v7().as_simple().to_string()).collect();
    let cases = [
        (json!({}), vec!["course_ids"]),
        (json!({"course_ids": []}), vec!["course_ids"]),
        (json!({"course_ids": many}), vec!["course_ids"]),
        (json!({"course_ids": [course, course]}), vec!["course_ids"]),
        (json!({"course_ids": [course, 7, "x"]}), vec!["course_ids[1]", "course_ids[2]"]),
        (json!({"course_ids": course, "points": -1, "price_fen": 1}), vec!["course_ids", "points", "price_fen"]),
        (json!({"course_ids": [course.to_uppercase()], "user_coupon_id": ""}), vec!["course_ids[0]", "user_coupon_id"]),
        (json!({"course_ids": [course], "points": 1e300, "user_coupon_id": 5}), vec!["points", "user_coupon_id"]),
        (json!({"course_ids": [course], "points": i64::MAX}), vec!["points"]),
        (json!({"course_ids": [course], "points": 1.5}), vec!["points"]),
        (json!([course]), vec![""]),
    ];
    for (body, wanted) in cases {
        let quoted = h.post("/orders/quote", &alice, body.clone()).await.problem(422, "validation_failed");
        let made = order(&h, &alice, body.clone()).await.problem(422, "validation_failed");
        assert_eq!((fields(&quoted), fields(&made)), (wanted.clone(), wanted), "{body}");
    }
    h.get("/orders/nonsense", &alice).await.problem(422, "validation_failed");
    for query in ["status=lost", "limit=0", "cursor=x", "user=1"] {
        h.get(&format!("/orders?{query}"), &alice).await.problem(422, "validation_failed");
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 0);
    assert_eq!(h.count("SELECT COUNT(*) FROM idempotency_keys").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_needs_a_good_idempotency_key_and_a_token() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(100).await);
    h.post("/orders", &alice, of(&[&course])).await.problem(400, "idempotency_key_missing");
    for bad in ["", "a b", &"k".repeat(129), "ключ"] {
        let answer = h.post_once("/orders", &alice, bad, of(&[&course])).await;
        answer.problem(400, "idempotency_key_invalid");
    }
    h.post_once("/orders", (), "k", of(&[&course])).await.problem(401, "unauthenticated");
    h.post("/orders/quote", (), of(&[&course])).await.problem(401, "unauthenticated");
    h.get("/orders", ()).await.problem(401, "unauthenticated");
    h.post_once("/orders", &alice, &"~".repeat(128), of(&[&course])).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn courses_that_cannot_be_ordered_are_named() {
    let h = Harness::new().await;
    let (alice, a, b) = (h.register().await, h.course(100).await, h.course(0).await);
    let unknown = Uuid::now_v7().as_simple().to_string();
    let body = json!({"course_ids": [a.no(), unknown]});
    let refused = order(&h, &alice, body.clone()).await.problem(409, "course_unavailable");
    assert_eq!(refused["course_ids"], json!([unknown]));
    h.post("/orders/quote", &alice, body).await.problem(409, "course_unavailable");
    sqlx::query("UPDATE courses SET published = 0 WHERE id = ?").bind(a.id).execute(&h.app.db).await.unwrap();
    let refused = order(&h, &alice, of(&[&a])).await.problem(409, "course_unavailable");
    assert_eq!(refused["course_ids"], json!([a.no()]));
    // owned from the moment it is paid, granted or not
    let free = ordered(&h, &alice, of(&[&b])).await;
    let c = h.course(100).await;
    for _ in 0..2 {
        let refused = order(&h, &alice, of(&[&c, &b])).await.problem(409, "already_owned");
        assert_eq!(refused["course_ids"], json!([b.no()]));
        h.post("/orders/quote", &alice, of(&[&c, &b])).await.problem(409, "already_owned");
        grant(&h, &[free]).await;
    }
    // somebody else's course is no obstacle
    ordered(&h, &h.register().await, of(&[&c, &b])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_that_does_not_apply_is_refused_with_the_reason() {
    let h = wallet::with_long_tokens().await;
    let (alice, bob, course) = (h.register().await, h.register().await, h.course(1000).await);
    let later = h.now().plus(Duration::from_secs(60)).to_string();
    let with_coupon = |coupon: &str| with(of(&[&course]), json!({"user_coupon_id": coupon}));
    let unusable = [json!({"min_spend_fen": 1001}), json!({"valid_from": later})];
    for changes in unusable {
        let coupon = wallet::claimed(&h, &alice, with(wallet::coupon(&h), changes)).await;
        h.post("/orders/quote", &alice, with_coupon(&coupon)).await.problem(409, "coupon_unusable");
        order(&h, &alice, with_coupon(&coupon)).await.problem(409, "coupon_unusable");
    }
    let bobs = wallet::claimed(&h, &bob, wallet::coupon(&h)).await;
    h.post("/orders/quote", &alice, with_coupon(&bobs)).await.problem(404, "not_found");
    order(&h, &alice, with_coupon(&bobs)).await.problem(404, "not_found");
    order(&h, &alice, with_coupon(&Uuid::now_v7().as_simple().to_string())).await.problem(404, "not_found");
    // a coupon in use, then one past its time
    let first = wallet::claimed(&h, &alice, with(wallet::coupon(&h), json!({"amount_fen": 1}))).await;
    ordered(&h, &alice, with_coupon(&first)).await;
    order(&h, &alice, with_coupon(&first)).await.problem(409, "coupon_unusable");
    h.post("/orders/quote", &alice, with_coupon(&first)).await.problem(409, "coupon_unusable");
    let late = wallet::claimed(&h, &alice, wallet::coupon(&h)).await;
    h.advance(Duration::from_secs(3600));
    order(&h, &alice, with_coupon(&late)).await.problem(409, "coupon_unusable");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_beyond_the_balance_or_the_orders_part_are_refused() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    wallet::give_points(&h, &alice, 400).await;
    for (points, member, value) in [(501, "points_max", 500), (401, "points_balance", 400)] {
        let body = with(of(&[&course]), json!({"points": points}));
        let refused = order(&h, &alice, body.clone()).await.problem(409, "points_unusable");
        assert_eq!(refused[member], value);
        h.post("/orders/quote", &alice, body).await.problem(409, "points_unusable");
    }
    assert_eq!(wallet::balance(&h, &alice).await, 400);
    assert_eq!(h.post("/orders/quote", &alice, of(&[&course])).await["points_usable"], 400);
    ordered(&h, &alice, with(of(&[&course]), json!({"points": 400}))).await;
    assert_eq!(wallet::balance(&h, &alice).await, 0);
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_answered_byte_for_byte_also_by_another_copy_and_after_a_restart() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(0).await);
    let first = h.post_once("/orders", &alice, "k", of(&[&course])).await.expect(201);
    // by now the course is bought, and a new order for it would be refused
    let again = h.post_once("/orders", &alice, "k", of(&[&course])).await;
    let mut process = h.process("api", &[]).await;
    let other = process.client.post_once("/orders", &alice, "k", of(&[&course])).await;
    process.kill().await;
    let process = h.process("api", &[]).await;
    let restarted = process.client.post_once("/orders", &alice, "k", of(&[&course])).await;
    for repeat in [again, other, restarted] {
        assert_eq!((repeat.status, &repeat.bytes), (first.status, &first.bytes));
        assert_eq!(repeat.header("content-type"), first.header("content-type"));
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stands_for_one_request_of_one_user() {
    let h = Harness::new().await;
    let (alice, bob, a, b) = (h.register().await, h.register().await, h.course(1).await, h.course(2).await);
    let first = h.post_once("/orders", &alice, "k", of(&[&a])).await.expect(201);
    h.post_once("/orders", &alice, "k", of(&[&b])).await.problem(422, "idempotency_key_reused");
    h.post_once("/orders", &alice, "k", of(&[&a, &b])).await.problem(422, "idempotency_key_reused");
    let bobs = h.post_once("/orders", &bob, "k", of(&[&a])).await.expect(201);
    assert_ne!(first["order_no"], bobs["order_no"]);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_kept_under_its_key() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let body = with(of(&[&course]), json!({"points": 100}));
    h.post_once("/orders", &alice, "k", body.clone()).await.problem(409, "points_unusable");
    wallet::give_points(&h, &alice, 100).await;
    h.post_once("/orders", &alice, "k", body).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_firsts_with_one_key_run_once() {
    let h = Harness::new().await;
    let other = h.another().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    wallet::give_points(&h, &alice, 5000).await;
    for round in 0..5 {
        let (key, body) = (format!("k{round}"), with(of(&[&course]), json!({"points": 10})));
        let service = |n: usize| if n.is_multiple_of(2) { &h } else { &other };
        let answers = join_all((0..20).map(|n| service(n).post_once("/orders", &alice, &key, body.clone()))).await;
        for answer in &answers {
            assert_eq!((answer.status, &answer.bytes), (201, &answers[0].bytes), "{}", answer.text());
        }
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 5);
    assert_eq!(wallet::balance(&h, &alice).await, 4950);
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_firsts_that_are_refused_are_all_told_why() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let body = with(of(&[&course]), json!({"points": 10}));
    let answers = join_all((0..30).map(|_| h.post_once("/orders", &alice, "k", body.clone()))).await;
    for answer in answers {
        answer.problem(409, "points_unusable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_coupon_serves_one_of_many_simultaneous_orders() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    for _ in 0..3 {
        let almost = with(wallet::coupon(&h), json!({"amount_fen": 999}));
        let coupon = wallet::claimed(&h, &alice, almost).await;
        let body = with(of(&[&course]), json!({"user_coupon_id": coupon}));
        let answers = join_all((0..20).map(|_| order(&h, &alice, body.clone()))).await;
        assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 1);
        for refused in answers.into_iter().filter(|a| a.status != 201) {
            refused.problem(409, "coupon_unusable");
        }
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE payable_fen = 1").await, 3);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_never_go_below_zero_under_simultaneous_orders() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    wallet::give_points(&h, &alice, 450).await;
    let body = with(of(&[&course]), json!({"points": 100}));
    let answers = join_all((0..20).map(|_| order(&h, &alice, body.clone()))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 4);
    for refused in answers.into_iter().filter(|a| a.status != 201) {
        refused.problem(409, "points_unusable");
    }
    assert_eq!(wallet::balance(&h, &alice).await, 50);
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_listed_in_pages_and_by_status_and_only_ones_own() {
    let h = Harness::new().await;
    let (alice, bob) = (h.register().await, h.register().await);
    let mut ids = Vec::new();
    for price in [100, 0, 200, 0, 300] {
        ids.push(ordered(&h, &alice, of(&[&h.course(price).await, &h.course(price).await])).await.to_string());
    }
    let bobs = ordered(&h, &bob, of(&[&h.course(1).await])).await;
    h.get(&format!("/orders/{bobs}"), &alice).await.problem(404, "not_found");
    h.get(&format!("/orders/{}", OrderId::new()), &alice).await.problem(404, "not_found");
    let (mut told, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = h.get(&format!("/orders?limit=2{cursor}"), &alice).await.expect(200);
        for item in page["items"].as_array().unwrap() {
            assert_eq!(item["items"].as_array().unwrap().len(), 2);
            told.push(item["order_no"].as_str().unwrap().to_owned());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!(told, ids);
    for (status, count) in [("unpaid", 3), ("paid", 2), ("cancelled", 0)] {
        let page = h.get(&format!("/orders?status={status}"), &alice).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() == count && items.iter().all(|item| item["status"] == status), "{}", page.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_costs_nothing_is_paid_at_once_and_all_its_courses_are_granted() {
    let h = Harness::new().await;
    h.start_workers();
    let (alice, courses) = (h.register().await, [h.course(500).await, h.course(400).await, h.course(100).await]);
    let coupon = wallet::claimed(&h, &alice, wallet::coupon(&h)).await;
    let body = with(of(&[&courses[0], &courses[1], &courses[2]]), json!({"user_coupon_id": coupon}));
    let order = order(&h, &alice, body).await.expect(201);
    assert_eq!((&order["status"], &order["payable_fen"]), (&json!("paid"), &json!(0)));
    assert_eq!((&order["paid_at"], &order["action"]["label"]), (&order["created_at"], &json!("去学习")));
    h.eventually(|| async { row(&h, no(&order)).await.granted_at.is_some() }).await;
    assert_eq!(courses_of(&h, &alice).await, 3);
    assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 9);
    assert_eq!(wallet::balance(&h, &alice).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_runs_many_times_at_once_gives_courses_and_points_once() {
    let h = Harness::new().await;
    let people = h.people(5).await;
    let (a, b) = (h.course(1050).await, h.course(2000).await);
    let mut ids = Vec::new();
    for person in &people {
        ids.push(ordered(&h, person, of(&[&a, &b])).await);
        ids.push(ordered(&h, person, of(&[&h.course(10_000).await])).await);
    }
    let unpaid = ids.pop().unwrap();
    for id in &ids {
        pay(&h, *id).await;
    }
    let mut reversed = [&ids[..], &[unpaid]].concat();
    reversed.reverse();
    // two copies, batches in different orders, the same order twice in one batch
    let other = h.another().await;
    let twice = [&ids[..], &ids[..]].concat();
    let (one, two) = ((0..4).map(|_| grant(&h, &twice)), (0..4).map(|_| grant(&other, &reversed)));
    futures_util::future::join(join_all(one), join_all(two)).await;
    grant(&h, &ids).await;
    for (n, person) in people.iter().enumerate() {
        // 30 yuan earn 30 points, 100 more earn 100; the last one's second order is unpaid
        let (courses, points) = if n == 4 { (2, 30) } else { (3, 130) };
        assert_eq!((courses_of(&h, person).await, wallet::balance(&h, person).await), (courses, points));
    }
    assert_eq!(row(&h, unpaid).await.granted_at, None);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE granted_at IS NOT NULL").await, 9);
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_runs_many_times_at_once_gives_back_once() {
    let h = Harness::new().await;
    notes(&h).await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let coupon = wallet::claimed(&h, &alice, with(wallet::coupon(&h), json!({"amount_fen": 100}))).await;
    wallet::give_points(&h, &alice, 300).await;
    let body = with(of(&[&course]), json!({"user_coupon_id": coupon, "points": 300}));
    let dead = ordered(&h, &alice, body.clone()).await;
    let live = ordered(&h, &alice, of(&[&course])).await;
    release(&h, &[dead, live]).await;
    assert_eq!(wallet::balance(&h, &alice).await, 0, "an order that lives gives nothing back");
    cancel(&h, dead).await;
    let other = h.another().await;
    let (here, there) = ([dead, live], [live, dead, dead]);
    let (one, two) = ((0..4).map(|_| release(&h, &here)), (0..4).map(|_| release(&other, &there)));
    futures_util::future::join(join_all(one), join_all(two)).await;
    release(&h, &[dead]).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM given_back").await, 1, "what else it held, once, in the same transaction");
    assert_eq!(wallet::balance(&h, &alice).await, 300);
    assert!(row(&h, dead).await.released_at.is_some() && row(&h, live).await.released_at.is_none());
    assert_eq!(h.get("/me/coupons", &alice).await["items"][0]["state"], "free");
    // what came back serves the next order, and the dead one's release does not take it away again
    let next = ordered(&h, &alice, body).await;
    release(&h, &[dead]).await;
    assert_eq!(wallet::balance(&h, &alice).await, 0);
    assert_eq!(h.get("/me/coupons", &alice).await["items"][0]["order_no"], next.to_string());
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_one_order_leaves_what_another_one_gave() {
    let h = Harness::new().await;
    notes(&h).await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let (a, b) = (ordered(&h, &alice, of(&[&course])).await, ordered(&h, &alice, of(&[&course])).await);
    pay(&h, b).await;
    grant(&h, &[a, b]).await;
    cancel(&h, a).await;
    release(&h, &[a, b]).await;
    assert_eq!(courses_of(&h, &alice).await, 1);
    assert_eq!(seen(&h, &alice, a).await["action"]["label"], "已取消");
    assert_eq!(seen(&h, &alice, b).await["status"], "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_queues_were_never_told_is_driven_again() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    wallet::give_points(&h, &alice, 100).await;
    let (paid, dead) = (
        ordered(&h, &alice, of(&[&course])).await,
        ordered(&h, &alice, with(of(&[&course]), json!({"points": 100}))).await,
    );
    // as if the process had died right after its commits
    let order = row(&h, paid).await;
    orders::mark_paid(&mut h.app.db.acquire().await.unwrap(), &order, h.now()).await.unwrap();
    cancel(&h, dead).await;
    let waiting = || async {
        let mut depth = 0;
        for queue in ["grant", "release"] {
            depth += h.app.engine.depth(&queue.parse().unwrap()).await.unwrap().depth;
        }
        depth
    };
    orders::redrive(&h.app).await.unwrap();
    assert_eq!(waiting().await, 0, "within the grace period it is on its way");
    h.advance(Duration::from_secs(15));
    orders::redrive(&h.app).await.unwrap();
    orders::redrive(&h.app).await.unwrap();
    assert_eq!(waiting().await, 2, "once each");
    h.start_workers();
    h.eventually(|| async { courses_of(&h, &alice).await == 1 && wallet::balance(&h, &alice).await == 110 }).await;
    assert!(row(&h, dead).await.released_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn due_orders_without_a_payment_are_timed_out_and_released() {
    let h = wallet::with_long_tokens().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    wallet::give_points(&h, &alice, 300).await;
    let body = with(of(&[&course]), json!({"points": 100}));
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(ordered(&h, &alice, body.clone()).await);
    }
    let mut conn = h.app.db.acquire().await.unwrap();
    assert!(orders::mark_pay_started(&mut conn, ids[0], h.now()).await.unwrap());
    assert!(orders::mark_pay_started(&mut conn, ids[0], h.now()).await.unwrap(), "a second payment may start");
    assert!(orders::due_unstarted(&mut conn, h.now(), 10).await.unwrap().is_empty());
    assert!(orders::due_started(&mut conn, h.now(), None, 10).await.unwrap().is_empty());
    assert!(!orders::close(&mut conn, ids[1], Closing::TimedOut, &h.app.clock).await.unwrap(), "not before its time");
    assert!(orders::time_out_unstarted(&h.app, &ids).await.unwrap().is_empty());
    h.advance(Duration::from_secs(1800));
    assert!(!orders::mark_pay_started(&mut conn, ids[1], h.now()).await.unwrap(), "its time is over");
    assert_eq!(orders::due_unstarted(&mut conn, h.now(), 10).await.unwrap(), ids[1..]);
    assert_eq!(orders::due_unstarted(&mut conn, h.now(), 1).await.unwrap(), ids[1..2]);
    let started = orders::due_started(&mut conn, h.now(), None, 10).await.unwrap();
    assert_eq!(started.iter().map(|(_, id)| *id).collect::<Vec<_>>(), ids[..1]);
    assert!(orders::due_started(&mut conn, h.now(), started.last().copied(), 10).await.unwrap().is_empty());
    // two sweeps at once: each order is timed out by one of them
    let other = h.another().await;
    let sweep = |h: &Harness| {
        let (app, ids) = (h.app.clone(), ids.clone());
        async move { orders::time_out_unstarted(&app, &ids).await.unwrap() }
    };
    let (one, two) = futures_util::future::join(sweep(&h), sweep(&other)).await;
    let mut all = [one, two].concat();
    all.sort_unstable();
    assert_eq!(all, ids[1..]);
    assert_eq!(row(&h, ids[0]).await.status, Status::Unpaid, "its gateway is asked first");
    h.start_workers();
    // Nothing was paid, so that one is closed too.
    h.eventually(|| async { wallet::balance(&h, &alice).await == 300 }).await;
    assert_eq!(seen(&h, &alice, ids[1]).await["action"], json!({"kind": "none", "label": "超时取消"}));
    assert!(!orders::close(&mut conn, ids[0], Closing::TimedOut, &h.app.clock).await.unwrap(), "it is closed");
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_payment_and_a_cancellation_at_once_one_wins() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    for _ in 0..10 {
        let id = ordered(&h, &alice, of(&[&course])).await;
        let order = row(&h, id).await;
        let (mut one, mut two) = (h.app.db.acquire().await.unwrap(), h.app.db.acquire().await.unwrap());
        let paid = orders::mark_paid(&mut one, &order, h.now());
        let closed = orders::close(&mut two, id, Closing::Cancelled, &h.app.clock);
        let (paid, closed) = futures_util::future::join(paid, closed).await;
        let (paid, closed) = (paid.unwrap(), closed.unwrap());
        assert!(paid != closed);
        assert_eq!(row(&h, id).await.status, if paid { Status::Paid } else { Status::Cancelled });
        if paid {
            // so that the course can be ordered again
            sqlx::query("UPDATE orders SET status = 5").execute(&h.app.db).await.unwrap();
        }
    }
}

async fn reopen(h: &Harness, id: OrderId) -> bool {
    let mut tx = h.app.db.begin().await.unwrap();
    let order = orders::lock(&mut tx, id).await.unwrap().unwrap();
    let reopened = orders::reopen(&mut tx, &order, h.now()).await.unwrap();
    tx.commit().await.unwrap();
    reopened
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_order_is_reopened_only_with_all_that_it_held() {
    let h = Harness::new().await;
    notes(&h).await;
    let (alice, course, other) = (h.register().await, h.course(1000).await, h.course(900).await);
    let coupon = wallet::claimed(&h, &alice, with(wallet::coupon(&h), json!({"amount_fen": 100}))).await;
    wallet::give_points(&h, &alice, 300).await;
    let holding = json!({"user_coupon_id": coupon, "points": 300});
    let id = ordered(&h, &alice, with(of(&[&course]), holding.clone())).await;
    assert!(!reopen(&h, id).await, "an order that lives is not re-opened");
    cancel(&h, id).await;
    release(&h, &[id]).await;

    // its coupon is with another order: nothing changes, the points stay where they are
    let user = ordered(&h, &alice, with(of(&[&other]), json!({"user_coupon_id": coupon}))).await;
    assert!(!reopen(&h, id).await);
    assert_eq!(wallet::balance(&h, &alice).await, 300);
    cancel(&h, user).await;
    release(&h, &[user]).await;
    // its points are with another order: the coupon stays free
    let user = ordered(&h, &alice, with(of(&[&other]), json!({"points": 1}))).await;
    assert!(!reopen(&h, id).await);
    assert_eq!(h.get("/me/coupons", &alice).await["items"][0]["state"], "free");
    cancel(&h, user).await;
    release(&h, &[user]).await;

    assert!(reopen(&h, id).await);
    let order = row(&h, id).await;
    assert_eq!((order.status, order.hold_no, order.closed_at, order.released_at), (Status::Paid, 2, None, None));
    assert_eq!(wallet::balance(&h, &alice).await, 0);
    assert_eq!(h.get("/me/coupons", &alice).await["items"][0]["order_no"], id.to_string());
    let ledger = h.get("/me/points", &alice).await;
    assert_eq!(ledger["items"][0]["reason"], "order_spend:2");
    assert!(!reopen(&h, id).await);
    // a release that comes late finds it alive
    release(&h, &[id]).await;
    assert_eq!(wallet::balance(&h, &alice).await, 0);
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_order_that_still_holds_everything_is_reopened_without_taking_twice() {
    let h = Harness::new().await;
    notes(&h).await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    wallet::give_points(&h, &alice, 300).await;
    let id = ordered(&h, &alice, with(of(&[&course]), json!({"points": 300}))).await;
    cancel(&h, id).await;
    assert!(reopen(&h, id).await);
    assert_eq!(row(&h, id).await.hold_no, 1);
    release(&h, &[id]).await;
    assert_eq!(wallet::balance(&h, &alice).await, 0);
    wallet::assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_order_whose_course_was_bought_again_is_not_reopened() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let (dead, bought) = (ordered(&h, &alice, of(&[&course])).await, ordered(&h, &alice, of(&[&course])).await);
    cancel(&h, dead).await;
    pay(&h, bought).await;
    assert!(!reopen(&h, dead).await, "paid and about to be granted");
    grant(&h, &[bought]).await;
    assert!(!reopen(&h, dead).await, "granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn seckill_orders_are_inserted_in_one_go_and_one_for_nothing_is_paid() {
    let h = Harness::new().await;
    let (people, course) = (h.people(450).await, h.course(9900).await);
    let all: Vec<SeckillOrder> = people
        .iter()
        .zip(0i64..)
        .map(|(person, n)| SeckillOrder {
            id: OrderId::new(),
            user: UserId::from_uuid(person.id),
            course: CourseId::from_uuid(course.id),
            title: "课程".to_owned(),
            price: Money::fen(n * 100),
            points_earned: orders::points_earned(&h.app.config.orders, Money::fen(n * 100)).unwrap(),
            expires_at: h.now().plus(Duration::from_secs(60)),
        })
        .collect();
    let mut tx = h.app.db.begin().await.unwrap();
    orders::insert_seckill(&mut tx, &all, h.now()).await.unwrap();
    tx.commit().await.unwrap();
    orders::announce_created(&h.app, all.iter().map(|o| (o.id, o.expires_at, o.price == Money::ZERO)).collect());
    // The grant is told last.
    h.eventually(async || h.app.engine.depth(&"grant".parse().unwrap()).await.unwrap().depth == 1).await;
    assert_eq!(
        h.app.engine.depth(&"expiry".parse().unwrap()).await.unwrap().delayed,
        5,
        "449 orders with one deadline"
    );
    let (free, paid_for) = (row(&h, all[0].id).await, row(&h, all[7].id).await);
    assert_eq!((free.status, free.kind, free.paid_at), (Status::Paid, OrderKind::Seckill, Some(h.now())));
    assert_eq!((paid_for.status, paid_for.payable, paid_for.points_earned), (Status::Unpaid, Money::fen(700), 7));
    assert_eq!(seen(&h, &people[7], all[7].id).await["items"][0]["price_fen"], 700);
    // An order that was paid meanwhile is passed over when the others' time is over.
    pay(&h, all[7].id).await;
    h.advance(Duration::from_secs(60));
    let expire = Expire { orders: all.iter().map(|order| order.id).collect() };
    let id = TaskId { key: Uuid::now_v7(), queue: "expiry".parse().unwrap() };
    let ended = payments::expire(h.app.clone(), vec![Job::new(id, expire)]).await;
    assert!(matches!(ended[..], [Outcome::Success(_)]), "{ended:?}");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 3").await, 448);
    assert_eq!(row(&h, all[7].id).await.status, Status::Paid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_early_finds_its_one_order_under_its_key() {
    let settings = vec![("orders.max_unpaid_per_course", "60".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let impatient = |n: u64| {
        let request = h.client.request(reqwest::Method::POST, "/orders", &alice);
        let request = request.header("idempotency-key", format!("k{n}")).json(&of(&[&course]));
        request.timeout(Duration::from_micros(n * 200)).send()
    };
    join_all((0..60).map(impatient)).await;
    for n in 0..60 {
        h.post_once("/orders", &alice, &format!("k{n}"), of(&[&course])).await.expect(201);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_forgotten_after_a_week() {
    let settings = vec![("auth.access_token_s", "86400".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    h.post_once("/orders", &alice, "old", of(&[&course])).await.expect(201);
    h.advance(Duration::from_secs(3600));
    h.post_once("/orders", &alice, "young", of(&[&course])).await.expect(201);
    h.advance(Duration::from_secs(7 * 24 * 3600 - 60));
    onrush::idempotency::prune(&h.app).await.unwrap();
    let kept: Vec<Text> =
        sqlx::query_scalar("SELECT idem_key FROM idempotency_keys").fetch_all(&h.app.db).await.unwrap();
    assert_eq!(kept, [Text("young".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_orders_are_made_and_granted_once_it_is_back() {
    let mut servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(0).await);
    servers.change(|s| s.redis.kill()).await;
    let order = order(&h, &alice, of(&[&course])).await.expect(201);
    servers.change(|s| s.redis.start()).await;
    h.advance(Duration::from_secs(15));
    h.start_workers();
    h.eventually(|| async { row(&h, no(&order)).await.granted_at.is_some() }).await;
    assert_eq!(courses_of(&h, &alice).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_that_nobody_asks_about_ended_with_is_kept_for_minutes() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let id = ordered(&h, &alice, of(&[&course])).await;
    h.advance(Duration::from_secs(1800));
    h.start_workers();
    h.eventually(async || row(&h, id).await.released_at.is_some()).await;
    let records =
        async |queue: &str| -> Vec<i64> {
            let mut commands = h.app.redis.commands();
            let pattern = format!("{}:{{{queue}}}:task:*", h.app.redis.prefix());
            let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut commands).await.unwrap();
            join_all(keys.into_iter().map(async |key| {
                redis::cmd("TTL").arg(key).query_async::<i64>(&mut h.app.redis.commands()).await.unwrap()
            }))
            .await
        };
    for queue in ["expiry", "release"] {
        h.eventually(async || !records(queue).await.is_empty()).await;
        let lives = records(queue).await;
        assert!(lives.iter().all(|life| (1..=600).contains(life)), "{queue}: {lives:?}");
    }
}
