//! Tasks that are believed to be on their way and are nowhere: somebody deleted a stream, or what was in it. Nobody would
//! ever run them, and whoever waits for one, or may not enqueue another of its key, would wait for ever. They are looked for
//! and cleared: `lost.lua` says when one is lost.
//!
//! All that may be lost has a field in the queue's meta, or an envelope. There may be hundreds of thousands of them, so the
//! search goes round page by page. It goes slowly as long as the counters agree with what the queue holds, and quickly when
//! they do not. The place where it is lies in this process: another one begins its own round.

use std::time::{Duration, Instant};

use anyhow::Context;
use redis::Value;

use super::super::client::{Engine, millis};
use super::super::keys::{GROUP, Keys};
use super::super::scripts;
use super::Partition;
use onrush_platform::loops::Pulse;

/// A look comes this often.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// And this often while something is known to be missing.
const HURRY_PERIOD: Duration = Duration::from_secs(1);
/// A task is not looked for before it has been in its stream for so long.
const GRACE: Duration = Duration::from_secs(10);
/// A worker that has given no sign for so many leases does not end what it read.
const GONE_LEASES: u32 = 3;
/// Fields of one page.
const PAGE: usize = 500;
/// Pages of one look while something is missing; else one.
const PAGES_IN_A_HURRY: usize = 20;
/// Tasks that one script call looks at, so that none holds up Redis for long.
pub(super) const CHUNK: usize = 100;
/// What was cleared is told when nothing is missing any more, or so long after the first of it.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// How far the search has come.
#[derive(Default)]
pub(super) struct Search {
    looked: Option<Instant>,
    /// Since when the counters and the queue differ.
    amiss: Option<Instant>,
    /// When this round began.
    began: Option<Instant>,
    round: Round,
    /// Cleared and not told yet, and since when.
    untold: Option<(u64, Instant)>,
}

/// Where a round is, by the cursor of `HSCAN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Fields(u64),
    Envelopes(u64),
}

impl Default for Round {
    fn default() -> Self {
        Self::Fields(0)
    }
}

/// What a call of the script says.
pub(super) struct Books {
    /// Tasks that were lost.
    pub cleared: u64,
    /// Tasks that the counters have in the streams and the streams have not.
    missing: i64,
    /// Envelopes that nothing waits for.
    orphans: i64,
}

impl Books {
    fn are_amiss(&self) -> bool {
        self.missing > 0 || self.orphans > 0
    }
}

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    /// A bounded part of the search, when it is time for one. In a quiet queue no task waits for its time.
    pub(super) async fn look_for_lost(&self, search: &mut Search, quiet: bool, pulse: &Pulse) -> anyhow::Result<()> {
        let period = if search.amiss.is_some() { HURRY_PERIOD } else { LOOK_PERIOD };
        if search.looked.is_some_and(|at| at.elapsed() < period) {
            return Ok(());
        }
        search.looked = Some(Instant::now());
        let books = match quiet && self.all_have_left().await? {
            true => Books { cleared: 0, missing: 0, orphans: 0 },
            false => self.clear(&[], false).await?,
        };
        if !books.are_amiss() {
            search.amiss = None;
        } else if search.amiss.is_none() {
            (search.amiss, search.round, search.began) = (Some(Instant::now()), Round::default(), None);
        }
        let pages = if search.amiss.is_some() { PAGES_IN_A_HURRY } else { 1 };
        for _ in 0..pages {
            if pulse.stopping() || self.next_page(search, books.orphans > 0).await? {
                break;
            }
            pulse.beat();
        }
        self.tell_cleared(search);
        Ok(())
    }

    /// Whether every task that entered a stream has left it, by the counters.
    async fn all_have_left(&self) -> anyhow::Result<bool> {
        let mut asked = redis::cmd("HMGET");
        asked.arg(self.keys.meta()).arg("seq").arg("done");
        let (entered, left): (Option<i64>, Option<i64>) =
            asked.query_async(&mut self.worker.engine.redis.commands()).await.context("reading a queue's counters")?;
        Ok(entered.unwrap_or(0) <= left.unwrap_or(0))
    }

    /// Clears what is lost among the next fields; true at the end of a round.
    async fn next_page(&self, search: &mut Search, with_envelopes: bool) -> anyhow::Result<bool> {
        let began = *search.began.get_or_insert_with(Instant::now);
        let (hash, cursor) = match search.round {
            Round::Fields(cursor) => (self.keys.meta(), cursor),
            Round::Envelopes(cursor) => (self.keys.envelopes(), cursor),
        };
        let (next, suspects) = tasks_in(&self.worker.engine, &hash, cursor).await?;
        self.clear_and_note(search, &suspects).await?;
        search.round = match (search.round, next) {
            (Round::Fields(_), 0) if with_envelopes => Round::Envelopes(0),
            (_, 0) => Round::default(),
            (Round::Fields(_), next) => Round::Fields(next),
            (Round::Envelopes(_), next) => Round::Envelopes(next),
        };
        let is_over = search.round == Round::default();
        if is_over {
            search.began = None;
            // All were old enough in this round, so what differs still is nobody's field.
            if search.amiss.is_some_and(|since| began > since + GRACE + HURRY_PERIOD) {
                self.clear(&[], true).await?;
            }
        }
        Ok(is_over)
    }

    async fn clear_and_note(&self, search: &mut Search, suspects: &[String]) -> anyhow::Result<()> {
        for chunk in suspects.chunks(CHUNK) {
            let cleared = self.clear(chunk, false).await?.cleared;
            if cleared > 0 {
                self.count_lost(cleared);
                search.untold.get_or_insert((0, Instant::now())).0 += cleared;
            }
        }
        Ok(())
    }

    fn count_lost(&self, tasks: u64) {
        metrics::counter!("onrush_tasks_lost_total", "queue" => self.queue.base().to_owned()).increment(tasks);
    }

    fn tell_cleared(&self, search: &mut Search) {
        let Some((tasks, since)) = search.untold else { return };
        if search.amiss.is_none() || since.elapsed() >= TOLD_AFTER {
            search.untold = None;
            tracing::error!(queue = %self.queue, tasks, "tasks were lost: they were in no stream and with no worker any more; \
                what MySQL owes is enqueued again");
        }
    }

    /// Tasks that were due, and of which nobody knows what was to be run.
    pub(super) async fn clear_hollow(&self, hollow: &[String]) -> anyhow::Result<()> {
        if hollow.is_empty() {
            return Ok(());
        }
        self.count_lost(hollow.len() as u64);
        tracing::error!(queue = %self.queue, tasks = hollow.len(), "tasks were lost: they were due, and had no envelope any more; \
            what MySQL owes is enqueued again");
        let tasks: Vec<String> = hollow.iter().filter_map(|key| task_key(key.clone().into_bytes())).collect();
        for chunk in tasks.chunks(CHUNK) {
            self.clear(chunk, false).await?;
        }
        Ok(())
    }

    /// Clears those of these tasks that are lost, and with `settle` whatever else the counters have too many.
    async fn clear(&self, tasks: &[String], settle: bool) -> anyhow::Result<Books> {
        let how = if settle { LostMode::ClearAndSettle } else { LostMode::Clear };
        look_through(&self.worker.engine, &self.keys, tasks, how).await.context("clearing lost tasks")
    }
}

/// What is done about tasks that are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LostMode {
    /// They are counted.
    Look,
    /// They are cleared.
    Clear,
    /// And whatever else the counters have too many.
    ClearAndSettle,
}

/// Looks whether these tasks are lost.
pub(super) async fn look_through(
    engine: &Engine,
    keys: &Keys,
    tasks: &[String],
    how: LostMode,
) -> anyhow::Result<Books> {
    let mut call = scripts::LOST.prepare_invoke();
    call.key(keys.stream()).key(keys.meta()).key(keys.delayed()).key(keys.envelopes()).key(keys.revoked());
    call.arg(GROUP).arg(millis(GRACE)).arg(millis(GRACE.max(engine.settings.lease * GONE_LEASES)));
    call.arg(keys.done()).arg(match how {
        LostMode::Look => "look",
        LostMode::Clear => "0",
        LostMode::ClearAndSettle => "1",
    });
    for task in tasks {
        call.key(keys.task(task)).key(keys.once(task)).arg(task);
    }
    call.key(keys.absent());
    let (cleared, missing, orphans) = call.invoke_async(&mut engine.redis.commands()).await?;
    Ok(Books { cleared, missing, orphans })
}

/// Keys of tasks among the fields of a hash from a place on, and where to go on; 0 at the end.
pub(super) async fn tasks_in(engine: &Engine, hash: &str, cursor: u64) -> anyhow::Result<(u64, Vec<String>)> {
    let mut scan = redis::cmd("HSCAN");
    scan.arg(hash).arg(cursor).arg("COUNT").arg(PAGE);
    // Values are not looked at here: somebody may have written anything.
    let (next, fields): (u64, Vec<(Vec<u8>, Value)>) =
        scan.query_async(&mut engine.redis.commands()).await.context("looking for lost tasks")?;
    Ok((next, fields.into_iter().filter_map(|(name, _)| task_key(name)).collect()))
}

/// A task's key, of the fields of a hash that also holds other things.
fn task_key(name: Vec<u8>) -> Option<String> {
    let is_key = name.len() == 32 && name.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    String::from_utf8(name).ok().filter(|_| is_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_with_the_name_of_a_task_are_looked_at() {
        let key = "01936f3c7a3b70008000000000000001";
        assert_eq!(task_key(key.as_bytes().to_vec()).as_deref(), Some(key));
        for other in [
            "seq",
            "done",
            "overtaken:3",
            "owners",
            "u01936f3c7a3b70008000000000000001",
            "01936F3C7A3B70008000000000000001",
        ] {
            assert_eq!(task_key(other.as_bytes().to_vec()), None, "{other}");
        }
        assert_eq!(task_key(vec![0xff; 32]), None);
    }
}
