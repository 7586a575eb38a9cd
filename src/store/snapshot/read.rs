//! Reading a snapshot, verified as it is read.

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    SnapshotEnd, SnapshotMeta,
    format::{self, BLOCK_HEADER, BlockHeader, END_BYTES, HEADER_START},
};
use crate::store::{error::StoreError, files::Malformed};

/// A finished snapshot. It stays readable when a newer one replaces it.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    file: Arc<File>,
    path: PathBuf,
    meta: SnapshotMeta,
    size: u64,
    end: SnapshotEnd,
    /// Where the first block begins.
    blocks_at: u64,
}

impl SnapshotFile {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let size = file.metadata().map_err(StoreError::io("look at", path))?.len();
        let short = || StoreError::damaged(path, "it is cut off");
        let read = |buffer: &mut [u8], at: u64| {
            if at.checked_add(buffer.len() as u64).is_none_or(|to| to > size) {
                return Err(short());
            }
            file.read_exact_at(buffer, at).map_err(StoreError::io("read", path))
        };
        let mut start = [0; HEADER_START];
        read(&mut start, 0)?;
        let rest = format::header_rest(path, &start)?;
        if (HEADER_START + rest) as u64 > size {
            return Err(short());
        }
        let mut header = start.to_vec();
        header.resize(HEADER_START + rest, 0);
        read(&mut header[HEADER_START..], HEADER_START as u64)?;
        let meta = format::decode_header(path, &header)?;
        let blocks_at = header.len() as u64;
        let end_at = size.checked_sub(END_BYTES as u64).filter(|at| *at >= blocks_at).ok_or_else(short)?;
        let mut end = [0; END_BYTES];
        read(&mut end, end_at)?;
        let end = SnapshotEnd::decode(&end)
            .map_err(|Malformed| StoreError::damaged(path, "it does not end with a valid end record"))?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), meta, size, end, blocks_at })
    }

    /// What it is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What its end says about the blocks; a receiver compares it.
    pub fn end(&self) -> SnapshotEnd {
        self.end
    }

    /// The blocks as they are on disk, for a peer. Lengths and order are verified, and each block's checksum; the last
    /// item is an error if they are not what the end says.
    pub fn raw_blocks(&self) -> RawBlocks {
        RawBlocks { file: self.clone(), at: self.blocks_at, seen: SnapshotEnd::default(), ended: false }
    }

    /// The sections. Everything is verified; the last item is an error if the blocks are not what the end says.
    pub fn sections(&self) -> Sections {
        Sections { blocks: self.raw_blocks(), ready: VecDeque::new() }
    }

    fn damaged(&self, why: &str) -> StoreError {
        StoreError::damaged(&self.path, why)
    }
}

/// [`SnapshotFile::raw_blocks`].
#[derive(Debug)]
pub struct RawBlocks {
    file: SnapshotFile,
    at: u64,
    seen: SnapshotEnd,
    ended: bool,
}

impl RawBlocks {
    fn next_block(&mut self) -> Result<Option<Bytes>, StoreError> {
        let SnapshotFile { file, path, size, end, .. } = &self.file;
        let end_at = size - END_BYTES as u64;
        if self.at == end_at {
            if self.seen != *end {
                return Err(self.file.damaged("its blocks are not the ones that its end counted"));
            }
            return Ok(None);
        }
        let left = end_at - self.at;
        let mut raw = vec![0; BLOCK_HEADER];
        if left < BLOCK_HEADER as u64 {
            return Err(self.file.damaged("a block is cut off"));
        }
        file.read_exact_at(&mut raw, self.at).map_err(StoreError::io("read", path))?;
        let header = BlockHeader::decode(&raw)
            .ok()
            .filter(|header| header.compressed as u64 <= left - BLOCK_HEADER as u64)
            .ok_or_else(|| self.file.damaged("a block has impossible lengths"))?;
        raw.resize(BLOCK_HEADER + header.compressed, 0);
        file.read_exact_at(&mut raw[BLOCK_HEADER..], self.at + BLOCK_HEADER as u64)
            .map_err(StoreError::io("read", path))?;
        if crc32c::crc32c_append(crc32c::crc32c(&raw[..8]), &raw[BLOCK_HEADER..]) != header.checksum {
            return Err(self.file.damaged("a block's checksum is wrong"));
        }
        self.seen.add(&header);
        self.at += raw.len() as u64;
        Ok(Some(raw.into()))
    }
}

impl Iterator for RawBlocks {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_block().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// [`SnapshotFile::sections`].
#[derive(Debug)]
pub struct Sections {
    blocks: RawBlocks,
    ready: VecDeque<Bytes>,
}

impl Iterator for Sections {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(section) = self.ready.pop_front() {
                return Some(Ok(section));
            }
            let raw = match self.blocks.next()? {
                Ok(raw) => raw,
                Err(error) => return Some(Err(error)),
            };
            match format::decode_block(&raw) {
                Ok((_, sections)) => self.ready.extend(sections),
                Err(Malformed) => {
                    self.blocks.ended = true;
                    return Some(Err(self.blocks.file.damaged("a block does not hold whole sections")));
                }
            }
        }
    }
}
