//! What an administrator may say of schedules, and what is refused.

use std::time::Duration;

use onrush::jobs;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Desk, MINUTE};
use crate::support::Answer;
use crate::support::client::send;

/// The faults of a refused request: (field, message).
fn faults(answer: &Answer) -> Vec<(String, String)> {
    let text = |fault: &Value, member: &str| fault[member].as_str().unwrap().to_owned();
    answer["errors"].as_array().unwrap().iter().map(|f| (text(f, "field"), text(f, "message"))).collect()
}

async fn refused(desk: &Desk, body: Value) -> Vec<(String, String)> {
    faults(&desk.h.post("/admin/schedules", &desk.token(), body).await.problem(422, "validation_failed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correct_schedule_shows_its_next_five_runs() {
    let desk = Desk::at("2026-11-21T09:00:00.000Z").await;
    let body = json!({
        "name": "weekdays", "task": "check.invariants", "kind": "crontab", "crontab": "30 7 * * mon-fri",
        "time_zone": "Asia/Shanghai",
    });
    let made = desk.h.post("/admin/schedules", &desk.token(), body).await.expect(201);
    let runs = json!([
        "2026-11-22T23:30:00.000Z",
        "2026-11-23T23:30:00.000Z",
        "2026-11-24T23:30:00.000Z",
        "2026-11-25T23:30:00.000Z",
        "2026-11-26T23:30:00.000Z"
    ]);
    assert_eq!(made["next_runs"], runs);
    assert_eq!(made["next_run_at"], runs[0]);
    let (args, catch_up, enabled) = (&made["args"], &made["catch_up"], &made["enabled"]);
    assert_eq!((args, catch_up, enabled), (&json!({}), &json!("once"), &json!(true)));
    let shown = desk.look(&made.text_of("id")).await;
    assert_eq!(shown.body, made.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_crontab_names_the_field_and_the_reason() {
    let desk = Desk::new().await;
    let base = json!({ "name": "x", "task": "auth.prune", "kind": "crontab" });
    let told = async |crontab: &str| {
        let mut body = base.clone();
        body["crontab"] = json!(crontab);
        refused(&desk, body).await
    };
    let fault = |field: &str, message: &str| vec![(field.to_owned(), message.to_owned())];
    assert_eq!(told("60 * * * *").await, fault("crontab.minute", "`60` is not in 0..59"));
    assert_eq!(told("0 0 * * 7").await, fault("crontab.day_of_week", "`7` is not in 0..6"));
    assert_eq!(told("0 0 30 2 *").await, fault("crontab.day_of_month", "`30` never occurs in month_of_year `2`"));
    let all = told("x 25 * * noday").await;
    let fields: Vec<&str> = all.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["crontab.minute", "crontab.hour", "crontab.day_of_week"]);
    assert_eq!(told("0 0 * *").await[0].0, "crontab.expression");
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM schedules").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_schedule_is_told_at_once() {
    let desk = Desk::new().await;
    let body = json!({
        "id": "no", "name": "", "task": "no.such", "args": [], "kind": "interval", "every_s": 0, "crontab": "* * * * *",
        "run_at": "soon", "time_zone": "Mars/Olympus", "starts_at": "1999-01-01T00:00:00.000Z", "catch_up": "never",
        "catch_up_max": 5000, "surprise": 1,
    });
    let mut fields: Vec<String> = refused(&desk, body).await.into_iter().map(|(field, _)| field).collect();
    fields.sort_unstable();
    let expected = [
        "args",
        "catch_up",
        "catch_up_max",
        "crontab",
        "every_s",
        "id",
        "name",
        "run_at",
        "starts_at",
        "surprise",
        "task",
        "time_zone",
    ];
    assert_eq!(fields, expected);
    let missing = refused(&desk, json!({})).await;
    assert_eq!(missing.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), ["name", "task", "kind"]);
    for (kind, field) in [("interval", "every_s"), ("crontab", "crontab"), ("once", "run_at")] {
        let told = refused(&desk, json!({ "name": "x", "task": "auth.prune", "kind": kind })).await;
        assert_eq!(told.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), [field]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_can_be_scheduled_with_arguments_that_fit_is_taken() {
    let desk = Desk::new().await;
    let body =
        |task: &str, args: Value| json!({ "name": "x", "task": task, "args": args, "kind": "interval", "every_s": 60 });
    // A task of ours, but not one for schedules.
    let told = refused(&desk, body("seckill.place", json!({}))).await;
    assert!(told[0].0 == "task" && told[0].1.contains("check.invariants"), "{told:?}");
    let told = refused(&desk, body("auth.prune", json!({ "days": 3 }))).await;
    assert_eq!(told[0].0, "args.days");
    // A crontab that is none is told also where the kind is none.
    let neither = json!({ "name": "x", "task": "auth.prune", "kind": "weekly", "crontab": "0 99 * * *" });
    let fields: Vec<String> = refused(&desk, neither).await.into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["kind", "crontab.hour"]);
    let past = json!({ "name": "x", "task": "auth.prune", "kind": "once", "run_at": "2001-01-01T00:00:00.000Z" });
    assert_eq!(refused(&desk, past).await[0].0, "run_at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_edit_is_refused_as_a_whole() {
    let desk = Desk::new().await;
    let id = desk.schedule("firm", json!({ "kind": "interval", "every_s": 60 })).await;
    let path = format!("/admin/schedules/{id}");
    let edit = json!({ "name": "soft", "kind": "crontab", "crontab": "0 99 * * *", "time_zone": "Nowhere" });
    let told = faults(&desk.h.patch(&path, &desk.token(), edit).await.problem(422, "validation_failed"));
    let fields: Vec<&str> = told.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["time_zone", "crontab.hour"]);
    assert_eq!(desk.look(&id).await["name"], "firm");
    // What goes with another kind alone.
    let told = desk.h.patch(&path, &desk.token(), json!({ "crontab": "0 9 * * *" })).await;
    assert_eq!(faults(&told.problem(422, "validation_failed"))[0].0, "crontab");
    let absent = format!("/admin/schedules/{}", "0".repeat(32));
    desk.h.patch(&absent, &desk.token(), json!({})).await.problem(404, "not_found");
    desk.h.get(&absent, &desk.token()).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn making_and_removing_a_schedule_may_be_repeated() {
    let desk = Desk::new().await;
    let id = "0193".repeat(8);
    let body = json!({ "id": id, "name": "mine", "task": "auth.prune", "kind": "interval", "every_s": 60 });
    let first = desk.h.post("/admin/schedules", &desk.token(), body.clone()).await.expect(201);
    let again = desk.h.post("/admin/schedules", &desk.token(), body.clone()).await.expect(201);
    assert_eq!(first.body, again.body);
    let other = json!({ "name": "mine", "task": "auth.prune", "kind": "interval", "every_s": 60 });
    desk.h.post("/admin/schedules", &desk.token(), other).await.problem(409, "schedule_exists");
    let second = desk.schedule("yours", json!({ "kind": "interval", "every_s": 60 })).await;
    let taken = desk.h.patch(&format!("/admin/schedules/{second}"), &desk.token(), json!({ "name": "mine" })).await;
    taken.problem(409, "schedule_exists");
    let page = desk.h.get("/admin/schedules?limit=1", &desk.token()).await.expect(200);
    let rest = format!("/admin/schedules?limit=1&cursor={}", page.text_of("next_cursor"));
    let rest = desk.h.get(&rest, &desk.token()).await.expect(200);
    assert_eq!([&page["items"][0]["name"], &rest["items"][0]["name"]], ["yours", "mine"]);
    for _ in 0..2 {
        let gone = desk.h.request(Method::DELETE, &format!("/admin/schedules/{id}"), &desk.token());
        send(gone).await.expect(204);
    }
    desk.h.get(&format!("/admin/schedules/{id}"), &desk.token()).await.problem(404, "not_found");
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM schedules").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_for_administrators() {
    let desk = Desk::new().await;
    let id = desk.schedule("secret", json!({ "kind": "interval", "every_s": 60 })).await;
    let (user, one) = (desk.h.register().await, format!("/admin/schedules/{id}"));
    let body = json!({ "name": "x", "task": "auth.prune", "kind": "interval", "every_s": 60 });
    for (method, path) in [
        (Method::GET, "/admin/schedules"),
        (Method::POST, "/admin/schedules"),
        (Method::GET, &one),
        (Method::PATCH, &one),
        (Method::DELETE, &one),
    ] {
        send(desk.h.request(method.clone(), path, &user).json(&body)).await.problem(403, "forbidden");
        send(desk.h.request(method, path, ()).json(&body)).await.problem(401, "unauthenticated");
    }
    assert_eq!(desk.look(&id).await["name"], "secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_schedules_are_made_once_and_an_edit_survives_a_restart() {
    let desk = Desk::new().await;
    let own = jobs::own_schedules(&desk.h.app.config, desk.h.now());
    // Two processes that start at once.
    let (one, other) = tokio::join!(desk.scheduler.make_absent(&own), desk.scheduler.make_absent(&own));
    one.and(other).unwrap();
    let page = desk.h.get("/admin/schedules?limit=100", &desk.token()).await.expect(200);
    let items = page["items"].as_array().unwrap();
    assert_eq!(items.len(), own.len());
    let sweep = items.iter().find(|item| item["name"] == "orders.sweep").expect("the sweep");
    assert_eq!((&sweep["every_s"], &sweep["overlap"]), (&json!(10), &json!(false)));
    let id = sweep["id"].as_str().unwrap();
    let edited = desk.change(id, json!({ "every_s": 25, "enabled": false })).await;
    // A restart: a service on the same database, which starts all that it has.
    desk.h.advance(MINUTE);
    let next = desk.h.another().await;
    next.start_workers();
    let alone = "SELECT COUNT(*) FROM leases WHERE holder <> ''";
    next.eventually(async || next.count(alone).await == 1).await;
    assert_eq!(desk.look(id).await.body, edited.body);
    assert_eq!(next.count("SELECT COUNT(*) FROM schedules").await, i64::try_from(own.len()).unwrap());
    next.advance(Duration::from_secs(1));
}
