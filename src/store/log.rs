//! The Raft log, the vote, and what is known to be committed: durable, in order, and fast when many wait at once.
//!
//! Shaped for a consensus library that appends without waiting and is told later: [`Log::append`] makes entries
//! readable at once, and calls back when they are on stable storage.
//!
//! # Flow
//!
//! ```text
//! append, save_vote, truncate_after, purge, save_committed
//!    | change what readers see (`memory`), and queue (`queue`)
//!    v
//! writer thread (`writer`): takes everything queued -> inserts (`record`, `tree`) -> one flush and fdatasync
//!    |                                                                           -> callbacks, in order
//!    v
//! mark thread (below): writes the mark (`mark`) at most 100 ms later; watches the free space
//! ```
//! A start reads the whole log and compares it with the mark (`recover`).
//!
//! # Invariants
//!
//! - Callbacks run in the order of the calls. What was called back with `Ok` is on stable storage, and all before it.
//! - The vote is written only after every earlier append is synced.
//! - There is never a hole: entries are inserted in index order, truncated from the end, purged from the front.
//! - The mark changes, durably, before entries that it covers are removed.
//! - After an error everything fails, until the directory is opened again.
//!
//! # What is not here
//!
//! What an entry means, and the consensus library: an adapter in `raft` stands on this. Only `tree` names sled.

mod mark;
mod memory;
mod queue;
mod record;
mod recover;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
mod types;
mod writer;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::Duration,
};

use uuid::Uuid;

use self::{
    mark::{MARK_EVERY, Marker, Owner, VoteFile},
    memory::{Budget, Memory, cost},
    queue::{Failure, Op, Queue, Shared, locked},
    tree::Tree,
    writer::Writer,
};
use super::{
    disk::{SpacePolicy, SpaceWatch},
    error::StoreError,
    files,
    layout::{self, Format, Stage},
};

pub use self::{
    record::MAX_PAYLOAD_BYTES,
    types::{Done, LogOptions, OnSync, Position, Record, Recovered, SyncReport, VoteRecord},
};

/// The log. Clones are handles of the same one; it is closed with the last of them, or by [`Log::close`].
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

struct Inner {
    dir: PathBuf,
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    writer: JoinHandle<()>,
    mark: JoinHandle<()>,
    stop: Arc<Stop>,
}

impl Log {
    /// Opens the log of a data directory, or creates it in one that never had one.
    ///
    /// # Errors
    /// In use; of a later format or another incarnation; a part of it missing or damaged; entries missing that were
    /// synced. Nothing is ever reported as "not there" that was.
    pub fn open(options: LogOptions) -> Result<(Self, Recovered), StoreError> {
        let LogOptions { dir, incarnation, group, syncer, .. } = &options;
        let owner = Owner { incarnation: *incarnation, group: *group };
        let fresh = prepare(dir, *incarnation)?;
        let (log_dir, vote_path, mark_path) = (layout::log(dir), layout::vote(dir), layout::mark(dir));
        let cache = options.sled_cache_bytes;
        let (vote_file, vote, marker, tree);
        if fresh {
            tree = Tree::create(&log_dir, cache, *group, syncer.clone())?;
            (vote_file, vote) = (VoteFile::create(&vote_path, owner, syncer.clone())?, None);
            marker = Marker::create(&mark_path, owner, syncer.clone())?;
            Format { stage: Stage::Ready, incarnation: *incarnation }.write(dir)?;
        } else {
            (vote_file, vote) = VoteFile::open(&vote_path, owner, syncer.clone())?;
            marker = Marker::open(&mark_path, owner, syncer.clone())?;
            tree = Tree::open(&log_dir, cache, *group, syncer.clone())?;
        }
        let (mut memory, purge_from) = recover::recover(&tree, &marker, options.tail_bytes)?;
        memory.vote = vote;
        let recovered =
            Recovered { vote, purged: memory.purged, last: memory.last, committed: memory.committed };
        let space = match options.space {
            Some(policy) => policy,
            None => SpacePolicy::for_dir(dir).map_err(StoreError::io("learn the free space of", dir))?,
        };
        let tree = Arc::new(tree);
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            memory: Mutex::new(memory),
            marker,
            space: SpaceWatch::new(dir, space, options.space_probe.clone()),
            tree: RwLock::new(Some(tree.clone())),
        });
        let writer = Writer::new(
            shared.clone(),
            tree,
            vote_file,
            options.clock.clone(),
            options.on_sync.clone(),
            purge_from,
        );
        let threads = Threads::start(&shared, writer).map_err(StoreError::io("start the threads of", dir))?;
        let inner = Inner { dir: dir.clone(), shared, threads: Mutex::new(Some(threads)) };
        Ok((Self { inner: Arc::new(inner) }, recovered))
    }

    /// Appends entries. They can be read when this returns; `done` is called when they are on stable storage, after the
    /// callbacks of everything before.
    ///
    /// Blocks while more than 64 MiB or 16,384 appends wait for the writer, until it has taken some. That cannot
    /// deadlock as long as no callback blocks: the writer depends on nothing but the disk.
    ///
    /// The first index follows the last one (a log that never had an entry begins anywhere); terms never fall. Anything
    /// else is an error to `done`, and the log is as it was.
    pub fn append(&self, records: Vec<Record>, done: Done) {
        if let Some(large) = records.iter().find(|r| r.payload.len() > MAX_PAYLOAD_BYTES) {
            let text = format!(
                "entry {} has {} bytes; at most {MAX_PAYLOAD_BYTES} are possible",
                large.index,
                large.payload.len()
            );
            return done(Err(StoreError::TooLarge(text).into()));
        }
        let shared = &self.inner.shared;
        let bytes = records.iter().map(cost).sum();
        let waiting = match shared.queue.enter_for_append(bytes) {
            Ok(waiting) => waiting,
            Err(failure) => return done(Err(failure.error())),
        };
        let appended = locked(&shared.memory).append(&records);
        match appended {
            Ok(memory::Appended { epoch, starts_at }) => {
                shared.queue.push(waiting, Op::Append { records, epoch, starts_at, done });
            }
            Err(error) => {
                drop(waiting);
                done(Err(error));
            }
        }
    }

    /// Saves the vote; `done` is called when it is on stable storage, which is after every earlier append is.
    pub fn save_vote(&self, vote: VoteRecord, done: Done) {
        self.queue(done, |done| Ok(Op::Vote { vote, done }));
    }

    /// Removes every entry after `last_kept` (all of them with `None`, as far as they are not purged).
    pub fn truncate_after(&self, last_kept: Option<u64>, done: Done) {
        let shared = &self.inner.shared;
        self.queue(done, |done| {
            let keep = match self.kept(last_kept) {
                Ok(keep) => keep,
                Err(error) => return Err((done, error)),
            };
            locked(&shared.memory).truncate(keep);
            Ok(Op::Truncate { keep, done })
        });
    }

    /// The position of the last entry that a truncation keeps.
    fn kept(&self, last_kept: Option<u64>) -> io::Result<Option<Position>> {
        let (first, purged, last) = {
            let memory = locked(&self.inner.shared.memory);
            (memory.first, memory.purged, memory.last)
        };
        match last_kept {
            Some(index) if last.is_none_or(|last| index >= last.index) => Ok(last),
            Some(index) if index >= first => match self.read(index, index + 1, 0)?.first() {
                Some(record) => Ok(Some(record.position())),
                None => Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {index} is missing"))),
            },
            _ => Ok(purged),
        }
    }

    /// Gives up every entry up to `upto`, which may lie beyond the last one: then the log is empty, and goes on after
    /// `upto`. `done` is called when this is on stable storage; the space is freed little by little.
    ///
    /// The snapshot that takes their place must be durable before.
    pub fn purge(&self, upto: Position, done: Done) {
        let shared = &self.inner.shared;
        self.queue(done, |done| {
            let mut memory = locked(&shared.memory);
            let upto = match memory.purged {
                // Nothing to do, but in order.
                Some(purged) if purged.index >= upto.index => purged,
                _ => upto,
            };
            if memory.purged != Some(upto) {
                memory.purge(upto);
            }
            Ok(Op::Purge { upto, done })
        });
    }

    /// Remembers up to where entries are committed. On disk within about 100 ms, never before its entry is.
    pub fn save_committed(&self, committed: Option<Position>) {
        let shared = &self.inner.shared;
        if let Ok(waiting) = shared.queue.enter() {
            locked(&shared.memory).committed = committed;
            shared.queue.push(waiting, Op::Committed(committed));
        }
    }

    fn queue(&self, done: Done, make: impl FnOnce(Done) -> Result<Op, (Done, io::Error)>) {
        let queue = &self.inner.shared.queue;
        match queue.enter() {
            Ok(waiting) => match make(done) {
                Ok(op) => queue.push(waiting, op),
                Err((done, error)) => {
                    drop(waiting);
                    done(Err(error));
                }
            },
            Err(failure) => done(Err(failure.error())),
        }
    }

    /// Reads entries `from..to_exclusive`, as far as the log has them: purged ones and ones beyond the end are left out.
    /// Stops when `max_bytes` is passed, but returns at least one entry if there is any.
    ///
    /// Newest entries come out of memory, older ones from the disk; then this blocks.
    ///
    /// # Errors
    /// The disk's; an entry that must be there is not, or is damaged.
    pub fn read(&self, from: u64, to_exclusive: u64, max_bytes: usize) -> io::Result<Vec<Record>> {
        let shared = &self.inner.shared;
        'again: loop {
            let mut budget = Budget::new(max_bytes);
            let mut found: Vec<Record> = Vec::new();
            let (mut at, epoch) = {
                let memory = locked(&shared.memory);
                (from.max(memory.first), memory.epoch)
            };
            // A truncation or a purge that came in between makes what was read a mixture of two logs.
            let overtaken = |memory: &Memory, at| memory.epoch != epoch || memory.first > at;
            loop {
                let on_disk_to = {
                    let memory = locked(&shared.memory);
                    if overtaken(&memory, at) {
                        continue 'again;
                    }
                    let to = to_exclusive.min(memory.next());
                    if at >= to || budget.spent {
                        return Ok(found);
                    }
                    if at >= memory.tail_from() {
                        memory.copy_tail(at, to, &mut budget, &mut found);
                        return Ok(found);
                    }
                    to.min(memory.tail_from())
                };
                let hole = self.tree()?.read(at, on_disk_to, &mut budget, &mut found)?;
                if overtaken(&locked(&shared.memory), at) {
                    continue 'again;
                }
                if let Some(hole) = hole {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("entry {hole} of the log is missing or damaged; the node must stop"),
                    ));
                }
                at = found.last().map_or(at, |record| record.index + 1);
            }
        }
    }

    fn tree(&self) -> io::Result<Arc<Tree>> {
        let tree = self.inner.shared.tree.read().unwrap_or_else(PoisonError::into_inner);
        tree.clone().ok_or_else(|| Failure::closed().error())
    }

    /// The vote that was saved last (and is on stable storage).
    pub fn vote(&self) -> Option<VoteRecord> {
        locked(&self.inner.shared.memory).vote
    }

    /// Up to where the log is purged.
    pub fn purged(&self) -> Option<Position> {
        locked(&self.inner.shared.memory).purged
    }

    /// The last entry; without entries what was purged last.
    pub fn last(&self) -> Option<Position> {
        locked(&self.inner.shared.memory).last
    }

    /// What [`Log::save_committed`] said last.
    pub fn committed(&self) -> Option<Position> {
        locked(&self.inner.shared.memory).committed
    }

    /// About how many bytes of log come after `index` (to within 64 KiB).
    pub fn bytes_since(&self, index: u64) -> u64 {
        locked(&self.inner.shared.memory).bytes_since(index)
    }

    /// The bytes of the log's files.
    pub fn disk_bytes(&self) -> u64 {
        directory_bytes(&layout::log(&self.inner.dir))
    }

    /// Whether a snapshot of `bytes` fits on the disk. Asks the system: not on the hot path.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.inner.shared.space.fits(bytes)
    }

    /// Whether there is room on the disk for writes, as of a moment ago.
    pub fn free_space_ok(&self) -> bool {
        self.inner.shared.space.ok()
    }

    /// Finishes everything queued, syncs, writes the mark and lets go of the files. Later calls fail; closing again is
    /// nothing.
    ///
    /// # Errors
    /// What failed, now or before.
    pub fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

impl Inner {
    fn close(&self) -> io::Result<()> {
        let Some(Threads { writer, mark, stop }) = locked(&self.threads).take() else { return Ok(()) };
        let shared = &self.shared;
        shared.queue.close();
        stop.signal();
        if writer.thread().id() == thread::current().id() {
            // The last handle went with a callback: the writer ends by itself, and drops the files.
            shared.tree.write().unwrap_or_else(PoisonError::into_inner).take();
            return Ok(());
        }
        // Both catch their own panics.
        let _ = (writer.join(), mark.join());
        let failed = shared.queue.failure().filter(|failure| !failure.is_close());
        let marked = if failed.is_none() { shared.marker.write_pending() } else { Ok(()) };
        let tree = shared.tree.write().unwrap_or_else(PoisonError::into_inner).take();
        // `None`: a reader still has it, and drops it.
        let closed = tree.and_then(Arc::into_inner).map_or(Ok(()), Tree::close);
        match failed {
            Some(failure) => Err(failure.error()),
            None => marked.and(closed),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the log did not close cleanly");
        }
    }
}

/// Whether the log is to be created. Leaves the format file in state `creating` if so.
fn prepare(dir: &Path, incarnation: Uuid) -> Result<bool, StoreError> {
    files::create_dir(dir)?;
    let found = Format::read(dir)?;
    match found {
        Some(format) if format.incarnation != incarnation => {
            let (path, found) = (layout::format(dir), format.incarnation);
            Err(StoreError::OtherIncarnation { path, found, expected: incarnation })
        }
        Some(Format { stage: Stage::Ready, .. }) => Ok(false),
        Some(Format { stage: Stage::Creating, .. }) => {
            // Nothing was ever promised with what is there.
            for path in [layout::log(dir), layout::vote(dir), layout::mark(dir)] {
                files::remove(&path)?;
            }
            Ok(true)
        }
        None => {
            // The identity file comes with a format file; without an identity a log may be made in an empty place.
            let path = layout::identity(dir);
            let evidence = if path.exists() { Some(path) } else { layout::leftover(dir)? };
            if let Some(evidence) = evidence {
                let why = format!("{} is there", evidence.display());
                return Err(StoreError::Missing { path: layout::format(dir), why });
            }
            Format { stage: Stage::Creating, incarnation }.write(dir)?;
            Ok(true)
        }
    }
}

/// The bytes of the files below a directory; what vanishes meanwhile does not count.
fn directory_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => directory_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Tells the mark's thread to end.
#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn signal(&self) {
        *locked(&self.stopped) = true;
        self.changed.notify_all();
    }

    /// Waits; true when it is time to end.
    fn wait(&self, time: Duration) -> bool {
        let guard = locked(&self.stopped);
        let waited = self.changed.wait_timeout_while(guard, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Threads {
    fn start(shared: &Arc<Shared>, writer: Writer) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let mark = {
            let (shared, stop) = (shared.clone(), stop.clone());
            thread::Builder::new().name("log mark".into()).spawn(move || keep_mark(&shared, &stop))?
        };
        let writer = thread::Builder::new().name("log writer".into()).spawn(move || writer.run())?;
        Ok(Self { writer, mark, stop })
    }
}

/// The mark's thread.
fn keep_mark(shared: &Shared, stop: &Stop) {
    while !stop.wait(MARK_EVERY) {
        shared.queue.nudge();
        shared.space.check();
        if let Err(error) = shared.marker.write_pending() {
            tracing::error!(%error, "the log's mark cannot be written; the node must stop");
            let failure = Failure::new(&error);
            // The writer sees the failure at its next step; who waits in the queue hears it now.
            for op in shared.queue.fail(failure.clone()) {
                if let Op::Append { done, .. }
                | Op::Vote { done, .. }
                | Op::Truncate { done, .. }
                | Op::Purge { done, .. } = op
                {
                    done(Err(failure.error()));
                }
            }
            return;
        }
    }
}
