//! Money: paying in the sandbox, what callbacks may and may not do, and that no fen is lost or counted twice.

mod alipay;
mod asks;
mod bills;
mod callbacks;
mod closing;
mod crossing;
mod dead;
mod deadlocks;
mod failover;
mod interrupted;
mod late;
mod off;
mod races;
mod refunds;
mod returning;
mod rules;
mod sales;
mod sandbox;
mod settlement;
mod shown;
mod stripe;
mod twice;
mod wechat;

use std::time::Duration;

use onrush::engine::{Job, Outcome, TaskId};
use onrush::orders::{self, OrderId};
use onrush::payments::{self, ResolveLate};
use onrush::platform::hmac::SharedSecret;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::send;
use crate::support::harness::SANDBOX_SECRET;
use crate::support::{Answer, Harness, Options, Person};

/// Time to pay, in these tests.
const DEADLINE: Duration = Duration::from_secs(600);

/// A service whose tokens outlive the deadlines that the tests move the clock past.
async fn service() -> Harness {
    service_with(Vec::new()).await
}

async fn service_with(more: Vec<(&'static str, String)>) -> Harness {
    let mut settings = vec![
        ("auth.access_token_s", "86400".to_owned()),
        ("orders.pay_deadline_s", DEADLINE.as_secs().to_string()),
        // A machine that is busy with other tests is slow, not down.
        ("payments.gateway_timeout_ms", "30000".to_owned()),
        ("http.timeout_s", "60".to_owned()),
    ];
    settings.extend(more);
    Harness::with(Options { settings, ..Options::default() }).await
}

/// Orders a new course of this price; the order's number.
async fn order(h: &Harness, who: &Person, price_fen: i64) -> String {
    let course = h.course(price_fen).await;
    let key = Uuid::now_v7().as_simple().to_string();
    h.post_once("/orders", who, &key, json!({"course_ids": [course.no()]})).await.expect(201).text_of("order_no")
}

/// An attempt to pay.
struct Attempt {
    payment_no: String,
    trade: String,
}

async fn start(h: &Harness, who: &Person, order: &str) -> Attempt {
    let answer = h.post(&format!("/orders/{order}/pay"), who, json!({"gateway": "sandbox"})).await.expect(200);
    Attempt { payment_no: answer.text_of("payment_no"), trade: trade_of(&answer) }
}

fn trade_of(answer: &Answer) -> String {
    answer.text_of("pay_url").rsplit_once('/').unwrap().1.to_owned()
}

/// What the buyer does on the cashier's page, such as `action=pay`.
async fn buyer(h: &Harness, trade: &str, form: &'static str) -> Answer {
    let request = h.request(Method::POST, &format!("/sandbox/pay/{trade}"), ());
    send(request.header("content-type", "application/x-www-form-urlencoded").body(form)).await
}

/// Sends the notifies that are due, once each.
async fn deliver(h: &Harness) -> usize {
    onrush::sandbox::deliver(&h.app).await.unwrap()
}

async fn status(h: &Harness, who: &Person, order: &str) -> String {
    h.get(&format!("/orders/{order}"), who).await.expect(200).text_of("status")
}

/// A notify as the sandbox would send it.
fn paid_body(notify_id: &str, payment_no: &str, trade: &str, amount_fen: i64) -> Value {
    json!({
        "notify_id": notify_id, "code": "100000", "merchant_id": "onrush-sandbox", "merchant_no": payment_no,
        "trade_no": trade, "amount_fen": amount_fen, "currency": "CNY",
    })
}

fn secret() -> SharedSecret {
    SharedSecret::new(SANDBOX_SECRET.as_bytes())
}

/// Sends a notify that is signed as it should be.
async fn notify(h: &Harness, body: &Value) -> Answer {
    let bytes = serde_json::to_vec(body).unwrap();
    let (timestamp, signature) = secret().sign(&bytes, h.now());
    raw_notify(h, bytes, Some(timestamp), Some(signature)).await
}

async fn raw_notify(h: &Harness, body: Vec<u8>, timestamp: Option<String>, signature: Option<String>) -> Answer {
    let mut request = h.request(Method::POST, "/payments/sandbox/notify", ()).body(body);
    if let Some(timestamp) = timestamp {
        request = request.header("x-sandbox-timestamp", timestamp);
    }
    if let Some(signature) = signature {
        request = request.header("x-sandbox-signature", signature);
    }
    send(request).await
}

/// Decides all late money that waits for it, as the worker would, with nothing else to hold again.
async fn resolve_late(h: &Harness) -> usize {
    let owed: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM payments WHERE resolution = 'owed'").fetch_all(&h.app.db).await.unwrap();
    let job = |id: &Uuid| {
        Job::new(
            TaskId { key: *id, queue: "late".parse().unwrap() },
            ResolveLate { payment_id: payments::PaymentId::from_uuid(*id) },
        )
    };
    let outcomes =
        payments::resolve_late(h.app.clone(), owed.iter().map(job).collect(), |_, _, _| Box::pin(async { Ok(true) }))
            .await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Success(_))), "{outcomes:?}");
    owed.len()
}

/// Gives back what dead orders held, as the worker would, with nothing else to give back.
async fn release(h: &Harness) {
    let dead: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM orders WHERE status IN (2, 3) AND released_at IS NULL")
        .fetch_all(&h.app.db)
        .await
        .unwrap();
    let job = |id: &Uuid| {
        Job::new(
            TaskId { key: *id, queue: "release".parse().unwrap() },
            orders::Release { order_id: OrderId::from_uuid(*id) },
        )
    };
    let part: orders::ReleasePart = |_, _, _| Box::pin(async { Ok(()) });
    let outcomes = orders::jobs::release(h.app.clone(), dead.iter().map(job).collect(), part).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Success(_))), "{outcomes:?}");
}

/// Every fen that the gateway holds for us is a paid order's, and every paid order has its fen; nothing waits.
async fn books_balance(h: &Harness) {
    let kept = h
        .count(
            "SELECT CAST(COALESCE(SUM(paid_fen), 0) - (SELECT COALESCE(SUM(amount_fen), 0) FROM sandbox_refunds) AS SIGNED) \
             FROM sandbox_trades",
        )
        .await;
    let earned = h.count("SELECT CAST(COALESCE(SUM(payable_fen), 0) AS SIGNED) FROM orders WHERE status = 1").await;
    assert_eq!(kept, earned, "the gateway's money and the paid orders");
    let strays = h
        .count(
            "SELECT COUNT(*) FROM payments p JOIN orders o ON o.id = p.order_id \
             LEFT JOIN refunds r ON r.payment_id = p.id AND r.status = 'confirmed' AND r.amount_fen = p.amount_fen \
             WHERE p.status = 'paid' AND NOT \
             ((p.resolution = 'order' AND o.status = 1 AND o.payable_fen = p.amount_fen AND r.id IS NULL) \
             OR (p.resolution = 'refund' AND r.id IS NOT NULL))",
        )
        .await;
    assert_eq!(strays, 0, "every paid payment is its order's, or was given back");
    let twice = h
        .count(
            "SELECT COUNT(*) FROM (SELECT order_id FROM payments WHERE resolution = 'order' \
             GROUP BY order_id HAVING COUNT(*) > 1) twice",
        )
        .await;
    assert_eq!(twice, 0, "one payment pays one order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_in_the_sandbox_pays_the_order_and_gives_the_course() {
    let h = service().await;
    h.start_workers();
    let alice = h.register().await;
    let no = order(&h, &alice, 1999).await;
    let attempt = start(&h, &alice, &no).await;
    let back = format!("/payments/sandbox/return?payment_no={}&status=paid&amount=1", attempt.payment_no);
    assert_eq!(h.get(&back, ()).await.expect(200)["status"], "unpaid", "what the browser says decides nothing");
    let paid = buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    assert_eq!((paid["code"].as_str(), paid["data"]["status"].as_str()), (Some("100000"), Some("paid")));
    h.eventually(async || {
        let order = h.get(&format!("/orders/{no}"), &alice).await;
        order["status"] == "paid" && order["granted_at"].is_string()
    })
    .await;
    assert_eq!(h.get(&back, ()).await.expect(200)["status"], "paid");
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 1);
    h.eventually(async || h.count("SELECT COUNT(*) FROM sandbox_notifies WHERE confirmed_at IS NULL").await == 0).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paying_again_goes_on_with_the_same_attempt() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let path = format!("/orders/{no}/pay");
    let first = h.post(&path, &alice, json!({"gateway": "sandbox", "channel": "page"})).await.expect(200);
    let repeats = (0..10).map(|_| h.post(&path, &alice, json!({"gateway": "sandbox"})));
    for again in futures_util::future::join_all(repeats).await {
        assert_eq!(again.expect(200).body, first.body);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payments").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_trades").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_failed_is_followed_by_a_new_one() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let first = start(&h, &alice, &no).await;
    buyer(&h, &first.trade, "action=fail").await.expect(200);
    let second = start(&h, &alice, &no).await;
    assert_ne!(first.payment_no, second.payment_no);
    buyer(&h, &second.trade, "action=pay").await.expect(200);
    deliver(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "paid");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_paid_is_refused_with_its_reason() {
    let h = service().await;
    let (alice, bob) = (h.register().await, h.register().await);
    let no = order(&h, &alice, 500).await;
    let path = format!("/orders/{no}/pay");
    let sandbox = json!({"gateway": "sandbox"});
    h.post(&path, (), sandbox.clone()).await.problem(401, "unauthenticated");
    h.post(&path, &bob, sandbox.clone()).await.problem(404, "not_found");
    h.post(&format!("/orders/{}/pay", "0".repeat(32)), &alice, sandbox.clone()).await.problem(404, "not_found");
    for bad in [
        json!({}),
        json!({"gateway": "paypal"}),
        json!({"gateway": "sandbox", "channel": "cash"}),
        json!({"gateway": 1}),
    ] {
        h.post(&path, &alice, bad).await.problem(422, "validation_failed");
    }
    h.post(&path, &alice, json!({"gateway": "sandbox", "amount_fen": 1})).await.problem(422, "validation_failed");
    assert_eq!(h.count("SELECT COUNT(*) FROM payments").await, 0);

    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    deliver(&h).await;
    h.post(&path, &alice, sandbox.clone()).await.problem(409, "order_state");

    let course = h.course(700).await;
    let mut numbers = Vec::new();
    for key in ["k1", "k2"] {
        let body = json!({"course_ids": [course.no()]});
        numbers.push(h.post_once("/orders", &alice, key, body).await.expect(201).text_of("order_no"));
    }
    sqlx::query("INSERT INTO user_courses (user_id, course_id, order_id, granted_at) VALUES (?, ?, ?, ?)")
        .bind(alice.id)
        .bind(course.id)
        .bind(numbers[0].parse::<OrderId>().unwrap())
        .bind(h.now())
        .execute(&h.app.db)
        .await
        .unwrap();
    h.post(&format!("/orders/{}/pay", numbers[1]), &alice, sandbox.clone()).await.problem(409, "already_owned");

    let late = order(&h, &alice, 500).await;
    h.advance(DEADLINE);
    h.post(&format!("/orders/{late}/pay"), &alice, sandbox).await.problem(409, "order_expired");
}

/// Empties the part of Redis that this service uses.
async fn forget_queues(h: &Harness) {
    let mut redis = h.app.redis.commands();
    let pattern = format!("{}*", h.app.redis.prefix());
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
    if !keys.is_empty() {
        redis::cmd("DEL").arg(keys).exec_async(&mut redis).await.unwrap();
    }
}
