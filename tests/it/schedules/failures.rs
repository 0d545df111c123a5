//! Leaders that die or double, clocks that jump, Redis that is away.

use std::time::Duration;

use futures_util::future::join_all;
use onrush::engine::TaskId;
use onrush::engine::schedule::{self, CatchUp, Definition, ScheduleId, Written};
use onrush::jobs;
use onrush::platform::clock::{At, Clock};
use onrush::platform::text::Text;
use serde_json::{Value, json};

use super::{Desk, MINUTE, set_clock};
use crate::support::{Harness, Options, PrivateRedis, PrivateServers, Proxy};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_whose_last_task_was_deleted_from_its_queue_runs_again() {
    let desk = Desk::new().await;
    let id = desk.schedule("alone", json!({ "kind": "interval", "every_s": 60, "overlap": false })).await;
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    let last = desk.look(&id).await["last_task"]["id"].as_str().unwrap().parse::<TaskId>().unwrap();
    let (keys, mut redis) = (desk.h.app.engine.keys(&last.queue), desk.h.app.redis.commands());
    redis::cmd("DEL").arg(keys.stream()).query_async::<i64>(&mut redis).await.unwrap();
    assert_eq!(desk.after(MINUTE, &id).await, 1, "it is believed to be on its way");
    // As if that were a minute ago.
    let aged = format!("1 0 {}-0", Clock::System.now().minus(MINUTE).ms());
    let key = last.key.as_simple().to_string();
    redis::cmd("HSET").arg(keys.meta()).arg(&key).arg(aged).query_async::<i64>(&mut redis).await.unwrap();
    desk.h.start_workers();
    desk.h.eventually(async || desk.look(&id).await["last_task"]["state"] == Value::Null).await;
    assert_eq!(desk.after(MINUTE, &id).await, 2);
}

/// Lets a pass come as far as to have enqueued the run of the only schedule, edits the row, and lets it go on.
async fn edited_in_the_middle_of_a_run(desk: &Desk, edit: &'static str) {
    let before = desk.enqueued().await;
    let mut hold = desk.h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM schedules FOR UPDATE").execute(&mut *hold).await.unwrap();
    let pass = tokio::spawn({
        let scheduler = desk.scheduler.clone();
        async move { scheduler.pass().await }
    });
    desk.h.eventually(async || desk.enqueued().await == before + 1).await;
    desk.h.eventually(async || desk.h.held_up(1).await).await;
    sqlx::query(edit).execute(&mut *hold).await.unwrap();
    hold.commit().await.unwrap();
    pass.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_between_the_task_and_the_row_makes_no_second_run() {
    for once in [false, true] {
        let desk = Desk::new().await;
        let times = match once {
            true => json!({ "kind": "once", "run_at": desk.h.now().plus(MINUTE) }),
            false => json!({ "kind": "interval", "every_s": 60 }),
        };
        let id = desk.schedule("edited", times).await;
        desk.h.advance(MINUTE);
        let edit = "UPDATE schedules SET name = 'renamed', args = '{}', version = version + 1";
        edited_in_the_middle_of_a_run(&desk, edit).await;
        assert_eq!(desk.after(Duration::ZERO, &id).await, 1, "once: {once}");
        assert_eq!(desk.enqueued().await, 1, "once: {once}");
        assert_eq!(desk.look(&id).await["name"], "renamed");
        assert_eq!(desk.after(MINUTE, &id).await, if once { 1 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_sent_before_an_edit_of_the_times_is_counted() {
    let desk = Desk::new().await;
    let id = desk.schedule("moved", json!({ "kind": "interval", "every_s": 60 })).await;
    desk.h.advance(MINUTE);
    let edit = "UPDATE schedules SET every_s = 7200, next_run_at = '2099-01-01', version = version + 1, \
                times_version = version";
    edited_in_the_middle_of_a_run(&desk, edit).await;
    let seen = desk.look(&id).await;
    assert_eq!((&seen["total_runs"], &seen["last_task"]["state"]), (&json!(1), &json!("PENDING")));
    assert_eq!(seen["next_run_at"], "2099-01-01T00:00:00.000Z");
}

/// So many schedules of one task, due a minute from now.
async fn crowd(desk: &Desk, task: &str, count: usize) {
    let own = jobs::own_schedules(&desk.h.app.config, desk.h.now());
    let like = own.into_iter().find(|definition| definition.task == task).expect("one of our own");
    let mut conn = desk.h.app.db.acquire().await.unwrap();
    for n in 0..count {
        let (every_s, catch_up) = (Some(60), CatchUp::Skip);
        let one = Definition { name: format!("{task} {n}"), every_s, catch_up, overlap: true, ..like.clone() };
        assert_eq!(schedule::create(&mut conn, ScheduleId::new(), &one, desk.h.now()).await.unwrap(), Written::Yes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_waits_for_redis_holds_up_nothing_that_can_do_without() {
    let redis = PrivateRedis::start().await;
    let way = Proxy::to(redis.url()).await;
    let servers = Some(redis.addresses(way.url()).await);
    let desk = Desk::of(Harness::with(Options { servers, ..Options::default() }).await).await;
    crowd(&desk, "orders.redrive", 210).await;
    let sweep = json!({ "name": "sweep", "task": "orders.sweep", "kind": "interval", "every_s": 61 });
    let sweep = desk.h.post("/admin/schedules", &desk.token(), sweep).await.expect(201).text_of("id");
    // It takes what is said to it, and says nothing.
    way.silence();
    desk.h.advance(MINUTE + Duration::from_secs(1));
    desk.scheduler.pass().await.expect_err("the redrives cannot be enqueued");
    assert_eq!(desk.h.count("SELECT total_runs FROM schedules WHERE name = 'sweep'").await, 1);
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM schedules WHERE total_runs > 0").await, 1);
    desk.h.eventually(async || desk.scheduler.pass().await.is_ok()).await;
    assert_eq!(desk.enqueued().await, 210);
    assert_eq!(desk.runs(&sweep).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_crowd_that_comes_due_at_one_instant_run_however_long_that_takes() {
    let desk = Desk::new().await;
    crowd(&desk, "auth.prune", 450).await;
    desk.h.advance(MINUTE);
    // In the middle of the second page the work is held up.
    let mut hold = desk.h.app.db.begin().await.unwrap();
    let middle = "SELECT id FROM schedules WHERE name = 'auth.prune 300' FOR UPDATE";
    sqlx::query(middle).execute(&mut *hold).await.unwrap();
    let pass = tokio::spawn({
        let scheduler = desk.scheduler.clone();
        async move { scheduler.pass().await }
    });
    desk.h.eventually(async || desk.h.held_up(1).await).await;
    desk.h.advance(Duration::from_secs(20));
    hold.rollback().await.unwrap();
    assert!(pass.await.unwrap().unwrap() >= 450);
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM schedules WHERE total_runs = 1").await, 450);
    assert_eq!(desk.enqueued().await, 450);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_whose_zone_is_gone_says_so_can_be_switched_off_and_goes_on_when_it_is_back() {
    let desk = Desk::new().await;
    let id = desk.schedule("far", json!({ "kind": "crontab", "crontab": "* * * * *", "time_zone": "UTC" })).await;
    sqlx::query("UPDATE schedules SET time_zone = 'Gone/Zone'").execute(&desk.h.app.db).await.unwrap();
    assert_eq!(desk.after(MINUTE, &id).await, 0);
    let seen = desk.look(&id).await;
    assert_eq!(seen["last_error"], "time_zone must be an IANA name, such as Asia/Shanghai");
    // The machine has it again.
    sqlx::query("UPDATE schedules SET time_zone = 'UTC'").execute(&desk.h.app.db).await.unwrap();
    desk.scheduler.pass().await.unwrap();
    let seen = desk.look(&id).await;
    assert!(seen["last_error"] == Value::Null && seen["next_run_at"] != Value::Null, "{}", seen.text());
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    // Gone once more, and for good.
    sqlx::query("UPDATE schedules SET time_zone = 'Gone/Zone'").execute(&desk.h.app.db).await.unwrap();
    desk.after(MINUTE, &id).await;
    let off = desk.change(&id, json!({ "enabled": false })).await;
    assert_eq!((&off["enabled"], &off["last_error"], &off["next_run_at"]), (&json!(false), &Value::Null, &Value::Null));
    // No other edit may leave it as it is.
    let path = format!("/admin/schedules/{id}");
    desk.h.patch(&path, &desk.token(), json!({ "enabled": true })).await.problem(422, "validation_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_our_own_that_was_deleted_does_not_come_back_when_the_scheduler_starts_again() {
    let desk = Desk::of(Harness::with(Options { system_clock: true, ..Options::default() }).await).await;
    desk.h.start_workers();
    desk.h.eventually(async || lease(&desk.h).await.0 > 0).await;
    let deleted = sqlx::query("DELETE FROM schedules WHERE name = 'auth.prune'").execute(&desk.h.app.db).await;
    assert_eq!(deleted.unwrap().rows_affected(), 1);
    // Its loop fails for a while, and begins anew.
    let (term, _) = lease(&desk.h).await;
    sqlx::query("ALTER TABLE leases RENAME TO leases_away").execute(&desk.h.app.db).await.unwrap();
    let failed = async || {
        let loops = desk.h.app.loops.health();
        loops.iter().any(|of| of.name == "scheduler" && of.last_error.is_some())
    };
    desk.h.eventually(failed).await;
    sqlx::query("ALTER TABLE leases_away RENAME TO leases").execute(&desk.h.app.db).await.unwrap();
    desk.h.eventually(async || lease(&desk.h).await.0 > term).await;
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM schedules WHERE name = 'auth.prune'").await, 0);
}

#[tokio::test]
async fn a_zone_that_the_machine_has_not_is_in_the_programs_own_table() {
    let dir = tempfile::tempdir().unwrap();
    // A table with a single zone, of which only the head is looked at.
    std::fs::write(dir.path().join("UTC"), b"TZif2").unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_onrush"));
    command.args(["crontab", "30 7 * * *", "--tz", "Asia/Shanghai", "--count", "1"]).env("TZDIR", dir.path());
    let output = command.output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.trim_end().ends_with("T07:30:00+08:00"), "{output:?}");
}
