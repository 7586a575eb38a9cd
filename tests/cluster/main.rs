//! The whole system as real processes: `larder serve` three times on loopback, killed, stopped, misused, and judged by
//! what clients saw. See `harness` for how. One file for each thing that is shown.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test binary: it exports nothing, and a panic is its verdict"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod discovery;
mod disk;
mod elections;
mod forming;
mod increments;
mod kills;
mod members;
mod misuse;
mod recover;
mod shutdown;
mod snapshots;
