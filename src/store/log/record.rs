//! How an entry is cut into keys and values.
//!
//! # Format 1
//!
//! Keys are `(group: u32, index: u64, part: u16)`, big-endian, so that their order is the log's. The values of an
//! entry's parts, one after the other, are a header and the payload; every part but the last is [`PART_BYTES`] long.
//!
//! | bytes | field of the header |
//! |---|---|
//! | 1 | kind |
//! | 8 | term |
//! | 4 | length of the payload |
//! | 4 | CRC32C of group, index, kind, term, length and payload |

use bytes::Bytes;

use super::Record;
use crate::store::files::{Decoder, Malformed};

/// The most bytes of a value. A leaf of sled has at most 17 keys when it is written, and one of more than 128 KiB goes
/// to a blob file, which sled never syncs.
pub(super) const PART_BYTES: usize = 7 * 1024;
const _: () = assert!(17 * (PART_BYTES + KEY_BYTES + 64) < 128 * 1024, "no leaf may reach sled's blob limit");

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 4 + 8 + 2;
const HEADER_BYTES: usize = 1 + 8 + 4 + 4;

/// The most bytes of an entry's payload: 64 MiB.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;
const _: () = assert!((MAX_PAYLOAD_BYTES + HEADER_BYTES).div_ceil(PART_BYTES) <= u16::MAX as usize);

pub(super) type Key = [u8; KEY_BYTES];

/// The key of a part of an entry.
pub(super) fn key(group: u32, index: u64, part: u16) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&group.to_be_bytes());
    key[4..12].copy_from_slice(&index.to_be_bytes());
    key[12..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The index and part of a key of this group; `None` for any other.
pub(super) fn parse_key(group: u32, key: &[u8]) -> Option<(u64, u16)> {
    let mut decoder = Decoder::new(key);
    let parsed = (decoder.u32(), decoder.u64(), decoder.u16());
    match (parsed, decoder.end()) {
        ((Ok(g), Ok(index), Ok(part)), Ok(())) if g == group => Some((index, part)),
        _ => None,
    }
}

fn checksum(group: u32, record_index: u64, kind: u8, term: u64, payload: &[u8]) -> u32 {
    let mut head = [0; 25];
    head[..4].copy_from_slice(&group.to_be_bytes());
    head[4..12].copy_from_slice(&record_index.to_be_bytes());
    head[12] = kind;
    head[13..21].copy_from_slice(&term.to_be_bytes());
    head[21..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}

/// Calls `put` with the value of each part in order. The payload is at most [`MAX_PAYLOAD_BYTES`] (the log checked it).
pub(super) fn encode<E>(
    group: u32,
    record: &Record,
    scratch: &mut Vec<u8>,
    mut put: impl FnMut(u16, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let payload = &record.payload;
    scratch.clear();
    scratch.push(record.kind);
    scratch.extend_from_slice(&record.term.to_be_bytes());
    scratch.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    let crc = checksum(group, record.index, record.kind, record.term, payload);
    scratch.extend_from_slice(&crc.to_be_bytes());
    let (first, rest) = payload.split_at(payload.len().min(PART_BYTES - HEADER_BYTES));
    scratch.extend_from_slice(first);
    put(0, scratch)?;
    (1..).zip(rest.chunks(PART_BYTES)).try_for_each(|(part, chunk)| put(part, chunk))
}

/// Puts an entry together from its parts, given in order.
pub(super) struct Assembly {
    group: u32,
    index: u64,
    kind: u8,
    term: u64,
    length: usize,
    crc: u32,
    payload: Vec<u8>,
    next_part: u16,
}

impl Assembly {
    /// Begins with the first part.
    pub(super) fn begin(group: u32, index: u64, value: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(value);
        let kind = decoder.u8()?;
        let term = decoder.u64()?;
        let length = decoder.u32()? as usize;
        let crc = decoder.u32()?;
        if length > MAX_PAYLOAD_BYTES {
            return Err(Malformed);
        }
        let mut assembly = Self { group, index, kind, term, length, crc, payload: Vec::new(), next_part: 0 };
        assembly.push(0, &value[HEADER_BYTES..])?;
        Ok(assembly)
    }

    /// Adds the next part. Refuses one that is out of order, or not exactly as long as it must be.
    pub(super) fn push(&mut self, part: u16, chunk: &[u8]) -> Result<(), Malformed> {
        let room = if part == 0 { PART_BYTES - HEADER_BYTES } else { PART_BYTES };
        let expected = room.min(self.length - self.payload.len());
        if part != self.next_part || chunk.len() != expected || (part > 0 && expected == 0) {
            return Err(Malformed);
        }
        // Grows with what is there, not with what a damaged header says.
        self.payload.extend_from_slice(chunk);
        self.next_part += 1;
        Ok(())
    }

    /// Whether another part must follow.
    pub(super) fn is_full(&self) -> bool {
        self.payload.len() == self.length
    }

    /// The entry, if it is whole.
    pub(super) fn finish(self) -> Result<Record, Malformed> {
        let Self { group, index, kind, term, .. } = self;
        if !self.is_full() || checksum(group, index, kind, term, &self.payload) != self.crc {
            return Err(Malformed);
        }
        Ok(Record { index, term, kind, payload: Bytes::from(self.payload) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(record: &Record) -> Vec<Vec<u8>> {
        let mut parts = vec![];
        encode(0, record, &mut vec![], |part, value| {
            assert_eq!(usize::from(part), parts.len());
            parts.push(value.to_vec());
            Ok::<_, ()>(())
        })
        .unwrap();
        parts
    }

    fn assemble(index: u64, parts: &[Vec<u8>]) -> Result<Record, Malformed> {
        let mut assembly = Assembly::begin(0, index, &parts[0])?;
        for (part, value) in (1..).zip(&parts[1..]) {
            assembly.push(part, value)?;
        }
        assembly.finish()
    }

    #[test]
    fn entries_of_every_length_around_the_cuts_come_back() {
        for length in
            [0, 1, PART_BYTES - HEADER_BYTES - 1, PART_BYTES - HEADER_BYTES, PART_BYTES - HEADER_BYTES + 1]
                .into_iter()
                .chain((PART_BYTES * 2 - 40)..(PART_BYTES * 2 + 2))
        {
            let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let record = Record { index: 9, term: 4, kind: 1, payload: payload.into() };
            let parts = parts(&record);
            assert!(parts.iter().all(|p| p.len() <= PART_BYTES));
            assert_eq!(assemble(9, &parts).unwrap(), record);
            assert!(assemble(8, &parts).is_err(), "the entry of another index");
        }
    }

    #[test]
    fn the_encoding_of_format_1_is_fixed() {
        let record = Record { index: 0x0102, term: 3, kind: 1, payload: Bytes::from_static(b"larder") };
        assert_eq!(key(7, 0x0102, 5), [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 0, 5]);
        let golden: &[u8] = &[
            1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 6, 0x9F, 0x7E, 0x7C, 0xC3, b'l', b'a', b'r', b'd', b'e', b'r',
        ];
        assert_eq!(parts(&record), [golden]);
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let record = Record { index: 1, term: 2, kind: 1, payload: vec![7; PART_BYTES + 10].into() };
        let whole = parts(&record);
        for part in 0..whole.len() {
            for at in 0..whole[part].len() {
                let mut damaged = whole.clone();
                damaged[part][at] ^= 4;
                assert!(assemble(1, &damaged).is_err(), "part {part} byte {at}");
            }
        }
    }
}
