//! Tasks that are believed to be on their way and are nowhere: nobody would run them, and what waits for one waits for
//! ever. Workers clear them; this says whether any are left.

use crate::app::App;
use crate::engine::QueueName;

/// The queues that are not an activity's.
pub const QUEUES: [&str; 6] = ["bills", "expiry", "grant", "late", "release", "system"];

/// What is lost in queues that are not an activity's. One that cannot be read is a finding, and the others are looked at.
pub(super) async fn in_queues(app: &App) -> Vec<String> {
    let mut found = Vec::new();
    for name in QUEUES {
        let looked = match name.parse() {
            Ok(queue) => in_queue(app, &queue).await,
            Err(error) => Err(anyhow::Error::new(error)),
        };
        match looked {
            Ok(lost) => found.extend(lost),
            Err(error) => found.push(format!("queue {name}: it cannot be read: {error:#}")),
        }
    }
    found
}

/// What is lost in one queue.
pub(super) async fn in_queue(app: &App, queue: &QueueName) -> anyhow::Result<Option<String>> {
    let lost = app.engine.missing(queue).await?;
    let most = if lost.all_seen { "" } else { " at least" };
    let say = || {
        format!(
            "queue {queue}: tasks lost:{most} {} (in no stream, with no worker, not waiting for their time)",
            lost.tasks
        )
    };
    Ok((lost.tasks > 0 || !lost.all_seen).then(say))
}
