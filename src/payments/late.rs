//! Money that came for an order that was dead or paid already, or all of whose courses the buyer has by another one: the
//! order is opened again, or the money goes back.

use anyhow::{Context, anyhow};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::model::{CAUSE_LATE, Payment, PaymentId, RefundId, RefundReason};
use super::store::{self, refunds};
use crate::app::App;
use crate::engine::Task;
use crate::error::{Error, Result, retrying};
use crate::orders::{self, Order};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};

/// Decides what becomes of late money. Keyed by the payment's id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolveLate {
    /// The payment; its `resolution` is `owed` until this has run.
    pub payment_id: PaymentId,
}

impl Task for ResolveLate {
    const NAME: &'static str = "payments.resolve_late";
    const QUEUE: &'static str = "late";
}

/// What else an order that gave back what it held must hold again before it is opened again (a seckill's unit), in the
/// same transaction; false: it cannot be held again.
pub type RetakePart = for<'a> fn(&'a mut Conn, &'a Order, At) -> BoxFuture<'a, Result<bool>>;

/// What became of late money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved {
    /// The order was opened again and is paid.
    Reopened,
    /// The money goes back.
    Refund,
    /// It was decided before.
    Before,
}

/// Decides one payment.
pub(super) async fn resolve(app: &App, id: PaymentId, retake: RetakePart) -> Result<Resolved> {
    match retrying(|| reopen(app, id, retake)).await? {
        Try::Done(resolved) => {
            if resolved == Resolved::Reopened {
                tracing::info!(payment.id = %id, "late money opened its order again");
            }
            Ok(resolved)
        }
        // What the attempt to open it again had taken was rolled back with its transaction.
        Try::Refund(reason) => retrying(|| give_back(app, id, reason)).await,
    }
}

/// How the attempt to open an order again ended.
enum Try {
    Done(Resolved),
    Refund(RefundReason),
}

async fn reopen(app: &App, id: PaymentId, retake: RetakePart) -> Result<Try> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let (order, payment) = lock(&mut tx, id).await?;
    if !store::resolve(&mut tx, payment.id, "order").await.context("resolving a payment")? {
        return Ok(Try::Done(Resolved::Before));
    }
    if !order.status.is_dead() {
        return Ok(Try::Refund(RefundReason::PaidTwice));
    }
    // What it has not given back yet it still holds: `orders::reopen` sees to that for coupon and points.
    let whole = orders::reopen(&mut tx, &order, now).await?
        && (order.released_at.is_none() || retake(&mut tx, &order, now).await?);
    if !whole {
        return Ok(Try::Refund(RefundReason::Late));
    }
    tx.commit().await.context("committing")?;
    orders::announce_paid(app, order.id);
    Ok(Try::Done(Resolved::Reopened))
}

async fn give_back(app: &App, id: PaymentId, reason: RefundReason) -> Result<Resolved> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let (order, payment) = lock(&mut tx, id).await?;
    if !store::resolve(&mut tx, payment.id, "refund").await.context("resolving a payment")? {
        return Ok(Resolved::Before);
    }
    let new = refunds::NewRefund {
        id: RefundId::new(),
        payment: &payment,
        amount: payment.amount,
        reason: reason.as_str(),
        cause: CAUSE_LATE,
        note: "",
    };
    match refunds::insert(&mut tx, &new, now).await {
        Ok(()) => {
            if !refunds::set_aside(&mut tx, payment.id, payment.amount).await.context("setting money aside")? {
                return Err(anyhow!("late money of payment {} has gone back in part", payment.id).into());
            }
        }
        // It is owed already: once is enough.
        Err(error) if db::violated(&error).as_deref() == Some("uq_refunds_cause") => {}
        Err(error) => return Err(Error::Internal(anyhow::Error::new(error).context("inserting a refund"))),
    }
    tx.commit().await.context("committing")?;
    tracing::info!(payment.id = %id, order.no = %order.id, reason = reason.as_str(), "late money goes back");
    Ok(Resolved::Refund)
}

/// The order's row before the payment's, as everybody locks them.
pub(super) async fn lock(conn: &mut Conn, id: PaymentId) -> Result<(Order, Payment)> {
    let missing = || anyhow!("payment {id} or its order is not there");
    let payment = store::payment(conn, id).await.context("reading a payment")?.ok_or_else(missing)?;
    let order = orders::lock(conn, payment.order_id).await?.ok_or_else(missing)?;
    let payment = store::lock_payment(conn, id).await.context("locking a payment")?.ok_or_else(missing)?;
    Ok((order, payment))
}
