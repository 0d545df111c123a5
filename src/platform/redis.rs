//! Redis: one shared pipelined connection for commands, a pool of connections for reads that block.
//!
//! Commands share a connection because pipelining makes one connection faster than many (no check-out, fewer
//! system calls); a blocking read would hold up everybody on it, so those take a connection of their own.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use anyhow::{Context, bail};
use deadpool_redis::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use deadpool_redis::redis::{AsyncConnectionConfig, Client, InfoDict, Value, from_redis_value};

/// A command that has no answer after this long has failed.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that is not there after this long has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections of their own for blocking reads, at most.
const POOL_SIZE: usize = 256;

/// What is said of a server that somebody else writes to.
const REPLICA: &str = "redis is a read-only replica";
/// The shared connection is tried this often.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// A handle on Redis; cheap to clone.
#[derive(Clone)]
pub struct Redis {
    commands: Arc<RwLock<ConnectionManager>>,
    blocking: deadpool_redis::Pool,
    client: Arc<Client>,
    prefix: Arc<str>,
}

impl Redis {
    /// Connects. Every key begins with `prefix`, so that several services (or tests) share a server.
    pub async fn connect(url: &str, prefix: &str) -> anyhow::Result<Self> {
        let client = Client::open(url).context("parsing REDIS_URL")?;
        let commands = shared_connection(&client).await.context("connecting to Redis")?;
        let commands = Arc::new(RwLock::new(commands));
        tokio::spawn(watch(client.clone(), Arc::downgrade(&commands)));
        // No response timeout here: a blocking read's own BLOCK argument bounds it.
        let connection =
            AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(CONNECT_TIMEOUT));
        let manager = deadpool_redis::Manager::new_with_config(url, connection).context("parsing REDIS_URL")?;
        let blocking = deadpool_redis::Pool::builder(manager)
            .max_size(POOL_SIZE)
            .runtime(deadpool_redis::Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .build()
            .context("building the Redis pool")?;
        Ok(Self { commands, blocking, client: Arc::new(client), prefix: prefix.into() })
    }

    /// The shared connection for commands that answer at once.
    pub fn commands(&self) -> ConnectionManager {
        self.commands.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection of one's own, for reads that block.
    pub async fn blocking(&self) -> anyhow::Result<deadpool_redis::Connection> {
        self.blocking.get().await.context("taking a Redis connection")
    }

    /// The client, for subscriptions.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What every key begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether the server answers and takes writes; what is wrong otherwise. A replica answers, to a PING too, and takes
    /// none.
    pub async fn usable(&self) -> anyhow::Result<()> {
        usable(&mut self.commands()).await
    }

    /// Connections of the blocking pool: (open, in use).
    pub fn pool_use(&self) -> (usize, usize) {
        let status = self.blocking.status();
        (status.size, status.size.saturating_sub(status.available))
    }

    /// Which processes of Redis serve: another id is another process, which may know less than the one before.
    pub async fn run_ids(&self) -> anyhow::Result<Vec<String>> {
        let info = deadpool_redis::redis::cmd("INFO").arg("server").to_owned();
        let info: InfoDict = info.query_async(&mut self.commands()).await.context("reading INFO server from Redis")?;
        Ok(vec![info.get("run_id").context("a Redis without a run_id")?])
    }

    /// Refuses a replica and a server that may drop keys on its own, and says when a restart of it would lose data.
    pub async fn require_safe_server(&self) -> anyhow::Result<()> {
        let mut commands = self.commands();
        usable(&mut commands).await.context("REDIS_URL must lead to a server that takes writes")?;
        let memory: InfoDict = deadpool_redis::redis::cmd("INFO")
            .arg("memory")
            .query_async(&mut commands)
            .await
            .context("reading INFO memory from Redis")?;
        let policy: String = memory.get("maxmemory_policy").unwrap_or_default();
        let limit: u64 = memory.get("maxmemory").unwrap_or(0);
        if policy != "noeviction" && limit > 0 {
            bail!(
                "Redis has maxmemory-policy {policy}: it may drop queues and reservations. \
                 Set `maxmemory-policy noeviction` (or maxmemory 0) and start again"
            );
        }
        let persistence: InfoDict = deadpool_redis::redis::cmd("INFO")
            .arg("persistence")
            .query_async(&mut commands)
            .await
            .context("reading INFO persistence from Redis")?;
        if persistence.get::<i64>("aof_enabled").unwrap_or(0) == 0 {
            tracing::warn!(
                "redis has no append-only file: a restart of it forgets what is queued, which then waits for the sweeps"
            );
        }
        Ok(())
    }
}

async fn shared_connection(client: &Client) -> Result<ConnectionManager, deadpool_redis::redis::RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(3)
        .set_min_delay(Duration::from_millis(20))
        .set_max_delay(Duration::from_millis(500))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT));
    ConnectionManager::new_with_config(client.clone(), config).await
}

/// Replaces the shared connection when it does not answer, or leads to a server that was made a replica and kept it
/// open: its address may lead to another server by now. The connection manager reconnects by itself after an I/O error,
/// but keeps for ever the error of a reconnection that failed otherwise (a server that is loading its data).
async fn watch(client: Client, commands: Weak<RwLock<ConnectionManager>>) {
    let mut well = true;
    loop {
        tokio::time::sleep(WATCH_PERIOD).await;
        let Some(commands) = commands.upgrade() else { return };
        let mut current = commands.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Err(error) = usable(&mut current).await else {
            well = true;
            continue;
        };
        if well {
            tracing::warn!(error = format!("{error:#}"), "redis is not usable; connecting again");
            well = false;
        }
        let Ok(mut fresh) = shared_connection(&client).await else { continue };
        if usable(&mut fresh).await.is_ok() {
            tracing::info!("connected to redis again");
            *commands.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }
}

async fn usable(commands: &mut ConnectionManager) -> anyhow::Result<()> {
    let role: Vec<Value> = deadpool_redis::redis::cmd("ROLE").query_async(commands).await?;
    let role: Option<String> = role.into_iter().next().map(from_redis_value).transpose()?;
    if role.as_deref() == Some("master") { Ok(()) } else { bail!(REPLICA) }
}

/// Whether an error says that Redis cannot be reached or cannot serve now.
pub fn is_unavailable(error: &deadpool_redis::redis::RedisError) -> bool {
    use deadpool_redis::redis::{ErrorKind, ServerErrorKind};
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::ReadOnly
            )
        )
}
