//! What every request goes through, in one layer: its id, its span, the bound on requests under way, its panic caught,
//! its refusal written, its answer counted.
//!
//! One layer on purpose. Each axum middleware boxes the request's future and copies the services inside it; on the
//! routes that only ask Redis, half a dozen of them cost more than the answer.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::error::{self, Error, Kind, REQUEST_ID, refuse};
use crate::platform::crowd::{Crowd, Place};
use crate::platform::lang::Lang;
use crate::routes::API;
use crate::texts;

/// The layer.
pub async fn edge(State(crowd): State<Crowd>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (id, header) = request_id(&request);
    // For those who write down what they saw.
    request.headers_mut().insert(HeaderName::from_static(REQUEST_ID), header.clone());
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    // Where a sale's page asks, a refusal speaks to its buyer too.
    let words = is_of_a_sale(route).then(|| texts::refusals(Lang::of(request.headers())));
    let span = tracing::info_span!("request", request.id = id, http.method = %method, http.route = route);
    let response = match enter(&crowd, route) {
        Ok(place) => {
            if let Some(place) = &place {
                request.extensions_mut().insert(place.clone());
            }
            run(request, next).instrument(span.clone()).await
        }
        Err(error) => error.into_response(),
    };
    let mut response = span.in_scope(|| error::problems(response, &id, words));
    response.headers_mut().insert(HeaderName::from_static(REQUEST_ID), header);
    record(&method, route, response.status(), started.elapsed());
    response
}

/// Runs the rest of the request; a panic in it is a fault of ours, and the process goes on.
pub async fn run(request: Request, next: Next) -> Response {
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answer.unwrap_or_else(|panic| panicked(&*panic))
}

/// The request's id: the client's, when it is sane, or a new one.
fn request_id(request: &Request) -> (String, HeaderValue) {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=64).contains(&bytes.len()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    if let Some(header) = request.headers().get(REQUEST_ID).filter(sane) {
        return (header.to_str().unwrap_or("").to_owned(), header.clone());
    }
    let id = Uuid::now_v7().as_simple().to_string();
    let header = HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none"));
    (id, header)
}

/// Takes on at most `http.max_in_flight` requests of the API; one more is told to come back. Who asks after the
/// process's health is always answered.
fn enter(crowd: &Crowd, route: &str) -> Result<Option<Arc<Place>>, Error> {
    if !route.starts_with(API) {
        return Ok(None);
    }
    let place = crowd.enter();
    if place.is_none() {
        metrics::counter!("onrush_http_shed_total").increment(1);
        return Err(refuse(Kind::Overloaded, "").retry_after(1).into());
    }
    Ok(place)
}

/// Whether the page of a sale asks here: for activities, and what became of a submission.
fn is_of_a_sale(route: &str) -> bool {
    let path = route.strip_prefix(API).unwrap_or_default();
    path.starts_with("/seckill/") || path.starts_with("/tasks/")
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::Internal(anyhow::anyhow!("handler panicked: {}", text.unwrap_or("unknown"))).into_response()
}

/// A route's counter and histogram for one method and status.
type Handles = (&'static str, u16, metrics::Counter, metrics::Histogram);

/// Counts one answer. The handles are kept: finding them by their labels costs more than many a request here.
fn record(method: &Method, route: &str, status: StatusCode, took: Duration) {
    static KNOWN: LazyLock<RwLock<HashMap<String, Vec<Handles>>>> = LazyLock::new(RwLock::default);
    let method = label(method);
    let count = |(_, _, counter, histogram): &Handles| {
        counter.increment(1);
        histogram.record(took.as_secs_f64());
    };
    let same = |handles: &&Handles| handles.0 == method && handles.1 == status.as_u16();
    let routes = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(handles) = routes.get(route).and_then(|all| all.iter().find(same)) {
        return count(handles);
    }
    drop(routes);
    let labels = [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.as_u16().to_string())];
    let counter = metrics::counter!("onrush_http_requests_total", &labels);
    let histogram = metrics::histogram!("onrush_http_request_duration_seconds", &labels);
    let handles = (method, status.as_u16(), counter, histogram);
    count(&handles);
    KNOWN.write().unwrap_or_else(PoisonError::into_inner).entry(route.to_owned()).or_default().push(handles);
}

/// A method nobody knows is no label of its own: labels are bounded.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
