//! The grain of every encoding: varints, lengths, and a reader that never trusts them.

use bytes::Bytes;

/// Why bytes are not the record they should be. Nothing was changed by trying.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside the record.
    #[error(
        "the {what} needs {needed} bytes more and has {left}: it was cut off or damaged; take it from another node"
    )]
    Truncated {
        /// Which record.
        what: &'static str,
        /// Bytes that it says are to come.
        needed: u64,
        /// Bytes that are there.
        left: u64,
    },
    /// The bytes go on after the record.
    #[error("the {what} has {extra} bytes after its end: it is damaged; take it from another node")]
    Trailing {
        /// Which record.
        what: &'static str,
        /// How many bytes too many.
        extra: u64,
    },
    /// The record is of a version that this release does not know.
    #[error(
        "the {what} is of version {found} and this release reads version {known}; use a release that knows it"
    )]
    Version {
        /// Which record.
        what: &'static str,
        /// Its version.
        found: u64,
        /// The version known here.
        known: u64,
    },
    /// A tag or a flag that this release does not know.
    #[error(
        "the {what} has the unknown {field} {found}: it is damaged, or of a newer release; use a release that knows it"
    )]
    Unknown {
        /// Which record.
        what: &'static str,
        /// Which part of it.
        field: &'static str,
        /// What stands there.
        found: u64,
    },
    /// A number does not fit, or is written longer than needed (each record has one encoding only).
    #[error(
        "the {what} has a number that is too large or not in its shortest form: it is damaged; take it from another node"
    )]
    Number {
        /// Which record.
        what: &'static str,
    },
    /// Text that is not UTF-8.
    #[error("the {what} has text that is not UTF-8: it is damaged; take it from another node")]
    Text {
        /// Which record.
        what: &'static str,
    },
    /// A batch holds what a batch may not hold.
    #[error(
        "a batch holds Set, Delete and Increment only, never another batch or a command of the cluster; send those on their own"
    )]
    NestedBatch,
    /// The parts do not fit together.
    #[error("the {what} contradicts itself: {why}; take it from another node")]
    Inconsistent {
        /// Which record.
        what: &'static str,
        /// What does not fit.
        why: &'static str,
    },
}

/// Bytes being written.
#[derive(Debug, Default)]
pub(in crate::state) struct Writer(Vec<u8>);

impl Writer {
    pub(in crate::state) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(in crate::state) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::state) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Fixed width, for hashes and checksums, which varints would only lengthen.
    pub(in crate::state) fn u64_le(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(in crate::state) fn u32_le(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// LEB128: seven bits a byte, the lowest first.
    pub(in crate::state) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Zigzag, so that small negative numbers are short too.
    pub(in crate::state) fn signed(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Bytes without their length.
    pub(in crate::state) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A length and so many bytes.
    pub(in crate::state) fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }

    /// What was written from a place on.
    pub(in crate::state) fn since(&self, at: usize) -> &[u8] {
        &self.0[at..]
    }

    /// Fills in what was left open at a place.
    pub(in crate::state) fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(in crate::state) fn finish(self) -> Bytes {
        Bytes::from(self.0)
    }
}

/// The most bytes of a varint.
pub(in crate::state) const MAX_VARINT_BYTES: usize = 10;

/// Bytes being read. Slices handed out share the buffer; nothing is copied.
#[derive(Debug)]
pub(in crate::state) struct Reader {
    buffer: Bytes,
    at: usize,
    what: &'static str,
}

type Read<T> = Result<T, DecodeError>;

impl Reader {
    /// Reads a record that errors call `what`.
    pub(in crate::state) fn new(what: &'static str, buffer: Bytes) -> Self {
        Self { buffer, at: 0, what }
    }

    pub(in crate::state) fn left(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// Refuses a record of another version than `known`.
    pub(in crate::state) fn version(&mut self, known: u8) -> Read<()> {
        let found = self.u8()?;
        if found == known {
            return Ok(());
        }
        Err(DecodeError::Version { what: self.what, found: found.into(), known: known.into() })
    }

    pub(in crate::state) fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// One byte of flags, of which only `known` may be set.
    pub(in crate::state) fn flags(&mut self, known: u8) -> Read<u8> {
        let flags = self.u8()?;
        if flags & !known != 0 {
            return Err(self.unknown("flags", flags.into()));
        }
        Ok(flags)
    }

    pub(in crate::state) fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.need(N as u64)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.buffer[self.at..self.at + N]);
        self.at += N;
        Ok(array)
    }

    pub(in crate::state) fn u64_le(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(in crate::state) fn u32_le(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(in crate::state) fn varint(&mut self) -> Read<u64> {
        let mut value = 0_u64;
        for position in 0..MAX_VARINT_BYTES {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * position as u32;
            // The tenth byte has room for one bit; a last byte of zero means that the one before was enough.
            if (bits << shift) >> shift != bits || (byte == 0 && position > 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Number { what: self.what })
    }

    pub(in crate::state) fn varint_u32(&mut self) -> Read<u32> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::Number { what: self.what })
    }

    pub(in crate::state) fn signed(&mut self) -> Read<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// How many records follow, each of at least `least` bytes: more than could be left is refused before anything is
    /// allocated for them.
    pub(in crate::state) fn count(&mut self, least: u64) -> Read<usize> {
        let count = self.varint()?;
        self.need(count.saturating_mul(least))?;
        usize::try_from(count).map_err(|_| DecodeError::Number { what: self.what })
    }

    /// A length and so many bytes, sharing the buffer.
    pub(in crate::state) fn bytes(&mut self) -> Read<Bytes> {
        let length = self.count(1)?;
        let slice = self.buffer.slice(self.at..self.at + length);
        self.at += length;
        Ok(slice)
    }

    pub(in crate::state) fn text(&mut self) -> Read<String> {
        let bytes = self.bytes()?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| DecodeError::Text { what: self.what })
    }

    /// Ends the record: nothing may be left.
    pub(in crate::state) fn finish(self) -> Read<()> {
        match self.left() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { what: self.what, extra: extra as u64 }),
        }
    }

    pub(in crate::state) fn unknown(&self, field: &'static str, found: u64) -> DecodeError {
        DecodeError::Unknown { what: self.what, field, found }
    }

    pub(in crate::state) fn inconsistent(&self, why: &'static str) -> DecodeError {
        DecodeError::Inconsistent { what: self.what, why }
    }

    fn need(&self, needed: u64) -> Read<()> {
        let left = self.left() as u64;
        if needed <= left { Ok(()) } else { Err(DecodeError::Truncated { what: self.what, needed, left }) }
    }
}
