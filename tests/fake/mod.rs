//! A pretended cluster for the client's tests: the real protocol over real sockets on ports 0, a map behind it, and
//! failures made to order.
//!
//! Every node is a gRPC server behind a relay, so that a connection can be cut as a network or a dying process cuts it.
//! The nodes share one map, as if every write were replicated at once.

#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::unwrap_used)] // all of it is test

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use larder::proto::v1::{self as pb, cache_server, cluster_server};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

/// What happens to the next data request of a node, instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None: this one is answered.
    None,
    /// Refused, with the leader's name and address.
    NotLeader { leader: usize },
    /// Refused with this code and reason, and whether it was applied.
    Refuse(Code, &'static str, &'static str),
    /// Applied; the answer never comes.
    ApplyThenHang,
    /// Not applied; the answer never comes.
    Hang,
    /// Applied; then the connections are cut.
    ApplyThenCut,
    /// Not applied; the connections are cut.
    Cut,
    /// A read that finds nothing.
    Lose,
    /// A scan ends without `done` after so many chunks.
    CutScan(usize),
    /// A status as a proxy makes it: UNAVAILABLE without details.
    Bare,
}

/// The map that all nodes share.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) entries: BTreeMap<Bytes, (Bytes, u64)>,
    pub(crate) revision: u64,
}

/// The cluster.
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) store: Arc<Mutex<Store>>,
    pub(crate) leader: Arc<AtomicU64>,
    /// The members by id, and whether they vote.
    pub(crate) members: Arc<Mutex<BTreeMap<u64, bool>>>,
    pub(crate) nodes: Vec<Fake>,
}

/// A node.
pub(crate) struct Fake {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    inner: SocketAddr,
    pub(crate) faults: Arc<Mutex<VecDeque<Fault>>>,
    /// Data requests that arrived.
    pub(crate) requests: Arc<AtomicU64>,
    /// The `grpc-timeout` of the last data request.
    pub(crate) deadline: Arc<Mutex<Option<String>>>,
    relay: Arc<Mutex<CancellationToken>>,
    /// Holds the address of a killed node, so that no other test gets it meanwhile.
    held: Mutex<Option<TcpSocket>>,
    cut: Arc<Mutex<CancellationToken>>,
}

#[derive(Clone)]
struct Service {
    cluster_id: String,
    id: u64,
    addresses: Arc<Vec<SocketAddr>>,
    store: Arc<Mutex<Store>>,
    leader: Arc<AtomicU64>,
    members: Arc<Mutex<BTreeMap<u64, bool>>>,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    requests: Arc<AtomicU64>,
    deadline: Arc<Mutex<Option<String>>>,
    cut: Arc<Mutex<CancellationToken>>,
}

impl Cluster {
    /// So many nodes, ids from 1; the node `leader` (from 0) leads.
    pub(crate) async fn start(nodes: usize, leader: usize) -> Self {
        Self::named("0123456789abcdef0123456789abcdef", nodes, leader).await
    }

    /// The same, with an id.
    pub(crate) async fn named(id: &str, count: usize, leader: usize) -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        let leader = Arc::new(AtomicU64::new(leader as u64 + 1));
        let members: Arc<Mutex<BTreeMap<_, _>>> =
            Arc::new(Mutex::new((1..=count as u64).map(|id| (id, true)).collect()));
        let mut outer = Vec::new();
        for _ in 0..count {
            outer.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Arc<Vec<_>> =
            Arc::new(outer.iter().map(|listener| listener.local_addr().unwrap()).collect());
        let mut nodes = Vec::new();
        for (index, listener) in outer.into_iter().enumerate() {
            let service = Service {
                cluster_id: id.to_owned(),
                id: index as u64 + 1,
                addresses: Arc::clone(&addresses),
                store: Arc::clone(&store),
                leader: Arc::clone(&leader),
                members: Arc::clone(&members),
                faults: Arc::default(),
                requests: Arc::default(),
                deadline: Arc::default(),
                cut: Arc::default(),
            };
            nodes.push(Fake::start(service, listener).await);
        }
        Self { id: id.to_owned(), store, leader, members, nodes }
    }

    /// All endpoints, as the command line takes them.
    pub(crate) fn endpoints(&self) -> String {
        let list: Vec<_> = self.nodes.iter().map(|node| node.address.to_string()).collect();
        list.join(",")
    }

    /// What a key holds.
    pub(crate) fn value(&self, key: &str) -> Option<Bytes> {
        self.store.lock().unwrap().entries.get(key.as_bytes()).map(|(value, _)| value.clone())
    }

    /// The slots of the members, those of learners with a question mark.
    pub(crate) fn slots(&self) -> Vec<String> {
        let members = self.members.lock().unwrap();
        members.iter().map(|(id, voter)| format!("{}{}", id - 1, if *voter { "" } else { "?" })).collect()
    }

    /// How many changes were made.
    pub(crate) fn revision(&self) -> u64 {
        self.store.lock().unwrap().revision
    }

    /// Data requests that arrived, by node.
    pub(crate) fn requests(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.requests.load(Ordering::SeqCst)).collect()
    }
}

impl Fake {
    async fn start(service: Service, outer: TcpListener) -> Self {
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner_address = inner.local_addr().unwrap();
        let fake = Self {
            id: service.id,
            address: outer.local_addr().unwrap(),
            inner: inner_address,
            faults: Arc::clone(&service.faults),
            requests: Arc::clone(&service.requests),
            deadline: Arc::clone(&service.deadline),
            relay: Arc::default(),
            held: Mutex::default(),
            cut: Arc::clone(&service.cut),
        };
        let cache = cache_server::CacheServer::new(service.clone()).max_decoding_message_size(16 << 20);
        let server =
            Server::builder().add_service(cache).add_service(cluster_server::ClusterServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(inner)));
        fake.relay(outer);
        fake
    }

    fn relay(&self, outer: TcpListener) {
        let stop = self.relay.lock().unwrap().clone();
        let (inner, cut) = (self.inner, Arc::clone(&self.cut));
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = outer.accept() => accepted,
                };
                let Ok((mut from, _)) = accepted else { return };
                let (cut, stop) = (cut.lock().unwrap().clone(), stop.clone());
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(inner).await else { return };
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = stop.cancelled() => {}
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                    }
                });
            }
        });
    }

    /// Orders failures, one for each of the next data requests.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// Nobody answers at its address any more.
    pub(crate) async fn kill(&self) {
        self.relay.lock().unwrap().cancel();
        // Until the listener is really gone.
        let held = loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            if TcpStream::connect(self.address).await.is_err() && socket.bind(self.address).is_ok() {
                break socket;
            }
            tokio::task::yield_now().await;
        };
        *self.held.lock().unwrap() = Some(held);
    }

    /// It is back at its address.
    pub(crate) fn revive(&self) {
        *self.relay.lock().unwrap() = CancellationToken::new();
        let held = self.held.lock().unwrap().take().unwrap();
        self.relay(held.listen(64).unwrap());
    }
}

/// A status as a node makes it.
fn refusal(code: Code, reason: &str, applied: &str, leader: Option<(u64, SocketAddr)>) -> Status {
    let mut metadata = HashMap::from([("applied".to_owned(), applied.to_owned())]);
    if let Some((id, address)) = leader {
        metadata.insert("leader".to_owned(), id.to_string());
        metadata.insert("leader_slot".to_owned(), (id - 1).to_string());
        metadata.insert("leader_address".to_owned(), address.to_string());
    }
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "larder", metadata);
    if code == Code::ResourceExhausted {
        details.set_retry_info(Some(Duration::from_millis(5)));
    }
    Status::with_error_details(code, format!("{reason} as ordered"), details)
}

impl Service {
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            revision: self.store.lock().unwrap().revision,
            cluster_id: self.cluster_id.clone(),
            node: Some(self.node(self.id)),
            clock_ms: 1,
        })
    }

    fn node(&self, id: u64) -> pb::Node {
        pb::Node { id, slot: (id - 1).to_string() }
    }

    /// The id of a slot's member.
    fn member(&self, slot: &str) -> Result<u64, Status> {
        let id = slot.parse::<u64>().ok().map(|slot| slot + 1);
        id.filter(|id| self.members.lock().unwrap().contains_key(id))
            .ok_or_else(|| refusal(Code::InvalidArgument, "INVALID", "NO", None))
    }

    /// Does a request of data or of members, or what was ordered instead.
    async fn run<Q, A>(
        &self,
        request: Request<Q>,
        apply: impl FnOnce(&Self, Q) -> Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let deadline = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
        *self.deadline.lock().unwrap() = deadline.map(str::to_owned);
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            // A cut scan is the scan's own business, a lost key the read's.
            if matches!(faults.front(), Some(Fault::CutScan(_) | Fault::Lose)) {
                None
            } else {
                faults.pop_front()
            }
        };
        let request = request.into_inner();
        match fault {
            None | Some(Fault::None | Fault::CutScan(_) | Fault::Lose) => {
                apply(self, request).map(Response::new)
            }
            Some(Fault::NotLeader { leader }) => Err(refusal(
                Code::Unavailable,
                "NOT_LEADER",
                "NO",
                Some((leader as u64 + 1, self.addresses[leader])),
            )),
            Some(Fault::Refuse(code, reason, applied)) => Err(refusal(code, reason, applied, None)),
            Some(Fault::Bare) => Err(Status::unavailable("no healthy upstream")),
            Some(Fault::ApplyThenHang) => {
                let _ = apply(self, request);
                std::future::pending().await
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::ApplyThenCut) => {
                let _ = apply(self, request);
                self.cut_connections();
                std::future::pending().await
            }
            Some(Fault::Cut) => {
                self.cut_connections();
                std::future::pending().await
            }
        }
    }

    /// Whether this read is to find nothing.
    fn lost(&self) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let lost = faults.front() == Some(&Fault::Lose);
        if lost {
            faults.pop_front();
        }
        lost
    }

    fn cut_connections(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    fn get_now(&self, request: pb::GetRequest) -> Result<pb::GetResponse, Status> {
        if self.lost() {
            return Ok(pb::GetResponse { header: self.header(), ..Default::default() });
        }
        let found = self.store.lock().unwrap().entries.get(&request.key).cloned();
        let (value, version) = found.clone().unwrap_or_default();
        Ok(pb::GetResponse { header: self.header(), found: found.is_some(), value, version, ttl_ms: None })
    }

    fn set_now(&self, request: pb::SetRequest) -> Result<pb::SetResponse, Status> {
        use pb::condition::Condition::{IfAbsent, IfPresent, IfVersion};
        let (version, previous) = {
            let mut store = self.store.lock().unwrap();
            let present = store.entries.get(&request.key).cloned();
            let holds = match request.condition.and_then(|condition| condition.condition) {
                None => true,
                Some(IfAbsent(_)) => present.is_none(),
                Some(IfPresent(_)) => present.is_some(),
                Some(IfVersion(version)) => present.as_ref().is_some_and(|(_, now)| *now == version),
            };
            if !holds {
                return Err(refusal(Code::FailedPrecondition, "CONDITION_FAILED", "NO", None));
            }
            store.revision += 1;
            let version = store.revision;
            store.entries.insert(request.key, (request.value, version));
            (version, present.filter(|_| request.return_previous))
        };
        Ok(pb::SetResponse {
            header: self.header(),
            version,
            previous: previous.map(|(value, version)| pb::Previous { value, version }),
        })
    }

    fn delete_now(&self, request: pb::DeleteRequest) -> Result<pb::DeleteResponse, Status> {
        let previous = {
            let mut store = self.store.lock().unwrap();
            let version = store.entries.get(&request.key).map(|(_, version)| *version);
            if request.if_version > 0 && version != Some(request.if_version) {
                return Err(refusal(Code::FailedPrecondition, "CONDITION_FAILED", "NO", None));
            }
            let previous = store.entries.remove(&request.key);
            store.revision += u64::from(previous.is_some());
            previous
        };
        let deleted = previous.is_some();
        let previous = previous.filter(|_| request.return_previous);
        Ok(pb::DeleteResponse {
            header: self.header(),
            deleted,
            previous: previous.map(|(value, version)| pb::Previous { value, version }),
        })
    }

    fn increment_now(&self, request: pb::IncrementRequest) -> Result<pb::IncrementResponse, Status> {
        let (value, version) = {
            let mut store = self.store.lock().unwrap();
            let now = match store.entries.get(&request.key) {
                None => request.initial.unwrap_or(0),
                Some((value, _)) => std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| refusal(Code::FailedPrecondition, "NOT_A_NUMBER", "NO", None))?,
            };
            let sum = now
                .checked_add(request.delta)
                .ok_or_else(|| refusal(Code::FailedPrecondition, "OUT_OF_RANGE", "NO", None))?;
            store.revision += 1;
            let version = store.revision;
            store.entries.insert(request.key, (Bytes::from(sum.to_string()), version));
            (sum, version)
        };
        Ok(pb::IncrementResponse { header: self.header(), value, version })
    }

    fn batch_now(&self, request: pb::BatchRequest) -> Result<pb::BatchResponse, Status> {
        use pb::{batch_operation::Operation as In, batch_result::Result as Out};
        let results = request.operations.into_iter().map(|operation| {
            let result = match operation.operation.unwrap() {
                In::Get(request) => self.get_now(request).map(Out::Get),
                In::Set(request) => self.set_now(request).map(Out::Set),
                In::Delete(request) => self.delete_now(request).map(Out::Delete),
                In::Increment(request) => self.increment_now(request).map(Out::Increment),
            };
            let result = result.unwrap_or_else(|status| {
                Out::Error(pb::BatchError {
                    code: status.code().into(),
                    reason: status.get_details_error_info().map(|info| info.reason).unwrap_or_default(),
                    message: status.message().to_owned(),
                })
            });
            pb::BatchResult { result: Some(result) }
        });
        let results = results.collect();
        Ok(pb::BatchResponse { header: self.header(), results })
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<pb::ScanResponse, Status>> + Send>>;

#[tonic::async_trait]
impl cache_server::Cache for Service {
    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        self.run(request, Self::get_now).await
    }

    async fn set(&self, request: Request<pb::SetRequest>) -> Result<Response<pb::SetResponse>, Status> {
        self.run(request, Self::set_now).await
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        self.run(request, Self::delete_now).await
    }

    async fn increment(
        &self,
        request: Request<pb::IncrementRequest>,
    ) -> Result<Response<pb::IncrementResponse>, Status> {
        self.run(request, Self::increment_now).await
    }

    async fn batch(&self, request: Request<pb::BatchRequest>) -> Result<Response<pb::BatchResponse>, Status> {
        self.run(request, Self::batch_now).await
    }

    type ScanStream = Chunks;

    /// Three keys a chunk.
    async fn scan(&self, request: Request<pb::ScanRequest>) -> Result<Response<Chunks>, Status> {
        let request = self.run(request, |_, request| Ok(request)).await?.into_inner();
        let entries: Vec<_> = {
            let store = self.store.lock().unwrap();
            let wanted = store.entries.iter().filter(|(key, _)| {
                key.starts_with(&request.prefix)
                    && (request.start_after.is_empty() || **key > request.start_after)
            });
            let entries = wanted.map(|(key, (value, version))| pb::Entry {
                key: key.clone(),
                value: if request.keys_only { Bytes::new() } else { value.clone() },
                version: *version,
                ttl_ms: None,
            });
            let most = if request.limit == 0 { usize::MAX } else { request.limit as usize };
            entries.take(most).collect()
        };
        let header = self.header();
        let mut chunks: Vec<_> = entries
            .chunks(3)
            .map(|entries| pb::ScanResponse {
                header: header.clone(),
                entries: entries.to_vec(),
                done: false,
            })
            .collect();
        chunks.push(pb::ScanResponse { header, entries: Vec::new(), done: true });
        let mut faults = self.faults.lock().unwrap();
        if let Some(Fault::CutScan(after)) = faults.front() {
            chunks.truncate(*after);
            faults.pop_front();
        }
        Ok(Response::new(stream::iter(chunks.into_iter().map(Ok)).boxed()))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Service {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let leader = self.leader.load(Ordering::SeqCst);
        let role = match self.members.lock().unwrap().get(&self.id) {
            None => pb::Role::None,
            Some(false) => pb::Role::Learner,
            Some(true) if leader == self.id => pb::Role::Leader,
            Some(true) => pb::Role::Follower,
        };
        let (keys, revision) = {
            let store = self.store.lock().unwrap();
            (store.entries.len() as u64, store.revision)
        };
        Ok(Response::new(pb::StatusResponse {
            header: self.header(),
            role: role.into(),
            term: 7,
            leader: Some(self.node(leader)),
            last_log_index: revision + 1,
            committed_index: revision + 1,
            applied_index: revision,
            keys,
            ready: true,
            release: "0.1.0".into(),
            ..pb::StatusResponse::default()
        }))
    }

    async fn members(&self, _: Request<pb::MembersRequest>) -> Result<Response<pb::MembersResponse>, Status> {
        let leader = self.leader.load(Ordering::SeqCst);
        let members = self.members.lock().unwrap().clone();
        let members = members.into_iter().map(|(id, voter)| pb::Member {
            node: Some(self.node(id)),
            voter,
            leader: id == leader,
            peer_address: format!("peer-{}:7401", id - 1),
            client_address: self.addresses[id as usize - 1].to_string(),
            matched_index: None,
        });
        let members = members.collect();
        Ok(Response::new(pb::MembersResponse { header: self.header(), members }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let slot = request.into_inner().slot;
        let now = self.leader.load(Ordering::SeqCst);
        let count = self.addresses.len() as u64;
        let next = if slot.is_empty() {
            now % count + 1
        } else {
            match slot.parse::<u64>() {
                Ok(slot) if slot < count => slot + 1,
                _ => return Err(refusal(Code::FailedPrecondition, "NOT_A_VOTER", "NO", None)),
            }
        };
        self.leader.store(next, Ordering::SeqCst);
        Ok(Response::new(pb::TransferLeaderResponse { header: self.header(), leader: Some(self.node(next)) }))
    }

    /// The leader is the one that is alive here.
    async fn retire_member(
        &self,
        request: Request<pb::RetireMemberRequest>,
    ) -> Result<Response<pb::RetireMemberResponse>, Status> {
        let retire = |fake: &Self, request: pb::RetireMemberRequest| {
            let id = fake.member(&request.slot)?;
            if id == fake.leader.load(Ordering::SeqCst) {
                return Err(refusal(Code::InvalidArgument, "INVALID", "NO", None));
            }
            fake.members.lock().unwrap().remove(&id);
            Ok(pb::RetireMemberResponse { header: fake.header() })
        };
        self.run(request, retire).await
    }

    async fn promote_member(
        &self,
        request: Request<pb::PromoteMemberRequest>,
    ) -> Result<Response<pb::PromoteMemberResponse>, Status> {
        let promote = |fake: &Self, request: pb::PromoteMemberRequest| {
            let id = fake.member(&request.slot)?;
            fake.members.lock().unwrap().insert(id, true);
            Ok(pb::PromoteMemberResponse { header: fake.header() })
        };
        self.run(request, promote).await
    }

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveResponse>, Status> {
        let leave = |fake: &Self, _| {
            fake.members.lock().unwrap().remove(&fake.id);
            Ok(pb::LeaveResponse { header: fake.header() })
        };
        self.run(request, leave).await
    }

    async fn recover(
        &self,
        request: Request<pb::RecoverRequest>,
    ) -> Result<Response<pb::RecoverResponse>, Status> {
        let header = self.header();
        let present = header.as_ref().map(|header| header.cluster_id.clone()).unwrap_or_default();
        if request.into_inner().cluster_id != present {
            return Err(refusal(Code::InvalidArgument, "INVALID", "NO", None));
        }
        Ok(Response::new(pb::RecoverResponse {
            header,
            cluster_id: "ab".repeat(16),
            revision: 3,
            keys: 2,
            last_log_index: 12,
        }))
    }
}
