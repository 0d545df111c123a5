//! Redis Cluster: the keys are divided over several servers by 16,384 slots, and slots move while we run.
//!
//! The driver knows which node has which slot and learns anew when it was told `MOVED`. What to do with a command that
//! a node has refused is decided here, because the driver's own way does not fit a connection that many share: it sends
//! `ASKING` and the command one after the other, and another's command comes between; and it repeats a command whose
//! connection broke, which may have been done. Here only what was refused is asked again, for a bounded time:
//!
//! | the node says | it means | what we do |
//! |---|---|---|
//! | `MOVED` | the slot is another node's | ask again, by the slots as they are now |
//! | `ASK` | the slot is on its way, and this key is there already | ask there, with `ASKING` in the same write |
//! | `TRYAGAIN` | the slot is on its way, and the command's keys are here and there | ask again |
//! | `CLUSTERDOWN`, `LOADING`, `READONLY` … | the slot has no master just now | ask again |

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use deadpool_redis::redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use deadpool_redis::redis::cluster::{ClusterClient, ClusterClientBuilder};
use deadpool_redis::redis::cluster_async::ClusterConnection;
use deadpool_redis::redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use deadpool_redis::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, InfoDict, Pipeline,
    RedisError, RedisFuture, RedisResult, ServerErrorKind, Value, cmd, from_redis_value, pipe,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::shared::{Shareable, Shared, Watched};
use super::{CONNECT_TIMEOUT, POOL_SIZE, RESPONSE_TIMEOUT, none_was_free, place, tcp_settings};

/// The connections to all nodes have failed when they are not there after this long: those to the nodes that are named,
/// an answer that tells of the others, and those to these.
const ALL_CONNECT_TIMEOUT: Duration = Duration::from_secs(7);

/// A command that was refused is asked again for this long. A slot with few keys moves in less.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause before it is asked again, at first and at most; it doubles.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// How a cluster is written in `REDIS_URL`, and how one of its nodes is to the driver.
const SCHEMES: [(&str, &str); 2] = [("redis-cluster://", "redis://"), ("rediss-cluster://", "rediss://")];

/// A handle on a cluster.
pub(super) struct Cluster {
    commands: Shared<ClusterCommands>,
    nodes: Vec<ConnectionInfo>,
    /// Connections of their own for blocking reads.
    blocking: Arc<Semaphore>,
    /// Which node was subscribed to last.
    subscribed: AtomicUsize,
}

/// A connection to every node; cheap to clone.
#[derive(Clone)]
pub struct ClusterCommands {
    nodes: ClusterConnection,
    asked: Arc<AskedNodes>,
}

/// Connections to the nodes that have taken keys of a slot and not yet the slot.
struct AskedNodes {
    /// How to reach a node, but for its address.
    like: ConnectionInfo,
    config: AsyncConnectionConfig,
    connections: Mutex<HashMap<String, MultiplexedConnection>>,
}

/// The nodes that `url` names, each as a URL of one server: `redis-cluster://user:password@host:port,host:port`. `None`
/// when it names no cluster.
pub(super) fn nodes_of(url: &str) -> Option<Vec<String>> {
    let (rest, scheme) = SCHEMES.iter().find_map(|(own, node)| Some((url.strip_prefix(own)?, node)))?;
    let (place, options) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (who, hosts) = place.rfind('@').map_or(("", place), |at| place.split_at(at + 1));
    Some(hosts.split(',').map(|host| format!("{scheme}{who}{}{options}", host.trim())).collect())
}

impl Cluster {
    /// Connects to the cluster that `url` names; `None` when it names none.
    pub(super) async fn connect(url: &str) -> anyhow::Result<Option<Self>> {
        let Some(nodes) = nodes_of(url) else { return Ok(None) };
        let nodes: RedisResult<Vec<ConnectionInfo>> = nodes.iter().map(|node| place(node)).collect();
        let nodes = nodes.context("parsing REDIS_URL")?;
        ensure!(
            nodes.iter().all(|node| node.redis_settings().db() == 0),
            "REDIS_URL: a cluster has the database 0 alone"
        );
        let commands = Shared::connect(nodes.clone()).await.context("connecting to the Redis cluster")?;
        let blocking = Arc::new(Semaphore::new(POOL_SIZE));
        Ok(Some(Self { commands, nodes, blocking, subscribed: AtomicUsize::new(0) }))
    }

    pub(super) fn commands(&self) -> Watched<ClusterCommands> {
        self.commands.get()
    }

    /// What each master answers, with what to call it.
    pub(super) async fn of_all_masters<T: FromRedisValue>(&self, command: Cmd) -> RedisResult<HashMap<String, T>> {
        self.commands.current().of_all_masters(command).await
    }

    /// Whether every master answers and takes writes.
    pub(super) async fn usable(&self) -> anyhow::Result<()> {
        self.commands.usable().await
    }

    /// A connection of one's own without a limit to the time of an answer, and the right to have one.
    pub(super) async fn blocking(&self) -> anyhow::Result<(ClusterCommands, OwnedSemaphorePermit)> {
        let place = tokio::time::timeout(CONNECT_TIMEOUT, self.blocking.clone().acquire_owned()).await;
        let place = place.inspect_err(|_| none_was_free()).context("waiting for a place for a Redis connection")??;
        Ok((ClusterCommands::to(&self.nodes, None).await.context("connecting to the Redis cluster")?, place))
    }

    /// Places that are taken of those for blocking reads.
    pub(super) fn blocking_use(&self) -> usize {
        POOL_SIZE - self.blocking.available_permits()
    }

    /// A subscription. What is published on any node is heard on every one, so it is made at the first node that takes
    /// it; the next one begins with the next node, since the last may be gone.
    pub(super) async fn subscribe(&self) -> anyhow::Result<PubSub> {
        let mut last = None;
        for _ in &self.nodes {
            let turn = self.subscribed.fetch_add(1, Ordering::Relaxed);
            let client = Client::open(self.nodes[turn % self.nodes.len()].clone()).context("parsing REDIS_URL")?;
            match tokio::time::timeout(CONNECT_TIMEOUT, client.get_async_pubsub()).await {
                Ok(Ok(subscription)) => return Ok(subscription),
                Ok(Err(error)) => last = Some(anyhow::Error::from(error)),
                Err(late) => last = Some(late.into()),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("REDIS_URL names no node"))).context("no node takes a subscription")
    }
}

impl Shareable for ClusterCommands {
    const IS_ONE_SERVER: bool = false;
    type Source = Vec<ConnectionInfo>;

    async fn connect(nodes: &Vec<ConnectionInfo>) -> anyhow::Result<Self> {
        Ok(Self::to(nodes, Some(RESPONSE_TIMEOUT)).await?)
    }

    /// Whether every master answers, and every slot has one.
    async fn usable(&mut self) -> anyhow::Result<()> {
        let answers: HashMap<String, InfoDict> = self.of_all_masters(cmd("CLUSTER").arg("INFO").to_owned()).await?;
        for (master, info) in &answers {
            let state: String = info.get("cluster_state").unwrap_or_default();
            ensure!(state == "ok", "the state of the Redis cluster is {state}, says {master}");
            // The driver leaves out, without a word, one that it could not connect to.
            let size: usize = info.get("cluster_size").unwrap_or(0);
            ensure!(answers.len() >= size, "of {size} masters of the Redis cluster {} answer", answers.len());
        }
        Ok(())
    }
}

impl ClusterCommands {
    /// Connects to every node of the cluster that these lead to. Those that are silent are left out.
    async fn to(nodes: &[ConnectionInfo], response_timeout: Option<Duration>) -> RedisResult<Self> {
        let mut builder = ClusterClientBuilder::new(nodes.to_vec())
            .retries(0)
            .connection_timeout(CONNECT_TIMEOUT)
            .tcp_settings(tcp_settings());
        if let Some(timeout) = response_timeout {
            builder = builder.response_timeout(timeout);
        }
        let client: ClusterClient = builder.build()?;
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(response_timeout)
            .set_connection_timeout(Some(CONNECT_TIMEOUT));
        // A builder without nodes was refused above.
        let like = nodes[0].clone();
        let asked = Arc::new(AskedNodes { like, config, connections: Mutex::default() });
        let connecting = tokio::time::timeout(ALL_CONNECT_TIMEOUT, client.get_async_connection()).await;
        let nodes = connecting.map_err(|late| RedisError::from(io::Error::new(io::ErrorKind::TimedOut, late)))??;
        Ok(Self { nodes, asked })
    }

    /// What each master says to a command, by its address.
    pub(super) async fn of_all_masters<T: FromRedisValue>(&mut self, command: Cmd) -> RedisResult<HashMap<String, T>> {
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        Ok(from_redis_value(self.nodes.route_command(command, masters).await?)?)
    }

    /// Asks until a node takes the command, or patience ends.
    async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        let deadline = Instant::now() + PATIENCE;
        let (mut pause, longest) = PAUSES;
        loop {
            let mut answer = self.nodes.req_packed_command(command).await.and_then(taken);
            if let Err(refusal) = &answer
                && refusal.kind() == ErrorKind::Server(ServerErrorKind::Ask)
                && let Some((node, _)) = refusal.redirect_node()
            {
                answer = self.asked.ask(node, command).await.and_then(taken);
            }
            match answer {
                Err(error) if is_refusal(&error) && Instant::now() < deadline => {}
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// A pipeline is asked at one node. Where that node refuses a part of it, its commands go one by one: those that
    /// were done are done twice, so a pipeline has only commands that may be. A transaction is asked again as a whole.
    async fn ask_all(&mut self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let deadline = Instant::now() + PATIENCE;
        let (mut pause, longest) = PAUSES;
        loop {
            match self.nodes.req_packed_commands(pipeline, offset, count).await {
                Err(error) if is_refusal(&error) && Instant::now() < deadline => {}
                answer => return answer,
            }
            if !pipeline.is_transaction() {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        let mut answers = Vec::with_capacity(count);
        for command in pipeline.cmd_iter() {
            answers.push(self.ask(command).await?);
        }
        Ok(answers)
    }
}

impl AskedNodes {
    async fn ask(&self, address: &str, command: &Cmd) -> RedisResult<Value> {
        let mut node = self.node(address).await?;
        let mut both = pipe();
        both.cmd("ASKING").add_command(command.clone());
        let answers = node.req_packed_commands(&both, 0, 2).await;
        if answers.as_ref().is_err_and(RedisError::is_unrecoverable_error) {
            self.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
        }
        Ok(answers?.pop().unwrap_or(Value::Nil))
    }

    async fn node(&self, address: &str) -> RedisResult<MultiplexedConnection> {
        let known = self.connections.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
        if let Some(connection) = known {
            return Ok(connection);
        }
        let unreadable = || RedisError::from((ErrorKind::Client, "not a node's address", address.to_owned()));
        let (host, port) = address.rsplit_once(':').ok_or_else(unreadable)?;
        let (host, port) = (host.to_owned(), port.parse().map_err(|_| unreadable())?);
        let addr = match self.like.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let client = Client::open(self.like.clone().set_addr(addr))?;
        let connection = client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.insert(address.to_owned(), connection.clone());
        Ok(connection)
    }
}

/// A refusal as an error; any other error is the command's answer.
fn taken(answer: Value) -> RedisResult<Value> {
    match answer {
        Value::ServerError(error) => {
            let refusal = RedisError::from(error.clone());
            if is_refusal(&refusal) { Err(refusal) } else { Ok(Value::ServerError(error)) }
        }
        answer => Ok(answer),
    }
}

/// Whether a node has refused a command without doing anything of it.
fn is_refusal(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
        )
    )
}

impl ConnectionLike for ClusterCommands {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.ask(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.ask_all(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::nodes_of;

    #[test]
    fn a_cluster_is_named_by_some_of_its_nodes() {
        let nodes = |url| nodes_of(url).unwrap();
        assert_eq!(nodes("redis-cluster://a:1,b:2"), ["redis://a:1", "redis://b:2"]);
        assert_eq!(nodes("rediss-cluster://:p%40,@[::1]:7000/"), ["rediss://:p%40,@[::1]:7000/"]);
        assert_eq!(nodes("redis-cluster://u:p@a:1, b:2/?protocol=resp2").len(), 2);
        assert_eq!(nodes("redis-cluster://u:p@a,b?x=y@z"), ["redis://u:p@a?x=y@z", "redis://u:p@b?x=y@z"]);
        assert_eq!(nodes_of("redis://a:1/0"), None);
    }
}
