//! Handlers of `/admin/workers`.

use axum::Json as Reply;
use axum::extract::State;

use super::PageAfter;
use crate::access::{Require, may};
use crate::app::App;
use crate::engine::inspect::SeenWorker;
use crate::error::Result;
use crate::platform::extract::{Input, Query};
use crate::platform::page::Page;

/// The processes that run tasks, with what they run, by instance. One that gave no sign for ten seconds is not shown.
#[utoipa::path(get, path = "/admin/workers", tag = "admin", operation_id = "list_workers", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(PageAfter),
    responses(
        (status = 200, body = Page<SeenWorker>, description = "A page of workers"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Query(page)): Input<Query<PageAfter>>,
) -> Result<Reply<Page<SeenWorker>>> {
    let seen = app.engine.workers(page.cursor(), page.size() + 1).await?;
    Ok(Reply(page.page(seen, |worker| worker.report.instance.clone())))
}
