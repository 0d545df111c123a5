//! How often a request waits for MySQL. On a network each round trip costs what the network takes, so one that is added
//! without need fails here. Pings of the pool are not counted: they come with each connection that is taken and given back.

use onrush::platform::signed::SharedSecret;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::send;
use crate::support::harness::SANDBOX_SECRET;
use crate::support::{Harness, Options, Person, Proxy, Verb};

/// Requests after which every connection of the pool has prepared what such a request needs.
const WARM_UP: usize = 12;

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

    /// Statements since they were forgotten last, each a round trip.
    fn statements(&self) -> Vec<String> {
        let commands = self.way.commands();
        let prepared = commands.iter().filter(|command| matches!(command.verb, Verb::Prepare | Verb::Close));
        assert_eq!(prepared.count(), 0, "every statement stays prepared: {commands:#?}");
        let answered = commands.into_iter().filter(|command| matches!(command.verb, Verb::Query | Verb::Execute));
        answered.map(|command| command.text.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    fn expect(&self, what: &str, round_trips: usize) {
        let statements = self.statements();
        assert_eq!(statements.len(), round_trips, "round trips of {what}: {statements:#?}");
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
    for _ in 0..WARM_UP {
        c.order(2).await;
    }
    c.order(2).await;
    // One asks whether the account stands and the login goes on, and one counts the orders that wait for their payment.
    c.expect("an order of two courses", 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_takes_one_round_trip_for_each_kind_of_row_however_long_it_is() {
    let c = Counted::new().await;
    let (buyer, _) = c.order(3).await;
    for _ in 0..WARM_UP {
        c.h.get("/orders", &buyer).await.expect(200);
        c.h.get("/courses", &buyer).await.expect(200);
    }
    c.way.forget_commands();
    c.h.get("/orders", &buyer).await.expect(200);
    // The first asks whether the account stands and the login goes on.
    c.expect("a list of orders", 4);
    c.way.forget_commands();
    c.h.get("/courses", &buyer).await.expect(200);
    c.expect("a list of courses", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_takes_no_more_round_trips_than_it_must() {
    let c = Counted::new().await;
    for _ in 0..WARM_UP {
        c.pay(c.order(1).await).await;
    }
    c.pay(c.order(1).await).await;
    c.expect("a notification that settles", 12);
}
