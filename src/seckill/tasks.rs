//! What became of a submission: poll, long poll, event stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State as AppState;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::{EntryId, Placement, QUEUE};
use crate::app::App;
use crate::auth::{CurrentUser, Role};
use crate::engine::{State, Status, TaskId};
use crate::error::{Kind, Problem, Result, refuse};
use crate::platform::crowd::OwnPlace;
use crate::platform::extract::{Input, Inputs, Path, Query, Shape};

/// The longest a poll may wait, in seconds.
const MAX_WAIT_S: u64 = 30;
/// An event stream ends after this long; the client opens a new one.
const MAX_STREAM: Duration = Duration::from_secs(300);
/// An event stream tells how many are ahead this often.
const EVENT_PERIOD: Duration = Duration::from_secs(2);

/// How a submission stands.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct TaskAnswer {
    /// 100: won; 101: failed; 102: still in the queue.
    pub code: i32,
    /// For a person.
    #[schema(example = "还在排队，前面还有 3 人")]
    pub msg: String,
    /// The task's state.
    pub status: State,
    /// Submissions ahead in the queue; 0 once it has ended.
    pub ahead: u64,
    /// `{"order_no": …}` when won, `{"error": …, "message": …}` when failed, null while in the queue.
    #[schema(value_type = Object, nullable)]
    pub result: Value,
}

/// Whether to wait.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Seconds to wait for the task to end, 0..30; the answer comes as soon as it does.
    #[garde(range(max = MAX_WAIT_S))]
    #[param(minimum = 0, maximum = 30)]
    pub wait: Option<u64>,
}

impl Shape<App> for WaitQuery {}

fn answer(status: &Status) -> TaskAnswer {
    let result = status.result.clone();
    let text = |name: &str| result.get(name).and_then(Value::as_str).map(str::to_owned);
    let (code, msg) = match status.state {
        State::Success => (100, "抢购成功".to_owned()),
        State::Failure => (101, text("message").unwrap_or_else(|| "抢购失败".to_owned())),
        State::Revoked => (101, "已取消".to_owned()),
        State::Pending | State::Started | State::Retry => (102, format!("还在排队，前面还有 {} 人", status.ahead)),
    };
    let ended = status.state.is_final();
    TaskAnswer {
        code,
        msg,
        status: status.state,
        ahead: if ended { 0 } else { status.ahead },
        result: if ended { shown(result) } else { Value::Null },
    }
}

/// What a dead letter says is for operators; the poller learns that it failed.
fn shown(result: Value) -> Value {
    if result.get("message").is_none() && result.get("error").is_some() {
        return serde_json::json!({ "error": Kind::Internal.name(), "message": "抢购失败" });
    }
    result
}

/// Long polls and event streams under way in this process.
#[derive(Default)]
struct Waiting(AtomicUsize);

/// A place among those who wait; given up when dropped.
struct Seat(Arc<Waiting>);
impl Seat {
    fn take(app: &App) -> Option<Self> {
        let waiting = app.local::<Waiting>();
        let seat = Self(waiting);
        (seat.0.0.fetch_add(1, Ordering::Relaxed) < app.config.http.max_waiting).then_some(seat)
    }
}
impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The state of a task as its submitter (or an admin) may see it. Redis answers; when it has forgotten or cannot be
/// reached, MySQL does.
async fn look(app: &App, id: &TaskId, user: CurrentUser, patience: Option<Duration>) -> Result<TaskAnswer> {
    let known = match patience {
        Some(patience) => tokio::select! {
            known = app.engine.wait(id, patience) => known,
            // Stopping: the poller hears how things stand now and asks again, at another process.
            () = app.loops.stop_signal().cancelled_owned() => app.engine.status(id).await,
        },
        None => app.engine.status(id).await,
    };
    let visible = |owner: &str| user.role == Role::Admin || owner == user.id.to_string();
    let fault = match known {
        Ok(Some(status)) => {
            // A task without an owner is the service's own business.
            let visible = status.owner.as_deref().map_or(user.role == Role::Admin, visible);
            return if visible { Ok(answer(&status)) } else { Err(Kind::NotFound.into()) };
        }
        Ok(None) => None,
        Err(error) => Some(error),
    };
    if id.queue.base() != QUEUE {
        return fault.map_or(Err(Kind::NotFound.into()), |error| Err(error.into()));
    }
    let found = super::lookup::order_of(app, EntryId::from_uuid(id.key)).await?;
    match (found, fault) {
        (Some(placed), _) if visible(&placed.user.to_string()) => Ok(TaskAnswer {
            code: 100,
            msg: "抢购成功".to_owned(),
            status: State::Success,
            ahead: 0,
            result: Placement::Won { order: placed.order, surplus: None }.result(),
        }),
        (None, Some(error)) => Err(error.into()),
        _ => Err(Kind::NotFound.into()),
    }
}

/// How a submission stands, at once or (`?wait=20`) as soon as it has ended.
#[utoipa::path(
    get, path = "/api/v1/tasks/{id}", tag = "tasks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The id a submission was answered with"), WaitQuery),
    responses(
        (status = 200, body = TaskAnswer, description = "Won (100), failed (101) or in the queue (102)"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`: no such task, or somebody else's"),
    ),
)]
pub async fn poll_task(
    AppState(app): AppState<App>,
    user: CurrentUser,
    OwnPlace(place): OwnPlace,
    Inputs(Path(id), Query(query)): Inputs<Path<TaskId>, Query<WaitQuery>>,
) -> Result<Json<TaskAnswer>> {
    let seat = query.wait.filter(|wait| *wait > 0).and_then(|wait| Seat::take(&app).map(|seat| (seat, wait)));
    if let Some(place) = place.filter(|_| seat.is_some()) {
        place.leave();
    }
    let patience = seat.as_ref().map(|(_, wait)| Duration::from_secs(*wait));
    Ok(Json(look(&app, &id, user, patience).await?))
}

/// How a submission stands, as server-sent events: one `task` event at once, one whenever something changed, the last
/// when the task has ended.
#[utoipa::path(
    get, path = "/api/v1/tasks/{id}/events", tag = "tasks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The id a submission was answered with")),
    responses(
        (status = 200, body = Object, content_type = "text/event-stream", description = "Events named `task`; the data is what `GET /tasks/{id}` answers"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not_found`: no such task, or somebody else's"),
    ),
)]
pub async fn task_events(
    AppState(app): AppState<App>,
    user: CurrentUser,
    OwnPlace(place): OwnPlace,
    Input(Path(id)): Input<Path<TaskId>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let seat = Seat::take(&app).ok_or_else(|| refuse(Kind::Overloaded, "too many streams are open").retry_after(1))?;
    let first = look(&app, &id, user, None).await?;
    if let Some(place) = place {
        place.leave();
    }
    let stop = app.loops.stop_signal();
    let deadline = tokio::time::Instant::now() + MAX_STREAM;
    let later = stream::unfold((seat, Some(first.clone())), move |(seat, last)| {
        let (app, id, stop) = (app.clone(), id.clone(), stop.clone());
        async move {
            let mut last = last?;
            // Ended: the stream is over. Otherwise look until something changed.
            while !last.status.is_final() && tokio::time::Instant::now() < deadline && !stop.is_cancelled() {
                let now = look(&app, &id, user, Some(EVENT_PERIOD)).await.ok()?;
                if now != last {
                    last = now;
                    return Some((last.clone(), (seat, Some(last))));
                }
            }
            None
        }
    });
    let events = stream::iter([first]).chain(later).map(|answer| {
        let data = serde_json::to_string(&answer).unwrap_or_default();
        Ok(Event::default().event("task").data(data))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}
