//! [`Cache`] on a running node: here, or on the leader.
//!
//! A write goes to the leader, in one hop at most; a linearizable read asks the leader for its read index, waits until this node has applied
//! that far, and answers here. Whoever does not lead any more says so before anything is proposed, so the search for the leader may go on until
//! the deadline; a write whose outcome is unknown is never sent again.
//!
//! Commands for the leader travel together: while one message is on its way the next gathers, as entries do in the proposer.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{Cache, Consistency, Ctx};
use crate::{
    error::{Error, Result},
    raft::{MAX_FORWARDED, Node, Place, ReadIndex},
    state::{
        Answer, Applied, Command, MAX_BATCH_BYTES, MAX_VALUE_BYTES, Operation, Query, codec::encode_command,
    },
};

/// How long to wait before looking for the leader again.
const SEARCH: Duration = Duration::from_millis(20);
/// The most commands waiting to be forwarded.
const MAX_QUEUED: usize = 16 * 1024;
/// Messages to the leader under way at once.
const MESSAGES_IN_FLIGHT: usize = 4;

/// The cache that a member of a cluster serves.
pub struct ReplicatedCache {
    node: Arc<Node>,
    forward: mpsc::Sender<Forwarded>,
    /// Rounds that ask the leader, shared by the reads of this node.
    remote_rounds: ReadIndex,
    on_forward: Arc<dyn Fn() + Send + Sync>,
}

struct Forwarded {
    command: Bytes,
    /// The most bytes of its answer.
    answer_bytes: usize,
    place: Place,
    deadline: Instant,
    reply: oneshot::Sender<Result<Applied>>,
}

/// The most bytes of the answers to one message: they must fit a peer message as the commands do.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// An answer without a value.
const SMALL_ANSWER_BYTES: usize = 64;

/// The most bytes that a command's answer may have.
fn answer_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Set { return_previous: true, .. } | Operation::Delete { return_previous: true, .. } => {
            SMALL_ANSWER_BYTES + MAX_VALUE_BYTES
        }
        Operation::Batch(operations) => operations.iter().map(answer_bytes).sum(),
        Operation::Set { .. }
        | Operation::Delete { .. }
        | Operation::Increment { .. }
        | Operation::Open
        | Operation::RecordBoot { .. } => SMALL_ANSWER_BYTES,
    }
}

impl ReplicatedCache {
    /// A cache on a running node. `on_forward` is called for each command sent to the leader.
    pub fn new(node: Arc<Node>, on_forward: Arc<dyn Fn() + Send + Sync>) -> Arc<Self> {
        let (forward, queue) = mpsc::channel(MAX_QUEUED);
        tokio::spawn(forward_all(node.clone(), queue));
        let asking = node.clone();
        let remote_rounds = ReadIndex::start(Arc::new(move |deadline| {
            let node = asking.clone();
            Box::pin(async move {
                match node.leader() {
                    Some(leader) => node.ask_read_index(&leader, deadline).await,
                    None => Err(Error::NotLeader { leader: None }),
                }
            })
        }));
        Arc::new(Self { node, forward, remote_rounds, on_forward })
    }

    async fn write_once(&self, command: &Bytes, answer_bytes: usize, deadline: Instant) -> Result<Applied> {
        if self.node.is_leader() {
            return self.node.propose(command.clone(), deadline).await;
        }
        if self.node.leader().is_none() {
            return Err(Error::NotLeader { leader: None });
        }
        (self.on_forward)();
        let (reply, answer) = oneshot::channel();
        let place = Place::default();
        let forwarded =
            Forwarded { command: command.clone(), answer_bytes, place: place.clone(), deadline, reply };
        self.forward.try_send(forwarded).map_err(|_| {
            Error::ResourceExhausted(
                "too many writes are on their way to the leader; send fewer at a time".into(),
            )
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(place.stopped()),
            Err(_) => Err(place.late()),
        }
    }

    async fn read_index(&self, deadline: Instant) -> Result<u64> {
        loop {
            let tried = if self.node.is_leader() {
                self.node.read_index(deadline).await
            } else if self.node.leader().is_some() {
                self.remote_rounds.index(deadline).await
            } else {
                Err(Error::NotLeader { leader: None })
            };
            match tried {
                Err(error @ (Error::NotLeader { .. } | Error::Unavailable(_))) => {
                    self.pause(deadline, error).await?;
                }
                other => return other,
            }
        }
    }

    /// As [`pause`], but on a node that has left its cluster no next try will do: another node has to be asked.
    async fn pause(&self, deadline: Instant, error: Error) -> Result<()> {
        if self.node.has_left() { Err(Error::Shutdown) } else { pause(deadline, error).await }
    }
}

/// Waits before the next try, or gives up with a sentence when there is no time for one.
async fn pause(deadline: Instant, error: Error) -> Result<()> {
    if Instant::now() + SEARCH >= deadline {
        return Err(match error {
            Error::NotLeader { leader: None } => Error::Unavailable(
                "no leader is known; wait until a majority of the nodes is up and connected".into(),
            ),
            other => other,
        });
    }
    tokio::time::sleep(SEARCH).await;
    Ok(())
}

#[async_trait]
impl Cache for ReplicatedCache {
    async fn write(&self, command: Command, ctx: Ctx) -> Result<Applied> {
        command.validate()?;
        let deadline = Instant::now() + ctx.timeout;
        let answer_bytes = answer_bytes(&command.operation);
        let command = encode_command(&command);
        loop {
            match self.write_once(&command, answer_bytes, deadline).await {
                // All of these come before anything was proposed.
                Err(error @ (Error::NotLeader { .. } | Error::Unavailable(_))) => {
                    self.pause(deadline, error).await?;
                }
                other => return other,
            }
        }
    }

    async fn read(&self, query: Query, consistency: Consistency, ctx: Ctx) -> Result<Answer> {
        query.validate()?;
        let deadline = Instant::now() + ctx.timeout;
        if consistency == Consistency::Linearizable {
            let index = self.read_index(deadline).await?;
            timeout_at(deadline, self.node.state().wait_applied(index)).await.map_err(|_| {
                Error::Unavailable("this node is behind and did not catch up in time; ask another one".into())
            })?;
        }
        Ok(self.node.state().read().read(&query))
    }
}

/// Gathers what is queued for the leader into messages.
async fn forward_all(node: Arc<Node>, mut queue: mpsc::Receiver<Forwarded>) {
    let in_flight = Arc::new(Semaphore::new(MESSAGES_IN_FLIGHT));
    let mut carried = None;
    loop {
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let first = match carried.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let batch;
        (batch, carried) = gather(first, &mut queue);
        if batch.is_empty() {
            continue;
        }
        let node = node.clone();
        tokio::spawn(async move {
            let results = send(&node, &batch).await;
            drop(permit);
            for (forwarded, result) in batch.into_iter().zip(results) {
                drop(forwarded.reply.send(result));
            }
        });
    }
}

/// To whoever leads now: the commands may have waited while leadership changed.
async fn send(node: &Node, batch: &[Forwarded]) -> Vec<Result<Applied>> {
    let leader = node.leader().filter(|leader| leader.id != node.peers().myself().raft_id);
    let Some(leader) = leader else {
        return vec![Err(Error::NotLeader { leader: None }); batch.len()];
    };
    let deadline = batch.iter().map(|f| f.deadline).max().unwrap_or_else(Instant::now);
    let commands = batch.iter().map(|f| f.command.clone()).collect();
    node.forward(&leader, commands, deadline).await
}

/// What is queued, within the bounds of a message and of its answer. What its caller gave up is left out.
fn gather(first: Forwarded, queue: &mut mpsc::Receiver<Forwarded>) -> (Vec<Forwarded>, Option<Forwarded>) {
    let mut batch: Vec<Forwarded> = Vec::new();
    let (mut bytes, mut answers) = (0, 0);
    let mut next = Some(first);
    while let Some(forwarded) = next {
        let full = batch.len() == MAX_FORWARDED
            || bytes + forwarded.command.len() > MAX_BATCH_BYTES
            || answers + forwarded.answer_bytes > MAX_ANSWER_BYTES;
        if full && !batch.is_empty() {
            return (batch, Some(forwarded));
        }
        if !forwarded.reply.is_closed() && forwarded.place.take() {
            bytes += forwarded.command.len();
            answers += forwarded.answer_bytes;
            batch.push(forwarded);
        }
        next = queue.try_recv().ok();
    }
    (batch, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Caller = (Place, oneshot::Receiver<Result<Applied>>);

    fn forwarded(answer_bytes: usize) -> (Forwarded, Caller) {
        let (reply, answer) = oneshot::channel();
        let place = Place::default();
        let command = Bytes::from_static(b"command");
        let deadline = Instant::now();
        (Forwarded { command, answer_bytes, place: place.clone(), deadline, reply }, (place, answer))
    }

    #[test]
    fn the_answers_to_one_message_are_bounded_too() {
        let (tx, mut queue) = mpsc::channel(100);
        let previous = Operation::Delete { key: Bytes::new(), if_version: None, return_previous: true };
        let large = answer_bytes(&previous);
        assert!(large > MAX_VALUE_BYTES && answer_bytes(&Operation::Open) < 100);
        assert_eq!(answer_bytes(&Operation::Batch(vec![previous; 3])), 3 * large);
        let mut callers = Vec::new();
        let mut queued = || {
            let (forwarded, caller) = forwarded(large);
            callers.push(caller);
            forwarded
        };
        let first = queued();
        for _ in 0..20 {
            assert!(tx.try_send(queued()).is_ok());
        }
        let (batch, carried) = gather(first, &mut queue);
        assert_eq!(batch.len(), MAX_ANSWER_BYTES / large);
        // What did not fit goes with the next message; it was not taken yet.
        assert!(carried.expect("there is more").place.abandon());
    }

    #[test]
    fn what_its_caller_gave_up_is_not_sent_and_surely_not_applied() {
        let (tx, mut queue) = mpsc::channel(10);
        let (first, (late, _waiting)) = forwarded(1);
        assert!(matches!(late.late(), Error::DeadlineExceeded(_)));
        let (gone, (_, answer)) = forwarded(1);
        drop(answer);
        let (sent, (place, _answer)) = forwarded(1);
        assert!(tx.try_send(gone).is_ok() && tx.try_send(sent).is_ok());
        let (batch, carried) = gather(first, &mut queue);
        assert_eq!((batch.len(), carried.is_none()), (1, true));
        assert!(matches!(place.late(), Error::OutcomeUnknown(_)), "it is on its way");
        assert!(matches!(place.stopped(), Error::OutcomeUnknown(_)));
    }
}
