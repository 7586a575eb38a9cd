//! The snapshot: streamed, whole or refused.

use bytes::Bytes;
use larder::state::{
    Condition, FEATURE_LEVEL, MAX_SECTION_BYTES, MAX_VALUE_BYTES, Machine, Operation, SnapshotDecoder,
    SnapshotError,
};

use crate::{
    golden::{machine_with_retired_members, small_machine},
    support::{apply, apply_one, open_machine, restore, sections, set},
};

/// kind, version, flags, length, checksum.
const HEAD: usize = 13;
const END: usize = 10;

/// A section with another kind, version, flags or payload and the checksum that fits.
fn section(kind: u16, version: u16, flags: u8, payload: &[u8]) -> Bytes {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(version.to_le_bytes());
    bytes.push(flags);
    bytes.extend((payload.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(payload);
    bytes.into()
}

/// The sections with the end marker counted and chained anew: damage that only a liar could do.
fn sealed(mut sections: Vec<Bytes>, keys: u64, bytes: u64) -> Vec<Bytes> {
    sections.pop();
    let crc = |section: &Bytes| section.slice(9..HEAD);
    let chain = sections.iter().fold(0, |chain, section| crc32c::crc32c_append(chain, &crc(section)));
    let mut payload = Vec::new();
    for mut number in [sections.len() as u64, keys, bytes] {
        while number >= 0x80 {
            payload.push(number as u8 | 0x80);
            number >>= 7;
        }
        payload.push(number as u8);
    }
    payload.extend(chain.to_le_bytes());
    sections.push(section(u16::MAX, 1, 1, &payload));
    sections
}

fn reseal(sections: Vec<Bytes>) -> Vec<Bytes> {
    let machine = small_machine();
    sealed(sections, machine.keys(), machine.bytes())
}

fn payload_of(section: &Bytes) -> Vec<u8> {
    section[HEAD..].to_vec()
}

#[test]
fn an_empty_machine_has_a_snapshot() {
    let restored = restore(&sections(&Machine::new())).unwrap();
    assert_eq!(restored.last_applied(), None);
    assert_eq!(sections(&restored), sections(&Machine::new()));
}

#[test]
fn resealing_is_what_the_encoder_does() {
    let written = sections(&small_machine());
    assert_eq!(reseal(written.clone()), written);
}

#[test]
fn many_keys_stream_in_bounded_sections() {
    let mut machine = open_machine();
    for number in 0..20_000 {
        apply_one(&mut machine, set(&format!("key-{number}"), &"v".repeat(100)));
    }
    for number in 0..3 {
        apply_one(&mut machine, set(&format!("large-{number}"), &"v".repeat(MAX_VALUE_BYTES)));
    }
    let written = sections(&machine);
    assert!(written.len() > END + 8, "{} sections", written.len());
    assert!(written.iter().all(|section| section.len() <= MAX_SECTION_BYTES));
    let restored = restore(&written).unwrap();
    restored.check_invariants();
    assert_eq!(sections(&restored), written);
}

#[test]
fn a_frozen_state_does_not_move() {
    let mut machine = open_machine();
    apply(&mut machine, 5, (0..1000).map(|n| set(&format!("{n}"), "before")).collect());
    let before = sections(&machine);
    let frozen = machine.freeze();
    let mut half = frozen.sections();
    let first: Vec<Bytes> = half.by_ref().take(3).collect();
    apply(&mut machine, 6, (0..2000).map(|n| set(&format!("{n}"), "after")).collect());
    let all: Vec<Bytes> = first.into_iter().chain(half).collect();
    assert_eq!(all, before);
    assert_eq!((frozen.keys(), frozen.last_applied().map(|at| at.index)), (1000, Some(2)));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let written = sections(&small_machine());
    for (place, section) in written.iter().enumerate() {
        for bit in 0..section.len() * 8 {
            let mut flipped = section.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let mut damaged = written.clone();
            damaged[place] = flipped.into();
            let error = restore(&damaged).expect_err("a flipped bit was taken");
            assert!(
                matches!(error, SnapshotError::Damaged { section, .. } if section == place as u64),
                "{error}"
            );
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    let written = sections(&small_machine());
    for place in 0..written.len() {
        for length in 0..written[place].len() {
            let mut damaged = written.clone();
            damaged[place].truncate(length);
            restore(&damaged).expect_err("a cut section was taken");
        }
        assert_eq!(
            restore(&written[..place]).unwrap_err(),
            SnapshotError::Unfinished { sections: place as u64 },
            "cut before section {place}"
        );
    }
}

#[test]
fn sections_missing_repeated_or_exchanged_are_noticed() {
    let mut machine = open_machine();
    for number in 0..6 {
        apply_one(&mut machine, set(&format!("{number}"), &number.to_string().repeat(200 * 1024)));
    }
    let written = sections(&machine);
    assert!(written.len() > END + 2, "several sections of entries");
    for place in 0..written.len() {
        let mut missing = written.clone();
        missing.remove(place);
        restore(&missing).expect_err("a missing section was not noticed");
        let mut repeated = written.clone();
        repeated.insert(place, written[place].clone());
        restore(&repeated).expect_err("a repeated section was not noticed");
        for other in 0..place {
            let mut exchanged = written.clone();
            exchanged.swap(place, other);
            restore(&exchanged).expect_err("exchanged sections were not noticed");
        }
    }
    let mut longer = written.clone();
    longer.push(written[1].clone());
    restore(&longer).expect_err("a section after the end was taken");
}

#[test]
fn each_section_of_another_state_is_noticed() {
    let (mine, mut other) = (sections(&small_machine()), open_machine());
    apply(&mut other, 7, vec![set("a", "1"), set("b", "2"), set("c", "3"), set("d", "4")]);
    let other = sections(&other);
    for place in 0..mine.len() {
        if mine[place] != other[place] {
            let mut mixed = mine.clone();
            mixed[place] = other[place].clone();
            restore(&mixed).expect_err("a section of another snapshot was taken");
        }
    }
}

#[test]
fn an_unknown_section_is_skipped_if_optional_and_refuses_the_whole_if_required() {
    let written = sections(&small_machine());
    for place in 1..written.len() {
        for (kind, version) in [(11, 1), (4242, 9), (10, 2)] {
            let mut newer = written.clone();
            newer.insert(place, section(kind, version, 0, b"what comes next"));
            let restored = restore(&reseal(newer.clone())).unwrap();
            assert_eq!(sections(&restored), written);

            newer[place] = section(kind, version, 1, b"what comes next");
            assert_eq!(
                restore(&reseal(newer)).unwrap_err(),
                SnapshotError::Unknown { section: place as u64, kind, version },
            );
        }
    }
    // An optional section, too, is checked and counted.
    let mut uncounted = written.clone();
    uncounted.insert(3, section(11, 1, 0, b"slipped in"));
    restore(&uncounted).expect_err("a section that the end marker does not count was taken");
}

#[test]
fn a_required_section_of_a_newer_version_refuses_the_whole() {
    let written = sections(&small_machine());
    for place in 0..written.len() - 1 {
        let mut newer = written.clone();
        let kind = u16::from_le_bytes([written[place][0], written[place][1]]);
        newer[place] = section(kind, 2, 1, &payload_of(&written[place]));
        assert_eq!(
            restore(&reseal(newer)).unwrap_err(),
            SnapshotError::Unknown { section: place as u64, kind, version: 2 },
        );
    }
}

#[test]
fn a_newer_feature_level_and_another_group_are_named() {
    let written = sections(&small_machine());
    let header = |group: u8, level: u8| {
        let mut payload = payload_of(&written[0]);
        let length = payload.len();
        payload[length - 2..].copy_from_slice(&[group, level]);
        let mut sections = written.clone();
        sections[0] = section(1, 1, 1, &payload);
        restore(&reseal(sections))
    };
    assert!(header(0, 1).is_ok());
    assert_eq!(header(0, 2).unwrap_err(), SnapshotError::FeatureLevel { found: 2, known: FEATURE_LEVEL });
    assert_eq!(header(3, 1).unwrap_err(), SnapshotError::Group { found: 3 });
    assert!(matches!(header(0, 0), Err(SnapshotError::Inconsistent(_))));
}

/// Payloads with right checksums and wrong content: an error each time, and no panic.
#[test]
fn what_contradicts_itself_is_refused() {
    let written = sections(&small_machine());
    let with = |place: usize, kind: u16, payload: &[u8]| {
        let mut sections = written.clone();
        sections[place] = section(kind, 1, 1, payload);
        restore(&reseal(sections))
    };
    let refused = |place: usize, kind: u16, payload: &[u8]| {
        with(place, kind, payload).expect_err("a contradiction was taken");
    };
    // clock 0, revision 5 below the versions; revision 4 with 4 keys; closed although written to.
    let state = payload_of(&written[2]);
    let revision = state.iter().position(|byte| *byte == 6).unwrap();
    for (at, value) in [(revision, 5), (revision, 7), (revision + 1, 0), (revision + 1, 3)] {
        let mut payload = state.clone();
        payload[at] = value;
        refused(2, 3, &payload);
    }
    for (place, kind) in [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)] {
        refused(place, kind, &[1]);
        refused(place, kind, &[]);
        refused(place, kind, &[0xff; 40]);
    }
    // Each single byte of each payload changed, with the checksums mended: taken only if the state is another one that
    // holds its invariants, never with a panic.
    for (place, original) in written.iter().enumerate().take(written.len() - 1) {
        let kind = u16::from_le_bytes([original[0], original[1]]);
        let payload = payload_of(original);
        for at in 0..payload.len() {
            for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let mut changed = payload.clone();
                changed[at] = value;
                if let Ok(machine) = with(place, kind, &changed) {
                    machine.freeze().sections().for_each(drop);
                }
            }
        }
    }
    assert!(restore(&sealed(written.clone(), 5, small_machine().bytes())).is_err(), "a wrong count of keys");
    assert!(restore(&sealed(written.clone(), 4, 1)).is_err(), "a wrong count of bytes");
}

/// Well-formed, and yet not a state that any log could have made.
#[test]
fn retired_members_and_boot_records_of_strangers_are_refused() {
    let machine = machine_with_retired_members();
    let written = sections(&machine);
    let with = |place: usize, kind: u16, payload: &[u8]| {
        let mut sections = written.clone();
        sections[place] = section(kind, 1, 1, payload);
        restore(&sealed(sections, machine.keys(), machine.bytes()))
    };
    let refused = |result: Result<Machine, SnapshotError>, why: &str| match result {
        Err(SnapshotError::Inconsistent(found)) => assert!(found.contains(why), "{found}"),
        other => panic!("expected it to be inconsistent, got {other:?}"),
    };
    assert!(with(5, 6, &[2, 9, 10]).is_ok());
    refused(with(5, 6, &[2, 5, 9]), "retired");
    let boots = payload_of(&written[6]);
    assert!(with(6, 7, &boots).is_ok());
    for (at, value) in [(2, b'1'), (3, 6)] {
        let mut payload = boots.clone();
        payload[at] = value;
        refused(with(6, 7, &payload), "boot record");
    }
}

#[test]
fn an_error_stays() {
    let written = sections(&small_machine());
    let mut decoder = SnapshotDecoder::new();
    let error = decoder.push(written[1].clone()).unwrap_err();
    assert_eq!(error, SnapshotError::Order { kind: 2, after: 0 });
    for section in written {
        assert_eq!(decoder.push(section).unwrap_err(), error);
    }
    assert_eq!(decoder.finish().unwrap_err(), error);
}

/// A value in the restored state must not hold on to its section.
#[test]
fn restored_values_leave_their_section() {
    let mut machine = open_machine();
    apply_one(
        &mut machine,
        Operation::Set {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"small"),
            condition: Condition::None,
            ttl_ms: None,
            return_previous: false,
        },
    );
    let written = sections(&machine);
    let restored = restore(&written).unwrap();
    assert!(written.iter().all(Bytes::is_unique));
    assert_eq!(restored.keys(), 1);
}
