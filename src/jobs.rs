//! Every background task and every periodic job, in one list; the periodic ones that are schedules in [`passes`].

mod passes;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::app::App;
use crate::config::Config;
use crate::engine::schedule::{RunHere, Scheduler};
use crate::engine::{Job, Outcome, QueueSpec, Registry};
use crate::orders::{Grant, OrderId};
use crate::sandbox;
use crate::{check, orders, payments, reconciliation, seckill};

pub use passes::{own_schedules, run_pass, schedulable};

/// The gates of activities are built where missing, compared and corrected this often.
const GATES_PERIOD: Duration = Duration::from_secs(1);
/// What is open at gateways that are switched off is counted this often.
const OFF_PERIOD: Duration = Duration::from_secs(60);
/// The sandbox gateway sends what is due this often.
const SANDBOX_PERIOD: Duration = Duration::from_millis(200);

/// Makes the features' counters that alerts look at, so that their first event is an increase and not a beginning.
pub fn prepare_counters() {
    payments::prepare_counters();
    seckill::jobs::prepare_counters();
}

/// As [`registry`], made once: for those who only look what is there.
pub fn catalog(app: &App) -> Arc<Registry<App>> {
    app.local::<Catalog>().0.get_or_init(|| Arc::new(registry(&app.config))).clone()
}

/// Made at first use.
#[derive(Default)]
struct Catalog(OnceLock<Arc<Registry<App>>>);

/// The tasks this process can run and the queues it consumes.
pub fn registry(config: &Config) -> Registry<App> {
    let seckill_queue =
        QueueSpec { name: "seckill", batch: config.seckill.batch_size, concurrency: config.seckill.batches_in_flight };
    let registry = passes::register(Registry::default());
    registry
        // One at a time: a bill may be long, and is held in memory.
        .queue(QueueSpec { name: "bills", batch: 1, concurrency: 1 })
        .single(reconciliation::fetch_bill)
        .queue(QueueSpec { name: "expiry", batch: 100, concurrency: 2 })
        .batch(payments::expire)
        .queue(QueueSpec { name: "grant", batch: 100, concurrency: 2 })
        .batch(grant)
        .queue(QueueSpec { name: "release", batch: 100, concurrency: 2 })
        .batch(|app, jobs| orders::jobs::release(app, jobs, seckill::give_back))
        .queue(QueueSpec { name: "late", batch: 20, concurrency: 2 })
        .batch(|app, jobs| payments::resolve_late(app, jobs, seckill::retake))
        .batch(payments::end_trades)
        .partitioned_queue(seckill_queue, |app| seckill::jobs::partitions(app).boxed())
        .batch(seckill::jobs::place)
}

/// Gives the courses of paid orders, and then has payments of other orders for them looked after.
async fn grant(app: App, jobs: Vec<Job<Grant>>) -> Vec<Outcome> {
    let paid: Vec<OrderId> = jobs.iter().map(|job| job.args.order_id).collect();
    let outcomes = orders::jobs::grant(app.clone(), jobs).await;
    if let Err(error) = payments::look_beside(&app, &paid).await {
        tracing::warn!(%error, "payments of other orders for the same courses are looked after in their own time");
    }
    outcomes
}

/// Starts to look whether something is open at a payment gateway that is switched off, for processes that would drive it.
pub fn start_watching(app: &App) {
    let watched = app.clone();
    app.loops.every("gateways.off", OFF_PERIOD, move |_| {
        let app = watched.clone();
        async move { payments::watch_switched_off(&app).await }
    });
}

/// Starts the scheduler, and the loops of the scheduler role that are not schedules: what must run more often than once
/// a second, and what builds the gates, since a unit must be on sale again within a second and a sale begin in its
/// second. Each is an idempotent pass, bounded in size; two processes that run the same one at once are harmless.
pub fn start_periodic(app: &App) {
    let every = |name: &str, period: Duration, pass: fn(App) -> BoxFuture<'static, anyhow::Result<()>>| {
        let app = app.clone();
        app.clone().loops.every(name, period, move |_| {
            // By a clock that is wrong nothing is done.
            if app.engine.is_held() { async { Ok(()) }.boxed() } else { pass(app.clone()) }
        });
    };
    let tick = Duration::from_millis(app.config.seckill.tick_ms);
    every("seckill.returns", tick, |app| async move { Ok(seckill::return_units(&app).await.map(drop)?) }.boxed());
    let gates = app.clone();
    app.loops.every("seckill.gates", GATES_PERIOD, move |pulse| {
        let app = gates.clone();
        async move {
            if app.engine.is_held() {
                return Ok(());
            }
            Ok(seckill::watch_gates(&app, &|| pulse.progress()).await?)
        }
    });
    let telling = app.clone();
    app.loops.every("seckill.telling", GATES_PERIOD, move |pulse| {
        let app = telling.clone();
        async move { Ok(seckill::tell_gates(&app, &|| pulse.beat()).await?) }
    });
    if app.config.payments.sandbox {
        every("sandbox.deliver", SANDBOX_PERIOD, |app| async move { sandbox::deliver(&app).await.map(drop) }.boxed());
    }
    let scheduler = scheduler(app);
    check::owed::start(app, scheduler.clone());
    scheduler.start(own_schedules(&app.config, app.clock.now()));
}

/// The scheduler of a process.
pub fn scheduler(app: &App) -> Scheduler {
    let context = app.clone();
    let run_here: RunHere = Arc::new(move |task| {
        let app = context.clone();
        async move { run_pass(app, task).await.map_or(Ok(()), |ran| ran.map(drop)) }.boxed()
    });
    Scheduler::new(app.db.clone(), app.engine.clone(), schedulable(), app.loops.clone(), run_here)
}
