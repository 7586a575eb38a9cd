//! `serve`: the flags of a node.
//!
//! Every flag is optional here, because the configuration file may say it instead; the flags are laid over the file, and only
//! the whole is checked (`config`).

use std::path::PathBuf;

use clap::Args;

use super::{Failure, node};
use crate::{
    config::{ByteSize, RawConfig, ServeConfig},
    error::Error,
    observe::tracing,
};

/// Run a node.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
A cluster has 1 or 3 nodes, and every node is told all of them. A node that is ready prints a line and answers 200 at
/readyz on its HTTP port. It stops on SIGTERM: leadership is handed over, what is in flight is finished, everything is
synced. Settings come from defaults, then --config, then variables, then flags; the later one wins.

Examples:
  larder serve --slot 0 --peers 0=127.0.0.1:7401 --data-dir /var/lib/larder             one node
  larder serve --slot 1 --peers 0=a:7401,1=b:7401,2=c:7401 --data-dir /var/lib/larder   one of three, on b
  LARDER_SLOT=1 larder serve --config /etc/larder.toml")]
pub struct ServeArgs {
    /// This node's slot: its number in the cluster, which it keeps for life.
    #[arg(long, env = "LARDER_SLOT", value_name = "SLOT")]
    pub slot: Option<String>,
    /// Every node of the cluster, this one included: slot=host:port of its peer port, separated by commas.
    #[arg(long, env = "LARDER_PEERS", value_name = "LIST")]
    pub peers: Option<String>,
    /// The directory for the log, the snapshots and the identity; of this node alone.
    #[arg(long, env = "LARDER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to listen for clients [default: 0.0.0.0:7400].
    #[arg(long, env = "LARDER_CLIENT_ADDR", value_name = "ADDRESS:PORT")]
    pub client_addr: Option<String>,
    /// Where to listen for the other nodes [default: 0.0.0.0:7401].
    #[arg(long, env = "LARDER_PEER_ADDR", value_name = "ADDRESS:PORT")]
    pub peer_addr: Option<String>,
    /// Where to listen for probes and metrics over HTTP [default: 0.0.0.0:7402].
    #[arg(long, env = "LARDER_HTTP_ADDR", value_name = "ADDRESS:PORT")]
    pub http_addr: Option<String>,
    /// What clients are told to connect to [default: this node's host in --peers, and the client port].
    #[arg(long, env = "LARDER_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,
    /// A TOML file with the same settings, their names with _ instead of -.
    #[arg(long, env = "LARDER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, also by module: info,larder::raft=debug [default: info].
    #[arg(long, env = "LARDER_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How to log: text or json [default: text].
    #[arg(long, env = "LARDER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// The memory this node may use: bytes, or with a unit as in 512Mi or 2Gi [default: no limit].
    #[arg(long, env = "LARDER_MEMORY_LIMIT", value_name = "BYTES")]
    pub memory_limit: Option<String>,
    /// Take a snapshot after so many bytes of log [default: 64Mi].
    #[arg(long, env = "LARDER_SNAPSHOT_LOG_BYTES", value_name = "BYTES")]
    pub snapshot_log_bytes: Option<String>,
    /// Milliseconds between the leader's heartbeats [default: 100].
    #[arg(long, env = "LARDER_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// The shortest time without a leader before a node stands for election, in milliseconds [default: 500].
    #[arg(long, env = "LARDER_ELECTION_TIMEOUT_MIN_MS", value_name = "MS")]
    pub election_timeout_min_ms: Option<u64>,
    /// The longest one, in milliseconds [default: 1000].
    #[arg(long, env = "LARDER_ELECTION_TIMEOUT_MAX_MS", value_name = "MS")]
    pub election_timeout_max_ms: Option<u64>,
}

impl ServeArgs {
    /// The flags, as they are laid over the file.
    fn settings(self) -> Result<RawConfig, Error> {
        let size = |name: &str, text: Option<String>| {
            text.map(|text| text.parse::<ByteSize>().map_err(|e| Error::Invalid(format!("--{name}: {e}"))))
                .transpose()
        };
        Ok(RawConfig {
            memory_limit: size("memory-limit", self.memory_limit)?,
            snapshot_log_bytes: size("snapshot-log-bytes", self.snapshot_log_bytes)?,
            slot: self.slot,
            peers: self.peers,
            data_dir: self.data_dir,
            client_addr: self.client_addr,
            peer_addr: self.peer_addr,
            http_addr: self.http_addr,
            advertise_client: self.advertise_client,
            log_level: self.log_level,
            log_format: self.log_format,
            heartbeat_ms: self.heartbeat_ms,
            election_timeout_min_ms: self.election_timeout_min_ms,
            election_timeout_max_ms: self.election_timeout_max_ms,
        })
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// If the settings are wrong, the node cannot start, or it stops by itself.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let file = args.config.as_deref().map(RawConfig::from_file).transpose()?.unwrap_or_default();
    let config = ServeConfig::try_from(file.merge(args.settings()?))?;
    tracing::init(&config.log_level, config.log_format)?;
    Ok(node::run(config).await?)
}
