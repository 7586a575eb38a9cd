//! Clients that set and get all the while, and remember everything for the judge.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    Cluster, Failure, Rpc, eventually,
    history::{self, Action, MISSING, Op},
};

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Workload {
    /// How many clients, each with one request at a time.
    pub clients: usize,
    /// How many keys.
    pub keys: u64,
    /// The sizes of values in bytes; each at least 8.
    pub sizes: Vec<usize>,
    /// Of a hundred operations, how many are reads.
    pub reads_percent: u32,
    /// Where the choices begin.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self { clients: 8, keys: 16, sizes: vec![8, 100, 3000, 20_000], reads_percent: 40, seed: 1 }
    }
}

/// What all clients share.
struct Shared {
    workload: Workload,
    zero: Instant,
    /// The last value written; values are numbers from 1.
    last_value: AtomicU64,
    succeeded: AtomicU64,
    ops: Mutex<Vec<Op>>,
    failures: Mutex<Vec<Failure>>,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

/// What they saw, after they stopped.
#[derive(Debug)]
pub struct Seen {
    /// Every operation whose answer, or whose missing answer, counts.
    pub ops: Vec<Op>,
    /// Every failure.
    pub failures: Vec<Failure>,
}

impl Load {
    /// Sets the clients to work, each beginning at another node.
    pub fn start(cluster: &Cluster, workload: Workload) -> Self {
        let shared = Arc::new(Shared {
            workload,
            zero: Instant::now(),
            last_value: AtomicU64::new(MISSING),
            succeeded: AtomicU64::new(0),
            ops: Mutex::default(),
            failures: Mutex::default(),
        });
        let stop = watch::Sender::new(false);
        let mut clients = JoinSet::new();
        for number in 0..shared.workload.clients {
            let client = cluster.client(number % cluster.nodes.len());
            clients.spawn(work(number as u64, client, shared.clone(), stop.subscribe()));
        }
        Self { shared, stop, clients }
    }

    /// Operations that succeeded so far.
    pub fn succeeded(&self) -> u64 {
        self.shared.succeeded.load(Ordering::Relaxed)
    }

    /// Waits for at least so many more successes (A8: a fault that hit nothing proves nothing).
    pub async fn more(&self, when: &str, count: u64) {
        let from = self.succeeded();
        eventually(&format!("{count} operations {when}"), Duration::from_secs(60), async || {
            match self.succeeded() - from {
                enough if enough >= count => Ok(()),
                done => Err(format!(
                    "{done} succeeded; failures last: {:?}",
                    self.shared.failures.lock().unwrap().last()
                )),
            }
        })
        .await;
    }

    /// Stops the clients, reads every key at every running node, and judges the whole: nothing acknowledged may be
    /// missing, nothing stale, nothing made up.
    pub async fn finish(mut self, cluster: &Cluster) -> Seen {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        for slot in cluster.running() {
            let client = cluster.client(slot);
            for key in 0..self.shared.workload.keys {
                eventually("the last read of a key", Duration::from_secs(30), async || {
                    self.shared.read(&client, key).await.map_err(|e| e.to_string())
                })
                .await;
            }
        }
        let ops = std::mem::take(&mut *self.shared.ops.lock().unwrap());
        let failures = std::mem::take(&mut *self.shared.failures.lock().unwrap());
        let wrong = history::check(&ops);
        assert!(wrong.is_empty(), "{} of {} operations:\n{}", wrong.len(), ops.len(), wrong.join("\n"));
        Seen { ops, failures }
    }
}

/// One client: an operation at a time until told to stop; after a failure it goes on at the next node.
async fn work(number: u64, mut client: Rpc, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut rng = StdRng::seed_from_u64(shared.workload.seed << 16 | number);
    let mut patience = tokio::time::interval(Duration::from_millis(20));
    while !*stop.borrow_and_update() {
        let key = rng.random_range(0..shared.workload.keys);
        let done = if rng.random_range(0..100) < shared.workload.reads_percent {
            shared.read(&client, key).await
        } else {
            shared.write(&client, key, rng.random_range(0..usize::MAX)).await
        };
        match done {
            Ok(()) => {
                shared.succeeded.fetch_add(1, Ordering::Relaxed);
            }
            Err(failure) => {
                shared.failures.lock().unwrap().push(failure);
                client.rotate();
                patience.tick().await;
            }
        }
    }
}

impl Shared {
    async fn write(&self, client: &Rpc, key: u64, choice: usize) -> Result<(), Failure> {
        let value = self.last_value.fetch_add(1, Ordering::Relaxed) + 1;
        let size = self.workload.sizes[choice % self.workload.sizes.len()];
        let start = self.zero.elapsed();
        let outcome = client.set(name(key), content(value, size)).await;
        let action = match &outcome {
            Ok(_) => Action::Write(value),
            Err(failure) if failure.surely_not_applied => return outcome.map(drop),
            Err(_) => Action::WriteUnknown(value),
        };
        self.remember(key, action, start);
        outcome.map(drop)
    }

    async fn read(&self, client: &Rpc, key: u64) -> Result<(), Failure> {
        let start = self.zero.elapsed();
        let found = client.get(name(key)).await?;
        self.remember(key, Action::Read(found.map_or(MISSING, |value| number_of(&value))), start);
        Ok(())
    }

    fn remember(&self, key: u64, action: Action, start: Duration) {
        let op = Op { key, action, start, end: self.zero.elapsed() };
        self.ops.lock().unwrap().push(op);
    }
}

fn name(key: u64) -> String {
    format!("register/{key}")
}

/// The bytes of a value: its number, and then bytes that follow from number and size, so that any change shows.
pub fn content(value: u64, size: usize) -> Bytes {
    let mut bytes = value.to_be_bytes().to_vec();
    let mut rng = StdRng::seed_from_u64(value ^ (size as u64) << 40);
    bytes.resize(size.max(8), 0);
    rng.fill(&mut bytes[8..]);
    bytes.into()
}

/// The number of a value that was read; panics if its bytes are not what was written.
fn number_of(bytes: &Bytes) -> u64 {
    let number: [u8; 8] = bytes.get(..8).and_then(|n| n.try_into().ok()).expect("a value has its number");
    let value = u64::from_be_bytes(number);
    assert!(*bytes == content(value, bytes.len()), "value {value} of {} bytes is damaged", bytes.len());
    value
}
