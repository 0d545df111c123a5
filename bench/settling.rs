//! Settlement: notifications told three times over, half of them about orders that the sweep closes meanwhile.

#[path = "support/settlement.rs"]
mod settlement;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use onrush::app::App;
use onrush::check;
use onrush::config::Config;
use onrush::dev::servers::database_url;
use onrush::payments;
use onrush::platform::clock::Clock;
use onrush::platform::hmac::SharedSecret;
use onrush::schema;

use super::support::{ROUNDS, median, percentile};
use super::{Bench, Process};
use settlement::{CONNECTIONS, COPIES, NOT_ONCE, UNFINISHED};

/// Orders of a round: each has one notification.
const NOTIFICATIONS: usize = 5_000;
/// The database of this part alone: its end is checked whole.
const DATABASE: &str = "onrush_settlement";
const SECRET: &str = "a-sandbox-secret-of-the-benchmark";
/// The workers have so long to end what is left of a round.
const PATIENCE: Duration = Duration::from_secs(300);

impl Bench {
    /// One API process hears all notifications while this process sweeps; then a worker ends what is left.
    pub async fn settled(&mut self) {
        println!(
            "\n| {NOTIFICATIONS} notifications, each {COPIES} times over {CONNECTIONS} connections | notifications per second | \
             p50 ms | p99 ms | orders that met the sweep | late | sent again |\n|---|---|---|---|---|---|---|"
        );
        let settings = self.settings_of_settlement().await;
        let api = process(&settings, "api", "/readyz");
        let mut own = settings.clone();
        own.push(("payments.sandbox_url", api.url.clone()));
        let app = App::connect(Config::load(None, &own).unwrap(), Clock::System).await.unwrap();
        let (mut rates, mut latencies, mut swept, mut late, mut refused) = (Vec::new(), Vec::new(), 0, 0, 0);
        for _ in 0..ROUNDS {
            let before = count(&app, "SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'late'").await;
            let (sent, met) = round(&app, &api.url).await;
            late += count(&app, "SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'late'").await - before;
            end(&app, &own).await;
            rates.push(sent.latencies.len() as f64 / sent.took.as_secs_f64());
            latencies.extend(sent.latencies.iter().map(|took| took.as_secs_f64() * 1e3));
            (swept, refused) = (swept + met, refused + sent.refused);
        }
        println!(
            "| all {ROUNDS} rounds | {:.0} | {:.2} | {:.2} | {swept} | {late} | {refused} |",
            median(rates),
            median(latencies.iter().copied()),
            percentile(latencies.iter().copied(), 0.99),
        );
    }

    /// A database of its own, migrated, on the servers of this run, and the settings that lead there.
    async fn settings_of_settlement(&self) -> Vec<(&'static str, String)> {
        let (mysql, redis) = &self.servers;
        let settings = vec![
            ("database_url", database_url(mysql.url(), DATABASE)),
            ("redis_url", redis.url().to_owned()),
            ("redis_prefix", "settlement".to_owned()),
            ("auth.jwt_secret", "a-secret-of-the-benchmark-with-32-bytes".to_owned()),
            ("payments.sandbox", "true".to_owned()),
            ("payments.sandbox_secret", SECRET.to_owned()),
            ("log.filter", "error".to_owned()),
        ];
        let server = sqlx::MySqlPool::connect(mysql.url()).await.unwrap();
        let create = format!("CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");
        sqlx::raw_sql(&create).execute(&server).await.unwrap();
        let app = App::connect(Config::load(None, &settings).unwrap(), Clock::System).await.unwrap();
        schema::migrate(&app.db).await.unwrap();
        settings
    }
}

/// A process of the service with the sandbox in it.
fn process(settings: &[(&'static str, String)], roles: &str, ready: &str) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_onrush"));
    Process::start(program, &["serve", "--sandbox", "--roles", roles], settings, ready)
}

async fn count(app: &App, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&app.db).await.unwrap()
}

/// Sends the notifications of new orders while this process sweeps; how many orders the sweeps met.
async fn round(app: &App, service: &str) -> (settlement::Sent, u64) {
    let all = settlement::fill(&app.db, app.clock.now(), NOTIFICATIONS).await;
    let (over, secret) = (AtomicBool::new(false), SharedSecret::new(SECRET.as_bytes()));
    let sending = async {
        let sent = settlement::send(service, &secret, &app.clock, &all).await;
        over.store(true, Ordering::SeqCst);
        sent
    };
    let sweeping = async {
        let mut met = 0;
        while !over.load(Ordering::SeqCst) {
            met += payments::sweep_due(app).await.unwrap();
        }
        met
    };
    tokio::join!(sending, sweeping)
}

/// Lets a worker decide late money and give the courses; then every order has ended once, and the books are clean.
async fn end(app: &App, settings: &[(&'static str, String)]) {
    let worker = process(settings, "worker,scheduler", "/healthz");
    let began = Instant::now();
    while count(app, UNFINISHED).await > 0 {
        assert!(began.elapsed() < PATIENCE, "orders are left unfinished");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(worker);
    assert_eq!(count(app, NOT_ONCE).await, 0, "a payment did not end once");
    let findings = check::findings(app, false).await.unwrap();
    let violated: Vec<_> = findings.iter().filter(|finding| !finding.violations.is_empty()).collect();
    assert!(violated.is_empty(), "{violated:#?}");
}
