//! What follows a task that has ended.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::call::{Call, Member};
use super::envelope::Envelope;

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
