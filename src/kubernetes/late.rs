//! The API server, found at the first call that needs it, and looked for again by the next one if it was not there.
//!
//! An API that is configured and not to be had is not the same as none: whoever asks hears an error, and does nothing that only an answer allows.

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::{Api, ApiError, Desired, Kubernetes, StatefulSetName};

/// The API of the Kubernetes that this process runs in.
#[derive(Debug)]
pub struct Late {
    name: StatefulSetName,
    api: OnceCell<Api>,
}

impl Late {
    /// Nothing is looked for yet.
    pub fn new(name: StatefulSetName) -> Self {
        Self { name, api: OnceCell::new() }
    }

    async fn api(&self) -> Result<&Api, ApiError> {
        self.api.get_or_try_init(|| Api::from_environment(self.name.clone())).await
    }
}

#[async_trait]
impl Kubernetes for Late {
    async fn desired(&self) -> Result<Desired, ApiError> {
        self.api().await?.desired().await
    }

    async fn claim(&self) -> Result<Option<String>, ApiError> {
        self.api().await?.claim().await
    }

    async fn create_claim(&self, cluster_id: &str) -> Result<(), ApiError> {
        self.api().await?.create_claim(cluster_id).await
    }
}
