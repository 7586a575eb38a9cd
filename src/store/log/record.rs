//! A log entry as bytes in sled: parts of at most 7 KiB.
//!
//! sled puts leaves over some 128 KiB into blob files that it never syncs, so no value here is ever large. The key is
//! `(group, index, part)`, big-endian, so that key order is log order. The first part begins with a head that covers the whole entry:
//! an entry whose later parts are missing or torn is recognised as a whole.

use bytes::{Bytes, BytesMut};

use super::Record;

/// The most bytes of one value in sled.
pub(super) const MAX_PART: usize = 7 * 1024;
/// format, kind, term, length, crc
const HEAD: usize = 1 + 1 + 8 + 4 + 4;
const FORMAT: u8 = 1;
/// The most bytes of an entry that are believed on reading.
const MAX_ENTRY: usize = 64 * 1024 * 1024;

pub(super) const KEY: usize = 4 + 8 + 2;

pub(super) fn key(group: u32, index: u64, part: u16) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..4].copy_from_slice(&group.to_be_bytes());
    key[4..12].copy_from_slice(&index.to_be_bytes());
    key[12..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The index and part that a key of this group names.
pub(super) fn parse_key(group: u32, key: &[u8]) -> Option<(u64, u16)> {
    if key.len() != KEY || key[..4] != group.to_be_bytes() {
        return None;
    }
    let index = u64::from_be_bytes(key[4..12].try_into().ok()?);
    let part = u16::from_be_bytes(key[12..].try_into().ok()?);
    Some((index, part))
}

fn checksum(record: &Record) -> u32 {
    let mut head = [0; 17];
    head[..8].copy_from_slice(&record.index.to_be_bytes());
    head[8..16].copy_from_slice(&record.term.to_be_bytes());
    head[16] = record.kind;
    crc32c::crc32c_append(crc32c::crc32c(&head), &record.payload)
}

/// The values of an entry's parts, in order.
pub(super) fn parts(record: &Record) -> Vec<Vec<u8>> {
    let first_bytes = record.payload.len().min(MAX_PART - HEAD);
    let mut first = Vec::with_capacity(HEAD + first_bytes);
    first.push(FORMAT);
    first.push(record.kind);
    first.extend_from_slice(&record.term.to_be_bytes());
    first.extend_from_slice(&(record.payload.len() as u32).to_be_bytes());
    first.extend_from_slice(&checksum(record).to_be_bytes());
    first.extend_from_slice(&record.payload[..first_bytes]);
    let rest = record.payload[first_bytes..].chunks(MAX_PART).map(<[u8]>::to_vec);
    std::iter::once(first).chain(rest).collect()
}

/// An entry being put together from its parts.
pub(super) struct Assembly {
    record: Record,
    length: usize,
    crc: u32,
    payload: BytesMut,
    next_part: u16,
}

/// Why an entry is not whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Torn {
    #[error("its first part is missing or too short")]
    NoHead,
    #[error("it has format {0}, which this release does not know")]
    Format(u8),
    #[error("a part is missing or too many")]
    Parts,
    #[error("its checksum does not fit")]
    Checksum,
}

impl Assembly {
    /// Begins with the first part of the entry at `index`.
    pub(super) fn begin(index: u64, part: u16, value: &[u8]) -> Result<Self, Torn> {
        if part != 0 || value.len() < HEAD {
            return Err(Torn::NoHead);
        }
        if value[0] != FORMAT {
            return Err(Torn::Format(value[0]));
        }
        let word = |at: usize| u32::from_be_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
        let term = (u64::from(word(2)) << 32) | u64::from(word(6));
        let length = word(10) as usize;
        if length > MAX_ENTRY || value.len() - HEAD > length {
            return Err(Torn::Parts);
        }
        let record = Record { index, term, kind: value[1], payload: Bytes::new() };
        let payload = BytesMut::from(&value[HEAD..]);
        Ok(Self { record, length, crc: word(14), payload, next_part: 1 })
    }

    pub(super) fn index(&self) -> u64 {
        self.record.index
    }

    pub(super) fn push(&mut self, part: u16, value: &[u8]) -> Result<(), Torn> {
        if part != self.next_part || self.payload.len() + value.len() > self.length {
            return Err(Torn::Parts);
        }
        self.payload.extend_from_slice(value);
        self.next_part += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Record, Torn> {
        if self.payload.len() != self.length {
            return Err(Torn::Parts);
        }
        self.record.payload = self.payload.freeze();
        if checksum(&self.record) == self.crc { Ok(self.record) } else { Err(Torn::Checksum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assemble(index: u64, parts: &[Vec<u8>]) -> Result<Record, Torn> {
        let mut assembly = Assembly::begin(index, 0, &parts[0])?;
        for (part, value) in parts.iter().enumerate().skip(1) {
            assembly.push(part as u16, value)?;
        }
        assembly.finish()
    }

    #[test]
    fn entries_of_every_size_come_back_whole_and_torn_ones_do_not() {
        for size in [0, 1, MAX_PART - HEAD, MAX_PART - HEAD + 1, MAX_PART, 3 * MAX_PART + 5, 1 << 20] {
            let record = Record { index: 9, term: 1 << 40, kind: 1, payload: vec![7; size].into() };
            let whole = parts(&record);
            assert!(whole.iter().all(|part| part.len() <= MAX_PART));
            assert_eq!(assemble(9, &whole), Ok(record.clone()));
            assert_eq!(assemble(8, &whole), Err(Torn::Checksum), "the index is part of what is checked");
            let mut short = whole.clone();
            if short.len() > 1 {
                short.pop();
                assert_eq!(assemble(9, &short), Err(Torn::Parts));
            }
            // Cut or flipped at every place of the first part and the last.
            for at in 0..whole[0].len().min(64) {
                let mut cut = whole.clone();
                cut[0].truncate(at);
                assert!(assemble(9, &cut).is_err(), "cut at {at} of {size}");
                let mut flipped = whole.clone();
                flipped[0][at] ^= 0x40;
                assert!(assemble(9, &flipped).is_err(), "flipped at {at} of {size}");
            }
        }
    }

    #[test]
    fn the_format_of_version_1_stays() {
        let record = Record { index: 258, term: 3, kind: 1, payload: Bytes::from_static(b"payload") };
        let hex: String = parts(&record)[0].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("record_v1.hex").trim());
        assert_eq!(key(0, 258, 1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 1]);
    }
}
