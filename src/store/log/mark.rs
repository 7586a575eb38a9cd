//! The vote file and the mark file: two small records outside of sled, which may lose its newest without a word.
//!
//! The **mark** says which entries must be whole at the next start: from `first` to `synced`. It is raised lazily, at
//! most [`MARK_EVERY`] behind the log, by a thread of its own; so what sled loses of the last moment before a crash is
//! not noticed, and everything older is. Before anything in its range is deleted it is changed and synced first
//! (*strict*): lowered before a truncation, moved forward before a purge. So a crash at any step leaves a log that is
//! whole from `first` to `synced`, perhaps with more at both ends.
//!
//! It also carries the committed index, always one whose entry is synced.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use uuid::Uuid;

use super::{Position, VoteRecord, locked};
use crate::store::{
    error::StoreError,
    files::{Decoder, Malformed, SlotFile, SlotKind, SyncTarget, Syncer},
};

/// How far the mark is behind the log at most.
pub(super) const MARK_EVERY: Duration = Duration::from_millis(100);

const MARK: SlotKind = SlotKind { magic: *b"LRDRMARK", format: 1, target: SyncTarget::Mark };
const VOTE: SlotKind = SlotKind { magic: *b"LRDRVOTE", format: 1, target: SyncTarget::Vote };

/// Whose file it is. Both files begin with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) incarnation: Uuid,
    pub(super) group: u32,
}

impl Owner {
    fn encode(self) -> Vec<u8> {
        [&self.incarnation.as_bytes()[..], &self.group.to_be_bytes()].concat()
    }

    /// Takes the owner off the front and compares it.
    fn check(self, decoder: &mut Decoder<'_>, path: &Path) -> Result<(), StoreError> {
        let damaged = |Malformed| malformed(path);
        let found = Uuid::from_bytes(decoder.array().map_err(damaged)?);
        if found != self.incarnation {
            return Err(StoreError::OtherIncarnation {
                path: path.to_owned(),
                found,
                expected: self.incarnation,
            });
        }
        let group = decoder.u32().map_err(damaged)?;
        if group != self.group {
            return Err(StoreError::damaged(path, format!("it is of group {group}, not {}", self.group)));
        }
        Ok(())
    }
}

fn malformed(path: &Path) -> StoreError {
    StoreError::damaged(path, "its record has a valid checksum and no meaning")
}

/// What the mark says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MarkRecord {
    /// The lowest index that is not purged.
    pub(super) first: u64,
    pub(super) purged: Option<Position>,
    /// Everything from `first` up to here was synced.
    pub(super) synced: Option<Position>,
    pub(super) committed: Option<Position>,
}

fn put_position(out: &mut Vec<u8>, position: Option<Position>) {
    let Position { term, index } = position.unwrap_or_default();
    out.push(position.is_some().into());
    out.extend_from_slice(&term.to_be_bytes());
    out.extend_from_slice(&index.to_be_bytes());
}

fn take_position(decoder: &mut Decoder<'_>) -> Result<Option<Position>, Malformed> {
    let is_some = decoder.flag()?;
    let position = Position { term: decoder.u64()?, index: decoder.u64()? };
    Ok(is_some.then_some(position))
}

impl MarkRecord {
    fn encode(self, owner: Owner) -> Vec<u8> {
        let mut out = owner.encode();
        out.extend_from_slice(&self.first.to_be_bytes());
        for position in [self.purged, self.synced, self.committed] {
            put_position(&mut out, position);
        }
        out
    }

    fn decode(mut decoder: Decoder<'_>) -> Result<Self, Malformed> {
        let first = decoder.u64()?;
        let purged = take_position(&mut decoder)?;
        let synced = take_position(&mut decoder)?;
        let committed = take_position(&mut decoder)?;
        decoder.end()?;
        if purged.is_some_and(|p| p.index.checked_add(1) != Some(first)) {
            return Err(Malformed);
        }
        Ok(Self { first, purged, synced, committed })
    }
}

/// The mark file, and what is to be written to it next.
pub(super) struct Marker {
    owner: Owner,
    /// Locked first, and for as long as a write takes.
    file: Mutex<SlotFile>,
    /// Locked second, and for a moment.
    wanted: Mutex<Wanted>,
}

struct Wanted {
    record: MarkRecord,
    dirty: bool,
}

impl Marker {
    pub(super) fn create(path: &Path, owner: Owner, syncer: Arc<dyn Syncer>) -> Result<Self, StoreError> {
        let record = MarkRecord::default();
        let file = SlotFile::create(path, MARK, syncer, &record.encode(owner))?;
        Ok(Self { owner, file: Mutex::new(file), wanted: Mutex::new(Wanted { record, dirty: false }) })
    }

    pub(super) fn open(path: &Path, owner: Owner, syncer: Arc<dyn Syncer>) -> Result<Self, StoreError> {
        let (file, payload) = SlotFile::open(path, MARK, syncer)?;
        let mut decoder = Decoder::new(&payload);
        owner.check(&mut decoder, path)?;
        let record = MarkRecord::decode(decoder).map_err(|Malformed| malformed(path))?;
        Ok(Self { owner, file: Mutex::new(file), wanted: Mutex::new(Wanted { record, dirty: false }) })
    }

    /// What is, or will soon be, on disk.
    pub(super) fn record(&self) -> MarkRecord {
        locked(&self.wanted).record
    }

    /// To be written soon: so much is synced, and so much committed (its entry is synced too).
    pub(super) fn raise(&self, synced: Option<Position>, committed: Option<Position>) {
        let mut wanted = locked(&self.wanted);
        let record = MarkRecord { synced, committed, ..wanted.record };
        if record != wanted.record {
            *wanted = Wanted { record, dirty: true };
        }
    }

    /// Writes what is wanted, if anything changed.
    pub(super) fn write_pending(&self) -> io::Result<()> {
        let mut file = locked(&self.file);
        let record = {
            let mut wanted = locked(&self.wanted);
            if !std::mem::take(&mut wanted.dirty) {
                return Ok(());
            }
            wanted.record
        };
        file.write_next(&record.encode(self.owner))
    }

    /// Changes the mark, on disk before this returns, in both slots.
    pub(super) fn strict(&self, change: impl FnOnce(&mut MarkRecord)) -> io::Result<()> {
        let mut file = locked(&self.file);
        let record = {
            let mut wanted = locked(&self.wanted);
            change(&mut wanted.record);
            wanted.dirty = false;
            wanted.record
        };
        file.write_both(&record.encode(self.owner))
    }
}

/// The vote file.
pub(super) struct VoteFile {
    owner: Owner,
    file: SlotFile,
}

impl VoteFile {
    pub(super) fn create(path: &Path, owner: Owner, syncer: Arc<dyn Syncer>) -> Result<Self, StoreError> {
        let file = SlotFile::create(path, VOTE, syncer, &encode_vote(owner, None))?;
        Ok(Self { owner, file })
    }

    pub(super) fn open(
        path: &Path,
        owner: Owner,
        syncer: Arc<dyn Syncer>,
    ) -> Result<(Self, Option<VoteRecord>), StoreError> {
        let (file, payload) = SlotFile::open(path, VOTE, syncer)?;
        let mut decoder = Decoder::new(&payload);
        owner.check(&mut decoder, path)?;
        let vote = decode_vote(decoder).map_err(|Malformed| malformed(file.path()))?;
        Ok((Self { owner, file }, vote))
    }

    /// The vote is in both slots, and on stable storage, when this returns: whichever slot is damaged later, the vote is
    /// not forgotten.
    pub(super) fn write(&mut self, vote: VoteRecord) -> io::Result<()> {
        self.file.write_both(&encode_vote(self.owner, Some(vote)))
    }
}

fn encode_vote(owner: Owner, vote: Option<VoteRecord>) -> Vec<u8> {
    let mut out = owner.encode();
    out.push(vote.is_some().into());
    let vote = vote.unwrap_or_default();
    out.extend_from_slice(&vote.term.to_be_bytes());
    out.extend_from_slice(&vote.node.to_be_bytes());
    out.push(vote.committed.into());
    out
}

fn decode_vote(mut decoder: Decoder<'_>) -> Result<Option<VoteRecord>, Malformed> {
    let is_some = decoder.flag()?;
    let vote = VoteRecord { term: decoder.u64()?, node: decoder.u64()?, committed: decoder.flag()? };
    decoder.end()?;
    Ok(is_some.then_some(vote))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::FileSyncer;

    const OWNER: Owner = Owner { incarnation: Uuid::from_u128(7), group: 0 };

    #[test]
    fn the_encodings_of_format_1_are_fixed() {
        let owner = Owner { incarnation: Uuid::from_u128(0x0102), group: 3 };
        let head = "00000000000000000000000000000102".to_owned() + "00000003";
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let vote = VoteRecord { term: 5, node: 6, committed: true };
        assert_eq!(
            hex(encode_vote(owner, Some(vote))),
            head.clone() + "01" + "0000000000000005" + "0000000000000006" + "01"
        );
        let mark = MarkRecord {
            first: 9,
            purged: Some(Position { term: 1, index: 8 }),
            synced: Some(Position { term: 2, index: 12 }),
            committed: None,
        };
        assert_eq!(
            hex(mark.encode(owner)),
            head + "0000000000000009"
                + "0100000000000000010000000000000008"
                + "010000000000000002000000000000000c"
                + "0000000000000000000000000000000000"
        );
    }

    #[test]
    fn a_mark_is_raised_lazily_and_lowered_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        let marker = Marker::create(&path, OWNER, Arc::new(FileSyncer)).unwrap();
        let on_disk = || Marker::open(&path, OWNER, Arc::new(FileSyncer)).unwrap().record();
        let at = |index| Some(Position { term: 1, index });
        marker.raise(at(5), at(4));
        assert_eq!(on_disk(), MarkRecord::default());
        marker.write_pending().unwrap();
        assert_eq!(on_disk(), MarkRecord { synced: at(5), committed: at(4), ..MarkRecord::default() });
        marker.raise(at(9), at(9));
        marker.strict(|mark| mark.synced = at(3)).unwrap();
        assert_eq!(on_disk().synced, at(3));
        marker.write_pending().unwrap();
        assert_eq!(on_disk().synced, at(3), "what was wanted before is void");
    }

    #[test]
    fn files_of_another_incarnation_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vote");
        drop(VoteFile::create(&path, OWNER, Arc::new(FileSyncer)).unwrap());
        let other = Owner { incarnation: Uuid::from_u128(8), ..OWNER };
        let error = VoteFile::open(&path, other, Arc::new(FileSyncer)).err().unwrap();
        assert!(matches!(error, StoreError::OtherIncarnation { .. }), "{error}");
    }
}
