//! A server as a child process that never outlives its owner.
//!
//! Between the two is a small shell (`supervise.sh`) that holds the other end of a pipe: when the owner ends, by
//! whatever cause, the pipe ends and the shell stops the server. Nothing is left behind by `kill -9`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How long a server may take until it answers. A recovery after a crash is part of it.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may take to stop before it is stopped for good, with a little more than `supervise.sh` gives it.
const STOP_TIMEOUT: Duration = Duration::from_secs(35);
/// Between two looks at a condition.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// In a server's own directory.
const PID_FILE: &str = "server.pid";
/// Lines of a server's log that an error shows.
const TAIL_LINES: usize = 15;

/// How to run a server.
pub struct Recipe {
    /// What messages call it.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What its environment has beside ours.
    pub env: Vec<(String, String)>,
    /// Its directory: process id, log and data are in here.
    pub dir: PathBuf,
    /// Whether nobody will want the directory again: then the server is stopped at once and its directory removed.
    pub throw_away: bool,
}

/// A running server.
pub struct Supervised {
    name: &'static str,
    shell: Child,
    /// Taken when the server is to stop.
    pipe: Option<ChildStdin>,
}

impl Recipe {
    fn pid_file(&self) -> PathBuf {
        self.dir.join(PID_FILE)
    }

    /// The file that has what it writes to its outputs.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Starts the server and waits until `answers`.
    pub fn start(&self, answers: impl Fn() -> bool) -> anyhow::Result<Supervised> {
        stop_former(&self.dir)?;
        let log = File::create(self.log_file()).context("creating a server's log")?;
        let (signal, remove) = if self.throw_away { ("KILL", self.dir.as_path()) } else { ("TERM", Path::new("")) };
        let mut shell = Command::new("sh");
        shell.args(["-c", include_str!("supervise.sh"), "supervise"]);
        shell.arg(self.pid_file()).arg(signal).arg(remove).arg(&self.program).args(&self.args);
        shell.envs(self.env.iter().map(|(name, value)| (name, value)));
        shell
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stderr(log.try_clone().context("sharing a log")?)
            .stdout(log);
        // A group of its own: a terminal's Ctrl-C reaches us alone, and we stop the servers last.
        shell.process_group(0);
        let mut shell = shell.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        let pipe = shell.stdin.take();
        let mut running = Supervised { name: self.name, shell, pipe };
        let deadline = Instant::now() + START_TIMEOUT;
        while !answers() {
            if running.ended() {
                bail!("{} ended while it started:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} did not answer within {START_TIMEOUT:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(LOOK_PERIOD);
        }
        Ok(running)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Waits for the server of an owner that was killed a moment ago, and stops one whose shell was killed too: two
/// servers on one data directory would destroy it. `dir` is the server's own directory.
pub fn stop_former(dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    let mut signal = Signal::TERM;
    while let Some(pid) = former(dir) {
        // It may end between the look and the signal; then the next look finds nothing.
        let _ = kill_process(pid, signal);
        if Instant::now() > deadline {
            if signal == Signal::KILL {
                bail!("the server of a former run in {} (process {pid}) does not stop", dir.display());
            }
            signal = Signal::KILL;
        }
        std::thread::sleep(LOOK_PERIOD * 10);
    }
    Ok(())
}

/// The process that the file of a former run names, when it is still the server of this directory.
fn former(dir: &Path) -> Option<Pid> {
    let pid = fs::read_to_string(dir.join(PID_FILE)).ok()?.trim().parse().ok().and_then(Pid::from_raw)?;
    test_kill_process(pid).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok().or_else(|| {
        let ps = Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).output().ok()?;
        Some(ps.stdout)
    })?;
    // Redis puts its own title in place of its arguments, with the socket it listens on among them.
    String::from_utf8_lossy(&command).contains(&*dir.to_string_lossy()).then_some(pid)
}

impl Supervised {
    /// Sends a signal, such as `KILL` or `STOP`.
    pub fn signal(&mut self, name: &str) -> anyhow::Result<()> {
        let pipe = self.pipe.as_mut().with_context(|| format!("{} is stopping", self.name))?;
        writeln!(pipe, "{name}").with_context(|| format!("signalling {}", self.name))
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.ended() {
            if Instant::now() > deadline {
                bail!("{} does not stop", self.name);
            }
            std::thread::sleep(LOOK_PERIOD);
        }
        Ok(())
    }

    /// Stops it in order and waits until it has ended.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.pipe = None;
        self.wait()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(error = format!("{error:#}"), "private server was left running");
        }
    }
}
