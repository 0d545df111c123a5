//! Every setting, typed and documented. They come from an optional TOML file (`--config` or `ONRUSH_CONFIG`) and from
//! the environment, which wins: `ONRUSH_<SECTION>__<NAME>`, and `DATABASE_URL` / `REDIS_URL` as everybody writes them;
//! a secret may be in a file that `<its variable>_FILE` names (`config/files.rs`).
//! What each is when it is not set and what it may be is in one table (`config/settings.rs`). All faults are told at once,
//! each with what the setting should look like.

mod alipay;
mod amounts;
mod example;
mod files;
mod gateways;
mod limits;
mod names;
mod secrets;
mod settings;
mod stripe;
mod traces;
mod transport;
mod wechat;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Url;
use secrecy::SecretString;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use self::alipay::{Alipay, alipay_merchant};
pub use self::amounts::{AmountMax, amount_max};
pub use self::example::example;
use self::gateways::{Section, read_apart};
pub use self::limits::Limits;
use self::names::COMMON_NAMES;
use self::settings::SETTINGS;
pub use self::stripe::Stripe;
pub use self::traces::TracesConfig;
pub use self::wechat::{ApiV3Key, PlatformKey, WechatPay, merchant_of};
use crate::platform::address::Networks;
use crate::platform::telemetry::LogFormat;

/// What a setting is when it is not set; empty when it must be set.
pub fn default_of(name: &str) -> &'static str {
    SETTINGS.iter().find(|setting| setting.name == name).and_then(|setting| setting.default).unwrap_or_default()
}

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// MySQL, as `mysql://user:password@host:3306/database` (`DATABASE_URL`).
    pub database_url: SecretString,
    /// Redis, as `redis://[:password@]host:6379[/0]` or `rediss://…`; a cluster, by some of its nodes, as
    /// `redis-cluster://[:password@]host:6379,host:6379` or `rediss-cluster://…` (`REDIS_URL`).
    pub redis_url: SecretString,
    /// What every Redis key begins with.
    pub redis_prefix: String,
    /// The HTTP server.
    pub http: Http,
    /// The MySQL pool.
    pub database: Database,
    /// Logins and tokens.
    pub auth: Auth,
    /// Orders.
    pub orders: Orders,
    /// Seckill.
    pub seckill: Seckill,
    /// Payments.
    pub payments: Payments,
    /// The task engine.
    pub engine: EngineConfig,
    /// Requests a minute.
    pub limits: Limits,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub traces: TracesConfig,
    /// The business time zone (reports, birthdays, cron).
    pub time_zone: String,
}

/// `ONRUSH_HTTP__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Address and port to listen on.
    pub listen: String,
    /// Where clients and gateways reach the service, without a trailing slash; callbacks are built on it.
    pub public_url: String,
    /// Origins of the front ends for CORS, comma separated; one of this machine may end with `:*`; empty: none.
    pub cors_origins: String,
    /// Headers that pages of these origins may send, comma separated.
    pub cors_headers: String,
    /// Address and port of a listener of operators alone, who see metrics, the whole readiness and the documentation there.
    pub operations_listen: Option<SocketAddr>,
    /// With this token operators see them on the other listener too.
    pub operations_token: Option<SecretString>,
    /// Everybody sees them on the other listener.
    pub operations_public: bool,
    /// Longest body, in bytes.
    pub body_limit_bytes: usize,
    /// Longest a request may take, in seconds. Long polls and event streams have their own bound.
    pub timeout_s: u64,
    /// Requests under way at once; one more is answered 503 with `Retry-After`.
    pub max_in_flight: usize,
    /// Connections open at once; one more is answered 503 and closed.
    pub max_connections: usize,
    /// Long polls and event streams at once; one more is answered at once, without waiting.
    pub max_waiting: usize,
    /// Those of one account among them; one more is refused.
    pub max_waiting_per_account: usize,
    /// After SIGTERM the process says for so many seconds that it is not ready, and serves all the same.
    pub leave_s: u64,
    /// Longest the process takes to stop after that, in seconds.
    pub drain_s: u64,
    /// Networks of the proxies in front, whose word about a client's address (`X-Forwarded-For`) is taken.
    pub trusted_proxies: Networks,
}

/// `ONRUSH_DATABASE__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Connections of the pool.
    pub pool_size: u32,
    /// Longest wait for one of them, in milliseconds; after it the request is answered 503.
    pub acquire_timeout_ms: u64,
    /// Longest that a statement may take, in milliseconds; the server ends it, or, where it says nothing, its connection is
    /// given up two seconds later. `check`, reports and migrations have bounds of their own.
    pub statement_timeout_ms: u64,
}

/// `ONRUSH_AUTH__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Signs access tokens (HS256): at least 32 bytes, for example from `openssl rand -base64 48`. Not needed with a key file.
    pub jwt_secret: SecretString,
    /// PEM file with an RSA (RS256) or Ed25519 (EdDSA) private key, instead of the secret.
    pub jwt_private_key_file: Option<PathBuf>,
    /// PEM file with the matching public key.
    pub jwt_public_key_file: Option<PathBuf>,
    /// Further secrets whose tokens are taken (HS256), comma separated: those of before, and of after, a rotation.
    pub jwt_verify_secrets: SecretString,
    /// PEM files with further public keys whose tokens are taken, comma separated.
    pub jwt_verify_key_files: String,
    /// Life of an access token, in seconds.
    pub access_token_s: u64,
    /// Life of a refresh token, in seconds.
    pub refresh_token_s: u64,
    /// Failed logins of one phone number from one address, or one known device, in [`Auth::login_window_s`] before the
    /// next one is slowed down.
    pub login_attempts: u32,
    /// Failed logins of one phone number in a day, wherever they come from, before the next one is slowed down.
    pub login_attempts_per_number: u32,
    /// Failed logins from one address in the window before it must wait.
    pub login_attempts_per_address: u32,
    /// The window, in seconds.
    pub login_window_s: u64,
}

/// `ONRUSH_ORDERS__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Orders of one user that wait for their payment, at most.
    pub max_unpaid: i64,
    /// Of those, so many may have the same course.
    pub max_unpaid_per_course: i64,
}

/// `ONRUSH_SECKILL__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seckill {
    /// An instance that saw sold out answers so from memory for this long, in milliseconds (at most 200).
    pub sold_out_memory_ms: u64,
    /// Submissions to one activity of one user in [`Seckill::submissions_window_s`] at one process; one more is refused.
    pub submissions_max: u32,
    /// The window, in seconds.
    pub submissions_window_s: u64,
    /// Submissions placed in one transaction.
    pub batch_size: usize,
    /// Transactions of one activity under way at once in one process.
    pub batches_in_flight: usize,
    /// Milliseconds between two looks for units that must go back on sale.
    pub tick_ms: u64,
}

/// `ONRUSH_PAYMENTS__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payments {
    /// Switches the sandbox gateway on. `serve` does so only with `--sandbox` beside it.
    pub sandbox: bool,
    /// The secret that we and the sandbox sign with.
    pub sandbox_secret: SecretString,
    /// Where the sandbox gateway is; empty: in this process, at `http.public_url`.
    pub sandbox_url: String,
    /// WeChat Pay, when it is on.
    #[serde(default, deserialize_with = "read_apart")]
    pub wechat: Option<Arc<WechatPay>>,
    /// The shop's page that a buyer's browser is led to when it comes back from a gateway.
    #[serde(deserialize_with = "page")]
    pub return_page: Option<Url>,
    /// Longest call to a gateway, in milliseconds.
    pub gateway_timeout_ms: u64,
    /// Calls in a row without an answer after which a gateway is left alone for a while.
    pub gateway_failures_max: u32,
    /// For so long, in milliseconds; then one call finds out whether it answers again.
    pub gateway_pause_ms: u64,
    /// A person's request asks a gateway about a payment once in so long, in milliseconds; 0: each request does.
    pub ask_again_after_ms: u64,
    /// A started payment is asked about for the first time after this long, in seconds; then at growing intervals.
    pub query_after_s: u64,
    /// Lines of bills are kept for so many days.
    pub bill_lines_kept_days: u16,
    /// Alipay, when it is on.
    #[serde(default, deserialize_with = "read_apart")]
    pub alipay: Option<Arc<Alipay>>,
    /// Stripe, when it is on.
    #[serde(default, deserialize_with = "read_apart")]
    pub stripe: Option<Arc<Stripe>>,
}

/// `ONRUSH_ENGINE__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// How long a finished task's result is kept, in seconds.
    pub result_ttl_s: u64,
    /// A task whose worker gave no sign for this long is taken over, in milliseconds.
    pub lease_ms: u64,
    /// Deliveries of one task before it goes to the dead letters.
    pub max_deliveries: u32,
}

/// `ONRUSH_LOG__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `pretty` or `json`.
    pub format: LogFormat,
    /// A `tracing` filter, such as `info,sqlx=warn`.
    pub filter: String,
}

impl EngineConfig {
    /// As the engine takes them.
    pub fn settings(&self) -> crate::engine::EngineSettings {
        crate::engine::EngineSettings {
            result_ttl: Duration::from_secs(self.result_ttl_s),
            lease: Duration::from_millis(self.lease_ms),
            max_deliveries: self.max_deliveries,
        }
    }
}

impl Payments {
    /// The gateways for real money that are on, by name.
    pub fn real_gateways(&self) -> Vec<&'static str> {
        let on =
            [("alipay", self.alipay.is_some()), ("wechat", self.wechat.is_some()), ("stripe", self.stripe.is_some())];
        on.into_iter().filter_map(|(name, is_on)| is_on.then_some(name)).collect()
    }
}

/// The address of a page; empty: none.
fn page<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { Url::parse(&text).map(Some).map_err(D::Error::custom) }
}

impl Config {
    /// Reads the settings. `overrides` are what the command line or `onrush dev` set, as (`section.name`, value).
    pub fn load(file: Option<&Path>, overrides: &[(&str, String)]) -> anyhow::Result<Self> {
        Self::load_over(&[], file, overrides)
    }

    /// As [`Config::load`], with other defaults: what the file and the environment say wins.
    pub fn load_over(
        defaults: &[(&str, &str)],
        file: Option<&Path>,
        overrides: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let mut builder = config::Config::builder();
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                builder = builder.set_default(setting.name, default).context("setting the defaults")?;
            }
        }
        for (name, value) in defaults {
            builder = builder.set_default(*name, *value).with_context(|| format!("setting {name}"))?;
        }
        if let Some(file) = file {
            builder = builder.add_source(config::File::from(file).format(config::FileFormat::Toml));
        }
        let (environment, mut faults) = environment();
        // Text stays text: numbers and booleans are read out of it where a setting is one.
        builder = builder.add_source(
            config::Environment::with_prefix("ONRUSH")
                .prefix_separator("_")
                .separator("__")
                .ignore_empty(true)
                .source(Some(environment.clone())),
        );
        for (name, variable) in COMMON_NAMES {
            if let Some(value) = environment.get(*variable).filter(|value| !value.is_empty()) {
                builder = builder.set_override(*name, value.clone()).context("reading the environment")?;
            }
        }
        for (name, value) in overrides {
            builder = builder.set_override(*name, value.clone()).with_context(|| format!("setting {name}"))?;
        }
        let raw = builder.build().context("reading the settings")?;
        faults.extend(settings::faults(&raw, file)?);
        let alipay = Section::if_on(&raw, "payments.alipay", &mut faults).and_then(Alipay::read);
        let wechat = Section::if_on(&raw, "payments.wechat", &mut faults).and_then(WechatPay::read);
        let stripe = Section::if_on(&raw, "payments.stripe", &mut faults).and_then(Stripe::read);
        if !faults.is_empty() {
            bail!("the settings are not usable:\n  - {}", faults.join("\n  - "));
        }
        let mut config: Self = raw.try_deserialize().context("reading the settings")?;
        config.payments.alipay = alipay.map(Arc::new);
        config.payments.wechat = wechat.map(Arc::new);
        config.payments.stripe = stripe.map(Arc::new);
        Ok(config)
    }

    /// How long a request may take.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.http.timeout_s)
    }
}

/// Variables that begin like settings and are not: the command line reads them.
const NOT_SETTINGS: &[&str] = &[
    "ONRUSH_CONFIG",
    "ONRUSH_TEST_DATABASE_URL",
    "ONRUSH_TEST_REDIS",
    "ONRUSH_TEST_TLS",
    "ONRUSH_TEST_DELAY_MS",
    "ONRUSH_TEST_GALERA",
];

/// The variables that may be settings, and what cannot be read of them.
fn environment() -> (HashMap<String, String>, Vec<String>) {
    let (mut known, mut faults) = (HashMap::new(), Vec::new());
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        let said = files::secret_of(&name).unwrap_or(&name);
        let common = COMMON_NAMES.iter().any(|(_, variable)| *variable == said);
        if !common && (!name.starts_with("ONRUSH_") || NOT_SETTINGS.contains(&name.as_str())) {
            continue;
        }
        match value.into_string() {
            Ok(value) => drop(known.insert(name, value)),
            Err(_) => faults.push(format!("{name} must be UTF-8 text")),
        }
    }
    files::read(&mut known, &mut faults);
    (known, faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "9f2b7c1e5a8d4036b1c9e7f20a6d8354";

    fn overrides() -> Vec<(&'static str, String)> {
        vec![
            ("database_url", "mysql://u@localhost/db".to_owned()),
            ("redis_url", "redis://localhost".to_owned()),
            ("auth.jwt_secret", SECRET.to_owned()),
        ]
    }

    fn with(more: &[(&'static str, &str)]) -> anyhow::Result<Config> {
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Config::load(None, &overrides().into_iter().chain(more).collect::<Vec<_>>())
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = with(&[]).unwrap();
        assert_eq!(config.orders.pay_deadline_s, 1800);
        assert_eq!((config.auth.jwt_private_key_file, config.log.format), (None, LogFormat::Pretty));
    }

    #[test]
    fn text_from_the_environment_becomes_numbers_and_booleans() {
        let config = with(&[("http.timeout_s", "7"), ("payments.sandbox", "false")]).unwrap();
        assert_eq!(config.http.timeout_s, 7);
        assert!(!config.payments.sandbox);
    }

    #[test]
    fn faults_of_every_kind_come_in_one_report() {
        let bad = [
            ("database_url", "postgres://here"),
            ("http.listen", "nonsense"),
            ("http.timeout_s", "abc"),
            ("http.drain_s", "1.5"),
            ("http.trusted_proxies", "0.0.0.0/0"),
            ("http.trust_forwarded_for", "true"),
            ("payments.sandbox", "perhaps"),
            ("http.timout_s", "3"),
            ("surprise.party", "3"),
            ("log.format", "xml"),
            ("log.filter", "info,sqlx=loud"),
            ("database.pool_size", "0"),
            ("time_zone", "Mars/Olympus"),
        ];
        let bad: Vec<_> = bad.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let message = Config::load(None, &bad).unwrap_err().to_string();
        let expected = [
            "DATABASE_URL must be the database's address, such as mysql://user:password@host:3306/database",
            "REDIS_URL is not set; it must be Redis's address, such as redis://:password@host:6379/0 or redis-cluster://:password@host:6379,host:6379",
            "ONRUSH_AUTH__JWT_SECRET is not set; it must be at least 32 bytes, such as `openssl rand -base64 48` makes",
            "ONRUSH_HTTP__LISTEN must be an address and a port, such as 0.0.0.0:8080",
            "ONRUSH_HTTP__TIMEOUT_S must be a whole number from 1 to 300, such as 10",
            "ONRUSH_HTTP__DRAIN_S must be a whole number from 1 to 600, such as 25",
            "ONRUSH_HTTP__TRUSTED_PROXIES must be networks, and not everybody, such as 10.0.0.0/8,fd00::/8",
            "ONRUSH_HTTP__TRUST_FORWARDED_FOR is not a setting any more: take it out, and for `true` name the proxies' networks in ONRUSH_HTTP__TRUSTED_PROXIES, such as 10.0.0.0/8",
            "ONRUSH_PAYMENTS__SANDBOX must be true or false",
            "ONRUSH_HTTP__TIMOUT_S is not a setting; did you mean ONRUSH_HTTP__TIMEOUT_S?",
            "ONRUSH_SURPRISE__PARTY is not a setting",
            "ONRUSH_LOG__FORMAT must be one of: pretty, json",
            "ONRUSH_LOG__FILTER must be a filter of log lines, such as info,sqlx=warn",
            "ONRUSH_DATABASE__POOL_SIZE must be a whole number from 2 to 1000, such as 20",
            "ONRUSH_TIME_ZONE must be a time zone's IANA name, such as Asia/Shanghai",
        ];
        for line in expected {
            assert!(message.contains(&format!("- {line}")), "no {line:?} in {message}");
        }
        assert_eq!(message.lines().count(), expected.len() + 1, "{message}");
    }

    #[test]
    fn a_fault_in_a_file_is_named_by_its_place_there_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("onrush.toml");
        std::fs::write(&file, "[http]\ntimeout_s = \"soon\"\ntimeouts = 3\nlisten = [1]\n[log]\nformat = 5\n").unwrap();
        let message = Config::load(Some(&file), &overrides()).unwrap_err().to_string();
        for (variable, place) in [
            ("ONRUSH_HTTP__TIMEOUT_S", "http.timeout_s"),
            ("ONRUSH_HTTP__TIMEOUTS", "http.timeouts"),
            ("ONRUSH_HTTP__LISTEN", "http.listen"),
            ("ONRUSH_LOG__FORMAT", "log.format"),
        ] {
            let named = format!("- {variable} ({place} in {})", file.display());
            assert!(message.contains(&named), "no {named:?} in {message}");
        }
        assert_eq!(message.lines().count(), 5, "{message}");
    }

    #[test]
    fn a_secret_or_a_pair_of_key_files_is_needed() {
        let keys = [
            ("auth.jwt_secret", ""),
            ("auth.jwt_private_key_file", "a.pem"),
            ("auth.jwt_public_key_file", "Cargo.toml"),
        ];
        let no_keys = with(&keys).unwrap_err().to_string();
        assert!(no_keys.contains("PRIVATE_KEY_FILE must be the path of a PEM file: a.pem: "), "{no_keys}");
        let half = with(&keys[..2]).unwrap_err().to_string();
        assert!(half.contains("ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE"), "{half}");
        let short = with(&[("auth.jwt_secret", "hush, this is secret")]).unwrap_err().to_string();
        assert!(short.contains("JWT_SECRET must be at least 32 bytes") && !short.contains("hush"), "{short}");
        let weak = with(&[("auth.jwt_secret", "0123456789abcdef0123456789abcdef")]).unwrap_err().to_string();
        assert!(
            weak.contains("ONRUSH_AUTH__JWT_SECRET is weak: it repeats itself") && !weak.contains("0123"),
            "{weak}"
        );
        let open = with(&[("payments.sandbox", "true")]).unwrap_err().to_string();
        assert!(open.contains("ONRUSH_PAYMENTS__SANDBOX_SECRET must be at least 16 bytes"), "{open}");
    }

    #[test]
    fn further_keys_are_read_and_their_faults_told_with_the_others() {
        let other = "b7d01e6a4c93f2586e0a1d7bc4f93825";
        let list = format!("{other}, {SECRET}");
        let both = with(&[("auth.jwt_verify_secrets", &list)]).unwrap();
        assert_eq!(
            both.auth.tokens(&both.auth.token_keys().unwrap()).unwrap().key_ids().len(),
            2,
            "the one that signs is there once"
        );
        assert!(!format!("{both:?}").contains(other));
        let told = with(&[
            ("auth.jwt_verify_secrets", "short,change-me-change-me-before-production"),
            ("auth.jwt_verify_key_files", "none.pem,Cargo.toml"),
        ]);
        let told = told.unwrap_err().to_string();
        for line in [
            "ONRUSH_AUTH__JWT_VERIFY_SECRETS has a weak secret at place 1: it must be at least 32 bytes",
            "ONRUSH_AUTH__JWT_VERIFY_SECRETS has a weak secret at place 2: it has the words of a placeholder",
            "ONRUSH_AUTH__JWT_VERIFY_KEY_FILES must be the paths of PEM files with public keys, comma separated: none.pem",
            "comma separated: Cargo.toml: the public key file holds neither",
        ] {
            assert!(told.contains(line), "no {line:?} in {told}");
        }
        assert_eq!(told.lines().count(), 5, "{told}");
    }

    #[test]
    fn an_address_that_leads_nowhere_is_told_with_the_others() {
        let message = with(&[
            ("database_url", "mysql://127.0.0.1:notaport/x"),
            ("redis_url", "redis-cluster://"),
            ("http.public_url", "http://a b"),
        ]);
        let message = message.unwrap_err().to_string();
        assert_eq!(message.lines().count(), 4, "{message}");
        assert!(with(&[("database_url", "mysql://root@127.0.0.1:3306")]).is_err(), "no database");
        assert!(with(&[("redis_url", "rediss-cluster://:secret@a:1,b:2")]).is_ok());
    }

    #[test]
    fn the_page_behind_a_payment_is_one_that_a_browser_can_be_led_to() {
        for good in [
            "https://shop.example.com",
            "HTTPS://SHOP.example.com",
            "http://localhost:5173/paid?lang=zh#/orders",
            "https://商店.example/付款",
        ] {
            let page = with(&[("payments.return_page", good)]).unwrap().payments.return_page;
            assert!(page.is_some_and(|page| page.has_host()), "{good}");
        }
        assert_eq!(with(&[]).unwrap().payments.return_page, None);
        for bad in [
            "/paid",
            "//shop.example.com/paid",
            "shop.example.com/paid",
            "javascript:alert(1)",
            "ftp://shop.example.com/paid",
            "https://",
            "https:///paid",
            "https:shop.example.com",
            "https://shop.example.com/pa\r\nid",
            "https://shop.example.com/my page",
            "https://shop.example.com\\@evil.example.com/",
            "https://someone@shop.example.com/",
            "https://shop.example.com/paid?status=paid",
            "https://shop.example.com/paid?a=1&order%5Fno=1",
        ] {
            let told = with(&[("payments.return_page", bad), ("http.drain_s", "0")]).unwrap_err().to_string();
            assert!(
                told.contains("- ONRUSH_PAYMENTS__RETURN_PAGE must be the http or https address of a page"),
                "{bad}: {told}"
            );
            assert_eq!(told.lines().count(), 3, "all faults are told at once: {told}");
        }
    }

    #[test]
    fn secrets_do_not_print_themselves() {
        assert!(!format!("{:?}", with(&[]).unwrap()).contains(SECRET));
    }
}
