//! What Larder asks of Kubernetes, and nothing more: how many pods its own StatefulSet is to have, and the claim.
//!
//! The *claim* is a ConfigMap `NAME-cluster` that holds the id of the cluster that lives in the StatefulSet `NAME`. It is owned by the
//! StatefulSet and goes with it. A seed with an empty directory that finds a claim waits, and founds nothing.
//!
//! # Invariants
//! * Only an API server that said so makes a node leave: [`leaving`] wants an answer, and an error is none.
//! * A claim is created once and never changed here.
//! * Every call ends within [`CALL_TIMEOUT`].
//!
//! # Flow
//! `cluster` and `cmd::prestop` hold a [`Kubernetes`]; behind it is [`Api`], which talks to the API server, or in tests [`Fake`].
//!
//! Not here: what follows from an answer (`cluster`, `cmd`), and the permissions (the chart: get this one StatefulSet, get this one
//! ConfigMap, create ConfigMaps in the namespace).

mod api;
mod fake;
mod late;

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;

use crate::error::Error;

pub use api::Api;
pub use fake::Fake;
pub use late::Late;

/// How long a call may take in all, its retries included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest name of a namespace or a StatefulSet, in bytes: a DNS label, because pods are named after it.
const MAX_NAME_BYTES: usize = 63;

/// What is wanted of the own StatefulSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desired {
    /// Whether it is there at all.
    pub exists: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// How many pods it is to have: those of the ordinals below this number.
    pub replicas: u32,
}

impl Desired {
    /// A StatefulSet that is not there.
    pub const ABSENT: Self = Self { exists: false, deleting: false, replicas: 0 };

    /// One that is there to stay, with so many pods.
    pub fn replicas(replicas: u32) -> Self {
        Self { exists: true, deleting: false, replicas }
    }
}

/// Whether the pod with this ordinal is to leave its cluster, rather than to stop and come back.
///
/// Only scaling down makes a member leave. Deleting the StatefulSet does not, nor does scaling it to nothing: both are how an operator
/// stops a cluster whose data is to stay.
pub fn leaving(slot_ordinal: u32, desired: &Desired) -> bool {
    let Desired { exists, deleting, replicas } = *desired;
    exists && !deleting && replicas > 0 && slot_ordinal >= replicas
}

/// Why the API server did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 401 or 403: the pod's account, or its role, is missing.
    #[error(
        "the Kubernetes API denies it: {0}; give the pod's service account the Role of the chart (rbac.create)"
    )]
    Denied(String),
    /// Anything else: no configuration, no connection, no answer in time, an answer that makes no sense.
    #[error("the Kubernetes API is no help: {0}")]
    Unreachable(String),
}

/// The Kubernetes API, as far as a node uses it.
#[async_trait]
pub trait Kubernetes: Send + Sync + fmt::Debug {
    /// What is wanted of the own StatefulSet. One that is not there is an answer, not an error.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    async fn desired(&self) -> Result<Desired, ApiError>;

    /// The cluster id in the claim, if there is a claim.
    ///
    /// # Errors
    /// As [`Self::desired`]; also for a ConfigMap of that name that holds no cluster id.
    async fn claim(&self) -> Result<Option<String>, ApiError>;

    /// Creates the claim, owned by the StatefulSet. Done as well if there is one already, whatever it holds.
    ///
    /// # Errors
    /// As [`Self::desired`]; also if the StatefulSet, which is to own it, is not there.
    async fn create_claim(&self, cluster_id: &str) -> Result<(), ApiError>;
}

/// The name of a StatefulSet: `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatefulSetName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl StatefulSetName {
    /// The name of the claim's ConfigMap, in the same namespace.
    pub fn claim(&self) -> String {
        format!("{}-cluster", self.name)
    }
}

impl fmt::Display for StatefulSetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for StatefulSetName {
    type Err = Error;

    /// Reads `NAMESPACE/NAME`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('/') {
            Some((namespace, name)) if is_label(namespace) && is_label(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(Error::Invalid(format!(
                "{text:?} is no StatefulSet: write NAMESPACE/NAME, each 1 to {MAX_NAME_BYTES} characters of a-z, 0-9 and '-', for \
                 example default/larder"
            ))),
        }
    }
}

/// Whether Kubernetes takes it for the name of a namespace or of a StatefulSet whose pods can be made.
fn is_label(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests;
