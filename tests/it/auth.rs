//! Accounts, logins and tokens.

use std::time::Duration;

use onrush::auth::{self, Role, UserId};
use onrush::platform::jwt::{TokenKeys, Tokens};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::send;
use crate::support::harness::JWT_SECRET;
use crate::support::{Answer, Harness, Options, PrivateServers};

const PHONE: &str = "13800000001";
const PASSWORD: &str = "a long password";

async fn register(h: &Harness, phone: &str) -> Answer {
    h.post("/auth/register", (), json!({"phone": phone, "password": PASSWORD})).await
}

async fn login(h: &Harness, phone: &str, password: &str) -> Answer {
    h.post("/auth/login", (), json!({"phone": phone, "password": password})).await
}

async fn refresh(h: &Harness, token: &str) -> Answer {
    h.post("/auth/refresh", (), json!({"refresh_token": token})).await
}

async fn logout(h: &Harness, token: &str) -> Answer {
    h.post("/auth/logout", (), json!({"refresh_token": token})).await
}

fn fields(answer: &Answer) -> Vec<&str> {
    answer["errors"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_is_logged_in_and_logs_in_again() {
    let h = Harness::new().await;
    let body = json!({"phone": PHONE, "password": PASSWORD, "nickname": "小明"});
    let new = h.post("/auth/register", (), body).await.expect(201);
    assert_eq!(new.header("cache-control"), Some("no-store"));
    assert_eq!((new["token_type"].as_str(), new["expires_in_s"].as_u64()), (Some("Bearer"), Some(900)));
    let me = h.get("/me", &new.text_of("access_token")).await.expect(200);
    assert_eq!(me.body, new["user"]);
    assert_eq!((me["phone"].as_str(), me["nickname"].as_str()), (Some(PHONE), Some("小明")));
    assert_eq!((me["role"].as_str(), &me["created_at"]), (Some("user"), &json!(h.now())));

    let again = login(&h, PHONE, PASSWORD).await.expect(200);
    assert_eq!(again["user"], me.body);
    assert_ne!(again["refresh_token"], new["refresh_token"]);
    h.get("/me", &again.text_of("access_token")).await.expect(200);
    assert!(!new.text().contains(PASSWORD) && !again.text().contains("argon2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nickname_is_made_up_for_who_gives_none_and_tells_nothing_of_the_phone() {
    let h = Harness::new().await;
    let new = register(&h, PHONE).await.expect(201);
    let nickname = new["user"]["nickname"].as_str().unwrap();
    assert!(nickname.starts_with("学员") && !nickname.contains(&PHONE[7..]), "{nickname}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_number_and_a_wrong_password_are_answered_alike() {
    let h = Harness::new().await;
    register(&h, PHONE).await.expect(201);
    let wrong = login(&h, PHONE, "not the password").await.problem(401, "wrong_credentials");
    let unknown = login(&h, "13900000000", PASSWORD).await.problem(401, "wrong_credentials");
    assert_eq!(
        (wrong["title"].as_str(), wrong["detail"].as_str()),
        (unknown["title"].as_str(), unknown["detail"].as_str())
    );
    assert_eq!(wrong.header("www-authenticate"), Some("Bearer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_register_one_number_at_once_one_gets_it() {
    let h = Harness::new().await;
    for round in 0..5 {
        let phone = format!("1380000010{round}");
        let answers = futures_util::future::join_all((0..8).map(|_| register(&h, &phone))).await;
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
        assert_eq!((won.len(), lost.len()), (1, 7));
        for answer in lost {
            answer.problem(409, "phone_taken");
        }
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 5);
    // Who lost left no login behind.
    assert_eq!(h.count("SELECT COUNT(*) FROM refresh_tokens").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_registration_is_told_at_once() {
    let h = Harness::new().await;
    let faults = async |body: Value| h.post("/auth/register", (), body).await.problem(422, "validation_failed");
    let told = faults(json!({"phone": 13800000001_i64, "password": "short", "nickname": "", "role": "admin"})).await;
    let mut named = fields(&told);
    named.sort_unstable();
    assert_eq!(named, ["nickname", "password", "phone", "role"]);
    assert_eq!(fields(&faults(json!({})).await), ["phone", "password"]);
    assert_eq!(fields(&faults(json!({"phone": "12345678901", "password": PASSWORD})).await), ["phone"]);
    assert_eq!(fields(&faults(json!({"phone": "１3800000001", "password": PASSWORD})).await), ["phone"]);
    assert_eq!(fields(&faults(json!({"phone": "13800000001\n", "password": PASSWORD})).await), ["phone"]);
    assert_eq!(fields(&faults(json!({"phone": PHONE, "password": "密码".repeat(43)})).await), ["password"]);
    let long = json!({"phone": PHONE, "password": PASSWORD, "nickname": "名".repeat(65)});
    assert_eq!(fields(&faults(long).await), ["nickname"]);
    assert_eq!(fields(&faults(json!([PHONE, PASSWORD, null])).await), [""]);
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 0);
    let longest = json!({"phone": PHONE, "password": format!("{}密", "密码".repeat(42)), "nickname": "名".repeat(64)});
    h.post("/auth/register", (), longest).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_is_refused_by_its_own_name() {
    let h = Harness::new().await;
    let raw = async |kind: &'static str, body: Vec<u8>| {
        send(h.request(Method::POST, "/auth/login", ()).header("content-type", kind).body(body)).await
    };
    raw("application/json", b"{\"phone\": ".to_vec()).await.problem(400, "malformed_json");
    raw("application/json", b"{\"phone\": \"\xff\xfe\"}".to_vec()).await.problem(400, "malformed_json");
    raw("text/plain", b"{}".to_vec()).await.problem(415, "unsupported_media_type");
    raw("application/json", vec![b' '; 65 * 1024]).await.problem(413, "payload_too_large");
    raw("application/json", b"".to_vec()).await.problem(400, "malformed_json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_ours_or_past_its_time_is_refused() {
    let h = Harness::new().await;
    let token = register(&h, PHONE).await.expect(201).text_of("access_token");
    let refused = async |token: &str, error: &str| {
        let answer = h.get("/me", token).await.problem(401, error);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    };
    h.get("/me", ()).await.problem(401, "unauthenticated");
    let basic = h.request(Method::GET, "/me", ()).header("authorization", "Basic YTpi");
    send(basic).await.problem(401, "unauthenticated");
    let lower = h.request(Method::GET, "/me", ()).header("authorization", format!("bearer {token}"));
    send(lower).await.expect(200);

    let [head, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    // {"typ":"JWT","alg":"none"} and {"typ":"JWT","alg":"HS512"}
    let none = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0";
    let hs512 = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzUxMiJ9";
    refused(&format!("{none}.{claims}."), "token_invalid").await;
    refused(&format!("{none}.{claims}.{signature}"), "token_invalid").await;
    refused(&format!("{hs512}.{claims}.{signature}"), "token_invalid").await;
    refused(&format!("{head}.{claims}."), "token_invalid").await;
    refused(&format!("{head}.{claims}"), "token_invalid").await;
    for part in 0..3 {
        let mut parts = [head, claims, signature].map(str::to_owned);
        let other = if parts[part].as_bytes()[9] == b'A' { "B" } else { "A" };
        parts[part].replace_range(9..10, other);
        refused(&parts.join("."), "token_invalid").await;
    }
    refused("nonsense", "token_invalid").await;

    h.advance(Duration::from_secs(899));
    h.get("/me", &token).await.expect(200);
    h.advance(Duration::from_secs(1));
    refused(&token, "token_expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_signed_with_our_key_still_needs_our_claims() {
    let h = Harness::new().await;
    let tokens = Tokens::new(&TokenKeys::Secret(JWT_SECRET.as_bytes().to_vec())).unwrap();
    let user = register(&h, PHONE).await.expect(201)["user"]["id"].clone();
    let (iat, sid) = (h.now().ms() / 1000, UserId::new());
    let good = json!({
        "iss": "onrush", "aud": "onrush", "sub": user, "role": "user", "sid": sid, "iat": iat, "nbf": iat, "exp": iat + 60,
    });
    h.get("/me", &tokens.sign(&good).unwrap()).await.expect(200);
    for (claim, value) in [
        ("iss", json!("another")),
        ("aud", json!("another")),
        ("aud", Value::Null),
        ("nbf", Value::Null),
        ("nbf", json!(iat + 61)),
        ("iat", json!(iat + 61)),
        ("role", json!("owner")),
        ("sub", json!("x")),
        ("exp", Value::Null),
    ] {
        let mut bad = good.clone();
        bad[claim] = value;
        h.get("/me", &tokens.sign(&bad).unwrap()).await.problem(401, "token_invalid");
    }
    let other = Tokens::new(&TokenKeys::Secret(vec![7; 32])).unwrap();
    h.get("/me", &other.sign(&good).unwrap()).await.problem(401, "token_invalid");
    let nobody = auth::access_token(&h.app, UserId::new(), Role::User).unwrap();
    h.get("/me", &nobody).await.problem(401, "token_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_exchanged_once_and_its_second_use_ends_the_login() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201).text_of("refresh_token");
    let elsewhere = login(&h, PHONE, PASSWORD).await.expect(200).text_of("refresh_token");
    let second = refresh(&h, &first).await.expect(200);
    h.get("/me", &second.text_of("access_token")).await.expect(200);
    let third = refresh(&h, &second.text_of("refresh_token")).await.expect(200).text_of("refresh_token");

    refresh(&h, &first).await.problem(401, "refresh_token_reused");
    // The live token of that login is dead now; the other login is not touched.
    refresh(&h, &third).await.problem(401, "refresh_token_invalid");
    refresh(&h, &first).await.problem(401, "refresh_token_reused");
    refresh(&h, &elsewhere).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_uses_of_a_refresh_token_at_once_one_wins_and_the_login_ends() {
    let h = Harness::new().await;
    let mut token = register(&h, PHONE).await.expect(201).text_of("refresh_token");
    for _ in 0..10 {
        let answers = futures_util::future::join_all((0..4).map(|_| refresh(&h, &token))).await;
        let won: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!(won.len(), 1);
        let next = won[0].text_of("refresh_token");
        for answer in answers.into_iter().filter(|answer| answer.status != 200) {
            answer.problem(401, "refresh_token_reused");
        }
        refresh(&h, &next).await.problem(401, "refresh_token_invalid");
        token = login(&h, PHONE, PASSWORD).await.expect(200).text_of("refresh_token");
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM refresh_tokens WHERE used_at IS NULL AND revoked_at IS NULL").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_joins_a_login_while_it_is_revoked() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201).text_of("refresh_token");
    let second = refresh(&h, &first).await.expect(200).text_of("refresh_token");
    // As if another process, whose clock is ahead, had made the second token: the third one's id is a smaller one, and
    // whoever walks through the login's tokens may be past it when it comes.
    let ahead = "UPDATE refresh_tokens SET id = UNHEX(REPEAT('ff', 16)) WHERE used_at IS NULL";
    sqlx::query(ahead).execute(&h.app.db).await.unwrap();
    // Holds up every insert of an id between the first token's and the second's, and nothing else.
    let mut gap = h.app.db.acquire_for(Duration::from_secs(60)).await.unwrap();
    let hold = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION; \
         SELECT id FROM refresh_tokens WHERE id = UNHEX(REPEAT('fe', 16)) FOR UPDATE";
    sqlx::raw_sql(hold).execute(&mut *gap).await.unwrap();

    let rotating = refresh(&h, &second);
    let reusing = async {
        h.eventually(async || h.held_up(1).await).await;
        refresh(&h, &first).await
    };
    let letting_go = async {
        h.eventually(async || h.held_up(2).await).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut *gap).await.unwrap();
        drop(gap);
    };
    let (rotated, reused, ()) = tokio::join!(rotating, reusing, letting_go);
    reused.problem(401, "refresh_token_reused");
    let third = rotated.expect(200).text_of("refresh_token");
    refresh(&h, &third).await.problem(401, "refresh_token_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_ends_with_its_time() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201);
    let life = first["refresh_expires_in_s"].as_u64().unwrap();
    h.advance(Duration::from_secs(life - 1));
    let second = refresh(&h, &first.text_of("refresh_token")).await.expect(200).text_of("refresh_token");
    h.advance(Duration::from_secs(life));
    refresh(&h, &second).await.problem(401, "refresh_token_invalid");
    refresh(&h, &"0".repeat(64)).await.problem(401, "refresh_token_invalid");
    assert_eq!(fields(&refresh(&h, "not a token").await.problem(422, "validation_failed")), ["refresh_token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_reads_the_role_anew() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201);
    h.post("/admin/courses", &first.text_of("access_token"), json!({})).await.problem(403, "forbidden");
    sqlx::query("UPDATE users SET role = 'admin'").execute(&h.app.db).await.unwrap();
    let second = refresh(&h, &first.text_of("refresh_token")).await.expect(200);
    assert_eq!(second["user"]["role"], "admin");
    h.post("/admin/courses", &second.text_of("access_token"), json!({})).await.problem(422, "validation_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_its_login_alone_and_is_safe_to_repeat() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201).text_of("refresh_token");
    let elsewhere = login(&h, PHONE, PASSWORD).await.expect(200).text_of("refresh_token");
    let second = refresh(&h, &first).await.expect(200).text_of("refresh_token");
    for token in [&second, &second, &first, &"f".repeat(64)] {
        assert!(logout(&h, token).await.expect(204).bytes.is_empty());
    }
    refresh(&h, &second).await.problem(401, "refresh_token_invalid");
    refresh(&h, &elsewhere).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_with_a_used_token_ends_the_login_too() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201).text_of("refresh_token");
    let second = refresh(&h, &first).await.expect(200).text_of("refresh_token");
    logout(&h, &first).await.expect(204);
    refresh(&h, &second).await.problem(401, "refresh_token_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_nobody_guesses_and_tokens_still_hold() {
    let mut servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let new = register(&h, PHONE).await.expect(201);
    servers.change(|s| s.redis.kill()).await;
    let refused = login(&h, PHONE, PASSWORD).await.problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    h.get("/me", &new.text_of("access_token")).await.expect(200);
    refresh(&h, &new.text_of("refresh_token")).await.expect(200);
    servers.change(|s| s.redis.start()).await;
    h.eventually(async || login(&h, PHONE, PASSWORD).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_number_costs_a_hash_as_a_known_one_does() {
    let h = Harness::new().await;
    register(&h, PHONE).await.expect(201);
    for phone in [PHONE, "13900000000"] {
        let before = auth::password_hashes(&h.app);
        login(&h, phone, "not the password").await.problem(401, "wrong_credentials");
        assert_eq!(auth::password_hashes(&h.app) - before, 1, "{phone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_refresh_tokens_are_pruned_a_day_after_their_expiry() {
    let h = Harness::new().await;
    let first = register(&h, PHONE).await.expect(201);
    let life = first["refresh_expires_in_s"].as_u64().unwrap();
    h.advance(Duration::from_secs(life + 3600));
    login(&h, PHONE, PASSWORD).await.expect(200);
    auth::prune(&h.app).await.unwrap();
    assert_eq!(h.count("SELECT COUNT(*) FROM refresh_tokens").await, 2);
    h.advance(Duration::from_secs(24 * 3600));
    auth::prune(&h.app).await.unwrap();
    assert_eq!(h.count("SELECT COUNT(*) FROM refresh_tokens").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_made_by_a_tool_logs_in_and_obeys_the_same_rules() {
    let h = Harness::new().await;
    let id = auth::create_user(&h.app, PHONE, PASSWORD, "管理员", Role::Admin).await.unwrap();
    let session = login(&h, PHONE, PASSWORD).await.expect(200);
    assert_eq!(
        (session["user"]["id"].as_str(), session["user"]["role"].as_str()),
        (Some(&*id.to_string()), Some("admin"))
    );
    for (phone, password, nickname) in [
        (PHONE, PASSWORD, ""),
        ("1", PASSWORD, ""),
        ("13800000009", "short", ""),
        ("13800000009", PASSWORD, &"名".repeat(65)),
    ] {
        assert!(auth::create_user(&h.app, phone, password, nickname, Role::User).await.is_err());
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 1);
}
