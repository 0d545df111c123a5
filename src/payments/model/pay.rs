//! The ways to pay, and what a front end needs to go on with each.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::platform::text::Text;

/// A way to pay at a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// A page of the gateway's for the browser.
    Page,
    /// Alipay: a QR code that the buyer scans.
    Qr,
    /// WeChat: a QR code that the buyer scans.
    Native,
    /// WeChat: inside its own browser or a mini program, for a known payer.
    Jsapi,
    /// WeChat: from another browser on the phone.
    H5,
    /// Stripe: its checkout page.
    Checkout,
}

/// The text names no channel.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is not a way to pay")]
pub struct NotAChannel;

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 6] = [Self::Page, Self::Qr, Self::Native, Self::Jsapi, Self::H5, Self::Checkout];

    /// As requests and the database have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Qr => "qr",
            Self::Native => "native",
            Self::Jsapi => "jsapi",
            Self::H5 => "h5",
            Self::Checkout => "checkout",
        }
    }
}

impl FromStr for Channel {
    type Err = NotAChannel;
    fn from_str(text: &str) -> Result<Self, NotAChannel> {
        Self::ALL.into_iter().find(|channel| channel.as_str() == text).ok_or(NotAChannel)
    }
}

impl TryFrom<Text> for Channel {
    type Error = NotAChannel;
    fn try_from(Text(text): Text) -> Result<Self, NotAChannel> {
        text.parse()
    }
}

/// What the front end needs to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayWith {
    /// A page to lead the browser to.
    Url(String),
    /// The text of a QR code to show.
    Qr(String),
    /// What WeChat's own browser is called with.
    Jsapi(Box<JsapiParams>),
}

/// The arguments of `WeixinJSBridge`'s `getBrandWCPayRequest` and of a mini program's `wx.requestPayment`, under the
/// names that they have there (WeChat Pay: "JSAPI调起支付").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JsapiParams {
    /// The application's id.
    pub app_id: String,
    /// Seconds since 1970.
    pub time_stamp: String,
    /// Random text.
    pub nonce_str: String,
    /// `prepay_id=…`.
    pub package: String,
    /// `RSA`.
    pub sign_type: String,
    /// The signature over the four first.
    pub pay_sign: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_one_name_everywhere() {
        for channel in Channel::ALL {
            assert_eq!(channel.as_str().parse::<Channel>().unwrap(), channel);
            assert_eq!(serde_json::to_value(channel).unwrap(), channel.as_str());
        }
        assert!("Page".parse::<Channel>().is_err());
    }
}
