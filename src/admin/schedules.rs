//! Handlers of `/admin/schedules`.

mod body;
mod view;

use anyhow::Context;
use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use self::body::{ChangeSchedule, CreateSchedule};
use self::view::ScheduleView;
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::{Admin, UserId};
use crate::engine::schedule::{self, Definition, Schedule, ScheduleId, Written};
use crate::error::{Kind, Problem, Result, invalid, refuse, retrying};
use crate::platform::clock::At;
use crate::platform::extract::{Input, Inputs, Json, Path, Query};
use crate::platform::page::{Page, PageQuery};

/// An edit that finds the schedule edited in the meantime looks again, so often.
const EDIT_ATTEMPTS: usize = 5;

/// Every schedule, newest first.
#[utoipa::path(get, path = "/admin/schedules", tag = "admin", operation_id = "list_schedules", security(("bearer" = [])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<ScheduleView>, description = "A page of schedules"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Admin,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<Reply<Page<ScheduleView>>> {
    let mut conn = app.db.acquire().await?;
    let found = schedule::list(&mut conn, page.before(), page.fetch()).await?;
    drop(conn);
    let views = futures_util::future::join_all(found.into_iter().map(|schedule| ScheduleView::of(&app, schedule)));
    Ok(Reply(page.page(views.await, |view: &ScheduleView| view.id)))
}

/// Makes a schedule. The same `id` again answers the schedule that is there.
#[utoipa::path(post, path = "/admin/schedules", tag = "admin", operation_id = "create_schedule", security(("bearer" = [])),
    request_body = CreateSchedule,
    responses(
        (status = 201, body = ScheduleView, description = "The schedule, with its next runs"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`schedule_exists`: another schedule has the name"),
    ))]
pub async fn create(
    State(app): State<App>,
    Admin(admin): Admin,
    Input(Json(body)): Input<Json<CreateSchedule>>,
) -> Result<(StatusCode, Reply<ScheduleView>)> {
    let now = app.clock.now();
    let id = body.id();
    let definition = body.definition(&app.config.time_zone, now)?;
    retrying(|| create_once(&app, admin.id, id, &definition, now)).await?;
    let made = find(&app, id).await?;
    Ok((StatusCode::CREATED, Reply(ScheduleView::of(&app, made).await)))
}

async fn create_once(app: &App, by: UserId, id: ScheduleId, definition: &Definition, now: At) -> Result<()> {
    let mut tx = app.db.begin().await?;
    // The id counts before the name: a repeat of a request finds its own schedule under both.
    let there = schedule::find(&mut tx, id).await?;
    if there.is_none() {
        must_run(definition, now)?;
        match schedule::create(&mut tx, id, definition, now).await? {
            Written::Yes => {
                let act = Act { by, action: "schedule.create", target: &id.to_string() };
                audit::done(&mut tx, act, &told(definition), now).await?;
            }
            Written::No => {}
            // Two first tries at once: the name may be taken by the other one.
            Written::NameTaken if schedule::find(&mut tx, id).await?.is_some() => {}
            Written::NameTaken => return Err(name_taken(&definition.name).into()),
        }
    }
    Ok(tx.commit().await.context("committing")?)
}

/// One schedule.
#[utoipa::path(get, path = "/admin/schedules/{id}", tag = "admin", operation_id = "show_schedule", security(("bearer" = [])),
    params(("id" = ScheduleId, Path)),
    responses(
        (status = 200, body = ScheduleView, description = "The schedule"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`"),
    ))]
pub async fn show(
    State(app): State<App>,
    _: Admin,
    Input(Path(id)): Input<Path<ScheduleId>>,
) -> Result<Reply<ScheduleView>> {
    let found = find(&app, id).await?;
    Ok(Reply(ScheduleView::of(&app, found).await))
}

/// Changes a schedule while it runs; what is absent stays. When its times change, the next run is the first one after
/// the present.
#[utoipa::path(patch, path = "/admin/schedules/{id}", tag = "admin", operation_id = "change_schedule", security(("bearer" = [])),
    request_body = ChangeSchedule, params(("id" = ScheduleId, Path)),
    responses(
        (status = 200, body = ScheduleView, description = "The schedule, with its next runs"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`schedule_exists`: another schedule has the name"),
    ))]
pub async fn change(
    State(app): State<App>,
    Admin(admin): Admin,
    Inputs(Path(id), Json(body)): Inputs<Path<ScheduleId>, Json<ChangeSchedule>>,
) -> Result<Reply<ScheduleView>> {
    for _ in 0..EDIT_ATTEMPTS {
        let before = find(&app, id).await?;
        let definition = body.applied_to(&before.definition)?;
        if definition == before.definition && before.last_error.is_none() {
            // Also the repeat of an edit whose answer was lost.
            return Ok(Reply(ScheduleView::of(&app, before).await));
        }
        let now = app.clock.now();
        if definition.runs_otherwise_than(&before.definition) {
            must_run(&definition, now)?;
        }
        match retrying(|| change_once(&app, admin.id, &before, &definition, now)).await? {
            Written::Yes => {
                let changed = find(&app, id).await?;
                return Ok(Reply(ScheduleView::of(&app, changed).await));
            }
            Written::No => {}
            Written::NameTaken => return Err(name_taken(&definition.name).into()),
        }
    }
    Err(refuse(Kind::Unavailable, "others are editing this schedule").retry_after(1).into())
}

async fn change_once(app: &App, by: UserId, before: &Schedule, new: &Definition, now: At) -> Result<Written> {
    let mut tx = app.db.begin().await?;
    let written = schedule::edit(&mut tx, before, new, now).await?;
    if written == Written::Yes {
        let act = Act { by, action: "schedule.change", target: &before.id.to_string() };
        let details = json!({ "before": told(&before.definition), "after": told(new) });
        audit::done(&mut tx, act, &details, now).await?;
        tx.commit().await.context("committing")?;
    }
    Ok(written)
}

/// Removes a schedule, if it is there. One of the product's own comes back at the next start: disable it instead.
#[utoipa::path(delete, path = "/admin/schedules/{id}", tag = "admin", operation_id = "delete_schedule", security(("bearer" = [])),
    params(("id" = ScheduleId, Path)),
    responses(
        (status = 204, description = "It is not there any more"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
    ))]
pub async fn delete(
    State(app): State<App>,
    Admin(admin): Admin,
    Input(Path(id)): Input<Path<ScheduleId>>,
) -> Result<StatusCode> {
    let removed = retrying(|| async {
        let mut tx = app.db.begin().await?;
        if schedule::delete(&mut tx, id).await? {
            let act = Act { by: admin.id, action: "schedule.delete", target: &id.to_string() };
            audit::done(&mut tx, act, &json!({}), app.clock.now()).await?;
        }
        Ok(tx.commit().await.context("committing")?)
    });
    removed.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A schedule as the audit keeps it: without its arguments.
fn told(definition: &Definition) -> Value {
    json!({
        "name": definition.name,
        "task": definition.task,
        "kind": definition.kind.as_str(),
        "every_s": definition.every_s,
        "crontab": definition.crontab,
        "run_at": definition.run_at,
        "time_zone": definition.time_zone,
        "enabled": definition.enabled,
        "catch_up": definition.catch_up.as_str(),
        "catch_up_max": definition.catch_up_max,
        "overlap": definition.overlap,
    })
}

async fn find(app: &App, id: ScheduleId) -> Result<Schedule> {
    let mut conn = app.db.acquire().await?;
    Ok(schedule::find(&mut conn, id).await?.ok_or(Kind::NotFound)?)
}

/// A schedule that is on and would never run is a mistake.
fn must_run(definition: &Definition, now: At) -> Result<()> {
    if definition.enabled && definition.next_run(now).is_none() {
        return Err(invalid(definition.kind.field(), "leaves no run after the present"));
    }
    Ok(())
}

fn name_taken(name: &str) -> crate::error::Refusal {
    refuse(Kind::ScheduleExists, format!("another schedule is called {name}"))
}
