//! The SQL of refunded orders: one statement a function, each guarded by what it may come from.

use anyhow::Context;
use sqlx::QueryBuilder;

use crate::catalogue::CourseId;
use crate::error::Result;
use crate::orders::model::{OrderId, OrderRefundId, Status};
use crate::platform::clock::At;
use crate::platform::db::{Conn, push_in};

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
