//! How often people's requests have a gateway asked about one payment: once in `payments.ask_again_after_ms`, over all
//! processes, by a guarded update of its row. Whoever comes in between is answered what we know.
//!
//! What the service asks on its own account (`payments.query`, closing, refunds) has its own pace and is not counted here.

use std::time::Duration;

use anyhow::Context;

use super::model::{PayWith, PaymentId};
use super::store::asks as rows;
use crate::app::App;
use crate::error::{Result, retrying};
use crate::platform::clock::At;
use crate::platform::db::Conn;

/// What to do about a trade that is to be opened.
pub(super) enum Opening {
    /// Have it opened.
    Ours,
    /// It was opened a moment ago, with this answer.
    Kept(PayWith),
    /// Another request is at it, or was and died; or the gateway failed it a moment ago.
    Theirs,
}

fn pause(app: &App) -> Option<Duration> {
    Some(Duration::from_millis(app.config.payments.ask_again_after_ms)).filter(|pause| !pause.is_zero())
}

/// Who opens the trade of a started payment, whose order is locked. The caller commits.
pub(super) async fn opening(app: &App, conn: &mut Conn, id: PaymentId, now: At) -> Result<Opening> {
    let Some(pause) = pause(app) else { return Ok(Opening::Ours) };
    let before = now.minus(pause);
    let opened = rows::opened(conn, id).await.context("reading how a trade was opened")?;
    if let Some(opened) = opened.filter(|opened| opened.opened_at > before) {
        let with = serde_json::from_str(&opened.opened_with).context("reading what a gateway answered")?;
        return Ok(Opening::Kept(with));
    }
    let ours = rows::claim_opening(conn, id, before, now).await.context("taking the opening of a trade")?;
    Ok(if ours { Opening::Ours } else { Opening::Theirs })
}

/// Keeps how the buyer goes on; false when nobody is to pay any more.
pub(super) async fn keep_opened(app: &App, id: PaymentId, with: &PayWith) -> Result<bool> {
    let text = serde_json::to_string(with).context("writing down what a gateway answered")?;
    retrying(async || {
        let mut conn = app.db.acquire().await?;
        Ok(rows::keep_opened(&mut conn, id, &text, app.clock.now()).await.context("keeping what a gateway answered")?)
    })
    .await
}

/// Whether a person's request may have the gateway asked about a started payment now.
pub(super) async fn may_ask(app: &App, id: PaymentId) -> Result<bool> {
    let Some(pause) = pause(app) else { return Ok(true) };
    retrying(async || {
        let now = app.clock.now();
        let mut conn = app.db.acquire().await?;
        Ok(rows::claim_ask(&mut conn, id, now.minus(pause), now).await.context("taking a question")?)
    })
    .await
}
