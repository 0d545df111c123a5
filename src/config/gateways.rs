//! The settings of payment gateways: sections of their own, read apart from the others because their keys are in files.
//!
//! A gateway is **on** when any of its settings is given that has no default; then all that it needs must be. Files are
//! read, and what is in them is parsed, when the service starts: the configuration holds keys and no paths, and every
//! fault of every file is told with all others in the one report. What a fault says never has anything of a file in it.
//!
//! A gateway adds its rows to the table in `settings.rs`, a type for what it needs with a function that reads it from a
//! [`Section`], and a field `Option<Arc<…>>` of that type in [`super::Payments`], marked with [`read_apart`].

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use super::names::variable_of;
use super::settings::{SETTINGS, Setting};

/// Longest file that is read: keys and certificates are small.
const FILE_LIMIT_BYTES: u64 = 256 << 10;

/// The settings of one gateway, as they are read; and what is wrong with them.
pub(super) struct Section<'a> {
    raw: &'a config::Config,
    /// `payments.<gateway>`.
    name: &'static str,
    faults: &'a mut Vec<String>,
}

impl<'a> Section<'a> {
    /// The section of this name when the gateway is on.
    pub fn if_on(raw: &'a config::Config, name: &'static str, faults: &'a mut Vec<String>) -> Option<Self> {
        let section = Self { raw, name, faults };
        let is_given = |setting: &Setting| {
            let inner = setting.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            setting.default.is_none() && inner.is_some_and(|key| section.optional(key).is_some())
        };
        SETTINGS.iter().any(is_given).then_some(section)
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// A setting's text, when it is given and not empty.
    pub fn optional(&self, key: &str) -> Option<String> {
        self.raw.get_string(&self.full(key)).ok().filter(|text| !text.is_empty())
    }

    /// The text of a setting that the gateway needs.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let text = self.optional(key);
        if text.is_none() {
            let (full, wanted) = (self.full(key), self.wanted(key));
            let missing = format!("{} is not set; it must be {wanted} while {} is on", variable_of(&full), self.name);
            self.faults.push(missing);
        }
        text
    }

    /// A setting that does not go with the others, and why.
    pub fn refuse(&mut self, key: &str, why: &str) {
        let fault = format!("{} is not usable: {why}", variable_of(&self.full(key)));
        self.faults.push(fault);
    }

    /// What is in the file that a setting names.
    pub fn file<T>(&mut self, key: &str, parse: impl Fn(&[u8]) -> Result<T, String>) -> Option<T> {
        let path = self.text(key)?;
        self.read(key, &path, &parse)
    }

    /// What is in the files that a setting names, separated by commas: several keys at once while they are rotated. An
    /// entry is a path, or `id=path` where the gateway gives the key a name; `parse` is given the name.
    pub fn files<T>(&mut self, key: &str, parse: impl Fn(Option<&str>, &[u8]) -> Result<T, String>) -> Option<Vec<T>> {
        let entries = self.text(key)?;
        let (mut all, before) = (Vec::new(), self.faults.len());
        for entry in entries.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (id, path) = entry.split_once('=').map_or((None, entry), |(id, path)| (Some(id.trim()), path.trim()));
            all.extend(self.read(key, path, &|bytes: &[u8]| parse(id, bytes)));
        }
        if all.is_empty() && self.faults.len() == before {
            let (full, wanted) = (self.full(key), self.wanted(key));
            self.faults.push(format!("{} must be {wanted}", variable_of(&full)));
        }
        (self.faults.len() == before).then_some(all)
    }

    fn read<T>(&mut self, key: &str, path: &str, parse: &dyn Fn(&[u8]) -> Result<T, String>) -> Option<T> {
        let read = bytes_of(Path::new(path)).map_err(|error| error.to_string()).and_then(|bytes| parse(&bytes));
        let (full, wanted) = (self.full(key), self.wanted(key));
        read.map_err(|why| self.faults.push(format!("{} must be {wanted}: {path}: {why}", variable_of(&full)))).ok()
    }

    fn wanted(&self, key: &str) -> String {
        let full = self.full(key);
        SETTINGS.iter().find(|setting| setting.name == full).map(Setting::wanted).unwrap_or_default()
    }
}

fn bytes_of(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > FILE_LIMIT_BYTES {
        return Err(std::io::Error::other("it is too long to be a key"));
    }
    std::fs::read(path)
}

/// For a field that [`Section`] fills: what the settings have there is text for it alone.
pub(super) fn read_apart<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Option<Arc<T>>, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sandbox's settings, of which those with a default do not switch a gateway on.
    fn section(values: &[(&str, &str)], read: impl Fn(&mut Section<'_>)) -> Vec<String> {
        let mut builder = config::Config::builder();
        for (name, value) in values {
            builder = builder.set_override(*name, *value).unwrap();
        }
        let (raw, mut faults) = (builder.build().unwrap(), Vec::new());
        let mut section = Section { raw: &raw, name: "auth", faults: &mut faults };
        read(&mut section);
        faults
    }

    #[test]
    fn what_has_no_default_switches_a_section_on() {
        let on = |values: &[(&str, &str)]| {
            let mut builder = config::Config::builder();
            for (name, value) in values {
                builder = builder.set_override(*name, *value).unwrap();
            }
            let (raw, mut faults) = (builder.build().unwrap(), Vec::new());
            Section::if_on(&raw, "auth", &mut faults).is_some()
        };
        assert!(!on(&[]));
        assert!(!on(&[("auth.access_token_s", "5"), ("auth.jwt_public_key_file", "")]));
        assert!(on(&[("auth.jwt_public_key_file", "a.pem")]));
    }

    #[test]
    fn every_fault_of_a_file_is_told_and_nothing_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("good"), "one\n\n two \n").unwrap();
        std::fs::write(path("empty"), "\n").unwrap();
        std::fs::write(path("long"), vec![b'a'; 300 << 10]).unwrap();
        let fault = |file: &str| {
            let values = [("auth.jwt_private_key_file", path(file))];
            let values: Vec<_> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let whole = |bytes: &[u8]| if bytes.len() > 1 { Ok(()) } else { Err("it is empty".to_owned()) };
            section(&values, |section| {
                assert_eq!(section.file("jwt_private_key_file", whole).is_some(), file == "good")
            })
        };
        assert!(fault("good").is_empty());
        for (file, why) in [("empty", "it is empty"), ("missing", "No such file"), ("long", "too long")] {
            let told = fault(file);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(
                told[0].starts_with("ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE must be the path of a PEM file: "),
                "{told:?}"
            );
            assert!(told[0].contains(why), "{told:?}");
        }
        let missing = section(&[], |section| drop(section.text("jwt_private_key_file")));
        assert_eq!(
            missing,
            ["ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE is not set; it must be the path of a PEM file while auth is on"]
        );
    }

    #[test]
    fn several_files_come_with_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a"), "1").unwrap();
        std::fs::write(path("b"), "2").unwrap();
        let list = format!("ID_1={}, {}", path("a"), path("b"));
        let read = |list: &str, expected: Option<&[(Option<String>, u8)]>| {
            section(&[("auth.jwt_private_key_file", list)], |section| {
                let read = section.files("jwt_private_key_file", |id, bytes| match bytes {
                    [one] => Ok((id.map(str::to_owned), *one)),
                    _ => Err("it is no key".to_owned()),
                });
                assert_eq!(read.as_deref(), expected);
            })
        };
        assert!(read(&list, Some(&[(Some("ID_1".to_owned()), b'1'), (None, b'2')])).is_empty());
        std::fs::write(path("b"), "22").unwrap();
        let told = read(&format!("{list},{}", path("c")), None);
        assert!(told.len() == 2 && told[0].ends_with("b: it is no key"), "{told:?}");
        assert_eq!(read(" , ", None), ["ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE must be the path of a PEM file"]);
    }

    #[test]
    fn the_plain_reading_passes_over_what_is_read_apart() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Payments {
            #[serde(default, deserialize_with = "read_apart")]
            gateway: Option<Arc<String>>,
        }
        for text in ["{}", r#"{"gateway": {"app_id": "1", "key_file": "a.pem"}}"#] {
            assert!(serde_json::from_str::<Payments>(text).unwrap().gateway.is_none());
        }
    }
}
