//! Alipay, over real HTTP with a gateway that is as strict as the real one.

mod answers;
mod bills;
mod notifies;
mod refunds;

use onrush::payments::Gateway;
use onrush::platform::text::Text;
use reqwest::Url;

use super::*;
use crate::support::gateways::alipay::{Alipay, Manner, NEW_KEY, Notify, Refunding, UNKNOWN_KEY, bill_line, yuan};

/// A service with Alipay, and its Alipay.
async fn shop() -> (Harness, Alipay) {
    shop_with(Vec::new()).await
}

pub(super) async fn shop_with(more: Vec<(&'static str, String)>) -> (Harness, Alipay) {
    let alipay = Alipay::start().await;
    let h = service_with([alipay.settings(), more].concat()).await;
    alipay.follow(&h);
    (h, alipay)
}

/// An attempt to pay by Alipay.
struct Pay {
    no: String,
    url: String,
    qr: String,
}

async fn begin(h: &Harness, who: &Person, order: &str, channel: &str) -> Pay {
    let body = json!({"gateway": "alipay", "channel": channel});
    let answer = h.post(&format!("/orders/{order}/pay"), who, body).await.expect(200);
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Pay { no: answer.text_of("payment_no"), url: text("pay_url"), qr: text("qr") }
}

/// The buyer's browser goes to the page; what Alipay says.
async fn open(h: &Harness, pay: &Pay) -> Answer {
    send(h.client.http.get(&pay.url)).await
}

/// An order of which the buyer has opened the page: its number, and the attempt.
async fn opened(h: &Harness, who: &Person, fen: i64) -> (String, Pay) {
    let no = order(h, who, fen).await;
    let pay = begin(h, who, &no, "page").await;
    open(h, &pay).await.expect(200);
    (no, pay)
}

#[track_caller]
fn yes(answer: Answer) {
    assert_eq!((answer.status, answer.text().as_str()), (200, "success"));
}

#[track_caller]
fn no(answer: Answer, status: u16) {
    assert_eq!((answer.status, answer.text().as_str()), (status, "failure"));
}

/// None of our requests was ever refused, and no course was given twice or for nothing.
pub(super) async fn all_is_well(h: &Harness, alipay: &Alipay) {
    assert_eq!(alipay.refused(), Vec::<String>::new());
    let twice = "SELECT COUNT(*) FROM (SELECT order_id FROM payments WHERE resolution = 'order' \
                 GROUP BY order_id HAVING COUNT(*) > 1) twice";
    assert_eq!(h.count(twice).await, 0);
    let unpaid = "SELECT COUNT(*) FROM orders o WHERE o.status = 1 AND NOT EXISTS (SELECT 1 FROM payments p \
                  WHERE p.order_id = o.id AND p.resolution = 'order' AND p.amount_fen = o.payable_fen)";
    assert_eq!(h.count(unpaid).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_paid_gives_the_course() {
    let (h, alipay) = shop().await;
    h.start_workers();
    let alice = h.register().await;
    let (no, pay) = opened(&h, &alice, 1999).await;
    assert_eq!(alipay.seen().len(), 0, "a page is signed and nobody is asked");
    let notify = alipay.pay(&pay.no);
    yes(alipay.send(&h, &notify).await);
    h.eventually(async || {
        let order = h.get(&format!("/orders/{no}"), &alice).await;
        order["status"] == "paid" && order["granted_at"].is_string()
    })
    .await;
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 1);
    let Text(trade_no) =
        sqlx::query_scalar("SELECT gateway_trade_no FROM payments").fetch_one(&h.app.db).await.unwrap();
    assert_eq!(trade_no, notify.get("trade_no"));
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_scanned_and_paid_pays_the_order() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 5).await;
    let pay = begin(&h, &alice, &no, "qr").await;
    assert_eq!((pay.url.as_str(), pay.qr.is_empty()), ("", false));
    assert_eq!(begin(&h, &alice, &no, "qr").await.no, pay.no, "asking again goes on with the same");
    assert_eq!(alipay.status(&pay.no), None);
    alipay.scan(&pay.qr);
    yes(alipay.send(&h, &alipay.notify(&pay.no)).await);
    assert_eq!(status(&h, &alice, &no).await, "unpaid", "it waits for the buyer");
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    h.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "alipay"})).await.problem(409, "order_state");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_for_a_trade_that_has_been_paid_settles_it() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let pay = begin(&h, &alice, &no, "qr").await;
    alipay.scan(&pay.qr);
    alipay.pay(&pay.no);
    let qr = json!({"gateway": "alipay", "channel": "qr"});
    h.post(&format!("/orders/{no}/pay"), &alice, qr.clone()).await.problem(409, "order_state");
    assert_eq!(status(&h, &alice, &no).await, "paid");
    // One that was closed at Alipay's own desk is followed by a new one.
    let no = order(&h, &alice, 700).await;
    let pay = begin(&h, &alice, &no, "qr").await;
    alipay.scan(&pay.qr);
    alipay.becomes(&pay.no, "TRADE_CLOSED");
    assert_ne!(begin(&h, &alice, &no, "qr").await.no, pay.no);
    all_is_well(&h, &alipay).await;
}

/// The page is a signed address: it carries the order's expiry, and where to notify, and nothing secret.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_dies_with_its_order() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let answer = h.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "alipay"})).await.expect(200);
    assert_eq!(answer["channel"], "page", "the first channel is taken when none is named");
    let pay = Pay { no: answer.text_of("payment_no"), url: answer.text_of("pay_url"), qr: String::new() };
    let url = Url::parse(&pay.url).unwrap();
    let of = |name: &str| url.query_pairs().find(|(known, _)| known == name).unwrap().1.into_owned();
    assert_eq!(of("notify_url"), format!("{}/api/v1/payments/alipay/notify", h.client.base));
    assert_eq!(of("return_url"), format!("{}/api/v1/payments/alipay/return", h.client.base));
    let content: Value = serde_json::from_str(&of("biz_content")).unwrap();
    assert_eq!(
        (content["out_trade_no"].as_str(), content["total_amount"].as_str()),
        (Some(pay.no.as_str()), Some("5.00"))
    );
    // Its last second is before the order's own.
    let expires: onrush::platform::clock::At = answer.text_of("expires_at").parse().unwrap();
    let local = jiff::tz::offset(8).to_datetime(expires.timestamp()).strftime("%Y-%m-%d %H:%M:%S").to_string();
    assert_eq!(content["time_expire"].as_str(), Some(local.as_str()));
    h.advance(DEADLINE);
    let late = open(&h, &pay).await;
    assert_ne!(late.status, 200, "{}", late.text());
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(alipay.status(&pay.no), None, "nobody had opened it, and that is no error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_opened_and_not_paid_is_closed_with_its_order() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (cancelled, first) = opened(&h, &alice, 500).await;
    h.post(&format!("/orders/{cancelled}/cancel"), &alice, json!({})).await.expect(200);
    assert_eq!(alipay.status(&first.no), Some("TRADE_CLOSED"));
    let asked: Vec<String> = alipay.seen().into_iter().map(|(method, _)| method).collect();
    assert_eq!(asked, ["alipay.trade.query", "alipay.trade.close"]);
    // At its time the trade dies by itself.
    let (late, second) = opened(&h, &alice, 700).await;
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &late).await, "timed_out");
    assert_eq!(alipay.status(&second.no), Some("TRADE_CLOSED"));
    // Also just between the question and the close.
    let (third, pay) = opened(&h, &alice, 900).await;
    alipay.before_close("TRADE_CLOSED");
    h.post(&format!("/orders/{third}/cancel"), &alice, json!({})).await.expect(200);
    assert_eq!(alipay.status(&pay.no), Some("TRADE_CLOSED"));
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_says_paid_settles_the_order() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    for paid in ["TRADE_SUCCESS", "TRADE_FINISHED"] {
        let (no, pay) = opened(&h, &alice, 500).await;
        alipay.before_close(paid);
        h.post(&format!("/orders/{no}/cancel"), &alice, json!({})).await.problem(409, "order_state");
        assert_eq!(status(&h, &alice, &no).await, "paid", "{paid}");
        yes(alipay.send(&h, &alipay.notify(&pay.no)).await);
    }
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_way_to_pay_ends_the_first() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (no, page) = opened(&h, &alice, 500).await;
    let code = begin(&h, &alice, &no, "qr").await;
    assert_ne!(page.no, code.no);
    assert_eq!(alipay.status(&page.no), Some("TRADE_CLOSED"));
    alipay.scan(&code.qr);
    yes(alipay.send(&h, &alipay.pay(&code.no)).await);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_comes_back_is_believed_nothing_but_the_number() {
    let (h, alipay) = shop().await;
    let alice = h.register().await;
    let (no, pay) = opened(&h, &alice, 500).await;
    // As Alipay adds them; they are asked about and not believed.
    let back = format!(
        "/payments/alipay/return?charset=utf-8&out_trade_no={}&method=alipay.trade.page.pay.return&total_amount=5.00\
         &sign=x&trade_no=1&seller_id=2088000000000001&timestamp=2026-11-20+21%3A00%3A00",
        pay.no
    );
    assert_eq!(h.get(&back, ()).await.expect(200)["status"], "unpaid");
    alipay.pay(&pay.no);
    assert_eq!(h.get(&back, ()).await.expect(200)["status"], "paid");
    assert_eq!(status(&h, &alice, &no).await, "paid");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_without_alipay_does_not_offer_it() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    h.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "alipay"})).await.problem(422, "validation_failed");
    h.post("/payments/alipay/notify", (), json!({})).await.problem(404, "not_found");
    let (h, _alipay) = shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let native = json!({"gateway": "alipay", "channel": "native"});
    h.post(&format!("/orders/{no}/pay"), &alice, native).await.problem(422, "validation_failed");
}
