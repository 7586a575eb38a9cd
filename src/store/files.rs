//! Small files that must survive a power cut: replaced whole, or written in two slots.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::StoreError;

/// Makes directory entries durable: a file that was created or renamed is there after a power cut only then.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a directory, durably, with its parents.
pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    sync_dir(dir)?;
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

/// Puts `content` in the place of a file: after a crash at any point the old or the new one is there, whole.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Bytes of one slot; the slots lie apart so that no torn sector spans both.
const SLOT: u64 = 4096;
const MAGIC: &[u8; 4] = b"LDR2";
const FORMAT: u32 = 1;
/// magic, format, kind, sequence, length
const HEAD: usize = 4 + 4 + 4 + 8 + 4;

/// A small record in two checksummed slots, written in turn: a write that is torn leaves the one before.
#[derive(Debug)]
pub(super) struct TwoSlots {
    path: PathBuf,
    file: File,
    kind: [u8; 4],
    sequence: u64,
}

impl TwoSlots {
    /// Opens or creates the file; the newest whole record, if there is one. `kind` tells files from one another.
    pub(super) fn open(path: PathBuf, kind: [u8; 4]) -> Result<(Self, Option<Vec<u8>>), StoreError> {
        let what = path.display().to_string();
        let existed = path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(StoreError::io(&what))?;
        if !existed && let Some(dir) = path.parent() {
            sync_dir(dir).map_err(StoreError::io(&what))?;
        }
        let mut newest: Option<(u64, Vec<u8>)> = None;
        let mut written = false;
        for slot in 0..2 {
            match read_slot(&file, slot, kind, &what)? {
                Slot::Empty => {}
                Slot::Torn => written = true,
                Slot::Whole(sequence, record) => {
                    written = true;
                    if newest.as_ref().is_none_or(|(s, _)| *s < sequence) {
                        newest = Some((sequence, record));
                    }
                }
            }
        }
        // The first write ever may be torn, but then nothing was answered on its strength.
        let both_touched = file.metadata().map_err(StoreError::io(&what))?.len() > SLOT;
        if newest.is_none() && written && both_touched {
            return Err(StoreError::damaged(what, "neither of its two records is whole"));
        }
        let (sequence, record) = newest.map_or((0, None), |(s, r)| (s, Some(r)));
        Ok((Self { path, file, kind, sequence }, record))
    }

    /// Writes a record and syncs it.
    pub(super) fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let mut bytes = Vec::with_capacity(HEAD + record.len() + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_be_bytes());
        bytes.extend_from_slice(&self.kind);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(record.len()).map_err(io::Error::other)?.to_be_bytes());
        bytes.extend_from_slice(record);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
        debug_assert!(bytes.len() as u64 <= SLOT, "{} holds small records", self.path.display());
        self.file.write_all_at(&bytes, (sequence % 2) * SLOT)?;
        self.file.sync_all()?;
        self.sequence = sequence;
        Ok(())
    }
}

enum Slot {
    Empty,
    Torn,
    Whole(u64, Vec<u8>),
}

fn read_slot(file: &File, slot: u64, kind: [u8; 4], what: &str) -> Result<Slot, StoreError> {
    let mut bytes = vec![0; SLOT as usize];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], slot * SLOT + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) => return Err(StoreError::io(what)(e)),
        }
    }
    bytes.truncate(read);
    if bytes.iter().all(|b| *b == 0) {
        return Ok(Slot::Empty);
    }
    let number = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let whole = || -> Option<(u32, u64, Vec<u8>)> {
        let length = number(20)? as usize;
        let end = HEAD.checked_add(length)?;
        let crc = number(end)?;
        let sequence = u64::from_be_bytes(bytes.get(12..20)?.try_into().ok()?);
        let intact = &bytes[..4] == MAGIC && bytes[8..12] == kind && crc32c::crc32c(&bytes[..end]) == crc;
        intact.then(|| (number(4).unwrap_or(0), sequence, bytes[HEAD..end].to_vec()))
    };
    match whole() {
        None => Ok(Slot::Torn),
        Some((format, ..)) if format > FORMAT => {
            Err(StoreError::NewerFormat { what: what.into(), found: format, known: FORMAT })
        }
        Some((_, sequence, record)) => Ok(Slot::Whole(sequence, record)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts_and_a_torn_one_leaves_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let (mut slots, none) = TwoSlots::open(path.clone(), *b"test").unwrap();
        assert_eq!(none, None);
        slots.write(b"one").unwrap();
        slots.write(b"two").unwrap();
        let reopened = |path: &Path| TwoSlots::open(path.into(), *b"test").map(|(_, record)| record);
        assert_eq!(reopened(&path).unwrap(), Some(b"two".to_vec()));

        let whole = fs::read(&path).unwrap();
        // The second record is sequence 2, in slot 0: every bit of it that flips brings back the first.
        for at in 0..HEAD + 3 + 4 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(reopened(&path).unwrap(), Some(b"one".to_vec()), "byte {at}");
        }
        let mut both = whole;
        both[5] ^= 1;
        both[SLOT as usize + 5] ^= 1;
        fs::write(&path, both).unwrap();
        assert!(reopened(&path).unwrap_err().to_string().contains("damaged"));
    }
}
