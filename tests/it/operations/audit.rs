//! The audit: who did what.

use super::*;

impl Desk {
    /// What the audit says, newest first: (action, target, outcome).
    async fn audit(&self, query: &str) -> Vec<(String, String, Value)> {
        let page = self.get(&format!("/admin/audit?limit=100{query}")).await;
        let text = |row: &Value, member: &str| row[member].as_str().unwrap().to_owned();
        let rows = page["items"].as_array().unwrap();
        rows.iter().map(|row| (text(row, "action"), text(row, "target"), row["outcome"].clone())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_on_the_queues_is_written_down_with_who_did_it_and_what_came_of_it() {
    let desk = Desk::new().await;
    let id = desk.enqueue("never").await;
    desk.act("/admin/queues/late/pause").await;
    desk.act("/admin/queues/late/resume").await;
    desk.put("/admin/queues/late/concurrency", json!({ "concurrency": 4 })).await.expect(200);
    desk.act(&format!("/admin/tasks/{id}/revoke")).await;
    desk.act(&format!("/admin/tasks/{id}/retry")).await;
    desk.act("/admin/queues/late/purge").await;
    desk.post("/admin/queues/late/dead/retry", json!({})).await;
    desk.act("/admin/queues/late/dead/1-0/retry").await;
    desk.delete("/admin/queues/late/dead/1-0").await.expect(204);
    desk.delete("/admin/queues/late/dead").await.expect(200);
    let unknown = "/admin/tasks/01936f3c7a3b70008000000000000001.late/revoke";
    send(desk.h.request(Method::POST, unknown, &desk.admin)).await.problem(404, "not_found");
    let mut rows = desk.audit("").await;
    rows.reverse();
    let row = |action: &str, target: &str, outcome: Value| (action.to_owned(), target.to_owned(), outcome);
    let none = json!({ "retried": 0, "more": false });
    let expected = [
        row("queue.pause", "late", json!({ "done": true })),
        row("queue.resume", "late", json!({ "done": true })),
        row("queue.concurrency", "late", json!({ "done": true })),
        row("task.revoke", &id.to_string(), json!({ "revoked": "now" })),
        row("task.retry", &id.to_string(), json!({ "retried": true })),
        row("queue.purge", "late", json!({ "purged": 1, "more": false })),
        row("dead.retry", "late", none.clone()),
        row("dead.retry", "late", none),
        row("dead.delete", "late", json!({ "deleted": 0 })),
        row("dead.delete", "late", json!({ "deleted": 0 })),
        row("task.revoke", "01936f3c7a3b70008000000000000001.late", json!({ "error": "not_found" })),
    ];
    assert_eq!(rows, expected);
    let page = desk.get("/admin/audit?action=queue.concurrency").await;
    let set = &page["items"][0];
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&set["by"], &set["details"]),
        (&json!(desk.admin.id.as_simple().to_string()), &json!({ "concurrency": 4 }))
    );
    assert!(set["at"].is_string());
    let other = desk.h.admin().await;
    assert!(desk.audit(&format!("&by={}", other.id.as_simple())).await.is_empty());
    let refused = desk.h.get("/admin/audit?action=Ünder&by=me&limit=0", &desk.admin).await;
    assert_eq!(fields(&refused.problem(422, "validation_failed")), ["action", "by", "limit"]);
    let first = desk.get("/admin/audit?limit=6").await;
    let rest = desk.get(&format!("/admin/audit?limit=6&cursor={}", first.text_of("next_cursor"))).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_shop_is_written_down_once_and_a_refused_one_as_a_refusal_alone() {
    let desk = Desk::new().await;
    let admin = &desk.admin;
    let course = json!({ "id": Uuid::now_v7().as_simple().to_string(), "title": "t", "summary": "", "price_fen": 1, "chapters": ["c"] });
    let coupon = json!({
        "title": "coupon", "kind": "amount", "amount_fen": 100, "quantity": 1,
        "valid_from": desk.h.now(), "valid_until": desk.h.now().plus(Duration::from_secs(60)),
    });
    let activity = json!({
        "id": Uuid::now_v7().as_simple().to_string(), "course_id": course["id"], "title": "sale", "price_fen": 1,
        "stock": 3, "starts_at": desk.h.now(), "ends_at": desk.h.now().plus(Duration::from_secs(3600)),
    });
    let schedule =
        json!({ "id": "0193".repeat(8), "name": "mine", "task": "auth.prune", "kind": "interval", "every_s": 60 });
    let sale = format!("/admin/seckill/activities/{}", activity["id"].as_str().unwrap());
    let timing = format!("/admin/schedules/{}", schedule["id"].as_str().unwrap());
    // Each twice: a repeat changes nothing, and is not written down.
    for _ in 0..2 {
        desk.h.post("/admin/courses", admin, course.clone()).await.expect(201);
        desk.h.post_once("/admin/coupons", admin, "one", coupon.clone()).await.expect(201);
        desk.h.post("/admin/seckill/activities", admin, activity.clone()).await.expect(201);
        desk.h.post("/admin/schedules", admin, schedule.clone()).await.expect(201);
    }
    desk.h.patch(&sale, admin, json!({ "stock": 5 })).await.expect(200);
    for _ in 0..2 {
        desk.h.post(&format!("{sale}/close"), admin, json!({})).await.expect(200);
    }
    desk.h.patch(&timing, admin, json!({ "every_s": 90 })).await.expect(200);
    for _ in 0..2 {
        desk.delete(&timing).await.expect(204);
    }
    // Refused.
    let mut taken = course.clone();
    taken["title"] = json!("another");
    desk.h.post("/admin/courses", admin, taken).await.problem(409, "course_exists");
    desk.h.patch(&sale, &desk.h.register().await, json!({ "stock": 9 })).await.problem(403, "forbidden");
    let mut actions: Vec<String> = desk.audit("").await.into_iter().map(|(action, ..)| action).collect();
    actions.reverse();
    let expected = [
        "course.create",
        "coupon.create",
        "activity.create",
        "schedule.create",
        "activity.change",
        "activity.close",
        "schedule.change",
        "schedule.delete",
    ];
    // What was noted of somebody stands at the beginning of its hour.
    assert_eq!(actions.iter().filter(|action| *action == "access.forbidden").count(), 1);
    actions.retain(|action| action != "access.forbidden");
    assert_eq!(actions, expected);
    let change = desk.get("/admin/audit?action=schedule.change").await["items"][0]["details"].clone();
    assert_eq!((&change["before"]["every_s"], &change["after"]["every_s"]), (&json!(60), &json!(90)));
    let undone = desk
        .h
        .count(
            "SELECT COUNT(*) FROM audit WHERE action <> 'access.forbidden' AND (outcome IS NULL OR outcome <> '{\"done\":true}')",
        )
        .await;
    assert_eq!(undone, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_row_nothing_is_done() {
    let desk = Desk::new().await;
    sqlx::query("ALTER TABLE audit RENAME TO audit_away").execute(&desk.h.app.db).await.unwrap();
    let pause = desk.h.request(Method::POST, "/admin/queues/late/pause", &desk.admin);
    send(pause).await.problem(500, "internal");
    assert_eq!(desk.get("/admin/queues/late").await["paused"], false);
    let schedule = json!({ "name": "mine", "task": "auth.prune", "kind": "interval", "every_s": 60 });
    desk.h.post("/admin/schedules", &desk.admin, schedule).await.problem(500, "internal");
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM schedules").await, 0);
}
