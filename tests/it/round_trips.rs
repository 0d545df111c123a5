//! How often a request waits for MySQL. On a network each round trip costs what the network takes, so one that is added
//! without need fails here. Pings of the pool are not counted: they come with each connection that is taken and given back.
//! And how many rows a request reads, or locks, that it is not about.

use onrush::engine::{Item, Worker};
use onrush::jobs;
use onrush::orders::{Grant, OrderId};
use onrush::platform::hmac::SharedSecret;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use crate::support::client::send;
use crate::support::harness::SANDBOX_SECRET;
use crate::support::{Harness, Options, Person, PrivateServers, Proxy, Verb};

/// Requests after which every connection of the pool has surely prepared what such a request needs.
const WARM_UP: usize = 40;

struct Counted {
    h: Harness,
    way: Proxy,
}

impl Counted {
    async fn new() -> Self {
        let settings = vec![("database.pool_size", "2".to_owned())];
        let base = Harness::with(Options { settings, ..Options::default() }).await;
        let (way, h) = base.through_mysql_proxy().await;
        // Its database goes with it.
        std::mem::forget(base);
        Self { h, way }
    }

    /// Somebody orders this many new courses: who, and the order's number.
    async fn order(&self, courses: usize) -> (Person, String) {
        let buyer = self.h.register().await;
        let mut ids = Vec::new();
        for _ in 0..courses {
            ids.push(self.h.course(1000).await.no());
        }
        self.way.forget_commands();
        let key = Uuid::now_v7().as_simple().to_string();
        let order = self.h.post_once("/orders", &buyer, &key, json!({ "course_ids": ids })).await.expect(201);
        let no = order.text_of("order_no");
        (buyer, no)
    }

    /// Makes a request until it has met a connection that has prepared all it needs, and counts its round trips then.
    async fn expect(&self, what: &str, round_trips: usize, request: impl AsyncFn()) {
        for _ in 0..WARM_UP {
            request().await;
            let commands = self.way.commands();
            if commands.iter().any(|command| matches!(command.verb, Verb::Prepare | Verb::Close)) {
                continue;
            }
            let answered = commands.into_iter().filter(|command| matches!(command.verb, Verb::Query | Verb::Execute));
            let statements: Vec<String> =
                answered.map(|command| command.text.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            assert_eq!(statements.len(), round_trips, "round trips of {what}: {statements:#?}");
            return;
        }
        panic!("something is prepared for every request of {what}: {:#?}", self.way.commands());
    }

    /// Starts a payment and has it settled by a notification.
    async fn pay(&self, (buyer, order): (Person, String)) {
        let pay = format!("/orders/{order}/pay");
        let answer = self.h.post(&pay, &buyer, json!({"gateway": "sandbox"})).await.expect(200);
        let trade = answer.text_of("pay_url").rsplit_once('/').unwrap().1.to_owned();
        self.settle(&json!({
            "notify_id": Uuid::now_v7().simple().to_string(), "code": "100000", "merchant_id": "onrush-sandbox",
            "merchant_no": answer.text_of("payment_no"), "trade_no": trade, "amount_fen": 1000, "currency": "CNY",
        }))
        .await;
    }

    async fn settle(&self, message: &Value) {
        let body = serde_json::to_vec(message).unwrap();
        let (timestamp, signature) = SharedSecret::new(SANDBOX_SECRET.as_bytes()).sign(&body, self.h.now());
        self.way.forget_commands();
        let request = self.h.request(Method::POST, "/payments/sandbox/notify", ()).body(body);
        send(request.header("x-sandbox-timestamp", timestamp).header("x-sandbox-signature", signature))
            .await
            .expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_takes_no_more_round_trips_than_it_must() {
    let c = Counted::new().await;
    // One asks whether the account stands and the login goes on, and one counts the orders that wait for their payment.
    c.expect("an order of two courses", 12, async || drop(c.order(2).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_takes_one_round_trip_for_each_kind_of_row_however_long_it_is() {
    let c = Counted::new().await;
    let (buyer, _) = c.order(3).await;
    let list = async |path: &str, who: Option<&Person>| {
        c.way.forget_commands();
        match who {
            Some(person) => c.h.get(path, person).await.expect(200),
            None => c.h.get(path, ()).await.expect(200),
        };
    };
    // The first asks whether the account stands and the login goes on.
    c.expect("a list of orders", 4, async || list("/orders", Some(&buyer)).await).await;
    c.expect("a list of courses", 1, async || list("/courses", None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_takes_no_more_round_trips_than_it_must() {
    let c = Counted::new().await;
    c.expect("a notification that settles", 12, async || c.pay(c.order(1).await).await).await;
}

/// Rows that the server of a test of its own has read.
async fn rows_read(h: &Harness) -> i64 {
    let rows = sqlx::raw_sql("SHOW GLOBAL STATUS LIKE 'Handler_read%'").fetch_all(&h.app.db).await.unwrap();
    rows.iter().map(|row| row.get_unchecked::<String, _>(1).parse::<i64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_dead_orders_nor_used_tokens_of_an_account_are_read_again_and_again() {
    const MANY: i64 = 3000;
    let servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let registration = json!({ "phone": "13812345678", "password": "a-long-password", "nickname": "学员" });
    let alice = h.post("/auth/register", (), registration).await.expect(201);
    let (token, refresh_token) = (alice.text_of("access_token"), alice.text_of("refresh_token"));
    let course = h.course(1000).await.no();
    // As after a day of orders that came to nothing, and a month in which a tab stayed open.
    for at in 0..MANY {
        sqlx::query(
            "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, \
             payable_fen, points_used, points_earned, currency, expires_at, created_at) \
             SELECT ?, id, 'course', 3, 1, 0, 0, 1, 0, 0, 'CNY', NOW(3) + INTERVAL 1 DAY, NOW(3) FROM users",
        )
        .bind(Uuid::now_v7())
        .execute(&h.app.db)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO refresh_tokens (id, user_id, family_id, token_hash, created_at, expires_at, used_at) \
             SELECT ?, user_id, family_id, LPAD(?, 32, 'x'), created_at, expires_at, created_at FROM refresh_tokens \
             WHERE used_at IS NULL",
        )
        .bind(Uuid::now_v7())
        .bind(at.to_string())
        .execute(&h.app.db)
        .await
        .unwrap();
    }
    sqlx::raw_sql("ANALYZE TABLE orders, refresh_tokens").execute(&h.app.db).await.unwrap();
    let before = rows_read(&h).await;
    for _ in 0..5 {
        h.post("/orders/quote", &token, json!({ "course_ids": [course] })).await.expect(200);
        h.get("/me/points", &token).await.expect(200);
    }
    h.post("/auth/logout", (), json!({ "refresh_token": refresh_token })).await.expect(204);
    h.get("/me/points", &token).await.problem(401, "login_over");
    let read = rows_read(&h).await - before;
    assert!(read < MANY, "{read} rows were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_locks_the_rows_of_its_own_orders_alone() {
    const OTHERS: usize = 2000;
    let servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let buyer = h.register().await;
    let orders: Vec<OrderId> = (0..OTHERS + 30).map(|_| OrderId::new()).collect();
    for part in orders.chunks(500) {
        let mut insert = QueryBuilder::new(
            "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, \
             payable_fen, points_used, points_earned, currency, expires_at, created_at, paid_at) ",
        );
        insert.push_values(part, |mut row, order| {
            row.push_bind(*order)
                .push_bind(buyer.id)
                .push("'course', 1, 1, 0, 0, 1, 0, 0, 'CNY', NOW(3), NOW(3), NOW(3)");
        });
        insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    }
    sqlx::raw_sql("ANALYZE TABLE orders").execute(&h.app.db).await.unwrap();
    // Every sixtieth or so of those that are owed the same.
    let own: Vec<OrderId> = orders.iter().step_by(OTHERS / 30).take(30).copied().collect();
    let (way, through) = h.through_mysql_proxy().await;
    let noting = way.hold("SET granted_at");
    let tasks: Vec<_> = own.iter().map(|id| Item::now(id.uuid(), Grant { order_id: *id })).collect();
    h.app.engine.enqueue(&tasks).await.unwrap();
    Worker::start(
        through.app.engine.clone(),
        jobs::registry(&through.app.config),
        through.app.clone(),
        &through.app.loops,
    );
    noting.sprung().await;
    let locked = h.count("SELECT CAST(SUM(trx_rows_locked) AS SIGNED) FROM information_schema.innodb_trx").await;
    assert!(locked <= 2 * 32, "{locked} rows are locked for 30 orders");
    noting.let_go();
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE granted_at IS NOT NULL").await == 30).await;
}
