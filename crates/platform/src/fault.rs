//! What is wrong with a value, field by field, with every fault of it told at once.

mod fit;

pub(crate) use fit::fit;
#[cfg(feature = "http")]
pub(crate) use fit::rule_for_a_person;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One fault of one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldFault {
    /// Where: `items[2].course_id`, a header's, a query parameter's or a path segment's name; empty for the body as a
    /// whole.
    pub field: String,
    /// What is wrong, for a person.
    pub message: String,
}

impl FieldFault {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// What kind of refusal the faults make; of several the last one here. `error.rs` says which kind each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultClass {
    /// The header that makes a request safe to repeat is missing.
    KeyMissing,
    /// That header is not valid.
    KeyInvalid,
    /// A shape or a rule is not met.
    Invalid,
    /// The body is not JSON (or not UTF-8).
    Malformed,
    /// The body did not arrive whole.
    Incomplete,
    /// The body did not arrive in time.
    TooSlow,
    /// The body is not declared as JSON in UTF-8.
    NotJson,
    /// The body is longer than the limit.
    TooLarge,
}

/// More faults than this are not told one by one.
pub(crate) const MAX_FAULTS: usize = 50;

/// Of one list so many are told one by one: a list full of faults must not hide those of other fields.
pub(crate) const MAX_FAULTS_OF_A_LIST: usize = 20;

/// The faults of a request that were found so far.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub(crate) why: Option<FaultClass>,
    /// What the refusal says in one line: of a field's fault nothing, since its list says it all.
    detail: String,
    pub(crate) told: Vec<FieldFault>,
}

impl Faults {
    /// Adds a fault of `field`, unless one of it, or of what it is in, is told already.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.because(FaultClass::Invalid, field, message);
    }

    /// Adds a fault that makes another refusal than that of a field.
    pub fn because(&mut self, why: FaultClass, field: impl Into<String>, message: impl Into<String>) {
        let (field, message) = (field.into(), message.into());
        if self.why < Some(why) {
            let what = if field.is_empty() { "the body" } else { &field };
            self.detail = if why == FaultClass::Invalid { String::new() } else { format!("{what} {message}") };
            self.why = Some(why);
        }
        if self.told.len() >= MAX_FAULTS || self.told.iter().any(|told| lies_in(&field, &told.field)) {
            return;
        }
        let list = field.rfind('[').map(|at| &field[..at]);
        let is_full = |list: &&str| {
            let of_it = self.told.iter().filter(|told| lies_in(&told.field, list));
            of_it.count() >= MAX_FAULTS_OF_A_LIST
        };
        let fault = match list.filter(is_full) {
            Some(list) => FieldFault::new(list, "has more faults than are told here"),
            None => FieldFault::new(field, message),
        };
        self.told.push(fault);
    }

    /// Adds the faults that a function found.
    pub fn extend(&mut self, found: Vec<FieldFault>) {
        found.into_iter().for_each(|fault| self.add(fault.field, fault.message));
    }

    /// Whether nothing is wrong with any of these fields, nor within them: what they mean together can be said.
    pub fn spare(&self, fields: &[&str]) -> bool {
        !self.told.iter().any(|told| fields.iter().any(|field| lies_in(&told.field, field)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.why.is_none()
    }

    /// What they amount to, in one line where a list does not say it, and all of them.
    pub fn into_told(self) -> (Option<FaultClass>, String, Vec<FieldFault>) {
        (self.why, self.detail, self.told)
    }
}

/// Whether the field is this one or a part of it. Nothing lies in the body as a whole but itself.
fn lies_in(field: &str, whole: &str) -> bool {
    let rest = field.strip_prefix(whole);
    rest.is_some_and(|rest| rest.is_empty() || (!whole.is_empty() && rest.starts_with(['.', '['])))
}

/// The faults that a value has as a `T`, each under its place within `at`.
pub fn faults_of<T: DeserializeOwned>(at: &str, value: Value) -> Vec<FieldFault> {
    let mut faults = Faults::default();
    fit::<T>(value, false, &mut faults);
    let within = |field: String| if field.is_empty() { at.to_owned() } else { format!("{at}.{field}") };
    faults.told.into_iter().map(|fault| FieldFault { field: within(fault.field), ..fault }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_lies_in_itself_and_in_what_holds_it() {
        assert!(lies_in("a", "a") && lies_in("a.b", "a") && lies_in("a[1]", "a") && lies_in("", ""));
        assert!(!lies_in("ab", "a") && !lies_in("a", "a.b") && !lies_in("a", ""));
    }
}
