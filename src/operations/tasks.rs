//! Handlers of `/admin/tasks`.

mod query;
mod view;

use axum::Json as Reply;
use axum::extract::State;
use serde::Serialize;
use serde_json::json;

use self::query::TasksQuery;
pub use self::view::{ArgsShown, FailedView, ListedView, TaskView, arguments};
use super::queues::consumed;
use crate::access::{Require, may};
use crate::app::App;
use crate::audit::{self, Act};
use crate::engine::inspect::Retried;
use crate::engine::{Revoked, TaskId, is_wrong_type};
use crate::error::{Kind, Result, refuse};
use crate::jobs;
use crate::platform::extract::{Input, Path, Query};
use crate::platform::page::Page;

/// Looks at Redis that one request takes; what they find may be less than a page.
const MAX_STEPS: usize = 20;

/// Tasks: by queue, and in each those that run, that wait, that wait for their time, and that ended (the latest first;
/// 20,000 or so of a queue are remembered, for as long as results are). While tasks move on, one may be missed or come
/// twice. **A page may hold fewer than `limit`, or none, and still have a `next_cursor`.** A task that was taken back
/// while it waited for its time because its work was done (the expiry of a paid order) is not listed.
#[utoipa::path(get, path = "/admin/tasks", tag = "admin", operation_id = "list_tasks", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(TasksQuery),
    responses(
        (status = 200, body = Page<ListedView>, description = "A page of tasks"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Query(query)): Input<Query<TasksQuery>>,
) -> Result<Reply<Page<ListedView>>> {
    let wanted = query.wanted(&jobs::catalog(&app))?;
    let (first, mut place) = wanted.from.unzip();
    let named = wanted.queue.is_some();
    let mut queues = match wanted.queue {
        Some(queue) => vec![queue],
        None => consumed(&app).await?,
    };
    // The queue that the page before ended in may be consumed no longer: the next one follows it.
    queues.retain(|queue| first.as_ref().is_none_or(|first| queue >= first));
    place = place.filter(|_| queues.first() == first.as_ref());
    let (mut items, mut steps, mut queues) = (Vec::new(), 0, queues.into_iter().peekable());
    while let Some(queue) = queues.peek() {
        let at = place.take().unwrap_or_default();
        if items.len() == wanted.limit || steps == MAX_STEPS {
            let next_cursor = Some(query::cursor(queue, &at));
            return Ok(Reply(Page { items, next_cursor }));
        }
        let left = wanted.limit - items.len();
        let (found, next) = match app.engine.list_tasks(queue, &wanted.filter, &at, left).await {
            // The list of queues says what is wrong with it.
            Err(error) if !named && is_wrong_type(&error) => (Vec::new(), None),
            found => found?,
        };
        items.extend(found.into_iter().map(ListedView::from));
        steps += 1;
        place = next;
        if place.is_none() {
            queues.next();
        }
    }
    Ok(Reply(Page { items, next_cursor: None }))
}

/// One task, with all that is known of it.
#[utoipa::path(get, path = "/admin/tasks/{id}", tag = "admin", operation_id = "get_task", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(("id" = String, Path, description = "Its id: `<key>.<queue>`", pattern = r"^[0-9a-f]{32}(\.[a-z0-9_-]+)+$",
        example = "019aa23b8f007cc3a1d2c0ffee000001.grant")),
    responses(
        (status = 200, body = TaskView, description = "The task"),
    ))]
pub async fn show(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Path(id)): Input<Path<TaskId>>,
) -> Result<Reply<TaskView>> {
    let id = known(&app, id)?;
    let found = app.engine.find(&id).await?.ok_or(Kind::NotFound)?;
    Ok(Reply(TaskView::of(&jobs::catalog(&app), &id, found)))
}

/// What became of a task that was to be taken back.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RevokedTask {
    /// `now`: it does not run. `told`: it runs, and its handler was told. `ended`: it has ended before.
    pub revoked: Revoked,
}

/// Takes a task back: one that waits does not run, one that runs is told to stop and its handler decides. A repeat does
/// no harm.
#[utoipa::path(post, path = "/admin/tasks/{id}/revoke", tag = "admin", operation_id = "revoke_task", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("id" = String, Path, description = "Its id: `<key>.<queue>`", pattern = r"^[0-9a-f]{32}(\.[a-z0-9_-]+)+$",
        example = "019aa23b8f007cc3a1d2c0ffee000001.grant")),
    responses(
        (status = 200, body = RevokedTask, description = "What became of it"),
    ))]
pub async fn revoke(
    State(app): State<App>,
    Require(admin, _): Require<may::QueuesOperate>,
    Input(Path(id)): Input<Path<TaskId>>,
) -> Result<Reply<RevokedTask>> {
    let id = known(&app, id)?;
    let act = Act { by: admin.id, action: "task.revoke", target: &id.to_string() };
    let revoke = async {
        match app.engine.revoke(&id).await? {
            Revoked::Unknown => Err(Kind::NotFound.into()),
            revoked => Ok(RevokedTask { revoked }),
        }
    };
    Ok(Reply(audit::around(&app, act, &json!({}), revoke).await?))
}

/// What became of a task that was to run again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RetriedTask {
    /// Whether it was enqueued; if not, it was on its way already.
    pub retried: bool,
}

/// Runs a task again that has ended or is a dead letter, under the same id, from its first attempt. What came before
/// and after it in a chain or group is not repeated; a dead letter goes on in its chain or group.
#[utoipa::path(post, path = "/admin/tasks/{id}/retry", tag = "admin", operation_id = "retry_task", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("id" = String, Path, description = "Its id: `<key>.<queue>`", pattern = r"^[0-9a-f]{32}(\.[a-z0-9_-]+)+$",
        example = "019aa23b8f007cc3a1d2c0ffee000001.grant")),
    responses(
        (status = 200, body = RetriedTask, description = "It is on its way"),
        (status = 409, description = "`task_state`: its arguments are not kept any more"),
    ))]
pub async fn retry(
    State(app): State<App>,
    Require(admin, _): Require<may::QueuesOperate>,
    Input(Path(id)): Input<Path<TaskId>>,
) -> Result<Reply<RetriedTask>> {
    let id = known(&app, id)?;
    let act = Act { by: admin.id, action: "task.retry", target: &id.to_string() };
    let retry = async {
        match app.engine.retry(&id).await? {
            Retried::Enqueued => Ok(RetriedTask { retried: true }),
            Retried::OnItsWay => Ok(RetriedTask { retried: false }),
            Retried::Forgotten => Err(refuse(Kind::TaskState, "its arguments are not kept any more").into()),
            Retried::Unknown => Err(Kind::NotFound.into()),
        }
    };
    Ok(Reply(audit::around(&app, act, &json!({}), retry).await?))
}

/// The task, or 404 when it cannot be one of ours.
fn known(app: &App, id: TaskId) -> Result<TaskId> {
    if jobs::catalog(app).knows(&id.queue) { Ok(id) } else { Err(Kind::NotFound.into()) }
}
