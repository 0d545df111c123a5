//! Stripe's balance, through the whole pass: fetched, kept, compared, and resolved by a person; and what is taken back later.

use super::*;
use crate::support::gateways::stripe::Stripe;

async fn shop() -> (Desk, Stripe) {
    let stripe = Stripe::start().await;
    let h = service_with(stripe.settings()).await;
    set_clock(&h, at(NOON));
    stripe.follow(&h);
    (Desk::of(h).await, stripe)
}

/// Somebody begins to pay there; what was sold, and the session.
async fn begin(h: &Harness, stripe: &Stripe, fen: i64) -> (Sold, String) {
    let person = h.register().await;
    let no = order(h, &person, fen).await;
    let started = h.post(&format!("/orders/{no}/pay"), &person, json!({ "gateway": "stripe" })).await.expect(200);
    let attempt = Attempt { payment_no: started.text_of("payment_no"), trade: String::new() };
    let session = stripe.session_of(&attempt.payment_no);
    (Sold { buyer: person, order: no, attempt }, session)
}

/// Somebody pays there, and we hear of it.
async fn sell_there(h: &Harness, stripe: &Stripe, fen: i64) -> (Sold, String) {
    let (sold, session) = begin(h, stripe, fen).await;
    stripe.deliver(h, &stripe.pay(&session)).await.expect(200);
    (sold, session)
}

/// Has an order refunded, whole; the refund's number, and Stripe's id of it.
async fn refund_there(desk: &Desk, stripe: &Stripe, sold: &Sold) -> (String, String) {
    let no = refund(desk, sold).await;
    payments::drive_refunds(&desk.h.app).await.unwrap();
    let made = stripe.refunds().into_iter().find(|refund| refund["metadata"]["refund_no"] == no.as_str()).unwrap();
    (no, made["id"].as_str().unwrap().to_owned())
}

async fn sorted(desk: &Desk) -> Vec<(String, String, String, String)> {
    let mut all = told(desk).await;
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_with_stripes_balance_is_told_and_resolved() {
    let (desk, stripe) = shop().await;
    let h = &desk.h;
    sell_there(h, &stripe, 900).await;
    // A lost event is no difference.
    let (lost, session) = begin(h, &stripe, 800).await;
    stripe.pay(&session);
    let (missing, session) = sell_there(h, &stripe, 1000).await;
    stripe.unlist("charge", &stripe.charge_of(&session));
    let (amount, session) = sell_there(h, &stripe, 2000).await;
    stripe.correct(&stripe.charge_of(&session), 1999);
    // Its balance has it as paid, and when it is asked it has not.
    let (state, _) = begin(h, &stripe, 3000).await;
    stripe.foreign_charge(3000, json!({ "payment_no": state.attempt.payment_no }));
    let stranger = stripe.foreign_charge(77, json!({}));
    stripe.add_lines("stripe_fee", 3);
    on(&desk, MORNING).await;
    assert_eq!(status(h, &lost.buyer, &lost.order).await, "paid");
    on(&desk, NEXT_MORNING).await;
    let mut expected = vec![
        row("payment", &missing.attempt.payment_no, "missing_there", "open"),
        row("payment", &amount.attempt.payment_no, "amount_differs", "open"),
        row("payment", &state.attempt.payment_no, "state_differs", "open"),
        row("payment", &stranger, "missing_here", "open"),
    ];
    expected.sort();
    assert_eq!(sorted(&desk).await, expected);
    for item in differences(&desk, "&status=open&gateway=stripe").await {
        resolve(&desk, item["id"].as_str().unwrap(), "looked at it in the Dashboard").await.expect(200);
    }
    assert_eq!(on(&desk, "2026-11-23T02:30:00.000Z").await["opened"], 0);
    assert!(told(&desk).await.iter().all(|(.., status)| status == "resolved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_of_stripes_refunds_is_told() {
    let (desk, stripe) = shop().await;
    let h = &desk.h;
    let mut numbers = Vec::new();
    for fen in [1000, 2000] {
        let (sold, _) = sell_there(h, &stripe, fen).await;
        numbers.push(refund_there(&desk, &stripe, &sold).await);
    }
    stripe.unlist("refund", &numbers[0].1);
    stripe.correct(&numbers[1].1, 1);
    stripe.refunds_are("failed");
    // Both fail; the money of the first one comes again, that of the second one does not.
    let (whole, _) = sell_there(h, &stripe, 3000).await;
    let whole = refund_there(&desk, &stripe, &whole).await;
    let (half, _) = sell_there(h, &stripe, 4000).await;
    let half = refund_there(&desk, &stripe, &half).await;
    stripe.unlist("refund_failure", &half.1);
    for (no, _) in [&whole, &half] {
        assert_eq!(refund_status(&desk, no).await, "failed");
    }
    stripe.refunds_are("succeeded");
    let (_, session) = sell_there(h, &stripe, 5000).await;
    stripe.refund_by_hand(&session, 5);
    let by_hand = stripe.refunds()[0]["id"].as_str().unwrap().to_owned();
    on(&desk, MORNING).await;
    on(&desk, NEXT_MORNING).await;
    let mut expected = vec![
        row("refund", &numbers[0].0, "missing_there", "open"),
        row("refund", &numbers[1].0, "amount_differs", "open"),
        row("refund", &half.0, "state_differs", "open"),
        row("refund", &by_hand, "missing_here", "open"),
    ];
    expected.sort();
    assert_eq!(sorted(&desk).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_takes_back_later_is_told_until_it_is_given_again() {
    let (desk, stripe) = shop().await;
    let h = &desk.h;
    let (sold, _) = sell_there(h, &stripe, 1000).await;
    let (failed, id) = refund_there(&desk, &stripe, &sold).await;
    let (old_way, _) = sell_there(h, &stripe, 1500).await;
    let (adjusted, adjusted_id) = refund_there(&desk, &stripe, &old_way).await;
    let (disputed, session) = sell_there(h, &stripe, 2000).await;
    let (returned, bank) = sell_there(h, &stripe, 3000).await;
    on(&desk, MORNING).await;
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, [], "on its own day all of it was right");

    // At noon of the 22nd: the words of it are lost, the lines are not.
    set_clock(h, at("2026-11-22T04:00:00.000Z"));
    stripe.refund_becomes(&id, "failed");
    stripe.list("adjustment", 1650, &adjusted_id);
    let (dispute, intent) = stripe.dispute(&session, 2000);
    stripe.list("payment_failure_refund", -3300, &stripe.charge_of(&bank));
    stripe.add_lines("adjustment", 2);
    on(&desk, "2026-11-23T02:30:00.000Z").await;
    let mut expected = vec![
        row("refund", &failed, "amount_differs", "open"),
        row("refund", &adjusted, "amount_differs", "open"),
        row("refund", &dispute, "missing_here", "open"),
        row("payment", &returned.attempt.payment_no, "amount_differs", "open"),
    ];
    expected.sort();
    assert_eq!(sorted(&desk).await, expected);
    let all = differences(&desk, "").await;
    let shown = |number: &str| all.iter().find(|item| item["number"] == number).unwrap();
    let sums = |number: &str| (shown(number)["theirs_fen"].clone(), shown(number)["ours_fen"].clone());
    assert_eq!(sums(&failed), (json!(0), json!(1000)));
    assert_eq!(sums(&returned.attempt.payment_no), (json!(0), json!(3000)));
    // A dispute is led to the payment by Stripe's number of the trade.
    assert_eq!(sums(&dispute), (json!(2000), Value::Null));
    let of_dispute = shown(&dispute);
    assert_eq!(
        (&of_dispute["payment_no"], &of_dispute["merchant_no"]),
        (&json!(disputed.attempt.payment_no), &json!(intent))
    );

    // The shop was right.
    set_clock(h, at("2026-11-24T04:00:00.000Z"));
    stripe.win(&dispute);
    on(&desk, "2026-11-25T02:30:00.000Z").await;
    for row in &mut expected {
        if row.1 == dispute {
            row.3 = "vanished".to_owned();
        }
    }
    assert_eq!(sorted(&desk).await, expected);
}

/// Stripe says of the session that it is paid, though its balance says that the money is gone again.
#[tokio::test(flavor = "multi_thread")]
async fn money_that_came_and_went_unheard_is_not_settled() {
    let (desk, stripe) = shop().await;
    let h = &desk.h;
    let (sold, session) = begin(h, &stripe, 3000).await;
    stripe.pay(&session);
    stripe.list("payment_failure_refund", -3300, &stripe.charge_of(&session));
    on(&desk, MORNING).await;
    assert_ne!(status(h, &sold.buyer, &sold.order).await, "paid");
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid'").await, 0);
    assert_eq!(told(&desk).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_reads_no_further_page() {
    let (desk, stripe) = shop().await;
    stripe.add_lines("stripe_fee", 150);
    set_clock(&desk.h, at(MORNING));
    let asked = ask(&desk, "stripe", "2026-11-20").await.expect(202);
    let pages = || stripe.seen().iter().filter(|seen| seen.path.contains("balance_transactions")).count();
    pages();
    let stopping = desk.h.another().await;
    let (there, go) = stripe.hold("/v1/balance_transactions");
    let stop = async {
        there.await.unwrap();
        stopping.app.loops.stop_signal().cancel();
        go.send(()).unwrap();
    };
    let (outcome, ()) = tokio::join!(carry_out_at(&stopping, &asked), stop);
    assert!(matches!(outcome, Outcome::Again(_)), "{outcome:?}");
    assert_eq!(bill_of(&desk, "stripe", "2026-11-20").await["state"], "fetching");
    assert_eq!(pages(), 1);
    assert!(matches!(carry_out(&desk, &asked).await, Outcome::Success(_)));
    assert_eq!(pages(), 2);
}
