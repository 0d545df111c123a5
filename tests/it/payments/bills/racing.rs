//! Fetches of one bill that meet: two under one key, a task that is late or lost, a process that stops.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_fetches_under_one_key_the_one_that_succeeds_is_told() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    set_clock(&h, at(MORNING));
    let desk = Desk::of(h).await;
    let second = desk.h.another().await;
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    let (there, go) = between.hold("bill", true);
    let fails = async {
        there.await.unwrap();
        *between.fail.lock().unwrap() = Some(("bill", usize::MAX));
        let outcome = carry_out_at(&second, &asked).await;
        assert!(matches!(outcome, Outcome::Failure { .. }), "{outcome:?}");
        assert_eq!(bill_of(&desk, "sandbox", "2026-11-20").await["state"], "failed");
        *between.fail.lock().unwrap() = None;
        go.send(()).unwrap();
    };
    let (first, ()) = tokio::join!(carry_out(&desk, &asked), fails);
    assert!(matches!(first, Outcome::Success(_)), "{first:?}");
    let came = bill_of(&desk, "sandbox", "2026-11-20").await.expect(200);
    assert_eq!((&came["state"], &came["error"]), (&json!("fetched"), &Value::Null));
    assert_eq!((&came["task_id"], &came["bill"]["payments"]), (&asked["task_id"], &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_task_that_is_shown_is_the_one_that_was_answered_also_when_it_is_late() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    set_clock(&h, at(MORNING));
    let desk = Desk::of(h).await;
    let shown = async || bill_of(&desk, "sandbox", "2026-11-20").await.expect(200)["task_id"].clone();
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    assert_eq!(shown().await, asked["task_id"]);
    // It runs again after it ended.
    carry_out(&desk, &asked).await;
    carry_out(&desk, &asked).await;
    assert_eq!(shown().await, asked["task_id"]);
    // It comes so late that the schedule has taken it up.
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    on(&desk, "2026-11-21T03:30:00.000Z").await;
    assert_eq!(shown().await, Value::Null);
    carry_out(&desk, &asked).await;
    assert_eq!(shown().await, asked["task_id"]);
    // And a person asks while the schedule is at it.
    set_clock(&desk.h, at(NEXT_MORNING));
    let second = desk.h.another().await;
    let of_21st = async || bill_of(&desk, "sandbox", "2026-11-21").await.expect(200);
    let (there, go) = between.hold("bill", true);
    let person = async {
        there.await.unwrap();
        let seen = of_21st().await;
        assert_eq!((&seen["state"], &seen["task_id"]), (&json!("fetching"), &Value::Null));
        let asked = ask(&desk, "sandbox", "2026-11-21").await.expect(202);
        assert!(asked["task_id"].is_string());
        // Who asks again joins the task, and not the schedule.
        assert_eq!(ask(&desk, "sandbox", "2026-11-21").await["task_id"], asked["task_id"]);
        go.send(()).unwrap();
        asked
    };
    let (_, asked) = tokio::join!(reconcile(&second), person);
    let seen = of_21st().await;
    assert_eq!((&seen["state"], &seen["task_id"]), (&json!("fetching"), &asked["task_id"]));
    carry_out(&desk, &asked).await;
    let seen = of_21st().await;
    assert_eq!((&seen["state"], &seen["task_id"]), (&json!("fetched"), &asked["task_id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_asked_for_is_compared_also_when_the_bill_says_the_same_and_the_task_is_lost() {
    let desk = desk().await;
    let h = &desk.h;
    stranger(h, "s1", 10, at(NOON)).await;
    on(&desk, MORNING).await;
    let found = [row("payment", "s1", "missing_here", "open")];
    assert_eq!(told(&desk).await, found);
    let forget = "DELETE FROM payment_differences WHERE number = ?";
    // The task is lost: the schedule takes it up.
    gateway_writes(h, forget, "s1").await;
    ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    assert_eq!(on(&desk, "2026-11-21T03:30:00.000Z").await["opened"], 1);
    assert_eq!(told(&desk).await, found);
    // The task has the bill, and cannot compare it.
    gateway_writes(h, forget, "s1").await;
    let refuse = "ALTER TABLE payment_differences ADD CONSTRAINT ck_no_more CHECK (number <> 's1')";
    sqlx::query(refuse).execute(&h.app.db).await.unwrap();
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    assert!(matches!(carry_out(&desk, &asked).await, Outcome::Failure { .. }));
    let seen = bill_of(&desk, "sandbox", "2026-11-20").await.expect(200);
    assert_eq!((&seen["state"], &seen["bill"]["compared_at"]), (&json!("fetched"), &Value::Null));
    sqlx::query("ALTER TABLE payment_differences DROP CONSTRAINT ck_no_more").execute(&h.app.db).await.unwrap();
    assert_eq!(reconcile(h).await["opened"], 1);
    assert_eq!(told(&desk).await, found);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_leaves_the_bill_to_another() {
    let desk = desk().await;
    set_clock(&desk.h, at(MORNING));
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    let stopping = desk.h.another().await;
    stopping.app.loops.stop_signal().cancel();
    let outcome = carry_out_at(&stopping, &asked).await;
    assert!(matches!(outcome, Outcome::Again(_)), "{outcome:?}");
    assert_eq!(bill_of(&desk, "sandbox", "2026-11-20").await["state"], "fetching");
    assert!(matches!(carry_out(&desk, &asked).await, Outcome::Success(_)));
    assert_eq!(bill_of(&desk, "sandbox", "2026-11-20").await["state"], "fetched");
}
