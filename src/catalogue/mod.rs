//! Courses with their chapters, and who owns them.
//!
//! A grant is the row (user, course, order): every order that gave a course has its own, so taking away what one
//! order gave never takes away what another one did.

pub mod http;
mod model;
mod store;

pub use model::{Chapter, ChapterId, Course, CourseDetail, CourseForSale, CourseId, Giver, MyCourse, NewCourse};

use std::collections::HashSet;

use anyhow::Context;
use serde_json::json;
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::error::{Kind, Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};
use crate::platform::page::{Page, PageQuery};

/// Creates a course with its chapters, in the caller's transaction. A taken id violates the primary key.
pub async fn create_course(conn: &mut Conn, course: NewCourse, now: At) -> Result<()> {
    Ok(insert_course(conn, &course, now).await.context("inserting a course")?)
}

/// Creates a course in a transaction of its own. The same one again answers the one that is there; another one under
/// a taken id is refused. The primary key decides, so two at once are one as well.
async fn create_once(app: &App, by: UserId, course: NewCourse) -> Result<CourseDetail> {
    let now = app.clock.now();
    retrying(async || {
        let mut tx = app.db.begin().await?;
        match insert_course(&mut tx, &course, now).await {
            Err(error) if db::violated(&error).as_deref() == Some("PRIMARY") => {}
            inserted => {
                inserted.context("inserting a course")?;
                let act = Act { by, action: "course.create", target: &course.id.to_string() };
                let details =
                    json!({ "title": course.title, "price_fen": course.price, "published": course.published });
                audit::done(&mut tx, act, &details, now).await?;
            }
        }
        let there = store::course(&mut tx, course.id).await.context("reading a course")?;
        let there = there.context("a course that was inserted is not there")?;
        let chapters = store::chapters(&mut tx, course.id).await.context("reading chapters")?;
        let detail = CourseDetail { course: there.course, chapters };
        if !course.is(&detail, there.published) {
            return Err(Kind::CourseExists.into());
        }
        tx.commit().await.context("committing a course")?;
        Ok(detail)
    })
    .await
}

/// A page of the courses on sale, newest first.
async fn list(app: &App, page: &PageQuery) -> Result<Page<Course>> {
    let mut conn = app.db.acquire().await?;
    let courses = store::published(&mut conn, page.before(), page.fetch()).await.context("listing courses")?;
    Ok(page.page(courses, |course| course.id))
}

/// A course on sale with its chapters.
async fn detail(app: &App, course: CourseId) -> Result<CourseDetail> {
    let mut conn = app.db.acquire().await?;
    let found = store::course(&mut conn, course).await.context("reading a course")?;
    let found = found.filter(|found| found.published).ok_or(Kind::NotFound)?;
    let chapters = store::chapters(&mut conn, course).await.context("reading chapters")?;
    Ok(CourseDetail { course: found.course, chapters })
}

/// A page of the courses that a user may study, newest course first.
async fn courses_of(app: &App, user: UserId, page: &PageQuery) -> Result<Page<MyCourse>> {
    let mut conn = app.db.acquire().await?;
    let courses =
        store::courses_of(&mut conn, user, page.before(), page.fetch()).await.context("listing my courses")?;
    Ok(page.page(courses, |course| course.id))
}

async fn insert_course(conn: &mut Conn, course: &NewCourse, now: At) -> sqlx::Result<()> {
    store::insert_course(conn, course, now).await?;
    let chapters: Vec<Chapter> = (1..).zip(&course.chapters).map(|(at, title)| Chapter::new(at, title)).collect();
    for page in chapters.chunks(store::PAGE) {
        store::insert_chapters(conn, course.id, page).await?;
    }
    Ok(())
}

/// Those of `courses` that are on sale, in any order.
pub async fn courses_for_sale(conn: &mut Conn, courses: &[CourseId]) -> Result<Vec<CourseForSale>> {
    if courses.is_empty() {
        return Ok(Vec::new());
    }
    Ok(store::courses_for_sale(conn, courses).await.context("reading courses on sale")?)
}

/// Those of `courses` that `user` owns, in any order.
pub async fn owned(conn: &mut Conn, user: UserId, courses: &[CourseId]) -> Result<Vec<CourseId>> {
    if courses.is_empty() {
        return Ok(Vec::new());
    }
    Ok(store::owned(conn, user, courses).await.context("reading owned courses")?)
}

/// Those of `users` that own `course`.
pub async fn owners(conn: &mut Conn, course: CourseId, users: &[UserId]) -> Result<HashSet<UserId>> {
    let mut owners = HashSet::new();
    for page in users.chunks(store::PAGE) {
        owners.extend(store::owners(conn, course, page).await.context("reading a course's owners")?);
    }
    Ok(owners)
}

/// Those who own `course`, above `after`, by user, at most `limit`.
pub async fn owners_after(conn: &mut Conn, course: CourseId, after: UserId, limit: u32) -> Result<Vec<UserId>> {
    Ok(store::owners_after(conn, course, after, limit).await.context("reading the owners of a course")?)
}

/// Gives each user the course and its chapters, in the name of the order. Again is the same: nothing changes.
pub async fn grant(conn: &mut Conn, grants: &[(UserId, CourseId, Uuid)], now: At) -> Result<()> {
    // In one order for everybody, so that two grants of the same rows wait for each other instead of deadlocking.
    let mut grants = grants.to_vec();
    grants.sort_unstable();
    for page in grants.chunks(store::PAGE) {
        store::insert_grants(conn, page, now).await.context("granting courses")?;
    }
    let courses: HashSet<CourseId> = grants.iter().map(|(_, course, _)| *course).collect();
    let courses: Vec<CourseId> = courses.into_iter().collect();
    let mut chapters = Vec::new();
    for page in courses.chunks(store::PAGE) {
        chapters.extend(store::chapter_ids(conn, page).await.context("reading chapters to grant")?);
    }
    let chapters = model::chapters_by_course(chapters);
    let mut rows: Vec<(UserId, ChapterId, CourseId)> = grants
        .iter()
        .flat_map(|(user, course, _)| {
            chapters.get(course).into_iter().flatten().map(|chapter| (*user, *chapter, *course))
        })
        .collect();
    rows.sort_unstable();
    for page in rows.chunks(store::PAGE) {
        store::insert_chapter_grants(conn, page).await.context("granting chapters")?;
    }
    Ok(())
}

/// Takes away those of `courses` that `order` gave and no other order did. Beside a grant of the same rows one of the
/// two may be the victim of a deadlock: the caller's transaction runs in [`retrying`].
pub async fn revoke(conn: &mut Conn, order: Uuid, courses: &[CourseId]) -> Result<()> {
    for page in courses.chunks(store::PAGE) {
        store::delete_chapter_grants(conn, order, page).await.context("taking away an order's chapters")?;
        store::delete_grants(conn, order, page).await.context("taking away an order's courses")?;
    }
    Ok(())
}
