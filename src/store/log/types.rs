//! What goes into the log and comes out of it, and how it is opened.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

#[cfg(doc)]
use super::{Log, MAX_PAYLOAD_BYTES};
use crate::{
    store::{
        disk::{SpacePolicy, SpaceProbe},
        files::{FileSyncer, Syncer},
    },
    time::{Clock, SystemClock},
};

/// An entry of the log. The store does not look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its index.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What it is: 0 blank, 1 commands, 2 membership.
    pub kind: u8,
    /// Its content, at most [`MAX_PAYLOAD_BYTES`].
    pub payload: Bytes,
}

impl Record {
    /// Where it stands.
    pub fn position(&self) -> Position {
        Position { term: self.term, index: self.index }
    }
}

/// Where an entry stands in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// The vote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VoteRecord {
    /// In which term.
    pub term: u64,
    /// For whom: a Raft id.
    pub node: u64,
    /// Whether that node is known to lead.
    pub committed: bool,
}

/// What one sync made durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Calls of [`Log::append`].
    pub appends: u64,
    /// Entries.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// How long flush and sync took.
    pub duration: Duration,
}

/// Called by the writer thread after every sync. Must not block.
pub type OnSync = Arc<dyn Fn(SyncReport) + Send + Sync>;

/// Called by the writer thread with the outcome, once. Must not block, and must not append.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// How to open a log. [`LogOptions::new`] has the defaults.
#[derive(Clone)]
pub struct LogOptions {
    /// The data directory (not the log's own).
    pub dir: PathBuf,
    /// Whose directory it is.
    pub incarnation: Uuid,
    /// The Raft group. One group to a directory so far: 0.
    pub group: u32,
    /// How many bytes of the newest entries are kept in memory. 64 MiB. Entries that are not yet written come on top, at
    /// most as many again.
    pub tail_bytes: usize,
    /// How many bytes sled may use as a cache. 32 MiB.
    pub sled_cache_bytes: u64,
    /// Told of every sync.
    pub on_sync: Option<OnSync>,
    /// When [`Log::free_space_ok`] turns false; by default what suits the filesystem.
    pub space: Option<SpacePolicy>,
    /// Where the free space is learnt from; by default from the filesystem.
    pub space_probe: Option<SpaceProbe>,
    /// What brings data to the disk; `fdatasync`.
    pub syncer: Arc<dyn Syncer>,
    /// For durations in reports.
    pub clock: Arc<dyn Clock>,
}

impl LogOptions {
    /// The defaults, for group 0.
    pub fn new(dir: impl Into<PathBuf>, incarnation: Uuid) -> Self {
        Self {
            dir: dir.into(),
            incarnation,
            group: 0,
            tail_bytes: 64 * 1024 * 1024,
            sled_cache_bytes: 32 * 1024 * 1024,
            on_sync: None,
            space: None,
            space_probe: None,
            syncer: Arc::new(FileSyncer),
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// What a start found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The vote.
    pub vote: Option<VoteRecord>,
    /// Up to where the log was purged.
    pub purged: Option<Position>,
    /// The last entry; without entries what was purged last.
    pub last: Option<Position>,
    /// Up to where entries are known to be committed: what was saved, up to 100 ms before a crash.
    pub committed: Option<Position>,
}
