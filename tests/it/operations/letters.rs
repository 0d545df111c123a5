//! Dead letters: why they are there, and running them again.

use super::*;

const DEAD: &str = "/admin/queues/late/dead";

impl Desk {
    async fn dead(&self) -> Vec<Value> {
        self.get(&format!("{DEAD}?limit=100")).await["items"].as_array().unwrap().clone()
    }

    async fn add(&self, envelope: &Value) {
        let _: String = redis::cmd("XADD")
            .arg(self.h.app.engine.keys(&late()).stream())
            .arg("*")
            .arg("e")
            .arg(envelope.to_string())
            .query_async(&mut self.h.app.redis.commands())
            .await
            .unwrap();
    }

    /// Makes so many dead letters; their tasks.
    async fn die(&self, count: usize) -> Vec<TaskId> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let id = self.enqueue("fail").await;
            self.ended(&id).await;
            ids.push(id);
        }
        ids
    }
}

fn envelope(name: &str, args: Value) -> Value {
    let key = Uuid::now_v7().as_simple().to_string();
    json!({ "v": 1, "key": key, "name": name, "args": args, "attempt": 1, "at": 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_tells_all_and_runs_again_once_however_often_that_is_asked() {
    let desk = Desk::new().await;
    desk.start();
    let ids = desk.die(3).await;
    assert_eq!(desk.runs(), 9);
    let first = desk.get(&format!("{DEAD}?limit=2")).await;
    let rest = desk.get(&format!("{DEAD}?limit=2&cursor={}", first.text_of("next_cursor"))).await;
    let tasks: Vec<&str> = [&first, &rest]
        .into_iter()
        .flat_map(|page| page["items"].as_array().unwrap())
        .map(|letter| letter["task"].as_str().unwrap())
        .collect();
    assert_eq!(tasks, ids.iter().rev().map(TaskId::to_string).collect::<Vec<_>>());
    assert_eq!(rest["next_cursor"], Value::Null);
    let letter = &first["items"][0];
    assert_eq!((&letter["reason"], &letter["attempt"]), (&json!("never"), &json!(3)));
    assert_eq!((&letter["args"], &letter["name"]), (&json!({ "what": "fail" }), &json!("payments.resolve_late")));
    let attempts: Vec<u64> =
        letter["errors"].as_array().unwrap().iter().map(|error| error["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 2]);

    desk.pause().await;
    let path = format!("{DEAD}/{}/retry", letter["entry"].as_str().unwrap());
    let answers = futures_util::future::join_all((0..10).map(|_| desk.act(&path))).await;
    assert_eq!(answers.iter().map(|answer| answer["retried"].as_u64().unwrap()).sum::<u64>(), 1);
    let queue = desk.get("/admin/queues/late").await;
    assert_eq!((&queue["dead"], &queue["depth"]), (&json!(2), &json!(1)));
    let task = desk.get(&format!("/admin/tasks/{}", ids[2])).await;
    assert_eq!((&task["state"], &task["attempt"], &task["errors"]), (&json!("PENDING"), &json!(1), &json!([])));
    desk.resume().await;
    // It fails three times more, and is a letter again.
    desk.h.eventually(async || desk.runs() == 12 && desk.dead().await.len() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_retried_and_removed_in_numbers() {
    let desk = Desk::new().await;
    desk.start();
    desk.die(5).await;
    desk.pause().await;
    let entries: Vec<Value> = desk.dead().await.iter().map(|letter| letter["entry"].clone()).collect();
    let some = json!({ "entries": [entries[0], entries[1], "1-1"] });
    assert_eq!(desk.post(&format!("{DEAD}/retry"), some.clone()).await["retried"], 2);
    assert_eq!(desk.post(&format!("{DEAD}/retry"), some).await["retried"], 0);
    let one = format!("{DEAD}/{}", entries[2].as_str().unwrap());
    for _ in 0..2 {
        desk.delete(&one).await.expect(204);
    }
    let all = desk.post(&format!("{DEAD}/retry"), json!({})).await;
    assert_eq!((&all["retried"], &all["more"]), (&json!(2), &json!(false)));
    let queue = desk.get("/admin/queues/late").await;
    assert_eq!((&queue["dead"], &queue["depth"]), (&json!(0), &json!(4)));
    desk.resume().await;
    desk.h.eventually(async || desk.dead().await.len() == 4).await;
    assert_eq!(desk.delete(DEAD).await.expect(200)["deleted"], 4);
    assert_eq!(desk.delete(DEAD).await.expect(200)["deleted"], 0);
    for bad in [json!({ "entries": [] }), json!({ "entries": ["x"] }), json!({ "entries": "all" })] {
        desk.h.post(&format!("{DEAD}/retry"), &desk.admin, bad).await.problem(422, "validation_failed");
    }
    for lowest in ["0-0", "0-00"] {
        assert_eq!(desk.get(&format!("{DEAD}?cursor={lowest}")).await["items"], json!([]));
    }
    let absent = "/admin/queues/nothing/dead/1-0/retry";
    send(desk.h.request(Method::POST, absent, &desk.admin)).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_worker_can_run_is_a_dead_letter_with_the_reason_and_runs_once_one_can() {
    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Newer {}
    impl Task for Newer {
        const NAME: &'static str = "test.newer";
        const QUEUE: &'static str = "late";
    }
    let desk = Desk::new().await;
    desk.start();
    let unknown = envelope("test.newer", json!({}));
    desk.add(&unknown).await;
    desk.add(&envelope("payments.resolve_late", json!({ "what": 7 }))).await;
    desk.add(&json!({ "v": 2, "of": "a later program" })).await;
    desk.h.eventually(async || desk.dead().await.len() == 3).await;
    let letters = desk.dead().await;
    let because = |why: &str| {
        let found = letters.iter().find(|letter| letter["reason"].as_str().unwrap().contains(why));
        found.unwrap_or_else(|| panic!("{why}: {letters:?}"))
    };
    assert_eq!(because("no handler for task \"test.newer\"")["name"], "test.newer");
    assert_eq!(because("arguments do not fit: invalid type")["args"], json!({ "what": 7 }));
    let newer = because("newer than");
    assert_eq!((&newer["task"], &newer["args"], &newer["args_shown"]), (&Value::Null, &Value::Null, &json!("secret")));
    // One that has no key that we could read is retried once, too.
    desk.pause().await;
    let path = format!("{DEAD}/{}/retry", newer["entry"].as_str().unwrap());
    futures_util::future::join_all((0..10).map(|_| desk.act(&path))).await;
    assert_eq!(desk.get("/admin/queues/late").await["depth"], 1);
    desk.resume().await;
    desk.h.eventually(async || desk.dead().await.len() == 3).await;
    // Nothing has changed: all of them come back, and the text of the one that nobody can read is as it was.
    assert_eq!(desk.post(&format!("{DEAD}/retry"), json!({})).await["retried"], 3);
    desk.h.eventually(async || desk.dead().await.len() == 3).await;
    let texts = desk.h.app.engine.letters(&late(), None, 10).await.unwrap();
    assert!(texts.iter().any(|letter| letter.text == r#"{"of":"a later program","v":2}"#));
    // A newer version is rolled out.
    assert!(desk.loops.stop(Duration::from_secs(60)).await);
    let (loops, bench) = (Loops::default(), desk.bench.clone());
    let registry = Registry::default()
        .queue(QueueSpec { name: "late", batch: 1, concurrency: 1 })
        .single(|_: Bench, _: Job<Newer>| async { Outcome::Success(json!("understood")) });
    Worker::start(desk.h.app.engine.clone(), registry, bench, &loops);
    let key: Uuid = unknown["key"].as_str().unwrap().parse().unwrap();
    let id = TaskId { key, queue: late() };
    desk.act(&format!("/admin/tasks/{id}/retry")).await;
    assert_eq!(desk.ended(&id).await.result, json!("understood"));
    loops.stop_signal().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_task_is_a_dead_letter_after_its_deliveries_holds_up_nobody_and_runs_when_it_is_mended() {
    let desk = Desk::new().await;
    let (poison, other) = (desk.enqueue("poison").await, desk.enqueue("fine").await);
    let stream = desk.h.app.engine.keys(&late()).stream();
    let mut commands = desk.h.app.redis.commands();
    let mut group = redis::cmd("XGROUP");
    let _: String = group.arg("CREATE").arg(&stream).arg("workers").arg("0").query_async(&mut commands).await.unwrap();
    let read = |consumer: &str| {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg("workers").arg(consumer).arg("COUNT").arg(10).arg("STREAMS").arg(&stream).arg(">");
        read
    };
    // Three workers died of it, one after the other.
    let _: redis::Value = read("dead 1").query_async(&mut commands).await.unwrap();
    let entries: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg(&stream).arg("-").arg("+").query_async(&mut commands).await.unwrap();
    for consumer in ["dead 2", "dead 3"] {
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(&stream).arg("workers").arg(consumer).arg(0).arg(&entries[0].0);
        let _: redis::Value = claim.query_async(&mut commands).await.unwrap();
    }
    let held = desk.get(&format!("/admin/tasks/{poison}")).await;
    assert_eq!((&held["worker"], &held["deliveries"]), (&json!("dead 3"), &json!(3)));
    desk.start();
    assert_eq!(desk.ended(&other).await.state, State::Success);
    assert_eq!(desk.ended(&poison).await.state, State::Failure);
    let letter = desk.dead().await.remove(0);
    assert_eq!(letter["task"], poison.to_string());
    assert!(letter["reason"].as_str().unwrap().contains("delivered 3 times"), "{letter}");
    assert_eq!(desk.runs(), 1, "it ran where it must not");
    let path = format!("{DEAD}/{}/retry", letter["entry"].as_str().unwrap());
    assert_eq!(desk.act(&path).await["retried"], 1);
    assert_eq!(desk.ended(&poison).await.state, State::Success);
    assert!(desk.dead().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_arguments_are_shown_nowhere() {
    const PIN: &str = "90817263";
    let desk = Desk::new().await;
    desk.start();
    let key = Uuid::now_v7();
    desk.h.app.engine.enqueue(&[Item::now(key, Secret { pin: PIN.parse().unwrap() })]).await.unwrap();
    desk.ended(&TaskId { key, queue: late() }).await;
    // Such that the reason would cite them; and one that this program does not know.
    desk.add(&envelope("test.secret", json!({ "pin": PIN }))).await;
    desk.add(&envelope("test.unheard_of", json!({ "pin": PIN }))).await;
    desk.add(&json!({ "v": 2, "pin": PIN })).await;
    desk.h.eventually(async || desk.dead().await.len() == 4).await;
    let reasons: Vec<Value> = desk.dead().await.iter().map(|letter| letter["reason"].clone()).collect();
    assert!(reasons.contains(&json!("arguments do not fit")), "{reasons:?}");
    let id = TaskId { key, queue: late() };
    desk.act(&format!("/admin/tasks/{id}/retry")).await;
    desk.post(&format!("{DEAD}/retry"), json!({})).await;
    desk.h.eventually(async || desk.dead().await.len() == 4).await;
    let task = desk.get(&format!("/admin/tasks/{id}")).await;
    assert_eq!((&task["args"], &task["args_shown"]), (&Value::Null, &json!("secret")));
    for path in [DEAD, "/admin/tasks", "/admin/audit", "/admin/workers", &format!("/admin/tasks/{id}")] {
        let text = desk.get(path).await.text();
        assert!(text.len() > 50 && !text.contains(PIN), "{path}: {text}");
    }
    // Nor in the log of a worker.
    assert!(desk.loops.stop(Duration::from_secs(60)).await);
    let mut process = desk.h.process("worker", &[]).await;
    desk.post(&format!("{DEAD}/retry"), json!({})).await;
    desk.h.eventually(async || desk.dead().await.len() == 4).await;
    desk.h.eventually(async || process.log().contains("task went to the dead letters")).await;
    assert!(!process.log().contains(PIN), "{}", process.log());
    process.terminate().await;
}
