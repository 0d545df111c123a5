//! From where somebody asks.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};

use crate::app::App;
use crate::platform::address::{self, site, subscriber};
use crate::platform::seldom::Seldom;

/// Where attempts of a client whose address is not known are counted, all in one place.
const UNKNOWN: &str = "unknown";
/// A peer that nobody trusts and that speaks for others is told of once in so long.
const UNHEARD_PAUSE: Duration = Duration::from_secs(600);

/// The client's address, as attempts are counted by it.
#[derive(Debug, Clone)]
pub struct ClientAddress {
    /// Whose attempts are counted together.
    pub subscriber: String,
    /// What one customer of a network may have of it.
    pub site: String,
}

impl FromRequestParts<App> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let ClientIp(address) = ClientIp::from_request_parts(parts, app).await?;
        let text = |part: fn(IpAddr) -> IpAddr| {
            address.map_or_else(|| UNKNOWN.to_owned(), |address| part(address).to_string())
        };
        Ok(Self { subscriber: text(subscriber), site: text(site) })
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
