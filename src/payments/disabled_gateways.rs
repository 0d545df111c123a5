//! A gateway that is switched off while payments or refunds of it are open.
//!
//! An order whose payment was started there can neither be closed (its gateway has to say that nobody can pay it any
//! more) nor can its refunds be sent. Nothing of it is lost: switched on again, with its keys, it is asked and closed and
//! refunded as if it had been silent for a while. Until then it is told, and in the end a person may give such payments
//! up one by one: [`abandon`].

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde_json::json;

use super::gateway;
use super::late;
use super::model::{Gateway, PaymentId, PaymentStatus};
use super::store::{self, disabled_gateways};
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::error::{Kind, Result, refuse, retrying};

/// What is open at a gateway that is switched off here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenAtDisabled {
    /// Where.
    pub gateway: Gateway,
    /// Payments that were started and have not ended, as far as they were counted.
    pub payments: i64,
    /// Refunds that are to be sent, or that the gateway is at.
    pub refunds: i64,
}

/// What is open at each gateway that is switched off here; nothing said of those where nothing is.
pub async fn open_at_disabled(app: &App) -> Result<Vec<OpenAtDisabled>> {
    Ok(count(app).await?.into_iter().filter(|open| open.payments + open.refunds > 0).collect())
}

async fn count(app: &App) -> Result<Vec<OpenAtDisabled>> {
    let mut conn = app.db.acquire().await?;
    let switched_off = || Gateway::ALL.into_iter().filter(|gateway| !gateway::is_on(app, *gateway));
    if switched_off().next().is_none() {
        return Ok(Vec::new());
    }
    let payments = disabled_gateways::count_started(&mut conn).await.context("counting started payments")?;
    let refunds = disabled_gateways::count_pending_refunds(&mut conn).await.context("counting pending refunds")?;
    let of = |counts: &[disabled_gateways::Open], wanted| {
        counts.iter().find(|at| at.gateway == wanted).map_or(0, |at| at.open)
    };
    let open = |gateway| OpenAtDisabled { gateway, payments: of(&payments, gateway), refunds: of(&refunds, gateway) };
    Ok(switched_off().map(open).collect())
}

/// SilentGateways of which this process has told.
#[derive(Default)]
struct ReportedGateways(Mutex<HashSet<Gateway>>);

/// Says loudly, once, where something is open at a gateway that is switched off, and keeps its gauge.
pub async fn watch(app: &App) -> anyhow::Result<()> {
    let told = app.local::<ReportedGateways>();
    for OpenAtDisabled { gateway, payments, refunds } in count(app).await? {
        for (what, open) in [("payments", payments), ("refunds", refunds)] {
            metrics::gauge!("onrush_gateway_off_open", "gateway" => gateway.as_str(), "what" => what).set(open as f64);
        }
        let mut told = told.0.lock().unwrap_or_else(PoisonError::into_inner);
        if payments + refunds == 0 {
            told.remove(&gateway);
        } else if told.insert(gateway) {
            tracing::error!(
                gateway = gateway.as_str(),
                payments,
                refunds,
                "payment gateway is switched off while payments or refunds of it are open: their orders are not closed and \
                 the money does not go back. Switch it on again, with its keys, until nothing is open \
                 (docs/PAYMENTS.md, \"Switching a gateway off\")"
            );
        }
    }
    Ok(())
}

/// Gives up a started payment at a gateway that is switched off and will not come back: it is over, without the gateway
/// having been asked, so that its order can be closed. Money that comes for it all the same is late money. One that is
/// over already stays so.
pub async fn abandon(app: &App, by: UserId, id: PaymentId, reason: &str) -> Result<()> {
    let abandoned = retrying(|| abandon_once(app, by, id, reason)).await?;
    if abandoned {
        tracing::warn!(payment.id = %id, "payment was given up without asking its gateway, which is switched off");
    }
    Ok(())
}

async fn abandon_once(app: &App, by: UserId, id: PaymentId, reason: &str) -> Result<bool> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    store::payment(&mut tx, id).await.context("reading a payment")?.ok_or(Kind::NotFound)?;
    // As a message does that settles it: whichever of the two comes first, the other sees what it did.
    let (order, payment) = late::lock(&mut tx, id).await?;
    match payment.status {
        PaymentStatus::Closed => return Ok(false),
        PaymentStatus::Paid => return Err(refuse(Kind::PaymentState, "it has been paid").into()),
        PaymentStatus::Started if gateway::is_on(app, payment.gateway) => {
            let why = format!("{} is switched on: it is asked, and ends the payment", payment.gateway.as_str());
            return Err(refuse(Kind::PaymentState, why).into());
        }
        PaymentStatus::Started => {}
    }
    if !store::close_payment(&mut tx, id, now).await.context("closing a payment")? {
        return Err(anyhow::anyhow!("payment {id} changed under its lock").into());
    }
    let act = Act { by, action: "payment.abandon", target: &id.to_string() };
    let details = json!({ "gateway": payment.gateway, "order_no": order.id, "reason": reason });
    audit::done(&mut tx, act, &details, now).await?;
    tx.commit().await.context("committing")?;
    Ok(true)
}
