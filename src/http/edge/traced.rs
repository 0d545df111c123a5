//! A request's span: a line's context in the log and, where traces are on, a span of the caller's trace.

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use tracing::Span;
use tracing::field::Empty;

use super::super::paths::{API, SANDBOX, is_crowded};
use super::PATH_LOGGED;
use crate::app::App;
use crate::platform::telemetry::LINES_ALONE;
use crate::platform::traces;

/// The span of a request, by its id and its route. A crowd's requests have none while traces are off: its fields are
/// written out as text for lines that these requests hardly ever write. Of one that fails, [`fn@line`] is made then.
pub(super) fn span(app: &App, request: &Request, id: &str, route: &str) -> Span {
    // Who asks after the process's health every second would fill the traces.
    let is_traced = traces::is_on() && (route.starts_with(API) || route.starts_with(SANDBOX));
    match is_traced {
        false if is_crowded(route) => return Span::none(),
        false => return line(request.method(), id, route),
        true => {}
    }
    let (method, name) = (request.method(), format!("{} {route}", request.method()));
    let span = tracing::info_span!("request", otel.name = name, otel.kind = "server", trace.id = Empty, request.id = id, http.method = %method, http.route = route);
    traces::continue_from(&span, request.headers(), app.config.traces.parent_decides);
    traces::note(&span, "http.request.method", method.as_str().to_owned());
    traces::note(&span, "url.path", request.uri().path().chars().take(PATH_LOGGED).collect::<String>());
    span.record("trace.id", traces::trace_id(&span));
    span
}

/// The context of a request's lines in the log.
pub(super) fn line(method: &Method, id: &str, route: &str) -> Span {
    tracing::info_span!(target: LINES_ALONE, "request", request.id = id, http.method = %method, http.route = route)
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
