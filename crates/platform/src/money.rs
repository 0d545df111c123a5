//! Money: whole fen (1/100 yuan) in an `i64`, never negative where a price is meant, never silently overflowing.

use serde::{Deserialize, Serialize};

/// The only currency of the shop, as the gateways name it (ISO 4217).
pub const CURRENCY: &str = "CNY";

/// An amount in fen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize, sqlx::Type)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

    /// An amount as gateways write yuan: digits, and perhaps a point with one or two more. Exact, without a float: anything
    /// finer than a fen, an exponent, a sign other than a leading minus or a space is refused.
    pub fn from_yuan(text: &str) -> Option<Self> {
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
        let (yuan, fen) = digits.split_once('.').unwrap_or((digits, "00"));
        let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !all_digits(yuan) || !all_digits(fen) || fen.len() > 2 {
            return None;
        }
        let tenths = if fen.len() == 1 { 10 } else { 1 };
        let whole = yuan.parse::<i64>().ok()?.checked_mul(100)?;
        let amount = whole.checked_add(fen.parse::<i64>().ok()? * tenths)?;
        Some(Self(sign * amount))
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
    use proptest::prelude::*;

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

    #[test]
    fn yuan_are_read_exactly_or_not_at_all() {
        for (text, fen) in
            [("10", 1000), ("10.0", 1000), ("10.00", 1000), ("0.29", 29), ("007.5", 750), ("-3.10", -310)]
        {
            assert_eq!(Money::from_yuan(text), Some(Money::fen(fen)), "{text}");
        }
        let bad =
            ["", ".", "1.", ".5", "1.001", "1.000", "1e2", "+1", "--1", "-", "1 ", " 1", "1,00", "１", "NaN", "1.-1"];
        for text in bad.into_iter().chain(["92233720368547758.08", "99999999999999999999"]) {
            assert_eq!(Money::from_yuan(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(fen in -i64::MAX..=i64::MAX) {
            prop_assert_eq!(Money::from_yuan(&Money::fen(fen).to_string()), Some(Money::fen(fen)));
        }
    }
}
