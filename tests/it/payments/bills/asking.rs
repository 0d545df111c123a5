//! A person asks for a bill: what is answered, what the task does, and what is kept of bills that come twice or not whole.

use onrush::engine::Worker;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn fetching_again_changes_only_what_changed() {
    let desk = desk().await;
    let h = &desk.h;
    sell(h, 1000).await;
    stranger(h, "s1", 10, at(NOON)).await;
    stranger(h, "s2", 20, at(NOON)).await;
    on(&desk, MORNING).await;
    let before = bills(&desk).await.remove(0);
    h.advance(Duration::from_secs(60));
    let same = fetch(&desk, "2026-11-20").await["bill"].take();
    assert_eq!(
        (&same["id"], &same["fetched_at"], &same["checked_at"]),
        (&before["id"], &json!(MORNING), &json!(h.now()))
    );
    assert_eq!((bills(&desk).await.len(), &same["differences_open"]), (7, &json!(2)));
    // The gateway has corrected its books: one line is gone, one is another, one is new.
    gateway_writes(h, "UPDATE sandbox_trades SET paid_at = NULL WHERE merchant_no = ?", "s1").await;
    gateway_writes(h, "UPDATE sandbox_trades SET paid_fen = 21 WHERE merchant_no = ?", "s2").await;
    stranger(h, "s3", 30, at(NOON)).await;
    h.advance(Duration::from_secs(60));
    let other = fetch(&desk, "2026-11-20").await["bill"].take();
    assert_ne!(other["id"], before["id"]);
    assert_eq!((&other["payments"], &other["payments_fen"]), (&json!(3), &json!(1051)));
    let expected = [
        row("payment", "s1", "missing_here", "vanished"),
        row("payment", "s2", "missing_here", "open"),
        row("payment", "s3", "missing_here", "open"),
    ];
    assert_eq!(told(&desk).await, expected);
    let now = json!(h.now());
    let all = differences(&desk, "").await;
    assert_eq!(
        (&all[1]["theirs_fen"], &all[1]["found_at"], &all[2]["vanished_at"]),
        (&json!(21), &json!(MORNING), &now)
    );
    let kept = bills(&desk).await;
    let old = kept.iter().find(|bill| bill["id"] == before["id"]).unwrap();
    assert_eq!((&old["status"], &old["replaced_at"]), (&json!("replaced"), &now));
    // Its lines are gone.
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bill_lines").await, 3);
    // What vanished comes back with its line.
    gateway_writes(h, "UPDATE sandbox_trades SET paid_at = '2026-11-20 04:00:00' WHERE merchant_no = ?", "s1").await;
    fetch(&desk, "2026-11-20").await;
    assert_eq!(told(&desk).await[0], row("payment", "s1", "missing_here", "open"));
    assert_eq!(
        h.count("SELECT COUNT(*) FROM audit WHERE action = 'bill.fetch' AND target = 'sandbox/2026-11-20'").await,
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_is_not_believed() {
    let desk = desk().await;
    let h = &desk.h;
    stranger(h, "s1", 10, at(NOON)).await;
    stranger(h, "s2", 20, at(NOON)).await;
    set_clock(h, at(MORNING));
    // Somebody began to store that day's bill, and died with half of it written.
    let half = Uuid::now_v7();
    sqlx::query(
        "INSERT INTO payment_bills (id, gateway, day, status, payments, payments_fen, refunds, refunds_fen, digest, fetched_at, \
         checked_at) VALUES (?, 'sandbox', '2026-11-20', 'storing', 2, 30, 0, 0, REPEAT('x', 32), ?, ?)",
    )
    .bind(half)
    .bind(h.now())
    .bind(h.now())
    .execute(&h.app.db)
    .await
    .unwrap();
    sqlx::query("INSERT INTO payment_bill_lines (bill_id, kind, number, merchant_no, amount_fen, line_count, at) VALUES (?, 'payment', 'ghost', '', 5, 1, ?)")
        .bind(half)
        .bind(h.now())
        .execute(&h.app.db)
        .await
        .unwrap();
    assert_eq!(bills(&desk).await.len(), 0);
    let done = reconcile(h).await;
    assert_eq!(done["fetched"].as_array().unwrap().len(), 7);
    let both = [row("payment", "s1", "missing_here", "open"), row("payment", "s2", "missing_here", "open")];
    assert_eq!(told(&desk).await, both);
    // It may still be at it; after an hour it is not.
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bill_lines").await, 3);
    h.advance(Duration::from_secs(3601));
    reconcile(h).await;
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bill_lines").await, 2);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bills WHERE status <> 'believed'").await, 0);
    // Somebody died between keeping a bill and comparing it to its end.
    sqlx::query("UPDATE payment_bills SET compared_at = NULL").execute(&h.app.db).await.unwrap();
    sqlx::query("DELETE FROM payment_differences WHERE number = 's2'").execute(&h.app.db).await.unwrap();
    let done = reconcile(h).await;
    assert_eq!((&done["fetched"], &done["opened"]), (&json!([]), &json!(1)));
    assert_eq!(told(&desk).await, both);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bills WHERE compared_at IS NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_that_cannot_be_kept_whole_is_not_kept() {
    let desk = desk().await;
    let h = &desk.h;
    for number in 0..200 {
        stranger(h, &format!("s{number:03}"), 10, at(NOON)).await;
    }
    // The second batch of its lines fails.
    let refuse = "ALTER TABLE payment_bill_lines ADD CONSTRAINT ck_no_more CHECK (number <> 's150')";
    sqlx::query(refuse).execute(&h.app.db).await.unwrap();
    let done = on(&desk, MORNING).await;
    assert_eq!(done["unusable"], json!([{ "gateway": "sandbox", "day": "2026-11-20" }]));
    assert_eq!(done["fetched"].as_array().unwrap().len(), 6);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bill_lines").await, 128);
    assert_eq!((bills(&desk).await.len(), told(&desk).await.len()), (6, 0));
    sqlx::query("ALTER TABLE payment_bill_lines DROP CONSTRAINT ck_no_more").execute(&h.app.db).await.unwrap();
    let done = on(&desk, "2026-11-21T03:30:01.000Z").await;
    assert_eq!(done["fetched"], json!([{ "gateway": "sandbox", "day": "2026-11-20" }]));
    assert_eq!(done["opened"], json!(200));
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_differences WHERE status = 'open'").await, 200);
    // The half is gone.
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bill_lines").await, 200);
    assert_eq!(h.count("SELECT COUNT(*) FROM payment_bills").await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_that_was_asked_for_before_does_not_take_the_place_of_a_later_one() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    set_clock(&h, at(MORNING));
    let desk = Desk::of(h).await;
    stranger(&desk.h, "s1", 10, at(NOON)).await;
    let second = desk.h.another().await;
    let (there, go) = between.hold("bill", true);
    let later = async {
        there.await.unwrap();
        gateway_writes(&desk.h, "UPDATE sandbox_trades SET paid_fen = 11 WHERE merchant_no = ?", "s1").await;
        let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
        carry_out_at(&second, &asked).await;
        let fetched = bill_of(&desk, "sandbox", "2026-11-20").await.expect(200)["bill"].clone();
        go.send(()).unwrap();
        fetched
    };
    let (earlier, later) = tokio::join!(fetch(&desk, "2026-11-20"), later);
    assert_eq!((&earlier["bill"]["id"], &later["payments_fen"]), (&later["id"], &json!(11)));
    assert_eq!((bills(&desk).await.len(), &differences(&desk, "").await[0]["theirs_fen"]), (1, &json!(11)));
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM payment_bill_lines").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bills_are_for_administrators_and_of_days_that_have_them() {
    let desk = desk().await;
    let user = desk.h.register().await;
    let some = "0".repeat(32);
    for (method, path) in [
        (Method::GET, "/admin/payments/bills".to_owned()),
        (Method::GET, "/admin/payments/differences".to_owned()),
        (Method::GET, "/admin/payments/bills/sandbox/2026-11-19".to_owned()),
        (Method::POST, "/admin/payments/bills/sandbox/2026-11-19/fetch".to_owned()),
        (Method::POST, format!("/admin/payments/differences/{some}/resolve")),
    ] {
        let body = json!({ "note": "x" });
        send(desk.h.request(method.clone(), &path, &user).json(&body)).await.problem(403, "forbidden");
        send(desk.h.request(method, &path, ()).json(&body)).await.problem(401, "unauthenticated");
    }
    let early = ask(&desk, "sandbox", "2026-11-20").await.problem(409, "bill_not_ready");
    assert_eq!(early["ready_at"], "2026-11-21T02:00:00.000Z");
    assert_eq!(early["detail"], "the bill of 2026-11-20 is there from 2026-11-21T10:00:00+08:00 on");
    ask(&desk, "sandbox", "9999-12-31").await.problem(422, "validation_failed");
    ask(&desk, "sandbox", "2025-11-18").await.problem(422, "validation_failed");
    ask(&desk, "purse", "2026-11-19").await.problem(404, "not_found");
    bill_of(&desk, "purse", "2026-11-19").await.problem(404, "not_found");
    let off = ask(&desk, "alipay", "2026-11-19").await.problem(409, "gateway_off");
    assert_eq!(off["detail"], "alipay is switched off");
    assert_eq!(bill_of(&desk, "alipay", "2026-11-19").await.expect(200)["state"], "never");
    assert_eq!(fetch(&desk, "2025-11-19").await["bill"]["payments"], 0);
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM audit WHERE action <> 'access.forbidden'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_that_takes_longer_than_a_request_is_fetched_by_a_task() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    set_clock(&h, at(MORNING));
    let desk = Desk::of(h).await;
    stranger(&desk.h, "s1", 10, at(NOON)).await;
    let state = async || bill_of(&desk, "sandbox", "2026-11-20").await.expect(200);
    let never = state().await;
    assert_eq!((&never["state"], &never["task_id"], &never["bill"]), (&json!("never"), &Value::Null, &Value::Null));
    // The gateway takes its time: everybody who asks is answered, and led to one task.
    let (there, go) = between.hold("bill", true);
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    assert_eq!((&asked["state"], &asked["asked_at"]), (&json!("fetching"), &json!(MORNING)));
    Worker::start(desk.h.app.engine.clone(), jobs::registry(&desk.h.app.config), desk.h.app.clone(), &desk.h.app.loops);
    there.await.unwrap();
    let again = futures_util::future::join_all((0..8).map(|_| ask(&desk, "sandbox", "2026-11-20"))).await;
    for again in again {
        assert_eq!(again.expect(202).body, asked.body);
    }
    assert_eq!((&state().await["state"], told(&desk).await), (&json!("fetching"), vec![]));
    go.send(()).unwrap();
    let task = format!("/admin/tasks/{}", asked.text_of("task_id"));
    desk.h.eventually(async || desk.h.get(&task, &desk.token()).await.expect(200)["state"] == "SUCCESS").await;
    assert_eq!(desk.h.get(&task, &desk.token()).await["result"], json!({ "opened": 1, "vanished": 0 }));
    let came = state().await;
    assert_eq!((&came["state"], &came["ended_at"], &came["error"]), (&json!("fetched"), &json!(MORNING), &Value::Null));
    assert_eq!((&came["bill"]["payments_fen"], &came["bill"]["compared_at"]), (&json!(10), &json!(MORNING)));
    assert_eq!(told(&desk).await, [row("payment", "s1", "missing_here", "open")]);
    assert_eq!(bills(&desk).await.len(), 1, "it was fetched once");
    // Asked for when it is there, it is another task.
    assert_ne!(ask(&desk, "sandbox", "2026-11-20").await.expect(202)["task_id"], asked["task_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_that_failed_says_why_until_it_comes() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    set_clock(&h, at(MORNING));
    let desk = Desk::of(h).await;
    let fails = |times: usize| *between.fail.lock().unwrap() = Some(("bill", times));
    fails(usize::MAX);
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    let Outcome::Failure { result, .. } = carry_out(&desk, &asked).await else { panic!("a failure") };
    let failed = bill_of(&desk, "sandbox", "2026-11-20").await.expect(200);
    let why = "sandbox does not answer, or has no bill of that day yet: bill: HTTP 502 (try 3)";
    assert_eq!((&failed["state"], &failed["error"]), (&json!("failed"), &json!(why)));
    assert_eq!((&result["error"], &failed["task_id"]), (&json!(why), &asked["task_id"]));
    // The schedule asks for it as well, and says the same of it.
    fails(0);
    assert_eq!(reconcile(&desk.h).await["fetched"].as_array().unwrap().len(), 7);
    let came = bill_of(&desk, "sandbox", "2026-11-20").await.expect(200);
    assert_eq!(
        (&came["state"], &came["error"], &came["bill"]["payments"]),
        (&json!("fetched"), &Value::Null, &json!(0))
    );
    // A later fetch that fails takes nothing of the bill that is there.
    stranger(&desk.h, "s1", 10, at(NOON)).await;
    sqlx::query("ALTER TABLE payment_bill_lines ADD CONSTRAINT ck_no_more CHECK (number <> 's1')")
        .execute(&desk.h.app.db)
        .await
        .unwrap();
    let failed = fetch(&desk, "2026-11-20").await;
    assert_eq!((&failed["state"], &failed["bill"]["id"]), (&json!("failed"), &came["bill"]["id"]));
    assert!(failed["error"].as_str().unwrap().starts_with("writing lines of a bill"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_whose_task_is_lost_is_fetched_by_the_schedule() {
    let desk = desk().await;
    stranger(&desk.h, "s1", 10, at("2026-09-01T04:00:00.000Z")).await;
    set_clock(&desk.h, at(MORNING));
    // Longer ago than the schedule looks for what is missing.
    ask(&desk, "sandbox", "2026-09-01").await.expect(202);
    assert_eq!(reconcile(&desk.h).await["fetched"].as_array().unwrap().len(), 7);
    assert_eq!(bill_of(&desk, "sandbox", "2026-09-01").await["state"], "fetching");
    let done = on(&desk, "2026-11-21T03:30:00.000Z").await;
    assert_eq!(done["fetched"], json!([{ "gateway": "sandbox", "day": "2026-09-01" }]));
    assert_eq!(bill_of(&desk, "sandbox", "2026-09-01").await["state"], "fetched");
    assert_eq!(told(&desk).await, [row("payment", "s1", "missing_here", "open")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_again_enqueues_what_redis_forgot() {
    let desk = desk().await;
    set_clock(&desk.h, at(MORNING));
    let asked = ask(&desk, "sandbox", "2026-11-20").await.expect(202);
    // Redis has forgotten all: the same request enqueues the same task again.
    let keys = desk.h.app.engine.keys(&"bills".parse().unwrap());
    let mut forget = redis::cmd("DEL");
    forget.arg(keys.stream()).arg(keys.meta());
    forget.query_async::<()>(&mut desk.h.app.redis.commands()).await.unwrap();
    assert_eq!(ask(&desk, "sandbox", "2026-11-20").await.expect(202)["task_id"], asked["task_id"]);
    assert_eq!(desk.h.app.engine.depth(&"bills".parse().unwrap()).await.unwrap().depth, 1);
}

/// What alerts look at, of a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn differences_are_counted_and_shown_by_gateway_and_kind() {
    let settings = vec![("auth.access_token_s", "86400".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    let (desk, lived) = (Desk::of(h).await, Duration::from_secs(3 * 24 * 3600));
    let then = desk.h.now().minus(lived);
    for number in ["s1", "s2"] {
        stranger(&desk.h, number, 10, then).await;
    }
    let day = then.timestamp().in_tz("Asia/Shanghai").unwrap().date();
    let process = desk.h.process("api,worker", &[]).await;
    let metrics = async || process.client.get("/metrics", ()).await.expect(200).text();
    let ask = async |open: u32| {
        let path = format!("/admin/payments/bills/sandbox/{day}/fetch");
        let asked = process.client.post(&path, &desk.token(), json!({})).await.expect(202);
        let task = format!("/admin/tasks/{}", asked.text_of("task_id"));
        desk.h.eventually(async || desk.h.get(&task, &desk.token()).await["state"] == "SUCCESS").await;
        // The page is made once a second at most.
        let line = format!("onrush_payment_differences_open{{gateway=\"sandbox\"}} {open}\n");
        desk.h.eventually(async || metrics().await.contains(&line)).await;
        metrics().await
    };
    let has = |text: &str, name: &str, labels: &[&str], value: &str| {
        let of_it = |line: &&str| line.starts_with(&format!("{name}{{")) && labels.iter().all(|l| line.contains(l));
        let found: Vec<&str> = text.lines().filter(of_it).collect();
        assert!(found.len() == 1 && found[0].ends_with(&format!(" {value}")), "{name} {labels:?} {value}: {found:?}");
    };
    let (open, total) = ("onrush_payment_differences_open", "onrush_payment_differences_total");
    let opened = [r#"gateway="sandbox""#, r#"kind="missing_here""#, r#"outcome="opened""#];
    let vanished = [r#"gateway="sandbox""#, r#"kind="missing_here""#, r#"outcome="vanished""#];
    let text = ask(2).await;
    has(&text, open, &[r#"gateway="sandbox""#], "2");
    has(&text, open, &[r#"gateway="stripe""#], "0");
    has(&text, total, &opened, "2");
    gateway_writes(&desk.h, "DELETE FROM sandbox_trades WHERE merchant_no = ?", "s2").await;
    let text = ask(1).await;
    has(&text, open, &[r#"gateway="sandbox""#], "1");
    has(&text, total, &opened, "2");
    has(&text, total, &vanished, "1");
}
