//! The scheduler: the leader of all processes enqueues the tasks of due schedules.
//!
//! For each due schedule, in this order: the tasks of its occurrences are enqueued, each under a key that its
//! occurrence names; then the row moves on, if it is still as it was read ([`occurrence`](super::occurrence)). A leader that
//! dies in between leaves the row due: the next one enqueues the same keys again, which the queue has heard of. So do two
//! leaders at once.
//!
//! The leader works in looks of a page, and without a pause between them while a page was full. What can do without Redis
//! comes first in each look: while Redis is away the others wait, and would stand before it for ever.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use uuid::Uuid;

use super::lease::{ATTEMPT_PERIOD, SchedulerLease};
use super::model::{Definition, Schedule, ScheduleId};
use super::scheduler::{Answers, Present, Scheduler};
use super::store;
use onrush_platform::clock::At;
use onrush_platform::db::retrying;
use onrush_platform::loops::Pulse;

/// The lease of the leader.
const LEASE: &str = "scheduler";
/// The leader looks for due schedules this often.
const TICK: Duration = Duration::from_millis(250);
/// Due schedules of one page.
const PAGE: u32 = 200;
/// A page that takes longer is ended before its end: the lease has to be renewed in between.
const PAGE_TIME: Duration = Duration::from_secs(2);
/// Looks of one pass.
const LOOKS: usize = 1000;
/// What came due while the leader was at work is not missed; but for no longer than this.
const BUSY_FOR: Duration = Duration::from_secs(300);
/// Schedules that were set aside are tried again this often.
const TRY_AGAIN_PERIOD: Duration = Duration::from_secs(60);
/// That a due schedule waits is told this often.
const WAITS_TOLD: Duration = Duration::from_secs(10);
/// A scheduler without a step for this long makes the process not ready.
const STALL_AFTER: Duration = Duration::from_secs(60);

/// What a leader knows of its work from one look to the next.
#[derive(Default)]
struct Work {
    /// Since when there has been more to do than one look does.
    busy_since: Option<At>,
    /// Where the page before ended, of those that can do without Redis and of the others.
    after: [Option<(At, ScheduleId)>; 2],
    /// When the schedules that were set aside were last tried.
    tried: Option<Instant>,
}

impl Work {
    /// Since when somebody has been at it without a break.
    fn since(&mut self, now: At) -> At {
        self.busy_since = self.busy_since.filter(|since| now.since(*since) <= BUSY_FOR);
        self.busy_since.unwrap_or(now)
    }
}

/// What one look came to.
#[derive(Default)]
struct Looked {
    /// Schedules that were due.
    due: usize,
    /// Whether more may be.
    more: bool,
    /// Why one of them is due still.
    failed: Option<anyhow::Error>,
}

impl Scheduler {
    /// Starts the loop. Those of `own` whose names are not there are made first; what is there stays as it is.
    pub fn start(self, own: Vec<Definition>) {
        super::occurrence::prepare_counters(&self.tasks);
        let holder = format!("{}-{}", std::process::id(), Uuid::now_v7().as_simple());
        let (own, loops) = (Arc::new(own), self.loops.clone());
        loops.spawn("scheduler", STALL_AFTER, move |pulse| {
            let (scheduler, own, holder) = (self.clone(), own.clone(), holder.clone());
            async move {
                let ran = scheduler.run(pulse, &own, holder).await;
                scheduler.leads.store(false, Ordering::Relaxed);
                ran
            }
        });
    }

    async fn run(&self, pulse: Pulse, own: &[Definition], holder: String) -> Result<()> {
        // Once, at the start: this loop starts again after every hiccup, and what was deleted since must not come back.
        if !self.made.load(Ordering::SeqCst) {
            self.make_absent(own).await?;
            self.made.store(true, Ordering::SeqCst);
        }
        let (mut lease, mut work) = (SchedulerLease::new(self.db.clone(), LEASE, holder), Work::default());
        while !pulse.stopping() {
            // By a clock that is wrong nothing is done.
            if self.engine.is_held() {
                lease.end().await?;
            }
            let leads = !self.engine.is_held() && lease.hold().await?;
            self.leads.store(leads, Ordering::Relaxed);
            if !leads {
                work = Work::default();
                pulse.beat();
                pulse.sleep(ATTEMPT_PERIOD).await;
                continue;
            }
            let looked = self.look(&mut work).await?;
            pulse.beat();
            self.tell_waiting(looked.failed);
            if !looked.more {
                pulse.sleep(TICK).await;
            }
        }
        lease.end().await
    }

    /// Whether this process led when it last looked: what one of all processes is to do may go by it.
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// Schedules that were set aside, of those that this version knows; a page of them at most.
    pub async fn count_set_aside(&self) -> Result<usize> {
        let mut conn = self.db.acquire().await?;
        store::set_aside_ones(&mut conn, &self.tasks.names(), PAGE).await.map(|aside| aside.len())
    }

    fn tell_waiting(&self, failed: Option<anyhow::Error>) {
        if let Some(error) = failed
            && self.waits.may(self.engine.clock.now(), WAITS_TOLD)
        {
            tracing::warn!(error = format!("{error:#}"), "a schedule that is due waits");
        }
    }

    /// Makes the schedules whose names are not there.
    pub async fn make_absent(&self, own: &[Definition]) -> Result<()> {
        let now = self.engine.clock.now();
        for definition in own {
            let made = retrying(|| async {
                let mut conn = self.db.acquire().await?;
                store::insert(&mut conn, ScheduleId::new(), definition, definition.next_run(now), now).await
            });
            made.await?;
        }
        Ok(())
    }

    /// Enqueues what is due now, as the leader does: page by page until nothing is due. Returns how many schedules were.
    /// What fails stays due and holds up no other.
    pub async fn pass(&self) -> Result<usize> {
        let (mut work, mut due, mut failed) = (Work::default(), 0, None);
        for _ in 0..LOOKS {
            let looked = self.look(&mut work).await?;
            due += looked.due;
            failed = failed.or(looked.failed);
            if !looked.more || self.is_stopping() {
                break;
            }
        }
        failed.map_or(Ok(due), Err)
    }

    fn is_stopping(&self) -> bool {
        self.loops.stop_signal().is_cancelled()
    }

    /// A page of what can do without Redis, and one of the others.
    async fn look(&self, work: &mut Work) -> Result<Looked> {
        self.try_again(work).await?;
        let now = self.engine.clock.now();
        let present = Present { now, since: work.since(now) };
        let (mut answers, mut looked) = (Answers::new(), Looked::default());
        for (names, after) in self.tasks.by_need().iter().zip(&mut work.after) {
            *after = self.page(names, *after, present, &mut answers, &mut looked).await?;
        }
        // Where Redis does not answer, the next page waits for the next tick: its schedules stay due whatever is done.
        looked.more = work.after.iter().any(Option::is_some) && answers.values().all(|there| *there);
        work.busy_since = looked.more.then_some(present.since);
        Ok(looked)
    }

    /// Runs a page of what is due; gives where it ended, when there may be more.
    async fn page(
        &self,
        names: &[&'static str],
        after: Option<(At, ScheduleId)>,
        present: Present,
        answers: &mut Answers,
        looked: &mut Looked,
    ) -> Result<Option<(At, ScheduleId)>> {
        let began = Instant::now();
        let mut conn = self.db.acquire().await?;
        let due = store::due(&mut conn, names, present.now, after, PAGE).await?;
        drop(conn);
        let is_full = due.len() == PAGE as usize;
        let mut last = None;
        for schedule in &due {
            looked.due += 1;
            last = schedule.next_run_at.map(|at| (at, schedule.id));
            if let Err(error) = self.run_due(schedule, present, answers).await {
                looked.failed.get_or_insert(error.context(format!("schedule {}", schedule.definition.name)));
            }
            if self.is_stopping() || began.elapsed() > PAGE_TIME {
                return Ok(last);
            }
        }
        Ok(last.filter(|_| is_full))
    }

    /// Runs one schedule that is due, if its task is known here.
    async fn run_due(&self, schedule: &Schedule, present: Present, answers: &mut Answers) -> Result<()> {
        let (Some(first), Some(task)) = (schedule.next_run_at, self.tasks.get(&schedule.definition.task)) else {
            return Ok(());
        };
        match schedule.definition.timing() {
            Ok(timing) => self.run_occurrences(schedule, task, &timing, first, present, answers).await,
            // Written by hand, or of a zone that the machine's table has no more.
            Err(faults) => self.set_aside(schedule, &faults).await,
        }
    }

    /// Lets schedules go on that were set aside and can be read again.
    async fn try_again(&self, work: &mut Work) -> Result<()> {
        if work.tried.is_some_and(|at| at.elapsed() < TRY_AGAIN_PERIOD) {
            return Ok(());
        }
        let (names, now) = (self.tasks.names(), self.engine.clock.now());
        let mut conn = self.db.acquire().await?;
        let aside = store::set_aside_ones(&mut conn, &names, PAGE).await?;
        drop(conn);
        for schedule in aside.iter().filter(|schedule| schedule.definition.timing().is_ok()) {
            let next = schedule.definition.next_run(now);
            retrying(|| async { store::resume(&mut *self.db.acquire().await?, schedule, next).await }).await?;
            tracing::info!(schedule.name = %schedule.definition.name, "schedule that was set aside goes on");
        }
        work.tried = Some(Instant::now());
        Ok(())
    }
}
