//! Who a data directory is: the identity record.
//!
//! A data directory *is* the member. The record is durable before any socket opens and before anything it says is
//! spoken of. [`IdentityFile`] keeps it, and holds the directory's lock.

mod file;

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use file::IdentityFile;

/// A cluster's id: the first 16 bytes of the SHA-256 of its founding set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// The Raft id of an incarnation: its low 53 bits, so that a JSON number holds it; never 0.
pub fn raft_id(incarnation: Uuid) -> u64 {
    let low = incarnation.as_u128() as u64 & ((1 << 53) - 1);
    low.max(1)
}

/// The founders of a cluster: slot -> incarnation.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FoundingSet(pub BTreeMap<String, Uuid>);

impl FoundingSet {
    /// The id of the cluster that this set founds. Nobody has to propose one.
    pub fn cluster_id(&self) -> ClusterId {
        let mut hash = Sha256::new();
        hash.update(b"larder founding set 1");
        for (slot, incarnation) in &self.0 {
            hash.update((slot.len() as u64).to_be_bytes());
            hash.update(slot.as_bytes());
            hash.update(incarnation.as_bytes());
        }
        let digest = hash.finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        ClusterId(id)
    }
}

/// What a data directory has committed itself to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Binding {
    /// New: belongs to nothing.
    Formatted,
    /// Ready to found a cluster with exactly this set. Binds nobody.
    Promised(FoundingSet),
    /// A member of the cluster, as a founder, or (no set) by joining.
    Bound {
        /// The cluster.
        cluster: ClusterId,
        /// Its founders; `None` for one that joined.
        founders: Option<FoundingSet>,
    },
    /// Retired from the cluster.
    Left {
        /// The cluster left.
        cluster: ClusterId,
    },
    /// A later start of this directory, or another process of the same start, was heard: it is an older copy of a member's, or was
    /// copied while it was one. It must not act as that member ever again, and a higher boot counter must not make it one.
    Superseded {
        /// The cluster whose member it is a copy of.
        cluster: ClusterId,
    },
}

/// The identity record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Made when the directory was formatted.
    pub incarnation: Uuid,
    /// Where this member is dialled.
    pub slot: String,
    /// +1 at every start.
    pub boot_counter: u64,
    /// What it is bound to.
    pub binding: Binding,
}

impl Identity {
    /// The Raft id.
    pub fn raft_id(&self) -> u64 {
        raft_id(self.incarnation)
    }
}
