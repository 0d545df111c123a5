//! Money that goes back through Stripe, and the day's bill.

use super::*;
use onrush::platform::text::Text;

/// A payment at Stripe of an order that the sandbox has paid as well: its money goes back. The refund's number.
async fn paid_twice(shop: &Shop, price_fen: i64) -> (Started, String) {
    let started = shop.start(price_fen).await;
    let other = start(&shop.h, &shop.alice, &started.order).await;
    buyer(&shop.h, &other.trade, "action=pay").await.expect(200);
    deliver(&shop.h).await;
    shop.deliver(&shop.stripe.pay(&started.session)).await.expect(200);
    assert_eq!(resolve_late(&shop.h).await, 1);
    let payment: OrderId = started.payment.parse().unwrap();
    let refund: Uuid = sqlx::query_scalar("SELECT id FROM refunds WHERE payment_id = ?")
        .bind(payment)
        .fetch_one(&shop.h.app.db)
        .await
        .unwrap();
    (started, refund.as_simple().to_string())
}

/// The state of a refund, and whether the gateway is at it.
async fn state(shop: &Shop, refund: &str) -> (String, bool) {
    let id: OrderId = refund.parse().unwrap();
    let state = sqlx::query_as("SELECT status, asked_at IS NOT NULL FROM refunds WHERE id = ?").bind(id);
    let (Text(status), asked) = state.fetch_one(&shop.h.app.db).await.unwrap();
    (status, asked)
}

/// Stripe's id of a refund.
fn id_of(shop: &Shop, refund: &str) -> String {
    let all = shop.stripe.refunds();
    let found = all.into_iter().find(|object| object["metadata"]["refund_no"] == refund).unwrap();
    found["id"].as_str().unwrap().to_owned()
}

async fn drive(shop: &Shop) -> usize {
    payments::drive_refunds(&shop.h.app).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_came_twice_goes_back_once() {
    let shop = shop().await;
    let (started, refund) = paid_twice(&shop, 500).await;
    shop.stripe.seen();
    assert_eq!(drive(&shop).await, 1);
    let [asked] = &shop.stripe.seen()[..] else { panic!("one request makes one refund") };
    assert_eq!((asked.path.as_str(), asked.idempotency_key.as_deref()), ("/v1/refunds", Some(refund.as_str())));
    assert_eq!((asked.form["amount"].as_str(), asked.form["metadata[refund_no]"].as_str()), ("500", refund.as_str()));
    let intent = shop.stripe.object(&started.session)["payment_intent"].clone();
    assert_eq!(asked.form["payment_intent"], intent.as_str().unwrap());
    assert_eq!(state(&shop, &refund).await.0, "confirmed");
    assert_eq!((drive(&shop).await, shop.stripe.refunds().len()), (0, 1));
    // What it tells about it afterwards changes nothing.
    let made = shop.stripe.refunds()[0].clone();
    shop.deliver(&shop.stripe.event("refund.updated", made)).await.expect(200);
    assert_eq!(state(&shop, &refund).await.0, "confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_under_way_ends_by_its_event_or_by_asking() {
    let shop = shop().await;
    shop.stripe.refunds_are("pending");
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(paid_twice(&shop, 500).await.1);
    }
    assert_eq!(drive(&shop).await, 4);
    for refund in &all {
        assert_eq!(state(&shop, refund).await, ("pending".to_owned(), true));
    }
    let told = shop.stripe.refund_becomes(&id_of(&shop, &all[0]), "succeeded");
    shop.deliver(&told).await.expect(200);
    let failed = shop.stripe.refund_becomes(&id_of(&shop, &all[1]), "failed");
    shop.deliver(&failed).await.expect(200);
    shop.stripe.refund_becomes(&id_of(&shop, &all[2]), "succeeded");
    shop.stripe.refund_becomes(&id_of(&shop, &all[3]), "requires_action");
    shop.stripe.seen();
    shop.h.advance(Duration::from_secs(3600));
    assert_eq!(drive(&shop).await, 2);
    assert!(shop.stripe.seen().iter().all(|asked| asked.method == "GET"), "it is asked, and not sent again");
    let mut ends = Vec::new();
    for refund in &all {
        ends.push(state(&shop, refund).await.0);
    }
    assert_eq!(ends, ["confirmed", "failed", "confirmed", "pending"]);
}

/// Stripe keeps a key for a day. A refund whose answer was lost is older by then and must not be made twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_whose_answer_was_lost_is_looked_up_before_it_is_sent_again() {
    // Cut off, or replaced by the no of something on the way, which is none of Stripe's.
    for manner in [Manner::CutsOff, Manner::Proxied] {
        let shop = shop().await;
        let (_, refund) = paid_twice(&shop, 500).await;
        shop.stripe.behave(manner);
        assert_eq!(drive(&shop).await, 1);
        assert_eq!((state(&shop, &refund).await.0, shop.stripe.refunds().len()), ("pending".to_owned(), 1));
        shop.stripe.behave(Manner::Well);
        shop.h.advance(Duration::from_secs(25 * 3600));
        assert_eq!(drive(&shop).await, 1);
        assert_eq!((state(&shop, &refund).await.0, shop.stripe.refunds().len()), ("confirmed".to_owned(), 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_never_arrived_is_sent_again() {
    let shop = shop_with(vec![("payments.gateway_timeout_ms", "2000".to_owned())]).await;
    let (_, refund) = paid_twice(&shop, 600).await;
    for manner in [Manner::Busy, Manner::Deaf, Manner::RateLimited, Manner::Broken, Manner::Hangs] {
        shop.stripe.behave(manner);
        assert_eq!((drive(&shop).await, shop.stripe.refunds().len()), (1, 0), "{manner:?}");
        assert_eq!(state(&shop, &refund).await, ("pending".to_owned(), false), "{manner:?}");
        shop.h.advance(Duration::from_secs(3600));
    }
    shop.stripe.behave(Manner::Well);
    shop.h.advance(Duration::from_secs(25 * 3600));
    assert_eq!(drive(&shop).await, 1);
    assert_eq!((state(&shop, &refund).await.0, shop.stripe.refunds().len()), ("confirmed".to_owned(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_stripe_refuses_waits_for_a_person() {
    let shop = shop().await;
    let (started, refund) = paid_twice(&shop, 500).await;
    // A person was quicker, at Stripe itself.
    let event = shop.stripe.refund_by_hand(&started.session, 500);
    shop.deliver(&event).await.expect(200);
    assert_eq!(drive(&shop).await, 1);
    assert_eq!(state(&shop, &refund).await.0, "failed");
    let Text(why) = sqlx::query_scalar("SELECT last_error FROM refunds").fetch_one(&shop.h.app.db).await.unwrap();
    assert!(why.contains("charge_already_refunded"), "{why}");
    assert_eq!(drive(&shop).await, 0);
}

/// A bank can send back what Stripe has called `succeeded`, weeks later. The books say that the money is with the buyer.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_fails_after_it_was_made_is_told_to_a_person() {
    let shop = shop().await;
    let (_, refund) = paid_twice(&shop, 500).await;
    assert_eq!(drive(&shop).await, 1);
    assert_eq!(state(&shop, &refund).await.0, "confirmed");
    shop.h.advance(Duration::from_secs(20 * 24 * 3600));
    let failed = shop.stripe.refund_becomes(&id_of(&shop, &refund), "failed");
    shop.deliver(&failed).await.expect(422);
    assert_eq!((shop.notifications("flagged").await, state(&shop, &refund).await.0), (1, "confirmed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_failed_is_not_made_by_an_older_event() {
    let shop = shop().await;
    shop.stripe.refunds_are("pending");
    let (_, refund) = paid_twice(&shop, 500).await;
    assert_eq!(drive(&shop).await, 1);
    let earlier = shop.stripe.refund_becomes(&id_of(&shop, &refund), "succeeded");
    let later = shop.stripe.refund_becomes(&id_of(&shop, &refund), "failed");
    shop.deliver(&later).await.expect(200);
    shop.deliver(&earlier).await.expect(200);
    assert_eq!(state(&shop, &refund).await.0, "failed");
    assert_eq!((shop.notifications("refund").await, shop.notifications("ignored").await), (1, 1));
}

/// Under the key of a request Stripe repeats what it answered then, whatever has become of the refund since.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_refund_that_is_sent_again_is_looked_up_first() {
    let shop = shop().await;
    let (_, refund) = paid_twice(&shop, 500).await;
    shop.stripe.behave(Manner::CutsOff);
    assert_eq!((drive(&shop).await, shop.stripe.refunds().len()), (1, 1));
    shop.stripe.behave(Manner::Well);
    let failed = shop.stripe.refund_becomes(&id_of(&shop, &refund), "failed");
    shop.deliver(&failed).await.expect(200);
    assert_eq!(state(&shop, &refund).await.0, "failed");
    for hours in [0, 25] {
        shop.h.advance(Duration::from_secs(hours * 3600));
        let admin = shop.h.admin().await;
        let path = format!("/admin/refunds/{refund}/retry");
        assert_eq!(shop.h.post(&path, &admin, json!({})).await.expect(200)["status"], "pending");
        assert_eq!(drive(&shop).await, 1);
        assert_eq!((state(&shop, &refund).await.0, shop.stripe.refunds().len()), ("failed".to_owned(), 1), "{hours}");
    }
}

/// What Stripe says last of a refund, as the operator sees it, and the keys under which it was asked for since the last look.
async fn seen_of(shop: &Shop, refund: &str) -> (String, Vec<String>) {
    let admin = shop.h.admin().await;
    let shown = shop.h.get(&format!("/admin/refunds/{refund}"), &admin).await.expect(200);
    let keys = shop.stripe.seen().into_iter().filter(|seen| seen.path == "/v1/refunds");
    (shown.text_of("last_error"), keys.filter_map(|seen| seen.idempotency_key).collect())
}

/// Stripe repeats what it answered to a key for a day, also that the account had no cover.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_without_cover_is_made_once_when_there_is_some() {
    let shop = shop().await;
    let (_, refund) = paid_twice(&shop, 500).await;
    shop.stripe.refuses_refunds(Some("balance_insufficient"));
    shop.stripe.seen();
    for key in [refund.clone(), format!("{refund}-1")] {
        assert_eq!((drive(&shop).await, state(&shop, &refund).await), (1, ("pending".to_owned(), false)));
        let (told, keys) = seen_of(&shop, &refund).await;
        assert!(
            told.starts_with("gateway_unavailable: refund: 400") && told.contains("balance_insufficient"),
            "{told}"
        );
        assert_eq!(keys, [key]);
        shop.h.advance(Duration::from_secs(60));
    }
    shop.stripe.refuses_refunds(None);
    assert_eq!((drive(&shop).await, state(&shop, &refund).await.0), (1, "confirmed".to_owned()));
    assert_eq!(seen_of(&shop, &refund).await, (String::new(), vec![format!("{refund}-2")]));
    assert_eq!(shop.stripe.refunds().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_whose_answer_was_lost_is_heard_before_another_key_is_used() {
    let shop = shop().await;
    let (_, refund) = paid_twice(&shop, 500).await;
    shop.stripe.refuses_refunds(Some("balance_insufficient"));
    shop.stripe.behave(Manner::CutsOff);
    drive(&shop).await;
    // There is cover by now; whether something was made under the first key is not known before it is answered.
    shop.stripe.behave(Manner::Well);
    shop.stripe.refuses_refunds(None);
    shop.stripe.seen();
    for (key, ends) in [(refund.clone(), "pending"), (format!("{refund}-1"), "confirmed")] {
        shop.h.advance(Duration::from_secs(60));
        assert_eq!((drive(&shop).await, state(&shop, &refund).await.0.as_str()), (1, ends));
        assert_eq!(seen_of(&shop, &refund).await.1, [key]);
    }
    assert_eq!(shop.stripe.refunds().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refund_that_a_person_sends_again_is_really_tried() {
    let shop = shop().await;
    let (_, refund) = paid_twice(&shop, 500).await;
    shop.stripe.refuses_refunds(Some("charge_disputed"));
    drive(&shop).await;
    assert_eq!(state(&shop, &refund).await.0, "failed");
    assert!(seen_of(&shop, &refund).await.0.contains("charge_disputed"));
    // The buyer has withdrawn the dispute, an hour later.
    shop.stripe.refuses_refunds(None);
    shop.h.advance(Duration::from_secs(3600));
    let (admin, path) = (shop.h.admin().await, format!("/admin/refunds/{refund}/retry"));
    for _ in 0..2 {
        shop.h.post(&path, &admin, json!({})).await.expect(200);
    }
    assert_eq!((drive(&shop).await, state(&shop, &refund).await.0), (1, "confirmed".to_owned()));
    assert_eq!(seen_of(&shop, &refund).await.1, [format!("{refund}-1")]);
    assert_eq!(
        (shop.h.post(&path, &admin, json!({})).await.expect(200)["status"].as_str(), drive(&shop).await),
        (Some("confirmed"), 0)
    );
    assert_eq!(shop.stripe.refunds().len(), 1);
}

/// The answer is that of a moment before the failure: it may not call the money back that is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_a_failure_overtakes_confirms_nothing() {
    for asked_about in [false, true] {
        for sent_again in [false, true] {
            let shop = shop().await;
            let (_, refund) = paid_twice(&shop, 500).await;
            if asked_about {
                shop.stripe.refunds_are("pending");
                drive(&shop).await;
                shop.stripe.refund_becomes(&id_of(&shop, &refund), "succeeded");
                shop.h.advance(Duration::from_secs(60));
            }
            let (there, go) = shop.stripe.hold("/v1/refunds");
            let meanwhile = async {
                there.await.unwrap();
                let failed = shop.stripe.refund_becomes(&id_of(&shop, &refund), "failed");
                shop.deliver(&failed).await.expect(200);
                assert_eq!(state(&shop, &refund).await.0, "failed");
                if sent_again {
                    let (admin, path) = (shop.h.admin().await, format!("/admin/refunds/{refund}/retry"));
                    assert_eq!(shop.h.post(&path, &admin, json!({})).await.expect(200)["status"], "pending");
                }
                go.send(()).unwrap();
            };
            assert_eq!(tokio::join!(drive(&shop), meanwhile).0, 1);
            let stands = if sent_again { "pending" } else { "failed" };
            assert_eq!(state(&shop, &refund).await.0, stands, "{asked_about} {sent_again}");
            // Asked for once more it is found as it is.
            drive(&shop).await;
            assert_eq!((state(&shop, &refund).await.0.as_str(), shop.stripe.refunds().len()), ("failed", 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bill_of_a_day_has_every_line_in_our_currency() {
    let shop = shop().await;
    let zone = jiff::tz::TimeZone::get("Asia/Shanghai").unwrap();
    let day = || shop.h.now().timestamp().to_zoned(zone.clone());
    let (returned, refund) = paid_twice(&shop, 500).await;
    assert_eq!(drive(&shop).await, 1);
    let started = shop.start(1999).await;
    shop.deliver(&shop.stripe.pay(&started.session)).await.expect(200);
    shop.stripe.refunds_are("failed");
    let (failed, failed_refund) = paid_twice(&shop, 700).await;
    drive(&shop).await;
    shop.stripe.add_lines("stripe_fee", 150);
    shop.stripe.refunds_are("succeeded");
    shop.stripe.refund_by_hand(&started.session, 99);
    let by_hand = shop.stripe.refunds()[0]["id"].as_str().unwrap().to_owned();

    let today = day().date();
    let bill = payments::bill(&shop.h.app, payments::Gateway::Stripe, &today.to_string()).await.unwrap();
    let lines = |lines: &[payments::BillLine]| {
        let line = |line: &payments::BillLine| (line.number.clone(), line.merchant_no.clone(), line.amount.as_fen());
        let mut lines: Vec<_> = lines.iter().map(line).collect();
        lines.sort();
        lines
    };
    let mut paid: Vec<_> = [(&returned, 500), (&started, 1999), (&failed, 700)]
        .map(|(started, fen)| (started.payment.clone(), started.payment.clone(), fen))
        .into();
    paid.sort();
    assert_eq!(lines(&bill.payments), paid);
    // One that failed is taken back in a line of its own.
    let mut back = vec![
        (refund, returned.payment.clone(), 500),
        (by_hand, String::new(), 99),
        (failed_refund.clone(), failed.payment.clone(), 700),
        (failed_refund, failed.payment.clone(), -700),
    ];
    back.sort();
    assert_eq!(lines(&bill.refunds), back);
    assert!(bill.payments.iter().all(|line| day().date() == line.at.timestamp().to_zoned(zone.clone()).date()));
    let pages = shop.stripe.seen().into_iter().filter(|asked| asked.path == "/v1/balance_transactions").count();
    assert_eq!(pages, 2, "a page has a hundred lines");
    let empty = payments::bill(&shop.h.app, payments::Gateway::Stripe, &today.yesterday().unwrap().to_string()).await;
    assert_eq!(empty.unwrap().payments.len(), 0);
}
