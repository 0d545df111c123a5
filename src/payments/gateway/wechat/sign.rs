//! WeChat Pay's signatures (APIv3): ours on requests and on what a buyer's WeChat is handed, theirs on answers and notifies.
//!
//! All are SHA256withRSA over lines that end with a newline, the last one too; what may be signed and with which key:
//! <https://pay.weixin.qq.com/doc/v3/merchant/4012365342>. Requests: <https://pay.weixin.qq.com/doc/v3/merchant/4012365336>,
//! answers and notifies: <https://pay.weixin.qq.com/doc/v3/merchant/4013053249>.

use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::rand;
use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::config::WechatPay;
use crate::platform::clock::At;

/// The only scheme that we speak; what a message says of its own is not believed.
pub(super) const SCHEME: &str = "WECHATPAY2-SHA256-RSA2048";
/// A message whose time is further away than this, in either direction, is refused.
const WINDOW: Duration = Duration::from_secs(300);
/// What WeChat Pay signs badly on purpose begins with this, to see whether we look.
const PROBE: &str = "WECHATPAY/SIGNTEST/";
/// Longest header of a signature that we look at, in bytes: a signature of 8192 bits has 1368.
const HEADER_LENGTH: usize = 2048;

/// Why a message is not WeChat Pay's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WechatUnsigned {
    /// A header is missing, or there twice, or no text, or too long.
    #[error("the header {0} is missing or malformed")]
    Header(&'static str),
    /// Another scheme than ours.
    #[error("it is signed in another way than {SCHEME}")]
    Scheme,
    /// We hold no key of this name.
    #[error("it is signed with a key that is not configured: {0:.64}")]
    UnknownSerial(String),
    /// A probe: it is to be refused.
    #[error("it is a probe of our verification")]
    Probe,
    /// The signature is not this message's.
    #[error("the signature does not fit the message")]
    Altered,
    /// The time is outside the window.
    #[error("the timestamp is too far away")]
    Stale,
}

/// Checks the signature of an answer or a notify over its raw body. A missing header is a failure, never an empty text.
pub(super) fn verify(wechat: &WechatPay, headers: &HeaderMap, body: &[u8], now: At) -> Result<(), WechatUnsigned> {
    let timestamp = header(headers, "wechatpay-timestamp")?;
    let nonce = header(headers, "wechatpay-nonce")?;
    let serial = header(headers, "wechatpay-serial")?;
    let signature = header(headers, "wechatpay-signature")?;
    let seconds: i64 = timestamp.parse().map_err(|_| WechatUnsigned::Header("wechatpay-timestamp"))?;
    // Absent, it is the only one that there was before the header.
    if headers.contains_key("wechatpay-signature-type") && header(headers, "wechatpay-signature-type")? != SCHEME {
        return Err(WechatUnsigned::Scheme);
    }
    if signature.starts_with(PROBE) {
        return Err(WechatUnsigned::Probe);
    }
    let key = wechat.platform_keys.iter().find(|key| key.is(serial));
    let key = key.ok_or_else(|| WechatUnsigned::UnknownSerial(serial.to_owned()))?;
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| WechatUnsigned::Header("wechatpay-signature"))?;
    let signed = [timestamp.as_bytes(), b"\n", nonce.as_bytes(), b"\n", body, b"\n"].concat();
    if !key.key.verifies(&signed, &signature) {
        return Err(WechatUnsigned::Altered);
    }
    if now.timestamp().as_second().abs_diff(seconds) > WINDOW.as_secs() {
        return Err(WechatUnsigned::Stale);
    }
    Ok(())
}

/// The only value of a header; which of two was signed nobody can tell.
fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, WechatUnsigned> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let text = first.filter(|_| second.is_none()).and_then(|value| value.to_str().ok());
    text.filter(|text| (1..=HEADER_LENGTH).contains(&text.len())).ok_or(WechatUnsigned::Header(name))
}

/// The `Authorization` of a request. `path` is what follows the host, with the query.
pub(super) fn authorization(
    wechat: &WechatPay,
    method: &str,
    path: &str,
    body: &[u8],
    now: At,
) -> anyhow::Result<String> {
    let (timestamp, nonce) = (now.timestamp().as_second(), nonce()?);
    let head = format!("{method}\n{path}\n{timestamp}\n{nonce}\n");
    let signature = sign(wechat, &[head.as_bytes(), body, b"\n"].concat())?;
    let (mchid, serial) = (&wechat.mchid, &wechat.serial_no);
    Ok(format!(
        "{SCHEME} mchid=\"{mchid}\",nonce_str=\"{nonce}\",timestamp=\"{timestamp}\",serial_no=\"{serial}\",signature=\"{signature}\""
    ))
}

/// What a page in WeChat hands to `WeixinJSBridge`, or a mini program to `wx.requestPayment`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handed {
    pub timestamp: String,
    pub nonce: String,
    pub package: String,
    pub signature: String,
}

/// Signs a prepaid session for the buyer's WeChat.
pub(super) fn hand_over(wechat: &WechatPay, prepay_id: &str, now: At) -> anyhow::Result<Handed> {
    let (timestamp, nonce) = (now.timestamp().as_second().to_string(), nonce()?);
    let package = format!("prepay_id={prepay_id}");
    let signature = sign(wechat, format!("{}\n{timestamp}\n{nonce}\n{package}\n", wechat.appid).as_bytes())?;
    Ok(Handed { timestamp, nonce, package, signature })
}

fn sign(wechat: &WechatPay, text: &[u8]) -> anyhow::Result<String> {
    let signature = wechat.private_key.sign(text).context("signing for WeChat Pay")?;
    Ok(BASE64_STANDARD.encode(signature))
}

/// 32 characters that nobody can guess.
fn nonce() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).context("making a nonce")?;
    Ok(format!("{:032X}", u128::from_be_bytes(bytes)))
}
