//! What a page in a browser needs: that it may read every answer of ours, refusals most of all, and that no answer can be
//! made into something else in it.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Url};
use serde_json::json;
use uuid::Uuid;

use crate::support::client::{Answer, send};
use crate::support::{Harness, Options};

const SHOP: &str = "https://shop.example";

async fn harness(settings: &[(&'static str, &str)]) -> Harness {
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Harness::with(Options { settings, ..Options::default() }).await
}

/// Asks as a page of the shop would.
async fn from_shop(request: RequestBuilder) -> Answer {
    send(request.header("origin", SHOP)).await
}

fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let all = headers.get_all(name).iter().flat_map(|value| value.to_str().unwrap().split(','));
    all.map(str::trim).collect()
}

/// That the shop's page may read the answer, and what it may read of it.
#[track_caller]
fn is_readable(headers: &HeaderMap, what: &str) {
    assert_eq!(values(headers, "access-control-allow-origin"), [SHOP], "{what}: {headers:?}");
    assert!(values(headers, "vary").contains(&"origin"), "{what}: {headers:?}");
    let exposed = values(headers, "access-control-expose-headers");
    for name in ["date", "etag", "retry-after", "x-request-id", "ratelimit-remaining"] {
        assert!(exposed.contains(&name), "{what}: {name} in {exposed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_our_origins_may_read_every_refusal() {
    let settings = [("http.cors_origins", SHOP), ("http.body_limit_bytes", "2048"), ("limits.quote_per_account", "1")];
    let h = harness(&settings).await;
    let (user, course) = (h.register().await, h.course(100).await);
    let post =
        |path: &str, token: &str| h.request(Method::POST, path, token).header("content-type", "application/json");
    let login = json!({"phone": "13800000001", "password": "wrong, and long enough"});
    let order = json!({"course_ids": [Uuid::now_v7().as_simple().to_string()]});
    let quoted = json!({"course_ids": [course.no()]});
    h.post("/orders/quote", &user, quoted.clone()).await.expect(200);
    let buy = || h.request(Method::POST, "/orders", &user);
    let cases = [
        (400, "malformed_json", post("/auth/login", "").body("{")),
        (400, "idempotency_key_missing", buy().json(&json!({"course_ids": [course.no()]}))),
        (401, "unauthenticated", h.request(Method::GET, "/me", ())),
        (401, "token_invalid", h.request(Method::GET, "/me", "nonsense")),
        (401, "wrong_credentials", post("/auth/login", "").json(&login)),
        (403, "forbidden", h.request(Method::GET, "/admin/queues", &user)),
        (404, "not_found", h.request(Method::GET, "/nothing/here", ())),
        (404, "not_found", h.http.get(format!("{}/nothing", h.base))),
        (405, "method_not_allowed", h.request(Method::DELETE, "/courses", ())),
        (405, "method_not_allowed", h.request(Method::OPTIONS, "/courses", ())),
        (409, "course_unavailable", buy().header("idempotency-key", "one").json(&order)),
        (413, "payload_too_large", post("/auth/login", "").body("x".repeat(3000))),
        (415, "unsupported_media_type", h.request(Method::POST, "/auth/login", ()).body("{}")),
        (422, "validation_failed", post("/auth/login", "").body("{}")),
        (429, "too_many_attempts", h.request(Method::POST, "/orders/quote", &user).json(&quoted)),
    ];
    for (status, name, request) in cases {
        let answer = from_shop(request).await.problem(status, name);
        is_readable(&answer.headers, name);
    }
    // In a gateway's own words.
    let callback = from_shop(h.request(Method::POST, "/payments/sandbox/notify", ()).body("{}")).await.expect(400);
    is_readable(&callback.headers, "callback");
    let moved = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let moved = from_shop(moved.get(format!("{}/api/v1/courses/", h.base))).await.expect(308);
    is_readable(&moved.headers, "redirect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_may_read_that_there_was_no_time_or_no_room() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let h = harness(&[("http.cors_origins", SHOP), ("http.timeout_s", "2"), ("http.max_in_flight", "1")]).await;
    let (buyer, course) = (h.register().await, h.course(100).await);
    let mut lock = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM users WHERE id = ? FOR UPDATE").bind(buyer.id).execute(&mut *lock).await.unwrap();
    let order = h.request(Method::POST, "/orders", &buyer).header("idempotency-key", "one");
    let held = from_shop(order.json(&json!({"course_ids": [course.no()]})));
    let shed = async {
        // It has the only place once it waits for the lock, and keeps it until that is gone.
        h.eventually(async || h.held_up(1).await).await;
        from_shop(h.request(Method::GET, "/courses", ())).await
    };
    let (timeout, shed) = tokio::join!(held, shed);
    is_readable(&timeout.problem(503, "timeout").headers, "timeout");
    is_readable(&shed.problem(503, "overloaded").headers, "overloaded");
    lock.rollback().await.unwrap();
    // A body that does not come.
    h.eventually(async || h.get("/courses", ()).await.status == 200).await;
    let mut stream = tokio::net::TcpStream::connect(h.base.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\norigin: {SHOP}\r\ncontent-type: application/json\r\n\
         content-length: 9\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    let allows = format!("access-control-allow-origin: {SHOP}\r\n");
    assert!((said.starts_with("HTTP/1.1 408") || said.starts_with("HTTP/1.1 503")) && said.contains(&allows), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_may_send_the_headers_of_the_settings() {
    let ask = async |h: &Harness, origin: &str| {
        let request = h.request(Method::OPTIONS, "/orders", ()).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        send(request.header("access-control-request-headers", "traceparent")).await.expect(200)
    };
    let h = harness(&[("http.cors_origins", SHOP)]).await;
    let answer = ask(&h, SHOP).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(SHOP));
    let headers = values(&answer.headers, "access-control-allow-headers");
    for name in ["authorization", "content-type", "idempotency-key", "x-request-id", "traceparent", "x-requested-with"]
    {
        assert!(headers.contains(&name), "{name} in {headers:?}");
    }
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        assert!(values(&answer.headers, "access-control-allow-methods").contains(&method), "{method}");
    }
    for what in ["origin", "access-control-request-method", "access-control-request-headers"] {
        assert!(values(&answer.headers, "vary").contains(&what), "{what}");
    }
    assert!(answer.bytes.is_empty());
    assert_eq!(ask(&h, "https://evil.example").await.header("access-control-allow-origin"), None);
    let h = harness(&[("http.cors_origins", SHOP), ("http.cors_headers", "Authorization, X-Mine")]).await;
    let answer = ask(&h, SHOP).await;
    assert_eq!(values(&answer.headers, "access-control-allow-headers"), ["authorization", "x-mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_a_browser_must_not_make_of_it() {
    let h = Harness::new().await;
    let user = h.register().await;
    let paths = [
        ("/courses", 200),
        ("/courses/nonsense", 422),
        ("/nothing", 404),
        ("/", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/openapi.json", 200),
        ("/docs/", 200),
        ("/docs/swagger-ui.css", 200),
        ("/docs/errors", 200),
        ("/sandbox/pay/0192f3a4b5c67d8e9fa0b1c2d3e4f506", 404),
    ];
    for (path, status) in paths {
        let answer = h.get(path, ()).await.expect(status);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(answer.header("strict-transport-security"), None, "{path}");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        let script = policy.contains("script-src");
        assert_eq!(script, path.starts_with("/docs") && path != "/docs/errors", "{path}: {policy}");
        assert!(!policy.contains("unsafe") || script, "{path}: {policy}");
    }
    // What was answered to somebody is nobody else's, and a refusal is not kept.
    for personal in [h.get("/me", &user).await, h.get("/courses", &user).await, h.get("/nothing", ()).await] {
        assert_eq!(personal.header("cache-control"), Some("no-store"));
    }
    let login = json!({"phone": "13900000001", "password": "a long password"});
    for path in ["/auth/register", "/auth/login"] {
        let token = h.post(path, (), login.clone()).await;
        assert!(token.status < 300 && token.header("cache-control") == Some("no-store"), "{}", token.text());
    }
    assert_eq!(h.get("/courses", ()).await.header("cache-control"), None);
    let behind_tls = harness(&[("http.public_url", "https://api.shop.example")]).await;
    for path in ["/courses", "/nothing", "/"] {
        let told = behind_tls.get(path, ()).await.header("strict-transport-security").map(str::to_owned);
        assert_eq!(told.as_deref(), Some("max-age=31536000"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_with_a_slash_behind_it_leads_to_the_one_without() {
    let h = Harness::new().await;
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let cases = [
        (Method::GET, "/api/v1/courses/", "/api/v1/courses"),
        (Method::GET, "/api/v1/courses/?limit=1&cursor=a%2Fb", "/api/v1/courses?limit=1&cursor=a%2Fb"),
        (Method::POST, "/api/v1/auth/login/", "/api/v1/auth/login"),
        (
            Method::PATCH,
            "/api/v1/admin/schedules/0192f3a4b5c67d8e9fa0b1c2d3e4f506/",
            "/api/v1/admin/schedules/0192f3a4b5c67d8e9fa0b1c2d3e4f506",
        ),
        (
            Method::GET,
            "/api/v1/tasks/0192f3a4b5c67d8e9fa0b1c2d3e4f506//",
            "/api/v1/tasks/0192f3a4b5c67d8e9fa0b1c2d3e4f506",
        ),
        (Method::GET, "/healthz/", "/healthz"),
        (Method::GET, "/docs/errors/", "/docs/errors"),
        (Method::POST, "/sandbox/api/", "/sandbox/api"),
    ];
    for (method, path, bare) in cases {
        let answer = send(http.request(method, format!("{}{path}", h.base))).await.expect(308);
        let location = answer.header("location").unwrap();
        // Behind a proxy, too, that takes a prefix off.
        for prefix in ["", "/shop", "/a/b"] {
            let asked = Url::parse(&format!("https://front.example{prefix}{path}")).unwrap();
            assert_eq!(asked.join(location).unwrap().as_str(), format!("https://front.example{prefix}{bare}"));
        }
    }
    // The body goes along.
    let login = json!({"phone": "13900000001", "password": "a long password"});
    h.post("/auth/register/", (), login).await.expect(201);
    let host = send(http.get(format!("{}//evil.example/", h.base))).await.expect(308);
    assert_eq!(host.header("location"), Some("../evil.example"));
    send(http.get(format!("{}//", h.base))).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_the_address_reads_what_this_is() {
    let h = Harness::new().await;
    for (accepts, lang, words) in [("en-US,en;q=0.9", "en", "Orders and seckill"), ("", "zh-CN", "秒杀")] {
        let page = send(h.request(Method::GET, "/", ()).header("accept-language", accepts)).await.expect(200);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(page.header("content-language"), Some(lang));
        let text = page.text();
        let told = [env!("CARGO_PKG_VERSION"), words, &format!("lang=\"{lang}\"")];
        assert!(told.iter().all(|told| text.contains(told)), "{text}");
        let links: Vec<&str> = text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(links, ["docs/", "openapi.json", "docs/errors", "readyz"]);
        for link in links {
            h.get(&format!("/{link}"), ()).await.expect(200);
        }
        for more in ["<script", "<style", "style=", "src=", "http:", "https:"] {
            assert!(!text.contains(more), "{more} in {text}");
        }
    }
    let mut h = harness(&[("http.operations_public", "false")]).await;
    let page = h.get("/", ()).await.expect(200).text();
    assert!(page.contains("readyz") && !page.contains("openapi.json"), "{page}");
    assert!(h.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_a_line_in_the_log_by_its_id() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (buyer, course) = (h.register().await, h.course(100).await);
    let filter =
        |filter| [("ONRUSH_LOG__FILTER", filter), ("ONRUSH_HTTP__TIMEOUT_S", "1"), ("ONRUSH_LOG__FORMAT", "json")];
    for (level, told) in [("info", false), ("info,onrush=debug", true)] {
        let mut process = h.process("api", &filter(level)).await;
        let line = |log: &str, id: &str| {
            let of_it =
                |line: &&str| line.contains("request answered") && line.contains(&format!("\"request.id\":\"{id}\""));
            log.lines().find(of_it).map(str::to_owned)
        };
        let fine = process.client.get("/courses", ()).await.expect(200);
        let mut lock = h.app.db.begin().await.unwrap();
        sqlx::query("SELECT id FROM users WHERE id = ? FOR UPDATE").bind(buyer.id).execute(&mut *lock).await.unwrap();
        let order = json!({"course_ids": [course.no()]});
        let failed = process.client.post_once("/orders", &buyer, level, order).await.problem(503, "timeout");
        lock.rollback().await.unwrap();
        let id = failed.text_of("request_id");
        h.eventually(async || line(&process.log(), &id).is_some()).await;
        let failed = line(&process.log(), &id).unwrap();
        for part in [
            "\"level\":\"INFO\"",
            "\"http.status\":503",
            "\"http.route\":\"/api/v1/orders\"",
            "\"http.method\":\"POST\"",
            "\"client.address\":\"127.0.0.1\"",
        ] {
            assert!(failed.contains(part), "{part} in {failed}");
        }
        let fine = line(&process.log(), fine.header("x-request-id").unwrap());
        assert_eq!(fine.is_some(), told, "{level}: {fine:?}");
        let nowhere = process.client.get("/nowhere/at/all", ()).await.problem(404, "not_found");
        let refused = |line: &str| line.contains("request refused") && line.contains("\"error\":\"not_found\"");
        let id = nowhere.text_of("request_id");
        assert_eq!(process.log().lines().any(|line| refused(line) && line.contains(&id)), told, "why it was refused");
        let nowhere = line(&process.log(), nowhere.header("x-request-id").unwrap());
        assert_eq!(
            nowhere.is_some_and(|line| line.contains("/nowhere/at/all\"")),
            told,
            "a route that is none has its path"
        );
        process.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_have_three_decimals_in_every_answer() {
    let h = Harness::with(Options::default()).await;
    // A clock on the second, so that a time that is cut short shows.
    let to_second = 1000 - h.now().ms().rem_euclid(1000);
    h.advance(Duration::from_millis(to_second.unsigned_abs()));
    let (user, admin, course) = (h.register().await, h.admin().await, h.course(100).await);
    let made = h.post_once("/orders", &user, "one", json!({"course_ids": [course.no()]})).await.expect(201);
    let no = made.text_of("order_no");
    h.post(&format!("/orders/{no}/pay"), &user, json!({"gateway": "sandbox"})).await.expect(200);
    let schedule = json!({"name": "x", "task": "auth.prune", "kind": "interval", "every_s": 60});
    h.post("/admin/schedules", &admin, schedule).await.expect(201);
    let mut seen = 0;
    for (path, who) in [
        ("/me", &user),
        ("/courses", &user),
        ("/orders", &user),
        (&format!("/orders/{no}"), &user),
        ("/me/points", &user),
        ("/admin/orders", &admin),
        (&format!("/admin/orders/{no}"), &admin),
        ("/admin/payments", &admin),
        ("/admin/schedules", &admin),
        ("/admin/audit", &admin),
    ] {
        let answer = h.get(path, who).await.expect(200);
        for text in answer.text().split('"').filter(|text| is_time(text)) {
            assert!(text.len() == 24 && text.ends_with('Z') && &text[19..20] == ".", "{path}: {text}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

fn is_time(text: &str) -> bool {
    text.len() > 18 && text.as_bytes()[10] == b'T' && text[..4].bytes().all(|b| b.is_ascii_digit())
}
