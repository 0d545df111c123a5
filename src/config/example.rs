//! A file with every setting, to start from: what `onrush config --example` prints.

use std::fmt::Write;

use super::names::variable_of;
use super::settings::{SETTINGS, Setting};

/// What each setting is for stands once: in the table for operators.
const PAGE: &str = include_str!("../../docs/OPERATIONS.md");
/// Characters of a line of words.
const WIDTH: usize = 100;

/// The file. Every setting stands behind a `#`, with its default, so that it changes nothing as it is.
pub fn example() -> String {
    let mut text = "# Settings of onrush. The environment wins over this file, and ONRUSH_CONFIG names it.\n\
        # Take the `#` before a setting away to change it. docs/OPERATIONS.md has more about each.\n"
        .to_owned();
    for section in sections() {
        if !section.is_empty() {
            let _ = write!(text, "\n[{section}]\n");
        }
        for setting in SETTINGS.iter().filter(|setting| section_of(setting) == section) {
            text.push('\n');
            comment(&mut text, &meaning(setting));
            comment(&mut text, &format!("Allowed: {}.", setting.wanted()));
            let name = setting.name.rsplit('.').next().unwrap_or(setting.name);
            let _ = writeln!(text, "#{name} = {}", toml(setting.default.unwrap_or_default()));
        }
    }
    text
}

/// The sections, each once; first what is in none.
fn sections() -> Vec<&'static str> {
    let mut all = vec![""];
    for section in SETTINGS.iter().map(section_of) {
        if !all.contains(&section) {
            all.push(section);
        }
    }
    all
}

fn section_of(setting: &Setting) -> &'static str {
    setting.name.rsplit_once('.').map_or("", |(section, _)| section)
}

/// A value as TOML has it.
fn toml(value: &str) -> String {
    let is_bare = matches!(value, "true" | "false") || value.parse::<u64>().is_ok();
    if is_bare { value.to_owned() } else { format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")) }
}

/// What the page says of a setting, without its links.
fn meaning(setting: &Setting) -> String {
    let variable = format!("`{}`", variable_of(setting.name));
    let mut cells =
        PAGE.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect::<Vec<_>>());
    let row = cells.find(|row| row[0].contains(&variable)).unwrap_or_default();
    let words = row.last().map_or("", |cell| cell.trim_matches('|').trim());
    let mut plain = String::new();
    for (nth, part) in words.split("](").enumerate() {
        // Behind `](` stands an address, up to its bracket.
        plain += if nth == 0 { part } else { part.split_once(')').map_or("", |(_, rest)| rest) };
    }
    let mut plain = plain.replace(['[', '`'], "").replace("**", "");
    if !plain.is_empty() && !plain.ends_with('.') {
        plain.push('.');
    }
    plain
}

/// Words as a comment, in lines.
fn comment(text: &mut String, words: &str) {
    let mut line = String::new();
    for word in words.split_whitespace() {
        if !line.is_empty() && line.chars().count() + word.chars().count() + 3 > WIDTH {
            let _ = writeln!(text, "# {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    if !line.is_empty() {
        let _ = writeln!(text, "# {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;

    #[test]
    fn the_file_that_is_kept_is_this_one() {
        let kept = include_str!("../../onrush.example.toml");
        assert_eq!(kept, example(), "run `cargo run -- config --example > onrush.example.toml`");
    }

    #[test]
    fn each_setting_is_explained_and_every_line_can_be_switched_on() {
        for setting in SETTINGS {
            let words = meaning(setting);
            assert!(words.len() > 10 && !words.contains(['[', '|', '`']), "{}: {words}", setting.name);
        }
        let line = |line: &str| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        };
        let on: String = example().lines().map(line).collect();
        let raw = config::Config::builder().add_source(config::File::from_str(&on, config::FileFormat::Toml));
        let faults = settings::faults(&raw.build().unwrap(), None).unwrap();
        // What has no default is empty here.
        let empty: Vec<String> =
            SETTINGS.iter().filter(|it| it.default.is_none_or(str::is_empty)).map(|it| variable_of(it.name)).collect();
        let other: Vec<_> = faults.iter().filter(|fault| !empty.iter().any(|it| fault.starts_with(it))).collect();
        assert!(other.is_empty(), "{other:#?}");
    }
}
