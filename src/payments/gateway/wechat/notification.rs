//! What WeChat Pay tells us: payments <https://pay.weixin.qq.com/doc/v3/merchant/4012791882>, refunds
//! <https://pay.weixin.qq.com/doc/v3/merchant/4012791886>.
//!
//! Of a notify nothing is read before its signature holds over the raw body. What it is about is inside once more, sealed
//! with the APIv3 key (AES-256-GCM, <https://pay.weixin.qq.com/doc/v3/merchant/4012071382>).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::sign::{self, WechatUnsigned};
use super::trade::{RefundState, WechatTrade, is_name};
use crate::config::{ApiV3Key, WechatPay, merchant_of};
use crate::payments::model::{Message, Said};
use crate::platform::clock::At;

/// Why a notify is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It is not WeChat Pay's.
    #[error("it is not signed: {0}")]
    Unsigned(#[from] WechatUnsigned),
    /// It is WeChat Pay's, and not what its documents describe.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Its content was sealed with another key than ours, or was altered.
    #[error("its content does not open with the APIv3 key")]
    Sealed,
}

/// What a notify is, around its content.
#[derive(Deserialize)]
struct Envelope {
    id: String,
    event_type: String,
    resource: Sealed,
}

/// Sealed content.
#[derive(Deserialize)]
struct Sealed {
    algorithm: String,
    ciphertext: String,
    nonce: String,
    /// May be empty, or missing.
    #[serde(default)]
    associated_data: Option<String>,
}

/// Checks a notify over its raw body, and only then reads it.
pub(super) fn read(wechat: &WechatPay, headers: &HeaderMap, body: &[u8], now: At) -> Result<Message, Fault> {
    sign::verify(wechat, headers, body, now)?;
    let unreadable = |error: serde_json::Error| Fault::Unreadable(error.to_string());
    let envelope: Envelope = serde_json::from_slice(body).map_err(unreadable)?;
    if !is_name(&envelope.id) {
        return Err(Fault::Unreadable("its id is none that we keep".to_owned()));
    }
    let content = open(&wechat.api_v3_key, &envelope.resource)?;
    match envelope.event_type.split_once('.') {
        Some(("TRANSACTION", _)) => {
            let trade: WechatTrade = serde_json::from_slice(&content).map_err(unreadable)?;
            trade.message(envelope.id).map_err(|why| Fault::Unreadable(why.to_string()))
        }
        Some(("REFUND", _)) => {
            let refund: RefundState = serde_json::from_slice(&content).map_err(unreadable)?;
            // The application is not told of a refund; the merchant is.
            let merchant = merchant_of(refund.mchid.as_deref().unwrap_or_default(), &wechat.appid);
            let said = Said::Refunded { refund: refund.out_refund_no.parse().ok(), answer: refund.answer() };
            Ok(Message { notify_id: envelope.id, merchant, payment: refund.out_trade_no.parse().ok(), said })
        }
        _ => Err(Fault::Unreadable(format!("it is about {:.32}", envelope.event_type))),
    }
}

fn open(key: &ApiV3Key, sealed: &Sealed) -> Result<Vec<u8>, Fault> {
    if sealed.algorithm != "AEAD_AES_256_GCM" {
        return Err(Fault::Unreadable(format!("it is sealed with {:.32}", sealed.algorithm)));
    }
    let mut content = BASE64_STANDARD.decode(&sealed.ciphertext).map_err(|_| Fault::Sealed)?;
    let nonce = Nonce::try_assume_unique_for_key(sealed.nonce.as_bytes()).map_err(|_| Fault::Sealed)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key.0).map_err(|_| Fault::Sealed)?);
    let about = Aad::from(sealed.associated_data.as_deref().unwrap_or_default().as_bytes());
    let opened = key.open_in_place(nonce, about, &mut content).map_err(|_| Fault::Sealed)?;
    Ok(opened.to_vec())
}
