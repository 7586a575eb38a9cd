//! Liveness: from every state that can be reached, if nothing more goes wrong, the seeds become one open cluster.
//!
//! From the state, the seeds hear one another's present state in turn, each turn in each order and all at once, and Raft
//! does its work in between, until nothing changes. This is run for every state explored.
//!
//! # What is excused, and why
//! An end is excused in exactly these cases:
//! - *A majority of a cluster's voters is wiped while one still holds an entry of it.* That one may hold the only copy of
//!   something that was acknowledged, or that may have been, and must not forget it by itself. An operator decides, by a
//!   verb of a later release.
//! - Without the swap, which this release does not have: *a voter of a cluster was wiped after somebody was bound to it, and one
//!   that is left holds an entry.* The newcomer waits, not ready, and says so. With the swap these heal, and the model shows it.

use std::{cell::RefCell, collections::HashMap};

use crate::model::{Bind, Change, Genesis, Node, Record, SEEDS, Set, World};

/// More rounds than any healing takes; a run that does not settle within them is stuck in a circle.
const MAX_ROUNDS: usize = 50;

/// Who decides when within a round; none: all at once.
const ORDERS: [Option<[usize; SEEDS]>; 7] = [
    None,
    Some([0, 1, 2]),
    Some([0, 2, 1]),
    Some([1, 0, 2]),
    Some([1, 2, 0]),
    Some([2, 0, 1]),
    Some([2, 1, 0]),
];

/// Whether the seeds become one open cluster from here, in every order, or the end is excused.
pub(crate) fn heals(model: &Genesis, world: &World) -> bool {
    // What was heard and promised in the past plays no part from here on, so many states share one future.
    type Future = (bool, u8, [Node; SEEDS], Vec<(Set, Set, bool)>);
    thread_local!(static KNOWN: RefCell<HashMap<Future, bool>> = RefCell::default());
    let clusters = world.clusters.iter().map(|(set, cluster)| (*set, cluster.voters, cluster.open)).collect();
    let future = (model.rules.swap, model.wipes - world.wipes, world.nodes, clusters);
    // A variant of the rules is remembered by nobody: each is explored once.
    let whole = model.rules.promise && model.rules.follow && model.rules.give_up && model.rules.gate;
    if whole && let Some(known) = KNOWN.with_borrow(|known| known.get(&future).copied()) {
        return known;
    }
    let good = ORDERS.iter().all(|order| heals_in_order(model, world.clone(), *order));
    if whole {
        KNOWN.with_borrow_mut(|known| known.insert(future, good));
    }
    good
}

fn heals_in_order(model: &Genesis, mut world: World, order: Option<[usize; SEEDS]>) -> bool {
    for _ in 0..MAX_ROUNDS {
        let before = (world.nodes, world.clusters.clone());
        let frozen = world.nodes.map(|node| node.durable);
        for slot in order.unwrap_or([0, 1, 2]) {
            let records = match order {
                None => frozen,
                Some(_) => world.nodes.map(|node| node.durable),
            };
            decide(model, &mut world, slot, records);
        }
        run_raft(model, &mut world);
        if before == (world.nodes, world.clusters.clone()) {
            return is_whole(&world) || is_excused(model, &world);
        }
    }
    false
}

fn decide(model: &Genesis, world: &mut World, slot: usize, records: [Record; SEEDS]) {
    let mut heard = records.map(Some);
    heard[slot] = None;
    let node = world.nodes[slot];
    match model.change(slot, node.durable, node.data, heard) {
        Some(Change::Join(set)) if !world.others_can_swap(set, slot) => {}
        Some(change) => world.take(slot, change),
        None => {}
    }
    world.nodes[slot].spoken = world.nodes[slot].durable;
}

/// Everything that Raft does among those who are there now.
fn run_raft(model: &Genesis, world: &mut World) {
    let sets: Vec<Set> = world.clusters.keys().copied().collect();
    for set in sets {
        let voters = world.clusters[&set].voters;
        let there: Vec<usize> = (0..SEEDS)
            .filter(|slot| {
                let record = world.nodes[*slot].durable;
                record.bind.cluster() == Some(set) && record.incarnation == voters[*slot]
            })
            .collect();
        if there.len() * 2 <= SEEDS {
            continue;
        }
        for slot in &there {
            world.append(*slot);
        }
        for slot in 0..SEEDS {
            if world.nodes[slot].durable.bind == Bind::Joined(set) && world.others_can_swap(set, slot) {
                let incarnation = world.nodes[slot].durable.incarnation;
                world.clusters.entry(set).and_modify(|cluster| cluster.voters[slot] = incarnation);
            }
        }
        if world.may_open(&model.rules, set) {
            world.clusters.entry(set).and_modify(|cluster| cluster.open = true);
        }
    }
}

/// One open cluster with every slot a voter that holds its data.
fn is_whole(world: &World) -> bool {
    world.clusters.iter().any(|(set, cluster)| cluster.open && world.held(*set) == SEEDS)
}

/// See the module's head.
fn is_excused(model: &Genesis, world: &World) -> bool {
    let wipes = usize::from(model.wipes - world.wipes);
    world.clusters.iter().any(|(set, cluster)| {
        let gone =
            (0..SEEDS).filter(|slot| world.nodes[*slot].durable.incarnation != cluster.voters[*slot]).count();
        // Who is gone must be gone by a wipe: nobody may give up a cluster that somebody holds.
        let wiped = if gone <= wipes { gone } else { 0 };
        let quorum_lost = wiped * 2 > SEEDS;
        world.held(*set) > 0 && (quorum_lost || (!model.rules.swap && wiped > 0))
    })
}
