//! The frame of a section.

use bytes::{Buf, Bytes};

use super::{SnapshotError, VERSION};
use crate::state::codec::wire::Writer;

/// kind, version, flags, length: what the checksum covers besides the payload.
const CHECKED_HEAD_BYTES: usize = 2 + 2 + 1 + 4;
const CRC_BYTES: usize = 4;
const HEAD_BYTES: usize = CHECKED_HEAD_BYTES + CRC_BYTES;

/// The reader must know this section, or refuse the snapshot.
const REQUIRED: u8 = 1;

/// A section being written: its payload goes to `out`, behind room for the head.
pub(super) struct SectionWriter {
    pub(super) out: Writer,
    kind: u16,
}

impl SectionWriter {
    pub(super) fn new(kind: u16, capacity: usize) -> Self {
        let mut out = Writer::with_capacity(HEAD_BYTES + capacity);
        out.raw(&[0; HEAD_BYTES]);
        Self { out, kind }
    }

    /// The section, and its checksum.
    pub(super) fn finish(mut self) -> (Bytes, u32) {
        let payload = self.out.len() - HEAD_BYTES;
        let length = u32::try_from(payload).expect("sections are cut long before 4 GiB");
        let mut head = [0; HEAD_BYTES];
        head[0..2].copy_from_slice(&self.kind.to_le_bytes());
        head[2..4].copy_from_slice(&VERSION.to_le_bytes());
        head[4] = REQUIRED;
        head[5..9].copy_from_slice(&length.to_le_bytes());
        let crc = checksum(&head[..CHECKED_HEAD_BYTES], self.out.since(HEAD_BYTES));
        head[CHECKED_HEAD_BYTES..].copy_from_slice(&crc.to_le_bytes());
        self.out.overwrite(0, &head);
        (self.out.finish(), crc)
    }
}

/// A section whose checksum holds.
pub(super) struct Section {
    pub(super) kind: u16,
    pub(super) version: u16,
    pub(super) required: bool,
    pub(super) crc: u32,
    pub(super) payload: Bytes,
}

impl Section {
    /// Takes a section apart; errors name its place in the snapshot.
    pub(super) fn parse(bytes: &Bytes, section: u64) -> Result<Self, SnapshotError> {
        let damaged = |why| SnapshotError::Damaged { section, why };
        if bytes.len() < HEAD_BYTES {
            return Err(damaged("it is shorter than its head"));
        }
        let mut head = &bytes[..HEAD_BYTES];
        let (kind, version, flags) = (head.get_u16_le(), head.get_u16_le(), head.get_u8());
        let (length, crc) = (head.get_u32_le(), head.get_u32_le());
        let payload = bytes.slice(HEAD_BYTES..);
        if payload.len() as u64 != u64::from(length) {
            return Err(damaged("it is not as long as it says"));
        }
        if checksum(&bytes[..CHECKED_HEAD_BYTES], &payload) != crc {
            return Err(damaged("its checksum does not match"));
        }
        if flags & !REQUIRED != 0 {
            return Err(SnapshotError::Unknown { section, kind, version });
        }
        Ok(Self { kind, version, required: flags & REQUIRED != 0, crc, payload })
    }
}

/// The checksum over all sections so far.
pub(super) fn chain(before: u32, crc: u32) -> u32 {
    crc32c::crc32c_append(before, &crc.to_le_bytes())
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}
