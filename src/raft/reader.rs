//! ReadIndex, one round shared by all that wait.
//!
//! A linearizable read needs to know an index that was committed after the read began and while the leader surely led. Reads that
//! arrive while a round is under way wait for the next one, together: a round begun before a read does not cover it.
//!
//! Not here: waiting until that index is applied, and the read itself (`service`).

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use openraft::{
    ReadPolicy,
    errors::{ForwardReason, LinearizableReadError, RaftError},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{proposer::leader_of, state_machine::Raft};
use crate::error::{Error, Result};

/// The most reads that wait for a round.
const MAX_WAITING: usize = 64 * 1024;
/// How often a leader without a lease is asked again.
const PARK: Duration = Duration::from_millis(10);

/// One round: the index to wait for.
pub type Round = Arc<dyn Fn(Instant) -> BoxFuture<'static, Result<u64>> + Send + Sync>;

struct Waiting {
    deadline: Instant,
    reply: oneshot::Sender<Result<u64>>,
}

/// Shares rounds among readers.
#[derive(Clone)]
pub struct ReadIndex {
    queue: mpsc::Sender<Waiting>,
}

impl ReadIndex {
    /// Starts the task that runs the rounds, one at a time; it ends when the last clone is dropped.
    pub fn start(round: Round) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Waiting>(MAX_WAITING);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while waiting.recv_many(&mut batch, MAX_WAITING).await > 0 {
                let deadline = batch.iter().map(|w| w.deadline).max().unwrap_or_else(Instant::now);
                let result = round(deadline).await;
                for waiting in batch.drain(..) {
                    drop(waiting.reply.send(result.clone()));
                }
            }
        });
        Self { queue }
    }

    /// An index such that a state that has applied it is fresh enough for a read that begins now.
    ///
    /// # Errors
    /// What the round came to, or `Unavailable` if there was none in time.
    pub async fn index(&self, deadline: Instant) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Waiting { deadline, reply }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Error::ResourceExhausted("too many reads are waiting; send fewer at a time".into())
            }
            mpsc::error::TrySendError::Closed(_) => Error::Shutdown,
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Shutdown),
            Err(_) => Err(Error::Unavailable("no leader confirmed the read in time".into())),
        }
    }
}

/// A round on this node, which must lead.
pub(crate) async fn confirm_leadership(raft: &Raft, deadline: Instant) -> Result<u64> {
    loop {
        let confirmed = timeout_at(deadline, raft.get_read_linearizer(ReadPolicy::ReadIndex)).await;
        let error = match confirmed {
            Err(_) => return Err(Error::Unavailable("no quorum confirmed the leader in time".into())),
            Ok(Ok(linearizer)) => return Ok(linearizer.read_log_id().log_id().index),
            Ok(Err(error)) => error,
        };
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))
                if forward.reason != ForwardReason::LeaseExpired =>
            {
                return Err(Error::NotLeader { leader: leader_of(&forward) });
            }
            RaftError::Fatal(_) => return Err(Error::Shutdown),
            // No lease yet, or no quorum at this moment: both may pass.
            RaftError::APIError(_) => {
                if Instant::now() + PARK >= deadline {
                    return Err(Error::Unavailable(
                        "the leader has no quorum; wait for a majority of the nodes to come back".into(),
                    ));
                }
                tokio::time::sleep(PARK).await;
            }
        }
    }
}
