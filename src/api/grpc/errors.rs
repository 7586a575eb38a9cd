//! How an [`Error`] looks on the wire.
//!
//! One function makes the status: code, sentence, and google.rpc details (ErrorInfo always, RetryInfo where waiting
//! helps). The codes are documented at the head of `cache.proto`.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    error::{Error, NodeRef, Rejection},
    proto::v1 as pb,
    service::ClusterView,
};

/// The domain of every ErrorInfo.
pub(super) const DOMAIN: &str = "larder";

/// The gRPC code of an error.
pub(super) fn code(error: &Error) -> Code {
    match error {
        Error::NotLeader { .. } | Error::Unavailable(_) | Error::Shutdown => Code::Unavailable,
        Error::DeadlineExceeded(_) => Code::DeadlineExceeded,
        Error::OutcomeUnknown(_) => Code::Unknown,
        Error::Invalid(_) => Code::InvalidArgument,
        Error::Unimplemented(_) => Code::Unimplemented,
        Error::ResourceExhausted(_) => Code::ResourceExhausted,
        Error::Rejected(rejection) => match rejection {
            Rejection::NotOpen => Code::Unavailable,
            Rejection::ConditionFailed { .. } | Rejection::NotANumber | Rejection::OutOfRange => {
                Code::FailedPrecondition
            }
        },
        Error::Storage(_) => Code::Internal,
    }
}

/// When it makes sense to try again; `None` where the same request will not fare better.
fn retry_after(error: &Error) -> Option<Duration> {
    if !error.is_retryable() {
        return None;
    }
    Some(match error {
        // Somebody else can take it at once.
        Error::NotLeader { leader: Some(_) } | Error::Shutdown => Duration::ZERO,
        // An election takes about this long; an overload should not be met by the same load at once.
        _ => Duration::from_millis(250),
    })
}

/// The leader, where knowing it helps the caller.
fn leader(error: &Error, cluster: &dyn ClusterView) -> Option<NodeRef> {
    match error {
        Error::NotLeader { leader: Some(leader) } => Some(leader.clone()),
        Error::NotLeader { leader: None }
        | Error::Unavailable(_)
        | Error::Shutdown
        | Error::DeadlineExceeded(_)
        | Error::OutcomeUnknown(_)
        | Error::Rejected(Rejection::NotOpen) => cluster.status().leader,
        Error::Invalid(_)
        | Error::Unimplemented(_)
        | Error::ResourceExhausted(_)
        | Error::Rejected(_)
        | Error::Storage(_) => None,
    }
}

/// The status for an error, with its details.
pub(super) fn status(error: &Error, cluster: &dyn ClusterView) -> Status {
    let mut metadata = HashMap::from([("applied".to_owned(), applied(error).to_owned())]);
    if let Some(leader) = leader(error, cluster) {
        metadata.insert("leader".to_owned(), leader.id.to_string());
        metadata.insert("leader_slot".to_owned(), leader.slot);
        let member = cluster.members().into_iter().find(|member| member.node.id == leader.id);
        if let Some(address) = member.map(|m| m.client_address).filter(|address| !address.is_empty()) {
            metadata.insert("leader_address".to_owned(), address);
        }
    }
    let mut details = ErrorDetails::new();
    details.set_error_info(error.reason(), DOMAIN, metadata);
    if let Some(delay) = retry_after(error) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(error), error.to_string(), details)
}

/// An operation of a batch that failed, while the batch did not.
pub(super) fn in_batch(error: &Error) -> pb::BatchError {
    let applied = match error {
        // A rejection says by itself that nothing changed.
        Error::Rejected(_) => "",
        error if error.applied() == Some(false) => "; this operation was not applied",
        _ => "; this operation may have been applied",
    };
    pb::BatchError {
        code: code(error).into(),
        reason: error.reason().to_owned(),
        message: format!("{error}{applied}"),
    }
}

fn applied(error: &Error) -> &'static str {
    match error.applied() {
        Some(false) => "NO",
        Some(true) => "YES",
        None => "UNKNOWN",
    }
}
