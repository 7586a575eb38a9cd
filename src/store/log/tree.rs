//! The one file that names sled.
//!
//! Plain inserts and removes, no batches and no transactions. Everything that goes into sled is guarded: it panics on
//! much of what a damaged file can contain, and a panic here is an error like any other.

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

use super::{
    Record,
    memory::Budget,
    record::{self, Assembly, Key},
};
use crate::store::{
    error::StoreError,
    files::{self, Malformed, SyncTarget, Syncer},
};

/// How long to wait for sled's own threads to let go of the file: they do so a moment after the database is dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// sled cleans up in the background every so often: for half of this time it moves live pages, and then it syncs.
const HOUSEKEEPING_MS: u64 = 200;

/// sled's log is made of segments of this size, and a segment that is free is written anew, in place.
///
/// sled takes for durable what it only gave to the kernel. So it frees a segment once its pages are copied further on, and
/// writes it anew while the copies are not on stable storage. Written in place it is there at once; the copies, in a part of
/// the file that is new, are there only after our sync. A power cut between the two loses both, and with the pages every
/// entry in them: seen in 3 of 4 runs of the power cut of all nodes under load, with sled's own 512 KiB and one sync for all that was queued.
///
/// A segment that was freed is written anew only after one more whole segment was begun and filled. So nothing is lost
/// as long as our sync comes at least once in a segment's worth of sled's writing: hence large segments, and
/// [`SYNC_EVERY_BYTES`].
const SEGMENT_BYTES: usize = 8 << 20;
/// So many bytes go in at most without a sync. sled writes more than goes in, as it writes whole pages anew; a 32nd of a
/// segment leaves room for that.
const SYNC_EVERY_BYTES: u64 = SEGMENT_BYTES as u64 / 32;
/// What an insert or a removal counts besides its value: a share of the page that is written anew.
const COST_BYTES: u64 = 512;

/// A sled database, with a descriptor of our own to its file, because sled's own flush does not reach the disk.
pub(super) struct Tree {
    db: sled::Db,
    file: File,
    dir: PathBuf,
    group: u32,
    syncer: Arc<dyn Syncer>,
    /// Bytes that went in since the last sync.
    unsynced: AtomicU64,
}

thread_local! {
    /// This thread is inside of sled: a panic now becomes an error, and is reported as one.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics that are caught here off the terminal: what they mean is said in a sentence by whoever gets the error.
fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                report(info);
            }
        }));
    });
}

/// Turns a panic into an error.
fn guarded<T>(what: &str, run: impl FnOnce() -> sled::Result<T>) -> io::Result<T> {
    silence_guarded_panics();
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(false);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(e))) => Err(e),
        Ok(Err(e)) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("the log's database cannot {what}: {e}")))
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            // Its messages hold whole pages.
            let text: String = text.chars().take(200).collect();
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the log's database cannot {what}: {text}"),
            ))
        }
    }
}

impl Tree {
    /// Makes an empty database, durable down to its name.
    pub(super) fn create(
        dir: &Path,
        cache: u64,
        group: u32,
        syncer: Arc<dyn Syncer>,
    ) -> Result<Self, StoreError> {
        files::create_dir(dir)?;
        let tree = Self::open_database(dir, cache, group, syncer)?;
        tree.sync().map_err(StoreError::io("sync", dir))?;
        for name in ["conf", "db", "blobs"] {
            let path = dir.join(name);
            File::open(&path).and_then(|f| f.sync_all()).map_err(StoreError::io("sync", &path))?;
        }
        files::sync_dir(dir)?;
        Ok(tree)
    }

    /// Opens the database and makes everything in it durable: a process that was killed leaves much in the page cache.
    pub(super) fn open(
        dir: &Path,
        cache: u64,
        group: u32,
        syncer: Arc<dyn Syncer>,
    ) -> Result<Self, StoreError> {
        for name in ["conf", "db"] {
            let path = dir.join(name);
            if !path.is_file() {
                return Err(StoreError::Missing { path, why: "the directory holds a log".into() });
            }
        }
        let tree = Self::open_database(dir, cache, group, syncer)?;
        tree.sync().map_err(StoreError::io("sync", dir))?;
        files::sync_dir(dir)?;
        Ok(tree)
    }

    fn open_database(
        dir: &Path,
        cache: u64,
        group: u32,
        syncer: Arc<dyn Syncer>,
    ) -> Result<Self, StoreError> {
        let path = dir.join("db");
        wait_for_lock(&path)?;
        remove_unfinished(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(cache)
            .flush_every_ms(Some(HOUSEKEEPING_MS));
        let db = guarded("be opened", || config.open()).map_err(|e| {
            if e.to_string().contains("could not acquire lock") {
                in_use(dir)
            } else if e.kind() == io::ErrorKind::InvalidData {
                StoreError::damaged(dir, e.to_string())
            } else {
                StoreError::Io { doing: "open the log's database in", path: dir.to_owned(), source: e }
            }
        })?;
        let file =
            File::options().write(true).read(true).open(&path).map_err(StoreError::io("open", &path))?;
        Ok(Self { db, file, dir: dir.to_owned(), group, syncer, unsynced: AtomicU64::new(0) })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn group(&self) -> u32 {
        self.group
    }

    pub(super) fn insert(&self, index: u64, part: u16, value: &[u8]) -> io::Result<()> {
        debug_assert!(
            value.len() <= record::PART_BYTES,
            "larger values go to blob files, which are never synced"
        );
        guarded("take an entry", || self.db.insert(record::key(self.group, index, part), value))?;
        self.wrote(value.len() as u64)
    }

    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        guarded("remove an entry", || self.db.remove(key))?;
        self.wrote(0)
    }

    /// Syncs in between if much went in. Only the writer, or who opens the log, writes: nobody else counts meanwhile.
    fn wrote(&self, bytes: u64) -> io::Result<()> {
        let so_far = self.unsynced.fetch_add(bytes + COST_BYTES, Ordering::Relaxed) + bytes + COST_BYTES;
        if so_far < SYNC_EVERY_BYTES { Ok(()) } else { self.sync() }
    }

    /// Up to `limit` keys of the indexes `from..to`, from the front or from the back.
    pub(super) fn keys(
        &self,
        from: u64,
        to: u64,
        limit: usize,
        backward: bool,
    ) -> io::Result<Vec<sled::IVec>> {
        let range = self.bounds(from, to);
        guarded("list its entries", || {
            let mut keys = self.db.range(range).keys();
            let mut found = Vec::new();
            while found.len() < limit {
                match if backward { keys.next_back() } else { keys.next() } {
                    Some(key) => found.push(key?),
                    None => break,
                }
            }
            Ok(found)
        })
    }

    /// Calls `visit` with index, part and value of everything in the indexes `from..to`, in order, until it says false.
    pub(super) fn scan(
        &self,
        from: u64,
        to: u64,
        mut visit: impl FnMut(u64, u16, &[u8]) -> bool,
    ) -> io::Result<()> {
        let range = self.bounds(from, to);
        guarded("read its entries", || {
            for pair in self.db.range(range) {
                let (key, value) = pair?;
                let Some((index, part)) = record::parse_key(self.group, &key) else {
                    return Err(sled::Error::ReportableBug("a key that is no key of an entry".into()));
                };
                if !visit(index, part, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Appends entries `from..to` to `out` until the budget is spent. Says at which index one is missing or not whole.
    pub(super) fn read(
        &self,
        from: u64,
        to: u64,
        budget: &mut Budget,
        out: &mut Vec<Record>,
    ) -> io::Result<Option<u64>> {
        let mut expected = from;
        let mut assembly: Option<Assembly> = None;
        let mut hole = false;
        self.scan(from, to, |index, part, value| {
            if let Some(whole) = assembly.take_if(|_| index != expected) {
                let Ok(record) = whole.finish() else {
                    hole = true;
                    return false;
                };
                if !budget.admit(&record) {
                    return false;
                }
                out.push(record);
                expected += 1;
                if budget.spent {
                    return false;
                }
            }
            hole = index != expected
                || match &mut assembly {
                    Some(assembly) => assembly.push(part, value).is_err(),
                    None => match Assembly::begin(self.group, index, value) {
                        Ok(begun) if part == 0 => {
                            assembly = Some(begun);
                            false
                        }
                        _ => true,
                    },
                };
            !hole
        })?;
        if let Some(last) = assembly {
            match last.finish() {
                Ok(record) if budget.admit(&record) => {
                    out.push(record);
                    expected += 1;
                }
                Ok(_) => {}
                Err(Malformed) => hole = true,
            }
        }
        let short = expected < to && !budget.spent;
        Ok((hole || short).then_some(expected))
    }

    /// Everything so far is on stable storage when this returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.unsynced.store(0, Ordering::Relaxed);
        guarded("flush", || self.db.flush())?;
        self.syncer.sync(&self.file, SyncTarget::Log)
    }

    fn bounds(&self, from: u64, to: u64) -> std::ops::Range<Key> {
        record::key(self.group, from, 0)..record::key(self.group, to, 0)
    }

    /// Closes the database and waits until its file is free for the next one.
    pub(super) fn close(self) -> io::Result<()> {
        let path = self.dir.join("db");
        guarded("close", move || {
            drop(self.db);
            Ok(())
        })?;
        wait_for_lock(&path).map_err(Into::into)
    }
}

fn in_use(dir: &Path) -> StoreError {
    StoreError::InUse { dir: dir.parent().unwrap_or(dir).to_owned() }
}

/// Waits until nobody has sled's file locked.
fn wait_for_lock(db: &Path) -> Result<(), StoreError> {
    let Ok(file) = File::open(db) else { return Ok(()) };
    let mut waited = Duration::ZERO;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if waited < LOCK_PATIENCE => {
                thread::sleep(LOCK_POLL);
                waited += LOCK_POLL;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(db.parent().unwrap_or(db))),
            // A filesystem without locks: sled's own attempt says so.
            Err(_) => return Ok(()),
        }
    }
}

/// Removes an index snapshot of sled's that a crash left unfinished: it would take it for its newest, and damaged.
fn remove_unfinished(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %name, "removing an unfinished index of the log's database");
            files::remove(&entry.path())?;
        }
    }
    Ok(())
}
