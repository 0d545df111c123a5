//! An OpenTelemetry collector, as far as a service sees one: it takes spans by OTLP over HTTP and keeps them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// It ends with the runtime of its test.
#[derive(Clone, Default)]
pub struct Collector {
    got: Arc<Got>,
    pub url: String,
}

#[derive(Default)]
struct Got {
    spans: Mutex<Vec<Span>>,
    resource: Mutex<Vec<KeyValue>>,
    refuses: AtomicBool,
    asked: AtomicBool,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let got = Arc::<Got>::default();
        let routes = Router::new().route("/v1/traces", post(take)).with_state(got.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { got, url }
    }

    /// From now on it takes nothing, or takes spans again.
    pub fn refuse(&self, refuses: bool) {
        self.got.asked.store(false, Ordering::SeqCst);
        self.got.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Whether anybody came since [`Collector::refuse`].
    pub fn was_asked(&self) -> bool {
        self.got.asked.load(Ordering::SeqCst)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.got.spans.lock().expect("spans").clone()
    }

    /// The spans of a trace, by its id in hex.
    pub fn of(&self, trace: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace).collect()
    }

    /// The spans of this name.
    pub fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// What the service says of itself.
    pub fn says(&self, name: &str) -> Option<String> {
        text(&self.got.resource.lock().expect("a resource"), name)
    }
}

/// An attribute of a span, as text.
pub fn attribute(span: &Span, name: &str) -> Option<String> {
    text(&span.attributes, name)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(all: &[KeyValue], name: &str) -> Option<String> {
    let found = all.iter().find(|pair| pair.key == name)?;
    Some(match &found.value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text.clone(),
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
        other => format!("{other:?}"),
    })
}

async fn take(State(got): State<Arc<Got>>, body: Bytes) -> Response {
    got.asked.store(true, Ordering::SeqCst);
    if got.refuses.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST.into_response() };
    for of_resource in request.resource_spans {
        *got.resource.lock().expect("a resource") = of_resource.resource.unwrap_or_default().attributes;
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        got.spans.lock().expect("spans").extend(spans);
    }
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
}
