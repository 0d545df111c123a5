//! What an order is, which states it may pass through, and the tasks it gives rise to.

use crate::platform::text_enum;
use serde::{Deserialize, Serialize};

use crate::auth::UserId;
use crate::catalogue::CourseId;
use crate::engine::Task;
use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::money::Money;
use crate::platform::text::Text;
use crate::wallet::UserCouponId;

/// The id of an order; as text it is the order's number.
pub type OrderId = Id<Order>;

/// Where an order is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OrderStatus)]
#[repr(i8)]
pub enum Status {
    /// Waiting for its payment.
    Unpaid = 0,
    /// Paid; its courses are or will be granted.
    Paid = 1,
    /// Closed by its user.
    Cancelled = 2,
    /// Closed by the clock.
    TimedOut = 3,
    /// Its money is on the way back.
    Refunding = 4,
    /// Its money is back.
    Refunded = 5,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Unpaid, Self::Paid, Self::Cancelled, Self::TimedOut, Self::Refunding, Self::Refunded];

    /// The number that the front ends know and MySQL holds.
    pub const fn code(self) -> i8 {
        self as i8
    }

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unpaid => "unpaid",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
        }
    }

    /// Whether an order may go from here to `next`. Every update of a status is guarded by one of these moves.
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Unpaid, Self::Paid | Self::Cancelled | Self::TimedOut)
                // re-opened by money that came late, when everything it held could be held again
                | (Self::Cancelled | Self::TimedOut, Self::Paid)
                | (Self::Paid, Self::Refunding)
                | (Self::Refunding, Self::Refunded)
        )
    }

    /// Closed without having been paid: it holds nothing, or is about to give it back.
    pub const fn is_dead(self) -> bool {
        matches!(self, Self::Cancelled | Self::TimedOut)
    }
}

/// Why an order is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Its user wanted it.
    Cancelled,
    /// Its time to pay is over.
    TimedOut,
}

impl Closing {
    /// The status that it leads to.
    pub const fn status(self) -> Status {
        match self {
            Self::Cancelled => Status::Cancelled,
            Self::TimedOut => Status::TimedOut,
        }
    }
}

/// How an order came about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OrderKind {
    /// Ordered from the catalogue.
    Course,
    /// Won in a seckill: coupons and points do not apply.
    Seckill,
}

impl OrderKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Course, Self::Seckill];
}

text_enum!(OrderKind);

/// Which orders a list has: all, unless something is said.
#[derive(Debug, Clone, Copy, Default)]
pub struct WhichOrders {
    /// Whose.
    pub user: Option<UserId>,
    /// How they came about.
    pub kind: Option<OrderKind>,
    /// Where they are in their lives.
    pub status: Option<Status>,
}

/// An order as MySQL holds it, without its items.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Order {
    /// Its id.
    pub id: OrderId,
    /// Whose it is.
    pub user_id: UserId,
    /// How it came about.
    pub kind: OrderKind,
    /// Where it is in its life.
    pub status: Status,
    /// Sum of the items' prices.
    #[sqlx(rename = "total_fen")]
    pub total: Money,
    /// What its coupon takes off.
    #[sqlx(rename = "coupon_discount_fen")]
    pub coupon_discount: Money,
    /// What its points take off.
    #[sqlx(rename = "points_discount_fen")]
    pub points_discount: Money,
    /// What is to be paid.
    #[sqlx(rename = "payable_fen")]
    pub payable: Money,
    /// Points it holds or held.
    pub points_used: i64,
    /// Points its payment earns.
    pub points_earned: i64,
    /// The coupon it holds or held.
    pub user_coupon_id: Option<UserCouponId>,
    /// How often it has taken its coupon, points and unit, from 1.
    pub hold_no: i32,
    /// When it was made.
    pub created_at: At,
    /// When its time to pay ends.
    pub expires_at: At,
    /// When a payment was first started.
    pub pay_started_at: Option<At>,
    /// When it was paid.
    pub paid_at: Option<At>,
    /// When it was closed without having been paid.
    pub closed_at: Option<At>,
    /// When its courses were granted; paid without it is work owed.
    pub granted_at: Option<At>,
    /// When what it held was given back; dead without it is work owed.
    pub released_at: Option<At>,
}

/// One course of an order, with its share of every discount.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct OrderItem {
    /// The order.
    pub order_id: OrderId,
    /// Its place in the order, from 0.
    pub position: i32,
    /// The course.
    pub course_id: CourseId,
    /// The course's title when it was ordered.
    #[sqlx(try_from = "Text")]
    pub title: String,
    /// The course's price when it was ordered.
    #[sqlx(rename = "price_fen")]
    pub price: Money,
    /// Its share of the coupon.
    #[sqlx(rename = "coupon_discount_fen")]
    pub coupon_discount: Money,
    /// Its share of the points.
    #[sqlx(rename = "points_discount_fen")]
    pub points_discount: Money,
    /// What is paid for it.
    #[sqlx(rename = "payable_fen")]
    pub payable: Money,
    /// The refund that took the course back.
    pub refund_id: Option<OrderRefundId>,
}

/// A refund of an order that a person asked for (marker of its id).
pub struct OrderRefund;
/// The id of an [`OrderRefund`].
pub type OrderRefundId = Id<OrderRefund>;

/// What a user wants to order.
#[derive(Debug, Clone, Serialize)]
pub struct NewOrder {
    /// The courses, each once.
    pub courses: Vec<CourseId>,
    /// The coupon to use.
    pub coupon: Option<UserCouponId>,
    /// The points to spend, not negative.
    pub points: i64,
    /// What the buyer was shown: the order is refused when it costs something else. Left out where it is not given, so
    /// that a repeat across an upgrade is the same request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_payable: Option<Money>,
}

/// An order that a seckill was won with.
#[derive(Debug, Clone)]
pub struct SeckillOrder {
    /// Its id.
    pub id: OrderId,
    /// Whose it is.
    pub user: UserId,
    /// The course.
    pub course: CourseId,
    /// The course's title.
    pub title: String,
    /// The activity's price.
    pub price: Money,
    /// What its payment earns: [`super::points_earned`] of the price.
    pub points_earned: i64,
    /// When its time to pay ends.
    pub expires_at: At,
}

impl SeckillOrder {
    /// Its rows: no coupon, no points; a price of nothing is paid at once.
    pub fn rows(&self, now: At) -> (Order, OrderItem) {
        let free = self.price == Money::ZERO;
        let order = Order {
            id: self.id,
            user_id: self.user,
            kind: OrderKind::Seckill,
            status: if free { Status::Paid } else { Status::Unpaid },
            total: self.price,
            coupon_discount: Money::ZERO,
            points_discount: Money::ZERO,
            payable: self.price,
            points_used: 0,
            points_earned: self.points_earned,
            user_coupon_id: None,
            hold_no: 1,
            created_at: now,
            expires_at: self.expires_at,
            pay_started_at: None,
            paid_at: free.then_some(now),
            closed_at: None,
            granted_at: None,
            released_at: None,
        };
        let item = OrderItem {
            order_id: self.id,
            position: 0,
            course_id: self.course,
            title: self.title.clone(),
            price: self.price,
            coupon_discount: Money::ZERO,
            points_discount: Money::ZERO,
            payable: self.price,
            refund_id: None,
        };
        (order, item)
    }
}

/// Closes orders when their time to pay is over; due at that time. For one order it is keyed by the order's id, so that
/// paying takes it back; orders made together share one, which passes over those that are paid by then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expire {
    /// The orders.
    pub orders: Vec<OrderId>,
}

impl Task for Expire {
    const NAME: &'static str = "orders.expire";
    const QUEUE: &'static str = "expiry";
}

/// Gives the courses of a paid order and credits its points: what the success queue does. Keyed by the order's id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    /// The order.
    pub order_id: OrderId,
}

impl Task for Grant {
    const NAME: &'static str = "orders.grant";
    const QUEUE: &'static str = "grant";
}

/// Gives back what a dead order held: what the failure queue does. Keyed by the order's id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Release {
    /// The order.
    pub order_id: OrderId,
}

impl Task for Release {
    const NAME: &'static str = "orders.release";
    const QUEUE: &'static str = "release";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_moves_of_the_design_are_allowed() {
        use Status::*;
        let allowed = [
            (Unpaid, Paid),
            (Unpaid, Cancelled),
            (Unpaid, TimedOut),
            (Cancelled, Paid),
            (TimedOut, Paid),
            (Paid, Refunding),
            (Refunding, Refunded),
        ];
        for from in Status::ALL {
            for to in Status::ALL {
                assert_eq!(from.may_become(to), allowed.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn codes_and_names_are_what_the_front_ends_know() {
        let known = [(0, "unpaid"), (1, "paid"), (2, "cancelled"), (3, "timed_out"), (4, "refunding"), (5, "refunded")];
        for (status, (code, name)) in Status::ALL.into_iter().zip(known) {
            assert_eq!((status.code(), status.name()), (code, name));
            assert_eq!(serde_json::from_value::<Status>(name.into()).unwrap(), status);
            assert_eq!(serde_json::to_value(status).unwrap(), name);
        }
    }

    proptest! {
        /// Whatever is tried in whatever order: an order that was once paid is never closed as unpaid, and nothing
        /// follows a refund.
        #[test]
        fn money_that_came_is_never_forgotten(tries in prop::collection::vec(0usize..6, 0..40)) {
            let (mut status, mut was_paid) = (Status::Unpaid, false);
            for next in tries.into_iter().map(|n| Status::ALL[n]) {
                if status.may_become(next) {
                    prop_assert!(status != Status::Refunded);
                    prop_assert!(!was_paid || !next.is_dead() && next != Status::Unpaid);
                    status = next;
                    was_paid |= status == Status::Paid;
                }
            }
        }
    }
}
