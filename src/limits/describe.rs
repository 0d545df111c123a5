//! What the API's description says of limits.

use utoipa::openapi::{Header, HeaderBuilder, OpenApi, RefOr, ResponseBuilder};

use super::{Action, ROUTES};

/// Adds to each operation whose requests are counted what it says of that.
pub fn describe(api: &mut OpenApi) {
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in [("GET", &mut item.get), ("POST", &mut item.post)] {
            let counted = ROUTES.iter().any(|(known, route, _)| *route == path && known.as_str() == method);
            let Some(operation) = operation.as_mut().filter(|_| counted) else { continue };
            let responses = &mut operation.responses.responses;
            responses.entry("429".to_owned()).or_insert_with(refusal);
            for (status, response) in responses.iter_mut() {
                let RefOr::T(response) = response else { continue };
                if status.starts_with('2') || status == "429" {
                    response.headers.extend(headers());
                }
            }
        }
    }
}

fn refusal() -> RefOr<utoipa::openapi::Response> {
    let text = "`too_many_attempts`: too many requests of this kind in a minute, by this account or from this address";
    RefOr::T(ResponseBuilder::new().description(text).build())
}

fn headers() -> [(String, RefOr<Header>); 2] {
    let header = |text: &str| RefOr::T(HeaderBuilder::new().description(Some(text)).build());
    let example = Action::Order.name();
    [
        (
            "RateLimit".to_owned(),
            header(&format!(
                "What is left of each limit, and the seconds until it is whole again: `\"{example}\";r=59;t=1`"
            )),
        ),
        (
            "RateLimit-Policy".to_owned(),
            header(&format!("Requests in so many seconds, for each limit that counts here: `\"{example}\";q=60;w=60`")),
        ),
    ]
}
