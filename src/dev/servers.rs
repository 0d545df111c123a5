//! A private MySQL (or MariaDB) and a private Redis (or Valkey): child processes with their data in a directory of
//! ours. A system-wide server is never touched. Those of `onrush dev` listen on unix sockets in a directory that only
//! this user may enter, so they need no ports and nobody else reaches them. Those of the tests and the benchmarks listen
//! on loopback too, because production reaches its servers over TCP and some faults are TCP's alone.

use std::fs::{self, DirBuilder};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::supervised::{Recipe, Supervised, stop_former};

/// A unix socket's path may have 103 bytes on every system we know; this leaves room for the file's name.
const SOCKET_DIR_MAX: usize = 90;
/// How long a server that accepts may take to say its first words.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// How careful the servers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// Data survive a crash of the machine.
    Safe,
    /// For tests: as fast as possible, forgotten with its owner.
    Fast,
}

/// How the servers are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// By a unix socket alone.
    Socket,
    /// Over TCP on loopback, at a port of their own that stays the same when they start again.
    Tcp,
    /// As [`Reach::Tcp`], encrypted, with the files `ca.pem`, `server.pem` and `server.key` of this directory. Clients of
    /// Redis find the authority by `SSL_CERT_FILE`.
    Tls(PathBuf),
}

impl Reach {
    /// A port that is free now, where one is needed.
    fn port(&self) -> anyhow::Result<u16> {
        if *self == Self::Socket {
            return Ok(0);
        }
        let found = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        Ok(found.context("finding a free port")?.port())
    }
}

/// The names under which Redis is installed, or what speaks as it does.
pub const REDIS_PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];

/// One of the servers.
pub struct Server {
    recipe: Recipe,
    socket: PathBuf,
    url: String,
    answers: fn(&Path) -> bool,
    running: Option<Supervised>,
}

/// Both servers. They stop when this is dropped, or when the process ends in whatever way.
pub struct Servers {
    /// MySQL or MariaDB.
    pub mysql: Server,
    /// Redis or Valkey.
    pub redis: Server,
}

impl Servers {
    /// Starts both in `dir`, which is made when it is not there. Blocks until both answer.
    pub fn start(dir: &Path, care: Care, reach: &Reach) -> anyhow::Result<Self> {
        Ok(Self { redis: Server::redis(dir, care, reach)?, mysql: Server::mysql(dir, care, reach)? })
    }

    /// Removes all data of servers that ran in `dir`; waits for those that are just stopping.
    pub fn forget(dir: &Path) -> anyhow::Result<()> {
        for own in ["mysql", "redis"].map(|name| dir.join(name)).iter().filter(|own| own.exists()) {
            stop_former(own)?;
            fs::remove_dir_all(own).with_context(|| format!("removing {}", own.display()))?;
        }
        Ok(())
    }

    /// Stops both in order and says what went wrong.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mysql = self.mysql.stop();
        self.redis.stop().and(mysql)
    }
}

impl Server {
    /// Starts MySQL or MariaDB with its data in `dir`/mysql.
    pub fn mysql(dir: &Path, care: Care, reach: &Reach) -> anyhow::Result<Self> {
        let Some(program) = find(&["mariadbd", "mysqld"]) else {
            bail!(
                "neither mariadbd nor mysqld is installed. Debian, Ubuntu: apt-get install mariadb-server-core; \
                 macOS: brew install mariadb; or run script/setup, or use `docker compose up` instead"
            );
        };
        let own = make_private(&dir.join("mysql"))?;
        let mariadb = is_mariadb(&program)?;
        let data = own.join("data");
        if !data.exists() {
            // Under another name until it is whole, so that a set-up that was killed half way is begun again.
            let unfinished = own.join("data.new");
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished).context("removing an unfinished data directory")?;
            }
            initialize(&program, mariadb, &unfinished)?;
            fs::rename(&unfinished, &data).context("naming the data directory")?;
        }
        let socket = socket_dir(&own)?.join("mysql.sock");
        let mut args = vec![
            "--no-defaults".to_owned(),
            format!("--datadir={}", data.display()),
            format!("--socket={}", socket.display()),
            format!("--pid-file={}", own.join("mysqld.pid").display()),
            // Its own: MariaDB removes temporary tables of others from a directory it shares when it starts.
            format!("--tmpdir={}", own.display()),
            "--skip-log-bin".to_owned(),
            "--character-set-server=utf8mb4".to_owned(),
        ];
        let (listening, url) = mysql_reached(reach, &socket)?;
        args.extend(listening);
        args.extend(as_root());
        if !mariadb {
            args.extend(["--mysqlx=OFF".to_owned(), "--secure-file-priv=NULL".to_owned()]);
        }
        let tuning: &[&str] = match care {
            Care::Safe => &["--max-connections=500", "--innodb-buffer-pool-size=256M"],
            Care::Fast => &[
                "--max-connections=3000",
                "--innodb-buffer-pool-size=256M",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-flush-method=nosync",
                "--skip-innodb-doublewrite",
                "--innodb-file-per-table=0",
                "--table-open-cache=4000",
                "--skip-performance-schema",
            ],
        };
        args.extend(tuning.iter().map(|&arg| arg.to_owned()));
        let name = if mariadb { "MariaDB" } else { "MySQL" };
        let recipe = Recipe { name, program, args, env: Vec::new(), dir: own, throw_away: care == Care::Fast };
        Self { recipe, socket, url, answers: mysql_answers, running: None }.started()
    }

    /// Starts Redis or Valkey with its data in `dir`/redis.
    pub fn redis(dir: &Path, care: Care, reach: &Reach) -> anyhow::Result<Self> {
        let Some(program) = find(&REDIS_PROGRAMS) else {
            bail!(
                "neither redis-server nor valkey-server is installed. Debian, Ubuntu: apt-get install redis-server; \
                 macOS: brew install redis; or run script/setup, or use `docker compose up` instead"
            );
        };
        let own = make_private(&dir.join("redis"))?;
        let socket = socket_dir(&own)?.join("redis.sock");
        let durable = if care == Care::Safe { "yes" } else { "no" };
        let (listening, url) = redis_reached(reach, &socket)?;
        let settings: [&[&str]; 12] = [
            &["--unixsocket", &socket.to_string_lossy()],
            &["--unixsocketperm", "700"],
            &["--dir", &own.to_string_lossy()],
            &["--appendonly", durable],
            // Rewriting the append-only file forks, and every write meanwhile copies a page: not in the middle of a sale.
            &["--auto-aof-rewrite-min-size", "1gb"],
            &["--save", ""],
            &["--maxmemory-policy", "noeviction"],
            // What is big is freed by another thread than the one that answers.
            &["--lazyfree-lazy-expire", "yes"],
            &["--lazyfree-lazy-server-del", "yes"],
            &["--lazyfree-lazy-user-del", "yes"],
            &["--lazyfree-lazy-eviction", "yes"],
            &["--daemonize", "no"],
        ];
        let args = settings.concat().into_iter().map(str::to_owned).chain(listening).collect();
        let recipe = Recipe { name: "Redis", program, args, env: Vec::new(), dir: own, throw_away: care == Care::Fast };
        Self { recipe, socket, url, answers: redis_answers, running: None }.started()
    }

    fn started(mut self) -> anyhow::Result<Self> {
        self.start()?;
        Ok(self)
    }

    /// Where it is; MySQL without a database (see [`database_url`]).
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts the server again, at the address it had before, and waits until it answers.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let (socket, answers) = (self.socket.clone(), self.answers);
        self.running = Some(self.recipe.start(|| answers(&socket))?);
        Ok(())
    }

    /// Stops it in order.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        match self.running.take() {
            Some(mut running) => running.stop(),
            None => Ok(()),
        }
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.signal("KILL")?;
        running.wait()
    }

    /// What was started: `MariaDB`, `MySQL` or `Redis`.
    pub fn name(&self) -> &'static str {
        self.recipe.name
    }

    /// Starts it again when it has ended by itself; true when it had.
    pub fn revive(&mut self) -> anyhow::Result<bool> {
        let ended = self.running.as_mut().is_some_and(Supervised::ended);
        if ended {
            self.start()?;
        }
        Ok(ended)
    }
}

/// The arguments with which MySQL listens, and its URL.
fn mysql_reached(reach: &Reach, socket: &Path) -> anyhow::Result<(Vec<String>, String)> {
    let port = reach.port()?;
    let over_tcp = || vec!["--bind-address=127.0.0.1".to_owned(), format!("--port={port}")];
    Ok(match reach {
        Reach::Socket => {
            (vec!["--skip-networking".to_owned()], format!("mysql://root@localhost?socket={}", escape(socket)))
        }
        Reach::Tcp => (over_tcp(), format!("mysql://root@127.0.0.1:{port}?ssl-mode=DISABLED")),
        Reach::Tls(dir) => {
            let file = |name| dir.join(name).display().to_string();
            let mut args = over_tcp();
            args.extend([format!("--ssl-cert={}", file("server.pem")), format!("--ssl-key={}", file("server.key"))]);
            let authority = escape(&dir.join("ca.pem"));
            (args, format!("mysql://root@127.0.0.1:{port}?ssl-mode=VERIFY_IDENTITY&ssl-ca={authority}"))
        }
    })
}

/// The arguments with which Redis listens, and its URL.
fn redis_reached(reach: &Reach, socket: &Path) -> anyhow::Result<(Vec<String>, String)> {
    let port = reach.port()?;
    let (args, url): (Vec<String>, String) = match reach {
        Reach::Socket => (vec!["--port".into(), "0".into()], format!("redis+unix://{}", escape(socket))),
        Reach::Tcp => (
            ["--bind", "127.0.0.1", "--port"].map(str::to_owned).into_iter().chain([port.to_string()]).collect(),
            format!("redis://127.0.0.1:{port}"),
        ),
        Reach::Tls(dir) => {
            let file = |name| dir.join(name).display().to_string();
            let named = [
                ("--bind", "127.0.0.1".to_owned()),
                ("--port", "0".to_owned()),
                ("--tls-port", port.to_string()),
                ("--tls-cert-file", file("server.pem")),
                ("--tls-key-file", file("server.key")),
                ("--tls-ca-cert-file", file("ca.pem")),
                ("--tls-auth-clients", "no".to_owned()),
            ];
            let args = named.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
            (args, format!("rediss://127.0.0.1:{port}"))
        }
    };
    Ok((args, url))
}

/// The URL of `database` on the MySQL that `server_url` names.
pub fn database_url(server_url: &str, database: &str) -> String {
    let (server, options) = server_url.split_once('?').unwrap_or((server_url, ""));
    let question = if options.is_empty() { "" } else { "?" };
    format!("{}/{database}{question}{options}", server.trim_end_matches('/'))
}

/// Makes the system tables of an empty database server.
fn initialize(program: &Path, mariadb: bool, data: &Path) -> anyhow::Result<()> {
    let (Some(parent), Some(name)) = (data.parent(), data.file_name()) else {
        bail!("{} is no place for a data directory", data.display());
    };
    let mut command = if mariadb {
        let installer = find(&["mariadb-install-db", "mysql_install_db"])
            .context("mariadb-install-db is not installed; it comes with MariaDB's server package")?;
        let mut command = Command::new(installer);
        // Relative: the installer is a shell script that splits a path with a space in it. What it starts goes into the
        // data directory first, so `..` is where that is.
        command.current_dir(parent).arg("--no-defaults").arg(format!("--datadir=./{}", name.display()));
        command.args(["--tmpdir=..", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        // We come through a socket: a machine whose own name does not resolve is fine.
        command.args(["--skip-name-resolve", "--force"]);
        command
    } else {
        let mut command = Command::new(program);
        command.arg("--no-defaults").arg(format!("--datadir={}", data.display()));
        command.arg(format!("--tmpdir={}", parent.display())).arg("--initialize-insecure");
        command
    };
    let output = command.args(as_root()).output().context("starting the set-up of a data directory")?;
    if !output.status.success() {
        bail!(
            "the set-up of a data directory failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// MariaDB's programs answer to MySQL's names.
fn is_mariadb(program: &Path) -> anyhow::Result<bool> {
    let output = Command::new(program).args(["--no-defaults", "--version"]).output();
    let output = output.with_context(|| format!("asking {} for its version", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("MariaDB"))
}

/// Database servers run as root (in a container, say) only when told to.
fn as_root() -> Option<String> {
    rustix::process::geteuid().is_root().then(|| "--user=root".to_owned())
}

/// The first of `names` that is on PATH or where distributions put servers.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/libexec"].map(PathBuf::from));
    names.iter().find_map(|name| places.iter().map(|place| place.join(name)).find(|file| file.is_file()))
}

/// Makes a directory that only this user may enter, unless it is there; gives its path from the root.
pub fn make_private(dir: &Path) -> anyhow::Result<PathBuf> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir).and_then(|()| dir.canonicalize());
    made.with_context(|| format!("creating {}", dir.display()))
}

/// Where the socket of a server goes: into its own directory, or, where that path is too long for a socket, into one
/// under the system's temporary directory with a name that stays the same.
fn socket_dir(own: &Path) -> anyhow::Result<PathBuf> {
    if own.as_os_str().len() <= SOCKET_DIR_MAX {
        return Ok(own.to_owned());
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, own.as_os_str().as_encoded_bytes());
    let name = hex::encode(&digest.as_ref()[..8]);
    let dir = std::env::temp_dir().join(format!("onrush-{name}"));
    make_private(&dir)?;
    let found = fs::symlink_metadata(&dir).context("looking at the sockets' directory")?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        bail!("{} is not a private directory of this user; remove it", dir.display());
    }
    Ok(dir)
}

/// Its greeting has come: it takes connections.
fn mysql_answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let mut byte = [0];
    stream.set_read_timeout(Some(GREETING_TIMEOUT)).is_ok() && stream.read_exact(&mut byte).is_ok()
}

/// It answers PING with PONG and not with LOADING.
fn redis_answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let mut answer = [0; 5];
    stream.set_read_timeout(Some(GREETING_TIMEOUT)).is_ok()
        && stream.write_all(b"PING\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"+PONG"
}

/// A path as part of a URL.
fn escape(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    bytes.map(|&byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_goes_before_the_options_of_a_url() {
        assert_eq!(database_url("mysql://root@localhost?socket=/a", "b"), "mysql://root@localhost/b?socket=/a");
        assert_eq!(database_url("mysql://root@127.0.0.1:3307/", "b"), "mysql://root@127.0.0.1:3307/b");
    }

    #[test]
    fn a_path_in_a_url_keeps_its_odd_characters() {
        assert_eq!(escape(Path::new("/tmp/a b/ü&?#/x.sock")), "/tmp/a%20b/%C3%BC%26%3F%23/x.sock");
    }
}
