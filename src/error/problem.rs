//! The body of a refusal: RFC 9457, `application/problem+json`.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::openapi::schema::Object;

use super::kinds::Kind;
use super::{Error, Refusal, refuse};
use crate::platform::described::numbers;
use crate::platform::extract::{Faults, FieldFault};

/// The body of every refusal (RFC 9457).
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Problem<'a> {
    /// A URI reference that names the kind: `/docs/errors#<error>`.
    #[schema(value_type = String)]
    pub r#type: Docs<'a>,
    /// The kind, for a person.
    pub title: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, for a person.
    pub detail: &'a str,
    /// The kind's stable name, for programs.
    #[schema(value_type = Kind)]
    pub error: &'a str,
    /// The id under which the log has this request.
    pub request_id: &'a str,
    /// On the routes of a sale's page, as `GET /tasks/{id}` has it: 101, give up; 102, go on waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = code_schema)]
    pub code: Option<u16>,
    /// On the routes of a sale's page, for its buyer: in Chinese, or in English when `Accept-Language` prefers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "已售罄")]
    pub msg: Option<&'a str>,
    /// Every fault of the request, where it could not be read or is not valid.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    pub errors: &'a [FieldFault],
    /// Further members by kind: [`describe_members`](super::describe_members).
    #[serde(flatten)]
    #[schema(ignore)]
    pub extra: Extra<'a>,
}

fn code_schema() -> Object {
    let text = "On the routes of a sale's page, as `GET /tasks/{id}` has it: 101, give up; 102, go on waiting.";
    numbers(&[101, 102], text)
}

/// Where the kind of this name is explained.
#[derive(Debug)]
pub struct Docs<'a>(&'a str);

impl Serialize for Docs<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("/docs/errors#{}", self.0))
    }
}

/// Further members, as a map.
#[derive(Debug)]
pub struct Extra<'a>(&'a [(&'static str, Value)]);

impl Serialize for Extra<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The error travels in the response's extensions to the [`problems`] layer, which knows the request id.
#[derive(Clone)]
struct Carried(std::sync::Arc<Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.kind().status().into_response();
        response.extensions_mut().insert(Carried(std::sync::Arc::new(self)));
        response
    }
}

/// The header that carries the request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The header that says how much is left of the limits that the request counts for.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// The header that says what these limits are.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What a buyer is told of a kind, in their language.
pub type Words = fn(Kind) -> &'static str;

/// Writes the body of a refusal, with `words` for a buyer where a sale's page asks, and logs an internal error, once.
/// Other answers pass as they are.
pub fn problems(response: Response, request_id: &str, words: Option<Words>) -> Response {
    if response.status().is_success() {
        return response;
    }
    // A refusal counts too.
    let limits =
        [RATE_LIMIT, RATE_LIMIT_POLICY].map(|name| response.headers().get(&name).cloned().map(|value| (name, value)));
    let mut written = written(response, request_id, words);
    for (name, value) in limits.into_iter().flatten() {
        written.headers_mut().insert(name, value);
    }
    written
}

fn written(mut response: Response, request_id: &str, words: Option<Words>) -> Response {
    if let Some(Carried(error)) = response.extensions_mut().remove::<Carried>() {
        return match &*error {
            Error::Refused(refusal) => refused(refusal, request_id, words),
            Error::Internal(cause) => {
                let kind = error.kind();
                if kind == Kind::Internal {
                    tracing::error!(request.id = %request_id, error = format!("{cause:#}"), "request failed");
                } else {
                    tracing::warn!(request.id = %request_id, error = format!("{cause:#}"), "request could not be served");
                }
                let retry_after_s = (kind == Kind::Unavailable).then_some(1);
                render(&Refusal { retry_after_s, ..refuse(kind, "") }, request_id, words)
            }
        };
    }
    if let Some(faults) = response.extensions_mut().remove::<Faults>() {
        return refused(&Refusal::from(faults), request_id, words);
    }
    foreign(response, request_id, words)
}

/// Answers that axum and tower-http make by themselves (no route, wrong method, too large, timed out).
fn foreign(response: Response, request_id: &str, words: Option<Words>) -> Response {
    let ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|v| !v.as_bytes().starts_with(b"text/plain"));
    let status = response.status();
    if ours || !(status.is_client_error() || status.is_server_error()) || response.extensions().get::<Plain>().is_some()
    {
        return response;
    }
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Kind::MethodNotAllowed,
        StatusCode::REQUEST_TIMEOUT => Kind::RequestTimeout,
        StatusCode::PAYLOAD_TOO_LARGE => Kind::BodyTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Kind::NotJson,
        StatusCode::SERVICE_UNAVAILABLE => Kind::Timeout,
        s if s.is_server_error() => Kind::Internal,
        _ => Kind::Invalid,
    };
    let allow = response.headers().get(header::ALLOW).cloned();
    let retry_after_s = (kind == Kind::Timeout).then_some(1);
    let mut answer = render(&Refusal { retry_after_s, ..refuse(kind, "") }, request_id, words);
    if let Some(allow) = allow {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    answer
}

/// Marks a response whose plain body is meant as it is (a gateway's own words): [`problems`] leaves it alone.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

/// Most problems fit.
const PROBLEM_SIZE: usize = 384;

/// The log says why a request was refused, where somebody wants to know.
fn refused(refusal: &Refusal, request_id: &str, words: Option<Words>) -> Response {
    let (_, name, title) = refusal.kind.row();
    let detail = if refusal.detail.is_empty() { title } else { &refusal.detail };
    tracing::debug!(request.id = %request_id, error = name, detail, faults = ?refusal.errors, "request refused");
    render(refusal, request_id, words)
}

fn render(refusal: &Refusal, request_id: &str, words: Option<Words>) -> Response {
    let (status, name, title) = refusal.kind.row();
    let problem = Problem {
        r#type: Docs(name),
        title,
        status,
        detail: if refusal.detail.is_empty() { title } else { &refusal.detail },
        error: name,
        request_id,
        code: words.map(|_| refusal.kind.code()),
        msg: words.map(|words| words(refusal.kind)),
        errors: &refusal.errors,
        extra: Extra(&refusal.extra),
    };
    let mut body = Vec::with_capacity(PROBLEM_SIZE);
    if let Err(error) = serde_json::to_writer(&mut body, &problem) {
        tracing::error!(%error, "problem could not be written");
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = refusal.kind.status();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = refusal.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal.kind == Kind::RequestTimeout {
        // What is still to come of the body is not waited for.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if refusal.kind.status() == StatusCode::UNAUTHORIZED {
        // RFC 9110 wants a challenge with every 401.
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
