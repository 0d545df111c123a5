//! Which tasks a process can run, on which queues, and how many at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::control::Control;
use super::envelope::Envelope;
use super::keys::QueueName;
use super::outcome::Outcome;
use super::task::{Job, Retry, Task, TaskId, TimeLimit};
use onrush_platform::clock::At;

/// A queue as this process consumes it.
#[derive(Debug, Clone, Copy)]
pub struct QueueSpec {
    /// The queue's name, without a partition.
    pub name: &'static str,
    /// Tasks read at once, and given to a batch handler together.
    pub batch: usize,
    /// Reads under way at once, per partition.
    pub concurrency: usize,
}

/// Names the partitions of a queue that are worth consuming now.
pub type Partitions<C> = Arc<dyn Fn(C) -> BoxFuture<'static, anyhow::Result<Vec<QueueName>>> + Send + Sync>;

/// A delivery before its arguments are read.
#[derive(Debug)]
pub(super) struct Delivery {
    /// The stream's id of it.
    pub entry: String,
    /// Its text, where that is no envelope.
    pub raw: Option<String>,
    pub envelope: Envelope,
    pub id: TaskId,
    /// How often it was delivered in this attempt, from 1.
    pub delivery: u32,
    /// When it was read.
    pub since: At,
    pub control: Arc<Control>,
}

type Handler<C> = Arc<dyn Fn(C, Vec<Arc<Delivery>>) -> BoxFuture<'static, Vec<Outcome>> + Send + Sync>;

/// One kind of task with its handler.
pub(super) struct Registered<C> {
    /// Whether its handler takes one: those that were read together run, end and fail apart.
    pub each: bool,
    pub queue: &'static str,
    pub retry: Retry,
    pub limit: TimeLimit,
    pub keep_result: Option<Duration>,
    pub places: Option<Arc<Semaphore>>,
    pub secret: bool,
    pub parses: fn(&str) -> Result<(), String>,
    pub run: Handler<C>,
}

/// The tasks and queues of a process. `C` is what handlers are given beside their tasks.
pub struct Registry<C> {
    pub(super) tasks: HashMap<&'static str, Registered<C>>,
    pub(super) queues: Vec<(QueueSpec, Option<Partitions<C>>)>,
}

impl<C> Default for Registry<C> {
    fn default() -> Self {
        Self { tasks: HashMap::new(), queues: Vec::new() }
    }
}

impl<C: Clone + Send + Sync + 'static> Registry<C> {
    /// Adds a queue.
    pub fn queue(mut self, spec: QueueSpec) -> Self {
        self.queues.push((spec, None));
        self
    }

    /// Adds a partitioned queue.
    pub fn partitioned_queue<F>(mut self, spec: QueueSpec, partitions: F) -> Self
    where
        F: Fn(C) -> BoxFuture<'static, anyhow::Result<Vec<QueueName>>> + Send + Sync + 'static,
    {
        self.queues.push((spec, Some(Arc::new(partitions))));
        self
    }

    /// Adds a task whose handler takes many at once and answers each, in order. An answer that is missing is taken
    /// for a failed attempt.
    pub fn batch<T, F, Fut>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(C, Vec<Job<T>>) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Vec<Outcome>> + Send + 'static,
    {
        let run: Handler<C> = Arc::new(move |context, deliveries| {
            let jobs: Result<Vec<Job<T>>, serde_json::Error> = deliveries
                .into_iter()
                .map(|d| {
                    let args = serde_json::from_str(d.envelope.args.get())?;
                    let previous =
                        d.envelope.previous.as_ref().map(|json| serde_json::from_str(json.get())).transpose()?;
                    let (attempt, delivery) = (d.envelope.attempt, d.delivery);
                    Ok(Job { id: d.id.clone(), attempt, delivery, args, previous, control: d.control.clone() })
                })
                .collect();
            match jobs {
                Ok(jobs) => handler(context, jobs).boxed(),
                // The worker has checked each with `parses`; no answer makes them failed attempts.
                Err(_) => std::future::ready(Vec::new()).boxed(),
            }
        });
        let parses = |args: &str| serde_json::from_str::<T>(args).map(|_| ()).map_err(|e| e.to_string());
        self.tasks.insert(
            T::NAME,
            Registered {
                each: false,
                queue: T::QUEUE,
                retry: T::RETRY,
                limit: T::LIMIT,
                keep_result: T::KEEP_RESULT,
                places: T::CONCURRENCY.map(|places| Arc::new(Semaphore::new(places))),
                secret: T::SECRET,
                parses,
                run,
            },
        );
        self
    }

    /// Adds a task whose handler takes one.
    pub fn single<T, F, Fut>(self, handler: F) -> Self
    where
        T: Task,
        F: Fn(C, Job<T>) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let mut registry = self.batch(move |context: C, jobs: Vec<Job<T>>| {
            let handler = handler.clone();
            async move {
                let mut outcomes = Vec::with_capacity(jobs.len());
                // As a rule one: see `each`.
                for job in jobs {
                    outcomes.push(handler(context.clone(), job).await);
                }
                outcomes
            }
        });
        if let Some(task) = registry.tasks.get_mut(T::NAME) {
            task.each = true;
        }
        registry
    }

    /// Every queue by its name, with the partitions it has now.
    pub async fn partitions(&self, context: &C) -> anyhow::Result<Vec<(&'static str, Vec<QueueName>)>> {
        let mut all = Vec::with_capacity(self.queues.len());
        for (spec, partitions) in &self.queues {
            let queues = match partitions {
                None => vec![spec.name.parse().with_context(|| format!("queue {}", spec.name))?],
                Some(partitions) => partitions(context.clone()).await?,
            };
            all.push((spec.name, queues));
        }
        Ok(all)
    }

    /// Every queue, and whether it is partitioned, in the order of the list.
    pub fn queues(&self) -> impl Iterator<Item = (QueueSpec, bool)> + '_ {
        self.queues.iter().map(|(spec, partitions)| (*spec, partitions.is_some()))
    }

    /// Whether there could be such a queue here; of a partition, whether its queue has any.
    pub fn knows(&self, queue: &QueueName) -> bool {
        let partitioned = queue.partition_name().is_some();
        self.queues().any(|(spec, partitions)| spec.name == queue.base() && partitions == partitioned)
    }

    /// The queue that tasks of this name go to, where there is such a task.
    pub fn queue_of(&self, name: &str) -> Option<&'static str> {
        self.tasks.get(name).map(|task| task.queue)
    }

    /// Whether arguments of tasks of this name may not be shown; nor those of tasks that nobody here knows.
    pub fn is_secret(&self, name: &str) -> bool {
        self.tasks.get(name).is_none_or(|task| task.secret)
    }

    /// The names of all tasks, for a test that each one's queue is consumed.
    pub fn task_names(&self) -> Vec<&'static str> {
        self.tasks.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Open {}
    impl Task for Open {
        const NAME: &'static str = "test.open";
        const QUEUE: &'static str = "test";
    }

    #[derive(Serialize, Deserialize)]
    struct Hidden {}
    impl Task for Hidden {
        const NAME: &'static str = "test.hidden";
        const QUEUE: &'static str = "test";
        const SECRET: bool = true;
    }

    #[test]
    fn arguments_are_shown_only_of_tasks_that_are_known_and_not_secret() {
        let registry = Registry::<()>::default()
            .single(|(), _: Job<Open>| async { Outcome::done() })
            .single(|(), _: Job<Hidden>| async { Outcome::done() });
        let secret = ["test.open", "test.hidden", "test.unheard_of", ""].map(|name| registry.is_secret(name));
        assert_eq!(secret, [false, true, true, true]);
    }
}
