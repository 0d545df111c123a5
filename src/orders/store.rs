//! The SQL of orders: one statement a function. Every change of a status is guarded by the status it may come from
//! ([`Status::may_become`]), so that of two who change it one wins and the other learns that it did not.

pub mod refund;

use anyhow::Context;
use sqlx::{Executor, QueryBuilder};

use super::model::{Closing, Order, OrderId, OrderItem, OrderKind, Status, WhichOrders};
use crate::auth::UserId;
use crate::catalogue::CourseId;
use crate::error::Result;
use crate::platform::clock::{At, Clock};
use crate::platform::db::{Conn, insert_parts, push_in};
use crate::platform::money::CURRENCY;

/// Reads whole orders. A macro, because a statement must be known when it is compiled; and not `*`, so that a column
/// that a later migration adds does not reach this version.
macro_rules! select_orders {
    ($rest:literal) => {
        concat!(
            "SELECT id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen,
                points_used, points_earned, user_coupon_id, hold_no, created_at, expires_at, pay_started_at, paid_at,
                closed_at, granted_at, released_at FROM orders ",
            $rest
        )
    };
}

/// Adds orders, many in a statement.
pub async fn insert_orders(conn: &mut Conn, orders: &[Order]) -> Result<()> {
    for part in insert_parts(orders) {
        let mut query = QueryBuilder::new(
            "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen,
                payable_fen, points_used, points_earned, currency, user_coupon_id, hold_no, created_at, expires_at,
                paid_at) ",
        );
        query.push_values(part, |mut row, order| {
            row.push_bind(order.id)
                .push_bind(order.user_id)
                .push_bind(order.kind.as_str())
                .push_bind(order.status)
                .push_bind(order.total)
                .push_bind(order.coupon_discount)
                .push_bind(order.points_discount)
                .push_bind(order.payable)
                .push_bind(order.points_used)
                .push_bind(order.points_earned)
                .push_bind(CURRENCY)
                .push_bind(order.user_coupon_id)
                .push_bind(order.hold_no)
                .push_bind(order.created_at)
                .push_bind(order.expires_at)
                .push_bind(order.paid_at);
        });
        query.build().execute(&mut *conn).await.context("adding orders")?;
    }
    Ok(())
}

/// Adds items, many in a statement.
pub async fn insert_items(conn: &mut Conn, items: &[OrderItem]) -> Result<()> {
    for part in insert_parts(items) {
        let mut query = QueryBuilder::new(
            "INSERT INTO order_items (order_id, position, course_id, title, price_fen, coupon_discount_fen,
                points_discount_fen, payable_fen) ",
        );
        query.push_values(part, |mut row, item| {
            row.push_bind(item.order_id)
                .push_bind(item.position)
                .push_bind(item.course_id)
                .push_bind(&item.title)
                .push_bind(item.price)
                .push_bind(item.coupon_discount)
                .push_bind(item.points_discount)
                .push_bind(item.payable);
        });
        query.build().execute(&mut *conn).await.context("adding order items")?;
    }
    Ok(())
}

/// An order.
pub async fn find(conn: &mut Conn, id: OrderId) -> Result<Option<Order>> {
    let found = sqlx::query_as(select_orders!("WHERE id = ?"))
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading an order")?;
    Ok(found)
}

/// An order, held until the transaction ends.
pub async fn lock(conn: &mut Conn, id: OrderId) -> Result<Option<Order>> {
    let found = sqlx::query_as(select_orders!("WHERE id = ? FOR UPDATE"))
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("locking an order")?;
    Ok(found)
}

/// Orders below `before`, newest first: of one user, or of everybody. The indexes are named, here and in the next one,
/// because statistics alone do not always choose them: a page costs what its own orders cost, or what one user's do.
pub async fn list(conn: &mut Conn, which: &WhichOrders, before: OrderId, limit: u32) -> Result<Vec<Order>> {
    let mut query = QueryBuilder::new(select_orders!("FORCE INDEX ("));
    query.push(if which.user.is_some() { "ix_orders_user" } else { "PRIMARY" });
    query.push(") WHERE id < ").push_bind(before);
    if let Some(user) = which.user {
        query.push(" AND user_id = ").push_bind(user);
    }
    if let Some(kind) = which.kind {
        query.push(" AND kind = ").push_bind(kind.as_str());
    }
    if let Some(status) = which.status {
        query.push(" AND status = ").push_bind(status);
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    Ok(query.build_query_as().fetch_all(conn).await.context("listing orders")?)
}

/// As [`list`], everybody's of a kind or in a status: so many of each kind and status that is wanted, and of those the
/// first ones.
pub async fn list_of_kind(conn: &mut Conn, which: &WhichOrders, before: OrderId, limit: u32) -> Result<Vec<Order>> {
    let all = OrderKind::ALL.into_iter().flat_map(|kind| Status::ALL.map(|status| (kind, status)));
    let wanted = all.filter(|(kind, status)| {
        which.kind.is_none_or(|wanted| wanted == *kind) && which.status.is_none_or(|wanted| wanted == *status)
    });
    let mut query = QueryBuilder::new("");
    for (place, (kind, status)) in wanted.enumerate() {
        query.push(if place == 0 { "(" } else { " UNION ALL (" });
        query.push(select_orders!("FORCE INDEX (ix_orders_kind) WHERE kind = ")).push_bind(kind.as_str());
        query.push(" AND status = ").push_bind(status).push(" AND id < ").push_bind(before);
        query.push(" ORDER BY id DESC LIMIT ").push_bind(limit).push(")");
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    Ok(query.build_query_as().fetch_all(conn).await.context("listing orders of a kind")?)
}

/// The items of these orders, by order and place. The list must not be empty.
pub async fn items(conn: &mut Conn, orders: &[OrderId]) -> Result<Vec<OrderItem>> {
    let mut query = QueryBuilder::new(
        "SELECT order_id, position, course_id, title, price_fen, coupon_discount_fen, points_discount_fen, payable_fen,
            refund_id FROM order_items WHERE order_id IN ",
    );
    push_in(&mut query, orders.iter().copied());
    query.push(" ORDER BY order_id, position");
    let items = query.build_query_as().fetch_all(conn).await.context("reading order items")?;
    Ok(items)
}

/// Which of these courses the user has paid for in an order that is still to be granted. What a refund has taken back is
/// not among them. The list must not be empty.
pub async fn paid_not_granted(conn: &mut Conn, user: UserId, courses: &[CourseId]) -> Result<Vec<CourseId>> {
    let mut query = QueryBuilder::new(
        "SELECT DISTINCT i.course_id FROM orders o FORCE INDEX (ix_orders_user_open)
         JOIN order_items i ON i.order_id = o.id
         WHERE o.granted_at IS NULL AND i.refund_id IS NULL AND o.status = ",
    );
    query.push_bind(Status::Paid).push(" AND o.user_id = ").push_bind(user).push(" AND i.course_id IN ");
    push_in(&mut query, courses.iter().copied());
    let owed = query.build_query_scalar().fetch_all(conn).await.context("reading paid courses")?;
    Ok(owed)
}

/// Unpaid orders of the buyers of these, with a course of theirs. The list must not be empty.
pub async fn unpaid_beside(conn: &mut Conn, orders: &[OrderId], limit: u32) -> Result<Vec<OrderId>> {
    let mut query = QueryBuilder::new(
        "SELECT DISTINCT b.id FROM orders a JOIN order_items i ON i.order_id = a.id
         JOIN orders b FORCE INDEX (ix_orders_user_open) ON b.user_id = a.user_id AND b.id <> a.id AND b.status = ",
    );
    query.push_bind(Status::Unpaid);
    query.push(" JOIN order_items j ON j.order_id = b.id AND j.course_id = i.course_id WHERE a.id IN ");
    push_in(&mut query, orders.iter().copied());
    query.push(" LIMIT ").push_bind(limit);
    let beside =
        query.build_query_scalar().fetch_all(conn).await.context("looking for unpaid orders of the same courses")?;
    Ok(beside)
}

/// How many orders of the user can still be paid: all of them (under no course), and those with each of these courses
/// where there are any. The list must not be empty.
pub async fn count_open(
    conn: &mut Conn,
    user: UserId,
    courses: &[CourseId],
    now: At,
) -> Result<Vec<(Option<CourseId>, i64)>> {
    let mut query = QueryBuilder::new(
        "SELECT NULL AS course_id, COUNT(*) AS open FROM orders FORCE INDEX (ix_orders_user_open) WHERE user_id = ",
    );
    query.push_bind(user).push(" AND status = ").push_bind(Status::Unpaid).push(" AND expires_at > ").push_bind(now);
    query.push(
        " UNION ALL SELECT i.course_id, COUNT(*) FROM orders o FORCE INDEX (ix_orders_user_open)
         JOIN order_items i ON i.order_id = o.id WHERE o.user_id = ",
    );
    query.push_bind(user).push(" AND o.status = ").push_bind(Status::Unpaid);
    query.push(" AND o.expires_at > ").push_bind(now).push(" AND i.course_id IN ");
    push_in(&mut query, courses.iter().copied());
    query.push(" GROUP BY i.course_id");
    let open = query.build_query_as().fetch_all(conn).await.context("counting open orders")?;
    Ok(open)
}

/// unpaid → paid.
pub async fn mark_paid(conn: &mut Conn, id: OrderId, now: At) -> Result<bool> {
    let moved = sqlx::query("UPDATE orders SET status = ?, paid_at = ? WHERE id = ? AND status = ?")
        .bind(Status::Paid)
        .bind(now)
        .bind(id)
        .bind(Status::Unpaid)
        .execute(conn)
        .await
        .context("marking an order paid")?;
    Ok(moved.rows_affected() == 1)
}

/// Notes that a payment was started, while there is time to pay. The first start is kept; the row changes with each, so
/// that who closes the order on another node of a cluster meets it.
pub async fn mark_pay_started(conn: &mut Conn, id: OrderId, now: At) -> Result<bool> {
    let marked = sqlx::query(
        "UPDATE orders SET pay_started_at = COALESCE(pay_started_at, ?), pay_turns = pay_turns + 1
         WHERE id = ? AND status = ? AND expires_at > ?",
    )
    .bind(now)
    .bind(id)
    .bind(Status::Unpaid)
    .bind(now)
    .execute(conn)
    .await
    .context("marking an order's payment started")?;
    Ok(marked.rows_affected() == 1)
}

/// unpaid → cancelled.
pub async fn cancel(conn: &mut Conn, id: OrderId, now: At) -> Result<bool> {
    let moved = sqlx::query("UPDATE orders SET status = ?, closed_at = ? WHERE id = ? AND status = ?")
        .bind(Closing::Cancelled.status())
        .bind(now)
        .bind(id)
        .bind(Status::Unpaid)
        .execute(conn)
        .await
        .context("cancelling an order")?;
    Ok(moved.rows_affected() == 1)
}

/// Whether its time to pay is over, as [`time_out`] has it.
pub async fn is_due(conn: &mut Conn, id: OrderId, clock: &Clock) -> Result<bool> {
    let due = sqlx::query_scalar::<_, i64>(
        "SELECT COUNT(*) FROM orders WHERE id = ? AND expires_at <= ? \
         AND expires_at <= DATE_ADD(UTC_TIMESTAMP(3), INTERVAL ? MICROSECOND)",
    )
    .bind(id)
    .bind(clock.now())
    .bind(clock.shift_ms() * 1000)
    .fetch_one(conn)
    .await
    .context("looking whether an order is due")?;
    Ok(due > 0)
}

/// unpaid → timed_out, once its time to pay is over: by this machine's clock and by the server's, so that one machine
/// whose clock is wrong takes no time from a buyer.
pub async fn time_out(conn: &mut Conn, id: OrderId, clock: &Clock) -> Result<bool> {
    let now = clock.now();
    let moved = sqlx::query(
        "UPDATE orders SET status = ?, closed_at = ? WHERE id = ? AND status = ? AND expires_at <= ? \
         AND expires_at <= DATE_ADD(UTC_TIMESTAMP(3), INTERVAL ? MICROSECOND)",
    )
    .bind(Closing::TimedOut.status())
    .bind(now)
    .bind(id)
    .bind(Status::Unpaid)
    .bind(now)
    .bind(clock.shift_ms() * 1000)
    .execute(conn)
    .await
    .context("timing an order out")?;
    Ok(moved.rows_affected() == 1)
}

/// What follows may be undone by [`undo_attempt`], without the rest of the transaction.
pub async fn begin_attempt(conn: &mut Conn) -> Result<()> {
    // As text: neither server prepares these.
    conn.execute("SAVEPOINT attempt").await.context("setting a savepoint")?;
    Ok(())
}

/// Undoes what was done since [`begin_attempt`].
pub async fn undo_attempt(conn: &mut Conn) -> Result<()> {
    conn.execute("ROLLBACK TO SAVEPOINT attempt").await.context("going back to a savepoint")?;
    Ok(())
}

/// Dead → paid, if the order is still as the caller saw it; counts a new hold when it had given everything back.
pub async fn reopen(conn: &mut Conn, seen: &Order, now: At) -> Result<bool> {
    let moved = sqlx::query(
        "UPDATE orders SET status = ?, paid_at = ?, closed_at = NULL, released_at = NULL,
            hold_no = hold_no + (CASE WHEN ? IS NULL THEN 0 ELSE 1 END)
         WHERE id = ? AND status = ? AND hold_no = ? AND released_at <=> ?",
    )
    .bind(Status::Paid)
    .bind(now)
    .bind(seen.released_at)
    .bind(seen.id)
    .bind(seen.status)
    .bind(seen.hold_no)
    .bind(seen.released_at)
    .execute(conn)
    .await
    .context("re-opening an order")?;
    Ok(moved.rows_affected() == 1)
}

/// Unpaid orders past their time for which no payment was started, oldest first. The cost is that of the due orders
/// read, however many others there are: the index is named because statistics alone do not always choose it.
pub async fn due_unstarted(conn: &mut Conn, now: At, limit: u32) -> Result<Vec<OrderId>> {
    let due = sqlx::query_scalar(
        "SELECT id FROM orders FORCE INDEX (ix_orders_due)
         WHERE status = ? AND expires_at <= ? AND pay_started_at IS NULL ORDER BY expires_at LIMIT ?",
    )
    .bind(Status::Unpaid)
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("looking for due orders")?;
    Ok(due)
}

/// As [`due_unstarted`], those for which a payment was started, with their deadlines; only those behind `after`.
pub async fn due_started(conn: &mut Conn, now: At, after: (At, OrderId), limit: u32) -> Result<Vec<(At, OrderId)>> {
    let due = sqlx::query_as(
        "SELECT expires_at, id FROM orders FORCE INDEX (ix_orders_due)
         WHERE status = ? AND expires_at >= ? AND expires_at <= ? AND pay_started_at IS NOT NULL
         AND (expires_at > ? OR id > ?) ORDER BY expires_at, id LIMIT ?",
    )
    .bind(Status::Unpaid)
    .bind(after.0)
    .bind(now)
    .bind(after.0)
    .bind(after.1)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("looking for due orders with a started payment")?;
    Ok(due)
}

/// Locks those of `ids` that may be timed out without asking a gateway; one that another transaction holds is left
/// to the next pass. The list must not be empty.
pub async fn lock_unstarted_due(conn: &mut Conn, ids: &[OrderId], clock: &Clock) -> Result<Vec<OrderId>> {
    let mut query = QueryBuilder::new("SELECT id FROM orders FORCE INDEX (PRIMARY) WHERE id IN ");
    push_in(&mut query, ids.iter().copied());
    query.push(" AND status = ").push_bind(Status::Unpaid);
    query.push(" AND pay_started_at IS NULL AND expires_at <= ").push_bind(clock.now());
    query.push(" AND expires_at <= DATE_ADD(UTC_TIMESTAMP(3), INTERVAL ").push_bind(clock.shift_ms() * 1000);
    query.push(" MICROSECOND)");
    query.push(" FOR UPDATE SKIP LOCKED");
    let locked = query.build_query_scalar().fetch_all(conn).await.context("locking due orders")?;
    Ok(locked)
}

/// unpaid → timed_out for a page of orders. The list must not be empty. Returns how many moved.
pub async fn time_out_page(conn: &mut Conn, ids: &[OrderId], now: At) -> Result<u64> {
    let mut query = QueryBuilder::new("UPDATE orders FORCE INDEX (PRIMARY) SET status = ");
    query.push_bind(Closing::TimedOut.status()).push(", closed_at = ").push_bind(now);
    query.push(" WHERE status = ").push_bind(Status::Unpaid);
    query.push(" AND pay_started_at IS NULL AND expires_at <= ").push_bind(now).push(" AND id IN ");
    push_in(&mut query, ids.iter().copied());
    let moved = query.build().execute(conn).await.context("timing orders out")?;
    Ok(moved.rows_affected())
}

/// Locks those of `ids` that are paid and not granted, in one order for everybody. The list must not be empty.
pub async fn lock_to_grant(conn: &mut Conn, ids: &[OrderId]) -> Result<Vec<Order>> {
    // By the ids alone: another index would lead over, and lock, what other batches are about.
    let mut query = QueryBuilder::new(select_orders!("FORCE INDEX (PRIMARY) WHERE status = "));
    query.push_bind(Status::Paid).push(" AND granted_at IS NULL AND id IN ");
    push_in(&mut query, ids.iter().copied());
    query.push(" ORDER BY id FOR UPDATE");
    let locked = query.build_query_as().fetch_all(conn).await.context("locking orders to grant")?;
    Ok(locked)
}

/// Notes that the courses of these orders were granted. The list must not be empty. Returns how many were noted.
pub async fn mark_granted(conn: &mut Conn, ids: &[OrderId], now: At) -> Result<u64> {
    let mut query = QueryBuilder::new("UPDATE orders FORCE INDEX (PRIMARY) SET granted_at = ");
    query.push_bind(now).push(" WHERE granted_at IS NULL AND status = ").push_bind(Status::Paid).push(" AND id IN ");
    push_in(&mut query, ids.iter().copied());
    let marked = query.build().execute(conn).await.context("marking orders granted")?;
    Ok(marked.rows_affected())
}

/// Locks those of `ids` that are dead and have not given back, in one order for everybody. The list must not be empty.
pub async fn lock_to_release(conn: &mut Conn, ids: &[OrderId]) -> Result<Vec<Order>> {
    let mut query = QueryBuilder::new(select_orders!("FORCE INDEX (PRIMARY) WHERE status IN "));
    push_in(&mut query, [Status::Cancelled, Status::TimedOut]);
    query.push(" AND released_at IS NULL AND id IN ");
    push_in(&mut query, ids.iter().copied());
    query.push(" ORDER BY id FOR UPDATE");
    let locked = query.build_query_as().fetch_all(conn).await.context("locking orders to release")?;
    Ok(locked)
}

/// Notes that these orders gave back what they held. The list must not be empty. Returns how many were noted.
pub async fn mark_released(conn: &mut Conn, ids: &[OrderId], now: At) -> Result<u64> {
    let mut query = QueryBuilder::new("UPDATE orders FORCE INDEX (PRIMARY) SET released_at = ");
    query.push_bind(now).push(" WHERE released_at IS NULL AND status IN ");
    push_in(&mut query, [Status::Cancelled, Status::TimedOut]);
    query.push(" AND id IN ");
    push_in(&mut query, ids.iter().copied());
    let marked = query.build().execute(conn).await.context("marking orders released")?;
    Ok(marked.rows_affected())
}

/// Orders paid before `before` whose courses were not granted, oldest first.
pub async fn grants_owed(conn: &mut Conn, before: At, limit: u32) -> Result<Vec<OrderId>> {
    let owed = sqlx::query_scalar(
        "SELECT id FROM orders FORCE INDEX (ix_orders_grant_owed)
         WHERE status = ? AND granted_at IS NULL AND paid_at <= ? ORDER BY paid_at LIMIT ?",
    )
    .bind(Status::Paid)
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("looking for owed grants")?;
    Ok(owed)
}

/// Orders closed as `status` before `before` that have not given back what they held, oldest first.
pub async fn releases_owed(conn: &mut Conn, status: Status, before: At, limit: u32) -> Result<Vec<OrderId>> {
    let owed = sqlx::query_scalar(
        "SELECT id FROM orders FORCE INDEX (ix_orders_release_owed)
         WHERE status = ? AND released_at IS NULL AND closed_at <= ? ORDER BY closed_at LIMIT ?",
    )
    .bind(status)
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("looking for owed releases")?;
    Ok(owed)
}
