//! What administrators see of bills and differences, and do about them.

use anyhow::Context;
use serde::Serialize;
use serde_json::json;

use super::compare::{DifferenceKind, DifferenceStatus, What};
use super::store::bills::{self, BillRow, Which};
use super::store::differences::{self, DifferenceRow, WhichDifferences};
use super::{BillId, BillStatus, DifferenceId, days, fetch, show_open, walk};
use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::error::{Kind, Result, invalid, refuse, retrying};
use crate::payments::gateway;
use crate::payments::model::Gateway;
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
        }
    }
}

/// A page of bills.
pub(in crate::payments) async fn bills(
    app: &App,
    gateway: Option<Gateway>,
    page: &PageQuery,
) -> Result<Page<BillView>> {
    let mut conn = app.db.acquire().await?;
    let found = bills::list(&mut conn, gateway, page.before(), page.fetch()).await.context("listing bills")?;
    Ok(page.page(found.into_iter().map(BillView::from).collect(), |bill: &BillView| bill.id))
}

/// Fetches a bill now, also one that is there, and lays it beside our books.
pub(in crate::payments) async fn fetch(app: &App, by: UserId, gateway: Gateway, day: Day) -> Result<BillView> {
    let zone = gateway::bill_zone(app, gateway)?;
    let (now, ready_at) = (app.clock.now(), days::ready_at(day, &zone));
    let today = Day::of(now, &zone);
    if day > today {
        return Err(invalid("day", "must not be a day to come"));
    }
    if day < today.days_before(DAYS_BACK) {
        return Err(invalid("day", format!("must be one of the last {DAYS_BACK} days")));
    }
    if now < ready_at {
        return Err(refuse(Kind::BillNotReady, format!("the bill of {day} is there from {ready_at} on"))
            .with("ready_at", ready_at)
            .into());
    }
    let act = Act { by, action: "bill.fetch", target: &format!("{}/{day}", gateway.as_str()) };
    audit::around(app, act, &json!({ "gateway": gateway, "day": day }), async {
        fetch::fetch(app, gateway, day).await?;
        let bill = believed(app, gateway, day).await?;
        walk::compare(app, Which { id: bill.id, gateway, day }).await?;
        fetch::clear(app).await?;
        show_open(app).await?;
        believed(app, gateway, day).await
    })
    .await
}

async fn believed(app: &App, gateway: Gateway, day: Day) -> Result<BillView> {
    let mut conn = app.db.acquire().await?;
    let bill = bills::show(&mut conn, gateway, day).await.context("reading a bill")?;
    Ok(bill.context("a kept bill vanished")?.into())
}

/// Where a gateway's bills and our books differ.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DifferenceView {
    /// Its id.
    pub id: DifferenceId,
    /// Whose bill.
    pub gateway: Gateway,
    /// What the number is of.
    pub what: What,
    /// Our number of the payment or refund, or what the gateway has in its place.
    pub number: String,
    /// How they differ.
    pub kind: DifferenceKind,
    /// Whether a person must look.
    pub status: DifferenceStatus,
    /// The day of the bill that has the line; of one that is missing there, the day on which we heard of the money.
    pub day: Day,
    /// The payment's number, where it is known.
    pub payment_no: Option<String>,
    /// What the gateway's bills come to for the number; null when they have it not.
    pub theirs_fen: Option<Money>,
    /// Our amount; null when we have the number not.
    pub ours_fen: Option<Money>,
    /// How far it is by our books.
    pub ours_status: Option<String>,
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
pub(in crate::payments) struct Filter {
    pub gateway: Option<Gateway>,
    pub what: Option<What>,
    pub kind: Option<DifferenceKind>,
    pub status: Option<DifferenceStatus>,
}

/// A page of differences.
pub(in crate::payments) async fn differences(
    app: &App,
    filter: Filter,
    page: &PageQuery,
) -> Result<Page<DifferenceView>> {
    let Filter { gateway, what, kind, status } = filter;
    let which = WhichDifferences { gateway, what, kind, status };
    let mut conn = app.db.acquire().await?;
    let found =
        differences::list(&mut conn, which, page.before(), page.fetch()).await.context("listing differences")?;
    Ok(page.page(found.into_iter().map(DifferenceView::from).collect(), |difference: &DifferenceView| difference.id))
}

/// A person has looked at a difference. One that was resolved before stays as it is.
pub(in crate::payments) async fn resolve(
    app: &App,
    by: UserId,
    id: DifferenceId,
    note: &str,
) -> Result<DifferenceView> {
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
        DifferenceStatus::Open | DifferenceStatus::Waiting => {}
    }
    differences::resolve(&mut tx, id, by, note, now).await.context("resolving a difference")?;
    let details = json!({ "number": found.number, "kind": found.kind, "note": note });
    audit::done(&mut tx, Act { by, action: "difference.resolve", target: &id.to_string() }, &details, now).await?;
    let resolved = differences::lock_one(&mut tx, id).await.context("reading a difference")?;
    tx.commit().await?;
    tracing::info!(difference.id = %id, "difference resolved");
    Ok(resolved.context("a difference vanished")?.into())
}
