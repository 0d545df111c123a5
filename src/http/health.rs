//! Whether the process is up, and whether it can serve.

pub mod clocks;

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use super::operator_pages::{self, Pages};
use crate::app::App;
use crate::platform::coalesce::Coalescer;
use crate::platform::db;
use crate::platform::loops::LoopHealth;

/// The process is up.
#[utoipa::path(get, path = "/healthz", operation_id = "check_health", tag = "ops", responses((status = 200, body = String, content_type = "text/plain", description = "The process is up")))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// When whoever was told that the process is not ready may look again, in seconds.
const LOOK_AGAIN_S: HeaderValue = HeaderValue::from_static("1");

/// Whether a process can serve. All but the first member is for operators, and absent for others.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    /// Whether the process should be sent requests.
    pub ready: bool,
    /// MySQL: `ok` or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mysql: Option<String>,
    /// Redis: `ok` or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub redis: Option<String>,
    /// This machine's clock, held against theirs: `ok` or how far it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub clock: Option<String>,
    /// Every loop of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub loops: Option<Vec<LoopHealth>>,
}

/// Whether the process can serve.
///
/// Operators are told each dependency and each loop; all others yes or no.
#[utoipa::path(get, path = "/readyz", operation_id = "check_readiness", tag = "ops", responses(
    (status = 200, body = Readiness, description = "Ready"),
    (status = 503, body = Readiness, content_type = "application/json", description = "Not ready: operators are told what is wrong"),
))]
pub async fn readyz(State(app): State<App>, Extension(pages): Extension<Pages>, request: Request) -> Response {
    let mut readiness = readiness(&app).await;
    let (mut parts, _) = request.into_parts();
    if operator_pages::may_see(&pages, &app, &mut parts).await.is_err() {
        readiness = Readiness { ready: readiness.ready, ..Readiness::default() };
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, Json(readiness)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, LOOK_AGAIN_S);
    }
    response
}

/// Questions that come while the servers are asked: one look at a time, however many want to know.
#[derive(Default)]
struct Asking(Arc<Coalescer<(), (), Readiness, ()>>);

/// Looks at everything. Whoever asks gets a look that began after they asked.
pub async fn readiness(app: &App) -> Readiness {
    let asked = app.clone();
    let look = move |questions: Vec<()>| {
        let app = asked.clone();
        async move { Ok(vec![look(&app).await; questions.len()]) }
    };
    let Asking(asking) = &*app.local::<Asking>();
    // Given up, as when the process stops: not ready.
    asking.ask(&(), (), look).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Why Redis may drop keys on its own, as [`watch_eviction`] saw last.
#[derive(Default)]
struct Eviction(Mutex<Option<String>>);

/// Looks whether somebody has set Redis since the start so that it may drop keys on its own: queues, and the places of
/// buyers in gates. The process is not ready while it is.
pub async fn watch_eviction(app: &App) -> anyhow::Result<()> {
    let found = app.redis.eviction().await?;
    metrics::gauge!("onrush_redis_may_evict").set(if found.is_some() { 1.0 } else { 0.0 });
    if let Some(why) = &found {
        tracing::error!(why, "redis may drop keys: set `maxmemory-policy noeviction`, or maxmemory 0");
    }
    *app.local::<Eviction>().0.lock().unwrap_or_else(PoisonError::into_inner) = found;
    Ok(())
}

/// Runs in a task of its own: a sqlx future runs to its end.
async fn look(app: &App) -> Readiness {
    let ok = || "ok".to_owned();
    // At once: two that are silent take no longer than one.
    let (mysql, redis) = tokio::join!(db::writable(&app.db), app.redis.writable());
    let (mysql, redis) = (mysql.map_err(|error| error.to_string()), redis.map_err(|error| format!("{error:#}")));
    let evicts = app.local::<Eviction>().0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let clock = clocks::is_right(app);
    let loops = app.loops.health();
    let wrong = Wrong {
        mysql: mysql.is_err(),
        redis: redis.is_err(),
        eviction: evicts.is_some(),
        clock: clock.is_err(),
        loops: loops.iter().any(|l| l.stalled),
        leaving: app.loops.is_leaving(),
    };
    wrong.measure();
    let said = |said: Result<(), String>| said.map_or_else(|why| why, |()| ok());
    let redis = said(redis.and_then(|()| evicts.map_or(Ok(()), Err)));
    let (mysql, clock) = (said(mysql), said(clock));
    Readiness { ready: !wrong.is_any(), mysql: Some(mysql), redis: Some(redis), clock: Some(clock), loops: Some(loops) }
}

/// Why a process is not ready.
struct Wrong {
    mysql: bool,
    redis: bool,
    /// Redis may drop keys.
    eviction: bool,
    clock: bool,
    loops: bool,
    /// It stops.
    leaving: bool,
}

impl Wrong {
    fn each(&self) -> [(&'static str, bool); 6] {
        let Self { mysql, redis, eviction, clock, loops, leaving } = *self;
        [
            ("mysql", mysql),
            ("redis", redis),
            ("eviction", eviction),
            ("clock", clock),
            ("loops", loops),
            ("leaving", leaving),
        ]
    }

    fn is_any(&self) -> bool {
        self.each().iter().any(|(_, is)| *is)
    }

    fn measure(&self) {
        let flag = |is: bool| if is { 1.0 } else { 0.0 };
        metrics::gauge!("onrush_ready").set(flag(!self.is_any()));
        for (reason, is) in self.each() {
            metrics::gauge!("onrush_not_ready", "reason" => reason).set(flag(is));
        }
        for (server, is_away) in [("mysql", self.mysql), ("redis", self.redis)] {
            metrics::gauge!("onrush_server_up", "server" => server).set(flag(!is_away));
        }
    }
}
