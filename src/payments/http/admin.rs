//! Routes with which administrators look at payments, messages and refunds, and act on them.

pub mod orders;

use axum::Json as Reply;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::{Require, may};
use crate::app::App;
use crate::catalogue::CourseId;
use crate::error::Result;
use crate::idempotency::{self, Key, StoredAnswer};
use crate::orders::OrderId;
use crate::payments::store::views::WhichPayments;
use crate::payments::views::{self, NotificationView, PaymentView, RefundView};
use crate::payments::{
    Gateway, NotificationId, NotificationOutcome, OrderRefundView, PaymentId, PaymentStatus, RefundApplication,
    RefundId, RefundPart, RefundStatus, Resolution,
};
use crate::platform::described::AnyObject;
use crate::platform::extract::{Faults, Input, Inputs, Inputs3, Json, Path, Shape};
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery, Paged};
use crate::platform::spelling::nfc;
use crate::platform::validators::words;

/// What of a paid order is to be refunded: all that is left, unless courses or an amount are named.
#[derive(Debug, Clone, Serialize, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRefundRequest {
    /// These courses, for what was paid for each; they are taken back.
    #[garde(inner(length(min = 1, max = 50)))]
    #[schema(value_type = Option<std::collections::BTreeSet<CourseId>>, min_items = 1, max_items = 50)]
    pub course_ids: Option<Vec<CourseId>>,
    /// So much money and no course; less than is left of what was paid.
    #[garde(range(min = 1, max = 100_000_000_000))]
    #[schema(minimum = 1, maximum = 100_000_000_000i64)]
    pub amount_fen: Option<i64>,
    /// Why, for the books.
    #[garde(custom(words(1, 200)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub reason: String,
}

impl Shape<App> for OrderRefundRequest {
    fn together(&self, _: &App, faults: &mut Faults) {
        if let Some(courses) = self.course_ids.as_ref().filter(|_| faults.spare(&["course_ids"])) {
            let twice = courses.iter().enumerate().find(|(at, id)| courses[..*at].contains(id));
            if let Some((_, id)) = twice {
                faults.add("course_ids", format!("names {id} twice"));
            } else if self.amount_fen.is_some() {
                faults.add("amount_fen", "does not go with course_ids");
            }
        }
    }
}

impl OrderRefundRequest {
    fn part(&self) -> RefundPart {
        match (&self.course_ids, self.amount_fen) {
            (Some(courses), _) => RefundPart::Courses(courses.clone()),
            (None, Some(fen)) => RefundPart::Amount(Money::fen(fen)),
            (None, None) => RefundPart::Whole,
        }
    }
}

/// Refunds a paid order, or a part of it.
///
/// The courses and the points that the order earned are taken back at once, the money goes back as the gateway carries it
/// out. With the last of an order's money its coupon and the points it spent come back.
#[utoipa::path(post, path = "/admin/orders/{no}/refund", operation_id = "refund_order", extensions(("x-permission" = json!("orders.refund"))), tag = "admin",
    security(("bearer" = [])),
    params(("no" = OrderId, Path, description = "The order's number"),
        ("Idempotency-Key" = String, Header, min_length = 1, max_length = 128, pattern = "^[!-~]{1,128}$",
        description = "A new one for each new refund; the same one makes a repeat safe")),
    request_body = OrderRefundRequest,
    responses(
        (status = 201, body = OrderRefundView, description = "It is owed; a repeat answers the same bytes"),
        (status = 400, description = "`malformed_json`, `idempotency_key_missing`, `idempotency_key_invalid`"),
        (status = 404, description = "`not_found`: no such order"),
        (status = 409, description = "`order_state` (not paid), `already_refunded`, `refund_too_much` (`left_fen` says how much is left)"),
        (status = 422, description = "`validation_failed` (a course is none of the order's, too), `idempotency_key_reused`"),
    ))]
pub async fn refund_order(
    State(app): State<App>,
    Require(admin, _): Require<may::OrdersRefund>,
    Inputs3(Path(order), key, Json(request)): Inputs3<Path<OrderId>, Key, Json<OrderRefundRequest>>,
) -> Result<StoredAnswer> {
    let fingerprint = idempotency::fingerprint(&format!("POST /admin/orders/{order}/refund"), &request)?;
    let asked =
        RefundApplication { by: admin.id, reason: &request.reason, part: request.part(), key: (&key, fingerprint) };
    crate::payments::refund_order(&app, order, &asked).await
}

/// Which payments.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PaymentsQuery {
    /// Of this order alone.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    order_no: Option<OrderId>,
    /// At this gateway alone.
    #[garde(skip)]
    #[param(value_type = Gateway, required = false)]
    gateway: Option<Gateway>,
    /// `started`, `paid` or `closed`.
    #[garde(skip)]
    #[param(value_type = PaymentStatus, required = false)]
    status: Option<PaymentStatus>,
    /// What became of paid money: `order`, `owed` or `refund`.
    #[garde(skip)]
    #[param(value_type = Resolution, required = false)]
    resolution: Option<Resolution>,
}

impl Shape<App> for PaymentsQuery {}

/// Payments, newest first.
#[utoipa::path(get, path = "/admin/payments", operation_id = "list_payments", extensions(("x-permission" = json!("orders.read"))), tag = "admin", security(("bearer" = [])),
    params(PaymentsQuery, PageQuery),
    responses(
        (status = 200, body = Page<PaymentView>, description = "A page of payments"),
    ))]
pub async fn payments(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Paged(query, page)): Input<Paged<PaymentsQuery>>,
) -> Result<Reply<Page<PaymentView>>> {
    let which = WhichPayments {
        order: query.order_no,
        gateway: query.gateway,
        status: query.status,
        resolution: query.resolution,
    };
    Ok(Reply(views::payments(&app, &which, &page).await?))
}

/// A payment with its refunds.
#[utoipa::path(get, path = "/admin/payments/{no}", operation_id = "get_payment", extensions(("x-permission" = json!("orders.read"))), tag = "admin",
    security(("bearer" = [])),
    params(("no" = PaymentId, Path, description = "The payment's number")),
    responses(
        (status = 200, body = views::PaymentDetail, description = "The payment"),
    ))]
pub async fn payment(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Path(no)): Input<Path<PaymentId>>,
) -> Result<Reply<views::PaymentDetail>> {
    Ok(Reply(views::payment(&app, no).await?))
}

/// Why a payment is given up.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AbandonRequest {
    /// Why, for the audit: what the gateway's own list says of it, say.
    #[garde(custom(words(1, 200)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub reason: String,
}

impl Shape<App> for AbandonRequest {}

/// Gives up a started payment at a gateway that is switched off and will not come back.
///
/// The gateway is not asked. The payment is over, so its order can be closed when its time is over. Money that comes for it
/// all the same is late money. Safe to repeat: one that is over stays so.
#[utoipa::path(post, path = "/admin/payments/{no}/abandon", operation_id = "abandon_payment", extensions(("x-permission" = json!("payments.resolve"))), tag = "admin",
    security(("bearer" = [])),
    params(("no" = PaymentId, Path, description = "The payment's number")),
    request_body = AbandonRequest,
    responses(
        (status = 200, body = views::PaymentDetail, description = "It is over, now or before"),
        (status = 409, description = "`payment_state`: it has been paid, or its gateway is switched on"),
    ))]
pub async fn abandon(
    State(app): State<App>,
    Require(admin, _): Require<may::PaymentsResolve>,
    Inputs(Path(no), Json(request)): Inputs<Path<PaymentId>, Json<AbandonRequest>>,
) -> Result<Reply<views::PaymentDetail>> {
    crate::payments::abandon_payment(&app, admin.id, no, &request.reason).await?;
    Ok(Reply(views::payment(&app, no).await?))
}

/// Which messages.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct NotificationsQuery {
    /// About this payment alone.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    payment_no: Option<PaymentId>,
    /// From this gateway alone.
    #[garde(skip)]
    #[param(value_type = Gateway, required = false)]
    gateway: Option<Gateway>,
    /// What it did: `settled`, `late`, `refund`, `repeated`, `ignored` or `flagged`.
    #[garde(skip)]
    #[param(value_type = NotificationOutcome, required = false)]
    outcome: Option<NotificationOutcome>,
}

impl Shape<App> for NotificationsQuery {}

/// The messages of gateways that verified, newest first, without their bodies.
#[utoipa::path(get, path = "/admin/payments/notifications", operation_id = "list_notifications", extensions(("x-permission" = json!("orders.read"))), tag = "admin",
    security(("bearer" = [])),
    params(NotificationsQuery, PageQuery),
    responses(
        (status = 200, body = Page<NotificationView>, description = "A page of messages"),
    ))]
pub async fn notifications(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Paged(query, page)): Input<Paged<NotificationsQuery>>,
) -> Result<Reply<Page<NotificationView>>> {
    Ok(Reply(views::notifications(&app, query.payment_no, query.gateway, query.outcome, &page).await?))
}

/// A message with its body.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct NotificationDetail {
    /// The message.
    #[serde(flatten)]
    pub notification: NotificationView,
    /// What was sent, with what tells who paid, and signatures, replaced by `***`; null when it cannot be shown so.
    #[schema(value_type = AnyObject, nullable)]
    pub body: Value,
    /// What it said, as it was understood: `merchant`, `payment`, and in `said` what happened, of how much. This is there
    /// also where the body is encrypted (WeChat Pay); null when a version before this one kept it.
    #[schema(value_type = AnyObject, nullable)]
    pub message: Value,
}

/// A message of a gateway.
#[utoipa::path(get, path = "/admin/payments/notifications/{id}", operation_id = "get_notification", extensions(("x-permission" = json!("orders.read"))), tag = "admin",
    security(("bearer" = [])),
    params(("id" = NotificationId, Path, description = "The message")),
    responses(
        (status = 200, body = NotificationDetail, description = "The message"),
    ))]
pub async fn notification(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Path(id)): Input<Path<NotificationId>>,
) -> Result<Reply<NotificationDetail>> {
    let views::Shown { notification, body, message } = views::notification(&app, id).await?;
    Ok(Reply(NotificationDetail { notification, body, message }))
}

/// Judges a message again, by the books and the settings as they are now: one that was flagged because a setting was
/// wrong, say. One that did something is left at that. Safe to repeat.
#[utoipa::path(post, path = "/admin/payments/notifications/{id}/rerun", operation_id = "rerun_notification", extensions(("x-permission" = json!("payments.resolve"))), tag = "admin",
    security(("bearer" = [])),
    params(("id" = NotificationId, Path, description = "The message")),
    responses(
        (status = 200, body = views::RerunView, description = "What it did, now or before"),
        (status = 409, description = "`notification_state`: a version before this one kept it; `gateway_off`: its gateway is switched off, so nobody knows whom it had to be for"),
    ))]
pub async fn rerun(
    State(app): State<App>,
    Require(admin, _): Require<may::PaymentsResolve>,
    Input(Path(id)): Input<Path<NotificationId>>,
) -> Result<Reply<views::RerunView>> {
    Ok(Reply(views::rerun(&app, admin.id, id).await?))
}

/// Which refunds.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RefundsQuery {
    /// Of this order alone.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    order_no: Option<OrderId>,
    /// `pending`, `confirmed`, `failed` or `replaced`.
    #[garde(skip)]
    #[param(value_type = RefundStatus, required = false)]
    status: Option<RefundStatus>,
}

impl Shape<App> for RefundsQuery {}

/// Refunds, newest first: those of orders, and those of money that came too late or twice.
#[utoipa::path(get, path = "/admin/refunds", operation_id = "list_refunds", extensions(("x-permission" = json!("orders.read"))), tag = "admin", security(("bearer" = [])),
    params(RefundsQuery, PageQuery),
    responses(
        (status = 200, body = Page<RefundView>, description = "A page of refunds"),
    ))]
pub async fn refunds(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Paged(query, page)): Input<Paged<RefundsQuery>>,
) -> Result<Reply<Page<RefundView>>> {
    Ok(Reply(views::refunds(&app, query.order_no, query.status, &page).await?))
}

/// A refund.
#[utoipa::path(get, path = "/admin/refunds/{no}", operation_id = "get_refund", extensions(("x-permission" = json!("orders.read"))), tag = "admin", security(("bearer" = [])),
    params(("no" = RefundId, Path, description = "The refund's number")),
    responses(
        (status = 200, body = RefundView, description = "The refund"),
    ))]
pub async fn refund(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Path(no)): Input<Path<RefundId>>,
) -> Result<Reply<RefundView>> {
    Ok(Reply(views::refund(&app, no).await?))
}

/// How to try a refund again.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefundRetryRequest {
    /// Under a new number: only when the gateway is done with the old one for good and its own list shows that no money
    /// went back under it. Under its own number (false, the default) money never goes back twice.
    #[garde(skip)]
    #[serde(default)]
    pub new_number: bool,
}

impl Shape<App> for RefundRetryRequest {}

/// Sends a refund again that the gateway refused; one that waits for its next try is tried now. Safe to repeat; one that is
/// done stays as it is.
#[utoipa::path(post, path = "/admin/refunds/{no}/retry", operation_id = "retry_refund", extensions(("x-permission" = json!("orders.refund"))), tag = "admin",
    security(("bearer" = [])),
    params(("no" = RefundId, Path, description = "The refund's number")),
    request_body = RefundRetryRequest,
    responses(
        (status = 200, body = RefundView, description = "The refund that is owed now: this one, or the one in its place"),
        (status = 409, description = "`refund_state`: a new number for one that has not failed; `gateway_off`: its gateway is switched off, and nothing would be sent"),
    ))]
pub async fn retry_refund(
    State(app): State<App>,
    Require(admin, _): Require<may::OrdersRefund>,
    Inputs(Path(no), Json(request)): Inputs<Path<RefundId>, Json<RefundRetryRequest>>,
) -> Result<Reply<RefundView>> {
    let owed = crate::payments::retry_refund(&app, admin.id, no, request.new_number).await?;
    Ok(Reply(views::refund(&app, owed).await?))
}
