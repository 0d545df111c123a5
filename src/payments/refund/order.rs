//! Refunds of paid orders that a person asks for: what goes back, and what is taken back with it (docs/PAYMENTS.md).
//!
//! All that is ours happens in one transaction under the order's lock: the money is set aside and owed, the courses and
//! the points earned are taken back. Two who ask at once are one after the other there, and the second one sees what is
//! left. When every course has been taken back the order is `refunding`, and `refunded` when its money is all back.

use anyhow::Context;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::{count_ended, end_if_back, refunds};
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::catalogue::CourseId;
use crate::error::{Error, Kind, Result, invalid, refuse, retrying};
use crate::idempotency::{self, Fingerprint, Key, StoredAnswer};
use crate::orders::{self, Order, OrderId, OrderItem, OrderRefundId, Status, TakeBack};
use crate::payments::model::{CAUSE_PAID_TWICE, OrderRefundKind, Payment, RefundId, RefundReason};
use crate::payments::store;
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::money::Money;

/// What is to go back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundPart {
    /// All that is left of the order.
    Whole,
    /// These courses, for what was paid for each.
    Courses(Vec<CourseId>),
    /// So much money, and no course.
    Amount(Money),
}

/// What a refund of an order does.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    kind: OrderRefundKind,
    /// Taken back.
    courses: Vec<CourseId>,
    /// Goes back; perhaps nothing, when discounts paid for the courses.
    amount: Money,
    /// Of the points that the order earned, to be taken back.
    earned: i64,
    /// No course is left after it.
    ends: bool,
}

/// What is done when `part` of a paid order is to go back and `gone` of its money was given back before.
fn plan(order: &Order, items: &[OrderItem], gone: Money, part: &RefundPart) -> Result<Plan> {
    let left = order.payable.minus(gone)?;
    let open: Vec<&OrderItem> = items.iter().filter(|item| !item.is_refunded()).collect();
    let (kind, courses, amount) = match part {
        RefundPart::Whole if open.is_empty() => return Err(Kind::AlreadyRefunded.into()),
        RefundPart::Whole => (OrderRefundKind::Whole, open.iter().map(|item| item.course_id).collect(), left),
        RefundPart::Courses(courses) => {
            let mut shares = Vec::with_capacity(courses.len());
            for (at, course) in courses.iter().enumerate() {
                let Some(item) = items.iter().find(|item| item.course_id == *course) else {
                    return Err(invalid(format!("course_ids[{at}]"), "is no course of the order"));
                };
                if item.is_refunded() {
                    return Err(refuse(Kind::AlreadyRefunded, format!("course {course} was refunded before")).into());
                }
                shares.push(item.payable);
            }
            // Money that went back without a course was a part of what was paid for these.
            (OrderRefundKind::Courses, courses.clone(), Money::sum(shares)?.min(left))
        }
        RefundPart::Amount(amount) if *amount >= left => return Err(too_much(order, *amount, left)),
        RefundPart::Amount(amount) => (OrderRefundKind::Amount, Vec::new(), *amount),
    };
    let ends = open.iter().all(|item| courses.contains(&item.course_id));
    let earned = earned_of(order, gone.plus(amount)?) - earned_of(order, gone);
    Ok(Plan { kind, courses, amount, earned, ends })
}

/// Why so much cannot go back without a course.
fn too_much(order: &Order, amount: Money, left: Money) -> Error {
    let why = if order.payable == Money::ZERO {
        "no money was paid for the order".to_owned()
    } else if left == Money::ZERO {
        "all that was paid for the order has been given back".to_owned()
    } else if amount == left {
        "this is all that is left of what was paid: to give all of it back, with the courses, name no amount".to_owned()
    } else {
        format!("only {} fen are left of what was paid", left.as_fen())
    };
    refuse(Kind::RefundTooMuch, why).with("left_fen", left).into()
}

/// Of the points that an order earned, those that go when so much of its money has gone back: their share, rounded down,
/// and all of them with all of the money.
fn earned_of(order: &Order, gone: Money) -> i64 {
    Money::fen(order.points_earned).share(gone.as_fen(), order.payable.as_fen()).unwrap_or(Money::ZERO).as_fen()
}

/// What was done, as the administrator hears it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderRefundView {
    /// The order.
    pub order_no: OrderId,
    /// Where it is now: `paid` while it has a course left, `refunding` until all its money is back, `refunded`.
    pub order_status: Status,
    /// How much of it this was about.
    pub kind: OrderRefundKind,
    /// The courses that were taken back.
    pub course_ids: Vec<CourseId>,
    /// The money that goes back.
    pub amount_fen: Money,
    /// The number of its refund at the gateway; null when no money goes back.
    pub refund_no: Option<RefundId>,
    /// Points that the order had earned and that were taken back.
    pub points_taken_back: i64,
    /// Points that it had earned and that had been spent: the buyer owes them, and the next points that come pay them.
    pub points_missing: i64,
}

/// A refund as it was asked for.
#[derive(Debug)]
pub struct RefundApplication<'a> {
    /// Who asks.
    pub by: UserId,
    /// A person's reason.
    pub reason: &'a str,
    /// What is to go back.
    pub part: RefundPart,
    /// The request's key and what it stands for.
    pub key: (&'a Key, Fingerprint),
}

/// Refunds an order, or a part of it: once per key.
pub async fn refund_order(app: &App, id: OrderId, asked: &RefundApplication<'_>) -> Result<StoredAnswer> {
    // What was never given is not taken back. The order may not be paid: that is told below.
    orders::grant_now(app, id).await?;
    let (answer, ended) = retrying(|| refund_once(app, id, asked)).await?;
    if ended {
        count_ended();
    }
    Ok(answer)
}

async fn refund_once(app: &App, id: OrderId, asked: &RefundApplication<'_>) -> Result<(StoredAnswer, bool)> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let order = orders::lock(&mut tx, id).await?.ok_or(Kind::NotFound)?;
    let payment = store::lock_paying(&mut tx, id).await.context("locking an order's payment")?;
    let (key, fingerprint) = asked.key;
    if let Some(answer) = idempotency::begin(&mut tx, asked.by.uuid(), key, fingerprint, now).await? {
        return Ok((answer, false));
    }
    may_be_refunded(&order)?;
    let items = orders::items(&mut tx, id).await?;
    let gone = match &payment {
        Some(payment) => refunds::set_aside_so_far(&mut tx, payment.id).await.context("reading what went back")?,
        None => Money::ZERO,
    };
    let plan = plan(&order, &items, gone, &asked.part)?;
    let refund = OrderRefundId::new();
    let asked_for = refund.to_string();
    let why = RefundCause { reason: RefundReason::Asked, cause: &asked_for, note: asked.reason };
    let refund_no = owe(&mut tx, payment.as_ref(), plan.amount, &why, now).await?;
    let what = TakeBack { refund, courses: plan.courses.clone(), earned: plan.earned };
    let points = orders::take_back(&mut tx, &order, &what, now).await?;
    let new = refunds::NewOrderRefund {
        id: refund,
        order: id,
        kind: plan.kind.as_str(),
        amount: plan.amount,
        points,
        points_returned: 0,
        reason: asked.reason,
        by: Some(asked.by),
    };
    refunds::insert_order_refund(&mut tx, &new, now).await.context("writing down a refund")?;
    let order_status = if plan.ends { end(&mut tx, order, now).await? } else { order.status };
    let view = OrderRefundView {
        order_no: id,
        order_status,
        kind: plan.kind,
        course_ids: plan.courses,
        amount_fen: plan.amount,
        refund_no,
        points_taken_back: points.taken,
        points_missing: points.owed,
    };
    let act = Act { by: asked.by, action: "order.refund", target: &id.to_string() };
    let details = json!({
        "kind": view.kind, "course_ids": view.course_ids, "amount_fen": view.amount_fen, "refund_no": view.refund_no,
        "reason": asked.reason,
    });
    audit::done(&mut tx, act, &details, now).await?;
    let answer = StoredAnswer::json(StatusCode::CREATED, &view)?;
    idempotency::keep(&mut tx, asked.by.uuid(), key, &answer).await?;
    tx.commit().await.context("committing")?;
    tracing::info!(order.no = %id, refund.kind = plan.kind.as_str(), refund.fen = plan.amount.as_fen(), "refund of an order is owed");
    Ok((answer, order_status == Status::Refunded))
}

fn may_be_refunded(order: &Order) -> Result<()> {
    match order.status {
        Status::Paid if order.granted_at.is_some() => Ok(()),
        // It was paid a moment ago.
        Status::Paid => Err(refuse(Kind::OrderState, "its courses are being granted").retry_after(1).into()),
        Status::Refunding | Status::Refunded => Err(Kind::AlreadyRefunded.into()),
        status => Err(refuse(Kind::OrderState, format!("the order is {}", status.name()))
            .with("order_status", status.name())
            .into()),
    }
}

/// Why money is owed.
struct RefundCause<'a> {
    reason: RefundReason,
    /// Once of a payment.
    cause: &'a str,
    /// In words.
    note: &'a str,
}

/// Owes the money, if there is any.
async fn owe(
    conn: &mut Conn,
    payment: Option<&Payment>,
    amount: Money,
    why: &RefundCause<'_>,
    now: At,
) -> Result<Option<RefundId>> {
    if amount == Money::ZERO {
        return Ok(None);
    }
    let payment = payment.context("a paid order without its payment")?;
    if !refunds::set_aside(conn, payment.id, amount).await.context("setting money aside")? {
        return Err(Error::from(Kind::RefundTooMuch));
    }
    let id = RefundId::new();
    let new = refunds::NewRefund { id, payment, amount, reason: why.reason.as_str(), cause: why.cause, note: why.note };
    refunds::insert(conn, &new, now).await.context("owing a refund")?;
    Ok(Some(id))
}

/// The words that administrators read beside a refund that nobody asked for.
const BOUGHT_OTHERWISE: &str = "bought by another order when this one was paid";

/// Gives back those courses of an order that its buyer has by another one, in the transaction that takes in the money for
/// it: what was paid for each is owed, and it is never granted. The points that were spent on it come back, since they paid
/// for nothing. Those that this money earns are taken back at once; the order's own come with its grant. The caller holds the
/// order and the payment, and has marked both paid.
pub(in crate::payments) async fn give_back_twice(
    conn: &mut Conn,
    order: &Order,
    payment: &Payment,
    courses: Vec<CourseId>,
    now: At,
) -> Result<()> {
    let items = orders::items(conn, order.id).await?;
    let plan = plan(order, &items, Money::ZERO, &RefundPart::Courses(courses))?;
    let refund = OrderRefundId::new();
    let why = RefundCause { reason: RefundReason::PaidTwice, cause: CAUSE_PAID_TWICE, note: BOUGHT_OTHERWISE };
    owe(conn, Some(payment), plan.amount, &why, now).await?;
    let points_returned = orders::points_spent_on(order, &items, &plan.courses)?;
    // They come before others go: who has no more points owes the fewer.
    orders::give_back_spent(conn, order, refund, points_returned, now).await?;
    let what = TakeBack { refund, courses: plan.courses, earned: plan.earned };
    let new = refunds::NewOrderRefund {
        id: refund,
        order: order.id,
        kind: plan.kind.as_str(),
        amount: plan.amount,
        points: orders::take_back(conn, order, &what, now).await?,
        points_returned,
        reason: BOUGHT_OTHERWISE,
        by: None,
    };
    Ok(refunds::insert_order_refund(conn, &new, now).await.context("writing down a refund")?)
}

/// Every course is taken back: the order's status now.
async fn end(conn: &mut Conn, order: Order, now: At) -> Result<Status> {
    orders::mark_refunding(conn, &order).await?;
    let order = Order { status: Status::Refunding, ..order };
    Ok(if end_if_back(conn, &order, now).await? { Status::Refunded } else { Status::Refunding })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::orders::SeckillOrder;

    /// A paid order of items of these amounts, which earned these points.
    fn paid(amounts: &[i64], points_earned: i64) -> (Order, Vec<OrderItem>) {
        let total = Money::fen(amounts.iter().sum());
        let model = SeckillOrder {
            id: OrderId::new(),
            user: UserId::new(),
            course: CourseId::new(),
            title: String::new(),
            price: total,
            points_earned,
            expires_at: At::from_ms(0),
        };
        let (order, item) = model.rows(At::from_ms(0));
        let items = amounts.iter().map(|fen| OrderItem {
            course_id: CourseId::new(),
            price: Money::fen(*fen),
            payable: Money::fen(*fen),
            ..item.clone()
        });
        (Order { status: Status::Paid, ..order }, items.collect())
    }

    proptest! {
        /// Whatever is refunded in whatever order: never more than was paid, all of it with the last course, and with
        /// all of it all points.
        #[test]
        fn refunds_add_up_to_what_was_paid(
            amounts in prop::collection::vec(0i64..100_000, 1..6), earned in 0i64..2000,
            steps in prop::collection::vec((0usize..8, 1i64..50_000), 0..12),
        ) {
            let (order, mut items) = paid(&amounts, earned);
            let (mut gone, mut points, mut ended) = (Money::ZERO, 0, false);
            let last = (usize::MAX, 0);
            for (which, fen) in steps.into_iter().chain([last]) {
                let part = match items.get(which) {
                    Some(item) => RefundPart::Courses(vec![item.course_id]),
                    None if which == usize::MAX => RefundPart::Whole,
                    None => RefundPart::Amount(Money::fen(fen)),
                };
                let Ok(plan) = plan(&order, &items, gone, &part) else { continue };
                prop_assert!(!ended || plan.courses.is_empty());
                prop_assert!(plan.amount >= Money::ZERO && plan.earned >= 0);
                gone = gone.plus(plan.amount).unwrap();
                points += plan.earned;
                prop_assert!(gone <= order.payable && points <= earned);
                for item in items.iter_mut().filter(|item| plan.courses.contains(&item.course_id)) {
                    item.refund_id = Some(OrderRefundId::new());
                }
                ended = items.iter().all(OrderItem::is_refunded);
                prop_assert_eq!(plan.ends, ended);
            }
            prop_assert!(ended);
            prop_assert_eq!(gone, order.payable);
            prop_assert!(order.payable == Money::ZERO || points == earned);
        }
    }
}
