//! Our word and Stripe's own SDK's, side by side. Run by `script/stripe-against-sdk`, which has the SDK.

use std::process::Command;

use super::*;
use crate::support::gateways::stripe::Seen;

/// The last request of this path's beginning, without what names one request alone.
fn last(all: &[Seen], path: &str) -> Option<(String, Option<String>, crate::support::gateways::stripe::Form)> {
    let found = all.iter().rev().find(|seen| seen.path.starts_with(path))?;
    Some((found.method.clone(), found.version.clone(), found.form.clone()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the SDK: run by script/stripe-against-sdk"]
async fn we_and_the_sdk_understand_each_other() {
    let python = std::env::var("STRIPE_SDK_PYTHON").expect("run by script/stripe-against-sdk");
    // The SDK lives by the machine's clock.
    let stripe = Stripe::start().await;
    let mut settings = stripe.settings();
    settings.push(("orders.pay_deadline_s", "7200".to_owned()));
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    stripe.follow(&h);
    let alice = h.register().await;
    let shop = Shop { h, stripe, alice };
    // Every request that we ever make.
    let started = shop.start(1999).await;
    let other = start(&shop.h, &shop.alice, &started.order).await;
    buyer(&shop.h, &other.trade, "action=pay").await.expect(200);
    deliver(&shop.h).await;
    let paid = shop.stripe.pay(&started.session);
    shop.deliver(&paid).await.expect(200);
    assert_eq!(resolve_late(&shop.h).await, 1);
    shop.stripe.refunds_are("pending");
    payments::drive_refunds(&shop.h.app).await.unwrap();
    sqlx::query("UPDATE refunds SET next_attempt_at = created_at").execute(&shop.h.app.db).await.unwrap();
    payments::drive_refunds(&shop.h.app).await.unwrap();
    let zone = jiff::tz::TimeZone::get("Asia/Shanghai").unwrap();
    let day = shop.h.now().timestamp().to_zoned(zone);
    payments::bill(&shop.h.app, payments::Gateway::Stripe, &day.date().to_string()).await.unwrap();
    let closed = shop.start(500).await;
    shop.h.post(&format!("/orders/{}/cancel", closed.order), &shop.alice, json!({})).await.expect(200);
    let ours = shop.stripe.seen();
    let created = ours.iter().find(|seen| seen.path == "/v1/checkout/sessions").unwrap();
    let refund = shop.stripe.refunds()[0].clone();

    let waiting = shop.start(700).await;
    let open = shop.start(900).await;
    shop.stripe.seen();
    let paid_event = serde_json::to_string(&shop.stripe.pay(&waiting.session)).unwrap();
    let mut signed = Vec::new();
    for number in 0..50 {
        let secret = &shop.stripe.secrets[number % 2];
        let object = json!({"id": format!("cus_{number}"), "name": "课程 🎓\u{2028}".repeat(number)});
        let event = if number < 2 { paid.clone() } else { shop.stripe.event("customer.created", object) };
        let payload = serde_json::to_string_pretty(&event).unwrap();
        let header = shop.stripe.signature(std::slice::from_ref(secret), payload.as_bytes(), &shop.h);
        signed.push(json!({"payload": payload, "header": header, "secret": secret}));
    }
    let start_of = |day: &jiff::Zoned| day.start_of_day().unwrap().timestamp().as_second();
    let case = json!({
        "seed": std::env::var("STRIPE_SDK_SEED").unwrap_or_default(),
        "events": std::env::var("STRIPE_SDK_EVENTS").unwrap().parse::<u32>().expect("a number of events"),
        "notify_url": format!("{}/api/v1/payments/stripe/notify", shop.h.base),
        "api_base": shop.stripe.url, "key": shop.stripe.key, "secrets": shop.stripe.secrets,
        "ours": signed, "paid_event": paid_event, "open_session": open.session,
        "create": {
            "session": started.session, "payment_no": started.payment, "amount": 1999, "back": created.form["success_url"],
            "name": created.form["line_items[0][price_data][product_data][name]"],
            "expires_at": created.form["expires_at"].parse::<i64>().unwrap(),
        },
        "refund": {
            "id": refund["id"], "payment_intent": refund["payment_intent"], "amount": 1999,
            "payment_no": refund["metadata"]["payment_no"], "refund_no": refund["metadata"]["refund_no"],
        },
        "bill": {"from": start_of(&day), "to": start_of(&day.tomorrow().unwrap())},
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::to_vec(&case).unwrap()).unwrap();
    let mut command = Command::new(python);
    command.arg("script/stripe_against_sdk.py").arg(file.path());
    let ended = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
    assert!(ended.success(), "the SDK sees it otherwise");
    assert_eq!(shop.status(&waiting.order).await, "paid", "by an event that the SDK signed");

    let theirs = shop.stripe.seen();
    for path in ["/v1/checkout/sessions", "/v1/refunds", "/v1/balance_transactions"] {
        let first = |all: &[Seen]| {
            let found = all.iter().find(|seen| seen.path == path).unwrap();
            (found.method.clone(), found.idempotency_key.clone(), found.version.clone(), found.form.clone())
        };
        assert_eq!(first(&ours), first(&theirs), "{path}");
    }
    let expiry = |session: &Started| format!("/v1/checkout/sessions/{}/expire", session.session);
    assert_eq!(last(&ours, &expiry(&closed)), last(&theirs, &expiry(&open)));
    let query = format!("/v1/checkout/sessions/{}", closed.session);
    let query = ours.iter().find(|seen| seen.path == query).unwrap();
    let retrieve = format!("/v1/checkout/sessions/{}", started.session);
    let retrieve = theirs.iter().find(|seen| seen.path == retrieve).unwrap();
    assert_eq!((&query.form, &query.version), (&retrieve.form, &retrieve.version));
    let listed =
        |all: &[Seen]| all.iter().find(|seen| seen.path == "/v1/refunds" && seen.method == "GET").unwrap().form.clone();
    assert_eq!(listed(&ours), listed(&theirs));
}
