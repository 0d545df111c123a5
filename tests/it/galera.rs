//! MySQL as a cluster that takes writes on every node: Galera, where it is installed. A lock is known to its own node there,
//! and of two transactions that wrote the same row one is rolled back when it commits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use onrush::auth::{self, UserId};
use onrush::check;
use onrush::platform::db::{Conn, Trouble, trouble};
use onrush::platform::hmac::SharedSecret;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use crate::support::client::send;
use crate::support::harness::SANDBOX_SECRET;
use crate::support::servers::{Addresses, blocking, servers};
use crate::support::{Galera, Harness, Options, Person};

/// A service on the first node and another one on the second; none where Galera is not installed.
async fn on_two_nodes() -> Option<(Harness, Harness, Galera)> {
    let Some(cluster) = Galera::start(2).await else {
        eprintln!("Galera is not installed: nothing was tried on it");
        return None;
    };
    let redis = blocking(servers).await.redis;
    let addresses = Addresses { mysql: cluster.url(0).to_owned(), redis, clean_up: false };
    let settings = vec![
        ("payments.gateway_timeout_ms", "30000".to_owned()),
        ("http.timeout_s", "60".to_owned()),
        ("orders.max_unpaid_per_course", "100".to_owned()),
    ];
    let one = Harness::with(Options { settings, servers: Some(addresses), ..Options::default() }).await;
    let database = onrush::dev::servers::database_url(cluster.url(1), &one.database);
    let two = one.another_with(&[("database_url", &database)]).await;
    Some((one, two, cluster))
}

/// What one node has, the other one has.
async fn caught_up(one: &Harness, two: &Harness, sql: &'static str) {
    let wanted = one.count(sql).await;
    two.eventually(async || two.count(sql).await == wanted).await;
}

/// An order of this course that was paid at the gateway, which has not told us yet: its number, and the message.
async fn paid_there(h: &Harness, who: &Person, course: &str) -> (String, Vec<u8>) {
    let key = Uuid::now_v7().as_simple().to_string();
    let body = json!({ "course_ids": [course] });
    let no = h.post_once("/orders", who, &key, body).await.expect(201).text_of("order_no");
    let started = h.post(&format!("/orders/{no}/pay"), who, json!({"gateway": "sandbox"})).await.expect(200);
    let trade = started.text_of("pay_url").rsplit_once('/').unwrap().1.to_owned();
    let page = h.request(Method::POST, &format!("/sandbox/pay/{trade}"), ());
    let form = "application/x-www-form-urlencoded";
    send(page.header("content-type", form).body("action=pay")).await.expect(200);
    let message = json!({
        "notify_id": key, "code": "100000", "merchant_id": "onrush-sandbox", "currency": "CNY", "trade_no": trade,
        "merchant_no": started.text_of("payment_no"), "amount_fen": 1000,
    });
    (no, serde_json::to_vec(&message).unwrap())
}

/// Has a gateway's message arrive at a service until it is taken, as the gateway would.
async fn told(h: &Harness, message: &[u8]) {
    h.eventually(async || {
        let (timestamp, signature) = SharedSecret::new(SANDBOX_SECRET.as_bytes()).sign(message, h.now());
        let request = h.request(Method::POST, "/payments/sandbox/notify", ()).body(message.to_vec());
        let request = request.header("x-sandbox-timestamp", timestamp).header("x-sandbox-signature", signature);
        send(request).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_one_course_that_are_settled_on_different_nodes_leave_one_paid() {
    const PAIRS: usize = 40;
    let Some((one, two, _cluster)) = on_two_nodes().await else { return };
    let mut pairs = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        let (alice, course) = (one.register().await, one.course(1000).await.no());
        pairs.push((paid_there(&one, &alice, &course).await, paid_there(&one, &alice, &course).await));
    }
    caught_up(&one, &two, "SELECT COUNT(*) FROM payments").await;
    for ((_, first), (_, second)) in &pairs {
        tokio::join!(told(&one, first), told(&two, second));
    }
    caught_up(&one, &two, "SELECT COUNT(*) FROM payments WHERE status = 'paid'").await;
    assert_eq!(one.count("SELECT COUNT(*) FROM payments WHERE status = 'paid'").await, 2 * PAIRS as i64);
    assert_eq!(one.count("SELECT COUNT(*) FROM orders WHERE status = 1").await, PAIRS as i64, "one of each pair");
    one.start_workers();
    one.eventually(async || {
        one.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed' AND reason = 'paid_twice'").await
            == PAIRS as i64
    })
    .await;
    let findings = check::findings(&one.app, false).await.unwrap();
    let i9 = findings.iter().find(|finding| finding.name == "I9").unwrap();
    assert!(i9.violations.is_empty(), "{:?}", i9.violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_orders_wait_for_their_payment_than_may_when_two_nodes_make_them() {
    let Some((one, two, _cluster)) = on_two_nodes().await else { return };
    let limits = [("orders.max_unpaid_per_course", "3")];
    let (one, two) = (one.another_with(&limits).await, two.another_with(&limits).await);
    let (alice, course) = (one.register().await, one.course(1000).await.no());
    caught_up(&one, &two, "SELECT COUNT(*) FROM users").await;
    caught_up(&one, &two, "SELECT COUNT(*) FROM courses").await;
    let order = async |h: &Harness, at: usize| {
        h.post_once("/orders", &alice, &format!("k{at}"), json!({ "course_ids": [course] })).await
    };
    let tries = (0..12).map(|at| order(if at % 2 == 0 { &one } else { &two }, at));
    for answer in join_all(tries).await {
        assert!([201, 409, 503].contains(&answer.status), "{}", answer.text());
    }
    caught_up(&one, &two, "SELECT COUNT(*) FROM orders").await;
    assert!(one.count("SELECT COUNT(*) FROM orders").await <= 3);
    for at in 20..24 {
        order(if at % 2 == 0 { &one } else { &two }, at).await;
    }
    assert_eq!(one.count("SELECT COUNT(*) FROM orders").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_another_nodes_overtook_is_undone_and_reads_as_a_deadlock() {
    let Some((one, two, _cluster)) = on_two_nodes().await else { return };
    let alice = UserId::from_uuid(one.register().await.id);
    caught_up(&one, &two, "SELECT COUNT(*) FROM users").await;
    let (mut here, mut there) = (one.app.db.begin().await.unwrap(), two.app.db.begin().await.unwrap());
    // Each has the lock of its node.
    assert!(auth::take_turn(&mut here, alice).await.unwrap() && auth::take_turn(&mut there, alice).await.unwrap());
    here.commit().await.unwrap();
    let overtaken = there.commit().await.unwrap_err();
    assert_eq!(trouble(&overtaken), Trouble::Contention, "{overtaken}");
    caught_up(&one, &two, "SELECT CAST(SUM(turns) AS SIGNED) FROM users").await;
    assert_eq!(two.count("SELECT CAST(SUM(turns) AS SIGNED) FROM users").await, 1);
    // Its connection is used again, and is in no transaction.
    for _ in 0..20 {
        let mut conn = two.app.db.acquire().await.unwrap();
        let open: i64 =
            sqlx::query_scalar("SELECT CAST(@@in_transaction AS SIGNED)").fetch_one(&mut *conn).await.unwrap();
        assert_eq!(open, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_overtaken_in_the_middle_does_not_go_on_without_its_beginning() {
    let Some((one, two, _cluster)) = on_two_nodes().await else { return };
    let users = [one.register().await.id, one.register().await.id];
    caught_up(&one, &two, "SELECT COUNT(*) FROM users").await;
    // The next statement is one that its connection has not prepared yet, and then one that it has.
    for user in users.map(UserId::from_uuid) {
        let (mut here, mut there) = (one.app.db.begin().await.unwrap(), two.app.db.begin().await.unwrap());
        assert!(auth::take_turn(&mut here, user).await.unwrap() && auth::take_turn(&mut there, user).await.unwrap());
        here.commit().await.unwrap();
        caught_up(&one, &two, "SELECT CAST(SUM(turns) AS SIGNED) FROM users").await;
        let rename = "UPDATE users SET nickname = 'overtaken' WHERE id = ?";
        let error = sqlx::query(rename).bind(user).execute(&mut *there).await.unwrap_err();
        assert_eq!(trouble(&error), Trouble::Contention, "{error}");
        drop(there);
        assert_eq!(two.count("SELECT COUNT(*) FROM users WHERE nickname = 'overtaken'").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_overtaken_while_a_statement_was_prepared_commits_nothing_of_what_came_after() {
    const WRITERS: usize = 4;
    const TIMES: usize = 1500;
    let Some((one, two, _cluster)) = on_two_nodes().await else { return };
    sqlx::query("CREATE TABLE counts (id INT PRIMARY KEY, n INT NOT NULL)").execute(&one.app.db).await.unwrap();
    sqlx::query("INSERT INTO counts VALUES (0, 0), (1, 0), (2, 0), (3, 0), (4, 0)").execute(&one.app.db).await.unwrap();
    two.eventually(async || {
        sqlx::query("SELECT id FROM counts").fetch_all(&two.app.db).await.is_ok_and(|rows| rows.len() == WRITERS + 1)
    })
    .await;
    // Each counts in the row that all write, and then in its own, with statements that are prepared each time.
    let count = async |conn: &mut Conn, id: usize| {
        sqlx::query("UPDATE counts SET n = n + 1 WHERE id = ?").bind(id as u32).persistent(false).execute(conn).await
    };
    let write = async |id: usize| {
        let mut tx = two.app.db.begin().await?;
        count(&mut tx, 0).await?;
        for _ in 0..3 {
            sqlx::query("SELECT n FROM counts WHERE id = 0").persistent(false).fetch_one(&mut *tx).await?;
            count(&mut tx, id).await?;
        }
        tx.commit().await
    };
    let written = AtomicUsize::new(0);
    let writer = async |id: usize| {
        let mut committed = 0_i64;
        for _ in 0..TIMES {
            match write(id).await {
                Ok(()) => committed += 1,
                Err(error) => assert_eq!(trouble(&error), Trouble::Contention, "{error}"),
            }
        }
        written.fetch_add(1, Ordering::Relaxed);
        committed
    };
    let overtaking = async {
        while written.load(Ordering::Relaxed) < WRITERS {
            let mut conn = one.app.db.acquire().await.unwrap();
            // It may be overtaken too.
            let _ = count(&mut conn, 0).await;
            // Not all the time, or nobody else would ever commit.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (committed, ()) = tokio::join!(join_all((1..=WRITERS).map(writer)), overtaking);
    assert!(committed.iter().sum::<i64>() > 0, "nobody committed: nothing was tried");
    let counted: Vec<i64> = sqlx::query_scalar("SELECT CAST(n AS SIGNED) FROM counts WHERE id > 0 ORDER BY id")
        .fetch_all(&two.app.db)
        .await
        .unwrap();
    assert_eq!(counted, committed.iter().map(|n| 3 * n).collect::<Vec<_>>());
}
