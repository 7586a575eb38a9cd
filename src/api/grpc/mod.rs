//! The client API over gRPC: services `Cache` and `Cluster`, standard health and reflection.
//!
//! # Flow
//! `server` accepts and speaks HTTP/2 -> `dispatch` picks the service by path, admits or sheds (`admission`), counts
//! and times -> generated code decodes -> `cache`, `batch`, `scan`, `cluster`, `health` -> `convert` makes commands of
//! messages and refuses what can never work -> [`service::Cache`](crate::service::Cache) -> messages, or `errors`.
//!
//! # Invariants
//! * Every answer carries the header; every error carries its reason and whether it was applied.
//! * A request is refused as a whole before anything of it is done, or not at all.
//! * Bounded: connections, streams of a connection, requests and bytes in flight, scans, message sizes.
//!
//! # Why hyper and not tonic's own server
//! tonic's `Server` ends a call at its `grpc-timeout` by itself, and answers DEADLINE_EXCEEDED without a detail, also
//! for a write that was proposed already. Here that code means "surely not applied"; so the deadline must go down with
//! the request, and whoever knows how far it got must answer. It also saves several boxed layers a request.
//!
//! Not here: retries and forwarding (`service`), and what a command means (`state`).

mod admission;
mod batch;
mod cache;
mod cluster;
mod convert;
mod dispatch;
mod errors;
mod health;
mod scan;
mod server;

use std::{sync::Arc, time::Duration};

use crate::{
    observe::Metrics,
    service::{Cache, ClusterView},
    state::MAX_BATCH_BYTES,
};

pub use server::serve;

/// The most bytes of a request message: a full batch and what its framing may cost. A single value above its own limit
/// still fits, so that it is refused with the sentence that names that limit.
pub const MAX_REQUEST_BYTES: usize = MAX_BATCH_BYTES + 512 * 1024;
/// The longest deadline that is taken over from a client; longer ones are cut to it.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// What the server works on.
#[derive(Clone)]
pub struct Deps {
    /// The cache behind the API.
    pub cache: Arc<dyn Cache>,
    /// The node and its cluster.
    pub cluster: Arc<dyn ClusterView>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// What is refused when there is too much of it.
    pub limits: Limits,
}

/// Bounds of what is under way at once, over all connections. Past them requests are refused with RESOURCE_EXHAUSTED,
/// not queued: a queue only makes all of them late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Cache requests being worked on.
    pub in_flight_requests: usize,
    /// Bytes of keys and values of large requests (above 16 KiB) being worked on.
    pub in_flight_bytes: usize,
    /// Scans being streamed: each keeps a frozen view of the state.
    pub scans: usize,
    /// Connections. Past them, new ones wait to be accepted.
    pub connections: usize,
    /// Streams of one connection at once; HTTP/2 makes the client wait past them.
    pub streams_per_connection: u32,
    /// How long requests under way are waited for at a shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_requests: 4096,
            in_flight_bytes: 256 * 1024 * 1024,
            scans: 64,
            connections: 4096,
            streams_per_connection: 1024,
            drain: Duration::from_secs(10),
        }
    }
}
