//! A Galera cluster on loopback that takes writes on every node, for one test alone, where the library is installed
//! (Debian: `galera-4`; elsewhere `ONRUSH_TEST_GALERA` names the file). Nothing is installed for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use onrush::dev::servers::{Care, Reach, Server};
use onrush::dev::supervised::{Recipe, Supervised};
use sqlx::{Connection, Row};
use tempfile::TempDir;

use super::Process;
use super::harness::eventually;
use super::servers::{blocking, new_dir};

/// Where distributions have the library.
const PLACES: [&str; 3] =
    ["/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so", "/usr/lib64/galera/libgalera_smm.so"];

/// How a node gets what the others have. All begin as copies of the first one, so only the position is handed over; what
/// has happened since comes as it always does (IST).
const TRANSFER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --role) role=$2; shift ;; --gtid) gtid=$2; shift ;; --address) address=$2; shift ;; esac
    shift
done
file=$(dirname "$0")/${address%%/*}
case $role in
joiner) echo "ready $address/same"; until [ -s "$file" ]; do sleep 0.1; done; cat "$file"; rm -f "$file" ;;
donor) echo "$gtid" >"$file.new"; mv "$file.new" "$file"; echo "done $gtid" ;;
esac
"#;

/// A running cluster.
pub struct Galera {
    urls: Vec<String>,
    _nodes: Vec<Supervised>,
    /// Dropped last: the nodes are gone by then.
    _dir: TempDir,
}

/// The library, where it is installed.
fn library() -> Option<PathBuf> {
    match std::env::var("ONRUSH_TEST_GALERA") {
        Ok(named) if !named.is_empty() => Some(named.into()),
        _ => PLACES.iter().map(PathBuf::from).find(|place| place.exists()),
    }
}

impl Galera {
    /// A cluster of so many nodes; none where the library is not installed, or the server is not MariaDB.
    pub async fn start(count: usize) -> Option<Self> {
        let library = library()?;
        let dir = new_dir();
        let base = dir.path().join("base");
        let made = base.clone();
        let (name, program) = blocking(move || {
            fs::create_dir(&made).expect("a directory");
            let mut server = Server::mysql(&made, Care::Safe, &Reach::Socket).expect("a private MariaDB");
            server.stop().expect("its end");
            (server.name(), which("mariadbd"))
        })
        .await;
        let program = program.filter(|_| name == "MariaDB")?;
        let transfer = dir.path().join("wsrep_sst_same");
        fs::write(&transfer, TRANSFER).expect("a script");
        fs::set_permissions(&transfer, fs::Permissions::from_mode(0o755)).expect("a script that runs");

        let ports: Vec<u16> = (0..count).map(|_| Process::free_port()).collect();
        let node = |at: usize| Node { dir: dir.path().join(format!("n{at}")), at, group: ports[at] };
        let nodes: Vec<Node> = (0..count).map(node).collect();
        // The first node makes the cluster's history, and the others begin as copies of it.
        copy(&base.join("mysql/data"), &nodes[0].dir).await;
        let mut first = nodes[0].start(&program, &library, "gcomm://").await;
        blocking(move || first.stop()).await.expect("its end");
        for other in &nodes[1..] {
            copy(&nodes[0].dir.join("data"), &other.dir).await;
        }
        let mut running = Vec::new();
        for node in &nodes {
            let join = if node.at == 0 { "gcomm://".to_owned() } else { format!("gcomm://127.0.0.1:{}", ports[0]) };
            running.push(node.start(&program, &library, &join).await);
        }
        Some(Self { urls: nodes.iter().map(Node::url).collect(), _nodes: running, _dir: dir })
    }

    /// A node without a database, as a URL.
    pub fn url(&self, node: usize) -> &str {
        &self.urls[node]
    }
}

/// One node.
struct Node {
    dir: PathBuf,
    at: usize,
    /// The port at which the others reach it.
    group: u16,
}

impl Node {
    fn socket(&self) -> PathBuf {
        self.dir.join("mysql.sock")
    }

    fn url(&self) -> String {
        format!("mysql://root@localhost?socket={}", self.socket().display())
    }

    /// Starts it and waits until it takes statements.
    async fn start(&self, program: &Path, library: &Path, join: &str) -> Supervised {
        let (own, group) = (self.dir.display(), self.group);
        let (incremental, transfer) = (Process::free_port(), Process::free_port());
        let mut args: Vec<String> = [
            "--no-defaults",
            "--skip-networking",
            "--wsrep_on=ON",
            "--wsrep_cluster_name=onrush",
            "--wsrep_sst_method=same",
            "--binlog_format=ROW",
            "--innodb_autoinc_lock_mode=2",
            "--default-storage-engine=InnoDB",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=64M",
            "--skip-performance-schema",
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend([
            format!("--datadir={own}/data"),
            format!("--socket={}", self.socket().display()),
            format!("--pid-file={own}/mysqld.pid"),
            format!("--tmpdir={own}"),
            format!("--wsrep_provider={}", library.display()),
            format!("--wsrep_cluster_address={join}"),
            format!("--wsrep_node_name=n{}", self.at),
            format!("--wsrep_node_address=127.0.0.1:{group}"),
            format!("--wsrep_sst_receive_address=127.0.0.1:{transfer}"),
            format!(
                "--wsrep_provider_options=base_port={group};gmcast.listen_addr=tcp://127.0.0.1:{group};\
                 ist.recv_addr=127.0.0.1:{incremental};gcache.size=16M;pc.recovery=false"
            ),
        ]);
        if rustix::process::geteuid().is_root() {
            args.push("--user=root".to_owned());
        }
        let scripts = self.dir.parent().expect("a directory").display().to_string();
        let path = format!("{scripts}:{}", std::env::var("PATH").unwrap_or_default());
        let recipe = Recipe {
            name: "a Galera node",
            program: program.to_owned(),
            args,
            env: vec![("PATH".to_owned(), path)],
            dir: self.dir.clone(),
            throw_away: false,
        };
        let (socket, url) = (self.socket(), self.url());
        let is_there = move || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        let running = blocking(move || recipe.start(is_there)).await.expect("a Galera node");
        eventually(|| is_ready(&url)).await;
        running
    }
}

/// Whether a node has joined and takes statements.
async fn is_ready(url: &str) -> bool {
    let Ok(mut node) = sqlx::MySqlConnection::connect(url).await else { return false };
    let said = sqlx::raw_sql("SHOW STATUS LIKE 'wsrep_ready'").fetch_one(&mut node).await;
    said.is_ok_and(|row| row.try_get_unchecked::<String, _>(1).is_ok_and(|said| said == "ON"))
}

/// Copies a data directory to `to`/data.
async fn copy(data: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(data).arg(to.join("data"));
    let copied = blocking(move || copy.status()).await.expect("cp");
    assert!(copied.success(), "the data directory could not be copied");
}

/// A program on the path, or where servers are.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').map(PathBuf::from).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|program| program.exists())
}
