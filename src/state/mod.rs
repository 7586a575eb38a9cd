//! The replicated state: what a command means. PURE.
//!
//! Every node applies the same log to a [`Machine`] and must come to the same state, to the byte. So nothing here names
//! a clock, a file, a socket, a thread or a random number: time comes as a [`Stamp`] in the entry, everything that
//! decides is ordered, and there are no floats. Apply has no `async` and no `Result`: a command that may not be done is a
//! rejected outcome, a broken invariant panics with a sentence.
//!
//! # Flow
//! At the edge a [`Command`] is checked ([`Command::validate`]) and encoded once ([`codec::encode_command`]). Its bytes
//! travel to the leader, which puts many of them behind one stamp ([`codec::encode_entry`]) and proposes that as one log
//! entry. Each node decodes the committed entry and applies it: [`Machine::apply`]. Reads ask [`Machine::read`]. A
//! [`Machine::freeze`] takes microseconds at any size; the [`Frozen`] state is encoded elsewhere, section by section.
//!
//! # Reading order
//! `command` (the vocabulary) - `limits` - `machine` (the state, its invariants) - `apply` (what each operation does) -
//! `keyspace` and `map` (where keys live) - `view` - `codec` - `snapshot`.
//!
//! # Not here
//! The log and its order (`raft`), disks (`store`), protobuf (`api`), and expiry, eviction, sessions and watches, which
//! come with later releases: the formats have their fields.

mod apply;
pub mod codec;
mod command;
mod hash;
mod keyspace;
mod limits;
mod machine;
mod map;
mod membership;
mod snapshot;
mod view;

pub use codec::DecodeError;
pub use command::*;
pub use keyspace::ENTRY_OVERHEAD_BYTES;
pub use limits::{MAX_BATCH_PREVIOUS, MAX_QUERY_KEYS, validate_key, validate_value};
pub use machine::{FEATURE_LEVEL, Machine};
pub use membership::{BootRecord, MemberNode, Membership};
pub use snapshot::{Frozen, MAX_SECTION_BYTES, Sections, SnapshotDecoder, SnapshotError};
pub use view::View;
