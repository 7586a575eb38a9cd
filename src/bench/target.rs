//! The seam to what is driven.

use std::{fmt, future::Future};

use bytes::Bytes;
use tonic::Code;

use super::Operation;

/// Something that takes sets and gets. A value is one sender on one connection; a clone is another sender on the
/// same connection.
pub trait Target: Clone + Send + 'static {
    /// Writes a key; answered once it is as durable as the system makes it.
    ///
    /// # Errors
    /// The kind under which the report counts it.
    fn set(&mut self, key: Bytes, value: Bytes) -> impl Future<Output = Result<(), ErrorKind>> + Send;

    /// Reads a key. The harness reads only keys that it wrote: no such key is [`ErrorKind::MISS`].
    ///
    /// # Errors
    /// The kind under which the report counts it.
    fn get(&mut self, key: Bytes) -> impl Future<Output = Result<(), ErrorKind>> + Send;

    /// Does several operations in one request; a system without such a request sends them side by side.
    ///
    /// # Errors
    /// The kind of one of the operations that failed; the others may have been done.
    fn batch(&mut self, operations: Vec<Operation>) -> impl Future<Output = Result<(), ErrorKind>> + Send;
}

/// Under what name an error is counted: a gRPC code in lower case with underscores, or one of the constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorKind(pub &'static str);

impl ErrorKind {
    /// Not sent: as many operations were in flight as the open loop allows.
    pub const OVERLOAD: Self = Self("overload");
    /// Not answered in time.
    pub const TIMEOUT: Self = Self("timeout");
    /// A key that had been written was not found.
    pub const MISS: Self = Self("miss");
    /// An answer that does not belong to the question.
    pub const BAD_ANSWER: Self = Self("bad_answer");
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl From<Code> for ErrorKind {
    fn from(code: Code) -> Self {
        Self(match code {
            Code::Ok => "ok",
            Code::Cancelled => "cancelled",
            Code::Unknown => "unknown",
            Code::InvalidArgument => "invalid_argument",
            Code::DeadlineExceeded => "deadline_exceeded",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::PermissionDenied => "permission_denied",
            Code::ResourceExhausted => "resource_exhausted",
            Code::FailedPrecondition => "failed_precondition",
            Code::Aborted => "aborted",
            Code::OutOfRange => "out_of_range",
            Code::Unimplemented => "unimplemented",
            Code::Internal => "internal",
            Code::Unavailable => "unavailable",
            Code::DataLoss => "data_loss",
            Code::Unauthenticated => "unauthenticated",
        })
    }
}
