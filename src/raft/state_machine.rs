//! The pure machine behind openraft's state machine trait, and its snapshots.
//!
//! Flow: openraft streams committed entries to [`StateMachine::apply`]; each is applied under one short lock, its outcomes
//! go to the proposer, and whoever waits for the applied index is told. A snapshot freezes the machine under the
//! lock (microseconds) and encodes off the runtime. A received one is verified block by block on its way to the disk, decoded aside, and then swapped in.

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
    peers::{GROUP, Peers},
    types::{Entry, LogId, Outcomes, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    state::{self, Applied, Command, Frozen, LogPosition, Machine, SnapshotDecoder, Stamp},
    store::{self, SnapshotFile, Snapshots},
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
        // The common case on the hot path of reads: nothing to wait for.
        if *self.applied.borrow() > index {
            return;
        }
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

/// A snapshot as openraft passes it on.
pub(crate) type RaftSnapshot = Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
    u64,
    super::types::PeerNode,
    SnapshotFile,
>;

/// openraft, over this state machine.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// What openraft holds.
pub(crate) struct StateMachine {
    shared: Arc<SharedState>,
    snapshots: SnapshotDir,
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
        snapshots: SnapshotDir,
        on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
    ) -> Self {
        Self { shared, snapshots, on_snapshot }
    }

    fn apply_one(&self, entry: Entry) -> io::Result<Outcomes> {
        let log_id = entry.log_id;
        // Decoded before the lock is taken.
        let change = Change::decode(entry)?;
        let outcomes = change.apply(&mut self.shared.write());
        self.shared.publish(&log_id);
        Ok(Outcomes(outcomes))
    }
}

/// An entry, decoded: what it does to the machine.
pub(super) struct Change {
    at: LogPosition,
    kind: ChangeKind,
}

enum ChangeKind {
    Blank,
    Commands(Stamp, Vec<Command>),
    Membership(state::Membership),
}

impl Change {
    /// # Errors
    /// If the entry cannot be read by this release.
    pub(super) fn decode(entry: Entry) -> io::Result<Self> {
        let kind = match entry.payload {
            openraft::EntryPayload::Blank => ChangeKind::Blank,
            openraft::EntryPayload::Normal(proposal) => {
                let (stamp, commands) = state::codec::decode_entry(proposal.0).map_err(failed)?;
                ChangeKind::Commands(stamp, commands)
            }
            openraft::EntryPayload::Membership(membership) => {
                ChangeKind::Membership(convert::membership_to_state(&membership))
            }
        };
        Ok(Self { at: convert::state_position(&entry.log_id), kind })
    }

    pub(super) fn apply(self, machine: &mut Machine) -> Vec<Applied> {
        match self.kind {
            ChangeKind::Blank => machine.apply_blank(self.at),
            ChangeKind::Commands(stamp, commands) => return machine.apply(self.at, &stamp, commands),
            ChangeKind::Membership(membership) => machine.apply_membership(self.at, membership),
        }
        Vec::new()
    }
}

/// Decodes a snapshot file whole: every block and section is verified before anything is believed.
pub(crate) fn decode_snapshot(file: &SnapshotFile) -> io::Result<Machine> {
    let mut decoder = SnapshotDecoder::new();
    for section in file.sections() {
        decoder.push(section.map_err(failed)?).map_err(failed)?;
    }
    decoder.finish().map_err(failed)
}

pub(crate) fn meta_of(machine: &Machine) -> io::Result<SnapshotMeta> {
    let (at, membership) = machine.membership();
    Ok(SnapshotMeta {
        last_log_id: machine.last_applied().map(convert::from_state_position),
        last_membership: convert::stored_membership(at, membership).map_err(failed)?,
    })
}

/// What a snapshot file says of itself, as openraft's meta.
pub(crate) fn meta_of_file(meta: &store::SnapshotMeta) -> io::Result<SnapshotMeta> {
    let membership = match meta.membership_at {
        None => StoredMembership::default(),
        Some(at) => {
            let membership = state::codec::decode_membership(meta.membership.clone()).map_err(failed)?;
            let at = state::LogPosition { term: at.term, index: at.index };
            convert::stored_membership(Some(at), &membership).map_err(failed)?
        }
    };
    Ok(SnapshotMeta { last_log_id: meta.last.map(convert::from_position), last_membership: membership })
}

/// The encoded membership of a snapshot that openraft describes so, and where it was decided.
pub(crate) fn membership_of(meta: &SnapshotMeta) -> (Option<store::Position>, bytes::Bytes) {
    match meta.last_membership.log_id() {
        None => (None, bytes::Bytes::new()),
        Some(at) => {
            let membership = convert::membership_to_state(meta.last_membership.membership());
            (Some(convert::position(at)), state::codec::encode_membership(&membership))
        }
    }
}

/// Writes snapshot files of this node.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotDir {
    pub(crate) snapshots: Snapshots,
    pub(crate) peers: Arc<Peers>,
}

impl SnapshotDir {
    /// The head of a file on this node's disk.
    ///
    /// # Errors
    /// Before the node is bound to a cluster there is nothing to snapshot.
    pub(crate) fn head(
        &self,
        last: Option<store::Position>,
        membership_at: Option<store::Position>,
        membership: bytes::Bytes,
    ) -> io::Result<store::SnapshotMeta> {
        let cluster =
            self.peers.cluster().ok_or_else(|| io::Error::other("the node is not in a cluster yet"))?;
        let incarnation = self.peers.myself().incarnation;
        Ok(store::SnapshotMeta { cluster, incarnation, group: GROUP, last, membership_at, membership })
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
            // A broken invariant must end the node at once: openraft does not watch its worker, and an idle leader would go on.
            let applied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.apply_one(entry)));
            let outcomes =
                applied.unwrap_or_else(|_| Err(io::Error::other("a broken invariant in apply")))?;
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
        let machine = off_the_runtime(move || decode_snapshot(&file)).await?;
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

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        let snapshots = self.snapshots.clone();
        let newest = off_the_runtime(move || snapshots.snapshots.newest().map_err(failed)).await?;
        newest.map(|file| Ok(Snapshot { meta: meta_of_file(file.meta())?, snapshot: file })).transpose()
    }
}

/// Writes one frozen state to a snapshot file.
pub(crate) struct SnapshotBuilder {
    frozen: Option<Frozen>,
    snapshots: SnapshotDir,
    on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
}

fn write_snapshot(dir: &SnapshotDir, frozen: &Frozen) -> Result<(SnapshotMeta, SnapshotFile), io::Error> {
    let (at, membership) = frozen.membership();
    let meta = SnapshotMeta {
        last_log_id: frozen.last_applied().map(convert::from_state_position),
        last_membership: convert::stored_membership(at, membership).map_err(failed)?,
    };
    let (membership_at, membership) = membership_of(&meta);
    let head = dir.head(meta.last_log_id.as_ref().map(convert::position), membership_at, membership)?;
    Ok((meta, write_sections(&dir.snapshots, head, frozen)?))
}

/// Writes a frozen state under a head that fits it.
pub(super) fn write_sections(
    snapshots: &Snapshots,
    head: store::SnapshotMeta,
    frozen: &Frozen,
) -> io::Result<SnapshotFile> {
    let mut writer = snapshots.begin(head).map_err(failed)?;
    for section in frozen.sections() {
        writer.write_section(&section).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let frozen = self.frozen.take().ok_or_else(|| io::Error::other("a snapshot builder builds once"))?;
        let snapshots = self.snapshots.clone();
        let (meta, snapshot) = off_the_runtime(move || write_snapshot(&snapshots, &frozen)).await?;
        (self.on_snapshot)(SnapshotEvent::Built);
        tracing::info!(last = ?meta.last_log_id, "snapshot written");
        Ok(Snapshot { meta, snapshot })
    }
}
