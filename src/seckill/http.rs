//! Handlers of the seckill routes.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::model::{Activity, ActivityId, Phase};
use super::{
    NewActivity, change_stock as change, close_activity as close, create_activity as create, store, submit as submit_to,
};
use crate::app::App;
use crate::auth::{Admin, CurrentUser};
use crate::catalogue::CourseId;
use crate::error::{Problem, Result, invalid};
use crate::platform::clock::At;
use crate::platform::extract::{Json, Path, Query};
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};

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
    Query(page): Query<PageQuery>,
) -> Result<Answer<Page<ActivityView>>> {
    let now = app.clock.now();
    let mut conn = app.db.acquire().await?;
    let found = store::list_activities(&mut conn, now, page.before(), page.fetch()).await?;
    let views = found.into_iter().map(|activity| ActivityView::of(activity, now)).collect();
    Ok(Answer(page.page(views, |view: &ActivityView| view.id)))
}

/// One activity.
#[utoipa::path(get, path = "/seckill/activities/{id}", tag = "seckill", params(("id" = ActivityId, Path)),
    responses(
        (status = 200, body = ActivityView, description = "The activity"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`"),
    ))]
pub async fn show_activity(State(app): State<App>, Path(id): Path<ActivityId>) -> Result<Answer<ActivityView>> {
    let activity = super::find_activity(&app, id).await?;
    Ok(Answer(ActivityView::of(activity, app.clock.now())))
}

/// A submission was taken on, or was there already.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Submitted {
    /// Always 100.
    pub code: i32,
    /// For a person.
    #[schema(example = "正在排队")]
    pub msg: &'static str,
    /// The task to poll at `/tasks/{id}`.
    pub id: String,
}

/// Takes part: one unit is reserved and the order is queued. The same user again gets the same id.
#[utoipa::path(post, path = "/api/v1/seckill/activities/{id}/submissions", tag = "seckill", security(("bearer" = [])),
    params(("id" = ActivityId, Path)),
    responses(
        (status = 202, body = Submitted, description = "In the queue: poll the task"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`: no such activity"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`not_started` (with `starts_at` and `Retry-After`), `sold_out`, `limit_reached`"),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "`ended`"),
    ))]
pub async fn submit(
    State(app): State<App>,
    user: CurrentUser,
    Path(id): Path<ActivityId>,
) -> Result<(StatusCode, Answer<Submitted>)> {
    let task = submit_to(&app, id, user.id).await?;
    Ok((StatusCode::ACCEPTED, Answer(Submitted { code: 100, msg: "正在排队", id: task.to_string() })))
}

/// A new activity.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateActivity {
    /// Its id, chosen by the client so that a repeat is safe; made by the server when absent.
    #[garde(inner(pattern("^[0-9a-f]{32}$")))]
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub id: Option<String>,
    /// What is sold.
    #[garde(pattern("^[0-9a-f]{32}$"))]
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub course_id: String,
    /// Its title.
    #[garde(length(chars, min = 1, max = 200))]
    #[schema(min_length = 1, max_length = 200)]
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
    #[garde(length(min = 1, max = 40))]
    #[schema(format = DateTime, max_length = 40)]
    pub starts_at: String,
    /// When it ends, RFC 3339.
    #[garde(length(min = 1, max = 40))]
    #[schema(format = DateTime, max_length = 40)]
    pub ends_at: String,
}

fn instant(field: &'static str, text: &str) -> Result<At> {
    let parsed: jiff::Timestamp =
        text.parse().map_err(|_| invalid(field, "must be an instant such as 2026-11-11T00:00:00Z"))?;
    let year = parsed.to_zoned(jiff::tz::TimeZone::UTC).year();
    if (2000..=2100).contains(&year) {
        Ok(parsed.into())
    } else {
        Err(invalid(field, "must be between the years 2000 and 2100"))
    }
}

impl TryFrom<CreateActivity> for NewActivity {
    type Error = crate::error::Error;
    fn try_from(body: CreateActivity) -> Result<Self> {
        let id = body
            .id
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|_| invalid("id", "must be 32 lowercase hexadecimal digits"))?;
        Ok(Self {
            id: id.unwrap_or_default(),
            course: body
                .course_id
                .parse()
                .map_err(|_| invalid("course_id", "must be 32 lowercase hexadecimal digits"))?,
            title: body.title,
            price: Money::fen(body.price_fen),
            stock: body.stock,
            per_user_limit: body.per_user_limit.unwrap_or(3),
            pay_deadline_s: body.pay_deadline_s.unwrap_or(300),
            starts_at: instant("starts_at", &body.starts_at)?,
            ends_at: instant("ends_at", &body.ends_at)?,
        })
    }
}

/// Creates an activity and opens its gate. The same `id` again answers the activity that is there.
#[utoipa::path(post, path = "/admin/seckill/activities", tag = "admin", security(("bearer" = [])), request_body = CreateActivity,
    responses(
        (status = 201, body = ActivityView, description = "The activity"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
    ))]
pub async fn create_activity(
    State(app): State<App>,
    Admin(admin): Admin,
    Json(body): Json<CreateActivity>,
) -> Result<(StatusCode, Answer<ActivityView>)> {
    let activity = create(&app, Some(admin.id), body.try_into()?).await?;
    Ok((StatusCode::CREATED, Answer(ActivityView::of(activity, app.clock.now()))))
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

/// Changes the stock of an activity.
#[utoipa::path(patch, path = "/admin/seckill/activities/{id}", tag = "admin", security(("bearer" = [])), request_body = ChangeActivity,
    params(("id" = ActivityId, Path)),
    responses(
        (status = 200, body = ActivityView, description = "The activity"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`activity_state`: so many units are already taken"),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "`ended`"),
    ))]
pub async fn change_activity(
    State(app): State<App>,
    Admin(admin): Admin,
    Path(id): Path<ActivityId>,
    Json(body): Json<ChangeActivity>,
) -> Result<Answer<ActivityView>> {
    let activity = change(&app, admin.id, id, body.stock).await?;
    Ok(Answer(ActivityView::of(activity, app.clock.now())))
}

/// Ends the sale at once. A repeat changes nothing.
#[utoipa::path(post, path = "/admin/seckill/activities/{id}/close", tag = "admin", security(("bearer" = [])),
    params(("id" = ActivityId, Path)),
    responses(
        (status = 200, body = ActivityView, description = "The activity"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`forbidden`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`"),
    ))]
pub async fn close_activity(
    State(app): State<App>,
    Admin(admin): Admin,
    Path(id): Path<ActivityId>,
) -> Result<Answer<ActivityView>> {
    let activity = close(&app, admin.id, id).await?;
    Ok(Answer(ActivityView::of(activity, app.clock.now())))
}
