//! The batching proposer: many commands, one entry, one sync.
//!
//! Flow: callers queue their encoded commands; one task takes everything queued (bounded by count and bytes, with no
//! linger timer: while entries are on their way to the disk the queue gathers), stamps it once, and proposes ONE entry. A few
//! entries are in flight at a time. When an entry is applied each caller gets its own outcome.
//!
//! Invariants: a command is either taken up by the proposer or abandoned by its caller, never both, so a caller that ran out of time
//! knows which: before, it surely was not applied; after, its outcome is unknown. What openraft refused before appending (no lease yet, a
//! transfer under way) is parked and proposed again; what it may have appended never is.
//!
//! Not here: finding the leader (`service`), what a command means (`state`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    errors::{ClientWriteError, ForwardReason, ForwardToLeader},
    impls::OneshotResponder,
    raft::ClientWriteResult,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    state_machine::Raft,
    types::{Outcomes, PeerNode, Proposal, TypeConfig},
};
use crate::{
    error::{Error, NodeRef, Result},
    state::{self, Applied, MAX_BATCH_BYTES, Stamp},
    time::Clock,
};

/// The most commands waiting for the proposer: more are shed. At 1 KiB each that is 16 MiB.
const MAX_QUEUED: usize = 16 * 1024;
/// The most bytes waiting for the proposer.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// The most commands of one entry: bounds the time that apply holds the lock.
const MAX_ENTRY_COMMANDS: usize = 1024;
/// How often a parked entry is tried again: a lease comes with the next heartbeat.
const PARK: Duration = Duration::from_millis(10);

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const ABANDONED: u8 = 2;

/// Where a command is between its caller and whoever sends it on: queued, and then either taken or abandoned, by one atomic step.
#[derive(Debug, Clone, Default)]
pub struct Place(Arc<AtomicU8>);

impl Place {
    /// True if the command goes on; false if its caller has given it up.
    pub fn take(&self) -> bool {
        self.0.compare_exchange(QUEUED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// True if the command surely was not and will not be sent on.
    pub fn abandon(&self) -> bool {
        self.0.compare_exchange(QUEUED, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// What a caller knows that has waited for its answer too long.
    pub fn late(&self) -> Error {
        if self.abandon() {
            Error::DeadlineExceeded("it was still waiting for its turn".into())
        } else {
            Error::OutcomeUnknown("the deadline passed while the write was on its way".into())
        }
    }

    /// What a caller knows whose answer will never come, because the node is stopping.
    pub fn stopped(&self) -> Error {
        if self.abandon() {
            Error::Shutdown
        } else {
            Error::OutcomeUnknown("the node stopped while the write was on its way".into())
        }
    }
}

struct Queued {
    command: Bytes,
    place: Place,
    deadline: Instant,
    reply: oneshot::Sender<Result<Applied>>,
    /// Room in the queue, given back when the command is taken.
    _room: tokio::sync::OwnedSemaphorePermit,
}

/// The callers' side.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

/// What the proposer counts, for metrics.
pub(crate) type OnPropose = Arc<dyn Fn(usize) + Send + Sync>;

impl Proposer {
    /// Starts the proposing task; it ends when the last clone is dropped.
    pub(crate) fn start(
        raft: Raft,
        clock: Arc<dyn Clock>,
        entries_in_flight: usize,
        on_propose: OnPropose,
    ) -> Self {
        let (queue, rx) = mpsc::channel(MAX_QUEUED);
        let task = Task { raft, clock, in_flight: Arc::new(Semaphore::new(entries_in_flight)), on_propose };
        tokio::spawn(task.run(rx));
        Self { queue, room: Arc::new(Semaphore::new(MAX_QUEUED_BYTES)) }
    }

    /// Proposes an encoded command on this node and returns what it came to.
    pub(crate) async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Applied> {
        let full = || {
            Error::ResourceExhausted("too many writes are waiting for the disk; send fewer at a time".into())
        };
        let bytes = u32::try_from(command.len().max(1)).map_err(|_| full())?;
        let room = self.room.clone().try_acquire_many_owned(bytes).map_err(|_| full())?;
        let (reply, answer) = oneshot::channel();
        let place = Place::default();
        let queued = Queued { command, place: place.clone(), deadline, reply, _room: room };
        self.queue.try_send(queued).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => full(),
            mpsc::error::TrySendError::Closed(_) => Error::Shutdown,
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(place.stopped()),
            Err(_) => Err(place.late()),
        }
    }
}

struct Task {
    raft: Raft,
    clock: Arc<dyn Clock>,
    in_flight: Arc<Semaphore>,
    on_propose: OnPropose,
}

impl Task {
    async fn run(self, mut queue: mpsc::Receiver<Queued>) {
        let mut carried = None;
        loop {
            // The permit first: while all entries are in flight the queue gathers, and the next entry carries more.
            let Ok(permit) = self.in_flight.clone().acquire_owned().await else { return };
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
            (self.on_propose)(batch.len());
            let stamp = Stamp { now: self.clock.wall(), touched: Vec::new() };
            let (commands, callers): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|queued| (queued.command, (queued.reply, queued.deadline))).unzip();
            let entry = state::codec::encode_entry(&stamp, &commands);
            // Submitted here, so that entries reach the log in the order they were taken; awaited aside.
            let answer = submit(&self.raft, entry.clone()).await;
            let raft = self.raft.clone();
            tokio::spawn(async move {
                let result = settle(&raft, entry, answer, &callers).await;
                drop(permit);
                answer_all(result, callers);
            });
        }
    }
}

/// Takes what is queued, up to the bounds of one entry. What did not fit is carried to the next one.
fn gather(first: Queued, queue: &mut mpsc::Receiver<Queued>) -> (Vec<Queued>, Option<Queued>) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(queued) = next {
        if !batch.is_empty()
            && (batch.len() == MAX_ENTRY_COMMANDS || bytes + queued.command.len() > MAX_BATCH_BYTES)
        {
            return (batch, Some(queued));
        }
        // A caller that no longer waits is not worth a place in the log.
        if !queued.reply.is_closed() && queued.place.take() {
            bytes += queued.command.len();
            batch.push(queued);
        }
        next = queue.try_recv().ok();
    }
    (batch, None)
}

type Answer = oneshot::Receiver<ClientWriteResult<TypeConfig>>;

/// `None`: openraft has stopped, and nothing was proposed.
async fn submit(raft: &Raft, entry: Bytes) -> Option<Answer> {
    let (responder, answer) = OneshotResponder::new_pair();
    raft.client_write_ff(Proposal(entry), Some(responder)).await.ok()?;
    Some(answer)
}

type Caller = (oneshot::Sender<Result<Applied>>, Instant);

/// Waits for an entry's fate; proposes it again for as long as openraft refuses it for a passing reason before appending it.
async fn settle(
    raft: &Raft,
    entry: Bytes,
    mut answer: Option<Answer>,
    callers: &[Caller],
) -> Result<Outcomes> {
    let last_deadline = callers.iter().map(|(_, deadline)| *deadline).max().unwrap_or_else(Instant::now);
    loop {
        let Some(pending) = answer.take() else { return Err(Error::Shutdown) };
        let Ok(result) = pending.await else {
            return Err(Error::OutcomeUnknown("the node stopped while the write was on its way".into()));
        };
        let forward = match result {
            Ok(applied) => return Ok(applied.data),
            Err(ClientWriteError::ForwardToLeader(forward)) => forward,
            Err(ClientWriteError::LogEntryDiscarded(_)) => {
                return Err(Error::OutcomeUnknown(
                    "leadership changed while the write was on its way".into(),
                ));
            }
            // Of membership changes only; none is proposed here.
            Err(other) => return Err(Error::OutcomeUnknown(other.to_string())),
        };
        match forward.reason {
            // Fresh leaders, and such as lost their quorum for a moment, are the right place: wait here.
            ForwardReason::LeaseExpired => {
                if Instant::now() + PARK >= last_deadline {
                    return Err(Error::Unavailable(
                        "the leader has no quorum; wait for a majority of the nodes to come back".into(),
                    ));
                }
                tokio::time::sleep(PARK).await;
                answer = submit(raft, entry.clone()).await;
            }
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                return Err(Error::NotLeader { leader: leader_of(&forward) });
            }
        }
    }
}

pub(crate) fn leader_of(forward: &ForwardToLeader<TypeConfig>) -> Option<NodeRef> {
    let node: &PeerNode = forward.leader_node.as_ref()?;
    Some(NodeRef { id: forward.leader_id?, slot: node.slot.clone() })
}

fn answer_all(result: Result<Outcomes>, callers: Vec<Caller>) {
    match result {
        Ok(Outcomes(outcomes)) => {
            debug_assert_eq!(outcomes.len(), callers.len(), "one outcome for each command");
            for ((reply, _), applied) in callers.into_iter().zip(outcomes) {
                // A caller that ran out of time has been told that the outcome is unknown.
                drop(reply.send(Ok(applied)));
            }
        }
        Err(error) => {
            for (reply, _) in callers {
                drop(reply.send(Err(error.clone())));
            }
        }
    }
}
