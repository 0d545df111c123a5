//! Routes of orders: quote and create. Paying and cancelling ask a gateway, and an order is shown with the money of it that
//! went back: they are the payments room's.

use std::collections::HashSet;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{ItemView, NewOrder, OrderView, Whole};
use crate::app::App;
use crate::auth::LiveUser;
use crate::catalogue::CourseId;
use crate::error::Result;
use crate::idempotency::{Key, StoredAnswer};
use crate::platform::clock::At;
use crate::platform::extract::{Faults, Input, Inputs, Json, Shape};
use crate::platform::money::{CURRENCY, Money};
use crate::wallet::UserCouponId;

/// What to order.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "course_ids": ["00000000000000000000000000000001"], "points": 0 }))]
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
    /// What the buyer was shown as `payable_fen`: refused with `price_changed` when it is something else now.
    #[garde(range(min = 0, max = 100_000_000_000_000))]
    #[schema(minimum = 0, maximum = 100_000_000_000_000i64)]
    pub expected_payable_fen: Option<i64>,
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
        Self {
            courses: request.course_ids,
            coupon: request.user_coupon_id,
            points: request.points.unwrap_or(0),
            expected_payable: request.expected_payable_fen.map(Money::fen),
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
        (status = 404, description = "`not_found`: not your coupon"),
        (status = 409, description = "`course_unavailable`, `already_owned` (both name `course_ids`), `coupon_unusable`, `points_unusable`, `price_changed` (with `expected_payable_fen` and `payable_fen`), `amount_too_large` (with `max_fen` and `gateways`), `too_many_unpaid` (with `max`, and `course_ids` when it is about courses)"),
    ))]
pub async fn quote(
    State(app): State<App>,
    LiveUser(user): LiveUser,
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
        (status = 400, description = "`malformed_json`, `idempotency_key_missing`, `idempotency_key_invalid`"),
        (status = 404, description = "`not_found`: not your coupon"),
        (status = 409, description = "`course_unavailable`, `already_owned` (both name `course_ids`), `coupon_unusable`, `points_unusable`, `price_changed` (with `expected_payable_fen` and `payable_fen`), `amount_too_large` (with `max_fen` and `gateways`), `too_many_unpaid` (with `max`, and `course_ids` when it is about courses)"),
        (status = 422, description = "`validation_failed`, `idempotency_key_reused`"),
    ))]
pub async fn create(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Inputs(key, Json(request)): Inputs<Key, Json<OrderRequest>>,
) -> Result<StoredAnswer> {
    let render =
        |made: &Whole, now: At| StoredAnswer::json(StatusCode::CREATED, &OrderView::new(&made.order, &made.items, now));
    super::create(&app, user.id, &key, &request.into(), render).await
}
