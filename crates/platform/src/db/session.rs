//! What each session sets of the server: what it sees, and how long it may wait and work.
//!
//! MySQL and MariaDB name the limit of a statement differently, and each reads the other's name as a comment.

use std::time::Duration;

/// The server gives up a wait for a row (`ER_LOCK_WAIT_TIMEOUT`) after this many seconds, or a third of the limit of a
/// statement: whoever waits hears of it before the statement is given up.
const LOCK_WAIT_S: u64 = 5;
/// And a wait for a table that is being changed. Without it everything that touches the table waits for the change, and
/// the change for whoever reads the table at that moment, for a day unless set.
const TABLE_WAIT_S: u32 = 5;
/// The server closes a session that says nothing for so long, with its transaction. One whose connection was given up, and
/// that never hears of it, would hold its locks for eight hours unless set.
pub(super) const IDLE_S: u32 = 90;

/// READ COMMITTED: a statement sees what is committed when it runs, and range locks do not deadlock inserts.
pub(super) const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Waits, and the limit of a statement. MySQL has that for reads; what writes is bounded by its locks and its pages.
pub(super) fn bounds(statement_timeout: Duration) -> String {
    let lock_wait_s = (statement_timeout.as_secs() / 3).clamp(1, LOCK_WAIT_S);
    format!(
        "SET SESSION innodb_lock_wait_timeout = {lock_wait_s}, lock_wait_timeout = {TABLE_WAIT_S}, \
         wait_timeout = {IDLE_S}{}",
        limit(statement_timeout)
    )
}

/// Of one that changes the schema: its statements take as long as they take, and give up a table that is in use so that
/// those behind them go on.
pub(super) fn of_migrations(wait_s: u32) -> String {
    format!("SET SESSION innodb_lock_wait_timeout = {wait_s}, lock_wait_timeout = {wait_s}{}", limit(Duration::ZERO))
}

fn limit(statement_timeout: Duration) -> String {
    let (s, ms) = (statement_timeout.as_secs_f64(), statement_timeout.as_millis());
    format!(" /*M!100100 , max_statement_time = {s} */ /*!80000 , max_execution_time = {ms} */")
}
