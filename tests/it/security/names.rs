//! Text that people read: there is something to see, it is what is written, and nobody is taken for the shop.

use super::*;

/// (name, text) of what shows nothing, or something else than what is written.
const BAD: &[(&str, &str)] = &[
    ("a zero width space", "\u{200B}"),
    ("a Hangul filler", "\u{3164}"),
    ("a Braille blank", "\u{2800}"),
    ("blanks of all kinds", " \u{3000}\u{A0}\u{FEFF}\u{200D}"),
    ("a mark on nothing", "\u{301}"),
    ("an override", "\u{202E}gnp.exe"),
    ("an embedding", "a\u{202A}b"),
    ("an isolate", "a\u{2067}b\u{2069}"),
    ("a line separator", "a\u{2028}b"),
    ("a paragraph separator", "a\u{2029}b"),
    ("a control character", "a\u{85}b"),
    ("a bell", "a\u{7}b"),
];

/// Every route with text that a person reads: the method, the path, the field, and a body where the text is missing.
fn texts(h: &Harness) -> Vec<(Method, String, &'static str, Value)> {
    let id = || Uuid::now_v7().as_simple().to_string();
    let (now, later) = (h.now(), h.now().plus(Duration::from_secs(3600)));
    let course = || json!({"id": id(), "title": "t", "summary": "", "price_fen": 1, "chapters": ["c"]});
    let post = |path: &str, field, body| (Method::POST, path.to_owned(), field, body);
    vec![
        post("/auth/register", "nickname", json!({"phone": PHONE, "password": PASSWORD})),
        post("/admin/courses", "title", course()),
        post("/admin/courses", "summary", course()),
        post("/admin/courses", "chapters[0]", course()),
        post(
            "/admin/coupons",
            "title",
            json!({"kind": "amount", "amount_fen": 1, "quantity": 1, "valid_from": now, "valid_until": later}),
        ),
        post(
            "/admin/seckill/activities",
            "title",
            json!({"course_id": id(), "price_fen": 1, "stock": 1, "starts_at": now, "ends_at": later}),
        ),
        post("/admin/schedules", "name", json!({"task": "auth.prune", "kind": "interval", "every_s": 60})),
        (Method::PATCH, format!("/admin/schedules/{}", id()), "name", json!({})),
        post(&format!("/admin/orders/{}/refund", id()), "reason", json!({})),
        post(&format!("/admin/payments/{}/abandon", id()), "reason", json!({})),
        post(&format!("/admin/payments/differences/{}/resolve", id()), "note", json!({})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_shows_nothing_or_another_text_is_refused_everywhere() {
    let h = Harness::new().await;
    let admin = h.admin().await;
    for (method, path, field, body) in texts(&h) {
        for (name, text) in BAD {
            let mut body = body.clone();
            match field.strip_suffix("[0]") {
                Some(list) => body[list] = json!([text]),
                None => body[field] = json!(text),
            }
            let request = h.request(method.clone(), &path, &admin).header("idempotency-key", "k").json(&body);
            let refused = send(request).await;
            assert_eq!(refused.status, 422, "{name} as {field} of {path}: {}", refused.text());
            assert_eq!(fields(&refused), [field], "{name} of {path}");
        }
    }
    for table in ["courses", "coupons", "seckill_activities", "schedules"] {
        let sql = format!("SELECT COUNT(*) FROM {table}");
        let count: i64 = sqlx::query_scalar(&sql).fetch_one(&h.app.db).await.unwrap();
        assert_eq!(count, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_kept_in_one_spelling() {
    let h = Harness::new().await;
    let admin = h.admin().await;
    let id = Uuid::now_v7().as_simple().to_string();
    let course = |mark: &str| {
        json!({"id": id, "title": format!("Re{mark}"), "summary": format!("a\nRe{mark}"), "price_fen": 1,
            "chapters": [format!("Re{mark}"), "二"]})
    };
    let made = h.post("/admin/courses", &admin, course("\u{301}")).await.expect(201);
    assert_eq!((made["title"].as_str(), made["summary"].as_str()), (Some("R\u{e9}"), Some("a\nR\u{e9}")));
    assert_eq!(made["chapters"][0]["title"], "R\u{e9}");
    // The other spelling is the same request.
    let again =
        json!({"id": id, "title": "R\u{e9}", "summary": "a\nR\u{e9}", "price_fen": 1, "chapters": ["R\u{e9}", "二"]});
    h.post("/admin/courses", &admin, again).await.expect(201);
    let body = json!({"phone": PHONE, "password": PASSWORD, "nickname": "Rene\u{301} 👩\u{200D}💻"});
    let new = h.post("/auth/register", (), body).await.expect(201);
    assert_eq!(new["user"]["nickname"], "Ren\u{e9} 👩\u{200D}💻");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_may_call_themselves_the_shop() {
    let h = Harness::new().await;
    let register = async |phone: &str, nickname: &str| {
        h.post("/auth/register", (), json!({"phone": phone, "password": PASSWORD, "nickname": nickname})).await
    };
    for bad in ["admin", "ADMIN", "\u{430}dmin", "ａｄｍｉｎ", "管理员", "官方客服", "客\u{200B}服", "system", "onrush"]
    {
        let refused = register(PHONE, bad).await.problem(422, "validation_failed");
        assert_eq!(fields(&refused), ["nickname"], "{bad}");
    }
    for (at, good) in ["小明", "badminton", "系统架构师"].into_iter().enumerate() {
        register(&format!("1380000010{at}"), good).await.expect(201);
    }
}
