//! How a bound node stands with its cluster, as the others tell it.
//!
//! # Flow
//! Beside Raft a node says Hello to the other members again and again, and [`judge`]s what it hears: whether it was retired, is an old start or a
//! copy of a member, or waits for a cluster that is gone; and which voters are lost, for whoever asks why there is no leader.
//!
//! # Invariants
//! - A node believes that it was retired only from a member of its own cluster, whose state says so; that never becomes untrue.
//! - A node that may have voted, or that holds an entry, never takes its cluster for gone by itself.
//!
//! # Not here
//! What follows from a verdict (`server`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::timeout;

use super::scale::Scale;
use crate::{
    raft::{HelloAnswer, Node, Peers, hello},
    store::{Binding, ClusterId},
};

/// How often the others are asked.
const ROUND: Duration = Duration::from_secs(1);

/// What a node has to do about how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its incarnation was retired: whatever it holds is the cluster's without it.
    Retired,
    /// It holds nothing, and the cluster that it was to join is not there any more, while another one is.
    ClusterGone {
        /// The one that is there.
        instead: ClusterId,
    },
    /// A later start of its directory, or another process of the same start, was heard. The reason is that of the refusal.
    Superseded {
        /// `STALE_BOOT` or `CLONED`.
        reason: String,
        /// Who said so.
        by: String,
    },
}

/// A voter, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// Its slot is answered by another incarnation: its data directory is gone.
    Lost,
    /// It does not answer, and why.
    Silent(String),
}

/// Who of the voters is not there, by slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absent(pub BTreeMap<String, Missing>);

impl Absent {
    /// How many lost their data directories.
    pub fn lost(&self) -> usize {
        self.0.values().filter(|missing| **missing == Missing::Lost).count()
    }

    /// Why there is no leader, and what to do.
    pub fn sentence(&self, voters: usize) -> String {
        let of = |want: fn(&Missing) -> bool| -> Vec<&str> {
            self.0.iter().filter(|(_, missing)| want(missing)).map(|(slot, _)| slot.as_str()).collect()
        };
        let lost = of(|missing| *missing == Missing::Lost);
        let silent = of(|missing| matches!(missing, Missing::Silent(_)));
        if lost.len() * 2 >= voters && !lost.is_empty() {
            return format!(
                "no leader, and none can come: of {voters} voters those in the slots {} have lost their data directories; bring their \
                 volumes back, or make a new cluster out of this node with `larder recover`",
                lost.join(", ")
            );
        }
        if silent.is_empty() {
            return "no leader is known; a majority of the nodes must be up and connected".into();
        }
        let why = silent.iter().filter_map(|slot| match &self.0[*slot] {
            Missing::Silent(why) => Some(format!("slot {slot}: {why}")),
            Missing::Lost => None,
        });
        format!(
            "no leader is known; a majority of the {voters} voters must be up and connected ({})",
            why.collect::<Vec<_>>().join("; ")
        )
    }
}

/// What a node is, as far as its standing goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Whether its log or snapshot holds anything, or it may have voted: a founder, or a member that took its first entry.
    pub holds_anything: bool,
}

/// What the others' answers mean, by the slot that was asked.
pub fn judge(me: &Me, answers: &BTreeMap<String, Result<HelloAnswer, String>>) -> Option<Verdict> {
    let heard = || answers.values().filter_map(|answer| answer.as_ref().ok());
    let cluster_of = |answer: &HelloAnswer| match answer.binding {
        Binding::Bound { cluster, .. } => Some(cluster),
        Binding::Formatted | Binding::Promised(_) | Binding::Left { .. } | Binding::Superseded { .. } => None,
    };
    for answer in heard().filter(|answer| cluster_of(answer) == Some(me.cluster)) {
        match answer.refused.as_str() {
            "RETIRED" => return Some(Verdict::Retired),
            reason @ ("STALE_BOOT" | "CLONED") => {
                let (reason, by) = (reason.to_owned(), answer.from.slot.clone());
                return Some(Verdict::Superseded { reason, by });
            }
            // None, or one of a later release: a verdict is for good, so only what is understood is one.
            _ => {}
        }
    }
    if me.holds_anything || heard().any(|answer| cluster_of(answer) == Some(me.cluster)) {
        return None;
    }
    // Silence decides nothing: everybody who was asked has to say that it is somewhere else.
    if answers.values().any(Result::is_err) {
        return None;
    }
    heard().find_map(cluster_of).map(|instead| Verdict::ClusterGone { instead })
}

/// Watches how a node stands until there is something to do about it. `report` is told in each round who is missing, and of how many voters.
pub async fn watch(
    node: Arc<Node>,
    scale: Arc<Scale>,
    seeds: Vec<String>,
    founder: bool,
    report: impl Fn(&Absent, usize),
) -> Verdict {
    loop {
        let peers = node.peers();
        if let Some(cluster) = peers.cluster() {
            let members = node.members();
            let me = &peers.myself().slot;
            let mut slots: Vec<String> = members.iter().map(|member| member.node.slot.clone()).collect();
            if slots.is_empty() {
                slots = seeds.iter().cloned().chain(scale.slots().await).collect();
            }
            slots.sort_unstable();
            slots.dedup();
            slots.retain(|slot| slot != me);
            let answers = ask(peers, slots).await;
            let holds_anything =
                founder || node.log().last().is_some() || node.state().read().last_applied().is_some();
            if let Some(verdict) = judge(&Me { cluster, holds_anything }, &answers) {
                return verdict;
            }
            let voters = || members.iter().filter(|member| member.voter);
            let missing = voters().filter_map(|voter| {
                let missing = match answers.get(&voter.node.slot)? {
                    Ok(answer) if answer.from.raft_id == voter.node.id => return None,
                    Ok(_) => Missing::Lost,
                    Err(why) => Missing::Silent(why.clone()),
                };
                Some((voter.node.slot.clone(), missing))
            });
            report(&Absent(missing.collect()), voters().count());
        }
        // Woken early by whoever has a reason to believe that the answers are other ones now.
        drop(timeout(ROUND, node.standing_changed()).await);
    }
}

async fn ask(peers: &Peers, slots: Vec<String>) -> BTreeMap<String, Result<HelloAnswer, String>> {
    let asked = slots.into_iter().map(|slot| async move {
        let answer = hello(peers, &slot).await;
        let answer = match answer {
            Ok(answer) if answer.from.slot != slot => {
                Err(format!("its address is answered by slot {}", answer.from.slot))
            }
            other => other,
        };
        (slot, answer)
    });
    join_all(asked).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::raft::handshake::IdentityRef;

    const OURS: ClusterId = ClusterId([1; 16]);
    const OTHER: ClusterId = ClusterId([2; 16]);

    fn bound(cluster: ClusterId, refused: &str) -> Result<HelloAnswer, String> {
        Ok(HelloAnswer {
            from: IdentityRef {
                slot: "1".into(),
                incarnation: Uuid::from_u128(1),
                raft_id: 1,
                boot_counter: 1,
                nonce: 1,
            },
            binding: Binding::Bound { cluster, founders: None },
            last_log_index: 0,
            leader: None,
            client_address: String::new(),
            may_lead: true,
            refused: refused.into(),
            seeds: Vec::new(),
        })
    }

    fn verdict<const N: usize>(holds: bool, answers: [Result<HelloAnswer, String>; N]) -> Option<Verdict> {
        let answers = (1..).map(|slot: u32| slot.to_string()).zip(answers).collect();
        judge(&Me { cluster: OURS, holds_anything: holds }, &answers)
    }

    #[test]
    fn a_member_of_the_own_cluster_is_believed_and_nobody_else() {
        let silent = || Err("connection refused".to_string());
        assert_eq!(verdict(true, [bound(OURS, ""), silent()]), None);
        assert_eq!(verdict(true, [silent(), bound(OURS, "RETIRED")]), Some(Verdict::Retired));
        assert_eq!(verdict(true, [bound(OTHER, "RETIRED")]), None);
        for reason in ["STALE_BOOT", "CLONED"] {
            let want = Verdict::Superseded { reason: reason.into(), by: "1".into() };
            assert_eq!(verdict(true, [bound(OURS, reason)]), Some(want));
        }
        assert_eq!(verdict(true, [bound(OURS, "OF_A_LATER_RELEASE")]), None);
    }

    #[test]
    fn only_a_newcomer_with_nothing_takes_its_cluster_for_gone_and_only_when_all_say_so() {
        let gone = Some(Verdict::ClusterGone { instead: OTHER });
        assert_eq!(verdict(false, [bound(OTHER, "")]), gone);
        assert_eq!(verdict(true, [bound(OTHER, "")]), None);
        assert_eq!(verdict(false, [bound(OTHER, ""), bound(OURS, "")]), None);
        assert_eq!(verdict(false, [bound(OTHER, ""), Err("no answer".into())]), None);
        assert_eq!(verdict(false, []), None);
    }

    #[test]
    fn the_sentence_says_who_is_missing_and_what_to_do() {
        let absent = |rows: &[(&str, Missing)]| {
            Absent(rows.iter().map(|(slot, missing)| (slot.to_string(), missing.clone())).collect())
        };
        let lost = absent(&[("1", Missing::Lost), ("2", Missing::Lost)]);
        assert_eq!(lost.lost(), 2);
        assert!(
            lost.sentence(3).contains("slots 1, 2 have lost their data directories"),
            "{}",
            lost.sentence(3)
        );
        assert!(lost.sentence(3).contains("larder recover"));
        let silent = absent(&[("1", Missing::Silent("it does not resolve".into())), ("2", Missing::Lost)]);
        assert!(silent.sentence(3).contains("slot 1: it does not resolve"), "{}", silent.sentence(3));
        assert!(!silent.sentence(3).contains("recover"));
    }
}
