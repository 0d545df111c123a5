//! The page that says what each refusal means.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::error::Kind;
use crate::platform::policy;

/// Every refusal by its name: where the `type` of a problem leads.
#[utoipa::path(get, path = "/docs/errors", operation_id = "get_error_page", tag = "ops", responses((status = 200, body = String, content_type = "text/html", description = "A page for people: each refusal, its status and what it means")))]
pub async fn errors() -> Response {
    static PAGE: OnceLock<(String, String)> = OnceLock::new();
    let row = |kind: &Kind| {
        let (name, status) = (kind.name(), kind.status().as_u16());
        // The table's words have no markup but the backquotes of Markdown, in pairs.
        let meaning = kind.meaning().split('`').enumerate();
        let meaning: String = meaning
            .map(|(at, text)| if at % 2 == 0 { text.to_owned() } else { format!("<code>{text}</code>") })
            .collect();
        let title = kind.title();
        format!(
            "<tr id=\"{name}\"><td>{status}<td><a href=\"#{name}\"><code>{name}</code></a><td>{title}<td>{meaning}\n"
        )
    };
    let (page, policy) = PAGE.get_or_init(|| {
        let page = include_str!("errors.html");
        let rows: String = Kind::ALL.iter().map(row).collect();
        (page.replace("{{rows}}", &rows), policy::of_page(page, "form-action 'none'"))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy.as_str())];
    (headers, page.as_str()).into_response()
}
