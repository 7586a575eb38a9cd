//! The Rust client: [`Client`].
//!
//! # What it promises
//! * A write is sent again only if it surely was not applied. If that is not known, the call ends with
//!   [`ClientError::OutcomeUnknown`], and the caller decides. It sends no exactly-once id.
//! * A read is tried elsewhere when an endpoint fails, within the deadline.
//! * Every call ends at its deadline ([`Options::timeout`]), which the node is told (`grpc-timeout`).
//! * Some endpoints may be down or gone; any one that is left is enough to find the others.
//!
//! # How a call flows
//! [`ops`](self) makes the request, `retry` sends it attempt by attempt, `pool` says where to and keeps the
//! connections, `error` reads out of a failure what it proves. The leader is learned from Members when a connection is
//! made, from the details of errors, and again every few seconds while calls are made; writes and linearizable reads go
//! to it, because any other node would have to ask it.
//!
//! Not here: sessions (a later release), TLS (a later release).
//!
//! # Example
//! ```no_run
//! use larder::client::{Client, ClientError, Endpoint, Options};
//!
//! # async fn example() -> Result<(), ClientError> {
//! let endpoints = Endpoint::list("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420")?;
//! let client = Client::new(endpoints, Options::default())?;
//! let set = client.set("greeting", "hello").await?;
//! let got = client.get("greeting").await?;
//! assert_eq!(got.found.map(|found| found.version), Some(set.version));
//! match client.increment("visits", 1).await {
//!     Ok(sum) => println!("{} visits", sum.value),
//!     Err(error) if error.is_outcome_unknown() => println!("counted or not: {error}"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```

mod cluster;
mod endpoint;
mod error;
mod ops;
mod pool;
mod remote;
mod retry;
mod scan;
mod types;

use std::{sync::Arc, time::Duration};

pub use cluster::{EndpointStatus, Member, Members, NodeStatus, Recovered, Role};
pub use endpoint::Endpoint;
pub use error::{Applied, ClientError, LeaderHint, Refusal};
pub use scan::Scan;
pub use types::{
    BatchOutcome, BatchResult, Condition, Consistency, DeleteOptions, DeleteResult, Entry, GetResult, Header,
    IncrementResult, NodeName, Operation, ScanOptions, SetOptions, SetResult, Versioned,
};

use pool::Pool;

/// How a client behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a call may take in all, retries included. Of a scan: how long it may go without an answer.
    pub timeout: Duration,
    /// How long making a connection may take, and as long again for the node's first answer on it.
    pub connect_timeout: Duration,
    /// How many connections are kept to each endpoint, 1 to 64. Calls take them in turn.
    pub connections: usize,
    /// Whether to go on trying until the deadline while no endpoint can be reached; otherwise a call fails once each
    /// was tried.
    pub wait_for_ready: bool,
    /// Whether to also use the client addresses that the members tell, besides the endpoints given.
    pub discover: bool,
    /// Whether linearizable reads take the nodes in turn, instead of going to the leader.
    pub spread_reads: bool,
    /// How often, while calls are made, the leader is asked for again: it may have handed over without any call failing.
    /// Where none is known, it is asked for more often.
    pub refresh: Duration,
    /// The longest wait before the second round of attempts; it doubles with every round. Each wait is a random part of
    /// it.
    pub backoff: Duration,
    /// The longest wait before any round of attempts.
    pub max_backoff: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            connections: 1,
            wait_for_ready: true,
            discover: true,
            spread_reads: false,
            refresh: Duration::from_secs(5),
            backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
        }
    }
}

/// A client of a cluster. Cheap to clone; clones share the connections. Connects when first used, and is to be used
/// within a tokio runtime.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Arc<Pool>,
    timeout: Duration,
}

impl Client {
    /// A client of the cluster that these endpoints belong to. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] without an endpoint, or for options out of their range.
    pub fn new(endpoints: Vec<Endpoint>, options: Options) -> Result<Self, ClientError> {
        if endpoints.is_empty() {
            return Err(ClientError::Invalid(
                "no endpoint is given; name at least one, for example 127.0.0.1:7400".into(),
            ));
        }
        if !(1..=64).contains(&options.connections) {
            return Err(ClientError::Invalid(format!(
                "{} connections an endpoint; choose 1 to 64",
                options.connections
            )));
        }
        if options.timeout.is_zero() || options.connect_timeout.is_zero() {
            return Err(ClientError::Invalid("a timeout of nothing; choose more than 0".into()));
        }
        let timeout = options.timeout;
        Ok(Self { pool: Arc::new(Pool::new(endpoints, options)), timeout })
    }

    /// The same client with another timeout for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { pool: Arc::clone(&self.pool), timeout }
    }

    /// The endpoints it was made with.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.pool.configured()
    }
}
