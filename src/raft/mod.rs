//! openraft between the state and the disk. No other module names it.
//!
//! | file | what it is |
//! |---|---|
//! | `types` | what openraft is instantiated with |
//! | `convert` | its types <-> messages <-> records |
//! | `log_storage` | its log trait on `store::Log` |
//! | `state_machine` | its state machine trait on `state::Machine`; snapshots |
//! | `proposer` | many commands, one entry, one sync |
//! | `reader` | ReadIndex, one round shared by all that wait |
//! | `peers` | where the others are, what we say of ourselves |
//! | `handshake` | whom we let speak |
//! | `hello` | who are you, and in what state? |
//! | `network`, `peer_service` | the sending and the receiving half of the peer protocol |
//! | `node`, `report` | the running whole, and its condition in our words |
//! | `wish` | changes of the membership: asked for, seen, carried out |
//! | `recover` | what a survivor of a lost majority holds, for a cluster of one |
//! | `to_leader`, `hand_over` | what others ask of the leader; leadership handed over |
//!
//! Invariants: what is acknowledged is on disk at a majority (the store calls back after its sync, openraft commits on
//! a quorum of those); a write is proposed again only if it surely was not appended; a read index is confirmed by a quorum after the read began.
//!
//! Not here: which cluster a node belongs to (`cluster`), forwarding (`service`), what a command means (`state`).

mod convert;
mod hand_over;
pub mod handshake;
mod hello;
mod log_storage;
mod network;
mod node;
mod peer_service;
mod peers;
mod proposer;
mod reader;
mod recover;
mod report;
mod state_machine;
mod to_leader;
mod types;
mod wish;

pub use hello::{HelloAnswer, hello};
pub use node::{Hooks, Node, Options, founders};
pub use peer_service::{Host, MAX_FORWARDED, PeerService, service};
pub use peers::{Directory, FEATURE_LEVEL, GROUP, Myself, Peers};
pub use proposer::Place;
pub use reader::{ReadIndex, Round};
pub use recover::Recovered;
pub use report::{Member, NodeMetrics, Role};
pub use state_machine::{SharedState, SnapshotEvent};
pub use types::{Outcomes, PeerNode, Proposal, TypeConfig};
pub use wish::{Asked, MemberSight, MemberWish, Newcomer, NotJoined, Sight, ask_to_join};
