//! Routes with which buyers look at their orders. They are here and not in the orders' room because an order is shown with
//! the money of it that went back, and orders know nothing of payments.

use axum::Json as Reply;
use axum::extract::State;
use serde::Deserialize;

use crate::app::App;
use crate::auth::LiveUser;
use crate::error::Result;
use crate::orders::{OrderId, OrderView, Status, WhichOrders};
use crate::payments::views::orders as views;
use crate::platform::extract::{Input, Path, Shape};
use crate::platform::page::{Page, PageQuery, Paged};

/// Which of the caller's orders.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrdersQuery {
    /// Only orders in this status.
    #[garde(skip)]
    #[param(value_type = Status, required = false)]
    pub status: Option<Status>,
}

impl Shape<App> for OrdersQuery {}

/// The caller's orders, newest first.
#[utoipa::path(get, path = "/orders", operation_id = "list_orders", tag = "orders", security(("bearer" = [])), params(OrdersQuery, PageQuery),
    responses((status = 200, body = Page<OrderView>, description = "A page")))]
pub async fn list(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Paged(query, page)): Input<Paged<OrdersQuery>>,
) -> Result<Reply<Page<OrderView>>> {
    let which = WhichOrders { user: Some(user.id), kind: None, status: query.status };
    Ok(Reply(views::of_buyer(&app, &which, &page).await?))
}

/// One of the caller's orders.
#[utoipa::path(get, path = "/orders/{no}", operation_id = "get_order", tag = "orders", security(("bearer" = [])),
    params(("no" = OrderId, Path, description = "The order's number")),
    responses(
        (status = 200, body = OrderView, description = "The order"),
    ))]
pub async fn detail(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Path(no)): Input<Path<OrderId>>,
) -> Result<Reply<OrderView>> {
    Ok(Reply(views::one_of_buyer(&app, user.id, no).await?))
}
