//! The replicated state itself: what it holds, where in the log it stands, what it answers.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Answer, Applied, BootRecord, Command, Found, Frozen, LogPosition, MemberNode, Membership, Query, Stamp,
    View,
    codec::encode_membership,
    hash::{EntryHash, EntryKind},
    keyspace::Keyspace,
};
use crate::time::UnixMillis;

/// The highest feature level that this release knows. A state above it is refused. Level 1 is all that the first release
/// knows, retired ids and boot records too.
pub const FEATURE_LEVEL: u32 = 1;

/// The replicated state. Every node that applied the same entries holds the same, to the byte of its snapshot.
///
/// # Invariants
/// 1. Entries are applied in the order of their indexes, each once, from index 0; terms never go back.
/// 2. The clock never goes back.
/// 3. The revision goes up by one with each change of a key; a key's version is the revision of its last change, so
///    versions are at least 1, at most the revision, and no two keys share one.
/// 4. Keys and bytes are counted exactly.
/// 5. Before the gate is open there is no key and the revision is 0.
/// 6. The membership was applied at or before the last entry; each voter is among its nodes.
/// 7. The feature level is at least 1 and at most what this release knows.
/// 8. A Raft id that left the membership is retired for ever; no node of the membership is retired.
/// 9. Each boot record is of a node of the membership, in that node's slot.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(super) last_applied: Option<LogPosition>,
    pub(super) membership_at: Option<LogPosition>,
    pub(super) membership: Membership,
    pub(super) clock: UnixMillis,
    pub(super) revision: u64,
    pub(super) open: bool,
    pub(super) state_hash: u64,
    pub(super) feature_level: u32,
    pub(super) keyspace: Keyspace,
    pub(super) retired: BTreeSet<u64>,
    pub(super) boots: BTreeMap<String, BootRecord>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// The state before the first entry.
    pub fn new() -> Self {
        Self {
            last_applied: None,
            membership_at: None,
            membership: Membership::default(),
            clock: UnixMillis(0),
            revision: 0,
            open: false,
            state_hash: 0,
            feature_level: 1,
            keyspace: Keyspace::default(),
            retired: BTreeSet::new(),
            boots: BTreeMap::new(),
        }
    }

    /// Applies an entry of commands, in order, and says what each came to. Commands are not atomic together: one that
    /// is rejected stops none.
    ///
    /// # Panics
    /// If `at` is not the next entry, or a command asks for what is above the state's feature level:
    /// [`Command::validate`] refuses it before it is proposed.
    pub fn apply(&mut self, at: LogPosition, stamp: &Stamp, commands: Vec<Command>) -> Vec<Applied> {
        let mut hash = self.enter(at, EntryKind::Commands);
        hash.stamp(stamp);
        self.clock = self.clock.max(stamp.now);
        let mut applied = Vec::with_capacity(commands.len());
        for command in commands {
            let outcome = self.apply_command(command, &mut hash);
            applied.push(Applied { revision: self.revision, clock: self.clock, outcome });
        }
        self.state_hash = hash.finish();
        applied
    }

    /// Applies an entry that carries nothing: a new leader's first.
    ///
    /// # Panics
    /// If `at` is not the next entry.
    pub fn apply_blank(&mut self, at: LogPosition) {
        self.state_hash = self.enter(at, EntryKind::Blank).finish();
    }

    /// Applies an entry that changes the membership.
    ///
    /// Who was a node before and is none now is retired, without a command of its own: an id leaves the membership once,
    /// because its data directory was lost or told to leave, and must never come back. A node that forgot its vote and
    /// its log could vote twice, or un-acknowledge what it acknowledged. Its boot record goes with it.
    ///
    /// # Panics
    /// If `at` is not the next entry, or the membership has a retired id: whoever changes the membership looks at
    /// [`Machine::retired`] before.
    pub fn apply_membership(&mut self, at: LogPosition, membership: Membership) {
        self.change_membership(at, membership, EntryKind::Membership);
    }

    /// The state that a cluster of one begins with, after the majority of the present one was lost for good: all that this
    /// one held, one step on and one term later, so that no position means two states. Its only voter is a new
    /// incarnation in `slot`; everybody who was a member is retired, also who held this state.
    ///
    /// # Panics
    /// If nothing was applied, or the new Raft id was a member's once: it must be random.
    pub fn recovered(mut self, slot: &str, raft_id: u64, incarnation: [u8; 16]) -> Self {
        let last = self.last_applied.expect("a member of a cluster has applied its first membership");
        let at = LogPosition { term: last.term + 1, index: last.index + 1 };
        let node = MemberNode { slot: slot.to_owned(), peer_address: String::new(), incarnation };
        let alone = Membership { configs: vec![vec![raft_id]], nodes: [(raft_id, node)].into() };
        self.change_membership(at, alone, EntryKind::Recovered);
        self
    }

    fn change_membership(&mut self, at: LogPosition, membership: Membership, kind: EntryKind) {
        let mut hash = self.enter(at, kind);
        hash.bytes(&encode_membership(&membership));
        let membership = membership.normalized();
        let before = std::mem::replace(&mut self.membership, membership);
        self.retired.extend(before.nodes.into_keys().filter(|id| !self.membership.nodes.contains_key(id)));
        if let Some(id) = self.retired_node() {
            panic!(
                "entry {} brings back the Raft id {id}, which was retired: its member must come with a new id",
                at.index
            );
        }
        let members = &self.membership;
        self.boots.retain(|slot, boot| members.has(boot.raft_id, slot));
        self.membership_at = Some(at);
        self.state_hash = hash.finish();
    }

    /// A node of the membership that may not be one.
    fn retired_node(&self) -> Option<u64> {
        self.membership.nodes.keys().find(|id| self.retired.contains(id)).copied()
    }

    /// Takes the next place in the log.
    fn enter(&mut self, at: LogPosition, kind: EntryKind) -> EntryHash {
        let (term, index) = self.last_applied.map_or((0, 0), |last| (last.term, last.index + 1));
        assert!(
            at.index == index && at.term >= term,
            "entry {} of term {} was to be applied where entry {index} of term {term} or later must follow: the log has \
             a hole or went back",
            at.index,
            at.term,
        );
        self.last_applied = Some(at);
        EntryHash::new(self.state_hash, at, kind)
    }

    /// Answers a query from what is applied. A keyspace that does not exist has no keys.
    pub fn read(&self, query: &Query) -> Answer {
        let found = match query {
            Query::Get { keyspace: 0, keys } => {
                Found::Values(keys.iter().map(|key| self.keyspace.get(key).cloned()).collect())
            }
            Query::Get { keys, .. } => Found::Values(vec![None; keys.len()]),
            Query::Scan { keyspace } => {
                let keyspace = if *keyspace == 0 { self.keyspace.clone() } else { Keyspace::default() };
                Found::View(View { keyspace, revision: self.revision, clock: self.clock })
            }
        };
        Answer { revision: self.revision, clock: self.clock, found }
    }

    /// The state as it is now, for a snapshot. Takes microseconds at any size; later changes do not show in it.
    pub fn freeze(&self) -> Frozen {
        Frozen::new(self.clone())
    }

    /// The changes so far.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The replicated clock.
    pub fn clock(&self) -> UnixMillis {
        self.clock
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.keyspace.keys()
    }

    /// The counted bytes of all entries: keys, values, and [`ENTRY_OVERHEAD_BYTES`](super::ENTRY_OVERHEAD_BYTES) each.
    pub fn bytes(&self) -> u64 {
        self.keyspace.bytes()
    }

    /// The last entry applied; `None` before the first.
    pub fn last_applied(&self) -> Option<LogPosition> {
        self.last_applied
    }

    /// The last membership applied, and the entry that brought it; `None` and an empty one before the first.
    pub fn membership(&self) -> (Option<LogPosition>, &Membership) {
        (self.membership_at, &self.membership)
    }

    /// Whether client writes are taken (genesis' gate).
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The rolling hash after the last entry applied: equal on every node at the same entry. 0 before the first.
    pub fn state_hash(&self) -> u64 {
        self.state_hash
    }

    /// The feature level: no command above it is in the log.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// The Raft ids that left the membership and may never come back. They are kept for ever, 8 bytes each.
    pub fn retired(&self) -> &BTreeSet<u64> {
        &self.retired
    }

    /// The last recorded start of each member, by slot.
    pub fn boot_records(&self) -> &BTreeMap<String, BootRecord> {
        &self.boots
    }

    /// Panics with a sentence if an invariant of the type does not hold. Walks through all keys: for tests.
    pub fn check_invariants(&self) {
        self.keyspace.check_invariants();
        if let Some(violation) = self.violation() {
            panic!("an invariant of the replicated state is broken: {violation}");
        }
        let mut versions: Vec<u64> = self.keyspace.iter().map(|(_, entry)| entry.version).collect();
        versions.sort_unstable();
        assert!(versions.is_sorted_by(|a, b| a < b), "two keys have the same version");
    }

    /// The first invariant that does not hold, of those a damaged or foreign snapshot could break.
    pub(super) fn violation(&self) -> Option<&'static str> {
        let Self { revision, membership, .. } = self;
        if self.keyspace.iter().any(|(_, entry)| entry.version == 0 || entry.version > *revision) {
            return Some("a key's version is 0 or above the revision");
        }
        if self.keyspace.iter().any(|(_, entry)| entry.deadline.is_some()) {
            return Some("a key has a deadline, which no feature level known here allows");
        }
        if !self.open && (*revision > 0 || self.keys() > 0) {
            return Some("something was changed before the gate was open");
        }
        if self.keys() > *revision {
            return Some("there are more keys than changes");
        }
        if self.last_applied.is_none() && (self.open || self.clock != UnixMillis(0) || self.state_hash != 0) {
            return Some("something was applied before the first entry");
        }
        if self.membership_at > self.last_applied {
            return Some("the membership is ahead of the last entry applied");
        }
        if self.membership_at.is_none() && *membership != Membership::default() {
            return Some("the membership came from no entry");
        }
        if membership.voters().any(|voter| !membership.nodes.contains_key(&voter)) {
            return Some("a voter is not among the nodes");
        }
        if self.retired_node().is_some() {
            return Some("a node of the membership is retired");
        }
        if self.boots.iter().any(|(slot, boot)| !membership.has(boot.raft_id, slot)) {
            return Some("a boot record is of no member in its slot");
        }
        if self.feature_level == 0 || self.feature_level > FEATURE_LEVEL {
            return Some("the feature level is 0 or above what this release knows");
        }
        None
    }
}
