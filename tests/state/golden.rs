//! Golden bytes: version 1 of every record, which must stay readable for ever.
//!
//! A line is a name and the record in hexadecimal digits. A new version gets a new file; these lines never change. A
//! missing line is printed by the failing test.

use std::collections::BTreeMap;

use bytes::Bytes;
use larder::{
    error::Rejection,
    state::{
        Applied, Command, Condition, Machine, Membership, Operation, Outcome, SessionId, Stamp, Versioned,
        codec,
    },
    time::UnixMillis,
};

use crate::support::{apply, boot, next, open_machine, restore, sections, set, set_if, three_voters};

const CODEC: &str = include_str!("golden/codec-v1.txt");
const SNAPSHOT: &str = include_str!("golden/snapshot-v1.txt");
const SNAPSHOT_MEMBERS: &str = include_str!("golden/snapshot-members-v1.txt");

/// The golden records, by name.
pub(crate) fn records() -> BTreeMap<String, Bytes> {
    parse(CODEC)
}

fn parse(file: &str) -> BTreeMap<String, Bytes> {
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, digits) = line.split_once(' ').unwrap();
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            (name.to_owned(), (0..digits.len()).step_by(2).map(byte).collect())
        })
        .collect()
}

fn line(name: &str, bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {digits}")
}

fn commands() -> Vec<(&'static str, Command)> {
    let session = SessionId { session: 300, sequence: 2, first_unacknowledged: 1 };
    let all = Operation::Set {
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"value"),
        condition: Condition::IfVersion(1000),
        ttl_ms: Some(60_000),
        return_previous: true,
    };
    let delete = |if_version, return_previous| Operation::Delete {
        key: Bytes::from_static(b"key"),
        if_version,
        return_previous,
    };
    let increment = |delta, initial, ttl_ms| Operation::Increment {
        key: Bytes::from_static(b"n"),
        delta,
        initial,
        ttl_ms,
    };
    vec![
        ("command-set", Command::new(set("key", "value"))),
        ("command-set-empty", Command::new(set("k", ""))),
        ("command-set-if-absent", Command::new(set_if("k", "v", Condition::IfAbsent))),
        ("command-set-if-present", Command::new(set_if("k", "v", Condition::IfPresent))),
        ("command-set-all", Command { keyspace: 7, session: Some(session), operation: all }),
        ("command-delete", Command::new(delete(None, false))),
        ("command-delete-all", Command::new(delete(Some(u64::MAX), true))),
        ("command-increment", Command::new(increment(1, 0, None))),
        ("command-increment-all", Command::new(increment(i64::MIN, -1, Some(1)))),
        (
            "command-batch",
            Command::new(Operation::Batch(vec![set("a", "1"), delete(None, false), increment(-2, 5, None)])),
        ),
        ("command-open", Command::new(Operation::Open)),
        ("command-record-boot", Command::new(boot("2", 300, 7, 0x0123_4567_89ab_cdef))),
    ]
}

fn applied() -> Vec<(&'static str, Applied)> {
    let previous = |deadline: Option<i64>| {
        Some(Versioned { value: Bytes::from_static(b"old"), version: 3, deadline: deadline.map(UnixMillis) })
    };
    let failed = |current| Outcome::Rejected(Rejection::ConditionFailed { current });
    let batch = Outcome::Batch(vec![
        Outcome::Set { version: 4, previous: None },
        Outcome::Rejected(Rejection::NotANumber),
        Outcome::Deleted { existed: true, previous: previous(None) },
    ]);
    [
        ("applied-set", Outcome::Set { version: 4, previous: None }),
        ("applied-set-previous", Outcome::Set { version: 4, previous: previous(Some(-1)) }),
        ("applied-deleted", Outcome::Deleted { existed: true, previous: None }),
        ("applied-deleted-previous", Outcome::Deleted { existed: true, previous: previous(None) }),
        ("applied-deleted-missing", Outcome::Deleted { existed: false, previous: None }),
        ("applied-incremented", Outcome::Incremented { value: -5, version: 4 }),
        ("applied-batch", batch),
        ("applied-opened", Outcome::Opened),
        ("applied-boot-recorded", Outcome::BootRecorded { accepted: true }),
        ("applied-boot-refused", Outcome::BootRecorded { accepted: false }),
        ("applied-rejected-exists", failed(Some(3))),
        ("applied-rejected-missing", failed(None)),
        ("applied-rejected-number", Outcome::Rejected(Rejection::NotANumber)),
        ("applied-rejected-range", Outcome::Rejected(Rejection::OutOfRange)),
        ("applied-rejected-gate", Outcome::Rejected(Rejection::NotOpen)),
    ]
    .map(|(name, outcome)| (name, Applied { revision: 400, clock: UnixMillis(1_700_000_000_000), outcome }))
    .into()
}

fn entries() -> Vec<(&'static str, Stamp, Vec<Command>)> {
    let stamp = Stamp { now: UnixMillis(1_700_000_000_000), touched: vec![1, u64::MAX] };
    vec![
        ("entry-empty", Stamp::default(), vec![]),
        (
            "entry-before-1970",
            Stamp { now: UnixMillis(-1), touched: vec![] },
            vec![Command::new(Operation::Open)],
        ),
        ("entry-all", stamp, vec![Command::new(set("a", "1")), Command::new(set("b", "2"))]),
    ]
}

fn memberships() -> Vec<(&'static str, Membership)> {
    let one = three_voters();
    let joint = Membership { configs: vec![vec![5, 9], vec![9, 300]], ..one.clone() };
    vec![("membership-none", Membership::default()), ("membership-one", one), ("membership-joint", joint)]
}

/// Compares what is written now with the file, and prints the lines that the file should have.
#[track_caller]
fn assert_golden(written: Vec<(String, Bytes)>, file: &str) {
    let golden = parse(file);
    let missing: Vec<String> = written
        .iter()
        .filter(|(name, bytes)| golden.get(name) != Some(bytes))
        .map(|(name, bytes)| line(name, bytes))
        .collect();
    assert!(missing.is_empty(), "written now and not so in the golden file:\n{}", missing.join("\n"));
    assert_eq!(golden.len(), written.len(), "the golden file has a record that no test writes");
}

#[test]
fn version_1_of_every_record_is_written_and_read() {
    let mut written = Vec::new();
    for (name, command) in commands() {
        written.push((name.to_owned(), codec::encode_command(&command)));
    }
    for (name, stamp, commands) in entries() {
        let commands: Vec<_> = commands.iter().map(codec::encode_command).collect();
        written.push((name.to_owned(), codec::encode_entry(&stamp, &commands)));
    }
    for (name, applied) in applied() {
        written.push((name.to_owned(), codec::encode_applied(&applied)));
    }
    for (name, membership) in memberships() {
        written.push((name.to_owned(), codec::encode_membership(&membership)));
    }
    assert_golden(written, CODEC);

    let golden = records();
    for (name, command) in commands() {
        assert_eq!(codec::decode_command(golden[name].clone()), Ok(command), "{name}");
    }
    for (name, stamp, commands) in entries() {
        assert_eq!(codec::decode_entry(golden[name].clone()), Ok((stamp, commands)), "{name}");
    }
    for (name, applied) in applied() {
        assert_eq!(codec::decode_applied(golden[name].clone()), Ok(applied), "{name}");
    }
    for (name, membership) in memberships() {
        assert_eq!(codec::decode_membership(golden[name].clone()), Ok(membership), "{name}");
    }
}

/// A small state with everything in it that this release writes. The state hash is part of it, so its rule is golden too.
pub(crate) fn small_machine() -> Machine {
    let mut machine = open_machine();
    machine.apply_blank(next(&machine));
    let batch = Operation::Batch(vec![set("b", "2"), set("empty", ""), set("gone", "3")]);
    apply(&mut machine, 1_700_000_000_000, vec![set("a", "1"), batch]);
    let delete =
        Operation::Delete { key: Bytes::from_static(b"gone"), if_version: None, return_previous: false };
    let increment =
        Operation::Increment { key: Bytes::from_static(b"n"), delta: -7, initial: 0, ttl_ms: None };
    apply(&mut machine, 1_699_999_999_999, vec![delete, increment]);
    machine
}

#[test]
fn version_1_of_the_snapshot_is_written_and_read() {
    let machine = small_machine();
    let written = sections(&machine);
    let named = written.iter().enumerate().map(|(at, section)| (format!("section-{at:02}"), section.clone()));
    assert_golden(named.collect(), SNAPSHOT);

    let golden: Vec<Bytes> = parse(SNAPSHOT).into_values().collect();
    let restored = restore(&golden).unwrap();
    restored.check_invariants();
    assert_eq!(sections(&restored), golden);
    assert_eq!(restored.state_hash(), machine.state_hash());
    assert_eq!(restored.membership(), machine.membership());
    assert_eq!((restored.revision(), restored.clock().0, restored.keys()), (6, 1_700_000_000_000, 4));
}

/// A state whose members changed: retired ids, and boot records.
pub(crate) fn machine_with_retired_members() -> Machine {
    let mut machine = open_machine();
    apply(
        &mut machine,
        1,
        vec![boot("0", 5, 1, u64::MAX), boot("1", 9, 2, 3), boot("2", 300, 200, 4), set("a", "1")],
    );
    let Membership { mut nodes, .. } = three_voters();
    nodes.remove(&9);
    machine
        .apply_membership(next(&machine), Membership { configs: vec![vec![5, 300]], nodes: nodes.clone() });
    nodes.remove(&300);
    machine.apply_membership(next(&machine), Membership { configs: vec![vec![5]], nodes });
    machine
}

#[test]
fn version_1_of_a_snapshot_with_retired_members_is_written_and_read() {
    let machine = machine_with_retired_members();
    let written = sections(&machine);
    let named = written.iter().enumerate().map(|(at, section)| (format!("section-{at:02}"), section.clone()));
    assert_golden(named.collect(), SNAPSHOT_MEMBERS);

    let golden: Vec<Bytes> = parse(SNAPSHOT_MEMBERS).into_values().collect();
    let restored = restore(&golden).unwrap();
    restored.check_invariants();
    assert_eq!(sections(&restored), golden);
    assert_eq!(restored.state_hash(), machine.state_hash());
    assert_eq!(restored.retired(), &[9, 300].into());
    assert_eq!(restored.boot_records(), machine.boot_records());
    assert_eq!(restored.boot_records().keys().collect::<Vec<_>>(), ["0"]);
}
