//! Doors: whose tokens count and for how long, which passwords and names may be chosen, and what is seen of those who try.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use onrush::auth::{self, Role, UserId};
use onrush::platform::jwt::{TokenKeys, Tokens};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::send;
use crate::support::harness::JWT_SECRET;
use crate::support::{Answer, Harness, Options, PrivateServers};

mod names;
mod sights;

const PHONE: &str = "13800000001";
const PASSWORD: &str = "a long password";
const ANOTHER_SECRET: &str = "b7d01e6a4c93f2586e0a1d7bc4f93825";

async fn register(h: &Harness, phone: &str, password: &str) -> Answer {
    h.post("/auth/register", (), json!({"phone": phone, "password": password})).await
}

async fn login(h: &Harness, phone: &str, password: &str) -> Answer {
    h.post("/auth/login", (), json!({"phone": phone, "password": password})).await
}

fn fields(answer: &Answer) -> Vec<&str> {
    answer["errors"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect()
}

/// What the version before this one signed: no `kid`, another `typ`, fewer claims.
fn old_token(user: &str, role: &str, iat: i64, life_s: i64) -> String {
    let claims = json!({
        "iss": "onrush", "sub": user, "role": role, "sid": UserId::new(), "iat": iat, "exp": iat + life_s,
    });
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_header_that_is_not_ours_is_refused_though_our_key_signed_it() {
    let h = Harness::new().await;
    let token = register(&h, PHONE, PASSWORD).await.expect(201).text_of("access_token");
    let read = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!((read.typ.as_deref(), read.alg), (Some("at+jwt"), Algorithm::HS256));
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(&token).unwrap();
    assert_eq!((&claims["aud"], &claims["iss"], &claims["nbf"]), (&json!("onrush"), &json!("onrush"), &claims["iat"]));
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    let signed = |header: &Header| jsonwebtoken::encode(header, &claims, &key).unwrap();
    h.get("/me", &signed(&read)).await.expect(200);
    let mut headers = vec![Header { crit: Some(vec!["exp".to_owned()]), ..read.clone() }];
    headers.push(Header { crit: Some(Vec::new()), ..read.clone() });
    headers.push(Header { typ: Some("JWT".to_owned()), ..read.clone() });
    headers.push(Header { typ: Some("refresh+jwt".to_owned()), ..read.clone() });
    headers.push(Header { typ: None, ..read.clone() });
    headers.push(Header { kid: Some("another".to_owned()), ..read.clone() });
    headers.push(Header { kid: None, ..read.clone() });
    headers.push(Header { alg: Algorithm::HS384, ..read });
    for header in headers {
        let refused = h.get("/me", &signed(&header)).await;
        assert_eq!((refused.status, refused["error"].as_str()), (401, Some("token_invalid")), "{header:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_the_version_before_are_taken_for_a_day_after_the_start() {
    let h = Harness::new().await;
    let user = register(&h, PHONE, PASSWORD).await.expect(201)["user"]["id"].as_str().unwrap().to_owned();
    let old = |h: &Harness| old_token(&user, "user", h.now().ms() / 1000, 900);
    h.get("/me", &old(&h)).await.expect(200);
    h.advance(Duration::from_secs(24 * 3600));
    h.get("/me", &old(&h)).await.expect(200);
    h.advance(Duration::from_secs(1));
    h.get("/me", &old(&h)).await.problem(401, "token_invalid");
    // A process that starts then begins its own day.
    let next = h.another().await;
    next.get("/me", &old(&h)).await.expect(200);
    h.get("/me", &login(&h, PHONE, PASSWORD).await.expect(200).text_of("access_token")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_without_a_token_that_is_refused() {
    let old = Harness::new().await;
    let before = register(&old, PHONE, PASSWORD).await.expect(201).text_of("access_token");
    // Every process learns the key to come, then it signs, then the old one goes.
    let learnt = old.another_with(&[("auth.jwt_verify_secrets", ANOTHER_SECRET)]).await;
    let signs = [("auth.jwt_secret", ANOTHER_SECRET), ("auth.jwt_verify_secrets", JWT_SECRET)];
    let signing = old.another_with(&signs).await;
    let after = login(&signing, PHONE, PASSWORD).await.expect(200).text_of("access_token");
    for process in [&learnt, &signing] {
        process.get("/me", &before).await.expect(200);
        process.get("/me", &after).await.expect(200);
    }
    old.get("/me", &after).await.problem(401, "token_invalid");
    let done = old.another_with(&[("auth.jwt_secret", ANOTHER_SECRET)]).await;
    done.get("/me", &after).await.expect(200);
    done.get("/me", &before).await.problem(401, "token_invalid");
}

/// The routes that ask whether a login goes on, each with a body that it would take.
async fn money_routes(h: &Harness, token: &str) -> Vec<Answer> {
    let none = Uuid::now_v7().as_simple().to_string();
    vec![
        h.post_once("/orders", token, &none, json!({"course_ids": [h.course(100).await.no()]})).await,
        h.post(&format!("/orders/{none}/pay"), token, json!({"gateway": "sandbox"})).await,
        h.post(&format!("/orders/{none}/cancel"), token, json!({})).await,
        h.post(&format!("/coupons/{none}/claim"), token, json!({})).await,
    ]
}

async fn is_over(h: &Harness, token: &str, error: &str) {
    for answer in money_routes(h, token).await {
        let answer = answer.problem(401, error);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    // Nor does it read what is the account's.
    h.get("/orders", token).await.problem(401, error);
}

async fn goes_on(h: &Harness, token: &str) {
    let statuses: Vec<u16> = money_routes(h, token).await.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [201, 404, 404, 404]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_money_moves_a_login_that_is_over_is_refused_at_once_by_every_process() {
    let mut servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let elsewhere = h.another().await;
    let admin = h.admin().await;
    let access = |session: &Answer| session.text_of("access_token");
    let refresh = async |session: &Answer| {
        h.post("/auth/refresh", (), json!({"refresh_token": session.text_of("refresh_token")})).await
    };
    let first = register(&h, PHONE, PASSWORD).await.expect(201);
    let (second, third) = (login(&h, PHONE, PASSWORD).await.expect(200), login(&h, PHONE, PASSWORD).await.expect(200));
    for session in [&first, &second, &third] {
        goes_on(&h, &access(session)).await;
    }
    // Redis is not asked: a login that ended is over without it, too.
    servers.change(|s| s.redis.kill()).await;

    let logout = json!({"refresh_token": first.text_of("refresh_token")});
    h.post("/auth/logout", (), logout).await.expect(204);
    is_over(&h, &access(&first), "login_over").await;
    is_over(&elsewhere, &access(&first), "login_over").await;

    let renewed = refresh(&second).await.expect(200);
    goes_on(&h, &access(&renewed)).await;
    refresh(&second).await.problem(401, "refresh_token_reused");
    for session in [&second, &renewed] {
        is_over(&h, &access(session), "login_over").await;
    }

    goes_on(&h, &access(&third)).await;
    let out = format!("/admin/users/{}/logout", third["user"]["id"].as_str().unwrap());
    for _ in 0..2 {
        h.post(&out, &admin, json!({})).await.expect(204);
    }
    is_over(&h, &access(&third), "login_over").await;
    refresh(&third).await.problem(401, "refresh_token_invalid");
    h.post(&format!("/admin/users/{}/logout", UserId::new()), &admin, json!({})).await.problem(404, "not_found");
    h.post(&out, &h.register().await, json!({})).await.problem(403, "forbidden");
    let rows = h.get("/admin/audit?action=user.logout", &admin).await.expect(200);
    let targets: Vec<&Value> = rows["items"].as_array().unwrap().iter().map(|row| &row["target"]).collect();
    assert_eq!(targets, [&third["user"]["id"]; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_gone_moves_no_money() {
    let h = Harness::new().await;
    let person = h.register().await;
    goes_on(&h, &person.token).await;
    sqlx::query("DELETE FROM users WHERE id = ?").bind(person.id).execute(&h.app.db).await.unwrap();
    is_over(&h, &person.token, "token_invalid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_is_one_by_the_database_at_every_request() {
    let h = Harness::new().await;
    auth::create_user(&h.app, PHONE, PASSWORD, "店长", Role::Admin).await.unwrap();
    let session = login(&h, PHONE, PASSWORD).await.expect(200);
    let token = session.text_of("access_token");
    let look = async || h.get("/admin/queues", &token).await;
    look().await.expect(200);
    sqlx::query("UPDATE users SET role = 'user'").execute(&h.app.db).await.unwrap();
    look().await.problem(403, "forbidden");
    sqlx::query("UPDATE users SET role = 'admin'").execute(&h.app.db).await.unwrap();
    look().await.expect(200);
    let logout = json!({"refresh_token": session.text_of("refresh_token")});
    h.post("/auth/logout", (), logout).await.expect(204);
    look().await.problem(401, "login_over");
    let nobody = auth::access_token(&h.app, UserId::new(), Role::Admin).unwrap();
    h.get("/admin/queues", &nobody).await.problem(401, "token_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_guessed_first_may_not_be_chosen_and_whoever_has_it_still_gets_in() {
    let h = Harness::new().await;
    for bad in ["12345678", "Password", "iloveyou", "woaini1314", "aaaaaaaaaa", PHONE, "+86 138 0000 0001", "password1"]
    {
        let refused = register(&h, PHONE, bad).await.problem(422, "validation_failed");
        assert_eq!(fields(&refused), ["password"], "{bad}");
    }
    register(&h, PHONE, "13800000002").await.expect(201);
    assert!(auth::create_user(&h.app, "13800000003", "12345678", "", Role::User).await.is_err());
    // An account of before, with one of them.
    auth::create_user(&h.app, "13800000004", "a long password", "", Role::User).await.unwrap();
    let hash = argon2_of("12345678").await;
    sqlx::query("UPDATE users SET password_hash = ? WHERE phone = '13800000004'")
        .bind(hash)
        .execute(&h.app.db)
        .await
        .unwrap();
    login(&h, "13800000004", "12345678").await.expect(200);
}

/// As versions before hashed what was typed.
async fn argon2_of(password: &'static str) -> String {
    use argon2::password_hash::phc::PasswordHash;
    use argon2::{Argon2, PasswordHasher};
    let hash = tokio::task::spawn_blocking(move || {
        let hash: PasswordHash = Argon2::default().hash_password(password.as_bytes()).unwrap();
        hash.to_string()
    });
    hash.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_the_same_on_every_keyboard() {
    let h = Harness::new().await;
    let (composed, apart) = ("M\u{fc}ller-Stra\u{df}e", "Mu\u{308}ller-Stra\u{df}e");
    register(&h, PHONE, composed).await.expect(201);
    register(&h, "13800000002", apart).await.expect(201);
    for phone in [PHONE, "13800000002"] {
        login(&h, phone, composed).await.expect(200);
        login(&h, phone, apart).await.expect(200);
        login(&h, phone, "Muller-Strasse").await.problem(401, "wrong_credentials");
    }
    // An account of before, whose password was hashed as it was typed.
    register(&h, "13800000003", PASSWORD).await.expect(201);
    let hash = argon2_of("Mu\u{308}ller-Stra\u{df}e").await;
    sqlx::query("UPDATE users SET password_hash = ? WHERE phone = '13800000003'")
        .bind(hash)
        .execute(&h.app.db)
        .await
        .unwrap();
    login(&h, "13800000003", apart).await.expect(200);
    login(&h, "13900000000", apart).await.problem(401, "wrong_credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_may_be_a_sentence() {
    let h = Harness::new().await;
    let (long, other) = (format!("{}1", "密码".repeat(42)), format!("{}2", "密码".repeat(42)));
    register(&h, PHONE, &long).await.expect(201);
    login(&h, PHONE, &long).await.expect(200);
    login(&h, PHONE, &other).await.problem(401, "wrong_credentials");
    let refused = register(&h, "13800000002", &"密码".repeat(43)).await.problem(422, "validation_failed");
    assert_eq!(fields(&refused), ["password"]);
}
