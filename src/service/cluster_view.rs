//! What a node knows of itself and of its cluster, for the protocols and the operator.

use async_trait::async_trait;

use super::Ctx;
use crate::error::{NodeRef, Result};
pub use crate::raft::{Recovered, Role};

/// A node's condition. Indexes are of the Raft log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub role: Role,
    /// The current term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeRef>,
    /// Its last entry.
    pub last_log_index: u64,
    /// The last entry it knows to be committed.
    pub committed_index: u64,
    /// The last entry it applied.
    pub applied_index: u64,
    /// The first entry still in its log.
    pub first_log_index: u64,
    /// The last entry in its newest snapshot; 0 if none.
    pub snapshot_index: u64,
    /// The state's revision.
    pub revision: u64,
    /// The replicated clock, milliseconds since 1970.
    pub clock_ms: i64,
    /// Keys in the state.
    pub keys: u64,
    /// Counted bytes of keys and values in the state.
    pub bytes: u64,
    /// The rolling hash of the state after `applied_index`.
    pub state_hash: u64,
    /// Every readiness check: its name, and why it fails (`None`: it holds). Ready if all hold.
    pub checks: Vec<Check>,
    /// The state's feature level, and the highest this release knows.
    pub feature_level: u32,
    /// See `feature_level`.
    pub feature_level_offered: u32,
    /// The memory limit the node was started with, in bytes; 0 if none.
    pub memory_limit_bytes: u64,
    /// The node's incarnation, as a hyphenated UUID.
    pub incarnation: String,
    /// How often the node was started on its data directory.
    pub boot_counter: u64,
    /// Bytes on disk of log and snapshots.
    pub disk_bytes: u64,
}

/// One readiness check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name: `member`, `caught-up`, `leader`, `disk`, `running`.
    pub name: &'static str,
    /// Why it fails, and what would mend it; `None` if it holds.
    pub failing: Option<String>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its names.
    pub node: NodeRef,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// `host:port` of the peers' traffic.
    pub peer_address: String,
    /// `host:port` for clients; empty if it was not heard from yet.
    pub client_address: String,
    /// The last index it acknowledged; only the leader knows.
    pub matched_index: Option<u64>,
}

/// The view that a node has of its cluster, and what an operator asks of it. Answers at once from what it knows; the asynchronous ones
/// change the cluster, work on any node, and return when that is done.
#[async_trait]
pub trait ClusterView: Send + Sync + 'static {
    /// This node's own names.
    fn node(&self) -> NodeRef;

    /// The cluster's id as 32 hexadecimal digits; empty before genesis.
    fn cluster_id(&self) -> String;

    /// How this node is.
    fn status(&self) -> Status;

    /// Who belongs to the cluster, by slot. Empty before genesis.
    fn members(&self) -> Vec<Member>;

    /// Hands leadership to a slot ("" for the most caught-up voter) and returns once it leads.
    ///
    /// # Errors
    /// `Invalid` for a slot that is no voter, `Unavailable` if it does not answer, is too far behind, or does not take over in time.
    async fn transfer_leader(&self, slot: &str) -> Result<NodeRef>;

    /// Takes the member of a slot, which is gone for good, out of the cluster. Returns once that is committed; asked again it goes on where it was.
    ///
    /// # Errors
    /// `Invalid` for a slot without a member, or with one that still answers; `Unavailable` without a leader, if those that are left would
    /// be no quorum, or if it is not done in time.
    async fn retire(&self, slot: &str, ctx: Ctx) -> Result<()>;

    /// Has the learner of a slot vote in the place of a voter that does not answer. Returns once that is committed.
    ///
    /// # Errors
    /// `Invalid` for a slot without a member; `Unavailable` without a leader, if there is no such place, or if it is not done in time.
    async fn promote(&self, slot: &str, ctx: Ctx) -> Result<()>;

    /// Takes this node out of its cluster. Returns once that is committed and the directory is marked as one that has left; without the mark if no
    /// other member confirms it within 5 s: then a later start finds out.
    ///
    /// # Errors
    /// `Unavailable` if it is not done in time, with the last reason why not.
    async fn leave(&self, ctx: Ctx) -> Result<()>;

    /// Makes this node, a survivor of a majority that is lost for good, a new cluster of one with all that it holds. `cluster_id` is that
    /// of the present cluster, as a confirmation. Returns once it is on disk; the node starts over right afterwards.
    ///
    /// # Errors
    /// `Invalid` if another cluster was meant, there is a leader, a majority still answers, or this node is a learner;
    /// `Unavailable` before genesis; `Storage` if it could not be done, and then the node starts over as what it was.
    async fn recover(&self, cluster_id: &str) -> Result<Recovered>;
}
