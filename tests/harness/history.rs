//! Whether what clients saw of a key could have happened one operation at a time (linearizability), exactly.
//!
//! Each key is a register and every value is written at most once, so Gibbons and Korach's theorem ("Testing Shared
//! Memories", 1997) decides it in O(n log n): take each value's write with all reads of it; its *zone* reaches from the
//! earliest end to the latest start among them. A zone whose end comes first is *forward* (the value surely was there in
//! between), else it is *backward* (it was there at some moment in between). The history is linearizable if and only if
//! no read ends before its write starts, no two forward zones overlap, and no backward zone lies inside a forward one.
//!
//! A write of unknown outcome ends never; one that nobody read may as well not have happened. "No such key" is a value
//! that was written before everything.

use std::{collections::BTreeMap, time::Duration};

/// The value of a key that does not exist.
pub const MISSING: u64 = 0;

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wrote this value, and was told so.
    Write(u64),
    /// Wrote this value, and does not know whether it came to pass.
    WriteUnknown(u64),
    /// Read this value, or [`MISSING`].
    Read(u64),
}

/// One operation of one client, by the times at that client, from a common start.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// Which register.
    pub key: u64,
    /// What.
    pub action: Action,
    /// When it was sent.
    pub start: Duration,
    /// When its answer was there.
    pub end: Duration,
}

/// A value's zone.
#[derive(Debug, Clone, Copy)]
struct Zone {
    value: u64,
    /// The earliest end of its operations.
    first_end: Duration,
    /// The latest start.
    last_start: Duration,
}

impl Zone {
    fn forward(&self) -> bool {
        self.first_end < self.last_start
    }
}

/// What one value's operations add up to.
#[derive(Default)]
struct Seen {
    written: Option<(Duration, Duration)>,
    reads: Vec<(Duration, Duration)>,
}

/// Everything that could not have happened, key by key, in words; empty if all is well.
pub fn check(ops: &[Op]) -> Vec<String> {
    let mut keys: BTreeMap<u64, BTreeMap<u64, Seen>> = BTreeMap::new();
    for op in ops {
        let values = keys.entry(op.key).or_default();
        match op.action {
            Action::Write(v) => values.entry(v).or_default().written = Some((op.start, op.end)),
            Action::WriteUnknown(v) => values.entry(v).or_default().written = Some((op.start, Duration::MAX)),
            Action::Read(v) => values.entry(v).or_default().reads.push((op.start, op.end)),
        }
    }
    keys.iter().flat_map(|(key, values)| check_key(*key, values)).collect()
}

fn check_key(key: u64, values: &BTreeMap<u64, Seen>) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (&value, seen) in values {
        let written = seen.written.or((value == MISSING).then_some((Duration::ZERO, Duration::ZERO)));
        let Some((start, end)) = written else {
            wrong.push(format!("key {key}: value {value} was read and never written"));
            continue;
        };
        if end == Duration::MAX && seen.reads.is_empty() {
            continue;
        }
        if let Some(read) = seen.reads.iter().find(|read| read.1 < start) {
            wrong.push(format!(
                "key {key}: value {value} was read at {read:?}, before its write at {start:?}"
            ));
        }
        let first_end = seen.reads.iter().map(|r| r.1).fold(end, Ord::min);
        let last_start = seen.reads.iter().map(|r| r.0).fold(start, Ord::max);
        let zone = Zone { value, first_end, last_start };
        if zone.forward() { forward.push(zone) } else { backward.push(zone) }
    }
    forward.sort_by_key(|z| z.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_start {
            wrong.push(format!(
                "key {key}: values {:?} and {:?} were both there at one time",
                pair[0], pair[1]
            ));
        }
    }
    for zone in backward {
        // The only forward zone that can hold it, as they do not overlap: the last that begins before it.
        let holds = forward.partition_point(|f| f.first_end < zone.last_start);
        if let Some(outer) = holds.checked_sub(1).map(|i| forward[i])
            && zone.first_end < outer.last_start
        {
            wrong.push(format!("key {key}: value {zone:?} was there while only {outer:?} can have been"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, start: u64, end: u64) -> Op {
        Op { key: 1, action, start: Duration::from_millis(start), end: Duration::from_millis(end) }
    }

    #[test]
    fn plain_histories_pass() {
        use Action::{Read, Write, WriteUnknown};
        let fine: &[&[Op]] = &[
            &[
                op(Read(0), 1, 2),
                op(Write(1), 3, 4),
                op(Read(1), 5, 6),
                op(Write(2), 7, 8),
                op(Read(2), 9, 10),
            ],
            // At the same time as a write, either value.
            &[op(Write(1), 1, 2), op(Write(2), 3, 9), op(Read(1), 4, 5), op(Read(2), 6, 7)],
            // Unknown: never, or much later.
            &[op(WriteUnknown(1), 1, 2), op(Write(2), 3, 4), op(Read(2), 5, 6)],
            &[op(WriteUnknown(1), 1, 2), op(Write(2), 3, 4), op(Read(2), 5, 6), op(Read(1), 7, 8)],
            // Two writers at once, in either order.
            &[op(Write(1), 1, 5), op(Write(2), 1, 5), op(Read(1), 6, 7)],
        ];
        for history in fine {
            assert_eq!(check(history), Vec::<String>::new(), "{history:?}");
        }
    }

    #[test]
    fn impossible_histories_are_found() {
        use Action::{Read, Write, WriteUnknown};
        let broken: &[(&str, &[Op])] = &[
            ("lost write", &[op(Write(1), 1, 2), op(Read(0), 3, 4)]),
            ("stale read", &[op(Write(1), 1, 2), op(Write(2), 3, 4), op(Read(1), 5, 6)]),
            (
                "lost overwrite",
                &[op(Write(1), 1, 2), op(Read(1), 3, 4), op(Write(2), 5, 6), op(Read(1), 7, 8)],
            ),
            ("made-up value", &[op(Read(9), 1, 2)]),
            ("read before written", &[op(Read(1), 1, 2), op(Write(1), 3, 4)]),
            (
                "back and forth",
                &[
                    op(Write(1), 1, 9),
                    op(Write(2), 1, 9),
                    op(Read(1), 10, 11),
                    op(Read(2), 12, 13),
                    op(Read(1), 14, 15),
                ],
            ),
            ("unknown, seen, gone", &[op(WriteUnknown(1), 1, 2), op(Read(1), 3, 4), op(Read(0), 5, 6)]),
            (
                "reads go back",
                &[op(Write(1), 1, 2), op(Write(2), 3, 20), op(Read(2), 4, 5), op(Read(1), 6, 7)],
            ),
        ];
        for (name, history) in broken {
            assert!(!check(history).is_empty(), "{name}: {history:?}");
        }
    }
}
