//! Who is in the cluster, as the log says.

use std::collections::BTreeMap;

/// A member, by its three names (the Raft id is its key in [`Membership::nodes`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberNode {
    /// Its stable name: where it is dialled.
    pub slot: String,
    /// host:port of its peer port.
    pub peer_address: String,
    /// Its data directory's identity.
    pub incarnation: [u8; 16],
}

/// The last start of a member that the cluster heard of. Tells two copies of one volume apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootRecord {
    /// Its Raft id.
    pub raft_id: u64,
    /// Its data directory's identity.
    pub incarnation: [u8; 16],
    /// How often it was started.
    pub boot_counter: u64,
    /// Random at that start.
    pub nonce: u64,
}

/// The voters and everyone else in the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters' Raft ids, ascending: one list, or two while the membership changes (a majority of both is needed);
    /// none before the cluster was founded.
    pub configs: Vec<Vec<u64>>,
    /// All members by Raft id; those in no config are learners.
    pub nodes: BTreeMap<u64, MemberNode>,
}

impl Membership {
    /// The voters of all configs; during a change one id may come twice.
    pub fn voters(&self) -> impl Iterator<Item = u64> + '_ {
        self.configs.iter().flatten().copied()
    }

    /// Whether this Raft id is a member, and in this slot.
    pub fn has(&self, raft_id: u64, slot: &str) -> bool {
        self.nodes.get(&raft_id).is_some_and(|node| node.slot == slot)
    }

    /// The same membership in the one form that is encoded: ids ascending, each once.
    pub(super) fn normalized(mut self) -> Self {
        for config in &mut self.configs {
            config.sort_unstable();
            config.dedup();
        }
        self
    }
}
