//! Which pages of other origins may call, and read what is answered (the Fetch standard's CORS).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::Response;

/// What a preflight is allowed; no browser asks about GET, HEAD and POST, and some tools do.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
/// What a page may read of an answer beside what every page may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "date, etag, location, retry-after, x-request-id, ratelimit, ratelimit-policy, ratelimit-limit, \
     ratelimit-remaining, ratelimit-reset",
);
/// A browser need not ask again for so long, in seconds.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");
/// What the answer to a preflight depends on.
const VARY_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");
const VARY: HeaderValue = HeaderValue::from_static("origin");

/// The settings, read once.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<String>,
    /// What begins an origin whose port may be any: `http://localhost:`.
    any_port: Vec<String>,
    headers: HeaderValue,
}

impl Cors {
    /// From comma separated `origins`, of which some may end with `:*`, and the names of headers; none without origins.
    pub fn new(origins: &str, headers: &str) -> Option<Self> {
        let names = |list: &str| -> Vec<String> {
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let (any_port, origins): (Vec<_>, Vec<_>) = names(origins).into_iter().partition(|o| o.ends_with(":*"));
        if any_port.is_empty() && origins.is_empty() {
            return None;
        }
        let any_port = any_port.iter().map(|origin| origin.trim_end_matches('*').to_owned()).collect();
        // The settings' own test has seen to it that these are names of headers.
        let headers = HeaderValue::from_str(&names(headers).join(", ").to_lowercase());
        Some(Self { origins, any_port, headers: headers.unwrap_or(HeaderValue::from_static("")) })
    }

    /// The request's origin, when it is one of ours.
    fn allowed<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let known = self.origins.iter().any(|known| known == text)
            || self.any_port.iter().any(|start| text.strip_prefix(start.as_str()).is_some_and(is_port))
            // The default port is not written.
            || self.any_port.iter().any(|start| start.trim_end_matches(':') == text);
        known.then_some(origin)
    }

    /// The origin that an answer to such a request is for, to be given to [`Self::tell`].
    pub fn origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        self.allowed(request).cloned()
    }

    /// The answer to a preflight: whether a request may be sent, by which the browser then goes.
    pub fn preflight(&self) -> Response {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone());
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
        headers.insert(header::VARY, VARY_PREFLIGHT);
        response
    }

    /// Says on an answer, whatever it is, who may read it. It depends on the origin even where there is none: a cache must
    /// not give one page the answer for another.
    pub fn tell(&self, origin: Option<HeaderValue>, answer: &mut HeaderMap) {
        if let Some(origin) = origin {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        if answer.get(header::VARY) != Some(&VARY_PREFLIGHT) {
            answer.append(header::VARY, VARY);
        }
    }
}

/// Whether a browser asks before it sends a request.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_ours_as_a_whole_or_by_its_port() {
        let cors = Cors::new("https://shop.example, http://localhost:*", "").unwrap();
        let asks = |origin: &'static str| {
            let headers = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static(origin))]);
            cors.origin(&headers).is_some()
        };
        for ours in ["https://shop.example", "http://localhost:5173", "http://localhost:1", "http://localhost"] {
            assert!(asks(ours), "{ours}");
        }
        for other in [
            "http://shop.example",
            "https://shop.example.evil",
            "https://shop.example:444",
            "http://localhost:",
            "http://localhost:80.evil",
            "http://localhost:5173/",
            "http://localhost.evil:80",
            "https://localhost:5173",
            "null",
            "",
        ] {
            assert!(!asks(other), "{other}");
        }
        assert!(Cors::new(" , ", "authorization").is_none());
    }
}
