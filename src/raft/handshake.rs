//! The handshake: whether a call from a peer is meant for this node, and comes from whom it says.
//!
//! # Purpose
//! A connection is made anew behind the caller's back, perhaps to another process at the same address, so every call and
//! the first frame of every stream says which cluster and group it belongs to, who speaks, and whom it means. This is the
//! check of that header, before anything else of a call is looked at.
//!
//! # Invariants
//! - Traffic for a dead incarnation is never answered by its successor at the same name: the addressee is a Raft id,
//!   which comes from the incarnation.
//! - Of two processes on one volume, or on copies of it, at most one is listened to: a boot counter below the last heard
//!   one is refused (a rolled-back copy, or an old process that is still there), as is an equal one with another nonce (two
//!   copies started at once).
//! - What is remembered is bounded, and only members are.
//!
//! # Not here
//! Encryption and proof of identity: whoever reaches the peer port is believed. Two copies that were both started before
//! anybody heard either are told apart only once one peer hears both.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    proto::raft as wire,
    store::identity::{ClusterId, raft_id},
};

/// The longest slot, in bytes: the longest DNS name, because a slot may be the name of a machine.
pub const MAX_SLOT_BYTES: usize = 253;

/// The longest `host:port` taken from a peer, in bytes: a DNS name, brackets, a colon and a port.
pub const MAX_ADDRESS_BYTES: usize = 253 + 2 + 1 + 5;

/// How many peers' boots are remembered before those that are no members any more are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// Whether `text` may be a slot as it comes from the wire: 1 to [`MAX_SLOT_BYTES`] of `a-z`, `0-9`, `.` and `-`.
pub fn is_slot(text: &str) -> bool {
    (1..=MAX_SLOT_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
}

/// How slots are sorted: ordinals by their number, as they have no leading zeros.
pub fn slot_order(slot: &str) -> (usize, &str) {
    (slot.len(), slot)
}

/// A node's three names, and which of its starts this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRef {
    /// Where it is dialled.
    pub slot: String,
    /// Made when its data directory was formatted.
    pub incarnation: Uuid,
    /// Taken from the incarnation.
    pub raft_id: u64,
    /// +1 at every start on its data directory.
    pub boot_counter: u64,
    /// Random at every start.
    pub nonce: u64,
}

/// The header of a call, with every length checked. Whether it is true is [`Expectation::check`]'s to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The sender's cluster; `None` before genesis.
    pub cluster: Option<ClusterId>,
    /// The Raft group; 0 in this release.
    pub group: u32,
    /// Who speaks.
    pub from: IdentityRef,
    /// The Raft id of the node meant; 0 if nobody in particular is (only in Hello).
    pub to: u64,
    /// The highest feature level that the sender knows.
    pub feature_level: u32,
    /// The sender's wall clock, milliseconds since 1970.
    pub wall_clock_ms: i64,
    /// The sender's memory limit in bytes; 0: none.
    pub memory_limit_bytes: u64,
    /// `host:port` where the sender's clients connect; may be empty.
    pub client_address: String,
}

/// Why a call is refused. `Display` says what to do; [`reason`](Refusal::reason) is for ErrorInfo and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The header is no header.
    Malformed(&'static str),
    /// This node belongs to no cluster yet.
    NotBound,
    /// The sender belongs to another cluster, or to none.
    ClusterMismatch {
        /// Ours.
        ours: ClusterId,
        /// Theirs; `None` before their genesis.
        theirs: Option<ClusterId>,
    },
    /// The sender means another Raft group.
    GroupMismatch {
        /// Ours.
        ours: u32,
        /// Theirs.
        theirs: u32,
    },
    /// The call is for another incarnation, which may have been here before.
    WrongAddressee {
        /// Our Raft id.
        ours: u64,
        /// The Raft id that was meant.
        meant: u64,
    },
    /// The sender's Raft id is not that of its incarnation.
    ForgedRaftId {
        /// The sender's slot.
        slot: String,
        /// What it says its Raft id is.
        claimed: u64,
    },
    /// This node called itself.
    OwnCall,
    /// The sender's Raft id was a member's and was retired.
    Retired {
        /// The sender's slot.
        slot: String,
        /// Its Raft id.
        raft_id: u64,
    },
    /// The sender is a member, but says it is in another slot than the membership knows.
    SlotMismatch {
        /// What the membership says.
        known: String,
        /// What the sender says.
        claimed: String,
    },
    /// A later start of the sender was heard already: its volume was rolled back, or it is the older of two processes.
    StaleBoot {
        /// The sender's slot.
        slot: String,
        /// Its boot counter.
        boot_counter: u64,
        /// The last one heard.
        last_heard: u64,
    },
    /// Another process says it is the same start of the same member: two copies of one data directory run.
    Cloned {
        /// The slot of both.
        slot: String,
        /// The boot counter of both.
        boot_counter: u64,
    },
}

impl Refusal {
    /// Every reason there is, for registering metrics.
    pub const REASONS: [&'static str; 11] = [
        "MALFORMED_HEADER",
        "NOT_BOUND",
        "CLUSTER_MISMATCH",
        "GROUP_MISMATCH",
        "WRONG_ADDRESSEE",
        "FORGED_RAFT_ID",
        "OWN_CALL",
        "RETIRED",
        "SLOT_MISMATCH",
        "STALE_BOOT",
        "CLONED",
    ];

    /// The reason in constant style.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "MALFORMED_HEADER",
            Self::NotBound => "NOT_BOUND",
            Self::ClusterMismatch { .. } => "CLUSTER_MISMATCH",
            Self::GroupMismatch { .. } => "GROUP_MISMATCH",
            Self::WrongAddressee { .. } => "WRONG_ADDRESSEE",
            Self::ForgedRaftId { .. } => "FORGED_RAFT_ID",
            Self::OwnCall => "OWN_CALL",
            Self::Retired { .. } => "RETIRED",
            Self::SlotMismatch { .. } => "SLOT_MISMATCH",
            Self::StaleBoot { .. } => "STALE_BOOT",
            Self::Cloned { .. } => "CLONED",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => {
                write!(
                    f,
                    "the peer header is malformed: {what}; is the sender a Larder node of a matching release?"
                )
            }
            Self::NotBound => f.write_str("this node belongs to no cluster yet; ask again once it does"),
            Self::ClusterMismatch { ours, theirs: Some(theirs) } => write!(
                f,
                "this node belongs to cluster {ours} and the caller to {theirs}; check the peer lists of both"
            ),
            Self::ClusterMismatch { ours, theirs: None } => {
                write!(f, "this node belongs to cluster {ours} and the caller to none yet")
            }
            Self::GroupMismatch { ours, theirs } => {
                write!(f, "this node serves group {ours}, and the call is for group {theirs}")
            }
            Self::WrongAddressee { ours, meant } => write!(
                f,
                "the call is for the incarnation with id {meant}, and this is {ours}: the address has another node now, or its \
                 data directory was replaced; ask who is here and call that one"
            ),
            Self::ForgedRaftId { slot, claimed } => {
                write!(
                    f,
                    "the caller (slot {slot}) says its id is {claimed}, which its incarnation does not give"
                )
            }
            Self::OwnCall => f.write_str(
                "this node called itself; check that no other slot of the peer list has this node's address",
            ),
            Self::Retired { slot, raft_id } => write!(
                f,
                "the caller (slot {slot}, id {raft_id}) was retired from this cluster and never comes back under this id; \
                 started anew it joins as a new member"
            ),
            Self::SlotMismatch { known, claimed } => write!(
                f,
                "the caller says it is slot {claimed}, and this cluster knows it as slot {known}; start it with its own slot"
            ),
            Self::StaleBoot { slot, boot_counter, last_heard } => write!(
                f,
                "start {boot_counter} of the member in slot {slot} calls, but its start {last_heard} was heard already: its volume was \
                 rolled back to an older copy, or an older process is still running; stop it and empty its data directory"
            ),
            Self::Cloned { slot, boot_counter } => write!(
                f,
                "two processes say they are start {boot_counter} of the member in slot {slot}: its data directory was copied; stop one of \
                 them and empty its directory"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// What this node's membership knows of a Raft id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// A voter or a learner, in this slot.
    Member(&'a str),
    /// It was a member and is not to come back.
    Retired,
    /// Nothing: it may be newer than what is known here.
    Unknown,
}

/// What a call must say to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// This node's cluster; `None` before genesis, when nothing but Hello is taken.
    pub cluster: Option<ClusterId>,
    /// The Raft group served.
    pub group: u32,
    /// This node.
    pub me: IdentityRef,
}

impl Expectation {
    /// Checks the header of any call but Hello and remembers the sender's start in `heard`.
    ///
    /// A sender that this node does not know is let in unless it was retired: the entry that made it a member may be among those
    /// that it comes to bring. Raft itself takes no harm from a stranger of the same cluster.
    ///
    /// # Errors
    /// The first rule that the header breaks; nothing is remembered of a refused call.
    pub fn check<'a>(
        &self,
        header: &Header,
        known: impl Fn(u64) -> Standing<'a>,
        heard: &Heard,
    ) -> Result<(), Refusal> {
        let ours = self.cluster.ok_or(Refusal::NotBound)?;
        if header.cluster != Some(ours) {
            return Err(Refusal::ClusterMismatch { ours, theirs: header.cluster });
        }
        self.check_group(header)?;
        if header.to != self.me.raft_id {
            return Err(Refusal::WrongAddressee { ours: self.me.raft_id, meant: header.to });
        }
        self.check_sender(header)?;
        let from = &header.from;
        match known(from.raft_id) {
            Standing::Retired => {
                return Err(Refusal::Retired { slot: from.slot.clone(), raft_id: from.raft_id });
            }
            Standing::Member(slot) if slot != from.slot => {
                return Err(Refusal::SlotMismatch { known: slot.into(), claimed: from.slot.clone() });
            }
            Standing::Member(_) | Standing::Unknown => {}
        }
        heard.admit(from, |id| matches!(known(id), Standing::Member(_)))
    }

    /// Checks the header of somebody who asks to join and so belongs to no cluster yet. Nothing is remembered of it.
    ///
    /// # Errors
    /// The first rule that the header breaks.
    pub fn check_newcomer(&self, header: &Header) -> Result<(), Refusal> {
        let ours = self.cluster.ok_or(Refusal::NotBound)?;
        if header.cluster.is_some() {
            return Err(Refusal::ClusterMismatch { ours, theirs: header.cluster });
        }
        self.check_group(header)?;
        if header.to != self.me.raft_id {
            return Err(Refusal::WrongAddressee { ours: self.me.raft_id, meant: header.to });
        }
        self.check_sender(header)
    }

    /// Checks the header of Hello, which is answered to any cluster and to none, because genesis asks by it.
    /// Nothing is remembered: a stranger must not be able to shut a member out.
    ///
    /// # Errors
    /// The first rule that the header breaks.
    pub fn check_hello(&self, header: &Header, heard: &Heard) -> Result<(), Refusal> {
        self.check_group(header)?;
        if header.to != 0 && header.to != self.me.raft_id {
            return Err(Refusal::WrongAddressee { ours: self.me.raft_id, meant: header.to });
        }
        self.check_sender(header)?;
        heard.compare(&header.from)
    }

    /// Checks the header of an answer to a call that this node sent to the Raft id `to` (0: to whomever is there).
    ///
    /// # Errors
    /// If another node answered, or one of another cluster.
    pub fn check_answer(&self, header: &Header, to: u64) -> Result<(), Refusal> {
        self.check_group(header)?;
        if to != 0 && header.from.raft_id != to {
            return Err(Refusal::WrongAddressee { ours: header.from.raft_id, meant: to });
        }
        if let (Some(ours), true) = (self.cluster, to != 0)
            && header.cluster != Some(ours)
        {
            return Err(Refusal::ClusterMismatch { ours, theirs: header.cluster });
        }
        self.check_sender(header)
    }

    fn check_group(&self, header: &Header) -> Result<(), Refusal> {
        if header.group == self.group {
            Ok(())
        } else {
            Err(Refusal::GroupMismatch { ours: self.group, theirs: header.group })
        }
    }

    /// That the sender is somebody, and somebody else.
    fn check_sender(&self, header: &Header) -> Result<(), Refusal> {
        let from = &header.from;
        if from.raft_id != raft_id(from.incarnation) {
            return Err(Refusal::ForgedRaftId { slot: from.slot.clone(), claimed: from.raft_id });
        }
        if from.raft_id != self.me.raft_id {
            return Ok(());
        }
        // Somebody with my own data directory, or a copy of it.
        let boots = (from.boot_counter, self.me.boot_counter);
        if boots.0 < boots.1 {
            Err(Refusal::StaleBoot { slot: from.slot.clone(), boot_counter: boots.0, last_heard: boots.1 })
        } else if boots.0 == boots.1 && from.nonce == self.me.nonce {
            Err(Refusal::OwnCall)
        } else {
            Err(Refusal::Cloned { slot: from.slot.clone(), boot_counter: boots.0 })
        }
    }
}

/// The latest start of each member, as recorded or heard.
#[derive(Debug, Default)]
pub struct Heard {
    starts: Mutex<BTreeMap<u64, Start>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    boot_counter: u64,
    nonce: u64,
}

impl Heard {
    /// Nothing heard yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a start that is known from elsewhere (the replicated state), unless a later one is known.
    pub fn record(&self, raft_id: u64, boot_counter: u64, nonce: u64) {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Start { boot_counter, nonce };
        let known = starts.entry(raft_id).or_insert(start);
        if known.boot_counter < boot_counter {
            *known = start;
        }
    }

    /// The boot counter and nonce of the latest start known of a member.
    pub fn last(&self, raft_id: u64) -> Option<(u64, u64)> {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.get(&raft_id).map(|start| (start.boot_counter, start.nonce))
    }

    /// Refuses `from` if a later start, or another process of the same start, is known.
    ///
    /// # Errors
    /// `StaleBoot` or `Cloned`.
    pub fn compare(&self, from: &IdentityRef) -> Result<(), Refusal> {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        compare(starts.get(&from.raft_id), from)
    }

    /// Checks who answered a call that was for the Raft id `to`, and remembers it.
    ///
    /// # Errors
    /// `WrongAddressee`, `StaleBoot` or `Cloned`.
    pub fn answered(&self, to: u64, from: &IdentityRef) -> Result<(), Refusal> {
        if from.raft_id != to {
            return Err(Refusal::WrongAddressee { ours: from.raft_id, meant: to });
        }
        self.admit(from, |_| true)
    }

    /// Compares and remembers, in one step.
    fn admit(&self, from: &IdentityRef, is_member: impl Fn(u64) -> bool) -> Result<(), Refusal> {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        compare(starts.get(&from.raft_id), from)?;
        if starts.len() >= MAX_REMEMBERED {
            starts.retain(|id, _| is_member(*id));
        }
        starts.insert(from.raft_id, Start { boot_counter: from.boot_counter, nonce: from.nonce });
        Ok(())
    }
}

fn compare(known: Option<&Start>, from: &IdentityRef) -> Result<(), Refusal> {
    match known {
        Some(known) if from.boot_counter < known.boot_counter => Err(Refusal::StaleBoot {
            slot: from.slot.clone(),
            boot_counter: from.boot_counter,
            last_heard: known.boot_counter,
        }),
        Some(known) if from.boot_counter == known.boot_counter && from.nonce != known.nonce => {
            Err(Refusal::Cloned { slot: from.slot.clone(), boot_counter: from.boot_counter })
        }
        Some(_) | None => Ok(()),
    }
}

impl TryFrom<wire::Identity> for IdentityRef {
    type Error = Refusal;

    fn try_from(identity: wire::Identity) -> Result<Self, Refusal> {
        if !is_slot(&identity.slot) {
            return Err(Refusal::Malformed("the sender's slot is not 1 to 63 of a-z, 0-9, '.' and '-'"));
        }
        let incarnation = Uuid::from_slice(&identity.incarnation)
            .map_err(|_| Refusal::Malformed("the sender's incarnation is not 16 bytes"))?;
        Ok(Self {
            slot: identity.slot,
            incarnation,
            raft_id: identity.raft_id,
            boot_counter: identity.boot_counter,
            nonce: identity.nonce,
        })
    }
}

impl From<&IdentityRef> for wire::Identity {
    fn from(identity: &IdentityRef) -> Self {
        Self {
            slot: identity.slot.clone(),
            incarnation: Bytes::copy_from_slice(identity.incarnation.as_bytes()),
            raft_id: identity.raft_id,
            boot_counter: identity.boot_counter,
            nonce: identity.nonce,
        }
    }
}

impl TryFrom<wire::PeerHeader> for Header {
    type Error = Refusal;

    fn try_from(header: wire::PeerHeader) -> Result<Self, Refusal> {
        let cluster = match header.cluster_id.len() {
            0 => None,
            _ => Some(ClusterId(
                <[u8; 16]>::try_from(&header.cluster_id[..])
                    .map_err(|_| Refusal::Malformed("the cluster id is neither empty nor 16 bytes"))?,
            )),
        };
        if header.client_address.len() > MAX_ADDRESS_BYTES {
            return Err(Refusal::Malformed("the client address is too long"));
        }
        Ok(Self {
            cluster,
            group: header.group,
            from: header.from.ok_or(Refusal::Malformed("it names no sender"))?.try_into()?,
            to: header.to,
            feature_level: header.feature_level,
            wall_clock_ms: header.wall_clock_ms,
            memory_limit_bytes: header.memory_limit_bytes,
            client_address: header.client_address,
        })
    }
}

impl From<&Header> for wire::PeerHeader {
    fn from(header: &Header) -> Self {
        Self {
            cluster_id: header.cluster.map(|cluster| Bytes::copy_from_slice(&cluster.0)).unwrap_or_default(),
            group: header.group,
            from: Some((&header.from).into()),
            to: header.to,
            feature_level: header.feature_level,
            wall_clock_ms: header.wall_clock_ms,
            memory_limit_bytes: header.memory_limit_bytes,
            client_address: header.client_address.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
