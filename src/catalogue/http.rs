//! Handlers of `/courses`, `/me/courses` and `/admin/courses`.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use super::{Course, CourseDetail, CourseId, MyCourse, NewCourse};
use crate::access::{Require, may};
use crate::app::App;
use crate::auth::LiveUser;
use crate::error::Result;
use crate::platform::extract::{Input, Json, Path, Query, Shape};
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};
use crate::platform::spelling::{nfc, nfc_list};
use crate::platform::validators::{prose, words};

/// The courses on sale, newest first.
#[utoipa::path(get, path = "/courses", operation_id = "list_courses", tag = "catalogue", params(PageQuery), responses(
    (status = 200, body = Page<Course>, description = "A page of courses"),
))]
pub async fn list(
    State(app): State<App>,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<axum::Json<Page<Course>>> {
    Ok(axum::Json(super::list(&app, &page).await?))
}

/// A course on sale, with its chapters.
#[utoipa::path(get, path = "/courses/{id}", operation_id = "get_course", tag = "catalogue", params(("id" = CourseId, Path, description = "The course")), responses(
    (status = 200, body = CourseDetail, description = "The course"),
    (status = 404, description = "`not_found`: no such course on sale"),
))]
pub async fn detail(
    State(app): State<App>,
    Input(Path(id)): Input<Path<CourseId>>,
) -> Result<axum::Json<CourseDetail>> {
    Ok(axum::Json(super::detail(&app, id).await?))
}

/// The courses that the user may study, newest course first.
#[utoipa::path(get, path = "/me/courses", operation_id = "list_my_courses", tag = "catalogue", security(("bearer" = [])), params(PageQuery), responses(
    (status = 200, body = Page<MyCourse>, description = "A page of the user's courses"),
))]
pub async fn mine(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<axum::Json<Page<MyCourse>>> {
    Ok(axum::Json(super::courses_of(&app, user.id, &page).await?))
}

/// A new course.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCourseRequest {
    /// Chosen by the client, so that repeating the request is safe: a UUIDv7 as 32 hex digits. Lists are in the order
    /// of the ids, which is the order in which UUIDv7s were made.
    #[garde(custom(is_v7))]
    #[schema(value_type = String, pattern = "^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$", example = "019aa23b8f007cc3a1d2c0ffee000001")]
    id: CourseId,
    /// Its title.
    #[garde(custom(words(1, 200)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    title: String,
    /// What it is about.
    #[garde(custom(prose(2000)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(max_length = 2000)]
    summary: String,
    /// Its price in fen: at most a million yuan.
    #[garde(range(min = 0, max = 100_000_000))]
    #[schema(minimum = 0, maximum = 100_000_000)]
    price_fen: i64,
    /// Whether it is on sale at once; yes, if not said.
    #[garde(skip)]
    published: Option<bool>,
    /// The titles of its chapters, in order.
    #[garde(length(min = 1, max = 200), inner(custom(words(1, 200))))]
    #[serde(deserialize_with = "nfc_list")]
    #[schema(min_items = 1, max_items = 200)]
    chapters: Vec<String>,
}

impl Shape<App> for CreateCourseRequest {}

fn is_v7(id: &CourseId, (): &()) -> garde::Result {
    let v7 = (id.uuid().get_version_num(), id.uuid().get_variant()) == (7, uuid::Variant::RFC4122);
    if v7 {
        Ok(())
    } else {
        Err(garde::Error::new("must be a UUID of version 7, such as 019aa23b8f007cc3a1d2c0ffee000001"))
    }
}

impl From<CreateCourseRequest> for NewCourse {
    fn from(body: CreateCourseRequest) -> Self {
        Self {
            id: body.id,
            title: body.title,
            summary: body.summary,
            price: Money::fen(body.price_fen),
            published: body.published.unwrap_or(true),
            chapters: body.chapters,
        }
    }
}

/// Creates a course with its chapters. The same request again answers the same; the id with another content is
/// refused.
#[utoipa::path(post, path = "/admin/courses", operation_id = "create_course", extensions(("x-permission" = json!("catalogue.write"))), tag = "admin", security(("bearer" = [])), request_body = CreateCourseRequest, responses(
    (status = 201, body = CourseDetail, description = "The course is there"),
    (status = 409, description = "`course_exists`: the id belongs to another course"),
))]
pub async fn create(
    State(app): State<App>,
    Require(admin, _): Require<may::CatalogueWrite>,
    Input(Json(body)): Input<Json<CreateCourseRequest>>,
) -> Result<(StatusCode, axum::Json<CourseDetail>)> {
    let created = super::create_once(&app, admin.id, body.into()).await?;
    Ok((StatusCode::CREATED, axum::Json(created)))
}
