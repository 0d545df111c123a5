//! Alipay's protocol (RSA2): `alipay.trade.page.pay` for a browser, `.precreate` for a QR code, `.query`, `.close`,
//! `.refund`, `.fastpay.refund.query`, the day's bill, and the notifies.
//!
//! What is not obvious in it, by Alipay's documents (`https://docs.open.alipay.com/api_1/` and the name of each call; notifies: <https://opendocs.alipay.com/open/270/105902>):
//!
//! * `code` 10000 says that the *call* worked. Whether there is money is in `trade_status`.
//! * A trade begins to be when the buyer opens the page or scans the code. Before that it "does not exist", which is
//!   unpaid and no error; and nobody can close it, so the page must die by itself: at `time_expire`, the order's expiry.
//! * `TRADE_SUCCESS` and `TRADE_FINISHED` are both paid; `TRADE_CLOSED` is unpaid and closed, or wholly refunded.
//! * A refund is the same one by `out_request_no`. A repeat is answered `fund_change` = `N`, as is a refund that has not
//!   happened yet: only `alipay.trade.fastpay.refund.query` tells one from the other.

mod answer;
mod bill;
mod notification;
mod request;
mod signature;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use jiff::civil::Date;
use jiff::tz;
use serde::Deserialize;
use serde_json::json;

use self::answer::{AlipayAnswer, yuan};
pub(super) use self::request::account;
use self::request::{Called, call, signed_url};
use super::client::{self, GatewayCall};
use super::{CloseAnswer, PaymentOutcome, unavailable};
use crate::app::App;
use crate::error::{Error, Kind, Result};
use crate::payments::model::{Channel, DayBill, Gateway, Message, PayWith, Payment, Refund, RefundAnswer, Said};
use crate::platform::clock::At;
use crate::platform::money::{CURRENCY, Money};

/// Our yes to a notify: exactly these seven bytes.
pub(super) const YES: &str = "success";
/// Our no: anything but [`YES`] is.
pub(super) const NO: &str = "failure";
/// Where our handlers are (`routes.rs`), below `http.public_url`.
const CALLBACKS: &str = "/api/v1/payments/alipay";
/// Alipay's times are Beijing's: hours before UTC.
const BEIJING_H: i8 = 8;

/// Why a call is declined, where that is an answer to us.
const TRADE_NOT_EXIST: &str = "ACQ.TRADE_NOT_EXIST";
const TRADE_HAS_SUCCESS: &str = "ACQ.TRADE_HAS_SUCCESS";
const TRADE_HAS_CLOSE: &str = "ACQ.TRADE_HAS_CLOSE";
/// The trade is in a state in which this cannot be done to it.
const WRONG_STATE: &[&str] =
    &["ACQ.TRADE_STATUS_ERROR", "ACQ.REASON_TRADE_STATUS_INVALID", "ACQ.REASON_ILLEGAL_STATUS", TRADE_HAS_CLOSE];
/// Reasons against a refund that no later try changes.
const NEVER_REFUNDED: &[&str] = &[
    TRADE_NOT_EXIST,
    TRADE_HAS_CLOSE,
    "ACQ.TRADE_HAS_FINISHED",
    "ACQ.TRADE_STATUS_ERROR",
    "ACQ.TRADE_NOT_ALLOW_REFUND",
    "ACQ.DISCORDANT_REPEAT_REQUEST",
    "ACQ.REASON_TRADE_REFUND_FEE_ERR",
    "ACQ.REFUND_AMT_NOT_EQUAL_TOTAL",
    "ACQ.REFUND_FEE_ERROR",
    "ACQ.INVALID_PARAMETER",
];

/// The hour of the next day, in Beijing, after which a bill that is not there means that nothing moved. Alipay has it
/// "usually before 9, later in special cases".
const BILL_HOUR: i8 = 12;
/// Longest time for the download of a bill; its address is good for 30 s.
const BILL_PATIENCE: Duration = Duration::from_secs(60);

fn gateway_down(why: impl fmt::Display) -> Error {
    unavailable(Gateway::Alipay, why)
}

/// An instant as Alipay writes it.
fn beijing(at: At) -> String {
    tz::offset(BEIJING_H).to_datetime(at.timestamp()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Checks a notify over its form, and only then reads it.
pub(super) fn verify(app: &App, body: &[u8]) -> Result<Message> {
    notification::read(body, &account(app)?.public_keys).map_err(|error| {
        match &error {
            notification::BadNotify::Unreadable(_) => {
                tracing::error!(gateway = "alipay", %error, "callback cannot be read")
            }
            _ => tracing::warn!(gateway = "alipay", %error, "callback could not be verified"),
        }
        Kind::CallbackInvalid.into()
    })
}

/// The page is an address that only has to be signed; a QR code is asked for.
pub(super) async fn create(app: &App, payment: &Payment, subject: &str) -> Result<(PayWith, PaymentOutcome)> {
    let mut content = json!({
        "out_trade_no": payment.id,
        "total_amount": payment.amount.to_string(),
        "subject": plain(subject),
        "time_expire": beijing(payment.expires_at),
    });
    let base = format!("{}{CALLBACKS}", app.config.http.public_url);
    let mut more = vec![("notify_url", format!("{base}/notify"))];
    if payment.channel == Channel::Page {
        content["product_code"] = "FAST_INSTANT_TRADE_PAY".into();
        // Without parameters of ours: Alipay adds its own, `out_trade_no` among them.
        more.push(("return_url", format!("{base}/return")));
        let url = signed_url(app, "alipay.trade.page.pay", &content, &more)?;
        return Ok((PayWith::Url(url), PaymentOutcome::Waiting));
    }
    #[derive(Deserialize)]
    struct Created {
        out_trade_no: String,
        qr_code: String,
    }
    // What is not to be paid any more has no code to be shown.
    let nothing = PayWith::Qr(String::new());
    match call(app, ("alipay.trade.precreate", "create"), &content, &more).await? {
        Called::Done(answer) => {
            let created: Created = data(&answer)?;
            ours(&created.out_trade_no, payment)?;
            Ok((PayWith::Qr(created.qr_code), PaymentOutcome::Waiting))
        }
        Called::Declined(code, _) if code == TRADE_HAS_SUCCESS => Ok((nothing, query(app, payment).await?)),
        Called::Declined(code, _) if code == TRADE_HAS_CLOSE => Ok((nothing, PaymentOutcome::Over)),
        Called::Declined(_, words) => Err(declined(&words)),
    }
}

/// A subject without the signs that Alipay forbids in one (`/`, `=`, `&`) and those that would break a line of its bill.
fn plain(subject: &str) -> String {
    subject.chars().map(|c| if c.is_control() || "/=&,\"#".contains(c) { ' ' } else { c }).collect()
}

/// A trade as Alipay sees it.
#[derive(Deserialize)]
struct Trade {
    out_trade_no: String,
    trade_no: String,
    trade_status: String,
    #[serde(deserialize_with = "yuan")]
    total_amount: Money,
    trans_currency: Option<String>,
}

pub(super) async fn query(app: &App, payment: &Payment) -> Result<PaymentOutcome> {
    let content = json!({ "out_trade_no": payment.id });
    match call(app, ("alipay.trade.query", "query"), &content, &[]).await? {
        Called::Done(answer) => asked(&account(app)?.merchant, payment, &answer),
        Called::Declined(code, _) if code == TRADE_NOT_EXIST => Ok(PaymentOutcome::Waiting),
        Called::Declined(_, words) => Err(declined(&words)),
    }
}

/// A trade's state in our words.
fn asked(merchant: &str, payment: &Payment, answer: &AlipayAnswer) -> Result<PaymentOutcome> {
    let trade: Trade = data(answer)?;
    ours(&trade.out_trade_no, payment)?;
    match trade.trade_status.as_str() {
        "WAIT_BUYER_PAY" => Ok(PaymentOutcome::Waiting),
        // Nobody paid, or all of it went back without us having heard of it: either way there is no money.
        "TRADE_CLOSED" => Ok(PaymentOutcome::Over),
        "TRADE_SUCCESS" | "TRADE_FINISHED" => {
            if !notification::is_short(&trade.trade_no, notification::TRADE_NO_LENGTH) {
                return Err(anyhow!("Alipay's number of a trade cannot be kept").into());
            }
            // The answer names neither application nor seller: it is to our application, which sells for nobody else.
            let said = Said::Paid {
                amount: trade.total_amount,
                currency: trade.trans_currency.unwrap_or_else(|| CURRENCY.to_owned()),
                trade_no: trade.trade_no,
            };
            // The amount is part of the id: should Alipay come to correct it, that is another message.
            let notify_id = format!("query:{}:{}", payment.id, trade.total_amount.as_fen());
            let message = Message { notify_id, merchant: merchant.to_owned(), payment: Some(payment.id), said };
            Ok(PaymentOutcome::Paid(message, answer.text().as_bytes().to_vec()))
        }
        other => Err(anyhow!("Alipay has a trade in state {other:.32}").into()),
    }
}

pub(super) async fn close(app: &App, payment: &Payment) -> Result<CloseAnswer> {
    #[derive(Deserialize)]
    struct Ended {
        out_trade_no: String,
    }
    let content = json!({ "out_trade_no": payment.id });
    match call(app, ("alipay.trade.close", "close"), &content, &[]).await? {
        Called::Done(answer) => {
            ours(&data::<Ended>(&answer)?.out_trade_no, payment)?;
            Ok(CloseAnswer::Closed)
        }
        Called::Declined(code, _) if code == TRADE_NOT_EXIST => Ok(CloseAnswer::Unknown),
        Called::Declined(code, _) if code == TRADE_HAS_SUCCESS => Ok(CloseAnswer::AlreadyPaid),
        // Only an unpaid trade can be closed. This one was paid meanwhile, or has died at its `time_expire`.
        Called::Declined(code, words) if WRONG_STATE.contains(&code.as_str()) => match query(app, payment).await? {
            PaymentOutcome::Paid(..) => Ok(CloseAnswer::AlreadyPaid),
            PaymentOutcome::Over => Ok(CloseAnswer::Closed),
            PaymentOutcome::Waiting => Err(gateway_down(format_args!("it leaves an unpaid trade open: {words}"))),
        },
        Called::Declined(_, words) => Err(declined(&words)),
    }
}

pub(super) async fn refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    #[derive(Deserialize)]
    struct Refunded {
        out_trade_no: String,
        #[serde(default)]
        fund_change: String,
    }
    let content = json!({
        "out_trade_no": refund.payment_id,
        "out_request_no": refund.id,
        "refund_amount": refund.amount.to_string(),
    });
    match call(app, ("alipay.trade.refund", "refund"), &content, &[]).await? {
        Called::Done(answer) => {
            let done: Refunded = data(&answer)?;
            if done.out_trade_no != refund.payment_id.to_string() {
                return Err(anyhow!("Alipay answered for another trade").into());
            }
            if done.fund_change == "Y" || is_refunded(app, refund).await? {
                return Ok(RefundAnswer::Confirmed);
            }
            Ok(RefundAnswer::Pending)
        }
        // A repeat of one that succeeded may be declined as well, since there is nothing left to give back.
        Called::Declined(..) if is_refunded(app, refund).await? => Ok(RefundAnswer::Confirmed),
        Called::Declined(code, words) if NEVER_REFUNDED.contains(&code.as_str()) => Ok(RefundAnswer::Refused(words)),
        // The account is short of money, for instance: that can change.
        Called::Declined(_, words) => Err(declined(&words)),
    }
}

/// A refund that Alipay does not know of, or that failed, is sent again: its document of the question asks for that, with
/// the same `out_request_no`, under which it is the same refund.
pub(super) async fn go_on_with_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    match query_refund(app, refund).await? {
        RefundAnswer::Pending => self::refund(app, refund).await,
        answer => Ok(answer),
    }
}

/// One that Alipay does not know of, and one that it is at, look alike.
pub(super) async fn query_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    Ok(if is_refunded(app, refund).await? { RefundAnswer::Confirmed } else { RefundAnswer::Pending })
}

/// Whether the money of exactly this refund is back.
async fn is_refunded(app: &App, refund: &Refund) -> Result<bool> {
    #[derive(Deserialize)]
    struct Refunded {
        #[serde(default)]
        refund_status: String,
        out_request_no: Option<String>,
        #[serde(default)]
        refund_amount: Option<Yuan>,
    }
    #[derive(Deserialize)]
    struct Yuan(#[serde(deserialize_with = "yuan")] Money);
    let content = json!({ "out_trade_no": refund.payment_id, "out_request_no": refund.id });
    let answer = match call(app, ("alipay.trade.fastpay.refund.query", "query_refund"), &content, &[]).await? {
        Called::Done(answer) => answer,
        Called::Declined(..) => return Ok(false),
    };
    let done: Refunded = data(&answer)?;
    // The state is missing while it has not succeeded.
    if done.refund_status != "REFUND_SUCCESS" {
        return Ok(false);
    }
    let amount = done.refund_amount.map(|yuan| yuan.0);
    if done.out_request_no != Some(refund.id.to_string()) || amount != Some(refund.amount) {
        return Err(anyhow!("Alipay answered for another refund, or another amount").into());
    }
    Ok(true)
}

/// The day's bill (`2026-11-20`).
pub(super) async fn bill(app: &App, date: &str) -> Result<DayBill> {
    #[derive(Deserialize)]
    struct Place {
        bill_download_url: String,
    }
    let content = json!({ "bill_type": "trade", "bill_date": date });
    let place: Place =
        match call(app, ("alipay.data.dataservice.bill.downloadurl.query", "bill"), &content, &[]).await? {
            Called::Done(answer) => data(&answer)?,
            Called::Declined(code, words) if is_no_bill(&code) => {
                let due = bill_due(date)?;
                return if app.clock.now() < due { Err(gateway_down(words)) } else { Ok(DayBill::default()) };
            }
            Called::Declined(_, words) => return Err(declined(&words)),
        };
    let secure = !account(app)?.base_url.starts_with("https://") || place.bill_download_url.starts_with("https://");
    if !secure {
        return Err(gateway_down("its bill is at an address without TLS"));
    }
    let how = GatewayCall {
        limit_bytes: bill::ZIP_LIMIT,
        patience: BILL_PATIENCE,
        ..GatewayCall::new(app, Gateway::Alipay, "bill")
    };
    let zip = client::send(app, &how, || Ok(app.http.get(&place.bill_download_url))).await?;
    if !zip.status.is_success() {
        return Err(gateway_down(format_args!("no bill: HTTP {}", zip.status.as_u16())));
    }
    let read = tokio::task::spawn_blocking(move || bill::read(&zip.body)).await.context("reading a bill")?;
    Ok(read.with_context(|| format!("reading Alipay's bill of {date}"))?)
}

/// `isp.bill_not_exist`, `BILL_NOT_EXIST`: there is none of that day, or not yet.
fn is_no_bill(code: &str) -> bool {
    code.to_ascii_lowercase().ends_with("bill_not_exist")
}

/// When the bill of a day is there, if anything moved on it.
fn bill_due(date: &str) -> anyhow::Result<At> {
    let day: Date = date.parse().context("a day of a bill")?;
    let due = day.tomorrow()?.at(BILL_HOUR, 0, 0, 0);
    Ok(tz::offset(BEIJING_H).to_timestamp(due)?.into())
}

fn data<'a, T: Deserialize<'a>>(answer: &'a AlipayAnswer) -> Result<T> {
    Ok(answer.data().context("reading Alipay's answer")?)
}

/// An answer to another question is not taken for ours.
fn ours(number: &str, payment: &Payment) -> anyhow::Result<()> {
    ensure!(number == payment.id.to_string(), "Alipay answered for another trade");
    Ok(())
}

fn declined(words: &str) -> Error {
    anyhow!("Alipay declined: {words}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_beijing() {
        let at: At = "2026-12-31T16:30:05.999Z".parse().unwrap();
        assert_eq!(beijing(at), "2027-01-01 00:30:05");
        assert_eq!(bill_due("2026-12-31").unwrap().to_string(), "2027-01-01T04:00:00.000Z");
        assert!(bill_due("2026-13-01").is_err());
    }

    #[test]
    fn a_subject_has_no_sign_that_alipay_forbids() {
        assert_eq!(plain("A/B=C&D, \"E\" #1\n课程 (+2)"), "A B C D   E   1 课程 (+2)");
    }

    #[test]
    fn only_a_missing_bill_is_a_missing_bill() {
        assert!(["isp.bill_not_exist", "BILL_NOT_EXIST"].into_iter().all(is_no_bill));
        assert!(!["ACQ.TRADE_NOT_EXIST", "isv.invalid-arguments", ""].into_iter().any(is_no_bill));
    }
}
