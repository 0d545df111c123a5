//! Money that goes back: sent to the gateway until it says a last word, whoever of the two asks.
//!
//! The refund's row says what is owed. It is sent under its own number, which is the same in every try, so a try whose
//! answer was lost does no harm; once the gateway is at it ([`RefundAnswer::Pending`]) it is only asked about. A last
//! word comes as the answer to a try or as a notify, and both go through [`hear`]: confirmed is final, refused waits for
//! a person ([`retry`]). The last money of an order that is being refunded ends it, in the same transaction.
//!
//! Money set aside for refunds (`payments.refunded_fen`) is counted under the payment's lock when a refund is owed, and
//! never above what was paid, by a constraint. A refund that failed keeps it: it is still owed.

pub(super) mod order;
pub(super) mod retry;

use std::time::Duration;

use anyhow::Context;

use super::model::{Payment, Refund, RefundAnswer, RefundId, RefundStatus, growing};
use super::store::refunds;
use super::{gateway, late};
use crate::app::App;
use crate::error::{Kind, Result, retrying};
use crate::orders::{self, Order, Status};
use crate::platform::clock::At;
use crate::platform::db::Conn;

/// The pause after the first try of a refund; it doubles.
const BASE: Duration = Duration::from_secs(5);
/// Of an error, this much is kept, in characters.
const ERROR_KEPT: usize = 300;

/// What an answer changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// The money is back.
    Confirmed,
    /// It is, and it was the last of an order that is refunded now.
    Ended,
    /// The gateway refuses, and why.
    Failed(String),
    /// The gateway is at it.
    Pending,
    /// Nothing: the last word had been heard.
    Before,
}

/// Takes an answer into the books. The caller holds the rows of the order and of the payment.
pub(super) async fn hear(
    conn: &mut Conn,
    order: &Order,
    id: RefundId,
    answer: &RefundAnswer,
    now: At,
) -> Result<Heard> {
    match answer {
        RefundAnswer::Confirmed => {
            if !refunds::confirm(conn, id, now).await.context("confirming a refund")? {
                return Ok(Heard::Before);
            }
            Ok(if end_if_back(conn, order, now).await? { Heard::Ended } else { Heard::Confirmed })
        }
        RefundAnswer::Pending => {
            refunds::mark_asked(conn, id, now).await.context("noting that a refund is under way")?;
            Ok(Heard::Pending)
        }
        RefundAnswer::Refused(why) => {
            let why: String = why.chars().take(ERROR_KEPT).collect();
            let moved = refunds::fail(conn, id, &why, now).await.context("noting a refused refund")?;
            Ok(if moved { Heard::Failed(why) } else { Heard::Before })
        }
    }
}

/// Calls an order refunded that is being refunded and whose money is all back. The caller holds its row.
async fn end_if_back(conn: &mut Conn, order: &Order, now: At) -> Result<bool> {
    if order.status != Status::Refunding
        || refunds::count_unfinished(conn, order.id).await.context("looking for refunds under way")? > 0
    {
        return Ok(false);
    }
    let kept = refunds::points_kept(conn, order.id).await.context("counting points that do not come back")?;
    orders::finish_refund(conn, order, kept, now).await?;
    Ok(true)
}

/// Says what was heard, after the commit.
pub(super) fn tell(id: RefundId, heard: &Heard) {
    let outcome = match heard {
        Heard::Confirmed | Heard::Ended => {
            tracing::info!(refund.id = %id, "refund confirmed");
            "confirmed"
        }
        Heard::Failed(why) => {
            tracing::error!(refund.id = %id, reason = why, "refund was refused by the gateway; a person must look");
            "refused"
        }
        Heard::Pending => "pending",
        Heard::Before => return,
    };
    metrics::counter!("onrush_refunds_total", "outcome" => outcome).increment(1);
    if *heard == Heard::Ended {
        count_ended();
    }
}

fn count_ended() {
    metrics::counter!("onrush_orders_total", "outcome" => "refunded").increment(1);
}

/// One try of one refund: sent, or asked about.
pub(super) async fn attempt(app: &App, refund: &Refund) -> Result<()> {
    let next = app.clock.now().plus(growing(BASE, refund.attempts.saturating_add(1)));
    let mine = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        Ok(refunds::claim(&mut conn, refund, next).await.context("taking a refund")?)
    });
    if !mine.await? {
        return Ok(());
    }
    let answer = match refund.asked_at {
        None => gateway::refund(app, refund).await,
        Some(_) => gateway::go_on_with_refund(app, refund).await,
    };
    match answer {
        Ok(answer) => {
            // As the claim left it.
            let asked = AskedState { status: RefundStatus::Pending, attempts: refund.attempts.saturating_add(1) };
            let heard = retrying(|| take(app, refund, asked, &answer)).await?;
            tell(refund.id, &heard);
        }
        Err(error) => {
            metrics::counter!("onrush_refunds_total", "outcome" => "failed").increment(1);
            if error.kind() == Kind::GatewayOff {
                tracing::debug!(refund.id = %refund.id, %error, "refund cannot be made");
            } else if error.kind() == Kind::GatewayUnavailable {
                tracing::warn!(refund.id = %refund.id, %error, "refund could not be made yet");
            } else {
                tracing::error!(refund.id = %refund.id, %error, "refund was not understood; it is tried again, a person should look");
            }
            let kept: String = error.to_string().chars().take(ERROR_KEPT).collect();
            let noted = retrying(|| async {
                let mut conn = app.db.acquire().await?;
                Ok(refunds::note_error(&mut conn, refund.id, &kept).await.context("noting a refund's error")?)
            });
            noted.await?;
        }
    }
    Ok(())
}

/// Asks about a refund of which the gateway's bill says that it was made, whatever it said before. Anything but a yes
/// changes nothing: whether it is to be sent again is not decided here.
pub(super) async fn ask(app: &App, refund: &Refund) -> Result<()> {
    let answer = gateway::query_refund(app, refund).await?;
    if answer == RefundAnswer::Confirmed {
        let asked = AskedState { status: refund.status, attempts: refund.attempts };
        let heard = retrying(|| take(app, refund, asked, &answer)).await?;
        tell(refund.id, &heard);
    }
    Ok(())
}

/// How a refund stood when its gateway was asked. Every question to the gateway and every retry by a person counts as an
/// attempt, so the same again means that nothing was heard meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AskedState {
    status: RefundStatus,
    attempts: i32,
}

/// Takes the answer to our own question into the books.
async fn take(app: &App, refund: &Refund, asked: AskedState, answer: &RefundAnswer) -> Result<Heard> {
    let mut tx = app.db.begin().await?;
    let (order, payment) = late::lock(&mut tx, refund.payment_id).await?;
    // Locked, so that no other try of it is claimed between this look and what is written.
    let now = refunds::lock(&mut tx, refund.id).await.context("locking a refund")?.context("a refund vanished")?;
    let overtaken = asked != AskedState { status: now.status, attempts: now.attempts };
    // What it says may be older than what was heard while it was on its way: that the refund has failed, say. Only where a
    // refund that was made stays made is a yes worth the same at any time.
    if overtaken && (payment.gateway.may_fail_made_refunds() || *answer != RefundAnswer::Confirmed) {
        tracing::info!(refund.id = %refund.id, ?answer, "answer about a refund was overtaken, and is passed over");
        return Ok(Heard::Before);
    }
    let heard = hear(&mut tx, &order, refund.id, answer, app.clock.now()).await?;
    tx.commit().await.context("committing")?;
    Ok(heard)
}

/// What a message about a refund of ours is worth.
pub(super) enum Address {
    /// It is taken into the books.
    Books,
    /// It is passed over, and why.
    Nobody(String),
    /// A person must look, and why.
    Person(String),
}

/// Whom a message about a refund of this payment is for. The caller holds the payment's row.
pub(super) async fn addressed(
    conn: &mut Conn,
    id: RefundId,
    payment: &Payment,
    answer: &RefundAnswer,
) -> Result<Address> {
    let refund = refunds::find(conn, id).await.context("reading a refund")?;
    let Some(refund) = refund.filter(|refund| refund.payment_id == payment.id) else {
        return Ok(Address::Person(format!("refund {id} is none of this payment's")));
    };
    Ok(match (refund.status, answer) {
        // Its money may have gone back twice.
        (RefundStatus::Replaced, RefundAnswer::Confirmed) => {
            Address::Person(format!("refund {id} was made all the same, and another one in its place"))
        }
        // The buyer's bank sent it back: the books say that the buyer has it, and nobody would look again.
        (RefundStatus::Confirmed, RefundAnswer::Refused(why)) => {
            Address::Person(format!("refund {id} was confirmed and has failed since: {why:.200}"))
        }
        (RefundStatus::Failed, RefundAnswer::Confirmed) if payment.gateway.may_fail_made_refunds() => {
            Address::Nobody(format!("refund {id} has failed since"))
        }
        _ => Address::Books,
    })
}

/// Ends orders that are being refunded although all their money is back: another version confirmed the last of it.
pub(super) async fn end_orders(app: &App, limit: u32) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    let owed = refunds::orders_to_finish(&mut conn, limit).await.context("looking for orders to be refunded")?;
    drop(conn);
    let mut failed = None;
    for payment in owed {
        let ended = retrying(|| async {
            let mut tx = app.db.begin().await?;
            let (order, _) = late::lock(&mut tx, payment).await?;
            let ended = end_if_back(&mut tx, &order, app.clock.now()).await?;
            tx.commit().await.context("committing")?;
            Ok(ended)
        });
        match ended.await {
            Ok(true) => count_ended(),
            Ok(false) => {}
            // Those behind it are not held up; the pass is told of it.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}
