//! Courses, and who owns them.

use std::collections::HashSet;

use onrush::auth::{self, Role, UserId};
use onrush::catalogue::{self, CourseForSale, CourseId};
use onrush::error::retrying;
use onrush::platform::money::Money;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::send;
use crate::support::{Answer, Course, Harness};

async fn token(h: &Harness, role: Role) -> String {
    let person = if role == Role::Admin { h.admin().await } else { h.register().await };
    person.token
}

/// Somebody with an account.
async fn somebody(h: &Harness) -> UserId {
    UserId::from_uuid(h.register().await.id)
}

fn new_course(id: CourseId) -> Value {
    json!({"id": id, "title": "Rust 入门", "summary": "从零开始", "price_fen": 9900, "chapters": ["一", "二", "三"]})
}

async fn grant(h: &Harness, grants: &[(UserId, CourseId, Uuid)]) {
    let granted = retrying(async || {
        let mut tx = h.app.db.begin().await?;
        catalogue::grant(&mut tx, grants, h.now()).await?;
        Ok(tx.commit().await?)
    });
    granted.await.unwrap();
}

async fn revoke(h: &Harness, order: Uuid) {
    let courses: Vec<CourseId> =
        sqlx::query_scalar("SELECT id FROM courses ORDER BY id").fetch_all(&h.app.db).await.unwrap();
    let revoked = retrying(async || {
        let mut tx = h.app.db.begin().await?;
        catalogue::revoke(&mut tx, order, &courses).await?;
        Ok(tx.commit().await?)
    });
    revoked.await.unwrap();
}

fn id_of(course: &Course) -> CourseId {
    CourseId::from_uuid(course.id)
}

async fn my_courses(h: &Harness, user: UserId) -> Answer {
    h.get("/me/courses", &auth::access_token(&h.app, user, Role::User).unwrap()).await.expect(200)
}

fn ids(page: &Answer) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_course_that_an_admin_creates_is_shown_with_its_chapters_in_order() {
    let h = Harness::new().await;
    let id = CourseId::new();
    let created = h.post("/admin/courses", &token(&h, Role::Admin).await, new_course(id)).await.expect(201);
    let shown = h.get(&format!("/courses/{id}"), ()).await.expect(200);
    assert_eq!(shown.body, created.body);
    assert_eq!((shown["title"].as_str(), shown["price_fen"].as_i64()), (Some("Rust 入门"), Some(9900)));
    let chapters: Vec<_> =
        shown["chapters"].as_array().unwrap().iter().map(|c| (&c["position"], &c["title"])).collect();
    assert_eq!(json!(chapters), json!([[1, "一"], [2, "二"], [3, "三"]]));
    assert_eq!(ids(&h.get("/courses", ()).await.expect(200)), [id.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_a_course_again_answers_it_and_another_under_its_id_is_refused() {
    let h = Harness::new().await;
    let (admin, id) = (token(&h, Role::Admin).await, CourseId::new());
    let request = || h.post("/admin/courses", &admin, new_course(id));
    let answers = futures_util::future::join_all((0..6).map(|_| request())).await;
    let first = answers[0].clone().expect(201);
    for answer in answers {
        assert_eq!(answer.expect(201).body, first.body);
    }
    for (field, value) in [
        ("title", json!("x")),
        ("summary", json!("")),
        ("price_fen", json!(1)),
        ("published", json!(false)),
        ("chapters", json!(["一", "二"])),
    ] {
        let mut other = new_course(id);
        other[field] = value;
        h.post("/admin/courses", &admin, other).await.problem(409, "course_exists");
    }
    assert_eq!(h.get(&format!("/courses/{id}"), ()).await.expect(200).body, first.body);
    assert_eq!(h.count("SELECT COUNT(*) FROM chapters").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_creates_courses_and_every_fault_is_told() {
    let h = Harness::new().await;
    h.post("/admin/courses", (), new_course(CourseId::new())).await.problem(401, "unauthenticated");
    h.post("/admin/courses", &token(&h, Role::User).await, new_course(CourseId::new())).await.problem(403, "forbidden");
    let bad =
        json!({"id": "0".repeat(32), "title": "", "summary": 1, "price_fen": -1, "chapters": ["", "二"], "extra": 1});
    let told = h.post("/admin/courses", &token(&h, Role::Admin).await, bad).await.problem(422, "validation_failed");
    let fields: HashSet<&str> =
        told["errors"].as_array().unwrap().iter().map(|f| f["field"].as_str().unwrap()).collect();
    assert_eq!(fields, HashSet::from(["id", "title", "summary", "price_fen", "chapters[0]", "extra"]));
    let mut many = new_course(CourseId::new());
    many["chapters"] = json!(vec!["x"; 201]);
    many["price_fen"] = json!(9_223_372_036_854_775_808_u64);
    h.post("/admin/courses", &token(&h, Role::Admin).await, many).await.problem(422, "validation_failed");
    assert_eq!(h.count("SELECT COUNT(*) FROM courses").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpublished_course_is_nowhere_in_the_shop() {
    let h = Harness::new().await;
    let (seen, id) = (h.course(100).await, CourseId::new());
    let mut hidden = new_course(id);
    hidden["published"] = json!(false);
    h.post("/admin/courses", &token(&h, Role::Admin).await, hidden).await.expect(201);
    h.get(&format!("/courses/{id}"), ()).await.problem(404, "not_found");
    assert_eq!(ids(&h.get("/courses", ()).await.expect(200)), [seen.no()]);
    let mut conn = h.app.db.acquire().await.unwrap();
    let for_sale = catalogue::courses_for_sale(&mut conn, &[id, id_of(&seen), CourseId::new()]).await.unwrap();
    let title = format!("课程 {}", seen.no());
    assert_eq!(for_sale, [CourseForSale { id: id_of(&seen), title, price: Money::fen(100) }]);
    assert!(catalogue::courses_for_sale(&mut conn, &[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_is_listed_in_pages_newest_first() {
    let h = Harness::new().await;
    let mut all = Vec::new();
    for price in 0..5 {
        all.insert(0, h.course(price).await.no());
    }
    let (mut seen, mut path) = (Vec::new(), "/courses?limit=2".to_owned());
    for length in [2, 2, 1] {
        let page = h.get(&path, ()).await.expect(200);
        assert_eq!(ids(&page).len(), length);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        path = format!("/courses?limit=2&cursor={}", page["next_cursor"].as_str().unwrap_or("none"));
    }
    assert!(path.ends_with("none"));
    assert_eq!(seen, all);
    for bad in ["cursor=x", "limit=0", "limit=101", "limit=-1", "limit=1e9", "page=2", "limit=1&limit=2"] {
        h.get(&format!("/courses?{bad}"), ()).await.problem(422, "validation_failed");
    }
    for bad in ["x", "%ff", "0", &"F".repeat(32)] {
        h.get(&format!("/courses/{bad}"), ()).await.problem(422, "validation_failed");
    }
    h.get(&format!("/courses/{}", CourseId::new()), ()).await.problem(404, "not_found");
    send(h.request(Method::DELETE, "/courses", ())).await.problem(405, "method_not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_given_twice_is_one_and_shows_in_my_courses() {
    let h = Harness::new().await;
    let (a, b, user, order) = (h.course(100).await, h.course(200).await, somebody(&h).await, Uuid::now_v7());
    let given = [(user, id_of(&b), order), (user, id_of(&a), order)];
    grant(&h, &given).await;
    let before = my_courses(&h, user).await;
    assert_eq!(ids(&before), [b.no(), a.no()]);
    let first = &before["items"][0];
    assert_eq!(first["order_no"], order.as_simple().to_string());
    assert_eq!((first["chapter_count"].as_i64(), &first["granted_at"]), (Some(3), &json!(h.now())));

    h.advance(std::time::Duration::from_secs(60));
    grant(&h, &given).await;
    assert_eq!(my_courses(&h, user).await.body, before.body);
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 2);
    assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 6);
    grant(&h, &[]).await;
    assert!(ids(&my_courses(&h, somebody(&h).await).await).is_empty());
    h.get("/me/courses", ()).await.problem(401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn my_courses_come_in_pages() {
    let h = Harness::new().await;
    let (user, order) = (somebody(&h).await, Uuid::now_v7());
    let mut all = Vec::new();
    for price in 0..3 {
        let course = h.course(price).await;
        grant(&h, &[(user, id_of(&course), order), (UserId::new(), id_of(&course), Uuid::now_v7())]).await;
        all.insert(0, course.no());
    }
    let who = auth::access_token(&h.app, user, Role::User).unwrap();
    let first = h.get("/me/courses?limit=2", &who).await.expect(200);
    let rest = h.get(&format!("/me/courses?limit=2&cursor={}", first.text_of("next_cursor")), &who).await.expect(200);
    assert_eq!([ids(&first), ids(&rest)].concat(), all);
    assert!(rest["next_cursor"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_back_one_order_leaves_what_another_gave() {
    let h = Harness::new().await;
    let (a, b, user) = (h.course(100).await, h.course(200).await, somebody(&h).await);
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    grant(&h, &[(user, id_of(&a), first), (user, id_of(&b), first)]).await;
    grant(&h, &[(user, id_of(&a), second), (UserId::new(), id_of(&b), Uuid::now_v7())]).await;

    revoke(&h, first).await;
    let left = my_courses(&h, user).await;
    assert_eq!(ids(&left), [a.no()]);
    let item = &left["items"][0];
    assert_eq!((item["chapter_count"].as_i64(), &item["order_no"]), (Some(3), &json!(second.as_simple().to_string())));
    revoke(&h, first).await;
    assert_eq!(ids(&my_courses(&h, user).await), [a.no()]);
    revoke(&h, second).await;
    assert!(ids(&my_courses(&h, user).await).is_empty());
    // The other user's course and chapters are untouched.
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_beside_a_grant_of_the_same_course_leaves_it_whole() {
    let h = Harness::new().await;
    let (course, user) = (h.course(100).await, somebody(&h).await);
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    grant(&h, &[(user, id_of(&course), first)]).await;
    // The grant has everything and is not committed when the revoke comes.
    let mut tx = h.app.db.begin().await.unwrap();
    catalogue::grant(&mut tx, &[(user, id_of(&course), second)], h.now()).await.unwrap();
    let granted = async {
        h.eventually(async || h.held_up(1).await).await;
        tx.commit().await.unwrap();
    };
    tokio::join!(revoke(&h, first), granted);
    let mine = my_courses(&h, user).await;
    let item = &mine["items"][0];
    assert_eq!((item["chapter_count"].as_i64(), &item["order_no"]), (Some(3), &json!(second.as_simple().to_string())));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_owns_what_is_answered_for_many_at_once() {
    let h = Harness::new().await;
    let (a, b, order) = (h.course(100).await, h.course(200).await, Uuid::now_v7());
    let users: Vec<UserId> = (0..1200).map(|_| UserId::new()).collect();
    let grants: Vec<_> = users.iter().step_by(2).map(|user| (*user, id_of(&a), order)).collect();
    grant(&h, &grants).await;
    let mut conn = h.app.db.acquire().await.unwrap();
    let owners = catalogue::owners(&mut conn, id_of(&a), &users).await.unwrap();
    assert_eq!(owners, users.iter().copied().step_by(2).collect());
    assert!(catalogue::owners(&mut conn, id_of(&b), &users).await.unwrap().is_empty());
    assert!(catalogue::owners(&mut conn, id_of(&a), &[]).await.unwrap().is_empty());
    let both = [id_of(&a), id_of(&b)];
    assert_eq!(catalogue::owned(&mut conn, users[0], &both).await.unwrap(), [id_of(&a)]);
    assert!(catalogue::owned(&mut conn, users[1], &both).await.unwrap().is_empty());
    assert!(catalogue::owned(&mut conn, users[0], &[]).await.unwrap().is_empty());
    assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 1800);
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_of_the_same_rows_at_once_do_not_stand_in_each_others_way() {
    let h = Harness::new().await;
    let (a, b) = (h.course(100).await, h.course(200).await);
    let users: Vec<UserId> = (0..50).map(|_| UserId::new()).collect();
    let order = Uuid::now_v7();
    let forward: Vec<_> = users.iter().flat_map(|u| [(*u, id_of(&a), order), (*u, id_of(&b), order)]).collect();
    let backward: Vec<_> = forward.iter().rev().copied().collect();
    // Once: a deadlock is a failure here.
    let once = async |grants: &[_]| {
        let mut tx = h.app.db.begin().await.unwrap();
        catalogue::grant(&mut tx, grants, h.now()).await.unwrap();
        tx.commit().await.unwrap();
    };
    for _ in 0..5 {
        tokio::join!(once(&forward), once(&backward), once(&forward), once(&backward));
        assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 100);
        assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 300);
        revoke(&h, order).await;
        assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, 0);
        assert_eq!(h.count("SELECT COUNT(*) FROM user_course_chapters").await, 0);
    }
}
