//! Genesis on the real thing: the identity file behind [`BindingStore`], the peer protocol and the claim behind [`Peers`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    genesis::{Door, FIRST_INDEX, SeedAnswer},
    run::{BindingStore, Genesis, Options, Peers, Watched, watch_founder},
    scale::Scale,
};
use crate::{
    error::{Error, Result},
    kubernetes::ApiError,
    raft::{self, Node, NotJoined, ask_to_join, hello},
    store::{Binding, ClusterId, Identity, IdentityFile},
};

/// How long a request to join may take: the leader adds one member at a time.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer of the Kubernetes API is believed, while seeds wait and ask again and again.
const CLAIM_FRESH: Duration = Duration::from_secs(2);

/// The claim, or why it is not known.
type KnownClaim = Result<Option<String>, String>;

/// Other nodes, asked over the peer protocol.
pub(super) struct RaftPeers {
    peers: Arc<raft::Peers>,
    scale: Arc<Scale>,
    /// What is known of the claim, and since when.
    claim: Mutex<Option<(Instant, KnownClaim)>>,
}

impl RaftPeers {
    pub(super) fn new(peers: Arc<raft::Peers>, scale: Arc<Scale>) -> Self {
        Self { peers, scale, claim: Mutex::new(None) }
    }

    async fn ask_for_claim(&self) -> KnownClaim {
        let Some(kubernetes) = self.scale.kubernetes() else { return Ok(None) };
        match kubernetes.claim().await {
            Ok(claim) => Ok(claim),
            // Without access this one case, all seeds wiped while others hold data, is not covered: as documented.
            Err(error @ ApiError::Denied(_)) => {
                tracing::warn!("the claim of an earlier cluster is not looked at: {error}");
                Ok(None)
            }
            Err(error @ ApiError::Unreachable(_)) => Err(error.to_string()),
        }
    }
}

#[async_trait]
impl Peers for RaftPeers {
    async fn hello(&self, slot: &str) -> Result<SeedAnswer, String> {
        let answer = hello(&self.peers, slot).await?;
        Ok(SeedAnswer {
            slot: answer.from.slot,
            incarnation: answer.from.incarnation,
            binding: answer.binding,
            seeds: answer.seeds,
        })
    }

    async fn join(&self, door: &Door) -> Result<ClusterId, NotJoined> {
        ask_to_join(&self.peers, &door.slot, door.raft_id, Instant::now() + JOIN_TIMEOUT).await
    }

    async fn others(&self) -> Vec<String> {
        self.scale.slots().await
    }

    async fn claim(&self) -> Result<Option<String>, String> {
        let known = self.claim.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, known)) = known
            && at.elapsed() < CLAIM_FRESH
        {
            return known;
        }
        let answer = self.ask_for_claim().await;
        *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), answer.clone()));
        answer
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
pub fn prepare(
    identity: IdentityFile,
    seeds: Vec<String>,
    peers: Arc<raft::Peers>,
    scale: Arc<Scale>,
) -> Genesis<IdentityFile> {
    Genesis::new(identity, seeds, Arc::new(RaftPeers::new(peers, scale)), Options::default())
}

/// Watches, beside Raft, whether this founder's cluster can still come to be; returns only when it cannot and the founder holds nothing of it.
pub async fn until_given_up(identity: Identity, peers: Arc<raft::Peers>, scale: Arc<Scale>, node: Arc<Node>) {
    let holds_data = || node.log().last().is_some_and(|last| last.index > FIRST_INDEX);
    match watch_founder(identity, &RaftPeers::new(peers, scale), Options::default(), holds_data).await {
        Watched::GiveUp => {}
        Watched::Settled => std::future::pending().await,
    }
}
