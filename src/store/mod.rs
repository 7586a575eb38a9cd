//! What is on disk. Knows bytes, not commands.
//!
//! A data directory *is* a member of a cluster, and holds:
//!
//! | name | what | how it is kept whole |
//! |---|---|---|
//! | `identity` | incarnation, slot, boot counter, binding ([`identity`]) | replaced by rename, checksum |
//! | `vote` | whom it voted for | two slots written in turn, checksums |
//! | `mark` | up to where the log was synced and purged | the same |
//! | `log/` | the Raft log, in sled ([`log`]) | a checksum an entry; the mark tells what must be there |
//! | `snapshots/` | the newest snapshot ([`snapshot`]) | a checksum a block; replaced by rename |
//!
//! Every file has a version: a later release reads what an earlier one wrote, an earlier one refuses a later one's. What is damaged is an error with a
//! sentence, never taken for "nothing there".

mod disk;
mod error;
mod files;
pub mod identity;
mod log;
mod snapshot;

pub use error::StoreError;
pub use identity::{Binding, ClusterId, FoundingSet, Identity, IdentityFile, raft_id};
pub use log::{Done, Log, LogOptions, Position, Record, Recovered, SyncReport, Syncer, VoteRecord};
pub use snapshot::{SnapshotFile, SnapshotHead, SnapshotWriter, Snapshots};
