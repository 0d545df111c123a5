//! Who is asking: from the access token alone, without MySQL and Redis. And from where.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, header};

use super::model::{Claims, Role, UserId};
use crate::app::App;
use crate::error::{Error, Kind};
use crate::platform::address::{self, subscriber};
use crate::platform::clock::At;
use crate::platform::seldom::Seldom;

/// The user of a valid access token; without one the request is refused with 401.
#[derive(Debug, Clone, Copy)]
pub struct CurrentUser {
    /// Who.
    pub id: UserId,
    /// What they may do, as of when the token was made.
    pub role: Role,
    /// From when on what they showed is refused: an answer that goes on for long ends then.
    pub until: At,
}

impl FromRequestParts<App> for CurrentUser {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        // Whoever counts this user's requests has verified the token before.
        if let Some(known) = parts.extensions.get::<Self>() {
            return Ok(*known);
        }
        let token = bearer(parts).ok_or(Kind::Unauthenticated)?;
        let claims: Claims = app.tokens.verify(token).map_err(|_| Kind::TokenInvalid)?;
        if claims.is_expired(app.clock.now()) {
            return Err(Kind::TokenExpired.into());
        }
        Ok(Self { id: claims.sub, role: claims.role, until: claims.expires_at() })
    }
}

/// `Authorization: Bearer <token>`; the scheme's name is read in any case (RFC 9110).
fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, token) = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The user of a valid access token whose role is admin; another role is refused with 403.
#[derive(Debug, Clone, Copy)]
pub struct Admin(pub CurrentUser);

impl FromRequestParts<App> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let user = CurrentUser::from_request_parts(parts, app).await?;
        match user.role {
            Role::Admin => Ok(Self(user)),
            Role::User => Err(Kind::Forbidden.into()),
        }
    }
}

/// Where attempts of a client whose address is not known are counted, all in one place.
const UNKNOWN: &str = "unknown";
/// A peer that nobody trusts and that speaks for others is told of once in so long.
const UNHEARD_PAUSE: Duration = Duration::from_secs(600);

/// The client's address, as attempts are counted by it.
#[derive(Debug, Clone)]
pub struct ClientAddress(pub String);

impl FromRequestParts<App> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let ClientIp(address) = ClientIp::from_request_parts(parts, app).await?;
        Ok(Self(address.map_or_else(|| UNKNOWN.to_owned(), |address| subscriber(address).to_string())))
    }
}

/// The client's own address, where it is known: the one that limits, logs and gateways are told.
#[derive(Debug, Clone, Copy)]
pub struct ClientIp(pub Option<IpAddr>);

impl FromRequestParts<App> for ClientIp {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        Ok(Self(client_ip(app, &parts.extensions, &parts.headers)))
    }
}

/// As [`ClientIp`], of a request that is not taken apart.
pub fn client_ip(app: &App, extensions: &Extensions, headers: &HeaderMap) -> Option<IpAddr> {
    let ConnectInfo(peer) = extensions.get::<ConnectInfo<SocketAddr>>()?;
    let trusted = &app.config.http.trusted_proxies;
    if address::is_unheard(peer.ip(), headers, trusted) && app.local::<Unheard>().0.may(app.clock.now(), UNHEARD_PAUSE)
    {
        tracing::warn!(
            peer = %peer.ip(),
            "a peer that ONRUSH_HTTP__TRUSTED_PROXIES does not name sends X-Forwarded-For, which is not believed: if it is \
             your proxy, all its clients count as one address; name its network"
        );
    }
    Some(address::client(peer.ip(), headers, trusted))
}

/// When a peer was last told of that speaks for others and is not trusted.
#[derive(Default)]
struct Unheard(Seldom);
