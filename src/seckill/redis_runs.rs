//! Which runs of Redis have served, and whether the gates were told what that run may have forgotten.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;

use crate::app::App;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::id::Id;

/// A process that has seen no other run of Redis before puts back what came back in so long.
const UNSEEN: Duration = Duration::from_secs(3600);

/// What this process has seen of the runs of Redis.
#[derive(Default)]
pub struct Seen(Mutex<Look>);

#[derive(Default)]
struct Look {
    run: String,
    /// When it was looked last.
    at: Option<At>,
    /// Units that came back since then may have been forgotten by this run.
    forgotten_since: Option<At>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Look> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when units that came back may have been forgotten by the run that serves, and so much `earlier`: what was noted
    /// then may have been on its way.
    pub fn look(&self, run: &str, all_told: bool, now: At, earlier: Duration) -> At {
        let mut look = self.lock();
        if look.run != run || look.forgotten_since.is_none() {
            look.forgotten_since = Some(look.at.unwrap_or(now.minus(UNSEEN)));
            run.clone_into(&mut look.run);
        }
        if all_told {
            look.forgotten_since = Some(now);
        }
        look.at = Some(now);
        look.forgotten_since.unwrap_or(now).minus(earlier)
    }
}

/// Which run was told, as the key says it: `<how often> <when, ms> <run>`.
pub struct TellingRecord {
    /// How often.
    pub times: u8,
    /// When.
    pub at: At,
    /// Which run.
    pub run: String,
}

impl TellingRecord {
    /// What the key holds.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let (times, at, run) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        Some(Self { times, at: At::from_ms(at), run: run.to_owned() })
    }

    /// As the key holds it.
    pub fn text(times: u8, at: At, run: &str) -> String {
        format!("{times} {} {run}", at.ms())
    }
}

/// Which run of Redis served when this process looked last.
pub fn run_seen(app: &App) -> String {
    app.local::<Seen>().lock().run.clone()
}

/// Has everything told once more, also where it is being told now: a gate was built anew, and knows of no refund.
pub async fn owe(app: &App) -> Result<()> {
    let owed = TellingRecord::text(0, app.clock.now(), &Id::<()>::new().to_string());
    let forget = redis::cmd("SET").arg(told_key(app)).arg(owed).to_owned();
    Ok(forget.query_async(&mut app.redis.commands()).await.context("having the gates told")?)
}

/// What was told, as the key says it; nothing when there is none.
pub async fn told(app: &App) -> Result<String> {
    let read = redis::cmd("GET").arg(told_key(app)).to_owned();
    let text: Option<String> = read.query_async(&mut app.redis.commands()).await.context("reading what was told")?;
    Ok(text.unwrap_or_default())
}

/// Its hash tag is no queue's name.
pub fn told_key(app: &App) -> String {
    format!("{}:{{.gates}}:told", app.redis.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: Duration = Duration::from_secs(7);

    #[test]
    fn units_that_came_back_since_the_last_look_at_the_former_run_may_be_forgotten() {
        let (seen, start) = (Seen::default(), At::from_ms(1_700_000_000_000));
        let at = |s| start.plus(Duration::from_secs(s));
        assert_eq!(seen.look("a", false, at(0), EARLIER), start.minus(UNSEEN).minus(EARLIER));
        assert_eq!(seen.look("a", false, at(5), EARLIER), start.minus(UNSEEN).minus(EARLIER));
        assert_eq!(seen.look("a", true, at(60), EARLIER), at(60).minus(EARLIER));
        // Away for an hour, and then another one; for as long as it was not told, the instant stays.
        assert_eq!(seen.look("b", false, at(3660), EARLIER), at(60).minus(EARLIER));
        assert_eq!(seen.look("b", false, at(3700), EARLIER), at(60).minus(EARLIER));
        assert_eq!(seen.look("b", true, at(3800), EARLIER), at(3800).minus(EARLIER));
    }
}
