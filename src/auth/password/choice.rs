//! A password as a person typed it, and which ones may be chosen.
//!
//! Two keyboards may write one password with other code points: it is hashed in its composed spelling (NFC). Accounts of
//! versions that did not do so have the hash of what was typed then; so a login keeps that, too.

use std::collections::HashSet;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer};

use crate::auth::model::Phone;
use crate::platform::spelling::composed;

/// Characters, at least.
const MIN_CHARS: usize = 8;
/// Bytes in its composed spelling, at most: a sentence in any script. The hash takes the whole.
const MAX_BYTES: usize = 256;

/// One line each; what is there is in small letters.
static COMMON: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    include_str!("common.txt").lines().filter(|line| *line != "#" && !line.starts_with("# ")).collect()
});

/// A password. It does not print itself.
pub(in crate::auth) struct Password {
    /// In its composed spelling.
    composed: String,
    /// As it was typed, where that is another spelling.
    typed: Option<String>,
}

impl From<String> for Password {
    fn from(typed: String) -> Self {
        let composed = composed(&typed);
        Self { typed: (typed != composed).then_some(typed), composed }
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl Password {
    /// Its composed spelling, which is hashed.
    pub fn into_composed(self) -> String {
        self.composed
    }

    /// Its spellings: the composed one, and what was typed where that is another.
    pub fn into_spellings(self) -> (String, Option<String>) {
        (self.composed, self.typed)
    }

    /// Why nobody can have it, if so; at a login, too.
    pub fn length_fault(&self) -> Option<&'static str> {
        let fits = self.composed.chars().count() >= MIN_CHARS && self.composed.len() <= MAX_BYTES;
        (!fits).then_some("must have 8 characters at least and 256 bytes at most")
    }

    /// Why the account of this number may not choose it, if so: what is guessed first.
    pub fn choice_fault(&self, phone: Option<&Phone>) -> Option<&'static str> {
        let small = self.composed.to_lowercase();
        let mut chars = small.chars();
        let first = chars.next();
        if chars.all(|c| Some(c) == first) || COMMON.contains(small.as_str()) {
            return Some("is one of the commonest passwords: it would be guessed");
        }
        let digits: String = small.chars().filter(char::is_ascii_digit).collect();
        let nothing_else = small.chars().all(|c| c.is_ascii_digit() || " +-()".contains(c));
        let is_phone = |phone: &Phone| nothing_else && digits.ends_with(phone.as_str()) && digits.len() <= 15;
        phone.is_some_and(is_phone).then_some("must not be the phone number")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::from(text.to_owned())
    }

    #[test]
    fn a_password_has_8_characters_to_256_bytes_in_its_composed_spelling() {
        let fits = |text: &str| password(text).length_fault().is_none();
        assert!(!fits("7 chars") && !fits("密码") && fits("12345678"));
        assert!(fits(&"密".repeat(85)) && !fits(&"密".repeat(86)) && fits(&"a".repeat(256)) && !fits(&"a".repeat(257)));
        // Eight characters that were typed as sixteen.
        let typed = "u\u{308}".repeat(8);
        assert!(fits(&typed) && !fits(&"u\u{308}".repeat(7)));
        assert_eq!(password(&typed).into_spellings(), ("ü".repeat(8), Some(typed)));
        assert_eq!(password("Müller-Straße").into_spellings(), ("Müller-Straße".to_owned(), None));
    }

    #[test]
    fn the_commonest_passwords_and_the_phone_number_are_not_to_be_chosen() {
        let phone: Phone = "13800000001".parse().unwrap();
        let fault = |text: &str| password(text).choice_fault(Some(&phone));
        assert!(COMMON.len() >= 3000, "{}", COMMON.len());
        for bad in [
            "password",
            "PassWord",
            "12345678",
            "1qaz2wsx",
            "iloveyou",
            "woaini1314",
            "aaaaaaaaaaaa",
            "密密密密密密密密",
        ] {
            assert!(fault(bad).is_some_and(|fault| fault.contains("commonest")), "{bad}");
        }
        for bad in ["13800000001", "+8613800000001", "138-0000-0001", "86 138 0000 0001"] {
            assert!(fault(bad).is_some_and(|fault| fault.contains("phone")), "{bad}");
        }
        for good in
            ["a long password", "onrush-demo", "onrush-admin", "13900000002", "13800000001 is mine", "# of pages"]
        {
            assert_eq!(fault(good), None, "{good}");
        }
    }

    #[test]
    fn every_line_of_the_list_can_be_what_somebody_types() {
        for line in COMMON.iter() {
            let typed = password(line);
            assert!(typed.length_fault().is_none(), "{line}");
            assert_eq!(typed.into_composed().to_lowercase(), *line);
        }
    }
}
