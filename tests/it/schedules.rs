//! Schedules: what runs when, who runs it, and what an administrator sees and sets. The scheduler's passes are run by
//! hand, on a clock that is moved by hand; tasks stay in their queue, where they can be counted.

mod admin;
mod failures;

use std::sync::atomic::Ordering;
use std::time::Duration;

use onrush::auth::{self, Role, UserId};
use onrush::engine::schedule::Scheduler;
use onrush::jobs;
use onrush::platform::clock::{At, Clock};
use serde_json::{Value, json};

use crate::support::{Answer, Harness, Person};

const MINUTE: Duration = Duration::from_secs(60);

/// A service, its scheduler, and somebody who may make schedules.
pub struct Desk {
    pub h: Harness,
    pub scheduler: Scheduler,
    admin: Person,
}

impl Desk {
    pub async fn new() -> Self {
        Self::of(Harness::new().await).await
    }

    pub async fn of(h: Harness) -> Self {
        let admin = h.admin().await;
        Self { scheduler: jobs::scheduler(&h.app), admin, h }
    }

    /// On a clock that shows `instant`.
    pub async fn at(instant: &str) -> Self {
        let h = Harness::new().await;
        set_clock(&h, instant.parse::<jiff::Timestamp>().expect("an instant").into());
        Self::of(h).await
    }

    /// The administrator's token, which is good at the clock's present time.
    pub fn token(&self) -> String {
        auth::access_token(&self.h.app, UserId::from_uuid(self.admin.id), Role::Admin).expect("a token")
    }

    /// Makes a schedule of a task that does nothing in particular; its id.
    pub async fn schedule(&self, name: &str, times: Value) -> String {
        let mut body = json!({ "name": name, "task": "auth.prune" });
        body.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        self.h.post("/admin/schedules", &self.token(), body).await.expect(201).text_of("id")
    }

    pub async fn change(&self, id: &str, body: Value) -> Answer {
        self.h.patch(&format!("/admin/schedules/{id}"), &self.token(), body).await.expect(200)
    }

    pub async fn look(&self, id: &str) -> Answer {
        self.h.get(&format!("/admin/schedules/{id}"), &self.token()).await.expect(200)
    }

    pub async fn runs(&self, id: &str) -> i64 {
        self.look(id).await["total_runs"].as_i64().expect("a number")
    }

    /// Moves the clock, lets the scheduler look, and says how often the schedule has run.
    pub async fn after(&self, length: Duration, id: &str) -> i64 {
        self.h.advance(length);
        self.scheduler.pass().await.expect("a pass");
        self.runs(id).await
    }

    /// Tasks that were enqueued: nobody takes them out.
    pub async fn enqueued(&self) -> u64 {
        self.h.app.engine.depth(&"system".parse().expect("a queue")).await.expect("a depth").depth
    }
}

/// Sets the clock, back too.
pub fn set_clock(h: &Harness, to: At) {
    let Clock::Manual(ms) = &h.app.clock else { panic!("a clock that is not the test's") };
    ms.store(to.ms(), Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_runs_when_each_of_its_periods_is_over() {
    let desk = Desk::new().await;
    let id = desk.schedule("often", json!({ "kind": "interval", "every_s": 60 })).await;
    let start = desk.h.now();
    assert_eq!(desk.after(MINUTE - Duration::from_millis(1), &id).await, 0);
    assert_eq!(desk.after(Duration::from_millis(1), &id).await, 1);
    assert_eq!(desk.after(Duration::ZERO, &id).await, 1);
    // Late by 10 s: the next one is not.
    assert_eq!(desk.after(MINUTE + Duration::from_secs(10), &id).await, 2);
    let seen = desk.look(&id).await;
    assert_eq!(seen["next_run_at"], json!(start.plus(MINUTE * 3)));
    assert_eq!(seen["last_run_at"], json!(desk.h.now()));
    assert_eq!(desk.after(Duration::from_secs(50), &id).await, 3);
    assert_eq!(desk.enqueued().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_with_a_start_begins_there() {
    let desk = Desk::new().await;
    let start = desk.h.now().plus(Duration::from_secs(90));
    let times = json!({ "kind": "interval", "every_s": 60, "starts_at": start });
    let id = desk.schedule("later", times).await;
    assert_eq!(desk.after(Duration::from_secs(89), &id).await, 0);
    assert_eq!(desk.after(Duration::from_secs(1), &id).await, 1);
    assert_eq!(desk.after(MINUTE, &id).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crontab_runs_by_the_clock_of_its_zone() {
    let desk = Desk::at("2026-11-20T23:00:00.000Z").await;
    let times = json!({ "kind": "crontab", "crontab": "30 7 * * sat", "time_zone": "Asia/Shanghai" });
    let id = desk.schedule("saturday", times).await;
    assert_eq!(desk.look(&id).await["next_run_at"], "2026-11-20T23:30:00.000Z");
    assert_eq!(desk.after(MINUTE * 29, &id).await, 0);
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    assert_eq!(desk.look(&id).await["next_run_at"], "2026-11-27T23:30:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_runs_once_and_is_over() {
    let desk = Desk::new().await;
    let at = desk.h.now().plus(MINUTE);
    let id = desk.schedule("once", json!({ "kind": "once", "run_at": at })).await;
    assert_eq!(desk.look(&id).await["next_runs"], json!([at]));
    assert_eq!(desk.after(Duration::from_secs(59), &id).await, 0);
    assert_eq!(desk.after(Duration::from_secs(1), &id).await, 1);
    assert_eq!(desk.after(MINUTE * 600, &id).await, 1);
    assert_eq!(desk.look(&id).await["next_run_at"], Value::Null);
    assert_eq!(desk.enqueued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crontab_runs_each_local_time_once_when_summer_time_ends() {
    // New York, 1 November 2026: 01:30 comes at 05:30 and again at 06:30 UTC.
    let desk = Desk::at("2026-11-01T04:00:00.000Z").await;
    let times = |crontab: &str| json!({ "kind": "crontab", "crontab": crontab, "time_zone": "America/New_York" });
    let nightly = desk.schedule("nightly", times("30 1 * * *")).await;
    let hourly = desk.schedule("hourly", times("30 * * * *")).await;
    assert_eq!(desk.look(&nightly).await["next_runs"][0], "2026-11-01T05:30:00.000Z");
    assert_eq!(desk.look(&nightly).await["next_runs"][1], "2026-11-02T06:30:00.000Z");
    let mut told = Vec::new();
    for _ in 0..16 {
        desk.after(MINUTE * 15, &nightly).await;
        told.push((desk.runs(&nightly).await, desk.runs(&hourly).await));
    }
    assert_eq!(told.last(), Some(&(1, 4)), "{told:?}");
    assert_eq!(told[5], (1, 2), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crontab_in_the_hour_that_summer_time_leaves_out_runs_after_it() {
    // Berlin, 28 March 2027: 02:00 is followed by 03:00, at 01:00 UTC.
    let desk = Desk::at("2027-03-28T00:30:00.000Z").await;
    let times = json!({ "kind": "crontab", "crontab": "15,45 2 * * *", "time_zone": "Europe/Berlin" });
    let id = desk.schedule("in the gap", times).await;
    assert_eq!(desk.after(MINUTE * 29, &id).await, 0);
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    assert_eq!(desk.after(MINUTE * 60, &id).await, 1);
    assert_eq!(desk.look(&id).await["next_run_at"], "2027-03-29T00:15:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_left_out_run_once_or_run_each_up_to_its_bound() {
    let desk = Desk::new().await;
    let mut ids = Vec::new();
    for (name, policy, most) in [("a", "skip", 1), ("b", "once", 1), ("c", "each", 3), ("d", "each", 1000)] {
        let times = json!({ "kind": "interval", "every_s": 60, "catch_up": policy, "catch_up_max": most });
        ids.push(desk.schedule(name, times).await);
    }
    // 59 whole periods, and half of one: none is in time.
    let mut runs = Vec::new();
    desk.after(MINUTE * 59 + MINUTE / 2, &ids[0]).await;
    for id in &ids {
        runs.push(desk.runs(id).await);
        assert_eq!(desk.look(id).await["next_run_at"], json!(desk.h.now().plus(MINUTE / 2)));
    }
    assert_eq!(runs, [0, 1, 3, 59]);
    assert_eq!(desk.enqueued().await, 63);
    // On from here all run alike.
    for (id, before) in ids.iter().zip(runs) {
        assert_eq!(desk.runs(id).await, before);
    }
    desk.after(MINUTE / 2, &ids[0]).await;
    assert_eq!(desk.enqueued().await, 67);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_as_late_as_a_fail_over_runs_whatever_the_policy() {
    let desk = Desk::new().await;
    let id = desk.schedule("quick", json!({ "kind": "interval", "every_s": 2, "catch_up": "skip" })).await;
    assert_eq!(desk.after(Duration::from_secs(11), &id).await, 5);
    assert_eq!(desk.enqueued().await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_schedule_rests_and_makes_up_for_nothing() {
    let desk = Desk::new().await;
    let times = json!({ "kind": "interval", "every_s": 60, "catch_up": "each" });
    let id = desk.schedule("resting", times).await;
    let off = desk.change(&id, json!({ "enabled": false })).await;
    assert_eq!((&off["next_run_at"], &off["next_runs"]), (&Value::Null, &json!([])));
    assert_eq!(desk.after(MINUTE * 10, &id).await, 0);
    let on = desk.change(&id, json!({ "enabled": true })).await;
    assert_eq!(on["next_run_at"], json!(desk.h.now().plus(MINUTE)));
    assert_eq!(desk.after(Duration::ZERO, &id).await, 0);
    assert_eq!(desk.after(MINUTE, &id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_the_times_moves_the_next_run_and_no_other_edit_does() {
    let desk = Desk::new().await;
    let id = desk.schedule("edited", json!({ "kind": "interval", "every_s": 3600 })).await;
    let start = desk.h.now();
    desk.h.advance(MINUTE);
    let renamed = desk.change(&id, json!({ "name": "renamed", "catch_up": "skip" })).await;
    assert_eq!(renamed["next_run_at"], json!(start.plus(MINUTE * 60)));
    let quicker = desk.change(&id, json!({ "every_s": 90 })).await;
    assert_eq!(quicker["next_run_at"], json!(start.plus(Duration::from_secs(90))));
    assert_eq!(desk.after(Duration::from_secs(30), &id).await, 1);
    // Another kind altogether: what went with the old one is forgotten.
    let other = desk.change(&id, json!({ "kind": "crontab", "crontab": "0 0 1 1 *", "time_zone": "UTC" })).await;
    assert_eq!(other["every_s"], Value::Null);
    assert_eq!(desk.after(MINUTE * 60, &id).await, 1);
    assert_eq!(other["version"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_overlap_a_run_waits_for_the_end_of_the_one_before() {
    let desk = Desk::new().await;
    let times = json!({ "kind": "interval", "every_s": 60, "overlap": false });
    let id = desk.schedule("alone", times).await;
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    assert_eq!(desk.enqueued().await, 1);
    desk.h.start_workers();
    desk.h.eventually(async || desk.look(&id).await["last_task"]["state"] == "SUCCESS").await;
    assert_eq!(desk.after(MINUTE, &id).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_tells_how_its_last_task_ended() {
    let desk = Desk::new().await;
    let body = json!({ "name": "sweep", "task": "orders.sweep", "kind": "interval", "every_s": 60 });
    let id = desk.h.post("/admin/schedules", &desk.token(), body).await.expect(201).text_of("id");
    assert_eq!(desk.look(&id).await["last_task"], Value::Null);
    assert_eq!(desk.after(MINUTE, &id).await, 1);
    assert_eq!(desk.look(&id).await["last_task"]["state"], "PENDING");
    desk.h.start_workers();
    desk.h.eventually(async || desk.look(&id).await["last_task"]["state"] == "SUCCESS").await;
    assert_eq!(desk.look(&id).await["last_task"]["result"], json!({ "due": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_that_can_be_scheduled_is_run_by_workers_and_can_be_run_here() {
    let h = Harness::new().await;
    let known = jobs::registry(&h.app.config).task_names();
    for name in jobs::schedulable().names() {
        assert!(known.contains(&name), "no worker runs {name}");
        jobs::run_pass(h.app.clone(), name).await.expect("a pass").expect(name);
    }
}
