//! What is done to the servers and the processes, that it is told, and that they heal.

use std::time::{Duration, Instant};

use onrush::engine::QueueName;
use onrush::platform::clock::Clock;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::signals::Signal;
use super::ways::Ways;
use super::{Addresses, Random};
use crate::support::harness::eventually;
use crate::support::proxy::mysql::Trap;
use crate::support::servers::Addresses as Servers;
use crate::support::{Client, Harness, Options, Person, PrivateRedis, PrivateServers, Process};

/// The processes' own settings: short enough that a minute sees many of them strike.
const SETTINGS: &[(&str, &str)] = &[
    ("ONRUSH_ENGINE__LEASE_MS", "600"),
    ("ONRUSH_DATABASE__STATEMENT_TIMEOUT_MS", "2000"),
    ("ONRUSH_DATABASE__ACQUIRE_TIMEOUT_MS", "2000"),
];
const PROCESSES: usize = 2;

/// What may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Connections go silent, both ways or in one direction alone.
    MySqlSilent,
    MySqlDeaf,
    MySqlMute,
    MySqlReset,
    MySqlSlow,
    MySqlInPieces,
    MySqlCut,
    MySqlReadOnly,
    /// It lets our account have two connections.
    MySqlFull,
    /// Others have all of its connections.
    MySqlCrowded,
    MySqlKilled,
    /// Somebody changes a table that somebody else reads.
    SchemaHeldUp,
    CommitLost,
    CommitRolledBack,
    RedisSilent,
    RedisDeaf,
    RedisMute,
    RedisReset,
    RedisHangs,
    RedisKilled,
    RedisEmptied,
    RedisFull,
    ScriptsForgotten,
    /// Somebody deletes the stream in which the passes wait.
    StreamDeleted,
    /// Somebody writes over a key of a queue.
    KeyWrittenOver,
    /// A third process begins on a machine whose clock is wrong.
    ClockAhead,
    ProcessKilled,
    ProcessFrozen,
    ProcessStopped,
}

impl Fault {
    pub const ALL: [Self; 29] = [
        Self::MySqlSilent,
        Self::MySqlDeaf,
        Self::MySqlMute,
        Self::MySqlReset,
        Self::MySqlSlow,
        Self::MySqlInPieces,
        Self::MySqlCut,
        Self::MySqlReadOnly,
        Self::MySqlFull,
        Self::MySqlCrowded,
        Self::MySqlKilled,
        Self::SchemaHeldUp,
        Self::CommitLost,
        Self::CommitRolledBack,
        Self::RedisSilent,
        Self::RedisDeaf,
        Self::RedisMute,
        Self::RedisReset,
        Self::RedisHangs,
        Self::RedisKilled,
        Self::RedisEmptied,
        Self::RedisFull,
        Self::ScriptsForgotten,
        Self::StreamDeleted,
        Self::KeyWrittenOver,
        Self::ClockAhead,
        Self::ProcessKilled,
        Self::ProcessFrozen,
        Self::ProcessStopped,
    ];

    /// Each once, in random order.
    pub fn all_in_random_order(random: &mut Random) -> Vec<Self> {
        let mut all = Self::ALL.to_vec();
        for left in (1..all.len()).rev() {
            all.swap(left, random.below(left + 1));
        }
        all
    }
}

/// Whatever fails outside, no request fails by a fault of ours, and nothing panics.
fn no_fault_of_ours(process: &Process) {
    let log = process.log();
    let faults: Vec<&str> =
        log.lines().filter(|line| line.contains("request failed") || line.contains("panicked")).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

/// What a fault keeps while it lasts.
#[derive(Default)]
struct Held {
    /// Of statements that are on their way.
    traps: Vec<Trap>,
    /// Connections that somebody else has, or that somebody reads on.
    connections: Vec<MySqlConnection>,
    change: Option<JoinHandle<()>>,
    frozen: Option<usize>,
}

/// The servers, the processes, and the ways of each to the servers.
pub struct Town {
    /// Looks past the ways, as nobody's client.
    pub h: Harness,
    servers: PrivateServers,
    redis: PrivateRedis,
    pub(super) processes: Vec<Process>,
    /// Of each of them.
    ways: Vec<Ways>,
    addresses: Addresses,
    /// The process that a fault is about.
    pub(super) struck: Option<Client>,
    /// One whose clock is wrong.
    pub(super) wrong: Option<Harness>,
    held: Held,
    /// Who orders again and again, to see whether orders can be made: the answer is kept.
    prober: (Person, String),
}

impl Town {
    pub async fn new() -> Self {
        let (servers, redis) = (PrivateServers::start().await, PrivateRedis::start().await);
        let mysql = servers.addresses().mysql;
        let addresses = Servers { mysql, redis: redis.url().to_owned(), clean_up: false };
        let settings = vec![
            ("orders.owed_grace_s", "1".to_owned()),
            ("orders.pay_deadline_s", "5".to_owned()),
            // For as long as a run may be.
            ("auth.access_token_s", "86400".to_owned()),
        ];
        let h = Harness::with(Options { system_clock: true, settings, servers: Some(addresses) }).await;
        // An account that a read-only server refuses, as it refuses the service's in production.
        let account = format!("CREATE USER shop; GRANT ALL ON `{}`.* TO shop", h.database);
        sqlx::raw_sql(&account).execute(&h.app.db).await.unwrap();
        let prober = (h.register().await, h.course(1000).await.no());
        let (processes, ways, addresses) = (Vec::new(), Vec::new(), Addresses::default());
        let (struck, wrong, held) = (None, None, Held::default());
        let mut town = Self { h, servers, redis, processes, ways, addresses, struck, wrong, held, prober };
        for _ in 0..PROCESSES {
            town.start_process().await;
        }
        town
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    async fn start_process(&mut self) {
        let ways = Ways::new(&self.servers.addresses().mysql, self.redis.url()).await;
        let mysql = ways.to_mysql.database(&self.h.database).replacen("root@", "shop@", 1);
        let redis = ways.to_redis.url();
        // All behind one address, as behind a balancer: gateways call it, and the sandbox's pages are there.
        let public = self.h.client.base.clone();
        let places = [
            ("DATABASE_URL", mysql.as_str()),
            ("REDIS_URL", redis.as_str()),
            ("ONRUSH_HTTP__PUBLIC_URL", public.as_str()),
        ];
        let env: Vec<_> = SETTINGS.iter().copied().chain(places).collect();
        let process = self.h.process("api,worker,scheduler", &env).await;
        self.addresses.lock().unwrap().push(process.client.clone());
        self.processes.push(process);
        self.ways.push(ways);
    }

    /// Takes a process out, as a balancer does.
    fn take_process(&mut self, random: &mut Random) -> Process {
        let at = random.below(self.processes.len());
        let process = self.processes.remove(at);
        self.ways.remove(at);
        self.addresses.lock().unwrap().retain(|client| client.base != process.client.base);
        self.struck = Some(process.client.clone());
        process
    }

    /// As root at MySQL, past the way.
    async fn mysql(&self, statement: &str) {
        sqlx::raw_sql(statement).execute(&self.h.app.db).await.unwrap();
    }

    /// A connection to MySQL that is nobody's; none when it lets nobody in.
    async fn connect(&self, user: &str) -> Option<MySqlConnection> {
        let url = self.h.app.config.database_url.expose_secret().replacen("root@", &format!("{user}@"), 1);
        MySqlConnection::connect(&url).await.ok()
    }

    /// The queue of the passes.
    fn passes(&self) -> QueueName {
        "system".parse().unwrap()
    }

    /// Makes it happen, waits until it is told, and ends what does not end by itself.
    pub async fn strike(&mut self, fault: Fault, random: &mut Random, patience: Duration) -> Option<Signal> {
        let (before, long) = (self.before().await, random.pause(500, 4000));
        self.cause(fault, random).await;
        let told = self.is_told(fault, &before, long, patience).await;
        self.mend(fault).await;
        told
    }

    async fn cause(&mut self, fault: Fault, random: &mut Random) {
        // The ways of one process, or those of all.
        let one = random.below(self.processes.len() + 1);
        let struck = self.ways.iter().enumerate().filter(|(at, _)| *at == one || one == self.processes.len());
        self.held.traps = struck.flat_map(|(_, ways)| ways.cause(fault)).collect();
        match fault {
            Fault::MySqlReadOnly => self.mysql("SET GLOBAL read_only = 1").await,
            Fault::MySqlFull => {
                self.mysql("ALTER USER shop WITH MAX_USER_CONNECTIONS 2").await;
                self.reset_ways();
            }
            Fault::MySqlCrowded => self.mysql("SET GLOBAL max_connections = 10").await,
            Fault::MySqlKilled => self.servers.change(|servers| servers.mysql.kill()).await,
            Fault::SchemaHeldUp => self.hold_up_the_schema().await,
            Fault::RedisKilled => self.redis.restart().await,
            Fault::RedisEmptied => drop(self.redis.tell(&["FLUSHALL"]).await),
            Fault::RedisFull => drop(self.redis.tell(&["CONFIG", "SET", "maxmemory", "1"]).await),
            Fault::ScriptsForgotten => drop(self.redis.tell(&["SCRIPT", "FLUSH"]).await),
            Fault::StreamDeleted => self.delete_the_passes().await,
            Fault::KeyWrittenOver => {
                let key = self.h.app.engine.keys(&"late".parse().unwrap()).delayed();
                self.redis.tell(&["SET", &key, "not a set"]).await;
            }
            Fault::ClockAhead => {
                let wrong = self.h.with_clock(Clock::Ahead(20 * 60_000)).await;
                wrong.start_workers();
                self.wrong = Some(wrong);
            }
            Fault::ProcessKilled | Fault::ProcessStopped => {
                let mut process = self.take_process(random);
                if fault == Fault::ProcessKilled {
                    process.kill().await
                } else {
                    process.terminate().await
                };
                no_fault_of_ours(&process);
            }
            Fault::ProcessFrozen => {
                let at = random.below(self.processes.len());
                self.processes[at].signal("STOP");
                self.struck = Some(self.processes[at].client.clone());
                self.held.frozen = Some(at);
            }
            _ => {}
        }
    }

    /// Every connection of ours to MySQL is broken.
    fn reset_ways(&self) {
        self.ways.iter().for_each(|ways| ways.to_mysql.reset());
    }

    /// What has to be done again and again until somebody notices.
    pub(super) async fn press(&mut self, fault: Fault) {
        if fault != Fault::MySqlCrowded {
            return;
        }
        // Each takes a place that a process had, and keeps it.
        self.reset_ways();
        while let Some(taken) = self.connect("shop").await {
            self.held.connections.push(taken);
        }
    }

    /// A table is changed while somebody reads it; everybody else waits behind the change.
    async fn hold_up_the_schema(&mut self) {
        let (mut reads, mut changes) =
            (self.connect("root").await.expect("a connection"), self.connect("root").await.expect("a connection"));
        let read = "START TRANSACTION; SELECT COUNT(*) FROM courses";
        sqlx::raw_sql(read).execute(&mut reads).await.unwrap();
        self.held.connections.push(reads);
        self.held.change = Some(tokio::spawn(async move {
            let change = "ALTER TABLE courses ADD COLUMN torture INT NULL; ALTER TABLE courses DROP COLUMN torture";
            (&mut changes).execute(sqlx::raw_sql(change)).await.unwrap();
        }));
    }

    /// What waits in the queue of the passes is gone, as when somebody clears it by hand.
    async fn delete_the_passes(&self) {
        let (engine, queue) = (&self.h.app.engine, self.passes());
        let stream = engine.keys(&queue).stream();
        engine.set_paused(&queue, true).await.unwrap();
        // What ran before has ended by then, so that what is in the stream waits there.
        eventually(async || {
            let depth = engine.depth(&queue).await.unwrap();
            depth.running == 0 && depth.depth > 0
        })
        .await;
        self.redis.tell(&["DEL", &stream]).await;
        engine.set_paused(&queue, false).await.unwrap();
    }

    async fn mend(&mut self, fault: Fault) {
        self.ways.iter().for_each(Ways::mend);
        match fault {
            Fault::MySqlReadOnly => self.mysql("SET GLOBAL read_only = 0").await,
            Fault::MySqlFull => self.mysql("ALTER USER shop WITH MAX_USER_CONNECTIONS 0").await,
            Fault::MySqlCrowded => self.mysql("SET GLOBAL max_connections = 151").await,
            Fault::MySqlKilled => self.servers.change(|servers| servers.mysql.start()).await,
            Fault::RedisFull => drop(self.redis.tell(&["CONFIG", "SET", "maxmemory", "0"]).await),
            Fault::KeyWrittenOver => {
                let key = self.h.app.engine.keys(&"late".parse().unwrap()).delayed();
                self.redis.tell(&["DEL", &key]).await;
            }
            Fault::ClockAhead => {
                let mut wrong = self.wrong.take().expect("a process");
                assert!(wrong.stop().await, "it had nothing to do");
            }
            Fault::ProcessKilled | Fault::ProcessStopped => self.start_process().await,
            Fault::ProcessFrozen => {
                if let Some(at) = self.held.frozen.take() {
                    self.processes[at].signal("CONT");
                }
            }
            _ => {}
        }
        // Who reads a table ends with its connection, and the change goes on.
        let change = self.held.change.take();
        self.held = Held::default();
        if let Some(change) = change {
            change.await.expect("a change of the schema");
        }
    }

    async fn are_ready(&self) -> bool {
        for process in &self.processes {
            let asked = process.client.http.get(format!("{}/readyz", process.client.base));
            let answer = asked.timeout(Duration::from_secs(5)).send().await;
            if !answer.is_ok_and(|answer| answer.status() == 200) {
                return false;
            }
        }
        true
    }

    /// Whether an order can be made at every process: that takes a transaction.
    async fn take_orders(&self) -> bool {
        let (person, course) = &self.prober;
        for process in &self.processes {
            let order = process.client.request(Method::POST, "/orders", person).header("idempotency-key", "probe");
            let order = order.json(&json!({ "course_ids": [course] })).timeout(Duration::from_secs(20));
            if !order.send().await.is_ok_and(|answer| answer.status() == 201) {
                return false;
            }
        }
        true
    }

    /// Waits until every process is ready again and takes orders, unaided, and nothing says any more that it is not so.
    pub async fn heals(&self, fault: Fault, patience: Duration) {
        self.processes.iter().for_each(no_fault_of_ours);
        let began = Instant::now();
        while !(self.are_ready().await && self.take_orders().await && self.is_quiet().await) {
            if began.elapsed() > patience {
                for process in &self.processes {
                    let asked = process.client.http.get(format!("{}/readyz", process.client.base)).send().await;
                    let text = match asked {
                        Ok(answer) => answer.text().await.unwrap_or_default(),
                        Err(error) => error.to_string(),
                    };
                    eprintln!("{}: {text}", process.client.base);
                }
                panic!("{fault:?} did not heal in {patience:?}\n{}", self.tails());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}
