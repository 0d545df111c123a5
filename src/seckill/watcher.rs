//! Who may watch a submission: whoever shows an access token, or the ticket that its 202 came with. A browser's
//! `EventSource` can send no header, and an access token has no place in an address.

use std::time::Duration;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header;
use axum::http::request::Parts;

use crate::app::App;
use crate::auth::{CurrentUser, UserId};
use crate::engine::TaskId;
use crate::error::{Error, Kind};
use crate::platform::jwt::TokenFault;

/// A ticket holds so long. Whoever waits longer submits once more: the same task, with a new ticket.
const TICKET_LIFE: Duration = Duration::from_secs(600);
/// What the ticket lets its holder do.
const WATCH: &str = "watch a task";

/// Where a browser watches `task`, of `user`: good for this stream alone, and for [`TICKET_LIFE`].
pub fn events_url(app: &App, task: &str, user: UserId) -> String {
    let ticket = app.tickets.give(WATCH, task, user.uuid(), app.clock.now().plus(TICKET_LIFE));
    format!("{}/api/v1/tasks/{task}/events?ticket={ticket}", app.config.http.public_url)
}

/// Who watches the task that the path names.
pub struct Watcher(pub CurrentUser);

impl FromRequestParts<App> for Watcher {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let ticket = ticket_of(parts).map(str::to_owned);
        let Some(ticket) = ticket.filter(|_| !parts.headers.contains_key(header::AUTHORIZATION)) else {
            return CurrentUser::from_request_parts(parts, app).await.map(Self);
        };
        let path = RawPathParams::from_request_parts(parts, app).await.map_err(|_| Kind::TokenInvalid)?;
        let task = path.iter().find(|(name, _)| *name == "id").and_then(|(_, id)| id.parse::<TaskId>().ok());
        let task = task.ok_or(Kind::TokenInvalid)?.to_string();
        let (user, until) = app.tickets.check(WATCH, &task, &ticket, app.clock.now()).map_err(|fault| match fault {
            TokenFault::Expired => Kind::TokenExpired,
            TokenFault::Malformed | TokenFault::Forged => Kind::TokenInvalid,
        })?;
        Ok(Self(CurrentUser::by_ticket(UserId::from_uuid(user), until)))
    }
}

/// The ticket in the query, as it stands: its letters need no escapes.
fn ticket_of(parts: &Parts) -> Option<&str> {
    parts.uri.query()?.split('&').find_map(|parameter| parameter.strip_prefix("ticket="))
}
