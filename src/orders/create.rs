//! Quoting and making an order: look, price, hold, insert, all in one transaction; then tell the queues.

use std::collections::HashMap;
use std::time::Duration;

use super::model::{NewOrder, Order, OrderId, OrderItem, OrderKind, Status};
use super::pricing::{self, Priced, PricedLine, Rules, Unpriceable};
use super::{Whole, announce_created, bought, store};
use crate::app::App;
use crate::auth::UserId;
use crate::catalogue::{self, CourseForSale, CourseId};
use crate::error::{Error, Kind, Result, refuse, retrying};
use crate::idempotency::{self, Key, StoredAnswer};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::money::Money;
use crate::wallet;
use anyhow::Context;

/// What an order would cost now.
#[derive(Debug, Clone)]
pub struct Quote {
    /// What would be ordered, each course with its share of every discount.
    pub items: Vec<OrderItem>,
    /// The sums.
    pub priced: Priced,
    /// The user's points.
    pub points_balance: i64,
}

/// Prices an order and takes nothing. Refuses what [`create`] would refuse.
pub async fn quote(app: &App, user: UserId, new: &NewOrder) -> Result<Quote> {
    let mut conn = app.db.acquire().await?;
    let (courses, priced) = assess(app, &mut conn, user, new, app.clock.now()).await?;
    let points_balance = wallet::balance(&mut conn, user).await?;
    if new.points > points_balance {
        return Err(too_few_points(points_balance));
    }
    Ok(Quote { items: items_of(OrderId::min(), courses, &priced), priced, points_balance })
}

/// Makes an order, or answers what the first request with this key was answered. `render` writes the answer, which is
/// kept in the transaction that makes the order.
pub async fn create(
    app: &App,
    user: UserId,
    key: &Key,
    new: &NewOrder,
    render: impl Fn(&Whole, At) -> Result<StoredAnswer>,
) -> Result<StoredAnswer> {
    let fingerprint = idempotency::fingerprint("POST /orders", new)?;
    let (answer, made) = retrying(|| async {
        let now = app.clock.now();
        let mut tx = app.db.begin().await?;
        if let Some(answer) = idempotency::begin(&mut tx, user.uuid(), key, fingerprint, now).await? {
            return Ok((answer, None));
        }
        let whole = place(app, &mut tx, user, new, now).await?;
        let answer = render(&whole, now)?;
        idempotency::keep(&mut tx, user.uuid(), key, &answer).await?;
        tx.commit().await.context("committing")?;
        Ok((answer, Some(whole.order)))
    })
    .await?;
    if let Some(order) = made {
        announce_created(app, vec![(order.id, order.expires_at, order.status == Status::Paid)]);
    }
    Ok(answer)
}

/// Prices and inserts an order and takes its coupon and points; any refusal undoes it with the transaction.
async fn place(app: &App, conn: &mut Conn, user: UserId, new: &NewOrder, now: At) -> Result<Whole> {
    let (courses, priced) = assess(app, conn, user, new, now).await?;
    let id = OrderId::new();
    if let Some(coupon) = new.coupon
        && !wallet::take_coupon(conn, user, coupon, id.uuid(), now).await?
    {
        return Err(coupon_in_use());
    }
    let reason = wallet::Reason::OrderSpend(1);
    if !wallet::take_points(conn, user, priced.points_used, reason, id.uuid(), now).await? {
        return Err(too_few_points(wallet::balance(conn, user).await?));
    }
    let free = priced.payable == Money::ZERO;
    let order = Order {
        id,
        user_id: user,
        kind: OrderKind::Course,
        status: if free { Status::Paid } else { Status::Unpaid },
        total: priced.total,
        coupon_discount: priced.coupon_discount,
        points_discount: priced.points_discount,
        payable: priced.payable,
        points_used: priced.points_used,
        points_earned: priced.points_earned,
        user_coupon_id: new.coupon,
        hold_no: 1,
        created_at: now,
        expires_at: now.plus(Duration::from_secs(app.config.orders.pay_deadline_s)),
        pay_started_at: None,
        paid_at: free.then_some(now),
        closed_at: None,
        granted_at: None,
        released_at: None,
    };
    let items = items_of(id, courses, &priced);
    store::insert_orders(conn, std::slice::from_ref(&order)).await?;
    store::insert_items(conn, &items).await?;
    Ok(Whole { order, items })
}

/// What is ordered and what it costs, or why it cannot be ordered.
async fn assess(
    app: &App,
    conn: &mut Conn,
    user: UserId,
    new: &NewOrder,
    now: At,
) -> Result<(Vec<CourseForSale>, Priced)> {
    let courses = on_sale(conn, &new.courses).await?;
    refuse_owned(conn, user, &new.courses).await?;
    let coupon = match new.coupon {
        None => None,
        Some(id) => {
            let coupon = wallet::find_coupon(conn, user, id)
                .await?
                .ok_or_else(|| refuse(Kind::NotFound, "you have no such coupon").with("user_coupon_id", id))?;
            if coupon.order_id.is_some() {
                return Err(coupon_in_use());
            }
            coupon.terms.valid_at(now).map_err(|fault| refuse(Kind::CouponUnusable, fault.to_string()))?;
            Some(coupon.terms)
        }
    };
    let lines: Vec<PricedLine> =
        courses.iter().map(|course| PricedLine { price: course.price, discountable: true }).collect();
    let priced = pricing::price(&lines, coupon.as_ref(), new.points, Rules::from(&app.config.orders))?;
    refuse_another_price(new.expected_payable, priced.payable)?;
    if priced.payable > Money::ZERO {
        refuse_what_nobody_takes(app, priced.payable)?;
        refuse_many_unpaid(app, conn, user, &new.courses, now).await?;
    }
    Ok((courses, priced))
}

/// Refuses an order that costs something else than its buyer was shown.
fn refuse_another_price(expected: Option<Money>, payable: Money) -> Result<()> {
    let Some(expected) = expected.filter(|expected| *expected != payable) else { return Ok(()) };
    let refusal = refuse(Kind::PriceChanged, format!("it costs {payable} yuan now, and not {expected}"));
    Err(refusal.with("expected_payable_fen", expected).with("payable_fen", payable).into())
}

/// Refuses an amount that no gateway takes that is on. Without any of them nothing is paid anyhow.
fn refuse_what_nobody_takes(app: &App, payable: Money) -> Result<()> {
    let most = app.config.payments.amounts_max().into_iter().map(|limit| limit.max_fen).max();
    match most {
        Some(most) if payable > most => Err(amount_too_large(app, payable, most)),
        _ => Ok(()),
    }
}

/// The refusal of an amount of which at most so much can be paid.
pub fn amount_too_large(app: &App, payable: Money, most: Money) -> Error {
    let refusal = refuse(Kind::AmountTooLarge, format!("{payable} yuan are to be paid, and {most} at most can be"));
    refusal.with("max_fen", most).with("gateways", app.config.payments.amounts_max()).into()
}

/// Refuses one more order than may wait for its payment. In an order's transaction the caller has the user's turn, so
/// that two at once are counted one after the other.
async fn refuse_many_unpaid(app: &App, conn: &mut Conn, user: UserId, courses: &[CourseId], now: At) -> Result<()> {
    let (most, most_of_one) = (app.config.orders.max_unpaid, app.config.orders.max_unpaid_per_course);
    let open = store::count_open(conn, user, courses, now).await?;
    if open.iter().any(|(course, open)| course.is_none() && *open >= most) {
        let why = format!("{most} orders wait for their payment: pay or cancel one of them");
        return Err(refuse(Kind::TooManyUnpaid, why).with("max", most).into());
    }
    let full: Vec<CourseId> =
        open.iter().filter(|(_, open)| *open >= most_of_one).filter_map(|(course, _)| *course).collect();
    if full.is_empty() {
        return Ok(());
    }
    let why = format!("{most_of_one} orders of a course wait for their payment: pay or cancel one of them");
    Err(refuse(Kind::TooManyUnpaid, why).with("max", most_of_one).with("course_ids", full).into())
}

/// The courses, in the order asked for, if all are on sale.
async fn on_sale(conn: &mut Conn, wanted: &[CourseId]) -> Result<Vec<CourseForSale>> {
    let found = catalogue::courses_for_sale(conn, wanted).await?;
    let mut found: HashMap<CourseId, CourseForSale> = found.into_iter().map(|course| (course.id, course)).collect();
    let (mut courses, mut missing) = (Vec::with_capacity(wanted.len()), Vec::new());
    for id in wanted {
        match found.remove(id) {
            Some(course) => courses.push(course),
            None => missing.push(*id),
        }
    }
    if missing.is_empty() { Ok(courses) } else { Err(about_courses(Kind::CourseUnavailable, &missing)) }
}

/// Refuses courses that the user has, or has paid for and is about to get.
pub async fn refuse_owned(conn: &mut Conn, user: UserId, wanted: &[CourseId]) -> Result<()> {
    let owned = bought(conn, user, wanted).await?;
    if owned.is_empty() {
        return Ok(());
    }
    let which: Vec<CourseId> = wanted.iter().copied().filter(|id| owned.contains(id)).collect();
    Err(about_courses(Kind::AlreadyOwned, &which))
}

/// A refusal that names the courses it is about, in its text and as `course_ids`.
fn about_courses(kind: Kind, courses: &[CourseId]) -> Error {
    let ids: Vec<String> = courses.iter().map(ToString::to_string).collect();
    refuse(kind, format!("{}: {}", kind.title(), ids.join(", "))).with("course_ids", courses).into()
}

fn coupon_in_use() -> Error {
    refuse(Kind::CouponUnusable, "the coupon is used by another order").into()
}

fn too_few_points(balance: i64) -> Error {
    refuse(Kind::PointsUnusable, format!("you have {balance} points")).with("points_balance", balance).into()
}

impl From<Unpriceable> for Error {
    fn from(why: Unpriceable) -> Self {
        match why {
            Unpriceable::Coupon(fault) => refuse(Kind::CouponUnusable, fault.to_string()).into(),
            Unpriceable::TooManyPoints { max } => {
                refuse(Kind::PointsUnusable, why.to_string()).with("points_max", max).into()
            }
            Unpriceable::OutOfRange(error) => error.into(),
        }
    }
}

fn items_of(order_id: OrderId, courses: Vec<CourseForSale>, priced: &Priced) -> Vec<OrderItem> {
    let item = |(position, (course, share)): (i32, (CourseForSale, &pricing::Share))| OrderItem {
        order_id,
        position,
        course_id: course.id,
        title: course.title,
        price: course.price,
        coupon_discount: share.coupon,
        points_discount: share.points,
        // at most the price: the shares were taken from it
        payable: Money::fen(course.price.as_fen() - share.coupon.as_fen() - share.points.as_fen()),
        refund_id: None,
    };
    (0..).zip(courses.into_iter().zip(&priced.shares)).map(item).collect()
}
