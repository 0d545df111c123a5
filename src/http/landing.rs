//! `/`: what somebody reads who opens the service's address. Plain HTML, and links that are right behind any prefix.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::health::readiness;
use super::operator_pages::Pages;
use crate::app::App;
use crate::platform::lang::Lang;

/// The words of the page.
struct Words {
    lang: &'static str,
    intro: &'static str,
    ready: &'static str,
    not_ready: &'static str,
    docs: &'static str,
    document: &'static str,
    errors: &'static str,
    readiness: &'static str,
}

const ZH: Words = Words {
    lang: "zh-CN",
    intro: "在线课程平台的订单与秒杀服务。接口都在 /api/v1 之下。",
    ready: "可以提供服务",
    not_ready: "暂时不能提供服务",
    docs: "接口文档",
    document: "OpenAPI 文件",
    errors: "所有的错误",
    readiness: "是否就绪",
};

const EN: Words = Words {
    lang: "en",
    intro: "Orders and seckill for an online-course platform. The API is under /api/v1.",
    ready: "ready",
    not_ready: "not ready",
    docs: "The API's documentation",
    document: "The OpenAPI document",
    errors: "Every refusal",
    readiness: "Readiness",
};

/// The page.
pub async fn landing(State(app): State<App>, Extension(pages): Extension<Pages>, headers: HeaderMap) -> Response {
    let words = match Lang::of(&headers) {
        Lang::Zh => &ZH,
        Lang::En => &EN,
    };
    let state = if readiness(&app).await.ready { words.ready } else { words.not_ready };
    let link = |to: &str, text: &str| format!("<li><a href=\"{to}\">{text}</a>\n");
    let mut links = String::new();
    if pages.are_there() {
        links += &link("docs/", words.docs);
        links += &link("openapi.json", words.document);
    }
    links += &link("docs/errors", words.errors);
    links += &link("readyz", words.readiness);
    let page = format!(
        "<!doctype html>\n<html lang=\"{}\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>onrush</title>\n\
         <h1>onrush {}</h1>\n<p>{}\n<p>{state}\n<ul>\n{links}</ul>\n</html>\n",
        words.lang,
        env!("CARGO_PKG_VERSION"),
        words.intro,
    );
    let told = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_LANGUAGE, words.lang),
        (header::VARY, "accept-language"),
    ];
    (told, page).into_response()
}
