//! `larder bench`: the flags of the load harness.
//!
//! Not here: what a run does (`bench`), and how an error becomes an exit code (`main`).

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;

use crate::{
    bench::{
        Distribution, LarderOptions, Options, Pacing, ReadConsistency, Report, Workload, WorkloadKind,
        connect, run as run_load,
    },
    error::{Error, Result},
};

/// How many clients share a connection unless it is said.
const CLIENTS_PER_CONNECTION: usize = 8;

/// Drive a cluster with a known load and report throughput and latencies.
///
/// WRITES keys named key-000000000000 and so on, and leaves them there: do not run it on a cluster whose keys look
/// like that.
///
/// Without --rate, each client sends its next operation when the last one is answered (closed loop): this finds the
/// throughput. With --rate, operations are due at a steady rate, and latency counts from when one was due (open loop):
/// this finds the latency at that load, stalls included.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  larder bench                                               durable Sets by 64 clients, for the throughput
  larder bench --workload get --clients 256 --duration 30s   linearizable Gets
  larder bench --workload mixed --rate 2000                  the latency at 2,000 operations a second")]
pub struct Args {
    /// What to do: set, get (of keys loaded before), or mixed.
    #[arg(long, value_enum, default_value = "set", env = "LARDER_BENCH_WORKLOAD")]
    pub workload: WorkloadArg,
    /// The share of gets in the mixed workload, 0 to 1.
    #[arg(long, default_value_t = 0.9, env = "LARDER_BENCH_GET_RATIO", value_name = "SHARE")]
    pub get_ratio: f64,
    /// How many different keys, 1 to 4194304.
    #[arg(long, default_value_t = 10_000, env = "LARDER_BENCH_KEYS", value_name = "N")]
    pub keys: u64,
    /// The length of every value in bytes, 0 to 1048576.
    #[arg(long, default_value_t = 256, env = "LARDER_BENCH_VALUE_SIZE", value_name = "BYTES")]
    pub value_size: usize,
    /// How keys are drawn: all alike, or few of them often.
    #[arg(long, value_enum, default_value = "uniform", env = "LARDER_BENCH_DISTRIBUTION")]
    pub distribution: DistributionArg,
    /// The exponent of zipf; the higher, the fewer keys get most of the load.
    #[arg(long, default_value_t = 0.99, env = "LARDER_BENCH_THETA", value_name = "THETA")]
    pub theta: f64,
    /// Send batches of so many operations instead of single ones; latencies are then of whole batches.
    #[arg(long, env = "LARDER_BENCH_BATCH", value_name = "N")]
    pub batch: Option<u32>,
    /// How many clients; in the closed loop each has one request in flight.
    #[arg(long, default_value_t = 64, env = "LARDER_BENCH_CLIENTS", value_name = "N")]
    pub clients: usize,
    /// How many connections the clients share [default: one for 8 clients].
    #[arg(long, env = "LARDER_BENCH_CONNECTIONS", value_name = "N")]
    pub connections: Option<usize>,
    /// Open loop: so many requests a second are due.
    #[arg(long, env = "LARDER_BENCH_RATE", value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Open loop: how many requests may be in flight; one past it is not sent and counted as "overload".
    #[arg(
        long,
        default_value_t = 4096,
        env = "LARDER_BENCH_MAX_IN_FLIGHT",
        value_name = "N",
        requires = "rate"
    )]
    pub max_in_flight: usize,
    /// How long to run before measuring, for example 2s.
    #[arg(long, default_value = "2s", env = "LARDER_BENCH_WARM_UP", value_parser = humantime::parse_duration)]
    pub warm_up: Duration,
    /// How long to measure, for example 10s or 1m.
    #[arg(long, default_value = "10s", env = "LARDER_BENCH_DURATION", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// What the random choice of keys, values and operations starts from: the same seed, the same operations.
    #[arg(long, default_value_t = 1, env = "LARDER_BENCH_SEED", value_name = "N")]
    pub seed: u64,
    /// Deal the connections to all endpoints instead of opening them to the leader only.
    #[arg(long, env = "LARDER_BENCH_SPREAD")]
    pub spread: bool,
    /// How fresh reads are.
    #[arg(long, value_enum, default_value = "linearizable", env = "LARDER_BENCH_CONSISTENCY")]
    pub consistency: ConsistencyArg,
    /// Also write the report to this file, as JSON.
    #[arg(long, env = "LARDER_BENCH_REPORT", value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// See [`WorkloadKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WorkloadArg {
    /// Writes only.
    Set,
    /// Reads only, of keys loaded before.
    Get,
    /// Both, at random.
    Mixed,
}

/// See [`Distribution`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DistributionArg {
    /// Every key alike.
    Uniform,
    /// Few keys often, by --theta.
    Zipf,
}

/// See [`ReadConsistency`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConsistencyArg {
    /// Sees every write acknowledged before it.
    Linearizable,
    /// What the node has applied; may be old.
    Local,
}

impl Args {
    /// The harness's options; `timeout` is how long one request may take.
    pub fn options(&self, target: String, timeout: Duration) -> Options {
        Options {
            target,
            workload: Workload {
                kind: match self.workload {
                    WorkloadArg::Set => WorkloadKind::Set,
                    WorkloadArg::Get => WorkloadKind::Get,
                    WorkloadArg::Mixed => WorkloadKind::Mixed,
                },
                get_ratio: self.get_ratio,
                keys: self.keys,
                distribution: match self.distribution {
                    DistributionArg::Uniform => Distribution::Uniform,
                    DistributionArg::Zipf => Distribution::Zipf { theta: self.theta },
                },
                value_bytes: self.value_size,
                batch: self.batch,
                seed: self.seed,
            },
            pacing: match self.rate {
                None => Pacing::Closed,
                Some(rate) => Pacing::Open { rate, max_in_flight: self.max_in_flight },
            },
            clients: self.clients,
            warm_up: self.warm_up,
            duration: self.duration,
            timeout,
        }
    }
}

/// Runs it: progress lines on standard error, the table on standard output; with `json` the report as JSON on
/// standard output and the table on standard error.
///
/// # Errors
/// A flag past a limit; nobody to connect to; no operation at all was done; the report cannot be written.
pub async fn run(args: &Args, endpoints: Vec<String>, timeout: Duration, json: bool) -> Result<()> {
    // Before connecting, so that a bad flag is told first.
    args.options(String::new(), timeout).validate()?;
    let connected = connect(&LarderOptions {
        endpoints,
        connections: args.connections.unwrap_or_else(|| args.clients.div_ceil(CLIENTS_PER_CONNECTION)),
        spread: args.spread,
        consistency: match args.consistency {
            ConsistencyArg::Linearizable => ReadConsistency::Linearizable,
            ConsistencyArg::Local => ReadConsistency::Local,
        },
        timeout,
    })
    .await?;
    let options = args.options(connected.target, timeout);
    let report = run_load(&connected.connections, &options, &mut |progress| eprintln!("{progress}")).await?;
    let text = to_json(&report)?;
    if let Some(path) = &args.report {
        std::fs::write(path, format!("{text}\n")).map_err(|error| {
            Error::Invalid(format!("the report cannot be written to {}: {error}", path.display()))
        })?;
    }
    if json {
        eprintln!("{report}");
        println!("{text}");
    } else {
        println!("{report}");
    }
    if report.operations == 0 {
        return Err(Error::Unavailable(
            "no operation was done; the errors above say why, and `larder status` how the cluster is".into(),
        ));
    }
    Ok(())
}

fn to_json(report: &Report) -> Result<String> {
    serde_json::to_string_pretty(report)
        .map_err(|error| Error::Invalid(format!("the report cannot be written as JSON: {error}")))
}
