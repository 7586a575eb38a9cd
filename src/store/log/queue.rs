//! The queue into the writer thread, and what is shared with it.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock},
};

use super::{
    Done, Position, Record, VoteRecord,
    mark::Marker,
    memory::{Memory, cost},
    tree::Tree,
};
use crate::store::disk::SpaceWatch;

/// The most bytes of entries that wait for the writer. One entry beyond it is let in, so that none is too large.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// The most appends that wait for the writer.
const MAX_WAITING_APPENDS: usize = 16 * 1024;

/// What the writer is asked to do, in this order.
pub(super) enum Op {
    Append { records: Vec<Record>, epoch: u64, starts_at: Option<u64>, done: Done },
    Vote { vote: VoteRecord, done: Done },
    Truncate { keep: Option<Position>, done: Done },
    Purge { upto: Position, done: Done },
    Committed(Option<Position>),
}

/// Why nothing is taken any more. The first one stays.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    text: String,
    close: bool,
}

impl Failure {
    pub(super) fn new(error: &io::Error) -> Self {
        Self { kind: error.kind(), text: error.to_string(), close: false }
    }

    pub(super) fn closed() -> Self {
        Self { kind: io::ErrorKind::BrokenPipe, text: "the log is closed".into(), close: true }
    }

    /// Whether nothing failed, but the log was closed.
    pub(super) fn is_close(&self) -> bool {
        self.close
    }

    pub(super) fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

#[derive(Default)]
pub(super) struct Waiting {
    ops: VecDeque<Op>,
    appends: usize,
    bytes: usize,
    /// The writer ends when the queue is empty.
    closing: bool,
    /// Set once the writer has ended.
    pub(super) failure: Option<Failure>,
}

/// The queue. Only appends wait for room: everything else is small, and limited by its caller, who waits for the answer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Something came, or the end.
    came: Condvar,
    /// Something went.
    went: Condvar,
}

/// What [`Queue::take`] found.
pub(super) enum Taken {
    Ops(VecDeque<Op>),
    /// Nothing waits, and the writer said it has something to do meanwhile.
    Idle,
    /// Nothing waits, and nothing will come.
    End,
}

impl Queue {
    /// Locks the queue, or says why it takes nothing any more.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, Waiting>, Failure> {
        let waiting = locked(&self.waiting);
        match &waiting.failure {
            Some(failure) => Err(failure.clone()),
            None if waiting.closing => Err(Failure::closed()),
            None => Ok(waiting),
        }
    }

    /// Like [`Queue::enter`], once there is room for an append.
    pub(super) fn enter_for_append(&self, bytes: usize) -> Result<MutexGuard<'_, Waiting>, Failure> {
        loop {
            let waiting = self.enter()?;
            let fits = waiting.bytes.saturating_add(bytes) <= MAX_WAITING_BYTES
                && waiting.appends < MAX_WAITING_APPENDS;
            if fits || waiting.appends == 0 {
                return Ok(waiting);
            }
            drop(self.went.wait(waiting).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Adds to the queue that is locked with `waiting`.
    pub(super) fn push(&self, mut waiting: MutexGuard<'_, Waiting>, op: Op) {
        if let Op::Append { records, .. } = &op {
            waiting.appends += 1;
            waiting.bytes += total_cost(records);
        }
        if let (Op::Committed(new), Some(Op::Committed(old))) = (&op, waiting.ops.back_mut()) {
            *old = *new;
            return;
        }
        // A committed index can wait until something else comes, or [`Queue::nudge`].
        let wake = !matches!(op, Op::Committed(_));
        waiting.ops.push_back(op);
        drop(waiting);
        if wake {
            self.came.notify_one();
        }
    }

    /// Wakes the writer if anything waits.
    pub(super) fn nudge(&self) {
        if !locked(&self.waiting).ops.is_empty() {
            self.came.notify_one();
        }
    }

    /// Takes everything that waits. Blocks while there is nothing, unless `busy`.
    pub(super) fn take(&self, busy: bool) -> Taken {
        let mut waiting = locked(&self.waiting);
        loop {
            if !waiting.ops.is_empty() {
                return Taken::Ops(std::mem::take(&mut waiting.ops));
            }
            if waiting.closing || waiting.failure.is_some() {
                return Taken::End;
            }
            if busy {
                return Taken::Idle;
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The writer is done with an append: there is room for others.
    pub(super) fn release(&self, records: &[Record]) {
        let mut waiting = locked(&self.waiting);
        waiting.appends = waiting.appends.saturating_sub(1);
        waiting.bytes = waiting.bytes.saturating_sub(total_cost(records));
        drop(waiting);
        self.went.notify_all();
    }

    /// Nothing more is taken; the writer finishes what waits.
    pub(super) fn close(&self) {
        locked(&self.waiting).closing = true;
        self.came.notify_all();
        self.went.notify_all();
    }

    /// Nothing more is taken, and nothing more is done. Returns what waited.
    pub(super) fn fail(&self, failure: Failure) -> VecDeque<Op> {
        let mut waiting = locked(&self.waiting);
        waiting.failure.get_or_insert(failure);
        let ops = std::mem::take(&mut waiting.ops);
        drop(waiting);
        self.came.notify_all();
        self.went.notify_all();
        ops
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        locked(&self.waiting).failure.clone()
    }
}

fn total_cost(records: &[Record]) -> usize {
    records.iter().map(cost).sum()
}

/// What callers, the writer and the mark's thread share.
///
/// Locks are taken in this order: the queue, the memory; the mark's own are never held with these.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) memory: Mutex<Memory>,
    pub(super) marker: Marker,
    pub(super) space: SpaceWatch,
    /// `None` once closed.
    pub(super) tree: RwLock<Option<Arc<Tree>>>,
}

/// Locks. A thread that panicked with the lock left the data as a step of ours left it; the writer, where panics are
/// possible at all, ends with one.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
