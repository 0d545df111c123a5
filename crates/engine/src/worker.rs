//! The side of the engine that runs tasks: reads, runs, acknowledges.
//!
//! Per partition there are two loops. The **reader** takes a permit, reads a batch of one priority ([`priority_order`]) and hands it
//! to a task of its own ([`run`], then [`finish`]); the permits bound what is under way. The [`keeper`] moves due tasks to
//! the stream, takes over deliveries whose worker gave no sign for a lease ([`recover`]), clears what is nowhere any more
//! ([`lost`]), and removes consumers that are long gone. Partitions of queues in which nothing happens share both ([`idle`]).
//!
//! A handler is never cancelled (it may be inside a database transaction). A stop ends the reading, waits for what
//! runs, and gives back what was read and not begun.

mod batch;
mod fault;
mod finish;
mod forward;
mod heartbeat;
mod idle;
mod keeper;
mod keeping;
mod lease;
mod lost;
mod missing;
mod priority_order;
mod read;
mod recover;
mod run;
mod throttle;
mod traced;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::missing::Missing;

use self::fault::FaultNotices;
use self::heartbeat::WorkerSeat;
use self::idle::{Idle, OpenPartitions};
use self::throttle::Throttle;
use super::client::Engine;
use super::keys::{Keys, QueueName};
use super::priority::{Levels, Priority};
use super::registry::{Delivery, QueueSpec, Registry};
use onrush_platform::clock::At;
use onrush_platform::loops::{Loops, Pulse};

/// A read waits this long for work; also how long a stop may wait for a reader.
const BLOCK: Duration = Duration::from_millis(500);
/// And its answer this long to come.
const READ_GRACE: Duration = Duration::from_secs(3);
/// Which partitions exist is asked this often.
const PARTITIONS_PERIOD: Duration = Duration::from_millis(500);
/// A loop without a step for this long makes the process not ready.
const STALL_AFTER: Duration = Duration::from_secs(15);

/// Consumes the queues of a [`Registry`].
pub struct Worker<C> {
    engine: Engine,
    registry: Registry<C>,
    context: C,
    consumer: String,
    host: String,
    started_at: At,
    stopping: CancellationToken,
    /// The queues and partitions that it consumes.
    seats: Mutex<BTreeMap<QueueName, WorkerSeat>>,
    partitions: OpenPartitions,
}

/// What runs here now of a partition, by the tasks' keys.
type Running = Arc<Mutex<HashMap<Uuid, Arc<Delivery>>>>;

/// What the loops of one partition share. A queue without partitions counts as one here; [`Partition::at`] is a view of it at
/// one priority.
struct Partition<C> {
    worker: Arc<Worker<C>>,
    spec: QueueSpec,
    queue: QueueName,
    keys: Keys,
    /// Of the deliveries that it is about.
    level: Priority,
    /// The priorities for which the queue has a stream, as the keeper saw last ([`Levels::bits`]).
    levels: Arc<AtomicU16>,
    throttle: Arc<Throttle>,
    running: Running,
    /// Whether tasks have moved since the counters were last noted.
    moved: Arc<AtomicBool>,
    idle: Arc<Idle>,
    told: Arc<FaultNotices>,
    stop: CancellationToken,
}

impl<C> Clone for Partition<C> {
    fn clone(&self) -> Self {
        Self {
            worker: self.worker.clone(),
            spec: self.spec,
            queue: self.queue.clone(),
            keys: self.keys.clone(),
            level: self.level,
            levels: self.levels.clone(),
            throttle: self.throttle.clone(),
            running: self.running.clone(),
            moved: self.moved.clone(),
            idle: self.idle.clone(),
            told: self.told.clone(),
            stop: self.stop.clone(),
        }
    }
}

impl<C> Partition<C> {
    /// The same for deliveries of this priority.
    fn at(&self, level: Priority) -> Self {
        Self { level, ..self.clone() }
    }

    /// One for each priority, the most urgent first.
    fn each_level(&self) -> impl Iterator<Item = Self> {
        self.levels().iter().map(|level| self.at(level))
    }

    fn levels(&self) -> Levels {
        Levels::from_bits(self.levels.load(Ordering::SeqCst))
    }

    /// The stream that its deliveries are in.
    fn stream(&self) -> String {
        self.keys.stream_of(self.level)
    }
}

impl<C: Clone + Send + Sync + 'static> Worker<C> {
    /// Starts every loop of a worker. Its consumer name is new at every start: a name shared by two processes would
    /// make one take the other's deliveries for its own.
    pub fn start(engine: Engine, registry: Registry<C>, context: C, loops: &Loops) {
        let host = heartbeat::host();
        // The random end of an id: every record names its worker.
        let boot = Uuid::now_v7().as_simple().to_string();
        let consumer = format!("{host}-{}-{}", std::process::id(), &boot[20..]);
        let (started_at, stopping) = (engine.clock.now(), loops.stop_signal());
        let (seats, partitions) = (Mutex::default(), OpenPartitions::default());
        let worker =
            Arc::new(Self { engine, registry, context, consumer, host, started_at, stopping, seats, partitions });
        heartbeat::start(&worker, loops);
        keeping::start(&worker, loops);
        worker.prepare_counters();
        for (spec, partitions) in &worker.registry.queues {
            match partitions {
                None => {
                    if let Ok(queue) = spec.name.parse() {
                        worker.clone().open(*spec, queue, worker.stopping.clone(), loops);
                    } else {
                        tracing::error!(queue = spec.name, "queue has a bad name and is not consumed");
                    }
                }
                Some(partitions) => {
                    let (worker, spec, partitions, all) = (worker.clone(), *spec, partitions.clone(), loops.clone());
                    loops.spawn(format!("partitions:{}", spec.name), STALL_AFTER, move |pulse| {
                        follow_partitions(worker.clone(), spec, partitions.clone(), all.clone(), pulse)
                    });
                }
            }
        }
    }

    /// Makes the counters that alerts look at, so that their first event is an increase and not a beginning.
    fn prepare_counters(&self) {
        for (spec, _) in &self.registry.queues {
            let counters = [
                "onrush_tasks_lost_total",
                "onrush_queue_faults_total",
                "onrush_tasks_taken_over_total",
                "onrush_results_unwritten_total",
            ];
            for counter in counters {
                metrics::counter!(counter, "queue" => spec.name).increment(0);
            }
        }
    }

    fn open(self: Arc<Self>, spec: QueueSpec, queue: QueueName, stop: CancellationToken, loops: &Loops) {
        let keys = self.engine.keys(&queue);
        let (throttle, running) = (Arc::new(Throttle::new(spec.concurrency)), Arc::default());
        self.take_seat(queue.clone(), WorkerSeat::new(&throttle, &running, &stop));
        let (level, levels) = (Priority::DEFAULT, Arc::new(AtomicU16::new(Levels::default().bits())));
        let (worker, name, end) = (self, queue.clone(), stop.clone());
        let (moved, told, idle) = (Arc::default(), Arc::default(), Arc::new(Idle::new(name.clone(), keys.clone())));
        if let Some(watch) = worker.partitions.open(&idle) {
            watch::start(&worker, watch, loops);
        }
        let partition = Partition {
            worker,
            spec,
            queue: name,
            keys,
            level,
            levels,
            throttle,
            running,
            moved,
            idle,
            told,
            stop: end,
        };
        let (reader, tracker) = (partition.clone(), loops.tracker().clone());
        loops.spawn_until(format!("read:{queue}"), STALL_AFTER, stop.clone(), move |pulse| {
            let (partition, tracker) = (reader.clone(), tracker.clone());
            async move { partition.read(pulse, tracker).await }
        });
        let tracker = loops.tracker().clone();
        loops.spawn_until(format!("keep:{queue}"), STALL_AFTER, stop, move |pulse| {
            let (partition, tracker) = (partition.clone(), tracker.clone());
            async move { partition.keep(pulse, tracker).await }
        });
    }
}

/// Opens each partition that appears, and closes it when it is gone.
async fn follow_partitions<C: Clone + Send + Sync + 'static>(
    worker: Arc<Worker<C>>,
    spec: QueueSpec,
    partitions: super::registry::Partitions<C>,
    loops: Loops,
    pulse: Pulse,
) -> anyhow::Result<()> {
    let mut open: HashMap<QueueName, CancellationToken> = HashMap::new();
    // When this loop ends for whatever reason its partitions end too, and are opened again by its next run.
    let opened = CloseAll(worker.stopping.child_token());
    while !pulse.stopping() {
        match partitions(worker.context.clone()).await {
            Ok(wanted) => {
                for queue in &wanted {
                    if !open.contains_key(queue) {
                        let stop = opened.0.child_token();
                        worker.clone().open(spec, queue.clone(), stop.clone(), &loops);
                        open.insert(queue.clone(), stop);
                    }
                }
                open.retain(|queue, stop| {
                    let keep = wanted.contains(queue);
                    if !keep {
                        stop.cancel();
                    }
                    keep
                });
                pulse.beat();
            }
            // The partitions that are open stay so; without a beat, readiness tells when this goes on for long.
            Err(error) => {
                tracing::warn!(queue = spec.name, error = format!("{error:#}"), "partitions could not be listed");
            }
        }
        pulse.sleep(PARTITIONS_PERIOD).await;
    }
    Ok(())
}

/// Closes the partitions opened under it when dropped.
struct CloseAll(CancellationToken);
impl Drop for CloseAll {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
