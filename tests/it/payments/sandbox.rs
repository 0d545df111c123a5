//! The sandbox gateway itself, as a merchant and a buyer see it.

use super::*;

/// A merchant's signed request; the answer, whose signature must hold.
async fn ask(h: &Harness, request: Value) -> Answer {
    let bytes = serde_json::to_vec(&request).unwrap();
    let (timestamp, signature) = secret().sign(&bytes, h.now());
    let request = h.request(Method::POST, "/sandbox/api", ()).body(bytes);
    let answer = send(request.header("x-sandbox-timestamp", timestamp).header("x-sandbox-signature", signature)).await;
    let (timestamp, signature) = (answer.header("x-sandbox-timestamp"), answer.header("x-sandbox-signature"));
    assert_eq!(secret().verify(timestamp, signature, &answer.bytes, h.now()), Ok(()));
    answer
}

fn trade(h: &Harness, merchant_no: &str, amount_fen: i64) -> Value {
    json!({
        "action": "create", "merchant_no": merchant_no, "amount_fen": amount_fen, "subject": "<b>课程</b>",
        "notify_url": format!("{}/nowhere", h.base), "return_url": "https://shop.example.com/back",
        "expires_at": h.now().plus(DEADLINE),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merchant_is_known_by_the_signature() {
    let h = service().await;
    let request = serde_json::to_vec(&trade(&h, "m1", 500)).unwrap();
    let (timestamp, signature) = secret().sign(&request, h.now());
    let api = || h.request(Method::POST, "/sandbox/api", ());
    let unsigned = send(api().body(request.clone())).await.expect(401);
    assert_eq!(unsigned["code"], "200002");
    // A stranger gets nothing signed: who heard it could say it again, to whom it was not said.
    assert_eq!((unsigned.header("x-sandbox-signature"), unsigned.header("x-sandbox-timestamp")), (None, None));
    let mut altered = request.clone();
    altered[10] ^= 1;
    let signed = |body: Vec<u8>| {
        api().body(body).header("x-sandbox-timestamp", &timestamp).header("x-sandbox-signature", &signature)
    };
    send(signed(altered)).await.expect(401);
    send(signed(request.clone())).await.expect(200);
    h.advance(Duration::from_secs(301));
    send(signed(request)).await.expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn trades_are_opened_once_closed_and_queried() {
    let h = service().await;
    let made = ask(&h, trade(&h, "m1", 500)).await.expect(200);
    assert_eq!((made["code"].as_str(), made["data"]["status"].as_str()), (Some("100000"), Some("waiting")));
    assert_eq!(ask(&h, trade(&h, "m1", 500)).await["data"]["trade_no"], made["data"]["trade_no"]);
    assert_eq!(ask(&h, trade(&h, "m1", 501)).await["message"], "conflict");
    for bad in [json!({"action": "steal"}), json!([]), trade(&h, "", 5), trade(&h, "m2", 0), trade(&h, "m2", i64::MAX)]
    {
        assert_eq!(ask(&h, bad).await["message"], "invalid_request");
    }
    let by = |action: &str, no: &str| json!({"action": action, "merchant_no": no});
    assert_eq!(ask(&h, by("query", "none")).await["message"], "trade_not_found");
    assert_eq!(ask(&h, by("close", "none")).await["message"], "trade_not_found");
    assert_eq!(ask(&h, by("close", "m1")).await["data"]["status"], "closed");
    assert_eq!(ask(&h, by("close", "m1")).await["data"]["status"], "closed");
    assert_eq!(ask(&h, by("query", "m1")).await["data"]["status"], "closed");

    let second = ask(&h, trade(&h, "m2", 500)).await["data"]["trade_no"].as_str().unwrap().to_owned();
    buyer(&h, &second, "action=pay").await.expect(200);
    buyer(&h, &second, "action=pay").await.expect(409);
    assert_eq!(ask(&h, by("close", "m2")).await["message"], "already_paid");
    assert_eq!(ask(&h, by("query", "m2")).await["data"]["paid_fen"], 500);
    let third = ask(&h, trade(&h, "m3", 500)).await["data"]["trade_no"].as_str().unwrap().to_owned();
    h.advance(DEADLINE);
    buyer(&h, &third, "action=pay").await.expect(409);
}

#[tokio::test(flavor = "multi_thread")]
async fn refunds_never_exceed_what_was_paid_and_the_bill_lists_all() {
    let h = service().await;
    let no = ask(&h, trade(&h, "m1", 500)).await["data"]["trade_no"].as_str().unwrap().to_owned();
    let refund = |refund_no: &str, fen: i64| {
        ask(&h, json!({"action": "refund", "merchant_no": "m1", "refund_no": refund_no, "amount_fen": fen}))
    };
    assert_eq!(refund("r1", 100).await["message"], "refund_too_much", "nothing was paid");
    buyer(&h, &no, "action=pay").await.expect(200);
    assert_eq!(refund("r1", 200).await["code"], "100000");
    assert_eq!(refund("r1", 200).await["code"], "100000", "the same refund again");
    assert_eq!(refund("r1", 300).await["message"], "conflict");
    assert_eq!(refund("r2", 301).await["message"], "refund_too_much");
    assert_eq!(refund("r2", -1).await["message"], "invalid_request");
    let at_once = futures_util::future::join_all((0..6).map(|i| {
        let request =
            json!({"action": "refund", "merchant_no": "m1", "refund_no": format!("r3-{i}"), "amount_fen": 100});
        ask(&h, request)
    }));
    let made = at_once.await.iter().filter(|answer| answer["code"] == "100000").count();
    assert_eq!(made, 3);
    assert_eq!(ask(&h, json!({"action": "query", "merchant_no": "m1"})).await["data"]["status"], "refunded");

    let day = h.now().timestamp().in_tz("Asia/Shanghai").unwrap().date().to_string();
    let bill = payments::bill(&h.app, payments::Gateway::Sandbox, &day).await.unwrap();
    let lines =
        |lines: &[payments::BillLine]| lines.iter().map(|l| (l.number.clone(), l.amount.as_fen())).collect::<Vec<_>>();
    assert_eq!(lines(&bill.payments), [("m1".to_owned(), 500)]);
    assert_eq!(bill.refunds.len(), 4);
    assert_eq!(bill.refunds.iter().map(|line| line.amount.as_fen()).sum::<i64>(), 500);
    let other = payments::bill(&h.app, payments::Gateway::Sandbox, "2001-01-01").await.unwrap();
    assert!(other.payments.is_empty() && other.refunds.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_of_many_pages_is_read_whole() {
    let h = service().await;
    for chunk in 0..5 {
        let mut insert = sqlx::QueryBuilder::new(
            "INSERT INTO sandbox_trades (trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, \
             created_at, expires_at, paid_at) ",
        );
        insert.push_values(0..101, |mut row, i| {
            row.push_bind(Uuid::now_v7()).push_bind(format!("m{chunk}-{i}")).push_bind(5).push_bind(5);
            row.push_bind("paid").push_bind("s").push_bind("http://x").push_bind(h.now()).push_bind(h.now());
            row.push_bind(h.now());
        });
        insert.build().persistent(false).execute(&h.app.db).await.unwrap();
    }
    let day = h.now().timestamp().in_tz("Asia/Shanghai").unwrap().date().to_string();
    let bill = payments::bill(&h.app, payments::Gateway::Sandbox, &day).await.unwrap();
    assert_eq!(bill.payments.len(), 505);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cashiers_page_shows_what_can_be_done() {
    let h = service().await;
    let no = ask(&h, trade(&h, "m1", 1999)).await["data"]["trade_no"].as_str().unwrap().to_owned();
    let path = format!("/sandbox/pay/{no}");
    let page = h.get(&path, ()).await.expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let html = page.text();
    assert!(html.contains("19.99") && html.contains("&lt;b&gt;课程") && !html.contains("<b>课程"), "{html}");
    assert!(!html.contains("src=") && !html.contains("stylesheet"), "nothing from the web");
    let form = h.request(Method::POST, &path, ()).header("accept", "text/html,*/*").body("action=fail");
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = http.execute(form.build().unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (303, path.as_str()));
    assert!(h.get(&path, ()).await.text().contains("支付失败"));
    buyer(&h, &no, "action=steal").await.expect(422);
    buyer(&h, &no, "").await.expect(422);
    buyer(&h, &"0".repeat(32), "action=pay").await.expect(404);
    h.get("/sandbox/pay/nonsense", ()).await.expect(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn notifies_come_again_at_growing_intervals() {
    let h = service().await;
    let no = ask(&h, trade(&h, "m1", 500)).await["data"]["trade_no"].as_str().unwrap().to_owned();
    buyer(&h, &no, "action=pay").await.expect(200);
    let mut sent = 0;
    for pause in [0, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 3600] {
        if pause > 1 {
            h.advance(Duration::from_secs(pause - 1));
            assert_eq!(deliver(&h).await, 0);
            h.advance(Duration::from_secs(1));
        } else {
            h.advance(Duration::from_secs(pause));
        }
        sent += deliver(&h).await;
    }
    assert_eq!(sent, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_there_is_no_sandbox() {
    let h =
        service_with(vec![("payments.sandbox", "false".to_owned()), ("payments.sandbox_secret", String::new())]).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    h.post(&format!("/orders/{no}/pay"), &alice, json!({"gateway": "sandbox"})).await.problem(422, "validation_failed");
    h.post("/sandbox/api", (), json!({})).await.problem(404, "not_found");
    // Signed with the empty secret that is configured: nobody listens.
    let bytes = serde_json::to_vec(&paid_body("n1", &"0".repeat(32), "t1", 500)).unwrap();
    let (timestamp, signature) = SharedSecret::new(b"").sign(&bytes, h.now());
    raw_notify(&h, bytes, Some(timestamp), Some(signature)).await.problem(404, "not_found");
    h.get(&format!("/payments/sandbox/return?payment_no={}", "0".repeat(32)), ()).await.problem(404, "not_found");
}
