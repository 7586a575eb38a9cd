//! The API over real sockets, in front of a cache and a cluster that are only state and switches.

// A helper of a test may panic as the test itself; and everything public in a test binary is unreachable.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../conformance/mod.rs"]
mod conformance;

mod bad_input;
mod batch;
mod http;
mod scan;
mod service;
mod support;

use support::{MachineCache, Server};

/// The suite, over the state alone: what the API is measured against.
#[tokio::test]
async fn the_state_conforms() {
    let cache = MachineCache::open();
    conformance::all(&conformance::Local(&*cache), "state").await;
}

/// The same suite, over the wire.
#[tokio::test]
async fn the_api_conforms() {
    let server = Server::start().await;
    conformance::all(&conformance::grpc::GrpcCache::new(server.channel()), "grpc").await;
    server.stop().await;
}
