//! Tasks to be enqueued, alone, one after the other, or as a group.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::envelope::Envelope;
use super::keys::{NotAQueue, QueueName};
use super::priority::Priority;
use super::task::{Task, TaskId};
use crate::platform::traces::TraceParent;

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

    /// Its envelope, enqueued `now` (ms since 1970).
    pub(super) fn envelope(&self, now: i64) -> Envelope {
        let (priority, trace) = (self.priority, self.trace.clone());
        Envelope { priority, trace, ..Envelope::new(self.key, &self.name, self.args.clone(), now) }
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

/// What follows a task that has ended; it lies in the queue's outbox until it is on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Follow {
    /// These tasks, which the handler asked for.
    Calls(Vec<Call>),
    /// The next of a chain, with what this one ended with, and those after it.
    Next { call: Call, then: Vec<Call>, previous: Box<RawValue>, member: Option<Member> },
    /// A member of a group has ended.
    Ended {
        member: Member,
        result: Box<RawValue>,
        failed: bool,
        #[serde(default)]
        revoked: bool,
    },
    /// The rest of a chain, of which a task was taken back: none of it runs.
    Revoked(Vec<Call>),
}

impl Follow {
    /// What follows a task that was taken back.
    pub fn revocation(envelope: &Envelope) -> Vec<Self> {
        let mut all = Vec::new();
        if !envelope.then.is_empty() {
            all.push(Self::Revoked(envelope.then.clone()));
        }
        if let Some(member) = &envelope.member {
            let (member, result) = (member.clone(), RawValue::NULL.to_owned());
            all.push(Self::Ended { member, result, failed: true, revoked: true });
        }
        all
    }

    /// As the outbox holds them; empty when there are none.
    pub fn text(all: &[Self]) -> String {
        if all.is_empty() { String::new() } else { serde_json::to_string(all).unwrap_or_default() }
    }
}
