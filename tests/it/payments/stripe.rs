//! Paying at Stripe: one session for a payment, whatever is lost on the way.

mod events;
mod outages;
mod refunds;
mod sdk;

use super::*;
use crate::support::gateways::stripe::{Manner, Stripe};
use onrush::platform::text::Text;

/// A service with a Stripe of its own.
pub(super) struct Shop {
    pub(super) h: Harness,
    pub(super) stripe: Stripe,
    pub(super) alice: Person,
}

/// A payment that was started there.
struct Started {
    order: String,
    payment: String,
    session: String,
}

async fn shop() -> Shop {
    shop_with(Vec::new()).await
}

pub(super) async fn shop_with(more: Vec<(&'static str, String)>) -> Shop {
    let stripe = Stripe::start().await;
    let mut settings = stripe.settings();
    settings.extend(more);
    let h = service_with(settings).await;
    stripe.follow(&h);
    let alice = h.register().await;
    Shop { h, stripe, alice }
}

impl Shop {
    async fn start(&self, price_fen: i64) -> Started {
        let order = order(&self.h, &self.alice, price_fen).await;
        let payment = self.pay(&order).await.expect(200).text_of("payment_no");
        let session = self.stripe.session_of(&payment);
        Started { order, payment, session }
    }

    async fn pay(&self, order: &str) -> Answer {
        self.h.post(&format!("/orders/{order}/pay"), &self.alice, json!({"gateway": "stripe"})).await
    }

    async fn deliver(&self, event: &Value) -> Answer {
        self.stripe.deliver(&self.h, event).await
    }

    async fn status(&self, order: &str) -> String {
        status(&self.h, &self.alice, order).await
    }

    /// How a payment stands in our books.
    async fn state(&self, payment: &str) -> String {
        let id: OrderId = payment.parse().unwrap();
        let statement = sqlx::query_scalar("SELECT status FROM payments WHERE id = ?").bind(id);
        statement.fetch_one(&self.h.app.db).await.map(|Text(status)| status).unwrap()
    }

    async fn notifications(&self, outcome: &str) -> i64 {
        sqlx::query_scalar("SELECT COUNT(*) FROM payment_notifications WHERE gateway = 'stripe' AND outcome = ?")
            .bind(outcome)
            .fetch_one(&self.h.app.db)
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_at_stripe_pays_the_order_and_gives_the_course() {
    let shop = shop().await;
    shop.h.start_workers();
    let no = order(&shop.h, &shop.alice, 1999).await;
    let way = json!({"gateway": "stripe", "channel": "checkout"});
    let answer = shop.h.post(&format!("/orders/{no}/pay"), &shop.alice, way).await.expect(200);
    let (payment, url) = (answer.text_of("payment_no"), answer.text_of("pay_url"));
    assert_eq!((answer["gateway"].as_str(), answer["channel"].as_str()), (Some("stripe"), Some("checkout")));
    let session = shop.stripe.session_of(&payment);
    assert!(url.starts_with("https://checkout.stripe.com/") && url.contains(&session), "{url}");
    let [asked] = &shop.stripe.seen()[..] else { panic!("one request opens one session") };
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/v1/checkout/sessions"));
    assert_eq!(asked.idempotency_key.as_deref(), Some(payment.as_str()));
    let back = format!("{}/api/v1/payments/stripe/return?payment_no={payment}", shop.h.base);
    for (name, value) in [
        ("line_items[0][price_data][unit_amount]", "1999"),
        ("line_items[0][price_data][currency]", "cny"),
        ("client_reference_id", &payment),
        ("success_url", &back),
        ("cancel_url", &back),
    ] {
        assert_eq!(asked.form[name], value, "{name}");
    }

    let event = shop.stripe.pay(&session);
    assert_eq!(shop.deliver(&event).await.expect(200).text(), "");
    shop.h
        .eventually(async || {
            let order = shop.h.get(&format!("/orders/{no}"), &shop.alice).await;
            order["status"] == "paid" && order["granted_at"].is_string()
        })
        .await;
    let back = back.strip_prefix(&shop.h.base).unwrap();
    assert_eq!(shop.h.get(back, ()).await.expect(200)["status"], "paid");
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM user_courses").await, 1);
    assert_eq!(shop.notifications("settled").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn paying_again_at_stripe_goes_on_with_the_same_session() {
    let shop = shop().await;
    let no = order(&shop.h, &shop.alice, 500).await;
    let first = futures_util::future::join_all((0..8).map(|_| shop.pay(&no))).await;
    let first: Vec<Answer> = first.into_iter().map(|answer| answer.expect(200)).collect();
    for again in &first[1..] {
        assert_eq!(again.body, first[0].body);
    }
    assert_eq!(shop.pay(&no).await.expect(200).body, first[0].body);
    assert_eq!((shop.stripe.sessions(), shop.h.count("SELECT COUNT(*) FROM payments").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_opens_no_second_session() {
    let shop = shop().await;
    let no = order(&shop.h, &shop.alice, 500).await;
    shop.stripe.behave(Manner::CutsOff);
    shop.pay(&no).await.problem(503, "gateway_unavailable");
    assert_eq!(shop.stripe.sessions(), 1, "every try is the same request");
    shop.stripe.behave(Manner::Well);
    let payment = shop.pay(&no).await.expect(200).text_of("payment_no");
    let session = shop.stripe.session_of(&payment);
    assert_eq!(shop.deliver(&shop.stripe.pay(&session)).await.status, 200);
    assert_eq!(shop.status(&no).await, "paid");
}

/// The key stands for one request: when what we say has changed, another one opens another session, and the first one
/// was never shown to anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_has_changed_since_its_answer_was_lost_opens_another_session() {
    let shop = shop().await;
    let no = order(&shop.h, &shop.alice, 500).await;
    shop.stripe.behave(Manner::CutsOff);
    shop.pay(&no).await.problem(503, "gateway_unavailable");
    shop.stripe.behave(Manner::Well);
    sqlx::query("UPDATE order_items SET title = 'another title'").execute(&shop.h.app.db).await.unwrap();
    let answer = shop.pay(&no).await.expect(200);
    assert_eq!(shop.stripe.sessions(), 2);
    assert_eq!(shop.pay(&no).await.expect(200).body, answer.body);
    let Text(kept) = sqlx::query_scalar("SELECT gateway_ref FROM payments").fetch_one(&shop.h.app.db).await.unwrap();
    assert!(answer.text_of("pay_url").contains(&kept));
    assert_eq!(shop.deliver(&shop.stripe.pay(&kept)).await.status, 200);
    assert_eq!(shop.status(&no).await, "paid");
}

/// Two requests at once that say it differently: both are led to the session whose id was kept first.
#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_of_one_payment_end_in_the_one_that_was_kept() {
    let shop = shop().await;
    let no = order(&shop.h, &shop.alice, 500).await;
    let (opened, go) = shop.stripe.hold("/v1/checkout/sessions");
    let second = async {
        opened.await.unwrap();
        sqlx::query("UPDATE order_items SET title = 'another title'").execute(&shop.h.app.db).await.unwrap();
        let answer = shop.pay(&no).await;
        go.send(()).unwrap();
        answer
    };
    let (first, second) = tokio::join!(shop.pay(&no), second);
    assert_eq!(shop.stripe.sessions(), 2);
    assert_eq!(first.expect(200).body, second.expect(200).body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_order_where_stripe_lets_it() {
    let shop = shop_with(vec![("orders.pay_deadline_s", "7200".to_owned())]).await;
    let started = shop.start(500).await;
    let deadline = shop.h.now().plus(Duration::from_secs(7200)).timestamp().as_second();
    assert_eq!(shop.stripe.object(&started.session)["expires_at"], deadline);
    // With less than half an hour left it outlives the order, unless the order's end closes it.
    shop.stripe.seen();
    shop.h.advance(Duration::from_secs(3600));
    let late = order(&shop.h, &shop.alice, 500).await;
    shop.h.advance(Duration::from_secs(6000));
    let payment = shop.pay(&late).await.expect(200).text_of("payment_no");
    let session = shop.stripe.session_of(&payment);
    let day = shop.h.now().timestamp().as_second() + 24 * 3600;
    assert_eq!(shop.stripe.object(&session)["expires_at"], day);
    shop.h.advance(Duration::from_secs(1200));
    assert_eq!(payments::sweep_due(&shop.h.app).await.unwrap(), 2);
    for (order, session) in [(&started.order, &started.session), (&late, &session)] {
        assert_eq!(shop.status(order).await, "timed_out");
        assert_eq!(shop.stripe.object(session)["status"], "expired");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_expired_by_itself_is_followed_by_a_new_payment() {
    let shop = shop().await;
    let first = shop.start(500).await;
    let event = shop.stripe.expire(&first.session);
    // The event is lost; who pays again is told.
    let second = shop.pay(&first.order).await.expect(200).text_of("payment_no");
    assert_ne!(second, first.payment);
    assert_eq!(shop.state(&first.payment).await, "closed");
    assert_eq!(shop.deliver(&event).await.status, 200);
    let session = shop.stripe.session_of(&second);
    shop.deliver(&shop.stripe.pay(&session)).await.expect(200);
    assert_eq!(shop.status(&first.order).await, "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_lost_is_found_by_asking() {
    let shop = shop().await;
    let started = shop.start(500).await;
    let event = shop.stripe.pay(&started.session);
    shop.h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&shop.h.app).await.unwrap(), 1);
    assert_eq!(shop.status(&started.order).await, "paid");
    shop.deliver(&event).await.expect(200);
    assert_eq!((shop.notifications("settled").await, shop.notifications("repeated").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_comes_too_late_settles() {
    let shop = shop().await;
    let started = shop.start(500).await;
    shop.stripe.pay_at_expiry();
    shop.h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&shop.h.app).await.unwrap(), 1);
    assert_eq!(shop.status(&started.order).await, "paid");
    assert_eq!(shop.stripe.object(&started.session)["payment_status"], "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_without_a_session_closes_with_its_order() {
    let shop = shop().await;
    let no = order(&shop.h, &shop.alice, 500).await;
    shop.stripe.behave(Manner::Broken);
    shop.pay(&no).await.problem(503, "gateway_unavailable");
    shop.h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&shop.h.app).await.unwrap(), 1);
    assert_eq!(shop.status(&no).await, "timed_out");
}

/// The answer about the new session is on its way while the order is cancelled: whoever comes second ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_opened_while_its_order_is_closed_is_expired() {
    let shop = shop().await;
    let no = order(&shop.h, &shop.alice, 500).await;
    let (opened, go) = shop.stripe.hold("/v1/checkout/sessions");
    let cancelled = async {
        opened.await.unwrap();
        let answer = shop.h.post(&format!("/orders/{no}/cancel"), &shop.alice, json!({})).await;
        go.send(()).unwrap();
        answer
    };
    let (paying, cancelled) = tokio::join!(shop.pay(&no), cancelled);
    cancelled.expect(200);
    paying.problem(409, "order_state");
    let Text(kept) = sqlx::query_scalar("SELECT gateway_ref FROM payments").fetch_one(&shop.h.app.db).await.unwrap();
    assert_eq!(shop.stripe.object(&kept)["status"], "expired");
    assert_eq!((shop.status(&no).await.as_str(), shop.stripe.sessions()), ("cancelled", 1));
}

/// A bank that takes its time: the buyer is through, nobody can pay twice, and the order is not kept open for it.
#[tokio::test(flavor = "multi_thread")]
async fn money_that_is_under_way_pays_when_it_arrives() {
    let shop = shop().await;
    let started = shop.start(500).await;
    let event = shop.stripe.pay_slowly(&started.session);
    shop.deliver(&event).await.expect(200);
    assert_eq!(payments::query_started(&shop.h.app).await.unwrap(), 1, "what became of it is asked");
    assert_eq!(
        (shop.status(&started.order).await, shop.state(&started.payment).await),
        ("unpaid".into(), "started".into())
    );
    shop.pay(&started.order).await.problem(409, "order_state");
    let arrived = shop.stripe.bank_says(&started.session, true);
    shop.deliver(&arrived).await.expect(200);
    assert_eq!(shop.status(&started.order).await, "paid");

    // After the order's time is over it is late money.
    let late = shop.start(700).await;
    shop.deliver(&shop.stripe.pay_slowly(&late.session)).await.expect(200);
    shop.h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&shop.h.app).await.unwrap(), 1);
    assert_eq!(
        (shop.status(&late.order).await, shop.state(&late.payment).await),
        ("timed_out".into(), "closed".into())
    );
    let arrived = shop.stripe.bank_says(&late.session, true);
    shop.deliver(&arrived).await.expect(200);
    assert_eq!(resolve_late(&shop.h).await, 1);
    assert_eq!(shop.status(&late.order).await, "paid", "everything could be held again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_says_no_leaves_room_for_another_payment() {
    let shop = shop().await;
    let started = shop.start(500).await;
    shop.deliver(&shop.stripe.pay_slowly(&started.session)).await.expect(200);
    let refused = shop.stripe.bank_says(&started.session, false);
    shop.deliver(&refused).await.expect(200);
    assert_eq!(payments::query_started(&shop.h.app).await.unwrap(), 1);
    assert_eq!(shop.state(&started.payment).await, "closed");
    let second = shop.pay(&started.order).await.expect(200).text_of("payment_no");
    let session = shop.stripe.session_of(&second);
    shop.deliver(&shop.stripe.pay(&session)).await.expect(200);
    assert_eq!(shop.status(&started.order).await, "paid");
}
