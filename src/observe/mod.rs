//! What an operator sees of a node: numbers and log lines.
//!
//! Layer 0: everything above may count, log and report here, and nothing here knows who does. Two parts:
//!
//! * [`Metrics`]: one registry a node (a process may hold several nodes), with typed handles that cost an atomic
//!   addition on the hot path;
//! * [`tracing`]: levels and format of the log on standard error.
//!
//! Not here: the HTTP endpoints (`api`), and who sets which gauge when (`api` refreshes the Raft gauges from the
//! node's status when it is asked for metrics, so that nobody has to keep them current).

mod metrics;
pub mod tracing;

pub use metrics::{
    LogSync, METRICS_CONTENT_TYPE, Metrics, RaftGauges, RequestMethod, SnapshotKind, StateGauges,
};
