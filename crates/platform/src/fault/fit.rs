//! Fits a JSON value to a type, with every fault of its shape.
//!
//! serde stops at the first fault. To tell them all, each is noted and its place filled with some value of the wanted
//! type, until the whole fits. What was wanted is read from serde's words, which a person never sees: they are put into
//! ours here. A type of ours that parses itself says what it wants in its own words, with an example behind "such as",
//! and the example fills its place.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::{Faults, MAX_FAULTS};

/// Each place is filled at most so often: it may turn out twice that more than text is wanted.
const FILLINGS: usize = 4;
/// A value is read anew after each fault, so a large one less often: values read, of a text each [`TEXT_SHARE`] bytes, in
/// all rounds together. Further faults are then told the next time.
const MAX_READ: usize = 1 << 20;
/// As many bytes of text are as much work as one value more.
const TEXT_SHARE: usize = 32;
/// Said of a place of which only its type is known; a more exact word replaces it.
const TEXT: &str = "must be text";

/// `value` as a `T`; where there were faults, with something of the wanted types in their places. `None` when a place
/// could not be filled, there is no end to it, or it is too large to look for more. `textual`: numbers and booleans may come as text (query strings).
pub(crate) fn fit<T: DeserializeOwned>(mut value: Value, textual: bool, faults: &mut Faults) -> Option<T> {
    for _ in 0..rounds(&value) {
        match serde_path_to_error::deserialize::<_, T>(&value) {
            Ok(fitted) => return Some(fitted),
            Err(error) => {
                let path = error.path().clone();
                let mended = mend(&mut value, &path, &error.into_inner().to_string(), textual, faults);
                if !mended || faults.told.len() >= MAX_FAULTS {
                    return None;
                }
            }
        }
    }
    None
}

/// How often a value is read at most. Once it must be.
fn rounds(value: &Value) -> usize {
    (MAX_READ / size(value)).clamp(1, MAX_FAULTS * FILLINGS)
}

/// How much there is to read.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => 1 + text.len() / TEXT_SHARE,
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// Notes one fault and changes `value` so that the next reading passes it; false when that is not possible.
fn mend(value: &mut Value, path: &Path, message: &str, textual: bool, faults: &mut Faults) -> bool {
    let mut segments: Vec<Segment> = path.iter().cloned().collect();
    let quoted = |prefix: &str| {
        message.strip_prefix(prefix).and_then(|rest| rest.split_once('`')).map(|(name, _)| name.to_owned())
    };
    if let Some(name) = quoted("unknown field `") {
        // serde reports the unknown field itself as the last segment.
        if !matches!(segments.last(), Some(Segment::Map { key }) if *key == name) {
            segments.push(Segment::Map { key: name.clone() });
        }
        faults.add(render(&segments), "is not a known field");
        let holder = members(value, &segments[..segments.len() - 1]);
        return holder.and_then(|holder| holder.remove(&name)).is_some();
    }
    if let Some(name) = quoted("missing field `") {
        segments.push(Segment::Map { key: name.clone() });
        faults.add(render(&segments), "is required");
        let holder = members(value, &segments[..segments.len() - 1]);
        return holder.map(|holder| holder.insert(name, Value::from(""))).is_some();
    }
    let wanted = Wanted::read(message);
    let Some(target) = place(value, &segments) else {
        faults.add(render(&segments), wanted.message);
        return false;
    };
    if textual
        && let Value::String(text) = target
        && let Some(meant) = wanted.meant_by(text)
    {
        *target = meant;
        return true;
    }
    let field = render(&segments);
    match faults.told.iter_mut().find(|told| told.field == field) {
        Some(told) if told.message == TEXT => told.message = wanted.message,
        Some(_) => {}
        None => faults.add(field, wanted.message),
    }
    let Some(filling) = wanted.filling.filter(|filling| filling != target) else { return false };
    *target = filling;
    true
}

/// What a place should have held.
struct Wanted {
    message: String,
    /// Something that might fit.
    filling: Option<Value>,
}

impl Wanted {
    fn new(message: impl Into<String>, filling: impl Into<Value>) -> Self {
        Self { message: message.into(), filling: Some(filling.into()) }
    }

    /// From what serde, or a type that parses itself, says.
    fn read(message: &str) -> Self {
        let serde = ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant "];
        let Some((_, wanted)) =
            message.rsplit_once(", expected ").filter(|_| serde.iter().any(|start| message.starts_with(start)))
        else {
            let filling = message.rsplit_once("such as ").map(|(_, example)| Value::from(example));
            return Self { message: message.to_owned(), filling };
        };
        if message.starts_with("unknown variant ") {
            let known: Vec<&str> = wanted.split('`').skip(1).step_by(2).collect();
            return Self::new(format!("must be one of: {}", known.join(", ")), known.first().copied().unwrap_or(""));
        }
        if is_whole(wanted) {
            // The bounds of our types are nobody's business; those of the field are its rule's.
            let word = match message.strip_prefix("invalid value: integer `") {
                Some(number) if number.starts_with('-') && wanted.starts_with('u') => "must not be negative",
                Some(number) if number.starts_with('-') => "is too small",
                Some(_) => "is too large",
                None => "must be a whole number",
            };
            return Self::new(word, 0);
        }
        match wanted {
            "f32" | "f64" => Self::new("must be a number", 0),
            "a boolean" => Self::new("must be true or false", false),
            "a sequence" => Self::new("must be a list", Value::Array(Vec::new())),
            wanted if wanted == "a map" || wanted.starts_with("struct ") => Self::new("must be an object", Map::new()),
            _ => Self::new(TEXT, ""),
        }
    }

    /// The number or boolean that the text of a query string stands for, where one is wanted.
    fn meant_by(&self, text: &str) -> Option<Value> {
        match self.filling {
            Some(Value::Number(_)) => text.parse::<i64>().ok().map(Value::from),
            Some(Value::Bool(_)) => text.parse::<bool>().ok().map(Value::from),
            _ => None,
        }
    }
}

/// Whether serde calls a type of whole numbers so.
fn is_whole(name: &str) -> bool {
    let rest = name.strip_prefix(['u', 'i']);
    rest.is_some_and(|bits| matches!(bits, "8" | "16" | "32" | "64" | "size"))
}

/// garde's words about a rule, in ours.
#[cfg(feature = "http")]
pub(crate) fn rule_for_a_person(message: &str) -> String {
    let rules = [
        ("length is lower than ", "must have a length of at least "),
        ("length is greater than ", "must have a length of at most "),
        ("lower than ", "must be at least "),
        ("greater than ", "must be at most "),
    ];
    let known = rules.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", message.strip_prefix(theirs)?)));
    known.unwrap_or_else(|| message.to_owned())
}

fn place<'v>(value: &'v mut Value, segments: &[Segment]) -> Option<&'v mut Value> {
    segments.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(*index),
        Segment::Map { key } => value.get_mut(key.as_str()),
        // Beside an enum's own place, where its name is looked for.
        Segment::Enum { .. } => Some(value),
        Segment::Unknown => None,
    })
}

fn members<'v>(value: &'v mut Value, segments: &[Segment]) -> Option<&'v mut Map<String, Value>> {
    place(value, segments)?.as_object_mut()
}

fn render(segments: &[Segment]) -> String {
    let mut text = String::new();
    for segment in segments {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Segment::Enum { .. } => {}
            Segment::Unknown => text.push('?'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_number_is_said_without_the_bounds_of_our_types() {
        for (theirs, ours) in [
            ("invalid type: string \"x\", expected u32", "must be a whole number"),
            ("invalid type: floating point `1e300`, expected i64", "must be a whole number"),
            ("invalid value: integer `-1`, expected u64", "must not be negative"),
            ("invalid value: integer `-99999999999`, expected i32", "is too small"),
            ("invalid value: integer `99999999999`, expected i32", "is too large"),
        ] {
            assert_eq!(Wanted::read(theirs).message, ours);
        }
    }

    #[test]
    fn a_large_value_is_read_less_often() {
        let list = |count: usize, item: &str| Value::from(vec![item; count]);
        assert_eq!(rounds(&list(100, "x")), MAX_FAULTS * FILLINGS);
        for large in [list(1 << 17, "x"), list(2, &"x".repeat(2 << 20)), list(1 << 22, "")] {
            assert!((1..10).contains(&rounds(&large)));
        }
        let mut faults = Faults::default();
        assert_eq!(fit::<Vec<u64>>(list(1 << 17, "x"), false, &mut faults), None);
        let fields: Vec<&str> = faults.told.iter().map(|told| told.field.as_str()).collect();
        assert_eq!(fields, ["[0]", "[1]", "[2]", "[3]", "[4]", "[5]", "[6]"]);
    }

    #[test]
    fn what_a_client_sends_is_not_taken_for_what_is_wanted() {
        assert_eq!(
            Wanted::read("invalid type: string \"x, expected u8\", expected a boolean").message,
            "must be true or false"
        );
        assert_eq!(
            Wanted::read("unknown variant `u8, expected z`, expected `a` or `b`").message,
            "must be one of: a, b"
        );
    }

    #[derive(Debug, Default, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Wanting {
        id: Option<super::super::super::id::Id<()>>,
        limit: Option<u32>,
        on: Option<bool>,
        names: Vec<String>,
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,20}|[0-9]{1,12}|true|[0-9a-f]{32}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 32, 6, |inner| {
            let name = prop_oneof![Just("id"), Just("limit"), Just("on"), Just("names"), Just("another")];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((name, inner), 0..6).prop_map(|all| {
                    Value::Object(all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
                }),
            ]
        })
    }

    proptest! {
        /// Bodies and query strings of any shape: what is right is read as it is, what is not is told, and nothing panics.
        #[test]
        fn what_is_wrong_is_told_and_what_is_right_is_read(value in anything(), textual in any::<bool>()) {
            let mut faults = Faults::default();
            let read = fit::<Wanting>(value.clone(), textual, &mut faults);
            match serde_json::from_value::<Wanting>(value) {
                Ok(right) => prop_assert!(faults.told.is_empty() && read == Some(right)),
                Err(_) if textual => {}
                Err(_) => prop_assert!(!faults.told.is_empty()),
            }
        }
    }
}
