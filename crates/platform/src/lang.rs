//! The language that a person is spoken to in.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

/// One of the languages that there are texts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lang {
    /// Simplified Chinese: whoever asks for nothing else hears it.
    #[default]
    Zh,
    /// English.
    En,
}

impl Lang {
    /// The one that `Accept-Language` likes best; of two that it likes as well, the first.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut best = (0.0, Self::default());
        for header in headers.get_all(header::ACCEPT_LANGUAGE) {
            for range in header.to_str().unwrap_or_default().split(',') {
                let (tag, quality) = range.split_once(';').unwrap_or((range, "q=1"));
                let primary = tag.trim().split('-').next().unwrap_or_default();
                let lang = match primary {
                    p if p.eq_ignore_ascii_case("zh") || p == "*" => Self::Zh,
                    p if p.eq_ignore_ascii_case("en") => Self::En,
                    _ => continue,
                };
                let quality = quality.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).unwrap_or(0.0);
                if quality > best.0 {
                    best = (quality, lang);
                }
            }
        }
        best.1
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Lang {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: &str) -> Lang {
        Lang::of(&HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, header.parse().unwrap())]))
    }

    #[test]
    fn the_language_liked_best_of_those_there_are_is_spoken() {
        for chinese in
            ["", "zh-CN", "zh-CN,zh;q=0.9,en;q=0.8", "ZH", "fr", "en;q=0.5, zh;q=0.6", "*", "en;q=0", "en;q=x"]
        {
            assert_eq!(of(chinese), Lang::Zh, "{chinese}");
        }
        for english in ["en", "en-GB,en;q=0.9", "fr,en;q=0.7,zh;q=0.3", "zh;q=0.1,EN-us;q=0.2", "en, zh"] {
            assert_eq!(of(english), Lang::En, "{english}");
        }
        assert_eq!(Lang::of(&HeaderMap::new()), Lang::Zh);
    }
}
