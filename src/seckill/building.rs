//! Building gates from MySQL: by one builder at a time, and as quickly as MySQL reads and Redis writes.

use std::future::{Future, ready};

use futures_util::stream::{self, Stream, TryStreamExt};

use super::model::{ActivityId, Phase};
use super::redis::{Gate, PLACES_AT_ONCE, UnitHolder};
use super::{ahead, owners, reconcile, redis_runs, store};
use crate::app::App;
use crate::auth::UserId;
use crate::error::{Error, Kind, Result};

/// Users that one statement reads.
const USERS_PAGE: u32 = 5000;
/// Calls of a gate's script under way at once: while Redis works at one, the next is on its way.
const CALLS_AT_ONCE: usize = 4;

/// Builds the gate of an activity from MySQL if it is missing. The stock is read before the users: a unit released in
/// between is then missing from both and comes back by reconciliation, where the other order would sell it twice.
pub async fn open_gate(app: &App, activity: ActivityId) -> Result<()> {
    let gate = &Gate::of(&app.engine, activity);
    if gate.exists(app).await? {
        return Ok(());
    }
    let Some(token) = gate.begin_building(app).await? else { return Ok(()) };
    let mut conn = app.db.acquire().await?;
    let Some(found) = store::find_activity(&mut conn, activity).await? else { return Err(Kind::NotFound.into()) };
    drop(conn);
    // In any order, and several at once: each call asks whether the lock is still this builder's, and renews it.
    let (token, mut holders) = (token.as_str(), 0);
    let writing = calls(app, activity, |users: Vec<UnitHolder>| async move {
        let ours = gate.write_users(app, token, &users).await?;
        Ok((ours, users.len()))
    });
    let counted = |(ours, users): (bool, usize)| {
        holders += users;
        ready(ours)
    };
    if !writing.try_all(counted).await? || !gate.open(app, token, &found).await? {
        return Ok(());
    }
    tracing::info!(activity.id = %activity, stock = found.stock_left, holders, "opened the gate of an activity");
    if holders > 0 {
        redis_runs::owe(app).await?;
    }
    let now = app.clock.now();
    if found.phase(now) != Phase::Ended && found.starts_at <= now.plus(reconcile::BEFORE_START) {
        owners::write_next(app, &found, owners::PAGES_AT_OPENING).await?;
    }
    Ok(())
}

/// What `call` gives for everybody with entries in an activity, [`PLACES_AT_ONCE`] of them a call, several calls at once.
pub fn calls<T, F, Fut>(app: &App, activity: ActivityId, call: F) -> impl Stream<Item = Result<T>>
where
    F: FnMut(Vec<UnitHolder>) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let app = app.clone();
    let read = move |after| {
        let app = app.clone();
        async move { users_after(&app, activity, after).await }
    };
    let parts = |users: Vec<UnitHolder>| {
        let parts: Vec<Result<_, Error>> = users.chunks(PLACES_AT_ONCE).map(|part| Ok(part.to_vec())).collect();
        stream::iter(parts)
    };
    ahead::pages(UserId::min(), read).map_ok(parts).try_flatten().map_ok(call).try_buffer_unordered(CALLS_AT_ONCE)
}

/// A page of users with entries, and after whom the next one begins.
async fn users_after(app: &App, activity: ActivityId, after: UserId) -> Result<(Vec<UnitHolder>, Option<UserId>)> {
    let mut conn = app.db.acquire().await?;
    let users = store::users_of(&mut conn, activity, after, USERS_PAGE).await?;
    let last = users.last().map(|(user, ..)| *user).filter(|_| users.len() == USERS_PAGE as usize);
    Ok((users, last))
}
