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
    // Not cloned: all processors would write to the same counts of who holds them.
    if KNOWN
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .get(route)
        .is_some_and(|its| its.count(method, status, took))
    {
        return;
    }
    let mut routes = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let handles = routes.entry(route.to_owned()).or_insert_with(|| Handles {
        took: metrics::histogram!("onrush_http_request_duration_seconds", "route" => route.to_owned()),
        answers: Vec::new(),
    });
    if !handles.count(method, status, took) {
        let labels = [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        handles.answers.push((method, status, metrics::counter!("onrush_http_requests_total", &labels)));
        handles.count(method, status, took);
    }
}

impl Handles {
    /// Whether it was counted: there is a counter for it.
    fn count(&self, method: &'static str, status: u16, took: Duration) -> bool {
        let Some((.., counter)) = self.answers.iter().find(|(its, of, _)| (*its, *of) == (method, status)) else {
            return false;
        };
        counter.increment(1);
        self.took.record(took.as_secs_f64());
        true
    }
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
