//! The composition root: builds a node, starts it in order, stops it in order.
//!
//! Start: identity (durable before anybody can ask) -> log and snapshots -> the three ports -> genesis -> Raft -> ready. A node listens before it
//! is in a cluster, because genesis asks over the peer port and probes over the HTTP port; clients are refused with the reason until then.
//!
//! Stop: not ready -> no more elections, leadership handed over -> requests under way finished -> ports closed -> Raft stopped, log synced.
//!
//! The caller owns the sockets and the stop signal, so tests bind port 0.

mod life;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::transport::server::TcpIncoming;

use self::life::Life;
use crate::{
    api,
    cluster::{self, Scale, standing::Absent},
    config::ServeConfig,
    error::{Error, Result},
    kubernetes::{self, Kubernetes},
    net::{Resolver, SystemResolver},
    observe::Metrics,
    raft::{self, Host, Myself, Peers},
    service::{ClusterView, LateCache, NodeView},
    store::{self, Binding, IdentityFile, Log, LogOptions, Snapshots},
    time::{Clock, SystemClock},
};

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
    pub fn system(config: &ServeConfig) -> Self {
        let statefulset = config.statefulset.clone();
        let kubernetes = statefulset.map(|name| Arc::new(kubernetes::Late::new(name)) as Arc<dyn Kubernetes>);
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
        let life = Life {
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
            let how = life.run(genesis).await.unwrap_or_else(Ended::Failed);
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
        // It holds the directory's lock, which goes with it, or with the last write that it has begun.
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
