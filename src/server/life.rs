//! A node's life in its cluster: genesis or joining, Raft and what runs beside it, and how it ends.
//!
//! Whatever ends a member's life here is decided elsewhere (`cluster`); this carries it out, in the one order in which a crash at any point
//! leaves a directory that says what it is: Raft stopped, then the identity, then everything else. (A member that
//! leaves is marked while it runs: it is none any more, and whoever asked waits for the mark.)

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{Ended, storage};
use crate::{
    cluster::{
        self, OnMajorityLost, Scale,
        keeper::{self, Keeper},
        run::{Founded, Genesis, Outcome},
        standing::{Absent, Verdict},
    },
    config::ServeConfig,
    error::{Error, Result},
    observe::{Metrics, SnapshotKind},
    raft::{self, Asked, Hooks, Host, Node, Peers, SnapshotEvent},
    service::{LateCache, RecoveryAsked, ReplicatedCache, duties},
    store::{self, Binding, IdentityFile, Log, Snapshots},
    time::Clock,
};

/// Entries proposed and not yet applied, at most. While one is on its way the next gathers, so fewer in flight means more commands in one sync.
/// Measured with 64 clients on 2 cores: one in flight 27 commands a sync and 17,600 Sets/s, two 21 and 16,200. An entry takes up to 1,024 commands or
/// 4 MiB, so one is enough for any disk and network that such a round trip fits.
const ENTRIES_IN_FLIGHT: usize = 1;
/// Wishes for changes of the membership that wait for the leader's next look.
const WISHES: usize = 256;

/// Everything that genesis and Raft are started from.
pub(super) struct Life {
    pub(super) config: ServeConfig,
    pub(super) peers: Arc<Peers>,
    pub(super) scale: Arc<Scale>,
    pub(super) leaderless: watch::Sender<String>,
    pub(super) host: Arc<Host>,
    pub(super) log: Log,
    pub(super) snapshots: Snapshots,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cache: Arc<LateCache>,
    pub(super) booted_before: bool,
    pub(super) recovery_asked: mpsc::Receiver<RecoveryAsked>,
}

impl Life {
    /// Finds or founds the cluster, runs in it, and returns only when it does not go on.
    pub(super) async fn run(mut self, genesis: Genesis<IdentityFile>) -> Result<Ended> {
        let Founded { cluster, founders, store: identity, published } = match genesis.run().await? {
            Outcome::Bound(founded) => founded,
            Outcome::Retired(identity) => {
                // It acknowledged nothing under this incarnation, so nothing is lost with it.
                let log = self.log.clone();
                tokio::task::spawn_blocking(move || log.close()).await.map_err(storage)?.map_err(storage)?;
                return self.reformat(identity, "it was retired before it had joined").await;
            }
        };
        self.peers.bind(cluster);
        let is_founder = founders.is_some();
        let options = raft::Options {
            heartbeat_ms: self.config.heartbeat_ms,
            election_timeout_min_ms: self.config.election_timeout_min_ms,
            election_timeout_max_ms: self.config.election_timeout_max_ms,
            snapshot_log_bytes: self.config.snapshot_log_bytes,
            entries_in_flight: ENTRIES_IN_FLIGHT,
            founders: founders.map(|set| raft::founders(&set)).unwrap_or_default(),
        };
        let (wishes, asked) = mpsc::channel(WISHES);
        let (log, hooks, peers) = (self.log.clone(), self.hooks(wishes), self.peers.clone());
        let node = Node::start(
            options,
            peers.clone(),
            log,
            self.snapshots.clone(),
            self.clock.clone(),
            hooks,
            self.booted_before,
        )
        .await?;
        duties::remember_starts(&node);
        self.host.run(node.clone());
        let forwarded = self.metrics.clone();
        let on_forward = Arc::new(move || {
            forwarded.forwarded.inc();
        });
        self.cache.fill(ReplicatedCache::new(node.clone(), on_forward));
        let mut background = JoinSet::new();
        background.spawn(cluster::gate::keep(node.clone()));
        let seeds = self.peers.myself().seeds.clone();
        let max_voters = self.config.max_voters.into();
        let keeping = keeper::Options {
            seeds: seeds.clone(),
            max_voters,
            silent: Duration::from_millis(self.config.retire_after_ms),
        };
        background.spawn(Keeper::new(node.clone(), self.scale.clone(), keeping, asked).run());
        background.spawn(duties::run(node.clone()));
        background.spawn(duties::learn_addresses(self.host.clone(), node.clone()));
        let report = |absent: &Absent, voters| {
            self.metrics.voters_lost.set(absent.lost() as u64);
            self.leaderless.send_replace(absent.sentence(voters));
        };
        let standing = cluster::standing::watch(node.clone(), self.scale.clone(), seeds, is_founder, report);
        let on_majority_lost = self.config.on_majority_lost;
        let left_alone = async {
            match on_majority_lost {
                OnMajorityLost::Wait => std::future::pending().await,
                OnMajorityLost::Recover => cluster::recovery::until_all_others_are_lost(&node).await,
            }
        };
        tokio::select! {
            error = node.failed() => Ok(Ended::Failed(error)),
            () = cluster::until_given_up(identity.identity().clone(), peers, self.scale.clone(), node.clone()) => {
                self.give_up(&node, identity).await
            }
            asked = to_be_recovered(&mut self.recovery_asked, &node) => {
                Ok(recover(&node, identity, &self.snapshots, Some(asked.answer)).await)
            }
            () = left_alone => Ok(recover(&node, identity, &self.snapshots, None).await),
            verdict = standing => self.act_on(verdict, &node, identity, published).await,
        }
    }

    fn hooks(&self, wishes: mpsc::Sender<Asked>) -> Hooks {
        let (proposed, synced, snapshots) =
            (self.metrics.clone(), self.metrics.clone(), self.metrics.clone());
        Hooks {
            wishes,
            on_propose: Arc::new(move |commands| {
                proposed.proposed_entries.inc();
                proposed.proposed_commands.inc_by(commands as u64);
            }),
            on_synced: Arc::new(move |commands| {
                synced.log_sync.commands.inc_by(commands);
            }),
            on_snapshot: Arc::new(move |event| {
                snapshots.snapshot(match event {
                    SnapshotEvent::Built => SnapshotKind::Built,
                    SnapshotEvent::Installed => SnapshotKind::Installed,
                    SnapshotEvent::Sent => SnapshotKind::Sent,
                });
            }),
        }
    }

    /// Stops Raft and makes the directory a new member's, unless an entry came in the last moment.
    async fn give_up(&self, node: &Node, identity: IdentityFile) -> Result<Ended> {
        node.shutdown().await?;
        if node.log().last().is_some_and(|last| last.index > cluster::genesis::FIRST_INDEX) {
            return Err(Error::Unavailable(
                "an entry came while this founder was giving up: start it again".into(),
            ));
        }
        self.format_anew(node, identity, "its cluster could never be").await
    }

    /// Stops Raft and makes the directory a new member's.
    async fn format_anew(&self, node: &Node, identity: IdentityFile, why: &'static str) -> Result<Ended> {
        node.shutdown().await?;
        self.reformat(identity, why).await
    }

    /// Makes the directory, whose log is closed, a new member's.
    async fn reformat(&self, mut identity: IdentityFile, why: &'static str) -> Result<Ended> {
        self.snapshots.close();
        tokio::task::spawn_blocking(move || identity.reformat(uuid::Uuid::new_v4()))
            .await
            .map_err(storage)?
            .map_err(storage)?;
        Ok(Ended::StartOver { why })
    }

    /// Does what a verdict about this node's standing asks for.
    async fn act_on(
        &self,
        verdict: Verdict,
        node: &Node,
        identity: IdentityFile,
        published: watch::Sender<store::Identity>,
    ) -> Result<Ended> {
        let cluster = self.peers.cluster().ok_or_else(|| storage("only a bound node has a standing"))?;
        match verdict {
            Verdict::Retired if node.is_leaving() => {
                // Whoever asked it to leave waits for the mark, and stops the node then.
                let identity = cluster::run::save(identity, Binding::Left { cluster }).await?;
                published.send_replace(identity.identity().clone());
                tracing::info!(%cluster, "left the cluster; waiting to be stopped");
                Ok(Ended::Failed(node.failed().await))
            }
            Verdict::Retired => {
                tracing::warn!(%cluster, "this incarnation was retired from its cluster: coming back as a new one");
                self.format_anew(node, identity, "it was retired").await
            }
            Verdict::ClusterGone { instead } => {
                tracing::warn!(%instead, "the cluster that this node was to join is gone, and it holds nothing of it");
                self.format_anew(node, identity, "the cluster that it was to join is gone").await
            }
            Verdict::Superseded { reason, by } => {
                node.shutdown().await?;
                // Durable: every start raises the boot counter, so one that was only stopped would soon be taken for the later one.
                cluster::run::save(identity, Binding::Superseded { cluster }).await?;
                let error = store::StoreError::Superseded { dir: self.config.data_dir.clone(), cluster };
                Err(Error::Storage(format!("{reason}, as slot {by} says: {error}")))
            }
        }
    }
}

/// Refuses what may not be done, and returns with the first recovery that may.
async fn to_be_recovered(asked: &mut mpsc::Receiver<RecoveryAsked>, node: &Node) -> RecoveryAsked {
    while let Some(asked) = asked.recv().await {
        match cluster::recovery::check(node, &asked.cluster_id).await {
            Ok(()) => return asked,
            Err(error) => {
                tracing::warn!(%error, "recovery refused");
                // Whoever asked may have gone.
                let _ = asked.answer.send(Err(error));
            }
        }
    }
    std::future::pending().await
}

/// Makes this node a cluster of one. Whatever came of it, Raft does not run any more.
async fn recover(
    node: &Node,
    identity: IdentityFile,
    snapshots: &Snapshots,
    answer: Option<oneshot::Sender<Result<raft::Recovered>>>,
) -> Ended {
    let outcome = cluster::recovery::go_on_alone(node, identity, snapshots).await;
    let ended = match &outcome {
        Ok(_) => Ended::StartOver { why: "it goes on as a new cluster of one" },
        Err(error) => {
            tracing::error!(%error, "the recovery failed");
            Ended::StartOver { why: "its recovery failed; it goes on as what its data directory says" }
        }
    };
    if let Some(answer) = answer {
        // Whoever asked may have gone.
        let _ = answer.send(outcome);
    }
    ended
}
