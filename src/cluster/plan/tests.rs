use super::*;

/// A member that answers and has everything.
fn member(slot: &str, id: u64) -> Member {
    Member {
        slot: slot.into(),
        incarnation: Uuid::from_u128(id.into()),
        answers: true,
        caught_up: true,
        holds_entry: true,
    }
}

/// Voters 10, 20, 30 ... in the slots 0, 1, 2 ...; the first leads.
fn cluster(voters: u64) -> Roster {
    let members = (0..voters).map(|n| (10 * (n + 1), member(&n.to_string(), 10 * (n + 1)))).collect();
    Roster {
        me: 10,
        open: true,
        configs: vec![(0..voters).map(|n| 10 * (n + 1)).collect()],
        members,
        max_voters: 5,
        leaving: BTreeSet::new(),
        promote: None,
        newcomers: BTreeMap::new(),
    }
}

impl Roster {
    fn learner(mut self, slot: &str, id: u64) -> Self {
        self.members.insert(id, member(slot, id));
        self
    }

    fn dead(mut self, id: u64) -> Self {
        let member = self.members.get_mut(&id).unwrap();
        (member.answers, member.caught_up) = (false, false);
        self
    }

    fn newcomer(mut self, slot: &str, raft_id: u64) -> Self {
        let newcomer = Newcomer { raft_id, slot: slot.into(), incarnation: Uuid::from_u128(raft_id.into()) };
        self.newcomers.insert(slot.into(), newcomer);
        self
    }

    fn leaving(mut self, ids: impl IntoIterator<Item = u64>) -> Self {
        self.leaving.extend(ids);
        self
    }
}

fn voters<const N: usize>(ids: [u64; N], keep_removed: bool) -> Option<Change> {
    Some(Change::Voters { ids: ids.into(), keep_removed })
}

#[track_caller]
fn waits(roster: &Roster, why: &Blocked) {
    let plan = next(roster);
    assert_eq!(plan.change, None);
    assert!(plan.blocked.contains(why), "{:?}", plan.blocked);
}

#[test]
fn a_cluster_that_is_as_it_should_be_stays() {
    for count in [1, 3, 5] {
        assert_eq!(next(&cluster(count)), Plan::default());
    }
    // A dead voter is waited for: its data may come back.
    assert_eq!(next(&cluster(3).dead(30)), Plan::default());
}

#[test]
fn the_largest_odd_number_votes() {
    let rows =
        [(0, 5, 0), (1, 5, 1), (2, 5, 1), (3, 5, 3), (4, 5, 3), (5, 5, 5), (9, 5, 5), (9, 3, 3), (9, 1, 1)];
    for (members, max, want) in rows {
        assert_eq!(voters_among(members, max), want, "{members} of at most {max}");
    }
}

#[test]
fn a_newcomer_becomes_a_learner_and_two_of_them_voters() {
    let roster = cluster(3).newcomer("3", 40);
    assert_eq!(next(&roster).change, Some(Change::Add(roster.newcomers["3"].clone())));
    assert_eq!(next(&cluster(3).learner("3", 40)).change, None, "four members: three vote");
    assert_eq!(
        next(&cluster(3).learner("3", 40).learner("4", 50)).change,
        voters([10, 20, 30, 40, 50], true)
    );
    assert_eq!(next(&cluster(3).learner("3", 40).learner("4", 50).dead(50)).change, None, "one of them lags");
    assert_eq!(next(&cluster(1).learner("1", 20)).change, None);
    assert_eq!(next(&cluster(1).learner("1", 20).learner("2", 30)).change, voters([10, 20, 30], true));
}

#[test]
fn there_are_at_most_so_many_voters() {
    assert_eq!(next(&cluster(5).learner("5", 60).learner("6", 70)).change, None);
    let roster = Roster { max_voters: 3, ..cluster(5) };
    assert_eq!(next(&roster).change, voters([10, 20, 30], true), "the highest slots go");
}

#[test]
fn a_wiped_slot_is_swapped_in_one_change_once_it_has_caught_up() {
    let roster = cluster(3).dead(20).newcomer("1", 21);
    assert_eq!(next(&roster).change, Some(Change::Add(roster.newcomers["1"].clone())));
    let roster = cluster(3).dead(20).learner("1", 21);
    assert_eq!(next(&roster).change, voters([10, 21, 30], false));
    waits(&roster.dead(21), &Blocked::Lagging("1".into()));
}

#[test]
fn a_slot_whose_incarnation_answers_is_occupied() {
    waits(&cluster(3).newcomer("1", 21), &Blocked::Occupied("1".into()));
    waits(&cluster(3).learner("1", 21), &Blocked::Occupied("1".into()));
    waits(&cluster(3).learner("3", 40).newcomer("3", 41), &Blocked::Occupied("3".into()));
    waits(&cluster(3).newcomer("0", 11), &Blocked::Occupied("0".into()));
}

#[test]
fn a_newcomer_wiped_once_more_before_it_votes_is_removed() {
    let roster = cluster(3).dead(20).learner("1", 21).dead(21).newcomer("1", 22);
    assert_eq!(next(&roster).change, Some(Change::Remove(21)));
    let mut roster = roster;
    roster.members.remove(&21);
    assert_eq!(next(&roster).change, Some(Change::Add(roster.newcomers["1"].clone())));
}

#[test]
fn a_silent_learner_is_removed_while_another_one_of_its_slot_answers() {
    let roster = cluster(3).learner("1", 21).dead(21);
    assert_eq!(next(&roster).change, Some(Change::Remove(21)), "it asked before its slot was wiped again");
    let roster = cluster(3).learner("0", 11).dead(11);
    assert_eq!(next(&roster).change, Some(Change::Remove(11)), "the leader is the other one");
    let roster = cluster(3).learner("3", 40).dead(40).learner("3", 41);
    assert_eq!(next(&roster).change, Some(Change::Remove(40)), "it was wiped and demoted");
    waits(&cluster(3).dead(20).learner("1", 21).dead(21), &Blocked::Lagging("1".into()));
    assert_eq!(next(&cluster(3).learner("3", 40).dead(40)).change, None, "its data may come back");
}

#[test]
fn no_change_leaves_voters_without_a_majority_that_answers() {
    let roster = cluster(5).dead(20).dead(30).dead(40).learner("1", 21);
    assert_eq!(next(&roster).change, voters([10, 21, 30, 40, 50], false), "three of five answer");
    let roster = cluster(5).dead(20).dead(30).dead(40).dead(50).learner("1", 21);
    waits(&roster, &Blocked::NoQuorum { answering: 2, voters: 5 });
}

#[test]
fn what_a_leader_left_in_the_middle_is_finished_first() {
    let mut roster = cluster(3).dead(20).learner("1", 21).newcomer("5", 60);
    roster.configs = vec![[10, 20, 30].into(), [10, 21, 30].into()];
    assert_eq!(next(&roster).change, voters([10, 21, 30], false), "the swapped one is out");
    let mut roster = cluster(5);
    roster.configs = vec![[10, 20, 30, 40, 50].into(), [10, 20, 30].into()];
    assert_eq!(next(&roster).change, voters([10, 20, 30], true), "demoted ones stay");
}

#[test]
fn five_to_one_at_once() {
    let roster = cluster(5).leaving([20, 30, 40, 50]);
    assert_eq!(next(&roster).change, voters([10], true));
    let mut roster = roster;
    roster.configs = vec![[10].into()];
    assert_eq!(next(&roster).change, Some(Change::Remove(20)));
    roster.members.remove(&20);
    assert_eq!(next(&roster).change, Some(Change::Remove(30)));
}

#[test]
fn a_leader_that_is_to_leave_hands_over_first() {
    let roster = Roster { me: 50, ..cluster(5).leaving([40, 50]) };
    assert_eq!(next(&roster).change, Some(Change::HandOver("0".into())));
    let roster = Roster { me: 50, ..cluster(5).dead(10).leaving([50]) };
    assert_eq!(next(&roster).change, Some(Change::HandOver("1".into())), "to one that answers");
    // The last voter makes room for a learner by itself: there is nobody to hand over to.
    let roster = cluster(1).learner("1", 20).leaving([10]);
    assert_eq!(next(&roster).change, voters([20], true));
    assert_eq!(next(&cluster(1).leaving([10])).change, None, "the last member stays");
}

#[test]
fn of_four_that_stay_three_vote_and_the_dead_go_first() {
    assert_eq!(next(&cluster(5).leaving([50])).change, voters([10, 20, 30], true));
    assert_eq!(next(&cluster(5).dead(20).leaving([50])).change, voters([10, 30, 40], true));
    assert_eq!(next(&cluster(3).dead(30).leaving([30])).change, voters([10], true));
}

#[test]
fn a_learner_leaves_without_more_ado() {
    assert_eq!(next(&cluster(3).learner("3", 40).leaving([40])).change, Some(Change::Remove(40)));
}

#[test]
fn before_the_gate_only_a_wiped_founder_is_swapped() {
    let closed = |roster: Roster| Roster { open: false, ..roster };
    let roster = closed(cluster(3).newcomer("3", 40));
    waits(&roster, &Blocked::NotOpen("3".into()));
    let roster = closed(cluster(3).dead(20).newcomer("1", 21));
    assert!(matches!(next(&roster).change, Some(Change::Add(_))));
    let roster = closed(cluster(3).dead(20).learner("1", 21));
    assert_eq!(next(&roster).change, voters([10, 21, 30], false));
    let mut roster = roster;
    roster.members.get_mut(&30).unwrap().holds_entry = false;
    waits(&roster, &Blocked::NotOpen("1".into()));
    assert_eq!(next(&closed(cluster(3).learner("3", 40).learner("4", 50))).change, None);
    assert_eq!(next(&closed(cluster(3).leaving([30]))).change, None);
}

#[test]
fn a_promoted_learner_takes_the_place_of_a_voter_that_does_not_answer() {
    let promoting = |roster: Roster| Roster { promote: Some(60), max_voters: 3, ..roster };
    let roster = promoting(cluster(3).learner("5", 60).dead(20));
    assert_eq!(next(&roster).change, voters([10, 30, 60], true));
    waits(&promoting(cluster(3).learner("5", 60)), &Blocked::NoRoom("5".into()));
    waits(&promoting(cluster(3).learner("5", 60).dead(20).dead(60)), &Blocked::Lagging("5".into()));
}

#[test]
fn every_reason_is_a_sentence() {
    let all = [
        Blocked::Occupied("1".into()),
        Blocked::NoQuorum { answering: 1, voters: 3 },
        Blocked::NotOpen("1".into()),
        Blocked::NoRoom("1".into()),
        Blocked::Lagging("1".into()),
    ];
    assert!(all.iter().all(|why| why.to_string().split(' ').count() >= 5));
}
