//! Accounts that have a role, and accounts that may not log in.

use anyhow::Context;
use serde_json::{Value, json};

use super::model::{Phone, Role, User, UserId};
use super::store;
use crate::app::App;
use crate::audit::{self, Act};
use crate::error::{Kind, Result, refuse, retrying};
use crate::platform::clock::At;
use crate::platform::db::Conn;

/// Who is written down for what was done at the command line: nobody has this id.
const COMMAND_LINE: UserId = UserId::min();
/// Accounts with a role that are listed, at most.
const STAFF_SHOWN: u32 = 1000;

/// Makes an account with a role, and writes down that it was made.
pub async fn create_staff(app: &App, phone: &str, password: &str, nickname: &str, role: Role) -> Result<UserId> {
    let (user, hash) = super::new_account(app, phone, password, nickname, role).await?;
    retrying(async || {
        let mut tx = app.db.begin().await?;
        super::insert(&mut tx, &user, &hash).await?;
        let act = Act { by: COMMAND_LINE, action: "user.create", target: &user.id.to_string() };
        audit::done(&mut tx, act, &json!({ "role": role }), app.clock.now()).await?;
        Ok(tx.commit().await.context("committing an account")?)
    })
    .await?;
    Ok(user.id)
}

/// What became of an account that was to be changed.
#[derive(Debug)]
pub struct Changed {
    /// The account as it is now.
    pub user: User,
    /// The role that it had.
    pub before: Role,
    /// Whether it was another one before, or opened, or closed.
    pub is_new: bool,
}

/// Gives an account another role.
pub async fn set_role(app: &App, phone: &Phone, role: Role) -> Result<Changed> {
    change(app, phone, "user.role", &json!({ "role": role }), async |conn, user, _| {
        store::set_role(conn, user.id, role).await.context("setting a role")?;
        Ok(user.role != role)
    })
    .await
}

/// Ends all logins of an account and lets nobody log in to it, or lets its owner log in again.
pub async fn set_disabled(app: &App, phone: &Phone, disabled: bool) -> Result<Changed> {
    let action = if disabled { "user.disable" } else { "user.enable" };
    change(app, phone, action, &json!({}), async |conn, user, now| {
        if store::is_disabled(conn, user.id).await.context("reading whether an account is disabled")? == disabled {
            return Ok(false);
        }
        store::set_disabled(conn, user.id, disabled.then_some(now)).await.context("disabling an account")?;
        // Also when it opens again: a login that was about to begin when it was closed may have begun since.
        store::revoke_logins(conn, user.id, now).await.context("revoking all logins")?;
        Ok(true)
    })
    .await
}

/// Changes an account in a transaction that writes it down, when there is a change.
async fn change(
    app: &App,
    phone: &Phone,
    action: &'static str,
    details: &Value,
    doing: impl AsyncFn(&mut Conn, &User, At) -> Result<bool>,
) -> Result<Changed> {
    retrying(async || {
        let now = app.clock.now();
        let mut tx = app.db.begin().await?;
        let id = store::find_phone(&mut tx, phone).await.context("looking for a phone number")?;
        let id = id.ok_or_else(|| refuse(Kind::NotFound, "no account has this number"))?;
        if !store::take_turn(&mut tx, id).await.context("locking a user")? {
            return Err(Kind::NotFound.into());
        }
        let before = store::find_user(&mut tx, id).await.context("reading a user")?.ok_or(Kind::NotFound)?;
        let is_new = doing(&mut tx, &before, now).await?;
        if is_new {
            let act = Act { by: COMMAND_LINE, action, target: &id.to_string() };
            audit::done(&mut tx, act, details, now).await?;
        }
        let user = store::find_user(&mut tx, id).await.context("reading a user")?.ok_or(Kind::NotFound)?;
        tx.commit().await.context("committing a change of an account")?;
        Ok(Changed { user, before: before.role, is_new })
    })
    .await
}

/// The accounts that have a role, and whether each is disabled.
pub async fn staff_accounts(app: &App) -> Result<Vec<(User, bool)>> {
    let found = store::find_staff(&mut *app.db.acquire().await?, STAFF_SHOWN).await.context("listing accounts")?;
    Ok(found.into_iter().map(|account| (account.user, account.disabled_at.is_some())).collect())
}
