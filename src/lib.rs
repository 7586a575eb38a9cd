//! Larder: a replicated in-memory cache. An acknowledged write is on disk at a majority; a read is never stale.
//!
//! # The code map, in reading order
//!
//! | layer | module | what it is |
//! |---|---|---|
//! | 0 | [`error`], [`time`], [`observe`], [`proto`] | what everything may use |
//! | 1 | [`state`] | PURE: what a command means. No clock, file, socket, thread, random |
//! | 1 | [`store`] | what is on disk: the log on sled, the vote, the identity, the snapshots. Knows bytes, not commands |
//! | 1 | [`net`] | names, resolved at every dial, and the connections made to what is behind them |
//! | 2 | [`raft`] | openraft between the two: proposing, reading, peers. Nothing else names openraft |
//! | 3 | [`service`] | the seam `Cache`: here, or on the leader |
//! | 3 | [`cluster`] | who am I, who are they: identity, genesis |
//! | 3 | [`kubernetes`] | the seam to the Kubernetes API: how many pods are wanted, the claim |
//! | 4 | [`api`], [`client`] | gRPC and HTTP; the Rust client |
//! | 5 | [`config`], [`server`], [`mod@bench`] | settings; building, starting and stopping a node; the load harness |
//! | 6 | `main`, [`cmd`] | the command line |
//!
//! A module imports only from lower layers; `tests/layers.rs` enforces it.

pub mod api;
pub mod bench;
pub mod client;
pub mod cluster;
pub mod cmd;
pub mod config;
pub mod error;
pub mod kubernetes;
pub mod net;
pub mod observe;
pub mod proto;
pub mod raft;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
pub mod time;

/// The README's Rust is compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
