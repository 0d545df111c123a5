//! Money that goes back by Alipay, and what it tells of it.

use super::*;
use onrush::platform::text::Text;

/// Money for an order that has died, which is to go back: the payment's number.
async fn too_late(h: &Harness, alipay: &Alipay, who: &Person, fen: i64) -> String {
    let (no, pay) = opened(h, who, fen).await;
    let paid = alipay.pay(&pay.no);
    // Closed behind the gateway's back, as after a long outage.
    for table in
        ["UPDATE orders SET status = 3 WHERE id = ?", "UPDATE payments SET status = 'closed' WHERE order_id = ?"]
    {
        sqlx::query(table).bind(no.parse::<OrderId>().unwrap()).execute(&h.app.db).await.unwrap();
    }
    sqlx::query("UPDATE orders SET released_at = ?, closed_at = ? WHERE id = ?")
        .bind(h.now())
        .bind(h.now())
        .bind(no.parse::<OrderId>().unwrap())
        .execute(&h.app.db)
        .await
        .unwrap();
    // What it held cannot be held again: the course is the buyer's by another order.
    sqlx::query(
        "INSERT INTO user_courses (user_id, course_id, order_id, granted_at) SELECT o.user_id, i.course_id, ?, ? \
                 FROM orders o JOIN order_items i ON i.order_id = o.id WHERE o.id = ?",
    )
    .bind(OrderId::new())
    .bind(h.now())
    .bind(no.parse::<OrderId>().unwrap())
    .execute(&h.app.db)
    .await
    .unwrap();
    yes(alipay.send(h, &paid).await);
    resolve_late(h).await;
    pay.no
}

async fn refund_status(h: &Harness, payment_no: &str) -> String {
    let sql = "SELECT status FROM refunds WHERE payment_id = ?";
    let status = sqlx::query_scalar(sql).bind(payment_no.parse::<OrderId>().unwrap()).fetch_one(&h.app.db).await;
    status.map(|Text(status)| status).unwrap()
}

async fn drive(h: &Harness) {
    h.advance(Duration::from_secs(3600));
    payments::drive_refunds(&h.app).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn late_money_goes_back_once() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let payment = too_late(&h, &alipay, &alice, 500).await;
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "confirmed");
    drive(&h).await;
    let back: Vec<i64> = alipay.refunds(&payment).into_iter().map(|(_, fen)| fen).collect();
    assert_eq!(back, [500]);
    assert_eq!(alipay.status(&payment), Some("TRADE_CLOSED"));
    // The notify of it, and one that looks like an unpaid trade's.
    yes(alipay.send(&h, &alipay.notify_refund(&payment)).await);
    yes(alipay.send(&h, &alipay.notify(&payment)).await);
    assert_eq!(refund_status(&h, &payment).await, "confirmed");
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid'").await, 1);
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_takes_a_while_is_asked_about_until_it_has_happened() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let payment = too_late(&h, &alipay, &alice, 500).await;
    alipay.refund(Refunding::Slowly);
    for _ in 0..3 {
        drive(&h).await;
        assert_eq!(refund_status(&h, &payment).await, "pending");
    }
    assert!(alipay.seen().iter().any(|(method, _)| method == "alipay.trade.fastpay.refund.query"));
    alipay.end_refunds();
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "confirmed");
    assert_eq!(alipay.refunds(&payment).len(), 1);
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_alipay_lost_is_sent_again_with_its_number() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let payment = too_late(&h, &alipay, &alice, 500).await;
    alipay.refund(Refunding::Forgotten);
    drive(&h).await;
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "pending");
    alipay.refund(Refunding::AtOnce);
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "confirmed");
    assert_eq!(alipay.refunds(&payment).len(), 1);
    let numbers: Vec<Value> = alipay.seen().into_iter().map(|(_, content)| content["out_request_no"].clone()).collect();
    let mut refunds: Vec<&Value> = numbers.iter().filter(|number| number.is_string()).collect();
    refunds.dedup();
    assert_eq!(refunds.len(), 1, "{refunds:?}");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_money_is_tried_again_and_a_refusal_waits_for_a_person() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let payment = too_late(&h, &alipay, &alice, 500).await;
    alipay.refund(Refunding::NoMoney);
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "pending");
    alipay.refund(Refunding::AtOnce);
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "confirmed");

    let payment = too_late(&h, &alipay, &alice, 700).await;
    alipay.refund(Refunding::Never);
    drive(&h).await;
    assert_eq!(refund_status(&h, &payment).await, "failed");
    alipay.seen();
    drive(&h).await;
    assert_eq!(alipay.seen(), Vec::new(), "a person decides");
    all_is_well(&h, &alipay).await;
}

/// The first try succeeded and its answer was lost: the repeat is no second refund, whatever Alipay says to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_whose_answer_is_lost_happens_once() {
    let settings = vec![("payments.gateway_timeout_ms", "1500".to_owned())];
    let (h, alipay) = shop_with(settings).await;
    let alice = h.register().await;
    for manner in [Manner::CutsOff, Manner::Altered, Manner::Unsigned, Manner::OfAnother] {
        let payment = too_late(&h, &alipay, &alice, 500).await;
        alipay.behave(manner);
        drive(&h).await;
        assert_eq!(refund_status(&h, &payment).await, "pending", "{manner:?}");
        assert_eq!(alipay.refunds(&payment).len(), 1, "{manner:?}");
        alipay.behave(Manner::Well);
        drive(&h).await;
        assert_eq!(refund_status(&h, &payment).await, "confirmed", "{manner:?}");
        assert_eq!(alipay.refunds(&payment).len(), 1, "{manner:?}");
    }
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_under_way_is_confirmed_by_its_notify() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let payment = too_late(&h, &alipay, &alice, 500).await;
    alipay.refund(Refunding::Slowly);
    drive(&h).await;
    alipay.end_refunds();
    let told = alipay.notify_refund(&payment);
    let mut of_another = told.clone();
    of_another.set("out_biz_no", &"0".repeat(32)).set("notify_id", "of-another");
    no(alipay.send(&h, &of_another).await, 422);
    assert_eq!(refund_status(&h, &payment).await, "pending");
    yes(alipay.send(&h, &told).await);
    yes(alipay.send(&h, &told).await);
    assert_eq!(refund_status(&h, &payment).await, "confirmed");
    all_is_well(&h, &alipay).await;
}

/// Its trade is still `TRADE_SUCCESS`: read as paid, it would give the courses once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_partial_refund_with_the_state_of_a_paid_trade_never_grants_twice() {
    let (h, alipay) = shop().await;
    h.start_workers();
    let alice = h.register().await;
    let (order_no, pay) = opened(&h, &alice, 500).await;
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    h.eventually(async || h.count("SELECT COUNT(*) FROM user_courses").await == 1).await;
    // By hand, at Alipay's own desk.
    let partial = |number: &str, fen: i64| {
        let mut notify = alipay.notify(&pay.no);
        notify.set("refund_fee", &yuan(fen)).set("gmt_refund", "2026-11-20 22:00:00.123").set("out_biz_no", number);
        notify
    };
    yes(alipay.send(&h, &partial("HZ01RF001", 100)).await);
    yes(alipay.send(&h, &partial("HZ01RF002", 200)).await);
    alipay.becomes(&pay.no, "TRADE_CLOSED");
    yes(alipay.send(&h, &partial("HZ01RF003", 500)).await);
    assert_eq!(status(&h, &alice, &order_no).await, "paid");
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid' AND resolution = 'order'").await, 1);
    all_is_well(&h, &alipay).await;
}
