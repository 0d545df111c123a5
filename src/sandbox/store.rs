//! The sandbox gateway's books.

use sqlx::{query, query_as, query_scalar};

use super::model::{
    Create, Notify, NotifyId, Refunding, SandboxBillLine, SandboxRefundStatus, SandboxTrade, StoredRefund, TradeNo,
};
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::db::Conn;
use crate::platform::text::Text;

/// A notify that is to be sent or was.
#[derive(Debug, sqlx::FromRow)]
pub struct StoredNotify {
    /// Its id.
    pub id: NotifyId,
    /// Its trade.
    pub trade_no: TradeNo,
    /// Where it goes.
    #[sqlx(try_from = "Text")]
    pub notify_url: String,
    /// What it says.
    #[sqlx(try_from = "Text")]
    pub body: String,
    /// How often it was sent.
    pub attempts: i32,
    /// When it is sent next.
    pub next_at: Option<At>,
    /// What the merchant last said.
    #[sqlx(try_from = "Text")]
    pub last_answer: String,
}

/// Opens a trade unless the merchant's number has one.
pub async fn insert_trade(conn: &mut Conn, trade_no: TradeNo, wanted: &Create, now: At) -> Result<()> {
    query(
        "INSERT INTO sandbox_trades (trade_no, merchant_no, amount_fen, status, subject, notify_url, return_url, \
         created_at, expires_at) VALUES (?, ?, ?, 'waiting', ?, ?, ?, ?, ?) \
         ON DUPLICATE KEY UPDATE merchant_no = VALUES(merchant_no)",
    )
    .bind(trade_no)
    .bind(&wanted.merchant_no)
    .bind(wanted.amount_fen)
    .bind(&wanted.subject)
    .bind(&wanted.notify_url)
    .bind(&wanted.return_url)
    .bind(now)
    .bind(wanted.expires_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// A trade by the merchant's number.
pub async fn trade_of_merchant(conn: &mut Conn, merchant_no: &str) -> Result<Option<SandboxTrade>> {
    Ok(query_as(
        "SELECT trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, return_url, expires_at, \
         refunding \
         FROM sandbox_trades WHERE merchant_no = ?",
    )
    .bind(merchant_no)
    .fetch_optional(conn)
    .await?)
}

/// As [`trade_of_merchant`], locked.
pub async fn lock_trade_of_merchant(conn: &mut Conn, merchant_no: &str) -> Result<Option<SandboxTrade>> {
    Ok(query_as(
        "SELECT trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, return_url, expires_at, \
         refunding \
         FROM sandbox_trades WHERE merchant_no = ? FOR UPDATE",
    )
    .bind(merchant_no)
    .fetch_optional(conn)
    .await?)
}

/// A trade by the gateway's number.
pub async fn trade(conn: &mut Conn, trade_no: TradeNo) -> Result<Option<SandboxTrade>> {
    Ok(query_as(
        "SELECT trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, return_url, expires_at, \
         refunding \
         FROM sandbox_trades WHERE trade_no = ?",
    )
    .bind(trade_no)
    .fetch_optional(conn)
    .await?)
}

/// As [`trade`], locked.
pub async fn lock_trade(conn: &mut Conn, trade_no: TradeNo) -> Result<Option<SandboxTrade>> {
    Ok(query_as(
        "SELECT trade_no, merchant_no, amount_fen, paid_fen, status, subject, notify_url, return_url, expires_at, \
         refunding \
         FROM sandbox_trades WHERE trade_no = ? FOR UPDATE",
    )
    .bind(trade_no)
    .fetch_optional(conn)
    .await?)
}

/// Closes a trade that waits.
pub async fn close_trade(conn: &mut Conn, trade_no: TradeNo) -> Result<()> {
    query("UPDATE sandbox_trades SET status = 'closed' WHERE trade_no = ? AND status = 'waiting'")
        .bind(trade_no)
        .execute(conn)
        .await?;
    Ok(())
}

/// Takes money in, whatever the trade's state, once.
pub async fn mark_paid(conn: &mut Conn, trade_no: TradeNo, paid_fen: i64, now: At) -> Result<()> {
    query(
        "UPDATE sandbox_trades SET status = 'paid', paid_fen = ?, paid_at = ? \
         WHERE trade_no = ? AND status IN ('waiting', 'failed', 'closed')",
    )
    .bind(paid_fen)
    .bind(now)
    .bind(trade_no)
    .execute(conn)
    .await?;
    Ok(())
}

/// The payment of a waiting trade failed.
pub async fn mark_failed(conn: &mut Conn, trade_no: TradeNo) -> Result<()> {
    query("UPDATE sandbox_trades SET status = 'failed' WHERE trade_no = ? AND status = 'waiting'")
        .bind(trade_no)
        .execute(conn)
        .await?;
    Ok(())
}

/// Calls a trade refunded all of whose money went back.
pub async fn mark_if_refunded(conn: &mut Conn, trade_no: TradeNo) -> Result<()> {
    query(
        "UPDATE sandbox_trades SET status = 'refunded' WHERE trade_no = ? AND status = 'paid' AND paid_fen = \
         (SELECT SUM(r.amount_fen) FROM sandbox_refunds r WHERE r.trade_no = sandbox_trades.trade_no AND r.status = 'done')",
    )
        .bind(trade_no)
        .execute(conn)
        .await?;
    Ok(())
}

/// A refund by the merchant's number.
pub async fn refund_by_no(conn: &mut Conn, refund_no: &str) -> Result<Option<StoredRefund>> {
    Ok(query_as(
        "SELECT r.refund_no, t.merchant_no, r.amount_fen, r.status FROM sandbox_refunds r \
         JOIN sandbox_trades t ON t.trade_no = r.trade_no WHERE r.refund_no = ?",
    )
    .bind(refund_no)
    .fetch_optional(conn)
    .await?)
}

/// Refunds of a trade in this state, at most `limit`.
pub async fn refunds_of(
    conn: &mut Conn,
    trade_no: TradeNo,
    status: SandboxRefundStatus,
    limit: u32,
) -> Result<Vec<StoredRefund>> {
    Ok(query_as(
        "SELECT r.refund_no, t.merchant_no, r.amount_fen, r.status FROM sandbox_refunds r \
         JOIN sandbox_trades t ON t.trade_no = r.trade_no WHERE r.trade_no = ? AND r.status = ? \
         ORDER BY r.refund_no LIMIT ?",
    )
    .bind(trade_no)
    .bind(status.as_str())
    .bind(limit)
    .fetch_all(conn)
    .await?)
}

/// What went back of a trade or is about to.
pub async fn refunded_fen(conn: &mut Conn, trade_no: TradeNo) -> Result<i64> {
    Ok(query_scalar(
        "SELECT CAST(COALESCE(SUM(amount_fen), 0) AS SIGNED) FROM sandbox_refunds \
         WHERE trade_no = ? AND status <> 'declined'",
    )
    .bind(trade_no)
    .fetch_one(conn)
    .await?)
}

/// Notes a refund, or what becomes of a known one.
pub async fn put_refund(conn: &mut Conn, refund: &StoredRefund, trade_no: TradeNo, now: At) -> Result<()> {
    query(
        "INSERT INTO sandbox_refunds (refund_no, trade_no, amount_fen, status, created_at) VALUES (?, ?, ?, ?, ?) \
         ON DUPLICATE KEY UPDATE status = VALUES(status)",
    )
    .bind(&refund.refund_no)
    .bind(trade_no)
    .bind(refund.amount_fen)
    .bind(refund.status.as_str())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Says what becomes of a trade's refunds from now on.
pub async fn set_refunding(conn: &mut Conn, trade_no: TradeNo, refunding: Refunding) -> Result<()> {
    query("UPDATE sandbox_trades SET refunding = ? WHERE trade_no = ?")
        .bind(refunding.as_str())
        .bind(trade_no)
        .execute(conn)
        .await?;
    Ok(())
}

/// Notes a notify that is to go out at `due`.
pub async fn insert_notify(conn: &mut Conn, trade: &SandboxTrade, notify: &Notify, due: At) -> Result<()> {
    let body = serde_json::to_string(notify).map_err(anyhow::Error::from)?;
    query("INSERT INTO sandbox_notifies (id, trade_no, notify_url, body, next_at) VALUES (?, ?, ?, ?, ?)")
        .bind(notify.notify_id)
        .bind(trade.trade_no)
        .bind(&trade.notify_url)
        .bind(body)
        .bind(due)
        .execute(conn)
        .await?;
    Ok(())
}

/// Notifies that are due, the longest due first.
pub async fn due_notifies(conn: &mut Conn, now: At, limit: u32) -> Result<Vec<StoredNotify>> {
    Ok(query_as(
        "SELECT id, trade_no, notify_url, body, attempts, next_at, last_answer FROM sandbox_notifies \
         WHERE next_at <= ? ORDER BY next_at LIMIT ?",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await?)
}

/// Takes one try of a notify, with the time of the next should this one be in vain; false: another process took it.
pub async fn claim_notify(conn: &mut Conn, notify: &StoredNotify, next_at: Option<At>) -> Result<bool> {
    let done =
        query("UPDATE sandbox_notifies SET attempts = attempts + 1, next_at = ? WHERE id = ? AND attempts = ? AND next_at IS NOT NULL")
            .bind(next_at)
            .bind(notify.id)
            .bind(notify.attempts)
            .execute(conn)
            .await?;
    Ok(done.rows_affected() == 1)
}

/// The merchant said yes.
pub async fn confirm_notify(conn: &mut Conn, id: NotifyId, answer: &str, now: At) -> Result<()> {
    query("UPDATE sandbox_notifies SET next_at = NULL, confirmed_at = ?, last_answer = ? WHERE id = ?")
        .bind(now)
        .bind(answer)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// The merchant said something else.
pub async fn note_answer(conn: &mut Conn, id: NotifyId, answer: &str) -> Result<()> {
    query("UPDATE sandbox_notifies SET last_answer = ? WHERE id = ?").bind(answer).bind(id).execute(conn).await?;
    Ok(())
}

/// A trade's notifies, the oldest first, for the cashier's page.
pub async fn notifies_of(conn: &mut Conn, trade_no: TradeNo, limit: u32) -> Result<Vec<StoredNotify>> {
    Ok(query_as(
        "SELECT id, trade_no, notify_url, body, attempts, next_at, last_answer FROM sandbox_notifies \
         WHERE trade_no = ? ORDER BY id LIMIT ?",
    )
    .bind(trade_no)
    .bind(limit)
    .fetch_all(conn)
    .await?)
}

/// Money that came in, by the merchant's number. The books of a sandbox are small: no index serves this.
pub async fn bill_payments(
    conn: &mut Conn,
    from: At,
    until: At,
    after: &str,
    limit: u32,
) -> Result<Vec<SandboxBillLine>> {
    Ok(query_as(
        "SELECT merchant_no AS number, merchant_no, paid_fen AS amount_fen, paid_at AS at FROM sandbox_trades \
         WHERE paid_at >= ? AND paid_at < ? AND merchant_no > ? ORDER BY merchant_no LIMIT ?",
    )
    .bind(from)
    .bind(until)
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await?)
}

/// Money that went back, by the refund's number.
pub async fn bill_refunds(
    conn: &mut Conn,
    from: At,
    until: At,
    after: &str,
    limit: u32,
) -> Result<Vec<SandboxBillLine>> {
    Ok(query_as(
        "SELECT r.refund_no AS number, t.merchant_no, r.amount_fen, r.created_at AS at FROM sandbox_refunds r \
         JOIN sandbox_trades t ON t.trade_no = r.trade_no \
         WHERE r.status = 'done' AND r.created_at >= ? AND r.created_at < ? AND r.refund_no > ? ORDER BY r.refund_no LIMIT ?",
    )
    .bind(from)
    .bind(until)
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await?)
}
