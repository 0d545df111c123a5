//! Keeping the gates true: built where missing, units put back on sale, differences corrected.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::model::{Activity, ActivityId, EntryId, Look, Phase};
use super::redis::Gate;
use super::{owners, store};
use crate::app::App;
use crate::auth::UserId;
use crate::error::{Result, retrying};
use crate::platform::clock::At;

/// Activities looked after at once; more are logged and wait until others end.
pub const MAX_ACTIVITIES: u32 = 200;
/// An activity is looked after for this long past its end: orders of it may still come back.
pub const LOOK_AFTER_END: Duration = Duration::from_secs(24 * 3600);
/// And from this long before its start; the gate of a later one is built when it is created, or asked for.
pub const BEFORE_START: Duration = Duration::from_secs(3600);
/// Units put back on sale in one pass.
const RETURN_CHUNK: u32 = 500;
/// Units that came back are put back once more for this long.
const RETURN_AGAIN: Duration = Duration::from_secs(30);
/// And this much longer by a process that has seen no pass yet.
const UNSEEN: Duration = Duration::from_secs(3600);
/// What was being placed while another process of Redis began to serve is committed after this long, or given up.
const SETTLED: Duration = Duration::from_secs(30);
/// A gate that would sell too many is corrected when a second look this much later sees the same.
const CONFIRM_FEWER: Duration = Duration::from_millis(1000);
/// A gate that would sell too few is corrected when it still does after this long.
const CONFIRM_MORE: Duration = Duration::from_secs(5);

/// A difference seen, waiting to be confirmed.
#[derive(Default)]
struct Doubts(Mutex<HashMap<ActivityId, (Look, Instant)>>);

/// What the gates of these servers were told from MySQL.
#[derive(Default)]
struct Told(Mutex<Telling>);

#[derive(Default)]
struct Telling {
    servers: Vec<String>,
    /// Since when these serve, as far as this process knows.
    since: Option<Instant>,
    /// Once more after [`SETTLED`].
    again: bool,
    /// When the last pass began that came to its end.
    passed: Option<At>,
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, Telling> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the gates are to be told who holds a unit, and since when units that came back may have been forgotten.
    fn owed(&self, servers: &[String], now: At) -> (bool, At) {
        let told = self.lock();
        let same = told.servers == servers;
        let settled = told.since.is_some_and(|since| since.elapsed() >= SETTLED);
        let from =
            if same { now.minus(RETURN_AGAIN) } else { told.passed.unwrap_or(now.minus(UNSEEN)).minus(RETURN_AGAIN) };
        (!same || (settled && !told.again), from)
    }

    /// A pass has come to its end, in which the gates were told, or not.
    fn passed(&self, servers: Vec<String>, remembered: bool, now: At) {
        let mut told = self.lock();
        if told.servers == servers {
            told.again |= remembered;
        } else {
            *told = Telling { servers, since: Some(Instant::now()), ..Telling::default() };
        }
        told.passed = Some(now);
    }
}

/// A correction made, or due.
#[derive(Debug, Clone, Copy)]
pub struct Correction {
    /// Whose gate.
    pub activity: ActivityId,
    /// What was seen.
    pub look: Look,
    /// Whether it was made (or only found).
    pub made: bool,
}

/// One pass over the gates: built where missing, compared and corrected.
pub async fn look_after_gates(app: &App) -> Result<()> {
    let now = app.clock.now();
    let mut conn = app.db.acquire().await?;
    let activities =
        store::activities_between(&mut conn, now.minus(LOOK_AFTER_END), now.plus(BEFORE_START), MAX_ACTIVITIES + 1)
            .await?;
    drop(conn);
    if activities.len() > MAX_ACTIVITIES as usize {
        tracing::warn!(limit = MAX_ACTIVITIES, "more activities than are looked after at once; the first to end wait");
    }
    let activities = &activities[..activities.len().min(MAX_ACTIVITIES as usize)];
    let (told, servers) = (app.local::<Told>(), app.redis.run_ids().await?);
    let (remember, returned_from) = told.owed(&servers, now);
    for activity in activities {
        super::open_gate(app, activity.id).await?;
        if activity.closed_at.is_some() {
            // Redis may have come back as it was before the close.
            Gate::of(&app.engine, activity.id).close(app).await?;
        }
        reconcile(app, activity.id, true).await?;
    }
    return_again(app, returned_from).await?;
    if remember {
        for activity in activities {
            remember_users(app, activity.id).await?;
        }
        if let Some(since) = activities.iter().map(|activity| activity.created_at).min() {
            owners::tell_of_all_refunded(app, since).await?;
        }
    }
    look_after_owners(app, activities).await?;
    told.passed(servers, remember, now);
    Ok(())
}

/// What the gates say of those who have the course: what refunds took back goes first, since it keeps buyers out.
async fn look_after_owners(app: &App, activities: &[Activity]) -> Result<()> {
    owners::tell_of_refunds(app, activities).await?;
    let now = app.clock.now();
    let on_sale: Vec<Activity> = activities.iter().filter(|a| a.phase(now) != Phase::Ended).cloned().collect();
    let mut pages = owners::PAGES_OF_A_PASS;
    for activity in &on_sale {
        pages -= owners::write_next(app, activity, pages).await?;
    }
    owners::look_again(app, &on_sale).await
}

/// Puts units back on sale that MySQL has released, until none is owed; bounded per page.
pub async fn return_units(app: &App) -> Result<usize> {
    let mut total = 0;
    loop {
        let mut conn = app.db.acquire().await?;
        let owed = store::owed_returns(&mut conn, RETURN_CHUNK).await?;
        drop(conn);
        if owed.is_empty() {
            return Ok(total);
        }
        give_back_to_gates(app, &owed).await?;
        let ids: Vec<EntryId> = owed.iter().map(|entry| entry.id).collect();
        let noted = retrying(|| async {
            let mut conn = app.db.acquire().await?;
            store::mark_returned(&mut conn, &ids, app.clock.now()).await
        });
        noted.await?;
        total += ids.len();
        if owed.len() < RETURN_CHUNK as usize {
            return Ok(total);
        }
    }
}

/// Puts units back once more that came back since `from`: a Redis that failed over may have lost it, and with it the
/// place of a buyer who may try again. What it has kept stays as it is.
async fn return_again(app: &App, mut from: At) -> Result<()> {
    let mut after = EntryId::min();
    loop {
        let mut conn = app.db.acquire().await?;
        let page = store::returned_since(&mut conn, from, after, RETURN_CHUNK).await?;
        drop(conn);
        let Some((at, last)) = page.last() else { return Ok(()) };
        (from, after) = (*at, last.id);
        let entries: Vec<store::Entry> = page.into_iter().map(|(_, entry)| entry).collect();
        give_back_to_gates(app, &entries).await?;
    }
}

/// A unit whose gate is gone or was built since needs no return: MySQL's number was taken then.
async fn give_back_to_gates(app: &App, entries: &[store::Entry]) -> Result<()> {
    let mut by_activity: BTreeMap<ActivityId, Vec<(UserId, EntryId)>> = BTreeMap::new();
    for entry in entries {
        by_activity.entry(entry.activity_id).or_default().push((entry.user_id, entry.id));
    }
    for (activity, entries) in by_activity {
        Gate::of(&app.engine, activity).return_units(app, &entries).await?;
        owners::mark_undone(app, activity, &entries).await?;
    }
    Ok(())
}

/// Compares the gate with MySQL. A difference that two looks confirm is corrected when `repair`, and reported.
pub async fn reconcile(app: &App, activity: ActivityId, repair: bool) -> Result<Option<Correction>> {
    let doubts = app.local::<Doubts>();
    let gate = Gate::of(&app.engine, activity);
    let Some(look) = look(app, &gate, activity).await? else { return Ok(None) };
    let change = look.correction();
    let confirmed = {
        let mut doubts = doubts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if change == 0 {
            doubts.remove(&activity);
            return Ok(None);
        }
        let (seen, since) = *doubts.entry(activity).or_insert((look, Instant::now()));
        if seen != look {
            doubts.insert(activity, (look, Instant::now()));
        }
        seen == look && since.elapsed() >= if change < 0 { CONFIRM_FEWER } else { CONFIRM_MORE }
    };
    if !confirmed {
        return Ok(None);
    }
    let made = repair && gate.adjust(app, look.gate, look.admitted, change).await?;
    if made {
        tracing::warn!(activity.id = %activity, change, gate = look.gate, left = look.left, in_flight = look.in_flight,
            returning = look.returning, "corrected the stock of a gate");
        metrics::counter!("onrush_seckill_corrections_total", "direction" => if change < 0 { "fewer" } else { "more" })
            .increment(1);
    }
    Ok(Some(Correction { activity, look, made }))
}

/// Tells a gate from MySQL who holds a unit. A Redis that failed over, or lost its last second at a restart, may have
/// forgotten who was admitted: they would be told that all is sold.
async fn remember_users(app: &App, activity: ActivityId) -> Result<()> {
    let (gate, mut after, mut forgotten) = (Gate::of(&app.engine, activity), UserId::min(), 0);
    loop {
        let mut conn = app.db.acquire().await?;
        let users = store::users_of(&mut conn, activity, after, super::WARM_CHUNK).await?;
        drop(conn);
        let Some((last, ..)) = users.last() else { break };
        after = *last;
        forgotten += gate.remember_users(app, &users).await?;
    }
    if forgotten > 0 {
        tracing::warn!(activity.id = %activity, forgotten, "a gate had forgotten who holds a unit");
    }
    Ok(())
}

/// Both sides at one instant: `None` without a gate, or when Redis moved while MySQL was read.
async fn look(app: &App, gate: &Gate, activity: ActivityId) -> Result<Option<Look>> {
    let Some(before) = gate.look(app).await? else { return Ok(None) };
    let mut conn = app.db.acquire().await?;
    let Some((left, returning)) = store::left_and_returning(&mut conn, activity).await? else { return Ok(None) };
    drop(conn);
    let after = gate.look(app).await?;
    if after != Some(before) {
        return Ok(None);
    }
    let (stock, admitted, in_flight) = before;
    Ok(Some(Look { gate: stock, admitted, in_flight, left, returning }))
}

/// A confirmed difference, for `onrush check`: looks until it is gone or confirmed, at most `patience`.
pub async fn confirmed_difference(
    app: &App,
    activity: ActivityId,
    repair: bool,
    patience: Duration,
) -> Result<Option<Correction>> {
    let began = Instant::now();
    let gate = Gate::of(&app.engine, activity);
    loop {
        let settled = look(app, &gate, activity).await?.is_some_and(|look| look.correction() == 0);
        if settled || !gate.exists(app).await? {
            return Ok(None);
        }
        if let Some(found) = reconcile(app, activity, repair).await? {
            return Ok(Some(found));
        }
        if began.elapsed() > patience {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
