//! What an order costs: one pure function.
//!
//! Sum of the items → coupon → points → payable. Coupon and points apply to the items that are not seckill items, the
//! coupon first, the points to what it leaves. Every discount is rounded down to the fen and divided over the items by
//! largest remainder, so that the shares add up exactly and the refund of one item needs no guess.

use crate::platform::money::{Money, OutOfRange};
use crate::wallet::{CouponFault, Terms};

/// The settings that pricing depends on.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Points for one yuan of discount, at least 1.
    pub points_per_yuan: i64,
    /// The part of what the coupon leaves that points may pay, 0..100.
    pub points_max_percent: i64,
    /// Points earned for each whole yuan paid.
    pub points_earned_per_yuan: i64,
}

impl From<&crate::config::Orders> for Rules {
    fn from(config: &crate::config::Orders) -> Self {
        Self {
            points_per_yuan: config.points_per_yuan,
            points_max_percent: config.points_max_percent,
            points_earned_per_yuan: config.points_earned_per_yuan,
        }
    }
}

/// One item to price.
#[derive(Debug, Clone, Copy)]
pub struct PricedLine {
    /// Its price, not negative.
    pub price: Money,
    /// Whether coupon and points apply to it: not to a seckill item.
    pub discountable: bool,
}

/// An item's part in the discounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Of the coupon.
    pub coupon: Money,
    /// Of the points.
    pub points: Money,
}

/// What an order costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priced {
    /// Sum of the items.
    pub total: Money,
    /// What the coupon takes off.
    pub coupon_discount: Money,
    /// What the points take off.
    pub points_discount: Money,
    /// What is to be paid.
    pub payable: Money,
    /// The points that are taken: never more than asked for, and none that would take nothing off.
    pub points_used: i64,
    /// The most points that the order takes.
    pub points_max: i64,
    /// The points that paying it earns.
    pub points_earned: i64,
    /// Each item's part, in their order.
    pub shares: Vec<Share>,
}

/// Why there is no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unpriceable {
    /// The coupon does not apply.
    #[error("{0}")]
    Coupon(#[from] CouponFault),
    /// More points than the order takes.
    #[error("the order takes at most {max} points")]
    TooManyPoints {
        /// The most.
        max: i64,
    },
    /// A sum does not fit.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

/// Prices an order. `points` is what the user wants to spend, not negative; whether the coupon is valid now and the
/// points are there is not this function's to know.
pub fn price(lines: &[PricedLine], coupon: Option<&Terms>, points: i64, rules: Rules) -> Result<Priced, Unpriceable> {
    let total = Money::sum(lines.iter().map(|line| line.price))?;
    let open: Vec<Money> = lines.iter().map(|line| if line.discountable { line.price } else { Money::ZERO }).collect();
    let spend = Money::sum(open.iter().copied())?;
    let coupon_discount = coupon.map_or(Ok(Money::ZERO), |terms| terms.discount(spend))?;
    let coupon_shares = split(coupon_discount, &open)?;

    let left = spend.minus(coupon_discount)?;
    let points_max = points_worth(left.share(rules.points_max_percent, 100)?, rules)?;
    if points > points_max {
        return Err(Unpriceable::TooManyPoints { max: points_max });
    }
    let points_discount = Money::fen(points.max(0)).share(100, rules.points_per_yuan)?;
    let open: Vec<Money> =
        open.iter().zip(&coupon_shares).map(|(price, share)| price.minus(*share)).collect::<Result<_, _>>()?;
    let points_shares = split(points_discount, &open)?;

    let payable = total.minus(coupon_discount)?.minus(points_discount)?;
    let shares =
        coupon_shares.into_iter().zip(points_shares).map(|(coupon, points)| Share { coupon, points }).collect();
    Ok(Priced {
        total,
        coupon_discount,
        points_discount,
        payable,
        points_used: least_points(points_discount, rules)?,
        points_max,
        points_earned: earned(payable, rules.points_earned_per_yuan)?,
        shares,
    })
}

/// The points that paying `payable` earns: so many for each whole yuan.
pub fn earned(payable: Money, per_yuan: i64) -> Result<i64, OutOfRange> {
    (payable.as_fen() / 100).checked_mul(per_yuan).ok_or(OutOfRange)
}

/// The points that were spent on each item, by what they took off it. They add up to `points_used`, so what comes back item
/// by item is neither more nor less than what was spent.
pub fn points_by_item(points_used: i64, discounts: &[Money]) -> Result<Vec<i64>, OutOfRange> {
    // Points are divided as fen are: whole, by largest remainder.
    Ok(split(Money::fen(points_used), discounts)?.into_iter().map(Money::as_fen).collect())
}

/// The most points whose discount is not above `discount`.
fn points_worth(discount: Money, rules: Rules) -> Result<i64, OutOfRange> {
    // One fen more is reached by the least points for it; one point less stays below.
    least_points(discount.plus(Money::fen(1))?, rules).map(|points| points - 1)
}

/// The least points whose discount, rounded down to the fen, is `discount`.
fn least_points(discount: Money, rules: Rules) -> Result<i64, OutOfRange> {
    let product = i128::from(discount.as_fen()) * i128::from(rules.points_per_yuan);
    i64::try_from(product.div_euclid(100) + i128::from(product.rem_euclid(100) != 0)).map_err(|_| OutOfRange)
}

/// Divides `amount` by `weights`: each gets its part rounded down, and what is left over goes, a fen each, to those
/// that lost most by the rounding, the first of equals first. What weighs nothing gets nothing, and no part is above its
/// weight when `amount` is at most their sum.
fn split(amount: Money, weights: &[Money]) -> Result<Vec<Money>, OutOfRange> {
    let sum = Money::sum(weights.iter().copied())?.as_fen();
    if amount == Money::ZERO || sum == 0 {
        return Ok(vec![Money::ZERO; weights.len()]);
    }
    let mut parts = Vec::with_capacity(weights.len());
    let mut lost = Vec::with_capacity(weights.len());
    for (at, weight) in weights.iter().enumerate() {
        parts.push(amount.share(weight.as_fen(), sum)?);
        let product = i128::from(amount.as_fen()) * i128::from(weight.as_fen());
        lost.push((product.rem_euclid(i128::from(sum)), at));
    }
    lost.sort_by(|(a, a_at), (b, b_at)| b.cmp(a).then(a_at.cmp(b_at)));
    let given = Money::sum(parts.iter().copied())?;
    let over = usize::try_from(amount.minus(given)?.as_fen()).map_err(|_| OutOfRange)?;
    for (_, at) in lost.into_iter().take(over) {
        parts[at] = parts[at].plus(Money::fen(1))?;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock::At;
    use crate::wallet::CouponKind;
    use proptest::prelude::*;

    const RULES: Rules = Rules { points_per_yuan: 100, points_max_percent: 50, points_earned_per_yuan: 1 };

    fn lines(prices: &[i64]) -> Vec<PricedLine> {
        prices.iter().map(|fen| PricedLine { price: Money::fen(*fen), discountable: true }).collect()
    }

    fn coupon(kind: CouponKind, amount: i64, percent_off: i32, cap: i64, min_spend: i64) -> Terms {
        let (amount, cap, min_spend) = (Money::fen(amount), Money::fen(cap), Money::fen(min_spend));
        let (valid_from, valid_until) = (At::from_ms(0), At::from_ms(1));
        Terms { kind, amount, percent_off, cap, min_spend, valid_from, valid_until }
    }

    fn fen(money: Money) -> i64 {
        money.as_fen()
    }

    #[test]
    fn a_coupon_then_points_of_what_it_leaves() {
        let amount = coupon(CouponKind::Amount, 1000, 0, 0, 0);
        let priced = price(&lines(&[3000, 2000]), Some(&amount), 2000, RULES).unwrap();
        assert_eq!((fen(priced.coupon_discount), fen(priced.points_discount), fen(priced.payable)), (1000, 2000, 2000));
        assert_eq!((priced.points_used, priced.points_max, priced.points_earned), (2000, 2000, 20));
        let shares: Vec<(i64, i64)> = priced.shares.iter().map(|s| (fen(s.coupon), fen(s.points))).collect();
        assert_eq!(shares, [(600, 1200), (400, 800)]);
        let refused = price(&lines(&[3000, 2000]), Some(&amount), 2001, RULES);
        assert_eq!(refused, Err(Unpriceable::TooManyPoints { max: 2000 }));
    }

    #[test]
    fn what_is_left_over_goes_to_those_that_lost_most() {
        let amount = coupon(CouponKind::Amount, 100, 0, 0, 0);
        let priced = price(&lines(&[333, 333, 334]), Some(&amount), 0, RULES).unwrap();
        let shares: Vec<i64> = priced.shares.iter().map(|s| fen(s.coupon)).collect();
        assert_eq!(shares, [33, 33, 34]);
    }

    #[test]
    fn a_coupon_larger_than_the_spend_makes_the_order_free() {
        let amount = coupon(CouponKind::Amount, 99_999, 0, 0, 0);
        let priced = price(&lines(&[1, 2, 3]), Some(&amount), 0, RULES).unwrap();
        assert_eq!((fen(priced.payable), fen(priced.coupon_discount), priced.points_max), (0, 6, 0));
    }

    #[test]
    fn a_seckill_item_takes_no_discount_and_does_not_count_as_spend() {
        let mut items = lines(&[5000]);
        items.push(PricedLine { price: Money::fen(9900), discountable: false });
        let amount = coupon(CouponKind::Amount, 1000, 0, 0, 5001);
        assert_eq!(price(&items, Some(&amount), 0, RULES), Err(CouponFault::SpendTooSmall.into()));
        let amount = coupon(CouponKind::Amount, 1000, 0, 0, 5000);
        let priced = price(&items, Some(&amount), 2000, RULES).unwrap();
        assert_eq!(priced.shares[1], Share::default());
        assert_eq!((priced.points_max, fen(priced.payable)), (2000, 11_900));
    }

    #[test]
    fn points_that_would_take_nothing_off_are_not_taken() {
        let rules = Rules { points_per_yuan: 1000, ..RULES };
        let priced = price(&lines(&[1000]), None, 15, rules).unwrap();
        assert_eq!((fen(priced.points_discount), priced.points_used), (1, 10));
    }

    #[test]
    fn sums_that_do_not_fit_have_no_price() {
        assert_eq!(price(&lines(&[i64::MAX, 1]), None, 0, RULES), Err(OutOfRange.into()));
    }

    fn any_coupon() -> impl Strategy<Value = Option<Terms>> {
        let amount = (0..3_000_000i64).prop_map(|n| coupon(CouponKind::Amount, n, 0, 0, 0));
        let percent = (0..=100i32, 0..3_000_000i64).prop_map(|(n, cap)| coupon(CouponKind::Percent, 0, n, cap, 0));
        prop::option::of(prop_oneof![amount, percent])
    }

    prop_compose! {
        fn any_rules()(points_per_yuan in 1..5000i64, points_max_percent in 0..=100i64, points_earned_per_yuan in 0..10i64) -> Rules {
            Rules { points_per_yuan, points_max_percent, points_earned_per_yuan }
        }
    }

    fn any_lines() -> impl Strategy<Value = Vec<PricedLine>> {
        let line = (0..1_000_000i64, prop::bool::weighted(0.8));
        let line = line.prop_map(|(fen, discountable)| PricedLine { price: Money::fen(fen), discountable });
        // one discountable item of at least a fen, so that every coupon applies
        (prop::collection::vec(line, 0..50), 1..1_000_000i64).prop_map(|(mut lines, fen)| {
            lines.push(PricedLine { price: Money::fen(fen), discountable: true });
            lines
        })
    }

    proptest! {
        #[test]
        fn every_sum_is_exact_and_nothing_is_negative(
            lines in any_lines(), coupon in any_coupon(), rules in any_rules(), part in 0..=100i64,
        ) {
            let max = price(&lines, coupon.as_ref(), 0, rules).unwrap().points_max;
            let points = max * part / 100;
            let priced = price(&lines, coupon.as_ref(), points, rules).unwrap();
            prop_assert_eq!(fen(priced.total), lines.iter().map(|line| fen(line.price)).sum::<i64>());
            prop_assert_eq!(priced.payable, priced.total.minus(priced.coupon_discount).unwrap().minus(priced.points_discount).unwrap());
            prop_assert!(priced.payable >= Money::ZERO && priced.points_earned >= 0);
            prop_assert_eq!(priced.shares.iter().map(|s| fen(s.coupon)).sum::<i64>(), fen(priced.coupon_discount));
            prop_assert_eq!(priced.shares.iter().map(|s| fen(s.points)).sum::<i64>(), fen(priced.points_discount));
            for (line, share) in lines.iter().zip(&priced.shares) {
                prop_assert!(share.coupon >= Money::ZERO && share.points >= Money::ZERO);
                prop_assert!(share.coupon.plus(share.points).unwrap() <= line.price);
                prop_assert!(line.discountable || *share == Share::default());
            }
        }

        #[test]
        fn no_share_is_a_fen_or_more_away_from_the_exact_one(
            weights in prop::collection::vec(0..1_000_000i64, 1..50), part in 0..=1000i64,
        ) {
            let weights: Vec<Money> = weights.into_iter().map(Money::fen).collect();
            let sum = fen(Money::sum(weights.iter().copied()).unwrap());
            let amount = sum * part / 1000;
            let parts = split(Money::fen(amount), &weights).unwrap();
            for (weight, part) in weights.iter().zip(parts) {
                let exact = i128::from(amount) * i128::from(fen(*weight));
                prop_assert!(sum == 0 || (i128::from(fen(part)) * i128::from(sum) - exact).abs() < i128::from(sum));
            }
        }

        #[test]
        fn the_points_of_the_items_add_up_to_those_that_were_used(
            lines in any_lines(), coupon in any_coupon(), rules in any_rules(), part in 0..=100i64,
        ) {
            let max = price(&lines, coupon.as_ref(), 0, rules).unwrap().points_max;
            let priced = price(&lines, coupon.as_ref(), max * part / 100, rules).unwrap();
            let discounts: Vec<Money> = priced.shares.iter().map(|share| share.points).collect();
            let points = points_by_item(priced.points_used, &discounts).unwrap();
            prop_assert_eq!(points.iter().sum::<i64>(), priced.points_used);
            for (discount, points) in discounts.iter().zip(points) {
                let exact = i128::from(priced.points_used) * i128::from(fen(*discount));
                let whole = i128::from(fen(priced.points_discount));
                prop_assert!(points >= 0 && (*discount > Money::ZERO || points == 0));
                prop_assert!(whole == 0 || (i128::from(points) * whole - exact).abs() < whole);
            }
        }

        #[test]
        fn points_are_whole_worth_what_the_setting_says_and_at_most_their_part(
            lines in any_lines(), coupon in any_coupon(), rules in any_rules(), part in 0..=100i64,
        ) {
            let none = price(&lines, coupon.as_ref(), 0, rules).unwrap();
            prop_assert_eq!((none.points_used, none.points_discount), (0, Money::ZERO));
            let points = none.points_max * part / 100;
            let priced = price(&lines, coupon.as_ref(), points, rules).unwrap();
            let worth = |points: i64| points * 100 / rules.points_per_yuan;
            prop_assert_eq!(fen(priced.points_discount), worth(points));
            prop_assert_eq!(fen(priced.points_discount), worth(priced.points_used));
            prop_assert!(priced.points_used <= points);
            let open: i64 = lines.iter().filter(|l| l.discountable).map(|l| fen(l.price)).sum();
            let limit = (open - fen(priced.coupon_discount)) * rules.points_max_percent / 100;
            prop_assert!(worth(none.points_max) <= limit && worth(none.points_max + 1) > limit);
            prop_assert_eq!(
                price(&lines, coupon.as_ref(), none.points_max + 1, rules),
                Err(Unpriceable::TooManyPoints { max: none.points_max })
            );
        }

        #[test]
        fn more_points_never_cost_more_and_a_dearer_item_never_costs_less(
            lines in any_lines(), coupon in any_coupon(), rules in any_rules(), more in 1..100_000i64, which: prop::sample::Index,
        ) {
            let cheap = price(&lines, coupon.as_ref(), 0, rules).unwrap();
            let with_points = price(&lines, coupon.as_ref(), cheap.points_max, rules).unwrap();
            prop_assert!(with_points.payable <= cheap.payable);
            let mut dearer = lines.clone();
            let at = which.index(dearer.len());
            dearer[at].price = dearer[at].price.plus(Money::fen(more)).unwrap();
            prop_assert!(price(&dearer, coupon.as_ref(), 0, rules).unwrap().payable >= cheap.payable);
        }
    }
}
