//! One error for the whole of Larder, cut by what its receiver does next.
//!
//! Not here: how an error looks in gRPC (`api`), in an exit code (`main`), or inside a batch.

use std::fmt;

/// A name and place of a node, as far as a caller needs it to go there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeRef {
    /// The Raft id.
    pub id: u64,
    /// The slot.
    pub slot: String,
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} (id {})", self.slot, self.id)
    }
}

/// Why the state refused a command. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The condition of the write does not hold.
    #[error(
        "the condition does not hold: {}; read the key and decide again",
        match .current { Some(v) => format!("the key exists at version {v}"), None => "the key does not exist".into() }
    )]
    ConditionFailed {
        /// The key's version now; `None` if it does not exist.
        current: Option<u64>,
    },
    /// Increment of a value that is not decimal text of a signed 64-bit number.
    #[error(
        "the stored value is not a whole number of 64 bits in decimal text; Set it to one before incrementing"
    )]
    NotANumber,
    /// Increment past the range of a signed 64-bit number.
    #[error("the sum is outside of -9223372036854775808 to 9223372036854775807; the value is unchanged")]
    OutOfRange,
    /// No client write is taken before every founder has acknowledged an entry (genesis' gate).
    #[error(
        "the cluster is not open yet: not every founder has acknowledged an entry; wait for the missing ones and try again"
    )]
    NotOpen,
}

/// What went wrong, by what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This node does not lead, and the request may not travel further. Surely not applied; go to the leader.
    #[error("this node is not the leader{}", match .leader { Some(l) => format!("; ask {l}"), None => "; no leader is known".into() })]
    NotLeader {
        /// Who leads, as far as known here.
        leader: Option<NodeRef>,
    },
    /// Nobody can serve it now. Surely not applied; try again.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The deadline passed before anything was proposed. Surely not applied.
    #[error("the deadline passed before the request was taken up; nothing was applied: {0}")]
    DeadlineExceeded(String),
    /// A write was proposed and its outcome is not known: it may be applied, now or later.
    #[error("the outcome of the write is unknown: {0}; read the key before writing again")]
    OutcomeUnknown(String),
    /// The request can never work as it is.
    #[error("{0}")]
    Invalid(String),
    /// The request asks for what this release does not have.
    #[error("{0}")]
    Unimplemented(String),
    /// A limit is reached. Surely not applied; try again when there is room.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The state refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// This node's disk failed or its data is damaged: the node stops.
    #[error("storage: {0}")]
    Storage(String),
    /// This node is stopping. Surely not applied; go to another one.
    #[error("this node is shutting down; ask another one")]
    Shutdown,
}

/// The result of everything in Larder that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the same request may simply be sent again: it surely was not applied, and may work later or elsewhere.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::Unavailable(_) | Self::ResourceExhausted(_) | Self::Shutdown => {
                true
            }
            Self::Rejected(rejection) => match rejection {
                Rejection::NotOpen => true,
                Rejection::ConditionFailed { .. } | Rejection::NotANumber | Rejection::OutOfRange => false,
            },
            Self::DeadlineExceeded(_)
            | Self::OutcomeUnknown(_)
            | Self::Invalid(_)
            | Self::Unimplemented(_)
            | Self::Storage(_) => false,
        }
    }

    /// Whether the write was applied: `Some(false)` surely not, `None` unknown.
    pub fn applied(&self) -> Option<bool> {
        match self {
            // A disk that failed may have kept the entry, and others may have it.
            Self::OutcomeUnknown(_) | Self::Storage(_) => None,
            Self::NotLeader { .. }
            | Self::Unavailable(_)
            | Self::DeadlineExceeded(_)
            | Self::Invalid(_)
            | Self::Unimplemented(_)
            | Self::ResourceExhausted(_)
            | Self::Rejected(_)
            | Self::Shutdown => Some(false),
        }
    }

    /// The reason in the field's constant style, as in ErrorInfo and in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "NOT_LEADER",
            Self::Unavailable(_) => "UNAVAILABLE",
            Self::DeadlineExceeded(_) => "DEADLINE_EXCEEDED",
            Self::OutcomeUnknown(_) => "OUTCOME_UNKNOWN",
            Self::Invalid(_) => "INVALID",
            Self::Unimplemented(_) => "UNIMPLEMENTED",
            Self::ResourceExhausted(_) => "RESOURCE_EXHAUSTED",
            Self::Rejected(Rejection::ConditionFailed { .. }) => "CONDITION_FAILED",
            Self::Rejected(Rejection::NotANumber) => "NOT_A_NUMBER",
            Self::Rejected(Rejection::OutOfRange) => "OUT_OF_RANGE",
            Self::Rejected(Rejection::NotOpen) => "NOT_OPEN",
            Self::Storage(_) => "STORAGE",
            Self::Shutdown => "SHUTDOWN",
        }
    }
}
