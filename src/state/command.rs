//! What can be asked of the replicated state, and what it answers.
//!
//! A [`Command`] changes the state and goes through the log; a [`Query`] only reads. Sizes were checked before
//! (`limits`): apply meets no oversize key. The encodings are in [`super::codec`].

use bytes::Bytes;

use super::BootRecord;
use crate::{error::Rejection, time::UnixMillis};

/// The most bytes of a key. It has at least one.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// The most bytes of a value: 1 MiB.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The most operations of a batch.
pub const MAX_BATCH_OPERATIONS: usize = 1024;
/// The most bytes of keys and values of a batch, and so of one command.
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Where an entry stands in the Raft log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its index, from 0.
    pub index: u64,
}

/// What the leader adds to every entry: its time, and the keys that reads touched since the last stamp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The leader's clock. Apply never lets the replicated clock go back.
    pub now: UnixMillis,
    /// Keys (hashed) that were read: hints for eviction order. Empty in this release.
    pub touched: Vec<u64>,
}

/// The exactly-once identity of a command. No command carries one in this release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionId {
    /// The session.
    pub session: u64,
    /// The command's number in it.
    pub sequence: u64,
    /// The lowest sequence whose answer was not seen.
    pub first_unacknowledged: u64,
}

/// One change asked of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Which keyspace; 0 is "default", the only one of this release.
    pub keyspace: u32,
    /// Exactly-once identity.
    pub session: Option<SessionId>,
    /// What to do.
    pub operation: Operation,
}

impl Command {
    /// An operation on the default keyspace, without a session.
    pub fn new(operation: Operation) -> Self {
        Self { keyspace: 0, session: None, operation }
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Write a key.
    Set {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// When to do it.
        condition: Condition,
        /// Time to live in milliseconds. Always `None` in this release.
        ttl_ms: Option<u64>,
        /// Whether to answer what was there.
        return_previous: bool,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Bytes,
        /// Only at this version.
        if_version: Option<u64>,
        /// Whether to answer what was there.
        return_previous: bool,
    },
    /// Add to a number in decimal text.
    Increment {
        /// The key.
        key: Bytes,
        /// What to add.
        delta: i64,
        /// What a missing key counts as before adding.
        initial: i64,
        /// Time to live of a key made here. Always `None` in this release.
        ttl_ms: Option<u64>,
    },
    /// Independent operations, in order; never one inside another.
    Batch(Vec<Operation>),
    /// Genesis' gate: every voter has acknowledged an entry, so client writes may be taken. Proposed by the leader once.
    Open,
    /// A member was started: remember its boot counter and nonce. Proposed by the leader only.
    RecordBoot {
        /// The member's slot.
        slot: String,
        /// Its start.
        boot: BootRecord,
    },
}

impl Operation {
    /// Whether only the leader itself may propose it: refused from clients, from other nodes and in a batch.
    pub fn is_leaders_own(&self) -> bool {
        match self {
            Self::Open | Self::RecordBoot { .. } => true,
            Self::Set { .. } | Self::Delete { .. } | Self::Increment { .. } | Self::Batch(_) => false,
        }
    }
}

/// When a Set is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only if the key does not exist.
    IfAbsent,
    /// Only if it exists.
    IfPresent,
    /// Only if it exists at this version.
    IfVersion(u64),
}

/// A value with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The revision of the key's last change.
    pub version: u64,
    /// When it expires, on the replicated clock. Always `None` in this release.
    pub deadline: Option<UnixMillis>,
}

/// What a command came to, and at what point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The state's revision after the command.
    pub revision: u64,
    /// The replicated clock then.
    pub clock: UnixMillis,
    /// What it came to.
    pub outcome: Outcome,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Set was done.
    Set {
        /// The key's new version.
        version: u64,
        /// What was there, if asked for.
        previous: Option<Versioned>,
    },
    /// Delete was done, or there was nothing to delete.
    Deleted {
        /// Whether there was such a key.
        existed: bool,
        /// What was there, if asked for.
        previous: Option<Versioned>,
    },
    /// Increment was done.
    Incremented {
        /// The sum.
        value: i64,
        /// The key's new version.
        version: u64,
    },
    /// One outcome for each operation of a batch.
    Batch(Vec<Outcome>),
    /// The gate is open.
    Opened,
    /// A member's start was looked at.
    BootRecorded {
        /// Whether it is the record now. If not, who was started is no member in that slot, or not the newest copy of its
        /// volume.
        accepted: bool,
    },
    /// Nothing was changed.
    Rejected(Rejection),
}

/// A question to the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Some keys, all at one point.
    Get {
        /// Which keyspace.
        keyspace: u32,
        /// The keys, answered in this order.
        keys: Vec<Bytes>,
    },
    /// A frozen view of everything, for a scan.
    Scan {
        /// Which keyspace.
        keyspace: u32,
    },
}

/// The answer to a query, and the point it was read at.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The state's revision.
    pub revision: u64,
    /// The replicated clock.
    pub clock: UnixMillis,
    /// What was found.
    pub found: Found,
}

/// What a query found.
#[derive(Debug, Clone)]
pub enum Found {
    /// One for each key asked; `None` is a miss.
    Values(Vec<Option<Versioned>>),
    /// All keys, frozen.
    View(super::View),
}
