//! Which change of the membership comes next, as a pure function.
//!
//! # Purpose
//! One path for join, replace, promote, demote and retire. The leader looks at who is in the cluster, who answers and who
//! asked for something, calls [`next`], carries out that one change, and looks again. Nothing is remembered between two looks but the
//! wishes, which those who have them repeat: so a leader that dies at any point leaves nothing behind that the next one
//! would not find in the membership itself.
//!
//! # Flow
//! ```text
//!                      caught up, and no other incarnation
//!           added       in its slot votes: the voters grow
//! newcomer --------> learner ------------------------------> voter
//!                      |   caught up, and a dead incarnation    | asked to leave, or too many voters
//!                      |   in its slot votes: ONE joint change  |
//!                      +--------------------------------------> voter; the dead one is out, its Raft id retired for ever
//! ```
//!
//! # Invariants
//! - One change at a time; a joint membership that a leader left behind is finished first.
//! - The voters are the largest odd number of members, at most `max_voters`; between two changes they may be even.
//! - No change leaves voters of whom no majority answers.
//! - An incarnation that answers is never replaced by another one in its slot.
//! - Before the cluster is open nothing changes but the swap of a wiped founder, by others who each hold an entry beyond the first.
//! - The leader does not vote itself out while another voter of the new set could lead: it hands over first.
//!
//! # Not here
//! Who answers and carrying a change out (`raft`), the loop and the wishes (`keeper`). `tests/membership_model` explores these very
//! functions with a model checker.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

pub use crate::raft::Newcomer;
use crate::raft::handshake::slot_order;

/// A member, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its slot.
    pub slot: String,
    /// Its incarnation.
    pub incarnation: Uuid,
    /// Whether it acknowledged anything within the last election timeout; the leader itself always.
    pub answers: bool,
    /// Whether it has everything that the leader had a moment ago.
    pub caught_up: bool,
    /// Whether it acknowledged an entry after the first, the founding membership.
    pub holds_entry: bool,
}

/// What the leader knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Roster {
    /// The leader's Raft id.
    pub me: u64,
    /// Whether genesis' gate is open.
    pub open: bool,
    /// The voters: one set, or two during a joint change.
    pub configs: Vec<BTreeSet<u64>>,
    /// Everybody in the membership, by Raft id; who is in no config is a learner.
    pub members: BTreeMap<u64, Member>,
    /// How many voters there may be.
    pub max_voters: usize,
    /// Who is to be retired.
    pub leaving: BTreeSet<u64>,
    /// A learner that is to vote in the place of a voter that does not answer.
    pub promote: Option<u64>,
    /// Who asked to join, by slot.
    pub newcomers: BTreeMap<String, Newcomer>,
}

/// A change of the membership.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// Add a learner.
    Add(Newcomer),
    /// Remove a learner; its Raft id is retired.
    Remove(u64),
    /// Make these the voters, by a joint change (or finish one).
    Voters {
        /// Who votes afterwards.
        ids: BTreeSet<u64>,
        /// Whether those who vote no more stay as learners; else they are out, and their Raft ids retired.
        keep_removed: bool,
    },
    /// Hand leadership to this slot, because this leader is about to vote no more.
    HandOver(String),
}

/// Why something that was asked for is not done now. `Display` is a sentence for the log and for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// Another incarnation of the slot answers.
    #[error(
        "slot {0} is occupied: another incarnation of it answers; two nodes run for this slot, stop one of them"
    )]
    Occupied(String),
    /// Too few of the voters would answer.
    #[error(
        "the change waits: of the voters after it only {answering} of {voters} answer; bring another one back"
    )]
    NoQuorum {
        /// Who would answer.
        answering: usize,
        /// Of how many.
        voters: usize,
    },
    /// The cluster is not open yet.
    #[error("slot {0} waits: members are added once every founder has acknowledged an entry")]
    NotOpen(String),
    /// Every voter answers and there is no room for one more.
    #[error(
        "slot {0} is not promoted: every voter answers, and there may be no more of them; raise --max-voters or retire one"
    )]
    NoRoom(String),
    /// It lags.
    #[error("slot {0} is catching up")]
    Lagging(String),
}

impl Blocked {
    /// Whether it tells the asker about this slot that waiting alone will not do.
    pub fn answers_for_good(&self, slot: Option<&str>) -> bool {
        match self {
            Self::Occupied(blocked) | Self::NoRoom(blocked) => Some(blocked.as_str()) == slot,
            Self::NoQuorum { .. } | Self::NotOpen(_) | Self::Lagging(_) => false,
        }
    }
}

/// What comes next, and what has to wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The next change; `None`: everything is as it should be, or must wait.
    pub change: Option<Change>,
    /// What waits, and why.
    pub blocked: Vec<Blocked>,
}

/// What the leader does next with its membership.
///
/// Pure and total. The caller looks anew after each change; nothing but one change is ever under way.
pub fn next(roster: &Roster) -> Plan {
    let mut plan = Plan::default();
    plan.change = finish(roster)
        .or_else(|| remove_learner(roster, &mut plan.blocked))
        .or_else(|| swap(roster, &mut plan.blocked))
        .or_else(|| promote(roster, &mut plan.blocked))
        .or_else(|| resize(roster, &mut plan.blocked))
        .or_else(|| add(roster, &mut plan.blocked));
    plan
}

/// Whether a member votes, in any of the configs.
pub fn is_voter(roster: &Roster, id: u64) -> bool {
    roster.configs.iter().any(|config| config.contains(&id))
}

/// How many vote among so many: the largest odd number, at most `max_voters`.
pub fn voters_among(members: usize, max_voters: usize) -> usize {
    let most = members.min(max_voters);
    if most.is_multiple_of(2) { most.saturating_sub(1) } else { most }
}

/// A joint membership is what a leader leaves that dies in the middle of a change.
fn finish(roster: &Roster) -> Option<Change> {
    let [before, after] = roster.configs.as_slice() else { return None };
    // Out goes who was swapped: somebody else votes in its slot. Who was only demoted stays.
    let swapped =
        before.difference(after).any(|id| slot_of(roster, *id).is_some_and(|s| votes_in(roster, after, s)));
    Some(Change::Voters { ids: after.clone(), keep_removed: !swapped })
}

fn slot_of(roster: &Roster, id: u64) -> Option<&str> {
    roster.members.get(&id).map(|member| member.slot.as_str())
}

fn votes_in(roster: &Roster, config: &BTreeSet<u64>, slot: &str) -> bool {
    config.iter().any(|id| slot_of(roster, *id) == Some(slot))
}

fn voters(roster: &Roster) -> BTreeSet<u64> {
    roster.configs.last().cloned().unwrap_or_default()
}

fn answers(roster: &Roster, id: u64) -> bool {
    id == roster.me || roster.members.get(&id).is_some_and(|member| member.answers)
}

/// By slot: the lowest first.
fn learners(roster: &Roster) -> Vec<(u64, &Member)> {
    let mut learners: Vec<_> =
        roster.members.iter().filter(|(id, _)| !is_voter(roster, **id)).map(|(id, m)| (*id, m)).collect();
    learners.sort_by_key(|(_, member)| slot_order(&member.slot));
    learners
}

/// Learners that are to leave, or whose slot was wiped once more before they voted; and who is silent while another one of its
/// slot answers: a wiped voter that was demoted, or a newcomer whose ask came late, after its slot was wiped again.
fn remove_learner(roster: &Roster, blocked: &mut Vec<Blocked>) -> Option<Change> {
    for (id, learner) in learners(roster) {
        if roster.leaving.contains(&id) {
            return Some(Change::Remove(id));
        }
        let superseded = roster.newcomers.get(&learner.slot).is_some_and(|newcomer| newcomer.raft_id != id);
        if superseded && learner.answers {
            blocked.push(Blocked::Occupied(learner.slot.clone()));
        } else if superseded || (!learner.answers && slot_answers(roster, &learner.slot)) {
            return Some(Change::Remove(id));
        }
    }
    None
}

fn slot_answers(roster: &Roster, slot: &str) -> bool {
    roster.members.iter().any(|(id, member)| member.slot == slot && answers(roster, *id))
}

/// A learner takes the place of the dead incarnation that votes in its slot.
fn swap(roster: &Roster, blocked: &mut Vec<Blocked>) -> Option<Change> {
    let voters = voters(roster);
    for (id, learner) in learners(roster) {
        let Some(old) = voters.iter().copied().find(|old| slot_of(roster, *old) == Some(&learner.slot))
        else {
            continue;
        };
        if answers(roster, old) {
            blocked.push(Blocked::Occupied(learner.slot.clone()));
            continue;
        }
        if !(learner.caught_up && learner.answers) {
            blocked.push(Blocked::Lagging(learner.slot.clone()));
            continue;
        }
        // Before the gate an entry may be lost with a founder that gives up: only founders that hold one never do.
        let others_hold = voters
            .iter()
            .filter(|voter| **voter != old)
            .all(|voter| roster.members.get(voter).is_some_and(|m| m.holds_entry) && answers(roster, *voter));
        if !roster.open && !others_hold {
            blocked.push(Blocked::NotOpen(learner.slot.clone()));
            continue;
        }
        let ids = voters.iter().copied().filter(|voter| *voter != old).chain([id]).collect();
        if let Some(change) = with_quorum(roster, ids, false, blocked) {
            return Some(change);
        }
    }
    None
}

/// A learner takes the place of a voter in another slot that does not answer, because an operator said so.
fn promote(roster: &Roster, blocked: &mut Vec<Blocked>) -> Option<Change> {
    let id = roster.promote?;
    let member = roster.members.get(&id).filter(|_| roster.open && !is_voter(roster, id))?;
    let voters = voters(roster);
    if votes_in(roster, &voters, &member.slot) {
        // It is replacing the incarnation before it: that path is `swap`.
        return None;
    }
    if !(member.caught_up && member.answers) {
        blocked.push(Blocked::Lagging(member.slot.clone()));
        return None;
    }
    let Some(out) =
        voters.iter().copied().filter(|voter| !answers(roster, *voter)).max_by_key(|v| order(roster, *v))
    else {
        blocked.push(Blocked::NoRoom(member.slot.clone()));
        return None;
    };
    let ids = voters.iter().copied().filter(|voter| *voter != out).chain([id]).collect();
    with_quorum(roster, ids, true, blocked)
}

fn order(roster: &Roster, id: u64) -> (usize, &str) {
    slot_order(slot_of(roster, id).unwrap_or_default())
}

/// The voters grow by learners and shrink by those who leave, to the number that there should be.
fn resize(roster: &Roster, blocked: &mut Vec<Blocked>) -> Option<Change> {
    if !roster.open {
        return None;
    }
    let voters = voters(roster);
    let mut staying: Vec<u64> = voters.iter().copied().filter(|id| !roster.leaving.contains(id)).collect();
    // When some must go, those who do not answer go first, then the highest slots.
    staying.sort_by_key(|id| (!answers(roster, *id), order(roster, *id)));
    let joining: Vec<u64> = learners(roster)
        .into_iter()
        .filter(|(id, l)| {
            l.caught_up && l.answers && !roster.leaving.contains(id) && !votes_in(roster, &voters, &l.slot)
        })
        .map(|(id, _)| id)
        .collect();
    let count = voters_among(staying.len() + joining.len(), roster.max_voters);
    let ids: BTreeSet<u64> = staying.into_iter().chain(joining).take(count).collect();
    if ids.is_empty() || ids == voters {
        return None;
    }
    with_quorum(roster, ids, true, blocked)
}

/// The change, if a majority of the voters after it answers and this leader is not in its own way.
fn with_quorum(
    roster: &Roster,
    ids: BTreeSet<u64>,
    keep_removed: bool,
    blocked: &mut Vec<Blocked>,
) -> Option<Change> {
    let answering = ids.iter().filter(|id| answers(roster, **id)).count();
    if answering * 2 <= ids.len() {
        blocked.push(Blocked::NoQuorum { answering, voters: ids.len() });
        return None;
    }
    if !ids.contains(&roster.me) {
        let voters = voters(roster);
        let heirs = ids.iter().filter(|id| voters.contains(id) && answers(roster, **id));
        if let Some(slot) = heirs.min_by_key(|id| order(roster, **id)).and_then(|heir| slot_of(roster, *heir))
        {
            return Some(Change::HandOver(slot.into()));
        }
    }
    Some(Change::Voters { ids, keep_removed })
}

fn add(roster: &Roster, blocked: &mut Vec<Blocked>) -> Option<Change> {
    let voters = voters(roster);
    for newcomer in roster.newcomers.values() {
        let in_slot: Vec<u64> = roster
            .members
            .keys()
            .copied()
            .filter(|id| slot_of(roster, *id) == Some(&newcomer.slot))
            .collect();
        if in_slot.contains(&newcomer.raft_id) {
            continue;
        }
        if in_slot.iter().any(|id| answers(roster, *id)) {
            let occupied = Blocked::Occupied(newcomer.slot.clone());
            if !blocked.contains(&occupied) {
                blocked.push(occupied);
            }
            continue;
        }
        if !roster.open && !votes_in(roster, &voters, &newcomer.slot) {
            blocked.push(Blocked::NotOpen(newcomer.slot.clone()));
            continue;
        }
        return Some(Change::Add(newcomer.clone()));
    }
    None
}

#[cfg(test)]
mod tests;
