//! Handing leadership over.
//!
//! A transfer cannot be taken back, so it goes only to a voter that answers, says that it may lead now, and has everything that this node
//! had when it was asked; and it has happened only once another node leads.

use std::time::Duration;

use openraft::{async_runtime::Instant as _, metrics::RaftMetrics};
use tokio::time::Instant;

use super::{hello::hello, node::Node, types::TypeConfig};
use crate::error::{Error, NodeRef, Result};

/// How often candidates for leadership are asked whether they may lead.
const WILLING_ROUND: Duration = Duration::from_millis(20);

impl Node {
    /// Hands leadership to a voter ("" for the most caught-up one) and returns once it leads. Only on the leader.
    ///
    /// # Errors
    /// See [`crate::service::ClusterView::transfer_leader`]; `NotLeader` elsewhere.
    pub async fn hand_over(&self, slot: &str) -> Result<NodeRef> {
        if !self.is_leader() {
            return Err(Error::NotLeader { leader: self.leader() });
        }
        let candidates = self.transfer_candidates(slot)?;
        if candidates[0].id == self.peers().myself().raft_id {
            return Ok(candidates[0].clone());
        }
        let target = self.willing(&candidates).await?;
        self.wait_caught_up(&target).await?;
        let stopped = |_| Error::Shutdown;
        self.raft().trigger().transfer_leader(target.id).await.map_err(stopped)?;
        let taken = self
            .raft()
            .wait(Some(2 * Duration::from_millis(self.options().election_timeout_max_ms)))
            .metrics(
                |m| m.current_leader.is_some_and(|id| id != self.peers().myself().raft_id),
                "another node leads",
            )
            .await;
        match taken {
            Ok(metrics) => {
                let leader = metrics.current_leader.and_then(|id| self.node_ref(id));
                leader.ok_or_else(|| Error::Unavailable("the new leader is not a member".into()))
            }
            Err(error) => Err(Error::Unavailable(format!("{target} did not take over in time: {error}"))),
        }
    }

    /// Who may lead next, the most caught-up first; never empty.
    fn transfer_candidates(&self, slot: &str) -> Result<Vec<NodeRef>> {
        let metrics = self.metrics();
        let me = self.peers().myself().raft_id;
        let mut voters: Vec<NodeRef> =
            metrics.membership_config.voter_ids().filter_map(|id| self.node_ref(id)).collect();
        if !slot.is_empty() {
            voters.retain(|voter| voter.slot == slot);
            if voters.is_empty() {
                return Err(Error::Invalid(format!(
                    "slot {slot:?} is not a voter; see `larder member list` for those that are"
                )));
            }
            return Ok(voters);
        }
        voters.retain(|voter| voter.id != me);
        if voters.is_empty() {
            return Err(Error::Invalid("there is no other voter to lead".into()));
        }
        let matched = metrics.replication.unwrap_or_default();
        let index = |voter: &NodeRef| matched.get(&voter.id).cloned().flatten().map(|id| id.index);
        voters.sort_by_key(|voter| std::cmp::Reverse(index(voter)));
        Ok(voters)
    }

    /// The first candidate that says that it may lead now. One that has just started may not for a moment, and is waited for.
    async fn willing(&self, candidates: &[NodeRef]) -> Result<NodeRef> {
        let patience = Duration::from_millis(self.options().election_timeout_max_ms);
        let deadline = Instant::now() + patience;
        loop {
            for candidate in candidates {
                if let Ok(answer) = hello(self.peers(), &candidate.slot).await
                    && answer.from.raft_id == candidate.id
                    && answer.may_lead
                {
                    return Ok(candidate.clone());
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(
                    "no other voter can lead at the moment; nothing was changed".into(),
                ));
            }
            tokio::time::sleep(WILLING_ROUND).await;
        }
    }

    /// A transfer cannot be taken back: only to a voter that answers and has everything this node had when asked.
    async fn wait_caught_up(&self, target: &NodeRef) -> Result<()> {
        let metrics = self.metrics();
        let recently = Duration::from_millis(self.options().election_timeout_max_ms);
        let heard = metrics.heartbeat.as_ref().and_then(|acks| acks.get(&target.id).cloned().flatten());
        if heard.is_none_or(|at| at.elapsed() > recently) {
            return Err(Error::Unavailable(format!("{target} does not answer; nothing was changed")));
        }
        let goal = metrics.last_log_index;
        let has_it = |m: &RaftMetrics<TypeConfig>| {
            let matched = m.replication.as_ref().and_then(|r| r.get(&target.id).cloned().flatten());
            matched.map(|id| id.index) >= goal
        };
        self.raft()
            .wait(Some(2 * recently))
            .metrics(has_it, "the target is caught up")
            .await
            .map_err(|_| Error::Unavailable(format!("{target} is too far behind; nothing was changed")))?;
        Ok(())
    }
}
