//! Service `Cluster`: the node's view of its cluster, as messages.

use std::sync::Arc;

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::cache::{Api, ctx};
use crate::{
    error::{NodeRef, Result as LarderResult},
    proto::v1::{self as pb, cluster_server},
    service::{self, Ctx, Member, Role},
};

/// The service, in the shape that the generated code takes.
pub(super) struct ClusterService(pub(super) Arc<Api>);

fn node(node: NodeRef) -> pb::Node {
    pb::Node { id: node.id, slot: node.slot }
}

fn role(role: Role) -> pb::Role {
    match role {
        Role::Leader => pb::Role::Leader,
        Role::Follower => pb::Role::Follower,
        Role::Candidate => pb::Role::Candidate,
        Role::Learner => pb::Role::Learner,
        Role::None => pb::Role::None,
    }
}

fn status_response(header: Option<pb::ResponseHeader>, status: service::Status) -> pb::StatusResponse {
    let not_ready_because: Vec<String> = status
        .checks
        .into_iter()
        .filter_map(|check| check.failing.map(|why| format!("{}: {why}", check.name)))
        .collect();
    pb::StatusResponse {
        header,
        role: role(status.role).into(),
        term: status.term,
        leader: status.leader.map(node),
        last_log_index: status.last_log_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        first_log_index: status.first_log_index,
        snapshot_index: status.snapshot_index,
        keys: status.keys,
        bytes: status.bytes,
        state_hash: status.state_hash,
        ready: not_ready_because.is_empty(),
        not_ready_because,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        feature_level: status.feature_level,
        feature_level_offered: status.feature_level_offered,
        memory_limit_bytes: status.memory_limit_bytes,
        incarnation: status.incarnation,
        boot_counter: status.boot_counter,
        disk_bytes: status.disk_bytes,
    }
}

fn member(member: Member) -> pb::Member {
    pb::Member {
        node: Some(node(member.node)),
        voter: member.voter,
        leader: member.leader,
        peer_address: member.peer_address,
        client_address: member.client_address,
        matched_index: member.matched_index,
    }
}

impl ClusterService {
    /// A header at the point that the node is at.
    fn header(&self, status: &service::Status) -> Option<pb::ResponseHeader> {
        self.0.header(status.revision, status.clock_ms)
    }

    /// The header of the answer to a change of the members, once that is done within the deadline of the request.
    async fn change<F: Future<Output = LarderResult<()>>>(
        &self,
        metadata: &MetadataMap,
        change: impl FnOnce(Ctx) -> F,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        let done = async { change(ctx(metadata)?).await };
        done.await.map_err(|error| self.0.status(&error))?;
        Ok(self.header(&self.0.deps.cluster.status()))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for ClusterService {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.0.deps.cluster.status();
        Ok(Response::new(status_response(self.header(&status), status)))
    }

    async fn members(&self, _: Request<pb::MembersRequest>) -> Result<Response<pb::MembersResponse>, Status> {
        let header = self.header(&self.0.deps.cluster.status());
        let members = self.0.deps.cluster.members().into_iter().map(member).collect();
        Ok(Response::new(pb::MembersResponse { header, members }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let cluster = &self.0.deps.cluster;
        let slot = request.into_inner().slot;
        let leader = cluster.transfer_leader(&slot).await.map_err(|error| self.0.status(&error))?;
        let header = self.header(&cluster.status());
        Ok(Response::new(pb::TransferLeaderResponse { header, leader: Some(node(leader)) }))
    }

    async fn retire_member(
        &self,
        request: Request<pb::RetireMemberRequest>,
    ) -> Result<Response<pb::RetireMemberResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let header = self.change(&metadata, |ctx| self.0.deps.cluster.retire(&request.slot, ctx)).await?;
        Ok(Response::new(pb::RetireMemberResponse { header }))
    }

    async fn promote_member(
        &self,
        request: Request<pb::PromoteMemberRequest>,
    ) -> Result<Response<pb::PromoteMemberResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let header = self.change(&metadata, |ctx| self.0.deps.cluster.promote(&request.slot, ctx)).await?;
        Ok(Response::new(pb::PromoteMemberResponse { header }))
    }

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveResponse>, Status> {
        let header = self.change(request.metadata(), |ctx| self.0.deps.cluster.leave(ctx)).await?;
        Ok(Response::new(pb::LeaveResponse { header }))
    }

    async fn recover(
        &self,
        request: Request<pb::RecoverRequest>,
    ) -> Result<Response<pb::RecoverResponse>, Status> {
        let cluster = &self.0.deps.cluster;
        let cluster_id = request.into_inner().cluster_id;
        let recovered = cluster.recover(&cluster_id).await.map_err(|error| self.0.status(&error))?;
        let header = self.header(&cluster.status());
        Ok(Response::new(pb::RecoverResponse {
            header,
            cluster_id: recovered.cluster.to_string(),
            revision: recovered.revision,
            keys: recovered.keys,
            last_log_index: recovered.last_log_index,
        }))
    }
}
