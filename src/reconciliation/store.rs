//! The SQL of bills, of our side of them, and of differences: one statement a function.

pub(super) mod bills;
pub(super) mod differences;
pub(super) mod fetches;

use crate::payments::{BillSubject, Gateway};
use std::collections::HashMap;

use sqlx::{MySql, QueryBuilder};

use crate::platform::day::Day;
use crate::platform::db::{self, Conn};
use crate::platform::money::Money;
use crate::platform::text::Text;

/// What the believed bills of a gateway come to for a number, whatever their days.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Theirs {
    #[sqlx(try_from = "Text")]
    pub number: String,
    #[sqlx(try_from = "Text")]
    pub merchant_no: String,
    pub amount: Money,
    /// The last day that has it.
    pub day: Day,
}

/// What believed bills of a gateway have of these numbers, by number. Lines are found first: bills grow in number every day,
/// lines of a number do not.
pub(super) async fn theirs(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    numbers: &[String],
) -> sqlx::Result<HashMap<String, Theirs>> {
    if numbers.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT l.number, MIN(l.merchant_no) AS merchant_no, CAST(SUM(l.amount_fen) AS SIGNED) AS amount, \
         MAX(b.day) AS day FROM payment_bill_lines l FORCE INDEX (ix_payment_bill_lines_number) \
         STRAIGHT_JOIN payment_bills b ON b.id = l.bill_id AND b.believed = 1 \
         WHERE b.gateway = ",
    );
    query.push_bind(gateway.as_str()).push(" AND l.kind = ").push_bind(what.as_str()).push(" AND l.number IN ");
    db::push_in(&mut query, numbers.iter().map(String::as_str));
    query.push(" GROUP BY l.number");
    let rows: Vec<Theirs> = query.build_query_as().fetch_all(conn).await?;
    Ok(rows.into_iter().map(|row| (row.number.clone(), row)).collect())
}
