//! Service `Cache`: parse, call, render.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{Deps, MAX_TIMEOUT, admission::Admission, batch, convert, errors, scan};
use crate::{
    error::{Error, Result},
    proto::v1::{self as pb, cache_server},
    service::Ctx,
    state::{Applied, Command, Found, Operation, Query},
};

/// What all methods work on.
pub(super) struct Api {
    pub(super) deps: Deps,
    pub(super) admission: Arc<Admission>,
    /// Fixed for the life of the process.
    node: pb::Node,
    /// Fixed once the cluster is founded or found.
    cluster_id: OnceLock<String>,
}

impl Api {
    pub(super) fn new(deps: Deps, admission: Arc<Admission>) -> Self {
        let node = deps.cluster.node();
        let node = pb::Node { id: node.id, slot: node.slot };
        Self { deps, admission, node, cluster_id: OnceLock::new() }
    }

    /// The header of an answer made at this point.
    pub(super) fn header(&self, revision: u64, clock_ms: i64) -> Option<pb::ResponseHeader> {
        let cluster_id = match self.cluster_id.get() {
            Some(id) => id.clone(),
            None => {
                let id = self.deps.cluster.cluster_id();
                if !id.is_empty() {
                    // Another request may have set it meanwhile, to the same.
                    let _ = self.cluster_id.set(id.clone());
                }
                id
            }
        };
        Some(pb::ResponseHeader { revision, cluster_id, node: Some(self.node.clone()), clock_ms })
    }

    pub(super) fn status(&self, error: &Error) -> Status {
        errors::status(error, &*self.deps.cluster)
    }

    /// Writes one operation; `render` makes the message of its outcome.
    async fn write<T>(
        &self,
        metadata: &MetadataMap,
        operation: Result<Operation>,
        render: impl FnOnce(Option<pb::ResponseHeader>, crate::state::Outcome) -> Result<T>,
    ) -> Result<Response<T>, Status> {
        let written = async {
            let operation = operation?;
            let ctx = ctx(metadata)?;
            let _room = self.admission.bytes(convert::content_bytes(&operation))?;
            let Applied { revision, clock, outcome } =
                self.deps.cache.write(Command::new(operation), ctx).await?;
            render(self.header(revision, clock.0), outcome)
        };
        written.await.map(Response::new).map_err(|error| self.status(&error))
    }

    async fn read_one(&self, request: Request<pb::GetRequest>) -> Result<pb::GetResponse> {
        let ctx = ctx(request.metadata())?;
        let (key, consistency) = convert::get(request.into_inner())?;
        let query = Query::Get { keyspace: convert::DEFAULT_KEYSPACE, keys: vec![key] };
        let answer = self.deps.cache.read(query, consistency, ctx).await?;
        let Found::Values(values) = answer.found else { return Err(wrong_answer()) };
        let Some(found) = values.into_iter().next() else { return Err(wrong_answer()) };
        let clock_ms = answer.clock.0;
        Ok(convert::get_response(self.header(answer.revision, clock_ms), found, clock_ms))
    }
}

/// A read whose answer does not fit the question: the service below broke its contract.
pub(super) fn wrong_answer() -> Error {
    Error::Unavailable("the answer does not fit the question; this is a bug in Larder".to_owned())
}

/// What a request carries besides its content: its deadline.
pub(super) fn ctx(metadata: &MetadataMap) -> Result<Ctx> {
    let Some(timeout) = metadata.get("grpc-timeout") else { return Ok(Ctx::default()) };
    let timeout = timeout.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
        Error::Invalid("grpc-timeout is not one to eight digits and a unit of H, M, S, m, u, n".to_owned())
    })?;
    let timeout = timeout.min(MAX_TIMEOUT);
    // The client's own timer runs out at the same time: an answer made just before says more than that does.
    Ok(Ctx { timeout: timeout - (timeout / 10).min(ANSWER_MARGIN) })
}

/// How much before its client's deadline a request is answered, at most.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// The value of a `grpc-timeout` header, as in gRPC's protocol over HTTP/2.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(amount * 3600),
        'M' => Duration::from_secs(amount * 60),
        'S' => Duration::from_secs(amount),
        'm' => Duration::from_millis(amount),
        'u' => Duration::from_micros(amount),
        'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The service, in the shape that the generated code takes.
pub(super) struct CacheService(pub(super) Arc<Api>);

#[tonic::async_trait]
impl cache_server::Cache for CacheService {
    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        self.0.read_one(request).await.map(Response::new).map_err(|error| self.0.status(&error))
    }

    async fn set(&self, request: Request<pb::SetRequest>) -> Result<Response<pb::SetResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.0.write(&metadata, request.try_into(), convert::set_response).await
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.0.write(&metadata, request.try_into(), convert::delete_response).await
    }

    async fn increment(
        &self,
        request: Request<pb::IncrementRequest>,
    ) -> Result<Response<pb::IncrementResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.0.write(&metadata, request.try_into(), convert::increment_response).await
    }

    async fn batch(&self, request: Request<pb::BatchRequest>) -> Result<Response<pb::BatchResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let done = async { batch::run(&self.0, request.try_into()?, ctx(&metadata)?).await };
        done.await.map(Response::new).map_err(|error| self.0.status(&error))
    }

    type ScanStream = scan::ScanStream;

    async fn scan(&self, request: Request<pb::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let started = async { scan::start(&self.0, request.try_into()?, ctx(&metadata)?).await };
        started.await.map(Response::new).map_err(|error| self.0.status(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_timeout("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "1é", "+1S"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_deadline_is_capped_and_one_that_cannot_be_read_is_refused() {
        let mut metadata = MetadataMap::new();
        assert_eq!(ctx(&metadata), Ok(Ctx::default()));
        metadata.insert("grpc-timeout", "2H".parse().unwrap());
        assert_eq!(ctx(&metadata), Ok(Ctx { timeout: MAX_TIMEOUT - ANSWER_MARGIN }));
        metadata.insert("grpc-timeout", "100m".parse().unwrap());
        assert_eq!(ctx(&metadata), Ok(Ctx { timeout: Duration::from_millis(90) }));
        metadata.insert("grpc-timeout", "soon".parse().unwrap());
        assert!(matches!(ctx(&metadata), Err(Error::Invalid(_))));
    }
}
