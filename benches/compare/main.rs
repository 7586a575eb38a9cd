//! Larder side by side with etcd, on one machine: three real processes each, durable, on loopback, with equal settings,
//! driven by the same harness with the same workload over the same gRPC library.
//!
//! # How
//! In rounds A B A B: a round starts one system with empty data, measures every case, and stops it, so that the one that
//! is measured has the machine for itself. All traffic goes to the leader, on one connection for each eight clients.
//! A ratio is of the medians over the rounds; its spread is from the lowest to the highest ratio of one round.
//!
//! # What comes out
//! A table on standard output; `report.json` (the ratios), `details.json` (every measurement whole, with conditions),
//! `report.md` (conditions and tables) and `report.svg`. The CPU time of leader, followers and clients for each operation
//! shows where the machine's time went.
//!
//! Called by `benches/compare/run`, which builds and finds the binaries. Without `--run`, as from `cargo bench` or
//! `cargo test --all-targets`, it does nothing.

mod cluster;
mod etcd;
mod http;
mod machine;
mod measure;
mod outcome;
mod ratio;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::Parser as _;
use larder::bench::WorkloadKind;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    cluster::{Cluster, System},
    measure::{Case, KEYS, VALUE_BYTES, WARM_UP, measure},
    outcome::Conditions,
};

/// How long one run with `--quick` measures each case, and how often.
const QUICK: (u64, usize) = (3, 3);

/// The same without it.
const FULL: (u64, usize) = (10, 5);

/// Side by side with etcd; called by benches/compare/run.
#[derive(Debug, clap::Parser)]
struct Args {
    /// Really run.
    #[arg(long, required = true)]
    run: bool,
    /// Shorter and fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Only this one.
    #[arg(long, value_parser = ["set", "get"])]
    only: Option<String>,
    /// The larder binary; without it only the peer is measured, and no report is written.
    #[arg(long)]
    larder: Option<PathBuf>,
    /// The etcd binary; without it only Larder is measured, and no report is written.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long)]
    out: PathBuf,
    /// An empty directory for the nodes' data and logs, on a disk.
    #[arg(long)]
    state: PathBuf,
    /// How many clients.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    clients: Vec<usize>,
    /// How many clients share a connection.
    #[arg(long, default_value_t = 8)]
    clients_per_connection: usize,
    /// How many rounds.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each case is measured, in seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--run") {
        println!("compare: does nothing by itself; call benches/compare/run");
        return ExitCode::SUCCESS;
    }
    match start(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<()> {
    // One thread: it drives more than these machines' servers take, and costs a third less CPU for each call than many
    // threads that wake each other.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        // Dropping the comparison ends its processes.
        tokio::select! {
            result = compare(args) => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
            _ = hangup.recv() => bail!("hung up"),
        }
    })
}

async fn compare(args: &Args) -> Result<()> {
    let (seconds, rounds) = if args.quick { QUICK } else { FULL };
    let (seconds, rounds) = (args.seconds.unwrap_or(seconds), args.rounds.unwrap_or(rounds));
    let cases = cases(args);
    let mut releases = Vec::new();
    let mut measurements = Vec::new();
    for round in 0..rounds {
        for (system, binary) in [(System::Larder, &args.larder), (System::Etcd, &args.etcd)] {
            let Some(binary) = binary else { continue };
            eprintln!("round {} of {rounds}: {system}", round + 1);
            let cluster = Cluster::start(system, binary, &args.state).await?;
            if round == 0 {
                releases.push(format!("{system} {}", cluster.release().await?));
            }
            for case in &cases {
                let measurement = measure(&cluster, system, round, *case, seconds).await?;
                eprintln!("{measurement}");
                measurements.push(measurement);
            }
        }
    }
    let text = format!(
        "Three nodes of each, real processes on this one machine and loopback, each write on the disks of a majority \
         (fsync) before it is answered; heartbeat 100 ms, election timeout 1 to 2 s; {KEYS} keys of 16 bytes drawn \
         uniformly, values of {VALUE_BYTES} bytes; unary requests to the leader in a closed loop, one connection for each \
         {} clients; {rounds} rounds, the systems in turn and only one running, each case {seconds} s after \
         a warm-up of {} s.",
        args.clients_per_connection,
        WARM_UP.as_secs()
    );
    let conditions = Conditions { machine: machine::describe(&args.state), releases, text };
    outcome::report(&args.out, &conditions, &measurements)
}

fn cases(args: &Args) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, kind) in [("set", WorkloadKind::Set), ("get", WorkloadKind::Get)] {
        if args.only.as_deref().is_none_or(|only| only == name) {
            cases.extend(args.clients.iter().map(|&clients| Case {
                kind,
                clients,
                clients_per_connection: args.clients_per_connection.max(1),
            }));
        }
    }
    cases
}
