//! A keyspace: its keys, and the bytes they are counted with.
//!
//! Bytes are counted, never read from an allocator, so that every node counts the same.

use std::ops::Bound;

use bytes::Bytes;

use super::{
    Versioned,
    map::{Iter, OrderedMap},
};

/// What an entry is counted with besides its key's and value's bytes: its place in a leaf that is about three quarters
/// full, the counters of the shared key and value, and the allocator's rounding. Measured (`benches/state.rs`, a million
/// keys of 16 bytes with 100-byte values): 130 bytes, and some 30 more once the value was read. Part of the replicated
/// state: changing it needs a feature level.
pub const ENTRY_OVERHEAD_BYTES: u64 = 160;

/// Keys with their values. Clone is the freeze.
///
/// # Invariants
/// 1. `bytes` is the sum of what each entry is counted with.
/// 2. No key and no value shares the buffer of the entry that it came in: a small key must not hold on to a megabyte.
#[derive(Debug, Clone, Default)]
pub(super) struct Keyspace {
    map: OrderedMap<Versioned>,
    bytes: u64,
}

impl Keyspace {
    pub(super) fn keys(&self) -> u64 {
        self.map.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Versioned> {
        self.map.get(key)
    }

    /// Writes a key, copying it and its value, and returns what was there.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], version: u64) -> Option<Versioned> {
        let new = Versioned { value: Bytes::copy_from_slice(value), version, deadline: None };
        let previous = self.map.insert(key, new);
        self.bytes += counted(key, value);
        self.uncount(key, previous.as_ref());
        previous
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Versioned> {
        let removed = self.map.remove(key);
        self.uncount(key, removed.as_ref());
        removed
    }

    pub(super) fn iter(&self) -> Iter<'_, Versioned> {
        self.map.iter()
    }

    pub(super) fn iter_from(&self, start: Bound<&[u8]>) -> Iter<'_, Versioned> {
        self.map.iter_from(start)
    }

    fn uncount(&mut self, key: &[u8], gone: Option<&Versioned>) {
        if let Some(gone) = gone {
            self.bytes -= counted(key, &gone.value);
        }
    }

    /// Panics with a sentence if an invariant of the type or of its map does not hold.
    pub(super) fn check_invariants(&self) {
        self.map.check_invariants();
        let sum: u64 = self.iter().map(|(key, entry)| counted(key, &entry.value)).sum();
        assert_eq!(sum, self.bytes, "the keyspace counts {} bytes and its entries sum to {sum}", self.bytes);
    }
}

fn counted(key: &[u8], value: &[u8]) -> u64 {
    key.len() as u64 + value.len() as u64 + ENTRY_OVERHEAD_BYTES
}
