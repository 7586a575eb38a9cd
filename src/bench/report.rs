//! What a run came to: while it runs, as a table, and as JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    Options,
    stats::{Class, Counts},
};

/// How it goes: what happened since the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Time since the clients started.
    pub elapsed: Duration,
    /// Whether this is not measured yet.
    pub warming_up: bool,
    /// Operations done a second.
    pub throughput: f64,
    /// The 99th percentile of the latency.
    pub p99: Duration,
    /// Errors of all kinds.
    pub errors: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elapsed, warming_up, throughput, p99, errors } = self;
        write!(
            f,
            "{:>4.0}s  {:>9.0} ops/s  p99 {:>9.3} ms  {errors} errors{}",
            elapsed.as_secs_f64(),
            throughput,
            p99.as_secs_f64() * 1e3,
            if *warming_up { "  (warm-up)" } else { "" }
        )
    }
}

/// Latencies in milliseconds, to a thousandth of the value and not finer than a microsecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many requests.
    pub count: u64,
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p99_9: f64,
    /// The highest.
    pub max: f64,
}

impl Latency {
    fn of(micros: &Histogram<u64>) -> Self {
        let millis = |micros: u64| micros as f64 / 1e3;
        Self {
            count: micros.len(),
            mean: micros.mean() / 1e3,
            p50: millis(micros.value_at_quantile(0.5)),
            p90: millis(micros.value_at_quantile(0.9)),
            p99: millis(micros.value_at_quantile(0.99)),
            p99_9: millis(micros.value_at_quantile(0.999)),
            max: millis(micros.max()),
        }
    }
}

/// What a run came to. [`fmt::Display`] is the table, [`Serialize`] the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The workload's name; see [`Workload::name`](super::Workload::name).
    pub name: String,
    /// Operations done a second.
    pub throughput_ops_per_s: f64,
    /// Operations done within the measured time.
    pub operations: u64,
    /// The time that was measured, in seconds.
    pub measured_s: f64,
    /// Latencies of all requests; in batches, of the whole batch.
    pub latency_ms: Latency,
    /// Latencies by request: `set`, `get`, `batch`.
    pub latency_ms_by_request: BTreeMap<&'static str, Latency>,
    /// Operations that failed, by kind. Their latencies are not in the histograms.
    pub errors: BTreeMap<&'static str, u64>,
    /// Connections, dealt to the clients in turn.
    pub connections: usize,
    /// What it was run with.
    pub conditions: Options,
}

impl Report {
    /// Sums up. `operations` are those done within `measured`; `counts` also has those that were then in flight.
    pub(super) fn new(
        options: &Options,
        connections: usize,
        measured: Duration,
        operations: u64,
        counts: &Counts,
    ) -> Self {
        Self {
            name: options.workload.name(),
            throughput_ops_per_s: operations as f64 / measured.as_secs_f64(),
            operations,
            measured_s: measured.as_secs_f64(),
            latency_ms: Latency::of(&counts.all_latencies()),
            latency_ms_by_request: Class::ALL
                .into_iter()
                .filter_map(|class| Some((class.name(), Latency::of(counts.latencies(class)?))))
                .collect(),
            errors: counts.errors.iter().map(|(kind, count)| (kind.0, *count)).collect(),
            connections,
            conditions: options.clone(),
        }
    }

    /// Errors of all kinds.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { target, workload, pacing, clients, warm_up, duration, .. } = &self.conditions;
        let pacing = match pacing {
            super::Pacing::Closed => "closed loop".to_owned(),
            super::Pacing::Open { rate, max_in_flight } => {
                format!("open loop at {rate} requests/s, at most {max_in_flight} in flight")
            }
        };
        writeln!(f, "{} on {target}", self.name)?;
        writeln!(f, "{clients} clients on {} connections, {pacing}", self.connections)?;
        writeln!(
            f,
            "{} keys ({}), values of {} bytes, seed {}, warm-up {:?}, duration {:?}",
            workload.keys, workload.distribution, workload.value_bytes, workload.seed, warm_up, duration
        )?;
        let mut table = Table::new();
        table
            .load_preset(presets::ASCII_MARKDOWN)
            .set_header(["request", "ops/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"]);
        let row = |name: &str, throughput: String, latency: &Latency| {
            let millis = |value: f64| format!("{value:.3}");
            [
                name.to_owned(),
                throughput,
                millis(latency.p50),
                millis(latency.p90),
                millis(latency.p99),
                millis(latency.p99_9),
                millis(latency.max),
            ]
        };
        table.add_row(row("all", format!("{:.0}", self.throughput_ops_per_s), &self.latency_ms));
        if self.latency_ms_by_request.len() > 1 {
            for (name, latency) in &self.latency_ms_by_request {
                table.add_row(row(name, String::new(), latency));
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        if self.errors.is_empty() {
            return write!(f, "no errors");
        }
        write!(f, "errors:")?;
        for (kind, count) in &self.errors {
            write!(f, " {kind} {count}")?;
        }
        Ok(())
    }
}
