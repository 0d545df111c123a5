//! The ways to pay, and what a front end needs to go on with each.

use crate::platform::text_enum;

use serde::{Deserialize, Serialize};

/// A way to pay at a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 6] = [Self::Page, Self::Qr, Self::Native, Self::Jsapi, Self::H5, Self::Checkout];
}

text_enum!(Channel);

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
