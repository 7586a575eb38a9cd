//! [`Kubernetes`] over the API server.

use std::{collections::BTreeMap, env, path::Path};

use async_trait::async_trait;
use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Client, Config, Error,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::timeout;

use super::{ApiError, CALL_TIMEOUT, Desired, Kubernetes, StatefulSetName};

/// The key of the claim's ConfigMap that holds the cluster id.
const CLUSTER_ID: &str = "cluster-id";

/// A client of the API server, for one StatefulSet and its claim.
#[derive(Clone)]
pub struct Api {
    name: StatefulSetName,
    statefulsets: kube::Api<StatefulSet>,
    configmaps: kube::Api<ConfigMap>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Api {
    /// A client as the environment says: by the kubeconfig that `KUBECONFIG` names, else as the pod's service account. Nothing is
    /// connected yet. To be used within a tokio runtime.
    ///
    /// # Errors
    /// [`ApiError::Unreachable`] if there is no configuration, or it cannot be used.
    pub async fn from_environment(name: StatefulSetName) -> Result<Self, ApiError> {
        if let Some(path) = env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            return Self::from_kubeconfig(name, Path::new(&path)).await;
        }
        let config = Config::incluster().map_err(|error| {
            ApiError::Unreachable(format!(
                "{}; is this a pod with a service account token (automountServiceAccountToken)?",
                with_causes(&error)
            ))
        })?;
        Self::new(name, config)
    }

    /// A client by a kubeconfig file, by its current context.
    ///
    /// # Errors
    /// As [`Self::from_environment`].
    pub async fn from_kubeconfig(name: StatefulSetName, path: &Path) -> Result<Self, ApiError> {
        let wrong = |error| ApiError::Unreachable(format!("{}: {}", path.display(), with_causes(&error)));
        let file = Kubeconfig::read_from(path).map_err(wrong)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        Self::new(name, config.map_err(wrong)?)
    }

    fn new(name: StatefulSetName, config: Config) -> Result<Self, ApiError> {
        let client = Client::try_from(config).map_err(|error| failed(&error))?;
        let statefulsets = kube::Api::namespaced(client.clone(), &name.namespace);
        let configmaps = kube::Api::namespaced(client, &name.namespace);
        Ok(Self { name, statefulsets, configmaps })
    }

    /// The StatefulSet; `None` if it is not there.
    async fn statefulset(&self) -> Result<Option<StatefulSet>, ApiError> {
        within(self.statefulsets.get_opt(&self.name.name)).await
    }
}

#[async_trait]
impl Kubernetes for Api {
    async fn desired(&self) -> Result<Desired, ApiError> {
        Ok(self.statefulset().await?.map_or(Desired::ABSENT, |found| Desired {
            exists: true,
            deleting: found.metadata.deletion_timestamp.is_some(),
            // The API server's own default is one, and it takes nothing negative.
            replicas: found
                .spec
                .and_then(|spec| spec.replicas)
                .map_or(1, |count| u32::try_from(count).unwrap_or(0)),
        }))
    }

    async fn claim(&self) -> Result<Option<String>, ApiError> {
        let name = self.name.claim();
        let Some(found) = within(self.configmaps.get_opt(&name)).await? else { return Ok(None) };
        match found.data.and_then(|mut data| data.remove(CLUSTER_ID)).filter(|id| !id.is_empty()) {
            Some(id) => Ok(Some(id)),
            None => Err(ApiError::Unreachable(format!(
                "the ConfigMap {}/{name} holds no {CLUSTER_ID}; it is not one that Larder made: delete it",
                self.name.namespace
            ))),
        }
    }

    async fn create_claim(&self, cluster_id: &str) -> Result<(), ApiError> {
        let Some(uid) = self.statefulset().await?.and_then(|found| found.metadata.uid) else {
            return Err(ApiError::Unreachable(format!(
                "there is no StatefulSet {} to own the claim",
                self.name
            )));
        };
        let claim = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.claim()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".into(), "larder".into())])),
                // Without blockOwnerDeletion, which would take a permission on the owner's finalizers.
                owner_references: Some(vec![OwnerReference {
                    api_version: "apps/v1".into(),
                    kind: "StatefulSet".into(),
                    name: self.name.name.clone(),
                    uid,
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(CLUSTER_ID.into(), cluster_id.into())])),
            ..ConfigMap::default()
        };
        within(async {
            match self.configmaps.create(&PostParams::default(), &claim).await {
                Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
                created => created.map(drop),
            }
        })
        .await
    }
}

/// A call's answer, if there is one in time.
async fn within<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, ApiError> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|error| failed(&error)),
        Err(_) => Err(ApiError::Unreachable(format!("no answer within {CALL_TIMEOUT:?}"))),
    }
}

fn failed(error: &Error) -> ApiError {
    match error {
        Error::Api(status) if matches!(status.code, 401 | 403) => {
            ApiError::Denied(format!("{} ({})", status.message, status.code))
        }
        Error::Api(status) => ApiError::Unreachable(format!("{} ({})", status.message, status.code)),
        error => ApiError::Unreachable(with_causes(error)),
    }
}

/// An error with its causes, each told once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
