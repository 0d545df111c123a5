//! `onrush dev`, as a newcomer uses it: started, pasted into, killed, started again.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use onrush::dev::demo;
use onrush::dev::supervised::{Recipe, Supervised};
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::client::send;
use crate::support::process::is_ready;
use crate::support::servers::{blocking, new_dir};
use crate::support::{Client, Process};

/// A running `onrush dev`.
struct Playground {
    client: Client,
    log: std::path::PathBuf,
    running: Option<Supervised>,
    _own: TempDir,
}

impl Playground {
    /// Starts it on data in `dir`. The file of its process id and its log are in a directory of their own, so that
    /// `dir` is what a person's `.onrush` is.
    async fn start(dir: &Path, more: &[&str]) -> Self {
        let own = new_dir();
        let port = Process::free_port();
        let args = ["dev", "--dir", &dir.to_string_lossy(), "--port", &port.to_string()];
        let recipe = Recipe {
            name: "onrush dev",
            program: env!("CARGO_BIN_EXE_onrush").into(),
            args: args.iter().chain(more).map(|&arg| arg.to_owned()).collect(),
            env: vec![("ONRUSH_LOG__FILTER".to_owned(), "warn".to_owned())],
            dir: own.path().to_owned(),
            throw_away: false,
        };
        let log = recipe.log_file();
        let running = blocking(move || recipe.start(|| is_ready(port))).await.expect("onrush dev");
        Self { client: Client::new(format!("http://127.0.0.1:{port}")), log, running: Some(running), _own: own }
    }

    async fn end(&mut self, signal: &'static str) {
        let mut running = self.running.take().expect("a running playground");
        let ended = blocking(move || {
            running.signal(signal)?;
            running.wait()
        });
        ended.await.expect("an end");
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).expect("what it printed")
    }
}

async fn dev(dir: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"));
    command.args(["dev", "--dir"]).arg(dir).args(more).kill_on_drop(true).output().await.expect("onrush dev")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playground_keeps_its_data_whatever_becomes_of_it() {
    // Under a name that has to be quoted.
    let own = new_dir();
    let dir = own.path().join("with a space");
    let dir = dir.as_path();
    let login = json!({"phone": "13900000001", "password": "a long password"});
    let mut first = Playground::start(dir, &[]).await;
    first.client.post("/auth/register", (), login.clone()).await.expect(201);
    // A front end that is being written is served from some port here, and everything is shown.
    for origin in ["http://localhost:5173", "http://127.0.0.1:3000"] {
        let answer = send(first.client.request(Method::GET, "/me", ()).header("origin", origin)).await.expect(401);
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
    }
    for page in ["/metrics", "/docs/", "/openapi.json"] {
        first.client.get(page, ()).await.expect(200);
    }

    let second = dev(dir, &[]).await;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("in use") && said.contains(&first.client.base), "{said}");

    // Everything is gone at once; the next start waits for the servers' end and recovers.
    first.end("KILL").await;
    let mut again = Playground::start(dir, &[]).await;
    again.client.post("/auth/login", (), login.clone()).await.expect(200);

    again.end("TERM").await;
    for server in ["mysql", "redis"] {
        assert!(!dir.join(server).join("server.pid").exists(), "{server} still runs");
    }

    // What a person writes into the settings wins over what `dev` makes up.
    let file = dir.join("onrush.toml");
    let settings = std::fs::read_to_string(&file).unwrap();
    let more = "[http]\npublic_url = \"https://tunnel.example\"\noperations_public = false\n";
    std::fs::write(&file, format!("{settings}\n{more}")).unwrap();
    let mut fresh = Playground::start(dir, &["--fresh"]).await;
    let page = fresh.client.get("/", ()).await.expect(200);
    assert!(page.header("strict-transport-security").is_some() && !page.text().contains("docs/\""), "{}", page.text());
    fresh.client.post("/auth/login", (), login).await.problem(401, "wrong_credentials");
    fresh.client.post("/auth/login", (), json!({"phone": "13800000001", "password": "onrush-demo"})).await.expect(200);
    fresh.end("INT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_said_and_the_next_one_used() {
    let dir = new_dir();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let log = dir.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"));
    command.args(["dev", "--port", &port, "--dir"]).arg(dir.path().join("data")).kill_on_drop(true);
    command.stdout(std::fs::File::create(&log).expect("a log")).stderr(Stdio::null());
    let mut child = command.spawn().expect("onrush dev");
    let said = format!("Port {port} is taken: this one listens on ");
    for _ in 0..600 {
        if std::fs::read_to_string(&log).expect("a log").contains(&said) {
            child.kill().await.expect("its end");
            // The servers stop by themselves; the directory is removed after them.
            let running = |server: &&str| dir.path().join("data").join(server).join("server.pid").exists();
            for _ in 0..600 {
                if !["mysql", "redis"].iter().any(running) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("its servers outlive it");
        }
        assert!(child.try_wait().expect("its state").is_none(), "it ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never said so: {}", std::fs::read_to_string(&log).expect("a log"));
}

/// What `onrush dev` prints is what is pasted here.
#[tokio::test(flavor = "multi_thread")]
async fn the_lines_to_paste_do_what_they_say() {
    let dir = new_dir();
    let mut playground = Playground::start(dir.path(), &["--pay-deadline-s", "8"]).await;
    let flows = demo::flows(&playground.client.base);
    assert!(playground.printed().contains(&flows), "{}", playground.printed());
    // Twice: what one paste leaves behind is not in the way of the next.
    for _ in 0..2 {
        let output = Command::new("sh").arg("-euc").arg(&flows).output().await.expect("sh");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && wrong.is_empty(), "{printed}\n{wrong}");
        let lines: Vec<&str> = printed.lines().collect();
        let [won, page, granted, coupon_taken, points_taken, order, coupon, points] = lines[..] else {
            panic!("{printed}")
        };
        assert!(won.contains("\"code\":100") && won.contains("order_no"), "{won}");
        assert!(page.contains("/sandbox/pay/"), "{page}");
        assert!(granted.contains("00000000000000000000000000000002"), "{granted}");
        assert!(coupon_taken.contains("\"used\""), "{coupon_taken}");
        assert!(points_taken.contains("\"balance\":4000"), "{points_taken}");
        assert!(order.contains("\"timed_out\""), "{order}");
        assert!(coupon.contains("\"free\""), "{coupon}");
        assert!(points.contains("\"balance\":5000"), "{points}");
    }
    // An order that was not made is said, and not waited for.
    let parts: Vec<&str> = flows.split("\n\n").collect();
    let without_login = format!("{}\n{}", parts[0], parts[3].replace("onrush-demo", "not-the-password"));
    let output = Command::new("sh").arg("-euc").arg(without_login).output().await.expect("sh");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && printed.starts_with("no order was made"), "{printed}");
    playground.end("TERM").await;
}

/// The page for newcomers has each part of the lines as it is printed.
#[test]
fn getting_started_has_the_lines_to_paste() {
    let page = include_str!("../../docs/GETTING_STARTED.md");
    for part in demo::flows("http://127.0.0.1:8080").trim().split("\n\n") {
        assert!(page.contains(part), "docs/GETTING_STARTED.md lacks:\n{part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_the_settings_is_told_before_any_server_is_started() {
    let dir = new_dir();
    let data = dir.path().join("data");
    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"));
    command.args(["dev", "--port", &Process::free_port().to_string(), "--dir"]).arg(&data).kill_on_drop(true);
    let ended = command.env("ONRUSH_LOG__FILTRE", "info").output().await.expect("onrush dev");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("did you mean ONRUSH_LOG__FILTER?"), "{said}");
    assert!(!["mysql", "redis"].iter().any(|server| data.join(server).exists()), "{said}");
}
