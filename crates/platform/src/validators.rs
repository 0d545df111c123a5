//! Rules for fields that `garde` does not have.

use super::clock::At;
use super::spelling::{is_visible, separates_lines, turns_text_around};

/// One line for people: `min..=max` characters, of which one at least can be seen, none is a control character, ends the
/// line or turns text around. The field is read with [`super::spelling::nfc`].
pub fn words(min: usize, max: usize) -> impl Fn(&str, &()) -> garde::Result {
    move |text, ()| {
        if text.chars().any(char::is_control) {
            return Err(garde::Error::new("must not have control characters, such as line breaks"));
        }
        readable(text, min, max)
    }
}

/// Lines for people: as [`words`], with line breaks and tabs; it may be empty.
pub fn prose(max: usize) -> impl Fn(&str, &()) -> garde::Result {
    move |text, ()| {
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(garde::Error::new("must not have control characters, but for line breaks and tabs"));
        }
        if text.is_empty() { Ok(()) } else { readable(text, 1, max) }
    }
}

fn readable(text: &str, min: usize, max: usize) -> garde::Result {
    if !(min..=max).contains(&text.chars().count()) {
        return Err(garde::Error::new(format!("must have {min} to {max} characters")));
    }
    if text.contains(separates_lines) {
        return Err(garde::Error::new("must not have line or paragraph separators (U+2028, U+2029)"));
    }
    if text.contains(turns_text_around) {
        return Err(garde::Error::new(
            "must not have characters that turn text around (U+202A to U+202E, U+2066 to U+2069)",
        ));
    }
    if !text.contains(is_visible) {
        return Err(garde::Error::new("must not be blank"));
    }
    Ok(())
}

/// An instant that a person can mean, well inside what MySQL holds.
pub fn in_our_time(at: &At, (): &()) -> garde::Result {
    if (FIRST_MS..END_MS).contains(&at.ms()) {
        return Ok(());
    }
    Err(garde::Error::new("must be in the years 2000 to 2100"))
}

/// 2000-01-01T00:00:00Z.
const FIRST_MS: i64 = 946_684_800_000;
/// 2101-01-01T00:00:00Z.
const END_MS: i64 = 4_133_980_800_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_of_one_line_and_say_something() {
        let good = |text: &str| words(1, 5)(text, &()).is_ok();
        assert!(good("课程 1") && good(" a "));
        assert!(!good("") && !good("  ") && !good("\u{3000}") && !good("a\nb") && !good("a\0") && !good("123456"));
        assert!(
            good("👩\u{200D}💻") && good("שלום") && good("e\u{301}"),
            "what is invisible inside a text has its use"
        );
        for bad in [
            "\u{200B}",
            "\u{3164}",
            "\u{2800} \u{FEFF}",
            "\u{301}",
            "a\u{202E}b",
            "a\u{2066}b",
            "a\u{2028}b",
            "a\u{2029}b",
        ] {
            assert!(!good(bad), "{}", bad.escape_unicode());
        }
    }

    #[test]
    fn prose_has_lines_and_may_be_absent() {
        let good = |text: &str| prose(5)(text, &()).is_ok();
        assert!(good("") && good("a\r\n\tb"));
        assert!(!good(" \n") && !good("a\u{7}") && !good("123456"));
        assert!(!good("\n\u{200B}") && !good("a\u{202E}b") && !good("a\u{2028}b") && !good("a\u{2069}"));
    }

    #[test]
    fn our_time_is_of_this_century() {
        let good = |text: &str| in_our_time(&text.parse::<jiff::Timestamp>().unwrap().into(), &()).is_ok();
        assert!(good("2000-01-01T00:00:00Z") && good("2100-12-31T23:59:59Z"));
        assert!(!good("1999-12-31T23:59:59.999Z") && !good("2101-01-01T00:00:00Z"));
    }
}
