//! The gateway's bill of each day beside our books: what differs, on which side of midnight, and what becomes of it.
//!
//! The gateway's books are changed by hand where a gateway would be wrong: it is a company outside.

mod asking;
mod days;
mod pruning;
mod racing;
mod resolving;
mod stripe;
mod wechat;

use onrush::jobs;
use onrush::platform::clock::At;

use super::crossing::service_behind;
use super::*;
use crate::schedules::{Desk, set_clock};
use crate::support::gateways::alipay::{Alipay, Refunding, bill_line};

/// Noon in Shanghai, on the day of most of these tests.
const NOON: &str = "2026-11-20T04:00:00.000Z";
/// When the pass runs on the mornings after it.
const MORNING: &str = "2026-11-21T02:30:00.000Z";
const NEXT_MORNING: &str = "2026-11-22T02:30:00.000Z";
/// The day's last midnight.
const MIDNIGHT: &str = "2026-11-20T16:00:00.000Z";

fn at(text: &str) -> At {
    text.parse().expect("an instant")
}

/// A service at noon, and somebody who looks at its bills.
async fn desk() -> Desk {
    let h = service().await;
    set_clock(&h, at(NOON));
    Desk::of(h).await
}

/// An order that was paid at the gateway.
struct Sold {
    buyer: Person,
    order: String,
    attempt: Attempt,
}

/// Somebody pays, and the gateway's word is still under way.
async fn pay(h: &Harness, fen: i64, form: &'static str) -> Sold {
    let person = h.register().await;
    let no = order(h, &person, fen).await;
    let attempt = start(h, &person, &no).await;
    buyer(h, &attempt.trade, form).await.expect(200);
    Sold { buyer: person, order: no, attempt }
}

/// Somebody pays, and we hear of it.
async fn sell(h: &Harness, fen: i64) -> Sold {
    let sold = pay(h, fen, "action=pay").await;
    deliver(h).await;
    sold
}

/// The pass; what came of it.
async fn reconcile(h: &Harness) -> Value {
    jobs::run_pass(h.app.clone(), "payments.bills").await.expect("a pass").expect("a result")
}

/// The pass of a morning.
async fn on(desk: &Desk, morning: &str) -> Value {
    set_clock(&desk.h, at(morning));
    reconcile(&desk.h).await
}

/// The gateway changes its books, or loses some: the statement has one number.
async fn gateway_writes(h: &Harness, sql: &'static str, number: &str) {
    let done = sqlx::query(sql).bind(number.to_owned()).execute(&h.app.db).await.unwrap();
    assert_eq!(done.rows_affected(), 1, "{sql}");
}

/// A payment at the gateway that is nobody's here.
async fn stranger(h: &Harness, number: &str, fen: i64, paid_at: At) {
    sqlx::query(
        "INSERT INTO sandbox_trades (trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, created_at, \
         expires_at, paid_at) VALUES (?, ?, ?, ?, 'paid', 's', 'http://x', ?, ?, ?)",
    )
    .bind(Uuid::now_v7())
    .bind(number)
    .bind(fen)
    .bind(fen)
    .bind(paid_at)
    .bind(paid_at)
    .bind(paid_at)
    .execute(&h.app.db)
    .await
    .unwrap();
}

async fn differences(desk: &Desk, filter: &str) -> Vec<Value> {
    let page = desk.h.get(&format!("/admin/payments/differences?limit=100{filter}"), &desk.token()).await.expect(200);
    assert!(page["next_cursor"].is_null());
    page["items"].as_array().unwrap().clone()
}

/// All differences, oldest first, as (what, number, kind, status).
async fn told(desk: &Desk) -> Vec<(String, String, String, String)> {
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let row = |item: &Value| (text(item, "what"), text(item, "number"), text(item, "kind"), text(item, "status"));
    differences(desk, "").await.iter().rev().map(row).collect()
}

fn row(what: &str, number: &str, kind: &str, status: &str) -> (String, String, String, String) {
    (what.to_owned(), number.to_owned(), kind.to_owned(), status.to_owned())
}

async fn bills(desk: &Desk) -> Vec<Value> {
    let page = desk.h.get("/admin/payments/bills?limit=100", &desk.token()).await.expect(200);
    page["items"].as_array().unwrap().clone()
}

/// A person asks for the bill of a day.
async fn ask(desk: &Desk, gateway: &str, day: &str) -> Answer {
    desk.h.post(&format!("/admin/payments/bills/{gateway}/{day}/fetch"), &desk.token(), json!({})).await
}

/// How the bill of a day stands.
async fn bill_of(desk: &Desk, gateway: &str, day: &str) -> Answer {
    desk.h.get(&format!("/admin/payments/bills/{gateway}/{day}"), &desk.token()).await
}

/// A worker does what was asked for.
async fn carry_out(desk: &Desk, asked: &Answer) -> Outcome {
    carry_out_at(&desk.h, asked).await
}

/// As [`carry_out`], in this process.
async fn carry_out_at(h: &Harness, asked: &Answer) -> Outcome {
    let args = json!({ "gateway": asked["gateway"], "day": asked["day"] });
    let job = Job::new(asked.text_of("task_id").parse().unwrap(), serde_json::from_value(args).unwrap());
    onrush::reconciliation::fetch_bill(h.app.clone(), job).await
}

/// A person asks for the bill of a day, and a worker fetches it; how it stands then.
async fn fetch(desk: &Desk, day: &str) -> Value {
    let asked = ask(desk, "sandbox", day).await.expect(202);
    carry_out(desk, &asked).await;
    bill_of(desk, "sandbox", day).await.expect(200).body
}

async fn resolve(desk: &Desk, id: &str, note: &str) -> Answer {
    let path = format!("/admin/payments/differences/{id}/resolve");
    desk.h.post(&path, &desk.token(), json!({ "note": note })).await
}

/// Has an order refunded, whole; the number of its refund, which is still to be sent.
async fn refund(desk: &Desk, sold: &Sold) -> String {
    let path = format!("/admin/orders/{}/refund", sold.order);
    let answer = desk.h.post_once(&path, &desk.token(), &sold.order, json!({ "reason": "asked" })).await;
    answer.expect(201).text_of("refund_no")
}

async fn refund_status(desk: &Desk, no: &str) -> String {
    desk.h.get(&format!("/admin/refunds/{no}"), &desk.token()).await.expect(200).text_of("status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_on_which_all_fits_has_no_differences() {
    let desk = desk().await;
    let (one, other) = (sell(&desk.h, 1000).await, sell(&desk.h, 500).await);
    let back = refund(&desk, &other).await;
    payments::drive_refunds(&desk.h.app).await.unwrap();
    assert_eq!(refund_status(&desk, &back).await, "confirmed");
    // Yesterday has no bill before ten o'clock: those of the days before are fetched.
    set_clock(&desk.h, at("2026-11-21T01:59:59.000Z"));
    let early = reconcile(&desk.h).await;
    assert_eq!(early["fetched"].as_array().unwrap().len(), 6);
    let done = on(&desk, MORNING).await;
    assert_eq!(done["fetched"], json!([{ "gateway": "sandbox", "day": "2026-11-20" }]));
    let bill = bills(&desk).await.remove(0);
    assert_eq!(
        (&bill["day"], &bill["payments"], &bill["payments_fen"], &bill["refunds"], &bill["refunds_fen"]),
        (&json!("2026-11-20"), &json!(2), &json!(1500), &json!(1), &json!(500))
    );
    assert_eq!((&bill["fetched_at"], &bill["compared_at"]), (&json!(MORNING), &json!(MORNING)));
    assert_eq!((&bill["status"], &bill["differences_open"]), (&json!("believed"), &json!(0)));
    // Once more, and a day later.
    assert_eq!(reconcile(&desk.h).await["fetched"], json!([]));
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, []);
    assert_eq!(bills(&desk).await.len(), 8);
    assert_eq!(one.attempt.payment_no.len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_callback_is_settled_by_the_bill() {
    let desk = desk().await;
    let lost = pay(&desk.h, 1000, "action=pay").await;
    // And one whose order died before the money came.
    let late = {
        let person = desk.h.register().await;
        let no = order(&desk.h, &person, 700).await;
        let attempt = start(&desk.h, &person, &no).await;
        desk.h.post(&format!("/orders/{no}/cancel"), &person, json!({})).await.expect(200);
        Sold { buyer: person, order: no, attempt }
    };
    let money = "UPDATE sandbox_trades SET status = 'paid', paid_fen = amount_fen, paid_at = '2026-11-20 05:00:00' \
                 WHERE merchant_no = ?";
    gateway_writes(&desk.h, money, &late.attempt.payment_no).await;
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid'").await, 0);
    let done = on(&desk, MORNING).await;
    assert_eq!((&done["opened"], told(&desk).await.len()), (&json!(0), 0));
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM orders WHERE status = 1").await, 1);
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM payments WHERE resolution = 'owed'").await, 1);
    release(&desk.h).await;
    assert_eq!(resolve_late(&desk.h).await, 1);
    // The callback itself, hours late.
    deliver(&desk.h).await;
    books_balance(&desk.h).await;
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, []);
    assert_ne!(lost.order, late.order);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_was_made_unheard_is_settled_by_the_bill() {
    let desk = desk().await;
    let sold = sell(&desk.h, 1000).await;
    buyer(&desk.h, &sold.attempt.trade, "action=refunds_never").await.expect(200);
    let no = refund(&desk, &sold).await;
    payments::drive_refunds(&desk.h.app).await.unwrap();
    assert_eq!(refund_status(&desk, &no).await, "failed");
    // A person at the gateway has made it all the same, and no word of it comes.
    gateway_writes(&desk.h, "UPDATE sandbox_refunds SET status = 'done' WHERE refund_no = ?", &no).await;
    on(&desk, MORNING).await;
    assert_eq!(refund_status(&desk, &no).await, "confirmed");
    assert_eq!(told(&desk).await, []);
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM orders WHERE status = 5").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_of_a_payment_is_told() {
    let desk = desk().await;
    let h = &desk.h;
    let missing_there = sell(h, 1000).await.attempt.payment_no;
    gateway_writes(h, "UPDATE sandbox_trades SET paid_at = NULL WHERE merchant_no = ?", &missing_there).await;
    let amount = sell(h, 2000).await.attempt.payment_no;
    gateway_writes(h, "UPDATE sandbox_trades SET paid_fen = 1999 WHERE merchant_no = ?", &amount).await;
    // Its bill has it as paid, and when it is asked it has not.
    let state = pay(h, 3000, "action=pay").await.attempt.payment_no;
    gateway_writes(h, "UPDATE sandbox_trades SET status = 'closed' WHERE merchant_no = ?", &state).await;
    let wrong = pay(h, 4000, "action=pay_wrong_amount&amount_fen=1").await.attempt.payment_no;
    sqlx::query("DELETE FROM sandbox_notifies").execute(&h.app.db).await.unwrap();
    stranger(h, "not-ours", 77, at(NOON)).await;
    let unknown = "0193".repeat(8);
    stranger(h, &unknown, 78, at(NOON)).await;

    on(&desk, MORNING).await;
    let mut expected = vec![
        row("payment", &amount, "amount_differs", "open"),
        row("payment", &state, "state_differs", "open"),
        row("payment", &wrong, "amount_differs", "open"),
        row("payment", &wrong, "state_differs", "open"),
        row("payment", "not-ours", "missing_here", "open"),
        row("payment", &unknown, "missing_here", "open"),
        // The bill of the next day may still have it.
        row("payment", &missing_there, "missing_there", "waiting"),
    ];
    expected.sort();
    let mut all = told(&desk).await;
    all.sort();
    assert_eq!(all, expected);
    let open = differences(&desk, "&kind=missing_here&status=open&what=payment&gateway=sandbox").await;
    let found = open.iter().find(|item| item["number"] == "not-ours").unwrap();
    assert_eq!(
        (&found["theirs_fen"], &found["ours_fen"], &found["ours_status"], &found["day"], &found["found_at"]),
        (&json!(77), &Value::Null, &Value::Null, &json!("2026-11-20"), &json!(MORNING))
    );
    let differs = differences(&desk, "&kind=amount_differs").await;
    let found = differs.iter().find(|item| item["number"] == amount.as_str()).unwrap();
    assert_eq!(
        (&found["theirs_fen"], &found["ours_fen"], &found["ours_status"], &found["payment_no"]),
        (&json!(1999), &json!(2000), &json!("paid"), &json!(amount))
    );
    let bill = bills(&desk).await.remove(0);
    assert_eq!((&bill["differences_open"], &bill["differences_waiting"]), (&json!(6), &json!(1)));
    // It is told once.
    assert_eq!(reconcile(h).await["opened"], json!(0));

    assert_eq!(on(&desk, NEXT_MORNING).await["opened"], json!(1));
    let there = differences(&desk, "&kind=missing_there").await;
    assert_eq!(
        (&there[0]["status"], &there[0]["theirs_fen"], &there[0]["ours_fen"]),
        (&json!("open"), &Value::Null, &json!(1000))
    );
    assert_eq!(told(&desk).await.len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_of_a_refund_is_told() {
    let desk = desk().await;
    let h = &desk.h;
    let mut numbers = Vec::new();
    for fen in [1000, 2000] {
        let sold = sell(h, fen).await;
        numbers.push(refund(&desk, &sold).await);
    }
    let twice = sell(h, 3000).await;
    buyer(h, &twice.attempt.trade, "action=refunds_never").await.expect(200);
    let first = refund(&desk, &twice).await;
    payments::drive_refunds(&h.app).await.unwrap();
    // Under another number; and then the gateway carries out the first one too.
    buyer(h, &twice.attempt.trade, "action=refunds_at_once").await.expect(200);
    let retry = format!("/admin/refunds/{first}/retry");
    let second = h.post(&retry, &desk.token(), json!({ "new_number": true })).await.expect(200).text_of("refund_no");
    payments::drive_refunds(&h.app).await.unwrap();
    assert_eq!(refund_status(&desk, &second).await, "confirmed");
    gateway_writes(h, "UPDATE sandbox_refunds SET status = 'done' WHERE refund_no = ?", &first).await;
    gateway_writes(h, "DELETE FROM sandbox_refunds WHERE refund_no = ?", &numbers[0]).await;
    gateway_writes(h, "UPDATE sandbox_refunds SET amount_fen = 1 WHERE refund_no = ?", &numbers[1]).await;
    sqlx::query("INSERT INTO sandbox_refunds (refund_no, trade_no, amount_fen, status, created_at) SELECT 'by-hand', trade_no, 5, 'done', ? FROM sandbox_trades LIMIT 1")
        .bind(at(NOON))
        .execute(&h.app.db)
        .await
        .unwrap();
    on(&desk, MORNING).await;
    on(&desk, NEXT_MORNING).await;
    let mut expected = vec![
        row("refund", &numbers[0], "missing_there", "open"),
        row("refund", &numbers[1], "amount_differs", "open"),
        row("refund", &first, "state_differs", "open"),
        row("refund", "by-hand", "missing_here", "open"),
    ];
    expected.sort();
    let mut all = told(&desk).await;
    all.sort();
    assert_eq!(all, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_is_under_way_is_waited_for() {
    let desk = desk().await;
    let sold = sell(&desk.h, 1000).await;
    buyer(&desk.h, &sold.attempt.trade, "action=refunds_slowly").await.expect(200);
    let no = refund(&desk, &sold).await;
    payments::drive_refunds(&desk.h.app).await.unwrap();
    // Its bill has it already: some gateways list what they are at. When it is asked, it is at it.
    let line = "INSERT INTO sandbox_refunds (refund_no, trade_no, amount_fen, status, created_at) \
                SELECT CONCAT(refund_no, '-copy'), trade_no, amount_fen, 'done', created_at FROM sandbox_refunds WHERE refund_no = ?";
    gateway_writes(&desk.h, line, &no).await;
    set_clock(&desk.h, at(MORNING));
    reconcile(&desk.h).await;
    let listed =
        "UPDATE payment_bill_lines SET number = REPLACE(number, '-copy', '') WHERE number = CONCAT(?, '-copy')";
    gateway_writes(&desk.h, listed, &no).await;
    sqlx::query("UPDATE payment_bills SET compared_at = NULL").execute(&desk.h.app.db).await.unwrap();
    reconcile(&desk.h).await;
    let of_it = async || -> Vec<_> { told(&desk).await.into_iter().filter(|(_, number, ..)| *number == no).collect() };
    assert_eq!(of_it().await, [row("refund", &no, "state_differs", "waiting")]);
    on(&desk, NEXT_MORNING).await;
    assert_eq!(of_it().await, [row("refund", &no, "state_differs", "waiting")]);
    // For eight days; then somebody must look.
    on(&desk, "2026-11-28T04:00:01.000Z").await;
    assert_eq!(of_it().await, [row("refund", &no, "state_differs", "open")]);
    gateway_writes(&desk.h, "UPDATE sandbox_refunds SET status = 'done' WHERE refund_no = ?", &no).await;
    on(&desk, "2026-11-28T05:00:00.000Z").await;
    assert_eq!(of_it().await, [row("refund", &no, "state_differs", "vanished")]);
    assert_eq!(refund_status(&desk, &no).await, "confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lines_are_compared_by_several_processes_at_once() {
    let desk = desk().await;
    let h = &desk.h;
    let ours = sell(h, 1000).await.attempt.payment_no;
    for chunk in 0..3 {
        let mut insert = sqlx::QueryBuilder::new(
            "INSERT INTO sandbox_trades (trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, \
             created_at, expires_at, paid_at) ",
        );
        insert.push_values(0..100, |mut row, i| {
            row.push_bind(Uuid::now_v7()).push_bind(format!("m{chunk}-{i}")).push_bind(5).push_bind(5);
            row.push_bind("paid").push_bind("s").push_bind("http://x").push_bind(h.now()).push_bind(h.now());
            row.push_bind(h.now());
        });
        insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    }
    set_clock(h, at(MORNING));
    let (second, third) = (h.another().await, h.another().await);
    tokio::join!(reconcile(h), reconcile(&second), reconcile(&third));
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bills WHERE believed = 1").await, 7);
    assert_eq!(
        h.count(
            "SELECT COUNT(*) FROM payment_bill_lines l JOIN payment_bills b ON b.id = l.bill_id WHERE b.believed = 1"
        )
        .await,
        301
    );
    assert_eq!(
        h.count("SELECT COUNT(*) FROM payment_differences WHERE status = 'open' AND kind = 'missing_here'").await,
        300
    );
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_differences").await, 300);
    // All of them, in pages, each once.
    let (mut numbers, mut cursor) = (std::collections::BTreeSet::new(), String::new());
    for _ in 0..10 {
        let page = h.get(&format!("/admin/payments/differences?status=open&limit=70{cursor}"), &desk.token()).await;
        let page = page.expect(200);
        for item in page["items"].as_array().unwrap() {
            assert!(numbers.insert(item["number"].as_str().unwrap().to_owned()));
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(numbers.len() == 300 && !numbers.contains(&ours));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_was_paid_twice_is_told() {
    let desk = desk().await;
    let no = sell(&desk.h, 1000).await.attempt.payment_no;
    on(&desk, MORNING).await;
    assert_eq!(told(&desk).await, []);
    // On the next day's bill as well.
    let again = "UPDATE sandbox_trades SET paid_at = '2026-11-21 04:00:00' WHERE merchant_no = ?";
    gateway_writes(&desk.h, again, &no).await;
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, [row("payment", &no, "amount_differs", "open")]);
    assert_eq!(differences(&desk, "").await[0]["theirs_fen"], 2000);
}

/// Its bill says that a refund was made in whose place another one was, and Alipay itself knows of none: asking may not be
/// what makes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_bill_sends_no_refund() {
    let alipay = Alipay::start().await;
    let h = service_with(alipay.settings()).await;
    set_clock(&h, at(NOON));
    alipay.follow(&h);
    let desk = Desk::of(h).await;
    let person = desk.h.register().await;
    let no = order(&desk.h, &person, 1000).await;
    let way = json!({ "gateway": "alipay", "channel": "page" });
    let started = desk.h.post(&format!("/orders/{no}/pay"), &person, way).await.expect(200);
    send(desk.h.client.http.get(started.text_of("pay_url"))).await.expect(200);
    let payment = started.text_of("payment_no");
    alipay.send(&desk.h, &alipay.pay(&payment)).await.expect(200);
    alipay.refund(Refunding::Never);
    let body = json!({ "amount_fen": 300, "reason": "test" });
    let path = format!("/admin/orders/{no}/refund");
    let first = desk.h.post_once(&path, &desk.token(), "once", body).await.expect(201).text_of("refund_no");
    payments::drive_refunds(&desk.h.app).await.unwrap();
    alipay.refund(Refunding::AtOnce);
    let retry = format!("/admin/refunds/{first}/retry");
    let second =
        desk.h.post(&retry, &desk.token(), json!({ "new_number": true })).await.expect(200).text_of("refund_no");
    payments::drive_refunds(&desk.h.app).await.unwrap();
    assert_eq!(alipay.refunds(&payment), [(second.clone(), 300)]);
    let minute = "2026-11-20 13:00:00";
    let lines = [("", 1000), (first.as_str(), 300), (second.as_str(), 300)];
    let lines: Vec<String> = lines.iter().map(|(refund, fen)| bill_line(&payment, *fen, refund, minute)).collect();
    alipay.make_bill("2026-11-20", &lines);
    alipay.seen();
    on(&desk, MORNING).await;
    let asked: Vec<String> = alipay.seen().into_iter().map(|(method, _)| method).collect();
    assert!(asked.iter().any(|method| method == "alipay.trade.fastpay.refund.query"), "{asked:?}");
    assert!(!asked.iter().any(|method| method == "alipay.trade.refund"), "{asked:?}");
    assert_eq!(alipay.refunds(&payment).len(), 1);
    assert_eq!(told(&desk).await, [row("refund", &first, "state_differs", "open")]);
}
