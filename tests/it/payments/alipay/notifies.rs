//! Notifies that are forged, altered, early, repeated, out of order, or wrong; and those that never come.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_notify_is_refused_and_changes_nothing() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (no, pay) = opened(&h, &alice, 500).await;
    let notify = alipay.pay(&pay.no);
    let body = alipay.body(&notify);
    let mut stranger = notify.clone();
    stranger.set("trade_status", "TRADE_FINISHED");
    let (_, signature) = body.split_once("&sign=").unwrap();
    let unsigned = body.replace(&format!("&sign={signature}"), "");
    let forged = [
        notify.body(&alipay.keys[UNKNOWN_KEY]),
        notify.body(&alipay.merchant),
        // Somebody else's signature, and what one may try in place of one.
        alipay.body(&stranger).replace("TRADE_FINISHED", "TRADE_SUCCESS"),
        unsigned.clone(),
        format!("{unsigned}&sign="),
        format!("{unsigned}&sign=%3D%3D"),
        unsigned.replace("sign_type=RSA2", "sign_type=none&sign=none"),
        // One parameter altered, added, taken away, or there twice.
        body.replace("total_amount=5.00", "total_amount=5.01"),
        body.replace("total_amount=5.00", "total_amount=5.000"),
        format!("{body}&more=1"),
        format!("{body}&total_amount=5.00"),
        format!("trade_status=TRADE_SUCCESS&{body}"),
        body.replace("version=1.0&", ""),
        // The same text, cut into other parameters.
        body.replace("&auth_app_id=", "%26auth_app_id%3D"),
        // In another shape.
        serde_json::to_string(&notify.params).unwrap(),
        String::new(),
        "\u{0}%".to_owned(),
    ];
    for body in forged {
        let told = body.clone();
        let answer = alipay.send_body(&h, body).await;
        assert_eq!((answer.status, answer.text().as_str()), (400, "failure"), "{told}");
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    yes(alipay.send_body(&h, body).await);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    all_is_well(&h, &alipay).await;
}

/// Every byte of a notify, altered one at a time: refused, or it says what was signed (the kind of signature is not).
#[tokio::test(flavor = "multi_thread")]
async fn a_notify_altered_by_one_byte_pays_nothing_else() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (no, pay) = opened(&h, &alice, 500).await;
    let mut waiting = alipay.notify(&pay.no);
    waiting.params.retain(|(name, _)| !["fund_bill_list", "gmt_create", "notify_time"].contains(&name.as_str()));
    let body = alipay.body(&waiting).into_bytes();
    for at in (0..body.len()).step_by(3) {
        let mut altered = body.clone();
        altered[at] ^= 1;
        let answer = alipay.send_body(&h, String::from_utf8(altered).unwrap()).await;
        assert!([200, 400].contains(&answer.status), "{at}: {}", answer.text());
    }
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome <> 'ignored'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_notify_are_acknowledged_and_change_nothing() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (no, pay) = opened(&h, &alice, 500).await;
    let notify = alipay.pay(&pay.no);
    let others: Vec<Notify> = (0..10).map(|_| alipay.notify(&pay.no)).collect();
    let copies = std::iter::repeat_n(&notify, 20).chain(&others).map(|notify| alipay.send(&h, notify));
    futures_util::future::join_all(copies).await.into_iter().for_each(yes);
    // There is no window of time: what guards is that it was handled.
    for pause_s in [301, 4 * 60, 15 * 3600] {
        h.advance(Duration::from_secs(pause_s));
        yes(alipay.send(&h, &notify).await);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 1);
    assert_eq!(
        h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome NOT IN ('settled', 'repeated')").await,
        0
    );
    assert_eq!(status(&h, &alice, &no).await, "paid");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notify_that_comes_early_is_accepted_when_it_comes_again() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (order_no, pay) = opened(&h, &alice, 500).await;
    let notify = alipay.pay(&pay.no);
    // The payment is not visible yet: its transaction has not been committed.
    let id = pay.no.parse::<OrderId>().unwrap();
    let hidden = OrderId::new();
    let rename = "UPDATE payments SET id = ? WHERE id = ?";
    sqlx::query(rename).bind(hidden).bind(id).execute(&h.app.db).await.unwrap();
    no(alipay.send(&h, &notify).await, 404);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications").await, 0, "it is not taken for handled");
    sqlx::query(rename).bind(id).bind(hidden).execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(240));
    yes(alipay.send(&h, &notify).await);
    assert_eq!(status(&h, &alice, &order_no).await, "paid");
    // A number that is none of ours, whoever made it.
    for number in ["0".repeat(32), "somebody's".to_owned()] {
        let mut other = notify.clone();
        other.set("out_trade_no", &number).set("notify_id", "other");
        no(alipay.send(&h, &other).await, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_may_come_before_success_and_months_after_it() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (first, pay) = opened(&h, &alice, 500).await;
    let success = alipay.pay(&pay.no);
    alipay.becomes(&pay.no, "TRADE_FINISHED");
    let finished = alipay.notify(&pay.no);
    yes(alipay.send(&h, &finished).await);
    assert_eq!(status(&h, &alice, &first).await, "paid");
    yes(alipay.send(&h, &success).await);

    let (second, pay) = opened(&h, &alice, 700).await;
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    alipay.becomes(&pay.no, "TRADE_FINISHED");
    h.advance(Duration::from_secs(90 * 86_400));
    yes(alipay.send(&h, &alipay.notify(&pay.no)).await);
    for order in [first, second] {
        let paid = "SELECT COUNT(*) FROM orders WHERE id = ? AND status = 1";
        let id = order.parse::<OrderId>().unwrap();
        assert_eq!(sqlx::query_scalar::<_, i64>(paid).bind(id).fetch_one(&h.app.db).await.unwrap(), 1);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 2);
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_told_late_or_first_never_overwrites_the_money() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    // After the money: the notify of an earlier state was delayed.
    let (order_no, pay) = opened(&h, &alice, 500).await;
    let mut closed = alipay.notify(&pay.no);
    closed.set("trade_status", "TRADE_CLOSED");
    let waiting = alipay.notify(&pay.no);
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    yes(alipay.send(&h, &closed).await);
    yes(alipay.send(&h, &waiting).await);
    assert_eq!(status(&h, &alice, &order_no).await, "paid");
    // Before it: nobody believes it, what became of the trade is asked at once.
    let (order_no, pay) = opened(&h, &alice, 700).await;
    let mut closed = alipay.notify(&pay.no);
    closed.set("trade_status", "TRADE_CLOSED");
    alipay.pay(&pay.no);
    yes(alipay.send(&h, &closed).await);
    assert_eq!(status(&h, &alice, &order_no).await, "unpaid");
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 1);
    assert_eq!(status(&h, &alice, &order_no).await, "paid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'ignored'").await, 3);
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_changes_nothing_and_is_kept_for_a_person() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (order_no, pay) = opened(&h, &alice, 500).await;
    let good = alipay.pay(&pay.no);
    for (index, (name, value)) in [
        ("total_amount", "4.99"),
        ("total_amount", "500"),
        ("total_amount", "0.05"),
        ("seller_id", "2088000000000009"),
        ("app_id", "2021000000000009"),
        ("trans_currency", "USD"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bad = good.clone();
        bad.set(name, value).set("notify_id", &format!("bad-{index}"));
        no(alipay.send(&h, &bad).await, 422);
        no(alipay.send(&h, &bad).await, 422);
    }
    assert_eq!(status(&h, &alice, &order_no).await, "unpaid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'flagged'").await, 6);
    // What was signed and cannot be read is told and never answered with yes.
    let mut unreadable = good.clone();
    unreadable.set("total_amount", "5.001").set("notify_id", "unreadable");
    no(alipay.send(&h, &unreadable).await, 400);
    yes(alipay.send(&h, &good).await);
    assert_eq!(status(&h, &alice, &order_no).await, "paid");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notify_that_is_lost_is_found_by_asking() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (paid, pay) = opened(&h, &alice, 500).await;
    let (open, _) = opened(&h, &alice, 700).await;
    let never_opened = order(&h, &alice, 900).await;
    begin(&h, &alice, &never_opened, "page").await;
    let notify = alipay.pay(&pay.no);
    h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 3);
    assert_eq!(status(&h, &alice, &paid).await, "paid");
    assert_eq!(status(&h, &alice, &open).await, "unpaid");
    assert_eq!(status(&h, &alice, &never_opened).await, "unpaid", "a trade that does not exist is not paid");
    yes(alipay.send(&h, &notify).await);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 1);
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_keys_of_alipay_hold_at_once() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (first, pay) = opened(&h, &alice, 500).await;
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    alipay.sign_with(NEW_KEY);
    let (second, pay) = opened(&h, &alice, 700).await;
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    let (third, pay) = opened(&h, &alice, 900).await;
    alipay.pay(&pay.no);
    h.advance(Duration::from_secs(20));
    payments::query_started(&h.app).await.unwrap();
    for order in [&first, &second, &third] {
        assert_eq!(status(&h, &alice, order).await, "paid");
    }
    alipay.sign_with(UNKNOWN_KEY);
    no(alipay.send(&h, &alipay.notify(&pay.no)).await, 400);
    all_is_well(&h, &alipay).await;
}
