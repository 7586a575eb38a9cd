//! The writer thread: everything that reaches the disk goes through here, in the order it was asked for.

use std::{
    collections::VecDeque,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    Done, LogOptions, Position, Record, SyncReport, VoteRecord,
    mark::{Mark, MarkFile},
    memory::Memory,
    tree::Tree,
};
use crate::store::{StoreError, files::TwoSlots};

/// Bytes waiting for the disk beyond which append blocks its caller. openraft's core calls it, so this must stay rare: what the proposer lets
/// into flight is far below.
const MAX_QUEUED_BYTES: usize = 256 << 20;
/// How far the mark may be behind what is synced.
const MARK_INTERVAL: Duration = Duration::from_millis(100);
/// Purged entries deleted between two syncs: bounds how long an append waits behind a purge.
const PURGE_SLICE: u64 = 64;

/// What is asked of the disk.
pub(super) enum Operation {
    Append(Vec<Record>, Done),
    Vote(VoteRecord, Done),
    Truncate { from: u64, last: Option<Position>, done: Done },
    Purge { upto: Position, done: Done },
    Barrier(Done),
}

impl Operation {
    fn done(self) -> Done {
        match self {
            Self::Append(_, done) | Self::Vote(_, done) | Self::Barrier(done) => done,
            Self::Truncate { done, .. } | Self::Purge { done, .. } => done,
        }
    }
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    operations: VecDeque<Operation>,
    bytes: usize,
    closed: bool,
    /// Why nothing is written any more.
    failed: Option<String>,
}

fn stopped(failed: Option<&String>) -> io::Error {
    match failed {
        Some(why) => io::Error::other(format!("the log has failed: {why}")),
        None => io::Error::other("the log is closed"),
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_for_room(&self, bytes: usize) {
        let mut waiting = self.lock();
        while waiting.bytes > 0 && waiting.bytes + bytes > MAX_QUEUED_BYTES && !waiting.closed {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn push(&self, operation: Operation, bytes: usize) {
        let mut waiting = self.lock();
        if waiting.closed {
            let error = stopped(waiting.failed.as_ref());
            drop(waiting);
            operation.done()(Err(error));
            return;
        }
        waiting.bytes += bytes;
        waiting.operations.push_back(operation);
        drop(waiting);
        self.changed.notify_all();
    }

    /// What is queued goes on; nothing new is taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Everything queued, after waiting for something at most `patience`; and whether the queue is closed.
    fn take(&self, patience: Duration) -> (VecDeque<Operation>, bool) {
        let waiting = self.lock();
        let empty = |waiting: &mut Waiting| waiting.operations.is_empty() && !waiting.closed;
        let (mut waiting, _) =
            self.changed.wait_timeout_while(waiting, patience, empty).unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        let taken = (mem::take(&mut waiting.operations), waiting.closed);
        drop(waiting);
        self.changed.notify_all();
        taken
    }

    fn fail(&self, why: &str) -> VecDeque<Operation> {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.failed = Some(why.to_string());
        waiting.bytes = 0;
        let left = mem::take(&mut waiting.operations);
        drop(waiting);
        self.changed.notify_all();
        left
    }
}

/// The vote, in a file of its own.
pub(super) struct VoteFile(TwoSlots);

impl VoteFile {
    pub(super) fn open(path: PathBuf) -> Result<(Self, Option<VoteRecord>), StoreError> {
        let what = path.display().to_string();
        let (slots, record) = TwoSlots::open(path, *b"vote")?;
        let vote = match record {
            None => None,
            Some(record) => {
                Some(Self::decode(&record).ok_or_else(|| StoreError::damaged(what, "it is not a vote"))?)
            }
        };
        Ok((Self(slots), vote))
    }

    fn decode(bytes: &[u8]) -> Option<VoteRecord> {
        let bytes: &[u8; 17] = bytes.try_into().ok()?;
        Some(VoteRecord {
            term: u64::from_be_bytes(bytes[..8].try_into().ok()?),
            node: u64::from_be_bytes(bytes[8..16].try_into().ok()?),
            committed: match bytes[16] {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }

    fn write(&mut self, vote: &VoteRecord) -> io::Result<()> {
        let mut bytes = [0; 17];
        bytes[..8].copy_from_slice(&vote.term.to_be_bytes());
        bytes[8..16].copy_from_slice(&vote.node.to_be_bytes());
        bytes[16] = vote.committed.into();
        self.0.write(&bytes)
    }
}

pub(super) struct Writer {
    pub(super) tree: Arc<Tree>,
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) queue: Arc<Queue>,
    pub(super) mark_file: MarkFile,
    pub(super) mark: Mark,
    pub(super) vote_file: VoteFile,
    pub(super) options: LogOptions,
}

/// Appends inserted and not yet synced.
#[derive(Default)]
struct Pending {
    callbacks: Vec<Done>,
    last: Option<Position>,
    report: Option<SyncReport>,
}

/// What the thread carries from round to round.
struct Rounds {
    pending: Pending,
    /// Purged entries `purge_from..purge_to` are still in sled.
    purge_from: u64,
    purge_to: u64,
    mark_written: Mark,
    mark_written_at: Duration,
}

impl Writer {
    pub(super) fn run(mut self) {
        let first = self.memory().first();
        let mut rounds = Rounds {
            pending: Pending::default(),
            purge_from: first,
            purge_to: first,
            mark_written: self.mark,
            mark_written_at: self.options.clock.monotonic(),
        };
        loop {
            let patience = if rounds.purge_from < rounds.purge_to { Duration::ZERO } else { MARK_INTERVAL };
            let (mut operations, closed) = self.queue.take(patience);
            let last_round = closed && operations.is_empty();
            // A panic must not leave callbacks uncalled: openraft would wait for them for ever.
            let round =
                catch_unwind(AssertUnwindSafe(|| self.round(&mut rounds, &mut operations, last_round)));
            let result = round.unwrap_or_else(|_| Err(io::Error::other("the log writer panicked")));
            if let Err(error) = result {
                return self.fail(error, rounds.pending, operations);
            }
            if last_round {
                return;
            }
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is written any more; whoever waits is told.
    fn fail(self, error: io::Error, pending: Pending, operations: VecDeque<Operation>) {
        let why = error.to_string();
        tracing::error!(error = why, "the log cannot be written: the node must stop");
        let queued = self.queue.fail(&why);
        let callbacks = pending.callbacks.into_iter();
        for done in callbacks.chain(operations.into_iter().chain(queued).map(Operation::done)) {
            done(Err(io::Error::new(error.kind(), why.clone())));
        }
    }

    fn round(
        &mut self,
        rounds: &mut Rounds,
        operations: &mut VecDeque<Operation>,
        last: bool,
    ) -> io::Result<()> {
        while let Some(operation) = operations.pop_front() {
            if let Operation::Append(records, done) = operation {
                // Registered first: if the insert fails the callback gets the error with the others.
                rounds.pending.callbacks.push(done);
                self.insert(&mut rounds.pending, &records)?;
                continue;
            }
            // Put back while earlier appends are synced, so that it gets the error if they fail.
            operations.push_front(operation);
            self.sync(&mut rounds.pending)?;
            match operations.front() {
                Some(Operation::Vote(vote, _)) => {
                    self.vote_file.write(vote)?;
                    self.memory().vote = Some(*vote);
                }
                Some(Operation::Truncate { from, last, .. }) => self.truncate(rounds, *from, *last)?,
                Some(Operation::Purge { upto, .. }) => self.purge(rounds, *upto)?,
                Some(Operation::Barrier(_)) => self.write_mark(rounds)?,
                Some(Operation::Append(..)) | None => {}
            }
            if let Some(operation) = operations.pop_front() {
                operation.done()(Ok(()));
            }
        }
        self.sync(&mut rounds.pending)?;
        self.purge_slice(rounds)?;
        let due = self.options.clock.monotonic().saturating_sub(rounds.mark_written_at) >= MARK_INTERVAL;
        if due || last {
            self.write_mark(rounds)?;
        }
        Ok(())
    }

    fn insert(&self, pending: &mut Pending, records: &[Record]) -> io::Result<()> {
        let report = pending.report.get_or_insert(SyncReport {
            appends: 0,
            records: 0,
            bytes: 0,
            duration: Duration::ZERO,
        });
        report.appends += 1;
        for record in records {
            self.tree.insert(record)?;
            report.records += 1;
            report.bytes += record.payload.len() as u64;
            pending.last = Some(Position { term: record.term, index: record.index });
        }
        if let Some(last) = pending.last {
            self.memory().inserted(last.index + 1);
        }
        Ok(())
    }

    fn sync(&mut self, pending: &mut Pending) -> io::Result<()> {
        if pending.callbacks.is_empty() {
            return Ok(());
        }
        let begun = self.options.clock.monotonic();
        self.tree.sync()?;
        if let (Some(mut report), Some(on_sync)) = (pending.report.take(), &self.options.on_sync) {
            report.duration = self.options.clock.monotonic().saturating_sub(begun);
            on_sync(report);
        }
        if let Some(last) = pending.last.take() {
            self.mark.synced = Some(last);
        }
        for done in pending.callbacks.drain(..) {
            done(Ok(()));
        }
        Ok(())
    }

    /// The mark first, synced: a crash in between leaves entries above it, never a mark above the entries.
    fn truncate(&mut self, rounds: &mut Rounds, from: u64, last: Option<Position>) -> io::Result<()> {
        if self.mark.synced.is_some_and(|synced| synced.index >= from) {
            self.mark.synced = last.or(self.mark.purged);
            self.mark.committed = self.mark.committed.filter(|c| c.index < from);
            self.write_mark(rounds)?;
        }
        self.tree.remove(from, u64::MAX)?;
        self.tree.sync()
    }

    /// The mark first: what it calls purged is never missed. sled follows in slices.
    fn purge(&mut self, rounds: &mut Rounds, upto: Position) -> io::Result<()> {
        if self.mark.purged.is_none_or(|purged| purged.index < upto.index) {
            self.mark.purged = Some(upto);
        }
        if self.mark.synced.is_none_or(|synced| synced.index < upto.index) {
            self.mark.synced = Some(upto);
        }
        self.write_mark(rounds)?;
        rounds.purge_to = rounds.purge_to.max(upto.index + 1);
        Ok(())
    }

    fn purge_slice(&self, rounds: &mut Rounds) -> io::Result<()> {
        if rounds.purge_from < rounds.purge_to {
            let to = rounds.purge_to.min(rounds.purge_from + PURGE_SLICE);
            self.tree.remove(rounds.purge_from, to)?;
            rounds.purge_from = to;
        }
        Ok(())
    }

    fn write_mark(&mut self, rounds: &mut Rounds) -> io::Result<()> {
        let synced = self.mark.synced;
        let committed = self.memory().committed;
        // Of what is committed only as much as is surely here.
        self.mark.committed = match (committed, synced) {
            (Some(committed), Some(synced)) if committed.index <= synced.index => Some(committed),
            (Some(_), Some(_)) | (None, _) | (_, None) => self.mark.committed,
        };
        if self.mark != rounds.mark_written {
            self.mark_file.write(&self.mark)?;
            rounds.mark_written = self.mark;
        }
        rounds.mark_written_at = self.options.clock.monotonic();
        Ok(())
    }
}
