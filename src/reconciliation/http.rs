//! Routes with which administrators look at the gateways' bills, and at where they differ from our books.

use crate::payments::{BillSubject, Gateway};
use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use crate::access::{Require, may};
use crate::app::App;
use crate::error::{Kind, Result};
use crate::platform::day::Day;
use crate::platform::extract::{Input, Inputs, Json, Path, Shape};
use crate::platform::page::{Page, PageQuery, Paged};
use crate::platform::spelling::nfc;
use crate::platform::validators::words;
use crate::reconciliation::views::{self, BillOfDayView, BillView, DifferenceView};
use crate::reconciliation::{DifferenceId, DifferenceKind, DifferenceStatus};

/// Which bills.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BillsQuery {
    /// Of this gateway alone.
    #[garde(skip)]
    #[param(value_type = Gateway, required = false)]
    gateway: Option<Gateway>,
}

impl Shape<App> for BillsQuery {}

/// The gateways' bills, the latest fetch first: what was fetched when, and how many differences its day has.
#[utoipa::path(get, path = "/admin/payments/bills", operation_id = "list_bills", extensions(("x-permission" = json!("statements.read"))), tag = "admin", security(("bearer" = [])),
    params(BillsQuery, PageQuery),
    responses(
        (status = 200, body = Page<BillView>, description = "A page of bills"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::StatementsRead>,
    Input(Paged(query, page)): Input<Paged<BillsQuery>>,
) -> Result<Reply<Page<BillView>>> {
    Ok(Reply(views::bills(&app, query.gateway, &page).await?))
}

/// The bill of a day, and how far the fetching of it is.
#[utoipa::path(get, path = "/admin/payments/bills/{gateway}/{day}", operation_id = "get_bill", extensions(("x-permission" = json!("statements.read"))), tag = "admin",
    security(("bearer" = [])),
    params(("gateway" = Gateway, Path, description = "The gateway"),
        ("day" = String, Path, format = "date", description = "The day, such as 2026-11-20")),
    responses(
        (status = 200, body = BillOfDayView, description = "The bill of that day, also one that was never asked for"),
        (status = 404, description = "`not_found`: no such gateway"),
    ))]
pub async fn show(
    State(app): State<App>,
    _: Require<may::StatementsRead>,
    Input(Path((name, day))): Input<Path<(String, Day)>>,
) -> Result<Reply<BillOfDayView>> {
    let gateway: Gateway = name.parse().map_err(|_| Kind::NotFound)?;
    Ok(Reply(views::of_day(&app, gateway, day).await?))
}

/// Has the bill of a day fetched, also one that is there, and compared with our books: a task does, and
/// `GET /admin/payments/bills/{gateway}/{day}` shows how far it is. Safe to repeat: while it is fetched the same task is
/// answered, and a bill that says the same changes nothing.
#[utoipa::path(post, path = "/admin/payments/bills/{gateway}/{day}/fetch", operation_id = "fetch_bill", extensions(("x-permission" = json!("statements.write"))), tag = "admin",
    security(("bearer" = [])),
    params(("gateway" = Gateway, Path, description = "The gateway"),
        ("day" = String, Path, format = "date", description = "The day, such as 2026-11-20")),
    responses(
        (status = 202, body = BillOfDayView, description = "It is asked for; `task_id` names the task"),
        (status = 404, description = "`not_found`: no such gateway"),
        (status = 409, description = "`bill_not_ready`: gateways have no bill of that day yet; `ready_at` says when. `gateway_off`: the gateway is switched off"),
    ))]
pub async fn fetch(
    State(app): State<App>,
    Require(admin, _): Require<may::StatementsWrite>,
    Input(Path((name, day))): Input<Path<(String, Day)>>,
) -> Result<(StatusCode, Reply<BillOfDayView>)> {
    let gateway: Gateway = name.parse().map_err(|_| Kind::NotFound)?;
    Ok((StatusCode::ACCEPTED, Reply(views::ask(&app, admin.id, gateway, day).await?)))
}

/// Which differences.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DifferencesQuery {
    /// Of this gateway's bills alone.
    #[garde(skip)]
    #[param(value_type = Gateway, required = false)]
    gateway: Option<Gateway>,
    /// `payment` or `refund`.
    #[garde(skip)]
    #[param(value_type = BillSubject, required = false)]
    what: Option<BillSubject>,
    /// `missing_here`, `missing_there`, `amount_differs` or `state_differs`.
    #[garde(skip)]
    #[param(value_type = DifferenceKind, required = false)]
    kind: Option<DifferenceKind>,
    /// `waiting`, `open`, `resolved` or `vanished`.
    #[garde(skip)]
    #[param(value_type = DifferenceStatus, required = false)]
    status: Option<DifferenceStatus>,
}

impl Shape<App> for DifferencesQuery {}

/// Where the gateways' bills and our books differ, newest first.
#[utoipa::path(get, path = "/admin/payments/differences", operation_id = "list_differences", extensions(("x-permission" = json!("statements.read"))), tag = "admin",
    security(("bearer" = [])),
    params(DifferencesQuery, PageQuery),
    responses(
        (status = 200, body = Page<DifferenceView>, description = "A page of differences"),
    ))]
pub async fn differences(
    State(app): State<App>,
    _: Require<may::StatementsRead>,
    Input(Paged(query, page)): Input<Paged<DifferencesQuery>>,
) -> Result<Reply<Page<DifferenceView>>> {
    let DifferencesQuery { gateway, what, kind, status } = query;
    Ok(Reply(views::differences(&app, views::DifferenceFilter { gateway, what, kind, status }, &page).await?))
}

/// What a person says of a difference.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// What it was, and what was done about it.
    #[garde(custom(words(1, 500)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 500, pattern = r"\S")]
    pub note: String,
}

impl Shape<App> for ResolveRequest {}

/// Resolves an open difference, with a note. One that was resolved before stays as it is, so a repeat does no harm; it comes
/// back only when its amounts change.
#[utoipa::path(post, path = "/admin/payments/differences/{id}/resolve", operation_id = "resolve_difference", extensions(("x-permission" = json!("statements.write"))), tag = "admin",
    security(("bearer" = [])),
    params(("id" = DifferenceId, Path, description = "The difference")),
    request_body = ResolveRequest,
    responses(
        (status = 200, body = DifferenceView, description = "It is resolved, now or before"),
        (status = 409, description = "`difference_state`: it has come to fit by itself, or is still waiting; `waits_until` says until when at the latest"),
    ))]
pub async fn resolve(
    State(app): State<App>,
    Require(admin, _): Require<may::StatementsWrite>,
    Inputs(Path(id), Json(request)): Inputs<Path<DifferenceId>, Json<ResolveRequest>>,
) -> Result<Reply<DifferenceView>> {
    Ok(Reply(views::resolve(&app, admin.id, id, &request.note).await?))
}
