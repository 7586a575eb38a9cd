//! The pure parts: set, get, scan, freeze, the first write after a freeze, and the snapshot, at 10,000 and 1,000,000 keys;
//! and how many bytes of memory a key really takes, against what it is counted with.
//!
//! `cargo bench --bench state [FILTER]`

// criterion's macros make public functions.
#![allow(missing_docs)]

use std::{fs, hint::black_box};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use larder::{
    state::{
        Command, Condition, ENTRY_OVERHEAD_BYTES, Found, LogPosition, Machine, Operation, Query,
        SnapshotDecoder, Stamp,
    },
    time::UnixMillis,
};

const VALUE_BYTES: usize = 100;
const SIZES: [u64; 2] = [10_000, 1_000_000];

/// Numbers in an order that no cache likes: a full-period generator.
fn scattered(number: u64, size: u64) -> u64 {
    number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) % size
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:012}"))
}

fn set(number: u64) -> Vec<Command> {
    vec![Command::new(Operation::Set {
        key: key(number),
        value: Bytes::from(vec![b'v'; VALUE_BYTES]),
        condition: Condition::None,
        ttl_ms: None,
        return_previous: false,
    })]
}

fn apply(machine: &mut Machine, commands: Vec<Command>) {
    let index = machine.last_applied().map_or(0, |last| last.index + 1);
    let stamp = Stamp { now: UnixMillis(1_700_000_000_000), touched: Vec::new() };
    black_box(machine.apply(LogPosition { term: 1, index }, &stamp, commands));
}

/// Resident memory of this process, in bytes. 0 where there is no /proc.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// A machine with so many keys, written in scattered order and then once more, so that its leaves are as full as they
/// are in use.
fn filled(size: u64) -> Machine {
    let mut machine = Machine::new();
    apply(&mut machine, vec![Command::new(Operation::Open)]);
    for number in 0..size * 3 {
        apply(&mut machine, set(scattered(number, size)));
    }
    for number in 0..size {
        apply(&mut machine, set(number));
    }
    machine
}

fn state(criterion: &mut Criterion) {
    for size in SIZES {
        let before = resident();
        let mut machine = filled(size);
        let real = resident().saturating_sub(before) / size;
        let payload = (key(0).len() + VALUE_BYTES) as u64;
        println!("{size} keys: {real} bytes each, counted {}", payload + ENTRY_OVERHEAD_BYTES);

        let mut group = criterion.benchmark_group("state");
        group.sample_size(10);
        let mut number = 0;
        let mut next = || {
            number += 1;
            scattered(number, size)
        };
        let mut commands: Vec<_> = (0..1000).map(|_| set(next())).collect();
        group.bench_function(BenchmarkId::new("set", size), |bencher| {
            bencher.iter_batched(
                || {
                    if commands.is_empty() {
                        commands = (0..1000).map(|_| set(next())).collect();
                    }
                    commands.pop().unwrap_or_default()
                },
                |command| apply(&mut machine, command),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("get", size), |bencher| {
            bencher.iter_batched(
                || Query::Get { keyspace: 0, keys: vec![key(next())] },
                |query| black_box(machine.read(&query)),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("freeze", size), |bencher| {
            bencher.iter(|| black_box(machine.freeze()));
        });
        group.bench_function(BenchmarkId::new("set-after-freeze", size), |bencher| {
            bencher.iter_batched(
                || set(next()),
                |command| {
                    let frozen = machine.freeze();
                    apply(&mut machine, command);
                    frozen
                },
                BatchSize::PerIteration,
            );
        });
        group.throughput(Throughput::Elements(size));
        group.bench_function(BenchmarkId::new("scan", size), |bencher| {
            bencher.iter(|| match machine.read(&Query::Scan { keyspace: 0 }).found {
                Found::View(view) => view.range(b"", b"").count(),
                Found::Values(_) => 0,
            });
        });
        let frozen = machine.freeze();
        group.bench_function(BenchmarkId::new("snapshot-encode", size), |bencher| {
            bencher.iter(|| frozen.sections().map(|section| section.len()).sum::<usize>());
        });
        let sections: Vec<Bytes> = frozen.sections().collect();
        group.bench_function(BenchmarkId::new("snapshot-decode", size), |bencher| {
            bencher.iter(|| {
                let mut decoder = SnapshotDecoder::new();
                sections.iter().try_for_each(|section| decoder.push(section.clone()))?;
                decoder.finish().map(|machine| machine.keys())
            });
        });
        group.finish();
    }
}

criterion_group!(benches, state);
criterion_main!(benches);
