//! Small files that survive a crash at any moment.
//!
//! Two ways, for two needs:
//! - [`replace`]: a new file under a temporary name, synced, renamed over the old one, the directory synced. For what
//!   changes rarely (identity, format).
//! - [`SlotFile`]: two checksummed slots in one file of fixed size, overwritten in place and synced with `fdatasync`,
//!   without a change of metadata. For what changes often (vote, mark). It also works when the disk is full.
//!
//! And [`Decoder`], which reads fields from bytes that may be anything.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::error::StoreError;

/// Which file a sync is for. Tests hold back or fail one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncTarget {
    /// sled's `db` file.
    Log,
    /// The vote file.
    Vote,
    /// The mark file.
    Mark,
}

/// Brings a file's data to stable storage. One implementation for production, others to inject faults.
pub trait Syncer: Send + Sync {
    /// Returns once everything written to `file` so far is on stable storage.
    ///
    /// # Errors
    /// What the system says. It is never retried: after a failed sync nobody knows what the disk holds.
    fn sync(&self, file: &File, target: SyncTarget) -> io::Result<()>;
}

/// `fdatasync`.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSyncer;

impl Syncer for FileSyncer {
    fn sync(&self, file: &File, _target: SyncTarget) -> io::Result<()> {
        file.sync_data()
    }
}

/// Syncs a directory: the names in it.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(StoreError::io("sync the directory", dir))
}

/// Creates a directory and what is above it, and makes its name durable.
pub(crate) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.exists() {
        create_dir(parent)?;
    }
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StoreError::Io { doing: "create the directory", path: dir.to_owned(), source: e });
        }
        _ => {}
    }
    sync_dir(parent)
}

/// The temporary name that [`replace`] uses.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Replaces a file's content, whole or not at all, durably.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let temp = temporary(path);
    let mut file = File::create(&temp).map_err(StoreError::io("create", &temp))?;
    file.write_all(content).map_err(StoreError::io("write", &temp))?;
    file.sync_all().map_err(StoreError::io("sync", &temp))?;
    fs::rename(&temp, path).map_err(StoreError::io("rename to", path))?;
    match path.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Reads a small file. `None` if there is none; more than `limit` bytes are damage.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let length = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::Io { doing: "look at", path: path.to_owned(), source: e }),
    };
    if length > limit {
        return Err(StoreError::damaged(
            path,
            format!("it has {length} bytes, and at most {limit} are possible"),
        ));
    }
    fs::read(path).map(Some).map_err(StoreError::io("read", path))
}

/// Removes a file or a directory tree, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { doing: "remove", path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Reads fields, big-endian, from bytes that may be anything. Every read checks the length first.
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

/// The bytes end early, or a field has no meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Malformed;

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A flag: 0 or 1, nothing else.
    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// How far apart the slots are: a block of the disk each, so that one bad block does not take both.
const SLOT_STRIDE: u64 = 4096;
/// Magic, format, sequence, length.
const SLOT_HEADER: usize = 8 + 4 + 8 + 4;
/// The most bytes of payload.
const SLOT_PAYLOAD: usize = 512;

/// A record in two checksummed slots.
///
/// A write that is cut off damages one slot, and the other one holds what was before. [`SlotFile::write_both`] writes
/// one slot, syncs, and then the other: afterwards the record also survives the damage of either slot.
pub(crate) struct SlotFile {
    file: File,
    path: PathBuf,
    magic: [u8; 8],
    format: u32,
    sequence: u64,
    next_slot: u64,
    syncer: Arc<dyn Syncer>,
    target: SyncTarget,
}

/// What kind of slot file.
#[derive(Clone, Copy)]
pub(crate) struct SlotKind {
    pub(crate) magic: [u8; 8],
    pub(crate) format: u32,
    pub(crate) target: SyncTarget,
}

impl SlotFile {
    /// A new file with this record in both slots. The caller syncs the directory.
    pub(crate) fn create(
        path: &Path,
        kind: SlotKind,
        syncer: Arc<dyn Syncer>,
        payload: &[u8],
    ) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(StoreError::io("create", path))?;
        // Real zeros, not a hole: later writes need no new block.
        file.write_all_at(&[0; 2 * SLOT_STRIDE as usize], 0).map_err(StoreError::io("write", path))?;
        file.sync_all().map_err(StoreError::io("sync", path))?;
        let mut slots = Self {
            file,
            path: path.to_owned(),
            magic: kind.magic,
            format: kind.format,
            sequence: 0,
            next_slot: 0,
            syncer,
            target: kind.target,
        };
        slots.write_both(payload).map_err(StoreError::io("write", path))?;
        Ok(slots)
    }

    /// Opens a file and finds its newest whole record. A damaged slot is mended from the other one.
    pub(crate) fn open(
        path: &Path,
        kind: SlotKind,
        syncer: Arc<dyn Syncer>,
    ) -> Result<(Self, Vec<u8>), StoreError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing {
                    path: path.to_owned(),
                    why: "the directory holds a log".into(),
                });
            }
            Err(e) => return Err(StoreError::Io { doing: "open", path: path.to_owned(), source: e }),
        };
        let mut found: [Option<(u64, Vec<u8>)>; 2] = [None, None];
        for (slot, found) in (0_u64..).zip(&mut found) {
            let mut bytes = [0; SLOT_HEADER + SLOT_PAYLOAD + 4];
            let read =
                read_up_to(&file, &mut bytes, slot * SLOT_STRIDE).map_err(StoreError::io("read", path))?;
            *found = decode_slot(path, &bytes[..read], kind)?;
        }
        let whole = found.iter().flatten().count();
        let newest = match &found {
            [Some(a), Some(b)] if b.0 > a.0 => 1,
            [Some(_), _] => 0,
            [None, Some(_)] => 1,
            [None, None] => {
                return Err(StoreError::damaged(path, "neither of its two slots has a valid checksum"));
            }
        };
        let (sequence, payload) =
            found[newest].take().ok_or_else(|| StoreError::damaged(path, "no slot is readable"))?;
        let next_slot = 1 - newest as u64;
        let (magic, format, target) = (kind.magic, kind.format, kind.target);
        let mut slots =
            Self { file, path: path.to_owned(), magic, format, sequence, next_slot, syncer, target };
        if whole < 2 {
            tracing::warn!(path = %path.display(), "one of two slots is damaged; mending it from the other");
            slots.write_both(&payload).map_err(StoreError::io("write", path))?;
        } else {
            // A process that was killed may have left the record in the page cache only.
            slots.sync().map_err(StoreError::io("sync", path))?;
        }
        Ok((slots, payload))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the record into the older slot and syncs.
    pub(crate) fn write_next(&mut self, payload: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        self.write_slot(self.next_slot, payload)?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }

    /// Writes the record into the older slot, syncs, then into the other one, and syncs.
    pub(crate) fn write_both(&mut self, payload: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        self.write_slot(self.next_slot, payload)?;
        self.write_slot(1 - self.next_slot, payload)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncer.sync(&self.file, self.target)
    }

    fn write_slot(&self, slot: u64, payload: &[u8]) -> io::Result<()> {
        if payload.len() > SLOT_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record does not fit into its slot"));
        }
        let mut bytes = Vec::with_capacity(SLOT_HEADER + payload.len() + 4);
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.format.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(payload);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        self.file.write_all_at(&bytes, slot * SLOT_STRIDE)?;
        self.sync()
    }
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// `None`: not whole. A whole slot of a later format is an error.
fn decode_slot(path: &Path, bytes: &[u8], kind: SlotKind) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let parse = || -> Result<Option<(u32, u64, Vec<u8>)>, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let magic: [u8; 8] = decoder.array()?;
        let format = decoder.u32()?;
        let sequence = decoder.u64()?;
        let length = decoder.u32()? as usize;
        if magic != kind.magic || length > SLOT_PAYLOAD {
            return Ok(None);
        }
        let payload = decoder.bytes(length)?;
        let whole = decoder.u32()? == crc32c::crc32c(&bytes[..SLOT_HEADER + length]);
        Ok(whole.then(|| (format, sequence, payload.to_vec())))
    };
    match parse() {
        Ok(Some((format, ..))) if format > kind.format => {
            Err(StoreError::NewerFormat { path: path.to_owned(), found: format, known: kind.format })
        }
        Ok(Some((_, sequence, payload))) => Ok(Some((sequence, payload))),
        Ok(None) | Err(Malformed) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: SlotKind = SlotKind { magic: *b"LRDRTEST", format: 1, target: SyncTarget::Vote };

    fn syncer() -> Arc<dyn Syncer> {
        Arc::new(FileSyncer)
    }

    #[test]
    fn a_slot_file_reads_back_its_newest_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let mut slots = SlotFile::create(&path, KIND, syncer(), b"zero").unwrap();
        for i in 1..=5_u8 {
            slots.write_next(&[i]).unwrap();
            assert_eq!(SlotFile::open(&path, KIND, syncer()).unwrap().1, [i]);
        }
    }

    #[test]
    fn after_write_both_either_slot_may_be_damaged_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let mut slots = SlotFile::create(&path, KIND, syncer(), b"old").unwrap();
        slots.write_next(b"older").unwrap();
        slots.write_both(b"the vote").unwrap();
        let whole = fs::read(&path).unwrap();
        for slot in 0..2 {
            for at in 0..SLOT_HEADER + 8 + 4 {
                let mut bytes = whole.clone();
                bytes[slot * SLOT_STRIDE as usize + at] ^= 0x10;
                fs::write(&path, &bytes).unwrap();
                assert_eq!(
                    SlotFile::open(&path, KIND, syncer()).unwrap().1,
                    b"the vote",
                    "slot {slot} byte {at}"
                );
                // It was mended.
                let mended = fs::read(&path).unwrap();
                let other = (1 - slot) * SLOT_STRIDE as usize;
                assert_eq!(
                    mended[slot * SLOT_STRIDE as usize..][..SLOT_HEADER + 12],
                    mended[other..][..SLOT_HEADER + 12]
                );
            }
        }
    }

    #[test]
    fn both_slots_damaged_empty_or_short_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        drop(SlotFile::create(&path, KIND, syncer(), b"x").unwrap());
        let mut bytes = fs::read(&path).unwrap();
        bytes[3] ^= 1;
        bytes[SLOT_STRIDE as usize + 3] ^= 1;
        for content in [&bytes[..], b"", &[0; 8192], b"short"] {
            fs::write(&path, content).unwrap();
            assert!(matches!(SlotFile::open(&path, KIND, syncer()), Err(StoreError::Damaged { .. })));
        }
    }

    #[test]
    fn a_later_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        drop(SlotFile::create(&path, SlotKind { format: 9, ..KIND }, syncer(), b"x").unwrap());
        let error = SlotFile::open(&path, KIND, syncer()).err().unwrap();
        assert!(matches!(error, StoreError::NewerFormat { found: 9, known: 1, .. }), "{error}");
    }
}
