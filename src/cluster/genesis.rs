//! The leaderless genesis, as a pure function.
//!
//! # Purpose
//! Three empty nodes become one cluster, whatever is lost, late, doubled, stopped or wiped meanwhile, and never two.
//! Nobody proposes: the cluster's id is the hash of its founders' incarnations ([`FoundingSet`]), so seeds that heard
//! the same incarnations mean the same cluster.
//!
//! # Flow
//! A seed asks the other seeds who they are and what they are bound to, hands what it heard to [`decide`], makes the
//! step durable, speaks of it only then, and asks anew:
//!
//! ```text
//!              all others answered,          all others promise
//!              none bound                    the same set
//! Formatted ------------------> Promised(set) ------------------> Bound(set) --> Raft --> gate
//!     ^                          |   ^  |                          ^     |
//!     |                          +---+  +--------------------------+     | nothing after the first entry,
//!     |                     a seed was      one is bound to a set        | and every other founder is gone
//!     |                     wiped meanwhile that names me                |
//!     +------------------------------------------------------------------+ new incarnation
//! ```
//!
//! # Invariants
//! - A promise binds nobody and may be replaced; a bound node never unbinds, except by giving up.
//! - A node that holds an entry after the first never gives up, so what a majority acknowledged stays.
//! - No client write is acknowledged before [`gate_open`]; then every founder holds such an entry, so no founder can give up,
//!   and no second cluster can ever come out of these seeds.
//! - Silence decides nothing: a seed that does not answer is waited for.
//!
//! # Not here
//! Asking and saving (`run`); the gate's entry in the log (`raft`); what follows a [`Step::Join`] (`plan`).
//!
//! `tests/genesis_model` explores these very functions with a model checker.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::store::identity::{Binding, ClusterId, FoundingSet, raft_id};

/// The index of the founding membership. Every founder writes that entry by itself, so having it proves nothing.
pub const FIRST_INDEX: u64 = 0;

/// What a seed is, as far as genesis asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its slot.
    pub slot: String,
    /// Its incarnation.
    pub incarnation: Uuid,
    /// Its durable binding.
    pub binding: Binding,
    /// Whether its log reaches beyond the first entry, the founding membership that every founder writes by itself.
    pub holds_data: bool,
}

/// What another seed answered: a durable state of it, which it may have left since.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeedAnswer {
    /// The slot that it says it is.
    pub slot: String,
    /// Its incarnation.
    pub incarnation: Uuid,
    /// What it is bound to.
    pub binding: Binding,
    /// The slots of the seeds, as it was told; empty if it is bound, or does not say.
    pub seeds: Vec<String>,
}

/// Whom a node asks, and what else it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The slots of all seeds, the node's own too if it is one.
    pub seeds: Vec<String>,
    /// Other slots where members may be: they found nothing, but a bound one keeps the seeds from it.
    pub others: Vec<String>,
    /// The cluster that claimed these seeds, in words of the claim; see [`Waiting::Claimed`].
    pub claim: Option<String>,
}

/// What was heard, by the slot that was asked: an answer, or why there is none. A slot that is missing was not asked yet.
pub type Answers = BTreeMap<String, Result<SeedAnswer, String>>;

/// What a seed does next. `Promise`, `Found` and `Follow` must be durable before they are spoken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write `Promised(set)`, replacing an older promise.
    Promise(FoundingSet),
    /// Write `Bound(set)`, write the first membership, start Raft with exactly this set.
    Found(FoundingSet),
    /// As `Found`, because somebody is bound to this set already.
    Follow(FoundingSet),
    /// Bound, and it stays so: run Raft.
    Stay,
    /// Ask these, who are bound to a cluster that does not name this node, to let it join; and write `Bound` without founders
    /// once one of them has.
    Join(Vec<Door>),
    /// The cluster this founder is bound to can never come to be, and it holds nothing of it: format the directory anew.
    /// Raft must be stopped, and `holds_data` must still be false after that, before anything is deleted.
    GiveUp,
    /// Nothing to do but ask again.
    Wait(Waiting),
}

/// A bound node that may let others join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// Its slot.
    pub slot: String,
    /// Its incarnation's Raft id.
    pub raft_id: u64,
    /// Its cluster.
    pub cluster: ClusterId,
}

/// Why a seed waits. Its `Display` is the sentence for the log and for `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// These seeds did not answer. Without them no cluster is founded.
    Missing(Vec<(String, String)>),
    /// These seeds answered, but do not promise the same founding set yet.
    NotPromised(Vec<String>),
    /// A cluster of these seeds was written to before, and none of its members is here.
    Claimed {
        /// The claim.
        claim: String,
    },
    /// A seed was told of other seeds.
    SeedsDiffer {
        /// The seed.
        slot: String,
        /// What it was told.
        theirs: Vec<String>,
        /// What this node was told.
        ours: Vec<String>,
    },
    /// Two slots have one incarnation: a copied data directory.
    SameIncarnation {
        /// One of them.
        slot: String,
        /// The other one.
        other: String,
    },
    /// A seed was retired and did not come back as a new incarnation yet.
    SeedLeft {
        /// The seed.
        slot: String,
        /// The cluster it left.
        cluster: ClusterId,
    },
    /// This directory was retired from its cluster.
    Retired {
        /// The cluster it left.
        cluster: ClusterId,
    },
    /// This node is no seed, so it can only join.
    NotASeed {
        /// This node's slot.
        slot: String,
        /// The seeds it waits for.
        seeds: Vec<String>,
    },
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(seeds) => {
                write!(f, "no cluster yet; every seed must answer before one is founded: ")?;
                for (at, (slot, why)) in seeds.iter().enumerate() {
                    write!(f, "{}seed {slot} is missing ({why})", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::NotPromised(seeds) => write!(
                f,
                "no cluster yet; every seed answered, and seed {} has still to promise the same founders",
                seeds.join(" and seed ")
            ),
            Self::Claimed { claim } => write!(
                f,
                "every seed is empty, but their cluster {claim} was written to before: waiting for a member of it; bring back \
                 a volume of it, or, if all are lost, delete the claim to start an empty cluster"
            ),
            Self::SeedsDiffer { slot, theirs, ours } => write!(
                f,
                "no cluster yet; this node was told that the seeds are {}, and seed {slot} that they are {}: give all nodes \
                 the same list",
                ours.join(", "),
                theirs.join(", ")
            ),
            Self::SameIncarnation { slot, other } => write!(
                f,
                "the slots {slot} and {other} run on copies of one data directory; empty the copied one, a directory is a \
                 member and must not be copied"
            ),
            Self::SeedLeft { slot, cluster } => write!(
                f,
                "no cluster yet; seed {slot} runs on a data directory that was retired from cluster {cluster}: empty it"
            ),
            Self::Retired { cluster } => write!(
                f,
                "this data directory was retired from cluster {cluster}; start this slot on an empty directory"
            ),
            Self::NotASeed { slot, seeds } => write!(
                f,
                "slot {slot} is no seed and joins once there is a cluster; none of the seeds {} belongs to one yet",
                seeds.join(", ")
            ),
        }
    }
}

/// What a node does next, from what it is and what it heard.
///
/// Pure and total: any answer, however old or wrong, gives a step; an empty `answers` gives a wait (or, for a lone seed,
/// the founding). Answers must stem from questions that were asked after this node's last own step: then what a
/// giving-up founder heard of the others can never become untrue again.
pub fn decide(me: &View, answers: &Answers, scope: &Scope) -> Step {
    match &me.binding {
        Binding::Bound { cluster, founders } => match founders {
            Some(set) if !me.holds_data && all_others_are_gone(me, *cluster, set, answers) => Step::GiveUp,
            _ => Step::Stay,
        },
        Binding::Left { cluster } | Binding::Superseded { cluster } => {
            Step::Wait(Waiting::Retired { cluster: *cluster })
        }
        Binding::Formatted | Binding::Promised(_) => decide_unbound(me, answers, scope),
    }
}

/// Whether the leader may propose `Open`: every voter of the current membership has acknowledged an entry after the first.
///
/// `matched` is what the leader knows to be on each voter's disk, by Raft id, its own log included; `first_index` is the
/// index of the founding membership, which each founder writes by itself and which therefore proves nothing. Once it
/// holds it holds for ever: the entry is on every voter, so it is committed. No voters, no gate.
pub fn gate_open(voters: &BTreeSet<u64>, matched: &BTreeMap<u64, u64>, first_index: u64) -> bool {
    !voters.is_empty() && voters.iter().all(|id| matched.get(id).is_some_and(|index| *index > first_index))
}

/// Whether every other founder of `set` surely never acknowledges anything in it: it is another incarnation now, or is
/// bound elsewhere. False for a lone founder, and for one that is not heard.
fn all_others_are_gone(me: &View, cluster: ClusterId, set: &FoundingSet, answers: &Answers) -> bool {
    let mut others = set.0.iter().filter(|(slot, _)| **slot != me.slot).peekable();
    others.peek().is_some()
        && others.all(|(slot, incarnation)| match answers.get(slot) {
            Some(Ok(answer)) => {
                answer.incarnation != *incarnation
                    || match &answer.binding {
                        Binding::Bound { cluster: theirs, .. }
                        | Binding::Left { cluster: theirs }
                        | Binding::Superseded { cluster: theirs } => *theirs != cluster,
                        Binding::Formatted | Binding::Promised(_) => false,
                    }
            }
            Some(Err(_)) | None => false,
        })
}

fn decide_unbound(me: &View, answers: &Answers, scope: &Scope) -> Step {
    let Scope { seeds, others, claim } = scope;
    let not_me = |slot: &&String| **slot != me.slot;
    let heard = |slots: Vec<&String>| -> Vec<&SeedAnswer> {
        slots.into_iter().filter_map(|slot| answers.get(slot)?.as_ref().ok()).collect()
    };
    let all = heard(seeds.iter().chain(others).filter(not_me).collect());

    // One answer is enough to follow: whoever is bound to a set heard all of it promise, me included.
    if let Some(set) = all.iter().find_map(|answer| founded_with(me, answer)) {
        return Step::Follow(set.clone());
    }
    let doors: Vec<Door> = all.iter().filter_map(|answer| door(answer)).collect();
    if !doors.is_empty() {
        return Step::Join(doors);
    }
    if !seeds.contains(&me.slot) {
        return Step::Wait(Waiting::NotASeed { slot: me.slot.clone(), seeds: seeds.clone() });
    }
    let heard = heard(seeds.iter().filter(not_me).collect());
    for answer in &heard {
        if let Binding::Left { cluster } = answer.binding {
            return Step::Wait(Waiting::SeedLeft { slot: answer.slot.clone(), cluster });
        }
        if !answer.seeds.is_empty() && !same_slots(&answer.seeds, seeds) {
            let (slot, theirs) = (answer.slot.clone(), answer.seeds.clone());
            return Step::Wait(Waiting::SeedsDiffer { slot, theirs, ours: seeds.clone() });
        }
    }
    // Every seed must answer; of the others it is enough to have asked.
    let silent = |slot: &String| match answers.get(slot) {
        Some(Ok(_)) => None,
        Some(Err(why)) => Some((slot.clone(), why.clone())),
        None => Some((slot.clone(), "not asked yet".into())),
    };
    let unasked = others.iter().filter(not_me).filter(|slot| !answers.contains_key(*slot));
    let missing: Vec<_> = seeds.iter().filter(not_me).chain(unasked).filter_map(silent).collect();
    if !missing.is_empty() {
        return Step::Wait(Waiting::Missing(missing));
    }
    if let Some(claim) = claim {
        return Step::Wait(Waiting::Claimed { claim: claim.clone() });
    }

    let mut set = FoundingSet(heard.iter().map(|answer| (answer.slot.clone(), answer.incarnation)).collect());
    set.0.insert(me.slot.clone(), me.incarnation);
    if let Some(waiting) = shared_incarnation(&set) {
        return Step::Wait(waiting);
    }
    // A lone seed has nobody to agree with.
    if set.0.len() > 1 && me.binding != Binding::Promised(set.clone()) {
        return Step::Promise(set);
    }
    let behind: Vec<_> = heard
        .iter()
        .filter(|answer| !matches!(&answer.binding, Binding::Promised(theirs) if *theirs == set))
        .map(|answer| answer.slot.clone())
        .collect();
    if behind.is_empty() { Step::Found(set) } else { Step::Wait(Waiting::NotPromised(behind)) }
}

/// Where to ask to join: at whoever is bound.
fn door(answer: &SeedAnswer) -> Option<Door> {
    let Binding::Bound { cluster, .. } = answer.binding else { return None };
    Some(Door { slot: answer.slot.clone(), raft_id: raft_id(answer.incarnation), cluster })
}

fn same_slots(a: &[String], b: &[String]) -> bool {
    a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
}

/// The set that `answer` is bound to, if it names this very incarnation and still is that cluster's id.
fn founded_with<'a>(me: &View, answer: &'a SeedAnswer) -> Option<&'a FoundingSet> {
    match &answer.binding {
        Binding::Bound { cluster, founders: Some(set) }
            if set.0.get(&me.slot) == Some(&me.incarnation) && set.cluster_id() == *cluster =>
        {
            Some(set)
        }
        _ => None,
    }
}

/// Two founders that Raft could not tell apart.
fn shared_incarnation(set: &FoundingSet) -> Option<Waiting> {
    let mut by_raft_id = BTreeMap::new();
    set.0.iter().find_map(|(slot, incarnation)| {
        by_raft_id
            .insert(raft_id(*incarnation), slot)
            .map(|other| Waiting::SameIncarnation { slot: other.clone(), other: slot.clone() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inc(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn seeds() -> Vec<String> {
        ["0", "1", "2"].map(String::from).to_vec()
    }

    fn scope() -> Scope {
        Scope { seeds: seeds(), ..Scope::default() }
    }

    fn alone_scope() -> Scope {
        Scope { seeds: vec!["0".into()], ..Scope::default() }
    }

    fn set(a: u128, b: u128, c: u128) -> FoundingSet {
        FoundingSet(seeds().into_iter().zip([a, b, c].map(inc)).collect())
    }

    fn bound(set: FoundingSet) -> Binding {
        Binding::Bound { cluster: set.cluster_id(), founders: Some(set) }
    }

    fn me(binding: Binding) -> View {
        View { slot: "0".into(), incarnation: inc(10), binding, holds_data: false }
    }

    fn heard(of: [(u8, u128, Binding); 2]) -> Answers {
        of.into_iter()
            .map(|(slot, incarnation, binding)| {
                let slot = slot.to_string();
                (
                    slot.clone(),
                    Ok(SeedAnswer { slot, incarnation: inc(incarnation), binding, seeds: Vec::new() }),
                )
            })
            .collect()
    }

    fn formatted() -> Answers {
        heard([(1, 20, Binding::Formatted), (2, 30, Binding::Formatted)])
    }

    #[test]
    fn promises_exactly_what_it_heard() {
        assert_eq!(decide(&me(Binding::Formatted), &formatted(), &scope()), Step::Promise(set(10, 20, 30)));
    }

    #[test]
    fn a_newer_promise_replaces_one_that_names_a_wiped_seed() {
        let step = decide(&me(Binding::Promised(set(10, 20, 29))), &formatted(), &scope());
        assert_eq!(step, Step::Promise(set(10, 20, 30)));
    }

    #[test]
    fn waits_for_the_promise_of_each_other_seed_by_name() {
        let answers = heard([(1, 20, Binding::Promised(set(10, 20, 30))), (2, 30, Binding::Formatted)]);
        let step = decide(&me(Binding::Promised(set(10, 20, 30))), &answers, &scope());
        assert_eq!(step, Step::Wait(Waiting::NotPromised(vec!["2".into()])));
    }

    #[test]
    fn founds_once_all_promise_the_same() {
        let all = Binding::Promised(set(10, 20, 30));
        let answers = heard([(1, 20, all.clone()), (2, 30, all.clone())]);
        assert_eq!(decide(&me(all), &answers, &scope()), Step::Found(set(10, 20, 30)));
    }

    #[test]
    fn does_not_found_without_having_promised_itself() {
        let all = Binding::Promised(set(10, 20, 30));
        let answers = heard([(1, 20, all.clone()), (2, 30, all)]);
        assert_eq!(decide(&me(Binding::Formatted), &answers, &scope()), Step::Promise(set(10, 20, 30)));
    }

    #[test]
    fn follows_on_one_answer_with_the_other_seed_silent() {
        let mut answers = heard([(1, 20, bound(set(10, 20, 30))), (2, 30, Binding::Formatted)]);
        answers.insert("2".into(), Err("connection refused".into()));
        let step = decide(&me(Binding::Formatted), &answers, &scope());
        assert_eq!(step, Step::Follow(set(10, 20, 30)));
    }

    #[test]
    fn does_not_follow_a_set_that_is_not_the_hash_of_its_cluster() {
        let other = Binding::Bound { cluster: ClusterId([7; 16]), founders: Some(set(10, 20, 30)) };
        let answers = heard([(1, 20, other), (2, 30, Binding::Formatted)]);
        let step = decide(&me(Binding::Formatted), &answers, &scope());
        assert!(matches!(step, Step::Join(_)), "{step:?}");
    }

    #[test]
    fn joins_a_cluster_that_does_not_name_it_at_any_door() {
        let foreign = set(11, 20, 30);
        let doors = |slots: &[(u8, u128)]| {
            let cluster = foreign.cluster_id();
            let door =
                |(slot, i): &(u8, u128)| Door { slot: slot.to_string(), raft_id: raft_id(inc(*i)), cluster };
            Step::Join(slots.iter().map(door).collect())
        };
        let answers = heard([(1, 20, bound(foreign.clone())), (2, 30, bound(foreign.clone()))]);
        assert_eq!(decide(&me(Binding::Formatted), &answers, &scope()), doors(&[(1, 20), (2, 30)]));
        let promised = me(Binding::Promised(set(10, 20, 30)));
        assert_eq!(decide(&promised, &answers, &scope()), doors(&[(1, 20), (2, 30)]));
        // A member that is no seed is a door as well, and keeps the seeds from founding.
        let joined = Binding::Bound { cluster: foreign.cluster_id(), founders: None };
        let mut answers = formatted();
        let answer =
            SeedAnswer { slot: "3".into(), incarnation: inc(40), binding: joined, seeds: Vec::new() };
        let wide = Scope { others: vec!["3".into()], ..scope() };
        let step = decide(&me(Binding::Formatted), &answers, &wide);
        assert!(matches!(&step, Step::Wait(Waiting::Missing(missing)) if missing[0].0 == "3"), "{step:?}");
        answers.insert("3".into(), Ok(answer));
        assert_eq!(decide(&me(Binding::Formatted), &answers, &wide), doors(&[(3, 40)]));
        answers.insert("3".into(), Err("it does not resolve".into()));
        assert_eq!(decide(&me(Binding::Formatted), &answers, &wide), Step::Promise(set(10, 20, 30)));
    }

    #[test]
    fn a_node_that_is_no_seed_waits_for_a_cluster() {
        let view = View { slot: "3".into(), ..me(Binding::Formatted) };
        let step = decide(&view, &Answers::new(), &scope());
        let Step::Wait(waiting) = step else { panic!("{step:?}") };
        assert!(waiting.to_string().contains("none of the seeds 0, 1, 2 belongs to one yet"), "{waiting}");
    }

    #[test]
    fn a_claim_keeps_empty_seeds_from_founding_but_nobody_from_joining() {
        let claimed = Scope { claim: Some("c1".into()), ..scope() };
        let step = decide(&me(Binding::Formatted), &formatted(), &claimed);
        assert_eq!(step, Step::Wait(Waiting::Claimed { claim: "c1".into() }));
        let promised = Binding::Promised(set(10, 20, 30));
        let answers = heard([(1, 20, promised.clone()), (2, 30, promised.clone())]);
        let step = decide(&me(promised), &answers, &claimed);
        assert_eq!(step, Step::Wait(Waiting::Claimed { claim: "c1".into() }));
        let answers = heard([(1, 20, bound(set(11, 20, 30))), (2, 30, Binding::Formatted)]);
        assert!(matches!(decide(&me(Binding::Formatted), &answers, &claimed), Step::Join(_)));
    }

    #[test]
    fn seeds_that_were_told_of_other_seeds_do_not_found() {
        let mut answers = formatted();
        let told = |answers: &mut Answers, seeds: &[&str]| {
            let Some(Ok(answer)) = answers.get_mut("1") else { panic!("slot 1 answered") };
            answer.seeds = seeds.iter().map(ToString::to_string).collect();
        };
        told(&mut answers, &["1", "0"]);
        let step = decide(&me(Binding::Formatted), &answers, &scope());
        let Step::Wait(waiting) = step else { panic!("{step:?}") };
        assert!(waiting.to_string().contains("seed 1 that they are 1, 0"), "{waiting}");
        told(&mut answers, &["2", "1", "0"]);
        assert!(matches!(decide(&me(Binding::Formatted), &answers, &scope()), Step::Promise(_)));
    }

    #[test]
    fn names_the_missing_seed_and_why() {
        let mut answers = formatted();
        answers.insert("2".into(), Err("connection refused".into()));
        let Step::Wait(waiting) = decide(&me(Binding::Formatted), &answers, &scope()) else { panic!() };
        let sentence = waiting.to_string();
        assert!(sentence.contains("seed 2 is missing (connection refused)"), "{sentence}");
        assert!(!sentence.contains("seed 1"), "{sentence}");
    }

    #[test]
    fn silence_founds_nothing() {
        let step = decide(&me(Binding::Formatted), &Answers::new(), &scope());
        assert!(matches!(&step, Step::Wait(Waiting::Missing(slots)) if slots.len() == 2), "{step:?}");
    }

    #[test]
    fn a_lone_seed_founds_at_once() {
        let step = decide(&me(Binding::Formatted), &Answers::new(), &alone_scope());
        assert_eq!(step, Step::Found(FoundingSet([("0".into(), inc(10))].into())));
    }

    #[test]
    fn a_lone_founder_never_gives_up() {
        let alone = FoundingSet([("0".into(), inc(10))].into());
        assert_eq!(decide(&me(bound(alone)), &Answers::new(), &alone_scope()), Step::Stay);
    }

    #[test]
    fn gives_up_only_empty_and_only_if_every_other_founder_is_gone() {
        let mine = me(bound(set(10, 20, 30)));
        let wiped = heard([(1, 21, Binding::Formatted), (2, 31, Binding::Formatted)]);
        assert_eq!(decide(&mine, &wiped, &scope()), Step::GiveUp);
        assert_eq!(decide(&View { holds_data: true, ..mine.clone() }, &wiped, &scope()), Step::Stay);

        let elsewhere = heard([(1, 20, bound(set(9, 20, 30))), (2, 31, Binding::Formatted)]);
        assert_eq!(decide(&mine, &elsewhere, &scope()), Step::GiveUp);

        let one_left = heard([(1, 20, Binding::Promised(set(9, 20, 30))), (2, 31, Binding::Formatted)]);
        assert_eq!(decide(&mine, &one_left, &scope()), Step::Stay, "seed 1 still follows me");

        let mut silent = wiped;
        silent.insert("2".into(), Err("timed out".into()));
        assert_eq!(decide(&mine, &silent, &scope()), Step::Stay);
    }

    #[test]
    fn one_that_joined_never_gives_up() {
        let joined = me(Binding::Bound { cluster: ClusterId([1; 16]), founders: None });
        let wiped = heard([(1, 21, Binding::Formatted), (2, 31, Binding::Formatted)]);
        assert_eq!(decide(&joined, &wiped, &scope()), Step::Stay);
    }

    #[test]
    fn copies_of_one_directory_do_not_found() {
        let answers = heard([(1, 10, Binding::Formatted), (2, 30, Binding::Formatted)]);
        let step = decide(&me(Binding::Formatted), &answers, &scope());
        assert_eq!(step, Step::Wait(Waiting::SameIncarnation { slot: "0".into(), other: "1".into() }));
    }

    #[test]
    fn retired_directories_found_nothing() {
        let left = Binding::Left { cluster: ClusterId([3; 16]) };
        let step = decide(&me(left.clone()), &formatted(), &scope());
        assert!(matches!(step, Step::Wait(Waiting::Retired { .. })), "{step:?}");
        let answers = heard([(1, 20, left), (2, 30, Binding::Formatted)]);
        let step = decide(&me(Binding::Formatted), &answers, &scope());
        assert!(matches!(step, Step::Wait(Waiting::SeedLeft { .. })), "{step:?}");
    }

    #[test]
    fn the_gate_needs_an_entry_after_the_first_from_every_voter() {
        let voters = BTreeSet::from([1, 2, 3]);
        assert!(!gate_open(&voters, &BTreeMap::from([(1, 5), (2, 5)]), 0), "one was never heard");
        assert!(
            !gate_open(&voters, &BTreeMap::from([(1, 5), (2, 5), (3, 0)]), 0),
            "one has only the first entry"
        );
        assert!(!gate_open(&voters, &BTreeMap::from([(1, 5), (2, 5), (4, 5)]), 0), "a stranger is no voter");
        assert!(gate_open(&voters, &BTreeMap::from([(1, 5), (2, 1), (3, 4)]), 0));
        assert!(!gate_open(&BTreeSet::new(), &BTreeMap::new(), 0));
    }
}
