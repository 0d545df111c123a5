//! Stripe's events: forged, old, repeated, out of order, early, wrong, or about something else.

use super::*;
use crate::support::gateways::stripe::deliver_raw;

/// Stripe reads the status alone; whoever else sent it learns nothing from the rest.
#[track_caller]
fn is_no(answer: Answer, status: u16) {
    assert_eq!((answer.status, answer.text().as_str()), (status, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_stripe_did_not_sign_changes_nothing() {
    let shop = shop().await;
    let started = shop.start(500).await;
    let body = serde_json::to_vec(&shop.stripe.pay(&started.session)).unwrap();
    let sign = |secrets: &[String], body: &[u8]| shop.stripe.signature(secrets, body, &shop.h);
    let good = sign(&shop.stripe.secrets, &body);
    let (time, signatures) = good.split_once(',').unwrap();
    let unknown = ["whsec_unknown".to_owned()];

    let mut altered = body.clone();
    let at = altered.windows(3).position(|three| three == b"500").unwrap();
    altered[at] = b'6';
    is_no(deliver_raw(&shop.h, altered, Some(good.clone())).await, 400);
    for header in [
        None,
        Some(String::new()),
        Some(time.to_owned()),
        Some(signatures.to_owned()),
        Some(good.replace("v1=", "v0=")),
        Some(good.replace("t=1", "t=2")),
        Some(sign(&unknown, &body)),
        Some(sign(&["whsec_".to_owned(), String::new()], &body)),
        Some(sign(&[shop.stripe.secrets[0].trim_start_matches("whsec_").to_owned()], &body)),
    ] {
        is_no(deliver_raw(&shop.h, body.clone(), header).await, 400);
    }
    // Two headers, of which one is good.
    let request = shop.h.request(Method::POST, "/payments/stripe/notify", ()).body(body.clone());
    let request = request.header("stripe-signature", &good).header("stripe-signature", sign(&unknown, &body));
    is_no(send(request).await, 400);
    // Signed well, and no event.
    let garbage = b"not json \xff".to_vec();
    let header = sign(&shop.stripe.secrets, &garbage);
    is_no(deliver_raw(&shop.h, garbage, Some(header)).await, 400);
    // Recorded by somebody, and sent again later.
    shop.h.advance(Duration::from_secs(301));
    is_no(deliver_raw(&shop.h, body.clone(), Some(good)).await, 400);

    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
    assert_eq!(shop.status(&started.order).await, "unpaid");
    let again = sign(&shop.stripe.secrets, &body);
    deliver_raw(&shop.h, body, Some(again)).await.expect(200);
    assert_eq!(shop.status(&started.order).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_is_changed_either_is_enough() {
    let shop = shop().await;
    let [old, new] = &shop.stripe.secrets[..] else { panic!("two secrets") };
    let unknown = "whsec_unknown".to_owned();
    for signers in [vec![old], vec![new], vec![&unknown, new], vec![old, &unknown]] {
        let signers: Vec<String> = signers.into_iter().cloned().collect();
        let started = shop.start(500).await;
        let body = serde_json::to_vec(&shop.stripe.pay(&started.session)).unwrap();
        let header = shop.stripe.signature(&signers, &body, &shop.h);
        deliver_raw(&shop.h, body, Some(header)).await.expect(200);
        assert_eq!(shop.status(&started.order).await, "paid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_often_and_in_any_order_pay_once() {
    let shop = shop().await;
    let started = shop.start(500).await;
    let begun = shop.stripe.pay_slowly(&started.session);
    let paid = shop.stripe.bank_says(&started.session, true);
    let object = begun["data"]["object"].clone();
    let failed = shop.stripe.event("checkout.session.async_payment_failed", object);
    // The last one first, many times at once; then those that it overtook.
    let copies = futures_util::future::join_all((0..20).map(|_| shop.deliver(&paid))).await;
    assert!(copies.iter().all(|answer| answer.status == 200));
    for event in [&failed, &begun, &paid] {
        shop.deliver(event).await.expect(200);
    }
    shop.h.advance(Duration::from_secs(3 * 24 * 3600));
    let late: Answer = shop.stripe.deliver(&shop.h, &paid).await;
    assert_eq!(late.expect(200).text(), "");
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM orders WHERE status = 1").await, 1);
    assert_eq!((shop.notifications("settled").await, shop.notifications("ignored").await), (1, 2));
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payment_notifications").await, 3, "each is kept once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_early_is_asked_for_again() {
    let shop = shop().await;
    let started = shop.start(500).await;
    let (id, hidden) = (started.payment.parse::<OrderId>().unwrap(), OrderId::new());
    let rename = "UPDATE payments SET id = ? WHERE id = ?";
    sqlx::query(rename).bind(hidden).bind(id).execute(&shop.h.app.db).await.unwrap();
    let event = shop.stripe.pay(&started.session);
    shop.deliver(&event).await.expect(404);
    sqlx::query(rename).bind(id).bind(hidden).execute(&shop.h.app.db).await.unwrap();
    shop.deliver(&event).await.expect(200);
    assert_eq!(shop.status(&started.order).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_amount_currency_or_account_is_kept_for_a_person() {
    let shop = shop().await;
    let mut flagged = Vec::new();
    for (amount, currency) in [(499, "cny"), (501, "cny"), (500, "usd")] {
        let started = shop.start(500).await;
        flagged.push((shop.stripe.pay_otherwise(&started.session, amount, currency), started));
    }
    for (member, value) in [("livemode", json!(true)), ("account", json!("acct_of_another"))] {
        let started = shop.start(500).await;
        let mut event = shop.stripe.pay(&started.session);
        event[member] = value;
        flagged.push((event, started));
    }
    for (event, started) in &flagged {
        shop.deliver(event).await.expect(422);
        shop.deliver(event).await.expect(422);
        assert_eq!(
            (shop.status(&started.order).await, shop.state(&started.payment).await),
            ("unpaid".into(), "started".into())
        );
    }
    assert_eq!(shop.notifications("flagged").await, 5);
    // Asking finds the same amounts wrong, and those right that only their events lied about.
    shop.h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&shop.h.app).await.unwrap(), 5);
    let mut ends = Vec::new();
    for (_, started) in &flagged {
        ends.push(shop.status(&started.order).await);
    }
    assert_eq!(ends, ["unpaid", "unpaid", "unpaid", "paid", "paid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_none_of_our_business_is_acknowledged() {
    let shop = shop().await;
    let started = shop.start(500).await;
    let mut foreign = shop.stripe.object(&started.session);
    foreign["metadata"] = json!({"shop": "another"});
    foreign["payment_status"] = "paid".into();
    for event in [
        shop.stripe.event("customer.created", json!({"id": "cus_1", "object": "customer"})),
        shop.stripe.event("checkout.session.completed", foreign),
        shop.stripe.event("charge.refunded", json!({"id": "ch_1", "amount": 5, "metadata": {}})),
    ] {
        assert_eq!(shop.deliver(&event).await.expect(200).text(), "");
    }
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
    assert_eq!(shop.status(&started.order).await, "unpaid");
}
