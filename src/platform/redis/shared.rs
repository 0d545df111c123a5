//! A connection that many share, and its replacement when it is of no more use.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

/// The shared connection is tried this often.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// What can be shared. Each of its answers comes, or fails, in a bounded time.
pub(super) trait Shareable: Clone + Send + Sync + 'static {
    /// What it is made from.
    type Place: Send + Sync + 'static;

    /// Connects anew.
    fn connect(place: &Self::Place) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Whether what it leads to answers and takes writes; what is wrong otherwise.
    fn usable(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// The connection; cheap to clone.
#[derive(Clone)]
pub(super) struct Shared<C>(Arc<RwLock<C>>);

impl<C: Shareable> Shared<C> {
    /// Connects, and watches over the connection for as long as this is held.
    pub(super) async fn connect(place: C::Place) -> anyhow::Result<Self> {
        let current = Arc::new(RwLock::new(C::connect(&place).await?));
        tokio::spawn(watch(place, Arc::downgrade(&current)));
        Ok(Self(current))
    }

    /// The connection as it is now. Not to be kept: another one may take its place.
    pub(super) fn get(&self) -> C {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Replaces the connection when it does not answer, or leads to a server that was made a replica and kept it open: its
/// address may lead to another server by now. A driver mends what breaks by itself, but not all: a connection manager
/// keeps for ever the error of a reconnection that failed otherwise (a server that is loading its data), and a cluster's
/// connection keeps the slots of a master that went silent, since no connection broke and nobody said `MOVED`.
async fn watch<C: Shareable>(place: C::Place, current: Weak<RwLock<C>>) {
    let mut well = true;
    loop {
        tokio::time::sleep(WATCH_PERIOD).await;
        let Some(current) = current.upgrade() else { return };
        let shared = Shared(current);
        let Err(error) = shared.get().usable().await else {
            well = true;
            continue;
        };
        if well {
            tracing::warn!(error = format!("{error:#}"), "redis is not usable; connecting again");
            well = false;
        }
        let Ok(mut fresh) = C::connect(&place).await else { continue };
        if fresh.usable().await.is_ok() {
            tracing::info!("connected to redis again");
            *shared.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }
}
