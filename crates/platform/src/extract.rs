//! What a request brings, read in our own words and with every fault of it told at once.
//!
//! A handler names all that it reads in one [`Input`], or in one [`Inputs`] for two parts: `Inputs(Path(id),
//! Json(body))`. The parts are read one after the other into one list of [`Faults`], whatever the others are like, and
//! the request is refused with the whole list. Within a part:
//!
//! 1. the shape (`fault`): types, unknown and missing fields, and what the fields' own types refuse (ids,
//!    instants, enums: a type that parses itself is better than a rule);
//! 2. the fields' rules (`garde`; `rules.rs` has ours);
//! 3. what the fields mean together ([`Shape::together`]), as far as it can be said without a database.
//!
//! The parts cannot be extracted by themselves, so no handler can tell faults in two rounds. Who may ask at all is
//! decided before: extractors of users stand before it.

mod json;

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, MapDeserializer};
use serde_json::{Map, Value};

pub use crate::fault::{FaultClass, Faults, FieldFault, faults_of};
use crate::fault::{fit, rule_for_a_person};

impl IntoResponse for Faults {
    fn into_response(self) -> Response {
        // Rendered by the problem layer, which knows the error table and the request id.
        let mut response = StatusCode::BAD_REQUEST.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// What a body or a query string is made of.
pub trait Shape<S>: DeserializeOwned + garde::Validate<Context = ()> + Send {
    /// Adds the faults that its fields have only together, or that only the service knows of. It is asked whatever else
    /// was found: a field that was at fault has some value of its type ([`Faults::spare`] tells), and what is said of it
    /// here is left out.
    fn together(&self, _service: &S, _faults: &mut Faults) {}
}

/// A request while its parts are read.
pub struct UnreadRequest {
    /// Its head.
    pub head: Parts,
    body: Body,
}

impl From<Request> for UnreadRequest {
    fn from(request: Request) -> Self {
        let (head, body) = request.into_parts();
        Self { head, body }
    }
}

/// A part of a request that a handler may ask for in its [`Input`].
pub trait Part<S>: Sized {
    /// Reads it. Its faults are added; with any of them what is read is of no use, and `None` where there is not even
    /// something of its type. A part with the body comes last.
    fn read(asked: &mut UnreadRequest, service: &S, faults: &mut Faults) -> impl Future<Output = Option<Self>> + Send;
}

/// All that a handler reads of a request.
#[derive(Debug)]
pub struct Input<A>(pub A);

/// The same, of two parts.
#[derive(Debug)]
pub struct Inputs<A, B>(pub A, pub B);

/// The same, of three.
#[derive(Debug)]
pub struct Inputs3<A, B, C>(pub A, pub B, pub C);

impl<S: Send + Sync, A: Part<S> + Send> FromRequest<S> for Input<A> {
    type Rejection = Faults;

    async fn from_request(request: Request, service: &S) -> Result<Self, Faults> {
        let (mut asked, mut faults) = (UnreadRequest::from(request), Faults::default());
        let a = A::read(&mut asked, service, &mut faults).await;
        a.filter(|_| faults.is_empty()).map(Self).ok_or(faults)
    }
}

impl<S: Send + Sync, A: Part<S> + Send, B: Part<S> + Send> FromRequest<S> for Inputs<A, B> {
    type Rejection = Faults;

    async fn from_request(request: Request, service: &S) -> Result<Self, Faults> {
        let (mut asked, mut faults) = (UnreadRequest::from(request), Faults::default());
        let a = A::read(&mut asked, service, &mut faults).await;
        let b = B::read(&mut asked, service, &mut faults).await;
        a.zip(b).filter(|_| faults.is_empty()).map(|(a, b)| Self(a, b)).ok_or(faults)
    }
}

impl<S, A, B, C> FromRequest<S> for Inputs3<A, B, C>
where
    S: Send + Sync,
    A: Part<S> + Send,
    B: Part<S> + Send,
    C: Part<S> + Send,
{
    type Rejection = Faults;

    async fn from_request(request: Request, service: &S) -> Result<Self, Faults> {
        let (mut asked, mut faults) = (UnreadRequest::from(request), Faults::default());
        let a = A::read(&mut asked, service, &mut faults).await;
        let b = B::read(&mut asked, service, &mut faults).await;
        let c = C::read(&mut asked, service, &mut faults).await;
        a.zip(b).zip(c).filter(|_| faults.is_empty()).map(|((a, b), c)| Self(a, b, c)).ok_or(faults)
    }
}

/// The parameters of the path: one, or a tuple of them.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> Part<S> for Path<T> {
    async fn read(asked: &mut UnreadRequest, service: &S, faults: &mut Faults) -> Option<Self> {
        if let Ok(axum::extract::Path(value)) = axum::extract::Path::from_request_parts(&mut asked.head, service).await
        {
            return Some(Self(value));
        }
        // Something is wrong: once more, to find everything.
        let given = match RawPathParams::from_request_parts(&mut asked.head, service).await {
            Ok(given) => given,
            Err(refused) => {
                // The name stands between backquotes.
                faults.add(refused.body_text().split('`').nth(1).unwrap_or("path"), "is not UTF-8 text");
                return None;
            }
        };
        let (names, mut values): (Vec<&str>, Vec<Value>) = given.iter().map(|(name, v)| (name, Value::from(v))).unzip();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        let mut found = Faults::default();
        let fitted = fit(value, false, &mut found);
        for fault in found.told {
            let place = fault.field.trim_matches(['[', ']']).parse().unwrap_or(0);
            faults.add(*names.get(place).unwrap_or(&"path"), fault.message);
        }
        fitted.map(Self)
    }
}

/// The parameters of the query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Sync, T: Shape<S>> Part<S> for Query<T> {
    async fn read(asked: &mut UnreadRequest, service: &S, faults: &mut Faults) -> Option<Self> {
        // Most requests have none, and the polls of a sale are many.
        let none = asked.head.uri.query().is_none_or(str::is_empty);
        let nothing = || MapDeserializer::<_, ValueError>::new(std::iter::empty::<(&str, &str)>());
        if none
            && let Ok(read) = T::deserialize(nothing())
            && read.validate().is_ok()
        {
            read.together(service, faults);
            return Some(Self(read));
        }
        let given = parameters(asked, faults);
        checked(Value::Object(given), true, service, faults).map(Self)
    }
}

/// What the query string has, each parameter once.
pub(super) fn parameters(asked: &UnreadRequest, faults: &mut Faults) -> Map<String, Value> {
    // Reading this form of text never fails: what is not UTF-8 comes out as U+FFFD.
    let given: Vec<(String, String)> =
        serde_urlencoded::from_str(asked.head.uri.query().unwrap_or("")).unwrap_or_default();
    let mut map = Map::new();
    for (name, value) in given {
        if map.contains_key(&name) {
            faults.add(name, "is given more than once");
            continue;
        }
        if value.contains(char::REPLACEMENT_CHARACTER) {
            faults.add(&*name, "is not UTF-8 text");
        }
        map.insert(name, Value::String(value));
    }
    map
}

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Sync, T: Shape<S>> Part<S> for Json<T> {
    async fn read(asked: &mut UnreadRequest, service: &S, faults: &mut Faults) -> Option<Self> {
        if let Some(message) = json::not_declared(&asked.head.headers) {
            // Its own faults are told all the same: most such bodies are JSON that was sent under another name.
            faults.because(FaultClass::NotJson, "Content-Type", message);
        }
        let RawBody(bytes) = <RawBody as Part<S>>::read(asked, service, faults).await?;
        let value = json::read(&bytes, faults)?;
        checked(value, false, service, faults).map(Self)
    }
}

/// A body that takes longer to arrive is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(8);

/// The raw body, within the limit that the router sets.
#[derive(Debug)]
pub struct RawBody(pub axum::body::Bytes);

impl<S: Sync> Part<S> for RawBody {
    async fn read(asked: &mut UnreadRequest, _: &S, faults: &mut Faults) -> Option<Self> {
        // The limit is in the head. No part behind the body needs it.
        let head = std::mem::replace(&mut asked.head, Request::new(()).into_parts().0);
        let whole = Request::from_parts(head, std::mem::take(&mut asked.body));
        let arriving = axum::body::Bytes::from_request(whole, &());
        let (why, message) = match tokio::time::timeout(BODY_TIMEOUT, arriving).await {
            Ok(Ok(bytes)) => return Some(Self(bytes)),
            Ok(Err(refused)) if refused.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                (FaultClass::TooLarge, "is longer than the limit")
            }
            Ok(Err(_)) => (FaultClass::Incomplete, "did not arrive whole"),
            Err(_) => (FaultClass::TooSlow, "took too long to arrive"),
        };
        faults.because(why, "", message);
        None
    }
}

/// Fits `value` to its type and holds it against every rule.
pub(super) fn checked<S, T: Shape<S>>(value: Value, textual: bool, service: &S, faults: &mut Faults) -> Option<T> {
    if !value.is_object() {
        // serde would read a struct from an array too, by position: no shape that we document.
        faults.add("", "must be an object");
        return None;
    }
    let fitted: T = fit(value, textual, faults)?;
    if let Err(report) = fitted.validate() {
        for (path, error) in report.iter() {
            faults.add(path.to_string(), rule_for_a_person(error.message()));
        }
    }
    fitted.together(service, faults);
    Some(fitted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::At;
    use crate::id::Id;
    use serde_json::json;

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Size {
        Small,
        Large,
    }

    #[derive(Debug, serde::Deserialize, garde::Validate)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[garde(length(min = 1, max = 5))]
        name: String,
        #[garde(range(min = 1, max = 10))]
        count: u32,
        #[garde(dive)]
        inner: Inner,
        #[garde(skip)]
        size: Option<Size>,
        #[garde(skip)]
        flag: Option<bool>,
        #[garde(skip)]
        from: Option<At>,
        #[garde(skip)]
        until: Option<At>,
    }

    #[derive(Debug, serde::Deserialize, garde::Validate)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[garde(length(max = 5))]
        list: Vec<i64>,
        #[garde(skip)]
        #[expect(dead_code, reason = "only its shape is looked at")]
        ids: Option<Vec<Id<()>>>,
    }

    impl Shape<()> for Body {
        fn together(&self, _: &(), faults: &mut Faults) {
            if faults.spare(&["from", "until"]) && self.from > self.until {
                faults.add("until", "must be after from");
            }
            if matches!(self.size, Some(Size::Small)) && self.flag == Some(true) {
                faults.add("flag", "does not go with small");
            }
        }
    }

    fn told(body: &str) -> Vec<(String, String)> {
        let mut faults = Faults::default();
        if let Some(value) = json::read(body.as_bytes(), &mut faults) {
            checked::<(), Body>(value, false, &(), &mut faults);
        }
        faults.told.into_iter().map(|f| (f.field, f.message)).collect()
    }

    fn fields(body: Value) -> Vec<String> {
        told(&body.to_string()).into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let fields = fields(json!({
            "name": "too long a name", "extra": 1, "inner": {"list": [1, "x", null], "ids": ["x", 5, "0"]},
            "from": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z",
        }));
        let expected = [
            "extra",
            "inner.ids[0]",
            "inner.ids[1]",
            "inner.ids[2]",
            "inner.list[1]",
            "inner.list[2]",
            "count",
            "name",
            "until",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_is_wrong_is_told_in_words_for_people() {
        let found = told(
            r#"{"name": 5, "count": -1, "inner": {"list": {}, "ids": [7]}, "size": 3, "flag": "yes", "from": "soon",
                "until": 4}"#,
        );
        let message = |field: &str| {
            let found = found.iter().find(|(at, _)| at == field);
            &*found.unwrap_or_else(|| panic!("no {field} in {found:?}")).1
        };
        assert_eq!(message("name"), "must be text");
        assert_eq!(message("count"), "must not be negative");
        assert_eq!(message("inner.list"), "must be a list");
        assert!(message("inner.ids[0]").starts_with("must be an id of 32 hex digits"));
        assert_eq!(message("size"), "must be one of: small, large");
        assert_eq!(message("flag"), "must be true or false");
        assert!(message("from").starts_with("must be an instant"));
        assert!(message("until").starts_with("must be an instant"));
    }

    #[test]
    fn fields_at_fault_are_not_held_against_each_other() {
        let body =
            json!({"name": "a", "count": 1, "inner": {"list": []}, "from": "soon", "until": "2026-01-01T00:00:00Z"});
        assert_eq!(fields(body), ["from"]);
    }

    #[test]
    fn a_body_of_the_wrong_kind_is_refused_as_a_whole() {
        assert_eq!(fields(json!(["name", 1, {"list": []}])), [""]);
        assert_eq!(fields(json!("text")), [""]);
    }

    #[test]
    fn numbers_that_overflow_are_faults() {
        let body = json!({"name": "a", "count": 1e300, "inner": {"list": [18446744073709551615u64]}});
        assert_eq!(fields(body), ["count", "inner.list[0]"]);
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
        impl Shape<()> for Q {}
        let read = |given: Value| {
            let mut faults = Faults::default();
            let read = checked::<(), Q>(given, true, &(), &mut faults);
            (read.filter(|_| faults.is_empty()), faults.told)
        };
        let q = read(json!({"limit": "20", "q": "20"})).0.unwrap();
        assert_eq!((q.limit, q.q.as_str()), (Some(20), "20"));
        let whole = "must be a whole number";
        for (bad, word) in
            [("x", whole), ("-1", "must not be negative"), ("1.5", whole), ("99999999999999999999", whole)]
        {
            let (_, told) = read(json!({"limit": bad, "q": "a"}));
            assert_eq!(told, [FieldFault::new("limit", word)], "{bad}");
        }
    }

    #[test]
    fn a_list_full_of_faults_hides_no_other_field() {
        let body = json!({"name": "too long a name", "count": 0, "inner": {"list": vec!["x"; 60]}, "zzz": 1});
        let told = fields(body);
        assert_eq!(
            told.iter().filter(|field| field.starts_with("inner.list[")).count(),
            crate::fault::MAX_FAULTS_OF_A_LIST
        );
        for field in ["inner.list", "name", "count", "zzz"] {
            assert!(told.iter().any(|told| told == field), "{field} in {told:?}");
        }
    }
}
