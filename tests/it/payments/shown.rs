//! Orders with their money: what administrators see of everybody's, and what buyers see going back of theirs.

use onrush::platform::page::PageQuery;
use onrush::platform::text::Text;
use sqlx::QueryBuilder;

use super::refunds::{drive, paid, refund};
use super::*;
use crate::wallet::{claimed, coupon, give_points};

async fn get(h: &Harness, who: &Person, path: &str) -> Answer {
    h.get(path, who).await.expect(200)
}

fn numbers(list: &Answer) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["order_no"].as_str().unwrap().to_owned()).collect()
}

/// Gives somebody a phone number that the API would take.
async fn with_phone(h: &Harness, who: &Person, phone: &str) {
    let change = sqlx::query("UPDATE users SET phone = ? WHERE id = ?").bind(phone).bind(who.id);
    change.execute(&h.app.db).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_find_orders_by_their_status_and_their_buyer() {
    let h = service().await;
    let (alice, bob, admin) = (h.register().await, h.register().await, h.admin().await);
    with_phone(&h, &alice, "13800001234").await;
    let mut made = Vec::new();
    for who in [&alice, &bob, &alice, &bob, &alice] {
        made.insert(0, order(&h, who, 500).await);
    }
    h.post(&format!("/orders/{}/cancel", made[4]), &alice, json!({})).await.expect(200);
    h.get("/admin/orders", &alice).await.problem(403, "forbidden");
    h.get(&format!("/admin/orders/{}", made[0]), &alice).await.problem(403, "forbidden");
    h.get("/admin/orders", ()).await.problem(401, "unauthenticated");

    let all = get(&h, &admin, "/admin/orders").await;
    assert_eq!((numbers(&all), &all["next_cursor"]), (made.clone(), &Value::Null));
    let first = &all["items"][0];
    assert_eq!(first["buyer"]["user_id"], alice.id.as_simple().to_string());
    assert_eq!((&first["buyer"]["phone"], &first["buyer"]["nickname"]), (&"138****1234".into(), &"学员".into()));
    assert!(first["items"][0]["payable_fen"] == 500 && first["payable_fen"] == 500, "{}", all.text());
    assert!(!all.text().contains("13800001234"), "nobody needs the whole number");

    // Two by two.
    let page = get(&h, &admin, "/admin/orders?limit=2").await;
    assert_eq!(numbers(&page), made[..2]);
    let next = format!("/admin/orders?limit=2&cursor={}", page.text_of("next_cursor"));
    assert_eq!(numbers(&get(&h, &admin, &next).await), made[2..4]);

    let (of_alice, of_bob) = ([&made[0], &made[2], &made[4]], [&made[1], &made[3]]);
    let (a, b) = (alice.id.as_simple(), bob.id.as_simple());
    for (query, expected) in [
        ("status=unpaid".to_owned(), made[..4].iter().collect::<Vec<_>>()),
        ("status=cancelled".to_owned(), vec![&made[4]]),
        ("status=refunded".to_owned(), vec![]),
        (format!("user_id={b}"), of_bob.to_vec()),
        ("phone=13800001234".to_owned(), of_alice.to_vec()),
        (format!("phone=13800001234&user_id={a}"), of_alice.to_vec()),
        (format!("phone=13800001234&user_id={b}"), vec![]),
        ("phone=13900000000".to_owned(), vec![]),
        ("phone=13800001234&status=unpaid&limit=1".to_owned(), vec![&made[0]]),
        (format!("user_id={a}&status=cancelled"), vec![&made[4]]),
        ("kind=course&limit=3".to_owned(), made[..3].iter().collect()),
        ("kind=seckill".to_owned(), vec![]),
        (format!("kind=seckill&user_id={a}"), vec![]),
    ] {
        let found = numbers(&get(&h, &admin, &format!("/admin/orders?{query}")).await);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{query}");
    }
    let told = h.get("/admin/orders?status=lost&phone=12&user_id=x", &admin).await.problem(422, "validation_failed");
    assert_eq!(told["errors"].as_array().unwrap().len(), 3, "{}", told.text());
    // An order outlives its buyer's account.
    sqlx::query("DELETE FROM users WHERE id = ?").bind(bob.id).execute(&h.app.db).await.unwrap();
    let orphan = get(&h, &admin, &format!("/admin/orders/{}", made[1])).await;
    assert_eq!(orphan["buyer"], json!({ "user_id": b.to_string(), "phone": null, "nickname": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_an_order_with_all_that_belongs_to_it() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let (one, two) = (h.course(6000).await, h.course(4000).await);
    let ticket = claimed(&h, &alice, coupon(&h)).await;
    give_points(&h, &alice, 300).await;
    let discounts = json!({ "user_coupon_id": ticket, "points": 300 });
    let (no, _) = paid(&h, &alice, &[&one, &two], discounts).await;
    let path = format!("/admin/orders/{no}");
    let seen = get(&h, &admin, &path).await;
    assert_eq!((&seen["order_no"], &seen["status"], &seen["payable_fen"]), (&json!(no), &"paid".into(), &8700.into()));
    assert_eq!((&seen["points_used"], &seen["points_earned"]), (&300.into(), &87.into()));
    assert_eq!((&seen["coupon"]["user_coupon_id"], &seen["coupon"]["held"]), (&json!(ticket), &true.into()));
    assert!(seen["pay_started_at"].is_string() && seen["released_at"].is_null());
    let shares: i64 = seen["items"].as_array().unwrap().iter().map(|item| item["payable_fen"].as_i64().unwrap()).sum();
    assert_eq!(shares, 8700);
    let payments = seen["payments"].as_array().unwrap();
    assert_eq!(
        (payments.len(), &payments[0]["gateway"], &payments[0]["status"]),
        (1, &"sandbox".into(), &"paid".into())
    );
    assert_eq!((&seen["order_refunds"], &seen["refunds"]), (&json!([]), &json!([])));

    let first = refund(&h, &admin, &no, json!({ "course_ids": [one.no()] })).await.expect(201);
    drive(&h).await;
    let last = refund(&h, &admin, &no, json!({})).await.expect(201);
    let seen = get(&h, &admin, &path).await;
    let asked = seen["order_refunds"].as_array().unwrap();
    for (record, answer) in [(&asked[0], &last), (&asked[1], &first)] {
        for member in ["kind", "course_ids", "amount_fen", "refund_no", "points_taken_back", "points_missing"] {
            assert_eq!(record[member], answer[member], "{member}");
        }
        assert_eq!((&record["reason"], &record["asked_by"]), (&"the buyer asked".into(), &json!(admin.id.as_simple())));
        assert!(record["created_at"].is_string());
    }
    assert!(seen["items"].as_array().unwrap().iter().all(|item| item["refunded"] == true));
    let listed = get(&h, &admin, "/admin/orders").await;
    for of in [&seen.body, &listed["items"][0]] {
        assert_eq!(
            (&of["order_no"], &of["refunded_fen"]),
            (&json!(no), &first["amount_fen"]),
            "what has been confirmed"
        );
    }
    let refunds = seen["refunds"].as_array().unwrap();
    assert_eq!((&refunds[0]["refund_no"], &refunds[0]["status"]), (&last["refund_no"], &"pending".into()));
    assert_eq!((&refunds[1]["refund_no"], &refunds[1]["status"]), (&first["refund_no"], &"confirmed".into()));
    assert_eq!((&seen["status"], &seen["coupon"]["held"]), (&"refunding".into(), &true.into()));
    assert!(seen["granted_at"].is_string() && seen["released_at"].is_null());
    drive(&h).await;
    let seen = get(&h, &admin, &path).await;
    assert_eq!((&seen["status"], &seen["coupon"]["held"]), (&"refunded".into(), &false.into()));
    assert!(seen["released_at"].is_string());
    h.get(&format!("/admin/orders/{}", "0".repeat(32)), &admin).await.problem(404, "not_found");
}

/// Rows that the server has read for this connection so far.
async fn rows_read(conn: &mut onrush::platform::db::Conn) -> i64 {
    let counters: Vec<(Text, Text)> =
        sqlx::query_as("SHOW SESSION STATUS LIKE 'Handler_read%'").fetch_all(conn).await.unwrap();
    counters.iter().map(|(_, Text(count))| count.parse::<i64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_orders_costs_what_its_own_orders_cost_however_many_there_are() {
    const ALL: usize = 1000;
    let h = service().await;
    let alice = h.register().await;
    let mut insert = QueryBuilder::new(
        "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, \
         points_used, points_earned, currency, created_at, expires_at) ",
    );
    // The oldest are hers, and the only ones in their status.
    insert.push_values(0..ALL, |mut row, at| {
        let (user, status) = if at < 3 { (alice.id, 4) } else { (Uuid::now_v7(), 3) };
        row.push_bind(Uuid::now_v7()).push_bind(user).push_bind("course").push_bind(status);
        row.push("5, 0, 0, 5, 0, 0, 'CNY', '2026-01-01', '2026-01-01'");
    });
    insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    let (user, status) = (Some(onrush::auth::UserId::from_uuid(alice.id)), Some(orders::Status::Refunding));
    let mut conn = h.app.db.acquire().await.unwrap();
    let kind = Some(orders::OrderKind::Course);
    for (user, kind, status, found) in [
        (None, None, None, 5),
        (user, None, None, 3),
        (None, None, status, 3),
        (user, None, status, 3),
        (None, kind, status, 3),
        (None, kind, None, 5),
        (user, kind, None, 3),
        (None, Some(orders::OrderKind::Seckill), None, 0),
    ] {
        let which = orders::WhichOrders { user, kind, status };
        let page = PageQuery { cursor: None, limit: Some(5) };
        let before = rows_read(&mut conn).await;
        let nothing = rows_read(&mut conn).await - before;
        let listed = orders::list(&mut conn, &which, &page).await.unwrap();
        let read = rows_read(&mut conn).await - before - 2 * nothing;
        assert_eq!(listed.items.len(), found, "{which:?}");
        assert!(read < 40, "{read} rows read for {which:?}");
    }
}

/// What a buyer is told of an order: what is back, and how much, how far and why of each.
async fn going_back(h: &Harness, who: &Person, no: &str) -> (i64, Vec<(i64, String, String)>) {
    let order = get(h, who, &format!("/orders/{no}")).await;
    let list = get(h, who, "/orders").await;
    let listed = list["items"].as_array().unwrap().iter().find(|listed| listed["order_no"] == no).unwrap();
    assert_eq!(listed, &order.body, "the list says the same");
    let known = ["amount_fen", "confirmed_at", "created_at", "reason", "status"];
    let of = |refund: &Value| {
        let mut members: Vec<&str> = refund.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, known, "and nothing that is not the buyer's");
        assert_eq!(refund["confirmed_at"].is_string(), refund["status"] == "confirmed", "{refund}");
        let text = |member: &str| refund[member].as_str().unwrap().to_owned();
        (refund["amount_fen"].as_i64().unwrap(), text("status"), text("reason"))
    };
    let refunds = order["refunds"].as_array().unwrap().iter().map(of).collect();
    (order["refunded_fen"].as_i64().unwrap(), refunds)
}

fn told(amount_fen: i64, status: &str, reason: &str) -> (i64, String, String) {
    (amount_fen, status.to_owned(), reason.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_see_the_money_that_goes_back_of_an_order() {
    let h = service().await;
    let (alice, bob, admin) = (h.register().await, h.register().await, h.admin().await);
    let (one, two) = (h.course(6000).await, h.course(4000).await);
    let (no, trade) = paid(&h, &alice, &[&one, &two], json!({})).await;
    let untouched = order(&h, &alice, 300).await;
    assert_eq!(going_back(&h, &alice, &no).await, (0, vec![]));
    refund(&h, &admin, &no, json!({ "course_ids": [one.no()] })).await.expect(201);
    assert_eq!(going_back(&h, &alice, &no).await, (0, vec![told(6000, "pending", "asked")]));
    drive(&h).await;
    assert_eq!(going_back(&h, &alice, &no).await, (6000, vec![told(6000, "confirmed", "asked")]));
    // The gateway refuses the next one: it is owed as before, and is so once, whatever number it has.
    buyer(&h, &trade, "action=refunds_never").await.expect(200);
    let refused = refund(&h, &admin, &no, json!({ "amount_fen": 1000 })).await.expect(201).text_of("refund_no");
    drive(&h).await;
    let expected = (6000, vec![told(1000, "pending", "asked"), told(6000, "confirmed", "asked")]);
    assert_eq!(going_back(&h, &alice, &no).await, expected);
    let retry = format!("/admin/refunds/{refused}/retry");
    h.post(&retry, &admin, json!({ "new_number": true })).await.expect(200);
    assert_eq!(going_back(&h, &alice, &no).await, expected);
    let text = get(&h, &alice, &format!("/orders/{no}")).await.text();
    assert!(!text.contains("the buyer asked") && !text.contains(&admin.id.as_simple().to_string()), "{text}");
    assert_eq!(going_back(&h, &alice, &untouched).await, (0, vec![]), "another order's is another order's");
    h.get(&format!("/orders/{no}"), &bob).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_see_money_that_came_twice_go_back() {
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
    assert_eq!(going_back(&h, &alice, &no).await, (0, vec![told(500, "pending", "paid_twice")]));
    drive(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "paid");
    let twice = || told(500, "confirmed", "paid_twice");
    assert_eq!(going_back(&h, &alice, &no).await, (0, vec![twice()]), "it is no part of what the order was paid with");
    let admin = h.admin().await;
    refund(&h, &admin, &no, json!({})).await.expect(201);
    drive(&h).await;
    assert_eq!(going_back(&h, &alice, &no).await, (500, vec![told(500, "confirmed", "asked"), twice()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_see_money_that_came_for_a_dead_order_go_back() {
    let h = service().await;
    let alice = h.register().await;
    let course = h.course(500).await;
    let no = super::late::order_of(&h, &alice, &[&course]).await;
    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay_late&delay_s=700").await.expect(200);
    h.advance(DEADLINE);
    payments::sweep_due(&h.app).await.unwrap();
    // The course is the buyer's by another order by then.
    paid(&h, &alice, &[&course], json!({})).await;
    h.advance(Duration::from_secs(100));
    deliver(&h).await;
    resolve_late(&h).await;
    drive(&h).await;
    assert_eq!(status(&h, &alice, &no).await, "timed_out");
    let (back, refunds) = going_back(&h, &alice, &no).await;
    assert_eq!((back, refunds.len(), refunds[0].1.as_str()), (0, 1, "confirmed"), "{refunds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_refunds_the_last_are_told_and_all_are_counted() {
    let h = service().await;
    let (alice, admin) = (h.register().await, h.admin().await);
    let course = h.course(10_000).await;
    let (no, _) = paid(&h, &alice, &[&course], json!({})).await;
    for amount in 1..=25 {
        refund(&h, &admin, &no, json!({ "amount_fen": amount })).await.expect(201);
    }
    drive(&h).await;
    let (back, refunds) = going_back(&h, &alice, &no).await;
    let amounts: Vec<i64> = refunds.iter().map(|refund| refund.0).collect();
    assert_eq!(amounts, (6..=25).rev().collect::<Vec<i64>>());
    assert_eq!(back, (1..=25).sum::<i64>());
}
