//! How many nodes there are to be: the Kubernetes API where there is one, else what the configuration says.
//!
//! Asked by genesis (who else may hold data?), by the keeper (is a silent member one that was scaled away?), and by nobody often.
//!
//! Not here: the API itself (`kubernetes`), reading the scale file (`config`, which hands in a closure).

use std::{fmt, sync::Arc};

use crate::kubernetes::{ApiError, Desired, Kubernetes, leaving};

/// The number of replicas that the configuration wants, read anew at each call; `None` if it does not say.
pub type Configured = Arc<dyn Fn() -> Option<u32> + Send + Sync>;

/// Where the wanted number of nodes comes from.
#[derive(Clone)]
pub struct Scale {
    kubernetes: Option<Arc<dyn Kubernetes>>,
    configured: Configured,
    /// The slots that the configuration names, if it names all of them.
    listed: Vec<String>,
}

impl fmt::Debug for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scale").field("kubernetes", &self.kubernetes).field("listed", &self.listed).finish()
    }
}

impl Scale {
    /// `listed` are the slots of a static list of peers; empty where slots are ordinals.
    pub fn new(
        kubernetes: Option<Arc<dyn Kubernetes>>,
        configured: Configured,
        listed: Vec<String>,
    ) -> Arc<Self> {
        Arc::new(Self { kubernetes, configured, listed })
    }

    /// The Kubernetes API, where there is one.
    pub fn kubernetes(&self) -> Option<&Arc<dyn Kubernetes>> {
        self.kubernetes.as_ref()
    }

    /// The slots that the configuration knows of.
    pub async fn slots(&self) -> Vec<String> {
        if !self.listed.is_empty() {
            return self.listed.clone();
        }
        (0..self.replicas().await.unwrap_or(0)).map(|ordinal| ordinal.to_string()).collect()
    }

    /// What the configuration wants. It may be a file, so it is read off the runtime's threads.
    async fn replicas(&self) -> Option<u32> {
        let configured = self.configured.clone();
        tokio::task::spawn_blocking(move || configured()).await.ok().flatten()
    }

    /// Whether the node in this slot was scaled away. False for a slot that is no ordinal, and where nothing says how many there are to be.
    ///
    /// # Errors
    /// If the Kubernetes API does not answer: then nobody is taken for scaled away.
    pub async fn is_surplus(&self, slot: &str) -> Result<bool, ApiError> {
        let Ok(ordinal) = slot.parse::<u32>() else { return Ok(false) };
        let desired = match &self.kubernetes {
            Some(kubernetes) => Some(kubernetes.desired().await?),
            None => self.replicas().await.map(Desired::replicas),
        };
        Ok(desired.is_some_and(|desired| leaving(ordinal, &desired)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::Fake;

    fn configured(replicas: Option<u32>) -> Configured {
        Arc::new(move || replicas)
    }

    #[tokio::test]
    async fn a_slot_is_surplus_when_whoever_decides_says_so() {
        let nothing_says = Scale::new(None, configured(None), Vec::new());
        assert_eq!(nothing_says.is_surplus("7").await, Ok(false));
        let file = Scale::new(None, configured(Some(3)), Vec::new());
        assert_eq!(file.is_surplus("2").await, Ok(false));
        assert_eq!(file.is_surplus("3").await, Ok(true));
        assert_eq!(file.is_surplus("node-a").await, Ok(false));
        let fake = Arc::new(Fake::new(Desired::replicas(9)));
        let api = Scale::new(Some(fake.clone()), configured(Some(9)), Vec::new());
        fake.set_desired(Desired::replicas(3));
        assert_eq!(api.is_surplus("3").await, Ok(true), "the API knows better than the file");
        fake.set_desired(Desired::replicas(0));
        assert_eq!(api.is_surplus("3").await, Ok(false), "scaled to nothing is stopped, not left");
        fake.fail(Some(ApiError::Unreachable("gone".into())));
        assert!(api.is_surplus("3").await.is_err());
    }

    #[tokio::test]
    async fn members_may_be_in_every_slot_that_the_configuration_knows() {
        assert_eq!(Scale::new(None, configured(Some(2)), Vec::new()).slots().await, ["0", "1"]);
        assert_eq!(Scale::new(None, configured(None), vec!["a".into()]).slots().await, ["a"]);
        assert_eq!(Scale::new(None, configured(None), Vec::new()).slots().await, Vec::<String>::new());
    }
}
