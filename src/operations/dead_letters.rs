//! Handlers of `/admin/queues/{queue}/dead`: dead letters.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::openapi::schema::{Array, ArrayBuilder, ObjectBuilder, SchemaType, Type};

use super::tasks::{ArgsShown, FailedView, arguments};
use super::{Segment, queue_at, segment};
use crate::access::{Require, may};
use crate::app::App;
use crate::audit::{self, Act};
use crate::engine::inspect::Letter;
use crate::engine::{QueueName, Registry, TaskId};
use crate::error::Result;
use crate::jobs;
use crate::platform::clock::At;
use crate::platform::described::AnyValue;
use crate::platform::extract::{Input, Inputs, Json, Path, Query, Shape};
use crate::platform::page::Page;

/// Items of a page when the request does not say.
const DEFAULT_LIMIT: usize = 20;
/// Letters that one request enqueues anew.
const RETRY_MOST: usize = 1000;

/// Which page of dead letters.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LettersQuery {
    /// `next_cursor` of the page before; absent for the first page.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,19}-[0-9]{1,19}$")]
    cursor: Option<LetterEntry>,
    /// Items of a page, 1..100.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

/// The id of a letter among those of its queue, as Redis gives it to entries of a stream.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct LetterEntry(String);

impl TryFrom<String> for LetterEntry {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let number = |part: &str| (1..=19).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        let good = text.split_once('-').is_some_and(|(ms, seq)| number(ms) && number(seq));
        Some(Self(text)).filter(|_| good).ok_or("must be a letter's id, such as 1763667000123-0")
    }
}

/// A dead letter: a task that did not end.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LetterView {
    /// The letter's id among those of its queue.
    pub entry: String,
    /// The task's id; null when this program cannot read its envelope.
    pub task: Option<String>,
    /// The task's name.
    pub name: Option<String>,
    /// The task's arguments.
    #[schema(value_type = AnyValue)]
    pub args: Value,
    /// Whether they are shown.
    pub args_shown: ArgsShown,
    /// The attempt that was the last.
    pub attempt: Option<u32>,
    /// Why it is here.
    pub reason: String,
    /// The attempts that failed before, the latest few.
    pub errors: Vec<FailedView>,
    /// When the task was enqueued.
    pub enqueued_at: Option<At>,
    /// When it was given up.
    pub died_at: At,
}

impl LetterView {
    fn of(registry: &Registry<App>, queue: &QueueName, letter: Letter) -> Self {
        let errors = letter.errors().iter().map(FailedView::of).collect();
        let envelope = letter.envelope;
        let name = envelope.as_ref().map(|envelope| envelope.name.clone());
        let raw = envelope.as_ref().map(|envelope| &*envelope.args);
        let (args, args_shown) = arguments(registry, name.as_deref().unwrap_or(""), raw);
        let task = envelope.as_ref().map(|envelope| TaskId { key: envelope.key, queue: queue.clone() }.to_string());
        Self {
            entry: letter.entry,
            task,
            name,
            args,
            // What cannot be read is nobody's to see: who knows what it holds.
            args_shown: if envelope.is_some() { args_shown } else { ArgsShown::Secret },
            attempt: envelope.as_ref().map(|envelope| envelope.attempt),
            reason: letter.reason,
            errors,
            enqueued_at: envelope.as_ref().map(|envelope| At::from_ms(envelope.at)),
            died_at: At::from_ms(letter.died_at),
        }
    }
}

/// The dead letters of a queue, newest first.
#[utoipa::path(get, path = "/admin/queues/{queue}/dead", tag = "admin", operation_id = "list_dead_letters", extensions(("x-permission" = json!("queues.read"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`"), LettersQuery),
    responses(
        (status = 200, body = Page<LetterView>, description = "A page of dead letters"),
    ))]
pub async fn list(
    State(app): State<App>,
    _: Require<may::QueuesRead>,
    Inputs(Path(queue), Query(query)): Inputs<Path<Segment>, Query<LettersQuery>>,
) -> Result<Reply<Page<LetterView>>> {
    let queue = queue_at(&app, queue).await?;
    let size = query.limit.map_or(DEFAULT_LIMIT, |limit| limit as usize);
    let mut letters =
        app.engine.letters(&queue, query.cursor.as_ref().map(|LetterEntry(entry)| entry.as_str()), size + 1).await?;
    let more = letters.len() > size;
    letters.truncate(size);
    let registry = jobs::catalog(&app);
    let items: Vec<_> = letters.into_iter().map(|letter| LetterView::of(&registry, &queue, letter)).collect();
    let next_cursor = items.last().filter(|_| more).map(|letter| letter.entry.clone());
    Ok(Reply(Page { items, next_cursor }))
}

/// What was enqueued anew.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RetriedLetters {
    /// Tasks that run again, from their first attempt.
    pub retried: u64,
    /// Whether more letters are left: ask again.
    pub more: bool,
}

/// Which dead letters.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryLetters {
    /// These; absent for all, the newest 1000 at once. What is not there any more is left out.
    #[garde(inner(length(min = 1, max = 1000)))]
    #[schema(schema_with = entries_schema)]
    entries: Option<Vec<LetterEntry>>,
}

impl Shape<App> for LettersQuery {}
impl Shape<App> for RetryLetters {}

fn entries_schema() -> Array {
    let entry = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]{1,19}-[0-9]{1,19}$"));
    let type_or_null = SchemaType::from_iter([Type::Array, Type::Null]);
    let described = ArrayBuilder::new().schema_type(type_or_null).items(entry).min_items(Some(1)).max_items(Some(1000));
    described
        .description(Some("These; absent for all, the newest 1000 at once. What is not there (any more) is left out."))
        .build()
}

/// Runs dead letters again, all or these, each from its first attempt; they are no letters any more. A letter that is
/// not there (any more) is left out, so a repeat does no harm.
#[utoipa::path(post, path = "/admin/queues/{queue}/dead/retry", tag = "admin", operation_id = "retry_dead_letters", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    request_body = RetryLetters,
    responses(
        (status = 200, body = RetriedLetters, description = "How many run again"),
    ))]
pub async fn retry_many(
    State(app): State<App>,
    admin: Require<may::QueuesOperate>,
    Inputs(Path(queue), Json(body)): Inputs<Path<Segment>, Json<RetryLetters>>,
) -> Result<Reply<RetriedLetters>> {
    let queue = queue_at(&app, queue).await?;
    retry(&app, admin, &queue, body.entries.map(|all| all.into_iter().map(|LetterEntry(entry)| entry).collect())).await
}

/// Runs a dead letter again, from its first attempt; it is no letter any more. A repeat does no harm.
#[utoipa::path(post, path = "/admin/queues/{queue}/dead/{entry}/retry", tag = "admin", operation_id = "retry_dead_letter", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`"),
        ("entry" = String, Path, description = "The letter's id")),
    responses(
        (status = 200, body = RetriedLetters, description = "Whether it runs again: 0 when it is not there (any more)"),
    ))]
pub async fn retry_one(
    State(app): State<App>,
    admin: Require<may::QueuesOperate>,
    Input(Path((queue, entry))): Input<Path<(Segment, LetterEntry)>>,
) -> Result<Reply<RetriedLetters>> {
    let queue = queue_at(&app, queue).await?;
    retry(&app, admin, &queue, Some(vec![entry.0])).await
}

async fn retry(
    app: &App,
    Require(admin, _): Require<may::QueuesOperate>,
    queue: &QueueName,
    entries: Option<Vec<String>>,
) -> Result<Reply<RetriedLetters>> {
    let act = Act { by: admin.id, action: "dead.retry", target: &segment(queue) };
    let details = json!({ "entries": entries });
    let retry = async {
        let (retried, more) = match &entries {
            None => app.engine.retry_all_letters(queue, RETRY_MOST).await?,
            Some(entries) => {
                let letters = app.engine.letters_at(queue, entries).await?;
                (app.engine.retry_letters(queue, &letters).await?, false)
            }
        };
        Ok(RetriedLetters { retried, more })
    };
    Ok(Reply(audit::around(app, act, &details, retry).await?))
}

/// Removes a dead letter, if it is there: its task never runs.
#[utoipa::path(delete, path = "/admin/queues/{queue}/dead/{entry}", tag = "admin", operation_id = "delete_dead_letter", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`"),
        ("entry" = String, Path, description = "The letter's id")),
    responses(
        (status = 204, description = "It is not there any more"),
        (status = 404, description = "`not_found`: no such queue"),
    ))]
pub async fn delete(
    State(app): State<App>,
    Require(admin, _): Require<may::QueuesOperate>,
    Input(Path((queue, entry))): Input<Path<(Segment, LetterEntry)>>,
) -> Result<StatusCode> {
    let (queue, LetterEntry(entry)) = (queue_at(&app, queue).await?, entry);
    let act = Act { by: admin.id, action: "dead.delete", target: &segment(&queue) };
    let delete = async { Ok(json!({ "deleted": u8::from(app.engine.delete_letter(&queue, &entry).await?) })) };
    audit::around(&app, act, &json!({ "entries": [entry] }), delete).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What was removed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DeletedLetters {
    /// Letters whose tasks never run.
    pub deleted: u64,
}

/// Removes every dead letter of a queue.
#[utoipa::path(delete, path = "/admin/queues/{queue}/dead", tag = "admin", operation_id = "delete_dead_letters", extensions(("x-permission" = json!("queues.operate"))), security(("bearer" = [])),
    params(("queue" = String, Path, description = "Its id; a partition's as `seckill.<activity>`")),
    responses(
        (status = 200, body = DeletedLetters, description = "How many there were"),
    ))]
pub async fn delete_all(
    State(app): State<App>,
    Require(admin, _): Require<may::QueuesOperate>,
    Input(Path(queue)): Input<Path<Segment>>,
) -> Result<Reply<DeletedLetters>> {
    let queue = queue_at(&app, queue).await?;
    let act = Act { by: admin.id, action: "dead.delete", target: &segment(&queue) };
    let delete = async { Ok(DeletedLetters { deleted: app.engine.delete_letters(&queue).await? }) };
    Ok(Reply(audit::around(&app, act, &json!({ "entries": null }), delete).await?))
}
