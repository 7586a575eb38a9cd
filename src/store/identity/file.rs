//! The identity file: kept by [`IdentityFile`], replaced whole at every change.
//!
//! # Format 1
//!
//! Big-endian. A string is its length in 16 bits and its UTF-8; a set is its count in 16 bits, then slot and
//! incarnation of each, in order of slots.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | magic `LRDRIDNT` |
//! | 4 | format |
//! | 16 | incarnation |
//! | 8 | Raft id (follows from the incarnation; checked) |
//! | 1 | 1 while what belonged to the previous incarnation is being removed, 2 while a recovered state takes its place, else 0 |
//! | 8 | boot counter |
//! | string | slot |
//! | 1 | binding: 0 formatted, 1 promised, 2 bound, 3 left, 4 superseded |
//! | ... | promised: set; bound: cluster id (16), 1 and set or 0; left, superseded: cluster id (16) |
//! | 4 | CRC32C of everything before |

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{Binding, ClusterId, FoundingSet, Identity, raft_id};
use crate::store::{
    Snapshots, adopt, disk,
    error::StoreError,
    files::{self, Decoder, Malformed},
    layout::{self, Format, Stage},
};

const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"LRDRIDNT";
/// The most bytes of the file: far more than a set of founders needs.
const MAX_BYTES: u64 = 64 * 1024;
/// The most bytes of a slot's name: that of a DNS name.
const MAX_SLOT_BYTES: usize = 253;

/// What is still to be done with the directory. The next start does it if this one does not get so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing = 0,
    /// What belonged to the previous incarnation is to be removed.
    Erasing = 1,
    /// And a recovered state is to take its place.
    Adopting = 2,
}

/// The identity file of a data directory, and the directory's lock: as long as this lives, no other process (and no
/// second node of this one) can open the directory.
#[derive(Debug)]
pub struct IdentityFile {
    dir: PathBuf,
    identity: Identity,
    /// Locked until dropped.
    _lock: File,
}

impl IdentityFile {
    /// Opens a data directory for `slot`, or formats an empty one as the incarnation `fresh` (a random UUID, used only
    /// then). The boot counter is one higher than at the last start, and durable, when this returns.
    ///
    /// # Errors
    /// In use by another process; of another slot; of a later format; damaged; a log or snapshots without an identity.
    pub fn open_or_format(dir: &Path, slot: &str, fresh: Uuid) -> Result<(Self, Identity), StoreError> {
        check_slot(slot)?;
        files::create_dir(dir)?;
        let lock = lock(dir)?;
        disk::make_room(dir);
        let path = layout::identity(dir);
        let (mut identity, pending) = match files::read_small(&path, MAX_BYTES)? {
            Some(bytes) => decode(&path, &bytes)?,
            None => {
                let format = Format::read(dir)?;
                if format.is_some_and(|f| f.stage == Stage::Ready) {
                    return Err(without_identity(&path, &layout::format(dir)));
                }
                if let Some(leftover) = layout::leftover(dir)? {
                    return Err(without_identity(&path, &leftover));
                }
                Format { stage: Stage::Creating, incarnation: fresh }.write(dir)?;
                (new(slot, fresh), Pending::Nothing)
            }
        };
        if identity.slot != slot {
            let (dir, recorded, asked) = (dir.to_owned(), identity.slot, slot.to_owned());
            return Err(StoreError::OtherSlot { dir, recorded, asked });
        }
        match pending {
            // A state that was prepared and never adopted is of no use: the log went on since.
            Pending::Nothing => adopt::discard(dir)?,
            Pending::Erasing => {
                layout::erase(dir)?;
                Format { stage: Stage::Creating, incarnation: identity.incarnation }.write(dir)?;
            }
            Pending::Adopting => adopt::finish(dir, &identity)?,
        }
        identity.boot_counter += 1;
        let file = Self { dir: dir.to_owned(), identity: identity.clone(), _lock: lock };
        file.write(Pending::Nothing)?;
        adopt::discard(dir)?;
        Ok((file, identity))
    }

    /// Makes a data directory a new member's, the incarnation `fresh`, whatever member it was before: for one that keeps nothing from one
    /// start to the next. Only what is Larder's is removed, and nothing where that cannot be told.
    ///
    /// # Errors
    /// In use by another process; what is there is not Larder's; the disk's.
    pub fn format_anew(dir: &Path, slot: &str, fresh: Uuid) -> Result<(Self, Identity), StoreError> {
        check_slot(slot)?;
        files::create_dir(dir)?;
        let lock = lock(dir)?;
        let path = layout::identity(dir);
        match files::read_small(&path, MAX_BYTES)? {
            Some(bytes) if bytes.starts_with(&MAGIC) => {}
            Some(_) => return Err(StoreError::damaged(&path, "its content is not an identity record")),
            // A folder of the name `log` may be anybody's.
            None => {
                if let Some(leftover) = layout::leftover(dir)? {
                    return Err(without_identity(&path, &leftover));
                }
            }
        }
        let mut file = Self { dir: dir.to_owned(), identity: new(slot, fresh), _lock: lock };
        let identity = file.reformat(fresh)?;
        Ok((file, identity))
    }

    /// The identity as it is on disk.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Records a new binding. It is durable when this returns.
    ///
    /// # Errors
    /// The disk's; then the old binding or the new one is on disk, and the node stops.
    pub fn save(&mut self, binding: Binding) -> Result<(), StoreError> {
        self.identity.binding = binding;
        self.write(Pending::Nothing)
    }

    /// Makes the directory a new member: incarnation `fresh` (a random UUID), bound to nothing, without log, vote and
    /// snapshots. The log must be closed.
    ///
    /// The new identity is written first, marked as still erasing: from then on nobody can act under the old one, and
    /// a start after a crash ends the erasing. The other order could leave an identity without its vote.
    ///
    /// # Errors
    /// The disk's; the next start goes on from there.
    pub fn reformat(&mut self, fresh: Uuid) -> Result<Identity, StoreError> {
        self.identity = Identity { boot_counter: 1, ..new(&self.identity.slot, fresh) };
        self.write(Pending::Erasing)?;
        layout::erase(&self.dir)?;
        Format { stage: Stage::Creating, incarnation: fresh }.write(&self.dir)?;
        self.write(Pending::Nothing)?;
        Ok(self.identity.clone())
    }

    /// Where a state is to be written, as the snapshot of the incarnation `fresh` (a random UUID), that [`Self::adopt`] takes over.
    /// Nothing of the present member is touched by it.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin_adoption(&self, fresh: Uuid, group: u32) -> Result<Snapshots, StoreError> {
        adopt::begin(&self.dir, fresh, group)
    }

    /// Makes the directory a new member, of the cluster `cluster`, that begins with the prepared state and has an empty log. The log
    /// must be closed. After a crash at any moment the directory is either as it was or as it is to be.
    ///
    /// # Errors
    /// If the prepared state is missing, damaged, or another one's: the directory is as it was. The disk's: the
    /// directory is as it was or as it is to be, and the next start goes on from there.
    pub fn adopt(&mut self, fresh: Uuid, cluster: ClusterId) -> Result<Identity, StoreError> {
        adopt::prepared(&self.dir, fresh, cluster)?;
        let identity = self.write_adopting(fresh, cluster)?;
        adopt::finish(&self.dir, &identity)?;
        self.write(Pending::Nothing)?;
        adopt::discard(&self.dir)?;
        Ok(identity)
    }

    pub(in crate::store) fn write_adopting(
        &mut self,
        fresh: Uuid,
        cluster: ClusterId,
    ) -> Result<Identity, StoreError> {
        let binding = Binding::Bound { cluster, founders: None };
        self.identity = Identity { boot_counter: 1, binding, ..new(&self.identity.slot, fresh) };
        self.write(Pending::Adopting)?;
        Ok(self.identity.clone())
    }

    fn write(&self, pending: Pending) -> Result<(), StoreError> {
        files::replace(&layout::identity(&self.dir), &encode(&self.identity, pending))
    }
}

fn check_slot(slot: &str) -> Result<(), StoreError> {
    match slot.len() {
        1..=MAX_SLOT_BYTES => Ok(()),
        length => {
            Err(StoreError::TooLarge(format!("a slot's name has 1 to {MAX_SLOT_BYTES} bytes, not {length}")))
        }
    }
}

fn new(slot: &str, incarnation: Uuid) -> Identity {
    Identity { incarnation, slot: slot.to_owned(), boot_counter: 0, binding: Binding::Formatted }
}

fn without_identity(path: &Path, found: &Path) -> StoreError {
    StoreError::Missing { path: path.to_owned(), why: format!("{} is there", found.display()) }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = layout::lock(dir);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { dir: dir.to_owned() }),
        Err(e) => Err(StoreError::Io { doing: "lock", path, source: e.into() }),
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_set(out: &mut Vec<u8>, set: &FoundingSet) {
    out.extend_from_slice(&(set.0.len() as u16).to_be_bytes());
    for (slot, incarnation) in &set.0 {
        put_string(out, slot);
        out.extend_from_slice(incarnation.as_bytes());
    }
}

fn encode(identity: &Identity, pending: Pending) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(identity.incarnation.as_bytes());
    out.extend_from_slice(&identity.raft_id().to_be_bytes());
    out.push(pending as u8);
    out.extend_from_slice(&identity.boot_counter.to_be_bytes());
    put_string(&mut out, &identity.slot);
    match &identity.binding {
        Binding::Formatted => out.push(0),
        Binding::Promised(set) => {
            out.push(1);
            put_set(&mut out, set);
        }
        Binding::Bound { cluster, founders } => {
            out.push(2);
            out.extend_from_slice(&cluster.0);
            out.push(founders.is_some().into());
            if let Some(set) = founders {
                put_set(&mut out, set);
            }
        }
        Binding::Left { cluster } => {
            out.push(3);
            out.extend_from_slice(&cluster.0);
        }
        Binding::Superseded { cluster } => {
            out.push(4);
            out.extend_from_slice(&cluster.0);
        }
    }
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out
}

fn take_string(decoder: &mut Decoder<'_>) -> Result<String, Malformed> {
    let length = decoder.u16()?.into();
    std::str::from_utf8(decoder.bytes(length)?).map(Into::into).map_err(|_| Malformed)
}

fn take_set(decoder: &mut Decoder<'_>) -> Result<FoundingSet, Malformed> {
    let count = decoder.u16()?;
    let mut set = FoundingSet::default();
    for _ in 0..count {
        let slot = take_string(decoder)?;
        set.0.insert(slot, Uuid::from_bytes(decoder.array()?));
    }
    if set.0.len() == usize::from(count) { Ok(set) } else { Err(Malformed) }
}

fn take_binding(decoder: &mut Decoder<'_>) -> Result<Binding, Malformed> {
    Ok(match decoder.u8()? {
        0 => Binding::Formatted,
        1 => Binding::Promised(take_set(decoder)?),
        2 => {
            let cluster = ClusterId(decoder.array()?);
            let founders = if decoder.flag()? { Some(take_set(decoder)?) } else { None };
            Binding::Bound { cluster, founders }
        }
        3 => Binding::Left { cluster: ClusterId(decoder.array()?) },
        4 => Binding::Superseded { cluster: ClusterId(decoder.array()?) },
        _ => return Err(Malformed),
    })
}

/// The identity, and what is still to be done.
fn decode(path: &Path, bytes: &[u8]) -> Result<(Identity, Pending), StoreError> {
    let parse = || -> Result<Result<(Identity, Pending), u32>, Malformed> {
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(Malformed)?;
        let mut decoder = Decoder::new(body);
        if decoder.array()? != MAGIC {
            return Err(Malformed);
        }
        let format = decoder.u32()?;
        if format > FORMAT {
            return Ok(Err(format));
        }
        if u32::from_be_bytes(*checksum) != crc32c::crc32c(body) {
            return Err(Malformed);
        }
        let incarnation = Uuid::from_bytes(decoder.array()?);
        if decoder.u64()? != raft_id(incarnation) {
            return Err(Malformed);
        }
        let pending = match decoder.u8()? {
            0 => Pending::Nothing,
            1 => Pending::Erasing,
            2 => Pending::Adopting,
            _ => return Err(Malformed),
        };
        let boot_counter = decoder.u64()?;
        let slot = take_string(&mut decoder)?;
        let binding = take_binding(&mut decoder)?;
        decoder.end()?;
        Ok(Ok((Identity { incarnation, slot, boot_counter, binding }, pending)))
    };
    match parse() {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(found)) => Err(StoreError::NewerFormat { path: path.to_owned(), found, known: FORMAT }),
        Err(Malformed) => Err(StoreError::damaged(path, "its content is not an identity record")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::log::{Log, LogOptions, VoteRecord};

    fn uuid(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn set() -> FoundingSet {
        FoundingSet([("0".into(), uuid(0x10)), ("1".into(), uuid(0x11)), ("2".into(), uuid(0x12))].into())
    }

    fn bindings() -> [Binding; 6] {
        let cluster = set().cluster_id();
        [
            Binding::Formatted,
            Binding::Promised(set()),
            Binding::Bound { cluster, founders: Some(set()) },
            Binding::Bound { cluster, founders: None },
            Binding::Left { cluster },
            Binding::Superseded { cluster },
        ]
    }

    #[test]
    fn every_binding_survives_a_restart_and_the_boot_counter_rises() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("deep/data");
        let mut last = None;
        for (boot, binding) in (1..).zip(bindings()) {
            let (mut file, identity) = IdentityFile::open_or_format(&dir, "1", uuid(boot.into())).unwrap();
            assert_eq!((identity.boot_counter, identity.incarnation), (boot, uuid(1)));
            assert_eq!(last.unwrap_or(Binding::Formatted), identity.binding);
            file.save(binding.clone()).unwrap();
            last = Some(binding);
        }
    }

    #[test]
    fn the_golden_file_of_format_1_still_reads_and_is_still_written() {
        let golden = include_bytes!("golden-v1.bin");
        let identity = Identity {
            incarnation: uuid(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            slot: "1".into(),
            boot_counter: 7,
            binding: Binding::Bound { cluster: set().cluster_id(), founders: Some(set()) },
        };
        let encoded = encode(&identity, Pending::Nothing);
        assert_eq!(decode(Path::new("golden"), golden).unwrap(), (identity, Pending::Nothing));
        assert_eq!(encoded, golden);
    }

    #[test]
    fn damage_at_any_byte_and_any_truncation_is_an_error() {
        for binding in bindings() {
            let bytes =
                encode(&Identity { binding, boot_counter: 3, ..new("2", uuid(5)) }, Pending::Adopting);
            for at in 0..bytes.len() {
                assert!(decode(Path::new("x"), &bytes[..at]).is_err(), "cut at {at}");
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x40;
                let error = decode(Path::new("x"), &damaged).unwrap_err();
                let newer = matches!(error, StoreError::NewerFormat { .. });
                assert!(newer == (8..12).contains(&at), "byte {at}: {error}");
            }
        }
    }

    #[test]
    fn another_slot_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        drop(IdentityFile::open_or_format(dir.path(), "0", uuid(1)).unwrap());
        let error = IdentityFile::open_or_format(dir.path(), "2", uuid(2)).unwrap_err();
        assert!(matches!(&error, StoreError::OtherSlot { .. }));
        assert!(error.to_string().contains("belongs to slot 0"), "{error}");
    }

    #[test]
    fn formatting_anew_leaves_nothing_of_the_member_before() {
        let dir = tempfile::tempdir().unwrap();
        for (boot, slot) in (1..).zip(["0", "0", "1"]) {
            let (mut file, identity) = IdentityFile::format_anew(dir.path(), slot, uuid(boot)).unwrap();
            assert_eq!((identity.incarnation, identity.slot.as_str()), (uuid(boot), slot));
            assert_eq!((identity.boot_counter, &identity.binding), (1, &Binding::Formatted));
            assert_eq!(layout::leftover(dir.path()).unwrap(), None);
            let (log, recovered) = Log::open(LogOptions::new(dir.path(), uuid(boot))).unwrap();
            assert_eq!((log.last(), recovered.vote), (None, None));
            let (done, saved) = std::sync::mpsc::channel();
            log.save_vote(
                VoteRecord { term: 1, node: 1, committed: false },
                Box::new(move |r| drop(done.send(r))),
            );
            saved.recv().unwrap().unwrap();
            fs::create_dir_all(dir.path().join("snapshots")).unwrap();
            fs::write(dir.path().join("snapshots/x"), "x").unwrap();
            file.save(Binding::Promised(set())).unwrap();
            let error = IdentityFile::format_anew(dir.path(), slot, uuid(9)).unwrap_err();
            assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        }
    }

    #[test]
    fn formatting_anew_removes_nothing_that_may_be_somebody_elses() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log/syslog"), "x").unwrap();
        let error = IdentityFile::format_anew(dir.path(), "0", uuid(1)).unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }), "{error}");
        fs::write(dir.path().join("identity"), "not ours").unwrap();
        let error = IdentityFile::format_anew(dir.path(), "0", uuid(1)).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(dir.path().join("log/syslog").exists());
    }

    #[test]
    fn a_directory_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = IdentityFile::open_or_format(dir.path(), "0", uuid(1)).unwrap();
        let error = IdentityFile::open_or_format(dir.path(), "0", uuid(2)).unwrap_err();
        assert!(error.to_string().contains("another process uses the data directory"), "{error}");
        drop(first);
        assert_eq!(IdentityFile::open_or_format(dir.path(), "0", uuid(2)).unwrap().1.boot_counter, 2);
    }

    #[test]
    fn a_log_without_an_identity_is_refused_and_left_alone() {
        for name in ["vote", "mark", "log"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join(name)).unwrap();
            let error = IdentityFile::open_or_format(dir.path(), "0", uuid(1)).unwrap_err();
            assert!(matches!(error, StoreError::Missing { .. }), "{error}");
            assert!(dir.path().join(name).exists());
        }
        let dir = tempfile::tempdir().unwrap();
        drop(IdentityFile::open_or_format(dir.path(), "0", uuid(1)).unwrap());
        drop(Log::open(LogOptions::new(dir.path(), uuid(1))).unwrap());
        fs::remove_file(dir.path().join("identity")).unwrap();
        let error = IdentityFile::open_or_format(dir.path(), "0", uuid(2)).unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    }

    #[test]
    fn an_identity_whose_log_is_gone_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(IdentityFile::open_or_format(dir.path(), "0", uuid(1)).unwrap());
        drop(Log::open(LogOptions::new(dir.path(), uuid(1))).unwrap());
        for name in ["format", "vote", "mark", "log"] {
            let copy = tempfile::tempdir().unwrap();
            crate::store::log::tests::copy_dir(dir.path(), copy.path());
            files::remove(&copy.path().join(name)).unwrap();
            drop(IdentityFile::open_or_format(copy.path(), "0", uuid(2)).unwrap());
            let error = Log::open(LogOptions::new(copy.path(), uuid(1))).err().unwrap();
            assert!(matches!(error, StoreError::Missing { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn reformatting_survives_a_crash_at_each_step() {
        let make = || {
            let dir = tempfile::tempdir().unwrap();
            let (file, _) = IdentityFile::open_or_format(dir.path(), "0", uuid(1)).unwrap();
            drop(Log::open(LogOptions::new(dir.path(), uuid(1))).unwrap());
            fs::create_dir(dir.path().join("snapshots")).unwrap();
            fs::write(dir.path().join("snapshots/x"), "x").unwrap();
            (dir, file)
        };
        // Step 0: nothing but the new identity is written. Steps 1 to 4: so much is already erased.
        for steps in 0..=4 {
            let (dir, file) = make();
            let identity = Identity { boot_counter: 1, ..new("0", uuid(2)) };
            files::replace(&layout::identity(dir.path()), &encode(&identity, Pending::Erasing)).unwrap();
            for name in ["log", "snapshots", "mark", "vote"].iter().take(steps) {
                files::remove(&dir.path().join(name)).unwrap();
            }
            drop(file);
            let (_file, identity) = IdentityFile::open_or_format(dir.path(), "0", uuid(3)).unwrap();
            assert_eq!((identity.incarnation, &identity.binding), (uuid(2), &Binding::Formatted));
            assert_eq!(layout::leftover(dir.path()).unwrap(), None);
            let (_log, recovered) = Log::open(LogOptions::new(dir.path(), uuid(2))).unwrap();
            assert_eq!(recovered.vote, None);
        }
        let (dir, mut file) = make();
        let identity = file.reformat(uuid(9)).unwrap();
        assert_eq!((identity.incarnation, identity.boot_counter), (uuid(9), 1));
        assert_eq!(layout::leftover(dir.path()).unwrap(), None);
        drop(Log::open(LogOptions::new(dir.path(), uuid(9))).unwrap());
    }
}
