//! What the API's description says of all operations, and what the handlers' own descriptions cannot say.

use utoipa::openapi::schema::{ArrayItems, Components};
use utoipa::openapi::security::{Http, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, HeaderBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder, Schema};

/// Adds what is the same everywhere.
pub fn describe(api: &mut OpenApi) {
    let components = api.components.get_or_insert_default();
    credentials(components);
    if let Some(problem) = components.schemas.get_mut("Problem") {
        crate::error::describe_members(problem);
    }
    pages(components);
    problems(api);
    whom(api);
}

/// What a request may show.
fn credentials(components: &mut Components) {
    let bearer = |text: &str| HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text));
    let user: Http = bearer("The access token of a login.").bearer_format("JWT").build();
    let operators = "The operators' token, where the settings have one (`ONRUSH_HTTP__OPERATIONS_TOKEN`).";
    components.add_security_scheme("bearer", SecurityScheme::Http(user));
    components.add_security_scheme("operators", SecurityScheme::Http(bearer(operators).build()));
}

/// A page's items are a shape that has a name: derived, each page would repeat it whole, and a client would have it twice.
fn pages(components: &mut Components) {
    let named: Vec<String> =
        components.schemas.keys().filter_map(|name| name.strip_prefix("Page_")).map(str::to_owned).collect();
    for item in named.into_iter().filter(|item| components.schemas.contains_key(item)).collect::<Vec<_>>() {
        let Some(RefOr::T(Schema::Object(page))) = components.schemas.get_mut(&format!("Page_{item}")) else {
            continue;
        };
        if let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items") {
            items.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(item).into()));
        }
    }
}

/// Says of operations that anybody may ask that they are so, and not that nobody has thought of it.
fn whom(api: &mut OpenApi) {
    for item in api.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.security.get_or_insert_default();
        }
    }
}

fn too_many() -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let retry_after = HeaderBuilder::new().description(Some("Seconds until the next one is taken")).build();
    let response = ResponseBuilder::new()
        .description("`too_many_attempts`: too many requests of this account at once, or of this kind in a minute")
        .header("Retry-After", retry_after)
        .content("application/problem+json", content);
    RefOr::T(response.build())
}

/// Adds to every operation the refusals that any route may give.
fn problems(api: &mut OpenApi) {
    let problem = |description: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        RefOr::T(ResponseBuilder::new().description(description).content("application/problem+json", content).build())
    };
    for (path, item) in &mut api.paths.paths {
        if !path.starts_with(crate::routes::API) {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            for (status, text) in [
                ("500", "A fault of ours"),
                ("503", "Busy, or a dependency does not answer: try again after `Retry-After`"),
            ] {
                responses.entry(status.to_owned()).or_insert_with(|| problem(text));
            }
            if operation.security.is_some() {
                responses.entry("401".to_owned()).or_insert_with(|| problem("No valid access token"));
                responses.entry("429".to_owned()).or_insert_with(too_many);
            }
            let takes_input =
                operation.request_body.is_some() || operation.parameters.as_ref().is_some_and(|p| !p.is_empty());
            if takes_input {
                responses
                    .entry("422".to_owned())
                    .or_insert_with(|| problem("A field is not valid: `errors` names every one"));
            }
            if operation.request_body.is_some() {
                for (status, text) in [
                    ("400", "The body is not JSON"),
                    ("408", "The body came too slowly"),
                    ("413", "The body is too large"),
                    ("415", "The body is not declared as JSON"),
                ] {
                    responses.entry(status.to_owned()).or_insert_with(|| problem(text));
                }
            }
        }
    }
}
