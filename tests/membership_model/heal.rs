//! Liveness: from every state that can be reached, if nothing more goes wrong and every pod is up, there is one leader, every
//! slot's present incarnation is a member, and the largest odd number of them votes.
//!
//! In each slot one directory is up, whichever of those that are not destroyed: so a disk that came back after its replacement is
//! among them. From there Raft and the leader's plan do their work, with each node in turn as the first to be elected.
//! Where two processes may run for one slot (`Scenario::returns`), that they all run is looked at, too: then it must come to rest.
//!
//! # What is excused, and why
//! - *A membership that may be in force lost the majority of its voters, by wipes after it was written.* Nothing can be committed
//!   without them, and the data of what is left must not be thrown away by itself. An operator decides (`larder recover`).

use std::{cell::RefCell, collections::HashMap};

use crate::{
    model::{Knowledge, Planned, STUCK, Scenario, World},
    raft::{Cluster, Entry, Id, Membership, PER_SLOT, Payload, SLOTS, Set, bit, has, ids, set, slot_of},
};
use larder::cluster::plan::voters_among;

/// More rounds than any healing takes; a run that does not settle within them is stuck in a circle.
const MAX_ROUNDS: usize = 60;

pub(crate) fn heals(scenario: &Scenario, world: &World) -> bool {
    let cluster = &world.cluster;
    // What is found at once is another property's.
    if cluster.flaw.is_some() {
        return scenario.only != Some(STUCK);
    }
    choices(cluster).into_iter().all(|up| heals_with(scenario, cluster, up, true))
        && (!scenario.returns || heals_with(scenario, cluster, cluster.there(), false))
}

/// One directory in each slot.
fn choices(cluster: &Cluster) -> Vec<Set> {
    (0..SLOTS).fold(vec![0], |chosen, slot| {
        let here: Vec<Id> = ids(cluster.there()).filter(|id| slot_of(*id) == slot).collect();
        if here.is_empty() {
            return chosen;
        }
        chosen.iter().flat_map(|set| here.iter().map(move |id| set | bit(*id))).collect()
    })
}

fn heals_with(scenario: &Scenario, cluster: &Cluster, up: Set, one_per_slot: bool) -> bool {
    let mut start = cluster.clone();
    start.nodes.retain(|id, _| has(up, *id));
    // Who led, and what it thinks that others acknowledged, plays no part any more.
    start.nodes.values_mut().for_each(|node| node.matched = None);
    thread_local!(static KNOWN: RefCell<HashMap<(Cluster, bool), bool>> = RefCell::default());
    let future = (start, one_per_slot);
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&future).copied()) {
        return known;
    }
    let good = is_excused(&future.0)
        || ids(up).all(|first| heals_from(scenario, future.0.clone(), first, one_per_slot));
    KNOWN.with_borrow_mut(|known| known.insert(future, good));
    good
}

/// See the module's head.
fn is_excused(cluster: &Cluster) -> bool {
    let up = cluster.there();
    let committed = cluster.committed_membership();
    let under_way = cluster.nodes.values().filter(|node| node.log.starts_with(&cluster.committed));
    let later =
        under_way.flat_map(|node| &node.log[cluster.committed.len()..]).filter_map(|entry| {
            match entry.payload {
                Payload::Members(membership) => Some(membership),
                _ => None,
            }
        });
    std::iter::once(committed).chain(later).any(|membership| membership.sound && !membership.quorum(up))
}

fn heals_from(scenario: &Scenario, mut cluster: Cluster, first: Id, one_per_slot: bool) -> bool {
    // What comes next follows from these alone, and many runs meet.
    type Now = (Cluster, Option<Id>, bool);
    thread_local!(static KNOWN: RefCell<HashMap<Now, bool>> = RefCell::default());
    let mut leader = elect(&mut cluster, first);
    let mut run: Vec<Now> = Vec::new();
    let good = loop {
        compact(&mut cluster);
        let now = (cluster.clone(), leader, one_per_slot);
        if let Some(known) = KNOWN.with_borrow(|known| known.get(&now).copied()) {
            break known;
        }
        if run.last() == Some(&now) {
            break leader.is_some_and(|leader| is_whole(scenario, &cluster, leader, one_per_slot));
        }
        if run.len() > MAX_ROUNDS || cluster.flaw.is_some() {
            break false;
        }
        if let Some(id) = leader {
            leader = work(scenario, &mut cluster, id);
        }
        leader = leader.filter(|id| cluster.nodes.get(id).is_some_and(|node| node.leads()));
        renew_the_retired(scenario, &mut cluster);
        leader = leader.or_else(|| ids(cluster.there()).find_map(|id| elect(&mut cluster, id)));
        run.push(now);
    };
    KNOWN.with_borrow_mut(|known| known.extend(run.into_iter().map(|now| (now, good))));
    good
}

/// Forgets what makes no difference from here on: how what everybody applied came about, and which terms nobody is in.
fn compact(cluster: &mut Cluster) {
    let applied = cluster.nodes.values().filter(|node| node.bound).map(|node| node.commit).min().unwrap_or(0);
    let prefix = &cluster.committed[..applied.min(cluster.committed.len())];
    let mut members = prefix.iter().filter_map(|entry| match entry.payload {
        Payload::Members(membership) => Some(membership),
        _ => None,
    });
    if let Some(first) = members.next()
        && prefix.iter().any(|entry| entry.payload == Payload::Open)
    {
        let (ever, last) = members.fold((first.nodes, first), |(ever, _), next| (ever | next.nodes, next));
        let snapshot =
            [Payload::Members(Membership { nodes: ever, ..last }), Payload::Members(last), Payload::Open]
                .map(|payload| Entry { term: 0, payload });
        if let Some(less) = prefix.len().checked_sub(snapshot.len()) {
            let replace = |log: &mut Vec<Entry>| drop(log.splice(..snapshot.len() + less, snapshot));
            replace(&mut cluster.committed);
            for node in cluster.nodes.values_mut().filter(|node| node.bound) {
                replace(&mut node.log);
                node.commit -= less;
                let matched = node.matched.iter_mut().flat_map(|matched| matched.values_mut());
                matched.for_each(|length| *length = length.saturating_sub(less));
            }
        }
    }
    let terms = cluster
        .nodes
        .values()
        .flat_map(|node| node.log.iter().map(|entry| entry.term).chain([node.term]))
        .chain(cluster.committed.iter().map(|entry| entry.term))
        .fold(0_u64, |terms, term| terms | 1 << term);
    let rank = |term: &mut u8| *term = (terms & ((1 << *term) - 1)).count_ones() as u8;
    cluster.committed.iter_mut().for_each(|entry| rank(&mut entry.term));
    for node in cluster.nodes.values_mut() {
        rank(&mut node.term);
        node.log.iter_mut().for_each(|entry| rank(&mut entry.term));
    }
}

/// Everybody who would vote for the candidate does.
fn elect(cluster: &mut Cluster, candidate: Id) -> Option<Id> {
    let willing = cluster.would_vote(candidate);
    let membership = cluster.nodes.get(&candidate)?.membership()?;
    membership.quorum(willing).then(|| {
        cluster.elect(candidate, willing);
        candidate
    })
}

/// The leader sends to all, hears all, and makes one change. Returns who leads then.
fn work(scenario: &Scenario, cluster: &mut Cluster, leader: Id) -> Option<Id> {
    // Twice: the second time it says what is committed.
    for to in ids(cluster.there()).chain(ids(cluster.there())) {
        if cluster.node(leader).leads() && cluster.sends_to(leader, to) {
            cluster.replicate(leader, to);
        }
    }
    if scenario.may_open(cluster, leader) {
        cluster.append(leader, Payload::Open);
        return Some(leader);
    }
    if !cluster.may_change(leader) {
        return Some(leader);
    }
    let node = cluster.node(leader);
    let members = node.membership()?.nodes;
    let answers = set(ids(members & cluster.there()).filter(|id| node.acknowledged(*id) > 0));
    let known = members | node.retired();
    let newcomers =
        set(ids(cluster.there() & !known).filter(|id| !cluster.node(*id).bound && !scenario.leaves(*id)));
    let leaving = set(ids(members).filter(|id| scenario.leaves(*id)));
    let promote = ids(members).find(|id| scenario.promote == Some(slot_of(*id)));
    match scenario.plan(cluster, leader, Knowledge { answers, newcomers, leaving, promote }) {
        Some(Planned::Change(decided)) => {
            cluster.change(leader, decided.to);
            Some(leader)
        }
        Some(Planned::HandOver(slot)) => {
            let members = cluster.node(leader).membership()?.all_voters();
            let heir = ids(members & cluster.there()).find(|id| slot_of(*id) == slot)?;
            elect(cluster, heir)
        }
        None => Some(leader),
    }
}

/// Who hears that it is retired formats its directory anew (when it was bound: at its next start, after which it asks to join). Not
/// where its slot is to be empty.
fn renew_the_retired(scenario: &Scenario, cluster: &mut Cluster) {
    let retired =
        cluster.nodes.values().filter(|node| node.leads()).fold(0, |set, node| set | node.retired());
    for id in ids(retired & cluster.there()) {
        let bound = cluster.node(id).bound;
        if !scenario.leaves(id) && (bound || scenario.rules.renew_retired) {
            cluster.nodes.remove(&id);
            let slot = slot_of(id);
            if cluster.newest[slot].is_some_and(|newest| newest + 1 < PER_SLOT) {
                cluster.renew(slot, true);
            }
        }
    }
}

fn is_whole(scenario: &Scenario, cluster: &Cluster, leader: Id, one_per_slot: bool) -> bool {
    let node = cluster.node(leader);
    let (Some(membership), committed) = (node.membership(), cluster.committed_membership()) else {
        return false;
    };
    let staying = set(ids(cluster.there()).filter(|id| !scenario.leaves(*id)));
    let count = ids(membership.voters).count();
    let settled = membership == committed && membership.joint == 0 && node.is_open();
    let slots = |set: Set| ids(set).fold(0_u8, |slots, id| slots | 1 << slot_of(id));
    if !one_per_slot {
        // Two run for a slot: one of them is the member, the other one waits.
        return settled && slots(membership.nodes) == slots(staying);
    }
    settled
        && membership.nodes == staying
        && count == voters_among(ids(staying).count(), scenario.max_voters)
        && ids(membership.nodes).all(|id| cluster.node(id).log == node.log)
}
