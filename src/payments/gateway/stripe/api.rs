//! One call to Stripe's API: the key, a fixed version of the API, parameters in form encoding, JSON back.
//! <https://docs.stripe.com/api>, errors: <https://docs.stripe.com/api/errors>
//!
//! Answers are not signed: that they are Stripe's is the word of TLS, so the base URL is `https` outside of tests.

use axum::http::StatusCode;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::client::{self, GatewayCall};
use super::super::unavailable;
use super::settings;
use crate::app::App;
use crate::error::Result;
use crate::payments::model::Gateway;

/// The version of the API that the objects of this room are written for; an account's own may be another, and change.
pub(super) const VERSION: &str = "2026-10-28.endive";
/// Longest page of a list with what its lines are about, in bytes.
const LIST_LIMIT_BYTES: usize = 8 << 20;

/// Parameters, under their names such as `line_items[0][quantity]`.
pub(super) type Form = Vec<(&'static str, String)>;

/// A request.
pub(super) struct Ask<'a> {
    /// What is asked, for the metrics.
    pub operation: &'static str,
    /// Behind `/v1/`.
    pub path: &'a str,
    pub form: Form,
    /// Of a request that changes something: it stands for this one request, and is answered the same for a day at least.
    /// <https://docs.stripe.com/api/idempotent_requests>
    pub idempotency_key: Option<&'a str>,
}

/// An answer to a request that was understood.
pub(super) enum StripeAnswer<T> {
    /// It was done: what came back, and its bytes.
    Done(T, Vec<u8>),
    /// It was not, and will not be when it is sent again.
    Declined(Declined),
}

/// Why a request was not carried out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Declined {
    #[serde(skip)]
    pub status: StatusCode,
    #[serde(rename = "type")]
    pub kind: String,
    pub code: Option<String>,
    param: Option<String>,
    message: Option<String>,
}

impl Declined {
    /// There is no such object.
    pub(super) fn is_missing(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// The key was used for another request before.
    pub(super) fn is_key_taken(&self) -> bool {
        self.kind == "idempotency_error"
    }
}

impl std::fmt::Display for Declined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status.as_u16(), self.kind)?;
        for more in [&self.code, &self.param, &self.message].into_iter().flatten() {
            write!(f, ", {more:.120}")?;
        }
        Ok(())
    }
}

/// Reads an object or a list.
pub(super) async fn get<T: DeserializeOwned>(
    app: &App,
    operation: &'static str,
    path: &str,
    form: Form,
) -> Result<StripeAnswer<T>> {
    call(app, Method::GET, Ask { operation, path, form, idempotency_key: None }).await
}

/// Changes something, once for each key.
pub(super) async fn post<T: DeserializeOwned>(app: &App, ask: Ask<'_>) -> Result<StripeAnswer<T>> {
    call(app, Method::POST, ask).await
}

async fn call<T: DeserializeOwned>(app: &App, method: Method, ask: Ask<'_>) -> Result<StripeAnswer<T>> {
    let settings = settings(app)?;
    let url = format!("{}/v1/{}", settings.base_url, ask.path);
    let call = GatewayCall { limit_bytes: LIST_LIMIT_BYTES, ..GatewayCall::new(app, Gateway::Stripe, ask.operation) };
    let reply = client::send(app, &call, || {
        let request = app.http.request(method.clone(), &url).bearer_auth(settings.secret_key.expose_secret());
        let request = request.header("stripe-version", VERSION);
        let request = match ask.idempotency_key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        Ok(if method == Method::GET { request.query(&ask.form) } else { request.form(&ask.form) })
    })
    .await?;
    let unreadable = |error| unavailable(Gateway::Stripe, format!("{}: cannot be read: {error}", ask.operation));
    if reply.status.is_success() {
        let object = serde_json::from_slice(&reply.body).map_err(unreadable)?;
        return Ok(StripeAnswer::Done(object, reply.body));
    }
    let declined = declined(reply.status, &reply.body);
    match reply.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            tracing::error!(gateway = "stripe", error = %declined, "Stripe does not take our key; a person must look");
            Err(unavailable(Gateway::Stripe, &declined))
        }
        // Another request with the key is under way, or an object is held by another: to be asked again.
        StatusCode::CONFLICT | StatusCode::FAILED_DEPENDENCY => Err(unavailable(Gateway::Stripe, &declined)),
        // Only what is told in Stripe's words is Stripe's: a proxy may have said no to what arrives later all the same.
        status if status.is_client_error() && !declined.kind.is_empty() => Ok(StripeAnswer::Declined(declined)),
        status => Err(unavailable(Gateway::Stripe, format!("HTTP {}", status.as_u16()))),
    }
}

/// What an error's body says; nothing where it says nothing that can be read.
fn declined(status: StatusCode, body: &[u8]) -> Declined {
    #[derive(Deserialize)]
    struct Envelope {
        error: Declined,
    }
    let said = serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.error).unwrap_or_default();
    Declined { status, ..said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_and_told_in_short() {
        let body = br#"{"error": {"type": "card_error", "code": "charge_already_refunded", "message": "Charge has already been refunded.", "doc_url": "https://stripe.com/docs"}}"#;
        let said = declined(StatusCode::BAD_REQUEST, body);
        assert_eq!(said.to_string(), "400 card_error, charge_already_refunded, Charge has already been refunded.");
        assert!(!said.is_missing() && !said.is_key_taken());
        let body = br#"{"error": {"type": "idempotency_error", "code": null}}"#;
        assert!(declined(StatusCode::BAD_REQUEST, body).is_key_taken());
        for unreadable in [&b""[..], b"<html>", b"{}", br#"{"error": "no"}"#, b"\xff"] {
            let said = declined(StatusCode::NOT_FOUND, unreadable);
            assert!(said.is_missing());
            assert_eq!(said.to_string(), "404 ");
        }
    }
}
