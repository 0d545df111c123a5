//! What a handler can say of a task.

use std::time::Duration;

use serde_json::Value;

use super::call::Call;
use super::task::Effect;

/// What a handler says of one task.
#[derive(Debug)]
pub enum Outcome {
    /// Done, with its result.
    Success(Value),
    /// Done, with its result and commands inside the acknowledgement.
    SuccessWith {
        /// The result that a poller sees.
        result: Value,
        /// Commands inside the acknowledgement.
        effects: Vec<Effect>,
    },
    /// Ended without success for a reason that a further attempt does not change.
    Failure {
        /// The result that a poller sees.
        result: Value,
        /// Commands inside the acknowledgement.
        effects: Vec<Effect>,
    },
    /// Done, with its result; and these tasks are enqueued, in the same step as the acknowledgement.
    SuccessThen {
        /// The result that a poller sees.
        result: Value,
        /// What follows.
        calls: Vec<Call>,
    },
    /// This attempt failed; try again by the task's [`Retry`](super::task::Retry).
    Retry(anyhow::Error),
    /// This attempt failed and so would every other: the task goes to the dead letters.
    Fatal(anyhow::Error),
    /// Try again at a time of the handler's choosing; does not count as a failed attempt.
    Again(Duration),
}

impl Outcome {
    /// Done, with nothing to say.
    pub fn done() -> Self {
        Self::Success(Value::Null)
    }
}
