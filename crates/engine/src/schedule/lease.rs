//! One holder at a time among all processes, by a row with a term.
//!
//! It saves work, it does not guard it: a holder that stalls and comes back works beside its successor for a moment,
//! and what is done under a lease must bear that.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::store;
use onrush_platform::db::{Db, retrying};

/// A lease lasts so long; with [`ATTEMPT_PERIOD`] it is how soon another takes over from a holder that died.
const LENGTH: Duration = Duration::from_secs(7);
/// A holder makes it last anew this often.
const RENEW_AFTER: Duration = Duration::from_secs(2);
/// Who does not hold it tries this often.
pub const ATTEMPT_PERIOD: Duration = Duration::from_secs(1);

/// A process's view of one lease.
pub struct SchedulerLease {
    db: Db,
    name: &'static str,
    holder: String,
    /// While it is held: its term, and when it was last made to last.
    held: Option<(i64, Instant)>,
}

impl SchedulerLease {
    /// A lease by its name, and who wants it: a name that no other process has.
    pub fn new(db: Db, name: &'static str, holder: String) -> Self {
        Self { db, name, holder, held: None }
    }

    /// Whether this process holds it now: it is taken when it is free, and renewed in time.
    pub async fn hold(&mut self) -> Result<bool> {
        // Measured from before the statement, by a clock that does not jump.
        let asked = Instant::now();
        if let Some((term, renewed)) = self.held {
            if renewed.elapsed() < RENEW_AFTER {
                return Ok(true);
            }
            let renewed = retrying(|| async {
                let mut conn = self.db.acquire().await?;
                store::renew_lease(&mut conn, self.name, &self.holder, term, LENGTH).await
            });
            if renewed.await? {
                self.held = Some((term, asked));
                return Ok(true);
            }
            self.held = None;
            tracing::info!(lease = self.name, term, "lease was taken by another process");
        }
        if let Some(term) = retrying(|| self.take()).await? {
            tracing::info!(lease = self.name, term, "lease taken");
            self.held = Some((term, asked));
        }
        Ok(self.held.is_some())
    }

    /// Its term, if it was free. Processes that want it meet here.
    async fn take(&self) -> Result<Option<i64>> {
        let mut conn = self.db.acquire().await?;
        store::make_lease(&mut conn, self.name).await?;
        if !store::take_lease(&mut conn, self.name, &self.holder, LENGTH).await? {
            return Ok(None);
        }
        store::lease_term(&mut conn, self.name, &self.holder).await
    }

    /// Gives it up, if it is held.
    pub async fn end(&mut self) -> Result<()> {
        if let Some((term, _)) = self.held.take() {
            let ended = retrying(|| async {
                let mut conn = self.db.acquire().await?;
                store::end_lease(&mut conn, self.name, &self.holder, term).await
            });
            ended.await?;
        }
        Ok(())
    }
}
