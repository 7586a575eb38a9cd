//! Random commands against a small, obvious model; and the same log on several machines.

use std::collections::BTreeMap;

use bytes::Bytes;
use larder::{
    error::Rejection,
    state::{
        Condition, ENTRY_OVERHEAD_BYTES, Found, LogPosition, Machine, Membership, Operation, Outcome, Query,
        Versioned,
    },
    time::UnixMillis,
};
use proptest::prelude::*;

use crate::support::{
    apply, apply_one, boot, member, next, open_machine, operation, position, restore, sections, set,
    three_voters,
};

/// What a cache is, said as plainly as possible.
#[derive(Debug, Default)]
struct Model {
    open: bool,
    revision: u64,
    keys: BTreeMap<Bytes, (Bytes, u64)>,
}

impl Model {
    fn apply(&mut self, operation: Operation) -> Outcome {
        match operation {
            Operation::Open => {
                self.open = true;
                Outcome::Opened
            }
            // The model has no members.
            Operation::RecordBoot { .. } => Outcome::BootRecorded { accepted: false },
            _ if !self.open => Outcome::Rejected(Rejection::NotOpen),
            Operation::Batch(operations) => {
                Outcome::Batch(operations.into_iter().map(|operation| self.apply(operation)).collect())
            }
            Operation::Set { key, value, condition, return_previous, .. } => {
                let current = self.version(&key);
                let refused = match condition {
                    Condition::None => false,
                    Condition::IfAbsent => current.is_some(),
                    Condition::IfPresent => current.is_none(),
                    Condition::IfVersion(version) => current != Some(version),
                };
                if refused {
                    return Outcome::Rejected(Rejection::ConditionFailed { current });
                }
                let previous = self.put(key, value);
                Outcome::Set { version: self.revision, previous: previous.filter(|_| return_previous) }
            }
            Operation::Delete { key, if_version, return_previous } => {
                let current = self.version(&key);
                if if_version.is_some() && current != if_version {
                    return Outcome::Rejected(Rejection::ConditionFailed { current });
                }
                let previous = self.keys.remove(&key).map(versioned);
                let existed = previous.is_some();
                self.revision += u64::from(existed);
                Outcome::Deleted { existed, previous: previous.filter(|_| return_previous) }
            }
            Operation::Increment { key, delta, initial, .. } => {
                let before = match self.keys.get(&key) {
                    None => Some(initial),
                    Some((value, _)) => std::str::from_utf8(value).ok().and_then(|text| {
                        text.parse::<i64>().ok().filter(|number| number.to_string() == text)
                    }),
                };
                let Some(before) = before else { return Outcome::Rejected(Rejection::NotANumber) };
                let Ok(value) = i64::try_from(i128::from(before) + i128::from(delta)) else {
                    return Outcome::Rejected(Rejection::OutOfRange);
                };
                self.put(key, value.to_string().into());
                Outcome::Incremented { value, version: self.revision }
            }
        }
    }

    fn version(&self, key: &Bytes) -> Option<u64> {
        self.keys.get(key).map(|(_, version)| *version)
    }

    fn put(&mut self, key: Bytes, value: Bytes) -> Option<Versioned> {
        self.revision += 1;
        self.keys.insert(key, (value, self.revision)).map(versioned)
    }
}

fn versioned((value, version): (Bytes, u64)) -> Versioned {
    Versioned { value, version, deadline: None }
}

fn assert_same(machine: &Machine, model: &Model) {
    machine.check_invariants();
    assert_eq!(machine.revision(), model.revision);
    assert_eq!(machine.is_open(), model.open);
    assert_eq!(machine.keys(), model.keys.len() as u64);
    let bytes: u64 = model.keys.iter().map(|(key, (value, _))| (key.len() + value.len()) as u64).sum();
    assert_eq!(machine.bytes(), bytes + ENTRY_OVERHEAD_BYTES * model.keys.len() as u64);
    let Found::View(view) = machine.read(&Query::Scan { keyspace: 0 }).found else {
        panic!("a scan gives a view")
    };
    let expected = model.keys.iter().map(|(key, entry)| (&key[..], versioned(entry.clone())));
    assert!(view.range(b"", b"").map(|(key, entry)| (key, entry.clone())).eq(expected));
}

/// What happens to a log besides its entries.
#[derive(Debug, Clone)]
enum Step {
    Entry(i64, Vec<Operation>),
    Blank,
    /// One member goes, and one with a new id may come.
    Membership {
        going: prop::sample::Index,
        comes: bool,
    },
    /// The node restarts from its snapshot.
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (0..1000_i64, prop::collection::vec(operation(), 0..5)).prop_map(|(now, all)| Step::Entry(now, all)),
        1 => Just(Step::Blank),
        1 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(going, comes)| Step::Membership { going, comes }),
        2 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 1..40)
}

/// Whoever was a member at any time is one now or is retired.
fn change_members(machine: &mut Machine, going: prop::sample::Index, comes: bool) {
    let mut nodes = machine.membership().1.nodes.clone();
    let ever: std::collections::BTreeSet<u64> = nodes.keys().chain(machine.retired()).copied().collect();
    if nodes.len() > 1 {
        let id = *going.get(&nodes.keys().copied().collect::<Vec<_>>());
        nodes.remove(&id);
    }
    if comes && ever.last().is_some_and(|last| *last < 500) {
        let id = ever.last().unwrap() + 1;
        nodes.insert(id, member(id));
    }
    machine.apply_membership(
        next(machine),
        Membership { configs: vec![nodes.keys().copied().collect()], nodes },
    );
    let now = machine.membership().1.nodes.keys().chain(machine.retired()).copied().collect();
    assert!(ever.is_subset(&now), "{ever:?} {now:?}");
}

proptest! {
    #[test]
    fn behaves_like_the_model(open_at_once in any::<bool>(), entries in prop::collection::vec(prop::collection::vec(operation(), 1..4), 1..60)) {
        let (mut machine, mut model) = (Machine::new(), Model::default());
        if open_at_once {
            apply_one(&mut machine, Operation::Open);
            model.open = true;
        }
        for operations in entries {
            let applied = apply(&mut machine, 0, operations.clone());
            for (applied, operation) in applied.into_iter().zip(operations) {
                prop_assert_eq!(applied.outcome, model.apply(operation));
                prop_assert_eq!(applied.revision, model.revision);
            }
            assert_same(&machine, &model);
        }
    }

    #[test]
    fn restarts_from_snapshots_make_no_difference(steps in steps()) {
        let (mut steady, mut restarted) = (open_machine(), open_machine());
        for step in steps {
            for machine in [&mut steady, &mut restarted] {
                match step.clone() {
                    Step::Entry(now, operations) => drop(apply(machine, now, operations)),
                    Step::Blank => machine.apply_blank(next(machine)),
                    Step::Membership { going, comes } => change_members(machine, going, comes),
                    Step::Restore => {}
                }
            }
            if matches!(step, Step::Restore) {
                restarted = restore(&sections(&restarted)).unwrap();
            }
            prop_assert_eq!(steady.state_hash(), restarted.state_hash());
        }
        restarted.check_invariants();
        prop_assert_eq!(sections(&steady), sections(&restarted));
        prop_assert_eq!(steady.retired(), restarted.retired());
        prop_assert_eq!(steady.boot_records(), restarted.boot_records());
    }
}

#[test]
fn the_hash_tells_any_difference() {
    let log = |edit: fn(&mut Machine)| {
        let mut machine = open_machine();
        apply(&mut machine, 10, vec![set("a", "1"), set("b", "2")]);
        edit(&mut machine);
        machine.state_hash()
    };
    let hashes = [
        log(|_| {}),
        log(|machine| machine.apply_blank(next(machine))),
        log(|machine| machine.apply_membership(next(machine), three_voters())),
        log(|machine| drop(apply(machine, 10, vec![]))),
        log(|machine| drop(apply(machine, 11, vec![]))),
        log(|machine| drop(apply(machine, 10, vec![set("a", "1")]))),
        log(|machine| drop(apply(machine, 10, vec![set("a", "2")]))),
        log(|machine| drop(apply(machine, 10, vec![set("b", "1")]))),
        log(|machine| drop(apply(machine, 10, vec![set("a1", "")]))),
        log(|machine| drop(apply(machine, 10, vec![Operation::Open]))),
        log(|machine| drop(apply(machine, 10, vec![boot("0", 5, 1, 7)]))),
        log(|machine| drop(apply(machine, 10, vec![boot("0", 5, 2, 7)]))),
        log(|machine| drop(apply(machine, 10, vec![boot("0", 5, 1, 8)]))),
        log(|machine| drop(apply(machine, 10, vec![boot("1", 9, 1, 7)]))),
        log(|machine| {
            let delete = |key: &'static str| Operation::Delete {
                key: key.into(),
                if_version: None,
                return_previous: false,
            };
            apply(machine, 10, vec![delete("a")]);
        }),
    ];
    let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());
    assert_eq!(hashes[0], log(|_| {}));
}

#[test]
fn a_view_stays_as_it_was() {
    let mut machine = open_machine();
    apply(&mut machine, 10, vec![set("a", "1"), set("b", "2")]);
    let answer = machine.read(&Query::Scan { keyspace: 0 });
    apply(&mut machine, 20, vec![set("a", "changed"), set("c", "3")]);
    let Found::View(view) = answer.found else { panic!("a scan gives a view") };
    assert_eq!(
        (answer.revision, answer.clock, view.revision(), view.clock()),
        (2, UnixMillis(10), 2, UnixMillis(10))
    );
    assert_eq!(view.keys(), 2);
    assert_eq!(view.get(b"a").map(|entry| &entry.value[..]), Some(&b"1"[..]));
    assert_eq!(view.get(b"c"), None);
}

#[test]
fn a_keyspace_that_does_not_exist_has_no_keys() {
    let mut machine = open_machine();
    apply_one(&mut machine, set("a", "1"));
    let keys = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
    match machine.read(&Query::Get { keyspace: 1, keys }).found {
        Found::Values(values) => assert_eq!(values, [None, None]),
        Found::View(_) => panic!("a get gives values"),
    }
    match machine.read(&Query::Scan { keyspace: 1 }).found {
        Found::View(view) => assert_eq!(view.keys(), 0),
        Found::Values(_) => panic!("a scan gives a view"),
    }
}

/// A small key must not hold on to the megabyte that it came in.
#[test]
fn keys_and_values_leave_the_buffer_they_came_in() {
    let mut machine = open_machine();
    let buffer = Bytes::from(vec![b'x'; 1 << 20]);
    let operation = Operation::Set {
        key: buffer.slice(0..3),
        value: buffer.slice(3..9),
        condition: Condition::None,
        ttl_ms: None,
        return_previous: false,
    };
    let commands = vec![larder::state::Command::new(operation)];
    machine.apply(next(&machine), &Default::default(), commands);
    assert!(buffer.is_unique(), "the state still shares the entry's buffer");
}

#[test]
#[should_panic(expected = "the log has a hole or went back")]
fn a_hole_in_the_log_panics() {
    let mut machine = open_machine();
    let LogPosition { index, .. } = next(&machine);
    machine.apply_blank(position(index + 1));
}

#[test]
#[should_panic(expected = "was retired: its member must come with a new id")]
fn a_retired_id_that_comes_back_panics() {
    let mut machine = open_machine();
    let nodes = [(5, member(5))].into();
    machine.apply_membership(next(&machine), Membership { configs: vec![vec![5]], nodes });
    machine.apply_membership(next(&machine), three_voters());
}

#[test]
#[should_panic(expected = "the log has a hole or went back")]
fn an_entry_applied_twice_panics() {
    let mut machine = open_machine();
    let last = machine.last_applied().unwrap();
    machine.apply_blank(last);
}

#[test]
#[should_panic(expected = "the log has a hole or went back")]
fn a_term_that_goes_back_panics() {
    let mut machine = Machine::new();
    machine.apply_blank(LogPosition { term: 2, index: 0 });
    machine.apply_blank(LogPosition { term: 1, index: 1 });
}
