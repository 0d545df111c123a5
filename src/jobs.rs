//! Every background task and every periodic job, in one list.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::app::App;
use crate::config::Config;
use crate::dev::sandbox;
use crate::engine::{QueueSpec, Registry};
use crate::{auth, idempotency, orders, payments, seckill};

/// What is owed is driven again this often.
const REDRIVE_PERIOD: Duration = Duration::from_secs(5);
/// The gates of activities are built where missing, compared and corrected this often.
const GATES_PERIOD: Duration = Duration::from_secs(1);
/// What is past its time is forgotten this often.
const PRUNE_PERIOD: Duration = Duration::from_secs(3600);
/// Started payments are looked through for a question to ask this often.
const QUERY_PERIOD: Duration = Duration::from_secs(2);
/// Due refunds are looked for this often.
const REFUND_PERIOD: Duration = Duration::from_secs(1);
/// The sandbox gateway sends what is due this often.
const SANDBOX_PERIOD: Duration = Duration::from_millis(200);

/// The tasks this process can run and the queues it consumes.
pub fn registry(config: &Config) -> Registry<App> {
    let seckill_queue =
        QueueSpec { name: "seckill", batch: config.seckill.batch_size, concurrency: config.seckill.batches_in_flight };
    Registry::default()
        .queue(QueueSpec { name: "expiry", batch: 100, concurrency: 2 })
        .batch(payments::expire)
        .queue(QueueSpec { name: "grant", batch: 100, concurrency: 2 })
        .batch(orders::jobs::grant)
        .queue(QueueSpec { name: "release", batch: 100, concurrency: 2 })
        .batch(|app, jobs| orders::jobs::release(app, jobs, seckill::give_back))
        .queue(QueueSpec { name: "late", batch: 20, concurrency: 2 })
        .batch(|app, jobs| payments::resolve_late(app, jobs, seckill::retake))
        .partitioned_queue(seckill_queue, |app| seckill::jobs::partitions(app).boxed())
        .batch(seckill::jobs::place)
}

/// Starts the periodic jobs of the scheduler role. Each is an idempotent pass, bounded in size; two processes that
/// run the same one at once are harmless.
pub fn start_periodic(app: &App) {
    let every = |name: &str, period: Duration, pass: fn(App) -> BoxFuture<'static, anyhow::Result<()>>| {
        let app = app.clone();
        app.clone().loops.every(name, period, move |_| pass(app.clone()));
    };
    let tick = Duration::from_millis(app.config.seckill.tick_ms);
    every("seckill.returns", tick, |app| async move { Ok(seckill::return_units(&app).await.map(drop)?) }.boxed());
    every("seckill.gates", GATES_PERIOD, |app| async move { Ok(seckill::look_after_gates(&app).await?) }.boxed());
    every("orders.redrive", REDRIVE_PERIOD, |app| async move { orders::redrive(&app).await }.boxed());
    every("auth.prune", PRUNE_PERIOD, |app| async move { auth::prune(&app).await }.boxed());
    every("idempotency.prune", PRUNE_PERIOD, |app| async move { idempotency::prune(&app).await }.boxed());
    every("payments.query", QUERY_PERIOD, |app| async move { payments::query_started(&app).await.map(drop) }.boxed());
    every("payments.refund", REFUND_PERIOD, |app| async move { payments::drive_refunds(&app).await.map(drop) }.boxed());
    every("payments.redrive", REDRIVE_PERIOD, |app| async move { payments::redrive_late(&app).await }.boxed());
    let (swept, sweep_period) = (app.clone(), Duration::from_secs(app.config.orders.sweep_period_s));
    app.loops.every("payments.sweep", sweep_period, move |pulse| {
        let app = swept.clone();
        // A long sweep is not a stalled one.
        async move { payments::sweep(&app, || pulse.beat()).await.map(drop) }
    });
    if app.config.payments.sandbox {
        every("sandbox.deliver", SANDBOX_PERIOD, |app| async move { sandbox::deliver(&app).await.map(drop) }.boxed());
    }
}
