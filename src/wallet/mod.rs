//! What users hold beside courses: coupons and points.
//!
//! A coupon is held by at most one live order (`user_coupons.order_id`), a user's points are the sum of a ledger in
//! which each (user, reason, reference) stands once. Orders take and give back through the functions here, inside
//! their own transactions.

pub mod http;
mod model;
mod store;

pub use model::{
    Coupon, CouponFault, CouponId, CouponKind, CouponState, Credit, Holder, HolderId, LedgerLine, NewCoupon,
    PointsAccount, Reason, Terms, UserCoupon, UserCouponId,
};

use anyhow::Context;
use serde_json::json;
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::error::{Kind, Result, refuse, retrying};
use crate::idempotency::{self, Fingerprint, Key, StoredAnswer};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::extract::FieldFault;
use crate::platform::id::Id;
use crate::platform::page::{Page, PageQuery};

/// Adds a coupon that people may claim.
pub async fn create_coupon(conn: &mut Conn, coupon: &NewCoupon, now: At) -> Result<CouponId> {
    let id = CouponId::new();
    store::insert_coupon(conn, id, coupon, now).await?;
    Ok(id)
}

/// A coupon that nobody could use any more is a mistake.
pub fn over_faults(valid_until: At, now: At) -> Vec<FieldFault> {
    let over = valid_until <= now;
    over.then(|| FieldFault::new("valid_until", "must be in the future")).into_iter().collect()
}

/// As [`create_coupon`], by an administrator, once for each key: a repeat hears the answer that the first was `made`.
pub async fn create_coupon_once(
    app: &App,
    by: UserId,
    (key, fingerprint): (&Key, Fingerprint),
    coupon: &NewCoupon,
    made: impl Fn(CouponId) -> Result<StoredAnswer>,
) -> Result<StoredAnswer> {
    let now = app.clock.now();
    retrying(|| async {
        let mut tx = app.db.begin().await?;
        if let Some(answer) = idempotency::begin(&mut tx, by.uuid(), key, fingerprint, now).await? {
            return Ok(answer);
        }
        // Not of a repeat, which may come when its time is over.
        let faults = over_faults(coupon.terms.valid_until, now);
        if !faults.is_empty() {
            return Err(faults.into());
        }
        let id = create_coupon(&mut tx, coupon, now).await?;
        let act = Act { by, action: "coupon.create", target: &id.to_string() };
        audit::done(&mut tx, act, &json!({ "title": coupon.title, "quantity": coupon.quantity }), now).await?;
        let answer = made(id)?;
        idempotency::keep(&mut tx, by.uuid(), key, &answer).await?;
        tx.commit().await.context("committing")?;
        Ok(answer)
    })
    .await
}

/// Puts a coupon into the user's wallet. A repeat finds what the first one put there; the flag says which it was.
pub async fn claim(app: &App, user: UserId, coupon: CouponId) -> Result<(UserCoupon, bool)> {
    let now = app.clock.now();
    let first = retrying(|| async move {
        let mut tx = app.db.begin().await?;
        if store::find_claim(&mut tx, user, coupon).await?.is_some() {
            return Ok(false);
        }
        // The coupon's row before the claim's: claimers queue on it and never wait for each other's unique key.
        if !store::take_one(&mut tx, coupon, now).await? {
            // Whoever was first in that queue may have been this user, with the last one.
            if store::find_claim(&mut tx, user, coupon).await?.is_some() {
                return Ok(false);
            }
            return Err(match store::terms(&mut tx, coupon).await? {
                None => Kind::NotFound.into(),
                Some(terms) if now >= terms.valid_until => {
                    refuse(Kind::CouponUnusable, CouponFault::Expired.to_string()).into()
                }
                Some(_) => Kind::CouponExhausted.into(),
            });
        }
        if !store::insert_claim(&mut tx, UserCouponId::new(), user, coupon, now).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.commit().await.context("committing")?;
        Ok(true)
    })
    .await?;
    let mut conn = app.db.acquire().await?;
    let claimed = store::find_claim(&mut conn, user, coupon).await?.context("a claim vanished after its commit")?;
    Ok((claimed, first))
}

/// A page of the user's coupons.
pub async fn coupons(app: &App, user: UserId, page: &PageQuery) -> Result<Page<UserCoupon>> {
    let mut conn = app.db.acquire().await?;
    let list = store::list_user_coupons(&mut conn, user, page.before(), page.fetch()).await?;
    Ok(page.page(list, |coupon| coupon.id))
}

/// The user's account of points and a page of the ledger its balance comes from.
pub async fn points(app: &App, user: UserId, page: &PageQuery) -> Result<(PointsAccount, Page<LedgerLine>)> {
    let mut conn = app.db.acquire().await?;
    let account = store::account(&mut conn, user).await?;
    let lines = store::ledger(&mut conn, user, page.before(), page.fetch()).await?;
    Ok((account, page.page(lines, |line| line.id)))
}

/// The user's points.
pub async fn balance(conn: &mut Conn, user: UserId) -> Result<i64> {
    Ok(store::account(conn, user).await?.balance)
}

/// A coupon in the user's wallet; somebody else's is `None`.
pub async fn find_coupon(conn: &mut Conn, user: UserId, id: UserCouponId) -> Result<Option<UserCoupon>> {
    store::find_user_coupon(conn, user, id).await
}

/// Gives a coupon of the user to an order: false when another order holds it. The caller has checked its terms, which
/// never change; whether it is free is decided here, by a guarded update.
pub async fn take_coupon(conn: &mut Conn, user: UserId, id: UserCouponId, order: Uuid, now: At) -> Result<bool> {
    store::take_coupon(conn, user, id, order, now).await
}

/// Frees whatever coupons these orders hold.
pub async fn free_coupons(conn: &mut Conn, orders: &[Uuid]) -> Result<()> {
    if orders.is_empty() {
        return Ok(());
    }
    store::free_coupons(conn, orders).await
}

/// Takes points from the user: false when there are not as many. The same (user, reason, reference) a second time is
/// an error: the caller's own guard has failed.
pub async fn take_points(
    conn: &mut Conn,
    user: UserId,
    points: i64,
    reason: Reason,
    reference: Uuid,
    now: At,
) -> Result<bool> {
    if points <= 0 {
        return Ok(points == 0);
    }
    if !store::debit(conn, user, points).await? {
        return Ok(false);
    }
    store::insert_debit(conn, user, points, reason, reference, now).await?;
    Ok(true)
}

/// Points that were to be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PointsBack {
    /// So many were there, and were taken.
    pub taken: i64,
    /// The others had been spent: the user owes them, and the next credits pay them ([`give_points`]).
    pub owed: i64,
}

/// Takes points back from the user: as many as there are, and the others are owed. As [`take_points`] otherwise.
pub async fn take_back_points(
    conn: &mut Conn,
    user: UserId,
    points: i64,
    reason: Reason,
    reference: Uuid,
    now: At,
) -> Result<PointsBack> {
    if points <= 0 {
        return Ok(PointsBack::default());
    }
    let taken = store::lock_balance(conn, user).await?.min(points);
    if taken > 0 && !take_points(conn, user, taken, reason, reference, now).await? {
        return Err(anyhow::anyhow!("the points of {user} changed under their lock").into());
    }
    let owed = points - taken;
    if owed > 0 {
        store::owe(conn, user, owed).await?;
    }
    Ok(PointsBack { taken, owed })
}

/// Credits that one statement takes.
const CREDIT_CHUNK: usize = 200;

/// Gives points to users, each (user, reason, reference) once: a credit given before changes nothing. Whoever owes points
/// pays them of what they are given, with a line of the ledger of its own. Every credit comes through here, so nobody keeps
/// points that they owe by having them come back another way.
pub async fn give_points(conn: &mut Conn, credits: &[Credit], now: At) -> Result<()> {
    let real: Vec<(Id<LedgerLine>, Credit)> =
        credits.iter().filter(|credit| credit.points > 0).map(|credit| (Id::new(), *credit)).collect();
    for chunk in real.chunks(CREDIT_CHUNK) {
        store::insert_credits(conn, chunk, now).await?;
        // Only lines that were really written have these ids, so only they are added.
        store::add_credits(conn, chunk.iter().map(|(id, _)| *id)).await?;
        for due in store::dues(conn, chunk.iter().map(|(id, _)| *id)).await? {
            pay_owed(conn, due, now).await?;
        }
    }
    Ok(())
}

/// Has a user pay points that they owe. Their account is held: it was just added to.
async fn pay_owed(conn: &mut Conn, due: store::DuePoints, now: At) -> Result<()> {
    let store::DuePoints { user_id, credit, due } = due;
    if !store::pay_owed(conn, user_id, due).await? {
        return Err(anyhow::anyhow!("the points that {user_id} owes changed under their lock").into());
    }
    store::insert_debit(conn, user_id, due, Reason::OwedPaid, credit.uuid(), now).await
}
