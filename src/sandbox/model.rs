//! The sandbox gateway's words: what a merchant asks and hears, what a buyer does, what a notify says.

mod notification;
mod refund;

pub use notification::{Notify, repeat_after};
pub use refund::{Refunding, SandboxRefundStatus};

use crate::platform::text_enum;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::platform::clock::At;
use crate::platform::day::{self, Day};
use crate::platform::id::Id;
use crate::platform::text::Text;

/// Names trades; see [`TradeNo`].
pub struct TradeName;
/// The gateway's own number of a trade.
pub type TradeNo = Id<TradeName>;
/// Names notifies.
pub struct NotifyName;
/// A notify's own number, the same in every repetition of it.
pub type NotifyId = Id<NotifyName>;

/// The only merchant of the sandbox.
pub const MERCHANT_ID: &str = "onrush-sandbox";
/// The code of success: in an answer, the request was carried out; in a notify, the money was paid.
pub const SUCCESS: &str = "100000";
/// The code of a notify that says the payment failed.
pub const FAILED: &str = "200000";
/// The code of a notify that says money went back.
pub const REFUNDED: &str = "100001";
/// The code of a notify that says money does not go back.
pub const REFUND_DECLINED: &str = "200009";

/// Longest number of a merchant.
const NUMBER_LENGTH: usize = 64;
/// Longest subject, in characters.
const SUBJECT_LENGTH: usize = 200;
/// Longest URL.
const URL_LENGTH: usize = 500;
/// The largest amount: a million yuan.
const AMOUNT_MAX_FEN: i64 = 100_000_000;
/// The longest delay of a late payment: a week.
const DELAY_MAX_S: u64 = 7 * 24 * 3600;

/// What a merchant asks.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Request {
    /// Open a trade.
    Create(Create),
    /// What became of a trade?
    Query {
        /// The merchant's number.
        merchant_no: String,
    },
    /// End a trade that nobody paid.
    Close {
        /// The merchant's number.
        merchant_no: String,
    },
    /// Give money back.
    Refund(SandboxRefund),
    /// What became of a refund?
    QueryRefund {
        /// The merchant's number of the refund.
        refund_no: String,
    },
    /// A day's payments or refunds.
    Bill(SandboxBill),
}

/// A trade to open.
#[derive(Debug, Deserialize)]
pub struct Create {
    /// The merchant's number: the same number again is the same trade.
    pub merchant_no: String,
    /// What the buyer pays.
    pub amount_fen: i64,
    /// What the buyer reads.
    pub subject: String,
    /// Where the notify goes.
    pub notify_url: String,
    /// Where the buyer's browser goes afterwards.
    pub return_url: String,
    /// The buyer cannot pay after this.
    pub expires_at: At,
}

impl Create {
    /// Whether every field is within its bounds.
    pub fn check(&self) -> Result<(), No> {
        let url = |text: &str| {
            text.len() <= URL_LENGTH && text.is_ascii() && (text.starts_with("http://") || text.starts_with("https://"))
        };
        let good = is_number(&self.merchant_no)
            && (1..=AMOUNT_MAX_FEN).contains(&self.amount_fen)
            && self.subject.chars().count() <= SUBJECT_LENGTH
            && url(&self.notify_url)
            && url(&self.return_url);
        if good { Ok(()) } else { Err(No::InvalidRequest) }
    }
}

/// Money to give back.
#[derive(Debug, Deserialize)]
pub struct SandboxRefund {
    /// The merchant's number of the trade.
    pub merchant_no: String,
    /// The merchant's number of the refund: the same number again is the same refund.
    pub refund_no: String,
    /// How much.
    pub amount_fen: i64,
}

impl SandboxRefund {
    /// Whether every field is within its bounds.
    pub fn check(&self) -> Result<(), No> {
        let good = is_number(&self.merchant_no)
            && is_number(&self.refund_no)
            && (1..=AMOUNT_MAX_FEN).contains(&self.amount_fen);
        if good { Ok(()) } else { Err(No::InvalidRequest) }
    }
}

fn is_number(text: &str) -> bool {
    (1..=NUMBER_LENGTH).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// Which page of which bill.
#[derive(Debug, Deserialize)]
pub struct SandboxBill {
    /// The day, `2026-11-20`.
    pub date: String,
    /// Its payments or its refunds.
    pub kind: BillKind,
    /// `next` of the page before; empty for the first.
    pub after: String,
}

impl SandboxBill {
    /// The day's first instant and the next day's, in `zone`.
    pub fn day(&self, zone: &str) -> Option<(At, At)> {
        let day: Day = self.date.parse().ok()?;
        Some(day.bounds(&day::zone(zone).ok()?))
    }
}

/// What a bill lists.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BillKind {
    /// Money that came in.
    Payments,
    /// Money that went back.
    Refunds,
}

/// One line of a bill.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct SandboxBillLine {
    /// The merchant's number of the trade or of the refund.
    #[sqlx(try_from = "Text")]
    pub number: String,
    /// The merchant's number of the trade.
    #[sqlx(try_from = "Text")]
    pub merchant_no: String,
    /// How much moved.
    pub amount_fen: i64,
    /// When.
    pub at: At,
}

/// A trade.
#[derive(Debug, sqlx::FromRow)]
pub struct SandboxTrade {
    /// The gateway's number.
    pub trade_no: TradeNo,
    /// The merchant's number.
    #[sqlx(try_from = "Text")]
    pub merchant_no: String,
    /// What is to be paid.
    pub amount_fen: i64,
    /// What was paid.
    pub paid_fen: i64,
    /// Its state.
    pub status: TradeStatus,
    /// What the buyer reads.
    #[sqlx(try_from = "Text")]
    pub subject: String,
    /// Where notifies go.
    #[sqlx(try_from = "Text")]
    pub notify_url: String,
    /// Where the browser goes.
    #[sqlx(try_from = "Text")]
    pub return_url: String,
    /// The buyer cannot pay after this.
    pub expires_at: At,
    /// What becomes of its refunds.
    pub refunding: Refunding,
}

/// A refund.
#[derive(Debug, Clone, serde::Serialize, sqlx::FromRow)]
pub struct StoredRefund {
    /// The merchant's number of the refund.
    #[sqlx(try_from = "Text")]
    pub refund_no: String,
    /// The merchant's number of the trade.
    #[sqlx(try_from = "Text")]
    pub merchant_no: String,
    /// How much.
    pub amount_fen: i64,
    /// How far it is.
    pub status: SandboxRefundStatus,
}

/// What a merchant hears when it was carried out.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum SandboxAnswer {
    /// A trade as it is now.
    Trade {
        /// The merchant's number.
        merchant_no: String,
        /// The gateway's number.
        trade_no: TradeNo,
        /// Its state.
        status: TradeStatus,
        /// What was to be paid.
        amount_fen: i64,
        /// What was paid.
        paid_fen: i64,
        /// Of both.
        currency: &'static str,
        /// Whose trade it is.
        merchant_id: &'static str,
        /// Where the buyer pays.
        pay_url: String,
    },
    /// A refund as it is now.
    Refund(StoredRefund),
    /// A page of a bill.
    Bill {
        /// Its lines.
        lines: Vec<SandboxBillLine>,
        /// `after` of the next page, if there is one.
        next: Option<String>,
    },
}

/// Why something was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// A field is missing or out of bounds.
    InvalidRequest,
    /// The signature does not hold.
    InvalidSignature,
    /// No such trade.
    TradeNotFound,
    /// The trade was paid.
    AlreadyPaid,
    /// The trade was closed, failed or expired.
    TradeOver,
    /// The number was used for something else.
    Conflict,
    /// More than is left of what was paid.
    RefundTooMuch,
    /// No such refund.
    RefundNotFound,
}

impl No {
    /// (code, name) in the answer.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::InvalidRequest => ("200001", "invalid_request"),
            Self::InvalidSignature => ("200002", "invalid_signature"),
            Self::TradeNotFound => ("200003", "trade_not_found"),
            Self::AlreadyPaid => ("200004", "already_paid"),
            Self::TradeOver => ("200005", "trade_over"),
            Self::Conflict => ("200006", "conflict"),
            Self::RefundTooMuch => ("200007", "refund_too_much"),
            Self::RefundNotFound => ("200008", "refund_not_found"),
        }
    }
}

/// A trade's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TradeStatus {
    /// Nobody has paid yet.
    Waiting,
    /// Paid.
    Paid,
    /// The payment failed; the trade is over.
    Failed,
    /// The merchant closed it; the trade is over.
    Closed,
    /// Paid, and all of it given back.
    Refunded,
}

impl TradeStatus {
    /// Whether money came in.
    pub fn has_money(self) -> bool {
        matches!(self, Self::Paid | Self::Refunded)
    }
}

text_enum!(TradeStatus);

/// What a buyer can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuyerAction {
    /// Pay.
    Pay,
    /// The payment fails; on a paid trade: a message that says so, although it was paid.
    Fail,
    /// Pay once, told twice under two notify ids.
    PayTwice,
    /// Pay another amount.
    PayWrongAmount,
    /// The money arrives after a delay, whatever the merchant did to the trade meanwhile.
    PayLate,
    /// Refunds of the trade, from now on, and those that are under way.
    Refunds(Refunding),
}

impl FromStr for BuyerAction {
    type Err = No;
    fn from_str(text: &str) -> Result<Self, No> {
        Ok(match text {
            "pay" => Self::Pay,
            "fail" => Self::Fail,
            "pay_twice" => Self::PayTwice,
            "pay_wrong_amount" => Self::PayWrongAmount,
            "pay_late" => Self::PayLate,
            "refunds_at_once" => Self::Refunds(Refunding::AtOnce),
            "refunds_slowly" => Self::Refunds(Refunding::Slowly),
            "refunds_never" => Self::Refunds(Refunding::Never),
            _ => return Err(No::InvalidRequest),
        })
    }
}

/// The cashier page's form. Browsers send an untouched field as an empty text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActForm {
    action: String,
    #[serde(default)]
    delay_s: String,
    #[serde(default)]
    amount_fen: String,
}

/// What a buyer does.
#[derive(Debug)]
pub struct BuyerAct {
    /// Which.
    pub action: BuyerAction,
    delay_s: Option<u64>,
    amount_fen: Option<i64>,
}

impl BuyerAct {
    /// Reads the form.
    pub fn parse(body: &[u8]) -> Result<Self, No> {
        let form: ActForm = serde_urlencoded::from_bytes(body).map_err(|_| No::InvalidRequest)?;
        let delay_s: Option<u64> = number(&form.delay_s)?;
        let amount_fen: Option<i64> = number(&form.amount_fen)?;
        if delay_s.is_some_and(|s| s > DELAY_MAX_S) || amount_fen.is_some_and(|a| !(1..=AMOUNT_MAX_FEN).contains(&a)) {
            return Err(No::InvalidRequest);
        }
        Ok(Self { action: form.action.parse()?, delay_s, amount_fen })
    }

    /// The delay that the buyer chose for a late payment.
    pub fn delay(&self) -> Option<Duration> {
        self.delay_s.map(Duration::from_secs)
    }

    /// What the buyer pays for a trade of `due_fen`: the wrong amount is the chosen one, or a fen beside it.
    pub fn amount_fen(&self, due_fen: i64) -> i64 {
        match self.action {
            BuyerAction::PayWrongAmount => {
                self.amount_fen.unwrap_or(if due_fen > 1 { due_fen - 1 } else { due_fen + 1 })
            }
            _ => due_fen,
        }
    }
}

fn number<T: FromStr>(text: &str) -> Result<Option<T>, No> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| No::InvalidRequest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<Option<Duration>> = (1..=32).map(repeat_after).collect();
        assert!(pauses[..31].is_sorted() && pauses[..31].iter().all(Option::is_some));
        assert_eq!(pauses[31], None);
    }

    #[test]
    fn the_wrong_amount_is_never_the_right_one_by_itself() {
        for due in [1, 2, 100] {
            assert_ne!(BuyerAct::parse(b"action=pay_wrong_amount").unwrap().amount_fen(due), due);
            assert_eq!(BuyerAct::parse(b"action=pay&amount_fen=7").unwrap().amount_fen(due), due);
        }
    }

    #[test]
    fn a_form_that_is_not_ours_is_refused() {
        for bad in
            ["", "action=steal", "action=pay&x=1", "action=pay_late&delay_s=-1", "action=pay_late&delay_s=9999999"]
        {
            assert_eq!(BuyerAct::parse(bad.as_bytes()).unwrap_err(), No::InvalidRequest, "{bad}");
        }
        assert!(BuyerAct::parse(b"action=pay_late&delay_s=").unwrap().delay().is_none());
    }

    #[test]
    fn a_bills_day_is_the_business_day() {
        let bill = SandboxBill { date: "2026-11-20".to_owned(), kind: BillKind::Payments, after: String::new() };
        let (from, until) = bill.day("Asia/Shanghai").unwrap();
        assert_eq!(from.to_string(), "2026-11-19T16:00:00.000Z");
        assert_eq!(until.since(from), Duration::from_secs(24 * 3600));
    }
}
