//! What a task is: its type, its id, one delivery of it, and what a handler can say of it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::control::Control;
use super::keys::QueueName;
use super::priority::Priority;

/// How long a result is kept that nobody asks about: until an operator who looks on has seen it.
const BRIEFLY: Duration = Duration::from_secs(600);

/// A kind of background work, declared as the type of its arguments.
pub trait Task: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name in envelopes, metrics and logs, such as `mails.welcome`. Never changed once tasks exist.
    const NAME: &'static str;
    /// The queue it goes to.
    const QUEUE: &'static str;
    /// When an attempt failed.
    const RETRY: Retry = Retry::DEFAULT;
    /// How long an attempt may take.
    const LIMIT: TimeLimit = TimeLimit::NONE;
    /// How long the record is kept after the end, which takes memory of Redis for as long: by default ten minutes, as for a
    /// task that nobody asks about. `None`, for one whose result somebody polls for: as long as `engine.result_ttl_s` says.
    const KEEP_RESULT: Option<Duration> = Some(BRIEFLY);
    /// Calls of its handler under way at once in one process, at most; by default as many as its queue lets.
    const CONCURRENCY: Option<usize> = None;
    /// How urgent it is, where the call does not say.
    const PRIORITY: Priority = Priority::DEFAULT;
    /// Whether the arguments are nobody's to see.
    const SECRET: bool = false;
}

/// How long an attempt may take. A batch has the limits of one task.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimit {
    /// Then the handler is told to stop ([`Job::control`]).
    pub soft: Option<Duration>,
    /// Then it is aborted and the attempt has failed. Not for a handler that uses the database: a statement must not be
    /// abandoned half way (see `platform::db`).
    pub hard: Option<Duration>,
}

impl TimeLimit {
    /// As long as it takes.
    pub const NONE: Self = Self { soft: None, hard: None };

    pub(super) fn is_none(&self) -> bool {
        self.soft.is_none() && self.hard.is_none()
    }
}

/// How a failed attempt is repeated: exponentially with jitter.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in all; after the last one the task goes to the dead letters.
    pub attempts: u32,
    /// Pause before the second attempt.
    pub base: Duration,
    /// The longest pause.
    pub cap: Duration,
}

impl Retry {
    /// Ten attempts over two to three minutes.
    pub const DEFAULT: Self = Self { attempts: 10, base: Duration::from_millis(500), cap: Duration::from_secs(60) };

    /// The pause after attempt number `attempt` (from 1): between a half and the whole of `base × 2^(attempt-1)`,
    /// at most `cap`. `random` is uniform over all of `u64`.
    pub fn pause(&self, attempt: u32, random: u64) -> Duration {
        let doubled = self.base.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1))).min(self.cap);
        let half = doubled / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_micros(random % span)
    }
}

/// Where a task is and what it is called: its key (32 hex digits) and its queue. As text `<key>.<queue>`, with `.`
/// for the `/` before the partition, so that it fits a URL's path segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskId {
    /// The key, unique in the queue.
    pub key: Uuid,
    /// The queue.
    pub queue: QueueName,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.key.as_simple(), self.queue.as_str().replace('/', "."))
    }
}

/// The text is not a task's id.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be a task's id, such as 019aa23b8f007cc3a1d2c0ffee000001.grant")]
pub struct NotATask;

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for TaskId {
    type Err = NotATask;
    fn from_str(text: &str) -> Result<Self, NotATask> {
        let (key, queue) = text.split_once('.').ok_or(NotATask)?;
        if key.len() != 32 || key.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NotATask);
        }
        let key = Uuid::try_parse(key).map_err(|_| NotATask)?;
        let queue = queue.replace('.', "/").parse().map_err(|_| NotATask)?;
        Ok(Self { key, queue })
    }
}

/// One delivery of a task to a handler.
#[derive(Debug, Clone)]
pub struct Job<T> {
    /// The task's id.
    pub id: TaskId,
    /// The attempt, from 1. A delivery that a dead worker left does not begin a new attempt.
    pub attempt: u32,
    /// How often it was delivered in this attempt, from 1.
    pub delivery: u32,
    /// The arguments.
    pub args: T,
    /// What the task before it in its chain ended with; for the callback of a group, what its members did, in order.
    pub previous: Option<Value>,
    /// When to stop, and how to tell how far it is.
    pub control: Arc<Control>,
}

impl<T> Job<T> {
    /// A first delivery, for handlers that are called by hand.
    pub fn new(id: TaskId, args: T) -> Self {
        Self { id, attempt: 1, delivery: 1, args, previous: None, control: Arc::default() }
    }
}

/// A Redis command that runs inside the acknowledgement, on a key of the same queue: all of it or none.
#[derive(Debug, Clone)]
pub struct Effect {
    /// The key; it must carry the queue's hash tag.
    pub key: String,
    /// The command's name, such as `HINCRBY`.
    pub command: &'static str,
    /// What follows the key.
    pub args: Vec<String>,
}

/// A task's state, by Celery's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Waiting for a worker or for its time.
    Pending,
    /// With a worker.
    Started,
    /// An attempt failed, another one is scheduled.
    Retry,
    /// Ended well.
    Success,
    /// Ended badly.
    Failure,
    /// Taken back before it ran.
    Revoked,
}

impl State {
    /// Whether the state is final.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pause_is_within_its_bounds(attempt in 1u32..1000, random: u64) {
            let retry = Retry::DEFAULT;
            let pause = retry.pause(attempt, random);
            prop_assert!(pause <= retry.cap);
            prop_assert!(pause >= retry.base / 2);
        }

        #[test]
        fn no_text_makes_reading_a_task_id_panic(text in "[0-9a-f]{31,33}[./][a-z0-9_/.{}-]{0,40}|\\PC{0,60}") {
            if let Ok(id) = text.parse::<TaskId>() {
                prop_assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id.clone());
                // What could end or begin a hash tag would put its keys anywhere.
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-/".contains(&b);
                prop_assert!(id.queue.as_str().bytes().all(plain), "{}", id);
            }
        }

        #[test]
        fn a_task_id_survives_its_text(key: u128, partition in "[0-9a-f]{1,32}") {
            let id = TaskId { key: Uuid::from_u128(key), queue: QueueName::partition("exports", partition).unwrap() };
            prop_assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        }
    }

    #[test]
    fn what_is_not_a_task_id_is_refused() {
        for bad in [
            "",
            "x",
            "01936f3c7a3b70008000000000000001",
            "01936f3c7a3b70008000000000000001.",
            "1.grant",
            "01936f3c7a3b70008000000000000001.a}b",
        ] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
    }
}
