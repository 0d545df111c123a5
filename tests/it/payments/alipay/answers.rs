//! Answers that do not come, or that nobody can trust: nothing is believed, and what is owed is found later.

use super::*;

/// Answers that must move nothing.
const BAD: [Manner; 8] = [
    Manner::Broken,
    Manner::Busy,
    Manner::Hangs,
    Manner::CutsOff,
    Manner::Unsigned,
    Manner::Altered,
    Manner::UnknownKey,
    Manner::OfAnother,
];

/// Impatient, and not left alone for its failures.
async fn strained_shop() -> (Harness, Alipay) {
    shop_with(vec![
        ("payments.gateway_timeout_ms", "1500".to_owned()),
        ("payments.gateway_failures_max", "1000".to_owned()),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_code_is_shown_that_alipay_did_not_sign() {
    let (h, alipay) = strained_shop().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let qr = json!({"gateway": "alipay", "channel": "qr"});
    for manner in BAD {
        alipay.behave(manner);
        let answer = h.post(&format!("/orders/{no}/pay"), &alice, qr.clone()).await;
        assert!(answer.status >= 500, "{manner:?}: {}", answer.text());
        if manner != Manner::OfAnother {
            answer.problem(503, "gateway_unavailable");
        }
    }
    alipay.behave(Manner::Well);
    let pay = begin(&h, &alice, &no, "qr").await;
    assert_eq!(h.count("SELECT COUNT(*) FROM payments").await, 1, "one attempt, however often it was asked for");
    alipay.scan(&pay.qr);
    yes(alipay.send(&h, &alipay.pay(&pay.no)).await);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    all_is_well(&h, &alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_about_a_trade_is_believed_that_alipay_did_not_sign() {
    let (h, alipay) = strained_shop().await;
    let alice = h.register().await;
    let (no, pay) = opened(&h, &alice, 500).await;
    alipay.pay(&pay.no);
    for manner in BAD {
        alipay.behave(manner);
        h.advance(Duration::from_secs(3600));
        sqlx::query("UPDATE orders SET expires_at = ?").bind(h.now().plus(DEADLINE)).execute(&h.app.db).await.unwrap();
        assert_eq!(payments::query_started(&h.app).await.unwrap(), 1, "{manner:?}");
        assert_eq!(status(&h, &alice, &no).await, "unpaid", "{manner:?}");
        let cancelled = h.post(&format!("/orders/{no}/cancel"), &alice, json!({})).await;
        assert!(cancelled.status >= 500, "{manner:?}: {}", cancelled.text());
    }
    alipay.behave(Manner::Well);
    h.advance(Duration::from_secs(3600));
    payments::query_started(&h.app).await.unwrap();
    assert_eq!(status(&h, &alice, &no).await, "paid");
    all_is_well(&h, &alipay).await;
}

/// Believed, somebody could pay for an order that is closed.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_not_closed_on_an_answer_that_alipay_did_not_sign() {
    let (h, alipay) = strained_shop().await;
    let alice = h.register().await;
    for manner in BAD {
        let (no, pay) = opened(&h, &alice, 500).await;
        alipay.behave(manner);
        let cancelled = h.post(&format!("/orders/{no}/cancel"), &alice, json!({})).await;
        assert!(cancelled.status >= 500, "{manner:?}: {}", cancelled.text());
        assert_eq!(status(&h, &alice, &no).await, "unpaid", "{manner:?}");
        alipay.behave(Manner::Well);
        h.post(&format!("/orders/{no}/cancel"), &alice, json!({})).await.expect(200);
        assert_eq!(alipay.status(&pay.no), Some("TRADE_CLOSED"));
    }
    all_is_well(&h, &alipay).await;
}
