//! A served API, with its cache and its cluster at hand.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use async_trait::async_trait;
use hyper::{Request, Response, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::{
    api::{grpc, http},
    error::{Error, NodeRef, Result},
    observe::Metrics,
    proto::v1::{cache_client::CacheClient, cluster_client::ClusterClient},
    service::{Cache, Check, ClusterView, Consistency, Ctx, Member, Recovered, Role, Status},
    state::{Answer, Applied, Command, LogPosition, Machine, Operation, Query, Stamp},
    store::ClusterId,
    time::UnixMillis,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot, watch},
    task::JoinHandle,
};
use tonic::{
    body::Body,
    codegen::Service,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

pub const CLUSTER_ID: &str = "00112233445566778899aabbccddeeff";

/// The state behind a lock, with the switches that tests need.
pub struct MachineCache {
    machine: Mutex<Machine>,
    /// Answers for the next calls, instead of doing them: `None` lets one through.
    pub script: Mutex<VecDeque<Option<Error>>>,
    /// What was asked, in order.
    pub calls: Mutex<Vec<(String, Ctx)>>,
    /// A permit for each call that may go on. Closed: all may.
    pub gate: Semaphore,
    /// How many calls have come in.
    pub entered: watch::Sender<usize>,
}

impl MachineCache {
    /// An open, empty state.
    pub fn open() -> Arc<Self> {
        let cache = Self {
            machine: Mutex::new(Machine::new()),
            script: Mutex::default(),
            calls: Mutex::default(),
            gate: Semaphore::new(0),
            entered: watch::Sender::new(0),
        };
        cache.gate.close();
        cache.apply(Command::new(Operation::Open));
        Arc::new(cache)
    }

    /// The same, whose calls wait for [`Self::gate`].
    pub fn gated() -> Arc<Self> {
        let cache = Arc::into_inner(Self::open()).unwrap();
        Arc::new(Self { gate: Semaphore::new(0), ..cache })
    }

    fn apply(&self, command: Command) -> Applied {
        let mut machine = self.machine.lock().unwrap();
        let index = machine.last_applied().map_or(0, |last| last.index + 1);
        let stamp = Stamp { now: UnixMillis(1_000 + index as i64), touched: Vec::new() };
        machine.apply(LogPosition { term: 1, index }, &stamp, vec![command]).remove(0)
    }

    /// A number that any change of the state changes.
    pub fn state_hash(&self) -> u64 {
        self.machine.lock().unwrap().state_hash()
    }

    pub fn revision(&self) -> u64 {
        self.machine.lock().unwrap().revision()
    }

    pub fn script(&self, answers: impl IntoIterator<Item = Option<Error>>) {
        self.script.lock().unwrap().extend(answers);
    }

    async fn enter(&self, call: String, ctx: Ctx) -> Result<()> {
        self.calls.lock().unwrap().push((call, ctx));
        self.entered.send_modify(|entered| *entered += 1);
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        self.script.lock().unwrap().pop_front().flatten().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Cache for MachineCache {
    async fn write(&self, command: Command, ctx: Ctx) -> Result<Applied> {
        self.enter(format!("write {:?}", command.operation), ctx).await?;
        command.validate()?;
        Ok(self.apply(command))
    }

    async fn read(&self, query: Query, consistency: Consistency, ctx: Ctx) -> Result<Answer> {
        self.enter(format!("read {consistency:?} {query:?}"), ctx).await?;
        query.validate()?;
        Ok(self.machine.lock().unwrap().read(&query))
    }
}

/// A cluster that is what a test says.
pub struct FakeCluster {
    pub status: Mutex<Status>,
    pub members: Mutex<Vec<Member>>,
    pub cluster_id: Mutex<String>,
}

pub fn node(id: u64) -> NodeRef {
    NodeRef { id, slot: (id - 1).to_string() }
}

impl FakeCluster {
    fn ready() -> Arc<Self> {
        let status = Status {
            role: Role::Follower,
            term: 7,
            leader: Some(node(2)),
            last_log_index: 12,
            committed_index: 11,
            applied_index: 9,
            first_log_index: 3,
            snapshot_index: 2,
            revision: 5,
            clock_ms: 1234,
            keys: 4,
            bytes: 400,
            state_hash: 99,
            checks: ["member", "caught-up", "leader", "disk", "running"]
                .map(|name| Check { name, failing: None })
                .into(),
            feature_level: 1,
            feature_level_offered: 1,
            memory_limit_bytes: 1 << 30,
            incarnation: "2f0c6c1e-6a0f-4c0e-9d0b-0d8f4c1f7f10".into(),
            boot_counter: 2,
            disk_bytes: 4096,
        };
        let member = |id: u64| Member {
            node: node(id),
            voter: true,
            leader: id == 2,
            peer_address: format!("n{id}:7401"),
            client_address: format!("n{id}:7400"),
            matched_index: (id == 2).then_some(11),
        };
        Arc::new(Self {
            status: Mutex::new(status),
            members: Mutex::new((1..=3).map(member).collect()),
            cluster_id: Mutex::new(CLUSTER_ID.into()),
        })
    }

    /// Makes a check fail, or hold.
    pub fn set_check(&self, name: &str, failing: Option<&str>) {
        let mut status = self.status.lock().unwrap();
        let check = status.checks.iter_mut().find(|check| check.name == name).unwrap();
        check.failing = failing.map(str::to_owned);
    }
}

#[async_trait]
impl ClusterView for FakeCluster {
    fn node(&self) -> NodeRef {
        node(1)
    }

    fn cluster_id(&self) -> String {
        self.cluster_id.lock().unwrap().clone()
    }

    fn status(&self) -> Status {
        self.status.lock().unwrap().clone()
    }

    fn members(&self) -> Vec<Member> {
        self.members.lock().unwrap().clone()
    }

    async fn transfer_leader(&self, slot: &str) -> Result<NodeRef> {
        match slot {
            "" | "2" => Ok(node(3)),
            other => Err(Error::Invalid(format!("slot {other} is no voter; give one of 0, 1, 2"))),
        }
    }

    async fn retire(&self, slot: &str, _: Ctx) -> Result<()> {
        match slot {
            "2" => {
                self.members.lock().unwrap().retain(|member| member.node.slot != slot);
                Ok(())
            }
            "0" | "1" => {
                Err(Error::Invalid(format!("slot {slot} still answers; stop it first, or scale down")))
            }
            other => Err(Error::Invalid(format!("slot {other} has no member; give one of 0, 1, 2"))),
        }
    }

    async fn promote(&self, slot: &str, _: Ctx) -> Result<()> {
        let mut members = self.members.lock().unwrap();
        match members.iter_mut().find(|member| member.node.slot == slot) {
            Some(member) => {
                member.voter = true;
                Ok(())
            }
            None => Err(Error::Unavailable("no leader is known; wait for one and try again".into())),
        }
    }

    /// Never done in time.
    async fn leave(&self, ctx: Ctx) -> Result<()> {
        Err(Error::Unavailable(format!("not done within {:?}", ctx.timeout)))
    }

    async fn recover(&self, cluster_id: &str) -> Result<Recovered> {
        if cluster_id != CLUSTER_ID {
            return Err(Error::Invalid(format!("this node is a member of the cluster {CLUSTER_ID}")));
        }
        Ok(Recovered { cluster: ClusterId([0xab; 16]), revision: 3, keys: 2, last_log_index: 12 })
    }
}

/// A plain HTTP/2 connection as a gRPC transport.
#[derive(Clone)]
pub struct Patient(http2::SendRequest<Body>);

impl Service<Request<Body>> for Patient {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Both ports, served.
pub struct Server {
    pub cache: Arc<MachineCache>,
    pub cluster: Arc<FakeCluster>,
    pub metrics: Arc<Metrics>,
    pub grpc_address: String,
    pub http_address: String,
    stop: Vec<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(MachineCache::open(), grpc::Limits::default()).await
    }

    pub async fn start_with(cache: Arc<MachineCache>, limits: grpc::Limits) -> Self {
        let cluster = FakeCluster::ready();
        let metrics = Arc::new(Metrics::new("test"));
        let deps = grpc::Deps {
            cache: Arc::clone(&cache) as _,
            cluster: Arc::clone(&cluster) as _,
            metrics: Arc::clone(&metrics),
            limits,
        };
        let (grpc_listener, grpc_address) = listen().await;
        let (http_listener, http_address) = listen().await;
        let (stop_grpc, grpc_stopped) = stop_signal();
        let (stop_http, http_stopped) = stop_signal();
        let http_deps = http::Deps { cluster: Arc::clone(&cluster) as _, metrics: Arc::clone(&metrics) };
        let tasks = vec![
            tokio::spawn(grpc::serve(grpc_listener, deps, grpc_stopped)),
            tokio::spawn(http::serve(http_listener, http_deps, http_stopped)),
        ];
        let stop = vec![stop_grpc, stop_http];
        Self { cache, cluster, metrics, grpc_address, http_address, stop, tasks }
    }

    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc_address)).unwrap().connect_lazy()
    }

    pub fn cache_client(&self) -> CacheClient<Channel> {
        CacheClient::new(self.channel()).max_decoding_message_size(16 << 20)
    }

    /// A client that sends its deadline along and does not act on it, as tonic's own channel would.
    pub async fn patient_client(&self) -> CacheClient<Patient> {
        let stream = TcpStream::connect(&self.grpc_address).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        CacheClient::with_origin(Patient(sender), format!("http://{}", self.grpc_address).parse().unwrap())
    }

    pub fn cluster_client(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    /// Tells both ports to stop, without waiting.
    pub fn begin_stop(&mut self) {
        for stop in self.stop.drain(..) {
            let _ = stop.send(());
        }
    }

    /// Stops both ports and waits until everything has ended.
    pub async fn stop(mut self) {
        self.begin_stop();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn stop_signal() -> (oneshot::Sender<()>, impl Future<Output = ()> + Send + 'static) {
    let (stop, stopped) = oneshot::channel();
    (stop, async move {
        let _ = stopped.await;
    })
}

/// An error's code, reason and `applied`, as a client sees them.
pub fn verdict(status: &tonic::Status) -> (tonic::Code, String, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "larder");
    (status.code(), info.reason.clone(), info.metadata["applied"].clone())
}
