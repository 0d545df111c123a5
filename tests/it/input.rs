//! Every fault of a request is told at once, by field and in words for people, and nothing happens.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::send;
use crate::support::{Answer, Harness, Options};

/// What a person need not know, and what would tell that a parser spoke.
const NOT_FOR_PEOPLE: &[&str] = &[
    "expected",
    "invalid type",
    "invalid value",
    "unknown variant",
    "u32",
    "i32",
    "u64",
    "i64",
    "usize",
    "struct",
    "sequence",
    "serde",
    "Option",
    "pattern",
    "Cannot parse",
    "column 0",
];

/// Who may ask.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Anybody,
    User,
    Admin,
}

/// A request that is wrong in several ways, and the fields at fault. The route is as the OpenAPI document has it.
struct Case {
    by: By,
    method: &'static str,
    route: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    faults: &'static [&'static str],
}

const WITH_BODY: &[Case] = &[
    Case {
        by: By::Anybody,
        method: "post",
        route: "/auth/register",
        path: "/auth/register",
        headers: &[],
        body: r#"{"phone": "911", "password": "short", "nickname": " \t", "surprise": 1, "again": 1, "again": 1}"#,
        faults: &["phone", "password", "nickname", "surprise", "again"],
    },
    Case {
        by: By::Anybody,
        method: "post",
        route: "/auth/login",
        path: "/auth/login",
        headers: &[],
        body: r#"{"phone": 13800000001, "phone": "13800000001", "password": null, "surprise": 1}"#,
        faults: &["phone", "password", "surprise"],
    },
    Case {
        by: By::Anybody,
        method: "post",
        route: "/auth/refresh",
        path: "/auth/refresh",
        headers: &[],
        body: r#"{"refresh_token": "XYZ", "surprise": 1, "again": 1, "again": 1}"#,
        faults: &["refresh_token", "surprise", "again"],
    },
    Case {
        by: By::Anybody,
        method: "post",
        route: "/auth/logout",
        path: "/auth/logout",
        headers: &[],
        body: r#"{"surprise": 1, "again": 1, "again": 1}"#,
        faults: &["refresh_token", "surprise", "again"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/courses",
        path: "/admin/courses",
        headers: &[],
        body: r#"{"id": "00000000000000000000000000000001", "title": "a\u0000b", "summary": "\u0007", "price_fen": -1,
            "published": "yes", "chapters": ["one", "  ", 3], "surprise": 1}"#,
        faults: &["id", "title", "summary", "price_fen", "published", "chapters[1]", "chapters[2]", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/coupons",
        path: "/admin/coupons",
        headers: &[("idempotency-key", "two words")],
        body: r#"{"title": " ", "kind": "percent", "amount_fen": 5, "percent_off": 101, "quantity": "many",
            "valid_from": "2020-01-01T00:00:00Z", "valid_until": "2020-01-02T00:00:00Z", "surprise": 1}"#,
        faults: &[
            "Idempotency-Key",
            "title",
            "amount_fen",
            "percent_off",
            "cap_fen",
            "quantity",
            "valid_until",
            "surprise",
        ],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/coupons",
        path: "/admin/coupons",
        headers: &[],
        body: r#"{"title": "x", "kind": "gift", "amount_fen": 1e300, "quantity": 18446744073709551615,
            "valid_from": "tomorrow", "valid_until": "9999-01-01T00:00:00Z"}"#,
        faults: &["Idempotency-Key", "kind", "amount_fen", "quantity", "valid_from", "valid_until"],
    },
    Case {
        by: By::User,
        method: "post",
        route: "/orders/quote",
        path: "/orders/quote",
        headers: &[],
        body: r#"{"course_ids": ["00000000000000000000000000000001", "00000000000000000000000000000001"],
            "user_coupon_id": "x", "points": -1, "surprise": 1}"#,
        faults: &["course_ids", "user_coupon_id", "points", "surprise"],
    },
    Case {
        by: By::User,
        method: "post",
        route: "/orders",
        path: "/orders",
        headers: &[],
        body: r#"{"course_ids": ["X", 5, "00000000000000000000000000000001"], "user_coupon_id": 5, "points": 1.5,
            "surprise": 1, "surprise": 2}"#,
        faults: &["Idempotency-Key", "course_ids[0]", "course_ids[1]", "user_coupon_id", "points", "surprise"],
    },
    Case {
        by: By::User,
        method: "post",
        route: "/orders/{no}/pay",
        path: "/orders/nonsense/pay",
        headers: &[],
        body: r#"{"gateway": "piggybank", "surprise": 1}"#,
        faults: &["no", "gateway", "surprise"],
    },
    Case {
        by: By::User,
        method: "post",
        route: "/orders/{no}/pay",
        path: "/orders/%FF/pay",
        headers: &[],
        body: r#"{"gateway": "sandbox", "channel": "carrier pigeon", "again": 1, "again": 2}"#,
        faults: &["no", "channel", "again"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/seckill/activities",
        path: "/admin/seckill/activities",
        headers: &[],
        body: r#"{"course_id": "x", "title": "line\nbreak", "price_fen": "free", "stock": 0, "per_user_limit": 1e10,
            "starts_at": "2020-01-02T00:00:00Z", "ends_at": "2020-01-01T00:00:00Z", "surprise": 1}"#,
        faults: &["course_id", "title", "price_fen", "stock", "per_user_limit", "starts_at", "ends_at", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "patch",
        route: "/admin/seckill/activities/{id}",
        path: "/admin/seckill/activities/1",
        headers: &[],
        body: r#"{"stock": -1, "surprise": 1}"#,
        faults: &["id", "stock", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/schedules",
        path: "/admin/schedules",
        headers: &[],
        body: r#"{"id": "no", "name": "a\tb", "task": "auth.prune", "args": {"days": 3}, "kind": "crontab",
            "crontab": "60 25 * * *", "every_s": 5, "run_at": "soon", "time_zone": "Mars/Olympus", "catch_up": "never",
            "catch_up_max": 100000, "surprise": 1}"#,
        faults: &[
            "id",
            "name",
            "args.days",
            "crontab.minute",
            "crontab.hour",
            "every_s",
            "run_at",
            "time_zone",
            "catch_up",
            "catch_up_max",
            "surprise",
        ],
    },
    Case {
        by: By::Admin,
        method: "patch",
        route: "/admin/schedules/{id}",
        path: "/admin/schedules/first",
        headers: &[],
        body: r#"{"name": "", "task": "no.such", "crontab": "0 99 * * *", "run_at": "2026-11-11T00:00:00Z",
            "time_zone": "Nowhere", "starts_at": "1999-01-01T00:00:00Z", "enabled": 1, "surprise": 1}"#,
        faults: &["id", "name", "task", "crontab.hour", "run_at", "time_zone", "starts_at", "enabled", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/queues/{queue}/dead/retry",
        path: "/admin/queues/NO%20QUEUE/dead/retry",
        headers: &[],
        body: r#"{"entries": ["1-0", "x", 5], "surprise": 1}"#,
        faults: &["queue", "entries[1]", "entries[2]", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "put",
        route: "/admin/queues/{queue}/concurrency",
        path: "/admin/queues/NO/concurrency",
        headers: &[],
        body: r#"{"concurrency": 0, "surprise": 1, "again": 1, "again": 1}"#,
        faults: &["queue", "concurrency", "surprise", "again"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/orders/{no}/refund",
        path: "/admin/orders/first/refund",
        headers: &[],
        body: r#"{"course_ids": ["x"], "amount_fen": 0, "reason": " ", "surprise": 1}"#,
        faults: &["no", "Idempotency-Key", "course_ids[0]", "amount_fen", "reason", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/payments/{no}/abandon",
        path: "/admin/payments/first/abandon",
        headers: &[],
        body: r#"{"reason": " \t", "surprise": 1}"#,
        faults: &["no", "reason", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/refunds/{no}/retry",
        path: "/admin/refunds/first/retry",
        headers: &[],
        body: r#"{"new_number": "yes", "surprise": 1}"#,
        faults: &["no", "new_number", "surprise"],
    },
    Case {
        by: By::Admin,
        method: "post",
        route: "/admin/payments/differences/{id}/resolve",
        path: "/admin/payments/differences/x/resolve",
        headers: &[],
        body: r#"{"note": " \n", "surprise": 1}"#,
        faults: &["id", "note", "surprise"],
    },
];

/// Paths with a query, and the fields at fault; all for administrators.
const WITH_QUERY: &[(&str, &[&str])] = &[
    ("/courses?cursor=x&limit=0&surprise=1", &["cursor", "limit", "surprise"]),
    ("/seckill/activities?cursor=%FF&limit=1.5&limit=2", &["cursor", "limit"]),
    ("/me/courses?cursor=X&limit=101", &["cursor", "limit"]),
    ("/me/coupons?cursor=5&limit=-1&a=1", &["cursor", "limit", "a"]),
    ("/me/points?cursor=&limit=99999999999999999999&a=1", &["cursor", "limit", "a"]),
    ("/orders?cursor=x&limit=x&status=lost&user=1", &["cursor", "limit", "status", "user"]),
    ("/tasks/x?wait=31&surprise=1", &["id", "wait", "surprise"]),
    ("/payments/sandbox/return?payment_no=x&payment_no=y", &["payment_no"]),
    ("/admin/schedules?cursor=x&limit=0&a=1", &["cursor", "limit", "a"]),
    ("/admin/queues?cursor=a%20b&limit=0&a=1", &["cursor", "limit", "a"]),
    ("/admin/queues/NO/dead?cursor=x&limit=0&a=1", &["queue", "cursor", "limit", "a"]),
    ("/admin/workers?cursor=%2F&limit=0&a=1", &["cursor", "limit", "a"]),
    (
        "/admin/tasks?queue=none&state=DONE&name=%20&since=soon&until=1999-01-01T00:00:00Z&cursor=z&limit=0&a=1",
        &["queue", "state", "name", "since", "until", "cursor", "limit", "a"],
    ),
    (
        "/admin/orders?status=lost&kind=gift&user_id=me&phone=12345678901&cursor=x&limit=0&a=1",
        &["status", "kind", "user_id", "phone", "cursor", "limit", "a"],
    ),
    ("/admin/orders/1", &["no"]),
    (
        "/admin/payments?order_no=x&gateway=cash&status=lost&resolution=none&cursor=x&limit=0&a=1",
        &["order_no", "gateway", "status", "resolution", "cursor", "limit", "a"],
    ),
    (
        "/admin/payments/notifications?payment_no=x&gateway=cash&outcome=lost&cursor=x&limit=0&a=1",
        &["payment_no", "gateway", "outcome", "cursor", "limit", "a"],
    ),
    ("/admin/refunds?order_no=x&status=lost&cursor=x&limit=0&a=1", &["order_no", "status", "cursor", "limit", "a"]),
    ("/admin/payments/bills?gateway=purse&cursor=x&limit=0&a=1", &["gateway", "cursor", "limit", "a"]),
    (
        "/admin/payments/differences?gateway=purse&what=tea&kind=big&status=lost&cursor=x&limit=0&a=1",
        &["gateway", "what", "kind", "status", "cursor", "limit", "a"],
    ),
    ("/admin/audit?action=Do&by=me&cursor=x&limit=0&a=1", &["action", "by", "cursor", "limit", "a"]),
];

/// The fields of a refusal, each once; what is said of them is for people.
fn told(answer: &Answer) -> BTreeSet<String> {
    let text = answer.text();
    for word in NOT_FOR_PEOPLE {
        assert!(!text.contains(word), "{word:?} in {text}");
    }
    let errors = answer["errors"].as_array().unwrap();
    let fields: BTreeSet<String> = errors.iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect();
    assert_eq!(fields.len(), errors.len(), "a field comes twice in {text}");
    assert!(errors.iter().all(|fault| !fault["message"].as_str().unwrap().is_empty()), "{text}");
    fields
}

fn set(fields: &[&str]) -> BTreeSet<String> {
    fields.iter().map(|field| (*field).to_owned()).collect()
}

async fn ask(h: &Harness, case: &Case, token: Option<&str>) -> Answer {
    let method = Method::from_bytes(case.method.to_uppercase().as_bytes()).unwrap();
    let request = match token {
        Some(token) => h.request(method, case.path, token),
        None => h.request(method, case.path, ()),
    };
    let request = case.headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    send(request.header("content-type", "application/json").body(case.body)).await
}

/// The tables that a request here could have changed.
const CHANGED: &str =
    "SELECT (SELECT COUNT(*) FROM orders) + (SELECT COUNT(*) FROM coupons) + (SELECT COUNT(*) FROM courses)
    + (SELECT COUNT(*) FROM seckill_activities) + (SELECT COUNT(*) FROM schedules) + (SELECT COUNT(*) FROM audit WHERE action <> 'access.forbidden')
    + (SELECT COUNT(*) FROM idempotency_keys) + (SELECT COUNT(*) FROM users)";

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_body_and_of_what_comes_with_it_is_told_at_once() {
    let h = Harness::new().await;
    let (user, admin) = (h.register().await, h.admin().await);
    let before = h.count(CHANGED).await;
    for case in WITH_BODY {
        let token = match case.by {
            By::Anybody => None,
            By::User => Some(&user.token),
            By::Admin => Some(&admin.token),
        };
        let answer = ask(&h, case, token.map(String::as_str)).await.problem(422, "validation_failed");
        assert_eq!(told(&answer), set(case.faults), "{} {}: {}", case.method, case.route, answer.text());
        // Who may not ask learns nothing else.
        if case.by != By::Anybody {
            ask(&h, case, None).await.problem(401, "unauthenticated");
        }
        if case.by == By::Admin {
            ask(&h, case, Some(&user.token)).await.problem(403, "forbidden");
        }
    }
    assert_eq!(h.count(CHANGED).await, before);
}

/// A route that is not in the list above would not be held to it.
#[test]
fn every_route_with_a_body_is_asked() {
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut unasked = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            // A gateway's body is its own.
            if operation["requestBody"].is_null() || path.ends_with("/notify") {
                continue;
            }
            let route = path.trim_start_matches(onrush::http::API);
            if !WITH_BODY.iter().any(|case| case.method == method && case.route == route) {
                unasked.push(format!("{method} {route}"));
            }
        }
    }
    assert!(unasked.is_empty(), "{unasked:?}");
    assert!(WITH_BODY.iter().all(|case| case.faults.len() >= 3));
}

/// What a page of documentation sends when nothing was changed in it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_buyer_is_shown_as_an_example_is_no_wrong_request() {
    let h = Harness::new().await;
    let user = h.register().await;
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    for case in WITH_BODY.iter().filter(|case| case.by != By::Admin) {
        let path = format!("{}{}", onrush::http::API, case.route);
        let body = &document["paths"][path][case.method]["requestBody"]["content"]["application/json"];
        let shape = body["schema"]["$ref"].as_str().and_then(|at| document.pointer(at.strip_prefix('#')?)).unwrap();
        let members = shape["properties"].as_object().unwrap().iter();
        let of_members = || members.map(|(name, member)| (name.clone(), member["example"].clone())).collect();
        let example = if shape["example"].is_null() { Value::Object(of_members()) } else { shape["example"].clone() };
        let path = case.route.replace("{no}", &"0".repeat(32));
        let answer = h.post_once(&path, &user, "once", example.clone()).await;
        // There is no such account, course, order.
        assert!(!matches!(answer.status, 400 | 415 | 422), "{path} {example}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_path_and_a_query_is_told_at_once() {
    let h = Harness::new().await;
    let admin = h.admin().await;
    for (path, faults) in WITH_QUERY {
        let answer = h.get(path, &admin).await.problem(422, "validation_failed");
        assert_eq!(told(&answer), set(faults), "{path}: {}", answer.text());
    }
    for (path, faults) in [
        ("/orders/x/cancel", ["no"].as_slice()),
        ("/coupons/%FF/claim", &["id"]),
        ("/seckill/activities/1/submissions", &["id"]),
        ("/admin/seckill/activities/1/close", &["id"]),
        ("/admin/queues/NO/pause", &["queue"]),
        ("/admin/queues/NO/resume", &["queue"]),
        ("/admin/queues/NO/purge", &["queue"]),
        ("/admin/queues/NO/dead/x/retry", &["queue", "entry"]),
        ("/admin/payments/notifications/x/rerun", &["id"]),
        ("/admin/payments/bills/sandbox/yesterday/fetch", &["day"]),
        ("/admin/tasks/x/revoke", &["id"]),
        ("/admin/tasks/x/retry", &["id"]),
    ] {
        let answer = send(h.request(Method::POST, path, &admin)).await.problem(422, "validation_failed");
        assert_eq!(told(&answer), set(faults), "{path}");
    }
    let answer = send(h.request(Method::DELETE, "/admin/queues/NO/dead/x", &admin)).await;
    assert_eq!(told(&answer.problem(422, "validation_failed")), set(&["queue", "entry"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_does_not_hide_other_faults() {
    let settings = vec![("http.body_limit_bytes", "2048".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (user, admin) = (h.register().await, h.admin().await);
    let change = async |kind: &str, body: Vec<u8>| {
        let request = h.request(Method::PATCH, "/admin/schedules/first", &admin).header("content-type", kind);
        send(request.body(body)).await
    };
    let malformed: [&[u8]; 8] = [
        b"",
        b"{\"name\":",
        b"{\"name\": \"\xff\"}",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"{\"every_s\": 1e999}",
        b"{'name': 1}",
        &[b'['; 1000],
    ];
    for body in malformed {
        let answer = change("application/json", body.to_vec()).await.problem(400, "malformed_json");
        assert_eq!(told(&answer), set(&["id", ""]));
    }
    let answer = change("application/json", vec![b' '; 3000]).await.problem(413, "payload_too_large");
    assert_eq!(told(&answer), set(&["id", ""]));
    for kind in ["text/plain", "application/json; charset=gbk", "application/json;charset=\"utf-16\""] {
        let answer = change(kind, b"{}".to_vec()).await.problem(415, "unsupported_media_type");
        assert_eq!(told(&answer), set(&["id", "Content-Type"]), "{kind}");
        // Under whatever name it comes, its own faults are told with that of the name.
        let answer = change(kind, br#"{"every_s": 0, "zone": 1}"#.to_vec()).await;
        let answer = answer.problem(415, "unsupported_media_type");
        assert_eq!(told(&answer), set(&["id", "Content-Type", "every_s", "zone"]), "{kind}");
        let answer = change(kind, b"every_s=0".to_vec()).await.problem(415, "unsupported_media_type");
        assert_eq!(told(&answer), set(&["id", "Content-Type", ""]), "{kind}");
    }
    for body in [json!(null), json!([]), json!("text"), json!(5)] {
        let answer = h.patch("/admin/schedules/first", &admin, body).await.problem(422, "validation_failed");
        assert_eq!(told(&answer), set(&["id", ""]));
    }
    let answer = change("application/json; charset=UTF-8", b"{}".to_vec()).await.problem(422, "validation_failed");
    assert_eq!(told(&answer), set(&["id"]));
    // A header alone keeps the name that says so.
    let order = json!({"course_ids": ["0".repeat(32)]});
    let answer = h.post("/orders", &user, order.clone()).await.problem(400, "idempotency_key_missing");
    assert_eq!(told(&answer), set(&["Idempotency-Key"]));
    let answer = h.post_once("/orders", &user, "two words", order).await.problem(400, "idempotency_key_invalid");
    assert_eq!(told(&answer), set(&["Idempotency-Key"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_what_would_be_right() {
    let h = Harness::new().await;
    let admin = h.admin().await;
    let body = json!({
        "course_id": "x", "title": " ", "price_fen": "free", "stock": 0, "per_user_limit": 101, "starts_at": "soon",
        "ends_at": 5, "pay_deadline_s": 99999999999i64,
    });
    let answer = h.post("/admin/seckill/activities", &admin, body).await.problem(422, "validation_failed");
    let message = |answer: &Answer, field: &str| {
        let errors = answer["errors"].as_array().unwrap().clone();
        let fault = errors.into_iter().find(|fault| fault["field"] == field);
        fault.unwrap_or_else(|| panic!("no {field} in {}", answer.text()))["message"].clone()
    };
    for (field, expected) in [
        ("course_id", "must be an id of 32 hex digits in lower case, such as 019aa23b8f007cc3a1d2c0ffee000001"),
        ("title", "must not be blank"),
        ("price_fen", "must be a whole number"),
        ("stock", "must be at least 1"),
        ("per_user_limit", "must be at most 100"),
        ("pay_deadline_s", "is too large"),
        ("starts_at", "must be an instant with its zone, such as 2026-11-11T00:00:00Z"),
        ("ends_at", "must be an instant with its zone, such as 2026-11-11T00:00:00Z"),
    ] {
        assert_eq!(message(&answer, field), expected);
    }
    let answer = h.get("/orders?status=lost&limit=x", &admin).await.problem(422, "validation_failed");
    let statuses = "must be one of: unpaid, paid, cancelled, timed_out, refunding, refunded";
    assert_eq!(message(&answer, "status"), statuses);
    assert_eq!(message(&answer, "limit"), "must be a whole number");
    let course =
        json!({"id": "0".repeat(32), "title": 5, "summary": "", "price_fen": 1, "published": 0, "chapters": {}});
    let answer = h.post("/admin/courses", &admin, course).await.problem(422, "validation_failed");
    let uuid = "must be a UUID of version 7, such as 019aa23b8f007cc3a1d2c0ffee000001";
    assert_eq!(message(&answer, "id"), uuid);
    assert_eq!(message(&answer, "title"), "must be text");
    assert_eq!(message(&answer, "published"), "must be true or false");
    assert_eq!(message(&answer, "chapters"), "must be a list");
    let none: Vec<Value> = Vec::new();
    let answer = h.post("/orders/quote", &admin, json!({"course_ids": none})).await.problem(422, "validation_failed");
    assert_eq!(message(&answer, "course_ids"), "must have a length of at least 1");
}
