//! What a paid order gave is taken back when its money goes back, and what it held is given back with the last of it.
//!
//! In the transaction that owes the money: the courses, and the points that the order had earned. In the one that hears
//! of the last money being back: the coupon, and the points that the order had spent. Those that it had spent on courses
//! which it never gives come back at once, and not again at the end. Each is done once, by the item's `refund_id`, the
//! guarded moves of the status and the unique key of the points ledger.

use std::collections::HashMap;

use super::jobs;
use super::model::{Order, OrderId, OrderItem, OrderRefundId, Status};
use super::pricing;
use super::store::refund as store;
pub use super::store::refund::TakenBack;
use crate::app::App;
use crate::catalogue::{self, CourseId};
use crate::error::{Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::{CHUNK, Conn};
use crate::platform::money::Money;
use crate::wallet::{self, Credit, PointsBack, Reason};

/// What a refund takes back of an order.
#[derive(Debug, Clone)]
pub struct TakeBack {
    /// The refund.
    pub refund: OrderRefundId,
    /// The courses, which no refund has taken back before.
    pub courses: Vec<CourseId>,
    /// Of the points that the order had earned, so many.
    pub earned: i64,
}

/// Gives a paid order its courses and points now, if that is still owed: what was never given is not taken back.
pub async fn grant_now(app: &App, id: OrderId) -> Result<()> {
    retrying(|| async { jobs::grant_all(app, &[id]).await }).await
}

/// Takes back courses and points; gives how many points were there, and how many are owed. The caller holds the order by
/// [`super::lock`].
pub async fn take_back(conn: &mut Conn, order: &Order, what: &TakeBack, now: At) -> Result<PointsBack> {
    if !what.courses.is_empty() {
        let noted = store::mark_items_refunded(conn, order.id, what.refund, &what.courses).await?;
        if noted != what.courses.len() as u64 {
            return Err(anyhow::anyhow!("items of order {} changed under its lock", order.id).into());
        }
        // What was not given yet is not taken away.
        if order.granted_at.is_some() {
            catalogue::revoke(conn, order.id.uuid(), &what.courses).await?;
            store::insert_taken_back(conn, order.id, order.user_id, &what.courses, now).await?;
        }
    }
    let reason = Reason::OrderEarnedBack;
    wallet::take_back_points(conn, order.user_id, what.earned, reason, what.refund.uuid(), now).await
}

/// The points that an order had spent on these courses of it.
pub fn points_spent_on(order: &Order, items: &[OrderItem], courses: &[CourseId]) -> Result<i64> {
    let discounts: Vec<Money> = items.iter().map(|item| item.points_discount).collect();
    let points = pricing::points_by_item(order.points_used, &discounts)?;
    Ok(items.iter().zip(points).filter(|(item, _)| courses.contains(&item.course_id)).map(|(_, points)| points).sum())
}

/// Gives back points that an order had spent on courses which a refund takes out of it; [`finish_refund`] is to leave them
/// out. The caller holds the order by [`super::lock`].
pub async fn give_back_spent(
    conn: &mut Conn,
    order: &Order,
    refund: OrderRefundId,
    points: i64,
    now: At,
) -> Result<()> {
    let back = Credit { user: order.user_id, points, reason: Reason::OrderSpendBack, reference: refund.uuid() };
    wallet::give_points(conn, &[back], now).await
}

/// Courses that refunds took back, after one of them, at most `limit`, by order and course: each until it is forgotten.
pub async fn taken_back(conn: &mut Conn, after: (OrderId, CourseId), limit: u32) -> Result<Vec<TakenBack>> {
    store::taken_back(conn, after, limit).await
}

/// Forgets what was taken back of these orders before an instant: all who must hear of it have.
pub async fn forget_taken_back(conn: &mut Conn, orders: &[OrderId], before: At) -> Result<()> {
    if orders.is_empty() {
        return Ok(());
    }
    store::forget_taken_back(conn, orders, before).await
}

/// Where orders are, of those that there are.
pub async fn statuses(conn: &mut Conn, orders: &[OrderId]) -> Result<HashMap<OrderId, Status>> {
    let mut all = HashMap::with_capacity(orders.len());
    for page in orders.chunks(CHUNK) {
        all.extend(store::statuses(conn, page).await?);
    }
    Ok(all)
}

/// Seckill orders in this status made after `after`, at most `limit`, by id.
pub async fn seckill_in(conn: &mut Conn, status: Status, after: OrderId, limit: u32) -> Result<Vec<OrderId>> {
    store::seckill_in(conn, status, after, limit).await
}

/// paid → refunding: everything is taken back, its money is on the way.
pub async fn mark_refunding(conn: &mut Conn, order: &Order) -> Result<()> {
    moved(store::mark_refunding(conn, order.id).await?, order)
}

/// refunding → refunded: gives back the coupon and the points that were spent, less `kept`: those that came back before, and
/// those that refunds of a version before keep back.
pub async fn finish_refund(conn: &mut Conn, order: &Order, kept: i64, now: At) -> Result<()> {
    moved(store::mark_refunded(conn, order.id, now).await?, order)?;
    if order.user_coupon_id.is_some() {
        wallet::free_coupons(conn, &[order.id.uuid()]).await?;
    }
    let points = order.points_used.saturating_sub(kept);
    let back = Credit { user: order.user_id, points, reason: Reason::OrderRefunded, reference: order.id.uuid() };
    wallet::give_points(conn, &[back], now).await
}

fn moved(moved: bool, order: &Order) -> Result<()> {
    if moved { Ok(()) } else { Err(anyhow::anyhow!("order {} changed under its lock", order.id).into()) }
}

impl OrderItem {
    /// Whether its course was taken back.
    pub fn is_refunded(&self) -> bool {
        self.refund_id.is_some()
    }
}
