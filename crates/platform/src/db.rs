//! MySQL and MariaDB: the pool, and what its errors mean.
//!
//! A sqlx-mysql future must run to its end: dropping one half way leaves a connection with an open transaction or an
//! unread answer in the pool (sqlx #563, #2711). So nothing above wraps one in a timeout or a `select!`. The bounds are the
//! server's (`session`), the pool's, the size of every statement's page, and that of each answer, which closes its connection
//! (`connection`).

mod connection;
mod contention;
mod galera;
mod migrations;
mod session;
mod trouble;
mod writer;

pub use connection::{Conn, ConnectionLease, Db, Tx, for_requests};
pub use contention::Meetings;
pub use migrations::{migrate, pending_migrations, statements, together};
pub use trouble::{Trouble, trouble};
pub use writer::{server_time, writable};

use std::panic::Location;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{ConnectOptions, Executor};

use self::galera::Galera;
use super::loops::Loops;

/// A connection is replaced after this long, so that a fail-over or a DNS change is followed.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A connection that nobody used for this long is closed, before the server does so ([`session::IDLE_S`]).
const IDLE: Duration = Duration::from_secs(60);

/// How many connections a pool has, and what is waited for how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections.
    pub size: u32,
    /// The longest wait for one of them.
    pub acquire_timeout: Duration,
    /// The longest that a statement takes.
    pub statement_timeout: Duration,
}

/// Opens a pool.
pub async fn connect(url: &str, bounds: Bounds) -> anyhow::Result<Db> {
    let options = MySqlConnectOptions::from_str(url).context("parsing DATABASE_URL")?;
    let options = options.statement_cache_capacity(STATEMENTS_KEPT);
    let place = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let galera = Galera::default();
    let (looks, follows) = (galera.clone(), galera.clone());
    let pool = MySqlPoolOptions::new()
        .max_connections(bounds.size)
        .acquire_timeout(bounds.acquire_timeout)
        .max_lifetime(MAX_LIFETIME)
        .idle_timeout(IDLE)
        .after_connect(move |conn, _| {
            let galera = looks.clone();
            Box::pin(async move {
                conn.execute(session::ISOLATION).await?;
                conn.execute(session::bounds(bounds.statement_timeout).as_str()).await?;
                galera.look(conn).await
            })
        })
        // Its own look has no bound.
        .test_before_acquire(false)
        .before_acquire(|conn, meta| {
            Box::pin(
                async move { Ok(writer::may_be_at_it(meta.age) && connection::is_there(conn, meta.idle_for).await) },
            )
        })
        .after_release(move |conn, meta| {
            let galera = follows.clone();
            Box::pin(async move { galera.after(conn).await.map(|()| writer::may_be_at_it(meta.age)) })
        })
        .connect_with(options.clone())
        .await;
    let error = match pool {
        // It says that it took too long, and not why.
        Err(sqlx::Error::PoolTimedOut) => match options.connect().await {
            Ok(_) => sqlx::Error::PoolTimedOut,
            Err(cause) => cause,
        },
        Err(error) => error,
        Ok(pool) => return Ok(Db::new(pool, bounds, galera)),
    };
    Err(error)
        .with_context(|| format!("connecting to MySQL at {place} (DATABASE_URL); does it run, and may this user in?"))
}

/// The name of the constraint that refused a statement (unique or check), as both servers report it.
pub fn violated(error: &sqlx::Error) -> Option<String> {
    let sqlx::Error::Database(database) = error else { return None };
    let message = database.message();
    // MariaDB: Duplicate entry '…' for key 'uq_x'; MySQL 8+: … for key 'table.uq_x'.
    if let Some((_, rest)) = message.rsplit_once("for key '") {
        let name = rest.trim_end_matches('\'');
        return Some(name.rsplit_once('.').map_or(name, |(_, name)| name).to_owned());
    }
    // MySQL: Check constraint 'ck_x' is violated. MariaDB: CONSTRAINT `ck_x` failed for `db`.`table`.
    let quoted = message
        .split_once("Check constraint '")
        .and_then(|(_, rest)| rest.split_once('\''))
        .or_else(|| message.split_once("CONSTRAINT `").and_then(|(_, rest)| rest.split_once('`')));
    quoted.map(|(name, _)| name.rsplit_once('.').map_or(name, |(_, name)| name).to_owned())
}

/// Rows of one multi-row statement, at most. Below `eq_range_index_dive_limit` (200): a longer `IN` list is planned by the
/// table's statistics, which are wrong while it grows, and then reads all that an activity has for each batch.
pub const CHUNK: usize = 128;

/// The lengths that `IN` lists have: a list is filled up to the next one. Each length is a statement of its own to the
/// server, so few lengths mean statements that stay prepared. One that is prepared for a single use and closed costs a
/// round trip more each time.
const LIST_LENGTHS: [usize; 6] = [1, 2, 4, 8, 32, CHUNK];
/// The numbers of rows that multi-row inserts have: up to the first exactly, then the largest that fits.
const INSERT_LENGTHS: [usize; 5] = [8, 16, 32, 64, CHUNK];

/// Statements that a connection keeps prepared, at most; the one that was not used for longest makes room. The server's
/// `max_prepared_stmt_count` (16,382 unless set) counts those of all connections.
pub const STATEMENTS_KEPT: usize = 160;

/// Divides the rows of an insert into parts whose statements stay prepared: 50 rows go as 32, 16 and 2.
pub fn insert_parts<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let longest = INSERT_LENGTHS.into_iter().rev().find(|length| *length <= left.len()).unwrap_or(left.len());
        let (part, rest) = left.split_at(longest);
        left = rest;
        (!part.is_empty()).then_some(part)
    })
}

/// Runs a whole transaction, or one statement, again when another one was in its way. `run` begins and commits; nothing
/// outside it may have happened by then. What cannot be served in the end names where this was called.
#[track_caller]
pub fn retrying<T, F, Fut>(run: F) -> impl Future<Output = anyhow::Result<T>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let caller = Location::caller();
    async move {
        let mut meetings = Meetings::default();
        loop {
            let error = match run().await {
                Err(error) if is_contention(&error) => error,
                Err(error) if is_unavailable(&error) => return Err(error.context(format!("what is run at {caller}"))),
                other => return other,
            };
            if !meetings.run_again().await {
                let runs = meetings.runs();
                return Err(error.context(format!("what is run at {caller} met others in each of {runs} runs")));
            }
            metrics::counter!("onrush_transactions_run_again_total").increment(1);
            tracing::debug!(runs = meetings.runs(), at = %caller, error = format!("{error:#}"), "transaction met another and runs again");
        }
    }
}

/// Runs a statement that deletes at most a page of rows, until it finds no whole page any more, or the process stops. A
/// number of pages would fall behind for ever where more come than it has room for.
pub async fn by_pages<F, Fut>(loops: &Loops, page: u32, delete: F) -> anyhow::Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = anyhow::Result<u64>>,
{
    let stop = loops.stop_signal();
    while !stop.is_cancelled() && retrying(&delete).await? >= u64::from(page) {}
    Ok(())
}

/// Whether the server or the pool cannot serve now.
pub fn is_unavailable(error: &anyhow::Error) -> bool {
    let says_so = |error| matches!(trouble(error), Trouble::Unavailable | Trouble::TooSlow);
    error.chain().any(|cause| cause.downcast_ref::<sqlx::Error>().is_some_and(says_so))
}

/// Whether a statement took longer than it may. It may do so whenever it is run.
pub fn is_too_slow(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<sqlx::Error>().is_some_and(|e| trouble(e) == Trouble::TooSlow))
}

/// Whether another transaction was in the way.
pub fn is_contention(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<sqlx::Error>().is_some_and(|e| trouble(e) == Trouble::Contention))
}

/// Whether what failed may be done all the same: the connection was lost, perhaps while the answer of a COMMIT was on its
/// way. Who can see what would have been done looks for it; who cannot says that the service is not available, and the
/// repeat finds it.
pub fn may_be_done(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<sqlx::Error>(), Some(sqlx::Error::Io(_))))
}

/// Pushes `(?, ?, …)` for an `IN` list, filled up with its last value to a length that is met again. The list must not
/// be empty: `IN ()` is not SQL.
pub fn push_in<'q, T>(query: &mut sqlx::QueryBuilder<'q, sqlx::MySql>, values: impl IntoIterator<Item = T>)
where
    T: 'q + Clone + sqlx::Encode<'q, sqlx::MySql> + sqlx::Type<sqlx::MySql> + Send,
{
    query.push("(");
    let mut list = query.separated(", ");
    let (mut count, mut last) = (0, None);
    for value in values {
        last = Some(value.clone());
        list.push_bind(value);
        count += 1;
    }
    // A value that stands in a list twice finds what it finds once.
    if let Some(last) = last {
        (count..list_length(count)).for_each(|_| {
            list.push_bind(last.clone());
        });
    }
    query.push(")");
}

/// The length that a list of so many values is filled up to.
fn list_length(count: usize) -> usize {
    LIST_LENGTHS.into_iter().find(|length| *length >= count).unwrap_or_else(|| count.next_multiple_of(CHUNK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_inserts_have_few_lengths() {
        let lists: std::collections::BTreeSet<usize> = (1..=CHUNK).map(list_length).collect();
        assert_eq!(lists, LIST_LENGTHS.into());
        assert!((1..=1000).all(|count| (count..count + CHUNK).contains(&list_length(count))));
        for count in 0..=500 {
            let rows: Vec<usize> = (0..count).collect();
            let parts: Vec<&[usize]> = insert_parts(&rows).collect();
            assert_eq!(parts.concat(), rows, "every row once, in order");
            assert!(parts.iter().all(|part| part.len() <= 8 || INSERT_LENGTHS.contains(&part.len())), "{parts:?}");
        }
    }
}
