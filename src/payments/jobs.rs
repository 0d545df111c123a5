//! Handlers of the expiry and late queues, and the passes over what is owed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use serde_json::json;

use super::close::{self, ASKED_AT_ONCE, Closed, DueOrders, EndTrade, SilentGateways};
use super::late::{self, ResolveLate, Resolved, RetakePart};
use super::model::{Payment, Refund, growing};
use super::{inquiry, refund, settle, store};
use crate::app::{App, failed};
use crate::engine::{Job, Outcome};
use crate::error::{Error, Kind, Result, retrying};
use crate::orders::{self, Expire, OrderId, Status};

/// Rows of one pass: so few that a gateway which answers nothing in time does not make the pass look stalled.
const PAGE: u32 = 64;

/// Times out orders whose time to pay is over.
pub async fn expire(app: App, jobs: Vec<Job<Expire>>) -> Vec<Outcome> {
    let ids: Vec<OrderId> = jobs.iter().flat_map(|job| &job.args.orders).copied().collect();
    let closed: HashSet<OrderId> = match orders::time_out_unstarted(&app, &ids).await {
        Ok(closed) => closed.into_iter().collect(),
        Err(error) => return each_again(&app, &jobs, &error),
    };
    // What is left is paid by now, has a started payment, or is not due.
    let left: Vec<OrderId> = ids.into_iter().filter(|id| !closed.contains(id)).collect();
    let due = match DueOrders::read(&app, &left).await {
        Ok(due) => due,
        Err(error) => return each_again(&app, &jobs, &error),
    };
    let gateways = SilentGateways::default();
    let ended = stream::iter(left.clone()).map(|id| expire_one(&app, &due, &gateways, id));
    let ended: Vec<Outcome> = ended.buffered(ASKED_AT_ONCE).collect().await;
    let mut ended: HashMap<OrderId, Outcome> = left.into_iter().zip(ended).collect();
    let mut all = Vec::with_capacity(jobs.len());
    for job in jobs {
        let outcomes = job.args.orders.iter().filter_map(|id| ended.remove(id));
        all.push(outcomes.fold(Outcome::done(), worse));
    }
    all
}

fn each_again(app: &App, jobs: &[Job<Expire>], error: &Error) -> Vec<Outcome> {
    jobs.iter().map(|_| failed(app, error)).collect()
}

/// What becomes of a task with two orders, one of which ends so and the other so.
fn worse(one: Outcome, other: Outcome) -> Outcome {
    match (one, other) {
        (failed @ Outcome::Retry(_), _) | (_, failed @ Outcome::Retry(_)) => failed,
        (Outcome::Again(one), Outcome::Again(other)) => Outcome::Again(one.min(other)),
        (again @ Outcome::Again(_), _) | (_, again @ Outcome::Again(_)) => again,
        (missing @ Outcome::Failure { .. }, _) => missing,
        (_, outcome) => outcome,
    }
}

/// The shortest pause of an order that is not due.
const NOT_DUE_PAUSE: Duration = Duration::from_secs(1);

async fn expire_one(app: &App, due: &DueOrders, gateways: &SilentGateways, id: OrderId) -> Outcome {
    let left_to_sweep = || Outcome::Success(json!({ "left_to": "sweep" }));
    let Some(closed) = due.time_out(app, gateways, id).await else {
        return left_to_sweep();
    };
    match closed {
        Ok(Closed::Now | Closed::Was(_)) => Outcome::done(),
        // By the other of the two clocks it may be due already.
        Ok(Closed::NotDue(at)) => Outcome::Again(at.since(app.clock.now()).max(NOT_DUE_PAUSE)),
        // It stays unpaid and due. The sweep finds it, and knows better than this task how often to ask.
        Err(error) if matches!(error.kind(), Kind::GatewayUnavailable | Kind::GatewayOff) => left_to_sweep(),
        Err(error) if error.kind() == Kind::NotFound => {
            Outcome::Failure { result: json!({ "error": "there is no such order" }), effects: Vec::new() }
        }
        Err(error) => failed(app, &error),
    }
}

/// Decides what becomes of late money.
pub async fn resolve_late(app: App, jobs: Vec<Job<ResolveLate>>, retake: RetakePart) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(jobs.len());
    for job in jobs {
        outcomes.push(match late::resolve(&app, job.args.payment_id, retake).await {
            Ok(resolved) => {
                let name = match resolved {
                    Resolved::Reopened => "reopened",
                    Resolved::Refund => "refund",
                    Resolved::Before => "before",
                };
                metrics::counter!("onrush_late_payments_total", "outcome" => name).increment(1);
                Outcome::Success(json!({ "resolved": name }))
            }
            Err(error) => failed(&app, &error),
        });
    }
    outcomes
}

/// Ends trades that may be open although their payments are closed. A gateway that has not heard of one by then is asked
/// once more, as it may still be at it, and then believed.
pub async fn end_trades(app: App, jobs: Vec<Job<EndTrade>>) -> Vec<Outcome> {
    let each = jobs.into_iter().map(async |job| match close::end_closed(&app, job.args.payment_id).await {
        Ok(true) => Outcome::done(),
        Ok(false) if job.attempt > 1 => Outcome::Success(json!({ "known": false })),
        Ok(false) => Outcome::Retry(anyhow::anyhow!("the gateway does not know the trade yet")),
        Err(error) => failed(&app, &error),
    });
    join_all(each).await
}

/// One bounded pass: has late money decided whose task was lost.
pub async fn redrive_late(app: &App) -> anyhow::Result<()> {
    let before = app.clock.now().minus(Duration::from_secs(app.config.orders.owed_grace_s));
    let mut conn = app.db.acquire().await?;
    let owed = store::owed(&mut conn, before, PAGE).await.context("looking for undecided money")?;
    drop(conn);
    if owed.is_empty() {
        return Ok(());
    }
    tracing::info!(payments = owed.len(), "driving again the decision about late money");
    settle::enqueue_late(app, &owed).await
}

/// One bounded pass: asks about started payments of which nothing was heard, each at a growing interval until it is
/// final. Returns how many were due.
pub async fn query_started(app: &App) -> anyhow::Result<usize> {
    let mut conn = app.db.acquire().await?;
    let due = store::query_due(&mut conn, app.clock.now(), PAGE).await.context("looking for questions to ask")?;
    drop(conn);
    let count = due.len();
    stream::iter(due).for_each_concurrent(ASKED_AT_ONCE, |payment| ask_in_turn(app, payment)).await;
    Ok(count)
}

async fn ask_in_turn(app: &App, payment: Payment) {
    match try_ask(app, &payment).await {
        Ok(()) => {}
        // Told once for all of them: `disabled_gateways::watch`.
        Err(error) if error.kind() == Kind::GatewayOff => {}
        Err(error) => tracing::warn!(payment.id = %payment.id, %error, "payment could not be asked about"),
    }
}

async fn try_ask(app: &App, payment: &Payment) -> Result<()> {
    let base = Duration::from_secs(app.config.payments.query_after_s);
    let next = app.clock.now().plus(growing(base, payment.query_count.saturating_add(1)));
    let mine = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        Ok(store::claim_query(&mut conn, payment, next).await.context("taking a question")?)
    });
    if !mine.await? {
        return Ok(());
    }
    let mut conn = app.db.acquire().await?;
    let order = orders::find(&mut conn, payment.order_id).await?.context("a payment without its order")?;
    let in_vain = order.status != Status::Unpaid || orders::bought_otherwise(&mut conn, &order).await?.all;
    drop(conn);
    if !in_vain {
        return inquiry::ask(app, payment).await;
    }
    // Another payment paid the order, or others of the buyer's bought all its courses: nobody is to pay it once more.
    close::end(app, payment).await
}

/// Unpaid orders beside those of one batch of grants whose payments are asked about.
const BESIDE: u32 = 200;

/// Has the payments be asked about that were started for other orders of the same courses, now that these orders are paid:
/// [`query_started`] ends those that would be paid in vain. Should this be lost, it does so when their own turn comes.
pub async fn look_beside(app: &App, paid: &[OrderId]) -> Result<()> {
    let mut conn = app.db.acquire().await?;
    let beside = orders::unpaid_beside(&mut conn, paid, BESIDE).await?;
    if beside.is_empty() {
        return Ok(());
    }
    let started = store::started_of(&mut conn, &beside).await.context("looking for payments beside")?;
    for payment in started {
        store::ask_now(&mut conn, payment, app.clock.now()).await.context("planning a question")?;
    }
    Ok(())
}

/// One bounded pass over the refunds that are due, each sent or asked about at a growing interval until the gateway says a last word.
/// Returns how many were due.
pub async fn drive_refunds(app: &App) -> anyhow::Result<usize> {
    let mut conn = app.db.acquire().await?;
    let due = store::refunds::due(&mut conn, app.clock.now(), PAGE).await.context("looking for refunds")?;
    drop(conn);
    let count = due.len();
    stream::iter(due).for_each_concurrent(ASKED_AT_ONCE, |refund| drive_refund(app, refund)).await;
    refund::end_orders(app, PAGE).await?;
    Ok(count)
}

async fn drive_refund(app: &App, due: Refund) {
    if let Err(error) = refund::attempt(app, &due).await {
        tracing::warn!(refund.id = %due.id, %error, "refund could not be driven");
    }
}
