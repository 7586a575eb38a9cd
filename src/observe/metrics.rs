//! The node's numbers, in one registry.
//!
//! Every name an operator can put into a dashboard is in this file. A counter's handle is resolved once: counting a
//! request is an atomic addition and one short lock for the histogram, without a look-up by label.
//!
//! Not here: percentiles (the histograms' buckets let Prometheus compute them) and anything by key or by client
//! (unbounded labels).

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

/// The content type of [`Metrics::encode`]: OpenMetrics text, which Prometheus reads.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the request histogram, in seconds: from a local read to the longest deadline.
const REQUEST_SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Bounds of the sync histogram, in seconds: from a disk that only says it wrote to one that is stuck.
const SYNC_SECONDS: [f64; 15] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// gRPC's codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What kind of request is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestMethod {
    /// Cache.Get
    Get,
    /// Cache.Set
    Set,
    /// Cache.Delete
    Delete,
    /// Cache.Increment
    Increment,
    /// Cache.Batch
    Batch,
    /// Cache.Scan, counted when the stream ends.
    Scan,
    /// Cluster.Status
    Status,
    /// Cluster.Members
    Members,
    /// Cluster.TransferLeader
    TransferLeader,
    /// Cluster.RetireMember
    RetireMember,
    /// Cluster.PromoteMember
    PromoteMember,
    /// Cluster.Leave
    Leave,
    /// Cluster.Recover
    Recover,
    /// A path that is no method.
    Unknown,
}

impl RequestMethod {
    const ALL: [Self; 14] = [
        Self::Get,
        Self::Set,
        Self::Delete,
        Self::Increment,
        Self::Batch,
        Self::Scan,
        Self::Status,
        Self::Members,
        Self::TransferLeader,
        Self::RetireMember,
        Self::PromoteMember,
        Self::Leave,
        Self::Recover,
        Self::Unknown,
    ];

    /// The value of the label `method`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::Set => "Set",
            Self::Delete => "Delete",
            Self::Increment => "Increment",
            Self::Batch => "Batch",
            Self::Scan => "Scan",
            Self::Status => "Status",
            Self::Members => "Members",
            Self::TransferLeader => "TransferLeader",
            Self::RetireMember => "RetireMember",
            Self::PromoteMember => "PromoteMember",
            Self::Leave => "Leave",
            Self::Recover => "Recover",
            Self::Unknown => "unknown",
        }
    }
}

/// How a snapshot came to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Written from this node's own state.
    Built,
    /// Received from the leader and put in the state's place.
    Installed,
    /// Sent to a follower.
    Sent,
}

type Labels = [(&'static str, &'static str); 1];
type MethodCode = [(&'static str, &'static str); 2];
type GaugeU64 = Gauge<u64, AtomicU64>;

/// Handles for one kind of request: a counter a code, made when the code first occurs.
#[derive(Debug)]
struct Requests {
    by_code: [OnceLock<Counter>; CODES.len()],
    seconds: Histogram,
}

/// The Raft gauges, set together from the node's status.
#[derive(Debug, Default)]
pub struct RaftGauges {
    /// `larder_raft_term`
    pub term: GaugeU64,
    /// `larder_raft_applied_index`
    pub applied_index: GaugeU64,
    /// `larder_raft_committed_index`
    pub committed_index: GaugeU64,
    /// `larder_raft_last_log_index`
    pub last_log_index: GaugeU64,
    /// `larder_raft_lag`: committed and not yet applied here, in entries.
    pub lag: GaugeU64,
    role: Family<Labels, Gauge<i64, AtomicI64>>,
}

impl RaftGauges {
    /// The values of the label `role`.
    pub const ROLES: [&'static str; 5] = ["leader", "follower", "candidate", "learner", "none"];

    /// Sets `larder_raft_role` to 1 for one of [`Self::ROLES`] and to 0 for the others.
    pub fn set_role(&self, role: &str) {
        for name in Self::ROLES {
            self.role.get_or_create(&[("role", name)]).set(i64::from(name == role));
        }
    }
}

/// The gauges of the replicated state, set together from the node's status.
#[derive(Debug, Default)]
pub struct StateGauges {
    /// `larder_state_keys`
    pub keys: GaugeU64,
    /// `larder_state_bytes`: counted bytes of keys and values.
    pub bytes: GaugeU64,
    /// `larder_state_revision`
    pub revision: GaugeU64,
}

/// What the log's syncs did. Commands by sync is `commands / total`.
#[derive(Debug)]
pub struct LogSync {
    /// `larder_log_sync_total`
    pub total: Counter,
    /// `larder_log_sync_commands_total`
    pub commands: Counter,
    /// `larder_log_sync_records_total`: log entries and votes.
    pub records: Counter,
    /// `larder_log_sync_bytes_total`
    pub bytes: Counter,
    /// `larder_log_sync_seconds`
    pub seconds: Histogram,
}

impl LogSync {
    /// Counts one sync that made `records` of `bytes` durable. What commands were in them, `raft` counts.
    pub fn observe(&self, records: u64, bytes: u64, took: Duration) {
        self.total.inc();
        self.records.inc_by(records);
        self.bytes.inc_by(bytes);
        self.seconds.observe(took.as_secs_f64());
    }
}

/// All numbers of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: [Requests; RequestMethod::ALL.len()],
    requests_by_code: Family<MethodCode, Counter>,
    peer_refused: Family<Labels, Counter>,
    snapshots: [Counter; 3],
    /// The Raft gauges.
    pub raft: RaftGauges,
    /// The gauges of the replicated state.
    pub state: StateGauges,
    /// The log's syncs.
    pub log_sync: LogSync,
    /// `larder_proposed_entries_total`: entries proposed by this node as the leader.
    pub proposed_entries: Counter,
    /// `larder_proposed_commands_total`: commands in them.
    pub proposed_commands: Counter,
    /// `larder_forwarded_total`: requests passed on to the leader.
    pub forwarded: Counter,
    /// `larder_disk_bytes`: of log and snapshots.
    pub disk_bytes: GaugeU64,
    /// `larder_voters_lost`: voters whose slot runs on a new data directory and that were not replaced yet.
    pub voters_lost: GaugeU64,
}

impl Metrics {
    /// A registry with every metric in it. `version` is this release's, for `larder_build_info`.
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::with_prefix("larder");
        registry.register(
            "build",
            "This release",
            Info::new(vec![("version".to_owned(), version.to_owned())]),
        );

        let requests_by_code = Family::<MethodCode, Counter>::default();
        registry.register("requests", "Client requests by method and gRPC code", requests_by_code.clone());
        let seconds = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(REQUEST_SECONDS));
        registry.register("request_seconds", "Time from a request's headers to its answer", seconds.clone());
        let requests = RequestMethod::ALL.map(|method| Requests {
            by_code: std::array::from_fn(|_| OnceLock::new()),
            seconds: seconds.get_or_create_owned(&[("method", method.label())]),
        });

        let snapshots = Family::<Labels, Counter>::default();
        registry.register("snapshots", "Snapshots built, installed and sent", snapshots.clone());
        let snapshots =
            ["built", "installed", "sent"].map(|kind| snapshots.get_or_create_owned(&[("kind", kind)]));
        let peer_refused = Family::<Labels, Counter>::default();
        registry.register(
            "peer_refused",
            "Calls of peers that were refused, by reason",
            peer_refused.clone(),
        );

        Self {
            requests,
            requests_by_code,
            peer_refused,
            snapshots,
            raft: raft_gauges(&mut registry),
            state: state_gauges(&mut registry),
            log_sync: log_sync(&mut registry),
            proposed_entries: counter(&mut registry, "proposed_entries", "Entries proposed as the leader"),
            proposed_commands: counter(
                &mut registry,
                "proposed_commands",
                "Commands in the proposed entries",
            ),
            forwarded: counter(&mut registry, "forwarded", "Requests passed on to the leader"),
            disk_bytes: gauge(&mut registry, "disk_bytes", "Bytes on disk of log and snapshots"),
            voters_lost: gauge(
                &mut registry,
                "voters_lost",
                "Voters whose data directory is gone and that were not replaced yet, as this node hears",
            ),
            registry,
        }
    }

    /// Counts a request. `code` is gRPC's number; one outside of its range counts as UNKNOWN.
    pub fn request(&self, method: RequestMethod, code: u8, took: Duration) {
        let code = if usize::from(code) < CODES.len() { usize::from(code) } else { 2 };
        let requests = &self.requests[method as usize];
        requests.by_code[code]
            .get_or_init(|| {
                self.requests_by_code
                    .get_or_create_owned(&[("method", method.label()), ("code", CODES[code])])
            })
            .inc();
        requests.seconds.observe(took.as_secs_f64());
    }

    /// Counts a peer's call that was refused. Reasons are constants, so that their number is bounded.
    pub fn peer_refused(&self, reason: &'static str) {
        self.peer_refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a snapshot.
    pub fn snapshot(&self, kind: SnapshotKind) {
        self.snapshots[kind as usize].inc();
    }

    /// Everything as text, of type [`METRICS_CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a String does not fail, and a metric that cannot be encoded should not hide the others.
        if text::encode(&mut out, &self.registry).is_err() {
            ::tracing::error!("the metrics could not be encoded");
        }
        out
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> GaugeU64 {
    let gauge = GaugeU64::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn raft_gauges(registry: &mut Registry) -> RaftGauges {
    let gauges = RaftGauges {
        term: gauge(registry, "raft_term", "The current term"),
        applied_index: gauge(registry, "raft_applied_index", "The last log index applied here"),
        committed_index: gauge(registry, "raft_committed_index", "The last log index known to be committed"),
        last_log_index: gauge(registry, "raft_last_log_index", "The last log index here"),
        lag: gauge(registry, "raft_lag", "Entries committed and not yet applied here"),
        role: Family::default(),
    };
    registry.register("raft_role", "1 for what this node does at the moment", gauges.role.clone());
    gauges.set_role("none");
    gauges
}

fn state_gauges(registry: &mut Registry) -> StateGauges {
    StateGauges {
        keys: gauge(registry, "state_keys", "Keys in the state"),
        bytes: gauge(registry, "state_bytes", "Counted bytes of keys and values in the state"),
        revision: gauge(registry, "state_revision", "The state's revision"),
    }
}

fn log_sync(registry: &mut Registry) -> LogSync {
    let seconds = Histogram::new(SYNC_SECONDS);
    registry.register("log_sync_seconds", "Time of a sync of the log", seconds.clone());
    LogSync {
        total: counter(registry, "log_sync", "Syncs of the log"),
        commands: counter(registry, "log_sync_commands", "Commands made durable by syncs"),
        records: counter(registry, "log_sync_records", "Log entries and votes made durable by syncs"),
        bytes: counter(registry, "log_sync_bytes", "Bytes made durable by syncs"),
        seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sample line as (name, labels, value); panics with the line that is no Prometheus text.
    fn parse(text: &str) -> Vec<(String, String, f64)> {
        fn is_name(name: &str) -> bool {
            !name.is_empty()
                && name.bytes().enumerate().all(|(i, b)| {
                    b.is_ascii_alphabetic() || b"_:".contains(&b) || i > 0 && b.is_ascii_digit()
                })
        }
        let mut samples = Vec::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let kind = words.next().unwrap();
                assert!(
                    kind == "EOF" || (kind == "HELP" || kind == "TYPE") && is_name(words.next().unwrap()),
                    "{line}"
                );
                continue;
            }
            let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            let (name, labels) = match head.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"))),
                None => (head, ""),
            };
            assert!(is_name(name), "{line}");
            for label in labels.split(',').filter(|l| !l.is_empty()) {
                let (key, quoted) = label.split_once('=').unwrap_or_else(|| panic!("{line}"));
                assert!(
                    is_name(key) && quoted.len() >= 2 && quoted.starts_with('"') && quoted.ends_with('"'),
                    "{line}"
                );
            }
            samples.push((name.to_owned(), labels.to_owned(), value));
        }
        samples
    }

    #[test]
    fn the_text_parses_and_has_every_name() {
        let metrics = Metrics::new("1.2.3");
        metrics.request(RequestMethod::Set, 0, Duration::from_micros(300));
        metrics.request(RequestMethod::Set, 0, Duration::from_micros(300));
        metrics.request(RequestMethod::Set, 14, Duration::from_secs(20));
        metrics.request(RequestMethod::Get, 200, Duration::ZERO);
        metrics.raft.set_role("leader");
        metrics.raft.term.set(7);
        metrics.log_sync.observe(2, 4096, Duration::from_millis(2));
        metrics.log_sync.commands.inc_by(40);
        metrics.peer_refused("CLUSTER_MISMATCH");
        metrics.snapshot(SnapshotKind::Installed);
        let text = metrics.encode();
        let samples = parse(&text);
        let value = |name: &str, labels: &str| {
            samples
                .iter()
                .find(|s| s.0 == name && s.1 == labels)
                .unwrap_or_else(|| panic!("{name}{{{labels}}}\n{text}"))
                .2
        };
        assert_eq!(value("larder_build_info", r#"version="1.2.3""#), 1.0);
        assert_eq!(value("larder_requests_total", r#"method="Set",code="OK""#), 2.0);
        assert_eq!(value("larder_requests_total", r#"method="Set",code="UNAVAILABLE""#), 1.0);
        assert_eq!(value("larder_requests_total", r#"method="Get",code="UNKNOWN""#), 1.0);
        assert_eq!(value("larder_request_seconds_count", r#"method="Set""#), 3.0);
        assert_eq!(value("larder_request_seconds_bucket", r#"le="0.0005",method="Set""#), 2.0);
        assert_eq!(value("larder_raft_role", r#"role="leader""#), 1.0);
        assert_eq!(value("larder_raft_role", r#"role="none""#), 0.0);
        assert_eq!(value("larder_raft_term", ""), 7.0);
        assert_eq!(value("larder_log_sync_total", ""), 1.0);
        assert_eq!(value("larder_log_sync_commands_total", ""), 40.0);
        assert_eq!(value("larder_log_sync_records_total", ""), 2.0);
        assert_eq!(value("larder_log_sync_bytes_total", ""), 4096.0);
        assert_eq!(value("larder_log_sync_seconds_count", ""), 1.0);
        assert_eq!(value("larder_peer_refused_total", r#"reason="CLUSTER_MISMATCH""#), 1.0);
        assert_eq!(value("larder_snapshots_total", r#"kind="installed""#), 1.0);
        assert_eq!(value("larder_snapshots_total", r#"kind="built""#), 0.0);
        for name in [
            "larder_raft_applied_index",
            "larder_raft_committed_index",
            "larder_raft_last_log_index",
            "larder_raft_lag",
            "larder_proposed_entries_total",
            "larder_proposed_commands_total",
            "larder_state_keys",
            "larder_state_bytes",
            "larder_state_revision",
            "larder_disk_bytes",
            "larder_forwarded_total",
            "larder_voters_lost",
        ] {
            assert_eq!(value(name, ""), 0.0, "{name}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_sync_histogram_reaches_from_50_microseconds_to_5_seconds() {
        assert_eq!(SYNC_SECONDS.first(), Some(&50e-6));
        assert_eq!(SYNC_SECONDS.last(), Some(&5.0));
        assert!(SYNC_SECONDS.is_sorted() && REQUEST_SECONDS.is_sorted());
    }

    #[test]
    fn methods_are_numbered_as_they_are_listed() {
        for (i, method) in RequestMethod::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, i);
        }
    }
}
