//! Changes of the membership: what is asked for, and the steps that carry it out.
//!
//! Flow: whoever wants something asks any node ([`Node::wish`], or `ChangeMember` on the wire); it reaches the leader in at most one hop and
//! there the one who keeps the membership (`cluster::keeper`), which answers when it is done. The keeper looks at [`Node::sight`] and carries
//! changes out by the methods here, one at a time.
//!
//! Invariants: a change is proposed only on the membership that it was decided on (a precondition that openraft checks), and is done once
//! it is applied here.
//!
//! Not here: which change comes next (`cluster::plan`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{ChangeMembers, Precondition, ServerState, async_runtime::Instant as _};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::{
    handshake::{IdentityRef, is_slot},
    node::Node,
    peers::{Lane, Peers},
    to_leader::{error_from_pb, millis_left},
    types::PeerNode,
};
use crate::{
    error::{Error, NodeRef, Result},
    proto::raft as pb,
    store::ClusterId,
};

/// How often a node that leaves asks again.
const LEAVE_ROUND: Duration = Duration::from_millis(200);
/// How long it waits for one answer: the leader may have changed meanwhile.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Somebody who wants to be a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Newcomer {
    /// Its Raft id.
    pub raft_id: u64,
    /// Its slot.
    pub slot: String,
    /// Its incarnation.
    pub incarnation: Uuid,
}

/// What is asked of whoever keeps the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberWish {
    /// Done once it is a learner.
    Join(Newcomer),
    /// The member of this slot does not answer and is to be forgotten. Done once it is no member.
    Retire {
        /// Its slot.
        slot: String,
    },
    /// The learner of this slot is to vote in the place of a voter that does not answer. Done once it votes.
    Promote {
        /// Its slot.
        slot: String,
    },
    /// A member leaves by itself. Done once it is no member.
    Leave {
        /// Its Raft id.
        raft_id: u64,
    },
}

/// A wish on its way to the keeper.
#[derive(Debug)]
pub struct Asked {
    /// What is asked for.
    pub wish: MemberWish,
    /// How long the asker waits.
    pub deadline: Instant,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<()>>,
}

/// What the leader sees of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSight {
    /// Its slot.
    pub slot: String,
    /// Its incarnation.
    pub incarnation: Uuid,
    /// How long ago it acknowledged anything; `None`: not since this node leads. The leader itself: zero.
    pub silent: Option<Duration>,
    /// The last index that it acknowledged.
    pub matched: Option<u64>,
}

/// The membership, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// The entry that brought the membership: the precondition of the next change.
    at: Option<super::types::LogId>,
    /// The term.
    pub term: u64,
    /// The last index of the leader's log.
    pub last_index: u64,
    /// The voters: one set, or two during a joint change.
    pub configs: Vec<BTreeSet<u64>>,
    /// Everybody, by Raft id.
    pub members: BTreeMap<u64, MemberSight>,
}

#[cfg(test)]
impl Sight {
    /// These members, none of whom votes.
    pub(crate) fn of(members: impl IntoIterator<Item = (u64, MemberSight)>) -> Self {
        let members = members.into_iter().collect();
        Self { at: None, term: 1, last_index: 0, configs: Vec::new(), members }
    }
}

impl Node {
    /// Asks for a change of the membership, here or of the leader, and waits until it is done.
    ///
    /// # Errors
    /// `Invalid` for what cannot be, with a sentence; `Unavailable` if there is no leader, or if it is not done in time: then it says what it waits for.
    pub async fn wish(&self, wish: MemberWish, deadline: Instant) -> Result<()> {
        if self.is_leader() {
            return self.keep(wish, deadline).await;
        }
        // Not one of whom nothing is heard any more: behind its name there may be somebody who knows of no cluster.
        match self.live_leader() {
            Some(leader) if leader.id != self.peers().myself().raft_id => {
                let header = self.peers().header(leader.id);
                done(ask(self.peers(), &leader, header, &wish, deadline).await?.error)
            }
            Some(_) | None => Err(Error::Unavailable(
                "there is no leader to change the membership; a majority of the voters must be up and connected".into(),
            )),
        }
    }

    /// Leaves the cluster: returns once this node's removal is committed. It votes until then, because the others may need that, and never leads
    /// again afterwards.
    ///
    /// # Errors
    /// The last reason why it was not removed in time.
    pub async fn leave(&self, deadline: Instant) -> Result<()> {
        self.set_leaving(true);
        let raft_id = self.peers().myself().raft_id;
        let mut again = tokio::time::interval(LEAVE_ROUND);
        loop {
            again.tick().await;
            // On the leader the plan first hands leadership over, and the next round asks the next leader.
            let patience = deadline.min(Instant::now() + LEAVE_PATIENCE);
            match self.wish(MemberWish::Leave { raft_id }, patience).await {
                Ok(()) => break,
                Err(error) if Instant::now() + LEAVE_ROUND >= deadline => {
                    // If it is removed after all and still runs, it comes back as a new member.
                    self.set_leaving(false);
                    return Err(error);
                }
                Err(error) => tracing::info!(%error, "leaving: asking again"),
            }
        }
        self.set_left();
        self.retire_from_leading(false).await;
        self.look_at_standing();
        Ok(())
    }

    /// Passes a wish to this node's keeper. Only on the leader.
    pub(super) async fn keep(&self, wish: MemberWish, deadline: Instant) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { wish, deadline, answer };
        self.wishes().try_send(asked).map_err(|_| {
            Error::ResourceExhausted("too many changes of the membership are waiting; try again later".into())
        })?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Shutdown),
            Err(_) => Err(Error::Unavailable("the membership was not changed in time; ask again".into())),
        }
    }

    /// The membership with who answers in it; `None` unless this node leads and no change is on its way.
    pub fn sight(&self) -> Option<Sight> {
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            return None;
        }
        let effective = &metrics.membership_config;
        let at = *effective.log_id();
        let (applied, _) = self.state().read().membership();
        if at.map(|id| id.index) != applied.map(|at| at.index) {
            return None;
        }
        let me = self.peers().myself().raft_id;
        let heartbeats = metrics.heartbeat.unwrap_or_default();
        let replication = metrics.replication.unwrap_or_default();
        let silent = |id: &u64| match heartbeats.get(id).copied().flatten() {
            _ if *id == me => Some(Duration::ZERO),
            heard => heard.map(|at| at.elapsed()),
        };
        let matched = |id: &u64| replication.get(id).copied().flatten().map(|at| at.index);
        let members = effective.nodes().map(|(id, node)| {
            let incarnation = Uuid::from_bytes(node.incarnation);
            let sight = MemberSight {
                slot: node.slot.clone(),
                incarnation,
                silent: silent(id),
                matched: matched(id),
            };
            (*id, sight)
        });
        Some(Sight {
            at,
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            configs: effective.membership().get_joint_config().to_vec(),
            members: members.collect(),
        })
    }

    /// Adds a learner.
    ///
    /// # Errors
    /// If this node does not lead any more, or the membership is not the one that was seen.
    pub async fn add_learner(&self, seen: &Sight, newcomer: &Newcomer) -> Result<()> {
        let node = PeerNode { slot: newcomer.slot.clone(), incarnation: *newcomer.incarnation.as_bytes() };
        self.change(seen, ChangeMembers::AddNodes([(newcomer.raft_id, node)].into()), true).await
    }

    /// Removes a learner: its Raft id is retired.
    ///
    /// # Errors
    /// As [`Node::add_learner`].
    pub async fn remove_learner(&self, seen: &Sight, raft_id: u64) -> Result<()> {
        self.change(seen, ChangeMembers::RemoveNodes([raft_id].into()), true).await
    }

    /// Makes these the voters: a joint change, or the end of one. Those who vote no more stay as learners, or are removed and retired.
    ///
    /// # Errors
    /// As [`Node::add_learner`].
    pub async fn set_voters(&self, seen: &Sight, ids: BTreeSet<u64>, keep_removed: bool) -> Result<()> {
        self.change(seen, ChangeMembers::ReplaceAllVoters(ids), keep_removed).await
    }

    async fn change(
        &self,
        seen: &Sight,
        change: ChangeMembers<u64, PeerNode>,
        keep_removed: bool,
    ) -> Result<()> {
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: seen.at };
        match self.raft().change_membership_if(change, keep_removed, [unchanged]).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Unavailable(format!("the membership was not changed: {error}"))),
        }
    }
}

/// Why a node has not joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotJoined {
    /// The cluster has retired this incarnation, for ever.
    Retired,
    /// A sentence for the log: it may be asked again.
    Because(String),
}

/// Asks the node in a slot to let this one join, and returns the cluster it has joined as a learner.
///
/// # Errors
/// See [`NotJoined`].
pub async fn ask_to_join(
    peers: &Peers,
    slot: &str,
    raft_id: u64,
    deadline: Instant,
) -> std::result::Result<ClusterId, NotJoined> {
    let me = peers.identity();
    let newcomer = Newcomer { raft_id: me.raft_id, slot: me.slot, incarnation: me.incarnation };
    let asked = NodeRef { id: raft_id, slot: slot.into() };
    let because = |error: Error| NotJoined::Because(error.to_string());
    let answer = ask(peers, &asked, peers.header(raft_id), &MemberWish::Join(newcomer), deadline).await;
    let answer = answer.map_err(because)?;
    if answer.retired {
        return Err(NotJoined::Retired);
    }
    done(answer.error).map_err(because)?;
    let cluster = <[u8; 16]>::try_from(&answer.cluster_id[..]).map(ClusterId);
    cluster.map_err(|_| NotJoined::Because("the answer names no cluster".into()))
}

async fn ask(
    peers: &Peers,
    to: &NodeRef,
    header: pb::PeerHeader,
    wish: &MemberWish,
    deadline: Instant,
) -> Result<pb::ChangeMemberResponse> {
    let mut client = peers.client(&to.slot, Lane::Control).map_err(Error::Unavailable)?;
    let request = pb::ChangeMemberRequest {
        header: Some(header),
        wish: Some(to_pb(wish)),
        timeout_ms: millis_left(deadline),
    };
    match timeout_at(deadline, client.change_member(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::Unavailable(format!("{to}: {}", status.message()))),
        Err(_) => Err(Error::Unavailable(format!("{to} did not answer in time"))),
    }
}

fn done(error: Option<pb::ForwardError>) -> Result<()> {
    error.map_or(Ok(()), |error| Err(error_from_pb(error, |_| None)))
}

fn to_pb(wish: &MemberWish) -> pb::change_member_request::Wish {
    use pb::change_member_request::Wish as W;
    match wish {
        MemberWish::Join(newcomer) => W::Join(pb::Identity {
            slot: newcomer.slot.clone(),
            incarnation: newcomer.incarnation.as_bytes().to_vec().into(),
            raft_id: newcomer.raft_id,
            // Which start it is, it says itself once it is a member.
            boot_counter: 0,
            nonce: 0,
        }),
        MemberWish::Retire { slot } => W::Retire(slot.clone()),
        MemberWish::Promote { slot } => W::Promote(slot.clone()),
        MemberWish::Leave { raft_id } => W::Leave(*raft_id),
    }
}

/// What a peer asks for.
pub(super) fn from_pb(
    wish: Option<pb::change_member_request::Wish>,
) -> std::result::Result<MemberWish, String> {
    use pb::change_member_request::Wish as W;
    Ok(match wish.ok_or("it asks for nothing")? {
        W::Join(identity) => {
            let who = IdentityRef::try_from(identity).map_err(|refusal| refusal.to_string())?;
            if who.raft_id != crate::store::raft_id(who.incarnation) {
                return Err("its Raft id is not that of its incarnation".into());
            }
            let IdentityRef { raft_id, slot, incarnation, .. } = who;
            MemberWish::Join(Newcomer { raft_id, slot, incarnation })
        }
        W::Retire(slot) if is_slot(&slot) => MemberWish::Retire { slot },
        W::Promote(slot) if is_slot(&slot) => MemberWish::Promote { slot },
        W::Retire(_) | W::Promote(_) => return Err("it names no slot".into()),
        W::Leave(raft_id) => MemberWish::Leave { raft_id },
    })
}
