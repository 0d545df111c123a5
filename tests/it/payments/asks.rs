//! How often people's requests have a gateway asked about one payment.

use super::stripe::{Shop, shop_with};
use super::*;
use crate::support::gateways::stripe::Manner;

const PAUSE: Duration = Duration::from_secs(3);

async fn shop() -> Shop {
    shop_with(vec![("payments.ask_again_after_ms", PAUSE.as_millis().to_string())]).await
}

async fn pay(h: &Harness, who: &Person, order: &str) -> Answer {
    h.post(&format!("/orders/{order}/pay"), who, json!({"gateway": "stripe"})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_asked_once_however_many_browsers_come_back() {
    let Shop { h, stripe, alice } = shop().await;
    let no = order(&h, &alice, 500).await;
    let payment = pay(&h, &alice, &no).await.expect(200).text_of("payment_no");
    let session = stripe.session_of(&payment);
    stripe.seen();
    let other = h.another().await;
    let back = format!("/payments/stripe/return?payment_no={payment}");
    // At both processes, at once.
    let returns = (0..40).map(|n| if n % 2 == 0 { h.get(&back, ()) } else { other.get(&back, ()) });
    for answer in futures_util::future::join_all(returns).await {
        assert_eq!(answer.expect(200)["status"], "unpaid");
    }
    assert_eq!(stripe.seen().len(), 1);
    stripe.pay(&session);
    assert_eq!(h.get(&back, ()).await.expect(200)["status"], "unpaid", "a moment too early to ask again");
    h.advance(PAUSE);
    assert_eq!(other.get(&back, ()).await.expect(200)["status"], "paid");
    assert_eq!(stripe.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_who_pays_again_at_once_goes_on_without_the_gateway_being_asked() {
    let Shop { h, stripe, alice } = shop().await;
    let no = order(&h, &alice, 500).await;
    let other = h.another().await;
    // A double click, and another tab at another process: one of them has the session opened.
    let clicks = (0..6).map(|n| pay(if n % 2 == 0 { &h } else { &other }, &alice, &no));
    let answers = futures_util::future::join_all(clicks).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &answers[0].body));
    }
    assert_eq!(stripe.seen().len(), 1);
    for _ in 0..20 {
        assert_eq!(pay(&h, &alice, &no).await.expect(200).body, answers[0].body);
    }
    assert_eq!(stripe.seen().len(), 0);
    // Later it is asked what became of it.
    h.advance(PAUSE);
    assert_eq!(pay(&h, &alice, &no).await.expect(200).body, answers[0].body);
    assert_eq!(stripe.seen().len(), 1);
    // Meanwhile it may have been paid.
    h.advance(PAUSE);
    stripe.pay(&stripe.session_of(&answers[0].text_of("payment_no")));
    pay(&h, &alice, &no).await.problem(409, "order_state");
    assert_eq!(status(&h, &alice, &no).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_failed_a_moment_ago_is_not_asked_again_for_the_same_payment() {
    let Shop { h, stripe, alice } = shop().await;
    let no = order(&h, &alice, 500).await;
    stripe.behave(Manner::RateLimited);
    pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!(stripe.seen().len(), 1);
    stripe.behave(Manner::Well);
    let refused = pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!((stripe.seen().len(), refused.header("retry-after")), (0, Some("1")));
    h.advance(PAUSE);
    pay(&h, &alice, &no).await.expect(200);
}
