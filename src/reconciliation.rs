//! The gateways' bills beside our books: each day's is fetched, kept, and compared line by line with our payments and
//! refunds; what differs is written down for a person (docs/payments/bills.md).
//!
//! * **Ask**: the schedule asks for the bills that are missing, a person for any; both go through [`fetch::fetch`], which
//!   writes down how far it is. A person's is a task ([`FetchBill`]), since a bill may take longer than a request.
//! * **Fetch** ([`fetch`]): a bill is kept whole or not at all. Its lines are written in batches under a fetch of their own
//!   that nobody reads; one small transaction then makes that fetch the believed one of its day. A crash in between
//!   leaves lines that are cleared away. A fetch that tells the same changes nothing.
//! * **Compare** ([`walk`], [`examine`]): each line of the bill, and each payment and refund of which we heard on that day,
//!   in bounded handfuls; what [`compare`] says is pure. A bill is compared when it came and when it changed. Whether a
//!   line is missing is asked of all bills that could have it ([`days`]), not of one day's.
//! * **Prune** ([`prune()`]): lines go when they are old enough, but for those that a person has still to look at.
//! * **Differences** are unique by gateway, number and kind. Each pass looks again at those that are open or wait: a late
//!   callback closes them.
//!
//! All of it may be done twice, and by two processes at once.

mod bill;
mod compare;
mod days;
mod examine;
mod fetch;
pub mod http;
mod prune;
mod store;
mod views;
mod walk;

use crate::payments::{self, Gateway};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::app::{App, failed};
use crate::engine::{Job, Outcome, Retry, Task};
use crate::error::{Kind, Result};
use crate::platform::day::Day;
use crate::platform::id::Id;
use crate::platform::text::Text;
use fetch::{FetchReason, Fetched};
use store::bills::BillKey;
use store::{bills, differences, fetches};

pub use prune::prune;

pub use compare::{DifferenceKind, DifferenceStatus};

/// Names bills.
pub struct BillName;
/// The id of one fetch of a bill.
pub type BillId = Id<BillName>;
/// Names differences.
pub struct DifferenceName;
/// The id of a difference.
pub type DifferenceId = Id<DifferenceName>;

/// How a bill that was kept stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BillStatus {
    /// It is its day's.
    Believed,
    /// A later fetch told something else.
    Replaced,
}

impl TryFrom<Text> for BillStatus {
    type Error = String;
    fn try_from(Text(text): Text) -> Result<Self, String> {
        match text.as_str() {
            "believed" => Ok(Self::Believed),
            // Whether its lines are still there is nobody's concern.
            "replaced" | "dropped" => Ok(Self::Replaced),
            _ => Err(format!("unknown status of a bill {text:?}")),
        }
    }
}

/// Bills that were not laid beside our books, of one pass: a week of every gateway, and some more.
const BILLS: u32 = 64;
/// When a task looks again whose bill's turn did not come, or whose process stops.
const NOT_NOW: Duration = Duration::from_secs(5);

/// Whose bill of which day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BillOf {
    /// Whose.
    pub gateway: Gateway,
    /// Of which day.
    pub day: Day,
}

/// A person asks for a bill.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FetchBill(pub BillOf);

impl Task for FetchBill {
    const NAME: &'static str = "payments.bill";
    const QUEUE: &'static str = "bills";
    const RETRY: Retry = Retry { attempts: 5, base: Duration::from_secs(1), cap: Duration::from_secs(30) };
}

/// Fetches a bill that a person asked for, and lays it beside our books. One that cannot be had now is asked for again by
/// a person, or by the schedule.
pub async fn fetch_bill(app: App, job: Job<FetchBill>) -> Outcome {
    match fetch_and_compare(&app, job.args.0, job.id.key).await {
        Ok(None) => Outcome::Again(NOT_NOW),
        Ok(Some(told)) => Outcome::Success(json!({
            "opened": told.opened.values().sum::<u64>(), "vanished": told.vanished.values().sum::<u64>(),
        })),
        Err(error) if error.kind() == Kind::Unavailable => failed(&app, &error),
        Err(error) => {
            let result = json!({ "error": fetch::reason(job.args.0.gateway, &error) });
            Outcome::Failure { result, effects: Vec::new() }
        }
    }
}

/// `None`: not now, and not here.
async fn fetch_and_compare(app: &App, bill: BillOf, key: Uuid) -> Result<Option<examine::ExamineReport>> {
    let BillOf { gateway, day } = bill;
    if fetch::fetch(app, gateway, day, FetchReason::Task(key)).await? == Fetched::NotNow {
        return Ok(None);
    }
    let mut conn = app.db.acquire().await?;
    let believed = bills::believed(&mut conn, gateway, day).await.context("reading a bill")?;
    drop(conn);
    let (id, _) = believed.context("a kept bill vanished")?;
    let told = walk::compare(app, BillKey { id, gateway, day }).await?;
    fetch::clear(app).await?;
    show_open(app).await?;
    Ok(Some(told))
}

/// What came of a pass.
#[derive(Debug, Default, Serialize)]
pub struct Reconciled {
    /// Bills that came.
    fetched: Vec<BillOf>,
    /// Bills that the gateway did not give, or whose turn did not come: another time.
    not_there: Vec<BillOf>,
    /// Bills that cannot be read or kept: a person must look.
    unusable: Vec<BillOf>,
    /// Differences that were found.
    opened: u64,
    /// Differences that came to fit.
    vanished: u64,
}

/// One bounded pass: fetches the bills of the last days that are missing, looks again at what differed, and compares what
/// was not compared. What fails with one bill holds up no other, and is told at the end.
pub async fn reconcile(app: &App) -> anyhow::Result<Reconciled> {
    let (since, mut done) = (app.clock.now(), Reconciled::default());
    for gateway in Gateway::ALL {
        if payments::gateway_is_on(app, gateway) {
            fetch_due(app, gateway, &mut done).await?;
        }
    }
    fetch_lost(app, &mut done).await?;
    let mut told = walk::recheck(app, since).await?;
    let mut conn = app.db.acquire().await?;
    let waiting = bills::uncompared(&mut conn, BILLS).await.context("looking for bills to compare")?;
    drop(conn);
    let mut failed = Vec::new();
    for bill in waiting {
        match walk::compare(app, bill).await {
            Ok(more) => told.add(more),
            Err(error) => {
                failed.push(anyhow::Error::from(error).context(format!("comparing the bill of {}", bill.day)))
            }
        }
    }
    (done.opened, done.vanished) = (told.opened.values().sum(), told.vanished.values().sum());
    fetch::clear(app).await?;
    show_open(app).await?;
    failed.into_iter().next().map_or(Ok(done), Err)
}

/// Fetches the bills of a gateway that are missing, oldest first.
async fn fetch_due(app: &App, gateway: Gateway, done: &mut Reconciled) -> anyhow::Result<()> {
    let mut missing = days::due(app.clock.now(), &payments::bill_zone(app, gateway)?);
    let Some(&first) = missing.first() else { return Ok(()) };
    let mut conn = app.db.acquire().await?;
    let there = bills::days_since(&mut conn, gateway, first).await.context("reading the days of bills")?;
    drop(conn);
    missing.retain(|day| !there.contains(day));
    for day in missing {
        fetch_one(app, BillOf { gateway, day }, FetchReason::Schedule, day == first, done).await?;
    }
    Ok(())
}

/// Fetches the bills whose tasks are lost.
async fn fetch_lost(app: &App, done: &mut Reconciled) -> anyhow::Result<()> {
    let mut conn = app.db.acquire().await?;
    let before = app.clock.now().minus(fetch::UNDER_WAY);
    let lost = fetches::lost(&mut conn, before, BILLS).await.context("looking for bills that were asked for")?;
    drop(conn);
    for (name, day) in lost {
        let gateway = name.parse().with_context(|| format!("reading the gateway {name:?}"))?;
        fetch_one(app, BillOf { gateway, day }, FetchReason::Lost, false, done).await?;
    }
    Ok(())
}

/// Fetches a bill. One that never comes (of a day before the account was opened, say) holds up no other.
async fn fetch_one(
    app: &App,
    bill: BillOf,
    by: FetchReason,
    is_last: bool,
    done: &mut Reconciled,
) -> anyhow::Result<()> {
    let BillOf { gateway, day } = bill;
    let error = match fetch::fetch(app, gateway, day, by).await {
        Ok(Fetched::Kept) => {
            done.fetched.push(bill);
            return Ok(());
        }
        Ok(Fetched::NotNow) => {
            tracing::info!(gateway = gateway.as_str(), bill.day = %day, "bill is not fetched now; the next run asks for it");
            done.not_there.push(bill);
            return Ok(());
        }
        Err(error) => error,
    };
    match error.kind() {
        Kind::GatewayUnavailable | Kind::GatewayOff => {
            if is_last {
                tracing::error!(
                    gateway = gateway.as_str(), bill.day = %day,
                    "bill has not come for a week and is not asked for after today; a person must look"
                );
            } else {
                tracing::warn!(gateway = gateway.as_str(), bill.day = %day, "bill is not there; it is asked for again");
            }
            done.not_there.push(bill);
        }
        Kind::Unavailable => return Err(error.into()),
        _ => {
            tracing::error!(
                gateway = gateway.as_str(), bill.day = %day, %error, "bill is of no use; a person must look"
            );
            done.unusable.push(bill);
        }
    }
    Ok(())
}

/// Shows how many differences are open.
async fn show_open(app: &App) -> anyhow::Result<()> {
    let mut conn = app.db.acquire().await?;
    let open = differences::count_open(&mut conn).await.context("counting differences")?;
    for gateway in Gateway::ALL {
        let count = open.iter().find(|(name, _)| name == gateway.as_str()).map_or(0, |(_, count)| *count);
        metrics::gauge!("onrush_payment_differences_open", "gateway" => gateway.as_str()).set(count as f64);
    }
    Ok(())
}
