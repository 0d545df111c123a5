//! The flows under load, against a floor in the same run. `script/bench` runs it.
//!
//! The floor is a bare axum route that verifies the same JWT and returns a fixed body. Every scenario is driven by the
//! same `wrk` script with the same tokens, in turn with the floor, and the ratio is taken pair by pair: on a noisy
//! machine only ratios mean much. Medians are reported.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on has nothing to report")]

#[path = "../tests/it/support/delay.rs"]
mod delay;
mod placing;
#[path = "support/process.rs"]
mod process;
mod settling;
mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axum::extract::State;
use onrush::app::App;
use onrush::auth::{self, CurrentUser, UserId};
use onrush::config::Config;
use onrush::dev::servers::{Care, Reach, Server, database_url};
use onrush::http;
use onrush::platform::clock::Clock;
use onrush::platform::id::Id;
use onrush::platform::money::Money;
use onrush::schema;
use onrush::seckill::{self, NewActivity};

use process::Process;
use support::{Dir, ROUNDS, median};

/// Distinct users.
const USERS: usize = 400_000;
/// Seconds of one measurement.
const SECONDS: u64 = 6;
/// Connections of wrk.
const CONNECTIONS: usize = 256;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("floor") {
        return floor().await;
    }
    Bench::start().await.run().await;
}

/// The floor: the same token verified, a fixed body, nothing else.
async fn floor() {
    let config = Config::load(None, &[]).unwrap();
    let app = App::connect(config, Clock::System).await.unwrap();
    async fn answer(_user: CurrentUser, State(_): State<App>) -> axum::Json<serde_json::Value> {
        axum::Json(serde_json::json!({ "code": 100, "msg": "正在排队", "id": "01936f3c7a3b70008000000000000001" }))
    }
    let router = axum::Router::new().route("/floor", axum::routing::any(answer)).with_state(app.clone());
    let listener = tokio::net::TcpListener::bind(&app.config.http.listen).await.unwrap();
    axum::serve(listener, router).await.unwrap();
}

/// One measurement.
#[derive(Clone, Copy, Default)]
struct Measured {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    answers: u64,
    refused: u64,
    broken: u64,
    /// Processor µs per request: of the process that answers, and of Redis.
    own_us: f64,
    redis_us: f64,
}

struct Bench {
    app: App,
    servers: (Server, Server),
    dir: Dir,
    floor: Process,
    api: Process,
}

/// Limits of the routes that are measured.
const LIMITS: [&str; 5] = [
    "limits.order_per_account",
    "limits.order_per_address",
    "limits.submit_per_address",
    "limits.poll_per_account",
    "limits.poll_per_address",
];

/// The URL by which the measured process reaches a server: `delayed` on the command line means a way that takes a
/// millisecond longer in either direction.
fn reached(url: &str) -> String {
    if std::env::args().any(|arg| arg == "delayed") {
        delay::slow_way(url, Duration::from_millis(1))
    } else {
        url.to_owned()
    }
}

impl Bench {
    async fn start() -> Self {
        let dir = Dir::new();
        let path = dir.path().join("servers");
        let (mysql, redis) =
            support::servers(move || Ok((Server::mysql(&path, Care::Safe, &Reach::Tcp)?, support::redis(&path)?)))
                .await;
        let at = (mysql.url().to_owned(), redis.url().to_owned());
        let (mysql_way, redis_way) = support::servers(move || Ok((reached(&at.0), reached(&at.1)))).await;
        let mut settings: Vec<(&'static str, String)> = vec![
            ("database_url", database_url(&mysql_way, "onrush")),
            ("redis_url", redis_way),
            ("auth.jwt_secret", "a-secret-of-the-benchmark-with-32-bytes".to_owned()),
            ("auth.access_token_s", "86400".to_owned()),
            ("log.filter", "warn".to_owned()),
        ];
        // Counted and never reached: everything comes from one address here.
        settings.extend(LIMITS.map(|name| (name, "10000000".to_owned())));
        let server = sqlx::MySqlPool::connect(mysql.url()).await.unwrap();
        sqlx::query("CREATE DATABASE IF NOT EXISTS onrush CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
            .execute(&server)
            .await
            .unwrap();
        let app = App::connect(Config::load(None, &settings).unwrap(), Clock::System).await.unwrap();
        schema::migrate(&app.db).await.unwrap();
        let floor = Process::start(&std::env::current_exe().unwrap(), &["floor"], &settings, "/floor");
        let api =
            Process::start(Path::new(env!("CARGO_BIN_EXE_onrush")), &["serve", "--roles", "api"], &settings, "/readyz");
        let bench = Self { app, servers: (mysql, redis), dir, floor, api };
        bench.write_tokens();
        bench
    }

    /// Access tokens of [`USERS`] users; user n has the id n+1.
    fn write_tokens(&self) {
        let mut file = std::io::BufWriter::new(std::fs::File::create(self.dir.path().join("tokens")).unwrap());
        for n in 0..USERS {
            writeln!(file, "{}", auth::access_token(&self.app, user(n), auth::Role::User).unwrap()).unwrap();
        }
    }

    fn wrk(&self, process: &Process, path: &str, method: &str, body: &str, paths: Option<&Path>) -> Measured {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/requests.lua");
        let mut command = Command::new("wrk");
        command
            .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{SECONDS}s"), "--latency", "-s"])
            .arg(script)
            .arg(format!("{}{path}", process.url))
            .arg("--");
        command.arg(self.dir.path().join(if paths.is_some() { "winners" } else { "tokens" })).arg(method).arg(body);
        command.args(paths);
        let before = self.cpu_s(process);
        let output = command.output().expect("wrk (apt install wrk)");
        let after = self.cpu_s(process);
        let (own, redis) = (after.0 - before.0, after.1 - before.1);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line =
            text.lines().find_map(|line| line.strip_prefix("RESULT ")).unwrap_or_else(|| panic!("wrk said: {text}"));
        let n: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        Measured {
            rate: n[0] / n[1] * 1e6,
            p50_ms: n[2] / 1e3,
            p99_ms: n[3] / 1e3,
            answers: n[0] as u64,
            refused: n[4] as u64,
            broken: n[5] as u64,
            own_us: own * 1e6 / n[0],
            redis_us: redis * 1e6 / n[0],
        }
    }

    /// Seconds that `process` and Redis have kept processors busy.
    fn cpu_s(&self, process: &Process) -> (f64, f64) {
        let redis = support::redis_cpu_s(&self.app.redis);
        let redis = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(redis));
        (support::process_cpu_s(process.running.0.id()), redis)
    }

    async fn activity(&self, stock: i64) -> seckill::ActivityId {
        let course: Id<()> = Id::new();
        sqlx::query("INSERT INTO courses (id, title, summary, price_fen, published, created_at) VALUES (?, 'bench', '', 100, 1, NOW(3))")
            .bind(course)
            .execute(&self.app.db)
            .await
            .unwrap();
        let now = self.app.clock.now();
        let new = NewActivity {
            id: seckill::ActivityId::new(),
            course: onrush::catalogue::CourseId::from_uuid(course.uuid()),
            title: "bench".to_owned(),
            price: Money::fen(100),
            stock,
            per_user_limit: 1,
            pay_deadline_s: 3600,
            starts_at: now,
            ends_at: now.plus(Duration::from_secs(7200)),
        };
        seckill::create_activity(&self.app, None, new).await.unwrap().id
    }

    /// Measures a scenario in turn with the floor and adds a row. The run stops where answers are not what is measured:
    /// refusals or, by `is_refusal`, anything else.
    fn compare(&mut self, name: &str, aim: &str, is_refusal: bool, mut scenario: impl FnMut(&Self) -> Measured) {
        let (mut floors, mut runs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            floors.push(self.wrk(&self.floor, "/floor", "POST", "", None));
            let run = scenario(self);
            let (answers, wrong) = (run.answers, if is_refusal { run.answers - run.refused } else { run.refused });
            assert!(
                wrong + run.broken == 0,
                "{name}: of {answers} answers {wrong} were others, and {} broke",
                run.broken
            );
            runs.push(run);
        }
        let pick = |of: fn(&Measured) -> f64, from: &[Measured]| median(from.iter().map(of));
        let ratio = median(runs.iter().zip(&floors).map(|(run, floor)| run.rate / floor.rate));
        let row = format!(
            "| {name} | {:.0} | {:.2} | {:.2} | {:.0} | **{ratio:.2}** | {aim} | {:.1}, {:.1} | {:.1} |",
            pick(|m| m.rate, &runs),
            pick(|m| m.p50_ms, &runs),
            pick(|m| m.p99_ms, &runs),
            pick(|m| m.rate, &floors),
            pick(|m| m.own_us, &runs),
            pick(|m| m.redis_us, &runs),
            pick(|m| m.own_us, &floors),
        );
        println!("{row}");
    }

    async fn run(mut self) {
        // `script/bench submits sweep` runs those alone.
        let args = support::words();
        let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
        println!(
            "| scenario | per second | p50 ms | p99 ms | floor per second | ratio to the floor | aim | processor µs per request: service, Redis | floor |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        if wanted("submits") {
            self.submits().await;
        }
        if wanted("orders") {
            self.orders().await;
        }
        if wanted("placing") {
            self.placed().await;
        }
        if wanted("sweep") {
            self.swept().await;
        }
        if wanted("settlement") {
            self.settled().await;
        }
    }

    /// Submissions that win, that come too late, and polls of those that won.
    async fn submits(&mut self) {
        let path = |activity| format!("{}/seckill/activities/{activity}/submissions", http::API);
        let mut wins = Vec::new();
        for _ in 0..ROUNDS {
            wins.push(self.activity(10_000_000).await);
        }
        let mut fresh = wins.clone().into_iter();
        self.compare("submit that wins", "≥ 0.70", false, |bench| {
            let activity = fresh.next().unwrap();
            bench.wrk(&bench.api, &path(activity), "POST", "", None)
        });
        let empty = self.activity(1).await;
        seckill::submit(&self.app, empty, user(USERS)).await.unwrap();
        self.compare("submit after sold out", "≥ 0.95", true, |bench| {
            bench.wrk(&bench.api, &path(empty), "POST", "", None)
        });
        let paths = self.poll_paths(wins[0]).await;
        let polls = |bench: &Self| bench.wrk(&bench.api, "", "GET", "", Some(&paths));
        self.compare("poll of a waiting submission", "≥ 0.75", false, polls);
        for activity in wins {
            self.forget(activity).await;
        }
    }

    async fn orders(&mut self) {
        self.make_users().await;
        let runtime = tokio::runtime::Handle::current();
        let mut courses = Vec::new();
        for _ in 0..ROUNDS {
            courses.push(self.course().await);
        }
        let mut fresh = courses.into_iter();
        self.compare("order create", "", false, |bench| {
            // Another course each round: the idempotency keys repeat, and with another body they would be refused.
            let course = fresh.next().unwrap();
            tokio::task::block_in_place(|| runtime.block_on(bench.forget_keys()));
            let body = format!("{{\"course_ids\":[\"{course}\"]}}");
            bench.wrk(&bench.api, &format!("{}/orders", http::API), "POST", &body, None)
        });
    }

    /// Gives the users that the tokens name their rows: an order of an account that is gone is refused.
    async fn make_users(&self) {
        const PAGE: usize = 2_000;
        for first in (0..USERS).step_by(PAGE) {
            let mut users =
                sqlx::QueryBuilder::new("INSERT INTO users (id, phone, password_hash, nickname, role, created_at) ");
            users.push_values(first..(first + PAGE).min(USERS), |mut row, n| {
                row.push_bind(user(n)).push_bind(format!("b{n}")).push("'none', 'bench', 'user', NOW(3)");
            });
            users.build().execute(&self.app.db).await.unwrap();
        }
    }

    async fn course(&self) -> Id<()> {
        let course: Id<()> = Id::new();
        let insert = "INSERT INTO courses (id, title, summary, price_fen, published, created_at) VALUES (?, 'bench', '', 9900, 1, NOW(3))";
        sqlx::query(insert).bind(course).execute(&self.app.db).await.unwrap();
        course
    }

    async fn forget_keys(&self) {
        sqlx::query("TRUNCATE TABLE idempotency_keys").execute(&self.app.db).await.unwrap();
    }

    /// The users who won `activity` poll their own tasks: their paths, and beside them their tokens.
    async fn poll_paths(&self, activity: seckill::ActivityId) -> PathBuf {
        let path = self.dir.path().join("paths");
        let keys = self.app.engine.keys(&seckill::queue(activity));
        let mut held: std::collections::HashMap<String, String> =
            redis::cmd("HGETALL").arg(keys.meta()).query_async(&mut self.app.redis.commands()).await.unwrap();
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        let mut tokens = std::io::BufWriter::new(std::fs::File::create(self.dir.path().join("winners")).unwrap());
        for n in 0..USERS {
            let Some(value) = held.remove(&format!("u{}", user(n))) else { continue };
            let task = value.split_once(':').unwrap().1.to_owned();
            writeln!(file, "{}/tasks/{task}.seckill.{activity}", http::API).unwrap();
            writeln!(tokens, "{}", auth::access_token(&self.app, user(n), auth::Role::User).unwrap()).unwrap();
        }
        path
    }

    async fn forget(&self, activity: seckill::ActivityId) {
        let keys = self.app.engine.keys(&seckill::queue(activity));
        let _: i64 = redis::cmd("UNLINK").arg(keys.stream()).query_async(&mut self.app.redis.commands()).await.unwrap();
        sqlx::query("DELETE FROM seckill_activities WHERE id = ?").bind(activity).execute(&self.app.db).await.unwrap();
    }
}

fn user(n: usize) -> UserId {
    UserId::from_uuid(uuid::Uuid::from_u128(n as u128 + 1))
}
