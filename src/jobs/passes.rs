//! The periodic passes as tasks: each is a task without arguments on the queue [`QUEUE`], and a schedule that is made
//! when it is not there. What an operator makes of the schedule stays.
//!
//! A pass is idempotent and goes in bounded steps, and runs on one worker at a time as a rule (its schedule does not overlap); two
//! at once are harmless.
//!
//! While Redis is away nothing can be enqueued. Passes that need no Redis (due orders must time out, refunds must go
//! out) are then run by the scheduler's leader itself; the others have nothing to do until it is back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::{App, failed};
use crate::config::Config;
use crate::engine::schedule::{CatchUp, Definition, ScheduleKind, Tasks};
use crate::engine::{Job, Outcome, QueueSpec, Registry, Retry, Task};
use crate::error::Error;
use crate::platform::clock::At;
use crate::{auth, check, idempotency, orders, payments, reconciliation, reports, seckill};

/// The queue of the passes.
const QUEUE: &str = "system";
/// A pass that takes long holds up no other, up to this many.
const CONCURRENCY: usize = 4;
/// The next occurrence comes soon: a pass that fails again and again becomes a dead letter only for a person to see.
const RETRY: Retry = Retry { attempts: 3, base: Duration::from_secs(1), cap: Duration::from_secs(10) };

/// What is owed is driven again this often.
const REDRIVE_S: u64 = 5;
/// Started payments are looked through for a question to ask this often.
const QUERY_S: u64 = 2;
/// Due refunds are looked for this often.
const REFUND_S: u64 = 1;
/// What is past its time is forgotten this often.
const PRUNE_S: u64 = 3600;
/// What is over goes from Redis this often.
const CLEAR_S: u64 = 60;
/// The invariants are checked at this time of the business day, when few people buy: the check reads whole tables.
const CHECK: &str = "30 4 * * *";
/// What yesterday came to is reported at this time of the business day, before people come to work.
const DAILY_REPORT: &str = "30 7 * * *";
/// Bills of yesterday are fetched from this time of the business day on, when gateways have made them: a bill that is not
/// there yet, or a gateway that does not answer, is asked again an hour later.
const BILLS: &str = "30 10-23 * * *";

/// What a pass cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// It works in MySQL, and calls gateways.
    MySql,
    /// It has nothing to do while Redis is away.
    Redis,
}

// A macro, so that a pass is one line and cannot be in one of the lists and missing from another.
macro_rules! passes {
    ($($(#[doc = $doc:literal])+ $task:ident = $name:literal, $needs:ident => $run:expr;)+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            struct $task {}

            impl Task for $task {
                const NAME: &'static str = $name;
                const QUEUE: &'static str = QUEUE;
                const RETRY: Retry = RETRY;
            }
        )+

        /// Runs a pass here, by its task's name; `None` when there is none of this name.
        pub async fn run_pass(app: App, name: &str) -> Option<anyhow::Result<Value>> {
            match name {
                $($name => Some(($run)(app).await),)+
                _ => None,
            }
        }

        /// Adds the queue and its tasks.
        pub(super) fn register(registry: Registry<App>) -> Registry<App> {
            registry
                .queue(QueueSpec { name: QUEUE, batch: 1, concurrency: CONCURRENCY })
                $(.single(|app: App, _: Job<$task>| async move { outcome(&app, ($run)(app.clone()).await) }))+
        }

        /// The tasks that schedules may name.
        pub fn schedulable() -> Tasks {
            let tasks = Tasks::default();
            $(let tasks = add::<$task>(tasks, Needs::$needs);)+
            tasks
        }
    };
}

passes! {
    /// Times out orders whose time to pay is over: what a lost expiry task costs is a few seconds.
    Sweep = "orders.sweep", MySql => |app: App| async move { payments::sweep_due(&app).await.map(due) };
    /// Enqueues the grants and releases that are owed.
    RedriveOrders = "orders.redrive", Redis => |app: App| async move { orders::redrive(&app).await.map(nothing) };
    /// Asks gateways about started payments.
    Query = "payments.query", MySql => |app: App| async move { payments::query_started(&app).await.map(due) };
    /// Sends the refunds that are due.
    Refund = "payments.refund", MySql => |app: App| async move { payments::drive_refunds(&app).await.map(due) };
    /// Enqueues the decisions about late money that are owed.
    RedrivePayments = "payments.redrive", Redis => |app: App| async move { payments::redrive_late(&app).await.map(nothing) };
    /// Forgets refresh tokens past their time.
    PruneTokens = "auth.prune", MySql => |app: App| async move { auth::prune(&app).await.map(nothing) };
    /// Forgets old answers to repeated requests.
    PruneAnswers = "idempotency.prune", MySql => |app: App| async move { idempotency::prune(&app).await.map(nothing) };
    /// Removes the gates of sales that are long over, and owners' marks of those that have ended.
    Clear = "seckill.clear", Redis => |app: App| async move { Ok(json!({ "removed": seckill::clear_away(&app).await? })) };
    /// Proves what must always hold, of Redis too.
    Check = "check.invariants", Redis => |app: App| async move { check_invariants(&app).await };
    /// Reports what the day before came to, and the days before it whose reports are missing.
    DailyReport = "reports.daily", MySql => |app: App| async move { reports::make_missing(&app).await.map(made) };
    /// Forgets lines of old bills.
    PruneBills = "payments.prune", MySql => |app: App| async move { Ok(json!({ "lines": reconciliation::prune(&app).await? })) };
    /// Fetches the gateways' bills that are missing and compares them with our books.
    Bills = "payments.bills", MySql => |app: App| async move { Ok(serde_json::to_value(reconciliation::reconcile(&app).await?)?) };
}

fn add<T: Task>(tasks: Tasks, needs: Needs) -> Tasks {
    match needs {
        Needs::Redis => tasks.task::<T>(),
        Needs::MySql => tasks.task_without_redis::<T>(),
    }
}

fn outcome(app: &App, ran: anyhow::Result<Value>) -> Outcome {
    ran.map_or_else(|error| failed(app, &Error::Internal(error)), Outcome::Success)
}

fn due<N: Serialize>(count: N) -> Value {
    json!({ "due": count })
}

fn made<D: Serialize>(days: Vec<D>) -> Value {
    json!({ "made": days })
}

fn nothing(_: ()) -> Value {
    Value::Null
}

/// The result names what is violated, by invariant; the log says it loudly.
async fn check_invariants(app: &App) -> anyhow::Result<Value> {
    let findings = check::findings(app, false).await?;
    let mut violated = serde_json::Map::new();
    for finding in findings {
        metrics::gauge!("onrush_invariant_violations", "invariant" => finding.name)
            .set(finding.violations.len() as f64);
        if !finding.violations.is_empty() {
            tracing::error!(invariant = finding.name, violations = ?finding.violations, "invariant is violated");
            violated.insert(finding.name.to_owned(), json!(finding.violations));
        }
    }
    Ok(json!({ "violated": violated }))
}

/// The product's own schedules: made where their names are not there, and an operator's from then on.
pub fn own_schedules(config: &Config, now: At) -> Vec<Definition> {
    let zone = &config.time_zone;
    let every = |task: &str, seconds: u64| Definition {
        kind: ScheduleKind::Interval,
        every_s: i64::try_from(seconds).ok(),
        ..schedule(task, zone, now)
    };
    let daily = |task: &str, crontab: &str| Definition {
        kind: ScheduleKind::Crontab,
        crontab: Some(crontab.to_owned()),
        ..schedule(task, zone, now)
    };
    vec![
        every(Sweep::NAME, config.orders.sweep_period_s),
        every(RedriveOrders::NAME, REDRIVE_S),
        every(Query::NAME, QUERY_S),
        every(Refund::NAME, REFUND_S),
        every(RedrivePayments::NAME, REDRIVE_S),
        every(PruneTokens::NAME, PRUNE_S),
        every(PruneAnswers::NAME, PRUNE_S),
        every(PruneBills::NAME, PRUNE_S),
        every(Clear::NAME, CLEAR_S),
        daily(Check::NAME, CHECK),
        daily(DailyReport::NAME, DAILY_REPORT),
        daily(Bills::NAME, BILLS),
    ]
}

/// One of our own, named after its task. A pass that was missed need not run twice: it looks at all there is.
fn schedule(task: &str, time_zone: &str, now: At) -> Definition {
    Definition {
        name: task.to_owned(),
        task: task.to_owned(),
        args: "{}".to_owned(),
        kind: ScheduleKind::Interval,
        every_s: None,
        crontab: None,
        run_at: None,
        time_zone: time_zone.to_owned(),
        starts_at: now,
        enabled: true,
        catch_up: CatchUp::Once,
        catch_up_max: 1,
        overlap: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_of_our_own_has_a_timing() {
        let settings = [
            ("database_url", "mysql://u@localhost/db".to_owned()),
            ("redis_url", "redis://localhost".to_owned()),
            ("auth.jwt_secret", "9f2b7c1e5a8d4036b1c9e7f20a6d8354".to_owned()),
        ];
        let config = Config::load(None, &settings).expect("settings");
        for definition in own_schedules(&config, At::from_ms(0)) {
            assert!(definition.timing().is_ok(), "{}", definition.name);
            assert!(definition.next_run(At::from_ms(0)).is_some(), "{}", definition.name);
        }
    }
}
