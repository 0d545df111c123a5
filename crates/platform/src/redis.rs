//! Redis: one shared pipelined connection for commands, a pool of connections for reads that block.
//!
//! Commands share a connection because pipelining makes one connection faster than many (no check-out, fewer
//! system calls); a blocking read would hold up everybody on it, so those take a connection of their own.
//!
//! `REDIS_URL` names one server or a cluster ([`cluster`]); nobody outside this room need know which.

mod cluster;
mod shared;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use deadpool_redis::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSub};
use deadpool_redis::redis::io::tcp::TcpSettings;
use deadpool_redis::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, InfoDict, IntoConnectionInfo, Pipeline, RedisFuture,
    RedisResult, Value, from_redis_value,
};
use deadpool_redis::{PoolError, TimeoutType};
use tokio::sync::OwnedSemaphorePermit;

use self::cluster::{Cluster, ClusterCommands};
use self::shared::{Shareable, Shared, Watched};

/// A command that has no answer after this long has failed.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that is not there after this long has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections of their own for blocking reads, at most.
const POOL_SIZE: usize = 256;

/// What is written to see whether it can be goes by itself after so long.
const WRITTEN_FOR_MS: u64 = 60_000;

/// Notes that somebody waited for a connection in vain, because others had all of them.
fn none_was_free() {
    metrics::counter!("onrush_pool_timeouts_total", "server" => "redis").increment(1);
}

/// What is said of a server that somebody else writes to.
const REPLICA: &str = "redis is a read-only replica";

/// A handle on Redis; cheap to clone.
#[derive(Clone)]
pub struct Redis {
    servers: Servers,
    prefix: Arc<str>,
}

#[derive(Clone)]
enum Servers {
    One(One),
    Cluster(Arc<Cluster>),
}

/// One server.
#[derive(Clone)]
struct One {
    commands: Shared<ConnectionManager>,
    blocking: deadpool_redis::Pool,
    client: Arc<Client>,
}

impl Redis {
    /// Connects. Every key begins with `prefix`, so that several services (or tests) share a server.
    pub async fn connect(url: &str, prefix: &str) -> anyhow::Result<Self> {
        let servers = match Cluster::connect(url).await? {
            Some(cluster) => Servers::Cluster(Arc::new(cluster)),
            None => Servers::One(One::connect(url).await?),
        };
        Ok(Self { servers, prefix: prefix.into() })
    }

    /// The shared connection for commands that answer at once. On a cluster the keys of a command, or of a pipeline,
    /// share a slot.
    pub fn commands(&self) -> Commands {
        match &self.servers {
            Servers::One(one) => Commands::One(one.commands.get()),
            Servers::Cluster(cluster) => Commands::Cluster(cluster.commands()),
        }
    }

    /// A connection of one's own, for reads that block.
    pub async fn blocking(&self) -> anyhow::Result<Blocking> {
        Ok(match &self.servers {
            Servers::One(one) => {
                let taken = one.blocking.get().await;
                if matches!(taken, Err(PoolError::Timeout(TimeoutType::Wait))) {
                    none_was_free();
                }
                Blocking::One(taken.context("taking a Redis connection")?)
            }
            Servers::Cluster(cluster) => {
                let (connection, place) = cluster.blocking().await?;
                Blocking::Cluster(connection, place)
            }
        })
    }

    /// A connection for subscriptions. It ends with its server; another one is then made anew.
    pub async fn subscribe(&self) -> anyhow::Result<PubSub> {
        match &self.servers {
            Servers::One(one) => Ok(one.client.get_async_pubsub().await?),
            Servers::Cluster(cluster) => cluster.subscribe().await,
        }
    }

    /// Whether it is a cluster: there a command has keys of one slot.
    pub fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster(_))
    }

    /// What every key begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Connections for blocking reads: (open, in use).
    pub fn pool_use(&self) -> (usize, usize) {
        match &self.servers {
            Servers::One(one) => {
                let status = one.blocking.status();
                (status.size, status.size.saturating_sub(status.available))
            }
            Servers::Cluster(cluster) => (cluster.blocking_use(), cluster.blocking_use()),
        }
    }

    /// Connections for blocking reads, at most.
    pub fn pool_limit(&self) -> usize {
        POOL_SIZE
    }

    /// Whether the server, of a cluster every master, answers and takes writes; what is wrong otherwise. A replica answers,
    /// to a PING too, and takes none.
    pub async fn usable(&self) -> anyhow::Result<()> {
        match &self.servers {
            Servers::One(one) => one.commands.usable().await,
            Servers::Cluster(cluster) => cluster.usable().await,
        }
    }

    /// As [`Redis::usable`], by a real write: a server whose memory is used up, or that cannot save, answers everything
    /// else. Of a cluster one master is written to; each of them is asked the rest.
    pub async fn writable(&self) -> anyhow::Result<()> {
        self.usable().await?;
        let mut write = deadpool_redis::redis::cmd("SET");
        write.arg(format!("{}:{{ready}}", self.prefix)).arg(1).arg("PX").arg(WRITTEN_FOR_MS);
        Ok(write.query_async(&mut self.commands()).await?)
    }

    /// Which processes of Redis serve, sorted; of a cluster the masters'. Another id is another process, which may know
    /// less than the one before.
    pub async fn run_ids(&self) -> anyhow::Result<Vec<String>> {
        let of = |(_, info): (String, InfoDict)| info.get("run_id").context("a Redis without a run_id");
        let mut ids: Vec<String> = self.info("server").await?.into_iter().map(of).collect::<Result<_, _>>()?;
        ids.sort();
        Ok(ids)
    }

    /// Refuses a replica and a server that may drop keys on its own, and says when a restart of it would lose data.
    pub async fn require_safe_server(&self) -> anyhow::Result<()> {
        self.usable().await.context("REDIS_URL must lead to a server that takes writes")?;
        if let Some(why) = self.eviction().await? {
            bail!("{why}. Set `maxmemory-policy noeviction` (or maxmemory 0) and start again");
        }
        for (server, persistence) in self.info("persistence").await? {
            let is = |what| persistence.get::<i64>(what).unwrap_or(0) == 1;
            // While it reads its data it says that it has none.
            if !is("aof_enabled") && !is("loading") {
                tracing::warn!(
                    server,
                    "redis has no append-only file: a restart of it forgets what is queued, which then waits for the sweeps"
                );
            }
        }
        for server in self.expiring_in_turn().await {
            tracing::warn!(
                server,
                "redis frees what expires in the thread that answers (lazyfree-lazy-expire no): a large key then holds up \
                 everybody. Set `lazyfree-lazy-expire yes`"
            );
        }
        for (server, cluster) in self.info("cluster").await? {
            let is_node = cluster.get::<i64>("cluster_enabled").unwrap_or(0) == 1;
            if is_node && matches!(self.servers, Servers::One(_)) {
                tracing::warn!(server, "redis is a node of a cluster: REDIS_URL should begin with redis-cluster://");
            }
        }
        Ok(())
    }

    /// The servers, of a cluster the masters, that free what expires in their main thread. One that does not let its settings
    /// be read, as a managed one may, is not among them.
    async fn expiring_in_turn(&self) -> Vec<String> {
        let mut asked = deadpool_redis::redis::cmd("CONFIG");
        asked.arg("GET").arg("lazyfree-lazy-expire");
        let one = "Redis".to_owned();
        let answers: RedisResult<HashMap<String, HashMap<String, String>>> = match &self.servers {
            Servers::One(_) => asked.query_async(&mut self.commands()).await.map(|found| HashMap::from([(one, found)])),
            Servers::Cluster(cluster) => cluster.of_all_masters(asked).await,
        };
        let off = |(server, found): (String, HashMap<String, String>)| {
            found.get("lazyfree-lazy-expire").is_some_and(|value| value == "no").then_some(server)
        };
        answers.unwrap_or_default().into_iter().filter_map(off).collect()
    }

    /// Why the server, of a cluster a master, may drop keys on its own; `None` when it may not. Both settings that decide it
    /// can be changed while it runs.
    pub async fn eviction(&self) -> anyhow::Result<Option<String>> {
        let of = |(server, memory): (String, InfoDict)| {
            let policy: String = memory.get("maxmemory_policy").unwrap_or_default();
            let limit: u64 = memory.get("maxmemory").unwrap_or(0);
            (policy != "noeviction" && limit > 0)
                .then(|| format!("{server} has maxmemory-policy {policy}: it may drop queues and reservations"))
        };
        Ok(self.info("memory").await?.into_iter().find_map(of))
    }

    /// A section of INFO of every server, of a cluster every master, with what to call it.
    async fn info(&self, section: &str) -> anyhow::Result<Vec<(String, InfoDict)>> {
        let reply: Value = deadpool_redis::redis::cmd("INFO")
            .arg(section)
            .query_async(&mut self.commands())
            .await
            .with_context(|| format!("reading INFO {section} from Redis"))?;
        let named = match reply {
            Value::Map(nodes) => nodes,
            one => vec![(Value::SimpleString("Redis".to_owned()), one)],
        };
        let read = |(name, info)| Ok((from_redis_value(name)?, from_redis_value(info)?));
        named.into_iter().map(read).collect::<Result<_, deadpool_redis::redis::ParsingError>>().context("reading INFO")
    }
}

impl One {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let place = place(url).context("parsing REDIS_URL")?;
        let client = Client::open(place.clone()).context("parsing REDIS_URL")?;
        let commands = Shared::connect(client.clone())
            .await
            .with_context(|| format!("connecting to Redis at {} (REDIS_URL); does it run?", place.addr()))?;
        // No response timeout here: a blocking read's own BLOCK argument bounds it.
        let connection =
            AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(CONNECT_TIMEOUT));
        let manager = deadpool_redis::Manager::new_with_config(place, connection).context("parsing REDIS_URL")?;
        let blocking = deadpool_redis::Pool::builder(manager)
            .max_size(POOL_SIZE)
            .runtime(deadpool_redis::Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .build()
            .context("building the Redis pool")?;
        Ok(Self { commands, blocking, client: Arc::new(client) })
    }
}

/// A command is small and waits for its answer: the system must not hold one back to fill a packet (Nagle), which the
/// driver lets it do unless told.
fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// Where a server is, as every connection to it is made.
fn place(url: &str) -> RedisResult<ConnectionInfo> {
    Ok(url.into_connection_info()?.set_tcp_settings(tcp_settings()))
}

/// The shared connection; cheap to clone.
#[derive(Clone)]
pub enum Commands {
    /// To the only server.
    One(Watched<ConnectionManager>),
    /// To every node.
    Cluster(Watched<ClusterCommands>),
}

/// A connection of one's own.
pub enum Blocking {
    /// To the only server.
    One(deadpool_redis::Connection),
    /// To every node, with the right to have it.
    Cluster(ClusterCommands, OwnedSemaphorePermit),
}

impl Blocking {
    /// Not back to the pool: one that leads to a server which is a replica now would pass there for a good one.
    pub fn discard(self) {
        if let Self::One(connection) = self {
            drop(deadpool_redis::Connection::take(connection));
        }
    }
}

/// Passes everything on to the connection inside.
macro_rules! passes_on {
    ($kind:ident: $($variant:pat => $connection:ident),+) => {
        impl ConnectionLike for $kind {
            fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
                match self {
                    $($variant => $connection.req_packed_command(command)),+
                }
            }
            fn req_packed_commands<'a>(
                &'a mut self,
                pipeline: &'a Pipeline,
                offset: usize,
                count: usize,
            ) -> RedisFuture<'a, Vec<Value>> {
                match self {
                    $($variant => $connection.req_packed_commands(pipeline, offset, count)),+
                }
            }
            fn get_db(&self) -> i64 {
                match self {
                    $($variant => $connection.get_db()),+
                }
            }
        }
    };
}
passes_on!(Commands: Self::One(one) => one, Self::Cluster(cluster) => cluster);
passes_on!(Blocking: Self::One(one) => one, Self::Cluster(cluster, _) => cluster);

impl Shareable for ConnectionManager {
    const IS_ONE_SERVER: bool = true;
    type Source = Client;

    async fn connect(client: &Client) -> anyhow::Result<Self> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(3)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(500))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(CONNECT_TIMEOUT));
        Ok(Self::new_with_config(client.clone(), config).await?)
    }

    async fn usable(&mut self) -> anyhow::Result<()> {
        let role: Vec<Value> = deadpool_redis::redis::cmd("ROLE").query_async(self).await?;
        let role: Option<String> = role.into_iter().next().map(from_redis_value).transpose()?;
        if role.as_deref() == Some("master") { Ok(()) } else { bail!(REPLICA) }
    }
}

/// What a server says that takes no writes for now: its memory is used up (`maxmemory`), it cannot save what it has, or too
/// few replicas follow it. A script passes it on, in versions before 7 within a text of its own.
const NO_WRITES: [&str; 3] = ["OOM", "MISCONF", "NOREPLICAS"];

fn refuses_writes(error: &deadpool_redis::redis::RedisError) -> bool {
    let said = error.detail().unwrap_or_default();
    NO_WRITES.iter().any(|code| {
        error.code() == Some(code) || said.split_whitespace().any(|word| word.trim_start_matches('-') == *code)
    })
}

/// Whether an error says that Redis cannot be reached or cannot serve now.
pub fn is_unavailable(error: &deadpool_redis::redis::RedisError) -> bool {
    use deadpool_redis::redis::{ErrorKind, ServerErrorKind};
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        // Of a cluster whose slot is on its way or without a master: it was refused as long as anybody had patience.
        || error.is_cluster_error()
        || refuses_writes(error)
        || matches!(
            error.kind(),
            ErrorKind::ClusterConnectionNotFound
                | ErrorKind::Server(
                    ServerErrorKind::BusyLoading
                        | ServerErrorKind::MasterDown
                        | ServerErrorKind::ReadOnly
                        // A node that has just joined is given scripts when it has a slot.
                        | ServerErrorKind::NoScript
                )
        )
}

/// Whether the text is an address of Redis, or of a cluster of it.
pub fn is_address(text: &str) -> bool {
    let nodes = cluster::nodes_of(text).unwrap_or_else(|| vec![text.to_owned()]);
    !nodes.is_empty() && nodes.iter().all(|node| node.as_str().into_connection_info().is_ok())
}
