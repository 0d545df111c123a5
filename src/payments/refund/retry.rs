//! What a person does about a refund that the gateway refused.

use anyhow::Context;
use serde_json::json;

use super::refunds;
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::error::{Kind, Result, refuse, retrying};
use crate::payments::model::{RefundId, RefundStatus};
use crate::payments::{gateway, late};

/// Sends a refused refund once more: under its own number, which never gives money back twice, or as another refund when
/// the gateway is done with that number for good. One that waits for its next try is tried now. Gives the refund that is
/// owed now; a repeat gives the same.
pub async fn retry(app: &App, by: UserId, id: RefundId, new_number: bool) -> Result<RefundId> {
    retrying(|| retry_once(app, by, id, new_number)).await
}

async fn retry_once(app: &App, by: UserId, id: RefundId, new_number: bool) -> Result<RefundId> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let found = refunds::find(&mut tx, id).await.context("reading a refund")?.ok_or(Kind::NotFound)?;
    let (_, payment) = late::lock(&mut tx, found.payment_id).await?;
    let refund = refunds::lock(&mut tx, id).await.context("locking a refund")?.context("a refund vanished")?;
    if refund.status == RefundStatus::Failed {
        // It would be pending, and nothing would be sent.
        gateway::require_on(app, payment.gateway)?;
    }
    let owed = match (refund.status, refund.replaced_by) {
        (RefundStatus::Replaced, Some(other)) => return Ok(other),
        (RefundStatus::Failed, _) if new_number => {
            let (reason, note) = refunds::reason_of(&mut tx, id).await.context("reading a refund's reason")?;
            let other = RefundId::new();
            let cause = other.to_string();
            let new = refunds::NewRefund {
                id: other,
                payment: &payment,
                amount: refund.amount,
                reason: &reason,
                cause: &cause,
                note: &note,
            };
            refunds::insert(&mut tx, &new, now).await.context("replacing a refund")?;
            refunds::mark_replaced(&mut tx, id, other).await.context("noting a replaced refund")?;
            other
        }
        (RefundStatus::Failed, _) => {
            refunds::revive(&mut tx, id, now).await.context("sending a refund again")?;
            id
        }
        (RefundStatus::Pending, _) if !new_number => {
            if !refunds::make_due(&mut tx, id, now).await.context("sending a refund now")? {
                return Ok(id);
            }
            id
        }
        _ if new_number => {
            return Err(refuse(Kind::RefundState, "only a failed refund is made under another number").into());
        }
        // It is done.
        _ => return Ok(id),
    };
    let act = Act { by, action: "refund.retry", target: &id.to_string() };
    audit::done(&mut tx, act, &json!({ "new_number": new_number, "refund_no": owed }), now).await?;
    tx.commit().await.context("committing")?;
    Ok(owed)
}
