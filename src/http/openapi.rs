//! The API's description: what it begins with, what it says of all operations, what the handlers' own descriptions cannot
//! say, and the page that shows it.

mod whole;

use std::sync::OnceLock;

use axum::Extension;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;
use utoipa::openapi::schema::{ArrayItems, Components};
use utoipa::openapi::security::{Http, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Ref, RefOr, ResponseBuilder, Schema};

pub use whole::finish;

use super::paths::API;
use crate::error::{self};
use crate::payments;
use crate::platform::described::AnyObject;

/// What the description begins with; the operations bring their own.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "onrush",
        description = "Orders and seckill for an online-course platform.\n\nA refusal is `application/problem+json`; \
            whatever is wrong with the path, the query, the headers and the body of a request is told at once, by field, \
            in `errors`. Only what HTTP itself refuses has no body: a malformed head, a line that ends \
            with LF alone or two content lengths (400), a head that is too large (431)."
    ),
    servers((url = "/", description = "Where this document is, unless that is a listener of the operators' own")),
    // Those of parameters are not found by themselves.
    components(schemas(
        error::Problem,
        payments::NotificationOutcome,
        payments::PaymentStatus,
        payments::Resolution,
    )),
    tags(
        (name = "auth", description = "Accounts, logins and their tokens"),
        (name = "catalogue", description = "Courses, and who has them"),
        (name = "wallet", description = "Coupons and points"),
        (name = "orders", description = "What a buyer orders, pays and cancels"),
        (name = "payments", description = "What payment gateways call, and where they send a buyer back to"),
        (name = "seckill", description = "Flash sales: who submits first gets one"),
        (name = "tasks", description = "What became of a submission: poll, wait or listen"),
        (name = "admin", description = "What administrators see and set"),
        (name = "ops", description = "Health, readiness, metrics and this description"),
    )
)]
pub struct Document;

/// How the whole description is made: by who knows every route.
#[derive(Clone, Copy)]
pub struct Made(pub fn() -> utoipa::openapi::OpenApi);

/// The OpenAPI document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "get_openapi", tag = "ops", security((), ("operators" = [])), responses(
    (status = 200, content_type = "application/json", body = AnyObject, description = "This document"),
    (status = 401, description = "Where the operators' token is asked for: `unauthenticated`, `token_invalid`"),
    (status = 404, description = "`not_found`: this address does not show it"),
))]
pub async fn openapi(Extension(Made(made)): Extension<Made>) -> axum::response::Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let text = DOCUMENT.get_or_init(|| made().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// Adds what is the same everywhere.
pub fn describe(api: &mut utoipa::openapi::OpenApi) {
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
fn whom(api: &mut utoipa::openapi::OpenApi) {
    for item in api.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.security.get_or_insert_default();
        }
    }
}

/// Adds to every operation the refusals that any route may give.
fn problems(api: &mut utoipa::openapi::OpenApi) {
    // Its body and its headers: `whole`.
    let problem = |description: &str| RefOr::T(ResponseBuilder::new().description(description).build());
    let administrators = format!("{API}/admin/");
    for (path, item) in &mut api.paths.paths {
        if !path.starts_with(API) {
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
            if path.starts_with(&administrators) {
                responses.entry("403".to_owned()).or_insert_with(|| problem("`forbidden`"));
            }
            let is_never_missing = operation.operation_id.as_deref() == Some("delete_schedule");
            if path.contains('{') && !is_never_missing {
                responses.entry("404".to_owned()).or_insert_with(|| problem("`not_found`"));
            }
            if operation.security.is_some() {
                responses.entry("401".to_owned()).or_insert_with(|| problem("No valid access token"));
                let text =
                    "`too_many_attempts`: too many requests of this account at once, or of this kind in a minute";
                responses.entry("429".to_owned()).or_insert_with(|| problem(text));
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
