//! One signed request to WeChat Pay and its verified answer.
//!
//! What it did (2xx) is believed only with a good signature. What it declined (4xx) says so with a code, and its documents
//! promise no signature there; one that is there must hold. A code alone moves no money: where it says that there is
//! some, the trade is asked, and that answer is signed. <https://pay.weixin.qq.com/doc/v3/merchant/4012081717>

use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::http::StatusCode;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{settings, sign};
use crate::app::App;
use crate::error::Result;
use crate::payments::gateway::client::{GatewayCall, Reply, send};
use crate::payments::gateway::unavailable;
use crate::payments::model::Gateway;

/// Longest code of a refusal that we look at, in bytes.
const CODE_LENGTH: usize = 64;

/// What we send, and what we want back.
const JSON: &str = "application/json";

/// An answer that can be acted on.
pub(super) enum WechatAnswer {
    /// Done: the body, verified.
    Done(Vec<u8>),
    /// Not done, by WeChat Pay's code for why.
    Declined { status: StatusCode, code: String },
}

/// Asks with a GET; `path` has the query.
pub(super) async fn get(app: &App, operation: &'static str, path: &str) -> Result<WechatAnswer> {
    let call = GatewayCall::new(app, Gateway::Wechat, operation);
    answer(app, ask(app, &call, JSON, Method::GET, path, None).await?)
}

/// Asks with a POST. All that we ask so carries a number of ours, so that the same again is the same.
pub(super) async fn post(app: &App, operation: &'static str, path: &str, body: &Value) -> Result<WechatAnswer> {
    let call = GatewayCall::new(app, Gateway::Wechat, operation);
    answer(app, ask(app, &call, JSON, Method::POST, path, Some(body)).await?)
}

/// Fetches a file that a verified answer named: its own answer is not signed, its digest was told before. It is fetched
/// from where WeChat Pay is for us, whatever host the address has.
pub(super) async fn file(app: &App, url: &str, limit_bytes: usize, patience: Duration) -> Result<Vec<u8>> {
    let url = Url::parse(url).context("reading the address of WeChat Pay's file")?;
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let call = GatewayCall { limit_bytes, patience, ..GatewayCall::new(app, Gateway::Wechat, "file") };
    let reply = ask(app, &call, "*/*", Method::GET, &path, None).await?;
    if reply.status != StatusCode::OK {
        return Err(unavailable(Gateway::Wechat, format!("it gives no file: HTTP {}", reply.status.as_u16())));
    }
    Ok(reply.body)
}

/// The content of a verified answer.
pub(super) fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(answer).context("reading WeChat Pay's answer")?)
}

async fn ask(
    app: &App,
    call: &GatewayCall,
    accept: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Reply> {
    let wechat = settings(app)?;
    let body = body.map(serde_json::to_vec).transpose().context("writing a request to WeChat Pay")?.unwrap_or_default();
    send(app, call, || {
        // Each try has a time and a nonce of its own.
        let authorization = sign::authorization(wechat, method.as_str(), path, &body, app.clock.now())?;
        let request = app
            .http
            .request(method.clone(), format!("{}{path}", wechat.base_url))
            .header("authorization", authorization)
            .header("accept", accept)
            // Requests without one are refused.
            .header("user-agent", concat!("onrush/", env!("CARGO_PKG_VERSION")))
            .header("wechatpay-serial", wechat.platform_keys.first().map_or("", |key| key.id.as_str()));
        Ok(if method == Method::POST { request.header("content-type", JSON).body(body.clone()) } else { request })
    })
    .await
}

fn answer(app: &App, reply: Reply) -> Result<WechatAnswer> {
    #[derive(Deserialize)]
    struct Refusal {
        code: String,
    }
    let done = reply.status.is_success();
    if done || reply.headers.contains_key("wechatpay-signature") {
        sign::verify(settings(app)?, &reply.headers, &reply.body, app.clock.now())
            .map_err(|error| unavailable(Gateway::Wechat, format!("its answer is not signed: {error}")))?;
    }
    if done {
        return Ok(WechatAnswer::Done(reply.body));
    }
    let status = reply.status;
    match serde_json::from_slice::<Refusal>(&reply.body) {
        Ok(Refusal { code }) if code.len() <= CODE_LENGTH => Ok(WechatAnswer::Declined { status, code }),
        _ => Err(unavailable(Gateway::Wechat, anyhow!("HTTP {}, without a code", status.as_u16()))),
    }
}
