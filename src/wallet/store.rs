//! The SQL of coupons and points: one statement a function.

use anyhow::Context;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::model::{
    Coupon, CouponId, Credit, LedgerLine, NewCoupon, PointsAccount, Reason, Terms, UserCoupon, UserCouponId,
};
use crate::auth::UserId;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::db::{self, Conn, insert_parts, push_in};
use crate::platform::id::Id;

/// Adds a coupon.
pub async fn insert_coupon(conn: &mut Conn, id: CouponId, coupon: &NewCoupon, now: At) -> Result<()> {
    let terms = &coupon.terms;
    sqlx::query(
        "INSERT INTO coupons (id, title, kind, amount_fen, percent_off, cap_fen, min_spend_fen, quantity, quantity_left,
            valid_from, valid_until, created_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(id)
    .bind(&coupon.title)
    .bind(terms.kind.as_str())
    .bind(terms.amount)
    .bind(terms.percent_off)
    .bind(terms.cap)
    .bind(terms.min_spend)
    .bind(coupon.quantity)
    .bind(coupon.quantity)
    .bind(terms.valid_from)
    .bind(terms.valid_until)
    .bind(now)
    .execute(conn)
    .await
    .context("adding a coupon")?;
    Ok(())
}

/// The terms of a coupon.
pub async fn terms(conn: &mut Conn, id: Id<Coupon>) -> Result<Option<Terms>> {
    let terms = sqlx::query_as(
        "SELECT kind, amount_fen, percent_off, cap_fen, min_spend_fen, valid_from, valid_until
         FROM coupons WHERE id = ?",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
    .context("reading a coupon")?;
    Ok(terms)
}

/// Takes one of a coupon's quantity; false when none is left or it is past its time.
pub async fn take_one(conn: &mut Conn, id: CouponId, now: At) -> Result<bool> {
    let taken = sqlx::query(
        "UPDATE coupons SET quantity_left = quantity_left - 1 WHERE id = ? AND quantity_left > 0 AND valid_until > ?",
    )
    .bind(id)
    .bind(now)
    .execute(conn)
    .await
    .context("taking one of a coupon's quantity")?;
    Ok(taken.rows_affected() == 1)
}

/// Puts a coupon into a wallet; false when it is there already.
pub async fn insert_claim(conn: &mut Conn, id: UserCouponId, user: UserId, coupon: CouponId, now: At) -> Result<bool> {
    let inserted = sqlx::query(
        "INSERT INTO user_coupons (id, user_id, coupon_id, order_id, claimed_at) VALUES (?, ?, ?, NULL, ?)",
    )
    .bind(id)
    .bind(user)
    .bind(coupon)
    .bind(now)
    .execute(conn)
    .await;
    match inserted {
        Ok(_) => Ok(true),
        Err(error) if db::violated(&error).as_deref() == Some("uq_user_coupons_claim") => Ok(false),
        Err(error) => Err(anyhow::Error::from(error).context("claiming a coupon").into()),
    }
}

/// The user's own claim of a coupon.
pub async fn find_claim(conn: &mut Conn, user: UserId, coupon: CouponId) -> Result<Option<UserCoupon>> {
    let found = sqlx::query_as(
        "SELECT uc.id, uc.coupon_id, c.title, c.kind, c.amount_fen, c.percent_off, c.cap_fen, c.min_spend_fen,
            c.valid_from, c.valid_until, uc.order_id, uc.claimed_at, uc.used_at
         FROM user_coupons uc JOIN coupons c ON c.id = uc.coupon_id
         WHERE uc.user_id = ? AND uc.coupon_id = ?",
    )
    .bind(user)
    .bind(coupon)
    .fetch_optional(conn)
    .await
    .context("reading a claim")?;
    Ok(found)
}

/// A coupon in the user's wallet.
pub async fn find_user_coupon(conn: &mut Conn, user: UserId, id: UserCouponId) -> Result<Option<UserCoupon>> {
    let found = sqlx::query_as(
        "SELECT uc.id, uc.coupon_id, c.title, c.kind, c.amount_fen, c.percent_off, c.cap_fen, c.min_spend_fen,
            c.valid_from, c.valid_until, uc.order_id, uc.claimed_at, uc.used_at
         FROM user_coupons uc JOIN coupons c ON c.id = uc.coupon_id
         WHERE uc.id = ? AND uc.user_id = ?",
    )
    .bind(id)
    .bind(user)
    .fetch_optional(conn)
    .await
    .context("reading a user's coupon")?;
    Ok(found)
}

/// The user's coupons below `before`, newest first.
pub async fn list_user_coupons(
    conn: &mut Conn,
    user: UserId,
    before: UserCouponId,
    limit: u32,
) -> Result<Vec<UserCoupon>> {
    let list = sqlx::query_as(
        "SELECT uc.id, uc.coupon_id, c.title, c.kind, c.amount_fen, c.percent_off, c.cap_fen, c.min_spend_fen,
            c.valid_from, c.valid_until, uc.order_id, uc.claimed_at, uc.used_at
         FROM user_coupons uc JOIN coupons c ON c.id = uc.coupon_id
         WHERE uc.user_id = ? AND uc.id < ? ORDER BY uc.id DESC LIMIT ?",
    )
    .bind(user)
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("listing a user's coupons")?;
    Ok(list)
}

/// Gives a free coupon of the user to an order; false when it is not free.
pub async fn take_coupon(conn: &mut Conn, user: UserId, id: UserCouponId, order: Uuid, now: At) -> Result<bool> {
    let taken = sqlx::query(
        "UPDATE user_coupons SET order_id = ?, used_at = ? WHERE id = ? AND user_id = ? AND order_id IS NULL",
    )
    .bind(order)
    .bind(now)
    .bind(id)
    .bind(user)
    .execute(conn)
    .await
    .context("taking a coupon")?;
    Ok(taken.rows_affected() == 1)
}

/// Frees the coupons that these orders hold. The list must not be empty.
pub async fn free_coupons(conn: &mut Conn, orders: &[Uuid]) -> Result<()> {
    let mut query = QueryBuilder::new("UPDATE user_coupons SET order_id = NULL, used_at = NULL WHERE order_id IN ");
    push_in(&mut query, orders.iter().copied());
    query.build().execute(conn).await.context("freeing coupons")?;
    Ok(())
}

/// The user's points.
pub async fn account(conn: &mut Conn, user: UserId) -> Result<PointsAccount> {
    let account: Option<PointsAccount> = sqlx::query_as("SELECT balance, owed FROM points_accounts WHERE user_id = ?")
        .bind(user)
        .fetch_optional(conn)
        .await
        .context("reading points")?;
    Ok(account.unwrap_or_default())
}

/// The points that the user can spend, held until the transaction ends.
pub async fn lock_balance(conn: &mut Conn, user: UserId) -> Result<i64> {
    let balance = sqlx::query_scalar("SELECT balance FROM points_accounts WHERE user_id = ? FOR UPDATE")
        .bind(user)
        .fetch_optional(conn)
        .await
        .context("locking points")?;
    Ok(balance.unwrap_or(0))
}

/// Takes points off the user's balance; false when there are not as many.
pub async fn debit(conn: &mut Conn, user: UserId, points: i64) -> Result<bool> {
    let taken = sqlx::query("UPDATE points_accounts SET balance = balance - ? WHERE user_id = ? AND balance >= ?")
        .bind(points)
        .bind(user)
        .bind(points)
        .execute(conn)
        .await
        .context("taking points")?;
    Ok(taken.rows_affected() == 1)
}

/// Notes that the user owes points.
pub async fn owe(conn: &mut Conn, user: UserId, points: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO points_accounts (user_id, balance, owed) VALUES (?, 0, ?)
         ON DUPLICATE KEY UPDATE owed = owed + VALUES(owed)",
    )
    .bind(user)
    .bind(points)
    .execute(conn)
    .await
    .context("noting owed points")?;
    Ok(())
}

/// Takes points that the user owes off what they owe and off their balance; false when there are not as many.
pub async fn pay_owed(conn: &mut Conn, user: UserId, points: i64) -> Result<bool> {
    let paid = sqlx::query(
        "UPDATE points_accounts SET balance = balance - ?, owed = owed - ?
         WHERE user_id = ? AND balance >= ? AND owed >= ?",
    )
    .bind(points)
    .bind(points)
    .bind(user)
    .bind(points)
    .bind(points)
    .execute(conn)
    .await
    .context("taking owed points")?;
    Ok(paid.rows_affected() == 1)
}

/// Points to take from a user who owes some and was given some.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct DuePoints {
    /// Who.
    pub user_id: UserId,
    /// The first of the ledger lines that gave them points.
    pub credit: Id<LedgerLine>,
    /// How many.
    pub due: i64,
}

/// What is due of those whom the ledger lines with these ids gave points; ids that were not written are nobody's. The list
/// must not be empty.
pub async fn dues(conn: &mut Conn, ids: impl IntoIterator<Item = Id<LedgerLine>>) -> Result<Vec<DuePoints>> {
    let mut query = QueryBuilder::new(
        "SELECT a.user_id, MIN(l.id) AS credit, LEAST(a.owed, a.balance) AS due
         FROM points_ledger l JOIN points_accounts a ON a.user_id = l.user_id
         WHERE a.owed > 0 AND a.balance > 0 AND l.id IN ",
    );
    push_in(&mut query, ids);
    query.push(" GROUP BY a.user_id, a.owed, a.balance ORDER BY a.user_id");
    Ok(query.build_query_as().fetch_all(conn).await.context("looking for owed points")?)
}

/// Writes the ledger line of a [`debit`] or of [`pay_owed`]; the same (user, reason, reference) a second time is an error.
pub async fn insert_debit(
    conn: &mut Conn,
    user: UserId,
    points: i64,
    reason: Reason,
    reference: Uuid,
    now: At,
) -> Result<()> {
    sqlx::query("INSERT INTO points_ledger (id, user_id, delta, reason, ref_id, created_at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(Id::<LedgerLine>::new())
        .bind(user)
        .bind(-points)
        .bind(reason.text())
        .bind(reference)
        .bind(now)
        .execute(conn)
        .await
        .context("writing the points ledger")?;
    Ok(())
}

/// Writes ledger lines with these ids; a line whose (user, reason, reference) is there already is left as it is. The
/// list must not be empty.
pub async fn insert_credits(conn: &mut Conn, credits: &[(Id<LedgerLine>, Credit)], now: At) -> Result<()> {
    for part in insert_parts(credits) {
        let mut query =
            QueryBuilder::new("INSERT INTO points_ledger (id, user_id, delta, reason, ref_id, created_at) VALUES ");
        let mut rows = query.separated(", ");
        for (id, credit) in part {
            rows.push("(").push_bind_unseparated(*id);
            rows.push_unseparated(", ").push_bind_unseparated(credit.user);
            rows.push_unseparated(", ").push_bind_unseparated(credit.points);
            rows.push_unseparated(", ").push_bind_unseparated(credit.reason.text());
            rows.push_unseparated(", ").push_bind_unseparated(credit.reference);
            rows.push_unseparated(", ").push_bind_unseparated(now).push_unseparated(")");
        }
        query.push(" ON DUPLICATE KEY UPDATE delta = delta");
        query.build().execute(&mut *conn).await.context("writing the points ledger")?;
    }
    Ok(())
}

/// Adds to the balances what the ledger lines with these ids say; ids that were not written add nothing. The list
/// must not be empty.
pub async fn add_credits(conn: &mut Conn, ids: impl IntoIterator<Item = Id<LedgerLine>>) -> Result<()> {
    let mut query = QueryBuilder::new(
        "INSERT INTO points_accounts (user_id, balance)
         SELECT user_id, CAST(SUM(delta) AS SIGNED) FROM points_ledger WHERE id IN ",
    );
    push_in(&mut query, ids);
    // in one order for everybody, so that two batches with the same users do not deadlock
    query.push(" GROUP BY user_id ORDER BY user_id ON DUPLICATE KEY UPDATE balance = balance + VALUES(balance)");
    query.build().execute(conn).await.context("adding points")?;
    Ok(())
}

/// The user's ledger below `before`, newest first.
pub async fn ledger(conn: &mut Conn, user: UserId, before: Id<LedgerLine>, limit: u32) -> Result<Vec<LedgerLine>> {
    let lines = sqlx::query_as(
        "SELECT id, delta, reason, ref_id, created_at FROM points_ledger
         WHERE user_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
    )
    .bind(user)
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("reading the points ledger")?;
    Ok(lines)
}
