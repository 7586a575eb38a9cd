//! Writing a snapshot, one section at a time.

use std::iter::{FusedIterator, Peekable};

use bytes::Bytes;

use super::{
    BOOTS, DEFAULT_KEYSPACE, END, ENTRIES, ENTRIES_SECTION_BYTES, GROUP, HAS_DEADLINE, HAS_LAST_APPLIED,
    HAS_MEMBERSHIP_ENTRY, HEADER, IS_OPEN, KEYSPACES, LIMITS, MAGIC, POSITION, RETIRED, SESSIONS, STATE,
    WATCH,
    section::{SectionWriter, chain},
};
use crate::state::{
    LogPosition, Machine, Versioned,
    codec::{encode_membership, put_boot, wire::Writer},
    map::Iter,
};

/// The sections of a snapshot, encoded as they are asked for.
pub struct Sections<'a> {
    machine: &'a Machine,
    entries: Peekable<Iter<'a, Versioned>>,
    /// The kind to come; `None` after the end marker.
    next: Option<u16>,
    written: u64,
    chain: u32,
}

impl std::fmt::Debug for Sections<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sections").field("written", &self.written).finish_non_exhaustive()
    }
}

impl<'a> Sections<'a> {
    pub(super) fn new(machine: &'a Machine) -> Self {
        let entries = machine.keyspace.iter().peekable();
        Self { machine, entries, next: Some(HEADER), written: 0, chain: 0 }
    }

    fn payload(&mut self, kind: u16, out: &mut Writer) {
        let machine = self.machine;
        match kind {
            HEADER => {
                out.raw(&MAGIC);
                out.varint(GROUP);
                out.varint(machine.feature_level.into());
            }
            POSITION => put_position(machine, out),
            STATE => {
                out.signed(machine.clock.0);
                out.varint(machine.revision);
                out.u8(if machine.open { IS_OPEN } else { 0 });
                out.u64_le(machine.state_hash);
            }
            // No cap, noeviction.
            LIMITS => {
                out.varint(0);
                out.varint(0);
            }
            KEYSPACES => put_keyspaces(machine, out),
            RETIRED => {
                out.varint(machine.retired.len() as u64);
                machine.retired.iter().for_each(|id| out.varint(*id));
            }
            BOOTS => put_boots(machine, out),
            SESSIONS => out.varint(0),
            // No event is kept, so a watch can begin at the present revision only.
            WATCH => {
                out.varint(machine.revision);
                out.varint(0);
            }
            ENTRIES => self.put_entries(out),
            END => {
                out.varint(self.written);
                out.varint(machine.keys());
                out.varint(machine.bytes());
                out.u32_le(self.chain);
            }
            kind => unreachable!("no section of kind {kind} is written"),
        }
    }

    fn put_entries(&mut self, out: &mut Writer) {
        let start = out.len();
        out.varint(0);
        while out.len() - start < ENTRIES_SECTION_BYTES
            && let Some((key, Versioned { value, version, deadline })) = self.entries.next()
        {
            out.bytes(key);
            out.varint(*version);
            out.u8(if deadline.is_some() { HAS_DEADLINE } else { 0 });
            if let Some(deadline) = deadline {
                out.signed(deadline.0);
            }
            out.bytes(value);
        }
    }
}

impl Iterator for Sections<'_> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut kind = self.next?;
        if kind == ENTRIES && self.entries.peek().is_none() {
            kind = END;
        }
        let capacity = if kind == ENTRIES { ENTRIES_SECTION_BYTES + 8 * 1024 } else { 256 };
        let mut section = SectionWriter::new(kind, capacity);
        self.payload(kind, &mut section.out);
        let (section, crc) = section.finish();
        self.written += 1;
        self.chain = chain(self.chain, crc);
        self.next = match kind {
            END => None,
            ENTRIES => Some(ENTRIES),
            kind => Some(kind + 1),
        };
        Some(section)
    }
}

impl FusedIterator for Sections<'_> {}

fn put_position(machine: &Machine, out: &mut Writer) {
    let flag = |position: Option<LogPosition>, flag| if position.is_some() { flag } else { 0 };
    out.u8(flag(machine.last_applied, HAS_LAST_APPLIED) | flag(machine.membership_at, HAS_MEMBERSHIP_ENTRY));
    for LogPosition { term, index } in [machine.last_applied, machine.membership_at].into_iter().flatten() {
        out.varint(term);
        out.varint(index);
    }
    out.bytes(&encode_membership(&machine.membership));
}

fn put_keyspaces(machine: &Machine, out: &mut Writer) {
    out.varint(1);
    out.varint(0);
    out.bytes(DEFAULT_KEYSPACE.as_bytes());
    // No cap, noeviction; then the counters, of which evictions and expirations are still 0.
    for number in [0, 0, machine.keys(), machine.bytes(), 0, 0] {
        out.varint(number);
    }
}

fn put_boots(machine: &Machine, out: &mut Writer) {
    out.varint(machine.boots.len() as u64);
    machine.boots.iter().for_each(|(slot, boot)| put_boot(out, slot, boot));
}
