//! Gateways that are switched off while payments or refunds of theirs are open, and what the operator is told of them.

use onrush::platform::clock::At;

use super::crossing::service_behind;
use super::*;
use crate::seckill::assert_clean;

/// The same service, where the sandbox is switched off.
async fn switched_off(h: &Harness) -> Harness {
    h.another_with(&[("payments.sandbox", "false")]).await
}

/// An order that was paid in the sandbox, and a refund of it that nobody has sent yet; the refund's number.
async fn owed_back(h: &Harness, who: &Person, admin: &Person) -> String {
    let no = order(h, who, 600).await;
    let attempt = start(h, who, &no).await;
    buyer(h, &attempt.trade, "action=pay").await.expect(200);
    deliver(h).await;
    let key = Uuid::now_v7().as_simple().to_string();
    let path = format!("/admin/orders/{no}/refund");
    h.post_once(&path, admin, &key, json!({ "reason": "test" })).await.expect(201).text_of("refund_no")
}

async fn abandon(h: &Harness, who: &Person, payment: &str) -> Answer {
    let path = format!("/admin/payments/{payment}/abandon");
    h.post(&path, who, json!({ "reason": "the contract has ended" })).await
}

async fn audited(h: &Harness, admin: &Person, action: &str) -> Vec<Value> {
    let audit = h.get(&format!("/admin/audit?action={action}"), admin).await.expect(200);
    audit["items"].as_array().unwrap().clone()
}

async fn last_error(h: &Harness, admin: &Person, refund: &str) -> String {
    h.get(&format!("/admin/refunds/{refund}"), admin).await.expect(200).text_of("last_error")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_at_a_gateway_that_is_switched_off_is_told() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let off = switched_off(&h).await;
    assert_eq!(payments::open_at_disabled(&off.app).await.unwrap(), []);
    let no = order(&h, &alice, 500).await;
    start(&h, &alice, &no).await;
    owed_back(&h, &alice, &admin).await;
    assert_eq!(payments::open_at_disabled(&h.app).await.unwrap(), [], "it is switched on here");
    let open = payments::OpenAtDisabled { gateway: payments::Gateway::Sandbox, payments: 1, refunds: 1 };
    assert_eq!(payments::open_at_disabled(&off.app).await.unwrap(), [open]);

    // A process whose gateway is another one says so at the start, and in its metrics.
    for process_says in [true, false] {
        let gateway = if process_says { "stripe" } else { "sandbox" };
        sqlx::query("UPDATE payments SET gateway = ?").bind(gateway).execute(&h.app.db).await.unwrap();
        let process = h.process("worker", &[]).await;
        let gauge = async |line: &str| process.client.get("/metrics", ()).await.text().contains(line);
        let count = i64::from(process_says);
        for what in ["payments", "refunds"] {
            let line = format!("onrush_gateway_off_open{{gateway=\"stripe\",what=\"{what}\"}} {count}");
            h.eventually(async || gauge(&line).await).await;
        }
        let log = process.log();
        assert_eq!(log.matches("payment gateway is switched off while").count(), usize::from(process_says), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_at_a_gateway_that_is_switched_off_hold_up_no_others() {
    let h = service().await;
    let alice = h.register().await;
    for _ in 0..40 {
        let no = order(&h, &alice, 500).await;
        start(&h, &alice, &no).await;
    }
    sqlx::query("UPDATE payments SET gateway = 'stripe'").execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(1));
    let no = order(&h, &alice, 500).await;
    start(&h, &alice, &no).await;
    h.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&h.app).await.unwrap(), 41);
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await, 40, "nobody was asked about them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_at_a_gateway_that_is_switched_off_can_be_given_up() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    // Money that nobody here has heard of.
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    let off = switched_off(&h).await;
    let refused = abandon(&h, &admin, &attempt.payment_no).await.problem(409, "payment_state");
    assert!(refused.text_of("detail").contains("sandbox is switched on"), "{}", refused.text());
    send(off.request(Method::POST, &format!("/orders/{no}/cancel"), &alice)).await.problem(409, "gateway_off");
    off.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "sandbox"}))
        .await
        .problem(422, "validation_failed");
    off.advance(DEADLINE);
    assert_eq!(payments::sweep_due(&off.app).await.unwrap(), 1);
    assert_eq!(status(&off, &alice, &no).await, "unpaid");

    abandon(&off, &alice, &attempt.payment_no).await.problem(403, "forbidden");
    abandon(&off, &admin, &"0".repeat(32)).await.problem(404, "not_found");
    let path = format!("/admin/payments/{}/abandon", attempt.payment_no);
    off.post(&path, &admin, json!({ "reason": " " })).await.problem(422, "validation_failed");
    assert_eq!(audited(&h, &admin, "payment.abandon").await.len(), 0);
    let over = abandon(&off, &admin, &attempt.payment_no).await.expect(200);
    assert_eq!((over["status"].as_str(), &over["next_query_at"]), (Some("closed"), &Value::Null));
    assert_eq!(
        abandon(&off, &admin, &attempt.payment_no).await.expect(200).body,
        over.body,
        "a repeat changes nothing"
    );
    let audit = audited(&h, &admin, "payment.abandon").await;
    assert_eq!((audit.len(), &audit[0]["details"]["reason"]), (1, &"the contract has ended".into()));
    assert_eq!(payments::sweep_due(&off.app).await.unwrap(), 1);
    assert_eq!(status(&off, &alice, &no).await, "timed_out");
    release(&off).await;
    assert_clean(&h).await;

    // Switched on again: its money is late money.
    assert_eq!(deliver(&h).await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid' AND resolution = 'owed'").await, 1);
    assert_eq!(resolve_late(&h).await, 1);
    assert_eq!(status(&h, &alice, &no).await, "paid", "everything could be held again");
    abandon(&off, &admin, &attempt.payment_no).await.problem(409, "payment_state");
    books_balance(&h).await;
}

/// Another process has the gateway switched on. Both wait for the order's row: whichever of the two gets it first, the
/// money pays the order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_payment_that_is_given_up_while_its_money_arrives_is_paid() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let off = switched_off(&h).await;
    let waiting = async |statements: i64| h.eventually(async || h.held_up(statements).await).await;
    let mut given_up = 0;
    for money_first in [false, true] {
        let no = order(&h, &alice, 500).await;
        let attempt = start(&h, &alice, &no).await;
        buyer(&h, &attempt.trade, "action=pay").await.expect(200);
        let mut lock = h.app.db.begin().await.unwrap();
        let row = sqlx::query("SELECT id FROM orders WHERE id = ? FOR UPDATE").bind(no.parse::<OrderId>().unwrap());
        row.execute(&mut *lock).await.unwrap();
        let give_up = async {
            waiting(i64::from(money_first)).await;
            abandon(&off, &admin, &attempt.payment_no).await
        };
        let tell = async {
            waiting(i64::from(!money_first)).await;
            deliver(&h).await
        };
        let let_go = async {
            waiting(2).await;
            lock.rollback().await.unwrap();
        };
        let (answer, told, ()) = tokio::join!(give_up, tell, let_go);
        assert_eq!(told, 1);
        match answer.status {
            200 => given_up += 1,
            _ => drop(answer.problem(409, "payment_state")),
        }
        assert_eq!(status(&h, &alice, &no).await, "paid");
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'paid' AND resolution = 'order'").await, 2);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE closed_at IS NOT NULL").await, given_up);
    assert_eq!(audited(&h, &admin, "payment.abandon").await.len(), usize::try_from(given_up).unwrap());
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_gateway_that_is_switched_off_is_refused_with_that_reason() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let off = switched_off(&h).await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    notify(&h, &paid_body("n1", &attempt.payment_no, &attempt.trade, 499)).await.expect(422);
    let list = h.get("/admin/payments/notifications?outcome=flagged", &admin).await.expect(200);
    let rerun = format!("/admin/payments/notifications/{}/rerun", list["items"][0]["id"].as_str().unwrap());
    let refused = off.post(&rerun, &admin, json!({})).await.problem(409, "gateway_off");
    assert_eq!(refused["detail"], "sandbox is switched off");
    assert_eq!(audited(&h, &admin, "notification.rerun").await.len(), 0);

    let refund = owed_back(&h, &alice, &admin).await;
    payments::drive_refunds(&off.app).await.unwrap();
    assert_eq!(last_error(&h, &admin, &refund).await, "gateway_off: sandbox is switched off");
    sqlx::query("UPDATE refunds SET status = 'failed'").execute(&h.app.db).await.unwrap();
    let retry = format!("/admin/refunds/{refund}/retry");
    for new_number in [false, true] {
        let refused = off.post(&retry, &admin, json!({ "new_number": new_number })).await.problem(409, "gateway_off");
        assert_eq!(refused["detail"], "sandbox is switched off");
    }
    assert_eq!(audited(&h, &admin, "refund.retry").await.len(), 0);
    assert_eq!(h.post(&retry, &admin, json!({})).await.expect(200)["status"], "pending");
    h.advance(Duration::from_secs(60));
    payments::drive_refunds(&h.app).await.unwrap();
    assert_eq!(last_error(&h, &admin, &refund).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_gateway_does_not_answer_is_told_to_the_operator_and_not_to_the_buyer() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    let (alice, admin) = (h.register().await, h.admin().await);
    let refund = owed_back(&h, &alice, &admin).await;
    *between.fail.lock().unwrap() = Some(("refund", 3));
    payments::drive_refunds(&h.app).await.unwrap();
    assert_eq!(last_error(&h, &admin, &refund).await, "gateway_unavailable: refund: HTTP 502 (try 3)");

    *between.fail.lock().unwrap() = Some(("bill", 3));
    let yesterday = h.now().minus(Duration::from_secs(48 * 3600));
    let day = At::from_ms(yesterday.ms()).to_string()[..10].to_owned();
    let path = format!("/admin/payments/bills/sandbox/{day}");
    let asked = h.post(&format!("{path}/fetch"), &admin, json!({})).await.expect(202);
    let args = serde_json::from_value(json!({ "gateway": "sandbox", "day": day })).unwrap();
    onrush::reconciliation::fetch_bill(h.app.clone(), Job::new(asked.text_of("task_id").parse().unwrap(), args)).await;
    let failed = h.get(&path, &admin).await.expect(200).text_of("error");
    assert!(failed.ends_with(": bill: HTTP 502 (try 3)"), "{failed}");

    let no = order(&h, &alice, 500).await;
    *between.fail.lock().unwrap() = Some(("create", 3));
    let refused = h.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "sandbox"})).await;
    let refused = refused.problem(503, "gateway_unavailable");
    assert_eq!(refused["detail"], refused["title"]);
    assert!(!refused.text().contains("502"), "{}", refused.text());
}
