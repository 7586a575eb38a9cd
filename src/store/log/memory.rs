//! What the log is, as callers see it: changed at once by every call, while the disk follows.
//!
//! Invariants, checked by the tests after every step:
//! - `first..next` are the entries; `next = last.index + 1`. Without entries `last` is `purged`.
//! - `tail` holds the newest entries without a gap up to `next`, and all that the writer has not yet given to the
//!   database (`written..next`). What is in front of it is read from the database.

use std::{collections::VecDeque, io};

use super::{Position, Record, VoteRecord};

/// What an entry costs beside its payload, roughly, in memory and on disk.
const RECORD_OVERHEAD: usize = 64;
/// How many bytes of log between two notes in [`Sizes`].
const NOTE_EVERY: u64 = 64 * 1024;

/// The bytes an entry is counted with.
pub(super) fn cost(record: &Record) -> usize {
    record.payload.len() + RECORD_OVERHEAD
}

pub(super) struct Memory {
    /// The lowest index that is not purged.
    pub(super) first: u64,
    pub(super) purged: Option<Position>,
    pub(super) last: Option<Position>,
    pub(super) vote: Option<VoteRecord>,
    pub(super) committed: Option<Position>,
    /// Counts truncations: a read that began before one is done again, and the writer's word on what it wrote before
    /// one is void.
    pub(super) epoch: u64,
    tail: VecDeque<Record>,
    tail_bytes: usize,
    tail_cap: usize,
    /// Everything below this index is in the database (or purged).
    written: u64,
    sizes: Sizes,
}

/// What [`Memory::append`] tells the writer.
pub(super) struct Appended {
    pub(super) epoch: u64,
    /// The log begins here, and not where it was expected to.
    pub(super) starts_at: Option<u64>,
}

impl Memory {
    /// An empty log that begins at `first`.
    pub(super) fn new(first: u64, purged: Option<Position>, tail_cap: usize) -> Self {
        Self {
            first,
            purged,
            last: purged,
            vote: None,
            committed: None,
            epoch: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_cap,
            written: first,
            sizes: Sizes::default(),
        }
    }

    /// The index after the last one.
    pub(super) fn next(&self) -> u64 {
        match self.last {
            Some(last) if last.index >= self.first => last.index + 1,
            _ => self.first,
        }
    }

    fn is_empty(&self) -> bool {
        self.next() == self.first
    }

    /// Adds entries. They must follow the last one; only a log that never had one begins anywhere.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<Appended> {
        let mut appended = Appended { epoch: self.epoch, starts_at: None };
        let Some(head) = records.first() else { return Ok(appended) };
        let begins = self.is_empty() && self.purged.is_none();
        let mut expected = if begins { head.index } else { self.next() };
        let mut term = self.last.map_or(0, |last| last.term);
        for record in records {
            if record.index != expected || record.term < term {
                let Record { index, term: t, .. } = record;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "entry {index} of term {t} does not follow the log, which goes on at {expected} in term {term} or later"
                    ),
                ));
            }
            (expected, term) = (expected + 1, record.term);
        }
        if begins && head.index != self.first {
            self.first = head.index;
            self.written = head.index;
            appended.starts_at = Some(head.index);
        }
        for record in records {
            self.sizes.add(record.index, cost(record) as u64);
            self.tail_bytes += cost(record);
            self.last = Some(record.position());
            self.tail.push_back(record.clone());
        }
        Ok(appended)
    }

    /// Takes up an entry that is already in the database.
    pub(super) fn recover(&mut self, record: Record) {
        self.sizes.add(record.index, cost(&record) as u64);
        self.tail_bytes += cost(&record);
        self.last = Some(record.position());
        self.written = record.index + 1;
        self.tail.push_back(record);
        self.evict();
    }

    /// The writer gave everything below `next` to the database.
    pub(super) fn written(&mut self, epoch: u64, next: u64) {
        if epoch == self.epoch {
            self.written = self.written.max(next);
            self.evict();
        }
    }

    fn evict(&mut self) {
        while self.tail_bytes > self.tail_cap && self.tail.front().is_some_and(|r| r.index < self.written) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(record) = self.tail.pop_front() {
            self.tail_bytes -= cost(&record);
        }
    }

    /// Forgets everything after `keep`, which is an entry, or what was purged last, or `None` for everything.
    pub(super) fn truncate(&mut self, keep: Option<Position>) {
        let next = keep.map_or(self.first, |keep| (keep.index + 1).max(self.first));
        while self.tail.back().is_some_and(|r| r.index >= next) {
            if let Some(record) = self.tail.pop_back() {
                self.tail_bytes -= cost(&record);
            }
        }
        self.written = self.written.min(next);
        self.sizes.truncate(next);
        self.epoch += 1;
        self.last = keep.or(self.purged);
    }

    /// Forgets everything up to `upto`, which may lie beyond the last entry.
    pub(super) fn purge(&mut self, upto: Position) {
        while self.tail.front().is_some_and(|r| r.index <= upto.index) {
            self.pop_front();
        }
        if self.next() <= upto.index + 1 {
            self.last = Some(upto);
        }
        self.first = upto.index + 1;
        self.purged = Some(upto);
        self.written = self.written.max(self.first);
        self.sizes.purge(self.first);
    }

    /// The lowest index that is in memory, or [`Memory::next`].
    pub(super) fn tail_from(&self) -> u64 {
        self.tail.front().map_or(self.next(), |r| r.index)
    }

    /// Copies entries `from..to` out of the tail until `budget` bytes are passed. `from` must be in the tail.
    pub(super) fn copy_tail(&self, from: u64, to: u64, budget: &mut Budget, out: &mut Vec<Record>) {
        let skip = usize::try_from(from - self.tail_from()).unwrap_or(usize::MAX);
        for record in self.tail.range(skip.min(self.tail.len())..) {
            if record.index >= to || !budget.admit(record) {
                break;
            }
            out.push(record.clone());
        }
    }

    /// About how many bytes of log come after `index`.
    pub(super) fn bytes_since(&self, index: u64) -> u64 {
        self.sizes.since(index.saturating_add(1))
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        assert!(self.written >= self.first && self.written <= self.next().max(self.first));
        assert!(self.tail_from() <= self.written, "an entry is neither in memory nor in the database");
        let indexes: Vec<u64> = self.tail.iter().map(|r| r.index).collect();
        assert_eq!(indexes, (self.tail_from()..self.next()).collect::<Vec<_>>());
        assert_eq!(self.tail_bytes, self.tail.iter().map(cost).sum::<usize>());
        if self.is_empty() {
            assert_eq!(self.last, self.purged);
        }
    }
}

/// How many bytes a read may still return. The first entry is always admitted.
pub(super) struct Budget {
    left: usize,
    pub(super) spent: bool,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { left: bytes, spent: false }
    }

    /// Whether this entry may be returned.
    pub(super) fn admit(&mut self, record: &Record) -> bool {
        if self.spent {
            return false;
        }
        self.left = self.left.saturating_sub(cost(record));
        self.spent = self.left == 0;
        true
    }
}

/// How the log's bytes lie over its indexes, with a note every [`NOTE_EVERY`] bytes.
#[derive(Default)]
struct Sizes {
    /// An index, and the bytes of everything before it.
    notes: VecDeque<(u64, u64)>,
    /// The bytes of everything ever appended, as far as not truncated.
    total: u64,
}

impl Sizes {
    fn add(&mut self, index: u64, bytes: u64) {
        if self.notes.back().is_none_or(|(_, before)| self.total - before >= NOTE_EVERY) {
            self.notes.push_back((index, self.total));
        }
        self.total += bytes;
    }

    fn truncate(&mut self, next: u64) {
        while let Some(&(index, before)) = self.notes.back() {
            if index < next {
                return;
            }
            self.total = before;
            self.notes.pop_back();
        }
    }

    fn purge(&mut self, first: u64) {
        while self.notes.get(1).is_some_and(|(index, _)| *index <= first) {
            self.notes.pop_front();
        }
    }

    fn since(&self, from: u64) -> u64 {
        let after = self.notes.partition_point(|(index, _)| *index <= from);
        let before = match after.checked_sub(1).and_then(|at| self.notes.get(at)) {
            Some((_, before)) => *before,
            None => self.notes.front().map_or(self.total, |(_, before)| *before),
        };
        self.total - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(range: std::ops::Range<u64>, term: u64) -> Vec<Record> {
        range.map(|index| Record { index, term, kind: 1, payload: vec![0; 936].into() }).collect()
    }

    #[test]
    fn the_tail_keeps_what_is_not_written_and_then_its_cap() {
        let mut memory = Memory::new(0, None, 10_000);
        let epoch = memory.append(&records(0..100, 1)).unwrap().epoch;
        assert_eq!(memory.tail_from(), 0);
        memory.written(epoch, 50);
        assert_eq!(memory.tail_from(), 50);
        memory.written(epoch, 100);
        assert_eq!(memory.tail_from(), 90);
        memory.check_invariants();
    }

    #[test]
    fn what_was_written_before_a_truncation_says_nothing_about_what_is_after() {
        let mut memory = Memory::new(0, None, 0);
        let old = memory.append(&records(0..10, 1)).unwrap().epoch;
        memory.truncate(Some(Position { term: 1, index: 4 }));
        let new = memory.append(&records(5..8, 2)).unwrap().epoch;
        memory.written(old, 10);
        assert_eq!(memory.tail_from(), 0, "nothing is given up on an old word");
        memory.written(new, 8);
        assert_eq!(memory.tail_from(), 8);
    }

    #[test]
    fn bytes_since_is_right_to_a_note() {
        let mut memory = Memory::new(0, None, 0);
        memory.append(&records(0..10_000, 1)).unwrap();
        for index in [0_u64, 1, 77, 5_000, 9_998] {
            let exact = (9_999 - index) * 1_000;
            let told = memory.bytes_since(index);
            assert!(told >= exact && told <= exact + NOTE_EVERY + 1_000, "{index}: {told} for {exact}");
        }
        memory.purge(Position { term: 1, index: 8_000 });
        assert!(memory.bytes_since(8_000) < 2_100_000);
        memory.truncate(Some(Position { term: 1, index: 9_000 }));
        assert!(memory.bytes_since(8_000) < 1_100_000);
    }

    #[test]
    fn entries_that_do_not_follow_are_refused() {
        let mut memory = Memory::new(0, None, 0);
        assert_eq!(memory.append(&records(3..5, 2)).unwrap().starts_at, Some(3));
        assert!(memory.append(&records(6..7, 2)).is_err());
        assert!(memory.append(&records(4..6, 2)).is_err());
        assert!(memory.append(&records(5..6, 1)).is_err(), "the term goes back");
        memory.purge(Position { term: 9, index: 20 });
        assert!(memory.append(&records(5..6, 9)).is_err());
        assert!(memory.append(&records(21..22, 9)).unwrap().starts_at.is_none());
        memory.check_invariants();
    }
}
