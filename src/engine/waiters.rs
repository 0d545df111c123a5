//! Who waits in this process for a task to end. Announcements wake them; since an announcement can be lost, each
//! also looks by itself now and then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use tokio::sync::Notify;
use uuid::Uuid;

use super::client::{Engine, Status};
use super::task::TaskId;
use crate::platform::loops::Pulse;
use crate::platform::redis::Redis;

/// A waiter looks by itself this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Waiters by task key.
#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<Uuid, (usize, Arc<Notify>)>>);

/// One waiter; leaves when dropped.
struct Place<'w> {
    waiters: &'w Waiters,
    key: Uuid,
    bell: Arc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut map = self.waiters.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = map.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.key);
            }
        }
    }
}

impl Waiters {
    fn enter(&self, key: Uuid) -> Place<'_> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, bell) = map.entry(key).or_default();
        *count += 1;
        Place { waiters: self, key, bell: bell.clone() }
    }

    fn ring(&self, key: Uuid) {
        if let Some((_, bell)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            bell.notify_waiters();
        }
    }

    pub(super) async fn wait(
        &self,
        engine: &Engine,
        id: &TaskId,
        patience: Duration,
    ) -> anyhow::Result<Option<Status>> {
        let place = self.enter(id.key);
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            // Listening begins before looking, so an end between the two is heard.
            let rung = place.bell.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            let status = engine.status(id).await?;
            let ended = status.as_ref().is_none_or(|status| status.state.is_final());
            let now = tokio::time::Instant::now();
            if ended || now >= deadline {
                return Ok(status);
            }
            let _ = tokio::time::timeout_at(deadline.min(now + LOOK_AGAIN), rung).await;
        }
    }

    pub(super) async fn listen(&self, redis: &Redis, pulse: Pulse) -> anyhow::Result<()> {
        let mut subscription = redis.client().get_async_pubsub().await.context("subscribing to finished tasks")?;
        subscription
            .psubscribe(format!("{}:{{*}}:done", redis.prefix()))
            .await
            .context("subscribing to finished tasks")?;
        let mut messages = subscription.on_message();
        while !pulse.stopping() {
            pulse.beat();
            tokio::select! {
                message = messages.next() => {
                    let message = message.context("the subscription to finished tasks ended")?;
                    let keys: String = message.get_payload().context("reading an announcement")?;
                    for key in keys.split(' ').filter_map(|key| Uuid::try_parse(key).ok()) {
                        self.ring(key);
                    }
                }
                () = pulse.sleep(LOOK_AGAIN) => {}
            }
        }
        Ok(())
    }
}
