//! Leaders that die or double, clocks that jump, Redis that is away.

use std::time::Duration;

use futures_util::future::join_all;
use onrush::jobs;
use onrush::platform::clock::At;
use onrush::platform::text::Text;
use serde_json::{Value, json};

use super::{Desk, MINUTE, set_clock};
use crate::support::{Harness, Options, PrivateServers};

#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_at_once_run_each_occurrence_once() {
    let desk = Desk::new().await;
    let (second, third) = (desk.h.another().await, desk.h.another().await);
    let schedulers = [&desk.h, &second, &third].map(|h| jobs::scheduler(&h.app));
    let mut ids = Vec::new();
    for n in 1..=8 {
        let times = json!({ "kind": "interval", "every_s": n, "catch_up": "each" });
        ids.push((n, desk.schedule(&format!("every {n} s"), times).await));
    }
    for _ in 0..20 {
        desk.h.advance(Duration::from_secs(2));
        for pass in join_all(schedulers.iter().map(|scheduler| scheduler.pass())).await {
            pass.unwrap();
        }
    }
    let mut all = 0;
    for (n, id) in &ids {
        assert_eq!(desk.runs(id).await, 40 / n, "every {n} s");
        all += 40 / n;
    }
    assert_eq!(desk.enqueued().await, all.unsigned_abs());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_meet_between_the_task_and_the_row_enqueue_it_once() {
    let desk = Desk::new().await;
    let id = desk.schedule("met", json!({ "kind": "interval", "every_s": 60 })).await;
    desk.h.advance(MINUTE);
    // Nobody can move the row on while this holds it.
    let mut hold = desk.h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM schedules FOR UPDATE").execute(&mut *hold).await.unwrap();
    let one = tokio::spawn({
        let scheduler = desk.scheduler.clone();
        async move { scheduler.pass().await }
    });
    desk.h.eventually(async || desk.enqueued().await == 1).await;
    let other = tokio::spawn({
        let scheduler = jobs::scheduler(&desk.h.app);
        async move { scheduler.pass().await }
    });
    // Both have read the row as it was, and wait to move it on.
    desk.h.eventually(async || desk.h.held_up(2).await).await;
    hold.rollback().await.unwrap();
    one.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    assert_eq!((desk.enqueued().await, desk.runs(&id).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_before_it_moves_the_row_on_loses_and_doubles_nothing() {
    let desk = Desk::new().await;
    let id = desk.schedule("died", json!({ "kind": "interval", "every_s": 60 })).await;
    let before = desk.look(&id).await;
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    // As if the update had never been made.
    let undo = "UPDATE schedules SET next_run_at = ?, last_run_at = NULL, total_runs = 0, last_task = NULL \
                WHERE name = 'died'";
    let due: jiff::Timestamp = before.text_of("next_run_at").parse().unwrap();
    let undone = sqlx::query(undo).bind(At::from(due)).execute(&desk.h.app.db).await;
    assert_eq!(undone.unwrap().rows_affected(), 1);
    assert_eq!(desk.after(Duration::from_secs(5), &id).await, 1);
    assert_eq!(desk.enqueued().await, 1);
    // Also when the task has ended since.
    let mut worker = desk.h.another().await;
    worker.start_workers();
    desk.h.eventually(async || desk.look(&id).await["last_task"]["state"] == "SUCCESS").await;
    assert!(worker.stop().await);
    sqlx::query(undo).bind(At::from(due)).execute(&desk.h.app.db).await.unwrap();
    desk.scheduler.pass().await.unwrap();
    assert_eq!((desk.enqueued().await, desk.runs(&id).await), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_while_a_run_is_under_way_stands() {
    let desk = Desk::new().await;
    let id = desk.schedule("edited", json!({ "kind": "interval", "every_s": 60 })).await;
    desk.h.advance(MINUTE);
    let mut hold = desk.h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM schedules FOR UPDATE").execute(&mut *hold).await.unwrap();
    let pass = tokio::spawn({
        let scheduler = desk.scheduler.clone();
        async move { scheduler.pass().await }
    });
    desk.h.eventually(async || desk.enqueued().await == 1).await;
    let edit = "UPDATE schedules SET every_s = 7200, next_run_at = '2099-01-01', version = version + 1";
    sqlx::query(edit).execute(&mut *hold).await.unwrap();
    hold.commit().await.unwrap();
    pass.await.unwrap().unwrap();
    assert_eq!(desk.look(&id).await["next_run_at"], "2099-01-01T00:00:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_ahead_and_back_repeats_nothing() {
    let desk = Desk::new().await;
    let times = json!({ "kind": "interval", "every_s": 60, "catch_up": "each", "catch_up_max": 5 });
    let id = desk.schedule("steady", times).await;
    let start = desk.h.now();
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    // A day ahead: as many as are made up for, not 1440. (The present one is in time.)
    assert_eq!(desk.after(MINUTE * 1440, &id).await, 7);
    let next = desk.look(&id).await["next_run_at"].clone();
    // And back: the next run stands, and all that was run stays run.
    set_clock(&desk.h, start.plus(MINUTE));
    for _ in 0..30 {
        assert_eq!(desk.after(MINUTE * 48, &id).await, 7);
    }
    assert_eq!(desk.look(&id).await["next_run_at"], next);
    assert_eq!(desk.after(MINUTE, &id).await, 8);
    assert_eq!(desk.enqueued().await, 8);
    // A person who does not want to wait saves the schedule anew.
    set_clock(&desk.h, start.plus(MINUTE * 2));
    desk.change(&id, json!({ "enabled": false })).await;
    desk.change(&id, json!({ "enabled": true })).await;
    assert_eq!(desk.after(MINUTE, &id).await, 9);
    assert_eq!(desk.enqueued().await, 9);
}

/// How far the holder of the lease has come: (term, holder).
async fn lease(h: &Harness) -> (i64, String) {
    let lease = sqlx::query_as("SELECT term, holder FROM leases WHERE name = 'scheduler'");
    let lease: Option<(i64, Text)> = lease.fetch_optional(&h.app.db).await.unwrap();
    lease.map(|(term, Text(holder))| (term, holder)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_another_takes_over_and_no_occurrence_is_lost() {
    let desk = Desk::of(Harness::with(Options { system_clock: true, ..Options::default() }).await).await;
    let times = json!({ "kind": "interval", "every_s": 1, "catch_up": "skip" });
    let id = desk.schedule("every second", times).await;
    let mut first = desk.h.process("scheduler", &[]).await;
    desk.h.eventually(async || desk.runs(&id).await >= 2).await;
    let (term, holder) = lease(&desk.h).await;
    let _second = desk.h.process("scheduler", &[]).await;
    first.kill().await;
    let runs = desk.runs(&id).await;
    desk.h.eventually(async || desk.runs(&id).await > runs).await;
    let (next_term, next_holder) = lease(&desk.h).await;
    assert!(next_term > term && next_holder != holder);
    // Every second between the start and the next run has run once. (One statement: the row moves.)
    let gaps = "SELECT CAST(total_runs - (TIMESTAMPDIFF(MICROSECOND, starts_at, next_run_at) DIV 1000000 - 1) AS SIGNED) \
                FROM schedules WHERE name = 'every second'";
    assert_eq!(desk.h.count(gaps).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_in_order_makes_nobody_wait() {
    let desk = Desk::of(Harness::with(Options { system_clock: true, ..Options::default() }).await).await;
    let mut first = desk.h.process("scheduler", &[]).await;
    desk.h.eventually(async || !lease(&desk.h).await.1.is_empty()).await;
    first.terminate().await;
    assert_eq!(lease(&desk.h).await.1, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_of_many_processes_leads_and_a_stalled_one_learns_that_it_does_not() {
    let desk = Desk::of(Harness::with(Options { system_clock: true, ..Options::default() }).await).await;
    let mut first = desk.h.process("scheduler", &[]).await;
    desk.h.eventually(async || !lease(&desk.h).await.1.is_empty()).await;
    let (term, holder) = lease(&desk.h).await;
    first.signal("STOP");
    let second = desk.h.process("scheduler", &[]).await;
    desk.h.eventually(async || lease(&desk.h).await.1 != holder).await;
    first.signal("CONT");
    // It renews what is not its own any more, in vain, and waits.
    desk.h.eventually(async || first.log().contains("lease was taken by another process")).await;
    assert_eq!(lease(&desk.h).await.0, term + 1);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_due_orders_time_out_and_what_needs_it_waits() {
    let mut servers = PrivateServers::start().await;
    let settings = vec![("auth.access_token_s", "86400".to_owned())];
    let h = Harness::with(Options { servers: Some(servers.addresses()), settings, ..Options::default() }).await;
    let (alice, course) = (h.register().await, h.course(100).await);
    let desk = Desk::of(h).await;
    let body = json!({ "course_ids": [course.no()] });
    let order = desk.h.post_once("/orders", &alice, "late", body).await.expect(201);
    let sweep = json!({ "name": "sweep", "task": "orders.sweep", "kind": "interval", "every_s": 60 });
    let sweep = desk.h.post("/admin/schedules", &desk.token(), sweep).await.expect(201).text_of("id");
    let redrive = json!({ "name": "redrive", "task": "orders.redrive", "kind": "interval", "every_s": 60 });
    let redrive = desk.h.post("/admin/schedules", &desk.token(), redrive).await.expect(201).text_of("id");
    let report = json!({ "name": "report", "task": "reports.daily", "kind": "interval", "every_s": 60 });
    let report = desk.h.post("/admin/schedules", &desk.token(), report).await.expect(201).text_of("id");
    servers.change(|s| s.redis.kill()).await;
    desk.h.advance(MINUTE * 31);
    desk.scheduler.pass().await.expect_err("the redrive cannot be enqueued");
    let path = format!("/orders/{}", order.text_of("order_no"));
    desk.h.eventually(async || desk.h.get(&path, &alice).await["status"] == "timed_out").await;
    desk.h.eventually(async || desk.h.count("SELECT COUNT(*) FROM daily_reports").await >= 6).await;
    assert_eq!((desk.runs(&sweep).await, desk.runs(&report).await, desk.runs(&redrive).await), (1, 1, 0));
    let waiting = desk.look(&redrive).await;
    assert_ne!(waiting["next_run_at"], Value::Null);
    servers.change(|s| s.redis.start()).await;
    desk.h.eventually(async || desk.scheduler.pass().await.is_ok()).await;
    assert_eq!((desk.runs(&redrive).await, desk.enqueued().await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_from_before_the_database_clock_was_put_back_is_taken_over() {
    let desk = Desk::new().await;
    let left = "INSERT INTO leases (name, holder, term, expires_at) VALUES ('scheduler', 'gone', 7, '2099-01-01')";
    sqlx::query(left).execute(&desk.h.app.db).await.unwrap();
    desk.h.start_workers();
    desk.h.eventually(async || lease(&desk.h).await.1 != "gone").await;
    assert_eq!(lease(&desk.h).await.0, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_nobody_can_read_holds_up_no_other_and_is_mended_by_an_edit() {
    let desk = Desk::new().await;
    let bad = desk.schedule("bad", json!({ "kind": "crontab", "crontab": "* * * * *" })).await;
    let newer = desk.schedule("newer", json!({ "kind": "interval", "every_s": 30 })).await;
    let good = desk.schedule("good", json!({ "kind": "interval", "every_s": 60 })).await;
    // By hand, and by a version that knows more tasks than this one.
    for edit in [
        "UPDATE schedules SET crontab = '61 * * * *' WHERE name = 'bad'",
        "UPDATE schedules SET task = 'new.task' WHERE name = 'newer'",
    ] {
        sqlx::query(edit).execute(&desk.h.app.db).await.unwrap();
    }
    assert_eq!(desk.after(MINUTE, &good).await, 1);
    let seen = desk.look(&bad).await;
    assert!(seen.text_of("last_error").contains("crontab.minute"), "{}", seen.text());
    assert_eq!((&seen["next_run_at"], &seen["next_runs"]), (&Value::Null, &json!([])));
    // It is left to who knows it.
    let waiting = desk.look(&newer).await;
    assert!(waiting["total_runs"] == 0 && waiting["next_run_at"] != Value::Null, "{}", waiting.text());
    let mended = desk.change(&bad, json!({ "crontab": "* * * * *" })).await;
    assert_eq!(mended["last_error"], Value::Null);
    assert_eq!(desk.after(MINUTE, &bad).await, 1);
}
