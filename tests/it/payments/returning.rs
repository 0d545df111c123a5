//! The buyer's browser comes back from a gateway: where it is led to, and that nothing it brings along decides that.

use reqwest::redirect::Policy;

use super::*;

/// A page with a query and a place of its own.
const PAGE: &str = "https://shop.example.com/paid?lang=zh&from=%E6%94%AF%E4%BB%98#/orders";

/// Asks as a browser that does not go on by itself.
async fn come_back(h: &Harness, path: &str) -> Answer {
    let browser = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let path = path.strip_prefix(&h.base).unwrap_or(path);
    send(browser.get(format!("{}{path}", h.base)).header("x-forwarded-host", "evil.example.com")).await
}

/// Where the page leads that such an order's browser is sent to.
fn page_of(no: &str, status: &str) -> String {
    PAGE.replace('#', &format!("&order_no={no}&status={status}#"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_comes_back_is_led_to_the_shops_page_with_the_orders_status() {
    let h = service_with(vec![("payments.return_page", PAGE.to_owned())]).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    // The link of the gateway's own page.
    let cashier = h.get(&format!("/sandbox/pay/{}", attempt.trade), ()).await.expect(200).text();
    let link = cashier.split("<a href=\"").nth(1).unwrap().split('"').next().unwrap().replace("&amp;", "&");
    assert!(link.ends_with(&format!("/payments/sandbox/return?payment_no={}", attempt.payment_no)), "{link}");
    let unpaid = come_back(&h, &link).await.expect(303);
    assert_eq!(unpaid.header("location"), Some(page_of(&no, "unpaid").as_str()));
    assert_eq!(unpaid.header("cache-control"), Some("no-store"));
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    // No notify has come: the gateway is asked.
    assert_eq!(come_back(&h, &link).await.expect(303).header("location"), Some(page_of(&no, "paid").as_str()));
    assert_eq!(status(&h, &alice, &no).await, "paid");
    // The gateway may be switched off by then.
    let off = h.another_with(&[("payments.sandbox", "false"), ("payments.return_page", PAGE)]).await;
    let link = link.strip_prefix(&h.base).unwrap();
    assert_eq!(come_back(&off, link).await.expect(303).header("location"), Some(page_of(&no, "paid").as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_browser_brings_along_leads_it_elsewhere() {
    let h = service_with(vec![("payments.return_page", PAGE.to_owned())]).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let forged =
        "return_page=https://evil.example.com&return_url=//evil.example.com&order_no=1&status=paid&to=%0d%0aX:1";
    let path = format!("/api/v1/payments/sandbox/return?payment_no={}&{forged}", attempt.payment_no);
    let answer = come_back(&h, &path).await.expect(303);
    assert_eq!(answer.header("location"), Some(page_of(&no, "unpaid").as_str()));
    for unknown in [format!("sandbox/return?payment_no={}", "0".repeat(32)), "purse/return?payment_no=x".to_owned()] {
        let answer = come_back(&h, &format!("/api/v1/payments/{unknown}")).await;
        assert!(answer.header("location").is_none() && (answer.status == 404 || answer.status == 422));
    }
    let elsewhere = format!("/api/v1/payments/stripe/return?payment_no={}", attempt.payment_no);
    come_back(&h, &elsewhere).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_page_of_the_shop_the_status_is_answered_as_json() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let path = format!("/api/v1/payments/sandbox/return?payment_no={}", attempt.payment_no);
    let answer = come_back(&h, &path).await.expect(200);
    assert_eq!(answer.body, json!({ "order_no": no, "status": "unpaid", "status_code": 0 }));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}
