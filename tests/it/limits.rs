//! What the service takes on, and what it says when that is too much: sizes, times, origins, and its own pages.

mod counted;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::FutureExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use onrush::error::Kind;
use onrush::platform::db::Tx;
use reqwest::Method;
use serde_json::json;

use crate::support::client::send;
use crate::support::{Harness, Options, Person};

async fn harness(settings: &[(&'static str, &str)]) -> Harness {
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Harness::with(Options { settings, ..Options::default() }).await
}

/// Holds up every request that makes an order for `person`, until the transaction ends.
async fn hold_up(h: &Harness, person: &Person) -> Tx {
    let mut tx = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM users WHERE id = ? FOR UPDATE").bind(person.id).execute(&mut *tx).await.unwrap();
    tx
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_whether_or_not_it_says_so() {
    let h = harness(&[("http.body_limit_bytes", "2048")]).await;
    let login = |password: String| json!({"phone": "13800000001", "password": password});
    h.post("/auth/login", (), login("x".repeat(1800))).await.problem(422, "validation_failed");
    h.post("/auth/login", (), login("x".repeat(2048))).await.problem(413, "payload_too_large");
    // Without a length: it is counted as it comes.
    let chunk = || Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b' '; 1024])));
    let chunks = StreamBody::new(futures_util::stream::iter([chunk(), chunk(), chunk(), chunk()]));
    let request = h.request(Method::POST, "/auth/login", ()).header("content-type", "application/json");
    send(request.body(reqwest::Body::wrap(chunks))).await.problem(413, "payload_too_large");
}

/// What a connection says to bytes sent as they are; all of it, when it closes.
async fn raw(h: &Harness, bytes: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(h.base.trim_start_matches("http://")).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut said)).await;
    let said = String::from_utf8(said).unwrap();
    closed.unwrap_or_else(|_| panic!("the connection stays open after {said:?}")).unwrap();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_given_up_and_its_connection_closed() {
    let h = Harness::new().await;
    let head = |length: &str| {
        format!(
            "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
        )
    };
    let slow = async |head: String| raw(&h, &format!("{head}\r\n{{")).await;
    let notify = head("100").replace("auth/login", "payments/sandbox/notify");
    let said = futures_util::future::join_all([slow(head("100")), slow(notify)]).await;
    for said in said {
        assert!(said.starts_with("HTTP/1.1 408") && said.contains("request_timeout"), "{said}");
    }
    // One that says nothing is not waited for.
    assert_eq!(raw(&h, "").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_before_it_is_a_request_has_no_body() {
    let h = Harness::new().await;
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let cases = [
        (400, "nonsense\r\n\r\n".to_owned()),
        (400, get("/api/v1/courses", "content-length: 1\r\ncontent-length: 2\r\n")),
        (400, "GET /api/v1/courses HTTP/1.1\nhost: x\n\n".to_owned()),
        (431, get(&format!("/{}", "x".repeat(70_000)), "")),
        (431, get("/api/v1/courses", &"x-more: 1\r\n".repeat(200))),
    ];
    for (status, request) in cases {
        let said = raw(&h, &request).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {said}");
        assert!(said.ends_with("\r\n\r\n") && said.contains("content-length: 0"), "{status}: {said}");
    }
    h.get("/courses", ()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_kept_when_it_is_sane_and_replaced_when_not() {
    let h = Harness::new().await;
    let ask = async |id: &str| {
        let answer = send(h.request(Method::GET, "/courses", ()).header("x-request-id", id)).await;
        answer.expect(200).header("x-request-id").unwrap().to_owned()
    };
    let longest = "a".repeat(64);
    for sane in ["mine-1", "A.b_c-9", &longest] {
        assert_eq!(ask(sane).await, sane);
    }
    let too_long = "a".repeat(65);
    for other in ["", "two words", "a;b", "{}", &too_long] {
        let given = ask(other).await;
        assert!(given != other && given.len() == 32 && given.bytes().all(|b| b.is_ascii_hexdigit()), "{given}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_bound_is_told_to_come_back_and_health_is_not_counted() {
    let h = harness(&[("http.max_in_flight", "1")]).await;
    let (buyer, course) = (h.register().await, h.course(100).await);
    let lock = hold_up(&h, &buyer).await;
    let making = h.post_once("/orders", &buyer, "one", json!({"course_ids": [course.no()]}));
    let others = async {
        h.eventually(async || h.held_up(1).await).await;
        let refused = h.get("/courses", ()).await.problem(503, "overloaded");
        assert_eq!(refused.header("retry-after"), Some("1"));
        h.get("/healthz", ()).await.expect(200);
        h.get("/readyz", ()).await.expect(200);
        h.get("/docs/errors", ()).await.expect(200);
        lock.rollback().await.unwrap();
    };
    let (made, ()) = tokio::join!(making, others);
    made.expect(201);
    h.get("/courses", ()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_answered_and_still_ends() {
    let h = harness(&[("http.timeout_s", "1")]).await;
    let (buyer, course) = (h.register().await, h.course(100).await);
    let lock = hold_up(&h, &buyer).await;
    let order = json!({"course_ids": [course.no()]});
    let answer = h.post_once("/orders", &buyer, "one", order.clone()).await.problem(503, "timeout");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 0);
    lock.rollback().await.unwrap();
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders").await == 1).await;
    h.post_once("/orders", &buyer, "one", order).await.expect(201);
    assert_eq!(h.count("SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_origins_in_the_settings_may_read_answers() {
    let h = harness(&[("http.cors_origins", "https://shop.example, https://admin.example")]).await;
    let from = async |h: &Harness, origin: &str| {
        let answer = send(h.request(Method::GET, "/courses", ()).header("origin", origin)).await.expect(200);
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    for known in ["https://shop.example", "https://admin.example"] {
        assert_eq!(from(&h, known).await.as_deref(), Some(known));
    }
    for unknown in ["https://evil.example", "http://shop.example", "https://shop.example.evil.example", "null"] {
        assert_eq!(from(&h, unknown).await, None, "{unknown}");
    }
    let preflight = h.request(Method::OPTIONS, "/orders", ()).header("origin", "https://shop.example");
    let preflight = preflight.header("access-control-request-method", "POST");
    let answer = send(preflight.header("access-control-request-headers", "idempotency-key")).await.expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
    assert!(answer.header("access-control-allow-headers").unwrap().contains("idempotency-key"));
    // Without the setting nobody may.
    let closed = Harness::new().await;
    assert_eq!(from(&closed, "https://shop.example").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_is_compressed_for_those_who_take_it() {
    let h = Harness::new().await;
    let plain = h.get("/openapi.json", ()).await.expect(200);
    assert_eq!(plain.header("content-encoding"), None);
    for encoding in ["gzip", "br"] {
        let request = h.request(Method::GET, "/openapi.json", ()).header("accept-encoding", encoding);
        let packed = send(request).await.expect(200);
        assert_eq!(packed.header("content-encoding"), Some(encoding));
        assert!(packed.bytes.len() * 4 < plain.bytes.len(), "{} of {}", packed.bytes.len(), plain.bytes.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_points_to_its_place_on_the_page_of_errors() {
    let h = Harness::new().await;
    let problem = h.get("/nothing/here", ()).await.problem(404, "not_found");
    let (path, name) = problem["type"].as_str().unwrap().split_once('#').unwrap();
    let page = h.get(path, ()).await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let text = page.text();
    assert!(text.contains(&format!("<tr id=\"{name}\">")));
    for kind in Kind::ALL {
        assert!(text.contains(&format!("<tr id=\"{}\"><td>{}<td>", kind.name(), kind.status().as_u16())));
        assert!(text.contains(kind.title()) && !kind.meaning().is_empty());
    }
    // Nothing of it comes from elsewhere.
    for elsewhere in ["http:", "https:", "src=", "@import", "{{"] {
        assert!(!text.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_needs_no_network() {
    let h = Harness::new().await;
    let page = h.get("/docs/", ()).await.expect(200).text();
    let parts: Vec<&str> = page
        .split(['"', '\''])
        .filter(|part| part.ends_with(".js") || part.ends_with(".css") || part.ends_with(".png"))
        .collect();
    assert!(parts.len() >= 4, "{page}");
    for part in parts {
        let part = part.strip_prefix("./").unwrap_or(part);
        assert!(!part.contains("//"), "{part} comes from elsewhere");
        let answer = h.get(&format!("/docs/{part}"), ()).await.expect(200);
        assert!(!answer.bytes.is_empty(), "{part}");
    }
    let start = h.get("/docs/swagger-initializer.js", ()).await.expect(200).text();
    assert!(start.contains("/openapi.json"), "{start}");
    // Otherwise a browser would show the document to a validator of somebody else's.
    assert!(start.contains("\"validatorUrl\": \"none\""), "{start}");
    assert!(h.get("/openapi.json", ()).await.expect(200)["paths"]["/docs/errors"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_tell_of_requests_queues_tasks_pools_and_orders() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let mut process = h.process("api,worker,scheduler", &[]).await;
    let (buyer, course) = (h.register().await, h.course(0).await);
    let order = json!({"course_ids": [course.no()]});
    process.client.post_once("/orders", &buyer, "one", order).await.expect(201);
    let wanted = [
        r#"onrush_http_requests_total{method="POST",route="/api/v1/orders",status="201"} 1"#,
        "onrush_http_request_duration_seconds_bucket{",
        "onrush_http_requests_in_flight 0",
        "onrush_queue_depth{",
        "onrush_queue_oldest_seconds{",
        "onrush_queue_delayed{",
        "onrush_queue_dead{",
        "onrush_queue_running{",
        "onrush_queue_paused{",
        "onrush_queue_in_per_second{",
        "onrush_queue_out_per_second{",
        "onrush_tasks_total{",
        "onrush_tasks_enqueued_total{",
        "onrush_tasks_running{",
        "onrush_task_batch_duration_seconds_bucket{",
        "onrush_mysql_pool_connections ",
        "onrush_mysql_pool_in_use ",
        "onrush_redis_pool_connections ",
        "onrush_redis_pool_in_use ",
        "onrush_orders_total{",
    ];
    let lacking = async || {
        let text = process.client.get("/metrics", ()).await.expect(200).text();
        wanted.iter().filter(|family| !text.contains(**family)).copied().collect::<Vec<_>>()
    };
    let all_there = AssertUnwindSafe(h.eventually(async || lacking().await.is_empty())).catch_unwind().await;
    assert!(all_there.is_ok(), "no {:?}", lacking().await);
    process.terminate().await;
}
