//! A bare client of the generated code: no retries, every failure told apart by what it says of the write.

use std::{fmt, time::Duration};

use bytes::Bytes;
use larder::proto::v1::{self as pb, cache_client::CacheClient, cluster_client::ClusterClient};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Whether the write surely was not applied: the node said so, or it never took the request.
    pub surely_not_applied: bool,
    /// As gRPC says it.
    pub code: Code,
    /// The ErrorInfo's reason; empty where the failure is the transport's.
    pub reason: String,
    /// All of it.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}", self.code, self.reason, self.text)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let applied = info.as_ref().and_then(|i| i.metadata.get("applied").cloned());
        Self {
            surely_not_applied: applied.as_deref() == Some("NO") || never_taken(&status),
            code: status.code(),
            reason: info.map(|i| i.reason).unwrap_or_default(),
            text: format!("{} {:?}", status.message(), std::error::Error::source(&status)),
        }
    }
}

/// Whether the node never took the request: nobody listens, the connection ended while it waited for its turn, or the node said that it closes and
/// that the request is behind the last one it took (RFC 9113, 6.8; h2 gives this error to no other stream). Histories are judged with what is
/// concluded here: a write that was applied all the same would be found.
fn never_taken(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let refused = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
        let closing =
            |e: &h2::Error| e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR);
        if error.downcast_ref().is_some_and(refused)
            || error.downcast_ref().is_some_and(hyper::Error::is_canceled)
            || error.downcast_ref().is_some_and(closing)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A client with a connection to each node, which uses one until it is told to go on.
#[derive(Debug, Clone)]
pub struct Rpc {
    channels: Vec<Channel>,
    at: usize,
}

impl Rpc {
    /// A client of these `host:port`s that begins with the one at `first`. Connects when first used.
    pub fn new(endpoints: Vec<String>, first: usize) -> Self {
        let channel = |endpoint: &String| {
            Endpoint::from_shared(format!("http://{endpoint}"))
                .unwrap()
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .connect_lazy()
        };
        Self { channels: endpoints.iter().map(channel).collect(), at: first % endpoints.len() }
    }

    /// Uses the next node from now on.
    pub fn rotate(&mut self) {
        self.at = (self.at + 1) % self.channels.len();
    }

    /// The index of the node in use.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The generated client of the node in use.
    pub fn cache(&self) -> CacheClient<Channel> {
        CacheClient::new(self.channels[self.at].clone()).max_decoding_message_size(16 << 20)
    }

    /// The generated client of the node in use.
    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channels[self.at].clone())
    }

    /// Set without a condition; the new version.
    pub async fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<u64, Failure> {
        let request = pb::SetRequest { key: key.into(), value: value.into(), ..Default::default() };
        Ok(self.cache().set(timed(request)).await?.into_inner().version)
    }

    /// Linearizable Get; `None` if there is no such key.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Failure> {
        let request = pb::GetRequest { key: key.into(), ..Default::default() };
        let answer = self.cache().get(timed(request)).await?.into_inner();
        Ok(answer.found.then_some(answer.value))
    }

    /// Increment by one; the sum.
    pub async fn increment(&self, key: impl Into<Bytes>) -> Result<i64, Failure> {
        let request = pb::IncrementRequest { key: key.into(), delta: 1, ..Default::default() };
        Ok(self.cache().increment(timed(request)).await?.into_inner().value)
    }

    /// A batch of Sets; fails if one of them was refused.
    pub async fn set_all(&self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), Failure> {
        let set = |(key, value)| pb::BatchOperation {
            operation: Some(pb::batch_operation::Operation::Set(pb::SetRequest {
                key,
                value,
                ..Default::default()
            })),
        };
        let request = pb::BatchRequest { operations: pairs.into_iter().map(set).collect(), read: None };
        let answer = self.cache().batch(timed(request)).await?.into_inner();
        for result in answer.results {
            if let Some(pb::batch_result::Result::Error(error)) = result.result {
                panic!("an operation of a batch was refused: {error:?}");
            }
        }
        Ok(())
    }

    /// The node's status.
    pub async fn status(&self) -> Result<pb::StatusResponse, Failure> {
        Ok(self.cluster().status(timed(pb::StatusRequest {})).await?.into_inner())
    }
}

/// A request with the usual deadline.
fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}
