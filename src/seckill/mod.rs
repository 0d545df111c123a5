//! Seckill: a flash sale of one course at its own price.
//!
//! MySQL holds the stock (`stock_left`) and the entries; Redis holds the gate, which says yes or no to a submission
//! without MySQL: one script reserves a unit and enqueues the task that will place it. A worker places a few hundred
//! submissions in one transaction with one guarded decrement, so MySQL never sells a unit twice, whatever Redis
//! believed. The ways the two can differ, and what mends each:
//!
//! * Redis lost the gate: it is built again from MySQL, by one builder at a time, before anybody is admitted.
//! * Redis sold more than there was: the placement says sold out to the surplus.
//! * A unit came back in MySQL (unpaid, cancelled): `gate_returned_at` is NULL until it is on sale in Redis too.
//! * Anything else: [`reconcile()`] compares and corrects, the safe direction (fewer) first.
//!
//! One process looks after all gates ([`watch_gates`]), and looks seldom at those that rest.

mod ahead;
mod apart;
mod attention;
mod building;
mod floods;
pub mod http;
pub mod jobs;
mod lookup;
mod memory;
mod model;
mod owners;
mod placing;
mod reconcile;
mod redis;
mod redis_runs;
mod removal;
mod seats;
mod store;
pub mod tasks;
mod telling;
mod turn;
mod watcher;

pub use building::open_gate;
pub use model::{Activity, ActivityId, ActivityMark, EntryId, Phase, PlaceSubmission, Placement};
pub use placing::{give_back, place, retake};
pub use reconcile::{Correction, confirmed_difference, kept, look_after_gates, reconcile, return_units, watch_gates};
pub use redis::{KEEP_AFTER_END, queue};
pub use removal::clear_away;
pub use telling::tell_gates;

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use self::memory::{Memory, submissions};
use self::model::{Admission, undone};
use self::redis::{Gate, Submission};
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::engine::TaskId;
use crate::error::{Error, Kind, Result, invalid, refuse, retrying};
use crate::platform::clock::At;
use crate::platform::db;
use crate::platform::extract::FieldFault;
use crate::platform::money::Money;
use crate::platform::page::PageQuery;
use crate::platform::traces::TraceParent;

/// A submission: the id of its task, or why not. One Redis round trip, none while sold out is remembered, and none for
/// who submits too often.
pub async fn submit(app: &App, activity: ActivityId, user: UserId) -> Result<TaskId> {
    let memory = app.local::<Memory>();
    refuse_floods(app, &memory, activity, user)?;
    // What could not be answered is counted as well: while Redis is away nothing else would tell of the crowd.
    let admission = answer(app, &memory, activity, user)
        .await
        .inspect_err(|error| submissions(error.kind().name()).increment(1))?;
    match admission.into_entry(app.clock.now()) {
        Ok(entry) => {
            memory.admitted.increment(1);
            Ok(TaskId { key: entry.uuid(), queue: redis::queue(activity) })
        }
        Err(error) if error.kind() == Kind::SoldOut => {
            memory.refused_sold_out.increment(1);
            Err(error)
        }
        Err(error) => {
            submissions(error.kind().name()).increment(1);
            Err(error)
        }
    }
}

/// Counts a submission, and refuses it when this process has seen too many of its user: they cost Redis nothing.
fn refuse_floods(app: &App, memory: &Memory, activity: ActivityId, user: UserId) -> Result<()> {
    let config = &app.config.seckill;
    let now_s = app.clock.now().ms().div_euclid(1000).unsigned_abs();
    let (window, left_s) = (now_s / config.submissions_window_s, now_s % config.submissions_window_s);
    if memory.submitted(activity, user, window) <= config.submissions_max {
        return Ok(());
    }
    memory.refused_floods.increment(1);
    let refusal = refuse(Kind::TooManyAttempts, "too many submissions of this account");
    Err(refusal.retry_after(config.submissions_window_s - left_s).into())
}

async fn answer(app: &App, memory: &Memory, activity: ActivityId, user: UserId) -> Result<Admission> {
    if memory.is_sold_out(activity, user, Duration::from_millis(app.config.seckill.sold_out_memory_ms)) {
        return Ok(Admission::SoldOut);
    }
    let mut admission = ask(app, memory, activity, user).await?;
    if admission == Admission::NoGate {
        // Boxed, as what follows: the crowd's requests need no room for it.
        Box::pin(have_gate_built(app, memory, activity)).await?;
        admission = ask(app, memory, activity, user).await?;
    }
    if let Admission::Lost(entry) = admission {
        let placed = Box::pin(lookup::order_of(app, entry)).await?.filter(|placed| !placed.returned);
        admission = if let Some(placed) = placed {
            let refunded = undone(placed.status) == Some(Kind::OrderRefunded);
            if refunded { Admission::Refunded } else { Admission::InAlready(entry) }
        } else {
            Box::pin(Gate::of(&app.engine, activity).forget(app, user, entry)).await?;
            ask(app, memory, activity, user).await?
        };
    }
    if admission == Admission::SoldOut {
        memory.saw_sold_out(activity);
    }
    Ok(admission)
}

/// Asks the gate, together with whoever asks at the same time.
async fn ask(app: &App, memory: &Memory, activity: ActivityId, user: UserId) -> Result<Admission> {
    let (asking, submission) = (app.clone(), Submission { user, entry: EntryId::new(), trace: TraceParent::current() });
    let admit = move |submissions: Vec<Submission>| {
        let app = asking.clone();
        async move { Gate::of(&app.engine, activity).admit(&app, &submissions).await }
    };
    let answer = memory.admissions.ask(&activity, submission, admit).await;
    Ok(answer.map_err(anyhow::Error::from)?.context("asking the gate")?)
}

/// Builds a missing gate, once for all who miss it at the same time, and in a task of its own: clients may leave, a
/// sqlx future may not be dropped.
async fn have_gate_built(app: &App, memory: &Memory, activity: ActivityId) -> Result<()> {
    let building = app.clone();
    let build = move |waiting: Vec<()>| {
        let app = building.clone();
        async move {
            match build_asked_for(&app, activity).await {
                Ok(()) => Ok(waiting),
                Err(error) => {
                    if let Error::Internal(cause) = &error {
                        tracing::warn!(activity.id = %activity, error = format!("{cause:#}"), "gate could not be built");
                    }
                    Err(error.kind())
                }
            }
        }
    };
    memory.building.ask(&activity, (), build).await.map_err(anyhow::Error::from)?.map_err(Error::from)
}

/// Builds the gate of an activity that a submission names: there may be none, or it may be long over.
async fn build_asked_for(app: &App, activity: ActivityId) -> Result<()> {
    let memory = app.local::<Memory>();
    if memory.is_unknown(activity) {
        return Err(Kind::NotFound.into());
    }
    // Built by another process, or for those who asked just before.
    if Gate::of(&app.engine, activity).exists(app).await? {
        return Ok(());
    }
    let mut conn = app.db.acquire().await?;
    let Some(found) = store::find_activity(&mut conn, activity).await? else {
        memory.saw_unknown(activity);
        return Err(Kind::NotFound.into());
    };
    drop(conn);
    if app.clock.now() > found.ends_at.plus(redis::KEEP_AFTER_END) {
        return Err(Kind::Ended.into());
    }
    open_gate(app, activity).await
}

/// A new activity.
#[derive(Debug, Clone)]
pub struct NewActivity {
    /// Its id: the same id again is the same activity.
    pub id: ActivityId,
    /// What is sold.
    pub course: crate::catalogue::CourseId,
    /// Its title.
    pub title: String,
    /// The price of one unit.
    pub price: Money,
    /// Units.
    pub stock: i64,
    /// How often one user may be given a unit.
    pub per_user_limit: i32,
    /// Seconds to pay.
    pub pay_deadline_s: i32,
    /// When it begins.
    pub starts_at: At,
    /// When it ends.
    pub ends_at: At,
}

/// What is wrong with the times of a new activity.
fn window_faults(starts_at: At, ends_at: At, now: At) -> Vec<FieldFault> {
    let rules = [
        (ends_at > now, FieldFault::new("ends_at", "must be in the future")),
        (starts_at < ends_at, FieldFault::new("starts_at", "must be before ends_at")),
    ];
    rules.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault).collect()
}

/// Creates an activity and opens its gate; the audit says `by` whom, where that was a person. The same id again, for the
/// same activity, answers it as it is; for another one it is refused.
pub async fn create_activity(app: &App, by: Option<UserId>, new: NewActivity) -> Result<Activity> {
    let now = app.clock.now();
    let faults = window_faults(new.starts_at, new.ends_at, now);
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let mut conn = app.db.acquire().await?;
    if crate::catalogue::courses_for_sale(&mut conn, &[new.course]).await?.is_empty() {
        return Err(invalid("course_id", "is not a course on sale"));
    }
    let activity = Activity {
        id: new.id,
        course_id: new.course,
        title: new.title,
        price_fen: new.price,
        stock: new.stock,
        stock_left: new.stock,
        returns: 0,
        per_user_limit: new.per_user_limit,
        pay_deadline_s: new.pay_deadline_s,
        starts_at: new.starts_at,
        ends_at: new.ends_at,
        closed_at: None,
        created_at: now,
    };
    drop(conn);
    let activity = if retrying(|| insert_activity(app, by, &activity)).await? {
        activity
    } else {
        let there = find_activity(app, new.id).await?;
        if !there.is_as_made(&activity) {
            return Err(Kind::ActivityExists.into());
        }
        there
    };
    open_gate(app, activity.id).await?;
    Ok(activity)
}

/// False when the id is taken.
async fn insert_activity(app: &App, by: Option<UserId>, activity: &Activity) -> Result<bool> {
    let mut tx = app.db.begin().await?;
    match store::insert_activity(&mut tx, activity).await {
        Ok(()) => {}
        Err(error) if is_taken(&error) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    if let Some(by) = by {
        let act = Act { by, action: "activity.create", target: &activity.id.to_string() };
        let details =
            json!({ "title": activity.title, "stock": activity.stock, "price_fen": activity.price_fen.as_fen() });
        audit::done(&mut tx, act, &details, activity.created_at).await?;
    }
    tx.commit().await.context("committing")?;
    Ok(true)
}

/// Both servers call the primary key `PRIMARY`, whatever its declared name.
fn is_taken(error: &sqlx::Error) -> bool {
    db::violated(error).is_some_and(|name| name == "PRIMARY" || name == "pk_seckill_activities")
}

/// Activities on sale or to come at `now`, newest first: those of a page, and one more when another page follows.
pub async fn list_activities(app: &App, now: At, page: &PageQuery) -> Result<Vec<Activity>> {
    let mut conn = app.db.acquire().await?;
    store::list_activities(&mut conn, now, page.before(), page.fetch()).await
}

/// An activity, or 404.
pub async fn find_activity(app: &App, id: ActivityId) -> Result<Activity> {
    let mut conn = app.db.acquire().await?;
    find_activity_in(&mut conn, id).await
}

async fn find_activity_in(conn: &mut db::Conn, id: ActivityId) -> Result<Activity> {
    store::find_activity(conn, id).await?.ok_or_else(|| Kind::NotFound.into())
}

/// Changes the stock in all. Fewer units are taken off sale in Redis first, more are put on sale in MySQL first: a
/// crash in between leaves fewer on sale than there are, which reconciliation mends.
pub async fn change_stock(app: &App, by: UserId, id: ActivityId, to: i64) -> Result<Activity> {
    let before = find_activity(app, id).await?;
    if before.phase(app.clock.now()) == Phase::Ended {
        return Err(Kind::Ended.into());
    }
    open_gate(app, id).await?;
    let gate = Gate::of(&app.engine, id);
    let change = to - before.stock;
    if change == 0 {
        // Also the repeat of a change whose answer was lost.
        return Ok(before);
    }
    if change < 0 && gate.take(app, -change).await? != Some(true) {
        return Err(refuse(Kind::ActivityState, "so many units are already taken").into());
    }
    if !retrying(|| write_stock(app, by, id, before.stock, to)).await? {
        if change < 0 {
            gate.add(app, -change).await?;
        }
        return Err(
            refuse(Kind::ActivityState, "the stock changed meanwhile, or so many units are already taken").into()
        );
    }
    if change > 0 {
        gate.add(app, change).await?;
    }
    find_activity(app, id).await
}

/// False when the stock is not `before` any more, or so many units are taken.
async fn write_stock(app: &App, by: UserId, id: ActivityId, before: i64, to: i64) -> Result<bool> {
    let mut tx = app.db.begin().await?;
    if !store::change_stock(&mut tx, id, before, to).await? {
        return Ok(false);
    }
    let act = Act { by, action: "activity.change", target: &id.to_string() };
    audit::done(&mut tx, act, &json!({ "stock": to, "before": before }), app.clock.now()).await?;
    tx.commit().await.context("committing")?;
    Ok(true)
}

/// Ends a sale early: the gate is shut first, then MySQL says so; a repeat changes nothing. Who was admitted before
/// keeps his place.
pub async fn close_activity(app: &App, by: UserId, id: ActivityId) -> Result<Activity> {
    find_activity(app, id).await?;
    Gate::of(&app.engine, id).close(app).await?;
    let written = retrying(|| async {
        let (mut tx, now) = (app.db.begin().await?, app.clock.now());
        if store::close_activity(&mut tx, id, now).await? {
            let act = Act { by, action: "activity.close", target: &id.to_string() };
            audit::done(&mut tx, act, &json!({}), now).await?;
        }
        Ok(tx.commit().await.context("committing")?)
    });
    written.await?;
    // A gate built between the two statements was built open: shut it again, now that MySQL says closed.
    Gate::of(&app.engine, id).close(app).await?;
    find_activity(app, id).await
}
