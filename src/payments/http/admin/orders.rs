//! Routes with which administrators look at orders.

use axum::Json as Reply;
use axum::extract::State;
use serde::Deserialize;

use crate::access::{Require, may};
use crate::app::App;
use crate::auth::{Phone, UserId};
use crate::error::Result;
use crate::orders::{OrderId, OrderKind, Status, WhichOrders};
use crate::payments::views::orders::{self as views, AdminOrderDetail, AdminOrderView};
use crate::platform::extract::{Input, Path, Shape};
use crate::platform::page::{Page, PageQuery, Paged};

/// Which orders.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AdminOrdersQuery {
    /// In this status alone.
    #[garde(skip)]
    #[param(value_type = Status, required = false)]
    status: Option<Status>,
    /// Of this kind alone.
    #[garde(skip)]
    #[param(value_type = OrderKind, required = false)]
    kind: Option<OrderKind>,
    /// Of this buyer alone.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    user_id: Option<UserId>,
    /// Of the buyer with this phone number alone.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^1[3-9][0-9]{9}$")]
    phone: Option<Phone>,
}

impl Shape<App> for AdminOrdersQuery {}

/// Everybody's orders, newest first.
#[utoipa::path(get, path = "/admin/orders", operation_id = "admin_list_orders", extensions(("x-permission" = json!("orders.read"))), tag = "admin", security(("bearer" = [])),
    params(AdminOrdersQuery, PageQuery),
    responses(
        (status = 200, body = Page<AdminOrderView>, description = "A page of orders; empty when nobody has the phone number"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Paged(query, page)): Input<Paged<AdminOrdersQuery>>,
) -> Result<Reply<Page<AdminOrderView>>> {
    let AdminOrdersQuery { status, kind, user_id, phone } = query;
    let which = WhichOrders { user: user_id, kind, status };
    Ok(Reply(views::all(&app, which, phone.as_ref(), &page).await?))
}

/// An order with its buyer, its coupon, its payments and all that went back of it.
#[utoipa::path(get, path = "/admin/orders/{no}", operation_id = "admin_get_order", extensions(("x-permission" = json!("orders.read"))), tag = "admin", security(("bearer" = [])),
    params(("no" = OrderId, Path, description = "The order's number")),
    responses(
        (status = 200, body = AdminOrderDetail, description = "The order"),
    ))]
pub async fn detail(
    State(app): State<App>,
    _: Require<may::OrdersRead>,
    Input(Path(no)): Input<Path<OrderId>>,
) -> Result<Reply<AdminOrderDetail>> {
    Ok(Reply(views::one(&app, no).await?))
}
