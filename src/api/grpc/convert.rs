//! Messages into commands and queries, and outcomes into messages.
//!
//! Whatever can never work is refused here with a sentence, before anything is proposed: sizes, values out of their
//! range (`Invalid`), and fields whose behaviour a later release brings (`Unimplemented`). The rules of each field are
//! in the protos.

use bytes::Bytes;

use crate::{
    error::{Error, Rejection, Result},
    proto::v1 as pb,
    service::Consistency,
    state::{
        Condition, MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_BATCH_PREVIOUS, MAX_KEY_BYTES, Operation,
        Outcome, Versioned, validate_key, validate_value,
    },
};

/// The number of the only keyspace of this release.
pub(super) const DEFAULT_KEYSPACE: u32 = 0;

/// A prefix or a resume point: as a key, but may be empty.
fn validate_bound(name: &str, bound: &[u8]) -> Result<()> {
    if bound.len() <= MAX_KEY_BYTES {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{name} has {} bytes and no key has more than {MAX_KEY_BYTES}; give a shorter one",
        bound.len()
    )))
}

fn validate_batch_length(operations: usize) -> Result<()> {
    if (1..=MAX_BATCH_OPERATIONS).contains(&operations) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the batch has {operations} operations and may have 1 to {MAX_BATCH_OPERATIONS}; split it"
    )))
}

fn later(what: &str) -> Error {
    Error::Unimplemented(format!(
        "{what} is reserved for a later release of Larder; nothing was applied; leave it out"
    ))
}

fn keyspace(name: &str) -> Result<u32> {
    match name {
        "" | "default" => Ok(DEFAULT_KEYSPACE),
        other => Err(Error::Unimplemented(format!(
            "there is no keyspace \"{}\": this release has only \"default\"; leave it out",
            other.chars().take(64).collect::<String>()
        ))),
    }
}

fn no_session(session: Option<&pb::Session>) -> Result<()> {
    session.map_or(Ok(()), |_| Err(later("a session (exactly-once writes)")))
}

fn no_ttl(ttl_ms: Option<i64>) -> Result<()> {
    match ttl_ms {
        None => Ok(()),
        Some(..1) => {
            Err(Error::Invalid("ttl_ms must be 1 or more; leave it out for a key that stays".into()))
        }
        Some(_) => Err(later("ttl_ms (a time to live)")),
    }
}

/// How fresh a read is asked to be.
pub(super) fn consistency(read: Option<pb::ReadOptions>) -> Result<Consistency> {
    let Some(read) = read else { return Ok(Consistency::default()) };
    let consistency = match pb::Consistency::try_from(read.consistency) {
        Ok(pb::Consistency::Unspecified | pb::Consistency::Linearizable) => Consistency::Linearizable,
        Ok(pb::Consistency::Local) => Consistency::Local,
        Ok(pb::Consistency::Lease) => {
            return Err(later("consistency LEASE"));
        }
        Err(_) => {
            return Err(Error::Invalid(format!(
                "{} is no consistency; give LINEARIZABLE or LOCAL",
                read.consistency
            )));
        }
    };
    if read.max_staleness_ms < 0 {
        return Err(Error::Invalid("max_staleness_ms is negative; leave it out".into()));
    }
    if read.min_revision != 0 {
        return Err(later("min_revision"));
    }
    if read.max_staleness_ms != 0 {
        return Err(later("max_staleness_ms"));
    }
    Ok(consistency)
}

fn condition(condition: Option<pb::Condition>) -> Result<Condition> {
    use pb::condition::Condition as Wire;
    let must_be_true = |name: &str| {
        Error::Invalid(format!(
            "{name} must be true when it is given; leave the condition out to write always"
        ))
    };
    match condition.and_then(|c| c.condition) {
        None => Ok(Condition::None),
        Some(Wire::IfAbsent(true)) => Ok(Condition::IfAbsent),
        Some(Wire::IfPresent(true)) => Ok(Condition::IfPresent),
        Some(Wire::IfAbsent(false)) => Err(must_be_true("if_absent")),
        Some(Wire::IfPresent(false)) => Err(must_be_true("if_present")),
        Some(Wire::IfVersion(0)) => Err(Error::Invalid(
            "if_version must be 1 or more; use if_absent for a key that must not exist".into(),
        )),
        Some(Wire::IfVersion(version)) => Ok(Condition::IfVersion(version)),
    }
}

impl TryFrom<pb::SetRequest> for Operation {
    type Error = Error;

    fn try_from(request: pb::SetRequest) -> Result<Self> {
        keyspace(&request.keyspace)?;
        validate_key(&request.key)?;
        validate_value(&request.value)?;
        let condition = condition(request.condition)?;
        no_ttl(request.ttl_ms)?;
        if request.keep_ttl {
            return Err(later("keep_ttl"));
        }
        no_session(request.session.as_ref())?;
        Ok(Self::Set {
            key: request.key,
            value: request.value,
            condition,
            ttl_ms: None,
            return_previous: request.return_previous,
        })
    }
}

impl TryFrom<pb::DeleteRequest> for Operation {
    type Error = Error;

    fn try_from(request: pb::DeleteRequest) -> Result<Self> {
        keyspace(&request.keyspace)?;
        validate_key(&request.key)?;
        no_session(request.session.as_ref())?;
        Ok(Self::Delete {
            key: request.key,
            if_version: (request.if_version != 0).then_some(request.if_version),
            return_previous: request.return_previous,
        })
    }
}

impl TryFrom<pb::IncrementRequest> for Operation {
    type Error = Error;

    fn try_from(request: pb::IncrementRequest) -> Result<Self> {
        keyspace(&request.keyspace)?;
        validate_key(&request.key)?;
        no_ttl(request.ttl_ms)?;
        no_session(request.session.as_ref())?;
        Ok(Self::Increment {
            key: request.key,
            delta: request.delta,
            initial: request.initial.unwrap_or(0),
            ttl_ms: None,
        })
    }
}

/// The key of a read.
pub(super) fn get(request: pb::GetRequest) -> Result<(Bytes, Consistency)> {
    keyspace(&request.keyspace)?;
    validate_key(&request.key)?;
    Ok((request.key, consistency(request.read)?))
}

/// What a scan asks for.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) prefix: Bytes,
    pub(super) start_after: Bytes,
    /// `None`: all.
    pub(super) limit: Option<u64>,
    pub(super) keys_only: bool,
    pub(super) consistency: Consistency,
}

impl TryFrom<pb::ScanRequest> for Scan {
    type Error = Error;

    fn try_from(request: pb::ScanRequest) -> Result<Self> {
        keyspace(&request.keyspace)?;
        validate_bound("prefix", &request.prefix)?;
        validate_bound("start_after", &request.start_after)?;
        Ok(Self {
            consistency: consistency(request.read)?,
            prefix: request.prefix,
            start_after: request.start_after,
            limit: (request.limit != 0).then_some(request.limit),
            keys_only: request.keys_only,
        })
    }
}

/// One operation of a batch.
#[derive(Debug)]
pub(super) enum BatchOperation {
    Get(Bytes),
    Write(Operation),
}

/// A batch: every operation checked, or none taken.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) operations: Vec<BatchOperation>,
    pub(super) consistency: Consistency,
    /// Of keys and values.
    pub(super) bytes: usize,
}

impl TryFrom<pb::BatchRequest> for Batch {
    type Error = Error;

    fn try_from(request: pb::BatchRequest) -> Result<Self> {
        validate_batch_length(request.operations.len())?;
        let consistency = consistency(request.read)?;
        let mut batch =
            Self { operations: Vec::with_capacity(request.operations.len()), consistency, bytes: 0 };
        let mut previous = 0;
        for (i, operation) in request.operations.into_iter().enumerate() {
            let operation = batch_operation(operation).map_err(|error| at(i, error))?;
            batch.bytes += operation.bytes();
            previous += usize::from(operation.asks_previous());
            batch.operations.push(operation);
        }
        if batch.bytes > MAX_BATCH_BYTES {
            return Err(Error::Invalid(format!(
                "the keys and values of the batch have {} bytes and the limit is {MAX_BATCH_BYTES}; split it",
                batch.bytes
            )));
        }
        if previous > MAX_BATCH_PREVIOUS {
            return Err(Error::Invalid(format!(
                "{previous} operations of the batch ask for the previous value and at most {MAX_BATCH_PREVIOUS} may; split it"
            )));
        }
        Ok(batch)
    }
}

impl BatchOperation {
    fn bytes(&self) -> usize {
        match self {
            Self::Get(key) => key.len(),
            Self::Write(operation) => content_bytes(operation),
        }
    }

    fn asks_previous(&self) -> bool {
        matches!(
            self,
            Self::Write(
                Operation::Set { return_previous: true, .. }
                    | Operation::Delete { return_previous: true, .. }
            )
        )
    }
}

/// Bytes of key and value.
pub(super) fn content_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Set { key, value, .. } => key.len() + value.len(),
        Operation::Delete { key, .. } | Operation::Increment { key, .. } => key.len(),
        Operation::Batch(operations) => operations.iter().map(content_bytes).sum(),
        Operation::Open | Operation::RecordBoot { .. } => 0,
    }
}

fn batch_operation(operation: pb::BatchOperation) -> Result<BatchOperation> {
    use pb::batch_operation::Operation as Wire;
    match operation.operation {
        Some(Wire::Get(request)) => {
            if request.read.is_some() {
                return Err(Error::Invalid("`read` must be unset here; set the batch's".into()));
            }
            Ok(BatchOperation::Get(get(request)?.0))
        }
        Some(Wire::Set(request)) => Ok(BatchOperation::Write(request.try_into()?)),
        Some(Wire::Delete(request)) => Ok(BatchOperation::Write(request.try_into()?)),
        Some(Wire::Increment(request)) => Ok(BatchOperation::Write(request.try_into()?)),
        None => Err(Error::Invalid("it is empty; give one of get, set, delete, increment".into())),
    }
}

/// Names the operation of a batch that an error is about.
fn at(index: usize, error: Error) -> Error {
    let name = |sentence: String| format!("operation {index} of the batch (from 0): {sentence}");
    match error {
        Error::Invalid(sentence) => Error::Invalid(name(sentence)),
        Error::Unimplemented(sentence) => Error::Unimplemented(name(sentence)),
        other => other,
    }
}

fn previous(previous: Option<Versioned>) -> Option<pb::Previous> {
    previous.map(|p| pb::Previous { value: p.value, version: p.version })
}

/// An outcome of another kind than its operation: the service below broke its contract.
pub(super) fn mismatch() -> Error {
    Error::OutcomeUnknown(
        "the answer is of another kind than the operation; this is a bug in Larder".to_owned(),
    )
}

fn refused<T>(outcome: Outcome) -> Result<T> {
    match outcome {
        Outcome::Rejected(rejection) => Err(rejection.into()),
        _ => Err(mismatch()),
    }
}

/// The answer to a Set.
pub(super) fn set_response(header: Option<pb::ResponseHeader>, outcome: Outcome) -> Result<pb::SetResponse> {
    match outcome {
        Outcome::Set { version, previous: p } => {
            Ok(pb::SetResponse { header, version, previous: previous(p) })
        }
        other => refused(other),
    }
}

/// The answer to a Delete.
pub(super) fn delete_response(
    header: Option<pb::ResponseHeader>,
    outcome: Outcome,
) -> Result<pb::DeleteResponse> {
    match outcome {
        Outcome::Deleted { existed, previous: p } => {
            Ok(pb::DeleteResponse { header, deleted: existed, previous: previous(p) })
        }
        other => refused(other),
    }
}

/// The answer to an Increment.
pub(super) fn increment_response(
    header: Option<pb::ResponseHeader>,
    outcome: Outcome,
) -> Result<pb::IncrementResponse> {
    match outcome {
        Outcome::Incremented { value, version } => Ok(pb::IncrementResponse { header, value, version }),
        other => refused(other),
    }
}

/// The answer to a Get.
pub(super) fn get_response(
    header: Option<pb::ResponseHeader>,
    found: Option<Versioned>,
    clock_ms: i64,
) -> pb::GetResponse {
    match found {
        Some(found) => pb::GetResponse {
            header,
            found: true,
            ttl_ms: ttl_ms(&found, clock_ms),
            value: found.value,
            version: found.version,
        },
        None => pb::GetResponse { header, ..pb::GetResponse::default() },
    }
}

/// What is left of a key's time to live.
pub(super) fn ttl_ms(found: &Versioned, clock_ms: i64) -> Option<i64> {
    found.deadline.map(|deadline| deadline.0.saturating_sub(clock_ms).max(0))
}

/// The result of one write of a batch; a refused one in its place.
pub(super) fn batch_result(outcome: Outcome) -> Result<pb::batch_result::Result, Rejection> {
    use pb::batch_result::Result as Wire;
    Ok(match outcome {
        Outcome::Set { version, previous: p } => {
            Wire::Set(pb::SetResponse { header: None, version, previous: previous(p) })
        }
        Outcome::Deleted { existed, previous: p } => {
            Wire::Delete(pb::DeleteResponse { header: None, deleted: existed, previous: previous(p) })
        }
        Outcome::Incremented { value, version } => {
            Wire::Increment(pb::IncrementResponse { header: None, value, version })
        }
        Outcome::Rejected(rejection) => return Err(rejection),
        Outcome::Batch(_) | Outcome::Opened | Outcome::BootRecorded { .. } => {
            Wire::Error(super::errors::in_batch(&mismatch()))
        }
    })
}
