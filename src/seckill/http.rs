//! Handlers of the seckill routes.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::Object;

use super::model::{Activity, ActivityId, Phase};
use super::watcher::events_url;
use super::{
    NewActivity, change_stock as change, close_activity as close, create_activity as create, submit as submit_to,
    window_faults,
};
use crate::access::{Require, may};
use crate::app::App;
use crate::auth::CurrentUser;
use crate::catalogue::CourseId;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::described::numbers;
use crate::platform::extract::{Faults, Input, Inputs, Json, Path, Query, Shape};
use crate::platform::lang::Lang;
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};
use crate::platform::spelling::nfc;
use crate::platform::validators::{in_our_time, words};
use crate::texts;

/// A seckill activity.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ActivityView {
    /// Its id.
    pub id: ActivityId,
    /// What is sold.
    pub course_id: CourseId,
    /// Its title.
    pub title: String,
    /// The price of one unit.
    pub price_fen: Money,
    /// ISO 4217.
    pub currency: &'static str,
    /// Units in all.
    pub stock: i64,
    /// Units not yet ordered; submissions in the queue are not counted off.
    pub stock_left: i64,
    /// How often one user may be given a unit, those given back included.
    pub per_user_limit: i32,
    /// Seconds to pay an order.
    pub pay_deadline_s: i32,
    /// When the sale begins.
    pub starts_at: At,
    /// When it ends.
    pub ends_at: At,
    /// When it was closed early.
    pub closed_at: Option<At>,
    /// Where it is in its life.
    pub phase: Phase,
    /// The server's time: count down by it.
    pub now: At,
}

impl ActivityView {
    fn of(activity: Activity, now: At) -> Self {
        Self {
            phase: activity.phase(now),
            id: activity.id,
            course_id: activity.course_id,
            title: activity.title,
            price_fen: activity.price_fen,
            currency: crate::platform::money::CURRENCY,
            stock: activity.stock,
            stock_left: activity.stock_left,
            per_user_limit: activity.per_user_limit,
            pay_deadline_s: activity.pay_deadline_s,
            starts_at: activity.starts_at,
            ends_at: activity.ends_at,
            closed_at: activity.closed_at,
            now,
        }
    }
}

/// Activities on sale or to come, newest first.
#[utoipa::path(get, path = "/seckill/activities", tag = "seckill", params(PageQuery),
    responses((status = 200, body = Page<ActivityView>, description = "A page of activities")))]
pub async fn list_activities(
    State(app): State<App>,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<Reply<Page<ActivityView>>> {
    let now = app.clock.now();
    let found = super::list_activities(&app, now, &page).await?;
    let views = found.into_iter().map(|activity| ActivityView::of(activity, now)).collect();
    Ok(Reply(page.page(views, |view: &ActivityView| view.id)))
}

/// One activity.
#[utoipa::path(get, path = "/seckill/activities/{id}", operation_id = "get_activity", tag = "seckill", params(("id" = ActivityId, Path)),
    responses(
        (status = 200, body = ActivityView, description = "The activity"),
    ))]
pub async fn show_activity(
    State(app): State<App>,
    Input(Path(id)): Input<Path<ActivityId>>,
) -> Result<Reply<ActivityView>> {
    let activity = super::find_activity(&app, id).await?;
    Ok(Reply(ActivityView::of(activity, app.clock.now())))
}

/// A submission was taken on, or was there already.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Submitted {
    /// Always 100.
    #[schema(schema_with = code_schema)]
    pub code: i32,
    /// For a person, in Chinese, or in English when `Accept-Language` prefers it.
    #[schema(example = "正在排队")]
    pub msg: &'static str,
    /// The task to poll at `/tasks/{id}`.
    #[schema(
        pattern = r"^[0-9a-f]{32}\.seckill\.[0-9a-f]{32}$",
        example = "019aa23b8f007cc3a1d2c0ffee000001.seckill.019aa23b8f007cc3a1d2c0ffee000002"
    )]
    pub id: String,
    /// Where a browser's `EventSource` hears of the task: it needs no header. Good for this task and for ten minutes; the
    /// same submission again gets another one.
    #[schema(
        example = "https://shop.example.com/api/v1/tasks/019aa23b8f007cc3a1d2c0ffee000001.seckill.019aa23b8f007cc3a1d2c0ffee000002/events?ticket=AZqiO48AfMOh0sD_7gAAAQAAAABpAA"
    )]
    pub events_url: String,
}

fn code_schema() -> Object {
    numbers(&[100], "Always 100.")
}

/// Takes part: one unit is reserved and the order is queued. The same user again gets the same id.
#[utoipa::path(post, path = "/api/v1/seckill/activities/{id}/submissions", operation_id = "submit_seckill", tag = "seckill", security(("bearer" = [])),
    params(("id" = ActivityId, Path)),
    responses(
        (status = 202, body = Submitted, description = "In the queue: poll the task"),
        (status = 404, description = "`not_found`: no such activity"),
        (status = 409, description = "`not_started` (with `starts_at` and `Retry-After`), `sold_out`, `limit_reached`, `already_owned`, `order_refunded`: the unit that was won was refunded"),
        (status = 410, description = "`ended`"),
        (status = 429, description = "`too_many_attempts`: the account submits too often; `Retry-After` says when the next one counts",
            headers(("Retry-After" = u64, description = "Seconds until the next one is taken"))),
    ))]
pub async fn submit(
    State(app): State<App>,
    user: CurrentUser,
    lang: Lang,
    Input(Path(id)): Input<Path<ActivityId>>,
) -> Result<(StatusCode, Reply<Submitted>)> {
    let id = submit_to(&app, id, user.id).await?.to_string();
    let events_url = events_url(&app, &id, user.id);
    Ok((StatusCode::ACCEPTED, Reply(Submitted { code: 100, msg: texts::queued(lang), id, events_url })))
}

/// A new activity.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateActivity {
    /// Its id, chosen by the client so that a repeat is safe; made by the server when absent.
    #[garde(skip)]
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    pub id: Option<ActivityId>,
    /// What is sold.
    #[garde(skip)]
    #[schema(value_type = String, pattern = "^[0-9a-f]{32}$")]
    pub course_id: CourseId,
    /// Its title.
    #[garde(custom(words(1, 200)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub title: String,
    /// The price of one unit.
    #[garde(range(min = 0, max = 100_000_000))]
    #[schema(minimum = 0, maximum = 100_000_000)]
    pub price_fen: i64,
    /// Units.
    #[garde(range(min = 1, max = 10_000_000))]
    #[schema(minimum = 1, maximum = 10_000_000)]
    pub stock: i64,
    /// How often one user may be given a unit, those given back included; 3 when absent.
    #[garde(range(min = 1, max = 100))]
    #[schema(minimum = 1, maximum = 100)]
    pub per_user_limit: Option<i32>,
    /// Seconds to pay an order; 300 when absent.
    #[garde(range(min = 1, max = 86_400))]
    #[schema(minimum = 1, maximum = 86_400)]
    pub pay_deadline_s: Option<i32>,
    /// When the sale begins, RFC 3339.
    #[garde(custom(in_our_time))]
    #[schema(value_type = String, format = DateTime, max_length = 40)]
    pub starts_at: At,
    /// When it ends: after it began, and in the future. RFC 3339.
    #[garde(custom(in_our_time))]
    #[schema(value_type = String, format = DateTime, max_length = 40)]
    pub ends_at: At,
}

impl Shape<App> for CreateActivity {
    fn together(&self, app: &App, faults: &mut Faults) {
        if faults.spare(&["ends_at"]) {
            faults.extend(window_faults(self.starts_at, self.ends_at, app.clock.now()));
        }
    }
}

impl From<CreateActivity> for NewActivity {
    fn from(body: CreateActivity) -> Self {
        Self {
            id: body.id.unwrap_or_default(),
            course: body.course_id,
            title: body.title,
            price: Money::fen(body.price_fen),
            stock: body.stock,
            per_user_limit: body.per_user_limit.unwrap_or(3),
            pay_deadline_s: body.pay_deadline_s.unwrap_or(300),
            starts_at: body.starts_at,
            ends_at: body.ends_at,
        }
    }
}

/// Creates an activity and opens its gate. The same `id` again answers the activity that is there.
#[utoipa::path(post, path = "/admin/seckill/activities", operation_id = "create_activity", extensions(("x-permission" = json!("activities.write"))), tag = "admin", security(("bearer" = [])), request_body = CreateActivity,
    responses(
        (status = 201, body = ActivityView, description = "The activity"),
        (status = 409, description = "`activity_exists`: the id is another activity's"),
    ))]
pub async fn create_activity(
    State(app): State<App>,
    Require(admin, _): Require<may::ActivitiesWrite>,
    Input(Json(body)): Input<Json<CreateActivity>>,
) -> Result<(StatusCode, Reply<ActivityView>)> {
    let activity = create(&app, Some(admin.id), body.into()).await?;
    Ok((StatusCode::CREATED, Reply(ActivityView::of(activity, app.clock.now()))))
}

/// A change of an activity.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeActivity {
    /// Units in all, those already taken included.
    #[garde(range(min = 0, max = 10_000_000))]
    #[schema(minimum = 0, maximum = 10_000_000)]
    pub stock: i64,
}

impl Shape<App> for ChangeActivity {}

/// Changes the stock of an activity.
#[utoipa::path(patch, path = "/admin/seckill/activities/{id}", operation_id = "change_activity", extensions(("x-permission" = json!("activities.write"))), tag = "admin", security(("bearer" = [])), request_body = ChangeActivity,
    params(("id" = ActivityId, Path)),
    responses(
        (status = 200, body = ActivityView, description = "The activity"),
        (status = 409, description = "`activity_state`: so many units are already taken"),
        (status = 410, description = "`ended`"),
    ))]
pub async fn change_activity(
    State(app): State<App>,
    Require(admin, _): Require<may::ActivitiesWrite>,
    Inputs(Path(id), Json(body)): Inputs<Path<ActivityId>, Json<ChangeActivity>>,
) -> Result<Reply<ActivityView>> {
    let activity = change(&app, admin.id, id, body.stock).await?;
    Ok(Reply(ActivityView::of(activity, app.clock.now())))
}

/// Ends the sale at once. A repeat changes nothing.
#[utoipa::path(post, path = "/admin/seckill/activities/{id}/close", operation_id = "close_activity", extensions(("x-permission" = json!("activities.write"))), tag = "admin", security(("bearer" = [])),
    params(("id" = ActivityId, Path)),
    responses(
        (status = 200, body = ActivityView, description = "The activity"),
    ))]
pub async fn close_activity(
    State(app): State<App>,
    Require(admin, _): Require<may::ActivitiesWrite>,
    Input(Path(id)): Input<Path<ActivityId>>,
) -> Result<Reply<ActivityView>> {
    let activity = close(&app, admin.id, id).await?;
    Ok(Reply(ActivityView::of(activity, app.clock.now())))
}
