//! Tasks to be enqueued, alone, one after the other, or as a group.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::keys::{NotAQueue, QueueName};
use super::priority::Priority;
use super::task::{Task, TaskId};
use onrush_platform::traces::TraceParent;

/// A task of any kind, to be enqueued.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// The queue it goes to.
    pub queue: QueueName,
    /// Its key, unique in the queue.
    #[serde(with = "uuid::serde::simple")]
    pub key: Uuid,
    /// Which handler.
    pub name: String,
    /// The handler's arguments, as JSON.
    pub args: Box<RawValue>,
    /// How urgent it is.
    #[serde(default, skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
    /// Where in a trace it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceParent>,
}

impl Call {
    /// Of a handler, with a key of its own.
    pub fn of<T: Task>(args: &T) -> Result<Self, NotAQueue> {
        Self::keyed(Uuid::now_v7(), args)
    }

    /// As [`Call::of`], with this key.
    pub fn keyed<T: Task>(key: Uuid, args: &T) -> Result<Self, NotAQueue> {
        let (queue, name) = (T::QUEUE.parse()?, T::NAME.to_owned());
        Ok(Self { queue, key, name, args: raw(args), priority: T::PRIORITY, trace: TraceParent::current() })
    }

    /// The same with this priority in place of its kind's.
    pub fn with_priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// The id of the task.
    pub fn id(&self) -> TaskId {
        TaskId { key: self.key, queue: self.queue.clone() }
    }
}

/// Arguments as JSON.
pub(super) fn raw<T: Serialize>(args: &T) -> Box<RawValue> {
    // A type whose values cannot be written is no argument: the handler's side then says so, in the dead letters.
    serde_json::value::to_raw_value(args).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// What becomes of a task whose key is on its way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unique {
    /// The first stays, until it has ended. One that waits for its time is replaced by one with a time of its own.
    #[default]
    UntilDone,
    /// The first stays, also when it has ended, for this long.
    For(Duration),
    /// The first is taken out if no worker has it yet, and the new one comes in its place.
    Replace,
}

/// A task's part in a group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// The group.
    #[serde(with = "uuid::serde::simple")]
    pub group: Uuid,
    /// Which of its members this is, from 0.
    pub number: usize,
    /// How many it has.
    pub of: usize,
    /// What runs when all have ended well, with their results in order.
    pub callback: Box<Call>,
}
