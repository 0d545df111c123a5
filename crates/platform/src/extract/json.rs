//! Reads a body as JSON: declared as such, in UTF-8, and with each key of an object once.

use std::fmt;

use axum::http::{HeaderMap, header};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::{FaultClass, Faults};
use crate::fault::MAX_FAULTS;

/// Why the body is not declared as JSON in UTF-8, if it is not.
pub(super) fn not_declared(headers: &HeaderMap) -> Option<&'static str> {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let declared = declared.to_ascii_lowercase();
    let mut parts = declared.split(';').map(str::trim);
    let essence = parts.next().unwrap_or("");
    if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
        return Some("must be application/json");
    }
    let mut charsets = parts.filter_map(|part| part.strip_prefix("charset=")).map(|name| name.trim_matches('"'));
    if charsets.all(|name| name == "utf-8" || name == "utf8") {
        None
    } else {
        Some("must be application/json in UTF-8")
    }
}

/// The body as a value. A key that comes twice is a fault of that field, and the first one counts. It takes a time in
/// proportion to the body, whatever that is.
pub(super) fn read(bytes: &[u8], faults: &mut Faults) -> Option<Value> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            faults.because(FaultClass::Malformed, "", format!("is not UTF-8 text after {} bytes", error.valid_up_to()));
            return None;
        }
    };
    if text.trim().is_empty() {
        faults.because(FaultClass::Malformed, "", "is empty: it must be a JSON object");
        return None;
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let mut repeats = Repeats { faults, left: MAX_FAULTS };
    let read = Reader { at: &At::Whole, repeats: &mut repeats }.deserialize(&mut reader);
    match read.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Some(value),
        Err(error) => {
            let place = format!("line {}, column {}", error.line(), error.column());
            let message = match error.classify() {
                Category::Eof => format!("is not JSON: it ends too early, at {place}"),
                _ => format!("is not JSON that can be read, from {place} on"),
            };
            faults.because(FaultClass::Malformed, "", message);
            None
        }
    }
}

/// A place in the body. It is written out for a fault alone: a body of one long key with a long list would have it
/// copied for each item.
enum At<'a> {
    Whole,
    Item(&'a At<'a>, usize),
    Member(&'a At<'a>, &'a str),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Item(list, index) => write!(f, "{list}[{index}]"),
            Self::Member(Self::Whole, key) => f.write_str(key),
            Self::Member(object, key) => write!(f, "{object}.{key}"),
        }
    }
}

/// The keys that came twice.
struct Repeats<'f> {
    faults: &'f mut Faults,
    /// So many more are looked at. Not all that are looked at are told: one may come a third time.
    left: usize,
}

impl Repeats<'_> {
    fn note(&mut self, at: &At<'_>) {
        if self.left > 0 {
            self.left -= 1;
            self.faults.add(at.to_string(), "is given more than once");
        }
    }
}

/// Reads one value, which stands at this place.
struct Reader<'a, 'f> {
    at: &'a At<'a>,
    repeats: &'a mut Repeats<'f>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_, '_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let at = At::Item(self.at, list.len());
            match items.next_element_seed(Reader { at: &at, repeats: self.repeats })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let at = At::Member(self.at, &key);
            let member = members.next_value_seed(Reader { at: &at, repeats: self.repeats })?;
            if map.contains_key(&key) {
                self.repeats.note(&at);
            } else {
                map.insert(key, member);
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use serde_json::json;

    fn told(body: &[u8]) -> (Option<Value>, Option<FaultClass>, Vec<(String, String)>) {
        let mut faults = Faults::default();
        let value = read(body, &mut faults);
        (value, faults.why, faults.told.into_iter().map(|f| (f.field, f.message)).collect())
    }

    #[test]
    fn a_key_that_comes_twice_is_named_wherever_it_is() {
        let (value, why, told) = told(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 3}"#);
        assert_eq!(value, Some(json!({"a": 1, "b": [{"c": 1}]})));
        let fields: Vec<&str> = told.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!((why, fields), (Some(FaultClass::Invalid), vec!["b[0].c", "a"]));
    }

    #[test]
    fn the_keys_that_come_twice_are_looked_at_up_to_a_number() {
        let (mut faults, key) = (Faults::default(), "k".repeat(10));
        let mut repeats = Repeats { faults: &mut faults, left: 2 };
        for index in 0..5 {
            repeats.note(&At::Item(&At::Member(&At::Whole, &key), index));
        }
        let fields: Vec<&str> = faults.told.iter().map(|told| told.field.as_str()).collect();
        assert_eq!(fields, ["kkkkkkkkkk[0]", "kkkkkkkkkk[1]"]);
    }

    #[test]
    fn what_is_not_json_is_said_with_its_place() {
        for bad in [&b""[..], b"{", b"{\"a\": }", b"[1,]", b"{} x", b"{\"a\": \"\xff\"}", b"nul", b"{a: 1}"] {
            let (value, why, told) = told(bad);
            assert_eq!((value, why, told.len()), (None, Some(FaultClass::Malformed), 1));
            assert!(told[0].0.is_empty() && !told[0].1.contains("expected"), "{told:?}");
        }
        let deep = "[".repeat(10_000);
        assert_eq!(self::told(deep.as_bytes()).1, Some(FaultClass::Malformed));
    }

    #[test]
    fn only_json_in_utf_8_is_declared_well() {
        let declared = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            not_declared(&headers).is_none()
        };
        for good in ["application/json", "Application/JSON; charset=UTF-8", "application/x+json;charset=\"utf-8\""] {
            assert!(declared(good), "{good}");
        }
        for bad in ["text/plain", "application/json; charset=gbk", "application/json; q=1; charset=utf-16", ""] {
            assert!(!declared(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_json_or_a_query_panic(bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "[\\[\\]{}\",:0-9a-f ]{0,30}".prop_map(String::into_bytes),
            ], query in "[!-~]{0,80}") {
            let mut faults = Faults::default();
            if let Some(value) = read(&bytes, &mut faults) {
                prop_assert!(serde_json::from_slice::<Value>(&bytes).is_ok(), "{value}");
            } else {
                prop_assert!(!faults.told.is_empty());
            }
            prop_assert!(serde_urlencoded::from_str::<Vec<(String, String)>>(&query).is_ok());
        }
    }
}
