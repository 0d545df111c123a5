//! How the sandbox treats refunds: what becomes of them is what a person makes of it.

use crate::platform::text_enum;
use serde::Serialize;

/// What the gateway does with the refunds of a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Refunding {
    /// Each is done at once.
    AtOnce,
    /// Each takes until somebody decides.
    Slowly,
    /// Each is declined.
    Never,
}

impl Refunding {
    /// What becomes of a refund.
    pub const fn leads_to(self) -> SandboxRefundStatus {
        match self {
            Self::AtOnce => SandboxRefundStatus::Done,
            Self::Slowly => SandboxRefundStatus::Pending,
            Self::Never => SandboxRefundStatus::Declined,
        }
    }
}

text_enum!(Refunding);

/// A refund's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum SandboxRefundStatus {
    /// The gateway is at it.
    Pending,
    /// The money is back.
    Done,
    /// The gateway will not do it, unless it is asked once more.
    Declined,
}

text_enum!(SandboxRefundStatus);
