//! Roles and permissions: who may do what, at the routes and at the command line.

use std::process::{Output, Stdio};

use onrush::access::{self, Permission};
use onrush::auth::Role;
use onrush::engine::Item;
use onrush::orders::{Grant, OrderId};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::client::send;
use crate::support::{Harness, Options, Person};

/// Every operation that needs a permission: its method, a path that fits it, and the permission.
fn guarded() -> Vec<(Method, String, Permission)> {
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let named = operation["x-permission"].as_str();
            let of_administrators = path.starts_with("/api/v1/admin/");
            assert_eq!(named.is_some(), of_administrators, "{method} {path} needs {named:?}");
            let Some(named) = named else { continue };
            let permission = Permission::ALL.iter().find(|permission| permission.as_str() == named).unwrap();
            let path = path.replace("{gateway}", "sandbox").replace("{day}", "2026-11-20").replace("{queue}", "grant");
            let path = path.replace("{entry}", "1-1").replace("/tasks/{id}", "/tasks/{id}.grant");
            let path = path.replace("{id}", &"0".repeat(32)).replace("{no}", &"0".repeat(32));
            assert!(!path.contains('{'), "{path}");
            found.push((method.to_uppercase().parse().unwrap(), path, *permission));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_administrators_is_open_to_the_roles_that_have_its_permission_alone() {
    let h = Harness::new().await;
    let guarded = guarded();
    assert!(guarded.len() > 40, "{} routes need a permission", guarded.len());
    for role in Role::ALL {
        let somebody = h.people_as(1, role).await.remove(0);
        for (method, path, permission) in &guarded {
            let answer = send(h.request(method.clone(), path, &somebody).json(&json!({}))).await;
            let may = access::may(role, *permission);
            assert_eq!(answer.status != 403, may, "{role:?} {method} {path}: {}", answer.text());
            if !may {
                let answer = answer.problem(403, "forbidden");
                let detail = answer.text_of("detail");
                assert!(detail.contains(permission.as_str()) && detail.contains(role.as_str()), "{detail}");
            }
        }
    }
    for (method, path, _) in &guarded {
        assert_eq!(send(h.request(method.clone(), path, ()).json(&json!({}))).await.status, 401, "{method} {path}");
    }
}

/// Runs `onrush admin` with these arguments and this on its standard input.
async fn admin(h: &Harness, args: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"));
    command.arg("admin").args(args).env_clear().envs(h.env()).kill_on_drop(true);
    command.envs(std::env::var_os("SSL_CERT_FILE").map(|file| ("SSL_CERT_FILE", file)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().expect("onrush");
    // One that reads nothing has closed it.
    let _ = running.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let Output { status, stdout, stderr } = running.wait_with_output().await.expect("onrush");
    let said = if status.success() { stdout } else { stderr };
    (status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn login(phone: &str, password: &str) -> Value {
    json!({ "phone": phone, "password": password })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_administrator_is_made_at_the_command_line_and_another_takes_the_role_away() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (done, said) = admin(&h, &["list"], "").await;
    assert!(done && said.contains("onrush admin create"), "{said}");
    let create = ["create", "--phone", "13800000007", "--nickname", "Ada", "--role", "admin"];
    let (done, said) = admin(&h, &create, "short\n").await;
    assert!(!done && said.contains("the password"), "{said}");
    let (done, said) = admin(&h, &create, "a long password\n").await;
    assert!(done && said.contains("with the role admin"), "{said}");
    let (done, said) = admin(&h, &create, "a long password\n").await;
    assert!(!done && said.contains("onrush admin role 13800000007 admin"), "{said}");

    let first = h.post("/auth/login", (), login("13800000007", "a long password")).await.expect(200);
    let token = first.text_of("access_token");
    let list = || send(h.request(Method::GET, "/admin/queues", ()).bearer_auth(&token));
    list().await.expect(200);
    assert_eq!(h.count("SELECT COUNT(*) FROM audit WHERE action = 'user.create'").await, 1);
    // Another role at once, with the tokens that are out.
    let (done, said) = admin(&h, &["role", "13800000007", "finance"], "").await;
    assert!(done && said.contains("finance"), "{said}");
    let refused = list().await.problem(403, "forbidden").text_of("detail");
    assert!(refused.contains("queues.read") && refused.contains("finance"), "{refused}");
    assert_eq!(h.count("SELECT COUNT(*) FROM audit WHERE action = 'user.role'").await, 1);
    let (done, said) = admin(&h, &["list"], "").await;
    assert!(done && said.contains("finance") && said.contains("13800000007"), "{said}");

    let (done, said) = admin(&h, &["role", "13800000007", "finance"], "").await;
    assert!(done && said.contains("already"), "{said}");
    assert_eq!(h.count("SELECT COUNT(*) FROM audit WHERE action = 'user.role'").await, 1);
    let (done, said) = admin(&h, &["create", "--phone", "911", "--role", "support"], "a long password\n").await;
    assert!(!done && said.contains("the phone must be a mobile number"), "{said}");
    let (done, said) = admin(&h, &["role", "13800000007", "boss"], "").await;
    assert!(!done && said.contains("auditor, support, finance"), "{said}");
    let (done, said) = admin(&h, &["role", "13800000008", "support"], "").await;
    assert!(!done && said.contains("no account has this number"), "{said}");
    let (done, said) = admin(&h, &["role", "911", "support"], "").await;
    assert!(!done && said.contains("13800000001"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_account_is_out_at_once_and_comes_in_again_when_it_is_enabled() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (phone, password) = ("13800000009", "a long password");
    h.post("/auth/register", (), login(phone, password)).await.expect(201);
    let session = h.post("/auth/login", (), login(phone, password)).await.expect(200);
    let (access, refresh) = (session.text_of("access_token"), session.text_of("refresh_token"));
    let orders = || send(h.request(Method::GET, "/orders", ()).bearer_auth(&access));
    orders().await.expect(200);
    for word in ["all its logins are over", "is disabled already"] {
        let (done, said) = admin(&h, &["disable", phone], "").await;
        assert!(done && said.contains(word), "{said}");
    }
    orders().await.problem(401, "login_over");
    let again = json!({ "refresh_token": refresh });
    h.post("/auth/refresh", (), again).await.problem(401, "refresh_token_invalid");
    h.post("/auth/login", (), login(phone, password)).await.problem(403, "account_disabled");
    // Who does not know the password hears nothing of it.
    h.post("/auth/login", (), login(phone, "another password")).await.problem(401, "wrong_credentials");

    // A login that had begun before, and ends after: its tokens are worth nothing.
    let until = "UPDATE users SET disabled_at = NULL WHERE phone = '13800000009'";
    sqlx::query(until).execute(&h.app.db).await.unwrap();
    let session = h.post("/auth/login", (), login(phone, password)).await.expect(200);
    let begun = "UPDATE users SET disabled_at = created_at WHERE phone = '13800000009'";
    sqlx::query(begun).execute(&h.app.db).await.unwrap();
    let token = session.text_of("access_token");
    send(h.request(Method::GET, "/orders", ()).bearer_auth(token)).await.problem(401, "login_over");
    let again = json!({ "refresh_token": session.text_of("refresh_token") });
    h.post("/auth/refresh", (), again).await.problem(401, "refresh_token_invalid");

    let (done, said) = admin(&h, &["enable", phone], "").await;
    assert!(done && said.contains("may log in again"), "{said}");
    let again = json!({ "refresh_token": session.text_of("refresh_token") });
    h.post("/auth/refresh", (), again).await.problem(401, "refresh_token_invalid");
    h.post("/auth/login", (), login(phone, password)).await.expect(200);
    assert_eq!(h.count("SELECT COUNT(*) FROM audit WHERE action IN ('user.disable', 'user.enable')").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_helps_buyers_ends_their_logins_and_nobody_elses() {
    let h = Harness::new().await;
    let (buyer, support) = (h.register().await, h.people_as(1, Role::Support).await.remove(0));
    let (admin, finance) = (h.admin().await, h.people_as(1, Role::Finance).await.remove(0));
    let out = async |by: &Person, who: &Person| {
        h.post(&format!("/admin/users/{}/logout", who.id.as_simple()), by, json!({})).await
    };
    out(&support, &buyer).await.expect(204);
    for colleague in [&finance, &admin, &support] {
        let refused = out(&support, colleague).await.problem(403, "forbidden").text_of("detail");
        assert!(refused.contains("has a role"), "{refused}");
    }
    out(&admin, &finance).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_their_role_sees_nobody_elses_tasks_any_more() {
    let h = Harness::new().await;
    let (auditor, buyer) = (h.people_as(1, Role::Auditor).await.remove(0), h.register().await);
    let order_id = OrderId::new();
    h.app.engine.enqueue(&[Item::now(order_id.uuid(), Grant { order_id })]).await.unwrap();
    let task = format!("/tasks/{}.grant", order_id.uuid().as_simple());
    h.get(&task, &auditor).await.expect(200);
    h.get(&task, &buyer).await.problem(404, "not_found");
    sqlx::query("UPDATE users SET role = 'finance' WHERE id = ?").bind(auditor.id).execute(&h.app.db).await.unwrap();
    h.get(&task, &auditor).await.problem(404, "not_found");
}
