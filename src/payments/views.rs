//! What administrators see of payments, messages and refunds.

pub(super) mod orders;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::model::{
    Channel, Gateway, NotificationId, NotificationOutcome, PaymentId, PaymentStatus, RefundId, RefundReason,
    RefundStatus, Resolution,
};
use super::store::views::{
    self as rows, NotificationRow, PaymentRow, RefundRow, WhichNotifications, WhichPayments, WhichRefunds,
};
use super::{redact, settle};
use crate::app::App;
use crate::auth::UserId;
use crate::error::{Kind, Result};
use crate::orders::OrderId;
use crate::platform::clock::At;
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};

/// Rows of each kind that are shown with the payment or order they belong to.
const REFUNDS_SHOWN: u32 = 100;

/// A payment.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PaymentView {
    /// Its number, ours.
    pub payment_no: PaymentId,
    /// What it pays.
    pub order_no: OrderId,
    /// Where.
    pub gateway: Gateway,
    /// Which way.
    pub channel: Channel,
    /// How much.
    pub amount_fen: Money,
    /// Of what.
    pub currency: String,
    /// How far it is.
    pub status: PaymentStatus,
    /// What became of paid money.
    pub resolution: Option<Resolution>,
    /// The gateway's number.
    pub gateway_trade_no: Option<String>,
    /// What else the gateway knows it by.
    pub gateway_ref: Option<String>,
    /// Set aside for its refunds, whether they are confirmed or not.
    pub refunded_fen: Money,
    /// When it was started.
    pub created_at: At,
    /// Nobody can pay after this.
    pub expires_at: At,
    /// When money came in.
    pub paid_at: Option<At>,
    /// When it was closed.
    pub closed_at: Option<At>,
    /// When the gateway is asked about it next.
    pub next_query_at: Option<At>,
    /// How often it was asked.
    pub query_count: i32,
}

impl From<PaymentRow> for PaymentView {
    fn from(row: PaymentRow) -> Self {
        Self {
            payment_no: row.id,
            order_no: row.order_id,
            gateway: row.gateway,
            channel: row.channel,
            amount_fen: row.amount_fen,
            currency: row.currency,
            status: row.status,
            resolution: row.resolution,
            gateway_trade_no: row.gateway_trade_no,
            gateway_ref: row.gateway_ref,
            refunded_fen: row.refunded_fen,
            created_at: row.created_at,
            expires_at: row.expires_at,
            paid_at: row.paid_at,
            closed_at: row.closed_at,
            next_query_at: row.next_query_at,
            query_count: row.query_count,
        }
    }
}

/// A payment with its refunds.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PaymentDetail {
    /// The payment.
    #[serde(flatten)]
    pub payment: PaymentView,
    /// Its refunds, newest first.
    pub refunds: Vec<RefundView>,
}

/// A page of payments.
pub(super) async fn payments(app: &App, which: &WhichPayments, page: &PageQuery) -> Result<Page<PaymentView>> {
    let mut conn = app.db.acquire().await?;
    let found = rows::payments(&mut conn, which, page.before(), page.fetch()).await.context("listing payments")?;
    Ok(page.page(found.into_iter().map(PaymentView::from).collect(), |payment: &PaymentView| payment.payment_no))
}

/// A payment with its refunds.
pub(super) async fn payment(app: &App, id: PaymentId) -> Result<PaymentDetail> {
    let mut conn = app.db.acquire().await?;
    let payment = rows::payment(&mut conn, id).await.context("reading a payment")?.ok_or(Kind::NotFound)?;
    let which = WhichRefunds { payment: Some(id), ..WhichRefunds::default() };
    let refunds = rows::refunds(&mut conn, &which, RefundId::max(), REFUNDS_SHOWN)
        .await
        .context("reading a payment's refunds")?;
    Ok(PaymentDetail { payment: payment.into(), refunds: refunds.into_iter().map(RefundView::from).collect() })
}

/// A message of a gateway.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct NotificationView {
    /// Our id of it.
    pub id: NotificationId,
    /// Who sent it, or answered so.
    pub gateway: Gateway,
    /// The gateway's id of it.
    pub notify_id: String,
    /// The payment that it is about.
    pub payment_no: Option<PaymentId>,
    /// What it did.
    pub outcome: NotificationOutcome,
    /// Why, where there is something to say.
    pub detail: String,
    /// When it came first.
    pub received_at: At,
}

impl From<&NotificationRow> for NotificationView {
    fn from(row: &NotificationRow) -> Self {
        Self {
            id: row.id,
            gateway: row.gateway,
            notify_id: row.notify_id.clone(),
            payment_no: row.payment_id,
            outcome: row.outcome,
            detail: row.detail.clone(),
            received_at: row.received_at,
        }
    }
}

/// A page of messages.
pub(super) async fn notifications(
    app: &App,
    payment: Option<PaymentId>,
    gateway: Option<Gateway>,
    outcome: Option<NotificationOutcome>,
    page: &PageQuery,
) -> Result<Page<NotificationView>> {
    let which = WhichNotifications { payment, gateway, outcome };
    let mut conn = app.db.acquire().await?;
    let found =
        rows::notifications(&mut conn, &which, page.before(), page.fetch()).await.context("listing notifications")?;
    Ok(page.page(found.iter().map(NotificationView::from).collect(), |message: &NotificationView| message.id))
}

/// A message, and what may be shown of it.
pub(super) struct Shown {
    pub notification: NotificationView,
    /// Of its body.
    pub body: Value,
    /// Of what it said, as it was understood.
    pub message: Value,
}

/// A message and what may be shown of it.
pub(super) async fn notification(app: &App, id: NotificationId) -> Result<Shown> {
    let mut conn = app.db.acquire().await?;
    let row = rows::notification(&mut conn, id).await.context("reading a notification")?.ok_or(Kind::NotFound)?;
    let message = row.message.as_deref().map_or(Value::Null, |said| redact::redacted(said.as_bytes()));
    Ok(Shown { notification: NotificationView::from(&row), body: redact::redacted(&row.body), message })
}

/// What became of a message that was judged again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RerunView {
    /// What it did in the end.
    #[schema(value_type = NotificationOutcome)]
    pub outcome: String,
    /// Why, where there is something to say.
    pub detail: String,
    /// Whether that is another thing than before.
    pub changed: bool,
}

/// Judges a message again.
pub(super) async fn rerun(app: &App, by: UserId, id: NotificationId) -> Result<RerunView> {
    let settle::Rerun { outcome, detail, changed } = settle::rerun(app, by, id).await?;
    Ok(RerunView { outcome, detail, changed })
}

/// A refund.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RefundView {
    /// Its number, ours, the same in every try.
    pub refund_no: RefundId,
    /// The payment that goes back, or a part of it.
    pub payment_no: PaymentId,
    /// That payment's order.
    pub order_no: OrderId,
    /// Where.
    pub gateway: Gateway,
    /// How much.
    pub amount_fen: Money,
    /// Why.
    pub reason: RefundReason,
    /// The administrator's words.
    pub note: String,
    /// How far it is.
    pub status: RefundStatus,
    /// How often it was sent or asked about.
    pub attempts: i32,
    /// When it is sent or asked about next.
    pub next_attempt_at: Option<At>,
    /// What the gateway said last, where it was no yes.
    pub last_error: String,
    /// Since when it is owed.
    pub created_at: At,
    /// Since when the gateway is at it.
    pub asked_at: Option<At>,
    /// Since when the money is back.
    pub confirmed_at: Option<At>,
    /// When the gateway refused it.
    pub failed_at: Option<At>,
    /// The refund that was made in its place.
    pub replaced_by: Option<RefundId>,
}

impl From<RefundRow> for RefundView {
    fn from(row: RefundRow) -> Self {
        Self {
            refund_no: row.id,
            payment_no: row.payment_id,
            order_no: row.order_id,
            gateway: row.gateway,
            amount_fen: row.amount_fen,
            reason: row.reason,
            note: row.note,
            status: row.status,
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at,
            last_error: row.last_error,
            created_at: row.created_at,
            asked_at: row.asked_at,
            confirmed_at: row.confirmed_at,
            failed_at: row.failed_at,
            replaced_by: row.replaced_by,
        }
    }
}

/// A page of refunds.
pub(super) async fn refunds(
    app: &App,
    order: Option<OrderId>,
    status: Option<RefundStatus>,
    page: &PageQuery,
) -> Result<Page<RefundView>> {
    let which = WhichRefunds { order, payment: None, status };
    let mut conn = app.db.acquire().await?;
    let found = rows::refunds(&mut conn, &which, page.before(), page.fetch()).await.context("listing refunds")?;
    Ok(page.page(found.into_iter().map(RefundView::from).collect(), |refund: &RefundView| refund.refund_no))
}

/// A refund.
pub(super) async fn refund(app: &App, id: RefundId) -> Result<RefundView> {
    let mut conn = app.db.acquire().await?;
    let row = rows::refund(&mut conn, id).await.context("reading a refund")?.ok_or(Kind::NotFound)?;
    Ok(row.into())
}
