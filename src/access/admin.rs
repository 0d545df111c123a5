//! Accounts with a role, as `onrush admin` makes and changes them: whoever may run it has the database.

use crate::app::App;
use crate::auth::{self, Changed, Role, User, UserId};
use crate::error::{Kind, Result, invalid, refuse};

/// An account with a role.
#[derive(Debug)]
pub struct StaffAccount {
    /// The account.
    pub user: User,
    /// Whether it may not log in.
    pub is_disabled: bool,
}

/// Makes an account with a role.
pub async fn create(app: &App, phone: &str, password: &str, nickname: &str, role: Role) -> Result<UserId> {
    match auth::create_staff(app, phone, password, nickname, role).await {
        Err(error) if error.kind() == Kind::PhoneTaken => {
            let how = format!(
                "the number has an account: give it the role with `onrush admin role {phone} {}`",
                role.as_str()
            );
            Err(refuse(Kind::PhoneTaken, how).into())
        }
        made => made,
    }
}

/// Gives an account another role. What its logins may do changes at once; only those that began before it had any role see
/// theirs after their next refresh.
pub async fn set_role(app: &App, phone: &str, role: Role) -> Result<Changed> {
    let phone = phone.parse().map_err(|error: auth::NotAPhone| invalid("phone", error.to_string()))?;
    auth::set_role(app, &phone, role).await
}

/// Ends all logins of an account and lets nobody log in to it.
pub async fn disable(app: &App, phone: &str) -> Result<Changed> {
    set_disabled(app, phone, true).await
}

/// Lets its owner log in again.
pub async fn enable(app: &App, phone: &str) -> Result<Changed> {
    set_disabled(app, phone, false).await
}

async fn set_disabled(app: &App, phone: &str, disabled: bool) -> Result<Changed> {
    let phone = phone.parse().map_err(|error: auth::NotAPhone| invalid("phone", error.to_string()))?;
    auth::set_disabled(app, &phone, disabled).await
}

/// The accounts that have a role, at most a thousand of them.
pub async fn list(app: &App) -> Result<Vec<StaffAccount>> {
    let found = auth::staff_accounts(app).await?;
    Ok(found.into_iter().map(|(user, is_disabled)| StaffAccount { user, is_disabled }).collect())
}
