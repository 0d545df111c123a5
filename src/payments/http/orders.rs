//! Routes with which buyers look at their orders. They are here and not in the orders' room because an order is shown with
//! the money of it that went back, and orders know nothing of payments.

use axum::Json as Reply;
use axum::extract::State;
use serde::Deserialize;

use crate::app::App;
use crate::auth::CurrentUser;
use crate::error::{Problem, Result};
use crate::orders::{OrderId, OrderView, Status, WhichOrders};
use crate::payments::views::orders as views;
use crate::platform::extract::{Input, Path, Query, Shape};
use crate::platform::id::Id;
use crate::platform::page::{Cursor, Page, PageQuery};

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
    let which = WhichOrders { user: Some(user.id), kind: None, status: query.status };
    Ok(Reply(views::of_buyer(&app, &which, &page).await?))
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
    Ok(Reply(views::one_of_buyer(&app, user.id, no).await?))
}
