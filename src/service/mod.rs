//! The seam everything meets at: [`Cache`].
//!
//! Above it stand the protocols (`api`), which translate and do nothing else; below it `raft` and `state`. Limits,
//! metrics and fakes are written once, on this trait.

mod cluster_view;
pub mod duties;
mod late;
mod node_view;
mod replicated;

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Result,
    state::{Answer, Applied, Command, Query},
};

pub use cluster_view::{Check, ClusterView, Member, Recovered, Role, Status};
pub use late::LateCache;
pub use node_view::{NodeView, RecoveryAsked};
pub use replicated::ReplicatedCache;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began.
    #[default]
    Linearizable,
    /// What this node has applied.
    Local,
}

/// What a request carries besides its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ctx {
    /// How long the caller still waits. Travels along when the request is forwarded.
    pub timeout: Duration,
}

impl Ctx {
    /// How long a request without a deadline may take.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
}

impl Default for Ctx {
    fn default() -> Self {
        Self { timeout: Self::DEFAULT_TIMEOUT }
    }
}

/// A replicated cache, wherever it is.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Applies a command and returns what it came to, once a majority has it on disk.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`](crate::error::Error::OutcomeUnknown) if it may have been applied; any other error says that it surely was not,
    /// except a storage error, after which this node stops. A command that the state refused is not an error here but
    /// [`Outcome::Rejected`](crate::state::Outcome::Rejected).
    async fn write(&self, command: Command, ctx: Ctx) -> Result<Applied>;

    /// Answers a query as fresh as asked.
    ///
    /// # Errors
    /// If no leader confirmed in time, or this node does not catch up in time.
    async fn read(&self, query: Query, consistency: Consistency, ctx: Ctx) -> Result<Answer>;
}
