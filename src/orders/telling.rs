//! Telling the queues of what was committed, beside the answer to whoever had it done.
//!
//! The committed rows say what is owed and the passes find it, so nobody need wait until Redis has heard of it: one that
//! hangs would cost each order as long as an answer of it may take. What is told at once is bounded, and so is what waits
//! while Redis hangs; an order more is left to the passes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::app::App;
use crate::platform::seldom::Seldom;

/// What one process tells at once, at most.
const AT_ONCE: usize = 1024;
/// That queues could not be told is told once in so long.
const TOLD_PAUSE: Duration = Duration::from_secs(10);

struct Telling {
    places: Arc<Semaphore>,
    told: Seldom,
}

impl Default for Telling {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), told: Seldom::default() }
    }
}

/// Runs `telling` in a task that the process waits for when it stops. What is told must be owed by committed rows.
pub fn tell<F>(app: &App, telling: F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let Ok(place) = app.local::<Telling>().places.clone().try_acquire_owned() else {
        left_to_the_passes(app, &anyhow::anyhow!("{AT_ONCE} are being told already"));
        return;
    };
    let telling_app = app.clone();
    let task = async move {
        if let Err(error) = telling.await {
            left_to_the_passes(&telling_app, &error);
        }
        drop(place);
    };
    app.loops.tracker().spawn(task.in_current_span());
}

fn left_to_the_passes(app: &App, error: &anyhow::Error) {
    metrics::counter!("onrush_announcements_left_total").increment(1);
    if app.local::<Telling>().told.may(app.clock.now(), TOLD_PAUSE) {
        tracing::warn!(error = format!("{error:#}"), "queues could not be told; the passes will find what is owed");
    }
}
