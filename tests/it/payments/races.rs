//! Money against closing, at the same moment, many times over.

use super::*;

/// Rounds of each race.
const ROUNDS: usize = 60;

/// Lets the buyer's money and its callback meet `close`, each a moment apart, round after round; returns how the orders
/// ended. The callback is sent as the gateway would, so both orders of events happen.
async fn race<F, Fut>(h: &Harness, who: &Person, close: F) -> Vec<String>
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut ended = Vec::new();
    for round in 0..ROUNDS {
        let no = order(h, who, 500).await;
        let attempt = start(h, who, &no).await;
        // The trade is paid whatever the merchant does to it meanwhile: the money is out when the closing begins.
        let head_start = Duration::from_micros(u64::try_from(round % 12).unwrap() * 700);
        let pay = async {
            tokio::time::sleep(head_start).await;
            let paid = buyer(h, &attempt.trade, "action=pay_late&delay_s=0").await;
            assert!(paid.status == 200 || paid.status == 409, "{}", paid.text());
            deliver(h).await;
        };
        tokio::join!(pay, close(no.clone()));
        ended.push(no);
    }
    let mut states = Vec::new();
    for no in &ended {
        states.push(status(h, who, no).await);
    }
    states
}

/// All money found its place: in a paid order, or back with the buyer.
async fn settled(h: &Harness) {
    for _ in 0..3 {
        h.advance(Duration::from_secs(60));
        deliver(h).await;
        payments::query_started(&h.app).await.unwrap();
        release(h).await;
        resolve_late(h).await;
        payments::drive_refunds(&h.app).await.unwrap();
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_notifies WHERE confirmed_at IS NULL").await, 0);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await, 0);
    books_balance(h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_against_the_timeout_sweep_loses_no_money() {
    let h = service().await;
    let alice = h.register().await;
    let states = race(&h, &alice, |_| async {
        h.advance(DEADLINE);
        payments::sweep_due(&h.app).await.unwrap();
    })
    .await;
    assert!(states.iter().all(|state| state == "paid" || state == "timed_out"), "{states:?}");
    settled(&h).await;
    // Nothing else held what they held, so all of them could be opened again.
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 1").await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_against_a_cancel_loses_no_money() {
    let h = service().await;
    let alice = h.register().await;
    let cancel = |no: String| {
        let (h, alice) = (&h, &alice);
        async move {
            let answer = send(h.request(Method::POST, &format!("/orders/{no}/cancel"), alice)).await;
            assert!(answer.status == 200 || answer.status == 409, "{}", answer.text());
        }
    };
    let states = race(&h, &alice, cancel).await;
    assert!(states.iter().all(|state| state == "paid" || state == "cancelled"), "{states:?}");
    settled(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paying_against_cancelling_leaves_no_trade_open() {
    let h = service().await;
    let alice = h.register().await;
    for _ in 0..ROUNDS {
        let no = order(&h, &alice, 500).await;
        let path = format!("/orders/{no}/pay");
        let pay = h.post(&path, &alice, json!({"gateway": "sandbox"}));
        let cancel = send(h.request(Method::POST, &format!("/orders/{no}/cancel"), &alice));
        let (paid, cancelled) = tokio::join!(pay, cancel);
        // 503: each attempt that it began was ended by the cancel.
        assert!([200, 409, 503].contains(&paid.status), "{}", paid.text());
        cancelled.expect(200);
        h.post(&path, &alice, json!({"gateway": "sandbox"})).await.problem(409, "order_state");
        assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 0);
        assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_trades WHERE status = 'waiting'").await, 0);
    }
}
