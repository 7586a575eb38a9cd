//! One running Raft node: what `service`, `server` and the peer service hold.
//!
//! Start: the log and the newest snapshot are open; openraft is built with elections off; a node that was started before stays quiet for one
//! maximal election timeout (openraft forgets leases on restart, so a vote given at once could elect a second leader while the first still
//! serves reads under its lease); a founder whose log is empty writes the founding membership.
//!
//! Not here: who the founders are (`cluster`), when to be ready (`server`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    Config, ServerState, SnapshotPolicy,
    async_runtime::{Instant as _, WatchReceiver},
    errors::{InitializeError, RaftError},
    metrics::RaftMetrics,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};

use super::{
    log_storage::LogStorage,
    network::NetworkFactory,
    peers::Peers,
    proposer::{OnPropose, Proposer},
    reader::{ReadIndex, confirm_leadership},
    state_machine::{Raft, SharedState, SnapshotDir, SnapshotEvent, StateMachine},
    types::{PeerNode, TypeConfig},
    wish::Asked,
};
use crate::{
    error::{Error, NodeRef, Result},
    state::Applied,
    store::{Log, Snapshots},
    time::Clock,
};

/// How a node runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// The shortest election timeout.
    pub election_timeout_min_ms: u64,
    /// The longest election timeout; also how long a restarted node stays quiet.
    pub election_timeout_max_ms: u64,
    /// A snapshot is taken after so many bytes of log.
    pub snapshot_log_bytes: u64,
    /// Entries proposed and not yet applied, at most.
    pub entries_in_flight: usize,
    /// The founding membership; empty for a node that did not found its cluster.
    pub founders: BTreeMap<u64, PeerNode>,
}

/// What a node tells others of this process: metrics, and who keeps the membership.
#[derive(Clone)]
pub struct Hooks {
    /// An entry of so many commands was proposed.
    pub on_propose: OnPropose,
    /// So many commands were synced.
    pub on_synced: Arc<dyn Fn(u64) + Send + Sync>,
    /// A snapshot was built, installed or sent.
    pub on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
    /// Where changes of the membership are asked for, while this node leads.
    pub wishes: mpsc::Sender<Asked>,
}

/// A running Raft node.
pub struct Node {
    raft: Raft,
    shared: Arc<SharedState>,
    log: Log,
    peers: Arc<Peers>,
    options: Options,
    proposer: Proposer,
    wishes: mpsc::Sender<Asked>,
    /// Rounds on this node only: what peers ask for.
    local_rounds: ReadIndex,
    quiet_until: Instant,
    /// When a leader was last heard from.
    leader_heard: Mutex<Option<Instant>>,
    stopping: AtomicBool,
    leaving: AtomicBool,
    left: AtomicBool,
    standing: Notify,
}

fn raft_config(options: &Options) -> Result<Config> {
    let never = 1 << 40;
    Config {
        cluster_name: "larder".into(),
        heartbeat_interval: options.heartbeat_ms,
        election_timeout_min: options.election_timeout_min_ms,
        election_timeout_max: options.election_timeout_max_ms,
        // Bounded by the connection's keepalive instead: 200 ms for a whole snapshot would never do.
        install_snapshot_timeout: 10 * 60 * 1000,
        // Snapshots and purges are ours, by bytes: see `service::duties`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: never,
        purge_batch_size: 1,
        // Appends are capped by bytes, in `log_storage`.
        max_payload_entries: 4096,
        replication_lag_threshold: never,
        enable_pre_vote: Some(true),
        // A state machine in memory: a leader restored without a vote could serve an old state.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        ..Config::default()
    }
    .validate()
    .map_err(|e| Error::Invalid(format!("the Raft timing does not work out: {e}")))
}

impl Node {
    /// Builds and starts a node over an open log. `booted_before` keeps it quiet for an election timeout.
    ///
    /// # Errors
    /// If the timing is impossible or what is on disk cannot be read.
    pub async fn start(
        options: Options,
        peers: Arc<Peers>,
        log: Log,
        snapshots: Snapshots,
        clock: Arc<dyn Clock>,
        hooks: Hooks,
        booted_before: bool,
    ) -> Result<Arc<Self>> {
        let shared = SharedState::new();
        let snapshots = SnapshotDir { snapshots, peers: peers.clone() };
        let machine = StateMachine::new(shared.clone(), snapshots, hooks.on_snapshot.clone());
        let network = NetworkFactory { peers: peers.clone(), on_snapshot: hooks.on_snapshot.clone() };
        let id = peers.myself().raft_id;
        let config = Arc::new(raft_config(&options)?);
        let storage = LogStorage::new(log.clone(), hooks.on_synced);
        let raft = Raft::build(id, config, network, storage, machine)
            .await
            .map_err(|e| Error::Storage(format!("the log or the snapshot cannot be read: {e}")))?;
        let quiet = if booted_before { options.election_timeout_max_ms } else { 0 };
        raft.runtime_config().elect(!booted_before);
        raft.run();

        let for_rounds = raft.clone();
        let local_rounds = ReadIndex::start(Arc::new(move |deadline| {
            let raft = for_rounds.clone();
            Box::pin(async move { confirm_leadership(&raft, deadline).await })
        }));
        let proposer = Proposer::start(raft.clone(), clock, options.entries_in_flight, hooks.on_propose);
        let node = Arc::new(Self {
            raft,
            shared,
            log,
            peers,
            options,
            proposer,
            wishes: hooks.wishes,
            local_rounds,
            quiet_until: Instant::now() + Duration::from_millis(quiet),
            leader_heard: Mutex::new(None),
            stopping: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            left: AtomicBool::new(false),
            standing: Notify::new(),
        });
        node.found().await?;
        if booted_before {
            let waking = node.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until(waking.quiet_until).await;
                waking.raft.runtime_config().elect(true);
                // Looked at afterwards: whoever stops the node meanwhile switches elections off before or after this.
                if waking.stopping.load(Ordering::Acquire) {
                    waking.raft.runtime_config().elect(false);
                }
            });
        }
        Ok(node)
    }

    /// Writes the founding membership if the log is empty. Every founder does, with the same one: the entry is the same.
    async fn found(&self) -> Result<()> {
        if self.options.founders.is_empty() {
            return Ok(());
        }
        match self.raft.initialize(self.options.founders.clone()).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::Storage(format!("the founding membership cannot be written: {error}"))),
        }
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The replicated state.
    pub fn state(&self) -> &Arc<SharedState> {
        &self.shared
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn wishes(&self) -> &mpsc::Sender<Asked> {
        &self.wishes
    }

    /// The other nodes.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// How the node runs.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the node was started so recently that it must not vote: see the module's head.
    pub(crate) fn is_quiet(&self) -> bool {
        Instant::now() < self.quiet_until
    }

    /// Whether the node was asked to leave its cluster.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether it is no member any more, by its own wish: it waits to be stopped, and nobody in the cluster answers it.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    pub(super) fn set_left(&self) {
        self.left.store(true, Ordering::Release);
    }

    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    /// Waits until somebody has a reason to ask the others anew how this node stands.
    pub async fn standing_changed(&self) {
        self.standing.notified().await;
    }

    pub(super) fn look_at_standing(&self) {
        self.standing.notify_one();
    }

    /// Whether the node may lead. One that is stopping still votes: its vote may be the one that the next leader needs.
    pub(crate) fn may_lead(&self) -> bool {
        !self.is_quiet() && !self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Whether this node believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.raft.metrics().borrow_watched().state == ServerState::Leader
    }

    /// The leader that this node knows.
    pub fn leader(&self) -> Option<NodeRef> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.get_node(&id)?;
        Some(NodeRef { id, slot: node.slot.clone() })
    }

    /// A leader sent something just now.
    pub(super) fn hear_leader(&self) {
        *self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The leader, if there is a sign of life of it, or on the leader itself of a majority, within two of the longest election
    /// timeouts. [`Self::leader`] goes on naming one that is gone, until there is another.
    pub fn live_leader(&self) -> Option<NodeRef> {
        let leader = self.leader()?;
        let recently = 2 * Duration::from_millis(self.options.election_timeout_max_ms);
        let heard = *self.leader_heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Also on a new leader, whom nobody has answered yet: it heard the one before.
        if heard.is_some_and(|at| at.elapsed() <= recently) {
            return Some(leader);
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let acks = metrics.heartbeat.as_ref()?;
        let me = self.peers.myself().raft_id;
        let answers = |id: &u64| {
            *id == me || acks.get(id).cloned().flatten().is_some_and(|at| at.elapsed() <= recently)
        };
        let majority =
            |config: &BTreeSet<u64>| 2 * config.iter().filter(|id| answers(id)).count() > config.len();
        metrics.membership_config.membership().get_joint_config().iter().all(majority).then_some(leader)
    }

    /// Proposes an encoded command here. The errors say whether it may have been applied.
    ///
    /// # Errors
    /// `NotLeader` at once if this node does not lead; `ResourceExhausted` while the disk is full.
    pub async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Applied> {
        if !self.log.free_space_ok() {
            return Err(Error::ResourceExhausted(
                "the leader's disk is nearly full; free space on it, and writes resume by themselves".into(),
            ));
        }
        self.proposer.propose(command, deadline).await
    }

    /// One ReadIndex round on this node, shared with others that wait.
    ///
    /// # Errors
    /// `NotLeader` if it does not lead, `Unavailable` without a quorum in time.
    pub async fn read_index(&self, deadline: Instant) -> Result<u64> {
        self.local_rounds.index(deadline).await
    }

    /// A member's names.
    pub fn node_ref(&self, id: u64) -> Option<NodeRef> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node = metrics.membership_config.get_node(&id)?;
        Some(NodeRef { id, slot: node.slot.clone() })
    }

    /// The slot of each member, by Raft id.
    pub(crate) fn slots(&self) -> BTreeMap<u64, String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.nodes().map(|(id, node)| (*id, node.slot.clone())).collect()
    }

    /// No more elections from here on, and, if asked, leadership handed over if there is anybody to take it.
    pub async fn retire_from_leading(&self, hand_over: bool) {
        self.stopping.store(true, Ordering::Release);
        self.raft.runtime_config().elect(false);
        if hand_over && self.is_leader() {
            match self.hand_over("").await {
                Ok(leader) => tracing::info!(%leader, "leadership handed over"),
                Err(error) => tracing::warn!(%error, "leadership was not handed over"),
            }
        }
    }

    /// Stops openraft, then finishes and syncs the log.
    ///
    /// # Errors
    /// If the last sync fails.
    pub async fn shutdown(&self) -> Result<()> {
        if let Err(error) = self.stop_raft().await {
            tracing::warn!("{error}");
        }
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close())
            .await
            .map_err(|e| Error::Storage(e.to_string()))?
            .map_err(|e| Error::Storage(format!("the last sync failed: {e}")))
    }

    /// Stops openraft; the log stays open.
    pub(super) async fn stop_raft(&self) -> Result<()> {
        self.stopping.store(true, Ordering::Release);
        match timeout(Duration::from_secs(10), self.raft.shutdown()).await {
            // Of an openraft that failed nothing is left to stop.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Storage("openraft did not stop in time".into())),
        }
    }

    /// Returns when openraft has stopped by itself: a disk that failed, or a broken invariant.
    pub async fn failed(&self) -> Error {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state
                && !self.stopping.load(Ordering::Acquire)
            {
                return Error::Storage(fatal.to_string());
            }
            if metrics.changed().await.is_err() {
                if self.stopping.load(Ordering::Acquire) {
                    std::future::pending::<()>().await;
                }
                return Error::Storage("the Raft core has stopped".into());
            }
        }
    }

    /// The voters, and how far each is known to have acknowledged; the leader itself by its own log. Only the leader knows of the others.
    pub fn voters_and_matched(&self) -> (BTreeSet<u64>, BTreeMap<u64, u64>) {
        let metrics = self.metrics();
        let voters = metrics.membership_config.voter_ids().collect();
        let replication = metrics.replication.unwrap_or_default();
        let matched = replication.into_iter().filter_map(|(id, at)| Some((id, at?.index))).collect();
        (voters, matched)
    }

    /// Asks openraft for a snapshot of what is applied; it is built in the background.
    ///
    /// # Errors
    /// If openraft has stopped.
    pub async fn trigger_snapshot(&self) -> Result<()> {
        self.raft.trigger().snapshot().await.map_err(|_| Error::Shutdown)
    }

    /// Asks openraft to drop the log up to and including `index`, which a snapshot covers.
    pub async fn purge_to(&self, index: u64) {
        // Only a stopped core does not take it, and then there is nothing to purge for.
        drop(self.raft.trigger().purge_log(index).await);
    }

    /// The indexes that the newest snapshot covers and that the log is purged to.
    pub fn snapshot_and_purged(&self) -> (Option<u64>, Option<u64>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.snapshot.as_ref().map(|id| id.index), metrics.purged.as_ref().map(|id| id.index))
    }
}

/// The founding membership, for [`Options::founders`].
pub fn founders(set: &crate::store::FoundingSet) -> BTreeMap<u64, PeerNode> {
    set.0
        .iter()
        .map(|(slot, incarnation)| {
            let node = PeerNode { slot: slot.clone(), incarnation: *incarnation.as_bytes() };
            (crate::store::raft_id(*incarnation), node)
        })
        .collect()
}
