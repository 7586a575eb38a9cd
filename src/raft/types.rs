//! What openraft is instantiated with, and the words for it.

use std::fmt;

use bytes::Bytes;
use openraft::{
    OptionalSend, RaftTypeConfig,
    impls::{BoxedErrorSource, InlineBatch, OneshotResponder, leader_id_std},
    vote::RaftLeaderId,
};

use crate::state::Applied;

/// The payload of a command entry: the bytes that stand in the log, made by [`crate::state::codec::encode_entry`].
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the commands of one entry came to, in their order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcomes(pub Vec<Applied>);

/// A member as the membership names it. Where it is dialled follows from the slot at every dial.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PeerNode {
    /// The slot.
    pub slot: String,
    /// The incarnation, 16 bytes.
    pub incarnation: [u8; 16],
}

/// openraft's parameters.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Outcomes;
    type NodeId = u64;
    type Node = PeerNode;
    type Term = u64;
    // Not `adv`: one leader a term, so that (term, index) names an entry and the records on disk need no more.
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposal, u64, PeerNode>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, PeerNode>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
