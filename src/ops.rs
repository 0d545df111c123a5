//! What an operator sees: health, readiness, metrics, the documentation; and the page at `/`.

pub mod clocks;
pub mod describe;
pub mod gauges;
pub mod health;
pub mod landing;
pub mod pages;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Mutex;

use crate::app::App;
use crate::error::{Kind, Problem};
use crate::platform::described::AnyObject;
use crate::platform::in_flight::InFlightLimit;
use crate::platform::policy;

/// The process's metrics recorder, installed by `main` once.
pub static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Whoever asks more often is told what was told last.
const RENDER_PERIOD: Duration = Duration::from_secs(1);

/// The page of metrics as it was made last.
#[derive(Default)]
struct Rendered(Mutex<Option<(Instant, Bytes)>>);

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", operation_id = "show_metrics", tag = "ops", security((), ("operators" = [])), responses(
    (status = 200, body = String, content_type = "text/plain", description = "Prometheus text format"),
    (status = 401, body = Problem, content_type = "application/problem+json", description = "Where the operators' token is asked for: `unauthenticated`, `token_invalid`"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`: this address does not show it"),
))]
pub async fn metrics(State(app): State<App>, Extension(in_flight): Extension<InFlightLimit>) -> Response {
    let rendered = app.local::<Rendered>();
    let mut last = rendered.0.lock().await;
    let body = match &*last {
        Some((at, body)) if at.elapsed() < RENDER_PERIOD => body.clone(),
        _ => {
            let body = render(&app, &in_flight);
            *last = Some((Instant::now(), body.clone()));
            body
        }
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

fn render(app: &App, in_flight: &InFlightLimit) -> Bytes {
    gauges::measure(app, in_flight);
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default().into()
}

/// The OpenAPI document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "show_openapi", tag = "ops", security((), ("operators" = [])), responses(
    (status = 200, content_type = "application/json", body = AnyObject, description = "This document"),
    (status = 401, body = Problem, content_type = "application/problem+json", description = "Where the operators' token is asked for: `unauthenticated`, `token_invalid`"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`: this address does not show it"),
))]
pub async fn openapi() -> Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let text = DOCUMENT.get_or_init(|| crate::routes::document().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// Every refusal by its name: where the `type` of a problem leads.
#[utoipa::path(get, path = "/docs/errors", operation_id = "show_errors", tag = "ops", responses((status = 200, body = String, content_type = "text/html", description = "A page for people: each refusal, its status and what it means")))]
pub async fn errors() -> Response {
    static PAGE: OnceLock<(String, String)> = OnceLock::new();
    let row = |kind: &Kind| {
        let (name, status) = (kind.name(), kind.status().as_u16());
        // The table's words have no markup but the backquotes of Markdown, in pairs.
        let meaning = kind.meaning().split('`').enumerate();
        let meaning: String = meaning
            .map(|(at, text)| if at % 2 == 0 { text.to_owned() } else { format!("<code>{text}</code>") })
            .collect();
        let title = kind.title();
        format!(
            "<tr id=\"{name}\"><td>{status}<td><a href=\"#{name}\"><code>{name}</code></a><td>{title}<td>{meaning}\n"
        )
    };
    let (page, policy) = PAGE.get_or_init(|| {
        let page = include_str!("errors.html");
        let rows: String = Kind::ALL.iter().map(row).collect();
        (page.replace("{{rows}}", &rows), policy::of_page(page, "form-action 'none'"))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy.as_str())];
    (headers, page.as_str()).into_response()
}
