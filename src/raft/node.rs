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
        Arc,
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
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    convert,
    hello::hello,
    log_storage::LogStorage,
    network::NetworkFactory,
    peers::{Lane, Peers},
    proposer::{OnPropose, Proposer},
    reader::{ReadIndex, confirm_leadership},
    state_machine::{SharedState, SnapshotDir, SnapshotEvent, StateMachine},
    types::{PeerNode, Raft, TypeConfig},
};
use crate::{
    error::{Error, NodeRef, Result},
    proto::raft as pb,
    state::{self, Applied},
    store::{Log, Snapshots},
    time::Clock,
};

/// How often candidates for leadership are asked whether they may lead.
const WILLING_ROUND: Duration = Duration::from_millis(20);

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

/// What a node tells about itself, for metrics.
#[derive(Clone)]
pub struct Hooks {
    /// An entry of so many commands was proposed.
    pub on_propose: OnPropose,
    /// So many commands were synced.
    pub on_synced: Arc<dyn Fn(u64) + Send + Sync>,
    /// A snapshot was built, installed or sent.
    pub on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
}

/// A running Raft node.
pub struct Node {
    raft: Raft,
    shared: Arc<SharedState>,
    log: Log,
    peers: Arc<Peers>,
    options: Options,
    proposer: Proposer,
    /// Rounds on this node only: what peers ask for.
    local_rounds: ReadIndex,
    quiet_until: Instant,
    stopping: AtomicBool,
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
        // Snapshots and purges are ours, by bytes: see the leader duties in `service`.
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
            local_rounds,
            quiet_until: Instant::now() + Duration::from_millis(quiet),
            stopping: AtomicBool::new(false),
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

    /// Asks the leader for a read index.
    ///
    /// # Errors
    /// `NotLeader` if it does not lead any more, `Unavailable` if it does not answer.
    pub async fn ask_read_index(&self, leader: &NodeRef, deadline: Instant) -> Result<u64> {
        let mut client = self.peers.client(&leader.slot, Lane::Control).map_err(Error::Unavailable)?;
        let request = pb::ReadIndexRequest {
            header: Some(self.peers.header(leader.id)),
            timeout_ms: millis_left(deadline),
        };
        match timeout_at(deadline, client.read_index(request)).await {
            Ok(Ok(answer)) => answer
                .into_inner()
                .read_log
                .map(|id| id.index)
                .ok_or_else(|| Error::Unavailable("the leader's answer has no index".into())),
            Ok(Err(status)) => Err(Error::Unavailable(format!("the leader, {leader}: {}", status.message()))),
            Err(_) => Err(Error::Unavailable(format!("the leader, {leader}, did not answer in time"))),
        }
    }

    /// Sends encoded commands to the leader, in one message; one result for each.
    pub async fn forward(
        &self,
        leader: &NodeRef,
        commands: Vec<Bytes>,
        deadline: Instant,
    ) -> Vec<Result<Applied>> {
        let count = commands.len();
        let all = |error: Error| vec![Err(error); count];
        let mut client = match self.peers.client(&leader.slot, Lane::Forward) {
            Ok(client) => client,
            Err(why) => return all(Error::Unavailable(why)),
        };
        let message = pb::ForwardRequest {
            header: Some(self.peers.header(leader.id)),
            commands,
            timeout_ms: millis_left(deadline),
        };
        let answer = match timeout_at(deadline, client.forward(message)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return all(failed_forward(leader, &status)),
            Err(_) => {
                return all(Error::OutcomeUnknown(format!("the leader, {leader}, did not answer in time")));
            }
        };
        if answer.results.len() != count {
            return all(Error::OutcomeUnknown("the leader's answer has the wrong number of results".into()));
        }
        answer.results.into_iter().map(|result| self.forwarded(result)).collect()
    }

    fn forwarded(&self, result: pb::ForwardResult) -> Result<Applied> {
        use pb::forward_result::Result as R;
        match result.result {
            Some(R::Applied(applied)) => state::codec::decode_applied(applied)
                .map_err(|e| Error::OutcomeUnknown(format!("the leader's answer cannot be read: {e}"))),
            Some(R::Error(error)) => Err(error_from_pb(error, |id| self.node_ref(id))),
            None => Err(Error::OutcomeUnknown("the leader's answer is empty".into())),
        }
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

    /// Hands leadership to a voter ("" for the most caught-up one) and returns once it leads. Only on the leader.
    ///
    /// # Errors
    /// See [`crate::service::ClusterView::transfer_leader`]; `NotLeader` elsewhere.
    pub async fn hand_over(&self, slot: &str) -> Result<NodeRef> {
        if !self.is_leader() {
            return Err(Error::NotLeader { leader: self.leader() });
        }
        let candidates = self.transfer_candidates(slot)?;
        if candidates[0].id == self.peers.myself().raft_id {
            return Ok(candidates[0].clone());
        }
        let target = self.willing(&candidates).await?;
        self.wait_caught_up(&target).await?;
        let stopped = |_| Error::Shutdown;
        self.raft.trigger().transfer_leader(target.id).await.map_err(stopped)?;
        let taken = self
            .raft
            .wait(Some(2 * Duration::from_millis(self.options.election_timeout_max_ms)))
            .metrics(
                |m| m.current_leader.is_some_and(|id| id != self.peers.myself().raft_id),
                "another node leads",
            )
            .await;
        match taken {
            Ok(metrics) => {
                let leader = metrics.current_leader.and_then(|id| self.node_ref(id));
                leader.ok_or_else(|| Error::Unavailable("the new leader is not a member".into()))
            }
            Err(error) => Err(Error::Unavailable(format!("{target} did not take over in time: {error}"))),
        }
    }

    /// Who may lead next, the most caught-up first; never empty.
    fn transfer_candidates(&self, slot: &str) -> Result<Vec<NodeRef>> {
        let metrics = self.metrics();
        let me = self.peers.myself().raft_id;
        let mut voters: Vec<NodeRef> =
            metrics.membership_config.voter_ids().filter_map(|id| self.node_ref(id)).collect();
        if !slot.is_empty() {
            voters.retain(|voter| voter.slot == slot);
            if voters.is_empty() {
                return Err(Error::Invalid(format!(
                    "slot {slot:?} is not a voter; see `larder members` for those that are"
                )));
            }
            return Ok(voters);
        }
        voters.retain(|voter| voter.id != me);
        if voters.is_empty() {
            return Err(Error::Invalid("there is no other voter to lead".into()));
        }
        let matched = metrics.replication.unwrap_or_default();
        let index = |voter: &NodeRef| matched.get(&voter.id).cloned().flatten().map(|id| id.index);
        voters.sort_by_key(|voter| std::cmp::Reverse(index(voter)));
        Ok(voters)
    }

    /// The first candidate that says that it may lead now. One that has just started may not for a moment, and is waited for.
    async fn willing(&self, candidates: &[NodeRef]) -> Result<NodeRef> {
        let patience = Duration::from_millis(self.options.election_timeout_max_ms);
        let deadline = Instant::now() + patience;
        loop {
            for candidate in candidates {
                if let Ok(answer) = hello(&self.peers, &candidate.slot).await
                    && answer.from.raft_id == candidate.id
                    && answer.may_lead
                {
                    return Ok(candidate.clone());
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(
                    "no other voter can lead at the moment; nothing was changed".into(),
                ));
            }
            tokio::time::sleep(WILLING_ROUND).await;
        }
    }

    /// A transfer cannot be taken back: only to a voter that answers and has everything this node had when asked.
    async fn wait_caught_up(&self, target: &NodeRef) -> Result<()> {
        let metrics = self.metrics();
        let recently = Duration::from_millis(self.options.election_timeout_max_ms);
        let heard = metrics.heartbeat.as_ref().and_then(|acks| acks.get(&target.id).cloned().flatten());
        if heard.is_none_or(|at| at.elapsed() > recently) {
            return Err(Error::Unavailable(format!("{target} does not answer; nothing was changed")));
        }
        let goal = metrics.last_log_index;
        let has_it = |m: &RaftMetrics<TypeConfig>| {
            let matched = m.replication.as_ref().and_then(|r| r.get(&target.id).cloned().flatten());
            matched.map(|id| id.index) >= goal
        };
        self.raft
            .wait(Some(2 * recently))
            .metrics(has_it, "the target is caught up")
            .await
            .map_err(|_| Error::Unavailable(format!("{target} is too far behind; nothing was changed")))?;
        Ok(())
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
        self.stopping.store(true, Ordering::Release);
        if timeout(Duration::from_secs(10), self.raft.shutdown()).await.is_err() {
            tracing::warn!("openraft did not stop in time");
        }
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close())
            .await
            .map_err(|e| Error::Storage(e.to_string()))?
            .map_err(|e| Error::Storage(format!("the last sync failed: {e}")))
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

    /// Asks the leader to hand over, and returns who leads then. See [`Node::hand_over`].
    ///
    /// # Errors
    /// As the leader answers; `Unavailable` if it does not.
    pub async fn ask_hand_over(&self, leader: &NodeRef, slot: &str) -> Result<NodeRef> {
        let mut client = self.peers.client(&leader.slot, Lane::Control).map_err(Error::Unavailable)?;
        let header = Some(self.peers.header(leader.id));
        let answer = client.hand_over(pb::HandOverRequest { header, slot: slot.into() }).await;
        match answer {
            Ok(answer) => {
                let id = answer.into_inner().leader;
                self.node_ref(id)
                    .ok_or_else(|| Error::Unavailable(format!("the new leader {id} is not a member")))
            }
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                Err(Error::Invalid(status.message().into()))
            }
            Err(status) => Err(Error::Unavailable(format!("the leader, {leader}: {}", status.message()))),
        }
    }

    /// The indexes that the newest snapshot covers and that the log is purged to.
    pub fn snapshot_and_purged(&self) -> (Option<u64>, Option<u64>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.snapshot.as_ref().map(|id| id.index), metrics.purged.as_ref().map(|id| id.index))
    }
}

fn millis_left(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
}

/// What a failed call to the leader proves. Only a refusal by the peer service itself comes before anything was proposed;
/// of a connection that broke nobody knows how far the message got.
fn failed_forward(leader: &NodeRef, status: &tonic::Status) -> Error {
    let why = format!("the leader, {leader}: {}", status.message());
    match status.code() {
        // The peer service's own refusals: handshake, not started, stopping. A broken connection is never this code.
        tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated => Error::Unavailable(why),
        _ if was_not_sent(status) => Error::Unavailable(why),
        _ => Error::OutcomeUnknown(why),
    }
}

/// Whether a call failed because no connection could be made: nothing was sent.
fn was_not_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        source = error.source();
    }
    false
}

pub(crate) fn error_to_pb(error: &Error) -> pb::ForwardError {
    let leader = match error {
        Error::NotLeader { leader: Some(leader) } => leader.id,
        _ => 0,
    };
    let message = match error {
        Error::Unavailable(m)
        | Error::DeadlineExceeded(m)
        | Error::OutcomeUnknown(m)
        | Error::Invalid(m)
        | Error::Unimplemented(m)
        | Error::ResourceExhausted(m)
        | Error::Storage(m) => m.clone(),
        Error::NotLeader { .. } | Error::Rejected(_) | Error::Shutdown => error.to_string(),
    };
    pb::ForwardError { reason: error.reason().into(), message, leader }
}

fn error_from_pb(error: pb::ForwardError, node: impl Fn(u64) -> Option<NodeRef>) -> Error {
    let message = error.message;
    match error.reason.as_str() {
        "NOT_LEADER" => Error::NotLeader { leader: node(error.leader) },
        "UNAVAILABLE" | "SHUTDOWN" => Error::Unavailable(message),
        "DEADLINE_EXCEEDED" => Error::DeadlineExceeded(message),
        "INVALID" => Error::Invalid(message),
        "UNIMPLEMENTED" => Error::Unimplemented(message),
        "RESOURCE_EXHAUSTED" => Error::ResourceExhausted(message),
        // A reason of a later release proves nothing.
        _ => Error::OutcomeUnknown(message),
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

// Kept beside the conversions it belongs to.
pub(crate) fn read_index_to_pb(index: u64) -> pb::ReadIndexResponse {
    pb::ReadIndexResponse { read_log: Some(convert::log_id_to_pb(&convert::log_id(0, index))) }
}
