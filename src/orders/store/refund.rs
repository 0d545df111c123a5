//! The SQL of refunded orders: one statement a function, each guarded by what it may come from.

use anyhow::Context;
use sqlx::QueryBuilder;

use crate::auth::UserId;
use crate::catalogue::CourseId;
use crate::error::Result;
use crate::orders::model::{OrderId, OrderRefundId, Status};
use crate::platform::clock::At;
use crate::platform::db::{Conn, insert_parts, push_in};

/// paid → refunding.
pub async fn mark_refunding(conn: &mut Conn, id: OrderId) -> Result<bool> {
    let moved = sqlx::query("UPDATE orders SET status = ? WHERE id = ? AND status = ?")
        .bind(Status::Refunding)
        .bind(id)
        .bind(Status::Paid)
        .execute(conn)
        .await
        .context("marking an order as being refunded")?;
    Ok(moved.rows_affected() == 1)
}

/// refunding → refunded; it has given back what it held.
pub async fn mark_refunded(conn: &mut Conn, id: OrderId, now: At) -> Result<bool> {
    let moved = sqlx::query("UPDATE orders SET status = ?, released_at = ? WHERE id = ? AND status = ?")
        .bind(Status::Refunded)
        .bind(now)
        .bind(id)
        .bind(Status::Refunding)
        .execute(conn)
        .await
        .context("marking an order refunded")?;
    Ok(moved.rows_affected() == 1)
}

/// A course that a refund took back.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct TakenBack {
    /// The order that had given it.
    pub order_id: OrderId,
    /// The course.
    pub course_id: CourseId,
    /// Whose it was.
    pub user_id: UserId,
    /// When the refund began.
    pub created_at: At,
}

/// Notes that courses of an order were taken back, for those who must hear of it. The list must not be empty.
pub async fn insert_taken_back(
    conn: &mut Conn,
    order: OrderId,
    user: UserId,
    courses: &[CourseId],
    now: At,
) -> Result<()> {
    for part in insert_parts(courses) {
        let mut query = QueryBuilder::new("INSERT INTO course_take_backs (order_id, course_id, user_id, created_at) ");
        query.push_values(part, |mut row, course| {
            row.push_bind(order).push_bind(*course).push_bind(user).push_bind(now);
        });
        query.build().execute(&mut *conn).await.context("noting taken back courses")?;
    }
    Ok(())
}

/// Courses that were taken back and not forgotten, after one of them, by order and course.
pub async fn taken_back(conn: &mut Conn, after: (OrderId, CourseId), limit: u32) -> Result<Vec<TakenBack>> {
    sqlx::query_as(
        "SELECT order_id, course_id, user_id, created_at FROM course_take_backs \
         WHERE order_id > ? OR (order_id = ? AND course_id > ?) ORDER BY order_id, course_id LIMIT ?",
    )
    .bind(after.0)
    .bind(after.0)
    .bind(after.1)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("reading taken back courses")
    .map_err(Into::into)
}

/// Forgets what was taken back of these orders before an instant. The list must not be empty.
pub async fn forget_taken_back(conn: &mut Conn, orders: &[OrderId], before: At) -> Result<()> {
    let mut query = QueryBuilder::new("DELETE FROM course_take_backs WHERE created_at < ");
    query.push_bind(before).push(" AND order_id IN ");
    push_in(&mut query, orders.iter().copied());
    query.build().execute(conn).await.context("forgetting taken back courses")?;
    Ok(())
}

/// The statuses of orders. The list must not be empty.
pub async fn statuses(conn: &mut Conn, orders: &[OrderId]) -> Result<Vec<(OrderId, Status)>> {
    let mut query = QueryBuilder::new("SELECT id, status FROM orders WHERE id IN ");
    push_in(&mut query, orders.iter().copied());
    query.build_query_as().fetch_all(conn).await.context("reading the statuses of orders").map_err(Into::into)
}

/// Seckill orders in a status, above `after`, by id.
pub async fn seckill_in(conn: &mut Conn, status: Status, after: OrderId, limit: u32) -> Result<Vec<OrderId>> {
    sqlx::query_scalar("SELECT id FROM orders WHERE kind = 'seckill' AND status = ? AND id > ? ORDER BY id LIMIT ?")
        .bind(status)
        .bind(after)
        .bind(limit)
        .fetch_all(conn)
        .await
        .context("reading refunded seckill orders")
        .map_err(Into::into)
}

/// Notes which refund takes these courses of an order back; one that another refund has taken is not noted again. The
/// list must not be empty. Returns how many were noted.
pub async fn mark_items_refunded(
    conn: &mut Conn,
    id: OrderId,
    refund: OrderRefundId,
    courses: &[CourseId],
) -> Result<u64> {
    let mut query = QueryBuilder::new("UPDATE order_items SET refund_id = ");
    query.push_bind(refund).push(" WHERE refund_id IS NULL AND order_id = ").push_bind(id).push(" AND course_id IN ");
    push_in(&mut query, courses.iter().copied());
    let noted = query.build().execute(conn).await.context("noting refunded items")?;
    Ok(noted.rows_affected())
}
