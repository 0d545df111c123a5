//! The servers that the tests share, started once per run and gone with it however it ends.

use std::sync::OnceLock;
use std::time::Duration;

use onrush::dev::servers::{Care, Reach, Server, Servers, database_url};
use tempfile::TempDir;

use super::Cluster;
use super::delay::slow_way;

/// Where the servers are that a test uses.
#[derive(Clone)]
pub struct Addresses {
    /// MySQL without a database, as a URL.
    pub mysql: String,
    /// Redis, as a URL.
    pub redis: String,
    /// Whether the databases must be dropped afterwards, because the server stays.
    pub clean_up: bool,
}

impl Addresses {
    /// The URL of a database.
    pub fn database(&self, name: &str) -> String {
        database_url(&self.mysql, name)
    }
}

/// The servers that all tests share: private ones, or the MySQL that `ONRUSH_TEST_DATABASE_URL` names. Their Redis is
/// one server, or a cluster of three when `ONRUSH_TEST_REDIS` is `cluster`.
pub fn servers() -> Addresses {
    static SHARED: OnceLock<(Addresses, Vec<Server>, Option<Cluster>)> = OnceLock::new();
    let start = || {
        // The servers remove it when they end: no destructor runs at the end of a test binary.
        let dir = new_dir().keep();
        let (mut servers, mut cluster) = (Vec::new(), None);
        let redis = if on_a_cluster() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let started = runtime.block_on(Cluster::start_in(dir.clone(), 0, Care::Fast));
            cluster.insert(started).url()
        } else {
            let redis = Server::redis(&dir, Care::Fast, &reach()).expect("a private Redis");
            let url = redis.url().to_owned();
            servers.push(redis);
            url
        };
        let named = std::env::var("ONRUSH_TEST_DATABASE_URL").ok().filter(|url| !url.is_empty());
        let clean_up = named.is_some();
        let mysql = named.unwrap_or_else(|| {
            let mysql = Server::mysql(&dir, Care::Fast, &reach()).expect("a private MySQL");
            let url = mysql.url().to_owned();
            servers.push(mysql);
            url
        });
        let (mysql, redis) = (slowed(mysql), if cluster.is_some() { redis } else { slowed(redis) });
        (Addresses { mysql, redis, clean_up }, servers, cluster)
    };
    SHARED.get_or_init(start).0.clone()
}

/// Whether the tests run on a cluster.
pub fn on_a_cluster() -> bool {
    match std::env::var("ONRUSH_TEST_REDIS").as_deref() {
        Ok("cluster") => true,
        Ok("") | Err(_) => false,
        Ok(other) => panic!("ONRUSH_TEST_REDIS is `cluster` or nothing, not {other}"),
    }
}

/// The way to a shared server, which takes `ONRUSH_TEST_DELAY_MS` longer in either direction when that is set.
fn slowed(url: String) -> String {
    match std::env::var("ONRUSH_TEST_DELAY_MS") {
        Ok(ms) if !ms.is_empty() => slow_way(&url, Duration::from_millis(ms.parse().expect("milliseconds"))),
        _ => url,
    }
}

/// How the tests reach their servers: over TCP as production does, encrypted when `ONRUSH_TEST_TLS` names a directory with
/// the servers' certificate.
pub fn reach() -> Reach {
    match std::env::var_os("ONRUSH_TEST_TLS").filter(|dir| !dir.is_empty()) {
        Some(dir) => Reach::Tls(dir.into()),
        None => Reach::Tcp,
    }
}

/// Servers for one test alone, which may stop, kill, start and empty them: [`PrivateServers::change`].
pub struct PrivateServers {
    servers: Option<Servers>,
    /// Dropped last: the servers are gone by then.
    dir: TempDir,
}

impl PrivateServers {
    pub async fn start() -> Self {
        let dir = new_dir();
        let path = dir.path().to_owned();
        // Safe: a server that is killed has its data when it starts again.
        let servers = blocking(move || Servers::start(&path, Care::Safe, &reach())).await;
        Self { servers: Some(servers.expect("private servers for one test")), dir }
    }

    pub fn addresses(&self) -> Addresses {
        let servers = self.servers.as_ref().expect("servers");
        let (mysql, redis) = (servers.mysql.url().to_owned(), servers.redis.url().to_owned());
        Addresses { mysql, redis, clean_up: false }
    }

    /// Where they have their data, `redis/` and `mysql/`.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Does something to them, such as `|s| s.redis.kill()?; s.redis.start()`, and waits until it is done.
    pub async fn change(&mut self, change: impl FnOnce(&mut Servers) -> anyhow::Result<()> + Send + 'static) {
        let mut servers = self.servers.take().expect("servers");
        let changed = blocking(move || change(&mut servers).map(|()| servers)).await;
        self.servers = Some(changed.expect("changing the private servers"));
    }
}

/// A Redis for one test alone, beside the MySQL that all share.
pub struct PrivateRedis {
    server: Option<Server>,
    /// Dropped last: the server is gone by then.
    _dir: TempDir,
}

impl PrivateRedis {
    pub async fn start() -> Self {
        let dir = new_dir();
        let path = dir.path().to_owned();
        let server = blocking(move || Server::redis(&path, Care::Safe, &Reach::Socket)).await;
        Self { server: Some(server.expect("a private Redis for one test")), _dir: dir }
    }

    pub fn url(&self) -> &str {
        self.server.as_ref().expect("a server").url()
    }

    /// A power cut, and the server again.
    pub async fn restart(&mut self) {
        let mut server = self.server.take().expect("a server");
        let restarted = blocking(move || {
            server.kill()?;
            server.start().map(|()| server)
        });
        self.server = Some(restarted.await.expect("a restart"));
    }

    /// The shared MySQL, and Redis at `url`, which leads here.
    pub async fn addresses(&self, url: String) -> Addresses {
        Addresses { redis: url, ..blocking(servers).await }
    }

    /// Sends a command on a connection of its own.
    pub async fn tell(&self, command: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.url()).expect("an address");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
        let mut told = redis::cmd(command[0]);
        told.arg(&command[1..]).query_async(&mut connection).await.expect("an answer")
    }
}

/// A directory for servers.
pub fn new_dir() -> TempDir {
    tempfile::Builder::new().prefix("onrush-it-").tempdir().expect("a temporary directory")
}

/// Runs what blocks off the async threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work")
}
