//! Requests about schedules, and what may be wrong with them.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::app::App;
use crate::engine::schedule::{CatchUp, Crontab, Definition, ScheduleId, ScheduleKind, crontab_faults};
use crate::jobs;
use crate::platform::clock::At;
use crate::platform::described::AnyObject;
use crate::platform::extract::{Faults, FieldFault, Shape};
use crate::platform::spelling::{nfc, nfc_option};
use crate::platform::validators::{in_our_time, words};

/// A new schedule.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// Its id, chosen by the client so that a repeat is safe; made by the server when absent.
    #[garde(skip)]
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    id: Option<ScheduleId>,
    /// Its name, unlike all others.
    #[garde(custom(words(1, 100)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 100, pattern = r"\S")]
    name: String,
    /// The task to enqueue.
    #[garde(length(chars, min = 1, max = 100))]
    #[schema(min_length = 1, max_length = 100)]
    task: String,
    /// The task's arguments; none when absent.
    #[garde(skip)]
    #[schema(value_type = Option<AnyObject>)]
    args: Option<Map<String, Value>>,
    /// How its times are given: `interval`, `crontab` or `once`.
    #[garde(skip)]
    #[schema(value_type = ScheduleKind)]
    kind: ScheduleKind,
    /// For an interval: the pause in seconds.
    #[garde(inner(range(min = 1, max = 31_622_400)))]
    #[schema(minimum = 1, maximum = 31_622_400)]
    every_s: Option<i64>,
    /// For a crontab: `minute hour day_of_month month_of_year day_of_week`, with Celery's meaning.
    #[garde(inner(length(max = 255)))]
    #[schema(max_length = 255, example = "30 7 * * mon-fri")]
    crontab: Option<String>,
    /// For a single run: when, RFC 3339.
    #[garde(inner(custom(in_our_time)))]
    #[schema(value_type = Option<String>, format = DateTime, max_length = 40)]
    run_at: Option<At>,
    /// The zone whose wall clock a crontab means, by its IANA name; the business time zone when absent.
    #[garde(inner(length(max = 64)))]
    #[schema(max_length = 64, example = "Asia/Shanghai")]
    time_zone: Option<String>,
    /// The first run of an interval; a crontab does not run before it. RFC 3339; now when absent, and then an interval
    /// runs first when it has passed once.
    #[garde(inner(custom(in_our_time)))]
    #[schema(value_type = Option<String>, format = DateTime, max_length = 40)]
    starts_at: Option<At>,
    /// Whether it runs at all; true when absent.
    #[garde(skip)]
    enabled: Option<bool>,
    /// What becomes of runs that nobody was there to make: `skip`, `once` (one for all of them; when absent) or `each`.
    #[garde(skip)]
    #[schema(value_type = Option<CatchUp>)]
    catch_up: Option<CatchUp>,
    /// With `each`: so many of them, the latest; 100 when absent.
    #[garde(inner(range(min = 1, max = 1000)))]
    #[schema(minimum = 1, maximum = 1000)]
    catch_up_max: Option<i32>,
    /// Whether a run is made while the one before has not ended; true when absent.
    #[garde(skip)]
    overlap: Option<bool>,
}

/// A change of a schedule: what is absent stays. With another `kind`, what goes with the old one is forgotten.
#[derive(Debug, Default, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSchedule {
    /// Its name, unlike all others.
    #[garde(inner(custom(words(1, 100))))]
    #[serde(default, deserialize_with = "nfc_option")]
    #[schema(min_length = 1, max_length = 100, pattern = r"\S")]
    name: Option<String>,
    /// The task to enqueue.
    #[garde(inner(length(chars, min = 1, max = 100)))]
    #[schema(min_length = 1, max_length = 100)]
    task: Option<String>,
    /// The task's arguments.
    #[garde(skip)]
    #[schema(value_type = Option<AnyObject>)]
    args: Option<Map<String, Value>>,
    /// How its times are given: `interval`, `crontab` or `once`.
    #[garde(skip)]
    #[schema(value_type = Option<ScheduleKind>)]
    kind: Option<ScheduleKind>,
    /// For an interval: the pause in seconds.
    #[garde(inner(range(min = 1, max = 31_622_400)))]
    #[schema(minimum = 1, maximum = 31_622_400)]
    every_s: Option<i64>,
    /// For a crontab: `minute hour day_of_month month_of_year day_of_week`, with Celery's meaning.
    #[garde(inner(length(max = 255)))]
    #[schema(max_length = 255, example = "30 7 * * mon-fri")]
    crontab: Option<String>,
    /// For a single run: when, RFC 3339.
    #[garde(inner(custom(in_our_time)))]
    #[schema(value_type = Option<String>, format = DateTime, max_length = 40)]
    run_at: Option<At>,
    /// The zone whose wall clock a crontab means, by its IANA name.
    #[garde(inner(length(max = 64)))]
    #[schema(max_length = 64, example = "Asia/Shanghai")]
    time_zone: Option<String>,
    /// The first run of an interval; a crontab does not run before it. RFC 3339.
    #[garde(inner(custom(in_our_time)))]
    #[schema(value_type = Option<String>, format = DateTime, max_length = 40)]
    starts_at: Option<At>,
    /// Whether it runs at all. What was due while it was disabled is not made up for.
    #[garde(skip)]
    enabled: Option<bool>,
    /// What becomes of runs that nobody was there to make: `skip`, `once` or `each`.
    #[garde(skip)]
    #[schema(value_type = Option<CatchUp>)]
    catch_up: Option<CatchUp>,
    /// With `each`: so many of them, the latest.
    #[garde(inner(range(min = 1, max = 1000)))]
    #[schema(minimum = 1, maximum = 1000)]
    catch_up_max: Option<i32>,
    /// Whether a run is made while the one before has not ended.
    #[garde(skip)]
    overlap: Option<bool>,
}

impl Shape<App> for CreateSchedule {
    fn together(&self, app: &App, faults: &mut Faults) {
        let found = self.definition(&app.config.time_zone, app.clock.now()).err().unwrap_or_default();
        add_what_is_known(found, true, self.crontab.as_deref(), faults);
    }
}

impl Shape<App> for ChangeSchedule {
    fn together(&self, app: &App, faults: &mut Faults) {
        // What it changes is not read yet: some schedule that has no fault of its own stands for it.
        let found = self.applied_to(&self.plausible(app)).err().unwrap_or_default();
        add_what_is_known(found, self.task.is_some() && self.args.is_some(), self.crontab.as_deref(), faults);
    }
}

/// Without its kind nothing can be said of what goes with it, but that a crontab is none. Of its arguments only when they
/// are there with their task.
fn add_what_is_known(found: Vec<FieldFault>, with_task: bool, crontab: Option<&str>, faults: &mut Faults) {
    let (kind, task) = (faults.spare(&["kind"]), with_task && faults.spare(&["task", "args"]));
    let known = |field: &str| match field.split('.').next().unwrap_or("") {
        "every_s" | "crontab" | "run_at" => kind,
        "args" => task,
        _ => true,
    };
    faults.extend(found.into_iter().filter(|fault| known(&fault.field)).collect());
    if !kind && let Some(Err(bad)) = crontab.map(str::parse::<Crontab>) {
        faults.extend(crontab_faults(bad).collect());
    }
}

impl CreateSchedule {
    /// The id that the client chose, or a new one.
    pub fn id(&self) -> ScheduleId {
        self.id.unwrap_or_default()
    }

    /// What it asks for; else every fault of it.
    pub fn definition(&self, time_zone: &str, now: At) -> Result<Definition, Vec<FieldFault>> {
        let blank = Definition {
            name: self.name.clone(),
            task: self.task.clone(),
            args: "{}".to_owned(),
            kind: ScheduleKind::Interval,
            every_s: None,
            crontab: None,
            run_at: None,
            time_zone: time_zone.to_owned(),
            starts_at: now,
            enabled: true,
            catch_up: CatchUp::Once,
            catch_up_max: 100,
            overlap: true,
        };
        let change = ChangeSchedule {
            name: None,
            task: None,
            args: self.args.clone(),
            kind: Some(self.kind),
            every_s: self.every_s,
            crontab: self.crontab.clone(),
            run_at: self.run_at,
            time_zone: self.time_zone.clone(),
            starts_at: self.starts_at,
            enabled: self.enabled,
            catch_up: self.catch_up,
            catch_up_max: self.catch_up_max,
            overlap: self.overlap,
        };
        change.applied_to(&blank)
    }
}

impl ChangeSchedule {
    /// A schedule that it could change, and without a fault where it leaves it as it is.
    fn plausible(&self, app: &App) -> Definition {
        let given = [
            (ScheduleKind::Crontab, self.crontab.is_some()),
            (ScheduleKind::Once, self.run_at.is_some()),
            (ScheduleKind::Interval, self.every_s.is_some()),
        ];
        let kind = given.into_iter().find(|(_, given)| *given).map_or(ScheduleKind::Interval, |(kind, _)| kind);
        let kind = self.kind.unwrap_or(kind);
        let now = app.clock.now();
        Definition {
            name: "any".to_owned(),
            task: jobs::schedulable().names().first().copied().unwrap_or_default().to_owned(),
            args: "{}".to_owned(),
            kind,
            every_s: Some(60).filter(|_| kind == ScheduleKind::Interval),
            crontab: Some("* * * * *".to_owned()).filter(|_| kind == ScheduleKind::Crontab),
            run_at: Some(now).filter(|_| kind == ScheduleKind::Once),
            time_zone: app.config.time_zone.clone(),
            starts_at: now,
            enabled: true,
            catch_up: CatchUp::Once,
            catch_up_max: 1,
            overlap: true,
        }
    }

    fn only_switches_off(&self) -> bool {
        let Self {
            name: None,
            task: None,
            args: None,
            kind: None,
            every_s: None,
            crontab: None,
            run_at: None,
            time_zone: None,
            starts_at: None,
            enabled: Some(false),
            catch_up: None,
            catch_up_max: None,
            overlap: None,
        } = self
        else {
            return false;
        };
        true
    }

    /// What a schedule becomes by it; else every fault.
    pub fn applied_to(&self, before: &Definition) -> Result<Definition, Vec<FieldFault>> {
        if self.only_switches_off() {
            // Whatever may be wrong with it by now: a zone that is gone, a task of another version.
            return Ok(Definition { enabled: false, ..before.clone() });
        }
        let mut after = before.clone();
        if self.kind.is_some_and(|kind| kind != before.kind) {
            (after.every_s, after.crontab, after.run_at) = (None, None, None);
        }
        set(&mut after.name, self.name.clone());
        set(&mut after.task, self.task.clone());
        set(&mut after.args, self.args.clone().map(|args| Value::Object(args).to_string()));
        set(&mut after.kind, self.kind);
        after.every_s = self.every_s.or(after.every_s);
        after.crontab = self.crontab.clone().or(after.crontab);
        after.run_at = self.run_at.or(after.run_at);
        set(&mut after.time_zone, self.time_zone.clone());
        set(&mut after.starts_at, self.starts_at);
        set(&mut after.enabled, self.enabled);
        set(&mut after.catch_up, self.catch_up);
        set(&mut after.catch_up_max, self.catch_up_max);
        set(&mut after.overlap, self.overlap);
        let faults = after.faults(&jobs::schedulable());
        if faults.is_empty() { Ok(after) } else { Err(faults) }
    }
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}
