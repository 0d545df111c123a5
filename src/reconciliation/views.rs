//! What administrators see of bills and differences, and do about them.

use crate::payments::{self, BillSubject, BookStatus, Gateway};
use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::compare::{DifferenceKind, DifferenceStatus};
use super::fetch::FetchReason;
use super::store::bills::{self, BillRow};
use super::store::differences::{self, DifferenceRow, WhichDifferences};
use super::store::fetches::{self, FetchRow};
use super::{BillId, BillOf, BillStatus, DifferenceId, FetchBill, days, examine, fetch, show_open};
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::engine::{Item, Task, TaskId};
use crate::error::{Error, Kind, Result, invalid, refuse, retrying};
use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};

/// A person may ask for a bill so many days back: gateways keep them for some months.
const DAYS_BACK: u16 = 366;

/// A gateway's bill of a day, as one fetch brought it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BillView {
    /// The fetch.
    pub id: BillId,
    /// Whose.
    pub gateway: Gateway,
    /// Of which day.
    pub day: Day,
    /// Whether it is its day's.
    pub status: BillStatus,
    /// Payments on it.
    pub payments: i64,
    /// What they come to.
    pub payments_fen: Money,
    /// Refunds on it.
    pub refunds: i64,
    /// What they come to.
    pub refunds_fen: Money,
    /// Differences of the day that are open now.
    pub differences_open: i64,
    /// Differences of the day that may still come to fit.
    pub differences_waiting: i64,
    /// When it was fetched.
    pub fetched_at: At,
    /// When the gateway told the same last.
    pub checked_at: At,
    /// When all of it was laid beside our books; null while it was not, or only begun.
    pub compared_at: Option<At>,
    /// When a fetch that told something else took its place.
    pub replaced_at: Option<At>,
    /// When its lines were so old that they went; its sums stay.
    pub pruned_at: Option<At>,
}

impl From<BillRow> for BillView {
    fn from(row: BillRow) -> Self {
        Self {
            id: row.id,
            gateway: row.gateway,
            day: row.day,
            status: row.status,
            payments: row.payments,
            payments_fen: row.payments_fen,
            refunds: row.refunds,
            refunds_fen: row.refunds_fen,
            differences_open: row.open,
            differences_waiting: row.waiting,
            fetched_at: row.fetched_at,
            checked_at: row.checked_at,
            compared_at: row.compared_at,
            replaced_at: row.replaced_at,
            pruned_at: row.pruned_at,
        }
    }
}

/// A page of bills.
pub(super) async fn bills(app: &App, gateway: Option<Gateway>, page: &PageQuery) -> Result<Page<BillView>> {
    let mut conn = app.db.acquire().await?;
    let found = bills::list(&mut conn, gateway, page.before(), page.fetch()).await.context("listing bills")?;
    Ok(page.page(found.into_iter().map(BillView::from).collect(), |bill: &BillView| bill.id))
}

/// How far the fetching of a bill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FetchState {
    /// Nobody has asked for it.
    Never,
    /// It was asked for and has not come yet.
    Fetching,
    /// It has come.
    Fetched,
    /// It could not be had, or not be used: `error` says why.
    Failed,
}

/// A gateway's bill of a day, and how far the fetching of it is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BillOfDayView {
    /// Whose.
    pub gateway: Gateway,
    /// Of which day.
    pub day: Day,
    /// How far it is.
    pub state: FetchState,
    /// The task that fetches it, or fetched it last: `/admin/tasks/{id}`. Null when it was the schedule.
    pub task_id: Option<String>,
    /// When it was asked for last, or begun once more.
    pub asked_at: Option<At>,
    /// When that ended.
    pub ended_at: Option<At>,
    /// Why it failed.
    pub error: Option<String>,
    /// The bill that is its day's; null while there is none.
    pub bill: Option<BillView>,
}

/// The bill of a day, also one that was never asked for.
pub(super) async fn of_day(app: &App, gateway: Gateway, day: Day) -> Result<BillOfDayView> {
    let mut conn = app.db.acquire().await?;
    // Before the bill: what is said to have come is then there.
    let fetch = fetches::find(&mut conn, gateway, day).await.context("reading how far a bill is")?;
    let bill = bills::show(&mut conn, gateway, day).await.context("reading a bill")?.map(BillView::from);
    let state = match fetch.as_ref().map(|fetch| fetch.status.as_str()) {
        Some("fetching") => FetchState::Fetching,
        Some("failed") => FetchState::Failed,
        Some(_) => FetchState::Fetched,
        // One of the versions that did not write it down.
        None if bill.is_some() => FetchState::Fetched,
        None => FetchState::Never,
    };
    let task = fetch.as_ref().filter(|fetch| fetch.is_task);
    let task_id = task.map(|fetch| Ok::<_, anyhow::Error>(task_of(fetch.task_key)?.to_string())).transpose()?;
    let (asked_at, ended_at, error) = match fetch {
        Some(FetchRow { asked_at, ended_at, error, .. }) => (Some(asked_at), ended_at, Some(error)),
        None => (None, None, None),
    };
    let error = error.filter(|why| !why.is_empty());
    Ok(BillOfDayView { gateway, day, state, task_id, asked_at, ended_at, error, bill })
}

fn task_of(key: Uuid) -> anyhow::Result<TaskId> {
    Ok(TaskId { key, queue: FetchBill::QUEUE.parse().context("naming a queue")? })
}

/// A person asks for a bill, also one that is there: a task fetches it and lays it beside our books. While it is fetched,
/// asking again is the same.
pub(super) async fn ask(app: &App, by: UserId, gateway: Gateway, day: Day) -> Result<BillOfDayView> {
    refuse_days_without_bills(app, gateway, day)?;
    payments::require_gateway(app, gateway)?;
    let key = retrying(|| begin(app, by, gateway, day)).await?;
    // When it does not get there, the schedule takes it up, or the same request again.
    app.engine.enqueue(&[Item::now(key, FetchBill(BillOf { gateway, day }))]).await?;
    of_day(app, gateway, day).await
}

async fn begin(app: &App, by: UserId, gateway: Gateway, day: Day) -> Result<Uuid> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let key = fetch::begin(&mut tx, gateway, day, FetchReason::Task(Uuid::now_v7()), now).await?;
    let act = Act { by, action: "bill.fetch", target: &format!("{}/{day}", gateway.as_str()) };
    audit::done(&mut tx, act, &json!({ "gateway": gateway, "day": day }), now).await?;
    tx.commit().await.context("committing")?;
    Ok(key)
}

fn refuse_days_without_bills(app: &App, gateway: Gateway, day: Day) -> Result<()> {
    let zone = payments::bill_zone(app, gateway)?;
    let (now, ready_at) = (app.clock.now(), days::ready_at(day, &zone));
    let today = Day::of(now, &zone);
    if day > today {
        return Err(invalid("day", "must not be a day to come"));
    }
    if day < today.days_before(DAYS_BACK) {
        return Err(invalid("day", format!("must be one of the last {DAYS_BACK} days")));
    }
    if now < ready_at {
        let why = format!("the bill of {day} is there from {} on", days::readable(ready_at, &zone));
        return Err(refuse(Kind::BillNotReady, why).with("ready_at", ready_at).into());
    }
    Ok(())
}

/// Where a gateway's bills and our books differ.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DifferenceView {
    /// Its id.
    pub id: DifferenceId,
    /// Whose bill.
    pub gateway: Gateway,
    /// What the number is of.
    pub what: BillSubject,
    /// The number, as the gateway's bill has it: ours of the payment or refund, or whatever it has in its place. Of one that is
    /// missing there, ours.
    pub number: String,
    /// How they differ.
    pub kind: DifferenceKind,
    /// Whether a person must look.
    pub status: DifferenceStatus,
    /// The day of the bill that has the line; of one that is missing there, the day on which we heard of the money.
    pub day: Day,
    /// Our payment; null when our books have none that this is about.
    pub payment_no: Option<String>,
    /// What the gateway's bill has in the place of our payment's number, or its own number of the trade; null when it has
    /// nothing.
    pub merchant_no: Option<String>,
    /// What the gateway's bills come to for the number; null when they have it not.
    pub theirs_fen: Option<Money>,
    /// Our amount; null when we have the number not.
    pub ours_fen: Option<Money>,
    /// How far it is by our books.
    pub ours_status: Option<BookStatus>,
    /// When it was found; of one that came back, when it did.
    pub found_at: At,
    /// When it was looked at last.
    pub checked_at: At,
    /// When it came to fit by itself.
    pub vanished_at: Option<At>,
    /// When a person resolved it.
    pub resolved_at: Option<At>,
    /// Who.
    pub resolved_by: Option<UserId>,
    /// With which words.
    pub note: String,
}

impl From<DifferenceRow> for DifferenceView {
    fn from(row: DifferenceRow) -> Self {
        Self {
            id: row.id,
            gateway: row.gateway,
            what: row.what,
            number: row.number,
            kind: row.kind,
            status: row.status,
            day: row.day,
            payment_no: Some(row.payment_no).filter(|number| !number.is_empty()),
            merchant_no: Some(row.merchant_no).filter(|number| !number.is_empty()),
            theirs_fen: row.theirs_fen,
            ours_fen: row.ours_fen,
            ours_status: row.ours_status,
            found_at: row.found_at,
            checked_at: row.checked_at,
            vanished_at: row.vanished_at,
            resolved_at: row.resolved_at,
            resolved_by: row.resolved_by,
            note: row.note,
        }
    }
}

/// Which differences.
#[derive(Debug, Clone, Copy)]
pub(super) struct DifferenceFilter {
    pub gateway: Option<Gateway>,
    pub what: Option<BillSubject>,
    pub kind: Option<DifferenceKind>,
    pub status: Option<DifferenceStatus>,
}

/// A page of differences.
pub(super) async fn differences(app: &App, filter: DifferenceFilter, page: &PageQuery) -> Result<Page<DifferenceView>> {
    let DifferenceFilter { gateway, what, kind, status } = filter;
    let which = WhichDifferences { gateway, what, kind, status };
    let mut conn = app.db.acquire().await?;
    let found =
        differences::list(&mut conn, which, page.before(), page.fetch()).await.context("listing differences")?;
    Ok(page.page(found.into_iter().map(DifferenceView::from).collect(), |difference: &DifferenceView| difference.id))
}

/// A person has looked at a difference. One that was resolved before stays as it is.
pub(super) async fn resolve(app: &App, by: UserId, id: DifferenceId, note: &str) -> Result<DifferenceView> {
    let view = retrying(|| resolve_once(app, by, id, note)).await?;
    show_open(app).await?;
    Ok(view)
}

async fn resolve_once(app: &App, by: UserId, id: DifferenceId, note: &str) -> Result<DifferenceView> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let found = differences::lock_one(&mut tx, id).await.context("locking a difference")?.ok_or(Kind::NotFound)?;
    match found.status {
        DifferenceStatus::Resolved => return Ok(found.into()),
        DifferenceStatus::Vanished => {
            return Err(refuse(Kind::DifferenceState, "it has come to fit by itself").into());
        }
        DifferenceStatus::Waiting => {
            let until = examine::waits_until(&mut tx, found.gateway, found.what, &found.number).await?;
            return Err(still_waits(app, found.gateway, until)?);
        }
        DifferenceStatus::Open => {}
    }
    differences::resolve(&mut tx, id, by, note, now).await.context("resolving a difference")?;
    let details = json!({ "number": found.number, "kind": found.kind, "note": note });
    audit::done(&mut tx, Act { by, action: "difference.resolve", target: &id.to_string() }, &details, now).await?;
    let resolved = differences::lock_one(&mut tx, id).await.context("reading a difference")?;
    tx.commit().await.context("committing")?;
    tracing::info!(difference.id = %id, "difference resolved");
    Ok(resolved.context("a difference vanished")?.into())
}

/// What nobody was told of yet may still come to fit, and what a person said of it would then be wrong.
fn still_waits(app: &App, gateway: Gateway, until: Option<At>) -> Result<Error> {
    let words = "it may still come to fit by itself, and is still waiting";
    let Some(until) = until else { return Ok(refuse(Kind::DifferenceState, words).into()) };
    let latest = days::readable(until, &payments::bill_zone(app, gateway)?);
    Ok(refuse(Kind::DifferenceState, format!("{words}, until {latest} at the latest"))
        .with("waits_until", until)
        .into())
}
