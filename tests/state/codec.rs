//! The encodings: what goes in comes out, in one form only, and nothing that comes in makes them panic.

use std::collections::BTreeMap;

use bytes::Bytes;
use larder::{
    error::Rejection,
    state::{
        Applied, Command, DecodeError, MemberNode, Membership, Operation, Outcome, SessionId, Stamp,
        Versioned, codec,
    },
    time::UnixMillis,
};
use proptest::prelude::*;

use crate::{
    golden,
    support::{boot, operation, set, stamp, three_voters},
};

fn session() -> impl Strategy<Value = SessionId> {
    any::<(u64, u64, u64)>().prop_map(|(session, sequence, first_unacknowledged)| SessionId {
        session,
        sequence,
        first_unacknowledged,
    })
}

/// Any command that can be written down, also with what this release does not do.
fn command() -> impl Strategy<Value = Command> {
    (any::<u32>(), prop::option::of(session()), operation(), prop::option::of(any::<u64>())).prop_map(
        |(keyspace, session, mut operation, ttl)| {
            if let Operation::Set { ttl_ms, .. } | Operation::Increment { ttl_ms, .. } = &mut operation {
                *ttl_ms = ttl;
            }
            Command { keyspace, session, operation }
        },
    )
}

fn versioned() -> impl Strategy<Value = Versioned> {
    (prop::collection::vec(any::<u8>(), 0..20), any::<u64>(), prop::option::of(any::<i64>())).prop_map(
        |(value, version, deadline)| Versioned {
            value: value.into(),
            version,
            deadline: deadline.map(UnixMillis),
        },
    )
}

fn plain_outcome() -> impl Strategy<Value = Outcome> {
    let previous = || prop::option::of(versioned());
    prop_oneof![
        (any::<u64>(), previous()).prop_map(|(version, previous)| Outcome::Set { version, previous }),
        (any::<bool>(), previous()).prop_map(|(existed, previous)| Outcome::Deleted { existed, previous }),
        any::<(i64, u64)>().prop_map(|(value, version)| Outcome::Incremented { value, version }),
        Just(Outcome::Opened),
        any::<bool>().prop_map(|accepted| Outcome::BootRecorded { accepted }),
        prop::option::of(any::<u64>())
            .prop_map(|current| Outcome::Rejected(Rejection::ConditionFailed { current })),
        Just(Outcome::Rejected(Rejection::NotANumber)),
        Just(Outcome::Rejected(Rejection::OutOfRange)),
        Just(Outcome::Rejected(Rejection::NotOpen)),
    ]
}

fn applied() -> impl Strategy<Value = Applied> {
    let outcome = prop_oneof![
        4 => plain_outcome(),
        1 => prop::collection::vec(plain_outcome(), 0..6).prop_map(Outcome::Batch),
    ];
    (any::<u64>(), any::<i64>(), outcome).prop_map(|(revision, clock, outcome)| Applied {
        revision,
        clock: UnixMillis(clock),
        outcome,
    })
}

fn membership() -> impl Strategy<Value = Membership> {
    let node = (".{0,5}", ".{0,5}", any::<[u8; 16]>())
        .prop_map(|(slot, peer_address, incarnation)| MemberNode { slot, peer_address, incarnation });
    prop::collection::btree_map(any::<u64>(), node, 0..6).prop_flat_map(|nodes: BTreeMap<_, _>| {
        let ids: Vec<u64> = nodes.keys().copied().collect();
        let count = ids.len();
        prop::collection::vec(prop::sample::subsequence(ids, 0..=count), 0..=2)
            .prop_map(move |configs| Membership { configs, nodes: nodes.clone() })
    })
}

/// A decoder: whether it takes the bytes, and if so what it would write for what it read.
type Decode = fn(Bytes) -> Result<Bytes, DecodeError>;

fn again_command(bytes: Bytes) -> Result<Bytes, DecodeError> {
    codec::decode_command(bytes).map(|command| codec::encode_command(&command))
}

fn again_entry(bytes: Bytes) -> Result<Bytes, DecodeError> {
    codec::decode_entry(bytes).map(|(stamp, commands)| {
        let commands: Vec<_> = commands.iter().map(codec::encode_command).collect();
        codec::encode_entry(&stamp, &commands)
    })
}

fn again_applied(bytes: Bytes) -> Result<Bytes, DecodeError> {
    codec::decode_applied(bytes).map(|applied| codec::encode_applied(&applied))
}

fn again_membership(bytes: Bytes) -> Result<Bytes, DecodeError> {
    codec::decode_membership(bytes).map(|membership| codec::encode_membership(&membership))
}

const ALL: [Decode; 4] = [again_command, again_entry, again_applied, again_membership];

proptest! {
    #[test]
    fn a_command_comes_out_as_it_went_in(command in command()) {
        prop_assert_eq!(codec::decode_command(codec::encode_command(&command)), Ok(command));
    }

    #[test]
    fn an_entry_comes_out_as_it_went_in(
        now in any::<i64>(),
        touched in prop::collection::vec(any::<u64>(), 0..5),
        commands in prop::collection::vec(command(), 0..6),
    ) {
        let stamp = Stamp { now: UnixMillis(now), touched };
        let encoded: Vec<_> = commands.iter().map(codec::encode_command).collect();
        prop_assert_eq!(codec::decode_entry(codec::encode_entry(&stamp, &encoded)), Ok((stamp, commands)));
    }

    #[test]
    fn an_outcome_comes_out_as_it_went_in(applied in applied()) {
        prop_assert_eq!(codec::decode_applied(codec::encode_applied(&applied)), Ok(applied));
    }

    #[test]
    fn a_membership_comes_out_as_it_went_in(membership in membership()) {
        prop_assert_eq!(codec::decode_membership(codec::encode_membership(&membership)), Ok(membership));
    }

    #[test]
    fn random_bytes_are_refused_or_have_one_form(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for decode in ALL {
            // Past the version byte, too.
            for first in [None, Some(1)] {
                if let (Some(version), Some(byte)) = (first, bytes.first_mut()) {
                    *byte = version;
                }
                let bytes = Bytes::copy_from_slice(&bytes);
                if let Ok(again) = decode(bytes.clone()) {
                    prop_assert_eq!(again, bytes);
                }
            }
        }
    }
}

/// Each golden record, cut at each place and with each bit flipped: refused, or read as another record in its one form.
#[test]
fn damage_is_refused_or_read_as_what_it_now_is() {
    for (name, bytes) in golden::records() {
        let decode = match name.split('-').next() {
            Some("command") => again_command,
            Some("entry") => again_entry,
            Some("applied") => again_applied,
            _ => again_membership as Decode,
        };
        assert_eq!(decode(bytes.clone()), Ok(bytes.clone()), "{name}");
        for length in 0..bytes.len() {
            assert!(decode(bytes.slice(..length)).is_err(), "{name} cut to {length} bytes was taken");
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(decode(longer).is_err(), "{name} with a byte too many was taken");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = Bytes::from(flipped);
            if let Ok(again) = decode(flipped.clone()) {
                assert_eq!(again, flipped, "{name} with bit {bit} flipped has two forms");
            }
        }
    }
}

#[test]
fn a_newer_version_is_named() {
    for decode in ALL {
        let error = decode(Bytes::from_static(&[2, 0, 0, 0])).unwrap_err();
        assert!(matches!(error, DecodeError::Version { found: 2, known: 1, .. }), "{error}");
    }
}

#[test]
fn unknown_tags_and_flags_are_refused() {
    let unknown = |bytes: &'static [u8]| {
        matches!(codec::decode_command(Bytes::from_static(bytes)), Err(DecodeError::Unknown { .. }))
    };
    assert!(unknown(&[1, 2, 0, 5]), "a flag of the command");
    assert!(unknown(&[1, 0, 0, 9]), "an operation");
    assert!(unknown(&[1, 0, 0, 1, 7, 0, 1, b'k', 0]), "a condition");
    assert!(unknown(&[1, 0, 0, 1, 0, 4, 1, b'k', 0]), "a flag of Set");
}

#[test]
fn a_batch_in_a_batch_is_refused_before_it_is_read() {
    let nested = Command::new(Operation::Batch(vec![Operation::Batch(vec![set("a", "1")])]));
    assert_eq!(codec::decode_command(codec::encode_command(&nested)), Err(DecodeError::NestedBatch));
    let open = Command::new(Operation::Batch(vec![Operation::Open]));
    assert_eq!(codec::decode_command(codec::encode_command(&open)), Err(DecodeError::NestedBatch));
    let boot = Command::new(Operation::Batch(vec![boot("0", 5, 1, 1)]));
    assert_eq!(codec::decode_command(codec::encode_command(&boot)), Err(DecodeError::NestedBatch));
    // A depth that would overflow the stack if it were followed.
    let mut deep = vec![1, 0, 0];
    deep.extend([4, 1].repeat(1_000_000));
    assert_eq!(codec::decode_command(deep.into()), Err(DecodeError::NestedBatch));
    let mut deep = vec![1, 0, 0];
    deep.extend([4, 1].repeat(1_000_000));
    assert_eq!(codec::decode_applied(deep.into()), Err(DecodeError::NestedBatch));
}

#[test]
fn a_declared_length_is_not_believed() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for head in [&[1, 0, 0, 4][..], &[1, 0, 0, 1, 0, 0], &[1, 0], &[1, 0, 0], &[1, 0, 0, 4], &[1], &[1, 0]] {
        for decode in ALL {
            let bytes = Bytes::from([head, &huge, &[0; 8]].concat());
            assert!(decode(bytes).is_err(), "{head:?}");
        }
    }
}

#[test]
fn numbers_have_one_form() {
    // Keyspace 0 as two bytes, and a number of more than 64 bits.
    for bytes in [
        &[1, 0, 0x80, 0x00, 5][..],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x03, 5],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 5],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0x7f, 5],
    ] {
        let error = codec::decode_command(Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(error, DecodeError::Number { what: "command" });
    }
}

#[test]
fn decoding_shares_the_buffer() {
    let value = "v".repeat(1000);
    let entry = codec::encode_entry(&stamp(0), &[codec::encode_command(&Command::new(set("k", &value)))]);
    let buffer = entry.as_ptr_range();
    let (_, commands) = codec::decode_entry(entry).unwrap();
    let Operation::Set { value, .. } = &commands[0].operation else { panic!("a Set was encoded") };
    assert!(buffer.contains(&value.as_ptr()), "the value was copied");
}

#[test]
fn a_membership_must_fit_together() {
    let inconsistent = |membership: &Membership| {
        let result = codec::decode_membership(codec::encode_membership(membership));
        matches!(result, Err(DecodeError::Inconsistent { .. }))
    };
    let good = three_voters();
    assert!(!inconsistent(&good));
    assert!(
        inconsistent(&Membership { configs: vec![vec![5, 6]], ..good.clone() }),
        "a voter without a node"
    );
    assert!(inconsistent(&Membership { configs: vec![vec![5]; 3], ..good.clone() }), "three configurations");
    // Order and repetition of ids are no differences, so they are not written.
    let shuffled = Membership { configs: vec![vec![300, 5, 9, 5]], ..good.clone() };
    assert_eq!(codec::decode_membership(codec::encode_membership(&shuffled)), Ok(good));
}
