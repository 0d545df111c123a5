//! `onrush dev`: the whole service on this machine, with servers and demo data of its own.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::Connection;
use tokio::net::TcpListener;

use super::demo;
use super::servers::{Care, Reach, Servers, database_url};
use crate::app::App;
use crate::config::Config;
use crate::platform::clock::Clock;
use crate::platform::output::say;
use crate::platform::telemetry;
use crate::schema;
use crate::serve::{ProcessRole, Serving, until_told_to_stop};

/// The database of the playground.
const DATABASE: &str = "onrush";
/// When the port is taken, this many after it are tried.
const PORTS_TRIED: u16 = 50;
/// Only this machine reaches the playground, so whoever does may be a proxy, or play one.
const LOOPBACK: &str = "127.0.0.0/8,::1";
/// How often the servers are looked at: one that ended by itself is started again.
const REVIVE_PERIOD: Duration = Duration::from_secs(1);

/// What `onrush dev` is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// The port of the API, or the next free one.
    pub port: u16,
    /// Whether to forget all data first.
    pub fresh: bool,
    /// Seconds to pay an order, in place of the settings'.
    pub pay_deadline_s: Option<u64>,
}

/// In place of servers that are not there yet.
const NOWHERE: &str = "http://127.0.0.1:1";
const NOWHERE_MYSQL: &str = "mysql://nobody@127.0.0.1:1/onrush";
const NOWHERE_REDIS: &str = "redis://127.0.0.1:1";

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(options: Options) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.dir).with_context(|| format!("creating {}", options.dir.display()))?;
    let mut lock = take(&options.dir)?;
    let settings = settings_file(&options.dir)?;
    // Before anything is started that a fault in them would make to no purpose.
    read(&options, &settings, [NOWHERE_MYSQL, NOWHERE_REDIS], NOWHERE)?;
    let servers = start_servers(&options).await?;
    // Stopped whatever happens below; a process that is killed leaves that to `supervise.sh`.
    let served = serve(&options, &settings, &servers, &mut lock).await;
    let stopped = tokio::task::spawn_blocking(move || locked(&servers).stop()).await.context("stopping the servers")?;
    served.and(stopped)
}

async fn serve(
    options: &Options,
    settings: &Path,
    servers: &Arc<Mutex<Servers>>,
    lock: &mut File,
) -> anyhow::Result<()> {
    let listener = listen(options.port).await?;
    let port = listener.local_addr().context("reading the port")?.port();
    let base = format!("http://127.0.0.1:{port}");
    let config = configure(options, settings, servers, &base).await?;
    let traces = telemetry::init(config.log.format, &config.log.filter, config.traces.settings().as_ref())?;
    let app = App::connect(config, Clock::System).await?;
    schema::migrate(&app.db).await?;
    demo::load(&app).await.context("loading the demo data")?;
    let serving =
        Serving::start(&app, listener, &[ProcessRole::Api, ProcessRole::Worker, ProcessRole::Scheduler]).await?;
    write_owner(lock, &base)?;
    let reviving = tokio::spawn(revive(servers.clone()));
    let mut welcome = demo::welcome(&base, &options.dir, app.config.orders.pay_deadline_s);
    if port != options.port {
        welcome += &format!("\nPort {} is taken: this one listens on {port}.\n", options.port);
    }
    let told = say(welcome);
    if told.is_ok() {
        until_told_to_stop().await?;
        // Whether anybody still reads: it stops.
        let _ = say("\nstopping");
    }
    reviving.abort();
    if !serving.stop().await {
        tracing::warn!("something was still under way and is taken up at the next start");
    }
    if let Some(traces) = traces {
        traces.stop().await;
    }
    told
}

/// Takes the directory for this process.
fn take(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut owner);
            bail!(
                "{} is in use by another `onrush dev` ({}). Stop that one, or give this one a directory of its own: \
                 onrush dev --dir .onrush-2",
                dir.display(),
                if owner.is_empty() { "which is starting" } else { owner.trim() }
            );
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// Writes for the next one to read who has the directory.
fn write_owner(lock: &mut File, base: &str) -> anyhow::Result<()> {
    let text = format!("process {}, {base}", std::process::id());
    let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(text.as_bytes()));
    written.context("writing the lock file")
}

/// The settings of the playground: made once, with secrets of its own, and a person's to edit.
fn settings_file(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("onrush.toml");
    if !path.exists() {
        let secret = || {
            let random: [u8; 32] = aws_lc_rs::rand::generate(&aws_lc_rs::rand::SystemRandom::new())
                .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?
                .expose();
            Ok::<_, anyhow::Error>(hex::encode(random))
        };
        let text = format!(
            "# Settings of `onrush dev`, made once; edit them and start again. All others: docs/OPERATIONS.md.\n\
             [auth]\njwt_secret = \"{}\"\n\n\
             [payments]\nsandbox_secret = \"{}\"\n\n\
             [orders]\n# Short, so that a time-out can be seen; 1800 in production.\npay_deadline_s = {}\n",
            secret()?,
            secret()?,
            demo::PAY_DEADLINE_S,
        );
        // Whole or not at all: a killed process must not leave half a file.
        let unfinished = dir.join("onrush.toml.new");
        let write = || {
            // Secrets: this user's alone.
            let options = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
            options?.write_all(text.as_bytes())?;
            std::fs::rename(&unfinished, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(path)
}

async fn start_servers(options: &Options) -> anyhow::Result<Arc<Mutex<Servers>>> {
    say(format!("starting private servers in {} (the first time takes a few seconds)", options.dir.display()))?;
    let (dir, fresh) = (options.dir.clone(), options.fresh);
    let start = move || {
        if fresh {
            Servers::forget(&dir)?;
        }
        Servers::start(&dir, Care::Safe, &Reach::Socket)
    };
    let servers = tokio::task::spawn_blocking(start).await.context("starting the servers")??;
    say(format!("{} and {} are up", servers.mysql.name(), servers.redis.name()))?;
    Ok(Arc::new(Mutex::new(servers)))
}

async fn configure(
    options: &Options,
    settings: &Path,
    servers: &Arc<Mutex<Servers>>,
    base: &str,
) -> anyhow::Result<Config> {
    let (mysql, redis) = {
        let servers = locked(servers);
        (servers.mysql.url().to_owned(), servers.redis.url().to_owned())
    };
    let mut server = sqlx::MySqlConnection::connect(&mysql).await.context("connecting to the private MySQL")?;
    let create = "CREATE DATABASE IF NOT EXISTS onrush CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
    sqlx::raw_sql(create).execute(&mut server).await.context("creating the database")?;
    read(options, settings, [&database_url(&mysql, DATABASE), &redis], base)
}

/// The settings of a playground with these servers, at this address.
fn read(options: &Options, settings: &Path, [mysql, redis]: [&str; 2], base: &str) -> anyhow::Result<Config> {
    let mut overrides = vec![
        ("database_url", mysql.to_owned()),
        ("redis_url", redis.to_owned()),
        ("payments.sandbox", "true".to_owned()),
    ];
    if let Some(seconds) = options.pay_deadline_s {
        overrides.push(("orders.pay_deadline_s", seconds.to_string()));
    }
    let defaults = [
        ("http.trusted_proxies", LOOPBACK),
        ("http.public_url", base),
        // The sandbox is here, whatever others call this service.
        ("payments.sandbox_url", base),
        // A front end under development is served from some port of this machine.
        ("http.cors_origins", "http://localhost:*,http://127.0.0.1:*,http://[::1]:*"),
        ("http.operations_public", "true"),
    ];
    Config::load_over(&defaults, Some(settings), &overrides)
}

/// Listens on `port` of this machine alone, or on the next free one.
async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let mut last = None;
    for port in port..=port.saturating_add(PORTS_TRIED) {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error).with_context(|| format!("listening on port {port}")),
        }
    }
    let error = last.map_or_else(|| anyhow::anyhow!("no port"), anyhow::Error::from);
    Err(error.context(format!("none of the ports from {port} on is free: name another with --port")))
}

/// Starts a server that ended by itself (somebody killed it to see what happens) again.
async fn revive(servers: Arc<Mutex<Servers>>) {
    loop {
        tokio::time::sleep(REVIVE_PERIOD).await;
        let servers = servers.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let mut servers = locked(&servers);
            let Servers { mysql, redis } = &mut *servers;
            for server in [mysql, redis] {
                match server.revive() {
                    Ok(true) => tracing::warn!(server = server.name(), "private server had ended and runs again"),
                    Ok(false) => {}
                    Err(error) => tracing::error!(error = format!("{error:#}"), "private server does not start again"),
                }
            }
        });
        if let Err(panic) = looked.await {
            tracing::error!(%panic, "looking after the private servers failed");
        }
    }
}

fn locked(servers: &Mutex<Servers>) -> std::sync::MutexGuard<'_, Servers> {
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}
