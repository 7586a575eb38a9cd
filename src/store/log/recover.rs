//! What a start finds: reads the whole log once, and compares it with the mark.
//!
//! - Every entry from the mark's `first` to its `synced` must be whole; else the start is refused.
//! - Beyond it, an entry that is not whole is the torn end of a write that was never acknowledged: it is cut off. But if
//!   there are later entries behind it, it is damage, because entries are written in order.
//! - Terms never fall from one entry to the next.
//! - In front of `first` there may be the rest of a purge; the writer removes it.

use std::{io, path::Path};

use super::{
    Position, Record,
    mark::{MarkRecord, Marker},
    memory::Memory,
    record::Assembly,
    tree::Tree,
};
use crate::store::error::StoreError;

/// How many keys to list at a time.
const SLICE: usize = 1024;

/// Reads the log and makes it fit the mark. Returns it, and from which index on there is something left to purge.
pub(super) fn recover(
    tree: &Tree,
    marker: &Marker,
    tail_cap: usize,
) -> Result<(Memory, Option<u64>), StoreError> {
    let mark = marker.record();
    let dir = tree.dir();
    let mut scan = Scan::new(tree.group(), mark, tail_cap);
    tree.scan(mark.first, u64::MAX, |index, part, value| scan.visit(index, part, value))
        .map_err(|e| unreadable(dir, e))?;
    scan.end_entry();
    scan.check(dir)?;
    let next = scan.memory.next();
    if let Some(trouble) = &scan.trouble {
        tracing::warn!(index = trouble.index, why = trouble.why, "cutting off the torn end of the log");
        remove_from(tree, next).and_then(|()| tree.sync()).map_err(|e| unreadable(dir, e))?;
    }
    let mut memory = scan.memory;
    let last = memory.last;
    memory.committed = mark
        .committed
        .zip(last)
        .map(|(committed, last)| if last.index < committed.index { last } else { committed });
    let committed = memory.committed;
    let found = MarkRecord { synced: last, committed, ..mark };
    if found != mark {
        marker.strict(|mark| *mark = found).map_err(StoreError::io("write the mark of", dir))?;
    }
    let leftover = tree.keys(0, mark.first, 1, false).map_err(|e| unreadable(dir, e))?;
    let purge_from =
        leftover.first().and_then(|key| super::record::parse_key(tree.group(), key)).map(|(i, _)| i);
    Ok((memory, purge_from))
}

/// Removes every entry from `index` on, the last one first, so that there is never a hole.
pub(super) fn remove_from(tree: &Tree, index: u64) -> io::Result<()> {
    loop {
        let keys = tree.keys(index, u64::MAX, SLICE, true)?;
        if keys.is_empty() {
            return Ok(());
        }
        keys.iter().try_for_each(|key| tree.remove(key))?;
    }
}

fn unreadable(dir: &Path, error: io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::InvalidData {
        StoreError::damaged(dir, error.to_string())
    } else {
        StoreError::Io { doing: "read the log in", path: dir.to_owned(), source: error }
    }
}

/// An entry that is not there, or not whole.
struct Trouble {
    index: u64,
    why: &'static str,
}

/// The pass over the log's keys.
struct Scan {
    group: u32,
    mark: MarkRecord,
    memory: Memory,
    assembly: Option<Assembly>,
    /// The first index that is not whole. Nothing is taken up from there on.
    trouble: Option<Trouble>,
    /// An index behind the trouble.
    later: Option<u64>,
    /// The entry at the mark has another term.
    other_term: Option<Position>,
}

impl Scan {
    fn new(group: u32, mark: MarkRecord, tail_cap: usize) -> Self {
        let memory = Memory::new(mark.first, mark.purged, tail_cap);
        Self { group, mark, memory, assembly: None, trouble: None, later: None, other_term: None }
    }

    fn trouble(&mut self, why: &'static str) {
        self.assembly = None;
        self.trouble.get_or_insert(Trouble { index: self.memory.next(), why });
    }

    /// Takes a key and its value; false to stop.
    fn visit(&mut self, index: u64, part: u16, value: &[u8]) -> bool {
        if index != self.memory.next() {
            // The entry before is complete with this.
            self.end_entry();
        }
        let expected = self.memory.next();
        if self.trouble.is_none() {
            if index != expected {
                self.trouble("it is missing");
            } else if let Some(assembly) = &mut self.assembly {
                if assembly.push(part, value).is_err() {
                    self.trouble("its parts do not fit together");
                }
            } else if part != 0 {
                self.trouble("its beginning is missing");
            } else {
                match Assembly::begin(self.group, index, value) {
                    Ok(assembly) => self.assembly = Some(assembly),
                    Err(_) => self.trouble("its header makes no sense"),
                }
            }
        }
        if index > expected && self.trouble.is_some() {
            self.later = Some(index);
            return false;
        }
        true
    }

    /// There are no more parts of the entry at hand.
    fn end_entry(&mut self) {
        let Some(assembly) = self.assembly.take() else { return };
        match assembly.finish() {
            Ok(record) => self.take(record),
            Err(_) => self.trouble("its end is missing, or its checksum is wrong"),
        }
    }

    fn take(&mut self, record: Record) {
        let position = record.position();
        if self.memory.last.is_some_and(|last| last.term > position.term) {
            return self.trouble("its term is lower than the one before");
        }
        if self.mark.synced.is_some_and(|synced| synced.index == position.index && synced != position) {
            self.other_term = Some(position);
        }
        self.memory.recover(record);
    }

    /// Whether this log may be used.
    fn check(&self, dir: &Path) -> Result<(), StoreError> {
        let next = self.memory.next();
        let synced = self.mark.synced.filter(|synced| synced.index >= self.mark.first);
        if let Some(synced) = synced.filter(|synced| synced.index >= next) {
            let found = match &self.trouble {
                Some(trouble) => format!("entry {next}: {}", trouble.why),
                None => format!("the log ends before entry {next}"),
            };
            return Err(StoreError::BelowMark {
                path: dir.to_owned(),
                first_missing: next,
                last_synced: synced.index,
                found,
            });
        }
        if let Some(Position { term, index }) = self.other_term {
            let why = format!("entry {index} is of term {term}, and another one was synced there");
            return Err(StoreError::damaged(dir, why));
        }
        if let (Some(trouble), Some(later)) = (&self.trouble, self.later) {
            let Trouble { index, why } = trouble;
            let why = format!("entry {index} is not whole ({why}), and there is entry {later} behind it");
            return Err(StoreError::damaged(dir, why));
        }
        Ok(())
    }
}
