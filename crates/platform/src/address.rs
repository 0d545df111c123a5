//! Where a request comes from: the client's own address, also behind proxies.
//!
//! A proxy appends to `X-Forwarded-For` whom it heard, so the entries are read from the right: each is the word of the
//! hop behind it, and is believed as long as that hop is one of ours. What stands further left is the client's to
//! invent. A peer that is no proxy of ours is the client, whatever it sends.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::http::HeaderMap;
use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The networks whose word about clients is taken; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Networks(Arc<[IpNet]>);

/// The text names no networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be networks, such as 10.0.0.0/8,fd00::/8")]
pub struct NotNetworks;

impl FromStr for Networks {
    type Err = NotNetworks;

    /// Comma separated, `10.0.0.0/8` or an address alone. Everybody (`/0`) is no network: whoever sends the header
    /// would then be whoever they like.
    fn from_str(text: &str) -> Result<Self, NotNetworks> {
        let one = |part: &str| {
            let network = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            network.ok().filter(|network| network.prefix_len() > 0).ok_or(NotNetworks)
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Networks {
    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// The address of the client behind `peer`, who sent `headers`.
pub fn client(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return peer;
    }
    let mut client = peer;
    let said =
        headers.get_all(FORWARDED_FOR).iter().rev().flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    for hop in said {
        // A proxy of ours that writes no address knows no better: the client is somebody behind it.
        let Some(address) = read(hop) else { break };
        client = address;
        if !trusted.contains(client) {
            break;
        }
    }
    client
}

/// Whether a peer that is not trusted speaks for somebody else.
pub fn is_unheard(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> bool {
    headers.contains_key(FORWARDED_FOR) && !trusted.contains(peer)
}

/// An address, perhaps with its port.
fn read(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Whose requests are counted together: one address, or of IPv6, where a subscriber has all of it, one /64.
pub fn subscriber(address: IpAddr) -> IpAddr {
    network(address, 64)
}

/// What one customer may have, who takes all that is given without a question: one address, or of IPv6 one /48 (RFC 6177).
pub fn site(address: IpAddr) -> IpAddr {
    network(address, 48)
}

/// The address of IPv4, or the first `bits` of one of IPv6.
fn network(address: IpAddr, bits: u32) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !(u128::MAX >> bits))),
    }
}

/// Says loudly, at the start, that a service which is reached through a proxy trusts none.
pub fn warn_if_nobody_is_trusted(public_url: &str, trusted: &Networks) {
    if public_url.starts_with("https://") && trusted.is_empty() {
        tracing::warn!(
            "ONRUSH_HTTP__PUBLIC_URL is https, so a proxy stands in front, and ONRUSH_HTTP__TRUSTED_PROXIES names none: \
             all clients count as that proxy's one address, and share its limits of logins and requests. Name the \
             proxy's network, such as 10.0.0.0/8"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, trusted: &str, said: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in said {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        client(peer.parse().unwrap(), &headers, &trusted.parse().unwrap()).to_string()
    }

    const OURS: &str = "10.0.0.0/8, fd00::/8, 192.0.2.1";

    #[test]
    fn the_first_address_from_the_right_that_is_not_ours_is_the_client() {
        assert_eq!(from("10.0.0.1", OURS, &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(from("10.0.0.1", OURS, &["203.0.113.9, 198.51.100.1, 10.2.3.4,192.0.2.1"]), "198.51.100.1");
        // Several headers are one list.
        assert_eq!(from("10.0.0.1", OURS, &["203.0.113.9", "198.51.100.1", "10.9.9.9"]), "198.51.100.1");
        assert_eq!(from("fd00::1", OURS, &["2001:db8::7"]), "2001:db8::7");
        assert_eq!(from("::ffff:10.0.0.1", OURS, &["::ffff:198.51.100.1"]), "198.51.100.1");
        // Clients of our own network behind our own proxies.
        assert_eq!(from("10.0.0.1", OURS, &["10.7.7.7, 10.2.3.4"]), "10.7.7.7");
    }

    #[test]
    fn a_peer_that_is_not_ours_is_the_client_whatever_it_says() {
        assert_eq!(from("198.51.100.1", OURS, &["203.0.113.9"]), "198.51.100.1");
        assert_eq!(from("10.0.0.1", "", &["203.0.113.9"]), "10.0.0.1");
        assert_eq!(from("192.0.2.2", OURS, &["203.0.113.9"]), "192.0.2.2");
    }

    #[test]
    fn what_a_proxy_cannot_tell_is_the_proxy() {
        assert_eq!(from("10.0.0.1", OURS, &[]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", OURS, &["203.0.113.9, unknown"]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", OURS, &["203.0.113.9, unknown, 10.2.3.4"]), "10.2.3.4");
        assert_eq!(from("10.0.0.1", OURS, &[""]), "10.0.0.1");
    }

    #[test]
    fn an_address_may_have_its_port_and_brackets() {
        assert_eq!(from("10.0.0.1", OURS, &["198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(from("10.0.0.1", OURS, &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(from("10.0.0.1", OURS, &["[2001:db8::1]"]), "2001:db8::1");
    }

    #[test]
    fn everybody_is_no_network() {
        for good in ["", "10.0.0.0/8", "10.0.0.1", "fd00::/8 , ::1", "127.0.0.0/8,::1/128"] {
            assert!(good.parse::<Networks>().is_ok(), "{good}");
        }
        for bad in ["0.0.0.0/0", "::/0", "10.0.0.0/33", "true", "10.0.0.0/8;fd00::/8", "proxy.internal"] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_site_of_ipv6_has_a_whole_48() {
        let of = |text: &str| site(text.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1::");
        assert_ne!(of("2001:db8:1::9"), of("2001:db8:2::9"));
    }

    #[test]
    fn a_subscriber_of_ipv6_has_a_whole_64() {
        let of = |text: &str| subscriber(text.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:2::9"), of("2001:db8:1:2:ffff::1"));
    }
}
