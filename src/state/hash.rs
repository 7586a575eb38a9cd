//! The rolling hash of the state: one number that differs as soon as two nodes do.
//!
//! After each applied entry: XXH3-64 of the hash before, the entry's place and kind, its stamp, and each change that it
//! made. Two nodes that agree at an index agree on everything up to it, and those that do not can be told at once. It
//! is state itself, so a snapshot carries it on. Every number goes in little-endian and every byte string after its
//! length, so that no two entries look alike.

use xxhash_rust::xxh3::Xxh3;

use super::{BootRecord, LogPosition, Stamp};

/// What an entry was.
#[derive(Debug, Clone, Copy)]
pub(super) enum EntryKind {
    Blank = 0,
    Commands = 1,
    Membership = 2,
    /// No entry, but in the place of one: a cluster of one goes on with the state.
    Recovered = 3,
}

const SET: u8 = 1;
const REMOVED: u8 = 2;
const OPENED: u8 = 3;
const BOOTED: u8 = 4;

/// The hash of one entry, being made.
pub(super) struct EntryHash(Xxh3);

impl EntryHash {
    pub(super) fn new(before: u64, at: LogPosition, kind: EntryKind) -> Self {
        let mut hash = Self(Xxh3::new());
        hash.number(before);
        hash.number(at.term);
        hash.number(at.index);
        hash.0.update(&[kind as u8]);
        hash
    }

    pub(super) fn stamp(&mut self, stamp: &Stamp) {
        self.0.update(&stamp.now.0.to_le_bytes());
        self.number(stamp.touched.len() as u64);
        for touched in &stamp.touched {
            self.number(*touched);
        }
    }

    pub(super) fn set(&mut self, key: &[u8], value: &[u8], revision: u64) {
        self.0.update(&[SET]);
        self.number(revision);
        self.bytes(key);
        self.bytes(value);
    }

    pub(super) fn removed(&mut self, key: &[u8], revision: u64) {
        self.0.update(&[REMOVED]);
        self.number(revision);
        self.bytes(key);
    }

    pub(super) fn opened(&mut self) {
        self.0.update(&[OPENED]);
    }

    pub(super) fn booted(&mut self, slot: &str, boot: &BootRecord) {
        self.0.update(&[BOOTED]);
        self.bytes(slot.as_bytes());
        self.number(boot.raft_id);
        self.0.update(&boot.incarnation);
        self.number(boot.boot_counter);
        self.number(boot.nonce);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> u64 {
        self.0.digest()
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }
}
