//! From a name to a connection: who resolves names, and how a peer or a node is dialled.
//!
//! # Purpose
//! Behind a name, addresses change: a pod that restarts has a new one. So a name is kept as it was written, and resolved at
//! every dial. The C library's resolver is not used: it does not work in a statically linked binary.
//!
//! # Reading order
//! - [`HostPort`]: a place, as written.
//! - [`Resolver`]: the seam. [`SystemResolver`] asks `/etc/hosts` and DNS; [`TableResolver`] is a table that tests change.
//! - [`Connector`]: what tonic calls for each new connection, of peers (`raft`) and of clients (`client`, `bench`).
//!
//! # Invariants
//! - Nothing is remembered from one dial to the next, neither an address nor that there was none.
//! - Every wait is bounded: the resolving, and the connection to each address.
//!
//! # Not here
//! Which name a slot has (`cluster::slot`), when to dial again (tonic, and those who call it).

mod address;
mod connector;
mod system;
mod table;

use std::{fmt::Debug, net::SocketAddr};

use async_trait::async_trait;

pub use address::HostPort;
pub use connector::{Connector, DialError};
pub use system::SystemResolver;
pub use table::TableResolver;

/// Who knows the addresses behind a name. Asked at every dial, and answers within two seconds, if only that it does not know.
#[async_trait]
pub trait Resolver: Debug + Send + Sync + 'static {
    /// The addresses behind `host`, best first, each with `port`. An IP address stands for itself. Never empty.
    ///
    /// # Errors
    /// Why there is none, in a few words that follow "does not resolve: ".
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String>;
}
