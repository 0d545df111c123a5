//! A trade that is opened while its order is closed: whoever comes second ends it.

use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;

/// Stands between the service and the gateway: it can hold one call until the test lets it go.
#[derive(Default)]
struct Between {
    /// Where the gateway is; until that is set, it does not answer.
    gateway: OnceLock<String>,
    hold: Mutex<Option<Hold>>,
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
    fn hold(&self, action: &'static str, answered: bool) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((reached, there), (let_go, go)) = (oneshot::channel(), oneshot::channel());
        *self.hold.lock().unwrap() = Some(Hold { action, answered, reached, go });
        (there, let_go)
    }
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
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.post(format!("{gateway}/sandbox/api")).headers(headers).body(body).send().await.unwrap();
    let (status, headers, bytes) = (answer.status(), answer.headers().clone(), answer.bytes().await.unwrap());
    if let Some(hold) = after {
        hold.reached.send(()).unwrap();
        hold.go.await.unwrap();
    }
    (status, headers, bytes).into_response()
}

async fn service_behind() -> (Harness, Arc<Between>) {
    let between = Arc::new(Between::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/sandbox/api", post(pass)).with_state(between.clone());
    tokio::spawn(async move { axum_serve(listener, router).await });
    (service_with(vec![("payments.sandbox_url", format!("http://{address}"))]).await, between)
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
