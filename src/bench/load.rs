//! The run itself: loading keys, the two loops, collecting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ErrorKind, Operation, Options, Pacing, Progress, Report, Source, Stream, Target,
    stats::{Class, Counts, Shard},
};
use crate::error::{Error, Result};

/// How many sets go into one request when keys are loaded.
const LOAD_BATCH: u64 = 64;

/// How many bytes of values such a request has at most: well below what the API takes.
const LOAD_BATCH_BYTES: usize = 2 << 20;

/// How many such requests are in flight.
const LOADERS: usize = 4;

/// How often one is tried.
const LOAD_ATTEMPTS: u32 = 5;

/// How long a closed client waits after an error, so that a dead server is not hammered in a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// How long the pacing thread sleeps at most before it looks whether it is to stop.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// How often progress is reported.
const TICK: Duration = Duration::from_secs(1);

/// Drives the target and reports. Client *c* uses the connection *c* modulo their number. `on_progress` is called
/// once a second.
///
/// # Errors
/// [`Error::Invalid`] if an option is past a limit or there is no connection; [`Error::Unavailable`] if the keys to read
/// cannot be loaded. Errors while it runs are counted, not returned.
pub async fn run<T: Target>(
    connections: &[T],
    options: &Options,
    on_progress: &mut (dyn FnMut(&Progress) + Send),
) -> Result<Report> {
    options.validate()?;
    if connections.is_empty() {
        return Err(Error::Invalid("at least one connection is needed".into()));
    }
    let source = Source::new(options.workload.clone())?;
    if options.workload.reads() {
        load(connections, &source).await?;
    }
    let shards: Arc<[Shard]> = (0..options.clients).map(|_| Shard::default()).collect();
    let senders = (0..options.clients)
        .map(|client| Sender {
            target: connections[client % connections.len()].clone(),
            stream: source.stream(client),
            batch: options.workload.batch,
        })
        .collect();
    let stop = Stop::default();
    let load = match options.pacing {
        Pacing::Closed => Load::Closed(start_closed(senders, &shards, &stop.0)),
        Pacing::Open { rate, max_in_flight } => {
            let room = Arc::new(Semaphore::new(max_in_flight));
            start_open(senders, &shards, &stop.0, rate, &room)?;
            Load::Open { room, max_in_flight }
        }
    };
    let mut collected = collect(&shards, options, on_progress).await;
    drop(stop);
    let batch = options.workload.batch.map_or(1, u64::from);
    let missing = load.drain(options.timeout + Duration::from_secs(1)).await as u64 * batch;
    // Those in flight at the end belong to the latencies, or a stall that lasts to the end would not show in them.
    let operations = collected.counts.operations;
    for shard in shards.iter() {
        shard.collect(&mut collected.counts);
    }
    collected.counts.failed(ErrorKind::TIMEOUT, missing);
    Ok(Report::new(options, connections.len(), collected.measured, operations, &collected.counts))
}

/// Writes every key once.
async fn load<T: Target>(connections: &[T], source: &Source) -> Result<()> {
    let workload = source.workload();
    let by_bytes = (LOAD_BATCH_BYTES / workload.value_bytes.max(1)).max(1) as u64;
    let step = LOAD_BATCH.min(by_bytes);
    let mut starts = (0..workload.keys).step_by(step as usize);
    let mut tasks = JoinSet::new();
    for turn in 0.. {
        if tasks.len() >= LOADERS {
            loaded(tasks.join_next().await)?;
        }
        let Some(start) = starts.next() else { break };
        let operations = source.load(start..(start + step).min(workload.keys));
        tasks.spawn(load_batch(connections[turn % connections.len()].clone(), operations));
    }
    while !tasks.is_empty() {
        loaded(tasks.join_next().await)?;
    }
    Ok(())
}

fn loaded(joined: Option<Result<Result<(), ErrorKind>, tokio::task::JoinError>>) -> Result<()> {
    match joined {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(kind))) => Err(Error::Unavailable(format!(
            "the keys to read could not be loaded ({kind}); see whether the service takes writes, and try again"
        ))),
        Some(Err(error)) => Err(Error::Unavailable(format!("a task that loads keys failed: {error}"))),
    }
}

async fn load_batch<T: Target>(mut target: T, operations: Vec<Operation>) -> Result<(), ErrorKind> {
    let mut attempt = 1;
    loop {
        match target.batch(operations.clone()).await {
            Err(_) if attempt < LOAD_ATTEMPTS => sleep(ERROR_PAUSE * 10 * attempt).await,
            result => return result,
        }
        attempt += 1;
    }
}

/// Tells clients and pacing thread to stop: when told to, and when dropped, so that a run that is given up ends, too.
#[derive(Debug, Default)]
struct Stop(StopSeen);

/// The clients' end of it.
#[derive(Debug, Clone, Default)]
struct StopSeen(Arc<AtomicBool>);

impl StopSeen {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// One client: its operations, and where they go.
struct Sender<T> {
    target: T,
    stream: Stream,
    batch: Option<u32>,
}

/// One request.
enum Request {
    One(Operation),
    Batch(Vec<Operation>),
}

impl<T: Target> Sender<T> {
    fn next(&mut self) -> Request {
        match self.batch {
            None => Request::One(self.stream.next_operation()),
            Some(batch) => Request::Batch(self.stream.next_batch(batch)),
        }
    }
}

impl Request {
    fn class(&self) -> Class {
        match self {
            Self::One(Operation::Set { .. }) => Class::Set,
            Self::One(Operation::Get { .. }) => Class::Get,
            Self::Batch(_) => Class::Batch,
        }
    }

    fn operations(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Batch(operations) => operations.len() as u64,
        }
    }

    /// Sends it and records its outcome with the latency since `from`. Answers whether it was done.
    async fn send<T: Target>(self, target: &mut T, from: Instant, shard: &Shard) -> bool {
        let (class, operations) = (self.class(), self.operations());
        let result = match self {
            Self::One(Operation::Set { key, value }) => target.set(key, value).await,
            Self::One(Operation::Get { key }) => target.get(key).await,
            Self::Batch(operations) => target.batch(operations).await,
        };
        shard.record(class, from.elapsed(), operations, result);
        result.is_ok()
    }
}

/// What is running.
enum Load {
    Closed(JoinSet<()>),
    Open { room: Arc<Semaphore>, max_in_flight: usize },
}

impl Load {
    /// Waits for what is in flight and answers how many requests were not answered in that time.
    async fn drain(self, limit: Duration) -> usize {
        match self {
            Self::Closed(mut clients) => {
                // On a timeout the rest is aborted with the set.
                let _ = timeout(limit, async { while clients.join_next().await.is_some() {} }).await;
                clients.len()
            }
            Self::Open { room, max_in_flight } => {
                let all = u32::try_from(max_in_flight).unwrap_or(u32::MAX);
                match timeout(limit, room.acquire_many(all)).await {
                    Ok(_) => 0,
                    Err(_) => max_in_flight - room.available_permits(),
                }
            }
        }
    }
}

fn start_closed<T: Target>(senders: Vec<Sender<T>>, shards: &Arc<[Shard]>, stop: &StopSeen) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for (client, mut sender) in senders.into_iter().enumerate() {
        let (shards, stop) = (shards.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.is_set() {
                let request = sender.next();
                if !request.send(&mut sender.target, Instant::now(), &shards[client]).await {
                    sleep(ERROR_PAUSE).await;
                }
            }
        });
    }
    clients
}

/// Starts the pacing thread. A thread, because the runtime's timers are exact to a millisecond only, which would be
/// most of the latency of a fast answer.
fn start_open<T: Target>(
    mut senders: Vec<Sender<T>>,
    shards: &Arc<[Shard]>,
    stop: &StopSeen,
    rate: f64,
    room: &Arc<Semaphore>,
) -> Result<()> {
    let (shards, stop, room, runtime) = (shards.clone(), stop.clone(), room.clone(), Handle::current());
    let pace = move || {
        let start = Instant::now();
        for number in 0_u64.. {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            while !stop.is_set() {
                let early = due.saturating_duration_since(Instant::now());
                if early.is_zero() {
                    break;
                }
                thread::sleep(early.min(STOP_CHECK));
            }
            if stop.is_set() {
                return;
            }
            let client = (number % senders.len() as u64) as usize;
            let request = senders[client].next();
            let Ok(permit) = room.clone().try_acquire_owned() else {
                shards[client].record(
                    request.class(),
                    Duration::ZERO,
                    request.operations(),
                    Err(ErrorKind::OVERLOAD),
                );
                continue;
            };
            let (mut target, shards) = (senders[client].target.clone(), shards.clone());
            runtime.spawn(async move {
                request.send(&mut target, due, &shards[client]).await;
                drop(permit);
            });
        }
    };
    thread::Builder::new()
        .name("bench-pacer".into())
        .spawn(pace)
        .map(drop)
        .map_err(|error| Error::ResourceExhausted(format!("the pacing thread could not be started: {error}")))
}

/// What was counted within the measured time.
struct Collected {
    counts: Counts,
    measured: Duration,
}

/// Adds the shards up each second until the time is over; what the warm-up counted is thrown away.
async fn collect(
    shards: &[Shard],
    options: &Options,
    on_progress: &mut (dyn FnMut(&Progress) + Send),
) -> Collected {
    let start = Instant::now();
    let warm = start + options.warm_up;
    let end = warm + options.duration;
    let mut measured_from = start;
    let mut total = Counts::default();
    let mut last = start;
    loop {
        let warming_up = last < warm;
        let boundary = if warming_up { warm } else { end };
        sleep_until(boundary.min(last + TICK)).await;
        let mut window = Counts::default();
        for shard in shards {
            shard.collect(&mut window);
        }
        let now = Instant::now();
        let elapsed = now - last;
        on_progress(&Progress {
            elapsed: now - start,
            warming_up,
            throughput: window.operations as f64 / elapsed.as_secs_f64().max(f64::EPSILON),
            p99: Duration::from_micros(window.all_latencies().value_at_quantile(0.99)),
            errors: window.error_count(),
        });
        last = now;
        if warming_up {
            measured_from = now;
        } else {
            total.absorb(&mut window);
            if now >= end {
                return Collected { counts: total, measured: now - measured_from };
            }
        }
    }
}
