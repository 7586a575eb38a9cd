//! What a survivor of a lost majority holds, made into the beginning of a cluster of one.
//!
//! All entries of the log are applied, also those that are not known to be committed: the lost majority may have acknowledged
//! them, and whoever is told that a write was done must find it. The rest is [`Machine::recovered`], a snapshot file, and one
//! more look at it before anything of the old member is given up.
//!
//! Not here: whether that may be done (`cluster`), and the data directory's going over to it (`store`).

use std::io;

use uuid::Uuid;

use super::{
    convert,
    log_storage::MAX_APPEND_BYTES,
    node::Node,
    peers::GROUP,
    state_machine::{Change, decode_snapshot, write_sections},
};
use crate::{
    error::{Error, Result},
    state::{LogPosition, Machine, codec::encode_membership},
    store::{self, ClusterId, Log, Position, SnapshotMeta, Snapshots},
};

/// What a cluster of one begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The new cluster.
    pub cluster: ClusterId,
    /// The state's revision, as it was.
    pub revision: u64,
    /// Its keys, as they were.
    pub keys: u64,
    /// The log position that the new cluster begins with.
    pub last_log_index: u64,
}

impl Node {
    /// Stops Raft for good, and writes what this node holds as the snapshot, in `into`, of a member `fresh` that is the only one of the
    /// cluster `cluster`. The log is closed then; nothing of this member was changed.
    ///
    /// # Errors
    /// `Storage` if Raft does not stop, the log cannot be read or applied, or the snapshot cannot be written or is not what was
    /// written. This node must be started again, as what it was.
    pub async fn write_recovered(
        &self,
        fresh: Uuid,
        cluster: ClusterId,
        into: Snapshots,
    ) -> Result<Recovered> {
        self.stop_raft().await?;
        let (machine, log) = (self.state().read().clone(), self.log().clone());
        let slot = self.peers().myself().slot.clone();
        let write = move || -> io::Result<Recovered> {
            let machine = apply_the_rest(machine, &log)?;
            let machine = machine.recovered(&slot, store::raft_id(fresh), *fresh.as_bytes());
            let recovered = write(&machine, fresh, cluster, &into)?;
            log.close()?;
            Ok(recovered)
        };
        // An entry that breaks an invariant ends this attempt, not the process: it may be one that was never committed.
        let failed =
            |why: String| Error::Storage(format!("what this node holds cannot be written anew: {why}"));
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))
    }
}

/// The machine after every entry that is in the log.
fn apply_the_rest(mut machine: Machine, log: &Log) -> io::Result<Machine> {
    loop {
        let next = machine.last_applied().map_or(0, |last| last.index + 1);
        let records = log.read(next, u64::MAX, MAX_APPEND_BYTES)?;
        if records.is_empty() {
            return Ok(machine);
        }
        for record in records {
            let entry = convert::entry(record).map_err(io::Error::other)?;
            Change::decode(entry)?.apply(&mut machine);
        }
    }
}

fn write(machine: &Machine, fresh: Uuid, cluster: ClusterId, into: &Snapshots) -> io::Result<Recovered> {
    let position = |at: LogPosition| Position { term: at.term, index: at.index };
    let (membership_at, membership) = machine.membership();
    let head = SnapshotMeta {
        cluster,
        incarnation: fresh,
        group: GROUP,
        last: machine.last_applied().map(position),
        membership_at: membership_at.map(position),
        membership: encode_membership(membership),
    };
    let file = write_sections(into, head, &machine.freeze())?;
    let read = decode_snapshot(&file)?;
    let essence = |machine: &Machine| {
        (machine.state_hash(), machine.last_applied(), machine.revision(), machine.keys())
    };
    if essence(&read) != essence(machine) {
        return Err(io::Error::other(
            "the snapshot that was written is not the state that it was written from",
        ));
    }
    Ok(Recovered {
        cluster,
        revision: machine.revision(),
        keys: machine.keys(),
        last_log_index: machine.last_applied().map_or(0, |last| last.index),
    })
}
