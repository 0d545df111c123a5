//! Which numbers are looked at: all of a bill and of its day, and those that differed before.

use crate::payments::{self, BillSubject, Gateway, HeardPosition};
use std::collections::BTreeMap;

use anyhow::Context;

use super::BillId;
use super::compare::{DifferenceKind, DifferenceStatus};
use super::examine::{ExamineReport, Examiner};
use super::store::bills::{self, BillKey};
use super::store::differences;
use crate::app::App;
use crate::error::{Result, retrying};
use crate::platform::clock::At;
use crate::platform::db;

/// Numbers of one page.
const PAGE: u32 = db::CHUNK as u32;
/// Pages of differences of one status that a pass looks at again. Those it does not come to are the first of the next.
const PAGES_AGAIN: usize = 500;

/// Lays a bill beside our books: its lines, those of the bills it replaced, and whatever we heard of on its day. When the
/// process stops it ends early, and begins again another time.
pub(super) async fn compare(app: &App, which: BillKey) -> Result<ExamineReport> {
    let examiner = Examiner::new(app, which.gateway)?;
    let mut conn = app.db.acquire().await?;
    let mut versions = vec![which.id];
    versions.extend(bills::replaced(&mut conn, which.gateway, which.day).await.context("reading replaced bills")?);
    drop(conn);
    let span = which.day.bounds(&payments::bill_zone(app, which.gateway)?);
    let mut told = ExamineReport::default();
    for what in BillSubject::ALL {
        let lines = versions.iter().map(|bill| Numbers::OfBill(*bill, None));
        for numbers in lines.chain([Numbers::HeardOf(span, None)]) {
            if !look_at(app, &examiner, what, numbers, &mut told).await? {
                say(which.gateway, Some(&which), &told);
                return Ok(told);
            }
        }
    }
    let compared = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        Ok(bills::mark_compared(&mut conn, which.id, app.clock.now()).await.context("noting a compared bill")?)
    });
    compared.await?;
    say(which.gateway, Some(&which), &told);
    Ok(told)
}

/// Numbers that are read page by page, each with the place where the page before ended.
enum Numbers {
    /// Those of a bill's lines.
    OfBill(BillId, Option<String>),
    /// Those of whatever we heard of between these.
    HeardOf((At, At), Option<HeardPosition>),
}

impl Numbers {
    /// The next page; one that is not full is the last.
    async fn next(&mut self, app: &App, gateway: Gateway, what: BillSubject) -> Result<Vec<String>> {
        let mut conn = app.db.acquire().await?;
        match self {
            Self::OfBill(bill, after) => {
                let page = bills::numbers(&mut conn, *bill, what, after.as_deref(), PAGE).await;
                let page = page.context("reading lines of a bill")?;
                *after = page.last().cloned();
                Ok(page)
            }
            Self::HeardOf(span, after) => {
                let page = payments::heard(&mut conn, gateway, what, *span, *after, PAGE).await;
                let page = page?;
                *after = page.last().copied();
                Ok(page.into_iter().map(|(_, id)| id.as_simple().to_string()).collect())
            }
        }
    }
}

/// Looks at page after page; false: the process stops.
async fn look_at(
    app: &App,
    examiner: &Examiner<'_>,
    what: BillSubject,
    mut numbers: Numbers,
    told: &mut ExamineReport,
) -> Result<bool> {
    loop {
        if app.loops.stop_signal().is_cancelled() {
            return Ok(false);
        }
        let page = numbers.next(app, examiner.gateway(), what).await?;
        told.add(examiner.look(what, &page).await?);
        if page.len() < PAGE as usize {
            return Ok(true);
        }
    }
}

/// Looks again at the differences that are open or wait and that nobody looked at since `since`.
pub(super) async fn recheck(app: &App, since: At) -> Result<ExamineReport> {
    let mut all = ExamineReport::default();
    for status in [DifferenceStatus::Open, DifferenceStatus::Waiting] {
        for _ in 0..PAGES_AGAIN {
            let mut conn = app.db.acquire().await?;
            let page = differences::to_check(&mut conn, status, since, PAGE).await;
            let page = page.context("looking for differences to check")?;
            drop(conn);
            if page.is_empty() || app.loops.stop_signal().is_cancelled() {
                break;
            }
            let mut groups: BTreeMap<(&'static str, BillSubject), (Gateway, Vec<String>)> = BTreeMap::new();
            for again in page {
                let group = groups.entry((again.gateway.as_str(), again.what)).or_insert((again.gateway, Vec::new()));
                // A number may differ in two ways.
                if !group.1.contains(&again.number) {
                    group.1.push(again.number);
                }
            }
            for ((_, what), (gateway, numbers)) in groups {
                let told = Examiner::new(app, gateway)?.look(what, &numbers).await?;
                say(gateway, None, &told);
                all.add(told);
            }
        }
    }
    Ok(all)
}

/// Says what is new. A person must look at what differs.
fn say(gateway: Gateway, bill: Option<&BillKey>, told: &ExamineReport) {
    let of = |kind| told.opened.get(&kind).copied().unwrap_or(0);
    let day = bill.map(|bill| bill.day.to_string());
    if !told.opened.is_empty() {
        tracing::error!(
            gateway = gateway.as_str(),
            bill.day = day,
            missing_here = of(DifferenceKind::MissingHere),
            missing_there = of(DifferenceKind::MissingThere),
            amount_differs = of(DifferenceKind::AmountDiffers),
            state_differs = of(DifferenceKind::StateDiffers),
            "the gateway's bill and our books differ; a person must look"
        );
    }
    let vanished: u64 = told.vanished.values().sum();
    if vanished > 0 {
        tracing::info!(gateway = gateway.as_str(), bill.day = day, differences = vanished, "differences vanished");
    }
}
