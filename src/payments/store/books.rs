//! Payments and refunds by their numbers and by when we heard of them: one SQL statement a function.

use std::collections::HashMap;

use sqlx::{MySql, QueryBuilder};
use uuid::Uuid;

use crate::payments::model::{BillSubject, BookEntry, Gateway, HeardPosition, PaymentId, PaymentStatus, RefundStatus};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};
use crate::platform::money::Money;
use crate::platform::text::Text;

#[derive(sqlx::FromRow)]
struct EntryRow {
    id: Uuid,
    payment: PaymentId,
    amount: Money,
    #[sqlx(try_from = "Text")]
    status: String,
    started_at: At,
    heard_at: Option<At>,
}

/// What our books have of these numbers at a gateway, by number.
pub(in crate::payments) async fn ours(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    ids: &[Uuid],
) -> sqlx::Result<HashMap<String, BookEntry>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = QueryBuilder::<MySql>::new(match what {
        BillSubject::Payment => {
            "SELECT p.id, p.id AS payment, p.amount_fen AS amount, p.status, p.created_at AS started_at, \
             p.paid_at AS heard_at FROM payments p WHERE p.gateway = "
        }
        BillSubject::Refund => {
            "SELECT r.id, r.payment_id AS payment, r.amount_fen AS amount, r.status, r.created_at AS started_at, \
             r.confirmed_at AS heard_at FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE p.gateway = "
        }
    });
    query.push_bind(gateway.as_str()).push(match what {
        BillSubject::Payment => " AND p.id IN ",
        BillSubject::Refund => " AND r.id IN ",
    });
    db::push_in(&mut query, ids.iter().copied());
    let rows: Vec<EntryRow> = query.build_query_as().fetch_all(conn).await?;
    let entry = |row: EntryRow| -> Result<BookEntry, String> {
        let unknown = |_| format!("unknown status {:?}", row.status);
        let state = match what {
            BillSubject::Payment => row.status.parse::<PaymentStatus>().map_err(unknown)?.into(),
            BillSubject::Refund => row.status.parse::<RefundStatus>().map_err(unknown)?.into(),
        };
        let EntryRow { id, payment, amount, status, started_at, heard_at } = row;
        Ok(BookEntry { id, payment, amount, state, status, started_at, heard_at })
    };
    let entries = rows.into_iter().map(|row| Ok((row.id.as_simple().to_string(), entry(row)?)));
    entries.collect::<Result<_, String>>().map_err(|why| sqlx::Error::Decode(why.into()))
}

/// Our payments by the gateway's numbers of their trades.
pub(in crate::payments) async fn by_trade(
    conn: &mut Conn,
    gateway: Gateway,
    trade_nos: &[&str],
) -> sqlx::Result<HashMap<String, PaymentId>> {
    if trade_nos.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = QueryBuilder::<MySql>::new("SELECT gateway_trade_no, id FROM payments WHERE gateway = ");
    query.push_bind(gateway.as_str()).push(" AND gateway_trade_no IN ");
    db::push_in(&mut query, trade_nos.iter().copied());
    let rows: Vec<(Text, PaymentId)> = query.build_query_as().fetch_all(conn).await?;
    Ok(rows.into_iter().map(|(number, id)| (number.into(), id)).collect())
}

/// Payments or refunds of a gateway of which we heard from `from` on and before `until`, behind `after`, in that order.
pub(in crate::payments) async fn heard(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    (from, until): (At, At),
    after: Option<HeardPosition>,
    limit: u32,
) -> sqlx::Result<Vec<HeardPosition>> {
    let (after_at, after_id) = after.unwrap_or((from, Uuid::nil()));
    let statement = match what {
        BillSubject::Payment => {
            "SELECT paid_at, id FROM payments FORCE INDEX (ix_payments_paid) WHERE gateway = ? AND paid_at >= ? \
             AND paid_at < ? AND (paid_at > ? OR id > ?) AND status = 'paid' ORDER BY paid_at, id LIMIT ?"
        }
        BillSubject::Refund => {
            "SELECT r.confirmed_at, r.id FROM refunds r FORCE INDEX (ix_refunds_confirmed) \
             JOIN payments p ON p.id = r.payment_id WHERE p.gateway = ? AND r.confirmed_at >= ? AND r.confirmed_at < ? \
             AND (r.confirmed_at > ? OR r.id > ?) AND r.status = 'confirmed' ORDER BY r.confirmed_at, r.id LIMIT ?"
        }
    };
    sqlx::query_as(statement)
        .bind(gateway.as_str())
        .bind(after_at)
        .bind(until)
        .bind(after_at)
        .bind(after_id)
        .bind(limit)
        .fetch_all(conn)
        .await
}
