//! Differences between a gateway's bills and our books.

use crate::payments::{BillSubject, BookStatus, Gateway};
use sqlx::{MySql, QueryBuilder, query, query_as};

use crate::auth::UserId;
use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::db::{self, Conn};
use crate::platform::money::Money;
use crate::platform::text::Text;
use crate::reconciliation::DifferenceId;
use crate::reconciliation::compare::{DifferenceKind, DifferenceStatus, Figures};

/// A difference that is known.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(in crate::reconciliation) struct KnownDifference {
    pub id: DifferenceId,
    #[sqlx(try_from = "Text")]
    pub number: String,
    pub kind: DifferenceKind,
    pub status: DifferenceStatus,
    pub theirs_fen: Option<Money>,
    pub ours_fen: Option<Money>,
}

impl KnownDifference {
    /// Its amounts.
    pub fn figures(&self) -> Figures {
        Figures { theirs: self.theirs_fen, ours: self.ours_fen }
    }
}

/// The known differences of these numbers, held until the transaction ends.
pub(in crate::reconciliation) async fn lock(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    numbers: &[String],
) -> sqlx::Result<Vec<KnownDifference>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, number, kind, status, theirs_fen, ours_fen FROM payment_differences WHERE gateway = ",
    );
    query.push_bind(gateway.as_str()).push(" AND what = ").push_bind(what.as_str()).push(" AND number IN ");
    db::push_in(&mut query, numbers.iter().map(String::as_str));
    query.push(" ORDER BY id FOR UPDATE");
    query.build_query_as().fetch_all(conn).await
}

/// What is written down of a difference.
pub(in crate::reconciliation) struct Facts<'a> {
    pub day: Day,
    /// Our payment; empty where our books have none.
    pub payment_no: &'a str,
    /// What the bill has in the place of its number; empty where it has nothing.
    pub merchant_no: &'a str,
    pub figures: Figures,
    /// How far it is by our books.
    pub ours_status: Option<&'a str>,
}

/// Which difference.
pub(in crate::reconciliation) struct Named<'a> {
    pub gateway: Gateway,
    pub what: BillSubject,
    pub number: &'a str,
    pub kind: DifferenceKind,
}

/// Puts down a new difference; one that is known violates `uq_payment_differences_number`.
pub(in crate::reconciliation) async fn insert(
    conn: &mut Conn,
    named: &Named<'_>,
    status: DifferenceStatus,
    facts: &Facts<'_>,
    now: At,
) -> sqlx::Result<()> {
    query(
        "INSERT INTO payment_differences (id, gateway, what, number, kind, status, day, payment_no, merchant_no, \
         theirs_fen, ours_fen, ours_status, found_at, checked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(DifferenceId::new())
    .bind(named.gateway.as_str())
    .bind(named.what.as_str())
    .bind(named.number)
    .bind(named.kind.as_str())
    .bind(status.as_str())
    .bind(facts.day)
    .bind(facts.payment_no)
    .bind(facts.merchant_no)
    .bind(facts.figures.theirs)
    .bind(facts.figures.ours)
    .bind(facts.ours_status)
    .bind(now)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// A known difference is found now, whatever became of it before. The caller holds its row, as below.
pub(in crate::reconciliation) async fn find(
    conn: &mut Conn,
    id: DifferenceId,
    status: DifferenceStatus,
    facts: &Facts<'_>,
    now: At,
) -> sqlx::Result<()> {
    query(
        "UPDATE payment_differences SET status = ?, day = ?, payment_no = ?, merchant_no = ?, theirs_fen = ?, \
         ours_fen = ?, ours_status = ?, found_at = ?, checked_at = ?, vanished_at = NULL, resolved_at = NULL, resolved_by = NULL, \
         note = '' WHERE id = ?",
    )
    .bind(status.as_str())
    .bind(facts.day)
    .bind(facts.payment_no)
    .bind(facts.merchant_no)
    .bind(facts.figures.theirs)
    .bind(facts.figures.ours)
    .bind(facts.ours_status)
    .bind(now)
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// What a difference that is open or waits is about now.
pub(in crate::reconciliation) async fn refresh(
    conn: &mut Conn,
    id: DifferenceId,
    facts: &Facts<'_>,
    now: At,
) -> sqlx::Result<()> {
    query(
        "UPDATE payment_differences SET payment_no = ?, merchant_no = ?, theirs_fen = ?, ours_fen = ?, \
         ours_status = ?, checked_at = ? WHERE id = ? AND status IN ('open', 'waiting')",
    )
    .bind(facts.payment_no)
    .bind(facts.merchant_no)
    .bind(facts.figures.theirs)
    .bind(facts.figures.ours)
    .bind(facts.ours_status)
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// open, waiting → vanished.
pub(in crate::reconciliation) async fn vanish(conn: &mut Conn, id: DifferenceId, now: At) -> sqlx::Result<()> {
    query(
        "UPDATE payment_differences SET status = 'vanished', vanished_at = ?, checked_at = ? \
         WHERE id = ? AND status IN ('open', 'waiting')",
    )
    .bind(now)
    .bind(now)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// A number to look at again.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::reconciliation) struct Again {
    pub gateway: Gateway,
    pub what: BillSubject,
    #[sqlx(try_from = "Text")]
    pub number: String,
}

/// Differences of this status that nobody looked at since `before`, the longest first.
pub(in crate::reconciliation) async fn to_check(
    conn: &mut Conn,
    status: DifferenceStatus,
    before: At,
    limit: u32,
) -> sqlx::Result<Vec<Again>> {
    query_as(
        "SELECT gateway, what, number FROM payment_differences WHERE status = ? AND checked_at < ? \
         ORDER BY checked_at LIMIT ?",
    )
    .bind(status.as_str())
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Open differences of each gateway that has some.
pub(in crate::reconciliation) async fn count_open(conn: &mut Conn) -> sqlx::Result<Vec<(String, i64)>> {
    let open: Vec<(Text, i64)> =
        query_as("SELECT gateway, COUNT(*) FROM payment_differences WHERE status = 'open' GROUP BY gateway")
            .fetch_all(conn)
            .await?;
    Ok(open.into_iter().map(|(gateway, count)| (gateway.into(), count)).collect())
}

/// open → resolved, by a person.
pub(in crate::reconciliation) async fn resolve(
    conn: &mut Conn,
    id: DifferenceId,
    by: UserId,
    note: &str,
    now: At,
) -> sqlx::Result<bool> {
    let done = query(
        "UPDATE payment_differences SET status = 'resolved', resolved_at = ?, resolved_by = ?, note = ? \
         WHERE id = ? AND status = 'open'",
    )
    .bind(now)
    .bind(by)
    .bind(note)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A difference, as a person sees it.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::reconciliation) struct DifferenceRow {
    pub id: DifferenceId,
    pub gateway: Gateway,
    pub what: BillSubject,
    #[sqlx(try_from = "Text")]
    pub number: String,
    pub kind: DifferenceKind,
    pub status: DifferenceStatus,
    pub day: Day,
    #[sqlx(try_from = "Text")]
    pub payment_no: String,
    #[sqlx(try_from = "Text")]
    pub merchant_no: String,
    pub theirs_fen: Option<Money>,
    pub ours_fen: Option<Money>,
    pub ours_status: Option<BookStatus>,
    pub found_at: At,
    pub checked_at: At,
    pub vanished_at: Option<At>,
    pub resolved_at: Option<At>,
    pub resolved_by: Option<UserId>,
    #[sqlx(try_from = "Text")]
    pub note: String,
}

const DIFFERENCES: &str = "SELECT id, gateway, what, number, kind, status, day, payment_no, merchant_no, theirs_fen, \
    ours_fen, ours_status, found_at, checked_at, vanished_at, resolved_at, resolved_by, note FROM payment_differences WHERE id ";

/// Which differences.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::reconciliation) struct WhichDifferences {
    pub gateway: Option<Gateway>,
    pub what: Option<BillSubject>,
    pub kind: Option<DifferenceKind>,
    pub status: Option<DifferenceStatus>,
}

/// Differences below `before`, newest first.
pub(in crate::reconciliation) async fn list(
    conn: &mut Conn,
    which: WhichDifferences,
    before: DifferenceId,
    limit: u32,
) -> sqlx::Result<Vec<DifferenceRow>> {
    let mut query = QueryBuilder::<MySql>::new(DIFFERENCES);
    query.push("< ").push_bind(before);
    let filters = [
        (" AND gateway = ", which.gateway.map(Gateway::as_str)),
        (" AND what = ", which.what.map(BillSubject::as_str)),
        (" AND kind = ", which.kind.map(DifferenceKind::as_str)),
        (" AND status = ", which.status.map(DifferenceStatus::as_str)),
    ];
    for (filter, value) in filters {
        if let Some(value) = value {
            query.push(filter).push_bind(value);
        }
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(conn).await
}

/// A difference, held until the transaction ends.
pub(in crate::reconciliation) async fn lock_one(
    conn: &mut Conn,
    id: DifferenceId,
) -> sqlx::Result<Option<DifferenceRow>> {
    let mut query = QueryBuilder::<MySql>::new(DIFFERENCES);
    query.push("= ").push_bind(id).push(" FOR UPDATE");
    query.build_query_as().fetch_optional(conn).await
}
