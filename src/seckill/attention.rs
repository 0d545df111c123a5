//! Which gates a pass over them looks at: nearly all of them rest nearly all of the time, and a look at each of them every
//! second would be most of what Redis does for a service in which nothing happens.
//!
//! A gate rests when it agreed with MySQL and nothing was under way. Then it is looked at again when its row of MySQL moves
//! (a unit was sold or came back, the stock was changed, the sale began or ended), when another run of Redis serves, when
//! its key is gone, and else in one of [`REST_PASSES`] passes, by one command: what has the counters of its last look still
//! agrees. So what only Redis could tell, such as a stock that somebody wrote over, is found a few seconds later than what
//! moves. All of this is memory of one process: another one looks at everything anew.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::model::{Activity, ActivityId, Phase};
use super::redis::{Counts, Gate, OwnerProgress};
use super::redis_runs::run_seen;
use crate::app::App;
use crate::error::Result;
use crate::platform::clock::At;

/// A gate that rests is looked at in one of so many passes.
const REST_PASSES: u64 = 5;
/// Gates that one command looks for.
const LOOKED_FOR: usize = 500;

/// What MySQL says of an activity, as far as its gate depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityRow {
    left: i64,
    stock: i64,
    returns: u32,
    phase: Phase,
}

impl ActivityRow {
    /// As it is at `now`.
    pub fn of(activity: &Activity, now: At) -> Self {
        let Activity { stock_left: left, stock, returns, .. } = *activity;
        Self { left, stock, returns, phase: activity.phase(now) }
    }
}

/// What a look came to.
#[derive(Debug, Clone, Copy)]
pub struct Looked {
    /// The row as it was.
    pub row: ActivityRow,
    /// The counters, when the two agreed and nothing was under way.
    pub agreed: Option<Counts>,
    /// How far those who have the course are written.
    pub written: OwnerProgress,
}

impl Looked {
    /// Whether the gate may say of somebody that they have the course: they were written, or a placement that was admitted
    /// found it.
    pub fn may_have_marks(&self) -> bool {
        self.written.marks > 0 || self.agreed.is_none_or(|counts| counts.admitted > 0)
    }

    /// Whether the next pass has nothing to do here.
    fn rests(&self) -> bool {
        self.agreed.is_some() && (self.written.after.is_none() || self.row.phase == Phase::Ended)
    }
}

/// What this process knows of the gates.
#[derive(Default)]
pub struct Attention(Mutex<Known>);

#[derive(Default)]
struct Known {
    passes: u64,
    /// The run of Redis that was looked at.
    run: String,
    gates: HashMap<ActivityId, Looked>,
}

impl Known {
    /// Those of `activities` that a pass looks at.
    fn begin(&mut self, activities: &[Activity], run: &str, now: At) -> HashSet<ActivityId> {
        if self.run != run {
            run.clone_into(&mut self.run);
            self.gates.clear();
        }
        self.passes += 1;
        let there: HashSet<ActivityId> = activities.iter().map(|activity| activity.id).collect();
        self.gates.retain(|id, _| there.contains(id));
        let due = |activity: &&Activity| {
            let rests = self
                .gates
                .get(&activity.id)
                .is_some_and(|last| last.rests() && last.row == ActivityRow::of(activity, now));
            // Spread over the passes, so that each costs the same.
            !rests || (self.passes + turn_of(activity.id)).is_multiple_of(REST_PASSES)
        };
        activities.iter().filter(due).map(|activity| activity.id).collect()
    }
}

/// The end of an id is random.
fn turn_of(id: ActivityId) -> u64 {
    id.uuid().as_u64_pair().1 % REST_PASSES
}

impl Attention {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next pass looks at all.
    pub fn forget(&self) {
        self.lock().gates.clear();
    }

    /// What the last look at a gate came to.
    pub fn last(&self, activity: ActivityId) -> Option<Looked> {
        self.lock().gates.get(&activity).copied()
    }

    /// Notes what looks came to; of the others of `due`, which failed, nothing is known any more.
    pub fn note(&self, due: &HashSet<ActivityId>, looked: Vec<(ActivityId, Option<Looked>)>) {
        let mut known = self.lock();
        known.gates.retain(|id, _| !due.contains(id));
        known.gates.extend(looked.into_iter().filter_map(|(id, looked)| Some((id, looked?))));
    }
}

/// Those of `activities` that this pass looks at.
pub async fn due(app: &App, activities: &[Activity]) -> Result<HashSet<ActivityId>> {
    let attention = app.local::<Attention>();
    let mut due = attention.lock().begin(activities, &run_seen(app), app.clock.now());
    if app.redis.is_cluster() {
        return Ok(due);
    }
    let resting: Vec<ActivityId> = activities.iter().map(|a| a.id).filter(|id| !due.contains(id)).collect();
    for some in resting.chunks(LOOKED_FOR) {
        if !Gate::all_exist(app, some).await? {
            due.extend(some);
        }
    }
    Ok(due)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::UserId;
    use crate::catalogue::CourseId;
    use crate::platform::money::Money;

    fn start() -> At {
        At::from_ms(1_700_000_000_000)
    }

    fn sale() -> Activity {
        Activity {
            id: ActivityId::new(),
            course_id: CourseId::new(),
            title: String::new(),
            price_fen: Money::fen(1),
            stock: 9,
            stock_left: 7,
            returns: 0,
            per_user_limit: 1,
            pay_deadline_s: 60,
            starts_at: start(),
            ends_at: start().plus(Duration::from_secs(60)),
            closed_at: None,
            created_at: start(),
        }
    }

    fn looked(sale: &Activity, after: Option<UserId>) -> Looked {
        let agreed = Some(Counts { stock: 7, admitted: 2, ended: 2, is_closed: false });
        Looked {
            row: ActivityRow::of(sale, start()),
            agreed,
            written: OwnerProgress { after, marks: 0, taken_off: None },
        }
    }

    /// In how many of as many passes as a gate may rest it is looked at.
    fn looks(known: &mut Known, sale: &Activity, run: &str, now: At) -> u64 {
        (0..REST_PASSES).filter(|_| !known.begin(std::slice::from_ref(sale), run, now).is_empty()).count() as u64
    }

    #[test]
    fn a_gate_without_marks_is_one_to_which_nobody_was_written_and_nobody_was_admitted() {
        let of = |marks, admitted| {
            let looked = looked(&sale(), None);
            let agreed = looked.agreed.map(|counts| Counts { admitted, ..counts });
            Looked { agreed, written: OwnerProgress { marks, ..looked.written }, ..looked }
        };
        assert!(!of(0, 0).may_have_marks());
        assert!(of(1, 0).may_have_marks() && of(0, 1).may_have_marks());
        assert!(Looked { agreed: None, ..of(0, 0) }.may_have_marks(), "nobody knows");
    }

    #[test]
    fn a_gate_that_rests_is_looked_at_seldom_and_one_of_which_anything_moved_in_each_pass() {
        let (sale, mut known) = (sale(), Known::default());
        assert_eq!(looks(&mut known, &sale, "a", start()), REST_PASSES, "nothing is known of it");
        known.gates.insert(sale.id, looked(&sale, None));
        assert_eq!(looks(&mut known, &sale, "a", start()), 1);
        for moved in [
            Activity { stock_left: 6, ..sale.clone() },
            Activity { returns: 1, ..sale.clone() },
            Activity { stock: 10, ..sale.clone() },
            Activity { closed_at: Some(start()), ..sale.clone() },
        ] {
            assert_eq!(looks(&mut known, &moved, "a", start()), REST_PASSES);
        }
        assert_eq!(looks(&mut known, &sale, "a", sale.ends_at), REST_PASSES, "it has ended");
        assert_eq!(looks(&mut known, &sale, "b", start()), REST_PASSES, "another run of Redis serves");
        known.gates.insert(sale.id, Looked { agreed: None, ..looked(&sale, None) });
        assert_eq!(looks(&mut known, &sale, "b", start()), REST_PASSES, "it did not agree");
        known.gates.insert(sale.id, looked(&sale, Some(UserId::min())));
        assert_eq!(looks(&mut known, &sale, "b", start()), REST_PASSES, "more owners are to be written");
    }
}
