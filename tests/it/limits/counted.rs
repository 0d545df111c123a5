//! How many requests of each kind an account and an address may make in a minute.

use super::*;
use crate::support::{Answer, PrivateServers};

const PROXY: (&str, &str) = ("http.trusted_proxies", "127.0.0.0/8");

async fn quote(h: &Harness, person: &Person, address: &str) -> Answer {
    let body = json!({"course_ids": ["0".repeat(32)]});
    send(h.request(Method::POST, "/orders/quote", person).header("x-forwarded-for", address).json(&body)).await
}

async fn poll(h: &Harness, person: &Person, address: &str) -> Answer {
    let path = format!("/tasks/{}.expiry", "0".repeat(32));
    send(h.request(Method::GET, &path, person).header("x-forwarded-for", address)).await
}

fn left(answer: &Answer) -> (Option<&str>, Option<&str>) {
    (answer.header("ratelimit"), answer.header("ratelimit-policy"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_of_an_account_is_refused_and_told_when_to_come_back() {
    let h = harness(&[PROXY, ("limits.order_per_account", "2"), ("limits.order_per_address", "100")]).await;
    let (alice, bob, course) = (h.register().await, h.register().await, h.course(100).await);
    let body = json!({"course_ids": [course.no()]});
    let policy = r#""order";q=2;w=60, "order-address";q=100;w=60"#;
    let made = h.post_once("/orders", &alice, "one", body.clone()).await.expect(201);
    assert_eq!(left(&made), (Some(r#""order";r=1;t=30, "order-address";r=99;t=1"#), Some(policy)));
    // A refusal is told too, and another process counts the same.
    let other = h.another().await;
    let refused = other.post_once("/orders", &alice, "two", json!({"course_ids": []})).await.expect(422);
    assert_eq!(left(&refused), (Some(r#""order";r=0;t=60, "order-address";r=98;t=2"#), Some(policy)));
    let refused = h.post_once("/orders", &alice, "three", body.clone()).await.problem(429, "too_many_attempts");
    assert_eq!(refused.header("retry-after"), Some("30"));
    // One that was refused is not counted for the address either.
    assert_eq!(left(&refused), (Some(r#""order";r=0;t=60, "order-address";r=98;t=2"#), Some(policy)));
    h.post_once("/orders", &bob, "one", body.clone()).await.expect(201);
    h.advance(Duration::from_secs(30));
    h.post_once("/orders", &alice, "one", body.clone()).await.expect(201);
    h.post_once("/orders", &alice, "one", body).await.problem(429, "too_many_attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_a_limit_over_all_its_accounts() {
    let h = harness(&[PROXY, ("limits.quote_per_address", "3")]).await;
    let people = h.people(4).await;
    for (n, person) in people.iter().enumerate() {
        let status = quote(&h, person, "192.0.2.1").await.status;
        assert_eq!(status == 429, n == 3, "{n}: {status}");
    }
    assert_ne!(quote(&h, &people[3], "192.0.2.2").await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_are_counted_in_memory_and_by_account_and_address() {
    let h = harness(&[PROXY, ("limits.poll_per_account", "3"), ("limits.poll_per_address", "5")]).await;
    let (alice, bob) = (h.register().await, h.register().await);
    for n in 0..5 {
        let answer = poll(&h, &alice, "192.0.2.1").await;
        assert_eq!(answer.status, if n < 3 { 404 } else { 429 });
        assert!(answer.header("ratelimit").unwrap().starts_with("\"poll\";r="), "{:?}", answer.headers);
    }
    // What an account's limit refused its address has not used.
    for n in 0..3 {
        assert_eq!(poll(&h, &bob, "192.0.2.1").await.status, if n < 2 { 404 } else { 429 });
    }
    assert_eq!(poll(&h, &bob, "192.0.2.2").await.status, 404);
    // Another process counts for itself.
    let other = h.another().await;
    assert_eq!(poll(&other, &alice, "192.0.2.1").await.status, 404);
    h.advance(Duration::from_secs(20));
    assert_eq!(poll(&h, &alice, "192.0.2.2").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_token_counts_for_its_address_and_for_nobodys_account() {
    let h = harness(&[PROXY, ("limits.poll_per_account", "1"), ("limits.poll_per_address", "2")]).await;
    let alice = h.register().await;
    let forged = Person { token: format!("{}x", alice.token), ..alice.clone() };
    for _ in 0..2 {
        poll(&h, &forged, "192.0.2.1").await.problem(401, "token_invalid");
    }
    poll(&h, &forged, "192.0.2.1").await.problem(429, "too_many_attempts");
    assert_eq!(poll(&h, &alice, "192.0.2.2").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_nothing_is_counted() {
    let h = Harness::new().await;
    let alice = h.register().await;
    for _ in 0..5 {
        assert_eq!(left(&poll(&h, &alice, "192.0.2.1").await), (None, None));
        assert_eq!(left(&quote(&h, &alice, "192.0.2.1").await), (None, None));
    }
    let pattern = format!("{}:*limits*", h.app.redis.prefix());
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut h.app.redis.commands()).await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_orders_are_made_and_nobody_registers() {
    let mut servers = PrivateServers::start().await;
    let settings = [("limits.order_per_account", "1"), ("limits.register_per_address", "100")];
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let h = Harness::with(Options { servers: Some(servers.addresses()), settings, ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(100).await);
    let body = json!({"course_ids": [course.no()]});
    h.post_once("/orders", &alice, "0", body.clone()).await.expect(201);
    h.post_once("/orders", &alice, "1", body.clone()).await.problem(429, "too_many_attempts");
    servers.change(|s| s.redis.kill()).await;
    for key in ["2", "3"] {
        h.post_once("/orders", &alice, key, body.clone()).await.expect(201);
    }
    let new = json!({"phone": "13800000001", "password": "a long password"});
    h.post("/auth/register", (), new.clone()).await.problem(503, "unavailable");
    servers.change(|s| s.redis.start()).await;
    h.eventually(async || h.post("/auth/register", (), new.clone()).await.status != 503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_says_where_requests_are_counted() {
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut counted = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let answers = operation["responses"].as_object().unwrap();
            if answers.get("429").is_some_and(|refused| refused["headers"]["RateLimit"].is_object()) {
                assert!(answers["429"]["headers"]["Retry-After"].is_object(), "{path}");
                let good = answers.iter().find(|(status, _)| status.starts_with('2')).unwrap();
                assert!(good.1["headers"]["RateLimit-Policy"].is_object(), "{path}");
                counted.push(format!("{method} {}", path.trim_start_matches("/api/v1")));
            }
        }
    }
    counted.sort();
    let expected = [
        "get /tasks/{id}",
        "post /auth/refresh",
        "post /auth/register",
        "post /coupons/{id}/claim",
        "post /orders",
        "post /orders/quote",
        "post /orders/{no}/cancel",
        "post /orders/{no}/pay",
        "post /seckill/activities/{id}/submissions",
    ];
    assert_eq!(counted, expected);
}
