//! One call for every gateway: each only speaks its own protocol, everything that decides is elsewhere.
//!
//! A gateway module has a function for each arm below. What it may rely on: an operation is called for a payment or
//! refund that is in the books, may be called again at any time with the same, and never inside a transaction. What it
//! must keep: nothing of an answer is believed that is not verified, and an answer to another question is not taken for
//! one to ours.

mod alipay;
mod client;
mod sandbox;
mod stripe;
mod wechat;

use anyhow::Context;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::tz::TimeZone;

use super::model::{DayBill, Gateway, Message, PayWith, Payment, Refund, RefundAnswer};
use crate::app::App;
use crate::error::{Error, Kind, Plain, Result, refuse};
use crate::platform::day;

/// What became of a payment at its gateway.
#[derive(Debug)]
pub(super) enum PaymentOutcome {
    /// Money came in: to be settled, with the answer to keep.
    Paid(Message, Vec<u8>),
    /// The buyer may still pay, or the gateway has not heard of it.
    Waiting,
    /// It ended without money.
    Over,
}

/// What a gateway says to a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseAnswer {
    /// Nobody can pay any more.
    Closed,
    /// Too late: it was paid.
    AlreadyPaid,
    /// It has not heard of the payment (yet).
    Unknown,
}

/// The gateway of this name, if it is switched on.
pub(super) fn named(app: &App, name: &str) -> Option<Gateway> {
    name.parse().ok().filter(|gateway| is_on(app, *gateway))
}

/// Whether the settings switch the gateway on.
pub fn is_on(app: &App, gateway: Gateway) -> bool {
    match gateway {
        Gateway::Sandbox => app.config.payments.sandbox,
        Gateway::Alipay => app.config.payments.alipay.is_some(),
        Gateway::Wechat => app.config.payments.wechat.is_some(),
        Gateway::Stripe => app.config.payments.stripe.is_some(),
    }
}

/// The gateway's name for us, as [`Message::merchant`] must have it.
pub(super) fn merchant(app: &App, gateway: Gateway) -> Result<&str> {
    require_on(app, gateway)?;
    match gateway {
        Gateway::Sandbox => Ok(sandbox::MERCHANT_ID),
        Gateway::Alipay => Ok(&alipay::account(app)?.merchant),
        Gateway::Wechat => wechat::merchant(app),
        Gateway::Stripe => stripe::merchant(app),
    }
}

/// Checks a callback over its raw bytes and only then reads it.
pub(super) fn verify(app: &App, gateway: Gateway, headers: &HeaderMap, body: &[u8]) -> Result<Message> {
    require_on(app, gateway)?;
    match gateway {
        Gateway::Sandbox => sandbox::verify(app, headers, body),
        Gateway::Alipay => alipay::verify(app, body),
        Gateway::Wechat => wechat::verify(app, headers, body),
        Gateway::Stripe => stripe::verify(app, headers, body),
    }
}

/// Yes, in the gateway's words: the message needs no repetition.
pub(super) fn yes(gateway: Gateway) -> Response {
    match gateway {
        Gateway::Sandbox => plain(StatusCode::OK, sandbox::YES),
        Gateway::Alipay => plain(StatusCode::OK, alipay::YES),
        Gateway::Wechat => wechat::yes(),
        // The status says it.
        Gateway::Stripe => plain(StatusCode::OK, ""),
    }
}

/// No, in the gateway's words: the message is to come again.
pub(super) fn no(gateway: Gateway, status: StatusCode) -> Response {
    match gateway {
        Gateway::Sandbox => plain(status, sandbox::NO),
        Gateway::Alipay => plain(status, alipay::NO),
        Gateway::Wechat => wechat::no(status),
        Gateway::Stripe => plain(status, ""),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = (status, text).into_response();
    response.extensions_mut().insert(Plain);
    response
}

/// Opens the payment at its gateway: how the buyer goes on, and what became of it. The same payment again is the same
/// trade, also after a crash between the two.
pub(super) async fn create(app: &App, payment: &Payment, subject: &str) -> Result<(PayWith, PaymentOutcome)> {
    require_on(app, payment.gateway)?;
    match payment.gateway {
        Gateway::Sandbox => sandbox::create(app, payment, subject).await,
        Gateway::Alipay => alipay::create(app, payment, subject).await,
        Gateway::Wechat => wechat::create(app, payment, subject).await,
        Gateway::Stripe => stripe::create(app, payment, subject).await,
    }
}

/// What became of the payment.
pub(super) async fn query(app: &App, payment: &Payment) -> Result<PaymentOutcome> {
    require_on(app, payment.gateway)?;
    match payment.gateway {
        Gateway::Sandbox => sandbox::query(app, payment).await,
        Gateway::Alipay => alipay::query(app, payment).await,
        Gateway::Wechat => wechat::query(app, payment).await,
        Gateway::Stripe => stripe::query(app, payment).await,
    }
}

/// Lets nobody pay any more.
pub(super) async fn close(app: &App, payment: &Payment) -> Result<CloseAnswer> {
    require_on(app, payment.gateway)?;
    match payment.gateway {
        Gateway::Sandbox => sandbox::close(app, payment).await,
        Gateway::Alipay => alipay::close(app, payment).await,
        Gateway::Wechat => wechat::close(app, payment).await,
        Gateway::Stripe => stripe::close(app, payment).await,
    }
}

/// Gives money back. The same refund again is the same refund, also when it is not known whether the first try arrived.
pub(super) async fn refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    require_on(app, refund.gateway)?;
    match refund.gateway {
        Gateway::Sandbox => sandbox::refund(app, refund).await,
        Gateway::Alipay => alipay::refund(app, refund).await,
        Gateway::Wechat => wechat::refund(app, refund).await,
        Gateway::Stripe => stripe::refund(app, refund).await,
    }
}

/// What to do about a refund that the gateway is at ([`RefundAnswer::Pending`]): it is asked about, and sent again where the
/// gateway wants that.
pub(super) async fn go_on_with_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    require_on(app, refund.gateway)?;
    match refund.gateway {
        Gateway::Alipay => alipay::go_on_with_refund(app, refund).await,
        Gateway::Sandbox | Gateway::Wechat | Gateway::Stripe => query_refund(app, refund).await,
    }
}

/// What became of a refund, whatever our books say of it. Asking moves no money.
pub(super) async fn query_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    require_on(app, refund.gateway)?;
    match refund.gateway {
        Gateway::Sandbox => sandbox::query_refund(app, refund).await,
        Gateway::Alipay => alipay::query_refund(app, refund).await,
        Gateway::Wechat => wechat::query_refund(app, refund).await,
        Gateway::Stripe => stripe::query_refund(app, refund).await,
    }
}

/// The gateway's own list of what moved on a day (`2026-11-20`, by [`bill_zone`]), whole. One that is not there yet is
/// refused as `gateway_unavailable`.
pub async fn bill(app: &App, gateway: Gateway, date: &str) -> Result<DayBill> {
    require_on(app, gateway)?;
    match gateway {
        Gateway::Sandbox => sandbox::bill(app, date).await,
        Gateway::Alipay => alipay::bill(app, date).await,
        Gateway::Wechat => wechat::bill(app, date).await,
        Gateway::Stripe => stripe::bill(app, date).await,
    }
}

/// Whose midnight the days of the gateway's bills have. (Those of mainland China keep Beijing's, wherever the shop is.)
pub fn bill_zone(app: &App, gateway: Gateway) -> anyhow::Result<TimeZone> {
    let name = match gateway {
        Gateway::Sandbox | Gateway::Stripe => app.config.time_zone.as_str(),
        Gateway::Wechat | Gateway::Alipay => "Asia/Shanghai",
    };
    day::zone(name).with_context(|| format!("reading the time zone {name}"))
}

/// A gateway that is switched off is not called. What needs it waits, and says so ([`disabled_gateways`](super::disabled_gateways)).
pub fn require_on(app: &App, gateway: Gateway) -> Result<()> {
    if is_on(app, gateway) { Ok(()) } else { Err(switched_off(gateway)) }
}

/// The gateway is switched off: it has no settings here.
pub(super) fn switched_off(gateway: Gateway) -> Error {
    refuse(Kind::GatewayOff, format!("{} is switched off", gateway.as_str())).into()
}

/// Seconds after which a client may ask again for what a gateway did not answer.
const RETRY_AFTER_S: u64 = 5;

/// The gateway does not answer, or not in a way that we can trust. `why` is for those who run the service: it may be in a
/// gateway's own words, and never has a secret or a body in it.
pub(super) fn unavailable(gateway: Gateway, why: impl std::fmt::Display) -> Error {
    tracing::warn!(gateway = gateway.as_str(), error = %why, "payment gateway does not answer");
    metrics::counter!("onrush_gateway_failures_total", "gateway" => gateway.as_str()).increment(1);
    refuse(Kind::GatewayUnavailable, "").because(why).retry_after(RETRY_AFTER_S).into()
}

/// As [`unavailable`], of a gateway that is not called for now.
fn left_alone(gateway: Gateway) -> Error {
    tracing::debug!(gateway = gateway.as_str(), "payment gateway is not called for now");
    let why = "it has not answered, and is left alone for a while";
    refuse(Kind::GatewayUnavailable, "").because(why).retry_after(RETRY_AFTER_S).into()
}

/// As [`unavailable`], of a gateway that lives and wants fewer calls of this kind.
fn held(gateway: Gateway, left_s: u64) -> Error {
    tracing::debug!(gateway = gateway.as_str(), left_s, "payment gateway is not called so often");
    refuse(Kind::GatewayUnavailable, "").because("it wants fewer calls").retry_after(left_s).into()
}
