//! What a node that does not lead asks of the one that does: read indexes, commands passed on, a hand-over. Nothing is passed on twice: the hop
//! quota is one.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{node::Node, peers::Lane};
use crate::{
    error::{Error, NodeRef, Result},
    proto::raft as pb,
    state::{self, Applied},
};

impl Node {
    /// Asks the leader for a read index.
    ///
    /// # Errors
    /// `NotLeader` if it does not lead any more, `Unavailable` if it does not answer.
    pub async fn ask_read_index(&self, leader: &NodeRef, deadline: Instant) -> Result<u64> {
        let mut client = self.peers().client(&leader.slot, Lane::Control).map_err(Error::Unavailable)?;
        let request = pb::ReadIndexRequest {
            header: Some(self.peers().header(leader.id)),
            timeout_ms: millis_left(deadline),
        };
        match timeout_at(deadline, client.read_index(request)).await {
            Ok(Ok(answer)) => answer
                .into_inner()
                .read_log
                .map(|id| id.index)
                .ok_or_else(|| Error::Unavailable("the leader's answer has no index".into())),
            Ok(Err(status)) => Err(Error::Unavailable(format!("the leader, {leader}: {}", status.message()))),
            Err(_) => Err(Error::Unavailable(format!("the leader, {leader}, did not answer in time"))),
        }
    }

    /// Sends encoded commands to the leader, in one message; one result for each.
    pub async fn forward(
        &self,
        leader: &NodeRef,
        commands: Vec<Bytes>,
        deadline: Instant,
    ) -> Vec<Result<Applied>> {
        let count = commands.len();
        let all = |error: Error| vec![Err(error); count];
        let mut client = match self.peers().client(&leader.slot, Lane::Forward) {
            Ok(client) => client,
            Err(why) => return all(Error::Unavailable(why)),
        };
        let message = pb::ForwardRequest {
            header: Some(self.peers().header(leader.id)),
            commands,
            timeout_ms: millis_left(deadline),
        };
        let answer = match timeout_at(deadline, client.forward(message)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return all(failed_forward(leader, &status)),
            Err(_) => {
                return all(Error::OutcomeUnknown(format!("the leader, {leader}, did not answer in time")));
            }
        };
        if answer.results.len() != count {
            return all(Error::OutcomeUnknown("the leader's answer has the wrong number of results".into()));
        }
        answer.results.into_iter().map(|result| self.forwarded(result)).collect()
    }

    fn forwarded(&self, result: pb::ForwardResult) -> Result<Applied> {
        use pb::forward_result::Result as R;
        match result.result {
            Some(R::Applied(applied)) => state::codec::decode_applied(applied)
                .map_err(|e| Error::OutcomeUnknown(format!("the leader's answer cannot be read: {e}"))),
            Some(R::Error(error)) => Err(error_from_pb(error, |id| self.node_ref(id))),
            None => Err(Error::OutcomeUnknown("the leader's answer is empty".into())),
        }
    }

    /// Asks the leader to hand over, and returns who leads then. See [`Node::hand_over`].
    ///
    /// # Errors
    /// As the leader answers; `Unavailable` if it does not.
    pub async fn ask_hand_over(&self, leader: &NodeRef, slot: &str) -> Result<NodeRef> {
        let mut client = self.peers().client(&leader.slot, Lane::Control).map_err(Error::Unavailable)?;
        let header = Some(self.peers().header(leader.id));
        let answer = client.hand_over(pb::HandOverRequest { header, slot: slot.into() }).await;
        match answer {
            Ok(answer) => {
                let id = answer.into_inner().leader;
                self.node_ref(id)
                    .ok_or_else(|| Error::Unavailable(format!("the new leader {id} is not a member")))
            }
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                Err(Error::Invalid(status.message().into()))
            }
            Err(status) => Err(Error::Unavailable(format!("the leader, {leader}: {}", status.message()))),
        }
    }
}

pub(super) fn millis_left(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
}

/// What a failed call to the leader proves. Only a refusal by the peer service itself comes before anything was proposed;
/// of a connection that broke nobody knows how far the message got.
fn failed_forward(leader: &NodeRef, status: &tonic::Status) -> Error {
    let why = format!("the leader, {leader}: {}", status.message());
    match status.code() {
        // The peer service's own refusals: handshake, not started, stopping. A broken connection is never this code.
        tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated => Error::Unavailable(why),
        _ if was_not_sent(status) => Error::Unavailable(why),
        _ => Error::OutcomeUnknown(why),
    }
}

/// Whether a call failed because no connection could be made: nothing was sent.
fn was_not_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        source = error.source();
    }
    false
}

pub(crate) fn error_to_pb(error: &Error) -> pb::ForwardError {
    let leader = match error {
        Error::NotLeader { leader: Some(leader) } => leader.id,
        _ => 0,
    };
    let message = match error {
        Error::Unavailable(m)
        | Error::DeadlineExceeded(m)
        | Error::OutcomeUnknown(m)
        | Error::Invalid(m)
        | Error::Unimplemented(m)
        | Error::ResourceExhausted(m)
        | Error::Storage(m) => m.clone(),
        Error::NotLeader { .. } | Error::Rejected(_) | Error::Shutdown => error.to_string(),
    };
    pb::ForwardError { reason: error.reason().into(), message, leader }
}

pub(super) fn error_from_pb(error: pb::ForwardError, node: impl Fn(u64) -> Option<NodeRef>) -> Error {
    let message = error.message;
    match error.reason.as_str() {
        "NOT_LEADER" => Error::NotLeader { leader: node(error.leader) },
        "UNAVAILABLE" | "SHUTDOWN" => Error::Unavailable(message),
        "DEADLINE_EXCEEDED" => Error::DeadlineExceeded(message),
        "INVALID" => Error::Invalid(message),
        "UNIMPLEMENTED" => Error::Unimplemented(message),
        "RESOURCE_EXHAUSTED" => Error::ResourceExhausted(message),
        // A reason of a later release proves nothing.
        _ => Error::OutcomeUnknown(message),
    }
}
