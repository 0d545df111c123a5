//! Money that goes back: sent to the gateway until it says a last word, whoever of the two asks.
//!
//! The refund's row says what is owed. It is sent under its own number, which is the same in every try, so a try whose
//! answer was lost does no harm; once the gateway is at it ([`RefundAnswer::Pending`]) it is only asked about. A last
//! word comes as the answer to a try or as a notify, and both go through [`hear`]: confirmed is final, refused waits for
//! a person.

use std::time::Duration;

use anyhow::Context;

use super::model::{Refund, RefundAnswer, RefundId, growing};
use super::store::refunds;
use super::{gateway, late};
use crate::app::App;
use crate::error::{Kind, Result, retrying};
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
    /// The gateway refuses, and why.
    Failed(String),
    /// The gateway is at it.
    Pending,
    /// Nothing: the last word had been heard.
    Before,
}

/// Takes an answer into the books. The caller holds the rows of the order and of the payment.
pub(super) async fn hear(conn: &mut Conn, id: RefundId, answer: &RefundAnswer, now: At) -> Result<Heard> {
    match answer {
        RefundAnswer::Confirmed => {
            let moved = refunds::confirm(conn, id, now).await.context("confirming a refund")?;
            Ok(if moved { Heard::Confirmed } else { Heard::Before })
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

/// Says what was heard, after the commit.
pub(super) fn tell(id: RefundId, heard: &Heard) {
    let outcome = match heard {
        Heard::Confirmed => {
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
}

/// One try of one refund: sent, or asked about.
pub(super) async fn attempt(app: &App, refund: &Refund) -> Result<()> {
    let next = app.clock.now().plus(growing(BASE, refund.attempts.saturating_add(1)));
    let mut conn = app.db.acquire().await?;
    let mine = refunds::claim(&mut conn, refund, next).await.context("taking a refund")?;
    drop(conn);
    if !mine {
        return Ok(());
    }
    let answer = match refund.asked_at {
        None => gateway::refund(app, refund).await,
        Some(_) => gateway::query_refund(app, refund).await,
    };
    match answer {
        Ok(answer) => {
            let heard = retrying(|| take(app, refund, &answer)).await?;
            tell(refund.id, &heard);
        }
        Err(error) => {
            metrics::counter!("onrush_refunds_total", "outcome" => "failed").increment(1);
            if error.kind() == Kind::GatewayUnavailable {
                tracing::warn!(refund.id = %refund.id, %error, "refund could not be made yet");
            } else {
                tracing::error!(refund.id = %refund.id, %error, "refund was not understood; it is tried again, a person should look");
            }
            let kept: String = error.to_string().chars().take(ERROR_KEPT).collect();
            let mut conn = app.db.acquire().await?;
            refunds::note_error(&mut conn, refund.id, &kept).await.context("noting a refund's error")?;
        }
    }
    Ok(())
}

async fn take(app: &App, refund: &Refund, answer: &RefundAnswer) -> Result<Heard> {
    let mut tx = app.db.begin().await?;
    late::lock(&mut tx, refund.payment_id).await?;
    let heard = hear(&mut tx, refund.id, answer, app.clock.now()).await?;
    tx.commit().await?;
    Ok(heard)
}

/// The refund of this number, if it is one of this payment's. The caller holds the payment's row.
pub(super) async fn of_payment(conn: &mut Conn, id: RefundId, payment: super::PaymentId) -> Result<Option<Refund>> {
    let refund = refunds::find(conn, id).await.context("reading a refund")?;
    Ok(refund.filter(|refund| refund.payment_id == payment))
}
