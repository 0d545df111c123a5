//! Callbacks that are forged, early, repeated, out of order, or wrong.

use super::*;
use crate::support::PrivateServers;

/// The sandbox's word for no.
#[track_caller]
fn is_no(answer: Answer, status: u16) {
    assert_eq!((answer.status, answer.text().as_str()), (status, "failure"));
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_callback_is_refused_and_changes_nothing() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let body = serde_json::to_vec(&paid_body("n1", &attempt.payment_no, &attempt.trade, 500)).unwrap();
    let (timestamp, signature) = secret().sign(&body, h.now());
    let (t, s) = (|| Some(timestamp.clone()), || Some(signature.clone()));

    let mut altered = body.clone();
    let at = altered.iter().position(|byte| *byte == b'5').unwrap();
    altered[at] = b'6';
    is_no(raw_notify(&h, altered, t(), s()).await, 400);
    is_no(raw_notify(&h, body.clone(), None, s()).await, 400);
    is_no(raw_notify(&h, body.clone(), t(), None).await, 400);
    is_no(raw_notify(&h, body.clone(), Some(String::new()), s()).await, 400);
    is_no(raw_notify(&h, body.clone(), t(), Some(String::new())).await, 400);
    let (_, foreign) = SharedSecret::new(b"another-secret-of-16").sign(&body, h.now());
    is_no(raw_notify(&h, body.clone(), t(), Some(foreign)).await, 400);
    let (_, empty) = SharedSecret::new(b"").sign(&body, h.now());
    is_no(raw_notify(&h, body.clone(), t(), Some(empty)).await, 400);
    let (old, signed_then) = secret().sign(&body, h.now().minus(Duration::from_secs(301)));
    is_no(raw_notify(&h, body.clone(), Some(old), Some(signed_then)).await, 400);
    let garbage = b"not json \xff".to_vec();
    let (at, signed) = secret().sign(&garbage, h.now());
    is_no(raw_notify(&h, garbage, Some(at), Some(signed)).await, 400);

    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    let yes = raw_notify(&h, body, t(), s()).await.expect(200);
    assert_eq!(yes.text(), "success");
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_for_a_payment_that_is_not_there_is_refused_and_forgotten() {
    let h = service().await;
    for payment_no in ["0".repeat(32), "nonsense".to_owned(), String::new()] {
        let answer = notify(&h, &paid_body("n1", &payment_no, "t1", 500)).await.expect(404);
        assert_eq!(answer.text(), "failure");
    }
    h.post("/payments/paypal/notify", (), json!({})).await.problem(404, "not_found");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_comes_early_is_accepted_when_it_comes_again() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    // The payment is not visible yet: its transaction has not been committed.
    let id = attempt.payment_no.parse::<OrderId>().unwrap();
    let hidden = OrderId::new();
    let rename = "UPDATE payments SET id = ? WHERE id = ?";
    sqlx::query(rename).bind(hidden).bind(id).execute(&h.app.db).await.unwrap();
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    assert_eq!(deliver(&h).await, 1);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    assert_eq!(deliver(&h).await, 0, "it waits before it sends again");

    sqlx::query(rename).bind(id).bind(hidden).execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(1));
    assert_eq!(deliver(&h).await, 1);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    h.advance(Duration::from_secs(24 * 3600));
    assert_eq!(deliver(&h).await, 0, "it heard yes");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_callback_are_acknowledged_and_change_nothing() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    let body = paid_body("n1", &attempt.payment_no, &attempt.trade, 500);
    // At once, under one id and under many.
    let others: Vec<Value> =
        (0..10).map(|i| paid_body(&format!("other-{i}"), &attempt.payment_no, &attempt.trade, 500)).collect();
    let copies = std::iter::repeat_n(&body, 20).chain(&others).map(|body| notify(&h, body));
    for answer in futures_util::future::join_all(copies).await {
        assert_eq!(answer.expect(200).text(), "success");
    }
    h.advance(Duration::from_secs(3600));
    assert_eq!(notify(&h, &body).await.expect(200).text(), "success");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE notify_id = 'n1'").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 1);
    assert_eq!(
        h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome NOT IN ('settled', 'repeated')").await,
        0
    );
    assert_eq!(status(&h, &alice, &no).await, "paid");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_told_twice_under_two_ids_pays_once() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay_twice").await.expect(200);
    assert_eq!(deliver(&h).await, 2);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_notifies WHERE confirmed_at IS NOT NULL").await, 2);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_told_late_or_first_never_overwrites_the_money() {
    let h = service().await;
    let alice = h.register().await;
    // The failure comes after the success.
    let first = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &first).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    deliver(&h).await;
    buyer(&h, &attempt.trade, "action=fail").await.expect(200);
    assert_eq!(deliver(&h).await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_notifies WHERE confirmed_at IS NULL").await, 0);
    assert_eq!(status(&h, &alice, &first).await, "paid");
    // And before it.
    let second = order(&h, &alice, 700).await;
    let attempt = start(&h, &alice, &second).await;
    let mut failed = paid_body("failed-first", &attempt.payment_no, &attempt.trade, 0);
    failed["code"] = "200000".into();
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    assert_eq!(notify(&h, &failed).await.expect(200).text(), "success");
    assert_eq!(status(&h, &alice, &second).await, "unpaid");
    // Nobody believes it: what became of the payment is asked at once.
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 1);
    assert_eq!(status(&h, &alice, &second).await, "paid");
    deliver(&h).await;
    assert_eq!(status(&h, &alice, &second).await, "paid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'ignored'").await, 2);
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_amount_changes_nothing_and_is_kept_for_a_person() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay_wrong_amount&amount_fen=499").await.expect(200);
    assert_eq!(deliver(&h).await, 1);
    h.advance(Duration::from_secs(1));
    assert_eq!(deliver(&h).await, 1, "it was answered no, so it comes again");
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'flagged'").await, 1);
    for bad in [paid_body("n2", &attempt.payment_no, &attempt.trade, 501), {
        let mut dollars = paid_body("n3", &attempt.payment_no, &attempt.trade, 500);
        dollars["currency"] = "USD".into();
        dollars
    }] {
        assert_eq!(notify(&h, &bad).await.expect(422).text(), "failure");
        assert_eq!(notify(&h, &bad).await.expect(422).text(), "failure", "a copy of what was flagged");
    }
    // The order does not hold its coupon and unit for ever: it dies at its time, the money is a person's to decide.
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid'").await, 0);
    // Should the right amount come after all, it counts.
    assert_eq!(
        notify(&h, &paid_body("n4", &attempt.payment_no, &attempt.trade, 500)).await.expect(200).text(),
        "success"
    );
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE resolution = 'owed'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn money_for_another_merchant_changes_nothing() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let mut theirs = paid_body("n1", &attempt.payment_no, &attempt.trade, 500);
    theirs["merchant_id"] = "somebody-else".into();
    assert_eq!(notify(&h, &theirs).await.expect(422).text(), "failure");
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'flagged'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_is_lost_is_found_by_asking() {
    let h = service().await;
    let alice = h.register().await;
    let (paid, open) = (order(&h, &alice, 500).await, order(&h, &alice, 700).await);
    let attempt = start(&h, &alice, &paid).await;
    start(&h, &alice, &open).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 0, "not yet");
    h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 2);
    assert_eq!(status(&h, &alice, &paid).await, "paid");
    assert_eq!(status(&h, &alice, &open).await, "unpaid");
    // Each at a growing interval: 20 s, 40 s, ...
    h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 1);
    h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 0);
    deliver(&h).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_not_acknowledged_while_the_database_is_down() {
    let mut servers = PrivateServers::start().await;
    let settings = vec![("database.acquire_timeout_ms", "3000".to_owned())];
    let h = Harness::with(Options { servers: Some(servers.addresses()), settings, ..Options::default() }).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let body = paid_body("n1", &attempt.payment_no, &attempt.trade, 500);
    servers.change(|s| s.mysql.kill()).await;
    notify(&h, &body).await.problem(503, "unavailable");
    servers.change(|s| s.mysql.start()).await;
    h.eventually(async || notify(&h, &body).await.status == 200).await;
    assert_eq!(status(&h, &alice, &no).await, "paid");
}
