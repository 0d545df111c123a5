//! What is seen at the door: failed and locked logins, forged tokens, refusals, logins of administrators.
//!
//! Each is counted (`onrush_security_events_total`) and written to the log with the caller's address, on the request's
//! span, which has its id. Anybody can make most of these happen, so both are bounded: the counter has one label, and a
//! process writes [`LINES`] lines of each kind in [`WINDOW`] and counts the others. The audit has them where an account
//! is concerned, in a number that no caller decides ([`audit::noted`]).

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use serde_json::json;

use super::address::client_ip;
use super::model::{Phone, UserId};
use super::store;
use crate::app::App;
use crate::audit::{self, Act};
use crate::error::{Error, Kind, REQUEST_ID, Result, retrying};
use crate::platform::clock::At;

/// Lines of each kind that a process writes in [`WINDOW`].
const LINES: u32 = 50;
/// The length of a window.
const WINDOW: Duration = Duration::from_secs(10);

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// A wrong number or password.
    LoginFailed,
    /// A login or a registration that was not judged: too many before it.
    LoginLocked,
    /// An administrator came in.
    AdminLogin,
    /// A route that the caller's role does not open.
    Forbidden,
    /// A token that is made to look like ours.
    TokenForged,
    /// A token of a login that is over, at a route that looks.
    LoginOver,
    /// A refresh token that was used before.
    RefreshReused,
    /// Somebody who has not the operators' token showed another one at their pages.
    OperationsToken,
}

impl Sight {
    const ALL: [Self; 8] = [
        Self::LoginFailed,
        Self::LoginLocked,
        Self::AdminLogin,
        Self::Forbidden,
        Self::TokenForged,
        Self::LoginOver,
        Self::RefreshReused,
        Self::OperationsToken,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::LoginFailed => "login_failed",
            Self::LoginLocked => "login_locked",
            Self::AdminLogin => "admin_login",
            Self::Forbidden => "forbidden",
            Self::TokenForged => "token_forged",
            Self::LoginOver => "login_over",
            Self::RefreshReused => "refresh_reused",
            Self::OperationsToken => "operations_token",
        }
    }
}

/// Makes the counters, so that their first event is an increase and not a beginning.
pub fn prepare_counters() {
    for sight in Sight::ALL {
        metrics::counter!("onrush_security_events_total", "event" => sight.name()).increment(0);
    }
}

/// Who asks, as far as their connection and their request tell.
#[derive(Debug, Clone)]
pub struct Visitor {
    address: Option<IpAddr>,
    request_id: String,
}

impl Visitor {
    /// Of a request.
    pub(super) fn of(app: &App, extensions: &Extensions, headers: &HeaderMap) -> Self {
        // The edge has written it there, whether the client sent one or not.
        let request_id = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self { address: client_ip(app, extensions, headers), request_id: request_id.to_owned() }
    }

    fn address(&self) -> String {
        self.address.map_or_else(|| "unknown".to_owned(), |address| address.to_canonical().to_string())
    }

    fn details(&self) -> serde_json::Value {
        json!({ "address": self.address(), "request_id": self.request_id })
    }
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        Ok(Self::of(app, &parts.extensions, &parts.headers))
    }
}

/// The lines of one kind in the present window.
#[derive(Debug, Default, Clone, Copy)]
struct Window {
    began: Option<At>,
    lines: u32,
    left_out: u64,
}

impl Window {
    /// Whether one more line fits; of a new window also how many the one before left out.
    fn take(&mut self, now: At) -> (bool, u64) {
        let mut before = 0;
        if self.began.is_none_or(|began| now >= began.plus(WINDOW) || now < began) {
            before = self.left_out;
            *self = Self { began: Some(now), lines: 0, left_out: 0 };
        }
        let fits = self.lines < LINES;
        if fits {
            self.lines += 1;
        } else {
            self.left_out += 1;
        }
        (fits, before)
    }
}

/// What this process has written of late, by kind.
#[derive(Default)]
struct Written(Mutex<[Window; Sight::ALL.len()]>);

/// Counts what was seen and writes it to the log; false when this process has written enough of it for now.
pub(super) fn see(app: &App, sight: Sight, caller: &Visitor, user: Option<UserId>, phone: Option<&Phone>) -> bool {
    metrics::counter!("onrush_security_events_total", "event" => sight.name()).increment(1);
    let written = app.local::<Written>();
    let (fits, left_out) = {
        let mut windows = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.get_mut(sight as usize).map_or((false, 0), |window| window.take(app.clock.now()))
    };
    let name = sight.name();
    if left_out > 0 {
        tracing::warn!(security.event = name, left_out, "more of these were seen than were written here");
    }
    if fits {
        let (address, request) = (caller.address(), caller.request_id.as_str());
        // What is not known is not written.
        let (user, phone) = (user.map(|user| user.to_string()), phone.map(Phone::masked));
        if sight == Sight::AdminLogin {
            tracing::info!(
                security.event = name,
                client.address = address,
                request.id = request,
                user.id = user,
                user.phone = phone,
                "seen at the door"
            );
        } else {
            tracing::warn!(
                security.event = name,
                client.address = address,
                request.id = request,
                user.id = user,
                user.phone = phone,
                "seen at the door"
            );
        }
    }
    fits
}

/// A refusal of a route to somebody with another role.
pub(super) async fn forbidden(app: &App, caller: &Visitor, user: UserId) {
    if see(app, Sight::Forbidden, caller, Some(user), None) {
        note(app, "access.forbidden", caller, user).await;
    }
}

/// What came of a login or a registration, where nobody came in.
pub(super) async fn attempt(app: &App, caller: &Visitor, phone: &Phone, error: &Error) {
    match error.kind() {
        // The right password of a disabled account is as much to be seen.
        Kind::WrongCredentials | Kind::AccountDisabled => drop(see(app, Sight::LoginFailed, caller, None, Some(phone))),
        Kind::TooManyAttempts => {
            // Only what is written is looked up: a crowd that is refused without MySQL must not reach it here.
            if see(app, Sight::LoginLocked, caller, None, Some(phone))
                && let Some(user) = owner(app, phone).await
            {
                note(app, "login.locked", caller, user).await;
            }
        }
        _ => {}
    }
}

/// A refresh that was refused.
pub(super) fn refresh(app: &App, caller: &Visitor, error: &Error) {
    if error.kind() == Kind::RefreshReused {
        see(app, Sight::RefreshReused, caller, None, None);
    }
}

/// Another token than the operators', at their pages.
pub fn operations_token(app: &App, parts: &Parts) {
    see(app, Sight::OperationsToken, &Visitor::of(app, &parts.extensions, &parts.headers), None, None);
}

/// An administrator who comes in, before they are in: there is no login of theirs without a row.
pub(super) async fn admin_login(app: &App, caller: &Visitor, user: UserId, phone: &Phone) -> Result<()> {
    see(app, Sight::AdminLogin, caller, Some(user), Some(phone));
    let act = Act { by: user, action: "login.admin", target: &user.to_string() };
    let (details, now) = (caller.details(), app.clock.now());
    retrying(async || audit::done(&mut *app.db.acquire().await?, act, &details, now).await).await
}

async fn owner(app: &App, phone: &Phone) -> Option<UserId> {
    let found = async { Ok::<_, Error>(store::find_phone(&mut *app.db.acquire().await?, phone).await?) };
    found.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the account of a locked login could not be looked up");
        None
    })
}

/// Writes a row of the audit. The request is refused in any case: that it could not be written is no answer to it.
async fn note(app: &App, action: &'static str, caller: &Visitor, user: UserId) {
    let act = Act { by: user, action, target: &user.to_string() };
    let (details, now) = (caller.details(), app.clock.now());
    let written = retrying(async || audit::noted(&mut *app.db.acquire().await?, act, &details, now).await);
    if let Err(error) = written.await {
        tracing::warn!(audit.action = action, %error, "what was seen at the door could not be written to the audit");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_so_many_lines_and_the_next_one_tells_how_many_were_left_out() {
        let (mut window, now) = (Window::default(), At::from_ms(1_000_000));
        let taken = (0..200).filter(|_| window.take(now).0).count();
        assert_eq!(taken, LINES as usize);
        let next = now.plus(WINDOW);
        assert_eq!(window.take(next), (true, 150));
        assert_eq!(window.take(next), (true, 0));
        assert!(window.take(now).0, "a clock that was set back begins anew");
    }

    #[test]
    fn each_sight_has_a_place_and_a_name_of_its_own() {
        for (at, sight) in Sight::ALL.into_iter().enumerate() {
            assert_eq!(sight as usize, at);
            assert!(Sight::ALL.iter().filter(|other| other.name() == sight.name()).count() == 1);
        }
    }
}
