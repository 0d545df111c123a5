//! Fetching a bill and keeping it, whole or not at all; and how far that is, for who asks.

use crate::payments::{self, BillSubject, Gateway};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::BillId;
use super::bill::{Bill, CheckedLine};
use super::store::bills::{self, NewBill};
use super::store::fetches::{self, Fetcher};
use crate::app::App;
use crate::error::{Error, Kind, Result, retrying};
use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::db::{self, Conn};

/// Who fetches a bill for longer than this is gone.
pub(super) const UNDER_WAY: Duration = Duration::from_secs(3600);
/// How long a bill waits for its turn.
const TURN: Duration = Duration::from_secs(20);
/// Longest reason that is kept, in characters.
const REASON_CHARS: usize = 500;
/// Who stores a bill for longer than this is gone.
const STORING: Duration = Duration::from_secs(3600);
/// How often believing begins again because another process believed one of that day for the first time meanwhile.
const ROUNDS: usize = 3;
/// Useless bills that one pass clears away.
const USELESS: u32 = 64;
/// Lines that one statement deletes, and statements that one bill takes at most in one pass.
const DELETE: u32 = 1000;
const DELETES: usize = 10_000;

/// For whom a bill is fetched.
#[derive(Debug, Clone, Copy)]
pub(super) enum FetchReason {
    /// The schedule, since it is missing.
    Schedule,
    /// A person, whose request the task of this key carries out.
    Task(Uuid),
    /// A person whose task is lost.
    Lost,
}

impl FetchReason {
    fn fetcher(self) -> Fetcher {
        match self {
            Self::Task(key) => Fetcher { key, is_task: true },
            Self::Schedule | Self::Lost => Fetcher { key: Uuid::now_v7(), is_task: false },
        }
    }

    /// Whether the bill is laid beside our books also when it says the same as before.
    fn is_asked(self) -> bool {
        !matches!(self, Self::Schedule)
    }
}

/// What came of fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// It is kept.
    Kept,
    /// This process is at another one, or stops: another time, or elsewhere.
    NotNow,
}

/// A process fetches one bill at a time, whoever asked for it: the longest takes much memory.
struct FetchTurn(Semaphore);

impl Default for FetchTurn {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl FetchTurn {
    /// Waits for its turn; `None`: it did not come in time, or the process stops.
    async fn take(&self, stop: &CancellationToken, longest: Duration) -> Option<SemaphorePermit<'_>> {
        if stop.is_cancelled() {
            return None;
        }
        let turn = stop.run_until_cancelled(tokio::time::timeout(longest, self.0.acquire())).await;
        turn?.ok()?.ok()
    }
}

/// A bill is to be fetched now: the key of who does. While it is under way, asking again joins it.
pub(super) async fn begin(conn: &mut Conn, gateway: Gateway, day: Day, by: FetchReason, now: At) -> Result<Uuid> {
    let since = now.minus(UNDER_WAY);
    fetches::begin(conn, (gateway, day), by.fetcher(), since, now).await.context("asking for a bill")?;
    let begun = fetches::find(conn, gateway, day).await.context("reading what was asked for")?;
    Ok(begun.context("what was asked for vanished")?.task_key)
}

/// Fetches the bill of a day and keeps it, and writes down how that ended. One that is not there yet is refused as
/// `gateway_unavailable`.
pub(super) async fn fetch(app: &App, gateway: Gateway, day: Day, by: FetchReason) -> Result<Fetched> {
    let (place, stop) = (app.local::<FetchTurn>(), app.loops.stop_signal());
    let Some(_turn) = place.take(&stop, TURN).await else { return Ok(Fetched::NotNow) };
    let begun = retrying(|| async { begin(&mut *app.db.acquire().await?, gateway, day, by, app.clock.now()).await });
    let key = begun.await?;
    let fetched = fetch_and_keep(app, gateway, day).await;
    let why = match &fetched {
        // It is tried again, by whoever began it.
        Err(error) if error.kind() == Kind::Unavailable && stop.is_cancelled() => return Ok(Fetched::NotNow),
        Err(error) if error.kind() == Kind::Unavailable => return fetched.map(|()| Fetched::Kept),
        Err(error) => Some(reason(gateway, error)),
        Ok(()) => None,
    };
    let ended = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        if fetched.is_ok() && by.is_asked() {
            // Before it is said to have come: whoever dies between the two has not forgotten to compare it.
            bills::uncompare(&mut conn, gateway, day).await.context("noting a bill to compare")?;
        }
        let ended = fetches::end(&mut conn, (gateway, day), key, why.as_deref(), app.clock.now()).await;
        Ok(ended.context("noting how a bill came")?)
    });
    ended.await?;
    fetched.map(|()| Fetched::Kept)
}

/// Why a bill could not be had, for a person.
pub(super) fn reason(gateway: Gateway, error: &Error) -> String {
    let name = gateway.as_str();
    let why = match error {
        Error::Refused(refusal) if refusal.kind == Kind::GatewayUnavailable => {
            format!("{name} does not answer, or has no bill of that day yet: {}", refusal.cause)
        }
        Error::Refused(refusal) if refusal.kind == Kind::GatewayOff => refusal.detail.clone(),
        error => error.to_string(),
    };
    why.chars().take(REASON_CHARS).collect()
}

async fn fetch_and_keep(app: &App, gateway: Gateway, day: Day) -> Result<()> {
    // Made before the gateway is asked: of two that are fetched at the same time, the later one counts.
    let id = BillId::new();
    let bill = Bill::of(payments::gateway_bill(app, gateway, &day.to_string()).await?)?;
    keep(app, id, (gateway, day), &bill).await
}

async fn keep(app: &App, id: BillId, (gateway, day): (Gateway, Day), bill: &Bill) -> Result<()> {
    let now = app.clock.now();
    let new = NewBill {
        id,
        gateway,
        day,
        payments: bill.sum(BillSubject::Payment)?,
        refunds: bill.sum(BillSubject::Refund)?,
        digest: bill.digest(),
    };
    let mut conn = app.db.acquire().await?;
    let known = bills::believed(&mut conn, gateway, day).await.context("reading a bill")?;
    drop(conn);
    if let Some((known, _)) = known.filter(|(_, digest)| *digest == new.digest) {
        // Another process may be believing or comparing it in this moment.
        let note = || async {
            Ok(bills::mark_checked(&mut *app.db.acquire().await?, known, now).await.context("noting a bill")?)
        };
        return retrying(note).await;
    }
    let begun = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        Ok(bills::begin(&mut conn, &new, now).await.context("beginning a bill")?)
    });
    begun.await?;
    let lines: Vec<(&(BillSubject, String), &CheckedLine)> = bill.lines.iter().collect();
    for batch in lines.chunks(db::CHUNK) {
        let written = retrying(|| async {
            let mut conn = app.db.acquire().await?;
            Ok(bills::insert_lines(&mut conn, id, batch).await.context("writing lines of a bill")?)
        });
        written.await?;
    }
    for _ in 0..ROUNDS {
        if let Some(is_new) = retrying(|| believe(app, &new, now)).await? {
            tracing::info!(
                gateway = gateway.as_str(), bill.day = %day, bill.payments = new.payments.count,
                bill.refunds = new.refunds.count, bill.is_new = is_new, "bill fetched"
            );
            return Ok(());
        }
    }
    Err(anyhow!("bills of {day} keep being believed by others").into())
}

/// Makes a stored bill the one of its day. False: the one that is there says the same, or is a later one; `None`: another
/// process has made one so in this moment.
async fn believe(app: &App, new: &NewBill, now: At) -> Result<Option<bool>> {
    let mut tx = app.db.begin().await?;
    let known = bills::lock_believed(&mut tx, new.gateway, new.day).await.context("locking a bill")?;
    if let Some((known, digest)) = known {
        if known > new.id || digest == new.digest {
            bills::mark_checked(&mut tx, known, now).await.context("noting a bill")?;
            bills::abandon(&mut tx, new.id).await.context("abandoning a bill")?;
            tx.commit().await.context("committing")?;
            return Ok(Some(false));
        }
        bills::replace(&mut tx, known, now).await.context("replacing a bill")?;
    }
    match bills::believe(&mut tx, new.id).await {
        Ok(true) => {}
        Ok(false) => return Err(anyhow!("a bill of {} took too long to store", new.day).into()),
        Err(error) if db::violated(&error).as_deref() == Some("uq_payment_bills_believed") => return Ok(None),
        Err(error) => return Err(Error::Internal(anyhow::Error::new(error).context("believing a bill"))),
    }
    tx.commit().await.context("committing")?;
    Ok(Some(true))
}

/// Clears away the lines of bills that nobody will read: those of a process that is gone, and those that were replaced.
pub(super) async fn clear(app: &App) -> Result<()> {
    let before = app.clock.now().minus(STORING);
    let abandoned = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        Ok(bills::abandon_since(&mut conn, before).await.context("abandoning bills")?)
    });
    abandoned.await?;
    let mut conn = app.db.acquire().await?;
    let useless = bills::useless(&mut conn, USELESS).await.context("looking for useless bills")?;
    drop(conn);
    for bill in useless {
        for _ in 0..DELETES {
            if retrying(|| clear_page(app, bill)).await? {
                break;
            }
        }
    }
    Ok(())
}

/// Clears away lines of a useless bill; true when none is left.
async fn clear_page(app: &App, bill: BillId) -> Result<bool> {
    let mut conn = app.db.acquire().await?;
    let deleted = bills::delete_lines(&mut conn, bill, DELETE).await.context("deleting lines of a bill")?;
    let is_empty = deleted < u64::from(DELETE);
    if is_empty {
        bills::mark_dropped(&mut conn, bill).await.context("noting a bill without lines")?;
        bills::forget(&mut conn, bill).await.context("forgetting a bill")?;
    }
    Ok(is_empty)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_process_fetches_one_bill_at_a_time() {
        let (place, stop) = (FetchTurn::default(), CancellationToken::new());
        let first = place.take(&stop, TURN).await.unwrap();
        let mut second = Box::pin(place.take(&stop, TURN));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn a_bill_does_not_wait_for_its_turn_for_ever_nor_in_a_process_that_stops() {
        let (place, stop) = (FetchTurn::default(), CancellationToken::new());
        let _first = place.take(&stop, TURN).await.unwrap();
        assert!(place.take(&stop, Duration::ZERO).await.is_none());
        let mut waits = Box::pin(place.take(&stop, Duration::MAX));
        assert!((&mut waits).now_or_never().is_none());
        stop.cancel();
        assert!(waits.await.is_none());
        assert!(FetchTurn::default().take(&stop, TURN).await.is_none());
    }
}
