//! Money for orders that are dead, or paid already.

use super::*;
use crate::seckill::{Sale, assert_clean};

/// A user with a coupon of 100 fen and 300 points; the coupon's id.
async fn wallet(h: &Harness, who: &Person) -> String {
    let (coupon, held) = (Uuid::now_v7(), Uuid::now_v7());
    sqlx::query(
        "INSERT INTO coupons (id, title, kind, amount_fen, quantity, quantity_left, valid_from, valid_until, created_at) \
         VALUES (?, 'c', 'amount', 100, 10, 9, ?, ?, ?)",
    )
    .bind(coupon)
    .bind(h.now())
    .bind(h.now().plus(Duration::from_secs(24 * 3600)))
    .bind(h.now())
    .execute(&h.app.db)
    .await
    .unwrap();
    sqlx::query("INSERT INTO user_coupons (id, user_id, coupon_id, claimed_at) VALUES (?, ?, ?, ?)")
        .bind(held)
        .bind(who.id)
        .bind(coupon)
        .bind(h.now())
        .execute(&h.app.db)
        .await
        .unwrap();
    sqlx::query("INSERT INTO points_accounts (user_id, balance) VALUES (?, 300)")
        .bind(who.id)
        .execute(&h.app.db)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO points_ledger (id, user_id, delta, reason, ref_id, created_at) VALUES (?, ?, 300, 'gift', ?, ?)",
    )
    .bind(Uuid::now_v7())
    .bind(who.id)
    .bind(Uuid::now_v7())
    .bind(h.now())
    .execute(&h.app.db)
    .await
    .unwrap();
    held.as_simple().to_string()
}

/// An order of a 1000 fen course that holds the coupon and the points: 600 fen are to be paid.
async fn discounted(h: &Harness, who: &Person, coupon: &str) -> String {
    let course = h.course(1000).await;
    let key = Uuid::now_v7().as_simple().to_string();
    let body = json!({"course_ids": [course.no()], "user_coupon_id": coupon, "points": 300});
    let order = h.post_once("/orders", who, &key, body).await.expect(201);
    assert_eq!(order["payable_fen"], 600);
    order.text_of("order_no")
}

/// A late payment of an order whose trade is closed by the time the money moves.
async fn die_and_pay_late(h: &Harness, who: &Person, no: &str) -> Attempt {
    let attempt = start(h, who, no).await;
    buyer(h, &attempt.trade, "action=pay_late&delay_s=700").await.expect(200);
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    assert_eq!(status(h, who, no).await, "timed_out");
    attempt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_callback_opens_the_order_again_when_all_it_held_is_free() {
    let h = service().await;
    let alice = h.register().await;
    let coupon = wallet(&h, &alice).await;
    let no = discounted(&h, &alice, &coupon).await;
    die_and_pay_late(&h, &alice, &no).await;
    release(&h).await;
    assert_eq!(h.count("SELECT balance FROM points_accounts").await, 300);
    h.advance(Duration::from_secs(100));
    assert_eq!(deliver(&h).await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_notifies WHERE confirmed_at IS NULL").await, 0);
    assert_eq!(resolve_late(&h).await, 1);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    assert_eq!(h.count("SELECT balance FROM points_accounts").await, 0);
    assert_eq!(h.count("SELECT COUNT(*) FROM user_coupons WHERE order_id IS NOT NULL").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds").await, 0);
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_callback_before_the_release_keeps_what_the_order_still_holds() {
    let h = service().await;
    let alice = h.register().await;
    let coupon = wallet(&h, &alice).await;
    let no = discounted(&h, &alice, &coupon).await;
    die_and_pay_late(&h, &alice, &no).await;
    h.advance(Duration::from_secs(100));
    deliver(&h).await;
    assert_eq!(resolve_late(&h).await, 1);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    release(&h).await;
    assert_eq!(h.count("SELECT balance FROM points_accounts").await, 0, "held once, and not given back");
    assert_eq!(h.count("SELECT COUNT(*) FROM user_coupons WHERE order_id IS NOT NULL").await, 1);
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_callback_is_refunded_once() {
    let h = service().await;
    let alice = h.register().await;
    let coupon = wallet(&h, &alice).await;
    let no = discounted(&h, &alice, &coupon).await;
    let attempt = die_and_pay_late(&h, &alice, &no).await;
    release(&h).await;
    // Another order has the coupon and the points by now.
    let second = discounted(&h, &alice, &coupon).await;
    h.advance(Duration::from_secs(100));
    deliver(&h).await;
    assert_eq!(
        notify(&h, &paid_body("again", &attempt.payment_no, &attempt.trade, 600)).await.expect(200).text(),
        "success"
    );
    resolve_late(&h).await;
    assert_eq!(resolve_late(&h).await, 0);
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(status(&h, &alice, &second).await, "unpaid");
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE reason = 'late'").await, 1);
    // Two processes at once, and again later.
    let (one, two) = tokio::join!(payments::drive_refunds(&h.app), payments::drive_refunds(&h.app));
    assert!(one.unwrap() + two.unwrap() >= 1);
    h.advance(Duration::from_secs(3600));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 0);
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed'").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_refunds WHERE amount_fen = 600").await, 1);
    assert_eq!(h.count("SELECT balance FROM points_accounts").await, 0, "the second order's");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_paid_twice_gets_one_payment_back() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let first = start(&h, &alice, &no).await;
    buyer(&h, &first.trade, "action=fail").await.expect(200);
    let second = start(&h, &alice, &no).await;
    buyer(&h, &second.trade, "action=pay").await.expect(200);
    deliver(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "paid");
    // The money of the attempt that failed comes after all.
    buyer(&h, &first.trade, "action=pay_late&delay_s=0").await.expect(200);
    deliver(&h).await;
    assert_eq!(resolve_late(&h).await, 1);
    payments::drive_refunds(&h.app).await.unwrap();
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE reason = 'paid_twice' AND status = 'confirmed'").await, 1);
    assert_eq!(status(&h, &alice, &no).await, "paid");
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_beside_the_one_that_paid_is_ended() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let first = start(&h, &alice, &no).await;
    buyer(&h, &first.trade, "action=fail").await.expect(200);
    let second = start(&h, &alice, &no).await;
    buyer(&h, &first.trade, "action=pay_late&delay_s=0").await.expect(200);
    deliver(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "paid");
    h.advance(Duration::from_secs(20));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 1);
    buyer(&h, &second.trade, "action=pay").await.expect(409);
    h.advance(Duration::from_secs(3600));
    assert_eq!(payments::query_started(&h.app).await.unwrap(), 0);
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_money_is_decided_also_when_redis_lost_the_task() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    die_and_pay_late(&h, &alice, &no).await;
    h.advance(Duration::from_secs(100));
    deliver(&h).await;
    forget_queues(&h).await;
    h.start_workers();
    h.advance(Duration::from_secs(60));
    h.eventually(async || status(&h, &alice, &no).await == "paid").await;
    h.eventually(async || h.count("SELECT COUNT(*) FROM user_courses").await == 1).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_is_tried_until_the_gateway_confirms_it() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let first = start(&h, &alice, &no).await;
    buyer(&h, &first.trade, "action=fail").await.expect(200);
    let second = start(&h, &alice, &no).await;
    buyer(&h, &second.trade, "action=pay").await.expect(200);
    buyer(&h, &first.trade, "action=pay_late&delay_s=0").await.expect(200);
    deliver(&h).await;
    resolve_late(&h).await;
    // For a while the gateway does not know the trade.
    let hide = "UPDATE sandbox_trades SET merchant_no = CONCAT('x', merchant_no)";
    sqlx::query(hide).execute(&h.app.db).await.unwrap();
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 0, "not at once again");
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'pending' AND last_error <> ''").await, 1);
    h.advance(Duration::from_secs(5));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    sqlx::query("UPDATE sandbox_trades SET merchant_no = SUBSTRING(merchant_no, 2)").execute(&h.app.db).await.unwrap();
    h.advance(Duration::from_secs(5));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 0, "the interval grows");
    h.advance(Duration::from_secs(5));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed'").await, 1);
    books_balance(&h).await;
}

/// Wins a unit and starts to pay it; the money comes ten seconds after the order's time is over.
async fn win_and_pay_late(h: &Harness, sale: &Sale, who: &Person) -> String {
    let won = sale.take_part(h, who).await;
    let no = won["result"]["order_no"].as_str().unwrap().to_owned();
    let attempt = start(h, who, &no).await;
    buyer(h, &attempt.trade, "action=pay_late&delay_s=70").await.expect(200);
    h.advance(Duration::from_secs(60));
    h.eventually(async || status(h, who, &no).await == "timed_out").await;
    h.eventually(async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await == 0).await;
    no
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seckill_order_is_opened_again_when_a_unit_is_left() {
    let h = service().await;
    h.start_workers();
    let (sale, alice) = (Sale::open(&h, 1).await, h.register().await);
    let no = win_and_pay_late(&h, &sale, &alice).await;
    h.advance(Duration::from_secs(10));
    h.eventually(async || status(&h, &alice, &no).await == "paid").await;
    assert_eq!(h.count("SELECT stock_left FROM seckill_activities").await, 0);
    assert_eq!(h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await, 1);
    h.eventually(async || h.count("SELECT COUNT(*) FROM user_courses").await == 1).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_for_a_seckill_order_whose_unit_was_sold_again_goes_back() {
    let h = service().await;
    h.start_workers();
    let (sale, alice, bob) = (Sale::open(&h, 1).await, h.register().await, h.register().await);
    let no = win_and_pay_late(&h, &sale, &alice).await;
    h.eventually(async || sale.submit(&h, &bob).await.status == 202).await;
    assert_eq!(sale.take_part(&h, &bob).await["code"], 100);
    h.advance(Duration::from_secs(10));
    h.eventually(async || h.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed'").await == 1).await;
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    assert_eq!(h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await, 1);
    assert_clean(&h).await;
    books_balance(&h).await;
}

/// Orders these courses; the order's number.
pub(super) async fn order_of(h: &Harness, who: &Person, courses: &[&crate::support::Course]) -> String {
    let key = Uuid::now_v7().as_simple().to_string();
    let courses: Vec<String> = courses.iter().map(|course| course.no()).collect();
    h.post_once("/orders", who, &key, json!({ "course_ids": courses })).await.expect(201).text_of("order_no")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_payments_at_once_for_the_same_course_buy_it_once() {
    const ROUNDS: usize = 15;
    let h = service().await;
    let alice = h.register().await;
    for round in 1..=ROUNDS {
        let course = h.course(500).await;
        let orders = [order_of(&h, &alice, &[&course]).await, order_of(&h, &alice, &[&course]).await];
        for no in &orders {
            let attempt = start(&h, &alice, no).await;
            buyer(&h, &attempt.trade, "action=pay").await.expect(200);
        }
        // Both callbacks are under way at once.
        assert_eq!(deliver(&h).await, 2);
        let mut states = [status(&h, &alice, &orders[0]).await, status(&h, &alice, &orders[1]).await];
        states.sort_unstable();
        assert_eq!(states, ["paid", "unpaid"], "round {round}");
        assert_eq!(resolve_late(&h).await, 1);
    }
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), ROUNDS);
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed' AND reason = 'paid_twice'").await, 15);
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    release(&h).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await, 0);
    h.start_workers();
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE status = 1 AND granted_at IS NULL").await == 0)
        .await;
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 15);
    books_balance(&h).await;
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_brings_anything_new_is_settled() {
    let h = service().await;
    let alice = h.register().await;
    let (old, new) = (h.course(500).await, h.course(500).await);
    let (first, second) = (order_of(&h, &alice, &[&old]).await, order_of(&h, &alice, &[&old, &new]).await);
    for no in [&first, &second] {
        let attempt = start(&h, &alice, no).await;
        buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    }
    assert_eq!(deliver(&h).await, 2);
    // In whatever order they came, the larger one brings a course.
    assert_eq!(status(&h, &alice, &second).await, "paid");
}
