//! Extractors that refuse in our own words and name every fault of a request at once.
//!
//! serde stops at the first fault. To tell them all, a body is read into a JSON value; each fault serde finds is
//! noted and its place filled with a neutral value of the wanted type, until the shape fits; then the field rules
//! (`garde`) run, and their word about a place already noted is left out. So a request shape is made of plain JSON
//! types with rules on them, and is turned into ids, money and states after that.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// One fault of one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldFault {
    /// Where: `items[2].course_id`, a query parameter's or a path segment's name; empty for the body as a whole.
    pub field: String,
    /// What is wrong, for a person.
    pub message: String,
}

impl FieldFault {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Why a request could not be read. The error table (`error.rs`) gives each its name and title.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The content type is not `application/json`.
    NotJson,
    /// The body is longer than the limit.
    TooLarge,
    /// The body did not arrive whole.
    Incomplete,
    /// The body did not arrive in time.
    TooSlow,
    /// The body is not JSON (or not UTF-8): where and why.
    Malformed(String),
    /// The shape or a rule is not met: every place.
    Invalid(Vec<FieldFault>),
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        // Rendered by the problem layer, which knows the error table and the request id.
        let mut response = StatusCode::BAD_REQUEST.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A JSON body that fits `T` and its rules.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned + garde::Validate<Context = ()>,
{
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
            return Err(Fault::NotJson);
        }
        let RawBody(bytes) = RawBody::from_request(request, state).await?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| Fault::Malformed(e.to_string()))?;
        parse(value, false).map(Self)
    }
}

/// The parameters of the query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S, T> FromRequestParts<S> for Query<T>
where
    S: Send + Sync,
    T: DeserializeOwned + garde::Validate<Context = ()>,
{
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let pairs: Vec<(String, String)> = serde_urlencoded::from_str(parts.uri.query().unwrap_or(""))
            .map_err(|e| Fault::Invalid(vec![FieldFault::new("", format!("query string: {e}"))]))?;
        let mut map = Map::new();
        for (name, value) in pairs {
            if map.contains_key(&name) {
                return Err(Fault::Invalid(vec![FieldFault::new(name, "given more than once")]));
            }
            map.insert(name, Value::String(value));
        }
        parse(Value::Object(map), true).map(Self)
    }
}

/// The parameters of the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S, T> FromRequestParts<S> for Path<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let invalid = |message: String| {
            let (field, message) = split_path_fault(&message);
            Fault::Invalid(vec![FieldFault::new(field, message)])
        };
        let axum::extract::Path(value) =
            axum::extract::Path::<T>::from_request_parts(parts, state).await.map_err(|e| invalid(e.body_text()))?;
        Ok(Self(value))
    }
}

/// axum says ``Invalid URL: Cannot parse `id` with value `x`: why``; the front ends want the field and the why.
fn split_path_fault(message: &str) -> (String, String) {
    let field =
        message.split_once("Cannot parse `").and_then(|(_, rest)| rest.split_once('`')).map_or("path", |(f, _)| f);
    let why = message.rsplit_once("`: ").map_or(message, |(_, why)| why);
    (field.to_owned(), why.to_owned())
}

/// A body that takes longer to arrive is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(8);

/// The raw body, within the limit that the router sets.
#[derive(Debug)]
pub struct RawBody(pub axum::body::Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let arriving = axum::body::Bytes::from_request(request, &());
        let arrived = tokio::time::timeout(BODY_TIMEOUT, arriving).await.map_err(|_| Fault::TooSlow)?;
        arrived.map(Self).map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { Fault::TooLarge } else { Fault::Incomplete }
        })
    }
}

/// More faults than this are not told one by one.
const MAX_FAULTS: usize = 50;

/// Fits `value` to `T`, collecting every fault. `textual`: numbers and booleans may come as text (query strings).
fn parse<T>(mut value: Value, textual: bool) -> Result<T, Fault>
where
    T: DeserializeOwned + garde::Validate<Context = ()>,
{
    if !value.is_object() {
        // serde would read a struct from an array too, by position: no shape that we document.
        return Err(Fault::Invalid(vec![FieldFault::new("", "must be a JSON object")]));
    }
    let mut faults: Vec<FieldFault> = Vec::new();
    let mut fillings = 0;
    let parsed: T = loop {
        match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(parsed) => break parsed,
            Err(error) => {
                let path = error.path().clone();
                let message = error.into_inner().to_string();
                // Each place is filled a few times at most; a shape that still does not fit ends the search.
                fillings += 1;
                if fillings > MAX_FAULTS * FILLINGS.len() || faults.len() >= MAX_FAULTS {
                    return Err(Fault::Invalid(faults));
                }
                if !mend(&mut value, &path, &message, &mut faults, textual) {
                    return Err(Fault::Invalid(faults));
                }
            }
        }
    };
    if let Err(report) = parsed.validate() {
        for (path, error) in report.iter() {
            let field = path.to_string();
            if !faults.iter().any(|f| f.field == field) {
                faults.push(FieldFault::new(field, error.message()));
            }
        }
    }
    if faults.is_empty() { Ok(parsed) } else { Err(Fault::Invalid(faults)) }
}

/// What a faulty place is filled with, in turn, so that the reading can go on behind it.
const FILLINGS: [fn() -> Value; 5] = [
    || Value::from(""),
    || Value::from(0),
    || Value::from(false),
    || Value::Array(Vec::new()),
    || Value::Object(Map::new()),
];

/// Notes one fault and changes `value` so that the next reading passes it; false when that is not possible.
fn mend(
    value: &mut Value,
    path: &serde_path_to_error::Path,
    message: &str,
    faults: &mut Vec<FieldFault>,
    textual: bool,
) -> bool {
    use serde_path_to_error::Segment;
    let mut segments: Vec<Segment> = path.iter().cloned().collect();
    let quoted = |prefix: &str| {
        message.strip_prefix(prefix).and_then(|rest| rest.split_once('`')).map(|(name, _)| name.to_owned())
    };
    if let Some(name) = quoted("unknown field `") {
        // serde reports the unknown field itself as the last segment.
        if !matches!(segments.last(), Some(Segment::Map { key }) if *key == name) {
            segments.push(Segment::Map { key: name.clone() });
        }
        faults.push(FieldFault::new(render(&segments), "is not a known field"));
        let parent = &segments[..segments.len() - 1];
        return place(value, parent).and_then(Value::as_object_mut).and_then(|map| map.remove(&name)).is_some();
    }
    if let Some(name) = quoted("missing field `") {
        segments.push(Segment::Map { key: name.clone() });
        faults.push(FieldFault::new(render(&segments), "is required"));
        let parent = &segments[..segments.len() - 1];
        return place(value, parent)
            .and_then(Value::as_object_mut)
            .map(|map| map.insert(name, Value::from("")))
            .is_some();
    }
    let field = render(&segments);
    let Some(target) = place(value, &segments) else {
        faults.push(FieldFault::new(field, message));
        return false;
    };
    if textual && let Value::String(text) = target {
        if let Ok(number) = text.parse::<i64>() {
            *target = Value::from(number);
            return true;
        }
        if let Ok(flag) = text.parse::<bool>() {
            *target = Value::from(flag);
            return true;
        }
    }
    let known = faults.iter().any(|f| f.field == field);
    if !known {
        faults.push(FieldFault::new(field, message));
    }
    let next = FILLINGS.iter().position(|filling| known && *target == filling()).map_or(0, |at| at + 1);
    match FILLINGS.get(next) {
        Some(filling) => {
            *target = filling();
            true
        }
        None => false,
    }
}

fn place<'v>(value: &'v mut Value, segments: &[serde_path_to_error::Segment]) -> Option<&'v mut Value> {
    use serde_path_to_error::Segment;
    segments.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(*index),
        Segment::Map { key } => value.get_mut(key.as_str()),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

fn render(segments: &[serde_path_to_error::Segment]) -> String {
    use serde_path_to_error::Segment;
    let mut text = String::new();
    for segment in segments {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Segment::Unknown => text.push('?'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, serde::Deserialize, garde::Validate)]
    #[serde(deny_unknown_fields)]
    struct Shape {
        #[garde(length(min = 1, max = 5))]
        name: String,
        #[garde(range(min = 1, max = 10))]
        count: i64,
        #[garde(dive)]
        inner: Inner,
    }

    #[derive(Debug, serde::Deserialize, garde::Validate)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[garde(length(max = 5))]
        list: Vec<i64>,
    }

    fn faults(value: Value) -> Vec<String> {
        match parse::<Shape>(value, false) {
            Err(Fault::Invalid(faults)) => faults.into_iter().map(|f| f.field).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let told = faults(json!({"name": "too long a name", "extra": 1, "inner": {"list": [1, "x", null]}}));
        assert_eq!(told, ["extra", "inner.list[1]", "inner.list[2]", "count", "name"]);
    }

    #[test]
    fn a_body_of_the_wrong_kind_is_refused_as_a_whole() {
        assert_eq!(faults(json!(["name", 1, {"list": []}])), [""]);
        assert_eq!(faults(json!("text")), [""]);
    }

    #[test]
    fn numbers_that_overflow_are_faults() {
        let told = faults(json!({"name": "a", "count": 1e300, "inner": {"list": [18446744073709551615u64]}}));
        assert_eq!(told, ["count", "inner.list[0]"]);
    }

    #[test]
    fn a_query_may_write_numbers_as_text() {
        #[derive(Debug, serde::Deserialize, garde::Validate)]
        struct Q {
            #[garde(range(max = 100))]
            limit: Option<u32>,
            #[garde(skip)]
            q: String,
        }
        let q: Q = parse(json!({"limit": "20", "q": "20"}), true).unwrap();
        assert_eq!((q.limit, q.q.as_str()), (Some(20), "20"));
        assert!(parse::<Q>(json!({"limit": "x", "q": "a"}), true).is_err());
    }
}
