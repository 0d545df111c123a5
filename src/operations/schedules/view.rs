//! A schedule as the API shows it.

use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::engine::schedule::{CatchUp, Schedule, ScheduleId, ScheduleKind};
use crate::engine::{State, TaskId};
use crate::platform::clock::At;
use crate::platform::described::AnyObject;

/// So many of the next runs are shown.
const NEXT_RUNS: usize = 5;

/// A schedule.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ScheduleView {
    /// Its id.
    pub id: ScheduleId,
    /// Its name, unlike all others.
    pub name: String,
    /// The task that it enqueues.
    pub task: String,
    /// The task's arguments.
    #[schema(value_type = AnyObject)]
    pub args: Value,
    /// How its times are given.
    pub kind: ScheduleKind,
    /// Of an interval: the pause in seconds.
    pub every_s: Option<i64>,
    /// Of a crontab: `minute hour day_of_month month_of_year day_of_week`.
    pub crontab: Option<String>,
    /// Of a single run: when.
    pub run_at: Option<At>,
    /// The zone whose wall clock a crontab means.
    pub time_zone: String,
    /// The first run of an interval; a crontab does not run before it.
    pub starts_at: At,
    /// Whether it runs at all.
    pub enabled: bool,
    /// What becomes of runs that nobody was there to make.
    pub catch_up: CatchUp,
    /// With `each`: so many of them, the latest.
    pub catch_up_max: i32,
    /// Whether a run is made while the one before has not ended.
    pub overlap: bool,
    /// The next run; null when it is disabled or over.
    pub next_run_at: Option<At>,
    /// The next five runs.
    #[schema(max_items = 5)]
    pub next_runs: Vec<At>,
    /// When it last ran.
    pub last_run_at: Option<At>,
    /// How often it ran.
    pub total_runs: i64,
    /// The last task that it enqueued.
    pub last_task: Option<LastTask>,
    /// Why it was set aside.
    pub last_error: Option<String>,
    /// Grows with each edit.
    pub version: i64,
    /// When it was made.
    pub created_at: At,
    /// When it was last edited.
    pub updated_at: At,
}

/// The last task of a schedule.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LastTask {
    /// Its id.
    pub id: String,
    /// Its state; null when Redis has forgotten it.
    pub state: Option<State>,
    /// What it ended with.
    #[schema(value_type = AnyObject, nullable)]
    pub result: Value,
}

impl ScheduleView {
    /// With what Redis knows of its last task.
    pub async fn of(app: &App, schedule: Schedule) -> Self {
        let next_runs = schedule.next_runs(NEXT_RUNS);
        let last_task = match schedule.last_task {
            Some(id) => Some(LastTask::of(app, id).await),
            None => None,
        };
        let definition = schedule.definition;
        Self {
            id: schedule.id,
            name: definition.name,
            task: definition.task,
            args: serde_json::from_str(&definition.args).unwrap_or_default(),
            kind: definition.kind,
            every_s: definition.every_s,
            crontab: definition.crontab,
            run_at: definition.run_at,
            time_zone: definition.time_zone,
            starts_at: definition.starts_at,
            enabled: definition.enabled,
            catch_up: definition.catch_up,
            catch_up_max: definition.catch_up_max,
            overlap: definition.overlap,
            next_run_at: schedule.next_run_at,
            next_runs,
            last_run_at: schedule.last_run_at,
            total_runs: schedule.total_runs,
            last_task,
            last_error: schedule.last_error,
            version: schedule.version,
            created_at: schedule.created_at,
            updated_at: schedule.updated_at,
        }
    }
}

impl LastTask {
    async fn of(app: &App, id: String) -> Self {
        let status = match id.parse::<TaskId>() {
            // Schedules are shown while Redis is away, too.
            Ok(task) => app.engine.status(&task).await.ok().flatten(),
            Err(_) => None,
        };
        let (state, result) = status.map_or((None, Value::Null), |status| (Some(status.state), status.result));
        Self { id, state, result }
    }
}
