//! Orders that are closed: by their user, by the clock, with a gateway that must be asked first.

use std::net::TcpListener as Reserved;

use onrush::orders::Expire;
use onrush::serve::{ProcessRole, Serving};
use tokio::net::TcpListener;

use super::*;

async fn cancel(h: &Harness, who: &Person, no: &str) -> Answer {
    send(h.request(Method::POST, &format!("/orders/{no}/cancel"), who)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_cancelled_by_its_user_alone_and_once() {
    let h = service().await;
    let (alice, bob) = (h.register().await, h.register().await);
    let no = order(&h, &alice, 500).await;
    cancel(&h, &bob, &no).await.problem(404, "not_found");
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    let first = cancel(&h, &alice, &no).await.expect(200);
    assert_eq!((first["status"].as_str(), first["status_code"].as_i64()), (Some("cancelled"), Some(2)));
    assert_eq!(cancel(&h, &alice, &no).await.expect(200).body, first.body);
    h.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "sandbox"})).await.problem(409, "order_state");

    let late = order(&h, &alice, 500).await;
    h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 1);
    let refused = cancel(&h, &alice, &late).await.problem(409, "order_state");
    assert_eq!((refused["status"].as_u64(), refused["order_status"].as_str()), (Some(409), Some("timed_out")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_closes_the_trade_or_finds_the_money() {
    let h = service().await;
    let alice = h.register().await;
    let (open, paid) = (order(&h, &alice, 500).await, order(&h, &alice, 700).await);
    let attempt = start(&h, &alice, &open).await;
    cancel(&h, &alice, &open).await.expect(200);
    buyer(&h, &attempt.trade, "action=pay").await.expect(409);
    // Paid at the gateway, and the callback has not come yet.
    let attempt = start(&h, &alice, &paid).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    cancel(&h, &alice, &paid).await.problem(409, "order_state");
    assert_eq!(status(&h, &alice, &paid).await, "paid");
    deliver(&h).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_settles_what_is_paid_and_closes_the_rest() {
    let h = service().await;
    let alice = h.register().await;
    let mut orders = Vec::new();
    for _ in 0..3 {
        orders.push(order(&h, &alice, 500).await);
    }
    let paid = start(&h, &alice, &orders[0]).await;
    let open = start(&h, &alice, &orders[1]).await;
    buyer(&h, &paid.trade, "action=pay").await.expect(200);
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 0);
    h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 3);
    assert_eq!(status(&h, &alice, &orders[0]).await, "paid");
    assert_eq!(status(&h, &alice, &orders[1]).await, "timed_out");
    assert_eq!(status(&h, &alice, &orders[2]).await, "timed_out");
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_trades WHERE status = 'closed'").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'closed'").await, 1);
    buyer(&h, &open.trade, "action=pay").await.expect(409);
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 0);
    deliver(&h).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_task_closes_the_order_at_its_time() {
    // Only the delayed task can do it: the sweep looks once an hour.
    let h = service_with(vec![("orders.sweep_period_s", "3600".to_owned())]).await;
    h.start_workers();
    let alice = h.register().await;
    let (plain, started, paid) =
        (order(&h, &alice, 500).await, order(&h, &alice, 500).await, order(&h, &alice, 500).await);
    start(&h, &alice, &started).await;
    let attempt = start(&h, &alice, &paid).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    h.eventually(async || status(&h, &alice, &paid).await == "paid").await;
    // The first sweep at start has passed by now; let it not be the one that closes.
    h.advance(DEADLINE);
    h.eventually(async || status(&h, &alice, &plain).await == "timed_out").await;
    h.eventually(async || status(&h, &alice, &started).await == "timed_out").await;
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE status = 3 AND released_at IS NULL").await == 0)
        .await;
    assert_eq!(status(&h, &alice, &paid).await, "paid");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_comes_too_soon_waits_for_the_deadline() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let expire = |no: &str| {
        let order_id: OrderId = no.parse().unwrap();
        let id = TaskId { key: order_id.uuid(), queue: "expiry".parse().unwrap() };
        payments::expire(h.app.clone(), vec![Job::new(id, Expire { orders: vec![order_id] })])
    };
    assert!(matches!(expire(&no).await[..], [Outcome::Again(pause)] if pause == DEADLINE));
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    h.advance(DEADLINE);
    assert!(matches!(expire(&no).await[..], [Outcome::Success(_)]));
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert!(matches!(expire(&"0".repeat(32)).await[..], [Outcome::Failure { .. }]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_finds_what_redis_lost() {
    let h = service().await;
    let alice = h.register().await;
    let mut orders = Vec::new();
    for i in 0..12 {
        orders.push(order(&h, &alice, 500).await);
        if i % 3 == 0 {
            start(&h, &alice, &orders[i]).await;
        }
    }
    forget_queues(&h).await;
    h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 12);
    for no in &orders {
        assert_eq!(status(&h, &alice, no).await, "timed_out");
    }
    h.start_workers();
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE released_at IS NULL").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_down_delays_and_loses_nothing() {
    // A port where nobody listens yet.
    let reserved = Reserved::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let h = service_with(vec![("payments.sandbox_url", format!("http://{address}"))]).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let path = format!("/orders/{no}/pay");
    let pay = || h.post(&path, &alice, json!({"gateway": "sandbox"}));
    let down = pay().await.problem(503, "gateway_unavailable");
    assert!(down.header("retry-after").is_some());
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 1);
    cancel(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    let other = order(&h, &alice, 500).await;
    h.post(&format!("/orders/{other}/pay"), &alice, json!({"gateway": "sandbox"}))
        .await
        .problem(503, "gateway_unavailable");

    let up = Serving::start(&h.app, TcpListener::bind(address).await.unwrap(), &[ProcessRole::Api]).await.unwrap();
    let first = pay().await.expect(200);
    assert_eq!(pay().await.expect(200).body, first.body);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments").await, 2, "the attempt went on");
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_trades").await, 1);
    cancel(&h, &alice, &no).await.expect(200);
    // The trade of the other order was never opened at the gateway: that is unpaid, not an error.
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &other).await, "timed_out");
    drop(up);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_gateway_is_down_stays_due() {
    let reserved = Reserved::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let h = service_with(vec![("payments.sandbox_url", format!("http://{address}"))]).await;
    let alice = h.register().await;
    let (started, plain) = (order(&h, &alice, 500).await, order(&h, &alice, 500).await);
    h.post(&format!("/orders/{started}/pay"), &alice, json!({"gateway": "sandbox"})).await.expect(503);
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &started).await, "unpaid", "nobody knows whether it was paid");
    assert_eq!(status(&h, &alice, &plain).await, "timed_out", "others do not wait for it");
    let _up = Serving::start(&h.app, TcpListener::bind(address).await.unwrap(), &[ProcessRole::Api]).await.unwrap();
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &started).await, "timed_out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_passes_pages_of_orders_that_cannot_be_closed() {
    let reserved = Reserved::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let h = service_with(vec![("payments.sandbox_url", format!("http://{address}"))]).await;
    let alice = h.register().await;
    let ids: Vec<OrderId> = (0..150).map(|_| OrderId::new()).collect();
    let mut orders = sqlx::QueryBuilder::new(
        "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, \
         points_used, points_earned, currency, created_at, expires_at, pay_started_at) ",
    );
    orders.push_values(&ids, |mut row, id| {
        row.push_bind(*id).push_bind(alice.id).push_bind("course").push_bind(0).push_bind(5).push_bind(0).push_bind(0);
        row.push_bind(5).push_bind(0).push_bind(0).push_bind("CNY").push_bind(h.now()).push_bind(h.now());
        row.push_bind(h.now());
    });
    orders.build().persistent(false).execute(&h.app.db).await.unwrap();
    let mut attempts = sqlx::QueryBuilder::new(
        "INSERT INTO payments (id, order_id, gateway, channel, amount_fen, currency, status, created_at, expires_at) ",
    );
    attempts.push_values(&ids, |mut row, id| {
        row.push_bind(Uuid::now_v7()).push_bind(*id).push_bind("sandbox").push_bind("page").push_bind(5);
        row.push_bind("CNY").push_bind("started").push_bind(h.now()).push_bind(h.now());
    });
    attempts.build().persistent(false).execute(&h.app.db).await.unwrap();

    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 150, "each is seen once, and the sweep ends");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await, 150);
    let _up = Serving::start(&h.app, TcpListener::bind(address).await.unwrap(), &[ProcessRole::Api]).await.unwrap();
    // It is left alone for a while, however well it would answer.
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 150);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await, 150);
    h.advance(Duration::from_millis(h.app.config.payments.gateway_pause_ms));
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 150);
    // One call finds out that it answers; those that came beside it wait for the next sweep.
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 3").await, 150);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trade_that_is_open_although_its_payment_is_closed_is_ended() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    start(&h, &alice, &no).await;
    // The gateway said that it failed to open the trade, and opened it; meanwhile the order was closed.
    sqlx::query("UPDATE payments SET status = 'closed'").execute(&h.app.db).await.unwrap();
    let id: Uuid = sqlx::query_scalar("SELECT id FROM payments").fetch_one(&h.app.db).await.unwrap();
    let end = |id: Uuid, attempt: u32| {
        let id = TaskId { key: id, queue: "late".parse().unwrap() };
        let payment_id = payments::PaymentId::from_uuid(id.key);
        payments::end_trades(h.app.clone(), vec![Job { attempt, ..Job::new(id, payments::EndTrade { payment_id }) }])
    };
    assert!(matches!(end(id, 1).await[..], [Outcome::Success(_)]));
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_trades WHERE status = 'waiting'").await, 0);
    // One that the gateway does not know may still come: it is asked twice.
    sqlx::query("DELETE FROM sandbox_trades").execute(&h.app.db).await.unwrap();
    assert!(matches!(end(id, 1).await[..], [Outcome::Retry(_)]));
    assert!(matches!(end(id, 2).await[..], [Outcome::Success(_)]));
}
