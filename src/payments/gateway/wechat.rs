//! WeChat Pay, APIv3, as a direct merchant: paying by QR code (`native`), in WeChat (`jsapi`) and from other browsers of a
//! phone (`h5`).
//!
//! Requests and answers are JSON, each signed ([`sign`]). Our payment's id is the `out_trade_no`, our refund's the
//! `out_refund_no`; both make a repeat harmless. `time_expire` ends the paying and does not close the trade, so a close
//! is still asked for. Documents: <https://pay.weixin.qq.com/doc/v3/merchant/4012791877> (native; the others are alike), and
//! those beside what follows them.

mod bill;
mod call;
mod notification;
mod sign;
#[cfg(test)]
mod tests;
mod trade;

use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::tz::{TimeZone, offset};
use serde::Deserialize;
use serde_json::{Value, json};

use self::call::{WechatAnswer, get, post, read};
use self::trade::{RefundState, TradeState, WechatTrade};
use super::{CloseAnswer, PaymentOutcome, switched_off, unavailable};
use crate::app::App;
use crate::config::WechatPay;
use crate::error::{Error, Kind, Plain, Result};
use crate::payments::model::{
    Channel, DayBill, Gateway, JsapiParams, Message, PayWith, Payment, PaymentId, Refund, RefundAnswer,
};
use crate::platform::clock::At;

/// Where our handler is (`routes.rs`), below `http.public_url`: for payments and for refunds.
const NOTIFY: &str = "/api/v1/payments/wechat/notify";
/// Longest description of a trade, in bytes.
const DESCRIPTION_BYTES: usize = 127;
/// A refund that was taken is not always found at once; after this long it should be.
const REFUND_FOUND: Duration = Duration::from_secs(600);
/// Longest bill that we read, in bytes: some 200,000 trades.
const BILL_BYTES: usize = 64 << 20;
/// Longest time that reading a bill takes.
const BILL_PATIENCE: Duration = Duration::from_secs(60);

/// WeChat Pay's settings; without them it is switched off.
fn settings(app: &App) -> Result<&WechatPay> {
    app.config.payments.wechat.as_deref().ok_or_else(|| switched_off(Gateway::Wechat))
}

/// Its name for us.
pub(super) fn merchant(app: &App) -> Result<&str> {
    Ok(&settings(app)?.merchant)
}

/// Checks a notify over its raw bytes, and only then reads it.
pub(super) fn verify(app: &App, headers: &HeaderMap, body: &[u8]) -> Result<Message> {
    notification::read(settings(app)?, headers, body, app.clock.now()).map_err(|fault| {
        match fault {
            notification::Fault::Unsigned(sign::WechatUnsigned::Probe) => {
                tracing::info!(gateway = "wechat", "callback is a probe of our verification, and is refused");
            }
            notification::Fault::Unsigned(_) => {
                tracing::warn!(gateway = "wechat", error = %fault, "callback could not be verified");
            }
            _ => tracing::error!(gateway = "wechat", error = %fault, "callback verified and cannot be read"),
        }
        Error::from(Kind::CallbackInvalid)
    })
}

/// Our yes to a notify: <https://pay.weixin.qq.com/doc/v3/merchant/4012791882>.
pub(super) fn yes() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Our no.
pub(super) fn no(status: StatusCode) -> Response {
    let mut response = (status, Json(json!({ "code": "FAIL", "message": "not accepted" }))).into_response();
    response.extensions_mut().insert(Plain);
    response
}

/// Opens the trade, or goes on with it.
pub(super) async fn create(app: &App, payment: &Payment, subject: &str) -> Result<(PayWith, PaymentOutcome)> {
    let wechat = settings(app)?;
    let body = trade_request(wechat, &app.config.http.public_url, payment, subject)?;
    let way = payment.channel.as_str();
    match post(app, "create", &format!("/v3/pay/transactions/{way}"), &body).await? {
        WechatAnswer::Done(answer) => {
            Ok((pay_with(wechat, payment.channel, &answer, app.clock.now())?, PaymentOutcome::Waiting))
        }
        // The trade ended meanwhile, or its number has been used for another one: what became of it is asked.
        WechatAnswer::Declined { code, .. } if matches!(&*code, "ORDERPAID" | "ORDER_CLOSED" | "OUT_TRADE_NO_USED") => {
            match query(app, payment).await? {
                PaymentOutcome::Waiting => Err(unavailable(Gateway::Wechat, format!("it opens no trade: {code}"))),
                ended => Ok((PayWith::Url(String::new()), ended)),
            }
        }
        WechatAnswer::Declined { status, code } => Err(declined("open a trade", status, &code)),
    }
}

/// A trade as we ask for it. The same payment is asked for in the same words: another expiry would be refused.
fn trade_request(wechat: &WechatPay, public_url: &str, payment: &Payment, subject: &str) -> Result<Value> {
    let mut body = json!({
        "appid": wechat.appid,
        "mchid": wechat.mchid,
        "description": cut(subject, DESCRIPTION_BYTES),
        "out_trade_no": payment.id,
        "time_expire": beijing(payment.expires_at),
        "notify_url": format!("{public_url}{NOTIFY}"),
        "amount": { "total": payment.amount, "currency": payment.currency },
    });
    match payment.channel {
        Channel::Jsapi => {
            let openid = payment.payer_openid.as_deref().context("a JSAPI payment without its payer")?;
            body["payer"] = json!({ "openid": openid });
        }
        Channel::H5 => {
            let address = payment.payer_address.as_deref().context("an H5 payment without its payer's address")?;
            body["scene_info"] = json!({ "payer_client_ip": address, "h5_info": { "type": "Wap" } });
        }
        _ => {}
    }
    Ok(body)
}

/// What the front end needs of the answer to a new trade.
fn pay_with(wechat: &WechatPay, channel: Channel, answer: &[u8], now: At) -> Result<PayWith> {
    #[derive(Deserialize)]
    struct Opened {
        code_url: Option<String>,
        h5_url: Option<String>,
        prepay_id: Option<String>,
    }
    let opened: Opened = read(answer)?;
    let with = match channel {
        Channel::Native => opened.code_url.map(PayWith::Qr),
        Channel::H5 => opened.h5_url.map(PayWith::Url),
        Channel::Jsapi => opened.prepay_id.map(|id| jsapi(wechat, &id, now)).transpose()?,
        _ => None,
    };
    Ok(with
        .with_context(|| format!("WeChat Pay opened a trade and did not say how to pay it by {}", channel.as_str()))?)
}

fn jsapi(wechat: &WechatPay, prepay_id: &str, now: At) -> Result<PayWith> {
    let handed = sign::hand_over(wechat, prepay_id, now)?;
    Ok(PayWith::Jsapi(Box::new(JsapiParams {
        app_id: wechat.appid.clone(),
        time_stamp: handed.timestamp,
        nonce_str: handed.nonce,
        package: handed.package,
        sign_type: "RSA".to_owned(),
        pay_sign: handed.signature,
    })))
}

/// What became of the trade: <https://pay.weixin.qq.com/doc/v3/merchant/4012791880>.
pub(super) async fn query(app: &App, payment: &Payment) -> Result<PaymentOutcome> {
    let path = format!("{}?mchid={}", trade_path(payment.id), settings(app)?.mchid);
    match get(app, "query", &path).await? {
        WechatAnswer::Done(answer) => asked(payment, answer),
        // A trade that was never opened is unpaid, not an error.
        WechatAnswer::Declined { code, .. } if code == "ORDER_NOT_EXIST" => Ok(PaymentOutcome::Waiting),
        WechatAnswer::Declined { code, .. } if code == "ORDER_CLOSED" => Ok(PaymentOutcome::Over),
        WechatAnswer::Declined { status, code } => Err(declined("tell of a trade", status, &code)),
    }
}

fn asked(payment: &Payment, answer: Vec<u8>) -> Result<PaymentOutcome> {
    let trade: WechatTrade = read(&answer)?;
    if trade.out_trade_no != payment.id.to_string() {
        return Err(anyhow!("WeChat Pay answered for another trade").into());
    }
    Ok(match trade.state()? {
        TradeState::Open => PaymentOutcome::Waiting,
        TradeState::Over => PaymentOutcome::Over,
        TradeState::Paid => {
            // The amount is part of the id: should WeChat Pay come to correct it, that is another message.
            let id = format!("query:{}:{}", payment.id, trade.total_fen().unwrap_or_default());
            PaymentOutcome::Paid(trade.message(id)?, answer)
        }
    })
}

/// Lets nobody pay any more: <https://pay.weixin.qq.com/doc/v3/merchant/4012791881>.
pub(super) async fn close(app: &App, payment: &Payment) -> Result<CloseAnswer> {
    let path = format!("{}/close", trade_path(payment.id));
    match post(app, "close", &path, &json!({ "mchid": settings(app)?.mchid })).await? {
        WechatAnswer::Done(_) => Ok(CloseAnswer::Closed),
        WechatAnswer::Declined { status, code } => match &*code {
            "ORDER_CLOSED" => Ok(CloseAnswer::Closed),
            "ORDER_NOT_EXIST" => Ok(CloseAnswer::Unknown),
            // It is paid, or being paid. The caller asks which.
            "ORDERPAID" | "ORDER_PAID" | "USERPAYING" | "TRADE_ERROR" | "TRADE_STATE_ERROR" | "INVALID_REQUEST" => {
                Ok(CloseAnswer::AlreadyPaid)
            }
            _ => Err(declined("close a trade", status, &code)),
        },
    }
}

/// Gives money back: <https://pay.weixin.qq.com/doc/v3/merchant/4012791883>.
pub(super) async fn refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    let body = json!({
        "out_trade_no": refund.payment_id,
        "out_refund_no": refund.id,
        "notify_url": format!("{}{NOTIFY}", app.config.http.public_url),
        "amount": { "refund": refund.amount, "total": refund.payment_amount, "currency": refund.currency },
    });
    match post(app, "refund", "/v3/refund/domestic/refunds", &body).await? {
        WechatAnswer::Done(answer) => refunded(refund, &answer),
        WechatAnswer::Declined { status, code } => match &*code {
            // What we ask is wrong, or that buyer's account is gone: the same again brings the same.
            "INVALID_REQUEST" | "PARAM_ERROR" | "USER_ACCOUNT_ABNORMAL" | "RESOURCE_NOT_EXISTS" | "MCH_NOT_EXISTS" => {
                Ok(RefundAnswer::Refused(format!("WeChat Pay says {code}")))
            }
            // NOT_ENOUGH among them: the merchant's balance comes back, by itself or by a person.
            _ => Err(declined("refund", status, &code)),
        },
    }
}

/// What became of a refund: <https://pay.weixin.qq.com/doc/v3/merchant/4012791884>.
pub(super) async fn query_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    match get(app, "query_refund", &format!("/v3/refund/domestic/refunds/{}", refund.id)).await? {
        WechatAnswer::Done(answer) => refunded(refund, &answer),
        WechatAnswer::Declined { code, .. } if code == "RESOURCE_NOT_EXISTS" => {
            let known_since = refund.asked_at.unwrap_or(refund.created_at);
            if app.clock.now().since(known_since) < REFUND_FOUND {
                return Ok(RefundAnswer::Pending);
            }
            Ok(RefundAnswer::Refused("WeChat Pay took the refund and knows none".to_owned()))
        }
        WechatAnswer::Declined { status, code } => Err(declined("tell of a refund", status, &code)),
    }
}

fn refunded(refund: &Refund, answer: &[u8]) -> Result<RefundAnswer> {
    let state: RefundState = read(answer)?;
    if state.out_refund_no != refund.id.to_string() || state.amount.refund != refund.amount {
        return Err(anyhow!("WeChat Pay answered for another refund").into());
    }
    Ok(state.answer())
}

/// The bill of a day, there from the next morning on: <https://pay.weixin.qq.com/doc/v3/merchant/4012791887>.
pub(super) async fn bill(app: &App, date: &str) -> Result<DayBill> {
    #[derive(Deserialize)]
    struct Announced {
        hash_type: String,
        hash_value: String,
        download_url: String,
    }
    let announced: Announced =
        match get(app, "bill", &format!("/v3/bill/tradebill?bill_date={date}&bill_type=ALL")).await? {
            WechatAnswer::Done(answer) => read(&answer)?,
            // Nothing moved on that day.
            WechatAnswer::Declined { code, .. } if code == "NO_STATEMENT_EXIST" => return Ok(DayBill::default()),
            WechatAnswer::Declined { status, code } => return Err(declined("announce a bill", status, &code)),
        };
    let file = call::file(app, &announced.download_url, BILL_BYTES, BILL_PATIENCE).await?;
    bill::check(&file, &announced.hash_type, &announced.hash_value)?;
    Ok(bill::parse(&file, &settings(app)?.mchid)?)
}

fn trade_path(payment: PaymentId) -> String {
    format!("/v3/pay/transactions/out-trade-no/{payment}")
}

/// What WeChat Pay will not do, and what we cannot act on: another time, or with other settings.
fn declined(what: &str, status: StatusCode, code: &str) -> Error {
    if status == StatusCode::UNAUTHORIZED {
        tracing::error!(
            gateway = "wechat",
            code,
            "gateway does not accept our signature; a person must look at the keys"
        );
    }
    unavailable(Gateway::Wechat, format!("it does not {what}: HTTP {}, {code:.64}", status.as_u16()))
}

/// As much of a text as fits, whole characters only.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// As WeChat Pay writes times: `2026-11-20T16:33:45+08:00`.
fn beijing(at: At) -> String {
    at.timestamp().to_zoned(TimeZone::fixed(offset(8))).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
