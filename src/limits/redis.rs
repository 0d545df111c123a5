//! Buckets in Redis, for all processes together: one script and one round trip for all buckets of a request.
//!
//! Keys: `<prefix>:{limits}:<action>:<who>`, with one hash tag, since one script adds to several. They expire when they
//! are empty.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ::redis::Script;
use anyhow::Context;

use super::Bucket;
use crate::app::App;
use crate::platform::seldom::Seldom;

static ADD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/add.lua")));

/// A request that may pass without being counted waits for Redis no longer than this.
const PATIENCE: Duration = Duration::from_millis(250);
/// After it did not answer, requests that may pass do not ask it for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// That it does not count is told once in so long.
const TOLD_PAUSE: Duration = Duration::from_secs(60);

/// Whether Redis counts.
#[derive(Default)]
struct Away {
    /// It is not asked before this, in milliseconds since 1970.
    until_ms: AtomicI64,
    told: Seldom,
}

/// What adding a request to some buckets came to.
pub(super) struct Added {
    /// All took it; else one of them is full, and none did.
    pub yes: bool,
    /// For how long each is not empty, in microseconds.
    pub used_us: Vec<i64>,
}

/// Adds a request to every bucket, or to none.
pub(super) async fn add(app: &App, buckets: &[Bucket]) -> anyhow::Result<Added> {
    let mut reply = call(app, buckets, 1).await?.into_iter();
    let yes = reply.next().context("an empty reply")? == 1;
    Ok(Added { yes, used_us: reply.collect() })
}

/// As [`add`], for requests that are not to wait for Redis: `None` while it does not answer.
pub(super) async fn add_if_it_answers(app: &App, buckets: &[Bucket]) -> Option<Added> {
    let (away, now) = (app.local::<Away>(), app.clock.now());
    if now.ms() < away.until_ms.load(Ordering::Relaxed) {
        return None;
    }
    let fault = match tokio::time::timeout(PATIENCE, add(app, buckets)).await {
        Ok(Ok(added)) => return Some(added),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    away.until_ms.store(now.plus(PAUSE).ms(), Ordering::Relaxed);
    if away.told.may(now, TOLD_PAUSE) {
        tracing::warn!(error = fault, "requests pass without being counted: redis does not answer");
    }
    None
}

/// Takes a request back.
pub(super) async fn take_back(app: &App, buckets: &[Bucket]) -> anyhow::Result<()> {
    call(app, buckets, -1).await.map(drop)
}

async fn call(app: &App, buckets: &[Bucket], count: i8) -> anyhow::Result<Vec<i64>> {
    let mut call = ADD.prepare_invoke();
    for bucket in buckets {
        call.key(format!("{}:{{limits}}:{}:{}", app.redis.prefix(), bucket.action.name(), bucket.who));
    }
    call.arg(app.clock.now().ms() * 1000).arg(count);
    for bucket in buckets {
        call.arg(bucket.rate.interval_us()).arg(bucket.rate.capacity_us());
    }
    call.invoke_async(&mut app.redis.commands()).await.context("counting requests")
}
