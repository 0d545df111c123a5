//! Each activity by itself: a gate that cannot be read, or whose node of a cluster is away, holds up no other one.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;

use super::model::ActivityId;
use crate::app::App;
use crate::error::{Error, Kind, Result};
use crate::platform::loops::Partly;
use crate::platform::seldom::Seldom;

/// Activities worked at at once.
const AT_ONCE: usize = 8;
/// Of the activities that failed last time, a pass tries so many, those first that have waited longest: each may take as
/// long as Redis may take to answer.
const TRIED_AGAIN: usize = 8;
/// When so many have failed and none went well, or Redis gave no answer about so many, the rest of a pass is not tried: it is
/// not the activities' fault, and each takes as long as Redis may take. The rest is tried first by the next pass.
const HOPELESS: usize = 2 * AT_ONCE;
/// That one of them cannot be worked at is told once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Failures remembered at once; past it all are forgotten.
const REMEMBERED: usize = 4096;

/// What failed when it was tried last, by the work and the activity.
#[derive(Default)]
struct Failing(Mutex<HashMap<(&'static str, ActivityId), Failure>>);

#[derive(Clone, Copy)]
struct Failure {
    tried: Instant,
    told: Option<Instant>,
}

impl Failing {
    fn lock(&self) -> MutexGuard<'_, HashMap<(&'static str, ActivityId), Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this failure is to be told now.
    fn failed(&self, doing: &'static str, activity: ActivityId) -> bool {
        let (mut failing, now) = (self.lock(), Instant::now());
        if failing.len() >= REMEMBERED {
            failing.clear();
        }
        // Whatever is tried with it: one line is enough.
        let told = failing.iter().filter(|((_, id), _)| *id == activity).filter_map(|(_, failure)| failure.told).max();
        let tell = told.is_none_or(|told| now - told >= TOLD_EVERY);
        failing.insert((doing, activity), Failure { tried: now, told: if tell { Some(now) } else { told } });
        tell
    }

    /// Those that failed last time and have waited too short to be tried in this pass.
    fn put_off(&self, doing: &'static str) -> Vec<ActivityId> {
        let failing = self.lock();
        let of_this = failing.iter().filter(|((work, _), _)| *work == doing);
        let mut of_this: Vec<(Instant, ActivityId)> = of_this.map(|((_, id), failure)| (failure.tried, *id)).collect();
        of_this.sort_unstable();
        of_this.into_iter().skip(TRIED_AGAIN).map(|(_, id)| id).collect()
    }

    /// What was wrong with one of them may have been wrong with all: when it is over, all are tried again at once.
    fn went_well(&self, doing: &'static str, activity: ActivityId) {
        let mut failing = self.lock();
        if failing.remove(&(doing, activity)).is_some() {
            failing.retain(|(work, _), _| *work != doing);
        }
    }
}

/// Those that the last pass did not try any more, by the work.
#[derive(Default)]
struct Untried(Mutex<HashMap<&'static str, HashSet<ActivityId>>>, Seldom);

impl Untried {
    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, HashSet<ActivityId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that this pass tries, in the order in which it does.
    fn order<I>(&self, doing: &'static str, mut items: Vec<(ActivityId, I)>) -> Vec<(ActivityId, I)> {
        if let Some(first) = self.lock().remove(doing) {
            items.sort_by_key(|(id, _)| !first.contains(id));
        }
        items
    }

    fn note(&self, app: &App, doing: &'static str, untried: HashSet<ActivityId>) {
        if untried.is_empty() {
            return;
        }
        if self.1.may(app.clock.now(), TOLD_EVERY) {
            tracing::warn!(
                activities = untried.len(),
                doing,
                "too many activities failed: the rest is tried by the next pass"
            );
        }
        self.lock().insert(doing, untried);
    }
}

/// Activities that failed last time at this work and are not tried in this pass.
pub fn put_off(app: &App, doing: &'static str) -> Vec<ActivityId> {
    app.local::<Failing>().put_off(doing)
}

/// How the work at several activities went.
pub struct Troubles {
    doing: &'static str,
    tally: Tally,
    first: Option<Error>,
}

#[derive(Default)]
struct Tally {
    well: usize,
    failed: usize,
    /// Of these, because something gave no answer.
    away: usize,
}

impl Tally {
    fn is_hopeless(&self) -> bool {
        self.away >= HOPELESS || (self.well == 0 && self.failed >= HOPELESS)
    }
}

impl Troubles {
    /// Of work that an error calls so: `looking after its gate`.
    pub fn of(doing: &'static str) -> Self {
        Self { doing, tally: Tally::default(), first: None }
    }

    /// What came of one of them; a failure is told, with its activity.
    pub fn note<T>(&mut self, app: &App, activity: ActivityId, result: Result<T>) -> Option<T> {
        let failing = app.local::<Failing>();
        match result {
            Ok(done) => {
                failing.went_well(self.doing, activity);
                self.tally.well += 1;
                Some(done)
            }
            Err(error) => {
                if failing.failed(self.doing, activity) {
                    tracing::warn!(activity.id = %activity, %error, doing = self.doing, "an activity was passed over");
                }
                self.tally.failed += 1;
                self.tally.away += usize::from(error.kind() == Kind::Unavailable);
                self.first.get_or_insert(error);
                None
            }
        }
    }

    /// Whether the rest is better left to the next pass.
    pub fn is_hopeless(&self) -> bool {
        self.tally.is_hopeless()
    }

    /// The failure of the whole, when one of them failed. Where others went well, or the activity itself was the reason,
    /// all else that there was to do is done.
    pub fn end(self) -> Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        let Tally { well, failed, .. } = self.tally;
        let all_away = well == 0 && first.kind() == Kind::Unavailable;
        let error = anyhow::Error::from(first);
        if all_away {
            return Err(error.context(self.doing).into());
        }
        let all = well + failed;
        Err(error.context(Partly(format!("{}: {failed} of {all} activities failed", self.doing))).into())
    }
}

/// Whether all else was done.
pub fn is_partly(error: &Error) -> bool {
    matches!(error, Error::Internal(error) if error.is::<Partly>())
}

/// How several steps went, each of which is made whatever became of those before it.
pub fn all<const N: usize>(steps: [Result<()>; N]) -> Result<()> {
    let (partly, whole): (Vec<Error>, Vec<Error>) = steps.into_iter().filter_map(Result::err).partition(is_partly);
    whole.into_iter().chain(partly).next().map_or(Ok(()), Err)
}

/// Works at each of `items`, several at once; what came of those that went well, in the order in which they ended, and
/// whether any failed. Those that failed last time are not all tried ([`put_off`]). `beat` hears of each.
pub async fn each<I, T, F, Fut>(
    app: &App,
    doing: &'static str,
    items: Vec<(ActivityId, I)>,
    beat: &(dyn Fn() + Send + Sync),
    work: F,
) -> (Vec<(ActivityId, T)>, Result<()>)
where
    F: Fn(I) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let (put_off, hopeless) = (put_off(app, doing), AtomicBool::new(false));
    let tried = items.into_iter().filter(|(id, _)| !put_off.contains(id)).collect();
    let futures: Vec<_> = (app.local::<Untried>().order(doing, tried).into_iter())
        .map(|(id, item)| {
            let (working, hopeless) = (work(item), &hopeless);
            async move { (id, if hopeless.load(Ordering::Relaxed) { None } else { Some(working.await) }) }
        })
        .collect();
    let (mut done, mut untried, mut troubles) = (Vec::new(), HashSet::new(), Troubles::of(doing));
    // To its end: a statement that has begun is never dropped.
    let mut ended = stream::iter(futures).buffer_unordered(AT_ONCE);
    while let Some((id, result)) = ended.next().await {
        let Some(result) = result else {
            untried.insert(id);
            continue;
        };
        beat();
        done.extend(troubles.note(app, id, result).map(|made| (id, made)));
        hopeless.store(troubles.is_hopeless(), Ordering::Relaxed);
    }
    app.local::<Untried>().note(app, doing, untried);
    (done, troubles.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_failed_each_has_its_turn_and_when_one_goes_well_all_are_tried() {
        let failing = Failing::default();
        let ids: Vec<ActivityId> = (0..TRIED_AGAIN + 3).map(|_| ActivityId::new()).collect();
        assert!(ids.iter().all(|id| failing.failed("a", *id)), "the first failure of each is told");
        assert!(!failing.failed("b", ids[0]), "one line is enough, whatever failed");
        let turn = || {
            let put_off = failing.put_off("a");
            ids.iter().filter(|id| !put_off.contains(id)).copied().collect::<Vec<_>>()
        };
        assert_eq!(turn(), ids[..TRIED_AGAIN]);
        for id in turn() {
            assert!(!failing.failed("a", id), "told a moment ago");
        }
        // Those that were not tried are the next ones.
        assert!(ids[TRIED_AGAIN..].iter().all(|id| turn().contains(id)));
        failing.went_well("a", ids[0]);
        assert_eq!(turn(), ids);
        assert!(!failing.failed("b", ids[0]), "another work's");
    }

    #[test]
    fn a_pass_ends_when_many_get_no_answer_and_not_when_many_keys_are_broken() {
        assert!(!Tally { well: 100, failed: 100, away: HOPELESS - 1 }.is_hopeless());
        assert!(Tally { well: 100, failed: HOPELESS, away: HOPELESS }.is_hopeless());
        assert!(Tally { well: 0, failed: HOPELESS, away: 0 }.is_hopeless());
    }

    #[test]
    fn what_a_pass_did_not_try_comes_first_in_the_next_one() {
        let untried = Untried::default();
        let ids: Vec<ActivityId> = (0..4).map(|_| ActivityId::new()).collect();
        let items = || ids.iter().map(|id| (*id, ())).collect::<Vec<_>>();
        let order = |doing| untried.order(doing, items()).into_iter().map(|(id, ())| id).collect::<Vec<_>>();
        untried.lock().insert("a", HashSet::from([ids[3], ids[1]]));
        assert_eq!(order("b"), ids, "another work's");
        assert_eq!(order("a"), [ids[1], ids[3], ids[0], ids[2]]);
        assert_eq!(order("a"), ids, "they were tried");
    }

    #[test]
    fn what_failed_in_part_is_behind_what_failed_as_a_whole() {
        let partly = || Err(anyhow::anyhow!("a").context(Partly("1 of 2".to_owned())).into());
        let whole = || Err(anyhow::anyhow!("b").into());
        assert!(all([Ok(()), Ok(())]).is_ok());
        assert!(is_partly(&all([Ok(()), partly()]).unwrap_err()));
        assert!(!is_partly(&all([partly(), whole()]).unwrap_err()));
    }
}
