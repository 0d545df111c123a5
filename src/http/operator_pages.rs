//! Who may see the operators' pages: metrics, the whole readiness, the documentation.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};

use crate::app::App;
use crate::auth;
use crate::config::Http;
use crate::error::{Kind, Result, refuse};

/// To whom a listener shows them; cheap to clone.
#[derive(Debug, Clone)]
pub enum Pages {
    /// To everybody who reaches it.
    Open,
    /// To who has the token.
    Token(Arc<SecretString>),
    /// To nobody.
    Closed,
}

impl Pages {
    /// On the listener that clients reach.
    pub fn of(settings: &Http) -> Self {
        match &settings.operations_token {
            _ if settings.operations_public => Self::Open,
            Some(token) => Self::Token(Arc::new(token.clone())),
            None => Self::Closed,
        }
    }

    /// Whether they are there at all.
    pub fn are_there(&self) -> bool {
        !matches!(self, Self::Closed)
    }

    /// Whether a request with these headers may see them.
    pub fn may_see(&self, headers: &HeaderMap) -> Result<()> {
        let Self::Token(token) = self else {
            return if matches!(self, Self::Open) { Ok(()) } else { Err(Kind::NotFound.into()) };
        };
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return Err(
                refuse(Kind::Unauthenticated, "this page wants the operators' token, not one of the API").into()
            );
        };
        let is_ours = token_of(given)
            .is_some_and(|given| verify_slices_are_equal(&given, token.expose_secret().as_bytes()).is_ok());
        if is_ours { Ok(()) } else { Err(refuse(Kind::TokenInvalid, "this is not the operators' token").into()) }
    }
}

/// As [`Pages::may_see`], of a request, and a wrong token is seen.
pub async fn may_see(pages: &Pages, app: &App, parts: &mut Parts) -> Result<()> {
    let seen = pages.may_see(&parts.headers);
    if seen.as_ref().is_err_and(|error| error.kind() == Kind::TokenInvalid) {
        auth::operations_token(app, parts);
    }
    seen
}

/// The token of `Bearer <token>`, or of `Basic` as its password: what a browser asks a person for.
fn token_of(value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(rest).ok())??;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Lets through who may see the pages.
pub async fn guard(State((app, pages)): State<(App, Pages)>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match may_see(&pages, &app, &mut parts).await {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_taken_as_a_bearers_or_as_a_password() {
        let pages = Pages::Token(Arc::new("a-token-of-operators".into()));
        let sees = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            pages.may_see(&headers).map_err(|error| error.kind())
        };
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for good in ["Bearer a-token-of-operators", "bearer  a-token-of-operators", &basic("me:a-token-of-operators")] {
            assert_eq!(sees(good), Ok(()), "{good}");
        }
        for bad in [
            "Bearer a-token-of-operator",
            "Bearer a-token-of-operators2",
            "Bearer",
            "Basic a-token-of-operators",
            &basic("a-token-of-operators"),
            &basic("a-token-of-operators:"),
        ] {
            assert_eq!(sees(bad), Err(Kind::TokenInvalid), "{bad}");
        }
        let nobody = pages.may_see(&HeaderMap::new()).map_err(|error| error.kind());
        assert_eq!(nobody, Err(Kind::Unauthenticated));
        let closed = Pages::Closed.may_see(&HeaderMap::new()).map_err(|error| error.kind());
        assert_eq!(closed, Err(Kind::NotFound));
    }
}
