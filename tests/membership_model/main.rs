//! The membership, explored: join, replace, promote and retire, in every order, within a number of wipes and elections.
//!
//! The models call the product's own `plan::next`, `decide`, `gate_open`, `Expectation` and `Heard`. Leaving out any one rule must make the
//! checker find what that rule prevents; otherwise the models would prove nothing. A test named `finding_...` expects a loss: it says what
//! no rule covers, and fails once one does.
//!
//! `model` and `raft` are the membership in motion, `heal` is that it comes to rest, `boots` is copies of a directory, `survivors` is genesis
//! beside a cluster that is there.

mod boots;
mod heal;
mod model;
mod raft;
mod survivors;

use boots::{Boots, When};
use model::{FORGOTTEN, LOST_WRITE, NO_QUORUM, OUSTED, Rules, STUCK, Scenario, Wanted, World};
use raft::{Payload, Set, id_of, ids, retired_in, slot_of};
use stateright::{Checker, HasDiscoveries, Model};
use survivors::Survivors;

/// Explores everything and asserts every property.
fn explore<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: std::hash::Hash + Clone + Send + Sync + PartialEq + std::fmt::Debug + 'static,
    M::Action: Clone + PartialEq + std::fmt::Debug,
{
    let start = tokio::time::Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed()
    );
    checker.assert_properties();
}

/// Explores until `property` is broken, and fails if it never is.
fn must_break(name: &str, property: &'static str, scenario: Scenario) {
    must_find(name, property, Scenario { only: Some(property), ..scenario });
}

fn must_find<M>(name: &str, property: &'static str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: std::hash::Hash + Clone + Send + Sync + PartialEq + std::fmt::Debug + 'static,
    M::Action: Clone + PartialEq + std::fmt::Debug,
{
    let checker =
        model.checker().finish_when(HasDiscoveries::AnyOf([property].into())).threads(2).spawn_bfs().join();
    let found = checker.discovery(property);
    println!("{name}: broken: {}, after {} states", found.is_some(), checker.unique_state_count());
    let path =
        found.unwrap_or_else(|| panic!("{name}: the checker does not find that this breaks {property:?}"));
    path.into_actions().iter().for_each(|action| println!("    {action:?}"));
}

/// Three founders of an open cluster, slot 0 leads, nothing goes wrong.
const THREE: Scenario = Scenario {
    rules: Rules::ALL,
    founders: 3,
    joiners: 0,
    open: true,
    max_voters: 5,
    leaving: &[],
    promote: None,
    wipes: 0,
    wiped: &[0, 1, 2],
    returns: false,
    late_asks: false,
    terms: 2,
    writes: 0,
    log: 9,
    wanted: &[],
    only: None,
};

fn settled_voters(world: &World) -> Set {
    let membership = world.cluster.committed_membership();
    if membership.joint == 0 { membership.voters } else { 0 }
}

const ACKNOWLEDGED: Wanted = ("a write is acknowledged", |_, world| {
    world.cluster.committed.iter().any(|entry| entry.payload == Payload::Write)
});
const SWAPPED: Wanted =
    ("a wiped slot is swapped", |_, world| ids(settled_voters(world)).any(|id| id != id_of(slot_of(id), 0)));
const SWAPPED_AFTER_A_WRITE: Wanted = ("a wiped slot is swapped after a write", |scenario, world| {
    let cluster = &world.cluster;
    let write = cluster.committed.iter().position(|entry| entry.payload == Payload::Write);
    write.is_some_and(|at| retired_in(&cluster.committed[..at]) == 0) && SWAPPED.1(scenario, world)
});
const LEFT_JOINT: Wanted = ("a leader finds a joint membership of the one before it", |_, world| {
    world.cluster.nodes.values().filter(|node| node.leads()).any(|node| {
        let last = node.log.iter().rev().find(|entry| matches!(entry.payload, Payload::Members(_)));
        last.is_some_and(|entry| {
            entry.term < node.term && matches!(entry.payload, Payload::Members(m) if m.joint != 0)
        })
    })
});

const TWICE: Wanted =
    ("a slot wiped twice votes", |_, world| ids(settled_voters(world)).any(|id| id > id_of(slot_of(id), 1)));
const BOTH: Wanted = ("two slots wiped one after the other vote", |_, world| {
    ids(settled_voters(world)).filter(|id| *id != id_of(slot_of(*id), 0)).count() >= 2
});
const OLD_DIRECTORY: Wanted = ("a directory is there whose Raft id is retired", |_, world| {
    world.cluster.there() & retired_in(&world.cluster.committed) != 0
});
const RETIRED_UNBOUND: Wanted = ("a newcomer is retired before it is bound", |_, world| {
    let retired = retired_in(&world.cluster.committed) & world.cluster.there();
    ids(retired).any(|id| !world.cluster.node(id).bound)
});
const GREW: Wanted = ("three vote", |_, world| settled_voters(world).count_ones() == 3);
const FIVE: Wanted = ("five vote", |_, world| settled_voters(world).count_ones() == 5);
const SHRANK: Wanted = ("one votes and is the only member", |_, world| {
    settled_voters(world).count_ones() == 1 && world.cluster.committed_membership().nodes.count_ones() == 1
});
const PROMOTED: Wanted = ("the promoted one votes", |scenario, world| {
    ids(settled_voters(world)).any(|id| Some(slot_of(id)) == scenario.promote)
});
const OPENED: Wanted = ("the cluster opens", |_, world| {
    world.cluster.committed.iter().any(|entry| entry.payload == Payload::Open)
});
const SWAPPED_BEFORE_OPEN: Wanted =
    ("a wiped founder is swapped before the gate opens", |scenario, world| {
        SWAPPED.1(scenario, world) && !OPENED.1(scenario, world)
    });
const SOMEBODY_GAVE_UP: Wanted = ("a founder gives up", |scenario, world| {
    world.cluster.nodes.values().all(|node| !node.bound) && scenario.wipes > 0
});

#[test]
fn a_wiped_seed() {
    let wanted = &[ACKNOWLEDGED, SWAPPED, SWAPPED_AFTER_A_WRITE, LEFT_JOINT];
    explore("a wiped seed", Scenario { wipes: 1, writes: 1, wanted, ..THREE });
}

#[test]
fn a_slot_wiped_twice() {
    let wanted = &[SWAPPED, TWICE];
    explore("a slot wiped twice", Scenario { wipes: 2, wiped: &[1], log: 10, wanted, ..THREE });
}

#[test]
fn two_slots_wiped() {
    let wanted = &[SWAPPED, BOTH];
    explore("two slots wiped", Scenario { wipes: 2, wiped: &[1, 2], log: 10, wanted, ..THREE });
}

#[test]
fn a_leader_dies_in_the_middle_of_a_change() {
    let wanted = &[SWAPPED, LEFT_JOINT];
    explore(
        "three leaders",
        Scenario { wipes: 1, wiped: &[1], terms: 3, writes: 1, log: 9, wanted, ..THREE },
    );
}

#[test]
fn an_old_directory_comes_back() {
    let wanted = &[SWAPPED, OLD_DIRECTORY];
    explore(
        "an old directory",
        Scenario { wipes: 1, log: 8, wiped: &[0, 1], returns: true, wanted, ..THREE },
    );
}

#[test]
fn an_ask_is_heard_long_after() {
    let wanted = &[SWAPPED, RETIRED_UNBOUND];
    explore(
        "late asks",
        Scenario { wipes: 2, wiped: &[1], late_asks: true, terms: 2, log: 10, wanted, ..THREE },
    );
}

#[test]
fn one_becomes_three() {
    let wanted = &[GREW];
    let scenario =
        Scenario { founders: 1, joiners: 2, wipes: 1, wiped: &[0, 1], writes: 1, log: 10, wanted, ..THREE };
    explore("one becomes three", scenario);
}

#[test]
fn three_become_five() {
    let wanted = &[FIVE];
    let scenario = Scenario { joiners: 2, wipes: 1, wiped: &[3], terms: 1, log: 9, wanted, ..THREE };
    explore("three become five", scenario);
}

#[test]
fn three_become_one() {
    let wanted = &[SHRANK];
    explore(
        "three become one",
        Scenario { leaving: &[1, 2], wipes: 1, wiped: &[1], log: 10, wanted, ..THREE },
    );
}

#[test]
fn a_learner_votes_in_the_place_of_a_lost_voter() {
    let wanted = &[PROMOTED];
    let scenario = Scenario {
        joiners: 1,
        promote: Some(3),
        terms: 1,
        max_voters: 3,
        wipes: 1,
        wiped: &[2],
        log: 9,
        wanted,
        ..THREE
    };
    explore("promoted", scenario);
}

#[test]
fn before_the_gate() {
    let wanted = &[OPENED, SWAPPED, SWAPPED_BEFORE_OPEN, SOMEBODY_GAVE_UP];
    explore("before the gate", Scenario { open: false, wipes: 2, terms: 1, wanted, ..THREE });
}

#[test]
fn before_the_gate_with_two_leaders() {
    let wanted = &[OPENED, SWAPPED, SWAPPED_BEFORE_OPEN];
    let scenario = Scenario { open: false, wipes: 1, wiped: &[0], log: 7, wanted, ..THREE };
    explore("before the gate, two leaders", scenario);
}

#[test]
fn a_wiped_slot_under_its_old_id_loses_a_write() {
    let rules = Rules { new_id: false, ..Rules::ALL };
    must_break("old id", LOST_WRITE, Scenario { rules, wipes: 1, writes: 1, ..THREE });
}

#[test]
fn swapping_who_answers_never_ends() {
    let rules = Rules { occupied: false, ..Rules::ALL };
    let scenario = Scenario { rules, wipes: 1, returns: true, ..THREE };
    must_break("who answers is swapped", OUSTED, scenario);
    must_break("who answers is swapped, for ever", STUCK, scenario);
}

#[test]
fn without_the_quorum_check_a_change_is_stuck() {
    let rules = Rules { quorum: false, ..Rules::ALL };
    let scenario =
        Scenario { rules, founders: 5, leaving: &[1, 2], wipes: 2, wiped: &[3, 4], terms: 1, ..THREE };
    must_break("no quorum check", NO_QUORUM, scenario);
    must_break("no quorum check", STUCK, scenario);
}

#[test]
fn without_finishing_a_change_is_stuck() {
    let rules = Rules { finish: false, ..Rules::ALL };
    must_break("no finishing", STUCK, Scenario { rules, wipes: 1, ..THREE });
}

#[test]
fn who_is_retired_would_come_back_by_a_late_ask() {
    let rules = Rules { forget_retired: false, ..Rules::ALL };
    must_break(
        "asks of the retired",
        FORGOTTEN,
        Scenario { rules, wipes: 2, wiped: &[1], late_asks: true, ..THREE },
    );
}

#[test]
fn a_newcomer_that_is_retired_and_unbound_would_ask_for_ever() {
    let rules = Rules { renew_retired: false, ..Rules::ALL };
    must_break(
        "retired and unbound",
        STUCK,
        Scenario { rules, wipes: 2, wiped: &[1], late_asks: true, ..THREE },
    );
}

/// The original starts once more; the copy runs once.
const COPIED: Boots = Boots { check: true, when: When::AllApplied, restarts: [0, 0, 1, 0], terms: 2 };

#[test]
fn a_copy_from_before_a_start_that_all_others_know_does_no_harm() {
    explore("copied, all heard", Boots { when: When::AllHeard, ..COPIED });
}

#[test]
fn nor_after_restarts_if_all_others_applied_its_record() {
    explore("copied, all applied", Boots { restarts: [1, 1, 1, 0], ..COPIED });
}

#[test]
fn without_the_check_of_starts_a_copy_loses_a_write() {
    must_find("no check", boots::LOST, Boots { check: false, ..COPIED });
}

#[test]
fn finding_a_record_that_one_of_the_others_lacks_does_not_help() {
    must_find("committed, and not applied by all", boots::LOST, Boots { when: When::Committed, ..COPIED });
}

#[test]
fn finding_what_was_only_heard_is_forgotten_by_a_restart() {
    let boots = Boots { when: When::AllHeard, restarts: [1, 1, 1, 0], ..COPIED };
    must_find("heard, and restarted", boots::LOST, boots);
}

#[test]
fn finding_two_copies_started_before_anybody_heard_one_may_both_vote() {
    must_find("started since, and nobody knows", boots::LOST, Boots { when: When::StartedSince, ..COPIED });
}

#[test]
fn finding_a_copy_of_the_running_start_counts_as_the_next_start() {
    must_find("of the running start", boots::LOST, Boots { when: When::AnyTime, restarts: [0; 4], ..COPIED });
}

/// A copy that heard that it is one marks its directory and never starts again; here it is killed before it heard.
#[test]
fn finding_a_copy_killed_before_it_is_told_gets_in_by_starting_again() {
    must_find("started twice", boots::LOST, Boots { restarts: [0, 0, 1, 1], ..COPIED });
}

#[test]
fn wiped_seeds_beside_survivors() {
    explore("three seeds", Survivors { seeds: 3, claims: true, wipes: 3 });
}

#[test]
fn a_wiped_lone_seed_beside_survivors() {
    explore("one seed", Survivors { seeds: 1, claims: true, wipes: 3 });
}

#[test]
fn finding_without_a_claim_wiped_seeds_that_hear_no_survivor_found_another_cluster() {
    for (seeds, wipes) in [(3, 3), (1, 1)] {
        must_find("no claim", survivors::TWO_ACKNOWLEDGE, Survivors { seeds, claims: false, wipes });
    }
}
