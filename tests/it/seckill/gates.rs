//! Gates as a whole: built from MySQL however many hold a unit, told once what Redis may have forgotten, removed when all is
//! over, and each of them by itself when one cannot be read.

use onrush::auth::{self, Role};
use onrush::jobs;
use sqlx::QueryBuilder;

use super::*;
use crate::support::PrivateRedis;

/// A day, and the time for which a gate stays after the end of its sale.
const DAY: Duration = Duration::from_secs(24 * 3600);

fn meta(h: &Harness, sale: &Sale) -> String {
    h.app.engine.keys(&seckill::queue(sale.activity())).meta()
}

async fn ask<T: redis::FromRedisValue>(h: &Harness, command: &[&str]) -> T {
    let mut asked = redis::cmd(command[0]);
    asked.arg(&command[1..]).query_async(&mut h.app.redis.commands()).await.unwrap()
}

async fn gate(h: &Harness, sale: &Sale) -> HashMap<String, String> {
    ask(h, &["HGETALL", &meta(h, sale)]).await
}

/// The field of a user's place.
fn place(user: Uuid) -> String {
    format!("u{}", user.as_simple())
}

/// Somebody's entries: how many, and the one that is live.
#[derive(Clone)]
struct Held {
    user: Uuid,
    tries: usize,
    live: Option<Uuid>,
}

impl Held {
    fn place(&self) -> String {
        format!("{}:{}", self.tries, self.live.map(|entry| entry.as_simple().to_string()).unwrap_or_default())
    }
}

/// Entries of so many users, straight into the table: every third has one that was given back before, every seventh has
/// nothing any more.
async fn hold(h: &Harness, sale: &Sale, users: usize) -> Vec<Held> {
    let activity: Uuid = sale.id.parse().unwrap();
    let (mut held, mut rows) = (Vec::new(), Vec::new());
    for n in 0..users {
        let user = Uuid::now_v7();
        let is_live = n % 7 != 6;
        let entries: Vec<(Uuid, Option<i8>)> = if n % 3 == 0 {
            vec![(Uuid::now_v7(), None), (Uuid::now_v7(), Some(1))]
        } else {
            vec![(Uuid::now_v7(), Some(1))]
        };
        let entries: Vec<_> = entries.into_iter().map(|(id, live)| (id, live.filter(|_| is_live))).collect();
        let live = entries.iter().find(|(_, live)| live.is_some()).map(|(id, _)| *id);
        held.push(Held { user, tries: entries.len(), live });
        rows.extend(entries.into_iter().map(|(id, live)| (id, user, live)));
    }
    for part in rows.chunks(1000) {
        let mut insert = QueryBuilder::new(
            "INSERT INTO seckill_entries (id, activity_id, user_id, order_id, live, created_at, released_at, gate_returned_at) ",
        );
        insert.push_values(part, |mut row, (id, user, live)| {
            let back = live.is_none().then(|| h.now());
            row.push_bind(id).push_bind(activity).push_bind(user).push_bind(Uuid::now_v7()).push_bind(live);
            row.push_bind(h.now()).push_bind(back).push_bind(back);
        });
        insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_is_built_whole_however_many_hold_a_unit() {
    let h = Harness::new().await;
    let sale = Sale::open(&h, 20_000).await;
    // More than two pages of what is read, and a part of one.
    let held = hold(&h, &sale, 12_345).await;
    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    seckill::open_gate(&h.app, sale.activity()).await.unwrap();
    let mut gate = gate(&h, &sale).await;
    for one in &held {
        assert_eq!(gate.remove(&place(one.user)).as_deref(), Some(one.place().as_str()));
    }
    assert!(!gate.keys().any(|field| field.starts_with('u')), "{gate:?}");
    assert_eq!(gate["stock"], "20000");
    sale.submit(&h, &h.register().await).await.expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_lost_its_lock_writes_nothing_more() {
    let servers = PrivateServers::start().await;
    let h = Harness::with(Options { servers: Some(servers.addresses()), ..Options::default() }).await;
    let sale = Sale::open(&h, 20_000).await;
    hold(&h, &sale, 6_000).await;
    let lock = h.app.engine.keys(&seckill::queue(sale.activity())).own("building");
    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    // It has the lock, and waits for what it reads.
    let mut table = h.app.db.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES seckill_entries WRITE").execute(&mut *table).await.unwrap();
    let (app, activity) = (h.app.clone(), sale.activity());
    let building = tokio::spawn(async move { seckill::open_gate(&app, activity).await });
    h.eventually(async || ask::<i64>(&h, &["EXISTS", &lock]).await == 1).await;
    let _: String = ask(&h, &["SET", &lock, "another"]).await;
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut *table).await.unwrap();
    building.await.unwrap().unwrap();
    assert_eq!(gate(&h, &sale).await, HashMap::new());
    assert_eq!(ask::<String>(&h, &["GET", &lock]).await, "another");
}

/// Tells the gates, as a scheduler's process does every second.
async fn tell(h: &Harness) {
    seckill::tell_gates(&h.app, &|| ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gates_are_told_who_holds_a_unit_once_for_each_run_of_redis_and_not_by_every_process() {
    let mut redis = PrivateRedis::start().await;
    let servers = Some(redis.addresses(redis.url().to_owned()).await);
    let h = Harness::with(Options { servers, ..Options::default() }).await;
    let another = h.another().await;
    let sale = Sale::open(&h, 20_000).await;
    let held = hold(&h, &sale, 5_500).await;
    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    seckill::open_gate(&h.app, sale.activity()).await.unwrap();
    let (first, last) = (&held[0], held.iter().rfind(|held| held.live.is_some()).unwrap());
    let forget = async || {
        for one in [first, last] {
            let _: i64 = ask(&h, &["HDEL", &meta(&h, &sale), &place(one.user)]).await;
        }
    };
    let known = async || {
        let gate = gate(&h, &sale).await;
        [first, last].map(|one| gate.get(&place(one.user)) == Some(&one.place()))
    };
    // This run is told once, and once more when what was under way is over: by one process, whichever comes first.
    for (who, until_then) in [(&h, Duration::from_secs(29)), (&another, DAY)] {
        forget().await;
        tell(who).await;
        assert_eq!(known().await, [true; 2]);
        forget().await;
        h.advance(until_then);
        tell(&another).await;
        tell(&h).await;
        assert_eq!(known().await, [false; 2]);
        h.advance(Duration::from_secs(1));
    }
    // Another run may have forgotten again.
    redis.tell(&["CONFIG", "SET", "appendfsync", "always"]).await;
    redis.restart().await;
    // Each process finds its own way back.
    h.eventually(async || h.app.redis.usable().await.is_ok()).await;
    h.eventually(async || seckill::tell_gates(&another.app, &|| ()).await.is_ok()).await;
    assert_eq!(known().await, [true; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tells_the_gates_and_dies_holds_nobody_up_for_long() {
    let h = Harness::new().await;
    let sale = Sale::open(&h, 10).await;
    let held = hold(&h, &sale, 3).await;
    let right = format!("{}:{{.gates}}:telling", h.app.redis.prefix());
    let _: String = ask(&h, &["SET", &right, "who died", "PX", "500"]).await;
    tell(&h).await;
    assert_eq!(gate(&h, &sale).await.get(&place(held[0].user)), None);
    h.eventually(async || {
        tell(&h).await;
        gate(&h, &sale).await.get(&place(held[0].user)) == Some(&held[0].place())
    })
    .await;
}

/// With a token that holds now.
fn logged_in(h: &Harness, person: &Person) -> Person {
    let token = auth::access_token(&h.app, UserId::from_uuid(person.id), Role::User).unwrap();
    Person { token, ..person.clone() }
}

async fn clear_away(h: &Harness) -> Value {
    jobs::run_pass(h.app.clone(), "seckill.clear").await.unwrap().unwrap()
}

/// What Redis keeps of an activity beside records of tasks.
async fn kept(h: &Harness, sale: &Sale) -> Vec<String> {
    let keys: Vec<String> = ask(h, &["KEYS", &format!("{}:{{seckill/{}}}:*", h.app.redis.prefix(), sale.id)]).await;
    keys.into_iter().filter(|key| !key.contains(":task:")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_sale_that_is_long_over_are_unlinked_and_everybody_is_told_as_before() {
    let redis = PrivateRedis::start().await;
    let servers = Some(redis.addresses(redis.url().to_owned()).await);
    let h = Harness::with(Options { servers, ..Options::default() }).await;
    let (sale, later) = (Sale::open(&h, 5_000).await, Sale::with(&h, json!({ "ends_at": h.now().plus(DAY) })).await);
    let (buyer, late) = (h.register().await, h.register().await);
    let workers = h.another().await;
    workers.start_workers();
    let won = sale.take_part(&h, &buyer).await;
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    let held = hold(&h, &sale, 2_000).await;
    let _: i64 = ask(&h, &["DEL", &meta(&h, &sale)]).await;
    seckill::open_gate(&h.app, sale.activity()).await.unwrap();
    assert!(gate(&h, &sale).await.len() > held.len());
    // The expiry is a week behind the pass.
    let ttl: i64 = ask(&h, &["TTL", &meta(&h, &sale)]).await;
    assert!(ttl > 13 * 24 * 3600, "{ttl}");
    assert!(workers.app.loops.stop(Duration::from_secs(20)).await);

    h.advance(DAY * 7);
    assert_eq!(clear_away(&h).await["removed"], 0);
    h.advance(Duration::from_secs(2 * 3600));
    // One that cannot be read goes, too.
    let stream = h.app.engine.keys(&seckill::queue(sale.activity())).stream();
    let _: i64 = ask(&h, &["DEL", &stream]).await;
    let _: String = ask(&h, &["SET", &stream, "x"]).await;
    let _: String = ask(&h, &["CONFIG", "RESETSTAT"]).await;
    assert_eq!(clear_away(&h).await["removed"], 1);
    assert_eq!(kept(&h, &sale).await, Vec::<String>::new());
    assert!(!kept(&h, &later).await.is_empty());
    let freed_by_another_thread = async || {
        let info: redis::InfoDict = ask(&h, &["INFO", "memory"]).await;
        let freed: Option<u64> = info.get("lazyfreed_objects");
        freed.is_some_and(|freed| freed > 0)
    };
    h.eventually(freed_by_another_thread).await;
    assert_eq!(clear_away(&h).await["removed"], 0);
    let (buyer, late) = (logged_in(&h, &buyer), logged_in(&h, &late));
    sale.submit(&h, &late).await.problem(410, "ended");
    sale.submit(&h, &buyer).await.problem(410, "ended");
    assert_eq!(h.get(&format!("/tasks/{task}"), &buyer).await.expect(200)["result"], won["result"]);
    assert_eq!(kept(&h, &sale).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_marks_go_with_the_end_of_the_sale_and_all_others_stay() {
    let h = Harness::new().await;
    let (course, owners) = (h.course(9900).await, h.people(2_600).await);
    owners::own(&h, course.id, &owners).await;
    let fields = json!({ "stock": 5, "course_id": course.no(), "per_user_limit": 3 });
    let (sale, early) = (Sale::with(&h, fields.clone()).await, Sale::with(&h, fields).await);
    let buyer = h.register().await;
    let task = sale.submit(&h, &buyer).await.expect(202).text_of("id");
    let marks = async |sale: &Sale| gate(&h, sale).await.values().filter(|held| held.ends_with(":owned")).count();
    // One has tried before, and has it by another order since.
    let _: i64 = ask(&h, &["HSET", &meta(&h, &sale), &place(owners[7].id), "2:owned"]).await;
    clear_away(&h).await;
    assert_eq!((marks(&sale).await, marks(&early).await), (2_600, 2_600));
    h.post(&format!("/admin/seckill/activities/{}/close", early.id), &early.admin, Value::Null).await.expect(200);
    clear_away(&h).await;
    assert_eq!((marks(&sale).await, marks(&early).await), (2_600, 0));
    h.advance(Duration::from_secs(3600));
    clear_away(&h).await;
    let left = gate(&h, &sale).await;
    let users: Vec<_> = left.keys().filter(|field| field.starts_with('u')).cloned().collect();
    let tried = place(owners[7].id);
    assert_eq!(HashSet::from_iter(users), HashSet::from([place(buyer.id), tried.clone()]));
    assert_eq!(left[&tried], "2:");
    // They hear what they heard before, and no pass writes them again.
    seckill::look_after_gates(&h.app).await.unwrap();
    clear_away(&h).await;
    assert_eq!(marks(&sale).await, 0);
    for owner in &owners[..10] {
        let owner = &logged_in(&h, owner);
        sale.submit(&h, owner).await.problem(410, "ended");
        early.submit(&h, owner).await.problem(410, "ended");
    }
    assert_eq!(sale.submit(&h, &logged_in(&h, &buyer)).await.expect(202).text_of("id"), task);
}

/// Entries of an activity that were given back and are owed to its gate.
async fn owe(h: &Harness, sale: &Sale, users: usize) {
    let held = hold(h, sale, users).await;
    assert!(held.iter().any(|held| held.live.is_some()));
    sqlx::query(
        "UPDATE seckill_entries SET live = NULL, released_at = ?, gate_returned_at = NULL WHERE activity_id = ?",
    )
    .bind(h.now().minus(Duration::from_secs(60)))
    .bind(sale.id.parse::<Uuid>().unwrap())
    .execute(&h.app.db)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_cannot_be_read_holds_up_no_other() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let broken = Sale::with(&h, json!({ "ends_at": h.now().plus(DAY) })).await;
    let (sale, buyer) = (Sale::open(&h, 10).await, h.register().await);
    // More units than a page are owed to the broken one, and before all others.
    owe(&h, &broken, 600).await;
    let _: i64 = ask(&h, &["DEL", &meta(&h, &broken)]).await;
    let _: String = ask(&h, &["SET", &meta(&h, &broken), "x"]).await;
    let owed = hold(&h, &sale, 1).await;
    let back = "UPDATE seckill_entries SET live = NULL, released_at = NOW(3), gate_returned_at = NULL WHERE live = 1";
    sqlx::query(back).execute(&h.app.db).await.unwrap();
    let _: i64 = ask(&h, &["HSET", &meta(&h, &sale), &place(owed[0].user), &owed[0].place(), "stock", "9"]).await;

    let failed = seckill::return_units(&h.app).await.unwrap_err().to_string();
    assert!(failed.contains("1 of "), "{failed}");
    assert_eq!(gate(&h, &sale).await["stock"], "10");
    let left = "SELECT COUNT(*) FROM seckill_entries WHERE gate_returned_at IS NULL AND released_at IS NOT NULL";
    assert_eq!(h.count(left).await, 800);

    let _: i64 = ask(&h, &["HSET", &meta(&h, &sale), "stock", "13"]).await;
    h.eventually(async || {
        seckill::look_after_gates(&h.app).await.unwrap_err();
        gate(&h, &sale).await["stock"] == "10"
    })
    .await;
    let _: i64 = ask(&h, &["HDEL", &meta(&h, &sale), &place(owed[0].user)]).await;
    seckill::tell_gates(&h.app, &|| ()).await.unwrap_err();
    assert_eq!(gate(&h, &sale).await.get(&place(owed[0].user)).map(String::as_str), Some("2:"));

    let findings = check::findings(&h.app, false).await.unwrap();
    let names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
    assert_eq!(names, ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9"]);
    let i8 = &findings[7].violations;
    assert!(matches!(&i8[..], [line] if line.contains(&broken.id) && line.contains("cannot be read")), "{i8:?}");

    // Its loops go on, and say what is wrong.
    h.start_workers();
    assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
    h.eventually(async || {
        let ready = h.get("/readyz", ()).await.expect(200).body;
        let gates = ready["loops"].as_array().unwrap().iter().find(|found| found["name"] == "seckill.gates").cloned();
        gates.is_some_and(|gates| gates["last_error"].as_str().is_some_and(|error| error.contains("activities failed")))
    })
    .await;

    // Whoever takes the key away has everything back.
    let _: i64 = ask(&h, &["DEL", &meta(&h, &broken)]).await;
    h.eventually(async || h.count(left).await == 0 && gate(&h, &broken).await.contains_key("starts")).await;
    seckill::look_after_gates(&h.app).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_says_when_redis_frees_what_expires_in_its_main_thread() {
    const WARNING: &str = "lazyfree-lazy-expire no";
    let redis = PrivateRedis::start().await;
    let servers = Some(redis.addresses(redis.url().to_owned()).await);
    let h = Harness::with(Options { servers, ..Options::default() }).await;
    // As `onrush dev` starts it.
    assert_eq!(h.process("api", &[]).await.log().matches(WARNING).count(), 0);
    redis.tell(&["CONFIG", "SET", "lazyfree-lazy-expire", "no"]).await;
    assert_eq!(h.process("api", &[]).await.log().matches(WARNING).count(), 1);
    // A managed one may not let it be read.
    redis.tell(&["ACL", "SETUSER", "default", "-config"]).await;
    assert_eq!(h.process("api", &[]).await.log().matches("lazyfree").count(), 0);
}
