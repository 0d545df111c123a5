//! The operators' pages: metrics, the whole readiness, the documentation. Who may see them, and what they cost.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::send;
use crate::support::{Client, Harness, Options};

const PAGES: [&str; 4] = ["/metrics", "/openapi.json", "/docs/", "/docs/swagger-ui.css"];
const TOKEN: &str = "a-token-of-operators";

async fn harness(settings: &[(&'static str, &str)]) -> Harness {
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Harness::with(Options { settings, ..Options::default() }).await
}

/// What everybody sees everywhere.
async fn is_public(client: &Client) {
    client.get("/healthz", ()).await.expect(200);
    client.get("/docs/errors", ()).await.expect(200);
    let ready = client.get("/readyz", ()).await.expect(200);
    assert_eq!(ready.body, json!({"ready": true}));
}

async fn is_whole(client: &Client, token: &str) {
    for page in PAGES {
        client.get(page, token).await.expect(200);
    }
    let ready = client.get("/readyz", token).await.expect(200);
    assert_eq!((&ready["mysql"], &ready["redis"]), (&json!("ok"), &json!("ok")));
    assert!(ready["loops"].as_array().is_some_and(|loops| !loops.is_empty()), "{}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_setting_operators_pages_are_nobodys() {
    let h = harness(&[("http.operations_public", "false")]).await;
    is_public(&h.client).await;
    for page in PAGES {
        h.get(page, ()).await.problem(404, "not_found");
        h.get(page, TOKEN).await.problem(404, "not_found");
    }
    let ready = h.get("/readyz", TOKEN).await.expect(200);
    assert_eq!(ready.body, json!({"ready": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_token_operators_see_their_pages() {
    let h = harness(&[("http.operations_public", "false"), ("http.operations_token", TOKEN)]).await;
    is_public(&h.client).await;
    is_whole(&h.client, TOKEN).await;
    for page in PAGES {
        let refused = h.get(page, ()).await.problem(401, "unauthenticated");
        // A browser asks for the token as a password.
        let challenges: Vec<_> =
            refused.headers.get_all("www-authenticate").iter().map(|v| v.to_str().unwrap()).collect();
        assert!(challenges.len() == 2 && challenges[1].starts_with("Basic realm="), "{challenges:?}");
        h.get(page, "a-token-of-operator").await.problem(401, "token_invalid");
        send(h.request(Method::GET, page, ()).basic_auth("me", Some(TOKEN))).await.expect(200);
        send(h.request(Method::GET, page, ()).basic_auth(TOKEN, Some("me"))).await.problem(401, "token_invalid");
    }
    // It is no token of the API's, and the API asks for no password.
    let refused = h.get("/me", TOKEN).await.problem(401, "token_invalid");
    assert_eq!(refused.headers.get_all("www-authenticate").iter().count(), 1);
    let ready = h.get("/readyz", "another").await.expect(200);
    assert_eq!(ready.body, json!({"ready": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_at_the_operators_pages_is_seen() {
    let h = harness(&[]).await;
    let settings = [
        ("ONRUSH_HTTP__OPERATIONS_PUBLIC", "false"),
        ("ONRUSH_HTTP__OPERATIONS_TOKEN", TOKEN),
        ("ONRUSH_LOG__FORMAT", "json"),
    ];
    let process = h.process("api", &settings).await;
    let wrong = async |page: &str, id: &str| {
        send(process.client.request(Method::GET, page, "another-token-of-nobody").header("x-request-id", id)).await
    };
    wrong("/metrics", "at-metrics").await.problem(401, "token_invalid");
    assert_eq!(wrong("/readyz", "at-readyz").await.expect(200).body, json!({"ready": true}));
    // None at all is no attempt.
    process.client.get("/metrics", ()).await.problem(401, "unauthenticated");
    let counted = async || {
        let page = process.client.get("/metrics", TOKEN).await.expect(200).text();
        page.contains("onrush_security_events_total{event=\"operations_token\"} 2")
    };
    h.eventually(counted).await;
    let log = process.log();
    for id in ["at-metrics", "at-readyz"] {
        let line = log.lines().find(|line| line.contains("operations_token") && line.contains(id));
        let line = line.unwrap_or_else(|| panic!("no line of {id} in {log}"));
        assert!(line.contains("\"client.address\":\"127.0.0.1\"") && !line.contains("user.id"), "{line}");
    }
    assert!(!log.contains("another-token-of-nobody"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_have_a_listener_of_their_own_that_serves_nothing_else() {
    let mut h = harness(&[("http.operations_public", "false"), ("http.operations_listen", "127.0.0.1:0")]).await;
    let operations = h.operations();
    is_public(&h.client).await;
    h.get("/metrics", ()).await.problem(404, "not_found");
    is_whole(&operations, "").await;
    for (method, path) in [(Method::GET, "/courses"), (Method::POST, "/auth/login"), (Method::POST, "/sandbox/api")] {
        send(operations.request(method, path, ())).await.problem(404, "not_found");
    }
    // It stops with the other.
    assert!(h.stop().await);
    assert!(operations.http.get(format!("{}/healthz", operations.base)).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_keeps_its_pages_by_the_same_rule() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let env = [("ONRUSH_HTTP__OPERATIONS_PUBLIC", "false"), ("ONRUSH_HTTP__OPERATIONS_TOKEN", TOKEN)];
    let mut worker = h.process("worker", &env).await;
    is_public(&worker.client).await;
    worker.client.get("/metrics", ()).await.problem(401, "unauthenticated");
    is_whole(&worker.client, TOKEN).await;
    worker.terminate().await;
}

/// The series of a metric: their labels.
fn series<'a>(page: &'a str, metric: &str) -> Vec<&'a str> {
    let labels = page.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} "));
    labels.map(|(labels, _)| labels).collect()
}

fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    labels
        .split(',')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_walks_over_all_routes_makes_few_series() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let process = h.process("api", &[]).await;
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let methods: Vec<Method> = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "x"]
        .iter()
        .map(|name| Method::from_bytes(name.as_bytes()).unwrap())
        .collect();
    let stranger = |method: &Method, path: &str| {
        process.client.http.request(method.clone(), format!("{}{path}", process.client.base)).send()
    };
    for path in paths.keys() {
        let path = path.replace(['{', '}'], "");
        futures_util::future::join_all(methods.iter().map(|method| stranger(method, &path))).await;
    }
    for path in 0..50 {
        stranger(&Method::GET, &format!("/nothing/{path}")).await.unwrap();
    }
    let seen = async || {
        let page = process.client.get("/metrics", ()).await.expect(200).text();
        let of_unmatched = |labels: &&str| label(labels, "route") == "unmatched";
        (series(&page, "onrush_http_requests_total").into_iter().any(|labels| of_unmatched(&labels))).then_some(page)
    };
    h.eventually(async || seen().await.is_some()).await;
    let page = seen().await.unwrap();
    let counters = series(&page, "onrush_http_requests_total");
    let has =
        |route: &str, method: &str| paths.get(route).is_none_or(|item: &Value| item[method.to_lowercase()].is_object());
    for labels in &counters {
        let (route, method, status) = (label(labels, "route"), label(labels, "method"), label(labels, "status"));
        // HEAD is GET's; a route that is none has what was tried.
        let known = method == "other" || has(route, method) || (method == "HEAD" && has(route, "GET"));
        assert!(known, "{labels}");
        assert!(status != "405" || method == "other", "{labels}");
    }
    let operations: usize = paths.values().map(|item| item.as_object().unwrap().len()).sum();
    // Each operation one answer, GET twice; each route one for all other methods; and those of no route.
    assert!(counters.len() <= 2 * operations + paths.len() + 20, "{} for {operations} operations", counters.len());
    let took = series(&page, "onrush_http_request_duration_seconds_bucket");
    let routes: BTreeSet<&str> = took.iter().map(|labels| label(labels, "route")).collect();
    assert!(took.iter().all(|labels| labels.split(',').count() == 2), "{took:?}");
    assert!(took.len() <= routes.len() * 8 && routes.len() <= paths.len() + 5, "{} of {}", took.len(), routes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_for_readiness_at_once_take_few_connections() {
    let h = harness(&[("database.pool_size", "60")]).await;
    let asked = futures_util::future::join_all((0..200).map(|_| h.get("/readyz", ()))).await;
    assert!(asked.iter().all(|ready| ready.status == 200));
    // One look at a time; a connection is given back a moment after it was used.
    assert!(h.app.db.size() < 20, "{}", h.app.db.size());
}
