//! What the page of a sale hears: written for the stack that this one replaces, it looks at `code` and `msg` alone.

use super::*;
use crate::support::client::send;

/// Such a page, of one buyer.
struct Page<'h> {
    h: &'h Harness,
    buyer: &'h Person,
    /// What it has shown the buyer.
    alerts: Vec<String>,
}

impl<'h> Page<'h> {
    fn of(h: &'h Harness, buyer: &'h Person) -> Self {
        Self { h, buyer, alerts: Vec::new() }
    }

    /// What axios gives to both of its ends: the body, whatever the status.
    async fn ask(&self, method: Method, path: &str) -> Value {
        send(self.h.request(method, path, self.buyer)).await.body
    }

    /// A click: the task's id, or an alert.
    async fn click(&mut self, sale: &Sale) -> Option<String> {
        let data = self.ask(Method::POST, &sale.submissions()).await;
        if data["code"] == 100 {
            return Some(data["id"].as_str().unwrap().to_owned());
        }
        self.alerts.push(data["msg"].as_str().unwrap().to_owned());
        None
    }

    /// One turn of the interval; whether it goes on.
    async fn tick(&mut self, task: &str) -> bool {
        let data = self.ask(Method::GET, &format!("/tasks/{task}")).await;
        match data["code"].as_i64() {
            Some(102) => true,
            Some(100 | 101) => {
                self.alerts.push(data["msg"].as_str().unwrap().to_owned());
                false
            }
            other => panic!("a page that knows no code {other:?}: {data}"),
        }
    }

    /// The interval, until it is cleared: what it showed last.
    async fn poll(&mut self, task: &str) -> String {
        for _ in 0..6000 {
            if !self.tick(task).await {
                return self.alerts.last().unwrap().clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the page still waits for {task}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_hears_every_ending_of_a_submission_by_code_and_msg() {
    let h = Harness::new().await;
    let (sale, last) = (Sale::open(&h, 1).await, h.register().await);
    let (winner, late, owner, done) = (h.register().await, h.register().await, h.register().await, h.register().await);
    sqlx::query("INSERT INTO user_courses (user_id, course_id, order_id, granted_at) SELECT ?, course_id, ?, NOW(3) FROM seckill_activities")
        .bind(owner.id)
        .bind(Uuid::now_v7())
        .execute(&h.app.db)
        .await
        .unwrap();
    sqlx::query("INSERT INTO seckill_entries (id, activity_id, user_id, order_id, created_at, released_at, gate_returned_at) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(Uuid::now_v7()).bind(sale.activity()).bind(done.id).bind(Uuid::now_v7()).bind(h.now()).bind(h.now()).bind(h.now())
        .execute(&h.app.db)
        .await
        .unwrap();
    sqlx::query("UPDATE seckill_activities SET per_user_limit = 1").execute(&h.app.db).await.unwrap();
    // The gate promises more than there is, so that each has a task.
    set_gate(&h, &sale, "stock", "9").await;
    let mut pages: Vec<Page> =
        [&winner, &late, &owner, &done, &last].into_iter().map(|buyer| Page::of(&h, buyer)).collect();
    let mut tasks = Vec::new();
    for page in &mut pages {
        tasks.push(page.click(&sale).await.unwrap());
    }
    assert!(pages[1].tick(&tasks[1]).await, "it waits, and shows nothing");
    assert!(pages[1].alerts.is_empty());
    h.app.engine.revoke(&tasks[4].parse().unwrap()).await.unwrap();
    h.start_workers();
    for (at, ending) in ["抢购成功", "已售罄", "已拥有该课程", "已达到限购次数", "已取消"].into_iter().enumerate()
    {
        assert_eq!(pages[at].poll(&tasks[at]).await, ending);
    }
    // Somebody else's, and one that there never was.
    assert_eq!(pages[1].poll(&tasks[0]).await, "活动或任务不存在");
    assert_eq!(pages[1].poll("nonsense").await, "请求无效");
    // Nobody pays: the same task says so, and not that it was won.
    h.advance(Duration::from_secs(61));
    h.eventually(async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE gate_returned_at IS NULL").await == 0)
        .await;
    h.eventually(async || h.get(&format!("/tasks/{}", tasks[0]), &winner).await.expect(200).body["code"] == 101).await;
    assert_eq!(pages[0].poll(&tasks[0]).await, "订单已超时取消");
    let told = h.get(&format!("/tasks/{}", tasks[0]), &winner).await.expect(200);
    assert_eq!((told["status"].as_str(), told["result"]["error"].as_str()), (Some("FAILURE"), Some("order_expired")));
    assert_eq!(told["result"]["order_no"].as_str().unwrap().len(), 32);
    // The token's time is over: it gives up, and says so.
    h.advance(Duration::from_secs(3600));
    assert_eq!(pages[1].poll(&tasks[1]).await, "登录已过期，请重新登录");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_hears_of_a_dead_submission_and_waits_through_a_busy_moment() {
    let settings = vec![
        ("engine.lease_ms", "500".to_owned()),
        ("engine.max_deliveries", "1".to_owned()),
        ("http.max_in_flight", "1".to_owned()),
    ];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    let mut page = Page::of(&h, &buyer);
    let task = page.click(&sale).await.unwrap();
    // A request that is held up has the only place.
    let mut lock = h.app.db.begin().await.unwrap();
    sqlx::query("SELECT id FROM users WHERE id = ? FOR UPDATE").bind(buyer.id).execute(&mut *lock).await.unwrap();
    let course = h.course(100).await;
    let order = json!({ "course_ids": [course.no()] });
    let holding = async {
        loop {
            let made = h.post_once("/orders", &buyer, "one", order.clone()).await;
            if made.status != 503 {
                return made;
            }
        }
    };
    let waiting = async {
        let poll = format!("/tasks/{task}");
        h.eventually(async || h.get(&poll, &buyer).await.status == 503).await;
        let shed = h.get(&poll, &buyer).await.problem(503, "overloaded");
        assert_eq!((shed["code"].as_i64(), shed["msg"].as_str()), (Some(102), Some("当前人数较多，请稍候")));
        assert!(page.tick(&task).await);
        let shed = send(h.request(Method::GET, "/seckill/activities", ()).header("accept-language", "en")).await;
        assert_eq!(shed.problem(503, "overloaded").text_of("msg"), "Many people are here now, please wait a little");
        lock.rollback().await.unwrap();
    };
    let (held, ()) = tokio::join!(holding, waiting);
    held.expect(201);
    read_and_die(&h, &sale).await;
    h.start_workers();
    assert_eq!(page.poll(&task).await, "抢购失败");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_a_sales_routes_speaks_to_the_buyer_in_their_language() {
    let h = Harness::new().await;
    let (sale, buyer, first) = (Sale::open(&h, 1).await, h.register().await, h.register().await);
    let early = Sale::with(&h, json!({ "starts_at": h.now().plus(Duration::from_secs(90)) })).await;
    let over = Sale::open(&h, 1).await;
    h.post(&format!("/admin/seckill/activities/{}/close", over.id), &over.admin, Value::Null).await.expect(200);
    let click = h.request(Method::POST, &sale.submissions(), &first).header("accept-language", "en");
    let queued = send(click).await.expect(202);
    assert_eq!(queued.text_of("msg"), "You are in the queue");
    let nowhere = Uuid::now_v7().as_simple().to_string();
    let events = format!("/tasks/{nowhere}.seckill.{}/events", sale.id);
    let submit = |id: &str| format!("/seckill/activities/{id}/submissions");
    let cases = [
        (Method::POST, submit(&sale.id), true, 409, 101, "已售罄", "Sold out"),
        (Method::POST, submit(&early.id), true, 409, 101, "活动还没有开始", "The sale has not started yet"),
        (Method::POST, submit(&over.id), true, 410, 101, "活动已结束", "The sale is over"),
        (Method::POST, submit(&nowhere), true, 404, 101, "活动或任务不存在", "There is no such sale or task"),
        (Method::POST, submit("1"), true, 422, 101, "请求无效", "The request is not valid"),
        (Method::POST, submit(&sale.id), false, 401, 101, "请先登录", "Please log in first"),
        (Method::PUT, submit(&sale.id), true, 405, 101, "请求方式不支持", "This cannot be asked for in this way"),
        (
            Method::GET,
            format!("/seckill/activities/{nowhere}"),
            false,
            404,
            101,
            "活动或任务不存在",
            "There is no such sale or task",
        ),
        (
            Method::GET,
            "/seckill/activities?limit=x".to_owned(),
            false,
            422,
            101,
            "请求无效",
            "The request is not valid",
        ),
        (Method::GET, events.clone(), true, 404, 101, "活动或任务不存在", "There is no such sale or task"),
        (Method::GET, events, false, 401, 101, "请先登录", "Please log in first"),
    ];
    for (method, path, known, status, code, zh, en) in cases {
        for (language, msg) in [(None, zh), (Some("en-GB,en;q=0.9"), en)] {
            let token = if known { buyer.token.as_str() } else { "" };
            let request =
                if known { h.request(method.clone(), &path, token) } else { h.request(method.clone(), &path, ()) };
            let request = match language {
                Some(language) => request.header("accept-language", language),
                None => request,
            };
            let refused = send(request).await.expect(status);
            assert_eq!((refused["code"].as_i64(), refused["msg"].as_str()), (Some(code), Some(msg)), "{path}");
            assert!(refused["error"].is_string() && refused["title"].is_string(), "{}", refused.text());
        }
    }
    // The good answers too, and no other route.
    let poll =
        h.request(Method::GET, &format!("/tasks/{}", queued.text_of("id")), &first).header("accept-language", "en");
    assert_eq!(send(poll).await.expect(200).text_of("msg"), "Still in the queue, 0 ahead of you");
    let elsewhere = h.get("/orders", ()).await.problem(401, "unauthenticated");
    assert!(elsewhere.body.get("code").is_none() && elsewhere.body.get("msg").is_none());
}
