//! The pods of one StatefulSet, as whole nodes in this process.
//!
//! - Each start binds new addresses, as a pod gets a new IP, and puts them into the pretended DNS; a stopped pod has no name.
//! - A node that has to start over does so by itself, as `larder serve` does. One that ends otherwise fails the test at the next look at it.
//! - The scale file and the Kubernetes API say the same number of replicas, as the chart has it.
//! - Nothing sleeps and nothing is shared between fleets: tests run side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use larder::{
    client::{Client, ClientError, Endpoint, Options as ClientOptions},
    config::{Machine, RawConfig, ServeConfig},
    error::{Error, Result},
    kubernetes::{Desired, Fake, Kubernetes, leaving},
    raft::{GROUP, Role},
    server::{Ended, Listeners, Server, Surroundings},
    service::{ClusterView, Ctx, NodeView, Status},
    store::{Binding, IdentityFile, Log, LogOptions, Position},
    time::SystemClock,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use uuid::Uuid;

use crate::{
    dns::{Dns, PEER_TEMPLATE},
    wait,
};

/// How long anything that should happen may take. Most of it takes a second; the machine may be busy.
pub const SOON: Duration = Duration::from_secs(30);
pub const HEARTBEAT: Duration = Duration::from_millis(50);
pub const ELECTION_MAX: Duration = Duration::from_millis(600);
/// The kind of a record in the log that changes the membership.
const MEMBERSHIP: u8 = 2;

/// Waits at most [`SOON`].
pub async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> std::result::Result<T, String>) -> T {
    wait::eventually(what, SOON, condition).await
}

/// Looks at a condition for some seconds, in which whatever should not happen would have: the rounds of genesis, of the keeper and of the
/// watches beside Raft take a second at most.
pub async fn stays(what: &str, condition: impl Fn() -> std::result::Result<(), String>) {
    let mut looks = tokio::time::interval(HEARTBEAT);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..60 {
        looks.tick().await;
        if let Err(why) = condition() {
            panic!("it did not stay so: {what}: {why}");
        }
    }
}

/// How the nodes of a fleet are configured.
#[derive(Debug, Clone)]
pub struct Options {
    pub replicas: u32,
    pub seeds: &'static str,
    /// Overrides `seeds`, for single slots.
    pub seeds_of: BTreeMap<u32, &'static str>,
    pub retire_after_ms: u64,
    pub on_majority_lost: Option<&'static str>,
}

impl Options {
    pub fn replicas(replicas: u32) -> Self {
        let seeds = if replicas < 3 { "0" } else { "0,1,2" };
        let retire_after_ms = 60_000;
        Self { replicas, seeds, seeds_of: BTreeMap::new(), retire_after_ms, on_majority_lost: None }
    }
}

/// A node that runs.
#[derive(Clone)]
struct Current {
    view: Arc<NodeView>,
    client: SocketAddr,
    http: SocketAddr,
}

struct Pod {
    current: watch::Receiver<Option<Current>>,
    /// Whether to hand leadership over.
    stop: oneshot::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

/// A member as the other members see it: its slot, its Raft id, whether it votes.
pub type Membership = BTreeSet<(String, u64, bool)>;

pub struct Fleet {
    pub dns: Arc<Dns>,
    pub api: Arc<Fake>,
    options: Options,
    folder: TempDir,
    pods: BTreeMap<u32, Pod>,
    /// Counts starts: each has IPs of its own.
    starts: AtomicU32,
}

impl Fleet {
    /// Nothing runs yet.
    pub fn new(options: Options) -> Self {
        let fleet = Self {
            dns: Arc::default(),
            api: Arc::new(Fake::new(Desired::ABSENT)),
            folder: tempfile::tempdir().unwrap(),
            pods: BTreeMap::new(),
            starts: AtomicU32::new(0),
            options,
        };
        fleet.scale(fleet.options.replicas);
        fleet
    }

    /// A cluster of all replicas, ready.
    pub async fn formed(options: Options) -> Self {
        let mut fleet = Self::new(options);
        let slots: Vec<u32> = (0..fleet.options.replicas).collect();
        for slot in &slots {
            fleet.start(*slot).await;
        }
        fleet.ready(&slots).await;
        fleet.settled(&slots).await;
        fleet
    }

    /// What `kubectl scale` does, and the chart with it.
    pub fn scale(&self, replicas: u32) {
        let text = format!("seeds = \"{}\"\nreplicas = {replicas}\n", self.options.seeds);
        // Replaced and not rewritten, as kubelet does: it is read at any time.
        let path = self.scale_file();
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
        self.api.set_desired(Desired::replicas(replicas));
    }

    /// Every slot is told the same seeds from its next start on.
    pub fn forget_seeds_of_slots(&mut self) {
        self.options.seeds_of.clear();
    }

    fn scale_file(&self) -> PathBuf {
        self.folder.path().join("scale.toml")
    }

    fn data(&self, slot: u32) -> PathBuf {
        self.folder.path().join(format!("data-{slot}"))
    }

    fn config(&self, slot: u32) -> ServeConfig {
        // Every address is another one than at the last start.
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        let address = || Some(format!("127.{}.{}.{}:0", 64 + start / 250, 1 + start % 250, 1 + slot));
        let raw = RawConfig {
            slot: Some(slot.to_string()),
            peer_template: Some(PEER_TEMPLATE.into()),
            seeds: self.options.seeds_of.get(&slot).map(ToString::to_string),
            scale_file: Some(self.scale_file()),
            statefulset: Some("cache/larder".into()),
            data_dir: Some(self.data(slot)),
            ephemeral: Some(self.options.on_majority_lost.is_some()),
            on_majority_lost: self.options.on_majority_lost.map(Into::into),
            client_addr: address(),
            peer_addr: address(),
            http_addr: address(),
            heartbeat_ms: Some(HEARTBEAT.as_millis() as u64),
            election_timeout_min_ms: Some(300),
            election_timeout_max_ms: Some(ELECTION_MAX.as_millis() as u64),
            retire_after_ms: Some(self.options.retire_after_ms),
            ..RawConfig::default()
        };
        ServeConfig::new(raw, &Machine::default()).unwrap()
    }

    /// Returns once it answers.
    pub async fn start(&mut self, slot: u32) {
        let (seen, mut current) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let (dns, api, config) = (self.dns.clone(), self.api.clone(), self.config(slot));
        let task = tokio::spawn(run(slot, config, dns, api, seen, stopped));
        if current.wait_for(Option::is_some).await.is_err() {
            panic!("slot {slot} does not start: {:?}", task.await);
        }
        self.pods.insert(slot, Pod { current, stop, task });
    }

    pub async fn start_all(&mut self, slots: &[u32]) {
        for slot in slots {
            self.start(*slot).await;
        }
    }

    /// SIGTERM, to all of them at once, and waits until they are gone.
    pub async fn stop(&mut self, slots: &[u32]) {
        self.end(slots, true).await;
    }

    /// Their machines die: nothing is handed over.
    pub async fn crash(&mut self, slots: &[u32]) {
        self.end(slots, false).await;
    }

    async fn end(&mut self, slots: &[u32], hand_over: bool) {
        let ending = slots.iter().map(|slot| {
            let Pod { stop, task, current } = self.pods.remove(slot).unwrap();
            self.dns.remove(*slot);
            drop(current);
            async move {
                stop.send(hand_over).unwrap_or_else(|_| panic!("slot {slot} had ended by itself"));
                task.await.unwrap().unwrap();
            }
        });
        join_all(ending.collect::<Vec<_>>()).await;
    }

    /// Its volume is lost. It does not run.
    pub fn wipe(&self, slot: u32) {
        assert!(!self.pods.contains_key(&slot));
        fs::remove_dir_all(self.data(slot)).unwrap();
    }

    fn current(&self, slot: u32) -> Current {
        let pod = &self.pods[&slot];
        assert!(!pod.task.is_finished(), "slot {slot} ended by itself");
        pod.current.borrow().clone().unwrap()
    }

    pub fn running(&self) -> Vec<u32> {
        self.pods.keys().copied().collect()
    }

    pub fn view(&self, slot: u32) -> Arc<NodeView> {
        self.current(slot).view
    }

    pub fn status(&self, slot: u32) -> Status {
        self.view(slot).status()
    }

    pub fn cluster_id(&self, slot: u32) -> String {
        self.view(slot).cluster_id()
    }

    pub fn incarnation(&self, slot: u32) -> Uuid {
        self.status(slot).incarnation.parse().unwrap()
    }

    pub fn members(&self, slot: u32) -> Membership {
        self.view(slot).members().into_iter().map(|m| (m.node.slot, m.node.id, m.voter)).collect()
    }

    /// The slots that vote, as this one sees it.
    pub fn voters(&self, slot: u32) -> Vec<String> {
        self.members(slot).into_iter().filter(|(_, _, voter)| *voter).map(|(slot, ..)| slot).collect()
    }

    /// Why a node is not ready, as `/readyz` says it; "" if it is.
    pub fn unready(&self, slot: u32) -> String {
        let checks = self.status(slot).checks;
        let failing = checks.into_iter().filter_map(|c| Some(format!("[-]{}: {}\n", c.name, c.failing?)));
        failing.collect()
    }

    pub async fn ready(&self, slots: &[u32]) {
        for slot in slots {
            eventually(&format!("slot {slot} to be ready"), async || match self.unready(*slot) {
                ready if ready.is_empty() => Ok(()),
                why => Err(why),
            })
            .await;
        }
    }

    /// Waits until each of these nodes gives a reason like this.
    pub async fn says(&self, slots: &[u32], what: &str) {
        for slot in slots {
            eventually(&format!("slot {slot} to say {what:?}"), async || match self.unready(*slot) {
                why if why.contains(what) => Ok(()),
                why => Err(why),
            })
            .await;
        }
    }

    /// Waits until exactly these are members and all see it, and as many vote as should.
    pub async fn settled(&self, slots: &[u32]) -> Membership {
        let wanted: Vec<String> = slots.iter().map(ToString::to_string).collect();
        let count = if slots.len().is_multiple_of(2) { slots.len() - 1 } else { slots.len() };
        eventually(&format!("the members {wanted:?}"), async || {
            let seen: Vec<Membership> = slots.iter().map(|slot| self.members(*slot)).collect();
            let fits = |members: &Membership| {
                members.iter().map(|(slot, ..)| slot).eq(&wanted)
                    && members.iter().filter(|(_, _, voter)| *voter).count() == count
            };
            if seen.iter().all(|members| fits(members) && *members == seen[0]) {
                Ok(seen[0].clone())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await
    }

    /// Waits for a leader among the running nodes that all of them know.
    pub async fn leader(&self) -> u32 {
        eventually("a leader", async || {
            let statuses: Vec<_> = self.running().into_iter().map(|slot| (slot, self.status(slot))).collect();
            let leader = statuses.iter().find(|(_, status)| status.role == Role::Leader);
            let Some((leader, at)) = leader else { return Err("nobody leads".into()) };
            let known = |s: &Status| {
                s.term == at.term && s.leader.as_ref().map(|l| &l.slot) == Some(&leader.to_string())
            };
            if statuses.iter().all(|(_, status)| known(status)) {
                Ok(*leader)
            } else {
                Err(format!("{statuses:?}"))
            }
        })
        .await
    }

    /// A client of all nodes that run now, and of those that they tell it of.
    pub fn client(&self) -> Client {
        self.client_of(&self.running())
    }

    /// A client of these nodes alone.
    pub fn client_of(&self, slots: &[u32]) -> Client {
        let endpoints: Vec<String> =
            slots.iter().map(|slot| self.current(*slot).client.to_string()).collect();
        let options = ClientOptions { timeout: SOON, ..ClientOptions::default() };
        Client::new(Endpoint::list(&endpoints.join(",")).unwrap(), options).unwrap()
    }

    pub async fn http(&self, slot: u32, path: &str) -> String {
        let address = self.current(slot).http;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// How many calls of peers this node refused, for a reason or (`""`) for any.
    pub async fn refused(&self, slot: u32, reason: &str) -> u64 {
        let metrics = self.http(slot, "/metrics").await;
        let counters = metrics
            .lines()
            .filter(|line| line.starts_with("larder_peer_refused_total") && line.contains(reason));
        counters.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64).sum()
    }

    /// What a pod's preStop hook does: the rule of `larder prestop`, asked of the pretended API. Returns whether it left.
    pub async fn prestop(&self, slot: u32) -> bool {
        let view = self.view(slot);
        if let Ok(desired) = self.api.desired().await
            && leaving(slot, &desired)
        {
            view.leave(Ctx { timeout: SOON }).await.unwrap();
            return true;
        }
        if view.status().role == Role::Leader {
            // With nobody to hand over to it stops all the same.
            drop(view.transfer_leader("").await);
        }
        false
    }

    /// The hooks of these pods, all at once. Returns who left.
    pub async fn prestop_all(&self, slots: &[u32]) -> Vec<u32> {
        let left = join_all(slots.iter().map(|slot| self.prestop(*slot))).await;
        slots.iter().zip(left).filter(|(_, left)| *left).map(|(slot, _)| *slot).collect()
    }

    /// Where the memberships are in the log of a stopped node. No snapshot was taken, so none is missing.
    pub fn memberships(&self, slot: u32) -> Vec<Position> {
        assert!(!self.pods.contains_key(&slot));
        let (file, identity) =
            IdentityFile::open_or_format(&self.data(slot), &slot.to_string(), Uuid::new_v4()).unwrap();
        let options = LogOptions { group: GROUP, ..LogOptions::new(self.data(slot), identity.incarnation) };
        let (log, _) = Log::open(options).unwrap();
        assert_eq!(log.purged(), None);
        let end = log.last().unwrap().index + 1;
        let (mut next, mut found) = (0, Vec::new());
        while next < end {
            let records = log.read(next, end, 1 << 20).unwrap();
            next = records.last().unwrap().index + 1;
            found.extend(records.iter().filter(|r| r.kind == MEMBERSHIP).map(|r| r.position()));
        }
        log.close().unwrap();
        drop(file);
        found
    }

    /// What the directory of a stopped node is bound to.
    pub fn binding(&self, slot: u32) -> Binding {
        assert!(!self.pods.contains_key(&slot));
        let opened = IdentityFile::open_or_format(&self.data(slot), &slot.to_string(), Uuid::new_v4());
        opened.unwrap().1.binding
    }
}

/// Runs one pod until it is told to stop, as `larder serve` does.
async fn run(
    slot: u32,
    mut config: ServeConfig,
    dns: Arc<Dns>,
    api: Arc<Fake>,
    seen: watch::Sender<Option<Current>>,
    mut stop: oneshot::Receiver<bool>,
) -> Result<()> {
    loop {
        let listeners = Listeners::bind(&config).await?;
        let address = |listener: &tokio::net::TcpListener| {
            listener.local_addr().map_err(|e| Error::Unavailable(e.to_string()))
        };
        let (client, http) = (address(&listeners.client)?, address(&listeners.http)?);
        dns.set(slot, address(&listeners.peer)?);
        config.advertise_client = Some(client.to_string());
        let surroundings = Surroundings {
            clock: Arc::new(SystemClock::new()),
            resolver: dns.seen_by(slot),
            kubernetes: Some(api.clone()),
        };
        let server = Server::start(config.clone(), listeners, surroundings).await?;
        seen.send_replace(Some(Current { view: server.view().clone(), client, http }));
        let hand_over = tokio::select! {
            hand_over = &mut stop => Some(hand_over.unwrap_or(false)),
            ended = server.ended() => match ended {
                Ended::Failed(error) => return Err(error),
                Ended::StartOver { .. } => None,
            },
        };
        server.shutdown(hand_over.unwrap_or(false)).await?;
        if hand_over.is_some() {
            return Ok(());
        }
        config.ephemeral = false;
    }
}

/// Somebody who writes one key after another, and knows what was acknowledged.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<u32>>>,
    slowest_ms: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Writer {
    pub fn start(client: Client) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let slowest_ms = Arc::new(AtomicU64::new(0));
        let (stopping, done, slowest) = (stop.clone(), acknowledged.clone(), slowest_ms.clone());
        let task = tokio::spawn(async move {
            for n in 0.. {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                let written = client.set(key(n), n.to_string()).await;
                slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                match written {
                    Ok(_) => done.lock().unwrap().push(n),
                    // Written or not: the next one is another key.
                    Err(ClientError::OutcomeUnknown(_)) => {}
                    Err(error) => panic!("write {n}: {error}"),
                }
            }
        });
        Self { stop, acknowledged, slowest_ms, task }
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until so many more are acknowledged.
    pub async fn goes_on(&self, more: usize) {
        let goal = self.acknowledged() + more;
        eventually("more writes to be acknowledged", async || match self.acknowledged() {
            count if count >= goal => Ok(()),
            count => Err(format!("{count} of {goal}")),
        })
        .await;
    }

    /// How long any write took at most, that was finished.
    pub fn slowest(&self) -> Duration {
        Duration::from_millis(self.slowest_ms.load(Ordering::Relaxed))
    }

    /// Stops it, and reads all that was acknowledged.
    pub async fn all_there(self, client: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        assert!(!acknowledged.is_empty());
        for n in acknowledged {
            let found = client.get(key(n)).await.unwrap().found;
            assert_eq!(
                found.map(|found| found.value),
                Some(n.to_string().into()),
                "{n} of what was acknowledged"
            );
        }
    }
}

fn key(n: u32) -> String {
    format!("key-{n}")
}

/// Writes some keys.
pub async fn write(client: &Client, keys: std::ops::Range<u32>) {
    for n in keys {
        client.set(key(n), n.to_string()).await.unwrap();
    }
}

/// All of these keys are there.
pub async fn assert_written(client: &Client, keys: std::ops::Range<u32>) {
    for n in keys {
        let found = client.get(key(n)).await.unwrap().found;
        assert_eq!(found.map(|found| found.value), Some(n.to_string().into()), "{n}");
    }
}
