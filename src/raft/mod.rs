//! Raft (placeholder chapter): the handshake of peers.
pub mod handshake;
