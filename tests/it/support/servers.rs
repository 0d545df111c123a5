//! The servers that the tests share, started once per run and gone with it however it ends.

use std::sync::OnceLock;

use onrush::dev::servers::{Care, Server, Servers, database_url};
use tempfile::TempDir;

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

/// The servers that all tests share: private ones, or the MySQL that `ONRUSH_TEST_DATABASE_URL` names.
pub fn servers() -> Addresses {
    static SHARED: OnceLock<(Addresses, Vec<Server>)> = OnceLock::new();
    let start = || {
        // The servers remove it when they end: no destructor runs at the end of a test binary.
        let dir = new_dir().keep();
        let redis = Server::redis(&dir, Care::Fast).expect("a private Redis");
        let named = std::env::var("ONRUSH_TEST_DATABASE_URL").ok().filter(|url| !url.is_empty());
        if let Some(mysql) = named {
            return (Addresses { mysql, redis: redis.url().to_owned(), clean_up: true }, vec![redis]);
        }
        let mysql = Server::mysql(&dir, Care::Fast).expect("a private MySQL");
        let addresses = Addresses { mysql: mysql.url().to_owned(), redis: redis.url().to_owned(), clean_up: false };
        (addresses, vec![redis, mysql])
    };
    SHARED.get_or_init(start).0.clone()
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
        let servers = blocking(move || Servers::start(&path, Care::Safe)).await;
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

/// A directory for servers.
pub fn new_dir() -> TempDir {
    tempfile::Builder::new().prefix("onrush-it-").tempdir().expect("a temporary directory")
}

/// Runs what blocks off the async threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work")
}
