//! From measurements to what is printed and written.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    measure::Measurement,
    ratio::{self, Entry, Samples},
};

/// Who Larder is compared with.
const PEER: &str = "etcd";

/// What all of it was measured under.
#[derive(Debug, Serialize)]
pub(crate) struct Conditions {
    /// The machine, by name and value.
    pub(crate) machine: Vec<(&'static str, String)>,
    /// Which releases.
    pub(crate) releases: Vec<String>,
    /// How, in a paragraph.
    pub(crate) text: String,
}

/// Every measurement, whole.
#[derive(Serialize)]
struct Details<'a> {
    conditions: &'a Conditions,
    measurements: &'a [Measurement],
}

/// Prints and writes everything.
pub(crate) fn report(out: &Path, conditions: &Conditions, measurements: &[Measurement]) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let entries = entries(measurements);
    let text = text(conditions, measurements, &entries)?;
    println!("{text}");
    let write = |name: &str, content: String| {
        let path = out.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    write("details.json", serde_json::to_string_pretty(&Details { conditions, measurements })?)?;
    if entries.is_empty() {
        eprintln!("only one system was measured: no ratios, no report.json");
        return Ok(());
    }
    write("report.md", text)?;
    write("report.svg", ratio::chart(&entries, PEER))?;
    write("report.json", serde_json::to_string_pretty(&entries)? + "\n")?;
    eprintln!("written: {}", out.join("report.json").display());
    Ok(())
}

fn text(conditions: &Conditions, measurements: &[Measurement], entries: &[Entry]) -> Result<String> {
    let mut text = String::new();
    for (name, value) in &conditions.machine {
        writeln!(text, "- {name}: {value}")?;
    }
    writeln!(text, "- releases: {}\n\n{}\n", conditions.releases.join(", "), conditions.text)?;
    if !entries.is_empty() {
        writeln!(
            text,
            "The ratio is larder / {PEER}, of the medians over the rounds; \"rounds\" is from the lowest to the highest ratio \
             of one round. For ops/s more is better; for ms (the median latency) less is better.\n\n{}\n",
            ratio::table(entries, PEER)
        )?;
    }
    writeln!(text, "Means over the rounds:\n\n{}", means_table(measurements))?;
    Ok(text)
}

/// The ratios: throughputs, then latencies.
fn entries(measurements: &[Measurement]) -> Vec<Entry> {
    let throughput = |measurement: &Measurement| measurement.report.throughput_ops_per_s;
    let latency = |measurement: &Measurement| measurement.report.latency_ms.p50;
    let mut entries = samples(measurements, "ops/s", throughput);
    entries.extend(samples(measurements, "ms", latency));
    entries
}

fn samples(measurements: &[Measurement], unit: &'static str, value: fn(&Measurement) -> f64) -> Vec<Entry> {
    let mut cases: Vec<Samples> = Vec::new();
    for measurement in measurements {
        let (name, clients) = (&measurement.report.name, measurement.clients);
        let place = match cases.iter().position(|case| case.name == *name && case.clients == clients) {
            Some(place) => place,
            None => {
                let (larder, peer) = (Vec::new(), Vec::new());
                cases.push(Samples { name: name.clone(), unit, clients, larder, peer });
                cases.len() - 1
            }
        };
        let side = if measurement.system == PEER { &mut cases[place].peer } else { &mut cases[place].larder };
        side.push(value(measurement));
    }
    cases.iter().filter_map(|case| case.entry(PEER)).collect()
}

/// Tails, CPU and syncs: why the ratios are what they are.
fn means_table(measurements: &[Measurement]) -> Table {
    let mut groups: BTreeMap<(&str, usize, &str), Vec<&Measurement>> = BTreeMap::new();
    for measurement in measurements {
        let key = (measurement.report.name.as_str(), measurement.clients, measurement.system.as_str());
        groups.entry(key).or_default().push(measurement);
    }
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([
        "what",
        "clients",
        "system",
        "ops/s",
        "p99 ms",
        "p99.9 ms",
        "errors",
        "leader CPU us/op",
        "followers",
        "clients'",
        "commands per sync",
    ]);
    for ((name, clients, system), group) in groups {
        let mean = |value: fn(&Measurement) -> f64| {
            group.iter().map(|measurement| value(measurement)).sum::<f64>() / group.len() as f64
        };
        let syncs: Vec<_> = group.iter().filter_map(|measurement| measurement.log).collect();
        let per_sync = if syncs.is_empty() {
            String::new()
        } else {
            let sum: f64 = syncs.iter().map(|log| log.commands_per_sync).sum();
            format!("{:.1}", sum / syncs.len() as f64)
        };
        table.add_row([
            name.to_owned(),
            clients.to_string(),
            system.to_owned(),
            format!("{:.0}", mean(|it| it.report.throughput_ops_per_s)),
            format!("{:.2}", mean(|it| it.report.latency_ms.p99)),
            format!("{:.2}", mean(|it| it.report.latency_ms.p99_9)),
            group.iter().map(|it| it.report.error_count()).sum::<u64>().to_string(),
            format!("{:.0}", mean(|it| it.cpu_us_per_op.leader)),
            format!("{:.0}", mean(|it| it.cpu_us_per_op.followers)),
            format!("{:.0}", mean(|it| it.cpu_us_per_op.clients)),
            per_sync,
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
