//! What every request goes through, in one layer: its id, its span, the bound on requests under way, the limits of its
//! account and address, its panic caught, its refusal written, the headers that every answer has, its line in the log,
//! its answer counted.
//!
//! One layer on purpose. Each axum middleware boxes the request's future and copies the services inside it; on the
//! routes that only ask Redis, half a dozen of them cost more than the answer. And it is the outermost: whoever refuses a
//! request, a page of another origin may read why.

mod cors;
mod count;
mod dress;
mod traced;

use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tower::{Layer, Service};
use tracing::Instrument;
use uuid::Uuid;

use self::cors::Cors;
use self::dress::RequestFacts;
use super::paths::API;
use crate::app::App;
use crate::auth;
use crate::error::{self, Error, Kind, REQUEST_ID, refuse};
use crate::limits;
use crate::platform::in_flight::{InFlightLimit, InFlightPermit};
use crate::platform::lang::Lang;
use crate::texts;

/// The layer; cheap to clone.
#[derive(Clone)]
pub struct Edge(Arc<Inner>);

struct Inner {
    app: App,
    in_flight: InFlightLimit,
    cors: Option<Cors>,
    is_https: bool,
}

impl Edge {
    /// By the app's settings, with room for so many requests `in_flight`.
    pub fn new(app: &App, in_flight: InFlightLimit) -> Self {
        let settings = &app.config.http;
        let cors = Cors::new(&settings.cors_origins, &settings.cors_headers);
        let app = app.clone();
        Self(Arc::new(Inner { app, in_flight, cors, is_https: settings.public_url.starts_with("https://") }))
    }
}

/// A service behind the layer. It is a service of its own, and not made of a function: axum would box and clone once
/// more for each request.
#[derive(Clone)]
pub struct Edged<S> {
    edge: Edge,
    inner: S,
}

impl<S> Layer<S> for Edge {
    type Service = Edged<S>;

    fn layer(&self, inner: S) -> Edged<S> {
        Edged { edge: self.clone(), inner }
    }
}

impl<S> Service<Request> for Edged<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The one that was asked whether it is ready is the one to be called.
        let later = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, later);
        let rest = move |request| inner.call(request).map(|answer| answer.unwrap_or_else(|never| match never {}));
        Box::pin(answer(self.edge.clone(), request, rest).map(Ok))
    }
}

/// A browser's questions before its requests are counted together: they are asked of every route.
const PREFLIGHT: &str = "preflight";

const PASSWORD: HeaderValue = HeaderValue::from_static("Basic realm=\"onrush operations\", charset=\"UTF-8\"");

/// The answer to a request, of which the routes and their handlers are the `rest`.
async fn answer<F>(Edge(edge): Edge, mut request: Request, rest: impl FnOnce(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    let started = Instant::now();
    let (id, header) = request_id(&request);
    // For those who write down what they saw.
    request.headers_mut().insert(REQUEST_ID, header.clone());
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let headers = request.headers();
    let origin = edge.cors.as_ref().and_then(|cors| cors.origin(headers));
    let asked = RequestFacts {
        is_read: matches!(method, Method::GET | Method::HEAD),
        has_credentials: headers.contains_key(header::AUTHORIZATION),
    };
    let elsewhere = without_slash(request.uri());
    let address = auth::client_ip(&edge.app, request.extensions(), headers);
    let asker = Asker::of(address, &request);
    let preflight = edge.cors.as_ref().filter(|_| cors::is_preflight(&method, headers));
    let route = if preflight.is_some() { PREFLIGHT } else { path.as_ref().map_or("unmatched", MatchedPath::as_str) };
    // Where a sale's page asks, a refusal speaks to its buyer too.
    let words = is_of_a_sale(route).then(|| texts::refusals(Lang::of(headers)));
    let span = traced::span(&edge.app, &request, &id, route);
    let response = match preflight.map(Cors::preflight) {
        Some(answer) => answer,
        None => match admit(&edge.in_flight, route, &mut request) {
            Ok(()) => run(limits::limit(&edge.app, route, address, request, rest)).instrument(span.clone()).await,
            Err(error) => error.into_response(),
        },
    };
    let fails = span.is_none() && response.status().is_server_error();
    let span = if fails { traced::line(&method, &id, route) } else { span };
    let mut response = span.in_scope(|| error::problems(response, &id, words));
    if response.status() == StatusCode::NOT_FOUND
        && let Some(location) = elsewhere
    {
        // No route of ours ends with a slash.
        response = (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response();
    }
    let status = response.status();
    traced::answered(&span, status);
    let headers = response.headers_mut();
    dress::dress(headers, status, route, asked, edge.is_https);
    if let Some(cors) = &edge.cors {
        cors.tell(origin, headers);
    }
    headers.insert(REQUEST_ID, header);
    if !route.starts_with(API) && headers.contains_key(header::WWW_AUTHENTICATE) {
        // A page of operators: a browser asks a person for the token as a password.
        headers.append(header::WWW_AUTHENTICATE, PASSWORD);
    }
    count::record(&method, route, status, started.elapsed());
    log(&id, asker, &method, route, status, started.elapsed());
    response
}

/// What the line in the log says of a request, where there is to be one.
struct Asker {
    address: Option<IpAddr>,
    /// Where no route has it.
    path: Option<String>,
}

impl Asker {
    fn of(address: Option<IpAddr>, request: &Request) -> Option<Self> {
        let is_told = tracing::enabled!(tracing::Level::INFO);
        let is_unmatched = request.extensions().get::<MatchedPath>().is_none();
        is_told.then(|| Self {
            address,
            path: is_unmatched.then(|| request.uri().path().chars().take(PATH_LOGGED).collect()),
        })
    }
}

/// Of a path so many characters are written down.
const PATH_LOGGED: usize = 200;

/// One line for an answer, to be found by the request's id. What was not served is told where nobody asked for more.
fn log(id: &str, asker: Option<Asker>, method: &Method, route: &str, status: StatusCode, took: Duration) {
    let Some(asker) = asker else { return };
    let address = asker.address.map(|address| address.to_canonical().to_string());
    // In milliseconds, with three decimals.
    let (status, took_ms) = (status.as_u16(), took.as_micros() as f64 / 1000.0);
    if status >= 500 {
        tracing::info!(request.id = id, client.address = address, http.method = %method, http.route = route, http.path = asker.path, http.status = status, took_ms, "request answered");
    } else {
        tracing::debug!(request.id = id, client.address = address, http.method = %method, http.route = route, http.path = asker.path, http.status = status, took_ms, "request answered");
    }
}

/// Where a path that ends with a slash is without it, as a reference that is right behind any prefix that a proxy takes off.
fn without_slash(uri: &Uri) -> Option<HeaderValue> {
    let path = uri.path().strip_suffix('/')?;
    let bare = path.trim_end_matches('/');
    let last = bare.rsplit('/').next().filter(|last| !last.is_empty())?;
    let up = "../".repeat(1 + path.len() - bare.len());
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    HeaderValue::from_str(&format!("{up}{last}{query}")).ok()
}

/// Whether the request may be taken on: it says whom it is meant for, and there is room for it.
fn admit(in_flight: &InFlightLimit, route: &str, request: &mut Request) -> Result<(), Error> {
    if request.version() == Version::HTTP_11 && !names_one_host(request.headers()) {
        return Err(Kind::HostInvalid.into());
    }
    if let Some(place) = enter(in_flight, route)? {
        request.extensions_mut().insert(place);
    }
    Ok(())
}

/// RFC 9112 (3.2): a request without a `Host`, with several, or with one that is none is refused.
fn names_one_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    // Nearly all: letters, digits, points and hyphens, which need not be parsed.
    let is_name = host.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    // It may be empty, where the target has no authority.
    is_name || host.to_str().is_ok_and(|host| !host.contains('@') && host.parse::<Authority>().is_ok())
}

/// Runs the rest of the request; a panic in it is a fault of ours, and the process goes on.
pub fn run(rest: impl Future<Output = Response>) -> impl Future<Output = Response> {
    AssertUnwindSafe(rest).catch_unwind().map(|answer| answer.unwrap_or_else(|panic| panicked(&*panic)))
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
fn enter(in_flight: &InFlightLimit, route: &str) -> Result<Option<Arc<InFlightPermit>>, Error> {
    if !route.starts_with(API) {
        return Ok(None);
    }
    let place = in_flight.enter();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_its_slash_is_named_from_where_it_is() {
        let to = |uri: &str| without_slash(&uri.parse().unwrap()).map(|to| to.to_str().unwrap().to_owned());
        assert_eq!(to("/api/v1/courses/"), Some("../courses".to_owned()));
        assert_eq!(to("/api/v1/courses/?limit=1&x=/"), Some("../courses?limit=1&x=/".to_owned()));
        assert_eq!(to("/courses///"), Some("../../../courses".to_owned()));
        // Never another host's.
        assert_eq!(to("//evil.example/"), Some("../evil.example".to_owned()));
        assert_eq!((to("/"), to("//"), to("/courses"), to("*")), (None, None, None, None));
    }

    #[test]
    fn a_request_names_one_host() {
        let names = |hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().unwrap());
            }
            names_one_host(&headers)
        };
        for good in ["shop.example", "shop.example:8080", "[::1]:80", "127.0.0.1", ""] {
            assert!(names(&[good]), "{good}");
        }
        for bad in [&[][..], &["a", "b"], &["a", "a"], &["a b"], &["a/b"], &["me@a"], &["a,b c"]] {
            assert!(!names(bad), "{bad:?}");
        }
    }
}
