//! Every Redis key of the engine, and the names of queues.
//!
//! All keys of one queue (of one partition, where a queue has several) share the hash tag `{<queue>}`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::priority::Priority;

/// The consumer group of every stream.
pub const GROUP: &str = "workers";

/// A queue's name: segments of `a-z 0-9 _ -` joined by `/`; what follows the first `/` names the partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName(Arc<str>);

impl TryFrom<String> for QueueName {
    type Error = NotAQueue;
    fn try_from(text: String) -> Result<Self, NotAQueue> {
        text.parse()
    }
}

impl From<QueueName> for String {
    fn from(queue: QueueName) -> Self {
        queue.0.as_ref().to_owned()
    }
}

/// The text is not a queue's name.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is not a queue name")]
pub struct NotAQueue;

/// A queue name has at most this many bytes.
const MAX_NAME: usize = 96;

impl QueueName {
    /// A partition of `queue`.
    pub fn partition(queue: &str, partition: impl fmt::Display) -> Result<Self, NotAQueue> {
        format!("{queue}/{partition}").parse()
    }

    /// The partition of `queue`, a name known to be good, that belongs to the thing with this id.
    pub fn of_id(queue: &'static str, id: Uuid) -> Self {
        Self(format!("{queue}/{}", id.as_simple()).into())
    }

    /// The queue, without its partition: what metrics are labelled with.
    pub fn base(&self) -> &str {
        self.0.split('/').next().unwrap_or("")
    }

    /// The partition, where the queue has several.
    pub fn partition_name(&self) -> Option<&str> {
        self.0.split_once('/').map(|(_, partition)| partition)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for QueueName {
    type Err = NotAQueue;
    fn from_str(text: &str) -> Result<Self, NotAQueue> {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let good = text.len() <= MAX_NAME && text.split('/').all(|s| !s.is_empty() && s.bytes().all(letter));
        if good { Ok(Self(text.into())) } else { Err(NotAQueue) }
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys of one queue.
#[derive(Debug, Clone)]
pub struct Keys {
    base: String,
}

impl Keys {
    /// The keys of `queue` under `prefix`.
    pub fn new(prefix: &str, queue: &QueueName) -> Self {
        Self { base: format!("{prefix}:{{{queue}}}") }
    }
    /// Stream of envelopes to run, of the default priority.
    pub fn stream(&self) -> String {
        format!("{}:stream", self.base)
    }
    /// Stream of envelopes to run, of this priority (`lua/streams.lua` makes the same).
    pub fn stream_of(&self, priority: Priority) -> String {
        if priority.is_default() { self.stream() } else { format!("{}:stream:{priority}", self.base) }
    }
    /// Set: the priorities beside the default one for which there is a stream. It has no expiry, like these.
    pub fn levels(&self) -> String {
        format!("{}:stream:levels", self.base)
    }
    /// Sorted set: task key by the millisecond at which it is due.
    pub fn delayed(&self) -> String {
        format!("{}:delayed", self.base)
    }
    /// Hash: envelopes of what is in [`Keys::delayed`], by task key.
    pub fn envelopes(&self) -> String {
        format!("{}:envelopes", self.base)
    }
    /// Stream of dead letters, bounded.
    pub fn dead(&self) -> String {
        format!("{}:dead", self.base)
    }
    /// Hash: the counters `seq` (tasks that entered a stream) and `done` (tasks that left it), and by its key each
    /// task that has not ended: `<seq> <since, ms> <entry, or ->[ <owner>]`; an entry of a stream of another priority than
    /// the default one is `<id>:<priority>`. In `overtaken`, and `overtaken:<priority>`, there is the latest entry of that stream
    /// whose task came again, under its key, before the entry had ended; without it there was none.
    pub fn meta(&self) -> String {
        format!("{}:meta", self.base)
    }
    /// Hash: running tasks that are to be stopped, by task key.
    pub fn revoked(&self) -> String {
        format!("{}:revoked", self.base)
    }
    /// Hash of what operators have set: `paused` (there or not), `concurrency` (per process). It has no expiry: a setting
    /// stays until it is taken back.
    pub fn control(&self) -> String {
        format!("{}:control", self.base)
    }
    /// Stream of what ended, of some 20,000 tasks at most: an entry for each state of an acknowledged batch, with the tasks'
    /// name `n`, the state `s`, and the tasks' keys `t`.
    pub fn ended(&self) -> String {
        format!("{}:ended", self.base)
    }
    /// List of `<ms> <seq> <done>`, newest first: how the counters of [`Keys::meta`] stood in the last minute.
    pub fn samples(&self) -> String {
        format!("{}:samples", self.base)
    }
    /// Stream of what follows ended tasks and is not on its way yet.
    pub fn outbox(&self) -> String {
        format!("{}:outbox", self.base)
    }
    /// Hash: the results of a group's members that have ended.
    pub fn group(&self, group: impl fmt::Display) -> String {
        format!("{}:group:{group}", self.base)
    }
    /// Lives as long as a task with this key may not come again.
    pub fn once(&self, key: impl fmt::Display) -> String {
        format!("{}:once:{key}", self.base)
    }
    /// The record of one task.
    pub fn task(&self, key: impl fmt::Display) -> String {
        format!("{}:task:{key}", self.base)
    }
    /// What the keys of all tasks begin with, for scripts that make one.
    pub fn task_prefix(&self) -> String {
        format!("{}:task:", self.base)
    }
    /// Channel on which the keys of finished tasks are announced.
    pub fn done(&self) -> String {
        format!("{}:done", self.base)
    }
    /// Never there. A script that writes, and uses a key that it does not name or one that it may have emptied, names
    /// this one last. While a slot moves to another node of a cluster, what is not here may be there, and such a use
    /// fails in the middle of a script; for the sake of this key the node refuses the script before it begins, and it
    /// is asked again (`platform::redis::cluster`).
    pub fn absent(&self) -> String {
        format!("{}:absent", self.base)
    }
    /// Those that are there while there is something to follow: tasks that wait for their time (and envelopes, which are
    /// nothing's where none does), what is set of the queue, whom to stop, what is to be sent, other priorities.
    pub(super) fn stirring(&self) -> Vec<String> {
        vec![self.control(), self.delayed(), self.revoked(), self.levels(), self.outbox(), self.envelopes()]
    }
    /// Those that are the queue's own and do not belong to one task or group: what a partition that is over leaves behind.
    pub fn lasting(&self) -> Vec<String> {
        self.types().into_iter().map(|(key, _)| key).collect()
    }

    /// The keys of the queue as a whole, each with its type as Redis calls it.
    pub(super) fn types(&self) -> Vec<(String, &'static str)> {
        let mut all = vec![
            (self.stream(), "stream"),
            (self.levels(), "set"),
            (self.delayed(), "zset"),
            (self.envelopes(), "hash"),
            (self.dead(), "stream"),
            (self.meta(), "hash"),
            (self.revoked(), "hash"),
            (self.control(), "hash"),
            (self.ended(), "stream"),
            (self.samples(), "list"),
            (self.outbox(), "stream"),
        ];
        let levels = (0..=9).filter_map(|number| Priority::try_from(number).ok()).filter(|level| !level.is_default());
        all.extend(levels.map(|level| (self.stream_of(level), "stream")));
        all
    }
    /// A key of the feature that owns the queue, in the same slot.
    pub fn own(&self, name: &str) -> String {
        format!("{}:{name}", self.base)
    }
}

/// The channel on which the process called `name` hears itself. Its hash tag is no queue's name.
pub(super) fn echo(prefix: &str, name: impl fmt::Display) -> String {
    format!("{prefix}:{{.echo}}:{name}")
}

/// The keys of the registry of workers. Their hash tag is no queue's name, so a queue of any name has keys of its own.
#[derive(Debug, Clone)]
pub(super) struct WorkerKeys {
    base: String,
}

impl WorkerKeys {
    /// Under `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { base: format!("{prefix}:{{.workers}}") }
    }
    /// Sorted set: instances by the millisecond of their last sign of life.
    pub fn index(&self) -> String {
        format!("{}:index", self.base)
    }
    /// Hash: by an idle queue's name, who keeps it going and until when: `<ms> <instance>`.
    pub fn keepers(&self) -> String {
        format!("{}:keepers", self.base)
    }
    /// Sorted set: partitions of which a task was retried lately, by the millisecond.
    pub fn retried(&self) -> String {
        format!("{}:retried", self.base)
    }
    /// Stream by which an instance ends a read of one of its watches.
    pub fn bell(&self, instance: &str, watch: usize) -> String {
        format!("{}:bell:{instance}:{watch}", self.base)
    }
    /// What an instance said last; gone soon after its last word.
    pub fn worker(&self, instance: &str) -> String {
        format!("{}:worker:{instance}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_partition_share_its_hash_tag() {
        let queue = QueueName::partition("exports", "0193").unwrap();
        let keys = Keys::new("p", &queue);
        for key in [
            keys.stream(),
            keys.stream_of(Priority::of::<3>()),
            keys.levels(),
            keys.delayed(),
            keys.envelopes(),
            keys.dead(),
            keys.meta(),
            keys.task("x"),
            keys.own("gate"),
        ] {
            assert!(key.starts_with("p:{exports/0193}:"), "{key}");
        }
        assert!(keys.lasting().iter().all(|key| key.starts_with("p:{exports/0193}:")));
        assert_eq!((queue.base(), queue.partition_name()), ("exports", Some("0193")));
    }

    #[test]
    fn a_queue_name_cannot_break_out_of_its_tag() {
        for bad in ["", "a}b", "a{b", "A", "a//b", "/a", "a.b", "a b", "é"] {
            assert!(bad.parse::<QueueName>().is_err(), "{bad}");
        }
    }
}
