//! etcd as a target: the few messages of its API that are needed, declared by hand, over the same gRPC library and with the
//! same settings as Larder.

use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use larder::bench::{ErrorKind, Operation, Target};
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// As for Larder.
const WINDOW_BYTES: u32 = 4 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(int64, tag = "3")]
    limit: i64,
    /// False, the default, is linearizable.
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    cluster_id: u64,
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// How a member is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

impl StatusResponse {
    /// Whether the member that answered leads.
    pub(crate) fn leads(&self) -> bool {
        self.leader != 0 && self.header.as_ref().is_some_and(|header| header.member_id == self.leader)
    }

    /// Whether it knows a leader.
    pub(crate) fn knows_a_leader(&self) -> bool {
        self.leader != 0
    }
}

/// One sender on one connection.
#[derive(Clone)]
pub(crate) struct EtcdTarget {
    grpc: Grpc<Channel>,
}

/// Opens one connection to `http://host:port`.
pub(crate) async fn connect(url: &str, timeout: Duration) -> anyhow::Result<EtcdTarget> {
    let channel = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(timeout)
        .timeout(timeout)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await?;
    Ok(EtcdTarget { grpc: Grpc::new(channel) })
}

impl EtcdTarget {
    /// Asks the member how it is.
    pub(crate) async fn status(&mut self) -> Result<StatusResponse, Status> {
        self.call(StatusRequest {}, "/etcdserverpb.Maintenance/Status").await
    }

    async fn call<Q, A>(&mut self, request: Q, path: &'static str) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        self.grpc.unary(Request::new(request), path, codec).await.map(tonic::Response::into_inner)
    }
}

impl Target for EtcdTarget {
    async fn set(&mut self, key: Bytes, value: Bytes) -> Result<(), ErrorKind> {
        let _: PutResponse = self.call(PutRequest { key, value }, "/etcdserverpb.KV/Put").await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes) -> Result<(), ErrorKind> {
        let request = RangeRequest { key, limit: 0, serializable: false };
        let response: RangeResponse = self.call(request, "/etcdserverpb.KV/Range").await?;
        if response.count == 1 { Ok(()) } else { Err(ErrorKind::MISS) }
    }

    /// Side by side; only used to load keys.
    async fn batch(&mut self, operations: Vec<Operation>) -> Result<(), ErrorKind> {
        let one = |operation| {
            let mut target = self.clone();
            async move {
                match operation {
                    Operation::Set { key, value } => target.set(key, value).await,
                    Operation::Get { key } => target.get(key).await,
                }
            }
        };
        try_join_all(operations.into_iter().map(one)).await.map(drop)
    }
}
