use std::fs;

use proptest::prelude::*;

use super::*;

const INCARNATION: Uuid = Uuid::from_u128(0x77);

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        cluster: ClusterId([3; 16]),
        incarnation: INCARNATION,
        group: 0,
        last: Some(Position { term: 2, index }),
        membership_at: Some(Position { term: 1, index: 1 }),
        membership: Bytes::from_static(b"the members"),
    }
}

fn open(dir: &Path) -> Snapshots {
    Snapshots::open(dir, INCARNATION, 0).unwrap()
}

fn write(snapshots: &Snapshots, index: u64, sections: &[Vec<u8>]) -> SnapshotFile {
    let mut writer = snapshots.begin(meta(index)).unwrap();
    sections.iter().for_each(|section| writer.write_section(section).unwrap());
    writer.finish().unwrap()
}

fn read(file: &SnapshotFile) -> Result<Vec<Vec<u8>>, StoreError> {
    file.sections().map(|section| section.map(|s| s.to_vec())).collect()
}

fn sections() -> Vec<Vec<u8>> {
    let noise = |n: usize| (0..n).map(|i| (i * i / 7 + i * 31) as u8).collect::<Vec<u8>>();
    vec![vec![], b"small".to_vec(), noise(700_000), noise(700_000), vec![9; MAX_SECTION_BYTES], noise(10)]
}

#[test]
fn a_snapshot_comes_back_after_a_restart_and_the_older_ones_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    assert!(snapshots.newest().unwrap().is_none());
    write(&snapshots, 9, &[b"old".to_vec()]);
    let file = write(&snapshots, 10, &sections());
    assert_eq!(file.meta(), &meta(10));
    assert_eq!(file.end().blocks, 4);
    let snapshots = open(dir.path());
    let newest = snapshots.newest().unwrap().unwrap();
    assert_eq!((newest.meta(), newest.end()), (&meta(10), file.end()));
    assert_eq!(newest.size(), fs::metadata(newest.path()).unwrap().len());
    assert_eq!(read(&newest).unwrap(), sections());
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 1);
}

#[test]
fn an_empty_snapshot_and_one_of_nothing_are_possible() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let nothing = SnapshotMeta { last: None, membership_at: None, membership: Bytes::new(), ..meta(0) };
    let file = snapshots.begin(nothing.clone()).unwrap().finish().unwrap();
    assert_eq!((file.meta(), read(&file).unwrap()), (&nothing, vec![]));
}

#[test]
fn what_is_not_finished_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let list = || fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    let mut writer = snapshots.begin(meta(1)).unwrap();
    writer.write_section(b"x").unwrap();
    assert_eq!(list(), 1);
    drop(writer);
    assert_eq!(list(), 0);
    // A crash leaves the temporary file; the next start removes it.
    fs::write(dir.path().join("snapshots/00000000-01-01.snap.3.tmp"), "half").unwrap();
    assert!(open(dir.path()).newest().unwrap().is_none());
    assert_eq!(list(), 0);
}

#[test]
fn a_reader_goes_on_when_a_newer_snapshot_replaces_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let old = write(&snapshots, 1, &sections());
    let mut reading = old.sections();
    reading.next().unwrap().unwrap();
    write(&snapshots, 2, &[]);
    assert!(!old.path().exists());
    assert_eq!(reading.count(), sections().len() - 1);
    assert_eq!(read(&old).unwrap(), sections());
}

#[test]
fn blocks_travel_to_another_node_and_are_verified() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = write(&open(from.path()), 5, &sections());
    let other = Uuid::from_u128(0x99);
    let receiver = Snapshots::open(to.path(), other, 0).unwrap();
    let begin = || receiver.begin(SnapshotMeta { incarnation: other, ..meta(5) }).unwrap();
    let blocks: Vec<Bytes> = sent.raw_blocks().collect::<Result<_, _>>().unwrap();
    assert!(blocks.iter().all(|block| block.len() <= MAX_BLOCK_BYTES));

    let mut writer = begin();
    blocks.iter().for_each(|block| drop(writer.write_raw_block(block.clone()).unwrap()));
    let received = writer.finish_received(sent.end()).unwrap();
    assert_eq!(read(&received).unwrap(), sections());
    assert_eq!(received.end(), sent.end());

    // One missing, or in another order.
    let mut writer = begin();
    blocks[1..].iter().for_each(|block| drop(writer.write_raw_block(block.clone()).unwrap()));
    assert!(matches!(writer.finish_received(sent.end()), Err(StoreError::Damaged { .. })));
    let mut writer = begin();
    blocks.iter().rev().for_each(|block| drop(writer.write_raw_block(block.clone()).unwrap()));
    assert!(matches!(writer.finish_received(sent.end()), Err(StoreError::Damaged { .. })));

    // Damaged at any byte, cut, or far too long.
    let small = format::encode_block(b"\0\0\0\x05hello");
    for at in 0..small.len() {
        let mut damaged = small.clone();
        damaged[at] ^= 8;
        assert!(begin().write_raw_block(damaged.into()).is_err(), "byte {at}");
        assert!(begin().write_raw_block(small[..at].to_vec().into()).is_err(), "cut at {at}");
    }
    assert!(begin().write_raw_block(vec![0; MAX_BLOCK_BYTES + 1].into()).is_err());
    assert!(begin().write_raw_block(vec![0xFF; 100].into()).is_err());
}

#[test]
fn damage_of_the_newest_is_an_error_at_any_byte_and_any_length() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let file = write(&snapshots, 5, &[b"hello".to_vec(), b"larder".to_vec()]);
    let whole = fs::read(file.path()).unwrap();
    let look = |bytes: &[u8]| {
        fs::write(file.path(), bytes).unwrap();
        snapshots.newest().and_then(|newest| read(&newest.expect("never none")))
    };
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 2;
        assert!(look(&damaged).is_err(), "byte {at}");
        assert!(look(&whole[..at]).is_err(), "cut at {at}");
    }
    assert!(look(&[&whole[..], b"more"].concat()).is_err());
    assert!(look(&whole).is_ok());
    let mut newer = whole.clone();
    newer[11] = 2;
    assert!(matches!(look(&newer), Err(StoreError::NewerFormat { found: 2, .. })));
}

#[test]
fn another_incarnation_and_too_large_parts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let other = SnapshotMeta { incarnation: Uuid::from_u128(1), ..meta(1) };
    assert!(matches!(snapshots.begin(other), Err(StoreError::OtherIncarnation { .. })));
    let large = SnapshotMeta { membership: vec![0; MAX_MEMBERSHIP_BYTES + 1].into(), ..meta(1) };
    assert!(matches!(snapshots.begin(large), Err(StoreError::TooLarge(_))));
    let mut writer = snapshots.begin(meta(1)).unwrap();
    assert!(matches!(writer.write_section(&vec![0; MAX_SECTION_BYTES + 1]), Err(StoreError::TooLarge(_))));
    writer.finish().unwrap();
    let moved = Snapshots::open(dir.path(), Uuid::from_u128(1), 0).unwrap();
    assert!(matches!(moved.newest(), Err(StoreError::OtherIncarnation { .. })));
}

#[test]
fn the_golden_file_of_format_1_still_reads() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let golden = include_bytes!("golden-v1.snap");
    let sections = [b"hello".to_vec(), vec![], b"larder larder larder".to_vec()];
    let written = write(&snapshots, 0x0102, &sections);
    let header = format::encode_header(&meta(0x0102));
    assert_eq!(golden[..header.len()], header);
    fs::write(written.path(), golden).unwrap();
    let newest = snapshots.newest().unwrap().unwrap();
    assert_eq!(newest.meta(), &meta(0x0102));
    assert_eq!(read(&newest).unwrap(), sections);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_never_a_block_nor_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), plausible: bool) {
        if plausible && bytes.len() > 12 {
            let length = (bytes.len() - 12) as u32;
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..]);
            bytes[8..12].copy_from_slice(&checksum.to_be_bytes());
        }
        let _ = format::decode_block(&bytes);
    }

    #[test]
    fn any_sections_come_back(sections in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40)) {
        let dir = tempfile::tempdir().unwrap();
        let file = write(&open(dir.path()), 3, &sections);
        prop_assert_eq!(read(&file).unwrap(), sections);
    }
}

#[test]
fn after_closing_nothing_turns_up_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path());
    let old = write(&snapshots, 9, &[b"old".to_vec()]);
    let under_way = snapshots.clone().begin(meta(10)).unwrap();
    snapshots.close();
    let error = under_way.finish().unwrap_err();
    assert!(error.to_string().contains("given up"), "{error}");
    assert_eq!(open(dir.path()).newest().unwrap().unwrap().meta(), old.meta());
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 1);
}
