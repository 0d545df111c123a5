//! The worker's side: batches of submissions become orders.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::apart::each;
use super::model::{ActivityId, EntryId, Held, PlaceSubmission, Placement};
use super::redis::{Gate, KEEP_AFTER_END, activity_of, queue};
use super::{placing, reconcile, store};
use crate::app::{App, failed};
use crate::auth::UserId;
use crate::engine::{Job, Outcome, QueueName};

/// Activities that are over and looked through for submissions left behind, at most: those that ended last.
const MAX_LEFT_BEHIND: u32 = 800;
/// Of those that held nothing when they were looked at last, and to which nothing can come by itself, so many are looked at
/// again at a time; all of them when another run of Redis serves, and those of which a task was retried.
const LOOKED_AGAIN: usize = 50;
/// Activities that could have submissions: on sale, soon, or over for less than this.
const CONSUME_AFTER_END: Duration = Duration::from_secs(600);

/// Activities that are over are looked through for submissions left behind this often.
const LEFT_BEHIND_PERIOD: Duration = Duration::from_secs(10);
/// An activity is consumed from this long before its start.
const CONSUME_BEFORE_START: Duration = Duration::from_secs(60);

/// What this process knows of the queues of activities that are over.
#[derive(Default)]
struct LeftBehind(Mutex<Left>);

#[derive(Default, Clone)]
struct Left {
    looked: Option<Instant>,
    /// The run of Redis that was looked at.
    run: String,
    /// Those that held submissions.
    behind: Vec<ActivityId>,
    /// Those in which nothing was, and when they were looked at: no dead letter either that somebody might retry.
    at_rest: HashMap<ActivityId, Instant>,
}

/// The partitions worth consuming: every activity on sale or just over, and older ones that still hold submissions.
pub async fn partitions(app: App) -> anyhow::Result<Vec<QueueName>> {
    let mut current = current_activities(&app).await?;
    let known = app.local::<LeftBehind>();
    let mut left = known.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if left.looked.is_none_or(|at| at.elapsed() >= LEFT_BEHIND_PERIOD) {
        left = look_for_left_behind(&app, left).await?;
        *known.0.lock().unwrap_or_else(PoisonError::into_inner) = left.clone();
    }
    current.extend(left.behind);
    current.sort_unstable();
    current.dedup();
    Ok(current.into_iter().map(queue).collect())
}

/// Those whose queues still hold submissions. One that cannot be read counts as before: it holds up no other.
async fn look_for_left_behind(app: &App, before: Left) -> anyhow::Result<Left> {
    let now = app.clock.now();
    let mut conn = app.db.acquire().await?;
    let all = store::ended_since(&mut conn, now.minus(KEEP_AFTER_END), now, MAX_LEFT_BEHIND).await?;
    drop(conn);
    let Left { behind, mut at_rest, run: run_before, .. } = before;
    // Without an answer those that cannot be read count as before, too.
    let run = app.redis.run_ids().await.map_or_else(|_| run_before.clone(), |ids| ids.join(" "));
    if run != run_before {
        at_rest.clear();
    }
    for queue in app.engine.retried_lately().await.unwrap_or_default() {
        if let Some(activity) = activity_of(&queue) {
            at_rest.remove(&activity);
        }
    }
    let there: HashSet<ActivityId> = all.iter().copied().collect();
    at_rest.retain(|activity, _| there.contains(activity));
    let mut again: Vec<(Instant, ActivityId)> = at_rest.iter().map(|(activity, at)| (*at, *activity)).collect();
    again.sort_unstable();
    again.truncate(LOOKED_AGAIN);
    for (_, activity) in &again {
        at_rest.remove(activity);
    }
    let looks = all.iter().filter(|activity| !at_rest.contains_key(activity));
    let looks = looks.map(|activity| (*activity, *activity)).collect();
    // What failed is told there, by its activity.
    let (looked, _) =
        each(app, "looking for submissions left behind", looks, &|| (), |activity| left_in(app, activity)).await;
    let looked: HashMap<ActivityId, InQueue> = looked.into_iter().collect();
    at_rest.extend(looked.iter().filter(|(_, held)| **held == InQueue::Nothing).map(|(id, _)| (*id, Instant::now())));
    let is_behind = |activity: &ActivityId| {
        looked.get(activity).map_or_else(|| behind.contains(activity), |held| *held == InQueue::Submissions)
    };
    Ok(Left { looked: Some(Instant::now()), run, behind: all.into_iter().filter(is_behind).collect(), at_rest })
}

/// What is in the queue of an activity that is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InQueue {
    Nothing,
    /// Dead letters, or what an operator has set.
    NoSubmissions,
    Submissions,
}

async fn left_in(app: &App, activity: ActivityId) -> crate::error::Result<InQueue> {
    let queue = queue(activity);
    if app.engine.at_rest(&queue).await?.is_some() {
        return Ok(InQueue::Nothing);
    }
    Ok(if app.engine.may_hold(&queue).await? { InQueue::Submissions } else { InQueue::NoSubmissions })
}

/// Activities on sale, soon, or just over, those on sale first. More than there may be are told.
async fn current_activities(app: &App) -> anyhow::Result<Vec<ActivityId>> {
    let now = app.clock.now();
    let (since, started) = (now.minus(CONSUME_AFTER_END), now.plus(CONSUME_BEFORE_START));
    let mut conn = app.db.acquire().await?;
    let mut found = store::ids_between(&mut conn, now, since, started, reconcile::MAX_ACTIVITIES + 1).await?;
    let is_too_much = found.len() > reconcile::MAX_ACTIVITIES as usize;
    let current = if is_too_much { store::count_current(&mut conn, now, started).await? } else { 0 };
    found.truncate(reconcile::MAX_ACTIVITIES as usize);
    reconcile::tell_beyond(app, "placing", current);
    Ok(found)
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
pub async fn place(app: App, jobs: Vec<Job<PlaceSubmission>>) -> Vec<Outcome> {
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
