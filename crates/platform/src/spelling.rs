//! Text that people read: one spelling of each character, and something to see.

use serde::{Deserialize, Deserializer};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// The composed spelling (NFC): `e` with an accent behind it, as some keyboards and file systems write it, is `é`.
pub fn composed(text: &str) -> String {
    text.nfc().collect()
}

/// Reads text in its composed spelling: `#[serde(deserialize_with = "nfc")]`.
pub fn nfc<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| composed(&text))
}

/// As [`nfc`], where there may be no text: `#[serde(default, deserialize_with = "nfc_option")]`.
pub fn nfc_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer).map(|text| text.as_deref().map(composed))
}

/// As [`nfc`], of each text of a list.
pub fn nfc_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Vec::<String>::deserialize(deserializer).map(|texts| texts.iter().map(|text| composed(text)).collect())
}

/// Whether the character tells text that follows to run the other way: what is seen is then not what is written, such as
/// `gnp.exe` for `exe.png`.
pub fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Whether the character ends a line or a paragraph wherever it stands.
pub fn separates_lines(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}')
}

/// Letters and symbols by their category that show nothing: the fillers of Hangul, and the Braille cell without a dot.
const SHOW_NOTHING: [char; 5] = ['\u{115F}', '\u{1160}', '\u{3164}', '\u{FFA0}', '\u{2800}'];

/// Whether a person sees something where the character stands by itself. Blanks, format characters, characters that
/// nobody has assigned and marks without anything to stand on show nothing.
pub fn is_visible(c: char) -> bool {
    let shows = matches!(
        c.general_category_group(),
        GeneralCategoryGroup::Letter
            | GeneralCategoryGroup::Number
            | GeneralCategoryGroup::Punctuation
            | GeneralCategoryGroup::Symbol
    );
    shows && !SHOW_NOTHING.contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_character_has_one_spelling() {
        assert_eq!(composed("Mu\u{308}ller"), "Müller");
        assert_eq!(composed("Müller 课程 👩‍💻"), "Müller 课程 👩‍💻");
    }

    #[test]
    fn what_shows_nothing_is_known() {
        for c in ['a', '课', '1', '!', '，', '€', '😀', '🏴'] {
            assert!(is_visible(c), "{c}");
        }
        for c in [
            ' ',
            '\t',
            '\u{A0}',
            '\u{3000}',
            '\u{200B}',
            '\u{200D}',
            '\u{FEFF}',
            '\u{3164}',
            '\u{FFA0}',
            '\u{115F}',
            '\u{1160}',
            '\u{2800}',
            '\u{00AD}',
            '\u{034F}',
            '\u{180E}',
            '\u{FE0F}',
            '\u{E0041}',
            '\u{301}',
            '\u{2060}',
            '\u{202E}',
            '\u{2066}',
            '\u{2028}',
            '\u{FFFF}',
            '\u{E000}',
        ] {
            assert!(!is_visible(c), "U+{:04X}", u32::from(c));
        }
    }
}
