//! `dev`: a whole cluster in one process on loopback.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use comfy_table::Table;

use super::{
    Failure,
    node::{self, StopSignal},
};
use crate::{
    config::{Machine, RawConfig, ServeConfig},
    error::Error,
    observe::tracing,
    server::{Ended, Server},
    service::{ClusterView, Role},
};

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
        _ => Err("give 1 or 3".into()),
    }
}

/// Runs the cluster until it is told to stop.
///
/// # Errors
/// If a port is in use, the directory cannot be used, or a node stops by itself.
pub async fn run(args: DevArgs) -> Result<(), Failure> {
    tracing::init("warn,openraft=error", tracing::LogFormat::Text)?;
    let mut stop = StopSignal::listen()?;
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(Temporary::new()?),
    };
    let dir = args.data_dir.clone().or_else(|| temporary.as_ref().map(|t| t.0.clone())).unwrap_or_default();
    let mut servers = Vec::new();
    for config in configs(&args, &dir)? {
        servers.push(node::start(config).await?);
    }
    let all_ready = async {
        for server in &servers {
            server.ready().await;
        }
    };
    tokio::select! {
        () = stop.received() => return shut_down(servers).await,
        error = any_ends(&servers) => return Err(error.into()),
        () = all_ready => announce(&args, &servers, &dir),
    }
    tokio::select! {
        () = stop.received() => shut_down(servers).await,
        error = any_ends(&servers) => Err(error.into()),
    }
}

fn configs(args: &DevArgs, dir: &Path) -> Result<Vec<ServeConfig>, Error> {
    let port = |slot: u8, offset: u16| args.base_port + u16::from(slot) * PORT_STEP + offset;
    let local = |slot: u8, offset: u16| format!("127.0.0.1:{}", port(slot, offset));
    let peers: Vec<String> = (0..args.nodes).map(|slot| format!("{slot}={}", local(slot, 1))).collect();
    (0..args.nodes)
        .map(|slot| {
            let raw = RawConfig {
                slot: Some(slot.to_string()),
                peers: Some(peers.join(",")),
                data_dir: Some(dir.join(slot.to_string())),
                client_addr: Some(local(slot, 0)),
                peer_addr: Some(local(slot, 1)),
                http_addr: Some(local(slot, 2)),
                ..RawConfig::default()
            };
            ServeConfig::new(raw, &Machine::default())
        })
        .collect()
}

/// The first node that stops by itself. A founder that gives up cannot happen here: its peers are in this process.
async fn any_ends(servers: &[Server]) -> Error {
    let ends = servers.iter().map(|server| Box::pin(server.ended()));
    match futures::future::select_all(ends).await.0 {
        Ended::Failed(error) => error,
        Ended::StartOver { why } => {
            Error::Unavailable(format!("a node has to start over: {why}; start again"))
        }
    }
}

/// All at once: there is nobody to hand leadership to.
async fn shut_down(servers: Vec<Server>) -> Result<(), Failure> {
    let all = servers.into_iter().map(|server| server.shutdown(false));
    for result in futures::future::join_all(all).await {
        result?;
    }
    Ok(())
}

/// What somebody who tries Larder wants to know: where it is, and what to type next.
fn announce(args: &DevArgs, servers: &[Server], dir: &Path) {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["slot", "role", "clients (gRPC)", "peers", "probes and metrics"]);
    for (slot, server) in servers.iter().enumerate() {
        let port = usize::from(args.base_port) + slot * usize::from(PORT_STEP);
        let role = if server.view().status().role == Role::Leader { "leader" } else { "follower" };
        table.add_row([
            slot.to_string(),
            role.to_string(),
            format!("127.0.0.1:{port}"),
            format!("127.0.0.1:{}", port + 1),
            format!("http://127.0.0.1:{}/metrics", port + 2),
        ]);
    }
    let kept = if args.data_dir.is_some() { "kept" } else { "gone when this ends; --data-dir keeps it" };
    let endpoints = match args.base_port {
        7400 => String::new(),
        port => format!("--endpoints 127.0.0.1:{port} "),
    };
    let larder = std::env::args().next().unwrap_or_else(|| "larder".into());
    let text = format!(
        "{table}\nThe data is in {} ({kept}). Ctrl-C stops the cluster.\n\nTry, in another terminal:\n  \
         {larder} {endpoints}set greeting 'hello, world'\n  {larder} {endpoints}get greeting\n  {larder} {endpoints}status\n",
        dir.display()
    );
    // A reader that is gone is no reason to stop.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// A directory that goes with the cluster.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self, Error> {
        let dir = std::env::temp_dir().join(format!("larder-dev-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).map_err(|e| {
            Error::Storage(format!("cannot create {}: {e}; give a --data-dir", dir.display()))
        })?;
        Ok(Self(dir))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is left in the system's directory for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
