//! Idle queues: what a partition shares with the loops that watch for all idle partitions of the process.
//!
//! A partition is idle when its reader has found nothing for a while and nothing runs in it. Then it costs nothing by itself:
//!
//! * It gives its connection back and *rests*. One connection of the process watches the streams of all partitions that rest, of a
//!   hundred or so ([`watch`](super::watch)), and wakes those to which something comes. A watch takes nothing from a stream, so a
//!   process that dies in it loses nothing, and a partition that is woken for nothing rests again. On a cluster, where a command
//!   has keys of one slot, each reader goes on with its own connection.
//! * Of all processes one keeps its queue going ([`keeping`](super::keeping)); the others are told of what concerns
//!   themselves, such as that the queue was paused, by a look at all idle partitions together.
//!
//! Nothing here is needed for correctness: when a watch or a look fails or gives no sign, partitions do as if they were alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use super::super::keys::{Keys, QueueName};

/// A reader that found nothing for so long lets its partition be idle.
pub(super) const AWAKE_FOR: Duration = Duration::from_secs(5);
/// Readers of a process that have a connection of their own at once, of those that there are for blocking reads. When more
/// are busy the others wait in the watch, or look twice a second where there is none.
const OWN_CONNECTIONS: usize = 200;
/// Partitions of one watch: each task that comes to one of them has the watch ask for all of them anew.
const PARTITIONS_OF_A_WATCH: usize = 100;
/// Watches of a process, at most: beyond them each has more partitions.
pub(super) const MAX_WATCHES: usize = 32;
/// A watch, or a look, that gave no sign for so long is not relied on.
const SIGN: Duration = Duration::from_secs(7);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of one partition.
pub(super) struct Idle {
    pub(super) queue: QueueName,
    pub(super) keys: Keys,
    /// Which watch reads for it when it rests.
    watch: AtomicUsize,
    /// Wakes the keeper.
    pub(super) bell: Notify,
    /// Wakes the reader.
    woken: Notify,
    /// Nothing is set of the queue, and it has one stream.
    may_rest: AtomicBool,
    is_idle: AtomicBool,
    /// The watch reads for it.
    rests: AtomicBool,
    /// The keeper found nothing to follow.
    is_quiet: AtomicBool,
    /// A look found something to follow.
    is_stirred: AtomicBool,
    /// How often it was woken.
    wakes: AtomicU64,
    /// That number, and one, when nothing was with any worker; 0 when that is not known.
    nothing_pending: AtomicU64,
    /// What comes to the stream after this entry is news.
    after: Mutex<String>,
    /// Until when another process keeps it.
    kept_elsewhere: Mutex<Option<Instant>>,
}

impl Idle {
    pub(super) fn new(queue: QueueName, keys: Keys) -> Self {
        Self {
            queue,
            keys,
            watch: AtomicUsize::new(0),
            bell: Notify::new(),
            woken: Notify::new(),
            may_rest: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            is_quiet: AtomicBool::new(false),
            is_stirred: AtomicBool::new(false),
            wakes: AtomicU64::new(0),
            nothing_pending: AtomicU64::new(0),
            after: Mutex::default(),
            kept_elsewhere: Mutex::default(),
        }
    }

    pub(super) fn watch(&self) -> usize {
        self.watch.load(Ordering::SeqCst)
    }

    /// What the keeper saw: whether nothing is set of the queue, and whether there is nothing to follow.
    pub(super) fn saw(&self, may_rest: bool, is_quiet: bool) {
        self.is_quiet.store(is_quiet, Ordering::SeqCst);
        if self.may_rest.swap(may_rest, Ordering::SeqCst) && !may_rest {
            // It is idle no more.
            self.wake();
        }
    }

    /// What the reader says before each read: whether nothing came, and nothing runs. Whether the partition is idle.
    pub(super) fn set_idle(&self, nothing_is_there: bool) -> bool {
        let is_idle = nothing_is_there && self.may_rest.load(Ordering::SeqCst);
        if self.is_idle.swap(is_idle, Ordering::SeqCst) && !is_idle {
            *lock(&self.kept_elsewhere) = None;
            self.bell.notify_one();
        }
        is_idle
    }

    pub(super) fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::SeqCst)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::SeqCst)
    }

    /// A look found something: the keeper follows it.
    pub(super) fn stir(&self) {
        self.is_stirred.store(true, Ordering::SeqCst);
        self.bell.notify_one();
    }

    pub(super) fn take_stirred(&self) -> bool {
        self.is_stirred.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is_stirred(&self) -> bool {
        self.is_stirred.load(Ordering::SeqCst)
    }

    /// Something may have come: the reader looks for itself.
    pub(super) fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.rests.store(false, Ordering::SeqCst);
        self.woken.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    pub(super) fn rests(&self) -> bool {
        self.rests.load(Ordering::SeqCst)
    }

    /// What is asked before a look at what workers have, to note that they have nothing; none unless it rests.
    pub(super) fn before_look(&self) -> Option<u64> {
        let wakes = self.wakes.load(Ordering::SeqCst);
        self.rests().then_some(wakes)
    }

    /// No worker had anything: that stays so until something comes to the stream, which wakes the partition.
    pub(super) fn note_nothing_pending(&self, wakes: u64) {
        self.nothing_pending.store(wakes + 1, Ordering::SeqCst);
    }

    pub(super) fn has_nothing_pending(&self) -> bool {
        self.rests() && self.nothing_pending.load(Ordering::SeqCst) == self.wakes.load(Ordering::SeqCst) + 1
    }

    /// Whether another process keeps the queue.
    pub(super) fn is_kept_elsewhere(&self) -> bool {
        self.is_idle() && lock(&self.kept_elsewhere).is_some_and(|until| Instant::now() < until)
    }

    /// Who keeps the queue: another process, until then, or this one.
    pub(super) fn keep_elsewhere(&self, until: Option<Instant>) {
        let before = std::mem::replace(&mut *lock(&self.kept_elsewhere), until);
        if before.is_some() && until.is_none() {
            self.bell.notify_one();
        }
    }
}

/// The partitions of a process.
pub(super) struct OpenPartitions {
    /// Connections that readers may have of their own.
    pub(super) own: Arc<Semaphore>,
    all: Mutex<HashMap<QueueName, Weak<Idle>>>,
    watches: [Watch; MAX_WATCHES],
    looked: Mutex<Option<Instant>>,
}

/// What the partitions of one watch share with it.
#[derive(Default)]
struct Watch {
    is_started: AtomicBool,
    round: Mutex<Round>,
    /// Tells it that a partition rests.
    came: Notify,
    seen: Mutex<Option<Instant>>,
}

/// A read of the watch.
#[derive(Default)]
struct Round {
    /// It is under way.
    reads: bool,
    /// Somebody has told it to end.
    is_told: bool,
}

impl Default for OpenPartitions {
    fn default() -> Self {
        Self {
            own: Arc::new(Semaphore::new(OWN_CONNECTIONS)),
            all: Mutex::default(),
            watches: std::array::from_fn(|_| Watch::default()),
            looked: Mutex::default(),
        }
    }
}

impl OpenPartitions {
    /// Gives a partition to the watch that has the fewest, of as many as are needed; that watch, when it is to be started.
    pub(super) fn open(&self, partition: &Arc<Idle>) -> Option<usize> {
        let mut all = lock(&self.all);
        all.insert(partition.queue.clone(), Weak::new());
        all.retain(|queue, partition_of| *queue == partition.queue || partition_of.strong_count() > 0);
        let mut loads = vec![0; all.len().div_ceil(PARTITIONS_OF_A_WATCH).clamp(1, MAX_WATCHES)];
        for other in all.values().filter_map(Weak::upgrade) {
            if let Some(load) = loads.get_mut(other.watch()) {
                *load += 1;
            }
        }
        let least = loads.iter().enumerate().min_by_key(|(_, load)| **load).map_or(0, |(watch, _)| watch);
        partition.watch.store(least, Ordering::SeqCst);
        all.insert(partition.queue.clone(), Arc::downgrade(partition));
        (!self.watch(least).is_started.swap(true, Ordering::SeqCst)).then_some(least)
    }

    fn watch(&self, number: usize) -> &Watch {
        &self.watches[number % MAX_WATCHES]
    }

    /// Those that are open and for which this holds.
    pub(super) fn that(&self, holds: impl Fn(&Idle) -> bool) -> Vec<Arc<Idle>> {
        let mut all = lock(&self.all);
        all.retain(|_, partition| partition.strong_count() > 0);
        all.values().filter_map(Weak::upgrade).filter(|partition| holds(partition)).collect()
    }

    /// Has its watch read for a partition from `after` on; whether it has to be told.
    pub(super) fn rest(&self, partition: &Idle, after: String) -> bool {
        let watch = self.watch(partition.watch());
        let mut round = lock(&watch.round);
        *lock(&partition.after) = after;
        partition.rests.store(true, Ordering::SeqCst);
        watch.came.notify_one();
        round.reads && !std::mem::replace(&mut round.is_told, true)
    }

    /// The partitions for which this watch reads now, each with the entry after which it does.
    pub(super) fn begin_round(&self, watch: usize) -> Vec<(Arc<Idle>, String)> {
        let (number, watch) = (watch, self.watch(watch));
        let mut round = lock(&watch.round);
        *lock(&watch.seen) = Some(Instant::now());
        let resting = self.that(|partition| partition.watch() == number && partition.rests());
        *round = Round { reads: !resting.is_empty(), is_told: false };
        resting.into_iter().map(|partition| (partition.clone(), lock(&partition.after).clone())).collect()
    }

    pub(super) fn end_round(&self, watch: usize) {
        lock(&self.watch(watch).round).reads = false;
    }

    /// Ends when a partition of this watch has come to rest.
    pub(super) async fn came(&self, watch: usize) {
        self.watch(watch).came.notified().await;
    }

    /// Whether its watch is one to rely on.
    pub(super) fn is_watched(&self, partition: &Idle) -> bool {
        lock(&self.watch(partition.watch()).seen).is_some_and(|at| at.elapsed() < SIGN)
    }

    pub(super) fn note_look(&self) {
        *lock(&self.looked) = Some(Instant::now());
    }

    /// Whether idle partitions are looked at together.
    pub(super) fn are_looked_at(&self) -> bool {
        lock(&self.looked).is_some_and(|at| at.elapsed() < SIGN)
    }

    /// Every partition of this watch looks for itself.
    pub(super) fn wake_all(&self, watch: usize) {
        *lock(&self.watch(watch).seen) = None;
        self.end_round(watch);
        self.that(|partition| partition.watch() == watch && partition.rests())
            .iter()
            .for_each(|partition| partition.wake());
    }

    /// Every partition keeps its queue itself.
    pub(super) fn keep_all(&self) {
        *lock(&self.looked) = None;
        for partition in self.that(Idle::is_idle) {
            partition.keep_elsewhere(None);
            partition.bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(partitions: &OpenPartitions, name: &str) -> Arc<Idle> {
        let queue: QueueName = name.parse().unwrap();
        let keys = Keys::new("p", &queue);
        let partition = Arc::new(Idle::new(queue, keys));
        partitions.open(&partition);
        partition.saw(true, true);
        partition
    }

    #[test]
    fn a_partition_that_comes_to_rest_during_a_read_ends_it_once() {
        let partitions = OpenPartitions::default();
        let (a, b, c) = (partition(&partitions, "a"), partition(&partitions, "b"), partition(&partitions, "c"));
        assert!(!partitions.rest(&a, "1-0".to_owned()), "nothing reads yet");
        assert_eq!(partitions.begin_round(0).len(), 1);
        assert!(partitions.rest(&b, "2-0".to_owned()));
        assert!(!partitions.rest(&c, "3-0".to_owned()), "it was told");
        partitions.end_round(0);
        let asked = partitions.begin_round(0);
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().any(|(partition, after)| partition.queue == b.queue && after == "2-0"));
        a.wake();
        drop((asked, c));
        assert_eq!(partitions.begin_round(0).len(), 1, "one is awake, one is gone");
    }

    #[test]
    fn many_partitions_are_shared_out_to_watches_and_few_have_one() {
        let partitions = OpenPartitions::default();
        let open = |n: usize| {
            let queue: QueueName = format!("q{n}").parse().unwrap();
            let partition = Arc::new(Idle::new(queue.clone(), Keys::new("p", &queue)));
            (partitions.open(&partition), partition)
        };
        let all: Vec<_> = (0..PARTITIONS_OF_A_WATCH).map(open).collect();
        assert!(all.iter().all(|(_, partition)| partition.watch() == 0));
        assert!(all[0].0 == Some(0) && all[1..].iter().all(|(started, _)| started.is_none()), "started once");
        let (started, next) = open(PARTITIONS_OF_A_WATCH);
        assert_eq!((started, next.watch()), (Some(1), 1));
        let more: Vec<_> = (PARTITIONS_OF_A_WATCH + 1..PARTITIONS_OF_A_WATCH * 40).map(open).collect();
        let of = |watch| more.iter().filter(|(_, partition)| partition.watch() == watch).count();
        assert!((1..MAX_WATCHES).all(|watch| of(watch) >= PARTITIONS_OF_A_WATCH - 1), "there are no more than so many");
        // An arrival ends a read of its own watch alone.
        assert_eq!([partitions.begin_round(0).len(), partitions.begin_round(1).len()], [0, 0]);
        partitions.rest(&next, "1-0".to_owned());
        assert_eq!([partitions.begin_round(0).len(), partitions.begin_round(1).len()], [0, 1]);
        assert!(!partitions.rest(&all[0].1, "1-0".to_owned()), "the first watch reads nothing");
        partitions.wake_all(0);
        assert!(next.rests() && !partitions.is_watched(&all[0].1) && partitions.is_watched(&next));
    }

    #[test]
    fn that_no_worker_has_anything_holds_until_the_partition_is_woken() {
        let partitions = OpenPartitions::default();
        let partition = partition(&partitions, "a");
        assert_eq!(partition.before_look(), None, "who is awake is told of nothing");
        partitions.rest(&partition, "1-0".to_owned());
        let before = partition.before_look().unwrap();
        // What comes during the look wakes the partition.
        partition.wake();
        partitions.rest(&partition, "2-0".to_owned());
        partition.note_nothing_pending(before);
        assert!(!partition.has_nothing_pending());
        partition.note_nothing_pending(partition.before_look().unwrap());
        assert!(partition.has_nothing_pending());
        partition.wake();
        assert!(!partition.has_nothing_pending());
    }

    #[test]
    fn a_queue_is_kept_here_unless_another_process_said_lately_that_it_does() {
        let partitions = OpenPartitions::default();
        let partition = partition(&partitions, "a");
        let soon = Some(Instant::now() + Duration::from_secs(60));
        partition.keep_elsewhere(soon);
        assert!(!partition.is_kept_elsewhere(), "it is not idle");
        assert!(partition.set_idle(true) && partition.is_kept_elsewhere());
        partition.keep_elsewhere(Some(Instant::now()));
        assert!(!partition.is_kept_elsewhere(), "that is over");
        partition.keep_elsewhere(soon);
        partitions.keep_all();
        assert!(!partition.is_kept_elsewhere());
        partition.keep_elsewhere(soon);
        assert!(!partition.set_idle(false) && !partition.is_kept_elsewhere(), "something came");
        partition.saw(false, false);
        assert!(!partition.set_idle(true), "something is set of the queue");
    }
}
