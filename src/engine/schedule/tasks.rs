//! Which tasks a schedule may name.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use uuid::Uuid;

use super::super::client::Engine;
use super::super::task::Task;
use super::send;
use crate::platform::extract::FieldFault;

/// Enqueues a task with these arguments once under each key.
type Enqueue = fn(Engine, String, Vec<Uuid>) -> BoxFuture<'static, anyhow::Result<()>>;

/// A task that schedules may name.
#[derive(Clone)]
pub(super) struct Schedulable {
    pub name: &'static str,
    pub queue: &'static str,
    parses: fn(&str) -> Result<(), String>,
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
        let parses = |args: &str| serde_json::from_str::<T>(args).map(drop).map_err(|e| e.to_string());
        let enqueue: Enqueue = |engine, args, keys| send::enqueue::<T>(engine, args, keys).boxed();
        let task = Schedulable { name: T::NAME, queue: T::QUEUE, parses, enqueue, without_redis: false };
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

    pub(super) fn get(&self, name: &str) -> Option<&Schedulable> {
        self.0.get(name)
    }

    /// Why `task` cannot be scheduled with `args`.
    pub(super) fn fault(&self, task: &str, args: &str) -> Option<FieldFault> {
        match self.get(task) {
            Some(known) => (known.parses)(args).err().map(|why| FieldFault::new("args", why)),
            None => {
                let names = self.names().join(", ");
                Some(FieldFault::new("task", format!("is not a task that can be scheduled; these are: {names}")))
            }
        }
    }
}
