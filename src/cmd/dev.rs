//! `dev`: a whole cluster in one process on loopback.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::error::Error;

/// How far apart the ports of two nodes are: client, peers +1, HTTP +2, and room.
pub const PORT_STEP: u16 = 10;

/// The highest base port with which three nodes have their ports.
const MAX_BASE_PORT: i64 = 65_535 - 2 * PORT_STEP as i64 - 2;

/// Run a whole cluster in one process on this machine, to try things.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Clients connect to 7400, 7410 and 7420 on 127.0.0.1; the peers' ports are one higher, the HTTP ports two. Without a
directory, the data is gone when it ends. Not for production: one machine, one process.

Examples:
  larder dev
  larder dev --nodes 1 --base-port 9000
  larder dev --data-dir ./larder-data     keeps the data")]
pub struct DevArgs {
    /// How many nodes: 1 or 3.
    #[arg(long, env = "LARDER_DEV_NODES", value_name = "N", default_value = "3", value_parser = node_count)]
    pub nodes: u8,
    /// The first node's client port; each further node's is 10 higher.
    #[arg(long, env = "LARDER_DEV_BASE_PORT", value_name = "PORT", default_value_t = 7400,
          value_parser = clap::value_parser!(u16).range(1..=MAX_BASE_PORT))]
    pub base_port: u16,
    /// Keep the data in this directory, one below it for each node.
    #[arg(long, env = "LARDER_DEV_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

fn node_count(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("this release has clusters of 1 or 3 nodes".into()),
    }
}

/// Runs the cluster until it is told to stop.
///
/// # Errors
/// If a port is in use, the directory cannot be used, or a node stops by itself.
pub async fn run(_args: DevArgs) -> Result<(), Failure> {
    Err(Error::Unimplemented("this build cannot run a node".into()).into())
}
