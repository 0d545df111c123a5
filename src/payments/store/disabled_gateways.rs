//! The SQL about gateways that are switched off: one statement a function, over what is open at all of them. A count ends
//! at a bound: more is more than enough to be told.

use sqlx::{FromRow, query_as};

use crate::payments::model::Gateway;
use crate::platform::db::Conn;

/// How much is open at a gateway.
#[derive(FromRow)]
pub(in crate::payments) struct Open {
    pub gateway: Gateway,
    pub open: i64,
}

/// Started payments by gateway, of a hundred thousand at most.
pub(in crate::payments) async fn count_started(conn: &mut Conn) -> sqlx::Result<Vec<Open>> {
    query_as(
        "SELECT gateway, COUNT(*) AS open FROM (SELECT gateway FROM payments FORCE INDEX (ix_payments_query_due) \
         WHERE status = 'started' LIMIT 100000) counted GROUP BY gateway",
    )
    .fetch_all(conn)
    .await
}

/// Pending refunds by gateway, of a hundred thousand at most.
pub(in crate::payments) async fn count_pending_refunds(conn: &mut Conn) -> sqlx::Result<Vec<Open>> {
    query_as(
        "SELECT p.gateway, COUNT(*) AS open FROM (SELECT payment_id FROM refunds FORCE INDEX (ix_refunds_due) \
         WHERE status = 'pending' LIMIT 100000) r JOIN payments p ON p.id = r.payment_id GROUP BY p.gateway",
    )
    .fetch_all(conn)
    .await
}
