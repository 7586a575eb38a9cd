//! One measurement: a case on a running cluster, with what it cost.

use std::{fmt, time::Duration};

use anyhow::{Result, bail};
use larder::bench::{
    Distribution, LarderOptions, Options, Pacing, Progress, ReadConsistency, Report, Target, Workload,
    WorkloadKind, connect, run,
};
use serde::Serialize;

use super::{
    cluster::{Cluster, System, TIMEOUT, cpu_of},
    etcd, http,
};

/// Different keys.
pub(crate) const KEYS: u64 = 10_000;

/// The length of a value.
pub(crate) const VALUE_BYTES: usize = 256;

/// How long a case runs before it is measured.
pub(crate) const WARM_UP: Duration = Duration::from_secs(1);

/// One thing to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Set or get.
    pub(crate) kind: WorkloadKind,
    /// How many clients.
    pub(crate) clients: usize,
    /// How many of them share a connection.
    pub(crate) clients_per_connection: usize,
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) system: String,
    pub(crate) round: usize,
    pub(crate) clients: usize,
    pub(crate) report: Report,
    /// CPU microseconds for each operation: of the leader, of both followers, and of the clients.
    pub(crate) cpu_us_per_op: CpuPerOperation,
    /// Larder's log on the leader while it ran; absent for others.
    pub(crate) log: Option<LogWork>,
    /// Whether the leader was the same before and after.
    pub(crate) leader_kept: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CpuPerOperation {
    pub(crate) leader: f64,
    pub(crate) followers: f64,
    pub(crate) clients: f64,
}

/// What the log did, by the leader's metrics.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LogWork {
    pub(crate) syncs: f64,
    pub(crate) commands_per_sync: f64,
    pub(crate) bytes_per_sync: f64,
    pub(crate) mean_sync_ms: f64,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, clients, report, cpu_us_per_op: cpu, log, leader_kept, .. } = self;
        write!(
            f,
            "  {system:<6} {} {clients:>3} clients {:>8.0} ops/s  p50 {:>8.3} ms  p99 {:>8.3} ms  \
             cpu us/op: leader {:.0}, followers {:.0}, clients {:.0}",
            report.name,
            report.throughput_ops_per_s,
            report.latency_ms.p50,
            report.latency_ms.p99,
            cpu.leader,
            cpu.followers,
            cpu.clients,
        )?;
        if let Some(log) = log {
            write!(f, "  commands per sync {:.1}", log.commands_per_sync)?;
        }
        if !report.errors.is_empty() {
            write!(f, "  ERRORS {:?}", report.errors)?;
        }
        if !leader_kept {
            write!(f, "  THE LEADER CHANGED")?;
        }
        Ok(())
    }
}

/// Drives the leader with one case.
pub(crate) async fn measure(
    cluster: &Cluster,
    system: System,
    round: usize,
    case: Case,
    seconds: u64,
) -> Result<Measurement> {
    let leader = cluster.leader().await?;
    let connections = case.clients.div_ceil(case.clients_per_connection);
    let address = cluster.client(leader);
    let options = Options {
        target: format!("{system}, the leader at {address}"),
        workload: Workload {
            kind: case.kind,
            get_ratio: 0.0,
            keys: KEYS,
            distribution: Distribution::Uniform,
            value_bytes: VALUE_BYTES,
            batch: None,
            // Another round, other draws; the same for both systems.
            seed: 1 + round as u64,
        },
        pacing: Pacing::Closed,
        clients: case.clients,
        warm_up: WARM_UP,
        duration: Duration::from_secs(seconds),
        timeout: TIMEOUT,
    };
    let (report, spent) = match system {
        System::Larder => {
            let how = LarderOptions {
                endpoints: vec![address],
                connections,
                spread: false,
                consistency: ReadConsistency::Linearizable,
                timeout: TIMEOUT,
            };
            drive(cluster, leader, &connect(&how).await?.connections, &options).await?
        }
        System::Etcd => {
            let mut targets = Vec::with_capacity(connections);
            for _ in 0..connections {
                targets.push(etcd::connect(&address, TIMEOUT).await?);
            }
            drive(cluster, leader, &targets, &options).await?
        }
    };
    if report.operations == 0 {
        bail!(
            "{system} did no operation in {} with {} clients: {:?}",
            report.name,
            case.clients,
            report.errors
        );
    }
    let operations = report.operations as f64;
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / operations;
    let log = match (&spent.metrics_before, &spent.metrics_after) {
        (Some(before), Some(after)) => log_work(before, after),
        _ => None,
    };
    Ok(Measurement {
        system: system.to_string(),
        round,
        clients: case.clients,
        report,
        cpu_us_per_op: CpuPerOperation {
            leader: micros(spent.leader),
            followers: micros(spent.followers),
            clients: micros(spent.clients),
        },
        log,
        leader_kept: cluster.leader().await? == leader,
    })
}

/// What was spent in the measured time, and the leader's metrics at both of its ends.
#[derive(Debug, Default)]
struct Spent {
    leader: Duration,
    followers: Duration,
    clients: Duration,
    metrics_before: Option<String>,
    metrics_after: Option<String>,
}

async fn drive<T: Target>(
    cluster: &Cluster,
    leader: usize,
    targets: &[T],
    options: &Options,
) -> Result<(Report, Spent)> {
    // The first report that is not of the warm-up comes a second late: take the last of the warm-up.
    let mut start = None;
    let mut end = None;
    let mut on_progress = |progress: &Progress| {
        let now = Some((cluster.cpu(), cpu_of("self")));
        if progress.warming_up {
            start = now;
        } else {
            end = now;
        }
    };
    // Metrics are taken around all of it: a question while it is measured would cost what is measured.
    let metrics_before = cluster.metrics(leader).await.ok();
    let report = run(targets, options, &mut on_progress).await?;
    let metrics_after = cluster.metrics(leader).await.ok();
    let mut spent = Spent { metrics_before, metrics_after, ..Spent::default() };
    if let (Some((nodes_before, self_before)), Some((nodes_after, self_after))) = (start, end) {
        for (node, (before, after)) in nodes_before.iter().zip(&nodes_after).enumerate() {
            let time = after.saturating_sub(*before);
            if node == leader { spent.leader += time } else { spent.followers += time }
        }
        spent.clients = self_after.saturating_sub(self_before);
    }
    Ok((report, spent))
}

/// The difference of Larder's log metrics; `None` if they are not there or nothing was synced.
fn log_work(before: &str, after: &str) -> Option<LogWork> {
    let grown = |name: &str| Some(http::metric(after, name)? - http::metric(before, name)?);
    let syncs = grown("larder_log_sync_total")?;
    if syncs < 1.0 {
        return None;
    }
    Some(LogWork {
        syncs,
        commands_per_sync: grown("larder_log_sync_commands_total")? / syncs,
        bytes_per_sync: grown("larder_log_sync_bytes_total").unwrap_or(f64::NAN) / syncs,
        mean_sync_ms: grown("larder_log_sync_seconds_sum").unwrap_or(f64::NAN) * 1e3
            / grown("larder_log_sync_seconds_count").unwrap_or(syncs),
    })
}
