//! `serve`: the flags of a node.
//!
//! Every flag is optional here, because the configuration file may say it instead; the flags are laid over the file, and only
//! the whole is checked (`config`).

use std::path::PathBuf;

use clap::Args;

use super::{Failure, node};
use crate::{
    config::{ByteSize, Machine, RawConfig, ServeConfig},
    error::Error,
    observe::tracing,
};

/// Run a node.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
A node is told where the others are: by a list that every node is given, or by a template into which a slot is put, as for
pods. 1 or 3 of them, the seeds, found the cluster together; those are the first of the list if nobody names them. A node
that is ready prints a line and answers 200 at /readyz on its HTTP port. It stops on SIGTERM: leadership is handed over,
what is in flight is finished, everything is synced. Settings come from defaults, then --config, then variables, then
flags; the later one wins.

Examples:
  larder serve --slot 0 --peers 0=127.0.0.1:7401 --data-dir /var/lib/larder             one node
  larder serve --slot 1 --peers 0=a:7401,1=b:7401,2=c:7401 --data-dir /var/lib/larder   one of three, on b
  larder serve --peer-template larder-{slot}.larder-headless:7401 --seeds 0,1,2 \\
      --data-dir /var/lib/larder                                                        in a pod: the slot is its ordinal
  LARDER_SLOT=1 larder serve --config /etc/larder.toml")]
pub struct ServeArgs {
    /// This node's slot: its name in the cluster, which it keeps for life [default: with --peer-template, the ordinal at the end of the
    /// hostname].
    #[arg(long, env = "LARDER_SLOT", value_name = "SLOT")]
    pub slot: Option<String>,
    /// Every node of the cluster, this one included: slot=host:port of its peer port, separated by commas.
    #[arg(long, env = "LARDER_PEERS", value_name = "LIST")]
    pub peers: Option<String>,
    /// Instead of --peers: host:port of any node's peer port, with {slot} for its slot. Resolved at every connection.
    #[arg(long, env = "LARDER_PEER_TEMPLATE", value_name = "TEXT")]
    pub peer_template: Option<String>,
    /// The slots that found the cluster, 1 or 3, separated by commas; read only by a node whose data directory is new [default: those
    /// of --scale-file, else the first three of --peers, or the first alone where there are fewer].
    #[arg(long, env = "LARDER_SEEDS", value_name = "LIST")]
    pub seeds: Option<String>,
    /// A TOML file that is read anew whenever it is needed: seeds = \"0,1,2\", and replicas = 3, the number of nodes wanted.
    #[arg(long, env = "LARDER_SCALE_FILE", value_name = "FILE")]
    pub scale_file: Option<PathBuf>,
    /// The StatefulSet that this node is a pod of: its replicas say whether a node that stops leaves the cluster.
    #[arg(long, env = "LARDER_STATEFULSET", value_name = "NAMESPACE/NAME")]
    pub statefulset: Option<String>,
    /// How many members vote at most: odd, 1 to 9; the others hold the data and serve reads [default: 5].
    #[arg(long, env = "LARDER_MAX_VOTERS", value_name = "N")]
    pub max_voters: Option<u8>,
    /// The directory for the log, the snapshots and the identity; of this node alone.
    #[arg(long, env = "LARDER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Empty the data directory at every start: each start is a new member, and what it held comes from the others.
    #[arg(long, env = "LARDER_EPHEMERAL", value_name = "true|false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub ephemeral: Option<bool>,
    /// What an --ephemeral node does when it alone is left and every other voter was replaced: wait for an operator, or recover, as a
    /// new cluster with what it holds [default: wait].
    #[arg(long, env = "LARDER_ON_MAJORITY_LOST", value_name = "RULE")]
    pub on_majority_lost: Option<String>,
    /// Where to listen for clients [default: 0.0.0.0:7400].
    #[arg(long, env = "LARDER_CLIENT_ADDR", value_name = "ADDRESS:PORT")]
    pub client_addr: Option<String>,
    /// Where to listen for the other nodes [default: 0.0.0.0:7401].
    #[arg(long, env = "LARDER_PEER_ADDR", value_name = "ADDRESS:PORT")]
    pub peer_addr: Option<String>,
    /// Where to listen for probes and metrics over HTTP [default: 0.0.0.0:7402].
    #[arg(long, env = "LARDER_HTTP_ADDR", value_name = "ADDRESS:PORT")]
    pub http_addr: Option<String>,
    /// What clients are told to connect to [default: this node's host among the peers, and the client port].
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
    /// The memory this node may use: bytes, or with a unit as in 512Mi or 2Gi [default: the limit of its control group, if there is
    /// one].
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
    /// Retire a member that was scaled away, and left no word, after so many milliseconds of silence [default: 60000].
    #[arg(long, env = "LARDER_RETIRE_AFTER_MS", value_name = "MS")]
    pub retire_after_ms: Option<u64>,
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
            peer_template: self.peer_template,
            seeds: self.seeds,
            scale_file: self.scale_file,
            statefulset: self.statefulset,
            max_voters: self.max_voters,
            data_dir: self.data_dir,
            ephemeral: self.ephemeral,
            on_majority_lost: self.on_majority_lost,
            client_addr: self.client_addr,
            peer_addr: self.peer_addr,
            http_addr: self.http_addr,
            advertise_client: self.advertise_client,
            log_level: self.log_level,
            log_format: self.log_format,
            heartbeat_ms: self.heartbeat_ms,
            election_timeout_min_ms: self.election_timeout_min_ms,
            election_timeout_max_ms: self.election_timeout_max_ms,
            retire_after_ms: self.retire_after_ms,
        })
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// If the settings are wrong, the node cannot start, or it stops by itself.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let file = args.config.as_deref().map(RawConfig::from_file).transpose()?.unwrap_or_default();
    let config = ServeConfig::new(file.merge(args.settings()?), &Machine::this())?;
    tracing::init(&config.log_level, config.log_format)?;
    Ok(node::run(config).await?)
}
