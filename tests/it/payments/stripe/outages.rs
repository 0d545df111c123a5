//! A Stripe that does not answer, or not in a way that can be trusted: nothing is believed, nothing waits for it, and it
//! goes on by itself.

use super::*;

/// A service that leaves a gateway alone after three calls in vain, and does not wait long for one.
async fn impatient(timeout_ms: u64) -> Shop {
    shop_with(vec![
        ("payments.gateway_timeout_ms", timeout_ms.to_string()),
        ("payments.gateway_failures_max", "3".to_owned()),
        ("payments.gateway_pause_ms", PAUSE.as_millis().to_string()),
    ])
    .await
}

const PAUSE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_trusted_is_no_answer() {
    let shop = shop().await;
    let started = shop.start(500).await;
    for manner in [
        Manner::Broken,
        Manner::CutsOff,
        Manner::Babbles,
        Manner::Proxied,
        Manner::RateLimited,
        Manner::Busy,
        Manner::Deaf,
    ] {
        shop.stripe.behave(manner);
        shop.pay(&started.order).await.problem(503, "gateway_unavailable");
        let cancel = format!("/orders/{}/cancel", started.order);
        shop.h.post(&cancel, &shop.alice, json!({})).await.problem(503, "gateway_unavailable");
        assert_eq!(
            (shop.status(&started.order).await, shop.state(&started.payment).await),
            ("unpaid".into(), "started".into())
        );
        shop.stripe.behave(Manner::Well);
        shop.pay(&started.order).await.expect(200);
    }
}

/// Orders that are due while Stripe hangs or fails: a few calls find out, nobody else waits; when it is well again, one
/// call finds that out.
async fn a_dead_gateway_holds_no_workers(manner: Manner, shop: Shop) {
    const ORDERS: usize = 24;
    // Sessions of orders: made while it was well.
    let mut all = Vec::new();
    for _ in 0..ORDERS {
        all.push(shop.start(500).await);
    }
    shop.h.advance(DEADLINE);
    shop.stripe.behave(manner);
    shop.stripe.seen();
    assert_eq!(payments::sweep_due(&shop.h.app).await.unwrap(), ORDERS as u64);
    // Sixteen at once, and one more for each that failed before the third; each may be tried three times.
    let asked = shop.stripe.seen().len();
    assert!((3..=18 * 3).contains(&asked), "{asked}");

    // From here on it is left alone, by everybody.
    payments::sweep_due(&shop.h.app).await.unwrap();
    payments::query_started(&shop.h.app).await.unwrap();
    let fresh = order(&shop.h, &shop.alice, 500).await;
    for _ in 0..20 {
        shop.pay(&fresh).await.problem(503, "gateway_unavailable");
    }
    assert_eq!(shop.stripe.seen().len(), 0);
    let sandbox = start(&shop.h, &shop.alice, &fresh).await;
    assert!(!sandbox.trade.is_empty(), "another gateway is not left alone");

    // One call finds out that it is still dead: nothing but that one is sent.
    shop.h.advance(PAUSE);
    payments::sweep_due(&shop.h.app).await.unwrap();
    let asked = shop.stripe.seen().len();
    assert!((1..=3).contains(&asked), "the tries of one call, and not {asked}");
    // And one that it is well again; then all go on.
    shop.stripe.behave(Manner::Well);
    payments::sweep_due(&shop.h.app).await.unwrap();
    assert_eq!(shop.stripe.seen().len(), 0, "not before the pause is over");
    shop.h.advance(PAUSE);
    shop.h
        .eventually(async || {
            payments::sweep_due(&shop.h.app).await.unwrap();
            shop.h.count("SELECT COUNT(*) FROM orders WHERE status = 3").await == ORDERS as i64
        })
        .await;
    assert!(all.iter().all(|started| shop.stripe.object(&started.session)["status"] == "expired"));
    // What it did before is forgotten: one failure is not the last of many.
    shop.stripe.behave(Manner::Broken);
    shop.pay(&fresh).await.problem(503, "gateway_unavailable");
    shop.stripe.behave(Manner::Well);
    shop.pay(&fresh).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_hangs_holds_no_workers() {
    a_dead_gateway_holds_no_workers(Manner::Hangs, impatient(2000).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_fails_holds_no_workers() {
    a_dead_gateway_holds_no_workers(Manner::Broken, impatient(5000).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_at_a_gateway_that_fails_hold_up_no_others() {
    let shop = shop().await;
    for _ in 0..60 {
        shop.start(500).await;
    }
    shop.h.advance(Duration::from_secs(1));
    let no = order(&shop.h, &shop.alice, 500).await;
    start(&shop.h, &shop.alice, &no).await;
    shop.h.advance(DEADLINE);
    shop.stripe.behave(Manner::Broken);
    assert_eq!(payments::sweep_due(&shop.h.app).await.unwrap(), 61);
    assert_eq!(shop.status(&no).await, "timed_out");
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_an_order_that_cannot_be_closed_ends_no_payment() {
    let shop = shop().await;
    let started = shop.start(500).await;
    start(&shop.h, &shop.alice, &started.order).await;
    let off = shop.h.another_with(&[("payments.sandbox", "false")]).await;
    shop.stripe.seen();
    let cancel = format!("/orders/{}/cancel", started.order);
    off.post(&cancel, &shop.alice, json!({})).await.problem(409, "gateway_off");
    assert_eq!((shop.state(&started.payment).await.as_str(), shop.stripe.seen().len()), ("started", 0));
}
