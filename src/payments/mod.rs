//! Money: starting a payment, settling what a gateway says, giving money back, and the one way to close an order.
//!
//! * [`pay`]: an attempt to pay an order at one gateway. The attempt has a merchant number of its own; asking again for
//!   the same order and gateway goes on with the same attempt.
//! * [`notified`]: a gateway's callback. Verified over its raw bytes, then settled in one transaction, and only then
//!   answered with yes. Whatever cannot be settled now is answered with no, so that it comes again.
//! * [`settle`](settle::settle): the one place where money moves an order, for every gateway, and for what is found by
//!   asking as for what is told.
//! * [`close_order`]: an order whose payment was started is closed only after its gateway closed the trade; one that
//!   turns out to be paid is settled instead.
//! * **Money for an order that is dead or paid** is decided by [`resolve_late`]: the order is opened again when all it
//!   held can be held again, else the money goes back ([`drive_refunds`]) until the gateway confirms it.
//! * [`book_entries`], [`heard`]: our books, for [`reconciliation`](crate::reconciliation), which lays the gateways' beside them.
//! * [`watch_switched_off`], [`abandon_payment`]: what is open at a gateway that is switched off is told, and may be given up.
//! * [`gateway`]: how each gateway is spoken to, and the one client for all. Nothing is decided there.
//!
//! Nobody calls a gateway inside a transaction. A lost callback is found by [`query_started`]; what Redis lost of the
//! work to do, by [`sweep_due`] and [`redrive_late`].

mod asks;
mod books;
mod close;
mod disabled_gateways;
mod gateway;
pub mod http;
mod inquiry;
mod jobs;
mod late;
mod model;
mod redact;
mod refund;
mod settle;
mod store;
mod views;

pub use books::{ask_about_payment, ask_about_refund, book_entries, heard, payments_of_trades};
pub use close::{ASKED_AT_ONCE, Closed, EndTrade, SilentGateways, close_order, sweep_due};
pub use disabled_gateways::{
    OpenAtDisabled, abandon as abandon_payment, open_at_disabled, watch as watch_switched_off,
};
pub use gateway::{bill as gateway_bill, bill_zone, is_on as gateway_is_on, require_on as require_gateway};
pub use jobs::{drive_refunds, end_trades, expire, look_beside, query_started, redrive_late, resolve_late};
pub use late::{ResolveLate, RetakePart};
pub use model::{
    BILL_LINES_MAX, BillLine, BillSubject, BookEntry, BookStatus, Channel, DayBill, Gateway, HeardPosition,
    JsapiParams, MoneyState, NotificationId, NotificationOutcome, OrderRefundKind, PayWith, PaymentId, PaymentStatus,
    RefundId, RefundReason, RefundStatus, Resolution,
};
pub use refund::order::{OrderRefundView, RefundApplication, RefundPart, refund_order};
pub use refund::retry::retry as retry_refund;
pub use settle::{Settled, notified};

use std::time::Duration;

use anyhow::Context;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{self, UserId};
use crate::catalogue::CourseId;
use crate::config::amount_max;
use crate::engine::Item;
use crate::error::{Error, Kind, Result, invalid, refuse, retrying};
use crate::orders::{self, OrderId, Status};
use crate::platform::clock::At;
use crate::platform::money::CURRENCY;
use asks::Opening;
use gateway::PaymentOutcome;
use model::Payment;

/// Attempts that one request makes when the gateway says that the one before is over.
const PAY_ROUNDS: usize = 3;
/// A request that finds another one having the same trade opened waits so long, and looks again;
const OPENING_WAIT: Duration = Duration::from_millis(200);
/// so often.
const OPENING_WAITS: u32 = 20;
/// Longest subject of a trade, in characters.
const SUBJECT_CHARS: usize = 60;

/// Makes the gateways' counters that alerts look at, as `http::metrics` does the others.
pub fn prepare_counters() {
    for gateway in Gateway::ALL.map(Gateway::as_str) {
        metrics::counter!("onrush_gateway_failures_total", "gateway" => gateway).increment(0);
        let outcomes = ["settled", "late", "refund", "repeated", "ignored", "flagged", "unknown", "invalid"];
        for outcome in outcomes {
            metrics::counter!("onrush_payment_notifications_total", "gateway" => gateway, "outcome" => outcome)
                .increment(0);
        }
    }
}

/// A payment that the buyer can go on with.
#[derive(Debug)]
pub struct Started {
    /// Our merchant number.
    pub payment_no: PaymentId,
    /// How the buyer goes on.
    pub with: PayWith,
    /// Until when.
    pub expires_at: At,
}

/// How and by whom an order is to be paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentMethod {
    /// Where.
    pub gateway: Gateway,
    /// Which way.
    pub channel: Channel,
    /// Who, by WeChat's id of that person: for [`Channel::Jsapi`] alone.
    pub openid: Option<String>,
    /// From where: for [`Channel::H5`] alone.
    pub address: Option<String>,
}

impl PaymentMethod {
    /// Whether a payment goes this way: only then can it be gone on with. One whose buyer only changed places is.
    fn is_of(&self, payment: &Payment) -> bool {
        payment.gateway == self.gateway && payment.channel == self.channel && payment.payer_openid == self.openid
    }
}

/// Starts to pay an order of `user`, or goes on with the attempt that is under way there. An attempt at the same gateway
/// that goes another way is ended first: at a gateway an order has one attempt that can be paid.
pub async fn pay(app: &App, user: UserId, order: OrderId, way: &PaymentMethod) -> Result<Started> {
    let gateway = way.gateway;
    if way.channel == Channel::H5 && way.address.is_none() {
        // WeChat Pay takes no such trade without it, and a wrong one would be refused when the buyer pays.
        return Err(invalid(
            "channel",
            "cannot be h5 here: the address that the buyer's request comes from is not known",
        ));
    }
    let (mut rounds, mut waits) = (0, 0);
    while rounds < PAY_ROUNDS {
        let begun = retrying(|| begin(app, user, order, way)).await?;
        let (payment, subject) = match begun {
            Begun::Attempt(payment, subject) => (*payment, subject),
            Begun::Opened(payment, with) => {
                return Ok(Started { payment_no: payment.id, with, expires_at: payment.expires_at });
            }
            Begun::BeingOpened if waits < OPENING_WAITS => {
                waits += 1;
                tokio::time::sleep(OPENING_WAIT).await;
                continue;
            }
            Begun::BeingOpened => {
                let refusal =
                    refuse(Kind::GatewayUnavailable, "the gateway was asked a moment ago and has not answered");
                return Err(refusal.retry_after(1).into());
            }
            Begun::InTheWay(payment) => {
                close::end(app, &payment).await?;
                rounds += 1;
                continue;
            }
        };
        rounds += 1;
        // Outside the transaction. When we die here, the repeat creates the same trade.
        let (with, asked) = match gateway::create(app, &payment, &subject).await {
            Ok(created) => created,
            Err(error) => {
                end_if_closed(app, &payment).await;
                return Err(error);
            }
        };
        match asked {
            PaymentOutcome::Waiting if asks::keep_opened(app, payment.id, &with).await? => {
                return Ok(Started { payment_no: payment.id, with, expires_at: payment.expires_at });
            }
            // The order was closed before its trade was opened: nobody is to pay for it (`close::end`).
            PaymentOutcome::Waiting => {
                if let Err(error) = close::end_at_gateway(app, &payment).await {
                    end_if_closed(app, &payment).await;
                    return Err(error);
                }
            }
            PaymentOutcome::Paid(message, body) => {
                let why = match settle::settle(app, gateway, &message, &body).await? {
                    Settled::Late(_) => {
                        "it has been paid, too late or twice: the money goes back, or the order is opened again"
                    }
                    _ => "the order has been paid",
                };
                return Err(refuse(Kind::OrderState, why).into());
            }
            PaymentOutcome::Over => close::close_payment(app, payment.id).await?,
        }
    }
    Err(gateway::unavailable(gateway, "it opens no new trade"))
}

/// A call to the gateway failed, and the trade may be open. When its order was closed meanwhile, nobody else asks about
/// it any more: it is ended by a task, since the gateway has just failed.
async fn end_if_closed(app: &App, payment: &Payment) {
    let told = async {
        if is_started(app, payment.id).await? {
            return Ok(());
        }
        // A key of its own: in this queue the payment's is that of what becomes of its money.
        let item = Item::now(Uuid::now_v7(), EndTrade { payment_id: payment.id });
        app.engine.enqueue(&[item]).await.map(drop).map_err(Error::from)
    };
    if let Err(error) = told.await {
        tracing::warn!(payment.id = %payment.id, %error, "trade of a closed payment may be open at its gateway until it expires");
    }
}

async fn is_started(app: &App, id: PaymentId) -> Result<bool> {
    let mut conn = app.db.acquire().await?;
    let payment = store::payment(&mut conn, id).await.context("reading a payment")?;
    Ok(payment.is_some_and(|payment| payment.status == PaymentStatus::Started))
}

/// What there is to do about an order that is to be paid.
enum Begun {
    /// Go on with this attempt, new or as it was; and its subject.
    Attempt(Box<Payment>, String),
    /// Its trade was opened a moment ago, and the buyer goes on so.
    Opened(Box<Payment>, PayWith),
    /// Another request is having it opened.
    BeingOpened,
    /// End this one, which goes another way.
    InTheWay(Box<Payment>),
}

async fn begin(app: &App, user: UserId, order: OrderId, way: &PaymentMethod) -> Result<Begun> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let order = orders::lock(&mut tx, order).await?.filter(|order| order.user_id == user).ok_or(Kind::NotFound)?;
    if order.status != Status::Unpaid {
        let refusal = refuse(Kind::OrderState, "only an unpaid order can be paid");
        return Err(refusal.with("order_status", order.status.name()).into());
    }
    if order.expires_at <= now {
        return Err(Kind::OrderExpired.into());
    }
    let most = amount_max(way.gateway.as_str()).context("a gateway without its largest amount")?;
    if order.payable > most {
        return Err(orders::amount_too_large(app, order.payable, most));
    }
    // The order of these courses that is being paid by another request of theirs comes first, or after this.
    if !auth::take_turn(&mut tx, user).await? {
        return Err(Kind::TokenInvalid.into());
    }
    let items = orders::items(&mut tx, order.id).await?;
    let courses: Vec<CourseId> = items.iter().map(|item| item.course_id).collect();
    orders::refuse_owned(&mut tx, user, &courses).await?;
    let title = items.first().map_or("", |item| item.title.as_str());
    let more = if items.len() > 1 { format!(" (+{})", items.len() - 1) } else { String::new() };
    let subject = title.chars().take(SUBJECT_CHARS).collect::<String>() + &more;
    let started = store::started_payments(&mut tx, order.id).await.context("reading an order's payments")?;
    if let Some(payment) = started.into_iter().find(|payment| payment.gateway == way.gateway) {
        let payment = Box::new(payment);
        if !way.is_of(&payment) {
            return Ok(Begun::InTheWay(payment));
        }
        return Ok(match asks::opening(app, &mut tx, payment.id, now).await? {
            Opening::Kept(with) => Begun::Opened(payment, with),
            Opening::Theirs => Begun::BeingOpened,
            Opening::Ours => {
                tx.commit().await.context("committing")?;
                Begun::Attempt(payment, subject)
            }
        });
    }
    if !orders::mark_pay_started(&mut tx, order.id, now).await? {
        return Err(Kind::OrderExpired.into());
    }
    let payment = Payment {
        id: PaymentId::new(),
        order_id: order.id,
        gateway: way.gateway,
        channel: way.channel,
        amount: order.payable,
        currency: CURRENCY.to_owned(),
        status: PaymentStatus::Started,
        gateway_trade_no: None,
        gateway_ref: None,
        payer_openid: way.openid.clone(),
        payer_address: way.address.clone(),
        expires_at: order.expires_at,
        query_count: 0,
    };
    let ask_at = now.plus(Duration::from_secs(app.config.payments.query_after_s));
    store::insert_payment(&mut tx, &payment, now, ask_at).await.context("inserting a payment")?;
    tx.commit().await.context("committing")?;
    Ok(Begun::Attempt(Box::new(payment), subject))
}

/// The order that a payment is for, as it is now; asks the gateway first when nothing has been heard, and nobody asked a
/// moment ago. Nothing that a
/// browser brings along is believed: it only names the payment.
pub async fn returned(app: &App, gateway: Gateway, payment: PaymentId) -> Result<orders::Order> {
    let mut conn = app.db.acquire().await?;
    let payment = store::payment(&mut conn, payment).await.context("reading a payment")?;
    let payment = payment.filter(|payment| payment.gateway == gateway).ok_or(Kind::NotFound)?;
    drop(conn);
    if payment.status == PaymentStatus::Started
        && asks::may_ask(app, payment.id).await?
        && let Err(error) = inquiry::ask(app, &payment).await
    {
        // The notify or a later question will tell.
        tracing::warn!(payment.id = %payment.id, %error, "payment could not be asked about");
    }
    let mut conn = app.db.acquire().await?;
    let order = orders::find(&mut conn, payment.order_id).await?;
    Ok(order.context("a payment without its order")?)
}

/// The gateway's own list of what moved on a day (`2026-11-20`, in its time zone).
pub async fn bill(app: &App, gateway: Gateway, date: &str) -> Result<DayBill> {
    gateway::bill(app, gateway, date).await
}
