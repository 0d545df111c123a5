//! How long what is owed has waited: whether those who drive it do so. Measured by the process that leads the schedules,
//! from each table's own index, so that it costs the same however much is owed.

use std::time::Duration;

use anyhow::Context;

use crate::app::App;
use crate::engine::schedule::Scheduler;
use crate::platform::clock::At;
use crate::platform::loops::Pulse;

/// What is owed is measured this often.
const PERIOD: Duration = Duration::from_secs(15);

/// (work, query): each gives when the oldest of it should have been done, before a moment; a row or none for each index
/// that is looked into.
const WORK: [(&str, &str); 7] = [
    (
        "grant",
        "SELECT paid_at FROM orders FORCE INDEX (ix_orders_grant_owed) \
         WHERE status = 1 AND granted_at IS NULL AND paid_at <= ? ORDER BY paid_at LIMIT 1",
    ),
    (
        "release",
        "(SELECT closed_at FROM orders FORCE INDEX (ix_orders_release_owed) \
         WHERE status = 2 AND released_at IS NULL AND closed_at <= ? ORDER BY closed_at LIMIT 1) UNION ALL \
         (SELECT closed_at FROM orders FORCE INDEX (ix_orders_release_owed) \
         WHERE status = 3 AND released_at IS NULL AND closed_at <= ? ORDER BY closed_at LIMIT 1)",
    ),
    (
        "expiry",
        "SELECT expires_at FROM orders FORCE INDEX (ix_orders_due) \
         WHERE status = 0 AND expires_at <= ? ORDER BY expires_at LIMIT 1",
    ),
    (
        "refund",
        "SELECT next_attempt_at FROM refunds FORCE INDEX (ix_refunds_due) \
         WHERE status = 'pending' AND next_attempt_at <= ? ORDER BY next_attempt_at LIMIT 1",
    ),
    (
        "query",
        "SELECT next_query_at FROM payments FORCE INDEX (ix_payments_query_due) \
         WHERE status = 'started' AND next_query_at <= ? ORDER BY next_query_at LIMIT 1",
    ),
    (
        "late",
        "SELECT paid_at FROM payments FORCE INDEX (ix_payments_owed) \
         WHERE resolution = 'owed' AND paid_at <= ? ORDER BY paid_at LIMIT 1",
    ),
    (
        "return",
        "SELECT released_at FROM seckill_entries FORCE INDEX (ix_seckill_entries_return_owed) \
         WHERE gate_returned_at IS NULL AND released_at <= ? ORDER BY released_at LIMIT 1",
    ),
];

/// Starts to measure.
pub fn start(app: &App, scheduler: Scheduler) {
    let app = app.clone();
    app.clone().loops.every("owed", PERIOD, move |_: Pulse| {
        let (app, scheduler) = (app.clone(), scheduler.clone());
        async move { measure(&app, &scheduler).await }
    });
}

async fn measure(app: &App, scheduler: &Scheduler) -> anyhow::Result<()> {
    // Who leads no more says nothing of it: another process does.
    let (ages, aside) = match scheduler.leads() {
        true => (ages(app).await?, scheduler.count_set_aside().await?),
        false => (WORK.iter().map(|(work, _)| (*work, Duration::ZERO)).collect(), 0),
    };
    for (work, age) in ages {
        metrics::gauge!("onrush_owed_oldest_seconds", "work" => work).set(age.as_secs_f64());
    }
    metrics::gauge!("onrush_schedules_set_aside").set(aside as f64);
    Ok(())
}

/// Of each kind of work, for how long the oldest of it has been owed; none where nothing is.
pub async fn ages(app: &App) -> anyhow::Result<Vec<(&'static str, Duration)>> {
    let now = app.clock.now();
    let mut ages = Vec::with_capacity(WORK.len());
    for (work, sql) in WORK {
        let mut asked = sqlx::query_scalar::<_, At>(sql);
        for _ in sql.matches('?') {
            asked = asked.bind(now);
        }
        let mut conn = app.db.acquire().await?;
        let found = asked.fetch_all(&mut *conn).await.with_context(|| format!("looking for the oldest {work} owed"))?;
        ages.push((work, found.into_iter().min().map_or(Duration::ZERO, |oldest| now.since(oldest))));
    }
    Ok(ages)
}
