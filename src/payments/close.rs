//! The one way to close an order, and the sweep that closes all that are due.
//!
//! An order without a started payment is closed by one guarded update, many at once. One with a started payment is
//! closed only when nobody can pay it any more: its gateway is asked first, and closes the trade.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::gateway::{self, CloseAnswer, PaymentOutcome};
use super::model::{Gateway, Payment, PaymentId, PaymentStatus};
use super::{settle, store};
use crate::app::App;
use crate::engine::Task;
use crate::error::{Kind, Result, refuse, retrying};
use crate::orders::{self, Closing, OrderId, Status};
use crate::platform::clock::At;

/// How often closing begins again because another payment was started meanwhile.
const ROUNDS: usize = 5;
/// Due orders of one page of the sweep.
const SWEEP_PAGE: u32 = 500;
/// As [`SWEEP_PAGE`], of orders whose gateways must be asked: each takes as long as its gateway does.
const STARTED_PAGE: u32 = 64;
/// Orders that are closed at once, each asking its gateway.
pub const ASKED_AT_ONCE: usize = 16;
/// A sweep in which a gateway failed this often and never answered asks it no more: the next one will.
const FAILURES_MAX: usize = 2 * ASKED_AT_ONCE;

/// How closing an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It is closed now.
    Now,
    /// It was in this state already, or came to be while its gateway was asked: paid.
    Was(Status),
    /// Its time to pay is not over before this.
    NotDue(At),
}

/// Closes an unpaid order. A gateway that cannot be asked refuses with `gateway_unavailable`, one that is
/// switched off with `gateway_off`, and the order stays.
pub async fn close_order(app: &App, id: OrderId, closing: Closing) -> Result<Closed> {
    for _ in 0..ROUNDS {
        let mut conn = app.db.acquire().await?;
        let order = orders::find(&mut conn, id).await?.ok_or(Kind::NotFound)?;
        if order.status != Status::Unpaid {
            return Ok(Closed::Was(order.status));
        }
        // Before anything is ended at a gateway.
        if closing == Closing::TimedOut && !orders::is_due(&mut conn, id, &app.clock).await? {
            return Ok(Closed::NotDue(order.expires_at));
        }
        let started = store::started_payments(&mut conn, id).await.context("reading an order's payments")?;
        drop(conn);
        // Before any of them is ended: an order that cannot be closed keeps those that can be paid.
        for payment in &started {
            gateway::require_on(app, payment.gateway)?;
        }
        for payment in &started {
            end(app, payment).await?;
        }
        if let Some(closed) = retrying(|| close_once(app, id, closing)).await? {
            if closed == Closed::Now {
                orders::announce_closed(app, vec![id]);
            }
            return Ok(closed);
        }
    }
    Err(refuse(Kind::Unavailable, "payments of the order keep being started").retry_after(1).into())
}

/// Closes the order in one transaction; `None` when the buyer has started another payment since the last look.
async fn close_once(app: &App, id: OrderId, closing: Closing) -> Result<Option<Closed>> {
    let mut tx = app.db.begin().await?;
    let order = orders::lock(&mut tx, id).await?.ok_or(Kind::NotFound)?;
    if order.status != Status::Unpaid {
        return Ok(Some(Closed::Was(order.status)));
    }
    // A payment is started under the same lock, so none can begin between this look and the commit.
    if !store::started_payments(&mut tx, id).await.context("reading an order's payments")?.is_empty() {
        return Ok(None);
    }
    if !orders::close(&mut tx, id, closing, &app.clock).await? {
        return Ok(Some(Closed::NotDue(order.expires_at)));
    }
    tx.commit().await.context("committing")?;
    Ok(Some(Closed::Now))
}

/// Ends a started payment: settled when there is money, else closed at the gateway and then here.
pub(super) async fn end(app: &App, payment: &Payment) -> Result<()> {
    let known = end_at_gateway(app, payment).await?;
    close_payment(app, payment.id).await?;
    if !known {
        // `pay` opens the trade after its commit and then looks whether the payment is still started. It looked before
        // this close, and the trade is found now; or it looks after, and ends the trade itself.
        end_at_gateway(app, payment).await?;
    }
    Ok(())
}

/// A payment that its gateway takes no more money for is over. It may meet a message that settles it.
pub(super) async fn close_payment(app: &App, id: PaymentId) -> Result<()> {
    retrying(|| async {
        let mut conn = app.db.acquire().await?;
        store::close_payment(&mut conn, id, app.clock.now()).await.context("closing a payment")?;
        Ok(())
    })
    .await
}

/// Lets nobody pay a payment that is closed here; false when its gateway has not heard of it.
pub(super) async fn end_closed(app: &App, id: PaymentId) -> Result<bool> {
    let mut conn = app.db.acquire().await?;
    let payment = store::payment(&mut conn, id).await.context("reading a payment")?;
    drop(conn);
    match payment.filter(|payment| payment.status == PaymentStatus::Closed) {
        Some(payment) => end_at_gateway(app, &payment).await,
        None => Ok(true),
    }
}

/// Ends the trade of a payment that was closed while its gateway failed to open the trade, and perhaps opened it all the
/// same. Two of one payment do no harm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndTrade {
    /// The payment.
    pub payment_id: PaymentId,
}

impl Task for EndTrade {
    const NAME: &'static str = "payments.end_trade";
    const QUEUE: &'static str = "late";
}

/// Settles a payment or lets nobody pay it any more; false when its gateway has not heard of it.
pub(super) async fn end_at_gateway(app: &App, payment: &Payment) -> Result<bool> {
    match gateway::query(app, payment).await? {
        // Flagged money does not pay the order, so the order goes its way; a person decides about the money.
        PaymentOutcome::Paid(message, body) => {
            settle::settle(app, payment.gateway, &message, &body).await.map(|_| true)
        }
        PaymentOutcome::Over => Ok(true),
        PaymentOutcome::Waiting => match gateway::close(app, payment).await? {
            CloseAnswer::Closed => Ok(true),
            CloseAnswer::Unknown => Ok(false),
            // Paid between the question and the close.
            CloseAnswer::AlreadyPaid => match gateway::query(app, payment).await? {
                PaymentOutcome::Paid(message, body) => {
                    settle::settle(app, payment.gateway, &message, &body).await.map(|_| true)
                }
                _ => Err(gateway::unavailable(payment.gateway, "it calls a trade paid and then not")),
            },
        },
    }
}

/// Closes every order that is due, page by page; ends early when the process stops. Returns how many were due.
pub async fn sweep_due(app: &App) -> anyhow::Result<u64> {
    let stopping = || app.loops.stop_signal().is_cancelled();
    let mut count = 0;
    while !stopping() {
        let mut conn = app.db.acquire().await?;
        let due = orders::due_unstarted(&mut conn, app.clock.now(), SWEEP_PAGE).await?;
        drop(conn);
        let moved = orders::time_out_unstarted(app, &due).await?;
        count += moved.len() as u64;
        // A page in which nothing moved is held by somebody else: the next sweep looks again.
        if due.len() < SWEEP_PAGE as usize || moved.is_empty() {
            break;
        }
    }
    let (gateways, mut after) = (SilentGateways::default(), None);
    while !stopping() {
        let mut conn = app.db.acquire().await?;
        let due = orders::due_started(&mut conn, app.clock.now(), after, STARTED_PAGE).await?;
        drop(conn);
        count += due.len() as u64;
        let ids: Vec<OrderId> = due.iter().map(|(_, id)| *id).collect();
        let page = DueOrders::read(app, &ids).await?;
        let each = async |id: OrderId| {
            // Tried again by the next sweep.
            if let Some(Err(error)) = page.time_out(app, &gateways, id).await {
                tracing::warn!(order.no = %id, %error, "due order could not be closed yet");
            }
        };
        stream::iter(ids).for_each_concurrent(ASKED_AT_ONCE, each).await;
        // The next page begins behind this one: orders that cannot be closed now do not hold up those after them.
        after = due.last().copied();
        if due.len() < STARTED_PAGE as usize {
            break;
        }
    }
    Ok(count)
}

/// What one pass has learned about the gateways: of each, how often it failed and how often it answered.
#[derive(Default)]
pub struct SilentGateways(Mutex<HashMap<Gateway, (usize, usize)>>);

impl SilentGateways {
    /// A gateway answered, or did not.
    pub fn heard(&self, gateway: Gateway, well: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (failures, answers) = counts.entry(gateway).or_default();
        *(if well { answers } else { failures }) += 1;
    }

    /// Whether asking it is in vain for now.
    pub fn is_silent(&self, gateway: Gateway) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&gateway).is_some_and(|(failures, answers)| *answers == 0 && *failures >= FAILURES_MAX)
    }

    /// An order with payments that were started at these was closed, or could not be.
    fn heard_of(&self, of: &[Gateway], closed: &Result<Closed>) {
        let well = match closed {
            Ok(Closed::NotDue(_)) => return,
            Err(error) if error.kind() == Kind::GatewayOff => return,
            closed => closed.is_ok(),
        };
        of.iter().for_each(|gateway| self.heard(*gateway, well));
    }
}

/// Orders that are due, and at which gateways payments of theirs were started.
pub(super) struct DueOrders {
    gateways: HashMap<OrderId, Vec<Gateway>>,
}

impl DueOrders {
    pub(super) async fn read(app: &App, orders: &[OrderId]) -> Result<Self> {
        let mut due = Self { gateways: HashMap::new() };
        if !orders.is_empty() {
            let mut conn = app.db.acquire().await?;
            let started = store::started_at(&mut conn, orders).await.context("reading where payments were started")?;
            for at in started {
                due.gateways.entry(at.order_id).or_default().push(at.gateway);
            }
        }
        Ok(due)
    }

    /// Times out one of them; `None` when one of its gateways is switched off ([`disabled_gateways`](super::disabled_gateways) tells of that) or has been
    /// silent in this pass. However many there are of those, the orders behind them get their turn.
    pub(super) async fn time_out(&self, app: &App, heard: &SilentGateways, id: OrderId) -> Option<Result<Closed>> {
        let of = self.gateways.get(&id).map_or(&[][..], Vec::as_slice);
        if of.iter().any(|gateway| !gateway::is_on(app, *gateway) || heard.is_silent(*gateway)) {
            return None;
        }
        let closed = close_order(app, id, Closing::TimedOut).await;
        heard.heard_of(of, &closed);
        Some(closed)
    }
}
