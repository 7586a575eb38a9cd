//! The load harness: drives a key-value service with a known workload and reports what came of it.
//!
//! It is Larder's own yardstick and, through `benches/compare`, the same one for others: what is measured is behind
//! the small [`Target`] trait, and everything else (workload, pacing, histograms, report) is shared, so that two
//! systems differ in nothing but themselves.
//!
//! # Flow
//! [`connect`] opens the connections ([`LarderTarget`]); [`run`] loads the keys that will be read, starts the
//! clients, throws away what the warm-up measured, reports a [`Progress`] each second, waits for what is still in
//! flight and sums up a [`Report`].
//!
//! # Two loops
//! * **closed** ([`Pacing::Closed`]): each client has one operation in flight and sends the next when it is answered.
//!   It finds the throughput, but a stalled server also stalls the clients, so that its latencies flatter.
//! * **open** ([`Pacing::Open`]): operations are due at a steady rate whatever the server does, and latency counts
//!   from the instant an operation was *due*, not from when it left: a stall is charged to every operation that it
//!   delayed (no "coordinated omission"). What is in flight is bounded; an operation that finds no room is not sent
//!   and counted as the error `overload`.
//!
//! # Invariants
//! * The operations of client *c* depend on the workload, the seed and *c* only ([`Stream`]).
//! * Nothing is allocated for an operation but the request itself: keys and values are slices of two buffers made
//!   beforehand. On a small machine the harness takes its CPU from the server that it measures.
//! * An operation is counted once: as done, or as one error of one kind.
//!
//! Not here: starting servers (`benches/compare`), retrying (a failed operation is an error in the report), and the
//! flags (`cmd`).

mod grpc;
mod larder;
mod load;
mod report;
mod stats;
mod target;
mod workload;

pub use self::{
    grpc::{GrpcConnection, GrpcMethod},
    larder::{Connected, LarderOptions, LarderTarget, ReadConsistency, connect},
    load::run,
    report::{Latency, Progress, Report},
    target::{ErrorKind, Target},
    workload::{Distribution, Operation, Source, Stream, Workload, WorkloadKind},
};

use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};

/// The most clients of one run: each is a task with histograms of its own.
pub const MAX_CLIENTS: usize = 65_536;

/// The highest rate of an open loop, in operations a second: past it, one pacing thread cannot keep up.
pub const MAX_RATE: f64 = 1_000_000.0;

/// How a run is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Options {
    /// What is driven, for the report: for example `larder at 127.0.0.1:7400`.
    pub target: String,
    /// What the operations are.
    pub workload: Workload,
    /// When they are sent.
    pub pacing: Pacing,
    /// How many independent streams of operations there are, 1 to [`MAX_CLIENTS`].
    pub clients: usize,
    /// How long it runs before it measures.
    #[serde(serialize_with = "seconds")]
    pub warm_up: Duration,
    /// How long it measures; more than zero.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// How long an operation may take. The target enforces it; a run waits so long, and a second more, for its last
    /// operations and counts those still missing as the error `timeout`.
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
}

/// When operations are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "loop", rename_all = "snake_case")]
pub enum Pacing {
    /// Each client sends its next operation when the last one is answered.
    Closed,
    /// Operations are due at a steady rate.
    Open {
        /// Operations a second over all clients (requests a second in batches), more than 0, at most [`MAX_RATE`].
        rate: f64,
        /// How many may be in flight at once over all clients, at least 1.
        max_in_flight: usize,
    },
}

impl Options {
    /// Checks every limit.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the limit.
    pub fn validate(&self) -> Result<()> {
        self.workload.validate()?;
        if self.clients == 0 || self.clients > MAX_CLIENTS {
            return Err(Error::Invalid(format!("clients must be 1 to {MAX_CLIENTS}, not {}", self.clients)));
        }
        if self.duration.is_zero() {
            return Err(Error::Invalid("the duration must be more than zero, for example 10s".into()));
        }
        match self.pacing {
            Pacing::Closed => Ok(()),
            // Written so that NaN is refused, too.
            Pacing::Open { rate, .. } if !(rate > 0.0 && rate <= MAX_RATE) => Err(Error::Invalid(format!(
                "the rate must be more than 0 and at most {MAX_RATE} operations a second, not {rate}"
            ))),
            Pacing::Open { max_in_flight: 0, .. } => {
                Err(Error::Invalid("at least one operation must be allowed in flight".into()))
            }
            Pacing::Open { .. } => Ok(()),
        }
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
