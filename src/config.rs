//! Every setting, typed and documented. They come from an optional TOML file (`--config` or `ONRUSH_CONFIG`) and from
//! the environment, which wins: `ONRUSH_<SECTION>__<NAME>`, and `DATABASE_URL` / `REDIS_URL` as everybody writes them.
//! All faults are told at once, each with what the setting should look like.

mod bounds;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::platform::jwt::TokenKeys;
use crate::platform::telemetry::LogFormat;

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// MySQL, as `mysql://user:password@host:3306/database` (`DATABASE_URL`).
    pub database_url: SecretString,
    /// Redis, as `redis://[:password@]host:6379[/0]` or `rediss://…` (`REDIS_URL`).
    pub redis_url: SecretString,
    /// What every Redis key begins with.
    #[serde(default = "defaults::redis_prefix")]
    pub redis_prefix: String,
    /// The HTTP server.
    #[serde(default)]
    pub http: Http,
    /// The MySQL pool.
    #[serde(default)]
    pub database: Database,
    /// Logins and tokens.
    pub auth: Auth,
    /// Orders.
    #[serde(default)]
    pub orders: Orders,
    /// Seckill.
    #[serde(default)]
    pub seckill: Seckill,
    /// Payments.
    #[serde(default)]
    pub payments: Payments,
    /// The task engine.
    #[serde(default)]
    pub engine: Engine,
    /// Logs.
    #[serde(default)]
    pub log: Log,
    /// The business time zone (reports, birthdays, cron).
    #[serde(default = "defaults::time_zone")]
    pub time_zone: String,
}

/// `ONRUSH_HTTP__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port to listen on.
    pub listen: String,
    /// Where clients and gateways reach the service, without a trailing slash; callbacks are built on it.
    pub public_url: String,
    /// Origins of the front ends for CORS, comma separated; empty: none.
    pub cors_origins: String,
    /// Longest body, in bytes.
    pub body_limit_bytes: usize,
    /// Longest a request may take, in seconds. Long polls and event streams have their own bound.
    pub timeout_s: u64,
    /// Requests under way at once; one more is answered 503 with `Retry-After`.
    pub max_in_flight: usize,
    /// Long polls and event streams at once; one more is answered at once, without waiting.
    pub max_waiting: usize,
    /// Longest the process takes to stop after SIGTERM, in seconds.
    pub drain_s: u64,
    /// Takes the client's address from `X-Forwarded-For` (its last entry). Only behind a proxy that sets it.
    pub trust_forwarded_for: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            public_url: "http://127.0.0.1:8080".to_owned(),
            cors_origins: String::new(),
            body_limit_bytes: 64 * 1024,
            timeout_s: 10,
            max_in_flight: 4096,
            max_waiting: 20_000,
            drain_s: 25,
            trust_forwarded_for: false,
        }
    }
}

/// `ONRUSH_DATABASE__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// Connections of the pool.
    pub pool_size: u32,
    /// Longest wait for one of them, in milliseconds; after it the request is answered 503.
    pub acquire_timeout_ms: u64,
}

impl Default for Database {
    fn default() -> Self {
        Self { pool_size: 20, acquire_timeout_ms: 3000 }
    }
}

/// `ONRUSH_AUTH__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Signs access tokens (HS256): at least 32 bytes, for example from `openssl rand -base64 48`. Not needed with a key file.
    #[serde(default)]
    pub jwt_secret: SecretString,
    /// PEM file with an RSA (RS256) or Ed25519 (EdDSA) private key, instead of the secret.
    #[serde(default)]
    pub jwt_private_key_file: Option<PathBuf>,
    /// PEM file with the matching public key.
    #[serde(default)]
    pub jwt_public_key_file: Option<PathBuf>,
    /// Life of an access token, in seconds.
    #[serde(default = "defaults::access_s")]
    pub access_token_s: u64,
    /// Life of a refresh token, in seconds.
    #[serde(default = "defaults::refresh_s")]
    pub refresh_token_s: u64,
    /// Failed logins of one phone number in [`Auth::login_window_s`] before it must wait.
    #[serde(default = "defaults::login_attempts")]
    pub login_attempts: u32,
    /// Logins and registrations from one address in the window before it must wait.
    #[serde(default = "defaults::login_attempts_per_address")]
    pub login_attempts_per_address: u32,
    /// The window, in seconds.
    #[serde(default = "defaults::login_window_s")]
    pub login_window_s: u64,
}

impl Auth {
    /// The keys for access tokens, read from their files where files are named.
    pub fn token_keys(&self) -> anyhow::Result<TokenKeys> {
        let read =
            |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading the key file {}", path.display()));
        match (&self.jwt_private_key_file, &self.jwt_public_key_file) {
            (Some(private), Some(public)) => Ok(TokenKeys::Pem(read(private)?, read(public)?)),
            _ => Ok(TokenKeys::Secret(self.jwt_secret.expose_secret().as_bytes().to_vec())),
        }
    }
}

/// `ONRUSH_ORDERS__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Orders {
    /// Time to pay an order, in seconds.
    pub pay_deadline_s: u64,
    /// Points for one yuan of discount.
    pub points_per_yuan: i64,
    /// The part of what is left after the coupon that points may pay, in percent.
    pub points_max_percent: i64,
    /// Points earned for each yuan paid.
    pub points_earned_per_yuan: i64,
    /// Work owed for longer than this is driven again, in seconds.
    pub owed_grace_s: u64,
    /// Seconds between two sweeps of due orders.
    pub sweep_period_s: u64,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            pay_deadline_s: 30 * 60,
            points_per_yuan: 100,
            points_max_percent: 50,
            points_earned_per_yuan: 1,
            owed_grace_s: 15,
            sweep_period_s: 10,
        }
    }
}

/// `ONRUSH_SECKILL__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seckill {
    /// An instance that saw sold out answers so from memory for this long, in milliseconds (at most 200).
    pub sold_out_memory_ms: u64,
    /// Submissions placed in one transaction.
    pub batch_size: usize,
    /// Transactions of one activity under way at once in one process.
    pub batches_in_flight: usize,
    /// Milliseconds between two looks for units that must go back on sale.
    pub tick_ms: u64,
}

impl Default for Seckill {
    fn default() -> Self {
        Self { sold_out_memory_ms: 200, batch_size: 512, batches_in_flight: 4, tick_ms: 250 }
    }
}

/// `ONRUSH_PAYMENTS__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Payments {
    /// Switches the sandbox gateway on. `serve` does so only with `--sandbox` beside it.
    pub sandbox: bool,
    /// The secret that we and the sandbox sign with.
    pub sandbox_secret: SecretString,
    /// Where the sandbox gateway is; empty: in this process, at `http.public_url`.
    pub sandbox_url: String,
    /// Longest call to a gateway, in milliseconds.
    pub gateway_timeout_ms: u64,
    /// A started payment is asked about for the first time after this long, in seconds; then at growing intervals.
    pub query_after_s: u64,
}

impl Default for Payments {
    fn default() -> Self {
        Self {
            sandbox: false,
            sandbox_secret: SecretString::default(),
            sandbox_url: String::new(),
            gateway_timeout_ms: 5000,
            query_after_s: 20,
        }
    }
}

/// `ONRUSH_ENGINE__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// How long a finished task's result is kept, in seconds.
    pub result_ttl_s: u64,
    /// A task whose worker gave no sign for this long is taken over, in milliseconds.
    pub lease_ms: u64,
    /// Deliveries of one task before it goes to the dead letters.
    pub max_deliveries: u32,
}

impl Default for Engine {
    fn default() -> Self {
        Self { result_ttl_s: 24 * 3600, lease_ms: 5000, max_deliveries: 5 }
    }
}

/// `ONRUSH_LOG__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `pretty` or `json`.
    pub format: LogFormat,
    /// A `tracing` filter, such as `info,sqlx=warn`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned() }
    }
}

impl Engine {
    /// As the engine takes them.
    pub fn settings(&self) -> crate::engine::Settings {
        crate::engine::Settings {
            result_ttl: Duration::from_secs(self.result_ttl_s),
            lease: Duration::from_millis(self.lease_ms),
            max_deliveries: self.max_deliveries,
        }
    }
}

mod defaults {
    pub fn redis_prefix() -> String {
        "onrush".to_owned()
    }
    pub fn time_zone() -> String {
        "Asia/Shanghai".to_owned()
    }
    pub fn access_s() -> u64 {
        15 * 60
    }
    pub fn refresh_s() -> u64 {
        30 * 24 * 3600
    }
    pub fn login_attempts() -> u32 {
        5
    }
    pub fn login_attempts_per_address() -> u32 {
        60
    }
    pub fn login_window_s() -> u64 {
        300
    }
}

impl Config {
    /// Reads the settings. `overrides` are what the command line or `onrush dev` set, as (`section.name`, value).
    pub fn load(file: Option<&Path>, overrides: &[(&str, String)]) -> anyhow::Result<Self> {
        let mut builder = config::Config::builder();
        if let Some(file) = file {
            builder = builder.add_source(config::File::from(file).format(config::FileFormat::Toml));
        }
        // Text stays text: serde reads numbers and booleans out of it where a setting is one.
        builder = builder.add_source(
            config::Environment::with_prefix("ONRUSH")
                .prefix_separator("_")
                .separator("__")
                .ignore_empty(true)
                .source(Some(std::env::vars().filter(|(name, _)| !NOT_SETTINGS.contains(&name.as_str())).collect())),
        );
        for (name, variable) in [("database_url", "DATABASE_URL"), ("redis_url", "REDIS_URL")] {
            if let Ok(value) = std::env::var(variable) {
                builder = builder.set_override(name, value).context("reading the environment")?;
            }
        }
        for (name, value) in overrides {
            builder = builder.set_override(*name, value.clone()).with_context(|| format!("setting {name}"))?;
        }
        let raw = builder.build().context("reading the settings")?;
        Self::require_present(&raw)?;
        let config: Self = serde_path_to_error::deserialize(raw).map_err(|error| {
            let path = error.path().to_string();
            anyhow::anyhow!("setting {} ({}): {}", path, variable_of(&path), error.into_inner())
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Tells every missing setting at once.
    fn require_present(raw: &config::Config) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        if raw.get_string("database_url").is_err() {
            faults.push("DATABASE_URL is not set; it looks like mysql://user:password@host:3306/database".to_owned());
        }
        if raw.get_string("redis_url").is_err() {
            faults.push("REDIS_URL is not set; it looks like redis://:password@host:6379/0".to_owned());
        }
        if raw.get_string("auth.jwt_secret").is_err() && raw.get_string("auth.jwt_private_key_file").is_err() {
            faults.push(
                "ONRUSH_AUTH__JWT_SECRET is not set; give at least 32 bytes, for example from `openssl rand -base64 48` \
                 (or name key files: ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE and ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE)"
                    .to_owned(),
            );
        }
        report(faults)
    }

    /// How long a request may take.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.http.timeout_s)
    }
}

/// Variables that begin like settings and are not: the command line reads them.
const NOT_SETTINGS: &[&str] = &["ONRUSH_CONFIG", "ONRUSH_TEST_DATABASE_URL"];

fn variable_of(path: &str) -> String {
    format!("ONRUSH_{}", path.to_uppercase().replace('.', "__"))
}

fn report(faults: Vec<String>) -> anyhow::Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    bail!("the settings are not usable:\n  - {}", faults.join("\n  - "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides() -> Vec<(&'static str, String)> {
        vec![
            ("database_url", "mysql://u@localhost/db".to_owned()),
            ("redis_url", "redis://localhost".to_owned()),
            ("auth.jwt_secret", "0123456789abcdef0123456789abcdef".to_owned()),
        ]
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = Config::load(None, &overrides()).unwrap();
        assert_eq!(config.orders.pay_deadline_s, 1800);
    }

    #[test]
    fn text_from_the_environment_becomes_numbers_and_booleans() {
        let mut all = overrides();
        all.push(("http.timeout_s", "7".to_owned()));
        all.push(("http.trust_forwarded_for", "true".to_owned()));
        let config = Config::load(None, &all).unwrap();
        assert_eq!(config.http.timeout_s, 7);
        assert!(config.http.trust_forwarded_for);
    }

    #[test]
    fn every_bad_setting_is_named_with_what_it_should_look_like() {
        let mut all = overrides();
        all.push(("http.listen", "nonsense".to_owned()));
        all.push(("database.pool_size", "0".to_owned()));
        let message = Config::load(None, &all).unwrap_err().to_string();
        assert!(message.contains("ONRUSH_HTTP__LISTEN") && message.contains("0.0.0.0:8080"), "{message}");
        assert!(message.contains("ONRUSH_DATABASE__POOL_SIZE"), "{message}");
    }

    #[test]
    fn an_unknown_or_mistyped_setting_is_named() {
        let mut all = overrides();
        all.push(("http.timeout_s", "soon".to_owned()));
        let message = Config::load(None, &all).unwrap_err().to_string();
        assert!(message.contains("ONRUSH_HTTP__TIMEOUT_S"), "{message}");
    }

    #[test]
    fn secrets_do_not_print_themselves() {
        let config = Config::load(None, &overrides()).unwrap();
        assert!(!format!("{config:?}").contains("0123456789abcdef"));
    }
}
