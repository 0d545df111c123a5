//! Handlers of `/admin/reports`.

use axum::Json as Reply;
use axum::extract::State;
use serde::Deserialize;

use super::DailyReport;
use crate::access::{Require, may};
use crate::app::App;
use crate::error::Result;
use crate::platform::day::Day;
use crate::platform::extract::{Input, Path, Query, Shape};
use crate::platform::page::{self, Page};

/// Which page of the reports.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReportsQuery {
    /// `next_cursor` of the page before, its last day; absent for the first page.
    #[garde(skip)]
    #[param(value_type = Option<String>, format = "date")]
    cursor: Option<Day>,
    /// Items of a page, 1..100.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

impl Shape<App> for ReportsQuery {}

/// What each business day came to, newest first.
#[utoipa::path(get, path = "/admin/reports/daily", tag = "admin", operation_id = "list_daily_reports", extensions(("x-permission" = json!("reports.read"))),
    security(("bearer" = [])),
    params(ReportsQuery),
    responses(
        (status = 200, body = Page<DailyReport>, description = "A page of reports"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::ReportsRead>,
    Input(Query(query)): Input<Query<ReportsQuery>>,
) -> Result<Reply<Page<DailyReport>>> {
    let size = page::size(query.limit);
    let reports = super::list(&app, query.cursor.unwrap_or(Day::MAX), size + 1).await?;
    Ok(Reply(Page::cut(reports, size, |report| report.day.to_string())))
}

/// What one business day came to.
///
/// There is no report of a day before the day is over and the report is made: 404 until then, and `ready_at` says when
/// the next run of the schedule makes it.
#[utoipa::path(get, path = "/admin/reports/daily/{day}", tag = "admin", operation_id = "get_daily_report", extensions(("x-permission" = json!("reports.read"))),
    security(("bearer" = [])),
    params(("day" = String, Path, format = "date", description = "The day, such as 2026-11-20")),
    responses(
        (status = 200, body = DailyReport, description = "The report"),
        (status = 404, description = "`not_found`: the day has no report, or none yet; `ready_at` says when it will be there"),
    ))]
pub async fn show(
    State(app): State<App>,
    _: Require<may::ReportsRead>,
    Input(Path(day)): Input<Path<Day>>,
) -> Result<Reply<DailyReport>> {
    super::find(&app, day).await.map(Reply)
}
