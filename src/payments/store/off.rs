//! The SQL about gateways that are switched off: one statement a function. A count ends at a bound: more is more than
//! enough to be told.

use sqlx::query_scalar;

use crate::payments::model::Gateway;
use crate::platform::db::Conn;

/// Started payments of a gateway, ten thousand at most. They are found by status: few are started at any time.
pub(in crate::payments) async fn count_started(conn: &mut Conn, gateway: Gateway) -> sqlx::Result<i64> {
    query_scalar(
        "SELECT COUNT(*) FROM (SELECT id FROM payments WHERE status = 'started' AND gateway = ? LIMIT 10000) counted",
    )
    .bind(gateway.as_str())
    .fetch_one(conn)
    .await
}

/// Pending refunds of a gateway, ten thousand at most.
pub(in crate::payments) async fn count_pending_refunds(conn: &mut Conn, gateway: Gateway) -> sqlx::Result<i64> {
    query_scalar(
        "SELECT COUNT(*) FROM (SELECT r.id FROM refunds r JOIN payments p ON p.id = r.payment_id \
         WHERE r.status = 'pending' AND p.gateway = ? LIMIT 10000) counted",
    )
    .bind(gateway.as_str())
    .fetch_one(conn)
    .await
}
