//! Priorities: what is urgent comes first, nothing waits for ever, and whatever holds of a task holds at each of them.

use onrush::engine::inspect::{ListPosition, Retried, TaskFilter};
use onrush::engine::{NotAPriority, Priority};

use super::*;

/// Every priority, none in its place.
const SHUFFLED: [u8; 10] = [5, 9, 0, 7, 2, 4, 8, 1, 6, 3];

/// [`Work`] that is urgent of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Urgent {}

impl Task for Urgent {
    const NAME: &'static str = "test.urgent";
    const QUEUE: &'static str = "test";
    const PRIORITY: Priority = Priority::of::<1>();
}

fn at(number: u8) -> Priority {
    Priority::try_from(number).unwrap()
}

fn work(number: u8, what: &str) -> Call {
    Call::of(&Work { what: what.to_owned() }).unwrap().with_priority(at(number))
}

impl Setup {
    async fn send(&self, call: &Call) -> TaskId {
        assert!(self.bench.engine.call(call, None, Unique::UntilDone).await.unwrap());
        call.id()
    }

    /// One task of each priority, named by it.
    async fn one_of_each(&self) -> Vec<TaskId> {
        let mut ids = Vec::new();
        for number in SHUFFLED {
            ids.push(self.send(&work(number, &number.to_string())).await);
        }
        ids
    }

    /// A worker that runs one task at a time.
    fn start_one_by_one(&self) {
        let spec = QueueSpec { batch: 1, concurrency: 1, ..SPEC };
        let registry = Registry::default().queue(spec).single(one);
        Worker::start(self.bench.engine.clone(), registry, self.bench.clone(), &self.loops);
    }

    async fn ended_well(&self, ids: &[TaskId]) {
        for id in ids {
            assert_eq!(self.ended(id).await.state, State::Success);
        }
    }

    fn seen(&self) -> Vec<String> {
        self.bench.seen.lock().unwrap().clone()
    }

    fn stream_at(&self, number: u8) -> String {
        self.bench.engine.keys(&queue()).stream_of(at(number))
    }

    async fn length(&self, number: u8) -> u64 {
        self.redis(redis::cmd("XLEN").arg(self.stream_at(number))).await
    }

    async fn depths(&self) -> (u64, u64, u64, u64) {
        let depth = self.bench.engine.depth(&queue()).await.unwrap();
        (depth.depth, depth.running, depth.delayed, depth.dead)
    }

    async fn priority_of(&self, id: &TaskId) -> u8 {
        let found = self.bench.engine.find(id).await.unwrap().expect("a task");
        found.envelope.map(|e| e.priority).or(found.record.map(|r| r.priority)).expect("a priority").number()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_without_priorities_has_one_stream() {
    let s = Setup::new().await;
    s.start();
    // The arguments' own business.
    let args = serde_json::value::to_raw_value(&json!({ "what": "later", "priority": 3 })).unwrap();
    let delayed = Call { args, ..work(5, "") };
    assert!(s.bench.engine.call(&delayed, Some(s.h.now()), Unique::UntilDone).await.unwrap());
    let another = Call { key: Uuid::now_v7(), ..delayed.clone() };
    let ids = [s.enqueue("fail once").await, s.send(&work(5, "named")).await, s.send(&another).await];
    s.ended_well(&ids).await;
    s.ended_well(&[delayed.id()]).await;
    assert_eq!(s.stream_at(5), s.stream());
    let others = (0..10).filter(|number| *number != 5).map(|number| s.stream_at(number));
    let others: Vec<String> = others.chain([s.bench.engine.keys(&queue()).levels()]).collect();
    assert_eq!(s.redis::<u32>(redis::cmd("EXISTS").arg(&others)).await, 0);
    assert_eq!(Priority::try_from(10), Err(NotAPriority));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_a_paused_queue_start_in_the_order_of_their_priority() {
    let s = Setup::new().await;
    s.start_one_by_one();
    s.ended_well(&[s.enqueue("before").await]).await;
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    let workers = async || s.bench.engine.workers("", 10).await.unwrap();
    s.h.eventually(async || workers().await.iter().any(|w| w.report.queues.iter().any(|q| q.paused))).await;
    let ids = s.one_of_each().await;
    assert_eq!(s.depths().await.0, 10);
    s.bench.engine.set_paused(&queue(), false).await.unwrap();
    s.ended_well(&ids).await;
    let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(s.seen()[1..], expected);
    assert_eq!(s.depths().await, (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_less_urgent_has_its_share_while_urgent_work_never_ends() {
    let s = Setup::new().await;
    let low = [s.send(&work(9, "low")).await, s.enqueue("normal").await, s.send(&work(9, "low")).await];
    for _ in 0..100 {
        s.send(&work(0, "urgent")).await;
    }
    s.start_one_by_one();
    s.ended_well(&low).await;
    // One read of sixteen is theirs, in turn.
    let seen = s.seen();
    let others: Vec<(usize, &str)> =
        seen.iter().map(String::as_str).enumerate().filter(|(_, what)| *what != "urgent").collect();
    assert_eq!(others, [(15, "low"), (31, "normal"), (47, "low")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_of_one_priority_and_no_more_than_the_places_is_read() {
    let s = Setup::new().await;
    let mut ids = Vec::new();
    for _ in 0..15 {
        ids.push(s.send(&work(0, "wait")).await);
        ids.push(s.send(&work(9, "wait")).await);
    }
    // Two batches at once: ten of the most urgent, and the five that are left of them.
    s.start();
    s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == 15).await;
    assert_eq!((s.length(0).await, s.depths().await), (15, (30, 15, 0, 0)));
    let begun = s.bench.engine.find(&ids[1]).await.unwrap().unwrap().held;
    assert!(begun.is_none(), "{begun:?}");
    s.bench.gate.add_permits(30);
    s.ended_well(&ids).await;
    assert_eq!(s.depths().await, (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_had_read_is_taken_over_at_every_priority() {
    let s = Setup::new().await;
    let ids = s.one_of_each().await;
    for number in 0..10 {
        s.make_group_of(&s.stream_at(number)).await;
        assert_eq!(s.read_of(&s.stream_at(number), "dead").await, 1);
    }
    assert_eq!(s.depths().await, (10, 10, 0, 0));
    s.start();
    s.ended_well(&ids).await;
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 10);
    assert_eq!(s.depths().await, (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_of_any_priority_keeps_its_lease_and_hears_that_it_was_taken_back() {
    let s = Setup::new().await;
    let registry = Registry::default().queue(SPEC).single(stoppable);
    Worker::start(s.bench.engine.clone(), registry, s.bench.clone(), &s.loops);
    let id = s.send(&work(2, "stoppable")).await;
    let held = async || s.bench.engine.find(&id).await.unwrap().and_then(|found| found.held);
    s.h.eventually(async || held().await.is_some()).await;
    // Several leases, by the server's own clock.
    let began = s.h.now();
    s.h.eventually(async || s.h.now().since(began) > Duration::from_millis(1700)).await;
    assert_eq!(held().await.unwrap().deliveries, 1);
    assert_eq!(s.bench.engine.revoke(&id).await.unwrap(), Revoked::Told);
    assert_eq!(s.ended(&id).await.state, State::Revoked);
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_delays_and_what_follows_keep_their_priority() {
    let s = Setup::new().await;
    // One takes the only place when the other's first attempt has failed.
    let (failing, wait) = (s.send(&work(3, "fail once")).await, s.enqueue("wait").await);
    let due = s.h.now().plus(Duration::from_millis(200));
    let later = work(8, "later");
    assert!(s.bench.engine.call(&later, Some(due), Unique::UntilDone).await.unwrap());
    let chain = [work(0, "first"), work(1, "second")];
    s.bench.engine.chain(&chain).await.unwrap();
    s.start_one_by_one();
    s.h.eventually(async || (s.length(3).await, s.length(8).await, s.length(1).await) == (1, 1, 1)).await;
    let found = s.bench.engine.find(&failing).await.unwrap().unwrap();
    assert_eq!((found.state(), found.envelope.unwrap().attempt), (State::Retry, 2));
    assert_eq!(s.priority_of(&later.id()).await, 8);
    s.bench.gate.add_permits(1);
    s.ended_well(&[failing, wait, later.id(), chain[1].id()]).await;
    assert_eq!(s.seen(), ["first", "fail once", "wait", "second", "fail once", "later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_runs_again_keeps_its_priority() {
    let s = Setup::new().await;
    s.start();
    let (dead, done) = (s.send(&work(2, "fail")).await, s.send(&work(7, "done")).await);
    assert_eq!(s.ended(&dead).await.state, State::Failure);
    s.ended_well(std::slice::from_ref(&done)).await;
    assert!(s.loops.stop(Duration::from_secs(60)).await);
    assert_eq!(s.bench.engine.retry_all_letters(&queue(), 10).await.unwrap(), (1, false));
    assert_eq!(s.bench.engine.retry(&done).await.unwrap(), Retried::Enqueued);
    assert_eq!((s.length(2).await, s.length(7).await, s.depths().await), (1, 1, (2, 0, 0, 0)));
    assert_eq!((s.priority_of(&dead).await, s.priority_of(&done).await), (2, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_any_priority_is_counted_listed_taken_back_and_purged() {
    let s = Setup::new().await;
    let ids = s.one_of_each().await;
    for (ahead, id) in ids.iter().enumerate() {
        assert_eq!(s.bench.engine.status(id).await.unwrap().unwrap().ahead, ahead as u64);
    }
    assert_eq!(s.depths().await, (10, 0, 0, 0));
    // SHUFFLED[3]: another worker has it.
    s.make_group_of(&s.stream_at(7)).await;
    assert_eq!(s.read_of(&s.stream_at(7), "other").await, 1);
    assert_eq!(s.bench.engine.revoke(&ids[3]).await.unwrap(), Revoked::Told);
    assert_eq!(s.bench.engine.revoke(&ids[1]).await.unwrap(), Revoked::Now);
    assert_eq!((s.length(9).await, s.depths().await), (0, (9, 1, 0, 0)));

    for limit in [1, 3, 100] {
        let (mut place, mut listed) = (Some(ListPosition::default()), Vec::new());
        while let Some(at) = place {
            // As it goes through the API.
            let at: ListPosition = at.to_string().parse().unwrap();
            let (found, next) = s.bench.engine.list_tasks(&queue(), &TaskFilter::default(), &at, limit).await.unwrap();
            let active = found.into_iter().filter(|task| !task.state.is_final());
            listed.extend(active.map(|task| (task.state, task.priority.unwrap().number())));
            place = next;
        }
        let expected = [0, 1, 2, 3, 4, 5, 6, 8].map(|number| (State::Pending, number));
        assert_eq!(listed, [&[(State::Started, 7)][..], &expected].concat(), "in pages of {limit}");
    }

    assert_eq!(s.bench.engine.purge(&queue()).await.unwrap(), (8, false));
    assert_eq!(s.depths().await, (1, 1, 0, 0));
    for id in [&ids[0], &ids[2]] {
        assert_eq!(s.bench.engine.status(id).await.unwrap().unwrap().state, State::Revoked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_unique_over_all_priorities() {
    let s = Setup::new().await;
    let key = Uuid::now_v7();
    let call = |number| Call { key, ..work(number, &number.to_string()) };
    let engine = &s.bench.engine;
    assert!(engine.call(&call(8), None, Unique::UntilDone).await.unwrap());
    assert!(!engine.call(&call(2), None, Unique::UntilDone).await.unwrap());
    assert!(engine.call(&call(3), None, Unique::Replace).await.unwrap());
    assert_eq!((s.length(8).await, s.length(3).await), (0, 1));
    s.start();
    s.ended_well(&[call(3).id()]).await;
    assert_eq!(s.seen(), ["3"]);
    // It is free again, whatever its stream was.
    assert!(engine.call(&call(2), None, Unique::UntilDone).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_of_task_has_a_priority_of_its_own_and_the_call_comes_first() {
    let s = Setup::new().await;
    let own = Call::of(&Urgent {}).unwrap();
    s.send(&own).await;
    s.bench.engine.enqueue(&[Item::now(Uuid::now_v7(), Urgent {})]).await.unwrap();
    s.send(&Call::of(&Urgent {}).unwrap().with_priority(Priority::LEAST_URGENT)).await;
    assert_eq!((s.length(1).await, s.length(9).await, s.length(5).await), (2, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_priority_is_consumed_on_after_its_streams_are_gone() {
    let s = Setup::new().await;
    s.start();
    let ids = s.one_of_each().await;
    s.ended_well(&ids).await;
    let streams: Vec<String> = (0..10).map(|number| s.stream_at(number)).collect();
    // Each stream alone, then all that Redis knows of the queue.
    let _: i64 = s.redis(redis::cmd("DEL").arg(&streams)).await;
    s.ended_well(&s.one_of_each().await).await;
    let keys = s.bench.engine.keys(&queue());
    let _: i64 = s.redis(redis::cmd("DEL").arg(&streams).arg(keys.levels()).arg(keys.meta())).await;
    s.ended_well(&[s.enqueue("default").await]).await;
    s.ended_well(&s.one_of_each().await).await;
}
