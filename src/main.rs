//! The command line.

#[path = "main/admin.rs"]
mod admin;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use onrush::app::App;
use onrush::config::{self, Config};
use onrush::dev::{demo, playground};
use onrush::engine::schedule::Crontab;
use onrush::http;
use onrush::platform::clock::Clock;
use onrush::platform::output::{OutputClosed, say};
use onrush::platform::{day, telemetry};
use onrush::schema;
use onrush::serve::{ProcessRole, Serving, raise_file_limit, until_told_to_stop};
use tokio::net::TcpListener;

/// A service that takes longer to say whether it is ready is not.
const READY_TIMEOUT: Duration = Duration::from_secs(7);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Orders and flash sales (seckill) for an online-course platform: one binary on MySQL and Redis.
///
/// Try it with `onrush dev`: it brings its own servers and demo data. In production run `onrush migrate` once for each
/// new version and any number of `onrush serve`.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(DevArgs),
    Serve(ServeArgs),
    /// Brings the database's schema up to date.
    ///
    /// Run it once for each new version, before the first `onrush serve` of it. It is safe while the version before
    /// still serves, and safe to repeat; copies that run at once wait for each other.
    Migrate(ConfigArgs),
    /// Loads the demo data: accounts, courses, a coupon, points, a running seckill.
    ///
    /// What is there already stays as it is, so it is safe to repeat. The accounts have passwords that everybody can
    /// read in the source, one of them an administrator's: a database where other people have accounts is refused.
    Seed(SeedArgs),
    Check(CheckArgs),
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Asks the service on this machine whether it is ready: exit code 0 if so. For container health checks.
    ///
    /// It asks /readyz at ONRUSH_HTTP__LISTEN and needs no other setting.
    Ready,
    /// Prints the OpenAPI document of the API.
    ///
    /// It needs no settings and no servers. The repository keeps it in openapi/openapi.json; `/openapi.json` of a
    /// running service gives the same.
    Openapi,
    Config(PrintConfigArgs),
    Crontab(CrontabArgs),
}

// Where the settings come from, for every command that connects. (Not a doc comment: it would become their help.)
#[derive(Args)]
struct ConfigArgs {
    /// A TOML file with settings; the environment wins over it.
    #[arg(long, env = "ONRUSH_CONFIG", value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The file; a name that is empty is none: what a compose file makes of a variable that is not set.
    fn file(&self) -> Option<&Path> {
        self.config.as_deref().filter(|file| !file.as_os_str().is_empty())
    }
}

/// Runs the service until SIGTERM or Ctrl-C.
///
/// Settings come from the environment and an optional TOML file: DATABASE_URL, REDIS_URL, ONRUSH_AUTH__JWT_SECRET are
/// needed, and every other has a default; a missing or bad one is named with what it should look like.
///
/// SIGTERM stops in order within ONRUSH_HTTP__DRAIN_S seconds: readiness fails, no new connections, requests and tasks
/// under way end. A second signal exits at once.
#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// What this process does. Without `api` it still answers /healthz and /readyz, and shows operators their pages.
    #[arg(long, value_delimiter = ',', default_value = "api,worker,scheduler", value_name = "ROLES")]
    roles: Vec<ProcessRole>,
    /// Switches the sandbox payment gateway on, where anybody may "pay". Never in production.
    #[arg(long)]
    sandbox: bool,
    /// Migrates the schema first. Without it a schema that is behind is refused.
    #[arg(long)]
    migrate: bool,
}

/// Prints a file with every setting, its default and what it is for.
///
/// It needs no settings and no servers. The repository keeps it in onrush.example.toml.
#[derive(Args)]
struct PrintConfigArgs {
    /// Print the file, to start from.
    #[arg(long, required = true)]
    example: bool,
}

// `seed`'s own words are at its line above.
#[derive(Args)]
struct SeedArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Loads them beside the accounts of other people: whoever reads the source is an administrator there.
    #[arg(long)]
    beside_other_people: bool,
}

/// Proves on a live system what must always hold: exit code 0 when it does.
///
/// One line for each invariant, with the offending ids: stock and seats, points and coupons, payments and grants, and
/// whether Redis agrees with MySQL. What is merely under way is not a violation. It only reads, unless `--repair` is
/// given.
#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Mends the stock in Redis where it differs from MySQL's.
    #[arg(long)]
    repair: bool,
}

/// Runs everything on this machine, with demo data: for trying and for developing.
///
/// Starts a private MariaDB or MySQL and a private Redis or Valkey as child processes (a system-wide one is never
/// touched), loads demo data once, runs the API, workers and scheduler in this process, and prints addresses, logins
/// and lines to paste. Data stay in the directory until `--fresh`. Ctrl-C stops everything in order; nothing is left
/// running whatever becomes of this process.
#[derive(Args)]
struct DevArgs {
    /// Where data, settings and logs of the servers are kept.
    #[arg(long, default_value = ".onrush", value_name = "DIR")]
    dir: PathBuf,
    /// The port of the API; when it is taken, the next free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Forgets all data first; the settings in the directory stay.
    #[arg(long)]
    fresh: bool,
    /// Seconds to pay an order; else what the settings in the directory say (60 at first, 1800 in production).
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pay_deadline_s: Option<u64>,
}

/// Says when a crontab expression runs, or what is wrong with it.
///
/// It needs no settings and no servers. The fields are `minute hour day_of_month month_of_year day_of_week`, with
/// Celery's meaning.
#[derive(Args)]
struct CrontabArgs {
    /// The expression, in quotes, such as "30 7 * * mon-fri".
    #[arg(required_unless_present = "batch")]
    expression: Option<String>,
    /// The time zone whose wall clock counts, by its IANA name.
    #[arg(long, default_value = "UTC", value_name = "ZONE")]
    tz: String,
    /// Runs after this instant, RFC 3339; now when absent.
    #[arg(long, value_name = "INSTANT")]
    from: Option<jiff::Timestamp>,
    /// How many runs are told.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Reads lines `expression<TAB>instant<TAB>zone` and answers each with the values of its fields and its next run.
    #[arg(long, conflicts_with_all = ["expression", "tz", "from", "count"])]
    batch: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("onrush: the runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(error) if error.is::<OutputClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("onrush: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => dev(args).await,
        Command::Serve(args) => serve(args).await,
        Command::Migrate(args) => migrate(args).await,
        Command::Seed(args) => seed(args).await,
        Command::Check(args) => check(args).await,
        Command::Admin(command) => admin::run(command).await,
        Command::Ready => ready().await,
        Command::Openapi => openapi(),
        Command::Config(args) => print_config(&args),
        Command::Crontab(args) => crontab(args),
    }
}

async fn dev(args: DevArgs) -> anyhow::Result<ExitCode> {
    raise_file_limit();
    let _ = http::metrics::METRICS.set(telemetry::init_metrics()?);
    let DevArgs { dir, port, fresh, pay_deadline_s } = args;
    playground::run(playground::Options { dir, port, fresh, pay_deadline_s }).await?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let overrides: &[(&str, String)] = if args.sandbox { &[("payments.sandbox", "true".to_owned())] } else { &[] };
    let config = Config::load(args.config.file(), overrides)?;
    let traces = telemetry::init(config.log.format, &config.log.filter, config.traces.settings().as_ref())?;
    if config.payments.sandbox && !args.sandbox {
        bail!(
            "the settings switch the sandbox payment gateway on (ONRUSH_PAYMENTS__SANDBOX): anybody could pay with \
             nothing. Take that setting out, or say `--sandbox` if you mean it"
        );
    }
    if config.payments.sandbox {
        tracing::warn!("THE SANDBOX PAYMENT GATEWAY IS ON: anybody can pay without money");
    }
    let gateways = config.payments.real_gateways();
    if gateways.is_empty() && !config.payments.sandbox {
        tracing::warn!("no payment gateway is on: orders can be made, and none that costs something can be paid");
    } else if !gateways.is_empty() {
        tracing::info!(gateways = gateways.join(","), "payment gateways are on");
        if !config.http.public_url.starts_with("https://") {
            tracing::warn!(
                public_url = config.http.public_url,
                "payment gateways call back to ONRUSH_HTTP__PUBLIC_URL: they want HTTPS, and cannot reach this machine's own addresses"
            );
        }
    }
    let http = &config.http;
    if http.operations_public {
        tracing::warn!("everybody sees the operators' pages: ONRUSH_HTTP__OPERATIONS_PUBLIC is on");
    } else if http.operations_listen.is_none() && http.operations_token.is_none() {
        tracing::info!("operators see no pages: set ONRUSH_HTTP__OPERATIONS_LISTEN or ONRUSH_HTTP__OPERATIONS_TOKEN");
    }
    raise_file_limit();
    // Set once: nothing before this has set it.
    let _ = http::metrics::METRICS.set(telemetry::init_metrics()?);
    let app = App::connect(config, Clock::System).await?;
    if args.migrate {
        schema::migrate(&app.db).await?;
    }
    let pending = schema::pending_migrations(&app.db).await?;
    if pending > 0 {
        bail!(
            "the schema is behind by {pending} migration(s): run `onrush migrate` first, or `onrush serve --migrate`"
        );
    }
    warn_of_what_is_open(&app).await;
    let listen = &app.config.http.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let serving = Serving::start(&app, listener, &args.roles).await?;
    tracing::info!(address = %serving.address(), roles = ProcessRole::names(&args.roles), "onrush is serving");
    if let Some(address) = serving.operations_address() {
        tracing::info!(%address, "operators are served");
    }
    until_told_to_stop().await?;
    tracing::info!(drain_s = app.config.http.drain_s, "onrush is stopping");
    if !serving.stop().await {
        tracing::warn!("something was still under way at the deadline and is left to the next process");
    }
    tracing::info!("onrush has stopped");
    if let Some(traces) = traces {
        traces.stop().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says at the start what leaves a door open: connections that can be read on their way, and passwords that are public.
async fn warn_of_what_is_open(app: &App) {
    for open in app.config.open_connections() {
        tracing::warn!("{open}");
    }
    match demo::open_accounts(app).await {
        Ok(phones) => phones.into_iter().for_each(|phone| {
            tracing::warn!(
                user.phone = phone,
                "A DEMO ACCOUNT IS OPEN: its password is in the source of onrush, for everybody to read. Delete the account \
                 before anybody else can reach this service"
            );
        }),
        // That it could not be looked at is no reason not to serve.
        Err(error) => tracing::warn!(error = format!("{error:#}"), "whether the demo accounts are open is not known"),
    }
}

/// Logs, settings and connections of a command that does one thing and ends.
async fn connect(args: &ConfigArgs) -> anyhow::Result<App> {
    let config = Config::load(args.file(), &[])?;
    telemetry::init_logs(config.log.format, &config.log.filter)?;
    App::connect(config, Clock::System).await
}

async fn require_current_schema(app: &App) -> anyhow::Result<()> {
    let pending = schema::pending_migrations(&app.db).await?;
    if pending > 0 {
        bail!("the schema is behind by {pending} migration(s): run `onrush migrate` first");
    }
    Ok(())
}

async fn migrate(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let app = connect(&args).await?;
    let applied = schema::migrate(&app.db).await?;
    say(format!("applied {applied} migration(s): the schema is current"))?;
    Ok(ExitCode::SUCCESS)
}

async fn seed(args: SeedArgs) -> anyhow::Result<ExitCode> {
    let app = connect(&args.config).await?;
    require_current_schema(&app).await?;
    if !args.beside_other_people && demo::has_other_people(&app).await? {
        bail!(
            "other people have accounts in this database, and the demo's passwords, one of them an administrator's, are \
             public: nothing was loaded. If this is no shop, say `onrush seed --beside-other-people`"
        );
    }
    demo::load(&app).await?;
    say(format!("the demo data are loaded; the logins are\n{}", demo::logins()))?;
    Ok(ExitCode::SUCCESS)
}

async fn check(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let app = connect(&args.config).await?;
    require_current_schema(&app).await?;
    let clean = onrush::check::run(&app, args.repair).await?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ready() -> anyhow::Result<ExitCode> {
    let listen = std::env::var("ONRUSH_HTTP__LISTEN").unwrap_or_else(|_| config::default_of("http.listen").to_owned());
    let mut address: SocketAddr = listen.parse().context("reading ONRUSH_HTTP__LISTEN")?;
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let client = reqwest::Client::builder().no_proxy().timeout(READY_TIMEOUT).build().context("building a client")?;
    let answer = client.get(format!("http://{address}/readyz")).send().await.context("asking the service")?;
    let status = answer.status();
    // Who asks by the exit code need not read it.
    let _ = say(answer.text().await.context("reading the answer")?);
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn openapi() -> anyhow::Result<ExitCode> {
    say(http::document().to_pretty_json().context("writing the OpenAPI document")?)?;
    Ok(ExitCode::SUCCESS)
}

fn print_config(_: &PrintConfigArgs) -> anyhow::Result<ExitCode> {
    say(config::example().trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn crontab(args: CrontabArgs) -> anyhow::Result<ExitCode> {
    if args.batch {
        for line in std::io::stdin().lines() {
            say(crontab_line(&line.context("reading lines")?))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let expression: Crontab = args.expression.unwrap_or_default().parse()?;
    let zone = day::zone(&args.tz).context("reading --tz")?;
    let mut at = args.from.unwrap_or_else(|| Clock::System.now().timestamp());
    for _ in 0..args.count {
        let Some(next) = expression.next_after(at, &zone) else { break };
        say(next.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z"))?;
        at = next;
    }
    Ok(ExitCode::SUCCESS)
}

/// The answer to one line of a batch: `0,30|7|…<TAB>next run`, or `error<TAB>why`.
fn crontab_line(line: &str) -> String {
    let answer = || -> anyhow::Result<String> {
        let mut parts = line.split('\t');
        let mut part = || parts.next().context("a line has an expression, an instant and a zone");
        let (expression, instant, zone) = (part()?.parse::<Crontab>()?, part()?, day::zone(part()?)?);
        let next = expression.next_after(instant.parse()?, &zone).context("has no next run")?;
        let fields = expression.values().map(|values| values.iter().map(u8::to_string).collect::<Vec<_>>().join(","));
        Ok(format!("{}\t{next}", fields.join("|")))
    };
    answer().unwrap_or_else(|error| format!("error\t{error:#}"))
}
