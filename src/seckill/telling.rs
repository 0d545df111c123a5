//! Telling the gates what they may have forgotten, from MySQL: who holds a unit, which units came back, whose order was
//! refunded. A Redis that failed over, or lost its last second at a restart, would tell a winner that all is sold.
//!
//! Everything that MySQL has of the sales is read for that, so one process does it for all, once for each run of Redis:
//! a key in Redis says which run was told. It goes with the data, and comes back older with older data, so whatever was
//! forgotten is told again. It is done beside the pass over the gates, which goes on with its period.

use std::future::ready;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::TryStreamExt;
use redis::Script;

use super::apart::{Troubles, all, is_partly};
use super::model::ActivityId;
use super::redis::{Gate, UnitHolder};
use super::redis_runs::{Seen, TellingRecord, told, told_key};
use super::{building, owners, reconcile};
use crate::app::App;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::id::Id;

/// And this much earlier than the last look: what was noted then may have been on its way.
const BEFORE: Duration = reconcile::RETURN_AGAIN;
/// What was being placed while another process of Redis began to serve is committed after this long, or given up: then
/// it is told once more.
const SETTLED: Duration = Duration::from_secs(30);
/// Who tells has this long for each step before another process may: one that died holds it up no longer.
const LEASE_MS: u64 = 10_000;

static TOLD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/told.lua")));

/// What is to be done for a run.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It was told, and told again.
    Nothing,
    /// It was told, and not long enough ago to tell it again.
    Wait,
    /// It is to be told, for so many times then.
    Tell(u8),
}

fn step(told: &str, run: &str, now: At) -> Step {
    match TellingRecord::read(told).filter(|told| told.run == run) {
        None => Step::Tell(1),
        Some(told) if told.times >= 2 => Step::Nothing,
        Some(told) if now < told.at.plus(SETTLED) => Step::Wait,
        Some(_) => Step::Tell(2),
    }
}

/// Tells the gates, where this run of Redis was not told yet and nobody else is at it. `beat` hears of each step.
pub async fn tell_gates(app: &App, beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let (run, now) = (app.redis.run_ids().await?.join(" "), app.clock.now());
    let found = step(&told(app).await?, &run, now);
    let since = app.local::<Seen>().look(&run, found == Step::Nothing, now, BEFORE);
    let Step::Tell(_) = found else { return Ok(()) };
    let Some(lease) = TellingLease::take(app).await? else { return Ok(()) };
    // Looked at once more: the one before may have ended in between.
    let before = told(app).await?;
    let Step::Tell(times) = step(&before, &run, now) else { return lease.give_back().await };
    let telling = tell(&lease, since, beat).await;
    if telling.as_ref().err().is_none_or(is_partly) {
        // A gate that could not be told is another run's by the time it can, or is built anew, or has forgotten nothing.
        lease.end(&before, &TellingRecord::text(times, app.clock.now(), &run)).await?;
    } else {
        lease.give_back().await?;
    }
    telling
}

async fn tell(lease: &TellingLease<'_>, returned_since: At, beat: &(dyn Fn() + Send + Sync)) -> Result<()> {
    let app = lease.app;
    let (activities, _) = reconcile::looked_after(app).await?;
    let returned = reconcile::return_again(app, returned_since, beat).await;
    let mut troubles = Troubles::of("telling its gate who holds a unit");
    for activity in &activities {
        let remembered = remember(lease, activity.id, beat).await;
        if troubles.note(app, activity.id, remembered) == Some(false) {
            // Another process tells.
            return Ok(());
        }
    }
    let refunded = match activities.iter().map(|activity| activity.created_at).min() {
        Some(since) => owners::tell_of_all_refunded(app, since, beat).await,
        None => Ok(()),
    };
    all([returned, troubles.end(), refunded])
}

/// Tells one gate who holds a unit; false when the right to tell was lost.
async fn remember(lease: &TellingLease<'_>, activity: ActivityId, beat: &(dyn Fn() + Send + Sync)) -> Result<bool> {
    let (app, mut forgotten) = (lease.app, 0);
    let gate = &Gate::of(&app.engine, activity);
    if !lease.renew().await? {
        return Ok(false);
    }
    let telling = building::calls(app, activity, |users: Vec<UnitHolder>| async move {
        let forgotten = gate.remember_users(app, &users).await?;
        beat();
        Ok((lease.renew().await?, forgotten))
    });
    let ours = telling.try_all(|(ours, of_these)| {
        forgotten += of_these;
        ready(ours)
    });
    let ours = ours.await?;
    if forgotten > 0 {
        tracing::warn!(activity.id = %activity, forgotten, "a gate had forgotten who holds a unit");
    }
    Ok(ours)
}

/// The right to tell.
struct TellingLease<'a> {
    app: &'a App,
    key: String,
    token: String,
}

impl<'a> TellingLease<'a> {
    /// `None` when another process has it.
    async fn take(app: &'a App) -> Result<Option<Self>> {
        let lease =
            Self { app, key: format!("{}:{{.gates}}:telling", app.redis.prefix()), token: Id::<()>::new().to_string() };
        let mut take = redis::cmd("SET");
        take.arg(&lease.key).arg(&lease.token).arg("NX").arg("PX").arg(LEASE_MS);
        let taken: Option<String> =
            take.query_async(&mut app.redis.commands()).await.context("taking the right to tell the gates")?;
        Ok(taken.map(|_| lease))
    }

    /// False when it was lost.
    async fn renew(&self) -> Result<bool> {
        self.call(LEASE_MS).await
    }

    async fn give_back(&self) -> Result<()> {
        self.call(0).await.map(drop)
    }

    /// Notes what was told, if the right is still there and nothing else was noted meanwhile.
    async fn end(&self, before: &str, told: &str) -> Result<()> {
        let mut call = TOLD.key(&self.key);
        call.key(told_key(self.app)).arg(&self.token).arg(0).arg(before).arg(told);
        let noted = call.invoke_async::<i64>(&mut self.app.redis.commands()).await;
        Ok(noted.map(drop).context("noting that the gates were told")?)
    }

    async fn call(&self, life_ms: u64) -> Result<bool> {
        let mut call = TOLD.key(&self.key);
        call.key(told_key(self.app)).arg(&self.token).arg(life_ms);
        Ok(call.invoke_async(&mut self.app.redis.commands()).await.context("keeping the right to tell the gates")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_at_once_and_again_when_what_was_under_way_is_over() {
        let now = At::from_ms(1_700_000_000_000);
        assert_eq!(step("", "a", now), Step::Tell(1));
        assert_eq!(step(&TellingRecord::text(2, now, "a b"), "a c", now), Step::Tell(1));
        assert_eq!(step(&TellingRecord::text(1, now, "a b"), "a b", now), Step::Wait);
        assert_eq!(step(&TellingRecord::text(1, now, "a"), "a", now.plus(SETTLED)), Step::Tell(2));
        assert_eq!(step(&TellingRecord::text(2, now, "a"), "a", now.plus(SETTLED * 9)), Step::Nothing);
    }
}
