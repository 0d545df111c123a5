//! An Alipay of our own over real HTTP, as strict as the real one (<https://opendocs.alipay.com/open/028woa>): it wants
//! every request signed by the merchant, with just the parameters that it knows, sent just now. Its buyers open the page or
//! scan the code and pay, its answers and notifies are signed with the key of the day, and it misbehaves when it is told to.

mod api;
mod books;
mod keys;

use std::io::{Cursor, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::routing::{get, post};
use onrush::platform::clock::Clock;
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::super::client::send;
use super::super::{Answer, Harness};
use books::Books;
pub use books::Refunding;
pub use keys::Pair;

pub const APP_ID: &str = "2021000000000001";
pub const SELLER_ID: &str = "2088000000000001";

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// Says 500 and does nothing.
    Broken,
    /// Says that it cannot now (20000), signed, and does nothing.
    Busy,
    /// Never says anything, and does nothing.
    Hangs,
    /// Does what it is asked, and the connection ends in the middle of its answer.
    CutsOff,
    /// Does what it is asked, and its answers are not signed.
    Unsigned,
    /// As before, and one byte of its answers is another one than was signed.
    Altered,
    /// As before, and its answers are signed with a key that nobody knows.
    UnknownKey,
    /// As before, and its answers are about another trade.
    OfAnother,
}

/// The keys that it signs with: two that the service knows, and one that it does not.
pub const OLD_KEY: usize = 0;
pub const NEW_KEY: usize = 1;
pub const UNKNOWN_KEY: usize = 2;

pub struct Alipay {
    pub url: String,
    pub merchant: Arc<Pair>,
    pub keys: Arc<[Pair; 3]>,
    files: TempDir,
    state: Arc<Mutex<State>>,
    serving: tokio::task::JoinHandle<()>,
}

struct State {
    url: String,
    merchant: Arc<Pair>,
    keys: Arc<[Pair; 3]>,
    /// Which key is used today.
    today: usize,
    clock: Clock,
    manner: Manner,
    /// What was asked since the last look, as (method, biz_content).
    seen: Vec<(String, Value)>,
    /// Why requests were refused: ours must never be.
    refused: Vec<String>,
    /// What becomes of the trade just before the next close arrives.
    before_close: Option<&'static str>,
    bills: Vec<(String, Vec<u8>)>,
    books: Books,
}

impl Alipay {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let merchant = Arc::new(Pair::new());
        let keys = Arc::new([Pair::new(), Pair::new(), Pair::new()]);
        let state = State {
            url: url.clone(),
            merchant: merchant.clone(),
            keys: keys.clone(),
            today: OLD_KEY,
            clock: Clock::manual(),
            manner: Manner::Well,
            seen: Vec::new(),
            refused: Vec::new(),
            before_close: None,
            bills: Vec::new(),
            books: Books::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let router = Router::new()
            .route("/gateway.do", post(api::asked).get(api::opened))
            .route("/bills/{date}", get(api::bill))
            .with_state(state.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self { url, merchant, keys, files: tempfile::tempdir().expect("a directory"), state, serving }
    }

    /// What a service must be told to use it: the merchant's key as PKCS#1, and two public keys, one of them bare.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let file = |name: &str, text: String| {
            let path = self.files.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        let public_keys = format!(
            "{}, {}",
            file("old.pem", self.keys[OLD_KEY].public_pem()),
            file("new.txt", self.keys[NEW_KEY].public_bare())
        );
        vec![
            ("payments.alipay.app_id", APP_ID.to_owned()),
            ("payments.alipay.seller_id", SELLER_ID.to_owned()),
            ("payments.alipay.private_key_file", file("key.pem", self.merchant.private_pem())),
            ("payments.alipay.public_key_files", public_keys),
            ("payments.alipay.base_url", format!("{}/gateway.do", self.url)),
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

    /// The refunds that were left waiting happen.
    pub fn end_refunds(&self) {
        self.lock().books.end_refunds();
    }

    /// The trade takes this state just before the next close arrives: the buyer pays, or its time is over.
    pub fn before_close(&self, status: &'static str) {
        self.lock().before_close = Some(status);
    }

    /// What was asked since the last look, as (method, biz_content).
    pub fn seen(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.lock().seen)
    }

    /// Why requests were refused that were not as they must be.
    pub fn refused(&self) -> Vec<String> {
        self.lock().refused.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }

    /// The state of a trade; none before the buyer has opened it.
    pub fn status(&self, payment_no: &str) -> Option<&'static str> {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.trade(payment_no, now).map(|trade| trade.status)
    }

    /// What went back of a trade, as (refund number, fen).
    pub fn refunds(&self, payment_no: &str) -> Vec<(String, i64)> {
        self.lock().books.refunds(payment_no)
    }

    /// The buyer scans the code.
    #[track_caller]
    pub fn scan(&self, qr: &str) {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.scan(qr, now);
    }

    /// The buyer pays the trade, which is open; the notify of it.
    #[track_caller]
    pub fn pay(&self, payment_no: &str) -> Notify {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.pay(payment_no, now);
        drop(state);
        self.notify(payment_no)
    }

    /// The trade takes a state without anybody asking for it: `TRADE_FINISHED` after some months, `TRADE_CLOSED`.
    #[track_caller]
    pub fn becomes(&self, payment_no: &str, status: &'static str) {
        let mut state = self.lock();
        let now = state.clock.now();
        state.books.trade(payment_no, now).expect("a trade").status = status;
    }

    /// A notify of the trade as it is now, with an id of its own.
    #[track_caller]
    pub fn notify(&self, payment_no: &str) -> Notify {
        let mut state = self.lock();
        let now = state.clock.now();
        Notify { params: state.books.notify(payment_no, now) }
    }

    /// The notify of the trade's last refund.
    #[track_caller]
    pub fn notify_refund(&self, payment_no: &str) -> Notify {
        let mut notify = self.notify(payment_no);
        let refunds = self.refunds(payment_no);
        let (number, _) = refunds.last().expect("a refund");
        let sum: i64 = refunds.iter().map(|(_, fen)| fen).sum();
        notify.set("refund_fee", &yuan(sum));
        notify.set("gmt_refund", "2026-11-20 21:30:00.123");
        notify.set("out_biz_no", number);
        notify
    }

    /// Posts a notify to the service, signed with the key of the day.
    pub async fn send(&self, h: &Harness, notify: &Notify) -> Answer {
        self.send_body(h, self.body(notify)).await
    }

    /// The body of a notify, signed with the key of the day.
    pub fn body(&self, notify: &Notify) -> String {
        let state = self.lock();
        notify.body(&state.keys[state.today])
    }

    /// Posts any body as a notify.
    pub async fn send_body(&self, h: &Harness, body: String) -> Answer {
        let kind = "application/x-www-form-urlencoded; charset=utf-8";
        send(h.request(Method::POST, "/payments/alipay/notify", ()).header("content-type", kind).body(body)).await
    }

    /// Makes the bill of a day out of these lines, as [`bill_line`] writes them.
    pub fn make_bill(&self, date: &str, lines: &[String]) {
        let head = "支付宝交易号,商户订单号,业务类型,商品名称,创建时间,完成时间,对方账户,订单金额（元）,商家实收（元）,\
                    退款批次号/请求号,服务费（元）,备注";
        let list = format!(
            "#支付宝业务明细查询\r\n#-----业务明细列表-----\r\n{head}\r\n{}#-----业务明细列表结束-----\r\n#导出时间\r\n",
            lines.concat()
        );
        let sums =
            "#支付宝业务汇总查询\r\n门店编号,门店名称,交易订单总笔数\r\n合计,,1\r\n#-----业务汇总列表结束-----\r\n";
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, text) in [("业务明细.csv", list.as_str()), ("业务明细(汇总).csv", sums)] {
            zip.start_file(name, SimpleFileOptions::default()).expect("a file");
            zip.write_all(&encoding_rs::GBK.encode(text).0).expect("a bill");
        }
        let zip = zip.finish().expect("a zip").into_inner();
        self.lock().bills.push((date.to_owned(), zip));
    }
}

impl Drop for Alipay {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A line of a bill; of a payment when `refund` is empty.
pub fn bill_line(payment_no: &str, fen: i64, refund: &str, at: &str) -> String {
    let (kind, amount) = if refund.is_empty() { ("交易", yuan(fen)) } else { ("退款", format!("-{}", yuan(fen))) };
    format!(
        "2026112022001{fen}\t,{payment_no}\t,{kind} ,课程 A,{at},{at},张*(138****0000)\t,{amount},{amount},{refund}\t,0.00,\r\n"
    )
}

/// As Alipay writes an amount.
pub fn yuan(fen: i64) -> String {
    format!("{}.{:02}", fen / 100, fen % 100)
}

/// A notify before it is signed: a test may change what it likes.
#[derive(Debug, Clone)]
pub struct Notify {
    pub params: Vec<(String, String)>,
}

impl Notify {
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.params.retain(|(known, _)| known != name);
        self.params.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn get(&self, name: &str) -> String {
        let found = self.params.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no {name}")).1.clone()
    }

    /// As it is posted: everything but `sign` and `sign_type` is signed, in the order of the names.
    pub fn body(&self, key: &Pair) -> String {
        let mut signed = self.params.clone();
        signed.sort();
        let text: Vec<String> = signed.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut posted = self.params.clone();
        posted.push(("sign_type".to_owned(), "RSA2".to_owned()));
        posted.push(("sign".to_owned(), key.sign(&text.join("&"))));
        serde_urlencoded::to_string(posted).expect("a form")
    }
}
