//! What is refused before an order is made or paid: another price, too large an amount, too many that wait, and a buyer whose
//! account is gone.

use futures_util::future::join_all;
use onrush::config;
use onrush::payments::Gateway;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::send;
use crate::support::{Answer, Course, Harness, Options, Person};

fn key() -> String {
    Uuid::now_v7().to_string()
}

async fn order(h: &Harness, who: &Person, courses: &[&Course], more: Value) -> Answer {
    let mut body = json!({ "course_ids": courses.iter().map(|course| course.no()).collect::<Vec<_>>() });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    h.post_once("/orders", who, &key(), body).await
}

async fn pay(h: &Harness, who: &Person, no: &str) -> Answer {
    h.post(&format!("/orders/{no}/pay"), who, json!({"gateway": "sandbox"})).await
}

async fn with(settings: &[(&'static str, &str)]) -> Harness {
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Harness::with(Options { settings, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_that_is_not_the_one_that_was_shown_is_refused_with_both() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(9900).await);
    let body = |expected: i64| json!({ "course_ids": [course.no()], "expected_payable_fen": expected });
    let refused = h.post_once("/orders", &alice, "k", body(9800)).await.problem(409, "price_changed");
    assert_eq!((&refused["expected_payable_fen"], &refused["payable_fen"]), (&9800.into(), &9900.into()));
    h.post("/orders/quote", &alice, body(9800)).await.problem(409, "price_changed");
    // The refusal was not kept: the key serves the next try.
    let made = h.post_once("/orders", &alice, "k", body(9900)).await.expect(201);
    assert_eq!(made["payable_fen"], 9900);
    sqlx::query("UPDATE courses SET price_fen = 100").execute(&h.app.db).await.unwrap();
    // A repeat is answered as the first was, whatever it costs by now.
    assert_eq!(h.post_once("/orders", &alice, "k", body(9900)).await.expect(201).bytes, made.bytes);
    let wrong = h.post_once("/orders", &alice, "other", body(-1)).await.problem(422, "validation_failed");
    assert_eq!(wrong["errors"][0]["field"], "expected_payable_fen");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_orders_of_a_course_and_of_a_buyer_wait_for_their_payment_and_no_more() {
    let h = with(&[("orders.max_unpaid", "12")]).await;
    let (alice, bob) = (h.register().await, h.register().await);
    let (course, other, free) = (h.course(100).await, h.course(100).await, h.course(0).await);
    let mut made = Vec::new();
    for _ in 0..10 {
        made.push(order(&h, &alice, &[&course], json!({})).await.expect(201).text_of("order_no"));
    }
    let refused = order(&h, &alice, &[&other, &course], json!({})).await.problem(409, "too_many_unpaid");
    assert_eq!((&refused["max"], &refused["course_ids"]), (&10.into(), &json!([course.no()])));
    let quote = json!({ "course_ids": [course.no()] });
    h.post("/orders/quote", &alice, quote.clone()).await.problem(409, "too_many_unpaid");
    order(&h, &bob, &[&course], json!({})).await.expect(201);
    for _ in 0..2 {
        order(&h, &alice, &[&other], json!({})).await.expect(201);
    }
    let refused = order(&h, &alice, &[&other], json!({})).await.problem(409, "too_many_unpaid");
    assert_eq!((&refused["max"], &refused["course_ids"]), (&12.into(), &Value::Null));
    order(&h, &alice, &[&free], json!({})).await.expect(201);
    // One that is closed waits no more, nor does one whose time is over before the sweep has come.
    send(h.request(Method::POST, &format!("/orders/{}/cancel", made[0]), &alice)).await.expect(200);
    order(&h, &alice, &[&course], json!({})).await.expect(201);
    order(&h, &alice, &[&course], json!({})).await.problem(409, "too_many_unpaid");
    sqlx::query("UPDATE orders SET expires_at = created_at").execute(&h.app.db).await.unwrap();
    order(&h, &alice, &[&course], json!({})).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_made_at_once_stay_within_what_may_wait() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(100).await);
    let answers = join_all((0..40).map(async |_| order(&h, &alice, &[&course], json!({})).await)).await;
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!((made, h.count("SELECT COUNT(*) FROM orders").await), (10, 10));
    for answer in answers.into_iter().filter(|answer| answer.status != 201) {
        answer.problem(409, "too_many_unpaid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_that_no_gateway_takes_is_refused_before_there_is_an_order() {
    const MOST: i64 = 100_000_000;
    let h = Harness::new().await;
    let alice = h.register().await;
    let (dear, most, fen) = (h.course(MOST).await, h.course(MOST).await, h.course(1).await);
    let refused = order(&h, &alice, &[&dear, &fen], json!({})).await.problem(409, "amount_too_large");
    let sandbox = json!([{ "gateway": "sandbox", "max_fen": MOST }]);
    assert_eq!((&refused["max_fen"], &refused["gateways"]), (&MOST.into(), &sandbox));
    h.post("/orders/quote", &alice, json!({ "course_ids": [dear.no(), most.no()] }))
        .await
        .problem(409, "amount_too_large");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 0);
    // All that the gateway takes is taken.
    let no = order(&h, &alice, &[&most], json!({})).await.expect(201).text_of("order_no");
    pay(&h, &alice, &no).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_that_the_chosen_gateway_does_not_take_is_refused_by_name_when_it_is_to_be_paid_there() {
    let h = Harness::new().await;
    let (alice, a, b) = (h.register().await, h.course(100_000_000).await, h.course(1).await);
    // A service without any gateway sells what it likes, and one with another gateway what that one takes.
    let elsewhere = h.another_with(&[("payments.sandbox", "false")]).await;
    let no = order(&elsewhere, &alice, &[&a, &b], json!({})).await.expect(201).text_of("order_no");
    let refused = pay(&h, &alice, &no).await.problem(409, "amount_too_large");
    assert_eq!(refused["max_fen"], 100_000_000);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments").await, 0);
}

#[test]
fn every_gateway_has_a_largest_amount() {
    for gateway in Gateway::ALL {
        assert!(config::amount_max(gateway.as_str()).is_some(), "{}", gateway.as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_are_a_whole_number_without_a_point_an_exponent_or_a_minus() {
    let h = Harness::new().await;
    let (alice, course) = (h.register().await, h.course(1000).await);
    let quote = async |points: &str| {
        let body = format!(r#"{{"course_ids": ["{}"], "points": {points}}}"#, course.no());
        let request = h.request(Method::POST, "/orders/quote", &alice).header("content-type", "application/json");
        send(request.body(body)).await
    };
    quote("0").await.expect(200);
    for points in ["0.0", "0e0", "-0", "0E+1", "-0.0", "1e0"] {
        let refused = quote(points).await.problem(422, "validation_failed");
        assert_eq!(refused["errors"][0]["message"], "must be a whole number", "{points}");
    }
}

/// Routes of people that touch no MySQL on their way: a token is believed there until it expires.
const HOT: [&str; 3] = ["/seckill/activities/{id}/submissions", "/tasks/{id}", "/tasks/{id}/events"];

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whose_account_is_gone_is_refused_on_every_route_that_acts_for_them() {
    let h = Harness::new().await;
    let (alice, admin, course) = (h.register().await, h.admin().await, h.course(1000).await);
    let no = order(&h, &alice, &[&course], json!({})).await.expect(201).text_of("order_no");
    sqlx::query("DELETE FROM users").execute(&h.app.db).await.unwrap();

    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(path) = path.strip_prefix(onrush::http::API) else { continue };
        if HOT.contains(&path) {
            continue;
        }
        for (method, operation) in item.as_object().unwrap() {
            if operation["security"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            let who = if path.starts_with("/admin") { &admin } else { &alice };
            let named = path.split('/').map(|part| if part.starts_with('{') { no.as_str() } else { part });
            let named: Vec<&str> = named.collect();
            let body = if path.ends_with("/pay") {
                json!({ "gateway": "sandbox" })
            } else {
                json!({ "course_ids": [course.no()] })
            };
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = h.request(method.clone(), &named.join("/"), who).header("idempotency-key", key());
            let answer = send(request.json(&body)).await;
            assert_eq!((answer.status, answer["error"].as_str()), (401, Some("token_invalid")), "{method} {path}");
            tried += 1;
        }
    }
    assert!(tried > 40, "{tried}");
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM payments").await, 0);
}
