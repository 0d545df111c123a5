//! What became of a submission: poll, long poll, event stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State as AppState;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::openapi::Ref;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use super::model::{EntryId, Placement, undone};
use super::owners::UNDONE;
use super::redis::activity_of;
use super::seats::{Seat, With};
use super::watcher::Watcher;
use crate::access::{self, Permission};
use crate::app::App;
use crate::auth::CurrentUser;
use crate::engine::{State, TaskId, TaskStatus};
use crate::error::{Kind, Result, refuse};
use crate::orders::OrderId;
use crate::platform::described::numbers;
use crate::platform::extract::{Inputs, Path, Query, Shape};
use crate::platform::in_flight::OwnPermit;
use crate::platform::lang::Lang;
use crate::platform::ticket::TEXT_LENGTH;
use crate::texts;

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
    #[schema(schema_with = code_schema)]
    pub code: i32,
    /// For a person, in Chinese, or in English when `Accept-Language` prefers it.
    #[schema(example = "还在排队，前面还有 3 人")]
    pub msg: String,
    /// The task's state.
    pub status: State,
    /// Submissions ahead in the queue; 0 once it has ended.
    pub ahead: u64,
    /// Null while in the queue.
    #[schema(value_type = TaskResult, nullable)]
    pub result: Value,
}

/// What came of a submission: `order_no` when won, `error` and `message` when failed. When the order that was won came to
/// nothing (`order_expired`, `order_cancelled`, `order_refunded`), all three.
#[derive(Debug, utoipa::ToSchema)]
pub struct TaskResult {
    /// The order that it won.
    #[schema(nullable = false)]
    pub order_no: Option<OrderId>,
    /// Why it failed.
    #[schema(nullable = false)]
    pub error: Option<Kind>,
    /// The same for a person, in Chinese, or in English when `Accept-Language` prefers it.
    #[schema(nullable = false, example = "已售罄")]
    pub message: Option<String>,
}

fn code_schema() -> Object {
    numbers(&[100, 101, 102], "100: won; 101: failed; 102: still in the queue.")
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

/// A submission that has an order.
fn won(order: OrderId, lang: Lang) -> TaskAnswer {
    let result = Placement::Won { order, surplus: None }.result();
    TaskAnswer { code: 100, msg: texts::won(lang).to_owned(), status: State::Success, ahead: 0, result }
}

/// One that got nothing, or whose order came to nothing.
fn lost(kind: Kind, msg: &'static str, order: Option<OrderId>) -> TaskAnswer {
    let mut result = json!({ "error": kind.name(), "message": msg });
    if let Some(order) = order {
        result["order_no"] = json!(order);
    }
    TaskAnswer { code: 101, msg: msg.to_owned(), status: State::Failure, ahead: 0, result }
}

/// By its record.
fn answer(status: &TaskStatus, lang: Lang) -> TaskAnswer {
    let text = |name: &str| status.result.get(name).and_then(Value::as_str);
    match status.state {
        State::Success => TaskAnswer {
            code: 100,
            msg: texts::won(lang).to_owned(),
            status: status.state,
            ahead: 0,
            result: status.result.clone(),
        },
        // What a dead letter says is for operators, and has no message; the poller learns that it failed.
        State::Failure => match text("message").and_then(|_| text("error")).and_then(Kind::named) {
            Some(kind) => lost(kind, texts::refusal(kind, lang), None),
            None => lost(Kind::Internal, texts::lost(lang), None),
        },
        State::Revoked => TaskAnswer {
            code: 101,
            msg: texts::taken_back(lang).to_owned(),
            status: status.state,
            ahead: 0,
            result: status.result.clone(),
        },
        State::Pending | State::Started | State::Retry => TaskAnswer {
            code: 102,
            msg: texts::waiting(lang, status.ahead),
            status: status.state,
            ahead: status.ahead,
            result: Value::Null,
        },
    }
}

/// Who asks about a task, and how they are spoken to.
#[derive(Clone, Copy)]
struct Asker {
    user: CurrentUser,
    lang: Lang,
}

impl Asker {
    /// Its owner does; MySQL is asked about others. A task without an owner is the service's own business.
    async fn may_see(self, app: &App, owner: Option<&str>) -> Result<bool> {
        let is_owner = owner.is_some_and(|owner| owner == self.user.id.to_string());
        Ok(is_owner || access::holds(app, &self.user, Permission::QueuesRead).await?)
    }
}

/// How a task stands once it has ended, or after `patience`.
async fn wait(app: &App, id: &TaskId, patience: Duration) -> anyhow::Result<Option<TaskStatus>> {
    tokio::select! {
        known = app.engine.wait(id, patience) => known,
        // Stopping: the poller hears how things stand now and asks again, at another process.
        () = app.loops.stop_signal().cancelled_owned() => app.engine.status(id).await,
    }
}

/// The state of a task as its submitter (or an admin) may see it. Redis answers; when it has forgotten or cannot be
/// reached, or knows that an order is not what it was, MySQL does.
async fn look(app: &App, id: &TaskId, asker: Asker, patience: Option<Duration>) -> Result<TaskAnswer> {
    let known = match patience {
        // Boxed, as the look at MySQL: most polls need no room for it.
        Some(patience) => Box::pin(wait(app, id, patience)).await,
        None => app.engine.status(id).await,
    };
    let fault = match known {
        Ok(Some(status)) if !asker.may_see(app, status.owner.as_deref()).await? => return Err(Kind::NotFound.into()),
        Ok(Some(status)) if status.result.get(UNDONE).is_none() => return Ok(answer(&status, asker.lang)),
        Ok(_) => None,
        Err(error) => Some(error),
    };
    let Some(activity) = activity_of(&id.queue) else {
        return fault.map_or(Err(Kind::NotFound.into()), |error| Err(error.into()));
    };
    // A submission has one id: its own key under another activity's name is none.
    let found = Box::pin(super::lookup::order_of(app, EntryId::from_uuid(id.key))).await?;
    let found = found.filter(|placed| placed.activity == activity);
    match (found, fault) {
        (Some(placed), _) if asker.may_see(app, Some(&placed.user.to_string())).await? => {
            Ok(match undone(placed.status) {
                Some(kind) => lost(kind, texts::refusal(kind, asker.lang), Some(placed.order)),
                None => won(placed.order, asker.lang),
            })
        }
        (None, Some(error)) => Err(error.into()),
        _ => Err(Kind::NotFound.into()),
    }
}

/// How a submission stands, at once or (`?wait=20`) as soon as it has ended.
#[utoipa::path(
    get, path = "/api/v1/tasks/{id}", tag = "tasks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The id a submission was answered with",
        pattern = r"^[0-9a-f]{32}(\.[a-z0-9_-]+)+$", max_length = 128,
        example = "019aa23b8f007cc3a1d2c0ffee000001.seckill.019aa23b8f007cc3a1d2c0ffee000002"), WaitQuery),
    responses(
        (status = 200, body = TaskAnswer, description = "Won (100), failed (101) or in the queue (102)"),
        (status = 404, description = "`not_found`: no such task, or somebody else's"),
        (status = 429, description = "`too_many_attempts`: the account waits in too many requests at once",
            headers(("Retry-After" = u64, description = "Seconds until the next one is taken"))),
    ),
)]
pub async fn poll_task(
    AppState(app): AppState<App>,
    user: CurrentUser,
    lang: Lang,
    OwnPermit(place): OwnPermit,
    Inputs(Path(id), Query(query)): Inputs<Path<TaskId>, Query<WaitQuery>>,
) -> Result<Json<TaskAnswer>> {
    let wait = query.wait.filter(|wait| *wait > 0);
    // Where the process has no place left the answer comes at once.
    let seat = wait.map(|_| Seat::take(&app, user.id, With::Poll)).transpose()?.flatten();
    if let Some(place) = place.filter(|_| seat.is_some()) {
        place.leave();
    }
    let patience = wait.filter(|_| seat.is_some()).map(Duration::from_secs);
    Ok(Json(look(&app, &id, Asker { user, lang }, patience).await?))
}

/// One event of a stream.
#[derive(Debug, utoipa::ToSchema)]
pub struct TaskEvent {
    /// Always `task`.
    #[schema(example = "task")]
    pub event: String,
    /// `waiting`, or `ended` after which there is no other.
    #[schema(example = "waiting")]
    pub id: String,
    /// Milliseconds after which a browser comes again.
    pub retry: u64,
    /// What `GET /tasks/{id}` answers.
    #[schema(schema_with = data_schema)]
    pub data: TaskAnswer,
}

fn data_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .content_media_type("application/json")
        .content_schema(Some(Ref::from_schema_name("TaskAnswer")))
        .description(Some("As JSON, what `GET /tasks/{id}` answers: a `TaskAnswer`."))
        .build()
}

/// How a stream is asked for.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// In place of an access token, for an `EventSource`: the one in the `events_url` of the submission's answer.
    #[garde(length(max = TEXT_LENGTH))]
    #[param(max_length = 75)]
    pub ticket: Option<String>,
}

impl Shape<App> for EventsQuery {}

/// How a submission stands, as server-sent events: one `task` event at once, one whenever something changed, the last
/// when the task has ended. An `EventSource` needs no header, by the ticket in `events_url`; when it comes again after
/// the last event it is told 204 and stops.
#[utoipa::path(
    get, path = "/api/v1/tasks/{id}/events", operation_id = "stream_task", tag = "tasks", security(("bearer" = []), ()),
    params(("id" = String, Path, description = "The id a submission was answered with",
        pattern = r"^[0-9a-f]{32}(\.[a-z0-9_-]+)+$", max_length = 128,
        example = "019aa23b8f007cc3a1d2c0ffee000001.seckill.019aa23b8f007cc3a1d2c0ffee000002"), EventsQuery),
    responses(
        (status = 200, body = TaskEvent, content_type = "text/event-stream", description = "Events named `task`; the data is what `GET /tasks/{id}` answers. The stream ends with the task, after five minutes, and when its token or ticket does"),
        (status = 204, description = "The task has ended, and this client has heard so (`Last-Event-ID`)"),
        (status = 404, description = "`not_found`: no such task, or somebody else's"),
        (status = 429, description = "`too_many_attempts`: the account has too many streams and long polls",
            headers(("Retry-After" = u64, description = "Seconds until the next one is taken"))),
    ),
)]
pub async fn task_events(
    AppState(app): AppState<App>,
    Watcher(user): Watcher,
    lang: Lang,
    OwnPermit(place): OwnPermit,
    headers: HeaderMap,
    Inputs(Path(id), Query(_)): Inputs<Path<TaskId>, Query<EventsQuery>>,
) -> Result<Response> {
    let full = || refuse(Kind::Overloaded, "too many streams are open").retry_after(1);
    let seat = Seat::take(&app, user.id, With::Stream)?.ok_or_else(full)?;
    let asker = Asker { user, lang };
    let first = look(&app, &id, asker, None).await?;
    let heard_the_end = headers.get(LAST_EVENT).is_some_and(|last| last == ENDED);
    if heard_the_end && first.status.is_final() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if let Some(place) = place {
        place.leave();
    }
    let stop = app.loops.stop_signal();
    let deadline = tokio::time::Instant::now() + MAX_STREAM;
    let later = stream::unfold((seat, Some(first.clone())), move |(seat, last)| {
        let (app, id, stop) = (app.clone(), id.clone(), stop.clone());
        async move {
            let mut last = last?;
            let goes_on = || {
                let in_time = tokio::time::Instant::now() < deadline && app.clock.now() < asker.user.until;
                in_time && !stop.is_cancelled()
            };
            // Ended: the stream is over. Otherwise look until something changed.
            while !last.status.is_final() && goes_on() {
                let now = look(&app, &id, asker, Some(EVENT_PERIOD)).await.ok()?;
                if now != last {
                    last = now;
                    return Some((last.clone(), (seat, Some(last))));
                }
            }
            None
        }
    });
    let events = stream::iter([first]).chain(later).map(|answer| Ok::<_, Infallible>(event(&answer)));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// What a browser says, when it comes again, of the last event that it has heard.
const LAST_EVENT: &str = "last-event-id";
/// The id of the event after which there is no other.
const ENDED: &str = "ended";

fn event(answer: &TaskAnswer) -> Event {
    let data = serde_json::to_string(answer).unwrap_or_default();
    let id = if answer.status.is_final() { ENDED } else { "waiting" };
    Event::default().event("task").id(id).retry(EVENT_PERIOD).data(data)
}
