//! Genesis on the real thing: the identity file behind [`BindingStore`], the peer protocol behind [`Peers`].

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    genesis::SeedAnswer,
    run::{BindingStore, Genesis, Options, Peers, Watched, watch_founder},
};
use crate::{
    error::{Error, Result},
    raft::{self, Node, hello},
    store::{Binding, Identity, IdentityFile},
};

/// Other seeds, asked over the peer protocol.
pub(super) struct RaftPeers(pub Arc<raft::Peers>);

#[async_trait]
impl Peers for RaftPeers {
    async fn hello(&self, slot: &str) -> Result<SeedAnswer, String> {
        let answer = hello(&self.0, slot).await?;
        Ok(SeedAnswer {
            slot: answer.from.slot,
            incarnation: answer.from.incarnation,
            binding: answer.binding,
        })
    }
}

impl BindingStore for IdentityFile {
    fn identity(&self) -> Identity {
        IdentityFile::identity(self).clone()
    }

    fn save(&mut self, binding: Binding) -> Result<()> {
        IdentityFile::save(self, binding).map_err(|e| Error::Storage(e.to_string()))
    }
}

/// The genesis of a node with this identity, among these seeds.
pub fn prepare(identity: IdentityFile, seeds: Vec<String>, peers: Arc<raft::Peers>) -> Genesis<IdentityFile> {
    Genesis::new(identity, seeds, Arc::new(RaftPeers(peers)), Options::default())
}

/// Watches, beside Raft, whether this founder's cluster can still come to be; returns only when it cannot and the founder holds nothing of it.
pub async fn until_given_up(identity: Identity, peers: Arc<raft::Peers>, node: Arc<Node>) {
    let holds_data = || node.log().last().is_some_and(|last| last.index > 0);
    match watch_founder(identity, &RaftPeers(peers), Options::default(), holds_data).await {
        Watched::GiveUp => {}
        Watched::Settled => std::future::pending().await,
    }
}
