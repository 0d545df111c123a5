//! The worker's side: batches of submissions become orders.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::apart::each;
use super::model::{ActivityId, EntryId, Held, Place, Placement};
use super::redis::{Gate, KEEP_AFTER_END, activity_of, queue};
use super::{placing, reconcile, store};
use crate::app::{App, failed};
use crate::auth::UserId;
use crate::engine::{Job, Outcome, QueueName};
use crate::platform::clock::At;
use crate::platform::seldom::Seldom;

/// Activities that are over and looked through for submissions left behind, at most.
const MAX_LEFT_BEHIND: u32 = 800;
/// Activities that could have submissions: on sale, soon, or over for less than this.
const CONSUME_AFTER_END: Duration = Duration::from_secs(600);

/// Activities that are over are looked through for submissions left behind this often.
const LEFT_BEHIND_PERIOD: Duration = Duration::from_secs(10);
/// An activity is consumed from this long before its start.
const CONSUME_BEFORE_START: Duration = Duration::from_secs(60);

/// Activities that are over and still held submissions when this process last looked.
#[derive(Default)]
struct LeftBehind(Mutex<Option<(Instant, Vec<ActivityId>)>>);

/// When it was told last that there are too many activities.
#[derive(Default)]
struct TooMany(Seldom);

/// The partitions worth consuming: every activity on sale or just over, and older ones that still hold submissions.
pub async fn partitions(app: App) -> anyhow::Result<Vec<QueueName>> {
    let now = app.clock.now();
    let mut current = activities(&app, now.minus(CONSUME_AFTER_END), reconcile::MAX_ACTIVITIES).await?;
    let known = app.local::<LeftBehind>();
    let last = known.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let left_behind = match last {
        Some((at, left_behind)) if at.elapsed() < LEFT_BEHIND_PERIOD => left_behind,
        last => {
            let before = last.map(|(_, left_behind)| left_behind).unwrap_or_default();
            let found = look_for_left_behind(&app, &before).await?;
            *known.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), found.clone()));
            found
        }
    };
    current.extend(left_behind);
    current.sort_unstable();
    current.dedup();
    Ok(current.into_iter().map(queue).collect())
}

/// Those whose queues still hold submissions. One that cannot be read counts as before: it holds up no other.
async fn look_for_left_behind(app: &App, before: &[ActivityId]) -> anyhow::Result<Vec<ActivityId>> {
    let all = activities(app, app.clock.now().minus(KEEP_AFTER_END), MAX_LEFT_BEHIND).await?;
    let holds_any = |activity| async move { Ok(app.engine.may_hold(&queue(activity)).await?) };
    let looks = all.iter().map(|activity| (*activity, *activity)).collect();
    // What failed is told there, by its activity.
    let (looked, _) = each(app, "looking for submissions left behind", looks, holds_any).await;
    let looked: HashMap<ActivityId, bool> = looked.into_iter().collect();
    let left = |activity: &ActivityId| looked.get(activity).copied().unwrap_or_else(|| before.contains(activity));
    Ok(all.into_iter().filter(left).collect())
}

/// Activities that end after `since`, those on sale first. More than `limit` are told.
async fn activities(app: &App, since: At, limit: u32) -> anyhow::Result<Vec<ActivityId>> {
    let now = app.clock.now();
    let mut conn = app.db.acquire().await?;
    let started = now.plus(CONSUME_BEFORE_START);
    let mut found = store::activities_between(&mut conn, now, since, started, limit + 1).await?;
    if found.len() > limit as usize {
        found.truncate(limit as usize);
        if app.local::<TooMany>().0.may(now, reconcile::TOO_MANY_TOLD) {
            tracing::warn!(
                limit,
                "more activities than one process looks for submissions in: those on sale go first, and the last are passed over"
            );
        }
    }
    Ok(found.iter().map(|activity| activity.id).collect())
}

/// Makes the counters that alerts look at, so that their first event is an increase and not a beginning.
pub fn prepare_counters() {
    for label in ["won", "sold_out", "already_owned", "order_refunded", "limit_reached", "no_activity"] {
        count_placed(label, 0);
    }
}

fn count_placed(outcome: &'static str, placed: u64) {
    metrics::counter!("onrush_seckill_placed_total", "outcome" => outcome).increment(placed);
}

/// Places a batch of submissions of one activity.
pub async fn place(app: App, jobs: Vec<Job<Place>>) -> Vec<Outcome> {
    let activity = jobs.first().and_then(|job| activity_of(&job.id.queue));
    let Some(activity) = activity else {
        return jobs.iter().map(|job| Outcome::Retry(anyhow::anyhow!("{} names no activity", job.id))).collect();
    };
    let submissions: Vec<(EntryId, UserId)> =
        jobs.iter().map(|job| (EntryId::from_uuid(job.id.key), job.args.user)).collect();
    match placing::place(&app, activity, &submissions).await {
        Ok(placements) => {
            let gate = Gate::of(&app.engine, activity);
            submissions.iter().zip(placements).map(|((_, user), placement)| outcome(&gate, *user, &placement)).collect()
        }
        // People wait for this: as long as MySQL is away they keep their places, and nobody is told that they lost.
        Err(error) => jobs.iter().map(|_| failed(&app, &error)).collect(),
    }
}

/// What the acknowledgement writes: the result, and what the gate takes back of a submission that got no unit.
fn outcome(gate: &Gate, user: UserId, placement: &Placement) -> Outcome {
    let result = placement.result();
    let label = match placement {
        Placement::Won { .. } => "won",
        Placement::SoldOut => "sold_out",
        Placement::AlreadyOwned => "already_owned",
        Placement::Refunded => "order_refunded",
        Placement::LimitReached => "limit_reached",
        Placement::NoActivity => "no_activity",
    };
    count_placed(label, 1);
    match placement {
        Placement::Won { surplus: None, .. } => Outcome::Success(result),
        Placement::Won { surplus: Some(holder), .. } => {
            let effects = vec![gate.return_unit(), gate.remember_user(user, 1, Held::Entry(*holder))];
            Outcome::SuccessWith { result, effects }
        }
        // The gate had promised more than there is: the unit never was, only the place is given up.
        Placement::SoldOut | Placement::NoActivity => {
            Outcome::Failure { result, effects: vec![gate.forget_user(user)] }
        }
        // The next submission is refused at the gate: a place that was only given up would take a unit again and again.
        Placement::AlreadyOwned => {
            let effects = vec![gate.return_unit(), gate.remember_user(user, 0, Held::Owned)];
            Outcome::Failure { result, effects }
        }
        Placement::Refunded => {
            let effects = vec![gate.return_unit(), gate.remember_user(user, 1, Held::Refunded)];
            Outcome::Failure { result, effects }
        }
        Placement::LimitReached => {
            let effects = vec![gate.return_unit(), gate.remember_user(user, i64::from(i32::MAX), Held::Nothing)];
            Outcome::Failure { result, effects }
        }
    }
}
