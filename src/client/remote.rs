//! One endpoint: its connections, and how it fares.
//!
//! A connection is made explicitly and answered for by a first question (Members), so that a wrong address is found
//! before any write is sent to it. Many calls that need the same connection wait for one attempt, and share its failure.
//! A connection that broke is thrown away, never mended behind a call's back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};
use tonic::transport::Channel;

use super::{
    ClientError, Endpoint, Options,
    error::{Failure, chain, classify},
};
use crate::{
    net::Connector,
    proto::v1::{MembersRequest, MembersResponse, cluster_client::ClusterClient},
};

/// HTTP/2 windows that never stall the largest answers.
const WINDOW_BYTES: u32 = 4 << 20;

/// The largest answer taken: a batch's, with room.
pub(super) const MAX_ANSWER_BYTES: usize = 16 << 20;

/// How often an otherwise silent connection with calls on it is probed, and how long the answer may take. Finds a
/// peer that is gone without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// For how long an endpoint that failed is asked last: doubles from the first to the second.
const DOWN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The same for an address that the members told: it may be one that cannot be reached from here at all, and every attempt may
/// cost the whole connect timeout.
const DOWN_LEARNED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Locks, also after a holder panicked: what is inside is replaced whole, so never half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An endpoint.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) endpoint: Endpoint,
    /// Given by the caller, rather than learned from the members.
    pub(super) configured: bool,
    connections: Vec<Mutex<Arc<OnceCell<Channel>>>>,
    next: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    node_id: Option<u64>,
    down_until: Option<Instant>,
    failures: u32,
    /// The last failure to connect.
    refused: Option<(Instant, ConnectFailure)>,
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) enum ConnectFailure {
    /// Nobody (of Larder) is there now.
    Unreachable(String),
    /// What is there must not be used.
    Wrong(ClientError),
}

/// A connection to send one request on.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) remote: Arc<Remote>,
    pub(super) channel: Channel,
    index: usize,
    cell: Arc<OnceCell<Channel>>,
}

impl Remote {
    pub(super) fn new(endpoint: Endpoint, configured: bool, connections: usize) -> Self {
        Self {
            endpoint,
            configured,
            connections: (0..connections).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    /// A connection, and the node's first answer if it had to be made.
    ///
    /// # Errors
    /// Why there is none. The endpoint then counts as down.
    pub(super) async fn lease(
        self: &Arc<Self>,
        options: &Options,
        check: impl Fn(&MembersResponse) -> Result<(), ClientError>,
    ) -> Result<(Lease, Option<MembersResponse>), ConnectFailure> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let cell = Arc::clone(&lock(&self.connections[index]));
        let begun = Instant::now();
        let mut hello = None;
        let made = cell
            .get_or_try_init(|| async {
                if let Some(failure) = self.refused_since(begun) {
                    return Err(failure);
                }
                let (channel, members) =
                    dial(&self.endpoint, options).await.map_err(|failure| self.refuse(failure))?;
                check(&members).map_err(|error| self.refuse(ConnectFailure::Wrong(error)))?;
                hello = Some(members);
                Ok(channel)
            })
            .await;
        let channel = made?.clone();
        Ok((Lease { remote: Arc::clone(self), channel, index, cell }, hello))
    }

    /// A connection that stands already.
    pub(super) fn standing(self: &Arc<Self>) -> Option<Lease> {
        self.connections.iter().enumerate().find_map(|(index, connection)| {
            let cell = Arc::clone(&lock(connection));
            let channel = cell.get()?.clone();
            Some(Lease { remote: Arc::clone(self), channel, index, cell })
        })
    }

    fn refused_since(&self, begun: Instant) -> Option<ConnectFailure> {
        let state = lock(&self.state);
        state.refused.as_ref().filter(|(when, _)| *when >= begun).map(|(_, failure)| failure.clone())
    }

    fn refuse(&self, failure: ConnectFailure) -> ConnectFailure {
        self.mark_down();
        lock(&self.state).refused = Some((Instant::now(), failure.clone()));
        failure
    }

    /// Is asked last for a while.
    pub(super) fn mark_down(&self) {
        let mut state = lock(&self.state);
        let (first, most) = if self.configured { DOWN } else { DOWN_LEARNED };
        let wait = first.saturating_mul(1 << state.failures.min(10)).min(most);
        state.failures = state.failures.saturating_add(1);
        state.down_until = Some(Instant::now() + wait);
    }

    /// Answered: is as good as any other.
    pub(super) fn mark_up(&self) {
        let mut state = lock(&self.state);
        state.failures = 0;
        state.down_until = None;
    }

    pub(super) fn is_down(&self) -> bool {
        lock(&self.state).down_until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn node_id(&self) -> Option<u64> {
        lock(&self.state).node_id
    }

    pub(super) fn set_node_id(&self, id: u64) {
        lock(&self.state).node_id = Some(id);
    }
}

impl Lease {
    /// The connection broke: the next call makes a new one.
    pub(super) fn discard(&self) {
        self.remote.mark_down();
        let mut current = lock(&self.remote.connections[self.index]);
        // Another call may have replaced it already.
        if Arc::ptr_eq(&current, &self.cell) {
            *current = Arc::default();
        }
    }
}

/// Connects, and asks who is there.
async fn dial(endpoint: &Endpoint, options: &Options) -> Result<(Channel, MembersResponse), ConnectFailure> {
    let unreachable = |why: String| ConnectFailure::Unreachable(format!("{endpoint}: {why}"));
    let transport = tonic::transport::Endpoint::from_shared(endpoint.url())
        .map_err(|error| unreachable(error.to_string()))?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let late = |what: &str| unreachable(format!("{what} within {:?}", options.connect_timeout));
    let connector = Connector::system(&endpoint.to_string());
    let channel = timeout(options.connect_timeout, transport.connect_with_connector(connector))
        .await
        .map_err(|_| late("no connection could be made"))?
        .map_err(|error| unreachable(chain("", &error)))?;
    let hello = timeout(options.connect_timeout, members(channel.clone()))
        .await
        .map_err(|_| late("connected, but got no answer"))?;
    match hello {
        Ok(members) => Ok((channel, members)),
        Err(Failure::Answered(refusal)) if refusal.code == tonic::Code::Unimplemented => {
            Err(ConnectFailure::Wrong(ClientError::Invalid(format!("{endpoint}: {}", refusal.message))))
        }
        Err(Failure::Answered(refusal)) => Err(unreachable(refusal.message)),
        Err(Failure::TimedOut) => Err(late("connected, but got no answer")),
        Err(Failure::NotSent(why)) => Err(unreachable(why)),
        Err(Failure::Broken(why)) => Err(unreachable(format!(
            "connected, but the answer is not Larder's ({why}); check that this is the client port of a node"
        ))),
    }
}

/// Asks a node for the members.
pub(super) async fn members(channel: Channel) -> Result<MembersResponse, Failure> {
    let mut stub = ClusterClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    match stub.members(MembersRequest {}).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(classify(&status)),
    }
}
