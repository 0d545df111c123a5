//! A process of the real binary.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::support::Running;

/// A process that answers HTTP. It ends with its owner.
pub struct Process {
    pub running: Running,
    pub url: String,
}

impl Process {
    /// Starts it with these settings and waits until it answers at `ready`.
    pub fn start(program: &Path, args: &[&str], settings: &[(&'static str, String)], ready: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        for (path, value) in settings {
            let name = match *path {
                "database_url" => "DATABASE_URL".to_owned(),
                "redis_url" => "REDIS_URL".to_owned(),
                path => format!("ONRUSH_{}", path.to_uppercase().replace('.', "__")),
            };
            command.env(name, value);
        }
        command.env("ONRUSH_HTTP__LISTEN", format!("127.0.0.1:{port}")).env("ONRUSH_HTTP__PUBLIC_URL", &url);
        let running = Running(command.spawn().expect("a process"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_answered(&url, ready) {
            assert!(Instant::now() < deadline, "{} does not answer", program.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { running, url }
    }
}

/// Whether a path of the process is answered.
pub fn is_answered(url: &str, path: &str) -> bool {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", &format!("{url}{path}")]);
    curl.status().is_ok_and(|status| status.success())
}
