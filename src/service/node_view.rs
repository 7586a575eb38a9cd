//! [`ClusterView`] on a node, from before it has a cluster until after it has stopped serving.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use super::{Check, ClusterView, Ctx, Member, Recovered, Status};
use crate::{
    error::{Error, NodeRef, Result},
    raft::{FEATURE_LEVEL, Host, MemberWish, Node, NodeMetrics, Peers, handshake},
};

/// How long a node that has left waits for its directory to be marked, which another member's word and one sync take.
const MARK_PATIENCE: Duration = Duration::from_secs(5);

/// Somebody asked for a recovery. Whoever holds the node's identity does it, and answers.
#[derive(Debug)]
pub struct RecoveryAsked {
    /// The cluster that is meant.
    pub cluster_id: String,
    /// Where the outcome goes.
    pub answer: oneshot::Sender<Result<Recovered>>,
}

/// What a node tells of itself.
pub struct NodeView {
    host: Arc<Host>,
    peers: Arc<Peers>,
    /// Why there is no cluster yet.
    waiting_for: watch::Receiver<Option<String>>,
    /// Why there is no leader, when there is none.
    leaderless: watch::Receiver<String>,
    recoveries: mpsc::Sender<RecoveryAsked>,
    /// Once caught up, a node stays so: readiness must not flap with load.
    caught_up: AtomicBool,
    stopping: AtomicBool,
}

impl NodeView {
    /// A view through the peer service's host, which knows the node once it runs. What is asked of the whole node goes to
    /// `recoveries`.
    pub fn new(
        host: Arc<Host>,
        peers: Arc<Peers>,
        waiting_for: watch::Receiver<Option<String>>,
        leaderless: watch::Receiver<String>,
        recoveries: mpsc::Sender<RecoveryAsked>,
    ) -> Arc<Self> {
        Arc::new(Self {
            host,
            peers,
            waiting_for,
            leaderless,
            recoveries,
            caught_up: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        })
    }

    /// From now on the node is not ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The running node.
    fn running(&self) -> Result<&Arc<Node>> {
        self.host.node().ok_or_else(|| Error::Unavailable(self.waits_for()))
    }

    fn waits_for(&self) -> String {
        self.waiting_for.borrow().clone().unwrap_or_else(|| "the log is being read".into())
    }

    fn checks(&self, node: Option<&Node>, metrics: Option<&NodeMetrics>) -> Vec<Check> {
        let stopping = self.stopping.load(Ordering::Acquire);
        let running = stopping.then(|| "the node is shutting down".to_string());
        let member = node.is_none().then(|| self.waits_for());
        let leader = match node {
            Some(node) if node.live_leader().is_some() => None,
            Some(_) => Some(self.leaderless.borrow().clone()),
            None => Some("not in a cluster yet".to_string()),
        };
        let open = match node {
            Some(node) if node.state().read().is_open() => None,
            _ => Some("not every founder has acknowledged an entry yet; start the missing ones".to_string()),
        };
        vec![
            Check { name: "running", failing: running },
            Check { name: "member", failing: member },
            Check { name: "leader", failing: leader },
            Check { name: "open", failing: open },
            Check { name: "caught-up", failing: self.lag(metrics) },
        ]
    }

    /// Why the node is not caught up: it has to apply what was committed when it first heard a leader.
    fn lag(&self, metrics: Option<&NodeMetrics>) -> Option<String> {
        if self.caught_up.load(Ordering::Acquire) {
            return None;
        }
        let Some(m) = metrics else { return Some("nothing is loaded yet".into()) };
        if m.leader.is_some() && m.committed_index > 0 && m.applied_index >= m.committed_index {
            self.caught_up.store(true, Ordering::Release);
            return None;
        }
        Some(format!("applied {} of {} committed entries", m.applied_index, m.committed_index))
    }
}

#[async_trait]
impl ClusterView for NodeView {
    fn node(&self) -> NodeRef {
        let me = self.peers.myself();
        NodeRef { id: me.raft_id, slot: me.slot.clone() }
    }

    fn cluster_id(&self) -> String {
        self.peers.cluster().map(|id| id.to_string()).unwrap_or_default()
    }

    fn status(&self) -> Status {
        let me = self.peers.myself();
        let node = self.host.node();
        let metrics = node.map(|node| node.indexes());
        let checks = self.checks(node.map(|n| &**n), metrics.as_ref());
        let m = metrics.unwrap_or_default();
        let mut status = Status {
            role: m.role,
            term: m.term,
            leader: m.leader,
            last_log_index: m.last_log_index,
            committed_index: m.committed_index,
            applied_index: m.applied_index,
            first_log_index: m.first_log_index,
            snapshot_index: m.snapshot_index,
            revision: 0,
            clock_ms: 0,
            keys: 0,
            bytes: 0,
            state_hash: 0,
            checks,
            feature_level: 0,
            feature_level_offered: FEATURE_LEVEL,
            memory_limit_bytes: me.memory_limit_bytes,
            incarnation: me.incarnation.to_string(),
            boot_counter: me.boot_counter,
            disk_bytes: node.map_or(0, |node| node.log().disk_bytes()),
        };
        if let Some(node) = node {
            // One lock for all of these: they belong together.
            let machine = node.state().read();
            status.applied_index = machine.last_applied().map_or(0, |at| at.index);
            status.revision = machine.revision();
            status.clock_ms = machine.clock().0;
            status.keys = machine.keys();
            status.bytes = machine.bytes();
            status.state_hash = machine.state_hash();
            status.feature_level = machine.feature_level();
        }
        status
    }

    fn members(&self) -> Vec<Member> {
        let Some(node) = self.host.node() else { return Vec::new() };
        node.members()
            .into_iter()
            .map(|m| Member {
                peer_address: self.peers.address_of(&m.node.slot),
                client_address: self.host.client_address_of(m.node.id),
                node: m.node,
                voter: m.voter,
                leader: m.leader,
                matched_index: m.matched_index,
            })
            .collect()
    }

    async fn transfer_leader(&self, slot: &str) -> Result<NodeRef> {
        let node = self.running()?;
        if node.is_leader() {
            return node.hand_over(slot).await;
        }
        match node.leader() {
            Some(leader) => node.ask_hand_over(&leader, slot).await,
            None => Err(Error::Unavailable("no leader is known; wait for one and try again".into())),
        }
    }

    async fn retire(&self, slot: &str, ctx: Ctx) -> Result<()> {
        let wish = MemberWish::Retire { slot: named(slot)? };
        self.running()?.wish(wish, Instant::now() + ctx.timeout).await
    }

    async fn promote(&self, slot: &str, ctx: Ctx) -> Result<()> {
        let wish = MemberWish::Promote { slot: named(slot)? };
        self.running()?.wish(wish, Instant::now() + ctx.timeout).await
    }

    async fn leave(&self, ctx: Ctx) -> Result<()> {
        let deadline = Instant::now() + ctx.timeout;
        self.running()?.leave(deadline).await?;
        self.stop();
        // Whoever asked stops the node now. If nobody is left to confirm it, the mark is made at the next start.
        drop(timeout_at(deadline.min(Instant::now() + MARK_PATIENCE), self.host.left()).await);
        Ok(())
    }

    async fn recover(&self, cluster_id: &str) -> Result<Recovered> {
        if self.host.node().is_none() {
            return Err(Error::Unavailable(self.waits_for()));
        }
        let (answer, outcome) = oneshot::channel();
        let asked = RecoveryAsked { cluster_id: cluster_id.to_owned(), answer };
        self.recoveries.try_send(asked).map_err(|_| {
            Error::Unavailable("a recovery is under way already, or the node is stopping".into())
        })?;
        outcome.await.unwrap_or(Err(Error::Shutdown))
    }
}

/// A slot as somebody outside names it. Whether a member has it, the leader knows.
fn named(slot: &str) -> Result<String> {
    if handshake::is_slot(slot) {
        return Ok(slot.to_owned());
    }
    Err(Error::Invalid(format!(
        "{:?} is no slot; `larder member list` shows those that there are",
        slot.chars().take(64).collect::<String>()
    )))
}
