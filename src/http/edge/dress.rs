//! The headers that every answer has for the safety of whoever shows or keeps it.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::super::paths::API;

const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// For what is no page, and for pages that say nothing else: it loads nothing and stands in nobody's frame.
const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; base-uri 'none'; frame-ancestors 'none'");
/// For the pages of Swagger UI: its own files. It writes styles into its elements.
const DOCS: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// A year, as browsers want it for their lists.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// Puts them on. `is_https`: clients come by TLS, to whatever ends it. What a handler says itself stays.
pub fn dress(headers: &mut HeaderMap, status: StatusCode, route: &str, asked: RequestFacts, is_https: bool) {
    headers.reserve(8);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    headers.insert(header::REFERRER_POLICY, NO_REFERRER);
    if is_https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
    }
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, if route.starts_with("/docs") { DOCS } else { NOTHING });
    }
    // Personal is what was answered to somebody; and no cache may take an answer to one request for that to another.
    let may_be_kept = route.starts_with(API) || route.starts_with("/docs");
    let is_public = asked.is_read && !asked.has_credentials && status.is_success() && may_be_kept;
    if !is_public && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, NO_STORE);
    }
}

/// What of a request decides about its answer's headers.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts {
    /// It was GET or HEAD.
    pub is_read: bool,
    /// It said who asks.
    pub has_credentials: bool,
}
