//! What is on disk: who this member is, what it voted, the log, the snapshots. Bytes, not commands.
//!
//! # A data directory
//!
//! ```text
//! DIR/
//!   lock        held while a process uses the directory
//!   identity    incarnation, slot, boot counter, binding          identity   replaced by rename
//!   format      the log's format, incarnation, creating or ready  layout     replaced by rename
//!   vote        the vote, in two checksummed slots                log        overwritten in place, synced
//!   mark        up to where the log must be whole, in two slots   log        overwritten in place, synced
//!   log/        the entries, a sled database                      log
//!   snapshots/  the newest snapshot                               snapshot   replaced by rename
//!   recovered/  for a moment: a state to go over to               adopt      snapshots in it, moved by rename
//!   reserve     space to give back when the disk is full          disk
//! ```
//!
//! A data directory *is* the member, so it is whole or refused: a member that forgot its vote may vote twice, and one
//! that forgot entries may un-acknowledge a committed write. Nothing here repairs by guessing. What is refused, and
//! what to do then, is in [`StoreError`].
//!
//! # Invariants
//!
//! - What was reported as synced is there at the next start, or the start fails with a sentence that says what is
//!   missing. (What the disk loses of the last 100 ms before a crash, without any error, cannot be seen: see `mark`.)
//! - Every record on disk has a length and a CRC32C, and every file a format number; lengths are checked before
//!   anything is allocated; damage is an error, never a panic and never "none".
//! - Every file but the log repeats the incarnation, so files of two members cannot be mixed unseen.
//!
//! # What is not here
//!
//! What an entry or a snapshot section means (`state`), and how the consensus library asks for them (`raft`).

mod adopt;
pub mod disk;
pub mod error;
mod files;
pub mod identity;
mod layout;
pub mod log;
pub mod snapshot;

pub use error::StoreError;
pub use files::{FileSyncer, SyncTarget, Syncer};
pub use identity::{Binding, ClusterId, FoundingSet, Identity, IdentityFile, raft_id};
pub use log::{Log, LogOptions, Position, Record, Recovered, SyncReport, VoteRecord};
pub use snapshot::{SnapshotEnd, SnapshotFile, SnapshotMeta, Snapshots};
