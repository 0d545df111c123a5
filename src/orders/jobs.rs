//! The success queue and the failure queue, and the pass that drives again what is owed.
//!
//! Both handlers take a batch in one transaction: they lock those of its orders that still owe the work, do it, and
//! note it on the row. Run twice, by two workers at once, or killed before or after the commit: the row says what is
//! left to do, and the points ledger and `user_courses` take each effect once.

use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;

use super::model::{Grant, Order, OrderId, Release, Status};
use super::{count, enqueue_grants, enqueue_releases, store};
use crate::app::{App, failed};
use crate::catalogue;
use crate::engine::{Job, Outcome};
use crate::error::{Kind, Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::wallet::{self, Credit, Reason};

/// What else dead orders give back, in the same transaction: the rooms on top of orders hold things of their own.
pub type ReleasePart = for<'a> fn(&'a mut Conn, &'a [OrderId], At) -> BoxFuture<'a, Result<()>>;

/// Orders of each kind of debt that one pass of [`redrive`] looks at.
const REDRIVE_PAGE: u32 = 5000;

/// Gives the courses of paid orders and credits the points they earned.
pub async fn grant(app: App, jobs: Vec<Job<Grant>>) -> Vec<Outcome> {
    let ids: Vec<OrderId> = jobs.iter().map(|job| job.args.order_id).collect();
    let app = &app;
    one_by_one_if_all_fail(app, &ids, |ids| async move { retrying(|| grant_all(app, &ids)).await }).await
}

/// Gives back what dead orders held: coupons, points, and what `part` sees to.
pub async fn release(app: App, jobs: Vec<Job<Release>>, part: ReleasePart) -> Vec<Outcome> {
    let ids: Vec<OrderId> = jobs.iter().map(|job| job.args.order_id).collect();
    let app = &app;
    one_by_one_if_all_fail(app, &ids, |ids| async move { retrying(|| release_all(app, &ids, part)).await }).await
}

/// Runs a batch; when it fails, each of its orders alone, so that one bad order does not hold up the others. Not when
/// the database is away: then they all fail, and wait.
async fn one_by_one_if_all_fail<F, Fut>(app: &App, ids: &[OrderId], run: F) -> Vec<Outcome>
where
    F: Fn(Vec<OrderId>) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    match run(ids.to_vec()).await {
        Ok(()) => ids.iter().map(|_| Outcome::done()).collect(),
        Err(error) if ids.len() == 1 || error.kind() == Kind::Unavailable => {
            ids.iter().map(|_| failed(app, &error)).collect()
        }
        Err(error) => {
            tracing::warn!(%error, orders = ids.len(), "batch failed and runs one by one");
            let mut outcomes = Vec::with_capacity(ids.len());
            for id in ids {
                let outcome = run(vec![*id]).await;
                outcomes.push(outcome.map_or_else(|error| failed(app, &error), |()| Outcome::done()));
            }
            outcomes
        }
    }
}

pub(super) async fn grant_all(app: &App, ids: &[OrderId]) -> Result<()> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let orders = store::lock_to_grant(&mut tx, ids).await?;
    if orders.is_empty() {
        return Ok(());
    }
    let ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
    let items = store::items(&mut tx, &ids).await?;
    let mut grants = Vec::with_capacity(items.len());
    // Orders and items come in the same order, so each order's items are next to each other.
    for order in &orders {
        // What a refund has taken back is not given again, should a person have the order granted once more.
        let own = items.iter().filter(|item| item.order_id == order.id && !item.is_refunded());
        grants.extend(own.map(|item| (order.user_id, item.course_id, order.id.uuid())));
    }
    catalogue::grant(&mut tx, &grants, now).await?;
    let earned: Vec<Credit> = orders.iter().map(|o| credit(o, o.points_earned, Reason::OrderEarned)).collect();
    wallet::give_points(&mut tx, &earned, now).await?;
    all_noted(store::mark_granted(&mut tx, &ids, now).await?, ids.len())?;
    tx.commit().await.context("committing")?;
    count("granted", ids.len());
    Ok(())
}

async fn release_all(app: &App, ids: &[OrderId], part: ReleasePart) -> Result<()> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let orders = store::lock_to_release(&mut tx, ids).await?;
    if orders.is_empty() {
        return Ok(());
    }
    let ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
    let references: Vec<_> = orders.iter().filter(|o| o.user_coupon_id.is_some()).map(|o| o.id.uuid()).collect();
    wallet::free_coupons(&mut tx, &references).await?;
    let back: Vec<Credit> = orders.iter().map(|o| credit(o, o.points_used, Reason::OrderReturn(o.hold_no))).collect();
    wallet::give_points(&mut tx, &back, now).await?;
    part(&mut tx, &ids, now).await?;
    all_noted(store::mark_released(&mut tx, &ids, now).await?, ids.len())?;
    tx.commit().await.context("committing")?;
    count("released", ids.len());
    Ok(())
}

fn credit(order: &Order, points: i64, reason: Reason) -> Credit {
    Credit { user: order.user_id, points, reason, reference: order.id.uuid() }
}

fn all_noted(noted: u64, of: usize) -> Result<()> {
    if noted == of as u64 { Ok(()) } else { Err(anyhow::anyhow!("noted {noted} of {of} locked orders").into()) }
}

/// Enqueues what is owed for longer than the grace period: grants of paid orders, releases of dead ones. A task that
/// is on its way already is left as it is.
pub async fn redrive(app: &App) -> anyhow::Result<()> {
    let before = app.clock.now().minus(Duration::from_secs(app.config.orders.owed_grace_s));
    let (grants, releases) = owed(app, before).await?;
    if !grants.is_empty() || !releases.is_empty() {
        tracing::info!(grants = grants.len(), releases = releases.len(), "driving again what is owed");
    }
    enqueue_grants(app, &grants).await?;
    enqueue_releases(app, &releases).await
}

async fn owed(app: &App, before: At) -> Result<(Vec<OrderId>, Vec<OrderId>)> {
    let mut conn = app.db.acquire().await?;
    let grants = store::grants_owed(&mut conn, before, REDRIVE_PAGE).await?;
    let mut releases = store::releases_owed(&mut conn, Status::Cancelled, before, REDRIVE_PAGE).await?;
    releases.extend(store::releases_owed(&mut conn, Status::TimedOut, before, REDRIVE_PAGE).await?);
    Ok((grants, releases))
}
