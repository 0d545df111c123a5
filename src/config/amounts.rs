//! The largest amount that each gateway takes in one payment. A shop may not sell what nobody can pay.

use serde::Serialize;

use super::Payments;
use crate::platform::money::Money;

/// By gateway. The sandbox's is our own: a million yuan. The others':
///
/// * Alipay: `total_amount` is 0.01 to 100,000,000 yuan ("取值范围[0.01,100000000]", `alipay.trade.page.pay` and
///   `alipay.trade.precreate`).
/// * WeChat Pay: `amount.total` is a 32-bit integer of fen (its API description, of which its SDKs are generated:
///   `Amount.total` is an `Integer` in wechatpay-java). What banks and a merchant's contract allow may be less.
/// * Stripe: an amount has at most eight digits
///   (<https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts>).
const AMOUNTS_MAX: [(&str, i64); 4] =
    [("sandbox", 100_000_000), ("alipay", 10_000_000_000), ("wechat", 2_147_483_647), ("stripe", 99_999_999)];

/// A gateway, and the largest amount that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AmountMax {
    /// The gateway's name.
    pub gateway: &'static str,
    /// So much it takes in one payment.
    pub max_fen: Money,
}

/// The largest amount that the gateway of this name takes in one payment.
pub fn amount_max(gateway: &str) -> Option<Money> {
    AMOUNTS_MAX.iter().find(|(name, _)| *name == gateway).map(|(_, fen)| Money::fen(*fen))
}

impl Payments {
    /// What each gateway takes that is on.
    pub fn amounts_max(&self) -> Vec<AmountMax> {
        let mut on = self.real_gateways();
        on.extend(self.sandbox.then_some("sandbox"));
        let limit = |gateway: &'static str| amount_max(gateway).map(|max_fen| AmountMax { gateway, max_fen });
        on.into_iter().filter_map(limit).collect()
    }
}
