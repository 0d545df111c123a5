//! MySQL and MariaDB: the pool, and what its errors mean.
//!
//! A sqlx-mysql future must run to its end: dropping one half way leaves a connection with an open transaction or an
//! unread answer in the pool (sqlx #563, #2711). So nothing here or above wraps one in a timeout or a `select!`; the
//! bounds are the server's (`innodb_lock_wait_timeout`), the pool's, and the size of every statement's page.

mod contention;
mod trouble;
mod writer;

pub use contention::Meetings;
pub use trouble::{Trouble, trouble};
pub use writer::writable;

use std::panic::Location;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::migrate::Migrator;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{ConnectOptions, Executor, MySqlPool};

/// The pool.
pub type Db = MySqlPool;
/// One open transaction; whoever began it commits it.
pub type Tx = sqlx::Transaction<'static, sqlx::MySql>;
/// The connection of a transaction, as store functions take it.
pub type Conn = sqlx::MySqlConnection;

/// The server gives up a row lock wait after this many seconds (`ER_LOCK_WAIT_TIMEOUT`).
const LOCK_WAIT_S: u32 = 5;
/// A connection is replaced after this long, so that a fail-over or a DNS change is followed.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Opens a pool of at most `size` connections; a request waits at most `acquire_timeout` for one.
pub async fn connect(url: &str, size: u32, acquire_timeout: Duration) -> anyhow::Result<Db> {
    let options = MySqlConnectOptions::from_str(url).context("parsing DATABASE_URL")?;
    let options = options.statement_cache_capacity(STATEMENTS_KEPT);
    let place = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let pool = MySqlPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(acquire_timeout)
        .max_lifetime(MAX_LIFETIME)
        .after_connect(|conn, _| {
            Box::pin(async move {
                // READ COMMITTED: a statement sees what is committed when it runs, and range locks do not deadlock inserts.
                conn.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                conn.execute(format!("SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}").as_str()).await?;
                Ok(())
            })
        })
        .before_acquire(|_, meta| Box::pin(async move { Ok(writer::may_be_at_it(meta.age)) }))
        .after_release(|_, meta| Box::pin(async move { Ok(writer::may_be_at_it(meta.age)) }))
        .connect_with(options.clone())
        .await;
    let error = match pool {
        // It says that it took too long, and not why.
        Err(sqlx::Error::PoolTimedOut) => match options.connect().await {
            Ok(_) => sqlx::Error::PoolTimedOut,
            Err(cause) => cause,
        },
        Err(error) => error,
        Ok(pool) => return Ok(pool),
    };
    Err(error)
        .with_context(|| format!("connecting to MySQL at {place} (DATABASE_URL); does it run, and may this user in?"))
}

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("./migrations");
    // Its own lock waits without an end, which MariaDB does not know, and does not look whether it was given.
    migrator.set_locking(false);
    migrator
});

/// The server's lock on migrating this database. Locks are the whole server's, and their names have 64 characters.
const MIGRATION_LOCK: &str = "CONCAT('onrush/migrate/', LEFT(SHA2(DATABASE(), 256), 40))";
/// One question for the lock waits so many seconds, and it is asked so many times.
const MIGRATION_LOCK_WAIT_S: u32 = 10;
const MIGRATION_LOCK_ATTEMPTS: u32 = 90;

/// Brings the schema up to date and gives how many migrations that took. Copies that start together wait for each other.
pub async fn migrate(db: &Db) -> anyhow::Result<usize> {
    let mut conn = db.acquire().await.context("connecting to migrate the schema")?;
    // Not back into the pool: should the lock not be released below, it goes with its connection.
    conn.close_on_drop();
    lock_migrations(&mut conn).await?;
    let migrated = migrate_locked(&mut conn).await;
    let release = format!("SELECT RELEASE_LOCK({MIGRATION_LOCK})");
    if let Err(error) = sqlx::query(&release).execute(&mut *conn).await {
        tracing::warn!(%error, "the lock on migrations goes with its connection");
    }
    migrated
}

async fn migrate_locked(conn: &mut Conn) -> anyhow::Result<usize> {
    let pending = pending(conn).await?;
    MIGRATIONS.run_direct(conn).await.context("migrating the schema")?;
    Ok(pending)
}

async fn lock_migrations(conn: &mut Conn) -> anyhow::Result<()> {
    let ask = format!("SELECT GET_LOCK({MIGRATION_LOCK}, {MIGRATION_LOCK_WAIT_S})");
    for _ in 0..MIGRATION_LOCK_ATTEMPTS {
        let answer = sqlx::query_scalar::<_, Option<i64>>(ask.as_str()).fetch_one(&mut *conn).await;
        match answer.context("locking the schema to migrate it")? {
            Some(1) => return Ok(()),
            Some(_) => tracing::info!("another process migrates the schema: waiting for it"),
            None => bail!("the server gives no lock to migrate the schema under; does DATABASE_URL name a database?"),
        }
    }
    bail!("another process has been migrating the schema for {} s", MIGRATION_LOCK_ATTEMPTS * MIGRATION_LOCK_WAIT_S)
}

/// How many migrations this version has that the database has not. A database that is ahead has none: the version
/// before this one still runs while the next is rolled out.
pub async fn pending_migrations(db: &Db) -> anyhow::Result<usize> {
    pending(&mut *db.acquire().await.context("connecting to read the schema's version")?).await
}

async fn pending(conn: &mut Conn) -> anyhow::Result<usize> {
    const NO_SUCH_TABLE: u16 = 1146;
    let applied = sqlx::query_scalar::<_, i64>("SELECT version FROM _sqlx_migrations WHERE success = TRUE");
    let applied = match applied.fetch_all(conn).await {
        Ok(applied) => applied,
        Err(sqlx::Error::Database(error))
            if error
                .try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
                .is_some_and(|e| e.number() == NO_SUCH_TABLE) =>
        {
            Vec::new()
        }
        Err(error) => return Err(error).context("reading the schema's version"),
    };
    Ok(MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)).count())
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
            tracing::debug!(runs = meetings.runs(), at = %caller, error = format!("{error:#}"), "transaction met another and runs again");
        }
    }
}

/// Whether the server or the pool cannot serve now.
pub fn is_unavailable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<sqlx::Error>().is_some_and(|e| trouble(e) == Trouble::Unavailable))
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
