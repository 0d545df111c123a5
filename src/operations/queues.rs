//! Handlers of `/admin/queues`.

use axum::Json as Reply;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{PageAfter, Segment, queue_at, segment};
use crate::access::{Require, may};
use crate::app::App;
use crate::audit::{self, Act};
use crate::engine::inspect::QueueState;
use crate::engine::{QueueName, is_wrong_type};
use crate::error::Result;
use crate::jobs;
use crate::platform::extract::{Input, Inputs, Json, Path, Query, Shape};
use crate::platform::page::Page;

/// A queue, or a partition of one.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct QueueView {
    /// Its id, as it stands in paths: its name, with `.` before the partition.
    pub queue: String,
    /// Tasks in its stream: those that wait and those that run.
    pub depth: u64,
    /// Of these, with a worker.
    pub running: u64,
    /// Waiting for their time: delayed ones, and further attempts.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Age of the oldest task in the stream.
    pub oldest_ms: u64,
    /// Tasks a second that entered the stream in the last minute, further attempts too; null before there is a second
    /// look at the counters.
    pub in_per_s: Option<f64>,
    /// Attempts a second that ended in the last minute.
    pub out_per_s: Option<f64>,
    /// Whether nothing is read from it.
    pub paused: bool,
    /// Batches at once in each process.
    pub concurrency: u64,
    /// Whether an operator has set that; else it comes from the process's settings (this one's are shown).
    pub concurrency_set: bool,
    /// Which of its keys in Redis hold something that is not theirs; null as a rule. Then all else here is 0, and the queue
    /// stands still until they are deleted.
    pub fault: Option<String>,
}

impl QueueView {
    async fn of(app: &App, queue: &QueueName) -> Result<Self> {
        let (state, fault) = match app.engine.queue_state(queue).await {
            Ok(state) => (state, None),
            Err(error) if is_wrong_type(&error) => {
                (QueueState::unknown(queue), Some(app.engine.misshapen(queue).await?.join("; ")))
            }
            Err(error) => return Err(error.into()),
        };
        let catalog = jobs::catalog(app);
        let own = catalog.queues().find(|(spec, _)| spec.name == queue.base());
        let own = own.map_or(0, |(spec, _)| spec.concurrency as u64);
        let rounded = |rate: Option<f64>| rate.map(|rate| (rate * 1000.0).round() / 1000.0);
        Ok(Self {
            queue: segment(queue),
            depth: state.depth.depth,
            running: state.depth.running,
            delayed: state.depth.delayed,
            dead: state.depth.dead,
            oldest_ms: state.depth.oldest_ms,
            in_per_s: rounded(state.in_per_s),
            out_per_s: rounded(state.out_per_s),
            paused: state.paused,
            concurrency: state.concurrency.map_or(own, u64::from),
            concurrency_set: state.concurrency.is_some(),
            fault,
        })
    }
}

/// Every queue, and every partition that is consumed now, by name.
#[utoipa::path(get, path = "/admin/queues", tag = "admin", operation_id = "list_queues", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(PageAfter),
    responses(
        (status = 200, body = Page<QueueView>, description = "A page of queues"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Query(page)): Input<Query<PageAfter>>,
) -> Result<Reply<Page<QueueView>>> {
    let after = page.cursor().replace('.', "/");
    let queues: Vec<QueueName> =
        consumed(&app).await?.into_iter().filter(|queue| queue.as_str() > after.as_str()).collect();
    let shown = queues.iter().take(page.size() + 1);
    let views = futures_util::future::try_join_all(shown.map(|queue| QueueView::of(&app, queue))).await?;
    Ok(Reply(page.page(views, |view| view.queue.clone())))
}

/// Every queue and partition that is consumed now, by name.
pub(super) async fn consumed(app: &App) -> Result<Vec<QueueName>> {
    let all = jobs::catalog(app).partitions(app).await?;
    let mut queues: Vec<QueueName> = all.into_iter().flat_map(|(_, queues)| queues).collect();
    queues.sort_unstable();
    Ok(queues)
}

/// One queue. A partition is also found after it is no longer consumed.
#[utoipa::path(get, path = "/admin/queues/{queue}", tag = "admin", operation_id = "get_queue", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    responses(
        (status = 200, body = QueueView, description = "The queue"),
    ))]
pub async fn show(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Input(Path(queue)): Input<Path<Segment>>,
) -> Result<Reply<QueueView>> {
    let queue = queue_at(&app, queue).await?;
    Ok(Reply(QueueView::of(&app, &queue).await?))
}

/// Pauses a queue: within a second no worker reads from it, and nothing that waits for its time comes due. What runs
/// ends. It stays paused until it is resumed.
#[utoipa::path(post, path = "/admin/queues/{queue}/pause", tag = "admin", operation_id = "pause_queue", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    responses(
        (status = 200, body = QueueView, description = "The queue, paused"),
    ))]
pub async fn pause(
    State(app): State<App>,
    admin: Require<may::QueuesOperate>,
    Input(Path(queue)): Input<Path<Segment>>,
) -> Result<Reply<QueueView>> {
    set_paused(&app, admin, queue, true).await
}

/// Lets a paused queue go on.
#[utoipa::path(post, path = "/admin/queues/{queue}/resume", tag = "admin", operation_id = "resume_queue", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    responses(
        (status = 200, body = QueueView, description = "The queue"),
    ))]
pub async fn resume(
    State(app): State<App>,
    admin: Require<may::QueuesOperate>,
    Input(Path(queue)): Input<Path<Segment>>,
) -> Result<Reply<QueueView>> {
    set_paused(&app, admin, queue, false).await
}

async fn set_paused(
    app: &App,
    Require(admin, _): Require<may::QueuesOperate>,
    queue: Segment,
    paused: bool,
) -> Result<Reply<QueueView>> {
    let queue = queue_at(app, queue).await?;
    let action = if paused { "queue.pause" } else { "queue.resume" };
    let act = Act { by: admin.id, action, target: &segment(&queue) };
    let set = async { Ok(app.engine.set_paused(&queue, paused).await.map(|()| json!({ "done": true }))?) };
    audit::around(app, act, &json!({}), set).await?;
    Ok(Reply(QueueView::of(app, &queue).await?))
}

/// What a purge took out.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Purged {
    /// Tasks that will not run.
    pub purged: u64,
    /// Whether more may be left: purge again.
    pub more: bool,
}

/// Takes out what waits, in the stream and for its time; never what a worker has. Each is taken back as by a
/// revocation. At most 20,000 tasks or so at once.
#[utoipa::path(post, path = "/admin/queues/{queue}/purge", tag = "admin", operation_id = "purge_queue", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    responses(
        (status = 200, body = Purged, description = "What was taken out"),
    ))]
pub async fn purge(
    State(app): State<App>,
    Require(admin, _): Require<may::QueuesOperate>,
    Input(Path(queue)): Input<Path<Segment>>,
) -> Result<Reply<Purged>> {
    let queue = queue_at(&app, queue).await?;
    let act = Act { by: admin.id, action: "queue.purge", target: &segment(&queue) };
    let purge = async {
        let (purged, more) = app.engine.purge(&queue).await?;
        Ok(Purged { purged, more })
    };
    Ok(Reply(audit::around(&app, act, &json!({}), purge).await?))
}

/// How many batches of a queue each process runs at once.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetConcurrency {
    /// So many; null: as many as each process's own settings say.
    #[garde(inner(range(min = 1, max = 256)))]
    // Named, so that it must be there: an empty body is no wish to reset it.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(minimum = 1, maximum = 256, required)]
    concurrency: Option<u32>,
}

impl Shape<App> for SetConcurrency {}

/// Sets how many batches of a queue each process runs at once; every worker follows within a second. With fewer, what
/// runs ends first.
#[utoipa::path(put, path = "/admin/queues/{queue}/concurrency", tag = "admin", operation_id = "set_queue_concurrency", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    request_body = SetConcurrency,
    responses(
        (status = 200, body = QueueView, description = "The queue"),
    ))]
pub async fn set_concurrency(
    State(app): State<App>,
    Require(admin, _): Require<may::QueuesOperate>,
    Inputs(Path(queue), Json(body)): Inputs<Path<Segment>, Json<SetConcurrency>>,
) -> Result<Reply<QueueView>> {
    let queue = queue_at(&app, queue).await?;
    let act = Act { by: admin.id, action: "queue.concurrency", target: &segment(&queue) };
    let details: Value = json!({ "concurrency": body.concurrency });
    let set =
        async { Ok(app.engine.set_concurrency(&queue, body.concurrency).await.map(|()| json!({ "done": true }))?) };
    audit::around(&app, act, &details, set).await?;
    Ok(Reply(QueueView::of(&app, &queue).await?))
}
