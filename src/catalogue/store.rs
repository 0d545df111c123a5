//! One SQL statement a function. Lists come in pages of at most [`PAGE`]; an empty list is the caller's to avoid.

use sqlx::{MySql, QueryBuilder};
use uuid::Uuid;

use super::model::{AnyCourse, Chapter, ChapterId, Course, CourseForSale, CourseId, MyCourse, NewCourse};
use crate::auth::UserId;
use crate::platform::clock::At;
use crate::platform::db::{Conn, insert_parts, push_in};

/// Rows or ids of one statement.
pub(super) const PAGE: usize = 500;

/// Inserts a course; a taken id violates the primary key.
pub(super) async fn insert_course(conn: &mut Conn, course: &NewCourse, now: At) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO courses (id, title, summary, price_fen, published, created_at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(course.id)
        .bind(&course.title)
        .bind(&course.summary)
        .bind(course.price)
        .bind(course.published)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Inserts chapters of a course.
pub(super) async fn insert_chapters(conn: &mut Conn, course: CourseId, chapters: &[Chapter]) -> sqlx::Result<()> {
    for part in insert_parts(chapters) {
        let mut query = QueryBuilder::<MySql>::new("INSERT INTO chapters (id, course_id, position, title) ");
        query.push_values(part, |mut row, chapter| {
            row.push_bind(chapter.id).push_bind(course).push_bind(chapter.position).push_bind(&chapter.title);
        });
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// Published courses before an id, newest first.
pub(super) async fn published(conn: &mut Conn, before: CourseId, limit: u32) -> sqlx::Result<Vec<Course>> {
    sqlx::query_as(
        "SELECT id, title, summary, cover_url, price_fen FROM courses \
         WHERE published = 1 AND id < ? ORDER BY id DESC LIMIT ?",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// A course, and whether it is published.
pub(super) async fn course(conn: &mut Conn, course: CourseId) -> sqlx::Result<Option<AnyCourse>> {
    sqlx::query_as("SELECT id, title, summary, cover_url, price_fen, published FROM courses WHERE id = ?")
        .bind(course)
        .fetch_optional(conn)
        .await
}

/// The chapters of a course, in order.
pub(super) async fn chapters(conn: &mut Conn, course: CourseId) -> sqlx::Result<Vec<Chapter>> {
    sqlx::query_as("SELECT id, position, title FROM chapters WHERE course_id = ? ORDER BY position")
        .bind(course)
        .fetch_all(conn)
        .await
}

/// The courses of a user before an id, newest first.
pub(super) async fn courses_of(
    conn: &mut Conn,
    user: UserId,
    before: CourseId,
    limit: u32,
) -> sqlx::Result<Vec<MyCourse>> {
    sqlx::query_as(
        "SELECT c.id, c.title, c.cover_url, g.order_no, g.granted_at, (SELECT COUNT(*) FROM user_course_chapters h \
         WHERE h.user_id = ? AND h.course_id = c.id) AS chapter_count \
         FROM (SELECT course_id, MIN(order_id) AS order_no, MIN(granted_at) AS granted_at FROM user_courses \
         WHERE user_id = ? AND course_id < ? GROUP BY course_id ORDER BY course_id DESC LIMIT ?) g \
         JOIN courses c ON c.id = g.course_id ORDER BY c.id DESC",
    )
    .bind(user)
    .bind(user)
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The published ones of `courses`.
pub(super) async fn courses_for_sale(conn: &mut Conn, courses: &[CourseId]) -> sqlx::Result<Vec<CourseForSale>> {
    let mut query =
        QueryBuilder::<MySql>::new("SELECT id, title, price_fen FROM courses WHERE published = 1 AND id IN ");
    push_in(&mut query, courses.iter().copied());
    query.build_query_as().fetch_all(conn).await
}

/// The ones of `courses` that some order gave the user.
pub(super) async fn owned(conn: &mut Conn, user: UserId, courses: &[CourseId]) -> sqlx::Result<Vec<CourseId>> {
    let mut query = QueryBuilder::<MySql>::new("SELECT DISTINCT course_id FROM user_courses WHERE user_id = ");
    query.push_bind(user).push(" AND course_id IN ");
    push_in(&mut query, courses.iter().copied());
    query.build_query_scalar().fetch_all(conn).await
}

/// The ones of `users` to whom some order gave the course.
pub(super) async fn owners(conn: &mut Conn, course: CourseId, users: &[UserId]) -> sqlx::Result<Vec<UserId>> {
    let mut query = QueryBuilder::<MySql>::new("SELECT DISTINCT user_id FROM user_courses WHERE course_id = ");
    query.push_bind(course).push(" AND user_id IN ");
    push_in(&mut query, users.iter().copied());
    query.build_query_scalar().fetch_all(conn).await
}

/// Those above `after` to whom some order gave the course, by user.
pub(super) async fn owners_after(
    conn: &mut Conn,
    course: CourseId,
    after: UserId,
    limit: u32,
) -> sqlx::Result<Vec<UserId>> {
    sqlx::query_scalar(
        "SELECT DISTINCT user_id FROM user_courses WHERE course_id = ? AND user_id > ? ORDER BY user_id LIMIT ?",
    )
    .bind(course)
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Inserts grants; those that are there stay as they are.
pub(super) async fn insert_grants(conn: &mut Conn, grants: &[(UserId, CourseId, Uuid)], now: At) -> sqlx::Result<()> {
    for part in insert_parts(grants) {
        let mut query =
            QueryBuilder::<MySql>::new("INSERT INTO user_courses (user_id, course_id, order_id, granted_at) ");
        query.push_values(part, |mut row, (user, course, order)| {
            row.push_bind(*user).push_bind(*course).push_bind(*order).push_bind(now);
        });
        query.push(" ON DUPLICATE KEY UPDATE granted_at = granted_at");
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// The chapters of `courses`.
pub(super) async fn chapter_ids(conn: &mut Conn, courses: &[CourseId]) -> sqlx::Result<Vec<(CourseId, ChapterId)>> {
    let mut query = QueryBuilder::<MySql>::new("SELECT course_id, id FROM chapters WHERE course_id IN ");
    push_in(&mut query, courses.iter().copied());
    query.build_query_as().fetch_all(conn).await
}

/// Inserts grants of chapters; those that are there stay as they are, what was learned too.
pub(super) async fn insert_chapter_grants(
    conn: &mut Conn,
    grants: &[(UserId, ChapterId, CourseId)],
) -> sqlx::Result<()> {
    for part in insert_parts(grants) {
        let mut query =
            QueryBuilder::<MySql>::new("INSERT INTO user_course_chapters (user_id, chapter_id, course_id) ");
        query.push_values(part, |mut row, (user, chapter, course)| {
            row.push_bind(*user).push_bind(*chapter).push_bind(*course);
        });
        query.push(" ON DUPLICATE KEY UPDATE completed_at = completed_at");
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// Deletes the chapters of those of `courses` that an order gave and no other order did. A deleting statement reads the
/// rows of its subquery with locks, so a grant under way in another transaction is waited for and seen.
pub(super) async fn delete_chapter_grants(conn: &mut Conn, order: Uuid, courses: &[CourseId]) -> sqlx::Result<()> {
    let mut query = QueryBuilder::<MySql>::new(
        "DELETE g FROM user_course_chapters g \
         JOIN user_courses c FORCE INDEX (ix_user_courses_order) ON c.user_id = g.user_id AND c.course_id = g.course_id WHERE c.order_id = ",
    );
    query.push_bind(order).push(" AND c.course_id IN ");
    push_in(&mut query, courses.iter().copied());
    query.push(
        " AND NOT EXISTS (SELECT 1 FROM user_courses o \
         WHERE o.user_id = c.user_id AND o.course_id = c.course_id AND o.order_id <> c.order_id)",
    );
    query.build().execute(conn).await?;
    Ok(())
}

/// Deletes those of `courses` that an order gave.
pub(super) async fn delete_grants(conn: &mut Conn, order: Uuid, courses: &[CourseId]) -> sqlx::Result<()> {
    let mut query = QueryBuilder::<MySql>::new(
        // By the order: along the course's own index the grants of all its other owners would be locked.
        "DELETE c FROM user_courses c FORCE INDEX (ix_user_courses_order) WHERE c.order_id = ",
    );
    query.push_bind(order).push(" AND c.course_id IN ");
    push_in(&mut query, courses.iter().copied());
    query.build().execute(conn).await?;
    Ok(())
}
