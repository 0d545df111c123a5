//! Lines of bills go when they are old enough: what was compared long ago needs them no more. Bills stay, with their sums.
//!
//! The lines of a difference that a person has not resolved stay: without them it would look as if the gateway had
//! taken its word back, and vanish.

use anyhow::Context;

use super::store::bills;
use crate::app::App;
use crate::platform::day::Day;

/// Bills of one pass.
const BILLS: u32 = 64;
/// Lines that one statement deletes, and statements of one pass.
const DELETE: u32 = 1000;
const DELETES: usize = 500;

/// One bounded pass: forgets lines of bills of days long ago. Returns how many.
pub async fn prune(app: &App) -> anyhow::Result<u64> {
    let zone = jiff::tz::TimeZone::get(&app.config.time_zone).context("finding the shop's time zone")?;
    let before = Day::of(app.clock.now(), &zone).days_before(app.config.payments.bill_lines_kept_days);
    let mut conn = app.db.acquire().await?;
    let old = bills::to_prune(&mut conn, before, BILLS).await.context("looking for old bills")?;
    let (mut deletes, mut gone) = (0, 0);
    for bill in old {
        loop {
            if deletes == DELETES || app.loops.stop_signal().is_cancelled() {
                return Ok(gone);
            }
            deletes += 1;
            let deleted = bills::prune_lines(&mut conn, &bill, DELETE).await.context("forgetting old lines")?;
            gone += deleted;
            if deleted < u64::from(DELETE) {
                break;
            }
        }
        bills::mark_pruned(&mut conn, bill.id, app.clock.now()).await.context("noting a bill without lines")?;
    }
    Ok(gone)
}
