//! Every setting in one table: its name, what it is when it is not set, and what it may be. The messages about faults are
//! made of it, and a test holds the table of docs/OPERATIONS.md against it.

use std::net::SocketAddr;
use std::path::Path;

use axum::http::HeaderName;
use config::{Source, Value};
use sqlx::mysql::MySqlConnectOptions;

use super::names::{COMMON_NAMES, variable_of};
use super::secrets;
use crate::platform::address::Networks;
use crate::platform::{day, redis, telemetry};

/// A setting.
pub(super) struct Setting {
    /// `section.name`.
    pub name: &'static str,
    /// As text; none: it must be set, or may stay absent.
    pub default: Option<&'static str>,
    /// Whether it, or a part of it, is a secret: it may come from a file then (`files.rs`).
    pub is_secret: bool,
    form: Form,
}

/// What a setting may be.
enum Form {
    /// A whole number between these.
    Whole(u64, u64),
    /// `true` or `false`.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text of which this holds: what it is called, an example, and the test.
    Text(&'static str, &'static str, fn(&str) -> bool),
    /// Text that others decide about, and what it is called.
    Any(&'static str),
}

use Form::{Any, Flag, OneOf, Text, Whole};

const fn set(name: &'static str, default: &'static str, form: Form) -> Setting {
    Setting { name, default: Some(default), is_secret: false, form }
}
const fn absent(name: &'static str, form: Form) -> Setting {
    Setting { name, default: None, is_secret: false, form }
}
const fn secret(setting: Setting) -> Setting {
    Setting { is_secret: true, ..setting }
}

/// All of them.
pub(super) const SETTINGS: &[Setting] = &[
    secret(absent(
        "database_url",
        Text("the database's address", "mysql://user:password@host:3306/database", is_mysql),
    )),
    secret(absent(
        "redis_url",
        Text(
            "Redis's address",
            "redis://:password@host:6379/0 or redis-cluster://:password@host:6379,host:6379",
            redis::is_address,
        ),
    )),
    set("redis_prefix", "onrush", Text("text without braces", "onrush", is_prefix)),
    set("time_zone", "Asia/Shanghai", Text("a time zone's IANA name", "Asia/Shanghai", |t| day::zone(t).is_ok())),
    set("http.listen", "127.0.0.1:8080", Text("an address and a port", "0.0.0.0:8080", is_socket_address)),
    set("http.public_url", "http://127.0.0.1:8080", Text(URL, "https://shop.example.com", is_url)),
    set(
        "http.cors_origins",
        "",
        Text(
            "origins, in one text and separated by commas",
            "https://shop.example.com,http://localhost:5173",
            are_origins,
        ),
    ),
    set(
        "http.cors_headers",
        "authorization,content-type,idempotency-key,x-request-id,traceparent,tracestate,baggage,x-requested-with,\
         accept-language,cache-control,if-none-match,last-event-id",
        Text("names of headers", "authorization,content-type", are_headers),
    ),
    absent("http.operations_listen", Text("an address and a port", "127.0.0.1:9090", is_socket_address)),
    secret(absent(
        "http.operations_token",
        Text("16 or more visible ASCII characters", "8d3b6f0c1e5a4972b8c04d6e", |t| t.len() >= 16 && is_visible(t)),
    )),
    set("http.operations_public", "false", Flag),
    set("http.body_limit_bytes", "65536", Whole(1024, 1 << 20)),
    set("http.timeout_s", "10", Whole(1, 300)),
    set("http.max_in_flight", "4096", Whole(1, 1_000_000)),
    set("http.max_connections", "50000", Whole(16, 1_000_000)),
    set("http.max_waiting", "20000", Whole(1, 1_000_000)),
    set("http.max_waiting_per_account", "6", Whole(1, 1000)),
    set("http.leave_s", "0", Whole(0, 600)),
    set("http.drain_s", "25", Whole(1, 600)),
    set(
        "http.trusted_proxies",
        "",
        Text("networks, and not everybody", "10.0.0.0/8,fd00::/8", |t| t.parse::<Networks>().is_ok()),
    ),
    set("database.pool_size", "20", Whole(2, 1000)),
    set("database.acquire_timeout_ms", "3000", Whole(1, 60_000)),
    set("database.statement_timeout_ms", "15000", Whole(100, 600_000)),
    secret(set("auth.jwt_secret", "", Any("at least 32 bytes"))),
    absent("auth.jwt_private_key_file", Any("the path of a PEM file")),
    absent("auth.jwt_public_key_file", Any("the path of a PEM file")),
    secret(set("auth.jwt_verify_secrets", "", Any("secrets of at least 32 bytes each, comma separated"))),
    set("auth.jwt_verify_key_files", "", Any("the paths of PEM files with public keys, comma separated")),
    set("auth.access_token_s", "900", Whole(1, 86_400)),
    set("auth.refresh_token_s", "2592000", Whole(1, 31_622_400)),
    set("auth.login_attempts", "5", Whole(1, 1_000_000)),
    set("auth.login_attempts_per_number", "30", Whole(1, 1_000_000)),
    set("auth.login_attempts_per_address", "60", Whole(1, 1_000_000)),
    set("auth.login_window_s", "300", Whole(1, 86_400)),
    set("orders.pay_deadline_s", "1800", Whole(1, 604_800)),
    set("orders.points_per_yuan", "100", Whole(1, 1_000_000)),
    set("orders.points_max_percent", "50", Whole(0, 100)),
    set("orders.points_earned_per_yuan", "1", Whole(0, 10_000)),
    set("orders.owed_grace_s", "15", Whole(1, 3600)),
    set("orders.sweep_period_s", "10", Whole(1, 3600)),
    set("orders.max_unpaid", "200", Whole(1, 10_000)),
    set("orders.max_unpaid_per_course", "10", Whole(1, 1000)),
    set("seckill.sold_out_memory_ms", "200", Whole(0, 200)),
    set("seckill.submissions_max", "30", Whole(1, 60_000)),
    set("seckill.submissions_window_s", "10", Whole(1, 3600)),
    set("seckill.batch_size", "512", Whole(1, 1000)),
    set("seckill.batches_in_flight", "4", Whole(1, 64)),
    set("seckill.tick_ms", "250", Whole(10, 1000)),
    set("payments.sandbox", "false", Flag),
    secret(set("payments.sandbox_secret", "", Any("at least 16 bytes"))),
    set("payments.sandbox_url", "", Text(URL, "http://sandbox.internal:8080", |t| t.is_empty() || is_url(t))),
    set(
        "payments.return_page",
        "",
        Text(
            "the http or https address of a page, without a user, order_no and status",
            "https://shop.example.com/paid?lang=zh",
            |t| t.is_empty() || is_page(t),
        ),
    ),
    set("payments.gateway_timeout_ms", "5000", Whole(1, 60_000)),
    set("payments.gateway_failures_max", "10", Whole(1, 1000)),
    set("payments.gateway_pause_ms", "5000", Whole(100, 600_000)),
    set("payments.ask_again_after_ms", "3000", Whole(0, 60_000)),
    set("payments.query_after_s", "20", Whole(1, 3600)),
    // A person may fetch the bills of 366 days, and their lines may be on days around them.
    set("payments.bill_lines_kept_days", "400", Whole(400, 36_500)),
    absent("payments.wechat.mchid", Text("WeChat Pay's number of the merchant", "1900000109", is_digits)),
    absent(
        "payments.wechat.appid",
        Text("the application that is bound to the merchant", "wxd678efh567hg6787", is_word),
    ),
    absent(
        "payments.wechat.serial_no",
        Text("the serial number of the merchant's certificate", "408B07E79B8269FE", is_hex),
    ),
    absent("payments.wechat.private_key_file", Any("the path of the merchant's private key (`apiclient_key.pem`)")),
    absent("payments.wechat.api_v3_key_file", Any("the path of a file with the 32 bytes of the APIv3 key")),
    absent(
        "payments.wechat.platform_keys",
        Any("WeChat Pay's keys by comma: `PUB_KEY_ID_…=path` of a public key, or the path of a certificate"),
    ),
    set(
        "payments.wechat.base_url",
        "https://api.mch.weixin.qq.com",
        Text(URL, "https://api2.mch.weixin.qq.com", is_url),
    ),
    absent("payments.alipay.app_id", Text("the application's number", "2021000000000001", is_digits)),
    absent("payments.alipay.seller_id", Text("the number of the account that is paid", "2088000000000001", is_digits)),
    absent("payments.alipay.private_key_file", Any("the path of a file with the application's private key")),
    absent("payments.alipay.public_key_files", Any("paths of files with Alipay's public keys, comma separated")),
    set(
        "payments.alipay.base_url",
        "https://openapi.alipay.com/gateway.do",
        Text(URL, "https://openapi.alipay.com/gateway.do", is_url),
    ),
    absent("payments.stripe.secret_key_file", Any("the path of a file with Stripe's secret key")),
    absent("payments.stripe.webhook_secret_files", Any("the paths of files with the webhook's secrets, by comma")),
    set("payments.stripe.base_url", "https://api.stripe.com", Text(URL, "https://api.stripe.com", is_url)),
    set("engine.result_ttl_s", "86400", Whole(1, 2_592_000)),
    set("engine.lease_ms", "5000", Whole(500, 600_000)),
    set("engine.max_deliveries", "5", Whole(1, 100)),
    set("limits.in_flight_per_account", "16", Whole(0, 10_000)),
    set("limits.register_per_address", "120", Whole(0, 10_000_000)),
    set("limits.refresh_per_address", "3000", Whole(0, 10_000_000)),
    set("limits.quote_per_account", "240", Whole(0, 10_000_000)),
    set("limits.quote_per_address", "6000", Whole(0, 10_000_000)),
    set("limits.order_per_account", "60", Whole(0, 10_000_000)),
    set("limits.order_per_address", "1200", Whole(0, 10_000_000)),
    set("limits.pay_per_account", "60", Whole(0, 10_000_000)),
    set("limits.pay_per_address", "1200", Whole(0, 10_000_000)),
    set("limits.claim_per_account", "60", Whole(0, 10_000_000)),
    set("limits.claim_per_address", "3000", Whole(0, 10_000_000)),
    set("limits.submit_per_address", "12000", Whole(0, 10_000_000)),
    set("limits.poll_per_account", "1200", Whole(0, 10_000_000)),
    set("limits.poll_per_address", "120000", Whole(0, 10_000_000)),
    set("log.format", "pretty", OneOf(&["pretty", "json"])),
    set("log.filter", "info", Text("a filter of log lines", "info,sqlx=warn", telemetry::is_filter)),
    set("traces.endpoint", "", Text(COLLECTOR, "http://127.0.0.1:4318", is_collector)),
    set("traces.sample_ratio", "1", Text("a number from 0 to 1", "0.01", is_ratio)),
    set("traces.parent_decides", "false", Flag),
    set("traces.service_name", "onrush", Text("a name", "onrush", |t| !t.is_empty())),
];

const URL: &str = "an address without a trailing slash";
const COLLECTOR: &str = "a collector's address for OTLP over HTTP, without /v1/traces";

/// Settings of former versions, and what to write instead.
const REPLACED: &[(&str, &str)] = &[(
    "http.trust_forwarded_for",
    "take it out, and for `true` name the proxies' networks in ONRUSH_HTTP__TRUSTED_PROXIES, such as 10.0.0.0/8",
)];

impl Setting {
    fn fits(&self, text: &str) -> bool {
        match self.form {
            Whole(min, max) => text.parse().is_ok_and(|number| (min..=max).contains(&number)),
            Flag => matches!(text, "true" | "false"),
            OneOf(words) => words.contains(&text),
            Text(_, _, test) => test(text),
            Any(_) => true,
        }
    }

    /// What it must be, with an example where the words are not one.
    pub(super) fn wanted(&self) -> String {
        match self.form {
            Whole(min, max) => {
                format!("a whole number from {min} to {max}, such as {}", self.default.unwrap_or_default())
            }
            Flag => "true or false".to_owned(),
            OneOf(words) => format!("one of: {}", words.join(", ")),
            Text(what, example, _) => format!("{what}, such as {example}"),
            Any(what) => what.to_owned(),
        }
    }
}

/// Every fault of the settings: unknown ones, missing ones, those that cannot be read or are out of bounds.
pub(super) fn faults(raw: &config::Config, file: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let given = leaves(raw)?;
    let mut faults = Vec::new();
    for setting in SETTINGS {
        let value = given.iter().find(|(name, _)| name == setting.name).map(|(_, value)| value);
        match value {
            // A list or a table is no text.
            Some(value) if value.clone().into_string().is_ok_and(|text| setting.fits(&text)) => {}
            Some(value) => faults.push(format!("{} must be {}", place(setting.name, value, file), setting.wanted())),
            None if COMMON_NAMES.iter().any(|(name, _)| *name == setting.name) => {
                faults.push(format!("{} is not set; it must be {}", variable_of(setting.name), setting.wanted()));
            }
            None => {}
        }
    }
    for (name, value) in &given {
        if let Some((_, instead)) = REPLACED.iter().find(|(former, _)| former == name) {
            faults.push(format!("{} is not a setting any more: {instead}", place(name, value, file)));
        } else if SETTINGS.iter().all(|setting| setting.name != name) {
            let meant = nearest(name).map(|near| format!("; did you mean {}?", variable_of(near)));
            faults.push(format!("{} is not a setting{}", place(name, value, file), meant.unwrap_or_default()));
        }
    }
    faults.extend(secrets::faults(raw));
    Ok(faults)
}

/// Everything that is given, as (`section.name`, value), by name. Sections may have sections.
fn leaves(raw: &config::Config) -> anyhow::Result<Vec<(String, Value)>> {
    let (mut inner, mut leaves) = (raw.collect()?.into_iter().collect::<Vec<_>>(), Vec::new());
    while let Some((name, value)) = inner.pop() {
        match value.clone().into_table() {
            Ok(section) => inner.extend(section.into_iter().map(|(part, value)| (format!("{name}.{part}"), value))),
            Err(_) => leaves.push((name, value)),
        }
    }
    leaves.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(leaves)
}

/// How a setting is called where it was given.
fn place(name: &str, value: &Value, file: Option<&Path>) -> String {
    let in_file = value.origin().is_some_and(|origin| origin != "the environment");
    match file.filter(|_| in_file) {
        Some(file) => format!("{} ({name} in {})", variable_of(name), file.display()),
        None => variable_of(name),
    }
}

/// The setting that was probably meant.
fn nearest(name: &str) -> Option<&'static str> {
    let known = SETTINGS.iter().map(|setting| (changes(name, setting.name), setting.name));
    known.min().filter(|(changes, _)| *changes <= MAX_CHANGES).map(|(_, name)| name)
}

/// A name further away than this many changes of a character was not mistyped.
const MAX_CHANGES: usize = 3;

/// How many characters must be put in, taken out or replaced to make one text of the other (Levenshtein's distance).
fn changes(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn begins_with(text: &str, schemes: &[&str]) -> bool {
    schemes.iter().any(|scheme| text.starts_with(scheme))
}
fn is_mysql(text: &str) -> bool {
    let address = text.parse::<MySqlConnectOptions>();
    begins_with(text, &["mysql://", "mariadb://"])
        && address.is_ok_and(|address| address.get_database().is_some_and(|name| !name.is_empty()))
}
fn is_prefix(text: &str) -> bool {
    !text.is_empty() && !text.contains(['{', '}'])
}
fn is_digits(text: &str) -> bool {
    text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_digit())
}
fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
fn is_socket_address(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok()
}
fn is_url(text: &str) -> bool {
    let address = reqwest::Url::parse(text);
    begins_with(text, &["http://", "https://"])
        && !text.ends_with('/')
        && !text.contains([' ', '?', '#', '@'])
        && address.is_ok_and(|address| address.has_host())
}
/// An address that a browser can be led to, and to whose query an order's number and status can be added.
fn is_page(text: &str) -> bool {
    // The parser drops and mends what nobody can have meant.
    let unclear = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
    let host_follows = text.split_once("://").is_some_and(|(_, rest)| !rest.starts_with('/'));
    let page = reqwest::Url::parse(text).ok().filter(|_| host_follows && !text.contains(unclear));
    page.is_some_and(|page| {
        let for_anybody = page.username().is_empty() && page.password().is_none();
        let names_neither = page.query_pairs().all(|(name, _)| !matches!(&*name, "order_no" | "status"));
        matches!(page.scheme(), "http" | "https") && for_anybody && names_neither
    })
}
fn is_collector(text: &str) -> bool {
    text.is_empty() || is_url(text) && !text.ends_with("/v1/traces")
}
fn is_ratio(text: &str) -> bool {
    text.parse().is_ok_and(|ratio: f64| (0.0..=1.0).contains(&ratio))
}
fn are_headers(text: &str) -> bool {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .all(|name| HeaderName::try_from(name).is_ok() && name != "*")
}
fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}
fn are_origins(text: &str) -> bool {
    text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).all(is_origin)
}

/// A scheme and a host, perhaps with a port, and nothing behind it. Of this machine it may be any port.
fn is_origin(text: &str) -> bool {
    let local = ["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"];
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    local.contains(&text) || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ', '*']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_says_what_it_looks_like_and_its_example_fits() {
        for setting in SETTINGS {
            assert!(setting.default.is_none_or(|default| setting.fits(default)), "{}", setting.name);
            let wanted = setting.wanted();
            match setting.form {
                Text(_, examples, _) => {
                    assert!(examples.split(" or ").all(|example| setting.fits(example)), "{wanted}");
                    assert!(wanted.ends_with(examples), "{wanted}");
                }
                Whole(..) => assert!(wanted.contains("such as"), "{wanted}"),
                Flag | OneOf(_) | Any(_) => assert!(!wanted.is_empty()),
            }
        }
    }

    #[test]
    fn the_table_of_the_operations_page_is_this_one() {
        let page = include_str!("../../docs/OPERATIONS.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        for setting in SETTINGS {
            let variable = format!("`{}`", variable_of(setting.name));
            let row = rows.iter().find(|row| row.split('|').nth(1).is_some_and(|cell| cell.contains(&variable)));
            let cells: Vec<&str> =
                row.unwrap_or_else(|| panic!("no row of {variable}")).split('|').map(str::trim).collect();
            let default = cells[2].trim_matches('`');
            let none = ["", "none", "empty"].contains(&default);
            assert!(default == setting.default.unwrap_or_default() || none, "{variable}: {default}");
            assert_eq!(none, setting.default.unwrap_or_default().is_empty(), "{variable}: {default}");
            if let Whole(min, max) = setting.form {
                assert_eq!(cells[3], format!("{min}..{max}"), "{variable}");
            }
        }
        let named =
            page.split('`').filter(|word| word.starts_with("ONRUSH_") && word.contains("__") && !word.ends_with('*'));
        for variable in named.map(|word| word.split('=').next().unwrap_or(word)) {
            let known = SETTINGS.iter().any(|setting| variable_of(setting.name) == variable);
            assert!(known || super::super::files::secret_of(variable).is_some(), "{variable} is no setting");
        }
    }

    #[test]
    fn what_is_called_a_secret_may_come_from_a_file() {
        for setting in SETTINGS {
            let called = ["secret", "secrets", "token", "password"].iter().any(|word| setting.name.ends_with(word));
            assert!(!called || setting.is_secret, "{}", setting.name);
        }
    }

    #[test]
    fn a_mistyped_name_finds_the_one_that_was_meant() {
        assert_eq!(nearest("http.timout_s"), Some("http.timeout_s"));
        assert_eq!(nearest("database.poolsize"), Some("database.pool_size"));
        assert_eq!(nearest("completely.other"), None);
        assert_eq!((changes("kitten", "sitting"), changes("", "abc"), changes("a", "a")), (3, 3, 0));
    }
}
