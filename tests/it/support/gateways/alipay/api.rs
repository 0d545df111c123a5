//! What the tests' Alipay does with a request: it checks it as the real one does, and signs its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::civil::DateTime;
use jiff::tz;
use onrush::platform::clock::At;
use serde_json::{Value, json};

use super::books::{Answer, Wanted};
use super::{APP_ID, Manner, State, UNKNOWN_KEY};

/// Parameters that a request has, and those that only some have.
const ALWAYS: &[&str] =
    &["app_id", "biz_content", "charset", "format", "method", "sign", "sign_type", "timestamp", "version"];
/// How old a request may be, in seconds.
const AGE_S: i64 = 900;

pub fn beijing(at: At) -> String {
    tz::offset(8).to_datetime(at.timestamp()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

type Params = BTreeMap<String, String>;

fn params(parts: &[&[u8]]) -> Result<Params, String> {
    let mut all = Params::new();
    for part in parts {
        let pairs: Vec<(String, String)> = serde_urlencoded::from_bytes(part).map_err(|error| error.to_string())?;
        for (name, value) in pairs {
            if all.insert(name.clone(), value).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
    }
    Ok(all)
}

impl State {
    /// Checks what every request must be; gives its method and content.
    fn check(&self, params: &Params, urls: &[&str]) -> Result<(String, Value), String> {
        let names: Vec<&str> = params.keys().map(String::as_str).collect();
        let mut wanted: Vec<&str> = ALWAYS.iter().chain(urls).copied().collect();
        wanted.sort_unstable();
        ensure(names == wanted, || format!("parameters {names:?} instead of {wanted:?}"))?;
        for (name, value) in
            [("app_id", APP_ID), ("charset", "utf-8"), ("format", "JSON"), ("sign_type", "RSA2"), ("version", "1.0")]
        {
            ensure(params[name] == value, || format!("{name} is {}", params[name]))?;
        }
        let sent = DateTime::strptime("%Y-%m-%d %H:%M:%S", &params["timestamp"]).map_err(|error| error.to_string())?;
        let sent: At = tz::offset(8).to_timestamp(sent).map_err(|error| error.to_string())?.into();
        let age = (self.clock.now().ms() - sent.ms()).abs() / 1000;
        ensure(age <= AGE_S, || format!("the timestamp is {age} s away"))?;
        let pairs = params.iter().filter(|(name, value)| *name != "sign" && !value.is_empty());
        let text: Vec<String> = pairs.map(|(name, value)| format!("{name}={value}")).collect();
        ensure(self.merchant.verifies(&text.join("&"), &params["sign"]), || "isv.invalid-signature".to_owned())?;
        for url in urls {
            ensure(params[*url].starts_with("http") && !params[*url].contains('?'), || format!("{url} has a query"))?;
        }
        let content: Value = serde_json::from_str(&params["biz_content"]).map_err(|error| error.to_string())?;
        let texts = content.as_object().is_some_and(|members| members.values().all(Value::is_string));
        ensure(texts, || format!("content {content}"))?;
        Ok((params["method"].clone(), content))
    }

    fn carry_out(&mut self, method: &str, content: &Value) -> Result<Answer, String> {
        let now = self.clock.now();
        let text = |name: &str| content[name].as_str().unwrap_or_default();
        let has = |names: &[&str]| {
            let mut given: Vec<&str> =
                content.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            given.sort_unstable();
            ensure(given == names, || format!("{method} with {given:?} instead of {names:?}"))
        };
        let number = text("out_trade_no");
        Ok(match method {
            "alipay.trade.precreate" => {
                has(&["out_trade_no", "subject", "time_expire", "total_amount"])?;
                let wanted = wanted(method, content)?;
                self.books.precreate(number, wanted, now)
            }
            "alipay.trade.query" => {
                has(&["out_trade_no"])?;
                self.books.query(number, now)
            }
            "alipay.trade.close" => {
                has(&["out_trade_no"])?;
                if let (Some(status), Some(trade)) = (self.before_close.take(), self.books.trade(number, now)) {
                    trade.status = status;
                }
                self.books.close(number, now)
            }
            "alipay.trade.refund" => {
                has(&["out_request_no", "out_trade_no", "refund_amount"])?;
                self.books.refund(number, text("out_request_no"), fen(text("refund_amount"))?, now)
            }
            "alipay.trade.fastpay.refund.query" => {
                has(&["out_request_no", "out_trade_no"])?;
                self.books.query_refund(number, text("out_request_no"), now)
            }
            "alipay.data.dataservice.bill.downloadurl.query" => {
                has(&["bill_date", "bill_type"])?;
                ensure(text("bill_type") == "trade", || format!("bill_type {}", text("bill_type")))?;
                match self.bills.iter().any(|(date, _)| date == text("bill_date")) {
                    true => Ok(json!({ "bill_download_url": format!("{}/bills/{}", self.url, text("bill_date")) })),
                    false => Err("isp.bill_not_exist"),
                }
            }
            other => return Err(format!("unknown method {other}")),
        })
    }

    /// The answer as it is sent: signed over its text, which has its slashes escaped, as the real one's sometimes has.
    fn answer(&self, method: &str, members: Value) -> String {
        let mut members = members;
        if self.manner == Manner::OfAnother {
            for name in ["out_trade_no", "out_request_no"] {
                if members.get(name).is_some() {
                    members[name] = "0".repeat(32).into();
                }
            }
        }
        let text = members.to_string().replace('/', "\\/");
        let name = format!("{}_response", method.replace('.', "_"));
        let key = if self.manner == Manner::UnknownKey { UNKNOWN_KEY } else { self.today };
        let sign = self.keys[key].sign(&text);
        match self.manner {
            Manner::Unsigned => format!(r#"{{"{name}":{text}}}"#),
            Manner::Altered => {
                // A digit where there is one, of the code if of nothing else.
                let at = text.rfind(|c: char| c.is_ascii_digit()).expect("a digit");
                let digit = if &text[at..=at] == "7" { "8" } else { "7" };
                format!(r#"{{"{name}":{}{digit}{},"sign":"{sign}"}}"#, &text[..at], &text[at + 1..])
            }
            _ => format!(r#"{{"{name}":{text},"sign":"{sign}"}}"#),
        }
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// An amount with exactly two digits behind the point, above zero.
fn fen(text: &str) -> Result<i64, String> {
    let parts = text.split_once('.').filter(|(_, fen)| fen.len() == 2);
    let digits: String = parts.map(|(yuan, fen)| format!("{yuan}{fen}")).unwrap_or_default();
    digits.parse().ok().filter(|fen: &i64| *fen > 0).ok_or_else(|| format!("amount {text}"))
}

fn wanted(method: &str, content: &Value) -> Result<Wanted, String> {
    let text = |name: &str| content[name].as_str().unwrap_or_default().to_owned();
    let (number, subject, expires) = (text("out_trade_no"), text("subject"), text("time_expire"));
    let good = (1..=64).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    ensure(good, || format!("out_trade_no {number}"))?;
    let good = (1..=256).contains(&subject.len()) && !subject.contains(['/', '=', '&']);
    ensure(good, || format!("subject {subject}"))?;
    DateTime::strptime("%Y-%m-%d %H:%M:%S", &expires).map_err(|error| format!("time_expire: {error}"))?;
    Ok(Wanted { fen: fen(&text("total_amount"))?, subject, expires, method: method.to_owned() })
}

/// A call of the service.
pub async fn asked(
    Shared(state): Shared<Arc<Mutex<State>>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let manner = state.lock().expect("nobody panicked").manner;
    match manner {
        Manner::Broken => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Manner::Hangs => std::future::pending().await,
        _ => {}
    }
    let mut state = state.lock().expect("nobody panicked");
    let answer = (|| {
        let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure(kind.starts_with("application/x-www-form-urlencoded"), || format!("content type {kind}"))?;
        let query = query.unwrap_or_default();
        let params = params(&[query.as_bytes(), &body])?;
        let urls: &[&str] =
            if params.get("method").is_some_and(|it| it == "alipay.trade.precreate") { &["notify_url"] } else { &[] };
        let (method, content) = state.check(&params, urls)?;
        state.seen.push((method.clone(), content.clone()));
        let members = if manner == Manner::Busy {
            json!({ "code": "20000", "msg": "Service Currently Unavailable", "sub_code": "isp.unknow-error" })
        } else {
            match state.carry_out(&method, &content)? {
                Ok(mut members) => {
                    members["code"] = "10000".into();
                    members["msg"] = "Success".into();
                    members
                }
                Err(code) => {
                    json!({ "code": "40004", "msg": "Business Failed", "sub_code": code, "sub_msg": "交易/状态" })
                }
            }
        };
        Ok(state.answer(&method, members))
    })();
    let answer = answer.unwrap_or_else(|why: String| {
        let answer = json!({ "error_response": { "code": "40002", "msg": "Invalid Arguments", "sub_code": why } });
        state.refused.push(why);
        answer.to_string()
    });
    let kind = [("content-type", "text/html;charset=utf-8")];
    if manner == Manner::CutsOff {
        let half = Bytes::from(answer.as_bytes()[..answer.len() / 2].to_vec());
        let broken = futures_util::stream::iter([Ok(half), Err(std::io::Error::other("cut off"))]);
        return (kind, Body::from_stream(broken)).into_response();
    }
    (kind, answer).into_response()
}

/// A browser opens the page.
pub async fn opened(Shared(state): Shared<Arc<Mutex<State>>>, RawQuery(query): RawQuery) -> Response {
    let mut state = state.lock().expect("nobody panicked");
    let opened = (|| {
        let params = params(&[query.unwrap_or_default().as_bytes()])?;
        let (method, content) = state.check(&params, &["notify_url", "return_url"])?;
        ensure(method == "alipay.trade.page.pay", || format!("a page for {method}"))?;
        ensure(content["product_code"] == "FAST_INSTANT_TRADE_PAY", || format!("content {content}"))?;
        let (wanted, now) = (wanted(&method, &content)?, state.clock.now());
        let number = content["out_trade_no"].as_str().unwrap_or_default();
        Ok(state.books.open(number, wanted, now).map(|_| number.to_owned()))
    })();
    match opened {
        Ok(Ok(number)) => (StatusCode::OK, number).into_response(),
        Ok(Err(code)) => (StatusCode::CONFLICT, code).into_response(),
        Err(why) => {
            state.refused.push(why);
            StatusCode::BAD_REQUEST.into_response()
        }
    }
}

/// The download of a bill.
pub async fn bill(Shared(state): Shared<Arc<Mutex<State>>>, Path(date): Path<String>) -> Response {
    let state = state.lock().expect("nobody panicked");
    let zip = state.bills.iter().find(|(known, _)| *known == date).map(|(_, zip)| zip.clone());
    zip.map_or_else(|| StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}
