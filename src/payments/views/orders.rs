//! Orders with the money that was paid for them and that went back: as their buyers see them, and as administrators do.

use std::collections::HashMap;

use anyhow::Context;
use serde::Serialize;

use super::{PaymentView, REFUNDS_SHOWN, RefundView};
use crate::app::App;
use crate::auth::{self, Phone, User, UserId};
use crate::catalogue::CourseId;
use crate::error::{Kind, Result};
use crate::orders::{
    self, BackReason, BackStatus, BackView, OrderFacts, OrderId, OrderItem, OrderRefundId, OrderView, WhichOrders,
    Whole,
};
use crate::payments::model::{OrderRefundKind, PaymentId, RefundId, RefundReason, RefundStatus};
use crate::payments::store::refunds::NOBODY;
use crate::payments::store::views::{self as rows, BackRow, OrderRefundRow, WhichPayments, WhichRefunds};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};
use crate::wallet::{self, CouponId, UserCoupon, UserCouponId};

impl From<BackRow> for BackView {
    fn from(row: BackRow) -> Self {
        Self {
            amount_fen: row.amount_fen,
            status: match row.status {
                RefundStatus::Confirmed => BackStatus::Confirmed,
                // One that a gateway refused is owed as before: that a person must look is the shop's affair.
                RefundStatus::Pending | RefundStatus::Failed | RefundStatus::Replaced => BackStatus::Pending,
            },
            reason: match row.reason {
                RefundReason::Late => BackReason::Late,
                RefundReason::PaidTwice => BackReason::PaidTwice,
                RefundReason::Asked => BackReason::Asked,
            },
            created_at: row.created_at,
            confirmed_at: row.confirmed_at,
        }
    }
}

/// Refunds that a buyer is shown of an order.
const BACK_SHOWN: u32 = 20;

/// Of each of these orders: how much of what was paid for it is back, and the refunds that its buyer is shown.
async fn money_back(conn: &mut Conn, orders: &[Whole]) -> Result<HashMap<OrderId, (Money, Vec<BackView>)>> {
    let mut back: HashMap<OrderId, (Money, Vec<BackView>)> = HashMap::new();
    let ids: Vec<OrderId> = orders.iter().map(|whole| whole.order.id).collect();
    if ids.is_empty() {
        return Ok(back);
    }
    for row in rows::money_back(conn, &ids, BACK_SHOWN).await.context("reading refunds")? {
        let (confirmed, refunds) = back.entry(row.order_id).or_default();
        *confirmed = row.confirmed_fen;
        refunds.push(row.into());
    }
    Ok(back)
}

/// These orders as their buyers see them at `now`.
async fn shown(conn: &mut Conn, orders: Vec<Whole>, now: At) -> Result<Vec<OrderView>> {
    let mut back = money_back(conn, &orders).await?;
    let view = |Whole { order, items }: Whole| {
        let (refunded_fen, refunds) = back.remove(&order.id).unwrap_or_default();
        OrderView { facts: OrderFacts::of(&order, &items, now), refunded_fen, refunds }
    };
    Ok(orders.into_iter().map(view).collect())
}

/// A page of a buyer's orders.
pub(in crate::payments) async fn of_buyer(app: &App, which: &WhichOrders, page: &PageQuery) -> Result<Page<OrderView>> {
    let mut conn = app.db.acquire().await?;
    let Page { items, next_cursor } = orders::list(&mut conn, which, page).await?;
    Ok(Page { items: shown(&mut conn, items, app.clock.now()).await?, next_cursor })
}

/// An order of this buyer.
pub(in crate::payments) async fn one_of_buyer(app: &App, user: UserId, id: OrderId) -> Result<OrderView> {
    let mut conn = app.db.acquire().await?;
    let order = orders::find_whole(&mut conn, id).await?.filter(|whole| whole.order.user_id == user);
    let order = order.ok_or(Kind::NotFound)?;
    Ok(shown(&mut conn, vec![order], app.clock.now()).await?.pop().context("an order that is not shown")?)
}

/// Who has an order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BuyerView {
    /// The account's id.
    pub user_id: UserId,
    /// Its phone number, with `****` in its middle: orders can be looked for by the whole one. Null when the account is gone.
    pub phone: Option<String>,
    /// What others see. Null when the account is gone.
    pub nickname: Option<String>,
}

impl BuyerView {
    fn of(user_id: UserId, users: &[User]) -> Self {
        let user = users.iter().find(|user| user.id == user_id);
        Self { user_id, phone: user.map(|user| user.phone.masked()), nickname: user.map(|user| user.nickname.clone()) }
    }
}

/// An order as administrators see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AdminOrderView {
    /// The order.
    #[serde(flatten)]
    pub order: OrderFacts,
    /// Whose it is.
    pub buyer: BuyerView,
    /// Of what was paid for it, so much is back, by the gateways' word.
    pub refunded_fen: Money,
    /// When a payment was first started.
    pub pay_started_at: Option<At>,
    /// When what it held was given back: its coupon, its points, its unit.
    pub released_at: Option<At>,
}

impl AdminOrderView {
    fn of(Whole { order, items }: &Whole, users: &[User], refunded_fen: Money, now: At) -> Self {
        Self {
            order: OrderFacts::of(order, items, now),
            buyer: BuyerView::of(order.user_id, users),
            refunded_fen,
            pay_started_at: order.pay_started_at,
            released_at: order.released_at,
        }
    }
}

/// A page of everybody's orders, or of the buyer with this phone number.
pub(in crate::payments) async fn all(
    app: &App,
    mut which: WhichOrders,
    phone: Option<&Phone>,
    page: &PageQuery,
) -> Result<Page<AdminOrderView>> {
    let mut conn = app.db.acquire().await?;
    if let Some(phone) = phone {
        let owner = auth::user_of(&mut conn, phone).await?;
        if owner.is_none() || which.user.is_some() && which.user != owner {
            return Ok(Page { items: Vec::new(), next_cursor: None });
        }
        which.user = owner;
    }
    let orders = orders::list(&mut conn, &which, page).await?;
    let mut users: Vec<UserId> = orders.items.iter().map(|whole| whole.order.user_id).collect();
    users.sort_unstable();
    users.dedup();
    let users = auth::users(&mut conn, &users).await?;
    let (now, back) = (app.clock.now(), money_back(&mut conn, &orders.items).await?);
    let view = |whole: &Whole| {
        let refunded_fen = back.get(&whole.order.id).map_or(Money::ZERO, |(confirmed, _)| *confirmed);
        AdminOrderView::of(whole, &users, refunded_fen, now)
    };
    Ok(Page { items: orders.items.iter().map(view).collect(), next_cursor: orders.next_cursor })
}

/// The coupon of an order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderCouponView {
    /// In the buyer's wallet.
    pub user_coupon_id: UserCouponId,
    /// Which coupon it is.
    pub coupon_id: CouponId,
    /// The coupon's name.
    pub title: String,
    /// Whether this order still holds it.
    pub held: bool,
}

impl OrderCouponView {
    fn of(coupon: UserCoupon, order: OrderId) -> Self {
        let held = coupon.order_id.is_some_and(|holder| holder.uuid() == order.uuid());
        Self { user_coupon_id: coupon.id, coupon_id: coupon.coupon_id, title: coupon.title, held }
    }
}

/// A refund of an order that an administrator asked for, or the service itself.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderRefundRecord {
    /// Its id.
    pub id: OrderRefundId,
    /// How much of the order it is about.
    pub kind: OrderRefundKind,
    /// The courses that it took back.
    pub course_ids: Vec<CourseId>,
    /// The money that goes back.
    pub amount_fen: Money,
    /// The refund of that money, which another may have replaced since; null when no money goes back.
    pub refund_no: Option<RefundId>,
    /// Points that the order had earned and that were taken back.
    pub points_taken_back: i64,
    /// Points that it had earned and that had been spent: the buyer owes them, and the next points that come pay them.
    pub points_missing: i64,
    /// Points that it had spent on these courses and that came back at once: only of courses that the buyer had by another
    /// order. Others come back when all of the order is refunded.
    pub points_returned: i64,
    /// Why, in the administrator's words.
    pub reason: String,
    /// Which administrator; null when the service itself gives back what was paid for courses that the buyer had by another
    /// order.
    pub asked_by: Option<UserId>,
    /// When.
    pub created_at: At,
}

impl OrderRefundRecord {
    fn of(row: OrderRefundRow, items: &[OrderItem]) -> Self {
        let taken = items.iter().filter(|item| item.refund_id == Some(row.id));
        Self {
            id: row.id,
            kind: row.kind,
            course_ids: taken.map(|item| item.course_id).collect(),
            amount_fen: row.amount_fen,
            refund_no: row.refund_no,
            points_taken_back: row.points_back,
            points_missing: row.points_missing,
            points_returned: row.points_returned,
            reason: row.reason,
            asked_by: (row.asked_by != NOBODY).then_some(row.asked_by),
            created_at: row.created_at,
        }
    }
}

/// An order with all that belongs to it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AdminOrderDetail {
    /// The order.
    #[serde(flatten)]
    pub order: AdminOrderView,
    /// Its coupon.
    pub coupon: Option<OrderCouponView>,
    /// The attempts to pay it, newest first: at most 100, as of each of the others.
    pub payments: Vec<PaymentView>,
    /// What was refunded of it, newest first. An item that is `refunded` is in the `course_ids` of one of them.
    pub order_refunds: Vec<OrderRefundRecord>,
    /// The money that goes back or is back, newest first: that of `order_refunds`, and what came too late or twice.
    pub refunds: Vec<RefundView>,
}

/// An order with all that belongs to it.
pub(in crate::payments) async fn one(app: &App, id: OrderId) -> Result<AdminOrderDetail> {
    let mut conn = app.db.acquire().await?;
    let whole = orders::find_whole(&mut conn, id).await?.ok_or(Kind::NotFound)?;
    let back = money_back(&mut conn, std::slice::from_ref(&whole)).await?;
    let refunded_fen = back.get(&id).map_or(Money::ZERO, |(confirmed, _)| *confirmed);
    let Whole { order, items } = &whole;
    let users = auth::users(&mut conn, &[order.user_id]).await?;
    let coupon = match order.user_coupon_id {
        Some(coupon) => wallet::find_coupon(&mut conn, order.user_id, coupon).await?,
        None => None,
    };
    let which = WhichPayments { order: Some(id), ..WhichPayments::default() };
    let payments =
        rows::payments(&mut conn, &which, PaymentId::max(), REFUNDS_SHOWN).await.context("reading its payments")?;
    let asked = rows::order_refunds(&mut conn, id, REFUNDS_SHOWN).await.context("reading what was refunded of it")?;
    let which = WhichRefunds { order: Some(id), ..WhichRefunds::default() };
    let refunds =
        rows::refunds(&mut conn, &which, RefundId::max(), REFUNDS_SHOWN).await.context("reading its refunds")?;
    Ok(AdminOrderDetail {
        coupon: coupon.map(|coupon| OrderCouponView::of(coupon, id)),
        payments: payments.into_iter().map(PaymentView::from).collect(),
        order_refunds: asked.into_iter().map(|row| OrderRefundRecord::of(row, items)).collect(),
        refunds: refunds.into_iter().map(RefundView::from).collect(),
        order: AdminOrderView::of(&whole, &users, refunded_fen, app.clock.now()),
    })
}
