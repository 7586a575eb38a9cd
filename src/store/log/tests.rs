//! What the log promises, at each step and after a restart at each step.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::{
    disk::SpaceProbe,
    files::{FileSyncer, SyncTarget, Syncer},
};

const INCARNATION: Uuid = Uuid::from_u128(77);

/// Copies a directory tree as it is: what a process that is killed now would leave.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
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

fn record(index: u64, term: u64, size: usize) -> Record {
    let payload: Vec<u8> = (0..size).map(|i| (i as u64 * 31 + index * 7 + term) as u8).collect();
    Record { index, term, kind: 1, payload: payload.into() }
}

fn records(range: std::ops::Range<u64>, term: u64, size: usize) -> Vec<Record> {
    range.map(|index| record(index, term, size)).collect()
}

fn at(term: u64, index: u64) -> Position {
    Position { term, index }
}

fn vote(term: u64) -> VoteRecord {
    VoteRecord { term, node: 5, committed: term.is_multiple_of(2) }
}

fn options(dir: &TempDir) -> LogOptions {
    LogOptions { tail_bytes: 4096, ..LogOptions::new(dir.path(), INCARNATION) }
}

fn open(dir: &TempDir) -> (Log, Recovered) {
    Log::open(options(dir)).unwrap()
}

/// A callback, and where to wait for it.
fn waiter() -> (Done, mpsc::Receiver<io::Result<()>>) {
    let (tx, rx) = mpsc::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

fn wait(call: impl FnOnce(Done)) -> io::Result<()> {
    let (done, rx) = waiter();
    call(done);
    rx.recv().expect("every callback is called")
}

fn append(log: &Log, records: Vec<Record>) {
    wait(|done| log.append(records, done)).unwrap();
    locked(&log.inner.shared.memory).check_invariants();
}

fn all(log: &Log) -> Vec<Record> {
    log.read(0, u64::MAX, usize::MAX).unwrap()
}

/// Counts syncs of each kind, can hold them back, and fail the n-th.
#[derive(Default)]
struct Faults {
    /// From which sync of the log on they are held back.
    held: Mutex<Option<u64>>,
    released: Condvar,
    arrived: AtomicUsize,
    /// What was synced, in order, without the mark.
    order: Mutex<Vec<SyncTarget>>,
    log_syncs: AtomicU64,
    vote_syncs: AtomicU64,
    mark_syncs: AtomicU64,
    /// 0 for never.
    fail_log_at: AtomicU64,
    fail_mark: AtomicUsize,
}

impl Faults {
    fn hold(&self) {
        *self.held.lock().unwrap() = Some(0);
    }

    fn release(&self) {
        *self.held.lock().unwrap() = None;
        self.released.notify_all();
    }

    /// Lets the sync go that is being held back, and waits until the next one is.
    fn release_one(&self) {
        self.arrived.store(0, SeqCst);
        *self.held.lock().unwrap() = Some(self.log_syncs.load(SeqCst) + 1);
        self.released.notify_all();
        self.wait_for_held();
    }

    /// Until a sync of the log is being held back.
    fn wait_for_held(&self) {
        while self.arrived.load(SeqCst) == 0 {
            thread::yield_now();
        }
    }
}

impl Syncer for Faults {
    fn sync(&self, file: &File, target: SyncTarget) -> io::Result<()> {
        if target != SyncTarget::Mark {
            self.order.lock().unwrap().push(target);
        }
        let eio = || Err(io::Error::from_raw_os_error(5));
        match target {
            SyncTarget::Vote => drop(self.vote_syncs.fetch_add(1, SeqCst)),
            SyncTarget::Mark => {
                self.mark_syncs.fetch_add(1, SeqCst);
                if self.fail_mark.load(SeqCst) > 0 {
                    return eio();
                }
            }
            SyncTarget::Log => {
                let number = self.log_syncs.fetch_add(1, SeqCst) + 1;
                if number == self.fail_log_at.load(SeqCst) {
                    return eio();
                }
                let mut held = self.held.lock().unwrap();
                if held.is_some_and(|from| number >= from) {
                    self.arrived.fetch_add(1, SeqCst);
                }
                while held.is_some_and(|from| number >= from) {
                    held = self.released.wait(held).unwrap();
                }
            }
        }
        file.sync_data()
    }
}

/// Lets everything go when it is dropped, so that a test that fails does not wait for ever.
struct Control(Arc<Faults>);

impl std::ops::Deref for Control {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.0
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.0.release();
    }
}

fn open_with_faults(dir: &TempDir) -> (Log, Control) {
    let faults = Arc::new(Faults::default());
    let log = Log::open(LogOptions { syncer: faults.clone(), ..options(dir) }).unwrap().0;
    (log, Control(faults))
}

#[test]
fn a_new_log_is_empty_and_everything_survives_a_restart_at_each_step() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovered) = open(&dir);
    assert_eq!(recovered, Recovered::default());
    drop(log);

    let (log, recovered) = open(&dir);
    assert_eq!(recovered, Recovered::default());
    wait(|done| log.save_vote(vote(1), done)).unwrap();
    drop(log);

    let (log, recovered) = open(&dir);
    assert_eq!(recovered, Recovered { vote: Some(vote(1)), ..Recovered::default() });
    append(&log, records(0..50, 1, 300));
    log.save_committed(Some(at(1, 30)));
    drop(log);

    let (log, recovered) = open(&dir);
    let (vote_1, committed) = (Some(vote(1)), Some(at(1, 30)));
    assert_eq!(recovered, Recovered { vote: vote_1, purged: None, last: Some(at(1, 49)), committed });
    assert_eq!(all(&log), records(0..50, 1, 300));
    wait(|done| log.truncate_after(Some(39), done)).unwrap();
    drop(log);

    let (log, recovered) = open(&dir);
    assert_eq!((recovered.last, log.last()), (Some(at(1, 39)), Some(at(1, 39))));
    append(&log, records(40..45, 2, 9000));
    wait(|done| log.purge(at(1, 9), done)).unwrap();
    drop(log);

    let (log, recovered) = open(&dir);
    assert_eq!((recovered.purged, recovered.last), (Some(at(1, 9)), Some(at(2, 44))));
    assert_eq!(all(&log), [records(10..40, 1, 300), records(40..45, 2, 9000)].concat());
    // A snapshot beyond the end.
    wait(|done| log.purge(at(3, 99), done)).unwrap();
    assert_eq!((log.last(), all(&log)), (Some(at(3, 99)), vec![]));
    drop(log);

    let (log, recovered) = open(&dir);
    assert_eq!((recovered.purged, recovered.last), (Some(at(3, 99)), Some(at(3, 99))));
    append(&log, records(100..103, 4, 10));
    wait(|done| log.save_vote(vote(4), done)).unwrap();
    log.close().unwrap();

    let (log, recovered) = open(&dir);
    assert_eq!((recovered.vote, recovered.last), (Some(vote(4)), Some(at(4, 102))));
    wait(|done| log.truncate_after(None, done)).unwrap();
    assert_eq!(log.last(), Some(at(3, 99)));
}

#[test]
fn reads_are_cut_by_range_and_bytes_in_memory_and_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(0..100, 1, 1000));
    // With a tail of 4 KiB nearly all of it comes from the disk.
    assert!(locked(&log.inner.shared.memory).tail_from() > 90);
    for (from, to) in [(0, 100), (0, 1), (40, 60), (95, 98), (99, 200), (98, 100)] {
        assert_eq!(log.read(from, to, usize::MAX).unwrap(), records(from..to.min(100), 1, 1000));
    }
    assert_eq!(log.read(100, 200, usize::MAX).unwrap(), []);
    assert_eq!(log.read(7, 7, usize::MAX).unwrap(), []);
    for from in [3, 97] {
        assert_eq!(log.read(from, 100, 0).unwrap(), records(from..from + 1, 1, 1000), "at least one");
        assert_eq!(log.read(from, 100, 1200).unwrap(), records(from..from + 2, 1, 1000), "until passed");
    }
    // Across the border of disk and memory.
    let border = locked(&log.inner.shared.memory).tail_from();
    assert_eq!(
        log.read(border - 2, border + 2, usize::MAX).unwrap(),
        records(border - 2..border + 2, 1, 1000)
    );
    // What is purged is left out.
    wait(|done| log.purge(at(1, 49), done)).unwrap();
    assert_eq!(log.read(0, 60, usize::MAX).unwrap(), records(50..60, 1, 1000));
}

#[test]
fn entries_are_readable_before_they_are_synced_and_called_back_after() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    faults.hold();
    let (done, called) = waiter();
    log.append(records(0..3, 1, 10), done);
    faults.wait_for_held();
    assert_eq!(all(&log), records(0..3, 1, 10));
    assert!(called.try_recv().is_err(), "no callback before the sync");
    faults.release();
    called.recv().unwrap().unwrap();
}

#[test]
fn a_vote_saved_while_a_sync_of_an_append_is_held_back_is_not_written_and_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    let before = faults.vote_syncs.load(SeqCst);
    faults.order.lock().unwrap().clear();
    let vote_file = fs::read(dir.path().join("vote")).unwrap();
    faults.hold();
    let order = Arc::new(Mutex::new(vec![]));
    let note = |name: &'static str| -> Done {
        let order = order.clone();
        Box::new(move |result: io::Result<()>| order.lock().unwrap().push((name, result.is_ok())))
    };
    log.append(records(0..3, 1, 10), note("append"));
    faults.wait_for_held();
    log.save_vote(vote(2), note("vote"));
    log.append(records(3..4, 2, 10), note("append after"));
    let (done, all_called) = waiter();
    log.save_vote(vote(3), done);
    assert!(order.lock().unwrap().is_empty(), "nothing is called back");
    assert_eq!(faults.vote_syncs.load(SeqCst), before);
    assert_eq!(fs::read(dir.path().join("vote")).unwrap(), vote_file, "the vote is not on disk");
    assert_eq!(log.vote(), None);
    faults.release();
    all_called.recv().unwrap().unwrap();
    assert_eq!(*order.lock().unwrap(), [("append", true), ("vote", true), ("append after", true)]);
    assert_eq!(log.vote(), Some(vote(3)));
    // Each vote, in both slots, behind the sync of the append before it, even where both were taken up together.
    let synced = faults.order.lock().unwrap().clone();
    let (log, vote) = (SyncTarget::Log, SyncTarget::Vote);
    assert_eq!(synced, [log, vote, vote, log, vote, vote]);
}

#[test]
fn many_appends_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let reports = Arc::new(Mutex::new(vec![]));
    let on_sync: OnSync = {
        let reports = reports.clone();
        Arc::new(move |report| reports.lock().unwrap().push(report))
    };
    let faults = Arc::new(Faults::default());
    let log =
        Log::open(LogOptions { syncer: faults.clone(), on_sync: Some(on_sync), ..options(&dir) }).unwrap().0;
    faults.hold();
    log.append(records(0..1, 1, 100), Box::new(|_| {}));
    faults.wait_for_held();
    let (done, last) = waiter();
    for i in 1..50 {
        log.append(records(i..i + 1, 1, 100), Box::new(|_| {}));
    }
    log.append(records(50..52, 1, 100), done);
    faults.release();
    last.recv().unwrap().unwrap();
    let reports = reports.lock().unwrap();
    let sizes: Vec<_> = reports.iter().map(|r| (r.appends, r.records, r.bytes)).collect();
    assert_eq!(sizes, [(1, 1, 100), (50, 51, 5100)]);
}

#[test]
fn a_failed_sync_fails_everything_that_waits_and_everything_later() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    append(&log, records(0..3, 1, 10));
    faults.hold();
    faults.fail_log_at.store(faults.log_syncs.load(SeqCst) + 2, SeqCst);
    let (done, first) = waiter();
    log.append(records(3..4, 1, 10), done);
    faults.wait_for_held();
    let (done, second) = waiter();
    log.append(records(4..5, 1, 10), done);
    let (done, third) = waiter();
    log.save_vote(vote(9), done);
    faults.release();
    first.recv().unwrap().unwrap();
    for called in [second, third] {
        assert!(called.recv().unwrap().unwrap_err().to_string().contains("os error 5"));
    }
    let later: [Box<dyn FnOnce(Done)>; 4] = [
        Box::new(|done| log.append(records(5..6, 1, 10), done)),
        Box::new(|done| log.save_vote(vote(9), done)),
        Box::new(|done| log.truncate_after(Some(1), done)),
        Box::new(|done| log.purge(at(1, 1), done)),
    ];
    for call in later {
        assert!(wait(call).unwrap_err().to_string().contains("os error 5"));
    }
    assert!(log.close().unwrap_err().to_string().contains("os error 5"));
    // The next start has what was acknowledged, and not the vote.
    let (log, recovered) = open(&dir);
    assert_eq!(recovered.vote, None);
    assert!(recovered.last.unwrap() >= at(1, 3));
    assert_eq!(all(&log)[..4], records(0..4, 1, 10));
}

#[test]
fn a_mark_that_cannot_be_written_fails_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    append(&log, records(0..3, 1, 10));
    faults.fail_mark.store(1, SeqCst);
    let mut next = 3;
    // The mark's thread finds out within 100 ms.
    while wait(|done| log.append(records(next..next + 1, 1, 10), done)).is_ok() {
        next += 1;
    }
    assert!(log.close().is_err());
}

#[test]
fn a_closed_log_takes_nothing_and_is_opened_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let (log, _) = open(&dir);
        append(&log, records(round..round + 1, 1, 10));
        log.close().unwrap();
        log.close().unwrap();
        assert!(wait(|done| log.append(records(round + 1..round + 2, 1, 10), done)).is_err());
        assert!(wait(|done| log.save_vote(vote(1), done)).is_err());
    }
}

#[test]
fn a_log_in_use_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = open(&dir);
    let error = Log::open(options(&dir)).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another process uses the data directory"), "{error}");
}

#[test]
fn entries_that_do_not_follow_are_an_error_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(0..3, 2, 10));
    assert!(wait(|done| log.append(records(4..5, 2, 10), done)).is_err());
    assert!(wait(|done| log.append(records(3..4, 1, 10), done)).is_err());
    append(&log, records(3..4, 2, 10));
    assert_eq!(all(&log), records(0..4, 2, 10));
}

#[test]
fn a_new_log_may_begin_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(7..9, 2, 10));
    drop(log);
    let (log, recovered) = open(&dir);
    assert_eq!((recovered.purged, recovered.last), (None, Some(at(2, 8))));
    assert_eq!(all(&log), records(7..9, 2, 10));
}

/// Opens sled behind the log's back.
fn surgery(dir: &Path, operate: impl FnOnce(&Tree)) {
    let tree = Tree::open(&layout::log(dir), 1 << 20, 0, Arc::new(FileSyncer)).unwrap();
    operate(&tree);
    tree.sync().unwrap();
    tree.close().unwrap();
}

fn set_mark(dir: &Path, change: impl FnOnce(&mut mark::MarkRecord)) {
    let owner = Owner { incarnation: INCARNATION, group: 0 };
    Marker::open(&layout::mark(dir), owner, Arc::new(FileSyncer)).unwrap().strict(change).unwrap();
}

fn parts_of(tree: &Tree, index: u64) -> BTreeMap<u16, Vec<u8>> {
    let mut parts = BTreeMap::new();
    tree.scan(index, index + 1, |_, part, value| parts.insert(part, value.to_vec()).is_none()).unwrap();
    parts
}

#[test]
fn a_torn_tail_is_cut_back_wherever_it_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    let whole = [records(0..5, 1, 100), records(5..6, 1, 30)].concat();
    append(&log, whole.clone());
    drop(log);
    let mut parts = BTreeMap::new();
    surgery(dir.path(), |tree| parts = parts_of(tree, 5));
    let value = parts.remove(&0).unwrap();
    // Cut at each byte, and flip each byte, of the last entry's value.
    let cuts = (0..value.len()).map(|n| value[..n].to_vec());
    let flips = (0..value.len()).map(|n| {
        let mut value = value.clone();
        value[n] ^= 0x20;
        value
    });
    for torn in cuts.chain(flips) {
        surgery(dir.path(), |tree| tree.insert(5, 0, &torn).unwrap());
        set_mark(dir.path(), |mark| mark.synced = Some(at(1, 4)));
        let (log, recovered) = open(&dir);
        assert_eq!(recovered.last, Some(at(1, 4)));
        assert_eq!(all(&log), whole[..5]);
        drop(log);
    }
    // What was cut off does not come back.
    let (log, _) = open(&dir);
    append(&log, records(5..7, 2, 20));
    drop(log);
    assert_eq!(all(&open(&dir).0), [whole[..5].to_vec(), records(5..7, 2, 20)].concat());
}

#[test]
fn a_large_entry_torn_between_its_parts_is_cut_off() {
    let size = 5 * record::PART_BYTES;
    for lost in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(&dir);
        append(&log, [records(0..3, 1, 100), records(3..4, 1, size)].concat());
        drop(log);
        surgery(dir.path(), |tree| {
            assert_eq!(parts_of(tree, 3).len(), 6);
            for part in lost..6 {
                tree.remove(&record::key(0, 3, part)).unwrap();
            }
        });
        set_mark(dir.path(), |mark| mark.synced = Some(at(1, 2)));
        assert_eq!(open(&dir).1.last, Some(at(1, 2)));
    }
}

#[test]
fn a_log_below_its_mark_is_refused_and_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(0..10, 1, 100));
    drop(log);
    set_mark(dir.path(), |mark| mark.synced = Some(at(1, 12)));
    for _ in 0..2 {
        let error = Log::open(options(&dir)).err().unwrap();
        assert!(matches!(error, StoreError::BelowMark { first_missing: 10, last_synced: 12, .. }), "{error}");
        assert!(error.to_string().contains("entries 10 to 12"), "{error}");
    }
}

#[test]
fn damage_at_or_below_the_mark_or_with_entries_behind_it_is_refused() {
    type Operation = fn(&Tree);
    let operations: [(&str, Operation); 4] = [
        ("missing", |tree| tree.remove(&record::key(0, 4, 0)).unwrap()),
        ("short", |tree| tree.insert(4, 0, b"x").unwrap()),
        ("extra part", |tree| tree.insert(4, 1, b"x").unwrap()),
        ("lower term", |tree| {
            let low = record(4, 0, 10);
            record::encode(0, &low, &mut vec![], |part, value| tree.insert(4, part, value)).unwrap();
        }),
    ];
    for (what, operate) in operations {
        for synced in [9, 4, 1] {
            let dir = tempfile::tempdir().unwrap();
            let (log, _) = open(&dir);
            append(&log, records(0..10, 1, 100));
            drop(log);
            surgery(dir.path(), operate);
            set_mark(dir.path(), |mark| mark.synced = Some(at(1, synced)));
            let error = Log::open(options(&dir)).err().unwrap();
            let below = matches!(error, StoreError::BelowMark { first_missing: 4, .. });
            let damaged = matches!(error, StoreError::Damaged { .. });
            assert!(if synced >= 4 { below } else { damaged }, "{what} {synced}: {error}");
        }
    }
}

#[test]
fn another_term_at_the_mark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(0..10, 1, 100));
    drop(log);
    set_mark(dir.path(), |mark| mark.synced = Some(at(2, 6)));
    let error = Log::open(options(&dir)).err().unwrap();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn a_vote_survives_the_damage_of_either_slot_and_not_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    wait(|done| log.save_vote(vote(6), done)).unwrap();
    wait(|done| log.save_vote(vote(7), done)).unwrap();
    drop(log);
    let path = dir.path().join("vote");
    let whole = fs::read(&path).unwrap();
    let damage = |slots: &[usize]| {
        let mut bytes = whole.clone();
        for slot in slots {
            bytes[slot * 4096 + 30] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
    };
    for slot in 0..2 {
        damage(&[slot]);
        assert_eq!(open(&dir).1.vote, Some(vote(7)));
    }
    damage(&[0, 1]);
    let error = Log::open(options(&dir)).err().unwrap();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn another_incarnation_a_newer_format_and_garbage_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir));
    let other = LogOptions { incarnation: Uuid::from_u128(1), ..options(&dir) };
    assert!(matches!(Log::open(other), Err(StoreError::OtherIncarnation { .. })));
    let path = dir.path().join("format");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&path, &bytes).unwrap();
        let error = Log::open(options(&dir)).err().unwrap();
        let newer = matches!(error, StoreError::NewerFormat { .. });
        assert!(newer == (8..12).contains(&at), "byte {at}: {error}");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(matches!(Log::open(options(&dir)), Err(StoreError::Damaged { .. })));
    }
}

#[test]
fn what_sled_calls_a_damaged_configuration_or_index_is_a_typed_error() {
    let damages: [fn(&Path); 4] = [
        |log| fs::write(log.join("conf"), b"\xFF\xFEgarbage and more").unwrap(),
        |log| {
            fs::write(log.join("conf"), b"segment_size: 1024\nuse_compression: false\nversion: 0.34\n1234")
                .unwrap()
        },
        |log| fs::write(log.join("snap.7FFFFFFFFFFFFFFF"), b"not an index at all").unwrap(),
        |log| fs::write(log.join("db"), vec![0xA5; 1 << 20]).unwrap(),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(&dir);
        append(&log, records(0..10, 1, 100));
        drop(log);
        damage(&layout::log(dir.path()));
        let error = Log::open(options(&dir)).err().unwrap();
        assert!(matches!(error, StoreError::Damaged { .. } | StoreError::BelowMark { .. }), "{error}");
    }
}

#[test]
fn an_index_that_sled_did_not_finish_does_not_keep_the_log_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(0..10, 1, 100));
    drop(log);
    let unfinished = layout::log(dir.path()).join("snap.7FFFFFFFFFFFFFFF.generating");
    fs::write(&unfinished, b"half of an ind").unwrap();
    let (log, _) = open(&dir);
    assert_eq!(all(&log), records(0..10, 1, 100));
    assert!(!unfinished.exists());
}

#[test]
fn a_creation_that_was_cut_off_is_done_again() {
    let whole = tempfile::tempdir().unwrap();
    drop(open(&whole));
    for parts in [&[][..], &["log"], &["log", "vote"], &["log", "vote", "mark"]] {
        let dir = tempfile::tempdir().unwrap();
        Format { stage: Stage::Creating, incarnation: INCARNATION }.write(dir.path()).unwrap();
        for part in parts {
            let from = whole.path().join(part);
            if from.is_dir() {
                copy_dir(&from, &dir.path().join(part));
            } else {
                fs::copy(from, dir.path().join(part)).unwrap();
            }
        }
        let (log, recovered) = open(&dir);
        assert_eq!(recovered, Recovered::default());
        append(&log, records(0..2, 1, 10));
    }
}

/// The directory as a killed process leaves it, while a step is held back at its sync.
fn killed_at(prepare: impl FnOnce(&Log), step: impl FnOnce(&Log)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    prepare(&log);
    faults.hold();
    step(&log);
    faults.wait_for_held();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    faults.release();
    copy
}

#[test]
fn a_kill_in_the_middle_of_a_truncation_leaves_a_log_that_opens() {
    let prepare = |log: &Log| append(log, records(0..30, 1, 500));
    // The deletions are done, and not synced; the new entries are in the same batch, or not yet.
    let dir = killed_at(prepare, |log| {
        log.truncate_after(Some(9), Box::new(|_| {}));
        log.append(records(10..12, 2, 500), Box::new(|_| {}));
    });
    let (log, _) = open(&dir);
    assert_eq!(all(&log)[..10], records(0..10, 1, 500));
    drop(log);
    // The mark is lowered, and so many keys are deleted.
    for deleted in [0, 1, 5, 20] {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(&dir);
        prepare(&log);
        drop(log);
        set_mark(dir.path(), |mark| mark.synced = Some(at(1, 9)));
        surgery(dir.path(), |tree| {
            for key in tree.keys(0, u64::MAX, deleted, true).unwrap() {
                tree.remove(&key).unwrap();
            }
        });
        let (log, recovered) = open(&dir);
        assert_eq!(recovered.last, Some(at(1, 29 - deleted as u64)));
        wait(|done| log.truncate_after(Some(9), done)).unwrap();
        append(&log, records(10..12, 2, 500));
        drop(log);
        assert_eq!(all(&open(&dir).0), [records(0..10, 1, 500), records(10..12, 2, 500)].concat());
    }
}

#[test]
fn a_kill_in_the_middle_of_a_purge_leaves_a_log_that_opens_and_ends_it() {
    for deleted in [0, 1, 7, 20] {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(&dir);
        append(&log, records(0..30, 1, 500));
        drop(log);
        set_mark(dir.path(), |mark| (mark.first, mark.purged) = (20, Some(at(1, 19))));
        surgery(dir.path(), |tree| {
            for key in tree.keys(0, u64::MAX, deleted, false).unwrap() {
                tree.remove(&key).unwrap();
            }
        });
        let (log, recovered) = open(&dir);
        assert_eq!((recovered.purged, recovered.last), (Some(at(1, 19)), Some(at(1, 29))));
        assert_eq!(all(&log), records(20..30, 1, 500));
        drop(log);
        // An idle writer ends it in the background; a start at any moment goes on with it.
        loop {
            let mut left = 0;
            surgery(dir.path(), |tree| left = tree.keys(0, 20, 100, false).unwrap().len());
            if left == 0 {
                break;
            }
            let (log, _) = open(&dir);
            append(&log, vec![]);
        }
        assert_eq!(all(&open(&dir).0), records(20..30, 1, 500));
    }
}

#[test]
fn a_kill_after_purging_beyond_the_end_leaves_an_empty_log() {
    let dir = killed_at(
        |log| append(log, records(0..30, 1, 500)),
        |log| {
            wait(|done| log.purge(at(4, 50), done)).unwrap();
            log.append(records(51..53, 4, 500), Box::new(|_| {}));
        },
    );
    let (log, recovered) = open(&dir);
    assert_eq!(recovered.purged, Some(at(4, 50)));
    assert!(all(&log).iter().all(|r| r.index > 50));
}

#[test]
fn the_committed_index_is_never_on_disk_ahead_of_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    let write_mark = || log.inner.shared.marker.write_pending().unwrap();
    append(&log, records(0..10, 1, 10));
    log.save_committed(Some(at(1, 5)));
    append(&log, vec![]); // in order behind it
    faults.hold();
    log.append(records(10..11, 1, 10), Box::new(|_| {}));
    faults.wait_for_held();
    // Taken up together, behind the sync that is held back; then their own sync is held back.
    log.append(records(11..20, 1, 10), Box::new(|_| {}));
    log.save_committed(Some(at(1, 15)));
    let (done, synced) = waiter();
    log.append(records(20..21, 1, 10), done);
    faults.release_one();
    write_mark();
    let mark = log.inner.shared.marker.record();
    assert_eq!((mark.synced, mark.committed), (Some(at(1, 10)), Some(at(1, 5))));
    faults.release();
    synced.recv().unwrap().unwrap();
    let mark = log.inner.shared.marker.record();
    assert_eq!((mark.synced, mark.committed), (Some(at(1, 20)), Some(at(1, 15))));
}

#[test]
fn a_committed_index_reaches_the_disk_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    append(&log, records(0..10, 1, 10));
    log.save_committed(Some(at(1, 7)));
    assert_eq!(log.committed(), Some(at(1, 7)));
    while log.inner.shared.marker.record().committed != Some(at(1, 7)) {
        thread::yield_now();
    }
}

#[test]
fn large_entries_and_many_small_ones_make_no_blob_files() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    let mut next = 0;
    for round in 0..6 {
        append(&log, records(next..next + 300, 1, 64));
        append(&log, vec![record(next + 300, 1, 1 << 20), record(next + 301, 1, 7 * 1024 * 16)]);
        append(&log, vec![record(next + 302, 1, 5 << 20)]);
        next += 303;
        if round == 3 {
            wait(|done| log.purge(at(1, next - 310), done)).unwrap();
        }
    }
    let first = log.purged().unwrap().index + 1;
    assert_eq!(log.read(next - 3, next - 2, 1).unwrap(), [record(next - 3, 1, 1 << 20)]);
    drop(log);
    let blobs = fs::read_dir(layout::log(dir.path()).join("blobs")).unwrap();
    assert_eq!(blobs.count(), 0, "sled never syncs blob files");
    let (log, _) = open(&dir);
    assert_eq!(all(&log).len() as u64, next - first);
}

#[test]
fn an_entry_beyond_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir);
    let large = Record { index: 0, term: 1, kind: 1, payload: vec![0; MAX_PAYLOAD_BYTES + 1].into() };
    let error = wait(|done| log.append(vec![large], done)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    append(&log, records(0..1, 1, 1));
}

#[test]
fn writes_wait_when_the_disk_falls_behind_and_go_on_when_it_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_with_faults(&dir);
    faults.hold();
    log.append(records(0..1, 1, 1), Box::new(|_| {}));
    faults.wait_for_held();
    let appended = Arc::new(AtomicU64::new(0));
    let filler = {
        let (log, appended) = (log.clone(), appended.clone());
        thread::spawn(move || {
            let payload = Bytes::from(vec![0; 8 << 20]);
            for index in 1..20 {
                let record = Record { index, term: 1, kind: 1, payload: payload.clone() };
                log.append(vec![record], Box::new(|_| {}));
                appended.store(index, SeqCst);
            }
        })
    };
    while appended.load(SeqCst) < 7 {
        thread::yield_now();
    }
    // What is not an append does not wait.
    let (done, voted) = waiter();
    log.save_vote(vote(1), done);
    assert!(appended.load(SeqCst) < 9, "64 MiB wait at most");
    faults.release();
    voted.recv().unwrap().unwrap();
    filler.join().unwrap();
    assert_eq!(log.last(), Some(at(1, 19)));
}

#[test]
fn the_free_space_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(0));
    let probe: SpaceProbe = {
        let free = free.clone();
        Arc::new(move |_| Ok(free.load(SeqCst)))
    };
    let space = Some(SpacePolicy { watermark: 1000, reserve: 0 });
    let (log, _) = Log::open(LogOptions { space, space_probe: Some(probe), ..options(&dir) }).unwrap();
    assert!(!log.free_space_ok());
    free.store(5000, SeqCst);
    while !log.free_space_ok() {
        thread::yield_now();
    }
    assert!(log.disk_bytes() > 0);
}

/// A step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, size: usize, term_up: bool },
    Truncate { back: u64 },
    Purge { forward: u64, beyond: bool },
    Vote,
    Commit,
    Reopen { kill: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u64, prop_oneof![0..200_usize, 7000..7400_usize, 20_000..30_000_usize], any::<bool>())
            .prop_map(|(count, size, term_up)| Step::Append { count, size, term_up }),
        2 => (0..8_u64).prop_map(|back| Step::Truncate { back }),
        2 => (0..8_u64, any::<bool>()).prop_map(|(forward, beyond)| Step::Purge { forward, beyond }),
        1 => Just(Step::Vote),
        1 => Just(Step::Commit),
        2 => any::<bool>().prop_map(|kill| Step::Reopen { kill }),
    ]
}

/// What the log must be.
#[derive(Default)]
struct Model {
    entries: Vec<Record>,
    purged: Option<Position>,
    vote: Option<VoteRecord>,
    committed: Option<Position>,
    term: u64,
}

impl Model {
    fn last(&self) -> Option<Position> {
        self.entries.last().map(Record::position).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn take(&mut self, log: &Log, step: &Step) {
        match *step {
            Step::Append { count, size, term_up } => {
                self.term += u64::from(term_up);
                let new = records(self.next()..self.next() + count, self.term, size);
                self.entries.extend(new.clone());
                append(log, new);
            }
            Step::Truncate { back } => {
                let first = self.entries.first().map_or(self.next(), |r| r.index);
                let floor = self.committed.map_or(first, |c| (c.index + 1).max(first));
                let next = self.next().saturating_sub(back).max(floor);
                self.entries.retain(|r| r.index < next);
                wait(|done| log.truncate_after(next.checked_sub(1), done)).unwrap();
            }
            Step::Purge { forward, beyond } => {
                let upto = if beyond {
                    at(self.term, self.next() + forward)
                } else {
                    match self.entries.get(forward as usize) {
                        Some(record) => record.position(),
                        None => return,
                    }
                };
                self.entries.retain(|r| r.index > upto.index);
                self.purged = Some(upto);
                self.committed = self.committed.max(Some(upto));
                log.save_committed(self.committed);
                wait(|done| log.purge(upto, done)).unwrap();
            }
            Step::Vote => {
                self.term += 1;
                self.vote = Some(vote(self.term));
                wait(|done| log.save_vote(vote(self.term), done)).unwrap();
            }
            Step::Commit => {
                self.committed = self.last();
                log.save_committed(self.committed);
            }
            Step::Reopen { .. } => {}
        }
    }

    fn check(&self, log: &Log) {
        assert_eq!(log.last(), self.last());
        assert_eq!((log.purged(), log.vote()), (self.purged, self.vote));
        assert_eq!(all(log), self.entries);
        locked(&log.inner.shared.memory).check_invariants();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_what_the_model_says(steps in proptest::collection::vec(step(), 1..25)) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir).0;
        let mut model = Model::default();
        for step in &steps {
            if let Step::Reopen { kill } = step {
                if *kill {
                    // Everything was acknowledged, so a kill loses nothing.
                    let copy = tempfile::tempdir().unwrap();
                    copy_dir(dir.path(), copy.path());
                    drop(log);
                    dir = copy;
                } else {
                    drop(log);
                }
                let recovered;
                (log, recovered) = open(&dir);
                prop_assert!(recovered.committed <= model.committed);
                prop_assert!(*kill || recovered.committed == model.committed);
                // A kill may take the last moment's committed index with it.
                model.committed = recovered.committed;
            }
            model.take(&log, step);
            model.check(&log);
        }
    }
}
