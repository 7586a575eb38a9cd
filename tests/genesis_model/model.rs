//! The world that genesis lives in: three seeds, their disks, what they may still hear of one another, and as much of Raft as
//! matters before the first client write.
//!
//! What is modelled, and how it covers more than can happen:
//! - **Answers** are delayed, doubled and lost at will: a seed that decides takes, of each other seed, nothing or any state which that
//!   seed spoke of since the decider's own last step (a question is asked after it, so its answer cannot be older).
//! - **Durable before spoken**: a step changes the disk; speaking of it is an action of its own. (With no crash to come between,
//!   the two are one action: others may hear the older state anyway.)
//! - **A crash** ends a seed between any two actions; it comes back with what is on its disk.
//! - **A wipe** makes a seed a new incarnation that knows nothing. So does giving up.
//! - **Raft** of a cluster: once a majority of its voters was ever bound, any of its nodes may come to hold an entry after the first
//!   (votes and entries of nodes wiped since may still arrive). `Open` is committed when the gate lets it be.
//! - **The swap** of a wiped voter by the two others, each holding an entry, is what the later release does; `Rules::swap` says whether it is there.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{Hash, Hasher},
};

use larder::{
    cluster::genesis::{Scope, SeedAnswer, Step, View, decide, gate_open},
    store::identity::{Binding, FoundingSet, raft_id},
};
use stateright::{Model, Property};
use uuid::Uuid;

use crate::heal;

pub(crate) const SEEDS: usize = 3;

/// The incarnation of each slot, counted from 0.
pub(crate) type Set = [u8; SEEDS];

/// More incarnations of one slot than any run below needs. The model would be cut off there, so it panics.
const MAX_INCARNATION: u8 = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bind {
    Formatted,
    Promised(Set),
    Bound(Set),
    /// A member by joining the cluster that this set founded.
    Joined(Set),
}

impl Bind {
    pub(crate) fn cluster(self) -> Option<Set> {
        match self {
            Self::Bound(set) | Self::Joined(set) => Some(set),
            Self::Formatted | Self::Promised(_) => None,
        }
    }
}

/// What a seed says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) incarnation: u8,
    pub(crate) bind: Bind,
}

impl Record {
    /// The record in the lowest 18 bits: a test without optimisation spends its time on hashing and comparing.
    fn code(self) -> u64 {
        let (kind, set) = match self.bind {
            Bind::Formatted => (0, [0; SEEDS]),
            Bind::Promised(set) => (1, set),
            Bind::Bound(set) => (2, set),
            Bind::Joined(set) => (3, set),
        };
        set.iter().fold(kind << 4 | u64::from(self.incarnation), |code, n| code << 4 | u64::from(*n))
    }
}

impl Hash for Record {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.code() as u32);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    /// On its disk.
    pub(crate) durable: Record,
    /// What it answers.
    pub(crate) spoken: Record,
    /// Its log reaches beyond the first entry.
    pub(crate) data: bool,
}

impl Node {
    fn empty(incarnation: u8) -> Self {
        let record = Record { incarnation, bind: Bind::Formatted };
        Self { durable: record, spoken: record, data: false }
    }
}

/// One bit for each incarnation of each slot.
type Marks = [u16; SEEDS];

/// A cluster that somebody was bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Cluster {
    /// The voters now.
    pub(crate) voters: Set,
    /// Who was ever bound to it, as founder or by joining.
    bound: Marks,
    /// Who ever acknowledged an entry after the first.
    acknowledged: Marks,
    /// `Open` is committed: client writes are acknowledged.
    pub(crate) open: bool,
}

fn marked(marks: &Marks, slot: usize, incarnation: u8) -> bool {
    marks[slot] & (1 << incarnation) != 0
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: [Node; SEEDS],
    /// `hears[i][j]`: what `j` may answer to a question that `i` asked since its own last step, ascending.
    hears: [[Vec<Record>; SEEDS]; SEEDS],
    /// By founding set.
    pub(crate) clusters: BTreeMap<Set, Cluster>,
    /// How many more there may be.
    pub(crate) wipes: u8,
    crashes: u8,
}

/// The rules of genesis, each of which can be left out to see what it is good for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Promise before founding.
    pub(crate) promise: bool,
    /// Acknowledge no client write before every voter acknowledged an entry.
    pub(crate) gate: bool,
    /// Follow whoever is bound to a set with me.
    pub(crate) follow: bool,
    /// Give up what can never come to be.
    pub(crate) give_up: bool,
    /// Make a step durable before speaking of it.
    pub(crate) durable_first: bool,
    /// The later release: a wiped voter is swapped by the two others.
    pub(crate) swap: bool,
}

impl Rules {
    pub(crate) const THIS_RELEASE: Self =
        Self { promise: true, gate: true, follow: true, give_up: true, durable_first: true, swap: false };
    pub(crate) const WITH_SWAP: Self = Self { swap: true, ..Self::THIS_RELEASE };
}

/// The rules, and how much goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Genesis {
    pub(crate) rules: Rules,
    pub(crate) wipes: u8,
    pub(crate) crashes: u8,
    /// Only this property is checked; `None`: all.
    pub(crate) only: Option<&'static str>,
}

/// A step that changes a seed's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Change {
    Promise(Set),
    Bind(Set),
    GiveUp,
    Join(Set),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The seed decides, and its disk (or, if it speaks first, its answer) changes.
    Take(usize, Change),
    /// What is on the disk becomes what is answered (or the other way round).
    Settle(usize),
    Wipe(usize),
    Crash(usize),
    /// The seed comes to hold an entry after the first.
    Append(usize),
    /// The cluster replaces its wiped voter in this slot.
    Swap(Set, usize),
    /// The cluster commits `Open`.
    Open(Set),
}

fn incarnation(slot: usize, n: u8) -> Uuid {
    Uuid::from_u128(((slot as u128 + 1) << 8) | u128::from(n))
}

fn founding_set(set: Set) -> FoundingSet {
    FoundingSet((0..SEEDS).map(|slot| (slot.to_string(), incarnation(slot, set[slot]))).collect())
}

fn set_of(founders: &FoundingSet) -> Set {
    let mut numbers = founders.0.values().map(|incarnation| incarnation.as_u128() as u8);
    std::array::from_fn(|_| numbers.next().expect("a set names three seeds"))
}

fn binding(bind: Bind) -> Binding {
    match bind {
        Bind::Formatted => Binding::Formatted,
        Bind::Promised(set) => Binding::Promised(founding_set(set)),
        Bind::Bound(set) => {
            let founders = founding_set(set);
            Binding::Bound { cluster: founders.cluster_id(), founders: Some(founders) }
        }
        Bind::Joined(set) => Binding::Bound { cluster: founding_set(set).cluster_id(), founders: None },
    }
}

/// What `decide` of the product says, remembered: its inputs recur by the million.
fn ask_the_product(slot: usize, me: Record, data: bool, heard: [Option<Record>; SEEDS]) -> Option<Change> {
    thread_local!(static KNOWN: RefCell<HashMap<u64, Option<Change>>> = RefCell::default());
    let question = (0..SEEDS)
        .filter(|other| *other != slot)
        .fold((slot as u64) << 1 | u64::from(data), |code, other| {
            code << 19 | heard[other].map_or(0, |record| 1 << 18 | record.code())
        });
    let question = question << 18 | me.code();
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&question).copied()) {
        return known;
    }
    let view = View {
        slot: slot.to_string(),
        incarnation: incarnation(slot, me.incarnation),
        binding: binding(me.bind),
        holds_data: data,
    };
    let answers = (0..SEEDS)
        .filter_map(|other| heard[other].map(|record| (other, record)))
        .map(|(other, record)| {
            let (slot, incarnation) = (other.to_string(), incarnation(other, record.incarnation));
            (
                slot.clone(),
                Ok(SeedAnswer { slot, incarnation, binding: binding(record.bind), seeds: Vec::new() }),
            )
        })
        .collect();
    let seeds = (0..SEEDS).map(|slot| slot.to_string()).collect();
    let scope = Scope { seeds, ..Scope::default() };
    let change = match decide(&view, &answers, &scope) {
        Step::Promise(set) => Some(Change::Promise(set_of(&set))),
        Step::Found(set) | Step::Follow(set) => Some(Change::Bind(set_of(&set))),
        Step::GiveUp => Some(Change::GiveUp),
        Step::Join(doors) => {
            let door = doors[0].slot.parse::<usize>().ok().and_then(|slot| heard[slot]);
            door.expect("it goes to whom it heard").bind.cluster().map(Change::Join)
        }
        Step::Stay | Step::Wait(_) => None,
    };
    KNOWN.with_borrow_mut(|known| known.insert(question, change));
    change
}

impl Genesis {
    /// What `slot` does on these answers, under the rules in force.
    pub(crate) fn change(
        &self,
        slot: usize,
        me: Record,
        data: bool,
        heard: [Option<Record>; SEEDS],
    ) -> Option<Change> {
        let change = ask_the_product(slot, me, data, heard)?;
        // By unanimity alone: I promise it, and every other seed does, or is past it.
        let unanimous = |set| {
            let with = |bind| bind == Bind::Promised(set) || bind == Bind::Bound(set);
            me.bind == Bind::Promised(set)
                && heard.iter().flatten().filter(|record| with(record.bind)).count() == SEEDS - 1
        };
        match change {
            Change::Promise(set) if !self.rules.promise => Some(Change::Bind(set)),
            Change::Bind(set) if !self.rules.follow && !unanimous(set) => None,
            Change::GiveUp if !self.rules.give_up => None,
            Change::Join(_) if !self.rules.swap => None,
            change => Some(change),
        }
    }

    /// Whether something can come between the disk and the word.
    fn splits_steps(&self) -> bool {
        self.crashes > 0
    }
}

impl World {
    fn new(model: &Genesis) -> Self {
        let nodes = [Node::empty(0); SEEDS];
        let hears = std::array::from_fn(|_| std::array::from_fn(|other| vec![nodes[other].spoken]));
        Self { nodes, hears, clusters: BTreeMap::new(), wipes: model.wipes, crashes: model.crashes }
    }

    /// The incarnation that sits in `slot` now is `voters`' one, bound to this cluster, and holds an entry.
    pub(crate) fn holds(&self, set: Set, slot: usize) -> bool {
        let node = &self.nodes[slot];
        node.data
            && node.durable.bind.cluster() == Some(set)
            && self.clusters[&set].voters[slot] == node.durable.incarnation
    }

    /// Of which clusters someone alive, and a voter, holds data.
    pub(crate) fn held(&self, set: Set) -> usize {
        (0..SEEDS).filter(|slot| self.holds(set, *slot)).count()
    }

    /// Whether the two other voters are there, each with an entry, so that they can add and swap in whoever sits in `slot`.
    pub(crate) fn others_can_swap(&self, set: Set, slot: usize) -> bool {
        self.clusters[&set].voters[slot] != self.nodes[slot].durable.incarnation
            && (0..SEEDS).all(|other| other == slot || self.holds(set, other))
    }

    /// The disk of `slot` changes. Questions that are under way are forgotten.
    pub(crate) fn take(&mut self, slot: usize, change: Change) {
        let node = &mut self.nodes[slot];
        let before = node.durable;
        let bind = match change {
            Change::Promise(set) => Bind::Promised(set),
            Change::Bind(set) => Bind::Bound(set),
            Change::Join(set) => Bind::Joined(set),
            Change::GiveUp => Bind::Formatted,
        };
        let incarnation = before.incarnation + u8::from(change == Change::GiveUp);
        assert!(incarnation < MAX_INCARNATION, "the model is cut off");
        node.durable = Record { incarnation, bind };
        // A learner takes snapshot and log before it counts as joined.
        node.data = matches!(change, Change::Join(_));
        if let Some(set) = bind.cluster() {
            let cluster = self.clusters.entry(set).or_insert(Cluster {
                voters: set,
                bound: [0; SEEDS],
                acknowledged: [0; SEEDS],
                open: false,
            });
            cluster.bound[slot] |= 1 << incarnation;
            if self.nodes[slot].data {
                cluster.acknowledged[slot] |= 1 << incarnation;
            }
        }
    }

    /// `slot` answers with what is on its disk.
    fn speak(&mut self, slot: usize) {
        let record = self.nodes[slot].durable;
        self.nodes[slot].spoken = record;
        self.spread(slot);
    }

    /// Whoever asked may hear what `slot` says now.
    fn spread(&mut self, slot: usize) {
        let record = self.nodes[slot].spoken;
        for (listener, hears) in self.hears.iter_mut().enumerate() {
            if listener != slot
                && let Err(place) = hears[slot].binary_search(&record)
            {
                hears[slot].insert(place, record);
            }
        }
    }

    /// `slot` asks anew.
    fn ask_anew(&mut self, slot: usize) {
        for other in (0..SEEDS).filter(|other| *other != slot) {
            self.hears[slot][other] = vec![self.nodes[other].spoken];
        }
    }

    pub(crate) fn append(&mut self, slot: usize) {
        let node = &mut self.nodes[slot];
        node.data = true;
        let set = node.durable.bind.cluster().expect("it runs Raft, so it is bound");
        let cluster = self.clusters.get_mut(&set).expect("somebody is bound to it");
        cluster.acknowledged[slot] |= 1 << node.durable.incarnation;
    }

    /// Whether a majority of this cluster's voters was ever bound to it, so that it may have (had) a leader.
    fn had_a_quorum(&self, set: Set) -> bool {
        let cluster = &self.clusters[&set];
        (0..SEEDS).filter(|slot| marked(&cluster.bound, *slot, cluster.voters[*slot])).count() * 2 > SEEDS
    }

    /// Whether the leader may commit `Open`, by the product's own gate.
    pub(crate) fn may_open(&self, rules: &Rules, set: Set) -> bool {
        let cluster = &self.clusters[&set];
        let acknowledged = |slot: usize| marked(&cluster.acknowledged, slot, cluster.voters[slot]);
        if cluster.open || self.held(set) == 0 {
            return false;
        }
        if !rules.gate {
            return (0..SEEDS).filter(|slot| acknowledged(*slot)).count() * 2 > SEEDS;
        }
        let id = |slot: usize| raft_id(incarnation(slot, cluster.voters[slot]));
        let voters = (0..SEEDS).map(id).collect();
        let matched = (0..SEEDS).map(|slot| (id(slot), u64::from(acknowledged(slot)))).collect();
        gate_open(&voters, &matched, 0)
    }

    pub(crate) fn open_clusters(&self) -> usize {
        self.clusters.values().filter(|cluster| cluster.open).count()
    }
}

impl Model for Genesis {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for slot in 0..SEEDS {
            self.changes(world, slot, actions);
            let node = &world.nodes[slot];
            if node.spoken != node.durable {
                actions.push(Action::Settle(slot));
            }
            if world.wipes > 0 {
                actions.push(Action::Wipe(slot));
            }
            if world.crashes > 0 {
                actions.push(Action::Crash(slot));
            }
            if !node.data && node.durable.bind.cluster().is_some_and(|set| world.had_a_quorum(set)) {
                actions.push(Action::Append(slot));
            }
            if let Bind::Joined(set) = node.durable.bind
                && world.others_can_swap(set, slot)
            {
                actions.push(Action::Swap(set, slot));
            }
        }
        for set in world.clusters.keys() {
            if world.may_open(&self.rules, *set) {
                actions.push(Action::Open(*set));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Take(slot, change) => {
                let before = world.nodes[slot].durable;
                world.take(slot, change);
                world.ask_anew(slot);
                if !self.splits_steps() || change == Change::GiveUp {
                    world.speak(slot);
                } else if !self.rules.durable_first {
                    world.speak(slot);
                    world.nodes[slot].durable = before;
                }
            }
            Action::Settle(slot) if self.rules.durable_first => world.speak(slot),
            Action::Settle(slot) => world.nodes[slot].durable = world.nodes[slot].spoken,
            Action::Wipe(slot) => {
                world.wipes -= 1;
                let incarnation = world.nodes[slot].durable.incarnation + 1;
                assert!(incarnation < MAX_INCARNATION, "the model is cut off");
                world.nodes[slot] = Node::empty(incarnation);
                world.spread(slot);
                world.ask_anew(slot);
            }
            Action::Crash(slot) => {
                world.crashes -= 1;
                world.speak(slot);
                world.ask_anew(slot);
            }
            Action::Append(slot) => world.append(slot),
            Action::Swap(set, slot) => {
                let incarnation = world.nodes[slot].durable.incarnation;
                world.clusters.get_mut(&set)?.voters[slot] = incarnation;
            }
            Action::Open(set) => world.clusters.get_mut(&set)?.open = true,
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(TWO_ACKNOWLEDGE, |model: &Self, world: &World| {
                let lost = |set: &Set| model.wipes >= 3 && world.held(*set) == 0;
                world.clusters.iter().filter(|(set, cluster)| cluster.open && !lost(set)).count() <= 1
            }),
            Property::always(LOST, |model: &Self, world: &World| {
                model.wipes >= 3
                    || world.clusters.iter().all(|(set, cluster)| !cluster.open || world.held(*set) > 0)
            }),
            Property::always(STUCK, heal::heals),
            Property::sometimes("a cluster opens", |_, world: &World| world.open_clusters() > 0),
            Property::sometimes("a cluster has founders only", |_, world: &World| {
                !world.clusters.is_empty() && world.nodes.iter().all(|node| !node.data)
            }),
        ];
        if self.wipes <= 1 {
            // With two wipes there may be: a set whose other two founders are wiped, and the next set. The gate holds then.
            all.push(Property::always(TWO_FOUND, |_, world: &World| {
                let founded: BTreeSet<Set> =
                    world.nodes.iter().filter_map(|node| node.durable.bind.cluster()).collect();
                founded.len() <= 1
            }));
        }
        if self.wipes >= 2 && self.rules.give_up {
            all.push(Property::sometimes("somebody gives up", |model: &Self, world: &World| {
                let incarnations: u8 = world.nodes.iter().map(|node| node.durable.incarnation).sum();
                incarnations > model.wipes - world.wipes
            }));
        }
        if self.wipes >= 1 && self.rules.swap {
            all.push(Property::sometimes("a wiped founder is swapped", |_, world: &World| {
                world.clusters.iter().any(|(set, cluster)| cluster.voters != *set)
            }));
        }
        all.retain(|property| self.only.is_none_or(|only| property.name == only));
        all
    }
}

impl Genesis {
    /// Everything that `slot` might do, whatever it hears of what it can hear.
    fn changes(&self, world: &World, slot: usize, actions: &mut Vec<Action>) {
        let node = &world.nodes[slot];
        let me = if self.rules.durable_first { node.durable } else { node.spoken };
        let first = actions.len();
        let others: Vec<usize> = (0..SEEDS).filter(|other| *other != slot).collect();
        let hearable =
            |other: usize| std::iter::once(None).chain(world.hears[slot][other].iter().copied().map(Some));
        for a in hearable(others[0]) {
            for b in hearable(others[1]) {
                let mut heard = [None; SEEDS];
                heard[others[0]] = a;
                heard[others[1]] = b;
                let Some(change) = self.change(slot, me, node.data, heard) else { continue };
                // A cluster adds whom it can add.
                let possible = match change {
                    Change::Join(set) => world.others_can_swap(set, slot),
                    _ => true,
                };
                let action = Action::Take(slot, change);
                if possible && !actions[first..].contains(&action) {
                    actions.push(action);
                }
            }
        }
    }
}

pub(crate) const TWO_ACKNOWLEDGE: &str = "never two clusters that acknowledge";
pub(crate) const TWO_FOUND: &str = "never two clusters that somebody is bound to";
pub(crate) const LOST: &str = "what is acknowledged is held";
pub(crate) const STUCK: &str = "never stuck once nothing more goes wrong";
