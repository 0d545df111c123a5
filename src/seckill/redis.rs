//! The gate: what Redis holds of an activity, and the scripts on it. It lives in the [`meta`](crate::engine::Keys::meta)
//! hash of the activity's queue partition `{seckill/<activity>}`, beside what the engine counts there: the admission
//! reserves and enqueues with one read and two writes.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context;
use redis::{ErrorKind, Script};

use super::model::{Activity, ActivityId, Admission, EntryId, Held, PlaceSubmission, QUEUE};
use crate::app::App;
use crate::auth::UserId;
use crate::engine::{Effect, Engine, Keys, QueueName, envelope_of};
use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::traces::TraceParent;

/// An activity's keys go this long after its end: a pass unlinks them ([`removal`](super::removal)).
pub const KEEP_AFTER_END: Duration = Duration::from_secs(7 * 24 * 3600);
/// Where no pass came, the gate expires. Late: Redis may free what expires in its main thread, and a big gate then holds
/// up everybody, where `UNLINK` does not.
const EXPIRE_AFTER_END: Duration = Duration::from_secs(2 * KEEP_AFTER_END.as_secs());
/// Who builds a gate has this long for each step before somebody else may: a builder that died (or a lock that came
/// back with an older state of Redis) holds up a sale no longer.
const LOCK_MS: u64 = 3_000;

/// Places that one call reads or writes, so that none holds up Redis for longer than a millisecond or so.
pub const PLACES_AT_ONCE: usize = 500;
/// How far the owners of a gate are taken off again, when its sale is over: this and where to go on, or that all are.
const TAKEN_OFF: &str = "off:";
const ALL_OFF: &str = "none";

static ADMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/admit.lua")));
static WARM_USERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/warm_users.lua")));
static REMEMBER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/remember.lua")));
static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/open.lua")));
static RETURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/return.lua")));
static LOOK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/look.lua")));
static ADJUST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/adjust.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/forget.lua")));
static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/take.lua")));
static OWN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/own.lua")));
static CHANGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/change.lua")));
static UNMARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/unmark.lua")));
static SET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/set.lua")));

/// The partition of an activity.
pub fn queue(activity: ActivityId) -> QueueName {
    QueueName::of_id(QUEUE, activity.uuid())
}

/// The activity that a queue is the partition of; none of a queue of another kind or name.
pub fn activity_of(queue: &QueueName) -> Option<ActivityId> {
    (queue.base() == QUEUE).then(|| queue.partition_name()?.parse().ok())?
}

/// What one command tells of a gate.
#[derive(Debug, Clone, Copy)]
pub struct Glance {
    /// Its counters.
    pub counts: Counts,
    /// How far those who have the course are written.
    pub written: OwnerProgress,
}

/// The counters of a gate: nothing was admitted, placed, put back or corrected as long as they stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Units that it would give.
    pub stock: i64,
    /// Tasks admitted so far.
    pub admitted: i64,
    /// Of these, ended.
    pub ended: i64,
    /// Whether it was shut early.
    pub is_closed: bool,
}

/// Somebody with entries in an activity: (user, tries, live entry).
pub type UnitHolder = (UserId, i64, Option<EntryId>);

/// How far those who have the course are written into a gate.
#[derive(Debug, Clone, Copy)]
pub struct OwnerProgress {
    /// Whose place is the last that was written, `min` before the first one; `None` when no more are to be, and without a
    /// gate.
    pub after: Option<UserId>,
    /// How many were written.
    pub marks: u64,
    /// Where to go on with taking them off, 0 at first; `None` when there are none.
    pub taken_off: Option<u64>,
}

/// Somebody asks for a unit.
#[derive(Debug)]
pub struct Submission {
    /// Who.
    pub user: UserId,
    /// The task's key, if they are admitted.
    pub entry: EntryId,
    /// Where in a trace: the call that carries it carries others' too.
    pub trace: Option<TraceParent>,
}

impl OwnerProgress {
    fn read(starts: Option<&str>, owners: Option<&str>, marks: Option<u64>) -> Self {
        let off = owners.and_then(|at| at.strip_prefix(TAKEN_OFF)?.parse().ok());
        let marks = marks.unwrap_or(0);
        let has_marks = starts.is_some() && marks > 0 && owners != Some(ALL_OFF);
        let after = starts.and_then(|_| owners.map_or(Some(UserId::min()), |last| last.parse().ok()));
        Self { after, marks, taken_off: has_marks.then(|| off.unwrap_or(0)) }
    }
}

/// The keys of one activity.
pub struct Gate {
    keys: Keys,
}

impl Gate {
    /// Of `activity`.
    pub fn of(engine: &Engine, activity: ActivityId) -> Self {
        Self { keys: engine.keys(&queue(activity)) }
    }
    fn gate(&self) -> String {
        self.keys.meta()
    }
    fn lock(&self) -> String {
        self.keys.own("building")
    }

    /// Submissions that came together: for each a unit is reserved and the task enqueued, or nothing. One round trip. The answers are in the order of the submissions.
    pub async fn admit(&self, app: &App, submissions: &[Submission]) -> Result<Vec<Admission>, redis::RedisError> {
        let now = app.clock.now().ms();
        let mut call = ADMIT.prepare_invoke();
        call.key(self.gate()).key(self.keys.stream()).key(self.keys.absent());
        call.arg(app.clock.shift_ms()).arg(self.keys.task_prefix());
        for submission in submissions {
            let (user, entry) = (submission.user, submission.entry);
            let owner = user.to_string();
            let mut envelope = envelope_of(entry.uuid(), &PlaceSubmission { user }, now, Some(owner.clone()));
            envelope.trace.clone_from(&submission.trace);
            call.arg(owner).arg(entry.to_string()).arg(envelope.text());
        }
        let words: String = call.invoke_async(&mut app.redis.commands()).await?;
        let admissions: Option<Vec<Admission>> =
            words.split(' ').zip(submissions).map(|(word, asked)| admission(word, asked.entry)).collect();
        admissions
            .filter(|admissions| admissions.len() == submissions.len())
            .ok_or_else(|| (ErrorKind::UnexpectedReturnType, "not an answer of the gate", words).into())
    }

    /// Whether the gate is there.
    pub async fn exists(&self, app: &App) -> anyhow::Result<bool> {
        redis::cmd("HEXISTS")
            .arg(self.gate())
            .arg("starts")
            .query_async(&mut app.redis.commands())
            .await
            .context("looking for a gate")
    }

    /// Takes the right to build the gate; `None` when somebody else has it.
    pub async fn begin_building(&self, app: &App) -> anyhow::Result<Option<String>> {
        let token = Id::<()>::new().to_string();
        let taken: Option<String> = redis::cmd("SET")
            .arg(self.lock())
            .arg(&token)
            .arg("NX")
            .arg("PX")
            .arg(LOCK_MS)
            .query_async(&mut app.redis.commands())
            .await
            .context("taking the right to build a gate")?;
        Ok(taken.map(|_| token))
    }

    /// Writes who holds a unit, [`PLACES_AT_ONCE`] at most. False when the right to build is lost.
    pub async fn write_users(&self, app: &App, token: &str, users: &[UnitHolder]) -> anyhow::Result<bool> {
        let mut call = WARM_USERS.prepare_invoke();
        call.key(self.lock()).key(self.gate()).arg(token).arg(LOCK_MS);
        for (user, tries, entry) in users {
            call.arg(place(*user)).arg(held(*tries, (*entry).into()));
        }
        call.invoke_async(&mut app.redis.commands()).await.context("writing who holds a unit")
    }

    /// Writes who holds a unit where the gate does not know, [`PLACES_AT_ONCE`] at most. Returns how many it had forgotten.
    pub async fn remember_users(&self, app: &App, users: &[UnitHolder]) -> anyhow::Result<i64> {
        let mut call = REMEMBER.prepare_invoke();
        call.key(self.gate());
        for (user, ..) in users {
            call.arg(place(*user));
        }
        for (_, tries, entry) in users {
            call.arg(held(*tries, (*entry).into()));
        }
        call.invoke_async(&mut app.redis.commands()).await.context("writing who holds a unit")
    }

    /// Opens the gate. False when the right to build is lost.
    pub async fn open(&self, app: &App, token: &str, activity: &Activity) -> anyhow::Result<bool> {
        OPEN.key(self.lock())
            .key(self.gate())
            .key(self.keys.stream())
            .key(self.keys.delayed())
            .arg(token)
            .arg(activity.stock_left)
            .arg(activity.starts_at.ms())
            .arg(activity.ends_at.ms())
            .arg(i32::from(activity.closed_at.is_some()))
            .arg(activity.per_user_limit)
            .arg(activity.ends_at.plus(EXPIRE_AFTER_END).ms())
            .invoke_async(&mut app.redis.commands())
            .await
            .context("opening a gate")
    }

    /// Puts units back on sale, each once. Returns how many came back.
    pub async fn return_units(&self, app: &App, entries: &[(UserId, EntryId)]) -> anyhow::Result<i64> {
        let mut call = RETURN.prepare_invoke();
        call.key(self.gate());
        for (user, entry) in entries {
            call.arg(user.to_string()).arg(entry.to_string());
        }
        call.invoke_async(&mut app.redis.commands()).await.context("returning units")
    }

    /// Frees the place of a submission that came to nothing.
    pub async fn forget(&self, app: &App, user: UserId, entry: EntryId) -> anyhow::Result<()> {
        let mut call = FORGET.key(self.gate());
        call.arg(user.to_string()).arg(entry.to_string());
        call.invoke_async::<i64>(&mut app.redis.commands()).await.map(drop).context("freeing a place")
    }

    /// How far those who have the course are written.
    pub async fn owners_written(&self, app: &App) -> anyhow::Result<OwnerProgress> {
        let mut read = redis::cmd("HMGET");
        read.arg(self.gate()).arg("starts").arg("owners").arg("marks");
        let (starts, owners, marks): (Option<String>, Option<String>, Option<u64>) =
            read.query_async(&mut app.redis.commands()).await.context("reading how far the owners are written")?;
        Ok(OwnerProgress::read(starts.as_deref(), owners.as_deref(), marks))
    }

    /// What one command tells; `None` without a gate.
    pub async fn glance(&self, app: &App) -> anyhow::Result<Option<Glance>> {
        type Fields = (Option<String>, Option<String>, Option<u64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
        let mut read = redis::cmd("HMGET");
        read.arg(self.gate()).arg(&["starts", "owners", "marks", "stock", "seq", "done", "closed"]);
        let (starts, owners, marks, stock, admitted, ended, closed): Fields =
            read.query_async(&mut app.redis.commands()).await.context("glancing at a gate")?;
        let (Some(_), Some(stock)) = (&starts, stock) else { return Ok(None) };
        let (admitted, ended, is_closed) = (admitted.unwrap_or(0), ended.unwrap_or(0), closed == Some(1));
        let written = OwnerProgress::read(starts.as_deref(), owners.as_deref(), marks);
        Ok(Some(Glance { counts: Counts { stock, admitted, ended, is_closed }, written }))
    }

    /// Whether Redis has something of the gate of each of these, by one command for all; not on a cluster, where their keys
    /// are of many slots.
    pub async fn all_exist(app: &App, activities: &[ActivityId]) -> anyhow::Result<bool> {
        let mut asked = redis::cmd("EXISTS");
        for activity in activities {
            asked.arg(Self::of(&app.engine, *activity).gate());
        }
        let found: usize = asked.query_async(&mut app.redis.commands()).await.context("looking for gates")?;
        Ok(found == activities.len())
    }

    /// Takes the owners' marks off that these places have; `next` is where to go on, 0 at the end.
    pub async fn unmark(&self, app: &App, owners: &[UserId], next: u64) -> anyhow::Result<()> {
        let how_far = if next == 0 { ALL_OFF.to_owned() } else { format!("{TAKEN_OFF}{next}") };
        // What is noted is done: the last call alone says how far it is.
        let (pages, last) = owners.split_at(owners.len() / PLACES_AT_ONCE * PLACES_AT_ONCE);
        let pages = pages.chunks(PLACES_AT_ONCE).map(|page| (page, "")).chain([(last, how_far.as_str())]);
        for (page, how_far) in pages {
            let mut call = UNMARK.key(self.gate());
            call.arg(how_far);
            for owner in page {
                call.arg(place(*owner));
            }
            call.invoke_async::<i64>(&mut app.redis.commands()).await.context("taking owners off a gate")?;
        }
        Ok(())
    }

    /// Removes all that is kept of the activity but records of tasks, which expire one by one. Returns how many keys.
    pub async fn remove(&self, app: &App) -> anyhow::Result<u64> {
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg(self.keys.lasting()).arg(self.lock());
        unlink.query_async(&mut app.redis.commands()).await.context("removing the keys of an activity")
    }

    /// Writes who has the course, where no task is named; `last` is how far they are written then, `None`: all are.
    /// Returns how many fields the gate has.
    pub async fn write_owners(&self, app: &App, owners: &[UserId], last: Option<UserId>) -> anyhow::Result<u64> {
        let mut call = OWN.key(self.gate());
        call.arg(last.map_or_else(|| "all".to_owned(), |last| last.to_string()));
        for owner in owners {
            call.arg(owner.to_string());
        }
        call.invoke_async(&mut app.redis.commands()).await.context("writing who has a course")
    }

    /// From a place among the gate's fields on, 0 at first: (where to go on, 0 at the end; how many fields were looked
    /// at; whose place says that they have the course).
    pub async fn owners_from(&self, app: &App, at: u64, count: usize) -> anyhow::Result<(u64, usize, Vec<UserId>)> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(self.gate()).arg(at).arg("COUNT").arg(count);
        let (next, fields): (u64, Vec<(String, String)>) =
            scan.query_async(&mut app.redis.commands()).await.context("looking who has a course")?;
        let owner = |(field, value): &(String, String)| {
            let user = field.strip_prefix('u').filter(|_| value.ends_with(":owned"))?;
            user.parse().ok()
        };
        Ok((next, fields.len(), fields.iter().filter_map(owner).collect()))
    }

    /// Changes what places hold, each only while it holds what it is said to. Returns how many were changed.
    pub async fn change_places(&self, app: &App, places: &[(UserId, Held)], to: Held) -> anyhow::Result<u64> {
        let mut changed = 0;
        for page in places.chunks(PLACES_AT_ONCE) {
            let mut call = CHANGE.key(self.gate());
            call.arg(to.to_string());
            for (user, held) in page {
                call.arg(user.to_string()).arg(held.to_string());
            }
            let n: u64 = call.invoke_async(&mut app.redis.commands()).await.context("changing places in a gate")?;
            changed += n;
        }
        Ok(changed)
    }

    /// (gate's stock, admitted so far, admitted and not acknowledged); `None` without a gate.
    pub async fn look(&self, app: &App) -> anyhow::Result<Option<(i64, i64, i64)>> {
        let (stock, admitted, in_flight): (i64, i64, i64) = LOOK
            .key(self.gate())
            .key(self.keys.stream())
            .key(self.keys.delayed())
            .invoke_async(&mut app.redis.commands())
            .await
            .context("looking at a gate")?;
        Ok((stock >= 0).then_some((stock, admitted, in_flight)))
    }

    /// Changes the stock if nothing moved since the look; whether it did.
    pub async fn adjust(&self, app: &App, seen_stock: i64, seen_admitted: i64, change: i64) -> anyhow::Result<bool> {
        ADJUST
            .key(self.gate())
            .arg(seen_stock)
            .arg(seen_admitted)
            .arg(change)
            .invoke_async(&mut app.redis.commands())
            .await
            .context("adjusting a gate")
    }

    /// Takes units off sale: `Some(false)` when not so many are left, `None` without a gate.
    pub async fn take(&self, app: &App, units: i64) -> anyhow::Result<Option<bool>> {
        let taken: i64 = TAKE
            .key(self.gate())
            .arg(units)
            .invoke_async(&mut app.redis.commands())
            .await
            .context("taking units off sale")?;
        Ok((taken >= 0).then_some(taken == 1))
    }

    /// Puts more units on sale.
    pub async fn add(&self, app: &App, units: i64) -> anyhow::Result<()> {
        self.set(app, "HINCRBY", "stock", units).await
    }

    /// Shuts the gate for good.
    pub async fn close(&self, app: &App) -> anyhow::Result<()> {
        self.set(app, "HSET", "closed", 1).await
    }

    async fn set(&self, app: &App, command: &str, field: &str, value: i64) -> anyhow::Result<()> {
        let call = SET
            .key(self.gate())
            .arg(command)
            .arg(field)
            .arg(value)
            .invoke_async::<i64>(&mut app.redis.commands())
            .await;
        call.map(|_| ()).context("changing a gate")
    }

    /// Inside the acknowledgement: the user's place is free again.
    pub fn forget_user(&self, user: UserId) -> Effect {
        Effect { key: self.gate(), command: "HDEL", args: vec![place(user)] }
    }

    /// Inside the acknowledgement: what the user's place holds.
    pub fn remember_user(&self, user: UserId, tries: i64, what: Held) -> Effect {
        Effect { key: self.gate(), command: "HSET", args: vec![place(user), held(tries, what)] }
    }

    /// Inside the acknowledgement: the reserved unit is on sale again.
    pub fn return_unit(&self) -> Effect {
        Effect { key: self.gate(), command: "HINCRBY", args: vec!["stock".to_owned(), "1".to_owned()] }
    }
}

/// The gate's field with a user's place.
fn place(user: UserId) -> String {
    format!("u{user}")
}

/// What is in it.
fn held(tries: i64, what: Held) -> String {
    format!("{tries}:{what}")
}

/// The gate's word on the submission whose task would be `entry`.
fn admission(word: &str, entry: EntryId) -> Option<Admission> {
    let (what, value) = word.split_once(':').unwrap_or((word, ""));
    Some(match what {
        "no_gate" => Admission::NoGate,
        "admitted" => Admission::Admitted(entry),
        "in" => Admission::InAlready(value.parse().ok()?),
        "lost" => Admission::Lost(value.parse().ok()?),
        "not_started" => Admission::NotStarted(At::from_ms(value.parse().ok()?)),
        "ended" => Admission::Ended,
        "sold_out" => Admission::SoldOut,
        "owned" => Admission::Owned,
        "refunded" => Admission::Refunded,
        "limit" => Admission::LimitReached(value.parse().ok()?),
        _ => return None,
    })
}
