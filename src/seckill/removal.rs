//! What is over goes from Redis: owners' marks when their sale has ended, and all keys of an activity a week after that.
//!
//! A gate has a field for everybody who took part. Left to its expiry, Redis frees it in its main thread unless it is told
//! otherwise: everybody waits a tenth of a second for a hundred thousand buyers, and more than a second for a million. So
//! the keys are unlinked here, which another thread of Redis then frees. Which activities are owed that is in their rows, so
//! any process does it, and goes on where another one ended; to do it twice is to do it once.

use std::time::Duration;

use super::apart::{Troubles, all, each};
use super::model::ActivityId;
use super::redis::{Gate, KEEP_AFTER_END, queue};
use super::{owners, store};
use crate::app::App;
use crate::error::{Result, retrying};
use crate::platform::clock::At;

/// Keys go this much later than no gate is built any more, in case another process's clock is behind.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);
/// Activities whose keys one page removes.
const PAGE: u32 = 100;
/// Pages of one run.
const PAGES: u32 = 50;
/// Sales that have ended and may have owners' marks, looked at by one run: those that ended last.
const ENDED: u32 = 1000;
/// Fields of gates looked through for marks by one run, or about.
const FIELDS_OF_A_RUN: usize = 400_000;

/// Removes what is over. How many activities' keys were removed.
pub async fn clear_away(app: &App) -> Result<usize> {
    let (removed, gone_wrong) = remove_gates(app).await?;
    all([gone_wrong, take_marks_off(app).await]).map(|()| removed)
}

async fn remove_gates(app: &App) -> Result<(usize, Result<()>)> {
    let now = app.clock.now();
    let until = now.minus(KEEP_AFTER_END).minus(CLOCKS_DIFFER);
    let (mut after, mut removed, mut failed) = ((At::from_ms(0), ActivityId::min()), 0, Ok(()));
    for _ in 0..PAGES {
        let mut conn = app.db.acquire().await?;
        let page = store::activities_over(&mut conn, until, after, PAGE).await?;
        drop(conn);
        let Some(last) = page.last() else { break };
        after = *last;
        let ids = page.iter().map(|(_, activity)| (*activity, *activity)).collect();
        let (gone, gone_wrong) = each(app, "removing its keys", ids, &|| (), |activity| remove(app, activity)).await;
        let gone: Vec<ActivityId> = gone.into_iter().map(|(activity, ())| activity).collect();
        if !gone.is_empty() {
            retrying(|| async { store::mark_removed(&mut *app.db.acquire().await?, &gone, now).await }).await?;
        }
        removed += gone.len();
        failed = all([failed, gone_wrong]);
        if page.len() < PAGE as usize {
            break;
        }
    }
    Ok((removed, failed))
}

/// What was never placed, and what a person never looked at, goes too: nobody would place it any more.
async fn remove(app: &App, activity: ActivityId) -> Result<()> {
    // A queue that cannot be read is no reason to keep it.
    if let Ok(left) = app.engine.depth(&queue(activity)).await
        && left.depth + left.delayed + left.dead > 0
    {
        let (submissions, letters) = (left.depth + left.delayed, left.dead);
        tracing::warn!(activity.id = %activity, submissions, letters, "removing the queue of an activity that is long over and still held some");
    }
    Gate::of(&app.engine, activity).remove(app).await?;
    Ok(())
}

async fn take_marks_off(app: &App) -> Result<()> {
    let now = app.clock.now();
    let mut conn = app.db.acquire().await?;
    let ended = store::ended_since(&mut conn, now.minus(KEEP_AFTER_END), now, ENDED).await?;
    drop(conn);
    let (marked, failed) = owners::how_far(app, ended).await;
    let (mut left, mut troubles) = (FIELDS_OF_A_RUN, Troubles::of("taking owners off its gate"));
    for (activity, _) in marked.into_iter().filter(|(_, written)| written.taken_off.is_some()) {
        let looked = troubles.note(app, activity, owners::take_marks_off(app, activity, left).await);
        left = left.saturating_sub(looked.unwrap_or(0));
        if left == 0 {
            break;
        }
    }
    all([failed, troubles.end()])
}
