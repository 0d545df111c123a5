//! Schedules: tasks at an interval, by a crontab, or once at a date. They are rows in MySQL, edited while the service
//! runs.
//!
//! What holds
//!
//! * **One leader.** Among all processes with a scheduler one holds the lease ([`lease`]); when it dies another takes
//!   over within ten seconds. Two leaders for a moment are harmless.
//! * **No occurrence is lost, none runs twice** ([`run`]): the row moves on after its task is enqueued, by a guarded
//!   update, and the task's key names the occurrence. An edit in between changes neither, unless it moves the next run.
//! * **A clock that jumps forward** makes occurrences late: the schedule's [`CatchUp`] says what becomes of them. **One
//!   that jumps back** makes nobody repeat anything: the next run stays where it is, and is waited for. An edit moves
//!   it to the first occurrence after the present.
//! * **Wall clocks that jump** (daylight saving time): see [`calendar`].

mod calendar;
mod crontab;
mod lease;
mod model;
mod occurrence;
mod run;
mod scheduler;
mod send;
mod store;
mod tasks;
mod timing;

pub use crontab::{Crontab, CrontabFault, NotACrontab};
pub use model::{Definition, MAX_CATCH_UP, Schedule, ScheduleId, ScheduleKind, crontab_faults};
pub use scheduler::{RunHere, Scheduler};
pub use store::{Written, delete, enabled_of, find, list};
pub use tasks::Tasks;
pub use timing::{CatchUp, GRACE, Timing};

use anyhow::Result;

use onrush_platform::clock::At;
use onrush_platform::db::Conn;

/// Adds a schedule; its definition has no faults.
pub async fn create(conn: &mut Conn, id: ScheduleId, new: &Definition, now: At) -> Result<Written> {
    store::insert(conn, id, new, new.next_run(now), now).await
}

/// Writes an edit over `before`: [`Written::No`] when it was edited in the meantime. When the edit has other
/// occurrences, the next run is the first one after `now`; else it stays.
pub async fn edit(conn: &mut Conn, before: &Schedule, new: &Definition, now: At) -> Result<Written> {
    let moved = before.definition.runs_otherwise_than(new) || before.last_error.is_some();
    store::update(conn, before, new, moved.then(|| new.next_run(now)), now).await
}
