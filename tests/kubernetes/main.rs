//! What users of replicated stores suffer from on Kubernetes, shown not to happen here: pods that come back with other addresses, names that do
//! not resolve yet, volumes that are lost or come back, scaling down and up. Whole nodes, all in this process, among pretended
//! DNS and a pretended Kubernetes API; see `fleet` for how. One file for each kind of trouble, one test for each trouble.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test binary: it exports nothing, and a panic is its verdict"
)]

#[path = "../harness/wait.rs"]
#[allow(dead_code, reason = "nobody here needs the machine alone")]
mod wait;

mod dns;
mod fleet;

mod genesis;
mod losing;
mod restarts;
mod scaling;
