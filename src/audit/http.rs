//! Handlers of `/admin/audit`.

use axum::Json as Reply;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AuditId, AuditRow};
use crate::access::{Require, may};
use crate::app::App;
use crate::auth::UserId;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::described::AnyObject;
use crate::platform::extract::{Input, Shape};
use crate::platform::page::{Page, PageQuery, Paged};

/// Which rows of the audit.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Of this action alone, such as `queue.pause`.
    #[garde(inner(custom(is_action)))]
    #[param(pattern = "^[a-z]{1,31}[.][a-z]{1,31}$")]
    action: Option<String>,
    /// By this person alone.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    by: Option<UserId>,
}

impl Shape<App> for AuditQuery {}

fn is_action(text: &str, (): &()) -> garde::Result {
    let word = |text: &str| (1..=31).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase());
    let good = text.split_once('.').is_some_and(|(what, how)| word(what) && word(how));
    if good { Ok(()) } else { Err(garde::Error::new("must be an action, such as queue.pause")) }
}

/// What an administrator did.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditView {
    /// Its id.
    pub id: AuditId,
    /// Who.
    pub by: UserId,
    /// What, such as `queue.pause`.
    pub action: String,
    /// To what: an id or a name.
    pub target: String,
    /// How.
    #[schema(value_type = AnyObject)]
    pub details: Value,
    /// What came of it; null when nobody knows whether it happened.
    #[schema(value_type = AnyObject, nullable)]
    pub outcome: Value,
    /// When it was asked for.
    pub at: At,
}

impl From<AuditRow> for AuditView {
    fn from(row: AuditRow) -> Self {
        let json = |text: &str| serde_json::from_str(text).unwrap_or_default();
        Self {
            id: row.id,
            by: row.user_id,
            details: json(&row.details),
            outcome: row.outcome.as_deref().map(json).unwrap_or_default(),
            action: row.action,
            target: row.target,
            at: row.at,
        }
    }
}

/// What administrators did, newest first.
#[utoipa::path(get, path = "/admin/audit", tag = "admin", operation_id = "list_audit", extensions(("x-permission" = json!("audit.read"))), security(("bearer" = [])),
    params(AuditQuery, PageQuery),
    responses(
        (status = 200, body = Page<AuditView>, description = "A page of the audit"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::AuditRead>,
    Input(Paged(query, page)): Input<Paged<AuditQuery>>,
) -> Result<Reply<Page<AuditView>>> {
    let rows = super::list(&app, page.before(), query.action.as_deref(), query.by, page.fetch()).await?;
    Ok(Reply(page.page(rows.into_iter().map(AuditView::from).collect(), |row: &AuditView| row.id)))
}
