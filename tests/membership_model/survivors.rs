//! Genesis beside a cluster that is there: seeds are wiped while others hold data.
//!
//! Every node decides by the product's own `decide`, on any part of what the others say; a seed may have read the claim when it started. Of
//! Raft there is this much: a cluster takes whoever asks to join while a majority of its voters is there, who then votes in the place of
//! the one before it in its slot; and a founded one acknowledges once all its founders are bound to it.

use std::collections::{BTreeMap, BTreeSet};

use larder::{
    cluster::genesis::{Scope, SeedAnswer, Step, View, decide},
    store::identity::{Binding, ClusterId, FoundingSet},
};
use stateright::{Model, Property};
use uuid::Uuid;

const SLOTS: usize = 4;
const VOTERS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    incarnation: u8,
    binding: Binding,
    /// There was a claim when it started.
    saw_claim: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    nodes: [Node; SLOTS],
    /// Who votes in the first cluster, by slot.
    voters: [u8; VOTERS],
    claim: bool,
    wipes: u8,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Survivors {
    /// Slots 0 to 2 are the seeds, or slot 0 alone; the others joined. Slot 3 is no seed and asks to join.
    pub(crate) seeds: usize,
    /// There is a place for the claim.
    pub(crate) claims: bool,
    pub(crate) wipes: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Bind(usize, Binding),
    Claim,
    Wipe(usize),
}

fn incarnation(slot: usize, n: u8) -> Uuid {
    Uuid::from_u128(((slot as u128 + 1) << 8) | u128::from(n))
}

impl Survivors {
    fn first_set(&self) -> FoundingSet {
        FoundingSet((0..self.seeds).map(|slot| (slot.to_string(), incarnation(slot, 0))).collect())
    }

    fn first(&self) -> ClusterId {
        self.first_set().cluster_id()
    }

    fn joined(&self) -> Binding {
        Binding::Bound { cluster: self.first(), founders: None }
    }

    fn holds_first(&self, node: &Node) -> bool {
        matches!(node.binding, Binding::Bound { cluster, .. } if cluster == self.first())
    }

    fn has_quorum(&self, world: &World) -> bool {
        let there = |slot: &usize| {
            let node = &world.nodes[*slot];
            node.incarnation == world.voters[*slot] && self.holds_first(node)
        };
        (0..VOTERS).filter(there).count() * 2 > VOTERS
    }

    /// What `slot` does, hearing these.
    fn step(&self, world: &World, slot: usize, heard: &[usize], claim: bool) -> Option<Binding> {
        let node = &world.nodes[slot];
        let is_seed = |slot: &usize| *slot < self.seeds;
        let names = |slots: Vec<usize>| slots.iter().map(usize::to_string).collect();
        let scope = Scope {
            seeds: names((0..SLOTS).filter(is_seed).collect()),
            others: names((0..SLOTS).filter(|slot| !is_seed(slot)).collect()),
            claim: claim.then(|| self.first().to_string()),
        };
        let answers = (0..SLOTS).filter(|other| *other != slot).map(|other| {
            let node = &world.nodes[other];
            let answer = SeedAnswer {
                slot: other.to_string(),
                incarnation: incarnation(other, node.incarnation),
                binding: node.binding.clone(),
                seeds: Vec::new(),
            };
            (other.to_string(), if heard.contains(&other) { Ok(answer) } else { Err("silent".into()) })
        });
        let me = View {
            slot: slot.to_string(),
            incarnation: incarnation(slot, node.incarnation),
            binding: node.binding.clone(),
            holds_data: self.holds_first(node),
        };
        match decide(&me, &answers.collect::<BTreeMap<_, _>>(), &scope) {
            Step::Promise(set) => Some(Binding::Promised(set)),
            Step::Found(set) | Step::Follow(set) => {
                Some(Binding::Bound { cluster: set.cluster_id(), founders: Some(set) })
            }
            Step::Join(doors) if doors.iter().any(|door| door.cluster == self.first()) => {
                // The first member that is no seed waits for the claim.
                let may = slot < VOTERS || !self.claims || world.claim;
                (may && self.has_quorum(world)).then(|| self.joined())
            }
            Step::Join(_) | Step::Stay | Step::Wait(_) => None,
            Step::GiveUp => panic!("who holds data gives nothing up, and no later founder is alone: {me:?}"),
        }
    }

    /// The later clusters that acknowledge.
    fn others_open(&self, world: &World) -> usize {
        let sets: BTreeSet<&FoundingSet> = world
            .nodes
            .iter()
            .filter_map(|node| match &node.binding {
                Binding::Bound { founders: Some(set), cluster } if *cluster != self.first() => Some(set),
                _ => None,
            })
            .collect();
        let is_open = |set: &&&FoundingSet| {
            set.0.iter().all(|(slot, founder)| {
                let slot: usize = slot.parse().expect("slots are numbers");
                let node = &world.nodes[slot];
                incarnation(slot, node.incarnation) == *founder
                    && matches!(&node.binding, Binding::Bound { founders: Some(theirs), .. } if theirs == **set)
            })
        };
        sets.iter().filter(is_open).count()
    }

    /// With everybody heard and nothing more going wrong everybody is in one cluster, or the end is excused: the first cluster lost the majority
    /// of its voters while others hold its data, or while its claim stands. An operator decides.
    fn heals(&self, world: &World) -> bool {
        let mut world = world.clone();
        let excused = !self.has_quorum(&world)
            && (world.claim || world.nodes.iter().any(|node| self.holds_first(node)));
        for _ in 0..20 {
            let before = world.clone();
            world.claim |= self.claims && self.has_quorum(&world);
            for slot in 0..SLOTS {
                let everybody: Vec<usize> = (0..SLOTS).collect();
                if let Some(binding) = self.step(&world, slot, &everybody, world.claim) {
                    self.bind(&mut world, slot, binding);
                }
            }
            if before == world {
                let bound = world.nodes[..VOTERS.min(self.seeds)]
                    .iter()
                    .all(|node| matches!(node.binding, Binding::Bound { .. }));
                let first = world.nodes.iter().filter(|node| self.holds_first(node)).count();
                return excused || (bound && (first == SLOTS || first == 0 && self.others_open(&world) == 1));
            }
        }
        false
    }

    fn bind(&self, world: &mut World, slot: usize, binding: Binding) {
        let node = &mut world.nodes[slot];
        node.binding = binding;
        if slot < VOTERS && self.holds_first(node) {
            world.voters[slot] = world.nodes[slot].incarnation;
        }
    }
}

impl Model for Survivors {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let founders = self.first_set();
        let nodes = std::array::from_fn(|slot| {
            let binding = match slot {
                VOTERS.. => Binding::Formatted,
                _ if slot < self.seeds => {
                    Binding::Bound { cluster: self.first(), founders: Some(founders.clone()) }
                }
                _ => self.joined(),
            };
            Node { incarnation: 0, binding, saw_claim: false }
        });
        // Where others than the seeds vote, the claim was made before they were added.
        let claim = self.claims && self.seeds < VOTERS;
        vec![World { nodes, voters: [0; VOTERS], claim, wipes: self.wipes }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for slot in 0..SLOTS {
            let others: Vec<usize> = (0..SLOTS).filter(|other| *other != slot).collect();
            for some in 0..1_usize << others.len() {
                let heard: Vec<usize> = others
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| some & (1 << at) != 0)
                    .map(|(_, o)| *o)
                    .collect();
                for claim in [world.claim, world.nodes[slot].saw_claim] {
                    if let Some(binding) = self.step(world, slot, &heard, claim) {
                        let action = Action::Bind(slot, binding);
                        if !actions.contains(&action) {
                            actions.push(action);
                        }
                    }
                }
            }
            if world.wipes > 0 {
                actions.push(Action::Wipe(slot));
            }
        }
        if self.claims && !world.claim && self.has_quorum(world) {
            actions.push(Action::Claim);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Bind(slot, binding) => self.bind(&mut world, slot, binding),
            Action::Claim => world.claim = true,
            Action::Wipe(slot) => {
                world.wipes -= 1;
                let incarnation = world.nodes[slot].incarnation + 1;
                let saw_claim = world.claim;
                world.nodes[slot] = Node { incarnation, binding: Binding::Formatted, saw_claim };
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(TWO_ACKNOWLEDGE, |model: &Self, world: &World| {
                let held = world.nodes.iter().any(|node| model.holds_first(node));
                model.others_open(world) + usize::from(held) <= 1
            }),
            Property::always(STUCK, Self::heals),
            Property::sometimes("a wiped slot joins again", |model, world: &World| {
                world.nodes.iter().any(|node| node.incarnation > 0 && model.holds_first(node))
            }),
        ];
        if self.claims && usize::from(self.wipes) >= self.seeds {
            all.push(Property::sometimes(
                "all seeds are empty while others hold data",
                |model, world: &World| {
                    let empty = |node: &Node| node.binding == Binding::Formatted;
                    world.claim
                        && world.nodes[..model.seeds].iter().all(empty)
                        && world.nodes.iter().any(|node| model.holds_first(node))
                },
            ));
        }
        if self.seeds == VOTERS && usize::from(self.wipes) >= self.seeds {
            all.push(Property::sometimes(
                "with all lost, and no claim, another cluster opens",
                |model, world: &World| model.others_open(world) > 0 && !world.claim,
            ));
        }
        all
    }
}

pub(crate) const TWO_ACKNOWLEDGE: &str =
    "no second cluster acknowledges while a node holds the first one's data";
const STUCK: &str = "never stuck beside a cluster that is there";
