//! The composition root: builds a node, starts it in order, stops it in order.
//!
//! Start: identity (durable before anybody can ask) -> log and snapshots -> the three ports -> genesis -> Raft -> ready. A node listens before it
//! is in a cluster, because genesis asks over the peer port and probes over the HTTP port; clients are refused with the reason until then.
//!
//! Stop: not ready -> no more elections, leadership handed over -> requests under way finished -> ports closed -> Raft stopped, log synced.
//!
//! The caller owns the sockets and the stop signal, so tests bind port 0.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::transport::server::TcpIncoming;

use crate::{
    api,
    cluster::{
        self, OnMajorityLost, Scale,
        keeper::{self, Keeper},
        run::{Founded, Genesis, Outcome},
        standing::{Absent, Verdict},
    },
    config::ServeConfig,
    error::{Error, Result},
    kubernetes::{self, Kubernetes},
    net::{Resolver, SystemResolver},
    observe::{Metrics, SnapshotKind},
    raft::{self, Asked, Hooks, Host, Myself, Node, Peers, SnapshotEvent},
    service::{ClusterView, LateCache, NodeView, RecoveryAsked, ReplicatedCache, duties},
    store::{self, Binding, IdentityFile, Log, LogOptions, Snapshots},
    time::{Clock, SystemClock},
};

/// Entries proposed and not yet applied, at most. While one is on its way the next gathers, so fewer in flight means more commands in one sync.
/// Measured with 64 clients on 2 cores: one in flight 27 commands a sync and 17,600 Sets/s, two 21 and 16,200. An entry takes up to 1,024 commands or
/// 4 MiB, so one is enough for any disk and network that such a round trip fits.
const ENTRIES_IN_FLIGHT: usize = 1;
/// Wishes for changes of the membership that wait for the leader's next look.
const WISHES: usize = 256;
/// How often readiness is looked at by those who wait for it.
const READY_ROUND: Duration = Duration::from_millis(20);
/// How long requests under way may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// The sockets a node serves on.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub client: TcpListener,
    /// For the other nodes.
    pub peer: TcpListener,
    /// For probes and metrics.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    /// A sentence that names the address and the flag, for one that is taken or not ours.
    pub async fn bind(config: &ServeConfig) -> Result<Self> {
        Ok(Self {
            client: bind(config.client_addr, "--client-addr").await?,
            peer: bind(config.peer_addr, "--peer-addr").await?,
            http: bind(config.http_addr, "--http-addr").await?,
        })
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::Unavailable(format!(
            "cannot listen on {address}: {e}; choose another address with {flag}, or stop what uses it"
        ))
    })
}

/// What a node asks of the world around it. Tests bring their own.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Which addresses are behind its peers' names.
    pub resolver: Arc<dyn Resolver>,
    /// The Kubernetes API, for a pod of a StatefulSet.
    pub kubernetes: Option<Arc<dyn Kubernetes>>,
}

impl Surroundings {
    /// This machine's, and the API of the Kubernetes that it is a pod of, if the configuration names its StatefulSet.
    pub async fn system(config: &ServeConfig) -> Self {
        let kubernetes: Option<Arc<dyn Kubernetes>> = match &config.statefulset {
            None => None,
            Some(name) => match kubernetes::Api::from_environment(name.clone()).await {
                Ok(api) => Some(Arc::new(api)),
                Err(error) => {
                    tracing::warn!(statefulset = %name, "the Kubernetes API is not used: {error}");
                    None
                }
            },
        };
        Self {
            clock: Arc::new(SystemClock::new()),
            resolver: Arc::new(SystemResolver::default()),
            kubernetes,
        }
    }
}

/// Why a node does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// A disk that failed, data that cannot be read, a broken invariant.
    Failed(Error),
    /// Its data directory is another member's now, or it cannot go on in this process as what it is: start it again.
    StartOver {
        /// Why, for the log.
        why: &'static str,
    },
}

/// A started node.
pub struct Server {
    view: Arc<NodeView>,
    host: Arc<Host>,
    log: Log,
    /// Ends genesis and the duties.
    joining: JoinHandle<()>,
    serving: JoinSet<Result<()>>,
    serving_clients: JoinHandle<Result<()>>,
    stop_clients: watch::Sender<bool>,
    ended: watch::Receiver<Option<Ended>>,
}

fn stopped(signal: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut signal = signal.subscribe();
    async move {
        // A dropped sender is a stop as well.
        let _ = signal.wait_for(|stop| *stop).await;
    }
}

fn storage(error: impl std::fmt::Display) -> Error {
    Error::Storage(error.to_string())
}

/// What is opened before any port answers.
struct Opened {
    identity: IdentityFile,
    seeds: Vec<String>,
    log: Log,
    snapshots: Snapshots,
}

fn open(config: &ServeConfig, metrics: &Arc<Metrics>) -> Result<Opened> {
    let dir: &Path = &config.data_dir;
    let open = if config.ephemeral { IdentityFile::format_anew } else { IdentityFile::open_or_format };
    let (mut identity, _) = open(dir, &config.slot, uuid::Uuid::new_v4()).map_err(storage)?;
    if let Binding::Left { cluster } = identity.identity().binding {
        tracing::info!(%cluster, "this directory left its cluster: its slot comes back as a new member");
        identity.reformat(uuid::Uuid::new_v4()).map_err(storage)?;
    }
    if let Binding::Superseded { cluster } = identity.identity().binding {
        return Err(storage(store::StoreError::Superseded { dir: dir.to_owned(), cluster }));
    }
    let seeds = match config.seeds() {
        Ok(seeds) => seeds,
        // A node that belongs to a cluster needs none, and must not depend on a file that it does not need.
        Err(error) if matches!(identity.identity().binding, Binding::Bound { .. }) => {
            tracing::warn!(%error, "the seeds are not known; this node is bound to its cluster and starts without");
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let incarnation = identity.identity().incarnation;
    let counted = metrics.clone();
    let options = LogOptions {
        on_sync: Some(Arc::new(move |sync: store::SyncReport| {
            counted.log_sync.observe(sync.records, sync.bytes, sync.duration);
        })),
        group: raft::GROUP,
        ..LogOptions::new(dir, incarnation)
    };
    let (log, _) = Log::open(options).map_err(storage)?;
    let snapshots = Snapshots::open(dir, incarnation, raft::GROUP).map_err(storage)?;
    Ok(Opened { identity, seeds, log, snapshots })
}

fn myself(config: &ServeConfig, identity: &store::Identity, seeds: Vec<String>) -> Myself {
    Myself {
        slot: config.slot.clone(),
        incarnation: identity.incarnation,
        raft_id: identity.raft_id(),
        boot_counter: identity.boot_counter,
        nonce: rand::random(),
        client_address: config.advertised_client(),
        memory_limit_bytes: config.memory_limit_bytes.unwrap_or(0),
        seeds,
    }
}

impl Server {
    /// Opens the data directory, serves the ports, and goes on to join or found the cluster in the background.
    ///
    /// # Errors
    /// If the data directory is another node's, damaged, of a newer release, or in use; with a sentence that says what to do.
    pub async fn start(
        mut config: ServeConfig,
        listeners: Listeners,
        surroundings: Surroundings,
    ) -> Result<Self> {
        let Surroundings { clock, resolver, kubernetes } = surroundings;
        // What was bound counts: a test asks for port 0.
        config.client_addr = listeners.client.local_addr().unwrap_or(config.client_addr);
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
        let for_open = (config.clone(), metrics.clone());
        let Opened { identity, seeds, log, snapshots } =
            tokio::task::spawn_blocking(move || open(&for_open.0, &for_open.1)).await.map_err(storage)??;

        let me = myself(&config, identity.identity(), seeds.clone());
        tracing::info!(slot = me.slot, id = me.raft_id, incarnation = %me.incarnation, boot = me.boot_counter, "starting");
        let booted_before = me.boot_counter > 1;
        let peers = Peers::new(me, clock.clone(), Arc::new(config.discovery.clone()), resolver);
        if let Binding::Bound { cluster, .. } = &identity.identity().binding {
            peers.bind(*cluster);
        }
        let configured = config.clone();
        let configured = Arc::new(move || configured.wanted_replicas());
        let scale = Scale::new(kubernetes, configured, config.discovery.listed());
        let genesis = cluster::prepare(identity, seeds, peers.clone(), scale.clone());
        let refused = metrics.clone();
        let on_refused = Arc::new(move |reason| refused.peer_refused(reason));
        let host = Host::new(peers.clone(), snapshots.clone(), genesis.published(), on_refused);
        let leaderless = watch::Sender::new(Absent::default().sentence(0));
        // One at a time.
        let (recoveries, recovery_asked) = mpsc::channel(1);
        let view =
            NodeView::new(host.clone(), peers.clone(), genesis.waiting(), leaderless.subscribe(), recoveries);
        let cache = LateCache::new(genesis.waiting());

        let stop_clients = watch::Sender::new(false);
        let mut serving = JoinSet::new();
        serving.spawn(serve_peers(listeners.peer, host.clone()));
        let deps = api::http::Deps { cluster: view.clone(), metrics: metrics.clone() };
        serving.spawn(api::http::serve(listeners.http, deps, std::future::pending()));
        let limits = api::grpc::Limits { drain: DRAIN, ..api::grpc::Limits::default() };
        let deps =
            api::grpc::Deps { cache: cache.clone(), cluster: view.clone(), metrics: metrics.clone(), limits };
        let serving_clients = tokio::spawn(api::grpc::serve(listeners.client, deps, stopped(&stop_clients)));

        let (end, ended) = watch::channel(None);
        let start = Start {
            config,
            peers,
            scale,
            leaderless,
            host: host.clone(),
            log: log.clone(),
            snapshots,
            clock,
            metrics,
            cache,
            booted_before,
            recovery_asked,
        };
        let joining = tokio::spawn(async move {
            let how = start.run(genesis).await.unwrap_or_else(Ended::Failed);
            end.send_replace(Some(how));
        });
        Ok(Self { view, host, log, joining, serving, serving_clients, stop_clients, ended })
    }

    /// What the node knows of itself and its cluster.
    pub fn view(&self) -> &Arc<NodeView> {
        &self.view
    }

    /// Returns once every readiness check holds.
    pub async fn ready(&self) {
        let mut looks = tokio::time::interval(READY_ROUND);
        while self.view.status().checks.iter().any(|check| check.failing.is_some()) {
            looks.tick().await;
        }
    }

    /// Returns when the node does not go on by itself.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|how| how.clone()) {
            Ok(Some(how)) => how,
            Ok(None) | Err(_) => Ended::Failed(Error::Storage("the node stopped by itself".into())),
        }
    }

    /// Stops in the order of the module's head. Acknowledged writes are on disk in any case. `hand_over` is for a node that stops alone: where
    /// all stop at once there is nobody to take over.
    ///
    /// # Errors
    /// If the last sync failed.
    pub async fn shutdown(mut self, hand_over: bool) -> Result<()> {
        self.view.stop();
        let node = self.host.node().cloned();
        if let Some(node) = &node {
            node.retire_from_leading(hand_over).await;
        }
        self.joining.abort();
        // It holds the directory's lock: whoever waits for the end of this may open it at once.
        let _ = (&mut self.joining).await;
        self.stop_clients.send_replace(true);
        // The API ends by itself: it waits for requests under way, at most `DRAIN`.
        let _ = (&mut self.serving_clients).await;
        // Nobody needs our answers any more; peers' streams never end by themselves.
        self.serving.shutdown().await;
        match node {
            Some(node) => node.shutdown().await,
            None => {
                let log = self.log.clone();
                tokio::task::spawn_blocking(move || log.close()).await.map_err(storage)?.map_err(storage)
            }
        }
    }
}

/// Never ends by itself: peers' streams last as long as the node.
async fn serve_peers(listener: TcpListener, host: Arc<Host>) -> Result<()> {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .initial_stream_window_size(8 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .add_service(raft::service(host))
        // Set here and not on the builder, which leaves accepted sockets of ours alone: without it a follower's answers wait
        // 40 ms for the leader's delayed acknowledgements.
        // With a signal, though it never comes: connections watch it, so that they end with this task, and none goes on answering
        // for a node that is gone.
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            std::future::pending(),
        )
        .await
        .map_err(|e| Error::Unavailable(format!("the peer port failed: {e}")))
}

/// Everything that genesis and Raft are started from.
struct Start {
    config: ServeConfig,
    peers: Arc<Peers>,
    scale: Arc<Scale>,
    leaderless: watch::Sender<String>,
    host: Arc<Host>,
    log: Log,
    snapshots: Snapshots,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    cache: Arc<LateCache>,
    booted_before: bool,
    recovery_asked: mpsc::Receiver<RecoveryAsked>,
}

impl Start {
    /// Finds or founds the cluster, runs in it, and returns only when it does not go on.
    async fn run(mut self, genesis: Genesis<IdentityFile>) -> Result<Ended> {
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
}

impl Start {
    /// Stops Raft and makes the directory a new member's, unless an entry came in the last moment.
    async fn give_up(&self, node: &Node, identity: IdentityFile) -> Result<Ended> {
        node.shutdown().await?;
        if node.log().last().is_some_and(|last| last.index > 0) {
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
        match verdict {
            Verdict::Retired => {
                let cluster = self.peers.cluster().ok_or_else(|| storage("only a bound node is retired"))?;
                let identity = cluster::run::save(identity, Binding::Left { cluster }).await?;
                published.send_replace(identity.identity().clone());
                if node.is_leaving() {
                    tracing::info!(%cluster, "left the cluster; waiting to be stopped");
                    return Ok(Ended::Failed(node.failed().await));
                }
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
                let cluster =
                    self.peers.cluster().ok_or_else(|| storage("only a bound node is superseded"))?;
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
