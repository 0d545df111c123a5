//! Tasks: found, shown, taken back, run again.

use super::*;

/// The ids of a list, from its first page to its last.
async fn all(desk: &Desk, query: &str) -> Vec<String> {
    let (mut ids, mut path) = (Vec::new(), format!("/admin/tasks?{query}"));
    loop {
        let page = desk.get(&path).await;
        let items = page["items"].as_array().unwrap();
        ids.extend(items.iter().map(|task| task["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { return ids };
        path = format!("/admin/tasks?{query}&cursor={cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_found_by_queue_state_name_and_time_in_pages() {
    let desk = Desk::new().await;
    desk.start();
    let ended = [desk.enqueue("a").await, desk.enqueue("b").await, desk.enqueue("fail").await];
    for id in &ended {
        desk.ended(id).await;
    }
    let running = desk.enqueue("wait").await;
    desk.h.eventually(async || desk.status(&running).await.state == State::Started).await;
    // Later than its enqueueing by now: a task is shown as started when it has run for a while.
    let middle = desk.h.now();
    let waiting = [desk.enqueue("x").await, desk.enqueue("y").await];
    let delayed = desk.enqueue_after("later", Some(Duration::from_secs(3600))).await;
    let of = |ids: &[&TaskId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>();
    let whole = of(&[&running, &waiting[0], &waiting[1], &delayed, &ended[2], &ended[1], &ended[0]]);
    for limit in [1, 2, 100] {
        assert_eq!(all(&desk, &format!("queue=late&limit={limit}")).await, whole, "in pages of {limit}");
    }
    assert_eq!(all(&desk, "limit=3").await, whole);
    assert_eq!(all(&desk, "state=STARTED").await, of(&[&running]));
    assert_eq!(all(&desk, "state=PENDING&limit=2").await, of(&[&waiting[0], &waiting[1], &delayed]));
    assert_eq!(all(&desk, "state=SUCCESS").await, of(&[&ended[1], &ended[0]]));
    assert_eq!(all(&desk, "state=FAILURE&name=payments.resolve_late").await, of(&[&ended[2]]));
    assert!(all(&desk, "name=orders.grant").await.is_empty());
    assert!(all(&desk, "queue=grant").await.is_empty());
    assert_eq!(all(&desk, &format!("since={middle}")).await, of(&[&waiting[0], &waiting[1], &delayed]));
    let before = all(&desk, &format!("until={middle}&state=FAILURE")).await;
    assert_eq!(before, of(&[&ended[2]]));
    let listed = desk.get("/admin/tasks?state=FAILURE").await;
    let task = &listed["items"][0];
    assert_eq!((&task["attempt"], &task["queue"]), (&json!(3), &json!("late")));
    assert!(["enqueued_at", "started_at", "ended_at", "worker"].iter().all(|member| task[member].is_string()));
    desk.let_go(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_search_is_told_at_once() {
    let desk = Desk::new().await;
    let query = "queue=nothing&since=soon&until=1999-01-01T00:00:00Z&cursor=z";
    let told = desk.h.get(&format!("/admin/tasks?{query}"), &desk.admin).await.problem(422, "validation_failed");
    assert_eq!(fields(&told), ["cursor", "queue", "since", "until"]);
    let told = desk.h.get("/admin/tasks?state=DONE&limit=0&surprise=1", &desk.admin).await;
    assert_eq!(fields(&told.problem(422, "validation_failed")), ["limit", "state", "surprise"]);
    // A cursor of another queue, and a place that is none.
    for cursor in ["w1-0~grant", "w(1-0~late", "w~nothing", "~late", "d~"] {
        let told = desk.h.get(&format!("/admin/tasks?queue=late&cursor={cursor}"), &desk.admin).await;
        assert_eq!(fields(&told.problem(422, "validation_failed")), ["cursor"], "{cursor}");
    }
    for absent in ["01936f3c7a3b70008000000000000001.late", "01936f3c7a3b70008000000000000001.nothing"] {
        desk.h.get(&format!("/admin/tasks/{absent}"), &desk.admin).await.problem(404, "not_found");
        for action in ["revoke", "retry"] {
            let path = format!("/admin/tasks/{absent}/{action}");
            send(desk.h.request(Method::POST, &path, &desk.admin)).await.problem(404, "not_found");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_shows_its_arguments_attempts_errors_times_progress_and_result() {
    let desk = Desk::new().await;
    let id = desk.enqueue("fail once").await;
    let path = format!("/admin/tasks/{id}");
    let waiting = desk.get(&path).await;
    assert_eq!((&waiting["state"], &waiting["attempt"]), (&json!("PENDING"), &json!(1)));
    assert_eq!((&waiting["args"], &waiting["args_shown"]), (&json!({ "what": "fail once" }), &json!("shown")));
    assert!(waiting["enqueued_at"].is_string() && waiting["started_at"].is_null());
    desk.start();
    desk.ended(&id).await;
    let ended = desk.get(&path).await;
    assert_eq!((&ended["state"], &ended["attempt"]), (&json!("SUCCESS"), &json!(2)));
    assert_eq!((&ended["args"], &ended["result"]), (&json!({ "what": "fail once" }), &json!({ "attempt": 2 })));
    let errors = ended["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1);
    assert_eq!((&errors[0]["attempt"], &errors[0]["error"]), (&json!(1), &json!("not yet")));
    // As instants: the text of a whole second or hundredth is shorter, and sorts otherwise.
    let instant = |member| ended.text_of(member).parse::<jiff::Timestamp>().unwrap();
    let times = ["enqueued_at", "started_at", "ended_at"].map(instant);
    assert!(times.is_sorted(), "{times:?}");
    let long = desk.enqueue("wait").await;
    let path = format!("/admin/tasks/{long}");
    desk.h.eventually(async || desk.get(&path).await["progress"] == json!({ "done": 1, "of": 4 })).await;
    let running = desk.get(&path).await;
    assert_eq!((&running["state"], &running["deliveries"]), (&json!("STARTED"), &json!(1)));
    let later = desk.enqueue_after("later", Some(Duration::from_secs(3600))).await;
    let later = desk.get(&format!("/admin/tasks/{later}")).await;
    assert_eq!((&later["state"], later["due_at"].is_string()), (&json!("PENDING"), true));
    desk.let_go(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_taken_back_before_it_runs_and_stopped_while_it_does() {
    let desk = Desk::new().await;
    let waiting = desk.enqueue("never").await;
    let path = format!("/admin/tasks/{waiting}");
    assert_eq!(desk.act(&format!("{path}/revoke")).await["revoked"], "now");
    assert_eq!(desk.act(&format!("{path}/revoke")).await["revoked"], "ended");
    let shown = desk.get(&path).await;
    assert_eq!((&shown["state"], &shown["args"]["what"]), (&json!("REVOKED"), &json!("never")));
    desk.start();
    let running = desk.enqueue("wait").await;
    desk.runs_are(1).await;
    assert_eq!(desk.act(&format!("/admin/tasks/{running}/revoke")).await["revoked"], "told");
    assert_eq!(desk.ended(&running).await.state, State::Revoked);
    let listed = all(&desk, "state=REVOKED").await;
    assert_eq!(listed, [running.to_string(), waiting.to_string()]);
    assert_eq!(desk.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_has_ended_runs_again_once_however_often_that_is_asked() {
    let desk = Desk::new().await;
    desk.start();
    let id = desk.enqueue("fail once").await;
    desk.ended(&id).await;
    assert_eq!(desk.runs(), 2);
    desk.pause().await;
    let path = format!("/admin/tasks/{id}/retry");
    let answers = futures_util::future::join_all((0..10).map(|_| desk.act(&path))).await;
    assert_eq!(answers.iter().filter(|answer| answer["retried"] == true).count(), 1);
    let waiting = desk.get(&format!("/admin/tasks/{id}")).await;
    assert_eq!((&waiting["state"], &waiting["attempt"]), (&json!("PENDING"), &json!(1)));
    desk.resume().await;
    desk.h.eventually(async || desk.runs() == 4 && desk.status(&id).await.state == State::Success).await;
    // A dead one: its letter goes with it.
    let dead = desk.enqueue("fail").await;
    desk.ended(&dead).await;
    assert_eq!(desk.get("/admin/queues/late").await["dead"], 1);
    desk.pause().await;
    assert_eq!(desk.act(&format!("/admin/tasks/{dead}/retry")).await["retried"], true);
    assert_eq!(desk.get("/admin/queues/late").await["dead"], 0);
    desk.resume().await;
    desk.h.eventually(async || desk.runs() == 4 + 3 + 3).await;
    assert_eq!(desk.ended(&dead).await.state, State::Failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_arguments_are_too_long_to_keep_says_so() {
    let desk = Desk::new().await;
    desk.start();
    let id = desk.enqueue(&"x".repeat(17 * 1024)).await;
    desk.ended(&id).await;
    let task = desk.get(&format!("/admin/tasks/{id}")).await;
    assert_eq!((&task["args"], &task["args_shown"]), (&Value::Null, &json!("forgotten")));
    let retry = desk.h.request(Method::POST, &format!("/admin/tasks/{id}/retry"), &desk.admin);
    send(retry).await.problem(409, "task_state");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_shows_its_priority_and_keeps_it_when_it_runs_again() {
    let desk = Desk::new().await;
    let urgent = Call::of(&Work { what: "a".to_owned() }).unwrap().with_priority(Priority::of::<1>());
    assert!(desk.h.app.engine.call(&urgent, None, Unique::UntilDone).await.unwrap());
    let usual = desk.enqueue("b").await;
    let listed = async || {
        let items = desk.get("/admin/tasks?queue=late").await["items"].as_array().unwrap().clone();
        items.iter().map(|task| (task["id"].clone(), task["priority"].clone())).collect::<Vec<_>>()
    };
    let (first, second) = ((json!(urgent.id().to_string()), json!(1)), (json!(usual.to_string()), json!(5)));
    assert_eq!(listed().await, [first.clone(), second.clone()]);
    for limit in [1, 2] {
        let ids = all(&desk, &format!("queue=late&state=PENDING&limit={limit}")).await;
        assert_eq!(ids, [urgent.id().to_string(), usual.to_string()]);
    }
    desk.start();
    desk.ended(&urgent.id()).await;
    desk.ended(&usual).await;
    let path = format!("/admin/tasks/{}", urgent.id());
    assert_eq!((&desk.get(&path).await["priority"], listed().await.contains(&first)), (&json!(1), true));
    desk.pause().await;
    desk.act(&format!("{path}/retry")).await;
    let again = desk.get(&path).await;
    assert_eq!((&again["state"], &again["priority"]), (&json!("PENDING"), &json!(1)));
}
