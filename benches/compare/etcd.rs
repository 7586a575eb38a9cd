//! etcd as a target: the few messages of its API that are needed, declared by hand, over the same client code
//! as Larder.

use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures::future::try_join_all;
use larder::bench::{ErrorKind, GrpcConnection, GrpcMethod, Operation, Target};

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
}

/// One sender on one connection.
#[derive(Clone)]
pub(crate) struct EtcdTarget {
    connection: GrpcConnection,
    put: GrpcMethod,
    range: GrpcMethod,
}

/// Opens one connection to `host:port`.
pub(crate) async fn connect(address: &str, timeout: Duration) -> Result<EtcdTarget> {
    let connection = GrpcConnection::open(address, timeout).await?;
    let put = connection.method("/etcdserverpb.KV/Put");
    let range = connection.method("/etcdserverpb.KV/Range");
    Ok(EtcdTarget { connection, put, range })
}

/// Asks a member how it is.
pub(crate) async fn status(address: &str, timeout: Duration) -> Result<StatusResponse> {
    let mut connection = GrpcConnection::open(address, timeout).await?;
    let status = connection.method("/etcdserverpb.Maintenance/Status");
    connection.unary(&status, &StatusRequest {}).await.map_err(|kind| anyhow!("etcd's status: {kind}"))
}

impl Target for EtcdTarget {
    async fn set(&mut self, key: Bytes, value: Bytes) -> Result<(), ErrorKind> {
        let _: PutResponse = self.connection.unary(&self.put, &PutRequest { key, value }).await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes) -> Result<(), ErrorKind> {
        let request = RangeRequest { key, limit: 0, serializable: false };
        let response: RangeResponse = self.connection.unary(&self.range, &request).await?;
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
