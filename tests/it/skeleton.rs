//! The parts every service has, and the harness itself.

use std::time::Duration;

use reqwest::Method;

use crate::support::client::{Answer, send};
use crate::support::{Harness, Options, PrivateServers};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_healthy_and_ready() {
    let h = Harness::new().await;
    assert_eq!(h.get("/healthz", ()).await.expect(200).text(), "ok");
    let ready = h.get("/readyz", ()).await.expect(200);
    assert_eq!((ready["mysql"].as_str(), ready["redis"].as_str()), (Some("ok"), Some("ok")));
    assert!(ready["loops"].as_array().unwrap().iter().any(|l| l["name"] == "listen"), "{}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_and_a_wrong_method_are_problems_with_a_request_id() {
    let h = Harness::new().await;
    let missing = h.get("/nothing/here", ()).await.problem(404, "not_found");
    assert_eq!(missing.header("x-request-id"), missing["request_id"].as_str());
    send(h.request(Method::DELETE, "/healthz", ())).await.problem(405, "method_not_allowed");
    let named = send(h.request(Method::GET, "/nothing", ()).header("x-request-id", "mine-1")).await;
    assert_eq!(named["request_id"], "mine-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_killed_and_another_stops_in_order() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let mut killed = h.process("api", &[]).await;
    killed.client.get("/healthz", ()).await.expect(200);
    killed.kill().await;
    let mut worker = h.process("worker,scheduler", &[("ONRUSH_HTTP__DRAIN_S", "10")]).await;
    worker.client.get("/healthz", ()).await.expect(200);
    worker.client.get("/me", ()).await.problem(404, "not_found");
    worker.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_redis_and_mysql_down_and_up() {
    let mut servers = PrivateServers::start().await;
    let settings = vec![("database.acquire_timeout_ms", "500".to_owned())];
    let options = Options { servers: Some(servers.addresses()), settings, ..Options::default() };
    let h = Harness::with(options).await;
    h.get("/readyz", ()).await.expect(200);
    // The answer names who is down.
    let up = |ready: &Answer| (ready["mysql"] == "ok", ready["redis"] == "ok");
    servers.change(|s| s.redis.kill()).await;
    assert_eq!(up(&h.get("/readyz", ()).await.expect(503)), (true, false));
    servers.change(|s| s.redis.start()).await;
    h.eventually(async || h.get("/readyz", ()).await.status == 200).await;
    servers.change(|s| s.mysql.kill()).await;
    assert_eq!(up(&h.get("/readyz", ()).await.expect(503)), (false, true));
    servers.change(|s| s.mysql.start()).await;
    h.eventually(async || h.get("/readyz", ()).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_leaves_nothing_under_way() {
    let mut h = Harness::new().await;
    h.start_workers();
    h.get("/healthz", ()).await.expect(200);
    assert!(h.stop().await);
    h.advance(Duration::from_secs(1));
    assert!(h.app.loops.health().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_people_are_made_at_once() {
    let h = Harness::new().await;
    h.register().await;
    h.admin().await;
    assert_eq!(h.people(1500).await.len(), 1500);
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 1502);
}
