//! A connection that many share, and its replacement when it is of no more use.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use deadpool_redis::redis::aio::ConnectionLike;
use deadpool_redis::redis::{Cmd, Pipeline, RedisFuture, Value};
use futures_util::FutureExt;

use super::REPLICA;

/// The shared connection is tried this often.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// What can be shared. Each of its answers comes, or fails, in a bounded time.
pub(super) trait Shareable: Clone + Send + Sync + 'static {
    /// Whether it leads to one server, so that all fails when that is away.
    const IS_ONE_SERVER: bool;
    /// What it is made from.
    type Source: Send + Sync + 'static;

    /// Connects anew.
    fn connect(place: &Self::Source) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Whether what it leads to answers and takes writes; what is wrong otherwise.
    fn usable(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// The connection; cheap to clone.
#[derive(Clone)]
pub(super) struct Shared<C>(Arc<Inner<C>>);

struct Inner<C> {
    current: RwLock<C>,
    away: Arc<Away>,
}

/// Whether neither the connection nor a new one was usable when somebody last looked.
#[derive(Default)]
struct Away {
    is: AtomicBool,
    why: Mutex<String>,
}

impl Away {
    fn note(&self, error: Option<&anyhow::Error>) {
        if let Some(error) = error {
            *self.why.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
        }
        self.is.store(error.is_some(), Ordering::Release);
    }
}

/// The connection as it was at some moment. While the server is known to be away nothing is sent and everything fails at
/// once: who waited for each answer's time to run out would have everybody behind them wait as well.
#[derive(Clone)]
pub struct Watched<C> {
    connection: C,
    away: Arc<Away>,
}

impl<C: ConnectionLike> Watched<C> {
    fn refused<T: Send + 'static>(&self) -> Option<RedisFuture<'static, T>> {
        if !self.away.is.load(Ordering::Acquire) {
            return None;
        }
        let why = self.away.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(async move { Err(io::Error::new(io::ErrorKind::NotConnected, why).into()) }.boxed())
    }
}

impl<C: ConnectionLike + Send> ConnectionLike for Watched<C> {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.refused() {
            Some(refused) => refused,
            None => self.connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.refused() {
            Some(refused) => refused,
            None => self.connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

impl<C: Shareable> Shared<C> {
    /// Connects, and watches over the connection for as long as this is held.
    pub(super) async fn connect(place: C::Source) -> anyhow::Result<Self> {
        let current = RwLock::new(C::connect(&place).await?);
        let inner = Arc::new(Inner { current, away: Arc::default() });
        tokio::spawn(watch(place, Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// The connection as it is now. Not to be kept: another one may take its place.
    pub(super) fn get(&self) -> Watched<C> {
        Watched { connection: self.current(), away: self.0.away.clone() }
    }

    /// Whether the server answers and takes writes, whatever was seen of it before.
    pub(super) async fn usable(&self) -> anyhow::Result<()> {
        self.current().usable().await
    }

    /// The connection itself, also while its server is known to be away.
    pub(super) fn current(&self) -> C {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Replaces the connection when it does not answer, or leads to a server that was made a replica and kept it open: its
/// address may lead to another server by now. A driver mends what breaks by itself, but not all: a connection manager
/// keeps for ever the error of a reconnection that failed otherwise (a server that is loading its data), and a cluster's
/// connection keeps the slots of a master that went silent, since no connection broke and nobody said `MOVED`.
async fn watch<C: Shareable>(place: C::Source, shared: Weak<Inner<C>>) {
    let mut well = true;
    loop {
        tokio::time::sleep(WATCH_PERIOD).await;
        let Some(inner) = shared.upgrade() else { return };
        let shared = Shared(inner);
        let Err(error) = shared.usable().await else {
            if !well {
                tracing::info!("redis answers again");
                well = true;
            }
            shared.0.away.note(None);
            continue;
        };
        if well {
            tracing::warn!(error = format!("{error:#}"), "redis is not usable; connecting again");
            well = false;
        }
        let fresh = async {
            let mut fresh = C::connect(&place).await?;
            fresh.usable().await?;
            anyhow::Ok(fresh)
        };
        let fresh = fresh.await;
        // Of several servers one may be away, and the others serve. A replica answers what is read.
        let away = fresh.as_ref().err().filter(|error| C::IS_ONE_SERVER && error.to_string() != REPLICA);
        shared.0.away.note(away);
        if let Ok(fresh) = fresh {
            tracing::info!("connected to redis again");
            well = true;
            *shared.0.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }
}
