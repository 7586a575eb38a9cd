//! Why a command did not end well, by what the shell is told.

use std::io;

use tonic::Code;

use crate::{client::ClientError, error::Error};

/// How the process ends. The numbers are in `main`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nobody wants the rest.
    Done,
    /// An error.
    Error,
    /// The command line is wrong.
    Usage,
    /// The answer is no: not found, or a condition does not hold.
    Unmet,
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line or the settings are wrong.
    #[error("{0}")]
    Usage(String),
    /// There is no such key.
    #[error("{0}")]
    NotFound(String),
    /// The input is wrong.
    #[error("{0}")]
    Input(String),
    /// The cluster did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Some of many lines were not written.
    #[error("{message}")]
    Stopped {
        /// What stopped it.
        cause: ClientError,
        /// That, and what to do.
        message: String,
    },
    /// Something was looked at and is not as it should be.
    #[error("{0}")]
    Unhealthy(String),
    /// The node could not start, or stopped.
    #[error(transparent)]
    Node(#[from] Error),
    /// A file or a stream.
    #[error("{what}: {error}")]
    Io {
        /// What was done with what.
        what: String,
        /// What went wrong.
        error: io::Error,
    },
    /// Who reads our standard output went away, as `head` does. Nothing to complain about.
    #[error("standard output was closed")]
    Closed,
}

impl Failure {
    /// What happened to writing standard output.
    pub fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Closed;
        }
        Self::Io { what: "standard output cannot be written".into(), error }
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Node(Error::Invalid(_)) => Exit::Usage,
            Self::NotFound(_) => Exit::Unmet,
            Self::Client(error) if error.is_condition_failed() => Exit::Unmet,
            Self::Input(_)
            | Self::Client(_)
            | Self::Stopped { .. }
            | Self::Unhealthy(_)
            | Self::Node(_)
            | Self::Io { .. } => Exit::Error,
            Self::Closed => Exit::Done,
        }
    }

    /// The gRPC code's name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) | Self::Input(_) | Self::Node(Error::Invalid(_)) => "INVALID_ARGUMENT",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Client(error) | Self::Stopped { cause: error, .. } => code_name(error.code()),
            Self::Unhealthy(_) => "UNAVAILABLE",
            Self::Node(_) | Self::Io { .. } | Self::Closed => "INTERNAL",
        }
    }

    /// The reason in the field's constant style.
    pub fn reason(&self) -> &str {
        match self {
            Self::Usage(_) => "USAGE",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Input(_) => "INPUT",
            Self::Client(error) | Self::Stopped { cause: error, .. } => error.reason(),
            Self::Unhealthy(_) => "UNHEALTHY",
            Self::Node(error) => error.reason(),
            Self::Io { .. } | Self::Closed => "IO",
        }
    }

    /// NO, YES or UNKNOWN: whether a write was applied.
    pub fn applied(&self) -> &'static str {
        match self {
            Self::Client(error) | Self::Stopped { cause: error, .. } => error.applied().as_str(),
            _ => "NO",
        }
    }
}

/// The name of a gRPC code, as the documentation of gRPC writes it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
