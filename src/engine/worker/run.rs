//! From entries of the stream to what their handlers say of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::super::envelope::{Envelope, VERSION};
use super::super::registry::{Delivery, Registered};
use super::super::task::{Outcome, Retry, TaskId};
use super::Lane;
use super::finish::Ending;
use super::lease::Lease;

/// What was read at once, ready to run.
pub(super) struct Batch {
    pub readable: Vec<Delivery>,
    /// With the reason.
    pub unreadable: Vec<(Delivery, String)>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.readable.len() + self.unreadable.len()
    }

    pub(super) fn into_deliveries(self) -> Vec<Delivery> {
        self.readable.into_iter().chain(self.unreadable.into_iter().map(|(delivery, _)| delivery)).collect()
    }
}

impl<C: Clone + Send + Sync + 'static> Lane<C> {
    /// Entries as deliveries, read for the `delivery`th time.
    pub(super) fn batch(&self, entries: Vec<(String, String)>, delivery: u32) -> Batch {
        let mut batch = Batch { readable: Vec::with_capacity(entries.len()), unreadable: Vec::new() };
        for (entry, text) in entries {
            let (envelope, raw, fault) = match Envelope::parse(&text) {
                Ok(envelope) => (envelope, None, None),
                Err(why) => (no_envelope(), Some(text), Some(why)),
            };
            let id = TaskId { key: envelope.key, queue: self.queue.clone() };
            let read = Delivery { entry, raw, envelope: Arc::new(envelope), id, delivery };
            match fault {
                None => batch.readable.push(read),
                Some(why) => batch.unreadable.push((read, why)),
            }
        }
        batch
    }

    /// Runs deliveries to their end: every one is acknowledged, scheduled again, or left to be taken over.
    pub(super) async fn process(&self, batch: Batch, permit: OwnedSemaphorePermit) {
        let lease = Lease::hold(self.clone(), &batch);
        if !batch.unreadable.is_empty() {
            let dead = batch.unreadable.into_iter().map(|(delivery, why)| (delivery, Ending::Dead(why))).collect();
            self.finish(UNREADABLE, dead).await;
        }
        let mut groups: HashMap<String, Vec<Delivery>> = HashMap::new();
        for delivery in batch.readable {
            match groups.get_mut(&delivery.envelope.name) {
                Some(group) => group.push(delivery),
                None => drop(groups.insert(delivery.envelope.name.clone(), vec![delivery])),
            }
        }
        for (name, group) in groups {
            self.run_group(&name, group).await;
        }
        drop(lease);
        drop(permit);
    }

    async fn run_group(&self, name: &str, group: Vec<Delivery>) {
        let Some(task) = self.worker.registry.tasks.get(name) else {
            let dead = group.into_iter().map(|d| (d, Ending::Dead(format!("no handler for task {name:?}")))).collect();
            return self.finish(name, dead).await;
        };
        let mut bad = Vec::new();
        let mut good = Vec::with_capacity(group.len());
        for delivery in group {
            match (task.parses)(delivery.envelope.args.get()) {
                Ok(()) => good.push(delivery),
                Err(why) => bad.push((delivery, Ending::Dead(format!("arguments do not fit: {why}")))),
            }
        }
        if !bad.is_empty() {
            self.finish(name, bad).await;
        }
        if good.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcomes = self.outcomes(task, &good).await;
        metrics::histogram!("onrush_task_batch_duration_seconds", "task" => name.to_owned())
            .record(started.elapsed().as_secs_f64());
        let mut outcomes = outcomes.into_iter();
        let mut endings = Vec::with_capacity(good.len());
        for delivery in good {
            let outcome =
                outcomes.next().unwrap_or_else(|| Outcome::Retry(anyhow::anyhow!("the handler gave no answer")));
            let ending = ending(&delivery, outcome, task.retry);
            endings.push((delivery, ending));
        }
        self.finish(name, endings).await;
    }

    /// What the handler says. When it panics on a batch, each of its tasks runs alone, so that the one at fault fails
    /// alone.
    async fn outcomes(&self, task: &Registered<C>, good: &[Delivery]) -> Vec<Outcome> {
        match self.run(task, good.to_vec()).await {
            Some(outcomes) => outcomes,
            None if good.len() > 1 => {
                let mut each = Vec::with_capacity(good.len());
                for delivery in good {
                    let outcome = self.run(task, vec![delivery.clone()]).await.and_then(|mut one| one.pop());
                    each.push(outcome.unwrap_or_else(panicked));
                }
                each
            }
            None => vec![panicked()],
        }
    }

    /// `None` when the handler panicked.
    async fn run(&self, task: &Registered<C>, batch: Vec<Delivery>) -> Option<Vec<Outcome>> {
        tokio::spawn((task.run)(self.worker.context.clone(), batch)).await.ok()
    }
}

/// The name under which entries that are no envelopes are counted.
const UNREADABLE: &str = "unreadable";

/// What stands for an envelope that cannot be read; the text itself goes to the dead letters.
fn no_envelope() -> Envelope {
    let (key, name, args) = (Uuid::now_v7(), UNREADABLE.to_owned(), RawValue::NULL.to_owned());
    Envelope { v: VERSION, key, name, args, attempt: 1, at: 0, owner: None }
}

fn ending(delivery: &Delivery, outcome: Outcome, retry: Retry) -> Ending {
    let attempt = delivery.envelope.attempt;
    match outcome {
        Outcome::Success(result) => Ending::Success(result, Vec::new()),
        Outcome::SuccessWith { result, effects } => Ending::Success(result, effects),
        Outcome::Failure { result, effects } => Ending::Failure(result, effects),
        Outcome::Again(pause) => Ending::Retry { pause, attempt, why: String::new() },
        Outcome::Retry(error) => {
            let why = format!("{error:#}");
            if attempt >= retry.attempts {
                return Ending::Dead(why);
            }
            let pause = retry.pause(attempt, Uuid::now_v7().as_u64_pair().1);
            tracing::warn!(task.id = %delivery.id, task.name = delivery.envelope.name, attempt, error = why, "task attempt failed");
            Ending::Retry { pause, attempt: attempt + 1, why }
        }
    }
}

fn panicked() -> Outcome {
    Outcome::Retry(anyhow::anyhow!("the handler panicked"))
}
