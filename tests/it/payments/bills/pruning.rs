//! Lines of bills that are old enough go; what a person has still to look at stays.

use onrush::platform::text::Text;
use sqlx::Executor;

use super::*;

async fn prune(desk: &Desk) -> Value {
    jobs::run_pass(desk.h.app.clone(), "payments.prune").await.expect("a pass").expect("a result")
}

async fn lines(desk: &Desk) -> Vec<String> {
    let statement = sqlx::query_scalar("SELECT number FROM payment_bill_lines ORDER BY number");
    let lines: Vec<Text> = statement.fetch_all(&desk.h.app.db).await.unwrap();
    lines.into_iter().map(String::from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_lines_go_and_those_of_a_difference_that_nobody_resolved_stay() {
    let desk = desk().await;
    let h = &desk.h;
    let ours = sell(h, 1000).await.attempt.payment_no;
    for number in ["seen", "unseen"] {
        stranger(h, number, 7, at(NOON)).await;
    }
    stranger(h, "later", 8, at("2026-11-21T04:00:00.000Z")).await;
    on(&desk, MORNING).await;
    on(&desk, NEXT_MORNING).await;
    let all = differences(&desk, "").await;
    for number in ["seen", "later"] {
        let id = all.iter().find(|item| item["number"] == number).unwrap()["id"].as_str().unwrap().to_owned();
        resolve(&desk, &id, "another shop's").await.expect(200);
    }
    // Four hundred days after the 20th all are still there; on the next one that day's go.
    set_clock(h, at("2027-12-25T04:00:00.000Z"));
    assert_eq!(prune(&desk).await["lines"], 0);
    assert_eq!(lines(&desk).await.len(), 4);
    set_clock(h, at("2027-12-26T04:00:00.000Z"));
    assert_eq!(prune(&desk).await["lines"], 2);
    assert_eq!(lines(&desk).await, ["later", "unseen"]);
    assert_eq!(prune(&desk).await["lines"], 0);
    // The sums stay, and so does what was told: with its line, the open one has not come to fit.
    let bill = bill_of(&desk, "sandbox", "2026-11-20").await.body["bill"].take();
    assert_eq!((&bill["payments"], &bill["payments_fen"]), (&json!(3), &json!(1014)));
    assert_eq!((&bill["status"], &bill["pruned_at"]), (&json!("believed"), &json!("2027-12-26T04:00:00.000Z")));
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

/// What a dispute came to is the sum of lines that lie months apart.
#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_a_number_go_together() {
    let desk = desk().await;
    let h = &desk.h;
    stranger(h, "slow", 7, at(NOON)).await;
    stranger(h, "quick", 8, at(NOON)).await;
    on(&desk, MORNING).await;
    let again = "UPDATE sandbox_trades SET paid_at = '2026-11-21 04:00:00' WHERE merchant_no = ?";
    gateway_writes(h, again, "slow").await;
    on(&desk, NEXT_MORNING).await;
    for item in differences(&desk, "&status=open").await {
        resolve(&desk, item["id"].as_str().unwrap(), "another shop's").await.expect(200);
    }
    assert_eq!(lines(&desk).await, ["quick", "slow", "slow"]);
    // The 20th is old enough, the 21st is not.
    set_clock(h, at("2027-12-26T04:00:00.000Z"));
    assert_eq!(prune(&desk).await["lines"], 1);
    assert_eq!(lines(&desk).await, ["slow", "slow"]);
    sqlx::query("UPDATE payment_bills SET compared_at = NULL WHERE day = '2026-11-21'")
        .execute(&h.app.db)
        .await
        .unwrap();
    reconcile(h).await;
    let all = differences(&desk, "").await;
    let slow = all.iter().find(|item| item["number"] == "slow").unwrap();
    assert_eq!((&slow["theirs_fen"], &slow["status"]), (&json!(14), &json!("resolved")));
    // A day later both are, also that of the bill which was pruned before.
    set_clock(h, at("2027-12-27T04:00:00.000Z"));
    assert_eq!(prune(&desk).await["lines"], 2);
    assert_eq!(lines(&desk).await, Vec::<String>::new());
}

/// Younger lines are looked for by their numbers, however many bills and lines there are.
#[tokio::test(flavor = "multi_thread")]
async fn younger_lines_are_found_by_their_numbers() {
    let desk = desk().await;
    stranger(&desk.h, "s1", 7, at(NOON)).await;
    on(&desk, MORNING).await;
    // Of few rows a server reads all.
    let mut many = sqlx::QueryBuilder::<sqlx::MySql>::new(
        "INSERT INTO payment_bill_lines (bill_id, kind, number, merchant_no, amount_fen, line_count, at) \
         SELECT bill_id, kind, more.number, merchant_no, amount_fen, line_count, at FROM payment_bill_lines, (",
    );
    for n in 0..2000 {
        many.push(if n == 0 { "SELECT " } else { " UNION ALL SELECT " }).push_bind(format!("n{n}")).push(" AS number");
    }
    many.push(") more WHERE payment_bill_lines.number = 's1'").build().execute(&desk.h.app.db).await.unwrap();
    sqlx::query("ANALYZE TABLE payment_bill_lines").fetch_all(&desk.h.app.db).await.unwrap();
    for statement in [
        "EXPLAIN FORMAT=TRADITIONAL SELECT l.number FROM payment_bill_lines l FORCE INDEX (ix_payment_bill_lines_number) STRAIGHT_JOIN \
         payment_bills b ON b.id = l.bill_id AND b.believed = 1 WHERE b.gateway = 'sandbox' AND b.day >= '2026-01-01' \
         AND l.kind = 'payment' AND l.number IN ('s1', 's2')",
        "EXPLAIN FORMAT=TRADITIONAL DELETE l FROM payment_bill_lines l FORCE INDEX (ix_payment_bill_lines_number) STRAIGHT_JOIN payment_bills b \
         ON b.id = l.bill_id WHERE b.status <> 'storing' AND b.gateway = 'sandbox' AND b.day < '2026-12-01' \
         AND l.kind = 'payment' AND l.number IN ('s1', 's2')",
    ] {
        let plan: Vec<sqlx::mysql::MySqlRow> = desk.h.app.db.fetch_all(statement).await.unwrap();
        let used: Vec<Text> = plan.iter().map(|row| sqlx::Row::get(row, "key")).collect();
        let keys = ["ix_payment_bill_lines_number", "PRIMARY"].map(|key| Text(key.to_owned()));
        assert_eq!(used, keys, "{statement}");
    }
}

/// The pass reads bills by an index, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn old_bills_are_found_by_an_index() {
    let desk = desk().await;
    on(&desk, MORNING).await;
    // As text: MySQL names the columns of a plan only when it runs.
    let plan: Vec<sqlx::mysql::MySqlRow> = desk.h.app.db.fetch_all(
        "EXPLAIN FORMAT=TRADITIONAL SELECT id, gateway, day FROM payment_bills WHERE pruned_at IS NULL AND day < '2026-01-01' \
         AND status <> 'storing' ORDER BY day LIMIT 64",
    )
    .await
    .unwrap();
    let Text(used) = sqlx::Row::get(&plan[0], "key");
    assert_eq!(used, "ix_payment_bills_pruned");
}
