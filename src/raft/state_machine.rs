//! The pure machine behind openraft's state machine trait, and its snapshots.
//!
//! Flow: openraft streams committed entries to [`StateMachine::apply`]; each is applied under one short lock, its outcomes
//! go to the proposer, and whoever waits for the applied index is told. A snapshot freezes the machine under the
//! lock (microseconds) and encodes off the runtime. An installed one is verified and decoded aside, then swapped in.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, Snapshot,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::sync::watch;

use super::{
    convert,
    types::{Entry, LogId, Outcomes, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    state::{self, Frozen, Machine, SnapshotDecoder},
    store::{SnapshotFile, SnapshotHead, Snapshots, StoreError},
};

/// The machine and what others may know of it. Shared by apply, reads, status and snapshots.
#[derive(Debug)]
pub struct SharedState {
    machine: RwLock<Machine>,
    /// How many entries are applied: the index of the last one, plus one.
    applied: watch::Sender<u64>,
}

impl SharedState {
    /// An empty machine.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { machine: RwLock::new(Machine::new()), applied: watch::Sender::new(0) })
    }

    /// The machine, for reading. Never held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Machine> {
        // A panic in apply ends the node; until then its readers see the state as it was.
        self.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Machine> {
        self.machine.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the entry at `index` is applied.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives as long as self: waiting cannot fail.
        let _ = applied.wait_for(|count| *count > index).await;
    }

    fn publish(&self, at: &LogId) {
        self.applied.send_if_modified(|count| {
            let changed = *count <= at.index;
            *count = (*count).max(at.index + 1);
            changed
        });
    }
}

/// What openraft holds.
pub(crate) struct StateMachine {
    shared: Arc<SharedState>,
    snapshots: Snapshots,
    on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
}

/// Something happened to a snapshot, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// One was written here.
    Built,
    /// One from the leader took the place of the state.
    Installed,
    /// One was streamed to a follower.
    Sent,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl StateMachine {
    pub(crate) fn new(
        shared: Arc<SharedState>,
        snapshots: Snapshots,
        on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
    ) -> Self {
        Self { shared, snapshots, on_snapshot }
    }

    fn apply_one(&self, entry: Entry) -> io::Result<Outcomes> {
        let at = convert::state_position(&entry.log_id);
        let outcomes = match entry.payload {
            openraft::EntryPayload::Blank => {
                self.shared.write().apply_blank(at);
                Vec::new()
            }
            openraft::EntryPayload::Normal(proposal) => {
                // Decoded before the lock is taken.
                let (stamp, commands) = state::codec::decode_entry(proposal.0).map_err(failed)?;
                self.shared.write().apply(at, &stamp, commands)
            }
            openraft::EntryPayload::Membership(membership) => {
                self.shared.write().apply_membership(at, convert::membership_to_state(&membership));
                Vec::new()
            }
        };
        self.shared.publish(&entry.log_id);
        Ok(Outcomes(outcomes))
    }
}

/// Decodes a snapshot file whole: every block and section is verified before anything is believed.
pub(crate) fn decode_snapshot(file: &SnapshotFile) -> io::Result<Machine> {
    let mut decoder = SnapshotDecoder::new();
    for section in file.sections().map_err(failed)? {
        decoder.push(section.map_err(failed)?).map_err(failed)?;
    }
    decoder.finish().map_err(failed)
}

fn meta_of(machine: &Machine) -> io::Result<SnapshotMeta> {
    let (at, membership) = machine.membership();
    Ok(SnapshotMeta {
        last_log_id: machine.last_applied().map(convert::from_state_position),
        last_membership: convert::stored_membership(at, membership).map_err(failed)?,
    })
}

/// What a snapshot file says of itself, as openraft's meta.
pub(crate) fn meta_of_file(head: &SnapshotHead) -> io::Result<SnapshotMeta> {
    let membership = if head.membership.is_empty() {
        StoredMembership::default()
    } else {
        let membership = state::codec::decode_membership(head.membership.clone()).map_err(failed)?;
        let at = head.membership_at.map(|p| state::LogPosition { term: p.term, index: p.index });
        convert::stored_membership(at, &membership).map_err(failed)?
    };
    Ok(SnapshotMeta { last_log_id: head.last.map(convert::from_position), last_membership: membership })
}

/// The head of the file for a snapshot that openraft describes so.
pub(crate) fn head_of(meta: &SnapshotMeta) -> SnapshotHead {
    let membership = match meta.last_membership.log_id() {
        None => bytes::Bytes::new(),
        Some(_) => {
            state::codec::encode_membership(&convert::membership_to_state(meta.last_membership.membership()))
        }
    };
    SnapshotHead {
        last: meta.last_log_id.as_ref().map(convert::position),
        membership_at: meta.last_membership.log_id().as_ref().map(convert::position),
        membership,
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = meta_of(&self.shared.read())?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            tracing::trace!(index = entry.index(), "apply");
            let outcomes = self.apply_one(entry)?;
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            frozen: Some(self.shared.read().freeze()),
            snapshots: self.snapshots.clone(),
            on_snapshot: self.on_snapshot.clone(),
        }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, file: SnapshotFile) -> Result<(), io::Error> {
        let snapshots = self.snapshots.clone();
        let machine = off_the_runtime(move || {
            let machine = decode_snapshot(&file)?;
            // Only what decoded whole takes the place of the newest on disk.
            snapshots.adopt(file).map_err(failed)?;
            Ok(machine)
        })
        .await?;
        let last = machine.last_applied();
        let old = std::mem::replace(&mut *self.shared.write(), machine);
        if let Some(last) = last {
            self.shared.publish(&convert::from_state_position(last));
        }
        // A large state takes a while to free: not under the lock, not on the runtime.
        drop(tokio::task::spawn_blocking(move || drop(old)));
        (self.on_snapshot)(SnapshotEvent::Installed);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<
        Option<
            Snapshot<
                openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
                u64,
                super::types::PeerNode,
                SnapshotFile,
            >,
        >,
        io::Error,
    > {
        let snapshots = self.snapshots.clone();
        let newest = off_the_runtime(move || snapshots.newest().map_err(failed)).await?;
        newest.map(|file| Ok(Snapshot { meta: meta_of_file(file.head())?, snapshot: file })).transpose()
    }
}

/// Writes one frozen state to a snapshot file.
pub(crate) struct SnapshotBuilder {
    frozen: Option<Frozen>,
    snapshots: Snapshots,
    on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
}

fn write_snapshot(snapshots: &Snapshots, frozen: &Frozen) -> Result<(SnapshotMeta, SnapshotFile), io::Error> {
    let (at, membership) = frozen.membership();
    let meta = SnapshotMeta {
        last_log_id: frozen.last_applied().map(convert::from_state_position),
        last_membership: convert::stored_membership(at, membership).map_err(failed)?,
    };
    let write = || -> Result<SnapshotFile, StoreError> {
        let mut writer = snapshots.begin(head_of(&meta))?;
        for section in frozen.sections() {
            writer.write_section(&section)?;
        }
        snapshots.adopt(writer.finish()?)
    };
    Ok((meta.clone(), write().map_err(failed)?))
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(
        &mut self,
    ) -> Result<
        Snapshot<
            openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
            u64,
            super::types::PeerNode,
            SnapshotFile,
        >,
        io::Error,
    > {
        let frozen = self.frozen.take().ok_or_else(|| io::Error::other("a snapshot builder builds once"))?;
        let snapshots = self.snapshots.clone();
        let (meta, snapshot) = off_the_runtime(move || write_snapshot(&snapshots, &frozen)).await?;
        (self.on_snapshot)(SnapshotEvent::Built);
        tracing::info!(last = ?meta.last_log_id, "snapshot written");
        Ok(Snapshot { meta, snapshot })
    }
}
