//! What is done to the servers and the processes, and that they heal.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::time::sleep;

use super::{Addresses, Random};
use crate::support::servers::Addresses as Servers;
use crate::support::{Harness, LostAt, Options, Person, PrivateRedis, PrivateServers, Process, Proxy};

/// The processes' own settings: short enough that a minute sees many of them strike.
const SETTINGS: &[(&str, &str)] = &[
    ("ONRUSH_ENGINE__LEASE_MS", "600"),
    ("ONRUSH_DATABASE__STATEMENT_TIMEOUT_MS", "2000"),
    ("ONRUSH_DATABASE__ACQUIRE_TIMEOUT_MS", "2000"),
];
const PROCESSES: usize = 2;

/// What may fail.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    MySqlSilent,
    MySqlReset,
    MySqlSlow,
    MySqlInPieces,
    MySqlCut,
    MySqlReadOnly,
    MySqlFull,
    MySqlKilled,
    CommitLost,
    CommitRolledBack,
    RedisSilent,
    RedisReset,
    RedisHangs,
    RedisKilled,
    RedisEmptied,
    RedisFull,
    ScriptsForgotten,
    ProcessKilled,
    ProcessFrozen,
    ProcessStopped,
}

impl Fault {
    pub const ALL: [Self; 20] = [
        Self::MySqlSilent,
        Self::MySqlReset,
        Self::MySqlSlow,
        Self::MySqlInPieces,
        Self::MySqlCut,
        Self::MySqlReadOnly,
        Self::MySqlFull,
        Self::MySqlKilled,
        Self::CommitLost,
        Self::CommitRolledBack,
        Self::RedisSilent,
        Self::RedisReset,
        Self::RedisHangs,
        Self::RedisKilled,
        Self::RedisEmptied,
        Self::RedisFull,
        Self::ScriptsForgotten,
        Self::ProcessKilled,
        Self::ProcessFrozen,
        Self::ProcessStopped,
    ];
}

/// Whatever fails outside, no request fails by a fault of ours, and nothing panics.
fn no_fault_of_ours(process: &Process) {
    let log = process.log();
    let faults: Vec<&str> =
        log.lines().filter(|line| line.contains("request failed") || line.contains("panicked")).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The servers, the ways to them, and the processes.
pub struct Town {
    /// Looks past the ways, as nobody's client.
    pub h: Harness,
    servers: PrivateServers,
    redis: PrivateRedis,
    to_mysql: Proxy,
    to_redis: Proxy,
    processes: Vec<Process>,
    addresses: Addresses,
    /// Who orders again and again, to see whether orders can be made: the answer is kept.
    prober: (Person, String),
}

impl Town {
    pub async fn new() -> Self {
        let (servers, redis) = (PrivateServers::start().await, PrivateRedis::start().await);
        let mysql = servers.addresses().mysql;
        let (to_mysql, to_redis) = (Proxy::to(&mysql).await, Proxy::to(redis.url()).await);
        let addresses = Servers { mysql, redis: redis.url().to_owned(), clean_up: false };
        let settings = vec![("orders.owed_grace_s", "1".to_owned()), ("orders.pay_deadline_s", "5".to_owned())];
        let h = Harness::with(Options { system_clock: true, settings, servers: Some(addresses) }).await;
        // An account that a read-only server refuses, as it refuses the service's in production.
        let account = format!("CREATE USER shop; GRANT ALL ON `{}`.* TO shop", h.database);
        sqlx::raw_sql(&account).execute(&h.app.db).await.unwrap();
        let prober = (h.register().await, h.course(1000).await.no());
        let (processes, addresses) = (Vec::new(), Addresses::default());
        let mut town = Self { h, servers, redis, to_mysql, to_redis, processes, addresses, prober };
        for _ in 0..PROCESSES {
            town.start_process().await;
        }
        town
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    async fn start_process(&mut self) {
        let mysql = self.to_mysql.database(&self.h.database).replacen("root@", "shop@", 1);
        let redis = self.to_redis.url();
        // All behind one address, as behind a balancer: gateways call it, and the sandbox's pages are there.
        let public = self.h.client.base.clone();
        let ways = [
            ("DATABASE_URL", mysql.as_str()),
            ("REDIS_URL", redis.as_str()),
            ("ONRUSH_HTTP__PUBLIC_URL", public.as_str()),
        ];
        let env: Vec<_> = SETTINGS.iter().copied().chain(ways).collect();
        let process = self.h.process("api,worker,scheduler", &env).await;
        self.addresses.lock().unwrap().push(process.client.clone());
        self.processes.push(process);
    }

    /// Takes a process out, as a balancer does.
    fn take_process(&mut self, random: &mut Random) -> Process {
        let at = random.below(self.processes.len());
        let process = self.processes.remove(at);
        self.addresses.lock().unwrap().retain(|client| client.base != process.client.base);
        process
    }

    /// As root at MySQL, past the way.
    async fn mysql(&self, statement: &str) {
        sqlx::raw_sql(statement).execute(&self.h.app.db).await.unwrap();
    }

    /// Makes it happen, and ends what does not end by itself. Whether some process said meanwhile that it was not ready.
    pub async fn strike(&mut self, fault: Fault, random: &mut Random) -> bool {
        let long = random.pause(500, 4000);
        match fault {
            Fault::MySqlSilent => self.to_mysql.silence(),
            Fault::MySqlReset => self.to_mysql.reset(),
            Fault::MySqlSlow => self.to_mysql.slow_down(Duration::from_millis(150)),
            Fault::MySqlInPieces => self.to_mysql.in_pieces_of(Some(1)),
            Fault::MySqlCut => self.to_mysql.cut_after(Some(20_000)),
            Fault::MySqlReadOnly => self.mysql("SET GLOBAL read_only = 1").await,
            Fault::MySqlFull => {
                self.mysql("ALTER USER shop WITH MAX_USER_CONNECTIONS 2").await;
                self.to_mysql.reset();
            }
            Fault::MySqlKilled => self.servers.change(|servers| servers.mysql.kill()).await,
            Fault::CommitLost | Fault::CommitRolledBack => {}
            Fault::RedisSilent => self.to_redis.silence(),
            Fault::RedisReset => self.to_redis.reset(),
            Fault::RedisHangs => self.to_redis.slow_down(Duration::from_secs(600)),
            Fault::RedisKilled => self.redis.restart().await,
            Fault::RedisEmptied => drop(self.redis.tell(&["FLUSHALL"]).await),
            Fault::RedisFull => drop(self.redis.tell(&["CONFIG", "SET", "maxmemory", "1"]).await),
            Fault::ScriptsForgotten => drop(self.redis.tell(&["SCRIPT", "FLUSH"]).await),
            Fault::ProcessKilled => {
                let mut process = self.take_process(random);
                process.kill().await;
                no_fault_of_ours(&process);
            }
            Fault::ProcessFrozen => {
                let at = random.below(self.processes.len());
                self.processes[at].signal("STOP");
                sleep(long).await;
                self.processes[at].signal("CONT");
            }
            Fault::ProcessStopped => {
                let mut process = self.take_process(random);
                process.terminate().await;
                no_fault_of_ours(&process);
            }
        }
        let traps = match fault {
            Fault::CommitLost => (0..5).map(|_| self.to_mysql.lose_commit(LostAt::Answer, "")).collect(),
            Fault::CommitRolledBack => (0..5).map(|_| self.to_mysql.deadlock_at_commit("")).collect(),
            _ => Vec::new(),
        };
        let was_seen = self.is_seen(long).await;
        drop(traps);
        self.mend(fault).await;
        was_seen
    }

    async fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::MySqlSlow => self.to_mysql.slow_down(Duration::ZERO),
            Fault::MySqlInPieces => self.to_mysql.in_pieces_of(None),
            Fault::MySqlCut => self.to_mysql.cut_after(None),
            Fault::MySqlReadOnly => self.mysql("SET GLOBAL read_only = 0").await,
            Fault::MySqlFull => self.mysql("ALTER USER shop WITH MAX_USER_CONNECTIONS 0").await,
            Fault::MySqlKilled => self.servers.change(|servers| servers.mysql.start()).await,
            Fault::RedisHangs => self.to_redis.slow_down(Duration::ZERO),
            Fault::RedisFull => drop(self.redis.tell(&["CONFIG", "SET", "maxmemory", "0"]).await),
            Fault::ProcessKilled | Fault::ProcessStopped => self.start_process().await,
            _ => {}
        }
    }

    /// Whether a process says that it is not ready, within this time.
    async fn is_seen(&self, long: Duration) -> bool {
        let began = Instant::now();
        let mut seen = false;
        while began.elapsed() < long {
            seen |= !self.are_ready().await;
            sleep(Duration::from_millis(100)).await;
        }
        seen
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

    /// Waits until every process is ready again and takes orders, unaided.
    pub async fn heals(&self, fault: Fault, patience: Duration) {
        self.processes.iter().for_each(no_fault_of_ours);
        let began = Instant::now();
        while !(self.are_ready().await && self.take_orders().await) {
            if began.elapsed() > patience {
                for process in &self.processes {
                    let asked = process.client.http.get(format!("{}/readyz", process.client.base)).send().await;
                    let text = match asked {
                        Ok(answer) => answer.text().await.unwrap_or_default(),
                        Err(error) => error.to_string(),
                    };
                    eprintln!("{}: {text}", process.client.base);
                }
                panic!("{fault:?} did not heal in {patience:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}
