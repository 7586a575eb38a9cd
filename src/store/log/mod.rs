//! The Raft log on sled. The only module that names sled is [`tree`].
//!
//! # Why it is as it is
//! Measured of sled 0.34.7 on Linux: its `flush` does not survive a power cut, one `fdatasync` of its `db` file after it does; it may lose its newest
//! records silently when its file is damaged; records that make leaves too large go to files that it never syncs. Therefore:
//!
//! - one writer thread takes everything queued, inserts it in index order, flushes, syncs through a descriptor of our own, and only then
//!   calls back, in order ([`writer`]);
//! - entries are split into parts of at most 7 KiB with a checksum over the whole ([`record`]);
//! - the vote lives in a file of its own and is written only after every earlier append is synced: openraft takes a flushed vote as flushing all
//!   that came before it;
//! - a mark outside of sled ([`mark`]) says up to where entries were synced. A log that opens below it refuses to start.
//!
//! # Invariants
//! - Entries are contiguous: from `purged + 1` to `last`, without a hole, in memory and on disk.
//! - A callback comes after the sync that covers its call, and callbacks come in the order of the calls.
//! - The mark is never ahead of what is synced; it is lowered before entries are deleted. `committed` is never ahead of it.
//! - After a failed sync nothing is ever written or acknowledged again: every call gets that error.
//!
//! # Not here
//! What an entry means (`state`, `raft`).

mod mark;
mod memory;
mod record;
mod tree;
mod writer;

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use uuid::Uuid;

use self::{
    mark::MarkFile,
    memory::Memory,
    tree::Tree,
    writer::{Operation, Queue, VoteFile},
};
use super::{StoreError, files};
use crate::time::{Clock, SystemClock};

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the log, from 0.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What `raft` says it is: this module does not look.
    pub kind: u8,
    /// Its content.
    pub payload: Bytes,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// Whom this node voted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRecord {
    /// In which term.
    pub term: u64,
    /// The candidate's Raft id.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// What one sync covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncReport {
    /// Calls of append.
    pub appends: u64,
    /// Entries.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// How long flushing and syncing took.
    pub duration: Duration,
}

/// Called once when an operation is on disk, or failed for good.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;
/// Syncs sled's `db` file. Injected by tests that hold a sync back or let it fail.
pub type Syncer = Arc<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

/// How a log is opened.
#[derive(Clone)]
pub struct LogOptions {
    /// The data directory.
    pub dir: PathBuf,
    /// Whose log it is.
    pub incarnation: Uuid,
    /// The Raft group.
    pub group: u32,
    /// Newest entries kept in memory, in bytes of payload, so that steady state never reads sled.
    pub tail_bytes: usize,
    /// sled's cache, in bytes.
    pub sled_cache_bytes: u64,
    /// Bytes that must stay free on the disk for writes to be taken.
    pub min_free_bytes: u64,
    /// Called after each sync that covered entries.
    pub on_sync: Option<Arc<dyn Fn(SyncReport) + Send + Sync>>,
    /// How the `db` file is synced.
    pub syncer: Syncer,
    /// Lets an empty log begin at any index. Only openraft's test suite does; Larder's logs begin at 0, so that a missing beginning is noticed.
    pub starts_anywhere: bool,
    /// For the duration of syncs only.
    pub clock: Arc<dyn Clock>,
}

impl LogOptions {
    /// The defaults: 64 MiB of entries in memory, 64 MiB of sled's cache, 64 MiB to stay free.
    pub fn new(dir: &Path, incarnation: Uuid, group: u32) -> Self {
        Self {
            dir: dir.to_path_buf(),
            incarnation,
            group,
            tail_bytes: 64 << 20,
            sled_cache_bytes: 64 << 20,
            min_free_bytes: 64 << 20,
            on_sync: None,
            syncer: Arc::new(File::sync_data),
            starts_anywhere: false,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// What was found on opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The vote.
    pub vote: Option<VoteRecord>,
    /// Entries up to here are gone, into a snapshot.
    pub purged: Option<Position>,
    /// The last entry.
    pub last: Option<Position>,
    /// An entry known to be committed.
    pub committed: Option<Position>,
}

/// The log. Clones are one log.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({})", self.shared.dir.display())
    }
}

struct Shared {
    dir: PathBuf,
    min_free_bytes: u64,
    tree: Arc<Tree>,
    memory: Arc<Mutex<Memory>>,
    queue: Arc<Queue>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A log that is dropped without `close` (a test, a failed start) ends its thread as well.
        self.queue.close();
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The thread's own panic has been reported by the panic hook.
            let _ = writer.join();
        }
    }
}

impl Log {
    /// Opens or creates the log of a data directory, cuts a torn tail off, and starts the writer thread.
    ///
    /// # Errors
    /// If entries that were synced are missing, if the vote or the mark is damaged, if it is another incarnation's, of a newer format, or in use.
    pub fn open(options: LogOptions) -> Result<(Self, Recovered), StoreError> {
        let dir = options.dir.join("log");
        files::create_dir(&options.dir).map_err(StoreError::io(options.dir.display().to_string()))?;
        files::create_dir(&dir).map_err(StoreError::io(dir.display().to_string()))?;
        let (mark_file, mark) = MarkFile::open(options.dir.join("mark"))?;
        let (vote_file, vote) = VoteFile::open(options.dir.join("vote"))?;
        let tree = Arc::new(Tree::open(&dir, &options)?);
        let mut memory = Memory::new(options.tail_bytes, mark.purged, mark.committed, vote);
        if options.starts_anywhere {
            memory.start_anywhere();
        }
        tree.recover(&mark, &mut memory)?;
        let recovered =
            Recovered { vote, purged: memory.purged, last: memory.last(), committed: memory.committed };
        let memory = Arc::new(Mutex::new(memory));
        let queue = Arc::new(Queue::default());
        let writer = writer::Writer {
            tree: tree.clone(),
            memory: memory.clone(),
            queue: queue.clone(),
            mark_file,
            mark,
            vote_file,
            options: options.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run())
            .map_err(StoreError::io("the log writer thread"))?;
        let shared = Shared {
            dir: options.dir,
            min_free_bytes: options.min_free_bytes,
            tree,
            memory,
            queue,
            writer: Mutex::new(Some(thread)),
        };
        Ok((Self { shared: Arc::new(shared) }, recovered))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends entries that follow the last one. They are readable when this returns; `done` is called once they are synced. Blocks for a moment
    /// when more than 256 MiB wait for the disk.
    pub fn append(&self, records: Vec<Record>, done: Done) {
        let bytes: usize = records.iter().map(|r| r.payload.len()).sum();
        self.shared.queue.wait_for_room(bytes);
        for record in &records {
            self.memory().push(record.clone());
        }
        self.shared.queue.push(Operation::Append(records, done), bytes);
    }

    /// Saves a vote, after every earlier append is synced; readable before `done` is called.
    pub fn save_vote(&self, vote: VoteRecord, done: Done) {
        self.shared.queue.push(Operation::Vote(vote, done), 0);
    }

    /// Drops the entries after `last_kept`, from the end backward; `None` drops all.
    pub fn truncate_after(&self, last_kept: Option<u64>, done: Done) {
        let mut memory = self.memory();
        let from = memory.truncate_after(last_kept);
        // Queued under the lock, so that an append cannot come between what memory and what the disk says.
        self.shared.queue.push(Operation::Truncate { from, last: memory.last(), done }, 0);
    }

    /// Drops the entries up to `upto`, which a snapshot covers; the disk follows in slices. Past the end it empties the log, which then goes on behind it.
    pub fn purge(&self, upto: Position, done: Done) {
        let mut memory = self.memory();
        memory.purge(upto);
        self.shared.queue.push(Operation::Purge { upto, done }, 0);
    }

    /// Remembers that entries up to here are committed. Reaches the disk lazily, never ahead of the entries.
    pub fn save_committed(&self, committed: Option<Position>) {
        self.memory().committed = committed;
    }

    /// Entries from `from`, below `to`, until `max_bytes` of payload are passed: at least one if there is any. What is purged or not yet there is left out.
    ///
    /// # Errors
    /// If an entry in between cannot be read.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Record>> {
        let (from, to, mut tail) = {
            let memory = self.memory();
            let from = from.max(memory.first());
            let to = to.min(memory.next());
            if from >= to {
                return Ok(Vec::new());
            }
            let split = memory.tail_first().clamp(from, to);
            (
                from,
                split,
                if split == from {
                    memory.tail(split, to, max_bytes)
                } else {
                    memory.tail(split, to, usize::MAX)
                },
            )
        };
        if from == to {
            return Ok(tail);
        }
        let mut records = self.shared.tree.read(from, to, max_bytes)?;
        if records.last().is_some_and(|last| last.index + 1 == to) {
            let mut bytes: usize = records.iter().map(|r| r.payload.len()).sum();
            for record in tail.drain(..) {
                if bytes >= max_bytes {
                    break;
                }
                bytes += record.payload.len();
                records.push(record);
            }
        }
        Ok(records)
    }

    /// The vote as last saved.
    pub fn vote(&self) -> Option<VoteRecord> {
        self.memory().vote
    }

    /// The last entry that was purged.
    pub fn purged(&self) -> Option<Position> {
        self.memory().purged
    }

    /// The last entry; `None` if there is none that is not purged.
    pub fn last(&self) -> Option<Position> {
        self.memory().last()
    }

    /// An entry known to be committed.
    pub fn committed(&self) -> Option<Position> {
        self.memory().committed
    }

    /// Bytes of payload of the entries after `index`.
    pub fn bytes_since(&self, index: u64) -> u64 {
        self.memory().bytes_since(index)
    }

    /// Bytes that log and snapshots take on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.tree.disk_bytes() + super::disk::bytes_in(&self.shared.dir.join("snapshots"))
    }

    /// Whether the disk has room for writes. Asks the system: not on the hot path.
    pub fn free_space_ok(&self) -> bool {
        super::disk::free_bytes(&self.shared.dir).is_none_or(|free| free >= self.shared.min_free_bytes)
    }

    /// Finishes what is queued, syncs, and ends the writer thread. Later calls fail.
    ///
    /// # Errors
    /// If anything that was queued failed.
    pub fn close(&self) -> io::Result<()> {
        let (tx, rx) = std::sync::mpsc::channel();
        self.shared.queue.push(Operation::Barrier(Box::new(move |result| drop(tx.send(result)))), 0);
        let result = rx.recv().unwrap_or_else(|_| Err(io::Error::other("the log writer has stopped")));
        self.shared.queue.close();
        if let Some(writer) = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            writer.join().map_err(|_| io::Error::other("the log writer panicked"))?;
        }
        result
    }
}
