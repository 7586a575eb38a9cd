//! Snapshot files: the state at a position of the log, as a sequence of sections that the store does not look into.
//!
//! # Flow
//!
//! Making: [`Snapshots::begin`] -> [`SnapshotWriter::write_section`]... -> [`SnapshotWriter::finish`]. Sending:
//! [`SnapshotFile::raw_blocks`], and the [`SnapshotEnd`]. Receiving: `begin` -> [`SnapshotWriter::write_raw_block`]... ->
//! [`SnapshotWriter::finish_received`]. Starting: [`Snapshots::newest`] -> [`SnapshotFile::sections`].
//!
//! # Format 1
//!
//! Big-endian throughout.
//!
//! | part | bytes | field |
//! |---|---|---|
//! | header | 8 | magic `LRDRSNAP` |
//! | | 4 | format |
//! | | 4 | bytes of the rest of the header, checksum not counted |
//! | | 16, 16, 4 | cluster id, incarnation, group |
//! | | 17 | last applied position: 1, term, index; or 17 zeros |
//! | | 17 | position of the membership: the same |
//! | | 4, ... | length of the membership, and its bytes |
//! | | 4 | CRC32C of the header so far |
//! | block | 4 | length of its compressed bytes, more than 0 |
//! | | 4 | length uncompressed |
//! | | 4 | CRC32C of the two lengths and the compressed bytes |
//! | | ... | LZ4 block: sections, each its length in 4 bytes and its bytes |
//! | end | 4 | 0 |
//! | | 8, 8 | number of blocks, bytes uncompressed |
//! | | 4 | CRC32C over the blocks' CRCs in order |
//! | | 4 | CRC32C of the end so far |
//!
//! # Invariants
//!
//! - A file under its final name is whole: it was synced before it was renamed.
//! - A damaged newest snapshot is an error, never "none", because the log before it is gone.
//! - Lengths are checked before anything is allocated.
//!
//! # What is not here
//!
//! What a section means, its version and its own checksum (`state`), and when snapshots are made (`raft`).

mod format;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use uuid::Uuid;

pub use self::{
    format::{MAX_BLOCK_BYTES, MAX_MEMBERSHIP_BYTES, MAX_SECTION_BYTES},
    read::{RawBlocks, Sections, SnapshotFile},
    write::SnapshotWriter,
};
use super::{error::StoreError, files, identity::ClusterId, layout, log::Position};

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The cluster.
    pub cluster: ClusterId,
    /// On whose disk it is.
    pub incarnation: Uuid,
    /// The Raft group.
    pub group: u32,
    /// The last entry that is in it.
    pub last: Option<Position>,
    /// The entry that its membership comes from.
    pub membership_at: Option<Position>,
    /// The membership, encoded; at most [`MAX_MEMBERSHIP_BYTES`].
    pub membership: Bytes,
}

/// What the end of a snapshot says about its blocks: the same on every node that has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotEnd {
    /// How many.
    pub blocks: u64,
    /// Their bytes, uncompressed.
    pub uncompressed: u64,
    /// CRC32C over their CRCs in order.
    pub checksum: u32,
}

/// The snapshots of a data directory. Clones are the same.
#[derive(Debug, Clone)]
pub struct Snapshots {
    dir: PathBuf,
    incarnation: Uuid,
    group: u32,
    /// Numbers temporary files.
    counter: Arc<AtomicU64>,
    /// Held while files are renamed, removed, or found by name: what was found must be there when it is opened.
    names: Arc<Mutex<Names>>,
}

/// Whether there may be new ones.
#[derive(Debug, Default)]
struct Names {
    closed: bool,
}

const SUFFIX: &str = ".snap";
const TEMPORARY: &str = ".tmp";

impl Snapshots {
    /// Opens the snapshots of a data directory (not their own), and removes unfinished ones.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: &Path, incarnation: Uuid, group: u32) -> Result<Self, StoreError> {
        let dir = layout::snapshots(dir);
        files::create_dir(&dir)?;
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let path = entry.map_err(StoreError::io("list", &dir))?.path();
            if path.as_os_str().to_string_lossy().ends_with(TEMPORARY) {
                files::remove(&path)?;
            }
        }
        Ok(Self { dir, incarnation, group, counter: Arc::default(), names: Arc::default() })
    }

    /// The newest snapshot of whatever group below a directory, as [`Snapshots::newest`].
    pub(super) fn find(dir: &Path, incarnation: Uuid) -> Result<Option<SnapshotFile>, StoreError> {
        let snapshots = layout::snapshots(dir);
        if !snapshots.exists() {
            return Ok(None);
        }
        let Some(path) = list(&snapshots, "")?.pop() else { return Ok(None) };
        let file = SnapshotFile::open(&path)?;
        check_incarnation(&path, file.meta(), incarnation)?;
        Ok(Some(file))
    }

    /// Begins a snapshot. It is nothing until it is finished.
    ///
    /// # Errors
    /// Of another incarnation or group than this directory's; a membership that is too large; the disk's.
    pub fn begin(&self, meta: SnapshotMeta) -> Result<SnapshotWriter, StoreError> {
        self.check(&self.dir, &meta)?;
        let position = meta.last.unwrap_or_default();
        let name = format!("{:08x}-{:016x}-{:016x}{SUFFIX}", self.group, position.index, position.term);
        let number = self.counter.fetch_add(1, Relaxed);
        let temporary = self.dir.join(format!("{name}.{number}{TEMPORARY}"));
        SnapshotWriter::create(self.clone(), meta, temporary, self.dir.join(name))
    }

    fn check(&self, path: &Path, meta: &SnapshotMeta) -> Result<(), StoreError> {
        check_incarnation(path, meta, self.incarnation)?;
        if meta.group != self.group {
            let why = format!("it is of group {}, not {}", meta.group, self.group);
            return Err(StoreError::damaged(path, why));
        }
        Ok(())
    }

    /// The newest snapshot, its header and its end verified; the blocks between are verified when they are read.
    /// `None`: there never was one.
    ///
    /// # Errors
    /// It is damaged, of another incarnation, or of a later format; the disk's.
    pub fn newest(&self) -> Result<Option<SnapshotFile>, StoreError> {
        let names = self.lock_names();
        let Some(path) = self.list()?.pop() else { return Ok(None) };
        let file = SnapshotFile::open(&path)?;
        drop(names);
        self.check(&path, file.meta())?;
        Ok(Some(file))
    }

    /// No snapshot is finished any more: the directory is about to be another member's. One that is being written, or comes
    /// from a peer at this moment, must not turn up in it.
    pub fn close(&self) {
        self.lock_names().closed = true;
    }

    fn lock_names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of this group, the oldest first.
    fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        list(&self.dir, &format!("{:08x}-", self.group))
    }

    /// Removes everything older than the newest.
    fn remove_older(&self) -> Result<(), StoreError> {
        let mut paths = self.list()?;
        paths.pop();
        paths.iter().try_for_each(|path| match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { doing: "remove", path: path.clone(), source: e })
            }
            _ => Ok(()),
        })
    }
}

/// The snapshots whose names begin so, the oldest first.
fn list(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(SUFFIX) {
            paths.push(entry.path());
        }
    }
    // Names sort like positions.
    paths.sort();
    Ok(paths)
}

fn check_incarnation(path: &Path, meta: &SnapshotMeta, expected: Uuid) -> Result<(), StoreError> {
    if meta.incarnation == expected {
        return Ok(());
    }
    Err(StoreError::OtherIncarnation { path: path.to_owned(), found: meta.incarnation, expected })
}
