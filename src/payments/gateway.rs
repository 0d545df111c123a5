//! One call for every gateway: each only speaks its own protocol, everything that decides is elsewhere.

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::model::{DayBill, Gateway, Message, Payment, Refund};
use super::sandbox;
use crate::app::App;
use crate::error::{Error, Kind, Plain, Result, refuse};

/// What became of a payment at its gateway.
#[derive(Debug)]
pub(super) enum Asked {
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

fn is_on(app: &App, gateway: Gateway) -> bool {
    match gateway {
        Gateway::Sandbox => app.config.payments.sandbox,
    }
}

/// The gateway's name for us.
pub(super) fn merchant(gateway: Gateway) -> &'static str {
    match gateway {
        Gateway::Sandbox => sandbox::MERCHANT_ID,
    }
}

/// Checks a callback over its raw bytes and only then reads it.
pub(super) fn verify(app: &App, gateway: Gateway, headers: &HeaderMap, body: &[u8]) -> Result<Message> {
    match gateway {
        Gateway::Sandbox => sandbox::verify(app, headers, body),
    }
}

/// Yes, in the gateway's words: the message needs no repetition.
pub(super) fn yes(gateway: Gateway) -> Response {
    match gateway {
        Gateway::Sandbox => plain(StatusCode::OK, sandbox::YES),
    }
}

/// No, in the gateway's words: the message is to come again.
pub(super) fn no(gateway: Gateway, status: StatusCode) -> Response {
    match gateway {
        Gateway::Sandbox => plain(status, sandbox::NO),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = (status, text).into_response();
    response.extensions_mut().insert(Plain);
    response
}

/// Opens the payment at its gateway: where the buyer pays, and what became of it. The same payment again is the same
/// trade, also after a crash between the two.
pub(super) async fn create(app: &App, payment: &Payment, subject: &str) -> Result<(String, Asked)> {
    require_on(app, payment.gateway)?;
    match payment.gateway {
        Gateway::Sandbox => sandbox::create(app, payment, subject).await,
    }
}

/// What became of the payment.
pub(super) async fn query(app: &App, payment: &Payment) -> Result<Asked> {
    require_on(app, payment.gateway)?;
    match payment.gateway {
        Gateway::Sandbox => sandbox::query(app, payment).await,
    }
}

/// Lets nobody pay any more.
pub(super) async fn close(app: &App, payment: &Payment) -> Result<CloseAnswer> {
    require_on(app, payment.gateway)?;
    match payment.gateway {
        Gateway::Sandbox => sandbox::close(app, payment).await,
    }
}

/// Gives money back; `Ok` when the gateway confirmed it. The same refund again is the same refund.
pub(super) async fn refund(app: &App, refund: &Refund) -> Result<()> {
    require_on(app, refund.gateway)?;
    match refund.gateway {
        Gateway::Sandbox => sandbox::refund(app, refund).await,
    }
}

/// The gateway's own list of what moved on a day (`2026-11-20`, in its time zone).
pub(super) async fn bill(app: &App, gateway: Gateway, date: &str) -> Result<DayBill> {
    require_on(app, gateway)?;
    match gateway {
        Gateway::Sandbox => sandbox::bill(app, date).await,
    }
}

/// A gateway that was switched off is one that does not answer.
fn require_on(app: &App, gateway: Gateway) -> Result<()> {
    if is_on(app, gateway) { Ok(()) } else { Err(unavailable(gateway, "it is switched off")) }
}

/// Seconds after which a client may ask again for what a gateway did not answer.
const RETRY_AFTER_S: u64 = 5;

/// The gateway does not answer, or not in a way that we can trust.
pub(super) fn unavailable(gateway: Gateway, why: impl std::fmt::Display) -> Error {
    tracing::warn!(gateway = gateway.as_str(), error = %why, "payment gateway does not answer");
    metrics::counter!("onrush_gateway_failures_total", "gateway" => gateway.as_str()).increment(1);
    refuse(Kind::GatewayUnavailable, "").retry_after(RETRY_AFTER_S).into()
}
