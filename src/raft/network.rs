//! openraft's network on the peer protocol: the sending half. The receiving half is [`super::peer_service`].

use std::{future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftNetworkFactory,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::{
    convert,
    handshake::IdentityRef,
    peers::{Lane, Peers},
    state_machine::{RaftSnapshot, SnapshotEvent, membership_of},
    types::{PeerNode, TypeConfig, Vote},
};
use crate::{
    proto::raft::{self as pb, peer_client::PeerClient},
    store::SnapshotFile,
};

/// How long a vote or the opening of a stream may take, at least: a connection may have to be made first.
const MIN_CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// Blocks of a snapshot read ahead of the network.
const SNAPSHOT_BLOCKS_AHEAD: usize = 4;

/// Makes a [`PeerNetwork`] for each target and kind of traffic.
pub(crate) struct NetworkFactory {
    pub(crate) peers: Arc<Peers>,
    pub(crate) on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
}

impl NetworkFactory {
    fn network(&self, target: u64, node: &PeerNode, lane: Lane) -> PeerNetwork {
        PeerNetwork {
            peers: self.peers.clone(),
            target,
            slot: node.slot.clone(),
            lane,
            on_snapshot: self.on_snapshot.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> PeerNetwork {
        self.network(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> PeerNetwork {
        self.network(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &PeerNode) -> PeerNetwork {
        self.network(target, node, Lane::Snapshot)
    }
}

/// One member, on one lane.
pub(crate) struct PeerNetwork {
    peers: Arc<Peers>,
    target: u64,
    slot: String,
    lane: Lane,
    on_snapshot: Arc<dyn Fn(SnapshotEvent) + Send + Sync>,
}

type RpcError = RPCError<TypeConfig>;

/// Every failed call makes openraft back off: a node that refuses or is away does not get better by haste.
fn unreachable(why: impl ToString) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn refused(status: &Status) -> RpcError {
    unreachable(format!("{:?}: {}", status.code(), status.message()))
}

fn protocol(error: &convert::Malformed) -> RpcError {
    RPCError::Network(NetworkError::new(error))
}

/// A vote or an acknowledgement counts only from the incarnation that was asked, and from its latest start: behind the address there may
/// be a copy of its data directory.
fn answered_by(peers: &Peers, target: u64, from: Option<pb::Identity>) -> Result<(), RpcError> {
    let from = from.ok_or_else(|| unreachable("the answer does not say who sends it"))?;
    let checked = IdentityRef::try_from(from).and_then(|from| peers.heard().answered(target, &from));
    checked.map_err(|refusal| {
        tracing::warn!(reason = refusal.reason(), "an answer does not count: {refusal}");
        unreachable(refusal)
    })
}

impl PeerNetwork {
    fn client(&self, lane: Lane) -> Result<PeerClient<Channel>, RpcError> {
        self.peers.client(&self.slot, lane).map_err(unreachable)
    }

    fn ask_for_vote(
        &self,
        request: &VoteRequest<TypeConfig>,
    ) -> Result<(PeerClient<Channel>, pb::VoteRequest), RpcError> {
        let message = convert::vote_request_to_pb(request, self.peers.header(self.target));
        Ok((self.client(Lane::Control)?, message))
    }

    fn granted(&self, mut answer: pb::VoteResponse) -> Result<VoteResponse<TypeConfig>, RpcError> {
        answered_by(&self.peers, self.target, answer.from.take())?;
        convert::vote_response_from_pb(answer).map_err(|e| protocol(&e))
    }

    async fn within<T>(
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        match timeout(option.soft_ttl().max(MIN_CALL_TIMEOUT), call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refused(&status)),
            Err(_) => Err(unreachable("no answer in time")),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let mut answers = self.stream_append(futures::stream::iter([request]), option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(unreachable("the append stream ended without an answer")),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let mut input = input;
            // openraft waits out its backoff in the first request: a call opened before it would be tried again at once, for ever.
            let Some(first) = input.next().await else { return Ok(futures::stream::empty().boxed()) };
            let input = futures::stream::iter([first]).chain(input);
            let mut client = self.client(self.lane)?;
            let mut header = Some(self.peers.header(self.target));
            let requests = input.map(move |request| convert::append_to_pb(request, header.take()));
            let answers = Self::within(&option, client.append(requests)).await?;
            let (peers, target) = (self.peers.clone(), self.target);
            let mut first = true;
            let answers = answers.map(move |answer| {
                let mut answer = answer.map_err(|status| refused(&status))?;
                if std::mem::take(&mut first) {
                    answered_by(&peers, target, answer.from.take())?;
                }
                convert::append_result_from_pb(answer).map_err(|e| protocol(&e))
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (mut client, message) = self.ask_for_vote(&request)?;
        self.granted(Self::within(&option, client.vote(message)).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (mut client, message) = self.ask_for_vote(&request)?;
        self.granted(Self::within(&option, client.pre_vote(message)).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |why: String| StreamingError::Unreachable(Unreachable::from_string(why));
        let mut client = self.peers.client(&self.slot, Lane::Snapshot).map_err(unreachable)?;
        let (membership_at, membership) = membership_of(&snapshot.meta);
        let head = pb::SnapshotHead {
            header: Some(self.peers.header(self.target)),
            vote: Some(convert::vote_to_pb(&vote)),
            last: snapshot.meta.last_log_id.as_ref().map(convert::log_id_to_pb),
            membership_id: membership_at.map(|at| convert::log_id_to_pb(&convert::from_position(at))),
            membership,
        };
        let (tx, rx) = mpsc::channel(SNAPSHOT_BLOCKS_AHEAD);
        let reader = tokio::task::spawn_blocking(move || send_blocks(head, &snapshot.snapshot, &tx));
        // No time limit: a peer that is gone ends the connection by its keepalive, one that is slow is only slow.
        let answer = tokio::select! {
            answer = client.snapshot(ReceiverStream::new(rx)) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let read = reader.await.map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
        if let Err(error) = read {
            // Our own file is damaged: say so, and do not let the receiver's complaint hide it.
            return Err(StreamingError::Network(NetworkError::new(&error)));
        }
        let answer = answer.map_err(|s| unreachable(format!("{:?}: {}", s.code(), s.message())))?;
        let answer = answer.into_inner();
        answered_by(&self.peers, self.target, answer.from).map_err(|error| unreachable(error.to_string()))?;
        let vote =
            convert::vote_from_pb(answer.vote).map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
        (self.on_snapshot)(SnapshotEvent::Sent);
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let mut client = self.client(Lane::Control)?;
        let message = pb::TransferLeaderRequest {
            header: Some(self.peers.header(self.target)),
            from_leader: Some(convert::vote_to_pb(request.from_leader())),
            to: *request.to_node_id(),
            last_log: request.last_log_id().map(convert::log_id_to_pb),
        };
        let answer = Self::within(&option, client.transfer_leader(message)).await?;
        if answer.refused.is_empty() {
            Ok(Ok(()))
        } else {
            Err(unreachable(format!("the transfer was refused: {}", answer.refused)))
        }
    }
}

/// Feeds a snapshot's blocks into the stream; ends early, without an error, when the stream does.
fn send_blocks(
    head: pb::SnapshotHead,
    file: &SnapshotFile,
    tx: &mpsc::Sender<pb::SnapshotChunk>,
) -> Result<(), crate::store::StoreError> {
    use pb::snapshot_chunk::Chunk;
    let send = |chunk| tx.blocking_send(pb::SnapshotChunk { chunk: Some(chunk) }).is_ok();
    if !send(Chunk::Head(head)) {
        return Ok(());
    }
    for block in file.raw_blocks() {
        if !send(Chunk::Block(block?)) {
            return Ok(());
        }
    }
    let end = file.end();
    send(Chunk::End(pb::SnapshotEnd {
        blocks: end.blocks,
        crc32c: end.checksum,
        uncompressed: end.uncompressed,
    }));
    Ok(())
}
