//! What is true of the whole description, said in one place: what every refusal looks like, which headers every answer
//! has, and how numbers, members and summaries are told. The handlers say the rest.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

const PROBLEM: &str = "application/problem+json";
/// What a service answered to the operations that a front end begins with, by operation.
const EXAMPLES: &str = include_str!("examples.json");
/// The schema of what may be anything.
const ANY_VALUE: &str = "AnyValue";
/// Where a reference to a schema leads.
const SCHEMAS: &str = "#/components/schemas/";

/// Finishes the description. One that cannot be read again is left as it is, which a test would see.
pub fn finish(mut api: OpenApi) -> OpenApi {
    // A schema without a type can be written, and not read again.
    let any = api.components.get_or_insert_default().schemas.remove(ANY_VALUE);
    let mut whole = finished(api);
    whole.components.get_or_insert_default().schemas.extend(any.map(|any| (ANY_VALUE.to_owned(), any)));
    whole
}

fn finished(api: OpenApi) -> OpenApi {
    let Ok(mut document) = serde_json::to_value(&api) else { return api };
    let examples: Map<String, Value> = serde_json::from_str(EXAMPLES).unwrap_or_default();
    let answered = answered(&document);
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        for (name, schema) in schemas {
            if answered.contains(name) { require_members(schema) } else { write_integers_plainly(schema) }
        }
    }
    plain_integers(&mut document);
    for item in document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            divide_summary(operation);
            if let Some(permission) = operation["x-permission"].as_str() {
                let said = operation["responses"]["403"]["description"].as_str().unwrap_or_default();
                let more = said.strip_prefix("`forbidden`").unwrap_or_default().strip_prefix(": ").unwrap_or_default();
                let also = if more.is_empty() { String::new() } else { format!("; {more}") };
                let text = format!("`forbidden`: it needs the permission {permission}{also}");
                operation["responses"]["403"]["description"] = json!(text);
            }
            let example = operation["operationId"].as_str().and_then(|name| examples.get(name)).cloned();
            for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
                answer(status, response);
                if let (true, Some(example)) = (status.starts_with('2'), &example) {
                    response["content"]["application/json"]["example"] = example.clone();
                }
            }
        }
    }
    serde_json::from_value(document).unwrap_or(api)
}

/// The schemas that answers are made of.
fn answered(document: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let operations = document["paths"].as_object().into_iter().flat_map(Map::values);
    for operation in operations.filter_map(Value::as_object).flat_map(Map::values) {
        references(&operation["responses"], document, &mut found);
    }
    // No route names it: `answer` does.
    references(&json!({ "$ref": format!("{SCHEMAS}Problem") }), document, &mut found);
    found
}

/// Adds the schemas that a value leads to, and those that they lead to.
fn references(value: &Value, document: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            let named = members.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(SCHEMAS));
            if let Some(name) = named
                && found.insert(name.to_owned())
            {
                references(&document["components"]["schemas"][name], document, found);
            }
            members.values().for_each(|value| references(value, document, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, document, found)),
        _ => {}
    }
}

/// A member of an answer that may be null is there all the same: what may be absent is never null, and says so
/// (`nullable = false`).
fn require_members(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let properties = members.get("properties").and_then(Value::as_object);
            let nullable = properties.into_iter().flatten().filter(|(_, property)| may_be_null(property));
            let names: Vec<Value> = nullable.map(|(name, _)| json!(name)).collect();
            if !names.is_empty() {
                let required = members.entry("required").or_insert_with(|| json!([]));
                if let Some(required) = required.as_array_mut() {
                    names.into_iter().for_each(|name| {
                        if !required.contains(&name) {
                            required.push(name);
                        }
                    });
                }
            }
            members.values_mut().for_each(require_members);
        }
        Value::Array(items) => items.iter_mut().for_each(require_members),
        _ => {}
    }
}

/// For JSON Schema `1.0` is an integer; what is sent to us must look like one.
fn write_integers_plainly(schema: &mut Value) {
    for property in schema["properties"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        let kinds = &property["type"];
        if kinds == "integer" || kinds.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "integer")) {
            let text = property["description"].as_str().unwrap_or_default();
            property["description"] = json!(format!("{text} Without a point or an exponent: `1.0` is refused."));
        }
    }
}

fn may_be_null(property: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null";
    property["type"].as_array().is_some_and(|kinds| kinds.iter().any(is_null))
        || property["oneOf"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| is_null(&kind["type"])))
}

/// Every number here is exact in a JavaScript `number`: below 2^53. `int64` would make generators choose a type for more.
fn plain_integers(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.get("format").is_some_and(|format| format == "int64") {
                members.remove("format");
            }
            members.values_mut().for_each(plain_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(plain_integers),
        _ => {}
    }
}

/// The first sentence is the summary, the rest the description.
fn divide_summary(operation: &mut Value) {
    let Some(text) = operation["summary"].as_str().map(|text| text.replace('\n', " ")) else { return };
    let Some((first, rest)) = text.split_once(". ") else { return };
    let rest = match operation["description"].as_str() {
        Some(more) => format!("{rest}\n\n{more}"),
        None => rest.to_owned(),
    };
    operation["summary"] = json!(format!("{first}."));
    operation["description"] = json!(rest);
}

/// What every answer has, and what every refusal is.
fn answer(status: &str, response: &mut Value) {
    let header = |text: &str, kind: &str| json!({ "description": text, "schema": { "type": kind } });
    let is_refusal = status.starts_with(['4', '5']);
    if is_refusal && response.get("content").is_none() {
        response["content"] = json!({ PROBLEM: { "schema": { "$ref": format!("{SCHEMAS}Problem") } } });
    }
    response["headers"]["x-request-id"] = header("The id under which the log has this request", "string");
    if ["429", "503"].contains(&status) {
        response["headers"]["Retry-After"] = header("Seconds until it is worth trying again", "integer");
    }
}
