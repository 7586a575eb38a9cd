//! Snapshot files: a head, blocks, an end.
//!
//! A block holds whole sections, about 1 MiB before compression, with its lengths and a checksum; the end has the number of blocks and a checksum over
//! theirs. The head names the incarnation whose directory the file is in, so a received snapshot is a new head before the same blocks.
//!
//! Flow: [`Snapshots::begin`] -> sections or received blocks -> `finish` (synced, under a temporary name) -> [`Snapshots::adopt`] (renamed, older ones
//! deleted). A file that was not adopted is deleted at the next start; a damaged one is an error, never "none".
//!
//! Not here: what a section means (`state`), what the membership is (`raft`).

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::{Position, StoreError, files};

const MAGIC: &[u8; 8] = b"LARDERSN";
const FORMAT: u32 = 1;
/// Sections are gathered into blocks of about so many bytes.
const BLOCK: usize = 1 << 20;
/// The most bytes of a block, before and after compression, that are believed.
const MAX_BLOCK: usize = 16 << 20;
/// The most bytes of the opaque membership.
const MAX_MEMBERSHIP: usize = 1 << 20;
const KIND_BLOCK: u8 = 1;
const KIND_END: u8 = 2;
/// kind, stored length, length, crc
const BLOCK_HEAD: usize = 1 + 4 + 4 + 4;
const END: usize = 1 + 8 + 4;

/// What a snapshot covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The last entry in it.
    pub last: Option<Position>,
    /// Where the membership was decided.
    pub membership_at: Option<Position>,
    /// The membership, as `raft` encodes it; empty for none.
    pub membership: Bytes,
}

/// The snapshots of a data directory. Clones are the same.
#[derive(Debug, Clone)]
pub struct Snapshots {
    dir: Arc<PathBuf>,
    incarnation: Uuid,
    group: u32,
    /// Makes temporary names differ within one run.
    counter: Arc<AtomicU64>,
}

/// A whole snapshot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    path: PathBuf,
    head: SnapshotHead,
    /// Where the blocks begin.
    offset: u64,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    StoreError::io(path.display().to_string())
}

impl Snapshots {
    /// Opens the snapshots of `dir`, and deletes what was left unfinished.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(dir: &Path, incarnation: Uuid, group: u32) -> Result<Self, StoreError> {
        let dir = dir.join("snapshots");
        files::create_dir(&dir).map_err(at(&dir))?;
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(Self { dir: Arc::new(dir), incarnation, group, counter: Arc::default() })
    }

    /// Begins a file under a temporary name.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn begin(&self, head: SnapshotHead) -> Result<SnapshotWriter, StoreError> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.tmp"));
        let file = File::create(&path).map_err(at(&path))?;
        let bytes = encode_head(&head, self.incarnation, self.group);
        let mut out = BufWriter::new(file);
        out.write_all(&bytes).map_err(at(&path))?;
        let file = SnapshotFile { path, head, offset: bytes.len() as u64 };
        Ok(SnapshotWriter {
            out: Some(out),
            file,
            sections: BytesMut::new(),
            blocks: 0,
            crc: 0,
            finished: false,
        })
    }

    /// Makes a finished file the newest: durable when it returns; older ones are gone. A file of another directory is copied.
    ///
    /// # Errors
    /// If the disk says no; the newest before is then still there.
    pub fn adopt(&self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        if file.path.parent() != Some(&**self.dir) {
            let mut writer = self.begin(file.head.clone())?;
            for block in file.raw_blocks()? {
                writer.write_raw_block(block?)?;
            }
            return self.adopt(writer.finish()?);
        }
        let (term, index) = file.head.last.map_or((0, 0), |last| (last.term, last.index));
        let path = self.dir.join(format!("{index:020}-{term:020}.snapshot"));
        if file.path != path {
            fs::rename(&file.path, &path).map_err(at(&path))?;
            files::sync_dir(&self.dir).map_err(at(&self.dir))?;
        }
        for older in self.names()?.into_iter().filter(|name| *name != path) {
            // A newer one may have been adopted meanwhile: names sort by index.
            if older < path {
                fs::remove_file(&older).map_err(at(&older))?;
            }
        }
        Ok(SnapshotFile { path, ..file })
    }

    fn names(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&*self.dir).map_err(at(&self.dir))? {
            let path = entry.map_err(at(&self.dir))?.path();
            if path.extension().is_some_and(|e| e == "snapshot") {
                names.push(path);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The newest snapshot, its head verified.
    ///
    /// # Errors
    /// If it is damaged, another incarnation's, or of a newer format.
    pub fn newest(&self) -> Result<Option<SnapshotFile>, StoreError> {
        let Some(path) = self.names()?.pop() else { return Ok(None) };
        let mut input = BufReader::new(File::open(&path).map_err(at(&path))?);
        let (head, incarnation, group, offset) = decode_head(&path, &mut input)?;
        if (incarnation, group) != (self.incarnation, self.group) {
            return Err(StoreError::Foreign {
                path,
                theirs: format!("incarnation {incarnation}, group {group}"),
                ours: format!("incarnation {}, group {}", self.incarnation, self.group),
            });
        }
        Ok(Some(SnapshotFile { path, head, offset }))
    }
}

fn put_position(out: &mut Vec<u8>, position: Option<Position>) {
    out.put_u8(position.is_some().into());
    out.put_u64(position.map_or(0, |p| p.term));
    out.put_u64(position.map_or(0, |p| p.index));
}

/// magic, format, length of the fields; the fields; crc of all
fn encode_head(head: &SnapshotHead, incarnation: Uuid, group: u32) -> Vec<u8> {
    let mut fields = Vec::new();
    fields.extend_from_slice(incarnation.as_bytes());
    fields.put_u32(group);
    put_position(&mut fields, head.last);
    put_position(&mut fields, head.membership_at);
    fields.put_u32(head.membership.len() as u32);
    fields.extend_from_slice(&head.membership);
    let mut out = MAGIC.to_vec();
    out.put_u32(FORMAT);
    out.put_u32(fields.len() as u32);
    out.extend_from_slice(&fields);
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    out
}

fn decode_head(path: &Path, input: &mut impl Read) -> Result<(SnapshotHead, Uuid, u32, u64), StoreError> {
    let damaged = |why: &str| StoreError::damaged(path.display().to_string(), why);
    let mut start = [0; 16];
    input.read_exact(&mut start).map_err(|_| damaged("it is cut off"))?;
    if &start[..8] != MAGIC {
        return Err(damaged("it is not a snapshot"));
    }
    let format = (&start[8..]).get_u32();
    if format > FORMAT {
        return Err(StoreError::NewerFormat {
            what: path.display().to_string(),
            found: format,
            known: FORMAT,
        });
    }
    let length = (&start[12..]).get_u32() as usize;
    if length > MAX_MEMBERSHIP + 1024 {
        return Err(damaged("its head is too long"));
    }
    let mut rest = vec![0; length + 4];
    input.read_exact(&mut rest).map_err(|_| damaged("its head is cut off"))?;
    let (fields, crc) = rest.split_at(length);
    if crc32c::crc32c_append(crc32c::crc32c(&start), fields) != (&crc[..]).get_u32() {
        return Err(damaged("the checksum of its head does not fit"));
    }
    let mut fields = Bytes::copy_from_slice(fields);
    let mut parse = || -> Option<(SnapshotHead, Uuid, u32)> {
        if fields.remaining() < 16 + 4 + 17 + 17 + 4 {
            return None;
        }
        let incarnation = Uuid::from_slice(&fields.split_to(16)).ok()?;
        let group = fields.get_u32();
        let mut position = || {
            let there = fields.get_u8() == 1;
            let (term, index) = (fields.get_u64(), fields.get_u64());
            there.then_some(Position { term, index })
        };
        let (last, membership_at) = (position(), position());
        let length = fields.get_u32() as usize;
        (fields.remaining() == length).then(|| {
            let head = SnapshotHead { last, membership_at, membership: fields.split_to(length) };
            (head, incarnation, group)
        })
    };
    let (head, incarnation, group) = parse().ok_or_else(|| damaged("its head does not fit"))?;
    Ok((head, incarnation, group, (16 + length + 4) as u64))
}

/// Writes one snapshot file. Dropped before `finish`, it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotWriter {
    out: Option<BufWriter<File>>,
    file: SnapshotFile,
    sections: BytesMut,
    blocks: u64,
    crc: u32,
    finished: bool,
}

impl SnapshotWriter {
    /// Adds a section, at most 8 MiB.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write_section(&mut self, section: &[u8]) -> Result<(), StoreError> {
        if section.len() > MAX_BLOCK / 2 {
            return Err(StoreError::damaged("a snapshot section", "it is larger than 8 MiB"));
        }
        self.sections.put_u32(section.len() as u32);
        self.sections.extend_from_slice(section);
        if self.sections.len() >= BLOCK { self.flush_block() } else { Ok(()) }
    }

    fn flush_block(&mut self) -> Result<(), StoreError> {
        let plain = self.sections.split();
        if plain.is_empty() {
            return Ok(());
        }
        let stored = lz4_flex::block::compress(&plain);
        let mut block = BytesMut::with_capacity(BLOCK_HEAD + stored.len());
        block.put_u8(KIND_BLOCK);
        block.put_u32(stored.len() as u32);
        block.put_u32(plain.len() as u32);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&block), &stored);
        block.put_u32(crc);
        block.extend_from_slice(&stored);
        self.put(&block)
    }

    fn put(&mut self, block: &[u8]) -> Result<(), StoreError> {
        let path = self.file.path.clone();
        let out = self
            .out
            .as_mut()
            .ok_or_else(|| StoreError::damaged(path.display().to_string(), "it is finished"))?;
        out.write_all(block).map_err(at(&path))?;
        self.blocks += 1;
        self.crc = crc32c::crc32c_append(self.crc, &crc32c::crc32c(block).to_be_bytes());
        Ok(())
    }

    /// Adds a block as another node's file has it, after verifying it.
    ///
    /// # Errors
    /// If its lengths or its checksum do not fit, or the disk says no.
    pub fn write_raw_block(&mut self, block: Bytes) -> Result<(), StoreError> {
        unpack(&block).map_err(|why| StoreError::damaged("a received snapshot block", why))?;
        self.put(&block)
    }

    /// Ends and syncs the file. It counts only once it is adopted.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn finish(mut self) -> Result<SnapshotFile, StoreError> {
        self.flush_block()?;
        let mut end = Vec::with_capacity(END);
        end.put_u8(KIND_END);
        end.put_u64(self.blocks);
        end.put_u32(self.crc);
        let path = &self.file.path;
        let Some(mut out) = self.out.take() else {
            return Err(StoreError::damaged(path.display().to_string(), "it is finished"));
        };
        out.write_all(&end).map_err(at(path))?;
        let file = out.into_inner().map_err(|e| at(path)(e.into_error()))?;
        file.sync_all().map_err(at(path))?;
        self.finished = true;
        Ok(self.file.clone())
    }

    /// As [`Self::finish`], if exactly these blocks were received.
    ///
    /// # Errors
    /// If some are missing, doubled or others.
    pub fn finish_received(self, blocks: u64, crc: u32) -> Result<SnapshotFile, StoreError> {
        if (self.blocks, self.crc) != (blocks, crc) {
            return Err(StoreError::damaged(
                "a received snapshot",
                "its blocks are not those that were sent",
            ));
        }
        self.finish()
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            // At worst it is deleted at the next start.
            let _ = fs::remove_file(&self.file.path);
        }
    }
}

/// The sections of a block, verified.
fn unpack(block: &Bytes) -> Result<Vec<Bytes>, &'static str> {
    let mut rest = block.clone();
    if rest.remaining() < BLOCK_HEAD || rest.get_u8() != KIND_BLOCK {
        return Err("it is not a block");
    }
    let (stored, plain, crc) = (rest.get_u32() as usize, rest.get_u32() as usize, rest.get_u32());
    let lengths = &block[..BLOCK_HEAD - 4];
    if stored != rest.remaining() || stored > MAX_BLOCK || plain > MAX_BLOCK {
        return Err("its lengths do not fit");
    }
    if crc32c::crc32c_append(crc32c::crc32c(lengths), &rest) != crc {
        return Err("its checksum does not fit");
    }
    let length = plain;
    let mut plain =
        Bytes::from(lz4_flex::block::decompress(&rest, length).map_err(|_| "it does not decompress")?);
    if plain.len() != length {
        return Err("it does not decompress to its length");
    }
    let mut sections = Vec::new();
    while !plain.is_empty() {
        if plain.remaining() < 4 {
            return Err("a section is cut off");
        }
        let length = plain.get_u32() as usize;
        if length > plain.remaining() {
            return Err("a section is cut off");
        }
        sections.push(plain.split_to(length));
    }
    Ok(sections)
}

impl SnapshotFile {
    /// What it covers.
    pub fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// Its blocks as they are stored. The last item is an error unless the end is there and fits.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn raw_blocks(&self) -> Result<RawBlocks, StoreError> {
        let mut file = File::open(&self.path).map_err(at(&self.path))?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(self.offset)).map_err(at(&self.path))?;
        Ok(RawBlocks {
            path: self.path.clone(),
            input: BufReader::new(file),
            blocks: 0,
            crc: 0,
            ended: false,
        })
    }

    /// Its sections. The last item is an error unless everything is there and fits.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn sections(&self) -> Result<impl Iterator<Item = Result<Bytes, StoreError>> + use<>, StoreError> {
        let path = self.path.display().to_string();
        let blocks = self.raw_blocks()?;
        Ok(blocks.flat_map(move |block| {
            let sections =
                block.and_then(|block| unpack(&block).map_err(|why| StoreError::damaged(&path, why)));
            match sections {
                Ok(sections) => sections.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            }
        }))
    }
}

/// See [`SnapshotFile::raw_blocks`].
#[derive(Debug)]
pub struct RawBlocks {
    path: PathBuf,
    input: BufReader<File>,
    blocks: u64,
    crc: u32,
    ended: bool,
}

impl RawBlocks {
    fn read(&mut self) -> Result<Option<Bytes>, StoreError> {
        let what = self.path.display().to_string();
        let damaged = |why: &str| StoreError::damaged(what.clone(), why);
        let mut exactly =
            |bytes: &mut [u8]| self.input.read_exact(bytes).map_err(|_| damaged("it is cut off"));
        let mut head = [0; BLOCK_HEAD];
        exactly(&mut head)?;
        match head[0] {
            KIND_BLOCK => {
                let length = (&head[1..]).get_u32() as usize;
                if length > MAX_BLOCK {
                    return Err(damaged("a block is too long"));
                }
                let mut block = BytesMut::zeroed(BLOCK_HEAD + length);
                block[..BLOCK_HEAD].copy_from_slice(&head);
                exactly(&mut block[BLOCK_HEAD..])?;
                self.blocks += 1;
                self.crc = crc32c::crc32c_append(self.crc, &crc32c::crc32c(&block).to_be_bytes());
                Ok(Some(block.freeze()))
            }
            KIND_END => {
                let (blocks, crc) = ((&head[1..]).get_u64(), (&head[9..]).get_u32());
                let more = self.input.read(&mut [0]).map_err(at(&self.path))?;
                if (blocks, crc, more) != (self.blocks, self.crc, 0) {
                    return Err(damaged("its end does not fit its blocks"));
                }
                Ok(None)
            }
            _ => Err(damaged("there is something that is no block")),
        }
    }
}

impl Iterator for RawBlocks {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(index: u64) -> SnapshotHead {
        SnapshotHead {
            last: Some(Position { term: 2, index }),
            membership_at: Some(Position { term: 1, index: 0 }),
            membership: Bytes::from_static(b"members"),
        }
    }

    fn write(snapshots: &Snapshots, index: u64, sections: &[Vec<u8>]) -> SnapshotFile {
        let mut writer = snapshots.begin(head(index)).unwrap();
        for section in sections {
            writer.write_section(section).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(file: &SnapshotFile) -> Result<Vec<Vec<u8>>, StoreError> {
        file.sections()?.map(|section| section.map(|s| s.to_vec())).collect()
    }

    #[test]
    fn the_newest_adopted_one_counts_and_unfinished_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Snapshots::open(dir.path(), Uuid::from_u128(1), 0).unwrap();
        let snapshots = open();
        assert_eq!(snapshots.newest().unwrap(), None);
        let sections: Vec<Vec<u8>> = (0..5_u8).map(|i| vec![i; 300_000]).collect();
        let first = snapshots.adopt(write(&snapshots, 7, &sections)).unwrap();
        assert_eq!(read(&first).unwrap(), sections);
        let unfinished = write(&snapshots, 99, &sections);
        drop(snapshots.begin(head(98)).unwrap());
        let newest = open().newest().unwrap().unwrap();
        assert_eq!((&newest, read(&newest).unwrap()), (&first, sections));
        assert!(!unfinished.path.exists());
        let snapshots = open();
        let second = snapshots.adopt(write(&snapshots, 1_000_000, &[vec![1]])).unwrap();
        assert_eq!(snapshots.newest().unwrap(), Some(second));
        assert!(!first.path.exists());
    }

    #[test]
    fn another_directorys_blocks_are_taken_over_under_an_own_head() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let theirs = Snapshots::open(there.path(), Uuid::from_u128(1), 0).unwrap();
        let ours = Snapshots::open(here.path(), Uuid::from_u128(2), 0).unwrap();
        let file = theirs.adopt(write(&theirs, 5, &[vec![3; 10]])).unwrap();
        ours.adopt(file.clone()).unwrap();
        let newest = ours.newest().unwrap().unwrap();
        assert_eq!((newest.head(), read(&newest).unwrap()), (file.head(), vec![vec![3; 10]]));
        fs::copy(&file.path, &newest.path).unwrap();
        assert!(matches!(ours.newest(), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn damage_anywhere_is_an_error_and_never_none() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Uuid::from_u128(1), 0).unwrap();
        let file = snapshots.adopt(write(&snapshots, 7, &[b"one".to_vec(), vec![2; 100]])).unwrap();
        let whole = fs::read(&file.path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file.path, bytes).unwrap();
            snapshots.newest().and_then(|newest| read(&newest.expect("it is there"))).is_err()
        };
        assert!(!refused(&whole));
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x08;
            assert!(refused(&flipped), "flipped at {at}");
            assert!(refused(&whole[..at]), "cut at {at}");
        }
        assert!(refused(&[&whole[..], b"x"].concat()), "something behind the end");
    }

    #[test]
    fn received_blocks_are_verified_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Uuid::from_u128(1), 0).unwrap();
        let file = write(&snapshots, 7, &[vec![2; 100]]);
        let block = file.raw_blocks().unwrap().next().unwrap().unwrap();
        let mut writer = snapshots.begin(head(7)).unwrap();
        for at in 0..block.len() {
            let mut flipped = block.to_vec();
            flipped[at] ^= 1;
            assert!(writer.write_raw_block(flipped.into()).is_err(), "flipped at {at}");
        }
        writer.write_raw_block(block.clone()).unwrap();
        assert!(writer.finish_received(2, 0).is_err());
        let mut writer = snapshots.begin(head(7)).unwrap();
        writer.write_raw_block(block.clone()).unwrap();
        let crc = crc32c::crc32c(&crc32c::crc32c(&block).to_be_bytes());
        writer.finish_received(1, crc).unwrap();
    }

    #[test]
    fn the_format_of_version_1_stays() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Uuid::from_u128(1), 0).unwrap();
        let file = write(&snapshots, 7, &[b"section".to_vec()]);
        let hex: String = fs::read(&file.path).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("snapshot_v1.hex").trim());
    }
}
