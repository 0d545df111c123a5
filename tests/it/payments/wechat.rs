//! WeChat Pay: what the front end is given, what its notifies may and may not do, what is believed of its answers, and that
//! its money goes back.

use onrush::auth::UserId;

use super::*;
use crate::support::gateways::wechat::{
    APPID, CERTIFICATE, MCHID, Manner, Notify, PUBLIC_KEY, Refunding, UNKNOWN, Wechat,
};

async fn shop() -> (Harness, Wechat) {
    shop_with(Vec::new()).await
}

pub(super) async fn shop_with(more: Vec<(&'static str, String)>) -> (Harness, Wechat) {
    let wechat = Wechat::start().await;
    let settings = wechat.settings().into_iter().chain(more).collect();
    let h = service_with(settings).await;
    wechat.follow(&h);
    (h, wechat)
}

async fn pay_by(h: &Harness, who: &Person, order: &str, channel: &str) -> Answer {
    let mut body = json!({ "gateway": "wechat", "channel": channel });
    if channel == "jsapi" {
        body["openid"] = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o".into();
    }
    h.post(&format!("/orders/{order}/pay"), who, body).await
}

/// Starts to pay by QR code; the payment's number.
async fn begin(h: &Harness, who: &Person, order: &str) -> String {
    pay_by(h, who, order, "native").await.expect(200).text_of("payment_no")
}

/// A person with an order, and the number of the payment that has been started.
async fn started(h: &Harness, price_fen: i64) -> (Person, String, String) {
    let alice = h.register().await;
    let no = order(h, &alice, price_fen).await;
    let payment = begin(h, &alice, &no).await;
    (alice, no, payment)
}

/// Two orders of one course, both paid at WeChat Pay: the money of the second is to go back. Its refund is owed.
async fn paid_twice(h: &Harness, wechat: &Wechat) -> String {
    let (alice, course) = (h.register().await, h.course(1999).await);
    let mut payments = Vec::new();
    for key in ["k1", "k2"] {
        let answer = h.post_once("/orders", &alice, key, json!({ "course_ids": [course.no()] })).await.expect(201);
        payments.push(begin(h, &alice, &answer.text_of("order_no")).await);
    }
    for payment in &payments {
        wechat.pay(payment).send(h).await.expect(204);
    }
    assert_eq!(resolve_late(h).await, 1);
    payments.remove(1)
}

async fn refunds(h: &Harness, status: &'static str) -> i64 {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM refunds WHERE status = ?")
        .bind(status)
        .fetch_one(&h.app.db)
        .await
        .unwrap();
    count
}

/// A notify that is refused, and why it must be.
#[track_caller]
fn is_no(answer: Answer, status: u16) {
    let answer = answer.expect(status);
    assert_eq!(answer["code"], "FAIL", "{}", answer.text());
    assert!(answer["message"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_by_qr_code_pays_the_order_and_gives_the_course() {
    let (h, wechat) = shop().await;
    h.start_workers();
    let alice = h.register().await;
    let no = order(&h, &alice, 1999).await;
    let answer = h.post(&format!("/orders/{no}/pay"), &alice, json!({ "gateway": "wechat" })).await.expect(200);
    assert!(answer.text_of("qr").starts_with("weixin://wxpay/bizpayurl"), "{}", answer.text());
    assert_eq!((answer["channel"].as_str(), &answer["pay_url"]), (Some("native"), &Value::Null));
    let payment = answer.text_of("payment_no");
    let (_, asked) = wechat.seen().remove(0);
    let expires: jiff::Timestamp = asked["time_expire"].as_str().unwrap().parse().unwrap();
    assert_eq!(expires.as_second(), h.now().plus(DEADLINE).timestamp().as_second());
    assert_eq!(asked["notify_url"], format!("{}/api/v1/payments/wechat/notify", h.base));

    let notify = wechat.pay(&payment);
    let yes = notify.send(&h).await.expect(204);
    assert!(yes.bytes.is_empty());
    h.eventually(async || h.get(&format!("/orders/{no}"), &alice).await["granted_at"].is_string()).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 1);
    // Again and again, under its own id and another.
    for copy in [notify.clone(), notify, wechat.paid(&payment, |_| {})] {
        copy.send(&h).await.expect(204);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE resolution = 'order'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_wechat_is_given_what_it_hands_on() {
    let (h, wechat) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let without = json!({ "gateway": "wechat", "channel": "jsapi" });
    h.post(&format!("/orders/{no}/pay"), &alice, without).await.problem(422, "validation_failed");
    let answer = pay_by(&h, &alice, &no, "jsapi").await.expect(200);
    let given = |name: &str| answer["jsapi"][name].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned();
    assert_eq!((given("appId").as_str(), given("signType").as_str()), (APPID, "RSA"));
    assert!(given("package").starts_with("prepay_id=wx"));
    let text = format!("{APPID}\n{}\n{}\n{}\n", given("timeStamp"), given("nonceStr"), given("package"));
    assert!(wechat.keys.merchant.signed(text.as_bytes(), &given("paySign")));
    let (_, asked) = wechat.seen().remove(0);
    assert_eq!(asked["payer"]["openid"], "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o");
    wechat.pay(&answer.text_of("payment_no")).send(&h).await.expect(204);
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_browser_of_a_phone_is_given_a_page() {
    let (h, wechat) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let answer = pay_by(&h, &alice, &no, "h5").await.expect(200);
    assert!(answer.text_of("pay_url").starts_with("https://wx.tenpay.com/"));
    let (_, asked) = wechat.seen().remove(0);
    assert_eq!(asked["scene_info"]["payer_client_ip"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_browser_whose_address_is_not_known_is_told_so() {
    let (h, wechat) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let way = payments::PaymentMethod {
        gateway: payments::Gateway::Wechat,
        channel: payments::Channel::H5,
        openid: None,
        address: None,
    };
    let refused = payments::pay(&h.app, UserId::from_uuid(alice.id), no.parse().unwrap(), &way).await.unwrap_err();
    assert_eq!(refused.kind().name(), "validation_failed");
    assert_eq!((wechat.seen().len(), h.count("SELECT COUNT(*) FROM payments").await), (0, 0));
    pay_by(&h, &alice, &no, "native").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn paying_again_goes_on_with_the_same_trade_and_another_way_with_another() {
    let (h, wechat) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    for channel in ["native", "h5", "jsapi"] {
        let first = pay_by(&h, &alice, &no, channel).await.expect(200).text_of("payment_no");
        h.advance(Duration::from_secs(60));
        let again = pay_by(&h, &alice, &no, channel).await.expect(200).text_of("payment_no");
        assert_eq!(first, again);
    }
    assert_eq!(wechat.trades(), 3);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 1);
    let open = wechat.seen().iter().filter(|(request, _)| request.ends_with("/close")).count();
    assert_eq!(open, 2, "the trades before were closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_notify_is_refused_and_changes_nothing() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    let good = wechat.pay(&payment);
    for name in ["Wechatpay-Timestamp", "Wechatpay-Nonce", "Wechatpay-Serial", "Wechatpay-Signature"] {
        is_no(good.send_without(&h, &[name]).await, 400);
    }
    let forged: [fn(&mut Notify); 7] = [
        |n| n.body[20] ^= 1,
        |n| n.body.push(b' '),
        |n| n.nonce.push('0'),
        |n| n.timestamp = (n.timestamp.parse::<i64>().unwrap() - 1).to_string(),
        |n| n.serial = "5157F09EFDC096DE15EBE81A47057A7200000001".to_owned(),
        |n| n.signature = "WECHATPAY/SIGNTEST/".to_owned() + &n.signature,
        |n| n.signature.clear(),
    ];
    for forge in forged {
        let mut notify = good.clone();
        forge(&mut notify);
        is_no(notify.send(&h).await, 400);
    }
    // Signed with a key of a name that is not configured, and by somebody who has the merchant's own.
    wechat.sign_with(UNKNOWN);
    is_no(wechat.paid(&payment, |_| {}).send(&h).await, 400);
    wechat.sign_with(PUBLIC_KEY);
    let mut own = good.clone();
    let text = [own.timestamp.as_bytes(), b"\n", own.nonce.as_bytes(), b"\n", &own.body, b"\n"].concat();
    own.signature = wechat.keys.merchant.sign(&text);
    is_no(own.send(&h).await, 400);
    // Well signed, and nonsense.
    is_no(wechat.sign(b"not json \xff".to_vec(), Duration::ZERO).send(&h).await, 400);
    is_no(wechat.sign(b"{}".to_vec(), Duration::ZERO).send(&h).await, 400);

    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    good.send(&h).await.expect(204);
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notify_that_was_recorded_is_worth_nothing_after_the_window() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    let notify = wechat.pay(&payment);
    h.advance(Duration::from_secs(301));
    is_no(notify.send(&h).await, 400);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    // WeChat Pay signs anew what it sends again.
    wechat.sign(notify.body, Duration::from_secs(300)).send(&h).await.expect(204);
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_keys_change_both_are_believed() {
    let (h, wechat) = shop().await;
    for key in [PUBLIC_KEY, CERTIFICATE] {
        wechat.sign_with(key);
        let (alice, no, payment) = started(&h, 500).await;
        wechat.pay(&payment).send(&h).await.expect(204);
        assert_eq!(status(&h, &alice, &no).await, "paid");
    }
    wechat.sign_with(UNKNOWN);
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    pay_by(&h, &alice, &no, "native").await.problem(503, "gateway_unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_does_not_fit_changes_nothing_and_is_kept_for_a_person() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    wechat.pay(&payment);
    let wrong: [fn(&mut Value); 5] = [
        |trade| trade["amount"]["total"] = 499.into(),
        |trade| trade["amount"]["total"] = 501.into(),
        |trade| trade["amount"]["currency"] = "USD".into(),
        |trade| trade["mchid"] = "1900000108".into(),
        |trade| trade["appid"] = "wx0000000000000000".into(),
    ];
    for change in wrong {
        let notify = wechat.paid(&payment, change);
        is_no(notify.send(&h).await, 422);
        is_no(notify.send(&h).await, 422);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'flagged'").await, 5);
    // Whoever judges them sees what was sealed, and what of it is wrong.
    let admin = h.admin().await;
    let list = h.get("/admin/payments/notifications?outcome=flagged", &admin).await.expect(200);
    let details: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|it| it["detail"].as_str().unwrap()).collect();
    let ours = "1900000109 wxd678efh567hg6787";
    assert_eq!(
        details,
        [
            format!("for another merchant: 1900000109 wx0000000000000000 instead of {ours}"),
            format!("for another merchant: 1900000108 wxd678efh567hg6787 instead of {ours}"),
            "currency USD instead of CNY".to_owned(),
            "501 fen instead of 500".to_owned(),
            "499 fen instead of 500".to_owned(),
        ]
    );
    let one = format!("/admin/payments/notifications/{}", list["items"][4]["id"].as_str().unwrap());
    let shown = h.get(&one, &admin).await.expect(200);
    assert_eq!(
        (&shown["body"]["resource"]["ciphertext"], &shown["message"]["merchant"]),
        (&"***".into(), &ours.into())
    );
    let said = &shown["message"]["said"]["paid"];
    assert_eq!((&said["amount"], &said["currency"]), (&499.into(), &"CNY".into()), "{}", shown.text());
    assert_eq!(shown["message"]["payment"], payment);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 1);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    wechat.paid(&payment, |_| {}).send(&h).await.expect(204);
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notify_for_a_payment_that_is_not_there_is_to_come_again() {
    let (h, wechat) = shop().await;
    let (_, _, payment) = started(&h, 500).await;
    wechat.pay(&payment);
    for number in ["0".repeat(32), "nonsense".to_owned()] {
        is_no(wechat.paid(&payment, |trade| trade["out_trade_no"] = number.into()).send(&h).await, 404);
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_told_first_or_late_never_overwrites_the_money() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    let paid = wechat.pay(&payment);
    let closed = |trade: &mut Value| trade["trade_state"] = "CLOSED".into();
    wechat.paid(&payment, closed).send(&h).await.expect(204);
    assert_eq!(status(&h, &alice, &no).await, "unpaid");
    // Nobody believes it: the trade is asked.
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 1);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    paid.send(&h).await.expect(204);
    wechat.paid(&payment, closed).send(&h).await.expect(204);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    // A trade that was paid and is refunded in part: nothing is granted twice.
    wechat.paid(&payment, |trade| trade["trade_state"] = "REFUND".into()).send(&h).await.expect(204);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'settled'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notify_that_is_lost_is_found_by_asking() {
    let (h, wechat) = shop().await;
    let (alice, paid, payment) = started(&h, 500).await;
    let open = order(&h, &alice, 700).await;
    begin(&h, &alice, &open).await;
    wechat.pay(&payment);
    h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 2);
    assert_eq!(status(&h, &alice, &paid).await, "paid");
    assert_eq!(status(&h, &alice, &open).await, "unpaid");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_trusted_moves_nothing() {
    let (h, wechat) = shop_with(vec![("payments.gateway_timeout_ms", "1000".to_owned())]).await;
    let (alice, no, payment) = started(&h, 500).await;
    wechat.pay(&payment);
    let back = format!("/payments/wechat/return?payment_no={payment}");
    for manner in [
        Manner::Unsigned,
        Manner::Altered,
        Manner::Stale,
        Manner::UnknownKey,
        Manner::CutsOff,
        Manner::Broken,
        Manner::Hangs,
    ] {
        wechat.behave(manner);
        assert_eq!(h.get(&back, ()).await.expect(200)["status"], "unpaid", "{manner:?}");
        let other = order(&h, &alice, 500).await;
        pay_by(&h, &alice, &other, "native").await.problem(503, "gateway_unavailable");
        wechat.behave(Manner::Well);
        pay_by(&h, &alice, &other, "native").await.expect(200);
    }
    assert_eq!(h.get(&back, ()).await.expect(200)["status"], "paid");
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_over_closes_its_trade_first() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(wechat.trade(&payment)["trade_state"], "CLOSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_comes_too_late_settles_the_money() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    wechat.pays_at_close();
    h.post(&format!("/orders/{no}/cancel"), &alice, json!({})).await.problem(409, "order_state");
    assert_eq!(status(&h, &alice, &no).await, "paid");
    assert_eq!(wechat.trade(&payment)["trade_state"], "SUCCESS");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_stays_open_while_its_trade_cannot_be_closed() {
    let (h, wechat) = shop_with(vec![("payments.gateway_timeout_ms", "1000".to_owned())]).await;
    let (alice, no, payment) = started(&h, 500).await;
    h.advance(DEADLINE);
    for manner in [Manner::Broken, Manner::Unsigned, Manner::Stale, Manner::UnknownKey] {
        wechat.behave(manner);
        payments::sweep_due(&h.app).await.unwrap();
        assert_eq!(status(&h, &alice, &no).await, "unpaid", "{manner:?}");
    }
    wechat.behave(Manner::Well);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(wechat.trade(&payment)["trade_state"], "CLOSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn money_for_an_order_that_is_dead_comes_to_be_decided() {
    let (h, wechat) = shop().await;
    let (alice, no, payment) = started(&h, 500).await;
    let paid = wechat.pay(&payment);
    // The notify and every answer are lost, and a person ends the order by hand.
    sqlx::query("UPDATE payments SET status = 'closed'").execute(&h.app.db).await.unwrap();
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    wechat.sign(paid.body, Duration::ZERO).send(&h).await.expect(204);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE resolution = 'owed'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_came_twice_goes_back_once() {
    let (h, wechat) = shop_with(vec![("payments.gateway_timeout_ms", "1000".to_owned())]).await;
    let payment = paid_twice(&h, &wechat).await;
    // The answers of the first tries are lost.
    wechat.behave(Manner::CutsOff);
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(refunds(&h, "pending").await, 1);
    wechat.behave(Manner::Well);
    h.advance(Duration::from_secs(5));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(refunds(&h, "confirmed").await, 1);
    let made = wechat.refunds();
    assert_eq!(made.len(), 1);
    assert_eq!((&made[0]["out_trade_no"], &made[0]["amount"]["refund"]), (&json!(payment), &json!(1999)));
    assert_eq!(wechat.trade(&payment)["trade_state"], "REFUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_under_way_ends_by_its_notify_or_by_asking() {
    let (h, wechat) = shop().await;
    wechat.refund(Refunding::Slowly);
    for by_notify in [true, false] {
        paid_twice(&h, &wechat).await;
        assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
        assert_eq!(refunds(&h, "pending").await, 1);
        let under_way = wechat.refunds().into_iter().find(|refund| refund["status"] == "PROCESSING").unwrap();
        let notify = wechat.end_refund(under_way["out_refund_no"].as_str().unwrap(), "SUCCESS");
        if by_notify {
            notify.send(&h).await.expect(204);
        } else {
            h.advance(Duration::from_secs(10));
            assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
        }
        assert_eq!(refunds(&h, "pending").await, 0);
        // The same word again changes nothing.
        wechat.sign(notify.body, Duration::ZERO).send(&h).await.expect(204);
    }
    assert_eq!(refunds(&h, "confirmed").await, 2);
    let sent = wechat.seen().iter().filter(|(request, _)| request == "POST /v3/refund/domestic/refunds").count();
    assert_eq!(sent, 2, "what is under way is asked about, not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_fails_at_last_waits_for_a_person() {
    let (h, wechat) = shop().await;
    wechat.refund(Refunding::Abnormally);
    paid_twice(&h, &wechat).await;
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(refunds(&h, "failed").await, 1);
    wechat.refund(Refunding::Slowly);
    for (failed, status) in [(2, "ABNORMAL"), (3, "CLOSED")] {
        paid_twice(&h, &wechat).await;
        assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
        let under_way = wechat.refunds().into_iter().find(|refund| refund["status"] == "PROCESSING").unwrap();
        wechat.end_refund(under_way["out_refund_no"].as_str().unwrap(), status).send(&h).await.expect(204);
        assert_eq!(refunds(&h, "failed").await, failed);
    }
    h.advance(Duration::from_secs(24 * 3600));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 0, "never again by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_for_which_there_is_no_money_yet_is_tried_again() {
    let (h, wechat) = shop().await;
    wechat.refund(Refunding::NotNow);
    paid_twice(&h, &wechat).await;
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(refunds(&h, "pending").await, 1);
    wechat.refund(Refunding::AtOnce);
    h.advance(Duration::from_secs(5));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(refunds(&h, "confirmed").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_notify_of_another_merchant_changes_nothing() {
    let (h, wechat) = shop().await;
    wechat.refund(Refunding::Slowly);
    let payment = paid_twice(&h, &wechat).await;
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    let refund = wechat.refunds().remove(0);
    let told = |mchid: &str, no: &Value| {
        json!({
            "mchid": mchid, "out_trade_no": payment, "out_refund_no": no, "refund_status": "SUCCESS",
            "amount": { "total": 1999, "refund": 1999, "payer_total": 1999, "payer_refund": 1999 },
        })
    };
    let theirs = wechat.notify("REFUND.SUCCESS", &told("1900000108", &refund["out_refund_no"]));
    is_no(theirs.send(&h).await, 422);
    assert_eq!(refunds(&h, "pending").await, 1);
    wechat.notify("REFUND.SUCCESS", &told(MCHID, &refund["out_refund_no"])).send(&h).await.expect(204);
    assert_eq!(refunds(&h, "confirmed").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bill_of_a_day_lists_what_moved() {
    let (h, wechat) = shop().await;
    let day = h.now().timestamp().in_tz("Asia/Shanghai").unwrap().date().to_string();
    let bill = async |day: &str| payments::bill(&h.app, payments::Gateway::Wechat, day).await;
    let none = bill(&day).await.unwrap();
    assert!(none.payments.is_empty() && none.refunds.is_empty());
    let twice = paid_twice(&h, &wechat).await;
    payments::drive_refunds(&h.app).await.unwrap();
    begin_unpaid(&h).await;
    let some = bill(&day).await.unwrap();
    assert_eq!(some.payments.iter().map(|line| line.amount.as_fen()).collect::<Vec<_>>(), [1999, 1999]);
    let line = &some.refunds[0];
    assert_eq!((&line.merchant_no, line.amount.as_fen(), some.refunds.len()), (&twice, 1999, 1));
    assert_eq!(json!(line.number), wechat.refunds()[0]["out_refund_no"]);
    assert_eq!(line.at.timestamp().as_second(), h.now().timestamp().as_second());
    wechat.behave(Manner::Altered);
    assert!(bill(&day).await.is_err(), "nobody knows what the file should be");
}

async fn begin_unpaid(h: &Harness) {
    started(h, 700).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_merchant_number_there_is_no_wechat_pay() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    pay_by(&h, &alice, &no, "native").await.problem(422, "validation_failed");
    h.post("/payments/wechat/notify", (), json!({})).await.problem(404, "not_found");
}
