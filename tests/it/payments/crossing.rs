//! A trade that is opened while its order is closed: whoever comes second ends it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use onrush::platform::clock::Clock;
use onrush::platform::hmac::SharedSecret;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;
use crate::seckill::assert_clean;
use crate::support::harness::SANDBOX_SECRET;

/// Stands between the service and the gateway: it can hold one call until the test lets it go.
#[derive(Default)]
pub(super) struct Between {
    /// Where the gateway is; until that is set, it does not answer.
    pub(super) gateway: OnceLock<String>,
    hold: Mutex<Option<Hold>>,
    /// Calls of this action fail before they reach the gateway, so many of them.
    pub(super) fail: Mutex<Option<(&'static str, usize)>>,
    /// The next close is answered as carried out, and is not.
    feign_close: AtomicBool,
}

struct Hold {
    /// The call to hold, by its action.
    action: &'static str,
    /// Before it reaches the gateway, or before the answer reaches us.
    answered: bool,
    reached: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
}

impl Between {
    /// Holds the next call of this action; what tells that it is there, and what lets it go.
    pub(super) fn hold(&self, action: &'static str, answered: bool) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((reached, there), (let_go, go)) = (oneshot::channel(), oneshot::channel());
        *self.hold.lock().unwrap() = Some(Hold { action, answered, reached, go });
        (there, let_go)
    }

    fn fails(&self, asked: &Value) -> bool {
        let mut fail = self.fail.lock().unwrap();
        let Some((_, left)) = fail.as_mut().filter(|(action, left)| asked["action"] == *action && *left > 0) else {
            return false;
        };
        *left -= 1;
        true
    }
}

/// Another request in the place of the one that came, signed as the service would.
fn signed(request: Value) -> (HeaderMap, Bytes) {
    let body = serde_json::to_vec(&request).unwrap();
    let (timestamp, signature) = SharedSecret::new(SANDBOX_SECRET.as_bytes()).sign(&body, Clock::System.now());
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse().unwrap());
    headers.insert("x-sandbox-timestamp", timestamp.parse().unwrap());
    headers.insert("x-sandbox-signature", signature.parse().unwrap());
    (headers, body.into())
}

async fn pass(State(between): State<Arc<Between>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(gateway) = between.gateway.get() else { return StatusCode::BAD_GATEWAY.into_response() };
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let hold = between.hold.lock().unwrap().take_if(|hold| asked["action"] == hold.action);
    let mut after = None;
    match hold {
        Some(hold) if hold.answered => after = Some(hold),
        Some(hold) => {
            hold.reached.send(()).unwrap();
            hold.go.await.unwrap();
        }
        None => {}
    }
    if between.fails(&asked) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let (headers, body) = if asked["action"] == "close" && between.feign_close.swap(false, Ordering::SeqCst) {
        signed(json!({"action": "query", "merchant_no": asked["merchant_no"]}))
    } else {
        (headers, body)
    };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.post(format!("{gateway}/sandbox/api")).headers(headers).body(body).send().await.unwrap();
    let (status, headers, bytes) = (answer.status(), answer.headers().clone(), answer.bytes().await.unwrap());
    if let Some(hold) = after {
        hold.reached.send(()).unwrap();
        hold.go.await.unwrap();
    }
    (status, headers, bytes).into_response()
}

/// Something between a service and its gateway, and the address under which the service finds it.
async fn between() -> (Arc<Between>, String) {
    let between = Arc::new(Between::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/sandbox/api", post(pass)).with_state(between.clone());
    tokio::spawn(async move { axum_serve(listener, router).await });
    (between, format!("http://{address}"))
}

pub(super) async fn service_behind() -> (Harness, Arc<Between>) {
    let (between, url) = between().await;
    (service_with(vec![("payments.sandbox_url", url)]).await, between)
}

async fn axum_serve(listener: TcpListener, router: Router) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let io = hyper_util::rt::TokioIo::new(stream);
        tokio::spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            let _ = builder.serve_connection(io, service).await;
        });
    }
}

async fn open_trades(h: &Harness) -> i64 {
    h.count("SELECT COUNT(*) FROM sandbox_trades WHERE status = 'waiting'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trade_that_is_opened_after_its_order_was_closed_is_ended_by_who_opened_it() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let (pay, cancel) = (format!("/orders/{no}/pay"), format!("/orders/{no}/cancel"));
    let (there, go) = between.hold("create", false);
    let meanwhile = async {
        there.await.unwrap();
        send(h.request(Method::POST, &cancel, &alice)).await.expect(200);
        go.send(()).unwrap();
    };
    let (answer, ()) = tokio::join!(h.post(&pay, &alice, json!({"gateway": "sandbox"})), meanwhile);
    answer.problem(409, "order_state");
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_trades WHERE status = 'closed'").await, 1);
    assert_eq!(open_trades(&h).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trade_that_is_opened_while_its_order_is_closed_is_ended_by_who_closes() {
    let (h, between) = service_behind().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let (pay, cancel) = (format!("/orders/{no}/pay"), format!("/orders/{no}/cancel"));
    // The attempt is in our books, and the gateway has not heard of it.
    h.post(&pay, &alice, json!({"gateway": "sandbox"})).await.problem(503, "gateway_unavailable");
    between.gateway.set(h.base.clone()).unwrap();
    let (there, go) = between.hold("close", true);
    let meanwhile = async {
        there.await.unwrap();
        let opened = h.post(&pay, &alice, json!({"gateway": "sandbox"})).await.expect(200);
        assert_eq!(open_trades(&h).await, 1);
        go.send(()).unwrap();
        opened
    };
    let (cancelled, opened) = tokio::join!(send(h.request(Method::POST, &cancel, &alice)), meanwhile);
    cancelled.expect(200);
    assert_eq!(open_trades(&h).await, 0);
    buyer(&h, &trade_of(&opened), "action=pay").await.expect(409);
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_comes_between_the_question_and_the_close_is_settled() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let (there, go) = between.hold("close", false);
    let meanwhile = async {
        there.await.unwrap();
        buyer(&h, &attempt.trade, "action=pay").await.expect(200);
        go.send(()).unwrap();
    };
    let cancel = format!("/orders/{no}/cancel");
    let (answer, ()) = tokio::join!(send(h.request(Method::POST, &cancel, &alice)), meanwhile);
    answer.problem(409, "order_state");
    assert_eq!(status(&h, &alice, &no).await, "paid");
    deliver(&h).await;
    books_balance(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_leaves_the_trade_open_closes_no_order() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    start(&h, &alice, &no).await;
    between.feign_close.store(true, Ordering::SeqCst);
    let cancel = async || send(h.request(Method::POST, &format!("/orders/{no}/cancel"), &alice)).await;
    cancel().await.problem(503, "gateway_unavailable");
    assert_eq!((status(&h, &alice, &no).await.as_str(), open_trades(&h).await), ("unpaid", 1));
    cancel().await.expect(200);
    assert_eq!(open_trades(&h).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trade_that_its_opener_could_not_end_is_ended_by_a_task() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let (pay, cancel) = (format!("/orders/{no}/pay"), format!("/orders/{no}/cancel"));
    let (there, go) = between.hold("create", false);
    let meanwhile = async {
        there.await.unwrap();
        send(h.request(Method::POST, &cancel, &alice)).await.expect(200);
        // The order is closed, the trade about to be opened, and its opener's question about it fails, with all its tries.
        *between.fail.lock().unwrap() = Some(("query", 3));
        go.send(()).unwrap();
    };
    let (answer, ()) = tokio::join!(h.post(&pay, &alice, json!({"gateway": "sandbox"})), meanwhile);
    answer.problem(503, "gateway_unavailable");
    assert_eq!(open_trades(&h).await, 1);
    h.start_workers();
    h.eventually(async || open_trades(&h).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_whose_sender_died_before_the_answer_is_made_once() {
    let (h, between) = service_behind().await;
    between.gateway.set(h.base.clone()).unwrap();
    let (alice, admin) = (h.register().await, h.admin().await);
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    deliver(&h).await;
    let path = format!("/admin/orders/{no}/refund");
    h.post_once(&path, &admin, "once", json!({ "reason": "test" })).await.expect(201);
    let (there, go) = between.hold("refund", true);
    let app = h.app.clone();
    let sender = tokio::spawn(async move { payments::drive_refunds(&app).await });
    there.await.unwrap();
    // The gateway has made it; whoever sent it dies before the answer comes.
    sender.abort();
    assert!(sender.await.unwrap_err().is_cancelled());
    drop(go);
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_refunds WHERE status = 'done'").await, 1);
    assert_eq!(status(&h, &alice, &no).await, "refunding");
    h.advance(Duration::from_secs(5));
    assert_eq!(payments::drive_refunds(&h.app).await.unwrap(), 1);
    assert_eq!(status(&h, &alice, &no).await, "refunded");
    assert_eq!(h.count("SELECT COUNT(*) FROM sandbox_refunds").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_in_the_middle_of_a_refund_makes_it_once() {
    let (between, url) = between().await;
    let settings = vec![("payments.sandbox_url", url), ("payments.gateway_timeout_ms", "30000".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, ..Options::default() }).await;
    between.gateway.set(h.base.clone()).unwrap();
    let (alice, admin) = (h.register().await, h.admin().await);
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    buyer(&h, &attempt.trade, "action=pay").await.expect(200);
    deliver(&h).await;
    let path = format!("/admin/orders/{no}/refund");
    h.post_once(&path, &admin, "once", json!({ "reason": "test" })).await.expect(201);
    let (there, go) = between.hold("refund", true);
    let mut sender = h.process("worker,scheduler", &[]).await;
    there.await.unwrap();
    // The gateway has made it, the answer is on its way, and our books do not know of it.
    sender.kill().await;
    drop(go);
    let made = "SELECT COUNT(*) FROM sandbox_refunds WHERE status = 'done'";
    assert_eq!((h.count(made).await, status(&h, &alice, &no).await.as_str()), (1, "refunding"));
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'pending' AND attempts = 1").await, 1);
    let _next = h.process("worker,scheduler", &[]).await;
    h.eventually(async || status(&h, &alice, &no).await == "refunded").await;
    assert_eq!((h.count(made).await, h.count("SELECT COUNT(*) FROM sandbox_refunds").await), (1, 1));
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds WHERE status = 'confirmed' AND attempts >= 2").await, 1);
    assert_clean(&h).await;
}
