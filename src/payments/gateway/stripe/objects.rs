//! Stripe's objects, as far as we read them, and what they mean to us. <https://docs.stripe.com/api>
//!
//! Our numbers travel in `metadata`, which nobody but the holder of the key can set: a buyer can put any
//! `client_reference_id` behind the address of a payment link of the same account. Amounts are whole minor units, and a
//! currency is in lower case there.

use std::collections::HashMap;

use serde::Deserialize;

use crate::payments::model::{PaymentId, RefundAnswer, RefundId, Said};
use crate::platform::money::Money;

/// Where our merchant number is: on the session, its payment intent and so its charge, and on refunds.
pub(super) const PAYMENT_NO: &str = "payment_no";
/// Where our refund number is.
pub(super) const REFUND_NO: &str = "refund_no";
/// Longest refusal of a refund that is kept, in characters.
const REASON_CHARS: usize = 200;

/// What the holder of the key wrote on an object.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Metadata(#[serde(deserialize_with = "null_is_empty")] HashMap<String, String>);

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<HashMap<String, String>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Metadata {
    /// The payment that it names, if that may be one of ours.
    pub(super) fn payment(&self) -> Option<PaymentId> {
        self.0.get(PAYMENT_NO)?.parse().ok()
    }

    /// The refund that it names, if that may be one of ours.
    pub(super) fn refund(&self) -> Option<RefundId> {
        self.0.get(REFUND_NO)?.parse().ok()
    }
}

/// An object, or its id alone where nobody asked for more.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Expandable<T> {
    Id(String),
    Whole(T),
}

/// A payment intent: the trade itself.
#[derive(Debug, Deserialize)]
pub(super) struct Intent {
    pub id: String,
    pub status: String,
}

impl Expandable<Intent> {
    fn id(&self) -> &str {
        match self {
            Self::Id(id) => id,
            Self::Whole(intent) => &intent.id,
        }
    }
}

/// A Checkout Session: <https://docs.stripe.com/api/checkout/sessions/object>.
#[derive(Debug, Deserialize)]
pub(super) struct StripeSession {
    pub id: String,
    pub livemode: bool,
    status: Option<String>,
    payment_status: String,
    amount_total: Option<Money>,
    currency: Option<String>,
    payment_intent: Option<Expandable<Intent>>,
    /// The page, while it is open.
    pub url: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
}

/// How far a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Money came in.
    Paid(Said),
    /// The buyer may still pay.
    Open,
    /// The buyer is through, and the bank takes its time: nobody can pay any more, and the money may come.
    UnderWay,
    /// It ended without money.
    Over,
}

impl StripeSession {
    /// How far it is; an error where it says what none of our sessions can say.
    pub(super) fn progress(&self) -> anyhow::Result<Progress> {
        let intent = match &self.payment_intent {
            Some(Expandable::Whole(intent)) => intent.status.as_str(),
            _ => "",
        };
        match (self.payment_status.as_str(), self.status.as_deref().unwrap_or_default()) {
            ("paid", _) => self.paid().map(Progress::Paid),
            ("unpaid", "open") => Ok(Progress::Open),
            // A delayed payment that failed leaves its session complete, and its intent open for a new attempt that
            // nobody can make.
            ("unpaid", "complete") if matches!(intent, "requires_payment_method" | "canceled") => Ok(Progress::Over),
            ("unpaid", "complete") => Ok(Progress::UnderWay),
            ("unpaid", "expired") => Ok(Progress::Over),
            (payment, status) => anyhow::bail!("Stripe has a session in state {payment:?}, {status:?}"),
        }
    }

    /// What is to be paid, or was.
    pub(super) fn amount(&self) -> Option<Money> {
        self.amount_total
    }

    fn paid(&self) -> anyhow::Result<Said> {
        let (Some(amount), Some(currency)) = (self.amount_total, &self.currency) else {
            anyhow::bail!("Stripe has a paid session without an amount");
        };
        // Everything later goes by the payment intent: refunds, and the lines of the bill.
        let Some(intent) = &self.payment_intent else {
            anyhow::bail!("Stripe has a paid session without a payment intent");
        };
        Ok(Said::Paid { amount, currency: currency.to_ascii_uppercase(), trade_no: intent.id().to_owned() })
    }
}

/// A refund: <https://docs.stripe.com/api/refunds/object>.
#[derive(Debug, Deserialize)]
pub(super) struct RefundObject {
    pub id: String,
    pub amount: Money,
    pub currency: String,
    status: Option<String>,
    failure_reason: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
}

impl RefundObject {
    /// What became of it. One that waits for the buyer (`requires_action`) may still come to its end.
    pub(super) fn answer(&self) -> RefundAnswer {
        match self.status.as_deref().unwrap_or_default() {
            "succeeded" => RefundAnswer::Confirmed,
            status @ ("failed" | "canceled") => {
                let why = self.failure_reason.as_deref().unwrap_or("no reason given");
                RefundAnswer::Refused(format!("{status}: {why}").chars().take(REASON_CHARS).collect())
            }
            _ => RefundAnswer::Pending,
        }
    }
}

/// A charge: <https://docs.stripe.com/api/charges/object>. Its metadata is its payment intent's.
#[derive(Debug, Deserialize)]
pub(super) struct Charge {
    pub id: String,
    pub amount: Money,
    #[serde(default)]
    pub metadata: Metadata,
}

/// A buyer's bank takes a payment back: <https://docs.stripe.com/api/disputes/object>.
#[derive(Debug, Deserialize)]
pub(super) struct Dispute {
    pub id: String,
    /// What is disputed, in the charge's currency.
    pub amount: Money,
    pub payment_intent: Option<String>,
}

/// A page of a list: <https://docs.stripe.com/api/pagination>.
#[derive(Debug, Deserialize)]
pub(super) struct StripePage<T> {
    pub data: Vec<T>,
    pub has_more: bool,
}
