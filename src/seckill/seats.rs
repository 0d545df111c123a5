//! Who waits in this process for a submission to end, by a long poll or an event stream: so many in all, and so many of
//! one account.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::App;
use crate::auth::UserId;
use crate::error::{Kind, Result, refuse};

/// Those who wait: how many of each account. Its size is bounded by `http.max_waiting`.
#[derive(Default)]
struct Waiting(Mutex<(usize, HashMap<UserId, usize>)>);

/// What they wait with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// A long poll.
    Poll,
    /// An event stream.
    Stream,
}

impl With {
    fn gauge(self) -> metrics::Gauge {
        metrics::gauge!("onrush_http_waiting", "kind" => if self == Self::Poll { "poll" } else { "stream" })
    }
}

/// A place among those who wait; given up when dropped.
pub struct Seat {
    waiting: Arc<Waiting>,
    user: UserId,
    with: With,
}

impl Seat {
    /// A place for the account; `None` when the process has none left. An account that has all of its own is refused.
    pub fn take(app: &App, user: UserId, with: With) -> Result<Option<Self>> {
        let waiting = app.local::<Waiting>();
        {
            let mut taken = waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (all, by_user) = &mut *taken;
            let own = by_user.get(&user).copied().unwrap_or(0);
            if own >= app.config.http.max_waiting_per_account {
                let refusal = refuse(Kind::TooManyAttempts, "too many long polls and event streams of this account");
                return Err(refusal.retry_after(1).into());
            }
            if *all >= app.config.http.max_waiting {
                return Ok(None);
            }
            *all += 1;
            by_user.insert(user, own + 1);
        }
        with.gauge().increment(1.0);
        Ok(Some(Self { waiting, user, with }))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.with.gauge().decrement(1.0);
        let mut taken = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_user) = &mut *taken;
        *all -= 1;
        if let Some(own) = by_user.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                by_user.remove(&self.user);
            }
        }
    }
}
