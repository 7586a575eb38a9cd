//! Generated protobuf code. Nothing is written here by hand.
//!
//! `v1` is the client API and never passes `api`, `client`; `raft` is the peer protocol and never passes `raft`.

/// The client API, `larder.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("larder.v1");

    /// The descriptors that gRPC reflection serves: the client API and nothing of the peer protocol.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/larder_descriptor.bin"));
}

/// The peer protocol, `larder.raft.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod raft {
    tonic::include_proto!("larder.raft.v1");
}
