//! Traces: from a request through its tasks to a gateway, in a collector that speaks OTLP.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use reqwest::Method;
use serde_json::json;

use crate::seckill::Sale;
use crate::support::client::send;
use crate::support::collector::{Collector, attribute, hex};
use crate::support::{Harness, Person, Process};

/// What a page that was asked by its monitoring sends: a trace, the page's span, and that it is recorded.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PAGE: &str = "00f067aa0ba902b7";
const OTHER_TRACE: &str = "7d3c1f0a5b6e4d2c8f9a0b1c2d3e4f50";

async fn process(h: &Harness, collector: &Collector, more: &[(&str, &str)]) -> Process {
    let mut env = vec![("ONRUSH_TRACES__ENDPOINT", collector.url.as_str())];
    env.extend(more);
    h.process("api,worker,scheduler", &env).await
}

/// A POST that belongs to a trace.
async fn post(p: &Process, path: &str, who: &Person, trace: &str, body: serde_json::Value) -> crate::support::Answer {
    let request = p.client.request(Method::POST, path, who).json(&body).header("idempotency-key", path);
    send(request.header("traceparent", format!("00-{trace}-{PAGE}-01"))).await
}

fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let names = || spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{name} in {:?}", names());
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_its_task_and_what_a_gateway_is_asked_are_one_trace() {
    let (h, collector) = (Harness::new().await, Collector::start().await);
    let settings = [("ONRUSH_TRACES__SERVICE_NAME", "shop"), ("ONRUSH_ORDERS__PAY_DEADLINE_S", "1")];
    let mut p = process(&h, &collector, &settings).await;
    let (buyer, course) = (h.register().await, h.course(1000).await);
    let order = post(&p, "/orders", &buyer, TRACE, json!({"course_ids": [course.no()]})).await.expect(201);
    let path = format!("/orders/{}/pay", order.text_of("order_no"));
    post(&p, &path, &buyer, OTHER_TRACE, json!({"gateway": "sandbox"})).await.expect(200);
    // Nobody pays: a task of the order's ends the trade at the gateway.
    let expires = "task orders.expire";
    h.eventually(async || collector.of(TRACE).iter().any(|span| span.name == expires)).await;
    p.terminate().await;
    let spans = collector.of(TRACE);
    let asked = only(&spans, "POST /api/v1/orders");
    assert_eq!(hex(&asked.parent_span_id), PAGE);
    assert_eq!(attribute(asked, "http.response.status_code").as_deref(), Some("201"));
    let task = only(&spans, expires);
    assert_eq!(task.parent_span_id, asked.span_id);
    assert_eq!(attribute(task, "task.outcome").as_deref(), Some("success"));
    // The gateway is a part of the same process: its span is the call's child by what it was sent.
    let calls = |span: &&Span| span.name.starts_with("gateway sandbox ") && span.parent_span_id == task.span_id;
    let call = spans.iter().find(calls).unwrap_or_else(|| panic!("{spans:?}"));
    let answers = |span: &Span| span.name == "POST /sandbox/api" && span.parent_span_id == call.span_id;
    assert!(spans.iter().any(answers), "{spans:?}");
    // What it asked in another trace is there.
    let spans = collector.of(OTHER_TRACE);
    let pay = only(&spans, "POST /api/v1/orders/{no}/pay");
    assert!(spans.iter().any(|span| span.name == "gateway sandbox create" && span.parent_span_id == pay.span_id));
    assert_eq!(collector.says("service.name").as_deref(), Some("shop"));
    // Who asks after its health, as whoever waited for its start did, is in no trace.
    let routes: Vec<_> = collector.spans().iter().filter_map(|span| attribute(span, "http.route")).collect();
    assert!(routes.iter().all(|route| route.starts_with("/api/") || route.starts_with("/sandbox")), "{routes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_and_its_placing_are_one_trace_also_when_many_come_together() {
    let (h, collector) = (Harness::new().await, Collector::start().await);
    let p = process(&h, &collector, &[]).await;
    let sale = Sale::open(&h, 10).await;
    let buyers = h.people(8).await;
    let path = format!("/seckill/activities/{}/submissions", sale.id);
    let submit = async |at: usize| {
        let trace = format!("{:032x}", 0xabc0 + at);
        post(&p, &path, &buyers[at], &trace, json!({})).await.expect(202);
        trace
    };
    let traces = futures_util::future::join_all((0..buyers.len()).map(submit)).await;
    for trace in traces {
        h.eventually(async || collector.of(&trace).iter().any(|span| span.name == "task seckill.place")).await;
        let spans = collector.of(&trace);
        let asked = spans.iter().find(|span| span.name.starts_with("POST /api/v1/seckill/")).unwrap();
        assert_eq!(only(&spans, "task seckill.place").parent_span_id, asked.span_id);
    }
    // Those that were placed together say so by links.
    let linked: usize = collector.named("batch seckill.place").iter().map(|span| span.links.len()).sum();
    let alone = collector.named("task seckill.place").len() - linked;
    assert!(linked == 0 || linked >= 2, "{linked} linked, {alone} alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_word_records_nothing_unless_the_settings_say_so() {
    let (h, collector) = (Harness::new().await, Collector::start().await);
    let buyer = h.register().await;
    let none = ("ONRUSH_TRACES__SAMPLE_RATIO", "0");
    let mut outside = process(&h, &collector, &[none]).await;
    // An id that a ratio by ids would always choose.
    for trace in [TRACE, "00000000000000010000000000000001"] {
        post(&outside, "/orders/quote", &buyer, trace, json!({"course_ids": []})).await;
    }
    outside.terminate().await;
    assert_eq!(collector.spans(), []);
    let mut behind = process(&h, &collector, &[none, ("ONRUSH_TRACES__PARENT_DECIDES", "true")]).await;
    post(&behind, "/orders/quote", &buyer, TRACE, json!({"course_ids": []})).await;
    behind.terminate().await;
    assert_eq!(collector.of(TRACE).len(), 1);
    assert_eq!(collector.spans().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_takes_nothing_costs_spans_and_is_told_of_once() {
    let (h, collector) = (Harness::new().await, Collector::start().await);
    collector.refuse(true);
    let p = process(&h, &collector, &[]).await;
    let buyer = h.register().await;
    h.eventually(async || {
        post(&p, "/orders/quote", &buyer, TRACE, json!({"course_ids": []})).await.expect(422);
        collector.was_asked()
    })
    .await;
    let told = "the collector takes no spans";
    h.eventually(async || p.log().contains(told)).await;
    collector.refuse(false);
    h.eventually(async || {
        post(&p, "/orders/quote", &buyer, OTHER_TRACE, json!({"course_ids": []})).await.expect(422);
        !collector.of(OTHER_TRACE).is_empty()
    })
    .await;
    h.eventually(async || p.log().contains("the collector takes spans again")).await;
    assert_eq!(p.log().matches(told).count(), 1);
    // Lines of a traced request name its trace.
    let wrong = json!({"phone": "13800000001", "password": "not the password"});
    post(&p, "/auth/login", &buyer, OTHER_TRACE, wrong).await.expect(401);
    h.eventually(async || p.log().lines().any(|l| l.contains("seen at the door") && l.contains(OTHER_TRACE))).await;
    // A fault of the client's is none of the span's.
    let spans = collector.of(OTHER_TRACE);
    assert!(spans.iter().all(|span| span.status.clone().unwrap_or_default().code() != StatusCode::Error), "{spans:?}");
    // The line itself stays here.
    let logs_in = || collector.named("POST /api/v1/auth/login");
    h.eventually(async || !logs_in().is_empty()).await;
    assert_eq!(logs_in()[0].events, []);
}
