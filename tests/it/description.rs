//! What the API's description says: it is current, whole, and says what the code does.

use std::collections::{BTreeMap, BTreeSet};

use onrush::error::Kind;
use serde_json::Value;

use crate::architecture::{code_of, read, root, sources};

fn document() -> Value {
    serde_json::to_value(onrush::http::document()).unwrap()
}

/// Every operation: its method and path, and what is said of it.
fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    })
}

/// Every response of every operation, with its status.
fn responses(document: &Value) -> impl Iterator<Item = (String, u16, &Value)> {
    operations(document).flat_map(|(name, operation)| {
        let responses = operation["responses"].as_object().unwrap();
        responses.iter().map(move |(status, response)| (name.clone(), status.parse().unwrap(), response))
    })
}

/// A refusal that is named has the status under which it is named, and whatever else is named is a member of something.
#[test]
fn what_a_refusal_is_said_to_be_it_can_be() {
    let document = document();
    let mut known: BTreeSet<&str> = BTreeSet::from(["Retry-After", "failure", "FAIL"]);
    for schema in document["components"]["schemas"].as_object().unwrap().values() {
        known.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()));
    }
    let mut named = BTreeSet::new();
    for (operation, status, response) in responses(&document).filter(|(_, status, _)| *status >= 400) {
        let text = response["description"].as_str().unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            match Kind::named(word) {
                Some(kind) => {
                    assert_eq!(kind.status().as_u16(), status, "{operation}: {word}");
                    named.insert(word);
                }
                None => assert!(known.contains(word), "{operation} {status}: nothing is called {word}"),
            }
        }
        let bare = text.split('`').step_by(2).flat_map(|part| part.split(|c: char| !c.is_alphanumeric() && c != '_'));
        let bare: Vec<&str> = bare.filter(|word| word.contains('_') && Kind::named(word).is_some()).collect();
        assert!(bare.is_empty(), "{operation} {status}: {bare:?} without backticks");
    }
    assert!(named.len() > 35, "{named:?}");
}

/// A client reads one kind of refusal everywhere, and can tell the log's line of every answer.
#[test]
fn every_refusal_is_a_problem_and_every_answer_names_its_request() {
    let document = document();
    let in_others_words = ["post /api/v1/payments/{gateway}/notify", "get /readyz"];
    for (operation, status, response) in responses(&document) {
        assert!(response["headers"]["x-request-id"].is_object(), "{operation} {status}");
        if [429, 503].contains(&status) {
            assert_eq!(response["headers"]["Retry-After"]["schema"]["type"], "integer", "{operation} {status}");
        }
        let content = response["content"].as_object();
        if status >= 400 && !in_others_words.contains(&operation.as_str()) {
            let kinds: Vec<&String> = content.unwrap().keys().collect();
            assert_eq!(kinds, ["application/problem+json"], "{operation} {status}");
        }
    }
}

/// Generated types have no member that may be missing for no reason, and no number that needs a type of its own.
#[test]
fn members_of_answers_are_there_and_numbers_are_plain() {
    fn each<'a>(value: &'a Value, at: &str, found: &mut Vec<(String, &'a Value)>) {
        match value {
            Value::Object(members) => {
                found.push((at.to_owned(), value));
                members.iter().for_each(|(name, value)| each(value, &format!("{at}/{name}"), found));
            }
            Value::Array(items) => items.iter().for_each(|value| each(value, at, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    each(&document, "", &mut found);
    assert!(found.iter().all(|(_, value)| value["format"] != "int64"));
    let order = &document["components"]["schemas"]["OrderFacts"];
    for member in ["paid_at", "closed_at", "user_coupon_id"] {
        assert!(order["required"].as_array().unwrap().iter().any(|name| name == member), "{member}");
    }
    // What may be absent is never null.
    let result = &document["components"]["schemas"]["TaskResult"];
    assert!(result["required"].is_null(), "{result}");
    let points = &document["components"]["schemas"]["OrderRequest"]["properties"]["points"];
    assert!(points["description"].as_str().unwrap().contains("`1.0` is refused"), "{points}");
    let asked = &document["components"]["schemas"]["OrderRequest"]["required"];
    assert!(!asked.as_array().unwrap().iter().any(|name| name == "points"), "{asked}");
}

/// A state that has a name is a type in a generated client: a misspelt one does not compile there.
#[test]
fn words_from_a_list_are_enums() {
    let document = document();
    let mut bare = BTreeSet::new();
    let is_listed =
        |name: &str| ["status", "state", "gateway", "channel", "kind", "outcome", "resolution"].contains(&name);
    let is_text = |schema: &Value| {
        let is_string = schema["type"] == "string"
            || schema["type"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string"));
        is_string && schema["enum"].is_null()
    };
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for (member, property) in schema["properties"].as_object().into_iter().flatten() {
            if is_listed(member) && is_text(property) {
                bare.insert(format!("{name}.{member}"));
            }
        }
    }
    for (operation, said) in operations(&document) {
        for parameter in said["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            if is_listed(name) && is_text(&parameter["schema"]) {
                bare.insert(format!("{operation} {name}"));
            }
        }
    }
    assert!(bare.is_empty(), "{bare:#?}");
}

#[test]
fn summaries_are_one_sentence_and_examples_belong_to_an_operation() {
    let document = document();
    let mut examples = 0;
    for (operation, said) in operations(&document) {
        let summary = said["summary"].as_str().unwrap();
        assert!(!summary.contains(". ") && !summary.contains('\n'), "{operation}: {summary}");
    }
    for (_, _, response) in responses(&document) {
        examples += usize::from(!response["content"]["application/json"]["example"].is_null());
    }
    let kept: BTreeMap<String, Value> =
        serde_json::from_str(&read(&root().join("src/http/openapi/examples.json"))).unwrap();
    assert_eq!(examples, kept.len(), "an example has no operation, or an operation two answers");
}

/// What is refused for its length or size is said in the description: a client can look before it asks.
#[test]
fn every_bound_of_a_field_is_described() {
    let (mut bounds, mut missing) = (0, Vec::new());
    let code: String = sources().map(|file| code_of(&read(&file)).replace('_', "")).collect();
    let constants: BTreeMap<&str, String> = code.lines().filter_map(constant).collect();
    for file in sources() {
        let code = code_of(&read(&file));
        let lines: Vec<&str> = code.lines().map(str::trim).collect();
        for (at, rule) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("#[garde(")) {
            let until = lines[at..].iter().position(|line| line.ends_with(',')).unwrap_or_default();
            let said = lines[at..at + until].join(" ").replace('_', "").replace("i64", "");
            // Its words are a list: no text of another length is one.
            let is_list = said.contains("valuetype = Gateway") || said.contains("valuetype = Option<Channel>");
            // A function of its own says it.
            if is_list || said.contains("schemawith") {
                continue;
            }
            let described = said.split("#[garde(").next().unwrap_or_default().to_owned()
                + said.split(")]").skip(1).collect::<Vec<_>>().join(")]").as_str();
            for (names, value) in bounds_of(&rule.replace('_', "").replace("i64", "")) {
                bounds += 1;
                let value = constants.get(value.rsplit("::").next().unwrap_or_default()).unwrap_or(&value);
                let is_said = names.iter().any(|name| described.contains(&format!("{name} = {value}")));
                if !is_said {
                    missing.push(format!("{}: `{rule}` needs {} = {value} in `{said}`", file.display(), names[0]));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(bounds > 60, "{bounds} bounds were found");
}

/// A constant number, without the underscores of its name.
fn constant(line: &str) -> Option<(&str, String)> {
    let (name, rest) = line.trim().split_once("const ")?.1.split_once(": ")?;
    let value = rest.split_once(" = ")?.1.strip_suffix(';')?;
    value.bytes().all(|b| b.is_ascii_digit()).then(|| (name, value.to_owned()))
}

/// The bounds of a rule, with the names that each may have in the description.
fn bounds_of(rule: &str) -> Vec<([&'static str; 2], String)> {
    let within = |name: &str| {
        let inside = rule.split_once(&format!("{name}("))?.1;
        Some(inside.split(')').next().unwrap_or_default().to_owned())
    };
    let named = |inside: &str, name: &str| {
        let value = inside.split(',').find_map(|part| part.trim().strip_prefix(name)?.trim().strip_prefix('='))?;
        Some(value.trim().to_owned())
    };
    let mut found = Vec::new();
    if let Some(inside) = within("range") {
        found.extend(named(&inside, "min").map(|value| (["minimum", "minimum"], value)));
        found.extend(named(&inside, "max").map(|value| (["maximum", "maximum"], value)));
    }
    if let Some(inside) = within("length") {
        found.extend(named(&inside, "min").map(|value| (["minlength", "minitems"], value)));
        found.extend(named(&inside, "max").map(|value| (["maxlength", "maxitems"], value)));
    }
    if let Some(inside) =
        within("custom(words").filter(|_| !rule.contains("inner(custom(words") || !rule.contains("length("))
    {
        let mut ends = inside.split(',').map(|end| end.trim().to_owned());
        found.extend(ends.next().map(|value| (["minlength", "minlength"], value)));
        found.extend(ends.next().map(|value| (["maxlength", "maxlength"], value)));
    }
    if let Some(inside) = within("custom(prose") {
        found.push((["maxlength", "maxlength"], inside.trim().to_owned()));
    }
    found
}

/// What generated clients are made from is what the service does.
#[test]
fn the_openapi_file_is_current() {
    let kept = read(&root().join("openapi/openapi.json"));
    let made = onrush::http::document().to_pretty_json().unwrap();
    assert!(kept.trim_end() == made, "run `cargo run -- openapi > openapi/openapi.json`");
}

/// A front end finds each operation by its own name, and knows what every answer looks like.
#[test]
fn every_operation_is_described_whole() {
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap_or_default();
            assert!(names.insert(name.to_owned()), "{method} {path}: another operation is called {name:?} too");
            // In a client it stands alone, without its path.
            assert!(name.contains('_'), "{method} {path}: {name:?} does not say what it does to what");
            assert!(operation["security"].is_array(), "{method} {path} does not say who may ask");
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path} has no summary");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                assert!(answer["description"].as_str().is_some_and(|d| !d.is_empty()), "{method} {path}: {status}");
            }
        }
    }
}

/// Generators of clients take an object of which nothing else is said for one without members, to which nothing can be
/// assigned.
#[test]
fn every_object_of_the_openapi_file_says_what_it_holds() {
    fn bare(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) => {
                let types = members.get("type").map(|kind| kind.as_array().cloned().unwrap_or(vec![kind.clone()]));
                let is_object = types.is_some_and(|types| types.iter().any(|kind| kind == "object"));
                if is_object && !members.contains_key("properties") && !members.contains_key("additionalProperties") {
                    found.push(at.to_owned());
                }
                for (name, value) in members.iter().filter(|(name, _)| *name != "example") {
                    bare(value, &format!("{at}/{name}"), found);
                }
            }
            serde_json::Value::Array(items) => {
                items.iter().enumerate().for_each(|(nth, value)| bare(value, &format!("{at}/{nth}"), found));
            }
            _ => {}
        }
    }
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut found = Vec::new();
    bare(
        &serde_json::json!([{ "type": "object" }, { "type": ["object", "null"] }, { "type": "string" }]),
        "",
        &mut found,
    );
    assert_eq!(std::mem::take(&mut found), ["/0", "/1"]);
    bare(&document, "", &mut found);
    assert!(found.is_empty(), "{found:?}");
}

/// What is shown as the id of a task is one.
#[test]
fn every_example_of_a_tasks_id_can_be_sent() {
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut examples = vec![&document["components"]["schemas"]["Submitted"]["properties"]["id"]["example"]];
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values().filter(|_| path.contains("/tasks/{id}")) {
            let parameters = operation["parameters"].as_array().unwrap();
            let id = parameters.iter().find(|parameter| parameter["name"] == "id").unwrap();
            assert!(id["schema"]["pattern"].is_string(), "{path}: {id}");
            examples.push(if id["example"].is_null() { &id["schema"]["example"] } else { &id["example"] });
        }
    }
    assert!(examples.len() > 4);
    for example in examples {
        let id = example.as_str().unwrap_or_default();
        assert!(id.parse::<onrush::engine::TaskId>().is_ok_and(|read| read.to_string() == id), "{id:?}");
    }
}

/// Generators of clients stop at a reference that leads nowhere.
#[test]
fn every_reference_of_the_openapi_file_leads_somewhere() {
    fn references<'a>(value: &'a serde_json::Value, found: &mut BTreeSet<&'a str>) {
        match value {
            serde_json::Value::Object(members) => {
                found.extend(members.get("$ref").and_then(serde_json::Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = serde_json::to_value(onrush::http::document()).unwrap();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    let dangling: Vec<_> = found
        .iter()
        .filter(|reference| reference.strip_prefix('#').is_none_or(|pointer| document.pointer(pointer).is_none()))
        .collect();
    assert!(dangling.is_empty(), "{dangling:?}");
    // And a shape that none leads to is one that nobody gets.
    let shapes = document["components"]["schemas"].as_object().unwrap().keys();
    let unused: Vec<_> =
        shapes.filter(|name| !found.contains(format!("#/components/schemas/{name}").as_str())).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
