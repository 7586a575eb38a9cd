//! What is asked and answered, in types of the library's own: the generated ones stay inside.

use bytes::Bytes;

use super::{Applied, ClientError, Refusal};
use crate::proto::v1 as pb;

/// A node's names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NodeName {
    /// The Raft id.
    pub id: u64,
    /// The slot.
    pub slot: String,
}

/// At what point and by whom a request was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The revision of the state that the answer was made at.
    pub revision: u64,
    /// The cluster's id: 32 hexadecimal digits; empty before genesis.
    pub cluster_id: String,
    /// The node that answered.
    pub node: NodeName,
    /// The replicated clock at that revision, milliseconds since 1970-01-01 UTC.
    pub clock_ms: i64,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began.
    #[default]
    Linearizable,
    /// What the node has applied: may be old, never uncommitted. Asked of the first endpoint that is up.
    Local,
}

/// What must hold for a Set to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// The key does not exist.
    IfAbsent,
    /// The key exists.
    IfPresent,
    /// The key exists at this version (1 or more).
    IfVersion(u64),
}

/// How a Set is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetOptions {
    /// What must hold.
    pub condition: Condition,
    /// Whether to answer what was there before.
    pub return_previous: bool,
}

/// How a Delete is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Only at this version (1 or more); a key that is missing or at another one fails the condition.
    pub if_version: Option<u64>,
    /// Whether to answer what was there before.
    pub return_previous: bool,
}

/// How a Scan is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Only keys that begin with this; empty: all.
    pub prefix: Bytes,
    /// Only keys after this one; empty: from the first.
    pub start_after: Bytes,
    /// At most so many keys; 0: all.
    pub limit: u64,
    /// Leave the values out.
    pub keys_only: bool,
    /// How fresh.
    pub consistency: Consistency,
    /// Take a scan that was cut off up again after its last key. The keys after the cut are then as of a later
    /// revision, which [`Entry::revision`] shows. Without it, a cut is an error.
    pub resume: bool,
}

/// One operation of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Reads a key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Writes a key.
    Set {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// How.
        options: SetOptions,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
        /// How.
        options: DeleteOptions,
    },
    /// Adds to a number.
    Increment {
        /// The key.
        key: Bytes,
        /// What to add.
        delta: i64,
        /// What a missing key counts as before adding; 0 unless given.
        initial: Option<i64>,
    },
}

impl Operation {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }
}

/// A value and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The revision of the key's last change.
    pub version: u64,
}

/// The answer to a Get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetResult {
    /// At what point.
    pub header: Header,
    /// What the key holds; `None` if it does not exist.
    pub found: Option<Versioned>,
}

/// The answer to a Set that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetResult {
    /// At what point.
    pub header: Header,
    /// The key's new version.
    pub version: u64,
    /// What was there before, if asked for.
    pub previous: Option<Versioned>,
}

/// The answer to a Delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteResult {
    /// At what point.
    pub header: Header,
    /// Whether there was such a key.
    pub deleted: bool,
    /// What was there before, if asked for.
    pub previous: Option<Versioned>,
}

/// The answer to an Increment that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncrementResult {
    /// At what point.
    pub header: Header,
    /// The sum.
    pub value: i64,
    /// The key's new version.
    pub version: u64,
}

/// The answer to a Batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchResult {
    /// At what point.
    pub header: Header,
    /// One for each operation, in their order. The headers inside are the batch's.
    pub results: Vec<Result<BatchOutcome, ClientError>>,
}

/// What one operation of a batch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOutcome {
    /// Of a Get.
    Get(GetResult),
    /// Of a Set.
    Set(SetResult),
    /// Of a Delete.
    Delete(DeleteResult),
    /// Of an Increment.
    Increment(IncrementResult),
}

/// One key of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its value; empty if only keys were asked for.
    pub value: Bytes,
    /// The revision of its last change.
    pub version: u64,
    /// The revision that the scan reads at: the same for all entries, unless a scan was taken up again.
    pub revision: u64,
}

impl From<pb::Node> for NodeName {
    fn from(node: pb::Node) -> Self {
        Self { id: node.id, slot: node.slot }
    }
}

impl From<Option<pb::ResponseHeader>> for Header {
    fn from(header: Option<pb::ResponseHeader>) -> Self {
        let header = header.unwrap_or_default();
        Self {
            revision: header.revision,
            cluster_id: header.cluster_id,
            node: header.node.unwrap_or_default().into(),
            clock_ms: header.clock_ms,
        }
    }
}

impl From<pb::Previous> for Versioned {
    fn from(previous: pb::Previous) -> Self {
        Self { value: previous.value, version: previous.version }
    }
}

impl From<pb::GetResponse> for GetResult {
    fn from(answer: pb::GetResponse) -> Self {
        let found = answer.found.then_some(Versioned { value: answer.value, version: answer.version });
        Self { header: answer.header.into(), found }
    }
}

impl From<pb::SetResponse> for SetResult {
    fn from(answer: pb::SetResponse) -> Self {
        Self {
            header: answer.header.into(),
            version: answer.version,
            previous: answer.previous.map(Versioned::from),
        }
    }
}

impl From<pb::DeleteResponse> for DeleteResult {
    fn from(answer: pb::DeleteResponse) -> Self {
        Self {
            header: answer.header.into(),
            deleted: answer.deleted,
            previous: answer.previous.map(Versioned::from),
        }
    }
}

impl From<pb::IncrementResponse> for IncrementResult {
    fn from(answer: pb::IncrementResponse) -> Self {
        Self { header: answer.header.into(), value: answer.value, version: answer.version }
    }
}

/// The request's read options.
pub(super) fn read_options(consistency: Consistency) -> Option<pb::ReadOptions> {
    let consistency = match consistency {
        Consistency::Linearizable => pb::Consistency::Linearizable,
        Consistency::Local => pb::Consistency::Local,
    };
    Some(pb::ReadOptions { consistency: consistency.into(), ..pb::ReadOptions::default() })
}

/// A Set's request.
pub(super) fn set_request(key: Bytes, value: Bytes, options: SetOptions) -> pb::SetRequest {
    use pb::condition::Condition as Wire;
    let condition = match options.condition {
        Condition::None => None,
        Condition::IfAbsent => Some(Wire::IfAbsent(true)),
        Condition::IfPresent => Some(Wire::IfPresent(true)),
        Condition::IfVersion(version) => Some(Wire::IfVersion(version)),
    };
    pb::SetRequest {
        key,
        value,
        condition: condition.map(|condition| pb::Condition { condition: Some(condition) }),
        return_previous: options.return_previous,
        ..pb::SetRequest::default()
    }
}

/// A Delete's request.
///
/// # Errors
/// [`ClientError::Invalid`] for version 0, which on the wire would mean "whatever the version".
pub(super) fn delete_request(key: Bytes, options: DeleteOptions) -> Result<pb::DeleteRequest, ClientError> {
    if options.if_version == Some(0) {
        return Err(ClientError::Invalid("no key has version 0; give the version that Get answered".into()));
    }
    Ok(pb::DeleteRequest {
        key,
        if_version: options.if_version.unwrap_or(0),
        return_previous: options.return_previous,
        ..pb::DeleteRequest::default()
    })
}

/// An operation of a batch, for the wire.
///
/// # Errors
/// As [`delete_request`].
pub(super) fn batch_operation(operation: Operation) -> Result<pb::BatchOperation, ClientError> {
    use pb::batch_operation::Operation as Wire;
    let operation = match operation {
        Operation::Get { key } => Wire::Get(pb::GetRequest { key, ..pb::GetRequest::default() }),
        Operation::Set { key, value, options } => Wire::Set(set_request(key, value, options)),
        Operation::Delete { key, options } => Wire::Delete(delete_request(key, options)?),
        Operation::Increment { key, delta, initial } => {
            Wire::Increment(pb::IncrementRequest { key, delta, initial, ..pb::IncrementRequest::default() })
        }
    };
    Ok(pb::BatchOperation { operation: Some(operation) })
}

/// What one operation came to, with the batch's header put in.
pub(super) fn batch_outcome(result: pb::BatchResult, header: &Header) -> Result<BatchOutcome, ClientError> {
    use pb::batch_result::Result as Wire;
    let header = header.clone();
    match result.result {
        Some(Wire::Get(answer)) => Ok(BatchOutcome::Get(GetResult { header, ..answer.into() })),
        Some(Wire::Set(answer)) => Ok(BatchOutcome::Set(SetResult { header, ..answer.into() })),
        Some(Wire::Delete(answer)) => Ok(BatchOutcome::Delete(DeleteResult { header, ..answer.into() })),
        Some(Wire::Increment(answer)) => {
            Ok(BatchOutcome::Increment(IncrementResult { header, ..answer.into() }))
        }
        Some(Wire::Error(error)) => Err(batch_error(error)),
        None => Err(ClientError::BadAnswer(
            "the node answered an operation of the batch with nothing; read the key before writing again"
                .into(),
        )),
    }
}

/// One operation's error. Whether it was applied is in its code, as documented at the head of `cache.proto`.
fn batch_error(error: pb::BatchError) -> ClientError {
    use tonic::Code;
    let code = Code::from_i32(error.code);
    let applied = match code {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Unimplemented => Applied::No,
        _ => Applied::Unknown,
    };
    ClientError::Refused(Box::new(Refusal {
        code,
        reason: error.reason,
        applied,
        message: error.message,
        leader: None,
        retry_after: None,
    }))
}
