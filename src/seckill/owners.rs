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

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::model::{Activity, ActivityId, EntryId, Held, undone};
use super::redis::{Gate, queue};
use super::store;
use crate::app::App;
use crate::auth::UserId;
use crate::catalogue::{self, CourseId};
use crate::error::{Kind, Result, retrying};
use crate::orders::{self, OrderId, Status, TakenBack};
use crate::platform::clock::At;

/// Owners written, notes told and refunded orders read at once.
const PAGE: u32 = 500;
/// Pages of owners that are written before the first buyer of a gate that was missing is let in.
pub const PAGES_AT_OPENING: u32 = 20;
/// Pages of owners that a pass over the gates writes, of all of them together.
pub const PAGES_OF_A_PASS: u32 = 40;
/// A gate with more fields than this is told of no more owners: some 100 MB of Redis.
const MAX_FIELDS: u64 = 1_000_000;
/// Fields of gates that a pass looks at, about.
const FIELDS_OF_A_PASS: usize = 2000;
/// A note of what was taken back is told for this long: placements that had read before it have ended by then.
const TOLD_FOR: Duration = Duration::from_secs(60);
/// What the record of a submission says whose order may not be what it was: MySQL is then asked.
pub const UNDONE: &str = "undone";

/// Writes the next owners of the course into its gate, at most so many pages; how many were written.
pub async fn write_next(app: &App, activity: &Activity, pages: u32) -> Result<u32> {
    let gate = Gate::of(&app.engine, activity.id);
    for written in 0..pages {
        let Some(after) = gate.owners_written(app).await? else { return Ok(written) };
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

/// Looks at some of the marks of these activities, by id, and takes off those that do not hold.
pub async fn look_again(app: &App, activities: &[Activity]) -> Result<()> {
    let round = app.local::<Round>();
    let mut looked = 0;
    for _ in activities {
        let (last, at) = *round.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The one whose look has not come to its end, or the next one.
        let same = activities.iter().find(|activity| at > 0 && Some(activity.id) == last);
        let next = activities.iter().filter(|activity| Some(activity.id) > last).min_by_key(|activity| activity.id);
        let first = activities.iter().min_by_key(|activity| activity.id);
        let Some(activity) = same.or(next).or(first) else { return Ok(()) };
        let gate = Gate::of(&app.engine, activity.id);
        let from = if same.is_some() { at } else { 0 };
        let (to, fields, marked) = gate.owners_from(app, from, FIELDS_OF_A_PASS).await?;
        take_off_others(app, &gate, activity.course_id, &marked).await?;
        *round.0.lock().unwrap_or_else(PoisonError::into_inner) = (Some(activity.id), to);
        looked += fields;
        if looked >= FIELDS_OF_A_PASS {
            break;
        }
    }
    Ok(())
}

/// Tells the gates of `activities` what refunds took back.
pub async fn tell_of_refunds(app: &App, activities: &[Activity]) -> Result<()> {
    let mut after = (OrderId::min(), CourseId::min());
    loop {
        let mut conn = app.db.acquire().await?;
        let page = orders::taken_back(&mut conn, after, PAGE).await?;
        drop(conn);
        let Some(last) = page.last() else { return Ok(()) };
        after = (last.order_id, last.course_id);
        for activity in activities {
            let users: Vec<UserId> =
                page.iter().filter(|row| row.course_id == activity.course_id).map(|row| row.user_id).collect();
            take_off_others(app, &Gate::of(&app.engine, activity.id), activity.course_id, &users).await?;
        }
        let refunded: Vec<OrderId> = page.iter().map(|row| row.order_id).collect();
        mark_refunded(app, &refunded).await?;
        let is_last = page.len() < PAGE as usize;
        forget_told(app, &page, is_last).await?;
        if is_last {
            return Ok(());
        }
    }
}

/// Forgets the notes of a page that are old enough. The last order of a page that another one follows may go on there: it
/// is forgotten with that one.
async fn forget_told(app: &App, page: &[TakenBack], is_last: bool) -> Result<()> {
    let before = app.clock.now().minus(TOLD_FOR);
    let goes_on = page.last().map(|row| row.order_id).filter(|_| !is_last);
    let told = page.iter().filter(|row| row.created_at < before).map(|row| row.order_id);
    let told: HashSet<OrderId> = told.filter(|order| Some(*order) != goes_on).collect();
    let told: Vec<OrderId> = told.into_iter().collect();
    retrying(|| async { orders::forget_taken_back(&mut *app.db.acquire().await?, &told, before).await }).await
}

/// Says in the gates, and in the records of the submissions, which of these orders were won in a sale and are refunded.
async fn mark_refunded(app: &App, refunded: &[OrderId]) -> Result<()> {
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
    for (activity, entries) in by_activity {
        let places: Vec<(UserId, Held)> = entries.iter().map(|(user, entry)| (*user, Held::Entry(*entry))).collect();
        Gate::of(&app.engine, activity).change_places(app, &places, Held::Refunded).await?;
        mark_undone(app, activity, &entries).await?;
    }
    Ok(())
}

/// The orders of these submissions may not be what they were: whoever polls is answered from MySQL.
pub async fn mark_undone(app: &App, activity: ActivityId, entries: &[(UserId, EntryId)]) -> Result<()> {
    let tasks: Vec<_> = entries.iter().map(|(_, entry)| entry.uuid()).collect();
    Ok(app.engine.mark_results(&queue(activity), &tasks, UNDONE).await?)
}

/// How long before its activity was made an order of it can seem to be made, by another clock.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);

/// As [`tell_of_refunds`], of everything that was won in a sale and refunded since this instant, when the first activity
/// was made whose gate was built, or has forgotten.
pub async fn tell_of_all_refunded(app: &App, since: At) -> Result<()> {
    // In the direction in which orders move.
    for status in [Status::Refunding, Status::Refunded] {
        let mut after = OrderId::first_of(since.minus(CLOCKS_DIFFER));
        loop {
            let mut conn = app.db.acquire().await?;
            let page = orders::seckill_in(&mut conn, status, after, PAGE).await?;
            drop(conn);
            let Some(last) = page.last() else { break };
            after = *last;
            mark_refunded(app, &page).await?;
            if page.len() < PAGE as usize {
                break;
            }
        }
    }
    Ok(())
}
