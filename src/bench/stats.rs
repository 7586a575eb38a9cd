//! What a client counts, and how it is collected while it runs.
//!
//! Each client records into a shard of its own under a lock that nobody contends for, except once a second when the
//! collector adds all shards up and empties them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::ErrorKind;

/// Three significant digits: an error of at most a thousandth.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A latency past it is counted as this one: bounds a histogram to some 200 KiB.
const MAX_LATENCY: Duration = Duration::from_secs(3600);

/// What one request was, for its latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Set,
    Get,
    Batch,
}

impl Class {
    pub(super) const ALL: [Self; 3] = [Self::Set, Self::Get, Self::Batch];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Get => "get",
            Self::Batch => "batch",
        }
    }
}

/// A histogram of latencies in microseconds that grows as it must.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are within what the histogram allows")
}

/// Counts over some time.
#[derive(Debug, Default)]
pub(super) struct Counts {
    latencies: [Option<Histogram<u64>>; 3],
    /// Operations done; a request of a batch counts as its operations.
    pub(super) operations: u64,
    pub(super) errors: BTreeMap<ErrorKind, u64>,
}

impl Counts {
    /// Counts one request that was done.
    pub(super) fn done(&mut self, class: Class, latency: Duration, operations: u64) {
        self.operations += operations;
        let micros = latency.min(MAX_LATENCY).as_micros() as u64;
        self.latencies[class as usize]
            .get_or_insert_with(histogram)
            .record(micros)
            .expect("the histogram grows to any latency up to the limit");
    }

    /// Counts operations that failed.
    pub(super) fn failed(&mut self, kind: ErrorKind, operations: u64) {
        if operations > 0 {
            *self.errors.entry(kind).or_default() += operations;
        }
    }

    /// Takes everything from `other`, which is empty afterwards and keeps its memory.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        self.operations += std::mem::take(&mut other.operations);
        for (kind, count) in std::mem::take(&mut other.errors) {
            self.failed(kind, count);
        }
        for (mine, theirs) in self.latencies.iter_mut().zip(&mut other.latencies) {
            if let Some(theirs) = theirs
                && !theirs.is_empty()
            {
                add(mine.get_or_insert_with(histogram), theirs);
                theirs.reset();
            }
        }
    }

    /// The latencies of one class in microseconds, if there was any request of it.
    pub(super) fn latencies(&self, class: Class) -> Option<&Histogram<u64>> {
        self.latencies[class as usize].as_ref().filter(|histogram| !histogram.is_empty())
    }

    /// The latencies of all classes in microseconds.
    pub(super) fn all_latencies(&self) -> Histogram<u64> {
        let mut all = histogram();
        for histogram in self.latencies.iter().flatten() {
            add(&mut all, histogram);
        }
        all
    }

    /// Errors of all kinds.
    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

fn add(sum: &mut Histogram<u64>, other: &Histogram<u64>) {
    sum.add(other).expect("both grow, and have the same digits");
}

/// One client's counts since they were last collected.
#[derive(Debug, Default)]
pub(super) struct Shard(Mutex<Counts>);

impl Shard {
    /// Records the outcome of one request.
    pub(super) fn record(
        &self,
        class: Class,
        latency: Duration,
        operations: u64,
        result: Result<(), ErrorKind>,
    ) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => counts.done(class, latency, operations),
            Err(kind) => counts.failed(kind, operations),
        }
    }

    /// Moves everything into `sum`.
    pub(super) fn collect(&self, sum: &mut Counts) {
        sum.absorb(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
