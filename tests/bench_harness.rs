//! The load harness: what it sends is determined by the seed, what it measures is what a waiting client would see, and
//! what it reports adds up.

#![allow(clippy::unwrap_used)] // also in what the tests stand on

#[path = "../benches/compare/http.rs"]
mod http;
#[path = "../benches/compare/ratio.rs"]
mod ratio;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::Parser as _;
use larder::{
    bench::{
        Distribution, ErrorKind, GrpcConnection, LarderOptions, Operation, Options, Pacing, ReadConsistency,
        Source, Target, Workload, WorkloadKind, connect, run,
    },
    error::Error,
    proto::v1::{
        self as pb, batch_operation, batch_result,
        cache_server::{Cache, CacheServer},
        cluster_server::{Cluster, ClusterServer},
    },
    time::{Clock, SystemClock},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status};

fn workload(kind: WorkloadKind) -> Workload {
    Workload {
        kind,
        get_ratio: 0.5,
        keys: 1000,
        distribution: Distribution::Uniform,
        value_bytes: 100,
        batch: None,
        seed: 7,
    }
}

fn options(workload: Workload, pacing: Pacing) -> Options {
    Options {
        target: "a fake".into(),
        workload,
        pacing,
        clients: 4,
        warm_up: Duration::from_millis(20),
        duration: Duration::from_millis(200),
        timeout: Duration::from_secs(10),
    }
}

fn take(source: &Source, client: usize, count: usize) -> Vec<Operation> {
    let mut stream = source.stream(client);
    (0..count).map(|_| stream.next_operation()).collect()
}

fn key(operation: &Operation) -> Bytes {
    match operation {
        Operation::Set { key, .. } | Operation::Get { key } => key.clone(),
    }
}

#[test]
fn a_stream_is_determined_by_workload_seed_and_client() {
    let source = || Source::new(workload(WorkloadKind::Mixed)).unwrap();
    let other_seed = Source::new(Workload { seed: 8, ..workload(WorkloadKind::Mixed) }).unwrap();
    let operations = take(&source(), 3, 500);
    assert_eq!(operations, take(&source(), 3, 500));
    assert_ne!(operations, take(&source(), 4, 500));
    assert_ne!(operations, take(&other_seed, 3, 500));
}

#[test]
fn the_mix_and_the_sizes_are_as_asked() {
    let operations = take(&Source::new(workload(WorkloadKind::Mixed)).unwrap(), 0, 10_000);
    let gets = operations.iter().filter(|operation| matches!(operation, Operation::Get { .. })).count();
    assert!((4_700..5_300).contains(&gets), "{gets} gets of 10,000 at a share of one half");
    for operation in &operations {
        assert_eq!(key(operation).len(), 16);
        if let Operation::Set { value, .. } = operation {
            assert_eq!(value.len(), 100);
        }
    }
    let only = |kind| take(&Source::new(workload(kind)).unwrap(), 0, 100);
    assert!(only(WorkloadKind::Set).iter().all(|operation| matches!(operation, Operation::Set { .. })));
    assert!(only(WorkloadKind::Get).iter().all(|operation| matches!(operation, Operation::Get { .. })));
}

#[test]
fn zipf_prefers_few_keys_and_uniform_none() {
    let share_of_the_first = |distribution| {
        let source = Source::new(Workload { distribution, ..workload(WorkloadKind::Get) }).unwrap();
        let mut counts = BTreeMap::<Bytes, usize>::new();
        for operation in take(&source, 0, 20_000) {
            *counts.entry(key(&operation)).or_default() += 1;
        }
        let first = counts.get(&Bytes::from_static(b"key-000000000000")).copied().unwrap_or(0);
        (first, counts.len())
    };
    let (zipf_first, _) = share_of_the_first(Distribution::Zipf { theta: 0.99 });
    let (uniform_first, uniform_keys) = share_of_the_first(Distribution::Uniform);
    // 1 / H(1000, 0.99) is about 13 %; one in a thousand is 20.
    assert!((2_000..3_400).contains(&zipf_first), "the first key was drawn {zipf_first} times");
    assert!(uniform_first < 60, "the first key was drawn {uniform_first} times");
    assert_eq!(uniform_keys, 1000);
}

#[test]
fn what_is_past_a_limit_is_refused_with_a_sentence() {
    let base = || workload(WorkloadKind::Set);
    let wrong = [
        Workload { keys: 0, ..base() },
        Workload { keys: u64::MAX, ..base() },
        Workload { value_bytes: (1 << 20) + 1, ..base() },
        Workload { get_ratio: f64::NAN, ..base() },
        Workload { distribution: Distribution::Zipf { theta: -1.0 }, ..base() },
        Workload { distribution: Distribution::Zipf { theta: f64::INFINITY }, ..base() },
        Workload { batch: Some(0), ..base() },
        Workload { batch: Some(1024), value_bytes: 1 << 20, ..base() },
    ];
    for workload in wrong {
        assert!(matches!(Source::new(workload.clone()), Err(Error::Invalid(_))), "{workload:?}");
    }
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let pacing = Pacing::Open { rate, max_in_flight: 1 };
        assert!(matches!(options(base(), pacing).validate(), Err(Error::Invalid(_))), "{rate}");
    }
    let no_clients = Options { clients: 0, ..options(base(), Pacing::Closed) };
    assert!(matches!(no_clients.validate(), Err(Error::Invalid(_))));
}

/// Answers at once, except that what comes before `stalled_until` keeps the whole runtime busy until then: a server and a
/// sender that stand still together, which is where closed loops hide a stall.
#[derive(Clone)]
struct Stalling {
    clock: Arc<SystemClock>,
    stalled_until: Duration,
}

impl Target for Stalling {
    async fn set(&mut self, _: Bytes, _: Bytes) -> Result<(), ErrorKind> {
        while self.clock.monotonic() < self.stalled_until {
            std::hint::spin_loop();
        }
        Ok(())
    }

    async fn get(&mut self, _: Bytes) -> Result<(), ErrorKind> {
        Ok(())
    }

    async fn batch(&mut self, _: Vec<Operation>) -> Result<(), ErrorKind> {
        Ok(())
    }
}

#[tokio::test]
async fn the_open_loop_charges_a_stall_to_every_operation_it_delayed() {
    let clock = Arc::new(SystemClock::new());
    let stalled_until = clock.monotonic() + Duration::from_millis(400);
    let target = Stalling { clock, stalled_until };
    let pacing = Pacing::Open { rate: 1000.0, max_in_flight: 10_000 };
    let options = Options {
        clients: 1,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(800),
        ..options(workload(WorkloadKind::Set), pacing)
    };
    let report = run(&[target], &options, &mut |_| {}).await.unwrap();
    // About 400 operations were due while it stood still, and waited 0 to 400 ms; the other 400 did not wait. Measured
    // from when they left, only the first of them would show.
    let latency = report.latency_ms;
    assert!(latency.max >= 300.0, "{latency:?}");
    assert!(latency.p90 >= 150.0, "{latency:?}");
    assert!(latency.count >= 500, "{latency:?}");
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

/// Answers nothing until `open` says so.
#[derive(Clone)]
struct Gate {
    open: watch::Receiver<bool>,
    sent: Arc<AtomicU64>,
}

impl Target for Gate {
    async fn set(&mut self, _: Bytes, _: Bytes) -> Result<(), ErrorKind> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.open.wait_for(|open| *open).await.map(drop).map_err(|_| ErrorKind("closed"))
    }

    async fn get(&mut self, _: Bytes) -> Result<(), ErrorKind> {
        Ok(())
    }

    async fn batch(&mut self, _: Vec<Operation>) -> Result<(), ErrorKind> {
        Ok(())
    }
}

#[tokio::test]
async fn the_open_loop_bounds_what_is_in_flight_and_counts_the_rest_as_overload() {
    let (opener, open) = watch::channel(false);
    let gate = Gate { open, sent: Arc::default() };
    let sent = gate.sent.clone();
    let pacing = Pacing::Open { rate: 2000.0, max_in_flight: 10 };
    let options = Options { warm_up: Duration::ZERO, ..options(workload(WorkloadKind::Set), pacing) };
    let mut in_flight = 0;
    // The first progress report comes when the measured time is over: open the gate then.
    let report = run(&[gate], &options, &mut |_| {
        in_flight = sent.load(Ordering::Relaxed);
        opener.send_replace(true);
    })
    .await
    .unwrap();
    assert_eq!(in_flight, 10);
    assert_eq!(report.operations, 0, "nothing was done within the measured time");
    assert!(report.latency_ms.count >= 10, "those in flight at the end count in the latencies: {report:?}");
    assert!(report.latency_ms.max >= 100.0, "{:?}", report.latency_ms);
    assert!(report.errors["overload"] > 20, "{:?}", report.errors);
}

#[tokio::test]
async fn what_is_never_answered_is_counted_as_timeout() {
    let (_opener, open) = watch::channel(false);
    let gate = Gate { open, sent: Arc::default() };
    let base = options(workload(WorkloadKind::Set), Pacing::Closed);
    let options = Options { timeout: Duration::ZERO, ..base };
    let report = run(&[gate], &options, &mut |_| {}).await.unwrap();
    assert_eq!(report.errors, BTreeMap::from([("timeout", 4)]));
}

/// A Larder of one node, as far as the harness can see: a map, and every tenth Set is refused if it is `faulty`.
#[derive(Clone, Default)]
struct Fake {
    map: Arc<Mutex<BTreeMap<Bytes, Bytes>>>,
    faulty: bool,
    /// Says that it follows, and that this is where the leader's clients connect.
    leader_at: Option<String>,
    sets: Arc<AtomicU64>,
    batches: Arc<AtomicU64>,
    reads: Arc<Mutex<Vec<i32>>>,
}

impl Fake {
    fn do_get(&self, request: pb::GetRequest) -> pb::GetResponse {
        let value = self.map.lock().unwrap().get(&request.key).cloned();
        pb::GetResponse { found: value.is_some(), value: value.unwrap_or_default(), ..Default::default() }
    }

    fn do_set(&self, request: pb::SetRequest) -> Result<pb::SetResponse, Status> {
        let number = self.sets.fetch_add(1, Ordering::Relaxed);
        if self.faulty && number % 10 == 9 {
            return Err(Status::unavailable("no leader"));
        }
        self.map.lock().unwrap().insert(request.key, request.value);
        Ok(pb::SetResponse { version: number + 1, ..Default::default() })
    }
}

#[tonic::async_trait]
impl Cache for Fake {
    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let request = request.into_inner();
        let consistency = request.read.map(|read| read.consistency).unwrap_or_default();
        let mut reads = self.reads.lock().unwrap();
        if !reads.contains(&consistency) {
            reads.push(consistency);
        }
        drop(reads);
        Ok(Response::new(self.do_get(request)))
    }

    async fn set(&self, request: Request<pb::SetRequest>) -> Result<Response<pb::SetResponse>, Status> {
        self.do_set(request.into_inner()).map(Response::new)
    }

    async fn delete(&self, _: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn increment(
        &self,
        _: Request<pb::IncrementRequest>,
    ) -> Result<Response<pb::IncrementResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn batch(&self, request: Request<pb::BatchRequest>) -> Result<Response<pb::BatchResponse>, Status> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        let results = request.into_inner().operations.into_iter().map(|operation| {
            let result = match operation.operation {
                Some(batch_operation::Operation::Get(get)) => batch_result::Result::Get(self.do_get(get)),
                Some(batch_operation::Operation::Set(set)) => match self.do_set(set) {
                    Ok(set) => batch_result::Result::Set(set),
                    Err(status) => batch_result::Result::Error(pb::BatchError {
                        code: status.code() as i32,
                        ..Default::default()
                    }),
                },
                _ => batch_result::Result::Error(pb::BatchError {
                    code: Code::Unimplemented as i32,
                    ..Default::default()
                }),
            };
            pb::BatchResult { result: Some(result) }
        });
        Ok(Response::new(pb::BatchResponse { header: None, results: results.collect() }))
    }

    type ScanStream = tokio_stream::Empty<Result<pb::ScanResponse, Status>>;

    async fn scan(&self, _: Request<pb::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        Err(Status::unimplemented("not used"))
    }
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let role = if self.leader_at.is_some() { pb::Role::Follower } else { pb::Role::Leader };
        Ok(Response::new(pb::StatusResponse {
            role: role.into(),
            leader: Some(pb::Node { id: 1, slot: "0".into() }),
            ..Default::default()
        }))
    }

    async fn members(&self, _: Request<pb::MembersRequest>) -> Result<Response<pb::MembersResponse>, Status> {
        let members = vec![pb::Member {
            node: Some(pb::Node { id: 1, slot: "0".into() }),
            client_address: self.leader_at.clone().unwrap_or_default(),
            ..Default::default()
        }];
        Ok(Response::new(pb::MembersResponse { header: None, members }))
    }

    async fn transfer_leader(
        &self,
        _: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn retire_member(
        &self,
        _: Request<pb::RetireMemberRequest>,
    ) -> Result<Response<pb::RetireMemberResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn promote_member(
        &self,
        _: Request<pb::PromoteMemberRequest>,
    ) -> Result<Response<pb::PromoteMemberResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn recover(&self, _: Request<pb::RecoverRequest>) -> Result<Response<pb::RecoverResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }
}

/// Serves it on a port of its own, and answers `host:port`.
async fn serve(fake: &Fake) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(CacheServer::new(fake.clone()))
        .add_service(ClusterServer::new(fake.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn larder(endpoints: Vec<String>) -> LarderOptions {
    LarderOptions {
        endpoints,
        connections: 2,
        spread: false,
        consistency: ReadConsistency::Linearizable,
        timeout: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn errors_are_counted_by_kind_and_the_rest_is_done() {
    let fake = Fake { faulty: true, ..Fake::default() };
    let connected = connect(&larder(vec![serve(&fake).await])).await.unwrap();
    let options = options(workload(WorkloadKind::Set), Pacing::Closed);
    let mut reported = 0;
    let report = run(&connected.connections, &options, &mut |_| reported += 1).await.unwrap();
    assert!(report.operations > 0);
    assert_eq!(report.errors.keys().copied().collect::<Vec<_>>(), ["unavailable"]);
    assert!(report.errors["unavailable"] > 0);
    assert!(reported >= 2, "the warm-up and the measured time are both reported");
}

#[tokio::test]
async fn gets_find_what_was_loaded_and_ask_as_fresh_as_told() {
    for (consistency, expected) in [
        (ReadConsistency::Linearizable, pb::Consistency::Linearizable),
        (ReadConsistency::Local, pb::Consistency::Local),
    ] {
        let fake = Fake::default();
        let how = LarderOptions { consistency, ..larder(vec![serve(&fake).await]) };
        let connected = connect(&how).await.unwrap();
        let options = options(workload(WorkloadKind::Get), Pacing::Closed);
        let report = run(&connected.connections, &options, &mut |_| {}).await.unwrap();
        assert!(report.operations > 0);
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(fake.map.lock().unwrap().len(), 1000);
        assert_eq!(fake.batches.load(Ordering::Relaxed), 16, "1,000 keys by 64");
        assert_eq!(*fake.reads.lock().unwrap(), [expected as i32]);
    }
}

#[tokio::test]
async fn batches_are_counted_by_operation_and_named_as_such() {
    let fake = Fake::default();
    let connected = connect(&larder(vec![serve(&fake).await])).await.unwrap();
    let workload = Workload { batch: Some(10), ..workload(WorkloadKind::Mixed) };
    let report = run(&connected.connections, &options(workload, Pacing::Closed), &mut |_| {}).await.unwrap();
    assert_eq!(report.name, "mixed-batch-10");
    assert_eq!(report.latency_ms_by_request.keys().copied().collect::<Vec<_>>(), ["batch"]);
    assert_eq!(report.operations % 10, 0);
    assert!(report.latency_ms.count * 10 >= report.operations && report.operations > 0, "{report:?}");
}

#[tokio::test]
async fn the_leader_is_found_through_a_follower_and_past_a_dead_endpoint() {
    let leader = Fake::default();
    let address = serve(&leader).await;
    let follower = Fake { leader_at: Some(address.clone()), ..Fake::default() };
    // A listener that was closed: nobody answers there.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let connected = connect(&larder(vec![dead, serve(&follower).await])).await.unwrap();
    assert!(connected.target.contains(&address), "{}", connected.target);
    let options = options(workload(WorkloadKind::Set), Pacing::Closed);
    let report = run(&connected.connections, &options, &mut |_| {}).await.unwrap();
    assert!(report.operations > 0);
    assert_eq!(follower.sets.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_largest_values_pass_in_both_directions() {
    let fake = Fake::default();
    let connected = connect(&larder(vec![serve(&fake).await])).await.unwrap();
    let workload = Workload { value_bytes: 1 << 20, keys: 3, ..workload(WorkloadKind::Mixed) };
    let report = run(&connected.connections, &options(workload, Pacing::Closed), &mut |_| {}).await.unwrap();
    assert!(report.latency_ms.count > 0 && report.errors.is_empty(), "{report:?}");
}

#[tokio::test]
async fn a_broken_connection_is_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder().add_service(CacheServer::new(Fake::default()));
    // The first connection is closed as soon as it is made.
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener).skip(1)));
    let mut connection = GrpcConnection::open(&address, Duration::from_secs(10)).await.unwrap();
    let mut sibling = connection.clone();
    let get = connection.method("/larder.v1.Cache/Get");
    let request = pb::GetRequest { key: Bytes::from_static(b"k"), ..Default::default() };
    // Depending on when it is noticed, the first call fails or already goes over the new connection.
    for (sender, calls) in [(&mut connection, 2), (&mut sibling, 2)] {
        let mut last = Err(ErrorKind::TIMEOUT);
        for _ in 0..calls {
            last = sender.unary::<_, pb::GetResponse>(&get, &request).await;
        }
        assert!(last.is_ok(), "{last:?}");
    }
    let delete = connection.method("/larder.v1.Cache/Delete");
    let refused = connection.unary::<_, pb::DeleteResponse>(&delete, &pb::DeleteRequest::default()).await;
    assert_eq!(refused, Err(ErrorKind("unimplemented")));
}

#[tokio::test]
async fn spread_connections_go_to_every_endpoint() {
    let fakes = [Fake::default(), Fake::default()];
    let endpoints = vec![serve(&fakes[0]).await, serve(&fakes[1]).await];
    let connected = connect(&LarderOptions { spread: true, ..larder(endpoints) }).await.unwrap();
    run(&connected.connections, &options(workload(WorkloadKind::Set), Pacing::Closed), &mut |_| {})
        .await
        .unwrap();
    assert!(fakes.iter().all(|fake| fake.sets.load(Ordering::Relaxed) > 0));
}

#[tokio::test]
async fn a_wrong_endpoint_is_told_at_once() {
    for wrong in ["", "127.0.0.1", "https://127.0.0.1:1", "a b:1"] {
        let result = connect(&larder(vec![wrong.to_owned()])).await;
        assert!(matches!(result, Err(Error::Invalid(_))), "{wrong:?}: {result:?}");
    }
}

#[tokio::test]
async fn the_report_has_the_promised_shape() {
    let fake = Fake::default();
    let connected = connect(&larder(vec![serve(&fake).await])).await.unwrap();
    let options = options(workload(WorkloadKind::Mixed), Pacing::Closed);
    let report = run(&connected.connections, &options, &mut |_| {}).await.unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["name"], "mixed");
    for number in ["throughput_ops_per_s", "measured_s"] {
        assert!(json[number].as_f64().unwrap() > 0.0, "{number}");
    }
    for field in ["count", "mean", "p50", "p90", "p99", "p99_9", "max"] {
        for latency in [
            &json["latency_ms"],
            &json["latency_ms_by_request"]["set"],
            &json["latency_ms_by_request"]["get"],
        ] {
            assert!(latency[field].is_number(), "{field} in {latency}");
        }
    }
    assert!(json["errors"].as_object().unwrap().is_empty());
    assert_eq!(json["conditions"]["workload"]["seed"], 7);
    assert_eq!(json["conditions"]["workload"]["distribution"], "uniform");
    assert_eq!(json["conditions"]["pacing"]["loop"], "closed");
    assert_eq!(json["conditions"]["duration"], 0.2);
    let table = report.to_string();
    for word in ["p99.9", "4 clients on 2 connections", "seed 7", "no errors"] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
}

#[test]
fn ratios_are_of_medians_and_their_spread_is_of_rounds() {
    let samples = |larder: [f64; 3], peer: [f64; 3]| ratio::Samples {
        name: "set".into(),
        unit: "ops/s",
        clients: 64,
        larder: larder.into(),
        peer: peer.into(),
    };
    let entry = samples([300.0, 100.0, 200.0], [100.0, 50.0, 50.0]).entry("etcd").unwrap();
    assert_eq!((entry.larder, entry.peer, entry.ratio), (200.0, 50.0, 4.0));
    assert_eq!(entry.spread, [2.0, 4.0]);
    let json = serde_json::to_value(&entry).unwrap();
    let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = ["name", "unit", "clients", "larder", "peer", "peer_name", "ratio", "spread"];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert!(json["clients"].is_u64() && json["peer_name"] == "etcd");
    // Nothing measured on one side is no ratio at all.
    let none = ratio::Samples { peer: vec![], ..samples([1.0; 3], [1.0; 3]) };
    assert!(none.entry("etcd").is_none());
    assert!(ratio::table(std::slice::from_ref(&entry), "etcd").to_string().contains("2.00 to 4.00"));
    let svg = ratio::chart(&[entry], "etcd");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("set"));
}

#[derive(Debug, clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    bench: larder::cmd::bench::Args,
}

#[tokio::test]
async fn the_command_runs_and_writes_its_report() {
    let fake = Fake::default();
    let endpoint = serve(&fake).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    let mut line: Vec<_> =
        "bench --workload mixed --get-ratio 0.3 --keys 50 --value-size 10 --distribution zipf \
        --rate 500 --clients 3 --connections 1 --warm-up 10ms --duration 150ms --seed 9 --report"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    line.push(file.display().to_string());
    let args = CommandLine::try_parse_from(line).unwrap().bench;
    larder::cmd::bench::run(&args, vec![endpoint], Duration::from_secs(10), true).await.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(json["conditions"]["pacing"]["rate"], 500.0);
    assert_eq!(json["conditions"]["workload"]["distribution"], "zipf(0.99)");
    assert!(json["operations"].as_u64().unwrap() > 0);
    // A bad flag is told before anybody is connected to.
    let args = CommandLine::try_parse_from(["bench", "--keys", "0"]).unwrap().bench;
    let wrong = larder::cmd::bench::run(&args, vec![], Duration::from_secs(10), false).await;
    assert!(matches!(&wrong, Err(Error::Invalid(text)) if text.contains("key count")), "{wrong:?}");
}

#[test]
fn metrics_are_summed_over_labels_and_not_over_names() {
    let text = "# TYPE larder_log_sync counter\nlarder_log_sync_total 3\nlarder_log_sync_commands_total 40\n\
                larder_requests_total{kind=\"set\",code=\"}\"} 5\nlarder_requests_total{kind=\"get\"} 2 1700000000\n";
    assert_eq!(http::metric(text, "larder_log_sync_total"), Some(3.0));
    assert_eq!(http::metric(text, "larder_requests_total"), Some(7.0));
    assert_eq!(http::metric(text, "larder_log_sync"), None);
}

#[tokio::test]
async fn a_node_is_asked_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/readyz", axum::routing::get(|| async { "ready" }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert_eq!(http::get(address, "/readyz").await.unwrap(), (200, "ready".to_owned()));
    assert_eq!(http::get(address, "/other").await.unwrap().0, 404);
}
