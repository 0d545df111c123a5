//! Keeping the gates true: built where missing, units put back on sale, differences corrected. Which of them a pass looks
//! at: [`attention`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::apart::{all, each, is_partly, put_off};
use super::attention::{self, ActivityRow, Attention, Looked};
use super::model::{Activity, ActivityId, EntryId, Look, Phase};
use super::redis::{Counts, Gate, Glance, KEEP_AFTER_END, OwnerProgress};
use super::{owners, store, turn};
use crate::app::App;
use crate::auth::UserId;
use crate::error::{Result, retrying};
use crate::platform::clock::At;
use crate::platform::loops::Partly;
use crate::platform::seldom::Seldom;

/// Activities looked after, and consumed, at once; when there are more the last are not, which is told.
pub const MAX_ACTIVITIES: u32 = 3000;
/// That there are more is told once in so long.
pub const TOO_MANY_TOLD: Duration = Duration::from_secs(60);
/// An activity is looked after for this long past its end: orders of it may still come back.
pub const LOOK_AFTER_END: Duration = Duration::from_secs(24 * 3600);
/// And from this long before its start; the gate of a later one is built when it is created, or asked for.
pub const BEFORE_START: Duration = Duration::from_secs(3600);
/// Units put back on sale in one pass.
const RETURN_CHUNK: u32 = 500;
/// Units that came back are put back once more for this long.
pub const RETURN_AGAIN: Duration = Duration::from_secs(30);
/// A gate that would sell too many is corrected when a second look this much later sees the same.
const CONFIRM_FEWER: Duration = Duration::from_millis(1000);
/// A gate that would sell too few is corrected when it still does after this long.
const CONFIRM_MORE: Duration = Duration::from_secs(5);

/// A difference seen, waiting to be confirmed.
#[derive(Default)]
struct Doubts(Mutex<HashMap<ActivityId, (Look, Instant)>>);

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

/// Activities that are looked after: those on sale, then those to come, then those over; and how many of those on sale, or
/// soon, are not, because there are too many.
pub async fn looked_after(app: &App) -> Result<(Vec<Activity>, u64)> {
    let now = app.clock.now();
    let (since, started) = (now.minus(LOOK_AFTER_END), now.plus(BEFORE_START));
    let mut conn = app.db.acquire().await?;
    let mut found = store::activities_between(&mut conn, now, since, started, MAX_ACTIVITIES + 1).await?;
    let is_too_much = found.len() > MAX_ACTIVITIES as usize;
    let current = if is_too_much { store::count_current(&mut conn, now, started).await? } else { 0 };
    drop(conn);
    found.truncate(MAX_ACTIVITIES as usize);
    Ok((found, tell_beyond(app, "gates", current)))
}

/// How many of so many activities are more than [`MAX_ACTIVITIES`], which a metric says, and the log.
pub fn tell_beyond(app: &App, work: &'static str, activities: u64) -> u64 {
    let beyond = activities.saturating_sub(u64::from(MAX_ACTIVITIES));
    metrics::gauge!("onrush_seckill_activities_beyond", "work" => work).set(beyond as f64);
    if beyond > 0 && app.local::<TooMany>().0.may(app.clock.now(), TOO_MANY_TOLD) {
        tracing::error!(
            limit = MAX_ACTIVITIES,
            beyond,
            "more activities are on sale than are served: those that began last go first, and the submissions of the others are not placed"
        );
    }
    beyond
}

/// Activities whose keys are kept, also of sales that begin much later, in the same order.
pub async fn kept(app: &App, limit: u32) -> Result<Vec<ActivityId>> {
    let now = app.clock.now();
    let mut conn = app.db.acquire().await?;
    let found =
        store::activities_between(&mut conn, now, now.minus(KEEP_AFTER_END), At::from_ms(i64::MAX), limit).await?;
    Ok(found.iter().map(|activity| activity.id).collect())
}

/// When it was told last that there are too many activities.
#[derive(Default)]
struct TooMany(Seldom);

/// One pass over all gates: built where missing, compared and corrected, told who has the course. Each activity and each
/// step by itself: what fails is told, the rest goes on, and the pass has failed at its end.
pub async fn look_after_gates(app: &App) -> Result<()> {
    app.local::<Attention>().forget();
    pass(app, &|| ()).await
}

/// As [`look_after_gates`], by one process of all, and at the gates that do not rest. `beat` hears of each gate.
pub async fn watch_gates(app: &App, beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    if !turn::take(app).await? {
        return Ok(());
    }
    let turn = turn::Renewal::of(app);
    let goes_on = || {
        beat();
        turn.step();
    };
    let passed = pass(app, &goes_on).await;
    let is_over = passed.as_ref().err().is_none_or(is_partly);
    if !is_over && let Err(error) = turn::give_back(app).await {
        tracing::debug!(%error, "the turn to look after the gates was not given back, and ends by itself");
    }
    passed
}

async fn pass(app: &App, beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let now = app.clock.now();
    let (activities, beyond) = looked_after(app).await?;
    let due = attention::due(app, &activities).await?;
    let gates = activities.iter().filter(|activity| due.contains(&activity.id));
    let gates = gates.map(|activity| (activity.id, activity)).collect();
    let look = |activity| look_after_gate(app, activity, now);
    let (looked, gates) = each(app, "looking after its gate", gates, beat, look).await;
    let attention = app.local::<Attention>();
    attention.note(&due, looked);
    let returned = return_again(app, now.minus(RETURN_AGAIN), beat).await;
    let refunds = owners::tell_of_refunds(app, &activities, beat).await;
    let on_sale: Vec<Activity> = activities.iter().filter(|a| a.phase(now) != Phase::Ended).cloned().collect();
    let written: HashMap<ActivityId, OwnerProgress> =
        on_sale.iter().filter_map(|a| Some((a.id, attention.last(a.id)?.written))).collect();
    let written = owners::write_some(app, &on_sale, &written, beat).await;
    let is_marked = |a: &Activity| attention.last(a.id).is_some_and(|last| last.may_have_marks());
    let marked: Vec<Activity> = on_sale.into_iter().filter(is_marked).collect();
    let again = owners::look_again(app, &marked, beat).await;
    all([gates, returned, refunds, written, again, all_are_served(beyond)])
}

fn all_are_served(beyond: u64) -> Result<()> {
    if beyond == 0 {
        return Ok(());
    }
    let why = Partly(format!("{beyond} activities more than {MAX_ACTIVITIES} are on sale, and are not looked after"));
    Err(anyhow::anyhow!("there are too many at once").context(why).into())
}

/// `None` when there was no gate: the next pass looks at it.
async fn look_after_gate(app: &App, activity: &Activity, now: At) -> Result<Option<Looked>> {
    let gate = Gate::of(&app.engine, activity.id);
    let Some(Glance { counts, written }) = gate.glance(app).await? else {
        super::open_gate(app, activity.id).await?;
        return Ok(None);
    };
    if activity.closed_at.is_some() && !counts.is_closed {
        // Redis may have come back as it was before the close.
        gate.close(app).await?;
    }
    let row = ActivityRow::of(activity, now);
    let last = app.local::<Attention>().last(activity.id).filter(|last| last.row == row);
    let agreed = match last.and_then(|last| last.agreed).filter(|last| *last == counts) {
        Some(still) => Some(still),
        None => agree(app, activity, counts).await?.then_some(counts),
    };
    Ok(Some(Looked { row, agreed, written }))
}

/// Compares and corrects; whether the gate, with these counters, agrees with the row and nothing is under way.
async fn agree(app: &App, activity: &Activity, counts: Counts) -> Result<bool> {
    let (look, _) = compare(app, activity.id, true).await?;
    Ok(look.is_some_and(|look| {
        let Look { gate, admitted, in_flight, left, returning } = look;
        let is_same = (gate, admitted, left) == (counts.stock, counts.admitted, activity.stock_left);
        is_same && in_flight + returning == 0 && look.correction() == 0
    }))
}

/// Puts units back on sale that MySQL has released, until none is owed; bounded per page. Those of an activity whose gate
/// cannot be reached stay owed, and hold up no others.
pub async fn return_units(app: &App) -> Result<usize> {
    let (mut total, mut failed) = (0, Ok(()));
    let mut left_out = put_off(app, RETURNING);
    loop {
        let mut conn = app.db.acquire().await?;
        let owed = store::owed_returns(&mut conn, &left_out, RETURN_CHUNK).await?;
        drop(conn);
        let (came_back, gone_wrong) = give_back_to_gates(app, &owed, &|| ()).await;
        let ids: Vec<EntryId> =
            owed.iter().filter(|entry| came_back.contains(&entry.activity_id)).map(|entry| entry.id).collect();
        if !ids.is_empty() {
            let noted = retrying(|| async {
                let mut conn = app.db.acquire().await?;
                store::mark_returned(&mut conn, &ids, app.clock.now()).await
            });
            noted.await?;
        }
        total += ids.len();
        failed = all([failed, gone_wrong]);
        if owed.len() < RETURN_CHUNK as usize {
            return failed.map(|()| total);
        }
        // Else they would be read again and again, and stand before all others.
        left_out.extend(owed.iter().map(|entry| entry.activity_id).filter(|activity| !came_back.contains(activity)));
        left_out.sort_unstable();
        left_out.dedup();
    }
}

/// Puts units back once more that came back since `from`: a Redis that failed over may have lost it, and with it the
/// place of a buyer who may try again. What it has kept stays as it is.
pub async fn return_again(app: &App, mut from: At, beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let (mut after, mut failed) = (EntryId::min(), Ok(()));
    loop {
        let mut conn = app.db.acquire().await?;
        let page = store::returned_since(&mut conn, from, after, RETURN_CHUNK).await?;
        drop(conn);
        let Some((at, last)) = page.last() else { return failed };
        (from, after) = (*at, last.id);
        let entries: Vec<store::Entry> = page.into_iter().map(|(_, entry)| entry).collect();
        failed = all([failed, give_back_to_gates(app, &entries, beat).await.1]);
        beat();
    }
}

/// What [`give_back_to_gates`] does, as an error calls it.
const RETURNING: &str = "putting units back on sale";

/// The activities whose units are on sale again, and how the others failed. A unit whose gate is gone or was built since
/// needs no return: MySQL's number was taken then.
async fn give_back_to_gates(
    app: &App,
    entries: &[store::Entry],
    beat: &(dyn Fn() + Send + Sync),
) -> (HashSet<ActivityId>, Result<()>) {
    let mut by_activity: BTreeMap<ActivityId, Vec<(UserId, EntryId)>> = BTreeMap::new();
    for entry in entries {
        by_activity.entry(entry.activity_id).or_default().push((entry.user_id, entry.id));
    }
    let by_activity = by_activity.into_iter().map(|(activity, entries)| (activity, (activity, entries))).collect();
    let give_back = |(activity, entries): (ActivityId, Vec<(UserId, EntryId)>)| async move {
        Gate::of(&app.engine, activity).return_units(app, &entries).await?;
        owners::mark_undone(app, activity, &entries).await
    };
    let (came_back, failed) = each(app, RETURNING, by_activity, beat, give_back).await;
    (came_back.into_iter().map(|(activity, ())| activity).collect(), failed)
}

/// Compares the gate with MySQL. A difference that two looks confirm is corrected when `repair`, and reported.
pub async fn reconcile(app: &App, activity: ActivityId, repair: bool) -> Result<Option<Correction>> {
    compare(app, activity, repair).await.map(|(_, correction)| correction)
}

/// As [`reconcile`], and what was seen; none without a gate, or when something moved meanwhile.
async fn compare(app: &App, activity: ActivityId, repair: bool) -> Result<(Option<Look>, Option<Correction>)> {
    let doubts = app.local::<Doubts>();
    let gate = Gate::of(&app.engine, activity);
    let Some(look) = look(app, &gate, activity).await? else { return Ok((None, None)) };
    let change = look.correction();
    let confirmed = {
        let mut doubts = doubts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if change == 0 {
            doubts.remove(&activity);
            return Ok((Some(look), None));
        }
        let (seen, since) = *doubts.entry(activity).or_insert((look, Instant::now()));
        if seen != look {
            doubts.insert(activity, (look, Instant::now()));
        }
        seen == look && since.elapsed() >= if change < 0 { CONFIRM_FEWER } else { CONFIRM_MORE }
    };
    if !confirmed {
        return Ok((Some(look), None));
    }
    let made = repair && gate.adjust(app, look.gate, look.admitted, change).await?;
    if made {
        tracing::warn!(activity.id = %activity, change, gate = look.gate, left = look.left, in_flight = look.in_flight,
            returning = look.returning, "corrected the stock of a gate");
        metrics::counter!("onrush_seckill_corrections_total", "direction" => if change < 0 { "fewer" } else { "more" })
            .increment(1);
    }
    Ok((Some(look), Some(Correction { activity, look, made })))
}

/// Both sides at one instant; `None` without a gate, or when Redis moved while MySQL was read.
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
