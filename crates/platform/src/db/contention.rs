//! What a transaction does that another one was in the way of: it waits a moment and begins again.
//!
//! Those that met once meet again when they begin again at the same moment, so each waits for a time of its own. The
//! server lets one of them through each time, so few runs are enough; where many meet on one row, it takes more.

use std::time::{Duration, Instant};

use uuid::Uuid;

/// Runs of one transaction, at most.
const RUNS_MAX: u32 = 10;
/// No run begins later than this after the first one. A run may wait for a lock for as long as the server lets it.
const PATIENCE: Duration = Duration::from_secs(8);
/// The longest pause before the second run; it doubles.
const PAUSE: Duration = Duration::from_millis(4);
/// The longest pause of all.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How often one transaction has been run, and for how long.
#[derive(Debug)]
pub struct Meetings {
    started: Instant,
    runs: u32,
}

impl Default for Meetings {
    fn default() -> Self {
        Self { started: Instant::now(), runs: 1 }
    }
}

impl Meetings {
    /// The transaction met another one: pauses, unless it has been run often enough, and says whether it may run again.
    pub async fn run_again(&mut self) -> bool {
        let pause = pause(self.runs, Uuid::now_v7().as_u64_pair().1);
        if self.runs >= RUNS_MAX || self.started.elapsed() + pause > PATIENCE {
            return false;
        }
        self.runs += 1;
        tokio::time::sleep(pause).await;
        true
    }

    /// How often it was run.
    pub fn runs(&self) -> u32 {
        self.runs
    }
}

/// The pause after so many runs: anything up to a bound that doubles. `random` is uniform in its low bits.
fn pause(runs: u32, random: u64) -> Duration {
    let bound = PAUSE.saturating_mul(1 << runs.saturating_sub(1).min(16)).min(PAUSE_MAX);
    let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    // The high bits of this half of an id are its variant's, and the same in all.
    Duration::from_micros((random & 0xffff_ffff) % micros.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_is_short_at_first_and_never_long(runs in 1u32..1000, random: u64) {
            prop_assert!(pause(1, random) <= PAUSE);
            prop_assert!(pause(runs, random) <= PAUSE_MAX);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_served_names_the_statement_the_error_and_where_it_was_run() {
        let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        let run = || async move { Err::<(), _>(anyhow::Error::from(lost()).context("closing a payment")) };
        let error = format!("{:#}", crate::db::retrying(run).await.unwrap_err());
        for part in ["contention.rs:", "closing a payment", "connection reset"] {
            assert!(error.contains(part), "{error}");
        }
        let refused = crate::db::retrying(|| async { Err::<(), _>(anyhow::anyhow!("no")) }).await;
        assert_eq!(format!("{:#}", refused.unwrap_err()), "no");
    }

    #[tokio::test]
    async fn a_transaction_is_run_a_bounded_number_of_times() {
        let mut meetings = Meetings::default();
        while meetings.run_again().await {}
        assert_eq!(meetings.runs(), RUNS_MAX);
    }
}
