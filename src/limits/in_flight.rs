//! How many requests of one account are under way at once at this process, on routes that may touch MySQL.
//!
//! It is asked before a connection is taken: an account with hundreds of connections would otherwise take those of the
//! pool, one after the other, and everybody else would wait behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Request;

use crate::app::App;
use crate::auth::{CurrentUser, UserId};
use crate::error::{Kind, Result, refuse};

/// As metrics call it.
pub(super) const NAME: &str = "in_flight";

/// Accounts with requests under way. As large as the crowd at most.
#[derive(Default)]
struct Counts(Mutex<HashMap<UserId, u32>>);

/// A request that is under way, until this is dropped.
pub struct InFlight {
    all: Arc<Counts>,
    user: UserId,
}

/// Counts a request in. `None` where it is nobody's, or there is no limit.
pub fn enter(app: &App, request: &mut Request) -> Result<Option<InFlight>> {
    let most = app.config.limits.in_flight_per_account;
    let mut extensions = std::mem::take(request.extensions_mut());
    // A token that is not valid is the handler's to refuse.
    let user = CurrentUser::of(app, &mut extensions, request.headers()).ok().filter(|_| most > 0);
    *request.extensions_mut() = extensions;
    let Some(CurrentUser { id: user, .. }) = user else { return Ok(None) };
    let all = app.local::<Counts>();
    {
        let mut counts = all.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(user).or_default();
        if *count >= most {
            super::count_refused(NAME, 1);
            return Err(refuse(Kind::TooManyAttempts, "too many requests of this account at once")
                .retry_after(1)
                .into());
        }
        *count += 1;
    }
    Ok(Some(InFlight { all, user }))
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}
