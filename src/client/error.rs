//! What can go wrong for a caller, cut by what the caller does next, and what a gRPC status really proves.
//!
//! The one question behind all of it is whether a write may have been applied. Only two things prove that it was not:
//! a connection that could not be made, so that the request was never sent ([`tonic::ConnectError`] in the chain of
//! causes, which the transport gives to a request instead of sending it, and which no server can fake), and an
//! answer of a Larder node that says so (`applied` = NO in its ErrorInfo). Everything else is unknown: a reset stream,
//! a closed connection, a deadline, a proxy's own UNAVAILABLE.

use std::{error::Error as _, fmt, time::Duration};

use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// The domain of the ErrorInfo that every Larder node sends.
const DOMAIN: &str = "larder";

/// Whether a write that failed was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Surely not.
    No,
    /// Surely.
    Yes,
    /// It may have been, or may yet be.
    Unknown,
}

impl Applied {
    /// NO, YES or UNKNOWN, as in ErrorInfo.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "NO",
            Self::Yes => "YES",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn parse(text: Option<&String>) -> Self {
        match text.map(String::as_str) {
            Some("NO") => Self::No,
            Some("YES") => Self::Yes,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error that a Larder node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The ErrorInfo reason, for example `CONDITION_FAILED`.
    pub reason: String,
    /// Whether the write was applied.
    pub applied: Applied,
    /// A sentence that says what to do.
    pub message: String,
    /// Who leads, where the node knew and it helps.
    pub leader: Option<LeaderHint>,
    /// How long the node says to wait before trying again.
    pub retry_after: Option<Duration>,
}

/// Where an error says that the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderHint {
    /// The leader's Raft id.
    pub id: u64,
    /// Its slot; empty if the node did not say.
    pub slot: String,
    /// `host:port` for clients, if known.
    pub address: Option<String>,
}

/// Why a call failed, by what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// An argument cannot be right. Nothing was sent.
    #[error("{0}")]
    Invalid(String),
    /// No endpoint could be reached. Nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// The deadline passed, and the request surely was not applied (or only reads).
    #[error("{0}")]
    DeadlineExceeded(String),
    /// A write was sent and what became of it is not known: it may be applied, now or later. Never retried here.
    #[error("the outcome of the write is unknown: {0}; read the key before writing again")]
    OutcomeUnknown(String),
    /// A read broke off, everywhere it was tried.
    #[error("{0}")]
    Broken(String),
    /// A node refused it.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// A node answered something that makes no sense.
    #[error("{0}")]
    BadAnswer(String),
}

impl ClientError {
    /// The gRPC code that fits.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Unreachable(_) | Self::Broken(_) => Code::Unavailable,
            Self::DeadlineExceeded(_) => Code::DeadlineExceeded,
            Self::OutcomeUnknown(_) => Code::Unknown,
            Self::Refused(refusal) => refusal.code,
            Self::BadAnswer(_) => Code::Internal,
        }
    }

    /// The reason in the field's constant style: the node's own where a node refused it.
    pub fn reason(&self) -> &str {
        match self {
            Self::Invalid(_) => "INVALID",
            Self::Unreachable(_) => "UNREACHABLE",
            Self::DeadlineExceeded(_) => "DEADLINE_EXCEEDED",
            Self::OutcomeUnknown(_) => "OUTCOME_UNKNOWN",
            Self::Broken(_) => "BROKEN",
            Self::Refused(refusal) => &refusal.reason,
            Self::BadAnswer(_) => "BAD_ANSWER",
        }
    }

    /// Whether the write was applied. Of a read always [`Applied::No`].
    pub fn applied(&self) -> Applied {
        match self {
            Self::Invalid(_) | Self::Unreachable(_) | Self::DeadlineExceeded(_) | Self::Broken(_) => {
                Applied::No
            }
            Self::OutcomeUnknown(_) | Self::BadAnswer(_) => Applied::Unknown,
            Self::Refused(refusal) => refusal.applied,
        }
    }

    /// Whether the write may have been applied: read before writing again.
    pub fn is_outcome_unknown(&self) -> bool {
        self.applied() == Applied::Unknown
    }

    /// Whether the condition of a write did not hold.
    pub fn is_condition_failed(&self) -> bool {
        self.reason() == "CONDITION_FAILED"
    }

    /// Whether the value to increment is no number.
    pub fn is_not_a_number(&self) -> bool {
        self.reason() == "NOT_A_NUMBER"
    }

    /// Whether the sum left the range of a signed 64-bit number.
    pub fn is_out_of_range(&self) -> bool {
        self.reason() == "OUT_OF_RANGE"
    }

    /// Whether the request can never work as it is.
    pub fn is_invalid(&self) -> bool {
        matches!(self.code(), Code::InvalidArgument | Code::Unimplemented)
    }

    /// Whether nobody could serve it in time: nothing was applied, and it may work later.
    pub fn is_unavailable(&self) -> bool {
        self.applied() == Applied::No
            && matches!(self.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
    }

    /// Whether the deadline passed and nothing was applied.
    pub fn is_deadline_exceeded(&self) -> bool {
        self.code() == Code::DeadlineExceeded
    }
}

/// What a status of one attempt proves.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request was never sent.
    NotSent(String),
    /// A Larder node, or a gRPC server that does not know the method, answered.
    Answered(Refusal),
    /// The deadline passed while the request was out.
    TimedOut,
    /// It was sent, and no answer of Larder's came.
    Broken(String),
}

/// Reads out of a status what it proves.
pub(super) fn classify(status: &Status) -> Failure {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return Failure::NotSent(chain(status.message(), error));
        }
        if error.is::<TimeoutExpired>() {
            return Failure::TimedOut;
        }
        cause = error.source();
    }
    let details = status.get_error_details();
    if let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) {
        return Failure::Answered(Refusal {
            code: status.code(),
            reason: info.reason.clone(),
            applied: Applied::parse(info.metadata.get("applied")),
            message: status.message().to_owned(),
            leader: info.metadata.get("leader").and_then(|id| id.parse().ok()).map(|id| LeaderHint {
                id,
                slot: info.metadata.get("leader_slot").cloned().unwrap_or_default(),
                address: info.metadata.get("leader_address").cloned(),
            }),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        });
    }
    // A server without the method did nothing; a transport never makes this code up.
    if status.code() == Code::Unimplemented && status.source().is_none() {
        return Failure::Answered(Refusal {
            code: Code::Unimplemented,
            reason: "UNIMPLEMENTED".to_owned(),
            applied: Applied::No,
            message: format!(
                "this server does not have the method ({}); check that the endpoint is the client port of a Larder node",
                status.message()
            ),
            leader: None,
            retry_after: None,
        });
    }
    let mut text = status.message().to_owned();
    if let Some(cause) = status.source() {
        text = chain(&text, cause);
    }
    Failure::Broken(format!("{text} ({:?})", status.code()))
}

/// An error with its causes, each told once.
pub(super) fn chain(first: &str, error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = first.to_owned();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) && more != "transport error" {
            if text.is_empty() || text == "transport error" {
                text = more;
            } else {
                text = format!("{text}: {more}");
            }
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn with_info(code: Code, domain: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<_, _> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut details = ErrorDetails::new();
        details.set_error_info("NOT_LEADER", domain, metadata);
        details.set_retry_info(Some(Duration::from_millis(250)));
        Status::with_error_details(code, "this node is not the leader", details)
    }

    #[test]
    fn a_nodes_error_is_read_with_its_details() {
        let status = with_info(
            Code::Unavailable,
            "larder",
            &[("applied", "NO"), ("leader", "77"), ("leader_slot", "2"), ("leader_address", "h:1")],
        );
        let Failure::Answered(refusal) = classify(&status) else { panic!("{status:?}") };
        assert_eq!(refusal.applied, Applied::No);
        assert_eq!(refusal.reason, "NOT_LEADER");
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(250)));
        assert_eq!(
            refusal.leader,
            Some(LeaderHint { id: 77, slot: "2".into(), address: Some("h:1".into()) })
        );
    }

    #[test]
    fn what_does_not_say_that_nothing_was_applied_is_unknown() {
        let silent = with_info(Code::Unavailable, "larder", &[]);
        let Failure::Answered(refusal) = classify(&silent) else { panic!("{silent:?}") };
        assert_eq!(refusal.applied, Applied::Unknown);
        for status in [
            with_info(Code::Unavailable, "proxy.example", &[("applied", "NO")]),
            Status::unavailable("no healthy upstream"),
            Status::internal("stream reset"),
            Status::cancelled("gone"),
        ] {
            assert!(matches!(classify(&status), Failure::Broken(_)), "{status:?}");
        }
    }

    #[test]
    fn only_the_transports_own_connect_error_proves_that_nothing_was_sent() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        assert!(matches!(classify(&status), Failure::NotSent(_)), "{status:?}");
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(broken));
        assert!(matches!(classify(&status), Failure::Broken(_)), "{status:?}");
        let late = Status::from_error(Box::new(TimeoutExpired(())));
        assert!(matches!(classify(&late), Failure::TimedOut), "{late:?}");
    }
}
