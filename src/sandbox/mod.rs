//! The sandbox payment gateway: a company outside, for development and tests, that happens to run in this process.
//!
//! It has its own HTTP surface (`/sandbox`, mounted only when `payments.sandbox` is on) and its own books (the
//! `sandbox_*` tables, which nobody else reads). Merchants speak to it as to a real gateway: signed requests, signed
//! answers, notifies that come over HTTP and come again until the merchant says yes.
//!
//! * `POST /sandbox/api`: for the merchant. One JSON request with its `action` inside, so that the signature covers
//!   what is asked: create, query, close, refund, query_refund, bill. See [`model::Request`].
//! * `GET /sandbox/pay/{trade_no}`: the cashier's page, for the buyer's phone.
//! * `POST /sandbox/pay/{trade_no}`: what its buttons do, and `curl -d action=pay` too. See [`model::BuyerAction`].
//! * [`deliver`]: sends the notifies that are due.
//!
//! It lets a person make what goes wrong with real gateways: a payment that fails, is told twice, is of another amount,
//! arrives after the trade was closed, or is called failed after it was paid, and refunds that take their time or are
//! declined.

mod http;
mod model;
mod notification;
mod store;

pub use http::routes;
pub use notification::deliver;

use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;

use crate::app::App;
use crate::error::{Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::hmac::SharedSecret;
use crate::platform::id::Id;
use model::{
    BillKind, BuyerAct, BuyerAction, Create, No, Refunding, SandboxAnswer, SandboxBill, SandboxBillLine, SandboxRefund,
    SandboxRefundStatus, SandboxTrade, StoredRefund, TradeNo, TradeStatus,
};
use store::StoredNotify;

/// Notifies that the cashier's page lists.
const NOTIFIES_SHOWN: u32 = 20;
/// Lines of one page of a bill.
const BILL_PAGE: u32 = 200;
/// Refunds under way that one decision is about.
const REFUNDS_DECIDED: u32 = 100;
/// A late payment's delay when the buyer does not choose one: "in a minute".
const LATE: Duration = Duration::from_secs(60);

/// What the merchant and the gateway sign with.
fn secret(app: &App) -> SharedSecret {
    SharedSecret::new(app.config.payments.sandbox_secret.expose_secret().as_bytes())
}

/// Where the buyer pays.
fn pay_url(app: &App, trade_no: TradeNo) -> String {
    format!("{}/sandbox/pay/{trade_no}", app.config.http.public_url)
}

/// Opens a trade; the same merchant number again is the same trade.
async fn create(app: &App, wanted: &Create) -> Result<Result<SandboxAnswer, No>> {
    if let Err(no) = wanted.check() {
        return Ok(Err(no));
    }
    let opened = retrying(|| async {
        let mut conn = app.db.acquire().await.context("taking a connection")?;
        store::insert_trade(&mut conn, TradeNo::new(), wanted, app.clock.now()).await?;
        Ok(store::trade_of_merchant(&mut conn, &wanted.merchant_no).await?.context("reading back a trade")?)
    });
    let trade = opened.await?;
    if trade.amount_fen != wanted.amount_fen || trade.notify_url != wanted.notify_url {
        return Ok(Err(No::Conflict));
    }
    Ok(Ok(answer(app, &trade)))
}

/// What became of a trade.
async fn query(app: &App, merchant_no: &str) -> Result<Result<SandboxAnswer, No>> {
    let mut conn = app.db.acquire().await.context("taking a connection")?;
    let trade = store::trade_of_merchant(&mut conn, merchant_no).await?;
    Ok(trade.map(|trade| answer(app, &trade)).ok_or(No::TradeNotFound))
}

/// Ends a trade that nobody paid; one that is over already stays as it is. What is answered is what was seen under the
/// lock: a trade that is opened meanwhile is not found, and not called closed.
async fn close(app: &App, merchant_no: &str) -> Result<Result<SandboxAnswer, No>> {
    retrying(|| async {
        let mut tx = app.db.begin().await?;
        let Some(mut trade) = store::lock_trade_of_merchant(&mut tx, merchant_no).await? else {
            return Ok(Err(No::TradeNotFound));
        };
        if trade.status.has_money() {
            return Ok(Err(No::AlreadyPaid));
        }
        if trade.status == TradeStatus::Waiting {
            store::close_trade(&mut tx, trade.trade_no).await?;
            tx.commit().await.context("committing")?;
            trade.status = TradeStatus::Closed;
        }
        Ok(Ok(answer(app, &trade)))
    })
    .await
}

/// A trade and the latest of its notifies, as the cashier's page shows them.
async fn shown(app: &App, trade_no: TradeNo) -> Result<Option<(SandboxTrade, Vec<StoredNotify>)>> {
    let mut conn = app.db.acquire().await.context("taking a connection")?;
    let Some(trade) = store::trade(&mut conn, trade_no).await? else { return Ok(None) };
    let notifies = store::notifies_of(&mut conn, trade_no, NOTIFIES_SHOWN).await?;
    Ok(Some((trade, notifies)))
}

/// Gives money back; the same refund number again is the same refund. Never more than was paid.
async fn refund(app: &App, wanted: &SandboxRefund) -> Result<Result<SandboxAnswer, No>> {
    if let Err(no) = wanted.check() {
        return Ok(Err(no));
    }
    retrying(|| async {
        let mut tx = app.db.begin().await?;
        let Some(trade) = store::lock_trade_of_merchant(&mut tx, &wanted.merchant_no).await? else {
            return Ok(Err(No::TradeNotFound));
        };
        let status = trade.refunding.leads_to();
        let known = store::refund_by_no(&mut tx, &wanted.refund_no).await?;
        match &known {
            Some(known) if known.merchant_no != wanted.merchant_no || known.amount_fen != wanted.amount_fen => {
                return Ok(Err(No::Conflict));
            }
            // One that was declined is decided anew.
            Some(known) if known.status != SandboxRefundStatus::Declined => {
                return Ok(Ok(SandboxAnswer::Refund(known.clone())));
            }
            _ => {}
        }
        let left = trade.paid_fen - store::refunded_fen(&mut tx, trade.trade_no).await?;
        if wanted.amount_fen > left {
            return Ok(Err(No::RefundTooMuch));
        }
        let refund = StoredRefund {
            refund_no: wanted.refund_no.clone(),
            merchant_no: wanted.merchant_no.clone(),
            amount_fen: wanted.amount_fen,
            status,
        };
        store::put_refund(&mut tx, &refund, trade.trade_no, app.clock.now()).await?;
        store::mark_if_refunded(&mut tx, trade.trade_no).await?;
        tx.commit().await.context("committing")?;
        Ok(Ok(SandboxAnswer::Refund(refund)))
    })
    .await
}

/// What became of a refund.
async fn query_refund(app: &App, refund_no: &str) -> Result<Result<SandboxAnswer, No>> {
    let mut conn = app.db.acquire().await.context("taking a connection")?;
    let refund = store::refund_by_no(&mut conn, refund_no).await?;
    Ok(refund.map(SandboxAnswer::Refund).ok_or(No::RefundNotFound))
}

/// Decides about the refunds of a trade: those to come and those that are under way, of which the merchant is told.
async fn decide_refunds(conn: &mut Conn, trade: &SandboxTrade, refunding: Refunding, now: At) -> Result<()> {
    store::set_refunding(conn, trade.trade_no, refunding).await?;
    for refund in store::refunds_of(conn, trade.trade_no, SandboxRefundStatus::Pending, REFUNDS_DECIDED).await? {
        let decided = StoredRefund { status: refunding.leads_to(), ..refund };
        store::put_refund(conn, &decided, trade.trade_no, now).await?;
        if let Some(notify) = trade.refund_notify(&decided) {
            store::insert_notify(conn, trade, &notify, now).await?;
        }
    }
    store::mark_if_refunded(conn, trade.trade_no).await
}

/// One page of a day's bill, in the business time zone.
async fn bill(app: &App, wanted: &SandboxBill) -> Result<Result<SandboxAnswer, No>> {
    let Some((from, until)) = wanted.day(&app.config.time_zone) else { return Ok(Err(No::InvalidRequest)) };
    let mut conn = app.db.acquire().await.context("taking a connection")?;
    let mut lines: Vec<SandboxBillLine> = match wanted.kind {
        BillKind::Payments => store::bill_payments(&mut conn, from, until, &wanted.after, BILL_PAGE + 1).await?,
        BillKind::Refunds => store::bill_refunds(&mut conn, from, until, &wanted.after, BILL_PAGE + 1).await?,
    };
    let more = lines.len() > BILL_PAGE as usize;
    lines.truncate(BILL_PAGE as usize);
    let next = if more { lines.last().map(|line| line.number.clone()) } else { None };
    Ok(Ok(SandboxAnswer::Bill { lines, next }))
}

/// What the buyer does on the cashier's page.
async fn act(app: &App, trade_no: TradeNo, act: &BuyerAct) -> Result<Result<SandboxTrade, No>> {
    let acted = retrying(|| async {
        let mut tx = app.db.begin().await?;
        let Some(trade) = store::lock_trade(&mut tx, trade_no).await? else { return Ok(Err(No::TradeNotFound)) };
        let now = app.clock.now();
        if let Err(no) = apply(&mut tx, &trade, act, now).await? {
            return Ok(Err(no));
        }
        tx.commit().await.context("committing")?;
        Ok(Ok(()))
    })
    .await?;
    if let Err(no) = acted {
        return Ok(Err(no));
    }
    let mut conn = app.db.acquire().await.context("taking a connection")?;
    Ok(store::trade(&mut conn, trade_no).await?.ok_or(No::TradeNotFound))
}

/// The buyer's action on a locked trade: what moves, and which messages go out.
async fn apply(conn: &mut Conn, trade: &SandboxTrade, act: &BuyerAct, now: At) -> Result<Result<(), No>> {
    let open = trade.status == TradeStatus::Waiting && trade.expires_at > now;
    let amount_fen = act.amount_fen(trade.amount_fen);
    let (paid_body, failed_body) = (trade.notify_body(model::SUCCESS, amount_fen), trade.notify_body(model::FAILED, 0));
    match act.action {
        BuyerAction::Pay | BuyerAction::PayTwice | BuyerAction::PayWrongAmount if !open => {
            return Ok(Err(No::TradeOver));
        }
        BuyerAction::Pay | BuyerAction::PayTwice | BuyerAction::PayWrongAmount => {
            store::mark_paid(conn, trade.trade_no, amount_fen, now).await?;
            store::insert_notify(conn, trade, &paid_body(Id::new()), now).await?;
            if act.action == BuyerAction::PayTwice {
                store::insert_notify(conn, trade, &paid_body(Id::new()), now).await?;
            }
        }
        // The money moves when the message does (see `notification`), also when the trade has been closed by then.
        BuyerAction::PayLate if trade.status.has_money() => return Ok(Err(No::AlreadyPaid)),
        BuyerAction::PayLate => {
            let due = now.plus(act.delay().unwrap_or(LATE));
            store::insert_notify(conn, trade, &paid_body(Id::new()), due).await?;
        }
        // A paid trade stays paid: only the message is sent, as some gateways do.
        BuyerAction::Fail if trade.status.has_money() => {
            store::insert_notify(conn, trade, &failed_body(Id::new()), now).await?;
        }
        BuyerAction::Refunds(refunding) => decide_refunds(conn, trade, refunding, now).await?,
        BuyerAction::Fail if !open => return Ok(Err(No::TradeOver)),
        BuyerAction::Fail => {
            store::mark_failed(conn, trade.trade_no).await?;
            store::insert_notify(conn, trade, &failed_body(Id::new()), now).await?;
        }
    }
    Ok(Ok(()))
}

fn answer(app: &App, trade: &SandboxTrade) -> SandboxAnswer {
    SandboxAnswer::Trade {
        merchant_no: trade.merchant_no.clone(),
        trade_no: trade.trade_no,
        status: trade.status,
        amount_fen: trade.amount_fen,
        paid_fen: trade.paid_fen,
        currency: crate::platform::money::CURRENCY,
        merchant_id: model::MERCHANT_ID,
        pay_url: pay_url(app, trade.trade_no),
    }
}
