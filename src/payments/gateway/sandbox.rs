//! The sandbox gateway's protocol, from the merchant's side. The gateway itself is [`crate::sandbox`].
//!
//! Requests, answers and notifies are JSON, signed with HMAC-SHA256 over `timestamp.rawbody` ([`SharedSecret`]). What is
//! asked is inside the body, so the signature covers it; an answer names the trade it is about, so an answer to another
//! question is not taken for ours.

use anyhow::{Context, anyhow};
use axum::http::HeaderMap;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{self, GatewayCall};
use super::{CloseAnswer, PaymentOutcome, unavailable};
use crate::app::App;
use crate::error::{Error, Kind, Result};
use crate::payments::model::{
    BillLine, DayBill, Gateway, Message, PayWith, Payment, PaymentId, Refund, RefundAnswer, RefundId, Said,
};
use crate::platform::clock::At;
use crate::platform::hmac::SharedSecret;
use crate::platform::money::Money;

/// The sandbox's name for us.
pub(super) const MERCHANT_ID: &str = "onrush-sandbox";
/// Our yes to a notify.
pub(super) const YES: &str = "success";
/// Our no: anything but [`YES`] is.
pub(super) const NO: &str = "failure";
/// In an answer: carried out. In a notify: paid.
const SUCCESS: &str = "100000";
/// The codes of answers that we act on.
const TRADE_NOT_FOUND: &str = "200003";
const ALREADY_PAID: &str = "200004";
const CONFLICT: &str = "200006";
const REFUND_TOO_MUCH: &str = "200007";
const REFUND_NOT_FOUND: &str = "200008";
/// In a notify: money went back, or will not.
const REFUNDED: &str = "100001";
const REFUND_DECLINED: &str = "200009";
/// Where our handlers are (`routes.rs`), below `http.public_url`.
const CALLBACKS: &str = "/api/v1/payments/sandbox";
/// Pages of a bill that we read, at most.
const BILL_PAGES: usize = 1000;

fn secret(app: &App) -> SharedSecret {
    SharedSecret::new(app.config.payments.sandbox_secret.expose_secret().as_bytes())
}

/// What a notify says.
#[derive(Deserialize)]
struct Notify {
    notify_id: String,
    code: String,
    merchant_id: String,
    merchant_no: String,
    trade_no: String,
    amount_fen: Money,
    currency: String,
    #[serde(default)]
    refund_no: String,
}

/// Longest id of a notify that we keep.
const NOTIFY_ID_LENGTH: usize = 64;

/// Checks a notify over its raw bytes, and only then reads it.
pub(super) fn verify(app: &App, headers: &HeaderMap, body: &[u8]) -> Result<Message> {
    read(&secret(app), headers, body, app.clock.now())
}

fn read(secret: &SharedSecret, headers: &HeaderMap, body: &[u8], now: At) -> Result<Message> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (timestamp, signature) = (header("x-sandbox-timestamp"), header("x-sandbox-signature"));
    if let Err(error) = secret.verify(timestamp, signature, body, now) {
        tracing::warn!(gateway = "sandbox", %error, "callback could not be verified");
        return Err(Kind::CallbackInvalid.into());
    }
    let notify: Notify = serde_json::from_slice(body).map_err(|error| {
        tracing::error!(gateway = "sandbox", %error, "callback verified and cannot be read");
        Error::from(Kind::CallbackInvalid)
    })?;
    let good = |text: &str| (1..=NOTIFY_ID_LENGTH).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !good(&notify.notify_id) || !good(&notify.trade_no) {
        return Err(Kind::CallbackInvalid.into());
    }
    let said = match notify.code.as_str() {
        SUCCESS => Said::Paid { amount: notify.amount_fen, currency: notify.currency, trade_no: notify.trade_no },
        REFUNDED => Said::Refunded { refund: notify.refund_no.parse().ok(), answer: RefundAnswer::Confirmed },
        REFUND_DECLINED => Said::Refunded { refund: notify.refund_no.parse().ok(), answer: declined() },
        _ => Said::NotPaid,
    };
    let payment = notify.merchant_no.parse().ok();
    Ok(Message { notify_id: notify.notify_id, merchant: notify.merchant_id, payment, said })
}

/// A trade as the gateway sees it.
#[derive(Deserialize)]
struct Trade {
    merchant_id: String,
    merchant_no: String,
    trade_no: String,
    status: String,
    paid_fen: Money,
    currency: String,
    pay_url: String,
}

fn declined() -> RefundAnswer {
    RefundAnswer::Refused("the sandbox declined it".to_owned())
}

pub(super) async fn create(app: &App, payment: &Payment, subject: &str) -> Result<(PayWith, PaymentOutcome)> {
    let base = format!("{}{CALLBACKS}", app.config.http.public_url);
    let answer = call(
        app,
        "create",
        json!({
            "merchant_no": payment.id,
            "amount_fen": payment.amount,
            "subject": subject,
            "notify_url": format!("{base}/notify"),
            "return_url": format!("{base}/return?payment_no={}", payment.id),
            "expires_at": payment.expires_at,
        }),
    )
    .await?;
    let trade = answer.trade_of(payment.id)?;
    Ok((PayWith::Url(trade.pay_url.clone()), answer.asked(trade)?))
}

pub(super) async fn query(app: &App, payment: &Payment) -> Result<PaymentOutcome> {
    let answer = call(app, "query", json!({ "merchant_no": payment.id })).await?;
    // A trade that was never opened is unpaid, not an error.
    if answer.code == TRADE_NOT_FOUND {
        return Ok(PaymentOutcome::Waiting);
    }
    let trade = answer.trade_of(payment.id)?;
    answer.asked(trade)
}

pub(super) async fn close(app: &App, payment: &Payment) -> Result<CloseAnswer> {
    let answer = call(app, "close", json!({ "merchant_no": payment.id })).await?;
    match answer.code.as_str() {
        TRADE_NOT_FOUND => Ok(CloseAnswer::Unknown),
        ALREADY_PAID => Ok(CloseAnswer::AlreadyPaid),
        _ => match answer.trade_of(payment.id)?.status.as_str() {
            // Believed, somebody could still pay for an order that is closed.
            "waiting" => Err(unavailable(Gateway::Sandbox, "it confirms a close and leaves the trade open")),
            _ => Ok(CloseAnswer::Closed),
        },
    }
}

pub(super) async fn refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    let answer = call(
        app,
        "refund",
        json!({
            "merchant_no": refund.payment_id,
            "refund_no": refund.id,
            "amount_fen": refund.amount,
        }),
    )
    .await?;
    match answer.code.as_str() {
        CONFLICT | REFUND_TOO_MUCH => Ok(RefundAnswer::Refused(format!("{} {}", answer.code, answer.message))),
        _ => answer.refunded(refund),
    }
}

pub(super) async fn query_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    let answer = call(app, "query_refund", json!({ "refund_no": refund.id })).await?;
    match answer.code.as_str() {
        REFUND_NOT_FOUND => Ok(RefundAnswer::Refused("the sandbox has no such refund".to_owned())),
        _ => answer.refunded(refund),
    }
}

pub(super) async fn bill(app: &App, date: &str) -> Result<DayBill> {
    Ok(DayBill { payments: bill_of(app, date, "payments").await?, refunds: bill_of(app, date, "refunds").await? })
}

async fn bill_of(app: &App, date: &str, kind: &str) -> Result<Vec<BillLine>> {
    #[derive(Deserialize)]
    struct Page {
        lines: Vec<BillLine>,
        next: Option<String>,
    }
    let (mut all, mut after) = (Vec::new(), String::new());
    for _ in 0..BILL_PAGES {
        let answer = call(app, "bill", json!({ "date": date, "kind": kind, "after": after })).await?;
        let page: Page = answer.data()?;
        all.extend(page.lines);
        match page.next {
            Some(next) => after = next,
            None => return Ok(all),
        }
    }
    Err(anyhow!("the sandbox's bill of {date} has more than {BILL_PAGES} pages").into())
}

/// An answer whose signature held.
#[derive(Deserialize)]
struct SandboxAnswer {
    code: String,
    message: String,
    #[serde(default)]
    data: Value,
}

impl SandboxAnswer {
    fn data<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        if self.code != SUCCESS {
            return Err(anyhow!("the sandbox declined: {} {}", self.code, self.message).into());
        }
        Ok(serde_json::from_value(self.data.clone()).context("reading the sandbox's answer")?)
    }

    fn trade_of(&self, payment: PaymentId) -> Result<Trade> {
        let trade: Trade = self.data()?;
        if trade.merchant_no != payment.to_string() {
            return Err(anyhow!("the sandbox answered for another trade").into());
        }
        Ok(trade)
    }

    /// A refund's state in our words.
    fn refunded(&self, refund: &Refund) -> Result<RefundAnswer> {
        #[derive(Deserialize)]
        struct Refunded {
            refund_no: RefundId,
            amount_fen: Money,
            status: String,
        }
        let done: Refunded = self.data()?;
        if done.refund_no != refund.id || done.amount_fen != refund.amount {
            return Err(anyhow!("the sandbox answered for another refund").into());
        }
        match done.status.as_str() {
            "done" => Ok(RefundAnswer::Confirmed),
            "pending" => Ok(RefundAnswer::Pending),
            "declined" => Ok(declined()),
            other => Err(anyhow!("the sandbox has a refund in state {other:?}").into()),
        }
    }

    /// A trade's state in our words.
    fn asked(&self, trade: Trade) -> Result<PaymentOutcome> {
        match trade.status.as_str() {
            "waiting" => Ok(PaymentOutcome::Waiting),
            "failed" | "closed" => Ok(PaymentOutcome::Over),
            // Refunded money was paid before.
            "paid" | "refunded" => {
                let kept = serde_json::to_vec(&self.data).context("writing down the sandbox's answer")?;
                // The amount is part of the id: should the gateway come to correct it, that is another message.
                let notify_id = format!("query:{}:{}", trade.merchant_no, trade.paid_fen.as_fen());
                let payment = trade.merchant_no.parse().ok();
                let said = Said::Paid { amount: trade.paid_fen, currency: trade.currency, trade_no: trade.trade_no };
                Ok(PaymentOutcome::Paid(Message { notify_id, merchant: trade.merchant_id, payment, said }, kept))
            }
            other => Err(anyhow!("the sandbox has a trade in state {other:?}").into()),
        }
    }
}

/// One signed request and its verified answer. Every request may be sent twice.
async fn call(app: &App, action: &'static str, mut request: Value) -> Result<SandboxAnswer> {
    let settings = &app.config.payments;
    let base = if settings.sandbox_url.is_empty() { &app.config.http.public_url } else { &settings.sandbox_url };
    let down = |why: String| unavailable(Gateway::Sandbox, why);
    request["action"] = action.into();
    let body = serde_json::to_vec(&request).context("writing a request to the sandbox")?;
    let reply = client::send(app, &GatewayCall::new(app, Gateway::Sandbox, action), || {
        let (timestamp, signature) = secret(app).sign(&body, app.clock.now());
        Ok(app
            .http
            .post(format!("{base}/sandbox/api"))
            .header("content-type", "application/json")
            .header("x-sandbox-timestamp", timestamp)
            .header("x-sandbox-signature", signature)
            .body(body.clone()))
    })
    .await?;
    if !reply.status.is_success() {
        return Err(down(format!("HTTP {}", reply.status.as_u16())));
    }
    let (timestamp, signature) = (reply.header("x-sandbox-timestamp"), reply.header("x-sandbox-signature"));
    secret(app)
        .verify(timestamp, signature, &reply.body, app.clock.now())
        .map_err(|error| down(format!("its answer is not signed: {error}")))?;
    Ok(serde_json::from_slice(&reply.body).context("reading the sandbox's answer")?)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_763_700_000_000;

    fn secret() -> SharedSecret {
        SharedSecret::new(b"a secret of these tests")
    }

    fn signed(body: &[u8]) -> HeaderMap {
        let (timestamp, signature) = secret().sign(body, At::from_ms(NOW));
        let pairs = [("x-sandbox-timestamp", timestamp), ("x-sandbox-signature", signature)];
        pairs.into_iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn paid() -> Vec<u8> {
        let notify = json!({ "notify_id": "n1", "code": SUCCESS, "merchant_id": MERCHANT_ID, "merchant_no": PaymentId::new(),
            "trade_no": "t1", "amount_fen": 1999, "currency": "CNY" });
        serde_json::to_vec(&notify).unwrap()
    }

    proptest! {
        #[test]
        fn no_bytes_are_accepted_without_a_signature(
            body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), Just(paid())], value in proptest::collection::vec(32u8..127, 0..80),
            known in any::<bool>(),
        ) {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_bytes(&value).unwrap();
            headers.insert("x-sandbox-signature", value.clone());
            headers.insert("x-sandbox-timestamp", if known { HeaderValue::from_static("1763700000") } else { value });
            prop_assert!(read(&secret(), &headers, &body, At::from_ms(NOW)).is_err());
        }

        #[test]
        fn a_notify_altered_by_one_byte_is_refused(at: prop::sample::Index, flip in 1u8..) {
            let mut body = paid();
            let headers = signed(&body);
            let said = read(&secret(), &headers, &body, At::from_ms(NOW)).unwrap().said;
            let is_paid = matches!(said, Said::Paid { amount, .. } if amount.as_fen() == 1999);
            prop_assert!(is_paid);
            let at = at.index(body.len());
            body[at] ^= flip;
            prop_assert!(read(&secret(), &headers, &body, At::from_ms(NOW)).is_err());
        }

        /// Whatever is signed, nothing panics.
        #[test]
        fn signed_nonsense_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, byte in any::<u8>()) {
            let _ = read(&secret(), &signed(&bytes), &bytes, At::from_ms(NOW));
            let mut body = paid();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = read(&secret(), &signed(&body), &body, At::from_ms(NOW));
        }
    }
}
