//! As much of Raft as the membership needs: logs, votes, elections, replication, commitment by the quorum of the latest membership.
//!
//! What is modelled, and how it covers more than can happen:
//! - **A data directory is a node.** Its term, vote and log are durable. A slot has the directories 0, 1, 2 ... of [`PER_SLOT`].
//! - **A wiped slot** gets its next directory. The one before is destroyed, or (if `Rules::returns`) may act for ever: that is a node
//!   that is slow, a disk that comes back after it was replaced, and two processes for one slot, all in one.
//! - **A crash** of a node is that it does nothing any more; what it would lose (that it leads) it may stop using at any time.
//! - **Messages** are delivered or not. A vote and an acknowledgement count when they are given: who counts them later counts
//!   less. An older message of the same leader says less than a newer one, and a leader may act long after it was deposed.
//! - **The retired** are those who left a membership; who applied that refuses them.
//!
//! Terms, logs and directories are bounded: what would go beyond is not explored.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
};

pub(crate) const SLOTS: usize = 5;
/// Directories of a slot, the healing's new ones among them.
pub(crate) const PER_SLOT: u8 = 6;

/// A data directory, and so a Raft id: the slot and the count of directories before.
pub(crate) type Id = u8;
/// One bit for each [`Id`].
pub(crate) type Set = u32;

pub(crate) fn id_of(slot: usize, incarnation: u8) -> Id {
    assert!(incarnation < PER_SLOT, "the model is cut off: a slot needs more directories");
    slot as u8 * PER_SLOT + incarnation
}

pub(crate) fn slot_of(id: Id) -> usize {
    usize::from(id / PER_SLOT)
}

pub(crate) fn bit(id: Id) -> Set {
    1 << id
}

pub(crate) fn has(set: Set, id: Id) -> bool {
    set & bit(id) != 0
}

/// The members of `set`, ascending.
pub(crate) fn ids(mut set: Set) -> impl Iterator<Item = Id> {
    std::iter::from_fn(move || {
        let id = set.trailing_zeros();
        set &= set.checked_sub(1)?;
        Some(id as Id)
    })
}

/// The set of `ids`.
pub(crate) fn set(ids: impl IntoIterator<Item = Id>) -> Set {
    let mut set = 0;
    for id in ids {
        set |= 1 << id;
    }
    set
}

/// Whether `among` are a majority of `config`.
fn majority(config: Set, among: Set) -> bool {
    (config & among).count_ones() * 2 > config.count_ones()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Membership {
    /// The voters; before a joint change is done, those before it.
    pub(crate) voters: Set,
    /// The voters after a joint change; 0 if there is none.
    pub(crate) joint: Set,
    /// Voters and learners.
    pub(crate) nodes: Set,
    /// What the change that made it joint said of who votes no more. Only to compare with what `finish` says.
    pub(crate) keep_removed: bool,
    /// When it was written, a majority of the voters after it was not destroyed.
    pub(crate) sound: bool,
}

impl Membership {
    pub(crate) fn of(voters: Set) -> Self {
        Self { voters, joint: 0, nodes: voters, keep_removed: false, sound: true }
    }

    pub(crate) fn quorum(&self, among: Set) -> bool {
        majority(self.voters, among) && (self.joint == 0 || majority(self.joint, among))
    }

    pub(crate) fn all_voters(&self) -> Set {
        self.voters | self.joint
    }

    /// The voters after everything under way.
    pub(crate) fn last_config(&self) -> Set {
        if self.joint == 0 { self.voters } else { self.joint }
    }

    /// The next membership on the way to `ids`, as openraft makes it.
    pub(crate) fn towards(&self, ids: Set, keep_removed: bool) -> Self {
        let (voters, joint) =
            if ids == self.voters || ids == self.joint { (ids, 0) } else { (self.last_config(), ids) };
        let after = Self { voters, joint, keep_removed: keep_removed && joint != 0, ..*self };
        let gone = if keep_removed { 0 } else { self.all_voters() & !after.all_voters() };
        Self { nodes: self.nodes & !gone, ..after }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Payload {
    Blank,
    Write,
    /// Genesis' gate.
    Open,
    Members(Membership),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) term: u8,
    pub(crate) payload: Payload,
}

/// In few words: a test without optimisation spends its time on hashing.
impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (kind, voters, joint, nodes, flags) = match self.payload {
            Payload::Blank => (0, 0, 0, 0, 0),
            Payload::Write => (1, 0, 0, 0, 0),
            Payload::Open => (2, 0, 0, 0, 0),
            Payload::Members(m) => {
                (3, m.voters, m.joint, m.nodes, u64::from(m.keep_removed) << 1 | u64::from(m.sound))
            }
        };
        state.write_u64(u64::from(voters) << 32 | u64::from(joint));
        state.write_u64(u64::from(nodes) << 32 | u64::from(self.term) << 8 | flags << 4 | kind);
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// It is bound to the cluster, so it takes part in Raft.
    pub(crate) bound: bool,
    /// The highest in which it voted or was written to. For whom it voted is of no interest: each election here makes a term that
    /// is new to all of its voters.
    pub(crate) term: u8,
    pub(crate) log: Vec<Entry>,
    /// So many entries are committed, as far as it knows, and applied.
    pub(crate) commit: usize,
    /// It leads, and how many entries each node acknowledged.
    pub(crate) matched: Option<BTreeMap<Id, usize>>,
}

impl Node {
    pub(crate) fn leads(&self) -> bool {
        self.matched.is_some()
    }

    /// The latest membership in its log, committed or not.
    pub(crate) fn membership(&self) -> Option<Membership> {
        last_membership(&self.log)
    }

    /// A voter that a change removed may have to lead once more to finish it: only it may hold the entry. openraft lets it.
    fn may_campaign(&self, id: Id) -> bool {
        let committed = last_membership(&self.log[..self.commit]);
        [self.membership(), committed].into_iter().flatten().any(|m| has(m.all_voters(), id))
    }

    /// The last membership in the log is committed, so it may be changed.
    fn may_change(&self) -> bool {
        let last = self.log.iter().rposition(|entry| matches!(entry.payload, Payload::Members(_)));
        last.is_some_and(|at| at < self.commit)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.log[..self.commit].iter().any(|entry| entry.payload == Payload::Open)
    }

    /// Who left the membership, as far as it applied that.
    pub(crate) fn retired(&self) -> Set {
        retired_in(&self.log[..self.commit])
    }

    fn last(&self) -> (u8, usize) {
        (self.log.last().map_or(0, |entry| entry.term), self.log.len())
    }

    pub(crate) fn acknowledged(&self, id: Id) -> usize {
        self.matched.as_ref().and_then(|matched| matched.get(&id)).copied().unwrap_or(0)
    }
}

fn last_membership(log: &[Entry]) -> Option<Membership> {
    log.iter().rev().find_map(|entry| match entry.payload {
        Payload::Members(membership) => Some(membership),
        _ => None,
    })
}

pub(crate) fn retired_in(log: &[Entry]) -> Set {
    let (mut members, mut retired) = (0, 0);
    for entry in log {
        if let Payload::Members(membership) = entry.payload {
            retired |= members & !membership.nodes;
            members = membership.nodes;
        }
    }
    retired
}

/// What must never happen, and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Flaw {
    /// A leader lacks an entry that was committed, or something else was committed in its place.
    Lost,
    /// A vote, or an acknowledgement, of somebody who is retired was counted, or it became a member again.
    Forgotten,
    /// An incarnation that answers was swapped out.
    Ousted,
    /// A change left voters of whom no majority is there.
    NoQuorum,
    /// Two incarnations of one slot vote.
    TwoInSlot,
    /// A change was finished otherwise than begun.
    FinishedOtherwise,
    /// A founder gave up a cluster that others hold, or that is open.
    GaveUpHeld,
}

/// All directories there are, and what was ever committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Cluster {
    /// Everybody who is not destroyed.
    pub(crate) nodes: BTreeMap<Id, Node>,
    /// The newest directory of each slot in use.
    pub(crate) newest: [Option<u8>; SLOTS],
    /// What was committed by anybody, ever.
    pub(crate) committed: Vec<Entry>,
    /// The first that must never happen.
    pub(crate) flaw: Option<Flaw>,
}

impl Cluster {
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).expect("it is not destroyed")
    }

    pub(crate) fn there(&self) -> Set {
        set(self.nodes.keys().copied())
    }

    /// The newest directory of a slot.
    pub(crate) fn newest(&self, slot: usize) -> Option<Id> {
        self.newest[slot].map(|incarnation| id_of(slot, incarnation))
    }

    pub(crate) fn found(&mut self, flaw: Flaw) {
        self.flaw.get_or_insert(flaw);
    }

    /// The slot starts on an empty directory.
    pub(crate) fn renew(&mut self, slot: usize, keep_old: bool) -> Id {
        let incarnation = match self.newest[slot] {
            Some(incarnation) => {
                if !keep_old {
                    self.nodes.remove(&id_of(slot, incarnation));
                }
                incarnation + 1
            }
            None => 0,
        };
        self.newest[slot] = Some(incarnation);
        let id = id_of(slot, incarnation);
        self.nodes.insert(id, Node::default());
        id
    }

    /// Who would vote for `candidate` in a term that is new to all.
    pub(crate) fn would_vote(&self, candidate: Id) -> Set {
        let node = self.node(candidate);
        let Some(membership) = node.membership().filter(|_| node.bound && node.may_campaign(candidate))
        else {
            return 0;
        };
        set(ids(self.there() & (membership.all_voters() | bit(candidate))).filter(|id| {
            let voter = self.node(*id);
            *id == candidate
                || (voter.bound && voter.last() <= node.last() && !has(voter.retired(), candidate))
        }))
    }

    /// The term that `candidate` and these voters would make.
    pub(crate) fn next_term(&self, voters: Set) -> u8 {
        ids(voters).map(|id| self.node(id).term).max().unwrap_or(0) + 1
    }

    /// `candidate` is elected by `voters`, itself among them.
    pub(crate) fn elect(&mut self, candidate: Id, voters: Set) {
        let term = self.next_term(voters);
        if voters & retired_in(&self.committed) != 0 {
            self.found(Flaw::Forgotten);
        }
        for id in ids(voters) {
            let node = self.node_mut(id);
            (node.term, node.matched) = (term, None);
        }
        if !self.node(candidate).log.starts_with(&self.committed) {
            self.found(Flaw::Lost);
        }
        self.node_mut(candidate).matched = Some(BTreeMap::new());
        self.append(candidate, Payload::Blank);
    }

    /// The leader writes an entry.
    pub(crate) fn append(&mut self, leader: Id, payload: Payload) {
        let node = self.node_mut(leader);
        node.log.push(Entry { term: node.term, payload });
        let length = node.log.len();
        node.matched.get_or_insert_default().insert(leader, length);
        self.commit(leader);
    }

    /// Whether the leader sends to this node.
    pub(crate) fn sends_to(&self, leader: Id, to: Id) -> bool {
        let (node, receiver) = (self.node(leader), self.node(to));
        let is_member = leader != to && node.membership().is_some_and(|m| has(m.nodes, to));
        // A newcomer binds itself when it hears that it was added, which is said once that is committed.
        let bound = receiver.bound
            || self.committed.iter().any(
                |entry| matches!(entry.payload, Payload::Members(membership) if has(membership.nodes, to)),
            );
        is_member && bound && !has(receiver.retired(), leader)
    }

    /// The leader sends all it has; the receiver acknowledges it, or deposes it.
    pub(crate) fn replicate(&mut self, leader: Id, to: Id) {
        // Taken out, so that both are at hand.
        let mut sender = self.nodes.remove(&leader).expect("the leader is not destroyed");
        let receiver = self.node_mut(to);
        if receiver.term > sender.term {
            (sender.term, sender.matched) = (receiver.term, None);
            self.nodes.insert(leader, sender);
            return;
        }
        receiver.bound = true;
        (receiver.term, receiver.matched) = (sender.term, None);
        // No entry that both have is deleted, and none that the receiver has beyond what it is sent.
        if !receiver.log.starts_with(&sender.log) {
            receiver.log.clone_from(&sender.log);
        }
        receiver.commit = receiver.commit.max(sender.commit);
        sender.matched.get_or_insert_default().insert(to, sender.log.len());
        self.nodes.insert(leader, sender);
        self.commit(leader);
    }

    /// The leader commits what a quorum acknowledged, up to an entry of its own term.
    fn commit(&mut self, leader: Id) {
        let node = self.node(leader);
        let membership = node.membership().expect("a leader has a membership");
        let with =
            |length: usize| set(ids(membership.all_voters()).filter(|id| node.acknowledged(*id) >= length));
        let newly = (node.commit + 1..=node.log.len())
            .rev()
            .find(|length| node.log[length - 1].term == node.term && membership.quorum(with(*length)));
        let Some(length) = newly else { return };
        let log = node.log[..length].to_vec();
        if with(length) & retired_in(&self.committed) & !bit(leader) != 0 {
            self.found(Flaw::Forgotten);
        }
        self.note_committed(&log);
        let node = self.node_mut(leader);
        node.commit = length;
        // It led until its own removal was committed.
        if node.may_change() && !has(membership.all_voters(), leader) {
            node.matched = None;
        }
    }

    fn note_committed(&mut self, log: &[Entry]) {
        let common = log.len().min(self.committed.len());
        if log[..common] != self.committed[..common] {
            self.found(Flaw::Lost);
        } else if log.len() > common {
            self.committed = log.to_vec();
        }
        if retired_in(&self.committed) & last_membership(&self.committed).map_or(0, |m| m.nodes) != 0 {
            self.found(Flaw::Forgotten);
        }
    }

    /// The leader may change the membership.
    pub(crate) fn may_change(&self, leader: Id) -> bool {
        let node = self.node(leader);
        node.leads() && node.may_change()
    }

    /// The leader changes the membership.
    pub(crate) fn change(&mut self, leader: Id, to: Membership) {
        let before = self.node(leader).membership();
        let same_voters = before.filter(|before| (before.voters, before.joint) == (to.voters, to.joint));
        let sound = same_voters.map_or(majority(to.last_config(), self.there()), |before| before.sound);
        if !sound {
            self.found(Flaw::NoQuorum);
        }
        for config in [to.voters, to.joint] {
            if (0..SLOTS).any(|slot| ids(config).filter(|id| slot_of(*id) == slot).count() > 1) {
                self.found(Flaw::TwoInSlot);
            }
        }
        self.append(leader, Payload::Members(Membership { sound, ..to }));
    }

    /// The last membership that was committed.
    pub(crate) fn committed_membership(&self) -> Membership {
        last_membership(&self.committed).expect("the founding membership is committed")
    }
}
