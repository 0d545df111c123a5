//! Refunds of paid orders: what goes back, what is taken back with it, and that nothing goes back twice.

use onrush::check;

use super::*;
use crate::seckill::assert_clean;
use crate::support::Course;
use crate::wallet::{assert_ledger_adds_up, balance, claimed, coupon, give_points};

/// A paid order, not granted yet; its number and its trade at the gateway.
pub(super) async fn paid(h: &Harness, who: &Person, courses: &[&Course], more: Value) -> (String, String) {
    let mut body = json!({ "course_ids": courses.iter().map(|course| course.no()).collect::<Vec<_>>() });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let key = Uuid::now_v7().as_simple().to_string();
    let no = h.post_once("/orders", who, &key, body).await.expect(201).text_of("order_no");
    let attempt = start(h, who, &no).await;
    buyer(h, &attempt.trade, "action=pay").await.expect(200);
    deliver(h).await;
    assert_eq!(status(h, who, &no).await, "paid");
    (no, attempt.trade)
}

/// Asks for a refund under a new key.
pub(super) async fn refund(h: &Harness, admin: &Person, no: &str, what: Value) -> Answer {
    let key = Uuid::now_v7().as_simple().to_string();
    refund_once(h, admin, no, &key, what).await
}

pub(super) async fn refund_once(h: &Harness, admin: &Person, no: &str, key: &str, mut what: Value) -> Answer {
    what["reason"] = "the buyer asked".into();
    h.post_once(&format!("/admin/orders/{no}/refund"), admin, key, what).await
}

/// Sends what is due, or asks about it.
pub(super) async fn drive(h: &Harness) -> usize {
    payments::drive_refunds(&h.app).await.unwrap()
}

async fn courses_of(h: &Harness, who: &Person) -> usize {
    h.get("/me/courses", who).await.expect(200)["items"].as_array().unwrap().len()
}

async fn given_back(h: &Harness) -> i64 {
    h.count("SELECT CAST(COALESCE(SUM(amount_fen), 0) AS SIGNED) FROM sandbox_refunds WHERE status = 'done'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_refund_takes_back_what_the_order_gave_and_gives_back_what_it_held() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (one, two) = (h.course(6000).await, h.course(4000).await);
    let ticket = claimed(&h, &alice, coupon(&h)).await;
    give_points(&h, &alice, 500).await;
    let discounts = json!({ "user_coupon_id": ticket, "points": 300 });
    // 100 yuan, 10 off by the coupon, 3 by the points: 87 paid, which earn 87 points.
    let (no, _) = paid(&h, &alice, &[&one, &two], discounts).await;
    let key = Uuid::now_v7().as_simple().to_string();
    let done = refund_once(&h, &admin, &no, &key, json!({})).await.expect(201);
    assert_eq!(
        (&done["amount_fen"], &done["kind"], &done["order_status"]),
        (&8700.into(), &"whole".into(), &"refunding".into())
    );
    assert_eq!((&done["points_taken_back"], &done["points_missing"]), (&87.into(), &0.into()));
    assert_eq!(refund_once(&h, &admin, &no, &key, json!({})).await.expect(201).bytes, done.bytes, "the same again");
    refund_once(&h, &admin, &no, &key, json!({"amount_fen": 5})).await.problem(422, "idempotency_key_reused");
    refund(&h, &admin, &no, json!({})).await.problem(409, "already_refunded");
    assert_eq!((courses_of(&h, &alice).await, balance(&h, &alice).await), (0, 200));
    assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 0);
    // The money is on its way: coupon and points come with it.
    assert_eq!(h.count("SELECT COUNT(order_id) FROM user_coupons").await, 1);
    assert_clean(&h).await;

    assert_eq!(drive(&h).await, 1);
    assert_eq!((status(&h, &alice, &no).await.as_str(), given_back(&h).await), ("refunded", 8700));
    assert_eq!(h.count("SELECT COUNT(order_id) FROM user_coupons").await, 0);
    assert_eq!(balance(&h, &alice).await, 500);
    assert_eq!(drive(&h).await, 0);
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
    let order = h.get(&format!("/orders/{no}"), &alice).await.expect(200);
    assert!(order["items"].as_array().unwrap().iter().all(|item| item["refunded"] == true));
    let audit = h.get("/admin/audit?action=order.refund", &admin).await.expect(200);
    assert_eq!(audit["items"].as_array().unwrap().len(), 1, "a repeat is no other action");
    assert_eq!(audit["items"][0]["details"]["amount_fen"], 8700);
    // The courses can be bought again.
    paid(&h, &alice, &[&one], json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn courses_go_back_one_by_one_for_what_was_paid_for_each() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (one, two) = (h.course(6000).await, h.course(4000).await);
    let (no, _) = paid(&h, &alice, &[&one, &two], json!({})).await;
    let first = refund(&h, &admin, &no, json!({ "course_ids": [one.no()] })).await.expect(201);
    assert_eq!((&first["amount_fen"], &first["order_status"]), (&6000.into(), &"paid".into()));
    assert_eq!(drive(&h).await, 1);
    assert_eq!((courses_of(&h, &alice).await, balance(&h, &alice).await), (1, 40));
    assert_eq!(status(&h, &alice, &no).await, "paid");
    assert_clean(&h).await;
    refund(&h, &admin, &no, json!({ "course_ids": [one.no(), two.no()] })).await.problem(409, "already_refunded");
    // Part of the other's money without its course, and then the course for the rest.
    let some = refund(&h, &admin, &no, json!({ "amount_fen": 1050 })).await.expect(201);
    assert_eq!((&some["kind"], &some["course_ids"]), (&"amount".into(), &json!([])));
    assert_eq!((courses_of(&h, &alice).await, balance(&h, &alice).await), (1, 30));
    let last = refund(&h, &admin, &no, json!({ "course_ids": [two.no()] })).await.expect(201);
    assert_eq!((&last["amount_fen"], &last["order_status"]), (&2950.into(), &"refunding".into()));
    assert_eq!(drive(&h).await, 2);
    assert_eq!((status(&h, &alice, &no).await.as_str(), given_back(&h).await), ("refunded", 10_000));
    assert_eq!((courses_of(&h, &alice).await, balance(&h, &alice).await), (0, 0));
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_refunded_is_refused_with_its_reason() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (mine, other) = (h.course(5000).await, h.course(4000).await);
    let unpaid = order(&h, &alice, 500).await;
    let answer = refund(&h, &admin, &unpaid, json!({})).await.problem(409, "order_state");
    assert_eq!(answer["order_status"], "unpaid");
    refund(&h, &admin, &"0".repeat(32), json!({})).await.problem(404, "not_found");
    let (no, _) = paid(&h, &alice, &[&mine], json!({})).await;
    refund(&h, &alice, &no, json!({})).await.problem(403, "forbidden");
    let foreign =
        refund(&h, &admin, &no, json!({ "course_ids": [other.no()] })).await.problem(422, "validation_failed");
    assert_eq!(foreign["errors"][0]["field"], "course_ids[0]");
    refund(&h, &admin, &no, json!({ "course_ids": [mine.no()], "amount_fen": 5 }))
        .await
        .problem(422, "validation_failed");
    refund(&h, &admin, &no, json!({ "course_ids": [mine.no(), mine.no()] })).await.problem(422, "validation_failed");
    assert_eq!(h.count("SELECT (SELECT COUNT(*) FROM refunds) + (SELECT COUNT(*) FROM order_refunds)").await, 0);
    assert_eq!(courses_of(&h, &alice).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_that_is_not_left_is_refused_with_what_is() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (dear, free) = (h.course(5000).await, h.course(0).await);
    let (no, _) = paid(&h, &alice, &[&dear, &free], json!({})).await;
    let too_much = async |no: &str, amount: i64| {
        let answer = refund(&h, &admin, no, json!({ "amount_fen": amount })).await.problem(409, "refund_too_much");
        (answer["left_fen"].clone(), answer.text_of("detail"))
    };
    let (left, why) = too_much(&no, 5001).await;
    assert_eq!((left, why.as_str()), (json!(5000), "only 5000 fen are left of what was paid"));
    let (left, why) = too_much(&no, 5000).await;
    assert!(left == 5000 && why.contains("all that is left") && why.ends_with("name no amount"), "{left}: {why}");
    // The money goes with the course that cost it; the other one stays, and nothing is left to go with it.
    refund(&h, &admin, &no, json!({ "course_ids": [dear.no()] })).await.expect(201);
    let (left, why) = too_much(&no, 1).await;
    assert_eq!((left, why.as_str()), (json!(0), "all that was paid for the order has been given back"));
    // An order that a coupon paid.
    let cheap = h.course(900).await;
    let ticket = claimed(&h, &alice, coupon(&h)).await;
    let body = json!({ "course_ids": [cheap.no()], "user_coupon_id": ticket });
    let gift = h.post_once("/orders", &alice, "gift", body).await.expect(201).text_of("order_no");
    let (left, why) = too_much(&gift, 1).await;
    assert_eq!((left, why.as_str()), (json!(0), "no money was paid for the order"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refunds_at_once_never_give_back_more_than_was_paid() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (course, whole) = (h.course(10_000).await, h.course(700).await);
    let (no, _) = paid(&h, &alice, &[&course], json!({})).await;
    let parts = (0..12).map(|_| refund(&h, &admin, &no, json!({ "amount_fen": 1500 })));
    let answers = futures_util::future::join_all(parts).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 6, "the seventh would be too much");
    assert!(answers.iter().all(|answer| answer.status == 201 || answer["error"] == "refund_too_much"));
    let (no, _) = paid(&h, &alice, &[&whole], json!({})).await;
    let answers = futures_util::future::join_all((0..8).map(|_| refund(&h, &admin, &no, json!({})))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(answers.iter().all(|answer| answer.status == 201 || answer["error"] == "already_refunded"));
    let (one, two) = tokio::join!(drive(&h), drive(&h));
    assert!(one.max(two) == 7);
    assert_eq!(given_back(&h).await, 6 * 1500 + 700);
    assert_clean(&h).await;
    let over = "UPDATE payments SET refunded_fen = amount_fen + 1";
    assert!(sqlx::query(over).execute(&h.app.db).await.is_err(), "the database holds it too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_takes_its_time_is_asked_about_and_ends_with_the_notify() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (one, two) = (h.course(600).await, h.course(400).await);
    let (no, trade) = paid(&h, &alice, &[&one, &two], json!({})).await;
    buyer(&h, &trade, "action=refunds_slowly").await.expect(200);
    let asked = refund(&h, &admin, &no, json!({ "course_ids": [one.no()] })).await.expect(201);
    let path = format!("/admin/refunds/{}", asked.text_of("refund_no"));
    drive(&h).await;
    let seen = h.get(&path, &admin).await.expect(200);
    assert!(
        seen["status"] == "pending" && seen["asked_at"].is_string() && seen["note"] == "the buyer asked",
        "{}",
        seen.text()
    );
    h.advance(Duration::from_secs(5));
    assert_eq!(drive(&h).await, 1, "it is asked about");
    assert_eq!(h.get(&path, &admin).await["attempts"], 2);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_refunds").await, 1);
    // The gateway carries it out and says so: twice, and with the trade still paid.
    buyer(&h, &trade, "action=refunds_at_once").await.expect(200);
    assert_eq!(deliver(&h).await, 1);
    assert_eq!(h.get(&path, &admin).await["status"], "confirmed");
    let again = "UPDATE sandbox_notifies SET next_at = ?, confirmed_at = NULL";
    sqlx::query(again).bind(h.now()).execute(&h.app.db).await.unwrap();
    assert_eq!(deliver(&h).await, 2);
    assert_eq!((status(&h, &alice, &no).await.as_str(), courses_of(&h, &alice).await), ("paid", 1));
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'refund'").await, 1);
    h.advance(Duration::from_secs(3600));
    assert_eq!(drive(&h).await, 0);
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_by_asking_ends_a_refund_too() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(600).await;
    let (no, trade) = paid(&h, &alice, &[&course], json!({})).await;
    buyer(&h, &trade, "action=refunds_slowly").await.expect(200);
    refund(&h, &admin, &no, json!({})).await.expect(201);
    drive(&h).await;
    buyer(&h, &trade, "action=refunds_at_once").await.expect(200);
    // Its notify is lost.
    sqlx::query("DELETE FROM sandbox_notifies").execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(5));
    assert_eq!(drive(&h).await, 1);
    assert_eq!((status(&h, &alice, &no).await.as_str(), given_back(&h).await), ("refunded", 600));
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refunds_notify_against_the_question_about_it_counts_once() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    for _ in 0..8 {
        let course = h.course(600).await;
        let (no, trade) = paid(&h, &alice, &[&course], json!({})).await;
        buyer(&h, &trade, "action=refunds_slowly").await.expect(200);
        refund(&h, &admin, &no, json!({})).await.expect(201);
        drive(&h).await;
        buyer(&h, &trade, "action=refunds_at_once").await.expect(200);
        h.advance(Duration::from_secs(5));
        tokio::join!(drive(&h), deliver(&h));
        assert_eq!(status(&h, &alice, &no).await, "refunded");
    }
    assert_eq!(given_back(&h).await, 8 * 600);
    assert_eq!(balance(&h, &alice).await, 0);
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_waits_for_its_next_try_is_tried_when_a_person_asks() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(600).await;
    let (no, trade) = paid(&h, &alice, &[&course], json!({})).await;
    buyer(&h, &trade, "action=refunds_slowly").await.expect(200);
    let first = refund(&h, &admin, &no, json!({})).await.expect(201).text_of("refund_no");
    let retry = format!("/admin/refunds/{first}/retry");
    assert_eq!(drive(&h).await, 1);
    assert_eq!(drive(&h).await, 0, "it was asked about just now");
    assert_eq!(h.post(&retry, &admin, json!({})).await.expect(200)["status"], "pending");
    assert_eq!(drive(&h).await, 1);
    let audit = h.get("/admin/audit?action=refund.retry", &admin).await.expect(200);
    assert_eq!(audit["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refund_waits_for_a_person() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(600).await;
    let (no, trade) = paid(&h, &alice, &[&course], json!({})).await;
    buyer(&h, &trade, "action=refunds_never").await.expect(200);
    let first = refund(&h, &admin, &no, json!({})).await.expect(201).text_of("refund_no");
    let retry = async |refund_no: &str, new_number: bool| {
        h.post(&format!("/admin/refunds/{refund_no}/retry"), &admin, json!({ "new_number": new_number })).await
    };
    retry(&first, true).await.problem(409, "refund_state");
    drive(&h).await;
    let failed = h.get("/admin/refunds?status=failed", &admin).await.expect(200);
    assert_eq!((&failed["items"][0]["refund_no"], &failed["items"][0]["status"]), (&json!(first), &"failed".into()));
    assert!(!failed["items"][0]["last_error"].as_str().unwrap().is_empty());
    h.advance(Duration::from_secs(7200));
    assert_eq!(drive(&h).await, 0, "never again without a person");
    assert_eq!(status(&h, &alice, &no).await, "refunding");
    assert_clean(&h).await;
    assert_eq!(retry(&first, false).await.expect(200)["status"], "pending");
    assert_eq!(retry(&first, false).await.expect(200)["status"], "pending", "a repeat changes nothing");
    assert_eq!(drive(&h).await, 1);
    // Refused again: another number, and the gateway is willing by then.
    let second = retry(&first, true).await.expect(200).text_of("refund_no");
    assert_ne!(second, first);
    assert_eq!(retry(&first, true).await.expect(200)["refund_no"], json!(second));
    buyer(&h, &trade, "action=refunds_at_once").await.expect(200);
    assert_eq!(drive(&h).await, 1);
    assert_eq!(retry(&second, false).await.expect(200)["status"], "confirmed");
    assert_eq!((status(&h, &alice, &no).await.as_str(), given_back(&h).await), ("refunded", 600));
    assert_clean(&h).await;
    // Should the gateway make the first one after all, a person must know.
    let payment = h.get(&format!("/admin/payments?order_no={no}"), &admin).await["items"][0]["payment_no"].clone();
    let body = json!({
        "notify_id": "late", "code": "100001", "merchant_id": "onrush-sandbox", "merchant_no": payment,
        "trade_no": trade, "amount_fen": 600, "currency": "CNY", "refund_no": first,
    });
    notify(&h, &body).await.expect(422);
    let audit = h.get("/admin/audit?action=refund.retry", &admin).await.expect(200);
    assert_eq!(audit["items"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_that_were_spent_are_owed_and_taken_from_those_that_come_back() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (course, other) = (h.course(20_000).await, h.course(300).await);
    give_points(&h, &alice, 100).await;
    // 199 yuan paid earn 199 points, of which 150 are spent before the refund.
    let (no, _) = paid(&h, &alice, &[&course], json!({ "points": 100 })).await;
    orders::grant_now(&h.app, no.parse().unwrap()).await.unwrap();
    paid(&h, &alice, &[&other], json!({ "points": 150 })).await;
    let done = refund(&h, &admin, &no, json!({})).await.expect(201);
    assert_eq!((&done["points_taken_back"], &done["points_missing"]), (&49.into(), &150.into()));
    drive(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "refunded");
    assert_eq!(balance(&h, &alice).await, 0, "never below nothing");
    let points = h.get("/me/points", &alice).await.expect(200);
    assert_eq!((&points["owed"], &points["items"][0]["reason"]), (&50.into(), &"owed_paid".into()));
    // What is owed is paid by whatever comes next.
    give_points(&h, &alice, 70).await;
    assert_eq!(balance(&h, &alice).await, 20);
    assert_eq!(h.get("/me/points", &alice).await["owed"], 0);
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_discounts_paid_is_refunded_at_once() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(900).await;
    let ticket = claimed(&h, &alice, coupon(&h)).await;
    let key = Uuid::now_v7().as_simple().to_string();
    let body = json!({ "course_ids": [course.no()], "user_coupon_id": ticket });
    let no = h.post_once("/orders", &alice, &key, body).await.expect(201).text_of("order_no");
    let done = refund(&h, &admin, &no, json!({})).await.expect(201);
    assert_eq!((&done["order_status"], &done["refund_no"]), (&"refunded".into(), &Value::Null));
    assert_eq!(h.count("SELECT COUNT(order_id) FROM user_coupons").await, 0);
    assert_eq!(courses_of(&h, &alice).await, 0);
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_version_confirmed_is_ended_by_the_pass() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(900).await;
    let (no, _) = paid(&h, &alice, &[&course], json!({})).await;
    refund(&h, &admin, &no, json!({})).await.expect(201);
    let confirm = "UPDATE refunds SET status = 'confirmed', confirmed_at = ?, next_attempt_at = NULL";
    sqlx::query(confirm).bind(h.now()).execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(3600));
    let broken = check::findings(&h.app, false).await.unwrap();
    let i6 = broken.iter().find(|finding| finding.name == "I6").unwrap();
    assert!(i6.violations.iter().any(|line| line.contains("has been back for too long")), "{:?}", i6.violations);
    drive(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "refunded");
    let sum = "UPDATE payments SET refunded_fen = 5";
    sqlx::query(sum).execute(&h.app.db).await.unwrap();
    sqlx::query("UPDATE order_items SET refund_id = NULL").execute(&h.app.db).await.unwrap();
    let broken = check::findings(&h.app, false).await.unwrap();
    let told: Vec<&String> = broken.iter().flat_map(|finding| &finding.violations).collect();
    for what in ["other than is set aside", "money is not all back", "a course was not taken back"] {
        assert!(told.iter().any(|line| line.contains(what)), "no {what:?} in {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_payments_and_messages_and_run_one_again() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(900).await;
    let (no, trade) = paid(&h, &alice, &[&course], json!({})).await;
    h.get("/admin/payments", &alice).await.problem(403, "forbidden");
    let list =
        h.get(&format!("/admin/payments?order_no={no}&status=paid&resolution=order&gateway=sandbox"), &admin).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{}", list.text());
    let payment = list["items"][0]["payment_no"].as_str().unwrap().to_owned();
    assert!(h.get("/admin/payments?status=started", &admin).await["items"].as_array().unwrap().is_empty());
    // The gateway tells of a refund that our books do not have yet.
    let refund_no = payments::RefundId::new();
    let body = json!({
        "notify_id": "early", "code": "100001", "merchant_id": "onrush-sandbox", "merchant_no": payment,
        "trade_no": trade, "amount_fen": 300, "currency": "CNY", "refund_no": refund_no, "buyer_email": "a@b.cn",
    });
    notify(&h, &body).await.expect(422);
    let flagged = h.get("/admin/payments/notifications?outcome=flagged", &admin).await.expect(200);
    let id = flagged["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/admin/payments/notifications/{id}");
    let seen = h.get(&path, &admin).await.expect(200);
    assert_eq!((&seen["body"]["buyer_email"], &seen["body"]["amount_fen"]), (&"***".into(), &300.into()));
    assert_eq!((&seen["payment_no"], &seen["outcome"]), (&json!(payment), &"flagged".into()));
    let rerun = async || send(h.request(Method::POST, &format!("{path}/rerun"), &admin)).await;
    assert_eq!(rerun().await.expect(200)["changed"], false);
    let insert = "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, cause, status, created_at) \
                  SELECT ?, id, order_id, 300, 'asked', 'x', 'pending', created_at FROM payments";
    sqlx::query(insert).bind(refund_no).execute(&h.app.db).await.unwrap();
    sqlx::query("UPDATE payments SET refunded_fen = 300").execute(&h.app.db).await.unwrap();
    let again = rerun().await.expect(200);
    assert_eq!((&again["outcome"], &again["changed"]), (&"refund".into(), &true.into()));
    assert_eq!(rerun().await.expect(200)["changed"], false, "once is enough");
    let detail = h.get(&format!("/admin/payments/{payment}"), &admin).await.expect(200);
    assert_eq!((&detail["refunded_fen"], &detail["refunds"][0]["status"]), (&300.into(), &"confirmed".into()));
    assert_eq!(h.get("/admin/audit?action=notification.rerun", &admin).await["items"].as_array().unwrap().len(), 3);
    for missing in ["/admin/payments/", "/admin/refunds/", "/admin/payments/notifications/"] {
        h.get(&format!("{missing}{}", "0".repeat(32)), &admin).await.problem(404, "not_found");
    }
    sqlx::query("UPDATE payment_notifications SET message = NULL").execute(&h.app.db).await.unwrap();
    rerun().await.problem(409, "notification_state");
}
