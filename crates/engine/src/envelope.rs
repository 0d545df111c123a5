//! What a task is in Redis: the envelope that travels, and the record that a poller reads. Both are JSON.
//!
//! A task that waits has no record: it is an entry of the stream (or of the delayed set) and a field of the queue's
//! [`meta`](super::Keys::meta) hash, written with it by the same script. A record is written when its task has run for
//! a while, was put off, taken back, or has ended, and expires.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::call::{Call, Member};
use super::priority::Priority;
use super::task::State;
use onrush_platform::traces::TraceParent;

/// The version of [`Envelope`] that this program writes, and the newest one it understands.
pub const VERSION: u32 = 1;

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it failed, in ms since 1970.
    pub at: i64,
    /// Why, cut off after [`ERROR_KEPT`] characters.
    pub error: String,
}

/// So many failed attempts of a task are remembered, the latest.
const ERRORS_KEPT: usize = 5;
/// Of an error, so many characters are remembered.
const ERROR_KEPT: usize = 500;
/// Arguments longer than this are not kept when the task has ended: they lie in no queue then, and fill Redis.
const ARGS_KEPT_BYTES: usize = 16 * 1024;

/// `errors` and one more.
pub(super) fn and_failed(errors: &[Failed], attempt: u32, at: i64, why: &str) -> Vec<Failed> {
    let mut all = errors.to_vec();
    all.push(Failed { attempt, at, error: why.chars().take(ERROR_KEPT).collect() });
    all.drain(..all.len().saturating_sub(ERRORS_KEPT));
    all
}

/// A task on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Its version; a newer one is left to a newer program.
    pub v: u32,
    /// The task's key.
    #[serde(with = "uuid::serde::simple")]
    pub key: Uuid,
    /// Which handler.
    pub name: String,
    /// The handler's arguments, as they were written.
    pub args: Box<RawValue>,
    /// The attempt that comes next, from 1.
    pub attempt: u32,
    /// When it was enqueued, in ms since 1970.
    pub at: i64,
    /// How urgent it is. The scripts that put it into a stream read this.
    #[serde(default, skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
    /// Who may ask about it, where that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What the task before it in a chain ended with, or the members of its group, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<RawValue>>,
    /// What comes after it in its chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Call>,
    /// Its part in a group: of a chain, that of its last task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
    /// Its failed attempts, the latest few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Failed>,
    /// Where in a trace it was enqueued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceParent>,
    /// The span of the attempt before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<TraceParent>,
}

impl Envelope {
    /// Of a task enqueued `now` (ms since 1970).
    pub fn new(key: Uuid, name: &str, args: Box<RawValue>, now: i64) -> Self {
        Self {
            v: VERSION,
            key,
            name: name.to_owned(),
            args,
            attempt: 1,
            at: now,
            priority: Priority::DEFAULT,
            owner: None,
            previous: None,
            then: Vec::new(),
            member: None,
            errors: Vec::new(),
            trace: None,
            tried: None,
        }
    }

    /// Of a call, enqueued `now` (ms since 1970).
    pub(super) fn of(call: &Call, now: i64) -> Self {
        let (priority, trace) = (call.priority, call.trace.clone());
        Self { priority, trace, ..Self::new(call.key, &call.name, call.args.clone(), now) }
    }

    /// Of a task of which nothing but its key is known.
    pub(super) fn nameless(key: Uuid) -> Self {
        Self::new(key, "", RawValue::NULL.to_owned(), 0)
    }

    /// The envelope in `text`, or why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let read = serde_json::from_str::<Self>(text);
        // One that cannot be read may be newer all the same.
        let version = read.as_ref().ok().map(|envelope| envelope.v);
        let version = version.or_else(|| serde_json::from_str::<Version>(text).ok().map(|found| found.v));
        match version {
            Some(v) if v > VERSION => Err(format!("an envelope of version {v}, newer than {VERSION}")),
            _ => read.map_err(|error| format!("not an envelope: {error}")),
        }
    }

    /// As Redis holds it.
    pub fn text(&self) -> String {
        // Strings and numbers always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What is known of a task that has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its state.
    pub state: State,
    /// Which handler.
    pub name: String,
    /// How urgent it was.
    #[serde(default, skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
    /// Who may ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The attempt.
    pub attempt: u32,
    /// When it was enqueued, in ms since 1970.
    pub at: i64,
    /// When its last attempt began, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// When it ended, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// How far it is, as its handler says: (done, of).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<(u64, u64)>,
    /// Who ran it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// What it ended with; `{"error": …}` when an attempt failed.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// Its arguments, as they were written; absent when they are too long to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Box<RawValue>>,
    /// Its failed attempts, the latest few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Failed>,
}

impl Record {
    /// Of a task in `state`.
    pub fn of(envelope: &Envelope, state: State) -> Self {
        Self {
            state,
            name: envelope.name.clone(),
            priority: envelope.priority,
            owner: envelope.owner.clone(),
            attempt: envelope.attempt,
            at: envelope.at,
            started_at: None,
            ended_at: None,
            progress: None,
            worker: None,
            result: Value::Null,
            args: Some(&envelope.args).filter(|args| args.get().len() <= ARGS_KEPT_BYTES).cloned(),
            errors: envelope.errors.clone(),
        }
    }

    /// Of a task that was taken back `now` (ms since 1970), and about which nothing else is at hand.
    pub fn revoked(now: i64) -> Self {
        Self {
            state: State::Revoked,
            name: String::new(),
            priority: Priority::DEFAULT,
            owner: None,
            attempt: 0,
            at: now,
            started_at: None,
            ended_at: Some(now),
            progress: None,
            worker: None,
            result: Value::Null,
            args: None,
            errors: Vec::new(),
        }
    }

    /// Of a task that was taken back `now` (ms since 1970) before it ran.
    pub(super) fn taken_back(envelope: &Envelope, now: i64) -> Self {
        Self { ended_at: Some(now), ..Self::of(envelope, State::Revoked) }
    }

    /// As Redis holds it.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_envelope_survives_its_text_and_keeps_its_arguments_to_the_letter() {
        let text =
            r#"{"v":1,"key":"01936f3c7a3b70008000000000000001","name":"a","args":{"b": 1.50},"attempt":2,"at":7}"#;
        let envelope = Envelope::parse(text).unwrap();
        assert_eq!(envelope.text(), text);
    }

    #[test]
    fn a_priority_is_written_only_when_it_is_not_the_default_one() {
        let of = |priority| Envelope { priority, ..Envelope::nameless(Uuid::from_u128(1)) };
        assert!(!of(Priority::DEFAULT).text().contains("priority"));
        let text = of(Priority::of::<9>()).text();
        assert!(text.contains(r#""priority":9"#), "{text}");
        assert_eq!(Envelope::parse(&text).unwrap().priority, Priority::of::<9>());
        let said = Envelope::parse(&text.replace(":9", ":10")).unwrap_err();
        assert!(said.contains("from 0 (the most urgent) to 9"), "{said}");
    }

    #[test]
    fn what_is_no_envelope_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "not an envelope"),
            ("{}", "missing field `v`"),
            (r#"{"v":2,"anything":[]}"#, "newer"),
            (r#"{"v":1,"key":"1"}"#, "not an envelope"),
        ] {
            let said = Envelope::parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    /// An envelope with everything in it.
    fn whole() -> String {
        let call = r#"{"queue":"grant","key":"01936f3c7a3b70008000000000000002","name":"b","args":[1]}"#;
        format!(
            r#"{{"v":1,"key":"01936f3c7a3b70008000000000000001","name":"a","args":{{"b":1.50}},"attempt":2,"at":7,"priority":3,"owner":"o","previous":null,"then":[{call}],"member":{{"group":"01936f3c7a3b70008000000000000003","number":0,"of":2,"callback":{call}}},"errors":[{{"attempt":1,"at":5,"error":"e"}}]}}"#
        )
    }

    proptest! {
        /// Redis is outside too: an older or newer program, or a person, may have written there.
        #[test]
        fn no_text_makes_reading_an_envelope_or_a_record_panic(text in "\\PC{0,200}", at: prop::sample::Index, sign in any::<char>(), cut in any::<bool>()) {
            let _ = (Envelope::parse(&text), serde_json::from_str::<Record>(&text));
            prop_assert!(Envelope::parse(&whole()).is_ok());
            let mut altered: Vec<char> = whole().chars().collect();
            let at = at.index(altered.len());
            if cut { altered.truncate(at) } else { altered[at] = sign }
            let altered: String = altered.into_iter().collect();
            let _ = serde_json::from_str::<Record>(&altered);
            if let Ok(envelope) = Envelope::parse(&altered) {
                prop_assert_eq!(Envelope::parse(&envelope.text()).unwrap().text(), envelope.text());
            }
        }
    }
}
