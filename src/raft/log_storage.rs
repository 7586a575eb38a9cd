//! openraft's log storage on [`store::Log`](crate::store::Log): a translation and nothing else.
//!
//! The order of what reaches the disk is the store's: `append` returns once the entries are readable and calls back after the
//! sync; `save_vote` and `truncate_after` return after theirs; `purge` and `save_committed` run inside openraft's core task and only
//! enqueue.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    convert,
    types::{Entry, LogId, TypeConfig, Vote},
};
use crate::store::Log;

/// The most bytes of entries in one append to a peer, and in one read of the log; one larger entry goes alone.
pub(crate) const MAX_APPEND_BYTES: usize = 2 * 1024 * 1024;

/// So many commands were synced.
pub(crate) type OnSynced = Arc<dyn Fn(u64) + Send + Sync>;

/// The log as openraft takes it. Clones share one log.
#[derive(Clone)]
pub(crate) struct LogStorage {
    log: Log,
    on_synced: OnSynced,
}

impl LogStorage {
    pub(crate) fn new(log: Log, on_synced: OnSynced) -> Self {
        Self { log, on_synced }
    }

    fn entries(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        self.log
            .read(from, to, max_bytes)?
            .into_iter()
            .map(|record| convert::entry(record).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)))
            .collect()
    }
}

/// Waits for the writer thread; its end without an answer is an error like any other.
async fn synced(answer: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    answer.await.unwrap_or_else(|_| Err(io::Error::other("the log writer has stopped")))
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        use std::ops::Bound;
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.vote().map(convert::from_vote_record))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start, end, MAX_APPEND_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.log.purged().map(convert::from_position);
        let last = self.log.last().map(convert::from_position).or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (tx, rx) = oneshot::channel();
        self.log.save_vote(convert::vote_record(vote), Box::new(move |result| drop(tx.send(result))));
        synced(rx).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed.as_ref().map(convert::position));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed().map(convert::from_position))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<_> = entries.into_iter().map(convert::record).collect();
        let commands = records.iter().map(convert::commands_in).sum();
        let on_synced = self.on_synced.clone();
        let done = Box::new(move |result: io::Result<()>| {
            if result.is_ok() {
                on_synced(commands);
            }
            callback.io_completed(result);
        });
        self.log.append(records, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let (tx, rx) = oneshot::channel();
        self.log.truncate_after(last.map(|id| id.index), Box::new(move |result| drop(tx.send(result))));
        synced(rx).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge(convert::position(&upto), Box::new(|_| ()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::{Stream, StreamExt};
    use openraft::{
        StorageError,
        storage::{EntryResponder, RaftStateMachine},
        testing::log::{StoreBuilder, Suite},
    };
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;
    use crate::{
        raft::{
            peers::{Myself, Peers},
            state_machine::{RaftSnapshot, SharedState, SnapshotBuilder, SnapshotDir, StateMachine},
            types::{SnapshotMeta, StoredMembership},
        },
        store::{ClusterId, LogOptions, SnapshotFile, Snapshots},
        time::SystemClock,
    };

    /// The suite applies entries with holes between them, which our machine refuses as a broken log: here they are filled with blank ones.
    struct Filled(StateMachine, SnapshotDir);

    impl RaftStateMachine<TypeConfig> for Filled {
        type SnapshotData = SnapshotFile;
        type SnapshotBuilder = SnapshotBuilder;

        async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
            self.0.applied_state().await
        }

        async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
        where
            Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
        {
            let entries: Vec<_> = entries.collect().await;
            for entry in entries {
                if let Ok((entry, _)) = &entry {
                    let applied = self.0.applied_state().await?.0;
                    for index in applied.map_or(0, |id| id.index + 1)..entry.log_id.index {
                        let log_id = convert::log_id(entry.log_id.leader_id.term, index);
                        let blank = Entry { log_id, payload: openraft::EntryPayload::Blank };
                        self.0.apply(futures::stream::iter([Ok((blank, None))])).await?;
                    }
                }
                self.0.apply(futures::stream::iter([entry])).await?;
            }
            Ok(())
        }

        async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
            self.0.get_snapshot_builder().await
        }

        async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
            // The suite hands over another directory's file; a peer's comes as blocks under a head of our own.
            let head = file.meta();
            let head = self.1.head(head.last, head.membership_at, head.membership.clone())?;
            let mut writer = self.1.snapshots.begin(head).unwrap();
            for block in file.raw_blocks() {
                writer.write_raw_block(block.unwrap()).unwrap();
            }
            let received = writer.finish_received(file.end()).unwrap();
            self.0.install_snapshot(meta, received).await
        }

        async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
            self.0.get_current_snapshot().await
        }
    }

    fn bound_peers(incarnation: Uuid) -> Arc<Peers> {
        let myself = Myself {
            slot: "0".into(),
            incarnation,
            raft_id: crate::store::raft_id(incarnation),
            boot_counter: 1,
            nonce: 1,
            client_address: String::new(),
            memory_limit_bytes: 0,
            seeds: Vec::new(),
        };
        let nobody = Arc::new(BTreeMap::<String, String>::new());
        let peers = Peers::new(
            myself,
            Arc::new(SystemClock::new()),
            nobody,
            Arc::new(crate::net::TableResolver::new()),
        );
        peers.bind(ClusterId([7; 16]));
        peers
    }

    struct Builder;

    impl StoreBuilder<TypeConfig, LogStorage, Filled, TempDir> for Builder {
        async fn build(&self) -> Result<(TempDir, LogStorage, Filled), StorageError<TypeConfig>> {
            let dir = tempfile::tempdir().unwrap();
            let incarnation = Uuid::from_u128(7);
            let (log, _) = Log::open(LogOptions::new(dir.path(), incarnation)).unwrap();
            let snapshots = Snapshots::open(dir.path(), incarnation, 0).unwrap();
            let snapshots = SnapshotDir { snapshots, peers: bound_peers(incarnation) };
            let machine = StateMachine::new(SharedState::new(), snapshots.clone(), Arc::new(|_| ()));
            Ok((dir, LogStorage::new(log, Arc::new(|_| ())), Filled(machine, snapshots)))
        }
    }

    /// What openraft demands of a store before anything sits on it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn openrafts_suite_passes() {
        Suite::test_all(Builder).await.unwrap();
    }
}
