//! Questions that arrive while the same one is being asked wait for its answer and are then asked together: one call
//! answers all of them, each by itself. Nobody waits for company: a question that comes alone goes alone, at once.
//!
//! A call to Redis costs it and this process several times what one more question in the call does; in a rush this is
//! what decides how many people a second are answered.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Questions that one call takes, so that none holds up Redis for long: about half a millisecond.
const MAX_COALESCED: usize = 128;

/// Questions of type `Q` about things of type `K`, with answers of type `A`. What waits is bounded by who asks: the
/// question of one who has left is not asked.
pub struct Coalescer<K, Q, A, E> {
    waiting: Mutex<Queues<K, Q, A, E>>,
}

/// Who waits, by what they ask about.
type Queues<K, Q, A, E> = HashMap<K, Vec<Waiting<Q, A, E>>>;

struct Waiting<Q, A, E> {
    question: Q,
    answer: oneshot::Sender<Result<A, E>>,
}

impl<K, Q, A, E> Default for Coalescer<K, Q, A, E> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

/// The call was given up: it panicked, or the process stops.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the question was not asked")]
pub struct NotAsked;

impl<K, Q, A, E> Coalescer<K, Q, A, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
    E: Clone + Send + 'static,
{
    /// Asks `question` about `about`. `call` answers several at once, in their order; one call about a thing is under
    /// way at a time. It runs in a task of its own: who asked first may leave, the others still want their answers.
    pub async fn ask<F, Fut>(self: &Arc<Self>, about: &K, question: Q, call: F) -> Result<Result<A, E>, NotAsked>
    where
        F: Fn(Vec<Q>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Vec<A>, E>> + Send + 'static,
    {
        let (answer, heard) = oneshot::channel();
        let mine = Waiting { question, answer };
        let first = {
            let mut waiting = self.lock();
            match waiting.get_mut(about) {
                Some(queue) => {
                    queue.push(mine);
                    None
                }
                None => {
                    // An empty queue: a call is under way.
                    waiting.insert(about.clone(), Vec::new());
                    Some(mine)
                }
            }
        };
        if let Some(first) = first {
            let queue = Queue { coalescer: self.clone(), about: about.clone(), open: true };
            tokio::spawn(queue.serve(first, call));
        }
        heard.await.map_err(|_| NotAsked)
    }

    fn lock(&self) -> MutexGuard<'_, Queues<K, Q, A, E>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue about one thing while a call is under way.
struct Queue<K, Q, A, E>
where
    K: Eq + Hash,
{
    coalescer: Arc<Coalescer<K, Q, A, E>>,
    about: K,
    open: bool,
}

impl<K, Q, A, E> Queue<K, Q, A, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
    E: Clone + Send + 'static,
{
    /// Calls until nobody waits any more.
    async fn serve<F, Fut>(mut self, first: Waiting<Q, A, E>, call: F)
    where
        F: Fn(Vec<Q>) -> Fut,
        Fut: Future<Output = Result<Vec<A>, E>>,
    {
        let mut batch = vec![first];
        while !batch.is_empty() {
            let (questions, asking): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.question, w.answer)).unzip();
            match call(questions).await {
                // Who has left meanwhile is not told; an answer too few is as good as none.
                Ok(answers) => {
                    asking.into_iter().zip(answers).for_each(|(asking, answer)| drop(asking.send(Ok(answer))))
                }
                Err(error) => {
                    // What failed for these fails for those behind them: nobody waits for one time-out after another.
                    let behind = self.take(usize::MAX).into_iter().map(|waiting| waiting.answer);
                    asking.into_iter().chain(behind).for_each(|asking| drop(asking.send(Err(error.clone()))));
                }
            }
            batch = self.take(MAX_COALESCED);
        }
    }

    /// Who waits, at most so many, without those who have left. When nobody does the queue is closed: the next question
    /// opens another.
    fn take(&mut self, most: usize) -> Vec<Waiting<Q, A, E>> {
        let mut waiting = self.coalescer.lock();
        let Some(queue) = waiting.get_mut(&self.about).filter(|_| self.open) else { return Vec::new() };
        queue.retain(|waiting| !waiting.answer.is_closed());
        if queue.is_empty() {
            waiting.remove(&self.about);
            self.open = false;
            return Vec::new();
        }
        let n = queue.len().min(most);
        queue.drain(..n).collect()
    }
}

impl<K, Q, A, E> Drop for Queue<K, Q, A, E>
where
    K: Eq + Hash,
{
    /// After a panic: those who wait hear that they were not asked for, and the next question begins anew.
    fn drop(&mut self) {
        if self.open {
            self.coalescer.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.about);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    type Doubled = Coalescer<u8, usize, usize, String>;

    #[tokio::test]
    async fn what_comes_meanwhile_is_asked_together_and_each_hears_its_own_answer() {
        let (coalescer, calls, gate) =
            (Arc::new(Doubled::default()), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let ask = |n: usize| {
            let (coalescer, calls, gate) = (coalescer.clone(), calls.clone(), gate.clone());
            tokio::spawn(async move {
                let call = move |questions: Vec<usize>| {
                    let (calls, gate) = (calls.clone(), gate.clone());
                    async move {
                        calls.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        Ok(questions.into_iter().map(|n| 2 * n).collect())
                    }
                };
                coalescer.ask(&7, n, call).await
            })
        };
        let asked: Vec<_> = (0..101).map(ask).collect();
        while coalescer.lock().get(&7).is_none_or(|queue| queue.len() < 100) {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        for (n, answer) in asked.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap().unwrap(), Ok(2 * n));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        while !coalescer.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_fails_fails_for_those_behind_it_too_and_who_left_is_not_asked_for() {
        let (coalescer, gate) = (Arc::new(Doubled::default()), Arc::new(Semaphore::new(0)));
        let ask = |n: usize| {
            let (coalescer, gate) = (coalescer.clone(), gate.clone());
            let call = move |_: Vec<usize>| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    Err("no".to_owned())
                }
            };
            tokio::spawn(async move { coalescer.ask(&7, n, call).await })
        };
        let asked: Vec<_> = (0..1000).map(ask).collect();
        while coalescer.lock().get(&7).is_none_or(|queue| queue.len() < 999) {
            tokio::task::yield_now().await;
        }
        // One call for a thousand: nobody waits for one failure after another.
        gate.add_permits(1);
        for answer in asked {
            assert_eq!(answer.await.unwrap().unwrap(), Err("no".to_owned()));
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_and_a_panic_leaves_nobody_waiting() {
        let coalescer = Arc::new(Doubled::default());
        let failing = |_: Vec<usize>| async { Err("no".to_owned()) };
        assert_eq!(coalescer.ask(&1, 1, failing).await.unwrap(), Err("no".to_owned()));
        let panicking = |questions: Vec<usize>| async move {
            assert!(questions.is_empty(), "on purpose");
            Ok(questions)
        };
        assert!(coalescer.ask(&1, 1, panicking).await.is_err());
        let well = |questions: Vec<usize>| async move { Ok(questions) };
        while !coalescer.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(coalescer.ask(&1, 5, well).await.unwrap(), Ok(5));
    }
}
