//! Tasks that somebody took away beside the engine: they are cleared, and hold up nothing.

use onrush::engine::{Priority, envelope_of};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

impl Setup {
    /// What the queue's meta says of tasks and counters.
    async fn meta<const N: usize>(&self, fields: [&str; N]) -> [Option<String>; N] {
        let meta = self.bench.engine.keys(&queue()).meta();
        let found: Vec<Option<String>> = self.redis(redis::cmd("HMGET").arg(meta).arg(&fields)).await;
        found.try_into().unwrap()
    }

    /// As if the task had entered its stream a minute before it did: those that are younger are not looked for.
    async fn age(&self, id: &TaskId) {
        let key = id.key.as_simple().to_string();
        let [Some(field)] = self.meta([&key]).await else { panic!("no field of {id}") };
        let mut parts: Vec<String> = field.split(' ').map(str::to_owned).collect();
        let (ms, rest) = parts[2].split_once('-').unwrap();
        parts[2] = format!("{}-{rest}", ms.parse::<u64>().unwrap() - 60_000);
        let meta = self.bench.engine.keys(&queue()).meta();
        let _: i64 = self.redis(redis::cmd("HSET").arg(meta).arg(&key).arg(parts.join(" "))).await;
    }

    /// A task that entered its stream a minute ago as the `seq`th, and its entry.
    async fn plant(&self, what: &str, seq: u32) -> (TaskId, String) {
        let id = TaskId { key: Uuid::now_v7(), queue: queue() };
        let (now, key) = (self.h.now().ms(), id.key.as_simple().to_string());
        let envelope = envelope_of(id.key, &Work { what: what.to_owned() }, now, None);
        let entry = format!("{}-{seq}", now - 60_000);
        let add = redis::cmd("XADD").arg(self.stream()).arg(&entry).arg("e").arg(envelope.text()).to_owned();
        let _: String = self.redis(&add).await;
        let (meta, field) = (self.bench.engine.keys(&queue()).meta(), format!("{seq} {now} {entry}"));
        let set = redis::cmd("HSET").arg(meta).arg("seq").arg(seq).arg(key).arg(field).to_owned();
        let _: i64 = self.redis(&set).await;
        (id, entry)
    }

    async fn state(&self, id: &TaskId) -> Option<State> {
        self.bench.engine.status(id).await.unwrap().map(|status| status.state)
    }

    async fn enqueue_as(&self, what: &str, priority: Priority, unique: Unique) -> TaskId {
        let call = Call::of(&Work { what: what.to_owned() }).unwrap().with_priority(priority);
        assert!(self.bench.engine.call(&call, None, unique).await.unwrap());
        call.id()
    }

    async fn may_come_again(&self, id: &TaskId, unique: Unique) -> bool {
        let again = Call::keyed(id.key, &Work { what: "again".to_owned() }).unwrap();
        self.bench.engine.call(&again, None, unique).await.unwrap()
    }

    /// The worker stops, and another begins.
    async fn restart(&mut self) {
        assert!(self.loops.stop(Duration::from_secs(20)).await);
        self.loops = Loops::default();
        self.start();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_stream_was_deleted_are_cleared_and_may_come_again() {
    let s = Setup::new().await;
    let usual = s.enqueue_as("a", Priority::DEFAULT, Unique::UntilDone).await;
    let urgent = s.enqueue_as("b", Priority::of::<2>(), Unique::UntilDone).await;
    let once = s.enqueue_as("c", Priority::DEFAULT, Unique::For(HOUR)).await;
    let all = [&usual, &urgent, &once];
    let keys = s.bench.engine.keys(&queue());
    let gone: i64 = s.redis(redis::cmd("DEL").arg(keys.stream()).arg(keys.stream_of(Priority::of::<2>()))).await;
    assert_eq!(gone, 2);
    for id in all {
        assert_eq!(s.state(id).await, Some(State::Pending), "until somebody looks");
        s.age(id).await;
    }
    let healthy = [s.enqueue("d").await, s.enqueue_as("e", Priority::of::<2>(), Unique::UntilDone).await];
    s.start();
    s.h.eventually(async || {
        let states = [s.state(all[0]).await, s.state(all[1]).await, s.state(all[2]).await];
        states == [None; 3]
    })
    .await;
    for id in &healthy {
        assert_eq!(s.ended(id).await.state, State::Success);
    }
    assert!(s.may_come_again(&usual, Unique::UntilDone).await && s.may_come_again(&once, Unique::For(HOUR)).await);
    assert_eq!(s.ended(&once).await.result["did"], "again");
    s.ended(&usual).await;
    let [entered, left] = s.meta(["seq", "done"]).await;
    assert_eq!((entered.as_deref(), left.as_deref()), (Some("7"), Some("7")));
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_or_is_with_a_worker_is_not_taken_for_lost_however_old_it_is() {
    let s = Setup::new().await;
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    let (read, waits, lost) = (s.plant("a", 1).await, s.plant("b", 2).await, s.plant("c", 3).await);
    s.make_group().await;
    let reading = redis::cmd("XREADGROUP").arg("GROUP").arg("workers").arg("other").arg("COUNT").arg(1).to_owned();
    let _: redis::Value = s.redis(reading.clone().arg("STREAMS").arg(s.stream()).arg(">")).await;
    let _: i64 = s.redis(redis::cmd("XDEL").arg(s.stream()).arg(lost.1)).await;
    let later = TaskId { key: Uuid::now_v7(), queue: queue() };
    let item = Item::at(later.key, Work { what: "d".to_owned() }, s.h.now().plus(HOUR));
    s.bench.engine.enqueue(&[item]).await.unwrap();
    s.start();
    // When it is gone, all were looked at.
    s.h.eventually(async || s.state(&lost.0).await.is_none()).await;
    for id in [&read.0, &waits.0, &later] {
        assert_eq!(s.state(id).await, Some(State::Pending));
    }
    s.bench.engine.set_paused(&queue(), false).await.unwrap();
    for id in [&read.0, &waits.0] {
        assert_eq!(s.ended(id).await.state, State::Success);
    }
    assert_eq!(s.meta(["seq", "done"]).await, [Some("3".to_owned()), Some("3".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_tasks_and_retries_that_were_deleted_are_cleared_over_a_restart() {
    let mut s = Setup::new().await;
    let keys = s.bench.engine.keys(&queue());
    s.start();
    let retried = s.enqueue("fail once, wait").await;
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == 1).await;
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    s.bench.gate.add_permits(1);
    s.h.eventually(async || s.state(&retried).await == Some(State::Retry)).await;
    let later = TaskId { key: Uuid::now_v7(), queue: queue() };
    let due = s.h.now().plus(HOUR);
    s.bench.engine.enqueue(&[Item::at(later.key, Work { what: "later".to_owned() }, due)]).await.unwrap();
    let gone: i64 = s.redis(redis::cmd("DEL").arg(keys.delayed())).await;
    assert_eq!(gone, 1);
    assert_eq!(s.state(&retried).await, Some(State::Retry), "until somebody looks");
    s.restart().await;
    s.h.eventually(async || s.state(&retried).await.is_none()).await;
    s.h.eventually(async || s.redis::<i64>(redis::cmd("HLEN").arg(keys.envelopes())).await == 0).await;
    s.bench.engine.set_paused(&queue(), false).await.unwrap();
    for id in [&retried, &later] {
        assert!(s.may_come_again(id, Unique::UntilDone).await);
        assert_eq!(s.ended(id).await.result["did"], "again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_due_task_without_its_envelope_is_cleared_and_holds_up_no_other() {
    let s = Setup::new().await;
    let keys = s.bench.engine.keys(&queue());
    s.start();
    let retried = s.enqueue("fail once, wait").await;
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == 1).await;
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    s.bench.gate.add_permits(1);
    s.h.eventually(async || s.state(&retried).await == Some(State::Retry)).await;
    let healthy = TaskId { key: Uuid::now_v7(), queue: queue() };
    let item = Item::at(healthy.key, Work { what: "due".to_owned() }, s.h.now());
    s.bench.engine.enqueue(&[item]).await.unwrap();
    let lost = retried.key.as_simple().to_string();
    let gone: i64 = s.redis(redis::cmd("HDEL").arg(keys.envelopes()).arg(&lost)).await;
    assert_eq!(gone, 1);
    s.bench.engine.set_paused(&queue(), false).await.unwrap();
    assert_eq!(s.ended(&healthy).await.state, State::Success);
    s.h.eventually(async || s.state(&retried).await.is_none()).await;
    assert_eq!(s.meta([&lost]).await, [None]);
    assert!(s.may_come_again(&retried, Unique::UntilDone).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_has_and_no_stream_any_more_is_cleared_and_not_its_own() {
    let s = Setup::new().await;
    // Nothing is taken over in a paused queue: that would end it, too.
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    let (dead, alive) = (s.plant("a", 1).await, s.plant("b", 2).await);
    s.make_group().await;
    assert_eq!(s.read_as("other").await, 2);
    let pending = async || -> redis::Value { s.redis(redis::cmd("XPENDING").arg(s.stream()).arg("workers")).await };
    for (task, idle_ms) in [(&dead, 600_000), (&alive, 0)] {
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(s.stream()).arg("workers").arg("other").arg(0).arg(&task.1).arg("IDLE").arg(idle_ms).arg("JUSTID");
        let _: redis::Value = s.redis(&claim).await;
        let _: i64 = s.redis(redis::cmd("XDEL").arg(s.stream()).arg(&task.1)).await;
    }
    s.start();
    s.h.eventually(async || s.state(&dead.0).await.is_none()).await;
    // Its worker gave a sign just now, and may still end it.
    assert_eq!(s.state(&alive.0).await, Some(State::Pending));
    let redis::Value::Array(left) = pending().await else { panic!("no group") };
    assert_eq!(left.first(), Some(&redis::Value::Int(1)));
    assert!(s.may_come_again(&dead.0, Unique::UntilDone).await);
}
