//! What a service costs in which nothing happens: what Redis and MySQL are asked, over how many connections, and which part
//! of a processor each of the three uses, by the number of processes and of activities on sale. `script/bench idle` runs it.
//!
//! A measurement is named `<processes>x<activities>`; without one on the command line all are made. `binary=<path>` measures
//! another build of the service, and `commands` adds which commands Redis was asked most.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on has nothing to report")]

mod gates;
#[path = "support/process.rs"]
mod process;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use onrush::app::App;
use onrush::config::Config;
use onrush::dev::servers::{Care, Reach, Server, database_url};
use onrush::platform::clock::Clock;
use onrush::schema;
use onrush::seckill::ActivityId;
use sqlx::{MySqlPool, QueryBuilder};

use process::{Process, is_answered};
use support::Dir;

/// Processes at once, and activities on sale.
const PROCESSES: [usize; 3] = [1, 4, 16];
const ACTIVITIES: [usize; 3] = [0, 50, 200];
/// What has just started is not idle yet: its queues are measured for a minute more.
const REST: Duration = Duration::from_secs(75);
/// Length of a measurement.
const MEASURED: Duration = Duration::from_secs(20);
/// Commands that are shown.
const SHOWN: usize = 15;

#[tokio::main]
async fn main() {
    let mut bench = Bench::start().await;
    let words = support::words();
    if words.iter().any(|word| word == "gates") {
        return gates::measure(&bench.app).await;
    }
    let named: Vec<(usize, usize)> = words.iter().filter_map(|word| cell(word)).collect();
    let all = ACTIVITIES.iter().flat_map(|activities| PROCESSES.map(|processes| (processes, *activities)));
    println!(
        "\n| processes | activities on sale | Redis: commands a second | connections | MySQL: statements a second | connections \
         | % of a processor: service | Redis | MySQL |\n|---|---|---|---|---|---|---|---|---|"
    );
    for (processes, activities) in if named.is_empty() { all.collect() } else { named } {
        bench.measure(processes, activities).await;
    }
}

fn cell(word: &str) -> Option<(usize, usize)> {
    let (processes, activities) = word.split_once('x')?;
    Some((processes.parse().ok()?, activities.parse().ok()?))
}

struct Bench {
    app: App,
    /// Not through the pool of the service.
    mysql: MySqlPool,
    settings: Vec<(&'static str, String)>,
    program: PathBuf,
    dir: Dir,
    #[expect(dead_code, reason = "they end with it")]
    servers: (Server, Server),
}

/// What was counted when.
struct Counted {
    at: Instant,
    commands: BTreeMap<String, u64>,
    statements: u64,
    /// Seconds that the service's processes, Redis and MySQL have kept processors busy.
    cpu_s: [f64; 3],
}

impl Bench {
    async fn start() -> Self {
        let dir = Dir::new();
        let path = dir.path().join("servers");
        let servers =
            support::servers(move || Ok((Server::mysql(&path, Care::Safe, &Reach::Tcp)?, support::redis(&path)?)))
                .await;
        let settings: Vec<(&'static str, String)> = vec![
            ("database_url", database_url(servers.0.url(), "onrush")),
            ("redis_url", servers.1.url().to_owned()),
            ("auth.jwt_secret", "a-secret-of-the-benchmark-with-32-bytes".to_owned()),
            ("log.filter", "error".to_owned()),
        ];
        let mysql = MySqlPool::connect(servers.0.url()).await.unwrap();
        sqlx::query("CREATE DATABASE onrush CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").execute(&mysql).await.unwrap();
        let app = App::connect(Config::load(None, &settings).unwrap(), Clock::System).await.unwrap();
        schema::migrate(&app.db).await.unwrap();
        let other = std::env::args().find_map(|arg| arg.strip_prefix("binary=").map(PathBuf::from));
        let program = other.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_onrush")).to_owned());
        Self { app, mysql, settings, program, dir, servers }
    }

    async fn measure(&mut self, processes: usize, activities: usize) {
        sqlx::query("DELETE FROM seckill_activities").execute(&self.app.db).await.unwrap();
        let _: () = redis::cmd("FLUSHALL").query_async(&mut self.app.redis.commands()).await.unwrap();
        self.open(activities).await;
        let connections = self.connections().await;
        let (program, settings) = (&self.program, &self.settings);
        let start = || (0..processes).map(|_| Process::start(program, &["serve"], settings, "/readyz")).collect();
        let running: Vec<Process> = tokio::task::block_in_place(start);
        tokio::time::sleep(REST).await;
        let before = self.count(&running).await;
        tokio::time::sleep(MEASURED).await;
        let after = self.count(&running).await;
        let open = self.connections().await;
        assert!(running.iter().all(|process| is_answered(&process.url, "/readyz")), "not all answer");
        let seconds = (after.at - before.at).as_secs_f64();
        let total = |counted: &Counted| counted.commands.values().sum::<u64>();
        let commands = (total(&after) - total(&before)) as f64 / seconds;
        let statements = (after.statements - before.statements) as f64 / seconds;
        let [service, redis, mysql] = std::array::from_fn(|n| (after.cpu_s[n] - before.cpu_s[n]) / seconds * 100.0);
        println!(
            "| {processes} | {activities} | {commands:.0} | {} | {statements:.0} | {} | {service:.1} | {redis:.1} | {mysql:.1} |",
            open.0 - connections.0,
            open.1 - connections.1,
        );
        if std::env::args().any(|arg| arg == "commands") {
            show(&before, &after, seconds);
        }
    }

    /// Activities that are on sale for hours.
    async fn open(&self, activities: usize) {
        if activities == 0 {
            return;
        }
        let now = self.app.clock.now();
        let hour = Duration::from_secs(3600);
        let mut insert = QueryBuilder::new(
            "INSERT INTO seckill_activities (id, course_id, title, price_fen, stock, stock_left, per_user_limit, \
             pay_deadline_s, starts_at, ends_at, created_at) ",
        );
        insert.push_values(0..activities, |mut row, _| {
            row.push_bind(ActivityId::new()).push_bind(ActivityId::new()).push("'bench', 100, 100, 100, 1, 600");
            row.push_bind(now.minus(hour)).push_bind(now.plus(hour * 12)).push_bind(now);
        });
        insert.build().persistent(false).execute(&self.app.db).await.unwrap();
    }

    async fn count(&self, running: &[Process]) -> Counted {
        let mut asked = redis::cmd("INFO");
        let stats: redis::InfoDict =
            asked.arg("commandstats").query_async(&mut self.app.redis.commands()).await.unwrap();
        let of = |(name, _): (&String, &redis::Value)| {
            let text: String = stats.get(name)?;
            let calls = text.strip_prefix("calls=")?.split(',').next()?.parse().ok()?;
            Some((name.strip_prefix("cmdstat_")?.to_owned(), calls))
        };
        let commands = stats.iter().filter_map(of).collect();
        let (_, statements): (String, String) =
            sqlx::query_as("SHOW GLOBAL STATUS LIKE 'Questions'").fetch_one(&self.mysql).await.unwrap();
        let service = running.iter().map(|process| support::process_cpu_s(process.running.0.id())).sum();
        let mysqld = std::fs::read_to_string(self.dir.path().join("servers/mysql/server.pid")).unwrap_or_default();
        let mysqld = support::process_cpu_s(mysqld.trim().parse().unwrap_or(0));
        let cpu_s = [service, support::redis_cpu_s(&self.app.redis).await, mysqld];
        Counted { at: Instant::now(), commands, statements: statements.parse().unwrap(), cpu_s }
    }

    /// Connections to Redis and to MySQL.
    async fn connections(&self) -> (i64, i64) {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("clients").query_async(&mut self.app.redis.commands()).await.unwrap();
        let (_, threads): (String, String) =
            sqlx::query_as("SHOW GLOBAL STATUS LIKE 'Threads_connected'").fetch_one(&self.mysql).await.unwrap();
        (info.get("connected_clients").unwrap(), threads.parse().unwrap())
    }
}

/// Which commands were asked most.
fn show(before: &Counted, after: &Counted, seconds: f64) {
    let rate = |(name, calls): (&String, &u64)| {
        let more = calls - before.commands.get(name).copied().unwrap_or(0);
        (more, name.clone())
    };
    let mut rates: Vec<(u64, String)> = after.commands.iter().map(rate).collect();
    rates.sort_unstable_by(|a, b| b.cmp(a));
    let shown = rates.iter().take(SHOWN).map(|(calls, name)| format!("{name} {:.1}", *calls as f64 / seconds));
    println!("{}", shown.collect::<Vec<_>>().join(", "));
}
