//! Devices that somebody logged in on before.
//!
//! At a login the device is given a token, as a cookie and in the answer, and shows it at the next one. It is no proof of
//! who asks: all it does is that strangers who guess this number's passwords cannot make this device wait ([`super::redis`]).
//! It is bound to the number, signed, and kept nowhere: without any state it can be given to everybody.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::hmac;
use axum::http::{HeaderMap, HeaderValue, header};
use secrecy::ExposeSecret;

use super::model::Phone;
use crate::app::App;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::id::Id;

/// A device is known for so long after its last login.
const LIFE: Duration = Duration::from_secs(180 * 24 * 3600);
/// The cookie.
pub(super) const COOKIE: &str = "onrush_device";
/// The only routes that read the cookie.
const COOKIE_PATH: &str = "/api/v1/auth";
/// What else the secret of access tokens signs is signed with other keys.
const PURPOSE: &[u8] = b"onrush device token 1";
/// Tokens of one request that are looked at.
const SHOWN_MAX: usize = 8;
/// Hex digits of the signature.
const SIGNATURE_DIGITS: usize = 64;

/// A device that is known for a number, by 32 hex digits of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceId(String);

impl DeviceId {
    /// A new one.
    fn new() -> Self {
        Self(Id::<Self>::new().to_string())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a device shows: `<device>.<seconds since 1970>.<signature>`.
pub(super) struct DeviceToken(String);

impl DeviceToken {
    /// Whether the text has the shape of one.
    pub(super) fn is_shaped(text: &str) -> bool {
        let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parts: Vec<&str> = text.split('.').collect();
        let [device, at, signature] = parts[..] else { return false };
        device.len() == 32
            && hex(device)
            && (1..=12).contains(&at.len())
            && at.bytes().all(|b| b.is_ascii_digit())
            && signature.len() == SIGNATURE_DIGITS
            && hex(signature)
    }

    /// For the client.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// As a cookie that no script of a page reads, and no page of another site sends.
    pub(super) fn cookie(&self, app: &App) -> Option<HeaderValue> {
        let secure = if app.config.http.public_url.starts_with("https://") { "; Secure" } else { "" };
        let life = LIFE.as_secs();
        let text =
            format!("{COOKIE}={}; Path={COOKIE_PATH}; Max-Age={life}; HttpOnly; SameSite=Strict{secure}", self.0);
        HeaderValue::from_str(&text).ok()
    }
}

/// The tokens that a request brings: in its body, or as cookies.
pub(super) fn shown(headers: &HeaderMap, in_body: Option<String>) -> Vec<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let ours = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let ours = ours.filter(|(name, _)| *name == COOKIE).map(|(_, token)| token.to_owned());
    in_body.into_iter().chain(ours).take(SHOWN_MAX).collect()
}

/// The device that one of `tokens` proves, if it was given for this number and is not too old.
pub(super) fn known(app: &App, phone: &Phone, tokens: &[String]) -> Result<Option<DeviceId>> {
    if tokens.is_empty() {
        return Ok(None);
    }
    let (key, now) = (key(app)?, app.clock.now());
    Ok(tokens.iter().find_map(|token| read(&key, phone, token, now)))
}

/// A token for a device on which the number's owner has just logged in; `before` when it had one.
pub(super) fn token(app: &App, phone: &Phone, before: Option<DeviceId>) -> Result<DeviceToken> {
    let at = app.clock.now().ms().div_euclid(1000).max(0);
    Ok(sign(&key(app)?, phone, &before.unwrap_or_else(DeviceId::new), at))
}

fn sign(key: &hmac::Key, phone: &Phone, device: &DeviceId, at_s: i64) -> DeviceToken {
    let said = format!("{}.{at_s}", device.0);
    let signature = hmac::sign(key, signed(&said, phone).as_bytes());
    DeviceToken(format!("{said}.{}", hex::encode(signature)))
}

fn read(key: &hmac::Key, phone: &Phone, token: &str, now: At) -> Option<DeviceId> {
    let (said, digits) = token.rsplit_once('.').filter(|_| DeviceToken::is_shaped(token))?;
    let (device, at_s) = said.split_once('.')?;
    let signature = hex::decode(digits).ok()?;
    // aws-lc-rs compares in constant time.
    hmac::verify(key, signed(said, phone).as_bytes(), &signature).ok()?;
    let at = At::from_ms(at_s.parse::<i64>().ok()?.saturating_mul(1000));
    (now.since(at) < LIFE).then(|| DeviceId(device.to_owned()))
}

fn signed(said: &str, phone: &Phone) -> String {
    format!("{said}.{}", phone.as_str())
}

/// The key, made of what signs access tokens: every process of the service has the same one.
#[derive(Default)]
struct Key(OnceLock<hmac::Key>);

fn key(app: &App) -> Result<hmac::Key> {
    let kept = app.local::<Key>();
    if let Some(key) = kept.0.get() {
        return Ok(key.clone());
    }
    let auth = &app.config.auth;
    let secret = match &auth.jwt_private_key_file {
        Some(path) => std::fs::read(path).context("reading the key that device tokens are made with")?,
        None => auth.jwt_secret.expose_secret().as_bytes().to_vec(),
    };
    let root = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let derived = hmac::sign(&root, PURPOSE);
    Ok(kept.0.get_or_init(|| hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phone(text: &str) -> Phone {
        text.parse().unwrap()
    }

    #[test]
    fn a_device_is_known_for_its_number_until_its_time_is_over() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret");
        let (mine, now) = (phone("13800000001"), At::from_ms(1_700_000_000_000));
        let device = DeviceId::new();
        let DeviceToken(token) = sign(&key, &mine, &device, 1_700_000_000);
        assert!(DeviceToken::is_shaped(&token), "{token}");
        assert_eq!(read(&key, &mine, &token, now), Some(device));
        assert_eq!(read(&key, &phone("13800000002"), &token, now), None);
        assert!(read(&key, &mine, &token, now.plus(LIFE).minus(Duration::from_secs(1))).is_some());
        assert_eq!(read(&key, &mine, &token, now.plus(LIFE)), None);
        let other = hmac::Key::new(hmac::HMAC_SHA256, b"another secret");
        assert_eq!(read(&other, &mine, &token, now), None);
    }

    #[test]
    fn an_altered_token_is_none() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret");
        let (mine, now) = (phone("13800000001"), At::from_ms(1_700_000_000_000));
        let DeviceToken(token) = sign(&key, &mine, &DeviceId::new(), 1_700_000_000);
        for at in (0..token.len()).filter(|at| token.as_bytes()[*at] != b'.') {
            let mut altered = token.clone();
            let other = if token.as_bytes()[at] == b'0' { "1" } else { "0" };
            altered.replace_range(at..=at, other);
            assert_eq!(read(&key, &mine, &altered, now), None, "{altered}");
        }
        for text in ["", ".", "..", "a.1.b", &token[1..], &format!("{token}0"), &format!("{token}.")] {
            assert!(!DeviceToken::is_shaped(text) && read(&key, &mine, text, now).is_none(), "{text}");
        }
    }

    #[test]
    fn tokens_are_read_from_the_body_and_from_every_cookie() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b; onrush_device=one;c=d".parse().unwrap());
        headers.append(header::COOKIE, "onrush_device=two".parse().unwrap());
        assert_eq!(shown(&headers, Some("body".to_owned())), ["body", "one", "two"]);
        assert!(shown(&HeaderMap::new(), None).is_empty());
    }
}
