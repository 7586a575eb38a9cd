//! The receiving half of the peer protocol.
//!
//! It listens before the node is bound to a cluster, because genesis asks over it; until Raft runs, everything but `Hello` is
//! refused as unavailable. Every call, and the first frame of every stream, is checked against the handshake's rules
//! ([`super::handshake`]) before anything else is looked at.
//!
//! Not here: deciding genesis (`cluster`), which publishes the identity that Hello answers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use openraft::{
    Snapshot,
    raft::{AppendEntriesRequest, TransferLeaderRequest},
};
use tokio::{sync::watch, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    handshake::{Expectation, Header, Refusal, Standing},
    hello,
    node::Node,
    peers::{GROUP, MAX_MESSAGE_BYTES, Peers},
    state_machine::{SnapshotDir, meta_of, meta_of_file},
    to_leader,
    types::TypeConfig,
    wish::{self, MemberWish, Newcomer},
};
use crate::{
    error::{Error, Result},
    proto::raft::{self as pb, peer_server},
    state::{self, SnapshotDecoder},
    store::{Binding, Identity, Position, SnapshotEnd, Snapshots},
};

/// The most commands of one forwarded message.
pub const MAX_FORWARDED: usize = 1024;
/// Answers to appends that wait for the network.
const APPEND_ANSWERS_AHEAD: usize = 64;
/// The longest a forwarded command may wait, whatever the sender says.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// What the peer service stands on.
pub struct Host {
    peers: Arc<Peers>,
    snapshots: Snapshots,
    node: OnceLock<Arc<Node>>,
    /// What this node is bound to, as it is on disk.
    identity: watch::Receiver<Identity>,
    /// Where members' clients connect, as they said.
    client_addresses: Mutex<BTreeMap<u64, String>>,
    on_refused: Arc<dyn Fn(&'static str) + Send + Sync>,
}

impl Host {
    /// Answers Hello from `identity`; everything else waits for [`Host::run`].
    pub fn new(
        peers: Arc<Peers>,
        snapshots: Snapshots,
        identity: watch::Receiver<Identity>,
        on_refused: Arc<dyn Fn(&'static str) + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            peers,
            snapshots,
            node: OnceLock::new(),
            identity,
            client_addresses: Mutex::new(BTreeMap::new()),
            on_refused,
        })
    }

    /// What this node is bound to.
    pub(super) fn binding(&self) -> Binding {
        self.identity.borrow().binding.clone()
    }

    /// Returns once the data directory is marked as one that left its cluster, durably.
    pub async fn left(&self) {
        let mut identity = self.identity.clone();
        // A node that ends meanwhile marks nothing any more.
        if identity.wait_for(|identity| matches!(identity.binding, Binding::Left { .. })).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The other nodes.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Raft runs: its calls are answered from now on.
    pub fn run(&self, node: Arc<Node>) {
        let _ = self.node.set(node);
    }

    /// The running node, if there is one.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.get()
    }

    /// Where a member's clients connect, as it said itself; empty if it was not heard from.
    pub fn client_address_of(&self, raft_id: u64) -> String {
        let me = self.peers.myself();
        if me.raft_id == raft_id {
            return me.client_address.clone();
        }
        let addresses = self.client_addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&raft_id).cloned().unwrap_or_default()
    }

    /// Remembers where the clients of a member connect. Only for members, so that their number is bounded.
    pub fn note_client_address(&self, raft_id: u64, address: &str) {
        let mut addresses = self.client_addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.get(&raft_id).is_none_or(|known| known != address) {
            // Whoever left is forgotten when somebody new comes.
            let members = self.node().map(|node| node.slots()).unwrap_or_default();
            addresses.retain(|id, _| members.contains_key(id));
            addresses.insert(raft_id, address.to_string());
        }
    }

    /// A vote, and who gives it.
    fn voted(&self, answer: &openraft::raft::VoteResponse<TypeConfig>) -> pb::VoteResponse {
        let from = Some(pb::Identity::from(&self.peers.identity()));
        pb::VoteResponse { from, ..convert::vote_response_to_pb(answer) }
    }

    fn refuse(&self, reason: &'static str, sentence: String) -> Status {
        (self.on_refused)(reason);
        if self.node().is_some() {
            tracing::warn!(reason, "peer refused: {sentence}");
        } else {
            // Before genesis is through this is how it goes.
            tracing::debug!(reason, "peer refused: {sentence}");
        }
        use tonic_types::{ErrorDetails, StatusExt};
        let details =
            ErrorDetails::with_error_info(reason, "larder", [("applied".to_string(), "NO".to_string())]);
        Status::with_error_details(tonic::Code::FailedPrecondition, sentence, details)
    }

    /// Checks a header against who we are and whom we heard.
    fn admit(&self, header: Option<pb::PeerHeader>) -> std::result::Result<(), Box<Status>> {
        let Some(header) = header else {
            return Err(Box::new(self.refuse("NO_HEADER", "the call does not say who sends it".into())));
        };
        let members = self.node().map(|node| node.slots()).unwrap_or_default();
        let retired = |id: u64| self.node().is_some_and(|node| node.state().read().retired().contains(&id));
        let expectation = self.expectation();
        let checked = Header::try_from(header).and_then(|header| {
            let known = |id: u64| match members.get(&id) {
                Some(slot) => Standing::Member(slot),
                None if retired(id) => Standing::Retired,
                None => Standing::Unknown,
            };
            expectation.check(&header, known, self.peers.heard())?;
            Ok(header)
        });
        match checked {
            Ok(header) => {
                if members.contains_key(&header.from.raft_id) {
                    self.note_client_address(header.from.raft_id, &header.client_address);
                }
                Ok(())
            }
            Err(refusal) => Err(Box::new(self.refuse(refusal.reason(), refusal.to_string()))),
        }
    }

    fn expectation(&self) -> Expectation {
        Expectation { cluster: self.peers.cluster(), group: GROUP, me: self.peers.identity() }
    }

    /// Checks the header of somebody who asks to join, and that it asks for itself.
    fn admit_newcomer(
        &self,
        header: Option<pb::PeerHeader>,
        newcomer: &Newcomer,
    ) -> std::result::Result<(), Box<Status>> {
        let checked =
            header.ok_or(Refusal::Malformed("it is missing")).and_then(Header::try_from).and_then(|header| {
                self.expectation().check_newcomer(&header)?;
                let from = &header.from;
                if (from.raft_id, &from.slot) != (newcomer.raft_id, &newcomer.slot) {
                    return Err(Refusal::Malformed("a newcomer asks for itself alone"));
                }
                Ok(())
            });
        checked.map_err(|refusal| Box::new(self.refuse(refusal.reason(), refusal.to_string())))
    }

    /// Why every call but Hello of this sender is refused, if that is for good: it is an old incarnation or an old start of a member.
    fn why_refused(&self, header: &Header) -> Option<&'static str> {
        let node = self.node()?;
        if header.cluster.is_none() || header.cluster != self.peers.cluster() {
            return None;
        }
        if node.state().read().retired().contains(&header.from.raft_id) {
            let (slot, raft_id) = (header.from.slot.clone(), header.from.raft_id);
            return Some(Refusal::Retired { slot, raft_id }.reason());
        }
        self.peers.heard().compare(&header.from).err().map(|refusal| refusal.reason())
    }

    fn running(&self) -> std::result::Result<&Arc<Node>, Box<Status>> {
        self.node()
            .ok_or_else(|| Box::new(self.refuse_quietly("this node is not in its cluster yet; try again")))
    }

    /// A refusal that surely comes before anything was done, and passes by itself.
    fn refuse_quietly(&self, sentence: &str) -> Status {
        Status::failed_precondition(sentence)
    }

    /// As [`Self::running`], and awake enough to vote.
    fn voting(&self) -> std::result::Result<&Arc<Node>, Box<Status>> {
        let node = self.running()?;
        if node.is_quiet() {
            return Err(Box::new(
                self.refuse_quietly("this node has just started, or is stopping, and does not vote now"),
            ));
        }
        Ok(node)
    }
}

/// A tonic service for the peer port.
pub fn service(host: Arc<Host>) -> peer_server::PeerServer<PeerService> {
    peer_server::PeerServer::new(PeerService { host })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// See the module's head.
pub struct PeerService {
    host: Arc<Host>,
}

fn malformed(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

fn internal(error: impl ToString) -> Status {
    Status::internal(error.to_string())
}

fn not_leader(error: Error) -> Status {
    Status::failed_precondition(error.to_string())
}

#[tonic::async_trait]
impl peer_server::Peer for PeerService {
    async fn hello(&self, request: Request<pb::HelloRequest>) -> Result<Response<pb::HelloResponse>, Status> {
        // Answered to anybody: asking who we are is how others find out that they mean somebody else.
        let from = request.remote_addr();
        let mut answer = hello::answer(
            self.host.peers.header(0),
            &self.host.binding(),
            &self.host.peers.myself().seeds,
            self.host.node().map(|n| &**n),
        );
        if let Some(Ok(header)) = request.into_inner().header.map(Header::try_from) {
            answer.refused = self.host.why_refused(&header).unwrap_or_default().into();
            if let Some(from) = from {
                self.host.peers.saw(&header.from.slot, from.ip());
            }
        }
        Ok(Response::new(answer))
    }

    type AppendStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let host = self.host.clone();
        // The first frame is awaited inside the answer: the sender may wait for our headers before it sends.
        let answers =
            futures::stream::once(async move { append(host, request.into_inner()).await }).try_flatten();
        Ok(Response::new(answers.boxed()))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let mut request = request.into_inner();
        self.host.admit(request.header.take()).map_err(|s| *s)?;
        let node = self.host.voting().map_err(|s| *s)?;
        let vote = convert::vote_request_from_pb(request).map_err(malformed)?;
        let answer = node.raft().vote(vote).await.map_err(internal)?;
        Ok(Response::new(self.host.voted(&answer)))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let mut request = request.into_inner();
        self.host.admit(request.header.take()).map_err(|s| *s)?;
        let node = self.host.voting().map_err(|s| *s)?;
        let vote = convert::vote_request_from_pb(request).map_err(malformed)?;
        let answer = node.raft().pre_vote(vote).await.map_err(internal)?;
        Ok(Response::new(self.host.voted(&answer)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        let vote = receive_snapshot(&self.host, request.into_inner()).await?;
        let from = Some(pb::Identity::from(&self.host.peers.identity()));
        Ok(Response::new(pb::SnapshotResponse { vote: Some(vote), from }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let mut request = request.into_inner();
        self.host.admit(request.header.take()).map_err(|s| *s)?;
        let node = self.host.running().map_err(|s| *s)?;
        if !node.may_lead() {
            return Err(self
                .host
                .refuse_quietly("this node has just started, or is stopping, and does not lead now"));
        }
        let from = convert::vote_from_pb(request.from_leader).map_err(malformed)?;
        let last = request.last_log.map(convert::log_id_from_pb);
        let transfer = TransferLeaderRequest::<TypeConfig>::new(from, request.to, last);
        let answer = node.raft().handle_transfer_leader(transfer).await.map_err(internal)?;
        let refused = answer.err().map(|e| e.to_string()).unwrap_or_default();
        Ok(Response::new(pb::TransferLeaderResponse { refused }))
    }

    async fn forward(
        &self,
        request: Request<pb::ForwardRequest>,
    ) -> Result<Response<pb::ForwardResponse>, Status> {
        let mut request = request.into_inner();
        self.host.admit(request.header.take()).map_err(|s| *s)?;
        let node = self.host.running().map_err(|s| *s)?;
        if request.commands.len() > MAX_FORWARDED {
            return Err(self
                .host
                .refuse("TOO_MANY", format!("a message forwards at most {MAX_FORWARDED} commands")));
        }
        let deadline = deadline(request.timeout_ms);
        let proposals = request.commands.into_iter().map(|command| async move {
            // What reaches the log must be readable on every node: a peer's bytes are checked like a client's.
            let decoded =
                state::codec::decode_command(command.clone()).map_err(|e| Error::Invalid(e.to_string()))?;
            decoded.validate()?;
            if decoded.operation.is_leaders_own() {
                return Err(Error::Invalid("only a leader proposes what is the cluster's own".into()));
            }
            node.propose(command, deadline).await
        });
        let results = futures::future::join_all(proposals).await.iter().map(forward_result).collect();
        Ok(Response::new(pb::ForwardResponse { results }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        let mut request = request.into_inner();
        self.host.admit(request.header.take()).map_err(|s| *s)?;
        let node = self.host.running().map_err(|s| *s)?;
        let index = node.read_index(deadline(request.timeout_ms)).await.map_err(not_leader)?;
        Ok(Response::new(convert::read_index_to_pb(index)))
    }

    async fn change_member(
        &self,
        request: Request<pb::ChangeMemberRequest>,
    ) -> Result<Response<pb::ChangeMemberResponse>, Status> {
        let mut request = request.into_inner();
        let wish = wish::from_pb(request.wish.take()).map_err(malformed)?;
        // A newcomer speaks for itself, before it belongs to the cluster; everything else comes from members.
        let header = request.header.take();
        let first_hop = header.as_ref().is_some_and(|header| header.cluster_id.is_empty());
        match (&wish, first_hop) {
            (MemberWish::Join(newcomer), true) => {
                self.host.admit_newcomer(header, newcomer).map_err(|s| *s)?
            }
            _ => self.host.admit(header).map_err(|s| *s)?,
        }
        let node = self.host.running().map_err(|s| *s)?;
        let deadline = deadline(request.timeout_ms);
        let cluster_id = self.host.peers.cluster().map(|id| id.0.to_vec().into()).unwrap_or_default();
        if let MemberWish::Join(newcomer) = &wish
            && node.state().read().retired().contains(&newcomer.raft_id)
        {
            return Ok(Response::new(pb::ChangeMemberResponse { cluster_id, error: None, retired: true }));
        }
        let done = if first_hop { node.wish(wish, deadline).await } else { node.keep(wish, deadline).await };
        let error = done.err().map(|error| to_leader::error_to_pb(&error));
        Ok(Response::new(pb::ChangeMemberResponse { cluster_id, error, retired: false }))
    }

    async fn hand_over(
        &self,
        request: Request<pb::HandOverRequest>,
    ) -> Result<Response<pb::HandOverResponse>, Status> {
        let mut request = request.into_inner();
        self.host.admit(request.header.take()).map_err(|s| *s)?;
        let node = self.host.running().map_err(|s| *s)?;
        match node.hand_over(&request.slot).await {
            Ok(leader) => Ok(Response::new(pb::HandOverResponse { leader: leader.id })),
            Err(Error::Invalid(why)) => Err(Status::invalid_argument(why)),
            Err(other) => Err(not_leader(other)),
        }
    }
}

/// The sender's time left, capped.
fn deadline(timeout_ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(timeout_ms.into()).min(MAX_TIMEOUT)
}

async fn append(
    host: Arc<Host>,
    mut frames: Streaming<pb::AppendRequest>,
) -> Result<impl Stream<Item = Result<pb::AppendResponse, Status>> + Send + 'static, Status> {
    let Some(mut first) = frames.message().await? else {
        return Err(malformed("an append stream begins with a frame"));
    };
    host.admit(first.header.take()).map_err(|s| *s)?;
    let node = host.running().map_err(|s| *s)?.clone();
    let frames = futures::stream::iter([Ok(first)]).chain(frames);
    // A frame that cannot be read ends the stream: the sender starts over from what was acknowledged. So does one with entries while there is no
    // room for them: this follower lags, and goes on hearing heartbeats, instead of meeting a full disk, which would stop it.
    let log = node.log().clone();
    let hearing = node.clone();
    let requests = frames.scan((), move |(), frame| {
        hearing.hear_leader();
        let full = !log.free_space_ok();
        ready_or_end(frame.map(convert::append_from_pb), full)
    });
    let (tx, rx) = tokio::sync::mpsc::channel(APPEND_ANSWERS_AHEAD);
    let mut me = Some(pb::Identity::from(&host.peers.identity()));
    // openraft's stream borrows its handle, so a task holds both; it ends with either side of the stream.
    tokio::spawn(async move {
        let mut answers = std::pin::pin!(node.raft().stream_append(requests));
        while let Some(answer) = answers.next().await {
            let mut answer = answer.map(|answer| convert::append_result_to_pb(&answer)).map_err(internal);
            if let Ok(answer) = &mut answer {
                answer.from = me.take();
            }
            if tx.send(answer).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(rx))
}

fn ready_or_end(
    frame: Result<std::result::Result<AppendEntriesRequest<TypeConfig>, convert::Malformed>, Status>,
    disk_is_full: bool,
) -> std::future::Ready<Option<AppendEntriesRequest<TypeConfig>>> {
    std::future::ready(match frame {
        Ok(Ok(request)) if disk_is_full && !request.entries.is_empty() => None,
        Ok(Ok(request)) => Some(request),
        Ok(Err(error)) => {
            tracing::warn!(%error, "append stream ended");
            None
        }
        Err(status) => {
            tracing::debug!(%status, "append stream ended by the sender");
            None
        }
    })
}

fn forward_result(result: &Result<state::Applied>) -> pb::ForwardResult {
    use pb::forward_result::Result as R;
    let result = match result {
        Ok(applied) => R::Applied(state::codec::encode_applied(applied)),
        Err(error) => R::Error(to_leader::error_to_pb(error)),
    };
    pb::ForwardResult { result: Some(result) }
}

/// Receives a snapshot into a temporary file, verifying each block, and gives it to openraft when it is whole.
async fn receive_snapshot(
    host: &Arc<Host>,
    mut chunks: Streaming<pb::SnapshotChunk>,
) -> Result<pb::VoteId, Status> {
    use pb::snapshot_chunk::Chunk;
    let Some(pb::SnapshotChunk { chunk: Some(Chunk::Head(mut head)) }) = chunks.message().await? else {
        return Err(malformed("a snapshot stream begins with its head"));
    };
    host.admit(head.header.take()).map_err(|s| *s)?;
    let node = host.running().map_err(|s| *s)?.clone();
    let vote = convert::leaders_vote_from_pb(head.vote).map_err(malformed)?;
    if head.last.is_some_and(|last| last.term > vote.leader_id.term) {
        return Err(malformed("a snapshot of a later term than its leader's"));
    }
    let position = |id: pb::LogId| Position { term: id.term, index: id.index };
    let dir = SnapshotDir { snapshots: host.snapshots.clone(), peers: host.peers.clone() };
    let file_head = dir
        .head(head.last.map(position), head.membership_id.map(position), head.membership)
        .map_err(malformed)?;
    let meta = meta_of_file(&file_head).map_err(malformed)?;
    let (tx, mut rx) = tokio::sync::mpsc::channel(4);
    let expected = meta.clone();
    let log = node.log().clone();
    let writer = tokio::task::spawn_blocking(move || -> std::result::Result<_, Status> {
        let mut writer = dir.snapshots.begin(file_head).map_err(internal)?;
        // Decoded on its way, before it takes the place of the one that is here: this release may not know a section of it.
        let mut decoder = SnapshotDecoder::new();
        while let Some(chunk) = rx.blocking_recv() {
            match chunk {
                Chunk::Block(block) => {
                    if !log.has_room_for(block.len() as u64) {
                        return Err(Status::resource_exhausted(
                            "this node's disk has no room for the snapshot",
                        ));
                    }
                    for section in writer.write_raw_block(block).map_err(internal)? {
                        decoder.push(section).map_err(malformed)?;
                    }
                }
                Chunk::End(pb::SnapshotEnd { blocks, crc32c: checksum, uncompressed }) => {
                    let end = SnapshotEnd { blocks, checksum, uncompressed };
                    let machine = decoder.finish().map_err(malformed)?;
                    if meta_of(&machine).map_err(malformed)? != expected {
                        return Err(malformed("a snapshot whose head is not that of its content"));
                    }
                    return writer.finish_received(end).map(Some).map_err(internal);
                }
                Chunk::Head(_) => return Ok(None),
            }
        }
        Ok(None)
    });
    while let Some(chunk) = chunks.message().await? {
        let Some(chunk) = chunk.chunk else { return Err(malformed("an empty chunk")) };
        if tx.send(chunk).await.is_err() {
            break;
        }
    }
    drop(tx);
    let file = writer
        .await
        .map_err(internal)??
        .ok_or_else(|| malformed("the snapshot stream ended before its end"))?;
    let answer =
        node.raft().install_full_snapshot(vote, Snapshot { meta, snapshot: file }).await.map_err(internal)?;
    Ok(convert::vote_to_pb(&answer.vote))
}
