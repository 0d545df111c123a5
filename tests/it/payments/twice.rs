//! One buyer buys one course once: whatever is paid at the same moment, what was paid for it a second time goes back.

use futures_util::future::{Either, select};
use onrush::check;
use onrush::orders::Closing;

use super::late::order_of;
use super::refunds::{drive, refund};
use super::*;
use crate::seckill::assert_clean;
use crate::support::{Course, Proxy};
use crate::wallet::{assert_ledger_adds_up, balance, give_points};

/// An order of these courses whose payment was started.
async fn started(h: &Harness, who: &Person, courses: &[&Course]) -> (String, Attempt) {
    let no = order_of(h, who, courses).await;
    let attempt = start(h, who, &no).await;
    (no, attempt)
}

/// Pays it on the gateway's page, and has the gateway's message arrive.
async fn paid_there(h: &Harness, attempt: &Attempt) {
    buyer(h, &attempt.trade, "action=pay").await.expect(200);
    deliver(h).await;
}

async fn granted(h: &Harness, no: &str) {
    orders::grant_now(&h.app, no.parse().unwrap()).await.unwrap();
}

/// Grants an order between the two looks at what its buyer has bought, in whatever order they are taken.
async fn granted_between_the_looks(h: &Harness, way: &Proxy, no: &str) {
    let (paid, owned) = (way.hold("o.granted_at IS NULL"), way.hold("FROM user_courses WHERE"));
    let first = std::pin::pin!(paid.sprung());
    let other = std::pin::pin!(owned.sprung());
    let (first, second) = match select(first, other).await {
        Either::Left(_) => (&paid, &owned),
        Either::Right(_) => (&owned, &paid),
    };
    first.let_go();
    second.sprung().await;
    granted(h, no).await;
    second.let_go();
}

async fn violated(h: &Harness, name: &str) -> Vec<String> {
    let findings = check::findings(&h.app, false).await.unwrap();
    findings.into_iter().find(|finding| finding.name == name).unwrap().violations
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_between_the_two_looks_at_what_is_bought_hides_no_payment() {
    let h = service().await;
    let (alice, course) = (h.register().await, h.course(500).await);
    let (way, other) = h.through_mysql_proxy().await;
    let (first, paid) = started(&h, &alice, &[&course]).await;
    let (second, twice) = started(&h, &alice, &[&course]).await;
    paid_there(&h, &paid).await;
    buyer(&h, &twice.trade, "action=pay").await.expect(200);
    // The second order's money arrives, and the first one is granted between its two looks.
    let body = paid_body("between", &twice.payment_no, &twice.trade, 500);
    let (answer, ()) = tokio::join!(notify(&other, &body), granted_between_the_looks(&h, &way, &first));
    answer.expect(200);
    assert_eq!(status(&h, &alice, &second).await, "unpaid");
    assert_eq!(resolve_late(&h).await, 1);
    assert_eq!(drive(&h).await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed' AND reason = 'paid_twice'").await, 1);
    assert_eq!(violated(&h, "I9").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_between_the_two_looks_lets_no_course_be_ordered_again() {
    let h = service().await;
    let (alice, course) = (h.register().await, h.course(500).await);
    let (way, other) = h.through_mysql_proxy().await;
    let (first, paid) = started(&h, &alice, &[&course]).await;
    paid_there(&h, &paid).await;
    let body = json!({ "course_ids": [course.no()] });
    let (answer, ()) =
        tokio::join!(other.post_once("/orders", &alice, "again", body), granted_between_the_looks(&h, &way, &first));
    answer.problem(409, "already_owned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_between_the_two_looks_opens_no_dead_order_again() {
    let h = service().await;
    let (alice, course) = (h.register().await, h.course(500).await);
    let (way, other) = h.through_mysql_proxy().await;
    let dead = order_of(&h, &alice, &[&course]).await;
    let (first, paid) = started(&h, &alice, &[&course]).await;
    let mut conn = h.app.db.acquire().await.unwrap();
    assert!(orders::close(&mut conn, dead.parse().unwrap(), Closing::Cancelled, &h.app.clock).await.unwrap());
    drop(conn);
    paid_there(&h, &paid).await;
    let reopened = async {
        let mut tx = other.app.db.begin().await.unwrap();
        let order = orders::lock(&mut tx, dead.parse().unwrap()).await.unwrap().unwrap();
        let reopened = orders::reopen(&mut tx, &order, h.now()).await.unwrap();
        tx.commit().await.unwrap();
        reopened
    };
    let (reopened, ()) = tokio::join!(reopened, granted_between_the_looks(&h, &way, &first));
    assert!(!reopened);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_for_a_course_that_was_bought_otherwise_goes_back() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (new, old) = (h.course(70_000).await, h.course(30_000).await);
    let (both, paid_later) = started(&h, &alice, &[&new, &old]).await;
    let (one, paid_first) = started(&h, &alice, &[&old]).await;
    paid_there(&h, &paid_first).await;
    granted(&h, &one).await;
    assert_eq!(balance(&h, &alice).await, 300);

    paid_there(&h, &paid_later).await;
    let seen = h.get(&format!("/orders/{both}"), &alice).await.expect(200);
    assert_eq!((&seen["status"], &seen["refunded_fen"]), (&"paid".into(), &0.into()));
    let back = &seen["refunds"][0];
    assert_eq!((&back["amount_fen"], &back["reason"]), (&30_000.into(), &"paid_twice".into()));
    let refunded: Vec<bool> = seen["items"].as_array().unwrap().iter().map(|i| i["refunded"] == true).collect();
    assert_eq!(refunded, [false, true]);
    // The points that the money for the second course earns come with the grant, and go with the money.
    granted(&h, &both).await;
    assert_eq!(balance(&h, &alice).await, 300 + 700);
    assert_eq!(drive(&h).await, 1);
    assert_eq!(h.get(&format!("/orders/{both}"), &alice).await["refunded_fen"], 30_000);
    let told = h.get(&format!("/admin/orders/{both}"), &admin).await.expect(200);
    let asked = &told["order_refunds"][0];
    assert_eq!((&asked["asked_by"], &asked["amount_fen"]), (&Value::Null, &30_000.into()));
    assert!(asked["refund_no"].is_string() && asked["course_ids"] == json!([old.no()]), "{asked}");
    assert_clean(&h).await;

    // What is left of the order is refunded for what is left, and takes nothing of the other one.
    let done = refund(&h, &admin, &both, json!({})).await.expect(201);
    assert_eq!((&done["amount_fen"], &done["points_taken_back"]), (&70_000.into(), &700.into()));
    drive(&h).await;
    assert_eq!(status(&h, &alice, &both).await, "refunded");
    let mine = h.get("/me/courses", &alice).await.expect(200);
    assert_eq!((mine["items"].as_array().unwrap().len(), &mine["items"][0]["id"]), (1, &old.no().into()));
    assert_eq!(balance(&h, &alice).await, 300);
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
}

/// An order of these courses that points pay a part of, and whose payment was started.
async fn with_points(h: &Harness, who: &Person, courses: &[&Course], points: i64) -> (String, Attempt) {
    let courses: Vec<_> = courses.iter().map(|course| course.no()).collect();
    let key = Uuid::now_v7().as_simple().to_string();
    let body = json!({ "course_ids": courses, "points": points });
    let no = h.post_once("/orders", who, &key, body).await.expect(201).text_of("order_no");
    let attempt = start(h, who, &no).await;
    (no, attempt)
}

async fn ledger(h: &Harness, who: &Person, reason: &str) -> Vec<i64> {
    let page = h.get("/me/points?limit=100", who).await.expect(200);
    let lines = page["items"].as_array().unwrap().iter().filter(|line| line["reason"] == reason);
    lines.map(|line| line["delta"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_points_that_were_spent_on_a_course_that_was_bought_otherwise_come_back_once() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (new, old) = (h.course(10_000).await, h.course(10_000).await);
    give_points(&h, &alice, 10_000).await;
    let (both, paid_later) = with_points(&h, &alice, &[&new, &old], 10_000).await;
    let (one, paid_first) = started(&h, &alice, &[&old]).await;
    paid_there(&h, &paid_first).await;
    granted(&h, &one).await;
    assert_eq!(balance(&h, &alice).await, 100);

    // 100 yuan are paid for both. The half of them and of the points was for the one that is not given.
    paid_there(&h, &paid_later).await;
    granted(&h, &both).await;
    assert_eq!(drive(&h).await, 1);
    assert_eq!(h.get(&format!("/orders/{both}"), &alice).await["refunded_fen"], 5000);
    assert_eq!(ledger(&h, &alice, "order_spend_back").await, [5000]);
    assert_eq!(balance(&h, &alice).await, 100 + 5000 + 50);
    let told = h.get(&format!("/admin/orders/{both}"), &admin).await.expect(200);
    let record = &told["order_refunds"][0];
    assert_eq!((&record["points_returned"], &record["points_missing"]), (&5000.into(), &0.into()));
    assert_eq!(record["points_taken_back"], 50);
    assert_clean(&h).await;
    // The gateway says it once more: nothing comes back again.
    let again = "UPDATE sandbox_notifies SET next_at = ?, confirmed_at = NULL";
    sqlx::query(again).bind(h.now()).execute(&h.app.db).await.unwrap();
    deliver(&h).await;
    assert_eq!(ledger(&h, &alice, "order_spend_back").await, [5000]);

    // The end of the order gives back the other half, and not the first one again.
    let done = refund(&h, &admin, &both, json!({})).await.expect(201);
    assert_eq!((&done["amount_fen"], &done["points_taken_back"]), (&5000.into(), &50.into()));
    drive(&h).await;
    assert_eq!(status(&h, &alice, &both).await, "refunded");
    assert_eq!(ledger(&h, &alice, "order_refunded").await, [5000]);
    assert_eq!(balance(&h, &alice).await, 10_000 + 100);
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn points_that_paid_all_of_a_course_that_was_bought_otherwise_come_back_without_money() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (old, new) = (h.course(1).await, h.course(1).await);
    give_points(&h, &alice, 1).await;
    let (both, paid_later) = with_points(&h, &alice, &[&old, &new], 1).await;
    let (one, paid_first) = started(&h, &alice, &[&old]).await;
    paid_there(&h, &paid_first).await;
    granted(&h, &one).await;
    let seen = h.get(&format!("/orders/{both}"), &alice).await.expect(200);
    assert_eq!((&seen["items"][0]["payable_fen"], &seen["items"][1]["payable_fen"]), (&0.into(), &1.into()));

    paid_there(&h, &paid_later).await;
    granted(&h, &both).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds").await, 0);
    assert_eq!(balance(&h, &alice).await, 1);
    assert_clean(&h).await;
    refund(&h, &admin, &both, json!({})).await.expect(201);
    drive(&h).await;
    assert_eq!(status(&h, &alice, &both).await, "refunded");
    assert_eq!((balance(&h, &alice).await, ledger(&h, &alice, "order_refunded").await), (1, Vec::new()));
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
}

/// Changes the books by hand; each change keeps the balance the sum of the ledger.
async fn run(h: &Harness, statements: &[&str]) {
    for statement in statements {
        sqlx::query(statement).execute(&h.app.db).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_that_came_back_twice_or_not_as_a_refund_says_are_a_violation() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (new, old) = (h.course(10_000).await, h.course(10_000).await);
    give_points(&h, &alice, 10_000).await;
    let (both, paid_later) = with_points(&h, &alice, &[&new, &old], 10_000).await;
    let (_, paid_first) = started(&h, &alice, &[&old]).await;
    paid_there(&h, &paid_first).await;
    paid_there(&h, &paid_later).await;
    granted(&h, &both).await;
    refund(&h, &admin, &both, json!({})).await.expect(201);
    drive(&h).await;
    assert_eq!(status(&h, &alice, &both).await, "refunded");
    assert_eq!(violated(&h, "I4").await, Vec::<String>::new());
    let (more, less) =
        ("UPDATE points_accounts SET balance = balance + 5000", "UPDATE points_accounts SET balance = balance - 5000");
    // A whole refund that gives the share of the course once more, and a line that says more than its refund.
    for (reason, told) in [
        ("order_refunded", "refunded order of which other points"),
        ("order_spend_back", "refund of which other points"),
    ] {
        let set = |delta: i64| format!("UPDATE points_ledger SET delta = {delta} WHERE reason = '{reason}'");
        run(&h, &[&set(10_000), more]).await;
        let lines = violated(&h, "I4").await;
        assert!(lines.len() == 1 && lines[0].contains(told), "{lines:?}");
        run(&h, &[&set(5000), less]).await;
        assert_eq!(violated(&h, "I4").await, Vec::<String>::new());
    }
    // A second line that belongs to no refund; and with a refund that took no course.
    let line = "INSERT INTO points_ledger (id, user_id, delta, reason, ref_id, created_at) SELECT REVERSE(id), user_id, \
                delta, reason, REVERSE(ref_id), created_at FROM points_ledger WHERE reason = 'order_spend_back'";
    run(&h, &[line, more]).await;
    let lines = violated(&h, "I4").await;
    assert!(lines.len() == 1 && lines[0].contains("which says nothing of it"), "{lines:?}");
    let refund = "INSERT INTO order_refunds (id, order_id, kind, amount_fen, points_back, points_missing, reason, asked_by, \
                  created_at, points_returned) SELECT REVERSE(id), order_id, kind, amount_fen, 0, 5000, reason, asked_by, \
                  created_at, 5000 FROM order_refunds WHERE points_returned > 0";
    run(&h, &[refund]).await;
    let lines = violated(&h, "I4").await;
    assert!(lines.iter().any(|line| line.contains("points of no course")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_overlapping_orders_that_are_paid_at_once_leave_each_course_paid_once() {
    let h = service().await;
    for round in 0..8 {
        let (alice, a, b, c) = (h.register().await, h.course(100).await, h.course(200).await, h.course(400).await);
        let (one, first) = started(&h, &alice, &[&a, &b]).await;
        let (two, second) = started(&h, &alice, &[&b, &c]).await;
        for attempt in [&first, &second] {
            buyer(&h, &attempt.trade, "action=pay").await.expect(200);
        }
        // Both callbacks are under way at once.
        assert_eq!(deliver(&h).await, 2);
        assert_eq!([status(&h, &alice, &one).await, status(&h, &alice, &two).await], ["paid", "paid"], "round {round}");
        assert_eq!(drive(&h).await, 1, "round {round}");
        granted(&h, &one).await;
        granted(&h, &two).await;
        assert_eq!(h.get("/me/courses", &alice).await["items"].as_array().unwrap().len(), 3);
    }
    assert_eq!(h.count("SELECT CAST(SUM(amount_fen) AS SIGNED) FROM sandbox_refunds").await, 8 * 200);
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trade_of_an_order_all_of_whose_courses_were_bought_otherwise_is_ended() {
    let h = service().await;
    let (alice, course, another) = (h.register().await, h.course(500).await, h.course(500).await);
    let (_, paid) = started(&h, &alice, &[&course]).await;
    let (_, in_vain) = started(&h, &alice, &[&course]).await;
    let (larger, in_part) = started(&h, &alice, &[&course, &another]).await;
    h.start_workers();
    buyer(&h, &paid.trade, "action=pay").await.expect(200);
    h.eventually(async || h.count("SELECT COUNT(*) FROM sandbox_trades WHERE status = 'closed'").await == 1).await;
    h.eventually(async || h.count("SELECT COUNT(*) FROM payments WHERE status = 'closed'").await == 1).await;
    assert_eq!(buyer(&h, &in_vain.trade, "action=pay").await.status, 409);
    // One that brings another course can be paid.
    buyer(&h, &in_part.trade, "action=pay").await.expect(200);
    h.eventually(async || status(&h, &alice, &larger).await == "paid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_paid_orders_for_one_course_are_a_violation_until_one_of_them_is_refunded() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (course, bob) = (h.course(500).await, h.register().await);
    let (first, paid) = started(&h, &alice, &[&course]).await;
    let (second, _) = started(&h, &alice, &[&course]).await;
    let (_, of_another) = started(&h, &bob, &[&course]).await;
    paid_there(&h, &paid).await;
    paid_there(&h, &of_another).await;
    granted(&h, &first).await;
    assert_eq!(violated(&h, "I9").await, Vec::<String>::new());
    // As a version before this one may have left it.
    for wrong in [
        "UPDATE payments SET status = 'paid', resolution = 'order', gateway_trade_no = 't', paid_at = created_at WHERE status = 'started'",
        "UPDATE orders SET status = 1, paid_at = created_at, granted_at = created_at WHERE status = 0",
    ] {
        sqlx::query(wrong).execute(&h.app.db).await.unwrap();
    }
    let told = violated(&h, "I9").await;
    assert!(told.len() == 1 && told[0].contains(&second), "{told:?} for {second}");
    refund(&h, &admin, &second, json!({})).await.expect(201);
    assert_eq!(violated(&h, "I9").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn points_of_a_refund_that_another_order_holds_are_paid_when_they_come_back() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (dear, other) = (h.course(100_000).await, h.course(2000).await);
    let (no, paid) = started(&h, &alice, &[&dear]).await;
    paid_there(&h, &paid).await;
    granted(&h, &no).await;
    assert_eq!(balance(&h, &alice).await, 1000);
    let body = json!({ "course_ids": [other.no()], "points": 1000 });
    let parked = h.post_once("/orders", &alice, "parked", body).await.expect(201).text_of("order_no");
    let done = refund(&h, &admin, &no, json!({})).await.expect(201);
    assert_eq!((&done["points_taken_back"], &done["points_missing"]), (&0.into(), &1000.into()));
    drive(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "refunded");
    assert_eq!(h.get("/me/points", &alice).await["owed"], 1000);
    send(h.request(Method::POST, &format!("/orders/{parked}/cancel"), &alice)).await.expect(200);
    release(&h).await;
    let points = h.get("/me/points", &alice).await.expect(200);
    assert_eq!((&points["balance"], &points["owed"]), (&0.into(), &0.into()));
    assert_clean(&h).await;
    assert_ledger_adds_up(&h).await;
    // A books entry that does not fit is told.
    sqlx::query("UPDATE points_accounts SET owed = 7").execute(&h.app.db).await.unwrap();
    assert!(violated(&h, "I4").await.iter().any(|line| line.contains("owes other points")));
}
