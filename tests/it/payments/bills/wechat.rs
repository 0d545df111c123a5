//! WeChat Pay's bill, through the whole pass: fetched, kept, compared, and resolved by a person.

use super::*;
use crate::support::gateways::wechat::{Refunding, Wechat};

async fn shop() -> (Desk, Wechat) {
    let wechat = Wechat::start().await;
    let h = service_with(wechat.settings()).await;
    set_clock(&h, at(NOON));
    wechat.follow(&h);
    (Desk::of(h).await, wechat)
}

/// Somebody begins to pay there.
async fn begin(h: &Harness, fen: i64) -> Sold {
    let person = h.register().await;
    let no = order(h, &person, fen).await;
    let started = h.post(&format!("/orders/{no}/pay"), &person, json!({ "gateway": "wechat" })).await.expect(200);
    let attempt = Attempt { payment_no: started.text_of("payment_no"), trade: String::new() };
    Sold { buyer: person, order: no, attempt }
}

/// Somebody pays there, and we hear of it.
async fn sell_there(h: &Harness, wechat: &Wechat, fen: i64) -> Sold {
    let sold = begin(h, fen).await;
    wechat.pay(&sold.attempt.payment_no).send(h).await.expect(204);
    sold
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_with_wechats_bill_is_told_and_resolved() {
    let (desk, wechat) = shop().await;
    let h = &desk.h;
    sell_there(h, &wechat, 900).await;
    // A lost callback is no difference.
    let lost = begin(h, 800).await;
    drop(wechat.pay(&lost.attempt.payment_no));
    let missing = sell_there(h, &wechat, 1000).await.attempt.payment_no;
    wechat.list_wrongly(&missing, None);
    let amount = sell_there(h, &wechat, 2000).await.attempt.payment_no;
    wechat.list_wrongly(&amount, Some(1999));
    // Its bill has it as paid, and when it is asked it has not.
    let state = begin(h, 3000).await.attempt.payment_no;
    drop(wechat.pay(&state));
    wechat.deny(&state);
    wechat.foreign_trade("another-shops", 77);
    let mut expected = vec![
        row("payment", &missing, "missing_there", "waiting"),
        row("payment", &amount, "amount_differs", "open"),
        row("payment", &state, "state_differs", "open"),
        row("payment", "another-shops", "missing_here", "open"),
    ];
    let done = on(&desk, MORNING).await;
    assert_eq!(done["unusable"], json!([]));
    let mut all = told(&desk).await;
    expected.sort();
    all.sort();
    assert_eq!(all, expected);
    assert_eq!(status(h, &lost.buyer, &lost.order).await, "paid");
    on(&desk, NEXT_MORNING).await;
    let open = differences(&desk, "&status=open&gateway=wechat").await;
    assert_eq!(open.len(), 4);
    for item in &open {
        resolve(&desk, item["id"].as_str().unwrap(), "looked at it there").await.expect(200);
    }
    assert_eq!(on(&desk, "2026-11-23T02:30:00.000Z").await["opened"], 0);
    assert!(told(&desk).await.iter().all(|(.., status)| status == "resolved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_of_wechats_refunds_is_told() {
    let (desk, wechat) = shop().await;
    let h = &desk.h;
    let mut numbers = Vec::new();
    for fen in [1000, 2000, 4000] {
        let sold = sell_there(h, &wechat, fen).await;
        numbers.push((refund(&desk, &sold).await, sold.attempt.payment_no));
    }
    payments::drive_refunds(&h.app).await.unwrap();
    wechat.list_wrongly(&numbers[0].0, None);
    wechat.list_wrongly(&numbers[1].0, Some(1));
    // The buyer's account takes no money: it fails, and the bill has it.
    wechat.refund(Refunding::Abnormally);
    let failed = sell_there(h, &wechat, 3000).await;
    let failed = refund(&desk, &failed).await;
    payments::drive_refunds(&h.app).await.unwrap();
    assert_eq!(refund_status(&desk, &failed).await, "failed");
    wechat.foreign_refund("by-hand", &numbers[2].1, 5);
    on(&desk, MORNING).await;
    on(&desk, NEXT_MORNING).await;
    let mut expected = vec![
        row("refund", &numbers[0].0, "missing_there", "open"),
        row("refund", &numbers[1].0, "amount_differs", "open"),
        row("refund", &failed, "state_differs", "open"),
        row("refund", "by-hand", "missing_here", "open"),
    ];
    let mut all = told(&desk).await;
    expected.sort();
    all.sort();
    assert_eq!(all, expected);
    let by_hand = differences(&desk, "&kind=missing_here").await.remove(0);
    assert_eq!((&by_hand["payment_no"], &by_hand["theirs_fen"]), (&json!(numbers[2].1), &json!(5)));
}
