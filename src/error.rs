//! Every refusal the API can give, in one table, and how an error becomes an answer.
//!
//! A function of a feature returns [`Error`]: `Refused` (the caller is told why, by a stable name) or `Internal` (the
//! caller is told nothing, the cause is logged once, by [`problems`], the layer that also writes the body: RFC 9457
//! `application/problem+json`).

mod members;

use std::future::Future;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::openapi::schema::Object;

pub use self::members::describe as describe_members;
use crate::platform::db;
use crate::platform::described::numbers;
use crate::platform::extract::{FaultClass, Faults, FieldFault};

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $kind:ident = $status:literal $name:literal $title:literal $(=> $code:literal)?;)+) => {
        /// Why a request was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)+
        }
        impl Kind {
            /// Every kind, for the documentation and its test.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];
            /// (HTTP status, stable name, title) of the kind.
            const fn row(self) -> (u16, &'static str, &'static str) {
                match self { $(Self::$kind => ($status, $name, $title),)+ }
            }
            /// What a page that waits for something does on hearing of it: 101 gives up, 102 goes on waiting.
            pub const fn code(self) -> u16 {
                match self { $(Self::$kind => or_give_up(&[$($code)?]),)+ }
            }
            /// What the kind means, for a person: the words beside it in the table.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$kind => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

/// What a page does, where a row does not say it.
const fn or_give_up(code: &[u16]) -> u16 {
    if let [code] = code { *code } else { 101 }
}

// A macro, so that a refusal is one line and its row cannot be forgotten. `=> 102`: a page that waits for something goes
// on doing so; it gives up at the others. What a buyer reads of a kind is in `texts/refusals.rs`.
refusals! {
    /// The body is not JSON.
    MalformedJson = 400 "malformed_json" "The body is not valid JSON";
    /// The request names no `Host`, several, or one that is not valid.
    HostInvalid = 400 "host_invalid" "The Host header is not valid";
    /// The body did not arrive whole.
    BodyIncomplete = 400 "body_incomplete" "The body did not arrive whole";
    /// A mutating request without the header that makes it safe to repeat.
    IdempotencyKeyMissing = 400 "idempotency_key_missing" "The Idempotency-Key header is required";
    /// The header is not 1..128 visible ASCII characters.
    IdempotencyKeyInvalid = 400 "idempotency_key_invalid" "The Idempotency-Key header is not valid";
    /// A callback whose signature does not hold.
    CallbackInvalid = 400 "callback_invalid" "The callback could not be verified";
    /// No access token.
    Unauthenticated = 401 "unauthenticated" "An access token is required";
    /// Not a token of ours: altered, another algorithm, not a token at all.
    TokenInvalid = 401 "token_invalid" "The access token is not valid";
    /// A token past its time.
    TokenExpired = 401 "token_expired" "The access token has expired";
    /// The login that the token was made in is over: it was logged out, or its refresh token was used twice.
    LoginOver = 401 "login_over" "The login is over";
    /// Wrong phone or password, never which.
    WrongCredentials = 401 "wrong_credentials" "Phone or password is wrong";
    /// The refresh token is unknown, expired or revoked.
    RefreshInvalid = 401 "refresh_token_invalid" "The refresh token is not valid";
    /// The refresh token was used before: the whole login is revoked.
    RefreshReused = 401 "refresh_token_reused" "The refresh token was used before";
    /// Known, but not allowed.
    Forbidden = 403 "forbidden" "This needs another role";
    /// Nothing here, or nothing of yours.
    NotFound = 404 "not_found" "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed = 405 "method_not_allowed" "Method not allowed";
    /// The client took too long to send its request.
    RequestTimeout = 408 "request_timeout" "The request took too long to arrive";
    /// The phone number has an account.
    PhoneTaken = 409 "phone_taken" "The phone number is registered";
    /// The id is a course's already, and the course is another one.
    CourseExists = 409 "course_exists" "The id belongs to another course";
    /// The id is an activity's already, and the activity is another one.
    ActivityExists = 409 "activity_exists" "The id belongs to another activity";
    /// A course is not on sale.
    CourseUnavailable = 409 "course_unavailable" "A course is not on sale";
    /// The user has the course already.
    AlreadyOwned = 409 "already_owned" "The course is already yours";
    /// The coupon is used, expired, not yet valid, or not enough is spent.
    CouponUnusable = 409 "coupon_unusable" "The coupon cannot be used";
    /// No more of the coupon can be claimed.
    CouponExhausted = 409 "coupon_exhausted" "No coupon is left";
    /// More points than the user has, or than the order takes.
    PointsUnusable = 409 "points_unusable" "The points cannot be used";
    /// The order costs something else than the buyer was shown; `expected_payable_fen` and `payable_fen` say what.
    PriceChanged = 409 "price_changed" "The price has changed";
    /// More is to be paid than the gateway takes, or than any does; `max_fen` says what is taken at most, `gateways` by whom.
    AmountTooLarge = 409 "amount_too_large" "The amount is more than can be paid";
    /// The user has as many orders waiting for their payment as are allowed, or as many of a course; `max` says how many.
    TooManyUnpaid = 409 "too_many_unpaid" "Too many orders wait for their payment";
    /// The order is not in a state that allows this.
    OrderState = 409 "order_state" "The order's state does not allow this";
    /// The order's time to pay is over.
    OrderExpired = 409 "order_expired" "The order's time to pay is over";
    /// The order was closed by its user.
    OrderCancelled = 409 "order_cancelled" "The order was cancelled";
    /// The order's money went back to its user, or is on its way.
    OrderRefunded = 409 "order_refunded" "The order was refunded";
    /// What is to be refunded was refunded before.
    AlreadyRefunded = 409 "already_refunded" "This has been refunded before";
    /// More would go back than is left of what was paid.
    RefundTooMuch = 409 "refund_too_much" "More than is left would go back";
    /// A step that the refund's state does not allow.
    RefundState = 409 "refund_state" "The refund's state does not allow this";
    /// The message cannot be judged again: the version that kept it did not keep what it said.
    NotificationState = 409 "notification_state" "The message cannot be run again";
    /// A step that the payment's state, or its gateway's, does not allow.
    PaymentState = 409 "payment_state" "The payment's state does not allow this";
    /// What is asked for needs a payment gateway that is switched off.
    GatewayOff = 409 "gateway_off" "The payment gateway is switched off";
    /// Gateways have no bill of that day yet; `ready_at` says when.
    BillNotReady = 409 "bill_not_ready" "The bill is not ready";
    /// The difference has come to fit by itself, or may still: `waits_until` then says until when at the latest.
    DifferenceState = 409 "difference_state" "The difference's state does not allow this";
    /// The sale has not begun; `Retry-After` and `starts_at` say when.
    NotStarted = 409 "not_started" "The sale has not started";
    /// No unit is left (one may come back).
    SoldOut = 409 "sold_out" "Sold out";
    /// The user has had as many tries as the activity allows.
    LimitReached = 409 "limit_reached" "The limit per user is reached";
    /// A change that the activity's state does not allow.
    ActivityState = 409 "activity_state" "The activity's state does not allow this";
    /// The name is another schedule's.
    ScheduleExists = 409 "schedule_exists" "The name belongs to another schedule";
    /// A step that the task's state does not allow.
    TaskState = 409 "task_state" "The task's state does not allow this";
    /// The sale is over.
    Ended = 410 "ended" "The sale has ended";
    /// The body is longer than the limit.
    BodyTooLarge = 413 "payload_too_large" "The body is too large";
    /// The body is not declared as JSON in UTF-8.
    NotJson = 415 "unsupported_media_type" "The body must be application/json in UTF-8";
    /// A field, a parameter or a header is wrong; `errors` names every one.
    Invalid = 422 "validation_failed" "The request is not valid";
    /// The key came before with another body.
    IdempotencyKeyReused = 422 "idempotency_key_reused" "The Idempotency-Key was used for another request";
    /// A callback that verified but does not fit our books; kept for a person.
    CallbackFlagged = 422 "callback_flagged" "The callback does not match the payment";
    /// Too many tries; `Retry-After` says when the next one counts.
    TooManyAttempts = 429 "too_many_attempts" "Too many attempts" => 102;
    /// A fault of ours; the log has the cause under the request id.
    Internal = 500 "internal" "Something went wrong on our side";
    /// A payment gateway does not answer.
    GatewayUnavailable = 503 "gateway_unavailable" "The payment gateway does not answer";
    /// The database or Redis cannot serve now.
    Unavailable = 503 "unavailable" "The service cannot answer now" => 102;
    /// More requests than the process takes on.
    Overloaded = 503 "overloaded" "The service is busy" => 102;
    /// The request took longer than the limit; its effect, if any, stands.
    Timeout = 503 "timeout" "The request took too long" => 102;
}

impl Kind {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
    /// The stable name, `error` in the body.
    pub const fn name(self) -> &'static str {
        self.row().1
    }
    /// The title.
    pub const fn title(self) -> &'static str {
        self.row().2
    }
}

/// A refusal with what the caller needs to act on it.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Which one.
    pub kind: Kind,
    /// What happened, for a person; the title when empty.
    pub detail: String,
    /// Seconds for the `Retry-After` header.
    pub retry_after_s: Option<u64>,
    /// Faults by field.
    pub errors: Vec<FieldFault>,
    /// More members of the body, such as `starts_at`.
    pub extra: Vec<(&'static str, Value)>,
    /// Why, for the log, the books and administrators (a bill's `error`): what another system said, and no other
    /// caller is told.
    pub cause: String,
}

impl Refusal {
    /// When to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
    /// One more member of the body, as the views have it: a number is a number. Each is in the list of `members`.
    pub fn with(mut self, name: &'static str, value: impl Serialize) -> Self {
        debug_assert!(members::is_described(name), "clients are not told of {name}");
        // What is named here is text or a number, which always can be written.
        self.extra.push((name, serde_json::to_value(value).unwrap_or_default()));
        self
    }
    /// Why, for those who run the service.
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = cause.to_string();
        self
    }
}

/// As the log and the books have it.
impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.name())?;
        [&self.detail, &self.cause]
            .into_iter()
            .filter(|said| !said.is_empty())
            .try_for_each(|said| write!(f, ": {said}"))
    }
}

/// What a function of a feature fails with.
#[derive(Debug)]
pub enum Error {
    /// The caller's to know.
    Refused(Box<Refusal>),
    /// Ours to know.
    Internal(anyhow::Error),
}

/// The result of a function of a feature.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal of `kind`, explained by `detail`.
pub fn refuse(kind: Kind, detail: impl Into<String>) -> Refusal {
    Refusal {
        kind,
        detail: detail.into(),
        retry_after_s: None,
        errors: Vec::new(),
        extra: Vec::new(),
        cause: String::new(),
    }
}

/// A refusal of one field.
pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Error {
    vec![FieldFault::new(field, message)].into()
}

impl Error {
    /// The kind as the caller sees it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused(refusal) => refusal.kind,
            // Contention that outlasted its attempts is not the caller's fault, nor a fault of the code.
            Self::Internal(error) if is_unavailable(error) || db::is_contention(error) => Kind::Unavailable,
            Self::Internal(_) => Kind::Internal,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Internal(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}
impl From<Vec<FieldFault>> for Error {
    fn from(errors: Vec<FieldFault>) -> Self {
        Refusal { errors, ..refuse(Kind::Invalid, "") }.into()
    }
}
impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        refuse(kind, "").into()
    }
}
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(error)
    }
}
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}
impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Self {
        Self::Internal(error.into())
    }
}
impl From<crate::platform::money::OutOfRange> for Error {
    fn from(_: crate::platform::money::OutOfRange) -> Self {
        refuse(Kind::Invalid, "an amount is out of range").into()
    }
}

/// As an internal error, for jobs: a refusal there is an outcome to log, not an answer.
impl From<Error> for anyhow::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => anyhow::anyhow!("{refusal}"),
            Error::Internal(error) => error,
        }
    }
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    db::is_unavailable(error)
        || error
            .chain()
            .any(|cause| cause.downcast_ref::<redis::RedisError>().is_some_and(crate::platform::redis::is_unavailable))
}

/// As [`db::retrying`], for what may also refuse: a refusal is an answer, and is not run again.
#[track_caller]
pub fn retrying<T, F, Fut>(transaction: F) -> impl Future<Output = Result<T>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    // The refusal goes round the runs, as what came of the last of them.
    let answered = db::retrying(move || {
        let run = transaction();
        async move {
            match run.await {
                Ok(done) => Ok(Ok(done)),
                Err(Error::Refused(refusal)) => Ok(Err(refusal)),
                Err(Error::Internal(error)) => Err(error),
            }
        }
    });
    async move { answered.await?.map_err(Error::Refused) }
}

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
    /// Further members by kind: [`describe_members`].
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

impl From<Faults> for Refusal {
    fn from(faults: Faults) -> Self {
        let (why, detail, errors) = faults.into_told();
        let kind = match why {
            None | Some(FaultClass::Invalid) => Kind::Invalid,
            Some(FaultClass::KeyMissing) => Kind::IdempotencyKeyMissing,
            Some(FaultClass::KeyInvalid) => Kind::IdempotencyKeyInvalid,
            Some(FaultClass::Malformed) => Kind::MalformedJson,
            Some(FaultClass::Incomplete) => Kind::BodyIncomplete,
            Some(FaultClass::TooSlow) => Kind::RequestTimeout,
            Some(FaultClass::NotJson) => Kind::NotJson,
            Some(FaultClass::TooLarge) => Kind::BodyTooLarge,
        };
        Self { errors, ..refuse(kind, detail) }
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
            Error::Refused(refusal) => render(refusal, request_id, words),
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
        return render(&Refusal::from(faults), request_id, words);
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

fn render(refusal: &Refusal, request_id: &str, words: Option<Words>) -> Response {
    let (status, name, title) = refusal.kind.row();
    tracing::debug!(request.id = %request_id, error = name, detail = refusal.detail, faults = ?refusal.errors, "request refused");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_a_status_of_an_error() {
        let mut names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error(), "{}", kind.name());
        }
    }
}
