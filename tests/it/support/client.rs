//! A small HTTP client for the API.

use std::ops::Index;

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use super::Person;

/// Speaks with one service.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    /// The service's address, without a trailing slash.
    pub base: String,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
    /// The body as JSON; null when it is none.
    pub body: Value,
}

/// On whose behalf a request is made: `&person`, a token, or `()` for nobody.
pub trait Who {
    fn token(&self) -> Option<&str>;
}
impl Who for () {
    fn token(&self) -> Option<&str> {
        None
    }
}
impl Who for &str {
    fn token(&self) -> Option<&str> {
        Some(self)
    }
}
impl Who for &String {
    fn token(&self) -> Option<&str> {
        Some(self)
    }
}
impl Who for &Person {
    fn token(&self) -> Option<&str> {
        Some(&self.token)
    }
}

impl Client {
    pub fn new(base: String) -> Self {
        Self { http: reqwest::Client::builder().no_proxy().build().expect("an HTTP client"), base }
    }

    /// A request for a path of the API (or, when it begins with `/api`, `/healthz` or the like, as it stands).
    pub fn request(&self, method: Method, path: &str, who: impl Who) -> RequestBuilder {
        let whole = ["/api/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/sandbox"];
        let api = if path == "/" || whole.iter().any(|start| path.starts_with(start)) { "" } else { onrush::http::API };
        let request = self.http.request(method, format!("{}{api}{path}", self.base));
        match who.token() {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn get(&self, path: &str, who: impl Who) -> Answer {
        send(self.request(Method::GET, path, who)).await
    }

    pub async fn post(&self, path: &str, who: impl Who, body: Value) -> Answer {
        send(self.request(Method::POST, path, who).json(&body)).await
    }

    pub async fn patch(&self, path: &str, who: impl Who, body: Value) -> Answer {
        send(self.request(Method::PATCH, path, who).json(&body)).await
    }

    /// A POST with an `Idempotency-Key`.
    pub async fn post_once(&self, path: &str, who: impl Who, key: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path, who).header("idempotency-key", key).json(&body)).await
    }
}

/// Sends a request and reads its answer.
pub async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await.expect("the whole answer").to_vec();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status, headers, bytes, body }
}

impl Answer {
    /// The answer, which must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The answer, which must be the problem of this status and name.
    #[track_caller]
    pub fn problem(self, status: u16, error: &str) -> Self {
        assert_eq!((self.status, self.body["error"].as_str()), (status, Some(error)), "{}", self.text());
        let kind = self.headers.get("content-type").map(|v| v.as_bytes().to_vec());
        assert_eq!(kind.as_deref(), Some(b"application/problem+json".as_slice()), "{}", self.text());
        self
    }

    /// A member that is text.
    #[track_caller]
    pub fn text_of(&self, member: &str) -> String {
        self.body[member].as_str().unwrap_or_else(|| panic!("no text {member} in {}", self.text())).to_owned()
    }

    /// A header as text.
    pub fn header(&self, name: impl TryInto<HeaderName>) -> Option<&str> {
        let name = name.try_into().ok()?;
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Index<&str> for Answer {
    type Output = Value;
    fn index(&self, member: &str) -> &Value {
        &self.body[member]
    }
}
