//! The Content-Security-Policy of a page that has its style inside.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Lets a page use its own `<style>` and nothing else: no script, no picture, no frame around it. `more` are further
/// directives, such as where its forms may go.
pub fn of_page(page: &str, more: &str) -> String {
    let style = page.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).map(|(style, _)| style);
    let hash = BASE64_STANDARD.encode(digest(&SHA256, style.unwrap_or_default().as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; frame-ancestors 'none'; {more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_use_its_own_style_by_its_hash() {
        // openssl dgst -sha256 -binary | base64
        let policy = of_page("<title>x</title><style>p { color: red; }</style><p>", "form-action 'self'");
        assert!(policy.contains("style-src 'sha256-pckGv9YvNcB5xy+Y4fbqhyo+ib850wyiuWeNbZvLi00='"), "{policy}");
        assert!(policy.ends_with("frame-ancestors 'none'; form-action 'self'"), "{policy}");
    }
}
