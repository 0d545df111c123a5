//! What comes after a task: chains, groups, the outbox.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_hands_each_result_on_and_ends_at_the_first_failure() {
    let s = Setup::new().await;
    s.start_all();
    let mut calls = steps([false, false]);
    // The last one is on another queue.
    calls.push(Call::of(&Sum {}).unwrap());
    s.bench.engine.chain(&calls).await.unwrap();
    let last = s.end_of(&calls[2]).await;
    assert_eq!(last.result, json!({ "previous": { "n": 1, "before": { "n": 0, "before": null } } }));

    let mut broken = steps([false, true]);
    broken.push(Call::of(&Sum {}).unwrap());
    s.bench.engine.chain(&broken).await.unwrap();
    assert_eq!(s.end_of(&broken[1]).await.state, State::Failure);
    assert!(s.bench.engine.status(&broken[2].id()).await.unwrap().is_none());
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_calls_back_once_with_every_result_in_order() {
    let s = Setup::new().await;
    let (members, callback) = (steps([false; 30]), Call::of(&Sum {}).unwrap());
    s.bench.engine.group(&members, &callback).await.unwrap();
    s.start_all();
    let results = s.end_of(&callback).await.result["previous"].clone();
    let numbers: Vec<u64> = results.as_array().unwrap().iter().map(|r| r["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..30).collect::<Vec<_>>());
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);

    let nobody = Call::of(&Sum {}).unwrap();
    s.bench.engine.group(&[], &nobody).await.unwrap();
    assert_eq!(s.end_of(&nobody).await.result, json!({ "previous": [] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_a_member_that_fails_does_not_call_back_and_says_why() {
    let s = Setup::new().await;
    s.start_all();
    let (members, callback) = (steps([false, true, false]), Call::of(&Sum {}).unwrap());
    s.bench.engine.group(&members, &callback).await.unwrap();
    let status = s.end_of(&callback).await;
    assert_eq!(status.state, State::Failure);
    assert!(status.result["error"].as_str().unwrap().contains("of its group failed"));
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lay_in_the_outbox_of_a_dead_worker_goes_on_its_way_once() {
    let s = Setup::new().await;
    let call = Call::of(&Sum {}).unwrap();
    let follow = json!([{ "calls": [call] }]).to_string();
    // Written twice, as by a worker that died before it could cross it out.
    let outbox = s.bench.engine.keys(&queue()).outbox();
    for _ in 0..2 {
        let _: String = s.redis(redis::cmd("XADD").arg(&outbox).arg("*").arg("f").arg(&follow)).await;
    }
    s.start_all();
    assert_eq!(s.end_of(&call).await.state, State::Success);
    s.h.eventually(async || s.redis::<u64>(redis::cmd("XLEN").arg(&outbox)).await == 0).await;
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_taken_back_fails_the_callback() {
    let s = Setup::new().await;
    let (members, callback) = (steps([false; 3]), Call::of(&Sum {}).unwrap());
    s.bench.engine.group(&members, &callback).await.unwrap();
    assert_eq!(s.bench.engine.revoke(&members[1].id()).await.unwrap(), Revoked::Now);
    // Of another group every member.
    let other = Call::of(&Sum {}).unwrap();
    s.start_all();
    let status = s.end_of(&callback).await;
    assert_eq!(
        (status.state, &status.result),
        (State::Failure, &json!({ "error": "member 1 of its group was revoked" }))
    );

    let steps_queue: QueueName = "steps".parse().unwrap();
    s.bench.engine.set_paused(&steps_queue, true).await.unwrap();
    let paused = async || {
        let workers = s.bench.engine.workers("", 10).await.unwrap();
        workers.iter().any(|w| w.report.queues.iter().any(|q| q.queue == "steps" && q.paused))
    };
    s.h.eventually(paused).await;
    let members = steps([false; 3]);
    s.bench.engine.group(&members, &other).await.unwrap();
    assert_eq!(s.bench.engine.purge(&steps_queue).await.unwrap(), (3, false));
    // The workers of a paused queue still tell what follows.
    let status = s.end_of(&other).await;
    assert_eq!(status.state, State::Failure);
    assert!(status.result["error"].as_str().unwrap().contains("was revoked"));
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_chain_is_taken_back_with_a_task_of_it() {
    let s = Setup::new().await;
    let mut calls = steps([false, false]);
    calls.push(Call::of(&Sum {}).unwrap());
    s.bench.engine.chain(&calls).await.unwrap();
    assert_eq!(s.bench.engine.revoke(&calls[0].id()).await.unwrap(), Revoked::Now);
    s.start_all();
    for call in &calls {
        assert_eq!(s.end_of(call).await.state, State::Revoked);
    }
    // Also with one that heard of it while it ran.
    let running = Call::of(&Work { what: "stoppable".to_owned() }).unwrap();
    let next = Call::of(&Sum {}).unwrap();
    s.bench.engine.chain(&[running.clone(), next.clone()]).await.unwrap();
    let began = async || s.bench.engine.status(&running.id()).await.unwrap().unwrap().progress.is_some();
    s.h.eventually(began).await;
    assert_eq!(s.bench.engine.revoke(&running.id()).await.unwrap(), Revoked::Told);
    assert_eq!(s.end_of(&next).await.state, State::Revoked);
    let found = s.bench.engine.find(&next.id()).await.unwrap().unwrap();
    assert_eq!(found.record.map(|record| record.name), Some("test.sum".to_owned()));
    assert_eq!(s.bench.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_on_its_way_is_not_ended_by_a_chain_it_belongs_to() {
    let s = Setup::new().await;
    let (first, second) = (Call::of(&Step { n: 0, fails: false }).unwrap(), Call::of(&Sum {}).unwrap());
    s.bench.engine.chain(&[first.clone(), second.clone()]).await.unwrap();
    // Enqueued by itself as well.
    assert!(s.bench.engine.call(&second, None, Unique::UntilDone).await.unwrap());
    assert_eq!(s.bench.engine.revoke(&first.id()).await.unwrap(), Revoked::Now);
    let registry = Registry::default().queue(QueueSpec { name: "steps", batch: 10, concurrency: 2 }).single(step);
    Worker::start(s.bench.engine.clone(), registry, s.bench.clone(), &s.loops);
    let outbox = s.bench.engine.keys(&"steps".parse().unwrap()).outbox();
    s.h.eventually(async || s.redis::<u64>(redis::cmd("XLEN").arg(&outbox)).await == 0).await;
    assert_eq!(s.bench.engine.status(&second.id()).await.unwrap().unwrap().state, State::Pending);
}
