//! Types and pure rules of payments.

mod books;
mod pay;
mod refund;

pub use books::{BillSubject, BookEntry, BookStatus, HeardPosition, MoneyState};
pub use pay::{Channel, JsapiParams, PayWith};
pub use refund::{
    CAUSE_LATE, CAUSE_PAID_TWICE, OrderRefundKind, Refund, RefundAnswer, RefundId, RefundReason, RefundStatus,
};

use crate::platform::text_enum;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::orders::OrderId;
use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::money::Money;
use crate::platform::text::{OptionalText, Text};

/// The id of a [`Payment`]: our merchant number at the gateway.
pub type PaymentId = Id<Payment>;

/// A message that was kept (marker of its id).
pub struct Notification;
/// The id of a [`Notification`].
pub type NotificationId = Id<Notification>;

/// A company that takes money for us.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Gateway {
    /// The sandbox of this very service (`crate::sandbox`).
    Sandbox,
    /// Alipay (支付宝).
    Alipay,
    /// WeChat Pay (微信支付).
    Wechat,
    /// Stripe.
    Stripe,
}

impl Gateway {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sandbox, Self::Alipay, Self::Wechat, Self::Stripe];

    /// The ways to pay there; the first one is taken when a request names none.
    pub const fn channels(self) -> &'static [Channel] {
        match self {
            Self::Sandbox => &[Channel::Page],
            Self::Alipay => &[Channel::Page, Channel::Qr],
            Self::Wechat => &[Channel::Native, Channel::Jsapi, Channel::H5],
            Self::Stripe => &[Channel::Checkout],
        }
    }

    /// Whether a refund that is made there may fail after all, when the buyer's bank sends the money back. Then success is
    /// no last word, and an older message may come behind the one of the failure: <https://docs.stripe.com/refunds#failed-refunds>.
    pub const fn may_fail_made_refunds(self) -> bool {
        matches!(self, Self::Stripe)
    }
}

text_enum!(Gateway);

/// One attempt to pay one order at one gateway. It has its own number there, not the order's: gateways never take a
/// closed number again.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Payment {
    /// Its id: our merchant number.
    pub id: PaymentId,
    /// What it pays.
    pub order_id: OrderId,
    /// Where.
    pub gateway: Gateway,
    /// Which way.
    pub channel: Channel,
    /// How much.
    #[sqlx(rename = "amount_fen")]
    pub amount: Money,
    /// Of what (ISO 4217).
    #[sqlx(try_from = "Text")]
    pub currency: String,
    /// How far it is.
    pub status: PaymentStatus,
    /// The gateway's number, once there was money.
    #[sqlx(try_from = "OptionalText")]
    pub gateway_trade_no: Option<String>,
    /// What the gateway needs to find the trade again and is not ours (Stripe's session id), once it was told.
    #[sqlx(try_from = "OptionalText")]
    pub gateway_ref: Option<String>,
    /// Who is to pay, by WeChat's id of that person: of a [`Channel::Jsapi`] payment.
    #[sqlx(try_from = "OptionalText")]
    pub payer_openid: Option<String>,
    /// Where the buyer's request came from: of a [`Channel::H5`] payment.
    #[sqlx(try_from = "OptionalText")]
    pub payer_address: Option<String>,
    /// Nobody can pay after this; the order's own deadline.
    pub expires_at: At,
    /// How often the gateway was asked about it on our own account.
    pub query_count: i32,
}

/// How far a payment is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PaymentStatus {
    /// The buyer may pay.
    Started,
    /// Money came in: final.
    Paid,
    /// The gateway takes no more money for it; money that was on its way may still arrive.
    Closed,
}

text_enum!(PaymentStatus);

/// What became of paid money.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Resolution {
    /// It paid the order.
    Order,
    /// It came too late or twice, and what becomes of it is being decided.
    Owed,
    /// It goes back.
    Refund,
}

text_enum!(Resolution);

/// What a message did.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum NotificationOutcome {
    /// It paid the order.
    Settled,
    /// Its money came too late or twice.
    Late,
    /// It said what became of a refund.
    Refund,
    /// Nothing: its payment had been settled.
    Repeated,
    /// Nothing: it brought no money.
    Ignored,
    /// Nothing: it does not fit our books.
    Flagged,
}

text_enum!(NotificationOutcome);

/// What a gateway told us about one payment, its origin verified: by a notify, or as an answer to our question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    /// The gateway's id of the message, the same in every repetition.
    pub notify_id: String,
    /// Whose money, by the gateway's name for us.
    pub merchant: String,
    /// Our merchant number; `None` when it is none of ours.
    pub payment: Option<PaymentId>,
    /// What happened.
    pub said: Said,
}

/// What happened to a payment, in a gateway's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// Money came in.
    Paid {
        /// How much.
        amount: Money,
        /// Of what.
        currency: String,
        /// The gateway's number.
        trade_no: String,
    },
    /// It failed, or was closed.
    NotPaid,
    /// Money went back, or did not.
    Refunded {
        /// Our refund number; `None` when the message does not name one of ours: which refunds it is about is asked.
        refund: Option<RefundId>,
        /// What became of it.
        answer: RefundAnswer,
    },
    /// Something that is none of our business, such as news of another shop's payment on the same account.
    Nothing,
}

/// What to do with a [`Message`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The money is for this payment.
    Settle,
    /// The payment has been settled before: nothing changes.
    Repeat,
    /// Nothing to settle. It never overwrites a payment.
    Ignore,
    /// It is about this refund, or, without a number, about one of this payment's.
    Refund(Option<RefundId>, RefundAnswer),
    /// It does not fit our books, and why: nothing changes, a person looks at it.
    Flag(String),
}

/// Compares a message with our own record; `merchant` is the gateway's name for us. Everything must be exact.
pub fn judge(message: &Message, payment: &Payment, merchant: &str) -> Verdict {
    if message.merchant != merchant {
        return Verdict::Flag(format!("for another merchant: {:.64} instead of {merchant}", message.merchant));
    }
    let (amount, currency, trade_no) = match &message.said {
        Said::Paid { amount, currency, trade_no } => (amount, currency, trade_no),
        Said::NotPaid | Said::Nothing => return Verdict::Ignore,
        Said::Refunded { refund, answer } => return Verdict::Refund(*refund, answer.clone()),
    };
    if *currency != payment.currency {
        return Verdict::Flag(format!("currency {currency:.8} instead of {}", payment.currency));
    }
    if *amount != payment.amount {
        return Verdict::Flag(format!("{} fen instead of {}", amount.as_fen(), payment.amount.as_fen()));
    }
    match (payment.status, &payment.gateway_trade_no) {
        (PaymentStatus::Paid, Some(known)) if known != trade_no => {
            Verdict::Flag(format!("paid again under another trade number, {trade_no:.64}"))
        }
        (PaymentStatus::Paid, _) => Verdict::Repeat,
        // A closed payment too: the money was on its way when it was closed.
        (PaymentStatus::Started | PaymentStatus::Closed, _) => Verdict::Settle,
    }
}

/// One line of a gateway's bill of a day.
#[derive(Debug, Clone, Deserialize)]
pub struct BillLine {
    /// Our number: of the payment, or of the refund.
    pub number: String,
    /// Our number of the payment.
    pub merchant_no: String,
    /// How much moved.
    #[serde(rename = "amount_fen")]
    pub amount: Money,
    /// When.
    pub at: At,
}

/// A gateway's bill of a day. What was taken back later is a line below zero.
#[derive(Debug, Clone, Default)]
pub struct DayBill {
    /// Money that came in.
    pub payments: Vec<BillLine>,
    /// Money that went back.
    pub refunds: Vec<BillLine>,
}

/// Longest bill of a day that is read, in lines: they are held in memory, some 400 bytes each, until they are stored. A
/// longer one is refused whole.
pub const BILL_LINES_MAX: usize = 500_000;

/// The pause before the next try after `tries`: `base × 2^(tries-1)`, at most an hour.
pub fn growing(base: Duration, tries: i32) -> Duration {
    const CAP: Duration = Duration::from_secs(3600);
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(0);
    base.saturating_mul(2u32.saturating_pow(doublings)).min(CAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payment(status: PaymentStatus) -> Payment {
        Payment {
            id: PaymentId::new(),
            order_id: OrderId::new(),
            gateway: Gateway::Sandbox,
            channel: Channel::Page,
            amount: Money::fen(1000),
            currency: "CNY".to_owned(),
            status,
            gateway_trade_no: (status == PaymentStatus::Paid).then(|| "t1".to_owned()),
            gateway_ref: None,
            payer_openid: None,
            payer_address: None,
            expires_at: At::from_ms(0),
            query_count: 0,
        }
    }

    fn paid(fen: i64, currency: &str, trade_no: &str) -> Message {
        let said = Said::Paid { amount: Money::fen(fen), currency: currency.to_owned(), trade_no: trade_no.to_owned() };
        Message { notify_id: "n".to_owned(), merchant: "us".to_owned(), payment: None, said }
    }

    #[test]
    fn only_the_exact_amount_for_us_settles() {
        let started = payment(PaymentStatus::Started);
        assert_eq!(judge(&paid(1000, "CNY", "t1"), &started, "us"), Verdict::Settle);
        for bad in [paid(999, "CNY", "t1"), paid(1001, "CNY", "t1"), paid(1000, "USD", "t1")] {
            assert!(matches!(judge(&bad, &started, "us"), Verdict::Flag(_)), "{bad:?}");
        }
        assert!(matches!(judge(&paid(1000, "CNY", "t1"), &started, "them"), Verdict::Flag(_)));
    }

    #[test]
    fn paid_is_final_and_money_for_a_closed_payment_still_counts() {
        let not_paid = Message { said: Said::NotPaid, ..paid(1000, "CNY", "t1") };
        for status in [PaymentStatus::Started, PaymentStatus::Paid, PaymentStatus::Closed] {
            assert_eq!(judge(&not_paid, &payment(status), "us"), Verdict::Ignore);
        }
        assert_eq!(judge(&paid(1000, "CNY", "t1"), &payment(PaymentStatus::Closed), "us"), Verdict::Settle);
        assert_eq!(judge(&paid(1000, "CNY", "t1"), &payment(PaymentStatus::Paid), "us"), Verdict::Repeat);
        assert!(matches!(judge(&paid(1000, "CNY", "t2"), &payment(PaymentStatus::Paid), "us"), Verdict::Flag(_)));
    }

    #[test]
    fn pauses_grow_to_an_hour() {
        let base = Duration::from_secs(20);
        assert_eq!(growing(base, 0), base);
        assert_eq!(growing(base, 1), base);
        assert_eq!(growing(base, 3), base * 4);
        assert_eq!(growing(base, i32::MAX), Duration::from_secs(3600));
    }

    #[test]
    fn a_gateway_has_one_name_everywhere() {
        for gateway in Gateway::ALL {
            let name = gateway.as_str();
            assert_eq!(name.parse::<Gateway>().unwrap(), gateway);
            assert_eq!(serde_json::to_value(gateway).unwrap(), name);
        }
        assert!("Sandbox".parse::<Gateway>().is_err());
    }
}
