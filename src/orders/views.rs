//! What is shown of orders.

use serde::Serialize;

use super::{Order, OrderId, OrderItem, OrderKind, Status};
use crate::catalogue::CourseId;
use crate::platform::clock::At;
use crate::platform::money::{CURRENCY, Money};
use crate::wallet::UserCouponId;

/// One course of an order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ItemView {
    /// The course.
    pub course_id: CourseId,
    /// Its title when it was ordered.
    pub title: String,
    /// Its price when it was ordered.
    pub price_fen: Money,
    /// Its share of the coupon.
    pub coupon_discount_fen: Money,
    /// Its share of the points.
    pub points_discount_fen: Money,
    /// What is paid for it.
    pub payable_fen: Money,
    /// Whether a refund has taken the course back.
    pub refunded: bool,
}

impl From<&OrderItem> for ItemView {
    fn from(item: &OrderItem) -> Self {
        Self {
            course_id: item.course_id,
            title: item.title.clone(),
            price_fen: item.price,
            coupon_discount_fen: item.coupon_discount,
            points_discount_fen: item.points_discount,
            payable_fen: item.payable,
            refunded: item.is_refunded(),
        }
    }
}

/// What the button beside an order does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// Pay the order.
    Pay,
    /// Go to the course.
    Learn,
    /// Nothing: the label says why.
    None,
}

/// The button beside an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Action {
    /// What it does.
    pub kind: ActionKind,
    /// What it says.
    pub label: &'static str,
}

/// The button of an order in `status`. One whose time to pay is over and that the sweep has not reached cannot be paid.
fn action(status: Status, expired: bool) -> Action {
    let (kind, label) = match status {
        Status::Unpaid if expired => (ActionKind::None, "超时取消"),
        Status::Unpaid => (ActionKind::Pay, "去支付"),
        Status::Paid => (ActionKind::Learn, "去学习"),
        Status::Cancelled => (ActionKind::None, "已取消"),
        Status::TimedOut => (ActionKind::None, "超时取消"),
        Status::Refunding => (ActionKind::None, "退款中"),
        Status::Refunded => (ActionKind::None, "已退款"),
    };
    Action { kind, label }
}

/// An order by itself, without money that went back: that is known to others.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderFacts {
    /// Its number.
    pub order_no: OrderId,
    /// How it came about.
    pub kind: OrderKind,
    /// Where it is in its life.
    pub status: Status,
    /// The same as a number: 0 unpaid, 1 paid, 2 cancelled, 3 timed_out, 4 refunding, 5 refunded.
    pub status_code: i8,
    /// The button beside it.
    pub action: Action,
    /// Sum of the items' prices.
    pub total_fen: Money,
    /// What its coupon takes off.
    pub coupon_discount_fen: Money,
    /// What its points take off.
    pub points_discount_fen: Money,
    /// What is to be paid.
    pub payable_fen: Money,
    /// ISO 4217.
    pub currency: &'static str,
    /// Points it spends.
    pub points_used: i64,
    /// Points its payment earns.
    pub points_earned: i64,
    /// The coupon it uses.
    pub user_coupon_id: Option<UserCouponId>,
    /// Its courses.
    pub items: Vec<ItemView>,
    /// When it was made.
    pub created_at: At,
    /// When its time to pay ends.
    pub expires_at: At,
    /// When it was paid.
    pub paid_at: Option<At>,
    /// When its courses were given.
    pub granted_at: Option<At>,
    /// When it was closed without having been paid.
    pub closed_at: Option<At>,
}

impl OrderFacts {
    /// The order as its user sees it at `now`.
    pub fn of(order: &Order, items: &[OrderItem], now: At) -> Self {
        Self {
            order_no: order.id,
            kind: order.kind,
            status: order.status,
            status_code: order.status.code(),
            action: action(order.status, now >= order.expires_at),
            total_fen: order.total,
            coupon_discount_fen: order.coupon_discount,
            points_discount_fen: order.points_discount,
            payable_fen: order.payable,
            currency: CURRENCY,
            points_used: order.points_used,
            points_earned: order.points_earned,
            user_coupon_id: order.user_coupon_id,
            items: items.iter().map(ItemView::from).collect(),
            created_at: order.created_at,
            expires_at: order.expires_at,
            paid_at: order.paid_at,
            granted_at: order.granted_at,
            closed_at: order.closed_at,
        }
    }
}

/// How far money is that goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackStatus {
    /// It is owed, and on its way.
    Pending,
    /// It is back.
    Confirmed,
}

/// Why money goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackReason {
    /// It came after the order was closed.
    Late,
    /// The order, or its courses, had been paid otherwise.
    PaidTwice,
    /// The shop refunds the order, or a part of it.
    Asked,
}

/// Money of an order that goes back to its buyer. What a gateway said to it and what administrators wrote is not theirs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BackView {
    /// How much.
    pub amount_fen: Money,
    /// How far it is.
    pub status: BackStatus,
    /// Why: `late`, `paid_twice` or `asked`.
    pub reason: BackReason,
    /// Since when it is owed.
    pub created_at: At,
    /// Since when it is back.
    pub confirmed_at: Option<At>,
}

/// An order as its buyer sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderView {
    /// The order.
    #[serde(flatten)]
    pub facts: OrderFacts,
    /// Of what was paid for it, so much is back. Money that came too late or twice did not pay for it, and is in `refunds`
    /// alone.
    pub refunded_fen: Money,
    /// Money that goes back or is back, newest first: at most the last 20.
    pub refunds: Vec<BackView>,
}

impl OrderView {
    /// An order that was made just now: nothing has gone back.
    pub fn new(order: &Order, items: &[OrderItem], now: At) -> Self {
        Self { facts: OrderFacts::of(order, items, now), refunded_fen: Money::ZERO, refunds: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_button() {
        let buttons: Vec<_> =
            Status::ALL.into_iter().map(|s| (action(s, false).kind, action(s, false).label)).collect();
        let none = ActionKind::None;
        let wanted = [
            (ActionKind::Pay, "去支付"),
            (ActionKind::Learn, "去学习"),
            (none, "已取消"),
            (none, "超时取消"),
            (none, "退款中"),
            (none, "已退款"),
        ];
        assert_eq!(buttons, wanted);
        assert_eq!(action(Status::Unpaid, true), Action { kind: none, label: "超时取消" });
    }
}
