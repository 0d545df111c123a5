//! Our books, for whoever holds another's beside them: what they have of a number, what was heard when, and asking the
//! gateway about one.

use std::collections::HashMap;

use anyhow::Context;
use uuid::Uuid;

use super::model::{BillSubject, BookEntry, Gateway, HeardPosition, PaymentId, RefundId};
use super::store::{self, books, refunds};
use super::{inquiry, refund};
use crate::app::App;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::db::Conn;

/// What our books have of these numbers at a gateway, by number.
pub async fn book_entries(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    ids: &[Uuid],
) -> Result<HashMap<String, BookEntry>> {
    Ok(books::ours(conn, gateway, what, ids).await.context("reading our books")?)
}

/// Our payments by the gateway's numbers of their trades.
pub async fn payments_of_trades(
    conn: &mut Conn,
    gateway: Gateway,
    trade_nos: &[&str],
) -> Result<HashMap<String, PaymentId>> {
    Ok(books::by_trade(conn, gateway, trade_nos).await.context("reading payments of trades")?)
}

/// Payments or refunds of a gateway of which we heard from the first instant on and before the second, behind `after`, in
/// that order.
pub async fn heard(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    span: (At, At),
    after: Option<HeardPosition>,
    limit: u32,
) -> Result<Vec<HeardPosition>> {
    Ok(books::heard(conn, gateway, what, span, after, limit).await.context("reading what was heard")?)
}

/// Asks the gateway about a payment, and does what its answer means. One that is not there is nobody's to ask about.
pub async fn ask_about_payment(app: &App, id: PaymentId) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    let payment = store::payment(&mut conn, id).await.context("reading a payment")?;
    drop(conn);
    match payment {
        Some(payment) => inquiry::ask(app, &payment).await,
        None => Ok(()),
    }
}

/// Asks the gateway about a refund, and does what its answer means. One that is not there is nobody's to ask about.
pub async fn ask_about_refund(app: &App, id: RefundId) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    let owed = refunds::find(&mut conn, id).await.context("reading a refund")?;
    drop(conn);
    match owed {
        Some(owed) => refund::ask(app, &owed).await,
        None => Ok(()),
    }
}
