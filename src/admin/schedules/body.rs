//! Requests about schedules, and what may be wrong with them.

use std::fmt::Display;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::schedule::{CatchUp, Definition, Kind, ScheduleId};
use crate::error::{self, Error, refuse};
use crate::jobs;
use crate::platform::clock::At;
use crate::platform::extract::FieldFault;

/// A new schedule.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// Its id, chosen by the client so that a repeat is safe; made by the server when absent.
    #[garde(inner(pattern("^[0-9a-f]{32}$")))]
    #[schema(pattern = "^[0-9a-f]{32}$")]
    id: Option<String>,
    /// Its name, unlike all others.
    #[garde(length(chars, min = 1, max = 100))]
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// The task to enqueue.
    #[garde(length(chars, min = 1, max = 100))]
    #[schema(min_length = 1, max_length = 100)]
    task: String,
    /// The task's arguments; none when absent.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    args: Option<Map<String, Value>>,
    /// How its times are given: `interval`, `crontab` or `once`.
    #[garde(length(max = 20))]
    #[schema(pattern = "^(interval|crontab|once)$")]
    kind: String,
    /// For an interval: the pause in seconds.
    #[garde(inner(range(min = 1, max = 31_622_400)))]
    #[schema(minimum = 1, maximum = 31_622_400)]
    every_s: Option<i64>,
    /// For a crontab: `minute hour day_of_month month_of_year day_of_week`, with Celery's meaning.
    #[garde(inner(length(max = 255)))]
    #[schema(max_length = 255, example = "30 7 * * mon-fri")]
    crontab: Option<String>,
    /// For a single run: when, RFC 3339.
    #[garde(inner(length(max = 40)))]
    #[schema(format = DateTime, max_length = 40)]
    run_at: Option<String>,
    /// The zone whose wall clock a crontab means, by its IANA name; the business time zone when absent.
    #[garde(inner(length(max = 64)))]
    #[schema(max_length = 64, example = "Asia/Shanghai")]
    time_zone: Option<String>,
    /// The first run of an interval; a crontab does not run before it. RFC 3339; now when absent, and then an interval
    /// runs first when it has passed once.
    #[garde(inner(length(max = 40)))]
    #[schema(format = DateTime, max_length = 40)]
    starts_at: Option<String>,
    /// Whether it runs at all; true when absent.
    #[garde(skip)]
    enabled: Option<bool>,
    /// What becomes of runs that nobody was there to make: `skip`, `once` (one for all of them; when absent) or `each`.
    #[garde(inner(length(max = 20)))]
    #[schema(pattern = "^(skip|once|each)$")]
    catch_up: Option<String>,
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
    #[garde(inner(length(chars, min = 1, max = 100)))]
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// The task to enqueue.
    #[garde(inner(length(chars, min = 1, max = 100)))]
    #[schema(min_length = 1, max_length = 100)]
    task: Option<String>,
    /// The task's arguments.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    args: Option<Map<String, Value>>,
    /// How its times are given: `interval`, `crontab` or `once`.
    #[garde(inner(length(max = 20)))]
    #[schema(pattern = "^(interval|crontab|once)$")]
    kind: Option<String>,
    /// For an interval: the pause in seconds.
    #[garde(inner(range(min = 1, max = 31_622_400)))]
    #[schema(minimum = 1, maximum = 31_622_400)]
    every_s: Option<i64>,
    /// For a crontab: `minute hour day_of_month month_of_year day_of_week`, with Celery's meaning.
    #[garde(inner(length(max = 255)))]
    #[schema(max_length = 255, example = "30 7 * * mon-fri")]
    crontab: Option<String>,
    /// For a single run: when, RFC 3339.
    #[garde(inner(length(max = 40)))]
    #[schema(format = DateTime, max_length = 40)]
    run_at: Option<String>,
    /// The zone whose wall clock a crontab means, by its IANA name.
    #[garde(inner(length(max = 64)))]
    #[schema(max_length = 64, example = "Asia/Shanghai")]
    time_zone: Option<String>,
    /// The first run of an interval; a crontab does not run before it. RFC 3339.
    #[garde(inner(length(max = 40)))]
    #[schema(format = DateTime, max_length = 40)]
    starts_at: Option<String>,
    /// Whether it runs at all. What was due while it was disabled is not made up for.
    #[garde(skip)]
    enabled: Option<bool>,
    /// What becomes of runs that nobody was there to make: `skip`, `once` or `each`.
    #[garde(inner(length(max = 20)))]
    #[schema(pattern = "^(skip|once|each)$")]
    catch_up: Option<String>,
    /// With `each`: so many of them, the latest.
    #[garde(inner(range(min = 1, max = 1000)))]
    #[schema(minimum = 1, maximum = 1000)]
    catch_up_max: Option<i32>,
    /// Whether a run is made while the one before has not ended.
    #[garde(skip)]
    overlap: Option<bool>,
}

/// A new schedule, with every fault told at once: of the fields' shapes and of what they mean together.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct NewSchedule(pub CreateSchedule);

impl garde::Validate for NewSchedule {
    type Context = ();

    fn validate_into(&self, ctx: &(), parent: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report) {
        self.0.validate_into(ctx, parent, report);
        // Neither the zone nor the time can be at fault: they are ours.
        let Err(faults) = self.0.definition("UTC", At::from_ms(0)) else { return };
        let told: Vec<String> = report.iter().map(|(path, _)| path.to_string()).collect();
        for fault in faults.into_iter().filter(|fault| !told.contains(&fault.field)) {
            report.append(garde::Path::new(fault.field), garde::Error::new(fault.message));
        }
    }
}

impl CreateSchedule {
    /// The id that the client chose, or a new one.
    pub fn id(&self) -> ScheduleId {
        self.id.as_deref().and_then(|id| id.parse().ok()).unwrap_or_default()
    }

    /// What it asks for; else every fault of it.
    pub fn definition(&self, time_zone: &str, now: At) -> Result<Definition, Vec<FieldFault>> {
        let blank = Definition {
            name: self.name.clone(),
            task: self.task.clone(),
            args: "{}".to_owned(),
            kind: Kind::Interval,
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
            kind: Some(self.kind.clone()),
            every_s: self.every_s,
            crontab: self.crontab.clone(),
            run_at: self.run_at.clone(),
            time_zone: self.time_zone.clone(),
            starts_at: self.starts_at.clone(),
            enabled: self.enabled,
            catch_up: self.catch_up.clone(),
            catch_up_max: self.catch_up_max,
            overlap: self.overlap,
        };
        change.applied_to(&blank)
    }
}

impl ChangeSchedule {
    /// What a schedule becomes by it; else every fault.
    pub fn applied_to(&self, before: &Definition) -> Result<Definition, Vec<FieldFault>> {
        let mut faults = Vec::new();
        let kind = parsed(&mut faults, "kind", &self.kind, "must be `interval`, `crontab` or `once`", Kind::parse);
        let catch_up =
            parsed(&mut faults, "catch_up", &self.catch_up, "must be `skip`, `once` or `each`", CatchUp::parse);
        let run_at = parsed(&mut faults, "run_at", &self.run_at, INSTANT, instant);
        let starts_at = parsed(&mut faults, "starts_at", &self.starts_at, INSTANT, instant);
        let mut after = before.clone();
        if kind.is_some_and(|kind| kind != before.kind) {
            (after.every_s, after.crontab, after.run_at) = (None, None, None);
        }
        set(&mut after.name, self.name.clone());
        set(&mut after.task, self.task.clone());
        set(&mut after.args, self.args.clone().map(|args| Value::Object(args).to_string()));
        set(&mut after.kind, kind);
        after.every_s = self.every_s.or(after.every_s);
        after.crontab = self.crontab.clone().or(after.crontab);
        after.run_at = run_at.or(after.run_at);
        set(&mut after.time_zone, self.time_zone.clone());
        set(&mut after.starts_at, starts_at);
        set(&mut after.enabled, self.enabled);
        set(&mut after.catch_up, catch_up);
        set(&mut after.catch_up_max, self.catch_up_max);
        set(&mut after.overlap, self.overlap);
        for fault in after.faults(&jobs::schedulable()) {
            // Without its kind nothing can be said of what goes with it.
            let unknowable =
                self.kind.is_some() && kind.is_none() && ["every_s", "crontab", "run_at"].contains(&&*fault.field);
            if !unknowable && !faults.iter().any(|told| told.field == fault.field) {
                faults.push(fault);
            }
        }
        if faults.is_empty() { Ok(after) } else { Err(faults) }
    }
}

const INSTANT: &str = "must be an instant such as 2026-11-11T00:00:00Z, between the years 2000 and 2100";

fn instant(text: &str) -> Option<At> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    let year = instant.to_zoned(jiff::tz::TimeZone::UTC).year();
    Some(instant.into()).filter(|_| (2000..=2100).contains(&year))
}

fn parsed<T>(
    faults: &mut Vec<FieldFault>,
    field: &str,
    text: &Option<String>,
    wanted: impl Display,
    parse: fn(&str) -> Option<T>,
) -> Option<T> {
    let text = text.as_deref()?;
    let value = parse(text);
    if value.is_none() {
        faults.push(FieldFault::new(field, wanted.to_string()));
    }
    value
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// The refusal of a request with these faults.
pub fn refused(faults: Vec<FieldFault>) -> Error {
    let mut refusal = refuse(error::Kind::Invalid, "");
    refusal.errors = faults;
    refusal.into()
}
