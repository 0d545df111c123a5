//! Rules for fields that `garde` does not have.

use super::clock::At;

/// One line for people: `min..=max` characters, none of them a control character, and not only blanks.
pub fn words(min: usize, max: usize) -> impl Fn(&str, &()) -> garde::Result {
    move |text, ()| {
        if text.chars().any(char::is_control) {
            return Err(garde::Error::new("must not have control characters, such as line breaks"));
        }
        length(text, min, max)
    }
}

/// Lines for people: as [`words`], with line breaks and tabs; it may be empty.
pub fn prose(max: usize) -> impl Fn(&str, &()) -> garde::Result {
    move |text, ()| {
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(garde::Error::new("must not have control characters, but for line breaks and tabs"));
        }
        if text.is_empty() { Ok(()) } else { length(text, 1, max) }
    }
}

fn length(text: &str, min: usize, max: usize) -> garde::Result {
    if !(min..=max).contains(&text.chars().count()) {
        return Err(garde::Error::new(format!("must have {min} to {max} characters")));
    }
    if text.trim().is_empty() {
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
    }

    #[test]
    fn prose_has_lines_and_may_be_absent() {
        let good = |text: &str| prose(5)(text, &()).is_ok();
        assert!(good("") && good("a\r\n\tb"));
        assert!(!good(" \n") && !good("a\u{7}") && !good("123456"));
    }

    #[test]
    fn our_time_is_of_this_century() {
        let good = |text: &str| in_our_time(&text.parse::<jiff::Timestamp>().unwrap().into(), &()).is_ok();
        assert!(good("2000-01-01T00:00:00Z") && good("2100-12-31T23:59:59Z"));
        assert!(!good("1999-12-31T23:59:59.999Z") && !good("2101-01-01T00:00:00Z"));
    }
}
