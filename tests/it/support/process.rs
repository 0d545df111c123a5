//! A real `onrush serve`, as a child process that a test may kill. It never outlives the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use onrush::dev::supervised::{Recipe, Supervised};

use super::Client;
use super::servers::{blocking, new_dir};

/// A running `onrush serve`.
pub struct Process {
    pub client: Client,
    log: PathBuf,
    running: Option<Supervised>,
}

impl Process {
    /// Starts it with the settings of a harness and waits until it is ready.
    pub(super) async fn start(mut env: Vec<(String, String)>, roles: &str, more: &[(&str, &str)]) -> Self {
        let port = Self::free_port();
        let base = format!("http://127.0.0.1:{port}");
        env.push(("ONRUSH_HTTP__LISTEN".to_owned(), format!("127.0.0.1:{port}")));
        env.push(("ONRUSH_HTTP__PUBLIC_URL".to_owned(), base.clone()));
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let dir = new_dir().keep().join("process");
        std::fs::create_dir(&dir).expect("a directory");
        let recipe = Recipe {
            name: "onrush serve",
            program: env!("CARGO_BIN_EXE_onrush").into(),
            args: ["serve", "--sandbox", "--roles", roles].map(str::to_owned).to_vec(),
            env,
            dir,
            throw_away: true,
        };
        let log = recipe.log_file();
        let running = blocking(move || recipe.start(|| is_ready(port))).await.expect("onrush serve");
        Self { client: Client::new(base), log, running: Some(running) }
    }

    /// A port that is free now.
    pub fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.end("KILL").await;
    }

    /// Asks it to stop in order and waits until it is gone.
    pub async fn terminate(&mut self) {
        self.end("TERM").await;
    }

    async fn end(&mut self, signal: &'static str) {
        let mut running = self.running.take().expect("a running process");
        let ended = blocking(move || {
            running.signal(signal)?;
            running.wait()
        });
        ended.await.expect("an end");
    }

    /// Sends a signal, such as `STOP` or `CONT`, and does not wait for what it does.
    pub fn signal(&mut self, name: &str) {
        self.running.as_mut().expect("a running process").signal(name).expect("a signal");
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) {
        let mut running = self.running.take().expect("a running process");
        blocking(move || running.wait()).await.expect("an end");
    }

    /// Its number, as the system has it.
    pub fn pid(&self) -> u32 {
        let file = self.log.with_file_name("server.pid");
        std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).expect("a process")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of onrush serve\n{}", self.log());
        }
    }
}

/// Whether the service on this port says that it is ready.
pub fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
