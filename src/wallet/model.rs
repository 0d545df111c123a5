//! Coupons and points: their types and pure rules.

use crate::platform::text_enum;
use uuid::Uuid;

use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::money::Money;
use crate::platform::text::Text;

/// A coupon people may claim (marker of its id).
pub struct Coupon;
/// The id of a coupon.
pub type CouponId = Id<Coupon>;
/// The id of a coupon in somebody's wallet.
pub type UserCouponId = Id<UserCoupon>;

/// What took a coupon or changed points (marker of its id): an order, where the reason does not say otherwise.
pub struct Holder;
/// The id of a [`Holder`].
pub type HolderId = Id<Holder>;

/// How a coupon's discount is counted.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum CouponKind {
    /// `amount_fen` off.
    Amount,
    /// `percent_off` of the spend off, at most `cap_fen`.
    Percent,
}

text_enum!(CouponKind);

/// What a coupon gives, on what spend, and when. Never changed once the coupon exists.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Terms {
    /// How the discount is counted.
    pub kind: CouponKind,
    /// The discount of [`CouponKind::Amount`].
    #[sqlx(rename = "amount_fen")]
    pub amount: Money,
    /// The percentage of [`CouponKind::Percent`], 1..100.
    pub percent_off: i32,
    /// The largest discount of [`CouponKind::Percent`].
    #[sqlx(rename = "cap_fen")]
    pub cap: Money,
    /// The least spend it may be used on.
    #[sqlx(rename = "min_spend_fen")]
    pub min_spend: Money,
    /// Usable from this instant.
    pub valid_from: At,
    /// Usable until just before this instant.
    pub valid_until: At,
}

/// Why a coupon gives nothing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CouponFault {
    /// It is before `valid_from`.
    #[error("the coupon is not valid yet")]
    NotYetValid,
    /// It is `valid_until` or later.
    #[error("the coupon has expired")]
    Expired,
    /// Less is spent than `min_spend`.
    #[error("not enough is spent for the coupon")]
    SpendTooSmall,
}

impl Terms {
    /// Whether the coupon may be used at `now`.
    pub fn valid_at(&self, now: At) -> Result<(), CouponFault> {
        if now < self.valid_from {
            return Err(CouponFault::NotYetValid);
        }
        if now >= self.valid_until {
            return Err(CouponFault::Expired);
        }
        Ok(())
    }

    /// The discount on `spend`: rounded down to the fen, never more than the spend.
    pub fn discount(&self, spend: Money) -> Result<Money, CouponFault> {
        if spend < self.min_spend || spend <= Money::ZERO {
            return Err(CouponFault::SpendTooSmall);
        }
        let discount = match self.kind {
            CouponKind::Amount => self.amount,
            // at most 100 per cent of an i64 fits one
            CouponKind::Percent => spend.share(i64::from(self.percent_off), 100).unwrap_or(spend).min(self.cap),
        };
        Ok(discount.min(spend))
    }
}

/// A coupon in somebody's wallet.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct UserCoupon {
    /// Its id.
    pub id: UserCouponId,
    /// Which coupon it is.
    pub coupon_id: CouponId,
    /// The coupon's name.
    #[sqlx(try_from = "Text")]
    pub title: String,
    /// What it gives.
    #[sqlx(flatten)]
    pub terms: Terms,
    /// The live order that holds it.
    pub order_id: Option<HolderId>,
    /// When it was claimed.
    pub claimed_at: At,
    /// When the order took it.
    pub used_at: Option<At>,
}

/// Whether a coupon in a wallet can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CouponState {
    /// No order holds it and its time is not over.
    Free,
    /// An order holds it.
    Used,
    /// Its time is over.
    Expired,
}

impl UserCoupon {
    /// Its state at `now`.
    pub fn state(&self, now: At) -> CouponState {
        if self.order_id.is_some() {
            CouponState::Used
        } else if now >= self.terms.valid_until {
            CouponState::Expired
        } else {
            CouponState::Free
        }
    }
}

/// A coupon to create.
#[derive(Debug, Clone)]
pub struct NewCoupon {
    /// Its name.
    pub title: String,
    /// What it gives.
    pub terms: Terms,
    /// How many may be claimed.
    pub quantity: i64,
}

/// Why a user's points change. With the user and a reference (the order's id) it is unique in the ledger, so that
/// each change happens once.
///
/// An order that was closed and is re-opened takes its points again: `hold_no` counts the takings, and from the second
/// on it is part of the reason's text (`order_spend:2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An order took them, at its `hold_no`.
    OrderSpend(i32),
    /// A dead order gave back what it took at its `hold_no`.
    OrderReturn(i32),
    /// Earned by paying an order.
    OrderEarned,
    /// What an order had earned, taken back by a refund; the reference is the refund's.
    OrderEarnedBack,
    /// What an order had spent on courses that its buyer has by another one, given back while it goes on; the reference is
    /// the refund's.
    OrderSpendBack,
    /// What an order had spent and had not given back before, given back when all its money had gone back.
    OrderRefunded,
    /// Owed since a refund took back more than was there, and paid of a credit; the reference is that line's id.
    OwedPaid,
    /// Given by the shop; the reference is the giver's.
    Gift,
}

impl Reason {
    /// As the ledger holds it, at most 32 ASCII characters.
    pub fn text(self) -> String {
        let held = |name: &str, hold_no: i32| if hold_no <= 1 { name.to_owned() } else { format!("{name}:{hold_no}") };
        match self {
            Self::OrderSpend(hold_no) => held("order_spend", hold_no),
            Self::OrderReturn(hold_no) => held("order_return", hold_no),
            Self::OrderEarned => "order_earned".to_owned(),
            Self::OrderEarnedBack => "order_earned_back".to_owned(),
            Self::OrderSpendBack => "order_spend_back".to_owned(),
            Self::OrderRefunded => "order_refunded".to_owned(),
            Self::OwedPaid => "owed_paid".to_owned(),
            Self::Gift => "gift".to_owned(),
        }
    }
}

/// Points to give to a user.
#[derive(Debug, Clone, Copy)]
pub struct Credit {
    /// To whom.
    pub user: crate::auth::UserId,
    /// How many, at least 1.
    pub points: i64,
    /// Why.
    pub reason: Reason,
    /// What for, such as an order's id.
    pub reference: Uuid,
}

/// A user's points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, sqlx::FromRow)]
pub struct PointsAccount {
    /// What can be spent: the sum of the ledger.
    pub balance: i64,
    /// Points that refunds were to take back and that had been spent.
    pub owed: i64,
}

/// A line of a user's points ledger (marker and row).
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct LedgerLine {
    /// Its id.
    pub id: Id<LedgerLine>,
    /// The change.
    pub delta: i64,
    /// [`Reason::text`].
    #[sqlx(try_from = "Text")]
    pub reason: String,
    /// What for.
    pub ref_id: HolderId,
    /// When.
    pub created_at: At,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(kind: CouponKind, amount: i64, percent_off: i32, cap: i64, min_spend: i64) -> Terms {
        let (amount, cap, min_spend) = (Money::fen(amount), Money::fen(cap), Money::fen(min_spend));
        Terms { kind, amount, percent_off, cap, min_spend, valid_from: At::from_ms(10), valid_until: At::from_ms(20) }
    }

    #[test]
    fn a_coupon_is_valid_from_its_first_instant_until_just_before_its_last() {
        let terms = terms(CouponKind::Amount, 1, 0, 0, 0);
        let at = |ms| terms.valid_at(At::from_ms(ms));
        assert_eq!((at(9), at(20)), (Err(CouponFault::NotYetValid), Err(CouponFault::Expired)));
        assert_eq!((at(10), at(19)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_percentage_is_rounded_down_and_capped() {
        let coupon = terms(CouponKind::Percent, 0, 15, 200, 0);
        assert_eq!(coupon.discount(Money::fen(999)), Ok(Money::fen(149)));
        assert_eq!(coupon.discount(Money::fen(99_999)), Ok(Money::fen(200)));
    }

    #[test]
    fn an_amount_larger_than_the_spend_gives_the_spend() {
        assert_eq!(terms(CouponKind::Amount, 5000, 0, 0, 0).discount(Money::fen(3000)), Ok(Money::fen(3000)));
    }

    #[test]
    fn the_minimum_spend_must_be_met() {
        let coupon = terms(CouponKind::Amount, 10, 0, 0, 100);
        assert_eq!(coupon.discount(Money::fen(99)), Err(CouponFault::SpendTooSmall));
        assert_eq!(coupon.discount(Money::fen(100)), Ok(Money::fen(10)));
        assert_eq!(terms(CouponKind::Amount, 10, 0, 0, 0).discount(Money::ZERO), Err(CouponFault::SpendTooSmall));
    }

    proptest! {
        #[test]
        fn a_discount_is_never_negative_never_above_the_spend_and_grows_with_it(
            amount in 0..i64::MAX, percent in 0..=100i32, cap in 0..i64::MAX, spend in 1..i64::MAX, more in 0..1_000_000i64,
        ) {
            for kind in [CouponKind::Amount, CouponKind::Percent] {
                let coupon = terms(kind, amount, percent, cap, 0);
                let discount = coupon.discount(Money::fen(spend)).unwrap();
                prop_assert!(discount >= Money::ZERO && discount <= Money::fen(spend));
                if kind == CouponKind::Percent {
                    prop_assert!(discount <= Money::fen(cap));
                    prop_assert!(i128::from(discount.as_fen()) * 100 <= i128::from(spend) * i128::from(percent));
                }
                prop_assert!(coupon.discount(Money::fen(spend.saturating_add(more))).unwrap() >= discount);
            }
        }

        #[test]
        fn each_hold_has_a_reason_of_its_own_that_fits_its_column(a in 1..i32::MAX, b in 1..i32::MAX) {
            prop_assert_eq!(Reason::OrderSpend(a).text() == Reason::OrderSpend(b).text(), a == b);
            prop_assert!(Reason::OrderReturn(a).text() != Reason::OrderSpend(a).text());
            prop_assert!(Reason::OrderReturn(a).text().len() <= 32);
        }
    }
}
