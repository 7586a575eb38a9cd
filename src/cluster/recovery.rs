//! Recovery: a survivor of a majority that is lost for good goes on alone, as a new cluster.
//!
//! # Purpose
//! When most voters lost their data directories, nothing can ever be committed again, and the cluster waits for ever, which is
//! right: only somebody who knows that they are lost, and not merely away, may end it. Then one survivor takes all that it
//! holds into a new cluster of one. The former members are fenced: their cluster id is another one, and their Raft
//! ids are retired.
//!
//! # Flow
//! [`check`]: is this the cluster that was meant, has it no leader, and can those that still answer with their old data form no
//! majority with this one? (Or, where nodes keep nothing over a restart, [`until_all_others_are_lost`].) -> [`go_on_alone`]: stop
//! Raft, write the state, switch the data directory over to it. Then the node starts over, as the only voter of the new cluster.
//!
//! # Invariants
//! - Up to the switch of the identity file this node is the old member, and a start makes it so again.
//! - The new cluster's id is random: no set of founders has it.
//!
//! # Not here
//! What is written (`raft`), how the directory survives a crash on the way (`store`), who asked (`service`). What nobody can
//! check is whether those that are silent are lost or only cut off: that is what the operator confirms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use crate::{
    error::{Error, NodeRef, Result},
    raft::{GROUP, HelloAnswer, Node, Recovered, hello},
    state::Membership,
    store::{Binding, ClusterId, IdentityFile, Snapshots},
};

/// How often a node that may go on alone by itself looks whether it has to.
const ROUND: Duration = Duration::from_secs(1);

/// What was heard at the slot of a voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: lost or cut off.
    Silence,
    /// The voter itself, on its data directory.
    Itself,
    /// Another data directory: the voter's is lost.
    Another,
    /// Another data directory that holds something of this cluster and is none of its members that this node knows: it was
    /// taken in by a majority that this node has not heard of.
    Successor,
}

/// Why a node may not go on alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Another cluster's id was confirmed.
    OtherCluster {
        /// This node's cluster.
        present: String,
        /// What was confirmed.
        confirmed: String,
    },
    /// A majority answers.
    HasLeader(NodeRef),
    /// These voters and this one are a majority.
    Majority(Vec<String>),
    /// The cluster replaced these voters, so it goes on without this node.
    WentOn(Vec<String>),
    /// This node never voted, so it may lack what was acknowledged.
    Learner,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster { present, confirmed } => write!(
                f,
                "this node is a member of the cluster {present}, and {confirmed:?} was confirmed; look at the node that is \
                 asked, and confirm the id of its cluster"
            ),
            Self::HasLeader(leader) => {
                write!(f, "the cluster has a leader, {leader}; there is nothing to recover")
            }
            Self::Majority(slots) if slots.is_empty() => {
                write!(
                    f,
                    "this node is a majority by itself; there is nothing to recover: wait until it leads"
                )
            }
            Self::Majority(slots) => write!(
                f,
                "a majority still holds its data: slot {} and this one; there is nothing to recover: wait until they lead, \
                 and see `larder status` for what keeps them",
                slots.join(", slot ")
            ),
            Self::WentOn(slots) => write!(
                f,
                "slot {} is a new member of this cluster, which this node has not heard of: the cluster goes on, and there is nothing to \
                 recover; mend the connection between this node and the others. If their majority is lost as well, stop that slot \
                 and ask again",
                slots.join(", slot ")
            ),
            Self::Learner => write!(
                f,
                "this node is a learner, which may lack what was acknowledged; recover on a voter that still has its data"
            ),
        }
    }
}

/// Whether the member `me` may go on alone, from what was heard at the slots of the other voters, by Raft id.
///
/// # Errors
/// The reason why not.
pub fn may_go_on_alone(
    me: u64,
    membership: &Membership,
    heard: &BTreeMap<u64, Heard>,
) -> Result<(), Refusal> {
    if !membership.voters().any(|voter| voter == me) {
        return Err(Refusal::Learner);
    }
    let slots = |ids: BTreeSet<u64>| {
        ids.iter().filter_map(|id| membership.nodes.get(id)).map(|node| node.slot.clone()).collect()
    };
    let successors: BTreeSet<u64> =
        membership.voters().filter(|id| heard.get(id) == Some(&Heard::Successor)).collect();
    if !successors.is_empty() {
        return Err(Refusal::WentOn(slots(successors)));
    }
    let holds = |id: &u64| *id == me || heard.get(id) == Some(&Heard::Itself);
    let majority = |config: &Vec<u64>| 2 * config.iter().filter(|id| holds(id)).count() > config.len();
    if !membership.configs.iter().all(majority) {
        return Ok(());
    }
    Err(Refusal::Majority(slots(membership.voters().filter(|id| *id != me && holds(id)).collect())))
}

/// Whether every voter but `me` is lost for certain: its slot is answered by another data directory. Silence is no proof.
pub fn all_others_are_lost(me: u64, membership: &Membership, heard: &BTreeMap<u64, Heard>) -> bool {
    let mut others = membership.voters().filter(|id| *id != me).peekable();
    membership.voters().any(|voter| voter == me)
        && others.peek().is_some()
        && others.all(|id| heard.get(&id) == Some(&Heard::Another))
}

/// Whether a node belongs, or belonged, to another cluster. One that was wiped belongs to none yet, or to this one again.
fn is_elsewhere(binding: &Binding, present: Option<ClusterId>) -> bool {
    match binding {
        Binding::Formatted | Binding::Promised(_) => false,
        Binding::Bound { cluster, .. } | Binding::Left { cluster } | Binding::Superseded { cluster } => {
            Some(*cluster) != present
        }
    }
}

/// Asks at the slot of every other voter who is there.
async fn listen(node: &Node, membership: &Membership) -> BTreeMap<u64, Heard> {
    let (me, present) = (node.peers().myself().raft_id, node.peers().cluster());
    let others: BTreeSet<u64> = membership.voters().filter(|id| *id != me).collect();
    // One that waits to be taken in is bound to the cluster and holds nothing of it; a learner is known here.
    let holds_more = |answer: &HelloAnswer| {
        matches!(answer.binding, Binding::Bound { cluster, .. } if Some(cluster) == present)
            && answer.last_log_index > 0
            && !membership.nodes.contains_key(&answer.from.raft_id)
    };
    let ask = |id: u64| async move {
        let member = membership.nodes.get(&id)?;
        let heard = match hello(node.peers(), &member.slot).await {
            Err(_) => Heard::Silence,
            Ok(answer) if answer.from.slot != member.slot => Heard::Silence,
            // Whoever is at that address: another cluster's node says nothing about the voter.
            Ok(answer) if is_elsewhere(&answer.binding, present) => Heard::Silence,
            Ok(answer) if *answer.from.incarnation.as_bytes() == member.incarnation => Heard::Itself,
            Ok(answer) if holds_more(&answer) => Heard::Successor,
            Ok(_) => Heard::Another,
        };
        Some((id, heard))
    };
    join_all(others.into_iter().map(ask)).await.into_iter().flatten().collect()
}

/// Who surely leads, confirmed by a majority just now. What a node remembers of a leader proves nothing: a follower that hears
/// of no new one goes on naming the last.
async fn confirmed_leader(node: &Node) -> Option<NodeRef> {
    let deadline = Instant::now() + 2 * Duration::from_millis(node.options().election_timeout_max_ms);
    let leader = node.leader()?;
    let confirmed = if node.is_leader() {
        node.read_index(deadline).await
    } else {
        node.ask_read_index(&leader, deadline).await
    };
    confirmed.is_ok().then_some(leader)
}

/// Whether this node may go on alone, as whoever confirmed `cluster_id` wants it. Takes some seconds.
///
/// # Errors
/// `Invalid` with the reason why not.
pub async fn check(node: &Node, cluster_id: &str) -> Result<()> {
    let refuse = |refusal: Refusal| Err(Error::Invalid(refusal.to_string()));
    let present = node.peers().cluster().map(|id| id.to_string()).unwrap_or_default();
    if present != cluster_id {
        return refuse(Refusal::OtherCluster { present, confirmed: cluster_id.to_owned() });
    }
    if let Some(leader) = confirmed_leader(node).await {
        return refuse(Refusal::HasLeader(leader));
    }
    let membership = node.membership();
    let heard = listen(node, &membership).await;
    may_go_on_alone(node.peers().myself().raft_id, &membership, &heard).or_else(refuse)
}

/// Returns when this node is a survivor for certain: no leader, and every other voter's slot is answered by another data directory. For
/// nodes that keep nothing over a restart, whose operator said so beforehand.
pub async fn until_all_others_are_lost(node: &Node) {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        if node.live_leader().is_some() || confirmed_leader(node).await.is_some() {
            continue;
        }
        let membership = node.membership();
        let heard = listen(node, &membership).await;
        if all_others_are_lost(node.peers().myself().raft_id, &membership, &heard) {
            return;
        }
    }
}

/// Makes this node, with all that it holds, the only member of a new cluster. `snapshots` are the directory's. It has to be started over afterwards, also after an
/// error, and is then what its identity file says: the new member, or the old one.
///
/// # Errors
/// `Storage`, with whether anything was changed.
pub async fn go_on_alone(node: &Node, identity: IdentityFile, snapshots: &Snapshots) -> Result<Recovered> {
    let (fresh, cluster) = (Uuid::new_v4(), ClusterId(*Uuid::new_v4().as_bytes()));
    tracing::warn!(%cluster, incarnation = %fresh, "recovering: this node goes on alone, as a new cluster");
    let storage = |why: &dyn fmt::Display| Error::Storage(why.to_string());
    let begun = off_the_runtime(move || identity.begin_adoption(fresh, GROUP).map(|into| (identity, into)));
    let (mut identity, into) = begun.await?.map_err(|e| storage(&e))?;
    let recovered = node.write_recovered(fresh, cluster, into).await?;
    snapshots.close();
    off_the_runtime(move || identity.adopt(fresh, cluster)).await?.map_err(|e| storage(&e))?;
    let Recovered { revision, keys, .. } = recovered;
    tracing::warn!(%cluster, revision, keys, "recovered");
    Ok(recovered)
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Storage(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MemberNode;

    fn membership(configs: &[&[u64]], learners: &[u64]) -> Membership {
        let ids = configs.iter().flat_map(|config| config.iter()).chain(learners);
        let node = |id: &u64| MemberNode { slot: id.to_string(), ..MemberNode::default() };
        Membership {
            configs: configs.iter().map(|config| config.to_vec()).collect(),
            nodes: ids.map(|id| (*id, node(id))).collect(),
        }
    }

    fn heard(itself: &[u64], another: &[u64]) -> BTreeMap<u64, Heard> {
        let itself = itself.iter().map(|id| (*id, Heard::Itself));
        itself.chain(another.iter().map(|id| (*id, Heard::Another))).collect()
    }

    fn majority(slots: &[&str]) -> Result<(), Refusal> {
        Err(Refusal::Majority(slots.iter().map(|slot| (*slot).to_owned()).collect()))
    }

    #[test]
    fn a_node_of_another_cluster_at_the_address_is_no_proof() {
        let (ours, other) = (ClusterId([1; 16]), ClusterId([2; 16]));
        for (binding, elsewhere) in [
            (Binding::Formatted, false),
            (Binding::Bound { cluster: ours, founders: None }, false),
            (Binding::Bound { cluster: other, founders: None }, true),
            (Binding::Left { cluster: other }, true),
            (Binding::Left { cluster: ours }, false),
        ] {
            assert_eq!(is_elsewhere(&binding, Some(ours)), elsewhere, "{binding:?}");
        }
    }

    #[test]
    fn only_who_finds_no_majority_goes_on_alone() {
        let three = membership(&[&[0, 1, 2]], &[7]);
        assert_eq!(may_go_on_alone(0, &three, &heard(&[], &[])), Ok(()));
        assert_eq!(may_go_on_alone(0, &three, &heard(&[], &[1, 2])), Ok(()));
        assert_eq!(may_go_on_alone(0, &three, &heard(&[1], &[2])), majority(&["1"]));
        assert_eq!(may_go_on_alone(2, &three, &heard(&[0, 1], &[])), majority(&["0", "1"]));
        // A learner holds data and has no vote.
        assert_eq!(may_go_on_alone(0, &three, &heard(&[7], &[])), Ok(()));
        assert_eq!(may_go_on_alone(7, &three, &heard(&[], &[])), Err(Refusal::Learner));
        assert_eq!(may_go_on_alone(9, &three, &heard(&[], &[])), Err(Refusal::Learner));
        assert_eq!(may_go_on_alone(0, &membership(&[&[0]], &[]), &heard(&[], &[])), majority(&[]));
        let four = membership(&[&[0, 1, 2, 3]], &[]);
        assert_eq!(may_go_on_alone(0, &four, &heard(&[1], &[])), Ok(()), "half is no majority");
        assert_eq!(may_go_on_alone(0, &four, &heard(&[1, 3], &[2])), majority(&["1", "3"]));
        assert_eq!(may_go_on_alone(0, &Membership::default(), &heard(&[], &[])), Err(Refusal::Learner));
    }

    #[test]
    fn in_the_middle_of_a_change_a_majority_of_both_is_one() {
        let joint = membership(&[&[0, 1, 2], &[0, 3, 4]], &[]);
        assert_eq!(may_go_on_alone(0, &joint, &heard(&[1], &[])), Ok(()));
        assert_eq!(may_go_on_alone(0, &joint, &heard(&[3, 4], &[])), Ok(()));
        assert_eq!(may_go_on_alone(0, &joint, &heard(&[1, 3], &[])), majority(&["1", "3"]));
    }

    #[test]
    fn silence_is_no_proof_that_the_others_are_lost() {
        let three = membership(&[&[0, 1, 2]], &[7]);
        assert!(all_others_are_lost(0, &three, &heard(&[], &[1, 2])));
        assert!(!all_others_are_lost(0, &three, &heard(&[], &[1])));
        assert!(!all_others_are_lost(0, &three, &heard(&[2], &[1])));
        let mut went_on = heard(&[], &[1]);
        went_on.insert(2, Heard::Successor);
        assert!(
            !all_others_are_lost(0, &three, &went_on),
            "replaced by a majority that this node has not heard of"
        );
        assert_eq!(may_go_on_alone(0, &three, &went_on), Err(Refusal::WentOn(vec!["2".into()])));
        assert!(!all_others_are_lost(7, &three, &heard(&[], &[0, 1, 2])));
        assert!(!all_others_are_lost(0, &membership(&[&[0]], &[]), &heard(&[], &[])));
        let joint = membership(&[&[0, 1, 2], &[0, 1, 3]], &[]);
        assert!(!all_others_are_lost(0, &joint, &heard(&[], &[1, 2])));
        assert!(all_others_are_lost(0, &joint, &heard(&[], &[1, 2, 3])));
    }
}
