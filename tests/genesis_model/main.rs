//! Genesis, explored: every order of everything that can happen to three seeds, within a number of wipes and crashes.
//!
//! The model calls the product's own `decide` and `gate_open`. Leaving out any one rule must make the checker find what
//! that rule prevents; otherwise the model would prove nothing.

mod heal;
mod model;

use model::{Genesis, Rules, STUCK, TWO_ACKNOWLEDGE, TWO_FOUND};
use stateright::{Checker, HasDiscoveries, Model};

/// Explores everything and asserts every property.
fn explore(name: &str, model: Genesis) {
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// Explores until `property` is broken, and fails if it never is.
fn must_break(name: &str, property: &'static str, model: Genesis) {
    let model = Genesis { only: Some(property), ..model };
    // Depth first comes upon a violation sooner, and no shortest one is wanted.
    let checker = model.checker().finish_when(HasDiscoveries::Any).threads(2).spawn_dfs().join();
    let found = checker.discovery(property).is_some();
    println!("{name}: broken: {found}, after {} states", checker.unique_state_count());
    assert!(found, "{name}: the checker does not find that this breaks {property:?}");
}

const NO_FAULT: Genesis = Genesis { rules: Rules::THIS_RELEASE, wipes: 0, crashes: 0, only: None };

#[test]
fn nothing_goes_wrong() {
    explore("no fault", NO_FAULT);
}

#[test]
fn one_wipe_and_one_crash_in_this_release() {
    explore("1 wipe, 1 crash", Genesis { wipes: 1, crashes: 1, ..NO_FAULT });
}

#[test]
fn one_wipe_and_one_crash_with_the_swap() {
    explore("1 wipe, 1 crash, swap", Genesis { rules: Rules::WITH_SWAP, wipes: 1, crashes: 1, ..NO_FAULT });
}

#[test]
fn two_wipes_in_this_release() {
    explore("2 wipes", Genesis { wipes: 2, ..NO_FAULT });
}

#[test]
fn two_wipes_with_the_swap() {
    explore("2 wipes, swap", Genesis { rules: Rules::WITH_SWAP, wipes: 2, ..NO_FAULT });
}

#[test]
fn without_the_promise_two_clusters_have_founders() {
    let rules = Rules { promise: false, ..Rules::THIS_RELEASE };
    must_break("no promise", TWO_FOUND, Genesis { rules, wipes: 1, ..NO_FAULT });
}

#[test]
fn without_the_gate_two_clusters_acknowledge() {
    let rules = Rules { gate: false, ..Rules::THIS_RELEASE };
    must_break("no gate", TWO_ACKNOWLEDGE, Genesis { rules, wipes: 2, ..NO_FAULT });
}

#[test]
fn without_following_seeds_are_stuck() {
    let rules = Rules { follow: false, ..Rules::THIS_RELEASE };
    must_break("no following", STUCK, Genesis { rules, wipes: 1, ..NO_FAULT });
}

#[test]
fn without_giving_up_seeds_are_stuck() {
    let rules = Rules { give_up: false, ..Rules::WITH_SWAP };
    must_break("no giving up", STUCK, Genesis { rules, wipes: 2, ..NO_FAULT });
}

#[test]
fn without_the_disk_before_the_word_two_clusters_have_founders() {
    let rules = Rules { durable_first: false, ..Rules::THIS_RELEASE };
    must_break("spoken before durable", TWO_FOUND, Genesis { rules, wipes: 1, crashes: 1, ..NO_FAULT });
}
