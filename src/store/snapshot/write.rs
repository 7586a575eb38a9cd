//! Writing a snapshot: under a temporary name, synced, renamed, the directory synced; then the older ones go.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::PathBuf,
};

use bytes::Bytes;

use super::{
    SnapshotEnd, SnapshotFile, SnapshotMeta, Snapshots,
    format::{self, BLOCK_TARGET, MAX_BLOCK_BYTES, MAX_MEMBERSHIP_BYTES, MAX_SECTION_BYTES},
};
use crate::store::{
    error::StoreError,
    files::{self, Malformed},
};

/// A snapshot in the making. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    snapshots: Snapshots,
    file: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    /// Sections of the next block, each with its length in front.
    gathered: Vec<u8>,
    end: SnapshotEnd,
    finished: bool,
}

impl SnapshotWriter {
    pub(super) fn create(
        snapshots: Snapshots,
        meta: SnapshotMeta,
        temporary: PathBuf,
        path: PathBuf,
    ) -> Result<Self, StoreError> {
        if meta.membership.len() > MAX_MEMBERSHIP_BYTES {
            let text = format!(
                "a membership has at most {MAX_MEMBERSHIP_BYTES} bytes, not {}",
                meta.membership.len()
            );
            return Err(StoreError::TooLarge(text));
        }
        let file = File::create(&temporary).map_err(StoreError::io("create", &temporary))?;
        let mut writer = Self {
            snapshots,
            file: BufWriter::with_capacity(256 * 1024, file),
            temporary,
            path,
            gathered: Vec::new(),
            end: SnapshotEnd::default(),
            finished: false,
        };
        writer.write(&format::encode_header(&meta))?;
        Ok(writer)
    }

    /// Adds a section, of at most [`MAX_SECTION_BYTES`].
    ///
    /// # Errors
    /// It is too large; the disk's.
    pub fn write_section(&mut self, section: &[u8]) -> Result<(), StoreError> {
        if section.len() > MAX_SECTION_BYTES {
            let text = format!("a section has at most {MAX_SECTION_BYTES} bytes, not {}", section.len());
            return Err(StoreError::TooLarge(text));
        }
        if self.gathered.len() + 4 + section.len() > BLOCK_TARGET {
            self.flush_block()?;
        }
        self.gathered.extend_from_slice(&(section.len() as u32).to_be_bytes());
        self.gathered.extend_from_slice(section);
        Ok(())
    }

    /// Adds a block as another node's [`SnapshotFile::raw_blocks`] gave it, after verifying it completely, and returns its sections.
    ///
    /// # Errors
    /// It is damaged, or larger than any block can be; the disk's.
    pub fn write_raw_block(&mut self, raw: Bytes) -> Result<Vec<Bytes>, StoreError> {
        self.flush_block()?;
        if raw.len() > MAX_BLOCK_BYTES {
            let text =
                format!("a block of a snapshot has at most {MAX_BLOCK_BYTES} bytes, not {}", raw.len());
            return Err(StoreError::TooLarge(text));
        }
        let (header, sections) = format::decode_block(&raw)
            .map_err(|Malformed| StoreError::damaged(&self.temporary, "a received block is not whole"))?;
        self.end.add(&header);
        self.write(&raw)?;
        Ok(sections)
    }

    /// Makes the snapshot the newest, durably, and removes older ones.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(mut self) -> Result<SnapshotFile, StoreError> {
        self.flush_block()?;
        let end = self.end.encode();
        self.write(&end)?;
        self.file.flush().map_err(StoreError::io("write", &self.temporary))?;
        self.file.get_ref().sync_all().map_err(StoreError::io("sync", &self.temporary))?;
        let names = self.snapshots.lock_names();
        if names.closed {
            let source = std::io::Error::other("the directory is given up");
            return Err(StoreError::Io { doing: "finish", path: self.path.clone(), source });
        }
        fs::rename(&self.temporary, &self.path).map_err(StoreError::io("rename to", &self.path))?;
        self.finished = true;
        files::sync_dir(&self.snapshots.dir)?;
        let file = SnapshotFile::open(&self.path)?;
        self.snapshots.remove_older()?;
        drop(names);
        Ok(file)
    }

    /// [`SnapshotWriter::finish`], if what was received is what the sender's end says.
    ///
    /// # Errors
    /// Something is missing or other; the disk's.
    pub fn finish_received(mut self, expected: SnapshotEnd) -> Result<SnapshotFile, StoreError> {
        self.flush_block()?;
        if self.end != expected {
            let why = format!("received {} blocks of {}, or other ones", self.end.blocks, expected.blocks);
            return Err(StoreError::damaged(&self.temporary, why));
        }
        self.finish()
    }

    fn flush_block(&mut self) -> Result<(), StoreError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let raw = format::encode_block(&self.gathered);
        self.gathered.clear();
        let header = format::BlockHeader::decode(&raw).map_err(|Malformed| {
            StoreError::damaged(&self.temporary, "a block came out larger than it can be")
        })?;
        self.end.add(&header);
        self.write(&raw)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(StoreError::io("write", &self.temporary))
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            // If it stays, the next start removes it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
