//! Refunds beside a sale: what its gate and its polls say of a won unit whose order was refunded, and of a course that was
//! taken back.

use onrush::seckill;

use super::refunds::{drive, paid, refund};
use super::*;
use crate::seckill::{Sale, assert_clean, forget};

/// Wins a unit and pays it; the task's id and the order's number.
async fn win_and_pay(h: &Harness, sale: &Sale, who: &Person) -> (String, String) {
    let task = sale.submit(h, who).await.expect(202).text_of("id");
    let won = h.get(&format!("/tasks/{task}?wait=20"), who).await.expect(200);
    let no = won["result"]["order_no"].as_str().unwrap().to_owned();
    let attempt = start(h, who, &no).await;
    buyer(h, &attempt.trade, "action=pay").await.expect(200);
    h.eventually(async || status(h, who, &no).await == "paid").await;
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE status = 1 AND granted_at IS NULL").await == 0)
        .await;
    (task, no)
}

/// Whether everybody who tells the buyer of the submission says that it was refunded.
async fn assert_refunded(h: &Harness, sale: &Sale, who: &Person, task: &str, no: &str) {
    let refused = sale.submit(h, who).await.problem(409, "order_refunded");
    assert_eq!((refused["code"].as_i64(), refused["msg"].as_str()), (Some(101), Some("订单已退款")));
    let poll = h.get(&format!("/tasks/{task}"), who).await.expect(200);
    let expected = json!({
        "code": 101, "msg": "订单已退款", "status": "FAILURE", "ahead": 0,
        "result": { "error": "order_refunded", "message": "订单已退款", "order_no": no },
    });
    assert_eq!(poll.body, expected);
    let stream = h.get(&format!("/tasks/{task}/events"), who).await.expect(200).text();
    let data = stream.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(data).unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_refund_of_a_won_order_gate_poll_and_stream_say_so() {
    let h = service().await;
    let sale = Sale::with(&h, json!({ "stock": 2, "per_user_limit": 3, "pay_deadline_s": 600 })).await;
    let (alice, bob) = (h.register().await, h.register().await);
    h.start_workers();
    let (task, no) = win_and_pay(&h, &sale, &alice).await;
    let (bobs, _) = win_and_pay(&h, &sale, &bob).await;
    refund(&h, &sale.admin, &no, json!({})).await.expect(201);
    // While the money is on its way as when it is there.
    h.eventually(async || sale.submit(&h, &alice).await.status == 409).await;
    h.eventually(async || h.get(&format!("/tasks/{task}"), &alice).await.body["code"] == 101).await;
    assert_refunded(&h, &sale, &alice, &task, &no).await;
    h.eventually(async || status(&h, &alice, &no).await == "refunded").await;
    assert_refunded(&h, &sale, &alice, &task, &no).await;
    // A Redis that lost everything learns it from MySQL, also when the note of the refund is gone.
    h.advance(Duration::from_secs(61));
    h.eventually(async || h.count("SELECT COUNT(*) FROM course_take_backs").await == 0).await;
    forget(&h).await;
    h.eventually(async || sale.submit(&h, &alice).await.status == 409).await;
    assert_refunded(&h, &sale, &alice, &task, &no).await;
    // And needs to ask no more.
    let gate = h.app.engine.keys(&seckill::queue(sale.activity())).meta();
    h.eventually(async || {
        let asked = redis::cmd("HGET").arg(&gate).arg(format!("u{}", alice.id.as_simple())).to_owned();
        let place: Option<String> = asked.query_async(&mut h.app.redis.commands()).await.unwrap();
        place.as_deref() == Some("1:refunded")
    })
    .await;
    // Nobody else is touched, and the unit is not sold again.
    assert_eq!(sale.submit(&h, &bob).await.expect(202).text_of("id"), bobs);
    assert_eq!(h.get(&format!("/tasks/{bobs}"), &bob).await.expect(200).body["code"], 100);
    let view = h.get(&format!("/seckill/activities/{}", sale.id), ()).await.expect(200).body;
    assert_eq!((view["stock_left"].as_i64(), view["phase"].as_str()), (Some(0), Some("open")));
    sale.submit(&h, &h.register().await).await.problem(409, "sold_out");
    assert_clean(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gave_the_course_back_may_take_part_in_its_sale() {
    let h = service().await;
    let (alice, bob, carol) = (h.register().await, h.register().await, h.register().await);
    let (course, other) = (h.course(6000).await, h.course(100).await);
    let (no, _) = paid(&h, &alice, &[&course, &other], json!({})).await;
    let (bobs, _) = paid(&h, &bob, &[&course], json!({})).await;
    for no in [&no, &bobs] {
        orders::grant_now(&h.app, no.parse().unwrap()).await.unwrap();
    }
    let sale = Sale::with(&h, json!({ "stock": 2, "course_id": course.no() })).await;
    for owner in [&alice, &bob] {
        sale.submit(&h, owner).await.problem(409, "already_owned");
    }
    refund(&h, &sale.admin, &no, json!({ "course_ids": [course.no()] })).await.expect(201);
    seckill::look_after_gates(&h.app).await.unwrap();
    sale.submit(&h, &alice).await.expect(202);
    sale.submit(&h, &bob).await.problem(409, "already_owned");
    sale.submit(&h, &carol).await.expect(202);
    // The note of it is told for a minute, and then forgotten.
    assert_eq!(h.count("SELECT COUNT(*) FROM course_take_backs").await, 1);
    h.advance(Duration::from_secs(61));
    seckill::look_after_gates(&h.app).await.unwrap();
    assert_eq!(h.count("SELECT COUNT(*) FROM course_take_backs").await, 0);
    drive(&h).await;
}

/// As a placement does that had read before the refund, and is acknowledged after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_comes_after_the_refund_goes_too() {
    let h = service().await;
    let alice = h.register().await;
    let course = h.course(6000).await;
    let (no, _) = paid(&h, &alice, &[&course], json!({})).await;
    orders::grant_now(&h.app, no.parse().unwrap()).await.unwrap();
    let sale = Sale::with(&h, json!({ "stock": 2, "course_id": course.no() })).await;
    refund(&h, &sale.admin, &no, json!({})).await.expect(201);
    seckill::look_after_gates(&h.app).await.unwrap();
    let gate = h.app.engine.keys(&seckill::queue(sale.activity())).meta();
    // Many more fields than a pass looks through, so that only the note of the refund can tell.
    let mut fill = redis::cmd("HSET");
    fill.arg(&gate).arg(format!("u{}", alice.id.as_simple())).arg("0:owned");
    for _ in 0..20_000 {
        fill.arg(format!("u{}", Uuid::now_v7().as_simple())).arg("1:");
    }
    let _: i64 = fill.query_async(&mut h.app.redis.commands()).await.unwrap();
    sale.submit(&h, &alice).await.problem(409, "already_owned");
    seckill::look_after_gates(&h.app).await.unwrap();
    sale.submit(&h, &alice).await.expect(202);
}
