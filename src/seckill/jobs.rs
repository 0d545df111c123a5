//! The worker's side: batches of submissions become orders.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::model::{EntryId, Held, Place, Placement};
use super::redis::{Gate, activity_of};
use super::{placing, reconcile, store};
use crate::app::{App, failed};
use crate::auth::UserId;
use crate::engine::{Job, Outcome, QueueName, is_wrong_type};
use crate::platform::clock::At;

/// Activities that are over and looked through for submissions left behind, at most.
const MAX_LEFT_BEHIND: u32 = 800;
/// Activities that could have submissions: on sale, soon, or over for less than this.
const CONSUME_AFTER_END: Duration = Duration::from_secs(600);

/// Activities that are over are looked through for submissions left behind this often.
const LEFT_BEHIND_PERIOD: Duration = Duration::from_secs(10);
/// An activity is consumed from this long before its start.
const CONSUME_BEFORE_START: Duration = Duration::from_secs(60);

/// Partitions of activities that are over and still held submissions when this process last looked.
#[derive(Default)]
struct LeftBehind(Mutex<Option<(Instant, Vec<QueueName>)>>);

/// The partitions worth consuming: every activity on sale or just over, and older ones that still hold submissions.
pub async fn partitions(app: App) -> anyhow::Result<Vec<QueueName>> {
    let now = app.clock.now();
    let current = activities(&app, now.minus(CONSUME_AFTER_END), reconcile::MAX_ACTIVITIES).await?;
    let mut partitions = current;
    let known = app.local::<LeftBehind>();
    let fresh = {
        let known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(at, _)| at.elapsed() < LEFT_BEHIND_PERIOD).map(|(_, queues)| queues.clone())
    };
    let left_behind = match fresh {
        Some(queues) => queues,
        None => {
            let mut queues = Vec::new();
            for queue in activities(&app, now.minus(super::redis::KEEP_AFTER_END), MAX_LEFT_BEHIND).await? {
                match app.engine.may_hold(&queue).await {
                    Ok(true) => queues.push(queue),
                    Ok(false) => {}
                    // One that nobody can read holds up no other.
                    Err(error) if is_wrong_type(&error) => {
                        tracing::warn!(%queue, error = format!("{error:#}"), "queue of an activity that is over cannot be read");
                    }
                    Err(error) => return Err(error),
                }
            }
            *known.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), queues.clone()));
            queues
        }
    };
    partitions.extend(left_behind);
    partitions.sort_unstable();
    partitions.dedup();
    Ok(partitions)
}

/// Partitions of activities that end after `since`, those that end last first.
async fn activities(app: &App, since: At, limit: u32) -> anyhow::Result<Vec<QueueName>> {
    let started = app.clock.now().plus(CONSUME_BEFORE_START);
    let mut conn = app.db.acquire().await?;
    let found = store::activities_between(&mut conn, since, started, limit).await?;
    Ok(found.iter().map(|activity| super::redis::queue(activity.id)).collect())
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
    metrics::counter!("onrush_seckill_placed_total", "outcome" => label).increment(1);
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
