//! Logins: a family of refresh tokens each, of which one is live.
//!
//! Whoever rotates or revokes a family holds its user's row first, so a token can never join a family in the moment
//! in which it is revoked.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use uuid::Uuid;

use super::model::{NewToken, RefreshToken, User, UserId};
use super::{sign, store};
use crate::app::App;
use crate::audit::{self, Act};
use crate::error::{Error, Kind, Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};

/// What a client is given at a login and at each refresh.
pub(super) struct Session {
    /// Who logged in.
    pub user: User,
    /// For `Authorization: Bearer`.
    pub access_token: String,
    /// For the next refresh, once.
    pub refresh_token: RefreshToken,
}

/// Begins a login of `user`, in the caller's transaction.
pub(super) async fn open(app: &App, conn: &mut Conn, user: User, now: At) -> Result<Session> {
    extend(app, conn, user, Uuid::now_v7(), RefreshToken::random()?, now).await
}

/// Adds the next token to a login.
async fn extend(app: &App, conn: &mut Conn, user: User, family: Uuid, next: RefreshToken, now: At) -> Result<Session> {
    let expires_at = now.plus(Duration::from_secs(app.config.auth.refresh_token_s));
    let token = NewToken { user: user.id, family, hash: next.hash(), created_at: now, expires_at };
    store::insert_token(conn, &token).await.context("inserting a refresh token")?;
    let access_token = sign(app, user.id, user.role, family, now)?;
    Ok(Session { user, access_token, refresh_token: next })
}

/// Exchanges a refresh token for a new pair. One that was used before ends its login.
pub(super) async fn refresh(app: &App, token: &RefreshToken) -> Result<Session> {
    let (hash, next) = (token.hash(), RefreshToken::random()?);
    match retrying(|| rotate(app, &hash, next.clone())).await {
        // A repeat would be taken for a theft, and end the login.
        Err(Error::Internal(error)) if db::may_be_done(&error) => match find(app, next).await {
            Ok(Some(session)) => Ok(session),
            _ => Err(error.into()),
        },
        refreshed => refreshed,
    }
}

/// The pair with this refresh token, if that was given out.
async fn find(app: &App, next: RefreshToken) -> Result<Option<Session>> {
    let mut conn = app.db.acquire().await?;
    let token = store::find_token(&mut conn, &next.hash()).await.context("reading a refresh token")?;
    let Some(token) = token else { return Ok(None) };
    let user = store::find_user(&mut conn, token.user_id).await.context("reading a user")?;
    let user = user.ok_or(Kind::RefreshInvalid)?;
    let access_token = sign(app, user.id, user.role, token.family_id, app.clock.now())?;
    Ok(Some(Session { user, access_token, refresh_token: next }))
}

async fn rotate(app: &App, hash: &[u8], next: RefreshToken) -> Result<Session> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let token = store::find_token(&mut tx, hash).await.context("reading a refresh token")?;
    let token = token.ok_or(Kind::RefreshInvalid)?;
    store::take_turn(&mut tx, token.user_id).await.context("locking a user")?;
    let user = store::find_user(&mut tx, token.user_id).await.context("reading a user")?;
    let user = user.ok_or(Kind::RefreshInvalid)?;
    // A login that began while the account was disabled.
    if store::is_disabled(&mut tx, user.id).await.context("reading whether an account is disabled")? {
        return Err(Kind::RefreshInvalid.into());
    }
    if store::use_token(&mut tx, hash, now).await.context("using a refresh token")? {
        let session = extend(app, &mut tx, user, token.family_id, next, now).await?;
        tx.commit().await.context("committing a refresh")?;
        return Ok(session);
    }
    // Read again: who used it may have done so while this one waited for the user's row.
    let token = store::find_token(&mut tx, hash).await.context("reading a refresh token")?;
    let token = token.filter(|token| token.used_at.is_some()).ok_or(Kind::RefreshInvalid)?;
    store::revoke_family(&mut tx, token.family_id, now).await.context("revoking a login")?;
    tx.commit().await.context("committing a revocation")?;
    tracing::warn!(user.id = %user.id, login.id = %token.family_id.as_simple(), "refresh token used twice, login revoked");
    Err(Kind::RefreshReused.into())
}

/// Ends the login that a token belongs to. Unknown, used and revoked tokens are fine: the login is over in any case.
pub(super) async fn close(app: &App, token: &RefreshToken) -> Result<()> {
    let hash = token.hash();
    retrying(|| revoke(app, &hash)).await
}

async fn revoke(app: &App, hash: &[u8]) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let Some(token) = store::find_token(&mut tx, hash).await.context("reading a refresh token")? else {
        return Ok(());
    };
    store::take_turn(&mut tx, token.user_id).await.context("locking a user")?;
    store::revoke_family(&mut tx, token.family_id, app.clock.now()).await.context("revoking a login")?;
    Ok(tx.commit().await.context("committing a logout")?)
}

/// Ends all logins of an account, and says who did so.
pub async fn close_all(app: &App, by: UserId, user: UserId) -> Result<()> {
    retrying(|| async {
        let now = app.clock.now();
        let mut tx = app.db.begin().await?;
        if !store::take_turn(&mut tx, user).await.context("locking a user")? {
            return Err(Kind::NotFound.into());
        }
        let revoked = store::revoke_logins(&mut tx, user, now).await.context("revoking all logins")?;
        let act = Act { by, action: "user.logout", target: &user.to_string() };
        audit::done(&mut tx, act, &json!({ "tokens": revoked }), now).await?;
        Ok(tx.commit().await.context("committing the end of all logins")?)
    })
    .await
}

/// Tokens are kept this long after their expiry, so that a late reuse is still known as one. No access token lives longer
/// (`auth.access_token_s`): while one does, it can be seen whether its login is over.
const KEEP_EXPIRED: Duration = Duration::from_secs(24 * 3600);
/// Tokens that one statement deletes.
const PRUNE_PAGE: u32 = 1000;

/// Deletes refresh tokens that expired long ago.
pub(super) async fn prune(app: &App) -> anyhow::Result<()> {
    let before = app.clock.now().minus(KEEP_EXPIRED);
    db::by_pages(&app.loops, PRUNE_PAGE, || async {
        let mut conn = app.db.acquire().await?;
        store::delete_expired(&mut conn, before, PRUNE_PAGE).await.context("pruning refresh tokens")
    })
    .await
}
