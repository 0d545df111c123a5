//! Connections that are not waited for without an end.
//!
//! A server may go silent: its machine is gone, a firewall has forgotten the connection, its process is stopped. sqlx
//! waits for it for ever, in the statement and when the connection goes back into the pool (sqlx #4349), so the pool runs
//! dry and stays so. Here each answer is waited for as long as the server itself may take, and a moment more. Then the
//! statement has failed as if the connection had been lost ([`sqlx::Error::Io`]), and it is: a late answer would be taken
//! for the answer to another question, so the connection is closed and never used again.

use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use sqlx::mysql::{MySqlQueryResult, MySqlRow, MySqlStatement, MySqlTransactionManager, MySqlTypeInfo};
use sqlx::pool::PoolConnection;
use sqlx::{Describe, Either, Execute, Executor, MySql, MySqlConnection, MySqlPool, TransactionManager};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::galera::{Galera, Guard};
use super::{Bounds, session};

/// The server gives a statement up after its limit, and says so; its word may take so much longer to come.
const ANSWER: Duration = Duration::from_secs(2);
/// A connection that was used this lately is not asked whether it is still there: what is lost in between is lost in
/// the middle of a statement as often.
const FRESH: Duration = Duration::from_secs(1);
/// One that was idle for longer answers within this, or another one is made.
const PING: Duration = Duration::from_secs(1);
/// One that is given back says within this that it is well, or is closed.
const RETURN: Duration = Duration::from_secs(5);
/// A look at the server waits for a connection, and for its answer, so long each.
const LOOK: Duration = Duration::from_secs(3);

/// The pool. Cheap to clone; one statement may be run on it directly.
#[derive(Clone)]
pub struct Db {
    pool: MySqlPool,
    bounds: Bounds,
    shares: Arc<Shares>,
    galera: Galera,
}

/// What may be taken of the pool by requests, and by tasks and passes: neither takes all, so that a crowd at the API does
/// not stop the work behind it, nor the other way round.
struct Shares {
    requests: Arc<Semaphore>,
    work: Arc<Semaphore>,
}

/// Of a pool, one part in so many is out of reach of either, and one connection at least.
const RESERVE: u32 = 4;

tokio::task_local! {
    /// Set in what answers a request, and not in tasks that it spawns.
    static FOR_REQUESTS: ();
}

/// Takes connections out of the share of requests.
pub fn for_requests<F: Future>(answering: F) -> impl Future<Output = F::Output> {
    FOR_REQUESTS.scope((), answering)
}

impl Db {
    pub(super) fn new(pool: MySqlPool, bounds: Bounds, galera: Galera) -> Self {
        let share = || Arc::new(Semaphore::new((bounds.size - (bounds.size / RESERVE).max(1)) as usize));
        Self { pool, bounds, shares: Arc::new(Shares { requests: share(), work: share() }), galera }
    }

    /// A connection, for as long as the caller keeps it.
    pub async fn acquire(&self) -> sqlx::Result<ConnectionLease> {
        let is_request = FOR_REQUESTS.try_with(|()| ()).is_ok();
        let share = if is_request { &self.shares.requests } else { &self.shares.work };
        let taking = async {
            let place = share.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            self.take(Some(place), self.bounds.statement_timeout + ANSWER).await
        };
        // A wait for a connection may be given up: what is being made or asked then is closed.
        let taken = timeout(self.bounds.acquire_timeout, taking).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if matches!(taken, Err(sqlx::Error::PoolTimedOut)) {
            metrics::counter!("onrush_pool_timeouts_total", "server" => "mysql").increment(1);
        }
        taken
    }

    /// A connection to look at the server with, whatever others have taken: nobody waits for it, nor it for long.
    pub(super) async fn acquire_to_look(&self) -> sqlx::Result<ConnectionLease> {
        timeout(LOOK, self.take(None, LOOK)).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn take(&self, place: Option<OwnedSemaphorePermit>, patience: Duration) -> sqlx::Result<ConnectionLease> {
        let pooled = Some(self.pool.acquire().await?);
        Ok(ConnectionLease(Conn { pooled, is_lost: false, is_changed: false, patience, place }))
    }

    /// As [`Db::acquire`], for statements that may take longer than those that somebody waits for. The connection is
    /// closed afterwards.
    pub async fn acquire_for(&self, statement_timeout: Duration) -> sqlx::Result<ConnectionLease> {
        let mut lease = self.acquire().await?;
        lease.is_changed = true;
        lease.patience = statement_timeout + ANSWER;
        (&mut *lease).execute(session::bounds(statement_timeout).as_str()).await?;
        Ok(lease)
    }

    /// Begins a transaction.
    pub async fn begin(&self) -> sqlx::Result<Tx> {
        let mut conn = self.acquire().await?;
        let guard = self.galera.guard();
        guard.before(&mut conn).await?;
        conn.bounded(|raw| MySqlTransactionManager::begin(raw, None)).await?;
        // From here on it is rolled back when it is given up.
        let mut tx = Tx { conn, guard, is_open: true };
        guard.begun(&mut tx).await?;
        Ok(tx)
    }

    /// Connections of the pool, at most.
    pub fn limit(&self) -> u32 {
        self.bounds.size
    }

    /// Connections of the pool, in use or not.
    pub fn size(&self) -> u32 {
        self.pool.size()
    }

    /// Connections of the pool that nobody uses.
    pub fn num_idle(&self) -> usize {
        self.pool.num_idle()
    }

    /// Closes every connection once it is given back.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool.fmt(f)
    }
}

/// Whether a connection that was idle for so long still leads to its server.
pub(super) async fn is_there(conn: &mut MySqlConnection, idle: Duration) -> bool {
    let is_there = idle < FRESH || timeout(PING, sqlx::Connection::ping(conn)).await.is_ok_and(|pinged| pinged.is_ok());
    if !is_there {
        one_was_lost();
    }
    is_there
}

/// Counts a connection that is given up.
fn one_was_lost() {
    metrics::counter!("onrush_mysql_connections_lost_total").increment(1);
}

/// A connection, as store functions take it.
pub struct Conn {
    /// `None` when it is on its way back.
    pooled: Option<PoolConnection<MySql>>,
    /// It is never used again: it broke, or an answer may still be on its way.
    is_lost: bool,
    /// Its session is not as the others' any more: it is closed after use.
    is_changed: bool,
    /// An answer is waited for so long.
    patience: Duration,
    /// Its place in the share of whoever took it; a look at the server has none.
    place: Option<OwnedSemaphorePermit>,
}

impl Conn {
    /// sqlx's own connection, for what may take as long as it takes. It is closed afterwards.
    pub(super) fn unbounded(&mut self) -> sqlx::Result<&mut MySqlConnection> {
        // What is done without a bound may be given up at any point.
        self.is_changed = true;
        self.usable().map(|(raw, _)| raw)
    }

    /// Transactions and savepoints that are open, as the driver counts.
    pub fn transaction_depth(&self) -> usize {
        self.pooled.as_ref().map_or(0, |raw| MySqlTransactionManager::get_transaction_depth(raw))
    }

    fn usable(&mut self) -> sqlx::Result<(&mut MySqlConnection, &mut bool)> {
        let raw = self.pooled.as_mut().filter(|_| !self.is_lost);
        raw.map(|raw| (&mut **raw, &mut self.is_lost)).ok_or_else(silent)
    }

    /// Waits for what the server answers, and not for ever.
    async fn bounded<T, F>(&mut self, call: F) -> sqlx::Result<T>
    where
        F: for<'a> FnOnce(&'a mut MySqlConnection) -> BoxFuture<'a, sqlx::Result<T>>,
    {
        let patience = self.patience;
        let (raw, is_lost) = self.usable()?;
        // Until there is an answer: whoever gives this future up leaves the answer on its way.
        *is_lost = true;
        let answer = timeout(patience, call(raw)).await.unwrap_or_else(|_| Err(silent()));
        *is_lost = answer.as_ref().is_err_and(breaks);
        answer
    }
}

/// Whether nothing more can come over a connection after this.
fn breaks(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed)
}

fn silent() -> sqlx::Error {
    io::Error::new(ErrorKind::TimedOut, "the server did not answer in time: the connection is given up").into()
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("is_lost", &self.is_lost).finish_non_exhaustive()
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let (Some(mut pooled), place) = (self.pooled.take(), self.place.take()) else { return };
        // A transaction that is still open here would be the next one's.
        let is_at_rest = MySqlTransactionManager::get_transaction_depth(&pooled) == 0;
        if self.is_lost {
            one_was_lost();
        }
        if self.is_lost || self.is_changed || !is_at_rest {
            // The pool has room for another one at once; the socket closes with it.
            drop(pooled.detach());
            return;
        }
        // The pool asks whether it still answers, and would wait for that without an end.
        let returning = pooled.return_to_pool();
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if timeout(RETURN, returning).await.is_err() {
                one_was_lost();
                tracing::warn!("mysql did not answer when a connection was given back: it is closed");
            }
            drop(place);
        });
    }
}

type Answers<'a> = BoxStream<'a, sqlx::Result<Either<MySqlQueryResult, MySqlRow>>>;

impl<'c> Executor<'c> for &'c mut Conn {
    type Database = MySql;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Answers<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, MySql>,
    {
        let patience = self.patience;
        let (raw, is_lost) = match self.usable() {
            Ok(usable) => usable,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let next = move |state: Option<(Answers<'e>, &'e mut bool)>| async move {
            let (mut answers, is_lost) = state?;
            // Until there is one, as in `bounded`.
            *is_lost = true;
            let answer = timeout(patience, answers.next()).await.unwrap_or_else(|_| Some(Err(silent())));
            *is_lost = matches!(&answer, Some(Err(error)) if breaks(error));
            let answer = answer?;
            let goes_on = !*is_lost;
            Some((answer, goes_on.then_some((answers, is_lost))))
        };
        stream::unfold(Some((raw.fetch_many(query), is_lost)), next).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<MySqlRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, MySql>,
    {
        let rows = self.fetch_many(query).try_filter_map(async |answer| Ok(answer.right()));
        async move { std::pin::pin!(rows).try_next().await }.boxed()
    }

    fn prepare_with<'e, 'q: 'e>(
        self,
        sql: &'q str,
        parameters: &'e [MySqlTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<MySqlStatement<'q>>>
    where
        'c: 'e,
    {
        async move {
            let patience = self.patience;
            let (raw, is_lost) = self.usable()?;
            *is_lost = true;
            let prepared = timeout(patience, raw.prepare_with(sql, parameters)).await.unwrap_or_else(|_| Err(silent()));
            *is_lost = prepared.as_ref().is_err_and(breaks);
            prepared
        }
        .boxed()
    }

    fn describe<'e, 'q: 'e>(self, sql: &'q str) -> BoxFuture<'e, sqlx::Result<Describe<MySql>>>
    where
        'c: 'e,
    {
        async move { self.usable()?.0.describe(sql).await }.boxed()
    }
}

/// A connection of the pool, until it is dropped.
#[derive(Debug)]
pub struct ConnectionLease(Conn);

impl Deref for ConnectionLease {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.0
    }
}

impl DerefMut for ConnectionLease {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.0
    }
}

/// One open transaction; whoever began it commits it. Dropped, it is rolled back.
#[derive(Debug)]
pub struct Tx {
    conn: ConnectionLease,
    guard: Guard,
    is_open: bool,
}

impl Tx {
    /// Commits. After [`sqlx::Error::Io`] nobody knows whether the server did: see [`may_be_done`](super::may_be_done).
    pub async fn commit(mut self) -> sqlx::Result<()> {
        self.guard.is_whole(&mut self.conn).await?;
        // One that the server refuses, for another transaction, is still open.
        let done = self.conn.bounded(MySqlTransactionManager::commit).await;
        self.is_open = done.is_err();
        done
    }

    /// Rolls back, and waits until it is.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        let done = self.conn.bounded(MySqlTransactionManager::rollback).await;
        self.is_open = done.is_err();
        done
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        // The server rolls back what a connection leaves that is closed.
        if self.is_open
            && let Ok((raw, _)) = self.conn.usable()
        {
            MySqlTransactionManager::start_rollback(raw);
        }
    }
}

impl Deref for Tx {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

impl<'c> Executor<'c> for &'c Db {
    type Database = MySql;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Answers<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, MySql>,
    {
        let answers = async move {
            let mut conn = self.acquire().await?;
            let answers: Vec<_> = conn.fetch_many(query).try_collect().await?;
            Ok(stream::iter(answers.into_iter().map(Ok)))
        };
        answers.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<MySqlRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, MySql>,
    {
        async move { self.acquire().await?.fetch_optional(query).await }.boxed()
    }

    fn prepare_with<'e, 'q: 'e>(
        self,
        sql: &'q str,
        parameters: &'e [MySqlTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<MySqlStatement<'q>>>
    where
        'c: 'e,
    {
        async move { self.acquire().await?.prepare_with(sql, parameters).await }.boxed()
    }

    fn describe<'e, 'q: 'e>(self, sql: &'q str) -> BoxFuture<'e, sqlx::Result<Describe<MySql>>>
    where
        'c: 'e,
    {
        async move { self.acquire().await?.describe(sql).await }.boxed()
    }
}
