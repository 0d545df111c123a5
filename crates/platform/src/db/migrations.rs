//! The schema: what this version has of it, and how it is brought up to date.
//!
//! A statement that changes a table waits until nobody reads it, and whoever comes meanwhile waits behind it: one long read
//! would stop everything. So each waits for [`TABLE_WAIT_S`], lets the others pass and tries again. sqlx runs a file at
//! once, and calls the schema broken when a statement of it fails, so the statements are run here one by one.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migration, Migrator};
use sqlx::{Executor, MySqlConnection};

use super::{Conn, Db, Trouble, session, trouble};

/// The migrations of several parts as one list, by their time.
pub fn together(parts: &[&Migrator]) -> Migrator {
    let mut all: Vec<Migration> = parts.iter().flat_map(|part| part.iter().cloned()).collect();
    all.sort_by_key(|migration| migration.version);
    let mut migrator = Migrator { migrations: Cow::Owned(all), ..Migrator::DEFAULT };
    // Its own lock waits without an end, which MariaDB does not know, and does not look whether it was given.
    migrator.set_locking(false);
    migrator
}

/// The server's lock on migrating this database. Locks are the whole server's, and their names have 64 characters.
const MIGRATION_LOCK: &str = "CONCAT('onrush/migrate/', LEFT(SHA2(DATABASE(), 256), 40))";
/// One question for the lock waits so many seconds, and it is asked so many times.
const MIGRATION_LOCK_WAIT_S: u32 = 10;
const MIGRATION_LOCK_ATTEMPTS: u32 = 90;

/// A statement waits so long for a table that is in use, in seconds.
const TABLE_WAIT_S: u32 = 2;
/// Then others have so long to pass.
const PAUSE: Duration = Duration::from_secs(1);
/// And it is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Brings the schema up to date ([`together`]) and gives how many migrations that took. Copies that start together wait for each other.
pub async fn migrate(db: &Db, migrations: &Migrator) -> anyhow::Result<usize> {
    let mut conn = db.acquire().await.context("connecting to migrate the schema")?;
    // Not back into the pool: should the lock not be released below, it goes with its connection.
    let conn = conn.unbounded()?;
    lock_migrations(conn).await?;
    let migrated = migrate_locked(conn, migrations).await;
    let release = format!("SELECT RELEASE_LOCK({MIGRATION_LOCK})");
    if let Err(error) = sqlx::query(&release).execute(conn).await {
        tracing::warn!(%error, "the lock on migrations goes with its connection");
    }
    migrated
}

async fn migrate_locked(conn: &mut MySqlConnection, migrations: &Migrator) -> anyhow::Result<usize> {
    let pending = pending(migrations, &applied(&mut *conn).await?);
    migrations.run_direct(&mut OneByOne(conn)).await.context("migrating the schema")?;
    Ok(pending)
}

async fn lock_migrations(conn: &mut MySqlConnection) -> anyhow::Result<()> {
    let ask = format!("SELECT GET_LOCK({MIGRATION_LOCK}, {MIGRATION_LOCK_WAIT_S})");
    // The question takes as long as the lock is waited for, which is longer than others may.
    conn.execute(session::of_migrations(TABLE_WAIT_S).as_str()).await.context("bounding the session")?;
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

/// How many of these migrations the database has not. A database that is ahead has none: the version
/// before this one still runs while the next is rolled out.
pub async fn pending_migrations(db: &Db, migrations: &Migrator) -> anyhow::Result<usize> {
    let mut conn = db.acquire().await.context("connecting to read the schema's version")?;
    let conn: &mut Conn = &mut conn;
    Ok(pending(migrations, &applied(conn).await?))
}

fn pending(migrations: &Migrator, applied: &[i64]) -> usize {
    migrations.iter().filter(|migration| !applied.contains(&migration.version)).count()
}

async fn applied<'c>(conn: impl Executor<'c, Database = sqlx::MySql>) -> anyhow::Result<Vec<i64>> {
    const NO_SUCH_TABLE: u16 = 1146;
    let applied = sqlx::query_scalar::<_, i64>("SELECT version FROM _sqlx_migrations WHERE success = TRUE");
    match applied.fetch_all(conn).await {
        Err(sqlx::Error::Database(error))
            if error
                .try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
                .is_some_and(|e| e.number() == NO_SUCH_TABLE) =>
        {
            Ok(Vec::new())
        }
        applied => applied.context("reading the schema's version"),
    }
}

/// Runs migrations statement by statement; for the rest it is sqlx's own.
struct OneByOne<'c>(&'c mut MySqlConnection);

impl Migrate for OneByOne<'_> {
    fn ensure_migrations_table(&mut self) -> BoxFuture<'_, Result<(), MigrateError>> {
        self.0.ensure_migrations_table()
    }

    /// What was left half done goes on where it stopped.
    fn dirty_version(&mut self) -> BoxFuture<'_, Result<Option<i64>, MigrateError>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn list_applied_migrations(&mut self) -> BoxFuture<'_, Result<Vec<AppliedMigration>, MigrateError>> {
        async move {
            let applied = "SELECT version, checksum FROM _sqlx_migrations WHERE success = TRUE ORDER BY version";
            let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(applied).fetch_all(&mut *self.0).await?;
            Ok(rows
                .into_iter()
                .map(|(version, checksum)| AppliedMigration { version, checksum: checksum.into() })
                .collect())
        }
        .boxed()
    }

    fn lock(&mut self) -> BoxFuture<'_, Result<(), MigrateError>> {
        self.0.lock()
    }

    fn unlock(&mut self) -> BoxFuture<'_, Result<(), MigrateError>> {
        self.0.unlock()
    }

    fn apply<'e: 'm, 'm>(&'e mut self, migration: &'m Migration) -> BoxFuture<'m, Result<Duration, MigrateError>> {
        apply(self.0, migration).boxed()
    }

    fn revert<'e: 'm, 'm>(&'e mut self, migration: &'m Migration) -> BoxFuture<'m, Result<Duration, MigrateError>> {
        self.0.revert(migration)
    }
}

/// The server commits each change of the schema by itself. So the row is written first, as one of a migration that has not
/// succeeded, and says after each statement how many are done: whoever comes after one that gave up or died goes on behind
/// them. Only who dies between a statement and that note leaves one to be done twice, which the server then refuses, and a
/// person must look.
async fn apply(conn: &mut MySqlConnection, migration: &Migration) -> Result<Duration, MigrateError> {
    let (began, version) = (Instant::now(), migration.version);
    let done = begin(conn, migration).await?;
    for (at, statement) in statements(&migration.sql).enumerate().skip(done) {
        run(conn, version, statement).await.map_err(|error| MigrateError::ExecuteMigration(error, version))?;
        let note = format!("UPDATE _sqlx_migrations SET execution_time = {} WHERE version = {version}", noted(at + 1));
        run(conn, version, &note).await?;
    }
    let took = began.elapsed();
    let done = "UPDATE _sqlx_migrations SET success = TRUE, execution_time";
    run(conn, version, &format!("{done} = {} WHERE version = {version}", took.as_nanos())).await?;
    Ok(took)
}

/// What the row says of a migration of which so many statements are done: sqlx writes -1 at first.
fn noted(done: usize) -> i64 {
    -1 - i64::try_from(done).unwrap_or(0)
}

/// Writes the row, or reads how many statements the one that is there says to be done.
async fn begin(conn: &mut MySqlConnection, migration: &Migration) -> Result<usize, MigrateError> {
    let there = sqlx::query_scalar("SELECT execution_time FROM _sqlx_migrations WHERE version = ? AND success = FALSE");
    let there: Option<i64> = there.bind(migration.version).fetch_optional(&mut *conn).await?;
    if let Some(noted) = there {
        let done = usize::try_from(-1 - noted).unwrap_or(0);
        tracing::info!(migration = migration.version, done, "a migration was left half done and goes on");
        return Ok(done);
    }
    let begun = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (?, ?, FALSE, ?, -1)";
    let begun = sqlx::query(begun).bind(migration.version).bind(&*migration.description).bind(&*migration.checksum);
    begun.execute(conn).await?;
    Ok(0)
}

/// Runs one statement, again while somebody uses its table.
async fn run(conn: &mut MySqlConnection, version: i64, statement: &str) -> sqlx::Result<()> {
    let began = Instant::now();
    loop {
        match conn.execute(statement).await {
            Err(error) if trouble(&error) == Trouble::Contention && began.elapsed() < PATIENCE => {
                tracing::info!(
                    migration = version,
                    %error,
                    "a table is in use: the change waits, so that others go on, and tries again; \
                     SHOW PROCESSLIST says who reads it"
                );
                tokio::time::sleep(PAUSE).await;
            }
            other => return other.map(drop),
        }
    }
}

/// The statements of a file: each ends with a semicolon at the end of a line.
pub fn statements(sql: &str) -> impl Iterator<Item = &str> {
    let is_statement = |part: &&str| part.lines().any(|line| !line.trim().is_empty() && !line.starts_with("--"));
    sql.split(";\n").map(|part| part.trim().trim_end_matches(';')).filter(is_statement)
}
