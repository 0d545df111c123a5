//! Loops that run for as long as the process does: restarted when they fail or panic, watched for progress, stopped
//! between two steps and never inside one.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A loop that failed starts again after this long, doubling up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause between two starts of a failing loop.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// All loops of the process; cheap to clone.
#[derive(Clone, Default)]
pub struct Loops {
    leaving: Arc<AtomicBool>,
    stop: CancellationToken,
    tracker: TaskTracker,
    beats: Arc<Mutex<BTreeMap<String, Beat>>>,
}

#[derive(Clone)]
struct Beat {
    /// Which loop of this name: an old one that is still ending does not speak for its successor.
    generation: u64,
    at: Instant,
    stall_after: Duration,
    last_error: Option<String>,
}

/// What a step fails with that has done all else it had to do, as the error's outermost context: it counts as a step, and
/// the next one comes at its time.
#[derive(Debug)]
pub struct Partly(pub String);

impl std::fmt::Display for Partly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `/readyz` shows of a loop.
#[derive(Debug, Clone, serde::Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LoopHealth {
    /// The loop's name.
    pub name: String,
    /// Milliseconds since it last made a step.
    pub since_step_ms: u64,
    /// Whether that is longer than it may take.
    pub stalled: bool,
    /// Why it last failed, until it makes a step again.
    pub last_error: Option<String>,
}

/// What metrics call a loop of this name. The loops of activities share one, or there would be a series for each activity
/// that there ever was.
pub fn shared_name(name: &str) -> &str {
    name.split_once('/').map_or(name, |(shared, _)| shared)
}

/// What a loop's body holds: it tells of each step and learns when to stop.
#[derive(Clone)]
pub struct Pulse {
    name: String,
    generation: u64,
    stop: CancellationToken,
    beats: Arc<Mutex<BTreeMap<String, Beat>>>,
}

impl Pulse {
    /// A step was made.
    pub fn beat(&self) {
        self.made(None);
    }

    /// A step is under way and goes on; what the last one failed with is still to be shown.
    pub fn progress(&self) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(beat) = beats.get_mut(&self.name).filter(|beat| beat.generation == self.generation) {
            beat.at = Instant::now();
        }
    }

    /// A step was made, but for a part of it.
    fn made(&self, error: Option<String>) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(beat) = beats.get_mut(&self.name).filter(|beat| beat.generation == self.generation) {
            beat.at = Instant::now();
            beat.last_error = error;
        }
    }

    /// Whether the loop must end after this step.
    pub fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Ends when the loop must stop. Only for `select!` against sleeps and Redis reads, never against a sqlx future.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Sleeps, or ends early when the loop must stop.
    pub async fn sleep(&self, length: Duration) {
        tokio::select! {
            () = tokio::time::sleep(length) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

impl Loops {
    /// Starts a loop. `body` runs until it returns or panics and is then started again, unless stopping; a loop that
    /// makes no step for `stall_after` makes the process not ready.
    pub fn spawn<F, Fut>(&self, name: impl Into<String>, stall_after: Duration, body: F)
    where
        F: Fn(Pulse) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.spawn_until(name, stall_after, self.stop.clone(), body);
    }

    /// As [`Loops::spawn`], with a stop signal of its own: a child of [`Loops::stop_signal`], or the loop outlives a stop.
    pub fn spawn_until<F, Fut>(&self, name: impl Into<String>, stall_after: Duration, stop: CancellationToken, body: F)
    where
        F: Fn(Pulse) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = name.into();
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        let pulse = Pulse { name: name.clone(), generation, stop, beats: self.beats.clone() };
        let beat = Beat { generation, at: Instant::now(), stall_after, last_error: None };
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), beat);
        self.tracker.spawn(supervise(pulse, body));
    }

    /// Starts a loop that runs `step` every `period`, the first time at once. A failed step is logged and tried again
    /// after a pause that grows up to [`MAX_BACKOFF`]; one that failed [`Partly`] is shown, and goes on with its period.
    pub fn every<F, Fut>(&self, name: impl Into<String>, period: Duration, step: F)
    where
        F: Fn(Pulse) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stall_after = period * 3 + Duration::from_secs(30);
        self.spawn(name, stall_after, move |pulse| {
            let step = step.clone();
            async move {
                while !pulse.stopping() {
                    match step(pulse.clone()).await {
                        Ok(()) => pulse.beat(),
                        Err(error) if error.is::<Partly>() => pulse.made(Some(format!("{error:#}"))),
                        Err(error) => return Err(error),
                    }
                    pulse.sleep(period).await;
                }
                Ok(())
            }
        });
    }

    /// The process will stop soon: it says that it is not ready, and goes on.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether the process stops, or will soon.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.stop.is_cancelled()
    }

    /// Cancelled when the process begins to stop.
    pub fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tracks a task that must end before the process does.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Tells every loop to stop and waits until they have, at most `deadline`; false when some had not.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }

    /// The state of every loop.
    pub fn health(&self) -> Vec<LoopHealth> {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let health = |(name, beat): (&String, &Beat)| {
            let since = beat.at.elapsed();
            LoopHealth {
                name: name.clone(),
                since_step_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
                stalled: since > beat.stall_after,
                last_error: beat.last_error.clone(),
            }
        };
        beats.iter().map(health).collect()
    }
}

/// That a loop fails for the same reason is told once in so long.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

async fn supervise<F, Fut>(pulse: Pulse, body: F)
where
    F: Fn(Pulse) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (mut backoff, mut told) = (MIN_BACKOFF, None::<(String, Instant)>);
    while !pulse.stopping() {
        let started = Instant::now();
        // A task of its own: a panic ends it, not the supervisor.
        let error = match tokio::spawn(body(pulse.clone())).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(panic.to_string()),
        };
        if started.elapsed() > MAX_BACKOFF {
            backoff = MIN_BACKOFF;
        }
        if let Some(error) = error {
            metrics::counter!("onrush_loop_failures_total", "loop" => shared_name(&pulse.name).to_owned()).increment(1);
            // While a server is away every loop fails, again and again: the line that says why must not be lost among theirs.
            if told.as_ref().is_none_or(|(before, at)| *before != error || at.elapsed() > TOLD_AGAIN) {
                tracing::warn!(loop.name = %pulse.name, error, "loop failed and starts again");
                told = Some((error.clone(), Instant::now()));
            } else {
                tracing::debug!(loop.name = %pulse.name, error, "loop failed and starts again");
            }
            let mut beats = pulse.beats.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(beat) = beats.get_mut(&pulse.name).filter(|beat| beat.generation == pulse.generation) {
                beat.last_error = Some(error);
            }
        }
        if !pulse.stopping() {
            pulse.sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
    let mut beats = pulse.beats.lock().unwrap_or_else(PoisonError::into_inner);
    if beats.get(&pulse.name).is_some_and(|beat| beat.generation == pulse.generation) {
        beats.remove(&pulse.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[tokio::test]
    async fn a_step_that_failed_in_part_is_shown_and_is_a_step() {
        let loops = Loops::default();
        loops.every("test", Duration::from_millis(1), |_| async {
            Err(anyhow::anyhow!("no").context(Partly("1 of 2".to_owned())))
        });
        let shown = || loops.health().into_iter().find_map(|found| found.last_error);
        while shown().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(shown().as_deref(), Some("1 of 2: no"));
        // A step makes the time since the last one shorter.
        let a_step = async {
            let mut before = 0;
            while before <= loops.health()[0].since_step_ms {
                before = loops.health()[0].since_step_ms;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), a_step).await.expect("a step");
        assert!(loops.stop(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn a_loop_that_fails_or_panics_starts_again() {
        let loops = Loops::default();
        let (runs, third) = (Arc::new(AtomicU32::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (counted, reached) = (runs.clone(), third.clone());
        loops.spawn("test", Duration::from_secs(60), move |pulse| {
            let (runs, reached) = (counted.clone(), reached.clone());
            async move {
                match runs.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("first run panics"),
                    1 => anyhow::bail!("second run fails"),
                    _ => {
                        reached.notify_one();
                        pulse.stopped().await;
                        Ok(())
                    }
                }
            }
        });
        third.notified().await;
        assert!(loops.stop(Duration::from_secs(10)).await);
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        assert!(loops.health().is_empty());
    }
}
