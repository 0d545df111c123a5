//! Answers by method, route and status, for `/metrics`. What a stranger sends makes no series of its own: there are at most
//! so many as the routes have answers.

use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{Method, StatusCode};

/// A route's histogram, and its counters for one method and status each.
struct Handles {
    took: metrics::Histogram,
    answers: Vec<(&'static str, u16, metrics::Counter)>,
}

/// Counts one answer. The handles are kept: finding them by their labels costs more than many a request here.
pub fn record(method: &Method, route: &str, status: StatusCode, took: Duration) {
    static KNOWN: LazyLock<RwLock<HashMap<String, Handles>>> = LazyLock::new(RwLock::default);
    let (method, status) = (label(method, status), status.as_u16());
    let find = |handles: &Handles| {
        let found = handles.answers.iter().find(|(its, of, _)| (*its, *of) == (method, status));
        found.map(|(_, _, counter)| (handles.took.clone(), counter.clone()))
    };
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(route).and_then(find);
    let (histogram, counter) = known.unwrap_or_else(|| {
        let mut routes = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        let handles = routes.entry(route.to_owned()).or_insert_with(|| Handles {
            took: metrics::histogram!("onrush_http_request_duration_seconds", "route" => route.to_owned()),
            answers: Vec::new(),
        });
        find(handles).unwrap_or_else(|| {
            let labels = [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
            let counter = metrics::counter!("onrush_http_requests_total", &labels);
            handles.answers.push((method, status, counter.clone()));
            (handles.took.clone(), counter)
        })
    });
    counter.increment(1);
    histogram.record(took.as_secs_f64());
}

/// A method that nobody knows, or that the route does not have, is none of its own.
fn label(method: &Method, status: StatusCode) -> &'static str {
    if status == StatusCode::METHOD_NOT_ALLOWED {
        return "other";
    }
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
