//! Bills and their lines. A bill is read only once it is believed; its lines are written before, in batches.

use crate::payments::{BillSubject, Gateway};
use std::collections::HashSet;

use sqlx::{MySql, QueryBuilder, query, query_as, query_scalar};

use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::db::{self, Conn, insert_parts};
use crate::platform::money::Money;
use crate::platform::text::Text;
use crate::reconciliation::bill::{CheckedLine, Sum};
use crate::reconciliation::{BillId, BillStatus};

/// The believed bill of a day, and its digest.
pub(in crate::reconciliation) async fn believed(
    conn: &mut Conn,
    gateway: Gateway,
    day: Day,
) -> sqlx::Result<Option<(BillId, Vec<u8>)>> {
    query_as("SELECT id, digest FROM payment_bills WHERE gateway = ? AND day = ? AND believed = 1")
        .bind(gateway.as_str())
        .bind(day)
        .fetch_optional(conn)
        .await
}

/// As [`believed`], held until the transaction ends.
pub(in crate::reconciliation) async fn lock_believed(
    conn: &mut Conn,
    gateway: Gateway,
    day: Day,
) -> sqlx::Result<Option<(BillId, Vec<u8>)>> {
    query_as("SELECT id, digest FROM payment_bills WHERE gateway = ? AND day = ? AND believed = 1 FOR UPDATE")
        .bind(gateway.as_str())
        .bind(day)
        .fetch_optional(conn)
        .await
}

/// A bill that was fetched.
pub(in crate::reconciliation) struct NewBill {
    pub id: BillId,
    pub gateway: Gateway,
    pub day: Day,
    pub payments: Sum,
    pub refunds: Sum,
    pub digest: [u8; 32],
}

/// Begins to store a bill.
pub(in crate::reconciliation) async fn begin(conn: &mut Conn, new: &NewBill, now: At) -> sqlx::Result<()> {
    query(
        "INSERT INTO payment_bills (id, gateway, day, status, payments, payments_fen, refunds, refunds_fen, digest, \
         fetched_at, checked_at) VALUES (?, ?, ?, 'storing', ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(new.id)
    .bind(new.gateway.as_str())
    .bind(new.day)
    .bind(new.payments.count)
    .bind(new.payments.amount)
    .bind(new.refunds.count)
    .bind(new.refunds.amount)
    .bind(new.digest.as_slice())
    .bind(now)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes lines of a bill that is being stored, at most [`db::CHUNK`].
pub(in crate::reconciliation) async fn insert_lines(
    conn: &mut Conn,
    bill: BillId,
    lines: &[(&(BillSubject, String), &CheckedLine)],
) -> sqlx::Result<()> {
    for part in insert_parts(lines) {
        let mut insert = QueryBuilder::<MySql>::new(
            "INSERT INTO payment_bill_lines (bill_id, kind, number, merchant_no, amount_fen, line_count, at) ",
        );
        insert.push_values(part, |mut row, ((what, number), line)| {
            row.push_bind(bill)
                .push_bind(what.as_str())
                .push_bind(number.as_str())
                .push_bind(line.merchant_no.as_str());
            row.push_bind(line.amount).push_bind(line.count).push_bind(line.at);
        });
        insert.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// storing → believed; false: it was abandoned meanwhile. A second one of the day violates `uq_payment_bills_believed`.
pub(in crate::reconciliation) async fn believe(conn: &mut Conn, id: BillId) -> sqlx::Result<bool> {
    let done = query("UPDATE payment_bills SET status = 'believed', believed = 1 WHERE id = ? AND status = 'storing'")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// believed → replaced.
pub(in crate::reconciliation) async fn replace(conn: &mut Conn, id: BillId, now: At) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payment_bills SET status = 'replaced', believed = NULL, replaced_at = ? WHERE id = ? AND status = 'believed'",
    )
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The gateway told the same once more.
pub(in crate::reconciliation) async fn mark_checked(conn: &mut Conn, id: BillId, now: At) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET checked_at = ? WHERE id = ? AND status = 'believed'")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// All of it was laid beside our books.
pub(in crate::reconciliation) async fn mark_compared(conn: &mut Conn, id: BillId, now: At) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET compared_at = ? WHERE id = ? AND status = 'believed'")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// The bill of a day is to be laid beside our books once more.
pub(in crate::reconciliation) async fn uncompare(conn: &mut Conn, gateway: Gateway, day: Day) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET compared_at = NULL WHERE gateway = ? AND day = ? AND believed = 1")
        .bind(gateway.as_str())
        .bind(day)
        .execute(conn)
        .await?;
    Ok(())
}

/// storing → abandoned.
pub(in crate::reconciliation) async fn abandon(conn: &mut Conn, id: BillId) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET status = 'abandoned' WHERE id = ? AND status = 'storing'")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// storing → abandoned, of all that were begun before `before`: who did is gone.
pub(in crate::reconciliation) async fn abandon_since(conn: &mut Conn, before: At) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET status = 'abandoned' WHERE status = 'storing' AND fetched_at < ?")
        .bind(before)
        .execute(conn)
        .await?;
    Ok(())
}

/// Days from `from` on whose bills of a gateway are believed.
pub(in crate::reconciliation) async fn days_since(
    conn: &mut Conn,
    gateway: Gateway,
    from: Day,
) -> sqlx::Result<Vec<Day>> {
    query_scalar("SELECT day FROM payment_bills WHERE gateway = ? AND day >= ? AND believed = 1")
        .bind(gateway.as_str())
        .bind(from)
        .fetch_all(conn)
        .await
}

/// Whose bill of which day.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(in crate::reconciliation) struct BillKey {
    pub id: BillId,
    pub gateway: Gateway,
    pub day: Day,
}

/// Believed bills that were not laid beside our books to their end.
pub(in crate::reconciliation) async fn uncompared(conn: &mut Conn, limit: u32) -> sqlx::Result<Vec<BillKey>> {
    query_as(
        "SELECT id, gateway, day FROM payment_bills WHERE status = 'believed' AND compared_at IS NULL \
         ORDER BY id LIMIT ?",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Replaced bills of a day whose lines are still there.
pub(in crate::reconciliation) async fn replaced(
    conn: &mut Conn,
    gateway: Gateway,
    day: Day,
) -> sqlx::Result<Vec<BillId>> {
    query_scalar("SELECT id FROM payment_bills WHERE gateway = ? AND day = ? AND status = 'replaced'")
        .bind(gateway.as_str())
        .bind(day)
        .fetch_all(conn)
        .await
}

/// Numbers of a bill behind `after`, in order.
pub(in crate::reconciliation) async fn numbers(
    conn: &mut Conn,
    bill: BillId,
    what: BillSubject,
    after: Option<&str>,
    limit: u32,
) -> sqlx::Result<Vec<String>> {
    // A line may have no number at all: it is the first.
    let statement = match after {
        None => {
            "SELECT number FROM payment_bill_lines WHERE bill_id = ? AND kind = ? AND number >= ? ORDER BY number LIMIT ?"
        }
        Some(_) => {
            "SELECT number FROM payment_bill_lines WHERE bill_id = ? AND kind = ? AND number > ? ORDER BY number LIMIT ?"
        }
    };
    let page = query_scalar::<_, Text>(statement).bind(bill).bind(what.as_str()).bind(after.unwrap_or("")).bind(limit);
    Ok(page.fetch_all(conn).await?.into_iter().map(String::from).collect())
}

/// Bills whose lines are of no use: abandoned ones, and replaced ones whose successor has been laid beside our books.
pub(in crate::reconciliation) async fn useless(conn: &mut Conn, limit: u32) -> sqlx::Result<Vec<BillId>> {
    query_scalar(
        "SELECT b.id FROM payment_bills b WHERE b.status = 'abandoned' OR (b.status = 'replaced' AND NOT EXISTS \
         (SELECT 1 FROM payment_bills n WHERE n.gateway = b.gateway AND n.day = b.day AND n.believed = 1 \
         AND n.compared_at IS NULL)) ORDER BY b.id LIMIT ?",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Deletes lines of a bill, at most `limit`; how many.
pub(in crate::reconciliation) async fn delete_lines(conn: &mut Conn, bill: BillId, limit: u32) -> sqlx::Result<u64> {
    let done =
        query("DELETE FROM payment_bill_lines WHERE bill_id = ? LIMIT ?").bind(bill).bind(limit).execute(conn).await?;
    Ok(done.rows_affected())
}

/// replaced → dropped: its lines are gone.
pub(in crate::reconciliation) async fn mark_dropped(conn: &mut Conn, id: BillId) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET status = 'dropped' WHERE id = ? AND status = 'replaced'")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets an abandoned bill whose lines are gone.
pub(in crate::reconciliation) async fn forget(conn: &mut Conn, id: BillId) -> sqlx::Result<()> {
    query("DELETE FROM payment_bills WHERE id = ? AND status = 'abandoned'").bind(id).execute(conn).await?;
    Ok(())
}

/// Bills of days before `before` whose lines are still there, the oldest first.
pub(in crate::reconciliation) async fn to_prune(
    conn: &mut Conn,
    before: Day,
    limit: u32,
) -> sqlx::Result<Vec<BillKey>> {
    query_as(
        "SELECT id, gateway, day FROM payment_bills WHERE pruned_at IS NULL AND day < ? AND status <> 'storing' \
         ORDER BY day LIMIT ?",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Of these numbers, those whose lines stay: with a difference that is open or waits, or with a line that believed bills have
/// on `from` or later.
pub(in crate::reconciliation) async fn kept(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    numbers: &[String],
    from: Day,
) -> sqlx::Result<HashSet<String>> {
    let mut differing = QueryBuilder::<MySql>::new(
        "SELECT number FROM payment_differences WHERE status IN ('open', 'waiting') AND gateway = ",
    );
    differing.push_bind(gateway.as_str()).push(" AND what = ").push_bind(what.as_str()).push(" AND number IN ");
    db::push_in(&mut differing, numbers.iter().map(String::as_str));
    let mut kept: Vec<Text> = differing.build_query_scalar().fetch_all(&mut *conn).await?;
    // The younger lines are found by their numbers: bills grow in number every day, lines of a number do not.
    let mut younger = QueryBuilder::<MySql>::new(
        "SELECT l.number FROM payment_bill_lines l FORCE INDEX (ix_payment_bill_lines_number) \
         STRAIGHT_JOIN payment_bills b ON b.id = l.bill_id AND b.believed = 1 WHERE b.gateway = ",
    );
    younger.push_bind(gateway.as_str()).push(" AND b.day >= ").push_bind(from);
    younger.push(" AND l.kind = ").push_bind(what.as_str()).push(" AND l.number IN ");
    db::push_in(&mut younger, numbers.iter().map(String::as_str));
    kept.extend(younger.build_query_scalar::<Text>().fetch_all(conn).await?);
    Ok(kept.into_iter().map(String::from).collect())
}

/// Deletes the lines of these numbers from all bills of a gateway of days before `before`; how many. Those of one number go
/// together, also from bills whose other lines went before.
pub(in crate::reconciliation) async fn prune_lines(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    numbers: &[String],
    before: Day,
) -> sqlx::Result<u64> {
    if numbers.is_empty() {
        return Ok(0);
    }
    let mut delete = QueryBuilder::<MySql>::new(
        "DELETE l FROM payment_bill_lines l FORCE INDEX (ix_payment_bill_lines_number) \
         STRAIGHT_JOIN payment_bills b ON b.id = l.bill_id WHERE b.status <> 'storing' AND b.gateway = ",
    );
    delete.push_bind(gateway.as_str()).push(" AND b.day < ").push_bind(before);
    delete.push(" AND l.kind = ").push_bind(what.as_str()).push(" AND l.number IN ");
    db::push_in(&mut delete, numbers.iter().map(String::as_str));
    let done = delete.build().execute(conn).await?;
    Ok(done.rows_affected())
}

/// Its lines are gone, but for those that are kept.
pub(in crate::reconciliation) async fn mark_pruned(conn: &mut Conn, id: BillId, now: At) -> sqlx::Result<()> {
    query("UPDATE payment_bills SET pruned_at = ? WHERE id = ? AND pruned_at IS NULL")
        .bind(now)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// A bill, as a person sees it.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::reconciliation) struct BillRow {
    pub id: BillId,
    pub gateway: Gateway,
    pub day: Day,
    #[sqlx(try_from = "Text")]
    pub status: BillStatus,
    pub payments: i64,
    pub payments_fen: Money,
    pub refunds: i64,
    pub refunds_fen: Money,
    pub fetched_at: At,
    pub checked_at: At,
    pub compared_at: Option<At>,
    pub replaced_at: Option<At>,
    pub pruned_at: Option<At>,
    pub open: i64,
    pub waiting: i64,
}

const BILLS: &str = "SELECT b.id, b.gateway, b.day, b.status, CAST(b.payments AS SIGNED) AS payments, b.payments_fen, \
    CAST(b.refunds AS SIGNED) AS refunds, b.refunds_fen, b.fetched_at, b.checked_at, b.compared_at, b.replaced_at, b.pruned_at, \
    (SELECT COUNT(*) FROM payment_differences d WHERE d.gateway = b.gateway AND d.day = b.day AND d.status = 'open') \
    AS open, (SELECT COUNT(*) FROM payment_differences d WHERE d.gateway = b.gateway AND d.day = b.day \
    AND d.status = 'waiting') AS waiting FROM payment_bills b WHERE b.status IN ('believed', 'replaced', 'dropped') ";

/// Bills that are or were believed, below `before`, newest first.
pub(in crate::reconciliation) async fn list(
    conn: &mut Conn,
    gateway: Option<Gateway>,
    before: BillId,
    limit: u32,
) -> sqlx::Result<Vec<BillRow>> {
    let mut query = QueryBuilder::<MySql>::new(BILLS);
    query.push("AND b.id < ").push_bind(before);
    if let Some(gateway) = gateway {
        query.push(" AND b.gateway = ").push_bind(gateway.as_str());
    }
    query.push(" ORDER BY b.id DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await
}

/// The bill of a day that is believed, as a person sees it.
pub(in crate::reconciliation) async fn show(
    conn: &mut Conn,
    gateway: Gateway,
    day: Day,
) -> sqlx::Result<Option<BillRow>> {
    let mut query = QueryBuilder::<MySql>::new(BILLS);
    query.push("AND b.believed = 1 AND b.gateway = ").push_bind(gateway.as_str()).push(" AND b.day = ").push_bind(day);
    query.build_query_as().fetch_optional(conn).await
}
