//! One SQL statement a function.

use sqlx::QueryBuilder;
use uuid::Uuid;

use super::model::{Account, LoginId, NewToken, Phone, Role, Standing, Token, User, UserId};
use crate::platform::clock::At;
use crate::platform::db::{Conn, push_in};
use crate::platform::id::Id;

/// Inserts a user; a taken number violates `uq_users_phone`.
pub(super) async fn insert_user(conn: &mut Conn, user: &User, password_hash: &str) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO users (id, phone, password_hash, nickname, role, created_at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(user.id)
        .bind(user.phone.as_str())
        .bind(password_hash)
        .bind(&user.nickname)
        .bind(user.role.as_str())
        .bind(user.created_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// The user with an id.
pub(super) async fn find_user(conn: &mut Conn, user: UserId) -> sqlx::Result<Option<User>> {
    sqlx::query_as("SELECT id, phone, nickname, role, created_at FROM users WHERE id = ?")
        .bind(user)
        .fetch_optional(conn)
        .await
}

/// The users with these ids. The list must not be empty.
pub(super) async fn find_users(conn: &mut Conn, ids: &[UserId]) -> sqlx::Result<Vec<User>> {
    let mut query = QueryBuilder::new("SELECT id, phone, nickname, role, created_at FROM users WHERE id IN ");
    push_in(&mut query, ids.iter().copied());
    query.build_query_as().fetch_all(conn).await
}

/// The id of the user with a phone number.
pub(super) async fn find_phone(conn: &mut Conn, phone: &Phone) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar("SELECT id FROM users WHERE phone = ?").bind(phone.as_str()).fetch_optional(conn).await
}

/// Holds a user's row until the transaction ends; false when there is none. It writes, see [`super::take_turn`].
pub(super) async fn take_turn(conn: &mut Conn, user: UserId) -> sqlx::Result<bool> {
    let taken = sqlx::query("UPDATE users SET turns = turns + 1 WHERE id = ?").bind(user).execute(conn).await?;
    Ok(taken.rows_affected() == 1)
}

/// How an account and one of its logins stand. A login that was never kept, or is kept no more, is not over: its tokens
/// are kept for longer than an access token lives.
pub(super) async fn find_standing(conn: &mut Conn, user: UserId, login: LoginId) -> sqlx::Result<Option<Standing>> {
    sqlx::query_as(
        "SELECT role, disabled_at, EXISTS (SELECT * FROM refresh_tokens WHERE family_id = ? AND revoked_at IS NOT NULL) AS revoked \
         FROM users WHERE id = ?",
    )
    .bind(login)
    .bind(user)
    .fetch_optional(conn)
    .await
}

/// Revokes all logins of a user, as [`revoke_family`] does each; how many went on.
pub(super) async fn revoke_logins(conn: &mut Conn, user: UserId, now: At) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "UPDATE refresh_tokens SET revoked_at = ? WHERE user_id = ? AND revoked_at IS NULL AND used_at IS NULL",
    )
    .bind(now)
    .bind(user)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// The account with a phone number.
pub(super) async fn find_account(conn: &mut Conn, phone: &Phone) -> sqlx::Result<Option<Account>> {
    sqlx::query_as(
        "SELECT id, phone, nickname, role, created_at, password_hash, disabled_at FROM users WHERE phone = ?",
    )
    .bind(phone.as_str())
    .fetch_optional(conn)
    .await
}

/// Gives an account another role.
pub(super) async fn set_role(conn: &mut Conn, user: UserId, role: Role) -> sqlx::Result<()> {
    sqlx::query("UPDATE users SET role = ? WHERE id = ?").bind(role).bind(user).execute(conn).await.map(drop)
}

/// Notes when an account was disabled, or that it is not. One that is stays so from its first time on.
pub(super) async fn set_disabled(conn: &mut Conn, user: UserId, at: Option<At>) -> sqlx::Result<()> {
    let set = match at {
        Some(_) => "UPDATE users SET disabled_at = COALESCE(disabled_at, ?) WHERE id = ?",
        None => "UPDATE users SET disabled_at = ? WHERE id = ?",
    };
    sqlx::query(set).bind(at).bind(user).execute(conn).await.map(drop)
}

/// Whether nobody may log in to an account.
pub(super) async fn is_disabled(conn: &mut Conn, user: UserId) -> sqlx::Result<bool> {
    let sql = "SELECT COUNT(*) FROM users WHERE id = ? AND disabled_at IS NOT NULL";
    let found: i64 = sqlx::query_scalar(sql).bind(user).fetch_one(conn).await?;
    Ok(found > 0)
}

/// The accounts that have a role, at most `limit`.
pub(super) async fn find_staff(conn: &mut Conn, limit: u32) -> sqlx::Result<Vec<Account>> {
    let mut query = QueryBuilder::new(
        "SELECT id, phone, nickname, role, created_at, password_hash, disabled_at FROM users WHERE role IN ",
    );
    push_in(&mut query, Role::ALL.into_iter().filter(|role| *role != Role::User));
    query.push(" ORDER BY role, id LIMIT ").push_bind(limit).build_query_as().fetch_all(conn).await
}

/// Whether somebody has another number than these.
pub(super) async fn find_other(conn: &mut Conn, phones: &[&str]) -> sqlx::Result<bool> {
    let mut query = QueryBuilder::new("SELECT id FROM users WHERE phone NOT IN ");
    push_in(&mut query, phones.iter().copied());
    let found: Option<UserId> =
        query.push(" LIMIT 1").build_query_scalar().persistent(false).fetch_optional(conn).await?;
    Ok(found.is_some())
}

/// Inserts a refresh token.
pub(super) async fn insert_token(conn: &mut Conn, token: &NewToken) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO refresh_tokens (id, user_id, family_id, token_hash, created_at, expires_at) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(Id::<NewToken>::new())
    .bind(token.user)
    .bind(token.family)
    .bind(&token.hash)
    .bind(token.created_at)
    .bind(token.expires_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// The refresh token with a hash.
pub(super) async fn find_token(conn: &mut Conn, hash: &[u8]) -> sqlx::Result<Option<Token>> {
    sqlx::query_as("SELECT user_id, family_id, used_at FROM refresh_tokens WHERE token_hash = ?")
        .bind(hash)
        .fetch_optional(conn)
        .await
}

/// Marks a live refresh token as used; false when it is not live.
pub(super) async fn use_token(conn: &mut Conn, hash: &[u8], now: At) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE refresh_tokens SET used_at = ? \
         WHERE token_hash = ? AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?",
    )
    .bind(now)
    .bind(hash)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes a login: the one token of it that was not used. Those that were used let nobody in. The caller holds the user's
/// row, so no other token joins meanwhile.
pub(super) async fn revoke_family(conn: &mut Conn, family: Uuid, now: At) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE refresh_tokens SET revoked_at = ? WHERE family_id = ? AND revoked_at IS NULL AND used_at IS NULL",
    )
    .bind(now)
    .bind(family)
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes at most `limit` refresh tokens that expired before a time; returns how many.
pub(super) async fn delete_expired(conn: &mut Conn, before: At, limit: u32) -> sqlx::Result<u64> {
    let done = sqlx::query("DELETE FROM refresh_tokens WHERE expires_at < ? ORDER BY expires_at LIMIT ?")
        .bind(before)
        .bind(limit)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}
