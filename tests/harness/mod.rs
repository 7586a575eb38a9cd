//! Real `larder serve` processes for tests: start, kill, restart, ask, load, and judge what clients saw.
//!
//! - Each cluster has a loopback address of its own (127.x.y.z, out of this process' id and a counter), so the usual
//!   ports never collide, neither between tests nor with anything else on the machine.
//! - Nothing sleeps: [`eventually`] polls a condition against a deadline, and says what it last saw.
//! - Data directories and logs are kept, and named, when a test fails. Processes never outlive their [`Cluster`].
//! - What clients saw is judged exactly ([`history`]): each key is a register with unique values.
//!
//! Shared by the test binaries `cluster` and `chaos`, each of which uses a part of it.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part of the harness")]

mod cluster;
pub mod history;
mod load;
mod node;
mod rpc;
mod wait;

pub use cluster::{Cluster, Options};
pub use load::{Load, Workload};
pub use node::{Exit, Node, copy_dir, larder, only, said, signal};
pub use rpc::{Failure, Rpc};
pub use wait::{alone, eventually, shared};
