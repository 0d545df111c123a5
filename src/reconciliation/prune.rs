//! Lines of bills go when they are old enough: what was compared long ago needs them no more. Bills stay, with their sums.
//!
//! The lines of a difference that a person has not resolved stay: without them it would look as if the gateway had
//! taken its word back, and vanish. So does a line whose number has a younger one: what a number comes to is the sum of all
//! its lines, and a dispute is won months after it began.

use crate::payments::BillSubject;
use anyhow::Context;

use super::store::bills::{self, BillKey};
use crate::app::App;
use crate::platform::day::{self, Day};
use crate::platform::db;

/// Bills of one pass.
const BILLS: u32 = 64;
/// Lines that one page looks at, and pages of one pass.
const PAGE: u32 = db::CHUNK as u32;
const PAGES: usize = 4000;

/// One bounded pass: forgets lines of bills of days long ago. Returns how many.
pub async fn prune(app: &App) -> anyhow::Result<u64> {
    let zone = day::zone(&app.config.time_zone).context("finding the shop's time zone")?;
    let before = Day::of(app.clock.now(), &zone).days_before(app.config.payments.bill_lines_kept_days);
    let mut conn = app.db.acquire().await?;
    let old = bills::to_prune(&mut conn, before, BILLS).await.context("looking for old bills")?;
    drop(conn);
    let (mut pages, mut gone) = (0, 0);
    for bill in old {
        for what in BillSubject::ALL {
            let mut after = None;
            loop {
                if pages == PAGES || app.loops.stop_signal().is_cancelled() {
                    return Ok(gone);
                }
                pages += 1;
                gone += prune_page(app, &bill, what, before, &mut after).await?;
                if after.is_none() {
                    break;
                }
            }
        }
        let noted = db::retrying(|| async {
            let mut conn = app.db.acquire().await?;
            bills::mark_pruned(&mut conn, bill.id, app.clock.now()).await.context("noting a bill without lines")
        });
        noted.await?;
    }
    Ok(gone)
}

/// Forgets what may go of a page of lines behind `after`, which is moved on; none is behind the last page. Returns how many.
async fn prune_page(
    app: &App,
    bill: &BillKey,
    what: BillSubject,
    before: Day,
    after: &mut Option<String>,
) -> anyhow::Result<u64> {
    let mut conn = app.db.acquire().await?;
    let mut numbers =
        bills::numbers(&mut conn, bill.id, what, after.as_deref(), PAGE).await.context("reading lines")?;
    *after = if numbers.len() < PAGE as usize { None } else { numbers.last().cloned() };
    if numbers.is_empty() {
        return Ok(0);
    }
    let kept =
        bills::kept(&mut conn, bill.gateway, what, &numbers, before).await.context("looking for lines to keep")?;
    drop(conn);
    numbers.retain(|number| !kept.contains(number));
    db::retrying(|| async {
        let mut conn = app.db.acquire().await?;
        bills::prune_lines(&mut conn, bill.gateway, what, &numbers, before).await.context("forgetting old lines")
    })
    .await
}
