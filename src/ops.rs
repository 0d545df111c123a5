//! What an operator sees and sets: health, readiness, metrics, request ids, load shedding, CORS.

use std::sync::OnceLock;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use crate::app::App;
use crate::error::{Kind, REQUEST_ID};
use crate::platform::crowd::Crowd;
use crate::platform::loops::LoopHealth;

/// The process is up.
#[utoipa::path(get, path = "/healthz", tag = "ops", responses((status = 200, body = String, content_type = "text/plain", description = "The process is up")))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// One dependency or loop, for `/readyz`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    /// Whether the process should be sent requests.
    pub ready: bool,
    /// MySQL: `ok` or what is wrong.
    pub mysql: String,
    /// Redis: `ok` or what is wrong.
    pub redis: String,
    /// Every loop of the process.
    pub loops: Vec<LoopHealth>,
}

/// Whether the process can serve: each dependency, each loop.
#[utoipa::path(get, path = "/readyz", tag = "ops", responses(
    (status = 200, body = Readiness, description = "Ready"),
    (status = 503, body = Readiness, content_type = "application/json", description = "Not ready: the body says what is wrong"),
))]
pub async fn readyz(State(app): State<App>) -> Response {
    let asked = app.clone();
    // A task of its own: a sqlx future runs to its end.
    let mysql = tokio::spawn(async move { sqlx::query("SELECT 1").execute(&asked.db).await.map(|_| ()) });
    let mysql = match mysql.await {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    let redis = app.redis.usable().await.map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned());
    let loops = app.loops.health();
    let stopping = app.loops.stop_signal().is_cancelled();
    let ready = mysql == "ok" && redis == "ok" && !stopping && loops.iter().all(|l| !l.stalled);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, mysql, redis, loops })).into_response()
}

/// The process's metrics recorder, installed by `main` once.
pub static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Makes the counters that alerts look at, so that their first event is an increase and not a beginning.
pub fn prepare_counters() {
    let known: [(&str, &str, &[&str]); 4] = [
        ("onrush_late_payments_total", "outcome", &["reopened", "refund", "before"]),
        ("onrush_refunds_total", "outcome", &["confirmed", "pending", "refused", "failed"]),
        ("onrush_seckill_corrections_total", "direction", &["fewer", "more"]),
        ("onrush_orders_total", "outcome", &["created", "paid", "closed", "granted", "released", "refunded"]),
    ];
    for (name, label, values) in known {
        for value in values {
            metrics::counter!(name, label => *value).increment(0);
        }
    }
    metrics::counter!("onrush_http_shed_total").increment(0);
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "ops", responses((status = 200, body = String, content_type = "text/plain", description = "Prometheus text format")))]
pub async fn metrics(State(app): State<App>, Extension(crowd): Extension<Crowd>) -> Response {
    metrics::gauge!("onrush_http_requests_in_flight").set(crowd.taken() as f64);
    let (size, idle) = (app.db.size(), app.db.num_idle());
    metrics::gauge!("onrush_mysql_pool_connections").set(f64::from(size));
    metrics::gauge!("onrush_mysql_pool_in_use").set(f64::from(size.saturating_sub(u32::try_from(idle).unwrap_or(0))));
    let (open, used) = app.redis.pool_use();
    metrics::gauge!("onrush_redis_pool_connections").set(open as f64);
    metrics::gauge!("onrush_redis_pool_in_use").set(used as f64);
    let body = METRICS.get().map(PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

/// The OpenAPI document.
#[utoipa::path(get, path = "/openapi.json", tag = "ops", responses((status = 200, content_type = "application/json", body = Object, description = "This document")))]
pub async fn openapi() -> Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let text = DOCUMENT.get_or_init(|| crate::routes::document().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// Every refusal by its name: where the `type` of a problem leads.
#[utoipa::path(get, path = "/docs/errors", tag = "ops", responses((status = 200, body = String, content_type = "text/html", description = "A page for people: each refusal, its status and what it means")))]
pub async fn errors() -> Response {
    static PAGE: OnceLock<String> = OnceLock::new();
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
    let page = PAGE.get_or_init(|| {
        include_str!("errors.html").replace("{{rows}}", &Kind::ALL.iter().map(row).collect::<String>())
    });
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    (headers, page.as_str()).into_response()
}

/// Adds to every operation the refusals that any route may give.
pub fn describe_problems(api: &mut utoipa::openapi::OpenApi) {
    let problem = |description: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        RefOr::T(ResponseBuilder::new().description(description).content("application/problem+json", content).build())
    };
    for (path, item) in &mut api.paths.paths {
        if !path.starts_with(crate::routes::API) {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            for (status, text) in [
                ("500", "A fault of ours"),
                ("503", "Busy, or a dependency does not answer: try again after `Retry-After`"),
            ] {
                responses.entry(status.to_owned()).or_insert_with(|| problem(text));
            }
            if operation.security.is_some() {
                responses.entry("401".to_owned()).or_insert_with(|| problem("No valid access token"));
            }
            let takes_input =
                operation.request_body.is_some() || operation.parameters.as_ref().is_some_and(|p| !p.is_empty());
            if takes_input {
                responses
                    .entry("422".to_owned())
                    .or_insert_with(|| problem("A field is not valid: `errors` names every one"));
            }
            if operation.request_body.is_some() {
                for (status, text) in [
                    ("400", "The body is not JSON"),
                    ("408", "The body came too slowly"),
                    ("413", "The body is too large"),
                    ("415", "The body is not declared as JSON"),
                ] {
                    responses.entry(status.to_owned()).or_insert_with(|| problem(text));
                }
            }
        }
    }
}

/// CORS for the front ends' origins (comma separated); none by default.
pub fn cors(origins: &str) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> =
        origins.split(',').filter_map(|o| HeaderValue::from_str(o.trim()).ok()).filter(|o| !o.is_empty()).collect();
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static(REQUEST_ID),
        ])
        .expose_headers([HeaderName::from_static(REQUEST_ID), header::RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(600));
    Some(layer)
}
