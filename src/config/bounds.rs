//! What each setting may be. Every fault is named, with what the setting should look like.

use secrecy::ExposeSecret;

use super::{Config, report};

/// The faults found so far.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn must(&mut self, holds: bool, text: &str) {
        if !holds {
            self.0.push(text.to_owned());
        }
    }
}

impl Config {
    /// Refuses settings that the service cannot run with, all of them at once.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        let mut faults = Faults::default();
        self.validate_servers(&mut faults);
        self.validate_http(&mut faults);
        self.validate_auth(&mut faults);
        self.validate_shop(&mut faults);
        self.validate_payments(&mut faults);
        self.validate_engine(&mut faults);
        report(faults.0)
    }

    /// MySQL and Redis.
    fn validate_servers(&self, faults: &mut Faults) {
        let mut must = |holds, text| faults.must(holds, text);
        let database = self.database_url.expose_secret();
        must(
            database.starts_with("mysql://") || database.starts_with("mariadb://"),
            "DATABASE_URL must look like mysql://user:password@host:3306/database",
        );
        let redis = self.redis_url.expose_secret();
        let known = ["redis://", "rediss://", "redis+unix://", "unix://"];
        must(
            known.iter().any(|scheme| redis.starts_with(scheme)),
            "REDIS_URL must look like redis://:password@host:6379/0",
        );
        must(
            !self.redis_prefix.is_empty() && !self.redis_prefix.contains(['{', '}']),
            "ONRUSH_REDIS_PREFIX must not be empty or contain braces",
        );
    }

    /// What is served, and within which bounds.
    fn validate_http(&self, faults: &mut Faults) {
        let mut must = |holds, text| faults.must(holds, text);
        must(
            self.http.listen.parse::<std::net::SocketAddr>().is_ok(),
            "ONRUSH_HTTP__LISTEN must be an address and a port, such as 0.0.0.0:8080",
        );
        must(
            ["http://", "https://"].iter().any(|s| self.http.public_url.starts_with(s))
                && !self.http.public_url.ends_with('/'),
            "ONRUSH_HTTP__PUBLIC_URL must look like https://shop.example.com, without a trailing slash",
        );
        let mut origins = self.http.cors_origins.split(',').map(str::trim).filter(|origin| !origin.is_empty());
        must(
            origins.all(is_origin),
            "ONRUSH_HTTP__CORS_ORIGINS must be origins, such as https://shop.example.com,http://localhost:5173",
        );
        must(
            (1024..=16 << 20).contains(&self.http.body_limit_bytes),
            "ONRUSH_HTTP__BODY_LIMIT_BYTES must be 1024..16777216",
        );
        must((1..=300).contains(&self.http.timeout_s), "ONRUSH_HTTP__TIMEOUT_S must be 1..300");
        must(self.http.max_in_flight >= 1, "ONRUSH_HTTP__MAX_IN_FLIGHT must be at least 1");
        must((1..=1_000_000).contains(&self.http.max_waiting), "ONRUSH_HTTP__MAX_WAITING must be 1..1000000");
        must((1..=600).contains(&self.http.drain_s), "ONRUSH_HTTP__DRAIN_S must be 1..600");
        must((2..=1000).contains(&self.database.pool_size), "ONRUSH_DATABASE__POOL_SIZE must be 2..1000");
        must(
            (1..=60_000).contains(&self.database.acquire_timeout_ms),
            "ONRUSH_DATABASE__ACQUIRE_TIMEOUT_MS must be 1..60000",
        );
    }

    /// Tokens and attempts.
    fn validate_auth(&self, faults: &mut Faults) {
        let mut must = |holds, text| faults.must(holds, text);
        let secret = self.auth.jwt_secret.expose_secret();
        match (&self.auth.jwt_private_key_file, &self.auth.jwt_public_key_file) {
            (None, None) => must(secret.len() >= 32, "ONRUSH_AUTH__JWT_SECRET must have at least 32 bytes"),
            (Some(_), Some(_)) => {}
            _ => must(false, "ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE and ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE go together"),
        }
        must((1..=24 * 3600).contains(&self.auth.access_token_s), "ONRUSH_AUTH__ACCESS_TOKEN_S must be 1..86400");
        must(
            (1..=366 * 24 * 3600).contains(&self.auth.refresh_token_s),
            "ONRUSH_AUTH__REFRESH_TOKEN_S must be 1..31622400",
        );
        must(self.auth.login_attempts >= 1, "ONRUSH_AUTH__LOGIN_ATTEMPTS must be at least 1");
        must(self.auth.login_attempts_per_address >= 1, "ONRUSH_AUTH__LOGIN_ATTEMPTS_PER_ADDRESS must be at least 1");
        must((1..=24 * 3600).contains(&self.auth.login_window_s), "ONRUSH_AUTH__LOGIN_WINDOW_S must be 1..86400");
    }

    /// Orders and seckill.
    fn validate_shop(&self, faults: &mut Faults) {
        let mut must = |holds, text| faults.must(holds, text);
        must(
            (1..=7 * 24 * 3600).contains(&self.orders.pay_deadline_s),
            "ONRUSH_ORDERS__PAY_DEADLINE_S must be 1..604800",
        );
        must(
            (1..=1_000_000).contains(&self.orders.points_per_yuan),
            "ONRUSH_ORDERS__POINTS_PER_YUAN must be 1..1000000",
        );
        must((0..=100).contains(&self.orders.points_max_percent), "ONRUSH_ORDERS__POINTS_MAX_PERCENT must be 0..100");
        must(
            (0..=10_000).contains(&self.orders.points_earned_per_yuan),
            "ONRUSH_ORDERS__POINTS_EARNED_PER_YUAN must be 0..10000",
        );
        must((1..=3600).contains(&self.orders.owed_grace_s), "ONRUSH_ORDERS__OWED_GRACE_S must be 1..3600");
        must((1..=3600).contains(&self.orders.sweep_period_s), "ONRUSH_ORDERS__SWEEP_PERIOD_S must be 1..3600");
        must(self.seckill.sold_out_memory_ms <= 200, "ONRUSH_SECKILL__SOLD_OUT_MEMORY_MS must be at most 200");
        must((1..=1000).contains(&self.seckill.batch_size), "ONRUSH_SECKILL__BATCH_SIZE must be 1..1000");
        must((1..=64).contains(&self.seckill.batches_in_flight), "ONRUSH_SECKILL__BATCHES_IN_FLIGHT must be 1..64");
        must((10..=1000).contains(&self.seckill.tick_ms), "ONRUSH_SECKILL__TICK_MS must be 10..1000");
    }

    /// Gateways.
    fn validate_payments(&self, faults: &mut Faults) {
        let mut must = |holds, text| faults.must(holds, text);
        must(
            (1..=60_000).contains(&self.payments.gateway_timeout_ms),
            "ONRUSH_PAYMENTS__GATEWAY_TIMEOUT_MS must be 1..60000",
        );
        must(
            !self.payments.sandbox || self.payments.sandbox_secret.expose_secret().len() >= 16,
            "ONRUSH_PAYMENTS__SANDBOX_SECRET must have at least 16 bytes while the sandbox is on",
        );
        must((1..=3600).contains(&self.payments.query_after_s), "ONRUSH_PAYMENTS__QUERY_AFTER_S must be 1..3600");
    }

    /// Tasks, and the time they go by.
    fn validate_engine(&self, faults: &mut Faults) {
        let mut must = |holds, text| faults.must(holds, text);
        must(
            (1..=30 * 24 * 3600).contains(&self.engine.result_ttl_s),
            "ONRUSH_ENGINE__RESULT_TTL_S must be 1..2592000",
        );
        must((500..=600_000).contains(&self.engine.lease_ms), "ONRUSH_ENGINE__LEASE_MS must be 500..600000");
        must((1..=100).contains(&self.engine.max_deliveries), "ONRUSH_ENGINE__MAX_DELIVERIES must be 1..100");
        must(
            jiff::tz::TimeZone::get(&self.time_zone).is_ok(),
            "ONRUSH_TIME_ZONE must be an IANA name, such as Asia/Shanghai",
        );
    }
}

/// A scheme and a host, perhaps with a port, and nothing behind it.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ', '*']))
}
