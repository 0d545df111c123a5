//! Money: whole fen (1/100 yuan) in an `i64`, never negative where a price is meant, never silently overflowing.

use serde::{Deserialize, Serialize};

/// The only currency of the shop, as the gateways name it (ISO 4217).
pub const CURRENCY: &str = "CNY";

/// An amount in fen.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    Hash,
    Serialize,
    Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct Money(i64);

/// A sum does not fit: the request that asked for it is refused, nothing wraps around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("amount out of range")]
pub struct OutOfRange;

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// An amount of `fen`.
    pub const fn fen(fen: i64) -> Self {
        Self(fen)
    }

    /// The amount in fen.
    pub const fn as_fen(self) -> i64 {
        self.0
    }

    /// The sum, if it fits.
    pub fn plus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_add(other.0).map(Self).ok_or(OutOfRange)
    }

    /// The difference, if it fits; it may be negative.
    pub fn minus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_sub(other.0).map(Self).ok_or(OutOfRange)
    }

    /// The sum of many, if it fits.
    pub fn sum(amounts: impl IntoIterator<Item = Self>) -> Result<Self, OutOfRange> {
        amounts.into_iter().try_fold(Self::ZERO, Self::plus)
    }

    /// `self × numerator / denominator`, rounded down; the product is taken in 128 bits.
    pub fn share(self, numerator: i64, denominator: i64) -> Result<Self, OutOfRange> {
        if denominator <= 0 {
            return Err(OutOfRange);
        }
        let value = (i128::from(self.0) * i128::from(numerator)).div_euclid(i128::from(denominator));
        i64::try_from(value).map(Self).map_err(|_| OutOfRange)
    }

    /// The smaller amount.
    pub fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }
}

impl std::fmt::Display for Money {
    /// In yuan with two decimals, as people and Alipay write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let fen = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", fen / 100, fen % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_do_not_fit_are_refused() {
        assert_eq!(Money::fen(i64::MAX).plus(Money::fen(1)), Err(OutOfRange));
        assert_eq!(Money::fen(i64::MAX).share(2, 1), Err(OutOfRange));
        assert_eq!(Money::sum([Money::fen(1), Money::fen(2)]), Ok(Money::fen(3)));
    }

    #[test]
    fn a_share_is_rounded_down() {
        assert_eq!(Money::fen(999).share(15, 100), Ok(Money::fen(149)));
    }

    #[test]
    fn it_prints_yuan() {
        assert_eq!(Money::fen(1205).to_string(), "12.05");
        assert_eq!(Money::fen(-5).to_string(), "-0.05");
    }
}
