//! The outbox: what follows a task is written with its acknowledgement, into the same slot, and goes on its way from
//! there. It may go twice (two forwarders, or one that died before it could cross it out): tasks that follow have keys
//! of their own, by which the second is known.

use std::time::Duration;

use anyhow::Context;
use redis::streams::StreamRangeReply;
use serde_json::value::RawValue;

use super::super::call::{self, Call, Member, Unique};
use super::super::client::{ENDED_ENTRIES, millis};
use super::super::envelope::{Envelope, Record};
use super::super::follow::Follow;
use super::super::scripts;
use super::super::task::State;
use super::Partition;

/// What is sent at once.
const FORWARD_CHUNK: usize = 100;
/// A group is remembered for this long after its last member's end.
const GROUP_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// What was sent once is not sent again for this long.
const ONCE: Unique = Unique::For(Duration::from_secs(24 * 3600));

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    /// Sends what lies in the outbox.
    pub(super) async fn forward(&self) -> anyhow::Result<()> {
        let engine = &self.worker.engine;
        loop {
            let waiting: StreamRangeReply = redis::cmd("XRANGE")
                .arg(self.keys.outbox())
                .arg("-")
                .arg("+")
                .arg("COUNT")
                .arg(FORWARD_CHUNK)
                .query_async(&mut engine.redis.commands())
                .await
                .context("reading an outbox")?;
            let mut failed = None;
            for entry in &waiting.ids {
                // One that cannot be sent now does not hold up those behind it.
                if let Err(error) = self.send_text(&entry.get::<String>("f").unwrap_or_default()).await {
                    failed = Some(error);
                    continue;
                }
                redis::cmd("XDEL")
                    .arg(self.keys.outbox())
                    .arg(&entry.id)
                    .query_async::<i64>(&mut engine.redis.commands())
                    .await
                    .context("crossing out what was sent")?;
            }
            if let Some(error) = failed {
                return Err(error);
            }
            if waiting.ids.len() < FORWARD_CHUNK {
                return Ok(());
            }
        }
    }

    async fn send_text(&self, text: &str) -> anyhow::Result<()> {
        match serde_json::from_str::<Vec<Follow>>(text) {
            Ok(all) => {
                for follow in all {
                    self.send(follow).await?;
                }
            }
            Err(error) => {
                tracing::error!(queue = %self.queue, %error, text, "what follows cannot be read and is dropped");
            }
        }
        Ok(())
    }

    async fn send(&self, follow: Follow) -> anyhow::Result<()> {
        let engine = &self.worker.engine;
        let now = engine.clock.now().ms();
        match follow {
            Follow::Calls(calls) => {
                for call in calls {
                    engine.call(&call, None, ONCE).await?;
                }
            }
            Follow::Next { call, then, previous, member } => {
                let envelope = Envelope { previous: Some(previous), then, member, ..Envelope::of(&call, now) };
                engine.send(&call.queue, &[(envelope, None)], ONCE).await?;
            }
            Follow::Ended { member, result, failed, revoked } => {
                self.join(&member, &result, failed, revoked, now).await?;
            }
            Follow::Revoked(calls) => {
                for call in calls {
                    self.skip(&call, Record::taken_back(&Envelope::of(&call, now), now)).await?;
                }
            }
        }
        Ok(())
    }

    /// A member of a group has ended.
    async fn join(
        &self,
        member: &Member,
        result: &RawValue,
        failed: bool,
        revoked: bool,
        now: i64,
    ) -> anyhow::Result<()> {
        let engine = &self.worker.engine;
        let keys = engine.keys(&member.callback.queue);
        let (what, results): (String, Vec<String>) = scripts::JOIN
            .key(keys.group(member.group.as_simple()))
            .arg(member.number)
            .arg(result.get())
            .arg(i32::from(failed))
            .arg(member.of)
            .arg(millis(GROUP_LIFE))
            .invoke_async(&mut engine.redis.commands())
            .await
            .context("joining a group")?;
        let callback = &member.callback;
        if what == "done" {
            let all: Vec<Box<RawValue>> =
                results.into_iter().map(RawValue::from_string).collect::<Result<_, _>>().context("reading results")?;
            let envelope = Envelope { previous: Some(call::raw(&all)), ..Envelope::of(callback, now) };
            engine.send(&callback.queue, &[(envelope, None)], ONCE).await?;
        } else if what == "failed" {
            let mut record = Record::of(&Envelope::of(callback, now), State::Failure);
            let what = if revoked { "was revoked" } else { "failed" };
            record.result = serde_json::json!({ "error": format!("member {} of its group {what}", member.number) });
            record.ended_at = Some(now);
            self.skip(callback, record).await?;
        }
        Ok(())
    }

    /// Ends a task that will not be enqueued.
    async fn skip(&self, call: &Call, record: Record) -> anyhow::Result<()> {
        let engine = &self.worker.engine;
        let (keys, key) = (engine.keys(&call.queue), call.key.as_simple().to_string());
        let state = if record.state == State::Revoked { "REVOKED" } else { "FAILURE" };
        scripts::SKIP
            .key(keys.meta())
            .key(keys.task(&key))
            .key(keys.ended())
            .arg(key)
            .arg(record.text())
            .arg(millis(engine.settings.result_ttl))
            .arg(keys.done())
            .arg(&call.name)
            .arg(state)
            .arg(ENDED_ENTRIES)
            .invoke_async::<i64>(&mut engine.redis.commands())
            .await
            .context("ending a task that will not be enqueued")?;
        Ok(())
    }
}
