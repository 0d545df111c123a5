//! A service for one test: its own database and Redis prefix, its own clock, its own address.

use std::ops::Deref;
use std::time::{Duration, Instant};

use onrush::app::App;
use onrush::auth::{self, Role, UserId};
use onrush::config::Config;
use onrush::engine::Worker;
use onrush::jobs;
use onrush::platform::clock::{At, Clock};
use onrush::platform::db;
use onrush::schema;
use onrush::serve::{ProcessRole as Does, Serving};
use sqlx::{Connection, Executor, QueryBuilder};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::servers::{Addresses, blocking, servers};
use super::{Client, Process, Proxy, logs};

/// A condition that does not come true within this long fails its test.
const PATIENCE: Duration = Duration::from_secs(60);
/// Waits until `holds`, and fails the test when it does not.
#[track_caller]
pub fn eventually<F, Fut>(holds: F) -> impl Future<Output = ()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        // A question that is never answered fails the test too, and does not hang it.
        let asked = || tokio::time::timeout(2 * PATIENCE, holds());
        while !asked().await.unwrap_or_else(|_| panic!("what {caller} asks for was not answered")) {
            assert!(started.elapsed() < PATIENCE, "what {caller} waits for did not come true in {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What the service of a test and its processes sign tokens with.
pub const JWT_SECRET: &str = "a-secret-of-the-tests-with-32-bytes-or-more";
/// What the sandbox of a test signs with.
pub const SANDBOX_SECRET: &str = "a-sandbox-secret-of-the-tests";

/// Limits of requests.
const UNLIMITED: [&str; 14] = [
    "limits.in_flight_per_account",
    "limits.register_per_address",
    "limits.refresh_per_address",
    "limits.quote_per_account",
    "limits.quote_per_address",
    "limits.order_per_account",
    "limits.order_per_address",
    "limits.pay_per_account",
    "limits.pay_per_address",
    "limits.claim_per_account",
    "limits.claim_per_address",
    "limits.submit_per_address",
    "limits.poll_per_account",
    "limits.poll_per_address",
];

/// What a test may want otherwise.
#[derive(Default)]
pub struct Options {
    /// The system clock instead of one that [`Harness::advance`] moves.
    pub system_clock: bool,
    /// Settings, as (`section.name`, value).
    pub settings: Vec<(&'static str, String)>,
    /// Servers of its own instead of the shared ones ([`super::PrivateServers`]).
    pub servers: Option<Addresses>,
}

/// A service for one test, speaking HTTP. Its API is served; workers and periodic jobs are started by
/// [`Harness::start_workers`] alone, so a test that does not can run their passes by hand.
pub struct Harness {
    pub app: App,
    pub client: Client,
    settings: Vec<(&'static str, String)>,
    addresses: Addresses,
    /// The name of its database.
    pub database: String,
    serving: Option<Serving>,
}

/// Requests go to the service's own client: `h.get("/me", &alice)`.
impl Deref for Harness {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Somebody with an account.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: Uuid,
    pub phone: String,
    pub token: String,
}

/// Something to buy.
#[derive(Debug, Clone)]
pub struct Course {
    pub id: Uuid,
    pub chapters: Vec<Uuid>,
}

impl Course {
    /// Its id as the API writes it.
    pub fn no(&self) -> String {
        self.id.as_simple().to_string()
    }
}

impl Harness {
    /// With a clock that moves by hand, on the shared servers.
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        logs::show();
        let addresses = match options.servers {
            Some(addresses) => addresses,
            None => blocking(servers).await,
        };
        let unique = Uuid::now_v7().as_simple().to_string();
        let database = format!("onrush_test_{unique}");
        let mut server = sqlx::MySqlConnection::connect(&addresses.database("")).await.expect("MySQL");
        if addresses.clean_up {
            // A server for tests need not survive a power cut. One that forbids this is only slower.
            for relax in ["SET GLOBAL innodb_flush_log_at_trx_commit = 0", "SET GLOBAL sync_binlog = 0"] {
                let _ = server.execute(relax).await;
            }
        }
        let create = format!("CREATE DATABASE {database} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");
        server.execute(create.as_str()).await.expect("a database");
        server.close().await.expect("a goodbye");

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let mut settings = vec![
            ("database_url", addresses.database(&database)),
            ("redis_url", addresses.redis.clone()),
            ("redis_prefix", format!("t{unique}")),
            ("http.public_url", base.clone()),
            ("http.operations_public", "true".to_owned()),
            ("database.pool_size", "6".to_owned()),
            ("database.acquire_timeout_ms", "20000".to_owned()),
            ("auth.jwt_secret", JWT_SECRET.to_owned()),
            ("auth.login_attempts", "1000".to_owned()),
            ("auth.login_attempts_per_number", "1000000".to_owned()),
            ("auth.login_attempts_per_address", "1000000".to_owned()),
            ("payments.ask_again_after_ms", "0".to_owned()),
            // Tests ask again until something is so.
            ("seckill.submissions_max", "60000".to_owned()),
            ("payments.sandbox", "true".to_owned()),
            ("payments.sandbox_secret", SANDBOX_SECRET.to_owned()),
        ];
        // A test that hammers says so by its own settings.
        settings.extend(UNLIMITED.map(|name| (name, "0".to_owned())));
        settings.extend(options.settings);
        let config = Config::load(None, &settings).expect("settings");
        let clock = if options.system_clock { Clock::System } else { Clock::manual() };
        let app = App::connect(config, clock).await.expect("a service");
        schema::migrate(&app.db).await.expect("a schema");
        let serving = Serving::start(&app, listener, &[Does::Api]).await.expect("a server");
        Self { app, client: Client::new(base), settings, addresses, database, serving: Some(serving) }
    }

    /// Starts workers for every queue and every periodic job.
    pub fn start_workers(&self) {
        Worker::start(self.app.engine.clone(), jobs::registry(&self.app.config), self.app.clone(), &self.app.loops);
        jobs::start_periodic(&self.app);
        if matches!(self.app.clock, Clock::Manual(_)) {
            self.start_passes();
        }
    }

    /// Runs the passes at their periods in real time. No schedule comes due on a clock that stands still.
    fn start_passes(&self) {
        for schedule in jobs::own_schedules(&self.app.config, self.now()) {
            let Some(seconds) = schedule.every_s else { continue };
            let (app, task) = (self.app.clone(), schedule.task);
            self.app.loops.every(format!("pass:{task}"), Duration::from_secs(seconds.unsigned_abs()), move |_| {
                let (app, task) = (app.clone(), task.clone());
                async move { jobs::run_pass(app, &task).await.expect("a pass").map(drop) }
            });
        }
    }

    /// Another service on the same database and Redis, in this process, with its own memory and the same clock.
    pub async fn another(&self) -> Self {
        self.another_with(&[]).await
    }

    /// As [`Self::another`], with some settings otherwise.
    pub async fn another_with(&self, more: &[(&'static str, &str)]) -> Self {
        self.beside(more, false, self.app.clock.clone()).await
    }

    /// As [`Self::another`], by another clock.
    pub async fn with_clock(&self, clock: Clock) -> Self {
        self.beside(&[], false, clock).await
    }

    /// Another service, which gateways call at its own address or at this one's.
    async fn beside(&self, more: &[(&'static str, &str)], is_called: bool, clock: Clock) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let mut settings: Vec<_> = self.settings.iter().cloned().chain(more).collect();
        if is_called {
            settings.push(("http.public_url", base.clone()));
        }
        let config = Config::load(None, &settings).expect("settings");
        let app = App::connect(config, clock).await.expect("a service");
        let serving = Serving::start(&app, listener, &[Does::Api]).await.expect("a server");
        let addresses = Addresses { clean_up: false, ..self.addresses.clone() };
        let database = self.database.clone();
        Self { app, client: Client::new(base), settings, addresses, database, serving: Some(serving) }
    }

    /// A proxy to MySQL, and another service as [`Self::another`] that reaches the database by it, and that gateways call.
    /// This one's own words, as those of [`Self::count`], go past it.
    pub async fn through_mysql_proxy(&self) -> (Proxy, Self) {
        self.through_mysql_proxy_with(&[]).await
    }

    /// As [`Self::through_mysql_proxy`], with some settings otherwise.
    pub async fn through_mysql_proxy_with(&self, more: &[(&'static str, &str)]) -> (Proxy, Self) {
        let way = Proxy::to(&self.addresses.mysql).await;
        let url = way.database(&self.database);
        let more: Vec<_> = more.iter().copied().chain([("database_url", url.as_str())]).collect();
        let through = self.beside(&more, true, self.app.clock.clone()).await;
        (way, through)
    }

    /// Every connection of the pool answers, all at once, and none has a transaction open that somebody gave up.
    pub async fn no_connection_is_in_a_transaction(&self) {
        let (mut held, size) = (Vec::new(), self.app.config.database.pool_size);
        for n in 0..size {
            // Requests and work leave each other a part of it.
            let acquired = self.app.db.acquire();
            let mut conn =
                if n < size / 2 { db::for_requests(acquired).await } else { acquired.await }.expect("a connection");
            // Inside a transaction this is refused (ER_CANT_CHANGE_TX_CHARACTERISTICS).
            let set = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED";
            sqlx::query(set).execute(&mut *conn).await.expect("a connection outside of any transaction");
            // Nor does the driver believe so.
            assert_eq!(conn.transaction_depth(), 0);
            held.push(conn);
        }
    }

    /// Speaks with the operators' own listener.
    pub fn operations(&self) -> Client {
        let address = self.serving.as_ref().and_then(Serving::operations_address).expect("a listener of operators");
        Client::new(format!("http://{address}"))
    }

    /// Stops the service in order; true when nothing was left under way.
    pub async fn stop(&mut self) -> bool {
        self.serving.take().expect("a running service").stop().await
    }

    /// A real `onrush serve` on the same database and Redis, with these roles (`"api,worker"`) and more settings, as
    /// (`ONRUSH_…`, value). It runs on the system's clock.
    pub async fn process(&self, roles: &str, env: &[(&str, &str)]) -> Process {
        Process::start(self.env(), roles, env).await
    }

    /// The settings of the service as environment variables.
    pub fn env(&self) -> Vec<(String, String)> {
        let name_of = |path: &str| match path {
            "database_url" => "DATABASE_URL".to_owned(),
            "redis_url" => "REDIS_URL".to_owned(),
            path => format!("ONRUSH_{}", path.to_uppercase().replace('.', "__")),
        };
        self.settings.iter().map(|(path, value)| (name_of(path), value.clone())).collect()
    }

    /// Moves the clock.
    pub fn advance(&self, length: Duration) {
        self.app.clock.advance(length);
    }

    /// The service's time.
    pub fn now(&self) -> At {
        self.app.clock.now()
    }

    /// Waits until `holds`, and fails the test when it does not.
    #[track_caller]
    pub fn eventually<F, Fut>(&self, holds: F) -> impl Future<Output = ()>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = bool>,
    {
        eventually(holds)
    }

    /// A new account, with a token.
    pub async fn register(&self) -> Person {
        self.people_as(1, Role::User).await.remove(0)
    }

    /// A new administrator, with a token.
    pub async fn admin(&self) -> Person {
        self.people_as(1, Role::Admin).await.remove(0)
    }

    /// Many new accounts, with tokens.
    pub async fn people(&self, count: usize) -> Vec<Person> {
        self.people_as(count, Role::User).await
    }

    /// Straight into the table: nobody logs in with a password here, and hashing one takes long.
    pub async fn people_as(&self, count: usize, role: Role) -> Vec<Person> {
        let person = |_| {
            let id = UserId::new();
            // Unlike for every id of a process, and none that the API would give out.
            let phone = format!("t{}", &id.to_string()[13..]);
            Person { id: id.uuid(), phone, token: auth::access_token(&self.app, id, role).expect("a token") }
        };
        let people: Vec<Person> = (0..count).map(person).collect();
        for part in people.chunks(1000) {
            let mut insert =
                QueryBuilder::new("INSERT INTO users (id, phone, password_hash, nickname, role, created_at) ");
            insert.push_values(part, |mut row, person| {
                row.push_bind(person.id).push_bind(&person.phone).push_bind("none").push_bind("学员");
                row.push_bind(role.as_str()).push_bind(self.now());
            });
            insert.build().persistent(false).execute(&self.app.db).await.expect("accounts");
        }
        people
    }

    /// The only number of a query's only row.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.app.db).await.expect("a number")
    }

    /// Whether so many statements of this test's own database wait for row locks.
    pub async fn held_up(&self, statements: i64) -> bool {
        // MariaDB has no data_lock_waits, and its innodb_trx shows an old picture while anybody looks more often than
        // ten times a second: there, what runs for so long waits for a lock.
        let waiting = if self.count("SELECT VERSION() LIKE '%MariaDB%'").await == 1 {
            "SELECT COUNT(*) FROM information_schema.processlist \
             WHERE db = DATABASE() AND command <> 'Sleep' AND id <> CONNECTION_ID() AND time_ms > 300"
        } else {
            "SELECT COUNT(DISTINCT threads.thread_id) FROM performance_schema.data_lock_waits AS waits \
             JOIN performance_schema.threads AS threads ON threads.thread_id = waits.requesting_thread_id \
             WHERE threads.processlist_db = DATABASE()"
        };
        self.count(waiting).await >= statements
    }

    /// Puts a published course with three chapters on sale.
    pub async fn course(&self, price_fen: i64) -> Course {
        let course = Course { id: Uuid::now_v7(), chapters: (0..3).map(|_| Uuid::now_v7()).collect() };
        let insert =
            "INSERT INTO courses (id, title, summary, price_fen, published, created_at) VALUES (?, ?, ?, ?, 1, ?)";
        sqlx::query(insert)
            .bind(course.id)
            .bind(format!("课程 {}", course.id.as_simple()))
            .bind("一门课程")
            .bind(price_fen)
            .bind(self.now())
            .execute(&self.app.db)
            .await
            .expect("a course");
        for (position, chapter) in (1..).zip(&course.chapters) {
            sqlx::query("INSERT INTO chapters (id, course_id, position, title) VALUES (?, ?, ?, ?)")
                .bind(chapter)
                .bind(course.id)
                .bind(position)
                .bind(format!("第 {position} 章"))
                .execute(&self.app.db)
                .await
                .expect("a chapter");
        }
        course
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.app.loops.stop_signal().cancel();
        if !self.addresses.clean_up {
            return;
        }
        // The server stays: the database goes. A thread with a runtime of its own, since this one may be ending.
        let (url, database) = (self.addresses.database(""), self.database.clone());
        let drop_database = async move {
            let mut server = sqlx::MySqlConnection::connect(&url).await?;
            server.execute(format!("DROP DATABASE {database}").as_str()).await
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            // A database left behind is no reason to fail a test.
            let _ = std::thread::spawn(move || runtime.block_on(drop_database).map(|_| ())).join();
        }
    }
}
