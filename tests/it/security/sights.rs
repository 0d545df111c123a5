//! What is seen of those who try: log lines, counters and rows of the audit.

use super::*;

/// How often something was seen, by the metrics of a process.
async fn seen(process: &crate::support::Process, event: &str) -> f64 {
    let page = process.client.get("/metrics", ()).await.expect(200).text();
    let start = format!("onrush_security_events_total{{event=\"{event}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {event} in {page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_a_door_is_counted_and_written_down_with_address_and_request() {
    let settings = vec![("auth.login_attempts_per_address", "2".to_owned()), ("log.format", "json".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    let process = h.process("api", &[]).await;
    for event in
        ["login_failed", "login_locked", "admin_login", "forbidden", "token_forged", "login_over", "refresh_reused"]
    {
        assert_eq!(seen(&process, event).await, 0.0, "{event}");
    }
    auth::create_user(&h.app, PHONE, PASSWORD, "店长", Role::Admin).await.unwrap();
    let ask = async |id: &str, method: Method, path: &str, token: Option<&str>, body: Value| {
        let request = match token {
            Some(token) => process.client.request(method, path, token),
            None => process.client.request(method, path, ()),
        };
        send(request.header("x-request-id", id).json(&body)).await
    };
    let enter = async |id: &str, password: &str| {
        ask(id, Method::POST, "/auth/login", None, json!({"phone": PHONE, "password": password})).await
    };
    let admin = enter("good-login", PASSWORD).await.expect(200);
    let user = h.register().await;
    ask("no-admin", Method::GET, "/admin/queues", Some(&user.token), json!(null)).await.problem(403, "forbidden");
    let forger = Tokens::new(&TokenKeys::Secret(vec![7; 32])).unwrap();
    let forged = forger.sign(&json!({"iss": "onrush"})).unwrap();
    // At a route where the token is read twice: to count requests, and to answer.
    ask("forged-token", Method::POST, "/orders/quote", Some(&forged), json!({})).await.problem(401, "token_invalid");
    let refresh = json!({"refresh_token": admin.text_of("refresh_token")});
    ask("used-once", Method::POST, "/auth/refresh", None, refresh.clone()).await.expect(200);
    ask("used-twice", Method::POST, "/auth/refresh", None, refresh).await.problem(401, "refresh_token_reused");
    let token = admin.text_of("access_token");
    ask("was-admin", Method::GET, "/admin/queues", Some(&token), json!(null)).await.problem(401, "login_over");
    for n in 0..2 {
        enter(&format!("guess-{n}"), "not the password").await.problem(401, "wrong_credentials");
    }
    enter("locked", "not the password").await.problem(429, "too_many_attempts");

    let expected = [
        ("admin_login", "good-login", 1.0),
        ("forbidden", "no-admin", 1.0),
        ("token_forged", "forged-token", 1.0),
        ("refresh_reused", "used-twice", 1.0),
        ("login_over", "was-admin", 1.0),
        ("login_failed", "guess-1", 2.0),
        ("login_locked", "locked", 1.0),
    ];
    let log = process.log();
    for (event, request, times) in expected {
        // The page of metrics is made once a second at most.
        h.eventually(async || seen(&process, event).await == times).await;
        let line = log
            .lines()
            .find(|line| line.contains(&format!("\"security.event\":\"{event}\"")) && line.contains(request));
        let line = line.unwrap_or_else(|| panic!("no line of {event} by {request} in {log}"));
        assert!(line.contains("\"client.address\":\"127.0.0.1\""), "{line}");
    }
    assert!(!log.contains(PASSWORD) && !log.contains(PHONE) && !log.contains(&forged), "{log}");

    let reader = h.admin().await;
    let rows = h.get("/admin/audit?limit=100", &reader).await.expect(200);
    let row = |action: &str| {
        let mut found = rows["items"].as_array().unwrap().iter().filter(|row| row["action"] == action);
        let row = found.next().unwrap_or_else(|| panic!("no {action} in {}", rows.text()));
        assert!(found.next().is_none(), "{}", rows.text());
        row.clone()
    };
    let owner = &admin["user"]["id"];
    let user = json!(user.id.as_simple().to_string());
    for (action, by, request, outcome) in [
        ("login.admin", owner, "good-login", json!({"done": true})),
        ("login.locked", owner, "locked", json!({"refused": true})),
        ("access.forbidden", &user, "no-admin", json!({"refused": true})),
    ] {
        let row = row(action);
        assert_eq!((&row["by"], &row["outcome"]), (by, &outcome), "{action}");
        assert_eq!(row["details"], json!({"address": "127.0.0.1", "request_id": request}), "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tries_however_often_does_not_fill_the_audit() {
    let settings = vec![("auth.login_attempts_per_address", "1".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    let process = h.process("api", &[]).await;
    register(&h, PHONE, PASSWORD).await.expect(201);
    let person = h.register().await;
    for _ in 0..40 {
        let login = json!({"phone": PHONE, "password": "not the password"});
        let tries = (0..5).map(|_| process.client.post("/auth/login", (), login.clone()));
        let looks = (0..5).map(|_| process.client.get("/admin/queues", &person));
        futures_util::future::join(futures_util::future::join_all(tries), futures_util::future::join_all(looks)).await;
    }
    assert_eq!(seen(&process, "forbidden").await, 200.0);
    assert!(seen(&process, "login_locked").await > 190.0);
    // One a person and hour: two where the hour ended meanwhile.
    let rows = h.count("SELECT COUNT(*) FROM audit").await;
    assert!((2..=4).contains(&rows), "{rows}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_row_no_administrator_comes_in() {
    let h = Harness::new().await;
    auth::create_user(&h.app, PHONE, PASSWORD, "店长", Role::Admin).await.unwrap();
    sqlx::query("ALTER TABLE audit RENAME TO audit_away").execute(&h.app.db).await.unwrap();
    login(&h, PHONE, PASSWORD).await.problem(500, "internal");
    assert_eq!(h.count("SELECT COUNT(*) FROM refresh_tokens").await, 0);
    // What is refused is refused all the same.
    h.get("/admin/queues", &h.register().await).await.problem(403, "forbidden");
}
