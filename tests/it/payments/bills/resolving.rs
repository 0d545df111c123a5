//! What a person sees of a difference, and does about it.

use super::*;
use onrush::platform::text::Text;

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_resolved_once_with_a_note() {
    let desk = desk().await;
    let h = &desk.h;
    stranger(h, "s1", 10, at(NOON)).await;
    stranger(h, "s2", 20, at(NOON)).await;
    on(&desk, MORNING).await;
    let all = differences(&desk, "&status=open").await;
    let id_of = |number: &str| {
        let found = all.iter().find(|item| item["number"] == number).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (id_of("s1"), id_of("s2"));
    let resolved = resolve(&desk, &first, "another shop's; told the bank").await.expect(200);
    assert_eq!((&resolved["status"], &resolved["resolved_at"]), (&json!("resolved"), &json!(MORNING)));
    assert_eq!(resolved["note"], "another shop's; told the bank");
    h.advance(Duration::from_secs(60));
    assert_eq!(resolve(&desk, &first, "said again").await.expect(200).body, resolved.body);
    assert_eq!(h.count("SELECT COUNT(*) FROM audit WHERE action = 'difference.resolve'").await, 1);
    // It stays resolved, whoever looks again.
    sqlx::query("UPDATE payment_bills SET compared_at = NULL").execute(&h.app.db).await.unwrap();
    assert_eq!(reconcile(h).await["opened"], json!(0));
    assert_eq!(differences(&desk, "&status=open").await.len(), 1);
    // Other amounts are another thing.
    gateway_writes(h, "UPDATE sandbox_trades SET paid_fen = 11 WHERE merchant_no = ?", "s1").await;
    fetch(&desk, "2026-11-20").await;
    let back = differences(&desk, "&status=open").await;
    let back = back.iter().find(|item| item["id"] == first.as_str()).unwrap();
    assert_eq!((&back["theirs_fen"], &back["note"], &back["resolved_by"]), (&json!(11), &json!(""), &Value::Null));
    // What came to fit needs nobody.
    gateway_writes(h, "DELETE FROM sandbox_trades WHERE merchant_no = ?", "s2").await;
    fetch(&desk, "2026-11-20").await;
    resolve(&desk, &second, "why").await.problem(409, "difference_state");
    resolve(&desk, &"0".repeat(32), "why").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_that_waits_is_nobodys_to_resolve() {
    let desk = desk().await;
    let h = &desk.h;
    let no = sell(h, 1000).await.attempt.payment_no;
    gateway_writes(h, "UPDATE sandbox_trades SET paid_at = NULL WHERE merchant_no = ?", &no).await;
    on(&desk, MORNING).await;
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "waiting")]);
    let id = differences(&desk, "").await[0]["id"].as_str().unwrap().to_owned();
    let refused = resolve(&desk, &id, "it is all right").await.problem(409, "difference_state");
    // Eight days after we heard of it.
    assert_eq!(refused["waits_until"], "2026-11-28T04:00:00.000Z");
    let words =
        "it may still come to fit by itself, and is still waiting, until 2026-11-28T12:00:00+08:00 at the latest";
    assert_eq!(refused["detail"], words);
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "waiting")]);
    assert_eq!(h.count("SELECT COUNT(*) FROM audit WHERE action = 'difference.resolve'").await, 0);
    // When it is told, it is.
    on(&desk, NEXT_MORNING).await;
    resolve(&desk, &id, "the gateway says it has lost it").await.expect(200);
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "resolved")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_as_our_payment_is_ours() {
    let desk = desk().await;
    let h = &desk.h;
    let sold = sell(h, 1000).await;
    let unknown = "0193".repeat(8);
    for number in ["not-ours", &unknown] {
        stranger(h, number, 77, at(NOON)).await;
    }
    // Given back by hand on the gateway's site: the refund is not ours, the payment is.
    for (refund, payment) in [("by-hand", &sold.attempt.payment_no), ("of-another", &unknown)] {
        sqlx::query("INSERT INTO sandbox_refunds (refund_no, trade_no, amount_fen, status, created_at) SELECT ?, trade_no, 5, 'done', ? FROM sandbox_trades WHERE merchant_no = ?")
            .bind(refund)
            .bind(at(NOON))
            .bind(payment)
            .execute(&h.app.db)
            .await
            .unwrap();
    }
    let gone = sell(h, 500).await.attempt.payment_no;
    gateway_writes(h, "UPDATE sandbox_trades SET paid_at = NULL WHERE merchant_no = ?", &gone).await;
    on(&desk, MORNING).await;
    let all = differences(&desk, "").await;
    let shown = |number: &str| {
        let found = all.iter().find(|item| item["number"] == number).unwrap();
        (found["payment_no"].clone(), found["merchant_no"].clone())
    };
    assert_eq!(shown("not-ours"), (Value::Null, json!("not-ours")));
    assert_eq!(shown(&unknown), (Value::Null, json!(unknown)));
    assert_eq!(shown("by-hand"), (json!(sold.attempt.payment_no), json!(sold.attempt.payment_no)));
    assert_eq!(shown("of-another"), (Value::Null, json!(unknown)));
    assert_eq!(shown(&gone), (json!(gone), Value::Null));
}

/// The line of a refund of ours names a payment, and it is another one than ours.
#[tokio::test(flavor = "multi_thread")]
async fn the_payment_of_a_difference_is_ours_where_we_know_it() {
    let desk = desk().await;
    let h = &desk.h;
    let (sold, other) = (sell(h, 1000).await, sell(h, 2000).await);
    // We hear of it a day after the gateway's line: nothing but the bill leads to it.
    set_clock(h, at("2026-11-20T17:00:00.000Z"));
    let no = refund(&desk, &sold).await;
    payments::drive_refunds(&h.app).await.unwrap();
    let astray = "UPDATE sandbox_refunds SET amount_fen = 1, created_at = '2026-11-20 04:00:00', trade_no = (SELECT trade_no FROM sandbox_trades \
                  WHERE paid_fen = 2000) WHERE refund_no = ?";
    gateway_writes(h, astray, &no).await;
    // A number that nobody knows has its payment looked up.
    let by_hand = "INSERT INTO sandbox_refunds (refund_no, trade_no, amount_fen, status, created_at) SELECT 'by-hand', trade_no, 5, \
                   'done', '2026-11-20 04:00:00' FROM sandbox_trades WHERE merchant_no = ?";
    gateway_writes(h, by_hand, &other.attempt.payment_no).await;
    on(&desk, MORNING).await;
    let all = differences(&desk, "&what=refund").await;
    let of = |number: &str| all.iter().find(|item| item["number"] == number).unwrap()["payment_no"].clone();
    assert_eq!((of(&no), of("by-hand")), (json!(sold.attempt.payment_no), json!(other.attempt.payment_no)));
}

/// What the migration does with the numbers that were there before it; again, it changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_differences_move_once_and_those_of_our_payments_stay() {
    let desk = desk().await;
    let h = &desk.h;
    let ours = sell(h, 1000).await.attempt.payment_no;
    let before = [("a", ours.as_str()), ("b", "pi_1"), ("c", ""), ("d", "0193019301930193019301930193ffff")];
    for (number, payment_no) in before {
        sqlx::query(
            "INSERT INTO payment_differences (id, gateway, what, number, kind, status, day, payment_no, theirs_fen, found_at, \
             checked_at) VALUES (?, 'sandbox', 'refund', ?, 'missing_here', 'open', '2026-11-20', ?, 1, ?, ?)",
        )
        .bind(Uuid::now_v7())
        .bind(number)
        .bind(payment_no)
        .bind(h.now())
        .bind(h.now())
        .execute(&h.app.db)
        .await
        .unwrap();
    }
    let migration = include_str!("../../../../migrations/20261123140000_add_bill_fetches.sql");
    let statement = &migration[migration.find("UPDATE payment_differences").unwrap()..];
    for _ in 0..2 {
        sqlx::query(statement.trim_end().trim_end_matches(';')).execute(&h.app.db).await.unwrap();
        let rows = sqlx::query_as("SELECT number, payment_no, merchant_no FROM payment_differences ORDER BY number");
        let rows: Vec<(Text, Text, Text)> = rows.fetch_all(&h.app.db).await.unwrap();
        let row = |number: &str, payment: &str, merchant: &str| {
            [number, payment, merchant].map(|text| Text(text.to_owned())).into()
        };
        let moved = |at: usize| row(before[at].0, "", before[at].1);
        assert_eq!(rows, [row("a", &ours, ""), moved(1), moved(2), moved(3)]);
    }
}
