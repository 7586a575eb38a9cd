//! A pretended API server, for tests: the same rules, in memory, and errors to order.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{ApiError, Desired, Kubernetes};

/// A StatefulSet and its claim, in memory. Nodes of one test share it as pods share their API server.
#[derive(Debug)]
pub struct Fake(Mutex<Held>);

#[derive(Debug)]
struct Held {
    desired: Desired,
    claim: Option<String>,
    failing: Option<ApiError>,
}

impl Fake {
    /// A StatefulSet like this, without a claim.
    pub fn new(desired: Desired) -> Self {
        Self(Mutex::new(Held { desired, claim: None, failing: None }))
    }

    /// The StatefulSet is scaled or deleted. The claim goes with it.
    pub fn set_desired(&self, desired: Desired) {
        let mut held = self.held();
        held.desired = desired;
        if !desired.exists {
            held.claim = None;
        }
    }

    /// From now on every call fails like this; `None`: no call does.
    pub fn fail(&self, error: Option<ApiError>) {
        self.held().failing = error;
    }

    /// An operator deletes the claim.
    pub fn delete_claim(&self) {
        self.held().claim = None;
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing is left half done by a panic: each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answering(&self) -> Result<MutexGuard<'_, Held>, ApiError> {
        let held = self.held();
        match &held.failing {
            Some(error) => Err(error.clone()),
            None => Ok(held),
        }
    }
}

#[async_trait]
impl Kubernetes for Fake {
    async fn desired(&self) -> Result<Desired, ApiError> {
        Ok(self.answering()?.desired)
    }

    async fn claim(&self) -> Result<Option<String>, ApiError> {
        Ok(self.answering()?.claim.clone())
    }

    async fn create_claim(&self, cluster_id: &str) -> Result<(), ApiError> {
        let mut held = self.answering()?;
        if !held.desired.exists {
            return Err(ApiError::Unreachable("there is no StatefulSet to own the claim".into()));
        }
        held.claim.get_or_insert_with(|| cluster_id.to_owned());
        Ok(())
    }
}
