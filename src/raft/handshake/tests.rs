use super::*;

const CLUSTER: ClusterId = ClusterId([1; 16]);
/// An incarnation that was a member once.
const RETIRED: u128 = 201;

fn identity(slot: &str, incarnation: u128, boot_counter: u64, nonce: u64) -> IdentityRef {
    let incarnation = Uuid::from_u128(incarnation);
    IdentityRef { slot: slot.into(), incarnation, raft_id: raft_id(incarnation), boot_counter, nonce }
}

fn expectation() -> Expectation {
    Expectation { cluster: Some(CLUSTER), group: 0, me: identity("0", 100, 5, 55) }
}

/// A call that breaks no rule: from slot 1 to me.
fn header() -> Header {
    Header {
        cluster: Some(CLUSTER),
        group: 0,
        from: identity("1", 200, 7, 77),
        to: raft_id(Uuid::from_u128(100)),
        feature_level: 1,
        wall_clock_ms: 1_700_000_000_000,
        memory_limit_bytes: 1 << 30,
        client_address: "larder-1:7400".into(),
    }
}

fn members(id: u64) -> Standing<'static> {
    let is = |incarnation| raft_id(Uuid::from_u128(incarnation)) == id;
    if is(RETIRED) {
        return Standing::Retired;
    }
    let slots = [(100, "0"), (200, "1"), (300, "2")];
    slots.iter().find(|(i, _)| is(*i)).map_or(Standing::Unknown, |(_, slot)| Standing::Member(slot))
}

fn reason(expectation: &Expectation, header: &Header) -> &'static str {
    expectation.check(header, members, &Heard::new()).map_or_else(|refusal| refusal.reason(), |()| "OK")
}

#[test]
fn each_rule_has_its_reason() {
    type Row = (&'static str, fn(&mut Header));
    let rows: [Row; 11] = [
        ("OK", |_| {}),
        ("CLUSTER_MISMATCH", |h| h.cluster = Some(ClusterId([2; 16]))),
        ("CLUSTER_MISMATCH", |h| h.cluster = None),
        ("GROUP_MISMATCH", |h| h.group = 1),
        ("WRONG_ADDRESSEE", |h| h.to = 99),
        ("WRONG_ADDRESSEE", |h| h.to = 0),
        ("FORGED_RAFT_ID", |h| h.from.raft_id += 1),
        ("RETIRED", |h| h.from = identity("1", RETIRED, 1, 1)),
        ("OK", |h| h.from = identity("7", 202, 1, 1)),
        ("SLOT_MISMATCH", |h| h.from.slot = "2".into()),
        ("OWN_CALL", |h| h.from = identity("0", 100, 5, 55)),
    ];
    for (want, change) in rows {
        let mut header = header();
        change(&mut header);
        assert_eq!(reason(&expectation(), &header), want, "{header:?}");
    }
    let unbound = Expectation { cluster: None, ..expectation() };
    assert_eq!(reason(&unbound, &header()), "NOT_BOUND");
}

#[test]
fn a_later_start_shuts_out_the_earlier_one() {
    let heard = Heard::new();
    let me = expectation();
    let call = |boot_counter, nonce| {
        let from = identity("1", 200, boot_counter, nonce);
        me.check(&Header { from, ..header() }, members, &heard).map_err(|refusal| refusal.reason())
    };
    assert_eq!(call(7, 77), Ok(()));
    assert_eq!(call(7, 77), Ok(()), "the same start connects again");
    assert_eq!(call(7, 78), Err("CLONED"));
    assert_eq!(call(6, 66), Err("STALE_BOOT"));
    assert_eq!(call(8, 88), Ok(()));
    assert_eq!(call(7, 77), Err("STALE_BOOT"));
}

#[test]
fn a_start_on_record_counts_as_heard() {
    let heard = Heard::new();
    let from = header().from;
    heard.record(from.raft_id, 9, 99);
    heard.record(from.raft_id, 8, 88);
    assert_eq!(heard.last(from.raft_id), Some((9, 99)));
    let refusal = expectation().check(&header(), members, &heard).unwrap_err();
    assert_eq!(refusal, Refusal::StaleBoot { slot: "1".into(), boot_counter: 7, last_heard: 9 });
    assert!(refusal.to_string().contains("empty its data directory"), "{refusal}");
}

#[test]
fn copies_of_my_own_directory_are_refused() {
    for (boot_counter, want) in [(4, "STALE_BOOT"), (5, "CLONED"), (6, "CLONED")] {
        let header = Header { from: identity("0", 100, boot_counter, 1), ..header() };
        assert_eq!(reason(&expectation(), &header), want, "start {boot_counter}");
    }
}

#[test]
fn nothing_is_remembered_of_a_refused_call() {
    let heard = Heard::new();
    let header = Header { to: 99, ..header() };
    expectation().check(&header, members, &heard).unwrap_err();
    assert_eq!(heard.last(header.from.raft_id), None);
}

#[test]
fn what_is_remembered_is_bounded_by_the_members() {
    let heard = Heard::new();
    for stranger in 0..2 * MAX_REMEMBERED as u64 {
        let from = identity("9", u128::from(stranger) + 1000, 1, 1);
        heard.admit(&from, |id| id % 1000 == 0).unwrap();
    }
    assert!(heard.starts.lock().unwrap().len() <= MAX_REMEMBERED);
}

#[test]
fn hello_is_answered_to_strangers_and_remembers_nobody() {
    let heard = Heard::new();
    let unbound = Expectation { cluster: None, ..expectation() };
    let stranger = Header { cluster: None, from: identity("1", 999, 1, 1), to: 0, ..header() };
    for me in [&unbound, &expectation()] {
        assert_eq!(me.check_hello(&stranger, &heard), Ok(()));
        assert_eq!(heard.last(stranger.from.raft_id), None);
    }
    let forged = Header { from: IdentityRef { raft_id: 3, ..stranger.from.clone() }, ..stranger.clone() };
    assert_eq!(unbound.check_hello(&forged, &heard).unwrap_err().reason(), "FORGED_RAFT_ID");
    let loops = Header { from: unbound.me.clone(), ..stranger.clone() };
    assert_eq!(unbound.check_hello(&loops, &heard).unwrap_err().reason(), "OWN_CALL");
    heard.record(stranger.from.raft_id, 2, 2);
    assert_eq!(unbound.check_hello(&stranger, &heard).unwrap_err().reason(), "STALE_BOOT");
}

#[test]
fn an_answer_must_come_from_the_node_that_was_called() {
    let me = expectation();
    let answer = Header { to: me.me.raft_id, ..header() };
    assert_eq!(me.check_answer(&answer, answer.from.raft_id), Ok(()));
    assert_eq!(me.check_answer(&answer, 12).unwrap_err().reason(), "WRONG_ADDRESSEE");
    let foreign = Header { cluster: Some(ClusterId([9; 16])), ..answer };
    assert_eq!(me.check_answer(&foreign, foreign.from.raft_id).unwrap_err().reason(), "CLUSTER_MISMATCH");
    assert_eq!(me.check_answer(&foreign, 0), Ok(()), "Hello may be answered by anybody");
}

#[test]
fn headers_survive_the_wire() {
    for cluster in [Some(CLUSTER), None] {
        let header = Header { cluster, ..header() };
        assert_eq!(Header::try_from(wire::PeerHeader::from(&header)), Ok(header));
    }
}

#[test]
fn no_header_from_the_wire_is_taken_with_a_wrong_length() {
    let rows: [fn(&mut wire::PeerHeader); 9] = [
        |h| h.cluster_id = vec![1; 15].into(),
        |h| h.cluster_id = vec![1; 17].into(),
        |h| h.from = None,
        |h| h.from.as_mut().unwrap().incarnation = vec![].into(),
        |h| h.from.as_mut().unwrap().incarnation = vec![0; 17].into(),
        |h| h.from.as_mut().unwrap().slot = String::new(),
        |h| h.from.as_mut().unwrap().slot = "a".repeat(MAX_SLOT_BYTES + 1),
        |h| h.from.as_mut().unwrap().slot = "no\nlines".into(),
        |h| h.client_address = "a".repeat(MAX_ADDRESS_BYTES + 1),
    ];
    for change in rows {
        let mut header = wire::PeerHeader::from(&header());
        change(&mut header);
        let refusal = Header::try_from(header).unwrap_err();
        assert_eq!(refusal.reason(), "MALFORMED_HEADER", "{refusal}");
    }
}

#[test]
fn the_list_of_reasons_is_whole() {
    let slot = || "1".to_string();
    let all = [
        Refusal::Malformed("x"),
        Refusal::NotBound,
        Refusal::ClusterMismatch { ours: CLUSTER, theirs: None },
        Refusal::GroupMismatch { ours: 0, theirs: 1 },
        Refusal::WrongAddressee { ours: 1, meant: 2 },
        Refusal::ForgedRaftId { slot: slot(), claimed: 1 },
        Refusal::OwnCall,
        Refusal::Retired { slot: slot(), raft_id: 1 },
        Refusal::SlotMismatch { known: slot(), claimed: slot() },
        Refusal::StaleBoot { slot: slot(), boot_counter: 1, last_heard: 2 },
        Refusal::Cloned { slot: slot(), boot_counter: 1 },
    ];
    assert_eq!(all.map(|refusal| refusal.reason()), Refusal::REASONS);
}

#[test]
fn a_newcomer_names_no_cluster_and_means_this_very_node() {
    let newcomer = Header { cluster: None, from: identity("7", 500, 1, 1), ..header() };
    assert_eq!(expectation().check_newcomer(&newcomer), Ok(()));
    let reason = |header: &Header| expectation().check_newcomer(header).unwrap_err().reason();
    assert_eq!(reason(&Header { cluster: Some(CLUSTER), ..newcomer.clone() }), "CLUSTER_MISMATCH");
    assert_eq!(reason(&Header { to: 9, ..newcomer.clone() }), "WRONG_ADDRESSEE");
    assert_eq!(reason(&Header { from: identity("0", 100, 4, 1), ..newcomer }), "STALE_BOOT");
}

#[test]
fn an_answer_comes_from_the_incarnation_that_was_meant_and_from_its_latest_start() {
    let heard = Heard::new();
    let id = raft_id(Uuid::from_u128(200));
    let answer = |boot, nonce| heard.answered(id, &identity("1", 200, boot, nonce)).map_err(|r| r.reason());
    assert_eq!(answer(3, 33), Ok(()));
    assert_eq!(answer(3, 34), Err("CLONED"));
    assert_eq!(answer(2, 22), Err("STALE_BOOT"));
    assert_eq!(answer(4, 44), Ok(()));
    let stranger = heard.answered(id, &identity("1", 201, 9, 9)).unwrap_err();
    assert_eq!(stranger.reason(), "WRONG_ADDRESSEE");
}
