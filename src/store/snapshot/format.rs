//! The encoding of header, block and end. See the chapter in [`super`].

use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;

use super::{SnapshotEnd, SnapshotMeta};
use crate::store::{
    error::StoreError,
    files::{Decoder, Malformed},
    identity::ClusterId,
    log::Position,
};

pub(super) const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"LRDRSNAP";
/// Magic, format and length of the rest.
pub(super) const HEADER_START: usize = 8 + 4 + 4;
/// Everything of the header's rest but the membership.
const HEADER_REST: usize = 16 + 16 + 4 + 17 + 17 + 4;
/// The two lengths and the checksum of a block.
pub(super) const BLOCK_HEADER: usize = 12;
/// The end record.
pub(super) const END_BYTES: usize = 4 + 8 + 8 + 4 + 4;

/// The most bytes of an encoded membership.
pub const MAX_MEMBERSHIP_BYTES: usize = 1024 * 1024;
/// The most bytes of a section: a value of 1 MiB, its key, and a quarter MiB for what surrounds them.
pub const MAX_SECTION_BYTES: usize = 1024 * 1024 + 256 * 1024;
/// Sections are gathered up to so many bytes in a block.
pub(super) const BLOCK_TARGET: usize = 1024 * 1024;
/// The most bytes of a block uncompressed: one section of the largest size.
pub(super) const MAX_UNCOMPRESSED: usize = 4 + MAX_SECTION_BYTES;
/// The most bytes of a raw block: what LZ4 makes at worst, and the block's header.
pub const MAX_BLOCK_BYTES: usize = BLOCK_HEADER + MAX_UNCOMPRESSED + MAX_UNCOMPRESSED / 255 + 64;

/// The whole header.
pub(super) fn encode_header(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(&((HEADER_REST + meta.membership.len()) as u32).to_be_bytes());
    out.extend_from_slice(&meta.cluster.0);
    out.extend_from_slice(meta.incarnation.as_bytes());
    out.extend_from_slice(&meta.group.to_be_bytes());
    for position in [meta.last, meta.membership_at] {
        let Position { term, index } = position.unwrap_or_default();
        out.push(position.is_some().into());
        out.extend_from_slice(&term.to_be_bytes());
        out.extend_from_slice(&index.to_be_bytes());
    }
    out.extend_from_slice(&(meta.membership.len() as u32).to_be_bytes());
    out.extend_from_slice(&meta.membership);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out
}

/// How many bytes of header follow the first [`HEADER_START`].
pub(super) fn header_rest(path: &Path, start: &[u8; HEADER_START]) -> Result<usize, StoreError> {
    let parse = || {
        let mut decoder = Decoder::new(start);
        Ok((decoder.array::<8>()?, decoder.u32()?, decoder.u32()? as usize))
    };
    let no_header = || StoreError::damaged(path, "it does not begin with the header of a snapshot");
    let (magic, format, rest) = parse().map_err(|Malformed| no_header())?;
    if magic != MAGIC {
        return Err(no_header());
    }
    if format > FORMAT {
        return Err(StoreError::NewerFormat { path: path.to_owned(), found: format, known: FORMAT });
    }
    if !(HEADER_REST..=HEADER_REST + MAX_MEMBERSHIP_BYTES).contains(&rest) {
        return Err(no_header());
    }
    Ok(rest + 4)
}

/// Decodes a whole header.
pub(super) fn decode_header(path: &Path, bytes: &[u8]) -> Result<SnapshotMeta, StoreError> {
    let position = |decoder: &mut Decoder<'_>| {
        let is_some = decoder.flag()?;
        let position = Position { term: decoder.u64()?, index: decoder.u64()? };
        Ok(is_some.then_some(position))
    };
    let parse = || {
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(Malformed)?;
        if u32::from_be_bytes(*checksum) != crc32c::crc32c(body) {
            return Err(Malformed);
        }
        let mut decoder = Decoder::new(body);
        decoder.bytes(HEADER_START)?;
        let cluster = ClusterId(decoder.array()?);
        let incarnation = Uuid::from_bytes(decoder.array()?);
        let group = decoder.u32()?;
        let last = position(&mut decoder)?;
        let membership_at = position(&mut decoder)?;
        let length = decoder.u32()? as usize;
        let membership = Bytes::copy_from_slice(decoder.bytes(length)?);
        decoder.end()?;
        Ok(SnapshotMeta { cluster, incarnation, group, last, membership_at, membership })
    };
    parse().map_err(|Malformed| StoreError::damaged(path, "the checksum of its header is wrong"))
}

/// A raw block of these sections (each with its length in front).
pub(super) fn encode_block(uncompressed: &[u8]) -> Vec<u8> {
    let compressed = lz4_flex::block::compress(uncompressed);
    let mut out = Vec::with_capacity(BLOCK_HEADER + compressed.len());
    out.extend_from_slice(&(compressed.len() as u32).to_be_bytes());
    out.extend_from_slice(&(uncompressed.len() as u32).to_be_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&out), &compressed);
    out.extend_from_slice(&checksum.to_be_bytes());
    out.extend_from_slice(&compressed);
    out
}

/// The header of a block, its lengths checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockHeader {
    pub(super) compressed: usize,
    pub(super) uncompressed: usize,
    pub(super) checksum: u32,
}

impl BlockHeader {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let header = Self {
            compressed: decoder.u32()? as usize,
            uncompressed: decoder.u32()? as usize,
            checksum: decoder.u32()?,
        };
        let fits = (1..=MAX_BLOCK_BYTES - BLOCK_HEADER).contains(&header.compressed)
            && (4..=MAX_UNCOMPRESSED).contains(&header.uncompressed);
        if fits { Ok(header) } else { Err(Malformed) }
    }
}

/// Verifies a raw block completely, and takes its sections out.
pub(super) fn decode_block(raw: &[u8]) -> Result<(BlockHeader, Vec<Bytes>), Malformed> {
    let header = BlockHeader::decode(raw)?;
    let compressed = &raw[BLOCK_HEADER..];
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&raw[..8]), compressed);
    if compressed.len() != header.compressed || checksum != header.checksum {
        return Err(Malformed);
    }
    let block = lz4_flex::block::decompress(compressed, header.uncompressed).map_err(|_| Malformed)?;
    if block.len() != header.uncompressed {
        return Err(Malformed);
    }
    let block = Bytes::from(block);
    let mut sections = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let length = Decoder::new(&block[at..]).u32()? as usize;
        at += 4;
        if length > MAX_SECTION_BYTES || length > block.len() - at {
            return Err(Malformed);
        }
        sections.push(block.slice(at..at + length));
        at += length;
    }
    Ok((header, sections))
}

impl SnapshotEnd {
    /// Counts a block.
    pub(super) fn add(&mut self, header: &BlockHeader) {
        self.blocks += 1;
        self.uncompressed += header.uncompressed as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, &header.checksum.to_be_bytes());
    }

    pub(super) fn encode(self) -> [u8; END_BYTES] {
        let mut out = [0; END_BYTES];
        out[4..12].copy_from_slice(&self.blocks.to_be_bytes());
        out[12..20].copy_from_slice(&self.uncompressed.to_be_bytes());
        out[20..24].copy_from_slice(&self.checksum.to_be_bytes());
        let checksum = crc32c::crc32c(&out[..24]);
        out[24..].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; END_BYTES]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let marker = decoder.u32()?;
        let end = Self { blocks: decoder.u64()?, uncompressed: decoder.u64()?, checksum: decoder.u32()? };
        let whole = decoder.u32()? == crc32c::crc32c(&bytes[..END_BYTES - 4]);
        if marker == 0 && whole { Ok(end) } else { Err(Malformed) }
    }
}
