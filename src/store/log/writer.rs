//! The writer thread: everything queued, into the database, one sync, then the callbacks, in order.
//!
//! What must not be reordered is separated by a sync of its own: a vote, a truncation and a purge each wait until every
//! append before them is on stable storage and reported. An error ends the thread: everything that waits gets it, and
//! so does everything that comes later. It is never retried, because after a failed sync nobody knows what is on disk.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    Done, OnSync, Position, Record, SyncReport,
    mark::VoteFile,
    queue::{Failure, Op, Shared, Taken, locked},
    record, recover,
    tree::Tree,
};
use crate::time::Clock;

/// How many keys of purged entries are removed between two syncs.
const PURGE_SLICE: usize = 1024;

pub(super) struct Writer {
    shared: Arc<Shared>,
    tree: Arc<Tree>,
    vote: VoteFile,
    clock: Arc<dyn Clock>,
    on_sync: Option<OnSync>,
    /// Taken from the queue and not begun.
    batch: VecDeque<Op>,
    /// Taken up, and waiting for the sync of what came before.
    next: Option<Done>,
    /// Begun, and not yet synced.
    pending: VecDeque<Done>,
    /// Something went into the database that is to be synced.
    dirty: bool,
    /// What the next sync covers.
    report: SyncReport,
    /// The last entry in the database.
    inserted: Option<Position>,
    committed: Option<Position>,
    /// Indexes that are purged, and may still be in the database.
    backlog: Range<u64>,
    scratch: Vec<u8>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        tree: Arc<Tree>,
        vote: VoteFile,
        clock: Arc<dyn Clock>,
        on_sync: Option<OnSync>,
        purge_from: Option<u64>,
    ) -> Self {
        let mark = shared.marker.record();
        let backlog = purge_from.unwrap_or(mark.first)..mark.first;
        Self {
            shared,
            tree,
            vote,
            clock,
            on_sync,
            batch: VecDeque::new(),
            next: None,
            pending: VecDeque::new(),
            dirty: false,
            report: SyncReport::default(),
            inserted: mark.synced,
            committed: mark.committed,
            backlog,
            scratch: Vec::new(),
        }
    }

    /// Runs until the log is closed, or something fails.
    pub(super) fn run(mut self) {
        loop {
            match self.shared.queue.take(!self.backlog.is_empty()) {
                Taken::Ops(batch) => self.batch = batch,
                Taken::Idle => {}
                Taken::End => break,
            }
            if let Err(error) = caught(|| self.step()) {
                return self.fail(&error);
            }
        }
        if let Err(error) = caught(|| self.tree.sync()) {
            return self.fail(&error);
        }
        self.shared.queue.fail(Failure::closed());
    }

    fn step(&mut self) -> io::Result<()> {
        if let Some(failure) = self.shared.queue.failure() {
            return Err(failure.error());
        }
        while let Some(op) = self.batch.pop_front() {
            self.execute(op)?;
        }
        self.sync()?;
        self.purge_slice()
    }

    fn execute(&mut self, op: Op) -> io::Result<()> {
        match op {
            Op::Append { records, epoch, starts_at, done } => {
                self.pending.push_back(done);
                self.append(&records, epoch, starts_at)
            }
            Op::Vote { vote, done } => {
                self.sync_before(done)?;
                self.vote.write(vote)?;
                locked(&self.shared.memory).vote = Some(vote);
                self.sync()
            }
            Op::Truncate { keep, done } => {
                self.sync_before(done)?;
                self.truncate(keep)
            }
            Op::Purge { upto, done } => {
                self.sync_before(done)?;
                self.purge(upto)
            }
            Op::Committed(committed) => {
                self.committed = committed;
                Ok(())
            }
        }
    }

    fn append(&mut self, records: &[Record], epoch: u64, starts_at: Option<u64>) -> io::Result<()> {
        if let Some(first) = starts_at {
            self.shared.marker.strict(|mark| mark.first = first)?;
        }
        for record in records {
            let Self { tree, scratch, .. } = self;
            record::encode(tree.group(), record, scratch, |part, value| {
                tree.insert(record.index, part, value)
            })?;
            self.report.bytes += record.payload.len() as u64;
        }
        if let Some(last) = records.last() {
            self.dirty = true;
            self.inserted = Some(last.position());
            self.report.appends += 1;
            self.report.records += records.len() as u64;
            locked(&self.shared.memory).written(epoch, last.index + 1);
        }
        self.shared.queue.release(records);
        Ok(())
    }

    /// The mark first, then the entries, the last one first.
    fn truncate(&mut self, keep: Option<Position>) -> io::Result<()> {
        let lower = |position: &mut Option<Position>| match (&*position, keep) {
            (Some(p), Some(keep)) if p.index <= keep.index => {}
            _ => *position = keep.filter(|_| position.is_some()),
        };
        let mut first = 0;
        self.shared.marker.strict(|mark| {
            lower(&mut mark.synced);
            lower(&mut mark.committed);
            first = mark.first;
        })?;
        lower(&mut self.inserted);
        lower(&mut self.committed);
        let next = keep.map_or(first, |keep| (keep.index + 1).max(first));
        recover::remove_from(&self.tree, next)?;
        self.dirty = true;
        Ok(())
    }

    /// The mark; the entries are removed in slices, later.
    fn purge(&mut self, upto: Position) -> io::Result<()> {
        let mut from = 0;
        self.shared.marker.strict(|mark| {
            from = mark.first;
            mark.first = upto.index + 1;
            mark.purged = Some(upto);
            if mark.synced.is_none_or(|synced| synced.index < upto.index) {
                mark.synced = Some(upto);
            }
        })?;
        if self.inserted.is_none_or(|inserted| inserted.index < upto.index) {
            self.inserted = Some(upto);
        }
        let from = if self.backlog.is_empty() { from } else { self.backlog.start };
        self.backlog = from..upto.index + 1;
        Ok(())
    }

    fn purge_slice(&mut self) -> io::Result<()> {
        if self.backlog.is_empty() {
            return Ok(());
        }
        let keys = self.tree.keys(self.backlog.start, self.backlog.end, PURGE_SLICE, false)?;
        for key in &keys {
            self.tree.remove(key)?;
        }
        let last = keys.last().and_then(|key| record::parse_key(self.tree.group(), key));
        self.backlog.start = match last {
            // Perhaps not all of its parts.
            Some((index, _)) if keys.len() == PURGE_SLICE => index,
            _ => self.backlog.end,
        };
        Ok(())
    }

    /// Makes everything so far durable, tells the mark, and reports it.
    fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.dirty) {
            let begin = self.clock.monotonic();
            self.tree.sync()?;
            let report = std::mem::take(&mut self.report);
            if let Some(on_sync) = &self.on_sync {
                on_sync(SyncReport { duration: self.clock.monotonic().saturating_sub(begin), ..report });
            }
        }
        self.shared.marker.raise(self.inserted, self.committed);
        while let Some(done) = self.pending.pop_front() {
            done(Ok(()));
        }
        Ok(())
    }

    /// Makes everything so far durable and reports it; what is begun then is `done` after the next sync.
    fn sync_before(&mut self, done: Done) -> io::Result<()> {
        // Kept where `fail` finds it.
        self.next = Some(done);
        self.sync()?;
        self.pending.extend(self.next.take());
        Ok(())
    }

    /// Ends with an error for everybody who waits.
    fn fail(self, error: &io::Error) {
        tracing::error!(%error, "the log cannot be written; the node must stop");
        let failure = Failure::new(error);
        let waiting = self.shared.queue.fail(failure.clone());
        let queued = self.batch.into_iter().chain(waiting).filter_map(|op| match op {
            Op::Append { done, .. }
            | Op::Vote { done, .. }
            | Op::Truncate { done, .. }
            | Op::Purge { done, .. } => Some(done),
            Op::Committed(_) => None,
        });
        for done in self.pending.into_iter().chain(self.next).chain(queued) {
            // One callback that panics must not keep the others from hearing of it.
            let _ = caught(|| {
                done(Err(failure.error()));
                Ok(())
            });
        }
    }
}

/// Turns a panic into an error.
fn caught(run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(io::Error::other("the log's writer panicked; its message is on standard error"))
    })
}
