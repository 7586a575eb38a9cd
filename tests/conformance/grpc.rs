//! The seam over the wire: `service::Cache` by the generated client, so that the suite runs over gRPC.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use larder::{
    error::{Error, Rejection, Result},
    proto::v1::{self as pb, cache_client::CacheClient},
    service::{Cache, Consistency, Ctx},
    state::{Answer, Applied, Command, Condition, Found, Operation, Outcome, Query, Versioned},
    time::UnixMillis,
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;

use super::Subject;

/// A cache behind the API.
pub struct GrpcCache {
    client: CacheClient<Channel>,
}

impl GrpcCache {
    /// Over a channel; values at their limit fit into its answers.
    pub fn new(channel: Channel) -> Self {
        Self { client: CacheClient::new(channel).max_decoding_message_size(16 * 1024 * 1024) }
    }
}

fn request<T>(message: T, ctx: Ctx) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ctx.timeout);
    request
}

fn point(header: Option<pb::ResponseHeader>) -> (u64, UnixMillis) {
    let header = header.expect("every answer has a header");
    (header.revision, UnixMillis(header.clock_ms))
}

fn versioned(value: Bytes, version: u64) -> Versioned {
    Versioned { value, version, deadline: None }
}

fn previous(previous: Option<pb::Previous>) -> Option<Versioned> {
    previous.map(|p| versioned(p.value, p.version))
}

/// What a status says about a write.
fn error(status: &Status) -> Error {
    let message = status.message().to_owned();
    let info = status.get_error_details();
    let info = info.error_info();
    let reason = info.map_or("", |info| info.reason.as_str());
    rejection(reason).map_or_else(
        || match status.code() {
            Code::InvalidArgument => Error::Invalid(message),
            Code::Unimplemented => Error::Unimplemented(message),
            Code::ResourceExhausted => Error::ResourceExhausted(message),
            _ if info.is_some_and(|info| applied(&info.metadata) == Some("NO")) => {
                Error::Unavailable(message)
            }
            _ => Error::OutcomeUnknown(message),
        },
        Error::Rejected,
    )
}

fn applied(metadata: &HashMap<String, String>) -> Option<&str> {
    metadata.get("applied").map(String::as_str)
}

fn rejection(reason: &str) -> Option<Rejection> {
    match reason {
        "CONDITION_FAILED" => Some(Rejection::ConditionFailed { current: None }),
        "NOT_A_NUMBER" => Some(Rejection::NotANumber),
        "OUT_OF_RANGE" => Some(Rejection::OutOfRange),
        "NOT_OPEN" => Some(Rejection::NotOpen),
        _ => None,
    }
}

fn condition(condition: Condition) -> Option<pb::Condition> {
    use pb::condition::Condition as Wire;
    let condition = match condition {
        Condition::None => return None,
        Condition::IfAbsent => Wire::IfAbsent(true),
        Condition::IfPresent => Wire::IfPresent(true),
        Condition::IfVersion(version) => Wire::IfVersion(version),
    };
    Some(pb::Condition { condition: Some(condition) })
}

fn wire(operation: Operation) -> pb::batch_operation::Operation {
    use pb::batch_operation::Operation as Wire;
    match operation {
        Operation::Set { key, value, condition: c, ttl_ms, return_previous } => Wire::Set(pb::SetRequest {
            key,
            value,
            condition: condition(c),
            return_previous,
            ttl_ms: ttl_ms.map(|ttl| ttl as i64),
            ..pb::SetRequest::default()
        }),
        Operation::Delete { key, if_version, return_previous } => Wire::Delete(pb::DeleteRequest {
            key,
            if_version: if_version.unwrap_or(0),
            return_previous,
            ..pb::DeleteRequest::default()
        }),
        Operation::Increment { key, delta, initial, ttl_ms } => Wire::Increment(pb::IncrementRequest {
            key,
            delta,
            initial: Some(initial),
            ttl_ms: ttl_ms.map(|ttl| ttl as i64),
            ..pb::IncrementRequest::default()
        }),
        Operation::Batch(_) | Operation::Open | Operation::RecordBoot { .. } => {
            panic!("no operation of the API: {operation:?}")
        }
    }
}

fn outcome(result: pb::BatchResult) -> Outcome {
    use pb::batch_result::Result as Wire;
    match result.result.expect("every operation has a result") {
        Wire::Set(set) => Outcome::Set { version: set.version, previous: previous(set.previous) },
        Wire::Delete(deleted) => {
            Outcome::Deleted { existed: deleted.deleted, previous: previous(deleted.previous) }
        }
        Wire::Increment(sum) => Outcome::Incremented { value: sum.value, version: sum.version },
        Wire::Error(error) => Outcome::Rejected(
            rejection(&error.reason).unwrap_or_else(|| panic!("not refused by the state: {error:?}")),
        ),
        Wire::Get(_) => panic!("a write was answered by a read"),
    }
}

impl GrpcCache {
    async fn send(&self, operation: Operation, ctx: Ctx) -> Result<Applied, Status> {
        use pb::batch_operation::Operation as Wire;
        let mut client = self.client.clone();
        let (header, outcome) = match operation {
            Operation::Batch(operations) => {
                let operations = operations
                    .into_iter()
                    .map(|operation| pb::BatchOperation { operation: Some(wire(operation)) })
                    .collect();
                let batch = pb::BatchRequest { operations, read: None };
                let response = client.batch(request(batch, ctx)).await?.into_inner();
                (response.header, Outcome::Batch(response.results.into_iter().map(outcome).collect()))
            }
            operation => match wire(operation) {
                Wire::Set(set) => {
                    let set = client.set(request(set, ctx)).await?.into_inner();
                    (set.header, Outcome::Set { version: set.version, previous: previous(set.previous) })
                }
                Wire::Delete(delete) => {
                    let gone = client.delete(request(delete, ctx)).await?.into_inner();
                    (
                        gone.header,
                        Outcome::Deleted { existed: gone.deleted, previous: previous(gone.previous) },
                    )
                }
                Wire::Increment(increment) => {
                    let sum = client.increment(request(increment, ctx)).await?.into_inner();
                    (sum.header, Outcome::Incremented { value: sum.value, version: sum.version })
                }
                Wire::Get(_) => panic!("no write"),
            },
        };
        let (revision, clock) = point(header);
        Ok(Applied { revision, clock, outcome })
    }

    /// The point, for an answer that has none: that of an empty linearizable read.
    async fn point_now(&self) -> Result<(u64, UnixMillis)> {
        let get = pb::GetRequest { key: "point".into(), ..pb::GetRequest::default() };
        let answer = self.client.clone().get(get).await.map_err(|status| error(&status))?;
        Ok(point(answer.into_inner().header))
    }
}

fn read_options(consistency: Consistency) -> Option<pb::ReadOptions> {
    let consistency = match consistency {
        Consistency::Linearizable => pb::Consistency::Linearizable,
        Consistency::Local => pb::Consistency::Local,
    };
    Some(pb::ReadOptions { consistency: consistency.into(), ..pb::ReadOptions::default() })
}

#[async_trait]
impl Cache for GrpcCache {
    async fn write(&self, command: Command, ctx: Ctx) -> Result<Applied> {
        match self.send(command.operation, ctx).await {
            Ok(applied) => Ok(applied),
            Err(status) => match error(&status) {
                // A status has no header; the seam answers a rejection with the point it was made at.
                Error::Rejected(rejection) => {
                    let (revision, clock) = self.point_now().await?;
                    Ok(Applied { revision, clock, outcome: Outcome::Rejected(rejection) })
                }
                error => Err(error),
            },
        }
    }

    async fn read(&self, query: Query, consistency: Consistency, ctx: Ctx) -> Result<Answer> {
        let Query::Get { keys, .. } = query else {
            return Err(Error::Unimplemented("over gRPC a scan is a stream, see Subject::scan".into()));
        };
        if let [key] = &keys[..] {
            let get = pb::GetRequest {
                key: key.clone(),
                read: read_options(consistency),
                ..pb::GetRequest::default()
            };
            let found = self.client.clone().get(request(get, ctx)).await.map_err(|status| error(&status))?;
            let found = found.into_inner();
            let (revision, clock) = point(found.header);
            let value = found.found.then(|| versioned(found.value, found.version));
            return Ok(Answer { revision, clock, found: Found::Values(vec![value]) });
        }
        let operations = keys
            .into_iter()
            .map(|key| pb::BatchOperation {
                operation: Some(pb::batch_operation::Operation::Get(pb::GetRequest {
                    key,
                    ..pb::GetRequest::default()
                })),
            })
            .collect();
        let batch = pb::BatchRequest { operations, read: read_options(consistency) };
        let response =
            self.client.clone().batch(request(batch, ctx)).await.map_err(|status| error(&status))?;
        let response = response.into_inner();
        let (revision, clock) = point(response.header);
        let values = response.results.into_iter().map(|result| match result.result {
            Some(pb::batch_result::Result::Get(get)) => get.found.then(|| versioned(get.value, get.version)),
            other => panic!("a read was answered by {other:?}"),
        });
        Ok(Answer { revision, clock, found: Found::Values(values.collect()) })
    }
}

#[async_trait]
impl Subject for GrpcCache {
    fn cache(&self) -> &dyn Cache {
        self
    }

    async fn scan(&self, prefix: &[u8], start_after: &[u8]) -> Result<(u64, Vec<(Bytes, Versioned)>), Error> {
        let scan = pb::ScanRequest {
            prefix: Bytes::copy_from_slice(prefix),
            start_after: Bytes::copy_from_slice(start_after),
            ..pb::ScanRequest::default()
        };
        let stream = self.client.clone().scan(scan).await.map_err(|status| error(&status))?;
        let mut stream = stream.into_inner();
        let (mut revision, mut entries, mut done) = (None, Vec::new(), false);
        while let Some(chunk) = stream.message().await.map_err(|status| error(&status))? {
            let (at, _) = point(chunk.header);
            assert_eq!(*revision.get_or_insert(at), at, "every chunk is of one revision");
            entries.extend(chunk.entries.into_iter().map(|e| (e.key, versioned(e.value, e.version))));
            assert!(!done, "nothing follows the last chunk");
            done = chunk.done;
        }
        assert!(done, "a scan that ends says so");
        Ok((revision.expect("at least one chunk"), entries))
    }
}
