//! How the sandbox treats refunds: what becomes of them is what a person makes of it.

use crate::platform::text::Text;
use serde::Serialize;

/// What the gateway does with the refunds of a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refunding {
    /// Each is done at once.
    AtOnce,
    /// Each takes until somebody decides.
    Slowly,
    /// Each is declined.
    Never,
}

impl Refunding {
    /// As the books have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AtOnce => "at_once",
            Self::Slowly => "slowly",
            Self::Never => "never",
        }
    }

    /// What becomes of a refund.
    pub const fn leads_to(self) -> SandboxRefundStatus {
        match self {
            Self::AtOnce => SandboxRefundStatus::Done,
            Self::Slowly => SandboxRefundStatus::Pending,
            Self::Never => SandboxRefundStatus::Declined,
        }
    }
}

impl TryFrom<Text> for Refunding {
    type Error = String;
    fn try_from(Text(text): Text) -> Result<Self, String> {
        let all = [Self::AtOnce, Self::Slowly, Self::Never];
        all.into_iter().find(|one| one.as_str() == text).ok_or(format!("unknown treatment of refunds {text:?}"))
    }
}

/// A refund's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxRefundStatus {
    /// The gateway is at it.
    Pending,
    /// The money is back.
    Done,
    /// The gateway will not do it, unless it is asked once more.
    Declined,
}

impl SandboxRefundStatus {
    /// As the books have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Declined => "declined",
        }
    }
}

impl TryFrom<Text> for SandboxRefundStatus {
    type Error = String;
    fn try_from(Text(text): Text) -> Result<Self, String> {
        let all = [Self::Pending, Self::Done, Self::Declined];
        all.into_iter().find(|one| one.as_str() == text).ok_or(format!("unknown refund status {text:?}"))
    }
}
