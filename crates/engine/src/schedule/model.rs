//! What a schedule is, and what may be wrong with one.

use onrush_platform::text_enum;
use std::time::Duration;

use aws_lc_rs::digest;
use uuid::Uuid;

use super::crontab::NotACrontab;
use super::tasks::Tasks;
use super::timing::{CatchUp, Timing};
use onrush_platform::clock::At;
use onrush_platform::day;
use onrush_platform::fault::FieldFault;
use onrush_platform::id::Id;
use onrush_platform::text::{OptionalText, Text};

/// Marks the ids of schedules.
pub struct ScheduleMark;
/// A schedule's id.
pub type ScheduleId = Id<ScheduleMark>;

/// Longest arguments, in bytes.
const MAX_ARGS: usize = 16 * 1024;
/// Longest interval: a year.
const MAX_EVERY_S: i64 = 366 * 24 * 3600;
/// Missed occurrences that [`CatchUp::Each`] runs, at most.
pub const MAX_CATCH_UP: i32 = 1000;

/// How a schedule's times are given.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, strum::EnumString, strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ScheduleKind {
    /// Every so many seconds.
    Interval,
    /// By a crontab expression.
    Crontab,
    /// At one instant.
    Once,
}

impl ScheduleKind {
    /// The field that it needs and no other kind takes.
    pub fn field(self) -> &'static str {
        match self {
            Self::Interval => "every_s",
            Self::Crontab => "crontab",
            Self::Once => "run_at",
        }
    }
}

text_enum!(ScheduleKind);
/// What a person decides about a schedule.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Definition {
    /// Its name, unlike all others.
    #[sqlx(try_from = "Text")]
    pub name: String,
    /// The task that it enqueues.
    #[sqlx(try_from = "Text")]
    pub task: String,
    /// The task's arguments, a JSON object.
    #[sqlx(try_from = "Text")]
    pub args: String,
    /// How its times are given.
    pub kind: ScheduleKind,
    /// [`ScheduleKind::Interval`]: the pause, in seconds.
    pub every_s: Option<i64>,
    /// [`ScheduleKind::Crontab`]: the expression.
    #[sqlx(try_from = "OptionalText")]
    pub crontab: Option<String>,
    /// [`ScheduleKind::Once`]: the instant.
    pub run_at: Option<At>,
    /// The zone whose wall clock a crontab means, by its IANA name.
    #[sqlx(try_from = "Text")]
    pub time_zone: String,
    /// The first occurrence of an interval; a crontab does not run before it.
    pub starts_at: At,
    /// Whether it runs at all.
    pub enabled: bool,
    /// What becomes of missed occurrences.
    pub catch_up: CatchUp,
    /// With [`CatchUp::Each`], so many of them.
    pub catch_up_max: i32,
    /// Whether an occurrence runs while the task of the one before has not ended; else it is left out.
    pub overlap: bool,
}

/// A schedule as MySQL has it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// What was decided about it.
    #[sqlx(flatten)]
    pub definition: Definition,
    /// The next occurrence; none when it is disabled or over.
    pub next_run_at: Option<At>,
    /// When it last enqueued its task.
    pub last_run_at: Option<At>,
    /// Tasks enqueued so far.
    pub total_runs: i64,
    /// The id of the last one.
    #[sqlx(try_from = "OptionalText")]
    pub last_task: Option<String>,
    /// Why it was set aside.
    #[sqlx(try_from = "OptionalText")]
    pub last_error: Option<String>,
    /// Grows with each edit.
    pub version: i64,
    /// The version at which an edit last moved the next run.
    pub times_version: i64,
    /// When it was made.
    pub created_at: At,
    /// When it was last edited.
    pub updated_at: At,
}

/// What is wrong with a crontab, by its fields.
pub fn crontab_faults(bad: NotACrontab) -> impl Iterator<Item = FieldFault> {
    bad.0.into_iter().map(|fault| FieldFault::new(format!("crontab.{}", fault.field), fault.reason))
}

impl Definition {
    /// Every fault, by field.
    pub fn faults(&self, tasks: &Tasks) -> Vec<FieldFault> {
        let mut faults = self.timing().err().unwrap_or_default();
        let given = [
            (ScheduleKind::Interval, self.every_s.is_some()),
            (ScheduleKind::Crontab, self.crontab.is_some()),
            (ScheduleKind::Once, self.run_at.is_some()),
        ];
        for (kind, _) in given.into_iter().filter(|(kind, given)| *given && *kind != self.kind) {
            faults.push(FieldFault::new(kind.field(), format!("goes with the kind `{}` alone", kind.as_str())));
        }
        if self.args.len() > MAX_ARGS {
            faults.push(FieldFault::new("args", format!("must be at most {MAX_ARGS} bytes")));
        }
        faults.extend(tasks.faults(&self.task, &self.args));
        faults
    }

    /// When it runs; else every fault of what says so.
    pub fn timing(&self) -> Result<Timing, Vec<FieldFault>> {
        let mut faults = Vec::new();
        let zone = day::zone(&self.time_zone)
            .map_err(|_| faults.push(FieldFault::new("time_zone", "must be an IANA name, such as Asia/Shanghai")))
            .ok();
        let start = self.starts_at;
        let timing = match (self.kind, self.every_s, &self.crontab, self.run_at) {
            (ScheduleKind::Interval, Some(seconds), ..) if (1..=MAX_EVERY_S).contains(&seconds) => {
                Some(Timing::Interval { every: Duration::from_secs(seconds.unsigned_abs()), start })
            }
            (ScheduleKind::Interval, ..) => {
                faults.push(FieldFault::new("every_s", format!("must be 1 to {MAX_EVERY_S} seconds for an interval")));
                None
            }
            (ScheduleKind::Crontab, _, Some(text), _) => match text.parse() {
                Ok(crontab) => zone.clone().map(|zone| Timing::Crontab { crontab, zone, start }),
                Err(bad) => {
                    faults.extend(crontab_faults(bad));
                    None
                }
            },
            (ScheduleKind::Crontab, ..) => {
                faults.push(FieldFault::new(
                    "crontab",
                    "must be an expression for a crontab, such as `30 7 * * mon-fri`",
                ));
                None
            }
            (ScheduleKind::Once, _, _, Some(at)) => Some(Timing::Once(at)),
            (ScheduleKind::Once, ..) => {
                faults.push(FieldFault::new(
                    "run_at",
                    "must be an instant for a single run, such as 2026-11-11T00:00:00Z",
                ));
                None
            }
        };
        timing.filter(|_| faults.is_empty()).ok_or(faults)
    }

    /// The first occurrence after `now`, if it is enabled and has one.
    pub fn next_run(&self, now: At) -> Option<At> {
        let timing = self.timing().ok().filter(|_| self.enabled)?;
        timing.next_after(now)
    }

    /// Whether `other` has other occurrences.
    pub fn runs_otherwise_than(&self, other: &Self) -> bool {
        let times = |d: &Self| {
            let (crontab, zone) = (d.crontab.clone(), d.time_zone.clone());
            (d.kind, d.every_s, crontab, d.run_at, zone, d.starts_at, d.enabled)
        };
        times(self) != times(other)
    }
}

impl Schedule {
    /// The key of the task of one occurrence: the same whoever enqueues it, and whatever else is edited meanwhile. An edit
    /// that moves the next run begins anew: after a clock that was ahead the same instant may come again by it.
    pub fn task_key(&self, occurrence: At) -> Uuid {
        let mut named = digest::Context::new(&digest::SHA256);
        named.update(self.id.uuid().as_bytes());
        named.update(&self.times_version.to_be_bytes());
        named.update(&occurrence.ms().to_be_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&named.finish().as_ref()[..16]);
        Uuid::from_bytes(key)
    }

    /// Its next occurrences, at most `count`.
    pub fn next_runs(&self, count: usize) -> Vec<At> {
        match (self.next_run_at, self.definition.timing()) {
            (Some(next), Ok(timing)) => timing.from(next, count),
            _ => Vec::new(),
        }
    }
}
