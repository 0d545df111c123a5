//! Sends the notifies that are due, again and again at growing intervals, until the merchant says yes.

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream;

use super::model::{self, Notify};
use super::store::{self, StoredNotify};
use crate::app::App;
use crate::error::retrying;

/// The merchant's yes, exactly.
const YES: &str = "success";
/// Notifies of one pass: so few that a merchant who answers nothing in time does not make the pass look stalled.
const PAGE: u32 = 64;
/// Notifies under way at once.
const CONCURRENCY: usize = 16;
/// Of an answer, this much is kept, in characters.
const ANSWER_KEPT: usize = 200;

/// One bounded pass over the notifies that are due. Returns how many were sent.
pub async fn deliver(app: &App) -> anyhow::Result<usize> {
    let mut conn = app.db.acquire().await.context("taking a connection")?;
    let due = store::due_notifies(&mut conn, app.clock.now(), PAGE).await?;
    drop(conn);
    let sent: Vec<anyhow::Result<bool>> =
        stream::iter(due).map(|notify| send(app, notify)).buffer_unordered(CONCURRENCY).collect().await;
    let mut count = 0;
    for result in sent {
        count += usize::from(result?);
    }
    Ok(count)
}

/// One try of one notify; false when another process took it.
async fn send(app: &App, notify: StoredNotify) -> anyhow::Result<bool> {
    let now = app.clock.now();
    // The next try is noted first: a crash in the middle only repeats it.
    let next_at = model::repeat_after(notify.attempts + 1).map(|pause| now.plus(pause));
    let mine = retrying(|| async {
        let mut conn = app.db.acquire().await.context("taking a connection")?;
        store::claim_notify(&mut conn, &notify, next_at).await
    });
    if !mine.await? {
        return Ok(false);
    }
    let said: Notify = serde_json::from_str(&notify.body).context("reading a notify")?;
    if said.code == model::SUCCESS {
        // A late payment's money comes in with its first message; any other has come in before, and stays as it is.
        let paid = retrying(|| async {
            let mut conn = app.db.acquire().await.context("taking a connection")?;
            store::mark_paid(&mut conn, notify.trade_no, said.amount_fen, now).await
        });
        paid.await?;
    }
    let (timestamp, signature) = super::secret(app).sign(notify.body.as_bytes(), now);
    let sent = app
        .http
        .post(&notify.notify_url)
        .header("content-type", "application/json")
        .header("x-sandbox-timestamp", timestamp)
        .header("x-sandbox-signature", signature)
        .body(notify.body.clone())
        .send()
        .await;
    let (yes, answer) = match sent {
        Ok(response) => {
            let status = response.status();
            let text = response.text().await.unwrap_or_default();
            (status.is_success() && text == YES, format!("HTTP {}: {text}", status.as_u16()))
        }
        Err(error) => (false, error.to_string()),
    };
    let answer: String = answer.chars().take(ANSWER_KEPT).collect();
    let noted = retrying(|| async {
        let mut conn = app.db.acquire().await.context("taking a connection")?;
        if yes {
            store::confirm_notify(&mut conn, notify.id, &answer, app.clock.now()).await
        } else {
            store::note_answer(&mut conn, notify.id, &answer).await
        }
    });
    noted.await?;
    tracing::debug!(notify.id = %notify.id, yes, answer, "sandbox notify sent");
    Ok(true)
}
