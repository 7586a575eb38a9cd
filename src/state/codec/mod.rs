//! The encodings of commands, entries, outcomes and memberships: on the wire between nodes and in the log alike.
//!
//! Each record begins with its version (one byte, 1 in this release). Numbers are LEB128 varints in their shortest form,
//! signed ones zigzag; `bytes` is a length and so many bytes. Each record has exactly one encoding, so decoding and
//! encoding again gives the same bytes.
//!
//! | record | after the version |
//! |---|---|
//! | command | flags (1: session), keyspace, \[session, sequence, first unacknowledged\], operation |
//! | operation 1 Set | condition (0-3) \[version\], flags (1: ttl, 2: return previous), \[ttl ms\], key, value |
//! | operation 2 Delete | flags (1: if version, 2: return previous), \[version\], key |
//! | operation 3 Increment | flags (1: ttl), delta, initial, \[ttl ms\], key |
//! | operation 4 Batch | count, operations |
//! | operation 5 Open | |
//! | operation 6 RecordBoot | slot, Raft id, incarnation (16 bytes), boot counter, nonce (8 bytes) |
//! | entry | stamp: now (signed), count of touched, each 8 bytes little-endian; count of commands, each `bytes` of a command |
//! | applied | revision, clock (signed), outcome |
//! | outcome 1 Set | flags (1: previous), version, \[versioned\] |
//! | outcome 2 Deleted | flags (1: previous, 2: existed), \[versioned\] |
//! | outcome 3 Incremented | value (signed), version |
//! | outcome 4 Batch | count, outcomes |
//! | outcome 5 Opened | |
//! | outcome 6 Rejected | 1 ConditionFailed: flags (1: exists), \[version\]; 2 NotANumber; 3 OutOfRange; 4 NotOpen |
//! | outcome 7 BootRecorded | flags (1: accepted) |
//! | versioned | flags (1: deadline), version, \[deadline (signed)\], value |
//! | membership | count of configs, each a count of ids, ascending; count of nodes, ascending by id: id, slot, peer address, incarnation (16 bytes) |
//!
//! Decoding shares the buffer (no copy), never panics, allocates nothing by a declared length that the buffer does not
//! have, and refuses what it does not know. Files in `tests/state/golden` keep version 1 readable for ever.
//!
//! Not here: checksums (the log's and the peer protocol's matter) and the snapshot ([`super::Frozen`]).

mod applied;
mod command;
mod membership;
pub(super) mod wire;

pub use applied::{decode_applied, encode_applied};
pub use command::{count_commands, decode_command, decode_entry, encode_command, encode_entry};
pub use membership::{decode_membership, encode_membership};
pub(super) use membership::{get_boot, put_boot};
pub use wire::DecodeError;

/// The version of every record that this release writes, and the only one it reads.
const VERSION: u8 = 1;
