//! A Stripe of our own over real HTTP, as strict as the real one (<https://docs.stripe.com/api>): it wants the key, a
//! version, form encoding, an idempotency key that stands for one request only, and no parameter that it does not know.
//! Its buyers pay, its events are signed, and it misbehaves when it is told to.

mod api;
mod books;

use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use onrush::platform::clock::Clock;
use onrush::platform::hmac::SharedSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::client::send;
use super::super::{Answer, Harness};
use books::Books;
pub use books::Form;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// Says 500 and does nothing.
    Broken,
    /// Never says anything, and does nothing.
    Hangs,
    /// Does what it is asked, and the connection ends in the middle of its answer.
    CutsOff,
    /// Does what it is asked, and answers something that is not JSON.
    Babbles,
    /// Does what it is asked, and something on the way answers 400 in words of its own.
    Proxied,
    /// Has had enough of us.
    RateLimited,
    /// Another request with the same key is still under way.
    Busy,
    /// Takes nobody's key.
    Deaf,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub form: Form,
    pub idempotency_key: Option<String>,
    pub version: Option<String>,
}

pub struct Stripe {
    pub url: String,
    /// The key that it wants to hear.
    pub key: String,
    /// The secrets that it signs events with: one, or two while they are being changed.
    pub secrets: Vec<String>,
    files: TempDir,
    state: Arc<Mutex<State>>,
    serving: tokio::task::JoinHandle<()>,
}

struct State {
    key: String,
    clock: Clock,
    manner: Manner,
    /// Holds the answer to the next request of this path: tells that it is there, and waits until it may go.
    hold: Option<(&'static str, oneshot::Sender<()>, oneshot::Receiver<()>)>,
    seen: Vec<Seen>,
    books: Books,
}

impl Stripe {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let key = format!("sk_test_{}", Uuid::now_v7().as_simple());
        let state = State {
            key: key.clone(),
            clock: Clock::manual(),
            manner: Manner::Well,
            hold: None,
            seen: Vec::new(),
            books: Books::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let router = Router::new().fallback(api::answer).with_state(state.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        let secrets = (0..2).map(|_| format!("whsec_{}", Uuid::now_v7().as_simple())).collect();
        Self { url, key, secrets, files: tempfile::tempdir().expect("a directory"), state, serving }
    }

    /// What a service must be told to use it. It knows both secrets.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let file = |name: &str, text: &str| {
            let path = self.files.path().join(name);
            std::fs::write(&path, format!("{text}\n")).expect("a file");
            path.display().to_string()
        };
        let secrets: Vec<String> =
            self.secrets.iter().enumerate().map(|(at, secret)| file(&format!("secret-{at}"), secret)).collect();
        vec![
            ("payments.stripe.base_url", self.url.clone()),
            ("payments.stripe.secret_key_file", file("key", &self.key)),
            ("payments.stripe.webhook_secret_files", secrets.join(",")),
        ]
    }

    /// Lives by the clock of this service from now on.
    pub fn follow(&self, h: &Harness) {
        self.lock().clock = h.app.clock.clone();
    }

    pub fn behave(&self, manner: Manner) {
        self.lock().manner = manner;
    }

    /// Does what the next request of this path asks, and holds the answer; what tells that it has, and what lets it go.
    pub fn hold(&self, path: &'static str) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((done, is_done), (let_go, may_go)) = (oneshot::channel(), oneshot::channel());
        self.lock().hold = Some((path, done, may_go));
        (is_done, let_go)
    }

    /// The requests since the last look.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.lock().seen)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }

    /// The session that was opened for this payment of ours.
    #[track_caller]
    pub fn session_of(&self, payment_no: &str) -> String {
        let state = self.lock();
        let mut found = state.books.sessions.iter().filter(|session| session["client_reference_id"] == payment_no);
        let id = found.next().expect("a session")["id"].as_str().expect("an id").to_owned();
        assert!(found.next().is_none(), "one payment, one session");
        id
    }

    /// A session, or a refund, as it is now.
    #[track_caller]
    pub fn object(&self, id: &str) -> Value {
        let state = self.lock();
        let mut all = state.books.sessions.iter().chain(&state.books.refunds);
        all.find(|object| object["id"] == id).expect("an object").clone()
    }

    pub fn refunds(&self) -> Vec<Value> {
        self.lock().books.refunds.clone()
    }

    pub fn sessions(&self) -> usize {
        self.lock().books.sessions.len()
    }

    /// The buyer pays by card; the event of it.
    pub fn pay(&self, session: &str) -> Value {
        self.change(|books, now| books.pay(session, now))
    }

    /// The buyer pays, and Stripe says this amount and currency.
    pub fn pay_otherwise(&self, session: &str, amount: i64, currency: &str) -> Value {
        self.change(|books, now| {
            let object = books.session(session);
            object["amount_total"] = amount.into();
            object["currency"] = currency.into();
            books.pay(session, now)
        })
    }

    /// The buyer pays at a bank that takes its time; the event of it.
    pub fn pay_slowly(&self, session: &str) -> Value {
        self.change(|books, now| books.pay_slowly(session, now))
    }

    /// What the bank says days later; the event of it.
    pub fn bank_says(&self, session: &str, yes: bool) -> Value {
        self.change(|books, now| books.bank_says(session, yes, now))
    }

    /// The session's time is over; the event of it.
    pub fn expire(&self, session: &str) -> Value {
        self.change(|books, now| books.expire(session, now))
    }

    /// The buyer pays just before the next request to expire a session comes in.
    pub fn pay_at_expiry(&self) {
        self.lock().books.pays_at_expiry = true;
    }

    /// What becomes of refunds from now on, at first.
    pub fn refunds_are(&self, status: &'static str) {
        self.lock().books.refund_status = status;
    }

    /// No refund is made from now on, for this reason; none: they are made again.
    pub fn refuses_refunds(&self, code: Option<&'static str>) {
        self.lock().books.refuses_refunds = code;
    }

    /// What becomes of a refund; the event of it.
    pub fn refund_becomes(&self, refund: &str, status: &str) -> Value {
        self.change(|books, now| books.refund_becomes(refund, status, now))
    }

    /// A person gives money back on Stripe's own pages; the event of it.
    pub fn refund_by_hand(&self, session: &str, amount: i64) -> Value {
        self.change(|books, now| books.refund_by_hand(session, amount, now))
    }

    /// Lines of the balance that are no buyer's.
    pub fn add_lines(&self, kind: &str, count: usize) {
        let mut state = self.lock();
        let now = state.now();
        (0..count).for_each(|_| state.books.line(kind, -3, Value::Null, now));
    }

    /// A line of the balance about a charge, a refund or a dispute.
    pub fn list(&self, kind: &str, amount: i64, source: &str) {
        let mut state = self.lock();
        let now = state.now();
        state.books.line(kind, amount, source.into(), now);
    }

    /// Loses the lines of this kind that are about a charge or a refund.
    pub fn unlist(&self, kind: &str, source: &str) {
        let mut state = self.lock();
        let before = state.books.balance.len();
        state.books.balance.retain(|line| line["source"] != source || line["type"] != kind);
        assert_eq!(state.books.balance.len(), before - 1, "it was there");
    }

    /// Writes another amount of a charge or a refund.
    pub fn correct(&self, id: &str, amount: i64) {
        let mut state = self.lock();
        let Books { charges, refunds, .. } = &mut state.books;
        let object = charges.iter_mut().chain(refunds).find(|object| object["id"] == id).expect("an object");
        object["amount"] = amount.into();
    }

    /// The charge of a session that was paid.
    pub fn charge_of(&self, session: &str) -> String {
        let state = self.lock();
        let at = charge_of(&state.books, session);
        state.books.charges[at]["id"].as_str().expect("an id").to_owned()
    }

    /// A charge that no session of ours made, or that says it is one of ours; its id.
    pub fn foreign_charge(&self, amount: i64, metadata: Value) -> String {
        let charge = self.change(|books, now| books.foreign_charge(amount, metadata, now));
        charge["id"].as_str().expect("an id").to_owned()
    }

    /// The buyer's bank takes a payment back; the dispute's id, and the payment intent's.
    pub fn dispute(&self, session: &str, amount: i64) -> (String, String) {
        let at = charge_of(&self.lock().books, session);
        let dispute = self.change(|books, now| books.dispute(at, amount, now));
        let text = |name: &str| dispute[name].as_str().expect("an id").to_owned();
        (text("id"), text("payment_intent"))
    }

    /// The bank gives the money again.
    pub fn win(&self, dispute: &str) {
        self.change(|books, now| books.win(dispute, now));
    }

    /// An event of this kind, of something that is none of our business or that nobody did.
    pub fn event(&self, kind: &str, object: Value) -> Value {
        self.change(|books, now| books.event(kind, object, now))
    }

    fn change(&self, with: impl FnOnce(&mut Books, i64) -> Value) -> Value {
        let mut state = self.lock();
        let now = state.now();
        with(&mut state.books, now)
    }

    /// Delivers an event, signed with all secrets.
    pub async fn deliver(&self, h: &Harness, event: &Value) -> Answer {
        let bytes = serde_json::to_vec_pretty(event).expect("JSON");
        let header = self.signature(&self.secrets, &bytes, h);
        deliver_raw(h, bytes, Some(header)).await
    }

    /// The header of a body, signed with these secrets at the service's time.
    pub fn signature(&self, secrets: &[String], body: &[u8], h: &Harness) -> String {
        let signed = secrets.iter().map(|secret| SharedSecret::new(secret.as_bytes()).sign(body, h.now()));
        let (times, signatures): (Vec<String>, Vec<String>) = signed.unzip();
        format!("t={},v1={}", times[0], signatures.join(",v1="))
    }
}

/// Delivers these bytes with this header.
pub async fn deliver_raw(h: &Harness, body: Vec<u8>, header: Option<String>) -> Answer {
    let request = h.request(reqwest::Method::POST, "/payments/stripe/notify", ()).body(body);
    let request = request.header("content-type", "application/json; charset=utf-8");
    send(match header {
        Some(header) => request.header("stripe-signature", header),
        None => request,
    })
    .await
}

impl State {
    fn now(&self) -> i64 {
        self.clock.now().ms() / 1000
    }
}

impl Drop for Stripe {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Where the charge of a session is.
fn charge_of(books: &Books, session: &str) -> usize {
    let session = books.sessions.iter().find(|known| known["id"] == session).expect("a session");
    let at = books.charges.iter().position(|charge| charge["payment_intent"] == session["payment_intent"]);
    at.expect("a charge")
}

/// An error as the real one words it.
fn error(status: u16, kind: &str, code: Option<&str>, param: Option<&str>, message: &str) -> (u16, Value) {
    (status, json!({"error": {"type": kind, "code": code, "param": param, "message": message}}))
}
