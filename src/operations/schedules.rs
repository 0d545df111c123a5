//! Handlers of `/admin/schedules`.

mod body;
mod edit;
mod view;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;

use self::body::{ChangeSchedule, CreateSchedule};
use self::view::ScheduleView;
use crate::access::{Require, may};
use crate::app::App;
use crate::engine::schedule::ScheduleId;
use crate::error::Result;
use crate::platform::extract::{Input, Inputs, Json, Path, Query};
use crate::platform::page::{Page, PageQuery};

/// Every schedule, newest first.
#[utoipa::path(get, path = "/admin/schedules", tag = "admin", operation_id = "list_schedules", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<ScheduleView>, description = "A page of schedules"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<Reply<Page<ScheduleView>>> {
    let found = edit::list(&app, &page).await?;
    let views = futures_util::future::join_all(found.into_iter().map(|schedule| ScheduleView::of(&app, schedule)));
    Ok(Reply(page.page(views.await, |view: &ScheduleView| view.id)))
}

/// Makes a schedule. The same `id` again answers the schedule that is there.
#[utoipa::path(post, path = "/admin/schedules", tag = "admin", operation_id = "create_schedule", extensions(("x-permission" = json!("schedules.write"))), security(("bearer" = [])),
    request_body = CreateSchedule,
    responses(
        (status = 201, body = ScheduleView, description = "The schedule, with its next runs"),
        (status = 409, description = "`schedule_exists`: another schedule has the name"),
    ))]
pub async fn create(
    State(app): State<App>,
    Require(admin, _): Require<may::SchedulesWrite>,
    Input(Json(body)): Input<Json<CreateSchedule>>,
) -> Result<(StatusCode, Reply<ScheduleView>)> {
    let now = app.clock.now();
    let definition = body.definition(&app.config.time_zone, now)?;
    let made = edit::create(&app, admin.id, body.id(), &definition, now).await?;
    Ok((StatusCode::CREATED, Reply(ScheduleView::of(&app, made).await)))
}

/// One schedule.
#[utoipa::path(get, path = "/admin/schedules/{id}", tag = "admin", operation_id = "get_schedule", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(("id" = ScheduleId, Path)),
    responses(
        (status = 200, body = ScheduleView, description = "The schedule"),
    ))]
pub async fn show(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Path(id)): Input<Path<ScheduleId>>,
) -> Result<Reply<ScheduleView>> {
    let found = edit::find(&app, id).await?;
    Ok(Reply(ScheduleView::of(&app, found).await))
}

/// Changes a schedule while it runs; what is absent stays. When its times change, the next run is the first one after
/// the present.
#[utoipa::path(patch, path = "/admin/schedules/{id}", tag = "admin", operation_id = "change_schedule", extensions(("x-permission" = json!("schedules.write"))), security(("bearer" = [])),
    request_body = ChangeSchedule, params(("id" = ScheduleId, Path)),
    responses(
        (status = 200, body = ScheduleView, description = "The schedule, with its next runs"),
        (status = 409, description = "`schedule_exists`: another schedule has the name"),
    ))]
pub async fn change(
    State(app): State<App>,
    Require(admin, _): Require<may::SchedulesWrite>,
    Inputs(Path(id), Json(body)): Inputs<Path<ScheduleId>, Json<ChangeSchedule>>,
) -> Result<Reply<ScheduleView>> {
    let changed = edit::change(&app, admin.id, id, |before| Ok(body.applied_to(before)?)).await?;
    Ok(Reply(ScheduleView::of(&app, changed).await))
}

/// Removes a schedule, if it is there. One of the product's own comes back at the next start: disable it instead.
#[utoipa::path(delete, path = "/admin/schedules/{id}", tag = "admin", operation_id = "delete_schedule", extensions(("x-permission" = json!("schedules.write"))), security(("bearer" = [])),
    params(("id" = ScheduleId, Path)),
    responses(
        (status = 204, description = "It is not there any more"),
    ))]
pub async fn delete(
    State(app): State<App>,
    Require(admin, _): Require<may::SchedulesWrite>,
    Input(Path(id)): Input<Path<ScheduleId>>,
) -> Result<StatusCode> {
    edit::delete(&app, admin.id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
