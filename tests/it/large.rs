//! A shop that has sold for long: requests and passes read what their own orders have, however many others there are.

use std::time::Duration;

use onrush::engine::Worker;
use onrush::platform::hmac::SharedSecret;
use onrush::{check, jobs};
use reqwest::Method;
use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use crate::seckill::Sale;
use crate::support::client::send;
use crate::support::harness::SANDBOX_SECRET;
use crate::support::{Course, Harness, Options, Person, PrivateServers};

/// Rows that one thing may read, those included by which the reading is counted. There are some 200,000 of most kinds.
const MOST: i64 = 3000;

/// Orders of a thousand people for twenty courses: most are paid and granted, some dead, some unpaid and in time, and five
/// thousand were paid a moment ago.
const HISTORY: &[&str] = &[
    "CREATE TABLE numbers (n INT NOT NULL PRIMARY KEY)",
    "INSERT INTO numbers WITH RECURSIVE d AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM d WHERE n < 447) \
     SELECT a.n * 448 + b.n FROM d a JOIN d b",
    "CREATE TABLE buyers AS SELECT id, ROW_NUMBER() OVER (ORDER BY id) - 1 AS at FROM users",
    "ALTER TABLE buyers ADD PRIMARY KEY (at)",
    "CREATE TABLE sold AS SELECT id, ROW_NUMBER() OVER (ORDER BY id) - 1 AS at FROM courses",
    "ALTER TABLE sold ADD PRIMARY KEY (at)",
    "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, \
     points_used, points_earned, currency, created_at, expires_at, paid_at, closed_at, granted_at, released_at) \
     SELECT UNHEX(LPAD(HEX(n), 32, '0')), b.id, 'course', CASE n % 10 WHEN 9 THEN 0 WHEN 8 THEN 2 WHEN 7 THEN 3 ELSE 1 END, \
     100, 0, 0, 100, 0, 0, 'CNY', NOW(3) - INTERVAL 9 DAY, NOW(3) + INTERVAL 9 DAY, \
     CASE WHEN n % 10 < 7 THEN NOW(3) END, CASE WHEN n % 10 IN (7, 8) THEN NOW(3) END, \
     CASE WHEN n % 10 < 7 AND n % 40 <> 0 THEN NOW(3) END, CASE WHEN n % 10 IN (7, 8) THEN NOW(3) END \
     FROM numbers JOIN buyers b ON b.at = n % 1000",
    "INSERT INTO order_items (order_id, position, course_id, title, price_fen, coupon_discount_fen, points_discount_fen, \
     payable_fen) SELECT UNHEX(LPAD(HEX(n), 32, '0')), 0, s.id, 'sold', 100, 0, 0, 100 \
     FROM numbers JOIN sold s ON s.at = (n DIV 1000) % 20",
    "INSERT INTO user_courses (user_id, course_id, order_id, granted_at) \
     SELECT o.user_id, i.course_id, o.id, o.granted_at FROM orders o JOIN order_items i ON i.order_id = o.id \
     WHERE o.granted_at IS NOT NULL",
    "INSERT INTO payments (id, order_id, gateway, channel, amount_fen, currency, status, resolution, gateway_trade_no, \
     created_at, expires_at, paid_at) SELECT id, id, 'sandbox', 'page', 100, 'CNY', 'paid', 'order', HEX(id), created_at, \
     expires_at, paid_at FROM orders WHERE status = 1",
    "INSERT INTO seckill_entries (id, activity_id, user_id, order_id, created_at, released_at, gate_returned_at) \
     SELECT id, UNHEX(REPEAT('ab', 16)), user_id, id, created_at, created_at, created_at FROM orders",
    "DROP TABLE numbers, buyers, sold",
    "ANALYZE TABLE orders, order_items, user_courses, payments, seckill_entries, users",
];

/// Rows that the server, which is this test's own, has read.
async fn rows_read(h: &Harness) -> i64 {
    let rows = sqlx::raw_sql("SHOW GLOBAL STATUS LIKE 'Handler_read%'").fetch_all(&h.app.db).await.unwrap();
    rows.iter().map(|row| row.get_unchecked::<String, _>(1).parse::<i64>().unwrap()).sum()
}

async fn reads_little(h: &Harness, what: &str, done: impl Future<Output = ()>) {
    let before = rows_read(h).await;
    done.await;
    let read = rows_read(h).await - before;
    assert!(read < MOST, "{read} rows were read for {what}");
}

/// Starts a payment, and has it settled.
async fn pay(h: &Harness, buyer: &Person, order: &str) {
    let answer = h.post(&format!("/orders/{order}/pay"), buyer, json!({ "gateway": "sandbox" })).await.expect(200);
    let trade = answer.text_of("pay_url").rsplit_once('/').unwrap().1.to_owned();
    let body = serde_json::to_vec(&json!({
        "notify_id": Uuid::now_v7().simple().to_string(), "code": "100000", "merchant_id": "onrush-sandbox",
        "merchant_no": answer.text_of("payment_no"), "trade_no": trade, "amount_fen": 1000, "currency": "CNY",
    }))
    .unwrap();
    let (timestamp, signature) = SharedSecret::new(SANDBOX_SECRET.as_bytes()).sign(&body, h.now());
    let request = h.request(Method::POST, "/payments/sandbox/notify", ()).body(body);
    send(request.header("x-sandbox-timestamp", timestamp).header("x-sandbox-signature", signature)).await.expect(200);
}

async fn order(h: &Harness, buyer: &Person, course: &Course) -> String {
    let key = Uuid::now_v7().as_simple().to_string();
    let body = json!({ "course_ids": [course.no()] });
    h.post_once("/orders", buyer, &key, body).await.expect(201).text_of("order_no")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_reads_what_it_is_about_however_much_was_sold_before() {
    let servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let people = h.people(1000).await;
    for _ in 0..20 {
        h.course(100).await;
    }
    let mut history = h.app.db.acquire_for(Duration::from_secs(300)).await.unwrap();
    for statement in HISTORY {
        sqlx::raw_sql(statement).execute(&mut *history).await.unwrap();
    }
    drop(history);
    let (admin, buyer, course) = (h.admin().await, &people[7], h.course(1000).await);
    let get = async |path: &str, who: &Person| drop(h.get(path, who).await.expect(200));

    reads_little(&h, "lists and a quote", async {
        for path in ["/courses", "/orders", "/me/courses", "/me/points", "/me/coupons"] {
            get(path, buyer).await;
        }
        for path in ["/admin/orders", "/admin/orders?status=unpaid", "/admin/payments", "/admin/orders?kind=seckill"] {
            get(path, &admin).await;
        }
        get(&format!("/admin/orders?user_id={}", buyer.id.as_simple()), &admin).await;
        h.post("/orders/quote", buyer, json!({ "course_ids": [course.no()] })).await.expect(200);
    })
    .await;
    reads_little(&h, "an order that is cancelled", async {
        let no = order(&h, buyer, &course).await;
        get(&format!("/orders/{no}"), buyer).await;
        h.post(&format!("/orders/{no}/cancel"), buyer, json!({})).await.expect(200);
    })
    .await;
    Worker::start(h.app.engine.clone(), jobs::registry(&h.app.config), h.app.clone(), &h.app.loops);
    reads_little(&h, "an order that is paid and granted", async {
        let no = order(&h, buyer, &course).await;
        pay(&h, buyer, &no).await;
        let mine = h.get(&format!("/orders/{no}"), buyer).await.expect(200);
        assert_eq!(mine["status"], "paid");
        h.eventually(async || h.get("/me/courses", buyer).await.text().contains(&course.no())).await;
    })
    .await;
    let sale = Sale::open(&h, 5).await;
    reads_little(&h, "a submission that wins", async {
        assert_eq!(sale.take_part(&h, &people[9]).await["code"], 100);
    })
    .await;
    h.advance(Duration::from_secs(3600));
    reads_little(&h, "how long what is owed has waited", async {
        drop(check::owed::ages(&h.app).await.unwrap());
    })
    .await;
    for pass in ["orders.sweep", "payments.query", "payments.refund", "payments.redrive"] {
        reads_little(&h, pass, async { drop(jobs::run_pass(h.app.clone(), pass).await.unwrap().unwrap()) }).await;
    }
}
