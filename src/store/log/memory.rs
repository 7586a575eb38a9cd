//! What the log knows without reading the disk: where it begins and ends, how large it is, and its newest entries.

use std::collections::VecDeque;

use super::{Position, Record, VoteRecord};

/// Of each entry that is not purged: enough to find its term and the bytes behind it.
#[derive(Debug, Clone, Copy)]
struct Meta {
    term: u64,
    /// Bytes of payload of all entries ever pushed, up to and including this one.
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) purged: Option<Position>,
    pub(super) committed: Option<Position>,
    pub(super) vote: Option<VoteRecord>,
    metas: VecDeque<Meta>,
    /// Bytes pushed up to the first entry.
    base_bytes: u64,
    tail: VecDeque<Record>,
    tail_bytes: usize,
    max_tail_bytes: usize,
    /// Entries below this are in sled and may leave the tail.
    inserted: u64,
    /// The index of the first entry ever: 0, except in openraft's test suite.
    start: u64,
    starts_anywhere: bool,
}

impl Memory {
    pub(super) fn new(
        max_tail_bytes: usize,
        purged: Option<Position>,
        committed: Option<Position>,
        vote: Option<VoteRecord>,
    ) -> Self {
        Self {
            purged,
            committed,
            vote,
            metas: VecDeque::new(),
            base_bytes: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            max_tail_bytes,
            inserted: 0,
            start: 0,
            starts_anywhere: false,
        }
    }

    /// See `LogOptions::starts_anywhere`.
    pub(super) fn start_anywhere(&mut self) {
        self.starts_anywhere = true;
    }

    pub(super) fn first(&self) -> u64 {
        self.purged.map_or(self.start, |at| at.index + 1)
    }

    pub(super) fn next(&self) -> u64 {
        self.first() + self.metas.len() as u64
    }

    pub(super) fn last(&self) -> Option<Position> {
        self.metas.back().map(|meta| Position { term: meta.term, index: self.next() - 1 })
    }

    pub(super) fn tail_first(&self) -> u64 {
        self.next() - self.tail.len() as u64
    }

    pub(super) fn push(&mut self, record: Record) {
        if self.starts_anywhere && self.purged.is_none() && self.metas.is_empty() {
            self.start = record.index;
        }
        assert_eq!(record.index, self.next(), "entries are appended without a hole");
        let before = self.metas.back().map_or(self.base_bytes, |meta| meta.bytes);
        self.metas.push_back(Meta { term: record.term, bytes: before + record.payload.len() as u64 });
        self.tail_bytes += record.payload.len();
        self.tail.push_back(record);
        self.evict();
    }

    /// Entries below `next` are in sled now.
    pub(super) fn inserted(&mut self, next: u64) {
        self.inserted = next;
        self.evict();
    }

    fn evict(&mut self) {
        while self.tail_bytes > self.max_tail_bytes && self.tail_first() < self.inserted {
            self.pop_tail();
        }
    }

    fn pop_tail(&mut self) {
        if let Some(record) = self.tail.pop_front() {
            self.tail_bytes -= record.payload.len();
        }
    }

    /// Drops the entries after `last_kept`; the index of the first one dropped.
    pub(super) fn truncate_after(&mut self, last_kept: Option<u64>) -> u64 {
        let from = last_kept.map_or(0, |index| index + 1).max(self.first());
        while self.next() > from {
            self.metas.pop_back();
            if let Some(record) = self.tail.pop_back() {
                self.tail_bytes -= record.payload.len();
            }
        }
        self.inserted = self.inserted.min(from);
        from
    }

    pub(super) fn purge(&mut self, upto: Position) {
        while self.first() <= upto.index {
            let Some(meta) = self.metas.pop_front() else { break };
            self.base_bytes = meta.bytes;
            let index = self.first();
            if self.tail.front().is_some_and(|record| record.index == index) {
                self.pop_tail();
            }
            self.purged = Some(Position { term: meta.term, index });
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    pub(super) fn tail(&self, from: u64, to: u64, max_bytes: usize) -> Vec<Record> {
        let skip = usize::try_from(from - self.tail_first()).unwrap_or(usize::MAX);
        let take = usize::try_from(to - from).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut records = Vec::new();
        for record in self.tail.iter().skip(skip).take(take) {
            if !records.is_empty() && bytes + record.payload.len() > max_bytes {
                break;
            }
            bytes += record.payload.len();
            records.push(record.clone());
        }
        records
    }

    pub(super) fn bytes_since(&self, index: u64) -> u64 {
        let end = self.metas.back().map_or(self.base_bytes, |meta| meta.bytes);
        let start = match index.checked_sub(self.first()) {
            None => self.base_bytes,
            Some(at) => {
                usize::try_from(at).ok().and_then(|at| self.metas.get(at)).map_or(end, |meta| meta.bytes)
            }
        };
        end - start
    }
}
