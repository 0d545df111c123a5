//! Settlement under load: orders that wait for the sandbox's word, and that word, told three times over many connections
//! while a sweep may time the orders out. The benchmark measures it, and an integration test asserts what comes of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onrush::platform::clock::{At, Clock};
use onrush::platform::db::Db;
use onrush::platform::hmac::SharedSecret;
use serde_json::json;
use sqlx::QueryBuilder;
use uuid::Uuid;

/// How often each notification is sent.
pub const COPIES: usize = 3;
/// Connections that send.
pub const CONNECTIONS: usize = 50;
/// A gateway that hears no sends again; so often at most.
const TRIES: usize = 20;
/// Rows of one statement.
const CHUNK: usize = 500;
/// What each order costs.
const FEN: i64 = 100;

/// Orders that are not paid and granted: none is left when all is over, since each could hold again what it held.
pub const UNFINISHED: &str = "SELECT COUNT(*) FROM orders WHERE status <> 1 OR granted_at IS NULL";
/// Payments that did not end as their order's, or of which not exactly one message brought the money.
pub const NOT_ONCE: &str = "SELECT COUNT(*) FROM payments p WHERE p.status <> 'paid' OR p.resolution <> 'order' OR \
    (SELECT COUNT(*) FROM payment_notifications n WHERE n.payment_id = p.id AND n.outcome IN ('settled', 'late')) <> 1";

/// A payment that was started.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    payment: Uuid,
    trade: Uuid,
}

/// Makes so many orders of a new course, each of another new user and with a started payment. Every other order is due
/// now. Of those that are due, every other one is paid by the gateway's books, so that asking finds the money; the others
/// are paid just when the gateway tells it, which is too late when the sweep was first.
pub async fn fill(db: &Db, now: At, count: usize) -> Vec<Started> {
    let course = Uuid::now_v7();
    let sql =
        "INSERT INTO courses (id, title, summary, price_fen, published, created_at) VALUES (?, 'load', '', ?, 1, ?)";
    sqlx::query(sql).bind(course).bind(FEN).bind(now).execute(db).await.unwrap();
    let numbers: Vec<usize> = (0..count).collect();
    let mut all = Vec::new();
    for part in numbers.chunks(CHUNK) {
        all.extend(fill_part(db, now, course, part).await);
    }
    all
}

async fn fill_part(db: &Db, now: At, course: Uuid, part: &[usize]) -> Vec<Started> {
    let started: Vec<Started> =
        part.iter().map(|_| Started { payment: Uuid::now_v7(), trade: Uuid::now_v7() }).collect();
    // (which, order, user, payment)
    let rows: Vec<(usize, Uuid, Uuid, Started)> =
        part.iter().zip(&started).map(|(n, started)| (*n, Uuid::now_v7(), Uuid::now_v7(), *started)).collect();
    let is_due = |n: usize| n % 2 == 1;
    let expires = |n: usize| if is_due(n) { now } else { now.plus(Duration::from_secs(3600)) };

    let mut users = QueryBuilder::new("INSERT INTO users (id, phone, password_hash, nickname, role, created_at) ");
    users.push_values(&rows, |mut row, (_, _, user, _)| {
        // None that the API would give out, and unlike for each: the end of the id is random.
        row.push_bind(*user).push_bind(format!("l{}", &user.as_simple().to_string()[13..]));
        row.push("'none', 'load', 'user'").push_bind(now);
    });
    let mut orders = QueryBuilder::new(
        "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, \
         points_used, points_earned, currency, created_at, expires_at, pay_started_at) ",
    );
    orders.push_values(&rows, |mut row, (n, order, user, _)| {
        row.push_bind(*order).push_bind(*user).push("'course', 0").push_bind(FEN).push("0, 0").push_bind(FEN);
        row.push("0, 1, 'CNY'").push_bind(now).push_bind(expires(*n)).push_bind(now);
    });
    let mut items = QueryBuilder::new(
        "INSERT INTO order_items (order_id, position, course_id, title, price_fen, coupon_discount_fen, \
         points_discount_fen, payable_fen) ",
    );
    items.push_values(&rows, |mut row, (_, order, _, _)| {
        row.push_bind(*order).push("1").push_bind(course).push("'load'").push_bind(FEN).push("0, 0").push_bind(FEN);
    });
    let mut payments = QueryBuilder::new(
        "INSERT INTO payments (id, order_id, gateway, channel, amount_fen, currency, status, created_at, expires_at, \
         next_query_at) ",
    );
    payments.push_values(&rows, |mut row, (n, order, _, started)| {
        row.push_bind(started.payment).push_bind(*order).push("'sandbox', 'page'").push_bind(FEN);
        row.push("'CNY', 'started'").push_bind(now).push_bind(expires(*n));
        row.push_bind(now.plus(Duration::from_secs(20)));
    });
    let mut trades = QueryBuilder::new(
        "INSERT INTO sandbox_trades (trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, created_at, \
         expires_at, paid_at) ",
    );
    trades.push_values(&rows, |mut row, (n, _, _, started)| {
        let waits = n % 4 == 3;
        row.push_bind(started.trade).push_bind(started.payment.as_simple().to_string()).push_bind(FEN);
        row.push_bind(if waits { 0 } else { FEN }).push_bind(if waits { "waiting" } else { "paid" });
        row.push("'load', 'http://127.0.0.1:9'").push_bind(now).push_bind(expires(*n));
        row.push_bind((!waits).then_some(now));
    });
    for mut insert in [users, orders, items, payments, trades] {
        insert.build().persistent(false).execute(db).await.unwrap();
    }
    started
}

/// What came of sending.
pub struct Sent {
    /// How long each answer took.
    pub latencies: Vec<Duration>,
    /// Answers that were not yes, after each of which the same was sent again.
    pub refused: usize,
    /// How long all took together.
    pub took: Duration,
}

/// Sends every notification [`COPIES`] times over [`CONNECTIONS`] connections, the copies of one beside each other, until
/// the service has said yes to each. The last orders come first: a sweep begins with the first, and they meet.
pub async fn send(service: &str, secret: &SharedSecret, clock: &Clock, all: &[Started]) -> Sent {
    let queue: VecDeque<Started> = all.iter().rev().flat_map(|started| [*started; COPIES]).collect();
    let (queue, url) = (Arc::new(Mutex::new(queue)), format!("{service}/api/v1/payments/sandbox/notify"));
    let began = Instant::now();
    let senders = (0..CONNECTIONS).map(|_| one_connection(&url, secret, clock, &queue));
    let sent = futures_util::future::join_all(senders).await;
    let took = began.elapsed();
    let (latencies, refused): (Vec<_>, Vec<usize>) = sent.into_iter().unzip();
    Sent { latencies: latencies.concat(), refused: refused.into_iter().sum(), took }
}

async fn one_connection(
    url: &str,
    secret: &SharedSecret,
    clock: &Clock,
    queue: &Mutex<VecDeque<Started>>,
) -> (Vec<Duration>, usize) {
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build().unwrap();
    let (mut latencies, mut refused) = (Vec::new(), 0);
    let next = || queue.lock().unwrap().pop_front();
    while let Some(started) = next() {
        let body = serde_json::to_vec(&json!({
            "notify_id": started.trade.as_simple(), "code": "100000", "merchant_id": "onrush-sandbox",
            "merchant_no": started.payment.as_simple(), "trade_no": started.trade.as_simple(), "amount_fen": FEN,
            "currency": "CNY",
        }))
        .unwrap();
        let mut tries = 0;
        loop {
            let (timestamp, signature) = secret.sign(&body, clock.now());
            let request = http.post(url).body(body.clone());
            let request = request.header("x-sandbox-timestamp", timestamp).header("x-sandbox-signature", signature);
            let began = Instant::now();
            let answer = request.send().await.unwrap();
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            latencies.push(began.elapsed());
            if (status.as_u16(), text.as_str()) == (200, "success") {
                break;
            }
            // Nothing is wrong with it: only what passes may refuse it.
            (tries, refused) = (tries + 1, refused + 1);
            assert!(status.is_server_error() && tries < TRIES, "{status} {text}");
        }
    }
    (latencies, refused)
}
