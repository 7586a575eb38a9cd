//! sled, and nothing of it beyond this file.
//!
//! sled can panic on a damaged file, on opening and later: every call into it is caught, and becomes an error.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::{LogOptions, Record, Syncer, mark::Mark, memory::Memory, record};
use crate::store::{StoreError, disk};

/// Below every group's keys: whose log this is.
const OWNER_KEY: &[u8] = b"\xff\xff\xff\xffowner";
const FORMAT: u32 = 1;
/// How often sled collects garbage. The sync that counts is ours.
const FLUSH_EVERY_MS: u64 = 500;

pub(super) struct Tree {
    db: sled::Db,
    /// Our own descriptor of sled's file: its flush does not survive a power cut, a sync of this does.
    file: File,
    syncer: Syncer,
    group: u32,
    dir: PathBuf,
}

/// Runs a call into sled; a panic of it becomes an error.
fn caught<T>(call: impl FnOnce() -> sled::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            Err(io::Error::other(format!("sled panicked: {}", why.unwrap_or_default())))
        }
    }
}

impl Tree {
    pub(super) fn open(dir: &Path, options: &LogOptions) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.sled_cache_bytes)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = caught(|| config.open()).map_err(|error| {
            if error.to_string().contains("could not acquire lock") {
                StoreError::InUse { path: options.dir.clone() }
            } else {
                StoreError::damaged(format!("the log in {}", dir.display()), error.to_string())
            }
        })?;
        let path = dir.join("db");
        let file = File::open(&path).map_err(StoreError::io(path.display().to_string()))?;
        let tree =
            Self { db, file, syncer: options.syncer.clone(), group: options.group, dir: dir.to_path_buf() };
        tree.check_owner(options)?;
        Ok(tree)
    }

    fn failed(&self, error: io::Error) -> StoreError {
        StoreError::damaged(format!("the log in {}", self.dir.display()), error.to_string())
    }

    /// The log repeats the incarnation: a log under another's identity is not believed.
    fn check_owner(&self, options: &LogOptions) -> Result<(), StoreError> {
        let owner = caught(|| self.db.get(OWNER_KEY)).map_err(|e| self.failed(e))?;
        let Some(owner) = owner else {
            let mut owner = FORMAT.to_be_bytes().to_vec();
            owner.extend_from_slice(options.incarnation.as_bytes());
            caught(|| self.db.insert(OWNER_KEY, owner)).map_err(|e| self.failed(e))?;
            self.sync().map_err(|e| self.failed(e))?;
            return super::files::sync_dir(&self.dir).map_err(StoreError::io(self.dir.display().to_string()));
        };
        let (format, incarnation) = owner.split_at(4.min(owner.len()));
        let format = format.try_into().map(u32::from_be_bytes).unwrap_or(u32::MAX);
        if format > FORMAT {
            let what = format!("the log in {}", self.dir.display());
            return Err(StoreError::NewerFormat { what, found: format, known: FORMAT });
        }
        match uuid::Uuid::from_slice(incarnation) {
            Ok(theirs) if theirs == options.incarnation => Ok(()),
            Ok(theirs) => Err(StoreError::Foreign {
                path: self.dir.clone(),
                theirs: format!("incarnation {theirs}"),
                ours: format!("incarnation {}", options.incarnation),
            }),
            Err(error) => Err(self.failed(io::Error::other(error))),
        }
    }

    /// Reads the whole log into `memory`'s bookkeeping, deletes what is purged, and cuts off what is torn, unless it was synced.
    pub(super) fn recover(&self, mark: &Mark, memory: &mut Memory) -> Result<(), StoreError> {
        let first = memory.first();
        self.remove(0, first).map_err(|e| self.failed(e))?;
        let torn = self.walk(first, u64::MAX, |record| {
            memory.push(record);
            memory.inserted(memory.next());
            true
        });
        if let Err(error) = &torn {
            tracing::warn!(%error, from = memory.next(), "the log ends in a torn entry: it is cut off");
        }
        let last = memory.last().or(memory.purged);
        if let Some(synced) = mark.synced
            && last.is_none_or(|last| last.index < synced.index)
        {
            let found = last.map_or("none".to_string(), |at| at.index.to_string());
            return Err(StoreError::Lost { synced: synced.index, found });
        }
        self.remove(memory.next(), u64::MAX).map_err(|e| self.failed(e))?;
        self.sync().map_err(|e| self.failed(e))
    }

    /// Reads entries `from..to`, one after another, until `visit` says stop. An entry that is torn, or a hole, is an error.
    fn walk(&self, from: u64, to: u64, mut visit: impl FnMut(Record) -> bool) -> io::Result<()> {
        let torn = |index: u64, why: record::Torn| {
            io::Error::new(io::ErrorKind::InvalidData, format!("log entry {index} is not whole: {why}"))
        };
        let start = record::key(self.group, from, 0);
        let mut next = from;
        let mut assembly: Option<record::Assembly> = None;
        let mut values = self.db.range(start..);
        loop {
            let value = caught(|| values.next().transpose())?;
            let part =
                value.as_ref().and_then(|(key, value)| Some((record::parse_key(self.group, key)?, value)));
            let continues =
                matches!((&assembly, &part), (Some(a), Some(((index, _), _))) if a.index() == *index);
            if !continues && let Some(whole) = assembly.take() {
                let index = whole.index();
                if !visit(whole.finish().map_err(|why| torn(index, why))?) {
                    return Ok(());
                }
                next = index + 1;
            }
            let Some(((index, part), value)) = part else { return Ok(()) };
            if index >= to {
                return Ok(());
            }
            match &mut assembly {
                Some(assembly) => assembly.push(part, value).map_err(|why| torn(index, why))?,
                None if index != next => {
                    let hole = format!("log entry {next} is missing before entry {index}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, hole));
                }
                None => {
                    assembly =
                        Some(record::Assembly::begin(index, part, value).map_err(|why| torn(index, why))?)
                }
            }
        }
    }

    /// Entries `from..to`, at least one, until `max_bytes` are passed.
    pub(super) fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        self.walk(from, to, |record| {
            if !records.is_empty() && bytes + record.payload.len() > max_bytes {
                return false;
            }
            bytes += record.payload.len();
            records.push(record);
            bytes < max_bytes
        })?;
        if records.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("log entry {from} is missing")));
        }
        Ok(records)
    }

    pub(super) fn insert(&self, record: &Record) -> io::Result<()> {
        for (part, value) in record::parts(record).into_iter().enumerate() {
            let part = u16::try_from(part).map_err(io::Error::other)?;
            caught(|| self.db.insert(record::key(self.group, record.index, part), value))?;
        }
        Ok(())
    }

    /// Deletes the entries `from..to` from the end backward, so that a crash leaves no hole.
    pub(super) fn remove(&self, from: u64, to: u64) -> io::Result<()> {
        let range = record::key(self.group, from, 0)..record::key(self.group, to, 0);
        let mut keys = self.db.range(range).keys();
        while let Some(key) = caught(|| keys.next_back().transpose())? {
            caught(|| self.db.remove(key))?;
        }
        Ok(())
    }

    /// Makes everything inserted and removed so far durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        caught(|| self.db.flush())?;
        (self.syncer)(&self.file)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        disk::bytes_in(&self.dir)
    }
}
