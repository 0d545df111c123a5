//! A WeChat Pay of our own over real HTTP, as strict as the real one (APIv3,
//! <https://pay.weixin.qq.com/doc/v3/merchant/4012081606>): it wants every request signed by the merchant just now, with a
//! nonce that it has not seen, and no member that it does not know. Its buyers pay, its answers and notifies are signed with
//! the key of the day, and it misbehaves when it is told to.

mod api;
mod books;
mod keys;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::http::Method;
use onrush::platform::clock::{At, Clock};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

use super::super::client::send;
use super::super::{Answer, Harness};
use books::Books;
pub use books::Refunding;
pub use keys::Pair;

pub const MCHID: &str = "1900000109";
pub const APPID: &str = "wxd678efh567hg6787";
pub const SERIAL_NO: &str = "408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB";
pub const API_V3_KEY: &[u8; 32] = b"an-apiv3-key-of-the-tests-has-32";

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
    /// Does what it is asked, and its answers are not signed.
    Unsigned,
    /// As before, and one byte of its answers is another one than was signed.
    Altered,
    /// As before, and its answers were signed six minutes ago.
    Stale,
    /// As before, and its answers are signed with a key that nobody knows.
    UnknownKey,
}

/// What it signs with: the keys that the service knows, and one that it does not.
pub struct Keys {
    /// The merchant's.
    pub merchant: Pair,
    /// By their names: a public key, a certificate, and the unknown one.
    pub platform: [(String, Pair); 3],
}

/// A public key, a certificate, and one that the service does not know.
pub const PUBLIC_KEY: usize = 0;
pub const CERTIFICATE: usize = 1;
pub const UNKNOWN: usize = 2;

pub struct Wechat {
    pub url: String,
    pub keys: Arc<Keys>,
    files: TempDir,
    state: Arc<Mutex<State>>,
    serving: tokio::task::JoinHandle<()>,
}

struct State {
    url: String,
    keys: Arc<Keys>,
    /// Which platform key is used today.
    today: usize,
    clock: Clock,
    manner: Manner,
    nonces: Vec<String>,
    /// The requests as they came.
    seen: Vec<(String, Value)>,
    /// The buyer pays when the next close arrives, just before it.
    pays_at_close: bool,
    books: Books,
}

/// A notify as it is sent: a test may change what it likes.
#[derive(Debug, Clone)]
pub struct Notify {
    pub timestamp: String,
    pub nonce: String,
    pub serial: String,
    pub signature: String,
    pub body: Vec<u8>,
}

impl Notify {
    /// Its headers, as they are sent.
    pub fn headers(&self) -> [(&'static str, &str); 5] {
        [
            ("Wechatpay-Timestamp", &self.timestamp),
            ("Wechatpay-Nonce", &self.nonce),
            ("Wechatpay-Serial", &self.serial),
            ("Wechatpay-Signature", &self.signature),
            ("Wechatpay-Signature-Type", "WECHATPAY2-SHA256-RSA2048"),
        ]
    }

    /// Sends it to the service, without some of its headers.
    pub async fn send_without(&self, h: &Harness, left_out: &[&str]) -> Answer {
        let mut request = h.request(Method::POST, "/payments/wechat/notify", ()).body(self.body.clone());
        request = request.header("content-type", "application/json");
        for (name, value) in self.headers() {
            if !left_out.contains(&name) {
                request = request.header(name, value);
            }
        }
        send(request).await
    }

    pub async fn send(&self, h: &Harness) -> Answer {
        self.send_without(h, &[]).await
    }
}

impl Wechat {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let keys = Arc::new(keys::make());
        let state = State {
            url: url.clone(),
            keys: keys.clone(),
            today: PUBLIC_KEY,
            clock: Clock::manual(),
            manner: Manner::Well,
            nonces: Vec::new(),
            seen: Vec::new(),
            pays_at_close: false,
            books: Books::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let router = Router::new().fallback(api::answer).with_state(state.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self { url, keys, files: tempfile::tempdir().expect("a directory"), state, serving }
    }

    /// What a service must be told to use it. It knows the public key and the certificate.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let file = |name: &str, text: &[u8]| {
            let path = self.files.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        let [(public, key), (serial, certified), _] = &self.keys.platform;
        let key = file("public.pem", key.public_pem().as_bytes());
        let certificate = file("certificate.pem", certified.certificate_pem(serial).as_bytes());
        vec![
            ("payments.wechat.mchid", MCHID.to_owned()),
            ("payments.wechat.appid", APPID.to_owned()),
            ("payments.wechat.serial_no", SERIAL_NO.to_owned()),
            ("payments.wechat.private_key_file", file("key.pem", self.keys.merchant.private_pem().as_bytes())),
            ("payments.wechat.api_v3_key_file", file("apiv3", API_V3_KEY)),
            ("payments.wechat.platform_keys", format!("{public}={key},{certificate}")),
            ("payments.wechat.base_url", self.url.clone()),
        ]
    }

    /// Lives by the clock of this service from now on.
    pub fn follow(&self, h: &Harness) {
        self.lock().clock = h.app.clock.clone();
    }

    pub fn behave(&self, manner: Manner) {
        self.lock().manner = manner;
    }

    /// Signs with this one of its keys from now on.
    pub fn sign_with(&self, key: usize) {
        self.lock().today = key;
    }

    /// What becomes of refunds from now on.
    pub fn refund(&self, refunding: Refunding) {
        self.lock().books.refunding = refunding;
    }

    /// The buyer pays just before the next close arrives.
    pub fn pays_at_close(&self) {
        self.lock().pays_at_close = true;
    }

    /// The requests since the last look, as (`METHOD path`, body).
    pub fn seen(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.lock().seen)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }

    /// A trade as it is now.
    #[track_caller]
    pub fn trade(&self, payment_no: &str) -> Value {
        self.lock().books.trades[payment_no].view()
    }

    pub fn trades(&self) -> usize {
        self.lock().books.trades.len()
    }

    /// The refunds, as they are now.
    pub fn refunds(&self) -> Vec<Value> {
        self.lock().books.refunds.values().map(books::Refund::view).collect()
    }

    /// The buyer pays; the notify of it.
    #[track_caller]
    pub fn pay(&self, payment_no: &str) -> Notify {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.pay(payment_no, now);
        drop(state);
        self.paid(payment_no, |_| {})
    }

    /// A notify of a paid trade, changed before it is sealed and signed.
    #[track_caller]
    pub fn paid(&self, payment_no: &str, change: impl FnOnce(&mut Value)) -> Notify {
        let mut content = self.trade(payment_no);
        change(&mut content);
        self.notify("TRANSACTION.SUCCESS", &content)
    }

    /// The refund comes to an end; the notify of it.
    #[track_caller]
    pub fn end_refund(&self, refund_no: &str, status: &str) -> Notify {
        let mut state = self.lock();
        let refund = state.books.refunds.get_mut(refund_no).expect("a refund");
        refund.status = status.to_owned();
        let mut content = refund.view();
        drop(state);
        // A notify calls it otherwise than an answer, and names the merchant.
        let members = content.as_object_mut().expect("an object");
        let status_member = members.remove("status").expect("a status");
        members.insert("refund_status".to_owned(), status_member);
        members.insert("mchid".to_owned(), MCHID.into());
        self.notify(&format!("REFUND.{status}"), &content)
    }

    /// Writes another amount of a payment or a refund into the bill, or leaves it out.
    pub fn list_wrongly(&self, no: &str, fen: Option<i64>) {
        self.lock().books.wrong.insert(no.to_owned(), fen);
    }

    /// A trade that nobody here has asked for.
    pub fn foreign_trade(&self, no: &str, fen: i64) {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.foreign_trade(no, fen, now);
    }

    /// A refund that somebody made by hand.
    pub fn foreign_refund(&self, no: &str, trade_no: &str, fen: i64) {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.foreign_refund(no, trade_no, fen, now);
    }

    /// Says of a trade that it is closed, whatever came of it.
    pub fn deny(&self, no: &str) {
        self.lock().books.trades.get_mut(no).expect("a trade").state = "CLOSED";
    }

    /// A notify of anything, signed with the key of the day.
    pub fn notify(&self, event: &str, content: &Value) -> Notify {
        let body = json!({
            "id": Uuid::now_v7().to_string(), "create_time": "2026-11-20T16:33:45+08:00", "event_type": event,
            "resource_type": "encrypt-resource", "summary": "通知",
            "resource": keys::seal(&serde_json::to_vec(content).expect("JSON"), "transaction"),
        });
        self.sign(serde_json::to_vec(&body).expect("JSON"), Duration::ZERO)
    }

    /// Signs a body as it would have been so long ago.
    pub fn sign(&self, body: Vec<u8>, ago: Duration) -> Notify {
        let state = self.lock();
        state.sign(state.today, body, state.clock.now().minus(ago))
    }
}

impl State {
    fn sign(&self, key: usize, body: Vec<u8>, at: At) -> Notify {
        let (serial, pair) = &self.keys.platform[key];
        let (timestamp, nonce) = (at.timestamp().as_second().to_string(), Uuid::now_v7().as_simple().to_string());
        let text = [timestamp.as_bytes(), b"\n", nonce.as_bytes(), b"\n", &body, b"\n"].concat();
        Notify { timestamp, nonce, serial: serial.clone(), signature: pair.sign(&text), body }
    }
}

impl Drop for Wechat {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
