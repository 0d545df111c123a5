//! Tasks as the API shows them.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::app::App;
use crate::engine::inspect::{Found, ListedTask};
use crate::engine::{Failed, Priority, Registry, State, TaskId};
use crate::platform::clock::At;
use crate::platform::described::AnyValue;

/// Whether arguments are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArgsShown {
    /// They are.
    Shown,
    /// They are nobody's to see: the task says so, or this program does not know it.
    Secret,
    /// They are not kept any more.
    Forgotten,
}

/// The arguments of a task of this name as far as they may be seen.
pub fn arguments(registry: &Registry<App>, name: &str, args: Option<&RawValue>) -> (Value, ArgsShown) {
    if registry.is_secret(name) {
        return (Value::Null, ArgsShown::Secret);
    }
    match args {
        Some(args) => (serde_json::from_str(args.get()).unwrap_or_default(), ArgsShown::Shown),
        None => (Value::Null, ArgsShown::Forgotten),
    }
}

/// A failed attempt.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FailedView {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it failed.
    pub at: At,
    /// Why, cut off after 500 characters.
    pub error: String,
}

impl FailedView {
    /// As the API shows it.
    pub fn of(failed: &Failed) -> Self {
        Self { attempt: failed.attempt, at: At::from_ms(failed.at), error: failed.error.clone() }
    }
}

/// A task in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ListedView {
    /// Its id.
    pub id: String,
    /// Its queue.
    pub queue: String,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// How urgent it is, from 0 (the most urgent) to 9; null when its record is gone.
    #[schema(minimum = 0, maximum = 9)]
    pub priority: Option<u8>,
    /// Its attempt; null when its record is gone.
    pub attempt: Option<u32>,
    /// When it was enqueued.
    pub enqueued_at: Option<At>,
    /// When it is due, where it waits for its time.
    pub due_at: Option<At>,
    /// When its last attempt began.
    pub started_at: Option<At>,
    /// When it ended.
    pub ended_at: Option<At>,
    /// The worker that has it, or had it last.
    pub worker: Option<String>,
}

impl From<ListedTask> for ListedView {
    fn from(task: ListedTask) -> Self {
        Self {
            queue: super::super::segment(&task.id.queue),
            id: task.id.to_string(),
            name: task.name,
            state: task.state,
            priority: task.priority.map(Priority::number),
            attempt: task.attempt,
            enqueued_at: task.enqueued_at,
            due_at: task.due_at,
            started_at: task.started_at,
            ended_at: task.ended_at,
            worker: task.worker,
        }
    }
}

/// How far a task is, by its own word.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ProgressView {
    /// Done.
    pub done: u64,
    /// Of so many.
    pub of: u64,
}

/// A task with all that is known of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// Its queue.
    pub queue: String,
    /// Its name; empty when that is not known any more.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Its arguments.
    #[schema(value_type = AnyValue)]
    pub args: Value,
    /// Whether they are shown.
    pub args_shown: ArgsShown,
    /// Who may ask about it, where that matters: a person's id.
    pub owner: Option<String>,
    /// How urgent it is, from 0 (the most urgent) to 9.
    #[schema(minimum = 0, maximum = 9)]
    pub priority: u8,
    /// Its attempt, from 1: the one under way, the last one, or the next one.
    pub attempt: u32,
    /// How often the attempt under way was delivered.
    pub deliveries: Option<u64>,
    /// Its failed attempts, the latest five at most.
    #[schema(max_items = 5)]
    pub errors: Vec<FailedView>,
    /// When it was enqueued.
    pub enqueued_at: At,
    /// When it is due, where it waits for its time.
    pub due_at: Option<At>,
    /// When its last attempt began.
    pub started_at: Option<At>,
    /// When it ended.
    pub ended_at: Option<At>,
    /// The worker that has it, or had it last.
    pub worker: Option<String>,
    /// How far it is, where it says so.
    pub progress: Option<ProgressView>,
    /// What it ended with.
    #[schema(value_type = AnyValue)]
    pub result: Value,
}

impl TaskView {
    /// Of what was found.
    pub fn of(registry: &Registry<App>, id: &TaskId, found: Found) -> Self {
        let state = found.state();
        let Found { record, envelope, due, held } = found;
        let (envelope, record) = (envelope.as_ref(), record.as_ref());
        // Of the same key, the record may be of an earlier run: what is on its way speaks first.
        let name = envelope.map(|e| e.name.as_str()).or(record.map(|r| r.name.as_str())).unwrap_or("");
        let raw = envelope.map(|e| &*e.args).or(record.and_then(|r| r.args.as_deref()));
        let (args, args_shown) = arguments(registry, name, raw);
        let failed = envelope.map(|e| &e.errors).or(record.map(|r| &r.errors));
        let (attempt, at) =
            envelope.map(|e| (e.attempt, e.at)).or(record.map(|r| (r.attempt, r.at))).unwrap_or_default();
        let ended = record.filter(|_| state.is_final());
        Self {
            id: id.to_string(),
            queue: super::super::segment(&id.queue),
            name: name.to_owned(),
            state,
            args,
            args_shown,
            owner: envelope.map(|e| e.owner.clone()).or(record.map(|r| r.owner.clone())).flatten(),
            priority: envelope.map(|e| e.priority).or(record.map(|r| r.priority)).unwrap_or_default().number(),
            attempt,
            deliveries: held.as_ref().map(|held| held.deliveries),
            errors: failed.into_iter().flatten().map(FailedView::of).collect(),
            enqueued_at: At::from_ms(at),
            due_at: due,
            started_at: record.and_then(|r| r.started_at).map(At::from_ms),
            ended_at: ended.and_then(|r| r.ended_at).map(At::from_ms),
            worker: held.map(|held| held.worker).or(record.and_then(|r| r.worker.clone())),
            progress: record.and_then(|r| r.progress).map(|(done, of)| ProgressView { done, of }),
            result: ended.map(|r| r.result.clone()).unwrap_or_default(),
        }
    }
}
