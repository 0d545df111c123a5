//! What the sandbox sends, and when again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    MERCHANT_ID, NotifyId, REFUND_DECLINED, REFUNDED, SandboxRefundStatus, SandboxTrade, StoredRefund, TradeNo,
};
use crate::platform::money::CURRENCY;

/// What a notify's body says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Notify {
    /// The same in every repetition.
    pub notify_id: NotifyId,
    /// [`SUCCESS`](super::SUCCESS) or [`FAILED`](super::FAILED); [`REFUNDED`] or [`REFUND_DECLINED`].
    pub code: String,
    /// Whose trade.
    pub merchant_id: String,
    /// The merchant's number.
    pub merchant_no: String,
    /// The gateway's number.
    pub trade_no: TradeNo,
    /// What was paid, or went back.
    pub amount_fen: i64,
    /// Of the amount.
    pub currency: String,
    /// The merchant's number of the refund.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_no: Option<String>,
}

impl SandboxTrade {
    /// A notify of one of this trade's refunds.
    pub fn refund_notify(&self, refund: &StoredRefund) -> Option<Notify> {
        let code = match refund.status {
            SandboxRefundStatus::Pending => return None,
            SandboxRefundStatus::Done => REFUNDED,
            SandboxRefundStatus::Declined => REFUND_DECLINED,
        };
        let notify = self.notify_body(code, refund.amount_fen)(NotifyId::new());
        Some(Notify { refund_no: Some(refund.refund_no.clone()), ..notify })
    }

    /// A notify of this trade, as a function of its id.
    pub fn notify_body(&self, code: &'static str, amount_fen: i64) -> impl Fn(NotifyId) -> Notify {
        move |notify_id| Notify {
            notify_id,
            code: code.to_owned(),
            merchant_id: MERCHANT_ID.to_owned(),
            merchant_no: self.merchant_no.clone(),
            trade_no: self.trade_no,
            amount_fen,
            currency: CURRENCY.to_owned(),
            refund_no: None,
        }
    }
}

/// The pause before a notify is sent again, after `attempts` tries in vain; `None`: the gateway gives up.
pub fn repeat_after(attempts: i32) -> Option<Duration> {
    const SECONDS: [u64; 9] = [1, 2, 5, 10, 30, 60, 300, 900, 3600];
    const ATTEMPTS_MAX: usize = 32;
    let attempts = usize::try_from(attempts).unwrap_or(0).max(1);
    let pause = SECONDS.get(attempts - 1).or(SECONDS.last()).copied().map(Duration::from_secs);
    pause.filter(|_| attempts < ATTEMPTS_MAX)
}
