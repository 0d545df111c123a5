//! Whose place in a gate says that they may not have a unit: who has the course, and whose won order was refunded.
//!
//! An owner who was let through would take a unit for as long as his submission waits, and again and again. So the gate
//! refuses him by itself. That is a promise only, and the direction in which it may be wrong is chosen: an owner whom it
//! does not know is found by his placement, which writes the mark with its acknowledgement; a mark that is out of date
//! would keep a buyer out, so it is taken off three times over:
//!
//! * A refund notes what it takes back in its own transaction, and each note is told to the gates for [`TOLD_FOR`]: also
//!   a mark that was written after it, by what had been read before it, goes.
//! * Who was written by [`write_next`] is read once more after the writing.
//! * [`look_again`] goes round the gates for ever, some fields a pass, and asks MySQL about every mark it meets.
//!
//! When the sale is over nobody needs the marks: everybody is told that it has ended, and [`take_marks_off`] frees what
//! they hold of Redis.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;

use super::apart::{Troubles, all, each, put_off};
use super::model::{Activity, ActivityId, EntryId, Held, undone};
use super::redis::{Gate, OwnerProgress, queue};
use super::{ahead, store};
use crate::app::App;
use crate::auth::UserId;
use crate::catalogue::{self, CourseId};
use crate::error::{Kind, Result, retrying};
use crate::orders::{self, OrderId, Status, TakenBack};
use crate::platform::clock::At;
use crate::platform::seldom::Seldom;

/// Owners written, notes told and refunded orders read at once.
const PAGE: u32 = 500;
/// Pages of owners that are written as soon as a gate that was missing is open. Placing finds those that come later.
pub const PAGES_AT_OPENING: u32 = 20;
/// Pages of owners that a pass over the gates writes, of all of them together.
pub const PAGES_OF_A_PASS: u32 = 40;
/// A gate with more fields than this is told of no more owners: some 100 MB of Redis.
const MAX_FIELDS: u64 = 1_000_000;
/// Owners written in the gates of all sales that are on or about to begin, those beside that of [`PAGES_AT_OPENING`]: some
/// 200 MB of Redis. Sales that are on come first, then those that begin next.
const MAX_MARKS: u64 = 2_000_000;
/// That there are more owners than the gates may be told of is said once in so long.
const TOO_MANY_TOLD: Duration = Duration::from_secs(60);
/// Fields of gates that a pass looks at, about.
const FIELDS_OF_A_PASS: usize = 2000;
/// A gate counts as so many of them at least: to ask about a few costs as much.
const FIELDS_OF_A_GATE: usize = 40;
/// A note of what was taken back is told for this long: placements that had read before it have ended by then.
const TOLD_FOR: Duration = Duration::from_secs(60);
/// And for this long where a gate could not be told: one that cannot be read for days keeps no notes that long.
const TOLD_AT_MOST: Duration = Duration::from_secs(3600);
/// What the record of a submission says whose order may not be what it was: MySQL is then asked.
pub const UNDONE: &str = "undone";

/// When it was said last that there are too many owners.
#[derive(Default)]
struct TooMany(Seldom);

/// Writes some more owners into the gates of these activities, those of the first ones first; `written` says how far they
/// are, where that is known.
pub async fn write_some(
    app: &App,
    activities: &[Activity],
    written: &HashMap<ActivityId, OwnerProgress>,
    beat: &(dyn Fn() + Send + Sync),
) -> Result<()> {
    let (mut marks, mut pages) = (written.values().map(|written| written.marks).sum::<u64>(), PAGES_OF_A_PASS);
    let is_unfinished = |activity: &&Activity| written.get(&activity.id).is_some_and(|written| written.after.is_some());
    let mut troubles = Troubles::of("writing its owners into its gate");
    for activity in activities.iter().filter(is_unfinished) {
        if pages == 0 || troubles.is_hopeless() {
            break;
        }
        if marks >= MAX_MARKS {
            if app.local::<TooMany>().0.may(app.clock.now(), TOO_MANY_TOLD) {
                tracing::warn!(activity.id = %activity.id, marks, "the gates know of too many owners: they are not told of more");
            }
            break;
        }
        let made = troubles.note(app, activity.id, write_next(app, activity, pages).await).unwrap_or(0);
        beat();
        pages -= made;
        marks += u64::from(made * PAGE);
    }
    troubles.end()
}

/// How far the owners are written into the gates of these activities, of those that can be read.
pub async fn how_far(app: &App, activities: Vec<ActivityId>) -> (Vec<(ActivityId, OwnerProgress)>, Result<()>) {
    let gates = activities.into_iter().map(|activity| (activity, activity)).collect();
    let read = |activity| async move { Ok(Gate::of(&app.engine, activity).owners_written(app).await?) };
    each(app, "reading which owners its gate knows", gates, &|| (), read).await
}

/// Writes the next owners of the course into its gate, at most so many pages; how many were written.
pub async fn write_next(app: &App, activity: &Activity, pages: u32) -> Result<u32> {
    let gate = Gate::of(&app.engine, activity.id);
    for written in 0..pages {
        let Some(after) = gate.owners_written(app).await?.after else { return Ok(written) };
        let mut conn = app.db.acquire().await?;
        let owners = catalogue::owners_after(&mut conn, activity.course_id, after, PAGE).await?;
        drop(conn);
        let last = owners.last().copied().filter(|_| owners.len() == PAGE as usize);
        let fields = gate.write_owners(app, &owners, last).await?;
        // A refund between the reading and the writing has found no mark to take off.
        take_off_others(app, &gate, activity.course_id, &owners).await?;
        if fields > MAX_FIELDS && last.is_some() {
            tracing::warn!(activity.id = %activity.id, fields, "too many have the course: the gate is not told of the rest");
            gate.write_owners(app, &[], None).await?;
        }
    }
    Ok(pages)
}

/// Takes the mark off those of `users` who do not have the course.
async fn take_off_others(app: &App, gate: &Gate, course: CourseId, users: &[UserId]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    let mut conn = app.db.acquire().await?;
    let owners = catalogue::owners(&mut conn, course, users).await?;
    drop(conn);
    let others = users.iter().filter(|user| !owners.contains(user));
    let others: Vec<(UserId, Held)> = others.map(|user| (*user, Held::Owned)).collect();
    if !others.is_empty() {
        gate.change_places(app, &others, Held::Nothing).await?;
    }
    Ok(())
}

/// Where the last pass stopped: the activity, and the place in its gate.
#[derive(Default)]
struct Round(Mutex<(Option<ActivityId>, u64)>);

/// Looks at some of the marks of these activities, which may have some, by id, and takes off those that do not hold. A gate
/// that cannot be read is passed over.
pub async fn look_again(app: &App, activities: &[Activity], beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    const DOING: &str = "looking again who has its course";
    let (round, put_off) = (app.local::<Round>(), put_off(app, DOING));
    let activities: Vec<&Activity> = activities.iter().filter(|activity| !put_off.contains(&activity.id)).collect();
    let (mut looked, mut troubles) = (0, Troubles::of(DOING));
    for _ in 0..activities.len() {
        let (last, at) = *round.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.or_else(|| anywhere(&activities));
        // The one whose look has not come to its end, or the next one.
        let same = activities.iter().find(|activity| at > 0 && Some(activity.id) == last);
        let next = activities.iter().filter(|activity| Some(activity.id) > last).min_by_key(|activity| activity.id);
        let first = activities.iter().min_by_key(|activity| activity.id);
        let Some(activity) = same.or(next).or(first) else { break };
        let from = if same.is_some() { at } else { 0 };
        let seen = troubles.note(app, activity.id, look_from(app, activity, from).await);
        beat();
        let (to, fields) = seen.unwrap_or_default();
        *round.0.lock().unwrap_or_else(PoisonError::into_inner) = (Some(activity.id), to);
        looked += fields.max(FIELDS_OF_A_GATE);
        if looked >= FIELDS_OF_A_PASS || troubles.is_hopeless() {
            break;
        }
    }
    troubles.end()
}

/// Where a process begins: from the lowest id, those above would be looked at seldom where the turn moves often.
fn anywhere(activities: &[&Activity]) -> Option<ActivityId> {
    let (_, random) = ActivityId::new().uuid().as_u64_pair();
    let at = usize::try_from(random).ok()?.checked_rem(activities.len())?;
    activities.get(at).map(|activity| activity.id)
}

/// (where to go on, 0 at the end; how many fields were looked at).
async fn look_from(app: &App, activity: &Activity, from: u64) -> Result<(u64, usize)> {
    let gate = Gate::of(&app.engine, activity.id);
    let (to, fields, marked) = gate.owners_from(app, from, FIELDS_OF_A_PASS).await?;
    take_off_others(app, &gate, activity.course_id, &marked).await?;
    Ok((to, fields))
}

/// Takes the owners' marks off the gate of a sale that is over, some fields at a time, `most` of them or about; how many
/// fields it looked at. Where it stopped is noted in the gate, so any process goes on with it.
pub async fn take_marks_off(app: &App, activity: ActivityId, most: usize) -> Result<usize> {
    let (gate, mut looked) = (Gate::of(&app.engine, activity), 0);
    while looked < most {
        let Some(from) = gate.owners_written(app).await?.taken_off else { break };
        let (to, fields, marked) = gate.owners_from(app, from, FIELDS_OF_A_PASS).await?;
        gate.unmark(app, &marked, to).await?;
        looked += fields;
    }
    Ok(looked)
}

/// Tells the gates of `activities` what refunds took back.
pub async fn tell_of_refunds(app: &App, activities: &[Activity], beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let (mut after, mut failed) = ((OrderId::min(), CourseId::min()), Ok(()));
    loop {
        let mut conn = app.db.acquire().await?;
        let page = orders::taken_back(&mut conn, after, PAGE).await?;
        drop(conn);
        let Some(last) = page.last() else { return failed };
        after = (last.order_id, last.course_id);
        let told = tell_of_page(app, activities, &page, beat).await;
        let is_last = page.len() < PAGE as usize;
        forget_told(app, &page, is_last, if told.is_ok() { TOLD_FOR } else { TOLD_AT_MOST }).await?;
        failed = all([failed, told]);
        if is_last {
            return failed;
        }
    }
}

async fn tell_of_page(
    app: &App,
    activities: &[Activity],
    page: &[TakenBack],
    beat: &(dyn Fn() + Send + Sync),
) -> Result<()> {
    let mut by_course: HashMap<CourseId, Vec<UserId>> = HashMap::new();
    for row in page {
        by_course.entry(row.course_id).or_default().push(row.user_id);
    }
    let of_gate = |activity: &Activity| {
        let users = by_course.get(&activity.course_id)?.clone();
        Some((activity.id, (Gate::of(&app.engine, activity.id), activity.course_id, users)))
    };
    let told = activities.iter().filter_map(of_gate).collect();
    let take_off = |(gate, course, users): (Gate, CourseId, Vec<UserId>)| async move {
        take_off_others(app, &gate, course, &users).await
    };
    let (_, owners) = each(app, "telling its gate who has its course no more", told, beat, take_off).await;
    let refunded: Vec<OrderId> = page.iter().map(|row| row.order_id).collect();
    all([owners, mark_refunded(app, &refunded, beat).await])
}

/// Forgets the notes of a page that are old enough. The last order of a page that another one follows may go on there: it
/// is forgotten with that one.
async fn forget_told(app: &App, page: &[TakenBack], is_last: bool, age: Duration) -> Result<()> {
    let before = app.clock.now().minus(age);
    let goes_on = page.last().map(|row| row.order_id).filter(|_| !is_last);
    let told = page.iter().filter(|row| row.created_at < before).map(|row| row.order_id);
    let told: HashSet<OrderId> = told.filter(|order| Some(*order) != goes_on).collect();
    let told: Vec<OrderId> = told.into_iter().collect();
    retrying(|| async { orders::forget_taken_back(&mut *app.db.acquire().await?, &told, before).await }).await
}

/// Says in the gates, and in the records of the submissions, which of these orders were won in a sale and are refunded.
async fn mark_refunded(app: &App, refunded: &[OrderId], beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    let entries = store::entries_of_orders(&mut conn, refunded).await?;
    let orders: Vec<OrderId> = entries.iter().map(|entry| entry.order_id).collect();
    let statuses = orders::statuses(&mut conn, &orders).await?;
    drop(conn);
    let mut by_activity: HashMap<ActivityId, Vec<(UserId, EntryId)>> = HashMap::new();
    for entry in entries {
        let undone = statuses.get(&entry.order_id).and_then(|status| undone(*status));
        if entry.live.is_some() && undone == Some(Kind::OrderRefunded) {
            by_activity.entry(entry.activity_id).or_default().push((entry.user_id, entry.id));
        }
    }
    let by_activity = by_activity.into_iter().map(|(activity, entries)| (activity, (activity, entries))).collect();
    let mark = |(activity, entries): (ActivityId, Vec<(UserId, EntryId)>)| async move {
        let places: Vec<(UserId, Held)> = entries.iter().map(|(user, entry)| (*user, Held::Entry(*entry))).collect();
        Gate::of(&app.engine, activity).change_places(app, &places, Held::Refunded).await?;
        mark_undone(app, activity, &entries).await
    };
    each(app, "telling its gate of refunded orders", by_activity, beat, mark).await.1
}

/// The orders of these submissions may not be what they were: whoever polls is answered from MySQL.
pub async fn mark_undone(app: &App, activity: ActivityId, entries: &[(UserId, EntryId)]) -> Result<()> {
    let tasks: Vec<_> = entries.iter().map(|(_, entry)| entry.uuid()).collect();
    Ok(app.engine.mark_results(&queue(activity), &tasks, UNDONE).await?)
}

/// How long before its activity was made an order of it can seem to be made, by another clock.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);

/// As [`tell_of_refunds`], of everything that was won in a sale and refunded since this instant, when the first activity
/// was made whose gate was built, or has forgotten. `beat` hears of each page.
pub async fn tell_of_all_refunded(app: &App, since: At, beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let (first, mut failed) = (OrderId::first_of(since.minus(CLOCKS_DIFFER)), Ok(()));
    // In the direction in which orders move.
    for status in [Status::Refunding, Status::Refunded] {
        let reading = app.clone();
        let read = move |after| {
            let app = reading.clone();
            async move {
                let mut conn = app.db.acquire().await?;
                let page = orders::seckill_in(&mut conn, status, after, PAGE).await?;
                let last = page.last().copied().filter(|_| page.len() == PAGE as usize);
                Ok((page, last))
            }
        };
        let mut pages = ahead::pages(first, read);
        while let Some(page) = pages.next().await {
            let page = page?;
            if !page.is_empty() {
                failed = all([failed, mark_refunded(app, &page, beat).await]);
            }
            beat();
        }
    }
    failed
}
