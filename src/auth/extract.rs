//! Who is asking: from the access token alone, without MySQL and Redis. And from where.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::header;
use axum::http::request::Parts;

use super::model::{Claims, Role, UserId, address_bucket};
use crate::app::App;
use crate::error::{Error, Kind};

/// The user of a valid access token; without one the request is refused with 401.
#[derive(Debug, Clone, Copy)]
pub struct CurrentUser {
    /// Who.
    pub id: UserId,
    /// What they may do, as of when the token was made.
    pub role: Role,
}

impl FromRequestParts<App> for CurrentUser {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let token = bearer(parts).ok_or(Kind::Unauthenticated)?;
        let claims: Claims = app.tokens.verify(token).map_err(|_| Kind::TokenInvalid)?;
        if claims.is_expired(app.clock.now()) {
            return Err(Kind::TokenExpired.into());
        }
        Ok(Self { id: claims.sub, role: claims.role })
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

/// The client's address, as attempts are counted by it.
#[derive(Debug, Clone)]
pub struct ClientAddress(pub String);

impl FromRequestParts<App> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let ClientIp(address) = ClientIp::from_request_parts(parts, app).await?;
        Ok(Self(address.map_or_else(|| UNKNOWN.to_owned(), address_bucket)))
    }
}

/// The client's own address, where it is known.
#[derive(Debug, Clone, Copy)]
pub struct ClientIp(pub Option<IpAddr>);

impl FromRequestParts<App> for ClientIp {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let forwarded = if app.config.http.trust_forwarded_for { forwarded_for(&parts.headers) } else { None };
        let peer = || parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        Ok(Self(forwarded.or_else(peer)))
    }
}

/// The last entry of the last `X-Forwarded-For`: our own proxy's word. The entries before it are the client's to invent.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?.rsplit(',').next()?.trim();
    last.parse().ok().or_else(|| last.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        forwarded_for(&headers).map(|address| address.to_string())
    }

    #[test]
    fn only_the_last_forwarded_address_counts() {
        assert_eq!(read(&["198.51.100.1, 192.0.2.7"]).as_deref(), Some("192.0.2.7"));
        assert_eq!(read(&["198.51.100.1", "203.0.113.9,192.0.2.8"]).as_deref(), Some("192.0.2.8"));
        assert_eq!(read(&["192.0.2.7:4711"]).as_deref(), Some("192.0.2.7"));
        assert_eq!(read(&["[2001:db8::1]:4711"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(read(&["192.0.2.7, nonsense"]), None);
        assert_eq!(read(&[]), None);
    }
}
