//! What administrators see of payments, messages and refunds: one SQL statement a function, newest first.

use sqlx::{MySql, QueryBuilder, query_as};

use crate::auth::UserId;
use crate::orders::{OrderId, OrderRefundId};
use crate::payments::model::{
    CAUSE_PAID_TWICE, Channel, Gateway, NotificationId, NotificationOutcome, OrderRefundKind, PaymentId, PaymentStatus,
    RefundId, RefundReason, RefundStatus, Resolution,
};
use crate::payments::store::refunds::NOBODY;
use crate::platform::clock::At;
use crate::platform::db::{Conn, push_in};
use crate::platform::money::Money;
use crate::platform::text::{OptionalText, Text};

/// A payment, as a person sees it.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::payments) struct PaymentRow {
    pub id: PaymentId,
    pub order_id: OrderId,
    pub gateway: Gateway,
    pub channel: Channel,
    pub amount_fen: Money,
    #[sqlx(try_from = "Text")]
    pub currency: String,
    pub status: PaymentStatus,
    pub resolution: Option<Resolution>,
    #[sqlx(try_from = "OptionalText")]
    pub gateway_trade_no: Option<String>,
    #[sqlx(try_from = "OptionalText")]
    pub gateway_ref: Option<String>,
    pub refunded_fen: Money,
    pub created_at: At,
    pub expires_at: At,
    pub paid_at: Option<At>,
    pub closed_at: Option<At>,
    pub next_query_at: Option<At>,
    pub query_count: i32,
}

const PAYMENTS: &str = "SELECT id, order_id, gateway, channel, amount_fen, currency, status, resolution, \
    gateway_trade_no, gateway_ref, refunded_fen, created_at, expires_at, paid_at, closed_at, next_query_at, \
    query_count FROM payments WHERE id ";

/// Which payments.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::payments) struct WhichPayments {
    pub order: Option<OrderId>,
    pub gateway: Option<Gateway>,
    pub status: Option<PaymentStatus>,
    pub resolution: Option<Resolution>,
}

/// Payments below `before`.
pub(in crate::payments) async fn payments(
    conn: &mut Conn,
    which: &WhichPayments,
    before: PaymentId,
    limit: u32,
) -> sqlx::Result<Vec<PaymentRow>> {
    let mut query = QueryBuilder::<MySql>::new(PAYMENTS);
    query.push("< ").push_bind(before);
    if let Some(order) = which.order {
        query.push(" AND order_id = ").push_bind(order);
    }
    if let Some(gateway) = which.gateway {
        query.push(" AND gateway = ").push_bind(gateway.as_str());
    }
    if let Some(status) = which.status {
        query.push(" AND status = ").push_bind(status);
    }
    if let Some(resolution) = which.resolution {
        query.push(" AND resolution = ").push_bind(resolution);
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await
}

/// A payment.
pub(in crate::payments) async fn payment(conn: &mut Conn, id: PaymentId) -> sqlx::Result<Option<PaymentRow>> {
    let mut query = QueryBuilder::<MySql>::new(PAYMENTS);
    query.push("= ").push_bind(id);
    query.build_query_as().fetch_optional(conn).await
}

/// A kept message, as a person sees it.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::payments) struct NotificationRow {
    pub id: NotificationId,
    pub gateway: Gateway,
    #[sqlx(try_from = "Text")]
    pub notify_id: String,
    pub payment_id: Option<PaymentId>,
    pub outcome: NotificationOutcome,
    #[sqlx(try_from = "Text")]
    pub detail: String,
    pub body: Vec<u8>,
    #[sqlx(try_from = "OptionalText")]
    pub message: Option<String>,
    pub received_at: At,
}

/// Which messages.
#[derive(Debug, Default)]
pub(in crate::payments) struct WhichNotifications {
    pub payment: Option<PaymentId>,
    pub gateway: Option<Gateway>,
    pub outcome: Option<NotificationOutcome>,
}

/// Messages below `before`.
pub(in crate::payments) async fn notifications(
    conn: &mut Conn,
    which: &WhichNotifications,
    before: NotificationId,
    limit: u32,
) -> sqlx::Result<Vec<NotificationRow>> {
    let mut query = QueryBuilder::<MySql>::new(
        // A list is without bodies: each may be long.
        "SELECT id, gateway, notify_id, payment_id, outcome, detail, '' AS body, NULL AS message, received_at \
         FROM payment_notifications WHERE id < ",
    );
    query.push_bind(before);
    if let Some(payment) = which.payment {
        query.push(" AND payment_id = ").push_bind(payment);
    }
    if let Some(gateway) = which.gateway {
        query.push(" AND gateway = ").push_bind(gateway.as_str());
    }
    if let Some(outcome) = which.outcome {
        query.push(" AND outcome = ").push_bind(outcome);
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await
}

/// A message.
pub(in crate::payments) async fn notification(
    conn: &mut Conn,
    id: NotificationId,
) -> sqlx::Result<Option<NotificationRow>> {
    query_as(
        "SELECT id, gateway, notify_id, payment_id, outcome, detail, body, message, received_at \
         FROM payment_notifications WHERE id = ?",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// A refund, as a person sees it.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::payments) struct RefundRow {
    pub id: RefundId,
    pub payment_id: PaymentId,
    pub order_id: OrderId,
    pub gateway: Gateway,
    pub amount_fen: Money,
    pub reason: RefundReason,
    #[sqlx(try_from = "Text")]
    pub note: String,
    pub status: RefundStatus,
    pub attempts: i32,
    pub next_attempt_at: Option<At>,
    #[sqlx(try_from = "Text")]
    pub last_error: String,
    pub created_at: At,
    pub asked_at: Option<At>,
    pub confirmed_at: Option<At>,
    pub failed_at: Option<At>,
    pub replaced_by: Option<RefundId>,
}

const REFUNDS: &str = "SELECT r.id, r.payment_id, r.order_id, p.gateway, r.amount_fen, r.reason, \
    r.note, r.status, r.attempts, r.next_attempt_at, r.last_error, r.created_at, r.asked_at, \
    r.confirmed_at, r.failed_at, r.replaced_by FROM refunds r JOIN payments p ON p.id = r.payment_id \
    WHERE r.id ";

/// Which refunds.
#[derive(Debug, Default)]
pub(in crate::payments) struct WhichRefunds {
    pub order: Option<OrderId>,
    pub payment: Option<PaymentId>,
    pub status: Option<RefundStatus>,
}

/// Refunds below `before`.
pub(in crate::payments) async fn refunds(
    conn: &mut Conn,
    which: &WhichRefunds,
    before: RefundId,
    limit: u32,
) -> sqlx::Result<Vec<RefundRow>> {
    let mut query = QueryBuilder::<MySql>::new(REFUNDS);
    query.push("< ").push_bind(before);
    if let Some(order) = which.order {
        query.push(" AND r.order_id = ").push_bind(order);
    }
    if let Some(payment) = which.payment {
        query.push(" AND r.payment_id = ").push_bind(payment);
    }
    if let Some(status) = which.status {
        query.push(" AND r.status = ").push_bind(status.as_str());
    }
    query.push(" ORDER BY r.id DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await
}

/// A refund.
pub(in crate::payments) async fn refund(conn: &mut Conn, id: RefundId) -> sqlx::Result<Option<RefundRow>> {
    let mut query = QueryBuilder::<MySql>::new(REFUNDS);
    query.push("= ").push_bind(id);
    query.build_query_as().fetch_optional(conn).await
}

/// A refund of an order that an administrator asked for, or the service itself.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::payments) struct OrderRefundRow {
    pub id: OrderRefundId,
    pub kind: OrderRefundKind,
    pub amount_fen: Money,
    pub points_back: i64,
    pub points_missing: i64,
    pub points_returned: i64,
    #[sqlx(try_from = "Text")]
    pub reason: String,
    /// [`NOBODY`] when the service itself did.
    pub asked_by: UserId,
    pub created_at: At,
    /// The refund of its money.
    pub refund_no: Option<RefundId>,
}

/// What was refunded of an order.
pub(in crate::payments) async fn order_refunds(
    conn: &mut Conn,
    order: OrderId,
    limit: u32,
) -> sqlx::Result<Vec<OrderRefundRow>> {
    query_as(
        "SELECT o.id, o.kind, o.amount_fen, o.points_back, \
         o.points_missing - o.points_returned + o.points_owed AS points_missing, o.points_returned, o.reason, o.asked_by, \
         o.created_at, r.id AS refund_no FROM order_refunds o LEFT JOIN refunds r \
         ON r.order_id = o.order_id AND (r.cause = CONVERT(LOWER(HEX(o.id)) USING ascii) COLLATE ascii_bin \
         OR (o.asked_by = ? AND r.cause = ?)) WHERE o.order_id = ? ORDER BY o.id DESC LIMIT ?",
    )
    .bind(NOBODY)
    .bind(CAUSE_PAID_TWICE)
    .bind(order)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Money that goes back, as the buyer of its order sees it.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::payments) struct BackRow {
    pub order_id: OrderId,
    pub amount_fen: Money,
    pub reason: RefundReason,
    pub status: RefundStatus,
    pub created_at: At,
    pub confirmed_at: Option<At>,
    /// What is back of all the order's money.
    pub confirmed_fen: Money,
}

/// The last `each` refunds of each of these orders, and with each what is back of what was paid for its order. Money that
/// came late or twice never paid for it. One that was replaced is left out: the one in its place has its money. The list
/// must not be empty.
pub(in crate::payments) async fn money_back(
    conn: &mut Conn,
    orders: &[OrderId],
    each: u32,
) -> sqlx::Result<Vec<BackRow>> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT order_id, amount_fen, reason, status, created_at, confirmed_at, confirmed_fen FROM \
         (SELECT r.order_id, r.amount_fen, r.reason, r.status, r.created_at, r.confirmed_at, \
         ROW_NUMBER() OVER (PARTITION BY r.order_id ORDER BY r.id DESC) AS place, \
         CAST(SUM(CASE WHEN r.status = 'confirmed' AND p.resolution = 'order' THEN r.amount_fen ELSE 0 END) \
         OVER (PARTITION BY r.order_id) AS SIGNED) AS confirmed_fen \
         FROM refunds r FORCE INDEX (ix_refunds_order) JOIN payments p ON p.id = r.payment_id \
         WHERE r.status <> 'replaced' AND r.order_id IN ",
    );
    push_in(&mut query, orders.iter().copied());
    query.push(") back WHERE place <= ").push_bind(each).push(" ORDER BY order_id, place");
    query.build_query_as().fetch_all(conn).await
}
