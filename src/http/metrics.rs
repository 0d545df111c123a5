//! The page of metrics, what is measured when somebody asks for it, and what must be there before it happens first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::metrics::{counter, gauge};
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync;

use crate::app::App;
use crate::auth;
use crate::platform::in_flight::InFlightLimit;
use crate::platform::loops::{LoopHealth, shared_name};

/// The process's metrics recorder, installed by `main` once.
pub static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Whoever asks more often is told what was told last.
const RENDER_PERIOD: Duration = Duration::from_secs(1);

/// The page of metrics as it was made last.
#[derive(Default)]
struct Rendered(sync::Mutex<Option<(Instant, Bytes)>>);

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "ops", security((), ("operators" = [])), responses(
    (status = 200, body = String, content_type = "text/plain", description = "Prometheus text format"),
    (status = 401, description = "Where the operators' token is asked for: `unauthenticated`, `token_invalid`"),
    (status = 404, description = "`not_found`: this address does not show it"),
))]
pub async fn metrics(State(app): State<App>, Extension(in_flight): Extension<InFlightLimit>) -> Response {
    let rendered = app.local::<Rendered>();
    let mut last = rendered.0.lock().await;
    let body = match &*last {
        Some((at, body)) if at.elapsed() < RENDER_PERIOD => body.clone(),
        _ => {
            let body = render(&app, &in_flight);
            *last = Some((Instant::now(), body.clone()));
            body
        }
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

fn render(app: &App, in_flight: &InFlightLimit) -> Bytes {
    measure(app, in_flight);
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default().into()
}

/// Makes the counters that alerts look at, so that their first event is an increase and not a beginning.
pub fn prepare_counters() {
    let known: [(&str, &str, &[&str]); 6] = [
        ("onrush_late_payments_total", "outcome", &["reopened", "refund", "before"]),
        ("onrush_refunds_total", "outcome", &["confirmed", "pending", "refused", "failed"]),
        ("onrush_seckill_corrections_total", "direction", &["fewer", "more"]),
        ("onrush_orders_total", "outcome", &["created", "paid", "closed", "granted", "released", "refunded"]),
        ("onrush_trace_spans_total", "outcome", &["exported", "failed"]),
        ("onrush_pool_timeouts_total", "server", &["mysql", "redis"]),
    ];
    for (name, label, values) in known {
        for value in values {
            counter!(name, label => *value).increment(0);
        }
    }
    let alone = [
        "onrush_http_shed_total",
        "onrush_http_accept_failures_total",
        "onrush_http_connections_refused_total",
        "onrush_mysql_connections_lost_total",
        "onrush_announcements_left_total",
        "onrush_transactions_run_again_total",
    ];
    for name in alone {
        counter!(name).increment(0);
    }
    gauge!("onrush_http_connections").increment(0.0);
    for kind in ["poll", "stream"] {
        gauge!("onrush_http_waiting", "kind" => kind).increment(0.0);
    }
    gauge!("onrush_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Measures what changes by itself.
pub fn measure(app: &App, in_flight: &InFlightLimit) {
    gauge!("onrush_http_requests_in_flight").set(in_flight.taken() as f64);
    gauge!("onrush_http_waiting_limit").set(app.config.http.max_waiting as f64);
    counter!("onrush_password_hashes_total").absolute(auth::password_hashes(app));
    let (size, idle) = (app.db.size(), app.db.num_idle());
    gauge!("onrush_mysql_pool_connections").set(f64::from(size));
    gauge!("onrush_mysql_pool_in_use").set(f64::from(size.saturating_sub(u32::try_from(idle).unwrap_or(0))));
    gauge!("onrush_mysql_pool_limit").set(f64::from(app.db.limit()));
    let (open, used) = app.redis.pool_use();
    gauge!("onrush_redis_pool_connections").set(open as f64);
    gauge!("onrush_redis_pool_in_use").set(used as f64);
    gauge!("onrush_redis_pool_limit").set(app.redis.pool_limit() as f64);
    stalled_loops(app);
}

/// Names of loops that were told, so that one which has ended is told to be well.
#[derive(Default)]
struct ReportedLoops(Mutex<BTreeSet<String>>);

fn stalled_loops(app: &App) {
    let found = stalled(&app.loops.health());
    let told = app.local::<ReportedLoops>();
    let mut told = told.0.lock().unwrap_or_else(PoisonError::into_inner);
    told.extend(found.keys().cloned());
    for name in told.iter() {
        let stalled = found.get(name).copied().unwrap_or(0);
        gauge!("onrush_loops_stalled", "loop" => name.clone()).set(f64::from(stalled));
    }
}

/// How many loops of each name make no step for longer than they may.
fn stalled(loops: &[LoopHealth]) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for one in loops {
        *found.entry(shared_name(&one.name).to_owned()).or_default() += u32::from(one.stalled);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_loops_are_counted_by_the_name_that_all_activities_share() {
        let health =
            |name: &str, stalled| LoopHealth { name: name.to_owned(), since_step_ms: 0, stalled, last_error: None };
        let loops = [health("clocks", false), health("read:seckill/a", true), health("read:seckill/b", true)];
        let found = stalled(&loops);
        assert_eq!(found, BTreeMap::from([("clocks".to_owned(), 0), ("read:seckill".to_owned(), 2)]));
    }
}
