//! Who waits in this process for a task to end. Announcements wake them; since an announcement can be lost, each
//! also looks by itself now and then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use redis::aio::PubSub;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use super::keys::echo;
use onrush_platform::loops::Pulse;
use onrush_platform::redis::Redis;

/// A waiter looks by itself this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Something to be heard by ourselves is said this often.
const ECHO_PERIOD: Duration = Duration::from_secs(1);
/// Not heard for so long, the subscription is made again; it must also be there within this.
const SILENCE: Duration = Duration::from_secs(3);

/// Waiters by task key.
#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<Uuid, (usize, Arc<Notify>)>>);

/// One waiter; leaves when dropped.
struct WaitingPlace<'w> {
    waiters: &'w Waiters,
    key: Uuid,
    bell: Arc<Notify>,
}

impl Drop for WaitingPlace<'_> {
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
    fn enter(&self, key: Uuid) -> WaitingPlace<'_> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, bell) = map.entry(key).or_default();
        *count += 1;
        WaitingPlace { waiters: self, key, bell: bell.clone() }
    }

    fn ring(&self, key: Uuid) {
        if let Some((_, bell)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            bell.notify_waiters();
        }
    }

    /// What `look` finds once the task of this key `has_ended`, or after `patience`.
    pub(super) async fn wait<S, F, Fut>(
        &self,
        key: Uuid,
        patience: Duration,
        look: F,
        has_ended: impl Fn(&S) -> bool,
    ) -> anyhow::Result<S>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = anyhow::Result<S>>,
    {
        let place = self.enter(key);
        let deadline = Instant::now() + patience;
        loop {
            // Listening begins before looking, so an end between the two is heard.
            let rung = place.bell.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            let status = look().await?;
            let now = Instant::now();
            if has_ended(&status) || now >= deadline {
                return Ok(status);
            }
            let _ = tokio::time::timeout_at(deadline.min(now + LOOK_AGAIN), rung).await;
        }
    }

    /// Rings for what is announced, until the subscription fails or is silent. It is silent when it does not bring what
    /// this process says itself, through its other connection, once a second: its peer is gone without a word, or it
    /// leads to a server that nobody writes to any more.
    pub(super) async fn listen(&self, redis: &Redis, pulse: Pulse) -> anyhow::Result<()> {
        let echo = echo(redis.prefix(), Uuid::now_v7().as_simple());
        let subscribed = tokio::time::timeout(SILENCE, subscribe(redis, &echo)).await;
        let mut subscription = subscribed.context("the server did not answer a subscription in time")??;
        let mut messages = subscription.on_message();
        // Since when something that was said has not been heard.
        let mut unheard = None::<Instant>;
        let mut period = tokio::time::interval(ECHO_PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !pulse.stopping() {
            pulse.beat();
            tokio::select! {
                message = messages.next() => {
                    let message = message.context("the subscription to finished tasks ended")?;
                    unheard = None;
                    let keys: String = message.get_payload().context("reading an announcement")?;
                    for key in keys.split(' ').filter_map(|key| Uuid::try_parse(key).ok()) {
                        self.ring(key);
                    }
                }
                _ = period.tick() => {
                    if unheard.is_some_and(|since| since.elapsed() > SILENCE) {
                        bail!("the subscription to finished tasks is silent");
                    }
                    say(redis, &echo).await?;
                    unheard = unheard.or_else(|| Some(Instant::now()));
                }
                () = pulse.stopped() => {}
            }
        }
        Ok(())
    }
}

async fn subscribe(redis: &Redis, echo: &str) -> anyhow::Result<PubSub> {
    let mut subscription = redis.subscribe().await.context("subscribing to finished tasks")?;
    subscription.psubscribe(format!("{}:{{*}}:done", redis.prefix())).await.context("subscribing to finished tasks")?;
    subscription.subscribe(echo).await.context("subscribing to finished tasks")?;
    Ok(subscription)
}

async fn say(redis: &Redis, echo: &str) -> anyhow::Result<()> {
    let mut said = redis::cmd("PUBLISH");
    said.arg(echo).arg("").query_async::<()>(&mut redis.commands()).await.context("saying something to be heard")
}
