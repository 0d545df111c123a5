//! What our books have of payments and refunds, for whoever holds another's books beside them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{PaymentId, PaymentStatus, RefundStatus};
use crate::platform::clock::At;
use crate::platform::money::Money;
use crate::platform::text_enum;

/// What a line of a bill is about.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BillSubject {
    /// Money that came in; its number is the payment's.
    Payment,
    /// Money that went back; its number is the refund's.
    Refund,
}

impl BillSubject {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Payment, Self::Refund];
}

text_enum!(BillSubject);

/// How far a payment or a refund is by our books: the words of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BookStatus {
    /// A payment: the buyer may pay.
    Started,
    /// A payment: money came in.
    Paid,
    /// A payment: the gateway takes no more money for it.
    Closed,
    /// A refund: it is owed, or the gateway is at it.
    Pending,
    /// A refund: the money is back.
    Confirmed,
    /// A refund: the gateway will not do it.
    Failed,
    /// A refund: another one took its place.
    Replaced,
}

text_enum!(BookStatus);

/// Whether the money of a payment or a refund moved, by our books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoneyState {
    /// It did.
    Moved,
    /// The gateway is at it: its bill may have it before we hear.
    UnderWay,
    /// It did not.
    NotMoved,
}

impl From<PaymentStatus> for MoneyState {
    fn from(status: PaymentStatus) -> Self {
        match status {
            PaymentStatus::Paid => Self::Moved,
            PaymentStatus::Started | PaymentStatus::Closed => Self::NotMoved,
        }
    }
}

impl From<RefundStatus> for MoneyState {
    fn from(status: RefundStatus) -> Self {
        match status {
            RefundStatus::Confirmed => Self::Moved,
            RefundStatus::Pending => Self::UnderWay,
            RefundStatus::Failed | RefundStatus::Replaced => Self::NotMoved,
        }
    }
}

/// What our books have of a number.
#[derive(Debug, Clone)]
pub struct BookEntry {
    /// The number: the payment's or the refund's.
    pub id: Uuid,
    /// The payment that it is, or that it gives back.
    pub payment: PaymentId,
    /// How much.
    pub amount: Money,
    /// Whether it moved.
    pub state: MoneyState,
    /// As the database has it.
    pub status: String,
    /// When it was started or owed.
    pub started_at: At,
    /// When we heard that its money moved.
    pub heard_at: Option<At>,
}

/// Where a page of what was heard ends: (when, number).
pub type HeardPosition = (At, Uuid);
