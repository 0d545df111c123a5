//! What the benchmarks share: a place for their servers, children that end with them, and medians.

use std::path::{Path, PathBuf};
use std::process::Child;

use onrush::dev::servers::{Care, Reach, Server};
use onrush::platform::redis::Redis;

/// Measurements of each scenario; the median counts.
pub const ROUNDS: usize = 3;

/// Words on the command line that say how to measure.
const HOW: [&str; 3] = ["volatile", "delayed", "commands"];

/// The words on the command line that say what to measure; cargo adds a flag of its own.
pub fn words() -> Vec<String> {
    std::env::args().skip(1).filter(|arg| !arg.starts_with('-') && !HOW.contains(&arg.as_str())).collect()
}

/// How careful Redis is: `volatile` on the command line means one that keeps nothing on disk.
pub fn redis_care() -> Care {
    if std::env::args().any(|arg| arg == "volatile") { Care::Fast } else { Care::Safe }
}

/// A directory of this run, removed with its owner.
pub struct Dir(PathBuf);

impl Dir {
    /// Makes it.
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("onrush-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts servers, which blocks until they answer.
pub async fn servers<T: Send + 'static>(start: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> T {
    tokio::task::spawn_blocking(start).await.unwrap().unwrap()
}

/// A Redis of this run, with its data under `dir`.
pub fn redis(dir: &Path) -> anyhow::Result<Server> {
    Server::redis(dir, redis_care(), &Reach::Tcp)
}

/// A child that is killed with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds that a process has kept processors busy; 0 where Linux does not tell.
pub fn process_cpu_s(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let ticks = stat.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).take(2);
    // Linux counts in hundredths of a second for everybody who asks.
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Seconds that Redis has kept processors busy, by its own account.
pub async fn redis_cpu_s(redis: &Redis) -> f64 {
    let info: redis::InfoDict = redis::cmd("INFO").arg("cpu").query_async(&mut redis.commands()).await.unwrap();
    let of = |field: &str| info.get::<f64>(field).unwrap_or(0.0);
    of("used_cpu_user") + of("used_cpu_sys")
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 0.5)
}

/// The value below which this part of all lies.
pub fn percentile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values[at.min(values.len() - 1)]
}
