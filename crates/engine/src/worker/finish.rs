//! The acknowledgement: what became of deliveries, written by one script that first checks that they are still ours.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::call::{self, Call};
use super::super::client::{ENDED_ENTRIES, META_LIFE, millis};
use super::super::envelope::{Envelope, Record, and_failed};
use super::super::follow::Follow;
use super::super::keys::GROUP;
use super::super::registry::Delivery;
use super::super::scripts;
use super::super::task::{Effect, State};
use super::Partition;
use super::keeper::{IDLE_PERIOD, is_no_group};

/// Writes of one ending before the task is left to run again: about half a minute.
const FINISH_ATTEMPTS: u32 = 30;
/// Dead letters kept per queue; the oldest go first.
const DEAD_LETTERS_KEPT: u64 = 10_000;
/// Nobody waits for longer, a hundred years: whole milliseconds far below what Lua's numbers hold.
const LONGEST_PAUSE_MS: u64 = 100 * 366 * 24 * 3600 * 1000;
/// Deliveries that one script call ends, so that none holds up Redis for long.
const FINISH_CHUNK: usize = 256;
/// Keys of `finish.lua` before those of the effects.
const KEYS_BEFORE_EFFECTS: usize = 8;

/// How a delivery ends.
pub(super) enum Ending {
    Success { result: Value, effects: Vec<Effect>, calls: Vec<Call> },
    Failure(Value, Vec<Effect>),
    Revoked,
    Retry { pause: Duration, attempt: u32, why: String },
    Dead(String),
}

impl Ending {
    fn label(&self) -> &'static str {
        match self {
            Self::Success { .. } => "success",
            Self::Revoked => "revoked",
            Self::Failure(..) => "failure",
            Self::Retry { .. } => "retry",
            Self::Dead(_) => "dead",
        }
    }

    /// The script's word for it, when it is not the usual one, and the state of the record.
    fn what(&self) -> (Option<&'static str>, State) {
        match self {
            Self::Success { .. } => (None, State::Success),
            Self::Revoked => (Some("REVOKED"), State::Revoked),
            Self::Failure(..) => (Some("FAILURE"), State::Failure),
            Self::Retry { .. } => (Some("retry"), State::Retry),
            Self::Dead(_) => (Some("dead"), State::Failure),
        }
    }

    fn effects(&self) -> &[Effect] {
        match self {
            Self::Success { effects, .. } | Self::Failure(_, effects) => effects,
            Self::Retry { .. } | Self::Dead(_) | Self::Revoked => &[],
        }
    }
}

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    /// Writes endings; tried until Redis takes them or the lease is somebody else's, so that a short outage of Redis
    /// after a commit does not make the task run again.
    pub(super) async fn finish(&self, name: &str, mut endings: Vec<(Arc<Delivery>, Ending)>) {
        self.report(name, &endings);
        // As they are in the stream: what lies between the first and the last of a chunk is then, as a rule, the chunk.
        endings.sort_by_cached_key(|(delivery, _)| order(&delivery.entry));
        // At once: Redis works on one while the next is written.
        join_all(endings.chunks(FINISH_CHUNK).map(|chunk| self.finish_chunk(name, chunk))).await;
        // Others of its batch may run on.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        endings.iter().for_each(|(delivery, _)| drop(running.remove(&delivery.envelope.key)));
        drop(running);
        let soon = |ending: &Ending| matches!(ending, Ending::Retry { pause, .. } if *pause < IDLE_PERIOD);
        if endings.iter().any(|(_, ending)| soon(ending)) {
            self.idle.stir();
        }
    }

    fn report(&self, name: &str, endings: &[(Arc<Delivery>, Ending)]) {
        let mut counts: HashMap<&'static str, u64> = HashMap::new();
        for (delivery, ending) in endings {
            *counts.entry(ending.label()).or_default() += 1;
            if let Ending::Dead(why) = ending {
                tracing::error!(task.id = %delivery.id, task.name = name, reason = why, "task went to the dead letters");
            }
        }
        for (outcome, count) in counts {
            metrics::counter!("onrush_tasks_total", "task" => name.to_owned(), "outcome" => outcome).increment(count);
        }
    }

    async fn finish_chunk(&self, name: &str, endings: &[(Arc<Delivery>, Ending)]) {
        let mut pause = Duration::from_millis(50);
        for _ in 0..FINISH_ATTEMPTS {
            match self.try_finish(name, endings).await {
                Ok(owned) => {
                    if endings.iter().any(|(delivery, ending)| follows(delivery, ending))
                        && let Err(error) = self.forward().await
                    {
                        tracing::warn!(queue = %self.queue, error = format!("{error:#}"), "what follows waits for the keeper");
                    }
                    if owned < endings.len() {
                        tracing::warn!(queue = %self.queue, lost = endings.len() - owned, "some deliveries belonged to another worker by now");
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(queue = %self.queue, error = format!("{error:#}"), "results could not be written yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
        metrics::counter!("onrush_results_unwritten_total", "queue" => self.queue.base().to_owned())
            .increment(endings.len() as u64);
        tracing::error!(queue = %self.queue, tasks = endings.len(), "results could not be written; the tasks will run again");
    }

    async fn try_finish(&self, name: &str, endings: &[(Arc<Delivery>, Ending)]) -> anyhow::Result<usize> {
        let engine = &self.worker.engine;
        let now = engine.clock.now().ms();
        let keys = &self.keys;
        let mut call = scripts::FINISH.prepare_invoke();
        call.key(self.stream()).key(keys.meta()).key(keys.delayed()).key(keys.envelopes()).key(keys.dead());
        call.key(keys.revoked()).key(keys.outbox()).key(keys.ended());
        call.arg(GROUP).arg(&self.worker.consumer).arg(engine.clock.shift_ms()).arg(keys.done()).arg(DEAD_LETTERS_KEPT);
        call.arg(millis(META_LIFE)).arg(name).arg((ENDED_ENTRIES / self.spec.batch.max(1)).max(1));
        call.arg(millis(engine.settings.result_ttl));
        let kept = self.worker.registry.tasks.get(name).and_then(|task| task.keep_result);
        let life_ms = millis(kept.unwrap_or(engine.settings.result_ttl)).max(1);
        call.arg(life_ms).arg(keys.task_prefix()).arg(endings.len());
        let mut more = Vec::new();
        let mut next_key = KEYS_BEFORE_EFFECTS;
        for (delivery, _) in endings {
            call.arg(&delivery.entry);
        }
        for (delivery, _) in endings {
            call.arg(delivery.envelope.key.as_simple().to_string());
        }
        for (place, (delivery, ending)) in endings.iter().enumerate() {
            let (record, mut rest) = self.written(delivery, ending, now, life_ms);
            for effect in ending.effects() {
                next_key += 1;
                call.key(&effect.key);
                rest.effects.push(Command { key: next_key, command: effect.command, args: &effect.args });
            }
            call.arg(record);
            if !rest.is_nothing() {
                more.push((place + 1, serde_json::to_string(&rest).context("writing what an ending needs")?));
            }
        }
        call.key(keys.absent());
        for (place, rest) in more {
            call.arg(place).arg(rest);
        }
        match call.invoke_async(&mut engine.redis.commands()).await {
            // Redis was emptied: nothing of this is ours any more.
            Err(error) if is_no_group(&error) => Ok(0),
            answer => answer.context("writing results"),
        }
    }

    /// What the script writes of one delivery: the record, and what there is beside it.
    fn written(&self, delivery: &Delivery, ending: &Ending, now: i64, life_ms: u64) -> (String, Rest<'static>) {
        let (ends, state) = ending.what();
        let mut record = self.record(delivery, state);
        record.ended_at = Some(now);
        let mut rest = Rest { ends, ..Rest::default() };
        match ending {
            Ending::Success { result, .. } | Ending::Failure(result, _) => record.result = result.clone(),
            Ending::Revoked => {}
            Ending::Retry { pause, attempt, why } => {
                record.result = json!({ "error": why });
                let pause_ms = millis(*pause).min(LONGEST_PAUSE_MS);
                rest.life = Some(life_ms.saturating_add(pause_ms).to_string());
                rest.pause = Some(pause_ms.to_string());
                let tried = delivery.control.trace().cloned();
                let mut next = Envelope { attempt: *attempt, tried, ..delivery.envelope.clone() };
                if !why.is_empty() {
                    next.errors = and_failed(&next.errors, delivery.envelope.attempt, now, why);
                }
                record.errors.clone_from(&next.errors);
                rest.envelope = Some(next.text());
            }
            Ending::Dead(why) => {
                record.result = json!({ "error": why });
                record.errors = and_failed(&record.errors, delivery.envelope.attempt, now, why);
                rest.envelope = Some(delivery.raw.clone().unwrap_or_else(|| delivery.envelope.text()));
                rest.reason = Some(why.clone());
            }
        }
        rest.follow = Some(follow(delivery, ending, &record.result)).filter(|text| !text.is_empty());
        (record.text(), rest)
    }

    fn record(&self, delivery: &Delivery, state: State) -> Record {
        let worker = Some(self.worker.consumer.clone());
        let started_at = Some(delivery.since.ms());
        Record { worker, started_at, progress: delivery.control.progress(), ..Record::of(&delivery.envelope, state) }
    }

    /// Writes that tasks run, for those who look at them.
    pub(super) async fn mark_started(&self, deliveries: &[Arc<Delivery>]) -> anyhow::Result<()> {
        let mut call = scripts::START.prepare_invoke();
        call.key(self.keys.meta()).arg(millis(self.worker.engine.settings.result_ttl));
        for delivery in deliveries {
            let key = delivery.envelope.key.as_simple().to_string();
            let record = self.record(delivery, State::Started);
            call.key(self.keys.task(&key)).arg(key).arg(record.text());
        }
        call.invoke_async::<i64>(&mut self.worker.engine.redis.commands()).await.context("marking tasks as started")?;
        Ok(())
    }

    pub(super) async fn give_back(&self, deliveries: &[Arc<Delivery>]) -> anyhow::Result<()> {
        let mut call = scripts::GIVE_BACK.prepare_invoke();
        call.key(self.stream())
            .arg(GROUP)
            .arg(&self.worker.consumer)
            .arg(millis(self.worker.engine.settings.lease) * 2);
        for delivery in deliveries {
            call.arg(&delivery.entry).arg(delivery.delivery.saturating_sub(1));
        }
        call.invoke_async::<i64>(&mut self.worker.engine.redis.commands()).await.context("giving tasks back")?;
        Ok(())
    }
}

/// What `finish.lua` takes of one delivery beside its record, as a rule nothing. Numbers as text: Lua would round them.
#[derive(Default, Serialize)]
struct Rest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    life: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envelope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    follow: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    effects: Vec<Command<'a>>,
}

#[derive(Serialize)]
struct Command<'a> {
    key: usize,
    command: &'static str,
    args: &'a [String],
}

impl Rest<'_> {
    /// Whether the task has ended well, and nothing else is to be done.
    fn is_nothing(&self) -> bool {
        // What follows comes from the outbox; the others belong to endings that are told.
        self.ends.is_none() && self.follow.is_none() && self.effects.is_empty()
    }
}

/// An entry's id by its order in the stream: its millisecond and its number in it.
fn order(id: &str) -> (u64, u64) {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or(0), seq.parse().unwrap_or(0))
}

/// Whether anything follows the task, should it end so.
fn follows(delivery: &Delivery, ending: &Ending) -> bool {
    let calls = matches!(ending, Ending::Success { calls, .. } if !calls.is_empty());
    calls || !delivery.envelope.then.is_empty() || delivery.envelope.member.is_some()
}

/// What the outbox is given: the tasks that the handler asked for, the next of the chain, the group's news.
fn follow(delivery: &Delivery, ending: &Ending, result: &Value) -> String {
    if !follows(delivery, ending) || matches!(ending, Ending::Retry { .. }) {
        return String::new();
    }
    let (envelope, well) = (&delivery.envelope, matches!(ending, Ending::Success { .. }));
    let mut all = Vec::new();
    if let Ending::Success { calls, .. } = ending
        && !calls.is_empty()
    {
        all.push(Follow::Calls(calls.clone()));
    }
    match (envelope.then.split_first(), &envelope.member) {
        (Some((next, then)), member) if well => {
            let (call, then, member) = (next.clone(), then.to_vec(), member.clone());
            all.push(Follow::Next { call, then, previous: call::raw(result), member });
        }
        _ if matches!(ending, Ending::Revoked) => all.extend(Follow::revocation(envelope)),
        // A chain that has broken ends for its group too.
        (_, Some(member)) => {
            let (member, result) = (member.clone(), call::raw(result));
            all.push(Follow::Ended { member, result, failed: !well, revoked: false });
        }
        _ => {}
    }
    Follow::text(&all)
}
