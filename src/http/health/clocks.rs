//! This machine's clock, held against those of MySQL and Redis.
//!
//! When a sale opens is decided by Redis' clock, and an order is timed out when MySQL's clock agrees: a machine whose
//! clock is wrong decides neither alone. What it writes with its own clock (deadlines, due times) is wrong all the same, so
//! a process that is too far off takes no work and is not ready until its clock is right again.
//!
//! It is this machine that is wrong when both servers say so, or the only one that answers. Where they differ from each
//! other no machine can be right, and nothing would be gained by stopping all of them: that is told loudly, and work goes on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::app::App;
use crate::platform::clock::{At, Clock};
use crate::platform::db;
use crate::platform::loops::Pulse;
use crate::platform::seldom::Seldom;

/// The clocks are compared this often.
const PERIOD: Duration = Duration::from_secs(2);
/// What a server said holds for so long: it may be away since.
const HOLDS_FOR: Duration = Duration::from_secs(30);
/// A difference beyond this is told.
const TOLD_ABOVE_MS: i64 = 500;
/// With one beyond this a process does nothing that a clock decides.
const STOPS_ABOVE_MS: i64 = 2_000;
/// It is told once in so long.
const TOLD_PAUSE: Duration = Duration::from_secs(60);

/// How far this machine's clock was ahead of each server's when it answered last, in milliseconds; behind is negative.
#[derive(Default)]
struct Offsets {
    mysql: Offset,
    redis: Offset,
    told: Seldom,
}

#[derive(Default)]
struct Offset(Mutex<Option<(i64, Instant)>>);

impl Offset {
    fn note(&self, ahead_ms: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((ahead_ms, Instant::now()));
    }

    fn known(&self) -> Option<i64> {
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.filter(|(_, at)| at.elapsed() < HOLDS_FOR).map(|(ahead_ms, _)| ahead_ms)
    }
}

/// What two offsets come to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    /// This machine's clock is ahead by at least so much, in milliseconds; behind is negative.
    Off(i64),
    /// The servers' clocks differ from each other, MySQL's being ahead by so much.
    ServersDiffer(i64),
}

fn judge(mysql: Option<i64>, redis: Option<i64>) -> Verdict {
    match (mysql, redis) {
        // First: a slow answer tells less of a difference than there is, so that two that agree seem to differ.
        (Some(mysql), Some(redis))
            if mysql.signum() == redis.signum() && mysql.abs().min(redis.abs()) > TOLD_ABOVE_MS =>
        {
            off(if mysql.abs() < redis.abs() { mysql } else { redis })
        }
        (Some(mysql), Some(redis)) if (redis - mysql).abs() > TOLD_ABOVE_MS => Verdict::ServersDiffer(redis - mysql),
        (Some(_), Some(_)) => Verdict::Right,
        (Some(ahead_ms), None) | (None, Some(ahead_ms)) => off(ahead_ms),
        (None, None) => Verdict::Right,
    }
}

fn off(ahead_ms: i64) -> Verdict {
    if ahead_ms.abs() > TOLD_ABOVE_MS { Verdict::Off(ahead_ms) } else { Verdict::Right }
}

impl Verdict {
    fn stops(&self) -> bool {
        matches!(self, Self::Off(ahead_ms) if ahead_ms.abs() > STOPS_ABOVE_MS)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whose, whom, ahead_ms) = match self {
            Self::Right => return f.write_str("ok"),
            Self::Off(ahead_ms) => ("this machine's clock", "those of the servers", *ahead_ms),
            Self::ServersDiffer(ahead_ms) => ("MySQL's clock", "that of Redis", *ahead_ms),
        };
        let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
        write!(f, "{whose} is {:.1} s {direction} {whom}", ahead_ms.abs() as f64 / 1000.0)
    }
}

/// Compares from now on, once before anything is done that a clock decides.
pub async fn start(app: &App) {
    compare(app).await;
    let compared = app.clone();
    app.loops.every("clocks", PERIOD, move |_: Pulse| {
        let app = compared.clone();
        async move {
            compare(&app).await;
            Ok(())
        }
    });
}

/// Whether this machine's clock is right enough to work by; in words, where it is not.
pub fn is_right(app: &App) -> Result<(), String> {
    let offsets = app.local::<Offsets>();
    let verdict = judge(offsets.mysql.known(), offsets.redis.known());
    if verdict.stops() { Err(verdict.to_string()) } else { Ok(()) }
}

/// One look at both. That a server does not answer is told elsewhere.
async fn compare(app: &App) {
    let offsets = app.local::<Offsets>();
    let mysql = async { db::server_time(&app.db).await.context("asking MySQL for the time") };
    if let Ok(ahead_ms) = ahead(&app.clock, mysql).await {
        offsets.mysql.note(ahead_ms);
    }
    if let Ok(ahead_ms) = ahead(&app.clock, redis_time(app)).await {
        offsets.redis.note(ahead_ms);
    }
    let known = [("mysql", offsets.mysql.known()), ("redis", offsets.redis.known())];
    for (server, ahead_ms) in known {
        metrics::gauge!("onrush_clock_skew_seconds", "server" => server).set(ahead_ms.unwrap_or(0) as f64 / 1000.0);
    }
    let [(_, mysql), (_, redis)] = known;
    let verdict = judge(mysql, redis);
    if verdict != Verdict::Right && offsets.told.may(since_start(), TOLD_PAUSE) {
        tracing::error!(takes_work = !verdict.stops(), "{verdict}: see to the time service (NTP) of that machine");
    }
    app.engine.hold(verdict.stops());
}

/// A time by a clock that nobody sets, for [`Seldom`], which compares such times with each other alone.
fn since_start() -> At {
    static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    At::from_ms(1).plus(BEGAN.elapsed())
}

/// How far this clock is ahead of a server's, at least: its answer took some time, and was made somewhere within it.
async fn ahead(clock: &Clock, asking: impl Future<Output = anyhow::Result<At>>) -> anyhow::Result<i64> {
    let now = || clock.now().ms() - clock.shift_ms();
    let before = now();
    let theirs = asking.await?.ms();
    Ok(at_least(before - theirs, now() - theirs))
}

/// Of two bounds of a difference, the one that is nearer to none; none when it may be either way.
fn at_least(from: i64, to: i64) -> i64 {
    if from > 0 { from } else { to.min(0) }
}

async fn redis_time(app: &App) -> anyhow::Result<At> {
    let (seconds, micros): (i64, i64) =
        redis::cmd("TIME").query_async(&mut app.redis.commands()).await.context("asking Redis for the time")?;
    Ok(At::from_ms(seconds * 1000 + micros / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_difference() {
        assert_eq!(at_least(-300, 700), 0);
        assert_eq!(at_least(100, 700), 100);
        assert_eq!(at_least(-700, -100), -100);
    }

    #[test]
    fn a_machine_is_wrong_when_both_servers_say_so_and_none_when_they_differ() {
        assert_eq!(judge(Some(30), Some(-400)), Verdict::Right);
        assert_eq!(judge(Some(1_200_040), Some(1_200_300)), Verdict::Off(1_200_040));
        assert!(judge(Some(-2_100), Some(-2_300)).stops() && judge(None, Some(2_100)).stops());
        assert!(!judge(Some(1_900), Some(2_300)).stops() && !judge(None, None).stops());
        // One of the two answered slowly.
        assert_eq!(judge(Some(1_197_500), Some(1_200_300)), Verdict::Off(1_197_500));
        // One server is wrong, and all machines would stop.
        assert_eq!(judge(Some(0), Some(5_000)), Verdict::ServersDiffer(5_000));
        assert!(!judge(Some(0), Some(5_000)).stops());
        assert_eq!(
            judge(Some(1_200_040), None).to_string(),
            "this machine's clock is 1200.0 s ahead of those of the servers"
        );
        assert_eq!(judge(Some(3_000), Some(0)).to_string(), "MySQL's clock is 3.0 s behind that of Redis");
    }
}
