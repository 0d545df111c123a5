//! Orders: priced on the server, paid in time or closed, granted once paid, released once dead, taken back when refunded.
//!
//! The row is the outbox: `paid` without `granted_at`, or `cancelled`/`timed_out` without `released_at`, is work owed.
//! What changes an order runs in the caller's transaction (functions that take a connection); what tells the queues
//! runs after its commit, beside the answer (`announce_*`). A process that dies between the two loses only time: [`jobs::redrive`] and
//! the sweep of due orders find the row.

mod create;
pub mod http;
pub mod jobs;
mod model;
mod pricing;
mod refund;
mod store;
mod telling;
mod views;

pub use create::{Quote, amount_too_large, create, quote, refuse_owned};
pub use jobs::{ReleasePart, redrive};
pub use model::{
    Closing, Expire, Grant, NewOrder, Order, OrderId, OrderItem, OrderKind, OrderRefund, OrderRefundId, Release,
    SeckillOrder, Status, WhichOrders,
};
pub use refund::{
    TakeBack, TakenBack, finish_refund, forget_taken_back, give_back_spent, grant_now, mark_refunding, points_spent_on,
    seckill_in, statuses, take_back, taken_back,
};
pub use telling::tell;
pub use views::{BackReason, BackStatus, BackView, ItemView, OrderFacts, OrderView};

use std::collections::{BTreeMap, HashSet};

use anyhow::Context;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{self, UserId};
use crate::catalogue::{self, CourseId};
use crate::config;
use crate::engine;
use crate::error::{Result, retrying};
use crate::platform::clock::{At, Clock};
use crate::platform::db::Conn;
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};
use crate::wallet;

/// An order with its items.
#[derive(Debug, Clone)]
pub struct Whole {
    /// The order.
    pub order: Order,
    /// Its items, by place.
    pub items: Vec<OrderItem>,
}

/// The points that paying `payable` earns.
pub fn points_earned(config: &config::Orders, payable: Money) -> Result<i64> {
    Ok(pricing::earned(payable, config.points_earned_per_yuan)?)
}

/// Inserts orders that were won in a seckill, with their items; a price of nothing is inserted as paid.
pub async fn insert_seckill(conn: &mut Conn, orders: &[SeckillOrder], now: At) -> Result<()> {
    let (rows, items): (Vec<Order>, Vec<OrderItem>) = orders.iter().map(|order| order.rows(now)).unzip();
    store::insert_orders(conn, &rows).await?;
    store::insert_items(conn, &items).await
}

/// An order.
pub async fn find(conn: &mut Conn, id: OrderId) -> Result<Option<Order>> {
    store::find(conn, id).await
}

/// An order, held until the transaction ends.
pub async fn lock(conn: &mut Conn, id: OrderId) -> Result<Option<Order>> {
    store::lock(conn, id).await
}

/// The items of an order, by place.
pub async fn items(conn: &mut Conn, id: OrderId) -> Result<Vec<OrderItem>> {
    store::items(conn, &[id]).await
}

/// An order of the user; somebody else's is `None`.
pub async fn find_own(app: &App, user: UserId, id: OrderId) -> Result<Option<Order>> {
    let mut conn = app.db.acquire().await?;
    Ok(store::find(&mut conn, id).await?.filter(|order| order.user_id == user))
}

/// An order with its items. Who may see it is the caller's to say.
pub async fn find_whole(conn: &mut Conn, id: OrderId) -> Result<Option<Whole>> {
    let Some(order) = store::find(conn, id).await? else { return Ok(None) };
    let items = store::items(conn, &[id]).await?;
    Ok(Some(Whole { order, items }))
}

/// A page of orders with their items, newest first.
pub async fn list(conn: &mut Conn, which: &WhichOrders, page: &PageQuery) -> Result<Page<Whole>> {
    let of_kind = which.user.is_none() && (which.kind.is_some() || which.status.is_some());
    let orders = if of_kind {
        store::list_of_kind(conn, which, page.before(), page.fetch()).await?
    } else {
        store::list(conn, which, page.before(), page.fetch()).await?
    };
    let orders = page.page(orders, |order| order.id);
    let ids: Vec<OrderId> = orders.items.iter().map(|order| order.id).collect();
    let mut items = if ids.is_empty() { Vec::new() } else { store::items(conn, &ids).await? };
    let mut whole = |order: Order| {
        let own = items.extract_if(.., |item| item.order_id == order.id).collect();
        Whole { order, items: own }
    };
    Ok(Page { items: orders.items.into_iter().map(&mut whole).collect(), next_cursor: orders.next_cursor })
}

/// unpaid → paid; false when the order is no longer unpaid.
pub async fn mark_paid(conn: &mut Conn, order: &Order, now: At) -> Result<bool> {
    store::mark_paid(conn, order.id, now).await
}

/// Those of `courses` that the user has, or has paid for and is about to get.
///
/// A grant may commit between the two reads. It moves a course from what is paid to what is owned, so they are read in
/// that direction: the course is in one of them, or in both.
pub(crate) async fn bought(conn: &mut Conn, user: UserId, courses: &[CourseId]) -> Result<HashSet<CourseId>> {
    let mut bought: HashSet<CourseId> = store::paid_not_granted(conn, user, courses).await?.into_iter().collect();
    bought.extend(catalogue::owned(conn, user, courses).await?);
    Ok(bought)
}

/// What of an order its user has by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoughtOtherwise {
    /// These courses of it.
    pub courses: Vec<CourseId>,
    /// They are all that it has.
    pub all: bool,
}

/// What of an unpaid order its user has by other ones that are paid. Of two orders that are paid at once, one sees the
/// other when each has taken the user's turn ([`auth::take_turn`]).
pub async fn bought_otherwise(conn: &mut Conn, order: &Order) -> Result<BoughtOtherwise> {
    let mut courses: Vec<_> = store::items(conn, &[order.id]).await?.into_iter().map(|item| item.course_id).collect();
    let (whole, bought) = (courses.len(), bought(conn, order.user_id, &courses).await?);
    courses.retain(|course| bought.contains(course));
    Ok(BoughtOtherwise { all: courses.len() == whole, courses })
}

/// Unpaid orders, at most `limit`, that have a course of one of these, and whose buyer is the same.
pub async fn unpaid_beside(conn: &mut Conn, orders: &[OrderId], limit: u32) -> Result<Vec<OrderId>> {
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    store::unpaid_beside(conn, orders, limit).await
}

/// Notes that a payment was started; false when the order is not unpaid or its time is over.
pub async fn mark_pay_started(conn: &mut Conn, id: OrderId, now: At) -> Result<bool> {
    store::mark_pay_started(conn, id, now).await
}

/// unpaid → cancelled or timed out; false when the order is no longer unpaid, or not yet due to be timed out. Whether
/// a started payment allows it is the caller's to have asked.
pub async fn close(conn: &mut Conn, id: OrderId, closing: Closing, clock: &Clock) -> Result<bool> {
    match closing {
        Closing::Cancelled => store::cancel(conn, id, clock.now()).await,
        Closing::TimedOut => store::time_out(conn, id, clock).await,
    }
}

/// Dead → paid, for money that came late: true if the order's coupon and points could be taken again, or had not been
/// given back yet. False, with nothing changed, when they could not, when the user has got one of the courses another
/// way, or when the order has changed since it was read. The caller holds it by [`lock`], and sees to whatever else
/// it held (a seckill unit) in the same transaction.
pub async fn reopen(conn: &mut Conn, order: &Order, now: At) -> Result<bool> {
    if !order.status.is_dead() {
        return Ok(false);
    }
    // What a failed attempt took goes back, the caller's transaction goes on.
    store::begin_attempt(conn).await?;
    if retake(conn, order, now).await? && store::reopen(conn, order, now).await? {
        return Ok(true);
    }
    store::undo_attempt(conn).await?;
    Ok(false)
}

async fn retake(conn: &mut Conn, order: &Order, now: At) -> Result<bool> {
    // The account may be gone: its money came all the same.
    auth::take_turn(conn, order.user_id).await?;
    if !bought_otherwise(conn, order).await?.courses.is_empty() {
        return Ok(false);
    }
    if order.released_at.is_none() {
        return Ok(true);
    }
    // The coupon was valid when the order was made in time; its being free again is all that is asked now.
    if let Some(coupon) = order.user_coupon_id
        && !wallet::take_coupon(conn, order.user_id, coupon, order.id.uuid(), now).await?
    {
        return Ok(false);
    }
    let reason = wallet::Reason::OrderSpend(order.hold_no + 1);
    wallet::take_points(conn, order.user_id, order.points_used, reason, order.id.uuid(), now).await
}

/// Whether the time to pay an order is over, by this machine's clock and by the server's.
pub async fn is_due(conn: &mut Conn, id: OrderId, clock: &Clock) -> Result<bool> {
    store::is_due(conn, id, clock).await
}

/// Unpaid orders past their time for which no payment was started, at most `limit`, oldest first.
pub async fn due_unstarted(conn: &mut Conn, now: At, limit: u32) -> Result<Vec<OrderId>> {
    store::due_unstarted(conn, now, limit).await
}

/// Unpaid orders past their time for which a payment was started, with their deadlines, at most `limit`, oldest first.
/// `after` is the last one of the page before: orders that cannot be closed now do not keep the others waiting.
pub async fn due_started(
    conn: &mut Conn,
    now: At,
    after: Option<(At, OrderId)>,
    limit: u32,
) -> Result<Vec<(At, OrderId)>> {
    store::due_started(conn, now, after.unwrap_or((At::from_ms(0), OrderId::min())), limit).await
}

/// Orders that one statement times out.
const TIME_OUT_PAGE: usize = 500;

/// Times out those of `ids` that are due and have no started payment, announces them and returns them.
pub async fn time_out_unstarted(app: &App, ids: &[OrderId]) -> Result<Vec<OrderId>> {
    let mut all = Vec::with_capacity(ids.len());
    for page in ids.chunks(TIME_OUT_PAGE) {
        let moved = retrying(|| async {
            let mut tx = app.db.begin().await?;
            // Locked first, because the update itself does not say which rows it moved.
            let locked = store::lock_unstarted_due(&mut tx, page, &app.clock).await?;
            if locked.is_empty() {
                return Ok(locked);
            }
            let moved = store::time_out_page(&mut tx, &locked, app.clock.now()).await?;
            if moved != locked.len() as u64 {
                return Err(anyhow::anyhow!("timed out {moved} of {} locked orders", locked.len()).into());
            }
            tx.commit().await.context("committing")?;
            Ok(locked)
        })
        .await?;
        if !moved.is_empty() {
            announce_closed(app, moved.clone());
        }
        all.extend(moved);
    }
    Ok(all)
}

/// Orders that one task of the expiry queue closes.
const EXPIRE_TOGETHER: usize = 100;

/// Tells the queues of orders whose creation was committed: their expiry, or their grant when they are paid already.
/// Nobody waits for it.
pub fn announce_created(app: &App, orders: Vec<(OrderId, At, bool)>) {
    count("created", orders.len());
    let telling = app.clone();
    tell(app, async move { tell_of_created(&telling, &orders).await });
}

async fn tell_of_created(app: &App, orders: &[(OrderId, At, bool)]) -> anyhow::Result<()> {
    let mut deadlines: BTreeMap<At, Vec<OrderId>> = BTreeMap::new();
    for &(order, expires_at, _) in orders.iter().filter(|(_, _, paid)| !paid) {
        deadlines.entry(expires_at).or_default().push(order);
    }
    let mut waiting = Vec::new();
    for (due, together) in deadlines {
        for chunk in together.chunks(EXPIRE_TOGETHER) {
            let key = if let [alone] = chunk { alone.uuid() } else { Uuid::now_v7() };
            waiting.push(engine::Item::at(key, Expire { orders: chunk.to_vec() }, due));
        }
    }
    if !waiting.is_empty() {
        app.engine.enqueue(&waiting).await?;
    }
    let paid: Vec<OrderId> = orders.iter().filter(|(_, _, paid)| *paid).map(|(id, _, _)| *id).collect();
    count("paid", paid.len());
    enqueue_grants(app, &paid).await
}

/// Tells the queues of an order whose payment was committed. Nobody waits for it.
pub fn announce_paid(app: &App, order: OrderId) {
    count("paid", 1);
    let telling = app.clone();
    tell(app, async move {
        // The grant first: an expiry that runs on a paid order does nothing.
        enqueue_grants(&telling, &[order]).await?;
        unschedule(&telling, &[order]).await
    });
}

/// Tells the queues of orders whose closing was committed. Nobody waits for it.
pub fn announce_closed(app: &App, orders: Vec<OrderId>) {
    count("closed", orders.len());
    let telling = app.clone();
    tell(app, async move {
        enqueue_releases(&telling, &orders).await?;
        unschedule(&telling, &orders).await
    });
}

async fn enqueue_grants(app: &App, orders: &[OrderId]) -> anyhow::Result<()> {
    let items: Vec<_> = orders.iter().map(|&id| engine::Item::now(id.uuid(), Grant { order_id: id })).collect();
    if !items.is_empty() {
        app.engine.enqueue(&items).await?;
    }
    Ok(())
}

async fn enqueue_releases(app: &App, orders: &[OrderId]) -> anyhow::Result<()> {
    let items: Vec<_> = orders.iter().map(|&id| engine::Item::now(id.uuid(), Release { order_id: id })).collect();
    if !items.is_empty() {
        app.engine.enqueue(&items).await?;
    }
    Ok(())
}

async fn unschedule(app: &App, orders: &[OrderId]) -> anyhow::Result<()> {
    let keys: Vec<_> = orders.iter().map(|id| id.uuid()).collect();
    if !keys.is_empty() {
        app.engine.unschedule::<Expire>(&keys).await?;
    }
    Ok(())
}

fn count(outcome: &'static str, orders: usize) {
    metrics::counter!("onrush_orders_total", "outcome" => outcome).increment(orders as u64);
}
