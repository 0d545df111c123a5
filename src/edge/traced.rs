//! A request's span: a line's context in the log and, where traces are on, a span of the caller's trace.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use tracing::Span;
use tracing::field::Empty;

use crate::app::App;
use crate::platform::traces;
use crate::routes::{API, SANDBOX};

/// The span of a request, by its id and its route.
pub(super) fn span(app: &App, request: &Request, id: &str, route: &str) -> Span {
    // Who asks after the process's health every second would fill the traces.
    if !traces::is_on() || !(route.starts_with(API) || route.starts_with(SANDBOX)) {
        return tracing::info_span!("request", request.id = id, http.method = %request.method(), http.route = route);
    }
    let (method, name) = (request.method(), format!("{} {route}", request.method()));
    let span = tracing::info_span!("request", otel.name = name, otel.kind = "server", trace.id = Empty, request.id = id, http.method = %method, http.route = route);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let is_ours = peer.is_some_and(|peer| app.config.http.trusted_proxies.contains(peer));
    traces::continue_from(&span, request.headers(), is_ours);
    traces::note(&span, "http.request.method", method.as_str().to_owned());
    traces::note(&span, "url.path", request.uri().path().to_owned());
    span.record("trace.id", traces::trace_id(&span));
    span
}

/// Says how the request was answered.
pub(super) fn answered(span: &Span, status: StatusCode) {
    if !traces::is_on() {
        return;
    }
    traces::note(span, "http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        traces::failed(span, status.as_str());
    }
}
