//! Trades and refunds as WeChat Pay writes them, in notifies and in answers alike:
//! <https://pay.weixin.qq.com/doc/v3/merchant/4012791880> and <https://pay.weixin.qq.com/doc/v3/merchant/4012791884>.

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::config::merchant_of;
use crate::payments::model::{Message, RefundAnswer, Said};
use crate::platform::money::Money;

/// Longest id of a notify that we keep: theirs have 36 characters at most.
const ID_LENGTH: usize = 64;

/// Whether a text is one that we keep as it is.
pub(super) fn is_name(text: &str) -> bool {
    (1..=ID_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A trade.
#[derive(Debug, Deserialize)]
pub(super) struct WechatTrade {
    pub mchid: String,
    pub appid: String,
    pub out_trade_no: String,
    pub trade_state: String,
    /// Its number at WeChat Pay, once it is paid.
    #[serde(default)]
    transaction_id: Option<String>,
    #[serde(default)]
    amount: Option<Amount>,
}

#[derive(Debug, Deserialize)]
struct Amount {
    total: Money,
    currency: String,
}

/// How far a trade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TradeState {
    /// Money came in, and may have gone back since.
    Paid,
    /// The buyer may still pay.
    Open,
    /// It ended without money.
    Over,
}

impl WechatTrade {
    /// How far it is. A state that nobody told us of is a fault: guessed, it could lose money.
    pub fn state(&self) -> anyhow::Result<TradeState> {
        match self.trade_state.as_str() {
            "SUCCESS" | "REFUND" => Ok(TradeState::Paid),
            // After an attempt that failed the buyer may try again.
            "NOTPAY" | "USERPAYING" | "PAYERROR" => Ok(TradeState::Open),
            "CLOSED" | "REVOKED" => Ok(TradeState::Over),
            other => bail!("WeChat Pay has a trade in state {other:.32}"),
        }
    }

    /// How much was paid, in fen.
    pub fn total_fen(&self) -> Option<i64> {
        self.amount.as_ref().map(|amount| amount.total.as_fen())
    }

    /// What it says, in our words.
    pub fn message(self, notify_id: String) -> anyhow::Result<Message> {
        let (merchant, payment) = (merchant_of(&self.mchid, &self.appid), self.out_trade_no.parse().ok());
        let said = if self.state()? == TradeState::Paid {
            let amount = self.amount.context("a paid trade without an amount")?;
            let trade_no = self.transaction_id.filter(|no| is_name(no)).context("a paid trade without its number")?;
            Said::Paid { amount: amount.total, currency: amount.currency, trade_no }
        } else {
            Said::NotPaid
        };
        Ok(Message { notify_id, merchant, payment, said })
    }
}

/// A refund.
#[derive(Debug, Deserialize)]
pub(super) struct RefundState {
    /// Told in notifies only.
    #[serde(default)]
    pub mchid: Option<String>,
    pub out_trade_no: String,
    pub out_refund_no: String,
    /// Answers call it one way, notifies the other.
    #[serde(alias = "refund_status")]
    status: String,
    pub amount: RefundAmount,
}

#[derive(Debug, Deserialize)]
pub(super) struct RefundAmount {
    pub refund: Money,
}

impl RefundState {
    /// What became of it, in our words.
    pub fn answer(&self) -> RefundAnswer {
        match self.status.as_str() {
            "SUCCESS" => RefundAnswer::Confirmed,
            "PROCESSING" => RefundAnswer::Pending,
            // The buyer's account takes no money, or the refund was given up: on the merchant platform a person can send
            // it elsewhere.
            other => RefundAnswer::Refused(format!("WeChat Pay says {other:.32}")),
        }
    }
}
