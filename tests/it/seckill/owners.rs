//! Who has the course already: refused at the gate without taking a unit, and never kept out for ever. And who submits
//! far too often.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sqlx::QueryBuilder;

use super::*;

/// Gives people a course, by orders of long ago.
pub async fn own(h: &Harness, course: Uuid, people: &[Person]) {
    for part in people.chunks(1000) {
        let mut insert = QueryBuilder::new("INSERT INTO user_courses (user_id, course_id, order_id, granted_at) ");
        insert.push_values(part, |mut row, person| {
            row.push_bind(person.id).push_bind(course).push_bind(Uuid::now_v7()).push_bind(h.now());
        });
        insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    }
}

async fn disown(h: &Harness, person: &Person) {
    sqlx::query("DELETE FROM user_courses WHERE user_id = ?").bind(person.id).execute(&h.app.db).await.unwrap();
}

/// How many submissions wait.
async fn queued(h: &Harness, sale: &Sale) -> u64 {
    h.app.engine.depth(&seckill::queue(sale.activity())).await.unwrap().depth
}

async fn gate(h: &Harness, sale: &Sale) -> HashMap<String, String> {
    let meta = h.app.engine.keys(&seckill::queue(sale.activity())).meta();
    redis::cmd("HGETALL").arg(meta).query_async(&mut h.app.redis.commands()).await.unwrap()
}

/// What the place of this person holds.
async fn place(h: &Harness, sale: &Sale, person: &Person) -> Option<String> {
    gate(h, sale).await.remove(&format!("u{}", person.id.as_simple()))
}

/// Owners submit as fast as they can while `buying` goes on; how many of their submissions were taken on.
async fn crowd(h: &Harness, sale: &Sale, owners: &[Person], buying: impl Future<Output = ()>) -> usize {
    let (over, taken_on) = (AtomicBool::new(false), AtomicUsize::new(0));
    let looping = join_all(owners.iter().map(|owner| async {
        let mut mine = HashSet::new();
        while !over.load(Ordering::Relaxed) {
            let answer = sale.submit(h, owner).await;
            if answer.status == 202 {
                mine.insert(answer.text_of("id"));
            }
        }
        taken_on.fetch_add(mine.len(), Ordering::Relaxed);
    }));
    let buying = async {
        buying.await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(looping, buying);
    taken_on.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn owners_who_keep_submitting_keep_no_buyer_out() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (course, owners, buyers) = (h.course(9900).await, h.people(64).await, h.people(5).await);
    own(&h, course.id, &owners).await;
    let sale = Sale::with(&h, json!({ "stock": 5, "course_id": course.no() })).await;
    h.start_workers();
    // The gate knew them when it was built: none of them takes a unit, so each buyer gets in at once.
    let at_once = async {
        for buyer in &buyers {
            sale.submit(&h, buyer).await.expect(202);
        }
    };
    assert_eq!(crowd(&h, &sale, &owners, at_once).await, 0);
    for buyer in &buyers {
        assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
    }
    let refused = sale.submit(&h, &owners[0]).await.problem(409, "already_owned");
    assert_eq!((refused["code"].as_i64(), refused["msg"].as_str()), (Some(101), Some("已拥有该课程")));
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_owner_whom_the_gate_does_not_know_takes_a_unit_once_and_gives_it_back() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let (course, owners, buyers) = (h.course(9900).await, h.people(64).await, h.people(5).await);
    let sale = Sale::with(&h, json!({ "stock": 5, "course_id": course.no() })).await;
    // They bought it since the gate was built.
    own(&h, course.id, &owners).await;
    h.start_workers();
    // A unit that an owner held for as long as their submission waited comes back with its placement.
    let tasks = Mutex::new(Vec::new());
    let in_the_end = async {
        for buyer in &buyers {
            h.eventually(async || {
                let answer = sale.submit(&h, buyer).await;
                let is_in = answer.status == 202;
                is_in.then(|| tasks.lock().unwrap().push(answer.text_of("id")));
                is_in
            })
            .await;
        }
    };
    let taken_on = crowd(&h, &sale, &owners, in_the_end).await;
    assert!(taken_on <= owners.len(), "{taken_on} submissions of {} owners were taken on", owners.len());
    for (buyer, task) in buyers.iter().zip(tasks.into_inner().unwrap()) {
        assert_eq!(h.get(&format!("/tasks/{task}?wait=20"), buyer).await.expect(200).body["code"], 100);
    }
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_learns_of_thousands_of_owners_and_takes_nothing_for_them() {
    let h = Harness::new().await;
    let (course, owners) = (h.course(9900).await, h.people(11_200).await);
    own(&h, course.id, &owners).await;
    let sale = Sale::with(&h, json!({ "stock": 5, "course_id": course.no() })).await;
    let marked = async || gate(&h, &sale).await.values().filter(|held| held.ends_with(":owned")).count();
    // Twenty pages before the first buyer is let in, the rest by the passes.
    assert_eq!(marked().await, 10_000);
    seckill::look_after_gates(&h.app).await.unwrap();
    assert_eq!(marked().await, owners.len());
    for owner in [&owners[0], &owners[owners.len() - 1]] {
        sale.submit(&h, owner).await.problem(409, "already_owned");
    }
    assert_eq!((queued(&h, &sale).await, gate(&h, &sale).await["stock"].as_str()), (0, "5"));
    sale.submit(&h, &h.register().await).await.expect(202);
    // Redis has lost everything: the gate is built with them again.
    forget(&h).await;
    sale.submit(&h, &owners[1]).await.problem(409, "already_owned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_does_not_hold_is_found_wherever_it_is() {
    let h = Harness::new().await;
    // Sales of which nobody has the course take no turn.
    super::many::others(&h, 200, -10, 60, false).await;
    let (course, owners) = (h.course(9900).await, h.people(5000).await);
    own(&h, course.id, &owners).await;
    let sale = Sale::with(&h, json!({ "stock": 5, "course_id": course.no() })).await;
    // It was taken back, and nobody was told.
    let former = &owners[4321];
    disown(&h, former).await;
    sale.submit(&h, former).await.problem(409, "already_owned");
    // A pass looks at some two thousand fields.
    for _ in 0..8 {
        seckill::look_after_gates(&h.app).await.unwrap();
    }
    assert_eq!(place(&h, &sale, former).await.as_deref(), Some("0:"));
    sale.submit(&h, former).await.expect(202);
    sale.submit(&h, &owners[0]).await.problem(409, "already_owned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_is_held_is_stronger_than_the_mark_of_an_owner() {
    let h = Harness::new().await;
    let course = h.course(9900).await;
    let sale = Sale::with(&h, json!({ "stock": 5, "course_id": course.no() })).await;
    let (winner, over) = (h.register().await, h.register().await);
    h.start_workers();
    assert_eq!(sale.take_part(&h, &winner).await["code"], 100);
    let task = sale.submit(&h, &winner).await.expect(202).text_of("id");
    own(&h, course.id, std::slice::from_ref(&winner)).await;
    own(&h, course.id, std::slice::from_ref(&over)).await;
    forget(&h).await;
    // Also when the gate is built anew, with him among the owners.
    h.eventually(async || sale.submit(&h, &winner).await.status == 202).await;
    assert_eq!(sale.submit(&h, &winner).await.expect(202).text_of("id"), task);
    h.eventually(async || sale.submit(&h, &over).await.status == 409).await;
    sale.submit(&h, &over).await.problem(409, "already_owned");
    h.post(&format!("/admin/seckill/activities/{}/close", sale.id), &sale.admin, Value::Null).await.expect(200);
    sale.submit(&h, &over).await.problem(410, "ended");
    assert_eq!(sale.submit(&h, &winner).await.expect(202).text_of("id"), task);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_submits_far_too_often_is_told_to_wait_and_nobody_else_is() {
    let settings = vec![("seckill.submissions_max", "3".to_owned()), ("seckill.submissions_window_s", "60".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (sale, other_sale) = (Sale::open(&h, 5).await, Sale::open(&h, 5).await);
    let (eager, calm) = (h.register().await, h.register().await);
    // At the beginning of a window.
    let into = h.now().ms().rem_euclid(60_000).unsigned_abs();
    h.advance(Duration::from_millis(60_000 - into));
    let id = sale.submit(&h, &eager).await.expect(202).text_of("id");
    for _ in 0..2 {
        assert_eq!(sale.submit(&h, &eager).await.expect(202).text_of("id"), id);
    }
    let refused = sale.submit(&h, &eager).await.problem(429, "too_many_attempts");
    assert_eq!(refused.header("retry-after"), Some("60"));
    assert_eq!((refused["code"].as_i64(), refused["msg"].as_str()), (Some(102), Some("操作太频繁，请稍后再试")));
    sale.submit(&h, &calm).await.expect(202);
    other_sale.submit(&h, &eager).await.expect(202);
    // What he has is there for him to ask about.
    h.get(&format!("/tasks/{id}"), &eager).await.expect(200);
    h.advance(Duration::from_secs(60));
    assert_eq!(sale.submit(&h, &eager).await.expect(202).text_of("id"), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_gates_know_of_very_many_owners_they_are_told_of_no_more_until_others_are_gone() {
    let h = Harness::new().await;
    let (full, course) = (Sale::open(&h, 10).await, h.course(9900).await);
    let sale = Sale::with(&h, json!({ "course_id": course.no() })).await;
    let owner = h.register().await;
    own(&h, course.id, std::slice::from_ref(&owner)).await;
    let meta = |sale: &Sale| h.app.engine.keys(&seckill::queue(sale.activity())).meta();
    let tell = async |command: &[&str]| {
        let mut told = redis::cmd(command[0]);
        let _: i64 = told.arg(&command[1..]).query_async(&mut h.app.redis.commands()).await.unwrap();
    };
    // Nobody was written yet.
    tell(&["HDEL", &meta(&sale), "owners"]).await;
    tell(&["HSET", &meta(&full), "marks", "2000000"]).await;
    seckill::look_after_gates(&h.app).await.unwrap();
    assert_eq!(place(&h, &sale, &owner).await, None);
    tell(&["HSET", &meta(&full), "marks", "1999999"]).await;
    seckill::look_after_gates(&h.app).await.unwrap();
    assert_eq!(place(&h, &sale, &owner).await.as_deref(), Some("0:owned"));
}
