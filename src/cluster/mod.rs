//! Who am I, and who are they.
//!
//! # Purpose
//! Before Raft can run, a node must know which cluster it belongs to and who its founders are. This module finds out.
//!
//! # Reading order
//! - [`slot`]: the names of places, and the list of peers.
//! - [`genesis`]: the decision, pure. The heart; start there.
//! - [`run`]: the loop around it that asks, saves and publishes; `founding` puts the real file and network behind it.
//! - [`gate`]: the leader opens the cluster once every founder has acknowledged an entry.
//!
//! # Not here
//! The record on disk (`store::identity`), what peers check on each call (`raft::handshake`), and, in this release, joining,
//! replacing and retiring members.

mod founding;
pub mod gate;
pub mod genesis;
pub mod plan;
pub mod run;
pub mod slot;

pub use founding::{prepare, until_given_up};
