//! Which days have a bill, when it is asked for, and on which of them a line may be.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn days_that_were_missed_are_made_up_for_up_to_a_week() {
    let desk = desk().await;
    on(&desk, MORNING).await;
    let done = on(&desk, "2026-11-24T02:30:00.000Z").await;
    let days: Vec<&str> =
        done["fetched"].as_array().unwrap().iter().map(|bill| bill["day"].as_str().unwrap()).collect();
    assert_eq!(days, ["2026-11-21", "2026-11-22", "2026-11-23"]);
    let done = on(&desk, "2026-12-24T02:30:00.000Z").await;
    assert_eq!(done["fetched"].as_array().unwrap().len(), 7);
    assert_eq!(done["fetched"][0]["day"], "2026-12-17");
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_crosses_midnight_on_its_way_to_us_is_no_difference() {
    let desk = desk().await;
    set_clock(&desk.h, at(MIDNIGHT).minus(Duration::from_secs(10)));
    let sold = pay(&desk.h, 1000, "action=pay").await;
    set_clock(&desk.h, at(MIDNIGHT).plus(Duration::from_secs(30)));
    deliver(&desk.h).await;
    assert_eq!(status(&desk.h, &sold.buyer, &sold.order).await, "paid");
    for morning in [MORNING, NEXT_MORNING, "2026-11-23T02:30:00.000Z"] {
        on(&desk, morning).await;
        assert_eq!(told(&desk).await, [], "{morning}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_on_the_gateways_next_day_is_waited_for() {
    let desk = desk().await;
    set_clock(&desk.h, at(MIDNIGHT).minus(Duration::from_secs(1)));
    let no = sell(&desk.h, 1000).await.attempt.payment_no;
    // By the gateway's clock it is five seconds later.
    let later = "UPDATE sandbox_trades SET paid_at = '2026-11-20 16:00:04' WHERE merchant_no = ?";
    gateway_writes(&desk.h, later, &no).await;
    assert_eq!(on(&desk, MORNING).await["opened"], json!(0));
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "waiting")]);
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "vanished")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_we_heard_of_days_late_is_found_on_its_own_day() {
    let desk = desk().await;
    let sold = pay(&desk.h, 1000, "action=pay").await;
    // Nobody fetches the bill of that day, and the callback comes after two days.
    set_clock(&desk.h, at("2026-11-22T04:00:00.000Z"));
    deliver(&desk.h).await;
    on(&desk, "2026-11-24T02:30:00.000Z").await;
    assert_eq!(told(&desk).await, []);
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM payment_bills WHERE believed = 1").await, 7);
    assert_eq!(sold.attempt.payment_no.len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_that_is_not_there_yet_is_asked_for_again_and_nothing_is_said_before() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    set_clock(&h, at(NOON));
    let desk = Desk::of(h).await;
    let no = sell(&desk.h, 1000).await.attempt.payment_no;
    gateway_writes(&desk.h, "UPDATE sandbox_trades SET paid_at = NULL WHERE merchant_no = ?", &no).await;
    let fails = |times: usize| *between.fail.lock().unwrap() = Some(("bill", times));
    fails(usize::MAX);
    let done = on(&desk, MORNING).await;
    assert_eq!(done["not_there"].as_array().unwrap().len(), 7);
    assert_eq!((bills(&desk).await.len(), told(&desk).await.len()), (0, 0));
    let failed = fetch(&desk, "2026-11-20").await;
    assert_eq!((&failed["state"], &failed["bill"]), (&json!("failed"), &Value::Null));
    assert!(failed["error"].as_str().unwrap().starts_with("sandbox does not answer"), "{failed}");
    // An hour later; one day's never comes, and holds up no other.
    fails(3);
    let done = on(&desk, "2026-11-21T03:30:00.000Z").await;
    assert_eq!(done["not_there"], json!([{ "gateway": "sandbox", "day": "2026-11-14" }]));
    assert_eq!(done["fetched"].as_array().unwrap().len(), 6);
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "waiting")]);
    // The next day's is late: without it nobody can say that the line is missing.
    fails(usize::MAX);
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "waiting")]);
    fails(0);
    on(&desk, "2026-11-22T03:30:00.000Z").await;
    assert_eq!(told(&desk).await, [row("payment", &no, "missing_there", "open")]);
}

/// The shop is in New York: Alipay's days are Beijing's all the same.
#[tokio::test(flavor = "multi_thread")]
async fn each_gateway_that_is_on_is_compared_by_days_of_its_own() {
    let alipay = Alipay::start().await;
    let h = service_with([alipay.settings(), vec![("time_zone", "America/New_York".to_owned())]].concat()).await;
    set_clock(&h, at("2026-11-20T15:59:00.000Z"));
    alipay.follow(&h);
    let desk = Desk::of(h).await;
    sell(&desk.h, 500).await;
    let person = desk.h.register().await;
    let no = order(&desk.h, &person, 1000).await;
    let way = json!({ "gateway": "alipay", "channel": "page" });
    let started = desk.h.post(&format!("/orders/{no}/pay"), &person, way).await.expect(200);
    send(desk.h.client.http.get(started.text_of("pay_url"))).await.expect(200);
    let payment = started.text_of("payment_no");
    // Its word is lost.
    alipay.pay(&payment);
    let minute = "2026-11-20 23:59:30";
    alipay.make_bill("2026-11-20", &[bill_line(&payment, 1000, "", minute), bill_line("stranger", 5, "", minute)]);
    let done = on(&desk, MORNING).await;
    let last = |gateway: &str| {
        let fetched = done["fetched"].as_array().unwrap();
        fetched.iter().rfind(|bill| bill["gateway"] == gateway).unwrap()["day"].clone()
    };
    // Half past nine in the evening of the 20th in New York.
    assert_eq!((last("alipay"), last("sandbox")), (json!("2026-11-20"), json!("2026-11-19")));
    let found = differences(&desk, "&gateway=alipay").await;
    assert_eq!((found.len(), &found[0]["number"], &found[0]["kind"]), (1, &json!("stranger"), &json!("missing_here")));
    assert_eq!(desk.h.count("SELECT COUNT(*) FROM orders WHERE status = 1").await, 2);
    on(&desk, NEXT_MORNING).await;
    assert_eq!(told(&desk).await, [row("payment", "stranger", "missing_here", "open")]);
    assert_eq!(alipay.refused(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pass_is_scheduled_from_half_past_ten_on() {
    let h = service().await;
    set_clock(&h, at(MORNING).minus(Duration::from_secs(60)));
    let desk = Desk::of(h).await;
    desk.scheduler.make_absent(&jobs::own_schedules(&desk.h.app.config, desk.h.now())).await.unwrap();
    let all = desk.h.get("/admin/schedules?limit=100", &desk.token()).await.expect(200);
    let own = all["items"].as_array().unwrap().iter().find(|item| item["name"] == "payments.bills").expect("it");
    assert_eq!((&own["crontab"], &own["next_run_at"]), (&json!("30 10-23 * * *"), &json!(MORNING)));
}
