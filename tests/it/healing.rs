//! What a service goes on after by itself: a MySQL that goes silent, a change of the schema behind a long read, a machine
//! whose clock is wrong, a Redis that hangs.

use std::time::Duration;

use futures_util::future::join_all;
use onrush::auth::{Role, UserId, access_token};
use onrush::jobs;
use onrush::platform::clock::Clock;
use onrush::platform::db;
use onrush::schema;
use serde_json::{Value, json};
use sqlx::Executor;
use tokio::task::JoinHandle;

use crate::seckill::{Sale, assert_clean, people};
use crate::support::harness::eventually;
use crate::support::{Client, Course, Harness, Options, Person, PrivateRedis, Proxy};

/// What must not hang is waited for so long.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn in_time<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move { tokio::time::timeout(PATIENCE, what).await.unwrap_or_else(|_| panic!("{caller}: it hangs")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_mysql_that_go_silent_are_given_up_and_others_take_their_place() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(100).await);
    let few = [("database.pool_size", "2"), ("database.statement_timeout_ms", "300")];
    let (way, through) = h.through_mysql_proxy_with(&few).await;
    let shown = format!("/courses/{}", course.no());
    // As often as there are connections, and once more.
    for _ in 0..3 {
        through.get(&shown, ()).await.expect(200);
        let statement = way.hold("FROM courses");
        let (asking, path) = (through.client.clone(), shown.clone());
        let asked = tokio::spawn(async move { asking.get(&path, ()).await });
        statement.sprung().await;
        // From now on nothing comes over any of them, and nobody says so.
        way.silence();
        let refused = in_time(asked).await.unwrap().problem(503, "unavailable");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    // All of the pool's places are good again.
    for (n, key) in ["a", "b", "c", "d"].iter().enumerate() {
        let body = json!({ "course_ids": [h.course(100 + n as i64).await.no()] });
        in_time(through.post_once("/orders", &alice, key, body)).await.expect(201);
    }
    in_time(through.get("/readyz", ())).await.expect(200);
    assert!(through.app.db.size() <= 2, "{}", through.app.db.size());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_ended_and_its_connection_goes_on() {
    let h = Harness::new().await;
    let hasty = h.another_with(&[("database.statement_timeout_ms", "200")]).await;
    let mut conn = hasty.app.db.acquire().await.unwrap();
    // A sleep that is ended says so by its result; a join without end is an error.
    let endless = "SELECT COUNT(*) FROM information_schema.columns a, information_schema.columns b, \
                   information_schema.columns c, information_schema.columns d";
    let ended = in_time(sqlx::query(endless).fetch_one(&mut *conn)).await.map(drop).unwrap_err();
    assert_eq!(db::trouble(&ended), db::Trouble::TooSlow, "{ended}");
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&mut *conn).await.unwrap();
    assert_eq!(one, 1);
    // Who may take longer does, on a connection of their own.
    let mut patient = hasty.app.db.acquire_for(PATIENCE).await.unwrap();
    let slept: i64 = sqlx::query_scalar("SELECT SLEEP(0.5)").fetch_one(&mut *patient).await.unwrap();
    assert_eq!(slept, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_schema_behind_a_long_read_holds_up_nobody_else() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(100).await);
    // A migration that is still to come.
    let undo = "ALTER TABLE orders DROP COLUMN pay_turns; ALTER TABLE users DROP COLUMN turns; \
                ALTER TABLE points_accounts DROP CONSTRAINT ck_points_accounts_owed, DROP COLUMN owed; \
                ALTER TABLE order_refunds DROP CONSTRAINT ck_order_refunds_owed, DROP COLUMN points_owed; \
                DELETE FROM _sqlx_migrations WHERE version = 20261130101500";
    h.app.db.acquire().await.unwrap().execute(sqlx::raw_sql(undo)).await.unwrap();
    let mut reading = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT COUNT(*) FROM courses, users").fetch_one(&mut *reading).await.unwrap();
    let changing = h.another().await;
    let changed = tokio::spawn(async move { schema::migrate(&changing.app.db).await });
    let waits = "SELECT COUNT(*) FROM information_schema.processlist \
                 WHERE db = DATABASE() AND state LIKE '%metadata lock%' AND id <> CONNECTION_ID() AND info LIKE '%ALTER TABLE users%'";
    h.eventually(async || h.count(waits).await > 0).await;
    // It waits for the reader, and those who come after it are served all the same.
    for _ in 0..3 {
        in_time(h.get("/courses", &alice)).await.expect(200);
        let known = in_time(h.get("/me", &alice)).await.expect(200);
        assert_eq!(known["id"], alice.id.as_simple().to_string());
    }
    assert!(!changed.is_finished());
    reading.rollback().await.unwrap();
    assert_eq!(in_time(changed).await.unwrap().unwrap(), 1);
    let body = json!({ "course_ids": [course.no()] });
    h.post_once("/orders", &alice, "after", body).await.expect(201);
    assert_eq!(schema::pending_migrations(&h.app.db).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_goes_on_behind_the_statements_that_were_done() {
    let h = Harness::new().await;
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 20261130163500").execute(&h.app.db).await.unwrap();
    // Its column is there: the statement fails whenever it is run.
    let failed = schema::migrate(&h.app.db).await.unwrap_err();
    assert!(format!("{failed:#}").contains("20261130163500"), "{failed:#}");
    assert_eq!(schema::pending_migrations(&h.app.db).await.unwrap(), 1);
    let undo = "ALTER TABLE order_refunds DROP CONSTRAINT ck_order_refunds_returned, DROP COLUMN points_returned";
    sqlx::query(undo).execute(&h.app.db).await.unwrap();
    assert_eq!(schema::migrate(&h.app.db).await.unwrap(), 1);
    // One of four that gave up after its first statement.
    let undo = "ALTER TABLE orders DROP COLUMN pay_turns; \
                ALTER TABLE points_accounts DROP CONSTRAINT ck_points_accounts_owed, DROP COLUMN owed; \
                ALTER TABLE order_refunds DROP CONSTRAINT ck_order_refunds_owed, DROP COLUMN points_owed; \
                UPDATE _sqlx_migrations SET success = FALSE, execution_time = -2 WHERE version = 20261130101500";
    h.app.db.acquire().await.unwrap().execute(sqlx::raw_sql(undo)).await.unwrap();
    assert_eq!(schema::pending_migrations(&h.app.db).await.unwrap(), 1);
    assert_eq!(schema::migrate(&h.app.db).await.unwrap(), 1);
    assert_eq!(schema::pending_migrations(&h.app.db).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_ahead_opens_no_sale_times_nobody_out_and_takes_no_work() {
    // Less than the clock is ahead: by it the time to pay is over, and the sale has begun.
    let settings = vec![("orders.pay_deadline_s", "600".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(100).await);
    let soon = json!({ "starts_at": h.now().plus(Duration::from_secs(600)) });
    let sale = Sale::with(&h, soon).await;
    let body = json!({ "course_ids": [course.no()] });
    let order = h.post_once("/orders", &alice, "k", body).await.expect(201).text_of("order_no");
    let body = json!({ "course_ids": [h.course(100).await.no()] });
    let begun = h.post_once("/orders", &alice, "l", body).await.expect(201).text_of("order_no");
    h.post(&format!("/orders/{begun}/pay"), &alice, json!({ "gateway": "sandbox" })).await.expect(200);

    let ahead = h.with_clock(Clock::Ahead(20 * 60_000)).await;
    let token = access_token(&ahead.app, UserId::from_uuid(alice.id), Role::User).unwrap();
    ahead.post(&sale.submissions(), &token, Value::Null).await.problem(409, "not_started");
    jobs::run_pass(ahead.app.clone(), "orders.sweep").await.unwrap().unwrap();
    for order in [order, begun] {
        assert_eq!(h.get(&format!("/orders/{order}"), &alice).await.expect(200)["status"], "unpaid");
    }

    let said = async || {
        let readiness = ahead.get("/readyz", ()).await;
        (readiness.status, readiness["clock"].as_str().unwrap_or_default().to_owned())
    };
    eventually(async || said().await.0 == 503).await;
    let (_, why) = said().await;
    assert!(why.starts_with("this machine's clock is 1200.") && why.contains("s ahead of those of "), "{why}");
    eventually(async || ahead.app.engine.is_held()).await;
    // Its workers leave alone what another's take.
    ahead.start_workers();
    let sale = Sale::open(&h, 1).await;
    let task = sale.submit(&h, &alice).await.expect(202).text_of("id");
    let waiting = h.get(&format!("/tasks/{task}?wait=2"), &alice).await.expect(200);
    assert_eq!(waiting["code"], 102, "{}", waiting.text());
    h.start_workers();
    assert_eq!(h.get(&format!("/tasks/{task}?wait=30"), &alice).await.expect(200)["code"], 100);
    h.get("/readyz", ()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_do_not_wait_for_a_redis_that_hangs_and_lose_nothing_by_it() {
    let redis = PrivateRedis::start().await;
    let proxy = Proxy::to(redis.url()).await;
    let settings = vec![("orders.owed_grace_s", "1".to_owned())];
    let servers = Some(redis.addresses(proxy.url()).await);
    let h = Harness::with(Options { system_clock: true, settings, servers }).await;
    let alice = h.register().await;
    let free = h.course(0).await;
    let order = async || {
        let body = json!({ "course_ids": [h.course(100).await.no()] });
        h.post_once("/orders", &h.register().await, "k", body).await.expect(201);
    };
    // Nothing is answered, which is known after a moment.
    proxy.slow_down(Duration::from_secs(600));
    in_time(async {
        for _ in 0..10 {
            order().await;
        }
    })
    .await;
    proxy.slow_down(Duration::ZERO);
    h.eventually(async || h.get("/readyz", ()).await.status == 200).await;
    // It says that it is well, and does nothing that it is told: were each to wait for that, they would not be done in time.
    redis.tell(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    in_time(async {
        for _ in 0..30 {
            order().await;
        }
        h.post_once("/orders", &alice, "free", json!({ "course_ids": [free.no()] })).await.expect(201);
    })
    .await;
    redis.tell(&["CLIENT", "UNPAUSE"]).await;
    h.start_workers();
    let granted = "SELECT COUNT(*) FROM orders WHERE granted_at IS NOT NULL";
    h.eventually(async || h.count(granted).await == 1).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 41);
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_redis_that_is_known_to_hang_is_refused_at_once() {
    let redis = PrivateRedis::start().await;
    let proxy = Proxy::to(redis.url()).await;
    let servers = Some(redis.addresses(proxy.url()).await);
    let h = Harness::with(Options { system_clock: true, servers, ..Options::default() }).await;
    let (sale, alice) = (Sale::open(&h, 5).await, h.register().await);
    proxy.slow_down(Duration::from_secs(600));
    let is_away = async || {
        let ready = h.get("/readyz", ()).await;
        (ready.status, ready["redis"] != "ok") == (503, true)
    };
    h.eventually(is_away).await;
    // It is known when somebody has waited for an answer in vain.
    sale.submit(&h, &alice).await.problem(503, "unavailable");
    sale.submit(&h, &alice).await.problem(503, "unavailable");
    in_time(async {
        for _ in 0..60 {
            sale.submit(&h, &alice).await.problem(503, "unavailable");
        }
    })
    .await;
    proxy.slow_down(Duration::ZERO);
    h.eventually(async || sale.submit(&h, &alice).await.status == 202).await;
}

/// Sends an order of each of `people` and does not wait for the answers.
fn send_orders(h: &Harness, people: &[Person], course: &Course) -> Vec<JoinHandle<u16>> {
    let send = |(n, person): (usize, &Person)| {
        let (client, person, body) = (h.client.clone(), person.clone(), json!({ "course_ids": [course.no()] }));
        tokio::spawn(async move { client.post_once("/orders", &person, &n.to_string(), body).await.status })
    };
    people.iter().enumerate().map(send).collect()
}

fn ended(asked: &[JoinHandle<u16>]) -> usize {
    asked.iter().filter(|asked| asked.is_finished()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_many_requests_at_once_leaves_the_others_their_connections() {
    let settings = vec![("limits.in_flight_per_account", "3".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (alice, bob, course) = (h.register().await, h.register().await, h.course(100).await);
    let other = h.another().await;
    let mut lock = other.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM users WHERE id = ? FOR UPDATE").bind(alice.id).fetch_one(&mut *lock).await.unwrap();
    let asked = send_orders(&h, &vec![alice; 12], &course);
    // Three wait for the account, and the others are refused before they take anything.
    h.eventually(async || ended(&asked) == 9).await;
    in_time(h.post_once("/orders", &bob, "k", json!({ "course_ids": [course.no()] }))).await.expect(201);
    lock.rollback().await.unwrap();
    let mut statuses: Vec<u16> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [[201; 3].as_slice(), &[429; 9]].concat());
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_the_work_behind_them_a_connection() {
    let settings = vec![("database.pool_size", "4".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (people, course) = (people(&h, 8).await, h.course(100).await);
    let other = h.another().await;
    let mut lock = other.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM users FOR UPDATE").fetch_all(&mut *lock).await.unwrap();
    let asked = send_orders(&h, &people, &course);
    h.eventually(async || h.held_up(3).await).await;
    in_time(jobs::run_pass(h.app.clone(), "orders.sweep")).await.unwrap().unwrap();
    assert_eq!(ended(&asked), 0);
    lock.rollback().await.unwrap();
    assert!(join_all(asked).await.into_iter().all(|status| status.unwrap() == 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_told_to_stop_is_not_ready_first_and_serves_until_it_leaves() {
    let settings = vec![("http.leave_s", "2".to_owned())];
    let mut h = Harness::with(Options { settings, ..Options::default() }).await;
    let client = h.client.clone();
    client.get("/readyz", ()).await.expect(200);
    let looking = async {
        eventually(async || client.get("/readyz", ()).await.status == 503).await;
        // Who has not been told yet comes with a new connection.
        let late = Client::new(client.base.clone());
        late.get("/courses", ()).await.expect(200);
    };
    let (stopped, ()) = tokio::join!(h.stop(), looking);
    assert!(stopped);
}
