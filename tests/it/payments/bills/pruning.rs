//! Lines of bills that are old enough go; what a person has still to look at stays.

use super::*;

async fn prune(desk: &Desk) -> Value {
    jobs::run_pass(desk.h.app.clone(), "payments.prune").await.expect("a pass").expect("a result")
}

async fn lines(desk: &Desk) -> Vec<String> {
    let statement = sqlx::query_scalar("SELECT number FROM payment_bill_lines ORDER BY number");
    statement.fetch_all(&desk.h.app.db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_lines_go_and_those_of_a_difference_that_nobody_resolved_stay() {
    let desk = desk().await;
    let h = &desk.h;
    let ours = sell(h, 1000).await.attempt.payment_no;
    for number in ["seen", "unseen"] {
        stranger(h, number, 7, at(NOON)).await;
    }
    stranger(h, "later", 8, at("2026-11-21T04:00:00Z")).await;
    on(&desk, MORNING).await;
    on(&desk, NEXT_MORNING).await;
    let all = differences(&desk, "").await;
    for number in ["seen", "later"] {
        let id = all.iter().find(|item| item["number"] == number).unwrap()["id"].as_str().unwrap().to_owned();
        resolve(&desk, &id, "another shop's").await.expect(200);
    }
    // Four hundred days after the 20th all are still there; on the next one that day's go.
    set_clock(h, at("2027-12-25T04:00:00Z"));
    assert_eq!(prune(&desk).await["lines"], 0);
    assert_eq!(lines(&desk).await.len(), 4);
    set_clock(h, at("2027-12-26T04:00:00Z"));
    assert_eq!(prune(&desk).await["lines"], 2);
    assert_eq!(lines(&desk).await, ["later", "unseen"]);
    assert_eq!(prune(&desk).await["lines"], 0);
    // The sums stay, and so does what was told: with its line, the open one has not come to fit.
    let bill = bill_of(&desk, "sandbox", "2026-11-20").await.body["bill"].take();
    assert_eq!((&bill["payments"], &bill["payments_fen"]), (&json!(3), &json!(1014)));
    assert_eq!((&bill["status"], &bill["pruned_at"]), (&json!("believed"), &json!("2027-12-26T04:00:00Z")));
    assert!(bill_of(&desk, "sandbox", "2026-11-21").await["bill"]["pruned_at"].is_null());
    reconcile(h).await;
    let mut expected = vec![
        row("payment", "seen", "missing_here", "resolved"),
        row("payment", "unseen", "missing_here", "open"),
        row("payment", "later", "missing_here", "resolved"),
    ];
    let mut found = told(&desk).await;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(ours.len(), 32);
}

/// The pass reads bills by an index, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn old_bills_are_found_by_an_index() {
    let desk = desk().await;
    on(&desk, MORNING).await;
    let plan: Vec<sqlx::mysql::MySqlRow> = sqlx::query(
        "EXPLAIN SELECT id, gateway, day FROM payment_bills WHERE pruned_at IS NULL AND day < '2026-01-01' \
         AND status <> 'storing' ORDER BY day LIMIT 64",
    )
    .fetch_all(&desk.h.app.db)
    .await
    .unwrap();
    let used: Option<String> = sqlx::Row::get(&plan[0], "key");
    assert_eq!(used.as_deref(), Some("ix_payment_bills_pruned"));
}
