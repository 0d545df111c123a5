//! Whether what is said to MySQL and Redis can be read on its way.

use std::net::IpAddr;

use secrecy::ExposeSecret;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use super::Config;

impl Config {
    /// What is open to who listens on the network, a sentence each: for a warning at the start. A socket and this machine
    /// itself are no network.
    pub fn open_connections(&self) -> Vec<String> {
        [mysql(self.database_url.expose_secret()), redis(self.redis_url.expose_secret())]
            .into_iter()
            .flatten()
            .collect()
    }
}

fn mysql(url: &str) -> Option<String> {
    let address: MySqlConnectOptions = url.parse().ok()?;
    let host = address.get_host();
    if address.get_socket().is_some() || is_here(host) {
        return None;
    }
    match address.get_ssl_mode() {
        MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity => None,
        MySqlSslMode::Required => Some(format!(
            "the connection to MySQL at {host} is encrypted, and whoever answers there is believed: name the authority \
             that signs its certificate (DATABASE_URL with ?ssl-mode=VERIFY_IDENTITY&ssl-ca=/path/ca.pem)"
        )),
        MySqlSslMode::Preferred | MySqlSslMode::Disabled => Some(format!(
            "the connection to MySQL at {host} may be in plain text: whoever listens on the network reads accounts and \
             orders (DATABASE_URL with ?ssl-mode=VERIFY_IDENTITY&ssl-ca=/path/ca.pem, or ?ssl-mode=REQUIRED at least)"
        )),
    }
}

fn redis(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let nodes = rest.rsplit_once('@').map_or(rest, |(_, nodes)| nodes);
    let nodes = nodes.split(['/', '?']).next().unwrap_or_default();
    let remote: Vec<&str> = nodes.split(',').map(host_of).filter(|host| !is_here(host)).collect();
    let plain = matches!(scheme, "redis" | "valkey" | "redis-cluster");
    (plain && !remote.is_empty()).then(|| {
        format!(
            "the connection to Redis at {} is in plain text: whoever listens on the network reads its password and the \
             queues (REDIS_URL with rediss:// or rediss-cluster://)",
            remote.join(", ")
        )
    })
}

fn host_of(node: &str) -> &str {
    match node.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => node.rsplit_once(':').map_or(node, |(host, _)| host),
    }
}

/// Whether the host is this machine.
fn is_here(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.is_empty()
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mysql_over_the_network_is_told_unless_its_identity_is_verified() {
        for quiet in [
            "mysql://u@localhost/db",
            "mysql://u@127.0.0.1:3306/db",
            "mysql://u@[::1]:3306/db",
            "mysql://u@ignored/db?socket=/run/mysqld/mysqld.sock",
            "mysql://u:p@db.internal/db?ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem",
            "mysql://u:p@db.internal/db?ssl-mode=VERIFY_CA&ssl-ca=/ca.pem",
        ] {
            assert_eq!(mysql(quiet), None, "{quiet}");
        }
        for (loud, word) in [
            ("mysql://u:hush@db.internal/db", "plain text"),
            ("mysql://u:hush@10.0.0.7:3306/db?ssl-mode=DISABLED", "plain text"),
            ("mariadb://u:hush@db.internal/db?ssl-mode=PREFERRED", "plain text"),
            ("mysql://u:hush@db.internal/db?ssl-mode=REQUIRED", "believed"),
        ] {
            let told = mysql(loud).unwrap_or_else(|| panic!("nothing is told of {loud}"));
            assert!(told.contains(word) && !told.contains("hush"), "{told}");
        }
    }

    #[test]
    fn redis_over_the_network_is_told_unless_it_speaks_tls() {
        for quiet in [
            "redis://127.0.0.1:6379/0",
            "redis://:p@localhost",
            "redis://[::1]:6379",
            "redis+unix:///run/redis.sock",
            "rediss://:p@cache.internal:6379/0",
            "rediss-cluster://:p@a:1,b:2",
            "redis-cluster://127.0.0.1:1,127.0.0.1:2",
        ] {
            assert_eq!(redis(quiet), None, "{quiet}");
        }
        for (loud, host) in [
            ("redis://:hush@cache.internal:6379/0", "cache.internal"),
            ("redis://[2001:db8::7]:6379", "2001:db8::7"),
            ("redis-cluster://:hush@a:1,b:2", "a, b"),
        ] {
            let told = redis(loud).unwrap_or_else(|| panic!("nothing is told of {loud}"));
            assert!(told.contains(host) && !told.contains("hush"), "{told}");
        }
    }
}
