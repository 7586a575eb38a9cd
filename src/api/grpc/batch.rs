//! Batch: runs of writes and runs of reads, in order.
//!
//! Consecutive writes become one command, so one log entry; consecutive reads one query. An operation that the state
//! refuses becomes an error in its place and stops nothing. A run that fails as a whole ends the batch: what was done
//! before is answered, and every operation from there on carries its error and whether it may have been applied, so
//! that nothing acknowledged is hidden and nothing unknown is promised. Only a batch whose first run fails is an
//! error as a whole.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    cache::{Api, wrong_answer},
    convert::{self, Batch, BatchOperation},
    errors,
};
use crate::{
    error::{Error, Result},
    proto::v1::{self as pb, batch_result::Result as Wire},
    service::{Consistency, Ctx},
    state::{Command, Found, MAX_BATCH_BYTES, Operation, Outcome, Query},
};

/// The most bytes of values that the reads of a batch may answer, so that the answer stays below the 4 MiB that gRPC
/// clients take by default. A read past it is refused in its place.
const MAX_ANSWER_BYTES: usize = MAX_BATCH_BYTES - 64 * 1024;

/// Operations of one kind next to one another.
enum Run {
    Reads(Vec<Bytes>),
    Writes(Vec<Operation>),
}

impl Run {
    fn len(&self) -> usize {
        match self {
            Self::Reads(keys) => keys.len(),
            Self::Writes(operations) => operations.len(),
        }
    }
}

fn runs(operations: Vec<BatchOperation>) -> VecDeque<Run> {
    let mut runs = VecDeque::new();
    for operation in operations {
        match (operation, runs.back_mut()) {
            (BatchOperation::Get(key), Some(Run::Reads(keys))) => keys.push(key),
            (BatchOperation::Get(key), _) => runs.push_back(Run::Reads(vec![key])),
            (BatchOperation::Write(operation), Some(Run::Writes(operations))) => operations.push(operation),
            (BatchOperation::Write(operation), _) => runs.push_back(Run::Writes(vec![operation])),
        }
    }
    runs
}

/// The point that a run was answered at, and its results.
struct Done {
    revision: u64,
    clock_ms: i64,
    results: Vec<Wire>,
}

/// Does a batch.
///
/// # Errors
/// That of its first run, if that failed as a whole.
pub(super) async fn run(api: &Api, batch: Batch, ctx: Ctx) -> Result<pb::BatchResponse> {
    let _room = api.admission.bytes(batch.bytes)?;
    let begun = Instant::now();
    let mut results = Vec::with_capacity(batch.operations.len());
    let mut answer_bytes = MAX_ANSWER_BYTES;
    let mut point = None;
    let mut runs = runs(batch.operations);
    while let Some(run) = runs.pop_front() {
        let operations = run.len();
        let left = Ctx { timeout: ctx.timeout.saturating_sub(begun.elapsed()) };
        let done = match run {
            Run::Reads(keys) => read(api, keys, batch.consistency, left, &mut answer_bytes).await,
            Run::Writes(operations) => write(api, operations, left, &mut answer_bytes).await,
        };
        match done {
            Ok(done) if done.results.len() == operations => {
                point = Some((done.revision, done.clock_ms));
                results.extend(done.results);
            }
            failed => {
                let error = failed.err().unwrap_or_else(convert::mismatch);
                if point.is_none() {
                    return Err(error);
                }
                results.extend(failures(&error, operations, &runs));
                break;
            }
        }
    }
    let header = point.and_then(|(revision, clock_ms)| api.header(revision, clock_ms));
    let results = results.into_iter().map(|result| pb::BatchResult { result: Some(result) }).collect();
    Ok(pb::BatchResponse { header, results })
}

/// The results of a run that failed as a whole, and of those after it, which were not begun.
fn failures(error: &Error, operations: usize, rest: &VecDeque<Run>) -> impl Iterator<Item = Wire> {
    let unknown =
        Error::Unavailable("not begun, because an earlier operation of the batch failed".to_owned());
    let not_begun = if error.applied() == Some(false) { error } else { &unknown };
    let rest: usize = rest.iter().map(Run::len).sum();
    let (failed, not_begun) = (errors::in_batch(error), errors::in_batch(not_begun));
    std::iter::repeat_n(failed, operations).chain(std::iter::repeat_n(not_begun, rest)).map(Wire::Error)
}

async fn write(api: &Api, operations: Vec<Operation>, ctx: Ctx, answer_bytes: &mut usize) -> Result<Done> {
    let applied = api.deps.cache.write(Command::new(Operation::Batch(operations)), ctx).await?;
    let outcomes = match applied.outcome {
        Outcome::Batch(outcomes) => outcomes,
        Outcome::Rejected(rejection) => return Err(rejection.into()),
        _ => return Err(convert::mismatch()),
    };
    let results = outcomes.into_iter().map(|outcome| match convert::batch_result(outcome) {
        Ok(result) => result,
        Err(rejection) => Wire::Error(errors::in_batch(&rejection.into())),
    });
    let results: Vec<Wire> = results.collect();
    // Done is done: a previous value is always answered, and leaves less room for reads.
    let previous: usize = results.iter().map(previous_bytes).sum();
    *answer_bytes = answer_bytes.saturating_sub(previous);
    Ok(Done { revision: applied.revision, clock_ms: applied.clock.0, results })
}

fn previous_bytes(result: &Wire) -> usize {
    let previous = match result {
        Wire::Set(set) => &set.previous,
        Wire::Delete(delete) => &delete.previous,
        Wire::Get(_) | Wire::Increment(_) | Wire::Error(_) => return 0,
    };
    previous.as_ref().map_or(0, |p| p.value.len())
}

async fn read(
    api: &Api,
    keys: Vec<Bytes>,
    consistency: Consistency,
    ctx: Ctx,
    answer_bytes: &mut usize,
) -> Result<Done> {
    let query = Query::Get { keyspace: convert::DEFAULT_KEYSPACE, keys };
    let answer = api.deps.cache.read(query, consistency, ctx).await?;
    let Found::Values(values) = answer.found else { return Err(wrong_answer()) };
    let clock_ms = answer.clock.0;
    let results = values.into_iter().map(|found| {
        let bytes = found.as_ref().map_or(0, |found| found.value.len());
        match answer_bytes.checked_sub(bytes) {
            Some(left) => {
                *answer_bytes = left;
                Wire::Get(convert::get_response(None, found, clock_ms))
            }
            None => Wire::Error(errors::in_batch(&Error::ResourceExhausted(format!(
                "the batch's answer would have more than {MAX_ANSWER_BYTES} bytes of values; get this key in another \
                 request"
            )))),
        }
    });
    Ok(Done { revision: answer.revision, clock_ms, results: results.collect() })
}
