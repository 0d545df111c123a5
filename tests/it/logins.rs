//! Who guesses passwords is slowed down, and nobody is locked out by that: logins, and what is counted of them.

use std::collections::BTreeSet;
use std::time::Duration;

use onrush::auth::{self, Role};
use onrush::platform::db::{ConnectionLease, for_requests};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::send;
use crate::support::{Answer, Client, Harness, Options};

const PHONE: &str = "13800000001";
const PASSWORD: &str = "a long password";
const WRONG: &str = "not the password";
/// The longest pause between two logins of a number.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);

/// With the limits that `settings` say, and the test's own machine for a proxy.
async fn limited(settings: &[(&'static str, &str)]) -> Harness {
    let mut all = vec![("http.trusted_proxies", "127.0.0.0/8,10.0.0.0/8".to_owned())];
    all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Harness::with(Options { settings: all, ..Options::default() }).await
}

async fn account(h: &Harness, phone: &str) {
    auth::create_user(&h.app, phone, PASSWORD, "", Role::User).await.unwrap();
}

/// Asks as somebody at an address.
async fn at(h: &Harness, address: &str, path: &str, body: Value) -> Answer {
    send(h.request(Method::POST, path, ()).header("x-forwarded-for", address).json(&body)).await
}

async fn login_at(h: &Harness, address: &str, phone: &str, password: &str) -> Answer {
    at(h, address, "/auth/login", json!({"phone": phone, "password": password})).await
}

async fn login(h: &Harness, phone: &str, password: &str) -> Answer {
    login_at(h, "192.0.2.1", phone, password).await
}

fn judged(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.status == 401).count()
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_of_a_number_do_not_lock_its_owner_out_even_at_the_same_address() {
    let h = limited(&[("auth.login_attempts", "5")]).await;
    account(&h, PHONE).await;
    for _ in 0..5 {
        login(&h, PHONE, WRONG).await.problem(401, "wrong_credentials");
    }
    // Later than usual, and not refused.
    login(&h, PHONE, PASSWORD).await.expect(200);
    // And what was mistyped is forgiven: as many are free again.
    let again = futures_util::future::join_all((0..5).map(|_| login(&h, PHONE, WRONG))).await;
    assert_eq!(judged(&again), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_once_are_all_counted_and_the_pauses_grow() {
    let h = limited(&[("auth.login_attempts", "3")]).await;
    account(&h, PHONE).await;
    account(&h, "13800000002").await;
    let guesses = futures_util::future::join_all((0..40).map(|_| login(&h, PHONE, WRONG))).await;
    // Three are free; one is judged a second later, one two seconds after that; four more are too long for anybody to
    // wait for, and change nothing.
    assert_eq!(judged(&guesses), 5);
    for refused in guesses.into_iter().filter(|answer| answer.status != 401) {
        assert_eq!(retry_after(&refused.problem(429, "too_many_attempts")), 7);
    }
    // Whoever guesses learns nothing from it being right.
    assert_eq!(retry_after(&login(&h, PHONE, PASSWORD).await.problem(429, "too_many_attempts")), 7);
    // Other numbers, and other addresses, have counts of their own.
    login(&h, "13800000002", PASSWORD).await.expect(200);
    login_at(&h, "192.0.2.2", PHONE, PASSWORD).await.expect(200);
    login(&h, PHONE, PASSWORD).await.problem(429, "too_many_attempts");
    h.advance(Duration::from_secs(7));
    login(&h, PHONE, PASSWORD).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_addresses_guess_no_more_than_one() {
    let h = limited(&[("auth.login_attempts_per_number", "4")]).await;
    account(&h, PHONE).await;
    guessed(&h, PHONE).await;
    // Each guess from an address of its own.
    let guesses = async |addresses: std::ops::Range<u32>, pause: Duration| {
        let mut tried = 0;
        for n in addresses {
            let address = format!("198.51.{}.{}", n / 100, n % 100);
            tried += usize::from(login_at(&h, &address, PHONE, WRONG).await.status == 401);
            h.advance(pause);
        }
        tried
    };
    // A hundred are let past the pause; for an hour then it is one in a minute and a half.
    assert_eq!(guesses(0..110, Duration::ZERO).await, 100);
    assert_eq!(guesses(110..230, Duration::from_secs(30)).await, 39);
    // So it goes on for a day; then it begins anew.
    login_at(&h, "203.0.113.1", PHONE, WRONG).await;
    login_at(&h, "203.0.113.2", PHONE, PASSWORD).await.problem(429, "too_many_attempts");
    h.advance(Duration::from_secs(24 * 3600));
    let free = futures_util::future::join_all((0..4).map(|_| login(&h, PHONE, WRONG))).await;
    assert_eq!(judged(&free), 4);
}

/// A service where a number was guessed at, from one address, until the pause after each guess is the longest one.
async fn slowed(phone: &str) -> Harness {
    let h = limited(&[("auth.login_attempts_per_number", "1")]).await;
    account(&h, PHONE).await;
    guessed(&h, phone).await;
    h
}

async fn guessed(h: &Harness, phone: &str) {
    for _ in 0..12 {
        h.advance(LONGEST_PAUSE);
        login(h, phone, WRONG).await.problem(401, "wrong_credentials");
    }
}

/// How many guesses of a number in a row are judged at an address, and how long it must wait then.
async fn judged_at(h: &Harness, address: &str, phone: &str) -> (usize, u64) {
    for judged in 0..50 {
        let guess = login_at(h, address, phone, WRONG).await;
        if guess.status != 401 {
            return (judged, retry_after(&guess.problem(429, "too_many_attempts")));
        }
    }
    panic!("nobody slows it down");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_takes_every_turn_of_a_number_does_not_keep_its_owner_out() {
    let h = slowed(PHONE).await;
    let owner = "203.0.113.7";
    let mut answer = login_at(&h, owner, PHONE, PASSWORD).await;
    for _ in 0..3 {
        if answer.status == 200 {
            break;
        }
        // They come when they were told to. The stranger asks each second until then.
        for _ in 0..retry_after(&answer) {
            h.advance(Duration::from_secs(1));
            login(&h, PHONE, WRONG).await;
        }
        answer = login_at(&h, owner, PHONE, PASSWORD).await;
    }
    answer.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_let_past_the_pause_of_a_number_some_times_a_day() {
    let h = slowed(PHONE).await;
    // The stranger too; after that there is a turn for them in a minute and a half, as before.
    assert_eq!(judged_at(&h, "192.0.2.1", PHONE).await, (5, 90));
    assert_eq!(judged_at(&h, "203.0.113.7", PHONE).await, (5, 90));
    // A site of IPv6 has many addresses.
    for subnet in 0..5 {
        let address = format!("2001:db8:1:{subnet}::1");
        login_at(&h, &address, PHONE, WRONG).await.problem(401, "wrong_credentials");
    }
    assert_eq!(judged_at(&h, "2001:db8:1:5::1", PHONE).await, (0, 90));
    assert_eq!(judged_at(&h, "2001:db8:2:1::1", PHONE).await, (5, 90));
    // The window of the address ends, and the day does not.
    h.advance(LONGEST_PAUSE * 4);
    assert_eq!(judged_at(&h, "203.0.113.7", PHONE).await, (1, 90));
    h.advance(Duration::from_secs(24 * 3600));
    guessed(&h, PHONE).await;
    assert_eq!(judged_at(&h, "203.0.113.7", PHONE).await, (5, 90));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_mistyped_before_the_right_password_and_what_was_not_judged_lets_nobody_wait() {
    let h = slowed(PHONE).await;
    let owner = "203.0.113.7";
    for _ in 0..4 {
        login_at(&h, owner, PHONE, WRONG).await.problem(401, "wrong_credentials");
    }
    login_at(&h, owner, PHONE, PASSWORD).await.expect(200);
    // Nobody reaches the database: 503.
    let stuck = h.another_with(&[("database.pool_size", "2"), ("database.acquire_timeout_ms", "500")]).await;
    let held = both_connections(&stuck).await;
    for _ in 0..6 {
        login_at(&stuck, owner, PHONE, PASSWORD).await.problem(503, "unavailable");
    }
    drop(held);
    assert_eq!(judged_at(&h, owner, PHONE).await, (5, 90));
    // All sites together have what is theirs, and no more.
    let mut redis = h.app.redis.commands();
    let key = format!("{}:{{logins}}:number:{PHONE}", h.app.redis.prefix());
    let passes: usize = redis::cmd("HGET").arg(key).arg("passes").query_async(&mut redis).await.unwrap();
    assert_eq!(passes, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_nobody_has_is_slowed_down_as_any_other() {
    let unknown = "13900000000";
    let h = slowed(PHONE).await;
    let known = [judged_at(&h, "192.0.2.1", PHONE).await, judged_at(&h, "203.0.113.7", PHONE).await];
    guessed(&h, unknown).await;
    assert_eq!([judged_at(&h, "192.0.2.1", unknown).await, judged_at(&h, "203.0.113.7", unknown).await], known);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_logged_in_before_is_not_slowed_down_by_strangers() {
    let settings = [
        ("auth.login_attempts", "2"),
        ("auth.login_attempts_per_number", "2"),
        ("auth.login_attempts_per_address", "2"),
    ];
    let h = limited(&settings).await;
    let new = at(&h, "192.0.2.9", "/auth/register", json!({"phone": PHONE, "password": PASSWORD})).await.expect(201);
    let token = new.text_of("device_token");
    let cookie = new.header("set-cookie").unwrap().to_owned();
    assert!(cookie.starts_with(&format!("onrush_device={token}; Path=/api/v1/auth; ")), "{cookie}");
    assert!(
        cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict") && !cookie.contains("Secure"),
        "{cookie}"
    );
    account(&h, "13800000002").await;
    futures_util::future::join_all((0..8).map(|_| login(&h, PHONE, WRONG))).await;

    let with_token = async |phone: &str, password: &str, token: &str| {
        let body = json!({"phone": phone, "password": password, "device_token": token});
        at(&h, "192.0.2.1", "/auth/login", body).await
    };
    login(&h, PHONE, PASSWORD).await.problem(429, "too_many_attempts");
    let again = with_token(PHONE, PASSWORD, &token).await.expect(200);
    // The cookie does the same, and the new token names the same device.
    let by_cookie = h.request(Method::POST, "/auth/login", ()).header("cookie", format!("a=b; onrush_device={token}"));
    let by_cookie = by_cookie.header("x-forwarded-for", "192.0.2.1");
    send(by_cookie.json(&json!({"phone": PHONE, "password": PASSWORD}))).await.expect(200);
    let device = |token: &str| token.split('.').next().unwrap().to_owned();
    assert_eq!(device(&again.text_of("device_token")), device(&token));

    // It is bound to the number, and signed; what is not valid counts as none.
    with_token("13800000002", PASSWORD, &token).await.problem(429, "too_many_attempts");
    let altered = format!("{}{}", if token.starts_with('0') { '1' } else { '0' }, &token[1..]);
    with_token(PHONE, PASSWORD, &altered).await.problem(429, "too_many_attempts");
    with_token(PHONE, PASSWORD, "nonsense").await.problem(422, "validation_failed");
    // It is no proof of who asks.
    with_token(PHONE, WRONG, &token).await.problem(401, "wrong_credentials");
    h.get("/me", &token).await.problem(401, "token_invalid");
    // And who guesses with it is slowed down as well.
    let guesses = futures_util::future::join_all((0..10).map(|_| with_token(PHONE, WRONG, &token))).await;
    assert_eq!(judged(&guesses), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_for_https_alone_where_the_service_is_reached_so() {
    let h = limited(&[("http.public_url", "https://shop.example.com")]).await;
    account(&h, PHONE).await;
    let answer = login(&h, PHONE, PASSWORD).await.expect(200);
    assert!(answer.header("set-cookie").unwrap().ends_with("; Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_failed_logins_count_against_an_address() {
    let h = limited(&[("auth.login_attempts_per_address", "4")]).await;
    account(&h, PHONE).await;
    for _ in 0..10 {
        login(&h, PHONE, PASSWORD).await.expect(200);
    }
    for n in 0..4 {
        login(&h, &format!("1390000000{n}"), WRONG).await.problem(401, "wrong_credentials");
    }
    let refused = login(&h, PHONE, PASSWORD).await.problem(429, "too_many_attempts");
    assert_eq!(retry_after(&refused), h.app.config.auth.login_window_s);
    login_at(&h, "192.0.2.2", PHONE, PASSWORD).await.expect(200);
    // Registrations have a budget of their own.
    at(&h, "192.0.2.1", "/auth/register", json!({"phone": "13800000002", "password": PASSWORD})).await.expect(201);
    h.advance(Duration::from_secs(h.app.config.auth.login_window_s));
    login(&h, PHONE, PASSWORD).await.expect(200);
}

/// Both connections of a pool of two, however long a busy machine needs to open them.
async fn both_connections(h: &Harness) -> (ConnectionLease, ConnectionLease) {
    let works = async || loop {
        if let Ok(lease) = h.app.db.acquire().await {
            return lease;
        }
    };
    let requests = async || loop {
        if let Ok(lease) = for_requests(h.app.db.acquire()).await {
            return lease;
        }
    };
    (works().await, requests().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_of_an_address_have_their_own_budget_and_one_that_could_not_be_made_is_given_back() {
    let h = limited(&[("limits.register_per_address", "2")]).await;
    let register = async |address: &str, phone: &str| {
        at(&h, address, "/auth/register", json!({"phone": phone, "password": PASSWORD})).await
    };
    // Nobody reaches the database: 503.
    let stuck = h.another_with(&[("database.pool_size", "2"), ("database.acquire_timeout_ms", "500")]).await;
    let held = both_connections(&stuck).await;
    for _ in 0..4 {
        let body = json!({"phone": PHONE, "password": PASSWORD});
        at(&stuck, "192.0.2.1", "/auth/register", body).await.problem(503, "unavailable");
    }
    drop(held);
    register("192.0.2.1", "13800000001").await.expect(201);
    let second = register("192.0.2.1", "13800000001").await.problem(409, "phone_taken");
    assert_eq!(second.header("ratelimit-policy"), Some(r#""register-address";q=2;w=60"#));
    assert_eq!(second.header("ratelimit"), Some(r#""register-address";r=0;t=60"#));
    let refused = register("192.0.2.1", "13800000002").await.problem(429, "too_many_attempts");
    assert_eq!(retry_after(&refused), 30);
    register("192.0.2.2", "13800000002").await.expect(201);
    login(&h, "13800000001", PASSWORD).await.expect(200);
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_the_first_one_from_the_right_that_is_no_proxy_of_ours() {
    let h = limited(&[("auth.login_attempts_per_address", "1")]).await;
    let guess = async |forwarded: &str| login_at(&h, forwarded, PHONE, WRONG).await.status;
    assert_eq!(guess("198.51.100.1, 192.0.2.1").await, 401);
    // What the client writes before our proxies' words changes nothing, and a second proxy of ours does not either.
    assert_eq!(guess("198.51.100.2, 192.0.2.1").await, 429);
    assert_eq!(guess("198.51.100.3,192.0.2.1, 10.1.2.3").await, 429);
    assert_eq!(guess("192.0.2.2, 10.1.2.3").await, 401);
    // Those of one /64 are one subscriber.
    assert_eq!(guess("2001:db8::1").await, 401);
    assert_eq!(guess("2001:db8::2").await, 429);
    assert_eq!(guess("2001:db8:0:1::1").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_proxy_of_ours_is_not_believed() {
    for trusted in ["", "10.0.0.0/8"] {
        let h = limited(&[("http.trusted_proxies", trusted), ("auth.login_attempts_per_address", "2")]).await;
        for n in 0..4 {
            let guess = login_at(&h, &format!("192.0.2.{n}"), PHONE, WRONG).await;
            assert_eq!(guess.status, if n < 2 { 401 } else { 429 });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_count_of_logins_has_an_expiry() {
    let h = limited(&[]).await;
    account(&h, PHONE).await;
    let token = login(&h, PHONE, PASSWORD).await.expect(200).text_of("device_token");
    let device = token.split('.').next().unwrap();
    login(&h, PHONE, WRONG).await.problem(401, "wrong_credentials");
    let body = json!({"phone": PHONE, "password": WRONG, "device_token": token});
    at(&h, "192.0.2.1", "/auth/login", body).await.problem(401, "wrong_credentials");
    let mut redis = h.app.redis.commands();
    let prefix = format!("{}:{{logins}}", h.app.redis.prefix());
    let mut expected = BTreeSet::new();
    for (key, life_ms) in [
        (format!("{prefix}:from:{PHONE}:192.0.2.1"), 300_000),
        (format!("{prefix}:number:{PHONE}"), 86_400_000),
        (format!("{prefix}:address:192.0.2.1"), 300_000),
        (format!("{prefix}:device:{PHONE}:{device}"), 300_000),
        (format!("{prefix}:known:{PHONE}"), 86_400_000),
    ] {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
        assert!((1..=life_ms).contains(&left), "{key} {left}");
        expected.insert(key);
    }
    let pattern = format!("{}:*logins*", h.app.redis.prefix());
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
    assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_logs_in_at_once_is_served_or_told_to_come_back() {
    // More than the largest machine lets in.
    let h = limited(&[]).await;
    account(&h, PHONE).await;
    let answers = futures_util::future::join_all((0..500).map(|_| login(&h, PHONE, WRONG))).await;
    let judged = judged(&answers);
    assert!((1..500).contains(&judged), "{judged}");
    for answer in answers.into_iter().filter(|answer| answer.status != 401) {
        assert!(answer.problem(503, "overloaded").header("retry-after").is_some());
    }
    // Who was told to come back is counted nowhere.
    let mut redis = h.app.redis.commands();
    let mut kept = async |key: String, field: &str| -> usize {
        let key = format!("{}:{{logins}}:{key}", h.app.redis.prefix());
        redis::cmd("HGET").arg(key).arg(field).query_async(&mut redis).await.unwrap()
    };
    assert_eq!(kept(format!("from:{PHONE}:192.0.2.1"), "n").await, judged);
    assert_eq!(kept(format!("number:{PHONE}"), "n").await, judged);
    assert_eq!(kept("address:192.0.2.1".to_owned(), "failed").await, judged);
    assert_eq!(kept("address:192.0.2.1".to_owned(), "pending").await, 0);
    login(&h, PHONE, PASSWORD).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_nobody_named_is_told_of_at_the_start_and_once_when_it_speaks() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let https = ("ONRUSH_HTTP__PUBLIC_URL", "https://shop.example.com");
    let guesses = async |client: &Client| {
        for n in 0..3 {
            let request = client.request(Method::POST, "/auth/login", ());
            let request = request.header("x-forwarded-for", format!("192.0.2.{n}"));
            send(request.json(&json!({"phone": PHONE, "password": WRONG}))).await.problem(401, "wrong_credentials");
        }
    };
    let (at_start, when_it_speaks) = ("TRUSTED_PROXIES names none", "does not name sends X-Forwarded-For");
    let mut forgotten = h.process("api", &[https]).await;
    assert_eq!(forgotten.log().matches(at_start).count(), 1);
    guesses(&forgotten.client).await;
    assert_eq!(forgotten.log().matches(when_it_speaks).count(), 1, "{}", forgotten.log());
    forgotten.terminate().await;
    let mut named = h.process("api", &[https, ("ONRUSH_HTTP__TRUSTED_PROXIES", "127.0.0.1")]).await;
    guesses(&named.client).await;
    let log = named.log();
    assert!(!log.contains(at_start) && !log.contains(when_it_speaks), "{log}");
    named.terminate().await;
    // Without a proxy in front nothing is missing.
    let mut plain = h.process("api", &[]).await;
    assert!(!plain.log().contains(at_start));
    plain.terminate().await;
}
