//! No two files need each other: each can be read, and moved, with those below it alone.
//!
//! A module and those inside it count as one piece on the way down: it declares them, and shows what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::architecture::{code_of, parts_of, read, root, sources};

type Module = Vec<String>;
/// Which modules each module names.
type Uses = BTreeMap<Module, BTreeSet<Module>>;

#[test]
fn no_files_use_each_other_in_a_circle() {
    let modules: BTreeMap<Module, String> =
        sources().filter_map(|file| Some((module_of(&file)?, code_of(&read(&file))))).collect();
    assert!(modules.len() > 250, "{} modules were found", modules.len());
    let mut uses = Uses::new();
    for (module, code) in &modules {
        let named = paths(code, module).into_iter().filter_map(|path| longest(&path, &modules));
        uses.insert(module.clone(), named.filter(|named| !named.starts_with(module)).collect());
    }
    let left = circles(uses);
    assert!(left.is_empty(), "these stand in circles, or between two: {left:#?}");
}

#[test]
fn a_circle_is_found_and_what_leads_to_it_is_not_one() {
    let module = |name: &str| vec![name.to_owned()];
    let uses = |all: &[(&str, &[&str])]| -> Uses {
        all.iter().map(|(name, used)| (module(name), used.iter().map(|name| module(name)).collect())).collect()
    };
    assert!(circles(uses(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let left = circles(uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "d"]), ("d", &[])]));
    assert_eq!(left, uses(&[("b", &["c"]), ("c", &["b"])]));
}

#[test]
fn a_path_is_read_in_all_its_forms() {
    let of = |code: &str| -> Vec<String> {
        paths(code, &["a".to_owned(), "b".to_owned()]).iter().map(|path| path.join("/")).collect()
    };
    assert_eq!(of("use crate::x::{self, Y, z::{A, B}};"), ["x", "x/Y", "x/z/A", "x/z/B"]);
    assert_eq!(of("use super::c::D; super::super::e::f(); self::g::h"), ["a/c/D", "e/f", "a/b/g/h"]);
    let of_a_crate = paths("use crate::x::Y;", &["engine".to_owned(), "b".to_owned()]);
    assert_eq!(of_a_crate, [["engine", "x", "Y"].map(str::to_owned)]);
}

/// The module that a file is; none of the two at the top, which only list the others.
fn module_of(file: &Path) -> Option<Module> {
    let path = file.strip_prefix(root()).unwrap().with_extension("");
    let path = path.iter().map(|part| part.to_string_lossy().into_owned());
    // A crate beside the service is a room of that name: the service shows it as one.
    let mut parts: Module = path.filter(|part| !["crates", "src"].contains(&part.as_str())).collect();
    if parts.last().is_some_and(|part| part == "mod") {
        parts.pop();
    }
    parts.last().is_none_or(|part| !["lib", "main"].contains(&part.as_str())).then_some(parts)
}

/// Whether a room is a crate beside the service, whose `crate` is itself.
fn is_crate(room: &str) -> bool {
    root().join("crates").join(room).is_dir()
}

/// Every path of a module's code that begins with `crate`, `super` or `self`, from the service's top.
fn paths(code: &str, module: &[String]) -> Vec<Module> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let start = code[..at].trim_end_matches(word).len();
        // The first name of a path.
        if code[..start].ends_with("::") {
            continue;
        }
        let (mut rest, mut base) = match &code[start..at] {
            "crate" => (&code[at + 2..], &module[..usize::from(is_crate(&module[0]))]),
            "self" => (&code[at + 2..], module),
            "super" => (&code[at + 2..], &module[..module.len() - 1]),
            _ => continue,
        };
        while let Some(further) = rest.strip_prefix("super::") {
            (rest, base) = (further, &base[..base.len() - 1]);
        }
        walk(rest, base, &mut found);
    }
    found
}

fn walk(rest: &str, before: &[String], found: &mut Vec<Module>) {
    if let Some(group) = rest.strip_prefix('{') {
        parts_of(group).into_iter().for_each(|part| walk(part.trim(), before, found));
        return;
    }
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let path = if name == "self" { before.to_vec() } else { [before, std::slice::from_ref(&name)].concat() };
    match rest[name.len()..].strip_prefix("::") {
        Some(next) => walk(next, &path, found),
        None => found.push(path),
    }
}

/// The module in which a path leads to something.
fn longest(path: &[String], modules: &BTreeMap<Module, String>) -> Option<Module> {
    (1..=path.len()).rev().map(|length| &path[..length]).find(|path| modules.contains_key(*path)).map(<[_]>::to_vec)
}

/// What is left when whoever uses nothing more, and whoever nobody uses, is taken away again and again.
fn circles(mut uses: Uses) -> Uses {
    loop {
        let before = uses.len();
        let used: BTreeSet<Module> = uses.values().flatten().cloned().collect();
        uses.retain(|module, named| !named.is_empty() && used.contains(module));
        let left: BTreeSet<Module> = uses.keys().cloned().collect();
        uses.values_mut().for_each(|named| named.retain(|named| left.contains(named)));
        if uses.len() == before {
            return uses;
        }
    }
}
