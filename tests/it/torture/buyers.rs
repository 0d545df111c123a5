//! Buyers: each asks until there is an answer, as an app does, and remembers what it was told.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onrush::platform::clock::Clock;
use onrush::platform::hmac::SharedSecret;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Addresses, Random, uuid_of};
use crate::support::harness::SANDBOX_SECRET;
use crate::support::{Client, Harness, Person};

/// A client gives up an answer after this, and asks again.
const TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(150);

/// What buyers were told.
#[derive(Default)]
pub struct Told {
    made: Mutex<HashSet<String>>,
    paid: Mutex<HashSet<String>>,
    cancelled: Mutex<HashSet<String>>,
    /// (order, who won it).
    won: Mutex<HashMap<String, Uuid>>,
    sold_out: Mutex<usize>,
}

impl Told {
    pub fn summary(&self) -> String {
        let count = |told: &Mutex<HashSet<String>>| told.lock().unwrap().len();
        format!(
            "told: {} orders made, {} paid, {} cancelled, {} won, {} times sold out",
            count(&self.made),
            count(&self.paid),
            count(&self.cancelled),
            self.won.lock().unwrap().len(),
            self.sold_out.lock().unwrap()
        )
    }

    /// Each of it is so.
    pub async fn hold_against(&self, h: &Harness) {
        let orders: Vec<(Uuid, Uuid, i8)> =
            sqlx::query_as("SELECT id, user_id, status FROM orders").fetch_all(&h.app.db).await.unwrap();
        let orders: HashMap<Uuid, (Uuid, i8)> =
            orders.into_iter().map(|(id, user, status)| (id, (user, status))).collect();
        for no in self.made.lock().unwrap().iter() {
            assert!(orders.contains_key(&uuid_of(no)), "order {no} was made, and is not there");
        }
        for (no, user) in self.won.lock().unwrap().iter() {
            assert_eq!(orders.get(&uuid_of(no)).map(|(of, _)| of), Some(user), "order {no} was won");
        }
        // Paid, or paid and given back.
        let is_paid = |no: &str| matches!(orders.get(&uuid_of(no)), Some((_, 1 | 4 | 5)));
        for no in self.paid.lock().unwrap().iter() {
            assert!(is_paid(no), "order {no} was told to be paid, and is {:?}", orders.get(&uuid_of(no)));
        }
        for no in self.cancelled.lock().unwrap().iter() {
            assert_eq!(orders.get(&uuid_of(no)).map(|(_, status)| *status), Some(2), "order {no} was cancelled");
        }
        assert!(!self.made.lock().unwrap().is_empty() && !self.paid.lock().unwrap().is_empty());
        assert!(!self.won.lock().unwrap().is_empty());
    }
}

/// One of the processes.
fn some(addresses: &Addresses, random: &mut Random) -> Option<Client> {
    let all = addresses.lock().unwrap();
    (!all.is_empty()).then(|| all[random.below(all.len())].clone())
}

/// Asks until somebody answers who is able to: 5xx, 429 and no answer at all say nothing.
async fn ask(
    addresses: &Addresses,
    random: &mut Random,
    request: impl Fn(&Client) -> reqwest::RequestBuilder,
) -> (u16, Value) {
    loop {
        if let Some(client) = some(addresses, random)
            && let Ok(answer) = request(&client).timeout(TIMEOUT).send().await
        {
            let status = answer.status().as_u16();
            if status < 500
                && status != 429
                && let Ok(body) = answer.bytes().await
            {
                return (status, serde_json::from_slice(&body).unwrap_or(Value::Null));
            }
        }
        sleep(PAUSE).await;
    }
}

fn text(body: &Value, member: &str) -> String {
    body[member].as_str().unwrap_or_else(|| panic!("no {member} in {body}")).to_owned()
}

/// Orders, and pays, cancels or forgets.
pub async fn buy(
    addresses: Addresses,
    people: Vec<Person>,
    courses: Arc<Vec<String>>,
    mut random: Random,
    told: Arc<Told>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let (person, course) = (&people[random.below(people.len())], &courses[random.below(courses.len())]);
        let key = Uuid::now_v7().as_simple().to_string();
        let order = |client: &Client| {
            let request = client.request(Method::POST, "/orders", person).header("idempotency-key", &key);
            request.json(&json!({ "course_ids": [course] }))
        };
        let (status, body) = ask(&addresses, &mut random, order).await;
        if status != 201 {
            // Has it, or has too many unpaid.
            assert_eq!(status, 409, "{body}");
            continue;
        }
        let no = text(&body, "order_no");
        told.made.lock().unwrap().insert(no.clone());
        match random.below(4) {
            0 => {}
            1 => {
                let path = format!("/orders/{no}/cancel");
                let (status, _) = ask(&addresses, &mut random, |c| c.request(Method::POST, &path, person)).await;
                if status == 200 {
                    told.cancelled.lock().unwrap().insert(no);
                }
            }
            _ => pay(&addresses, &mut random, person, &no, &told).await,
        }
    }
}

/// Pays, and looks whether the order is paid.
async fn pay(addresses: &Addresses, random: &mut Random, person: &Person, no: &str, told: &Told) {
    let path = format!("/orders/{no}/pay");
    let start = |client: &Client| client.request(Method::POST, &path, person).json(&json!({ "gateway": "sandbox" }));
    let (status, body) = ask(addresses, random, start).await;
    if status != 200 {
        return;
    }
    let trade = text(&body, "pay_url").rsplit_once('/').unwrap().1.to_owned();
    let message = serde_json::to_vec(&json!({
        "notify_id": Uuid::now_v7().simple().to_string(), "code": "100000", "merchant_id": "onrush-sandbox",
        "merchant_no": text(&body, "payment_no"), "trade_no": trade, "amount_fen": 1000, "currency": "CNY",
    }))
    .unwrap();
    let notify = |client: &Client| {
        let (timestamp, signature) = SharedSecret::new(SANDBOX_SECRET.as_bytes()).sign(&message, Clock::System.now());
        let request = client.request(Method::POST, "/payments/sandbox/notify", ()).body(message.clone());
        request.header("x-sandbox-timestamp", timestamp).header("x-sandbox-signature", signature)
    };
    let (status, _) = ask(addresses, random, notify).await;
    assert_eq!(status, 200, "a gateway is believed");
    let path = format!("/orders/{no}");
    let (_, order) = ask(addresses, random, |client| client.request(Method::GET, &path, person)).await;
    if order["status"] == "paid" {
        told.paid.lock().unwrap().insert(no.to_owned());
    }
}

/// Takes part in the sale until it knows what came of it.
pub async fn take_part(
    addresses: Addresses,
    people: Vec<Person>,
    submissions: String,
    mut random: Random,
    told: Arc<Told>,
    stop: CancellationToken,
) {
    for person in &people {
        if stop.is_cancelled() {
            return;
        }
        if let Some(order) = win(&addresses, &mut random, person, &submissions, &told).await {
            told.won.lock().unwrap().insert(order, person.id);
        }
        sleep(random.pause(20, 400)).await;
    }
}

/// The order, when it won one.
async fn win(
    addresses: &Addresses,
    random: &mut Random,
    person: &Person,
    submissions: &str,
    told: &Told,
) -> Option<String> {
    loop {
        let submit = |client: &Client| client.request(Method::POST, submissions, person);
        let (status, body) = ask(addresses, random, submit).await;
        if status != 202 {
            assert_eq!(status, 409, "{body}");
            *told.sold_out.lock().unwrap() += usize::from(body["error"] == "sold_out");
            return None;
        }
        let path = format!("/tasks/{}?wait=3", text(&body, "id"));
        loop {
            let (status, poll) = ask(addresses, random, |client| client.request(Method::GET, &path, person)).await;
            match poll["code"].as_i64() {
                Some(100) => return Some(text(&poll["result"], "order_no")),
                Some(101) => return None,
                Some(102) => {}
                // A Redis that was emptied has forgotten it, and the buyer submits again.
                _ => {
                    assert_eq!(status, 404, "{poll}");
                    break;
                }
            }
        }
    }
}
