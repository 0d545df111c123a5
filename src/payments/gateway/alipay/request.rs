//! A call of Alipay's gateway: common parameters beside a `biz_content` in JSON, all signed together
//! (<https://opendocs.alipay.com/open/028woa>, "公共请求参数"); and the answer to it, verified.

use anyhow::{Context, anyhow};
use reqwest::Url;
use serde_json::Value;

use super::answer::{AlipayAnswer, Ended};
use super::signature::{Params, sign};
use super::{beijing, gateway_down};
use crate::app::App;
use crate::config::Alipay;
use crate::error::Result;
use crate::payments::gateway::client::{self, GatewayCall};
use crate::payments::gateway::switched_off;
use crate::payments::model::Gateway;

/// How a call ended that was understood.
pub(super) enum Called {
    /// It was carried out.
    Done(AlipayAnswer),
    /// It was declined for what the trade or the refund is: the code of the reason (`ACQ.…`), and all of it in words.
    Declined(String, String),
}

/// Who is signed for.
pub(in crate::payments::gateway) fn account(app: &App) -> Result<&Alipay> {
    app.config.payments.alipay.as_deref().ok_or_else(|| switched_off(Gateway::Alipay))
}

/// The parameters of a request without those that not every request has.
fn params(app: &App, account: &Alipay, method: &str, content: &Value) -> Params {
    let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let now = beijing(app.clock.now());
    let content = content.to_string();
    [
        ("app_id", account.app_id.as_str()),
        ("method", method),
        ("format", "JSON"),
        ("charset", "utf-8"),
        ("sign_type", "RSA2"),
        ("timestamp", &now),
        ("version", "1.0"),
        ("biz_content", &content),
    ]
    .into_iter()
    .map(pair)
    .collect()
}

/// A request as the address that a browser is led to. `more` are parameters beside the common ones.
pub(super) fn signed_url(app: &App, method: &str, content: &Value, more: &[(&str, String)]) -> Result<String> {
    let account = account(app)?;
    let mut params = params(app, account, method, content);
    params.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let signed = sign(params, &account.private_key).map_err(anyhow::Error::from)?;
    let url = Url::parse_with_params(&account.base_url, signed).context("making an address of Alipay's")?;
    Ok(url.into())
}

/// Sends a request and verifies its answer. Every request may be sent twice: the same trade or refund is meant.
pub(super) async fn call(
    app: &App,
    (method, operation): (&'static str, &'static str),
    content: &Value,
    more: &[(&str, String)],
) -> Result<Called> {
    let account = account(app)?;
    let reply = client::send(app, &GatewayCall::new(app, Gateway::Alipay, operation), || {
        let mut params = params(app, account, method, content);
        params.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let mut signed = sign(params, &account.private_key).map_err(anyhow::Error::from)?;
        // As Alipay's own SDKs send it: what may be long in the body, the rest in the address.
        let body = [("biz_content", signed.remove("biz_content").unwrap_or_default())];
        Ok(app.http.post(&account.base_url).query(&signed).form(&body))
    })
    .await?;
    if !reply.status.is_success() {
        return Err(gateway_down(format_args!("HTTP {}", reply.status.as_u16())));
    }
    let answer = AlipayAnswer::verified(&reply.body, method, &account.public_keys).map_err(gateway_down)?;
    match answer.ended() {
        Ended::Done => Ok(Called::Done(answer)),
        Ended::Declined(code) => Ok(Called::Declined(code, answer.in_words())),
        Ended::Unavailable(words) => Err(gateway_down(words)),
        Ended::Refused(words) => Err(anyhow!("Alipay refuses {method}: {words}").into()),
    }
}
