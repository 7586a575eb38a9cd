//! What the tests of the state share: short ways to write commands, and applying them the way a node does.

use bytes::Bytes;
use larder::{
    state::{
        Applied, BootRecord, Command, Condition, LogPosition, Machine, MemberNode, Membership, Operation,
        SnapshotDecoder, SnapshotError, Stamp, codec,
    },
    time::UnixMillis,
};
use proptest::prelude::*;

pub(crate) fn set(key: &str, value: &str) -> Operation {
    set_if(key, value, Condition::None)
}

pub(crate) fn set_if(key: &str, value: &str, condition: Condition) -> Operation {
    Operation::Set {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition,
        ttl_ms: None,
        return_previous: false,
    }
}

pub(crate) fn stamp(now: i64) -> Stamp {
    Stamp { now: UnixMillis(now), touched: Vec::new() }
}

pub(crate) fn position(index: u64) -> LogPosition {
    LogPosition { term: 1 + index / 7, index }
}

pub(crate) fn next(machine: &Machine) -> LogPosition {
    let last = machine.last_applied();
    let next = position(last.map_or(0, |last| last.index + 1));
    LogPosition { term: next.term.max(last.map_or(0, |last| last.term)), ..next }
}

/// Applies commands as a node does: encoded at the edge, laid in an entry, decoded from the log, and what they came to
/// sent back. Each encoding is thus passed by each test.
pub(crate) fn apply(machine: &mut Machine, now: i64, operations: Vec<Operation>) -> Vec<Applied> {
    let commands: Vec<Command> = operations.into_iter().map(Command::new).collect();
    let encoded: Vec<Bytes> = commands.iter().map(codec::encode_command).collect();
    let entry = codec::encode_entry(&stamp(now), &encoded);
    let (read, decoded) = codec::decode_entry(entry).expect("what was encoded can be decoded");
    assert_eq!((&read, &decoded), (&stamp(now), &commands));
    let applied = machine.apply(next(machine), &read, decoded);
    for one in &applied {
        assert_eq!(codec::decode_applied(codec::encode_applied(one)).as_ref(), Ok(one));
    }
    applied
}

pub(crate) fn apply_one(machine: &mut Machine, operation: Operation) -> Applied {
    apply(machine, 0, vec![operation]).remove(0)
}

/// A machine with three voters, whose gate is open.
pub(crate) fn open_machine() -> Machine {
    let mut machine = Machine::new();
    machine.apply_membership(position(0), three_voters());
    apply(&mut machine, 0, vec![Operation::Open]);
    machine
}

pub(crate) fn three_voters() -> Membership {
    let ids = [5, 9, 300];
    Membership { configs: vec![ids.into()], nodes: ids.map(|id| (id, member(id))).into() }
}

pub(crate) fn sections(machine: &Machine) -> Vec<Bytes> {
    machine.freeze().sections().collect()
}

pub(crate) fn restore(sections: &[Bytes]) -> Result<Machine, SnapshotError> {
    let mut decoder = SnapshotDecoder::new();
    for section in sections {
        decoder.push(section.clone())?;
    }
    decoder.finish()
}

fn small_bytes(least: usize) -> impl Strategy<Value = Bytes> {
    // Few distinct keys, so that operations meet one another.
    prop_oneof![
        4 => prop::collection::vec(b'a'..=b'd', least..3),
        1 => prop::collection::vec(any::<u8>(), least..40),
    ]
    .prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => small_bytes(0),
        2 => (-3_i64..3).prop_map(|n| Bytes::from(n.to_string())),
        1 => prop_oneof![Just(i64::MAX), Just(i64::MIN)].prop_map(|n| Bytes::from(n.to_string())),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        3 => Just(Condition::None),
        1 => Just(Condition::IfAbsent),
        1 => Just(Condition::IfPresent),
        1 => (1..20_u64).prop_map(Condition::IfVersion),
    ]
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -5_i64..5, 1 => any::<i64>()]
}

/// An operation that may stand in a batch.
pub(crate) fn plain_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (small_bytes(1), value(), condition(), any::<bool>()).prop_map(
            |(key, value, condition, return_previous)| Operation::Set {
                key, value, condition, ttl_ms: None, return_previous,
            }
        ),
        3 => (small_bytes(1), prop::option::weighted(0.3, 1..20_u64), any::<bool>()).prop_map(
            |(key, if_version, return_previous)| Operation::Delete { key, if_version, return_previous }
        ),
        3 => (small_bytes(1), number(), number()).prop_map(
            |(key, delta, initial)| Operation::Increment { key, delta, initial, ttl_ms: None }
        ),
    ]
}

/// Any operation of this release.
pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => plain_operation(),
        2 => prop::collection::vec(plain_operation(), 1..5).prop_map(Operation::Batch),
        1 => Just(Operation::Open),
        1 => (prop::sample::select(vec![5, 9, 300, 301, 302]), 0..4_u64, 0..2_u64).prop_map(|(id, counter, nonce)| {
            let slot = slot_of(id);
            boot(&slot, id, counter, nonce)
        }),
    ]
}

/// The slot that a member of the tests has.
pub(crate) fn slot_of(id: u64) -> String {
    match id {
        5 => "0".into(),
        9 => "1".into(),
        300.. => (id - 298).to_string(),
        id => id.to_string(),
    }
}

/// The incarnation of the member in a slot of the tests.
pub(crate) fn incarnation_of(slot: &str) -> [u8; 16] {
    [slot.parse::<u8>().unwrap() + 1; 16]
}

pub(crate) fn boot(slot: &str, raft_id: u64, boot_counter: u64, nonce: u64) -> Operation {
    let incarnation = incarnation_of(slot);
    Operation::RecordBoot {
        slot: slot.into(),
        boot: BootRecord { raft_id, incarnation, boot_counter, nonce },
    }
}

/// A member of the tests.
pub(crate) fn member(id: u64) -> MemberNode {
    let slot = slot_of(id);
    MemberNode { peer_address: format!("node-{slot}:7401"), incarnation: incarnation_of(&slot), slot }
}
