//! What administrators do with accounts, over HTTP.

use axum::extract::State;
use axum::http::StatusCode;

use super::{Require, may};
use crate::app::App;
use crate::auth::{self, UserId};
use crate::error::Result;
use crate::platform::extract::{Input, Path};

/// Ends all logins of an account, as its owner's logouts would: whoever holds their tokens is out. Safe to repeat; whoever
/// knows the password may log in again.
#[utoipa::path(post, path = "/admin/users/{id}/logout", operation_id = "log_out_user", extensions(("x-permission" = json!("users.write"))), tag = "admin", security(("bearer" = [])),
    params(("id" = UserId, Path, description = "The account")),
    responses(
        (status = 204, description = "All its logins are over"),
        (status = 403, description = "`forbidden`: also for an account with a role, unless the caller is an admin"),
        (status = 404, description = "`not_found`: no such account"),
    ))]
pub async fn logout_user(
    State(app): State<App>,
    Require(admin, _): Require<may::UsersWrite>,
    Input(Path(id)): Input<Path<UserId>>,
) -> Result<StatusCode> {
    super::require_over(&app, &admin, id).await?;
    auth::end_logins(&app, admin.id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
