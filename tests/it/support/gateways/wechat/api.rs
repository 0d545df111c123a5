//! The fake WeChat Pay's API: who asks, signed how, with which members.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};

use super::books::Said;
use super::{APPID, MCHID, Manner, SERIAL_NO, State, UNKNOWN};

pub(super) async fn answer(
    Shared(state): Shared<Arc<Mutex<State>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let manner = state.lock().expect("nobody panicked").manner;
    if manner == Manner::Hangs {
        std::future::pending::<()>().await;
    }
    let mut state = state.lock().expect("nobody panicked");
    let path = uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    state.seen.push((format!("{method} {path}"), json));
    if manner == Manner::Broken {
        return state.reply(manner, 500, br#"{"code":"SYSTEM_ERROR","message":"system error"}"#.to_vec());
    }
    if let Err(why) = state.authentic(&method, &path, &headers, &body) {
        // Who is not known gets no signature.
        let refusal = json!({ "code": "SIGN_ERROR", "message": why });
        return plain(401, serde_json::to_vec(&refusal).expect("JSON"));
    }
    if let Some(token) = path.strip_prefix("/v3/billdownload/file?token=") {
        let (date, _) = token.split_once("%2F").expect("a token");
        // Nor is a file signed.
        return plain(200, state.books.bill(date).expect("a bill").into_bytes());
    }
    let (status, said) = state.act(&method, &path, &body);
    let body = if said.is_null() { Vec::new() } else { serde_json::to_vec(&said).expect("JSON") };
    state.reply(manner, status, body)
}

fn plain(status: u16, body: Vec<u8>) -> Response {
    Response::builder().status(status).body(Body::from(body)).expect("a response")
}

impl State {
    /// A signed answer, or one that is not quite.
    fn reply(&self, manner: Manner, status: u16, body: Vec<u8>) -> Response {
        let key = if manner == Manner::UnknownKey { UNKNOWN } else { self.today };
        let ago = if manner == Manner::Stale { Duration::from_secs(360) } else { Duration::ZERO };
        let mut signed = self.sign(key, body, self.clock.now().minus(ago));
        if manner == Manner::Altered
            && let Some(digit) = signed.body.iter_mut().rev().find(|byte| byte.is_ascii_digit())
        {
            *digit = if *digit == b'1' { b'2' } else { b'1' };
        }
        let mut response = Response::builder().status(status).header("request-id", "08CFCBF1930610C20518C6B5C055");
        if manner != Manner::Unsigned {
            for (name, value) in signed.headers() {
                response = response.header(name, value);
            }
        }
        let body = if manner == Manner::CutsOff {
            let half = Bytes::from(signed.body[..signed.body.len() / 2].to_vec());
            Body::from_stream(stream::iter([Ok(half), Err(std::io::Error::other("cut off"))]))
        } else {
            Body::from(signed.body)
        };
        response.body(body).expect("a response")
    }

    /// Whether the merchant signed this request, just now and for the first time.
    fn authentic(&mut self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), &'static str> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).ok_or("a header is missing");
        let values = header("authorization")?.strip_prefix("WECHATPAY2-SHA256-RSA2048 ").ok_or("another scheme")?;
        let mut given: Vec<(&str, &str)> = Vec::new();
        for part in values.split(',') {
            let (name, value) = part.split_once("=\"").ok_or("no value")?;
            given.push((name, value.strip_suffix('"').ok_or("no end")?));
        }
        given.sort_unstable();
        let [
            ("mchid", mchid),
            ("nonce_str", nonce),
            ("serial_no", serial),
            ("signature", signature),
            ("timestamp", timestamp),
        ] = given[..]
        else {
            return Err("other values than five");
        };
        if (mchid, serial) != (MCHID, SERIAL_NO) {
            return Err("an unknown merchant or certificate");
        }
        let seconds: i64 = timestamp.parse().map_err(|_| "no timestamp")?;
        if seconds.abs_diff(self.clock.now().timestamp().as_second()) > 300 {
            return Err("another time");
        }
        if nonce.len() > 32 || self.nonces.iter().any(|known| known == nonce) {
            return Err("a nonce that was used before");
        }
        let text = [format!("{method}\n{path}\n{timestamp}\n{nonce}\n").as_bytes(), body, b"\n"].concat();
        if !self.keys.merchant.signed(&text, signature) {
            return Err("a wrong signature");
        }
        self.nonces.push(nonce.to_owned());
        let wanted = if path.starts_with("/v3/billdownload/") { "*/*" } else { "application/json" };
        if header("accept")? != wanted || header("user-agent")?.is_empty() {
            return Err("no accept, or no user agent");
        }
        if self.keys.platform.iter().all(|(id, _)| Ok(&**id) != header("wechatpay-serial")) {
            return Err("it asks for an unknown key");
        }
        if *method == Method::POST && header("content-type")? != "application/json" {
            return Err("no JSON");
        }
        Ok(())
    }

    fn act(&mut self, method: &Method, path: &str, body: &[u8]) -> Said {
        let now = self.clock.now();
        let words: Vec<&str> = path.trim_start_matches("/v3/").split(['/', '?']).collect();
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let mchid = format!("mchid={MCHID}");
        match (method.as_str(), &words[..]) {
            ("POST", ["pay", "transactions", way @ ("native" | "jsapi" | "h5")]) => match new_trade(way, &request) {
                Ok(()) => self.books.open(way, request),
                Err(why) => bad(why),
            },
            ("GET", ["pay", "transactions", "out-trade-no", no, query]) if *query == mchid => self.books.query(no),
            ("POST", ["pay", "transactions", "out-trade-no", no, "close"]) if request == json!({ "mchid": MCHID }) => {
                if std::mem::take(&mut self.pays_at_close) {
                    self.books.pay(no, now);
                }
                self.books.close(no)
            }
            ("POST", ["refund", "domestic", "refunds"]) => match new_refund(&request) {
                Ok(()) => self.books.refund(request, now),
                Err(why) => bad(why),
            },
            ("GET", ["refund", "domestic", "refunds", no]) => self.books.query_refund(no),
            ("GET", ["bill", "tradebill", query]) => {
                let date = query.strip_prefix("bill_date=").and_then(|rest| rest.strip_suffix("&bill_type=ALL"));
                date.map_or_else(|| bad("query"), |date| self.books.announce(date, &self.url))
            }
            _ => (404, json!({ "code": "NOT_FOUND", "message": "没有" })),
        }
    }
}

fn bad(member: &str) -> Said {
    (400, json!({ "code": "PARAM_ERROR", "message": "参数错误", "detail": { "field": member } }))
}

/// Whether an object has these members and no others.
fn only(value: &Value, members: &[&str]) -> bool {
    value.as_object().is_some_and(|object| {
        object.len() == members.len() && members.iter().all(|member| object.contains_key(*member))
    })
}

fn is_number(value: &Value) -> bool {
    value.as_str().is_some_and(|no| {
        (6..=32).contains(&no.len()) && no.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-|*".contains(&byte))
    })
}

fn is_callback(value: &Value) -> bool {
    value.as_str().is_some_and(|url| url.starts_with("http") && !url.contains('?') && url.len() <= 255)
}

fn new_trade(way: &str, request: &Value) -> Result<(), &'static str> {
    let common = ["appid", "mchid", "description", "out_trade_no", "time_expire", "notify_url", "amount"];
    let more: &[&str] = match way {
        "jsapi" => &["payer"],
        "h5" => &["scene_info"],
        _ => &[],
    };
    let check = |good: bool, member: &'static str| if good { Ok(()) } else { Err(member) };
    check(only(request, &[&common[..], more].concat()), "body")?;
    check(request["appid"] == APPID && request["mchid"] == MCHID, "appid")?;
    check(request["description"].as_str().is_some_and(|text| (1..=127).contains(&text.len())), "description")?;
    check(is_number(&request["out_trade_no"]), "out_trade_no")?;
    let expires = request["time_expire"].as_str().unwrap_or_default();
    check(
        expires.len() == 25 && expires.ends_with("+08:00") && expires.parse::<jiff::Timestamp>().is_ok(),
        "time_expire",
    )?;
    check(is_callback(&request["notify_url"]), "notify_url")?;
    let amount = &request["amount"];
    check(only(amount, &["total", "currency"]) && amount["currency"] == "CNY", "amount")?;
    check(amount["total"].as_i64().is_some_and(|total| total > 0), "total")?;
    check(way != "jsapi" || (only(&request["payer"], &["openid"]) && request["payer"]["openid"].is_string()), "payer")?;
    let scene = &request["scene_info"];
    let address = scene["payer_client_ip"].as_str().unwrap_or_default();
    let of_h5 = only(scene, &["payer_client_ip", "h5_info"]) && address.parse::<std::net::IpAddr>().is_ok();
    check(way != "h5" || (of_h5 && scene["h5_info"] == json!({ "type": "Wap" })), "scene_info")
}

fn new_refund(request: &Value) -> Result<(), &'static str> {
    let check = |good: bool, member: &'static str| if good { Ok(()) } else { Err(member) };
    check(only(request, &["out_trade_no", "out_refund_no", "notify_url", "amount"]), "body")?;
    check(is_number(&request["out_trade_no"]) && is_number(&request["out_refund_no"]), "out_refund_no")?;
    check(is_callback(&request["notify_url"]), "notify_url")?;
    let amount = &request["amount"];
    check(only(amount, &["refund", "total", "currency"]) && amount["currency"] == "CNY", "amount")?;
    check(amount["refund"].is_i64() && amount["total"].is_i64(), "amount")
}
