//! The snapshot: the whole state as a sequence of sections, each checked on its own and all of them together.
//!
//! A section is `kind` (u16), `version` (u16), `flags` (u8; 1: required), `length` (u32), `crc` (u32: CRC32C of these nine
//! bytes and the payload), all little-endian, then `length` bytes of payload. Sections come in this order:
//!
//! | kind | payload, version 1 (numbers as in [`super::codec`]) |
//! |---|---|
//! | 1 header | magic `LARDERSN`, group (0), feature level |
//! | 2 position | flags (1: last applied, 2: membership entry), \[term, index\], \[term, index\], `bytes` of a membership |
//! | 3 state | clock (signed), revision, flags (1: open), state hash (8 bytes) |
//! | 4 limits | memory cap (0: none), policy (0: noeviction) |
//! | 5 keyspaces | count (1); id (0), name, cap, policy, keys, bytes, evictions, expirations |
//! | 6 retired ids | count, ids ascending |
//! | 7 boot records | count; slot (ascending), Raft id, incarnation (16 bytes), boot counter, nonce (8 bytes) |
//! | 8 sessions | count (0) |
//! | 9 watch events | floor, count (0) |
//! | 10 entries, none or many | keyspace, then to the end: key, version, flags (1: deadline), \[deadline\], value; keys ascending |
//! | 65535 end | count of sections before it, keys, bytes, CRC32C over the sections' `crc` in order (4 bytes) |
//!
//! Two nodes that applied the same entries write the same bytes; reading them and writing again gives them back. What is
//! written and read at a time is one section, some 256 KiB and at most [`MAX_SECTION_BYTES`]. A section of unknown kind
//! or version is skipped if it is optional, and refuses the whole if it is required. Damage of any kind is an error,
//! never a smaller state.
//!
//! Not here: files, blocks and compression (`store`), and when to take one (`raft`).

mod decode;
mod encode;
mod section;

pub use decode::SnapshotDecoder;
pub use encode::Sections;

use super::{DecodeError, LogPosition, MAX_KEY_BYTES, MAX_VALUE_BYTES, Machine, Membership};

/// Where a section of entries ends: the first entry past it is its last.
const ENTRIES_SECTION_BYTES: usize = 256 * 1024;

/// The most bytes of a section of entries: one entry begins below the mark, at the largest. Sections of other kinds are
/// much smaller in this release.
pub const MAX_SECTION_BYTES: usize = ENTRIES_SECTION_BYTES + MAX_KEY_BYTES + MAX_VALUE_BYTES + 64;

const MAGIC: [u8; 8] = *b"LARDERSN";
/// The only Raft group of this release.
const GROUP: u64 = 0;
/// The version of each section that this release writes, and the only one it reads.
const VERSION: u16 = 1;
/// The name of keyspace 0.
const DEFAULT_KEYSPACE: &str = "default";

const HEADER: u16 = 1;
const POSITION: u16 = 2;
const STATE: u16 = 3;
const LIMITS: u16 = 4;
const KEYSPACES: u16 = 5;
const RETIRED: u16 = 6;
const BOOTS: u16 = 7;
const SESSIONS: u16 = 8;
const WATCH: u16 = 9;
const ENTRIES: u16 = 10;
const END: u16 = u16::MAX;

const HAS_LAST_APPLIED: u8 = 1;
const HAS_MEMBERSHIP_ENTRY: u8 = 2;
const IS_OPEN: u8 = 1;
const HAS_DEADLINE: u8 = 1;

/// Why a snapshot is not taken in. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A section is cut off, too long, or fails its checksum.
    #[error("section {section} of the snapshot is damaged ({why}); take the snapshot from another node")]
    Damaged {
        /// Its place, from 0.
        section: u64,
        /// In what way.
        why: &'static str,
    },
    /// A required section that this release does not know.
    #[error(
        "section {section} of the snapshot is required and of kind {kind}, version {version}, which this release does not \
         know; use the release that wrote it, or a newer one"
    )]
    Unknown {
        /// Its place, from 0.
        section: u64,
        /// Its kind.
        kind: u16,
        /// Its version.
        version: u16,
    },
    /// A section is missing, comes twice, or not in its place.
    #[error(
        "the snapshot has a section of kind {kind} after one of kind {after}: a part is missing, repeated or out of order; \
         take the snapshot from another node"
    )]
    Order {
        /// The kind that came.
        kind: u16,
        /// The kind before it; 0 for none.
        after: u16,
    },
    /// It ends without its end marker.
    #[error(
        "the snapshot ends after {sections} sections without its end marker: it was cut off; take it from another node"
    )]
    Unfinished {
        /// How many came.
        sections: u64,
    },
    /// The payload of a section cannot be read.
    #[error("section {section} of the snapshot cannot be read: {error}")]
    Payload {
        /// Its place, from 0.
        section: u64,
        /// Why.
        error: DecodeError,
    },
    /// It was written by a cluster with features that this release does not have.
    #[error(
        "the snapshot is of feature level {found} and this release knows up to {known}; use a newer release"
    )]
    FeatureLevel {
        /// Its level.
        found: u64,
        /// The highest known here.
        known: u32,
    },
    /// It is of another Raft group.
    #[error("the snapshot is of group {found} and this node serves group 0; take one of the same group")]
    Group {
        /// Its group.
        found: u64,
    },
    /// Its parts do not fit together.
    #[error("the snapshot contradicts itself: {0}; take it from another node")]
    Inconsistent(&'static str),
}

/// The state as it was at one entry, to be encoded elsewhere while the machine goes on.
#[derive(Debug, Clone)]
pub struct Frozen {
    machine: Machine,
}

impl Frozen {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// The last entry it holds; `None` before the first.
    pub fn last_applied(&self) -> Option<LogPosition> {
        self.machine.last_applied()
    }

    /// The membership, and the entry that brought it.
    pub fn membership(&self) -> (Option<LogPosition>, &Membership) {
        self.machine.membership()
    }

    /// How many keys it holds.
    pub fn keys(&self) -> u64 {
        self.machine.keys()
    }

    /// Their counted bytes.
    pub fn bytes(&self) -> u64 {
        self.machine.bytes()
    }

    /// Encodes it, one section an item, from the header to the end marker.
    pub fn sections(&self) -> Sections<'_> {
        Sections::new(&self.machine)
    }
}
