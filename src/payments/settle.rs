//! What a gateway says becomes the state of a payment and its order: one function for every gateway and every way to
//! hear of money.
//!
//! Everything happens in one transaction under the lock of the order's row. The message is kept in the same
//! transaction, unique by the gateway's id of it: so "seen" is "handled", and a copy changes nothing.

use anyhow::Context;
use axum::http::HeaderMap;
use serde_json::json;

use super::gateway;
use super::late::ResolveLate;
use super::model::{
    Gateway, Message, NotificationId, Payment, PaymentId, PaymentStatus, RefundId, Said, Verdict, judge,
};
use super::refund::order::give_back_twice;
use super::refund::{self, Address, Heard};
use super::store::{self, NewNotification};
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::{self, UserId};
use crate::catalogue::CourseId;
use crate::engine::Item;
use crate::error::{Error, Kind, Result, retrying};
use crate::orders::{self, BoughtOtherwise, OrderId, Status};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};

/// What a message did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It paid the order.
    Paid(OrderId),
    /// Its money came for an order that was dead or paid already, or all of whose courses the buyer has by another one:
    /// that is being decided.
    Late(PaymentId),
    /// It said what became of a refund.
    Refund(RefundId),
    /// Nothing: it was handled before, or its payment was.
    Repeated,
    /// Nothing: it brought no money.
    Ignored,
    /// Nothing: it does not fit our books and is kept for a person.
    Flagged,
    /// Nothing, and it was not kept: there is no such payment (yet).
    Unknown,
}

impl Settled {
    /// Whether the gateway may take it as handled; else it is to send it again.
    pub fn is_handled(self) -> bool {
        !matches!(self, Self::Flagged | Self::Unknown)
    }

    /// As the database and the metrics have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paid(_) => "settled",
            Self::Late(_) => "late",
            Self::Refund(_) => "refund",
            Self::Repeated => "repeated",
            Self::Ignored => "ignored",
            Self::Flagged => "flagged",
            Self::Unknown => "unknown",
        }
    }
}

/// A callback as it came over HTTP.
pub async fn notified(app: &App, gateway: Gateway, headers: &HeaderMap, body: &[u8]) -> Result<Settled> {
    let message = gateway::verify(app, gateway, headers, body).inspect_err(|_| count(gateway, "invalid"))?;
    settle(app, gateway, &message, body).await
}

/// Settles a verified message. `body` is what is kept of it.
pub(super) async fn settle(app: &App, gateway: Gateway, message: &Message, body: &[u8]) -> Result<Settled> {
    let settled = retrying(|| settle_once(app, gateway, message, body)).await?;
    count(gateway, settled.name());
    announce(app, settled);
    Ok(settled)
}

/// After the commit. What fails here is owed by the rows: the sweeps drive it again.
fn announce(app: &App, settled: Settled) {
    match settled {
        Settled::Paid(order) => orders::announce_paid(app, order),
        Settled::Late(payment_id) => {
            let telling = app.clone();
            orders::tell(app, async move { enqueue_late(&telling, &[payment_id]).await });
        }
        _ => {}
    }
}

fn count(gateway: Gateway, outcome: &'static str) {
    metrics::counter!("onrush_payment_notifications_total", "gateway" => gateway.as_str(), "outcome" => outcome)
        .increment(1);
}

/// Has late money decided.
pub(super) async fn enqueue_late(app: &App, payments: &[PaymentId]) -> anyhow::Result<()> {
    let items: Vec<Item<ResolveLate>> =
        payments.iter().map(|&payment_id| Item::now(payment_id.uuid(), ResolveLate { payment_id })).collect();
    app.engine.enqueue(&items).await.map(|_| ())
}

/// What a message means for our books, whose rows are locked.
struct Judged {
    order: orders::Order,
    payment: Payment,
    settled: Settled,
    /// Why, for a person.
    detail: String,
    /// Of the order that is paid, courses that its buyer has by another one.
    twice: Vec<CourseId>,
}

/// Locks what a message is about and judges it; `None` when there is no such payment (yet).
async fn judge_locked(app: &App, conn: &mut Conn, gateway: Gateway, message: &Message) -> Result<Option<Judged>> {
    let Some(id) = message.payment else { return Ok(None) };
    let found = store::payment(conn, id).await.context("reading a payment")?;
    let Some(found) = found.filter(|payment| payment.gateway == gateway) else { return Ok(None) };
    let order = orders::lock(conn, found.order_id).await?.context("a payment without its order")?;
    let payment = store::lock_payment(conn, id).await.context("locking a payment")?.context("a payment vanished")?;
    let verdict = judge(message, &payment, gateway::merchant(app, gateway)?);
    let to_be_paid = matches!(verdict, Verdict::Settle) && order.status == Status::Unpaid;
    let bought = if to_be_paid {
        // Of two orders that are paid at once, one sees the other. The account may be gone: the money came all the same.
        auth::take_turn(conn, order.user_id).await?;
        orders::bought_otherwise(conn, &order).await?
    } else {
        BoughtOtherwise { courses: Vec::new(), all: false }
    };
    let (settled, detail) = match verdict {
        // It stays unpaid until its time is over, and its money goes back.
        Verdict::Settle if bought.all => (Settled::Late(payment.id), "its courses were bought otherwise".to_owned()),
        Verdict::Settle if to_be_paid => (Settled::Paid(order.id), String::new()),
        Verdict::Settle => (Settled::Late(payment.id), format!("the order is {}", order.status.name())),
        Verdict::Repeat => (Settled::Repeated, String::new()),
        Verdict::Ignore => (Settled::Ignored, String::new()),
        Verdict::Flag(why) => (Settled::Flagged, why),
        // Which refund it is about is found by asking about all that are under way.
        Verdict::Refund(None, _) => (Settled::Ignored, "a refund without our number".to_owned()),
        Verdict::Refund(Some(refund), answer) => match refund::addressed(conn, refund, &payment, &answer).await? {
            Address::Books => (Settled::Refund(refund), String::new()),
            Address::Nobody(why) => (Settled::Ignored, why),
            Address::Person(why) => (Settled::Flagged, why),
        },
    };
    Ok(Some(Judged { order, payment, settled, detail, twice: bought.courses }))
}

async fn settle_once(app: &App, gateway: Gateway, message: &Message, body: &[u8]) -> Result<Settled> {
    if message.said == Said::Nothing {
        return Ok(Settled::Ignored);
    }
    let mut tx = app.db.begin().await?;
    let Some(judged) = judge_locked(app, &mut tx, gateway, message).await? else {
        return Ok(unknown(gateway, message));
    };
    let said = serde_json::to_string(message).context("writing down what a message said")?;
    let new = NewNotification {
        gateway,
        notify_id: &message.notify_id,
        payment: judged.payment.id,
        outcome: judged.settled.name(),
        detail: &judged.detail,
        body,
        message: &said,
    };
    match store::insert_notification(&mut tx, &new, app.clock.now()).await {
        Ok(()) => {}
        Err(error) if db::violated(&error).as_deref() == Some("uq_payment_notifications_id") => {
            return copy(&mut tx, gateway, message).await;
        }
        Err(error) => return Err(Error::Internal(anyhow::Error::new(error).context("keeping a notification"))),
    }
    let heard = move_on(app, &mut tx, &judged, message).await?;
    tx.commit().await.context("committing")?;
    tell(gateway, message, &judged, heard.as_ref());
    Ok(judged.settled)
}

/// Says what a message did, after the commit.
fn tell(gateway: Gateway, message: &Message, judged: &Judged, heard: Option<&Heard>) {
    if let (Settled::Refund(id), Some(heard)) = (judged.settled, heard) {
        refund::tell(id, heard);
    }
    if matches!(judged.settled, Settled::Paid(_)) && !judged.twice.is_empty() {
        tracing::info!(order.no = %judged.order.id, courses = judged.twice.len(), "courses were bought by another order: what was paid for them goes back");
    }
    if judged.settled == Settled::Flagged {
        tracing::error!(
            gateway = gateway.as_str(),
            payment.id = %judged.payment.id,
            order.no = %judged.order.id,
            notify.id = message.notify_id,
            reason = judged.detail,
            "payment message does not fit our books; nothing was changed, a person must look"
        );
    }
}

/// What became of a kept message that was judged again.
#[derive(Debug)]
pub(super) struct Rerun {
    /// What it did in the end.
    pub outcome: String,
    /// Why, for a person.
    pub detail: String,
    /// Whether that is another thing than before.
    pub changed: bool,
}

/// Judges a kept message again, by the books and the settings as they are now. One that did something is left at that.
pub(super) async fn rerun(app: &App, by: UserId, id: NotificationId) -> Result<Rerun> {
    let (rerun, settled) = retrying(|| rerun_once(app, by, id)).await?;
    announce(app, settled);
    Ok(rerun)
}

async fn rerun_once(app: &App, by: UserId, id: NotificationId) -> Result<(Rerun, Settled)> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let kept =
        store::views::notification(&mut tx, id).await.context("reading a notification")?.ok_or(Kind::NotFound)?;
    let message: Message = match &kept.message {
        Some(said) => serde_json::from_str(said).context("reading what a message said")?,
        None => return Err(Kind::NotificationState.into()),
    };
    // Orders and payments are locked before the message, as everywhere.
    let judged =
        judge_locked(app, &mut tx, kept.gateway, &message).await?.context("a kept message without its payment")?;
    let (outcome, detail) = store::lock_notification(&mut tx, id)
        .await
        .context("locking a notification")?
        .context("a kept notification vanished")?;
    let is_done = !matches!(outcome.as_str(), "flagged" | "ignored");
    let changed = !is_done && judged.settled.name() != outcome;
    let act = Act { by, action: "notification.rerun", target: &id.to_string() };
    if !changed {
        audit::done(&mut tx, act, &json!({ "outcome": outcome, "changed": false }), now).await?;
        tx.commit().await.context("committing")?;
        return Ok((Rerun { outcome, detail, changed }, Settled::Repeated));
    }
    let heard = move_on(app, &mut tx, &judged, &message).await?;
    let name = judged.settled.name();
    store::set_outcome(&mut tx, id, name, &judged.detail).await.context("noting what a message did")?;
    audit::done(&mut tx, act, &json!({ "outcome": name, "before": outcome, "changed": true }), now).await?;
    tx.commit().await.context("committing")?;
    tell(kept.gateway, &message, &judged, heard.as_ref());
    Ok((Rerun { outcome: name.to_owned(), detail: judged.detail, changed }, judged.settled))
}

/// Moves the payment, its order and its refunds, all locked, as the verdict says; gives what was heard of a refund.
async fn move_on(app: &App, conn: &mut Conn, judged: &Judged, message: &Message) -> Result<Option<Heard>> {
    let (now, Judged { order, payment, settled, .. }) = (app.clock.now(), judged);
    match (&message.said, *settled) {
        (Said::Paid { trade_no, .. }, Settled::Paid(_) | Settled::Late(_)) => {
            take_in(conn, judged, trade_no, now).await?;
        }
        (Said::Refunded { answer, .. }, Settled::Refund(id)) => {
            return refund::hear(conn, order, id, answer, now).await.map(Some);
        }
        (Said::Refunded { .. }, Settled::Ignored) => {
            store::refunds::hurry(conn, payment.id, now).await.context("planning questions about refunds")?;
        }
        // A message can be overtaken by another: what really became of the payment is asked, not believed.
        (_, Settled::Ignored) if payment.status == PaymentStatus::Started => {
            store::ask_now(conn, payment.id, now).await.context("planning a question")?;
        }
        _ => {}
    }
    Ok(None)
}

/// Takes money in: for the order, or to be decided about.
async fn take_in(conn: &mut Conn, judged: &Judged, trade_no: &str, now: At) -> Result<()> {
    let Judged { order, payment, settled, twice, .. } = judged;
    let resolution = if matches!(settled, Settled::Paid(_)) { "order" } else { "owed" };
    let moved =
        store::mark_paid(conn, payment.id, trade_no, resolution, now).await.context("marking a payment paid")?;
    if !moved {
        return Err(anyhow::anyhow!("payment {} changed under its lock", payment.id).into());
    }
    if !matches!(settled, Settled::Paid(_)) {
        return Ok(());
    }
    if !orders::mark_paid(conn, order, now).await? {
        return Err(anyhow::anyhow!("order {} changed under its lock", order.id).into());
    }
    if twice.is_empty() { Ok(()) } else { give_back_twice(conn, order, payment, twice.clone(), now).await }
}

/// A message that was kept before: it did what it did.
async fn copy(conn: &mut Conn, gateway: Gateway, message: &Message) -> Result<Settled> {
    let outcome = store::notification_outcome(conn, gateway, &message.notify_id).await.context("reading a copy")?;
    match outcome.as_deref() {
        None => Err(anyhow::anyhow!("a kept notification vanished").into()),
        Some("flagged") => Ok(Settled::Flagged),
        Some(_) => Ok(Settled::Repeated),
    }
}

/// It may be early: nothing is kept that would make the repetition look handled.
fn unknown(gateway: Gateway, message: &Message) -> Settled {
    tracing::warn!(
        gateway = gateway.as_str(),
        notify.id = message.notify_id,
        "payment message for a payment that is not here"
    );
    Settled::Unknown
}
