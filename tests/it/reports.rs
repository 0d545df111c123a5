//! The daily report: what a business day came to, on which side of midnight, and who may read it.

use std::time::Duration;

use onrush::platform::clock::At;
use onrush::platform::day::Day;
use onrush::platform::db::Conn;
use onrush::platform::text::Text;
use onrush::reports::{self, Span};
use onrush::{jobs, payments};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::QueryBuilder;
use uuid::Uuid;

use crate::schedules::{Desk, set_clock};
use crate::seckill::{Sale, assert_clean};
use crate::support::client::send;
use crate::support::{Answer, Harness, Options};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The morning after 20 November in Shanghai, when the report is made.
const MORNING: &str = "2026-11-20T23:30:00.000Z";
/// Its first instant there, and the next day's.
const FROM: &str = "2026-11-19T16:00:00.000Z";
const UNTIL: &str = "2026-11-20T16:00:00.000Z";
const MS: Duration = Duration::from_millis(1);

fn at(text: &str) -> At {
    text.parse().expect("an instant")
}

/// Runs the pass; the days whose reports it made.
async fn make(h: &Harness) -> Value {
    let result = jobs::run_pass(h.app.clone(), "reports.daily").await.expect("a pass").expect("a result");
    result["made"].clone()
}

async fn report(desk: &Desk, day: &str) -> Answer {
    desk.h.get(&format!("/admin/reports/daily/{day}"), &desk.token()).await
}

/// An order of the books: what it is, and when what happened to it.
struct Booked {
    kind: &'static str,
    status: i8,
    created: At,
    paid: Option<At>,
    granted: Option<At>,
    closed: Option<At>,
    released: Option<At>,
    courses: i32,
}

impl Booked {
    /// Made long before any day of these tests, and still unpaid.
    fn long_ago(kind: &'static str) -> Self {
        let created = at("2026-10-01T00:00:00.000Z");
        Self { kind, status: 0, created, paid: None, granted: None, closed: None, released: None, courses: 0 }
    }

    fn paid(kind: &'static str, paid: At) -> Self {
        Self { status: 1, paid: Some(paid), ..Self::long_ago(kind) }
    }

    fn closed(status: i8, closed: At) -> Self {
        Self { status, closed: Some(closed), ..Self::long_ago("course") }
    }
}

/// Enters orders of which each pays `fen`.
async fn book(h: &Harness, fen: i64, orders: &[Booked]) {
    let ids: Vec<Uuid> = orders.iter().map(|_| Uuid::now_v7()).collect();
    let mut insert = QueryBuilder::new(
        "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, \
         points_used, points_earned, currency, created_at, expires_at, paid_at, granted_at, closed_at, released_at) ",
    );
    insert.push_values(orders.iter().zip(&ids), |mut row, (order, id)| {
        row.push_bind(*id).push_bind(Uuid::now_v7()).push_bind(order.kind).push_bind(order.status);
        row.push_bind(6 * fen).push_bind(2 * fen).push_bind(3 * fen).push_bind(fen).push_bind(4 * fen);
        row.push_bind(5 * fen).push_bind("CNY").push_bind(order.created).push_bind(order.created);
        row.push_bind(order.paid).push_bind(order.granted).push_bind(order.closed).push_bind(order.released);
    });
    insert.build().persistent(false).execute(&h.app.db).await.expect("orders");
    for (order, id) in orders.iter().zip(&ids) {
        for position in 1..=order.courses {
            sqlx::query(
                "INSERT INTO order_items (order_id, position, course_id, title, price_fen, coupon_discount_fen, \
                 points_discount_fen, payable_fen) VALUES (?, ?, ?, 'c', 0, 0, 0, 0)",
            )
            .bind(id)
            .bind(position)
            .bind(Uuid::now_v7())
            .execute(&h.app.db)
            .await
            .expect("an item");
        }
    }
}

/// Enters everything that a report counts, and what it must not, all at `t`. What brings money brings `fen`.
async fn everything_at(h: &Harness, t: At, fen: i64) {
    let orders = [
        Booked { created: t, ..Booked::long_ago("course") },
        Booked { created: t, ..Booked::long_ago("seckill") },
        // Two courses, granted a second later: of the last instant of a day, on the next.
        Booked { granted: Some(t.plus(Duration::from_secs(1))), courses: 2, ..Booked::paid("course", t) },
        // Still to be granted.
        Booked { courses: 1, ..Booked::paid("seckill", t) },
        // Given back since.
        Booked { status: 5, granted: Some(t), courses: 1, ..Booked::paid("course", t) },
        Booked::closed(2, t),
        Booked { released: Some(t.plus(2 * DAY)), ..Booked::closed(3, t) },
    ];
    book(h, fen, &orders).await;
    let id = Uuid::now_v7;
    let insert = async |sql: &'static str, ids: usize, more: &[&str]| {
        let mut query = sqlx::query(sql);
        for _ in 0..ids {
            query = query.bind(id());
        }
        for text in more {
            query = query.bind((*text).to_owned());
        }
        query.bind(t).execute(&h.app.db).await.expect(sql);
    };
    let entry = "INSERT INTO seckill_entries (id, activity_id, user_id, order_id, created_at, released_at, \
                 gate_returned_at) VALUES (?, ?, ?, ?, '2026-10-01', '2026-10-01', ?)";
    insert(entry, 4, &[]).await;
    let message = "INSERT INTO payment_notifications (id, payment_id, gateway, notify_id, outcome, body, received_at) \
                   VALUES (?, ?, 'sandbox', ?, ?, '', ?)";
    for outcome in ["late", "flagged", "settled", "ignored", "repeated"] {
        insert(message, 2, &[&id().to_string(), outcome]).await;
    }
    let refund = "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, status, created_at, confirmed_at) \
                  VALUES (?, ?, ?, ?, 'late', 'confirmed', '2026-10-01', ?)";
    insert(refund, 3, &[&fen.to_string()]).await;
    let owed = "INSERT INTO refunds (id, payment_id, order_id, amount_fen, reason, status, created_at) \
                VALUES (?, ?, ?, 7, 'late', 'pending', ?)";
    insert(owed, 3, &[]).await;
    let user =
        "INSERT INTO users (id, phone, password_hash, nickname, role, created_at) VALUES (?, ?, 'x', 'x', 'user', ?)";
    insert(user, 1, &[&id().as_simple().to_string()[13..]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_counts_what_happened_from_midnight_to_midnight_in_the_business_time_zone() {
    let desk = Desk::at(MORNING).await;
    // The last instant before the day, its first, its last, and the first after it.
    for (t, fen) in [(at(FROM).minus(MS), 1), (at(FROM), 10), (at(UNTIL).minus(MS), 100), (at(UNTIL), 1000)] {
        everything_at(&desk.h, t, fen).await;
    }
    make(&desk.h).await;
    let found = report(&desk, "2026-11-20").await.expect(200);
    let expected = json!({
        "day": "2026-11-20", "starts_at": FROM, "ends_at": UNTIL, "made_at": MORNING,
        "course_orders_created": 2, "seckill_orders_created": 2,
        "course_orders_paid": 4, "seckill_orders_paid": 2,
        "paid_fen": 330, "coupon_discount_fen": 660, "points_discount_fen": 990, "points_used": 1320, "points_earned": 1650,
        "orders_cancelled": 2, "orders_timed_out": 2,
        // Two courses each of what was paid just before the day and at its first instant, one each of what was given back.
        "courses_granted": 6,
        "seckill_units_returned": 2, "payments_late": 2, "notifications_flagged": 2,
        "refunds_confirmed": 2, "refunded_fen": 110, "users_registered": 2,
    });
    assert_eq!(found.body, expected);
    let before = report(&desk, "2026-11-19").await.expect(200);
    assert_eq!((&before["paid_fen"], &before["courses_granted"]), (&json!(3), &json!(1)));
    // The day after is not over.
    report(&desk, "2026-11-21").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_itself_does_in_a_day_is_reported() {
    let settings =
        vec![("auth.access_token_s", "86400".to_owned()), ("payments.gateway_timeout_ms", "30000".to_owned())];
    let desk = Desk::of(Harness::with(Options { settings, ..Options::default() }).await).await;
    let h = &desk.h;
    let (alice, bob, course) = (h.register().await, h.register().await, h.course(1000).await);
    let sale = Sale::open(h, 5).await;
    h.start_workers();
    let body = json!({ "course_ids": [course.no()] });
    let order = h.post_once("/orders", &alice, "k", body).await.expect(201).text_of("order_no");
    let pay = h.post(&format!("/orders/{order}/pay"), &alice, json!({ "gateway": "sandbox" })).await.expect(200);
    let page = pay.text_of("pay_url");
    let form = h.http.post(page).header("content-type", "application/x-www-form-urlencoded").body("action=pay");
    send(form).await;
    let won = sale.take_part(h, &bob).await;
    let unit = won["result"]["order_no"].as_str().expect("an order");
    h.post(&format!("/orders/{unit}/cancel"), &bob, json!({})).await.expect(200);
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE granted_at IS NOT NULL").await == 1).await;
    let returned = "SELECT COUNT(*) FROM seckill_entries WHERE gate_returned_at IS NOT NULL";
    h.eventually(async || h.count(returned).await == 1).await;
    let zone = jiff::tz::TimeZone::get("Asia/Shanghai").unwrap();
    let day = Day::of(h.now(), &zone);
    set_clock(h, day.bounds(&zone).1.plus(Duration::from_secs(3600)));
    make(h).await;
    let found = report(&desk, &day.to_string()).await.expect(200);
    let told: Vec<(&str, i64)> =
        found.body.as_object().unwrap().iter().filter_map(|(k, v)| Some((&**k, v.as_i64()?))).collect();
    let accounts = h.count("SELECT COUNT(*) FROM users").await;
    let expected = [
        ("course_orders_created", 1),
        ("seckill_orders_created", 1),
        ("course_orders_paid", 1),
        ("seckill_orders_paid", 0),
        ("paid_fen", 1000),
        ("coupon_discount_fen", 0),
        ("points_discount_fen", 0),
        ("points_used", 0),
        ("points_earned", 10),
        ("orders_cancelled", 1),
        ("orders_timed_out", 0),
        ("courses_granted", 1),
        ("seckill_units_returned", 1),
        ("payments_late", 0),
        ("notifications_flagged", 0),
        ("refunds_confirmed", 0),
        ("refunded_fen", 0),
        ("users_registered", accounts),
    ];
    let mut expected = expected.to_vec();
    let mut told = told;
    expected.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, expected);
    payments::sweep_due(&h.app).await.unwrap();
    assert_clean(h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_there_stays_as_it_is() {
    let desk = Desk::at(MORNING).await;
    everything_at(&desk.h, at(FROM), 10).await;
    // Two processes at once.
    let (one, other) = tokio::join!(make(&desk.h), make(&desk.h));
    assert!(one == json!(week("2026-11-20")) || other == json!(week("2026-11-20")), "{one} {other}");
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM daily_reports").await, 7);
    let first = report(&desk, "2026-11-20").await.expect(200);
    everything_at(&desk.h, at(FROM), 10).await;
    desk.h.advance(Duration::from_secs(60));
    assert_eq!(make(&desk.h).await, json!([]));
    assert_eq!(report(&desk, "2026-11-20").await.expect(200).body, first.body);
    // One that another process made between this one's look and its writing.
    let mut conn = desk.h.app.db.acquire().await.unwrap();
    let span = Span { from: at(FROM), until: at(UNTIL) };
    let late = reports::read(&mut conn, "2026-11-20".parse().unwrap(), span, desk.h.now()).await.unwrap();
    assert_eq!(late.course_orders_created, 2);
    reports::keep(&mut conn, &late).await.unwrap();
    assert_eq!(report(&desk, "2026-11-20").await.expect(200).body, first.body);
}

/// The seven days that end with this one, oldest first.
fn week(last: &str) -> Vec<Day> {
    let last: Day = last.parse().expect("a day");
    (0..7).rev().map(|back| last.days_before(back)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn days_that_were_missed_are_made_up_for_up_to_a_week() {
    let desk = Desk::at(MORNING).await;
    assert_eq!(make(&desk.h).await, json!(week("2026-11-20")));
    set_clock(&desk.h, at("2026-11-23T23:30:00.000Z"));
    assert_eq!(make(&desk.h).await, json!(["2026-11-21", "2026-11-22", "2026-11-23"]));
    sqlx::query("DELETE FROM daily_reports WHERE day IN ('2026-11-22', '2026-11-14')")
        .execute(&desk.h.app.db)
        .await
        .unwrap();
    assert_eq!(make(&desk.h).await, json!(["2026-11-22"]));
    // Yesterday is closed ten minutes after its midnight.
    set_clock(&desk.h, at("2027-01-31T16:09:59.000Z"));
    let most = make(&desk.h).await;
    assert_eq!(most, json!(&week("2027-01-31")[..6]));
    desk.h.advance(Duration::from_secs(1));
    assert_eq!(make(&desk.h).await, json!(["2027-01-31"]));
    // All of them, newest first, in pages.
    let (mut days, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = desk.h.get(&format!("/admin/reports/daily?limit=7{cursor}"), &desk.token()).await.expect(200);
        days.extend(page["items"].as_array().unwrap().iter().map(|item| item["day"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let mut expected: Vec<String> =
        ["2026-11-20", "2027-01-31"].into_iter().flat_map(week).map(|d| d.to_string()).collect();
    expected.retain(|day| day != "2026-11-14");
    expected.extend(["2026-11-21", "2026-11-22", "2026-11-23"].map(str::to_owned));
    expected.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(days, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_is_scheduled_in_the_morning_of_the_business_time_zone() {
    for (zone, morning) in
        [("Asia/Shanghai", "2026-11-20T23:30:00.000Z"), ("America/New_York", "2026-11-20T12:30:00.000Z")]
    {
        let settings = vec![("time_zone", zone.to_owned())];
        let h = Harness::with(Options { settings, ..Options::default() }).await;
        set_clock(&h, at(morning).minus(Duration::from_secs(60)));
        let desk = Desk::of(h).await;
        desk.scheduler.make_absent(&jobs::own_schedules(&desk.h.app.config, desk.h.now())).await.unwrap();
        let all = desk.h.get("/admin/schedules?limit=100", &desk.token()).await.expect(200);
        let own = all["items"].as_array().unwrap().iter().find(|item| item["name"] == "reports.daily").expect("it");
        assert_eq!(
            (&own["task"], &own["kind"], &own["crontab"], &own["time_zone"], &own["next_run_at"], &own["enabled"]),
            (
                &json!("reports.daily"),
                &json!("crontab"),
                &json!("30 7 * * *"),
                &json!(zone),
                &json!(morning),
                &json!(true)
            )
        );
        // An administrator's from then on.
        let id = own["id"].as_str().unwrap();
        desk.change(id, json!({ "crontab": "31 7 * * *" })).await;
        desk.scheduler.make_absent(&jobs::own_schedules(&desk.h.app.config, desk.h.now())).await.unwrap();
        assert_eq!(desk.after(Duration::from_secs(119), id).await, 0);
        assert_eq!(desk.after(Duration::from_secs(1), id).await, 1);
        desk.h.start_workers();
        desk.h.eventually(async || desk.look(id).await["last_task"]["state"] == "SUCCESS").await;
        let last = if zone == "Asia/Shanghai" { "2026-11-20" } else { "2026-11-19" };
        assert_eq!(desk.look(id).await["last_task"]["result"], json!({ "made": week(last) }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_not_there_yet_says_when_it_will_be() {
    // The scheduler has made the product's own schedules: at 07:30 in Shanghai.
    let desk = Desk::at("2026-11-20T04:00:00.000Z").await;
    desk.scheduler.make_absent(&jobs::own_schedules(&desk.h.app.config, desk.h.now())).await.unwrap();
    let today = report(&desk, "2026-11-20").await.problem(404, "not_found");
    assert_eq!(today["ready_at"], MORNING);
    assert!(today.text_of("detail").contains(MORNING), "{}", today.text());
    // One that is missing is made by the next run, and one that nobody will make is not promised.
    assert_eq!(report(&desk, "2026-11-19").await.problem(404, "not_found")["ready_at"], "2026-11-20T23:30:00.000Z");
    for never in ["2026-11-12", "2026-11-21", "9999-12-31", "0000-01-01"] {
        assert!(report(&desk, never).await.problem(404, "not_found")["ready_at"].is_null(), "{never}");
    }
    // As an operator has it.
    let list = desk.h.get("/admin/schedules?limit=100", &desk.token()).await.expect(200);
    let own = list["items"].as_array().unwrap().iter().find(|s| s["task"] == "reports.daily").unwrap();
    let id = own["id"].as_str().unwrap();
    desk.change(id, json!({ "crontab": "5 0 * * *" })).await;
    // At five past midnight the day is not closed yet.
    assert_eq!(report(&desk, "2026-11-20").await["ready_at"], "2026-11-21T16:05:00.000Z");
    desk.change(id, json!({ "enabled": false })).await;
    assert!(report(&desk, "2026-11-20").await.problem(404, "not_found")["ready_at"].is_null());
    desk.change(id, json!({ "crontab": "30 7 * * *", "enabled": true })).await;
    set_clock(&desk.h, at(MORNING));
    make(&desk.h).await;
    report(&desk, "2026-11-20").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_for_administrators() {
    let desk = Desk::at(MORNING).await;
    make(&desk.h).await;
    let user = desk.h.register().await;
    for path in ["/admin/reports/daily", "/admin/reports/daily/2026-11-20"] {
        send(desk.h.request(Method::GET, path, &user)).await.problem(403, "forbidden");
        send(desk.h.request(Method::GET, path, ())).await.problem(401, "unauthenticated");
        desk.h.get(path, &desk.token()).await.expect(200);
    }
    for absent in ["2026-11-13", "2026-11-21", "2026-11-22", "0000-01-01", "0001-01-01", "9999-12-31"] {
        report(&desk, absent).await.problem(404, "not_found");
    }
    for bad in ["2026-11-31", "2026-1-1", "20261120", "yesterday", "2026-11-20T00:00:00Z", "-26-11-20"] {
        let told = report(&desk, bad).await.problem(422, "validation_failed");
        assert_eq!(told["errors"], json!([{ "field": "day", "message": "must be a day, such as 2026-11-20" }]));
    }
    let told = desk.h.get("/admin/reports/daily?cursor=x&limit=101&surprise=1", &desk.token()).await;
    let told = told.problem(422, "validation_failed");
    let fields: Vec<&str> = told["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["cursor", "surprise", "limit"]);
}

/// Rows that the server looked at on this connection so far. (MySQL does not count those of which an index alone told that
/// they were not wanted.)
async fn rows_read(conn: &mut Conn) -> i64 {
    let count =
        "SHOW SESSION STATUS WHERE variable_name LIKE 'Handler_read%' OR variable_name = 'Handler_icp_attempts'";
    let counters: Vec<(Text, Text)> = sqlx::query_as(count).fetch_all(conn).await.unwrap();
    counters.iter().map(|(_, Text(count))| count.parse::<i64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_reads_what_its_day_has_and_not_what_was_before() {
    let h = Harness::new().await;
    everything_at(&h, at(FROM), 10).await;
    let mut conn = h.app.db.acquire().await.unwrap();
    let read = async |conn: &mut Conn| {
        let (span, before) = (Span { from: at(FROM), until: at(UNTIL) }, rows_read(conn).await);
        let report = reports::read(conn, "2026-11-20".parse().unwrap(), span, at(MORNING)).await.unwrap();
        (report, rows_read(conn).await - before)
    };
    let (alone, few) = read(&mut conn).await;
    // A year ago, all of it: nothing of that is in the day's way.
    for _ in 0..100 {
        everything_at(&h, at("2025-11-20T00:00:00.000Z"), 1).await;
    }
    let (beside_many, many) = read(&mut conn).await;
    assert_eq!(beside_many, alone);
    assert!(many <= few + 20, "{few} rows read beside nothing, {many} beside much");
}
