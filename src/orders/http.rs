//! Routes of orders: quote, create, list, detail. Cancelling and paying ask a gateway: they are the payments room's.

use std::collections::HashSet;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Item, NewOrder, Order, OrderId, OrderKind, Status, Whole};
use crate::app::App;
use crate::auth::CurrentUser;
use crate::catalogue::CourseId;
use crate::error::{Kind, Problem, Result};
use crate::idempotency::{Answer, Key};
use crate::platform::clock::At;
use crate::platform::extract::{Faults, Input, Inputs, Json, Path, Query, Shape};
use crate::platform::id::Id;
use crate::platform::money::{CURRENCY, Money};
use crate::platform::page::{Cursor, Page, PageQuery};
use crate::wallet::UserCouponId;

/// What to order.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// The courses, 1..50, each once.
    #[garde(length(min = 1, max = 50))]
    #[schema(value_type = std::collections::BTreeSet<CourseId>, min_items = 1, max_items = 50)]
    pub course_ids: Vec<CourseId>,
    /// A coupon of yours.
    #[garde(skip)]
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    pub user_coupon_id: Option<UserCouponId>,
    /// Points to spend; none by default.
    #[garde(range(min = 0, max = 1_000_000_000_000))]
    #[schema(minimum = 0, maximum = 1_000_000_000_000i64)]
    pub points: Option<i64>,
}

impl Shape<App> for OrderRequest {
    fn together(&self, _: &App, faults: &mut Faults) {
        let mut seen = HashSet::new();
        let twice = self.course_ids.iter().find(|id| !seen.insert(**id));
        // What is at fault is filled with the same id everywhere.
        if let Some(id) = twice.filter(|_| faults.spare(&["course_ids"])) {
            faults.add("course_ids", format!("names {id} twice"));
        }
    }
}

impl From<OrderRequest> for NewOrder {
    fn from(request: OrderRequest) -> Self {
        Self { courses: request.course_ids, coupon: request.user_coupon_id, points: request.points.unwrap_or(0) }
    }
}

/// One course of an order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ItemView {
    /// The course.
    pub course_id: CourseId,
    /// Its title when it was ordered.
    pub title: String,
    /// Its price when it was ordered.
    pub price_fen: Money,
    /// Its share of the coupon.
    pub coupon_discount_fen: Money,
    /// Its share of the points.
    pub points_discount_fen: Money,
    /// What is paid for it.
    pub payable_fen: Money,
    /// Whether a refund has taken the course back.
    pub refunded: bool,
}

impl From<&Item> for ItemView {
    fn from(item: &Item) -> Self {
        Self {
            course_id: item.course_id,
            title: item.title.clone(),
            price_fen: item.price,
            coupon_discount_fen: item.coupon_discount,
            points_discount_fen: item.points_discount,
            payable_fen: item.payable,
            refunded: item.is_refunded(),
        }
    }
}

/// What the button beside an order does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// Pay the order.
    Pay,
    /// Go to the course.
    Learn,
    /// Nothing: the label says why.
    None,
}

/// The button beside an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Action {
    /// What it does.
    pub kind: ActionKind,
    /// What it says.
    pub label: &'static str,
}

/// The button of an order in `status`. One whose time to pay is over and that the sweep has not reached cannot be paid.
fn action(status: Status, expired: bool) -> Action {
    let (kind, label) = match status {
        Status::Unpaid if expired => (ActionKind::None, "超时取消"),
        Status::Unpaid => (ActionKind::Pay, "去支付"),
        Status::Paid => (ActionKind::Learn, "去学习"),
        Status::Cancelled => (ActionKind::None, "已取消"),
        Status::TimedOut => (ActionKind::None, "超时取消"),
        Status::Refunding => (ActionKind::None, "退款中"),
        Status::Refunded => (ActionKind::None, "已退款"),
    };
    Action { kind, label }
}

/// An order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderView {
    /// Its number.
    pub order_no: OrderId,
    /// How it came about.
    pub kind: OrderKind,
    /// Where it is in its life.
    pub status: Status,
    /// The same as a number: 0 unpaid, 1 paid, 2 cancelled, 3 timed_out, 4 refunding, 5 refunded.
    pub status_code: i8,
    /// The button beside it.
    pub action: Action,
    /// Sum of the items' prices.
    pub total_fen: Money,
    /// What its coupon takes off.
    pub coupon_discount_fen: Money,
    /// What its points take off.
    pub points_discount_fen: Money,
    /// What is to be paid.
    pub payable_fen: Money,
    /// ISO 4217.
    pub currency: &'static str,
    /// Points it spends.
    pub points_used: i64,
    /// Points its payment earns.
    pub points_earned: i64,
    /// The coupon it uses.
    pub user_coupon_id: Option<UserCouponId>,
    /// Its courses.
    pub items: Vec<ItemView>,
    /// When it was made.
    pub created_at: At,
    /// When its time to pay ends.
    pub expires_at: At,
    /// When it was paid.
    pub paid_at: Option<At>,
    /// When its courses were given.
    pub granted_at: Option<At>,
    /// When it was closed without having been paid.
    pub closed_at: Option<At>,
}

impl OrderView {
    /// The order as its user sees it at `now`.
    pub fn of(order: &Order, items: &[Item], now: At) -> Self {
        Self {
            order_no: order.id,
            kind: order.kind,
            status: order.status,
            status_code: order.status.code(),
            action: action(order.status, now >= order.expires_at),
            total_fen: order.total,
            coupon_discount_fen: order.coupon_discount,
            points_discount_fen: order.points_discount,
            payable_fen: order.payable,
            currency: CURRENCY,
            points_used: order.points_used,
            points_earned: order.points_earned,
            user_coupon_id: order.user_coupon_id,
            items: items.iter().map(ItemView::from).collect(),
            created_at: order.created_at,
            expires_at: order.expires_at,
            paid_at: order.paid_at,
            granted_at: order.granted_at,
            closed_at: order.closed_at,
        }
    }
}

/// What an order would cost now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct QuoteView {
    /// Sum of the items' prices.
    pub total_fen: Money,
    /// What the coupon takes off.
    pub coupon_discount_fen: Money,
    /// What the points take off.
    pub points_discount_fen: Money,
    /// What is to be paid.
    pub payable_fen: Money,
    /// ISO 4217.
    pub currency: &'static str,
    /// Points it would spend.
    pub points_used: i64,
    /// The most points the order takes, of those you have.
    pub points_usable: i64,
    /// Points its payment would earn.
    pub points_earned: i64,
    /// Its courses.
    pub items: Vec<ItemView>,
}

/// What an order would cost now. Takes nothing; refuses what creating it would refuse.
#[utoipa::path(post, path = "/orders/quote", operation_id = "quote_order", tag = "orders", security(("bearer" = [])), request_body = OrderRequest,
    responses(
        (status = 200, body = QuoteView, description = "The price"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "not_found: not your coupon"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "course_unavailable, already_owned (both name `course_ids`), coupon_unusable, points_unusable"),
    ))]
pub async fn quote(
    State(app): State<App>,
    user: CurrentUser,
    Input(Json(request)): Input<Json<OrderRequest>>,
) -> Result<Reply<QuoteView>> {
    let quote = super::quote(&app, user.id, &request.into()).await?;
    let priced = quote.priced;
    Ok(Reply(QuoteView {
        total_fen: priced.total,
        coupon_discount_fen: priced.coupon_discount,
        points_discount_fen: priced.points_discount,
        payable_fen: priced.payable,
        currency: CURRENCY,
        points_used: priced.points_used,
        points_usable: priced.points_max.min(quote.points_balance),
        points_earned: priced.points_earned,
        items: quote.items.iter().map(ItemView::from).collect(),
    }))
}

/// Makes an order. The price is the server's. An order that costs nothing is paid at once.
#[utoipa::path(post, path = "/orders", operation_id = "create_order", tag = "orders", security(("bearer" = [])), request_body = OrderRequest,
    params(("Idempotency-Key" = String, Header, min_length = 1, max_length = 128, pattern = "^[!-~]{1,128}$",
        description = "A new one for each new order; the same one makes a repeat safe")),
    responses(
        (status = 201, body = OrderView, description = "Made; a repeat answers the same bytes"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "malformed_json, idempotency_key_missing, idempotency_key_invalid"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "not_found: not your coupon"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "course_unavailable, already_owned (both name `course_ids`), coupon_unusable, points_unusable"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "validation_failed, idempotency_key_reused"),
    ))]
pub async fn create(
    State(app): State<App>,
    user: CurrentUser,
    Inputs(key, Json(request)): Inputs<Key, Json<OrderRequest>>,
) -> Result<Answer> {
    let render =
        |made: &Whole, now: At| Answer::json(StatusCode::CREATED, &OrderView::of(&made.order, &made.items, now));
    super::create(&app, user.id, &key, &request.into(), render).await
}

/// Which of the caller's orders.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrdersQuery {
    /// `next_cursor` of the page before; absent for the first page.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    pub cursor: Option<Id<Cursor>>,
    /// Items of a page, 1..100.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<u32>,
    /// Only orders in this status.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^(unpaid|paid|cancelled|timed_out|refunding|refunded)$")]
    pub status: Option<Status>,
}

impl Shape<App> for OrdersQuery {}

/// The caller's orders, newest first.
#[utoipa::path(get, path = "/orders", operation_id = "list_orders", tag = "orders", security(("bearer" = [])), params(OrdersQuery),
    responses((status = 200, body = Page<OrderView>, description = "A page")))]
pub async fn list(
    State(app): State<App>,
    user: CurrentUser,
    Input(Query(query)): Input<Query<OrdersQuery>>,
) -> Result<Reply<Page<OrderView>>> {
    let page = PageQuery { cursor: query.cursor, limit: query.limit };
    let orders = super::list(&app, user.id, query.status, &page).await?;
    let now = app.clock.now();
    let items = orders.items.iter().map(|whole| OrderView::of(&whole.order, &whole.items, now)).collect();
    Ok(Reply(Page { items, next_cursor: orders.next_cursor }))
}

/// One of the caller's orders.
#[utoipa::path(get, path = "/orders/{no}", operation_id = "get_order", tag = "orders", security(("bearer" = [])),
    params(("no" = OrderId, Path, description = "The order's number")),
    responses(
        (status = 200, body = OrderView, description = "The order"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "not_found"),
    ))]
pub async fn detail(
    State(app): State<App>,
    user: CurrentUser,
    Input(Path(no)): Input<Path<OrderId>>,
) -> Result<Reply<OrderView>> {
    let Whole { order, items } = super::find_whole(&app, user.id, no).await?.ok_or(Kind::NotFound)?;
    Ok(Reply(OrderView::of(&order, &items, app.clock.now())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_button() {
        let buttons: Vec<_> =
            Status::ALL.into_iter().map(|s| (action(s, false).kind, action(s, false).label)).collect();
        let none = ActionKind::None;
        let wanted = [
            (ActionKind::Pay, "去支付"),
            (ActionKind::Learn, "去学习"),
            (none, "已取消"),
            (none, "超时取消"),
            (none, "退款中"),
            (none, "已退款"),
        ];
        assert_eq!(buttons, wanted);
        assert_eq!(action(Status::Unpaid, true), Action { kind: none, label: "超时取消" });
    }
}
