//! Which tasks a schedule may name.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use uuid::Uuid;

use super::super::client::Engine;
use super::super::task::Task;
use super::send;
use onrush_platform::fault::{FieldFault, faults_of};

/// Enqueues a task with these arguments once under each key.
type Enqueue = fn(Engine, String, Vec<Uuid>) -> BoxFuture<'static, anyhow::Result<()>>;

/// A task that schedules may name.
#[derive(Clone)]
pub(super) struct Schedulable {
    pub name: &'static str,
    pub queue: &'static str,
    args_faults: fn(Value) -> Vec<FieldFault>,
    pub enqueue: Enqueue,
    /// Whether the leader runs it itself when it cannot be enqueued.
    pub without_redis: bool,
}

/// The tasks that schedules may name.
#[derive(Clone, Default)]
pub struct Tasks(BTreeMap<&'static str, Schedulable>);

impl Tasks {
    /// Adds a task.
    pub fn task<T: Task>(mut self) -> Self {
        let enqueue: Enqueue = |engine, args, keys| send::enqueue::<T>(engine, args, keys).boxed();
        let task = Schedulable {
            name: T::NAME,
            queue: T::QUEUE,
            args_faults: |args| faults_of::<T>("args", args),
            enqueue,
            without_redis: false,
        };
        self.0.insert(T::NAME, task);
        self
    }

    /// As [`Tasks::task`], for an idempotent task that must run while Redis is away, too: then the leader runs it
    /// itself, by what [`Scheduler::new`](super::Scheduler::new) was given, without arguments.
    pub fn task_without_redis<T: Task>(mut self) -> Self {
        self = self.task::<T>();
        if let Some(task) = self.0.get_mut(T::NAME) {
            task.without_redis = true;
        }
        self
    }

    /// Their names, ascending.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// Those that can do without Redis, and those that cannot.
    pub(super) fn by_need(&self) -> [Vec<&'static str>; 2] {
        let (without, with): (Vec<_>, Vec<_>) = self.0.values().partition(|task| task.without_redis);
        [without, with].map(|tasks| tasks.into_iter().map(|task| task.name).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Schedulable> {
        self.0.get(name)
    }

    /// Why `task` cannot be scheduled with `args`.
    pub(super) fn faults(&self, task: &str, args: &str) -> Vec<FieldFault> {
        match self.get(task) {
            Some(known) => match serde_json::from_str(args) {
                Ok(args) => (known.args_faults)(args),
                Err(_) => vec![FieldFault::new("args", "must be an object")],
            },
            None => {
                let names = self.names().join(", ");
                vec![FieldFault::new("task", format!("must be one of: {names}"))]
            }
        }
    }
}
