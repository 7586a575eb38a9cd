//! A cluster whose slots are wiped, replaced, promoted and retired, in every order.
//!
//! The leader's decisions are the product's own `plan::next` and `gate_open`; a founder that gives up asks the product's `decide`. What a
//! leader knows is any part of what is true: whoever acknowledged something may answer or be silent, a newcomer may have been
//! heard or not, the operator's wish too.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use larder::{
    cluster::{
        genesis::{Scope, SeedAnswer, Step, View, decide, gate_open},
        plan::{self, Blocked, Member, Newcomer, Roster, voters_among},
    },
    store::identity::{Binding, FoundingSet},
};
use stateright::{Model, Property};
use uuid::Uuid;

use crate::{
    heal,
    raft::{
        Cluster, Entry, Flaw, Id, Membership, Node, PER_SLOT, Payload, SLOTS, Set, bit, has, id_of, ids, set,
        slot_of,
    },
};

/// The rules, each of which can be left out to see what it is good for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// A slot that lost its directory comes back with another Raft id.
    pub(crate) new_id: bool,
    /// An incarnation that answers is not replaced.
    pub(crate) occupied: bool,
    /// No change leaves voters of whom no majority answers.
    pub(crate) quorum: bool,
    /// A joint membership that a leader left is finished.
    pub(crate) finish: bool,
    /// Who is retired is forgotten as a newcomer.
    pub(crate) forget_retired: bool,
    /// An unbound node that hears that it is retired formats its directory anew.
    pub(crate) renew_retired: bool,
}

impl Rules {
    pub(crate) const ALL: Self = Self {
        new_id: true,
        occupied: true,
        quorum: true,
        finish: true,
        forget_retired: true,
        renew_retired: true,
    };
}

/// What the checker must come upon.
pub(crate) type Wanted = (&'static str, fn(&Scenario, &World) -> bool);

/// How it begins, and how much goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) rules: Rules,
    /// So many slots, from 0, founded the cluster.
    pub(crate) founders: usize,
    /// So many further slots ask to join.
    pub(crate) joiners: usize,
    /// Genesis' gate is open, and slot 0 leads.
    pub(crate) open: bool,
    pub(crate) max_voters: usize,
    /// The slots that are to be retired.
    pub(crate) leaving: &'static [usize],
    /// The slot that is to vote in the place of one that does not answer.
    pub(crate) promote: Option<usize>,
    /// How many directories are replaced by empty ones, and in which slots.
    pub(crate) wipes: u8,
    pub(crate) wiped: &'static [usize],
    /// Who was replaced may act for ever: a disk that comes back, or two processes for one slot.
    pub(crate) returns: bool,
    /// What a newcomer asked may be heard long after it was wiped.
    pub(crate) late_asks: bool,
    /// Bounds.
    pub(crate) terms: u8,
    pub(crate) writes: u8,
    pub(crate) log: usize,
    pub(crate) wanted: &'static [Wanted],
    /// Only this property is checked; `None`: all.
    pub(crate) only: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    /// How many more there may be.
    wipes: u8,
    writes: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The voters are minimal.
    Elect(Id, Set),
    Replicate(Id, Id),
    Write(Id),
    Open(Id),
    Change(Id, Decided),
    Wipe(usize),
    GiveUp(Id),
}

/// A change, with what is wrong about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Decided {
    pub(crate) to: Membership,
    flaw: Option<Flaw>,
}

/// What a leader knows beside its own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Knowledge {
    /// Who answers.
    pub(crate) answers: Set,
    /// At most one slot's: the plan takes one at a time.
    pub(crate) newcomers: Set,
    pub(crate) leaving: Set,
    pub(crate) promote: Option<Id>,
}

/// What the plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Planned {
    Change(Decided),
    HandOver(usize),
}

fn raft_id(id: Id) -> u64 {
    100 + u64::from(id)
}

fn id_from(raft_id: u64) -> Id {
    (raft_id - 100) as Id
}

fn incarnation(id: Id) -> Uuid {
    Uuid::from_u128(raft_id(id).into())
}

fn set_of(raft_ids: &BTreeSet<u64>) -> Set {
    set(raft_ids.iter().map(|raft_id| id_from(*raft_id)))
}

fn raft_ids(set: Set) -> BTreeSet<u64> {
    ids(set).map(raft_id).collect()
}

impl Scenario {
    pub(crate) fn founding_set(&self) -> Set {
        set((0..self.founders).map(|slot| id_of(slot, 0)))
    }

    pub(crate) fn leaves(&self, id: Id) -> bool {
        self.leaving.contains(&slot_of(id))
    }

    /// What `leader` does with its membership, knowing this.
    pub(crate) fn plan(&self, cluster: &Cluster, leader: Id, knowledge: Knowledge) -> Option<Planned> {
        // The product is asked once for each question: the same ones recur by the million.
        type Question = (Id, bool, Membership, Set, Set, Knowledge);
        thread_local!(static KNOWN: RefCell<HashMap<Question, Option<Planned>>> = RefCell::default());
        let node = cluster.node(leader);
        let membership = node.membership()?;
        let by = |length: usize| set(ids(membership.nodes).filter(|id| node.acknowledged(*id) >= length));
        let question = (leader, node.is_open(), membership, by(node.commit), by(2), knowledge);
        if let Some(known) = KNOWN.with_borrow(|known| known.get(&question).copied()) {
            return known;
        }
        let (_, open, _, caught_up, hold_entry, _) = question;
        let member = |id: Id| Member {
            slot: slot_of(id).to_string(),
            incarnation: incarnation(id),
            answers: id == leader || has(knowledge.answers, id),
            caught_up: has(caught_up, id),
            holds_entry: has(hold_entry, id),
        };
        let newcomer = |id: Id| Newcomer {
            raft_id: raft_id(id),
            slot: slot_of(id).to_string(),
            incarnation: incarnation(id),
        };
        let configs = [membership.voters, membership.joint];
        let roster = Roster {
            me: raft_id(leader),
            open,
            configs: configs.into_iter().filter(|config| *config != 0).map(raft_ids).collect(),
            members: ids(membership.nodes).map(|id| (raft_id(id), member(id))).collect(),
            max_voters: self.max_voters,
            leaving: raft_ids(knowledge.leaving),
            promote: knowledge.promote.map(raft_id),
            newcomers: ids(knowledge.newcomers).map(|id| (slot_of(id).to_string(), newcomer(id))).collect(),
        };
        let planned = self.change(&roster).map(|change| match change {
            plan::Change::HandOver(slot) => Planned::HandOver(slot.parse().expect("slots are numbers")),
            change => Planned::Change(self.decided(&membership, &change, knowledge.answers | bit(leader))),
        });
        KNOWN.with_borrow_mut(|known| known.insert(question, planned));
        planned
    }

    /// The product's plan, under the rules in force.
    fn change(&self, roster: &Roster) -> Option<plan::Change> {
        if !self.rules.finish && roster.configs.len() > 1 {
            return None;
        }
        let mut roster = roster.clone();
        if !self.rules.occupied {
            // As if nobody answered in whose slot there is another one.
            let others: Vec<(u64, String)> = roster
                .members
                .iter()
                .map(|(id, member)| (*id, member.slot.clone()))
                .chain(roster.newcomers.values().map(|newcomer| (newcomer.raft_id, newcomer.slot.clone())))
                .collect();
            for (id, member) in &mut roster.members {
                let votes = roster.configs.iter().any(|config| config.contains(id));
                let another = others.iter().any(|(other, slot)| other != id && *slot == member.slot);
                member.answers &= !(votes && another && *id != roster.me);
            }
        }
        let plan = plan::next(&roster);
        if !self.rules.quorum && plan.blocked.iter().any(|why| matches!(why, Blocked::NoQuorum { .. })) {
            return Some(resize_without_quorum(&roster));
        }
        plan.change
    }

    /// The membership that a change makes first.
    fn decided(&self, membership: &Membership, change: &plan::Change, answers: Set) -> Decided {
        let mut flaw = None;
        let to = match change {
            plan::Change::Add(newcomer) => {
                Membership { nodes: membership.nodes | bit(id_from(newcomer.raft_id)), ..*membership }
            }
            plan::Change::Remove(id) => {
                Membership { nodes: membership.nodes & !bit(id_from(*id)), ..*membership }
            }
            plan::Change::Voters { ids, keep_removed } => {
                let ids = set_of(ids);
                if membership.joint == 0 && !keep_removed && membership.voters & !ids & answers != 0 {
                    flaw = Some(Flaw::Ousted);
                }
                if membership.joint != 0
                    && (ids, *keep_removed) != (membership.joint, membership.keep_removed)
                {
                    flaw = Some(Flaw::FinishedOtherwise);
                }
                membership.towards(ids, *keep_removed)
            }
            plan::Change::HandOver(_) => *membership,
        };
        // Whether it is stuck for it is the question then.
        let flaw = flaw.filter(|_| self.only != Some(STUCK));
        Decided { to, flaw }
    }

    /// Who of this slot asked and is no member, as the leader may remember it.
    fn may_ask(&self, world: &World, leader: Id) -> Set {
        let cluster = &world.cluster;
        let node = cluster.node(leader);
        let members = node.membership().map_or(0, |membership| membership.nodes);
        let refused = if self.rules.forget_retired { node.retired() } else { 0 };
        let ever = (0..SLOTS)
            .filter_map(|slot| cluster.newest[slot].map(|newest| (slot, newest)))
            .flat_map(|(slot, newest)| (0..=newest).map(move |incarnation| id_of(slot, incarnation)));
        set(ever
            .filter(|id| !has(self.founding_set() | members | refused, *id))
            .filter(|id| self.late_asks || cluster.nodes.get(id).is_some_and(|node| !node.bound)))
    }

    /// Every change that `leader` may make, whatever it knows of what it can know.
    fn changes(&self, world: &World, leader: Id, actions: &mut Vec<Action>) {
        let cluster = &world.cluster;
        let node = cluster.node(leader);
        let Some(membership) = node.membership().filter(|_| cluster.may_change(leader)) else { return };
        let heard =
            set(ids(membership.nodes & cluster.there() & !bit(leader))
                .filter(|id| node.acknowledged(*id) > 0));
        let leaving = set(ids(membership.nodes).filter(|id| self.leaves(*id)));
        let promoted = ids(membership.nodes).find(|id| self.promote == Some(slot_of(*id)));
        let newcomers: Vec<Set> =
            std::iter::once(0).chain(ids(self.may_ask(world, leader)).map(bit)).collect();
        let first = actions.len();
        for answers in subsets(heard) {
            for newcomers in &newcomers {
                for leaving in if leaving == 0 { vec![0] } else { vec![0, leaving] } {
                    for promote in if promoted.is_none() { vec![None] } else { vec![None, promoted] } {
                        let knowledge = Knowledge { answers, newcomers: *newcomers, leaving, promote };
                        if let Some(Planned::Change(decided)) = self.plan(cluster, leader, knowledge)
                            && !actions[first..].contains(&Action::Change(leader, decided))
                        {
                            actions.push(Action::Change(leader, decided));
                        }
                    }
                }
            }
        }
    }

    /// Whether the leader may propose `Open`, by the product's own gate.
    pub(crate) fn may_open(&self, cluster: &Cluster, leader: Id) -> bool {
        let node = cluster.node(leader);
        let Some(membership) = node.membership() else { return false };
        if !node.leads() || node.log.iter().any(|entry| entry.payload == Payload::Open) {
            return false;
        }
        let matched: BTreeMap<u64, u64> =
            ids(membership.nodes).map(|id| (raft_id(id), node.acknowledged(id) as u64)).collect();
        gate_open(&raft_ids(membership.all_voters()), &matched, 1)
    }

    /// Whether this founder gives up, by the product's own decision, when it hears everybody who is there.
    pub(crate) fn gives_up(&self, cluster: &Cluster, id: Id) -> bool {
        let node = cluster.node(id);
        if !node.bound || !has(self.founding_set(), id) || node.log.len() > 1 {
            return false;
        }
        let founders = self.founders();
        let cluster_id = founders.cluster_id();
        let bound = |founders: Option<FoundingSet>| Binding::Bound { cluster: cluster_id, founders };
        let me = View {
            slot: slot_of(id).to_string(),
            incarnation: incarnation(id),
            binding: bound(Some(founders.clone())),
            holds_data: false,
        };
        let answers = (0..self.founders)
            .filter(|slot| *slot != slot_of(id))
            .filter_map(|slot| cluster.newest(slot))
            .map(|other| {
                let binding = match cluster.node(other) {
                    Node { bound: false, .. } => Binding::Formatted,
                    Node { .. } if has(self.founding_set(), other) => bound(Some(founders.clone())),
                    Node { .. } => bound(None),
                };
                let (slot, incarnation) = (slot_of(other).to_string(), incarnation(other));
                (slot.clone(), Ok(SeedAnswer { slot, incarnation, binding, seeds: Vec::new() }))
            })
            .collect();
        let seeds = (0..self.founders).map(|slot| slot.to_string()).collect();
        decide(&me, &answers, &Scope { seeds, ..Scope::default() }) == Step::GiveUp
    }

    fn founders(&self) -> FoundingSet {
        FoundingSet(ids(self.founding_set()).map(|id| (slot_of(id).to_string(), incarnation(id))).collect())
    }

    /// Which votes elect `candidate`, none to spare.
    fn elections(&self, cluster: &Cluster, candidate: Id, actions: &mut Vec<Action>) {
        let willing = cluster.would_vote(candidate);
        let Some(membership) = cluster.node(candidate).membership().filter(|_| willing != 0) else { return };
        for others in subsets(willing & !bit(candidate)) {
            let voters = others | bit(candidate);
            let spare = ids(others).any(|id| membership.quorum(voters & !bit(id)));
            if membership.quorum(voters) && !spare && cluster.next_term(voters) <= self.terms {
                actions.push(Action::Elect(candidate, voters));
            }
        }
    }
}

/// What `resize` of the plan does but for the quorum of those who answer.
fn resize_without_quorum(roster: &Roster) -> plan::Change {
    let voters = roster.configs.last().cloned().unwrap_or_default();
    let answers = |id: &u64| *id == roster.me || roster.members.get(id).is_some_and(|member| member.answers);
    let mut staying: Vec<u64> = voters.into_iter().filter(|id| !roster.leaving.contains(id)).collect();
    staying.sort_by_key(|id| (!answers(id), *id));
    let count = voters_among(staying.len(), roster.max_voters);
    plan::Change::Voters { ids: staying.into_iter().take(count).collect(), keep_removed: true }
}

/// All subsets of `set`.
fn subsets(set: Set) -> impl Iterator<Item = Set> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let subset = next?;
        next = (subset != set).then(|| (subset.wrapping_sub(set)) & set);
        Some(subset)
    })
}

impl Model for Scenario {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let founders = Membership::of(self.founding_set());
        let mut log = vec![Entry { term: 0, payload: Payload::Members(founders) }];
        if self.open {
            log.push(Entry { term: 0, payload: Payload::Open });
        }
        let mut cluster =
            Cluster { nodes: BTreeMap::new(), newest: [None; SLOTS], committed: log.clone(), flaw: None };
        for slot in 0..self.founders + self.joiners {
            let id = cluster.renew(slot, true);
            if slot < self.founders {
                let node = Node { bound: true, log: log.clone(), commit: log.len(), ..Node::default() };
                cluster.nodes.insert(id, node);
            }
        }
        if self.open {
            // Who leads first makes no difference.
            cluster.elect(id_of(0, 0), self.founding_set());
        }
        vec![World { cluster, wipes: self.wipes, writes: self.writes }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let cluster = &world.cluster;
        if cluster.flaw.is_some() {
            return;
        }
        for (id, node) in &cluster.nodes {
            self.elections(cluster, *id, actions);
            if node.leads() {
                for to in ids(cluster.there()).filter(|to| cluster.sends_to(*id, *to)) {
                    actions.push(Action::Replicate(*id, to));
                }
                if world.writes > 0 && node.is_open() {
                    actions.push(Action::Write(*id));
                }
                if self.may_open(cluster, *id) {
                    actions.push(Action::Open(*id));
                }
                self.changes(world, *id, actions);
            }
            if !self.open && self.gives_up(cluster, *id) {
                actions.push(Action::GiveUp(*id));
            }
        }
        if world.wipes > 0 {
            actions.extend(self.wiped.iter().map(|slot| Action::Wipe(*slot)));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        let cluster = &mut world.cluster;
        match action {
            Action::Elect(candidate, voters) => cluster.elect(candidate, voters),
            Action::Replicate(leader, to) => cluster.replicate(leader, to),
            Action::Write(leader) => {
                world.writes -= 1;
                cluster.append(leader, Payload::Write);
            }
            Action::Open(leader) => cluster.append(leader, Payload::Open),
            Action::Change(leader, decided) => {
                decided.flaw.into_iter().for_each(|flaw| cluster.found(flaw));
                cluster.change(leader, decided.to);
            }
            Action::Wipe(slot) => {
                world.wipes -= 1;
                if self.rules.new_id {
                    cluster.renew(slot, self.returns);
                } else {
                    // It is let in again as whom it was, and knows of the cluster what its configuration says.
                    let node = cluster.nodes.get_mut(&cluster.newest(slot)?)?;
                    let log = vec![Entry {
                        term: 0,
                        payload: Payload::Members(Membership::of(self.founding_set())),
                    }];
                    *node = Node { bound: true, log, ..Node::default() };
                }
            }
            Action::GiveUp(id) => {
                let held = cluster.nodes.values().any(|node| node.bound && node.log.len() > 1);
                if held || cluster.committed.iter().any(|entry| entry.payload == Payload::Open) {
                    cluster.found(Flaw::GaveUpHeld);
                }
                cluster.renew(slot_of(id), false);
            }
        }
        let longest = world.cluster.nodes.values().map(|node| node.log.len()).max()?;
        let spare = world.cluster.newest.iter().flatten().all(|newest| *newest < PER_SLOT - 1);
        (longest <= self.log && spare).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(LOST, |_, world: &World| world.cluster.flaw != Some(Flaw::Lost)),
            Property::always(LOST_WRITE, |_, world: &World| {
                let write = |log: &[Entry]| log.iter().any(|entry| entry.payload == Payload::Write);
                let Cluster { nodes, committed, flaw, .. } = &world.cluster;
                let latest = nodes.values().filter(|node| node.leads()).max_by_key(|node| node.term);
                *flaw != Some(Flaw::Lost)
                    || !write(committed)
                    || latest.is_none_or(|leader| write(&leader.log))
            }),
            Property::always(FORGOTTEN, |_, world: &World| world.cluster.flaw != Some(Flaw::Forgotten)),
            Property::always(OUSTED, |_, world: &World| world.cluster.flaw != Some(Flaw::Ousted)),
            Property::always(NO_QUORUM, |_, world: &World| world.cluster.flaw != Some(Flaw::NoQuorum)),
            Property::always(TWO_IN_SLOT, |_, world: &World| world.cluster.flaw != Some(Flaw::TwoInSlot)),
            Property::always(FINISHED_OTHERWISE, |_, world: &World| {
                world.cluster.flaw != Some(Flaw::FinishedOtherwise)
            }),
            Property::always(GAVE_UP, |_, world: &World| world.cluster.flaw != Some(Flaw::GaveUpHeld)),
            Property::always(STUCK, heal::heals),
        ];
        all.extend(self.wanted.iter().map(|(name, condition)| Property::sometimes(name, *condition)));
        all.retain(|property| self.only.is_none_or(|only| property.name == only));
        all
    }
}

const LOST: &str = "what was committed is never lost";
pub(crate) const LOST_WRITE: &str = "no leader lacks an acknowledged write";
pub(crate) const FORGOTTEN: &str = "nobody who is retired votes, acknowledges, or becomes a member again";
pub(crate) const OUSTED: &str = "who answers is not replaced";
pub(crate) const NO_QUORUM: &str = "no change leaves voters without a majority";
pub(crate) const TWO_IN_SLOT: &str = "one incarnation of a slot votes";
pub(crate) const FINISHED_OTHERWISE: &str = "a change is finished as it was begun";
pub(crate) const GAVE_UP: &str = "nobody gives up what somebody holds";
pub(crate) const STUCK: &str = "never stuck once nothing more goes wrong";
