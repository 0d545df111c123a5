//! From entries of the stream to what their handlers say of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::super::control::Control;
use super::super::envelope::Envelope;
use super::super::outcome::Outcome;
use super::super::registry::{Delivery, Registered};
use super::super::task::{Retry, TaskId};
use super::Partition;
use super::batch::Batch;
use super::finish::Ending;
use super::lease::TaskLease;
use super::traced::Attempts;

/// An ending waits for others of its batch for at most so many turns of the runtime, and only while there are any.
const GATHER_TURNS: usize = 8;

impl<C: Clone + Send + Sync + 'static> Partition<C> {
    /// Entries as deliveries, read for the `delivery`th time.
    pub(super) fn batch(&self, entries: Vec<(String, String)>, delivery: u32) -> Batch {
        let mut batch = Batch { readable: Vec::with_capacity(entries.len()), unreadable: Vec::new() };
        let since = self.worker.engine.clock.now();
        for (entry, text) in entries {
            let (envelope, raw, fault) = match Envelope::parse(&text) {
                Ok(envelope) => (envelope, None, None),
                Err(why) => (no_envelope(), Some(text), Some(why)),
            };
            let id = TaskId { key: envelope.key, queue: self.queue.clone() };
            let limit = self.worker.registry.tasks.get(envelope.name.as_str()).and_then(|task| task.limit.soft);
            let control = Arc::new(Control::new(limit.map(|limit| since.plus(limit))));
            let read = Arc::new(Delivery { entry, raw, envelope, id, delivery, since, control });
            match fault {
                None => batch.readable.push(read),
                Some(why) => batch.unreadable.push((read, why)),
            }
        }
        batch
    }

    /// Runs deliveries to their end: every one is acknowledged, scheduled again, or left to be taken over.
    pub(super) async fn process(&self, batch: Batch, permit: OwnedSemaphorePermit) {
        let lease = TaskLease::hold(self.clone(), &batch);
        if !batch.unreadable.is_empty() {
            let dead = batch.unreadable.into_iter().map(|(delivery, why)| (delivery, Ending::Dead(why))).collect();
            self.finish(UNREADABLE, dead).await;
        }
        let keys: HashSet<Uuid> = batch.readable.iter().map(|delivery| delivery.envelope.key).collect();
        let running = batch.readable.iter().map(|delivery| (delivery.envelope.key, delivery.clone()));
        self.running.lock().unwrap_or_else(PoisonError::into_inner).extend(running);
        // What was taken over runs while the reader rests.
        self.idle.set_idle(false);
        let mut groups: HashMap<String, Vec<Arc<Delivery>>> = HashMap::new();
        for delivery in batch.readable {
            match groups.get_mut(&delivery.envelope.name) {
                Some(group) => group.push(delivery),
                None => drop(groups.insert(delivery.envelope.name.clone(), vec![delivery])),
            }
        }
        for (name, group) in groups {
            self.run_group(&name, group).await;
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| !keys.contains(key));
        drop(lease);
        drop(permit);
    }

    async fn run_group(&self, name: &str, group: Vec<Arc<Delivery>>) {
        let Some(task) = self.worker.registry.tasks.get(name) else {
            let dead = group.into_iter().map(|d| (d, Ending::Dead(format!("no handler for task {name:?}")))).collect();
            return self.finish(name, dead).await;
        };
        let mut bad = Vec::new();
        let mut good = Vec::with_capacity(group.len());
        for delivery in group {
            match (task.parses)(delivery.envelope.args.get()) {
                Ok(()) => good.push(delivery),
                // The reason may cite the arguments.
                Err(_) if task.secret => bad.push((delivery, Ending::Dead("arguments do not fit".to_owned()))),
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
        let under_way = metrics::gauge!("onrush_tasks_running", "task" => name.to_owned());
        let count = good.len() as f64;
        under_way.increment(count);
        if task.each {
            self.run_each(name, task, good).await;
        } else {
            self.run_together(name, task, good).await;
        }
        under_way.decrement(count);
        metrics::histogram!("onrush_task_batch_duration_seconds", "task" => name.to_owned())
            .record(started.elapsed().as_secs_f64());
    }

    /// Runs each by itself. Those that have ended by the time the ones before them are acknowledged go together.
    async fn run_each(&self, name: &str, task: &Registered<C>, good: Vec<Arc<Delivery>>) {
        let each = good.into_iter().map(async |delivery| {
            // The runtime would let one task hear of 128 others in a turn. A batch is bounded, and goes together.
            let run = tokio::task::unconstrained(self.run(task, vec![delivery.clone()]));
            let outcome = run.await.and_then(|mut one| one.pop());
            let ending = ending(&delivery, outcome.unwrap_or_else(panicked), task.retry);
            (delivery, ending)
        });
        let mut each = each.collect::<FuturesUnordered<_>>();
        while let Some(first) = each.next().await {
            let mut endings = vec![first];
            // Handlers that stand behind the first in the runtime's queue and are as short as it end in the next turns.
            for _ in 0..GATHER_TURNS {
                let before = endings.len();
                tokio::task::yield_now().await;
                while let Some(Some(next)) = each.next().now_or_never() {
                    endings.push(next);
                }
                if endings.len() == before {
                    break;
                }
            }
            self.finish(name, endings).await;
        }
    }

    async fn run_together(&self, name: &str, task: &Registered<C>, good: Vec<Arc<Delivery>>) {
        let mut outcomes = self.outcomes(task, &good).await.into_iter();
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
    async fn outcomes(&self, task: &Registered<C>, good: &[Arc<Delivery>]) -> Vec<Outcome> {
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
    async fn run(&self, task: &Registered<C>, batch: Vec<Arc<Delivery>>) -> Option<Vec<Outcome>> {
        let _place = match &task.places {
            Some(places) => places.acquire().await.ok(),
            None => None,
        };
        let attempts = Attempts::begin(&batch, task.secret);
        let span = attempts.handler();
        let outcomes = if task.limit.is_none() {
            tokio::spawn((task.run)(self.worker.context.clone(), batch).instrument(span)).await.ok()
        } else {
            // In a place of its own: what has no limit has no need of so large a future.
            Box::pin(self.run_within_limit(task, batch, span)).await
        };
        attempts.end(outcomes.as_deref());
        outcomes
    }

    async fn run_within_limit(
        &self,
        task: &Registered<C>,
        batch: Vec<Arc<Delivery>>,
        span: Span,
    ) -> Option<Vec<Outcome>> {
        let controls: Vec<_> = batch.iter().map(|delivery| delivery.control.clone()).collect();
        let late = batch.len();
        let mut handler = tokio::spawn((task.run)(self.worker.context.clone(), batch).instrument(span));
        let stop = async {
            pause(task.limit.soft).await;
            controls.iter().for_each(|control| control.stop().cancel());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcomes = &mut handler => outcomes.ok(),
            () = stop => None,
            () = pause(task.limit.hard) => {
                handler.abort();
                let why = || Outcome::Retry(anyhow::anyhow!("ran longer than its limit"));
                Some((0..late).map(|_| why()).collect())
            }
        }
    }
}

/// Sleeps; for ever without a length.
async fn pause(length: Option<Duration>) {
    match length {
        Some(length) => tokio::time::sleep(length).await,
        None => std::future::pending().await,
    }
}

/// The name under which entries that are no envelopes are counted.
const UNREADABLE: &str = "unreadable";

/// What stands for an envelope that cannot be read; the text itself goes to the dead letters.
fn no_envelope() -> Envelope {
    Envelope::new(Uuid::now_v7(), UNREADABLE, RawValue::NULL.to_owned(), 0)
}

fn ending(delivery: &Delivery, outcome: Outcome, retry: Retry) -> Ending {
    let attempt = delivery.envelope.attempt;
    match outcome {
        Outcome::Success(result) => Ending::Success { result, effects: Vec::new(), calls: Vec::new() },
        Outcome::SuccessWith { result, effects } => Ending::Success { result, effects, calls: Vec::new() },
        Outcome::SuccessThen { result, calls } => Ending::Success { result, effects: Vec::new(), calls },
        Outcome::Failure { result, effects } => Ending::Failure(result, effects),
        // Its handler has heard, and stopped.
        Outcome::Again(_) | Outcome::Retry(_) if delivery.control.is_revoked() => Ending::Revoked,
        Outcome::Again(pause) => Ending::Retry { pause, attempt, why: String::new() },
        Outcome::Fatal(error) => Ending::Dead(format!("{error:#}")),
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
