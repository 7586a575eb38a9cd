//! Questions about the cluster itself.

use std::{fmt, sync::Arc};

use futures::future::join_all;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, transport::Channel};

use super::{
    Client, ClientError, Endpoint, Header, NodeName,
    error::{Failure, classify},
    pool::Prefer,
    remote::{ConnectFailure, MAX_ANSWER_BYTES, Remote},
    retry::Kind,
};
use crate::proto::v1::{self as pb, cluster_client::ClusterClient};

/// What a node does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Proposes.
    Leader,
    /// Votes and takes the log.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Takes the log only.
    Learner,
    /// Not in a cluster, or of a role that this release does not know.
    None,
}

impl Role {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a node is. Indexes are of the Raft log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Who answers, and at what revision.
    pub header: Header,
    /// What it does.
    pub role: Role,
    /// The current term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeName>,
    /// Its last entry.
    pub last_log_index: u64,
    /// The last entry it knows to be committed.
    pub committed_index: u64,
    /// The last entry it applied.
    pub applied_index: u64,
    /// The first entry still in its log.
    pub first_log_index: u64,
    /// The last entry in its newest snapshot; 0 if none.
    pub snapshot_index: u64,
    /// Keys in the state.
    pub keys: u64,
    /// Counted bytes of keys and values.
    pub bytes: u64,
    /// The rolling hash of the state after `applied_index`.
    pub state_hash: u64,
    /// Whether it takes client traffic.
    pub ready: bool,
    /// Why not: one line a check that fails.
    pub not_ready_because: Vec<String>,
    /// Its release.
    pub release: String,
    /// The feature level of the replicated state.
    pub feature_level: u32,
    /// The highest feature level its release knows.
    pub feature_level_offered: u32,
    /// Its memory limit in bytes; 0 if none.
    pub memory_limit_bytes: u64,
    /// Its incarnation, a UUID.
    pub incarnation: String,
    /// How often it was started on its data directory.
    pub boot_counter: u64,
    /// Bytes on disk of log and snapshots.
    pub disk_bytes: u64,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its names.
    pub node: NodeName,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// `host:port` of the peers' traffic.
    pub peer_address: String,
    /// `host:port` for clients; empty if it was not heard from yet.
    pub client_address: String,
    /// The last index it acknowledged; only the leader knows.
    pub matched_index: Option<u64>,
}

/// The members, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The node that answered.
    pub header: Header,
    /// By slot.
    pub members: Vec<Member>,
}

/// What a cluster of one began with, after a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The new cluster's id.
    pub cluster_id: String,
    /// Its revision: that of the old one.
    pub revision: u64,
    /// Its keys: those that the node held.
    pub keys: u64,
    /// The log index it begins with.
    pub last_log_index: u64,
}

/// What came of asking one endpoint how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStatus {
    /// `host:port`; empty for a member whose client address is not known.
    pub endpoint: String,
    /// Whether it is one of those the client was made with; the others were learned from the members.
    pub configured: bool,
    /// The node behind it, as it said itself or as the members say.
    pub node: Option<NodeName>,
    /// Its answer, or why there is none.
    pub result: Result<NodeStatus, ClientError>,
}

fn stub(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

impl Client {
    /// Asks one endpoint, and no other, how it is. Answered also without a leader.
    ///
    /// # Errors
    /// If it cannot be reached or does not answer in time.
    pub async fn status(&self, endpoint: &Endpoint) -> Result<NodeStatus, ClientError> {
        let send = |channel, request| async move { stub(channel).status(request).await };
        Ok(self.ask_one(endpoint, Kind::Read, pb::StatusRequest {}, send).await?.into())
    }

    /// Makes the node behind one endpoint, and no other, a new cluster of one with all that it holds. `cluster_id` is that of its present
    /// cluster, as a confirmation. The node starts over right afterwards.
    ///
    /// # Errors
    /// If the node refuses, or cannot be reached. With an unknown outcome, ask its [`Client::status`]: the header has the
    /// cluster's id.
    pub async fn recover(&self, endpoint: &Endpoint, cluster_id: &str) -> Result<Recovered, ClientError> {
        let request = pb::RecoverRequest { cluster_id: cluster_id.to_owned() };
        let send = |channel, request| async move { stub(channel).recover(request).await };
        let answer = self.ask_one(endpoint, Kind::Write, request, send).await?;
        Ok(Recovered {
            cluster_id: answer.cluster_id,
            revision: answer.revision,
            keys: answer.keys,
            last_log_index: answer.last_log_index,
        })
    }

    /// One request to one endpoint. What only reads is sent once more if the connection breaks: one from before may have gone
    /// stale, and the second one is new.
    async fn ask_one<Q, A, F>(
        &self,
        endpoint: &Endpoint,
        kind: Kind,
        message: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let known = self.pool.order(Prefer::First).into_iter().find(|remote| remote.endpoint == *endpoint);
        let remote = known.unwrap_or_else(|| Arc::new(Remote::new(endpoint.clone(), false, 1)));
        let deadline = Instant::now() + self.timeout;
        let sentence = || format!("{endpoint} did not answer within {:?}", self.timeout);
        let unreached = || ClientError::DeadlineExceeded(sentence());
        let late = || match kind {
            Kind::Read => unreached(),
            Kind::Write => ClientError::OutcomeUnknown(sentence()),
        };
        let mut again = true;
        loop {
            let leased = timeout_at(deadline, self.pool.lease(&remote)).await.map_err(|_| unreached())?;
            let lease = leased.map_err(|failure| match failure {
                ConnectFailure::Unreachable(why) => ClientError::Unreachable(why),
                ConnectFailure::Wrong(error) => error,
            })?;
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = timeout_at(deadline, send(lease.channel.clone(), request)).await;
            let failure = match answer.map_err(|_| late())? {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => classify(&status),
            };
            let (error, surely_not_done) = match failure {
                Failure::Answered(refusal) => return Err(ClientError::Refused(Box::new(refusal))),
                Failure::TimedOut => return Err(late()),
                Failure::NotSent(why) => (ClientError::Unreachable(format!("{endpoint}: {why}")), true),
                Failure::Broken(why) if kind == Kind::Write => (
                    ClientError::OutcomeUnknown(format!(
                        "the connection to {endpoint} broke after the request was sent ({why})"
                    )),
                    false,
                ),
                Failure::Broken(why) => (ClientError::Broken(format!("{endpoint}: {why}")), true),
            };
            lease.discard();
            if !again || !surely_not_done {
                return Err(error);
            }
            again = false;
        }
    }

    /// Asks every endpoint, and every further member that the members tell of, how it is. Those that do not answer are in
    /// the result with the reason.
    pub async fn status_all(&self) -> Vec<EndpointStatus> {
        let configured = self.pool.configured();
        let mut all = join_all(configured.into_iter().map(|endpoint| self.ask(endpoint, true))).await;
        if all.iter().all(|one| one.result.is_err()) {
            return all;
        }
        let members = self.members().await.map(|members| members.members).unwrap_or_default();
        let mut further = Vec::new();
        for member in members {
            if all.iter().any(|one| one.node.as_ref().is_some_and(|node| node.id == member.node.id)) {
                continue;
            }
            if let Some(asked) = all.iter_mut().find(|one| one.endpoint == member.client_address) {
                asked.node = Some(member.node);
                continue;
            }
            further.push(member);
        }
        let further = further.into_iter().map(|member| async move {
            match member.client_address.parse::<Endpoint>() {
                Ok(endpoint) => {
                    let asked = self.ask(endpoint, false).await;
                    EndpointStatus { node: asked.node.or(Some(member.node)), ..asked }
                }
                Err(_) => EndpointStatus {
                    endpoint: member.client_address,
                    configured: false,
                    node: Some(member.node),
                    result: Err(ClientError::Unreachable(
                        "its client address is not known: it was not heard from yet".into(),
                    )),
                },
            }
        });
        all.extend(join_all(further).await);
        all
    }

    async fn ask(&self, endpoint: Endpoint, configured: bool) -> EndpointStatus {
        let result = self.status(&endpoint).await;
        let node = result.as_ref().ok().map(|status| status.header.node.clone());
        EndpointStatus { endpoint: endpoint.to_string(), configured, node, result }
    }

    /// Who belongs to the cluster, as the leader knows it, else as any node does.
    ///
    /// # Errors
    /// If nobody answers in time.
    pub async fn members(&self) -> Result<Members, ClientError> {
        let send = |channel, request| async move { stub(channel).members(request).await };
        let answer = self.call(Kind::Read, Prefer::Leader, pb::MembersRequest {}, send).await?;
        Ok(Members {
            header: answer.header.into(),
            members: answer.members.into_iter().map(Member::from).collect(),
        })
    }

    /// Hands leadership to a slot ("" for the most caught-up voter), and returns the leader once it leads.
    ///
    /// # Errors
    /// If that slot cannot lead, or nobody takes the request. With an unknown outcome, ask [`Client::members`].
    pub async fn transfer_leader(&self, slot: &str) -> Result<NodeName, ClientError> {
        let request = pb::TransferLeaderRequest { slot: slot.to_owned() };
        let send = |channel, request| async move { stub(channel).transfer_leader(request).await };
        let answer = self.call(Kind::Write, Prefer::Leader, request, send).await?;
        match answer.leader {
            Some(leader) => Ok(leader.into()),
            None => {
                Err(ClientError::BadAnswer("the node did not say who leads now; ask for the members".into()))
            }
        }
    }
}

/// Changes of the members. None of them is sent again once it may be under way: with an unknown outcome, [`Client::members`] shows it.
impl Client {
    /// Takes the member of a slot, which is gone for good, out of the cluster. Returns once that is committed.
    ///
    /// # Errors
    /// If there is no such member, it still answers, those that are left would be no quorum, or nobody takes the request.
    pub async fn retire_member(&self, slot: &str) -> Result<Header, ClientError> {
        let request = pb::RetireMemberRequest { slot: slot.to_owned() };
        let send = |channel, request| async move { stub(channel).retire_member(request).await };
        Ok(self.call(Kind::Write, Prefer::Leader, request, send).await?.header.into())
    }

    /// Has the learner of a slot vote in the place of a voter that does not answer. Returns once that is committed.
    ///
    /// # Errors
    /// If there is no such member, no such place, or nobody takes the request.
    pub async fn promote_member(&self, slot: &str) -> Result<Header, ClientError> {
        let request = pb::PromoteMemberRequest { slot: slot.to_owned() };
        let send = |channel, request| async move { stub(channel).promote_member(request).await };
        Ok(self.call(Kind::Write, Prefer::Leader, request, send).await?.header.into())
    }

    /// Takes the node behind the only endpoint out of its cluster. Returns once that is committed.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a client that might ask another node: of several endpoints, or one that discovers them
    /// ([`Options::discover`](super::Options)). Else if there is no leader, those that are left would be no quorum, or the node does not answer.
    pub async fn leave(&self) -> Result<Header, ClientError> {
        if self.pool.options.discover || self.pool.configured().len() != 1 {
            return Err(ClientError::Invalid(
                "a node leaves by its own word: make a client of its one endpoint that does not discover others".into(),
            ));
        }
        let send = |channel, request| async move { stub(channel).leave(request).await };
        Ok(self.call(Kind::Write, Prefer::First, pb::LeaveRequest {}, send).await?.header.into())
    }
}

impl From<pb::StatusResponse> for NodeStatus {
    fn from(answer: pb::StatusResponse) -> Self {
        Self {
            role: role(answer.role()),
            header: answer.header.into(),
            term: answer.term,
            leader: answer.leader.map(NodeName::from),
            last_log_index: answer.last_log_index,
            committed_index: answer.committed_index,
            applied_index: answer.applied_index,
            first_log_index: answer.first_log_index,
            snapshot_index: answer.snapshot_index,
            keys: answer.keys,
            bytes: answer.bytes,
            state_hash: answer.state_hash,
            ready: answer.ready,
            not_ready_because: answer.not_ready_because,
            release: answer.release,
            feature_level: answer.feature_level,
            feature_level_offered: answer.feature_level_offered,
            memory_limit_bytes: answer.memory_limit_bytes,
            incarnation: answer.incarnation,
            boot_counter: answer.boot_counter,
            disk_bytes: answer.disk_bytes,
        }
    }
}

impl From<pb::Member> for Member {
    fn from(member: pb::Member) -> Self {
        Self {
            node: member.node.unwrap_or_default().into(),
            voter: member.voter,
            leader: member.leader,
            peer_address: member.peer_address,
            client_address: member.client_address,
            matched_index: member.matched_index,
        }
    }
}

fn role(role: pb::Role) -> Role {
    match role {
        pb::Role::Leader => Role::Leader,
        pb::Role::Follower => Role::Follower,
        pb::Role::Candidate => Role::Candidate,
        pb::Role::Learner => Role::Learner,
        pb::Role::None | pb::Role::Unspecified => Role::None,
    }
}
