//! The log under what a disk does to it: bits that flip, and churn that goes on for ever.
//!
//! In a process of its own, because a damaged database makes sled panic in all its threads.

#![allow(clippy::unwrap_used)] // a test panics on what must not be

use std::{fs, io, path::Path, sync::mpsc};

use larder::store::{
    StoreError,
    log::{Log, LogOptions, Position, Record, VoteRecord},
};
use uuid::Uuid;

const INCARNATION: Uuid = Uuid::from_u128(42);

fn record(index: u64, size: usize) -> Record {
    let payload: Vec<u8> = (0..size).map(|i| (i as u64 * 131 + index * 17) as u8).collect();
    Record { index, term: 1 + index / 1000, kind: 1, payload: payload.into() }
}

fn size(index: u64) -> usize {
    match index % 50 {
        0 => 20_000,
        1..10 => 3_000,
        n => 40 + n as usize,
    }
}

fn wait(call: impl FnOnce(Box<dyn FnOnce(io::Result<()>) + Send>)) -> io::Result<()> {
    let (tx, rx) = mpsc::channel();
    call(Box::new(move |result| drop(tx.send(result))));
    rx.recv().expect("every callback is called")
}

fn options(dir: &Path) -> LogOptions {
    LogOptions { tail_bytes: 64 * 1024, ..LogOptions::new(dir, INCARNATION) }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// sled's panics are expected here; everybody else's are printed as ever.
fn silence_sled() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|at| at.file().contains("sled-")) {
            usual(info);
        }
    }));
}

#[test]
fn a_flipped_bit_is_harmless_or_a_typed_error_and_never_a_silent_loss() {
    silence_sled();
    let dir = tempfile::tempdir().unwrap();
    let last = 1_199;
    let vote = VoteRecord { term: 2, node: 7, committed: true };
    {
        let (log, _) = Log::open(options(dir.path())).unwrap();
        for batch in 0..=last / 40 {
            let batch = (batch * 40..(batch + 1) * 40).map(|index| record(index, size(index)));
            wait(|done| log.append(batch.collect(), done)).unwrap();
        }
        wait(|done| log.save_vote(vote, done)).unwrap();
        wait(|done| log.purge(record(199, 0).position(), done)).unwrap();
        log.close().unwrap();
    }
    let expected: Vec<Record> = (200..=last).map(|index| record(index, size(index))).collect();
    let database = fs::read(dir.path().join("log/db")).unwrap();
    // The places are spread over the file by a fixed sequence.
    let mut place = 12_345_u64;
    let (mut whole, mut below, mut damaged) = (0, 0, 0);
    for _ in 0..300 {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bit = (place >> 16) % (database.len() as u64 * 8);
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let mut bytes = database.clone();
        bytes[bit as usize / 8] ^= 1 << (bit % 8);
        fs::write(copy.path().join("log/db"), bytes).unwrap();
        match Log::open(options(copy.path())) {
            Ok((log, recovered)) => {
                assert_eq!(recovered.vote, Some(vote), "bit {bit}");
                assert_eq!(recovered.purged, Some(record(199, 0).position()), "bit {bit}");
                assert_eq!(recovered.last, Some(record(last, 0).position()), "bit {bit}");
                assert!(log.read(0, u64::MAX, usize::MAX).unwrap() == expected, "bit {bit}");
                whole += 1;
            }
            Err(StoreError::BelowMark { .. }) => below += 1,
            Err(StoreError::Damaged { .. }) => damaged += 1,
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
    println!(
        "of 300 flipped bits {whole} were harmless, {below} lost entries, {damaged} made the database unreadable"
    );
    assert!(whole > 0 && below + damaged > 0, "the test damages what matters");
}

/// The stated bound: a log of 200,000 entries of 500 bytes, 100 MB in all and never more than 6,000 of them live, stays below
/// this: eight of the database's segments.
const DISK_BOUND: u64 = 64 * 1024 * 1024;

#[test]
fn the_disk_use_of_a_log_that_is_purged_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(options(dir.path())).unwrap();
    let mut highest = 0;
    for batch in 0..2_000_u64 {
        let records = (batch * 100..(batch + 1) * 100).map(|index| record(index, 500)).collect();
        wait(|done| log.append(records, done)).unwrap();
        if batch % 20 == 19 {
            let next = (batch + 1) * 100;
            if let Some(upto) = next.checked_sub(4_001) {
                let upto = Position { term: 1 + upto / 1000, index: upto };
                wait(|done| log.purge(upto, done)).unwrap();
            }
            highest = highest.max(log.disk_bytes());
        }
    }
    println!("200,000 entries of 500 bytes: {} at most, {} at the end", highest, log.disk_bytes());
    assert!(highest < DISK_BOUND, "{highest} bytes");
    log.close().unwrap();
    let (log, recovered) = Log::open(options(dir.path())).unwrap();
    assert_eq!(recovered.last, Some(record(199_999, 0).position()));
    assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap().len(), 4_000);
    assert_eq!(fs::read_dir(dir.path().join("log/blobs")).unwrap().count(), 0);
}
