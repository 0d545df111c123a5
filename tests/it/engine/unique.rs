//! What becomes of a task whose key is on its way already.

use onrush::engine::Priority;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_task() {
    let s = Setup::new().await;
    let key = Uuid::now_v7();
    let item = || [Item::now(key, Work { what: "once".to_owned() })];
    let twenty =
        futures_util::future::join_all((0..20).map(|_| async { s.bench.engine.enqueue(&item()).await.unwrap() })).await;
    assert_eq!(twenty.iter().sum::<u64>(), 1);
    s.start();
    s.ended(&TaskId { key, queue: queue() }).await;
    // Ended: the same key may come again.
    assert_eq!(s.bench.engine.enqueue(&item()).await.unwrap(), 1);
    s.h.eventually(|| async { s.bench.runs.load(Ordering::SeqCst) == 2 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_again_is_kept_replaced_or_refused_as_asked() {
    let s = Setup::new().await;
    let key = Uuid::now_v7();
    assert!(s.call(key, "first", Unique::UntilDone).await);
    assert!(!s.call(key, "second", Unique::UntilDone).await);
    assert!(s.call(key, "third", Unique::Replace).await);
    s.start_all();
    let id = TaskId { key, queue: queue() };
    assert_eq!(s.ended(&id).await.result["did"], "third");
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);

    let once = Uuid::now_v7();
    let hour = Unique::For(Duration::from_secs(3600));
    assert!(s.call(once, "once", hour).await);
    s.ended(&TaskId { key: once, queue: queue() }).await;
    assert!(!s.call(once, "again", hour).await);
    assert!(s.call(once, "another rule", Unique::UntilDone).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_for_its_time_keeps_another_one_of_its_key_out() {
    let s = Setup::new().await;
    let (key, hour) = (Uuid::now_v7(), Duration::from_secs(3600));
    let at = |length| Item::at(key, Work { what: "later".to_owned() }, s.h.now().plus(length));
    assert_eq!(s.bench.engine.enqueue(&[at(hour)]).await.unwrap(), 1);
    assert!(!s.call(key, "now", Unique::UntilDone).await);
    assert!(!s.call(key, "now", Unique::For(hour)).await);
    // One with a time of its own comes in its place, and so does one that is to replace it.
    assert_eq!(s.bench.engine.enqueue(&[at(2 * hour)]).await.unwrap(), 1);
    let depth = async || s.bench.engine.depth(&queue()).await.map(|depth| (depth.depth, depth.delayed)).unwrap();
    assert_eq!(depth().await, (0, 1));
    assert!(s.call(key, "replaced", Unique::Replace).await);
    assert_eq!(depth().await, (1, 0));
    s.start();
    assert_eq!(s.ended(&TaskId { key, queue: queue() }).await.result["did"], "replaced");
    // It is free again.
    assert!(s.call(key, "again", Unique::UntilDone).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_free_when_what_replaced_its_task_was_taken_back() {
    let s = Setup::new().await;
    for revoke in [false, true] {
        let key = Uuid::now_v7();
        assert!(s.call(key, "first", Unique::UntilDone).await);
        let due = s.h.now().plus(Duration::from_secs(3600));
        let later = Call::keyed(key, &Work { what: "later".to_owned() }).unwrap();
        assert!(s.bench.engine.call(&later, Some(due), Unique::Replace).await.unwrap());
        if revoke {
            let id = TaskId { key, queue: queue() };
            assert_eq!(s.bench.engine.revoke(&id).await.unwrap(), Revoked::Now);
        } else {
            assert_eq!(s.bench.engine.unschedule::<Work>(&[key]).await.unwrap(), 1);
        }
        assert!(s.call(key, "again", Unique::UntilDone).await, "revoked: {revoke}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_taken_back_from_the_stream_and_from_those_that_wait_for_their_time() {
    let s = Setup::new().await;
    let key = Uuid::now_v7();
    assert!(s.call(key, "first", Unique::UntilDone).await);
    let due = s.h.now().plus(Duration::from_secs(3600));
    assert_eq!(s.bench.engine.enqueue(&[Item::at(key, Work { what: "later".to_owned() }, due)]).await.unwrap(), 1);
    assert_eq!(s.bench.engine.revoke(&TaskId { key, queue: queue() }).await.unwrap(), Revoked::Now);
    let depth = s.bench.engine.depth(&queue()).await.unwrap();
    assert_eq!((depth.depth, depth.delayed), (0, 0));
    assert!(s.entries().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_keeps_its_key_for_as_long_as_nobody_has_read_it() {
    let s = Setup::with_clock(false).await;
    let calls = [3, 5].map(|n| {
        let call = Call::of(&Work { what: "waits".to_owned() }).unwrap();
        call.with_priority(Priority::try_from(n).unwrap())
    });
    let again = async || {
        let [a, b] = &calls;
        let call = async |call| s.bench.engine.call(call, None, Unique::UntilDone).await.unwrap();
        (call(a).await, call(b).await)
    };
    assert_eq!(again().await, (true, true));
    s.h.advance(Duration::from_secs(3600));
    assert_eq!(again().await, (false, false), "nobody has ever read from the queue");
    let streams = calls.each_ref().map(|call| s.bench.engine.keys(&queue()).stream_of(call.priority));
    for stream in &streams {
        s.make_group_of(stream).await;
    }
    assert_eq!(again().await, (false, false), "somebody reads, and has not come to them");
    // Whoever read them may be gone for good with what it had.
    for stream in &streams {
        assert_eq!(s.read_of(stream, "lost").await, 1);
    }
    assert_eq!(again().await, (true, true));
    assert_eq!(again().await, (false, false), "these wait");
    // One that is gone keeps its key for a minute after it came: nobody looks for it before.
    let _: i64 = s.redis(redis::cmd("DEL").arg(&streams)).await;
    assert_eq!(again().await, (false, false));
    // The server's clock decides, which goes on meanwhile.
    s.h.advance(Duration::from_secs(65));
    assert_eq!(again().await, (true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_whose_task_waits_again_is_removed_and_enqueues_nothing() {
    let s = Setup::new().await;
    s.start();
    let (waits, later) = (s.enqueue("fail").await, s.enqueue("fail").await);
    for id in [&waits, &later] {
        assert_eq!(s.ended(id).await.state, State::Failure);
    }
    assert!(s.loops.stop(Duration::from_secs(60)).await);
    assert!(s.call(waits.key, "again", Unique::UntilDone).await);
    let due = s.h.now().plus(Duration::from_secs(3600));
    s.bench.engine.enqueue(&[Item::at(later.key, Work { what: "later".to_owned() }, due)]).await.unwrap();
    assert_eq!(s.bench.engine.retry_all_letters(&queue(), 10).await.unwrap(), (0, false));
    let depth = s.bench.engine.depth(&queue()).await.unwrap();
    assert_eq!((depth.depth, depth.delayed, depth.dead), (1, 1, 0));
}

impl Setup {
    /// Tasks that wait in the stream or run.
    async fn depth(&self) -> u64 {
        self.bench.engine.depth(&queue()).await.unwrap().depth
    }
}

/// How the key of a task that runs comes again.
#[derive(Debug, Clone, Copy)]
enum Again {
    /// Enqueued when the first may have been lost.
    Enqueued,
    /// To replace the first, which cannot be taken out any more.
    Replacing,
    /// At a time of its own.
    InTime,
    /// From the dead letters.
    Letter,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_came_again_keeps_its_key_when_the_one_before_it_ends() {
    for way in [Again::Enqueued, Again::Replacing, Again::InTime, Again::Letter] {
        let s = Setup::with_clock(false).await;
        s.start();
        let key = Uuid::now_v7();
        let id = TaskId { key, queue: queue() };
        if let Again::Letter = way {
            assert!(s.call(key, "die once", Unique::UntilDone).await);
            assert_eq!(s.ended(&id).await.state, State::Failure);
        }
        let began = async |n| s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == n).await;
        let before = s.bench.runs.load(Ordering::SeqCst);
        assert!(s.call(key, "wait", Unique::UntilDone).await);
        began(before + 1).await;
        // After that a task that was read may have been lost.
        let lost_after = Duration::from_secs(61);
        match way {
            Again::Enqueued => {
                s.h.advance(lost_after);
                assert!(s.call(key, "wait", Unique::UntilDone).await);
            }
            Again::Replacing => assert!(s.call(key, "wait", Unique::Replace).await),
            Again::InTime => {
                let item = Item::at(key, Work { what: "wait".to_owned() }, s.h.now().plus(Duration::from_secs(1)));
                assert_eq!(s.bench.engine.enqueue(&[item]).await.unwrap(), 1);
                s.h.advance(Duration::from_secs(2));
            }
            Again::Letter => {
                s.h.advance(lost_after);
                assert_eq!(s.bench.engine.retry_all_letters(&queue(), 10).await.unwrap(), (1, false));
            }
        }
        began(before + 2).await;
        s.bench.gate.add_permits(1);
        s.h.eventually(async || s.depth().await == 1).await;
        assert!(!s.call(key, "third", Unique::UntilDone).await, "{way:?}: the second one has the key");
        s.bench.gate.add_permits(1);
        s.h.eventually(async || s.depth().await == 0).await;
        assert!(s.call(key, "third", Unique::UntilDone).await, "{way:?}: nobody has it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_task_that_came_again_keeps_its_key_when_the_other_one_ends() {
    let s = Setup::new().await;
    s.start();
    let key = Uuid::now_v7();
    let began = async |n| s.h.eventually(async || s.bench.runs.load(Ordering::SeqCst) == n).await;
    assert!(s.call(key, "fail once, wait", Unique::UntilDone).await);
    began(1).await;
    assert!(s.call(key, "wait", Unique::Replace).await);
    began(2).await;
    // The first fails, and runs again.
    s.bench.gate.add_permits(1);
    began(3).await;
    // The second ends.
    s.bench.gate.add_permits(1);
    s.h.eventually(async || s.depth().await == 1).await;
    assert!(!s.call(key, "third", Unique::UntilDone).await, "the first one's second attempt has the key");
    s.bench.gate.add_permits(1);
    s.h.eventually(async || s.depth().await == 0).await;
    assert!(s.call(key, "third", Unique::UntilDone).await, "nobody has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_runs_keeps_its_key_when_one_that_waits_for_its_time_is_taken_back() {
    let s = Setup::new().await;
    s.start();
    for revoke in [false, true] {
        let key = Uuid::now_v7();
        assert!(s.call(key, "wait", Unique::UntilDone).await);
        s.h.eventually(async || s.bench.times("wait") == 1 + usize::from(revoke)).await;
        let due = s.h.now().plus(Duration::from_secs(3600));
        s.bench.engine.enqueue(&[Item::at(key, Work { what: "later".to_owned() }, due)]).await.unwrap();
        if revoke {
            let id = TaskId { key, queue: queue() };
            assert_eq!(s.bench.engine.revoke(&id).await.unwrap(), Revoked::Told);
        } else {
            assert_eq!(s.bench.engine.unschedule::<Work>(&[key]).await.unwrap(), 1);
        }
        assert!(!s.call(key, "again", Unique::UntilDone).await, "it runs; revoked: {revoke}");
        s.bench.gate.add_permits(1);
        s.h.eventually(async || s.depth().await == 0).await;
        assert!(s.call(key, "again", Unique::UntilDone).await, "it has ended; revoked: {revoke}");
        s.h.eventually(async || s.depth().await == 0).await;
    }
}
