//! From samples to ratios, their table, and their chart. Pure.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// What each round measured of one thing; the same place in both lists is the same round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Samples {
    /// `set` or `get`.
    pub(crate) name: String,
    /// `ops/s` (more is better) or `ms` (less is better).
    pub(crate) unit: &'static str,
    /// How many clients drove it.
    pub(crate) clients: usize,
    /// Larder's.
    pub(crate) larder: Vec<f64>,
    /// The other's.
    pub(crate) peer: Vec<f64>,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Entry {
    /// See [`Samples`].
    pub(crate) name: String,
    /// See [`Samples`].
    pub(crate) unit: &'static str,
    /// See [`Samples`].
    pub(crate) clients: usize,
    /// Larder's median.
    pub(crate) larder: f64,
    /// The other's median.
    pub(crate) peer: f64,
    /// Who the other is.
    pub(crate) peer_name: String,
    /// Larder's median by the other's.
    pub(crate) ratio: f64,
    /// The lowest and the highest ratio of a single round.
    pub(crate) spread: [f64; 2],
}

impl Samples {
    /// The ratio of the medians; `None` unless both sides were measured.
    pub(crate) fn entry(&self, peer_name: &str) -> Option<Entry> {
        let (larder, peer) = (median(&self.larder)?, median(&self.peer)?);
        let rounds = self.larder.iter().zip(&self.peer).map(|(larder, peer)| larder / peer);
        let spread = rounds
            .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], ratio| [low.min(ratio), high.max(ratio)]);
        Some(Entry {
            name: self.name.clone(),
            unit: self.unit,
            clients: self.clients,
            larder,
            peer,
            peer_name: peer_name.to_owned(),
            ratio: larder / peer,
            spread,
        })
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The entries for a person, in Markdown.
pub(crate) fn table(entries: &[Entry], peer_name: &str) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_header(["what", "clients", "unit", "larder", peer_name, "ratio", "rounds"]);
    for entry in entries {
        let number =
            |value: f64| if entry.unit == "ms" { format!("{value:.2}") } else { format!("{value:.0}") };
        table.add_row([
            entry.name.clone(),
            entry.clients.to_string(),
            entry.unit.to_owned(),
            number(entry.larder),
            number(entry.peer),
            format!("{:.2}", entry.ratio),
            format!("{:.2} to {:.2}", entry.spread[0], entry.spread[1]),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The throughput ratios as bars with their spread, as an SVG.
pub(crate) fn chart(entries: &[Entry], peer_name: &str) -> String {
    const ROW: usize = 34;
    const LEFT: f64 = 150.0;
    const WIDTH: f64 = 460.0;
    let bars: Vec<_> = entries.iter().filter(|entry| entry.unit == "ops/s").collect();
    let top = bars.iter().map(|entry| entry.spread[1]).fold(1.0, f64::max) * 1.05;
    let x = |ratio: f64| LEFT + WIDTH * ratio / top;
    let height = 64 + bars.len() * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"700\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"15\">Larder's throughput in multiples of {peer_name}'s \
         (bar: medians, line: rounds)</text>\n"
    );
    for (row, entry) in bars.iter().enumerate() {
        let y = 46 + row * ROW;
        let middle = y + 10;
        let (low, high, end) = (x(entry.spread[0]), x(entry.spread[1]), x(entry.ratio));
        let bar = end - LEFT;
        // Writing into a String cannot fail.
        let _ = write!(
            svg,
            "<text x=\"16\" y=\"{}\">{}, {} clients</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{bar:.1}\" height=\"20\" fill=\"#4c78a8\"/>\n\
             <line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{:.2}</text>\n",
            y + 15,
            entry.name,
            entry.clients,
            high + 8.0,
            y + 15,
            entry.ratio
        );
    }
    let one = x(1.0);
    let _ = write!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"38\" y2=\"{}\" stroke=\"#e45756\" stroke-dasharray=\"4 3\"/>\n</svg>\n",
        height - 14
    );
    svg
}
