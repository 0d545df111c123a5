//! Money that goes back.

use crate::platform::text_enum;
use serde::{Deserialize, Serialize};

use super::{Gateway, PaymentId};
use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::money::Money;
use crate::platform::text::{OptionalText, Text};

/// The id of a [`Refund`]: our refund number at the gateway, the same in every try.
pub type RefundId = Id<Refund>;

/// Money that we owe back, with what a gateway needs to give it back.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Refund {
    /// Its id: our refund number.
    pub id: RefundId,
    /// The payment it gives back, or a part of it.
    pub payment_id: PaymentId,
    /// Where that was paid.
    pub gateway: Gateway,
    /// How much goes back.
    #[sqlx(rename = "amount_fen")]
    pub amount: Money,
    /// How much was paid.
    #[sqlx(rename = "payment_fen")]
    pub payment_amount: Money,
    /// Of what (ISO 4217), both.
    #[sqlx(try_from = "Text")]
    pub currency: String,
    /// The gateway's number of the payment.
    #[sqlx(try_from = "OptionalText")]
    pub gateway_trade_no: Option<String>,
    /// As [`Payment::gateway_ref`](super::Payment::gateway_ref).
    #[sqlx(try_from = "OptionalText")]
    pub gateway_ref: Option<String>,
    /// How far it is.
    pub status: RefundStatus,
    /// The one that was made in its place.
    pub replaced_by: Option<RefundId>,
    /// How often it was sent or asked about before.
    pub attempts: i32,
    /// How often the gateway has said no to making it, so that nothing was made.
    pub refusals: i32,
    /// When it was owed.
    pub created_at: At,
    /// When the gateway said that it is at it; from then on it is asked about.
    pub asked_at: Option<At>,
}

/// How far a refund is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RefundStatus {
    /// To be sent, or asked about.
    Pending,
    /// The money is back.
    Confirmed,
    /// The gateway refused it: a person must look.
    Failed,
    /// It had failed, and another one was made in its place.
    Replaced,
}

text_enum!(RefundStatus);

/// What a gateway says to a refund.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundAnswer {
    /// The money is back.
    Confirmed,
    /// It is at it: to be asked again.
    Pending,
    /// It will not do it, and why: never again without a person.
    Refused(String),
}

/// Why money goes back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RefundReason {
    /// It came for an order that was dead and could not be opened again.
    Late,
    /// It came for an order that another payment had paid, or for courses that the buyer has by another order.
    PaidTwice,
    /// A person refunds the order, or a part of it.
    Asked,
}

text_enum!(RefundReason);

/// The cause of a refund of money that came too late or twice: a payment's money goes back so once.
pub const CAUSE_LATE: &str = "late";
/// The cause of a refund of what was paid for those courses of an order that the buyer had by another one when it was paid:
/// once of a payment.
pub const CAUSE_PAID_TWICE: &str = "paid_twice";

/// How much of an order a refund is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OrderRefundKind {
    /// All that was left.
    Whole,
    /// Some courses.
    Courses,
    /// Money, and no course.
    Amount,
}

text_enum!(OrderRefundKind);
