//! A node's condition in Larder's words, from openraft's metrics.

use openraft::ServerState;

use super::{convert, handshake::slot_order, node::Node};
use crate::{error::NodeRef, state};

/// What a node does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Proposes.
    Leader,
    /// Votes and takes the log.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Takes the log only.
    Learner,
    /// Not in a cluster (yet).
    #[default]
    None,
}

/// Where a node stands. Indexes are 0 where there is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeMetrics {
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
    /// The last entry openraft knows to be applied.
    pub applied_index: u64,
    /// The first entry still in its log.
    pub first_log_index: u64,
    /// The last entry in its newest snapshot.
    pub snapshot_index: u64,
}

/// A member, as the membership and the leader's progress know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its names.
    pub node: NodeRef,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// The last index it acknowledged; only the leader knows.
    pub matched_index: Option<u64>,
}

impl Node {
    /// Where this node stands.
    pub fn indexes(&self) -> NodeMetrics {
        let metrics = self.metrics();
        let index = |id: &Option<super::types::LogId>| id.as_ref().map_or(0, |id| id.index);
        NodeMetrics {
            role: match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::None,
            },
            term: metrics.current_term,
            leader: self.leader(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            // On a follower: what the leader said, not what happens to be here already.
            committed_index: index(&metrics.cluster_committed),
            applied_index: index(&metrics.last_applied),
            first_log_index: metrics.purged.as_ref().map_or(0, |id| id.index + 1),
            snapshot_index: index(&metrics.snapshot),
        }
    }

    /// The membership that counts for elections: the last one in the log, also if it is not known to be committed.
    pub fn membership(&self) -> state::Membership {
        convert::membership_to_state(self.metrics().membership_config.membership())
    }

    /// The members by slot.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.metrics();
        let voters: std::collections::BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let replication = metrics.replication.unwrap_or_default();
        let mut members: Vec<Member> = metrics
            .membership_config
            .nodes()
            .map(|(id, peer)| Member {
                node: NodeRef { id: *id, slot: peer.slot.clone() },
                voter: voters.contains(id),
                leader: metrics.current_leader == Some(*id),
                matched_index: replication.get(id).cloned().flatten().map(|at| at.index),
            })
            .collect();
        members.sort_by(|a, b| slot_order(&a.node.slot).cmp(&slot_order(&b.node.slot)));
        members
    }
}
