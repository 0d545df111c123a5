//! A Redis Cluster of the tests' own: every node a `redis-server` on loopback. Slots can be moved between its nodes as
//! an operator does, key by key.

use std::net::TcpListener;
use std::time::Duration;

use onrush::dev::servers::{Care, REDIS_PROGRAMS, find, make_private};
use onrush::dev::supervised::{Recipe, Supervised};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, cmd};
use tempfile::TempDir;

use super::harness::eventually;
use super::servers::{blocking, new_dir};

/// A node's second port, on which it speaks with the others, is its first one and this.
const BUS: u16 = 10_000;
/// Every slot there is.
const SLOTS: u16 = 16_384;
/// With what a URL has other meanings for.
const PASSWORD: &str = "p@ss,word/1";
/// The same, in a URL.
const PASSWORD_IN_URL: &str = "p%40ss%2Cword%2F1";

/// A running cluster. Its nodes end when this is dropped.
pub struct Cluster {
    nodes: Vec<Node>,
    /// Dropped last: the servers are gone by then.
    _dir: Option<TempDir>,
}

struct Node {
    port: u16,
    id: String,
    recipe: Recipe,
    running: Option<Supervised>,
}

impl Cluster {
    /// Three masters, with `replicas` each.
    pub async fn start(replicas: usize) -> Self {
        let dir = new_dir();
        let path = dir.path().to_owned();
        Self { _dir: Some(dir), ..Self::start_in(path, replicas, Care::Safe).await }
    }

    /// In a directory that the nodes remove themselves if they are [`Care::Fast`].
    pub async fn start_in(dir: std::path::PathBuf, replicas: usize, care: Care) -> Self {
        let count = 3 * (1 + replicas);
        let nodes = blocking(move || free_ports(count).into_iter().map(|port| Node::start(&dir, port, care)).collect());
        let mut cluster = Self { nodes: nodes.await, _dir: None };
        for at in 0..count {
            cluster.nodes[at].id = cluster.ask(at, cmd("CLUSTER").arg("MYID")).await;
        }
        let share = SLOTS.div_ceil(3);
        for (at, first) in (0..3).zip((0..SLOTS).step_by(share.into())) {
            let slots: Vec<u16> = (first..SLOTS.min(first + share)).collect();
            let _: String = cluster.ask(at, cmd("CLUSTER").arg("ADDSLOTS").arg(slots)).await;
            let _: String = cluster.ask(at, cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(at + 1)).await;
        }
        for at in 1..count {
            let meet = cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(cluster.nodes[0].port).to_owned();
            let _: String = cluster.ask(at, &meet).await;
        }
        cluster.agreed(&format!("cluster_known_nodes:{count}\r\n")).await;
        for at in 3..count {
            let replicate = cmd("CLUSTER").arg("REPLICATE").arg(&cluster.nodes[at % 3].id).to_owned();
            let _: String = cluster.ask(at, &replicate).await;
        }
        cluster.agreed("cluster_state:ok\r\n").await;
        cluster
    }

    /// Waits until every node that runs says this of the cluster.
    pub async fn agreed(&self, word: &str) {
        for at in (0..self.nodes.len()).filter(|&at| self.nodes[at].running.is_some()) {
            eventually(async || self.ask::<String>(at, cmd("CLUSTER").arg("INFO")).await.contains(word)).await;
        }
    }

    /// The address of the cluster, by all of its nodes.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis-cluster://:{PASSWORD_IN_URL}@{}", nodes.join(","))
    }

    /// Asks one node.
    pub async fn ask<T: redis::FromRedisValue>(&self, at: usize, command: &Cmd) -> T {
        let mut node = self.node(at).await;
        command.query_async(&mut node).await.unwrap_or_else(|error| panic!("node {at}: {error}"))
    }

    async fn node(&self, at: usize) -> MultiplexedConnection {
        let client = Client::open(self.nodes[at].url()).expect("an address");
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
        client.get_multiplexed_async_connection_with_config(&config).await.expect("a node")
    }

    /// The slot of a key.
    pub async fn slot(&self, key: &str) -> u16 {
        self.ask(0, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await
    }

    /// Which of the first nodes has a slot.
    pub async fn owner(&self, slot: u16) -> usize {
        self.owner_at(0, slot).await
    }

    /// As one node knows it.
    async fn owner_at(&self, at: usize, slot: u16) -> usize {
        type Range = (u16, u16, (String, u16));
        let ranges: Vec<redis::Value> = self.ask(at, cmd("CLUSTER").arg("SLOTS")).await;
        let ranges = ranges.into_iter().map(|range| {
            let redis::Value::Array(mut parts) = range else { panic!("{range:?}") };
            let node: Vec<redis::Value> = redis::from_redis_value(parts.remove(2)).unwrap();
            let port: u16 = redis::from_redis_value(node[1].clone()).unwrap();
            let bound = |value: &redis::Value| redis::from_redis_value::<u16>(value.clone()).unwrap();
            (bound(&parts[0]), bound(&parts[1]), (String::new(), port))
        });
        let (_, _, (_, port)): Range =
            ranges.into_iter().find(|(low, high, _)| (*low..=*high).contains(&slot)).unwrap();
        self.nodes.iter().position(|node| node.port == port).unwrap()
    }

    /// Begins to move a slot: from here on what it has not is looked for at the other node.
    pub async fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let (giver, taker) = (&self.nodes[from].id, &self.nodes[to].id);
        let set = |state: &str, node: &str| cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(node).to_owned();
        let _: String = self.ask(to, &set("IMPORTING", giver)).await;
        let _: String = self.ask(from, &set("MIGRATING", taker)).await;
    }

    /// Moves keys of a slot, at most so many; how many it found.
    pub async fn move_keys(&self, slot: u16, from: usize, to: usize, most: usize) -> usize {
        let keys: Vec<String> = self.ask(from, cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(most)).await;
        if !keys.is_empty() {
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.nodes[to].port).arg("").arg(0).arg(5000);
            let _: String = self.ask(from, migrate.arg("AUTH").arg(PASSWORD).arg("KEYS").arg(&keys)).await;
        }
        keys.len()
    }

    /// Ends the move of a slot, when nothing of it is left.
    pub async fn end_move(&self, slot: u16, from: usize, to: usize) {
        for at in [to, from].into_iter().chain((0..3).filter(|at| ![to, from].contains(at))) {
            let set = cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("NODE").arg(&self.nodes[to].id).to_owned();
            let _: String = self.ask(at, &set).await;
        }
        // Not before they agree: two nodes that take slots at once give themselves the same number, and the one of them
        // that then takes a higher one may take its former slots back with it.
        eventually(async || self.agree_on(slot, to).await).await;
    }

    async fn agree_on(&self, slot: u16, owner: usize) -> bool {
        let mut epochs = Vec::new();
        for at in 0..3 {
            let info: String = self.ask(at, cmd("CLUSTER").arg("INFO")).await;
            epochs.extend(info.lines().find(|line| line.starts_with("cluster_current_epoch:")).map(str::to_owned));
            if self.owner_at(at, slot).await != owner {
                return false;
            }
        }
        epochs.windows(2).all(|two| two[0] == two[1])
    }

    /// Waits until the replicas of a node have what it has.
    pub async fn handed_on(&self, at: usize) {
        let offset = |info: &str, name: &str| {
            let value = info.lines().find_map(|line| line.split_once(name)).map(|(_, value)| value.to_owned());
            value.and_then(|value| value.split(',').next()?.parse::<u64>().ok())
        };
        eventually(async || {
            let info: String = self.ask(at, cmd("INFO").arg("replication")).await;
            offset(&info, ",offset=") >= offset(&info, "master_repl_offset:") && info.contains(",state=online")
        })
        .await;
    }

    /// Starts a node again that was killed, with the data it had.
    pub async fn revive(&mut self, at: usize) {
        let mut node = self.nodes.remove(at);
        let started = blocking(move || {
            node.run();
            node
        });
        self.nodes.insert(at, started.await);
    }

    /// Kills a node, as a power cut would.
    pub async fn kill(&mut self, at: usize) {
        let mut running = self.nodes[at].running.take().expect("a running node");
        let ended = blocking(move || running.signal("KILL").and_then(|()| running.wait()));
        ended.await.expect("an end");
    }

    /// Stops a node's process (`STOP`): its connections stay and nothing comes through them, as when its machine is gone.
    /// Or lets it go on (`CONT`).
    pub fn signal(&mut self, at: usize, name: &str) {
        self.nodes[at].running.as_mut().expect("a running node").signal(name).expect("a signal");
    }
}

impl Node {
    fn start(dir: &std::path::Path, port: u16, care: Care) -> Self {
        let own = make_private(&dir.join(format!("redis-{port}"))).expect("a directory");
        let durable = if care == Care::Safe { "yes" } else { "no" };
        let settings: [&[&str]; 13] = [
            &["--port", &port.to_string()],
            &["--bind", "127.0.0.1"],
            &["--requirepass", PASSWORD],
            &["--masterauth", PASSWORD],
            &["--cluster-enabled", "yes"],
            &["--cluster-config-file", "nodes.conf"],
            // A busy machine is no reason to think that a node has died.
            &["--cluster-node-timeout", if care == Care::Safe { "3000" } else { "15000" }],
            &["--dir", &own.to_string_lossy()],
            &["--appendonly", durable],
            // Left to the system, so that every answer is written before it is given: one that is killed has them all.
            &["--appendfsync", "no"],
            &["--save", ""],
            &["--maxmemory-policy", "noeviction"],
            &["--daemonize", "no"],
        ];
        let recipe = Recipe {
            name: "Redis",
            program: find(&REDIS_PROGRAMS).expect("redis-server or valkey-server"),
            args: settings.concat().into_iter().map(str::to_owned).collect(),
            env: Vec::new(),
            dir: own,
            throw_away: care == Care::Fast,
        };
        let mut node = Self { port, id: String::new(), recipe, running: None };
        node.run();
        node
    }

    fn run(&mut self) {
        let client = Client::open(self.url()).expect("an address");
        let answers = || {
            let ping = |mut node: redis::Connection| cmd("PING").query::<String>(&mut node);
            client.get_connection().and_then(ping).is_ok()
        };
        self.running = Some(self.recipe.start(answers).expect("a node"));
    }

    fn url(&self) -> String {
        format!("redis://:{PASSWORD_IN_URL}@127.0.0.1:{}", self.port)
    }
}

/// Ports that are free, as are the second ones that belong to them; below those that a system gives out by itself.
fn free_ports(count: usize) -> Vec<u16> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Elsewhere for each cluster and each run.
    let beginning = 12_000 + u16::try_from(uuid::Uuid::now_v7().as_u128() % 9_000).expect("a small number");
    let ports: Vec<u16> = (beginning..22_000)
        .chain(12_000..beginning)
        .filter(|&port| is_free(port) && is_free(port + BUS))
        .take(count)
        .collect();
    assert_eq!(ports.len(), count, "no ports are free");
    ports
}
