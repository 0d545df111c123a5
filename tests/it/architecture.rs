//! The rules of the source itself: which room may use which, how large a room is, what belongs to what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file without its tests, at most. A file that wants more is two rooms.
const MAX_LINES: usize = 450;

const BASE: &[&str] = &["platform", "config", "error", "app", "engine", "idempotency", "audit"];
const FEATURES: &[&str] =
    &["auth", "access", "catalogue", "wallet", "orders", "payments", "reconciliation", "seckill", "reports"];

/// What each room of the service may use beside itself (`docs/architecture/rooms.md`). A room that is not here may not
/// exist. What the crates beside it use, the compiler sees to.
fn may_use(room: &str) -> Option<BTreeSet<&'static str>> {
    let all = |lists: &[&[&'static str]]| Some(lists.iter().flat_map(|list| list.iter().copied()).collect());
    match room {
        "error" => all(&[&["platform"]]),
        "schema" | "config" => all(&[&["platform", "engine"]]),
        "app" => all(&[&["platform", "config", "error", "engine"]]),
        "auth" => all(&[BASE]),
        "audit" => all(&[&["platform", "error", "app", "auth", "access"]]),
        "idempotency" => all(&[&["platform", "config", "error", "app", "auth"]]),
        "access" => all(&[&["platform", "error", "app", "auth"]]),
        "catalogue" | "wallet" => all(&[BASE, &["auth", "access"]]),
        "orders" => all(&[BASE, &["auth", "catalogue", "wallet"]]),
        "texts" => all(&[&["platform", "error"]]),
        "payments" => all(&[BASE, &["auth", "access", "catalogue", "wallet", "orders"]]),
        "reconciliation" => all(&[BASE, &["auth", "access", "payments"]]),
        "seckill" => all(&[BASE, &["auth", "access", "catalogue", "wallet", "orders", "texts"]]),
        "reports" => all(&[BASE, &["auth", "access", "catalogue", "wallet", "orders", "payments", "seckill"]]),
        "check" => all(&[BASE, FEATURES]),
        "limits" => all(&[BASE, &["auth"]]),
        "http" => all(&[BASE, FEATURES, &["texts", "limits", "sandbox", "operations"]]),
        "sandbox" => all(&[&["platform", "app", "error"]]),
        "jobs" => all(&[BASE, FEATURES, &["sandbox", "check"]]),
        "operations" => all(&[BASE, &["auth", "access", "jobs"]]),
        "serve" => all(&[BASE, &["auth", "http", "jobs"]]),
        "dev" => all(&[BASE, FEATURES, &["schema", "serve"]]),
        "lib" | "main" => all(&[]),
        _ => None,
    }
}

#[test]
fn every_room_uses_only_the_rooms_it_may() {
    for file in service() {
        let room = room_of(&file);
        let allowed = may_use(&room).unwrap_or_else(|| panic!("{} is in no room we know", file.display()));
        for path in paths_into_the_crate(&read(&file)) {
            let used = path[0].as_str();
            let known = used == room || allowed.contains(used) || !is_module(used);
            assert!(known, "{} uses crate::{used}, which {room} may not", file.display());
        }
    }
}

/// A feature is used through its `mod`; only the lists of routes and jobs name its handlers.
#[test]
fn the_inner_rooms_of_a_feature_are_its_own() {
    for file in service() {
        let room = room_of(&file);
        for path in paths_into_the_crate(&read(&file)) {
            let (Some(inner), true) = (path.get(1), FEATURES.contains(&path[0].as_str())) else { continue };
            let reached_into = ["store", "redis", "model", "http", "jobs"].contains(&inner.as_str());
            let listed = (file.ends_with("http/routes.rs") && inner == "http") || (room == "jobs" && inner == "jobs");
            assert!(room == path[0] || !reached_into || listed, "{} reaches into {}", file.display(), path.join("::"));
        }
    }
}

/// Inside a feature `http, jobs → mod → store, redis → model`.
#[test]
fn the_inner_rooms_of_a_feature_look_downwards_only() {
    let above = |name: &str| match name {
        "model" => &["super::http", "super::jobs", "super::store", "super::redis"][..],
        "store" | "redis" => &["super::http", "super::jobs"][..],
        _ => &[],
    };
    for file in service().filter(|file| FEATURES.contains(&room_of(file).as_str())) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let text = code_of(&read(&file));
        for path in above(&name) {
            assert!(!text.contains(path), "{} uses {path}", file.display());
        }
        if name == "http" {
            assert!(!text.contains("sqlx::"), "{} speaks SQL", file.display());
        }
    }
}

/// A handler calls one function of its feature. Who begins a transaction knows what must be in it.
#[test]
fn no_handler_takes_a_connection() {
    let is_of_handlers = |file: &PathBuf| {
        let path = file.strip_prefix(root().join("src")).unwrap();
        let of_a_feature = path.iter().skip(1).any(|part| part == "http" || part == "http.rs");
        let others = path.starts_with("operations") || path.starts_with("http") || path.ends_with("seckill/tasks.rs");
        (of_a_feature || others) && !path.ends_with("schedules/edit.rs")
    };
    let (mut handlers, taking) = (0, [".acquire()", "db.begin()", "retrying("]);
    for file in service().filter(is_of_handlers) {
        handlers += 1;
        let text = code_of(&read(&file));
        let found: Vec<_> = taking.iter().filter(|taking| text.contains(**taking)).collect();
        assert!(found.is_empty(), "{}: {found:?}", file.display());
    }
    assert!(handlers > 30, "{handlers} files of handlers were found");
}

#[test]
fn no_file_has_grown_beyond_one_room() {
    let lines = |file: &Path| code_of(&read(file)).lines().count();
    let long: Vec<_> = sources().map(|file| (lines(&file), file)).filter(|(lines, _)| *lines > MAX_LINES).collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines without tests: {long:?}");
}

/// Whoever reads a name knows which type it is, without looking at what the file imports.
#[test]
fn every_public_type_has_a_name_of_its_own() {
    let mut names = BTreeMap::<String, Vec<PathBuf>>::new();
    for file in sources() {
        for name in code_of(&read(&file)).lines().filter_map(public_type) {
            names.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    assert!(names.len() > 300, "{} types were found", names.len());
    names.retain(|_, files| files.len() > 1);
    assert!(names.is_empty(), "{names:#?}");
}

/// The type that a line declares for more than its own file.
fn public_type(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = if rest.starts_with('(') { rest.split_once(") ")?.1 } else { rest.strip_prefix(' ')? };
    let declared = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| rest.strip_prefix(kind))?;
    declared.split(|c: char| !c.is_alphanumeric()).next()
}

#[test]
fn every_lua_script_is_used() {
    let code: String = sources().map(|file| read(&file)).collect();
    let scripts: Vec<_> = SOURCES.iter().flat_map(|dir| files_under(dir, "lua")).collect();
    assert!(scripts.len() > 20, "{scripts:?}");
    for script in scripts {
        let name = script.file_name().unwrap().to_string_lossy().into_owned();
        assert!(code.contains(&name), "nothing uses {}", script.display());
    }
}

/// Two keyboards write one name with other code points: what `words` and `prose` look at is read in one spelling.
#[test]
fn text_for_people_is_read_in_its_composed_spelling() {
    let mut fields = 0;
    for file in sources().filter(|file| !file.ends_with("platform/src/validators.rs")) {
        let code = code_of(&read(&file));
        let lines: Vec<&str> = code.lines().map(str::trim).collect();
        for (at, _) in lines.iter().enumerate().filter(|(_, line)| {
            line.starts_with("#[garde(") && (line.contains("custom(words(") || line.contains("custom(prose("))
        }) {
            fields += 1;
            let until = lines[at..].iter().position(|line| line.ends_with(',')).unwrap_or_default();
            let composed = lines[at..at + until].iter().any(|line| line.contains("deserialize_with = \"nfc"));
            assert!(composed, "{}: {}", file.display(), lines[at + until]);
        }
    }
    assert!(fields >= 10, "{fields} fields were found");
}

/// A migration runs while the version before it still serves, so it takes nothing away.
#[test]
fn migrations_are_named_by_time_and_take_nothing_away() {
    let mut times = BTreeSet::new();
    for file in ["migrations", "crates/engine/migrations"].iter().flat_map(|dir| files_under(dir, "sql")) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let (time, what) = name.split_once('_').expect("a time, an underscore, a verb and an object");
        assert!(time.len() == 14 && time.bytes().all(|b| b.is_ascii_digit()), "{name}");
        assert!(what.contains('_') && what.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(times.insert(time.to_owned()), "two migrations of {time}");
        let sql: String = read(&file).lines().map(|line| line.split("--").next().unwrap_or("")).collect();
        // A constraint that is loosened takes nothing away: the version before keeps to it anyhow. Nor does an index that
        // another one of its name replaces.
        let mut sql = sql.to_uppercase().replace("DROP CONSTRAINT ", "").replace("DROP INDEX UQ_", "");
        let dropped: Vec<String> = sql
            .split("DROP INDEX ")
            .skip(1)
            .map(|rest| rest.split([',', ';']).next().unwrap().trim().to_owned())
            .collect();
        for index in dropped.iter().filter(|index| sql.contains(&format!("ADD INDEX {index} "))).collect::<Vec<_>>() {
            sql = sql.replace(&format!("DROP INDEX {index}"), "");
        }
        for word in ["DROP ", "TRUNCATE ", "RENAME ", "CHANGE COLUMN"] {
            assert!(!sql.contains(word), "{name} has {word}");
        }
    }
    assert!(!times.is_empty());
}

#[test]
fn a_path_into_the_crate_is_read_in_all_its_forms() {
    let text = "use crate::a::b;\nuse crate::{c, d::{E, F}, g::h};\nlet x = crate::i::J::k(); // crate::no\n";
    let read: Vec<String> = paths_into_the_crate(text).iter().map(|path| path.join("::")).collect();
    assert_eq!(read, ["a::b", "c", "d::E", "d::F", "g::h", "i::J"]);
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Where the sources are: of the service, and of the crates beside it.
const SOURCES: [&str; 3] = ["src", "crates/platform/src", "crates/engine/src"];

pub fn sources() -> impl Iterator<Item = PathBuf> {
    SOURCES.iter().flat_map(|dir| files_under(dir, "rs"))
}

/// The sources of the service itself.
fn service() -> impl Iterator<Item = PathBuf> {
    files_under(SOURCES[0], "rs").into_iter()
}

fn files_under(dir: &str, extension: &str) -> Vec<PathBuf> {
    let (mut dirs, mut files) = (vec![root().join(dir)], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The first part of a file's path under `src`, without `.rs`.
fn room_of(file: &Path) -> String {
    let path = file.strip_prefix(root().join("src")).unwrap();
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn is_module(name: &str) -> bool {
    let src = root().join("src");
    ["platform", "engine"].contains(&name) || src.join(name).is_dir() || src.join(format!("{name}.rs")).is_file()
}

/// A file without its tests and comments.
pub fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or("");
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// Every `crate::a::b` of a text outside comments and tests: its first two parts, groups in braces one by one.
fn paths_into_the_crate(text: &str) -> Vec<Vec<String>> {
    let code: String =
        code_of(text).lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or(""))).collect();
    let mut paths = Vec::new();
    for (_, rest) in code.match_indices("crate::").map(|(at, found)| (at, &code[at + found.len()..])) {
        walk(rest, &[], &mut paths);
    }
    paths
}

fn walk(rest: &str, before: &[String], paths: &mut Vec<Vec<String>>) {
    if let Some(group) = rest.strip_prefix('{') {
        for part in parts_of(group) {
            walk(part.trim(), before, paths);
        }
        return;
    }
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let path = [before, std::slice::from_ref(&name)].concat();
    match rest[name.len()..].strip_prefix("::") {
        Some(next) if path.len() < 2 => walk(next, &path, paths),
        _ => paths.push(path),
    }
}

/// The parts of a group up to its closing brace, split at its own commas.
pub fn parts_of(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}
