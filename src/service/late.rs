//! The cache of a node that is not in its cluster yet: refuses, with the reason, until there is one.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Cache, Consistency, Ctx};
use crate::{
    error::{Error, Result},
    state::{Answer, Applied, Command, Query},
};

/// A cache that is filled in once the node runs.
pub struct LateCache {
    cache: OnceLock<Arc<dyn Cache>>,
    waiting_for: watch::Receiver<Option<String>>,
}

impl LateCache {
    /// `waiting_for` says why there is no cache yet.
    pub fn new(waiting_for: watch::Receiver<Option<String>>) -> Arc<Self> {
        Arc::new(Self { cache: OnceLock::new(), waiting_for })
    }

    /// From now on requests are served. Only the first call counts.
    pub fn fill(&self, cache: Arc<dyn Cache>) {
        let _ = self.cache.set(cache);
    }

    fn cache(&self) -> Result<&Arc<dyn Cache>> {
        self.cache.get().ok_or_else(|| {
            let why = self.waiting_for.borrow().clone().unwrap_or_else(|| "it is starting".into());
            Error::Unavailable(format!("this node does not serve yet: {why}"))
        })
    }
}

#[async_trait]
impl Cache for LateCache {
    async fn write(&self, command: Command, ctx: Ctx) -> Result<Applied> {
        self.cache()?.write(command, ctx).await
    }

    async fn read(&self, query: Query, consistency: Consistency, ctx: Ctx) -> Result<Answer> {
        self.cache()?.read(query, consistency, ctx).await
    }
}
